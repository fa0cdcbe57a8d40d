//! Properties over many desktops that come and go.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpudesk_crds::{
    Allocation, GpuNode,
    desktop_template::{NumaPolicy, Pinning},
    gpu_node::VgpuScheduler,
    types::{PageSize, ShareMode, VgpuSeries},
};
use proptest::prelude::*;

use super::{builders::*, oracle};
use crate::{
    Limits, Snapshot,
    request::{CpuRequest, DesktopKey, MemoryRequest, Request, Share},
};

fn estate() -> Vec<GpuNode> {
    let cells = || [cell(0, 6, 40_000, 6), cell(1, 6, 40_000, 6)];
    vec![
        node("a", &cells(), &[scheduling(l40s(1, 0)), scheduling(rtx_pro_6000(2, 1))]),
        mixing_sizes(node("b", &cells(), &[l40s(1, 0), l40s(2, 1)])),
        node("c", &cells(), &[a100(1, 0), flex(2, 0)]),
        // Like the one before, and nearly.
        node("d", &cells(), &[a100(1, 0), flex(2, 0)]),
        node("e", &cells(), &[a100(1, 0), flex(2, 1)]),
        node("f", &[cell(0, 6, 40_000, 6), cell(1, 6, 39_000, 6)], &[a100(1, 0), flex(2, 0)]),
    ]
}

fn share() -> impl Strategy<Value = Share> {
    prop_oneof![
        Just(Share::Passthrough),
        prop::sample::select(vec![1i64, 2, 3, 4, 6, 8, 12, 16, 24]).prop_map(vgpu),
        prop::sample::select(vec!["1g.24gb+gfx", "2g.48gb+gfx"]).prop_map(|p| mig(p, VgpuSeries::Q)),
        prop::sample::select(vec!["1g.5gb", "1g.5gb+me", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb"])
            .prop_map(|p| mig(p, VgpuSeries::C)),
        Just(Share::VirtualFunction { framebuffer_mib: 1000 }),
    ]
}

const SCHEDULERS: [VgpuScheduler; 2] = [VgpuScheduler::BestEffort, VgpuScheduler::FixedShare];

fn wish() -> impl Strategy<Value = Request> {
    (
        prop::collection::vec(share(), 0..3),
        1..6i32,
        1..3i32,
        prop::sample::select(vec![Pinning::Shared, Pinning::Dedicated, Pinning::DedicatedThreads]),
        1..12i64,
        any::<bool>(),
        prop::sample::select(vec![NumaPolicy::Strict, NumaPolicy::Preferred, NumaPolicy::None]),
        (any::<bool>(), prop::option::weighted(0.3, prop::sample::select(SCHEDULERS.to_vec()))),
    )
        .prop_map(|(shares, cores, threads_per_core, pinning, gib, huge, numa, (spread, scheduler))| {
            let mut request = request("", shares);
            let demand = demand(&mut request);
            demand.cpu = CpuRequest { cores, threads_per_core, pinning };
            let pages = if huge { PageSize::Gi1 } else { PageSize::None };
            demand.memory = MemoryRequest { mib: gib * 1024, pages, allow_fallback: spread };
            demand.numa = numa;
            for share in &mut demand.shares {
                share.spread = spread;
                share.cards.scheduler = scheduler;
            }
            request
        })
}

/// A desktop asks, or the n-th of those that run goes.
#[derive(Clone, Debug)]
enum Event {
    Ask(Request),
    Go(prop::sample::Index),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(
        prop_oneof![3 => wish().prop_map(Event::Ask), 1 => any::<prop::sample::Index>().prop_map(Event::Go)],
        1..40,
    )
}

fn limits() -> Limits {
    Limits { cpu_overcommit: 2 }
}

/// Plays events and returns the snapshot, and what runs.
fn play(events: &[Event], mut each: impl FnMut(&Snapshot, &BTreeMap<String, Arc<Allocation>>)) -> Snapshot {
    let mut snapshot = Snapshot::new(limits());
    for node in estate() {
        snapshot.node_seen(&node);
    }
    let mut running: BTreeMap<String, Arc<Allocation>> = BTreeMap::new();
    for (number, event) in events.iter().enumerate() {
        match event {
            Event::Ask(request) => {
                let name = format!("d{number}");
                let key = DesktopKey::new("demo", &name);
                let request = Request { desktop: key.clone(), ..request.clone() };
                snapshot.desktop_seen(&desktop(&name, 1, None));
                if let Ok(placed) = snapshot.place(&request) {
                    let given = allocation(&placed);
                    for (asked, gpu) in request.demand.shares.iter().zip(&given.gpus) {
                        let is_vgpu = matches!(gpu.mode, ShareMode::Vgpu | ShareMode::Mig);
                        let wanted = asked.cards.scheduler.filter(|_| is_vgpu);
                        assert!(wanted.is_none() || gpu.vgpu_scheduler == wanted, "{gpu:?}");
                    }
                    snapshot.assume(&key, "1", &given).unwrap();
                    snapshot.desktop_seen(&desktop(&name, 2, Some(&given)));
                    running.insert(name, given);
                }
            }
            Event::Go(index) => {
                if !running.is_empty() {
                    let name = running.keys().nth(index.index(running.len())).unwrap().clone();
                    running.remove(&name);
                    snapshot.desktop_gone(&DesktopKey::new("demo", &name));
                }
            }
        }
        each(&snapshot, &running);
    }
    snapshot
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_given_twice_and_no_bound_is_passed(events in events()) {
        let nodes = estate();
        play(&events, |_, running| {
            for node in &nodes {
                let name = node.metadata.name.as_deref().unwrap();
                let here: Vec<&Allocation> = running.values().filter(|a| a.node == name).map(|a| &**a).collect();
                oracle::check(node, &here, limits().cpu_overcommit);
            }
        });
    }

    #[test]
    fn a_snapshot_kept_by_events_equals_one_built_from_the_objects(events in events(), backwards in any::<bool>()) {
        let mut kept = play(&events, |_, _| {});
        // What asked and got nothing is known too; what runs is known by its allocation.
        let mut running = BTreeMap::new();
        play(&events, |_, now| running.clone_from(now));
        for (number, event) in events.iter().enumerate() {
            let name = format!("d{number}");
            if matches!(event, Event::Ask(_)) && !running.contains_key(&name) {
                kept.desktop_gone(&DesktopKey::new("demo", &name));
            }
        }
        let mut built = Snapshot::new(limits());
        let mut desktops: Vec<_> = running.iter().map(|(name, given)| desktop(name, 2, Some(given))).collect();
        let mut nodes = estate();
        if backwards {
            // Desktops before nodes, the last first: the order of events does not matter.
            desktops.reverse();
            nodes.reverse();
            for desktop in &desktops {
                built.desktop_seen(desktop);
            }
            for node in &nodes {
                built.node_seen(node);
            }
        } else {
            for node in &nodes {
                built.node_seen(node);
            }
            for desktop in &desktops {
                built.desktop_seen(desktop);
            }
        }
        prop_assert_eq!(kept, built);
    }

    #[test]
    fn release_restores_the_state_exactly(events in events(), request in wish()) {
        let mut snapshot = play(&events, |_, _| {});
        let key = DesktopKey::new("demo", "last");
        let request = Request { desktop: key.clone(), ..request };
        let before = snapshot.clone();
        snapshot.desktop_seen(&desktop("last", 1, None));
        if let Ok(placed) = snapshot.place(&request) {
            let given = allocation(&placed);
            snapshot.assume(&key, "1", &given).unwrap();
            prop_assert_ne!(&before, &snapshot);
            snapshot.forget(&key);
            snapshot.assume(&key, "1", &given).unwrap();
            snapshot.desktop_seen(&desktop("last", 2, Some(&given)));
        }
        snapshot.desktop_gone(&key);
        prop_assert_eq!(before, snapshot);
    }

    #[test]
    fn the_same_input_gives_the_same_decision(events in events(), request in wish()) {
        let once = play(&events, |_, _| {}).place(&request);
        let again = play(&events, |_, _| {}).place(&request);
        prop_assert_eq!(once, again);
    }
}
