//! The model: what may happen, and what must hold.

use stateright::{Model, Property};

use crate::{
    objects::{Object, State},
    world::{Away, Backup, Host, Operator, World},
};

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
    /// A node is not heard for a while.
    pub(crate) silences: u8,
    /// The API is backed up, and goes back to that later.
    pub(crate) restores: u8,
    /// A node loses what it notes down on disk.
    pub(crate) folders: u8,
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
    Silent(usize),
    BacksUp,
    Restores,
    LosesFolder(usize),
}

#[expect(clippy::struct_excessive_bools, reason = "each is one guard that a check takes away")]
pub(crate) struct Handover {
    pub(crate) desktops: usize,
    pub(crate) hosts: usize,
    pub(crate) keeps_disks: bool,
    /// The API refuses what an operator writes that does not lead any more.
    pub(crate) fenced: bool,
    /// An operator that begins after a restore places nothing before nodes were heard.
    pub(crate) waits: bool,
    /// Nodes look whether what they are given is in use.
    pub(crate) looks: bool,
    pub(crate) faults: Faults,
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
            away: Away::No,
            off: false,
            strays: vec![None; self.desktops],
            unheard: false,
        };
        vec![World {
            term: 0,
            objects,
            operators: vec![operator],
            hosts: vec![host; self.hosts],
            left: self.faults,
            backup: None,
            restores: 0,
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
            events.push(Event::Silent(host));
            events.push(Event::LosesFolder(host));
        }
        events.extend([Event::TakesOver, Event::BacksUp, Event::Restores]);
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
                world.take_over();
            }
            Event::ShowsNode(host, _) | Event::LandsWord(host) if world.hosts[host].is_away() => return None,
            Event::ShowsNode(host, desktop) => {
                let object = world.objects[desktop].clone();
                let ours = object.filter(|object| object.allocation.is_some_and(|held| held.node == host));
                world.hosts[host].view[desktop] = ours;
            }
            Event::Works(host, desktop) => world.work(self, host, desktop)?,
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
                let host = Some(&mut world.hosts[host]).filter(|host| host.away != Away::Lost)?;
                // What it reported goes with its object.
                host.away = Away::Lost;
                host.strays = vec![None; self.desktops];
            }
            Event::Off(host) => {
                let host = Some(&mut world.hosts[host]).filter(|host| host.is_away() && !host.off)?;
                spend(&mut world.left.offs)?;
                host.off = true;
                host.confirmed = None;
                host.domains.iter_mut().flatten().for_each(|domain| domain.active = false);
            }
            Event::Returns(host) => {
                let this = Some(&mut world.hosts[host]).filter(|host| host.is_away())?;
                (this.away, this.off) = (Away::No, false);
                // A start that was confirmed was made long ago, or never will be.
                this.confirmed = None;
                // It is away again only after longer than a write may take that was decided before.
                for operator in &mut world.operators {
                    operator.write.take_if(|write| write.is_of_away(&operator.view, host));
                }
                world.report(host);
            }
            Event::Reports(host) => {
                (!world.hosts[host].is_away()).then_some(())?;
                world.report(host);
            }
            Event::Abandons(desktop) => {
                let object = world.objects[desktop].as_mut().filter(|object| object.abandons.is_none())?;
                let held = object.allocation.filter(|held| world.hosts[held.node].is_away())?;
                spend(&mut world.left.abandons)?;
                object.abandons = Some(held.id);
                object.version += 1;
                world.abandoned.push((desktop, held.id));
            }
            Event::Silent(host) => {
                let host = Some(&mut world.hosts[host]).filter(|host| !host.is_away())?;
                spend(&mut world.left.silences)?;
                host.away = Away::Silent;
            }
            Event::BacksUp => {
                (world.left.restores > 0 && world.backup.is_none()).then_some(())?;
                let strays = world.hosts.iter().map(|host| host.strays.clone()).collect();
                world.backup = Some(Backup { objects: world.objects.clone(), strays });
            }
            Event::Restores => {
                spend(&mut world.left.restores)?;
                world.restore()?;
            }
            Event::LosesFolder(host) => {
                spend(&mut world.left.folders)?;
                let host = &mut world.hosts[host];
                // While its daemon is down: what that was writing has arrived, or never will.
                (host.word, host.confirmed) = (None, None);
                host.view = vec![None; self.desktops];
                host.folders = vec![None; self.desktops];
                host.ended = vec![None; self.desktops];
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
