//! What the owner of a node, the user and the hardware say about where a desktop goes.

use std::collections::BTreeMap;

use gpudesk_crds::{
    GpuNode,
    conditions::Reason,
    desktop_template::{NumaPolicy, Pinning},
    types::VgpuSeries,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::builders::*;
use crate::{
    Placed, Snapshot,
    affinity::{Manners, Neighbours},
    request::{
        AffinityRule, CpuRequest, FunctionKind, FunctionRequest, Previous, PreviousCard, Relation, Request,
        Share, Toleration, VgpuWish,
    },
};

fn snapshot(nodes: &[GpuNode]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.node_seen(node);
    }
    snapshot
}

fn why(snapshot: &mut Snapshot, request: &Request) -> String {
    snapshot.explain(request).message
}

/// Places a desktop with its labels and says what it asks for.
fn give(snapshot: &mut Snapshot, request: &Request) -> Placed {
    let placed = snapshot.place(request).unwrap();
    let mut object = desktop(&request.desktop.name, 1, Some(&allocation(&placed)));
    object.metadata.labels = Some(request.labels.clone());
    snapshot.desktop_seen(&object);
    snapshot.wants(&request.desktop, Some(request));
    placed
}

fn plain(name: &str, devices: &[Value]) -> GpuNode {
    node(name, &[cell(0, 8, 65_536, 8), cell(1, 8, 65_536, 8)], devices)
}

fn labelled(mut node: GpuNode, key: &str, value: &str) -> GpuNode {
    node.metadata.labels.get_or_insert_default().insert(key.into(), value.into());
    node
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_taint_keeps_away_who_does_not_tolerate_it() {
    let mut tainted = plain("n", &[]);
    tainted.spec.taints = serde_json::from_value(json!([{"key": "exam", "value": "cad"}])).unwrap();
    let mut snapshot = snapshot(&[tainted]);
    let mut asked = request("a", vec![]);
    assert_eq!(why(&mut snapshot, &asked), "0/1 nodes: 1 with a taint that is not tolerated");
    for (value, tolerated) in [(Some("cad"), true), (None, true), (Some("art"), false)] {
        demand(&mut asked).tolerations =
            vec![Toleration { key: "exam".into(), value: value.map(ToOwned::to_owned) }];
        assert_eq!(snapshot.place(&asked).is_ok(), tolerated, "{value:?}");
    }
}

fn rule(relation: Relation, key: Option<&str>, required: bool) -> AffinityRule {
    AffinityRule {
        relation,
        topology_key: key.map(ToOwned::to_owned),
        match_labels: labels(&[("course", "cad")]),
        required,
    }
}

fn pupil(name: &str, affinity: Vec<AffinityRule>) -> Request {
    Request { labels: labels(&[("course", "cad")]), affinity, ..request(name, vec![]) }
}

#[test]
fn apart_means_another_node_and_waits_when_there_is_none() {
    let mut snapshot = snapshot(&[plain("a", &[]), plain("b", &[])]);
    let apart = || vec![rule(Relation::Apart, None, true)];
    assert_eq!(give(&mut snapshot, &pupil("one", apart())).node, "a");
    assert_eq!(give(&mut snapshot, &pupil("two", apart())).node, "b");
    assert_eq!(why(&mut snapshot, &pupil("three", apart())), "0/2 nodes: 2 ruled out by required affinity");
    // The rule holds in both directions: who has no rule is kept off as well.
    assert!(snapshot.place(&pupil("four", vec![])).is_err());
    assert!(snapshot.place(&request("other", vec![])).is_ok(), "without the label");
    snapshot.desktop_gone(&pupil("one", vec![]).desktop);
    assert_eq!(snapshot.place(&pupil("three", apart())).unwrap().node, "a");
}

#[test]
fn rules_of_places_that_no_node_has_are_not_looked_at() {
    let rules: Vec<AffinityRule> =
        (0..64).map(|n| rule(Relation::Apart, Some(&format!("invented-{n}")), n % 2 == 0)).collect();
    let mut neighbours = Neighbours::default();
    let manners = Manners { labels: labels(&[("course", "cad")]), apart: Manners::apart_of(&rules) };
    neighbours.come(&pupil("one", vec![]).desktop, &"a".into(), &manners);
    assert_eq!(
        neighbours.ruling(&pupil("two", rules.clone()), |_| None),
        None,
        "its own and those of others"
    );
    let near = pupil("two", vec![rule(Relation::Together, Some("invented"), true)]);
    assert!(neighbours.ruling(&near, |_| None).is_some(), "who must be near waits for that place");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rules_of_places_that_no_node_has_change_no_decision(
        asks in prop::collection::vec((0..3usize, any::<bool>(), any::<bool>()), 1..10),
    ) {
        let racks = [("a", "1"), ("b", "2"), ("c", "2")];
        let nodes: Vec<GpuNode> =
            racks.iter().map(|(name, rack)| labelled(plain(name, &[]), "rack", rack)).collect();
        let (mut with, mut without) = (snapshot(&nodes), snapshot(&nodes));
        for (number, (place, together, required)) in asks.into_iter().enumerate() {
            let key = [None, Some("rack"), Some("hall")][place];
            let relation = if together { Relation::Together } else { Relation::Apart };
            let own = vec![rule(relation, key, required)];
            let invented = (0..8).map(|n| rule(Relation::Apart, Some(&format!("invented-{number}-{n}")), n < 4));
            let name = format!("d{number}");
            let few = pupil(&name, own.clone());
            let many = pupil(&name, own.into_iter().chain(invented).collect());
            let node = |snapshot: &mut Snapshot, asked: &Request| {
                if snapshot.place(asked).is_ok() {
                    Ok(give(snapshot, asked).node)
                } else {
                    Err(why(snapshot, asked))
                }
            };
            prop_assert_eq!(node(&mut without, &few), node(&mut with, &many));
        }
    }
}

#[test]
fn together_follows_the_first_into_its_rack() {
    let racks = [("a", "1"), ("b", "2"), ("c", "2"), ("d", "1")];
    let nodes: Vec<GpuNode> =
        racks.iter().map(|(name, rack)| labelled(plain(name, &[]), "rack", rack)).collect();
    let mut snapshot = snapshot(&[&nodes[..], &[plain("nowhere", &[])]].concat());
    let together = |required| vec![rule(Relation::Together, Some("rack"), required)];
    let mut first = pupil("one", together(true));
    demand(&mut first).node_selector = labels(&[("rack", "2")]);
    assert_eq!(give(&mut snapshot, &first).node, "b", "nobody is there: anywhere");
    assert_eq!(snapshot.place(&pupil("two", together(true))).unwrap().node, "b");
    let mut elsewhere = pupil("two", together(true));
    demand(&mut elsewhere).node_selector = labels(&[("rack", "1")]);
    assert!(snapshot.place(&elsewhere).is_err());
    elsewhere.affinity = together(false);
    assert_eq!(snapshot.place(&elsewhere).unwrap().node, "a", "preferred gives way");
    assert_eq!(snapshot.place(&pupil("two", together(false))).unwrap().node, "b", "and counts where it can");
    let stranger = Request {
        labels: BTreeMap::new(),
        ..pupil(
            "x",
            vec![AffinityRule {
                match_labels: labels(&[("course", "art")]),
                ..rule(Relation::Together, None, true)
            }],
        )
    };
    assert!(snapshot.place(&stranger).is_err(), "waits for the first of the others");
}

#[test]
fn preferred_affinity_is_weighed_as_looking_at_every_node_would() {
    let nodes: Vec<GpuNode> = (0..9).map(|number| plain(&format!("n{number}"), &[])).collect();
    let mut snapshot = snapshot(&nodes);
    for number in 0..7 {
        give(&mut snapshot, &pupil(&format!("p{number}"), vec![rule(Relation::Apart, None, false)]));
        let next = pupil("next", vec![rule(Relation::Apart, None, false)]);
        let best = snapshot.best_score_of_all(&next);
        let placed = snapshot.place(&next).ok().map(|placed| (placed.score, placed.node));
        assert_eq!(placed, best);
    }
    let used: usize = nodes
        .iter()
        .filter(|node| {
            let name = node.metadata.name.as_deref().unwrap();
            snapshot.node(name).is_some_and(|state| !state.held.is_empty())
        })
        .count();
    assert_eq!(used, 7, "each on a node of its own");
}

fn had(node: &str, card: &str) -> Previous {
    let card = PreviousCard { uuid: None, address: card.parse().unwrap() };
    Previous { node: node.into(), cards: [("gpu0".to_owned(), card)].into() }
}

#[test]
fn a_restart_takes_the_same_card_again_when_it_is_free() {
    let mut cards = [plain("a", &[l40s(1, 0)]), plain("b", &[l40s(1, 0), l40s(2, 0)])];
    for node in &mut cards {
        for device in &mut node.status.as_mut().unwrap().devices {
            device.uuid = None;
        }
    }
    let mut snapshot = snapshot(&cards);
    let mut asked = request("a", vec![vgpu(8)]);
    assert_eq!(snapshot.place(&asked).unwrap().node, "a");
    asked.previous = Some(had("b", "0000:02:00.0"));
    let placed = snapshot.place(&asked).unwrap();
    assert_eq!((placed.node.as_str(), placed.gpus[0].device.to_string().as_str()), ("b", "0000:02:00.0"));
    assert!(!placed.score.moved);
    // Somebody has it whole by now.
    let mut whole = request("whole", vec![Share::Passthrough]);
    whole.previous = Some(had("b", "0000:02:00.0"));
    give(&mut snapshot, &whole);
    let placed = snapshot.place(&asked).unwrap();
    assert_ne!(placed.gpus[0].device.to_string(), "0000:02:00.0");
    assert_eq!(Some((placed.score, placed.node)), snapshot.best_score_of_all(&asked));
}

/// Cards `1..=count` on one board with the fifteen partitions of HGX, as far as they have these cards.
fn board(count: u8) -> GpuNode {
    let cards: Vec<Value> = (1..=count)
        .map(|number| {
            let mut card = l40s(number, i32::from(number > 4));
            card["moduleId"] = json!(number);
            card
        })
        .collect();
    let mut node = plain("hgx", &cards);
    let sets: [&[i32]; 15] = [
        &[1, 2, 3, 4, 5, 6, 7, 8],
        &[1, 2, 3, 4],
        &[5, 6, 7, 8],
        &[1, 3],
        &[2, 4],
        &[5, 7],
        &[6, 8],
        &[1],
        &[2],
        &[3],
        &[4],
        &[5],
        &[6],
        &[7],
        &[8],
    ];
    let partitions: Vec<Value> =
        sets.iter().enumerate().map(|(id, set)| json!({"id": id, "moduleIds": set})).collect();
    node.status.as_mut().unwrap().fabric = serde_json::from_value(json!({"partitions": partitions})).unwrap();
    node
}

#[test]
fn cards_of_a_switched_board_come_in_the_sets_that_its_fabric_knows() {
    let mut snapshot = snapshot(&[board(8)]);
    let whole = |name: &str, count: usize| request(name, vec![Share::Passthrough; count]);
    let two = give(&mut snapshot, &whole("two", 2));
    let cards: Vec<String> = two.gpus.iter().map(|gpu| gpu.device.to_string()).collect();
    assert_eq!((cards, two.fabric_partition), (vec!["0000:01:00.0".into(), "0000:03:00.0".into()], Some(3)));
    // A third card next to it would break the other set of four: it comes from the broken one.
    let one = give(&mut snapshot, &whole("one", 1));
    assert!(matches!(one.fabric_partition, Some(8 | 10)), "{:?}", one.fabric_partition);
    assert_eq!(give(&mut snapshot, &whole("four", 4)).fabric_partition, Some(2));
    assert!(why(&mut snapshot, &whole("next", 2)).starts_with("0/1 nodes: 1 no "));
    let three = snapshot.explain(&whole("three", 3));
    assert_eq!(three.reason, Reason::Unsatisfiable);
    assert!(three.message.contains("no free NVLink partition of 3 cards"), "{}", three.message);
}

#[test]
fn several_cards_are_near_each_other_by_nvlink_then_by_switch() {
    let mut cards: Vec<Value> = (1..=6).map(|number| l40s(number, 0)).collect();
    let pair = |cards: &mut [Value], a: usize, b: usize| {
        cards[a]["nvlinkPeers"] = json!([cards[b]["uuid"]]);
        cards[b]["nvlinkPeers"] = json!([cards[a]["uuid"]]);
    };
    pair(&mut cards, 1, 4);
    for at in [2, 3] {
        cards[at]["pciePath"] = json!(["0000:40:01.0", "0000:41:00.0", format!("0000:42:0{at}.0")]);
    }
    let mut snapshot = snapshot(&[plain("n", &cards)]);
    let next = |snapshot: &mut Snapshot, name: &str| {
        let placed = give(snapshot, &request(name, vec![Share::Passthrough, Share::Passthrough]));
        placed.gpus.iter().map(|gpu| gpu.device.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(next(&mut snapshot, "a"), ["0000:02:00.0", "0000:05:00.0"], "by NVLink");
    assert_eq!(next(&mut snapshot, "b"), ["0000:03:00.0", "0000:04:00.0"], "below one switch");
    assert_eq!(next(&mut snapshot, "c"), ["0000:01:00.0", "0000:06:00.0"]);
}

#[test]
fn vgpus_of_one_machine_are_of_one_board_and_one_series() {
    let mut snapshot = snapshot(&[plain("n", &[l40s(1, 0), rtx_pro_6000(2, 0)])]);
    let both = request("a", vec![vgpu(24), mig("2g.48gb+gfx", VgpuSeries::Q)]);
    assert!(why(&mut snapshot, &both).contains("no 2 vGPUs of one board and one series"));
    let of_series = |series| Share::Vgpu(VgpuWish::Size { series, min: 8192, max: 8192 }, BTreeMap::new());
    assert!(snapshot.place(&request("b", vec![of_series(VgpuSeries::Q); 2])).is_ok());
}

fn network_and_drives() -> GpuNode {
    let mut node = plain("n", &[l40s(1, 1)]);
    node.spec.physical_networks =
        serde_json::from_value(json!([{"name": "lab", "devices": ["0000:a0:00.0", "0000:b0:00.0"]}]))
            .unwrap();
    let drive = |name: &str, address: &str| json!({"name": name, "selector": {"pciAddress": address}, "erase": "Format"});
    node.spec.nvme_drives =
        serde_json::from_value(json!([drive("large", "0000:d0:00.0"), drive("small", "0000:d1:00.0")]))
            .unwrap();
    let function = |address: &str| json!({"pciAddress": address, "index": 0});
    let device = |address: &str, kind: &str, cell: i32, more: Value| {
        let mut device = json!({"pciAddress": address, "kind": kind, "class": "0200", "vendorId": "15b3",
                                "deviceId": "1021", "product": "p", "numaCell": cell, "usable": true});
        device.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        device
    };
    node.status.as_mut().unwrap().host_devices = serde_json::from_value(json!([
        device("0000:a0:00.0", "NetworkCard", 0, json!({"virtualFunctions": [function("0000:a0:00.1")]})),
        device("0000:b0:00.0", "NetworkCard", 1, json!({"virtualFunctions": [function("0000:b0:00.1")]})),
        device("0000:c0:00.0", "NetworkCard", 1, json!({"virtualFunctions": [function("0000:c0:00.1")]})),
        device("0000:d0:00.0", "NvmeDrive", 1, json!({"sizeMiB": 4_000_000})),
        device("0000:d1:00.0", "NvmeDrive", 1, json!({"sizeMiB": 1_000_000})),
        // Large enough, near, and without a word of its owner.
        device("0000:d2:00.0", "NvmeDrive", 1, json!({"sizeMiB": 900_000})),
    ]))
    .unwrap();
    node
}

#[test]
fn functions_and_drives_are_near_the_card_and_given_once() {
    let mut snapshot = snapshot(&[network_and_drives()]);
    let lan = || FunctionRequest {
        name: "lan".into(),
        kind: FunctionKind::NetworkFunction { physical_network: "lab".into() },
    };
    let drive = |gib| FunctionRequest { name: "data".into(), kind: FunctionKind::Drive { minimum_gib: gib } };
    let asked = |name: &str, numa, functions: Vec<FunctionRequest>| {
        let mut asked = request(name, vec![vgpu(8)]);
        demand(&mut asked).numa = numa;
        demand(&mut asked).functions = functions;
        asked
    };
    let first = give(&mut snapshot, &asked("a", NumaPolicy::Strict, vec![lan(), drive(500)]));
    let given: Vec<String> = first.host_devices.iter().map(|device| device.device.to_string()).collect();
    assert_eq!(given, ["0000:b0:00.1", "0000:d1:00.0"], "of the card's cell, and the smallest that will do");
    let strict = asked("b", NumaPolicy::Strict, vec![lan()]);
    assert_eq!(
        why(&mut snapshot, &strict),
        "0/1 nodes: 1 no free virtual function for network lab on the GPU's NUMA cell"
    );
    let far = give(&mut snapshot, &asked("c", NumaPolicy::Preferred, vec![lan()]));
    assert_eq!(far.host_devices[0].device.to_string(), "0000:a0:00.1");
    let none = asked("d", NumaPolicy::Preferred, vec![lan()]);
    assert!(why(&mut snapshot, &none).starts_with("0/1 nodes: 1 no free virtual function for network lab"));
    let large = asked("e", NumaPolicy::Preferred, vec![drive(5000)]);
    assert_eq!(snapshot.explain(&large).reason, Reason::Unsatisfiable);
}

#[test]
fn hardware_threads_of_one_core_may_go_to_two_desktops() {
    let mut snapshot = snapshot(&[node("n", &[cell(0, 3, 65_536, 0)], &[])]);
    let asked = |name: &str, cores, pinning| {
        let mut asked = request(name, vec![]);
        demand(&mut asked).cpu = CpuRequest { cores, threads_per_core: 1, pinning };
        asked
    };
    let pins = |placed: &Placed| -> Vec<String> {
        placed.compute.vcpu_pins.iter().map(|pin| pin.cpus.to_string()).collect()
    };
    let one = give(&mut snapshot, &asked("one", 1, Pinning::DedicatedThreads));
    let two = give(&mut snapshot, &asked("two", 1, Pinning::DedicatedThreads));
    assert_eq!(
        (pins(&one), pins(&two)),
        (vec!["1".to_owned()], vec!["1001".to_owned()]),
        "the half-used core first"
    );
    assert!(one.compute.threads_only);
    let whole = give(&mut snapshot, &asked("whole", 2, Pinning::Dedicated));
    assert_eq!(pins(&whole), ["2", "1002"]);
    assert_eq!(
        why(&mut snapshot, &asked("next", 1, Pinning::DedicatedThreads)),
        "0/1 nodes: 1 not enough free CPU threads (fits after moving 1 desktop)"
            .replace(" (fits after moving 1 desktop)", "")
    );
}

#[test]
fn the_nearest_fit_is_named_and_the_moves_can_be_asked_for() {
    let mut snapshot = snapshot(&[plain("a", &[rtx_pro_6000(1, 0)]), plain("b", &[rtx_pro_6000(1, 0)])]);
    let slice = || vec![mig("1g.24gb+gfx", VgpuSeries::Q)];
    let mut one = request("one", slice());
    demand(&mut one).node_selector = BTreeMap::new();
    give(&mut snapshot, &one);
    let mut two = request("two", slice());
    two.previous = Some(had("b", "0000:01:00.0"));
    if let Some(previous) = &mut two.previous {
        previous.cards.values_mut().for_each(|card| card.uuid = Some("GPU-1".into()));
    }
    assert_eq!(give(&mut snapshot, &two).node, "b");
    let large = request("large", vec![mig("4g.96gb+gfx", VgpuSeries::Q)]);
    let before = snapshot.clone();
    assert_eq!(
        why(&mut snapshot, &large),
        "0/2 nodes: 2 no free placement for 4g.96gb+gfx (fits after moving 1 desktop)"
    );
    let (_, moves) = snapshot.fits_after_moving(&large, 3).unwrap();
    assert_eq!(moves.len(), 1);
    assert_ne!(moves[0].from, moves[0].to.node);
    assert_eq!(snapshot, before, "a thought changes nothing");
    // What was found once is not said when its room is gone, to another or with its node.
    snapshot.node_gone("b");
    assert_eq!(why(&mut snapshot, &large), "0/1 nodes: 1 no free placement for 4g.96gb+gfx");
}

#[test]
fn a_thought_about_one_that_holds_a_place_leaves_it_there() {
    let mut snapshot = snapshot(&[plain("a", &[rtx_pro_6000(1, 0)]), plain("b", &[rtx_pro_6000(1, 0)])]);
    let slice = || vec![mig("1g.24gb+gfx", VgpuSeries::Q)];
    let (one, two) = (request("one", slice()), request("two", slice()));
    assert_eq!(give(&mut snapshot, &one).node, give(&mut snapshot, &two).node);
    // It is to start again with more than is free beside the other.
    let larger = request("one", vec![mig("4g.96gb+gfx", VgpuSeries::Q)]);
    let before = snapshot.clone();
    for most in 1..=3 {
        let thought = snapshot.fits_after_moving(&larger, most);
        assert!(thought.is_some_and(|(_, moves)| moves.len() == 1));
        assert_eq!(snapshot, before);
    }
}

#[test]
fn a_desktop_without_a_card_goes_where_no_card_is_starved() {
    // Two nodes with memory for four such desktops each; the cards of `a` are in use.
    let small = |name: &str| node(name, &[cell(0, 8, 5 * 1024, 0)], &[l40s(1, 0)]);
    let mut snapshot = snapshot(&[small("b"), small("a")]);
    let mut whole = request("whole", vec![Share::Passthrough]);
    whole.previous = Some(Previous {
        node: "b".into(),
        cards: [(
            "gpu0".to_owned(),
            PreviousCard { uuid: Some("GPU-1".into()), address: "0000:01:00.0".parse().unwrap() },
        )]
        .into(),
    });
    assert_eq!(give(&mut snapshot, &whole).node, "b");
    for name in ["g1", "g2"] {
        let defined = request(name, vec![vgpu(8)]);
        snapshot.desktop_seen(&desktop(name, 1, None));
        snapshot.wants(&defined.desktop, Some(&defined));
    }
    snapshot.catch_up();
    assert_eq!(snapshot.place(&request("office", vec![])).unwrap().node, "b", "the card of a is free");
}

#[test]
fn what_is_left_is_counted() {
    let mut snapshot = snapshot(&[plain("a", &[rtx_pro_6000(1, 0), l40s(2, 0)]), plain("b", &[l40s(1, 0)])]);
    give(&mut snapshot, &request("one", vec![mig("1g.24gb+gfx", VgpuSeries::Q)]));
    give(&mut snapshot, &request("two", vec![vgpu(24)]));
    let counts = snapshot.count(&one("x", vec![mig("2g.48gb+gfx", VgpuSeries::Q)]));
    assert_eq!((counts.total, counts.placeable, counts.ways), (2, 1, vec![(2, 1)]));
    let counts = snapshot.count(&one("x", vec![vgpu(8), Share::Passthrough]));
    assert_eq!((counts.total, counts.placeable), (12 + 12, 6));
    let left = snapshot.fragmentation();
    let used: Vec<(String, i32, i32)> =
        left.iter().map(|card| (card.product.clone(), card.used, card.units)).collect();
    assert_eq!(used.iter().filter(|(_, used, _)| *used > 0).count(), 2, "{used:?}");
}

#[test]
fn the_fewest_cards_for_a_set_are_those_of_the_tightest_layouts() {
    let snapshot = snapshot(&[plain("a", &[a100(1, 0), a100(2, 0), a100(3, 0)]), plain("b", &[l40s(1, 0)])]);
    let slices = |profile: &str, count: usize| vec![mig(profile, VgpuSeries::C); count];
    // 3g + 2g + 1g + 1g on each of two cards; spread as they came they would take three.
    let shares =
        [slices("3g.20gb", 2), slices("2g.10gb", 2), slices("1g.5gb", 4), vec![vgpu(24); 2]].concat();
    let demands: Vec<_> = shares.into_iter().map(|share| request("d", vec![share]).demand).collect();
    let need = snapshot.cards_needed(demands.iter());
    let told: Vec<(&str, u32, u32)> = need
        .products
        .iter()
        .map(|product| (product.product.as_str(), product.cards, product.needed))
        .collect();
    assert_eq!(told, [("NVIDIA A100-SXM4-40GB", 3, 2), ("NVIDIA L40S", 1, 1)]);
    assert_eq!(need.unmet, 0);
    let many = vec![request("d", vec![Share::Passthrough]).demand; 6];
    assert_eq!(snapshot.cards_needed(many.iter()).unmet, 2);
}
