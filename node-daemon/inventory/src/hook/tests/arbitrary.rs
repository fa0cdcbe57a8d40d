//! Whatever a hook prints, nothing panics, and what is merged is what the API takes.

use gpudesk_crds::gpu_node_status::Device;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{at, held};
use crate::{
    hook::{merge, parse, schema},
    topology::HostFacts,
};

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,300}".prop_map(Value::from),
        "[0-9a-f]{2}:[0-9a-f]{2}\\.[0-9]".prop_map(Value::from),
        "(0x)?[0-9a-f]{1,6}".prop_map(Value::from),
        Just(json!("a1b2c3d4-5678-4e9a-8b0c-d1e2f3a4b5c6")),
    ]
}

fn key() -> impl Strategy<Value = String> {
    let known = [
        "pci_address",
        "vendor_id",
        "device_id",
        "device",
        "driver",
        "pci_class",
        "iommu_group",
        "pci_root",
        "numa_node",
        "sriov_totalvfs",
        "sriov_numvfs",
        "full_passthrough",
        "enabled",
        "libvirt_address",
        "domain",
        "bus",
        "slot",
        "function",
        "used_by_vm",
        "vgpu_instances",
        "mdev_uuid",
        "profile_name",
        "max_instances",
        "video_ram",
        "vf_instances",
        "vf_pci_address",
        "vf_profile",
        "max_heads",
        "max_resolution_x",
        "max_resolution_y",
        "pciAddress",
        "vendorId",
        "deviceId",
        "bars",
        "instances",
        "placements",
        "health",
        "numaCell",
        "index",
        "id",
        "type",
        "mode",
    ];
    prop_oneof![proptest::sample::select(known.to_vec()).prop_map(String::from), "\\PC{0,8}"]
}

fn tree() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(4, 64, 12, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(key(), inner, 0..12)
                .prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A card of CloudStack's form that is mostly as it should be, so that what is behind is reached.
fn card() -> impl Strategy<Value = Value> {
    let share =
        (leaf(), leaf(), leaf(), "[0-9a-f]{2}:0[0-9]\\.[0-7]").prop_map(|(name, count, user, address)| {
            json!({
                "mdev_uuid": "a1b2c3d4-5678-4e9a-8b0c-d1e2f3a4b5c6", "profile_name": name, "vf_profile": name,
                "max_instances": count, "video_ram": count, "max_heads": count, "max_resolution_x": count,
                "max_resolution_y": 1, "used_by_vm": user, "vf_pci_address": address
            })
        });
    let shares = proptest::collection::vec(share, 0..4);
    ("4[0-3]:00\\.0", proptest::option::of(Just("10de")), tree(), shares).prop_map(|(address, vendor, any, shares)| {
        json!({
            "pci_address": address, "vendor_id": vendor, "device_id": "26b9", "device": any, "driver": any,
            "numa_node": any, "full_passthrough": any, "vgpu_instances": shares, "vf_instances": shares
        })
    })
}

fn check(output: &str) -> Result<(), TestCaseError> {
    let Ok(answer) = parse(output.as_bytes()) else { return Ok(()) };
    let mut found = Device::new(at("41:00.0"), "10de", "26b9");
    found.instances = vec![held("u1")];
    let mut facts = HostFacts { cards: vec![found], ..HostFacts::default() };
    merge(&mut facts, &answer);
    let once = facts.clone();
    merge(&mut facts, &answer);
    prop_assert_eq!(&facts, &once);
    let held_still =
        facts.cards.iter().flat_map(|card| &card.instances).any(|instance| *instance == held("u1"));
    prop_assert!(held_still);
    prop_assert!(facts.cards.is_sorted_by_key(|card| card.pci_address));
    for card in &facts.cards {
        let Value::Object(fields) = serde_json::to_value(card).unwrap() else { unreachable!() };
        for (name, value) in fields {
            let schema = schema::device_field(&name).unwrap();
            prop_assert_eq!(schema::check(&value, schema, &name), Ok(()));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn no_tree_panics(tree in tree(), cards in proptest::collection::vec(tree(), 0..4)) {
        check(&tree.to_string())?;
        check(&json!({"gpus": tree}).to_string())?;
        check(&json!({"gpus": cards}).to_string())?;
        let own = |mode| json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Discovery", "mode": mode, "devices": cards});
        check(&own("Extend").to_string())?;
        check(&own("Replace").to_string())?;
    }

    #[test]
    fn cards_of_cloudstack_become_cards_that_the_api_takes(cards in proptest::collection::vec(card(), 0..4)) {
        check(&json!({"gpus": cards}).to_string())?;
    }

    #[test]
    fn one_strange_field_of_the_own_form_is_refused_or_fits(key in key(), value in tree(), replace in any::<bool>()) {
        let mut card = json!({"pciAddress": "41:00.0", "vendorId": "10de", "deviceId": "26b9"});
        card[key] = value;
        let mode = if replace { "Replace" } else { "Extend" };
        check(&json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Discovery", "mode": mode, "devices": [card]}).to_string())?;
    }
}
