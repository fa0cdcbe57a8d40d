//! The hand-over between operator and nodes as a model: every order of events, up to a number of faults.
//!
//! What is checked is the code that decides: `desktop::decide` of the operator, `desktop::decide` and
//! `desktop::status` of the node daemon. Around them stand an API server (versions, the leader's term, what
//! admission lets through), watches that show things late, and writes that arrive late or never.
//!
//! A desktop takes the one place that a node has. Nodes do not look whether their place is taken (as they
//! do in truth), so that the hand-over is shown to be right by itself.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{LazyLock, Mutex},
};

use gpudesk_crds::{
    AllocationId, Desktop, NodeState, desktop_template::RestartPolicy, gpu_node_status::Acceleration,
    handover::Standing,
};
use gpudesk_node_daemon::desktop::{
    decide::{self as node, Action, DomainView, Observed, Rules},
    desired::{self, Wanted},
    record::{Ended, RunRecord},
    status::{self, Guest, Machine, Report},
};
use gpudesk_operator::desktop::decide::{Presence, Step, decide};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use stateright::{Checker, HasDiscoveries, Model, Property};

/// A decision: its number, and which of those of that number.
type Id = (u8, u8);

/// A Desktop, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Object {
    version: u8,
    on: bool,
    deleted: bool,
    allocation: Option<Allocation>,
    /// The highest number so far.
    last: u8,
    said: Option<(Id, State)>,
    /// The operator said that it ended for good.
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Allocation {
    id: Id,
    node: usize,
    held: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Preparing,
    Running,
    Stopping,
    Ended,
    Stopped,
    Released,
}

/// What an operator has in mind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Operator {
    term: u8,
    view: Vec<Option<Object>>,
    /// Decided on top of a version that the watch still shows.
    assumed: Vec<Option<(u8, Allocation)>>,
    write: Option<Write>,
}

/// A write of an operator that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Write {
    desktop: usize,
    version: u8,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    Give(Allocation),
    TakeBack { park: bool, ended: bool },
    LetGo,
}

/// A node and its daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Host {
    view: Vec<Option<Object>>,
    domains: Vec<Option<Domain>>,
    /// Which decision the folder is for, and the last word on it.
    folders: Vec<Option<(Id, Option<State>)>>,
    /// The run of a decision that ended by itself.
    ended: Vec<Option<Id>>,
    /// The API confirmed a start.
    confirmed: Option<(usize, Id)>,
    word: Option<Word>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Domain {
    id: Id,
    active: bool,
}

/// A status write of a daemon that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Word {
    desktop: usize,
    version: Option<u8>,
    said: (Id, State),
}

/// What may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Faults {
    /// Somebody switches a desktop on or off.
    switches: u8,
    deletions: u8,
    /// A daemon is killed; what it was writing arrives, or not.
    crashes: u8,
    /// Another operator takes over; the one before goes on for a while.
    takeovers: u8,
    /// A guest shuts itself down.
    ends: u8,
    /// A write is lost.
    losses: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    term: u8,
    objects: Vec<Option<Object>>,
    operators: Vec<Operator>,
    hosts: Vec<Host>,
    left: Faults,
    /// Something was given while its machine ran.
    wrong: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Event {
    Switch(usize),
    Delete(usize),
    Shows(usize, usize),
    Operates(usize, usize),
    Lands(usize),
    Loses(usize),
    TakesOver,
    ShowsNode(usize, usize),
    Works(usize, usize),
    LandsWord(usize),
    LosesWord(usize),
    Dies(usize),
    Ends(usize, usize),
}

struct Handover {
    desktops: usize,
    hosts: usize,
    keeps_disks: bool,
    /// The API refuses what an operator writes that does not lead any more.
    fenced: bool,
    faults: Faults,
}

fn id((number, tag): Id) -> AllocationId {
    format!("{number}-{tag:08x}").parse().unwrap()
}

fn state(state: State) -> NodeState {
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
fn desktop(object: &Object) -> Desktop {
    let mut metadata = json!({"name": "a", "namespace": "n", "uid": "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01",
        "generation": 1, "finalizers": ["gpudesk.dev/release"]});
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
    let node = object.said.map(|(of, said)| json!({"allocationId": id(of), "state": state(said)}));
    serde_json::from_value(json!({
        "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop", "metadata": metadata,
        "spec": {"templateRef": {"name": "t"}, "powerState": if object.on { "Running" } else { "Stopped" }},
        "status": {"allocation": allocation, "node": node, "conditions": conditions},
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

/// What the operator does.
fn operates(object: &Object, keeps_disks: bool) -> Step {
    static ANSWERS: LazyLock<Mutex<HashMap<(Object, bool), Step>>> = LazyLock::new(Mutex::default);
    let question = (Object { version: 0, last: 0, ..object.clone() }, keeps_disks);
    remembered(&ANSWERS, &question, || decide(&desktop(object), Presence::Present, Some(keeps_disks)))
}

/// What a daemon sees of a desktop of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seen {
    object: Object,
    domain: Option<Domain>,
    folder: Option<(Id, Option<State>)>,
    ended: bool,
}

/// What a daemon does, and what it says when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Acts(Action),
    Says((Id, State)),
    Leaves,
}

fn works(seen: &Seen) -> Does {
    static ANSWERS: LazyLock<Mutex<HashMap<Seen, Does>>> = LazyLock::new(Mutex::default);
    let question = Seen { object: Object { version: 0, last: 0, ..seen.object.clone() }, ..seen.clone() };
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
            ended: Some(Ended { at: start, crashed: false }),
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
            stays: node::stays(&observed, &rules),
            restart_policy: RestartPolicy::Never,
            boot: "boot",
            acceleration: Acceleration::Simulated,
            relay: None,
            now: start,
            last_word: word.as_ref(),
            refusal: None,
        };
        Does::Says((held.id, back(status::status(&report).node.unwrap().state)))
    })
}

impl World {
    /// The machines that run: node and desktop.
    fn active(&self) -> Vec<(usize, usize)> {
        let runs = |host: &Host, desktop: usize| host.domains[desktop].is_some_and(|domain| domain.active);
        let hosts = self.hosts.iter().enumerate();
        let each =
            hosts.flat_map(|(at, host)| (0..self.objects.len()).map(move |desktop| (at, host, desktop)));
        each.filter(|(_, host, desktop)| runs(host, *desktop)).map(|(at, _, desktop)| (at, desktop)).collect()
    }

    /// What an operator counts as taken by other desktops.
    fn taken(&self, operator: usize, desktop: usize) -> Vec<usize> {
        let operator = &self.operators[operator];
        let others = (0..self.objects.len()).filter(|other| *other != desktop);
        others
            .filter_map(|other| {
                let seen = operator.view[other].as_ref().and_then(|object| object.allocation);
                let assumed = operator.assumed[other].map(|(_, allocation)| allocation);
                assumed.or(seen).filter(|held| held.held).map(|held| held.node)
            })
            .collect()
    }

    fn shows(&mut self, operator: usize, desktop: usize) {
        let object = self.objects[desktop].clone();
        let operator = &mut self.operators[operator];
        let version = object.as_ref().map(|object| object.version);
        if operator.assumed[desktop].is_some_and(|(on, _)| version != Some(on)) {
            operator.assumed[desktop] = None;
        }
        operator.view[desktop] = object;
    }

    /// What an operator writes for a desktop, if it is not at it already.
    fn operate(&mut self, model: &Handover, operator: usize, desktop: usize) -> Option<()> {
        if self.operators[operator].write.is_some() || self.operators[operator].assumed[desktop].is_some() {
            return None;
        }
        let object = self.operators[operator].view[desktop].clone()?;
        let what = match operates(&object, model.keeps_disks) {
            Step::Place { home } => {
                let home: Option<usize> = home.map(|node| node.parse().unwrap());
                let taken = self.taken(operator, desktop);
                let free =
                    (0..model.hosts).find(|n| home.is_none_or(|home| home == *n) && !taken.contains(n));
                match free {
                    Some(node) => {
                        // As the real one it tells decisions on different versions apart.
                        let id = (object.last + 1, object.version);
                        let allocation = Allocation { id, node, held: true };
                        self.operators[operator].assumed[desktop] = Some((object.version, allocation));
                        What::Give(allocation)
                    }
                    None if object.allocation.is_some_and(|held| held.held) => {
                        What::TakeBack { park: home.is_some(), ended: false }
                    }
                    None => return None,
                }
            }
            Step::Release { park, reason } => {
                What::TakeBack { park, ended: reason == gpudesk_crds::conditions::Reason::GuestStopped }
            }
            Step::RemoveFinalizer => What::LetGo,
            _ => return None,
        };
        self.operators[operator].write = Some(Write { desktop, version: object.version, what });
        Some(())
    }

    /// The write of an operator arrives.
    fn land(&mut self, model: &Handover, operator: usize) {
        let term = self.operators[operator].term;
        let Some(Write { desktop, version, what }) = self.operators[operator].write.take() else { return };
        let fenced = model.fenced && term != self.term;
        let Some(object) =
            self.objects[desktop].as_mut().filter(|object| object.version == version && !fenced)
        else {
            return;
        };
        let before = object.allocation.filter(|held| held.held);
        let runs = |id| self.hosts.iter().any(|h| h.domains[desktop].is_some_and(|d| d.active && d.id == id));
        if before.is_some_and(|held| runs(held.id)) {
            self.wrong = Some("taken back while its machine runs");
        }
        object.version += 1;
        match what {
            What::Give(allocation) => {
                object.allocation = Some(allocation);
                object.last = allocation.id.0;
                object.ended = false;
            }
            What::TakeBack { park, ended } => {
                object.allocation =
                    object.allocation.filter(|_| park).map(|held| Allocation { held: false, ..held });
                object.ended = ended;
            }
            What::LetGo => self.objects[desktop] = None,
        }
    }

    /// A daemon works on a desktop: one action, or one word.
    fn work(&mut self, host: usize, desktop: usize) -> Option<()> {
        let live = self.objects[desktop].clone();
        let this = &mut self.hosts[host];
        let Some(object) = this.view[desktop].clone() else { return self.withdraw(host, desktop) };
        let held = object.allocation.filter(|held| held.node == host)?;
        let seen = Seen {
            domain: this.domains[desktop],
            folder: this.folders[desktop],
            ended: this.ended[desktop] == Some(held.id),
            object,
        };
        match works(&seen) {
            Does::Leaves | Does::Acts(Action::Nothing(_)) => None,
            Does::Acts(Action::Prepare) => {
                this.folders[desktop] = Some((held.id, None));
                Some(())
            }
            Does::Acts(Action::Define) => {
                this.domains[desktop] = Some(Domain { id: held.id, active: false });
                Some(())
            }
            Does::Acts(Action::Start) if this.confirmed == Some((desktop, held.id)) => {
                this.confirmed = None;
                this.domains[desktop] = Some(Domain { id: held.id, active: true });
                Some(())
            }
            Does::Acts(Action::Start) => {
                // As `confirm` reads it.
                let live = live?;
                let same =
                    live.allocation == Some(held) && desired::wanted(&self::desktop(&live)) == Wanted::Run;
                let over = live.said.is_some_and(|(of, said)| of == held.id && state(said).is_final());
                (same && !over).then(|| this.confirmed = Some((desktop, held.id)))
            }
            Does::Acts(Action::Shutdown | Action::Destroy) => {
                this.domains[desktop] = this.domains[desktop].map(|d| Domain { active: false, ..d });
                Some(())
            }
            Does::Acts(Action::Release) => {
                this.domains[desktop] = None;
                match desired::wanted(&self::desktop(&seen.object)) {
                    Wanted::Remove => this.folders[desktop] = None,
                    Wanted::Stop => this.ended[desktop] = None,
                    _ => {}
                }
                Some(())
            }
            Does::Says(said) if seen.object.said == Some(said) || this.word.is_some() => None,
            Does::Says(said) => {
                let last = state(said.1).is_final();
                if last && said.1 != State::Released {
                    this.folders[desktop] = Some((said.0, Some(said.1)));
                }
                let version = last.then_some(seen.object.version);
                this.word = Some(Word { desktop, version, said });
                Some(())
            }
        }
    }

    /// What a daemon does with something of a desktop that the watch does not show as its own.
    fn withdraw(&mut self, host: usize, desktop: usize) -> Option<()> {
        let live = self.objects[desktop].as_ref()?;
        let held = live.allocation.filter(|held| held.node != host)?;
        let this = &mut self.hosts[host];
        let domain = this.domains[desktop]?;
        if domain.active && id(domain.id).standing(id(held.id)) == Standing::Unknown {
            return None;
        }
        this.domains[desktop] = domain.active.then_some(Domain { active: false, ..domain });
        Some(())
    }

    /// The word of a daemon arrives.
    fn land_word(&mut self, host: usize) {
        let Some(Word { desktop, version, said }) = self.hosts[host].word.take() else { return };
        let Some(object) = &mut self.objects[desktop] else { return };
        // What admission lets through: the node of the allocation, and its decision.
        let held = object.allocation.filter(|held| held.node == host && held.id == said.0);
        if held.is_none() || version.is_some_and(|version| version != object.version) {
            return;
        }
        // What says nothing new makes no version.
        if object.said != Some(said) {
            object.said = Some(said);
            object.version += 1;
        }
    }
}

impl Model for Handover {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        let object = Object {
            version: 0,
            on: true,
            deleted: false,
            allocation: None,
            last: 0,
            said: None,
            ended: false,
        };
        let objects = vec![Some(object); self.desktops];
        let none = |n| vec![None; n];
        let operator =
            Operator { term: 0, view: objects.clone(), assumed: vec![None; self.desktops], write: None };
        let host = Host {
            view: none(self.desktops),
            domains: vec![None; self.desktops],
            folders: vec![None; self.desktops],
            ended: vec![None; self.desktops],
            confirmed: None,
            word: None,
        };
        vec![World {
            term: 0,
            objects,
            operators: vec![operator],
            hosts: vec![host; self.hosts],
            left: self.faults,
            wrong: None,
        }]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        for desktop in 0..self.desktops {
            events.push(Event::Switch(desktop));
            events.push(Event::Delete(desktop));
            for operator in 0..world.operators.len() {
                events.push(Event::Shows(operator, desktop));
                events.push(Event::Operates(operator, desktop));
            }
            for host in 0..self.hosts {
                events.push(Event::ShowsNode(host, desktop));
                events.push(Event::Works(host, desktop));
                events.push(Event::Ends(host, desktop));
            }
        }
        for operator in 0..world.operators.len() {
            events.push(Event::Lands(operator));
            events.push(Event::Loses(operator));
        }
        for host in 0..self.hosts {
            events.push(Event::LandsWord(host));
            events.push(Event::LosesWord(host));
            events.push(Event::Dies(host));
        }
        events.push(Event::TakesOver);
    }

    fn next_state(&self, before: &World, event: Event) -> Option<World> {
        let mut world = before.clone();
        let spend = |count: &mut u8| count.checked_sub(1).map(|left| *count = left);
        match event {
            Event::Switch(desktop) => {
                spend(&mut world.left.switches)?;
                let object = world.objects[desktop].as_mut().filter(|object| !object.deleted)?;
                object.on = !object.on;
                object.version += 1;
            }
            Event::Delete(desktop) => {
                spend(&mut world.left.deletions)?;
                let object = world.objects[desktop].as_mut().filter(|object| !object.deleted)?;
                object.deleted = true;
                object.version += 1;
            }
            Event::Shows(operator, desktop) => world.shows(operator, desktop),
            Event::Operates(operator, desktop) => world.operate(self, operator, desktop)?,
            Event::Lands(operator) => {
                world.operators[operator].write.as_ref()?;
                world.land(self, operator);
            }
            Event::Loses(operator) => {
                spend(&mut world.left.losses)?;
                world.operators[operator].write.take()?;
            }
            Event::TakesOver => {
                spend(&mut world.left.takeovers)?;
                world.term += 1;
                let operator = Operator {
                    term: world.term,
                    view: world.objects.clone(),
                    assumed: vec![None; self.desktops],
                    write: None,
                };
                world.operators.push(operator);
            }
            Event::ShowsNode(host, desktop) => {
                let object = world.objects[desktop].clone();
                let ours = object.filter(|object| object.allocation.is_some_and(|held| held.node == host));
                world.hosts[host].view[desktop] = ours;
            }
            Event::Works(host, desktop) => world.work(host, desktop)?,
            Event::LandsWord(host) => {
                world.hosts[host].word?;
                world.land_word(host);
            }
            Event::LosesWord(host) => {
                spend(&mut world.left.losses)?;
                world.hosts[host].word.take()?;
            }
            Event::Dies(host) => {
                spend(&mut world.left.crashes)?;
                // What it was writing may arrive all the same.
                let host = &mut world.hosts[host];
                host.confirmed = None;
                host.view = vec![None; self.desktops];
            }
            Event::Ends(host, desktop) => {
                spend(&mut world.left.ends)?;
                let domain = world.hosts[host].domains[desktop].as_mut().filter(|domain| domain.active)?;
                domain.active = false;
                let id = domain.id;
                world.hosts[host].ended[desktop] = Some(id);
            }
        }
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::sometimes("a desktop runs and says so", |_, world: &World| {
                world.objects.iter().flatten().any(|object| {
                    matches!((object.said, object.allocation), (Some((of, State::Running)), Some(held)) if of == held.id)
                })
            }),
            Property::always("nothing is taken back while its machine runs", |_, world: &World| {
                world.wrong.is_none()
            }),
            Property::always("no place is used twice", |_, world: &World| {
                let active = world.active();
                active.iter().all(|(host, desktop)| active.iter().all(|(h, d)| h != host || d == desktop))
            }),
            Property::always("no desktop runs twice", |_, world: &World| {
                let active = world.active();
                active.iter().all(|(host, desktop)| active.iter().all(|(h, d)| d != desktop || h == host))
            }),
        ]
    }
}

/// Checks every order of events, and prints how many states that made.
fn check(model: Handover) {
    let faults = model.faults;
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).threads(2).spawn_bfs().join();
    checker.assert_properties();
    println!("{} states, depth {}, {faults:?}", checker.unique_state_count(), checker.max_depth());
}

fn model(desktops: usize, hosts: usize, faults: Faults) -> Handover {
    Handover { desktops, hosts, keeps_disks: false, fenced: true, faults }
}

#[test]
fn one_desktop_on_two_nodes() {
    for keeps_disks in [false, true] {
        let two = |faults| check(Handover { keeps_disks, ..model(1, 2, faults) });
        two(Faults { switches: 3, losses: 1, ..Faults::default() });
        two(Faults { switches: 2, ends: 1, crashes: 1, ..Faults::default() });
        two(Faults { switches: 1, deletions: 1, crashes: 1, losses: 1, ..Faults::default() });
    }
}

#[test]
fn two_desktops_on_one_node() {
    check(model(2, 1, Faults { switches: 2, ..Faults::default() }));
    check(model(2, 1, Faults { switches: 1, ends: 1, ..Faults::default() }));
    check(model(2, 1, Faults { switches: 1, crashes: 1, losses: 1, ..Faults::default() }));
}

#[test]
fn two_leaders() {
    check(model(2, 1, Faults { switches: 1, takeovers: 1, ..Faults::default() }));
}

#[test]
fn without_the_term_two_leaders_give_a_place_twice() {
    let faults = Faults { switches: 1, takeovers: 1, ..Faults::default() };
    let unfenced = Handover { fenced: false, ..model(2, 1, faults) };
    let checker = unfenced.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    assert!(checker.discovery("no place is used twice").is_some(), "the model sees what it is to see");
}
