//! Memory regions: `BarsAssigned`.

use gpudesk_crds::{conditions::Reason, gpu_node_status::Bar};

use super::{Findings, PART, Say, is_whole, message, named};

/// Every memory region of every card has an address.
pub(super) fn assigned(findings: &Findings<'_>) -> Say {
    let cards = &findings.facts.cards;
    let without: Vec<String> = cards
        .iter()
        .filter_map(|card| {
            let regions: Vec<String> = card.bars.iter().filter(|bar| bar.unassigned).map(region).collect();
            (!regions.is_empty()).then(|| format!("{} of {}", regions.join(" and "), named(card)))
        })
        .collect();
    if !without.is_empty() {
        let message = format!(
            "no address for {}: enable Above 4G decoding in the firmware, with the largest MMIO size it offers",
            message::listed(&without)
        );
        return Say::no(Reason::BarUnassigned, message);
    }
    if cards.is_empty() {
        return if is_whole(findings) { Say::not_needed("no card was found") } else { Say::unknown(PART) };
    }
    if cards.iter().all(|card| card.bars.is_empty()) {
        return Say::unknown("no memory regions of cards could be read");
    }
    Say::expected()
}

/// `region 1 (128 GiB)`.
fn region(bar: &Bar) -> String {
    let units = [(1_i64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bar.size_bytes >= *unit) {
        Some((unit, name)) => format!("region {} ({} {name})", bar.index, bar.size_bytes / unit),
        // The size of a region without an address is not always known.
        None => format!("region {}", bar.index),
    }
}
