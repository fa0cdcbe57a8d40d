//! Objects of the model, and the code under test asked about them.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, LazyLock, Mutex},
};

use gpudesk_crds::{
    AllocationId, Desktop, NodeState, desktop_template::RestartPolicy, gpu_node_status::Acceleration,
    handover::Standing,
};
use gpudesk_node_daemon::desktop::{
    decide::{self as node, Action, DomainView, Observed, Rules},
    desired::{self, Wanted},
    record::{End, Ended, RunRecord},
    status::{self, Guest, Machine, Report},
};
use gpudesk_operator::desktop::decide::{Around, Found, Presence, Step, decide, forgotten};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Domain {
    pub(crate) id: Id,
    pub(crate) active: bool,
}

/// A decision: its number, and which of those of that number.
pub(crate) type Id = (u8, u8);

/// A Desktop, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Object {
    pub(crate) version: u8,
    pub(crate) on: bool,
    pub(crate) deleted: bool,
    pub(crate) allocation: Option<Allocation>,
    /// The decision that was taken back last.
    pub(crate) had: Option<Id>,
    /// What its user gives up.
    pub(crate) abandons: Option<Id>,
    pub(crate) said: Option<(Id, State)>,
    /// The operator said that it ended for good.
    pub(crate) ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Allocation {
    pub(crate) id: Id,
    pub(crate) node: usize,
    pub(crate) held: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    Preparing,
    Running,
    Stopping,
    Ended,
    Stopped,
    Released,
}

pub(crate) fn id((number, tag): Id) -> AllocationId {
    format!("{number}-{tag:08x}").parse().unwrap()
}

pub(crate) fn state(state: State) -> NodeState {
    match state {
        State::Preparing => NodeState::Preparing,
        State::Running => NodeState::Running,
        State::Stopping => NodeState::Stopping,
        State::Ended => NodeState::Ended,
        State::Stopped => NodeState::Stopped,
        State::Released => NodeState::Released,
    }
}

fn back(state: NodeState) -> State {
    match state {
        NodeState::Preparing => State::Preparing,
        NodeState::Running => State::Running,
        NodeState::Stopping => State::Stopping,
        NodeState::Ended => State::Ended,
        NodeState::Stopped => State::Stopped,
        NodeState::Released => State::Released,
        other => panic!("{other:?} is not in the model"),
    }
}

/// The Desktop that an object stands for.
pub(crate) fn desktop(object: &Object) -> Desktop {
    let mut metadata = json!({"name": "a", "namespace": "n", "uid": "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01",
        "generation": 1, "finalizers": ["gpudesk.dev/release"]});
    if let Some(given_up) = object.abandons {
        metadata["annotations"] = json!({"gpudesk.dev/abandon-disks": id(given_up)});
    }
    if object.deleted {
        metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    let allocation = object.allocation.map(|held| {
        let compute = held.held.then(|| json!({"cores": 1, "threadsPerCore": 1, "memoryMiB": 1}));
        json!({"node": held.node.to_string(), "id": id(held.id), "desktopGeneration": 1, "templateGeneration": 1,
            "decidedAt": "2026-01-01T00:00:00Z", "compute": compute})
    });
    let mut conditions = vec![];
    if object.ended {
        conditions
            .push(json!({"type": "Allocated", "status": "False", "reason": "GuestStopped", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}));
    }
    let had = object.had.map(|had| json!({"node": "x", "allocationId": id(had)}));
    let node = object.said.map(|(of, said)| json!({"allocationId": id(of), "state": state(said)}));
    serde_json::from_value(json!({
        "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop", "metadata": metadata,
        "spec": {"templateRef": {"name": "t"}, "powerState": if object.on { "Running" } else { "Stopped" }},
        "status": {"allocation": allocation, "node": node, "conditions": conditions, "lastPlacement": had},
    }))
    .unwrap()
}

/// Answers of the code under test, remembered: there are few questions.
fn remembered<Q: Clone + Eq + Hash, A: Clone>(
    answers: &Mutex<HashMap<Q, A>>,
    question: &Q,
    ask: impl FnOnce() -> A,
) -> A {
    if let Some(answer) = answers.lock().unwrap().get(question) {
        return answer.clone();
    }
    let answer = ask();
    answers.lock().unwrap().insert(question.clone(), answer.clone());
    answer
}

/// What an operator sees around an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sees {
    pub(crate) node: Presence,
    pub(crate) off: bool,
    pub(crate) keeps_disks: bool,
    /// Machines that nodes report: node and decision.
    pub(crate) found: Vec<(usize, Id)>,
    pub(crate) remembered: Option<Id>,
}

/// What the operator does.
pub(crate) fn operates(object: &Object, sees: &Sees) -> Step {
    static ANSWERS: LazyLock<Mutex<HashMap<(Object, Sees), Step>>> = LazyLock::new(Mutex::default);
    let question = (Object { version: 0, ..object.clone() }, sees.clone());
    remembered(&ANSWERS, &question, || {
        let found = |(node, of): &(usize, Id)| {
            let allocation = json!({"node": node.to_string(), "id": id(*of), "desktopGeneration": 1,
                "templateGeneration": 1, "decidedAt": "2026-01-01T00:00:00Z"});
            Found {
                node: node.to_string(),
                allocation: Arc::new(serde_json::from_value(allocation).unwrap()),
            }
        };
        let around = Around {
            node: sees.node,
            alive: false,
            renewed: None,
            off: sees.off,
            keeps_disks: Some(sees.keeps_disks),
            found: sees.found.iter().map(found).collect(),
            remembered: sees.remembered.map(id),
        };
        decide(&desktop(object), &around)
    })
}

/// Whether its status does not tell of this decision any more, and nobody gave it up.
pub(crate) fn forgets(object: &Object, decision: Id) -> bool {
    static ANSWERS: LazyLock<Mutex<HashMap<(Object, Id), bool>>> = LazyLock::new(Mutex::default);
    let question = (Object { version: 0, ..object.clone() }, decision);
    remembered(&ANSWERS, &question, || forgotten(&desktop(object), Some(id(decision))).is_some())
}

/// The number of the next decision.
pub(crate) fn next(object: &Object) -> u8 {
    static ANSWERS: LazyLock<Mutex<HashMap<Object, u8>>> = LazyLock::new(Mutex::default);
    let question = Object { version: 0, ..object.clone() };
    remembered(&ANSWERS, &question, || u8::try_from(desktop(object).next_number()).unwrap())
}

/// What a daemon sees of a desktop of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) object: Object,
    pub(crate) domain: Option<Domain>,
    pub(crate) folder: Option<(Id, Option<State>)>,
    pub(crate) ended: bool,
}

/// What a daemon does, and what it says when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    Acts(Action),
    Says((Id, State)),
    Leaves,
}

pub(crate) fn works(seen: &Seen) -> Does {
    static ANSWERS: LazyLock<Mutex<HashMap<Seen, Does>>> = LazyLock::new(Mutex::default);
    let question = Seen {
        object: Object { version: 0, abandons: None, had: None, ..seen.object.clone() },
        ..seen.clone()
    };
    remembered(&ANSWERS, &question, || {
        let desktop = desktop(&seen.object);
        let Some(held) = seen.object.allocation else { return Does::Leaves };
        let wanted = desired::wanted(&desktop);
        let standing = |domain: Domain| id(domain.id).standing(id(held.id));
        let stray = seen.domain.is_some_and(|domain| domain.active && standing(domain) == Standing::Unknown);
        if stray && wanted != Wanted::Remove {
            return Does::Leaves;
        }
        let noted = seen.folder.filter(|(of, _)| *of == held.id).and_then(|(_, word)| word);
        let said = seen.object.said.filter(|(of, said)| *of == held.id && state(*said).is_final());
        let last_word = noted.or(said.map(|(_, said)| said));
        let start = Timestamp::UNIX_EPOCH;
        let record = seen.ended.then(|| RunRecord {
            ended: Some(Ended::new(start, End::ShutDown)),
            ..RunRecord::started(start, "boot", None)
        });
        let observed = Observed {
            domain: seen.domain.map(|domain| DomainView {
                active: domain.active,
                current: domain.id == held.id,
                standing: standing(domain),
            }),
            prepared: seen.folder.is_some_and(|(of, _)| of == held.id),
            instances: false,
            folder: seen.folder.is_some(),
            record,
            of_another: seen
                .domain
                .is_some_and(|domain| !domain.active && standing(domain) == Standing::Older),
            given_back: last_word.is_some(),
            looked: true,
            disks: None,
        };
        let rules = Rules {
            restart_policy: RestartPolicy::Never,
            shutdown_grace: SignedDuration::ZERO,
            boot: "boot",
            end_counts: desired::end_counts(&desktop),
            give_back_after: SignedDuration::ZERO,
        };
        match node::decide(wanted, &observed, &rules, start) {
            Action::Nothing(_) => {}
            action => return Does::Acts(action),
        }
        let word = last_word.map(|word| {
            serde_json::from_value(json!({"allocationId": id(held.id), "state": state(word)})).unwrap()
        });
        let runs = seen.domain.is_some_and(|domain| domain.active && domain.id == held.id);
        let machine = Machine {
            name: "n.a".into(),
            paused: false,
            started_at: start,
            template_generation: 1,
            endpoints: vec![],
            guest: Guest::NoAgent,
            addresses: vec![],
            tuning: vec![],
        };
        let report = Report {
            desktop: &desktop,
            wanted,
            observed: &observed,
            machine: runs.then_some(&machine),
            gpus: &[],
            problem: None,
            held_back: None,
            unkept: None,
            stays: node::stays(&observed, &rules),
            restart_policy: RestartPolicy::Never,
            boot: "boot",
            acceleration: Acceleration::Simulated,
            relay: None,
            now: start,
            last_word: word.as_ref(),
            refusal: None,
            abandoned_disks: None,
        };
        Does::Says((held.id, back(status::status(&report).node.unwrap().state)))
    })
}
