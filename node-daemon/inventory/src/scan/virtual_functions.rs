//! Virtual functions: which there are, and what holds them.

use gpudesk_crds::{gpu_node_status::VirtualFunction, types::PciAddress};

use super::{Scanner, functions::Function};
use crate::topology::{iommu, pci};

impl Scanner {
    /// How many virtual functions of a function are switched on: as many as it has links to. The kernel takes the lock of
    /// the device to read the number, and whoever changes that or the driver has it for as long as a user is waited for.
    pub(super) fn functions_on(&self, folder: &str) -> u16 {
        if self.tree.exists(&format!("{folder}/sriov_totalvfs")) {
            let links = self.tree.names(folder, |name| name == "subsystem" || name.starts_with("virtfn"));
            if links.iter().any(|name| name == "subsystem") {
                return u16::try_from(links.len() - 1).unwrap_or(u16::MAX);
            }
        }
        // A copy without links.
        self.tree.line(&format!("{folder}/sriov_numvfs")).and_then(|line| line.parse().ok()).unwrap_or(0)
    }

    /// The virtual functions of a function, in their order.
    pub(super) fn virtual_addresses(&self, folder: &str) -> Vec<PciAddress> {
        let number =
            |file: &str| self.tree.line(&format!("{folder}/{file}")).and_then(|line| line.parse().ok());
        let count = u32::from(self.functions_on(folder).min(256));
        let address = |index: u32| self.tree.link_name(&format!("{folder}/virtfn{index}"))?.parse().ok();
        let found: Vec<PciAddress> = (0..count).filter_map(address).collect();
        if count == 0 || !found.is_empty() {
            return found;
        }
        // Without the links, the function itself says where its virtual functions are.
        let own = folder.rsplit('/').next().and_then(|name| name.parse().ok());
        let Some(((own, offset), stride)) = own.zip(number("sriov_offset")).zip(number("sriov_stride"))
        else {
            return found;
        };
        let there = (0..count).filter_map(|index| pci::virtual_address(own, offset, stride, index));
        there.filter(|address| self.tree.exists(&self.folder(*address))).collect()
    }

    /// Functions that can only be virtual ones of the function at `own`, where it says how many are on and
    /// neither it nor they say which: the next ones with its ids that have none themselves.
    pub(super) fn look_like_functions_of(
        &self,
        own: PciAddress,
        folder: &str,
        all: &[PciAddress],
    ) -> Vec<PciAddress> {
        let count = Some(self.functions_on(folder)).filter(|count| *count <= 256).map_or(0, usize::from);
        if count == 0 {
            return vec![];
        }
        let id = |folder: &str, file: &str| pci::id(&self.tree.text(&format!("{folder}/{file}"))?);
        let stated = self.tree.line(&format!("{folder}/sriov_vf_device"));
        let device = stated.and_then(|line| pci::id(&format!("0x{line}"))).or_else(|| id(folder, "device"));
        let vendor = id(folder, "vendor");
        let is_one = |address: &&PciAddress| {
            let other = self.folder(**address);
            id(&other, "vendor") == vendor
                && id(&other, "device") == device
                && !self.tree.exists(&format!("{other}/sriov_totalvfs"))
                && !self.tree.exists(&format!("{other}/physfn"))
        };
        let later = all.iter().filter(|address| address.domain == own.domain && **address > own);
        later
            .take_while(|address| address.bus <= own.bus.saturating_add(2))
            .filter(is_one)
            .take(count)
            .copied()
            .collect()
    }

    /// The virtual functions of a card or device that are switched on: those that it lists, and those that
    /// name it.
    pub(super) fn virtual_functions(&self, function: &Function<'_>, own: PciAddress) -> Vec<VirtualFunction> {
        let on = function.sriov.is_some_and(|sriov| sriov.num_vfs > 0);
        let mut addresses = if on { self.virtual_addresses(function.dir.path()) } else { vec![] };
        for unlisted in self.unlisted.get(&own).into_iter().flatten() {
            if !addresses.contains(unlisted) {
                addresses.push(*unlisted);
            }
        }
        addresses.truncate(256);
        // All virtual functions of a function have the same ids.
        let id_of =
            |address: &PciAddress| pci::id(&self.tree.text(&format!("{}/device", self.folder(*address)))?);
        let device_id = (function.dir.line("sriov_vf_device"))
            .and_then(|line| pci::id(&format!("0x{line}")))
            .or_else(|| addresses.iter().find_map(id_of))
            .filter(|id| *id != function.device_id);
        let found = addresses.iter().zip(0..).map(|(address, index)| {
            let mut vf = VirtualFunction {
                pci_address: *address,
                index,
                device_id: device_id.clone(),
                driver: None,
                iommu_group: None,
                unavailable: None,
            };
            self.refresh_function(&mut vf);
            vf
        });
        found.collect()
    }

    /// Driver and IOMMU group of a virtual function.
    pub(super) fn refresh_function(&self, vf: &mut VirtualFunction) {
        // A whole pass has just looked; otherwise it is looked at now.
        let known = self.bound.get(&vf.pci_address).cloned();
        let (driver, group) = known.unwrap_or_else(|| {
            let dir = self.tree.dir(&self.folder(vf.pci_address));
            dir.map_or((None, None), |dir| (dir.link_name("driver"), self.group_in(&dir, vf.pci_address)))
        });
        vf.driver = driver.or_else(|| self.copied_driver(&self.folder(vf.pci_address)));
        vf.iommu_group = group;
        vf.unavailable = vf.iommu_group.and_then(|group| self.shared_group(vf.pci_address, group));
    }

    /// Why a virtual function cannot be given away alone.
    fn shared_group(&self, address: PciAddress, group: i32) -> Option<String> {
        let members = self.groups.get(&group)?;
        if members.len() < 2 {
            return None;
        }
        let others = members.iter().filter(|member| **member != address).map(|member| self.member(*member));
        let group = iommu::judge(group, address, others.collect(), |_| false);
        group.message
    }
}
