//! Cards whose owner fixes a layout: its places and nothing else.

use std::collections::BTreeMap;

use gpudesk_crds::{
    GpuNode,
    gpu_node_status::Device,
    types::{ShareMode, VgpuSeries},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::builders::*;
use crate::{
    Snapshot,
    request::{Request, Share, VgpuWish},
};

const PROFILES: [&str; 6] = ["1g.5gb", "1g.5gb+me", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb"];

/// A node with one card whose layout is `list`, and planned as `places`.
fn laid_out(mut card: Value, rule: Value, list: &Value, places: &Value) -> GpuNode {
    card["layout"] = places.clone();
    let mut object = node("n", &[cell(0, 64, 262_144, 8)], &[card]);
    let mut rule = rule;
    let field = if rule["mode"] == "Mig" { "mig" } else { "vgpu" };
    (rule["name"], rule["selector"]) = (json!("rule"), json!({"uuid": "GPU-1"}));
    rule["layout"] = json!({field: list});
    object.spec.devices = vec![serde_json::from_value(rule).unwrap()];
    object
}

/// NVIDIA's own example: the three slices stand in the second half, or the two single ones have no room.
fn a100_laid_out(instances: &Value) -> GpuNode {
    let mut card = a100(1, 0);
    card["instances"] = instances.clone();
    let places = json!([{"type": "1g.5gb", "starts": [2, 3]}, {"type": "2g.10gb", "starts": [0]},
                        {"type": "3g.20gb", "starts": [4]}]);
    laid_out(card, json!({"mode": "Mig"}), &json!(["1g.5gb", "1g.5gb", "2g.10gb", "3g.20gb"]), &places)
}

fn seen(object: &GpuNode) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.node_seen(object);
    snapshot
}

/// Places a desktop, and counts it; the start of its share, or why there is none.
fn ask(snapshot: &mut Snapshot, name: &str, share: Share) -> Result<Option<i32>, String> {
    let request: Request = request(name, vec![share]);
    let placed = snapshot.place(&request).map_err(|_| snapshot.explain(&request).message)?;
    let allocation = allocation(&placed);
    snapshot.desktop_seen(&desktop(name, 1, Some(&allocation)));
    Ok(allocation.gpus[0].start)
}

fn of_type(name: &str) -> Share {
    Share::Vgpu(VgpuWish::Type(name.into()), BTreeMap::new())
}

#[test]
fn a_card_gives_the_places_of_its_layout_and_says_when_they_are_taken_or_none() {
    let mut snapshot = seen(&a100_laid_out(&json!([])));
    let single = || mig("1g.5gb", VgpuSeries::C);
    let mut starts = [ask(&mut snapshot, "a", single()).unwrap(), ask(&mut snapshot, "b", single()).unwrap()];
    starts.sort_unstable();
    assert_eq!(starts, [Some(2), Some(3)]);
    let why = ask(&mut snapshot, "c", single()).unwrap_err();
    assert!(why.starts_with("0/1 nodes: 1 all 2 places for 1g.5gb"), "{why}");
    assert_eq!(ask(&mut snapshot, "d", mig("3g.20gb", VgpuSeries::C)), Ok(Some(4)));
    let why = ask(&mut snapshot, "e", mig("3g.20gb", VgpuSeries::C)).unwrap_err();
    assert!(why.starts_with("0/1 nodes: 1 the 1 place for 3g.20gb"), "{why}");
    // Free units are no place: nothing is carved on demand, and the card is not given whole.
    let why = ask(&mut snapshot, "f", mig("1g.10gb", VgpuSeries::C)).unwrap_err();
    assert!(
        why.contains("1 no place for 1g.10gb") && why.contains("in the layouts of cards for profile"),
        "{why}"
    );
    assert!(why.ends_with("offered: 1g.5gb, 2g.10gb, 3g.20gb"), "{why}");
    let why = ask(&mut snapshot, "g", Share::Passthrough).unwrap_err();
    assert!(why.contains("mode Passthrough not allowed"), "{why}");
    assert_eq!(ask(&mut snapshot, "h", mig("2g.10gb", VgpuSeries::C)), Ok(Some(0)));
}

#[test]
fn places_of_several_cards_are_counted_together() {
    let mut object = a100_laid_out(&json!([]));
    let mut second = object.status.as_ref().unwrap().devices[0].clone();
    (second.pci_address, second.uuid) = ("0000:02:00.0".parse().unwrap(), Some("GPU-2".into()));
    object.status.as_mut().unwrap().devices.push(second);
    let mut rule = object.spec.devices[0].clone();
    (rule.name, rule.selector.uuid) = ("second".into(), Some("GPU-2".into()));
    object.spec.devices.push(rule);
    let mut snapshot = seen(&object);
    for name in ["a", "b", "c", "d"] {
        ask(&mut snapshot, name, mig("1g.5gb", VgpuSeries::C)).unwrap();
    }
    let why = ask(&mut snapshot, "e", mig("1g.5gb", VgpuSeries::C)).unwrap_err();
    assert!(why.starts_with("0/1 nodes: 1 all 4 places for 1g.5gb"), "{why}");
}

#[test]
fn a_share_of_before_blocks_the_places_under_it_and_no_others() {
    let before = json!([{"id": "MIG-1", "type": "1g.10gb", "mode": "Mig", "start": 4,
                         "vgpuType": "A100-1-10C", "owner": "other/anna"}]);
    let mut snapshot = seen(&a100_laid_out(&before));
    let why = ask(&mut snapshot, "a", mig("3g.20gb", VgpuSeries::C)).unwrap_err();
    assert!(why.contains("the 1 place for 3g.20gb") && !why.contains("anna"), "{why}");
    assert_eq!(ask(&mut snapshot, "b", mig("2g.10gb", VgpuSeries::C)), Ok(Some(0)));
    ask(&mut snapshot, "c", mig("1g.5gb", VgpuSeries::C)).unwrap();
    snapshot.node_seen(&a100_laid_out(&json!([])));
    assert_eq!(ask(&mut snapshot, "a", mig("3g.20gb", VgpuSeries::C)), Ok(Some(4)), "it is gone");
}

#[test]
fn what_was_planned_for_another_layout_is_not_offered() {
    let list = json!(["1g.5gb", "1g.5gb"]);
    for places in [
        json!([]),
        json!([{"type": "1g.5gb", "starts": [0]}]),
        json!([{"type": "1g.5gb", "starts": [0, 1]}, {"type": "2g.10gb", "starts": [4]}]),
        json!([{"type": "2g.10gb", "starts": [0, 2]}]),
    ] {
        let mut snapshot = seen(&laid_out(a100(1, 0), json!({"mode": "Mig"}), &list, &places));
        let why = ask(&mut snapshot, "a", mig("1g.5gb", VgpuSeries::C)).unwrap_err();
        assert!(
            why.contains("with a layout that is not planned (see LayoutApplied of the GpuNode)"),
            "{why}"
        );
    }
    // Without a rule, places that are left in the status mean nothing.
    let mut object = a100_laid_out(&json!([]));
    object.spec.devices.clear();
    assert!(ask(&mut seen(&object), "a", mig("4g.20gb", VgpuSeries::C)).is_ok());
}

#[test]
fn vgpus_of_equal_size_are_counted_and_of_unlike_size_stand_at_their_starts() {
    let equal = laid_out(
        l40s(1, 0),
        json!({"mode": "Vgpu"}),
        &json!(["L40S-8Q", "L40S-8Q"]),
        &json!([{"type": "L40S-8Q", "count": 2}]),
    );
    let mut snapshot = seen(&equal);
    assert_eq!(ask(&mut snapshot, "a", vgpu(8)), Ok(None));
    assert_eq!(ask(&mut snapshot, "b", of_type("L40S-8Q")), Ok(None));
    let why = ask(&mut snapshot, "c", of_type("L40S-8Q")).unwrap_err();
    assert!(why.contains("all 2 places for L40S-8Q in layouts taken"), "{why}");
    let why = ask(&mut snapshot, "d", of_type("L40S-16Q")).unwrap_err();
    assert!(why.contains("no place for L40S-16Q in the layouts"), "{why}");

    let mixed = laid_out(
        l40s(1, 0),
        json!({"mode": "Vgpu", "vgpuPlacement": "MixedSize"}),
        &json!(["L40S-16Q", "L40S-12Q", "L40S-12Q", "L40S-8Q"]),
        &json!([{"type": "L40S-16Q", "starts": [0]}, {"type": "L40S-8Q", "starts": [16]},
                {"type": "L40S-12Q", "starts": [24, 36]}]),
    );
    let mut snapshot = seen(&mixed);
    assert_eq!(ask(&mut snapshot, "a", vgpu(8)), Ok(Some(16)));
    let [mut one, mut other] = ["b", "c"].map(|name| ask(&mut snapshot, name, vgpu(12)).unwrap());
    if one > other {
        std::mem::swap(&mut one, &mut other);
    }
    assert_eq!((one, other), (Some(24), Some(36)));
    assert_eq!(ask(&mut snapshot, "d", vgpu(16)), Ok(Some(0)));
    assert!(ask(&mut snapshot, "e", vgpu(1)).unwrap_err().contains("no place for"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_order_of_arrivals_fills_a_layout_and_nobody_else_gets_in(
        (list, order) in prop::collection::vec(0..PROFILES.len(), 1..7)
            .prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
        outside in prop::collection::vec(0..PROFILES.len(), 7),
    ) {
        let card: Device = serde_json::from_value(a100(1, 0)).unwrap();
        let kinds: Vec<u16> =
            list.iter().map(|profile| card.kind_of(ShareMode::Mig, PROFILES[*profile])).collect();
        let Ok(found) = card.geometry(false).arrange(&[], &kinds) else { return Ok(()) };
        let mut starts: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
        for (profile, place) in list.iter().zip(&found) {
            starts.entry(PROFILES[*profile]).or_default().push(place.start.unwrap());
        }
        let places: Vec<Value> =
            starts.iter().map(|(name, starts)| json!({"type": name, "starts": starts})).collect();
        let names: Vec<&str> = list.iter().map(|profile| PROFILES[*profile]).collect();
        let object = laid_out(a100(1, 0), json!({"mode": "Mig"}), &json!(names), &json!(places));
        let mut snapshot = seen(&object);
        for (number, (profile, other)) in order.iter().zip(&outside).enumerate() {
            if !list.contains(other) {
                let why = ask(&mut snapshot, "outside", mig(PROFILES[*other], VgpuSeries::C));
                prop_assert!(why.unwrap_err().contains("no place for"));
            }
            let name = PROFILES[*profile];
            let start = ask(&mut snapshot, &format!("d{number}"), mig(name, VgpuSeries::C)).unwrap().unwrap();
            let own = starts.get_mut(name).unwrap();
            let place = own.iter().position(|place| *place == start);
            prop_assert!(place.is_some(), "{name} at {start}");
            own.remove(place.unwrap());
        }
        prop_assert!(starts.values().all(Vec::is_empty));
        for name in names {
            prop_assert!(ask(&mut snapshot, "more", mig(name, VgpuSeries::C)).is_err());
        }
    }
}
