//! What a Desktop asks of this node. Pure.

use gpudesk_crds::{Allocation, Desktop, RESTARTED_AT_ANNOTATION, desktop::PowerState};

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The machine runs.
    Run,
    /// A machine that runs goes on, one that does not stays off: what `Suspended` does so far.
    Leave,
    /// Nothing runs, and nothing is held but disks.
    Stop,
    /// Nothing is left.
    Remove,
}

/// What `desktop` asks of the node of its allocation.
///
/// A restart is asked for by the annotation: the machine is stopped, the operator sees it and decides
/// anew with the annotation's value, and then the machine is started.
pub fn wanted(desktop: &Desktop) -> Wanted {
    if desktop.metadata.deletion_timestamp.is_some() {
        return Wanted::Remove;
    }
    let Some(allocation) = allocation(desktop).filter(|allocation| allocation.compute.is_some()) else {
        return Wanted::Stop;
    };
    match desktop.spec.power_state {
        PowerState::Running if restart_asked(desktop) == allocation.restarted_at.as_deref() => Wanted::Run,
        PowerState::Running | PowerState::Stopped => Wanted::Stop,
        PowerState::Suspended => Wanted::Leave,
    }
}

/// The allocation.
pub fn allocation(desktop: &Desktop) -> Option<&Allocation> {
    desktop.status.as_ref()?.allocation.as_ref()
}

fn restart_asked(desktop: &Desktop) -> Option<&str> {
    desktop.metadata.annotations.as_ref()?.get(RESTARTED_AT_ANNOTATION).map(String::as_str)
}
