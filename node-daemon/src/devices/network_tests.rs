//! Functions of network cards: what a card was told of one before is what it is told after, whatever is killed in between.

use std::sync::Arc;

use proptest::{option, prelude::*};

use super::{
    fake_kernel::{FakeKernel, at},
    network::VfSettings,
    scenarios::{CARD, FUNCTION, function_of_network, network},
    tests::{facts, owner, settle, shares, start},
};
use crate::host::gpu_driver::{GpuDriver, What};

fn settings(kernel: &FakeKernel) -> VfSettings {
    kernel.world().functions[&at(FUNCTION)].network.clone().unwrap()
}

#[test]
fn a_function_has_the_address_and_the_vlan_of_its_desktop_and_no_trust() {
    let (kernel, folder) = (network(), tempfile::tempdir().unwrap());
    let (before, world) = (settings(&kernel), kernel.world());
    let devices = start(&kernel, folder.path());
    devices.create(&function_of_network()).unwrap();
    let given = settings(&kernel);
    assert_eq!((given.mac.as_str(), given.vlan, given.qos), ("02:00:00:00:00:07", 20, 0));
    assert_eq!((given.spoof_check, given.trust), (Some(true), Some(false)));
    assert_eq!((given.rates, given.link_state), (before.rates, before.link_state), "its owner's");
    let other = kernel.world().functions[&at("0000:41:10.4")].clone();
    assert_eq!(other, world.functions[&at("0000:41:10.4")], "no other function is told anything");
    devices.destroy(&function_of_network().key).unwrap();
    assert_eq!(settings(&kernel), before);
    assert_eq!(kernel.world(), world);
}

#[test]
fn without_a_vlan_it_keeps_that_of_the_host() {
    let (kernel, folder) = (network(), tempfile::tempdir().unwrap());
    let devices = start(&kernel, folder.path());
    let mut wanted = function_of_network();
    if let What::Network(wish) = &mut wanted.what {
        wish.vlan = None;
    }
    devices.create(&wanted).unwrap();
    assert_eq!((settings(&kernel).vlan, settings(&kernel).qos), (7, 3));
}

#[test]
fn what_cannot_be_so_is_refused_by_name_and_nothing_is_changed() {
    let on = |kernel: &Arc<FakeKernel>| {
        let folder = tempfile::tempdir().unwrap();
        let devices = start(kernel, folder.path());
        let why = devices.create(&function_of_network()).unwrap_err().to_string();
        assert_eq!(kernel.written(), Vec::<String>::new(), "{why}");
        assert_eq!(shares(&devices), 0);
        why
    };
    let kernel = network();
    kernel.change(|world| world.functions.get_mut(&at(CARD)).unwrap().is_switchdev = true);
    assert!(on(&kernel).contains("is in mode switchdev"));
    let kernel = network();
    kernel.change(|world| {
        world.functions.get_mut(&at(FUNCTION)).unwrap().network_user = Some("a container may have it");
    });
    assert!(on(&kernel).contains("a container may have it"), "since the host was looked at");
    let kernel = network();
    kernel.state.lock().unwrap().no_networks = Some("set nodeDaemon.networkFunctions".into());
    assert!(on(&kernel).contains("set nodeDaemon.networkFunctions"));
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&kernel, folder.path());
    let withheld = devices.withheld(&facts(&kernel));
    assert!(withheld[&at(FUNCTION)].contains("nodeDaemon.networkFunctions"));
    let kernel = network();
    kernel.change(|world| {
        let fun = world.functions.get_mut(&at(FUNCTION)).unwrap();
        (fun.driver, fun.reserved) = (Some("vfio-pci".into()), Some("vfio-pci".into()));
    });
    assert!(on(&kernel).contains("not by gpudesk"), "somebody else gave it away");
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&network(), folder.path());
    let mut spec = owner();
    spec.physical_networks.clear();
    super::engine::lock(&devices.engine.seen).spec = Some(spec);
    let why = devices.create(&function_of_network()).unwrap_err().to_string();
    assert!(why.contains("spec.physicalNetworks"), "{why}");
}

#[test]
fn after_a_reboot_it_waits_for_its_function_and_has_its_address_again() {
    let (kernel, folder) = (network(), tempfile::tempdir().unwrap());
    let world = kernel.world();
    let devices = start(&kernel, folder.path());
    devices.create(&function_of_network()).unwrap();
    // The card has no functions before the host switches them on.
    kernel.change(|world| {
        world.boot = "later".into();
        world.functions.get_mut(&at(CARD)).unwrap().vfs.clear();
        world.functions.retain(|address, _| *address != at(FUNCTION) && *address != at("0000:41:10.4"));
    });
    let devices = start(&kernel, folder.path());
    settle(&devices, &owner());
    assert!(devices.instances().unwrap()[0].pending);
    kernel.change(|now| {
        now.functions.clone_from(&world.functions);
    });
    settle(&devices, &owner());
    assert!(!devices.instances().unwrap()[0].pending);
    assert_eq!(settings(&kernel).mac, "02:00:00:00:00:07");
    devices.destroy(&function_of_network().key).unwrap();
    assert_eq!(kernel.world().functions, world.functions);
}

fn told() -> impl Strategy<Value = VfSettings> {
    let tag = (0..4095_u32, 0..8_u32, prop_oneof![Just(0x8100_u16), Just(0x88a8_u16)]);
    let flags = (any::<bool>(), option::of(any::<bool>()), option::of(0..3_u32));
    let rates = option::of((0..100_u32, 0..10_000_u32));
    (any::<u8>(), tag, flags, rates, 1280..9001_u32).prop_map(
        |(last, (vlan, qos, protocol), (spoof_check, trust, link_state), rates, mtu)| VfSettings {
            mac: format!("0a:00:00:00:00:{last:02x}"),
            vlan,
            qos,
            protocol,
            spoof_check: Some(spoof_check),
            trust,
            link_state,
            rates,
            mtu: Some(mtu),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_held_before_holds_after(
        before in told(), vlan in option::of(1..4095_u32), killed in option::of(1..40_usize),
    ) {
        let (kernel, folder) = (network(), tempfile::tempdir().unwrap());
        kernel.change(|world| {
            world.functions.get_mut(&at(FUNCTION)).unwrap().network = Some(before);
        });
        let world = kernel.world();
        let mut wanted = function_of_network();
        if let What::Network(wish) = &mut wanted.what {
            wish.vlan = vlan;
        }
        let devices = start(&kernel, folder.path());
        if let Some(points) = killed {
            devices.engine.fuse.set(points);
        }
        let _ = devices.create(&wanted);
        let _ = devices.destroy(&wanted.key);
        let devices = start(&kernel, folder.path());
        settle(&devices, &owner());
        devices.destroy(&wanted.key).unwrap();
        settle(&devices, &owner());
        prop_assert_eq!(kernel.world(), world);
    }
}

#[test]
fn what_was_given_comes_back_after_no_more_is_given() {
    let (kernel, folder) = (network(), tempfile::tempdir().unwrap());
    let before = kernel.world();
    let devices = start(&kernel, folder.path());
    devices.create(&function_of_network()).unwrap();
    kernel.state.lock().unwrap().no_networks = Some("set nodeDaemon.networkFunctions".into());
    let devices = start(&kernel, folder.path());
    devices.destroy(&function_of_network().key).unwrap();
    assert_eq!(kernel.world(), before);
}
