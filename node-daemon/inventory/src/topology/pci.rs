//! PCI functions: classes, ids, memory regions, the way to the root.

use gpudesk_crds::{
    gpu_node_status::{Bar, DeviceKind, PcieLink, ResizableBar},
    types::PciAddress,
};

use super::kernel_text;

/// What gpudesk looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionKind {
    /// A VGA controller, a 3D controller, another display controller or a processing accelerator.
    Card,
    /// An Ethernet, InfiniBand or other network controller.
    NetworkCard,
    /// An NVMe drive.
    NvmeDrive,
    /// Something else.
    Other,
}

/// Class and subclass as the API writes them: `0x030200` becomes `0302`.
pub fn class(text: &str) -> Option<String> {
    hex(text, 6).map(|class| format!("{:04x}", class >> 8))
}

/// What a function of this class is. `class` is four hexadecimal digits.
pub fn kind(class: &str) -> FunctionKind {
    match class {
        "0300" | "0302" | "0380" | "1200" => FunctionKind::Card,
        "0200" | "0207" | "0280" => FunctionKind::NetworkCard,
        "0108" => FunctionKind::NvmeDrive,
        _ => FunctionKind::Other,
    }
}

/// Makers of GPUs: NVIDIA, AMD, Intel, Moore Threads.
const GPU_MAKERS: [&str; 4] = ["10de", "1002", "8086", "1ed5"];
/// Screens of servers among AMD's display controllers: Rage XL and ES1000 (`pci.ids`).
const SERVER_SCREENS: [&str; 3] = ["4752", "515e", "5969"];

/// What a function of kind [`FunctionKind::Card`] is. A class tells what it does, not what it is good for:
/// the screen of a management controller is a VGA controller as well.
pub fn card_kind(class: &str, vendor: &str, device: &str) -> DeviceKind {
    let is_makers = GPU_MAKERS.contains(&vendor);
    if class.starts_with("12") {
        // AMD's Instinct cards are of this class; of the others, Intel's NPUs and Gaudi.
        if matches!(vendor, "1002" | "10de") { DeviceKind::Gpu } else { DeviceKind::Accelerator }
    } else if is_makers && !(vendor == "1002" && SERVER_SCREENS.contains(&device)) {
        DeviceKind::Gpu
    } else {
        DeviceKind::Display
    }
}

/// A class in words, for messages.
pub fn class_words(class: &str) -> String {
    let words = match class {
        "0101" | "0105" | "0106" => "disk controller",
        "0104" => "RAID controller",
        "0107" => "SAS controller",
        "0108" => "NVMe drive",
        "0200" | "0207" | "0280" => "network card",
        "0300" | "0302" | "0380" => "display controller",
        "0403" => "sound device",
        "0600" => "host bridge",
        "0601" => "ISA bridge",
        "0604" => "PCI bridge",
        "0680" => "bridge or switch",
        "0c03" => "USB controller",
        "0c05" => "SMBus",
        "1200" => "accelerator",
        other => return format!("class {other}"),
    };
    words.into()
}

/// Ids and driver in a function's `uevent` file, where its other files are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uevent {
    /// Class and subclass.
    pub class: Option<String>,
    /// Vendor and device id.
    pub ids: Option<(String, String)>,
    /// Subsystem vendor and device id: `10de:1b1e`.
    pub subsystem: Option<String>,
    /// Driver.
    pub driver: Option<String>,
}

/// Reads `DRIVER=`, `PCI_CLASS=`, `PCI_ID=`, `PCI_SUBSYS_ID=`.
pub fn uevent(text: &str) -> Uevent {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let pair = |text: &str| {
        let (vendor, device) = text.trim().split_once(':')?;
        Some((id(&format!("0x{vendor}"))?, id(&format!("0x{device}"))?))
    };
    Uevent {
        class: value("PCI_CLASS").and_then(|text| class(&format!("0x{}", text.trim()))),
        ids: value("PCI_ID").and_then(pair),
        subsystem: value("PCI_SUBSYS_ID").and_then(pair).map(|(vendor, device)| format!("{vendor}:{device}")),
        driver: value("DRIVER").map(|driver| driver.trim().chars().take(64).collect()),
    }
}

/// Megatransfers per second in a speed as the kernel writes it: `16.0 GT/s PCIe`, `8 GT/s`.
pub fn speed(text: &str) -> Option<i32> {
    let (number, unit) = kernel_text::line(text).split_once(' ')?;
    if !unit.starts_with("GT/s") {
        return None;
    }
    let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
    let whole: i32 = whole.parse().ok().filter(|whole| (0..=1024).contains(whole))?;
    let tenths: i32 = tenths.get(..1)?.parse().ok()?;
    Some(whole * 1000 + tenths * 100)
}

/// Lanes; the kernel writes 0 for a function without link, and 63 or 255 for one that does not answer.
pub fn lanes(text: &str) -> Option<i32> {
    kernel_text::number(text).filter(|lanes| [1, 2, 4, 8, 12, 16, 32].contains(lanes))
}

/// A link of which anything is known.
pub fn link(
    width: Option<i32>,
    max_width: Option<i32>,
    speed: Option<i32>,
    max_speed: Option<i32>,
) -> Option<PcieLink> {
    let link = PcieLink { width, max_width, speed_mtps: speed, max_speed_mtps: max_speed };
    (link != PcieLink::default()).then_some(link)
}

/// The host bridge in where a function's sysfs link points: `pci0000:40`.
pub fn root_complex(link: &str) -> Option<String> {
    let root = link.split('/').find_map(|part| {
        let (domain, bus) = part.strip_prefix("pci")?.split_once(':')?;
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        ((4..=8).contains(&domain.len()) && bus.len() == 2 && digits(domain) && digits(bus)).then_some(part)
    });
    root.map(Into::into)
}

/// A vendor or device id as the API writes it: `0x10de` becomes `10de`.
pub fn id(text: &str) -> Option<String> {
    hex(text, 4).map(|id| format!("{id:04x}"))
}

/// A NUMA cell; the kernel's -1 means "not known", which is not cell 0.
pub fn numa_cell(text: &str) -> Option<i32> {
    kernel_text::number(text).filter(|cell: &i32| *cell >= 0)
}

/// Reset methods in the kernel's order: `flr bus`.
pub fn reset_methods(text: &str) -> Vec<String> {
    kernel_text::line(text)
        .split_whitespace()
        .take(8)
        .map(|method| method.chars().take(32).collect())
        .collect()
}

/// The memory regions in a function's `resource` file: one line per region, `start end flags`.
///
/// Regions of no size, of the I/O space, and those after the sixth (ROM, bridge windows) are left out.
/// One that the kernel could not place begins at 0 or has its flag "unset".
pub fn bars(resource: &str) -> Vec<Bar> {
    const MEMORY: u64 = 0x200;
    const UNSET: u64 = 0x2000_0000;
    let bar = |(index, line): (usize, &str)| {
        let mut words = line
            .split_whitespace()
            .map(|word| word.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok()));
        let (start, end, flags) = (words.next()??, words.next()??, words.next()??);
        if flags & MEMORY == 0 || end <= start {
            return None;
        }
        let size_bytes = i64::try_from((end - start).checked_add(1)?).ok()?;
        let unassigned = start == 0 || flags & UNSET != 0;
        Some(Bar { index: i32::try_from(index).ok()?, size_bytes, unassigned })
    };
    resource.lines().enumerate().take(6).filter_map(bar).collect()
}

/// The sizes in MiB that a region can have, as `resourceN_resize` tells them: a bit for each power of two, the lowest for
/// 1 MiB. Those beyond 32 TiB are left out.
pub fn resizable_sizes(text: &str) -> Vec<i64> {
    let text = text.trim();
    let bits = u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).unwrap_or(0);
    (0..26).filter(|bit| bits >> bit & 1 == 1).map(|bit| 1 << bit).collect()
}

/// The region that is resized, of those that can be: the one that can be largest.
pub fn resizable_bar(regions: impl Iterator<Item = (i32, Vec<i64>)>) -> Option<ResizableBar> {
    let can = regions.filter(|(_, sizes)| sizes.len() > 1);
    let largest = can.max_by_key(|(index, sizes)| (sizes.last().copied(), -index));
    largest.map(|(index, sizes_mib)| ResizableBar { index, sizes_mib })
}

/// The address of a virtual function: that of its physical function and `offset + stride * index`, counted
/// over bus, device and function. `None` beyond the last bus.
///
/// Source: PCI Express Base Specification, SR-IOV, "VF Routing ID".
pub fn virtual_address(own: PciAddress, offset: u32, stride: u32, index: u32) -> Option<PciAddress> {
    own.further(offset.checked_add(stride.checked_mul(index)?)?)
}

/// Bytes of the header of a function's configuration.
pub const HEADER: usize = 64;

/// Adds the regions that the kernel gave up: it shows them empty, while the function's own register
/// still has the type bits of a memory region and no address. Their size is not known: 0.
///
/// Source: PCI Local Bus Specification 3.0, 6.2.5. A region of 32 bits without type bits cannot be told
/// from none.
pub fn add_given_up(bars: &mut Vec<Bar>, resource: &str, header: &[u8]) {
    // The registers are those of a device only where the header is of type 0.
    if header.len() < HEADER || header[0x0e] & 0x7f != 0 {
        return;
    }
    let mut upper_half = false;
    for (index, line) in resource.lines().enumerate().take(6) {
        if std::mem::take(&mut upper_half) {
            continue;
        }
        let register = |index: usize| {
            let at = 0x10 + 4 * index;
            header
                .get(at..at + 4)
                .map_or(0, |bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        let value = register(index);
        let is_wide = value & 0b111 == 0b100;
        upper_half = is_wide;
        let is_empty =
            line.split_whitespace().all(|word| word.trim_start_matches("0x").bytes().all(|b| b == b'0'));
        let has_type = value & 1 == 0 && value & 0xf != 0;
        let has_address = value & !0xf != 0 || is_wide && index < 5 && register(index + 1) != 0;
        if is_empty && has_type && !has_address {
            bars.push(Bar { index: i32::try_from(index).unwrap_or(0), size_bytes: 0, unassigned: true });
        }
    }
    bars.sort_by_key(|bar| bar.index);
}

/// Whether one of the six registers shows no region and is not the upper half of one of 64 bits: there
/// may be a region that the kernel gave up, whatever became of the others.
pub fn may_lack_a_region(resource: &str) -> bool {
    const WIDE: u64 = 0x10_0000;
    let flags =
        |line: &str| u64::from_str_radix(line.split_whitespace().nth(2)?.strip_prefix("0x")?, 16).ok();
    let mut upper_half = false;
    for line in resource.lines().take(6) {
        let flags = flags(line).unwrap_or(0);
        if !std::mem::take(&mut upper_half) && flags == 0 {
            return true;
        }
        upper_half = flags & WIDE != 0;
    }
    false
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
    let digits = kernel_text::line(text).strip_prefix("0x")?;
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
        for text in ["0x030000", "0x030200", "0x038000", "0x120000\n"] {
            assert_eq!(kind(&class(text).unwrap()), FunctionKind::Card, "{text}");
        }
        assert_eq!(kind(&class("0x020000").unwrap()), FunctionKind::NetworkCard);
        assert_eq!(kind(&class("0x010802").unwrap()), FunctionKind::NvmeDrive);
        assert_eq!(kind(&class("0x040300").unwrap()), FunctionKind::Other);
        for text in ["030000", "", "0x", "0x1234567"] {
            assert_eq!(class(text), None, "{text}");
        }
    }

    #[test]
    fn a_region_without_address_is_told() {
        let resource = "0x0000000000000000 0x0000001fffffffff 0x000000000014220c\n\
                        0x00000000f0000000 0x00000000f0ffffff 0x0000000020040200\n\
                        0x00000000f1000000 0x00000000f1ffffff 0x0000000000040200\n";
        let unassigned: Vec<bool> = bars(resource).iter().map(|bar| bar.unassigned).collect();
        assert_eq!(unassigned, [true, true, false]);
    }

    #[test]
    fn a_region_that_the_kernel_gave_up_is_found_in_the_header() {
        let empty = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        let small = "0x00000000f0000000 0x00000000f0ffffff 0x0000000000040200\n";
        let resource = format!("{small}{empty}{empty}{empty}{empty}{empty}");
        assert!(may_lack_a_region(&resource));
        let mut header = [0_u8; HEADER];
        header[0x10..0x14].copy_from_slice(&0xf000_0000_u32.to_le_bytes());
        header[0x18..0x1c].copy_from_slice(&0x0000_000c_u32.to_le_bytes());
        let mut found = bars(&resource);
        add_given_up(&mut found, &resource, &header);
        let told: Vec<_> = found.iter().map(|bar| (bar.index, bar.size_bytes, bar.unassigned)).collect();
        assert_eq!(told, [(0, 16 << 20, false), (2, 0, true)]);
        header[0x0e] = 1;
        let mut bridge = bars(&resource);
        add_given_up(&mut bridge, &resource, &header);
        assert_eq!(bridge.len(), 1, "a bridge has other registers");
    }

    #[test]
    fn virtual_functions_are_counted_from_their_card() {
        let card: PciAddress = "0000:08:00.0".parse().unwrap();
        let at = |index| virtual_address(card, 4, 1, index).map(|address| address.to_string());
        assert_eq!(at(0).as_deref(), Some("0000:08:00.4"));
        assert_eq!(at(4).as_deref(), Some("0000:08:01.0"));
        assert_eq!(at(252).as_deref(), Some("0000:09:00.0"));
        assert_eq!(virtual_address(card, u32::MAX, 1, 0), None);
        assert_eq!(virtual_address(card, 0, 1, 65_535), None);
    }

    #[test]
    fn links_and_roots_are_read_as_the_kernel_writes_them() {
        assert_eq!(speed("16.0 GT/s PCIe\n"), Some(16_000));
        assert_eq!(speed("2.5 GT/s\n"), Some(2500));
        assert_eq!(speed("8 GT/s"), Some(8000));
        assert_eq!(speed("Unknown\n"), None);
        assert_eq!((lanes("16\n"), lanes("0"), lanes("63"), lanes("255")), (Some(16), None, None, None));
        let link = "../../../devices/pci0000:40/0000:40:01.1/0000:41:00.0";
        assert_eq!(root_complex(link).as_deref(), Some("pci0000:40"));
        assert_eq!(root_complex("../../../devices/virtual/x"), None);
    }

    #[test]
    fn a_uevent_stands_for_missing_files() {
        let found = uevent(
            "DRIVER=nvidia\nPCI_CLASS=30200\nPCI_ID=10DE:26B9\nPCI_SUBSYS_ID=10DE:1851\nPCI_SLOT_NAME=0000:41:00.0\n",
        );
        assert_eq!(found.class.as_deref(), Some("0302"));
        assert_eq!(found.ids, Some(("10de".into(), "26b9".into())));
        assert_eq!(
            (found.subsystem.as_deref(), found.driver.as_deref()),
            (Some("10de:1851"), Some("nvidia"))
        );
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

    #[test]
    fn sizes_of_a_region_are_powers_of_two_and_the_largest_region_is_resized() {
        // Linux writes sixteen digits; a GeForce and an Arc.
        assert_eq!(resizable_sizes("0000000000007fc0\n")[..2], [64, 128]);
        assert_eq!(resizable_sizes("0000000000003f00\n"), [256, 512, 1024, 2048, 4096, 8192]);
        let regions = [(0, vec![256, 512, 1024]), (2, vec![2, 4]), (4, vec![1 << 20])];
        assert_eq!(
            resizable_bar(regions.into_iter()).map(|bar| bar.index),
            Some(0),
            "and not one of one size"
        );
        assert_eq!(resizable_bar([(0, vec![]), (1, vec![256])].into_iter()), None);
    }

    proptest! {
        #[test]
        fn any_sizes_are_read_as_they_were_written(bits in any::<u64>(), other in "\\PC{0,40}") {
            let sizes = resizable_sizes(&format!("{bits:016x}\n"));
            let sum: i64 = sizes.iter().sum();
            prop_assert_eq!(u64::try_from(sum).unwrap(), bits & 0x3ff_ffff);
            prop_assert!(sizes.is_sorted() && sizes.len() <= 26);
            prop_assert!(resizable_sizes(&other).len() <= 26);
        }

        #[test]
        fn no_text_panics(text in "(0x[0-9a-f]{0,20}[ \n]|\\PC){0,40}") {
            let _ = (class(&text), id(&text), numa_cell(&text), reset_methods(&text), bars(&text), path(&text));
            let _ = (uevent(&text), speed(&text), lanes(&text), root_complex(&text), class_words(&text));
            let mut found = bars(&text);
            add_given_up(&mut found, &text, text.as_bytes());
            let _ = may_lack_a_region(&text);
            prop_assert!(found.len() <= 12);
        }
    }
}
