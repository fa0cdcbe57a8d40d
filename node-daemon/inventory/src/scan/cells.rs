//! What cells and cards say of each other: cards whose cell is not known, and cells that are the memory of
//! a card.

use std::collections::BTreeSet;

use gpudesk_crds::{
    gpu_node_status::{Device, NumaCell},
    types::{CpuSet, PciAddress},
};

use super::cpus::NODES;
use crate::{
    topology::{HostFacts, cpu, nvidia},
    tree::Tree,
};

/// NVIDIA's vendor id.
const NVIDIA: &str = "10de";
/// Cards of which the CPU sees the memory as its own, by device id: Grace Hopper and Grace Blackwell.
/// Source: the kernel's `drivers/vfio/pci/nvgrace-gpu/main.c`.
const COHERENT: [&str; 5] = ["2342", "2345", "2348", "2941", "31c2"];
/// Most addresses named in one sentence.
const NAMED: usize = 4;

/// Joins cells and cards. To be called again when either was read anew.
pub(super) fn judge(tree: &Tree, facts: &mut HostFacts) {
    let of_devices = device_memory(tree, facts);
    for cell in &mut facts.numa_cells {
        cell.device_memory = cell.cores.is_empty() && of_devices.contains(&cell.id);
    }
    let Some(complete) = place(tree, facts) else { return };
    facts.odd.retain(|sentence| !sentence.starts_with(CELL_OF));
    facts.odd.extend(complete);
}

/// How the sentences about cards without a known cell begin.
const CELL_OF: &str = "the NUMA cell of ";

/// Takes the cells that the host does not have off the devices that name them, and says of which cards
/// the cell is not known. `None` when nothing is known of cells.
fn place(tree: &Tree, facts: &mut HostFacts) -> Option<Vec<String>> {
    if facts.numa_cells.is_empty() {
        return None;
    }
    if !tree.exists(NODES) {
        // One cell stands for all there: what the devices name cannot be compared.
        let first = |card: &Device| card.numa_cell.is_some_and(|cell| cell > 0);
        let missing = format!("NUMA cells: {NODES} is missing");
        if facts.cards.iter().any(first) && !facts.incomplete.contains(&missing) {
            facts.incomplete.push(missing);
        }
        return None;
    }
    let ids: BTreeSet<i32> = facts.numa_cells.iter().map(|cell| cell.id).collect();
    let judge = |named: &mut Option<i32>, absent: &mut Option<i32>| {
        // What an earlier look took off counts anew: the cell may have come.
        let said = named.or(*absent);
        let is_there = said.is_some_and(|id| ids.contains(&id));
        (*named, *absent) = if is_there { (said, None) } else { (None, said) };
    };
    for card in &mut facts.cards {
        judge(&mut card.numa_cell, &mut card.absent_numa_cell);
    }
    for device in &mut facts.host_devices {
        judge(&mut device.numa_cell, &mut device.absent_numa_cell);
    }
    let with_cpus = facts.numa_cells.iter().filter(|cell| !cell.cores.is_empty()).count();
    let mut sentences = vec![];
    let absent: BTreeSet<i32> = facts.cards.iter().filter_map(|card| card.absent_numa_cell).collect();
    for id in absent {
        let cards = facts.cards.iter().filter(|card| card.absent_numa_cell == Some(id));
        let why = format!("the firmware names cell {id}, which this host does not have");
        sentences.extend(unknown(cards.map(|card| card.pci_address), &why));
    }
    if with_cpus > 1 {
        let silent = |card: &&Device| card.numa_cell.is_none() && card.absent_numa_cell.is_none();
        let cards = facts.cards.iter().filter(silent).map(|card| card.pci_address);
        let why = format!("the firmware does not say it, and there are {with_cpus} cells with CPUs");
        sentences.extend(unknown(cards, &why));
    }
    Some(sentences)
}

fn unknown(cards: impl Iterator<Item = PciAddress>, why: &str) -> Option<String> {
    let cards: Vec<String> = cards.map(|address| address.to_string()).collect();
    if cards.is_empty() {
        return None;
    }
    let more = match cards.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let cards = cards.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    Some(format!("{CELL_OF}{cards}{more} is not known: {why}"))
}

/// Cells whose memory is that of a device, as far as that can be told. Memory that CXL or a reserved
/// range brings is the machine's own.
fn device_memory(tree: &Tree, facts: &HostFacts) -> BTreeSet<i32> {
    let is_empty = |cell: &&NumaCell| cell.cores.is_empty();
    let empty: BTreeSet<i32> = facts.numa_cells.iter().filter(is_empty).map(|cell| cell.id).collect();
    if empty.is_empty() {
        return empty;
    }
    let of_nvidia = || facts.cards.iter().filter(|card| card.vendor_id == NVIDIA);
    // The driver's own word.
    let mut cells: BTreeSet<i32> = of_nvidia()
        .filter_map(|card| {
            let path = format!("proc/driver/nvidia/gpus/{}/numa_status", card.pci_address);
            nvidia::memory_cell(&tree.text(&path)?)
        })
        .collect();
    // A cell for the sake of a device, by the firmware's word (ACPI 6.3, Generic Initiator Affinity).
    let initiators = tree.text(&format!("{NODES}/has_generic_initiator"));
    let initiators = initiators.and_then(|text| cpu::list(&text)).unwrap_or_default();
    cells.extend(initiators.iter().filter_map(|cell| i32::try_from(cell).ok()));
    if of_nvidia().any(|card| COHERENT.contains(&card.device_id.as_str())) {
        let brought = brought_by_dax(tree);
        let is_other = |cell: &i32| u32::try_from(*cell).is_ok_and(|cell| !brought.contains(cell));
        cells.extend(empty.iter().copied().filter(is_other));
    }
    cells
}

/// The cells of memory that came by the kernel's dax: CXL, persistent and reserved memory.
fn brought_by_dax(tree: &Tree) -> CpuSet {
    let devices = tree.names("sys/bus/dax/devices", |_| true);
    let cells = devices.iter().filter_map(|name| {
        cpu::list(&tree.text(&format!("sys/bus/dax/devices/{name}/target_node"))?)
            .filter(|cells| cells.len() == 1)
    });
    cells.flat_map(|cells| cells.iter().collect::<Vec<_>>()).collect()
}
