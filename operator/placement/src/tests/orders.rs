//! The same in another order, and on a copy that follows.

use std::sync::Arc;

use gpudesk_crds::{Desktop, GpuNode, desktop::PowerState, types::VgpuSeries};
use proptest::prelude::*;

use super::builders::*;
use crate::{
    Limits, Placed, Snapshot,
    explain::Explanation,
    request::{DesktopKey, Request, Share},
};

/// What happens to one object; one after the other, while others happen in between.
#[derive(Clone, Debug)]
enum Event {
    Node(Box<GpuNode>),
    NodeGone(String),
    Desktop(Box<Desktop>, Option<Box<Request>>),
    DesktopGone(DesktopKey),
}

fn play(snapshot: &mut Snapshot, event: &Event) {
    match event {
        Event::Node(node) => _ = snapshot.node_seen(node),
        Event::NodeGone(name) => _ = snapshot.node_gone(name),
        Event::Desktop(desktop, request) => {
            snapshot.desktop_seen(desktop);
            snapshot.wants(&crate::snapshot::key_of(desktop), request.as_deref());
        }
        Event::DesktopGone(key) => _ = snapshot.desktop_gone(key),
    }
}

/// Cards of every mode, so that what is asked for competes for them.
fn cards(name: &str, kinds: &[u8]) -> GpuNode {
    let card = |(bus, kind): (u8, &u8)| match kind % 4 {
        0 => l40s(bus, 0),
        1 => rtx_pro_6000(bus, 0),
        2 => a100(bus, 0),
        _ => flex(bus, 0),
    };
    let cards: Vec<_> = (1..).zip(kinds).map(card).collect();
    node(name, &[cell(0, 60, 400_000, 60)], &cards)
}

fn shares() -> Vec<Share> {
    let slices = ["1g.5gb", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"];
    let graphics = ["1g.24gb+gfx", "2g.48gb+gfx", "4g.96gb+gfx"];
    let slices = slices.into_iter().map(|name| mig(name, VgpuSeries::C));
    let graphics = graphics.into_iter().map(|name| mig(name, VgpuSeries::Q));
    let whole = [Share::Passthrough, Share::VirtualFunction { framebuffer_mib: 1000 }];
    slices.chain(graphics).chain([2, 8, 24].map(vgpu)).chain(whole).collect()
}

fn share() -> impl Strategy<Value = Share> {
    prop::sample::select(shares())
}

/// The life of each object up to now.
fn lives() -> impl Strategy<Value = Vec<Vec<Event>>> {
    let kinds = || prop::collection::vec(any::<u8>(), 1..4);
    let node = (prop::collection::vec(kinds(), 1..3), any::<bool>());
    let defined = (prop::collection::vec(share(), 1..3), any::<bool>(), any::<bool>());
    let all = (prop::collection::vec(node, 2..6), prop::collection::vec(defined, 0..14));
    all.prop_map(|(nodes, desktops)| {
        let mut lives: Vec<Vec<Event>> = vec![];
        for (number, (versions, goes)) in nodes.into_iter().enumerate() {
            let name = format!("node-{number}");
            let gone = Event::NodeGone(name.clone());
            let mut life: Vec<Event> =
                versions.iter().map(|kinds| Event::Node(Box::new(cards(&name, kinds)))).collect();
            life.extend(goes.then_some(gone));
            lives.push(life);
        }
        for (number, (versions, holds, goes)) in desktops.into_iter().enumerate() {
            let name = format!("d{number}");
            let key = DesktopKey::new("demo", &name);
            let mut life = vec![];
            for (version, share) in (1u64..).zip(&versions) {
                let asked = request(&name, vec![share.clone()]);
                // What it holds was given on a node of its own; others are off: nobody waits.
                let mut alone = Snapshot::new(Limits::default());
                alone.node_seen(&cards(&format!("node-{}", number % 5), &[0, 1, 2, 3]));
                let held = alone.place(&asked).ok().filter(|_| holds).map(|placed| allocation(&placed));
                let mut desktop = desktop(&name, version, held.as_deref());
                desktop.spec.power_state = PowerState::Stopped;
                life.push(Event::Desktop(Box::new(desktop), Some(Box::new(asked))));
            }
            life.extend(goes.then_some(Event::DesktopGone(key)));
            lives.push(life);
        }
        lives
    })
}

/// A number below a bound, by `SplitMix64`.
fn below(seed: &mut u64, bound: usize) -> usize {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((z ^ (z >> 31)) >> 33).unwrap() % bound
}

/// All lives, mixed; some events are seen twice.
fn mixed(lives: &[Vec<Event>], mut seed: u64) -> Vec<Event> {
    let mut next: Vec<&[Event]> = lives.iter().map(Vec::as_slice).collect();
    let mut mixed = vec![];
    while !next.is_empty() {
        let which = below(&mut seed, next.len());
        match next[which] {
            [event, rest @ ..] => {
                next[which] = rest;
                mixed.extend(std::iter::repeat_n(event.clone(), 1 + below(&mut seed, 4) / 3));
            }
            [] => _ = next.swap_remove(which),
        }
    }
    mixed
}

/// What the snapshot decides for one desktop of each kind, on its own.
fn decisions(snapshot: &mut Snapshot) -> Vec<Result<Placed, Explanation>> {
    let of = |share: Share| {
        let asked = request("asks", vec![share]);
        snapshot.place(&asked).map_err(|_| snapshot.explain(&asked))
    };
    shares().into_iter().map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    /// With nobody waiting equal state gives equal decisions.
    #[test]
    fn fifty_orders_of_the_same_events_give_the_same_decisions(lives in lives(), seed in any::<u64>()) {
        let play_all = |order: u64| {
            let mut snapshot = Snapshot::new(Limits { cpu_overcommit: 8 });
            for (number, event) in mixed(&lives, seed.wrapping_add(order)).iter().enumerate() {
                play(&mut snapshot, event);
                if number % 16 == 15 {
                    // What is decided on the way leaves no trace.
                    snapshot.catch_up();
                    decisions(&mut snapshot);
                }
            }
            snapshot.catch_up();
            decisions(&mut snapshot)
        };
        let first = play_all(0);
        for order in 1..50 {
            prop_assert_eq!(&first, &play_all(order), "order {}", order);
        }
    }

    /// A copy that follows decides and explains as the original does, and knows nobody who holds nothing.
    #[test]
    fn a_copy_that_follows_answers_as_the_original(lives in lives(), seed in any::<u64>()) {
        let mut snapshot = Snapshot::new(Limits { cpu_overcommit: 8 }).followed();
        let mut copy = Snapshot::new(Limits { cpu_overcommit: 8 });
        for (number, event) in mixed(&lives, seed).iter().enumerate() {
            play(&mut snapshot, event);
            if number % 5 == 0 {
                snapshot.catch_up();
                copy.follow(snapshot.news());
                prop_assert_eq!(decisions(&mut copy), decisions(&mut snapshot));
            }
        }
        snapshot.catch_up();
        copy.follow(snapshot.news());
        prop_assert_eq!(decisions(&mut copy), decisions(&mut snapshot));
        for share in shares() {
            prop_assert_eq!(copy.count(&one("x", vec![share.clone()])), snapshot.count(&one("x", vec![share])));
        }
        for number in 0..14 {
            let key = DesktopKey::new("demo", &format!("d{number}"));
            prop_assert_eq!(copy.wish(&key), snapshot.wish(&key).filter(|_| snapshot.holds(&key).is_some()));
        }
    }
}

#[test]
fn cards_enter_a_program_in_an_order_of_their_own() {
    let seen = |kinds: [u8; 3]| {
        let mut snapshot = Snapshot::default();
        for kind in kinds {
            snapshot.node_seen(&cards(&format!("node-{kind}"), &[kind, kind]));
        }
        let alike = snapshot.estate.alike().into_iter().map(|cards| (cards.shape, cards.used, cards.count));
        (snapshot.estate.supply(), alike.collect::<Vec<_>>())
    };
    let first = seen([0, 1, 2]);
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        assert_eq!(seen(order), first, "{order:?}");
    }
}

#[test]
fn a_node_that_takes_the_number_of_another_stands_by_its_own_name() {
    let mut snapshot = Snapshot::default();
    for name in ["b", "c", "d", "e", "f", "g", "h", "i"] {
        snapshot.node_seen(&cards(name, &[0]));
    }
    let asked = request("asks", vec![vgpu(8)]);
    assert_eq!(snapshot.place(&asked).unwrap().node, "b");
    // Nobody asks in between, so the ranking sees the same verdict under the same number.
    snapshot.node_gone("i");
    snapshot.node_seen(&cards("a", &[0]));
    assert_eq!(snapshot.place(&asked).unwrap().node, "a");
}

#[test]
fn a_decision_solves_nothing_and_judges_by_the_list_that_it_was_given() {
    let mut snapshot = Snapshot::default();
    snapshot.node_seen(&cards("a", &[1, 1]));
    snapshot.node_seen(&cards("b", &[0, 0]));
    for number in 0..8 {
        let asked = request(&format!("d{number}"), vec![mig("1g.24gb+gfx", VgpuSeries::Q)]);
        snapshot.desktop_seen(&desktop(&asked.desktop.name, 1, None));
        snapshot.wants(&asked.desktop, Some(&asked));
    }
    let asked = request("asks", vec![vgpu(8)]);
    let before = snapshot.place(&asked).unwrap();
    let work = snapshot.pricing_work().unwrap();
    assert_eq!(snapshot.place(&asked).unwrap(), before, "nothing is judged by prices that are not there");
    let list = Arc::new(work.solve());
    assert_eq!(snapshot.place(&asked).unwrap(), before);
    snapshot.use_prices(&list);
    assert_eq!((list.version, snapshot.place(&asked).unwrap().node.as_str()), (1, "b"));
    assert!(snapshot.pricing_work().is_none(), "nothing has changed since");
}

#[test]
fn hundreds_of_demands_are_decided_like_one() {
    let mut snapshot = Snapshot::default();
    snapshot.node_seen(&cards("a", &[0, 1]));
    snapshot.node_seen(&cards("b", &[0]));
    for round in 0..3 {
        for number in 0..300 {
            let mut asked = request(&format!("d{number}"), vec![vgpu(8)]);
            demand(&mut asked).memory.mib = 1024 + number;
            let best = snapshot.best_score_of_all(&asked);
            let placed = snapshot.place(&asked).ok();
            assert_eq!(placed.as_ref().map(|placed| (placed.score, placed.node.clone())), best, "{round}");
            if let Some(placed) = placed {
                snapshot.take(&asked.desktop, &allocation(&placed));
            }
        }
    }
}
