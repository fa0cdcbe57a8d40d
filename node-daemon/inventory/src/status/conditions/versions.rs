//! What libvirt and QEMU must be, and what older ones lack.
//!
//! Sources: libvirt's release notes and the documentation of its domain format; QEMU's change log;
//! OpenStack Nova's guide to virtual GPUs for the migration of vGPUs.

use std::fmt;

use crate::status::HypervisorVersions;

/// A version of three numbers. Reads leniently: `8.2.2 (Debian 1:8.2.2+ds-0ubuntu1)` is 8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u32, u32, u32);

impl Version {
    /// The first numbers with dots between them in the text.
    pub(super) fn read(text: &str) -> Option<Self> {
        let start = text.find(|c: char| c.is_ascii_digit())?;
        let text = &text[start..];
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut numbers = text[..end].split('.').map(|number| number.parse::<u32>().ok());
        let first = numbers.next().flatten()?;
        let mut next = || numbers.next().flatten().unwrap_or(0);
        Some(Self(first, next(), next()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The oldest libvirt that takes the domains as they are written: `<hyperv mode='custom'>`.
const LIBVIRT: Version = Version(8, 0, 0);
/// The oldest QEMU that runs them: `microvm` machines, and shared folders by virtiofs.
const QEMU: Version = Version(4, 2, 0);

/// What a desktop can have where libvirt and QEMU are new enough.
struct Feature {
    name: &'static str,
    libvirt: Version,
    qemu: Option<Version>,
}

const FEATURES: [Feature; 2] = [
    Feature { name: "live migration of vGPUs", libvirt: Version(8, 6, 0), qemu: Some(Version(8, 1, 0)) },
    Feature { name: "read-only shared folders", libvirt: Version(11, 0, 0), qemu: None },
];

/// The program that is too old to run desktops at all, with what it should be.
pub(super) fn too_old(versions: &HypervisorVersions) -> Option<String> {
    let programs =
        [("libvirt", Some(versions.libvirt.as_str()), LIBVIRT), ("QEMU", versions.qemu.as_deref(), QEMU)];
    programs.into_iter().find_map(|(program, text, minimum)| {
        let found = Version::read(text?)?;
        (found < minimum).then(|| {
            format!("{program} {found} is older than {minimum}, the oldest that runs desktops: install a newer {program}")
        })
    })
}

/// What desktops cannot have for the age of libvirt or QEMU, with what each needs.
pub(super) fn lacking(versions: &HypervisorVersions) -> Vec<String> {
    let libvirt = Version::read(&versions.libvirt);
    let qemu = versions.qemu.as_deref().and_then(Version::read);
    let lacks = |found: Option<Version>, needed: Version| found.is_some_and(|found| found < needed);
    FEATURES
        .iter()
        .filter_map(|feature| {
            let mut needs = vec![];
            if lacks(libvirt, feature.libvirt) {
                needs.push(format!("libvirt {}", feature.libvirt));
            }
            if let Some(needed) = feature.qemu.filter(|needed| lacks(qemu, *needed)) {
                needs.push(format!("QEMU {needed}"));
            }
            (!needs.is_empty()).then(|| format!("{} (needs {})", feature.name, needs.join(" and ")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_are_read_as_programs_print_them() {
        assert_eq!(Version::read("11.3.0"), Some(Version(11, 3, 0)));
        assert_eq!(Version::read("8.2.2 (Debian 1:8.2.2+ds-0ubuntu1)"), Some(Version(8, 2, 2)));
        assert_eq!(Version::read("QEMU emulator version 10.0"), Some(Version(10, 0, 0)));
        assert_eq!(Version::read("unknown"), None);
        assert_eq!(Version::read("99999999999.1"), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}|[0-9.]{0,40}") {
            let _ = Version::read(&text);
        }
    }
}
