//! What a driver tells of its own accord.

use gpudesk_crds::types::PciAddress;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Something that the driver told of its own accord.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DriverEvent {
    /// The card.
    pub card: PciAddress,
    /// When it was received.
    pub at: Timestamp,
    /// What.
    pub kind: EventKind,
    /// The GPU instance that is blamed; absent when the whole card is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<i32>,
    /// The compute instance that is blamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_instance: Option<i32>,
}

/// What a driver tells of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EventKind {
    /// An error, by NVIDIA's number.
    Xid(u32),
    /// A memory error that could not be corrected.
    DoubleBitEcc,
    /// The recovery that the driver wants is another one now.
    RecoveryAction,
    /// The card cannot be used any more.
    Unavailable,
    /// Something else, by the bit of NVML (`nvmlEventType…`).
    Other(u64),
}

/// Events kept of one card.
pub const EVENTS_PER_CARD: usize = 32;

/// Adds `event` to `events`: of each kind, card and slice the newest is kept, and of each card at most
/// [`EVENTS_PER_CARD`], the oldest going first. The order is that of arrival.
pub fn remember(events: &mut Vec<DriverEvent>, event: DriverEvent) {
    let same = |other: &DriverEvent| {
        (other.card, other.kind, other.gpu_instance, other.compute_instance)
            == (event.card, event.kind, event.gpu_instance, event.compute_instance)
    };
    events.retain(|other| !same(other));
    let of_card = events.iter().filter(|other| other.card == event.card).count();
    if of_card >= EVENTS_PER_CARD
        && let Some(oldest) = events.iter().position(|other| other.card == event.card)
    {
        events.remove(oldest);
    }
    events.push(event);
}
