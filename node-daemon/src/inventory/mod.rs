//! From the facts of the host to the status of its `GpuNode`. Pure.

mod conditions;
mod counts;

use gpudesk_crds::{
    GpuNodeSpec, GpuNodeStatus,
    gpu_node::{DeviceMode, DevicePolicy, Management},
    gpu_node_status::{Acceleration, Device, Host, Instance},
    types::{PciAddress, ShareMode},
};
use jiff::Timestamp;

use crate::{
    host::{gpu_driver::GpuInstance, hypervisor::Versions},
    topology::HostFacts,
};

/// Type of a whole card, where types are named.
pub const PASSTHROUGH: &str = "Passthrough";

/// What is known of the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HypervisorView {
    /// It answers.
    Answers {
        /// Its versions, when they could be asked for.
        versions: Option<Versions>,
        /// How guests run.
        acceleration: Acceleration,
        /// Why not by KVM, where they do not.
        why_not_kvm: Option<String>,
    },
    /// It does not answer; why.
    Silent(String),
}

/// A whole card that a domain holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeCard {
    /// The card.
    pub card: PciAddress,
    /// The desktop, as `namespace/name`.
    pub owner: String,
}

/// What the status is made from.
pub struct Findings<'a> {
    /// The machine.
    pub facts: &'a HostFacts,
    /// Whether the host exists only as a description.
    pub simulated: bool,
    /// libvirt.
    pub hypervisor: &'a HypervisorView,
    /// Version of the GPU driver.
    pub gpu_driver_version: Option<String>,
    /// Shares that exist; or why it could not be told.
    pub instances: Result<&'a [GpuInstance], String>,
    /// Cards given whole.
    pub whole_cards: &'a [WholeCard],
    /// What the owner of the machine allows.
    pub spec: &'a GpuNodeSpec,
    /// Generation of that.
    pub generation: Option<i64>,
    /// What was said before.
    pub before: Option<&'a GpuNodeStatus>,
    /// Now.
    pub now: Timestamp,
}

/// The status of the `GpuNode`.
///
/// Where it cannot be told which shares exist, those of the last good status stand, and the condition
/// `TopologyComplete` says so.
pub fn status(findings: &Findings<'_>) -> GpuNodeStatus {
    let devices: Vec<Device> = findings.facts.cards.iter().map(|card| device(findings, card)).collect();
    let managed: Vec<&Device> = devices.iter().filter(|card| is_managed(findings.spec, card)).collect();
    GpuNodeStatus {
        host: Some(host(findings)),
        numa_cells: findings.facts.numa_cells.clone(),
        capacity: counts::capacity(&managed),
        allocated: counts::allocated(&devices),
        summary: Some(counts::summary(&managed, findings.facts.numa_cells.len())),
        conditions: conditions::conditions(findings, &managed),
        devices,
    }
}

/// Whether a new status says anything new. Free hugepages alone do not.
pub fn differs(old: &GpuNodeStatus, new: &GpuNodeStatus) -> bool {
    let without_free = |status: &GpuNodeStatus| {
        let mut status = status.clone();
        for pages in status.numa_cells.iter_mut().flat_map(|cell| &mut cell.hugepages) {
            pages.free = None;
        }
        status
    };
    without_free(old) != without_free(new)
}

fn device(findings: &Findings<'_>, card: &Device) -> Device {
    let instances = if let Ok(instances) = &findings.instances {
        let here = instances.iter().filter(|instance| instance.card == card.pci_address);
        let whole = findings.whole_cards.iter().filter(|whole| whole.card == card.pci_address);
        here.map(GpuInstance::api).chain(whole.map(whole_card)).collect()
    } else {
        let before = findings.before.map_or(&[][..], |status| &status.devices);
        let before = before.iter().find(|device| device.pci_address == card.pci_address);
        before.map(|device| device.instances.clone()).unwrap_or_default()
    };
    Device { instances, ..card.clone() }
}

fn whole_card(whole: &WholeCard) -> Instance {
    Instance {
        id: whole.card.to_string(),
        type_name: PASSTHROUGH.into(),
        mode: ShareMode::Passthrough,
        start: None,
        owner: Some(whole.owner.clone()),
    }
}

fn host(findings: &Findings<'_>) -> Host {
    let (versions, acceleration) = match findings.hypervisor {
        HypervisorView::Answers { versions, acceleration, .. } => (versions.as_ref(), Some(*acceleration)),
        HypervisorView::Silent(_) => (None, None),
    };
    let qemu = versions.filter(|versions| versions.hypervisor_name == "QEMU");
    Host {
        simulated: findings.simulated,
        acceleration,
        kernel: findings.facts.kernel.clone(),
        cpu_model: findings.facts.cpu_model.clone(),
        board: findings.facts.board.clone(),
        qemu_version: qemu.map(|versions| versions.hypervisor.to_string()),
        libvirt_version: versions.map(|versions| versions.daemon.to_string()),
        gpu_driver_version: findings.gpu_driver_version.clone(),
        daemon_version: Some(env!("CARGO_PKG_VERSION").into()),
    }
}

/// Whether `policy` means `card`.
fn selects(policy: &DevicePolicy, card: &Device) -> bool {
    let selector = &policy.selector;
    selector.uuid.as_ref().is_some_and(|uuid| card.uuid.as_ref() == Some(uuid))
        || selector.serial.as_ref().is_some_and(|serial| card.serial.as_ref() == Some(serial))
        || selector.pci_address.is_some_and(|address| card.pci_address == address)
}

fn is_managed(spec: &GpuNodeSpec, card: &Device) -> bool {
    !spec.devices.iter().filter(|policy| selects(policy, card)).any(|policy| {
        policy.management == Some(Management::Unmanaged) || policy.mode == Some(DeviceMode::Host)
    })
}
