//! The conditions of a `GpuNode`: each False says the cause and the fix in one sentence.
//!
//! All of them are always said, in the order in which the type of the status lists them. What does not
//! apply to a machine is True with the reason `NotNeeded`. What could not be told, as from a tree that
//! holds a part of a machine, is True with the reason `Unknown`: absence from a part is no alarm. Who else gives
//! cards away (`DevicePluginsAbsent`) is Unknown where nobody could look: that is neither fine nor an alarm.

mod access;
mod bars;
mod device_plugins;
mod fabric;
mod hugepages;
mod hypervisor;
mod iommu;
mod message;
mod node;
mod sriov;
mod versions;
mod vgpu;

#[cfg(test)]
mod tests;

use gpudesk_crds::{
    conditions::{self, ConditionType, Reason, Truth},
    gpu_node::DeviceMode,
    gpu_node_status::Device,
    types::PciAddress,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::Findings;
use message::sentence;

/// Vendor id of NVIDIA.
const NVIDIA: &str = "10de";
/// The driver that holds a function for a guest.
const VFIO_PCI: &str = "vfio-pci";

/// What became of the layouts of cards: who is waited for, or why there is none.
pub(super) type LayoutsOf<'a> = [(PciAddress, &'a Result<Vec<String>, String>)];

/// What is said of one state.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Say {
    holds: Truth,
    reason: Reason,
    message: String,
}

impl Say {
    /// It is as it should be.
    fn expected() -> Self {
        Self { holds: Truth::True, reason: Reason::AsExpected, message: String::new() }
    }

    /// It is as it should be, with something worth knowing.
    fn expected_but(message: impl AsRef<str>) -> Self {
        Self { holds: Truth::True, reason: Reason::AsExpected, message: sentence(message.as_ref()) }
    }

    /// It is of no use on this machine; why.
    fn not_needed(why: impl AsRef<str>) -> Self {
        Self { holds: Truth::True, reason: Reason::NotNeeded, message: sentence(why.as_ref()) }
    }

    /// It could not be told; what was missing.
    fn unknown(missing: impl AsRef<str>) -> Self {
        let message = sentence(&format!("not known: {}", missing.as_ref()));
        Self { holds: Truth::True, reason: Reason::Unknown, message }
    }

    /// Nobody could look, and what is not seen is not fine; what was missing.
    fn unseen(missing: impl AsRef<str>) -> Self {
        Self { holds: Truth::Unknown, ..Self::unknown(missing) }
    }

    /// The machine is a description.
    fn simulated() -> Self {
        Self { holds: Truth::True, reason: Reason::Simulated, message: "as the host file describes".into() }
    }

    /// It is not as it should be: cause and fix.
    fn no(reason: Reason, message: impl AsRef<str>) -> Self {
        Self { holds: Truth::False, reason, message: sentence(message.as_ref()) }
    }
}

/// `refused` names what of the inventory the API would not take, `layouts` what became of the layouts of cards.
pub(super) fn conditions(
    findings: &Findings<'_>,
    managed: &[&Device],
    refused: &[String],
    layouts: &LayoutsOf<'_>,
) -> Vec<Condition> {
    let old = findings.before.map_or(&[][..], |status| &status.conditions);
    let now = Time(Timestamp::from_second(findings.now.as_second()).unwrap_or(findings.now));
    let mut said = vec![];
    for (type_, say) in all(findings, managed, refused, layouts) {
        said.extend(conditions::find(old, type_).cloned());
        conditions::set(&mut said, type_, say.holds, say.reason, say.message, findings.generation, &now);
    }
    said
}

fn all(
    findings: &Findings<'_>,
    managed: &[&Device],
    refused: &[String],
    layouts: &LayoutsOf<'_>,
) -> [(ConditionType, Say); 18] {
    let hypervisor = hypervisor::ready(findings.hypervisor);
    let topology = node::topology_complete(findings, refused);
    let ready = node::ready(findings, &hypervisor, &topology);
    let machine = |say: fn(&Findings<'_>, &[&Device]) -> Say| {
        if findings.simulated { Say::simulated() } else { say(findings, managed) }
    };
    [
        (ConditionType::Ready, ready),
        (ConditionType::HypervisorReady, hypervisor),
        (ConditionType::KvmUsable, hypervisor::kvm(findings)),
        (ConditionType::GuestNetworkFiltered, hypervisor::guest_network(findings)),
        (ConditionType::TopologyComplete, topology),
        (ConditionType::DevicesHealthy, node::devices_healthy(findings, managed)),
        (ConditionType::LayoutApplied, node::layout_applied(findings, layouts)),
        (ConditionType::IommuEnabled, machine(|findings, _| iommu::enabled(findings))),
        (ConditionType::IommuIsolating, machine(|findings, _| iommu::isolating(findings))),
        (ConditionType::VfioReady, machine(|findings, _| iommu::vfio(findings))),
        (ConditionType::BarsAssigned, machine(|findings, _| bars::assigned(findings))),
        (ConditionType::SriovEnabled, machine(sriov::enabled)),
        (ConditionType::HugepagesReserved, machine(|findings, _| hugepages::reserved(findings))),
        (ConditionType::VgpuHostReady, machine(vgpu::host_ready)),
        (ConditionType::FabricReady, machine(|findings, _| fabric::ready(findings))),
        (ConditionType::AccessGranted, machine(|findings, _| access::granted(findings))),
        (ConditionType::DiscoveryHookReady, access::hook_ready(findings.hook)),
        (ConditionType::DevicePluginsAbsent, machine(device_plugins::absent)),
    ]
}

/// Whether what was read is a whole machine: its kernel's command line is there. A tree that was
/// composed by hand or holds one card has none, and what it lacks says nothing of the machine.
fn is_whole(findings: &Findings<'_>) -> bool {
    findings.facts.kernel_state.command_line.is_some()
}

/// What is said where a state would be judged by files that the tree does not hold.
const PART: &str = "only a part of a machine was read";

/// Whether the owner of the machine lets gpudesk make shares of the card, rather than give it whole
/// or leave it alone.
fn shares_allowed(findings: &Findings<'_>, card: &Device) -> bool {
    let rule = findings.spec.rule_for(card, findings.facts.cards.iter());
    rule.is_none_or(|rule| !rule.keeps() && rule.policy.mode != Some(DeviceMode::Passthrough))
}

/// A card as messages name it.
fn named(card: &Device) -> String {
    format!("{} ({})", card.pci_address, message::clip(&card.product, 60))
}
