//! The IOMMU and vfio: `IommuEnabled`, `IommuIsolating`, `VfioReady`.

use gpudesk_crds::conditions::Reason;

use super::{Findings, PART, Say, is_whole, message};
use crate::topology::HostFacts;

/// The IOMMU is on: groups exist. Judged from sysfs; the kernel's command line only explains.
pub(super) fn enabled(findings: &Findings<'_>) -> Say {
    let facts = findings.facts;
    let Some(groups) = facts.iommu.groups else { return Say::unknown(PART) };
    if facts.cards.is_empty() && facts.host_devices.is_empty() {
        return Say::not_needed("no device was found that a desktop could be given");
    }
    if groups == 0 {
        return Say::no(Reason::IommuMissing, cause(facts));
    }
    if facts.iommu.no_iommu_mode == Some(true) && facts.iommu.kind.is_none() {
        let message = "the IOMMU groups of this host are those of vfio's no-IOMMU mode, which confine nothing: \
                       enable VT-d or AMD-Vi in the firmware and write N to \
                       /sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
        return Say::no(Reason::IommuMissing, message);
    }
    let outside: Vec<String> = facts
        .cards
        .iter()
        .filter(|card| card.iommu_group.is_none())
        .map(|card| card.pci_address.to_string())
        .collect();
    if outside.is_empty() {
        Say::expected()
    } else {
        let message = format!("in no IOMMU group, so not to be given whole: {}", message::listed(&outside));
        Say::expected_but(message)
    }
}

/// Why there are no groups, and what would help.
fn cause(facts: &HostFacts) -> String {
    let none = "the kernel shows no IOMMU groups, so no device can be given to a desktop";
    let line = facts.kernel_state.command_line.as_deref().unwrap_or_default();
    let mut words = line.split_whitespace();
    let off = |word: &&str| {
        let Some((name, values)) = word.split_once('=') else { return false };
        matches!(name, "iommu" | "intel_iommu" | "amd_iommu")
            && values.split(',').any(|value| matches!(value, "off" | "soft"))
    };
    if let Some(word) = words.find(off) {
        let word = message::clip(word, 60);
        return format!("{none}: take {word} off the kernel's command line and reboot");
    }
    if let Some(kind) = &facts.iommu.kind {
        let kind = message::clip(kind, 20);
        return format!(
            "{none}, although the firmware offers an IOMMU ({kind}): start the kernel with {} and see the kernel's log for the reason",
            if kind == "dmar" { "intel_iommu=on" } else { "iommu=pt" }
        );
    }
    let asked = line.split_whitespace().find(|word| {
        let on = |values: &str| values.split(',').any(|value| matches!(value, "on" | "pt" | "force"));
        word.split_once('=')
            .is_some_and(|(name, values)| matches!(name, "iommu" | "intel_iommu" | "amd_iommu") && on(values))
    });
    let model = facts.cpu_model.as_deref().unwrap_or_default().to_lowercase();
    let (intel, amd) = (model.contains("intel"), model.contains("amd"));
    let firmware = match (intel, amd) {
        (true, _) => "VT-d",
        (false, true) => "the IOMMU (AMD-Vi)",
        (false, false) => "the IOMMU (VT-d, AMD-Vi or SMMU)",
    };
    match asked {
        Some(word) => {
            let word = message::clip(word, 60);
            format!(
                "{none}: the kernel was started with {word}, so it is off in the firmware; enable {firmware} there"
            )
        }
        None if amd => format!("{none}: enable {firmware} in the firmware"),
        None if intel => {
            format!("{none}: enable {firmware} in the firmware and start the kernel with intel_iommu=on")
        }
        None => format!(
            "{none}: enable {firmware} in the firmware and, on Intel, start the kernel with intel_iommu=on"
        ),
    }
}

/// What a guest's device reads and signals stays in the guest.
pub(super) fn isolating(findings: &Findings<'_>) -> Say {
    let facts = findings.facts;
    if facts.iommu.no_iommu_mode == Some(true) {
        let message = "vfio gives devices away without any IOMMU, so a desktop could read all memory of the host: \
                       write N to /sys/module/vfio/parameters/enable_unsafe_noiommu_mode and take \
                       enable_unsafe_noiommu_mode out of /etc/modprobe.d";
        return Say::no(Reason::IommuUnsafe, message);
    }
    if facts.iommu.unsafe_interrupts == Some(true) {
        let message = "vfio gives devices away without interrupt remapping, so a desktop could raise any interrupt \
                       of the host: enable interrupt remapping (x2APIC) in the firmware, write N to \
                       /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts and take \
                       allow_unsafe_interrupts out of /etc/modprobe.d";
        return Say::no(Reason::IommuUnsafe, message);
    }
    let line = facts.kernel_state.command_line.as_deref().unwrap_or_default();
    if let Some(word) = line.split_whitespace().find(|word| word.starts_with("pcie_acs_override=")) {
        let message = format!(
            "the kernel was started with {}, which shows devices in IOMMU groups of their own that can still \
             reach each other: take it off the command line and move cards to slots that separate them",
            message::clip(word, 80)
        );
        return Say::no(Reason::IommuUnsafe, message);
    }
    match facts.iommu.groups {
        None => Say::unknown(PART),
        Some(0) => Say::not_needed("without IOMMU groups no device is given away"),
        Some(_) => Say::expected(),
    }
}

/// The kernel's vfio driver is there to take devices.
pub(super) fn vfio(findings: &Findings<'_>) -> Say {
    let facts = findings.facts;
    let state = &facts.kernel_state;
    if facts.cards.is_empty() && !facts.host_devices.iter().any(|device| device.usable) {
        return if is_whole(findings) {
            Say::not_needed("no device was found that a desktop could be given")
        } else {
            Say::unknown(PART)
        };
    }
    match (state.vfio_pci, state.vfio_device) {
        (Some(false), _) => Say::no(
            Reason::ModuleMissing,
            "the kernel module vfio-pci is not loaded, so no device can be given to a desktop: run modprobe \
             vfio-pci and name it in /etc/modules-load.d/vfio.conf",
        ),
        (_, Some(false)) => Say::no(
            Reason::ModuleMissing,
            "there is neither /dev/vfio/vfio nor /dev/iommu, so no device can be given to a desktop: load the \
             module vfio, and mount the host's /dev into the daemon",
        ),
        (Some(true), _) => Say::expected(),
        (None, _) => Say::unknown("whether the module vfio-pci is loaded could not be read"),
    }
}
