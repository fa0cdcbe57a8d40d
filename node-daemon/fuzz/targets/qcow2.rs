//! The beginning of an image that a guest may have written.
//!
//! What is accepted as alone names no other file in the two ways that QEMU knows.
#![no_main]

use std::path::Path;

#[path = "../../src/qcow2.rs"]
#[allow(dead_code)]
mod qcow2;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = qcow2::Header::parse(bytes) else { return };
    let golden = Path::new("/images/debian-12.qcow2");
    match (header.check_alone(), header.check_overlay_of(golden)) {
        (Ok(()), Ok(())) => panic!("alone and an overlay"),
        (Ok(()), Err(_)) => {
            assert_eq!(bytes[8..20], [0; 12], "the place of a backing file's name");
            assert!(bytes[7] == 2 || bytes[79] & 4 == 0, "the feature of an external data file");
        }
        (Err(_), Ok(())) => {
            let offset = usize::from(bytes[14]) << 8 | usize::from(bytes[15]);
            let name = golden.as_os_str().as_encoded_bytes();
            assert!(bytes[8..14] != [0; 6] || bytes[offset..].starts_with(name), "another backing file");
        }
        (Err(_), Err(_)) => {}
    }
});
