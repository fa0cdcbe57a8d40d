//! What is taken on machines and cards, once a plan is carried out. Pure.
//!
//! Slices are placement units: MIG memory units, vGPU units, or else as many as of a card's smallest
//! share fit, as in the summary of a `GpuNode`.

use std::collections::BTreeMap;

use gpudesk_crds::{
    GpuAllocation, GpuNode,
    gpu_node_status::Device,
    types::{PciAddress, ShareMode},
};

use super::document::{CardUsage, NodeUsage, PlannedDesktop};

/// The machines by name. `stranded` says of a card, by node and address, how many in a thousand of its free
/// units nobody can use.
pub fn nodes(
    nodes: &BTreeMap<String, GpuNode>,
    desktops: &[PlannedDesktop],
    stranded: &BTreeMap<(String, PciAddress), i32>,
) -> Vec<NodeUsage> {
    let mut on: BTreeMap<&str, Vec<&PlannedDesktop>> = BTreeMap::new();
    for desktop in desktops.iter().filter(|desktop| desktop.compute.is_some()) {
        if let Some(node) = &desktop.node {
            on.entry(node).or_default().push(desktop);
        }
    }
    nodes
        .iter()
        .map(|(name, node)| {
            node_usage(name, node, on.get(name.as_str()).map_or(&[], Vec::as_slice), stranded)
        })
        .collect()
}

fn node_usage(
    name: &str,
    node: &GpuNode,
    desktops: &[&PlannedDesktop],
    stranded: &BTreeMap<(String, PciAddress), i32>,
) -> NodeUsage {
    let status = node.status.clone().unwrap_or_default();
    let mut cards: Vec<CardUsage> = status
        .devices
        .iter()
        .map(|device| CardUsage {
            stranded_permille: stranded.get(&(name.to_owned(), device.pci_address)).copied().unwrap_or(0),
            ..card_usage(device, desktops)
        })
        .collect();
    cards.sort_by_key(|card| card.address);
    let usable = || cards.iter().filter(|card| card.unavailable.is_none());
    let computes = || desktops.iter().filter_map(|desktop| desktop.compute.as_ref());
    let cores = status.numa_cells.iter().flat_map(|cell| &cell.cores);
    NodeUsage {
        name: name.into(),
        desktops: desktops.len(),
        gpus: usable().count(),
        free_gpus: usable().filter(|card| card.shares.is_empty()).count(),
        slices_used: usable().map(|card| card.slices_used).sum(),
        slices_total: usable().map(|card| card.slices_total).sum(),
        dedicated_cpus: computes().map(|c| count(c.vcpu_pins.iter().map(|pin| pin.cpus.len()).sum())).sum(),
        shared_vcpus: computes()
            .filter(|compute| compute.vcpu_pins.is_empty())
            .map(|compute| i64::from(compute.cores) * i64::from(compute.threads_per_core))
            .sum(),
        cpus: count(cores.map(gpudesk_crds::types::CpuSet::len).sum()),
        memory_used_mib: computes().map(|compute| compute.memory_mib).fold(0, i64::saturating_add),
        memory_total_mib: (status.numa_cells.iter())
            .filter(|cell| !cell.device_memory)
            .map(|cell| cell.memory_mib)
            .fold(0, i64::saturating_add),
        cards,
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn card_usage(device: &Device, desktops: &[&PlannedDesktop]) -> CardUsage {
    let of_card = |gpu: &&GpuAllocation| match (&gpu.device_uuid, &device.uuid) {
        (Some(held), Some(has)) => held == has,
        _ => gpu.device == device.pci_address,
    };
    let planned = desktops.iter().flat_map(|desktop| &desktop.gpus).filter(of_card);
    let mut shares: Vec<(Option<i32>, ShareMode, String)> =
        planned.map(|gpu| (gpu.start, gpu.mode, gpu.type_name.clone())).collect();
    // What exists on the card though nobody here holds it takes its room all the same.
    let names: Vec<String> = desktops.iter().map(|desktop| desktop.full_name()).collect();
    let foreign =
        device.instances.iter().filter(|i| i.owner.as_ref().is_none_or(|owner| !names.contains(owner)));
    shares.extend(foreign.map(|instance| (instance.start, instance.mode, instance.type_name.clone())));
    shares.sort();
    let taken = shares.iter().map(|(start, mode, name)| (*mode, name.as_str(), *start));
    CardUsage {
        address: device.pci_address,
        product: device.product.clone(),
        slices_used: device.units_taken(taken).into(),
        slices_total: device.unit_count().into(),
        shares: shares.iter().map(|(start, _, name)| share_text(name, *start)).collect(),
        stranded_permille: 0,
        unavailable: device.unavailable.clone().or_else(|| {
            let usable = device.supports.iter().any(|support| support.supported);
            (!usable).then(|| "it can be used in no mode".to_owned())
        }),
    }
}

/// `1g.24gb@0`, or the type alone when it has no position.
pub fn share_text(type_name: &str, start: Option<i32>) -> String {
    start.map_or_else(|| type_name.to_owned(), |start| format!("{type_name}@{start}"))
}
