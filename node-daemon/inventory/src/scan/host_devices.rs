//! Network cards and NVMe drives.

use gpudesk_crds::{
    gpu_node_status::{HostDevice, HostDeviceKind},
    types::PciAddress,
};

use super::{Scanner, functions::Function};
use crate::topology::{
    HostFacts,
    pci::{self, FunctionKind},
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
        let (names, size_mib) = match kind {
            HostDeviceKind::NetworkCard => (self.interfaces(address), None),
            HostDeviceKind::NvmeDrive => self.namespaces(address),
        };
        let iommu_group = self.iommu_group(&function, address);
        let message = match kind {
            HostDeviceKind::NetworkCard => self.interface_in_use(address, &names),
            HostDeviceKind::NvmeDrive => self.drive_in_use(&names),
        };
        let message = message.or_else(|| match &iommu_group {
            Some(group) if !group.viable => group.message.clone(),
            Some(_) => None,
            None if facts.iommu.groups == Some(0) => {
                Some("the kernel shows no IOMMU groups: see the condition IommuEnabled".into())
            }
            None => Some("its IOMMU group is not known".into()),
        });
        let virtual_functions = self.virtual_functions(&function, &function.device_id);
        let message = message.or_else(|| {
            let on = virtual_functions.len();
            (on > 0).then(|| format!("{on} virtual functions of it are switched on: switch them off first"))
        });
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
            bars: _,
            reset_methods,
            sriov,
        } = function;
        let message = message.or_else(|| {
            reset_methods
                .is_empty()
                .then(|| "it has no reset method, so it cannot be cleaned between users".into())
        });
        Some(HostDevice {
            pci_address: address,
            kind,
            class,
            product: format!("{vendor_id}:{device_id}"),
            vendor_id,
            device_id,
            subsystem,
            names,
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
        })
    }

    /// Where a function's network interfaces are: below it, or below the virtio device on it.
    fn interface_folders(&self, address: PciAddress) -> Vec<String> {
        let folder = self.folder(address);
        let mut folders = vec![format!("{folder}/net")];
        let virtio = self.tree.names(&folder, |name| name.starts_with("virtio"));
        folders.extend(virtio.into_iter().map(|name| format!("{folder}/{name}/net")));
        folders
    }

    fn interfaces(&self, address: PciAddress) -> Vec<String> {
        let folders = self.interface_folders(address);
        let mut names: Vec<String> =
            folders.iter().flat_map(|folder| self.tree.names(folder, |_| true)).collect();
        names.truncate(64);
        names
    }

    /// The namespaces of a drive and their size together in MiB; no size when one of them has none.
    fn namespaces(&self, address: PciAddress) -> (Vec<String>, Option<i64>) {
        let folder = format!("{}/nvme", self.folder(address));
        let controllers = self.tree.names(&folder, |name| name.starts_with("nvme"));
        let is_namespace = |name: &str| {
            let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let parts = name.strip_prefix("nvme").and_then(|rest| rest.split_once('n'));
            // `nvme0c0n1` is one way to a namespace, not the namespace.
            parts.is_some_and(|(controller, namespace)| digits(controller) && digits(namespace))
        };
        let paths: Vec<(String, String)> = controllers
            .iter()
            .map(|name| format!("{folder}/{name}"))
            .flat_map(|folder| {
                let names = self.tree.names(&folder, is_namespace);
                names.into_iter().map(move |name| (format!("{folder}/{name}/size"), name))
            })
            .collect();
        let sectors = paths
            .iter()
            .try_fold(0_u64, |sum, (size, _)| Some(sum.saturating_add(self.tree.line(size)?.parse().ok()?)));
        let size_mib = sectors.filter(|_| !paths.is_empty());
        // The kernel counts in sectors of 512 bytes, whatever those of the drive are.
        let size_mib = size_mib.and_then(|sectors| i64::try_from(sectors / 2048).ok());
        let mut names: Vec<String> = paths.into_iter().map(|(_, name)| name).collect();
        names.truncate(64);
        (names, size_mib)
    }

    fn interface_in_use(&self, address: PciAddress, names: &[String]) -> Option<String> {
        let folders = self.interface_folders(address);
        let is_up = |name: &String| {
            folders.iter().any(|folder| {
                self.tree.line(&format!("{folder}/{name}/operstate")).as_deref() == Some("up")
                    || self.tree.exists(&format!("{folder}/{name}/master"))
            })
        };
        let name = names.iter().find(|name| is_up(name))?;
        Some(format!("the host uses its interface {name}: take it down, or choose another card"))
    }

    fn drive_in_use(&self, names: &[String]) -> Option<String> {
        if names.is_empty() {
            return None;
        }
        // Of the first process: in a container its own mounts are not those of the host.
        let mounts =
            ["proc/1/mounts", "proc/mounts"].iter().find_map(|path| self.tree.text(path)).unwrap_or_default();
        for name in names {
            let device = format!("/dev/{name}");
            if let Some(line) = mounts.lines().find(|line| line.starts_with(&device)) {
                let place = line.split_whitespace().nth(1).unwrap_or("?");
                return Some(format!("the host has {device} mounted at {place}"));
            }
            let holders = self.tree.names(&format!("sys/block/{name}/holders"), |_| true);
            if let Some(holder) = holders.first() {
                return Some(format!("the host's {holder} is on {device}"));
            }
            let is_partition =
                |entry: &str| entry.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('p'));
            let partitions = self.tree.names(&format!("sys/block/{name}"), is_partition);
            if let Some(partition) = partitions.first() {
                return Some(format!(
                    "{device} holds a partition, {partition}: wipe the drive to give it away"
                ));
            }
        }
        None
    }
}
