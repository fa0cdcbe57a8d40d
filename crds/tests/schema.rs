//! Promises that hold for every field of every kind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use gpudesk_crds::schema;
use serde_json::Value;

/// One place in a schema.
struct Place<'a> {
    /// Kind and field names, `[]` for the items of a list, `{}` for the values of a map.
    path: String,
    schema: &'a Value,
    /// Whether it is the value of a named field, which needs words of its own.
    field: bool,
}

impl Place<'_> {
    fn is(&self, kind: &str) -> bool {
        self.schema["type"] == kind
    }
}

fn walk<'a>(path: &str, schema: &'a Value, field: bool, visit: &mut impl FnMut(&Place<'a>)) {
    visit(&Place { path: path.to_owned(), schema, field });
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), property, true, visit);
    }
    if schema["items"].is_object() {
        walk(&format!("{path}[]"), &schema["items"], false, visit);
    }
    if schema["additionalProperties"].is_object() {
        walk(&format!("{path}{{}}"), &schema["additionalProperties"], false, visit);
    }
}

fn definitions() -> Vec<Value> {
    schema::all().iter().map(|crd| serde_json::to_value(crd).unwrap()).collect()
}

/// The places of all kinds that `wrong` finds something to say about.
fn faults(mut wrong: impl FnMut(&Place<'_>) -> Option<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for crd in definitions() {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        let root = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        walk(&kind, root, true, &mut |place| {
            if let Some(fault) = wrong(place) {
                faults.push(format!("{}: {fault}", place.path));
            }
        });
    }
    faults
}

#[test]
fn the_walk_sees_every_level() {
    let mut seen = Vec::new();
    faults(|place| {
        seen.push(place.path.clone());
        None
    });
    for path in [
        "Desktop.spec.overrides.gpus[].profileRef.name",
        "Desktop.spec.nodeSelector{}",
        "Desktop.status.allocation.compute.vcpuPins[].cpus",
        "Desktop.status.allocation.decision.best[].score",
        "DesktopTemplate.spec.disks[].image.sizeGiB",
        "GpuNode.status.devices[].placements[].starts[]",
        "GpuProfile.spec.alternatives[].vgpu.framebufferRangeMiB.min",
    ] {
        assert!(seen.iter().any(|seen| seen == path), "{path} is not among {} places", seen.len());
    }
}

#[test]
fn items_of_lists_in_a_spec_have_no_defaults_of_the_server() {
    // `kubectl apply` compares such lists whole and would find them changed each time.
    let wrong = faults(|place| {
        let in_item = place.path.contains(".spec.") && place.path.contains("[]");
        (in_item && !place.schema["default"].is_null())
            .then(|| format!("default {}", place.schema["default"]))
    });
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn names_are_camel_case() {
    let wrong = faults(|place| {
        let name = place.path.rsplit('.').next()?.trim_end_matches("[]").trim_end_matches("{}");
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric());
        let begins = !place.path.contains('.') || name.starts_with(|c: char| c.is_ascii_lowercase());
        (!plain || !begins).then(|| "no camelCase name".to_owned())
    });
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn kubectl_explain_has_words_for_every_field() {
    let wrong = faults(|place| {
        let words = place.schema["description"].as_str().unwrap_or_default();
        (place.field && words.len() < 5).then(|| format!("description {words:?}"))
    });
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn every_list_map_and_text_is_bounded() {
    let wrong = faults(|place| {
        let schema = place.schema;
        let bounded = match () {
            () if place.is("array") => schema["maxItems"].is_u64(),
            () if schema["additionalProperties"].is_object() => schema["maxProperties"].is_u64(),
            () if place.is("string") && place.path.contains(".spec") => {
                schema["maxLength"].is_u64() || schema["enum"].is_array() || schema["format"] == "date-time"
            }
            () => true,
        };
        (!bounded).then(|| "has no bound".to_owned())
    });
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn every_number_of_a_spec_has_both_bounds() {
    let wrong = faults(|place| {
        let number = place.is("integer") || place.is("number");
        let both = place.schema["minimum"].is_number() && place.schema["maximum"].is_number();
        (number && place.path.contains(".spec") && !both).then(|| "has no minimum or no maximum".to_owned())
    });
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn counts_in_a_status_are_not_negative() {
    // Positions, numbers and degrees, which the node reports as it found them.
    const FOUND: [&str; 8] = [
        "observedGeneration",
        "templateGeneration",
        "desktopGeneration",
        "numaCell",
        "numaCells[]",
        "temperatureCelsius",
        "start",
        "id",
    ];
    let wrong = faults(|place| {
        let name = place.path.rsplit('.').next().unwrap_or_default();
        let counted = place.is("integer") && place.path.contains(".status") && !FOUND.contains(&name);
        let inside = name.ends_with("[]");
        (counted && !inside && !place.schema["minimum"].is_number()).then(|| "has no minimum".to_owned())
    });
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn numbers_are_signed_as_kubernetes_wants_them() {
    let wrong = faults(|place| {
        let format = place.schema["format"].as_str()?;
        (!["int32", "int64", "date-time", "double"].contains(&format)).then(|| format!("format {format}"))
    });
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn lists_of_objects_have_a_key() {
    // No two entries of these can mean the same, or their order is their meaning.
    const ORDERED: [&str; 7] = [
        "Desktop.spec.tolerations",
        "GpuProfile.spec.alternatives",
        "GpuNode.status.deviceModels[].bars",
        "GpuNode.status.deviceModels[].placements[].vgpuTypes",
        "GpuNode.status.devices[].bars",
        "GpuNode.status.devices[].health.xids",
        "GpuNode.status.devices[].placements[].vgpuTypes",
    ];
    let wrong = faults(|place| {
        let objects = place.is("array") && place.schema["items"]["type"] == "object";
        let keyed = place.schema["x-kubernetes-list-type"] == "map";
        (objects && !keyed && !ORDERED.contains(&place.path.as_str())).then(|| "is no map list".to_owned())
    });
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn conditions_are_keyed_by_type_in_every_kind() {
    let mut found = BTreeSet::new();
    let wrong = faults(|place| {
        if !place.path.ends_with(".conditions") {
            return None;
        }
        found.insert(place.path.clone());
        let keyed = place.schema["x-kubernetes-list-type"] == "map"
            && place.schema["x-kubernetes-list-map-keys"] == serde_json::json!(["type"]);
        (!keyed).then(|| "two writers would overwrite each other".to_owned())
    });
    assert_eq!(wrong, [""; 0]);
    assert_eq!(found.len(), 4, "{found:?}");
}

#[test]
fn every_rule_has_words_for_those_it_refuses() {
    let wrong = faults(|place| {
        let rules = place.schema["x-kubernetes-validations"].as_array()?;
        let silent: Vec<_> =
            rules.iter().filter(|rule| rule["message"].as_str().unwrap_or_default().len() < 10).collect();
        (!silent.is_empty()).then(|| format!("{silent:?}"))
    });
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn what_people_write_is_refused_in_words_and_not_by_a_pattern() {
    let wrong = faults(|place| {
        (place.path.contains(".spec") && place.schema["pattern"].is_string())
            .then(|| "has a pattern".to_owned())
    });
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn each_kind_has_status_short_name_category_and_age() {
    for crd in definitions() {
        let (names, version) = (&crd["spec"]["names"], &crd["spec"]["versions"][0]);
        let kind = &names["kind"];
        assert_eq!(names["categories"], serde_json::json!(["gpudesk"]), "{kind}");
        assert_eq!(names["shortNames"].as_array().map(Vec::len), Some(1), "{kind}");
        assert!(version["subresources"]["status"].is_object(), "{kind}");
        let columns = version["additionalPrinterColumns"].as_array().unwrap();
        assert!(columns.iter().any(|column| column["name"] == "Age"), "{kind}");
    }
}

/// A value that some reader of YAML takes for a boolean or a number would be another in the definition that it applies.
#[test]
fn no_word_of_an_enum_is_misread_without_quotes() {
    fn words(schema: &serde_json::Value, into: &mut Vec<String>) {
        match schema {
            serde_json::Value::Object(fields) => {
                let listed = fields.get("enum").and_then(serde_json::Value::as_array);
                into.extend(listed.into_iter().flatten().filter_map(|word| Some(word.as_str()?.to_owned())));
                for field in fields.values() {
                    words(field, into);
                }
            }
            serde_json::Value::Array(items) => {
                for item in items {
                    words(item, into);
                }
            }
            _ => {}
        }
    }
    let mut all = vec![];
    for definition in gpudesk_crds::schema::all() {
        words(&gpudesk_crds::schema::of(&definition), &mut all);
    }
    assert!(all.len() > 50, "{all:?}");
    let misread: Vec<_> = all.iter().filter(|word| gpudesk_crds::yaml::misread(word).is_some()).collect();
    assert!(misread.is_empty(), "{misread:?}");
}
