//! Simulated hosts: a host file becomes the same facts that a machine gives, with all that drivers say.

mod card;
pub mod catalogue;
mod cells;
mod fabric;
mod host_device;
mod host_file;
pub mod hosts;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use gpudesk_crds::gpu_node_status::{Device, Framework};
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub use self::host_file::{Cards, HostDevices, HostFile, HostFileError, LastLevelCaches, Latency};
use self::{
    card::{BUSES_PER_BOARD, Seat},
    catalogue::{CardModel, Catalogue},
    host_file::within,
};
use crate::topology::{HostFacts, Iommu, KernelState, supports};

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

impl HostFile {
    /// The host that it describes. The same file and name always give the same host.
    ///
    /// # Errors
    /// Figures out of range, unknown cards, cards that cannot be used as the file says.
    pub fn host(&self, node_name: &str) -> Result<SimulatedHost, HostFileError> {
        self.check()?;
        let catalogue = Catalogue::embedded()?;
        let mut cards = self.seated_cards(&catalogue, node_name)?;
        let model_of = |card: &Device| catalogue.card(&card.product).ok().cloned();
        let fabric = fabric::fabric(&mut cards, model_of, self.fabric_manager)?;
        let host_devices = self.host_devices(&catalogue)?;
        let groups = cards.len()
            + cards.iter().map(|card| card.virtual_functions.len()).sum::<usize>()
            + host_devices.len();
        let groups = Some(if self.iommu { groups.max(1) } else { 0 });
        for card in &mut cards {
            // Functions that carry vGPUs can be switched off again, so they do not keep a card from
            // being given whole.
            let off = Device { sriov: None, virtual_functions: vec![], ..card.clone() };
            card.supports = supports::judge(&off, groups);
        }
        let nvidia = cards.iter().any(|card| card.driver.as_deref() == Some("nvidia"));
        let model = format!("simulated, {} x {} cores", self.sockets, self.cores_per_socket);
        let cpu_model = self.cpu_model.clone().unwrap_or(model);
        let kind = if cpu_model.contains("AMD") { "ivhd" } else { "dmar" };
        let facts = HostFacts {
            kernel: self.kernel.clone(),
            board: self.board.clone(),
            cpus: self.host_cpus(),
            numa_cells: (0..self.sockets).map(|socket| self.numa_cell(socket)).collect(),
            iommu: Iommu {
                kind: self.iommu.then(|| kind.into()),
                groups,
                no_iommu_mode: Some(false),
                unsafe_interrupts: Some(false),
            },
            kernel_state: KernelState {
                vfio_pci: Some(true),
                vfio_device: Some(true),
                kvm_device: Some(true),
                cpu_virtualization: Some(true),
                nvidia_vgpu_module: Some(nvidia),
                vgpu_manager_service: nvidia.then_some(true),
                fabric_manager: fabric.is_some().then_some(self.fabric_manager),
                ..KernelState::default()
            },
            nvswitches: fabric.iter().flat_map(|fabric| fabric.switches.clone()).collect(),
            cpu_model: Some(cpu_model),
            fabric,
            cards,
            host_devices,
            ..HostFacts::default()
        };
        Ok(SimulatedHost {
            facts,
            latency: self.latency.clone(),
            missing_images: self.missing_images.clone(),
        })
    }

    /// The cards on their seats, lowest address first.
    fn seated_cards(&self, catalogue: &Catalogue, node_name: &str) -> Result<Vec<Device>, HostFileError> {
        let name = self.name.as_deref().unwrap_or(node_name);
        let mut boards_on_cell = BTreeMap::<i32, i32>::new();
        let mut found = vec![];
        let mut index = 0;
        for cards in &self.cards {
            let model = catalogue.card(&cards.model)?;
            let framework = framework(cards, model)?;
            for board in 0..cards.count {
                let place = usize::try_from(board).unwrap_or_default();
                let cell = cards.numa_cells.get(place).copied().unwrap_or(board % self.sockets);
                let on_cell = boards_on_cell.entry(cell).or_default();
                let boards_per_cell = 256 / self.sockets / BUSES_PER_BOARD - 1;
                within("cards[].count on one socket", i64::from(*on_cell) + 1, 0, boards_per_cell.into())?;
                for gpu in 0..model.gpus_per_board {
                    let (sockets, iommu) = (self.sockets, self.iommu);
                    let seat = Seat { name, index, cell, board: *on_cell, gpu, sockets, iommu };
                    found.push(seat.device(catalogue, model, framework)?);
                    index += 1;
                }
                *on_cell += 1;
            }
        }
        within("cards[].count in all", index.into(), 0, 64)?;
        found.sort_by_key(|card: &Device| card.pci_address);
        Ok(found)
    }
}

/// How shares of these cards are made.
fn framework(cards: &Cards, model: &CardModel) -> Result<Option<Framework>, HostFileError> {
    let Some(wanted) = cards.framework else { return Ok(model.frameworks.first().copied()) };
    if model.frameworks.contains(&wanted) {
        return Ok(Some(wanted));
    }
    let can: Vec<String> = model.frameworks.iter().map(|framework| format!("{framework:?}")).collect();
    Err(HostFileError::NotPossible {
        field: "cards[].framework",
        value: format!("{wanted:?}"),
        expected: if can.is_empty() {
            format!("shares of a {} cannot be made: leave it out", model.model)
        } else {
            format!("shares of a {} are made by {}", model.model, can.join(" or "))
        },
    })
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
