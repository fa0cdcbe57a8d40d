//! What a `ResourceSlice` tells of devices on a node. Read alike in all versions that clusters serve: `v1` of Kubernetes 1.34,
//! `v1beta2` of 1.33, and `v1beta1` of 1.32, where attributes are one level deeper (`basic`).

use std::collections::BTreeMap;

use gpudesk_crds::pods;
use kube::core::{NotUsed, Object};
use serde::Deserialize;

use super::{Published, Slice};

/// A slice with what is read of it.
pub type ResourceSlice = Object<Spec, NotUsed>;

/// Its spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    driver: String,
    pool: Pool,
    #[serde(default)]
    node_name: Option<String>,
    #[serde(default)]
    devices: Option<Vec<Device>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Pool {
    name: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    /// Where each device says for itself on which node it is.
    #[serde(default)]
    node_name: Option<String>,
    #[serde(default)]
    attributes: Option<Attributes>,
    #[serde(default)]
    basic: Option<Basic>,
}

#[derive(Clone, Debug, Deserialize)]
struct Basic {
    #[serde(default)]
    attributes: Option<Attributes>,
}

type Attributes = BTreeMap<String, Attribute>;

/// A value of which only text matters here.
#[derive(Clone, Debug, Deserialize)]
struct Attribute {
    #[serde(default)]
    string: Option<String>,
}

/// What is kept of a slice; nothing of gpudesk's own.
pub fn read(spec: &Spec) -> Option<Slice> {
    (!pods::is_own_driver(&spec.driver)).then(|| Slice {
        pool: (spec.driver.clone(), spec.pool.name.clone()),
        node: spec.node_name.clone(),
        devices: published(spec),
    })
}

/// The devices of a slice with a PCI address, by their node. Nothing of one that is gpudesk's own, and nothing of devices that
/// are of no single node: a PCI address is one of a node.
pub fn published(spec: &Spec) -> BTreeMap<String, Vec<Published>> {
    let mut nodes: BTreeMap<String, Vec<Published>> = BTreeMap::new();
    let devices = spec.devices.iter().flatten().filter(|_| !pods::is_own_driver(&spec.driver));
    for device in devices {
        let node = spec.node_name.as_ref().or(device.node_name.as_ref());
        let basic = device.basic.as_ref().and_then(|basic| basic.attributes.as_ref());
        let attributes = device.attributes.iter().chain(basic).flatten();
        let texts = attributes.filter_map(|(name, value)| Some((name.as_str(), value.string.as_deref()?)));
        let texts: Vec<(&str, &str)> = texts.collect();
        if let (Some(node), Some(address)) = (node, pods::published_address(&spec.driver, &texts)) {
            nodes.entry(node.clone()).or_default().push(Published {
                driver: spec.driver.clone(),
                pool: spec.pool.name.clone(),
                device: device.name.clone(),
                address,
            });
        }
    }
    nodes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Node, device, address.
    fn read(spec: Value) -> Vec<(String, String, String)> {
        let nodes = published(&serde_json::from_value(spec).unwrap());
        let all = nodes
            .into_iter()
            .flat_map(|(node, devices)| devices.into_iter().map(move |of| (node.clone(), of)));
        all.map(|(node, of)| (node, of.device, of.address.to_string())).collect()
    }

    fn slice(node: &Value, devices: &Value) -> Value {
        let mut slice = json!({"driver": "gpu.nvidia.com", "pool": {"name": "a", "generation": 1, "resourceSliceCount": 1},
                               "devices": devices});
        if let (Value::Object(slice), Value::Object(node)) = (&mut slice, node) {
            slice.extend(node.clone());
        }
        slice
    }

    fn at(name: &str, address: &str) -> Value {
        json!({"name": name, "attributes": {
            "resource.kubernetes.io/pciBusID": {"string": address}, "uuid": {"string": "GPU-1"}, "index": {"int": 0},
            "driverVersion": {"version": "580.1.0"},
        }, "capacity": {"memory": {"value": "80Gi"}}})
    }

    #[test]
    fn devices_with_a_pci_address_are_read_in_every_version() {
        let node = json!({"nodeName": "node-a"});
        let on = |node: &str, device: &str, at: &str| (node.to_owned(), device.to_owned(), at.to_owned());
        let two = json!([at("gpu-0", "0000:41:00.0"), at("gpu-1", "0000:42:00.0"), {"name": "imex", "attributes": {}}]);
        let both = [on("node-a", "gpu-0", "0000:41:00.0"), on("node-a", "gpu-1", "0000:42:00.0")];
        assert_eq!(read(slice(&node, &two)), both);
        let old =
            json!([{"name": "gpu-0", "basic": {"attributes": {"pcieBusID": {"string": "0000:41:00.0"}}}}]);
        assert_eq!(read(slice(&node, &old)), both[..1], "v1beta1");
        assert_eq!(read(slice(&node, &Value::Null)), []);
        assert_eq!(read(slice(&json!({"allNodes": true}), &json!([at("gpu-0", "0000:41:00.0")]))), []);
        assert_eq!(read(slice(&json!({"nodeSelector": {}}), &json!([at("gpu-0", "0000:41:00.0")]))), []);
        let mut each = json!([at("gpu-0", "0000:41:00.0"), at("gpu-1", "0000:42:00.0")]);
        (each[0]["nodeName"], each[1]["nodeName"]) = (json!("node-a"), json!("node-b"));
        let each = slice(&json!({"perDeviceNodeSelection": true}), &each);
        assert_eq!(read(each), [both[0].clone(), on("node-b", "gpu-1", "0000:42:00.0")]);
        let mut own = slice(&node, &json!([at("gpu-0", "0000:41:00.0")]));
        own["driver"] = json!("gpu.gpudesk.dev");
        assert_eq!(read(own), []);
    }

    proptest! {
        #[test]
        fn a_device_is_published_with_the_address_that_it_tells(
            names in proptest::collection::vec("[a-z]{1,8}", 0..6), bus in any::<u8>(), text in "\\PC{0,30}",
        ) {
            let address = format!("0000:{bus:02x}:00.0");
            let devices: Vec<Value> = names.iter().map(|name| at(name, &address)).collect();
            let found = read(slice(&json!({"nodeName": "n"}), &json!(devices)));
            prop_assert_eq!(found.len(), names.len());
            prop_assert!(found.iter().all(|(_, _, told)| *told == address));
            let odd = slice(&json!({"nodeName": text}), &json!([at("gpu-0", &text)]));
            let _ = read(odd);
        }
    }
}
