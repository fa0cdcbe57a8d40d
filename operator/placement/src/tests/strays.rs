//! Machines that run on a node and that no allocation to it accounts for.

use gpudesk_crds::GpuNode;
use serde_json::{Value, json};

use super::builders::*;
use crate::{Limits, Snapshot};

/// A node with one L40S that reports machines of `demo/away`.
fn reporting(strays: &Value, more: Option<i32>, instances: &Value) -> GpuNode {
    let mut card = l40s(1, 0);
    card["instances"] = instances.clone();
    let mut node = serde_json::to_value(node("a", &[cell(0, 60, 400_000, 60)], &[card])).unwrap();
    node["status"]["strays"] = strays.clone();
    node["status"]["moreStrays"] = json!(more);
    serde_json::from_value(node).unwrap()
}

fn stray(allocation: &Value) -> Value {
    json!({"uid": "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01", "namespace": "demo", "name": "away", "standing": "Newer",
           "allocation": allocation, "since": "2026-01-01T00:00:00Z"})
}

/// What a desktop is given on an empty node, by this decision.
fn given(id: &str) -> Value {
    let mut snapshot = Snapshot::new(Limits { cpu_overcommit: 8 });
    snapshot.node_seen(&reporting(&json!([]), None, &json!([])));
    let placed = snapshot.place(&request("away", vec![vgpu(24)])).unwrap();
    let mut allocation = serde_json::to_value(&*allocation(&placed)).unwrap();
    allocation["id"] = json!(id);
    allocation
}

fn seen(node: &GpuNode) -> Snapshot {
    let mut snapshot = Snapshot::new(Limits { cpu_overcommit: 8 });
    snapshot.node_seen(node);
    snapshot
}

#[test]
fn what_a_stray_holds_is_taken_once() {
    let held = given("3-00000001");
    let instance = json!([{"id": "u", "mode": "Vgpu", "type": "L40S-24Q", "start": held["gpus"][0]["start"], "owner": "demo/away"}]);
    // The machine alone; with what its driver shows of it; and with the allocation that was given back to it.
    for (instances, id) in [(json!([]), None), (instance.clone(), None), (instance, Some("3-00000001"))] {
        let mut snapshot = seen(&reporting(&json!([stray(&held)]), None, &instances));
        if let Some(id) = id {
            let mut owner = held.clone();
            owner["id"] = json!(id);
            let mut object = serde_json::to_value(desktop("away", 2, None)).unwrap();
            object["status"] = json!({"allocation": owner});
            snapshot.desktop_seen(&serde_json::from_value(object).unwrap());
        }
        let first = snapshot.place(&request("one", vec![vgpu(24)])).unwrap();
        if !held["gpus"][0]["start"].is_null() {
            assert_ne!(json!(first.gpus[0].start), held["gpus"][0]["start"], "{id:?}");
        }
        assert_eq!(snapshot.node("a").unwrap().used.cards[0].shares().len(), 1, "{id:?}");
        assert!(snapshot.place(&request("one", vec![vgpu(48)])).is_err(), "{id:?}");
        assert!(snapshot.place(&request("one", vec![vgpu(24), vgpu(24)])).is_err(), "{id:?}");
    }
    // Another decision of a desktop that holds there is another machine.
    let mut snapshot = seen(&reporting(&json!([stray(&held)]), None, &json!([])));
    let mut object = serde_json::to_value(desktop("away", 2, None)).unwrap();
    object["status"] = json!({"allocation": given("4-00000001")});
    snapshot.desktop_seen(&serde_json::from_value(object).unwrap());
    assert!(snapshot.place(&request("one", vec![vgpu(24)])).is_err());
}

#[test]
fn a_stray_that_is_gone_frees_what_it_held() {
    let mut snapshot = seen(&reporting(&json!([stray(&given("3-00000001"))]), None, &json!([])));
    assert!(snapshot.node_seen(&reporting(&json!([]), None, &json!([]))).freed);
    assert!(snapshot.place(&request("one", vec![vgpu(48)])).is_ok());
}

#[test]
fn a_node_with_a_machine_of_which_it_is_not_known_what_it_holds_takes_no_more() {
    let mut parked = given("3-00000001");
    parked.as_object_mut().unwrap().remove("compute");
    let mut of_another = given("3-00000001");
    of_another["node"] = json!("b");
    for (strays, more) in [
        (json!([stray(&Value::Null)]), None),
        (json!([stray(&parked)]), None),
        (json!([stray(&of_another)]), None),
        (json!([]), Some(1)),
    ] {
        let mut snapshot = seen(&reporting(&strays, more, &json!([])));
        let asked = request("one", vec![vgpu(8)]);
        assert!(snapshot.place(&asked).is_err(), "{strays} {more:?}");
        let said = snapshot.explain(&asked).message;
        assert!(said.contains("1 with a machine of which it is not known what it holds"), "{said}");
        assert!(!said.contains("away"), "{said}");
    }
}
