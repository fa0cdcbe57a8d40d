//! Reads what the kernel says of the machine, below a root folder, so that a test can give another.
#![expect(clippy::disallowed_methods, reason = "adapter: reads sysfs and procfs")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use gpudesk_crds::{
    gpu_node_status::{Device, Health, Hugepages, IommuGroup, NumaCell},
    types::{CpuSet, PciAddress},
};

use crate::topology::{HostFacts, cpu, memory, pci, pci_ids};

/// Where `pci.ids` is, in the order of preference.
const PCI_IDS: [&str; 3] = ["usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "var/lib/pciutils/pci.ids"];

/// The facts of the machine whose root folder is `root` (`/` for this one).
///
/// What cannot be read is named in `incomplete` and left out; nothing else fails.
pub fn read(root: &Path) -> HostFacts {
    let machine = Machine { root: root.to_owned() };
    let mut facts = HostFacts {
        kernel: machine.line("proc/sys/kernel/osrelease"),
        cpu_model: machine.text("proc/cpuinfo").and_then(|text| cpu::model(&text)),
        board: machine
            .line("sys/class/dmi/id/board_name")
            .or_else(|| machine.line("sys/class/dmi/id/product_name")),
        iommu_groups: machine.names("sys/kernel/iommu_groups").len(),
        ..HostFacts::default()
    };
    machine.numa_cells(&mut facts);
    machine.cards(&mut facts);
    facts
}

struct Machine {
    root: PathBuf,
}

impl Machine {
    fn text(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.root.join(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn line(&self, path: &str) -> Option<String> {
        let text = self.text(path)?;
        let line = text.trim();
        (!line.is_empty()).then(|| line.chars().take(128).collect())
    }

    /// Names in a folder, sorted; none when there is no such folder.
    fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The last part of where a symbolic link points.
    fn link_name(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.root.join(path)).ok()?;
        target.file_name()?.to_str().map(Into::into)
    }

    fn numa_cells(&self, facts: &mut HostFacts) {
        let online: Option<CpuSet> =
            self.text("sys/devices/system/cpu/online").and_then(|text| text.trim().parse().ok());
        let Some(online) = online else {
            facts.incomplete.push("the list of CPUs that are online could not be read".into());
            return;
        };
        let mut cells: Vec<i32> = (self.names("sys/devices/system/node").iter())
            .filter_map(|name| name.strip_prefix("node")?.parse().ok())
            .collect();
        cells.sort_unstable();
        if cells.is_empty() {
            // A kernel without NUMA: one cell with everything.
            let memory = self.text("proc/meminfo").and_then(|text| memory::meminfo_kib(&text, "MemTotal"));
            let hugepages = self.hugepages("sys/kernel/mm/hugepages");
            facts.numa_cells.push(self.cell(0, &online, memory, hugepages, vec![10]));
        }
        for id in cells {
            let folder = format!("sys/devices/system/node/node{id}");
            let cpus: Option<CpuSet> =
                self.text(&format!("{folder}/cpulist")).and_then(|text| text.trim().parse().ok());
            let Some(cpus) = cpus else {
                facts.incomplete.push(format!("the CPUs of NUMA cell {id} could not be read"));
                continue;
            };
            let online = cpus.iter().filter(|cpu| online.contains(*cpu)).collect();
            let memory = (self.text(&format!("{folder}/meminfo")))
                .and_then(|text| memory::meminfo_kib(&text, "MemTotal"));
            let distances = self.text(&format!("{folder}/distance")).and_then(|text| cpu::distances(&text));
            let hugepages = self.hugepages(&format!("{folder}/hugepages"));
            facts.numa_cells.push(self.cell(id, &online, memory, hugepages, distances.unwrap_or_default()));
        }
        for cell in facts.numa_cells.iter().filter(|cell| cell.memory_mib == 0 && !cell.cores.is_empty()) {
            facts.incomplete.push(format!("NUMA cell {} has CPUs and no memory", cell.id));
        }
    }

    fn cell(
        &self,
        id: i32,
        cpus: &CpuSet,
        memory_kib: Option<i64>,
        hugepages: Vec<Hugepages>,
        distances: Vec<i32>,
    ) -> NumaCell {
        let siblings = |cpu| {
            let path = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            self.text(&path).and_then(|text| text.trim().parse().ok())
        };
        NumaCell {
            id,
            cores: cpu::cores(cpus, siblings),
            memory_mib: memory_kib.unwrap_or_default() / 1024,
            hugepages,
            distances,
        }
    }

    fn hugepages(&self, folder: &str) -> Vec<Hugepages> {
        let names = self.names(folder);
        let pages = names.iter().filter_map(|name| {
            let count =
                |file| self.text(&format!("{folder}/{name}/{file}")).and_then(|text| memory::count(&text));
            let total = count("nr_hugepages").filter(|total| *total > 0)?;
            let free = count("free_hugepages");
            Some(Hugepages { size: memory::hugepage_size(name)?, total, free })
        });
        pages.collect()
    }

    fn cards(&self, facts: &mut HostFacts) {
        for name in self.names("sys/bus/pci/devices") {
            let Ok(address) = name.parse::<PciAddress>() else { continue };
            let folder = format!("sys/bus/pci/devices/{name}");
            let class = self.text(&format!("{folder}/class")).unwrap_or_default();
            // A virtual function belongs to its card and is no card.
            if !pci::is_card(&class) || self.root.join(&folder).join("physfn").exists() {
                continue;
            }
            if let Some(card) = self.card(address, &folder) {
                if self.text(&format!("{folder}/boot_vga")).is_some_and(|text| text.trim() == "1") {
                    facts.boot_displays.push(address);
                }
                facts.cards.push(card);
            } else {
                facts
                    .incomplete
                    .push(format!("vendor and device of the card at {address} could not be read"));
            }
        }
        facts.cards.sort_by_key(|card| card.pci_address);
        self.name_products(&mut facts.cards);
    }

    fn card(&self, address: PciAddress, folder: &str) -> Option<Device> {
        let text = |file: &str| self.text(&format!("{folder}/{file}"));
        let vendor_id = pci::id(&text("vendor")?)?;
        let device_id = pci::id(&text("device")?)?;
        let link = fs::read_link(self.root.join(folder)).ok();
        let link = link.as_deref().and_then(Path::to_str).unwrap_or_default();
        Some(Device {
            pci_address: address,
            product: format!("{vendor_id}:{device_id}"),
            vendor_id,
            device_id,
            uuid: None,
            serial: None,
            numa_cell: text("numa_node").and_then(|text| pci::numa_cell(&text)),
            iommu_group: self.iommu_group(address, folder),
            pcie_path: pci::path(link),
            nvlink_peers: vec![],
            driver: self.link_name(&format!("{folder}/driver")),
            bars: text("resource").map(|text| pci::bars(&text)).unwrap_or_default(),
            reset_methods: text("reset_method").map(|text| pci::reset_methods(&text)).unwrap_or_default(),
            memory_mib: None,
            temperature_celsius: None,
            health: Health::default(),
            framework: None,
            supports: vec![],
            units: None,
            placements: vec![],
            instances: vec![],
        })
    }

    fn iommu_group(&self, address: PciAddress, folder: &str) -> Option<IommuGroup> {
        let id = self.link_name(&format!("{folder}/iommu_group"))?.parse().ok()?;
        let members = (self.names(&format!("{folder}/iommu_group/devices")).iter())
            .filter_map(|name| name.parse().ok())
            .filter(|member| *member != address)
            .take(64)
            .collect();
        Some(IommuGroup { id, members })
    }

    fn name_products(&self, cards: &mut [Device]) {
        if cards.is_empty() {
            return;
        }
        let Some(text) = PCI_IDS.iter().find_map(|path| self.text(path)) else { return };
        let ids = |card: &Device| (card.vendor_id.clone(), card.device_id.clone());
        let wanted: BTreeSet<_> = cards.iter().map(ids).collect();
        let products = pci_ids::products(&text, &wanted);
        for card in cards {
            if let Some(product) = products.get(&ids(card)) {
                card.product.clone_from(product);
            }
        }
    }
}
