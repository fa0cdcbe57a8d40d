//! How the owner of a host wants a card while desktops have vGPUs of it, set and put back.

use std::{path::Path, sync::Arc};

use gpudesk_crds::{GpuNodeSpec, gpu_node::VgpuScheduler, types::ShareMode};

use super::{
    engine::Devices,
    fake_kernel::{FakeKernel, Fun, World, at},
    scenarios::{CARD, Scenario, kernel, scenarios, share},
    tests::{settle, start},
};
use crate::host::gpu_driver::{GpuDriver, WantedInstance};

/// The spec of a node with a rule for the card.
pub(super) fn spec(rule: &str) -> GpuNodeSpec {
    serde_yaml::from_str(&format!("devices: [{{name: a, selector: {{pciAddress: '{CARD}'}}, {rule}}}]"))
        .unwrap()
}

/// A daemon that was told of the rule of its card.
pub(super) fn start_with(kernel: &Arc<FakeKernel>, folder: &Path, spec: &GpuNodeSpec) -> Devices {
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
    killed_anywhere(&spec, &host, &|card| {
        assert_eq!(
            (card.persistence, card.milliwatts, card.clocks),
            (Some(true), Some(250_000), Some((600, 1500)))
        );
    });
}

/// Kills the daemon at each point of making a share under a rule, and of taking it back: it is made as the rule has it,
/// which `check` tells by the card, and all is put back.
pub(super) fn killed_anywhere(
    spec: &GpuNodeSpec,
    host: &dyn Fn() -> (Arc<FakeKernel>, WantedInstance),
    check: &dyn Fn(&Fun),
) {
    for ending in [false, true] {
        for points in 1.. {
            let (kernel, wanted) = host();
            let (before, folder) = (kernel.world(), tempfile::tempdir().unwrap());
            let killed = start_with(&kernel, folder.path(), spec);
            if ending {
                killed.create(&wanted).unwrap();
            }
            killed.engine.fuse.set(points);
            let _ = if ending { killed.destroy(&wanted.key) } else { killed.create(&wanted).map(drop) };
            if !killed.engine.fuse.is_blown() {
                assert!(points > 10);
                break;
            }
            let devices = start_with(&kernel, folder.path(), spec);
            settle(&devices, spec);
            if !ending {
                devices.create(&wanted).unwrap();
                check(&kernel.world().functions[&at(CARD)]);
            }
            devices.destroy(&wanted.key).unwrap();
            settle(&devices, spec);
            assert_eq!(kernel.world(), before, "killed at {points} of {ending}");
            let journal = devices.engine.journal().unwrap();
            assert!(journal.cards.values().all(|card| card.changes.is_empty()), "{journal:?}");
        }
    }
}

#[test]
fn the_scheduler_of_a_rule_is_set_before_the_first_vgpu_and_put_back_after_the_last() {
    let equal = spec("vgpuScheduler: EqualShare");
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
        let killed = start_with(&kernel, folder.path(), &equal);
        if points > 0 {
            killed.engine.fuse.set(points);
        }
        let _ = killed.create(&wanted);
        if points > 0 && !killed.engine.fuse.is_blown() {
            assert!(points > 6);
            break;
        }
        let devices = start_with(&kernel, folder.path(), &equal);
        settle(&devices, &equal);
        devices.create(&wanted).unwrap();
        assert_eq!(is(&kernel), Some(VgpuScheduler::EqualShare), "killed at {points}");
        // Another rule holds once the card was without vGPUs.
        let best = spec("vgpuScheduler: BestEffort");
        let devices = start_with(&kernel, folder.path(), &best);
        settle(&devices, &best);
        devices.create(&wanted).unwrap();
        assert_eq!(is(&kernel), Some(VgpuScheduler::EqualShare), "killed at {points}");
        devices.destroy(&wanted.key).unwrap();
        settle(&devices, &best);
        assert_eq!(kernel.world(), before, "killed at {points}");
    }
    // The driver sets it on a card without vGPUs alone, and one is there that somebody made.
    let (kernel, wanted) = host();
    kernel.change(|world| {
        let carriers = world.functions.values_mut().filter(|function| function.vgpu.is_some());
        carriers.last().unwrap().vgpu = Some((1155, None, None));
    });
    let folder = tempfile::tempdir().unwrap();
    let refused = start_with(&kernel, folder.path(), &equal).create(&wanted).unwrap_err().to_string();
    assert!(refused.contains("has vgpuScheduler EqualShare, it is BestEffort"), "{refused}");
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

/// A card with a region of 256 MiB to 32 GiB, and a rule that wants it so large.
fn resizable(mib: i64, change: impl FnOnce(&mut Fun)) -> (Arc<FakeKernel>, GpuNodeSpec) {
    let sizes = Some((0xff << 8, 256));
    let mut fun = Fun { resizable: sizes, ..Fun::new(("1002", "744c"), Some("amdgpu"), 41) };
    change(&mut fun);
    (kernel(vec![(CARD, fun)]), spec(&format!("resizableBarMiB: {mib}")))
}

#[test]
fn a_memory_region_is_resized_between_two_drivers_and_put_back_wherever_the_daemon_is_killed() {
    let wanted = share(ShareMode::Passthrough, "Passthrough", None, None);
    let size = |kernel: &FakeKernel| kernel.world().functions[&at(CARD)].resizable.unwrap().1;
    for driver in [Some("amdgpu"), None] {
        let host = || resizable(32768, |fun| fun.driver = driver.map(Into::into));
        let (kernel, spec) = host();
        let (before, folder) = (kernel.world(), tempfile::tempdir().unwrap());
        let devices = start_with(&kernel, folder.path(), &spec);
        let made = devices.create(&wanted).unwrap();
        assert_eq!((made.bar_mib, size(&kernel)), (Some(32768), 32768));
        let written = kernel.written();
        let at_position = written.iter().position(|write| write == "41:00.0/resource0_resize = 15").unwrap();
        assert_eq!(
            written[at_position + 1],
            "drivers_probe = 0000:41:00.0",
            "just before the driver for guests"
        );
        devices.destroy(&wanted.key).unwrap();
        assert!(kernel.written().contains(&"41:00.0/resource0_resize = 8".to_owned()));
        assert_eq!(kernel.world(), before);
        for ending in [false, true] {
            for points in 1.. {
                let (kernel, spec) = host();
                let folder = tempfile::tempdir().unwrap();
                let killed = start_with(&kernel, folder.path(), &spec);
                if ending {
                    killed.create(&wanted).unwrap();
                }
                killed.engine.fuse.set(points);
                let result =
                    if ending { killed.destroy(&wanted.key) } else { killed.create(&wanted).map(drop) };
                if !killed.engine.fuse.is_blown() {
                    result.unwrap();
                    break;
                }
                let again = start_with(&kernel, folder.path(), &spec);
                settle(&again, &spec);
                if !ending {
                    again.create(&wanted).unwrap();
                    assert_eq!(size(&kernel), 32768, "killed at {points}");
                }
                again.destroy(&wanted.key).unwrap();
                settle(&again, &spec);
                assert_eq!(kernel.world(), before, "killed at {points}, {ending}");
            }
        }
    }
}

/// What is different about a card.
type Change = fn(&mut Fun);

#[test]
fn a_size_that_cannot_be_leaves_the_card_as_it_was() {
    let wanted = share(ShareMode::Passthrough, "Passthrough", None, None);
    let cases: [(i64, Change, &str); 3] = [
        (300, |_| {}, "has resizableBarMiB 300, and the card takes 256, 512, 1024, "),
        (512, |fun| fun.resizable = None, "has resizableBarMiB 512, and no memory region"),
        (32768, |fun| fun.room = 16384, "the region has 256 MiB: the bridge above the card has no room"),
    ];
    for (mib, change, words) in cases {
        let (kernel, spec) = resizable(mib, change);
        let (before, folder) = (kernel.world(), tempfile::tempdir().unwrap());
        let devices = start_with(&kernel, folder.path(), &spec);
        let error = devices.create(&wanted).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!((kernel.world(), super::tests::shares(&devices)), (before, 0));
    }
}

#[test]
fn a_size_that_somebody_else_set_stays_and_one_that_the_kernel_keeps_holds_up_nobody() {
    let wanted = share(ShareMode::Passthrough, "Passthrough", None, None);
    let set = |kernel: &FakeKernel, change: fn(&mut Fun)| {
        kernel.change(|world| change(world.functions.get_mut(&at(CARD)).unwrap()));
    };
    let changes: [(Change, i64); 2] =
        [(|fun| fun.resizable = Some((0xff << 8, 512)), 512), (|fun| fun.room = 128, 32768)];
    for (change, left) in changes {
        let (kernel, spec) = resizable(32768, |_| {});
        let folder = tempfile::tempdir().unwrap();
        let devices = start_with(&kernel, folder.path(), &spec);
        devices.create(&wanted).unwrap();
        set(&kernel, change);
        devices.destroy(&wanted.key).unwrap();
        let fun = kernel.world().functions[&at(CARD)].clone();
        assert_eq!((fun.resizable.unwrap().1, fun.driver.as_deref()), (left, Some("amdgpu")));
    }
}
