//! What a card tells on its memory before its first user and after resets.

use std::sync::Arc;

use gpudesk_crds::{GpuNodeSpec, gpu_node_status::ResetCheck, types::ShareMode};

use super::{
    fake_kernel::{FakeKernel, Fun, at},
    scenarios::{CARD, kernel, share},
    tests::{settle, start, state},
};
use crate::host::gpu_driver::{GpuDriver, WantedInstance};

fn whole() -> WantedInstance {
    share(ShareMode::Passthrough, "Passthrough", None, None)
}

fn card(change: impl FnOnce(&mut Fun)) -> Arc<FakeKernel> {
    let mut fun = Fun::new(("1002", "744c"), Some("amdgpu"), 41);
    change(&mut fun);
    kernel(vec![(CARD, fun)])
}

#[test]
fn a_card_that_tells_its_ids_and_nothing_else_is_not_back() {
    let kernel = card(|fun| fun.registers_after_reset = Some(u32::MAX));
    let folder = tempfile::tempdir().unwrap();
    start(&kernel, folder.path()).create(&whole()).unwrap();
    // What was told before the first user outlives the daemon.
    let devices = start(&kernel, folder.path());
    devices.destroy(&whole().key).unwrap();
    let told = state(&devices, &kernel).last_reset.unwrap();
    assert_eq!((told.succeeded, told.verified), (false, vec![ResetCheck::Ids]));
    let message = told.message.unwrap();
    assert!(message.contains("its registers are all ones, which told 0x194000a1"), "{message}");
    assert_eq!(devices.figures().quarantined, 1);
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!(devices.figures().quarantined, 1, "another reset comes to the same");
    kernel.change(|world| {
        let fun = world.functions.get_mut(&at(CARD)).unwrap();
        fun.registers_after_reset = Some(7);
    });
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!((devices.figures().quarantined, devices.notices()[1].what.as_str()), (0, "CardReturned"));
    let told = state(&devices, &kernel).last_reset.unwrap();
    assert_eq!(told.verified, [ResetCheck::Ids, ResetCheck::Registers], "another word is one as well");
    assert_eq!(kernel.world().functions[&at(CARD)].driver.as_deref(), Some("amdgpu"));
}

#[test]
fn a_card_of_which_nothing_can_be_told_is_not_held_back() {
    // One begins with ones in good health; of the other nothing can be read: where its memory is off that would be an
    // error on the bus, which the kernel of these tests does not forgive.
    for kernel in [card(|fun| fun.registers = u32::MAX), card(|fun| fun.decodes = false)] {
        let folder = tempfile::tempdir().unwrap();
        let devices = start(&kernel, folder.path());
        for _ in 0..2 {
            devices.create(&whole()).unwrap();
            devices.destroy(&whole().key).unwrap();
            let told = state(&devices, &kernel).last_reset.unwrap();
            assert_eq!((told.succeeded, told.verified), (true, vec![ResetCheck::Ids]));
            assert_eq!(devices.figures().quarantined, 0);
        }
    }
}

#[test]
fn what_was_told_before_the_first_user_is_not_what_a_later_one_left() {
    let kernel = card(|_| {});
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&kernel, folder.path());
    devices.create(&whole()).unwrap();
    devices.destroy(&whole().key).unwrap();
    // Broken between two users, and not seen since.
    kernel.change(|world| {
        let fun = world.functions.get_mut(&at(CARD)).unwrap();
        fun.registers = u32::MAX;
    });
    devices.create(&whole()).unwrap();
    devices.destroy(&whole().key).unwrap();
    assert!(!state(&devices, &kernel).last_reset.unwrap().succeeded);
    let ours = devices.engine.journal().unwrap().after_reboot("another");
    assert!(ours.cards.values().all(|card| card.registers.is_empty()), "a host that starts anew starts anew");
}

#[test]
fn registers_are_read_while_nobody_has_the_card_open() {
    let kernel = card(|_| {});
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&kernel, folder.path());
    devices.create(&whole()).unwrap();
    // A desktop runs, and what was told of the card is not known: made by a daemon of before.
    kernel.open("511:41", Some(7));
    devices
        .engine
        .note(|journal| journal.cards.values_mut().for_each(|card| card.registers.clear()))
        .unwrap();
    kernel.written();
    devices.create(&whole()).unwrap();
    assert_eq!(kernel.written(), Vec::<String>::new(), "nothing is done to a card that is in use");
    kernel.open("511:41", None);
    devices.create(&whole()).unwrap();
    let journal = devices.engine.journal().unwrap();
    assert_eq!(journal.cards[&at(CARD)].registers[&at(CARD)], Some(0x1940_00a1));
}
