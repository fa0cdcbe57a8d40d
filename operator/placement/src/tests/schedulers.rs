//! What a profile wants of vGPUs beside size and place: how they share time, parameters, screens.

use std::collections::BTreeMap;

use gpudesk_crds::{GpuNode, conditions::Reason, gpu_node::VgpuScheduler, types::VgpuSeries};
use serde_json::{Value, json};

use super::builders::*;
use crate::{
    Placed, Snapshot,
    request::{Request, Share},
};

const BEST: VgpuScheduler = VgpuScheduler::BestEffort;
const EQUAL: VgpuScheduler = VgpuScheduler::EqualShare;
const FIXED: VgpuScheduler = VgpuScheduler::FixedShare;

/// A node of these cards; `rule` is about the first.
fn host(devices: &[Value], rule: &Value) -> GpuNode {
    let mut node = node("n", &[cell(0, 16, 65_536, 0)], devices);
    if !rule.is_null() {
        let mut rule = rule.clone();
        rule["name"] = json!("first");
        rule["selector"] = json!({"pciAddress": devices[0]["pciAddress"]});
        node.spec.devices = vec![serde_json::from_value(rule).unwrap()];
    }
    node
}

fn wanting(name: &str, share: Share, scheduler: Option<VgpuScheduler>) -> Request {
    let mut asked = request(name, vec![share]);
    demand(&mut asked).shares[0].cards.scheduler = scheduler;
    asked
}

fn give(snapshot: &mut Snapshot, request: &Request) -> Result<Placed, String> {
    match snapshot.place(request) {
        Ok(placed) => {
            snapshot.desktop_seen(&desktop(&request.desktop.name, 1, Some(&allocation(&placed))));
            Ok(placed)
        }
        Err(_) => Err(snapshot.explain(request).message),
    }
}

fn seen(node: &GpuNode) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.node_seen(node);
    snapshot
}

#[test]
fn the_first_wish_is_that_of_the_card_until_its_last_vgpu_is_gone() {
    let mut snapshot = seen(&host(&[scheduling(l40s(1, 0))], &Value::Null));
    let told = |placed: &Placed| placed.gpus[0].vgpu_scheduler;
    let first = give(&mut snapshot, &wanting("a", vgpu(8), Some(FIXED))).unwrap();
    assert_eq!(told(&first), Some(FIXED));
    let other = wanting("b", vgpu(8), Some(EQUAL));
    let why = give(&mut snapshot, &other).unwrap_err();
    assert_eq!(why, "0/1 nodes: 1 cards for profile with another vGPU scheduler than EqualShare");
    let none = give(&mut snapshot, &wanting("c", vgpu(8), None)).unwrap();
    assert_eq!(told(&none), Some(FIXED), "who has no wish fits beside any, and keeps what is decided");
    snapshot.desktop_gone(&wanting("a", vgpu(8), None).desktop);
    assert!(give(&mut snapshot, &other).is_err(), "one is left that came into it");
    assert!(give(&mut snapshot, &wanting("d", vgpu(8), Some(FIXED))).is_ok());
    for name in ["c", "d"] {
        snapshot.desktop_gone(&wanting(name, vgpu(8), None).desktop);
    }
    assert_eq!(told(&give(&mut snapshot, &other).unwrap()), Some(EQUAL));
}

#[test]
fn who_came_without_a_wish_has_what_the_host_has() {
    let mut snapshot = seen(&host(&[scheduling(l40s(1, 0))], &Value::Null));
    let first = give(&mut snapshot, &wanting("a", vgpu(8), None)).unwrap();
    assert_eq!(first.gpus[0].vgpu_scheduler, None, "nothing was decided");
    assert!(give(&mut snapshot, &wanting("b", vgpu(8), Some(EQUAL))).is_err());
    assert!(give(&mut snapshot, &wanting("c", vgpu(8), Some(BEST))).is_ok(), "that is in force");
    // Of a card whose driver tells nothing it is not known.
    let mut silent = seen(&host(&[l40s(1, 0)], &Value::Null));
    let why = give(&mut silent, &wanting("a", vgpu(8), Some(BEST))).unwrap_err();
    assert!(why.contains("1 cards for profile with another vGPU scheduler than BestEffort"), "{why}");
    assert_eq!(silent.explain(&wanting("a", vgpu(8), Some(BEST))).reason, Reason::Unsatisfiable);
}

#[test]
fn a_card_whose_owner_set_one_offers_only_that_one() {
    let two = [scheduling(l40s(1, 0)), scheduling(l40s(2, 0))];
    let mut snapshot = seen(&host(&two, &json!({"vgpuScheduler": "EqualShare"})));
    let card = |placed: &Placed| placed.gpus[0].device.to_string();
    for name in ["a", "b"] {
        let placed = give(&mut snapshot, &wanting(name, vgpu(24), Some(FIXED))).unwrap();
        assert_eq!(card(&placed), "0000:02:00.0");
    }
    assert!(give(&mut snapshot, &wanting("c", vgpu(24), Some(FIXED))).is_err());
    for name in ["d", "e"] {
        let placed = give(&mut snapshot, &wanting(name, vgpu(24), Some(EQUAL))).unwrap();
        assert_eq!(card(&placed), "0000:01:00.0", "also the second, before the node tells of the first");
    }
    let mut mixed = host(&[scheduling(l40s(1, 0))], &json!({"vgpuPlacement": "MixedSize"}));
    assert!(give(&mut seen(&mixed), &wanting("a", vgpu(8), Some(EQUAL))).is_ok());
    assert!(give(&mut seen(&mixed), &wanting("a", vgpu(8), Some(FIXED))).is_err(), "it needs equal sizes");
    // Whole cards have none.
    mixed.spec.devices[0].vgpu_scheduler = Some(EQUAL);
    assert!(give(&mut seen(&mixed), &wanting("a", Share::Passthrough, Some(FIXED))).is_ok());
}

#[test]
fn a_gpu_instance_has_its_own_where_the_card_has_that() {
    let slice =
        || Share::Mig { profile: "1g.24gb+gfx".into(), series: VgpuSeries::Q, framebuffer_mib: Some(2048) };
    let mut snapshot = seen(&host(&[scheduling(rtx_pro_6000(1, 0))], &Value::Null));
    let mut starts = vec![];
    for (name, scheduler) in [("a", Some(EQUAL)), ("b", Some(FIXED)), ("c", Some(EQUAL)), ("d", None)] {
        let placed = give(&mut snapshot, &wanting(name, slice(), scheduler)).unwrap();
        starts.push((placed.gpus[0].start.unwrap(), placed.gpus[0].vgpu_scheduler));
    }
    assert_eq!(starts[0].0, starts[2].0, "the same instance");
    assert_ne!(starts[0].0, starts[1].0, "another one");
    assert_eq!(starts[3].1, starts.iter().find(|(start, _)| *start == starts[3].0).unwrap().1);
    let mut without = scheduling(rtx_pro_6000(1, 0));
    without["vgpu"]["onInstances"] = json!(false);
    let why =
        give(&mut seen(&host(&[without], &Value::Null)), &wanting("a", slice(), Some(EQUAL))).unwrap_err();
    assert!(why.contains("another vGPU scheduler than EqualShare"), "{why}");
}

#[test]
fn parameters_are_those_that_the_owner_of_the_card_allows() {
    let params = BTreeMap::from([("frame_rate_limiter".to_owned(), "0".to_owned())]);
    let asked = |name: &str| {
        let Share::Vgpu(wish, _) = vgpu(8) else { unreachable!() };
        request(name, vec![Share::Vgpu(wish, params.clone())])
    };
    let allowing = |allowed: Value| host(&[l40s(1, 0)], &json!({"vgpuParams": allowed}));
    for allowed in [json!(["frame_rate_limiter"]), json!(["a=1", "frame_rate_limiter=0"])] {
        let placed = give(&mut seen(&allowing(allowed)), &asked("a")).unwrap();
        assert_eq!(placed.gpus[0].vgpu_params, params);
    }
    for node in [allowing(json!(["frame_rate_limiter=1", "frame_rate"])), host(&[l40s(1, 0)], &Value::Null)] {
        let why = give(&mut seen(&node), &asked("a")).unwrap_err();
        assert!(
            why.contains("1 cards for profile whose owner does not allow vgpu.params frame_rate_limiter=0"),
            "{why}"
        );
    }
}

#[test]
fn screens_are_those_that_the_driver_tells_of() {
    let mut card = l40s(1, 0);
    for (size, heads) in [(0, 4), (1, 4), (4, 2)] {
        card["placements"][size]["heads"] = json!(heads);
    }
    let heads = |share: Share, heads: i32| {
        let mut asked = request("a", vec![share]);
        demand(&mut asked).shares[0].cards.heads = Some(heads);
        give(&mut seen(&host(&[card.clone()], &Value::Null)), &asked)
    };
    assert!(heads(vgpu(24), 4).is_ok() && heads(vgpu(8), 2).is_ok());
    for (share, least) in [(vgpu(8), 3), (vgpu(6), 1), (Share::Passthrough, 1)] {
        let why = heads(share, least).unwrap_err();
        assert!(
            why.contains(&format!("1 no type for profile of which the driver tells {least} heads")),
            "{why}"
        );
    }
}
