//! Desktops that come and go, in every mode: what is written for each, against the fewest writes that could be, and who runs
//! beside them.

use std::{collections::BTreeSet, sync::Arc};

use gpudesk_crds::{
    GpuNodeSpec,
    gpu_node::VgpuScheduler,
    gpu_node_status::{CardUnits, Device, MigBackedType, Placement},
    types::{PciAddress, ShareMode, VgpuSeries},
};

use super::{
    fake_kernel::{FakeKernel, Fun, at},
    fewest::Way,
    plan::settings::Wish,
    scenarios::{CARD, kernel, scenarios, share, vendor},
    settings_tests::spec,
    tests::{settle, start},
};
use crate::host::gpu_driver::{GpuDriver, Handle, WantedInstance};

#[derive(Clone, Copy, Debug)]
enum Event {
    Comes(usize),
    Goes(usize),
}
use Event::{Comes, Goes};

/// A card, those who want a share of it, and their order.
struct Course {
    name: &'static str,
    kernel: Arc<FakeKernel>,
    wanted: Vec<WantedInstance>,
    events: Vec<Event>,
    placements: Vec<Placement>,
    spec: GpuNodeSpec,
}

fn course(
    name: &'static str,
    kernel: Arc<FakeKernel>,
    wanted: Vec<WantedInstance>,
    events: &[Event],
) -> Course {
    let key = |(number, mut wanted): (usize, WantedInstance)| {
        wanted.key.request = format!("r{number}");
        wanted
    };
    let wanted = wanted.into_iter().enumerate().map(key).collect();
    let (events, placements, spec) = (events.to_vec(), vec![], GpuNodeSpec::default());
    Course { name, kernel, wanted, events, placements, spec }
}

impl Course {
    fn offers(self, placements: Vec<Placement>) -> Self {
        Self { placements, ..self }
    }
}

fn vgpu(name: &str, gib: i64, most: i32, starts: &[i32]) -> Placement {
    Placement {
        size: i32::try_from(gib).unwrap(),
        starts: starts.to_vec(),
        ..Placement::new(name, ShareMode::Vgpu, gib * 1024, most)
    }
}

fn on_instances() -> Vec<Placement> {
    let kind = |name: &str, gib: i64, most| MigBackedType {
        type_name: name.into(),
        series: VgpuSeries::Q,
        framebuffer_mib: gib * 1024,
        max_per_instance: most,
    };
    vec![Placement {
        driver_id: Some("47".into()),
        size: 3,
        starts: vec![0, 3, 6, 9],
        vgpu_types: vec![kind("DC-1-24Q", 24, 1), kind("DC-1-12Q", 12, 2)],
        ..Placement::new("1g.24gb+gfx", ShareMode::Mig, 24576, 4)
    }]
}

/// One of NVIDIA's cards with everything off.
fn cold(mig: Option<bool>) -> Arc<FakeKernel> {
    let types = vec![(900, "DC-1-24Q", 24, 1), (902, "DC-1-12Q", 12, 2), (1153, "L40S-8Q", 8, 6)];
    let card = Fun {
        total: 2,
        mig,
        persistence: Some(true),
        types,
        ..Fun::new(("10de", "2bb5"), Some("nvidia"), 41)
    };
    kernel(vec![(CARD, card)])
}

fn courses() -> Vec<Course> {
    let host = |number: usize| scenarios().remove(number).kernel;
    let whole = || share(ShareMode::Passthrough, "Passthrough", None, None);
    let sliced = |name: &str, at: Option<i32>| share(ShareMode::Vgpu, name, at, None);
    let on = |at, name: &str| share(ShareMode::Mig, "1g.24gb+gfx", Some(at), Some(name));
    let function = || share(ShareMode::VirtualFunctions, "2VF", None, None);
    let eight = || vec![vgpu("L40S-8Q", 8, 6, &[0, 16, 24, 40]), vgpu("L40S-24Q", 24, 2, &[0, 24])];
    let t4 = || vec![vgpu("T4-2Q", 2, 8, &[]), vgpu("T4-4Q", 4, 4, &[])];
    let a2 = || vec![vgpu("A2-4Q", 4, 4, &[])];
    let two = || vec![Placement::new("2VF", ShareMode::VirtualFunctions, 1024, 2)];
    let twice = [Comes(0), Goes(0), Comes(0), Goes(0)];
    let settings = vendor(
        |card| {
            (card.persistence, card.milliwatts) = (Some(false), Some(350_000));
            card.scheduler = Some(VgpuScheduler::BestEffort);
        },
        0,
    );
    let rule = "persistenceMode: true, vgpuScheduler: FixedShare, powerLimitWatts: 250, lockClocksMHz: {min: 600, max: 1500}";
    vec![
        course("a whole card with its sound", host(0), vec![whole()], &twice),
        course("a whole card that no driver has", host(1), vec![whole()], &twice),
        course(
            "vGPUs of one size beside somebody else's",
            host(2),
            vec![sliced("L40S-8Q", None), sliced("L40S-8Q", None), sliced("L40S-8Q", None)],
            &[Comes(0), Comes(1), Goes(0), Comes(2), Goes(1), Goes(2)],
        )
        .offers(eight()),
        course(
            "vGPUs of several sizes",
            host(3),
            vec![sliced("L40S-8Q", Some(16)), sliced("L40S-24Q", Some(24)), sliced("L40S-8Q", Some(0))],
            &[Comes(0), Comes(1), Goes(0), Comes(2), Goes(1), Goes(2)],
        )
        .offers(eight()),
        course(
            "vGPUs on GPU instances of their own, with MIG and functions on",
            host(4),
            vec![on(3, "DC-1-24Q"), on(0, "DC-1-24Q"), on(6, "DC-1-24Q")],
            &[Comes(0), Comes(1), Goes(0), Comes(2), Comes(0), Goes(1), Goes(2), Goes(0)],
        )
        .offers(on_instances()),
        course(
            "vGPUs on shared GPU instances, and where the driver would put one on another",
            host(4),
            vec![on(0, "DC-1-12Q"), on(3, "DC-1-12Q"), on(0, "DC-1-12Q")],
            &[Comes(0), Comes(1), Comes(2), Goes(0), Goes(2), Comes(0), Goes(1), Goes(0)],
        )
        .offers(on_instances()),
        course(
            "vGPUs on GPU instances of a card with MIG and functions off",
            cold(Some(false)),
            vec![on(3, "DC-1-24Q"), on(0, "DC-1-24Q")],
            &[Comes(0), Comes(1), Goes(0), Goes(1), Comes(0), Goes(0)],
        )
        .offers(on_instances()),
        course(
            "vGPUs of a card with functions off",
            cold(None),
            vec![sliced("L40S-8Q", None), sliced("L40S-8Q", None)],
            &[Comes(0), Comes(1), Goes(0), Goes(1)],
        )
        .offers(eight()),
        course(
            "mediated devices on a card",
            host(5),
            vec![sliced("T4-4Q", None), sliced("T4-4Q", None), sliced("T4-2Q", None)],
            &[Comes(0), Comes(1), Goes(0), Comes(0), Goes(1), Goes(0), Comes(2), Goes(2)],
        )
        .offers(t4()),
        course(
            "a mediated device on a virtual function beside somebody else's",
            host(6),
            vec![sliced("A2-4Q", None)],
            &twice,
        )
        .offers(a2()),
        course(
            "virtual functions that are switched on",
            host(7),
            vec![function(), function()],
            &[Comes(0), Comes(1), Goes(0), Comes(0), Goes(1), Goes(0)],
        )
        .offers(two()),
        course("a virtual function beside one that somebody bound", host(8), vec![function()], &twice)
            .offers(two()),
        Course {
            spec: spec(rule),
            ..course(
                "vGPUs with all settings of a rule",
                settings,
                vec![sliced("L40S-8Q", None), sliced("L40S-8Q", None)],
                &[Comes(0), Comes(1), Goes(0), Goes(1)],
            )
            .offers(eight())
        },
    ]
}

/// The function or mediated device of each share but one.
fn running(devices: &super::Devices, but: &WantedInstance) -> BTreeSet<String> {
    let others = devices.instances().unwrap().into_iter().filter(|instance| instance.key != but.key);
    let names = others.map(|instance| match instance.handle {
        Handle::Function(function) => function.to_string(),
        Handle::Mdev(uuid) => uuid,
        Handle::NotYet => panic!("{instance:?}"),
    });
    names.collect()
}

/// Functions and mediated devices that somebody else had before.
fn foreign(kernel: &FakeKernel) -> BTreeSet<String> {
    let world = kernel.world();
    let used =
        |fun: &Fun| fun.vgpu.is_some_and(|vgpu| vgpu.0 != 0) || fun.driver.as_deref() == Some("vfio-pci");
    let functions =
        world.functions.iter().filter(|(_, fun)| used(fun)).map(|(address, _)| address.to_string());
    functions.chain(world.mdevs.keys().cloned()).collect()
}

#[test]
fn no_write_is_beyond_the_fewest_and_none_touches_who_runs_beside() {
    let (mut all, mut least_of_all) = (0, 0);
    for course in courses() {
        let Course { name, kernel, wanted, events, placements, spec } = course;
        let folder = tempfile::tempdir().unwrap();
        let (initial, others) = (kernel.world(), foreign(&kernel));
        let devices = start(&kernel, folder.path());
        {
            let mut seen = super::engine::lock(&devices.engine.seen);
            seen.spec = Some(spec.clone());
            let card = &mut seen.cards[0];
            card.units = card.units.or(Some(CardUnits::of(&placements)));
            card.placements = placements;
        }
        let rule = spec.rule_for(&Device::new(at(CARD), "10de", "0000"), std::iter::empty());
        let wish = rule.map(|rule| Wish::from(&rule.policy)).unwrap_or_default();
        let (mut here, mut taken, mut fewest) = (vec![], 0, 0);
        for event in events {
            let (Comes(number) | Goes(number)) = event;
            let one = &wanted[number];
            let mut running = running(&devices, one);
            let before = kernel.world();
            kernel.written();
            let coming = matches!(event, Comes(_));
            if coming {
                here.push(one);
                devices.create(one).unwrap_or_else(|error| panic!("{name}, {event:?}: {error}"));
            } else {
                here.retain(|other| other.key != one.key);
                devices.destroy(&one.key).unwrap_or_else(|error| panic!("{name}, {event:?}: {error}"));
            }
            settle(&devices, &spec);
            let (written, after) = (kernel.written(), kernel.world());
            for untouched in &running {
                let short = untouched.trim_start_matches("0000:");
                assert!(!written.iter().any(|line| line.contains(short)), "{name}, {event:?}: {written:?}");
                if let Ok(function) = untouched.parse::<PciAddress>() {
                    assert_eq!(after.functions[&function], before.functions[&function], "{name}, {event:?}");
                } else {
                    assert_eq!(after.mdevs[untouched], before.mdevs[untouched], "{name}, {event:?}");
                }
            }
            running.extend(others.iter().cloned());
            let (initial, before) = (&initial, &before);
            let way = Way { initial, before, wanted: here.clone(), wish, coming, running };
            assert!(way.is_there(&after), "{name}, {event:?}: {written:?} {after:#?}");
            let least = way.fewest();
            println!("{name}, {event:?}: {} writes, {least} at least", written.len());
            assert_eq!(written.len(), least, "{name}, {event:?}: {written:#?}");
            (taken, fewest) = (taken + written.len(), fewest + least);
        }
        (all, least_of_all) = (all + taken, least_of_all + fewest);
    }
    println!("{all} writes, {least_of_all} at least");
    assert!(all == least_of_all && all > 150, "{all}");
}
