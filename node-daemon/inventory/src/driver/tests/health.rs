use gpudesk_crds::gpu_node_status::{Health, HealthState, RecoveryAction};

use super::*;

#[test]
fn thresholds_are_degrees_or_what_margins_make_of_now() {
    let degrees = card("temperature: {now: 45, degrees: {shutdown: 96, slowdown: 93, gpuMax: 85}}");
    let thresholds = degrees.temperature_thresholds.unwrap();
    assert_eq!((thresholds.shutdown_celsius, thresholds.max_operating_celsius), (Some(96), Some(85)));
    // A real RTX 4000 Ada at 36 degrees: T.Limit 49, shutdown -7, slowdown -2, highest operating 0.
    let margins =
        card("temperature: {now: 36, margin: 49, margins: {shutdown: -7, slowdown: -2, gpuMax: 0}}");
    let thresholds = margins.temperature_thresholds.unwrap();
    assert_eq!(
        (thresholds.shutdown_celsius, thresholds.slowdown_celsius, thresholds.max_operating_celsius),
        (Some(92), Some(87), Some(85))
    );
    assert_eq!(margins.temperature_celsius, Some(36));
}

#[test]
fn idle_clocks_are_no_throttling() {
    assert!(card("clocksEventReasons: 1").health.throttle_reasons.is_empty());
    assert_eq!(card("clocksEventReasons: 68").health.throttle_reasons, ["SwPowerCap", "HwThermalSlowdown"]);
}

fn health(says: &str, events: &str) -> Health {
    first(&format!("events: [{events}]\ncards: [{{address: '0000:41:00.0', {says}}}]")).health
}

/// An event as serde writes it.
fn xid(code: u32, gpu_instance: Option<i32>, at: &str) -> String {
    let event = DriverEvent {
        card: "0000:41:00.0".parse().unwrap(),
        at: at.parse().unwrap(),
        kind: EventKind::Xid(code),
        gpu_instance,
        compute_instance: gpu_instance.map(|_| 0),
    };
    serde_json::to_string(&event)
        .unwrap()
        .replace("{\"xid\":", "!xid ")
        .replace("},\"gpu", ",\"gpu")
        .replace("}}", "}")
}

const NOON: &str = "2026-11-21T12:00:00Z";

#[test]
fn what_the_driver_wants_done_counts_before_any_table() {
    for (action, api, word) in [
        (1, Some(RecoveryAction::GpuReset), "reset"),
        (2, Some(RecoveryAction::NodeReboot), "reboot"),
        (3, Some(RecoveryAction::DrainP2P), "traffic"),
        (4, Some(RecoveryAction::DrainAndReset), "users"),
        (12, None, "12"),
    ] {
        let judged = health(&format!("recoveryAction: {action}"), "");
        assert_eq!((judged.state, judged.recovery_action), (HealthState::Failed, api));
        assert!(judged.message.unwrap().contains(word));
    }
    let nothing = health("recoveryAction: 0", &xid(48, None, NOON));
    assert_eq!((nothing.state, nothing.recovery_action), (HealthState::Healthy, Some(RecoveryAction::None)));
    assert_eq!(nothing.xids.len(), 1, "it is shown all the same");
}

#[test]
fn without_the_drivers_word_the_table_judges_by_what_an_error_asks_for() {
    for (code, state) in [
        (13, HealthState::Healthy),
        (31, HealthState::Healthy),
        (63, HealthState::Healthy),
        (94, HealthState::Healthy),
        (74, HealthState::Healthy),
        (48, HealthState::Failed),
        (62, HealthState::Failed),
        (79, HealthState::Failed),
        (95, HealthState::Failed),
        (119, HealthState::Failed),
    ] {
        assert_eq!(health("", &xid(code, None, NOON)).state, state, "XID {code}");
    }
    assert_eq!(health("", &xid(13, None, NOON)).message, None, "a program's fault is not the card's");
}

#[test]
fn an_error_that_names_a_slice_is_blamed_on_the_slice() {
    let judged = health("", &xid(48, Some(3), NOON));
    assert_eq!(judged.state, HealthState::Healthy);
    assert_eq!((judged.xids[0].gpu_instance, judged.xids[0].compute_instance), (Some(3), Some(0)));
}

#[test]
fn each_error_is_listed_once_per_slice_with_its_last_time() {
    let events = [
        xid(48, None, NOON),
        xid(13, Some(3), NOON),
        xid(13, Some(4), NOON),
        xid(48, None, "2026-11-21T13:00:00Z"),
    ];
    let judged = health("", &events.join(", "));
    let listed: Vec<(i32, Option<i32>)> =
        judged.xids.iter().map(|xid| (xid.code, xid.gpu_instance)).collect();
    assert_eq!(listed, [(13, Some(3)), (13, Some(4)), (48, None)]);
    assert_eq!(judged.xids[2].last_seen.0.to_string(), "2026-11-21T13:00:00Z");
}

#[test]
fn rows_that_could_not_be_replaced_mean_another_card_and_rows_that_wait_a_reset() {
    let failed = health("recoveryAction: 0, rowRemapping: {failed: true, uncorrected: 2}", "");
    assert_eq!(failed.state, HealthState::Failed);
    assert!(failed.message.unwrap().contains("replace the card"));
    let pending = health("recoveryAction: 0, rowRemapping: {pending: true}", "");
    assert_eq!(pending.state, HealthState::Healthy);
    assert!(pending.message.unwrap().contains("reset"));
}

#[test]
fn a_card_that_is_lost_keeps_its_place_and_loses_its_health() {
    let lost =
        card("uuid: GPU-1, fault: {kind: Lost, message: 'nvmlDeviceGetName: the GPU fell off the bus'}");
    assert_eq!((lost.health.state, lost.uuid.as_deref()), (HealthState::Failed, Some("GPU-1")));
    assert!(lost.health.message.unwrap().contains("power the machine off"));
    let silent = card("fault: {kind: NoAnswer, message: no answer in 20 s}");
    assert_eq!(silent.health.state, HealthState::Failed);
    let other = card("fault: {kind: Other, message: no permission}");
    assert_eq!(other.health.state, HealthState::Unknown);
}

#[test]
fn a_mig_mode_that_waits_for_a_reset_says_so() {
    let waiting = card("mig: {current: false, pending: true}");
    let mode = waiting.mig.unwrap();
    assert!(!mode.current && mode.pending);
    assert!(waiting.health.message.unwrap().contains("MIG will be on"));
}

#[test]
fn of_equal_events_the_newest_is_kept_and_of_many_the_last() {
    let event = |code: u32, second: i64| DriverEvent {
        card: "0000:41:00.0".parse().unwrap(),
        at: jiff::Timestamp::from_second(second).unwrap(),
        kind: EventKind::Xid(code),
        gpu_instance: None,
        compute_instance: None,
    };
    let mut events = vec![];
    remember(&mut events, event(48, 1));
    remember(&mut events, event(48, 2));
    assert_eq!((events.len(), events[0].at.as_second()), (1, 2));
    for code in 0..1000 {
        remember(&mut events, event(code, 3));
    }
    assert_eq!(events.len(), EVENTS_PER_CARD);
    assert_eq!(events.last().unwrap().kind, EventKind::Xid(999));
}
