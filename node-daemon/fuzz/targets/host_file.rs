//! Host files.
#![no_main]

use gpudesk_inventory::simulated::HostFile;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(file) = HostFile::parse(text) else { return };
    if let Ok(host) = file.host("fuzz") {
        assert!(host.facts.cards.len() <= 64 && host.facts.numa_cells.len() <= 8);
    }
});
