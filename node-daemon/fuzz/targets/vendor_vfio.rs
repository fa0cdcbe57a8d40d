//! NVIDIA's vendor-specific VFIO.
#![no_main]

use gpudesk_inventory::topology::vendor_vfio;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let types = vendor_vfio::creatable_types(text);
    assert!(types.len() <= 512 && types.values().all(|name| name.chars().count() <= 128));
    let _ = (vendor_vfio::current_type(text), vendor_vfio::number(text));
});
