//! What a node offers, read once from its `GpuNode`.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpudesk_crds::{
    Allocation, GpuNode,
    conditions::{self, ConditionType},
    gpu_node::{GpuNodeSpec, Housekeeping, VgpuScheduler},
    gpu_node_status::{Device, Fabric, HostCpus, HostDevice, HostDeviceKind, NumaCell},
    types::{CpuSet, PageSize, PciAddress},
};

use crate::{
    occupancy::Claim,
    request::DesktopKey,
    shape::{self, Shape},
    state::UsedShare,
};

/// What a node says of itself is not trusted: what no machine has counts as the most that one may have, so
/// that no sum of it is too large to count. An exbibyte of memory, in MiB.
const MOST_MIB: i64 = 1 << 40;
/// A pebibyte of memory on a card, or on a drive.
const MOST_OF_CARD_MIB: i64 = 1 << 30;
/// Positions, lengths and numbers of shares on a card.
pub(crate) const MOST_UNITS: i32 = 1 << 12;
/// vCPUs of one machine.
const MOST_VCPUS: i64 = 1 << 20;

/// Memory of a host as it counts, in MiB or in pages.
pub(crate) fn memory(said: i64) -> i64 {
    said.clamp(0, MOST_MIB)
}

/// Memory of a card or a drive as it counts, in MiB.
pub(crate) fn card_memory(said: i64) -> i64 {
    said.clamp(0, MOST_OF_CARD_MIB)
}

/// A length, a position or a number on a card as it counts.
pub(crate) fn units(said: i32) -> i32 {
    said.clamp(0, MOST_UNITS)
}

/// vCPUs of a machine as they count.
pub(crate) fn vcpus(said: i64) -> i64 {
    said.clamp(0, MOST_VCPUS)
}

/// A node as placement sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    /// Name.
    pub name: Arc<str>,
    /// Labels of the `GpuNode`.
    pub labels: BTreeMap<String, String>,
    /// What its owner says of it.
    pub word: OwnerWord,
    /// Taints: key and value.
    pub taints: Vec<(String, Option<String>)>,
    /// Whether the daemon says that desktops can run there.
    pub ready: bool,
    /// NUMA cells; one copy for servers that were seen one after another.
    pub cells: Arc<[Cell]>,
    /// Cards, in the order of their PCI addresses.
    pub cards: Vec<Card>,
    /// The sets of cards that the NVLink fabric can give to one machine, as positions in `cards`;
    /// empty without such a fabric.
    pub partitions: Vec<Partition>,
    /// Virtual functions of network cards and drives that a desktop may have, by address.
    pub functions: Vec<Function>,
    /// Machines that run there and are not those of allocations to it. What they hold is taken.
    pub strays: Vec<Stray>,
    /// Of some such machines it is not known what they hold.
    pub unknown_strays: bool,
}

/// Whether the owner of a node wants new desktops there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerWord {
    /// Yes.
    Open,
    /// No.
    Cordoned,
    /// It is off.
    OutOfService,
}

/// A machine that no allocation to its node accounts for.
#[derive(Clone, Debug, PartialEq)]
pub struct Stray {
    /// The desktop that it was made for.
    pub owner: DesktopKey,
    /// What it takes.
    pub claim: Claim,
}

/// A NUMA cell, less what the host keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Number.
    pub id: i32,
    /// Cores that may be dedicated, each as its threads.
    pub cores: Vec<CpuSet>,
    /// The same, counted.
    pub whole: FreeCores,
    /// CPUs of the host, where emulator and I/O threads run.
    pub housekeeping: CpuSet,
    /// CPUs of the cell that vCPUs may float on: all but the isolated ones.
    pub cpus: i64,
    /// CPUs that the host's scheduler leaves alone. Only who has CPUs for himself runs there, and there
    /// first.
    pub isolated: CpuSet,
    /// Memory for desktops per size of page, as [`page`] numbers them: MiB of ordinary pages, or
    /// pages.
    pub memory: [i64; 3],
    /// Whether it is the memory of a device, of which no desktop gets anything.
    pub of_device: bool,
}

impl Cell {
    /// CPUs to float on when these are dedicated.
    pub fn shared(&self, dedicated: &CpuSet) -> i64 {
        let lost = dedicated.iter().filter(|cpu| !self.isolated.contains(*cpu)).count();
        self.cpus - i64::try_from(lost).unwrap_or(i64::MAX)
    }
}

/// Cores of which nothing is dedicated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreeCores {
    /// Threads of all of them.
    pub threads: i64,
    /// Those with two threads or more.
    pub pairs: i64,
}

/// A card and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// PCI address.
    pub address: PciAddress,
    /// UUID, where its driver has one.
    pub uuid: Option<String>,
    /// What it has in common with others.
    pub shape: Arc<Shape>,
    /// Its cell, as a position in [`NodeFacts::cells`]; absent when the firmware does not say and
    /// there are several with CPUs, or names one that the host does not have.
    pub cell: Option<usize>,
    /// Positions of the other cards of its IOMMU group.
    pub group: Vec<usize>,
    /// The bridges between the root and the card, root first.
    pub path: Vec<PciAddress>,
    /// Positions of the cards that it reaches by NVLink.
    pub peers: Vec<usize>,
    /// What exists on it.
    pub instances: Vec<Existing>,
    /// How its time-sliced vGPUs share time: by its node's word while some are there, else as its owner wants it.
    pub scheduler: Option<VgpuScheduler>,
}

/// A share that exists on a card, as its node reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// What it takes.
    pub takes: UsedShare,
    /// The desktop that holds it, as `namespace/name`.
    pub owner: Option<String>,
}

/// A set of cards that the fabric can give to one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub id: i32,
    /// Its cards, ascending positions in [`NodeFacts::cards`].
    pub cards: Vec<usize>,
}

/// A function that can be given to a desktop besides cards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its PCI address.
    pub address: PciAddress,
    /// The physical function it belongs to.
    pub parent: Option<PciAddress>,
    /// Its cell, as a position in [`NodeFacts::cells`].
    pub cell: Option<usize>,
    /// What it is.
    pub kind: Provided,
}

/// What a function provides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provided {
    /// A way into these physical networks.
    Networks(Vec<String>),
    /// A drive of so many GiB; 0 when its size is not known.
    Drive(i64),
}

/// The position of a size of page in the tables of memory.
pub fn page(size: PageSize) -> usize {
    match size {
        PageSize::None => 0,
        PageSize::Mi2 => 1,
        PageSize::Gi1 => 2,
    }
}

impl NodeFacts {
    /// Reads a node. A node without status offers nothing and is not ready.
    pub fn read(node: &GpuNode) -> Self {
        let GpuNodeSpec {
            cordoned,
            out_of_service,
            drain: _,
            devices: _,
            housekeeping,
            taints,
            physical_networks,
            // By the one function that reads it.
            nvme_drives: _,
            // Words about single machines and folders are the node's to hear.
            strays: _,
            leftovers: _,
            remove_orphans_before: _,
            adopt_from_cluster: _,
        } = &node.spec;
        let nothing = gpudesk_crds::GpuNodeStatus::default();
        let status = node.status.as_ref().unwrap_or(&nothing);
        let housekeeping = housekeeping.clone().unwrap_or_default();
        let cpus = status.host.as_ref().and_then(|host| host.cpus.clone()).unwrap_or_default();
        let cells: Arc<[Cell]> =
            status.numa_cells.iter().map(|cell| read_cell(cell, &housekeeping, &cpus)).collect();
        let only = only_cell(&status.numa_cells);
        let place = |said: Option<i32>, absent: Option<i32>| match (said, absent) {
            (Some(id), _) => cells.iter().position(|cell| cell.id == id),
            (None, Some(_)) => None,
            (None, None) => only,
        };
        let mut devices: Vec<&Device> = status.devices.iter().collect();
        devices.sort_by_key(|device| device.pci_address);
        let networks = |address: PciAddress| -> Vec<String> {
            let leading = physical_networks.iter().filter(|network| network.devices.contains(&address));
            leading.map(|network| network.name.clone()).collect()
        };
        let mut functions: Vec<Function> = status
            .host_devices
            .iter()
            .flat_map(|device| {
                let cell = place(device.numa_cell, device.absent_numa_cell);
                read_functions(device, &node.spec, &networks, cell)
            })
            .collect();
        functions.sort_by_key(|function| function.address);
        let mut facts = Self {
            name: node.metadata.name.as_deref().unwrap_or_default().into(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            word: match (*out_of_service, *cordoned) {
                (true, _) => OwnerWord::OutOfService,
                (false, true) => OwnerWord::Cordoned,
                (false, false) => OwnerWord::Open,
            },
            taints: taints.iter().map(|taint| (taint.key.clone(), taint.value.clone())).collect(),
            ready: conditions::is_true(&status.conditions, ConditionType::Ready),
            cards: devices.iter().fold(vec![], |mut cards: Vec<Card>, device| {
                let cell = place(device.numa_cell, device.absent_numa_cell);
                let mut card = read_card(device, &devices, &node.spec, cell);
                // Those that are alike share one copy.
                if let Some(alike) = cards.iter().find(|other| other.shape == card.shape) {
                    card.shape = alike.shape.clone();
                }
                cards.push(card);
                cards
            }),
            partitions: read_partitions(status.fabric.as_ref(), &devices),
            cells,
            functions,
            strays: vec![],
            unknown_strays: status.more_strays.is_some(),
        };
        for stray in &status.strays {
            let runs = |made: &&Allocation| made.node == *facts.name && made.compute.is_some();
            match stray.allocation.as_deref().filter(runs) {
                Some(made) => {
                    let owner = DesktopKey::new(&stray.namespace, &stray.name);
                    facts.strays.push(Stray { owner, claim: Claim::of(&facts, made) });
                }
                None => facts.unknown_strays = true,
            }
        }
        facts
    }

    /// Whether its owner wants no new desktops there.
    pub fn is_cordoned(&self) -> bool {
        self.word != OwnerWord::Open
    }

    /// Whether the same is built in: names, labels and UUIDs apart, and what is taken.
    pub fn is_built_as(&self, other: &Self) -> bool {
        let alike = |(one, other): (&Card, &Card)| {
            let Card { address: _, uuid: _, shape, cell, group, path, peers, instances: _, scheduler: _ } =
                one;
            Arc::ptr_eq(shape, &other.shape)
                && (cell, group, path, peers) == (&other.cell, &other.group, &other.path, &other.peers)
        };
        self.cards.len() == other.cards.len()
            && self.cards.iter().zip(&other.cards).all(alike)
            && (Arc::ptr_eq(&self.cells, &other.cells) || self.cells == other.cells)
            && (&self.partitions, &self.functions) == (&other.partitions, &other.functions)
    }

    /// The position of the cell of a number.
    pub fn cell(&self, id: i32) -> Option<usize> {
        self.cells.iter().position(|cell| cell.id == id)
    }

    /// The card that an allocation names: by UUID where both sides have one, for addresses change.
    pub fn card_of(&self, uuid: Option<&str>, address: PciAddress) -> Option<usize> {
        uuid.and_then(|uuid| self.cards.iter().position(|card| card.uuid.as_deref() == Some(uuid))).or_else(
            || {
                let here = |card: &Card| card.address == address && (uuid.is_none() || card.uuid.is_none());
                self.cards.iter().position(here)
            },
        )
    }

    /// Memory for desktops on all cells: MiB of ordinary pages, or pages of a size.
    pub fn memory(&self, pages: PageSize) -> i64 {
        self.cells.iter().map(|cell| cell.memory[page(pages)]).sum()
    }

    /// All CPUs that vCPUs may float on.
    pub fn cpus(&self) -> i64 {
        self.cells.iter().map(|cell| cell.cpus).sum()
    }

    /// The numbers of the cells that memory must be bound to, so that none comes from a device; none
    /// where no cell is a device's.
    pub fn ordinary(&self) -> Vec<i32> {
        if !self.cells.iter().any(|cell| cell.of_device) {
            return vec![];
        }
        self.cells.iter().filter(|cell| !cell.of_device).map(|cell| cell.id).collect()
    }

    /// All isolated CPUs.
    pub fn isolated(&self) -> i64 {
        self.cells.iter().map(|cell| i64::try_from(cell.isolated.len()).unwrap_or(i64::MAX)).sum()
    }
}

/// The CPUs that the kubelet keeps for the system are housekeeping with their cores, and count towards
/// what the owner wants kept. Isolated ones are kept last.
fn read_cell(cell: &NumaCell, kept: &Housekeeping, of_host: &HostCpus) -> Cell {
    let HostCpus { online: _, offline: _, isolated, kubelet_reserved: reserved } = of_host;
    let mut cores = cell.cores.clone();
    cores.sort();
    cores.sort_by_key(|core| (core.is_disjoint(reserved), !core.is_disjoint(isolated)));
    let reserved_cores = cores.iter().filter(|core| !core.is_disjoint(reserved)).count();
    let kept_cores =
        usize::try_from(kept.cores_per_numa_cell).unwrap_or(0).max(reserved_cores).min(cores.len());
    let mut dedicable = cores.split_off(kept_cores);
    dedicable.sort_by_key(|core| core.is_disjoint(isolated));
    let mut memory = [0; 3];
    let mut in_hugepages = self::memory(cell.other_hugepages_mib);
    for pages in &cell.hugepages {
        if let Some(mib) = pages.size.mib() {
            let total = self::memory(pages.total);
            in_hugepages = in_hugepages.saturating_add(total.saturating_mul(mib));
            memory[page(pages.size)] = total;
        }
    }
    let ordinary = self::memory(cell.memory_mib).saturating_sub(in_hugepages);
    memory[page(PageSize::None)] = ordinary.saturating_sub(kept.memory_mib_per_numa_cell).max(0);
    if cell.device_memory {
        memory = [0; 3];
    }
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let all = || cell.cores.iter().flat_map(CpuSet::iter);
    let is_isolated = |cpu: &u32| isolated.contains(*cpu);
    Cell {
        id: cell.id,
        whole: FreeCores {
            threads: count(dedicable.iter().map(CpuSet::len).sum()),
            pairs: count(dedicable.iter().filter(|core| core.len() >= 2).count()),
        },
        cores: dedicable,
        housekeeping: cores.iter().flat_map(CpuSet::iter).filter(|cpu| !is_isolated(cpu)).collect(),
        cpus: count(all().filter(|cpu| !is_isolated(cpu)).count()),
        isolated: all().filter(is_isolated).collect(),
        memory,
        of_device: cell.device_memory,
    }
}

/// The position of the only cell with CPUs, in which a device is that says nothing of its cell.
fn only_cell(cells: &[NumaCell]) -> Option<usize> {
    if let [_] = cells {
        return Some(0);
    }
    let mut with_cpus = (0..).zip(cells).filter(|(_, cell)| !cell.cores.is_empty());
    with_cpus.next().filter(|_| with_cpus.next().is_none()).map(|(position, _)| position)
}

fn read_card(device: &Device, all: &[&Device], spec: &GpuNodeSpec, cell: Option<usize>) -> Card {
    let rule = spec.rule_for(device, all.iter().copied());
    let shape = Shape::read(device, rule.as_ref().map(|rule| &rule.policy));
    let members = device.iommu_group.as_ref().map(|group| group.members.as_slice()).unwrap_or_default();
    let others = |is: &dyn Fn(&Device) -> bool| -> Vec<usize> {
        let numbered = all.iter().enumerate();
        let wanted = numbered.filter(|(_, other)| other.pci_address != device.pci_address && is(other));
        wanted.map(|(position, _)| position).collect()
    };
    let in_group = |other: &Device| members.iter().any(|member| member.pci_address == other.pci_address);
    let is_peer = |other: &Device| other.uuid.as_ref().is_some_and(|uuid| device.nvlink_peers.contains(uuid));
    let instances = device.instances.iter().map(|instance| {
        let kind = shape.kind_of(instance.mode, &instance.type_name);
        let vgpu = instance.vgpu_type.as_ref().and_then(|name| {
            let position = shape.kind(kind?)?.backed.iter().position(|vgpu| vgpu.name == *name)?;
            u16::try_from(position).ok()
        });
        Existing {
            takes: UsedShare { mode: instance.mode, start: instance.start, kind, vgpu, scheduler: None },
            owner: instance.owner.clone(),
        }
    });
    let mut instances: Vec<Existing> = instances.collect();
    // Those with a known position, owner and vGPU first: the others take what is left.
    instances.sort_by_key(|found| {
        let UsedShare { mode: _, start, kind: _, vgpu, scheduler: _ } = found.takes;
        (start.is_none(), found.owner.is_none(), vgpu.is_none(), found.takes, found.owner.clone())
    });
    let told = device.vgpu.as_ref().and_then(|vgpu| shape::scheduler(vgpu.scheduler.as_ref()?));
    let wanted = shape.schedulers.rule.filter(|_| instances.is_empty());
    Card {
        address: device.pci_address,
        uuid: device.uuid.clone(),
        scheduler: wanted.or(told),
        cell,
        group: others(&in_group),
        path: device.pcie_path.clone(),
        peers: others(&is_peer),
        instances,
        shape: Arc::new(shape),
    }
}

/// The partitions whose cards are all here.
fn read_partitions(fabric: Option<&Fabric>, devices: &[&Device]) -> Vec<Partition> {
    let of_module = |id: &i32| devices.iter().position(|device| device.module_id == Some(*id));
    let partitions = fabric.map(|fabric| fabric.partitions.as_slice()).unwrap_or_default();
    let whole = partitions.iter().filter_map(|partition| {
        let mut cards: Vec<usize> = partition.module_ids.iter().map(of_module).collect::<Option<_>>()?;
        cards.sort_unstable();
        Some(Partition { id: partition.id, cards })
    });
    whole.collect()
}

fn read_functions(
    device: &HostDevice,
    spec: &GpuNodeSpec,
    networks: &dyn Fn(PciAddress) -> Vec<String>,
    cell: Option<usize>,
) -> Vec<Function> {
    match device.kind {
        // One without a size is not the host's again yet: what a desktop left on it is still to be erased.
        HostDeviceKind::NvmeDrive
            if device.usable && device.size_mib.is_some() && spec.drive_erase(device).is_ok() =>
        {
            let gib = card_memory(device.size_mib.unwrap_or(0)) / 1024;
            vec![Function { address: device.pci_address, parent: None, cell, kind: Provided::Drive(gib) }]
        }
        HostDeviceKind::NvmeDrive => vec![],
        HostDeviceKind::NetworkCard => {
            let reached = networks(device.pci_address);
            if reached.is_empty() {
                return vec![];
            }
            let free = device.virtual_functions.iter().filter(|function| function.unavailable.is_none());
            free.map(|function| Function {
                address: function.pci_address,
                parent: Some(device.pci_address),
                cell,
                kind: Provided::Networks(reached.clone()),
            })
            .collect()
        }
    }
}
