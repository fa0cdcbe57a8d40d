//! Mediated devices: types, and which function carries a device.
#![no_main]

use gpudesk_inventory::topology::mdev::{self, MdevType};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let (head, rest) = text.split_once('|').unwrap_or((text, ""));
    let available = rest.len().try_into().ok();
    let found =
        MdevType { id: head.into(), name: Some(rest.into()), description: Some(text.into()), available };
    for functions in [None, Some(16)] {
        let placement = mdev::placement(&found, functions);
        assert!(placement.max_count >= 0 && placement.framebuffer_mib >= 0);
        assert!(placement.type_name.chars().count() <= 64);
        assert!(placement.available.is_none_or(|available| (0..=4096).contains(&available)));
    }
    let _ = mdev::parent(text);
});
