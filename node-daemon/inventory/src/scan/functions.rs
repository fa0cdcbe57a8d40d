//! PCI functions: which there are, and what is the same for all kinds of them.

use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::{
    gpu_node_status::{GroupMember, IommuGroup, PcieLink, Sriov},
    types::PciAddress,
};

use super::{CARDS, HOST_DEVICES, Scanner};
use crate::{
    topology::{
        HostFacts, iommu,
        pci::{self, FunctionKind},
    },
    tree::{Dir, Tree},
};

/// Where the kernel lists all functions.
const DEVICES: &str = "sys/bus/pci/devices";
/// Where the kernel lists the functions that carry mediated devices.
const MDEV_BUS: &str = "sys/class/mdev_bus";
/// NVIDIA's switches between cards are bridges of class 0680 by these device ids (pci.ids).
const NVSWITCHES: [&str; 4] = ["1ac2", "1af1", "22a3", "22a4"];
/// Where the kernel lists the IOMMU groups.
const GROUPS: &str = "sys/kernel/iommu_groups";
/// How deep bridges stand below each other, where functions must be searched for.
const DEPTH: usize = 12;

/// What is the same for cards, network cards and drives.
pub(super) struct Function<'a> {
    pub(super) dir: Dir<'a>,
    pub(super) class: String,
    pub(super) vendor_id: String,
    pub(super) device_id: String,
    pub(super) subsystem: Option<String>,
    pub(super) numa_cell: Option<i32>,
    pub(super) driver: Option<String>,
    pub(super) root_complex: Option<String>,
    pub(super) pcie_path: Vec<PciAddress>,
    pub(super) link: Option<PcieLink>,
    pub(super) reset_methods: Vec<String>,
    pub(super) sriov: Option<Sriov>,
}

impl Scanner {
    /// Where the files of a function are.
    pub(super) fn folder(&self, address: PciAddress) -> String {
        self.elsewhere.get(&address).cloned().unwrap_or_else(|| format!("{DEVICES}/{address}"))
    }

    /// Every function of the host, in order of addresses.
    pub(super) fn functions(&mut self, facts: &mut HostFacts) {
        let is_address = |name: &str| name.parse::<PciAddress>().is_ok();
        let names = self.tree.names(DEVICES, is_address);
        let mut addresses: Vec<PciAddress> = names.iter().filter_map(|name| name.parse().ok()).collect();
        self.elsewhere.clear();
        if addresses.is_empty() && !self.tree.exists(DEVICES) {
            facts.incomplete.push(format!("PCI devices: {DEVICES} is missing"));
            self.elsewhere = search(&self.tree);
            addresses.extend(self.elsewhere.keys());
        }
        addresses.sort_unstable();
        addresses.dedup();
        self.classes.clear();
        self.groups.clear();
        self.unlisted.clear();
        self.regions.borrow_mut().retain(|address, _| addresses.binary_search(address).is_ok());
        self.resizable.borrow_mut().retain(|address, _| addresses.binary_search(address).is_ok());
        self.copied_groups = self.copied_groups(&addresses);
        self.find_mdevs();
        // A virtual function has a higher address than the function it belongs to.
        let mut virtual_functions = BTreeSet::new();
        let (mut cards, mut devices) = (vec![], vec![]);
        for &address in &addresses {
            let folder = self.folder(address);
            let is_virtual = virtual_functions.contains(&address);
            let (group, driver) = self.tree.dir(&folder).map_or((None, None), |dir| {
                let driver = if is_virtual { dir.link_name("driver") } else { None };
                (self.group_in(&dir, address), driver)
            });
            if let Some(group) = group {
                self.groups.entry(group).or_default().insert(address);
            }
            if is_virtual {
                self.bound.insert(address, (driver, group));
                continue;
            }
            let Some(class) = self.class_of(&folder) else {
                facts.incomplete.push(format!("the class of {address}: {folder}/class is missing"));
                continue;
            };
            let kind = pci::kind(&class);
            let physical = format!("{folder}/physfn");
            if kind != FunctionKind::Other && self.tree.exists(&physical) {
                // Its physical function does not list it, and has it all the same.
                if let Some(parent) = self.tree.link_name(&physical).and_then(|name| name.parse().ok()) {
                    self.unlisted.entry(parent).or_default().push(address);
                }
                continue;
            }
            self.classes.insert(address, class);
            match kind {
                FunctionKind::Card | FunctionKind::NetworkCard | FunctionKind::NvmeDrive => {
                    let listed = self.virtual_addresses(&folder);
                    if listed.is_empty() {
                        let unlisted = self.look_like_functions_of(address, &folder, &addresses);
                        virtual_functions.extend(unlisted.iter().copied());
                        if !unlisted.is_empty() {
                            self.unlisted.insert(address, unlisted);
                        }
                    }
                    virtual_functions.extend(listed);
                    if kind == FunctionKind::Card { cards.push(address) } else { devices.push(address) }
                }
                FunctionKind::Other => {
                    if self.is_nvswitch(address, &folder) {
                        facts.nvswitches.push(address);
                    }
                }
            }
        }
        for (found, most, what) in
            [(&mut cards, CARDS, "cards"), (&mut devices, HOST_DEVICES, "host devices")]
        {
            if found.len() > most {
                facts.incomplete.push(format!("{} {what}: the first {most} are shown", found.len()));
                found.truncate(most);
            }
        }
        for address in cards {
            match self.card(address) {
                Some(card) => facts.cards.push(card),
                None => facts
                    .incomplete
                    .push(format!("the card at {address}: its vendor and device id are missing")),
            }
        }
        self.name_shares(facts);
        facts.host_devices =
            devices.into_iter().filter_map(|address| self.host_device(address, facts)).collect();
        self.bound.clear();
        self.name_all(facts);
    }

    fn class_of(&self, folder: &str) -> Option<String> {
        let class = self.tree.text(&format!("{folder}/class")).and_then(|text| pci::class(&text));
        class.or_else(|| pci::uevent(&self.tree.text(&format!("{folder}/uevent"))?).class)
    }

    pub(super) fn group_in(&self, dir: &Dir<'_>, address: PciAddress) -> Option<i32> {
        let number = dir.link_name("iommu_group").and_then(|name| name.parse().ok());
        number.filter(|group| *group >= 0).or_else(|| self.copied_groups.get(&address).copied())
    }

    /// Some copies of a host hold folders in the place of links. A group's number is told by its members
    /// then.
    fn copied_groups(&self, addresses: &[PciAddress]) -> BTreeMap<PciAddress, i32> {
        let is_copied = |address: &PciAddress| {
            let path = format!("{}/iommu_group", self.folder(*address));
            self.tree.link(&path).is_none() && self.tree.exists(&path)
        };
        if !addresses.first().is_some_and(is_copied) {
            return BTreeMap::new();
        }
        let mut groups = BTreeMap::new();
        for name in self.tree.names(GROUPS, |name| name.parse::<i32>().is_ok()) {
            let members = self
                .tree
                .names(&format!("{GROUPS}/{name}/devices"), |name| name.parse::<PciAddress>().is_ok());
            let members = members.iter().filter_map(|member| member.parse().ok());
            groups.extend(members.zip(std::iter::repeat(name.parse().unwrap_or(0))));
        }
        groups
    }

    /// The driver bound to the function in this folder.
    pub(super) fn driver(&self, folder: &str) -> Option<String> {
        self.tree.link_name(&format!("{folder}/driver")).or_else(|| self.copied_driver(folder))
    }

    /// A folder in the place of the link does not tell the driver's name; the function itself does.
    pub(super) fn copied_driver(&self, folder: &str) -> Option<String> {
        if !self.tree.exists(&format!("{folder}/driver")) {
            return None;
        }
        pci::uevent(&self.tree.text(&format!("{folder}/uevent"))?).driver
    }

    fn is_nvswitch(&self, address: PciAddress, folder: &str) -> bool {
        if self.classes.get(&address).map(String::as_str) != Some("0680") {
            return false;
        }
        let id = |file: &str| self.tree.text(&format!("{folder}/{file}")).and_then(|text| pci::id(&text));
        id("vendor").as_deref() == Some("10de")
            && id("device").is_some_and(|id| NVSWITCHES.contains(&id.as_str()))
    }

    /// What is the same for all kinds; `None` when not even its ids can be read.
    pub(super) fn function(&self, address: PciAddress) -> Option<Function<'_>> {
        let folder = self.folder(address);
        let dir = self.tree.dir(&folder)?;
        let text = |file: &str| dir.text(file);
        let id = |file: &str| pci::id(&text(file)?);
        let (class, ids) = (text("class").and_then(|text| pci::class(&text)), id("vendor").zip(id("device")));
        let spare = if class.is_none() || ids.is_none() {
            text("uevent").map(|text| pci::uevent(&text)).unwrap_or_default()
        } else {
            pci::Uevent::default()
        };
        let (vendor_id, device_id) = ids.or(spare.ids)?;
        let class = class.or(spare.class)?;
        let subsystem = id("subsystem_vendor").zip(id("subsystem_device"));
        // Where the list of all functions is missing, the folder itself says where the function is.
        let link = self.tree.link(&folder).unwrap_or_else(|| folder.clone());
        let total_vfs =
            dir.line("sriov_totalvfs").and_then(|line| line.parse().ok()).filter(|total| *total > 0);
        let link_file = |file: &str| dir.text(file);
        Some(Function {
            class,
            vendor_id,
            device_id,
            subsystem: subsystem.map(|(vendor, device)| format!("{vendor}:{device}")).or(spare.subsystem),
            numa_cell: text("numa_node").and_then(|text| pci::numa_cell(&text)),
            driver: dir.link_name("driver").or_else(|| self.driver(&folder)).or(spare.driver),
            root_complex: pci::root_complex(&link),
            pcie_path: pci::path(&link),
            link: pci::link(
                link_file("current_link_width").and_then(|text| pci::lanes(&text)),
                link_file("max_link_width").and_then(|text| pci::lanes(&text)),
                link_file("current_link_speed").and_then(|text| pci::speed(&text)),
                link_file("max_link_speed").and_then(|text| pci::speed(&text)),
            ),
            reset_methods: match text("reset_method") {
                Some(text) => pci::reset_methods(&text),
                // Kernels before 5.15 choose the method themselves, and tell only whether there is one.
                None if self.tree.exists(&format!("{folder}/reset")) => vec!["default".into()],
                None => vec![],
            },
            sriov: total_vfs.map(|total_vfs: i32| Sriov {
                total_vfs: total_vfs.clamp(0, 65_535),
                num_vfs: i32::from(self.functions_on(&folder)),
            }),
            dir,
        })
    }

    /// The group of a function, judged; `None` without an IOMMU.
    pub(super) fn iommu_group(&self, function: &Function<'_>, address: PciAddress) -> Option<IommuGroup> {
        let id = self.group_in(&function.dir, address)?;
        let is_address = |name: &str| name.parse::<PciAddress>().is_ok();
        let listed = self.tree.names(&format!("{GROUPS}/{id}/devices"), is_address);
        let listed = listed.iter().filter_map(|name| name.parse::<PciAddress>().ok());
        let mut members: BTreeSet<PciAddress> = self.groups.get(&id).cloned().unwrap_or_default();
        members.extend(listed);
        members.remove(&address);
        let members = members.into_iter().map(|member| self.member(member)).collect();
        let is_card =
            |other| self.classes.get(&other).is_some_and(|class| pci::kind(class) == FunctionKind::Card);
        Some(iommu::judge(id, address, members, is_card))
    }

    pub(super) fn member(&self, address: PciAddress) -> GroupMember {
        let folder = self.folder(address);
        GroupMember {
            pci_address: address,
            class: self.classes.get(&address).cloned().or_else(|| self.class_of(&folder)),
            driver: self.driver(&folder),
        }
    }
}

/// The functions of a tree that has not the list of them: below `sys/devices`, or packed from the list of
/// those that carry mediated devices.
fn search(tree: &Tree) -> BTreeMap<PciAddress, String> {
    let is_address = |name: &str| name.parse::<PciAddress>().is_ok();
    let mut found = BTreeMap::new();
    let roots = tree.names("sys/devices", |name| name.starts_with("pci"));
    let mut folders: Vec<(String, usize)> = roots
        .into_iter()
        .map(|name| (format!("sys/devices/{name}"), 0))
        .chain([(MDEV_BUS.into(), DEPTH)])
        .collect();
    while let Some((folder, depth)) = folders.pop() {
        for name in tree.names(&folder, is_address) {
            let Ok(address) = name.parse() else { continue };
            let path = format!("{folder}/{name}");
            if depth < DEPTH && found.len() < 4096 {
                folders.push((path.clone(), depth + 1));
            }
            found.insert(address, path);
        }
    }
    found
}
