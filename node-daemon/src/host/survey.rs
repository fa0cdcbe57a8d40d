//! What this machine is, kept true: sysfs, the GPU driver and the admin's hook together.
//!
//! A change is answered by reading what changed. What cannot be read keeps its last good reading, and
//! the facts say so.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use gpudesk_crds::{gpu_node_status::Device, types::PciAddress};
use gpudesk_inventory::{
    driver::{self, DriverEvent, DriverReadings},
    hook::{self, HookAnswer},
    scan::{self, Scanner},
    topology::{HostFacts, uevent::Change},
    tree::{Tree, TreeError},
};

use super::{
    nvml::{Nvml, NvmlError, SharedNvml},
    type_names,
};

/// Where a capture keeps what the GPU driver said.
pub const DRIVER_ANSWERS: &str = "gpudesk/driver.yaml";
/// NVIDIA's vendor id.
const NVIDIA: &str = "10de";

/// Where a host is read.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Its root folder, or a capture; this machine without it.
    pub root: Option<PathBuf>,
    /// NVML's library; looked for under its usual names without it, and only on this machine.
    pub nvml: Option<PathBuf>,
    /// Whether functions of its network cards are given to desktops.
    pub network_functions: bool,
    /// The daemon's own folder, where names of vGPU types are kept.
    pub state_dir: Option<PathBuf>,
}

/// What a machine is.
pub struct Survey {
    place: Place,
    scanner: Scanner,
    /// What sysfs says; absent before the first look.
    found: Option<HostFacts>,
    nvml: SharedNvml,
    readings: Option<DriverReadings>,
    /// Why the last reading of the driver failed.
    driver_problem: Option<String>,
    events: Vec<DriverEvent>,
    answer: Option<HookAnswer>,
}

impl Survey {
    /// A survey of this place; nothing is read yet.
    ///
    /// # Errors
    /// When there is no such folder or capture.
    pub fn new(place: Place, recording: bool) -> Result<Self, TreeError> {
        let tree = Tree::open(place.root.as_deref().unwrap_or(Path::new("/")))?;
        let mut scanner = Scanner::new(if recording { tree.recording() } else { tree });
        if let Some(folder) = &place.state_dir {
            scanner.type_names = type_names::load(folder);
        }
        Ok(Self {
            place,
            scanner,
            found: None,
            nvml: SharedNvml::default(),
            readings: None,
            driver_problem: None,
            events: vec![],
            answer: None,
        })
    }

    /// The tree that is read.
    pub fn tree(&self) -> &Tree {
        self.scanner.tree()
    }

    /// What the driver last said.
    pub fn readings(&self) -> Option<&DriverReadings> {
        self.readings.as_ref()
    }

    /// NVML, once it is open.
    pub fn nvml(&self) -> Option<Arc<Nvml>> {
        self.nvml.get()
    }

    /// The same, for those who do not wait for a look at the host.
    pub fn shared_nvml(&self) -> SharedNvml {
        self.nvml.clone()
    }

    /// Remembers what the hook last said.
    pub fn set_answer(&mut self, answer: HookAnswer) {
        self.answer = Some(answer);
    }

    /// Remembers an event of the driver.
    pub fn add_event(&mut self, event: DriverEvent) {
        driver::remember(&mut self.events, event);
    }

    /// Reads again what changed, and gives all that is known. Blocks.
    pub fn look(&mut self, changes: &BTreeSet<Change>) -> HostFacts {
        match self.found.take() {
            Some(facts) if !changes.contains(&Change::Whole) => self.refresh(facts, changes),
            before => self.whole(before),
        }
        self.facts()
    }

    /// Everything, from the beginning.
    fn whole(&mut self, before: Option<HostFacts>) {
        let names = self.scanner.type_names.clone();
        let mut facts = self.scanner.read();
        if let Some(before) = before {
            keep_what_went_silent(&mut facts, before);
        }
        if let Some(folder) = self.place.state_dir.as_deref().filter(|_| self.scanner.type_names != names) {
            type_names::save(folder, &self.scanner.type_names);
        }
        self.found = Some(facts);
        self.ask_driver();
    }

    fn refresh(&mut self, mut facts: HostFacts, changes: &BTreeSet<Change>) {
        let mut cards = BTreeSet::new();
        for change in changes {
            match change {
                Change::Whole => return self.whole(Some(facts)),
                Change::Compute => self.scanner.refresh_compute(&mut facts),
                Change::Function(address) => {
                    if !self.scanner.refresh(&mut facts, *address) {
                        return self.whole(Some(facts));
                    }
                    let is_of = |card: &&Device| {
                        card.pci_address == *address
                            || card.virtual_functions.iter().any(|vf| vf.pci_address == *address)
                    };
                    cards.extend(facts.cards.iter().find(is_of).map(|card| card.pci_address));
                }
            }
        }
        self.found = Some(facts);
        let Some(nvml) = self.nvml.get() else { return };
        for address in cards {
            match (nvml.read_card(address), &mut self.readings) {
                (Ok(Some(card)), Some(readings)) => readings.put_card(card),
                (Ok(None), Some(readings)) => readings.cards.retain(|other| other.address != address),
                (Ok(_), None) => {}
                (Err(error), _) => self.driver_failed(&error),
            }
        }
    }

    fn ask_driver(&mut self) {
        if self.place.nvml.is_none() && self.place.root.is_some() {
            // Not this machine: what its driver said is in the capture, or nowhere.
            let text = self.tree().text(DRIVER_ANSWERS);
            match text.as_deref().map(serde_yaml::from_str).transpose() {
                Ok(readings) => self.readings = readings,
                Err(error) => self.driver_problem = Some(format!("{DRIVER_ANSWERS}: {error}")),
            }
            return;
        }
        let is_nvidia = |card: &Device| card.vendor_id == NVIDIA;
        let has_nvidia = self.found.as_ref().is_some_and(|facts| facts.cards.iter().any(is_nvidia));
        if self.nvml.get().is_none() && (has_nvidia || self.place.nvml.is_some()) {
            match Nvml::open(self.place.nvml.as_deref()) {
                Ok(nvml) => self.nvml.set(nvml),
                Err(error) => return self.driver_failed(&error),
            }
        }
        match self.nvml.get().map(|nvml| (nvml.read(), nvml)) {
            Some((Ok(mut readings), nvml)) => {
                self.driver_problem = None;
                let unread = self.cards_of_nvidia(&readings);
                if !unread.is_empty() {
                    // The library knows the cards that were there when its use began.
                    nvml.rescan();
                }
                for address in unread {
                    match nvml.read_card(address) {
                        Ok(Some(card)) => readings.put_card(card),
                        Ok(None) => {}
                        Err(error) => self.driver_failed(&error),
                    }
                }
                self.readings = Some(readings);
            }
            Some((Err(error), _)) => self.driver_failed(&error),
            None => {}
        }
    }

    /// Cards bound to NVIDIA's driver of which it said nothing.
    fn cards_of_nvidia(&self, readings: &DriverReadings) -> Vec<PciAddress> {
        let cards = self.found.iter().flat_map(|facts| &facts.cards);
        let bound = cards.filter(|card| card.driver.as_deref() == Some("nvidia"));
        bound.map(|card| card.pci_address).filter(|address| readings.card(*address).is_none()).collect()
    }

    fn driver_failed(&mut self, error: &NvmlError) {
        tracing::warn!(%error, "the GPU driver could not be asked");
        self.driver_problem = Some(error.to_string());
    }

    /// All that is known, put together.
    fn facts(&self) -> HostFacts {
        let mut facts = self.found.clone().unwrap_or_default();
        if let Some(readings) = &self.readings {
            let mut readings = readings.clone();
            readings.events.extend(self.events.iter().cloned());
            driver::describe(&mut facts.cards, &readings);
            facts.incomplete.extend(readings.problems);
        }
        if let Some(problem) = &self.driver_problem {
            let kept = if self.readings.is_some() { "; its last answers stand" } else { "" };
            facts.incomplete.push(format!("what the GPU driver says: {problem}{kept}"));
        }
        if let Some(answer) = &self.answer {
            hook::merge(&mut facts, answer);
        }
        scan::judge_modes(&mut facts);
        facts
    }
}

/// A pass that suddenly finds nothing where there was something has not read well: what was known
/// stands.
fn keep_what_went_silent(facts: &mut HostFacts, before: HostFacts) {
    if facts.cards.is_empty() && facts.host_devices.is_empty() && !before.cards.is_empty() {
        facts.incomplete.push("PCI devices: none were found this time; the last known are shown".into());
        facts.cards = before.cards;
        facts.host_devices = before.host_devices;
        facts.nvswitches = before.nvswitches;
        facts.iommu = before.iommu;
    }
    if facts.numa_cells.iter().all(|cell| cell.cores.is_empty()) && !before.numa_cells.is_empty() {
        facts.incomplete.push("CPUs: none were found this time; the last known are shown".into());
        facts.numa_cells = before.numa_cells;
        facts.cpus = before.cpus;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpudesk_crds::gpu_node_status::NumaCell;

    fn facts() -> HostFacts {
        let mut facts = HostFacts::default();
        facts.cards.push(Device::new("0000:41:00.0".parse().unwrap(), NVIDIA, "26b9"));
        facts.numa_cells.push(NumaCell { cores: vec!["0".parse().unwrap()], ..NumaCell::default() });
        facts
    }

    #[test]
    fn a_host_that_suddenly_has_nothing_was_not_read_well() {
        let mut now = HostFacts::default();
        keep_what_went_silent(&mut now, facts());
        assert_eq!((now.cards.len(), now.numa_cells.len()), (1, 1));
        assert_eq!(now.incomplete.len(), 2);
    }

    #[test]
    fn one_card_that_went_is_gone() {
        let mut before = facts();
        before.cards.push(Device::new("0000:42:00.0".parse().unwrap(), NVIDIA, "26b9"));
        let mut now = facts();
        keep_what_went_silent(&mut now, before);
        assert_eq!((now.cards.len(), now.incomplete.len()), (1, 0));
    }
}
