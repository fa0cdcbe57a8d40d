//! Who else gives cards away.

use gpudesk_crds::{
    conditions::{self, ConditionType, Reason},
    gpu_node::{DeviceMode, Management},
    gpu_node_status::DeviceKind,
};

use super::{World, card, check, world};
use crate::topology::device_plugins::{Counted, DevicePlugins};

/// The kubelet counts these devices; these plugins listen.
fn counts(world: &mut World, devices: &[(&str, &[&str])], sockets: &[&str]) {
    let devices = devices.iter().map(|(resource, devices)| {
        ((*resource).to_owned(), devices.iter().map(|device| (*device).to_owned()).collect())
    });
    let sockets = sockets.iter().map(|socket| (*socket).to_owned()).collect();
    world.facts.device_plugins =
        Some(DevicePlugins { sockets, counted: Counted::Devices(devices.collect()) });
}

/// Nobody knows what the kubelet counts; these plugins listen.
fn listen(world: &mut World, sockets: &[&str], counted: Counted) {
    let sockets = sockets.iter().map(|socket| (*socket).to_owned()).collect();
    world.facts.device_plugins = Some(DevicePlugins { sockets, counted });
}

const UUID: &str = "GPU-0000:41:00.0";

#[test]
fn device_plugins_absent() {
    check(
        ConditionType::DevicePluginsAbsent,
        &[
            (|_| {}, true, Reason::AsExpected, &[]),
            (
                |world| counts(world, &[("nvidia.com/gpu", &[UUID])], &["nvidia-gpu.sock"]),
                false,
                Reason::OfferedToPods,
                &[
                    "(nvidia.com/gpu)",
                    "0000:41:00.0 (NVIDIA L40S)",
                    "nvidia.com/gpu.deploy.device-plugin=false",
                    "management: Unmanaged",
                ],
            ),
            (
                |world| {
                    counts(
                        world,
                        &[("nvidia.com/gpu.shared", &["GPU-0000:41:00.0::0", "GPU-0000:41:00.0::1"])],
                        &[],
                    );
                },
                false,
                Reason::OfferedToPods,
                &["nvidia.com/gpu.shared"],
            ),
            // The plugin for virtual machines.
            (
                |world| {
                    counts(
                        world,
                        &[("nvidia.com/AD102GL_L40S", &["0000:41:00.0"])],
                        &["kubevirt-AD102GL_L40S.sock"],
                    );
                },
                false,
                Reason::OfferedToPods,
                &["nvidia.com/AD102GL_L40S"],
            ),
            (
                |world| counts(world, &[("nvidia.com/AD102GL_L40S", &["7"])], &[]),
                false,
                Reason::OfferedToPods,
                &["0000:41:00.0"],
            ),
            // Somebody's own names for NVIDIA's cards.
            (
                |world| counts(world, &[("example.org/vgpu", &["GPU-0000:41:00.0-1"])], &[]),
                false,
                Reason::OfferedToPods,
                &["example.org/vgpu", "nvidia.com/gpu.deploy.device-plugin=false"],
            ),
            // What does not tell which card it is may be any of its vendor.
            (
                |world| counts(world, &[("nvidia.com/mig-1g.5gb", &["MIG-1"])], &[]),
                false,
                Reason::OfferedToPods,
                &["nvidia.com/mig-1g.5gb", "0000:41:00.0"],
            ),
            (
                |world| {
                    world.card().uuid = None;
                    counts(world, &[("nvidia.com/gpu", &["GPU-elsewhere"])], &[]);
                },
                false,
                Reason::OfferedToPods,
                &["0000:41:00.0"],
            ),
            // Another card of the node, which is the plugin's.
            (
                |world| counts(world, &[("nvidia.com/gpu", &["GPU-elsewhere"])], &["nvidia-gpu.sock"]),
                true,
                Reason::AsExpected,
                &["nvidia-gpu.sock", "none of the managed cards"],
            ),
            (
                |world| {
                    counts(
                        world,
                        &[
                            ("nvidia.com/gpu", &[]),
                            ("amd.com/gpu", &["0000:19:00.0"]),
                            ("devices.kubevirt.io/kvm", &["kvm0"]),
                        ],
                        &["kubevirt-kvm.sock"],
                    );
                },
                true,
                Reason::AsExpected,
                &[],
            ),
        ],
    );
}

#[test]
fn sockets_tell_where_the_kubelets_count_does_not() {
    check(
        ConditionType::DevicePluginsAbsent,
        &[
            (
                |world| listen(world, &["nvidia-gpu.sock"], Counted::Never),
                false,
                Reason::OfferedToPods,
                &["(nvidia-gpu.sock)", "0000:41:00.0"],
            ),
            (
                |world| listen(world, &["nvidia-gpu.sock"], Counted::Unread("it is a link".into())),
                false,
                Reason::OfferedToPods,
                &["(nvidia-gpu.sock)"],
            ),
            (|world| listen(world, &["amd.com_gpu"], Counted::Never), true, Reason::AsExpected, &[]),
            (
                |world| {
                    let mut other = card("0000:19:00.0");
                    other.vendor_id = "1002".into();
                    other.product = "AMD Instinct MI300X".into();
                    world.facts.cards.push(other);
                    listen(world, &["amd.com_gpu"], Counted::Never);
                },
                false,
                Reason::OfferedToPods,
                &["(amd.com_gpu)", "0000:19:00.0 (AMD Instinct MI300X)", "DeviceConfig"],
            ),
            // Each has a remedy of its own.
            (
                |world| {
                    let mut other = card("0000:19:00.0");
                    other.vendor_id = "1002".into();
                    world.facts.cards.push(other);
                    listen(world, &["amd.com_gpu", "nvidia-gpu.sock"], Counted::Never);
                },
                false,
                Reason::OfferedToPods,
                &["DeviceConfig", "nvidia.com/gpu.deploy.device-plugin=false"],
            ),
            (
                |world| {
                    world.card().vendor_id = "8086".into();
                    listen(world, &["gpu.intel.com-xe.sock"], Counted::Never);
                },
                false,
                Reason::OfferedToPods,
                &["gpu.intel.com-xe.sock", "GpuDevicePlugin"],
            ),
        ],
    );
}

#[test]
fn cards_that_gpudesk_leaves_alone_are_anybodys() {
    check(
        ConditionType::DevicePluginsAbsent,
        &[
            (
                |world| {
                    world.policy().management = Some(Management::Unmanaged);
                    counts(world, &[("nvidia.com/gpu", &[UUID])], &["nvidia-gpu.sock"]);
                },
                true,
                Reason::NotNeeded,
                &["managed"],
            ),
            (
                |world| {
                    world.policy().mode = Some(DeviceMode::Host);
                    counts(world, &[("nvidia.com/gpu", &[UUID])], &["nvidia-gpu.sock"]);
                },
                true,
                Reason::NotNeeded,
                &[],
            ),
            (
                |world| {
                    world.card().kind = DeviceKind::Display;
                    world.facts.device_plugins = None;
                },
                true,
                Reason::NotNeeded,
                &[],
            ),
        ],
    );
}

#[test]
fn what_nobody_could_look_at_is_neither_fine_nor_wrong() {
    let said = |change: fn(&mut World)| {
        let mut world = world();
        change(&mut world);
        let status = world.status();
        let said = conditions::find(&status.conditions, ConditionType::DevicePluginsAbsent).unwrap();
        (said.status.clone(), said.reason.clone(), said.message.clone())
    };
    let (status, reason, message) = said(|world| world.facts.device_plugins = None);
    assert_eq!((status.as_str(), reason.as_str()), ("Unknown", "Unknown"));
    assert!(message.contains("nodeDaemon.discovery.devicePlugins"), "{message}");
    let (status, _, message) = said(|world| {
        listen(world, &["kubevirt-kvm.sock"], Counted::Unread("it is larger than 512 KiB".into()));
    });
    assert!(status == "Unknown" && message.contains("kubelet_internal_checkpoint"), "{status}: {message}");
    assert!(message.contains("(it is larger than 512 KiB)"), "{message}");
}
