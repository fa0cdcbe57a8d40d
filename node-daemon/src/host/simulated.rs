//! Simulated hosts: a host file becomes the same facts that a machine gives.

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_status::{Bar, Device, Health, HealthState, Hugepages, IommuGroup, NumaCell},
    types::{CpuSet, PageSize, PciAddress},
};
use jiff::SignedDuration;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use thiserror::Error;
use uuid::Uuid;

use super::catalogue::{CardModel, Catalogue, CatalogueError};
use crate::topology::HostFacts;

/// Why a host file describes no host.
#[derive(Debug, Error)]
pub enum HostFileError {
    /// Not YAML, or not the fields of a host file.
    #[error("the host file cannot be read: {0}")]
    Unreadable(#[from] serde_yaml::Error),
    /// A card that is not known.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// A figure out of range.
    #[error("the host file's {field} is {value}; write {expected}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What it says.
        value: i64,
        /// What would be right.
        expected: String,
    },
    /// `numaCells` does not match the cards.
    #[error("{model}: numaCells names {named} cells for {count} boards")]
    CellCount {
        /// The card.
        model: String,
        /// Cells named.
        named: usize,
        /// Boards.
        count: i32,
    },
}

/// A host file: the machine, and how many of which card are in it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostFile {
    /// Name; the node name when absent. Identities of cards are made from it.
    #[serde(default)]
    pub name: Option<String>,
    /// Cards.
    #[serde(default)]
    pub cards: Vec<Cards>,
    /// Sockets, each a NUMA cell. 1 to 8.
    #[serde(default = "one")]
    pub sockets: i32,
    /// Cores per socket. 1 to 256.
    pub cores_per_socket: i32,
    /// Threads per core. 1 or 2.
    #[serde(default = "one")]
    pub threads_per_core: i32,
    /// Memory of the machine in MiB, divided equally between the sockets.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: i64,
    /// Hugepages reserved on each NUMA cell, per size.
    #[serde(default)]
    pub hugepages: BTreeMap<PageSize, i64>,
    /// How long things take.
    #[serde(default)]
    pub latency: Latency,
    /// Names of images that this host does not have; it has every other.
    #[serde(default)]
    pub missing_images: Vec<String>,
}

/// Equal cards.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cards {
    /// Product name, as in the catalogue.
    pub model: String,
    /// Boards; one board can hold several GPUs.
    pub count: i32,
    /// The NUMA cell of each board; spread in order when absent.
    #[serde(default)]
    pub numa_cells: Vec<i32>,
}

/// How long a simulated host takes. Nothing by default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Latency {
    /// Starting a desktop, for example `0.5s`.
    pub start: Option<SignedDuration>,
    /// Stopping a desktop.
    pub stop: Option<SignedDuration>,
}

/// A host that exists only as a description.
#[derive(Clone, Debug)]
pub struct SimulatedHost {
    /// What a machine would say of itself, cards with all their drivers say.
    pub facts: HostFacts,
    /// How long things take.
    pub latency: Latency,
    /// Images that are missing.
    pub missing_images: Vec<String>,
}

fn one() -> i32 {
    1
}

/// Buses that each board takes, so that a switch and the GPUs below it have room.
const BUSES_PER_BOARD: i32 = 8;

impl HostFile {
    /// Reads a host file.
    ///
    /// # Errors
    /// [`HostFileError::Unreadable`], naming the line.
    pub fn parse(text: &str) -> Result<Self, HostFileError> {
        Ok(serde_yaml::from_str(text)?)
    }

    /// The host that it describes. The same file and name always give the same host.
    ///
    /// # Errors
    /// Figures out of range, unknown cards.
    pub fn host(&self, node_name: &str) -> Result<SimulatedHost, HostFileError> {
        self.check()?;
        let catalogue = Catalogue::embedded()?;
        let name = self.name.as_deref().unwrap_or(node_name);
        let mut facts = HostFacts {
            cpu_model: Some(format!("simulated, {} x {} cores", self.sockets, self.cores_per_socket)),
            numa_cells: (0..self.sockets).map(|socket| self.numa_cell(socket)).collect(),
            ..HostFacts::default()
        };
        let mut boards_on_cell = BTreeMap::<i32, i32>::new();
        let mut index = 0;
        for cards in &self.cards {
            let model = catalogue.card(&cards.model)?;
            for board in 0..cards.count {
                let place = usize::try_from(board).unwrap_or_default();
                let cell = cards.numa_cells.get(place).copied().unwrap_or(board % self.sockets);
                within("cards[].numaCells", cell.into(), 0, i64::from(self.sockets) - 1)?;
                let on_cell = boards_on_cell.entry(cell).or_default();
                let boards_per_cell = 256 / self.sockets / BUSES_PER_BOARD - 1;
                within("cards[].count on one socket", i64::from(*on_cell) + 1, 0, boards_per_cell.into())?;
                for gpu in 0..model.gpus_per_board {
                    let card = Seat { name, index, cell, board: *on_cell, gpu, sockets: self.sockets };
                    let mut device = card.device(model);
                    device.units = Some(catalogue.units(model)?);
                    device.placements = catalogue.placements(model)?;
                    if model.boot_vga {
                        facts.boot_displays.push(device.pci_address);
                    }
                    facts.cards.push(device);
                    index += 1;
                }
                *on_cell += 1;
            }
        }
        within("cards[].count in all", index.into(), 0, 64)?;
        facts.cards.sort_by_key(|card| card.pci_address);
        facts.iommu_groups = facts.cards.len().max(1);
        Ok(SimulatedHost {
            facts,
            latency: self.latency.clone(),
            missing_images: self.missing_images.clone(),
        })
    }

    fn check(&self) -> Result<(), HostFileError> {
        within("sockets", self.sockets.into(), 1, 8)?;
        within("coresPerSocket", self.cores_per_socket.into(), 1, 256)?;
        within("threadsPerCore", self.threads_per_core.into(), 1, 2)?;
        within("memoryMiB", self.memory_mib, 1024, 1 << 30)?;
        for (size, pages) in &self.hugepages {
            let most = self.memory_mib / i64::from(self.sockets) / size.mib().unwrap_or(1);
            within("hugepages", *pages, 0, most)?;
        }
        for cards in &self.cards {
            within("cards[].count", cards.count.into(), 0, 64)?;
            if !cards.numa_cells.is_empty() && i32::try_from(cards.numa_cells.len()).ok() != Some(cards.count)
            {
                return Err(HostFileError::CellCount {
                    model: cards.model.clone(),
                    named: cards.numa_cells.len(),
                    count: cards.count,
                });
            }
        }
        Ok(())
    }

    fn numa_cell(&self, socket: i32) -> NumaCell {
        let all_cores = self.sockets * self.cores_per_socket;
        let core = |core: i32| -> CpuSet {
            let first = socket * self.cores_per_socket + core;
            (0..self.threads_per_core).filter_map(|t| u32::try_from(first + t * all_cores).ok()).collect()
        };
        NumaCell {
            id: socket,
            cores: (0..self.cores_per_socket).map(core).collect(),
            memory_mib: self.memory_mib / i64::from(self.sockets),
            hugepages: (self.hugepages.iter())
                .filter(|(size, _)| **size != PageSize::None)
                .map(|(size, total)| Hugepages { size: *size, total: *total, free: None })
                .collect(),
            distances: (0..self.sockets).map(|other| if other == socket { 10 } else { 21 }).collect(),
        }
    }
}

fn within(field: &'static str, value: i64, least: i64, most: i64) -> Result<(), HostFileError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(HostFileError::OutOfRange { field, value, expected: format!("{least} to {most}") })
}

/// Where a GPU sits.
struct Seat<'a> {
    name: &'a str,
    index: i32,
    cell: i32,
    /// Which board on its NUMA cell.
    board: i32,
    /// Which GPU on its board.
    gpu: i32,
    sockets: i32,
}

impl Seat<'_> {
    fn device(&self, model: &CardModel) -> Device {
        let root_bus = self.cell * (256 / self.sockets);
        let bus = root_bus + (self.board + 1) * BUSES_PER_BOARD;
        let root_port = address(root_bus, self.board % 31 + 1, 0);
        let (pci_address, pcie_path) = if model.gpus_per_board > 1 {
            let downstream = address(bus + 1, self.gpu, 0);
            (address(bus + 2 + self.gpu, 0, 0), vec![root_port, address(bus, 0, 0), downstream])
        } else {
            (address(bus, 0, 0), vec![root_port])
        };
        let (vendor_id, device_id) = model.ids();
        let companions = (1..=model.companions.len()).filter_map(|function| {
            Some(PciAddress { function: u8::try_from(function).ok()?, ..pci_address })
        });
        let bar = |(position, mib): (usize, &i64)| {
            // Memory regions of 64 bits take two numbers, the first one of an NVIDIA card takes one.
            let index = [0, 1, 3, 5].get(position).copied().unwrap_or(5);
            Bar { index, size_bytes: mib << 20 }
        };
        Device {
            pci_address,
            vendor_id: vendor_id.into(),
            device_id: device_id.into(),
            product: model.model.clone(),
            uuid: Some(format!("GPU-{}", uuid(&[self.name, "gpu", &self.index.to_string()]))),
            serial: Some(serial(self.name, self.index)),
            numa_cell: Some(self.cell),
            iommu_group: Some(IommuGroup { id: 20 + self.index, members: companions.collect() }),
            pcie_path,
            nvlink_peers: vec![],
            driver: Some(model.driver.clone()),
            bars: model.bars_mib.iter().enumerate().map(bar).collect(),
            reset_methods: model.reset_methods.clone(),
            memory_mib: (model.memory_mib > 0).then_some(model.memory_mib),
            temperature_celsius: None,
            health: Health { state: HealthState::Healthy, message: None },
            framework: model.framework,
            supports: model.supports(),
            units: None,
            placements: vec![],
            instances: vec![],
        }
    }
}

fn address(bus: i32, device: i32, function: u8) -> PciAddress {
    PciAddress {
        domain: 0,
        bus: u8::try_from(bus).unwrap_or(u8::MAX),
        device: u8::try_from(device).unwrap_or(31),
        function,
    }
}

fn serial(name: &str, index: i32) -> String {
    let digest = digest(&[name, "serial", &index.to_string()]);
    let number = digest.iter().take(6).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{:013}", number % 10_u64.pow(13))
}

fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        // With its length, so that no two lists of parts give the same text.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

/// A UUID that follows from `parts`: the same always, another for other parts (version 8, RFC 9562).
pub fn uuid(parts: &[&str]) -> Uuid {
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(&digest(parts)[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpudesk_crds::types::ShareMode;

    fn host(text: &str) -> Result<SimulatedHost, HostFileError> {
        HostFile::parse(text)?.host("sim-a")
    }

    const TWO_A16: &str = "{sockets: 2, coresPerSocket: 4, threadsPerCore: 2, memoryMiB: 65536, hugepages: {1Gi: 8}, cards: [{model: A16, count: 2}]}";

    #[test]
    fn threads_are_numbered_as_linux_does() {
        let host = host(TWO_A16).unwrap();
        let cells = &host.facts.numa_cells;
        assert_eq!(cells[1].cores[0].to_string(), "4,12");
        assert_eq!((cells[0].memory_mib, cells[0].hugepages[0].total), (32768, 8));
        assert_eq!(cells[1].distances, [21, 10]);
    }

    #[test]
    fn a_board_with_four_gpus_gives_four_cards_behind_one_switch() {
        let host = host(TWO_A16).unwrap();
        let cards = &host.facts.cards;
        assert_eq!(cards.len(), 8);
        let switches: std::collections::BTreeSet<_> = cards.iter().map(|card| card.pcie_path[1]).collect();
        assert_eq!(switches.len(), 2);
        let addresses: std::collections::BTreeSet<_> = cards.iter().map(|card| card.pci_address).collect();
        assert_eq!(addresses.len(), 8);
        assert_eq!(cards.iter().filter(|card| card.numa_cell == Some(1)).count(), 4);
    }

    #[test]
    fn identities_follow_from_the_name_alone() {
        let (a, b) = (host(TWO_A16).unwrap(), host(TWO_A16).unwrap());
        assert_eq!(a.facts, b.facts);
        let other = HostFile::parse(TWO_A16).unwrap().host("sim-b").unwrap();
        assert_ne!(a.facts.cards[0].uuid, other.facts.cards[0].uuid);
    }

    #[test]
    fn a_card_with_the_hosts_screen_is_not_given_away() {
        let host = host("{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: Iris Xe Graphics, count: 1}]}")
            .unwrap();
        let card = &host.facts.cards[0];
        let whole = card.supports.iter().find(|s| s.mode == ShareMode::Passthrough).unwrap();
        assert!(!whole.supported && whole.reason.as_ref().unwrap().contains("screen"));
        assert_eq!(host.facts.boot_displays, [card.pci_address]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        for (file, part) in [
            ("{coresPerSocket: 0, memoryMiB: 8192}", "coresPerSocket"),
            ("{coresPerSocket: 4, memoryMiB: 8192, sockets: 9}", "sockets"),
            ("{coresPerSocket: 4, memoryMiB: 8192, hugepages: {1Gi: 9}}", "hugepages"),
            ("{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: T4, count: 32}]}", "on one socket"),
            (
                "{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: T4, count: 1, numaCells: [3]}]}",
                "numaCells",
            ),
            (
                "{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: T4, count: 1, numaCells: [0, 0]}]}",
                "numaCells",
            ),
            ("{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: X, count: 1}]}", "L40S"),
            ("{coresPerSocket: 4, memory: 8192}", "memory"),
        ] {
            let error = host(file).unwrap_err().to_string();
            assert!(error.contains(part), "{file}: {error}");
        }
    }
}
