//! PCI functions: classes, ids, memory regions, the way to the root.

use gpudesk_crds::{gpu_node_status::Bar, types::PciAddress};

/// Whether a class code names what gpudesk shows: a VGA controller, a 3D controller, another display
/// controller or a processing accelerator.
///
/// `class` is the kernel's text, `0x030200`: class, subclass, programming interface.
pub fn is_card(class: &str) -> bool {
    matches!(hex(class, 6).map(|class| class >> 8), Some(0x0300 | 0x0302 | 0x0380 | 0x1200))
}

/// A vendor or device id as the API writes it: `0x10de` becomes `10de`.
pub fn id(text: &str) -> Option<String> {
    hex(text, 4).map(|id| format!("{id:04x}"))
}

/// A NUMA cell; the kernel's -1 means "not known", which is not cell 0.
pub fn numa_cell(text: &str) -> Option<i32> {
    text.trim().parse().ok().filter(|cell: &i32| (0..1024).contains(cell))
}

/// Reset methods in the kernel's order: `flr bus`.
pub fn reset_methods(text: &str) -> Vec<String> {
    text.split_whitespace().take(8).map(|method| method.chars().take(32).collect()).collect()
}

/// The memory regions in a function's `resource` file: one line per region, `start end flags`.
///
/// Regions of no size, of the I/O space, and those after the sixth (ROM, bridge windows) are left out.
pub fn bars(resource: &str) -> Vec<Bar> {
    const MEMORY: u64 = 0x200;
    let bar = |(index, line): (usize, &str)| {
        let mut words = line
            .split_whitespace()
            .map(|word| word.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok()));
        let (start, end, flags) = (words.next()??, words.next()??, words.next()??);
        if flags & MEMORY == 0 || end <= start {
            return None;
        }
        let size_bytes = i64::try_from((end - start).checked_add(1)?).ok()?;
        Some(Bar { index: i32::try_from(index).ok()?, size_bytes })
    };
    resource.lines().enumerate().take(6).filter_map(bar).collect()
}

/// The bridges above a function, root first, from where its sysfs link points:
/// `../../../devices/pci0000:00/0000:00:01.0/0000:01:00.0`.
pub fn path(link: &str) -> Vec<PciAddress> {
    let mut addresses: Vec<PciAddress> =
        link.split('/').filter_map(|part| part.parse().ok()).take(17).collect();
    addresses.pop();
    addresses
}

fn hex(text: &str, most_digits: usize) -> Option<u32> {
    let digits = text.trim().strip_prefix("0x")?;
    (!digits.is_empty() && digits.len() <= most_digits && digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn display_controllers_and_accelerators_are_cards() {
        for class in ["0x030000", "0x030200", "0x038000", "0x120000\n"] {
            assert!(is_card(class), "{class}");
        }
        for class in ["0x020000", "0x040300", "0x060400", "030000", "", "0x"] {
            assert!(!is_card(class), "{class}");
        }
    }

    #[test]
    fn a_cell_of_minus_one_is_not_cell_zero() {
        assert_eq!(numa_cell("-1\n"), None);
        assert_eq!(numa_cell("0\n"), Some(0));
    }

    #[test]
    fn regions_keep_their_numbers_and_io_is_left_out() {
        let resource = "0x0000000094000000 0x0000000094ffffff 0x0000000000040200\n\
                        0x0000010000000000 0x0000011fffffffff 0x000000000014220c\n\
                        0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                        0x0000012000000000 0x0000012001ffffff 0x000000000014220c\n\
                        0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                        0x0000000000003000 0x000000000000307f 0x0000000000040101\n\
                        0x0000000095000000 0x000000009507ffff 0x0000000000046200\n";
        let bars = bars(resource);
        let found: Vec<_> = bars.iter().map(|bar| (bar.index, bar.size_bytes)).collect();
        assert_eq!(found, [(0, 16 << 20), (1, 128 << 30), (3, 32 << 20)]);
    }

    #[test]
    fn bridges_are_named_from_the_root() {
        let link = "../../../devices/pci0000:00/0000:00:01.1/0000:01:00.0/0000:02:08.0/0000:41:00.0";
        let path: Vec<String> = path(link).iter().map(ToString::to_string).collect();
        assert_eq!(path, ["0000:00:01.1", "0000:01:00.0", "0000:02:08.0"]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(0x[0-9a-f]{0,20}[ \n]|\\PC){0,40}") {
            let _ = (is_card(&text), id(&text), numa_cell(&text), reset_methods(&text), bars(&text), path(&text));
        }
    }
}
