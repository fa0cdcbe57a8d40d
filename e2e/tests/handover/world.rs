//! The world of the model: operators, nodes, what is under way between them, and what each does next.

use std::hash::Hash;

use crate::model::{Faults, Handover};
use crate::objects::{
    Allocation, Does, Domain, Id, Object, Seen, Sees, State, forgets, id, next, operates, state, works,
};
use gpudesk_crds::{conditions::Reason, handover::Standing};
use gpudesk_node_daemon::desktop::{
    decide::Action,
    desired::{self, Wanted},
};
use gpudesk_operator::desktop::decide::{Presence, Step};

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

impl Write {
    /// Whether it was decided because this node is away.
    pub(crate) fn is_of_away(&self, view: &[Option<Object>], host: usize) -> bool {
        let held = view[self.desktop].as_ref().and_then(|object| object.allocation);
        let of_away = matches!(self.what, What::TakeBack { lost: true, .. } | What::LetGo { lost: true });
        of_away && held.is_some_and(|held| held.node == host)
    }
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
    /// Whether it can be spoken to.
    pub(crate) away: Away,
    /// It was switched off, and somebody said so.
    pub(crate) off: bool,
    /// What its object reports of machines that no allocation accounts for.
    pub(crate) strays: Vec<Option<Id>>,
    /// It has not been heard since the API went back to a backup.
    pub(crate) unheard: bool,
}

/// Whether a node can be spoken to. One that cannot goes on by what it knew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Away {
    #[default]
    No,
    /// Its object tells what it said last.
    Silent,
    /// Its object is gone.
    Lost,
}

impl Host {
    pub(crate) fn is_away(&self) -> bool {
        self.away != Away::No
    }
}

/// What the API had when it was backed up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Backup {
    pub(crate) objects: Vec<Option<Object>>,
    pub(crate) strays: Vec<Vec<Option<Id>>>,
}

/// A status write of a daemon that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Word {
    pub(crate) desktop: usize,
    pub(crate) version: Option<u8>,
    pub(crate) said: (Id, State),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) term: u8,
    pub(crate) objects: Vec<Option<Object>>,
    pub(crate) operators: Vec<Operator>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) left: Faults,
    pub(crate) backup: Option<Backup>,
    /// How often the API went back to it.
    pub(crate) restores: u8,
    /// Machines that their users gave up: desktop and decision.
    pub(crate) abandoned: Vec<(usize, Id)>,
    /// Something was given while its machine ran.
    pub(crate) wrong: Option<&'static str>,
}

impl World {
    /// The machines that run: node and desktop.
    pub(crate) fn active(&self) -> Vec<(usize, usize)> {
        let runs = |host: &Host, desktop: usize| host.domains[desktop].is_some_and(|domain| domain.active);
        let hosts = self.hosts.iter().enumerate();
        let each =
            hosts.flat_map(|(at, host)| (0..self.objects.len()).map(move |desktop| (at, host, desktop)));
        each.filter(|(_, host, desktop)| runs(host, *desktop)).map(|(at, _, desktop)| (at, desktop)).collect()
    }

    /// The machines that run and were not given up.
    pub(crate) fn kept(&self) -> Vec<(usize, usize)> {
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
        let reports = self.hosts.iter().enumerate().filter(|(_, host)| host.away != Away::Lost);
        Sees {
            node: match host.map_or(Away::No, |host| host.away) {
                Away::No => Presence::Present,
                Away::Silent => Presence::Silent,
                Away::Lost => Presence::Lost,
            },
            off: host.is_some_and(|host| host.off),
            keeps_disks: model.keeps_disks,
            found: reports.filter_map(|(at, host)| Some((at, host.strays[desktop]?))).collect(),
            remembered: self.operators[operator].remembered[desktop].map(|held| held.id),
        }
    }

    pub(crate) fn shows(&mut self, operator: usize, desktop: usize) {
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
    pub(crate) fn operate(&mut self, model: &Handover, operator: usize, desktop: usize) -> Option<()> {
        if self.operators[operator].write.is_some() || self.operators[operator].assumed[desktop].is_some() {
            return None;
        }
        let object = self.operators[operator].view[desktop].clone()?;
        let sees = self.sees(model, operator, desktop, &object);
        let what = match operates(&object, &sees) {
            Step::Place { .. } | Step::RemoveFinalizer
                if model.waits && self.hosts.iter().any(|host| host.unheard && !host.is_away()) =>
            {
                return None;
            }
            Step::Place { home } => {
                let home: Option<usize> = home.map(|node| node.parse().unwrap());
                let taken = self.taken(operator, desktop);
                let fits = |n: &usize| {
                    home.is_none_or(|home| home == *n) && !taken.contains(n) && !self.hosts[*n].is_away()
                };
                let mut free: Vec<usize> = (0..model.hosts).filter(fits).collect();
                // Nothing leads back to where it was placed before a restore.
                if self.restores > 0 {
                    free.reverse();
                }
                match free.first().copied() {
                    Some(node) => {
                        // As the real one it tells decisions on different versions apart, and is above what is
                        // remembered.
                        let above =
                            self.operators[operator].remembered[desktop].map_or(0, |held| held.id.0 + 1);
                        let id = (next(&object).max(above), object.version + 64 * self.restores);
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
            Step::RemoveFinalizer => What::LetGo { lost: sees.node != Presence::Present },
            _ => return None,
        };
        self.operators[operator].write = Some(Write { desktop, version: object.version, what });
        Some(())
    }

    /// The write of an operator arrives.
    pub(crate) fn land(&mut self, model: &Handover, operator: usize) {
        let term = self.operators[operator].term;
        let Some(Write { desktop, version, what }) = self.operators[operator].write.take() else { return };
        let fenced = model.fenced && term != self.term;
        let Some(object) =
            self.objects[desktop].as_mut().filter(|object| object.version == version && !fenced)
        else {
            return;
        };
        let before = object.allocation.filter(|held| held.held);
        let away = object.allocation.is_some_and(|held| self.hosts[held.node].is_away());
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
    pub(crate) fn work(&mut self, model: &Handover, host: usize, desktop: usize) -> Option<()> {
        // One that is lost goes on by what it knew.
        let live = self.objects[desktop].clone().filter(|_| !self.hosts[host].is_away());
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
            // As `conflict` looks.
            Does::Acts(Action::Start)
                if model.looks && this.domains.iter().flatten().any(|domain| domain.active) =>
            {
                None
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
        let live = self.objects[desktop].as_ref().filter(|_| !self.hosts[host].is_away())?;
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
    pub(crate) fn report(&mut self, host: usize) {
        let strays = (0..self.objects.len()).map(|desktop| {
            let domain = self.hosts[host].domains[desktop].filter(|domain| domain.active)?;
            let held = self.objects[desktop].as_ref().and_then(|object| object.allocation);
            let accounted = held.is_some_and(|held| held.node == host && held.id == domain.id);
            (!accounted).then_some(domain.id)
        });
        self.hosts[host].strays = strays.collect();
        if std::mem::take(&mut self.hosts[host].unheard) {
            // A start that was confirmed before the restore was made by now, or never will be.
            self.hosts[host].confirmed = None;
        }
    }

    /// The API goes back to its backup: leaders end, and what was under way to it is lost.
    pub(crate) fn restore(&mut self) -> Option<()> {
        let Backup { objects, strays } = self.backup.clone()?;
        self.restores += 1;
        self.objects = objects;
        for (host, strays) in self.hosts.iter_mut().zip(strays) {
            host.strays = strays;
            host.word = None;
            host.unheard = true;
        }
        self.operators.clear();
        self.take_over();
        Some(())
    }

    /// An operator begins.
    pub(crate) fn take_over(&mut self) {
        self.term += 1;
        let held = |object: &Option<Object>| object.as_ref()?.allocation.filter(|held| held.held);
        self.operators.push(Operator {
            term: self.term,
            view: self.objects.clone(),
            assumed: vec![None; self.objects.len()],
            remembered: self.objects.iter().map(held).collect(),
            write: None,
        });
    }

    /// The word of a daemon arrives.
    pub(crate) fn land_word(&mut self, host: usize) {
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
