//! NVIDIA's vendor-specific VFIO: what the `nvidia` folder of a virtual function says.
//!
//! Source: NVIDIA vGPU User Guide, "Creating an NVIDIA vGPU on a Linux with KVM hypervisor"; samples of
//! real hosts differ in whether `creatable_vgpu_types` has a header.

use std::collections::BTreeMap;

use super::kernel_text;

/// Most types taken of one list.
const TYPES: usize = 512;

/// The types that can be made on a function now, by number: `1155  : NVIDIA L40S-24Q`.
///
/// A header and lines that are no types are left out. The list shrinks as the functions beside it are
/// used: what is missing in it may still exist.
pub fn creatable_types(text: &str) -> BTreeMap<u32, String> {
    let entry = |line: &str| {
        let (id, name) = line.split_once(':')?;
        let name = name.trim();
        let id = id.trim().parse().ok().filter(|id| *id > 0)?;
        (!name.is_empty()).then(|| (id, name.chars().take(128).collect()))
    };
    text.lines().filter_map(entry).take(TYPES).collect()
}

/// The type that a function has now: `Some(None)` when it is free (0), `None` when the text says neither.
pub fn current_type(text: &str) -> Option<Option<u32>> {
    let id: u32 = kernel_text::number(text)?;
    Some((id != 0).then_some(id))
}

/// A number that the driver tells once a vGPU is there: `gpu_instance_id`, `placement_id`. It writes
/// the largest number, or nothing, where there is none.
pub fn number(text: &str) -> Option<i32> {
    kernel_text::number(text).filter(|id| (0..4096).contains(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_are_read_with_and_without_header() {
        let with = creatable_types("ID    : vGPU Name\n1155  : NVIDIA L40S-24Q\n1148  : NVIDIA L40S-1B\n");
        let without = creatable_types("1155 : NVIDIA L40S-24Q\n1148 : NVIDIA L40S-1B");
        assert_eq!(with, without);
        assert_eq!(with[&1155], "NVIDIA L40S-24Q");
        assert!(creatable_types("").is_empty());
        assert!(creatable_types("ID    : vGPU Name\n").is_empty());
    }

    #[test]
    fn a_free_function_is_not_an_unknown_one() {
        assert_eq!(current_type("0\n"), Some(None));
        assert_eq!(current_type("1155\n"), Some(Some(1155)));
        assert_eq!(current_type("\n"), None);
        assert_eq!(number("4294967295\n"), None);
        assert_eq!(number("3\n"), Some(3));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "([0-9: \nA-Z]|\\PC){0,300}") {
            let _ = (creatable_types(&text), current_type(&text), number(&text));
        }
    }
}
