//! Shares of cards that sysfs tells of: mediated devices, vendor-specific VFIO, plain virtual functions.

use std::collections::BTreeSet;

use gpudesk_crds::{
    gpu_node_status::{Device, Framework, Instance, Placement},
    types::{PciAddress, ShareMode},
};

use super::Scanner;
use crate::topology::{
    HostFacts,
    mdev::{self, MdevType},
    vendor_vfio, vgpu_type,
};

/// Most types and most shares of one card in the API.
const SHARES: usize = 256;
const MDEVS: &str = "sys/bus/mdev/devices";

impl Scanner {
    /// Fills in framework, placements and instances. A driver that can be asked tells more later.
    pub(super) fn shares(&mut self, card: &mut Device) {
        let own = self.folder(card.pci_address);
        if self.tree.exists(&format!("{own}/mdev_supported_types")) {
            card.framework = Some(Framework::Mdev);
            card.placements = self.mdev_types(card.pci_address, None);
            card.instances = self.mdevs(card);
        } else if let Some(first) = card.virtual_functions.first().map(|vf| vf.pci_address) {
            if self.tree.exists(&format!("{}/nvidia", self.folder(first))) {
                card.framework = Some(Framework::VendorVfio);
                self.vendor_vfio(card, None);
            } else if self.tree.exists(&format!("{}/mdev_supported_types", self.folder(first))) {
                card.framework = Some(Framework::Mdev);
                let functions = i32::try_from(card.virtual_functions.len()).unwrap_or(i32::MAX);
                card.placements = self.mdev_types(first, Some(functions));
                self.mdevs_on_functions(card);
            } else if card.vendor_id != "10de" {
                card.framework = Some(Framework::Sriov);
                card.placements = vec![self.plain_functions(card, first)];
            }
        } else if card.vendor_id != "10de" && card.sriov.is_some() {
            card.framework = Some(Framework::Sriov);
        }
        card.placements.truncate(SHARES);
        card.instances.truncate(SHARES);
    }

    /// Reads again what one virtual function of a card carries.
    pub(super) fn share_of_function(&mut self, card: &mut Device, address: PciAddress) {
        match card.framework {
            Some(Framework::VendorVfio) => self.vendor_vfio(card, Some(address)),
            Some(Framework::Mdev) => {
                self.mdevs_of(address);
                self.mdevs_on_functions(card);
            }
            Some(Framework::Sriov) | None => {}
        }
        card.placements.truncate(SHARES);
        card.instances.truncate(SHARES);
    }

    /// Finds all mediated devices of the host, by the function that carries them.
    pub(super) fn find_mdevs(&mut self) {
        self.mdevs.clear();
        for name in self.tree.names(MDEVS, |_| true) {
            let path = format!("{MDEVS}/{name}");
            let Some((uuid, parent)) = self.tree.link(&path).and_then(|link| mdev::parent(&link)) else {
                continue;
            };
            let type_id = self.tree.link_name(&format!("{path}/mdev_type"));
            self.mdevs.entry(parent).or_default().push((uuid, type_id));
        }
    }

    /// Finds the mediated devices that one function carries.
    pub(super) fn mdevs_of(&mut self, parent: PciAddress) {
        let folder = self.folder(parent);
        let uuids = self.tree.names(&folder, |name| name.parse::<uuid::Uuid>().is_ok());
        let found = uuids.into_iter().map(|uuid| {
            let type_id = self.tree.link_name(&format!("{folder}/{uuid}/mdev_type"));
            (uuid.to_ascii_lowercase(), type_id)
        });
        let found: Vec<_> = found.collect();
        self.mdevs.insert(parent, found);
    }

    /// The types that one function offers; on each of `functions` functions, one share.
    fn mdev_types(&self, address: PciAddress, functions: Option<i32>) -> Vec<Placement> {
        let folder = format!("{}/mdev_supported_types", self.folder(address));
        let mut placements: Vec<Placement> = vec![];
        for id in self.tree.names(&folder, |_| true) {
            let Some(dir) = self.tree.dir(&format!("{folder}/{id}")) else { continue };
            let found = MdevType {
                name: dir.line("name"),
                description: dir.text("description"),
                available: dir.line("available_instances").and_then(|line| line.parse().ok()),
                id,
            };
            let placement = mdev::placement(&found, functions);
            // Names are the key of the list in the API.
            if placements.iter().all(|other| other.type_name != placement.type_name) {
                placements.push(placement);
            }
        }
        placements
    }

    /// The mediated devices on a card or on its virtual functions.
    fn mdevs(&self, card: &Device) -> Vec<Instance> {
        let own = [(card.pci_address, None)].into_iter();
        let functions = card.virtual_functions.iter().map(|vf| (vf.pci_address, Some(vf.pci_address)));
        let mut found = vec![];
        for (parent, virtual_function) in own.chain(functions) {
            for (uuid, type_id) in self.mdevs.get(&parent).into_iter().flatten() {
                let placement = card.placements.iter().find(|placement| placement.driver_id == *type_id);
                let on_slice = placement.filter(|placement| placement.mode == ShareMode::Mig);
                found.push(Instance {
                    id: uuid.clone(),
                    type_name: placement.map_or_else(
                        || type_id.clone().unwrap_or_else(|| "unknown".into()).chars().take(64).collect(),
                        |placement| placement.type_name.clone(),
                    ),
                    mode: placement.map_or(ShareMode::Vgpu, |placement| placement.mode),
                    vgpu_type: on_slice.map(|placement| placement.type_name.clone()),
                    start: None,
                    virtual_function,
                    gpu_instance: None,
                    owner: None,
                });
            }
        }
        found
    }

    fn mdevs_on_functions(&self, card: &mut Device) {
        card.instances = self.mdevs(card);
        // A function that carries a device offers nothing more; a free one tells for all free ones.
        let taken: Vec<PciAddress> =
            card.instances.iter().filter_map(|instance| instance.virtual_function).collect();
        let free: Vec<PciAddress> = (card.virtual_functions.iter())
            .map(|vf| vf.pci_address)
            .filter(|address| !taken.contains(address))
            .collect();
        let there = i32::try_from(free.len()).unwrap_or(i32::MAX);
        // What one size of types adds up to is what the card has.
        let of_type = |name: &str| card.placements.iter().find(|placement| placement.type_name == name);
        let used = card.instances.iter().filter_map(|instance| of_type(&instance.type_name));
        let used_mib: i64 = used.map(|placement| placement.framebuffer_mib).sum();
        let all = card
            .placements
            .iter()
            .map(|placement| placement.framebuffer_mib * i64::from(placement.max_count));
        let whole_mib: i64 = all.max().unwrap_or(0);
        for placement in &mut card.placements {
            let Some(id) = placement.driver_id.clone() else { continue };
            let offered = free.first().and_then(|address| {
                let path = format!("{}/mdev_supported_types/{id}/available_instances", self.folder(*address));
                self.tree.line(&path)?.parse::<i32>().ok()
            });
            let left = i32::try_from((whole_mib - used_mib).max(0) / placement.framebuffer_mib.max(1));
            let left = left.unwrap_or(i32::MAX).min(placement.max_count);
            placement.available = match offered {
                Some(1..) => Some(left.min(there)),
                Some(_) => Some(0),
                None if free.is_empty() => Some(0),
                None => None,
            };
        }
    }

    /// What the virtual functions carry and offer: of all, or, where the others are known, of one.
    fn vendor_vfio(&mut self, card: &mut Device, only: Option<PciAddress>) {
        let (only_one, all): (Vec<PciAddress>, _) = (only.into_iter().collect(), &card.virtual_functions);
        let asked =
            if only_one.is_empty() { all.iter().map(|vf| vf.pci_address).collect() } else { only_one };
        card.instances.retain(|instance| instance.virtual_function.is_none_or(|vf| !asked.contains(&vf)));
        let found: Vec<Instance> =
            asked.iter().filter_map(|vf| self.vendor_vfio_instance(card, *vf)).collect();
        card.instances.extend(found);
        card.instances.sort_by_key(|instance| instance.virtual_function);
        // All free functions of a card offer the same.
        let is_free =
            |address| card.instances.iter().all(|instance| instance.virtual_function != Some(address));
        let free = card.virtual_functions.iter().map(|vf| vf.pci_address).find(|address| is_free(*address));
        let list = free.and_then(|address| {
            self.tree.text(&format!("{}/nvidia/creatable_vgpu_types", self.folder(address)))
        });
        let creatable = vendor_vfio::creatable_types(list.as_deref().unwrap_or_default());
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
        card.placements.sort_by(|a, b| a.type_name.cmp(&b.type_name));
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

    /// Virtual functions that are shares themselves, all alike.
    fn plain_functions(&self, card: &Device, first: PciAddress) -> Placement {
        let can_be_given = card.virtual_functions.iter().filter(|vf| vf.unavailable.is_none()).count();
        let count = i32::try_from(can_be_given).unwrap_or(i32::MAX);
        let framebuffer_mib = self.function_memory_mib(card, first).unwrap_or(0);
        Placement::new(format!("{count}VF"), ShareMode::VirtualFunctions, framebuffer_mib, count)
    }

    /// Memory of a virtual function as the host driver tells it: i915's and xe's quota, or what amdgpu
    /// tells of the function itself.
    fn function_memory_mib(&self, card: &Device, first: PciAddress) -> Option<i64> {
        let own = self.folder(card.pci_address);
        let number = |path: &str| self.tree.line(path)?.parse::<i64>().ok();
        let bytes = match card.driver.as_deref() {
            // Intel's own i915: one quota per tile, `gt` or `gt0`, `gt1`.
            Some("i915") => self.drm_card(&own).and_then(|drm| {
                ["iov", "prelim_iov"].iter().find_map(|iov| {
                    let folder = format!("{drm}/{iov}/vf1");
                    let tiles = self.tree.names(&folder, |name| name.starts_with("gt"));
                    tiles
                        .iter()
                        .filter_map(|tile| number(&format!("{folder}/{tile}/lmem_quota")))
                        .reduce(i64::saturating_add)
                })
            }),
            Some("xe") => number(&format!("{own}/sriov_admin/vf1/profile/vram_quota")),
            _ => number(&format!("{}/mem_info_vram_total", self.folder(first))),
        };
        bytes.filter(|bytes| *bytes > 0).map(|bytes| bytes >> 20)
    }
}

/// The kind of a card, by which types are remembered.
fn kind_of(card: &Device) -> String {
    format!("{}:{}", card.vendor_id, card.device_id)
}
