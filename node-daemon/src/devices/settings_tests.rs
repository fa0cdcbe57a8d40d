//! How the owner of a host wants a card while desktops have vGPUs of it, set and put back.

use std::{path::Path, sync::Arc};

use gpudesk_crds::{GpuNodeSpec, gpu_node::VgpuScheduler};

use super::{
    engine::Devices,
    fake_kernel::{FakeKernel, World, at},
    scenarios::{CARD, Scenario, scenarios},
    tests::{settle, start},
};
use crate::host::gpu_driver::GpuDriver;

/// The spec of a node with a rule for the card.
pub(super) fn spec(rule: &str) -> GpuNodeSpec {
    serde_yaml::from_str(&format!("devices: [{{name: a, selector: {{pciAddress: '{CARD}'}}, {rule}}}]"))
        .unwrap()
}

/// A daemon that was told of the rule of its card.
fn start_with(kernel: &Arc<FakeKernel>, folder: &Path, spec: &GpuNodeSpec) -> Devices {
    let devices = start(kernel, folder);
    super::engine::lock(&devices.engine.seen).spec = Some(spec.clone());
    devices
}

#[test]
fn settings_of_a_rule_hold_while_desktops_have_vgpus_wherever_the_daemon_is_killed() {
    let spec = spec("persistenceMode: true, powerLimitWatts: 250, lockClocksMHz: {min: 600, max: 1500}");
    let host = || {
        let Scenario { kernel, wanted, .. } = scenarios().remove(3);
        kernel.change(|world| {
            let card = world.functions.get_mut(&at(CARD)).unwrap();
            (card.persistence, card.milliwatts) = (Some(false), Some(350_000));
        });
        (kernel, wanted)
    };
    let set = [
        "nvml 41:00.0 = persistence true",
        "nvml 41:00.0 = power 250000",
        "nvml 41:00.0 = clocks Some((600, 1500))",
    ];
    let (kernel, wanted) = host();
    let (before, folder) = (kernel.world(), tempfile::tempdir().unwrap());
    let devices = start_with(&kernel, folder.path(), &spec);
    devices.create(&wanted).unwrap();
    assert_eq!(kernel.written()[3..], set, "once the share is made");
    devices.create(&wanted).unwrap();
    let again = start_with(&kernel, folder.path(), &spec);
    settle(&again, &spec);
    again.create(&wanted).unwrap();
    assert_eq!(kernel.written(), Vec::<String>::new(), "once");
    again.destroy(&wanted.key).unwrap();
    let back = ["nvml 41:00.0 = power 350000", "nvml 41:00.0 = clocks None"];
    assert_eq!(kernel.written()[1..3], back);
    assert_eq!(kernel.world(), before);
    for ending in [false, true] {
        for points in 1.. {
            let (kernel, wanted) = host();
            let (before, folder) = (kernel.world(), tempfile::tempdir().unwrap());
            let killed = start_with(&kernel, folder.path(), &spec);
            if ending {
                killed.create(&wanted).unwrap();
            }
            killed.engine.fuse.set(points);
            let _ = if ending { killed.destroy(&wanted.key) } else { killed.create(&wanted).map(drop) };
            if !killed.engine.fuse.is_blown() {
                assert!(points > 10);
                break;
            }
            let devices = start_with(&kernel, folder.path(), &spec);
            settle(&devices, &spec);
            if !ending {
                devices.create(&wanted).unwrap();
                let card = kernel.world().functions[&at(CARD)].clone();
                let is = (card.persistence, card.milliwatts, card.clocks);
                assert_eq!(is, (Some(true), Some(250_000), Some((600, 1500))), "killed at {points}");
            }
            devices.destroy(&wanted.key).unwrap();
            settle(&devices, &spec);
            assert_eq!(kernel.world(), before, "killed at {points} of {ending}");
            let journal = devices.engine.journal().unwrap();
            assert!(journal.cards.values().all(|card| card.changes.is_empty()), "{journal:?}");
        }
    }
}

#[test]
fn the_scheduler_of_a_rule_is_set_before_the_first_vgpu_and_put_back_after_the_last() {
    let fixed = spec("vgpuScheduler: FixedShare");
    let host = || {
        let Scenario { kernel, wanted, .. } = scenarios().remove(3);
        let of_card = |world: &mut World| {
            world.functions.get_mut(&at(CARD)).unwrap().scheduler = Some(VgpuScheduler::BestEffort);
        };
        kernel.change(of_card);
        (kernel, wanted)
    };
    let is = |kernel: &FakeKernel| kernel.world().functions[&at(CARD)].scheduler;
    for points in 0.. {
        let (kernel, wanted) = host();
        let (before, folder) = (kernel.world(), tempfile::tempdir().unwrap());
        let killed = start_with(&kernel, folder.path(), &fixed);
        if points > 0 {
            killed.engine.fuse.set(points);
        }
        let _ = killed.create(&wanted);
        if points > 0 && !killed.engine.fuse.is_blown() {
            assert!(points > 6);
            break;
        }
        let devices = start_with(&kernel, folder.path(), &fixed);
        settle(&devices, &fixed);
        devices.create(&wanted).unwrap();
        assert_eq!(is(&kernel), Some(VgpuScheduler::FixedShare), "killed at {points}");
        // Another rule holds once the card was without vGPUs.
        let equal = spec("vgpuScheduler: EqualShare");
        let devices = start_with(&kernel, folder.path(), &equal);
        settle(&devices, &equal);
        devices.create(&wanted).unwrap();
        assert_eq!(is(&kernel), Some(VgpuScheduler::FixedShare), "killed at {points}");
        devices.destroy(&wanted.key).unwrap();
        settle(&devices, &equal);
        assert_eq!(kernel.world(), before, "killed at {points}");
    }
    // The driver sets it on a card without vGPUs alone, and one is there that somebody made.
    let (kernel, wanted) = host();
    kernel.change(|world| {
        let carriers = world.functions.values_mut().filter(|function| function.vgpu.is_some());
        carriers.last().unwrap().vgpu = Some((1155, None, None));
    });
    let folder = tempfile::tempdir().unwrap();
    let refused = start_with(&kernel, folder.path(), &fixed).create(&wanted).unwrap_err().to_string();
    assert!(refused.contains("has vgpuScheduler FixedShare, it is BestEffort"), "{refused}");
    assert_eq!(kernel.written(), Vec::<String>::new());
}

#[test]
fn a_setting_that_nobody_can_be_asked_about_is_put_back_once_somebody_can() {
    let spec = spec("powerLimitWatts: 250, lockClocksMHz: {min: 600, max: 1500}");
    let Scenario { kernel, wanted, .. } = scenarios().remove(3);
    let tells = |persistence, milliwatts| {
        kernel.change(|world| {
            let card = world.functions.get_mut(&at(CARD)).unwrap();
            (card.persistence, card.milliwatts) = (persistence, milliwatts);
        });
    };
    tells(Some(false), Some(350_000));
    let (before, folder) = (kernel.world(), tempfile::tempdir().unwrap());
    let devices = start_with(&kernel, folder.path(), &spec);
    devices.create(&wanted).unwrap();
    tells(None, None);
    devices.destroy(&wanted.key).unwrap();
    tells(Some(false), Some(250_000));
    let devices = start_with(&kernel, folder.path(), &spec);
    settle(&devices, &spec);
    assert_eq!(kernel.world(), before);
}

#[test]
fn a_setting_that_the_card_does_not_take_makes_no_share_of_it() {
    let Scenario { kernel, wanted, .. } = scenarios().remove(3);
    let before = kernel.world();
    let folder = tempfile::tempdir().unwrap();
    let refused = |rule: &str| {
        let devices = start_with(&kernel, folder.path(), &spec(rule));
        devices.create(&wanted).unwrap_err().to_string()
    };
    assert!(
        refused("powerLimitWatts: 250")
            .contains("powerLimitWatts of 0000:41:00.0 takes NVIDIA's library NVML")
    );
    assert!(
        refused("persistenceMode: true").contains("persistenceMode or lockClocksMHz of 0000:41:00.0 takes")
    );
    assert_eq!((kernel.written(), kernel.world()), (vec![], before));
    kernel.change(|world| world.functions.get_mut(&at(CARD)).unwrap().milliwatts = Some(350_000));
    let said = refused("powerLimitWatts: 500");
    assert!(
        said.contains("for 0000:41:00.0 has powerLimitWatts 500, and the card takes 100 to 350"),
        "{said}"
    );
    assert_eq!(kernel.written(), Vec::<String>::new());
}
