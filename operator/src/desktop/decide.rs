//! What is to be done for a desktop now: exactly one step.

use gpudesk_crds::{
    Allocation, Desktop, RELEASE_FINALIZER,
    conditions::{self, ConditionType, Reason},
    desktop::PowerState,
};

use super::validate::restart_annotation;

/// Whether the node of an allocation is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Its `GpuNode` exists.
    Present,
    /// Its `GpuNode` is missing since a moment ago; its daemon may be about to make it again.
    Missing,
    /// Its `GpuNode` was deleted, and with it what the node holds.
    Lost,
}

/// The one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Put the finalizer on.
    AddFinalizer,
    /// Take the finalizer off: nothing is held any more.
    RemoveFinalizer,
    /// The node has the word; nothing is written.
    Wait,
    /// It holds what it needs; say what the node does not say.
    Hold,
    /// The node has given everything back: park the allocation, or clear it.
    Release {
        /// Whether disks stay on the node, and the next start with them.
        park: bool,
        /// `Stopped`, `NodeLost`, or how the guest ended for good.
        reason: Reason,
    },
    /// The guest ended for good, in this way, and what it held was given back: it waits for somebody to
    /// start it.
    Ended(Reason),
    /// It shall not run and holds nothing.
    Rest,
    /// It shall run: find a place, on this node if one is named.
    Place {
        /// The node of its disks.
        home: Option<String>,
    },
}

/// Decides. `keeps_disks` says whether the template leaves disks on the node; `None` when there is
/// no template to tell, which counts as yes.
pub fn decide(desktop: &Desktop, node: Presence, keeps_disks: Option<bool>) -> Step {
    let allocation = desktop.allocation();
    let ours = desktop.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == RELEASE_FINALIZER);
    let ended = stays_ended(desktop);
    if desktop.metadata.deletion_timestamp.is_some() {
        let gone = allocation.is_none() || node == Presence::Lost || reported(desktop, &[Reason::Released]);
        return if ours && gone { Step::RemoveFinalizer } else { Step::Wait };
    }
    if !ours {
        return Step::AddFinalizer;
    }
    match (allocation, ended) {
        // It stays as its guest left it: there is nothing to give up but the name of the node.
        (Some(_), Some(how)) => Step::Ended(how),
        (Some(_), None) if node == Presence::Lost => Step::Release { park: false, reason: Reason::NodeLost },
        (Some(allocation), None) if allocation.compute.is_some() => holding(desktop, allocation, keeps_disks),
        (parked, _) => match desktop.spec.power_state {
            PowerState::Running => Step::Place { home: home(parked, keeps_disks) },
            PowerState::Stopped | PowerState::Suspended => Step::Rest,
        },
    }
}

fn holding(desktop: &Desktop, allocation: &Allocation, keeps_disks: Option<bool>) -> Step {
    let stopped = reported(desktop, &[Reason::Stopped, Reason::Released]);
    match desktop.spec.power_state {
        PowerState::Stopped if stopped => {
            Step::Release { park: keeps_disks.unwrap_or(true), reason: Reason::Stopped }
        }
        PowerState::Running => match given_back(desktop) {
            // Nothing runs that a refusal would have to spare: it is a start like any other.
            given_back if restart_due(desktop, allocation).is_some() && (stopped || given_back.is_some()) => {
                Step::Place { home: home(Some(allocation), keeps_disks) }
            }
            // Parked also without disks: it notes for which restart it was made.
            Some(reason) => Step::Release { park: true, reason },
            None => Step::Hold,
        },
        PowerState::Stopped | PowerState::Suspended => Step::Hold,
    }
}

/// The value of the annotation that asks for a restart which was not made yet. Taking the annotation away
/// asks for nothing.
pub fn restart_due(desktop: &Desktop, allocation: &Allocation) -> Option<String> {
    restart_annotation(desktop).filter(|asked| Some(asked) != allocation.restarted_at.as_ref())
}

/// How a guest can end by itself.
const ENDS: [Reason; 2] = [Reason::GuestStopped, Reason::GuestCrashed];

/// Whether the node says that the guest ended by itself, is not started again, and that nothing of it is
/// left there but disks; and how it ended.
fn given_back(desktop: &Desktop) -> Option<Reason> {
    let how = ENDS.into_iter().find(|end| reported(desktop, &[*end]))?;
    let status = desktop.status.as_ref()?;
    let prepared = conditions::find(&status.conditions, ConditionType::DevicesPrepared)?;
    (prepared.status == "False" && prepared.reason == Reason::Stopped.as_str()).then_some(how)
}

/// How the guest of a desktop ended that should run and stays as it left it: nothing is held for it until
/// somebody asks for a restart, or stops and starts it.
///
/// A stop and a start are two generations. One that came alone is another change, and is noted
/// ([`Step::Ended`]); of more that came while nobody looked, none is left to tell which they were.
pub fn stays_ended(desktop: &Desktop) -> Option<Reason> {
    let status = desktop.status.as_ref()?;
    let parked = desktop.allocation().filter(|allocation| allocation.compute.is_none())?;
    let said = conditions::find(&status.conditions, ConditionType::Allocated)?;
    let generations = said.observed_generation.zip(desktop.metadata.generation);
    let seen = generations.is_none_or(|(said, now)| now <= said + 1);
    let asked = desktop.spec.power_state != PowerState::Running || restart_due(desktop, parked).is_some();
    ENDS.into_iter().find(|end| !asked && seen && said.status == "False" && said.reason == end.as_str())
}

fn home(allocation: Option<&Allocation>, keeps_disks: Option<bool>) -> Option<String> {
    allocation.filter(|_| keeps_disks.unwrap_or(true)).map(|allocation| allocation.node.clone())
}

/// Whether the node says, of what is asked for now, that nothing runs there any more.
///
/// An allocation is written together with `Running=False`, reason `Starting`; so an old report is
/// never taken for one about the machine that this allocation is for.
fn reported(desktop: &Desktop, reasons: &[Reason]) -> bool {
    let Some(status) = &desktop.status else { return false };
    let Some(running) = conditions::find(&status.conditions, ConditionType::Running) else { return false };
    status.domain.is_none()
        && running.status == "False"
        && reasons.iter().any(|reason| running.reason == reason.as_str())
        && running.observed_generation == desktop.metadata.generation
}
