//! What a node offers, read once from its `GpuNode`.

use std::collections::BTreeMap;

use gpudesk_crds::{
    GpuNode,
    conditions::{self, ConditionType},
    gpu_node::{DeviceMode, DevicePolicy, Housekeeping, Management, VgpuPlacement},
    gpu_node_status::{Device, HealthState, NumaCell},
    types::{CpuSet, PageSize, PciAddress, ShareMode},
};

/// A node as placement sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    /// Name.
    pub name: String,
    /// Labels of the `GpuNode`.
    pub labels: BTreeMap<String, String>,
    /// Its owner wants no new desktops there.
    pub cordoned: bool,
    /// Whether the daemon says that desktops can run there.
    pub ready: bool,
    /// NUMA cells.
    pub cells: Vec<Cell>,
    /// Cards, in the order of their PCI addresses.
    pub cards: Vec<Card>,
}

/// A NUMA cell, less what the host keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Number.
    pub id: i32,
    /// Cores that may be dedicated, each as its threads.
    pub cores: Vec<CpuSet>,
    /// CPUs of the host, where emulator and I/O threads run.
    pub housekeeping: CpuSet,
    /// All CPUs of the cell.
    pub cpus: i64,
    /// Memory for desktops: of ordinary pages in MiB, of hugepages in pages.
    pub memory: BTreeMap<PageSize, i64>,
}

/// A card and what may be done with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// As the daemon reported it, less the figures that change without meaning.
    pub device: Device,
    /// Why the card is out of use, if it is.
    pub refused: Option<Refused>,
    /// Which modes its owner allows.
    pub mode: DeviceMode,
    /// Whether vGPUs of different size may stand side by side.
    pub mixed: bool,
    /// Positions of the other cards of its IOMMU group in [`NodeFacts::cards`].
    pub group: Vec<usize>,
}

/// Why a card gets no desktops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// Its owner keeps it.
    Unmanaged,
    /// Its health.
    Failed,
    /// A fixed layout, which is not yet supported.
    Layout,
    /// The node says that no desktop can have it: somebody else's machine holds it, say.
    Unavailable,
}

impl NodeFacts {
    /// Reads a node. A node without status offers nothing and is not ready.
    pub fn read(node: &GpuNode) -> Self {
        let status = node.status.clone().unwrap_or_default();
        let housekeeping = node.spec.housekeeping.clone().unwrap_or_default();
        let reserved = status.host.and_then(|host| host.cpus).unwrap_or_default().kubelet_reserved;
        let mut devices = status.devices;
        devices.sort_by_key(|device| device.pci_address);
        let addresses: Vec<PciAddress> = devices.iter().map(|device| device.pci_address).collect();
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            cordoned: node.spec.cordoned,
            ready: conditions::is_true(&status.conditions, ConditionType::Ready),
            cells: status.numa_cells.iter().map(|cell| read_cell(cell, &housekeeping, &reserved)).collect(),
            cards: devices
                .into_iter()
                .map(|device| read_card(device, &addresses, &node.spec.devices))
                .collect(),
        }
    }

    /// The cell of a number.
    pub fn cell(&self, id: i32) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.id == id)
    }

    /// The card that an allocation names: by UUID where both sides have one, for addresses change.
    pub fn card_of(&self, uuid: Option<&str>, address: PciAddress) -> Option<usize> {
        uuid.and_then(|uuid| self.cards.iter().position(|card| card.device.uuid.as_deref() == Some(uuid)))
            .or_else(|| {
                self.cards.iter().position(|card| {
                    card.device.pci_address == address && (uuid.is_none() || card.device.uuid.is_none())
                })
            })
    }

    /// Memory for desktops on all cells: MiB of ordinary pages, or pages of a size.
    pub fn memory(&self, pages: PageSize) -> i64 {
        self.cells.iter().map(|cell| cell.memory.get(&pages).copied().unwrap_or(0)).sum()
    }

    /// All CPUs.
    pub fn cpus(&self) -> i64 {
        self.cells.iter().map(|cell| cell.cpus).sum()
    }
}

/// `reserved` are the CPUs that the kubelet keeps for the system: their cores are housekeeping, and
/// count towards what the owner wants kept.
fn read_cell(cell: &NumaCell, kept: &Housekeeping, reserved: &CpuSet) -> Cell {
    let mut cores = cell.cores.clone();
    cores.sort();
    cores.sort_by_key(|core| core.is_disjoint(reserved));
    let reserved_cores = cores.iter().filter(|core| !core.is_disjoint(reserved)).count();
    let kept_cores =
        usize::try_from(kept.cores_per_numa_cell).unwrap_or(0).max(reserved_cores).min(cores.len());
    let dedicable = cores.split_off(kept_cores);
    let mut memory = BTreeMap::new();
    let mut reserved = 0;
    for pages in &cell.hugepages {
        if let Some(mib) = pages.size.mib() {
            reserved += pages.total.saturating_mul(mib);
            memory.insert(pages.size, pages.total);
        }
    }
    memory.insert(PageSize::None, (cell.memory_mib - reserved - kept.memory_mib_per_numa_cell).max(0));
    Cell {
        id: cell.id,
        cores: dedicable,
        housekeeping: cores.iter().flat_map(CpuSet::iter).collect(),
        cpus: cell.cores.iter().map(|core| i64::try_from(core.len()).unwrap_or(0)).sum(),
        memory,
    }
}

fn read_card(mut device: Device, addresses: &[PciAddress], policies: &[DevicePolicy]) -> Card {
    device.temperature_celsius = None;
    let policy = policies.iter().find(|policy| selects(policy, &device));
    let refused = match policy {
        Some(p) if p.management == Some(Management::Unmanaged) || p.mode == Some(DeviceMode::Host) => {
            Some(Refused::Unmanaged)
        }
        _ if device.health.state == HealthState::Failed => Some(Refused::Failed),
        Some(p) if p.layout.is_some() => Some(Refused::Layout),
        _ if device.unavailable.is_some() => Some(Refused::Unavailable),
        _ => None,
    };
    let members = device.iommu_group.as_ref().map(|group| group.members.as_slice()).unwrap_or_default();
    let is_member = |address: &PciAddress| members.iter().any(|member| member.pci_address == *address);
    let group = addresses
        .iter()
        .enumerate()
        .filter(|(_, address)| **address != device.pci_address && is_member(address))
        .map(|(position, _)| position)
        .collect();
    Card {
        refused,
        mode: policy.and_then(|p| p.mode).unwrap_or_default(),
        mixed: policy.and_then(|p| p.vgpu_placement) == Some(VgpuPlacement::MixedSize),
        group,
        device,
    }
}

fn selects(policy: &DevicePolicy, device: &Device) -> bool {
    let selector = &policy.selector;
    selector.uuid.is_some() && selector.uuid == device.uuid
        || selector.serial.is_some() && selector.serial == device.serial
        || selector.pci_address == Some(device.pci_address)
}

impl Card {
    /// Whether the card works in a mode: said so for whole cards, not denied for shares, which are
    /// offered one by one.
    pub fn supports(&self, mode: ShareMode) -> bool {
        match self.device.supports.iter().find(|support| support.mode == mode) {
            Some(support) => support.supported,
            None => mode != ShareMode::Passthrough,
        }
    }
}
