//! The document of Apache CloudStack.

use gpudesk_crds::{
    gpu_node_status::{Device, ModeSupport, Placement},
    types::{ShareMode, VgpuSeries},
};
use serde_json::json;

use super::{at, held, merged};
use crate::hook::parse;
use crate::scan::judge_modes;

/// As the script prints it for four cards: one given whole to a machine, one with mdevs, one with
/// virtual functions of its own kind, one without an IOMMU.
const SAMPLE: &str = r#"{ "gpus": [
    {
      "pci_address":"ae:00.0", "vendor_id":"10DE", "device_id":"233B",
      "vendor":"NVIDIA Corporation", "device":"Device", "driver":"vfio-pci",
      "pci_class":"3D controller [0302]", "iommu_group":"35", "pci_root":"0000:ab:02.0", "numa_node":1,
      "sriov_totalvfs":"32", "sriov_numvfs":0,
      "max_instances":null, "video_ram":null, "max_heads":null, "max_resolution_x":null, "max_resolution_y":null,
      "full_passthrough": {
        "enabled":1,
        "libvirt_address": {"domain":"0x0000","bus":"0xae","slot":"0x00","function":"0x0"},
        "used_by_vm":"i-2-385-VM"
      },
      "vgpu_instances":[], "vf_instances":[]
    },
    {
      "pci_address":"0000:3b:00.0", "vendor_id":"10de", "device_id":"1eb8",
      "vendor":"NVIDIA Corporation", "device":"TU104GL [Tesla T4]", "driver":"nvidia",
      "pci_class":"3D controller", "iommu_group":"null", "pci_root":"0000:3b:00.0", "numa_node":-1,
      "sriov_totalvfs":0, "sriov_numvfs":0, "video_ram":"15360",
      "full_passthrough": { "enabled":false, "libvirt_address": {}, "used_by_vm":null },
      "vgpu_instances":[
        {"mdev_uuid":"A1B2C3D4-5678-4e9a-8b0c-d1e2f3a4b5c6","profile_name":"GRID T4-4Q","max_instances":"4",
         "video_ram":4096,"max_heads":4,"max_resolution_x":7680,"max_resolution_y":"4320",
         "libvirt_address":{"domain":"0x0000","bus":"0x3b","slot":"0x00","function":"0x0"},"used_by_vm":"desk"},
        {"mdev_uuid":"b2c3d4e5-6789-4f0a-9c1d-e2f3a4b5c6d7","profile_name":"grid_t4-4q","max_instances":null,
         "used_by_vm":null,"something_new":{"deep":[1]}}
      ],
      "vf_instances":[]
    },
    {
      "pci_address":"0000:00:02.0", "vendor_id":"8086", "device_id":"56c0", "vendor":"Intel Corporation",
      "device":"Flex 170", "driver":"i915", "pci_class":"Display controller [0380]", "iommu_group":12,
      "numa_node":"0", "sriov_totalvfs":31, "sriov_numvfs":"2",
      "full_passthrough": {"enabled":"0","used_by_vm":""},
      "vgpu_instances":null,
      "vf_instances":[
        {"vf_pci_address":"00:02.1","vf_profile":"Flex 170 VF","used_by_vm":"linux01"},
        {"vf_pci_address":"00:02.2","vf_profile":"Flex 170 VF","used_by_vm":null}
      ]
    },
    {
      "pci_address":"d6:00.0", "vendor_id":"1002", "device_id":"74a5", "device":"Instinct MI325X",
      "driver":"unknown", "pci_class":"Processing accelerators [1200]", "iommu_group":"null", "numa_node":-1,
      "full_passthrough": {"enabled":1,"libvirt_address":{"domain":"0x0001","bus":"0xd6","slot":"0x00","function":"0x0"},"used_by_vm":null}
    }
]}"#;

fn supports(card: &Device, mode: ShareMode) -> &ModeSupport {
    card.supports.iter().find(|support| support.mode == mode).unwrap()
}

#[test]
fn the_document_describes_a_host_by_itself() {
    let mut facts = merged(vec![], SAMPLE);
    assert_eq!(facts.incomplete, Vec::<String>::new());
    judge_modes(&mut facts);
    let addresses: Vec<String> = facts.cards.iter().map(|card| card.pci_address.to_string()).collect();
    assert_eq!(addresses, ["0000:00:02.0", "0000:3b:00.0", "0000:ae:00.0", "0001:d6:00.0"]);

    let hopper = &facts.cards[2];
    assert_eq!((hopper.vendor_id.as_str(), hopper.device_id.as_str()), ("10de", "233b"));
    assert_eq!((hopper.product.as_str(), hopper.class.as_str()), ("10de:233b", "0302"));
    assert_eq!((hopper.numa_cell, hopper.driver.as_deref()), (Some(1), Some("vfio-pci")));
    assert_eq!(hopper.iommu_group.as_ref().unwrap().id, 35);
    assert_eq!(hopper.sriov.unwrap().total_vfs, 32);
    assert_eq!(hopper.pcie_path, [at("ab:02.0")]);
    assert!(hopper.unavailable.as_ref().unwrap().contains("i-2-385-VM"));
    assert!(supports(hopper, ShareMode::Passthrough).supported);

    let other = &facts.cards[3];
    assert_eq!((other.numa_cell, &other.iommu_group, &other.driver), (None, &None, &None));
    assert!(supports(other, ShareMode::Passthrough).reason.as_ref().unwrap().contains("IOMMU"));
    assert_eq!(other.unavailable, None);
}

#[test]
fn mediated_devices_become_types_and_instances_without_owner() {
    let facts = merged(vec![], SAMPLE);
    let t4 = &facts.cards[1];
    assert_eq!((t4.memory_mib, t4.unavailable.as_ref()), (Some(15_360), None));
    let [first, second] = &t4.placements[..] else { panic!("{:?}", t4.placements) };
    assert_eq!((first.type_name.as_str(), first.max_count, first.framebuffer_mib), ("T4-4Q", 4, 4096));
    assert_eq!((first.heads, first.max_resolution.as_deref()), (Some(4), Some("7680x4320")));
    assert_eq!(first.series, Some(VgpuSeries::Q));
    assert_eq!(
        (second.type_name.as_str(), second.max_count, second.framebuffer_mib),
        ("grid_t4-4q", 1, 4096)
    );
    let ids: Vec<&str> = t4.instances.iter().map(|instance| instance.id.as_str()).collect();
    assert_eq!(ids, ["a1b2c3d4-5678-4e9a-8b0c-d1e2f3a4b5c6", "b2c3d4e5-6789-4f0a-9c1d-e2f3a4b5c6d7"]);
    assert!(
        t4.instances.iter().all(|instance| instance.owner.is_none() && instance.virtual_function.is_none())
    );
}

#[test]
fn virtual_functions_in_use_are_not_to_be_had() {
    let facts = merged(vec![], SAMPLE);
    let flex = &facts.cards[0];
    let [used, free] = &flex.virtual_functions[..] else { panic!("{:?}", flex.virtual_functions) };
    assert_eq!((used.pci_address, used.index), (at("00:02.1"), 0));
    assert!(used.unavailable.as_ref().unwrap().contains("linux01"));
    assert_eq!((free.index, free.unavailable.as_ref()), (1, None));
    let [instance] = &flex.instances[..] else { panic!("{:?}", flex.instances) };
    assert_eq!(
        (instance.virtual_function, instance.mode),
        (Some(at("00:02.1")), ShareMode::VirtualFunctions)
    );
    assert_eq!(flex.placements[0].max_count, 2);
    assert_eq!(instance.type_name, flex.placements[0].type_name);
}

#[test]
fn what_was_found_stays_where_the_document_says_nothing() {
    let mut found = Device::new(at("3b:00.0"), "10de", "1eb8");
    found.product = "Tesla T4".into();
    found.uuid = Some("GPU-1".into());
    found.numa_cell = Some(1);
    found.placements = vec![Placement::new("T4-4Q", ShareMode::Vgpu, 4096, 9)];
    found.instances = vec![held("a1b2c3d4-5678-4e9a-8b0c-d1e2f3a4b5c6")];
    let before = vec![found, Device::new(at("01:00.0"), "1a03", "2000")];
    let facts = merged(before, SAMPLE);
    assert_eq!(facts.cards.len(), 5);
    let t4 = facts.cards.iter().find(|card| card.pci_address == at("3b:00.0")).unwrap();
    assert_eq!((t4.uuid.as_deref(), t4.numa_cell), (Some("GPU-1"), Some(1)));
    assert_eq!(t4.product, "TU104GL [Tesla T4]");
    // What the driver says of a type stands; what it does not say is filled in.
    assert_eq!((t4.placements[0].max_count, t4.placements[0].heads), (9, Some(4)));
    assert_eq!(t4.instances[0].owner.as_deref(), Some("demo/a"));
    assert_eq!(t4.instances.len(), 2);
}

#[test]
fn vgpus_on_virtual_functions_of_nvidia_cards_name_their_function() {
    let output = json!({"gpus": [{
        "pci_address": "0000:41:00.0", "vendor_id": "10de", "device_id": "2236",
        "vgpu_instances": [{
            "mdev_uuid": "a1b2c3d4-5678-4e9a-8b0c-d1e2f3a4b5c6", "profile_name": "NVIDIA A10-8Q",
            "libvirt_address": {"domain": "0x0000", "bus": "0x41", "slot": "0x00", "function": "0x4"}
        }],
        "vf_instances": [
            {"vf_pci_address": "41:00.4", "vf_profile": "GA102GL [A10]", "used_by_vm": "x"},
            {"vf_pci_address": "0000:41:00.5", "vf_profile": "NVIDIA A10-4Q", "max_instances": 6, "video_ram": "4096"},
            {"vf_pci_address": "0000:41:00.6", "vf_profile": "NVIDIA A10-4Q", "max_instances": null, "video_ram": null}
        ]
    }]});
    let facts = merged(vec![], &output.to_string());
    let [card] = &facts.cards[..] else { panic!() };
    let shown: Vec<(&str, &str)> =
        card.instances.iter().map(|instance| (instance.type_name.as_str(), instance.id.as_str())).collect();
    assert_eq!(shown, [("A10-8Q", "a1b2c3d4-5678-4e9a-8b0c-d1e2f3a4b5c6"), ("A10-4Q", "0000:41:00.5")]);
    assert_eq!(card.instances[0].virtual_function, Some(at("41:00.4")));
    let types: Vec<&str> = card.placements.iter().map(|placement| placement.type_name.as_str()).collect();
    assert_eq!(types, ["A10-8Q", "A10-4Q"]);
    assert_eq!(card.placements[1].max_count, 6);
}

#[test]
fn entries_that_cannot_be_used_are_left_out_and_said() {
    let output = json!({"gpus": [
        {"pci_address": "00:AF.0", "vendor_id": "10de", "device_id": "1eb8"},
        {"pci_address": "00:03.0", "vendor_id": "10de", "device_id": "2484", "device": "first"},
        {"pci_address": "00:03.0", "vendor_id": "1002", "device_id": "7340"},
        {"pci_address": "00:04.0"},
        "text", null, {},
        {"pci_address": "00:05.0", "vendor_id": "8086", "device_id": "46a6",
         "vgpu_instances": [{"mdev_uuid": "nonsense"}], "vf_instances": [{"vf_pci_address": "x"}, 7]},
    ]});
    let facts = merged(vec![], &output.to_string());
    let cards: Vec<String> =
        facts.cards.iter().map(|card| format!("{} {}", card.pci_address, card.product)).collect();
    assert_eq!(cards, ["0000:00:03.0 first", "0000:00:05.0 8086:46a6"]);
    let said = facts.incomplete.join("\n");
    for needle in [
        "gpus[0].pci_address \"00:AF.0\" is no PCI address",
        "gpus[2].pci_address 0000:00:03.0 is named before",
        "0000:00:04.0 was not found",
        "gpus[4].pci_address null",
        "gpus[7].vgpu_instances[0].mdev_uuid \"nonsense\" is no UUID",
        "gpus[7].vf_instances[0].vf_pci_address \"x\"",
    ] {
        assert!(said.contains(needle), "{needle} is not in\n{said}");
    }
}

#[test]
fn only_a_list_of_cards_will_do() {
    assert_eq!(parse(br#"{"gpus": "none"}"#).unwrap_err().to_string(), "gpus: \"none\" is no list");
}
