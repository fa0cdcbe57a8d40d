//! NVLink fabrics: `FabricReady`.

use gpudesk_crds::{conditions::Reason, gpu_node_status::Device};

use super::{Findings, PART, Say, is_whole, message};

/// What NVML calls a fabric that is up.
const COMPLETED: &str = "Completed";
/// What NVML calls a card that is not yet joined.
const IN_PROGRESS: &str = "InProgress";
/// What NVML calls a card without a fabric.
const NOT_SUPPORTED: &str = "NotSupported";

/// The NVLink fabric is up, and the cards in it are alike.
pub(super) fn ready(findings: &Findings<'_>) -> Say {
    let facts = findings.facts;
    if let Some((one, other)) = mixed(&facts.cards) {
        let message = format!(
            "different cards are joined by NVLink, {} ({}) at {} and {} ({}) at {}: put cards of one kind on one \
             board or bridge",
            message::clip(&one.product, 60),
            one.device_id,
            one.pci_address,
            message::clip(&other.product, 60),
            other.device_id,
            other.pci_address
        );
        return Say::no(Reason::FabricMixed, message);
    }
    let on_fabric: Vec<&Device> =
        facts.cards.iter().filter(|card| state(card).is_some_and(|state| state != NOT_SUPPORTED)).collect();
    if facts.nvswitches.is_empty() && on_fabric.is_empty() {
        return if facts.cards.is_empty() && !is_whole(findings) {
            Say::unknown(PART)
        } else {
            Say::not_needed("no NVLink fabric was found")
        };
    }
    let driver = findings.gpu_driver_version.as_ref().or(facts.kernel_state.nvidia_driver.as_ref());
    if driver.is_none() {
        return if is_whole(findings) {
            Say::not_needed("no NVIDIA driver is loaded here: who gets the NVSwitches runs the fabric")
        } else {
            Say::unknown(PART)
        };
    }
    if facts.kernel_state.fabric_manager == Some(false) {
        let switches = match facts.nvswitches.first() {
            Some(first) => format!("{} NVSwitches (the first at {first})", facts.nvswitches.len()),
            None => format!("{} cards on an NVLink fabric", on_fabric.len()),
        };
        let version = message::clip(driver.map_or("", String::as_str), 40);
        let fix = if facts.kernel_state.driver_in_container {
            format!(
                "the driver of this host comes from a container, so see the pod of the driver on this node, which \
                 starts it in the driver's version {version}"
            )
        } else {
            format!("run systemctl enable --now nvidia-fabricmanager, of the driver's version {version}")
        };
        let message = format!(
            "there are {switches} and the fabric manager does not run, so no desktop can use such a card: {fix}"
        );
        return Say::no(Reason::FabricNotReady, message);
    }
    // Where cards are joined in partitions, one that is in none that is active waits for that.
    let partitions = facts.fabric.as_ref().map_or(&[][..], |fabric| &fabric.partitions);
    let is_joined = |card: &Device| {
        let holds = |ids: &[i32]| card.module_id.is_none_or(|id| ids.contains(&id));
        partitions.is_empty()
            || partitions.iter().any(|one| one.active == Some(true) && holds(&one.module_ids))
    };
    let waits = |card: &&&Device| is_joined(card) || state(card) != Some(IN_PROGRESS);
    let waiting: Vec<String> = on_fabric.iter().filter(waits).filter_map(|card| not_up(card)).collect();
    if waiting.is_empty() {
        return if on_fabric.is_empty() && facts.kernel_state.fabric_manager.is_none() {
            Say::unknown("neither the fabric manager nor the driver of the cards could be asked")
        } else {
            Say::expected()
        };
    }
    let see = if facts.kernel_state.driver_in_container {
        "see the log of the pod of the driver on this node, where the fabric manager runs"
    } else {
        "see systemctl status nvidia-fabricmanager and /var/log/fabricmanager.log"
    };
    let message = format!("the NVLink fabric is not up for {}: {see}", message::listed(&waiting));
    Say::no(Reason::FabricNotReady, message)
}

fn state(card: &Device) -> Option<&str> {
    card.fabric.as_ref().map(|fabric| fabric.state.as_str())
}

/// The card and how far its registration got, when it is not done.
fn not_up(card: &Device) -> Option<String> {
    let fabric = card.fabric.as_ref()?;
    match (fabric.state.as_str(), fabric.status.as_deref()) {
        (COMPLETED, None | Some("Success")) => None,
        (state, None) => Some(format!("{} ({state})", card.pci_address)),
        (state, Some(status)) => Some(format!("{} ({state}, {status})", card.pci_address)),
    }
}

/// Two cards of different kinds that NVLink joins: directly, or by one fabric.
fn mixed(cards: &[Device]) -> Option<(&Device, &Device)> {
    let differ = |one: &Device, other: &Device| {
        (&one.vendor_id, &one.device_id) != (&other.vendor_id, &other.device_id)
    };
    let clique = |card: &Device| {
        let fabric = card.fabric.as_ref().filter(|fabric| fabric.state == COMPLETED)?;
        Some((fabric.cluster_uuid.clone(), fabric.clique_id))
    };
    cards.iter().enumerate().find_map(|(index, one)| {
        let other = cards[index + 1..].iter().find(|other| {
            let peers = |a: &Device, b: &Device| {
                b.uuid.as_ref().is_some_and(|uuid| a.nvlink_peers.iter().any(|peer| peer == uuid))
            };
            let joined = peers(one, other)
                || peers(other, one)
                || clique(one).is_some_and(|mine| clique(other).as_ref() == Some(&mine));
            joined && differ(one, other)
        })?;
        Some((one, other))
    })
}
