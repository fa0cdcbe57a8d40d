//! Shares of cards that sysfs tells of: mediated devices, vendor-specific VFIO, plain virtual functions.

use std::collections::BTreeSet;

use gpudesk_crds::{
    gpu_node_status::{Device, Framework, Instance, Placement, VirtualFunction},
    types::{PciAddress, ShareMode},
};

use super::Scanner;
use crate::topology::{
    mdev::{self, MdevType},
    vgpu_type,
};

/// Most types and most shares of one card in the API.
pub(super) const SHARES: usize = 256;
/// Vendor id of NVIDIA.
const NVIDIA: &str = "10de";
const MDEVS: &str = "sys/bus/mdev/devices";

impl Scanner {
    /// Fills in framework, placements and instances. A driver that can be asked tells more later.
    ///
    /// Every function of the card is looked at: one that is bound elsewhere, or that is in use, lists
    /// nothing and says nothing of the others.
    pub(super) fn shares(&mut self, card: &mut Device) {
        let functions: Vec<PciAddress> = card.virtual_functions.iter().map(|vf| vf.pci_address).collect();
        if !self.tree.exists(MDEVS) {
            // A part of a host may show them where they are all the same.
            for address in std::iter::once(card.pci_address).chain(functions.iter().copied()) {
                if self.tree.exists(&format!("{}/mdev_supported_types", self.folder(address))) {
                    self.mdevs_of(address);
                }
            }
        }
        let has =
            |address: &PciAddress, what: &str| self.tree.exists(&format!("{}/{what}", self.folder(*address)));
        let all = || std::iter::once(card.pci_address).chain(functions.iter().copied());
        let is_mdev = |address: PciAddress| {
            has(&address, "mdev_supported_types")
                || self.mdevs.get(&address).is_some_and(|mdevs| !mdevs.is_empty())
        };
        card.framework = if functions.iter().any(|address| has(address, "nvidia")) {
            Some(Framework::VendorVfio)
        } else if all().any(is_mdev) {
            Some(Framework::Mdev)
        } else if card.vendor_id != NVIDIA && (card.sriov.is_some() || !functions.is_empty()) {
            Some(Framework::Sriov)
        } else {
            None
        };
        match card.framework {
            Some(Framework::VendorVfio) => self.vendor_vfio(card, None),
            Some(Framework::Mdev) => self.mdev(card),
            Some(Framework::Sriov) if !functions.is_empty() => {
                card.placements = vec![self.plain_functions(card)];
            }
            Some(Framework::Sriov) | None => {}
        }
        finish(card);
    }

    /// Reads again what one virtual function of a card carries.
    pub(super) fn share_of_function(&mut self, card: &mut Device, address: PciAddress) {
        match card.framework {
            Some(Framework::VendorVfio) => self.vendor_vfio(card, Some(address)),
            Some(Framework::Mdev) => {
                self.mdevs_of(address);
                self.mdev(card);
            }
            Some(Framework::Sriov) => card.placements = vec![self.plain_functions(card)],
            // A first function that got its driver tells how shares are made.
            None => return self.shares(card),
        }
        finish(card);
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

    /// Types and mediated devices of a card, on itself and on its virtual functions.
    fn mdev(&mut self, card: &mut Device) {
        let functions: Vec<PciAddress> = card.virtual_functions.iter().map(|vf| vf.pci_address).collect();
        let types = |address: PciAddress| -> Vec<String> {
            self.tree.names(&format!("{}/mdev_supported_types", self.folder(address)), |_| true)
        };
        let own = types(card.pci_address);
        let listed: Vec<(PciAddress, Vec<String>)> =
            functions.iter().map(|address| (*address, types(*address))).collect();
        let carrying = |address: &&PciAddress| self.mdevs.get(address).is_some_and(|mdevs| !mdevs.is_empty());
        let carrying: BTreeSet<PciAddress> = functions.iter().filter(carrying).copied().collect();
        let able = listed.iter().filter(|(address, types)| !types.is_empty() || carrying.contains(address));
        let able = i32::try_from(able.count()).unwrap_or(i32::MAX);
        let mut placements: Vec<Placement> = vec![];
        let mut seen: BTreeSet<&String> = BTreeSet::new();
        let on_card = own.iter().map(|id| (card.pci_address, id, None));
        let on_functions =
            listed.iter().flat_map(|(address, types)| types.iter().map(|id| (*address, id, Some(able))));
        for (address, id, functions) in on_card.chain(on_functions) {
            if !seen.insert(id) {
                continue;
            }
            let placement = self.mdev_type(address, id, functions);
            // Names are the key of the list in the API.
            if let Some(placement) = placement
                && placements.iter().all(|other| other.type_name != placement.type_name)
            {
                placements.push(placement);
            }
        }
        card.placements = placements;
        self.remember_mdev_types(card);
        card.instances = self.mdevs(card);
        if own.is_empty() {
            let lists = listed.iter().filter(|(_, types)| !types.is_empty()).map(|(address, _)| *address);
            let free: Vec<PciAddress> = lists.filter(|address| !carrying.contains(address)).collect();
            self.leave_on_functions(card, &free);
        }
    }

    /// A type that a function offers; on each of `functions` functions, one share.
    fn mdev_type(&self, address: PciAddress, id: &str, functions: Option<i32>) -> Option<Placement> {
        let dir = self.tree.dir(&format!("{}/mdev_supported_types/{id}", self.folder(address)))?;
        let found = MdevType {
            id: id.into(),
            name: dir.line("name"),
            description: dir.text("description"),
            available: dir.line("available_instances").and_then(|line| line.parse().ok()),
        };
        Some(mdev::placement(&found, functions))
    }

    /// Names of NVIDIA's types by their numbers, for devices whose type nobody lists any more.
    fn remember_mdev_types(&mut self, card: &Device) {
        if card.vendor_id != NVIDIA {
            return;
        }
        let known = self.type_names.0.entry(kind_of(card)).or_default();
        for placement in &card.placements {
            let number = placement.driver_id.as_deref().and_then(mdev::nvidia_number);
            if let Some(number) = number.filter(|_| placement.series.is_some() && known.len() < SHARES) {
                known.entry(number).or_insert_with(|| placement.type_name.clone());
            }
        }
    }

    /// The mediated devices on a card or on its virtual functions.
    fn mdevs(&self, card: &Device) -> Vec<Instance> {
        let own = [(card.pci_address, None)].into_iter();
        let functions = card.virtual_functions.iter().map(|vf| (vf.pci_address, Some(vf.pci_address)));
        let names = self.type_names.0.get(&kind_of(card));
        let mut found: Vec<Instance> = vec![];
        for (parent, virtual_function) in own.chain(functions) {
            for (uuid, type_id) in self.mdevs.get(&parent).into_iter().flatten() {
                if found.iter().any(|known| known.id == *uuid) {
                    continue;
                }
                let placement = card.placements.iter().find(|placement| placement.driver_id == *type_id);
                let remembered = || {
                    let number = type_id.as_deref().and_then(mdev::nvidia_number)?;
                    names?.get(&number).cloned()
                };
                let name = placement.map(|placement| placement.type_name.clone()).or_else(remembered);
                let is_sliced =
                    |name: &String| vgpu_type::parse(name).is_some_and(|name| name.slices.is_some());
                let mode = placement.map_or_else(
                    || if name.as_ref().is_some_and(is_sliced) { ShareMode::Mig } else { ShareMode::Vgpu },
                    |placement| placement.mode,
                );
                found.push(Instance {
                    id: uuid.clone(),
                    vgpu_type: name.clone().filter(|_| mode == ShareMode::Mig),
                    type_name: name.unwrap_or_else(|| {
                        type_id.clone().unwrap_or_else(|| "unknown".into()).chars().take(64).collect()
                    }),
                    mode,
                    start: None,
                    virtual_function,
                    gpu_instance: None,
                    owner: None,
                });
            }
        }
        found
    }

    /// How many more the functions can carry that are free and list types.
    fn leave_on_functions(&self, card: &mut Device, free: &[PciAddress]) {
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
            let offers = |address: &PciAddress| {
                let path = format!("{}/mdev_supported_types/{id}/available_instances", self.folder(*address));
                self.tree.line(&path)?.parse::<i32>().ok()
            };
            // The first that offers it tells that it can still be had; none of them, that it cannot.
            let mut offered = None;
            for count in free.iter().filter_map(offers) {
                offered = Some(count);
                if count > 0 {
                    break;
                }
            }
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

    /// Virtual functions that are shares themselves. Where they differ, none is promised more than the
    /// least of them has.
    fn plain_functions(&self, card: &Device) -> Placement {
        let free: Vec<&VirtualFunction> =
            card.virtual_functions.iter().filter(|vf| vf.unavailable.is_none()).collect();
        let count = i32::try_from(free.len()).unwrap_or(i32::MAX);
        let memory = free.iter().map(|vf| self.function_memory_mib(card, vf).unwrap_or(0));
        Placement::new(format!("{count}VF"), ShareMode::VirtualFunctions, memory.min().unwrap_or(0), count)
    }

    /// Memory of a virtual function as the host driver tells it: i915's and xe's quota, or what amdgpu
    /// tells of the function itself.
    fn function_memory_mib(&self, card: &Device, function: &VirtualFunction) -> Option<i64> {
        // The host driver counts its functions from 1.
        let position = function.index + 1;
        let own = self.folder(card.pci_address);
        let number = |path: &str| self.tree.line(path)?.parse::<i64>().ok();
        let bytes = match card.driver.as_deref() {
            // Intel's own i915: one quota per tile, `gt` or `gt0`, `gt1`.
            Some("i915") => self.drm_card(&own).and_then(|drm| {
                ["iov", "prelim_iov"].iter().find_map(|iov| {
                    let folder = format!("{drm}/{iov}/vf{position}");
                    let tiles = self.tree.names(&folder, |name| name.starts_with("gt"));
                    tiles
                        .iter()
                        .filter_map(|tile| number(&format!("{folder}/{tile}/lmem_quota")))
                        .reduce(i64::saturating_add)
                })
            }),
            Some("xe") => number(&format!("{own}/sriov_admin/vf{position}/profile/vram_quota")),
            _ => number(&format!("{}/mem_info_vram_total", self.folder(function.pci_address))),
        };
        bytes.filter(|bytes| *bytes > 0).map(|bytes| bytes >> 20)
    }
}

/// What nobody offers and what exists is a type of the card all the same, of which no more can be made.
/// A function that another driver holds carries no vGPU.
pub(super) fn finish(card: &mut Device) {
    let on_functions = matches!(card.framework, Some(Framework::VendorVfio | Framework::Mdev));
    for function in card.virtual_functions.iter_mut().filter(|_| on_functions) {
        if let Some(driver) = function.driver.as_deref().filter(|driver| driver.contains("vfio")) {
            let why = format!("{driver} holds it, so no vGPU can be made on it");
            function.unavailable.get_or_insert(why);
        }
    }
    for instance in card.instances.iter().filter(|_| on_functions) {
        if card.placements.iter().all(|placement| placement.type_name != instance.type_name) {
            let mut placement = match vgpu_type::parse(&instance.type_name) {
                Some(name) => vgpu_type::placement(&name, &instance.type_name),
                None => Placement {
                    driver_id: Some(instance.type_name.clone()),
                    ..Placement::new(instance.type_name.clone(), instance.mode, 0, 0)
                },
            };
            placement.available = Some(0);
            card.placements.push(placement);
        }
    }
    card.placements.truncate(SHARES);
    card.instances.truncate(SHARES);
}

/// The kind of a card, by which types are remembered.
pub(super) fn kind_of(card: &Device) -> String {
    format!("{}:{}", card.vendor_id, card.device_id)
}
