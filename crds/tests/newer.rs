//! What other versions wrote is read: a word that this one does not know costs no object.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use gpudesk_crds::{
    Desktop, DesktopTemplate, GpuNode, GpuProfile,
    desktop::{ConsoleType, Phase},
    gpu_node_status::{Acceleration, Device, DeviceKind, HealthState},
    schema,
    types::ShareMode,
};
use serde_json::{Map, Value, json};

/// A value with every field, one item in every list, and the first word of every enum. Notes where each
/// enum stands, as a JSON pointer.
fn sample(schema: &Value, at: &str, enums: &mut Vec<String>) -> Value {
    if let Some(first) = schema["enum"].get(0) {
        enums.push(at.to_owned());
        return first.clone();
    }
    match schema["type"].as_str().unwrap_or_default() {
        "object" => {
            let fields = schema["properties"].as_object().into_iter().flatten();
            let fields =
                fields.map(|(name, field)| (name.clone(), sample(field, &format!("{at}/{name}"), enums)));
            fields.collect::<Map<_, _>>().into()
        }
        "array" => json!([sample(&schema["items"], &format!("{at}/0"), enums)]),
        "integer" | "number" => json!(schema["minimum"].as_f64().map_or(1, |least| i64::from(least <= 1.0))),
        "boolean" => json!(false),
        _ if schema["format"] == "date-time" => json!("2026-01-05T08:00:00Z"),
        _ => match schema["pattern"].as_str().unwrap_or_default() {
            pattern if pattern.starts_with("^([0-9]{1,4}") => json!("0-3"),
            pattern if pattern.starts_with("^([0-9a-fA-F]{4,8}:") => json!("0000:41:00.0"),
            pattern if pattern.starts_with("^[1-9][0-9]{0,11}-") => json!("1-00000001"),
            // What people write is refused with words.
            _ if schema["x-kubernetes-validations"].to_string().contains("{4,8}:") => json!("0000:41:00.0"),
            _ if schema["x-kubernetes-validations"].to_string().contains("{0,11}-") => json!("1-00000001"),
            _ => json!("a1"),
        },
    }
}

/// An object of each kind with everything in its status, and the places of enums there.
fn samples() -> Vec<(String, Value, Vec<String>)> {
    let definitions = schema::all().map(|crd| serde_json::to_value(crd).unwrap());
    let samples = definitions.iter().map(|crd| {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        let root = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        let mut enums = vec![];
        let status = sample(&root["status"], "/status", &mut enums);
        let spec = sample(&root["spec"], "", &mut vec![]);
        let object = json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": kind, "metadata": {"name": "a"},
            "spec": spec, "status": status});
        (kind, object, enums)
    });
    samples.collect()
}

fn read(kind: &str, object: &Value) -> Result<(), serde_json::Error> {
    match kind {
        "Desktop" => serde_json::from_value::<Desktop>(object.clone()).map(drop),
        "GpuNode" => serde_json::from_value::<GpuNode>(object.clone()).map(drop),
        "GpuProfile" => serde_json::from_value::<GpuProfile>(object.clone()).map(drop),
        "DesktopTemplate" => serde_json::from_value::<DesktopTemplate>(object.clone()).map(drop),
        kind => panic!("{kind} is new"),
    }
}

#[test]
fn a_word_of_tomorrow_in_a_status_leaves_the_object_readable() {
    let mut tried = 0;
    for (kind, object, enums) in samples() {
        read(&kind, &object).unwrap_or_else(|error| panic!("{kind}: {error}"));
        for place in enums {
            let mut newer = object.clone();
            *newer.pointer_mut(&place).unwrap() = json!("FromTomorrow");
            // Nobody may act on half of an allocation; one that is not understood stays what it is. And
            // memory in pages of a size that is not known would count as free.
            let strict = place.starts_with("/status/allocation") || place.contains("/hugepages/");
            assert_eq!(read(&kind, &newer).is_err(), strict, "{kind} {place}");
            tried += 1;
        }
    }
    assert!(tried > 15, "only {tried} places");
}

fn desktop(status: &Value) -> Desktop {
    let object = json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop", "metadata": {"name": "a"},
        "spec": {"templateRef": {"name": "t"}}, "status": status});
    serde_json::from_value(object).unwrap()
}

#[test]
fn what_is_not_known_falls_to_the_safe_side() {
    let newer = desktop(&json!({
        "phase": "Resting", "domain": {"name": "d", "acceleration": "Hvf"},
        "consoles": [{"type": "RDP", "address": "x"}],
        "conditions": [{"type": "Rested", "status": "Maybe", "reason": "Tired", "message": "",
            "lastTransitionTime": "2026-01-05T08:00:00Z"}],
    }));
    let status = newer.status.unwrap();
    assert_eq!(status.phase, Some(Phase::Unknown));
    assert_eq!(status.domain.unwrap().acceleration, Acceleration::Unknown);
    assert_eq!(status.consoles[0].console_type, ConsoleType::Unknown);
    assert_eq!(status.conditions[0].reason, "Tired");

    let card = json!({
        "pciAddress": "0000:41:00.0", "vendorId": "10de", "deviceId": "26b9", "product": "L40S",
        "kind": "Quantum", "health": {"state": "Degraded", "recoveryAction": "Pray"}, "framework": "Iommufd",
        "supports": [{"mode": "Vgpu", "supported": true}, {"mode": "Fraction", "supported": true}],
        "placements": [
            {"type": "L40S-8Q", "mode": "Vgpu", "framebufferMiB": 8192, "series": "Z", "maxCount": 6},
            {"type": "half", "mode": "Fraction", "framebufferMiB": 1, "maxCount": 2},
        ],
        "instances": [{"id": "x", "type": "half", "mode": "Fraction"}],
    });
    let card: Device = serde_json::from_value(card).unwrap();
    assert_eq!(card.kind, DeviceKind::Unknown);
    assert_eq!(card.health.state, HealthState::Failed, "what is not known to be healthy gets nobody");
    assert_eq!((card.health.recovery_action, card.framework), (None, None));
    assert_eq!(card.supports.len(), 1);
    assert_eq!((card.placements.len(), card.placements[0].series), (1, None));
    assert_eq!(card.instances[0].mode, ShareMode::Passthrough, "it may hold all of the card");
    let broken = json!({"pciAddress": "0000:41:00.0", "vendorId": "10de", "deviceId": "26b9", "product": "L40S",
        "supports": [{"mode": "Vgpu"}]});
    assert!(serde_json::from_value::<Device>(broken).is_err(), "what is broken is still told");
}

#[test]
fn a_console_is_written_so_that_the_version_before_reads_it() {
    /// As the version before had it.
    #[derive(serde::Deserialize)]
    struct Before {
        address: String,
    }
    let console = desktop(&json!({"consoles": [{"type": "VNC"}]})).status.unwrap().consoles.remove(0);
    let before: Before = serde_json::from_value(serde_json::to_value(console).unwrap()).unwrap();
    assert_eq!(before.address, "");
}
