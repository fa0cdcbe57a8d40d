//! SR-IOV: `SriovEnabled`.

use gpudesk_crds::{
    conditions::Reason,
    gpu_node_status::{Device, Framework},
};

use super::{Findings, NVIDIA, PART, Say, is_whole, message, named, shares_allowed};

/// Vendor id of AMD.
const AMD: &str = "1002";
/// Vendor id of Intel.
const INTEL: &str = "8086";

/// Virtual functions are switched on where cards make shares of them.
///
/// Off is wrong only where the host driver that makes shares is there, the owner of the machine lets
/// gpudesk share the card, and it is not the card of the host's own screen: every recent Intel
/// processor has graphics that could have virtual functions, and few hosts want them.
pub(super) fn enabled(findings: &Findings<'_>, managed: &[&Device]) -> Say {
    let can: Vec<&&Device> = managed.iter().filter(|card| can_share(findings, card)).collect();
    let off: Vec<&&&Device> = can
        .iter()
        .filter(|card| {
            card.sriov.is_some_and(|sriov| sriov.num_vfs == 0) && card.virtual_functions.is_empty()
        })
        .collect();
    if let Some(first) = off.first() {
        let cards: Vec<String> = off.iter().map(|card| named(card)).collect();
        let total = first.sriov.unwrap_or_default().total_vfs;
        let address = first.pci_address;
        let fix = if first.vendor_id == NVIDIA {
            format!("run /usr/lib/nvidia/sriov-manage -e {address} at every start of the host")
        } else {
            format!(
                "write a number up to {total} to /sys/bus/pci/devices/{address}/sriov_numvfs at every start of the host"
            )
        };
        let message = format!(
            "virtual functions are switched off, so no shares can be made of {}: {fix}",
            message::listed(&cards)
        );
        return Say::no(Reason::SriovOff, message);
    }
    if !can.is_empty() {
        return Say::expected();
    }
    if findings.facts.cards.is_empty() && !is_whole(findings) {
        return Say::unknown(PART);
    }
    Say::not_needed("no card here makes shares of virtual functions with the driver it has")
}

/// Whether shares of the card are virtual functions, and its driver can make them.
fn can_share(findings: &Findings<'_>, card: &Device) -> bool {
    let Some(sriov) = card.sriov else { return false };
    if sriov.total_vfs <= 0 || card.boot_vga || card.unavailable.is_some() || !shares_allowed(findings, card)
    {
        return false;
    }
    let driver = card.driver.as_deref();
    match card.vendor_id.as_str() {
        // Turing has the capability and makes its vGPUs on the card itself all the same.
        NVIDIA if card.framework == Some(Framework::Mdev) && card.virtual_functions.is_empty() => false,
        NVIDIA => driver == Some("nvidia") && makes_vgpus(findings, card),
        AMD => driver == Some("gim"),
        INTEL => matches!(driver, Some("i915" | "xe")),
        _ => card.framework == Some(Framework::Sriov) && driver.is_some(),
    }
}

/// Whether the NVIDIA driver on this host makes vGPUs.
pub(super) fn makes_vgpus(findings: &Findings<'_>, card: &Device) -> bool {
    findings.vgpu_manager_version.is_some()
        || findings.facts.kernel_state.nvidia_vgpu_module == Some(true)
        || matches!(card.framework, Some(Framework::Mdev | Framework::VendorVfio))
}
