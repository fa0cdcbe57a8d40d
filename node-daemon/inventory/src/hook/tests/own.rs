//! gpudesk's own form.

use gpudesk_crds::gpu_node_status::Device;
use serde_json::{Value, json};

use super::{at, held, merged};
use crate::hook::{Mode, parse};

#[expect(clippy::needless_pass_by_value, reason = "written where it is called")]
fn document(mode: &str, devices: Value) -> String {
    json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Discovery", "mode": mode, "devices": devices})
        .to_string()
}

fn found() -> Vec<Device> {
    let mut first = Device::new(at("41:00.0"), "10de", "26b9");
    first.product = "NVIDIA L40S".into();
    first.numa_cell = Some(0);
    first.instances = vec![held("u1")];
    vec![first, Device::new(at("42:00.0"), "10de", "26b9")]
}

#[test]
fn fields_that_the_hook_names_are_as_it_says_and_the_others_as_found() {
    let output = document(
        "Extend",
        json!([
            {"pciAddress": "41:00.0", "numaCell": 1, "serial": "132", "link": {"maxWidth": 16},
             "instances": [{"id": "u2", "type": "L40S-8Q", "mode": "Vgpu"}]},
            {"pciAddress": "0000:01:00.0", "vendorId": "1002", "deviceId": "74a1", "memoryMiB": 196_608},
        ]),
    );
    let facts = merged(found(), &output);
    assert_eq!(facts.incomplete, Vec::<String>::new());
    let [new, first, second] = &facts.cards[..] else { panic!("{:?}", facts.cards) };
    assert_eq!(
        (new.pci_address, new.product.as_str(), new.memory_mib),
        (at("01:00.0"), "1002:74a1", Some(196_608))
    );
    assert_eq!((first.product.as_str(), first.numa_cell), ("NVIDIA L40S", Some(1)));
    assert_eq!(first.serial.as_deref(), Some("132"));
    let ids: Vec<(&str, bool)> = first.instances.iter().map(|i| (i.id.as_str(), i.owner.is_some())).collect();
    assert_eq!(ids, [("u1", true), ("u2", false)], "no answer takes from a desktop what it holds");
    assert_eq!(*second, found()[1]);
}

#[test]
fn an_unknown_card_without_ids_is_left_out_and_said() {
    let facts = merged(found(), &document("Extend", json!([{"pciAddress": "09:00.0", "numaCell": 1}])));
    assert_eq!(facts.cards, found());
    assert!(facts.incomplete[0].contains("0000:09:00.0") && facts.incomplete[0].contains("vendorId"));
}

#[test]
fn replacing_leaves_only_what_the_hook_says_and_what_desktops_hold() {
    let output =
        document("Replace", json!([{"pciAddress": "50:00.0", "vendorId": "10de", "deviceId": "2bb5"}]));
    assert_eq!(parse(output.as_bytes()).unwrap().mode(), Mode::Replace);
    let facts = merged(found(), &output);
    let [kept, said] = &facts.cards[..] else { panic!("{:?}", facts.cards) };
    assert_eq!((kept.pci_address, kept.instances.len()), (at("41:00.0"), 1));
    assert!(kept.unavailable.as_ref().unwrap().contains("demo/a"));
    assert_eq!(*said, Device::new(at("50:00.0"), "10de", "2bb5"));

    let named =
        document("Replace", json!([{"pciAddress": "41:00.0", "vendorId": "10de", "deviceId": "26b9"}]));
    let facts = merged(found(), &named);
    let [card] = &facts.cards[..] else { panic!("{:?}", facts.cards) };
    assert_eq!((card.numa_cell, &card.unavailable), (None, &None));
    assert_eq!(card.instances, [held("u1")]);
}

#[test]
fn what_is_wrong_is_named_by_field_and_value() {
    let card = |field: &str, value: Value| {
        let mut card = json!({"pciAddress": "41:00.0", "vendorId": "10de", "deviceId": "26b9"});
        card[field] = value;
        document("Extend", json!([card]))
    };
    let cases: [(String, &str); 23] = [
        (
            json!({"apiVersion": "v2", "kind": "Discovery"}).to_string(),
            "apiVersion: \"v2\" is not gpudesk.dev/v1alpha1",
        ),
        (json!({"apiVersion": "gpudesk.dev/v1alpha1"}).to_string(), "kind: is missing: write Discovery"),
        (document("Merge", json!([])), "mode: \"Merge\" is neither Extend nor Replace"),
        (document("Extend", json!({})), "devices: an object is no list"),
        (
            json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Discovery"}).to_string(),
            "devices: is missing",
        ),
        (
            json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Discovery", "devices": [], "gpus": []})
                .to_string(),
            "gpus: there is no such field",
        ),
        (document("Extend", json!([7])), "devices[0]: 7 is no object"),
        (card("model", json!("10de:26b9")), "devices[0].model: there is no such field"),
        (document("Extend", json!([{}])), "devices[0].pciAddress: is missing"),
        (
            document("Extend", json!([{"pciAddress": "00:af.0"}])),
            "devices[0].pciAddress: \"00:af.0\" is no PCI address",
        ),
        (
            document("Extend", json!([{"pciAddress": "41:00.0"}, {"pciAddress": "0000:41:00.0"}])),
            "devices[1].pciAddress: 0000:41:00.0 is named twice, first in devices[0]",
        ),
        (
            document("Replace", json!([{"pciAddress": "41:00.0"}])),
            "devices[0]: vendorId and deviceId are missing",
        ),
        (card("colour", json!("red")), "devices[0].colour: there is no such field"),
        (card("numaCell", json!("1")), "devices[0].numaCell: \"1\" is no integer"),
        (card("memoryMiB", json!(-1)), "devices[0].memoryMiB: -1 is less than 0"),
        (card("vendorId", json!("10DE")), "devices[0].vendorId: \"10DE\" is not four hexadecimal digits"),
        (card("bars", json!([{"index": 9, "sizeBytes": 1}])), "devices[0].bars[0].index: 9 is more than 5"),
        (card("bars", json!([{"index": 1}])), "devices[0].bars[0]: sizeBytes is missing"),
        (
            card("bars", json!([{"index": 1, "sizeBytes": 1, "kind": 2}])),
            "devices[0].bars[0].kind: there is no such field",
        ),
        (card("framework", json!("Mdevs")), "devices[0].framework: \"Mdevs\" is none of \"Mdev\""),
        (card("product", json!("x".repeat(129))), "has 129 characters, more than 128"),
        (card("pciePath", json!(["zz"])), "devices[0].pciePath: \"zz\" is no PCI address"),
        (
            card("instances", json!([{"id": "a", "type": "b", "mode": "Vgpu", "owner": "demo/a"}])),
            "devices[0].instances[0].owner: \"demo/a\": leave it out",
        ),
    ];
    for (output, expected) in cases {
        let error = parse(output.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn more_cards_than_a_status_holds_are_refused_or_left_out() {
    let cards = |bus: u8, count: usize| -> Vec<Value> {
        (0..count)
            .map(|n| json!({"pciAddress": format!("{bus:02x}:{:02x}.{}", n / 8, n % 8), "vendorId": "10de", "deviceId": "26b9"}))
            .collect()
    };
    let error = parse(document("Extend", cards(1, 65).into()).as_bytes()).unwrap_err().to_string();
    assert_eq!(error, "devices: has 65 entries, more than 64");
    let facts = merged(found(), &document("Extend", cards(1, 64).into()));
    assert_eq!(facts.cards.len(), 64);
    assert!(facts.cards.iter().any(|card| card.pci_address == at("42:00.0")), "what was found stays");
    assert_eq!(facts.incomplete.len(), 2);
}
