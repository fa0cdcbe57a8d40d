//! The conditions of a `GpuNode`: each False says the cause and the fix.

use gpudesk_crds::{
    conditions::{self, ConditionType, Reason},
    gpu_node::{DevicePolicy, VgpuPlacement},
    gpu_node_status::{Acceleration, Device, HealthState},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{Findings, HypervisorView, selects};

struct Say(bool, Reason, String);

impl Say {
    fn expected() -> Self {
        Self(true, Reason::AsExpected, String::new())
    }
}

pub(super) fn conditions(findings: &Findings<'_>, managed: &[&Device]) -> Vec<Condition> {
    let hypervisor = hypervisor(findings.hypervisor);
    let topology = topology(findings);
    let ready = ready(findings, &hypervisor, &topology);
    let all = [
        (ConditionType::Ready, ready),
        (ConditionType::IommuEnabled, iommu(findings)),
        (ConditionType::HypervisorReady, hypervisor),
        (ConditionType::DevicesHealthy, devices(findings, managed)),
        (ConditionType::TopologyComplete, topology),
        (ConditionType::LayoutApplied, layout(findings)),
    ];
    let old = findings.before.map_or(&[][..], |status| &status.conditions);
    let now = Time(Timestamp::from_second(findings.now.as_second()).unwrap_or(findings.now));
    let mut said = vec![];
    for (type_, Say(status, reason, message)) in all {
        said.extend(conditions::find(old, type_).cloned());
        conditions::set(&mut said, type_, status, reason, message, findings.generation, &now);
    }
    said
}

fn ready(findings: &Findings<'_>, hypervisor: &Say, topology: &Say) -> Say {
    if !hypervisor.0 {
        return Say(false, hypervisor.1, hypervisor.2.clone());
    }
    if findings.facts.numa_cells.iter().all(|cell| cell.cores.is_empty()) {
        return Say(false, topology.1, topology.2.clone());
    }
    match findings.spec.drain {
        Some(_) => {
            let message = "not yet supported: drain; set cordoned and stop the desktops of this node instead";
            Say(true, Reason::NotYetSupported, message.into())
        }
        None => Say::expected(),
    }
}

fn iommu(findings: &Findings<'_>) -> Say {
    if findings.simulated {
        Say(true, Reason::Simulated, "as the host file describes".into())
    } else if findings.facts.iommu_groups > 0 {
        Say::expected()
    } else {
        let message = "the kernel shows no IOMMU groups, so no card can be given to a desktop: enable VT-d or \
                       AMD-Vi in the firmware and, on Intel, start the kernel with intel_iommu=on";
        Say(false, Reason::IommuMissing, message.into())
    }
}

fn hypervisor(view: &HypervisorView) -> Say {
    match view {
        HypervisorView::Silent(why) => Say(
            false,
            Reason::HypervisorUnavailable,
            format!(
                "libvirt does not answer ({why}): see that libvirtd runs on this node and that its socket can be opened"
            ),
        ),
        HypervisorView::Answers { acceleration: Acceleration::Simulated, .. } => {
            Say(true, Reason::Simulated, "libvirt's test driver: no guest runs".into())
        }
        HypervisorView::Answers { why_not_kvm: Some(why), .. } => {
            Say(true, Reason::AsExpected, format!("guests run by plain emulation, which is slow: {why}"))
        }
        HypervisorView::Answers { why_not_kvm: None, .. } => Say::expected(),
    }
}

fn devices(findings: &Findings<'_>, managed: &[&Device]) -> Say {
    let failed: Vec<String> = managed
        .iter()
        .filter(|card| card.health.state == HealthState::Failed)
        .map(|card| {
            format!("{} ({})", card.pci_address, card.health.message.as_deref().unwrap_or("no cause known"))
        })
        .collect();
    if !failed.is_empty() {
        let message =
            format!("failed: {}; reset or replace, they come back when seen healthy", failed.join(", "));
        return Say(false, Reason::DeviceUnhealthy, message);
    }
    let fields = fields(findings, |policy| policy.max_temperature_celsius.is_some(), "maxTemperatureCelsius");
    if fields.is_empty() { Say::expected() } else { Say(true, Reason::NotYetSupported, not_yet(&fields)) }
}

fn topology(findings: &Findings<'_>) -> Say {
    let mut missing = findings.facts.incomplete.clone();
    if let Err(why) = &findings.instances {
        missing
            .push(format!("which shares of GPUs exist could not be told, the last known are shown: {why}"));
    }
    if missing.is_empty() {
        return Say::expected();
    }
    let message = format!(
        "{}; the daemon needs to read /sys and /proc of the host, and its state folder",
        missing.join("; ")
    );
    Say(false, Reason::TopologyIncomplete, message)
}

fn layout(findings: &Findings<'_>) -> Say {
    let mut unsupported = fields(findings, |policy| policy.layout.is_some(), "layout");
    unsupported.extend(fields(findings, |policy| policy.vgpu_scheduler.is_some(), "vgpuScheduler"));
    if !unsupported.is_empty() {
        return Say(false, Reason::NotYetSupported, not_yet(&unsupported));
    }
    let cards = &findings.facts.cards;
    for policy in &findings.spec.devices {
        let meant: Vec<&Device> = cards.iter().filter(|card| selects(policy, card)).collect();
        if meant.is_empty() {
            let message =
                format!("devices[{}] selects no card of this host: see status.devices", policy.name);
            return Say(false, Reason::InvalidSpec, message);
        }
        let mixed = policy.vgpu_placement == Some(VgpuPlacement::MixedSize);
        if let Some(card) = meant.iter().find(|card| mixed && card.units.unwrap_or_default().vgpu_region == 0)
        {
            let message = format!(
                "devices[{}].vgpuPlacement MixedSize: the card at {} offers no positions for mixed sizes; use EqualSize",
                policy.name, card.pci_address
            );
            return Say(false, Reason::InvalidSpec, message);
        }
    }
    Say::expected()
}

fn fields(findings: &Findings<'_>, set: impl Fn(&DevicePolicy) -> bool, field: &str) -> Vec<String> {
    let policies = findings.spec.devices.iter().filter(|policy| set(policy));
    policies.map(|policy| format!("devices[{}].{field}", policy.name)).collect()
}

fn not_yet(fields: &[String]) -> String {
    format!("not yet supported: {}; remove it", fields.join(", "))
}
