//! From the facts of the host to the status of its `GpuNode`. Pure.

mod conditions;
mod counts;
mod schema;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::LazyLock};

use gpudesk_crds::{
    GpuNodeSpec, GpuNodeStatus,
    conditions::ConditionType,
    gpu_node_status::{
        Acceleration, CardReset, CardWait, Device, DriveErasure, Fabric, ForeignDevice, Host, HostCpus,
        HostDevice, HostDeviceKind, Instance, PcieLink, Restoring,
    },
    types::{PciAddress, ShareMode},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::{
    hook::{HookView, foreign_use},
    layout,
    topology::HostFacts,
};

/// Type of a whole card, where types are named.
pub const PASSTHROUGH: &str = "Passthrough";

/// Which software runs guests. Versions are written as people write them: `11.3.0`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HypervisorVersions {
    /// libvirt.
    pub libvirt: String,
    /// QEMU; absent under libvirt's test driver.
    pub qemu: Option<String>,
}

/// What is known of the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HypervisorView {
    /// It answers.
    Answers {
        /// Its versions, when they could be asked for.
        versions: Option<HypervisorVersions>,
        /// How guests run.
        acceleration: Acceleration,
        /// Why not by KVM, where they do not.
        why_not_kvm: Option<String>,
    },
    /// It does not answer; why.
    Silent(String),
}

/// What keeps guests with user networks away from the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestNetworkView {
    /// Nobody looked: only the running daemon does.
    NotAsked,
    /// No guest runs here.
    NoGuests,
    /// The owner of the machine sees to it.
    External,
    /// The daemon's filter is there and whole.
    Filtered {
        /// Desktops (`namespace/name`) whose guests it does not see, because they run since before it.
        except: Vec<String>,
    },
    /// It is not; cause and remedy.
    Unfiltered(String),
}

/// A share that exists, on its card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldShare {
    /// The card.
    pub card: PciAddress,
    /// The share.
    pub instance: Instance,
}

impl HeldShare {
    /// A card that a desktop (`namespace/name`) holds whole.
    pub fn whole_card(card: PciAddress, owner: String) -> Self {
        let instance = Instance {
            id: card.to_string(),
            type_name: PASSTHROUGH.into(),
            mode: ShareMode::Passthrough,
            vgpu_type: None,
            start: None,
            virtual_function: None,
            gpu_instance: None,
            owner: Some(owner),
        };
        Self { card, instance }
    }
}

/// What whoever drives the cards knows of one, beside what is found on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CardState {
    /// What is there that gpudesk did not make.
    pub foreign: Vec<ForeignDevice>,
    /// What of that takes a share and shows nowhere else.
    pub taken: Vec<Instance>,
    /// Why the card can be given in parts alone.
    pub not_whole: Option<String>,
    /// The last reset between users.
    pub last_reset: Option<CardReset>,
    /// How a drive was erased after its last user.
    pub last_erase: Option<DriveErasure>,
    /// What a step waits for.
    pub waiting_for: Option<CardWait>,
    /// How far what desktops had is put back.
    pub restoring: Option<Restoring>,
}

/// What the status is made from.
pub struct Findings<'a> {
    /// The machine.
    pub facts: &'a HostFacts,
    /// Whether the host exists only as a description.
    pub simulated: bool,
    /// libvirt.
    pub hypervisor: &'a HypervisorView,
    /// What keeps guests away from the host.
    pub guest_network: &'a GuestNetworkView,
    /// Version of the GPU driver.
    pub gpu_driver_version: Option<String>,
    /// Version of the vGPU manager in it; absent when the driver makes no vGPUs or was not asked.
    pub vgpu_manager_version: Option<String>,
    /// vGPUs that run without a licence, as the driver counts them; absent when it was not asked.
    pub unlicensed_vgpus: Option<usize>,
    /// Why single cards are given to nobody now, in one sentence each.
    pub withheld: BTreeMap<PciAddress, String>,
    /// What is known of single cards by whoever drives them.
    pub states: BTreeMap<PciAddress, CardState>,
    /// How the discovery hook fared.
    pub hook: &'a HookView,
    /// Shares that gpudesk made; or why it could not be told.
    pub instances: Result<&'a [HeldShare], String>,
    /// What the owner of the machine allows.
    pub spec: &'a GpuNodeSpec,
    /// Generation of that.
    pub generation: Option<i64>,
    /// What was said before.
    pub before: Option<&'a GpuNodeStatus>,
    /// Now.
    pub now: Timestamp,
}

impl<'a> Findings<'a> {
    /// What is to be found of a machine on which nobody was asked, and whose owner says nothing.
    pub fn of(facts: &'a HostFacts) -> Self {
        static SPEC: LazyLock<GpuNodeSpec> = LazyLock::new(GpuNodeSpec::default);
        static NOT_ASKED: LazyLock<HypervisorView> =
            LazyLock::new(|| HypervisorView::Silent("it was not asked".into()));
        Self {
            facts,
            simulated: false,
            hypervisor: &NOT_ASKED,
            guest_network: &GuestNetworkView::NotAsked,
            gpu_driver_version: None,
            vgpu_manager_version: None,
            unlicensed_vgpus: None,
            withheld: BTreeMap::new(),
            states: BTreeMap::new(),
            hook: &HookView::NotConfigured,
            instances: Ok(&[]),
            spec: &SPEC,
            generation: None,
            before: None,
            now: Timestamp::UNIX_EPOCH,
        }
    }
}

/// The most sentences in `missing`, and the most characters of one, as the schema has them.
const MISSING: (usize, usize) = (64, 512);

/// The most characters of `unavailable`, as the schema has it.
const SENTENCE: usize = 512;

/// The status of the `GpuNode`.
///
/// Where it cannot be told which shares exist, those of the last good status stand, and the condition
/// `TopologyComplete` says so. A card of which a desktop holds something stays in the status when the
/// host does not show it any more, as it was last seen and marked unavailable: what is not seen is not
/// free. What the API server would refuse is left out and named in `missing`, so that the rest is shown.
pub fn status(findings: &Findings<'_>) -> GpuNodeStatus {
    let facts = findings.facts;
    let mut devices: Vec<Device> = facts.cards.iter().map(|card| device(findings, card)).collect();
    devices.extend(lost(findings));
    devices.sort_by_key(|card| card.pci_address);
    let shown = GpuNodeStatus {
        host: Some(host(findings)),
        numa_cells: facts.numa_cells.clone(),
        devices,
        host_devices: facts.host_devices.iter().map(|device| host_device(findings, device)).collect(),
        fabric: fabric(facts),
        ..GpuNodeStatus::default()
    };
    let (shown, refused) = schema::mended(shown);
    let mut devices = shown.devices;
    let before = findings.before.map_or(&[][..], |status| &status.devices);
    let layouts = layout::plan_all(findings.spec, &mut devices, before);
    let managed = |devices: &[Device]| -> Vec<bool> {
        devices.iter().map(|card| is_managed(findings.spec, card, devices)).collect()
    };
    let managed = managed(&devices);
    let conditions = {
        let managed: Vec<&Device> = chosen(&devices, &managed).collect();
        conditions::conditions(findings, &managed, &refused, &named(&devices, &layouts))
    };
    rules_that_keep(findings.spec, &mut devices, &layouts);
    // After the conditions: what a machine could do is judged whoever may use it.
    for card in &mut devices {
        if let Some(why) = findings.withheld.get(&card.pci_address) {
            card.unavailable.get_or_insert_with(|| why.chars().take(SENTENCE).collect());
        }
    }
    // What is no GPU is shown, and nobody's capacity.
    let managed: Vec<&Device> = chosen(&devices, &managed).filter(|card| card.kind.is_gpu()).collect();
    let missing = facts.odd.iter().chain(&refused).chain(&facts.incomplete);
    let missing = missing.filter(|sentence| !sentence.is_empty());
    let status = GpuNodeStatus {
        capacity: counts::capacity(&managed),
        allocated: counts::allocated(&devices),
        summary: Some(counts::summary(&managed, shown.numa_cells.len())),
        missing: missing.take(MISSING.0).map(|text| text.chars().take(MISSING.1).collect()).collect(),
        conditions,
        devices,
        ..shown
    };
    schema::mended(status).0
}

/// What the API server would refuse of a status, a sentence each: nothing, of one that [`status`] made.
pub fn faults(status: &GpuNodeStatus) -> Vec<String> {
    schema::mended(status.clone()).1
}

fn chosen<'a>(devices: &'a [Device], which: &[bool]) -> impl Iterator<Item = &'a Device> {
    devices.iter().zip(which.to_vec()).filter(|(_, chosen)| *chosen).map(|(card, _)| card)
}

/// What became of the layouts of cards: who is waited for, or why there is none.
type Layouts = BTreeMap<usize, Result<Vec<String>, String>>;

/// The same, by the addresses of the cards.
fn named<'a>(devices: &[Device], layouts: &'a Layouts) -> Vec<(PciAddress, &'a Result<Vec<String>, String>)> {
    let of_card = |(position, said): (&usize, &'a _)| Some((devices.get(*position)?.pci_address, said));
    layouts.iter().filter_map(of_card).collect()
}

/// Says of the cards that several rules name, that one may name, or of which one asks what they cannot do, why no
/// desktop gets them.
fn rules_that_keep(spec: &GpuNodeSpec, devices: &mut [Device], layouts: &Layouts) {
    let notes: Vec<Option<String>> = devices
        .iter()
        .enumerate()
        .map(|(position, card)| match spec.rule_for(card, devices.iter())? {
            rule if rule.keeps() => rule.note,
            _ => {
                let mut unmet = spec.unmet(card, devices.iter());
                unmet.extend(layouts.get(&position).and_then(|said| said.as_ref().err()).cloned());
                Some(unmet.join("; ")).filter(|unmet| !unmet.is_empty())
            }
        })
        .collect();
    for (card, note) in devices.iter_mut().zip(notes) {
        if let (None, Some(note)) = (&card.unavailable, note) {
            card.unavailable = Some(note.chars().take(SENTENCE).collect());
        }
    }
}

/// Whether a new status says anything new. Figures that change all the time do not: free hugepages,
/// temperatures, the links' width and speed, corrected memory errors, a card at its power limit, when an
/// error was last repeated, and how many more of a type fit.
pub fn differs(old: &GpuNodeStatus, new: &GpuNodeStatus) -> bool {
    lasting(old) != lasting(new)
}

/// The status without the figures that change all the time.
fn lasting(status: &GpuNodeStatus) -> GpuNodeStatus {
    let still = |link: &mut Option<PcieLink>| {
        if let Some(link) = link {
            (link.width, link.speed_mtps) = (None, None);
        }
    };
    let mut status = status.clone();
    // The operator's words, not the daemon's.
    status.operator_term = None;
    let operators = [ConditionType::DaemonHeard, ConditionType::CardsUnpublished].map(ConditionType::as_str);
    status.conditions.retain(|condition| !operators.contains(&condition.type_.as_str()));
    for pages in status.numa_cells.iter_mut().flat_map(|cell| &mut cell.hugepages) {
        pages.free = None;
    }
    for card in &mut status.devices {
        card.temperature_celsius = None;
        // Newer drivers tell margins, of which the sum with the temperature of now wavers.
        card.temperature_thresholds = None;
        still(&mut card.link);
        // A busy card comes to its power limit and goes from it many times an hour.
        card.health.throttle_reasons.retain(|reason| reason != "SwPowerCap");
        for xid in &mut card.health.xids {
            // A guest that repeats its error must not make the node write.
            xid.last_seen = Time(Timestamp::UNIX_EPOCH);
        }
        if let Some(reset) = card.last_reset.as_mut().filter(|reset| !reset.succeeded) {
            // Nor must a card whose reset is tried again and again.
            reset.time = Time(Timestamp::UNIX_EPOCH);
        }
        if let Some(ecc) = &mut card.health.ecc {
            ecc.corrected = None;
        }
        for placement in &mut card.placements {
            placement.available = None;
        }
    }
    for device in &mut status.host_devices {
        still(&mut device.link);
        // Nor must a drive that is erased again and again, or a function whose reset fails.
        if let Some(reset) = device.last_reset.as_mut().filter(|reset| !reset.succeeded) {
            reset.time = Time(Timestamp::UNIX_EPOCH);
        }
        if let Some(erase) = device.last_erase.as_mut().filter(|erase| !erase.succeeded) {
            erase.time = Time(Timestamp::UNIX_EPOCH);
        }
    }
    status
}

/// A network card or drive with what is known of it by whoever gives it away, and with what its owner says.
fn host_device(findings: &Findings<'_>, device: &HostDevice) -> HostDevice {
    let mut device = device.clone();
    let address = device.pci_address;
    if let Some(state) = findings.states.get(&address) {
        device.last_reset.clone_from(&state.last_reset);
        device.last_erase.clone_from(&state.last_erase);
    }
    let mut why = findings.withheld.get(&address).cloned();
    // Where there is no GpuNode, nobody was asked.
    if device.kind == HostDeviceKind::NvmeDrive && findings.generation.is_some() {
        why = why.or_else(|| findings.spec.drive_erase(&device).err());
    }
    if let Some(why) = why.filter(|_| device.usable) {
        (device.usable, device.message) = (false, Some(why.chars().take(SENTENCE).collect()));
    }
    for function in &mut device.virtual_functions {
        if let Some(why) = findings.withheld.get(&function.pci_address) {
            function.unavailable.get_or_insert_with(|| why.chars().take(SENTENCE).collect());
        }
    }
    device
}

/// A card with what is known of it by whoever drives it.
fn with_state(findings: &Findings<'_>, card: &Device) -> Device {
    let mut card = card.clone();
    let Some(state) = findings.states.get(&card.pci_address) else { return card };
    let CardState { foreign, taken, not_whole, last_reset, last_erase: _, waiting_for, restoring } =
        state.clone();
    card.foreign.extend(foreign);
    card.instances = join(card.instances, &taken);
    (card.last_reset, card.waiting_for, card.restoring) = (last_reset, waiting_for, restoring);
    let whole = card.supports.iter_mut().find(|support| support.mode == ShareMode::Passthrough);
    if let (Some(why), Some(whole)) = (not_whole, whole.filter(|whole| whole.supported)) {
        (whole.supported, whole.reason) = (false, Some(why));
    }
    card
}

/// A card with what exists on it: what gpudesk made, and what it found beside.
fn device(findings: &Findings<'_>, card: &Device) -> Device {
    let mut card = with_state(findings, card);
    let Ok(held) = &findings.instances else {
        let before = findings.before.map_or(&[][..], |status| &status.devices);
        let before = before.iter().find(|device| device.pci_address == card.pci_address);
        card.instances =
            join(before.map(|device| device.instances.clone()).unwrap_or_default(), &card.instances);
        return card;
    };
    let held: Vec<&HeldShare> = held.iter().filter(|share| share.card == card.pci_address).collect();
    // A hook that lists libvirt's domains sees those of gpudesk among them: they are not foreign.
    let ours: Vec<String> = held
        .iter()
        .filter_map(|share| share.instance.owner.as_deref())
        .map(|owner| foreign_use(&owner.replacen('/', ".", 1)))
        .collect();
    if card.unavailable.as_ref().is_some_and(|why| ours.contains(why)) {
        card.unavailable = None;
    }
    for function in &mut card.virtual_functions {
        if function.unavailable.as_ref().is_some_and(|why| ours.contains(why)) {
            function.unavailable = None;
        }
    }
    card.instances = join(held.iter().map(|share| share.instance.clone()).collect(), &card.instances);
    card
}

/// The first, and those of the second that are not the same share: by identity, or by the virtual
/// function that carries it.
fn join(mut first: Vec<Instance>, second: &[Instance]) -> Vec<Instance> {
    for instance in second {
        let same = |known: &Instance| {
            known.id == instance.id
                || (instance.virtual_function.is_some()
                    && known.virtual_function == instance.virtual_function)
        };
        if !first.iter().any(same) {
            first.push(instance.clone());
        }
    }
    first
}

/// Cards of which something is held and which the host does not show any more.
fn lost(findings: &Findings<'_>) -> Vec<Device> {
    let before = findings.before.map_or(&[][..], |status| &status.devices);
    let mut held: BTreeMap<PciAddress, Vec<Instance>> = BTreeMap::new();
    match &findings.instances {
        Ok(shares) => {
            for share in *shares {
                held.entry(share.card).or_default().push(share.instance.clone());
            }
        }
        Err(_) => {
            for card in before {
                let owned = card.instances.iter().filter(|instance| instance.owner.is_some());
                for instance in owned {
                    held.entry(card.pci_address).or_default().push(instance.clone());
                }
            }
        }
    }
    held.retain(|address, _| findings.facts.cards.iter().all(|card| card.pci_address != *address));
    let lost = held.into_iter().map(|(address, instances)| {
        let before = before.iter().find(|card| card.pci_address == address);
        let owner = instances.iter().find_map(|instance| instance.owner.clone()).unwrap_or_default();
        let why = format!("{owner} holds a share of this card, and the host does not show the card any more");
        let mut card = before.cloned().unwrap_or_else(|| {
            let mut card = Device::new(address, "", "");
            card.product = "not known".into();
            card
        });
        card.foreign.clear();
        (card.waiting_for, card.restoring) = (None, None);
        for support in &mut card.supports {
            support.supported = false;
            support.reason = Some("the host does not show the card any more".into());
        }
        Device { instances, unavailable: Some(why), ..card }
    });
    lost.collect()
}

/// The fabric, as it was asked for; or just the NVSwitches on PCI.
fn fabric(facts: &HostFacts) -> Option<Fabric> {
    let switches = || Fabric { switches: facts.nvswitches.clone(), partitions: vec![] };
    match &facts.fabric {
        Some(fabric) if fabric.switches.is_empty() => {
            Some(Fabric { partitions: fabric.partitions.clone(), ..switches() })
        }
        Some(fabric) => Some(fabric.clone()),
        None => (!facts.nvswitches.is_empty()).then(switches),
    }
}

fn host(findings: &Findings<'_>) -> Host {
    let facts = findings.facts;
    let (versions, acceleration) = match findings.hypervisor {
        HypervisorView::Answers { versions, acceleration, .. } => (versions.as_ref(), Some(*acceleration)),
        HypervisorView::Silent(_) => (None, None),
    };
    Host {
        simulated: findings.simulated,
        acceleration,
        kernel: facts.kernel.clone(),
        cpu_model: facts.cpu_model.clone(),
        cpus: Some(facts.cpus.clone()).filter(|cpus| *cpus != HostCpus::default()),
        board: facts.board.clone(),
        iommu: facts.iommu.kind.clone(),
        qemu_version: versions.and_then(|versions| versions.qemu.clone()),
        libvirt_version: versions.map(|versions| versions.libvirt.clone()),
        gpu_driver_version: findings
            .gpu_driver_version
            .clone()
            .or_else(|| facts.kernel_state.nvidia_driver.clone()),
        vgpu_manager_version: findings.vgpu_manager_version.clone(),
        daemon_version: Some(env!("CARGO_PKG_VERSION").into()),
    }
}

fn is_managed(spec: &GpuNodeSpec, card: &Device, all: &[Device]) -> bool {
    !spec.rule_for(card, all.iter()).is_some_and(|rule| rule.keeps())
}
