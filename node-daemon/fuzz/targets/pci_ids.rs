//! The list of product names.
#![no_main]

use gpudesk_inventory::topology::pci_ids;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let wanted = ["26b9", "2bb5", "1eb8"].map(|device| ("10de".to_owned(), device.to_owned())).into();
    let found = pci_ids::products(text, &wanted);
    assert!(found.values().all(|name| name.chars().count() <= 128));
});
