//! Shares made and unmade on a kernel that is as strict as the real one: what is written, what it comes to, and what is
//! left as it is.
#![expect(clippy::disallowed_methods, reason = "tests: write a journal that cannot be read")]

use std::{path::Path, sync::Arc, time::Duration};

use gpudesk_crds::{
    GpuNodeSpec,
    gpu_node_status::{CardUnits, Device, Placement},
    types::{PciAddress, ShareMode},
};
use gpudesk_inventory::topology::HostFacts;

use super::{
    control::NoControl,
    engine::Devices,
    fake_kernel::{FakeControl, FakeKernel, FakeMdev, Fun, at},
};
use crate::{
    host::gpu_driver::{GpuDriver, GpuError, Handle, InstanceKey, WantedInstance},
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
    }
}

/// A card with virtual functions by vendor-specific VFIO; the first has somebody else's vGPU.
fn vendor(change: impl FnOnce(&mut Fun), foreign: u32) -> Arc<FakeKernel> {
    let vfs: Vec<PciAddress> = (4..8).map(|n| at(CARD).further(n).unwrap()).collect();
    let types = vec![
        (1155, "L40S-24Q", 24, 2),
        (1153, "L40S-8Q", 8, 6),
        (900, "DC-1-24Q", 24, 1),
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
                "41:00.1/d3cold_allowed = 0",
                "41:00.1/power/control = on",
                "41:00.1/driver_override = vfio-pci",
                "41:00.1/driver/unbind = 0000:41:00.1",
                "drivers_probe = 0000:41:00.1",
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
            made: vec!["41:00.0/driver_override = vfio-pci", "drivers_probe = 0000:41:00.0"],
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
                "41:00.1/driver_override =",
                "41:00.1/driver/unbind = 0000:41:00.1",
                "41:00.1/d3cold_allowed = 1",
                "41:00.1/power/control = auto",
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
                    types: vec![(900, "DC-1-24Q", 24, 1)],
                    ..Fun::new(("10de", "2bb5"), Some("nvidia"), 41)
                },
            )]),
            wanted: share(ShareMode::Mig, "1g.24gb+gfx", Some(3), Some("DC-1-24Q")),
            made: vec![
                "nvml 41:00.0 = mig true",
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
                "nvml 41:00.0 = gi 47 at 3",
                "nvml 41:00.0 = ci on 1",
                "41:00.1/nvidia/current_vgpu_type = 900",
            ],
            unmade: vec![
                "41:00.1/nvidia/current_vgpu_type = 0",
                "nvml 41:00.0 = no gi 1",
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
            ],
            handle: Handle::Function(at("0000:41:00.1")),
        },
    ]
}

/// A daemon that starts on a host, and was told what it has.
pub(super) fn start(kernel: &Arc<FakeKernel>, folder: &Path) -> Devices {
    let control = Arc::new(FakeControl(Arc::clone(kernel)));
    let devices = Devices::open(Arc::<FakeKernel>::clone(kernel), control, folder);
    kernel.state.lock().unwrap().fuse = Some(Arc::clone(&devices.engine.fuse));
    devices.complete(&mut facts(kernel));
    super::engine::lock(&devices.engine.seen).spec = Some(GpuNodeSpec::default());
    devices
}

/// What the inventory says of the host.
pub(super) fn facts(kernel: &FakeKernel) -> HostFacts {
    let mut facts = HostFacts::default();
    for (address, fun) in kernel.world().functions {
        if fun.class.starts_with("03") && address.function == 0 {
            let mut card = Device::new(address, fun.ids.0, fun.ids.1);
            card.driver = fun.driver;
            card.uuid = (card.driver.as_deref() == Some("nvidia")).then(|| "GPU-1".into());
            let mig = Placement {
                driver_id: Some("47".into()),
                size: 3,
                starts: vec![0, 3, 6, 9],
                vgpu_types: vec![gpudesk_crds::gpu_node_status::MigBackedType {
                    type_name: "DC-1-24Q".into(),
                    series: gpudesk_crds::types::VgpuSeries::Q,
                    framebuffer_mib: 24576,
                    max_per_instance: 1,
                }],
                ..Placement::new("1g.24gb+gfx", ShareMode::Mig, 24576, 4)
            };
            let functions =
                |count: i32| Placement::new(format!("{count}VF"), ShareMode::VirtualFunctions, 1024, count);
            card.placements = match fun.mig {
                Some(_) => vec![mig],
                None if fun.total > 0 && fun.ids.0 != "10de" => vec![functions(2), functions(4)],
                None => vec![],
            };
            card.units = fun.mig.map(|_| CardUnits { mig_memory: 12, mig_compute: 4, vgpu_region: 0 });
            facts.cards.push(card);
        }
    }
    facts
}

/// Lets the daemon do what it does by itself, and waits until it has.
pub(super) fn settle(devices: &Devices, spec: &GpuNodeSpec) {
    devices.settle(spec);
    while !devices.engine.slots.waiting(Duration::ZERO).is_empty() {
        std::thread::yield_now();
    }
}

pub(super) fn shares(devices: &Devices) -> usize {
    devices.instances().unwrap().len()
}

#[test]
fn each_mode_is_made_and_unmade_by_the_fewest_writes() {
    for scenario in scenarios() {
        let folder = tempfile::tempdir().unwrap();
        let Scenario { name, kernel, wanted, made, unmade, handle } = scenario;
        let before = kernel.world();
        let devices = start(&kernel, folder.path());
        let instance = devices.create(&wanted).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(kernel.written(), made, "{name}");
        assert_eq!((&instance.handle, instance.pending), (&handle, false), "{name}");
        assert_eq!(devices.create(&wanted).unwrap(), instance, "{name}: the same again");
        assert_eq!(devices.instances().unwrap(), std::slice::from_ref(&instance), "{name}");
        // A daemon that starts again finds it and changes nothing.
        let devices = start(&kernel, folder.path());
        settle(&devices, &GpuNodeSpec::default());
        assert_eq!(devices.instances().unwrap(), [instance], "{name}");
        assert_eq!(kernel.written(), Vec::<String>::new(), "{name}");
        devices.destroy(&wanted.key).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(kernel.written(), unmade, "{name}");
        assert_eq!(kernel.world(), before, "{name}: all is as it was");
        devices.destroy(&wanted.key).unwrap();
        assert_eq!(shares(&devices), 0, "{name}");
        let journal = devices.engine.journal().unwrap();
        assert!(journal.cards.values().all(|card| card.changes.is_empty()), "{name}: {journal:?}");
        assert_eq!(kernel.written(), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn companions_and_the_reset_are_told() {
    let scenario = scenarios().remove(0);
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&scenario.kernel, folder.path());
    let instance = devices.create(&scenario.wanted).unwrap();
    assert_eq!(instance.companions, [at("0000:41:00.1")], "and not the bridge");
    // A card that is given away tells no UUID: the daemon does.
    let mut seen = facts(&scenario.kernel);
    assert_eq!(seen.cards[0].uuid, None);
    devices.complete(&mut seen);
    assert_eq!(seen.cards[0].uuid.as_deref(), Some("GPU-1"));
    assert!(devices.withheld(&seen).is_empty(), "it is not foreign");
    devices.destroy(&scenario.wanted.key).unwrap();
    let journal = devices.engine.journal().unwrap();
    let reset = journal.cards[&at(CARD)].last_reset.clone().unwrap();
    assert_eq!((reset.method.as_str(), reset.fault), ("flr", None));
}

#[test]
fn after_a_reboot_everything_is_put_back_on_the_same_functions_before_more_is_given() {
    for scenario in scenarios() {
        let folder = tempfile::tempdir().unwrap();
        let Scenario { name, kernel, wanted, handle, .. } = scenario;
        let fresh = kernel.world();
        let instance = start(&kernel, folder.path()).create(&wanted).unwrap();
        kernel.change(|world| {
            *world = fresh.clone();
            world.boot = "another".into();
        });
        kernel.written();
        let devices = start(&kernel, folder.path());
        let withheld = devices.withheld(&facts(&kernel));
        assert!(withheld[&at(CARD)].contains("0 of 1 shares are put back"), "{name}: {withheld:?}");
        let held = devices.instances().unwrap();
        assert!(held[0].pending, "{name}: it keeps its place, and is not there yet");
        let other = WantedInstance {
            key: InstanceKey { request: "b".into(), ..wanted.key.clone() },
            ..wanted.clone()
        };
        assert!(matches!(devices.create(&other), Err(GpuError::Waiting { .. })), "{name}");
        assert_eq!(kernel.written(), Vec::<String>::new(), "{name}: nothing before its owner is heard");
        settle(&devices, &GpuNodeSpec::default());
        assert_eq!(devices.instances().unwrap(), [instance], "{name}");
        assert_eq!(devices.instances().unwrap()[0].handle, handle, "{name}");
        assert!(devices.withheld(&facts(&kernel)).is_empty(), "{name}");
        devices.destroy(&wanted.key).unwrap();
        let after = super::fake_kernel::World { boot: "boot".into(), ..kernel.world() };
        assert_eq!(after, fresh, "{name}");
    }
}

#[test]
fn what_the_kernel_does_not_come_back_from_holds_up_nothing_else() {
    let other = "0000:81:00.0";
    let card = |group| Fun {
        d3cold: false,
        power: "on".into(),
        ..Fun::new(("1002", "744c"), Some("amdgpu"), group)
    };
    let kernel = kernel(vec![(CARD, card(41)), (other, card(81))]);
    let folder = tempfile::tempdir().unwrap();
    // Somebody opens it after it was seen to be free: the write waits in the kernel.
    kernel.open("226:41", Some(7));
    let raced = Arc::new(Raced(Arc::clone(&kernel)));
    let mut devices = Devices::open(raced, Arc::new(NoControl), folder.path());
    let engine = Arc::get_mut(&mut devices.engine).unwrap();
    engine.patience = Duration::ZERO;
    super::engine::lock(&engine.seen).spec = Some(GpuNodeSpec::default());
    devices.complete(&mut facts(&kernel));
    let wanted = share(ShareMode::Passthrough, "Passthrough", None, None);
    let waits = |answer: Result<(), GpuError>| match answer {
        Err(error @ GpuError::Waiting { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    waits(devices.create(&wanted).map(drop));
    {
        let mut state = kernel.state.lock().unwrap();
        while state.blocked == 0 {
            state = kernel.changed.wait(state).unwrap();
        }
    }
    let told = waits(devices.create(&wanted).map(drop));
    assert!(told.contains("being waited for: taking 0000:41:00.0 from the driver amdgpu, since "), "{told}");
    let withheld = devices.withheld(&facts(&kernel));
    assert!(withheld[&at(CARD)].starts_with("being waited for: taking"), "{withheld:?}");
    assert!(!withheld.contains_key(&at(other)));
    waits(devices.destroy(&wanted.key));
    // Another card is given meanwhile.
    let made = |wanted: &WantedInstance| loop {
        let _ = devices.create(wanted);
        let instances = devices.instances().unwrap();
        if instances.iter().any(|instance| instance.key == wanted.key && !instance.pending) {
            break;
        }
        std::thread::yield_now();
    };
    let mut elsewhere = WantedInstance { card: at(other), ..wanted.clone() };
    elsewhere.key.request = "b".into();
    made(&elsewhere);
    assert_eq!(kernel.state.lock().unwrap().blocked, 1, "it still waits");
    kernel.open("226:41", None);
    made(&wanted);
}

/// A kernel in which nobody is seen to have anything open.
struct Raced(Arc<FakeKernel>);

impl super::Kernel for Raced {
    fn read(&self, path: &str) -> std::io::Result<Vec<u8>> {
        self.0.read(path)
    }
    fn write(&self, path: &str, value: &str) -> std::io::Result<()> {
        self.0.write(path, value)
    }
    fn link(&self, path: &str) -> std::io::Result<String> {
        self.0.link(path)
    }
    fn list(&self, path: &str) -> std::io::Result<Vec<String>> {
        self.0.list(path)
    }
    fn open_devices(&self) -> std::io::Result<std::collections::BTreeMap<String, u32>> {
        Ok(std::collections::BTreeMap::new())
    }
    fn unable(&self) -> Option<String> {
        None
    }
}

#[test]
fn a_card_that_does_not_come_back_is_kept_apart_until_it_is_seen_healthy() {
    let card = Fun { lost_by_reset: true, ..Fun::new(("1002", "744c"), Some("amdgpu"), 41) };
    let kernel = kernel(vec![(CARD, card)]);
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&kernel, folder.path());
    let wanted = share(ShareMode::Passthrough, "Passthrough", None, None);
    devices.create(&wanted).unwrap();
    devices.destroy(&wanted.key).unwrap();
    assert_eq!(shares(&devices), 0, "its desktop has ended");
    let withheld = || start(&kernel, folder.path()).withheld(&facts(&kernel));
    assert!(withheld()[&at(CARD)].contains("does not tell its ids any more"), "{:?}", withheld());
    assert!(matches!(devices.create(&wanted), Err(GpuError::Unable { .. })));
    kernel.written();
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(kernel.written(), Vec::<String>::new(), "nothing is tried on it");
    kernel.change(|world| {
        let fun = world.functions.get_mut(&at(CARD)).unwrap();
        (fun.lost, fun.lost_by_reset) = (false, false);
    });
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(withheld(), std::collections::BTreeMap::new());
    let fun = kernel.world().functions[&at(CARD)].clone();
    assert_eq!((fun.driver.as_deref(), fun.reserved, fun.power.as_str()), (Some("amdgpu"), None, "auto"));
    devices.create(&wanted).unwrap();
}

fn spec(rule: &str) -> GpuNodeSpec {
    serde_yaml::from_str(&format!("devices: [{{name: a, selector: {{pciAddress: '{CARD}'}}, {rule}}}]"))
        .unwrap()
}

#[test]
fn a_card_that_its_owner_keeps_is_never_written_to_or_goes_back_to_the_host() {
    let bound = Fun {
        driver: Some("vfio-pci".into()),
        natural: Some("amdgpu"),
        reserved: Some("vfio-pci".into()),
        ..Fun::new(("1002", "744c"), None, 41)
    };
    let sound = Fun {
        driver: Some("vfio-pci".into()),
        natural: Some("snd_hda_intel"),
        class: "040300",
        ..bound.clone()
    };
    let kernel = kernel(vec![(CARD, bound), ("0000:41:00.1", sound)]);
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&kernel, folder.path());
    let withheld = devices.withheld(&facts(&kernel));
    assert!(withheld[&at(CARD)].contains("bound to vfio-pci, not by gpudesk"), "{withheld:?}");
    let wanted = share(ShareMode::Passthrough, "Passthrough", None, None);
    settle(&devices, &GpuNodeSpec::default());
    assert!(matches!(devices.create(&wanted), Err(GpuError::Unfit { .. })), "it is foreign");
    settle(&devices, &spec("management: Unmanaged"));
    assert!(matches!(devices.create(&wanted), Err(GpuError::Unable { .. })));
    settle(&devices, &spec("management: Unmanaged, mode: Host"));
    assert_eq!(kernel.written(), Vec::<String>::new(), "nothing was ever written");
    // While a machine has it, it stays.
    kernel.open("511:41", Some(7));
    settle(&devices, &spec("mode: Host"));
    assert_eq!(kernel.written(), Vec::<String>::new());
    kernel.open("511:41", None);
    settle(&devices, &spec("mode: Host"));
    assert_eq!(
        kernel.written(),
        [
            "41:00.0/driver_override =",
            "41:00.0/driver/unbind = 0000:41:00.0",
            "drivers_probe = 0000:41:00.0",
            "41:00.1/driver_override =",
            "41:00.1/driver/unbind = 0000:41:00.1",
            "drivers_probe = 0000:41:00.1",
        ]
    );
    let drivers: Vec<_> = kernel.world().functions.values().map(|fun| fun.driver.clone().unwrap()).collect();
    assert_eq!(drivers, ["pcieport", "amdgpu", "snd_hda_intel"]);
    settle(&devices, &spec("mode: Host"));
    assert_eq!(kernel.written(), Vec::<String>::new(), "once");
}

#[test]
fn a_function_that_is_another_users_by_now_is_left_alone() {
    let Scenario { kernel, wanted, .. } = scenarios().remove(2);
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&kernel, folder.path());
    devices.create(&wanted).unwrap();
    let theirs = |world: &mut super::fake_kernel::World| {
        world.functions.get_mut(&at("0000:41:00.5")).unwrap().vgpu = Some((1155, Some(24), None));
    };
    kernel.change(theirs);
    kernel.written();
    devices.destroy(&wanted.key).unwrap();
    assert_eq!((kernel.written(), shares(&devices)), (vec![], 0));
    // And what was made where another card stands now is gone with its card.
    kernel.change(|world| world.functions.get_mut(&at("0000:41:00.5")).unwrap().vgpu = Some((0, None, None)));
    devices.create(&WantedInstance { card: at(CARD), ..wanted.clone() }).unwrap();
    kernel.change(|world| world.functions.get_mut(&at(CARD)).unwrap().ids = ("10de", "2684"));
    kernel.written();
    devices.destroy(&wanted.key).unwrap();
    assert_eq!((kernel.written(), shares(&devices)), (vec![], 0));
}

#[test]
fn a_host_that_cannot_be_written_to_says_so_of_each_card() {
    let Scenario { kernel, wanted, .. } = scenarios().remove(0);
    kernel.state.lock().unwrap().unable = Some("set nodeDaemon.privileged".into());
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&kernel, folder.path());
    assert_eq!(devices.withheld(&facts(&kernel))[&at(CARD)], "set nodeDaemon.privileged");
    assert!(matches!(devices.create(&wanted), Err(GpuError::Unable { .. })));
    std::fs::write(folder.path().join("devices.json"), "{").unwrap();
    kernel.state.lock().unwrap().unable = None;
    let devices = start(&kernel, folder.path());
    assert!(devices.instances().is_err() && devices.destroy(&wanted.key).is_err(), "not known is not none");
    assert!(devices.withheld(&facts(&kernel))[&at(CARD)].contains("devices.json"));
    assert!(devices.create(&wanted).is_err());
    assert_eq!(kernel.written(), Vec::<String>::new());
}
