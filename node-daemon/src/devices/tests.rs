//! Shares made and unmade on a kernel that is as strict as the real one: what is written, what it comes to, and what is
//! left as it is.
#![expect(clippy::disallowed_methods, reason = "tests: write a journal that cannot be read")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gpudesk_crds::{
    GpuNodeSpec,
    gpu_node_status::{CardUnits, Device, Placement, ResetCheck, VirtualFunction},
    types::{PciAddress, ShareMode},
};
use gpudesk_inventory::topology::HostFacts;

use super::{
    control::NoControl,
    engine::Devices,
    fake_control::FakeControl,
    fake_kernel::{FakeKernel, Fun, at},
    scenarios::{CARD, Scenario, kernel, scenarios, share},
    settings_tests::spec,
};
use crate::host::gpu_driver::{GpuDriver, GpuError, InstanceKey, WantedInstance};

/// A daemon that starts on a host, and was told what it has.
pub(super) fn start(kernel: &Arc<FakeKernel>, folder: &Path) -> Devices {
    let control = Arc::new(FakeControl(Arc::clone(kernel)));
    let devices = Devices::open(Arc::<FakeKernel>::clone(kernel), control, folder);
    kernel.state.lock().unwrap().fuse = Some(Arc::clone(&devices.engine.fuse));
    devices.complete(&mut facts(kernel));
    super::engine::lock(&devices.engine.seen).spec = Some(owner());
    devices
}

/// What the owner of the host says: what scenarios ask for is allowed, and the drive of the tests may be given.
pub(super) fn owner() -> GpuNodeSpec {
    GpuNodeSpec {
        devices: spec("vgpuParams: [frame_rate_limiter=0, disable_vnc]").devices,
        ..of_host_devices()
    }
}

fn of_host_devices() -> GpuNodeSpec {
    serde_json::from_value(serde_json::json!({
        "nvmeDrives": [{"name": "scratch", "selector": {"serial": "S1"}, "erase": "Format"}],
        "physicalNetworks": [{"name": "campus", "devices": [CARD]}],
    }))
    .unwrap()
}

/// What the inventory says of the host.
pub(super) fn facts(kernel: &FakeKernel) -> HostFacts {
    let mut facts = HostFacts::default();
    for (address, fun) in kernel.world().functions {
        if fun.class.starts_with("03") && address.function == 0 {
            let mut card = Device::new(address, fun.ids.0, fun.ids.1);
            card.driver.clone_from(&fun.driver);
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
        if fun.class.starts_with("02") && !fun.vfs.is_empty() {
            let virtual_functions = (fun.vfs.iter().zip(0..))
                .map(|(vf, index)| VirtualFunction {
                    pci_address: *vf,
                    index,
                    device_id: None,
                    driver: kernel.world().functions[vf].driver.clone(),
                    iommu_group: None,
                    unavailable: None,
                })
                .collect();
            let device = serde_json::json!({
                "pciAddress": address, "kind": "NetworkCard", "class": "0200", "vendorId": fun.ids.0,
                "deviceId": fun.ids.1, "product": "card", "driver": fun.driver,
            });
            let mut device: gpudesk_crds::gpu_node_status::HostDevice =
                serde_json::from_value(device).unwrap();
            device.virtual_functions = virtual_functions;
            facts.host_devices.push(device);
        }
        if let Some(drive) = fun.drive {
            let is_hosts = fun.driver.as_deref() == Some("nvme");
            let device = serde_json::json!({
                "pciAddress": address, "kind": "NvmeDrive", "class": "0108", "vendorId": fun.ids.0, "deviceId": fun.ids.1,
                "product": "drive", "usable": true, "driver": fun.driver,
                "serial": is_hosts.then_some(drive.serial), "sizeMiB": is_hosts.then_some(drive.mib),
            });
            facts.host_devices.push(serde_json::from_value(device).unwrap());
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
        settle(&devices, &owner());
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
    assert_eq!(devices.figures().resets, [(("flr".to_owned(), true), 1)].into());
    // And so it is in the API, also for a daemon that starts again.
    let again = start(&scenario.kernel, folder.path());
    let told = |devices: &Devices| state(devices, &scenario.kernel).last_reset.unwrap();
    let shown = told(&devices);
    assert_eq!((shown.method.as_str(), shown.succeeded, shown.message.as_ref()), ("flr", true, None));
    assert_eq!(shown.verified, [ResetCheck::Ids, ResetCheck::Registers]);
    assert_eq!(told(&again), shown);
    assert!(again.figures().resets.is_empty(), "counters begin with the daemon");
}

/// What is told of the card beside what is found on it.
pub(super) fn state(devices: &Devices, kernel: &FakeKernel) -> gpudesk_inventory::status::CardState {
    devices
        .states(&facts(kernel), &crate::foreign_domains::ForeignDomains::default())
        .remove(&at(CARD))
        .unwrap()
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
        assert!(withheld[&wanted.card].contains("0 of 1 shares are put back"), "{name}: {withheld:?}");
        if wanted.what.is_card() {
            let restoring = state(&devices, &kernel).restoring;
            let none_of_one = gpudesk_crds::gpu_node_status::Restoring { done: 0, total: 1 };
            assert_eq!(restoring, Some(none_of_one), "{name}");
        }
        let held = devices.instances().unwrap();
        assert!(held[0].pending, "{name}: it keeps its place, and is not there yet");
        let other = WantedInstance {
            key: InstanceKey { request: "b".into(), ..wanted.key.clone() },
            ..wanted.clone()
        };
        assert!(matches!(devices.create(&other), Err(GpuError::Waiting { .. })), "{name}");
        assert_eq!(kernel.written(), Vec::<String>::new(), "{name}: nothing before its owner is heard");
        settle(&devices, &owner());
        assert_eq!(devices.instances().unwrap(), [instance], "{name}");
        assert_eq!(devices.instances().unwrap()[0].handle, handle, "{name}");
        assert!(devices.withheld(&facts(&kernel)).is_empty(), "{name}");
        assert!(!wanted.what.is_card() || state(&devices, &kernel).restoring.is_none(), "{name}");
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
    let raced = Arc::new(Raced(Arc::clone(&kernel), AtomicBool::new(false)));
    let mut devices = Devices::open(Arc::<Raced>::clone(&raced), Arc::new(NoControl), folder.path());
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
        while state.blocked.is_empty() {
            state = kernel.changed.wait(state).unwrap();
        }
    }
    let told = waits(devices.create(&wanted).map(drop));
    assert!(told.contains("being waited for: taking 0000:41:00.0 from the driver amdgpu, since "), "{told}");
    let withheld = devices.withheld(&facts(&kernel));
    assert!(withheld[&at(CARD)].starts_with("being waited for: taking"), "{withheld:?}");
    assert!(!withheld.contains_key(&at(other)));
    let waiting = || state(&devices, &kernel).waiting_for.unwrap();
    let step = "taking 0000:41:00.0 from the driver amdgpu waits for";
    let since = waiting().since;
    assert_eq!(waiting().what, format!("{step} the kernel, and no process is seen that it waits for"));
    raced.1.store(true, Ordering::Relaxed);
    assert_eq!(waiting().what, format!("{step} process 7 (dcgm-exporter)"));
    assert_eq!(waiting().since, since);
    raced.1.store(false, Ordering::Relaxed);
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
    assert_eq!(kernel.state.lock().unwrap().blocked.len(), 1, "it still waits");
    kernel.open("226:41", None);
    made(&wanted);
}

/// A kernel in which nobody is seen to have anything open, before that is asked for.
struct Raced(Arc<FakeKernel>, AtomicBool);

impl super::Kernel for Raced {
    fn read(&self, path: &str) -> std::io::Result<Vec<u8>> {
        self.0.read(path)
    }
    fn write(&self, path: &str, value: &str) -> std::io::Result<()> {
        self.0.write(path, value)
    }
    fn peek(&self, path: &str) -> std::io::Result<u32> {
        self.0.peek(path)
    }
    fn link(&self, path: &str) -> std::io::Result<String> {
        self.0.link(path)
    }
    fn list(&self, path: &str) -> std::io::Result<Vec<String>> {
        self.0.list(path)
    }
    fn open_devices(&self) -> std::io::Result<std::collections::BTreeMap<String, u32>> {
        if self.1.load(Ordering::Relaxed) {
            self.0.open_devices()
        } else {
            Ok(std::collections::BTreeMap::new())
        }
    }
    fn drive(&self, address: PciAddress) -> std::io::Result<gpudesk_inventory::scan::DriveNow> {
        self.0.drive(address)
    }
    fn erase(
        &self,
        address: PciAddress,
        method: gpudesk_crds::gpu_node_drives::DriveErase,
    ) -> std::io::Result<()> {
        self.0.erase(address, method)
    }
    fn network(
        &self,
        function: PciAddress,
    ) -> std::io::Result<Option<Result<super::network::NetworkNow, String>>> {
        self.0.network(function)
    }
    fn set_network(
        &self,
        function: PciAddress,
        settings: &super::network::VfSettings,
    ) -> std::io::Result<()> {
        self.0.set_network(function, settings)
    }
    fn no_network_functions(&self) -> Option<String> {
        None
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
    let told = state(&devices, &kernel).last_reset.unwrap();
    assert!(!told.succeeded && told.message.unwrap().contains("does not tell its ids any more"));
    assert_eq!(devices.figures().resets, [(("flr".to_owned(), false), 1)].into());
    // It is told until somebody was told, whichever daemon does it.
    let notices = start(&kernel, folder.path()).notices();
    assert_eq!((notices.len(), notices[0].what.as_str()), (1, "CardQuarantined"));
    devices.told(&notices);
    assert_eq!(start(&kernel, folder.path()).notices(), []);
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
    assert_eq!((devices.notices()[0].what.as_str(), devices.figures().quarantined), ("CardReturned", 0));
    let fun = kernel.world().functions[&at(CARD)].clone();
    assert_eq!((fun.driver.as_deref(), fun.reserved, fun.power.as_str()), (Some("amdgpu"), None, "auto"));
    devices.create(&wanted).unwrap();
}

#[test]
fn who_holds_up_what_is_taken_back_is_told_until_it_is_done() {
    let Scenario { kernel, wanted, .. } = scenarios().remove(1);
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&kernel, folder.path());
    devices.create(&wanted).unwrap();
    assert_eq!(state(&devices, &kernel).waiting_for, None);
    kernel.open("511:41", Some(7));
    devices.destroy(&wanted.key).unwrap_err();
    let told = state(&devices, &kernel).waiting_for.unwrap();
    assert_eq!(told.what, "0000:41:00.0 is open: it waits for process 7 (dcgm-exporter)");
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(state(&devices, &kernel).waiting_for, Some(told), "since it was first so");
    kernel.open("511:41", None);
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!((state(&devices, &kernel).waiting_for, shares(&devices)), (None, 0));
}

#[test]
fn a_card_that_was_replaced_is_given_like_a_new_one() {
    let kernel = kernel(vec![(CARD, Fun::new(("1002", "744c"), Some("amdgpu"), 41))]);
    let folder = tempfile::tempdir().unwrap();
    let wanted = share(ShareMode::Passthrough, "Passthrough", None, None);
    let devices = start(&kernel, folder.path());
    devices.create(&wanted).unwrap();
    kernel.change(|world| world.functions.get_mut(&at(CARD)).unwrap().ids = ("1002", "7550"));
    let other =
        WantedInstance { key: InstanceKey { request: "b".into(), ..wanted.key.clone() }, ..wanted.clone() };
    assert!(start(&kernel, folder.path()).create(&other).is_err(), "somebody has the one that was there");
    kernel.change(|world| world.functions.get_mut(&at(CARD)).unwrap().ids = ("1002", "744c"));
    devices.destroy(&wanted.key).unwrap();
    kernel.change(|world| world.functions.get_mut(&at(CARD)).unwrap().ids = ("1002", "7550"));
    start(&kernel, folder.path()).create(&other).unwrap();
}

#[test]
fn a_gpu_instance_that_could_not_be_unmade_goes_later() {
    let Scenario { kernel, wanted, .. } = scenarios().remove(4);
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&kernel, folder.path());
    devices.create(&wanted).unwrap();
    // The share went while the driver did not answer.
    devices.engine.note(|journal| journal.shares.clear()).unwrap();
    kernel.change(|world| world.functions.get_mut(&at("0000:41:00.4")).unwrap().vgpu = Some((0, None, None)));
    kernel.written();
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(kernel.written(), ["nvml 41:00.0 = no gi 1"]);
    assert!(devices.engine.journal().unwrap().cards.values().all(|card| card.gpu_instances.is_empty()));
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

#[test]
fn a_card_that_is_bound_by_hand_while_something_is_to_be_put_back_is_somebody_elses() {
    let named = |one: &Scenario| one.name.ends_with("with MIG and virtual functions off");
    let Scenario { kernel, wanted, .. } = scenarios().into_iter().find(named).unwrap();
    let theirs = at("0000:41:00.2");
    for vfs_stay in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let fresh = kernel.world();
        let devices = start(&kernel, folder.path());
        devices.create(&wanted).unwrap();
        kernel.change(|world| world.functions.get_mut(&theirs).unwrap().vgpu = Some((900, None, None)));
        let _ = devices.destroy(&wanted.key);
        settle(&devices, &GpuNodeSpec::default());
        let waits = devices.engine.journal().unwrap();
        assert!(waits.has_changed(at(CARD), super::step::Setting::NumVfs), "it waits for the other user");
        // Their admin takes the card: NVIDIA's driver drops what stood on it.
        kernel.change(|world| {
            let vfs = world.functions[&at(CARD)].vfs.clone();
            let card = world.functions.get_mut(&at(CARD)).unwrap();
            (card.driver, card.instances) = (Some("vfio-pci".into()), vec![]);
            if !vfs_stay {
                card.vfs.clear();
            }
            for vf in vfs {
                let function = world.functions.get_mut(&vf).unwrap();
                (function.driver, function.vgpu) = (None, None);
                if !vfs_stay {
                    world.functions.remove(&vf);
                }
            }
        });
        let taken = kernel.world();
        kernel.written();
        let again = start(&kernel, folder.path());
        for _ in 0..2 {
            settle(&again, &GpuNodeSpec::default());
            assert_eq!((kernel.written(), kernel.world()), (vec![], taken.clone()), "{vfs_stay}");
        }
        let journal = again.engine.journal().unwrap();
        assert!(
            journal.cards.values().all(|card| card.changes.is_empty()),
            "nothing is waited for: {journal:?}"
        );
        let told = state(&again, &kernel);
        assert_eq!((told.waiting_for, told.foreign[0].device.as_str()), (None, CARD));
        assert!(again.withheld(&facts(&kernel))[&at(CARD)].contains("bound to vfio-pci, not by gpudesk"));
        again.create(&wanted).unwrap_err();
        assert_eq!(kernel.written(), Vec::<String>::new());
        kernel.change(|world| *world = fresh);
    }
}
