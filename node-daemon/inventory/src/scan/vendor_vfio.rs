//! vGPUs by NVIDIA's vendor-specific VFIO: what the virtual functions of a card say.

use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::{
    gpu_node_status::{Device, Framework, Instance, Placement},
    types::{PciAddress, ShareMode},
};

use super::{
    Scanner,
    shares::{SHARES, kind_of},
};
use crate::topology::{HostFacts, vendor_vfio, vgpu_type};

impl Scanner {
    /// What the virtual functions carry and offer: of all, or, where the others are known, of one.
    pub(super) fn vendor_vfio(&mut self, card: &mut Device, only: Option<PciAddress>) {
        let all: Vec<PciAddress> = card.virtual_functions.iter().map(|vf| vf.pci_address).collect();
        let asked = only.map_or_else(|| all.clone(), |only| vec![only]);
        card.instances.retain(|instance| instance.virtual_function.is_none_or(|vf| !asked.contains(&vf)));
        let found: Vec<Instance> =
            asked.iter().filter_map(|vf| self.vendor_vfio_instance(card, *vf)).collect();
        card.instances.extend(found);
        card.instances.sort_by_key(|instance| instance.virtual_function);
        for function in card.virtual_functions.iter_mut().filter(|vf| asked.contains(&vf.pci_address)) {
            let folder = format!("{}/nvidia", self.folder(function.pci_address));
            let told = || vendor_vfio::current_type(&self.tree.text(&format!("{folder}/current_vgpu_type"))?);
            if self.tree.exists(&folder) && told().is_none() {
                function.unavailable.get_or_insert("what it carries could not be read".into());
            }
        }
        // What any free function offers can be had; one that is in use offers nothing.
        let mut creatable: BTreeMap<u32, String> = BTreeMap::new();
        let in_use =
            |address| card.instances.iter().any(|instance| instance.virtual_function == Some(address));
        for address in all.into_iter().filter(|address| !in_use(*address)) {
            let path = format!("{}/nvidia/creatable_vgpu_types", self.folder(address));
            creatable.extend(vendor_vfio::creatable_types(&self.tree.text(&path).unwrap_or_default()));
        }
        let known = self.type_names.0.entry(kind_of(card)).or_default();
        for (id, name) in &creatable {
            if !known.contains_key(id) && known.len() < SHARES {
                known.insert(*id, vgpu_type::short(name).chars().take(64).collect());
            }
        }
        let offered = creatable.into_keys().collect();
        self.known_types(card, &offered);
    }

    /// The types of a card: those that are `offered` now, and those that ever were on a card of its kind.
    fn known_types(&self, card: &mut Device, offered: &BTreeSet<u32>) {
        let known = self.type_names.0.get(&kind_of(card)).into_iter().flatten();
        let types = known.filter_map(|(id, name)| {
            let available = if offered.contains(id) { None } else { Some(0) };
            Some(Placement { available, ..vgpu_type::placement(&vgpu_type::parse(name)?, &id.to_string()) })
        });
        card.placements = types.collect();
        // Numbers change with the driver: of one name, the one that is offered now counts.
        card.placements.sort_by(|a, b| (&a.type_name, a.available).cmp(&(&b.type_name, b.available)));
        card.placements.dedup_by(|a, b| a.type_name == b.type_name);
    }

    /// Names what was read before its name was: on one card all functions may be in use, while a function
    /// of a card that is read later still offers the type.
    pub(super) fn name_shares(&self, facts: &mut HostFacts) {
        let vendor = facts.cards.iter_mut().filter(|card| card.framework == Some(Framework::VendorVfio));
        for card in vendor {
            let offered = card.placements.iter().filter(|placement| placement.available.is_none());
            let offered =
                offered.filter_map(|placement| placement.driver_id.as_ref()?.parse().ok()).collect();
            self.known_types(card, &offered);
            let unnamed = |instance: &Instance| instance.type_name.parse::<u32>().is_ok();
            for position in 0..card.instances.len() {
                if unnamed(&card.instances[position])
                    && let Some(function) = card.instances[position].virtual_function
                    && let Some(instance) = self.vendor_vfio_instance(card, function)
                {
                    card.instances[position] = instance;
                }
            }
            super::shares::finish(card);
        }
    }

    fn vendor_vfio_instance(&self, card: &Device, address: PciAddress) -> Option<Instance> {
        let dir = self.tree.dir(&format!("{}/nvidia", self.folder(address)))?;
        let id = vendor_vfio::current_type(&dir.text("current_vgpu_type")?)??;
        let number = |file: &str| dir.text(file).and_then(|text| vendor_vfio::number(&text));
        let name = self.type_names.0.get(&kind_of(card)).and_then(|known| known.get(&id)).cloned();
        let is_mig = match name.as_deref().and_then(vgpu_type::parse) {
            Some(name) => name.slices.is_some(),
            // A type that nobody names: what stands on a GPU instance says so itself.
            None => number("gpu_instance_id").is_some(),
        };
        Some(Instance {
            id: address.to_string(),
            vgpu_type: name.clone().filter(|_| is_mig),
            type_name: name.unwrap_or_else(|| id.to_string()),
            mode: if is_mig { ShareMode::Mig } else { ShareMode::Vgpu },
            start: if is_mig { None } else { number("placement_id") },
            virtual_function: Some(address),
            gpu_instance: if is_mig { number("gpu_instance_id") } else { None },
            owner: None,
        })
    }
}
