//! Every validation rule refuses what it is for, in its own words, and lets the neighbour through.
//!
//! Each case is the smallest valid object of its kind with one fragment merged into it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod tables;

use std::collections::BTreeSet;

use gpudesk_crds::{Desktop, schema};
use kube::core::cel::{ValidationErrors, Validator, validate_cel_update};
use serde_json::{Value, json};

use tables::{Case, DESKTOPS, NODES, PROFILES, TEMPLATES};

/// A name that is one character too long, for rules that a fragment cannot show.
fn long_names() -> [(&'static str, Value, &'static str); 4] {
    let named = |length: usize| json!({"metadata": {"name": "a".repeat(length)}});
    [
        ("Desktop", named(64), "must be a DNS label of at most 63 characters"),
        ("DesktopTemplate", named(64), "metadata.name must be at most 63 characters"),
        ("GpuProfile", named(64), "metadata.name must be at most 63 characters"),
        ("GpuNode", named(201), "metadata.name must be at most 200 characters"),
    ]
}

const TEMPLATE_REF_CHANGED: &str = "templateRef cannot be changed";
const NODE_CHANGED: &str = "allocation.node belongs to the decision";

fn smallest(kind: &str) -> Value {
    let spec = match kind {
        "Desktop" => json!({"templateRef": {"name": "t"}}),
        "DesktopTemplate" => {
            json!({"memory": {"sizeMiB": 1024}, "disks": [{"name": "system", "image": {"name": "debian-12"}}]})
        }
        "GpuProfile" => json!({"alternatives": [{"passthrough": {}}]}),
        _ => json!({}),
    };
    json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": kind, "metadata": {"name": "a"}, "spec": spec})
}

fn merge(into: &mut Value, fragment: Value) {
    match (into, fragment) {
        (Value::Object(into), Value::Object(fragment)) => {
            for (key, value) in fragment {
                if value.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, fragment) => *into = fragment,
    }
}

fn schema_of(kind: &str) -> Value {
    let crd = schema::all().into_iter().find(|crd| crd.spec.names.kind == kind).expect("a kind of gpudesk");
    serde_json::to_value(&crd).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
}

/// What the rules say of the smallest object with the fragment; empty when it is accepted.
fn judge(kind: &str, schema: &Value, fragment: Value) -> Vec<String> {
    let mut object = smallest(kind);
    merge(&mut object, fragment);
    let errors = Validator::new().validate(schema, &object, None);
    errors.err().into_iter().flat_map(ValidationErrors::into_vec).map(|error| error.to_string()).collect()
}

fn check(kind: &str, cases: &[Case]) {
    let schema = schema_of(kind);
    let mut wrong = Vec::new();
    for (fragment, refusal) in cases {
        let said = judge(kind, &schema, serde_yaml::from_str(fragment).unwrap());
        let right = match refusal {
            None => said.is_empty(),
            Some(refusal) => said.iter().any(|said| said.contains(refusal)),
        };
        if !right {
            wrong.push(format!("{fragment}\n  expected {refusal:?}, rules say {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn desktops() {
    check("Desktop", DESKTOPS);
}

#[test]
fn templates() {
    check("DesktopTemplate", TEMPLATES);
}

#[test]
fn nodes() {
    check("GpuNode", NODES);
}

#[test]
fn profiles() {
    check("GpuProfile", PROFILES);
}

#[test]
fn names_that_are_too_long_are_refused() {
    for (kind, fragment, refusal) in long_names() {
        let said = judge(kind, &schema_of(kind), fragment);
        assert!(said.iter().any(|said| said.contains(refusal)), "{kind}: {said:?}");
    }
}

fn desktop_of(template: &str) -> Desktop {
    let mut object = smallest("Desktop");
    merge(&mut object, json!({"spec": {"templateRef": {"name": template}}}));
    serde_json::from_value(object).unwrap()
}

#[test]
fn the_template_of_a_desktop_stays() {
    assert!(validate_cel_update(&desktop_of("a"), &desktop_of("a")).is_ok());
    let said = validate_cel_update(&desktop_of("b"), &desktop_of("a")).unwrap_err().to_string();
    assert!(said.contains(TEMPLATE_REF_CHANGED), "{said}");
}

#[test]
fn a_decision_stays_on_its_node() {
    let decided = |node: &str, id: &str| -> Desktop {
        let mut object = smallest("Desktop");
        let allocation = json!({"node": node, "id": id, "desktopGeneration": 1, "templateGeneration": 1,
            "decidedAt": "2026-11-30T08:00:00Z"});
        merge(&mut object, json!({"status": {"allocation": allocation}}));
        serde_json::from_value(object).unwrap()
    };
    let before = decided("node-a", "1-98d82dab");
    assert!(validate_cel_update(&decided("node-a", "1-98d82dab"), &before).is_ok());
    assert!(validate_cel_update(&decided("node-b", "2-98d82dab"), &before).is_ok());
    let said = validate_cel_update(&decided("node-b", "1-98d82dab"), &before).unwrap_err().to_string();
    assert!(said.contains(NODE_CHANGED), "{said}");
}

fn collect(schema: &Value, path: &str, messages: &mut BTreeSet<(String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        messages.insert((path.to_owned(), rule["message"].as_str().unwrap().to_owned()));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        collect(property, &format!("{path}.{name}"), messages);
    }
    if schema["items"].is_object() {
        collect(&schema["items"], path, messages);
    }
}

#[test]
fn no_rule_is_without_a_case() {
    let mut messages = BTreeSet::new();
    for crd in schema::all() {
        let crd = serde_json::to_value(&crd).unwrap();
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        collect(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &kind, &mut messages);
    }
    assert!(messages.len() > 50, "only {} rules were found", messages.len());

    let tables =
        [("Desktop", DESKTOPS), ("DesktopTemplate", TEMPLATES), ("GpuNode", NODES), ("GpuProfile", PROFILES)];
    let mut refusals: Vec<(&str, &str)> = vec![("Desktop", TEMPLATE_REF_CHANGED), ("Desktop", NODE_CHANGED)];
    refusals.extend(long_names().iter().map(|(kind, _, refusal)| (*kind, *refusal)));
    for (kind, table) in tables {
        refusals.extend(table.iter().filter_map(|(_, refusal)| Some((kind, (*refusal)?))));
    }
    let untested: Vec<_> = messages
        .iter()
        .filter(|(path, message)| {
            let kind = path.split('.').next().unwrap_or_default();
            !refusals.iter().any(|(of, refusal)| *of == kind && message.contains(refusal))
        })
        .collect();
    assert!(untested.is_empty(), "{untested:#?}");
}
