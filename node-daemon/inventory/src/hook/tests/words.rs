//! What a hook says of a card's modes stands when the host is judged.

use gpudesk_crds::{
    gpu_node_status::{Bar, Device, DeviceKind, ModeSupport},
    types::ShareMode,
};
use serde_json::json;

use super::{at, merged};
use crate::scan::judge_modes;

/// Passthrough of the only card, after hook and host were heard.
fn passthrough(cards: Vec<Device>, output: &str) -> ModeSupport {
    let mut facts = merged(cards, output);
    for _ in 0..2 {
        judge_modes(&mut facts);
    }
    facts.cards[0].supports.iter().find(|support| support.mode == ShareMode::Passthrough).unwrap().clone()
}

fn cloudstack(group: &str, whole: &serde_json::Value) -> String {
    json!({"gpus": [{
        "pci_address": "41:00.0", "vendor_id": "10de", "device_id": "25a0", "pci_class": "3D controller [0302]",
        "iommu_group": group, "full_passthrough": {"enabled": whole},
    }]})
    .to_string()
}

fn found() -> Vec<Device> {
    vec![Device::new(at("41:00.0"), "10de", "25a0")]
}

#[test]
fn a_card_that_only_the_hook_knows_is_given_whole_as_it_says() {
    assert!(passthrough(vec![], &cloudstack("16", &json!(1))).supported);
    for (group, whole) in [("0", json!(0)), ("16", json!(false)), ("16", json!(null))] {
        let said = passthrough(vec![], &cloudstack(group, &whole));
        assert!(!said.supported && said.reason.unwrap().contains("does not offer the card whole"), "{whole}");
    }
}

#[test]
fn what_was_not_seen_on_the_host_is_weaker_than_what_the_hook_says_and_what_was_seen_is_not() {
    assert!(passthrough(found(), &cloudstack("16", &json!(1))).supported, "no reset method was seen");
    assert!(!passthrough(found(), &cloudstack("16", &json!(0))).supported);
    let mut lost = found();
    lost[0].bars = vec![Bar { index: 1, size_bytes: 0, unassigned: true }];
    let said = passthrough(lost, &cloudstack("16", &json!(1)));
    assert!(!said.supported && said.reason.unwrap().contains("BarsAssigned"));
}

#[test]
fn gpudesks_own_form_says_modes_one_by_one() {
    for supported in [true, false] {
        let output = json!({
            "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Discovery", "devices": [{
                "pciAddress": "0000:41:00.0",
                "supports": [{"mode": "Passthrough", "supported": supported, "reason": "as the admin says"}],
            }],
        });
        let said = passthrough(found(), &output.to_string());
        assert_eq!((said.supported, said.reason.as_deref()), (supported, Some("as the admin says")));
        let mut facts = merged(found(), &output.to_string());
        judge_modes(&mut facts);
        assert_eq!(facts.cards[0].supports.len(), 4, "the other modes are judged");
    }
}

#[test]
fn what_only_a_hook_describes_is_told_by_its_class_and_maker() {
    let output = json!({"gpus": [{
        "pci_address": "03:00.0", "vendor_id": "1a03", "device_id": "2000",
        "pci_class": "VGA compatible controller [0300]", "full_passthrough": {"enabled": 1},
    }]});
    assert_eq!(merged(vec![], &output.to_string()).cards[0].kind, DeviceKind::Display);
}
