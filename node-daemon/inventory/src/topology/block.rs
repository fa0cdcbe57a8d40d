//! Block devices: names of NVMe namespaces, and who uses them.

/// Most mounts and swap areas taken of a list.
const ENTRIES: usize = 1 << 16;

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether this is a controller: `nvme0`.
pub fn is_controller(name: &str) -> bool {
    name.strip_prefix("nvme").is_some_and(digits)
}

/// Whether this is a namespace: `nvme0n1`. A path to one (`nvme0c1n1`) is not.
pub fn is_namespace(name: &str) -> bool {
    let parts = name.strip_prefix("nvme").and_then(|rest| rest.split_once('n'));
    parts.is_some_and(|(instance, namespace)| digits(instance) && digits(namespace))
}

/// The namespace at the end of a hidden path: `nvme0c1n1` leads to `nvme0n1`.
pub fn head_of_path(name: &str) -> Option<String> {
    let (subsystem, rest) = name.strip_prefix("nvme")?.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    (digits(subsystem) && digits(controller) && digits(namespace))
        .then(|| format!("nvme{subsystem}n{namespace}"))
}

/// Whether a block device is `disk` or a partition of it: `nvme0n1` and `nvme0n1p2`, not `nvme0n10`.
pub fn is_part_of(disk: &str, device: &str) -> bool {
    device
        .strip_prefix(disk)
        .is_some_and(|rest| rest.is_empty() || rest.strip_prefix('p').is_some_and(digits))
}

/// Something that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What, as `mount` was told: `/dev/nvme0n1p2`.
    pub device: String,
    /// Major and minor number of the device: `259:2`.
    pub number: Option<String>,
    /// Where.
    pub place: String,
}

/// Reads `/proc/PID/mounts`: device and place in the first two words of a line.
pub fn mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let mut words = line.split_whitespace();
        let (device, place) = (words.next()?, words.next()?);
        Some(Mount { device: device.into(), number: None, place: place.into() })
    };
    text.lines().filter_map(mount).take(ENTRIES).collect()
}

/// Reads `/proc/PID/mountinfo`, where the number of the device is told, and the device itself after a
/// hyphen. Source: the manual page `proc_pid_mountinfo(5)`.
pub fn mountinfo(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let mut words = head.split_whitespace().skip(2);
        let (number, _, place) = (words.next()?, words.next()?, words.next()?);
        let device = tail.split_whitespace().nth(1)?;
        Some(Mount { device: device.into(), number: Some(number.into()), place: place.into() })
    };
    text.lines().filter_map(mount).take(ENTRIES).collect()
}

/// Reads `/proc/swaps`: the device or file in the first word of each line after the first.
pub fn swaps(text: &str) -> Vec<String> {
    text.lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .take(ENTRIES)
        .map(Into::into)
        .collect()
}

/// What udev found on a device (`/run/udev/data/b259:0`): a file system, or a part of a volume or set.
pub fn signature(text: &str) -> Option<String> {
    let value = |key: &str| {
        text.lines().find_map(|line| line.strip_prefix("E:")?.strip_prefix(key)?.strip_prefix('='))
    };
    let kind: String = value("ID_FS_TYPE").filter(|kind| !kind.is_empty())?.chars().take(32).collect();
    let label = value("ID_FS_LABEL").filter(|label| !label.is_empty());
    Some(match label {
        Some(label) => {
            format!("{kind} ({})", label.chars().filter(|c| !c.is_control()).take(64).collect::<String>())
        }
        None => kind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_is_not_a_namespace_and_leads_to_one() {
        assert!(is_namespace("nvme0n1") && is_namespace("nvme12n34"));
        for name in ["nvme0", "nvme0n1p1", "nvme0c0n1", "nvmen1", "nvme0n", "ng0n1", "nvme-subsys0"] {
            assert!(!is_namespace(name), "{name}");
        }
        assert_eq!(head_of_path("nvme3c12n1").as_deref(), Some("nvme3n1"));
        assert_eq!(head_of_path("nvme3n1"), None);
        assert!(is_controller("nvme3") && !is_controller("nvme3n1") && !is_controller("nvme"));
    }

    #[test]
    fn a_disk_with_a_longer_number_is_another_one() {
        assert!(is_part_of("nvme0n1", "nvme0n1") && is_part_of("nvme0n1", "nvme0n1p12"));
        assert!(!is_part_of("nvme0n1", "nvme0n10") && !is_part_of("nvme0n1", "nvme0n1p"));
    }

    #[test]
    fn mounts_swaps_and_signatures_are_read() {
        let text = "36 35 259:2 / / rw,noatime shared:1 - ext4 /dev/root rw\nbroken\n";
        let root = Mount { device: "/dev/root".into(), number: Some("259:2".into()), place: "/".into() };
        assert_eq!(mountinfo(text), [root]);
        assert_eq!(mounts("/dev/nvme0n1p2 / ext4 rw 0 0\n")[0].place, "/");
        let text = "Filename\t\t\t\tType\t\tSize\n/dev/nvme0n1p3 partition\t8388604\t0\t-2\n";
        assert_eq!(swaps(text), ["/dev/nvme0n1p3"]);
        let text = "S:disk/by-id/x\nE:ID_FS_TYPE=LVM2_member\nE:ID_FS_LABEL=\n";
        assert_eq!(signature(text).as_deref(), Some("LVM2_member"));
        assert_eq!(signature("E:ID_MODEL=X\n"), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "([nvmecp0-9:/ -]|\\PC|\n){0,200}") {
            let _ = (is_namespace(&text), is_part_of("nvme0n1", &text), mounts(&text), mountinfo(&text));
            let _ = (swaps(&text), signature(&text));
            if let Some(head) = head_of_path(&text) {
                prop_assert!(is_namespace(&head));
            }
        }
    }
}
