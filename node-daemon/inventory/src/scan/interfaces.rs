//! Interfaces of network cards and of their virtual functions, and whether the host needs them.

use gpudesk_crds::types::PciAddress;

use super::Scanner;

/// The flag "up" of an interface (`IFF_UP` in the kernel's `if.h`).
const UP: u32 = 1;

impl Scanner {
    /// Where a function's network interfaces are: below it, or below the virtio device on it.
    fn interface_folders(&self, address: PciAddress) -> Vec<String> {
        let folder = self.folder(address);
        let mut folders = vec![format!("{folder}/net")];
        let virtio = self.tree.names(&folder, |name| name.starts_with("virtio"));
        folders.extend(virtio.into_iter().map(|name| format!("{folder}/{name}/net")));
        folders
    }

    /// Names of a function's interfaces, as far as they are in the network namespace that is seen.
    pub(super) fn interfaces(&self, address: PciAddress) -> Vec<String> {
        let folders = self.interface_folders(address);
        let mut names: Vec<String> =
            folders.iter().flat_map(|folder| self.tree.names(folder, |_| true)).collect();
        names.truncate(64);
        names
    }

    /// Why the host itself needs a card: one of its interfaces is up, or part of a bond or bridge.
    pub(super) fn card_in_use(&self, address: PciAddress) -> Option<String> {
        let name = self.active_interface(address)?;
        Some(format!("the host uses its interface {name}: take it down, or choose another card"))
    }

    /// Why the host or a container needs a function at this moment.
    pub fn function_now(&self, address: PciAddress) -> Option<String> {
        self.function_in_use(address, self.driver(&self.folder(address)).as_deref())
    }

    /// Why the host itself, or a container on it, needs a virtual function of a network card.
    ///
    /// A function whose driver shows no interface has it where it cannot be seen: in the network
    /// namespace of a container, or in a program that drives the function itself.
    pub(super) fn function_in_use(&self, address: PciAddress, driver: Option<&str>) -> Option<String> {
        let driver = driver.filter(|driver| !driver.contains("vfio") && *driver != "pci-stub")?;
        if let Some(name) = self.active_interface(address) {
            return Some(format!(
                "the host uses its interface {name}: take it down, or choose another function"
            ));
        }
        let vdpa = self.tree.names(&self.folder(address), |name| name.starts_with("vdpa"));
        if let Some(device) = vdpa.first() {
            return Some(format!("the host's {device} is on it"));
        }
        // An InfiniBand function needs none.
        let class = self.tree.line(&format!("{}/class", self.folder(address)));
        let is_infiniband = class.is_some_and(|class| class.starts_with("0x0207"));
        (!is_infiniband && self.interfaces(address).is_empty()).then(|| {
            format!("its driver {driver} shows no interface here, so a container or a program may have it")
        })
    }

    fn active_interface(&self, address: PciAddress) -> Option<String> {
        let folders = self.interface_folders(address);
        let found = folders.iter().flat_map(|folder| {
            self.tree.names(folder, |_| true).into_iter().map(move |name| (format!("{folder}/{name}"), name))
        });
        let told: Vec<(String, Option<bool>)> =
            found.map(|(folder, name)| (name, self.is_active(&folder))).collect();
        let of = |wanted| told.iter().find(|(_, active)| *active == wanted).map(|(name, _)| name.clone());
        // One of which nothing is told may be in use.
        of(Some(true)).or_else(|| of(None))
    }

    /// Whether an interface is up, or others stand on it: a bond, a bridge, a VLAN. `None` when nothing is
    /// told of it.
    fn is_active(&self, folder: &str) -> Option<bool> {
        let flags = self.tree.line(&format!("{folder}/flags"));
        let flags = flags.and_then(|line| u32::from_str_radix(line.strip_prefix("0x")?, 16).ok());
        let state = self.tree.line(&format!("{folder}/operstate"));
        let is_part = || {
            self.tree.exists(&format!("{folder}/master"))
                || !self.tree.names(folder, |name| name.starts_with("upper_")).is_empty()
        };
        let is_up = flags.is_some_and(|flags| flags & UP != 0)
            || state.as_ref().is_some_and(|state| !matches!(state.as_str(), "down" | "notpresent"));
        if is_up || is_part() { Some(true) } else { (flags.is_some() || state.is_some()).then_some(false) }
    }
}
