//! PCI functions: classes, ids, regions, links, events.
#![no_main]

use gpudesk_inventory::topology::pci;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = (
        pci::class(text),
        pci::class_words(text),
        pci::id(text),
        pci::numa_cell(text),
        pci::root_complex(text),
    );
    let _ = (pci::uevent(text), pci::speed(text), pci::lanes(text));
    assert!(pci::path(text).len() <= 16 && pci::reset_methods(text).len() <= 8);
    let bars = pci::bars(text);
    assert!(bars.len() <= 6 && bars.iter().all(|bar| bar.size_bytes > 0));
});
