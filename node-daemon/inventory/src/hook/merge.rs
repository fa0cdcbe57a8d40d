//! Joins an answer of a hook with what was found.

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_status::{Device, Instance, ModeSupport},
    types::PciAddress,
};

use super::{Devices, HookAnswer, MAX_CARDS, Mode, REMARK, cloudstack, own};
use crate::topology::{HostFacts, pci};

/// Entries of a list of instances, as the schema has it.
const MAX_INSTANCES: usize = 256;

/// Joins an answer of a hook with what was found.
///
/// Doing it twice is doing it once. Cards are in the order of their addresses afterwards. No instance
/// that a desktop holds is taken out, whatever the hook says: a card that it leaves out while a desktop
/// holds a share of it stays, marked unavailable. What of the answer could not be used goes to
/// `facts.incomplete`.
pub fn merge(facts: &mut HostFacts, answer: &HookAnswer) {
    let mut remarks = answer.notes.clone();
    let mut cards: BTreeMap<PciAddress, Device> =
        facts.cards.drain(..).map(|card| (card.pci_address, card)).collect();
    let mut words: BTreeMap<PciAddress, Vec<ModeSupport>> = BTreeMap::new();
    match &answer.devices {
        Devices::CloudStack(said) => {
            for card in said {
                let found = cards.remove(&card.address());
                // Of a card that only a document knows, an earlier merge said every mode.
                let only_said = facts.hook_words.get(&card.address()).is_some_and(|words| words.len() > 1);
                match cloudstack::over(card, found, only_said) {
                    Ok((card, said)) => {
                        words.insert(card.pci_address, said);
                        insert(&mut cards, card, &mut remarks);
                    }
                    Err(remark) => remarks.push(remark),
                }
            }
        }
        Devices::Own(said) => match answer.mode {
            Mode::Extend => {
                for card in said {
                    extend(&mut cards, card, &mut remarks);
                }
            }
            Mode::Replace => cards = replace(&cards, said, &mut remarks),
        },
    }
    if let Devices::Own(said) = &answer.devices {
        for card in said.iter().filter(|card| card.fields.contains_key("supports")) {
            let modes = cards.get(&card.address).map(|card| card.supports.clone());
            words.insert(card.address, modes.unwrap_or_default());
        }
    }
    facts.hook_words = words;
    facts.cards = cards.into_values().collect();
    for remark in remarks {
        let remark = format!("{REMARK}: {remark}");
        if !facts.incomplete.contains(&remark) {
            facts.incomplete.push(remark);
        }
    }
}

fn insert(cards: &mut BTreeMap<PciAddress, Device>, card: Device, remarks: &mut Vec<String>) {
    if cards.len() < MAX_CARDS || cards.contains_key(&card.pci_address) {
        cards.insert(card.pci_address, card);
    } else {
        remarks.push(format!("{} is left out, there are {MAX_CARDS} cards already", card.pci_address));
    }
}

fn extend(cards: &mut BTreeMap<PciAddress, Device>, said: &own::Card, remarks: &mut Vec<String>) {
    let base = match (cards.get(&said.address), said.ids()) {
        (Some(found), _) => found.clone(),
        (None, Some((vendor, device))) => Device::new(said.address, vendor, device),
        (None, None) => {
            let address = said.address;
            remarks.push(format!("{address} was not found and is added only with vendorId and deviceId"));
            return;
        }
    };
    let is_new = !cards.contains_key(&said.address);
    match said.over(&base) {
        Ok(mut card) => {
            if is_new {
                classify(&mut card, said);
            }
            keep_held(&mut card.instances, &base.instances);
            insert(cards, card, remarks);
        }
        Err(error) => remarks.push(format!("{} cannot be joined with what was found: {error}", said.address)),
    }
}

/// What a card is that only the hook describes, where the hook does not say it.
fn classify(card: &mut Device, said: &own::Card) {
    if !said.fields.contains_key("kind") {
        card.kind = pci::card_kind(&card.class, &card.vendor_id, &card.device_id);
    }
}

/// The cards as the hook says, and those that it leaves out while a desktop holds a share of them.
fn replace(
    found: &BTreeMap<PciAddress, Device>,
    said: &[own::Card],
    remarks: &mut Vec<String>,
) -> BTreeMap<PciAddress, Device> {
    let mut cards = BTreeMap::new();
    for card in found.values() {
        let Some(owner) = card.instances.iter().find_map(|instance| instance.owner.as_deref()) else {
            continue;
        };
        if said.iter().all(|said| said.address != card.pci_address) {
            let why = format!("the discovery hook leaves out this card, of which {owner} holds a share");
            cards.insert(card.pci_address, Device { unavailable: Some(why), ..card.clone() });
        }
    }
    for said in said {
        let (vendor, device) = said.ids().unwrap_or_default();
        match said.over(&Device::new(said.address, vendor, device)) {
            Ok(mut card) => {
                classify(&mut card, said);
                if let Some(found) = found.get(&said.address) {
                    keep_held(&mut card.instances, &found.instances);
                }
                insert(&mut cards, card, remarks);
            }
            Err(error) => remarks.push(format!("{} cannot be used: {error}", said.address)),
        }
    }
    cards
}

/// Puts those of `found` that a desktop holds into `instances`, in place of what is said of them.
fn keep_held(instances: &mut Vec<Instance>, found: &[Instance]) {
    let held: Vec<&Instance> = found.iter().filter(|instance| instance.owner.is_some()).collect();
    instances.retain(|instance| held.iter().all(|held| held.id != instance.id));
    instances.truncate(MAX_INSTANCES.saturating_sub(held.len()));
    instances.extend(held.into_iter().cloned());
    instances.sort_by(|a, b| a.id.cmp(&b.id));
    instances.dedup_by(|a, b| a.id == b.id);
}
