//! The model: what may happen, and what must hold.

use std::hash::Hash;

use gpudesk_crds::{conditions::Reason, handover::Standing};
use gpudesk_node_daemon::desktop::{
    decide::Action,
    desired::{self, Wanted},
};
use gpudesk_operator::desktop::decide::{Presence, Step};
use stateright::{Model, Property};

use crate::objects::{
    Allocation, Does, Domain, Id, Object, Seen, Sees, State, forgets, id, next, operates, state, works,
};

/// What an operator has in mind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Operator {
    pub(crate) term: u8,
    pub(crate) view: Vec<Option<Object>>,
    /// Decided on top of a version that the watch still shows.
    pub(crate) assumed: Vec<Option<(u8, Allocation)>>,
    /// What each was seen to hold last.
    pub(crate) remembered: Vec<Option<Allocation>>,
    pub(crate) write: Option<Write>,
}

/// A write of an operator that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Write {
    pub(crate) desktop: usize,
    pub(crate) version: u8,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum What {
    Give(Allocation),
    TakeBack { park: bool, ended: bool, lost: bool },
    LetGo { lost: bool },
}

/// A node and its daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Host {
    pub(crate) view: Vec<Option<Object>>,
    pub(crate) domains: Vec<Option<Domain>>,
    /// Which decision the folder is for, and the last word on it.
    pub(crate) folders: Vec<Option<(Id, Option<State>)>>,
    /// The run of a decision that ended by itself.
    pub(crate) ended: Vec<Option<Id>>,
    /// The API confirmed a start.
    pub(crate) confirmed: Option<(usize, Id)>,
    pub(crate) word: Option<Word>,
    /// Its object is gone, and nobody can speak to it.
    pub(crate) lost: bool,
    /// It was switched off, and somebody said so.
    pub(crate) off: bool,
    /// What its object reports of machines that no allocation accounts for.
    pub(crate) strays: Vec<Option<Id>>,
}

/// A status write of a daemon that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Word {
    pub(crate) desktop: usize,
    pub(crate) version: Option<u8>,
    pub(crate) said: (Id, State),
}

/// What may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// Somebody switches a desktop on or off.
    pub(crate) switches: u8,
    pub(crate) deletions: u8,
    /// A daemon is killed; what it was writing arrives, or not.
    pub(crate) crashes: u8,
    /// Another operator takes over; the one before goes on for a while.
    pub(crate) takeovers: u8,
    /// A guest shuts itself down.
    pub(crate) ends: u8,
    /// A write is lost.
    pub(crate) losses: u8,
    /// A node is lost.
    pub(crate) lost: u8,
    /// Somebody switches a lost node off and says so.
    pub(crate) offs: u8,
    /// A user gives up what a desktop has on a lost node.
    pub(crate) abandons: u8,
    /// A status loses its allocation.
    pub(crate) wipes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) term: u8,
    pub(crate) objects: Vec<Option<Object>>,
    pub(crate) operators: Vec<Operator>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) left: Faults,
    /// Machines that their users gave up: desktop and decision.
    pub(crate) abandoned: Vec<(usize, Id)>,
    /// Something was given while its machine ran.
    pub(crate) wrong: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
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
    Lost(usize),
    Off(usize),
    Returns(usize),
    Reports(usize),
    Abandons(usize),
    Wipes(usize),
}

pub(crate) struct Handover {
    pub(crate) desktops: usize,
    pub(crate) hosts: usize,
    pub(crate) keeps_disks: bool,
    /// The API refuses what an operator writes that does not lead any more.
    pub(crate) fenced: bool,
    pub(crate) faults: Faults,
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

    /// The machines that run and were not given up.
    fn kept(&self) -> Vec<(usize, usize)> {
        let given_up = |(host, desktop): &(usize, usize)| {
            let domain = self.hosts[*host].domains[*desktop];
            domain.is_some_and(|domain| self.abandoned.contains(&(*desktop, domain.id)))
        };
        self.active().into_iter().filter(|machine| !given_up(machine)).collect()
    }

    /// What an operator counts as taken by others than this desktop as it is decided now.
    fn taken(&self, operator: usize, desktop: usize) -> Vec<usize> {
        let operator = &self.operators[operator];
        let others = (0..self.objects.len()).filter(|other| *other != desktop);
        let held = others.filter_map(|other| {
            let seen = operator.view[other].as_ref().and_then(|object| object.allocation);
            let assumed = operator.assumed[other].map(|(_, allocation)| allocation);
            let kept = operator.remembered[other]
                .filter(|held| operator.view[other].as_ref().is_some_and(|object| forgets(object, held.id)));
            assumed.or(kept).or(seen).filter(|held| held.held).map(|held| held.node)
        });
        let reporting =
            self.hosts.iter().enumerate().filter(|(_, host)| host.strays.iter().any(Option::is_some));
        held.chain(reporting.map(|(at, _)| at)).collect()
    }

    /// What an operator sees around a desktop.
    fn sees(&self, model: &Handover, operator: usize, desktop: usize, object: &Object) -> Sees {
        let host = object.allocation.map(|held| &self.hosts[held.node]);
        let reports = self.hosts.iter().enumerate().filter(|(_, host)| !host.lost);
        Sees {
            node: if host.is_some_and(|host| host.lost) { Presence::Lost } else { Presence::Present },
            off: host.is_some_and(|host| host.off),
            keeps_disks: model.keeps_disks,
            found: reports.filter_map(|(at, host)| Some((at, host.strays[desktop]?))).collect(),
            remembered: self.operators[operator].remembered[desktop].map(|held| held.id),
        }
    }

    fn shows(&mut self, operator: usize, desktop: usize) {
        let object = self.objects[desktop].clone();
        let operator = &mut self.operators[operator];
        let version = object.as_ref().map(|object| object.version);
        if operator.assumed[desktop].is_some_and(|(on, _)| version != Some(on)) {
            operator.assumed[desktop] = None;
        }
        if let Some(held) = object.as_ref().and_then(|object| object.allocation).filter(|held| held.held) {
            operator.remembered[desktop] = Some(held);
        }
        operator.view[desktop] = object;
    }

    /// What an operator writes for a desktop, if it is not at it already.
    fn operate(&mut self, model: &Handover, operator: usize, desktop: usize) -> Option<()> {
        if self.operators[operator].write.is_some() || self.operators[operator].assumed[desktop].is_some() {
            return None;
        }
        let object = self.operators[operator].view[desktop].clone()?;
        let sees = self.sees(model, operator, desktop, &object);
        let what = match operates(&object, &sees) {
            Step::Place { home } => {
                let home: Option<usize> = home.map(|node| node.parse().unwrap());
                let taken = self.taken(operator, desktop);
                let free = (0..model.hosts).find(|n| {
                    home.is_none_or(|home| home == *n) && !taken.contains(n) && !self.hosts[*n].lost
                });
                match free {
                    Some(node) => {
                        // As the real one it tells decisions on different versions apart.
                        let id = (next(&object), object.version);
                        let allocation = Allocation { id, node, held: true };
                        self.operators[operator].assumed[desktop] = Some((object.version, allocation));
                        What::Give(allocation)
                    }
                    None if object.allocation.is_some_and(|held| held.held) => {
                        What::TakeBack { park: home.is_some(), ended: false, lost: false }
                    }
                    None => return None,
                }
            }
            Step::Release { park, reason } => {
                let (ended, lost) = (reason == Reason::GuestStopped, reason == Reason::NodeLost);
                What::TakeBack { park, ended, lost }
            }
            Step::GiveBack { node } => {
                let node: usize = node.parse().unwrap();
                let id = self.hosts[node].strays[desktop]?;
                let allocation = Allocation { id, node, held: true };
                self.operators[operator].assumed[desktop] = Some((object.version, allocation));
                What::Give(allocation)
            }
            Step::RemoveFinalizer => What::LetGo { lost: sees.node == Presence::Lost },
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
        let away = object.allocation.is_some_and(|held| self.hosts[held.node].lost);
        // It came back since somebody looked: what was decided on that ground is not written.
        if matches!(what, What::TakeBack { lost: true, .. } | What::LetGo { lost: true }) && !away {
            return;
        }
        let runs = |of: &dyn Fn(Id) -> bool| {
            let domains = self.hosts.iter().filter_map(|host| host.domains[desktop]);
            domains
                .filter(|domain| domain.active && !self.abandoned.contains(&(desktop, domain.id)))
                .any(|domain| of(domain.id))
        };
        if before.is_some_and(|held| runs(&|id| id == held.id)) {
            self.wrong = Some("taken back while its machine runs");
        }
        if matches!(what, What::LetGo { .. }) && runs(&|_| true) {
            self.wrong = Some("let go while a machine of it runs");
        }
        object.version += 1;
        match what {
            What::Give(allocation) => {
                // Its answer arrives, whatever the watch shows.
                self.operators[operator].remembered[desktop] = Some(allocation);
                object.allocation = Some(allocation);
                object.had = None;
                object.ended = false;
            }
            What::TakeBack { park, ended, lost: _ } => {
                object.had = object.allocation.map(|held| held.id).or(object.had);
                object.allocation =
                    object.allocation.filter(|_| park).map(|held| Allocation { held: false, ..held });
                object.ended = ended;
            }
            What::LetGo { .. } => self.objects[desktop] = None,
        }
    }

    /// A daemon works on a desktop: one action, or one word.
    fn work(&mut self, host: usize, desktop: usize) -> Option<()> {
        // One that is lost goes on by what it knew.
        let live = self.objects[desktop].clone().filter(|_| !self.hosts[host].lost);
        let this = &mut self.hosts[host];
        if this.off {
            return None;
        }
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
                let same = live.allocation == Some(held)
                    && desired::wanted(&crate::objects::desktop(&live)) == Wanted::Run;
                let over = live.said.is_some_and(|(of, said)| of == held.id && state(said).is_final());
                (same && !over).then(|| this.confirmed = Some((desktop, held.id)))
            }
            Does::Acts(Action::Shutdown | Action::Destroy) => {
                this.domains[desktop] = this.domains[desktop].map(|d| Domain { active: false, ..d });
                Some(())
            }
            Does::Acts(Action::Release) => {
                this.domains[desktop] = None;
                match desired::wanted(&crate::objects::desktop(&seen.object)) {
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
        let live = self.objects[desktop].as_ref().filter(|_| !self.hosts[host].lost)?;
        let held = live.allocation.filter(|held| held.node != host)?;
        let this = &mut self.hosts[host];
        let domain = this.domains[desktop]?;
        if domain.active && id(domain.id).standing(id(held.id)) == Standing::Unknown {
            return None;
        }
        this.domains[desktop] = domain.active.then_some(Domain { active: false, ..domain });
        Some(())
    }

    /// The object of a node reports the machines that no allocation accounts for.
    fn report(&mut self, host: usize) {
        let strays = (0..self.objects.len()).map(|desktop| {
            let domain = self.hosts[host].domains[desktop].filter(|domain| domain.active)?;
            let held = self.objects[desktop].as_ref().and_then(|object| object.allocation);
            let accounted = held.is_some_and(|held| held.node == host && held.id == domain.id);
            (!accounted).then_some(domain.id)
        });
        self.hosts[host].strays = strays.collect();
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
            had: None,
            abandons: None,
            said: None,
            ended: false,
        };
        let objects = vec![Some(object); self.desktops];
        let none = |n| vec![None; n];
        let operator = Operator {
            term: 0,
            view: objects.clone(),
            assumed: vec![None; self.desktops],
            remembered: vec![None; self.desktops],
            write: None,
        };
        let host = Host {
            view: none(self.desktops),
            domains: vec![None; self.desktops],
            folders: vec![None; self.desktops],
            ended: vec![None; self.desktops],
            confirmed: None,
            word: None,
            lost: false,
            off: false,
            strays: vec![None; self.desktops],
        };
        vec![World {
            term: 0,
            objects,
            operators: vec![operator],
            hosts: vec![host; self.hosts],
            left: self.faults,
            abandoned: vec![],
            wrong: None,
        }]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        for desktop in 0..self.desktops {
            events.push(Event::Switch(desktop));
            events.push(Event::Delete(desktop));
            events.push(Event::Abandons(desktop));
            events.push(Event::Wipes(desktop));
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
            events.push(Event::Lost(host));
            events.push(Event::Off(host));
            events.push(Event::Returns(host));
            events.push(Event::Reports(host));
        }
        events.push(Event::TakesOver);
    }

    #[expect(clippy::too_many_lines, reason = "a few lines for each event")]
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
                    remembered: world
                        .objects
                        .iter()
                        .map(|object| object.as_ref()?.allocation.filter(|held| held.held))
                        .collect(),
                    write: None,
                };
                world.operators.push(operator);
            }
            Event::ShowsNode(host, _) | Event::LandsWord(host) if world.hosts[host].lost => return None,
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
            Event::Lost(host) => {
                spend(&mut world.left.lost)?;
                let host = Some(&mut world.hosts[host]).filter(|host| !host.lost)?;
                // What it reported goes with its object.
                host.lost = true;
                host.strays = vec![None; self.desktops];
            }
            Event::Off(host) => {
                let host = Some(&mut world.hosts[host]).filter(|host| host.lost && !host.off)?;
                spend(&mut world.left.offs)?;
                host.off = true;
                host.confirmed = None;
                host.domains.iter_mut().flatten().for_each(|domain| domain.active = false);
            }
            Event::Returns(host) => {
                let this = Some(&mut world.hosts[host]).filter(|host| host.lost)?;
                (this.lost, this.off) = (false, false);
                // A start that was confirmed was made long ago, or never will be.
                this.confirmed = None;
                world.report(host);
            }
            Event::Reports(host) => {
                (!world.hosts[host].lost).then_some(())?;
                world.report(host);
            }
            Event::Abandons(desktop) => {
                let object = world.objects[desktop].as_mut().filter(|object| object.abandons.is_none())?;
                let held = object.allocation.filter(|held| world.hosts[held.node].lost)?;
                spend(&mut world.left.abandons)?;
                object.abandons = Some(held.id);
                object.version += 1;
                world.abandoned.push((desktop, held.id));
            }
            Event::Wipes(desktop) => {
                spend(&mut world.left.wipes)?;
                let object = world.objects[desktop].as_mut().filter(|object| object.allocation.is_some())?;
                object.allocation = None;
                object.version += 1;
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
                let kept = world.kept();
                kept.iter().all(|(host, desktop)| kept.iter().all(|(h, d)| d != desktop || h == host))
            }),
        ]
    }
}
