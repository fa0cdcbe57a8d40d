//! What a GPU driver says of its cards, and what follows from it. Pure.
//!
//! ```text
//!   NVML ─▶ DriverReadings (can be kept in a file) ─▶ describe ─▶ Device
//! ```
//!
//! The geometry is that of the readings, never that of a table. The same readings always give the same
//! description, whatever the order of lists in them.

mod health;
mod instances;
mod placements;
mod readings;
mod temperature;
mod xid;

#[cfg(test)]
mod tests;

use gpudesk_crds::gpu_node_status::{CardFabric, Device, MigMode, VgpuState};

pub use readings::{
    CardFault, CardReadings, ComputeInstanceReading, DriverEvent, DriverReadings, EVENTS_PER_CARD,
    EccReadings, EventKind, FabricReading, FaultKind, GpuInstanceReading, MigPlacement, MigProfile,
    MigReadings, NvLink, RowRemappingReadings, TemperatureReadings, Thresholds, VgpuInstanceReading,
    VgpuPlacements, VgpuReadings, VgpuTypeReading, remember,
};

/// Adds to `cards` what their driver says of them. Cards that it says nothing of stay as they are.
///
/// A second call with the same readings changes nothing.
pub fn describe(cards: &mut [Device], readings: &DriverReadings) {
    for card in cards {
        if let Some(found) = readings.card(card.pci_address) {
            describe_card(card, found, readings);
        }
    }
}

fn describe_card(card: &mut Device, found: &CardReadings, all: &DriverReadings) {
    replace(&mut card.uuid, text(found.uuid.as_deref(), 96));
    replace(&mut card.serial, text(found.serial.as_deref(), 64));
    replace(&mut card.memory_mib, found.memory_mib.filter(|mib| *mib > 0));
    replace(&mut card.module_id, found.module_id);
    if let Some(product) = text(found.product.as_deref(), 128) {
        card.product = product;
    }
    if let Some(mig) = &found.mig {
        card.mig = Some(MigMode { current: mig.current, pending: mig.pending });
    }
    if let Some(vgpu) = &found.vgpu {
        card.vgpu = Some(vgpu_state(vgpu));
    }
    if found.mig.is_some() || found.vgpu.is_some() {
        placements::describe(card, found, all);
        instances::describe(card, found);
    }
    card.nvlink_peers = nvlink_peers(found, all);
    replace(&mut card.fabric, found.fabric.as_ref().map(fabric));
    temperature::describe(card, found.temperature.as_ref());
    health::describe(card, found, &all.events);
}

fn replace<T>(field: &mut Option<T>, found: Option<T>) {
    if found.is_some() {
        *field = found;
    }
}

/// A text of the driver, when it says anything: drivers fill in `N/A`, zeros and blanks.
fn text(found: Option<&str>, most: usize) -> Option<String> {
    let found = found?.trim();
    let says_nothing = ["", "n/a", "[n/a]", "unknown", "0"].contains(&found.to_ascii_lowercase().as_str());
    (!says_nothing).then(|| found.chars().filter(|c| !c.is_control()).take(most).collect())
}

/// A number that the API takes: not negative and not above `most`.
fn within(number: i32, most: i32) -> i32 {
    number.clamp(0, most)
}

fn vgpu_state(found: &readings::VgpuReadings) -> VgpuState {
    let mut schedulers: Vec<u32> = found.schedulers.clone();
    schedulers.sort_unstable();
    schedulers.dedup();
    VgpuState {
        mixed_size_capable: found.mixed_size_capable,
        mixed_size: found.mixed_size,
        scheduler: found.scheduler.and_then(scheduler),
        schedulers: schedulers.into_iter().filter_map(scheduler).collect(),
        on_instances: found.on_instances,
    }
}

/// The scheduler of this number (`nvml.h`, `NVML_VGPU_SCHEDULER_POLICY_…`).
fn scheduler(policy: u32) -> Option<String> {
    let name = match policy {
        1 => "BestEffort",
        2 => "EqualShare",
        3 => "FixedShare",
        _ => return None,
    };
    Some(name.into())
}

fn fabric(found: &FabricReading) -> CardFabric {
    let state = match found.state {
        0 => "NotSupported",
        1 => "NotStarted",
        2 => "InProgress",
        3 => "Completed",
        _ => "Unknown",
    };
    // Only then has registering ended and does the driver fill in the rest.
    let ended = found.state == 3;
    let status = found.status.filter(|_| ended).map(|status| match status {
        0 => "Success".to_owned(),
        code => format!("NVML error {code}"),
    });
    CardFabric {
        state: state.into(),
        status,
        cluster_uuid: found
            .cluster_uuid
            .clone()
            .filter(|_| ended)
            .map(|uuid| uuid.chars().take(64).collect()),
        clique_id: found.clique_id.filter(|_| ended && found.cluster_uuid.is_some()).map(i64::from),
    }
}

/// UUIDs of the cards at the other ends of a card's links, straight or behind the same switch.
fn nvlink_peers(found: &CardReadings, all: &DriverReadings) -> Vec<String> {
    let remotes =
        |card: &CardReadings| -> Vec<_> { card.nvlinks.iter().filter_map(|link| link.remote).collect() };
    let mine = remotes(found);
    let reaches = |other: &CardReadings| {
        let theirs = remotes(other);
        mine.contains(&other.address)
            || theirs.contains(&found.address)
            || mine.iter().any(|remote| all.card(*remote).is_none() && theirs.contains(remote))
    };
    let mut peers: Vec<String> = (all.cards.iter())
        .filter(|other| other.address != found.address && reaches(other))
        .filter_map(|other| text(other.uuid.as_deref(), 96))
        .collect();
    peers.sort();
    peers.dedup();
    peers.truncate(64);
    peers
}
