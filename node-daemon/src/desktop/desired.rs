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
    /// It is not this node's: nothing runs or is held here, and its disks are kept aside.
    Withdraw,
}

/// What `desktop` asks of the node of its allocation.
///
/// A restart is asked for by the annotation: once the operator has checked that the desktop can be started
/// again (`stopFor`), the machine is stopped, the operator sees it and decides anew with the annotation's
/// value, and then the machine is started.
pub fn wanted(desktop: &Desktop) -> Wanted {
    if desktop.metadata.deletion_timestamp.is_some() {
        return Wanted::Remove;
    }
    if allocation(desktop).is_none_or(|allocation| allocation.compute.is_none()) {
        return Wanted::Stop;
    }
    match desktop.spec.power_state {
        PowerState::Running if !is_restart(desktop) => Wanted::Run,
        PowerState::Running | PowerState::Stopped => Wanted::Stop,
        PowerState::Suspended => Wanted::Leave,
    }
}

/// The allocation.
pub fn allocation(desktop: &Desktop) -> Option<&Allocation> {
    desktop.status.as_ref()?.allocation.as_ref()
}

/// Whether the machine is to be stopped only to be started again.
pub fn is_restart(desktop: &Desktop) -> bool {
    let asked = restart_asked(desktop);
    let due = |allocation: &Allocation| {
        allocation.compute.is_some()
            && asked.is_some()
            && asked == allocation.stop_for.as_deref()
            && asked != allocation.restarted_at.as_deref()
    };
    desktop.metadata.deletion_timestamp.is_none()
        && desktop.spec.power_state == PowerState::Running
        && allocation(desktop).is_some_and(due)
}

/// Whether the end of the last run is still what is to be said: the desktop shall run, with its place or
/// parked, and no other run was begun by a restart.
pub fn end_counts(desktop: &Desktop) -> bool {
    desktop.metadata.deletion_timestamp.is_none()
        && desktop.spec.power_state == PowerState::Running
        && !is_restart(desktop)
}

/// The value of the restart annotation.
pub fn restart_asked(desktop: &Desktop) -> Option<&str> {
    desktop.metadata.annotations.as_ref()?.get(RESTARTED_AT_ANNOTATION).map(String::as_str)
}
