//! libvirt, QEMU and KVM: `HypervisorReady`, `KvmUsable`, `GuestNetworkFiltered`.

use gpudesk_crds::{conditions::Reason, gpu_node_status::Acceleration};

use super::{Findings, Say, message, versions};
use crate::status::{GuestNetworkView, HypervisorView};

/// How the daemon says that its owner chose emulation.
const CHOSEN: &str = "--acceleration";

/// libvirt answers, and it and QEMU are new enough.
pub(super) fn ready(view: &HypervisorView) -> Say {
    match view {
        HypervisorView::Silent(why) => {
            let why = message::clip(why.trim(), 300);
            Say::no(
                Reason::HypervisorUnavailable,
                format!(
                    "libvirt does not answer ({why}): see that libvirtd runs on this node and that its socket can be opened"
                ),
            )
        }
        HypervisorView::Answers { acceleration: Acceleration::Simulated, .. } => {
            Say { message: "libvirt's test driver: no guest runs".into(), ..Say::simulated() }
        }
        HypervisorView::Answers { versions: None, .. } => Say::expected(),
        HypervisorView::Answers { versions: Some(versions), .. } => {
            if let Some(old) = versions::too_old(versions) {
                return Say::no(Reason::VersionTooOld, old);
            }
            let lacking = versions::lacking(versions);
            if lacking.is_empty() {
                Say::expected()
            } else {
                Say::expected_but(format!("desktops run without {}", message::listed(&lacking)))
            }
        }
    }
}

/// Guests run by hardware virtualization.
pub(super) fn kvm(findings: &Findings<'_>) -> Say {
    let absent = || device_absent(findings);
    match findings.hypervisor {
        _ if findings.simulated => Say::simulated(),
        HypervisorView::Answers { acceleration: Acceleration::Simulated, .. } => Say::simulated(),
        HypervisorView::Answers { acceleration: Acceleration::Kvm, .. } => Say::expected(),
        HypervisorView::Answers {
            acceleration: Acceleration::Emulation | Acceleration::Unknown,
            why_not_kvm,
            ..
        } => {
            let why = why_not_kvm.as_deref().unwrap_or("no cause is known").trim();
            if why.starts_with(CHOSEN) {
                return Say::not_needed(format!("guests run by plain emulation: {why}"));
            }
            let why = absent().unwrap_or_else(|| message::clip(why, 400));
            Say::no(Reason::KvmUnusable, format!("guests run by plain emulation, which is slow: {why}"))
        }
        HypervisorView::Silent(_) => match absent() {
            Some(why) => Say::no(Reason::KvmUnusable, format!("guests cannot run by KVM: {why}")),
            None => Say::unknown("libvirt, through which a test guest would be run, does not answer"),
        },
    }
}

/// Guests with user networks reach out and never the host.
pub(super) fn guest_network(findings: &Findings<'_>) -> Say {
    match findings.guest_network {
        _ if findings.simulated => Say::simulated(),
        GuestNetworkView::NoGuests => Say::simulated(),
        GuestNetworkView::NotAsked => Say::unknown("only the running daemon looks at its filter"),
        GuestNetworkView::External => Say::not_needed(
            "--guest-network-filter external is set: the owner of this host keeps guests off it",
        ),
        GuestNetworkView::Filtered { except } if except.is_empty() => Say::expected(),
        GuestNetworkView::Filtered { except } => Say::no(
            Reason::GuestNetworkUnfiltered,
            format!(
                "these desktops run since before guests were kept off the host, and are from their next start, so \
                 restart them: {}",
                message::listed(except)
            ),
        ),
        GuestNetworkView::Unfiltered(why) => Say::no(
            Reason::GuestNetworkUnfiltered,
            format!("desktops with user networks do not start: {}", message::clip(why.trim(), 460)),
        ),
    }
}

/// Why there is no `/dev/kvm`, and what would help; `None` when it is there or could not be told.
fn device_absent(findings: &Findings<'_>) -> Option<String> {
    let state = &findings.facts.kernel_state;
    if state.kvm_device != Some(false) {
        return None;
    }
    let model = findings.facts.cpu_model.as_deref().unwrap_or_default().to_lowercase();
    let (setting, module) = match (model.contains("intel"), model.contains("amd")) {
        (true, _) => ("VT-x", "kvm_intel"),
        (false, true) => ("SVM (AMD-V)", "kvm_amd"),
        (false, false) => ("VT-x or SVM", "kvm_intel or kvm_amd"),
    };
    Some(match state.cpu_virtualization {
        Some(false) => format!(
            "there is no /dev/kvm and the CPU shows neither vmx nor svm, so enable {setting} in the firmware, or \
             nested virtualization if this host is itself a guest"
        ),
        Some(true) => {
            format!("there is no /dev/kvm although the CPU can run guests, so load the module {module}")
        }
        None => {
            format!("there is no /dev/kvm, so enable {setting} in the firmware and load the module {module}")
        }
    })
}
