//! The NVLink fabric of a board of eight with NVSwitches.
//!
//! Source: NVIDIA Fabric Manager User Guide, "Shared NVSwitch and GPU Virtualization Model": the fifteen
//! partitions are fixed, and name the GPUs by the numbers on the board, not by their order on PCI.

use gpudesk_crds::gpu_node_status::{CardFabric, Device, Fabric, FabricPartition};

use super::{
    HostFileError,
    card::address,
    catalogue::{CardModel, Nvswitch},
};

/// GPUs on a board.
const BOARD: usize = 8;
/// The partitions, by number: which GPUs are in each.
const PARTITIONS: [&[i32]; 15] = [
    &[1, 2, 3, 4, 5, 6, 7, 8],
    &[1, 2, 3, 4],
    &[5, 6, 7, 8],
    &[1, 3],
    &[2, 4],
    &[5, 7],
    &[6, 8],
    &[1],
    &[2],
    &[3],
    &[4],
    &[5],
    &[6],
    &[7],
    &[8],
];
/// Numbers on the board in order of PCI addresses: not the same order, as on real boards.
const MODULES: [i32; BOARD] = [2, 4, 3, 1, 7, 8, 6, 5];

/// Gives the cards that sit on a board with NVSwitches their places in its fabric; `None` when there is
/// no such board.
///
/// # Errors
/// Another number of such cards than a board has.
pub(super) fn fabric(
    cards: &mut [Device],
    model_of: impl Fn(&Device) -> Option<CardModel>,
    running: bool,
) -> Result<Option<Fabric>, HostFileError> {
    let switches = |card: &Device| model_of(card).and_then(|model| model.nvswitch);
    let Some(Nvswitch { device_id: _, count }) = cards.iter().find_map(switches) else { return Ok(None) };
    let mut on_board: Vec<&mut Device> = cards.iter_mut().filter(|card| switches(card).is_some()).collect();
    let alike = on_board.iter().all(|card| card.device_id == on_board[0].device_id);
    if on_board.len() != BOARD || !alike {
        return Err(HostFileError::NotPossible {
            field: "cards[].count",
            value: on_board.len().to_string(),
            expected: format!("cards on a board with NVSwitches come in {BOARD} of one model: write 8"),
        });
    }
    let uuids: Vec<Option<String>> = on_board.iter().map(|card| card.uuid.clone()).collect();
    for (card, module) in on_board.iter_mut().zip(MODULES) {
        card.module_id = Some(module);
        card.nvlink_peers = uuids.iter().filter(|uuid| **uuid != card.uuid).flatten().cloned().collect();
        let state = if running { "Completed" } else { "NotStarted" };
        card.fabric = Some(CardFabric {
            state: state.into(),
            status: running.then(|| "Success".into()),
            cluster_uuid: None,
            clique_id: None,
        });
    }
    let partition = |(id, modules): (i32, &&[i32])| FabricPartition {
        id,
        module_ids: modules.to_vec(),
        active: Some(false),
    };
    Ok(Some(Fabric {
        switches: (1..=count).map(|bus| address(bus, 0, 0)).collect(),
        partitions: if running { (0..).zip(&PARTITIONS).map(partition).collect() } else { vec![] },
    }))
}
