//! NVIDIA's vGPUs: `VgpuHostReady`.

use gpudesk_crds::{conditions::Reason, gpu_node_status::Device, types::ShareMode};

use super::{Findings, NVIDIA, PART, Say, VFIO_PCI, is_whole, message, named, shares_allowed, sriov};

/// The driver of the NVIDIA cards makes vGPUs, its services run, and the vGPUs are licensed.
pub(super) fn host_ready(findings: &Findings<'_>, managed: &[&Device]) -> Say {
    let state = &findings.facts.kernel_state;
    let nvidia: Vec<&Device> = managed.iter().copied().filter(|card| card.vendor_id == NVIDIA).collect();
    if nvidia.is_empty() {
        return if findings.facts.cards.is_empty() && !is_whole(findings) {
            Say::unknown(PART)
        } else {
            Say::not_needed("no NVIDIA card is managed here")
        };
    }
    let can: Vec<&Device> = nvidia.into_iter().filter(|card| divides(card)).collect();
    if can.is_empty() {
        return Say::not_needed("no NVIDIA card here can be divided into vGPUs");
    }
    let can: Vec<&Device> = can.into_iter().filter(|card| shares_allowed(findings, card)).collect();
    if can.is_empty() {
        return Say::not_needed("spec.devices gives every NVIDIA card whole");
    }
    let can: Vec<&Device> = can.into_iter().filter(|card| card.driver.as_deref() != Some(VFIO_PCI)).collect();
    if can.is_empty() {
        return Say::not_needed("every NVIDIA card is held by vfio-pci, to be given whole");
    }
    let named_cards = |cards: &[&Device]| {
        let cards: Vec<String> = cards.iter().map(|card| named(card)).collect();
        message::listed(&cards)
    };
    let install = if state.driver_in_container {
        "let the container of the driver install the vGPU host driver (vGPU manager)"
    } else {
        "install the vGPU host driver (vGPU manager)"
    };
    let whole = "or set mode Passthrough for the cards in spec.devices of this GpuNode";
    if !can.iter().any(|card| sriov::makes_vgpus(findings, card) || offers_vgpus(card)) {
        let version = findings.gpu_driver_version.as_ref().or(state.nvidia_driver.as_ref());
        let driven = can.iter().any(|card| card.driver.as_deref() == Some("nvidia"));
        return match version {
            Some(version) => Say::no(
                Reason::HostDriverMissing,
                format!(
                    "the NVIDIA driver {} makes no vGPUs of {}: {install} in its place, {whole}",
                    message::clip(version, 40),
                    named_cards(&can)
                ),
            ),
            None if driven => Say::no(
                Reason::HostDriverMissing,
                format!(
                    "the NVIDIA driver of this host makes no vGPUs of {}: {install} in its place, {whole}",
                    named_cards(&can)
                ),
            ),
            None if !is_whole(findings) => Say::unknown(PART),
            None => Say::no(
                Reason::HostDriverMissing,
                format!("no NVIDIA driver is loaded for {}: {install}, {whole}", named_cards(&can)),
            ),
        };
    }
    if state.vgpu_manager_service == Some(false) {
        let fix = if state.driver_in_container {
            "the driver of this host comes from a container, so see the pod of the vGPU manager on this node and \
             its log"
        } else {
            "run systemctl enable --now nvidia-vgpud nvidia-vgpu-mgr"
        };
        return Say::no(
            Reason::HostDriverMissing,
            format!("the service of the vGPU manager does not run, so no vGPU starts: {fix}"),
        );
    }
    match findings.unlicensed_vgpus {
        Some(count) if count > 0 => Say::no(
            Reason::LicenceServiceMissing,
            format!(
                "{count} {} without a licence and will be slowed down: see that their guests hold a client \
                 configuration token and reach the licence server that it names",
                if count == 1 { "vGPU runs" } else { "vGPUs run" }
            ),
        ),
        Some(_) | None => Say::expected(),
    }
}

/// Whether a card is of the kind that is divided into vGPUs: its driver offers some, or it is a
/// professional card. Consumer and mobile cards are not, whatever capability they show.
pub(super) fn divides(card: &Device) -> bool {
    if offers_vgpus(card) || card.framework.is_some() {
        return true;
    }
    // What can be divided has many functions; one is the capability alone.
    let many = card.sriov.is_some_and(|sriov| sriov.total_vfs > 1);
    !is_consumer(&card.product) && (many || card.class == "0302")
}

/// Whether the name is that of a consumer or mobile card. Max-Q editions of professional cards for
/// workstations are neither.
fn is_consumer(product: &str) -> bool {
    let product = product.to_ascii_lowercase();
    let words = ["geforce", "titan", "mobile", "laptop", "notebook", "gtx"];
    words.iter().any(|word| product.contains(word))
        || product.contains("max-q") && !product.contains("rtx pro")
}

/// Whether types of vGPUs are among what the driver offers on the card.
fn offers_vgpus(card: &Device) -> bool {
    card.placements
        .iter()
        .any(|placement| placement.mode == ShareMode::Vgpu || !placement.vgpu_types.is_empty())
}
