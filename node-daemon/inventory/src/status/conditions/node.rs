//! The node as a whole: `Ready`, `TopologyComplete`, `DevicesHealthy`, `LayoutApplied`.

use gpudesk_crds::{
    conditions::{Reason, Truth},
    gpu_node::{DevicePolicy, PhysicalNetwork, VgpuPlacement},
    gpu_node_status::{Device, HealthState, HostDeviceKind},
    types::PciAddress,
};

use super::{Findings, LayoutsOf, Say, message};
use crate::hook::REMARK;

/// Desktops that a message names.
const MOST_DESKTOPS: usize = 8;

/// Desktops can run here: the hypervisor answers, and CPUs were found.
pub(super) fn ready(findings: &Findings<'_>, hypervisor: &Say, topology: &Say) -> Say {
    if hypervisor.holds != Truth::True {
        return hypervisor.clone();
    }
    if findings.facts.numa_cells.iter().all(|cell| cell.cores.is_empty()) {
        if topology.holds != Truth::True {
            return topology.clone();
        }
        let message =
            "no NUMA cell with CPUs was found: see that the daemon reads /sys and /proc of the host";
        return Say::no(Reason::TopologyIncomplete, message);
    }
    match findings.spec.drain {
        Some(_) => {
            let message = "not yet supported: drain; set cordoned and stop the desktops of this node instead";
            Say { holds: Truth::True, reason: Reason::NotYetSupported, message: message.into() }
        }
        None => Say::expected(),
    }
}

/// Everything could be read, and can be as it was read. `refused` is what the API would not take.
pub(super) fn topology_complete(findings: &Findings<'_>, refused: &[String]) -> Say {
    let mut missing = vec![];
    if let Err(why) = &findings.instances {
        missing
            .push(format!("which shares of GPUs exist could not be told, the last known are shown: {why}"));
    }
    let (odd, incomplete) = (&findings.facts.odd, &findings.facts.incomplete);
    let is_remark = |sentence: &String| sentence.starts_with(REMARK);
    let mut fixes = vec![];
    if !missing.is_empty() || !incomplete.iter().all(is_remark) {
        fixes.push("the daemon needs to read /sys and /proc of the host, and its state folder");
    } else if !incomplete.is_empty() {
        fixes.push("mend what the hook prints");
    }
    if !odd.is_empty() {
        fixes.push("see the NUMA settings of the firmware and the kernel's command line, and update them");
    }
    if !refused.is_empty() {
        fixes.push("what does not fit into the API is left out, please report it");
    }
    missing.extend(odd.iter().chain(refused).chain(incomplete).cloned());
    if missing.is_empty() {
        return Say::expected();
    }
    let see = if missing.len() > 3 { ", see status.missing" } else { "" };
    let message = format!("{}{see}; {}", message::clauses(&missing), fixes.join("; "));
    Say::no(Reason::TopologyIncomplete, message)
}

/// No managed card is failed.
pub(super) fn devices_healthy(findings: &Findings<'_>, managed: &[&Device]) -> Say {
    let failed: Vec<String> = managed
        .iter()
        .filter(|card| card.health.state == HealthState::Failed)
        .map(|card| {
            format!("{} ({})", card.pci_address, card.health.message.as_deref().unwrap_or("no cause known"))
        })
        .collect();
    if !failed.is_empty() {
        let message = format!(
            "failed: {}; reset or replace, they come back when seen healthy",
            message::listed(&failed)
        );
        return Say::no(Reason::DeviceUnhealthy, message);
    }
    let fields = fields(findings, |policy| policy.max_temperature_celsius.is_some(), "maxTemperatureCelsius");
    if fields.is_empty() {
        Say::expected()
    } else {
        Say { holds: Truth::True, ..Say::no(Reason::NotYetSupported, not_yet(&fields)) }
    }
}

/// The spec's rules for cards are in effect. `layouts` tells of each card with a fixed one who is waited for, or why
/// there is none.
pub(super) fn layout_applied(findings: &Findings<'_>, layouts: &LayoutsOf<'_>) -> Say {
    let cards = &findings.facts.cards;
    let mut wrong = networks_without_cards(findings);
    for rule in &findings.spec.nvme_drives {
        let drives = &findings.facts.host_devices;
        if !drives.iter().any(|it| it.kind == HostDeviceKind::NvmeDrive && rule.selects(it)) {
            wrong.push(format!(
                "nvmeDrives[{}] selects no drive of this host: see status.hostDevices",
                rule.name
            ));
        }
    }
    for policy in &findings.spec.devices {
        let meant: Vec<&Device> = cards.iter().filter(|card| policy.selects(card)).collect();
        if meant.is_empty() {
            wrong.push(format!("devices[{}] selects no card of this host: see status.devices", policy.name));
        }
        let mixed = policy.vgpu_placement == Some(VgpuPlacement::MixedSize);
        let cannot = meant.iter().filter(|card| mixed && card.units.unwrap_or_default().vgpu_region == 0);
        let cannot: Vec<String> = cannot.map(|card| card.pci_address.to_string()).collect();
        if !cannot.is_empty() {
            wrong.push(format!(
                "devices[{}].vgpuPlacement MixedSize: the card at {} offers no positions for mixed sizes; use EqualSize",
                policy.name,
                message::listed(&cannot)
            ));
        }
    }
    let mut agree: Vec<String> = vec![];
    for card in cards {
        let Some(rule) = findings.spec.rule_for(card, cards.iter()) else { continue };
        if let Some(note) = &rule.note {
            let sentence = format!("the card at {}: {note}", card.pci_address);
            if rule.keeps() { wrong.push(sentence) } else { agree.push(sentence) }
        }
        let unmet = findings.spec.unmet(card, cards.iter());
        wrong.extend(unmet.iter().map(|unmet| format!("the card at {}: {unmet}", card.pci_address)));
    }
    let mut waits: Vec<String> = vec![];
    for (card, said) in layouts {
        match said {
            Err(why) => wrong.push(format!("the card at {card}: {why}")),
            Ok(outside) if outside.is_empty() => {}
            Ok(outside) => waits.push(format!(
                "the layout of the card at {card} waits for {}: places of it that overlap with theirs are given once \
                 they are stopped, all others now",
                message::some(outside, MOST_DESKTOPS)
            )),
        }
    }
    let reason = if wrong.is_empty() { Reason::LayoutInUse } else { Reason::InvalidSpec };
    wrong.extend(waits);
    if !wrong.is_empty() {
        return Say::no(reason, wrong.join("; "));
    }
    if agree.is_empty() { Say::expected() } else { Say::expected_but(agree.join("; ")) }
}

/// Addresses of `physicalNetworks` at which no network card is, a sentence for each network.
fn networks_without_cards(findings: &Findings<'_>) -> Vec<String> {
    let is_there = |address: &PciAddress| {
        let mut found =
            findings.facts.host_devices.iter().filter(|it| it.kind == HostDeviceKind::NetworkCard);
        found.any(|device| device.pci_address == *address)
    };
    let of_network = |network: &PhysicalNetwork| {
        let none: Vec<String> =
            network.devices.iter().filter(|address| !is_there(address)).map(ToString::to_string).collect();
        (!none.is_empty()).then(|| {
            format!(
                "physicalNetworks[{}].devices: no network card of this host is at {}: see status.hostDevices",
                network.name,
                message::listed(&none)
            )
        })
    };
    findings.spec.physical_networks.iter().filter_map(of_network).collect()
}

fn fields(findings: &Findings<'_>, set: impl Fn(&DevicePolicy) -> bool, field: &str) -> Vec<String> {
    let policies = findings.spec.devices.iter().filter(|policy| set(policy));
    policies.map(|policy| format!("devices[{}].{field}", policy.name)).collect()
}

fn not_yet(fields: &[String]) -> String {
    format!("not yet supported: {}; remove it", message::listed(fields))
}
