//! What hooks print, and what becomes of it.

mod arbitrary;
mod cloudstack;
mod own;
mod words;

use gpudesk_crds::{
    gpu_node_status::{Device, Instance},
    types::{PciAddress, ShareMode},
};

use super::{HookError, MAX_BYTES, Mode, merge, parse};
use crate::topology::HostFacts;

fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}

/// What is on a host with these cards after a hook printed `output`, twice for good measure.
fn merged(cards: Vec<Device>, output: &str) -> HostFacts {
    let answer = parse(output.as_bytes()).unwrap();
    let mut facts = HostFacts { cards, ..HostFacts::default() };
    merge(&mut facts, &answer);
    let once = facts.clone();
    merge(&mut facts, &answer);
    assert_eq!(facts, once, "merging is not idempotent");
    assert!(facts.cards.is_sorted_by_key(|card| card.pci_address));
    facts
}

fn held(id: &str) -> Instance {
    Instance {
        id: id.into(),
        type_name: "L40S-8Q".into(),
        mode: ShareMode::Vgpu,
        vgpu_type: None,
        start: None,
        virtual_function: None,
        gpu_instance: None,
        owner: Some("demo/a".into()),
    }
}

#[test]
fn output_of_neither_form_is_refused() {
    for output in ["[]", "{}", "null", "7", r#"{"cards": []}"#] {
        assert_eq!(parse(output.as_bytes()), Err(HookError::NeitherForm), "{output}");
    }
    for output in ["", "no GPUs here", "{\"gpus\": [", "\u{feff}{}", "{\"gpus\": []} trailing"] {
        assert!(matches!(parse(output.as_bytes()), Err(HookError::NotJson(_))), "{output}");
    }
    assert!(matches!(parse(b"{\"gpus\": [\xff]}"), Err(HookError::NotJson(_))));
}

#[test]
fn size_and_depth_are_bounded() {
    let large = vec![b' '; MAX_BYTES + 1];
    assert_eq!(parse(&large), Err(HookError::TooLarge { bytes: MAX_BYTES + 1 }));
    let deep = format!("{{\"gpus\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(parse(deep.as_bytes()), Err(HookError::NotJson(why)) if why.contains("recursion")));
}

#[test]
fn an_answer_without_cards_changes_nothing_when_it_extends() {
    let found = vec![Device::new(at("41:00.0"), "10de", "26b9")];
    for output in [
        r#"{"gpus": []}"#,
        r#"{"gpus": null}"#,
        r#"{"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Discovery", "devices": []}"#,
    ] {
        assert_eq!(parse(output.as_bytes()).unwrap().mode(), Mode::Extend);
        assert_eq!(merged(found.clone(), output).cards, found);
    }
}
