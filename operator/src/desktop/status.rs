//! What the operator says of a desktop. Pure: what is to be said in, the fields to apply out.

use gpudesk_crds::{
    Allocation, Desktop, DesktopStatus, GpuAllocation, LastGpu, LastPlacement,
    conditions::{self, ConditionType, Reason, Truth},
    desktop::Phase,
    restart_problem,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use gpudesk_crds::text::plain;

use super::{summary, validate::restart_annotation};
use crate::invalid::Invalid;

/// What there is to say.
#[derive(Clone, Debug, PartialEq)]
pub enum Situation {
    /// It has its place; the node makes it. Everything is said in this one write.
    Placed(Allocation),
    /// It holds its place. `Ready` and the phase are the node's, while its daemon is heard.
    Holding(Holding),
    /// It holds its place again, where its machine was found running.
    GivenBack(Allocation),
    /// It holds nothing but, when parked, its node.
    Idle {
        /// The parked allocation.
        parked: Option<Allocation>,
        /// How it looks to people.
        phase: Phase,
        /// Why.
        reason: Reason,
        /// Why, in a sentence.
        message: String,
    },
}

/// What there is to say of a desktop that holds its place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Holding {
    /// What is not as asked for, while the desktop goes on as it is.
    pub remark: Option<Invalid>,
    /// Why a restart would make a difference.
    pub restart: Option<Invalid>,
    /// The restart for which the node may stop the machine.
    pub stop_for: Option<String>,
    /// That the node's daemon is silent, or its node lost, if it is and this is for the operator to say.
    pub silence: Option<Invalid>,
}

/// The status that the operator applies: every field that it owns now, and no other. A field that
/// is left out is given up (removed, unless the node owns it too).
pub fn status(desktop: &Desktop, situation: Situation, now: &Time) -> DesktopStatus {
    let old = desktop.status.clone().unwrap_or_default();
    let generation = desktop.metadata.generation;
    let mut wanted = DesktopStatus::default();
    let mut say = Sayer { conditions: &mut wanted.conditions, old: &old.conditions, generation, now };
    match situation {
        Situation::Placed(allocation) => {
            let node = format!("on {}", allocation.node);
            say.that(ConditionType::Allocated, true, Reason::AsExpected, &node);
            say.that(
                ConditionType::Ready,
                false,
                Reason::Starting,
                &format!("placed {node}; the node makes it"),
            );
            // Ends what the node said of the machine before: see `decide::reported`.
            say.that(ConditionType::Running, false, Reason::Starting, "");
            wanted.phase = Some(Phase::Starting);
            wanted.gpu_summary = summary::gpus(&allocation.gpus);
            wanted.allocation = Some(allocation);
        }
        Situation::Holding(Holding { remark, restart, stop_for, silence }) => {
            let allocation = old.allocation.clone();
            let node = allocation.as_ref().map(|a| format!("on {}", a.node)).unwrap_or_default();
            let (reason, message) =
                remark.map_or((Reason::AsExpected, node), |remark| (remark.reason, remark.message));
            say.that(ConditionType::Allocated, true, reason, &message);
            if let Some(Invalid { reason, message }) = restart {
                say.that(ConditionType::RestartRequired, true, reason, &message);
            }
            // Until the node has said its first word, what was written with the allocation stays; and so
            // does what was said in its silence, until it speaks.
            let starting = is_starting(&old);
            if let Some(Invalid { reason, message }) = silence {
                say.that(ConditionType::Ready, Truth::Unknown, reason, &message);
                wanted.phase = Some(Phase::Unknown);
            } else if starting || is_said_silent(&old) {
                say.again(ConditionType::Ready);
                wanted.phase = old.phase;
            }
            if starting {
                say.again(ConditionType::Running);
            }
            wanted.gpu_summary.clone_from(&old.gpu_summary);
            wanted.allocation = allocation.map(|allocation| Allocation { stop_for, ..allocation });
        }
        Situation::GivenBack(allocation) => {
            let node = format!("on {}", allocation.node);
            say.that(ConditionType::Allocated, true, Reason::AsExpected, &node);
            let asked =
                restart_annotation(desktop).filter(|asked| Some(asked) != allocation.restarted_at.as_ref());
            let asked = asked.map(|asked| format!("; the restart {asked:?} is not made, for it may have been asked for before that: ask anew"));
            let message =
                format!("its machine was found {node}; the node says how it is{}", asked.unwrap_or_default());
            say.that(ConditionType::Ready, Truth::Unknown, Reason::Unknown, &message);
            wanted.phase = Some(Phase::Unknown);
            wanted.gpu_summary = summary::gpus(&allocation.gpus);
            // Its annotation may be older than its machine: it asks for no restart of what was just found.
            let asked = restart_annotation(desktop).filter(|asked| restart_problem(asked).is_none());
            let restarted_at = asked.or(allocation.restarted_at);
            wanted.allocation = Some(Allocation { stop_for: None, restarted_at, ..allocation });
        }
        Situation::Idle { parked, phase, reason, message } => {
            say.that(ConditionType::Allocated, false, reason, &message);
            say.that(ConditionType::Ready, false, reason, &message);
            if reason == Reason::NodeLost && parked.is_none() {
                // Nobody else is left to say it.
                say.that(ConditionType::Running, false, reason, &message);
            } else if is_running_ours(&old) {
                // Its node owns parts of it that are the same: without the rest they are no condition.
                say.again(ConditionType::Running);
            }
            wanted.phase = Some(phase);
            // Kept over restarts of the operator: whoever waits longer goes first.
            let since = || old.waiting_since.clone().unwrap_or_else(|| now.clone());
            wanted.waiting_since = (phase == Phase::Pending).then(since);
            wanted.allocation = parked;
            wanted.last_placement = last_placement(&old);
        }
    }
    wanted
}

/// What is left of an allocation while its desktop holds nothing but disks.
pub fn parked(allocation: &Allocation) -> Allocation {
    let Allocation {
        node,
        id,
        desktop_generation,
        template_generation,
        restarted_at,
        stop_for: _,
        made_of: _,
        decided_at,
        compute: _,
        gpus: _,
        host_devices: _,
        fabric_partition: _,
        decision: _,
    } = allocation.clone();
    Allocation {
        node,
        id,
        desktop_generation,
        template_generation,
        restarted_at,
        stop_for: None,
        made_of: None,
        decided_at,
        compute: None,
        gpus: vec![],
        host_devices: vec![],
        fabric_partition: None,
        decision: None,
    }
}

/// Where a desktop of this status runs, or ran last, and with which cards.
pub fn last_placement(status: &DesktopStatus) -> Option<LastPlacement> {
    let Some(held) = status.allocation.as_ref().filter(|allocation| allocation.compute.is_some()) else {
        return status.last_placement.clone();
    };
    let card = |gpu: &GpuAllocation| LastGpu {
        name: gpu.name.clone(),
        device: gpu.device,
        device_uuid: gpu.device_uuid.clone(),
    };
    Some(LastPlacement {
        node: held.node.clone(),
        allocation_id: held.id,
        gpus: held.gpus.iter().map(card).collect(),
    })
}

/// Whether the node has not yet said anything about the machine of this allocation.
fn is_starting(status: &DesktopStatus) -> bool {
    conditions::find(&status.conditions, ConditionType::Running)
        .is_some_and(|running| running.status == "False" && running.reason == Reason::Starting.as_str())
}

/// Whether the last word on `Running` is the operator's.
fn is_running_ours(status: &DesktopStatus) -> bool {
    let ours = [Reason::Starting.as_str(), Reason::NodeLost.as_str()];
    conditions::find(&status.conditions, ConditionType::Running)
        .is_some_and(|running| ours.contains(&running.reason.as_str()))
}

/// Whether the last word on `Ready` is the operator's, said in the silence of the node.
pub fn is_said_silent(status: &DesktopStatus) -> bool {
    let ours = [Reason::DaemonSilent, Reason::NodeLost, Reason::AwaitingNodes];
    conditions::find(&status.conditions, ConditionType::Ready).is_some_and(|ready| {
        ready.status == "Unknown" && ours.iter().any(|reason| ready.reason == reason.as_str())
    })
}

struct Sayer<'a> {
    conditions: &'a mut Vec<Condition>,
    old: &'a [Condition],
    generation: Option<i64>,
    now: &'a Time,
}

impl Sayer<'_> {
    fn that(&mut self, type_: ConditionType, status: impl Into<Truth>, reason: Reason, message: &str) {
        self.again(type_);
        // It may hold words of others, of a node say.
        conditions::set(self.conditions, type_, status, reason, plain(message), self.generation, self.now);
    }

    fn again(&mut self, type_: ConditionType) {
        self.conditions.extend(conditions::find(self.old, type_).cloned());
    }
}

/// Whether applying `wanted` would change what is there, apart from times and from generations of
/// conditions that say the same as before.
pub fn differs(old: Option<&DesktopStatus>, wanted: &DesktopStatus) -> bool {
    let none = DesktopStatus::default();
    let old = old.unwrap_or(&none);
    let holds = |status: &DesktopStatus| status.allocation.as_ref().is_some_and(|a| a.compute.is_some());
    let says = |status: &DesktopStatus, type_: ConditionType| {
        conditions::find(&status.conditions, type_)
            .map(|c| (c.status.clone(), c.reason.clone(), c.message.clone()))
    };
    let mut ours = vec![ConditionType::Allocated, ConditionType::RestartRequired];
    let mut phase = false;
    if !holds(wanted) || is_said_silent(wanted) {
        ours.push(ConditionType::Ready);
        phase = old.phase != wanted.phase
            || conditions::find(&wanted.conditions, ConditionType::Ready).map(|c| c.observed_generation)
                != conditions::find(&old.conditions, ConditionType::Ready).map(|c| c.observed_generation);
    }
    phase
        || old.gpu_summary != wanted.gpu_summary
        || old.last_placement != wanted.last_placement
        || old.waiting_since != wanted.waiting_since
        || ours.into_iter().any(|type_| says(old, type_) != says(wanted, type_))
        || !same_allocation(old.allocation.as_ref(), wanted.allocation.as_ref())
}

/// Whether the same is held, and the same allowed: when and how that was decided does not matter.
fn same_allocation(a: Option<&Allocation>, b: Option<&Allocation>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => {
            let decided_at = a.decided_at.clone();
            a.stop_for == b.stop_for && a.held() == Allocation { decided_at, ..b.held() }
        }
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// Whether a desktop already says this reason of what it asks for now, and only the message is another.
pub fn only_message_differs(desktop: &Desktop, why: &Invalid) -> bool {
    let conditions = desktop.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    conditions::find(conditions, ConditionType::Allocated).is_some_and(|said| {
        said.status == "False"
            && said.reason == why.reason.as_str()
            && said.message != why.message
            && said.observed_generation == desktop.metadata.generation
    })
}
