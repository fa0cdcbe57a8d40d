//! What is read from a desktop and its template.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpudesk_crds::{conditions::Reason, desktop_template::Pinning};
use serde_json::{Value, json};

use super::rig::{desktop, profile, template};
use crate::{
    desktop::validate::{Planned, Referenced, validate, validate_for_plan},
    placement::request::{AffinityRule, FunctionKind, FunctionRequest, Relation, Toleration},
};

fn read(template_spec: Value, more: Value) -> Result<(), (Reason, String)> {
    let referenced = Referenced {
        template: Some(Arc::new(template(template_spec))),
        profiles: [("whole".to_owned(), Arc::new(profile(json!({"alternatives": [{"passthrough": {}}]}))))]
            .into(),
    };
    validate(&desktop("a", 5, more), &referenced)
        .map(|_| ())
        .map_err(|invalid| (invalid.reason, invalid.message))
}

#[test]
fn every_field_that_is_not_yet_supported_is_named() {
    let cases = [
        (json!({"filesystems": [{"tag": "t", "source": "/srv"}]}), "spec.filesystems"),
        (json!({"machine": {"tpm": true}}), "spec.machine.tpm"),
        (json!({"consoles": {"spice": {}}}), "spec.consoles.spice"),
        (json!({"consoles": {"onGpu": true}}), "spec.consoles.onGpu"),
        (
            json!({"consoles": {"vnc": {"passwordSecretRef": {"name": "s"}}}}),
            "spec.consoles.vnc.passwordSecretRef",
        ),
        (json!({"lifecycle": {"releaseGpuOnStop": false}}), "spec.lifecycle.releaseGpuOnStop: false"),
        (json!({"lifecycle": {"maximumSessionMinutes": 5}}), "spec.lifecycle.maximumSessionMinutes"),
        (json!({"lifecycle": {"idleStopMinutes": 5}}), "spec.lifecycle.idleStopMinutes"),
        (json!({"disks": [{"name": "d", "nfs": {"server": "s", "path": "/p"}}]}), "spec.disks[d].nfs"),
        (
            json!({"disks": [{"name": "d", "image": {"url": "https://x/y", "sha256": "0"}}]}),
            "spec.disks[d].image.url",
        ),
        (json!({"networks": [{"name": "n", "ovs": {"name": "b"}}]}), "spec.networks[n].ovs"),
    ];
    for (spec, field) in cases {
        let (reason, message) = read(spec, json!({})).unwrap_err();
        assert_eq!(reason, Reason::NotYetSupported);
        assert_eq!(message, format!("DesktopTemplate demo/template: {field} is not yet supported"));
    }
    let two = json!({"machine": {"tpm": true}, "consoles": {"onGpu": true}});
    let (_, message) = read(two, json!({})).unwrap_err();
    assert!(message.ends_with("spec.machine.tpm, spec.consoles.onGpu are not yet supported"), "{message}");
    let own = json!({"spec": {"powerState": "Suspended"}});
    let (_, message) = read(json!({}), own).unwrap_err();
    assert_eq!(message, "Desktop demo/a: spec.powerState: Suspended is not yet supported");
    assert_eq!(read(json!({}), json!({})), Ok(()));
}

#[test]
fn overrides_are_refused_by_name_unless_the_template_permits_them() {
    let own = json!({"spec": {"overrides": {"cpu": {"cores": 4}, "memory": {"sizeMiB": 2048}}}});
    let (reason, message) = read(json!({"allowOverrides": ["Cpu"]}), own.clone()).unwrap_err();
    assert_eq!(reason, Reason::OverrideNotAllowed);
    assert!(message.contains("does not permit spec.overrides.memory"), "{message}");
    assert_eq!(read(json!({"allowOverrides": ["Cpu", "Memory"]}), own), Ok(()));
    let odd = json!({"spec": {"overrides": {"memory": {"sizeMiB": 1000, "hugepages": "1Gi"}}}});
    let (reason, message) = read(json!({"allowOverrides": ["Memory"]}), odd).unwrap_err();
    assert_eq!(reason, Reason::InvalidSpec);
    assert!(message.contains("memory.sizeMiB 1000 must be a multiple of 1024"), "{message}");
}

#[test]
fn shares_are_counted_and_named_apart() {
    let gpus = |list: Value| json!({"gpus": list});
    let gpu = |name: &str, count: i32| json!({"name": name, "profileRef": {"name": "whole"}, "count": count});
    assert_eq!(read(gpus(json!([gpu("a", 2), gpu("b", 1)])), json!({})), Ok(()));
    assert_eq!(
        read(gpus(json!([gpu("a", 2), gpu("a-1", 1)])), json!({})).unwrap_err().0,
        Reason::InvalidSpec
    );
    assert_eq!(read(gpus(json!([gpu("a", 16), gpu("b", 1)])), json!({})).unwrap_err().0, Reason::InvalidSpec);
}

fn referenced(template_spec: Value) -> Referenced {
    Referenced { template: Some(Arc::new(template(template_spec))), profiles: BTreeMap::new() }
}

#[test]
fn a_plan_reads_what_a_cluster_still_refuses_and_names_it() {
    let spec = json!({
        "networks": [{"name": "lan", "sriov": {"physicalNetwork": "campus", "vlan": 7}}, {"name": "out", "user": {}}],
        "disks": [{"name": "system", "image": {"name": "debian"}}, {"name": "data", "nvme": {"minimumSizeGiB": 900}}],
        "machine": {"tpm": true},
    });
    let object = desktop("a", 5, json!({"spec": {"powerState": "Suspended"}}));
    assert!(validate(&object, &referenced(spec.clone())).is_err());
    let Planned { wanted, refused } = validate_for_plan(&object, &referenced(spec)).unwrap();
    assert_eq!(
        refused,
        ["Desktop demo/a: spec.powerState: Suspended", "DesktopTemplate demo/template: spec.machine.tpm",]
    );
    // Functions and drives are no reason.
    let network = FunctionKind::NetworkFunction { physical_network: "campus".into() };
    assert_eq!(
        wanted.request.demand.functions,
        [
            FunctionRequest { name: "lan".into(), kind: network },
            FunctionRequest { name: "data".into(), kind: FunctionKind::Drive { minimum_gib: 900 } },
        ]
    );
    let plain = desktop("a", 5, json!({}));
    let planned = validate_for_plan(&plain, &referenced(json!({}))).unwrap();
    assert_eq!(planned.refused, [""; 0]);
    assert_eq!(Ok(planned.wanted), validate(&plain, &referenced(json!({}))));
    let nowhere = validate_for_plan(&plain, &Referenced::default()).unwrap_err();
    assert_eq!(nowhere.message, "DesktopTemplate demo/template does not exist");
}

#[test]
fn a_microvm_takes_no_function_of_a_network_card() {
    let spec = json!({
        "machine": {"type": "microvm", "firmware": "DirectKernel", "directKernel": {"kernel": "k"}},
        "networks": [{"name": "lan", "sriov": {"physicalNetwork": "campus"}}],
    });
    let error = validate_for_plan(&desktop("a", 5, json!({})), &referenced(spec)).unwrap_err();
    assert_eq!(error.reason, Reason::InvalidSpec);
    assert!(error.message.contains("a microvm has no PCI bus"), "{}", error.message);
}

#[test]
fn rules_of_template_and_desktop_count_together() {
    let rule = |name: &str, relation: &str, team: &str, required: bool| json!({"name": name, "relation": relation, "matchLabels": {"team": team}, "required": required});
    let template = json!({
        "affinity": [rule("one", "Apart", "red", true)],
        "cpu": {"pinning": "DedicatedThreads"},
    });
    let own = json!({
        "metadata": {"labels": {"team": "red"}},
        "spec": {
            "affinity": [rule("two", "Together", "red", false), rule("three", "Apart", "red", true)],
            "tolerations": [{"key": "gpu"}, {"key": "for", "value": "exams"}],
            "nodeSelector": {"rack": "a1"},
        },
    });
    let request = validate(&desktop("a", 5, own), &referenced(template)).unwrap().request;
    let labels = BTreeMap::from([("team".to_owned(), "red".to_owned())]);
    let rule = |relation, required| AffinityRule {
        relation,
        topology_key: None,
        match_labels: labels.clone(),
        required,
    };
    assert_eq!(request.affinity, [rule(Relation::Together, false), rule(Relation::Apart, true)]);
    assert_eq!(request.labels, labels);
    assert_eq!(request.demand.node_selector, BTreeMap::from([("rack".to_owned(), "a1".to_owned())]));
    let tolerated =
        |key: &str, value: Option<&str>| Toleration { key: key.into(), value: value.map(Into::into) };
    assert_eq!(request.demand.tolerations, [tolerated("gpu", None), tolerated("for", Some("exams"))]);
    assert_eq!(request.demand.cpu.pinning, Pinning::DedicatedThreads);
}

#[test]
fn a_label_that_nothing_can_have_is_named() {
    let selecting = |key: &str, value: &str| read(json!({}), json!({"spec": {"nodeSelector": {key: value}}}));
    for (key, value) in [("rack", "a1"), ("example.org/rack", ""), ("a_b.C", "x_1")] {
        assert_eq!(selecting(key, value), Ok(()), "{key}={value}");
    }
    for (key, value, part) in [
        ("room a", "1", "spec.nodeSelector names the label \"room a\", which no object can have"),
        ("-x", "1", "\"-x\""),
        ("Example.org/rack", "1", "\"Example.org/rack\""),
        ("a/b/c", "1", "\"a/b/c\""),
        ("", "1", "\"\""),
        ("rack", "a 1", "spec.nodeSelector.rack is \"a 1\", which no label can say"),
    ] {
        let (reason, message) = selecting(key, value).unwrap_err();
        assert!(reason == Reason::InvalidSpec && message.contains(part), "{message}");
    }
    let rule = json!({"affinity": [{"name": "near", "relation": "Apart", "matchLabels": {"b ad": "x"}, "required": true}]});
    let (_, message) = read(rule, json!({})).unwrap_err();
    assert!(
        message.starts_with("DesktopTemplate demo/template: spec.affinity[near].matchLabels names"),
        "{message}"
    );
}
