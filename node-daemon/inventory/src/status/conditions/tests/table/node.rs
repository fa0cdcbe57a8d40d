//! The node as a whole, its hypervisor and its layout.

use gpudesk_crds::{
    GpuNodeStatus,
    conditions::{ConditionType, Reason},
    gpu_node::{DeviceMode, DeviceSelector, Drain, Layout, Management, VgpuPlacement},
    gpu_node_status::{Acceleration, HealthState, ModeSupport, Placement},
    types::ShareMode,
};
use serde_json::json;

use super::{World, check};
use crate::status::{GuestNetworkView, HeldShare, HypervisorVersions, HypervisorView};

fn hypervisor(world: &mut World, libvirt: &str, qemu: &str) {
    world.hypervisor = HypervisorView::Answers {
        versions: Some(HypervisorVersions { libvirt: libvirt.into(), qemu: Some(qemu.into()) }),
        acceleration: Acceleration::Kvm,
        why_not_kvm: None,
    };
}

fn emulated(world: &mut World, why: &str) {
    world.hypervisor = HypervisorView::Answers {
        versions: None,
        acceleration: Acceleration::Emulation,
        why_not_kvm: Some(why.into()),
    };
}

#[test]
fn ready_needs_a_hypervisor_and_cpus() {
    check(
        ConditionType::Ready,
        &[
            (
                |world| world.hypervisor = HypervisorView::Silent("no socket".into()),
                false,
                Reason::HypervisorUnavailable,
                &["no socket"],
            ),
            (|world| hypervisor(world, "7.0.0", "10.0.0"), false, Reason::VersionTooOld, &["8.0.0"]),
            (
                |world| world.facts.numa_cells.clear(),
                false,
                Reason::TopologyIncomplete,
                &["NUMA cell", "/sys"],
            ),
            (
                |world| {
                    world.facts.numa_cells.clear();
                    world.facts.incomplete.push("no CPUs in sys/devices/system/cpu".into());
                },
                false,
                Reason::TopologyIncomplete,
                &["sys/devices/system/cpu"],
            ),
            (
                |world| world.spec.drain = Some(Drain { deadline_seconds: 5 }),
                true,
                Reason::NotYetSupported,
                &["drain"],
            ),
        ],
    );
}

#[test]
fn hypervisor_ready_names_versions_and_what_they_lack() {
    check(
        ConditionType::HypervisorReady,
        &[
            (
                |world| world.hypervisor = HypervisorView::Silent("gone".into()),
                false,
                Reason::HypervisorUnavailable,
                &["gone", "libvirtd"],
            ),
            (
                |world| hypervisor(world, "7.10.0", "6.0.0"),
                false,
                Reason::VersionTooOld,
                &["libvirt 7.10.0", "8.0.0"],
            ),
            (
                |world| hypervisor(world, "10.0.0", "4.1.1"),
                false,
                Reason::VersionTooOld,
                &["QEMU 4.1.1", "4.2.0"],
            ),
            (
                |world| hypervisor(world, "8.0.0", "6.2.0"),
                true,
                Reason::AsExpected,
                &[
                    "live migration of vGPUs (needs libvirt 8.6.0 and QEMU 8.1.0)",
                    "read-only shared folders (needs libvirt 11.0.0)",
                ],
            ),
            (|world| hypervisor(world, "10.0.0", "8.2.2 (Debian)"), true, Reason::AsExpected, &["read-only"]),
            (|world| hypervisor(world, "unreadable", "unreadable"), true, Reason::AsExpected, &[]),
            (|world| emulated(world, "no KVM"), true, Reason::AsExpected, &[]),
        ],
    );
}

#[test]
fn kvm_usable_tells_the_firmware_from_the_module() {
    check(
        ConditionType::KvmUsable,
        &[
            (
                |world| emulated(world, "a test guest hung for 5 s"),
                false,
                Reason::KvmUnusable,
                &["hung for 5 s", "slow"],
            ),
            (
                |world| {
                    emulated(world, "there is no /dev/kvm");
                    world.facts.kernel_state.kvm_device = Some(false);
                },
                false,
                Reason::KvmUnusable,
                &["kvm_intel"],
            ),
            (
                |world| {
                    emulated(world, "there is no /dev/kvm");
                    world.facts.kernel_state.kvm_device = Some(false);
                    world.facts.kernel_state.cpu_virtualization = Some(false);
                    world.facts.cpu_model = Some("AMD EPYC 9554".into());
                },
                false,
                Reason::KvmUnusable,
                &["SVM", "firmware"],
            ),
            (
                |world| emulated(world, "--acceleration emulation is set"),
                true,
                Reason::NotNeeded,
                &["--acceleration"],
            ),
            (
                |world| world.hypervisor = HypervisorView::Silent("x".into()),
                true,
                Reason::Unknown,
                &["not known"],
            ),
            (
                |world| {
                    world.hypervisor = HypervisorView::Silent("x".into());
                    world.facts.kernel_state.kvm_device = Some(false);
                    world.facts.kernel_state.cpu_virtualization = None;
                },
                false,
                Reason::KvmUnusable,
                &["/dev/kvm"],
            ),
        ],
    );
}

#[test]
fn guest_network_filtered_gives_the_cause_and_who_else_may_see_to_it() {
    check(
        ConditionType::GuestNetworkFiltered,
        &[
            (
                |world| world.guest_network = GuestNetworkView::Unfiltered("no nft; install it".into()),
                false,
                Reason::GuestNetworkUnfiltered,
                &["do not start", "no nft; install it"],
            ),
            (
                |world| world.guest_network = GuestNetworkView::Filtered { except: vec!["lab/old".into()] },
                false,
                Reason::GuestNetworkUnfiltered,
                &["lab/old", "restart"],
            ),
            (
                |world| world.guest_network = GuestNetworkView::External,
                true,
                Reason::NotNeeded,
                &["--guest-network-filter external"],
            ),
            (
                |world| world.guest_network = GuestNetworkView::NotAsked,
                true,
                Reason::Unknown,
                &["running daemon"],
            ),
            (|world| world.guest_network = GuestNetworkView::NoGuests, true, Reason::Simulated, &[]),
        ],
    );
}

#[test]
fn topology_complete_lists_what_is_missing() {
    check(
        ConditionType::TopologyComplete,
        &[
            (
                |world| {
                    let remark =
                        "of the discovery hook's answer: gpus[2].pci_address \"00:AF.0\" is no PCI address";
                    world.facts.incomplete = vec![remark.into()];
                },
                false,
                Reason::TopologyIncomplete,
                &["00:AF.0", "mend what the hook prints"],
            ),
            (
                |world| world.facts.incomplete = vec!["no sys/bus/pci".into()],
                false,
                Reason::TopologyIncomplete,
                &["no sys/bus/pci", "/proc"],
            ),
            (
                |world| world.facts.incomplete = (0..9).map(|n| format!("part {n}")).collect(),
                false,
                Reason::TopologyIncomplete,
                &["part 0; part 1; part 2 and 6 more", "status.missing"],
            ),
            (
                |world| world.instances = Err("NVML: timeout".into()),
                false,
                Reason::TopologyIncomplete,
                &["NVML: timeout", "last known"],
            ),
        ],
    );
}

#[test]
fn devices_healthy_and_layout_applied_name_card_and_field() {
    check(
        ConditionType::DevicesHealthy,
        &[
            (
                |world| {
                    world.card().health.state = HealthState::Failed;
                    world.card().health.message = Some("XID 79: fell off the bus".into());
                },
                false,
                Reason::DeviceUnhealthy,
                &["0000:41:00.0", "XID 79"],
            ),
            (
                |world| world.policy().max_temperature_celsius = Some(80),
                true,
                Reason::NotYetSupported,
                &["devices[one].maxTemperatureCelsius"],
            ),
        ],
    );
    check(
        ConditionType::LayoutApplied,
        &[
            (
                |world| laid_out(world, &["L40S-8Q", "L40S-16Q"]),
                false,
                Reason::InvalidSpec,
                &[
                    "the card at 0000:41:00.0: devices[one].layout.vgpu",
                    "differ in size",
                    "types of one size",
                ],
            ),
            (
                |world| laid_out(world, &["L40S-8Q"; 7]),
                false,
                Reason::InvalidSpec,
                &["[L40S-8Q*7]", "6 of L40S-8Q are on the card then", "no desktop gets the card"],
            ),
            (|world| laid_out(world, &["L40S-8Q"; 6]), true, Reason::AsExpected, &[]),
            (
                |world| {
                    laid_out(world, &["L40S-8Q", "L40S-8Q"]);
                    world.instances = Ok(["lab/anna", "lab/ben", "lab/carl"].map(held).to_vec());
                },
                false,
                Reason::LayoutInUse,
                &["the card at 0000:41:00.0 waits for lab/carl (L40S-8Q):", "all others now"],
            ),
            (
                |world| {
                    laid_out(world, &["L40S-16Q"]);
                    world.instances = Ok(["lab/anna", "lab/ben"].map(held).to_vec());
                },
                false,
                Reason::LayoutInUse,
                &["lab/anna (L40S-8Q), lab/ben (L40S-8Q)"],
            ),
            (
                |world| world.policy().selector.pci_address = Some("0000:ff:00.0".parse().unwrap()),
                false,
                Reason::InvalidSpec,
                &["devices[one]", "no card"],
            ),
            (
                |world| world.policy().vgpu_placement = Some(VgpuPlacement::MixedSize),
                false,
                Reason::InvalidSpec,
                &["MixedSize", "0000:41:00.0"],
            ),
            (
                |world| world.policy().mode = Some(DeviceMode::Mig),
                false,
                Reason::InvalidSpec,
                &["0000:41:00.0: devices[one].mode Mig", "offers no mode now"],
            ),
            (
                |world| {
                    let network = json!({"name": "lab", "devices": ["0000:ff:00.0"]});
                    world.spec.physical_networks = vec![serde_json::from_value(network).unwrap()];
                },
                false,
                Reason::InvalidSpec,
                &["physicalNetworks[lab].devices", "0000:ff:00.0"],
            ),
            (
                |world| {
                    let rule = json!({"name": "scratch", "selector": {"serial": "S1"}, "erase": "Format"});
                    world.spec.nvme_drives = vec![serde_json::from_value(rule).unwrap()];
                },
                false,
                Reason::InvalidSpec,
                &["nvmeDrives[scratch] selects no drive"],
            ),
        ],
    );
}

/// A layout of vGPUs on the card, which offers 8 and 16 GB.
fn laid_out(world: &mut World, types: &[&str]) {
    let card = world.card();
    card.supports = vec![ModeSupport { mode: ShareMode::Vgpu, supported: true, reason: None }];
    card.placements = vec![
        Placement::new("L40S-8Q", ShareMode::Vgpu, 8192, 6),
        Placement::new("L40S-16Q", ShareMode::Vgpu, 16384, 3),
    ];
    let policy = world.policy();
    policy.mode = Some(DeviceMode::Vgpu);
    let types = types.iter().map(|name| (*name).to_owned()).collect();
    policy.layout = Some(Layout { mig: None, vgpu: Some(types) });
}

/// A vGPU of a desktop.
fn held(owner: &str) -> HeldShare {
    let instance = json!({"id": owner, "type": "L40S-8Q", "mode": "Vgpu", "owner": owner});
    HeldShare { card: "0000:41:00.0".parse().unwrap(), instance: serde_json::from_value(instance).unwrap() }
}

#[test]
fn a_layout_is_published_with_its_places_and_counts_as_capacity() {
    let mut world = super::super::world();
    laid_out(&mut world, &["L40S-8Q", "L40S-8Q"]);
    let status = world.status();
    let places = &status.devices[0].layout;
    assert_eq!((places[0].type_name.as_str(), places[0].count, places.len()), ("L40S-8Q", 2, 1));
    let counts: Vec<(&str, i32)> =
        status.capacity.iter().map(|of| (of.type_name.as_str(), of.count)).collect();
    assert_eq!(counts, [("L40S-8Q", 2)]);
    // A driver that says nothing for a while takes no place away, and gives none.
    world.before = Some(status);
    let placements = std::mem::take(&mut world.card().placements);
    let silent = world.status();
    assert_eq!(silent.devices[0].layout, world.before.as_ref().unwrap().devices[0].layout);
    assert!(silent.devices[0].unavailable.is_some() && silent.capacity.is_empty());
    world.card().placements = placements;
    // One that cannot be is none, and no desktop gets the card.
    laid_out(&mut world, &["L40S-8Q"; 7]);
    let refused = world.status();
    assert_eq!((refused.devices[0].layout.len(), refused.capacity.len()), (0, 0));
    assert!(refused.devices[0].unavailable.as_ref().unwrap().contains("devices[one].layout.vgpu"));
}

#[test]
fn a_card_that_cannot_be_used_as_its_owner_wants_is_used_in_no_other_way() {
    let mut world = super::super::world();
    world.card().supports = vec![ModeSupport { mode: ShareMode::Passthrough, supported: true, reason: None }];
    let counted = |status: &GpuNodeStatus| status.capacity.iter().map(|of| of.count).sum::<i32>();
    assert_eq!(counted(&world.status()), 1);
    world.policy().mode = Some(DeviceMode::Vgpu);
    let mut other = world.policy().clone();
    (other.name, other.selector.pci_address) = ("two".into(), "0000:ff:00.0".parse().ok());
    world.spec.devices.push(other);
    let status = world.status();
    let layout = status.conditions.iter().find(|condition| condition.type_ == "LayoutApplied").unwrap();
    let unavailable = status.devices[0].unavailable.as_ref().unwrap();
    for text in [&layout.message, unavailable] {
        assert!(text.contains("devices[one].mode Vgpu") && text.contains("offers Passthrough;"), "{text}");
    }
    // One fault does not hide the other.
    assert!(layout.message.contains("devices[two] selects no card"), "{}", layout.message);
    assert_eq!((layout.reason.as_str(), counted(&status)), ("InvalidSpec", 0));
}

#[test]
fn rules_that_overlap_are_said_and_the_card_says_why_it_is_kept() {
    let mut world = super::super::world();
    let mut keep = world.policy().clone();
    keep.management = Some(Management::Unmanaged);
    keep.name = "keep".into();
    world.policy().selector =
        DeviceSelector { uuid: Some("GPU-0000:41:00.0".into()), ..DeviceSelector::default() };
    for position in [0, 1] {
        let mut world = World { spec: world.spec.clone(), ..super::super::world() };
        world.spec.devices.insert(position, keep.clone());
        let status = world.status();
        let layout = status.conditions.iter().find(|condition| condition.type_ == "LayoutApplied").unwrap();
        let unavailable = status.devices[0].unavailable.as_ref().unwrap();
        for text in [&layout.message, unavailable] {
            assert!(text.contains("devices[keep] and devices[one]"), "{text}");
        }
        assert_eq!((layout.status.as_str(), status.summary.unwrap().gpus), ("False", 0));
    }
}

#[test]
fn every_rule_that_is_wrong_is_named() {
    let mut world = super::super::world();
    world.policy().vgpu_placement = Some(VgpuPlacement::MixedSize);
    let mut other = world.policy().clone();
    other.name = "two".into();
    other.selector.pci_address = Some("0000:ff:00.0".parse().unwrap());
    world.spec.devices.push(other);
    let status = world.status();
    let layout = status.conditions.iter().find(|condition| condition.type_ == "LayoutApplied").unwrap();
    assert!(layout.message.contains("devices[one].vgpuPlacement"), "{}", layout.message);
    assert!(layout.message.contains("devices[two] selects no card"), "{}", layout.message);
}
