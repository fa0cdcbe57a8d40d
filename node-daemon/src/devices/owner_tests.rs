//! Cards that their owner keeps: no write and no call, and nothing is taken from who has one already.

use gpudesk_crds::{GpuNodeSpec, types::ShareMode};

use super::{
    fake_kernel::{Fun, at},
    scenarios::{CARD, Scenario, kernel, scenarios, share},
    settings_tests::spec,
    tests::{facts, settle, shares, start},
};
use crate::host::gpu_driver::{GpuDriver, GpuError};

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

/// Whatever the daemon is asked for, in every mode and over a restart.
#[test]
fn no_write_and_no_call_is_made_on_a_card_that_is_not_managed_or_kept_for_its_host() {
    for rule in ["management: Unmanaged", "management: Unmanaged, mode: Host", "mode: Host"] {
        for Scenario { name, kernel, wanted, .. } in scenarios() {
            let folder = tempfile::tempdir().unwrap();
            let (before, spec) = (kernel.world(), spec(rule));
            for _ in 0..2 {
                let devices = start(&kernel, folder.path());
                settle(&devices, &spec);
                assert!(devices.create(&wanted).is_err(), "{name}, {rule}");
                devices.destroy(&wanted.key).unwrap();
                let domains = crate::foreign_domains::ForeignDomains::default();
                devices.adopt(Some(CARD), &facts(&kernel), &domains);
                settle(&devices, &spec);
                devices.withheld(&facts(&kernel));
                devices.states(&facts(&kernel), &domains);
                devices.figures();
                assert_eq!(shares(&devices), 0, "{name}, {rule}");
            }
            assert_eq!((kernel.written(), kernel.world()), (vec![], before), "{name}, {rule}");
        }
    }
}

/// A rule that comes while a desktop has a share takes nothing from it, and what was changed for it still goes back with it.
#[test]
fn a_rule_that_comes_later_waits_for_the_desktop() {
    for rule in ["management: Unmanaged", "mode: Host"] {
        for Scenario { name, kernel, wanted, made, unmade, .. } in scenarios() {
            let folder = tempfile::tempdir().unwrap();
            let (before, spec) = (kernel.world(), spec(rule));
            start(&kernel, folder.path()).create(&wanted).unwrap();
            assert_eq!(kernel.written(), made, "{name}, {rule}");
            let devices = start(&kernel, folder.path());
            settle(&devices, &spec);
            assert_eq!((kernel.written(), shares(&devices)), (vec![], 1), "{name}, {rule}");
            devices.destroy(&wanted.key).unwrap();
            assert_eq!(
                (kernel.written(), kernel.world()),
                (unmade.iter().map(|line| (*line).to_owned()).collect(), before),
                "{name}, {rule}"
            );
        }
    }
}
