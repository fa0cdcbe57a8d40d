//! Look-ahead for desktops that wait.

use gpudesk_crds::{desktop::PowerState, desktop_template::NumaPolicy, types::VgpuSeries};

use super::builders::*;
use crate::{
    Limits, Snapshot,
    prices::Prices,
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
    let node_for = |mut snapshot: Snapshot| {
        snapshot.catch_up();
        snapshot.place(&request("asks", vec![vgpu(8)])).unwrap().node
    };
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

#[test]
fn where_all_who_wait_find_room_they_take_nothing_from_each_other() {
    let prices = |count: f64| {
        let mut snapshot = estate(&slices(), 1, true);
        snapshot.catch_up();
        let wanted = snapshot.estate.tables.mix().wanted[0].0.clone();
        Prices::new(&snapshot.estate.alike(), &[(wanted, count)])
    };
    // Eight slices are all that there are.
    assert!(!prices(1.0).any());
    assert!(prices(40.0).any());
}

#[test]
fn the_best_start_for_one_share_gives_way_to_the_first_alternative_of_another() {
    let mut asked = request("asks", vec![]);
    demand(&mut asked).numa = NumaPolicy::None;
    demand(&mut asked).shares = vec![
        one("first", vec![mig("2g.10gb", VgpuSeries::C)]),
        one("second", vec![mig("4g.20gb", VgpuSeries::C), Share::VirtualFunction { framebuffer_mib: 1000 }]),
    ];
    let cells = [cell(0, 60, 400_000, 60), cell(1, 60, 400_000, 60)];
    // Four slices must start at 0. Who waits for what decides where two would start if they were alone.
    for waits in ["1g.5gb", "1g.5gb+me", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb"] {
        for count in 1..6 {
            let mut snapshot = Snapshot::new(Limits { cpu_overcommit: 1000 });
            snapshot.node_seen(&node("a", &cells, &[flex(1, 0), a100(2, 1)]));
            for number in 0..count {
                let name = format!("waits-{number}");
                snapshot.desktop_seen(&desktop(&name, 1, None));
                let key = DesktopKey::new("demo", &name);
                let request = request(&name, vec![mig(waits, VgpuSeries::C)]);
                snapshot.wants(&key, Some(&request));
            }
            snapshot.catch_up();
            let ways = snapshot.place(&asked).unwrap().score.ways;
            assert_eq!(ways, 0, "while {count} wait for {waits}");
        }
    }
}
