//! What is to be said of a node whose cards others offer to pods. Pure.

use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::{
    GpuNode,
    conditions::{self, ConditionType, Reason, Truth},
    gpu_node_status::Device,
    pods::{self, Vendor},
    types::PciAddress,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{Known, Published, Sight, rules};

/// Cards that are named.
const NAMED: usize = 8;

/// The GPUs of a node that gpudesk manages, and those that it leaves alone.
fn cards(node: &GpuNode) -> (Vec<&Device>, Vec<&Device>) {
    let all = node.status.as_ref().map_or(&[][..], |status| &status.devices);
    let keeps = |card: &&Device| node.spec.rule_for(card, all.iter()).is_some_and(|rule| rule.keeps());
    let (left, managed) = all.iter().filter(|card| card.kind.is_gpu()).partition(keeps);
    (managed, left)
}

/// Whether gpudesk manages a GPU of the node.
pub fn has_managed(node: &GpuNode) -> bool {
    !cards(node).0.is_empty()
}

/// Those published devices that are managed cards, or functions of such, each with the address of its card.
pub fn managed(node: &GpuNode, published: &[Published]) -> Vec<(PciAddress, Published)> {
    let (managed, _) = cards(node);
    let with_card = |device: &Published| {
        let card = managed.iter().find(|card| pods::has_function(card, device.address))?;
        Some((card.pci_address, device.clone()))
    };
    published.iter().filter_map(with_card).collect()
}

/// What is said of a node; `None` while nobody has looked.
pub fn condition(node: &GpuNode, known: &Known, now: &Time) -> Option<Condition> {
    let (truth, reason, message) = say(node, known)?;
    let mut said: Vec<Condition> = said(node).cloned().into_iter().collect();
    let generation = node.metadata.generation;
    conditions::set(&mut said, ConditionType::CardsUnpublished, truth, reason, message, generation, now);
    said.pop()
}

/// What the operator says of it now, where it has said anything.
pub fn said(node: &GpuNode) -> Option<&Condition> {
    conditions::find(&node.status.as_ref()?.conditions, ConditionType::CardsUnpublished)
}

fn say(node: &GpuNode, known: &Known) -> Option<(Truth, Reason, String)> {
    let (managed, left) = cards(node);
    if managed.is_empty() {
        let why = "no GPU of this node is managed by gpudesk";
        return Some((Truth::True, Reason::NotNeeded, why.to_owned()));
    }
    let mut told = vec![];
    told.extend(by_drivers(node, &managed, known));
    told.extend(by_resources(&managed, &left, &known.resources));
    if !told.is_empty() {
        let message = format!("{}, or leave the cards to it (management: Unmanaged)", told.join("; "));
        return Some((Truth::False, Reason::OfferedToPods, message));
    }
    let unread = [(&known.slices, "ResourceSlices"), (&known.node, "the Node")];
    let unread = unread.iter().filter_map(|(sight, what)| match sight {
        Sight::Unread(why) => Some(format!("{what} cannot be read ({why})")),
        Sight::NotYet | Sight::Unserved | Sight::Whole => None,
    });
    let unread: Vec<String> = unread.collect();
    if !unread.is_empty() {
        let message = format!("not known: {}; see the ClusterRole gpudesk-operator", unread.join(", and "));
        return Some((Truth::Unknown, Reason::Unknown, message));
    }
    let looked = known.slices != Sight::NotYet && known.node != Sight::NotYet;
    looked.then(|| (Truth::True, Reason::AsExpected, unclear(&managed, &known.resources)))
}

/// One sentence for each driver that publishes managed cards.
fn by_drivers(node: &GpuNode, managed: &[&Device], known: &Known) -> Vec<String> {
    let mut drivers: BTreeMap<&str, (BTreeSet<String>, BTreeSet<&Published>)> = BTreeMap::new();
    for device in &known.published {
        let card = managed.iter().find(|card| pods::has_function(card, device.address));
        if let Some(card) = card {
            let (cards, devices) = drivers.entry(&device.driver).or_default();
            cards.insert(named(card));
            devices.insert(device);
        }
    }
    let wanted = if known.rules.is_some() { rules::wanted(node, known) } else { BTreeMap::new() };
    let sentence = |(driver, (cards, devices)): (&str, (BTreeSet<String>, BTreeSet<&Published>))| {
        let remedy = pods::of_driver(driver).map_or(pods::WITHOUT_ANY, |vendor| vendor.without_driver);
        let tainted = tainted(driver, &devices, &wanted, known);
        format!("the DRA driver {driver} publishes in ResourceSlices {}{tainted}: {remedy}", listed(&cards))
    };
    drivers.into_iter().map(sentence).collect()
}

/// How many of the devices of a driver have a rule that taints them, and why others have not.
fn tainted(
    driver: &str,
    devices: &BTreeSet<&Published>,
    wanted: &BTreeMap<String, Published>,
    known: &Known,
) -> String {
    let Some(there) = &known.rules else { return String::new() };
    let distinct = |alone: bool| -> usize {
        let devices = devices.iter().filter(|device| rules::is_alone(device, known) == alone);
        devices.map(|device| (&device.pool, &device.device)).collect::<BTreeSet<_>>().len()
    };
    let (alone, shared) = (distinct(true), distinct(false));
    let wanted = wanted.iter().filter(|(_, device)| device.driver == driver);
    let (tainted, missing): (Vec<&String>, Vec<&String>) =
        wanted.map(|(name, _)| name).partition(|name| there.contains(*name));
    let more = alone.saturating_sub(tainted.len() + missing.len());
    let mut why = vec![];
    if shared > 0 {
        why.push(format!("{shared} of pools that are not of this node alone"));
    }
    if more > 0 {
        why.push(format!("{more} beyond the {} rules that a node may have", rules::MOST));
    }
    if !missing.is_empty() {
        why.push(match (known.refused, known.pause) {
            (Some(code), _) => format!(
                "{} as the API server refuses it with code {code}, see the operator's log",
                missing.len()
            ),
            (None, Some(pause)) => format!(
                "{} not before {} minutes are over since a pool was not of this node alone",
                missing.len(),
                pause.as_secs() / 60
            ),
            (None, None) => format!("{} not yet", missing.len()),
        });
    }
    if why.is_empty() {
        return " (tainted gpudesk.dev/managed:NoSchedule, by which a scheduler that heeds DeviceTaintRules keeps new pods off)"
            .to_owned();
    }
    format!(
        " ({} of {} devices tainted gpudesk.dev/managed:NoSchedule; without it {})",
        tainted.len(),
        alone + shared,
        why.join(", ")
    )
}

/// One sentence for each resource of the Node that stands for managed cards. Where gpudesk leaves cards of the same vendor
/// alone the resource may be theirs: the node's daemon sees more (`DevicePluginsAbsent`).
fn by_resources(managed: &[&Device], left: &[&Device], resources: &BTreeMap<String, String>) -> Vec<String> {
    let of = |vendor: &'static Vendor, cards: &[&Device]| -> BTreeSet<String> {
        cards.iter().filter(|card| pods::of_card(card) == Some(vendor)).map(|card| named(card)).collect()
    };
    let sentence = |(resource, amount): (&String, &String)| {
        let vendor = pods::of_resource(resource).filter(|_| pods::gives_gpus(resource))?;
        let cards = of(vendor, managed);
        (!cards.is_empty() && of(vendor, left).is_empty()).then(|| {
            format!(
                "the Node offers {resource}: {amount} to pods, which are {}: {}",
                listed(&cards),
                vendor.without_plugin
            )
        })
    };
    resources.iter().filter_map(sentence).collect()
}

/// What is said of resources that may be those of cards which gpudesk leaves alone.
fn unclear(managed: &[&Device], resources: &BTreeMap<String, String>) -> String {
    let may_be_managed = |resource: &&String| {
        let vendor = pods::of_resource(resource).filter(|_| pods::gives_gpus(resource));
        vendor.is_some_and(|vendor| managed.iter().any(|card| pods::of_card(card) == Some(vendor)))
    };
    let named: Vec<&str> = resources.keys().filter(may_be_managed).map(String::as_str).collect();
    if named.is_empty() {
        return String::new();
    }
    format!(
        "the Node offers {} to pods, which may be the cards of the same vendor that gpudesk leaves alone: the condition \
         DevicePluginsAbsent tells more",
        named.join(", ")
    )
}

fn named(card: &Device) -> String {
    format!("{} ({})", card.pci_address, card.product)
}

fn listed(cards: &BTreeSet<String>) -> String {
    let named: Vec<&str> = cards.iter().take(NAMED).map(String::as_str).collect();
    let more = cards.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}
