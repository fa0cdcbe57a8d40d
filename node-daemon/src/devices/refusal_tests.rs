//! What is refused, and that nothing is written or noted then.

use std::sync::Arc;

use gpudesk_crds::types::ShareMode;

use super::{
    fake_kernel::{FakeKernel, Fun, World, at},
    scenarios::{CARD, kernel, scenarios, share},
    tests::{shares, start},
};
use crate::host::gpu_driver::{GpuDriver, WantedInstance};

fn whole() -> WantedInstance {
    share(ShareMode::Passthrough, "Passthrough", None, None)
}

fn refused(kernel: &Arc<FakeKernel>, wanted: &WantedInstance, words: &str) {
    let folder = tempfile::tempdir().unwrap();
    let before = kernel.world();
    let devices = start(kernel, folder.path());
    let error = devices.create(wanted).expect_err(words);
    let said = error.to_string();
    assert!(said.contains(words), "{words:?} is missing in {said:?}");
    assert!(!said.contains("school/"), "who has it is nobody's to know: {said}");
    assert_eq!((kernel.written(), shares(&devices)), (vec![], 0), "{words}");
    assert_eq!(kernel.world(), before, "{words}");
}

#[test]
fn a_whole_card_is_refused_for_each_thing_in_its_way() {
    let card = || Fun::new(("10de", "26b9"), Some("nvidia"), 41);
    let one = |change: &dyn Fn(&mut Fun)| {
        let mut fun = card();
        change(&mut fun);
        kernel(vec![(CARD, fun)])
    };
    for (kernel, words) in [
        (one(&|fun| fun.boot_vga = true), "own screen"),
        (one(&|fun| fun.group = None), "no IOMMU group"),
        (one(&|fun| fun.resets = ""), "no reset method"),
        (one(&|fun| fun.ids = ("1002", "74a1")), "MI300X"),
        (one(&|fun| fun.ids = ("1002", "75a3")), "MI355X"),
        (one(&|fun| fun.mig = Some(true)), "MIG"),
        (one(&|fun| fun.driver = Some("vfio-pci".into())), "bound to vfio-pci, not by gpudesk"),
    ] {
        refused(&kernel, &whole(), words);
    }
    let unloaded = one(&|_| {});
    unloaded.change(|world| world.has_vfio = false);
    refused(&unloaded, &whole(), "modprobe vfio-pci");
    // Open: the driver's own node, a screen, the sound of the card.
    for node in ["195:41", "226:41"] {
        let held = one(&|_| {});
        held.open(node, Some(1234));
        refused(&held, &whole(), "0000:41:00.0 is in use: process 1234 of the host has it open");
    }
    // The driver knows of a user that no open file shows.
    let with_vfs = scenarios().remove(2).kernel;
    refused(&with_vfs, &whole(), "in use");
    let none_typed = scenarios().remove(3).kernel;
    refused(&none_typed, &whole(), "4 virtual functions of 0000:41:00.0 are switched on");
    let nic = Fun { class: "020000", ..Fun::new(("8086", "1563"), Some("ixgbe"), 41) };
    let shared = kernel(vec![(CARD, card()), ("0000:42:00.0", nic)]);
    refused(&shared, &whole(), "with 0000:42:00.0 (driver ixgbe), which the host uses");
    let bound = Fun { class: "040300", driver: Some("vfio-pci".into()), ..card() };
    let companion = kernel(vec![(CARD, card()), ("0000:41:00.1", bound)]);
    refused(&companion, &whole(), "0000:41:00.1 is bound to vfio-pci");
    refused(&kernel(vec![]), &whole(), "no card at 0000:41:00.0");
}

#[test]
fn a_card_that_goes_along_with_one_that_is_in_use_is_refused() {
    let card = |group| Fun::new(("1002", "744c"), Some("amdgpu"), group);
    let kernel = kernel(vec![(CARD, card(41)), ("0000:42:00.0", card(41))]);
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&kernel, folder.path());
    assert_eq!(devices.create(&whole()).unwrap().companions, [at("0000:42:00.0")]);
    kernel.written();
    let mut other = WantedInstance { card: at("0000:42:00.0"), ..whole() };
    other.key.request = "b".into();
    let said = devices.create(&other).unwrap_err().to_string();
    assert!(said.contains("is in use") && kernel.written().is_empty(), "{said}");
}

#[test]
fn a_vgpu_is_refused_for_each_thing_in_its_way() {
    let vendor = |change: &dyn Fn(&mut World)| {
        let kernel = scenarios().remove(2).kernel;
        kernel.change(change);
        kernel
    };
    let vgpu = |name, start| share(ShareMode::Vgpu, name, start, None);
    refused(
        &vendor(&|_| {}),
        &vgpu("L40S-24Q", None),
        "offers the type L40S-24Q now; free functions offer: L40S-8Q",
    );
    refused(&vendor(&|_| {}), &vgpu("L40S-8Q", Some(8)), "NVML");
    let mixed = vendor(&|world| world.functions.get_mut(&at(CARD)).unwrap().mixed = Some(false));
    refused(&mixed, &vgpu("L40S-8Q", Some(8)), "0000:41:00.4 is in use");
    let mig = vendor(&|world| world.functions.get_mut(&at(CARD)).unwrap().mig = Some(true));
    refused(&mig, &vgpu("L40S-8Q", None), "MIG of 0000:41:00.0 is on");
    let full = vendor(&|world| {
        for fun in world.functions.values_mut().filter(|fun| fun.vgpu.is_some()) {
            fun.vgpu = Some((1153, None, None));
        }
    });
    refused(&full, &vgpu("L40S-8Q", None), "no virtual function of 0000:41:00.0 is free");
    let off = kernel(vec![(CARD, Fun { total: 32, ..Fun::new(("10de", "26b9"), Some("nvidia"), 41) })]);
    off.change(|world| world.has_stub = false);
    refused(&off, &vgpu("L40S-8Q", None), "run modprobe pci-pf-stub");
    off.change(|world| world.has_stub = true);
    off.open("195:41", Some(1234));
    refused(&off, &vgpu("L40S-8Q", None), "0000:41:00.0 is in use: process 1234 of the host has it open");
    let on_mig = |start| share(ShareMode::Mig, "1g.24gb+gfx", start, Some("DC-1-24Q"));
    let foreign = vendor(&|world| {
        let card = world.functions.get_mut(&at(CARD)).unwrap();
        card.mig = Some(true);
        card.instances = vec![super::control::GpuInstanceSeen {
            id: 5,
            profile: 47,
            start: 3,
            size: 3,
            compute_instances: 1,
            uuid: None,
            scheduler: None,
        }];
    });
    refused(&foreign, &on_mig(Some(3)), "GPU instance 5 of 0000:41:00.0 is made on the host, not by gpudesk");
    refused(&vendor(&|_| {}), &on_mig(Some(3)), "NVML");
}

#[test]
fn virtual_functions_change_their_number_only_through_none_and_only_for_nobody() {
    let functions = |name| share(ShareMode::VirtualFunctions, name, None, None);
    let theirs = || scenarios().remove(8).kernel;
    refused(&theirs(), &functions("4VF"), "2 virtual functions of 0000:41:00.0 are on, and 4 are wanted");
    refused(&theirs(), &functions("many"), "\"many\"");
    let few = kernel(vec![(CARD, Fun { total: 2, ..Fun::new(("8086", "56c0"), Some("xe"), 41) })]);
    refused(&few, &functions("4VF"), "0 virtual functions");
    // One that was made for a desktop holds the number for the next.
    let switched = scenarios().remove(7);
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&switched.kernel, folder.path());
    let first = devices.create(&switched.wanted).unwrap();
    let mut more = functions("4VF");
    more.key.request = "b".into();
    let said = devices.create(&more).unwrap_err().to_string();
    assert!(said.contains("4VF") && said.contains("2VF"), "{said}");
    more.share.type_name = "2VF".into();
    let second = devices.create(&more).unwrap();
    assert_ne!(first.handle, second.handle);
    switched.kernel.written();
    devices.destroy(&first.key).unwrap();
    assert!(!switched.kernel.written().iter().any(|write| write.contains("numvfs")), "the other is in use");
    devices.destroy(&second.key).unwrap();
    assert_eq!(switched.kernel.world().functions[&at(CARD)].vfs, []);
}

#[test]
fn nothing_is_taken_from_who_still_has_it_open() {
    for (mode, node) in [(0, "511:41"), (2, "511:201"), (5, "511:41m"), (7, "511:141")] {
        let scenario = scenarios().remove(mode);
        let folder = tempfile::tempdir().unwrap();
        let devices = start(&scenario.kernel, folder.path());
        devices.create(&scenario.wanted).unwrap();
        let (_, made) = (scenario.kernel.written(), scenario.kernel.world());
        scenario.kernel.open(node, Some(99));
        let said = devices.destroy(&scenario.wanted.key).unwrap_err().to_string();
        assert!(said.contains("process 99"), "{}: {said}", scenario.name);
        assert_eq!((scenario.kernel.written(), scenario.kernel.world()), (vec![], made), "{}", scenario.name);
        assert!(devices.instances().unwrap()[0].pending, "{}: it is not lost", scenario.name);
        scenario.kernel.open(node, None);
        devices.destroy(&scenario.wanted.key).unwrap();
        assert_eq!(shares(&devices), 0, "{}", scenario.name);
    }
}

#[test]
fn what_the_kernel_refuses_half_way_is_taken_back() {
    // The module is there and does not take the card.
    let card = Fun { group: Some(41), ..Fun::new(("1002", "744c"), Some("amdgpu"), 41) };
    let sound = Fun { class: "040300", ids: ("10de", "22ba"), ..Fun::new(("10de", "22ba"), None, 41) };
    let kernel = kernel(vec![(CARD, card), ("0000:41:00.1", sound)]);
    kernel.change(|world| {
        // As a virtual function of NVIDIA's, which vfio-pci refuses.
        let parent = Fun { vfs: vec![at("0000:41:00.1")], ..Fun::new(("10de", "1"), None, 99) };
        world.functions.insert(at("0000:99:00.0"), parent);
    });
    let (before, folder) = (kernel.world(), tempfile::tempdir().unwrap());
    let devices = start(&kernel, folder.path());
    let said = devices.create(&whole()).unwrap_err().to_string();
    assert!(said.contains("0000:41:00.1 has the driver none and not vfio-pci"), "{said}");
    assert_eq!((kernel.world(), shares(&devices)), (before, 0));
}
