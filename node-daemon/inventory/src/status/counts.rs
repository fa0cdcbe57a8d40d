//! Capacity, use and the figures that `kubectl get gpunodes` prints.

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_status::{Device, Instance, NodeSummary, TypeCount},
    types::ShareMode,
};

use super::PASSTHROUGH;

type Counts = BTreeMap<(ShareMode, String), i32>;

/// What could run on `cards` if nothing did: per type, how many of it alone fit. A card that no desktop
/// gets now does not count, and of one with a fixed layout its places do.
pub(super) fn capacity(cards: &[&Device]) -> Vec<TypeCount> {
    let mut counts = Counts::new();
    for card in cards.iter().filter(|card| card.unavailable.is_none()) {
        if !card.layout.is_empty() {
            for of in &card.layout {
                let offered = card.placements.iter().find(|place| place.type_name == of.type_name);
                let Some(place) = offered else { continue };
                *counts.entry((place.mode, of.type_name.clone())).or_default() += of.number();
            }
            continue;
        }
        if supports(card, ShareMode::Passthrough) {
            *counts.entry((ShareMode::Passthrough, PASSTHROUGH.into())).or_default() += 1;
        }
        // How many fit is 0 where nobody could be asked: that is no capacity, and not said as one.
        let known = card.placements.iter().filter(|placement| placement.max_count > 0);
        for placement in known.filter(|placement| supports(card, placement.mode)) {
            *counts.entry((placement.mode, placement.type_name.clone())).or_default() += placement.max_count;
        }
    }
    listed(counts)
}

/// What is in use on `cards`; a GPU instance once, however many vGPUs are on it.
pub(super) fn allocated(cards: &[Device]) -> Vec<TypeCount> {
    let mut counts = Counts::new();
    for instance in cards.iter().flat_map(in_use) {
        *counts.entry((instance.mode, instance.type_name.clone())).or_default() += 1;
    }
    listed(counts)
}

/// What takes units of a card: each share, but of the vGPUs on one GPU instance only the first.
fn in_use(card: &Device) -> impl Iterator<Item = &Instance> {
    let first = |(position, instance): &(usize, &Instance)| {
        card.instances[..*position].iter().all(|before| !is_on_one_instance(before, instance))
    };
    card.instances.iter().enumerate().filter(first).map(|(_, instance)| instance)
}

/// Whether two shares are vGPUs on one GPU instance: by its number, or by its place.
fn is_on_one_instance(one: &Instance, other: &Instance) -> bool {
    let numbers = one.gpu_instance.zip(other.gpu_instance);
    let same_place = one.type_name == other.type_name && one.start.is_some() && one.start == other.start;
    one.mode == ShareMode::Mig
        && other.mode == ShareMode::Mig
        && numbers.map_or(same_place, |(one, other)| one == other)
}

/// The figures that people see first.
pub(super) fn summary(cards: &[&Device], numa_cells: usize) -> NodeSummary {
    let free = cards.iter().filter(|card| is_usable(card) && card.instances.is_empty()).count();
    let (used, total) = cards.iter().filter(|card| is_usable(card)).fold((0, 0), |(used, total), card| {
        let shares = in_use(card).map(|share| (share.mode, share.type_name.as_str(), share.start));
        (used + card.units_taken(shares), total + card.unit_count())
    });
    NodeSummary {
        gpus: count(cards.iter().filter(|card| !card.boot_vga).count()),
        free_gpus: count(free),
        slices: format!("{used}/{total}"),
        numa_cells: count(numa_cells),
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn listed(counts: Counts) -> Vec<TypeCount> {
    let entry = |((mode, type_name), count)| TypeCount { type_name, mode, count };
    counts.into_iter().map(entry).collect()
}

fn supports(card: &Device, mode: ShareMode) -> bool {
    card.supports.iter().any(|support| support.mode == mode && support.supported)
}

fn is_usable(card: &Device) -> bool {
    card.unavailable.is_none() && card.supports.iter().any(|support| support.supported)
}
