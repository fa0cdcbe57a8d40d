//! What the daemon says of a desktop. Pure: computed whole, whatever happened before.

use std::sync::LazyLock;

use gpudesk_crds::{
    AllocationId, Desktop, DesktopStatus, NodeReport, NodeState, Refusal,
    conditions::{self, ConditionType, Reason, Truth},
    desktop::{
        ConsoleRelay, ConsoleStatus, ConsoleType, DomainStatus, Phase, PowerState, PreparedGpu, TuningResult,
    },
    desktop_template::RestartPolicy,
    gpu_node_status::Acceleration,
    handover::Standing,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::Node;
use super::{
    decide::Observed,
    desired::{Wanted, allocation},
    problem::{Problem, Stage},
    record::{AfterEnd, Ended},
};
use crate::domain::Endpoint;

/// An agent that has not answered for so long after the start counts as silent.
const AGENT_PATIENCE: SignedDuration = SignedDuration::from_mins(5);

/// The conditions that the daemon owns always.
const OWN: [ConditionType; 3] =
    [ConditionType::DevicesPrepared, ConditionType::Running, ConditionType::GuestReady];

/// What is known of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// The template does without agent.
    NoAgent,
    /// No guest runs on a simulated host.
    Simulated,
    /// The agent does not answer.
    Silent,
    /// The agent answers.
    Answers,
}

/// A domain that is active.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// The host has paused it.
    pub paused: bool,
    /// When it was started.
    pub started_at: Timestamp,
    /// Generation of the template that it was made from.
    pub template_generation: i64,
    /// Its screens.
    pub endpoints: Vec<Endpoint>,
    /// Its guest.
    pub guest: Guest,
    /// Addresses of its guest.
    pub addresses: Vec<String>,
    /// What became of each tuning.
    pub tuning: Vec<TuningResult>,
}

/// Everything that the status says something about.
pub struct Report<'a> {
    /// The desktop.
    pub desktop: &'a Desktop,
    /// What it asks for.
    pub wanted: Wanted,
    /// What is there.
    pub observed: &'a Observed,
    /// The domain, when it is active.
    pub machine: Option<&'a Machine>,
    /// Devices made for the shares of GPUs.
    pub gpus: &'a [PreparedGpu],
    /// Why it is not as wanted.
    pub problem: Option<&'a Problem>,
    /// Why a restart that was asked for is not done: the machine goes on.
    pub held_back: Option<&'a Problem>,
    /// What of it cannot be kept on this node: the machine goes on.
    pub unkept: Option<&'a Problem>,
    /// The machine ended by itself for good, and nobody has asked for anything else since.
    pub stays: bool,
    /// The template's restart policy.
    pub restart_policy: RestartPolicy,
    /// The boot of the host.
    pub boot: &'a str,
    /// How guests run on this host.
    pub acceleration: Acceleration,
    /// The relay of this node.
    pub relay: Option<&'a ConsoleRelay>,
    /// Now.
    pub now: Timestamp,
    /// The last word on the decision that holds, once it was noted down or said.
    pub last_word: Option<&'a NodeReport>,
    /// What of the decision this node cannot give; nothing is left of what was made for it.
    pub refusal: Option<&'a Refusal>,
    /// The user's word by which lost disks were made anew here.
    pub abandoned_disks: Option<&'a str>,
}

impl<'a> Report<'a> {
    /// What is to be said while a machine is made of which nothing can be said yet.
    pub fn of_nothing_yet(desktop: &'a Desktop, node: &'a Node, now: Timestamp) -> Self {
        static NOTHING: LazyLock<Observed> = LazyLock::new(Observed::default);
        Self {
            desktop,
            wanted: Wanted::Run,
            observed: &NOTHING,
            machine: None,
            gpus: &[],
            problem: None,
            held_back: None,
            unkept: None,
            stays: false,
            restart_policy: RestartPolicy::default(),
            boot: &node.boot,
            acceleration: node.acceleration(),
            relay: None,
            now,
            last_word: None,
            refusal: None,
            abandoned_disks: None,
        }
    }
}

/// One condition's worth of words.
struct Say {
    status: Truth,
    reason: Reason,
    message: String,
}

impl Say {
    fn yes(message: impl Into<String>) -> Self {
        Self::yes_but(Reason::AsExpected, message)
    }
    fn yes_but(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: Truth::True, reason, message: message.into() }
    }
    fn no(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: Truth::False, reason, message: message.into() }
    }
}

struct Words {
    prepared: Say,
    running: Say,
    guest: Say,
    ready: Say,
    phase: Phase,
}

/// The status that the daemon applies: every field that it owns now, and no other.
pub fn status(report: &Report<'_>) -> DesktopStatus {
    let Words { prepared, running, guest, ready, phase } = match report.machine {
        Some(machine) => up(report, machine),
        None => down(report),
    };
    let mut status = DesktopStatus { gpus: report.gpus.to_vec(), ..DesktopStatus::default() };
    if let Some(said) = goes_on_unseen(report) {
        let DesktopStatus { domain, gpus, consoles, addresses, tuning, .. } = said.clone();
        status = DesktopStatus { domain, gpus, consoles, addresses, tuning, ..status };
    }
    if let Some(machine) = report.machine {
        status.domain = Some(DomainStatus {
            name: machine.name.clone(),
            acceleration: report.acceleration,
            started_at: Some(time(machine.started_at)),
            template_generation: Some(machine.template_generation),
        });
        status.consoles = consoles(&machine.endpoints, report.relay);
        status.addresses.clone_from(&machine.addresses);
        status.tuning.clone_from(&machine.tuning);
    }
    let old: &[Condition] = report.desktop.status.as_ref().map_or(&[], |status| &status.conditions);
    let generation = report.desktop.metadata.generation;
    let mut say = |type_, Say { status: is, reason, message }: Say| {
        status.conditions.extend(conditions::find(old, type_).cloned());
        let now = time(report.now);
        conditions::set(&mut status.conditions, type_, is, reason, message, generation, &now);
    };
    say(ConditionType::DevicesPrepared, prepared);
    say(ConditionType::Running, running);
    say(ConditionType::GuestReady, guest);
    if holds_compute(report.desktop) {
        say(ConditionType::Ready, ready);
        status.phase = Some(phase);
    }
    let id = allocation(report.desktop).and_then(|allocation| allocation.id);
    let before =
        report.desktop.status.as_ref().and_then(|status| status.node.as_ref()?.abandoned_disks.clone());
    let abandoned_disks = report.abandoned_disks.map(Into::into).or(before);
    let said = id.and_then(|id| node_report(report, id));
    status.node = said.map(|said| NodeReport { abandoned_disks, ..said });
    status
}

/// What is stored of a machine that ran when it was last seen, and of which a fault shows nothing now.
fn goes_on_unseen<'a>(report: &Report<'a>) -> Option<&'a DesktopStatus> {
    let unseen = report.problem.is_some() && report.machine.is_none();
    let may_run = !report.observed.looked || is_its_own(report);
    let said = report.desktop.said_by_node()?;
    let ran = matches!(said.state, NodeState::Running | NodeState::Stopping);
    report.desktop.status.as_ref().filter(|_| unseen && may_run && ran)
}

/// Whether what runs is the machine of the decision that holds.
fn is_its_own(report: &Report<'_>) -> bool {
    let domain = report.observed.domain;
    domain.is_some_and(|domain| domain.active && domain.standing == Standing::Current)
        && report.last_word.is_none()
}

/// How far the node is with the decision that holds: what programs decide on. A fault takes nothing back that
/// was said.
fn node_report(report: &Report<'_>, allocation_id: AllocationId) -> Option<NodeReport> {
    let stored = report.desktop.status.as_ref().and_then(|status| status.node.as_ref());
    let has_disks = report.observed.disks.or_else(|| stored?.has_disks);
    let said =
        |state| Some(NodeReport { allocation_id, state, refusal: None, has_disks, abandoned_disks: None });
    let observed = report.observed;
    if let Some(refusal) = report.refusal {
        return said(NodeState::Refused).map(|said| NodeReport { refusal: Some(refusal.clone()), ..said });
    }
    let active = observed.domain.is_some_and(|domain| domain.active);
    let nothing = observed.domain.is_none() && !observed.instances && report.problem.is_none();
    let begun = report.desktop.said_by_node().is_some_and(|said| said.state != NodeState::Preparing);
    match report.wanted {
        // Also of another decision: what follows from it was not looked at.
        _ if report.problem.is_some() && !observed.looked => report.last_word.or(stored).cloned(),
        Wanted::Run | Wanted::Leave if report.machine.is_some() => said(NodeState::Running),
        Wanted::Run | Wanted::Leave if report.problem.is_some() && is_its_own(report) => {
            said(NodeState::Running)
        }
        Wanted::Remove if nothing && !observed.folder => said(NodeState::Released),
        // What was said is kept to.
        Wanted::Run | Wanted::Leave if let Some(word) = report.last_word => Some(word.clone()),
        Wanted::Stop
            if report.problem.is_some()
                && !active
                && let Some(word) = report.last_word =>
        {
            Some(word.clone())
        }
        Wanted::Run | Wanted::Stop if nothing && report.stays => said(NodeState::Ended),
        Wanted::Run | Wanted::Leave => said(NodeState::Preparing),
        Wanted::Stop if nothing => said(NodeState::Stopped),
        // There is no machine that could be stopped, and never was one.
        Wanted::Stop if !active && !begun => report.desktop.said_by_node().cloned(),
        Wanted::Stop | Wanted::Remove | Wanted::Withdraw => said(NodeState::Stopping),
    }
}

/// Whether the operator says that nothing is known of the desktop, for its node is silent.
pub fn is_unknown(desktop: &Desktop) -> bool {
    let conditions = desktop.status.as_ref().map_or(&[][..], |status| &status.conditions);
    // What this daemon said of a libvirt that is away is its own.
    conditions::find(conditions, ConditionType::Ready).is_some_and(|ready| {
        ready.status == "Unknown" && ready.reason != Reason::HypervisorUnavailable.as_str()
    })
}

/// Whether `Ready` and the phase are the daemon's to say: while the desktop has CPUs allocated.
fn holds_compute(desktop: &Desktop) -> bool {
    allocation(desktop).is_some_and(|allocation| allocation.compute.is_some())
}

fn up(report: &Report<'_>, machine: &Machine) -> Words {
    let stopping = matches!(report.wanted, Wanted::Stop | Wanted::Remove | Wanted::Withdraw);
    let (guest, guest_ready) = guest(report, machine);
    let goes_on = |problem: &Problem| {
        let words = format!(
            "the restart that was asked for could not succeed, so the machine goes on as it is: {problem}"
        );
        Say::yes_but(problem.reason(), words)
    };
    let unkept = |fault: &Problem| {
        Say::yes_but(
            fault.reason(),
            format!("the machine runs on, and is not started again before this is mended: {fault}"),
        )
    };
    let goes_down = || match report.unkept {
        Some(fault) => format!("the guest is asked to shut down; {fault}"),
        None => "the guest is asked to shut down".into(),
    };
    let running = if machine.paused {
        Say::no(Reason::Unknown, "the machine is paused by the host")
    } else if let Some(problem) = report.held_back {
        goes_on(problem)
    } else if stopping {
        Say::yes_but(Reason::Stopping, goes_down())
    } else if let Some(fault) = report.unkept {
        unkept(fault)
    } else {
        Say::yes(open_screen(machine))
    };
    let ready = if let Some(problem) = report.problem {
        Say::no(problem.reason(), problem.to_string())
    } else if stopping {
        Say::no(Reason::Stopping, goes_down())
    } else if machine.paused {
        Say::no(Reason::Unknown, "the machine is paused by the host")
    } else if !guest_ready {
        Say::no(guest.reason, guest.message.clone())
    } else if let Some(problem) = report.held_back {
        goes_on(problem)
    } else if let Some(fault) = report.unkept {
        unkept(fault)
    } else if report.desktop.spec.power_state == PowerState::Suspended {
        Say::yes("powerState Suspended is not yet supported: the machine goes on")
    } else {
        Say::yes("")
    };
    let phase = match report.wanted {
        Wanted::Remove => Phase::Deleting,
        Wanted::Stop | Wanted::Withdraw => Phase::Stopping,
        Wanted::Run | Wanted::Leave => Phase::Running,
    };
    Words { prepared: Say::yes(""), running, guest, ready, phase }
}

/// What is said of a machine that an earlier version of the daemon started: it runs on as it is.
fn open_screen(machine: &Machine) -> String {
    let open = machine.endpoints.iter().find_map(Endpoint::open_at);
    open.map_or_else(String::new, |open| {
        format!("the screen is open to everybody who reaches {open} on this node: the next start ends that")
    })
}

/// What is said of the guest, and whether it stands in the way of `Ready`.
fn guest(report: &Report<'_>, machine: &Machine) -> (Say, bool) {
    match machine.guest {
        Guest::Answers => (Say::yes(""), true),
        Guest::NoAgent => {
            (Say::no(Reason::AgentNotConfigured, "the template does without guest agent"), true)
        }
        Guest::Simulated => (Say::no(Reason::Simulated, "no guest runs on a simulated host"), true),
        Guest::Silent if report.now.duration_since(machine.started_at) < AGENT_PATIENCE => {
            (Say::no(Reason::GuestStarting, "the guest agent has not answered yet"), false)
        }
        Guest::Silent => {
            let message =
                "the guest agent does not answer: is qemu-guest-agent installed in the image and running?";
            (Say::no(Reason::AgentSilent, message), false)
        }
    }
}

fn down(report: &Report<'_>) -> Words {
    let same = |reason, message: String, phase| Words {
        prepared: Say::no(reason, message.clone()),
        running: Say::no(reason, message.clone()),
        guest: Say::no(reason, message.clone()),
        ready: Say::no(reason, message),
        phase,
    };
    let refused = report.last_word.and_then(|word| word.refusal.as_ref());
    if let Some(refusal) = report.refusal.or(refused.filter(|_| report.wanted == Wanted::Run)) {
        return same(Reason::AllocationConflict, refusal.message.clone(), Phase::Pending);
    }
    if let Some(problem) = report.problem {
        return troubled(report, problem);
    }
    if report.wanted == Wanted::Run && report.last_word.is_some_and(|word| word.state == NodeState::Stopped) {
        return same(Reason::Stopped, String::new(), Phase::Stopped);
    }
    if let Some(words) = report.stays.then(|| ended(report)).flatten() {
        return words;
    }
    match report.wanted {
        Wanted::Remove => same(Reason::Released, "nothing is left on this node".into(), Phase::Deleting),
        Wanted::Stop | Wanted::Withdraw => {
            let unkept = report.unkept.map(ToString::to_string);
            same(Reason::Stopped, unkept.unwrap_or_default(), Phase::Stopped)
        }
        Wanted::Leave => {
            let message = "powerState Suspended is not yet supported: the machine stays off";
            same(Reason::NotYetSupported, message.into(), Phase::Stopped)
        }
        Wanted::Run => match ended(report) {
            Some(words) => words,
            None => same(Reason::Starting, String::new(), Phase::Starting),
        },
    }
}

/// What is said when the guest ended by itself.
fn ended(report: &Report<'_>) -> Option<Words> {
    let record = report.observed.record.as_ref()?;
    let end = record.end_in(report.boot)?;
    let (reason, what) = match end {
        Ended { crashed: true, .. } => (Reason::GuestCrashed, "the guest crashed"),
        Ended { powered_off: true, .. } => (Reason::GuestStopped, "the machine was powered off on the host"),
        Ended { unseen: true, .. } => (
            Reason::EndUnseen,
            "the machine ended, and how was not seen (it may have been ended or removed by hand on the host, as with `virsh \
             undefine`, or while libvirt was away): noticed",
        ),
        _ => (Reason::GuestStopped, "the guest shut itself down"),
    };
    let (message, phase) = match record.after(end, report.restart_policy) {
        AfterEnd::RestartAt(time) => {
            (format!("{what}; it is started again at {}", whole_second(time)), Phase::Starting)
        }
        AfterEnd::Stay => {
            let policy = report.restart_policy;
            let phase = if end.crashed { Phase::Failed } else { Phase::Stopped };
            (format!("{what} at {}; restartPolicy {policy:?} leaves it so", whole_second(end.at)), phase)
        }
    };
    Some(Words {
        // By this word the operator knows that only disks are left here.
        prepared: if report.stays && report.observed.domain.is_none() && !report.observed.instances {
            Say::no(Reason::Stopped, "its machine ended and holds nothing but its disks")
        } else if report.observed.prepared {
            Say::yes("")
        } else {
            Say::no(reason, message.clone())
        },
        running: Say::no(reason, message.clone()),
        guest: Say::no(reason, message.clone()),
        ready: Say::no(reason, message),
        phase,
    })
}

fn troubled(report: &Report<'_>, problem: &Problem) -> Words {
    if let Problem::LibvirtAway { .. } = problem {
        let say = || Say { status: Truth::Unknown, ..Say::no(problem.reason(), problem.to_string()) };
        let phase = if report.wanted == Wanted::Remove { Phase::Deleting } else { Phase::Unknown };
        return Words { prepared: say(), running: say(), guest: say(), ready: say(), phase };
    }
    let no = || Say::no(problem.reason(), problem.to_string());
    let prepared = match problem.stage() {
        Stage::Running if report.observed.prepared => Say::yes(""),
        Stage::Preparing | Stage::Running => no(),
    };
    let phase = match report.wanted {
        Wanted::Remove => Phase::Deleting,
        Wanted::Stop | Wanted::Withdraw => Phase::Stopping,
        Wanted::Run | Wanted::Leave if problem.is_transient() => Phase::Starting,
        Wanted::Run | Wanted::Leave => Phase::Failed,
    };
    Words { prepared, running: no(), guest: no(), ready: no(), phase }
}

fn consoles(endpoints: &[Endpoint], relay: Option<&ConsoleRelay>) -> Vec<ConsoleStatus> {
    let console = |endpoint: &Endpoint| {
        let console_type = match endpoint.kind.as_str() {
            "vnc" => ConsoleType::Vnc,
            "spice" => ConsoleType::Spice,
            _ => return None,
        };
        // Only VNC is passed on.
        let relay = relay.filter(|_| console_type == ConsoleType::Vnc).cloned();
        Some(ConsoleStatus { console_type, address: endpoint.open_at().unwrap_or_default(), relay })
    };
    endpoints.iter().filter_map(console).collect()
}

/// What the daemon owns of a status that somebody stored.
pub fn owned(desktop: &Desktop) -> DesktopStatus {
    let Some(status) = desktop.status.clone() else { return DesktopStatus::default() };
    let DesktopStatus {
        phase,
        allocation: _,
        last_placement: _,
        waiting_since: _,
        gpu_summary: _,
        node,
        domain,
        gpus,
        consoles,
        addresses,
        tuning,
        conditions,
        operator_term: _,
    } = status;
    let compute = holds_compute(desktop);
    let own = |condition: &Condition| {
        OWN.iter().any(|own| own.as_str() == condition.type_)
            || compute && condition.type_ == ConditionType::Ready.as_str()
    };
    let mut conditions: Vec<Condition> = conditions.into_iter().filter(own).collect();
    conditions.sort_by_key(|condition| order(&condition.type_));
    DesktopStatus {
        phase: phase.filter(|_| compute),
        allocation: None,
        last_placement: None,
        waiting_since: None,
        gpu_summary: None,
        node,
        domain,
        gpus,
        consoles,
        addresses,
        tuning,
        conditions,
        operator_term: None,
    }
}

fn order(type_: &str) -> usize {
    OWN.iter().position(|own| own.as_str() == type_).unwrap_or(OWN.len())
}

/// Whether `wanted` says anything that `stored` does not. A parked desktop, of which there is
/// nothing new to say, is not told again for each change of its spec.
pub fn differs(
    desktop: &Desktop,
    wanted_state: Wanted,
    stored: &DesktopStatus,
    wanted: &DesktopStatus,
) -> bool {
    if wanted_state == Wanted::Stop && !holds_compute(desktop) {
        let without_generation = |status: &DesktopStatus| {
            let mut status = status.clone();
            for condition in &mut status.conditions {
                condition.observed_generation = None;
            }
            status
        };
        return without_generation(stored) != without_generation(wanted);
    }
    stored != wanted
}

/// As the API writes times: whole seconds.
fn time(timestamp: Timestamp) -> Time {
    Time(whole_second(timestamp))
}

fn whole_second(timestamp: Timestamp) -> Timestamp {
    Timestamp::from_second(timestamp.as_second()).unwrap_or(timestamp)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
