//! What was made by hand is taken over where the admin hands it over by name, and unmade once nobody has it open.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use gpudesk_crds::types::PciAddress;
use gpudesk_inventory::topology::HostFacts;

use super::{
    engine::{Engine, Goal, Stop, lock},
    foreign::{Foreign, foreign},
    handed::{Adopted, ForeignName, parse},
    journal::{Claim, Journal, OurInstance},
    live::LiveCard,
    plan::{Wanted, adopted::vgpu_on, plan, sriov},
    refusal::Refusal,
    slots::Slot,
};
use crate::{foreign_domains::ForeignDomains, host::gpu_driver::GpuError};

impl Engine {
    /// Takes over what the annotation names, each on the thread of its card; what of it is not so, a sentence each.
    pub(super) fn adopt(
        this: &Arc<Self>,
        annotation: Option<&str>,
        facts: &HostFacts,
        domains: &ForeignDomains,
    ) -> Vec<String> {
        let (names, mut said) = annotation.map(parse).unwrap_or_default();
        lock(&this.answers).retain(|name, _| names.contains(name));
        let journal = match this.journal() {
            Ok(journal) => journal,
            Err(error) => {
                said.extend(annotation.map(|_| error.to_string()));
                return said;
            }
        };
        if let Err(error) = Self::give_back(this, &names, &journal, facts) {
            said.push(error.to_string());
        }
        let found = foreign(facts, &journal, domains);
        let mut pending = BTreeMap::<PciAddress, Vec<ForeignName>>::new();
        for name in &names {
            let answer = match this.judge(name, &journal, &found, domains) {
                Ok(None) => Ok(()),
                Ok(Some(card)) => {
                    pending.entry(card).or_default().push(name.clone());
                    let answer = lock(&this.answers).get(name).cloned();
                    answer.unwrap_or_else(|| Err("it is being looked at".into()))
                }
                Err(why) => Err(why),
            };
            said.extend(answer.err().map(|why| format!("{name}: {why}")));
        }
        // Looked at each time: work on the card that waits has a turn of its own.
        for (card, names) in pending {
            let engine = Arc::clone(this);
            this.slots.begin(card, "taking over what was made by hand", move |slot| {
                engine.take_over(card, &names, slot);
            });
        }
        for (card, known) in &journal.cards {
            for adopted in &known.adopted {
                let waits = lock(&this.blocked).get(card).map(|(what, _)| format!(": {what}"));
                let (name, waits) = (adopted.shown(*card), waits.unwrap_or_default());
                said.push(format!("{name}: it was taken over, and is unmade once nobody uses it{waits}"));
            }
        }
        said
    }

    /// Forgets names that were taken away, and may be written again; what they named and is not begun to be unmade stays.
    fn give_back(
        this: &Arc<Self>,
        names: &BTreeSet<ForeignName>,
        journal: &Journal,
        facts: &HostFacts,
    ) -> Result<(), GpuError> {
        let (mut done, mut standing) = (vec![], BTreeMap::<PciAddress, Vec<(String, Adopted)>>::new());
        for handed in &journal.handed {
            if names.iter().any(|name| name.to_string() == *handed) {
                continue;
            }
            match find(journal, facts, handed) {
                Some((card, adopted)) => standing.entry(card).or_default().push((handed.clone(), adopted)),
                None => done.push(handed.clone()),
            }
        }
        for (card, all) in standing {
            let engine = Arc::clone(this);
            this.slots.begin(card, "giving back what was handed over", move |_| {
                let seen = engine.opened().and_then(|opened| engine.look(card, &opened));
                let given = seen.and_then(|live| {
                    engine.note(|journal| {
                        for (name, adopted) in &all {
                            journal.hand_back(card, name, adopted, live.as_ref());
                        }
                    })
                });
                match given {
                    Ok(()) => engine.was_looked_after(card, true),
                    Err(error) => tracing::warn!(%card, %error, "what was handed over is not given back"),
                }
            });
        }
        if done.is_empty() {
            return Ok(());
        }
        this.note(|journal| journal.handed.retain(|handed| !done.contains(handed)))
    }

    /// The card of what is to be taken over; none where that is done.
    fn judge(
        &self,
        name: &ForeignName,
        journal: &Journal,
        found: &BTreeMap<PciAddress, Foreign>,
        domains: &ForeignDomains,
    ) -> Result<Option<PciAddress>, String> {
        let text = name.to_string();
        let is_it = |foreign: &Foreign| foreign.devices.iter().any(|device| device.device == text);
        let card = found.iter().find(|(_, foreign)| is_it(foreign)).map(|(card, _)| *card);
        if journal.handed.contains(&text) {
            return match card {
                None => Ok(None),
                Some(_) => Err("it was taken over before, and is there again: see that nothing on the host makes or \
                                binds it, as vfio-pci does by its ids; to hand it over once more take its name away, and \
                                write it again"
                    .into()),
            };
        }
        let Some(card) = card else {
            let own = journal.shares.iter().any(|entry| entry.instance().api().id == text);
            return Err(if own {
                "a desktop has it, and gpudesk made it: take its name away".into()
            } else {
                "nothing of this name is there: write what status.devices[].foreign[].device shows".into()
            });
        };
        if let Some(why) = self.kernel.unable() {
            return Err(why);
        }
        if self.rule(card).0 {
            return Err(format!(
                "a rule of spec.devices leaves {card} alone: take that rule away, or the name"
            ));
        }
        let shown = |text: &String| text.chars().filter(|c| !c.is_control()).take(100).collect::<String>();
        if let Some(why) = domains.unseen.as_ref().map(shown) {
            return Err(format!(
                "libvirt does not tell whether a domain has it, so it is not taken over: {why}"
            ));
        }
        if let Some(domain) = domains.by_device.get(&text).map(shown) {
            return Err(format!(
                "it is in use: the domain {domain} of libvirt has it; end that domain first"
            ));
        }
        Ok(Some(card))
    }

    fn take_over(&self, card: PciAddress, names: &[ForeignName], slot: &Slot) {
        let mut changed = false;
        for name in names {
            let answer = self.take(card, name);
            let before = lock(&self.answers).insert(name.clone(), answer.clone());
            if before.as_ref() != Some(&answer) {
                changed = true;
                match &answer {
                    Ok(()) => tracing::info!(%card, %name, "what was made by hand is taken over"),
                    Err(why) => tracing::warn!(%card, %name, why, "what was made by hand is not taken over"),
                }
            }
            if answer.is_ok() {
                // Before the next is looked at, which may stand under it.
                let done = self.unmake_adopted(card, slot);
                self.note_wait(card, done.as_ref().err());
            }
        }
        if changed {
            self.was_looked_after(card, true);
        }
    }

    /// Notes that something is gpudesk's, where it is there and nobody has it open.
    fn take(&self, card: PciAddress, name: &ForeignName) -> Result<(), String> {
        let opened = self.opened().map_err(|error| error.to_string())?;
        let live = self.look(card, &opened).map_err(|error| error.to_string())?;
        let live = live.ok_or_else(|| format!("the host has no card at {card} any more"))?;
        let journal = self.journal().map_err(|error| error.to_string())?;
        let adopted = identify(&live, &journal, name)?;
        let mut trial = journal;
        if let Some(known) = trial.cards.get_mut(&card) {
            // It is in use or not whatever else was handed over.
            known.adopted.clear();
        }
        let name = name.to_string();
        trial.adopt(&name, adopted.clone(), &live);
        plan(&live, &trial, Wanted::Adopted).map_err(|refusal| refusal.to_string())?;
        self.note(|journal| journal.adopt(&name, adopted, &live)).map_err(|error| error.to_string())
    }

    /// Unmakes what was taken over on a card, but for what is in use.
    pub(super) fn unmake_adopted(&self, card: PciAddress, slot: &Slot) -> Result<(), GpuError> {
        if self.journal()?.adopted(card).is_empty() {
            return Ok(());
        }
        let done = match self.bring(card, &Goal::Adopted, slot) {
            Ok(live) => return self.note(|journal| journal.adopted_is_gone(card, live.as_ref())),
            Err(Stop::Error(GpuError::Unfit { source: source @ Refusal::OtherCard { .. }, .. })) => {
                tracing::warn!(%card, %source, "what was taken over is gone with its card");
                return self.note(|journal| journal.adopted_is_gone(card, None));
            }
            Err(Stop::Error(error)) => Err(error),
            Err(Stop::Stranded(why)) => self.keep_apart(card, why),
        };
        // What is unmade is done, whatever the rest waits for.
        if let Ok(Some(live)) = self.opened().and_then(|opened| self.look(card, &opened)) {
            self.note(|journal| journal.adopted_is_gone(card, Some(&live)))?;
        }
        done
    }
}

/// What a name that was taken away stands for, where that is not unmade yet.
fn find(journal: &Journal, facts: &HostFacts, name: &str) -> Option<(PciAddress, Adopted)> {
    let start = |card: PciAddress| {
        let seen = facts.cards.iter().find(|seen| seen.pci_address == card)?;
        seen.instances.iter().find(|one| one.id == name)?.start
    };
    journal.cards.iter().find_map(|(card, known)| {
        let is_it = |one: &&Adopted| match one {
            Adopted::GpuInstance(place) => start(*card) == Some(place.start),
            other => other.shown(*card) == name,
        };
        known.adopted.iter().find(is_it).map(|one| (*card, one.clone()))
    })
}

/// What stands on a card under a name, and is nobody's of ours.
fn identify(live: &LiveCard, journal: &Journal, name: &ForeignName) -> Result<Adopted, String> {
    let card = live.function.address;
    let own = || Err("gpudesk made it: take its name away".to_owned());
    let gone = || Err("it is not there any more: take its name away".to_owned());
    match name {
        ForeignName::Function(address) => {
            if super::foreign::is_own(journal, *address) {
                return own();
            }
            let vgpu = live.virtual_function(*address).and_then(|vf| vf.vgpu.as_ref());
            match vgpu.map(|vgpu| vgpu.current) {
                Some(None) => return Err("what it carries cannot be read".into()),
                Some(Some(id)) if id != 0 => return Ok(Adopted::Vgpu { function: *address, id }),
                Some(Some(_)) | None => {}
            }
            match live.find(*address) {
                Some(function) if function.is_vfio() => {
                    Ok(Adopted::Function { function: *address, cleaned: false })
                }
                Some(_) | None => gone(),
            }
        }
        ForeignName::Mdev(uuid) => {
            let uuid = uuid.to_string();
            let claims = |claim: &Claim| matches!(claim, Claim::Mdev { uuid: ours, .. } if *ours == uuid);
            if journal.shares.iter().filter_map(|entry| entry.claim.as_ref()).any(claims) {
                return own();
            }
            let Some(mdev) = live.mdevs.iter().find(|mdev| mdev.uuid == uuid) else { return gone() };
            Ok(Adopted::Mdev { uuid, parent: mdev.parent, type_id: mdev.type_id.clone() })
        }
        ForeignName::GpuInstance(name) => {
            if let Some(why) = &live.control_fault {
                return Err(format!("NVIDIA's driver does not tell now what is on {card}: {why}"));
            }
            let of_card = live.uuid.clone().into_iter().chain([card.to_string()]);
            let prefixes: Vec<String> = of_card.map(|of| format!("MIG-{of}/")).collect();
            let is_it = |id: u32, uuid: Option<&String>| {
                uuid == Some(name) || prefixes.iter().any(|prefix| format!("{prefix}{id}") == *name)
            };
            let mut all = live.control.gpu_instances.iter();
            let Some(seen) = all.find(|seen| is_it(seen.id, seen.uuid.as_ref())) else { return gone() };
            let adopted = Adopted::GpuInstance(OurInstance { profile: seen.profile, start: seen.start });
            if sriov::is_ours(journal, card, seen) || journal.adopted(card).contains(&adopted) {
                return own();
            }
            if let Some(why) = vgpu_on(live, seen.id) {
                return Err(format!("it is in use: {why}; hand that over first"));
            }
            Ok(adopted)
        }
    }
}
