//! Names of vGPU types.
#![no_main]

use gpudesk_inventory::topology::vgpu_type;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = vgpu_type::short(text);
    if let Some(name) = vgpu_type::parse(text) {
        assert!(name.framebuffer_mib > 0 && name.name.len() <= 64);
        assert!(vgpu_type::placement(&name, text).driver_id.is_none_or(|id| id.chars().count() <= 64));
    }
});
