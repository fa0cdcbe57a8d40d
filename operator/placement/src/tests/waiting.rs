//! Look-ahead for desktops that wait.

use gpudesk_crds::{desktop::PowerState, types::VgpuSeries};

use super::builders::*;
use crate::{
    Limits, Snapshot,
    request::{DesktopKey, Request, Share},
};

/// A snapshot of two nodes, one with two RTX PRO 6000 and one with two L40S, and desktops that are
/// defined to ask for the same, so many of them.
fn estate(defined: &Request, count: usize, on: bool) -> Snapshot {
    let mut snapshot = Snapshot::new(Limits { cpu_overcommit: 8 });
    let cells = || [cell(0, 60, 400_000, 60)];
    snapshot.node_seen(&node("a", &cells(), &[rtx_pro_6000(1, 0), rtx_pro_6000(2, 0)]));
    snapshot.node_seen(&node("b", &cells(), &[l40s(1, 0), l40s(2, 0)]));
    for number in 0..count {
        let name = format!("waits-{number}");
        let mut desktop = desktop(&name, 1, None);
        desktop.spec.power_state = if on { PowerState::Running } else { PowerState::Stopped };
        snapshot.desktop_seen(&desktop);
        let key = DesktopKey::new("demo", &name);
        snapshot.wants(&key, Some(&Request { desktop: key.clone(), ..defined.clone() }));
    }
    snapshot
}

fn slices() -> Request {
    request("", vec![mig("1g.24gb+gfx", VgpuSeries::Q)])
}

fn whole_l40s() -> Request {
    let mut request = request("", vec![Share::Passthrough]);
    for share in &mut demand(&mut request).shares {
        share.cards.products = vec!["*L40S".to_owned()];
    }
    request
}

#[test]
fn a_card_is_not_opened_that_those_who_wait_need_whole() {
    let node_for = |mut snapshot: Snapshot| snapshot.place(&request("asks", vec![vgpu(8)])).unwrap().node;
    // Eight slices fill the cards of `a`, two whole cards those of `b`; 8Q fits on either.
    assert_eq!(node_for(estate(&slices(), 8, true)), "b");
    assert_eq!(node_for(estate(&whole_l40s(), 2, true)), "a");
}

#[test]
fn who_is_off_does_not_wait() {
    let (waiting, off) = (estate(&slices(), 8, true), estate(&slices(), 8, false));
    assert_ne!(waiting, off);
    assert!(waiting.waits_for_something() && !off.waits_for_something());
}

#[test]
fn who_has_a_place_does_not_wait_and_waits_again_without_it() {
    let mut snapshot = estate(&slices(), 1, true);
    let before = snapshot.clone();
    let key = DesktopKey::new("demo", "waits-0");
    let placed = snapshot.place(&Request { desktop: key.clone(), ..slices() }).unwrap();
    snapshot.assume(&key, "1", &allocation(&placed)).unwrap();
    assert!(!snapshot.waits_for_something());
    snapshot.forget(&key);
    assert!(snapshot.waits_for_something());
    assert_eq!(snapshot, before);
    snapshot.desktop_gone(&key);
    assert!(!snapshot.waits_for_something());
}
