//! Whether a card can be trusted, judged by what its driver says.
//!
//! What the driver itself wants done counts before any table of error numbers. An error that names a
//! slice is blamed on the slice, not on the card.

use gpudesk_crds::gpu_node_status::{Device, Ecc, Health, HealthState, RecoveryAction, RowRemapping, Xid};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    CardFault, CardReadings, DriverEvent, EVENTS_PER_CARD, EventKind, FaultKind,
    xid::{self, Group},
};

/// Why clocks can be low, by the bit of NVML (`nvmlClocksEventReason…`). Idling and limits that people
/// set are left out.
const THROTTLES: [(u64, &str); 5] = [
    (0x4, "SwPowerCap"),
    (0x8, "HwSlowdown"),
    (0x20, "SwThermalSlowdown"),
    (0x40, "HwThermalSlowdown"),
    (0x80, "HwPowerBrakeSlowdown"),
];

pub(super) fn describe(card: &mut Device, found: &CardReadings, events: &[DriverEvent]) {
    let mine: Vec<&DriverEvent> = events.iter().filter(|event| event.card == found.address).collect();
    let (state, message) = judge(found, &mine);
    card.health = Health {
        state,
        message: message.map(|message| message.chars().take(512).collect()),
        recovery_action: found.recovery_action.and_then(recovery_action),
        xids: xids(&mine),
        ecc: found.ecc.map(|ecc| Ecc {
            enabled: ecc.enabled,
            corrected: ecc.corrected.map(|count| i64::try_from(count).unwrap_or(i64::MAX)),
            uncorrected: ecc.uncorrected.map(|count| i64::try_from(count).unwrap_or(i64::MAX)),
        }),
        row_remapping: found.row_remapping.map(|rows| RowRemapping {
            corrected: i32::try_from(rows.corrected).unwrap_or(i32::MAX),
            uncorrected: i32::try_from(rows.uncorrected).unwrap_or(i32::MAX),
            pending: rows.pending,
            failed: rows.failed,
        }),
        throttle_reasons: throttle_reasons(found.clocks_event_reasons.unwrap_or(0)),
    };
}

fn throttle_reasons(mask: u64) -> Vec<String> {
    THROTTLES.iter().filter(|(bit, _)| mask & bit != 0).map(|(_, name)| (*name).to_owned()).collect()
}

/// What the driver wants done (`nvml.h`, `NVML_GPU_RECOVERY_ACTION_…`), as far as the API has a word for it.
fn recovery_action(action: u32) -> Option<RecoveryAction> {
    match action {
        0 => Some(RecoveryAction::None),
        // 6 is a reset by way of the bus.
        1 | 6 => Some(RecoveryAction::GpuReset),
        // 7 is a reboot of more than the node's own board.
        2 | 7 => Some(RecoveryAction::NodeReboot),
        3 => Some(RecoveryAction::DrainP2P),
        4 => Some(RecoveryAction::DrainAndReset),
        _ => None,
    }
}

type Judgement = (HealthState, Option<String>);

fn failed(message: impl Into<String>) -> Judgement {
    (HealthState::Failed, Some(message.into()))
}

fn healthy_but(message: impl Into<String>) -> Judgement {
    (HealthState::Healthy, Some(message.into()))
}

fn judge(found: &CardReadings, events: &[&DriverEvent]) -> Judgement {
    if let Some(fault) = &found.fault {
        return faulty(fault);
    }
    if let Some(action) = found.recovery_action.filter(|action| *action != 0)
        && let Some(judgement) = wanted(action)
    {
        return judgement;
    }
    let rows = found.row_remapping.unwrap_or_default();
    if rows.failed {
        return failed("A row of memory could not be replaced, for no spare one is left: replace the card.");
    }
    // A driver that can say what it wants done has said: nothing. The table is for those that cannot.
    if found.recovery_action.is_none()
        && let Some(judgement) = by_events(events)
    {
        return judgement;
    }
    if rows.pending {
        return healthy_but(
            "A row of memory waits to be replaced: reset the card when its desktops are stopped.",
        );
    }
    if let Some(mig) = &found.mig
        && mig.current != mig.pending
    {
        let word = if mig.pending { "on" } else { "off" };
        return healthy_but(format!(
            "MIG will be {word} after the next reset: stop what uses the card and reset it."
        ));
    }
    (HealthState::Healthy, None)
}

fn faulty(fault: &CardFault) -> Judgement {
    let said: String = fault.message.chars().take(160).collect();
    match fault.kind {
        FaultKind::Lost => failed(format!(
            "The card fell off the bus ({said}): power the machine off and on, and reseat the card if it happens again."
        )),
        FaultKind::ResetRequired => {
            failed(format!("The card does not work before a reset ({said}): reset it."))
        }
        FaultKind::NoAnswer => failed(format!(
            "The driver does not answer for this card ({said}): look for errors of NVRM in the kernel's log and reset the card."
        )),
        FaultKind::Other => (
            HealthState::Unknown,
            Some(format!(
                "The driver cannot read this card ({said}): look for errors of NVRM in the kernel's log."
            )),
        ),
    }
}

fn wanted(action: u32) -> Option<Judgement> {
    Some(failed(match action {
        0 => return None,
        1 => "The driver asks for a reset of the card: stop its desktops and reset it.".to_owned(),
        2 | 7 => "The driver asks for a reboot: stop the desktops of the machine and reboot it.".to_owned(),
        3 => "The driver asks for an end of traffic between cards: stop the desktops that use several cards.".to_owned(),
        4 => "The driver asks for a reset after its users are gone: stop the desktops of the card and reset it.".to_owned(),
        5 => {
            return Some(healthy_but(
                "The driver asks for a recovery of the IMEX domain: restart nvidia-imex on its machines.",
            ));
        }
        6 => "The driver asks for a reset of the card's bus: stop its desktops and reset it.".to_owned(),
        other => format!("The driver asks for recovery action {other}: look it up in NVML's documentation and do it."),
    }))
}

fn by_events(events: &[&DriverEvent]) -> Option<Judgement> {
    let whole_card = || events.iter().filter(|event| event.gpu_instance.is_none());
    let mut worst: Option<(u8, Judgement)> = None;
    for event in whole_card() {
        let (weight, judgement) = match event.kind {
            EventKind::Xid(code) => {
                let (group, meaning) = xid::meaning(code);
                let sentence = format!("XID {code}: {meaning}");
                match group {
                    Group::OffTheBus => (3, failed(sentence)),
                    Group::Reset => (2, failed(sentence)),
                    Group::Alert | Group::Contained | Group::Hint | Group::Unknown => {
                        (1, healthy_but(sentence))
                    }
                    Group::Application => continue,
                }
            }
            EventKind::Unavailable => (
                3,
                failed(
                    "The driver says that the card cannot be used: reset it, or power the machine off and on.",
                ),
            ),
            EventKind::DoubleBitEcc => (
                2,
                failed(
                    "Memory had an error that cannot be corrected: stop the desktops of the card and reset it.",
                ),
            ),
            EventKind::RecoveryAction | EventKind::Other(_) => continue,
        };
        // Of equal ones the newest, which is last.
        if worst.as_ref().is_none_or(|(before, _)| weight >= *before) {
            worst = Some((weight, judgement));
        }
    }
    worst.map(|(_, judgement)| judgement)
}

/// One entry per code and slice, lowest code first.
fn xids(events: &[&DriverEvent]) -> Vec<Xid> {
    let mut entries: Vec<Xid> = vec![];
    for event in events {
        let EventKind::Xid(code) = event.kind else { continue };
        let Some(number) = i32::try_from(code).ok().filter(|code| *code <= 65_535) else { continue };
        let entry = Xid {
            code: number,
            gpu_instance: event.gpu_instance,
            compute_instance: event.compute_instance,
            last_seen: Time(event.at),
            message: xid::meaning(code).1.to_owned(),
        };
        let same = entries.iter_mut().find(|other| {
            (other.code, other.gpu_instance, other.compute_instance)
                == (entry.code, entry.gpu_instance, entry.compute_instance)
        });
        match same {
            Some(other) if other.last_seen >= entry.last_seen => {}
            Some(other) => *other = entry,
            None => entries.push(entry),
        }
    }
    // The newest count when there are too many.
    entries.sort_by(|a, b| b.last_seen.cmp(&a.last_seen).then_with(|| key(a).cmp(&key(b))));
    entries.truncate(EVENTS_PER_CARD);
    entries.sort_by_key(key);
    entries
}

fn key(xid: &Xid) -> (i32, Option<i32>, Option<i32>) {
    (xid.code, xid.gpu_instance, xid.compute_instance)
}
