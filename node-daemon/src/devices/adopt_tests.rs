//! What was made by hand is shown, and taken over where it is handed over: whatever is there, and wherever the daemon is
//! killed.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use gpudesk_crds::{
    GpuNodeSpec,
    gpu_node_status::{Companion, Framework, Instance, Placement, VirtualFunction},
    types::{PciAddress, ShareMode},
};
use gpudesk_inventory::topology::HostFacts;

use super::{
    control::GpuInstanceSeen,
    engine::Devices,
    fake_kernel::{FakeKernel, FakeMdev, Fun, World, at},
    handed::Adopted,
    journal::OurInstance,
    scenarios::{CARD, kernel, scenarios},
    tests::{facts, settle, start},
};
use crate::{foreign_domains::ForeignDomains, host::gpu_driver::GpuDriver};

const VF: &str = "0000:41:00.4";
const UUID: &str = "11111111-2222-4333-8444-555555555555";

fn instance(id: &str, mode: ShareMode, virtual_function: Option<PciAddress>) -> Instance {
    Instance {
        id: id.into(),
        type_name: "X".into(),
        mode,
        vgpu_type: None,
        start: None,
        virtual_function,
        gpu_instance: None,
        owner: None,
    }
}

/// What the inventory says of the host, with what exists on its cards.
fn all(kernel: &FakeKernel) -> HostFacts {
    let (mut facts, world) = (facts(kernel), kernel.world());
    for card in &mut facts.cards {
        let own = &world.functions[&card.pci_address];
        for (index, address) in own.vfs.iter().enumerate() {
            let fun = &world.functions[address];
            if fun.vgpu.is_some_and(|(id, ..)| id != 0) {
                card.instances.push(instance(&address.to_string(), ShareMode::Vgpu, Some(*address)));
            }
            card.virtual_functions.push(VirtualFunction {
                pci_address: *address,
                index: i32::try_from(index).unwrap(),
                device_id: None,
                iommu_group: None,
                driver: fun.driver.clone(),
                unavailable: None,
            });
        }
        let mdevs = world.mdevs.keys().map(|uuid| instance(uuid, ShareMode::Vgpu, None));
        card.instances.extend(mdevs);
        let instances = own.instances.iter().map(|seen| Instance {
            start: Some(seen.start),
            ..instance(seen.uuid.as_deref().unwrap(), ShareMode::Mig, None)
        });
        card.instances.extend(instances);
        if own.ids.0 != "10de" && own.total > 0 {
            let placement = Placement::new("2VF", ShareMode::VirtualFunctions, 1024, 2);
            (card.framework, card.placements) = (Some(Framework::Sriov), vec![placement]);
        }
        let sound = world.functions.iter().filter(|(_, fun)| fun.class == "040300");
        card.companions = sound
            .map(|(address, fun)| Companion {
                pci_address: *address,
                class: "0403".into(),
                vendor_id: fun.ids.0.into(),
                device_id: fun.ids.1.into(),
                driver: fun.driver.clone(),
            })
            .collect();
    }
    facts
}

/// What is foreign on the card, by name.
fn foreign(devices: &Devices, kernel: &FakeKernel) -> BTreeMap<String, String> {
    let states = devices.states(&all(kernel), &ForeignDomains::default());
    let found = states.into_values().flat_map(|state| state.foreign);
    found.map(|foreign| (foreign.device, foreign.what)).collect()
}

/// Hands over, and waits until the daemon has done what it does then.
fn hand_over(devices: &Devices, kernel: &FakeKernel, names: Option<&str>) -> Vec<String> {
    let idle = || {
        while !devices.engine.slots.waiting(Duration::ZERO).is_empty() {
            std::thread::yield_now();
        }
    };
    devices.adopt(names, &all(kernel), &ForeignDomains::default());
    idle();
    let said = devices.adopt(names, &all(kernel), &ForeignDomains::default());
    idle();
    said
}

/// Something made by hand: the host, its name, what is said of it, and what the host is once it was handed over.
struct Case {
    name: &'static str,
    kernel: Arc<FakeKernel>,
    device: &'static str,
    what: &'static str,
    after: fn(&mut World),
    written: Vec<&'static str>,
}

fn bound(natural: Option<&'static str>) -> Fun {
    let given = || Some("vfio-pci".to_owned());
    Fun { driver: given(), natural, reserved: given(), ..Fun::new(("1002", "744c"), None, 41) }
}

fn cases() -> Vec<Case> {
    let instance = scenarios().remove(4).kernel;
    instance.change(|world| {
        let made = GpuInstanceSeen {
            id: 3,
            profile: 47,
            start: 6,
            size: 3,
            compute_instances: 1,
            uuid: Some("MIG-5a1b".into()),
            scheduler: None,
        };
        world.functions.get_mut(&at(CARD)).unwrap().instances.push(made);
    });
    vec![
        Case {
            name: "a vGPU by vendor-specific VFIO",
            kernel: scenarios().remove(2).kernel,
            device: VF,
            what: "a vGPU X, made on the host",
            after: |world| world.functions.get_mut(&at(VF)).unwrap().vgpu = Some((0, None, None)),
            written: vec!["41:00.4/nvidia/current_vgpu_type = 0"],
        },
        Case {
            name: "a mediated device",
            kernel: scenarios().remove(6).kernel,
            device: UUID,
            what: "a vGPU X, made on the host",
            after: |world| world.mdevs.clear(),
            written: vec!["11111111-2222-4333-8444-555555555555/remove = 1"],
        },
        Case {
            name: "a GPU instance",
            kernel: instance,
            device: "MIG-5a1b",
            what: "a GPU instance X, made on the host",
            after: |world| world.functions.get_mut(&at(CARD)).unwrap().instances.clear(),
            written: vec!["nvml 41:00.0 = no gi 3"],
        },
        Case {
            name: "a virtual function",
            kernel: scenarios().remove(8).kernel,
            device: "0000:41:00.1",
            what: "bound to vfio-pci, not by gpudesk",
            after: |world| {
                let fun = world.functions.get_mut(&at("0000:41:00.1")).unwrap();
                (fun.driver, fun.reserved, fun.power) = (None, None, "on".into());
            },
            written: vec![
                "41:00.1/reset = 1",
                "41:00.1/driver_override =",
                "41:00.1/driver/unbind = 0000:41:00.1",
            ],
        },
        Case {
            name: "a whole card",
            kernel: kernel(vec![(CARD, bound(Some("amdgpu")))]),
            device: CARD,
            what: "bound to vfio-pci, not by gpudesk",
            after: |world| {
                let fun = world.functions.get_mut(&at(CARD)).unwrap();
                (fun.driver, fun.reserved, fun.power) = (Some("amdgpu".into()), None, "on".into());
            },
            written: vec![
                "41:00.0/reset = 1",
                "41:00.0/driver_override =",
                "41:00.0/driver/unbind = 0000:41:00.0",
                "drivers_probe = 0000:41:00.0",
            ],
        },
        Case {
            name: "a whole card that no driver of the host wants",
            kernel: kernel(vec![(CARD, bound(None))]),
            device: CARD,
            what: "bound to vfio-pci, not by gpudesk",
            after: |world| {
                let fun = world.functions.get_mut(&at(CARD)).unwrap();
                (fun.driver, fun.reserved, fun.power) = (None, None, "on".into());
            },
            written: vec![
                "41:00.0/reset = 1",
                "41:00.0/driver_override =",
                "41:00.0/driver/unbind = 0000:41:00.0",
                "drivers_probe = 0000:41:00.0",
            ],
        },
    ]
}

fn begin(kernel: &Arc<FakeKernel>, folder: &Path) -> Devices {
    let devices = start(kernel, folder);
    devices.complete(&mut all(kernel));
    devices
}

#[test]
fn what_was_made_by_hand_is_shown_and_once_it_is_handed_over_unmade() {
    for Case { name, kernel, device, what, after, written } in cases() {
        let folder = tempfile::tempdir().unwrap();
        let mut wanted = kernel.world();
        let devices = begin(&kernel, folder.path());
        assert_eq!(foreign(&devices, &kernel), BTreeMap::from([(device.into(), what.into())]), "{name}");
        settle(&devices, &GpuNodeSpec::default());
        assert_eq!(hand_over(&devices, &kernel, None), [""; 0]);
        assert_eq!((kernel.written(), kernel.world()), (vec![], wanted.clone()), "{name}: unasked it stays");
        after(&mut wanted);
        assert_eq!(hand_over(&devices, &kernel, Some(device)), [""; 0], "{name}");
        assert_eq!(kernel.written(), written, "{name}");
        assert_eq!(kernel.world(), wanted, "{name}");
        assert_eq!(foreign(&devices, &kernel), BTreeMap::new(), "{name}");
        // The name does it once, also for a daemon that starts again.
        let devices = begin(&kernel, folder.path());
        settle(&devices, &GpuNodeSpec::default());
        assert_eq!(hand_over(&devices, &kernel, Some(device)), [""; 0], "{name}");
        assert_eq!(kernel.written(), Vec::<String>::new(), "{name}");
        let journal = devices.engine.journal().unwrap();
        assert!(journal.cards.values().all(|card| card.adopted.is_empty()), "{name}: {journal:?}");
        assert_eq!(journal.handed, [device]);
        hand_over(&devices, &kernel, None);
        assert_eq!(
            devices.engine.journal().unwrap().handed,
            [""; 0],
            "{name}: a name that is gone is forgotten"
        );
    }
}

#[test]
fn killed_at_any_point_of_it_the_next_daemon_goes_on() {
    for case in 0..cases().len() {
        for points in 1.. {
            let Case { name, kernel, device, after, .. } = cases().remove(case);
            let folder = tempfile::tempdir().unwrap();
            let mut wanted = kernel.world();
            after(&mut wanted);
            let killed = begin(&kernel, folder.path());
            killed.engine.fuse.set(points);
            hand_over(&killed, &kernel, Some(device));
            if !killed.engine.fuse.is_blown() {
                assert!(points > 3, "{name}: each write and each note is a point");
                break;
            }
            let devices = begin(&kernel, folder.path());
            let noted = devices.engine.journal().unwrap().handed == [device];
            if noted {
                // By itself, also when the name was taken away meanwhile.
                settle(&devices, &GpuNodeSpec::default());
            } else {
                assert_eq!(hand_over(&devices, &kernel, Some(device)), [""; 0], "{name}, killed at {points}");
            }
            assert_eq!(kernel.world(), wanted, "{name}, killed at {points}");
            assert_eq!(foreign(&devices, &kernel), BTreeMap::new(), "{name}, killed at {points}");
        }
    }
}

#[test]
fn what_is_not_there_in_use_or_not_to_be_touched_is_told_and_stays() {
    let Case { kernel, .. } = cases().remove(0);
    let folder = tempfile::tempdir().unwrap();
    let devices = begin(&kernel, folder.path());
    let before = kernel.world();
    let said = hand_over(&devices, &kernel, Some("0000:41:00.6, 0000:99:00.0, card"));
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(
        said[0].starts_with("\"card\" names nothing: write it as status.devices[].foreign[].device"),
        "{said:?}"
    );
    assert!(said[1].starts_with("0000:41:00.6: nothing of this name is there"), "{said:?}");
    let vfio = kernel.state.lock().unwrap().vfio_node(at(VF));
    kernel.open(&vfio, Some(7));
    let said = hand_over(&devices, &kernel, Some(VF));
    assert_eq!(said, ["0000:41:00.4: 0000:41:00.4 is in use: process 7 of the host has it open"]);
    assert_eq!((kernel.written(), kernel.world()), (vec![], before.clone()));
    assert_eq!(devices.engine.journal().unwrap().handed, [""; 0]);
    kernel.open(&vfio, None);
    // A domain that is not of gpudesk.
    let by_device = BTreeMap::from([(VF.to_owned(), "render-7".to_owned())]);
    let domains = ForeignDomains { by_device, unseen: None };
    let states = devices.states(&all(&kernel), &domains);
    let what = &states[&at(CARD)].foreign[0].what;
    assert_eq!(what, "a vGPU X, made on the host; the domain render-7 of libvirt has it");
    let said = devices.adopt(Some(VF), &all(&kernel), &domains);
    assert!(said[0].contains("the domain render-7 of libvirt has it; end that domain first"), "{said:?}");
    // Of a card that its owner keeps nothing is touched.
    let spec = format!("devices: [{{name: a, selector: {{pciAddress: '{CARD}'}}, management: Unmanaged}}]");
    settle(&devices, &serde_yaml::from_str(&spec).unwrap());
    let said = hand_over(&devices, &kernel, Some(VF));
    assert!(said[0].contains("a rule of spec.devices leaves 0000:41:00.0 alone"), "{said:?}");
    kernel.state.lock().unwrap().unable = Some("set nodeDaemon.privileged".into());
    assert_eq!(hand_over(&devices, &kernel, Some(VF)), ["0000:41:00.4: set nodeDaemon.privileged"]);
    assert_eq!((kernel.written(), kernel.world()), (vec![], before));
}

#[test]
fn what_desktops_have_beside_it_stays() {
    let scenario = scenarios().remove(2);
    let (kernel, folder) = (&scenario.kernel, tempfile::tempdir().unwrap());
    let devices = begin(kernel, folder.path());
    devices.create(&scenario.wanted).unwrap();
    kernel.written();
    assert_eq!(
        foreign(&devices, kernel).into_keys().collect::<Vec<_>>(),
        [VF],
        "what gpudesk made is not foreign"
    );
    let said = hand_over(&devices, kernel, Some("0000:41:00.5,0000:41:00.4"));
    assert_eq!(said, ["0000:41:00.5: a desktop has it, and gpudesk made it: take its name away"]);
    assert_eq!(kernel.written(), ["41:00.4/nvidia/current_vgpu_type = 0"]);
    assert!(!devices.instances().unwrap()[0].pending);
    devices.destroy(&scenario.wanted.key).unwrap();
    assert_eq!(kernel.written(), ["41:00.5/nvidia/current_vgpu_type = 0"]);
}

#[test]
fn what_is_made_again_under_a_name_that_was_done_is_not_meant() {
    let Case { kernel, .. } = cases().remove(0);
    let folder = tempfile::tempdir().unwrap();
    let before = kernel.world();
    let devices = begin(&kernel, folder.path());
    hand_over(&devices, &kernel, Some(VF));
    kernel.change(|world| *world = before.clone());
    kernel.written();
    let said = hand_over(&devices, &kernel, Some(VF));
    assert!(said[0].starts_with("0000:41:00.4: it was taken over before, and is there again"), "{said:?}");
    assert_eq!(kernel.world(), before);
    assert_eq!(hand_over(&devices, &kernel, None), [""; 0]);
    assert_eq!(hand_over(&devices, &kernel, Some(VF)), [""; 0]);
    assert_eq!(kernel.written(), ["41:00.4/nvidia/current_vgpu_type = 0"]);
}

#[test]
fn a_vgpu_goes_before_the_gpu_instance_under_it() {
    let Case { kernel, device, .. } = cases().remove(2);
    kernel.change(|world| {
        world.functions.get_mut(&at(VF)).unwrap().vgpu = Some((900, None, Some(3)));
    });
    let folder = tempfile::tempdir().unwrap();
    let devices = begin(&kernel, folder.path());
    let said = hand_over(&devices, &kernel, Some(device));
    assert!(said[0].contains("the vGPU on 0000:41:00.4 stands on it; hand that over first"), "{said:?}");
    assert_eq!(kernel.written(), Vec::<String>::new());
    let both = format!("{device},{VF}");
    hand_over(&devices, &kernel, Some(&both));
    assert_eq!(hand_over(&devices, &kernel, Some(&both)), [""; 0]);
    assert_eq!(kernel.written(), ["41:00.4/nvidia/current_vgpu_type = 0", "nvml 41:00.0 = no gi 3"]);
}

#[test]
fn one_that_does_not_come_back_from_its_reset_is_kept_apart() {
    let kernel = kernel(vec![(CARD, Fun { lost_by_reset: true, ..bound(Some("amdgpu")) })]);
    let folder = tempfile::tempdir().unwrap();
    let devices = begin(&kernel, folder.path());
    hand_over(&devices, &kernel, Some(CARD));
    let withheld = devices.withheld(&all(&kernel));
    assert!(withheld[&at(CARD)].contains("does not tell its ids any more"), "{withheld:?}");
    assert_eq!(devices.figures().quarantined, 1);
    let fun = kernel.world().functions[&at(CARD)].clone();
    assert_eq!(fun.driver.as_deref(), Some("vfio-pci"), "and stays where it is");
    kernel.change(|world| {
        let fun = world.functions.get_mut(&at(CARD)).unwrap();
        (fun.lost, fun.lost_by_reset) = (false, false);
    });
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(devices.withheld(&all(&kernel)), BTreeMap::new());
    assert_eq!(kernel.world().functions[&at(CARD)].driver.as_deref(), Some("amdgpu"));
    let happened: Vec<&str> = devices.notices().iter().map(|notice| notice.what.as_str()).collect();
    assert_eq!(happened, ["CardQuarantined", "CardReturned"]);
}

#[test]
fn a_card_is_not_offered_for_what_foreign_things_take() {
    // A plain virtual function that somebody bound is a share that is taken.
    let Case { kernel: functions, .. } = cases().remove(3);
    let folder = tempfile::tempdir().unwrap();
    let devices = begin(&functions, folder.path());
    let state = devices.states(&all(&functions), &ForeignDomains::default()).remove(&at(CARD)).unwrap();
    let taken: Vec<(&str, &str)> =
        state.taken.iter().map(|share| (share.id.as_str(), share.type_name.as_str())).collect();
    assert_eq!((taken, state.not_whole), (vec![("0000:41:00.1", "2VF")], None));
    // With a companion that somebody bound the card is not to be had whole.
    let sound = Fun { class: "040300", ..bound(None) };
    let card = Fun::new(("10de", "26b9"), Some("nvidia"), 41);
    let companion = kernel(vec![(CARD, card), ("0000:41:00.1", sound)]);
    let folder = tempfile::tempdir().unwrap();
    let devices = begin(&companion, folder.path());
    let state = devices.states(&all(&companion), &ForeignDomains::default()).remove(&at(CARD)).unwrap();
    assert!(state.not_whole.unwrap().starts_with("0000:41:00.1, which would go along"));
    assert_eq!(state.foreign[0].device, "0000:41:00.1");
    // One with a group of its own is in nobody's way.
    let mut apart = all(&companion);
    apart.cards[0].iommu_group =
        serde_json::from_value(serde_json::json!({"id": 41, "viable": true})).unwrap();
    let state = devices.states(&apart, &ForeignDomains::default()).remove(&at(CARD)).unwrap();
    assert_eq!((state.not_whole, state.foreign), (None, vec![]));
}

/// Another function with somebody's vGPU, and a node of each that is opened.
const OTHER: &str = "0000:41:00.6";

fn two_vgpus() -> Arc<FakeKernel> {
    let Case { kernel, .. } = cases().remove(0);
    kernel.change(|world| world.functions.get_mut(&at(OTHER)).unwrap().vgpu = Some((1153, None, None)));
    kernel
}

fn vfio_node(kernel: &FakeKernel, function: &str) -> String {
    kernel.state.lock().unwrap().vfio_node(at(function))
}

/// As a daemon noted it that took it over.
fn note(devices: &Devices, name: &str, adopted: &Adopted) {
    let noted = devices.engine.note(|journal| {
        journal.handed.push(name.into());
        journal.cards.entry(at(CARD)).or_default().adopted.push(adopted.clone());
    });
    noted.unwrap();
}

fn vgpu(function: &str) -> Adopted {
    Adopted::Vgpu { function: at(function), id: 1153 }
}

#[test]
fn what_is_done_is_not_meant_again_while_something_else_on_the_card_waits() {
    let (kernel, folder) = (two_vgpus(), tempfile::tempdir().unwrap());
    let (before, node) = (kernel.world(), vfio_node(&kernel, OTHER));
    let devices = begin(&kernel, folder.path());
    note(&devices, VF, &vgpu(VF));
    note(&devices, OTHER, &vgpu(OTHER));
    kernel.open(&node, Some(7));
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(kernel.written(), ["41:00.4/nvidia/current_vgpu_type = 0"]);
    let said = hand_over(&devices, &kernel, Some(&format!("{VF},{OTHER}")));
    assert_eq!(said.len(), 1, "{said:?}");
    let waits = "0000:41:00.6: it was taken over, and is unmade once nobody uses it: 0000:41:00.6 is open";
    assert!(said[0].starts_with(waits), "{said:?}");
    // Made by hand again, it is its maker's.
    kernel.change(|world| *world = before.clone());
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(kernel.written(), Vec::<String>::new());
    kernel.open(&node, None);
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(kernel.written(), ["41:00.6/nvidia/current_vgpu_type = 0"]);
    assert_eq!(kernel.world().functions[&at(VF)], before.functions[&at(VF)]);
}

#[test]
fn a_name_that_is_taken_away_gives_back_what_is_not_begun() {
    let (kernel, folder) = (two_vgpus(), tempfile::tempdir().unwrap());
    let (before, node) = (kernel.world(), vfio_node(&kernel, VF));
    let devices = begin(&kernel, folder.path());
    note(&devices, VF, &vgpu(VF));
    kernel.open(&node, Some(7));
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(hand_over(&devices, &kernel, None), [""; 0]);
    kernel.open(&node, None);
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!((kernel.written(), kernel.world()), (vec![], before));
    assert!(foreign(&devices, &kernel).contains_key(VF), "it is its maker's again");
    // One that was reset goes on.
    let Case { kernel, device, .. } = cases().remove(3);
    let (folder, node) = (tempfile::tempdir().unwrap(), vfio_node(&kernel, device));
    let devices = begin(&kernel, folder.path());
    note(&devices, device, &Adopted::Function { function: at(device), cleaned: true });
    kernel.open(&node, Some(7));
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(hand_over(&devices, &kernel, None).len(), 1, "it is told as long as it waits");
    kernel.open(&node, None);
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(kernel.written(), ["41:00.1/driver_override =", "41:00.1/driver/unbind = 0000:41:00.1"]);
}

#[test]
fn a_gpu_instance_that_may_be_in_use_stays() {
    let Case { kernel, device, .. } = cases().remove(2);
    let folder = tempfile::tempdir().unwrap();
    let devices = begin(&kernel, folder.path());
    // Nobody tells on which instance a mediated device stands.
    let theirs = FakeMdev { parent: at(CARD), type_id: "nvidia-474".into(), params: String::new() };
    kernel.change(|world| _ = world.mdevs.insert(UUID.into(), theirs));
    let said = hand_over(&devices, &kernel, Some(device));
    let words =
        format!("{device}: it is in use: the mediated device {UUID} may stand on it; hand that over first");
    assert_eq!(said, [words]);
    kernel.change(|world| world.mdevs.clear());
    // Idle compute instances would be gone before the driver refuses the one that is used.
    kernel.change(|world| {
        world.functions.get_mut(&at(CARD)).unwrap().instances[0].compute_instances = 2;
    });
    kernel.open("195:41", Some(7));
    let said = hand_over(&devices, &kernel, Some(device));
    assert_eq!(said, ["MIG-5a1b: 0000:41:00.0 is in use: process 7 of the host has it open"]);
    assert_eq!(kernel.written(), Vec::<String>::new());
    kernel.open("195:41", None);
    assert_eq!(hand_over(&devices, &kernel, Some(device)), [""; 0]);
    assert_eq!(kernel.written(), ["nvml 41:00.0 = no gi 3"]);
}

#[test]
fn a_gpu_instance_that_came_to_be_used_waits_and_is_told() {
    let Case { kernel, device, .. } = cases().remove(2);
    let folder = tempfile::tempdir().unwrap();
    let devices = begin(&kernel, folder.path());
    let place = OurInstance { profile: 47, start: 6 };
    note(&devices, device, &Adopted::GpuInstance(place));
    // Also where it is noted among gpudesk's own.
    let noted = devices.engine.note(|journal| {
        journal.cards.get_mut(&at(CARD)).unwrap().gpu_instances.push(place);
    });
    noted.unwrap();
    let on_it = |vgpu| kernel.change(|world| world.functions.get_mut(&at(VF)).unwrap().vgpu = Some(vgpu));
    on_it((900, None, Some(3)));
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(kernel.written(), Vec::<String>::new());
    let said = hand_over(&devices, &kernel, Some(device));
    let words = "the GPU instance at 6 of 0000:41:00.0: it was taken over, and is unmade once nobody uses it: GPU \
                 instance 3 of 0000:41:00.0 (the vGPU on 0000:41:00.4 stands on it) is in use";
    assert_eq!(said, [words]);
    on_it((0, None, None));
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(kernel.written(), ["nvml 41:00.0 = no gi 3"]);
    assert_eq!(hand_over(&devices, &kernel, Some(device)), [""; 0]);
}

#[test]
fn a_card_is_not_taken_from_under_its_virtual_functions() {
    let Case { kernel, .. } = cases().remove(3);
    kernel.change(|world| {
        let card = world.functions.get_mut(&at(CARD)).unwrap();
        (card.driver, card.reserved) = (Some("vfio-pci".into()), Some("vfio-pci".into()));
    });
    let folder = tempfile::tempdir().unwrap();
    let devices = begin(&kernel, folder.path());
    let said = hand_over(&devices, &kernel, Some(CARD));
    assert!(said[0].contains("2 virtual functions of 0000:41:00.0 are switched on"), "{said:?}");
    let spec = format!("devices: [{{name: a, selector: {{pciAddress: '{CARD}'}}, mode: Host}}]");
    let spec: GpuNodeSpec = serde_yaml::from_str(&spec).unwrap();
    settle(&devices, &spec);
    assert_eq!(kernel.written(), Vec::<String>::new());
    kernel.change(|world| world.functions.get_mut(&at(CARD)).unwrap().vfs.clear());
    settle(&devices, &spec);
    let given =
        ["41:00.0/driver_override =", "41:00.0/driver/unbind = 0000:41:00.0", "drivers_probe = 0000:41:00.0"];
    assert_eq!(kernel.written(), given);
}

#[test]
fn each_name_of_a_card_is_tried_again_whatever_the_others_wait_for() {
    let (kernel, folder) = (two_vgpus(), tempfile::tempdir().unwrap());
    let devices = begin(&kernel, folder.path());
    kernel.open(&vfio_node(&kernel, VF), Some(7));
    kernel.open(&vfio_node(&kernel, OTHER), Some(8));
    let both = format!("{VF},{OTHER}");
    let first = "0000:41:00.4: 0000:41:00.4 is in use: process 7 of the host has it open";
    let second = "0000:41:00.6: 0000:41:00.6 is in use: process 8 of the host has it open";
    assert_eq!(hand_over(&devices, &kernel, Some(&both)), [first, second]);
    kernel.open(&vfio_node(&kernel, OTHER), None);
    assert_eq!(hand_over(&devices, &kernel, Some(&both)), [first]);
    assert_eq!(kernel.written(), ["41:00.6/nvidia/current_vgpu_type = 0"]);
}

#[test]
fn nothing_is_taken_over_while_libvirt_does_not_answer() {
    let Case { kernel, device, .. } = cases().remove(0);
    let folder = tempfile::tempdir().unwrap();
    let devices = begin(&kernel, folder.path());
    let domains = ForeignDomains { unseen: Some("silence".into()), ..ForeignDomains::default() };
    let words =
        "0000:41:00.4: libvirt does not tell whether a domain has it, so it is not taken over: silence";
    for _ in 0..2 {
        assert_eq!(devices.adopt(Some(device), &all(&kernel), &domains), [words]);
        settle(&devices, &GpuNodeSpec::default());
    }
    assert_eq!(kernel.written(), Vec::<String>::new());
    assert_eq!(devices.engine.journal().unwrap().handed, [""; 0]);
    assert_eq!(hand_over(&devices, &kernel, Some(device)), [""; 0], "once it answers");
}
