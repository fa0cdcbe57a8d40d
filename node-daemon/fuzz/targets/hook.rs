//! What a discovery hook printed, and its joining with what was found.
#![no_main]

use gpudesk_inventory::{hook, topology::HostFacts};

libfuzzer_sys::fuzz_target!(|output: &[u8]| {
    let Ok(answer) = hook::parse(output) else { return };
    let mut facts = HostFacts::default();
    hook::merge(&mut facts, &answer);
    assert!(facts.cards.len() <= 64);
    // What was found stays what it is when the same is said again.
    let once = facts.clone();
    hook::merge(&mut facts, &answer);
    assert_eq!(once.cards.len(), facts.cards.len());
});
