//! What placement reads of a node is the same however its status is written: by this version, or by one before it
//! that knew no models and no rows of functions.
#![expect(clippy::disallowed_methods, reason = "fixtures are files")]

use std::path::{Path, PathBuf};

use gpudesk_crds::{
    GpuNode,
    gpu_node_status::{Instance, VirtualFunction},
    types::ShareMode,
};
use serde_json::{Value, from_value, json, to_value};

use super::hosts;
use crate::placement::{facts::NodeFacts, shape::Shape};

fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let wanted = paths.filter(|path: &PathBuf| path.to_string_lossy().ends_with(ending));
    let read = |path: PathBuf| (path.display().to_string(), std::fs::read_to_string(path).unwrap());
    wanted.map(read).collect()
}

/// Simulated and composed machines, each as it is and in use.
fn machines() -> Vec<(String, GpuNode)> {
    let simulated = files("examples/hosts", ".yaml").into_iter().map(|(name, text)| {
        let host = hosts::hosts("sim", &text, None).unwrap().remove(0);
        (name, hosts::node(&host, None))
    });
    let composed = files("node-daemon/tests/fixtures", ".golden.yaml").into_iter();
    let composed = composed.map(|(name, text)| (name, serde_yaml::from_str::<GpuNode>(&text).unwrap()));
    let idle: Vec<(String, GpuNode)> = simulated.chain(composed).collect();
    let busy = idle.iter().map(|(name, node)| (format!("{name} in use"), in_use(node.clone())));
    let busy: Vec<(String, GpuNode)> = busy.collect();
    idle.into_iter().chain(busy).collect()
}

/// A node with something different on each card, on every second of them a share.
fn in_use(mut node: GpuNode) -> GpuNode {
    let devices = node.status.as_mut().map(|status| &mut status.devices);
    for (number, card) in devices.into_iter().flatten().enumerate() {
        if number % 3 == 0
            && let Some(function) = card.virtual_functions.get_mut(number)
        {
            (function.driver, function.unavailable) =
                (Some("vfio-pci".into()), Some("vfio-pci holds it".into()));
        }
        let Some(first) = card.placements.first_mut().filter(|_| number % 2 == 0) else { continue };
        first.available = Some(i32::try_from(number).unwrap());
        if number % 4 == 0 {
            first.max_count += 1;
        }
        card.instances.push(Instance {
            id: format!("u{number}"),
            type_name: first.type_name.clone(),
            mode: first.mode,
            vgpu_type: None,
            start: first.starts.first().copied(),
            virtual_function: card.virtual_functions.first().map(|function| function.pci_address),
            gpu_instance: None,
            owner: Some("demo/a".into()),
        });
    }
    node
}

/// As the version before this one wrote it: each card whole, each function on its own.
fn as_before(node: &GpuNode) -> Value {
    let one_by_one = |value: &mut Value, functions: &[VirtualFunction]| {
        let each = functions.iter().map(|function| {
            let VirtualFunction { pci_address, index, device_id, driver, iommu_group, unavailable } =
                function;
            json!({"pciAddress": pci_address, "index": index, "deviceId": device_id, "driver": driver,
                   "iommuGroup": iommu_group, "unavailable": unavailable})
        });
        value["virtualFunctions"] = each.collect();
    };
    let mut value = to_value(node).unwrap();
    let Some(status) = &node.status else { return value };
    value["status"].as_object_mut().unwrap().remove("deviceModels");
    value["status"]["devices"] = to_value(&status.devices).unwrap();
    for (number, card) in status.devices.iter().enumerate() {
        one_by_one(&mut value["status"]["devices"][number], &card.virtual_functions);
    }
    for (number, device) in status.host_devices.iter().enumerate() {
        one_by_one(&mut value["status"]["hostDevices"][number], &device.virtual_functions);
    }
    value
}

fn read(value: &Value) -> GpuNode {
    from_value(value.clone()).unwrap()
}

#[test]
fn placement_reads_the_same_of_both_forms() {
    let machines = machines();
    assert!(machines.len() > 60, "fixtures are missing");
    for (name, node) in machines {
        for form in [to_value(&node).unwrap(), as_before(&node)] {
            let read = read(&form);
            assert_eq!(read.status, node.status, "{name}");
            assert_eq!(NodeFacts::read(&read), NodeFacts::read(&node), "{name}");
        }
    }
}

#[test]
fn a_version_before_gives_nothing_of_cards_with_a_model_and_keeps_what_runs() {
    let offers_nothing = |shape: &Shape| shape.kinds.is_empty() && !shape.supports(ShareMode::Passthrough);
    let mut with_model = 0;
    for (name, node) in machines() {
        let mut value = to_value(&node).unwrap();
        let devices = value["status"]["devices"].as_array().cloned().unwrap_or_default();
        // It knows neither of these, and the server gives it all fields.
        value["status"].as_object_mut().unwrap().remove("deviceModels");
        for device in value.pointer_mut("/status/devices").and_then(Value::as_array_mut).into_iter().flatten()
        {
            device.as_object_mut().unwrap().retain(|field, _| field != "model" && field != "available");
            let rows = device.get_mut("virtualFunctions").and_then(Value::as_array_mut);
            for row in rows.into_iter().flatten() {
                row.as_object_mut().unwrap().retain(|field, _| field != "count" && field != "stride");
            }
        }
        let (before, now) = (NodeFacts::read(&read(&value)), NodeFacts::read(&node));
        assert_eq!(before.cards.len(), now.cards.len(), "{name}");
        for (position, (before, now)) in before.cards.iter().zip(&now.cards).enumerate() {
            assert_eq!(
                (before.address, &before.uuid, before.cell),
                (now.address, &now.uuid, now.cell),
                "{name}"
            );
            assert_eq!(before.instances.len(), now.instances.len(), "{name}");
            // One that differs from its model in what it supports says that itself.
            let has_model = devices.iter().any(|device| {
                device["pciAddress"] == json!(now.address)
                    && device["model"].is_string()
                    && device["supports"].is_null()
            });
            with_model += usize::from(has_model);
            assert!(!has_model || offers_nothing(&before.shape), "{name}: card {position}");
            let alone = devices
                .iter()
                .any(|device| device["pciAddress"] == json!(now.address) && device["model"].is_null());
            assert!(!alone || before.shape == now.shape, "{name}: card {position}");
        }
    }
    assert!(with_model > 80, "only {with_model} cards");
}

/// Bytes that a node may have in the API: what partitioning and machines add comes on top.
const MOST: usize = 21_000;

#[test]
fn a_node_of_eight_cards_takes_few_bytes() {
    let mut large = vec![];
    for (name, node) in machines().into_iter().filter(|(name, _)| !name.ends_with("in use")) {
        let bytes = serde_json::to_string(&node).unwrap().len();
        let before = as_before(&node).to_string().len();
        let cards = node.status.as_ref().map_or(0, |status| status.devices.len());
        println!("{cards} cards, {before} bytes before, {bytes} now: {name}");
        if bytes > MOST {
            large.push(format!("{name}: {bytes}"));
        }
    }
    assert!(large.is_empty(), "{large:?}");
}
