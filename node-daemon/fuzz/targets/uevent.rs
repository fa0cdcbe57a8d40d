//! Messages of the kernel.
#![no_main]

use gpudesk_inventory::topology::uevent;

libfuzzer_sys::fuzz_target!(|message: &[u8]| {
    let _ = uevent::change(message);
});
