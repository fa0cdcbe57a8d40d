//! SR-IOV: `SriovEnabled`.

use gpudesk_crds::{
    conditions::Reason,
    gpu_node_status::{Device, Framework},
};

use super::{Findings, NVIDIA, PART, Say, is_whole, message, named, shares_allowed, vgpu};

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
    let can: Vec<&Device> = managed.iter().copied().filter(|card| can_share(findings, card)).collect();
    let off: Vec<&Device> = can
        .iter()
        .copied()
        .filter(|card| {
            card.sriov.is_some_and(|sriov| sriov.num_vfs == 0) && card.virtual_functions.is_empty()
        })
        .collect();
    if !off.is_empty() {
        let cards: Vec<String> = off.iter().map(|card| named(card)).collect();
        let (nvidia, others): (Vec<&Device>, Vec<&Device>) =
            off.iter().partition(|card| card.vendor_id == NVIDIA);
        let mut fixes: Vec<String> = vec![];
        if !nvidia.is_empty() {
            let addresses: Vec<String> = nvidia.iter().map(|card| card.pci_address.to_string()).collect();
            let place = if findings.facts.kernel_state.driver_in_container {
                " in the driver's container"
            } else {
                ""
            };
            let which = match addresses.as_slice() {
                [one] => one.clone(),
                several => format!("for each of {}", message::listed(several)),
            };
            fixes.push(format!("run /usr/lib/nvidia/sriov-manage -e {which}{place}"));
        }
        fixes.extend(others.iter().take(2).map(|card| {
            let total = card.sriov.unwrap_or_default().total_vfs;
            format!("write a number up to {total} to /sys/bus/pci/devices/{}/sriov_numvfs", card.pci_address)
        }));
        let message = format!(
            "virtual functions are switched off, so no shares can be made of {}: {} at every start of the host",
            message::listed(&cards),
            fixes.join(" and ")
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
        NVIDIA => driver == Some("nvidia") && vgpu::divides(card) && makes_vgpus(findings, card),
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
