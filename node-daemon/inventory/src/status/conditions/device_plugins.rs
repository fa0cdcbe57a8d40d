//! Who else gives cards away on this node: `DevicePluginsAbsent`.

use std::collections::BTreeMap;

use gpudesk_crds::{
    conditions::Reason,
    gpu_node_status::Device,
    pods::{self, Vendor},
};

use super::{Findings, Say, message, named};
use crate::topology::device_plugins::Counted;

/// What a device plugin offers, and whose cards that may be.
struct Offer {
    /// The resource, or the socket where the resources are not known.
    what: String,
    vendor: Option<&'static Vendor>,
    cards: Vec<String>,
}

/// No device plugin of the kubelet offers managed cards to pods.
pub(super) fn absent(findings: &Findings<'_>, managed: &[&Device]) -> Say {
    let managed: Vec<&Device> = managed.iter().copied().filter(|card| card.kind.is_gpu()).collect();
    if managed.is_empty() {
        return Say::not_needed("no GPU of this node is managed by gpudesk");
    }
    let Some(plugins) = &findings.facts.device_plugins else {
        return Say::unseen(
            "the kubelet's folder /var/lib/kubelet/device-plugins is not seen, so give it to the daemon (chart value \
             nodeDaemon.discovery.devicePlugins)",
        );
    };
    let sockets: Vec<&String> =
        plugins.sockets.iter().filter(|name| pods::of_socket(name).is_some()).collect();
    let offers = match &plugins.counted {
        Counted::Devices(devices) => counted(devices, &managed),
        Counted::Never | Counted::Unread(_) => listening(&sockets, &managed),
    };
    if !offers.is_empty() {
        return Say::no(Reason::OfferedToPods, told(&offers));
    }
    match &plugins.counted {
        Counted::Unread(why) => Say::unseen(format!(
            "which devices the kubelet counts cannot be read ({why}): see that kubelet_internal_checkpoint in \
             /var/lib/kubelet/device-plugins is one of a kubelet that this version knows, and may be read"
        )),
        Counted::Devices(_) if !sockets.is_empty() => {
            let names: Vec<String> = sockets.into_iter().cloned().collect();
            Say::expected_but(format!(
                "{} in /var/lib/kubelet/device-plugins offers none of the managed cards to pods",
                message::listed(&names)
            ))
        }
        Counted::Devices(_) | Counted::Never => Say::expected(),
    }
}

/// What the kubelet counts of managed cards. Devices that do not tell which cards they are may be any of their vendor.
fn counted(devices: &BTreeMap<String, Vec<String>>, managed: &[&Device]) -> Vec<Offer> {
    let offer = |(resource, devices): (&String, &Vec<String>)| {
        if devices.is_empty() {
            return None;
        }
        let hit = managed
            .iter()
            .filter(|card| devices.iter().any(|device| pods::is_part_of(card, device, resource)));
        let mut cards: Vec<&Device> = hit.copied().collect();
        let of_vendor = pods::of_resource(resource);
        // A card without its driver does not tell its UUID.
        let told = |device: &String| {
            pods::tells_its_card(device)
                && (is_address(device) || managed.iter().all(|card| card.uuid.is_some()))
        };
        if cards.is_empty() && pods::gives_gpus(resource) && !devices.iter().all(told) {
            cards = managed.iter().copied().filter(|card| pods::of_card(card) == of_vendor).collect();
        }
        let vendor = of_vendor.or_else(|| cards.first().and_then(|card| pods::of_card(card)));
        let cards: Vec<String> = cards.into_iter().map(named).collect();
        (!cards.is_empty()).then(|| Offer { what: resource.clone(), vendor, cards })
    };
    devices.iter().filter_map(offer).collect()
}

fn is_address(device: &str) -> bool {
    device.parse::<gpudesk_crds::types::PciAddress>().is_ok()
}

/// What sockets tell where nothing else does.
fn listening(sockets: &[&String], managed: &[&Device]) -> Vec<Offer> {
    let offer = |name: &&String| {
        let vendor = pods::of_socket(name)?;
        let cards = managed.iter().filter(|card| pods::of_card(card) == Some(vendor));
        let cards: Vec<String> = cards.map(|card| named(card)).collect();
        (!cards.is_empty()).then(|| Offer { what: (*name).clone(), vendor: Some(vendor), cards })
    };
    sockets.iter().filter_map(offer).collect()
}

fn told(offers: &[Offer]) -> String {
    let what: Vec<String> = offers.iter().map(|offer| offer.what.clone()).collect();
    let mut cards: Vec<String> = offers.iter().flat_map(|offer| offer.cards.iter().cloned()).collect();
    cards.sort_unstable();
    cards.dedup();
    let mut remedies: Vec<&str> = offers
        .iter()
        .map(|offer| offer.vendor.map_or(pods::WITHOUT_ANY, |vendor| vendor.without_plugin))
        .collect();
    remedies.sort_unstable();
    remedies.dedup();
    let remedy = remedies.join("; ");
    format!(
        "a device plugin ({}) offers managed cards to pods: {}; {remedy}, or leave the cards to it (management: Unmanaged)",
        message::listed(&what),
        message::listed(&cards),
    )
}
