//! How others offer GPUs to pods, and how they are kept from it. Pure.
//!
//! Taints and resources of gpudesk keep pods away from nothing that a device plugin or a driver of Dynamic Resource
//! Allocation (DRA) offers by itself: what such a program finds on a node, its pods get.
//!
//! Names of sockets of device plugins, in the kubelet's folder for them:
//!
//! | plugin | socket | source |
//! | --- | --- | --- |
//! | NVIDIA | `nvidia-gpu.sock`, `nvidia-mig-1g.5gb.sock`; once `nvidia.sock` | NVIDIA/k8s-device-plugin, `internal/plugin/server.go` |
//! | AMD | `amd.com_gpu`, without an ending | kubevirt/device-plugin-manager, `pkg/dpm/plugin.go`, in ROCm/k8s-device-plugin |
//! | Intel | `gpu.intel.com-i915.sock`, `gpu.intel.com-xe.sock` | intel/intel-device-plugins-for-kubernetes, `pkg/deviceplugin/server.go` |
//!
//! NVIDIA's plugin for virtual machines listens on `kubevirt-NAME.sock` as `KubeVirt` itself does for `/dev/kvm`: its
//! socket tells nothing, and the devices that the kubelet counts do (NVIDIA/kubevirt-gpu-device-plugin,
//! `pkg/device_plugin/generic_device_plugin.go`: addresses of functions, in older versions numbers of IOMMU groups).
//!
//! Labels and fields that keep plugins and drivers away are those of NVIDIA/gpu-operator (`controllers/state_manager.go`: a
//! label `nvidia.com/gpu.deploy.*` that is there is honoured), ROCm/gpu-operator (`docs/dra/dra-driver.md`,
//! `docs/fulldeviceconfig.rst`) and Intel's device plugins operator (`GpuDevicePlugin.spec.nodeSelector`).

use crate::{gpu_node_status::Device, types::PciAddress};

/// A vendor of GPUs.
#[derive(Debug, PartialEq, Eq)]
pub struct Vendor {
    /// Vendor id on PCI.
    pub id: &'static str,
    /// Domain of its drivers and, with or without a name before it, of its resources.
    domain: &'static str,
    /// Before the slash in the names of its extended resources.
    resources: &'static str,
    /// What keeps its device plugin off a node, as an order to an administrator.
    pub without_plugin: &'static str,
    /// What keeps its DRA driver off a node.
    pub without_driver: &'static str,
}

/// Those whose cards gpudesk knows.
pub static VENDORS: [Vendor; 3] = [
    Vendor {
        id: "10de",
        domain: "nvidia.com",
        resources: "nvidia.com",
        without_plugin: "label the Node nvidia.com/gpu.deploy.device-plugin=false (GPU operator), or keep the plugin's \
                         DaemonSet off it",
        without_driver: "label the Node nvidia.com/gpu.deploy.dra-driver=false (GPU operator), or keep the driver's kubelet \
                         plugin off it (kubeletPlugin.nodeSelector)",
    },
    Vendor {
        id: "1002",
        domain: "amd.com",
        resources: "amd.com",
        without_plugin: "keep the Node out of spec.devicePlugin's or spec.selector of the DeviceConfig (GPU operator), or the \
                         plugin's DaemonSet off it",
        without_driver: "keep the Node out of spec.draDriver.selector or spec.selector of the DeviceConfig (GPU operator), or \
                         the driver's DaemonSet off it",
    },
    Vendor {
        id: "8086",
        domain: "intel.com",
        resources: "gpu.intel.com",
        without_plugin: "keep the Node out of spec.nodeSelector of the GpuDevicePlugin (device plugins operator)",
        without_driver: "keep the Node out of kubeletPlugin.nodeSelector of the driver's chart",
    },
];

/// What keeps a driver away of which nothing better is known.
pub const WITHOUT_ANY: &str = "keep its DaemonSet off the Node";

/// The vendor of a card.
pub fn of_card(card: &Device) -> Option<&'static Vendor> {
    VENDORS.iter().find(|vendor| vendor.id == card.vendor_id)
}

/// The vendor to whose domain an extended resource belongs: `nvidia.com/gpu`.
pub fn of_resource(resource: &str) -> Option<&'static Vendor> {
    let domain = resource.split_once('/')?.0;
    VENDORS.iter().find(|vendor| vendor.resources == domain)
}

/// The vendor of a DRA driver: `gpu.nvidia.com`.
pub fn of_driver(driver: &str) -> Option<&'static Vendor> {
    VENDORS.iter().find(|vendor| is_of(driver, vendor.domain))
}

/// Whether a DRA driver is gpudesk's own.
pub fn is_own_driver(driver: &str) -> bool {
    is_of(driver, crate::GROUP)
}

fn is_of(name: &str, domain: &str) -> bool {
    name == domain || name.strip_suffix(domain).is_some_and(|head| head.ends_with('.'))
}

/// The vendor whose device plugin for GPUs listens on a socket of this name.
pub fn of_socket(name: &str) -> Option<&'static Vendor> {
    let id = match name.strip_suffix(".sock") {
        Some(stem) if stem == "nvidia" || stem.starts_with("nvidia-") => "10de",
        Some(stem) if stem.starts_with("gpu.intel.com-") => "8086",
        _ if name.starts_with("amd.com_") && !is_network(name) => "1002",
        _ => return None,
    };
    VENDORS.iter().find(|vendor| vendor.id == id)
}

/// Whether a resource of a vendor stands for GPUs, whatever its devices are called: of NVIDIA `gpu`, `gpu.shared`,
/// `pgpu`, `mig-1g.5gb`; of AMD and Intel all but network cards.
pub fn gives_gpus(resource: &str) -> bool {
    let Some((_, name)) = resource.split_once('/') else { return false };
    match of_resource(resource) {
        Some(vendor) if vendor.id == "10de" => {
            ["gpu", "pgpu", "mig-"].iter().any(|head| name.starts_with(head))
        }
        Some(_) => !is_network(name),
        None => false,
    }
}

fn is_network(name: &str) -> bool {
    name.contains("nic")
}

/// Whether a device of a plugin is this card or a part of it, by the name that the plugin gives it: the UUID of the
/// card or of an instance, or the PCI address of the card or of one of its functions, with or without a mark of a replica
/// (`GPU-…::0`). The number of an IOMMU group counts only where the resource is the vendor's.
pub fn is_part_of(card: &Device, device: &str, resource: &str) -> bool {
    let base = device.split("::").next().unwrap_or(device);
    let uuids = card.uuid.iter().chain(card.instances.iter().map(|instance| &instance.id));
    let is_uuid = |uuid: &String| {
        let head = base.get(..uuid.len()).filter(|_| !uuid.is_empty());
        let rest = base.get(uuid.len()..).unwrap_or_default();
        head.is_some_and(|head| head.eq_ignore_ascii_case(uuid))
            && !rest.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    let in_group = || {
        let group = card.iommu_group.as_ref().map(|group| group.id.to_string());
        group.as_deref() == Some(base) && of_resource(resource) == of_card(card) && of_card(card).is_some()
    };
    base.parse().is_ok_and(|address| has_function(card, address))
        || uuids.into_iter().any(is_uuid)
        || in_group()
}

/// Whether the name of a device says by itself which card it is, so that where it is none of some cards it is another.
pub fn tells_its_card(device: &str) -> bool {
    let base = device.split("::").next().unwrap_or(device);
    base.parse::<PciAddress>().is_ok() || base.get(..4).is_some_and(|head| head.eq_ignore_ascii_case("GPU-"))
}

/// Whether a function is the card or one of its virtual functions.
pub fn has_function(card: &Device, address: PciAddress) -> bool {
    card.pci_address == address
        || card.virtual_functions.iter().any(|function| function.pci_address == address)
}

/// Names of the attribute that tells the PCI address of a device in a `ResourceSlice`, the first that is there. The standard
/// one is of Kubernetes (`k8s.io/dynamic-resource-allocation`, `deviceattribute`: extended BDF notation); the others are of
/// NVIDIA's driver (`pcieBusID`), AMD's for VFIO (`pciAddr`) and Intel's (`pciAddress`), each in its own domain, also from
/// before there was a standard.
const ADDRESS_ATTRIBUTES: [&str; 5] =
    ["resource.kubernetes.io/pciBusID", "pciBusID", "pcieBusID", "pciAddr", "pciAddress"];

/// The PCI address of a device that `driver` publishes, out of its attributes of text.
pub fn published_address(driver: &str, attributes: &[(&str, &str)]) -> Option<PciAddress> {
    let is = |name: &str, wanted: &str| match name.split_once('/') {
        Some((domain, short)) if domain == driver => short == wanted,
        _ => name == wanted,
    };
    ADDRESS_ATTRIBUTES.iter().find_map(|wanted| {
        let mut named = attributes.iter().filter(|(name, _)| is(name, wanted));
        named.find_map(|(_, value)| value.parse().ok())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gpu_node_status::{IommuGroup, VirtualFunction};

    fn card() -> Device {
        let mut card = Device::new("0000:41:00.0".parse().unwrap(), "10de", "26b9");
        card.uuid = Some("GPU-9b341c59-f96b-ba85-c137-78c3652fea65".into());
        card.iommu_group = Some(IommuGroup { id: 42, members: vec![], viable: true, message: None });
        card.virtual_functions = vec![VirtualFunction {
            pci_address: "0000:41:00.4".parse().unwrap(),
            index: 0,
            device_id: None,
            driver: None,
            iommu_group: None,
            unavailable: None,
        }];
        card
    }

    #[test]
    fn vendors_are_known_by_sockets_resources_and_drivers() {
        let id = |vendor: Option<&'static Vendor>| vendor.map_or("", |vendor| vendor.id);
        for (socket, vendor) in [
            ("nvidia-gpu.sock", "10de"),
            ("nvidia-mig-1g.10gb.sock", "10de"),
            ("nvidia.sock", "10de"),
            ("amd.com_gpu", "1002"),
            ("amd.com_cpx_nps4", "1002"),
            ("amd.com_nic", ""),
            ("gpu.intel.com-i915.sock", "8086"),
            ("gpu.intel.com-xe_monitoring.sock", "8086"),
            ("kubelet.sock", ""),
            ("kubelet_internal_checkpoint", ""),
            ("nvidia.com_hostdev.sock", ""),
            ("kubevirt-kvm.sock", ""),
            ("qat.intel.com-generic.sock", ""),
        ] {
            assert_eq!(id(of_socket(socket)), vendor, "{socket}");
        }
        for (resource, vendor, gpus) in [
            ("nvidia.com/gpu", "10de", true),
            ("nvidia.com/gpu.shared", "10de", true),
            ("nvidia.com/mig-3g.40gb", "10de", true),
            ("nvidia.com/hostdev", "10de", false),
            ("nvidia.com/AD102GL_L40S", "10de", false),
            ("amd.com/gpu", "1002", true),
            ("amd.com/nic", "1002", false),
            ("gpu.intel.com/xe", "8086", true),
            ("qat.intel.com/generic", "", false),
            ("intel.com/sriov", "", false),
            ("cpu", "", false),
        ] {
            assert_eq!((id(of_resource(resource)), gives_gpus(resource)), (vendor, gpus), "{resource}");
        }
        for (driver, vendor) in [
            ("gpu.nvidia.com", "10de"),
            ("nvidia.com", "10de"),
            ("gpu.amd.com", "1002"),
            ("gpu.intel.com", "8086"),
            ("notnvidia.com", ""),
            ("nvidia.com.example.org", ""),
        ] {
            assert_eq!(id(of_driver(driver)), vendor, "{driver}");
        }
        assert!(is_own_driver("gpudesk.dev") && is_own_driver("gpu.gpudesk.dev"));
        assert!(!is_own_driver("notgpudesk.dev"));
    }

    #[test]
    fn a_device_of_a_plugin_is_known_by_uuid_address_function_and_group() {
        let card = card();
        for (device, is) in [
            ("GPU-9b341c59-f96b-ba85-c137-78c3652fea65", true),
            ("gpu-9b341c59-f96b-ba85-c137-78c3652fea65::3", true),
            ("GPU-9b341c59-f96b-ba85-c137-78c3652fea65-0", true),
            ("GPU-9b341c59-f96b-ba85-c137-78c3652fea650", false),
            ("GPU-77a702db-e37f-3a74-d46d-c5713f66058c", false),
            ("0000:41:00.0", true),
            ("0000:41:00.4", true),
            ("0000:41:00.5", false),
            ("42", true),
            ("4", false),
            ("", false),
        ] {
            assert_eq!(is_part_of(&card, device, "nvidia.com/gpu"), is, "{device}");
        }
        assert!(!is_part_of(&card, "42", "example.org/fuse"), "any number may be anything");
        assert!(!is_part_of(&card, "42", "amd.com/gpu"));
        assert!(tells_its_card("GPU-1") && tells_its_card("0000:01:00.0"));
        assert!(!tells_its_card("tegra") && !tells_its_card("MIG-1") && !tells_its_card("card0-1"));
    }

    #[test]
    fn the_address_of_a_published_device_is_the_standard_one_where_that_is_there() {
        let of = |attributes: &[(&str, &str)]| {
            let found = published_address("gpu.nvidia.com", attributes);
            found.map(|address| address.to_string()).unwrap_or_default()
        };
        let standard = ("resource.kubernetes.io/pciBusID", "0000:41:00.0");
        assert_eq!(of(&[("pcieBusID", "0000:42:00.0"), standard]), "0000:41:00.0");
        assert_eq!(of(&[("pcieBusID", "00000000:42:00.0")]), "0000:42:00.0", "as NVML writes it");
        assert_eq!(of(&[("gpu.nvidia.com/pciAddress", "0000:42:00.0")]), "0000:42:00.0");
        assert_eq!(of(&[("other.example.org/pciAddress", "0000:42:00.0")]), "");
        assert_eq!(
            of(&[("resource.kubernetes.io/pciBusID", "here"), ("pciAddr", "0000:43:00.0")]),
            "0000:43:00.0"
        );
        assert_eq!(of(&[("uuid", "0000:41:00.0"), ("resource.kubernetes.io/pcieRoot", "pci0000:40")]), "");
    }

    proptest! {
        #[test]
        fn whatever_a_plugin_calls_its_devices_nothing_panics(text in "\\PC{0,60}", resource in "\\PC{0,40}") {
            let card = card();
            let _ = (is_part_of(&card, &text, &resource), tells_its_card(&text), gives_gpus(&resource));
            let _ = (of_socket(&text), of_driver(&text), of_resource(&text));
            let _ = published_address(&resource, &[(text.as_str(), text.as_str())]);
        }

        #[test]
        fn every_function_of_the_card_is_found_however_its_address_is_written(
            short in any::<bool>(), upper in any::<bool>(), replica in proptest::option::of(0_u8..9),
        ) {
            let mut text = if short { "41:00.4".to_owned() } else { "00000000:41:00.4".to_owned() };
            if upper {
                text = text.to_uppercase();
            }
            if let Some(replica) = replica {
                text = format!("{text}::{replica}");
            }
            prop_assert!(is_part_of(&card(), &text, "example.org/gpu"));
        }
    }
}
