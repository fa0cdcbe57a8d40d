//! Network cards and drives of a simulated host.

use gpudesk_crds::gpu_node_status::{HostDevice, HostDeviceKind, Sriov};

use super::{
    HostFileError,
    card::{address, full_link, root_bus, root_complex},
    catalogue::{self, Catalogue},
    host_file::{HostDevices, HostFile, within},
};
use crate::topology::iommu;

/// Buses after a cell's root on which its network cards and its drives are.
const BUSES: [(HostDeviceKind, i32); 2] = [(HostDeviceKind::NetworkCard, 6), (HostDeviceKind::NvmeDrive, 7)];
/// Number of the IOMMU group of the first.
const FIRST_GROUP: i32 = 200;

impl HostFile {
    /// # Errors
    /// Unknown models, and more on one socket than its bus has room for.
    pub(super) fn host_devices(&self, catalogue: &Catalogue) -> Result<Vec<HostDevice>, HostFileError> {
        let mut found = vec![];
        for (kind, bus) in BUSES {
            let (devices, field): (&[HostDevices], _) = match kind {
                HostDeviceKind::NetworkCard => (&self.network_cards, "networkCards[].count on one socket"),
                HostDeviceKind::NvmeDrive => (&self.nvme_drives, "nvmeDrives[].count on one socket"),
            };
            let mut number = 0;
            let mut on_cell = vec![0; usize::try_from(self.sockets).unwrap_or(1)];
            for entry in devices {
                let model = catalogue.host_device(kind, &entry.model)?;
                for place in 0..entry.count {
                    let named =
                        usize::try_from(place).ok().and_then(|place| entry.numa_cells.get(place).copied());
                    let cell = named.unwrap_or(place % self.sockets);
                    let Some(device_number) =
                        usize::try_from(cell).ok().and_then(|cell| on_cell.get_mut(cell))
                    else {
                        continue;
                    };
                    within(field, i64::from(*device_number) + 1, 0, 32)?;
                    let root = root_bus(cell, self.sockets);
                    let pci_address = address(root + bus, *device_number, 0);
                    *device_number += 1;
                    let name = match kind {
                        HostDeviceKind::NetworkCard => format!("ens{}", number + 1),
                        HostDeviceKind::NvmeDrive => format!("nvme{number}n1"),
                    };
                    let group = FIRST_GROUP + i32::try_from(found.len()).unwrap_or_default();
                    number += 1;
                    let message = if place < entry.in_use {
                        Some(match kind {
                            HostDeviceKind::NetworkCard => {
                                format!(
                                    "the host uses its interface {name}: take it down, or choose another card"
                                )
                            }
                            HostDeviceKind::NvmeDrive => format!("the host has /dev/{name} mounted at /"),
                        })
                    } else {
                        (!self.iommu).then(|| {
                            "the kernel shows no IOMMU groups: see the condition IommuEnabled".into()
                        })
                    };
                    let (vendor_id, device_id) = catalogue::ids(&model.pci_id);
                    let functions = model.virtual_functions;
                    found.push(HostDevice {
                        pci_address,
                        kind,
                        class: model.class.clone(),
                        vendor_id: vendor_id.into(),
                        device_id: device_id.into(),
                        subsystem: None,
                        product: model.model.clone(),
                        names: vec![name],
                        size_mib: model.size_mib,
                        usable: message.is_none(),
                        message,
                        numa_cell: Some(cell),
                        absent_numa_cell: None,
                        iommu_group: self.iommu.then(|| iommu::judge(group, pci_address, vec![], |_| false)),
                        root_complex: Some(root_complex(root)),
                        pcie_path: vec![address(root, 31, if bus == 6 { 6 } else { 7 })],
                        link: Some(full_link(model.link)),
                        driver: Some(model.driver.clone()),
                        reset_methods: model.reset_methods.clone(),
                        sriov: (functions > 0).then_some(Sriov { total_vfs: functions, num_vfs: 0 }),
                        virtual_functions: vec![],
                        serial: None,
                        last_reset: None,
                        last_erase: None,
                    });
                }
            }
        }
        found.sort_by_key(|device| device.pci_address);
        Ok(found)
    }
}
