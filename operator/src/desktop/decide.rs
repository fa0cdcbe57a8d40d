//! What is to be done for a desktop now: exactly one step.

use std::sync::Arc;

use gpudesk_crds::{
    Allocation, AllocationId, Desktop, NodeState, RELEASE_FINALIZER,
    conditions::{self, ConditionType, Reason},
    desktop::PowerState,
    handover::Standing,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::validate::restart_annotation;

/// Whether the node of an allocation is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Presence {
    /// Its `GpuNode` exists, and its daemon is not known to be silent.
    Present,
    /// Its `GpuNode` exists, and its daemon is not heard.
    Silent,
    /// Its `GpuNode` is missing since a moment ago; its daemon may be about to make it again.
    Missing,
    /// Its `GpuNode` was deleted, and nobody makes it again.
    Lost,
}

impl Presence {
    /// Whether nobody there can say what runs.
    pub fn is_away(self) -> bool {
        matches!(self, Self::Silent | Self::Lost)
    }
}

/// A machine of a desktop that a node reports and no allocation accounts for. An operator of this cluster
/// decided it.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The node.
    pub node: String,
    /// What was decided.
    pub allocation: Arc<Allocation>,
}

/// What is known around a desktop.
#[derive(Clone, Debug, PartialEq)]
pub struct Around {
    /// Whether the node of its allocation is there.
    pub node: Presence,
    /// Whether that node's daemon still renews its lease, also where its `GpuNode` is gone.
    pub alive: bool,
    /// When its lease was renewed last, as that was judged.
    pub renewed: Option<MicroTime>,
    /// Whether somebody with rights over that node said that the machine is off.
    pub off: bool,
    /// Whether the template leaves disks on the node; `None` when there is no template to tell, which counts
    /// as yes.
    pub keeps_disks: Option<bool>,
    /// Its machines elsewhere.
    pub found: Vec<Found>,
    /// The last decision by which it was seen to hold something.
    pub remembered: Option<AllocationId>,
}

impl Around {
    /// On a node that is there.
    pub fn present(keeps_disks: Option<bool>) -> Self {
        Self {
            node: Presence::Present,
            alive: true,
            renewed: None,
            off: false,
            keeps_disks,
            found: vec![],
            remembered: None,
        }
    }
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
    /// The node has given everything back, or it was given up: park the allocation, or clear it.
    Release {
        /// Whether disks stay on the node, and the next start with them.
        park: bool,
        /// `Stopped`, `NodeLost`, or how the guest ended for good.
        reason: Reason,
    },
    /// Its node is gone, and nobody has said what that means: what it has there stays its own.
    NodeLost,
    /// It shall run and holds nothing; but its node says that a machine of it still runs there.
    NotOver,
    /// By this decision it was held, and its status does not tell of it any more.
    Forgotten(AllocationId),
    /// Machines of it run where its status does not say.
    Elsewhere,
    /// A machine of it runs on this node by a later decision than its status tells of: it is its own again.
    GiveBack {
        /// The node.
        node: String,
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

/// Decides.
pub fn decide(desktop: &Desktop, around: &Around) -> Step {
    let step = by_its_status(desktop, around);
    if step == Step::AddFinalizer {
        return step;
    }
    let deleted = desktop.metadata.deletion_timestamp.is_some();
    let wanted = deleted || desktop.spec.power_state == PowerState::Running;
    let begins = matches!(step, Step::Place { .. } | Step::RemoveFinalizer);
    match later(desktop, &around.found).as_slice() {
        [] => {}
        // One that shall not run stays as it is found: what asks for that may be a copy from before it.
        [only] if wanted && is_later(desktop, only) => return Step::GiveBack { node: only.node.clone() },
        _ if begins || step == Step::Rest => return Step::Elsewhere,
        _ => {}
    }
    match forgotten(desktop, around.remembered) {
        Some(decision) if begins => Step::Forgotten(decision),
        _ => step,
    }
}

/// Decides by what the status tells.
fn by_its_status(desktop: &Desktop, around: &Around) -> Step {
    let allocation = desktop.allocation();
    let ours = desktop.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == RELEASE_FINALIZER);
    let ended = stays_ended(desktop);
    let lost = around.node == Presence::Lost;
    if desktop.metadata.deletion_timestamp.is_some() {
        let released = last_word(desktop).is_some_and(|word| word.state == NodeState::Released);
        let nothing_runs = released || given_up(desktop, around) || lost && is_settled(desktop);
        return match allocation {
            _ if !ours => Step::Wait,
            Some(_) if lost && !nothing_runs => Step::NodeLost,
            Some(_) if !nothing_runs => Step::Wait,
            _ => Step::RemoveFinalizer,
        };
    }
    if !ours {
        return Step::AddFinalizer;
    }
    let step = match (allocation, ended) {
        // It stays as its guest left it: there is nothing to give up but the name of the node.
        (Some(_), Some(how)) => Step::Ended(how),
        (Some(_), None) if given_up(desktop, around) => {
            Step::Release { park: false, reason: Reason::NodeLost }
        }
        (Some(_), None) if lost && !is_settled(desktop) => Step::NodeLost,
        (Some(allocation), None) if allocation.compute.is_some() => {
            holding(desktop, allocation, around.keeps_disks)
        }
        (parked, _) => match desktop.spec.power_state {
            // What the node says of the decision that was given back is not over: something of another runs.
            PowerState::Running if desktop.said_by_node().is_some_and(|said| !said.state.is_final()) => {
                Step::NotOver
            }
            PowerState::Running => Step::Place { home: home(parked, around.keeps_disks) },
            PowerState::Stopped | PowerState::Suspended => Step::Rest,
        },
    };
    match step {
        Step::Place { home: Some(_) } if lost => Step::NodeLost,
        step => step,
    }
}

/// Whether nothing of it runs on its node, by the node's own last word, and there are only disks.
pub fn is_settled(desktop: &Desktop) -> bool {
    let parked = desktop.allocation().is_some_and(|allocation| allocation.compute.is_none());
    match last_word(desktop) {
        Some(word) => parked || word.final_,
        None => parked && desktop.said_by_node().is_none(),
    }
}

/// Whether what it has on a node that is away was given up by somebody who may: by its user, all of it; by who
/// has rights over the node, what runs there.
fn given_up(desktop: &Desktop, around: &Around) -> bool {
    let Some(allocation) = desktop.allocation() else { return false };
    let deleted = desktop.metadata.deletion_timestamp.is_some();
    let only_runs = deleted || around.keeps_disks == Some(false);
    let said = desktop.abandons(&allocation.decision()) || around.off && only_runs;
    around.node.is_away() && !around.alive && said
}

/// The machines that its status does not account for: those of later decisions, and those of the same number.
fn later<'a>(desktop: &Desktop, found: &'a [Found]) -> Vec<&'a Found> {
    let known = desktop.last_decision();
    let later = |found: &&Found| {
        let id = found.allocation.id;
        id.is_some_and(|id| known.is_none_or(|known| id.standing(known) == Standing::Unknown))
    };
    found.iter().filter(later).collect()
}

/// Whether it was decided after all that the status tells of.
fn is_later(desktop: &Desktop, found: &Found) -> bool {
    let known = desktop.last_decision().map(AllocationId::number);
    found.allocation.id.map(AllocationId::number) > known
}

/// The decision by which it held something, where the operator's part of the status does not tell of it and
/// nobody gave it up. The node's part may, or we remember.
pub fn forgotten(desktop: &Desktop, remembered: Option<AllocationId>) -> Option<AllocationId> {
    let said = desktop.status.as_ref().and_then(|status| status.node.as_ref());
    let said = said.filter(|said| !said.state.is_final()).map(|said| said.allocation_id);
    let known = desktop.last_decision();
    let untold = |id: &AllocationId| known.is_none_or(|known| id.standing(known) == Standing::Unknown);
    said.max(remembered).filter(untold).filter(|id| !desktop.abandons(&id.to_string()))
}

/// What is to be done for a desktop that holds its place. Nothing, before its node has said the last word
/// on the decision: then nothing of it is left there but disks, and the node never starts it again.
fn holding(desktop: &Desktop, allocation: &Allocation, keeps_disks: Option<bool>) -> Step {
    let Some(word) = last_word(desktop) else { return Step::Hold };
    let rest = Step::Release { park: keeps_disks.unwrap_or(true), reason: Reason::Stopped };
    let restart = restart_due(desktop, allocation).is_some();
    match (desktop.spec.power_state, word.state) {
        // The node still takes down what it kept to say how the guest ended.
        (PowerState::Stopped, NodeState::Ended) => Step::Hold,
        (PowerState::Stopped, _) => rest,
        // Parked also without disks: it notes for which restart it was made.
        (PowerState::Running, NodeState::Ended) if !restart => {
            Step::Release { park: true, reason: how_it_ended(desktop) }
        }
        // Nothing runs that a refusal would have to spare: a restart is a start like any other.
        (PowerState::Running, _) if restart || word.final_ => {
            Step::Place { home: home(Some(allocation), keeps_disks) }
        }
        (PowerState::Suspended, _) if word.final_ => rest,
        (PowerState::Running | PowerState::Suspended, _) => Step::Hold,
    }
}

/// The word of a node that ends a decision.
#[derive(Clone, Copy)]
struct LastWord {
    state: NodeState,
    /// The node keeps to it. One of a version without ids may start the same decision again.
    final_: bool,
}

fn last_word(desktop: &Desktop) -> Option<LastWord> {
    let reports = desktop.status.as_ref().is_some_and(|status| status.node.is_some());
    let decided = desktop.allocation().is_some_and(|allocation| allocation.id.is_some());
    if reports && decided {
        let state = desktop.said_by_node().map(|said| said.state).filter(|state| state.is_final())?;
        return Some(LastWord { state, final_: true });
    }
    let state = if reported(desktop, &[Reason::Released]) {
        NodeState::Released
    } else if reported(desktop, &[Reason::Stopped]) {
        NodeState::Stopped
    } else if given_back(desktop) {
        NodeState::Ended
    } else {
        return None;
    };
    Some(LastWord { state, final_: false })
}

/// The value of the annotation that asks for a restart which was not made yet. Taking the annotation away
/// asks for nothing.
pub fn restart_due(desktop: &Desktop, allocation: &Allocation) -> Option<String> {
    restart_annotation(desktop).filter(|asked| Some(asked) != allocation.restarted_at.as_ref())
}

/// How a machine can end that nobody asked to.
const ENDS: [Reason; 3] = [Reason::GuestStopped, Reason::GuestCrashed, Reason::EndUnseen];

/// How the guest ended, in the node's words for people.
fn how_it_ended(desktop: &Desktop) -> Reason {
    let conditions = desktop.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let running = conditions::find(conditions, ConditionType::Running);
    let said = |end: &Reason| running.is_some_and(|running| running.reason == end.as_str());
    ENDS.into_iter().find(said).unwrap_or(Reason::GuestStopped)
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

// The three below read the words of nodes of a version without ids.

/// Whether the node says that the guest ended by itself, is not started again, and that nothing of it is
/// left there but disks.
fn given_back(desktop: &Desktop) -> bool {
    let conditions = desktop.status.as_ref().map_or(&[][..], |status| &status.conditions);
    reported(desktop, &ENDS)
        && conditions::find(conditions, ConditionType::DevicesPrepared)
            .is_some_and(|prepared| prepared.status == "False" && prepared.reason == Reason::Stopped.as_str())
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
