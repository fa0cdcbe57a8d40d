//! Memory and hugepages.
#![no_main]

use gpudesk_inventory::topology::memory;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let found = memory::meminfo_kib(text, "MemTotal");
    assert!(found.is_none_or(|kib| kib >= 0));
    let _ = (memory::hugepage_size(text), memory::count(text));
});
