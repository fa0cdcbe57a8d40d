//! What the kubelet's folder of device plugins tells of who offers devices to pods.
//!
//! The folder is the same on every node, wherever else the kubelet keeps its files (`DevicePluginPath` of
//! `k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1`). In it are the kubelet's own socket, one of each plugin, and a file with
//! the devices that the kubelet counts (`pkg/kubelet/cm/devicemanager/checkpoint`): those that plugins call healthy, until
//! five minutes after a plugin went away. A socket may be left by a plugin that was killed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is known of the device plugins of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlugins {
    /// Names of files beside the kubelet's own.
    pub sockets: Vec<String>,
    /// What the kubelet counts.
    pub counted: Counted,
}

/// The devices that the kubelet counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It never counted any: there is no such file.
    Never,
    /// What it counts could not be read, for this reason.
    Unread(String),
    /// These, by resource (`nvidia.com/gpu`) and by the names that the plugins give them.
    Devices(BTreeMap<String, Vec<String>>),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Checkpoint {
    data: Data,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    // A file without the field is another than the one that is known; with `null` it is empty.
    #[serde(deserialize_with = "Option::deserialize")]
    registered_devices: Option<BTreeMap<String, Option<Vec<String>>>>,
}

/// Most bytes of the file in which the kubelet keeps what it counts: a plugin of thousands of devices fills a tenth.
pub const CHECKPOINT: usize = 512 << 10;
/// Most resources and devices in it, together.
const COUNTED: usize = 16_384;

/// Reads the file in which the kubelet keeps what it counts.
///
/// # Errors
/// Why it tells nothing, without a word of what is in it.
pub fn counted(checkpoint: &[u8]) -> Result<BTreeMap<String, Vec<String>>, String> {
    if checkpoint.len() > CHECKPOINT {
        return Err(format!("it is larger than {} KiB", CHECKPOINT >> 10));
    }
    let read: Checkpoint = serde_json::from_slice(checkpoint).map_err(|error| {
        format!("it is none that this version knows (line {}, column {})", error.line(), error.column())
    })?;
    let registered = read.data.registered_devices.unwrap_or_default();
    let count: usize = registered.values().map(|devices| 1 + devices.as_ref().map_or(0, Vec::len)).sum();
    if count > COUNTED {
        return Err(format!("it counts {count} resources and devices, and no more than {COUNTED} are read"));
    }
    Ok(registered.into_iter().map(|(resource, devices)| (resource, devices.unwrap_or_default())).collect())
}

/// The file without anything but that: it also tells what each pod was given, which is nobody's business.
pub fn without_pods(counted: &BTreeMap<String, Vec<String>>) -> Option<Vec<u8>> {
    let registered = counted.iter().map(|(resource, devices)| (resource.clone(), Some(devices.clone())));
    let kept = Checkpoint { data: Data { registered_devices: Some(registered.collect()) } };
    serde_json::to_vec(&kept).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As a kubelet of Kubernetes 1.36 writes it.
    const FILE: &str = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"9a15d2b5-c152-46b9-96e0-d57032629e1f","ContainerName":"app","ResourceName":"nvidia.com/gpu","DeviceIDs":{"1":["GPU-9b341c59-f96b-ba85-c137-78c3652fea65"]},"AllocResp":"CmsKFk5WSURJQV9WSVNJQkxFX0RFVklDRVM="}],"RegisteredDevices":{"nvidia.com/gpu":["GPU-77a702db-e37f-3a74-d46d-c5713f66058c","GPU-9b341c59-f96b-ba85-c137-78c3652fea65"],"devices.kubevirt.io/kvm":[]}},"Checksum":2530956716,"BootID":"b"}"#;

    fn names(text: &str) -> Option<Vec<(String, usize)>> {
        let counted = counted(text.as_bytes()).ok()?;
        Some(counted.into_iter().map(|(resource, devices)| (resource, devices.len())).collect())
    }

    #[test]
    fn what_the_kubelet_counts_is_read_and_what_pods_have_is_left() {
        let both = vec![("devices.kubevirt.io/kvm".to_owned(), 0), ("nvidia.com/gpu".to_owned(), 2)];
        assert_eq!(names(FILE), Some(both));
        let kept = without_pods(&counted(FILE.as_bytes()).unwrap()).unwrap();
        assert_eq!(counted(&kept), counted(FILE.as_bytes()));
        let kept = String::from_utf8(kept).unwrap();
        assert!(!kept.contains("9a15d2b5") && !kept.contains("AllocResp"), "{kept}");
        assert_eq!(
            names(r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":null},"Checksum":0}"#),
            Some(vec![])
        );
        assert_eq!(
            names(r#"{"Data":{"RegisteredDevices":{"a.b/c":null}}}"#),
            Some(vec![("a.b/c".into(), 0)])
        );
    }

    #[test]
    fn a_file_that_is_not_known_tells_nothing() {
        let cut = &FILE[..FILE.len() / 2];
        for text in [
            "",
            "{}",
            cut,
            r#"{"Data":{}}"#,
            r#"{"Data":{"Registered":{"nvidia.com/gpu":["a"]}}}"#,
            r#"{"Data":{"RegisteredDevices":{"nvidia.com/gpu":"a"}}}"#,
            r#"{"v3":{"Data":{"RegisteredDevices":{}}}}"#,
        ] {
            assert_eq!(names(text), None, "{text}");
            let why = counted(text.as_bytes()).unwrap_err();
            assert!(why.contains("none that this version knows"), "{text}: {why}");
        }
    }

    #[test]
    fn a_file_that_a_plugin_blew_up_is_not_read() {
        let file = |devices: &[String]| {
            serde_json::to_vec(&serde_json::json!({"Data": {"RegisteredDevices": {"a.b/c": devices}}}))
                .unwrap()
        };
        let many = |count: usize| vec![String::new(); count];
        assert_eq!(counted(&file(&many(COUNTED - 1))).unwrap()["a.b/c"].len(), COUNTED - 1);
        let why = counted(&file(&many(COUNTED))).unwrap_err();
        assert!(why.contains("16385") && why.contains("16384"), "{why}");
        let why = counted(&file(&["x".repeat(CHECKPOINT)])).unwrap_err();
        assert!(why.contains("larger than 512 KiB"), "{why}");
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_whatever_plugins_call_their_devices(
            devices in proptest::collection::btree_map("\\PC{0,20}", proptest::collection::vec("\\PC{0,20}", 0..4), 0..4),
            pods in "\\PC{0,20}",
        ) {
            let file = serde_json::json!({
                "Data": {"PodDeviceEntries": [{"PodUID": pods}], "RegisteredDevices": devices}, "Checksum": 1,
            });
            let file = serde_json::to_vec(&file).unwrap();
            prop_assert_eq!(counted(&file), Ok(devices.clone()));
            let kept = without_pods(&devices).unwrap();
            prop_assert_eq!(counted(&kept), Ok(devices));
        }

        #[test]
        fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..400) {
            let _ = counted(&bytes);
            let cut = &FILE.as_bytes()[..cut.min(FILE.len() - 1)];
            prop_assert!(counted(cut).is_err());
        }
    }
}
