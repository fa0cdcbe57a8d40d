//! Whole drives: never from under the host, erased after each user before anybody else gets them, whatever fails or is
//! killed in between.

use std::{sync::Arc, time::Duration};

use gpudesk_crds::{GpuNodeSpec, gpu_node_drives::DriveErase};
use rustix::io::Errno;

use super::{
    engine::Devices,
    fake_kernel::{FakeDrive, FakeKernel, at},
    notices::Happened,
    scenarios::{CARD, drive, kernel, whole_drive},
    tests::{facts, owner, settle, shares, start},
};
use crate::host::gpu_driver::WantedInstance;
use crate::host::gpu_driver::{GpuDriver, GpuError};

fn host() -> Arc<FakeKernel> {
    kernel(vec![(CARD, drive())])
}

fn on_drive(kernel: &FakeKernel, change: impl FnOnce(&mut FakeDrive)) {
    kernel.change(|world| {
        change(world.functions.get_mut(&at(CARD)).unwrap().drive.as_mut().unwrap());
    });
}

fn data(kernel: &FakeKernel) -> String {
    kernel.world().functions[&at(CARD)].drive.clone().unwrap().data
}

/// What its guest writes.
fn write(kernel: &FakeKernel) {
    on_drive(kernel, |drive| drive.data = "a secret".into());
}

fn withheld(devices: &Devices, kernel: &FakeKernel) -> Option<String> {
    devices.withheld(&facts(kernel)).remove(&at(CARD))
}

fn reboot(kernel: &FakeKernel, boot: &str) {
    kernel.change(|world| {
        world.boot = boot.into();
        let fun = world.functions.get_mut(&at(CARD)).unwrap();
        (fun.driver, fun.reserved, fun.d3cold) = (Some("nvme".into()), None, true);
        fun.power = "auto".into();
    });
}

/// A drive whose user is gone, and that answers its erasing with an error.
fn unerased() -> (Arc<FakeKernel>, tempfile::TempDir, Devices) {
    let (kernel, folder) = (host(), tempfile::tempdir().unwrap());
    let devices = start(&kernel, folder.path());
    devices.create(&whole_drive()).unwrap();
    write(&kernel);
    on_drive(&kernel, |drive| drive.fails = Some(Errno::IO));
    devices.destroy(&whole_drive().key).unwrap();
    (kernel, folder, devices)
}

/// A pod has another name for a block device (raw block volumes), and opens it not for itself alone.
#[test]
fn a_drive_that_is_open_under_another_name_is_not_taken() {
    let (kernel, folder) = (host(), tempfile::tempdir().unwrap());
    let devices = start(&kernel, folder.path());
    kernel.open("block 259:0", Some(4711));
    let why = devices.create(&whole_drive()).unwrap_err().to_string();
    assert!(why.contains("process 4711 of the host has it open"), "{why}");
    kernel.open("block 259:0", None);
    devices.create(&whole_drive()).unwrap();
}

#[test]
fn a_drive_is_erased_after_its_user_and_before_the_next() {
    let (kernel, folder) = (host(), tempfile::tempdir().unwrap());
    let before = kernel.world();
    let devices = start(&kernel, folder.path());
    devices.create(&whole_drive()).unwrap();
    write(&kernel);
    devices.destroy(&whole_drive().key).unwrap();
    assert_eq!(shares(&devices), 0, "its desktop waits for no erasing");
    assert_eq!(data(&kernel), "a secret");
    let why = withheld(&devices, &kernel).unwrap();
    assert!(why.contains("erased after its last user (Format)"), "{why}");
    let mut next = whole_drive();
    next.key.desktop_uid = "b".into();
    assert!(matches!(devices.create(&next), Err(GpuError::Waiting { .. })));
    kernel.written();
    settle(&devices, &owner());
    assert_eq!(kernel.written(), ["41:00.0/erase = Format"]);
    assert_eq!(kernel.world(), before);
    assert_eq!(withheld(&devices, &kernel), None);
    let states = devices.states(&facts(&kernel), &crate::foreign_domains::ForeignDomains::default());
    let told = states[&at(CARD)].last_erase.clone().unwrap();
    assert_eq!((told.method.as_str(), told.succeeded, told.message), ("Format", true, None));
    assert!(states[&at(CARD)].last_reset.as_ref().unwrap().succeeded);
    devices.create(&next).unwrap();
}

#[test]
fn a_drive_that_is_not_erased_is_given_to_nobody_and_erased_again() {
    let (kernel, folder, devices) = unerased();
    settle(&devices, &owner());
    let why = withheld(&devices, &kernel).unwrap();
    assert!(why.contains("erasing it (Format) failed"), "{why}");
    assert_eq!(devices.figures().quarantined, 1);
    assert!(devices.create(&whole_drive()).is_err());
    // A daemon that starts again, and a host that does, owe it as well.
    reboot(&kernel, "later");
    let devices = start(&kernel, folder.path());
    assert!(devices.create(&whole_drive()).is_err());
    on_drive(&kernel, |drive| drive.fails = None);
    settle(&devices, &owner());
    assert_eq!((data(&kernel).as_str(), withheld(&devices, &kernel)), ("", None));
    let told: Vec<Happened> = devices.notices().iter().map(|notice| notice.what).collect();
    assert_eq!(told, [Happened::CardQuarantined, Happened::CardReturned]);
    devices.create(&whole_drive()).unwrap();
}

#[test]
fn a_drive_that_is_to_be_erased_is_not_given_at_another_address() {
    let (kernel, folder, _) = unerased();
    reboot(&kernel, "moved");
    let elsewhere = at("0000:44:00.0");
    kernel.change(|world| {
        let fun = world.functions.remove(&at(CARD)).unwrap();
        world.functions.insert(elsewhere, fun);
    });
    let devices = start(&kernel, folder.path());
    let why = devices.create(&WantedInstance { card: elsewhere, ..whole_drive() }).unwrap_err().to_string();
    assert!(why.contains("at another address"), "{why}");
}

#[test]
fn a_drive_is_never_taken_from_under_the_host() {
    for (change, words) in [
        (
            &(|drive: &mut FakeDrive| drive.used = Some("the host has /dev/nvme0n1 mounted at /".into()))
                as &dyn Fn(&mut FakeDrive),
            "mounted at /",
        ),
        (&|drive| drive.data = "a partition".into(), "holds a partition"),
        (&|drive| drive.serial = "S2", "spec.nvmeDrives"),
    ] {
        let (kernel, folder) = (host(), tempfile::tempdir().unwrap());
        // Since the host was last looked at.
        on_drive(&kernel, |drive| change(drive));
        let devices = start(&kernel, folder.path());
        let why = devices.create(&whole_drive()).unwrap_err().to_string();
        assert!(why.contains(words) && why.contains(CARD), "{why}");
        assert_eq!(kernel.written(), Vec::<String>::new(), "{why}");
        assert_eq!(shares(&devices), 0);
    }
    let (kernel, folder) = (host(), tempfile::tempdir().unwrap());
    let devices = start(&kernel, folder.path());
    super::engine::lock(&devices.engine.seen).spec = Some(GpuNodeSpec::default());
    assert!(devices.create(&whole_drive()).unwrap_err().to_string().contains("spec.nvmeDrives"));
    // In a group with something that the host uses.
    kernel.change(|world| {
        let other = super::fake_kernel::Fun {
            class: "020000",
            ..super::fake_kernel::Fun::new(("8086", "1521"), Some("igb"), 41)
        };
        world.functions.insert(at("0000:42:00.0"), other);
    });
    super::engine::lock(&devices.engine.seen).spec = Some(owner());
    let why = devices.create(&whole_drive()).unwrap_err().to_string();
    assert!(why.contains("in one IOMMU group with 0000:42:00.0"), "{why}");
}

#[test]
fn a_drive_that_the_host_came_to_use_is_not_erased() {
    let (kernel, folder) = (host(), tempfile::tempdir().unwrap());
    let devices = start(&kernel, folder.path());
    devices.create(&whole_drive()).unwrap();
    write(&kernel);
    on_drive(&kernel, |drive| drive.used = Some("the host's dm-3 is on /dev/nvme0n1".into()));
    devices.destroy(&whole_drive().key).unwrap();
    settle(&devices, &owner());
    let why = withheld(&devices, &kernel).unwrap();
    assert!(why.contains("dm-3 is on /dev/nvme0n1"), "{why}");
    assert_eq!(data(&kernel), "a secret");
    on_drive(&kernel, |drive| drive.used = None);
    settle(&devices, &owner());
    assert_eq!((data(&kernel).as_str(), withheld(&devices, &kernel)), ("", None));
}

#[test]
fn a_drive_of_another_size_or_serial_is_not_erased_again_and_again() {
    let (kernel, folder) = (host(), tempfile::tempdir().unwrap());
    let devices = start(&kernel, folder.path());
    devices.create(&whole_drive()).unwrap();
    write(&kernel);
    on_drive(&kernel, |drive| drive.mib = 1000);
    devices.destroy(&whole_drive().key).unwrap();
    kernel.written();
    settle(&devices, &owner());
    settle(&devices, &owner());
    assert_eq!(kernel.written(), Vec::<String>::new());
    let why = withheld(&devices, &kernel).unwrap();
    assert!(why.contains("1000 MiB and not 976762 MiB") && why.contains("nvme create-ns"), "{why}");
    on_drive(&kernel, |drive| (drive.mib, drive.serial) = (976_762, "S9"));
    settle(&devices, &owner());
    assert_eq!(data(&kernel), "a secret", "it is another drive");
    on_drive(&kernel, |drive| drive.serial = "S1");
    settle(&devices, &owner());
    assert_eq!((data(&kernel).as_str(), withheld(&devices, &kernel)), ("", None));
}

#[test]
fn a_host_that_starts_again_gives_the_drive_back_with_what_is_on_it() {
    let (kernel, folder) = (host(), tempfile::tempdir().unwrap());
    let before = kernel.world();
    let devices = start(&kernel, folder.path());
    devices.create(&whole_drive()).unwrap();
    write(&kernel);
    reboot(&kernel, "later");
    let devices = start(&kernel, folder.path());
    settle(&devices, &owner());
    assert_eq!(kernel.world().functions[&at(CARD)].driver.as_deref(), Some("vfio-pci"));
    assert_eq!(data(&kernel), "a secret", "it is still its desktop's");
    devices.destroy(&whole_drive().key).unwrap();
    settle(&devices, &owner());
    let mut after = kernel.world();
    after.boot.clone_from(&before.boot);
    assert_eq!(after, before);
}

#[test]
fn an_owner_may_have_nothing_erased() {
    let (kernel, folder) = (host(), tempfile::tempdir().unwrap());
    let devices = start(&kernel, folder.path());
    let mut spec = owner();
    spec.nvme_drives[0].erase = DriveErase::None;
    super::engine::lock(&devices.engine.seen).spec = Some(spec.clone());
    devices.create(&whole_drive()).unwrap();
    write(&kernel);
    devices.destroy(&whole_drive().key).unwrap();
    settle(&devices, &spec);
    assert_eq!((data(&kernel).as_str(), withheld(&devices, &kernel)), ("a secret", None));
    let why = devices.create(&whole_drive()).unwrap_err().to_string();
    assert!(why.contains("holds a secret"), "{why}");
}

#[test]
fn killed_at_any_point_of_its_end_a_drive_is_erased_and_given_to_nobody_before() {
    let before = host().world();
    for points in 1.. {
        let name = format!("killed at {points}");
        let (kernel, folder) = (host(), tempfile::tempdir().unwrap());
        let killed = start(&kernel, folder.path());
        killed.create(&whole_drive()).unwrap();
        write(&kernel);
        killed.engine.fuse.set(points);
        let _ = killed.destroy(&whole_drive().key);
        killed.settle(&owner());
        while !killed.engine.slots.waiting(Duration::ZERO).is_empty() {
            std::thread::yield_now();
        }
        let was_killed = killed.engine.fuse.is_blown();
        let mut next = whole_drive();
        next.key.desktop_uid = "b".into();
        let devices = start(&kernel, folder.path());
        if devices.create(&next).is_ok() {
            assert_eq!(data(&kernel), "", "{name}: nobody gets what another left");
            devices.destroy(&next.key).unwrap();
        }
        devices.destroy(&whole_drive().key).unwrap();
        settle(&devices, &owner());
        settle(&devices, &owner());
        assert_eq!(kernel.world(), before, "{name}");
        assert_eq!(withheld(&devices, &kernel), None, "{name}");
        if !was_killed {
            break;
        }
    }
}
