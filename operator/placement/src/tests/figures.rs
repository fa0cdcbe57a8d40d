//! Whatever figures a node says of itself, the estate goes on.

use std::collections::BTreeSet;

use gpudesk_crds::{
    GpuNode,
    desktop_template::NumaPolicy,
    types::{PageSize, VgpuSeries},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::builders::*;
use crate::{
    Limits, Snapshot,
    request::{DesktopKey, MemoryRequest, Request, Share},
};

const ODD: [i64; 6] = [i64::MAX, i64::MIN, -1, 2_147_483_647, -2_147_483_648, 1 << 40];

/// What the daemon of a real machine found, with two of its cards, a drive, and MIG cards beside them.
fn found() -> Value {
    let host = include_str!("../../../../node-daemon/tests/fixtures/rtx-pro-6000-8.golden.yaml");
    let mut node: Value = serde_yaml::from_str(host).unwrap();
    node["metadata"]["resourceVersion"] = "1".into();
    let devices = node["status"]["devices"].as_array_mut().unwrap();
    devices.truncate(2);
    devices.extend([a100(0xe1, 0), l40s(0xe2, 1)]);
    node["status"]["hostDevices"] = json!([{
        "pciAddress": "0000:f1:00.0", "kind": "NvmeDrive", "class": "0108", "vendorId": "144d",
        "deviceId": "a80a", "product": "drive", "sizeMiB": 1_000_000, "usable": true,
    }]);
    node
}

/// Where the integers are, and what each is: its path without positions in lists.
fn integers(value: &Value, at: &str, what: &str, into: &mut Vec<(String, String)>) {
    match value {
        Value::Number(number) if number.is_i64() => into.push((at.to_owned(), what.to_owned())),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                integers(item, &format!("{at}/{index}"), what, into);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                integers(field, &format!("{at}/{name}"), &format!("{what}.{name}"), into);
            }
        }
        _ => {}
    }
}

fn requests() -> Vec<Request> {
    let huge = |pages| MemoryRequest { mib: 4096, pages, allow_fallback: true };
    let mut all = vec![];
    for (share, pages) in [
        (Share::Passthrough, PageSize::Gi1),
        (vgpu(8), PageSize::Mi2),
        (mig("1g.24gb+gfx", VgpuSeries::Q), PageSize::None),
        (mig("1g.5gb", VgpuSeries::C), PageSize::Gi1),
    ] {
        let mut one = request("d", vec![share.clone()]);
        demand(&mut one).memory = huge(pages);
        let mut two = request("e", vec![share.clone(), share]);
        demand(&mut two).cpu = dedicated(2, 2);
        demand(&mut two).numa = NumaPolicy::Strict;
        all.extend([one, two]);
    }
    all
}

/// Takes the node in beside another, and asks of both all there is to ask.
fn survives(node: &Value, mixing: bool) {
    // What is no number of its field is no GpuNode: it is never taken in.
    let Ok(hostile) = serde_json::from_value::<GpuNode>(node.clone()) else { return };
    let mut snapshot = Snapshot::new(Limits::default());
    snapshot.node_seen(&super::builders::node("b", &[cell(0, 6, 40_000, 6)], &[l40s(1, 0)]));
    let hostile = if mixing { mixing_sizes(hostile.clone()) } else { hostile.clone() };
    snapshot.node_seen(&hostile);
    let named = |(number, request): (usize, Request)| {
        let name = format!("d{number}");
        (name.clone(), Request { desktop: DesktopKey::new("demo", &name), ..request })
    };
    let wanted: Vec<_> = requests().into_iter().enumerate().map(named).collect();
    for (name, request) in &wanted {
        snapshot.desktop_seen(&desktop(name, 1, None));
        snapshot.wants(&request.desktop, Some(request));
    }
    snapshot.catch_up();
    for (name, request) in &wanted {
        snapshot.explain(request);
        if let Ok(placed) = snapshot.place(request) {
            let given = allocation(&placed);
            snapshot.assume(&request.desktop, "1", &given).unwrap();
            snapshot.desktop_seen(&desktop(name, 2, Some(&given)));
        }
        for share in &request.demand.shares {
            snapshot.count(share);
        }
    }
    snapshot.fragmentation();
}

#[test]
fn no_figure_of_a_node_stops_the_rest() {
    let node = found();
    let mut all = vec![];
    integers(&node["status"], "/status", "", &mut all);
    let kinds: BTreeSet<&String> = all.iter().map(|(_, what)| what).collect();
    assert!(kinds.len() > 30, "{kinds:?}");
    for kind in kinds {
        for odd in ODD {
            let mut node = node.clone();
            for (at, _) in all.iter().filter(|(_, what)| what == kind) {
                *node.pointer_mut(at).unwrap() = odd.into();
            }
            survives(&node, odd < 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nor_do_several(mixing in any::<bool>(), odd in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
        prop::sample::select(ODD.to_vec()), any::<i64>(), any::<i32>().prop_map(i64::from),
    ]), 1..24)) {
        let mut node = found();
        let mut all = vec![];
        integers(&node["status"], "/status", "", &mut all);
        for (index, odd) in odd {
            *node.pointer_mut(&index.get(&all).0).unwrap() = odd.into();
        }
        survives(&node, mixing);
    }
}

#[test]
fn a_card_with_as_many_ways_as_the_schema_allows_fills_no_table() {
    let starts: Vec<i32> = (0..256).collect();
    let placements: Vec<Value> = (0..256)
        .map(|number| {
            json!({"type": format!("L-{number}"), "mode": "Vgpu", "series": "Q", "framebufferMiB": 8192, "size": 1,
                   "starts": starts, "maxCount": 512})
        })
        .collect();
    let cards: Vec<Value> = (0..8u8)
        .map(|number| {
            let mut card = l40s(0xb0 + number, 0);
            card["memoryMiB"] = (48_000 + i64::from(number)).into();
            card["placements"] = placements.clone().into();
            card["units"] = json!({"vgpuRegion": 512});
            card
        })
        .collect();
    let node = mixing_sizes(super::builders::node("a", &[cell(0, 6, 40_000, 6)], &cards));
    let mut snapshot = Snapshot::new(Limits::default());
    snapshot.node_seen(&node);
    snapshot.place(&request("d", vec![vgpu(8)])).expect("there is room");
    assert!(!snapshot.estate.tables.is_full(), "one node fills what is kept for the whole estate");
}

#[test]
fn cards_as_large_as_the_schema_allows_hold_nobody_up() {
    let starts: Vec<i32> = (0..256).collect();
    let names = ["1g.24gb+gfx", "1g.5gb", "k1", "k2", "k3"];
    let slices = names.iter().zip(1..).map(|(name, size)| {
        let types = ["Q", "C"].map(|series| {
            json!({"type": format!("{name}-{series}"), "series": series, "framebufferMiB": 8192,
                   "maxPerInstance": 256})
        });
        json!({"type": name, "mode": "Mig", "framebufferMiB": 24576, "size": size, "starts": starts,
               "computeSlices": 1, "maxCount": 256, "vgpuTypes": types})
    });
    let vgpus = (1..10).map(|number| {
        json!({"type": format!("L-{number}"), "mode": "Vgpu", "series": "Q", "framebufferMiB": 8192, "size": number,
               "starts": starts, "maxCount": 4096})
    });
    let mut node = found();
    for number in 0..4u8 {
        let mut card = l40s(0xb0 + number, 0);
        card["placements"] = slices.clone().chain(vgpus.clone()).collect();
        card["units"] = json!({"migMemory": 256, "migCompute": 256, "vgpuRegion": 4096});
        node["status"]["devices"].as_array_mut().unwrap().push(card);
    }
    survives(&node, false);
    survives(&node, true);
}
