//! The modes for tests: the host, what is asked for, and the writes that make it and take it back.

use std::sync::Arc;

use gpudesk_crds::{
    gpu_node::VgpuScheduler,
    types::{PciAddress, ShareMode},
};

use super::{
    fake_kernel::{FakeDrive, FakeKernel, FakeMdev, Fun, at},
    network::{NetworkWish, VfSettings},
};
use crate::{
    host::gpu_driver::{Handle, InstanceKey, Setup, WantedInstance, What},
    partition::Share,
};

pub(super) const CARD: &str = "0000:41:00.0";

/// One mode: the host, what is asked for, and what is written to make it and to take it back.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) kernel: Arc<FakeKernel>,
    pub(super) wanted: WantedInstance,
    pub(super) made: Vec<&'static str>,
    pub(super) unmade: Vec<&'static str>,
    pub(super) handle: Handle,
}

pub(super) fn kernel(cards: Vec<(&str, Fun)>) -> Arc<FakeKernel> {
    let kernel = FakeKernel::default();
    kernel.change(|world| {
        (world.boot, world.has_vfio, world.has_stub) = ("boot".into(), true, true);
        for (address, fun) in cards {
            world.functions.insert(at(address), fun);
        }
        world.functions.insert(
            at("0000:40:01.0"),
            Fun { class: "060400", ..Fun::new(("8086", "1905"), Some("pcieport"), 41) },
        );
    });
    Arc::new(kernel)
}

pub(super) fn share(
    mode: ShareMode,
    type_name: &str,
    start: Option<i32>,
    vgpu: Option<&str>,
) -> WantedInstance {
    WantedInstance {
        key: InstanceKey {
            desktop_uid: "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01".into(),
            request: "screen".into(),
        },
        owner: "school/anna".into(),
        allocation: None,
        card: at(CARD),
        share: Share { mode, type_name: type_name.into(), vgpu_type: vgpu.map(Into::into), start },
        setup: Setup::default(),
        partition: None,
        what: What::Card,
    }
}

/// A card with virtual functions by vendor-specific VFIO; the first has somebody else's vGPU.
pub(super) fn vendor(change: impl FnOnce(&mut Fun), foreign: u32) -> Arc<FakeKernel> {
    let vfs: Vec<PciAddress> = (4..8).map(|n| at(CARD).further(n).unwrap()).collect();
    let types = vec![
        (1155, "L40S-24Q", 24, 2),
        (1153, "L40S-8Q", 8, 6),
        (900, "DC-1-24Q", 24, 1),
        (902, "DC-1-12Q", 12, 2),
        (901, "DC-2-48Q", 48, 1),
    ];
    let mut card =
        Fun { total: 32, vfs: vfs.clone(), types, ..Fun::new(("10de", "26b9"), Some("nvidia"), 41) };
    change(&mut card);
    let mut all = vec![(CARD.to_owned(), card)];
    for (vf, group) in vfs.iter().zip(200..) {
        let first = group == 200 && foreign != 0;
        let vgpu = Some(if first { (foreign, Some(0), None) } else { (0, None, None) });
        all.push((vf.to_string(), Fun { vgpu, ..Fun::new(("10de", "26b9"), Some("nvidia"), group) }));
    }
    kernel(all.iter().map(|(address, fun)| (address.as_str(), fun.clone())).collect())
}

#[expect(clippy::too_many_lines, reason = "a table of modes")]
pub(super) fn scenarios() -> Vec<Scenario> {
    let passthrough = || share(ShareMode::Passthrough, "Passthrough", None, None);
    let functions = |name| share(ShareMode::VirtualFunctions, name, None, None);
    let nvidia = || Fun { persistence: Some(true), ..Fun::new(("10de", "26b9"), Some("nvidia"), 41) };
    let sound = Fun { class: "040300", resets: "", ..Fun::new(("10de", "22ba"), Some("snd_hda_intel"), 41) };
    let t4 = Fun {
        mdev_types: vec![("nvidia-230", "T4-2Q", 8), ("nvidia-231", "T4-4Q", 4)],
        ..Fun::new(("10de", "1eb8"), Some("nvidia"), 41)
    };
    let mixing = Fun { mixed: Some(false), scheduler: Some(VgpuScheduler::BestEffort), ..t4.clone() };
    let on_vf = kernel(vec![
        (
            CARD,
            Fun {
                total: 16,
                vfs: vec![at("0000:41:00.4"), at("0000:41:00.5")],
                ..Fun::new(("10de", "25b6"), Some("nvidia"), 41)
            },
        ),
        (
            "0000:41:00.4",
            Fun {
                mdev_types: vec![("nvidia-745", "A2-4Q", 4)],
                ..Fun::new(("10de", "25b6"), Some("nvidia"), 50)
            },
        ),
        (
            "0000:41:00.5",
            Fun {
                mdev_types: vec![("nvidia-745", "A2-4Q", 4)],
                ..Fun::new(("10de", "25b6"), Some("nvidia"), 51)
            },
        ),
    ]);
    on_vf.change(|world| {
        let theirs =
            FakeMdev { parent: at("0000:41:00.4"), type_id: "nvidia-745".into(), params: String::new() };
        world.mdevs.insert("11111111-2222-4333-8444-555555555555".into(), theirs);
    });
    let uuid =
        gpudesk_inventory::simulated::uuid(&["mdev", "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01", "screen"])
            .to_string();
    let uuid: &'static str = Box::leak(uuid.into_boxed_str());
    let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let amd = Fun { total: 8, ..Fun::new(("1002", "73a1"), Some("gim"), 41) };
    let on = kernel(vec![
        (CARD, Fun { vfs: vec![at("0000:41:00.1"), at("0000:41:00.2")], ..amd.clone() }),
        (
            "0000:41:00.1",
            Fun {
                reserved: Some("vfio-pci".into()),
                driver: Some("vfio-pci".into()),
                ..Fun::new(("1002", "73ae"), None, 60)
            },
        ),
        (
            "0000:41:00.2",
            Fun { resets: "flr", d3cold: false, power: "on".into(), ..Fun::new(("1002", "73ae"), None, 61) },
        ),
    ]);
    vec![
        Scenario {
            name: "a whole card with its sound",
            kernel: kernel(vec![(CARD, nvidia()), ("0000:41:00.1", sound)]),
            wanted: passthrough(),
            made: vec![
                "nvml 41:00.0 = persistence false",
                "41:00.0/d3cold_allowed = 0",
                "41:00.0/power/control = on",
                "41:00.0/driver_override = vfio-pci",
                "41:00.0/unbindLock = 1",
                "41:00.0/driver/unbind = 0000:41:00.0",
                "drivers_probe = 0000:41:00.0",
                "41:00.0/power/control = on",
                "41:00.1/d3cold_allowed = 0",
                "41:00.1/power/control = on",
                "41:00.1/driver_override = vfio-pci",
                "41:00.1/driver/unbind = 0000:41:00.1",
                "drivers_probe = 0000:41:00.1",
                "41:00.1/power/control = on",
            ],
            unmade: vec![
                "41:00.0/reset = 1",
                "41:00.0/driver_override =",
                "41:00.0/driver/unbind = 0000:41:00.0",
                "drivers_probe = 0000:41:00.0",
                "41:00.0/d3cold_allowed = 1",
                "41:00.0/power/control = auto",
                "41:00.1/driver_override =",
                "41:00.1/driver/unbind = 0000:41:00.1",
                "drivers_probe = 0000:41:00.1",
                "41:00.1/d3cold_allowed = 1",
                "41:00.1/power/control = auto",
                "nvml 41:00.0 = persistence true",
            ],
            handle: Handle::Function(at(CARD)),
        },
        Scenario {
            name: "a whole card that no driver has",
            kernel: kernel(vec![(
                CARD,
                Fun { d3cold: false, power: "on".into(), ..Fun::new(("1002", "744c"), None, 41) },
            )]),
            wanted: passthrough(),
            made: vec![
                "41:00.0/driver_override = vfio-pci",
                "drivers_probe = 0000:41:00.0",
                "41:00.0/power/control = on",
            ],
            unmade: vec![
                "41:00.0/reset = 1",
                "41:00.0/driver_override =",
                "41:00.0/driver/unbind = 0000:41:00.0",
            ],
            handle: Handle::Function(at(CARD)),
        },
        Scenario {
            name: "a vGPU by vendor-specific VFIO beside somebody else's",
            kernel: vendor(|_| {}, 1153),
            wanted: share(ShareMode::Vgpu, "L40S-8Q", None, None),
            made: vec!["41:00.5/nvidia/current_vgpu_type = 1153"],
            unmade: vec!["41:00.5/nvidia/current_vgpu_type = 0"],
            handle: Handle::Function(at("0000:41:00.5")),
        },
        Scenario {
            name: "a vGPU at its start beside other sizes",
            kernel: vendor(|card| card.mixed = Some(false), 0),
            wanted: share(ShareMode::Vgpu, "L40S-8Q", Some(16), None),
            made: vec![
                "nvml 41:00.0 = mixed true",
                "41:00.4/nvidia/current_vgpu_type = 1153",
                "41:00.4/nvidia/placement_id = 16",
            ],
            unmade: vec!["41:00.4/nvidia/current_vgpu_type = 0", "nvml 41:00.0 = mixed false"],
            handle: Handle::Function(at("0000:41:00.4")),
        },
        Scenario {
            name: "a vGPU on a GPU instance",
            kernel: vendor(|card| card.mig = Some(true), 0),
            wanted: share(ShareMode::Mig, "1g.24gb+gfx", Some(3), Some("DC-1-24Q")),
            made: vec![
                "nvml 41:00.0 = gi 47 at 3",
                "nvml 41:00.0 = ci on 1",
                "41:00.4/nvidia/current_vgpu_type = 900",
            ],
            unmade: vec!["41:00.4/nvidia/current_vgpu_type = 0", "nvml 41:00.0 = no gi 1"],
            handle: Handle::Function(at("0000:41:00.4")),
        },
        Scenario {
            name: "a mediated device on a card",
            kernel: kernel(vec![(CARD, t4)]),
            wanted: share(ShareMode::Vgpu, "T4-4Q", None, None),
            made: vec![leak(format!("41:00.0/mdev_supported_types/nvidia-231/create = {uuid}"))],
            unmade: vec![leak(format!("{uuid}/remove = 1"))],
            handle: Handle::Mdev(uuid.into()),
        },
        Scenario {
            name: "a mediated device on a virtual function beside somebody else's",
            kernel: on_vf,
            wanted: share(ShareMode::Vgpu, "A2-4Q", None, None),
            made: vec![leak(format!("41:00.5/mdev_supported_types/nvidia-745/create = {uuid}"))],
            unmade: vec![leak(format!("{uuid}/remove = 1"))],
            handle: Handle::Mdev(uuid.into()),
        },
        Scenario {
            name: "a virtual function that is switched on for it",
            kernel: kernel(vec![(
                CARD,
                Fun { total: 7, d3cold: false, ..Fun::new(("8086", "56c0"), Some("xe"), 41) },
            )]),
            wanted: functions("2VF"),
            made: vec![
                "41:00.0/sriov_drivers_autoprobe = 0",
                "41:00.0/sriov_numvfs = 2",
                "41:00.1/d3cold_allowed = 0",
                "41:00.1/power/control = on",
                "41:00.1/driver_override = vfio-pci",
                "drivers_probe = 0000:41:00.1",
            ],
            unmade: vec![
                "41:00.1/reset = 1",
                "41:00.0/sriov_numvfs = 0",
                "41:00.0/sriov_drivers_autoprobe = 1",
            ],
            handle: Handle::Function(at("0000:41:00.1")),
        },
        Scenario {
            name: "a virtual function beside one that somebody bound",
            kernel: on,
            wanted: functions("2VF"),
            made: vec!["41:00.2/driver_override = vfio-pci", "drivers_probe = 0000:41:00.2"],
            unmade: vec![
                "41:00.2/reset = 1",
                "41:00.2/driver_override =",
                "41:00.2/driver/unbind = 0000:41:00.2",
            ],
            handle: Handle::Function(at("0000:41:00.2")),
        },
        Scenario {
            name: "a vGPU on a GPU instance of a card with MIG and virtual functions off",
            kernel: kernel(vec![(
                CARD,
                Fun {
                    total: 2,
                    mig: Some(false),
                    persistence: Some(true),
                    types: vec![(900, "DC-1-24Q", 24, 1)],
                    ..Fun::new(("10de", "2bb5"), Some("nvidia"), 41)
                },
            )]),
            wanted: share(ShareMode::Mig, "1g.24gb+gfx", Some(3), Some("DC-1-24Q")),
            made: vec![
                "nvml 41:00.0 = mig true",
                "nvml 41:00.0 = persistence false",
                "41:00.0/unbindLock = 1",
                "41:00.0/driver/unbind = 0000:41:00.0",
                "41:00.0/driver_override = pci-pf-stub",
                "drivers_probe = 0000:41:00.0",
                "41:00.0/sriov_numvfs = 2",
                "41:00.0/driver_override =",
                "41:00.0/driver/unbind = 0000:41:00.0",
                "drivers_probe = 0000:41:00.0",
                "drivers_probe = 0000:41:00.1",
                "drivers_probe = 0000:41:00.2",
                "nvml 41:00.0 = persistence true",
                "nvml 41:00.0 = gi 47 at 3",
                "nvml 41:00.0 = ci on 1",
                "41:00.1/nvidia/current_vgpu_type = 900",
            ],
            unmade: vec![
                "41:00.1/nvidia/current_vgpu_type = 0",
                "nvml 41:00.0 = no gi 1",
                "nvml 41:00.0 = persistence false",
                "41:00.1/driver/unbind = 0000:41:00.1",
                "41:00.2/driver/unbind = 0000:41:00.2",
                "41:00.0/unbindLock = 1",
                "41:00.0/driver/unbind = 0000:41:00.0",
                "41:00.0/driver_override = pci-pf-stub",
                "drivers_probe = 0000:41:00.0",
                "41:00.0/sriov_numvfs = 0",
                "41:00.0/driver_override =",
                "41:00.0/driver/unbind = 0000:41:00.0",
                "drivers_probe = 0000:41:00.0",
                "nvml 41:00.0 = mig false",
                "nvml 41:00.0 = persistence true",
            ],
            handle: Handle::Function(at("0000:41:00.1")),
        },
        Scenario {
            name: "a vGPU with the scheduler and the parameters of its profile",
            kernel: vendor(|card| card.scheduler = Some(VgpuScheduler::BestEffort), 0),
            wanted: set_up(share(ShareMode::Vgpu, "L40S-8Q", None, None), VgpuScheduler::FixedShare),
            made: vec![
                "nvml 41:00.0 = scheduler FixedShare",
                "41:00.4/nvidia/current_vgpu_type = 1153",
                "41:00.4/nvidia/vgpu_params = disable_vnc=1,frame_rate_limiter=0",
            ],
            unmade: vec![
                "41:00.4/nvidia/vgpu_params =",
                "41:00.4/nvidia/current_vgpu_type = 0",
                "nvml 41:00.0 = scheduler BestEffort",
            ],
            handle: Handle::Function(at("0000:41:00.4")),
        },
        Scenario {
            name: "a mediated device with parameters at its start",
            kernel: kernel(vec![(CARD, mixing)]),
            wanted: set_up(share(ShareMode::Vgpu, "T4-4Q", Some(4), None), VgpuScheduler::EqualShare),
            made: vec![
                "nvml 41:00.0 = scheduler EqualShare",
                "nvml 41:00.0 = mixed true",
                leak(format!("41:00.0/mdev_supported_types/nvidia-231/create = {uuid}")),
                leak(format!(
                    "{uuid}/nvidia/vgpu_params = vgpu-placement-id=4,disable_vnc=1,frame_rate_limiter=0"
                )),
            ],
            unmade: vec![
                leak(format!("{uuid}/remove = 1")),
                "nvml 41:00.0 = scheduler BestEffort",
                "nvml 41:00.0 = mixed false",
            ],
            handle: Handle::Mdev(uuid.into()),
        },
        Scenario {
            name: "a vGPU on a GPU instance with a scheduler",
            kernel: vendor(|card| (card.mig, card.schedules_instances) = (Some(true), true), 0),
            wanted: WantedInstance {
                setup: Setup { scheduler: Some(VgpuScheduler::EqualShare), ..Setup::default() },
                ..share(ShareMode::Mig, "1g.24gb+gfx", Some(3), Some("DC-1-24Q"))
            },
            made: vec![
                "nvml 41:00.0 = gi 47 at 3",
                "nvml 41:00.0 = ci on 1",
                "nvml 41:00.0 = scheduler EqualShare on 1",
                "41:00.4/nvidia/current_vgpu_type = 900",
            ],
            unmade: vec!["41:00.4/nvidia/current_vgpu_type = 0", "nvml 41:00.0 = no gi 1"],
            handle: Handle::Function(at("0000:41:00.4")),
        },
        Scenario {
            name: "a whole drive",
            kernel: kernel(vec![(CARD, drive())]),
            wanted: whole_drive(),
            made: vec![
                "41:00.0/d3cold_allowed = 0",
                "41:00.0/power/control = on",
                "41:00.0/driver_override = vfio-pci",
                "41:00.0/driver/unbind = 0000:41:00.0",
                "drivers_probe = 0000:41:00.0",
                "41:00.0/power/control = on",
            ],
            unmade: vec![
                "41:00.0/reset = 1",
                "41:00.0/driver_override =",
                "41:00.0/driver/unbind = 0000:41:00.0",
                "drivers_probe = 0000:41:00.0",
                "41:00.0/d3cold_allowed = 1",
                "41:00.0/power/control = auto",
            ],
            handle: Handle::Function(at(CARD)),
        },
        Scenario {
            name: "a function of a network card",
            kernel: network(),
            wanted: function_of_network(),
            made: vec![
                "41:10.0/vf = address 02:00:00:00:00:07, VLAN 20, spoof check on, trust off",
                "41:10.0/d3cold_allowed = 0",
                "41:10.0/power/control = on",
                "41:10.0/driver_override = vfio-pci",
                "41:10.0/driver/unbind = 0000:41:10.0",
                "drivers_probe = 0000:41:10.0",
                "41:10.0/power/control = on",
            ],
            unmade: vec![
                "41:10.0/reset = 1",
                "41:10.0/vf = address 0a:00:00:00:00:01, VLAN 7, spoof check off, trust on",
                "41:10.0/driver_override =",
                "41:10.0/driver/unbind = 0000:41:10.0",
                "drivers_probe = 0000:41:10.0",
                "41:10.0/d3cold_allowed = 1",
                "41:10.0/power/control = auto",
                "41:10.0/vf = address 0a:00:00:00:00:01, VLAN 7, spoof check off, trust on, MTU 9000",
            ],
            handle: Handle::Function(at(FUNCTION)),
        },
    ]
}

/// What its profile wants beside type and place.
fn set_up(wanted: WantedInstance, scheduler: VgpuScheduler) -> WantedInstance {
    let params = [("frame_rate_limiter", "0"), ("disable_vnc", "1")];
    let params = params.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    WantedInstance { setup: Setup { scheduler: Some(scheduler), params }, ..wanted }
}

/// A drive that nobody uses.
pub(super) fn drive() -> Fun {
    Fun { class: "010802", drive: Some(FakeDrive::blank()), ..Fun::new(("144d", "a824"), Some("nvme"), 41) }
}

pub(super) fn whole_drive() -> WantedInstance {
    let mut wanted = share(ShareMode::Passthrough, "NvmeDrive", None, None);
    wanted.key.request = "disk:data".into();
    wanted.what = What::Drive;
    wanted
}

pub(super) const FUNCTION: &str = "0000:41:10.0";

/// A network card with two functions, of which the host made much.
pub(super) fn network() -> Arc<FakeKernel> {
    let settings = VfSettings {
        mac: "0a:00:00:00:00:01".into(),
        vlan: 7,
        qos: 3,
        protocol: 0x8100,
        spoof_check: Some(false),
        trust: Some(true),
        link_state: Some(1),
        rates: Some((0, 1000)),
        mtu: Some(9000),
    };
    let card = Fun {
        class: "020000",
        total: 7,
        vfs: vec![at(FUNCTION), at("0000:41:10.4")],
        ..Fun::new(("8086", "10c9"), Some("igb"), 41)
    };
    let function = |network, group| Fun {
        class: "020000",
        network: Some(network),
        resets: "flr",
        ..Fun::new(("8086", "10ca"), Some("igbvf"), group)
    };
    kernel(vec![
        (CARD, card),
        (FUNCTION, function(settings.clone(), 60)),
        ("0000:41:10.4", function(settings, 61)),
    ])
}

pub(super) fn function_of_network() -> WantedInstance {
    let mut wanted = share(ShareMode::Passthrough, "NetworkFunction", None, None);
    wanted.key.request = "network:lan".into();
    wanted.card = at(FUNCTION);
    let wish = NetworkWish { parent: at(CARD), mac: "02:00:00:00:00:07".into(), vlan: Some(20) };
    wanted.what = What::Network(wish);
    wanted
}
