//! What is on cards that gpudesk did not make. Pure.

use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::{
    gpu_node_status::{Device, ForeignDevice, Framework, Instance},
    types::{PciAddress, ShareMode},
};
use gpudesk_inventory::topology::HostFacts;

use super::{
    handed::Adopted,
    journal::{Claim, Journal},
    step::Setting,
};
use crate::foreign_domains::ForeignDomains;

/// The most characters of what is said of one, as the schema has it.
const WORDS: usize = 256;

/// What of one card is somebody else's.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Foreign {
    /// Each thing, by its name.
    pub(super) devices: Vec<ForeignDevice>,
    /// Virtual functions that count as shares and are taken.
    pub(super) taken: Vec<Instance>,
    /// What goes along with the card and is somebody else's.
    pub(super) along: Option<PciAddress>,
}

/// What is gpudesk's.
struct Own<'a> {
    /// Functions that carry shares, or of which gpudesk changed the driver.
    functions: BTreeSet<PciAddress>,
    /// Shares, by what guests are given.
    ids: BTreeSet<String>,
    journal: &'a Journal,
}

impl<'a> Own<'a> {
    fn of(journal: &'a Journal) -> Self {
        let (mut functions, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for entry in &journal.shares {
            ids.insert(entry.instance().api().id);
            functions.extend(entry.claim.as_ref().and_then(Claim::function));
            functions.extend(entry.companions.iter().copied());
            if entry.claim == Some(Claim::Card) {
                functions.insert(entry.card);
            }
        }
        for known in journal.cards.values() {
            functions.extend(known.changes.iter().filter_map(|change| match change.setting {
                Setting::Driver(function) => Some(function),
                _ => None,
            }));
            for adopted in &known.adopted {
                match adopted {
                    Adopted::Function { function, .. } | Adopted::Vgpu { function, .. } => {
                        functions.insert(*function);
                        ids.insert(function.to_string());
                    }
                    Adopted::Mdev { uuid, .. } => _ = ids.insert(uuid.clone()),
                    // By its place.
                    Adopted::GpuInstance(_) => {}
                }
            }
        }
        Self { functions, ids, journal }
    }

    fn has(&self, card: PciAddress, instance: &Instance) -> bool {
        let known = self.journal.cards.get(&card);
        let places = known.map_or(&[][..], |card| &card.gpu_instances);
        let adopted = self.journal.adopted(card).iter().filter_map(|adopted| match adopted {
            Adopted::GpuInstance(place) => Some(place),
            Adopted::Function { .. } | Adopted::Vgpu { .. } | Adopted::Mdev { .. } => None,
        });
        let is_bare = instance.mode == ShareMode::Mig && instance.virtual_function.is_none();
        self.ids.contains(&instance.id)
            || is_bare && places.iter().chain(adopted).any(|place| Some(place.start) == instance.start)
    }
}

/// Whether a function is one that gpudesk gave to guests, or is about to take back.
pub(super) fn is_own(journal: &Journal, function: PciAddress) -> bool {
    Own::of(journal).functions.contains(&function)
}

/// What of each card is somebody else's; `domains` are those that are not of gpudesk, by the devices that they have.
pub(super) fn foreign(
    facts: &HostFacts,
    journal: &Journal,
    domains: &ForeignDomains,
) -> BTreeMap<PciAddress, Foreign> {
    let own = Own::of(journal);
    facts.cards.iter().map(|card| (card.pci_address, of_card(card, &own, domains))).collect()
}

fn of_card(card: &Device, own: &Own<'_>, domains: &ForeignDomains) -> Foreign {
    let mut found = Foreign::default();
    for instance in card.instances.iter().filter(|one| one.owner.is_none()) {
        if !own.has(card.pci_address, instance) {
            let name = instance.vgpu_type.as_ref().unwrap_or(&instance.type_name);
            let is_bare = instance.mode == ShareMode::Mig && instance.vgpu_type.is_none();
            let kind = if is_bare { "a GPU instance" } else { "a vGPU" };
            found.add(&instance.id, format!("{kind} {name}, made on the host"));
        }
    }
    let bound = |driver: &Option<String>| driver.clone().filter(|driver| driver.contains("vfio"));
    let by_hand = |driver: String| format!("bound to {driver}, not by gpudesk");
    for function in &card.virtual_functions {
        let address = function.pci_address;
        let Some(driver) = bound(&function.driver) else { continue };
        if !own.functions.contains(&address) {
            found.add(&address.to_string(), by_hand(driver));
        }
        // One that was handed over is taken until it is unmade.
        let is_desktops = own.ids.contains(&address.to_string()) && !is_adopted(own, address);
        if card.framework == Some(Framework::Sriov) && !is_desktops {
            found.taken.extend(taken(card, address));
        }
    }
    if let Some(driver) = bound(&card.driver)
        && !own.functions.contains(&card.pci_address)
    {
        found.add(&card.pci_address.to_string(), by_hand(driver));
    }
    // One with an IOMMU group of its own is no part of what is given.
    let along = |address: PciAddress| {
        let group = card.iommu_group.as_ref();
        group.is_none_or(|group| group.members.iter().any(|member| member.pci_address == address))
    };
    for companion in card.companions.iter().filter(|one| along(one.pci_address)) {
        if let Some(driver) = bound(&companion.driver)
            && !own.functions.contains(&companion.pci_address)
        {
            found.add(&companion.pci_address.to_string(), by_hand(driver));
            found.along = Some(companion.pci_address);
        }
    }
    for device in &mut found.devices {
        if let Some(domain) = domains.by_device.get(&device.device) {
            device.what.push_str("; the domain ");
            device.what.push_str(&words(domain, 100));
            device.what.push_str(" of libvirt has it");
        }
        device.what = words(&device.what, WORDS);
    }
    found
}

/// So many characters of what others may have named, as they can be shown: a name may hold what moves a terminal's cursor.
pub(super) fn words(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

fn is_adopted(own: &Own<'_>, address: PciAddress) -> bool {
    own.journal
        .cards
        .values()
        .flat_map(|card| &card.adopted)
        .any(|adopted| matches!(adopted, Adopted::Function { function, .. } if *function == address))
}

/// A virtual function that is a share itself, as something that takes one.
fn taken(card: &Device, address: PciAddress) -> Option<Instance> {
    let kind = card.placements.iter().find(|placement| placement.mode == ShareMode::VirtualFunctions)?;
    Some(Instance {
        id: address.to_string(),
        type_name: kind.type_name.clone(),
        mode: ShareMode::VirtualFunctions,
        vgpu_type: None,
        start: None,
        virtual_function: Some(address),
        gpu_instance: None,
        owner: None,
    })
}

impl Foreign {
    fn add(&mut self, device: &str, what: String) {
        match self.devices.iter_mut().find(|known| known.device == device) {
            Some(known) => {
                known.what.push_str("; ");
                known.what.push_str(&what);
            }
            None => self.devices.push(ForeignDevice { device: device.into(), what }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_somebody_named_with_escapes_is_told_without_them() {
        let domains = ForeignDomains::default();
        let mut card: Device = serde_json::from_value(serde_json::json!({
            "pciAddress": "0000:41:00.0", "vendorId": "10de", "deviceId": "20b5", "product": "NVIDIA A100",
        }))
        .unwrap();
        card.instances.push(Instance {
            id: "MIG-1".into(),
            type_name: "1g\u{1b}[2J.5gb".into(),
            mode: ShareMode::Mig,
            vgpu_type: None,
            start: None,
            virtual_function: None,
            gpu_instance: None,
            owner: None,
        });
        let journal: Journal =
            serde_json::from_value(serde_json::json!({"version": 1, "boot": "b"})).unwrap();
        let found = of_card(&card, &Own::of(&journal), &domains);
        assert_eq!(found.devices.len(), 1);
        assert_eq!(found.devices[0].what, "a GPU instance 1g[2J.5gb, made on the host");
    }

    proptest! {
        #[test]
        fn no_control_character_is_told(text in "(?s).{0,40}", most in 0_usize..50) {
            let told = words(&text, most);
            prop_assert!(told.chars().count() <= most && !told.chars().any(char::is_control));
        }
    }
}
