//! Network cards and NVMe drives.

use gpudesk_crds::{
    gpu_node_status::{HostDevice, HostDeviceKind, VirtualFunction},
    types::PciAddress,
};

use super::{Scanner, functions::Function};
use crate::topology::{
    HostFacts,
    pci::{self, FunctionKind},
    supports,
};

impl Scanner {
    /// A network card or drive, without its name; `None` when it is gone.
    pub(super) fn host_device(&self, address: PciAddress, facts: &HostFacts) -> Option<HostDevice> {
        let function = self.function(address)?;
        let kind = match pci::kind(&function.class) {
            FunctionKind::NetworkCard => HostDeviceKind::NetworkCard,
            FunctionKind::NvmeDrive => HostDeviceKind::NvmeDrive,
            FunctionKind::Card | FunctionKind::Other => return None,
        };
        let (names, size_mib, message, serial) = match kind {
            HostDeviceKind::NetworkCard => (self.interfaces(address), None, self.card_in_use(address), None),
            HostDeviceKind::NvmeDrive => {
                let drive = self.drive(address);
                let in_use = self.drive_in_use(&drive, function.driver.as_deref());
                let in_use = in_use.or_else(|| self.drive_holds(&drive));
                (drive.names(), self.drive_mib(&drive), in_use, self.drive_serial(address, &drive))
            }
        };
        let iommu_group = self.iommu_group(&function, address);
        let message = message.or_else(|| supports::behind_a_controller(address));
        let message = message.or_else(|| match &iommu_group {
            Some(group) if !group.viable => Some(supports::not_viable(group)),
            Some(_) => None,
            None if facts.iommu.groups == Some(0) => {
                Some("the kernel shows no IOMMU groups: see the condition IommuEnabled".into())
            }
            None => Some("its IOMMU group is not known".into()),
        });
        let mut virtual_functions = self.virtual_functions(&function, address);
        if kind == HostDeviceKind::NetworkCard {
            for function in &mut virtual_functions {
                self.judge_function(function);
            }
        }
        let message = message.or_else(|| supports::functions_on(function.sriov, virtual_functions.len()));
        let Function {
            dir: _,
            class,
            vendor_id,
            device_id,
            subsystem,
            numa_cell,
            driver,
            root_complex,
            pcie_path,
            link,
            reset_methods,
            sriov,
        } = function;
        let message = message.or_else(|| {
            reset_methods
                .is_empty()
                .then(|| "it has no reset method, so it cannot be cleaned between users".into())
        });
        let message = message.map(sentence);
        Some(HostDevice {
            pci_address: address,
            kind,
            class,
            product: format!("{vendor_id}:{device_id}"),
            vendor_id,
            device_id,
            subsystem,
            names,
            serial,
            size_mib,
            usable: message.is_none(),
            message,
            numa_cell,
            absent_numa_cell: None,
            iommu_group,
            root_complex,
            pcie_path,
            link,
            driver,
            reset_methods,
            sriov,
            virtual_functions,
            last_reset: None,
            last_erase: None,
        })
    }

    /// Whether a virtual function of a network card is free, beside its IOMMU group.
    pub(super) fn judge_function(&self, function: &mut VirtualFunction) {
        let in_use = self.function_in_use(function.pci_address, function.driver.as_deref());
        function.unavailable = in_use.map(sentence).or(function.unavailable.take());
    }
}

/// As much of a sentence as the API takes: paths of mounts and names in it are whatever the host says.
fn sentence(text: String) -> String {
    if text.len() <= 512 { text } else { text.chars().filter(|c| !c.is_control()).take(512).collect() }
}
