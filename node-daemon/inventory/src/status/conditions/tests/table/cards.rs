//! Memory regions, virtual functions, vGPUs and fabrics.

use gpudesk_crds::{
    conditions::{ConditionType, Reason},
    gpu_node::{DeviceMode, Management},
    gpu_node_status::{Bar, CardFabric, Fabric, FabricPartition, Framework, Sriov},
};

use super::{World, card, check, world};
use crate::topology::HostFacts;

#[test]
fn regions_without_an_address_are_named_with_their_card() {
    check(
        ConditionType::BarsAssigned,
        &[
            (
                |world| world.card().bars.push(Bar { index: 3, size_bytes: 32 << 20, unassigned: true }),
                false,
                Reason::BarUnassigned,
                &["region 3 (32 MiB) of 0000:41:00.0 (NVIDIA L40S)", "Above 4G decoding"],
            ),
            (
                |world| world.card().bars = vec![Bar { index: 1, size_bytes: 0, unassigned: true }],
                false,
                Reason::BarUnassigned,
                &["region 1 of"],
            ),
            (|world| world.card().bars.clear(), true, Reason::Unknown, &[]),
            (|world| world.facts.cards.clear(), true, Reason::NotNeeded, &[]),
        ],
    );
}

#[test]
fn a_consumer_card_beside_a_card_that_is_divided_needs_no_virtual_functions() {
    let mut world = world();
    let mut consumer = card("0000:01:00.0");
    consumer.product = "NVIDIA GeForce RTX 5070".into();
    consumer.sriov = Some(Sriov { total_vfs: 1, num_vfs: 0 });
    world.facts.cards.insert(0, consumer);
    let said = |world: &World| {
        let conditions = world.status().conditions;
        conditions.into_iter().find(|condition| condition.type_ == "SriovEnabled").unwrap()
    };
    assert_eq!(said(&world).status, "True");
    world.facts.cards[0] = card("0000:01:00.0");
    for card in &mut world.facts.cards {
        card.sriov = Some(Sriov { total_vfs: 32, num_vfs: 0 });
    }
    let message = said(&world).message;
    assert!(message.contains("sriov-manage -e for each of 0000:01:00.0, 0000:41:00.0"), "{message}");
}

fn card_of(world: &mut World, vendor: &str, driver: &str, num_vfs: i32) {
    let card = world.card();
    (card.vendor_id, card.driver) = (vendor.into(), Some(driver.into()));
    card.sriov = Some(Sriov { total_vfs: 31, num_vfs });
}

#[test]
fn sriov_is_missed_only_where_the_driver_makes_shares_of_it() {
    check(
        ConditionType::SriovEnabled,
        &[
            (
                |world| card_of(world, "10de", "nvidia", 0),
                false,
                Reason::SriovOff,
                &["sriov-manage -e 0000:41:00.0"],
            ),
            (
                |world| card_of(world, "8086", "xe", 0),
                false,
                Reason::SriovOff,
                &["/sys/bus/pci/devices/0000:41:00.0/sriov_numvfs", "31"],
            ),
            (|world| card_of(world, "1002", "gim", 0), false, Reason::SriovOff, &["sriov_numvfs"]),
            (|world| card_of(world, "1002", "amdgpu", 0), true, Reason::NotNeeded, &[]),
            (|world| card_of(world, "10de", "vfio-pci", 0), true, Reason::NotNeeded, &[]),
            (
                |world| {
                    card_of(world, "8086", "i915", 0);
                    world.card().boot_vga = true;
                },
                true,
                Reason::NotNeeded,
                &[],
            ),
            (
                |world| {
                    card_of(world, "10de", "nvidia", 0);
                    world.vgpu_manager_version = None;
                    world.facts.kernel_state.nvidia_vgpu_module = Some(false);
                },
                true,
                Reason::NotNeeded,
                &[],
            ),
            (
                |world| {
                    card_of(world, "10de", "nvidia", 0);
                    world.policy().mode = Some(DeviceMode::Passthrough);
                },
                true,
                Reason::NotNeeded,
                &[],
            ),
            (|world| card_of(world, "8086", "xe", 4), true, Reason::AsExpected, &[]),
        ],
    );
}

fn no_vgpus(world: &mut World) {
    world.vgpu_manager_version = None;
    world.facts.kernel_state.nvidia_vgpu_module = Some(false);
}

#[test]
fn vgpu_host_ready_knows_consumer_cards_and_drivers_in_containers() {
    check(
        ConditionType::VgpuHostReady,
        &[
            (
                |world| {
                    no_vgpus(world);
                    world.card().product = "NVIDIA GeForce RTX 5090".into();
                    world.card().sriov = Some(Sriov { total_vfs: 16, num_vfs: 0 });
                },
                true,
                Reason::NotNeeded,
                &["divided"],
            ),
            (
                |world| {
                    no_vgpus(world);
                    world.card().product = "10de:2f04".into();
                    world.card().class = "0300".into();
                    world.card().sriov = Some(Sriov { total_vfs: 1, num_vfs: 0 });
                },
                true,
                Reason::NotNeeded,
                &["divided"],
            ),
            (
                |world| {
                    world.facts.kernel_state.vgpu_manager_service = Some(false);
                    world.facts.kernel_state.driver_in_container = true;
                },
                false,
                Reason::HostDriverMissing,
                &["comes from a container", "the pod of the vGPU manager"],
            ),
        ],
    );
}

#[test]
fn vgpu_host_ready_tells_driver_service_and_licence_apart() {
    check(
        ConditionType::VgpuHostReady,
        &[
            (
                no_vgpus,
                false,
                Reason::HostDriverMissing,
                &["570.133.10", "makes no vGPUs", "0000:41:00.0", "mode Passthrough"],
            ),
            (
                |world| {
                    no_vgpus(world);
                    world.gpu_driver_version = None;
                    world.facts.kernel_state.nvidia_driver = None;
                    world.card().driver = Some("nouveau".into());
                },
                false,
                Reason::HostDriverMissing,
                &["no NVIDIA driver is loaded for 0000:41:00.0"],
            ),
            (
                |world| {
                    no_vgpus(world);
                    world.gpu_driver_version = None;
                    world.facts.kernel_state.nvidia_driver = None;
                },
                false,
                Reason::HostDriverMissing,
                &["driver of this host makes no vGPUs"],
            ),
            (
                |world| world.facts.kernel_state.vgpu_manager_service = Some(false),
                false,
                Reason::HostDriverMissing,
                &["nvidia-vgpu-mgr"],
            ),
            (
                |world| world.unlicensed_vgpus = Some(1),
                false,
                Reason::LicenceServiceMissing,
                &["1 vGPU runs", "token"],
            ),
            (
                |world| world.unlicensed_vgpus = Some(3),
                false,
                Reason::LicenceServiceMissing,
                &["3 vGPUs run"],
            ),
            (|world| world.unlicensed_vgpus = None, true, Reason::AsExpected, &[]),
            (
                |world| {
                    no_vgpus(world);
                    world.card().framework = Some(Framework::VendorVfio);
                },
                true,
                Reason::AsExpected,
                &[],
            ),
            (
                |world| {
                    no_vgpus(world);
                    world.card().driver = Some("vfio-pci".into());
                },
                true,
                Reason::NotNeeded,
                &["vfio-pci"],
            ),
            (
                |world| {
                    no_vgpus(world);
                    world.policy().mode = Some(DeviceMode::Passthrough);
                },
                true,
                Reason::NotNeeded,
                &["whole"],
            ),
            (
                |world| {
                    no_vgpus(world);
                    world.policy().management = Some(Management::Unmanaged);
                },
                true,
                Reason::NotNeeded,
                &["managed"],
            ),
            (
                |world| {
                    no_vgpus(world);
                    world.card().product = "GA107M [GeForce RTX 3050 Mobile]".into();
                    world.card().sriov = None;
                },
                true,
                Reason::NotNeeded,
                &["divided"],
            ),
            (|world| world.facts.cards.clear(), true, Reason::NotNeeded, &[]),
        ],
    );
}

fn on_fabric(world: &mut World, state: &str, status: Option<&str>) {
    world.facts.cards.push(card("0000:42:00.0"));
    for card in &mut world.facts.cards {
        card.fabric =
            Some(CardFabric { state: state.into(), status: status.map(Into::into), ..CardFabric::default() });
    }
    world.facts.kernel_state.fabric_manager = Some(true);
}

/// Two cards that are not joined yet, and a partition of these.
fn in_partitions(world: &mut World, module_ids: &[i32], active: bool) {
    on_fabric(world, "InProgress", None);
    for (card, id) in world.facts.cards.iter_mut().zip(1..) {
        card.module_id = Some(id);
    }
    let partition = FabricPartition { id: 7, module_ids: module_ids.to_vec(), active: Some(active) };
    world.facts.fabric = Some(Fabric { switches: vec![], partitions: vec![partition] });
}

#[test]
fn fabric_ready_tells_manager_registration_and_mixed_cards_apart() {
    check(
        ConditionType::FabricReady,
        &[
            (
                |world| world.facts.nvswitches = vec!["0000:b0:00.0".parse().unwrap()],
                false,
                Reason::FabricNotReady,
                &["1 NVSwitches (the first at 0000:b0:00.0)", "nvidia-fabricmanager", "570.133.10"],
            ),
            (
                |world| on_fabric(world, "InProgress", None),
                false,
                Reason::FabricNotReady,
                &["0000:41:00.0 (InProgress)"],
            ),
            (
                |world| on_fabric(world, "Completed", Some("Unknown Error")),
                false,
                Reason::FabricNotReady,
                &["Completed, Unknown Error"],
            ),
            (
                |world| {
                    on_fabric(world, "NotStarted", None);
                    world.facts.kernel_state.fabric_manager = Some(false);
                },
                false,
                Reason::FabricNotReady,
                &["2 cards on an NVLink fabric"],
            ),
            (
                |world| {
                    on_fabric(world, "Completed", Some("Success"));
                    world.card().device_id = "2330".into();
                },
                false,
                Reason::FabricMixed,
                &["2330", "26b9", "0000:41:00.0", "0000:42:00.0"],
            ),
            (
                |world| {
                    world.facts.cards.push(card("0000:42:00.0"));
                    world.card().nvlink_peers = vec!["GPU-0000:42:00.0".into()];
                    world.card().device_id = "20b5".into();
                },
                false,
                Reason::FabricMixed,
                &["20b5"],
            ),
            (|world| on_fabric(world, "Completed", Some("Success")), true, Reason::AsExpected, &[]),
            (|world| in_partitions(world, &[1], false), true, Reason::AsExpected, &[]),
            (
                |world| in_partitions(world, &[1], true),
                false,
                Reason::FabricNotReady,
                &["not up for 0000:41:00.0 (InProgress)"],
            ),
            (|world| on_fabric(world, "NotSupported", None), true, Reason::NotNeeded, &[]),
            (
                |world| {
                    world.facts.nvswitches = vec!["0000:b0:00.0".parse().unwrap()];
                    world.gpu_driver_version = None;
                    world.facts.kernel_state.nvidia_driver = None;
                },
                true,
                Reason::NotNeeded,
                &["NVSwitches"],
            ),
            (
                |world| {
                    world.facts.nvswitches = vec!["0000:b0:00.0".parse().unwrap()];
                    world.facts.kernel_state.fabric_manager = None;
                },
                true,
                Reason::Unknown,
                &[],
            ),
        ],
    );
}

#[test]
fn a_machine_without_cards_needs_nothing_for_cards() {
    let mut world = world();
    world.facts = HostFacts { cards: vec![], ..world.facts };
    for condition in world.status().conditions {
        assert_eq!(condition.status, "True", "{condition:?}");
    }
}
