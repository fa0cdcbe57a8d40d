//! What cards report of their own accord.

use std::time::{Duration, Instant};

use gpudesk_crds::gpu_node_status::HealthState;
use gpudesk_inventory::driver::{DriverEvent, EventKind, remember};
use tokio::sync::mpsc::Receiver;

use crate::fake::{Fake, devices};

const CARDS: &str = "
- {model: A30, address: '0000:41:00.0', mig: true, recoveryAction: null, gpuInstances: [{profile: 2g.12gb, start: 0}]}
- {model: L4, address: '0000:42:00.0', recoveryAction: null}";

fn next(events: &mut Receiver<DriverEvent>) -> Option<DriverEvent> {
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        if let Ok(event) = events.try_recv() {
            return Some(event);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

#[test]
fn errors_are_told_once_with_the_slice_they_name() {
    let old = "{card: '0000:42:00.0', xid: 13}";
    let fake = Fake::new(&format!("events: [{old}]\ncards: {CARDS}"));
    let nvml = fake.nvml();
    let mut events = nvml.events().unwrap();
    fake.world(&format!(
        "events: [{old}, {{card: '0000:41:00.0', xid: 94, gpuInstance: 1, computeInstance: 0}}, {{card: '0000:42:00.0', xid: 48}}]\ncards: {CARDS}"
    ));
    let (first, second) = (next(&mut events).unwrap(), next(&mut events).unwrap());
    assert_eq!((first.card.to_string().as_str(), first.kind), ("0000:41:00.0", EventKind::Xid(94)));
    assert_eq!((first.gpu_instance, first.compute_instance), (Some(1), Some(0)));
    assert_eq!((second.card.to_string().as_str(), second.kind), ("0000:42:00.0", EventKind::Xid(48)));
    assert_eq!((second.gpu_instance, second.compute_instance), (None, None), "the whole card");
    std::thread::sleep(Duration::from_millis(200));
    assert!(events.try_recv().is_err(), "what was before is past, and nothing is told twice");

    let mut readings = nvml.read().unwrap();
    remember(&mut readings.events, first);
    remember(&mut readings.events, second);
    let cards = devices(&readings);
    assert_eq!(
        (cards[0].health.state, cards[0].health.xids[0].gpu_instance),
        (HealthState::Healthy, Some(1))
    );
    assert_eq!((cards[1].health.state, cards[1].health.xids[0].code), (HealthState::Failed, 48));
}

#[test]
fn an_error_of_a_card_that_is_lost_still_names_it() {
    let fake = Fake::new(&format!("cards: {CARDS}"));
    let mut events = fake.nvml().events().unwrap();
    let lost = CARDS.replace("'0000:42:00.0',", "'0000:42:00.0', lost: true,");
    fake.world(&format!("events: [{{card: '0000:42:00.0', xid: 79}}]\ncards: {lost}"));
    let event = next(&mut events).unwrap();
    assert_eq!((event.card.to_string().as_str(), event.kind), ("0000:42:00.0", EventKind::Xid(79)));
}

#[test]
fn a_card_that_is_plugged_in_is_listened_to_after_a_rescan() {
    let more = format!("{CARDS}\n- {{model: L4, address: '0000:43:00.0'}}");
    let fake = Fake::new(&format!("cards: {CARDS}"));
    let nvml = fake.nvml();
    let mut events = nvml.events().unwrap();
    fake.world(&format!("cards: {more}"));
    // The events' own use of NVML began before the card was there.
    assert_eq!(nvml.read().unwrap().cards.len(), 2);
    nvml.rescan();
    let until = Instant::now() + Duration::from_secs(10);
    while nvml.read().unwrap().cards.len() != 3 {
        assert!(Instant::now() < until);
    }
    // The new use of NVML begins some moments before it listens.
    std::thread::sleep(Duration::from_millis(1500));
    fake.world(&format!("events: [{{card: '0000:43:00.0', xid: 63}}]\ncards: {more}"));
    assert_eq!(next(&mut events).unwrap().card.to_string(), "0000:43:00.0");
}

#[test]
fn listening_ends_when_the_receiver_is_dropped() {
    let fake = Fake::new(&format!("cards: {CARDS}"));
    let nvml = fake.nvml();
    let events = nvml.events().unwrap();
    assert!(nvml.events().is_err(), "one listener is enough");
    drop(events);
    let until = Instant::now() + Duration::from_secs(10);
    while nvml.events().is_err() {
        assert!(Instant::now() < until, "the first one does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn listening_goes_on_after_the_driver_failed_for_a_while() {
    let fake = Fake::new(&format!("cards: {CARDS}"));
    let mut events = fake.nvml().events().unwrap();
    fake.world(&format!("faults: [{{function: nvmlEventSetWait_v2, error: UNKNOWN}}]\ncards: {CARDS}"));
    std::thread::sleep(Duration::from_millis(1500));
    fake.world(&format!("cards: {CARDS}"));
    std::thread::sleep(Duration::from_millis(3500));
    fake.world(&format!("events: [{{card: '0000:42:00.0', xid: 63}}]\ncards: {CARDS}"));
    assert_eq!(next(&mut events).unwrap().kind, EventKind::Xid(63));
}
