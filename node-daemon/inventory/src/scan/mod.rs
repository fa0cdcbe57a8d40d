//! Which files of a host are read, and what is made of them.
//!
//! A whole pass opens each file that is needed once and nothing else; a change is answered by reading
//! what changed. What cannot be read is named in the facts and left out; nothing fails.

mod caches;
mod cards;
mod cells;
mod cpus;
mod device_plugins;
mod drives;
mod functions;
mod host_devices;
mod interfaces;
mod kernel;
mod kubelet;
mod memory;
mod services;
mod shares;
mod vendor_vfio;
mod virtual_functions;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use gpudesk_crds::{
    gpu_node_status::{Bar, Device, HostDevice, HostDeviceKind, ResizableBar, VirtualFunction},
    types::PciAddress,
};
use serde::{Deserialize, Serialize};

pub use drives::DriveNow;

use crate::{
    topology::{HostFacts, pci_ids, supports},
    tree::{LARGE, Opened, Tree},
};

/// Where `pci.ids` is, in the order of preference.
const PCI_IDS: [&str; 3] = ["usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "var/lib/pciutils/pci.ids"];
/// Most cards and most host devices shown; the API takes no more.
const CARDS: usize = 64;
const HOST_DEVICES: usize = 128;

/// Types of vGPU that were seen on some function of the host, by number, for each kind of card
/// (`10de:26b9`).
///
/// The list of a function shrinks as those beside it are used, so it cannot name what already exists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TypeNames(pub BTreeMap<String, BTreeMap<u32, String>>);

/// Reads a host.
#[derive(Debug)]
pub struct Scanner {
    tree: Tree,
    /// Product names by ids, with those that `pci.ids` does not know.
    products: BTreeMap<pci_ids::Ids, Option<String>>,
    /// Names of vGPU types.
    pub type_names: TypeNames,
    /// Class and subclass of each function, from the last whole pass.
    classes: BTreeMap<PciAddress, String>,
    /// The functions of each IOMMU group, from the last whole pass.
    groups: BTreeMap<i32, BTreeSet<PciAddress>>,
    /// Where functions are in a tree that has not the list of all functions.
    elsewhere: BTreeMap<PciAddress, String>,
    /// Virtual functions by the function that they say they belong to, and that does not list them.
    unlisted: BTreeMap<PciAddress, Vec<PciAddress>>,
    /// Memory regions of cards whose configuration was read, with the text of `resource` they are for.
    regions: RefCell<BTreeMap<PciAddress, (String, Vec<Bar>)>>,
    /// Memory regions that can be resized, of cards that were asked.
    resizable: RefCell<BTreeMap<PciAddress, Option<ResizableBar>>>,
    /// Drives that processes have open, once that was looked at in a pass.
    opened: RefCell<Option<Opened>>,
    /// Driver and IOMMU group of each virtual function, while a whole pass goes on.
    bound: BTreeMap<PciAddress, (Option<String>, Option<i32>)>,
    /// IOMMU groups by function, where the functions themselves do not tell.
    copied_groups: BTreeMap<PciAddress, i32>,
    /// Mediated devices by the function that carries them: UUID, and the driver's name of the type.
    mdevs: BTreeMap<PciAddress, Vec<(String, Option<String>)>>,
}

impl Scanner {
    /// A reader of this tree.
    pub fn new(tree: Tree) -> Self {
        Self {
            tree,
            products: BTreeMap::new(),
            type_names: TypeNames::default(),
            classes: BTreeMap::new(),
            groups: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            unlisted: BTreeMap::new(),
            regions: RefCell::default(),
            resizable: RefCell::default(),
            opened: RefCell::default(),
            bound: BTreeMap::new(),
            copied_groups: BTreeMap::new(),
            mdevs: BTreeMap::new(),
        }
    }

    /// The tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The whole host.
    pub fn read(&mut self) -> HostFacts {
        let mut facts = HostFacts::default();
        self.opened.replace(None);
        kernel::read(&self.tree, &mut facts);
        cpus::read(&self.tree, &mut facts);
        self.functions(&mut facts);
        cells::judge(&self.tree, &mut facts);
        facts.device_plugins = device_plugins::read(&self.tree);
        facts.denied = self.tree.denied();
        facts.incomplete.extend(self.tree.take_refused());
        facts
    }

    /// Reads again what belongs to one PCI function: a card or a host device itself, one of their
    /// virtual functions, or a companion of a card.
    ///
    /// Functions that came or went need a whole pass; `false` says so, and then nothing was changed.
    pub fn refresh(&mut self, facts: &mut HostFacts, address: PciAddress) -> bool {
        self.opened.replace(None);
        let known = self.refresh_one(facts, address);
        if known {
            cells::judge(&self.tree, facts);
        }
        known
    }

    fn refresh_one(&mut self, facts: &mut HostFacts, address: PciAddress) -> bool {
        let position =
            |functions: &[VirtualFunction]| functions.iter().position(|vf| vf.pci_address == address);
        for card in &mut facts.cards {
            if let Some(position) = position(&card.virtual_functions) {
                self.refresh_function(&mut card.virtual_functions[position]);
                self.share_of_function(card, address);
                return true;
            }
            let is_companion = || card.companions.iter().any(|companion| companion.pci_address == address);
            if card.pci_address == address || is_companion() {
                return self.refresh_card(card);
            }
        }
        for number in 0..facts.host_devices.len() {
            let device = &mut facts.host_devices[number];
            if let Some(position) = position(&device.virtual_functions) {
                let function = &mut device.virtual_functions[position];
                self.refresh_function(function);
                if device.kind == HostDeviceKind::NetworkCard {
                    self.judge_function(function);
                }
                return true;
            }
            if device.pci_address == address {
                let Some(mut fresh) = self.host_device(address, facts) else { return false };
                let device = &mut facts.host_devices[number];
                if fresh.virtual_functions.len() != device.virtual_functions.len() {
                    return false;
                }
                fresh.product.clone_from(&device.product);
                *device = fresh;
                return true;
            }
        }
        false
    }

    /// The card itself. Its virtual functions tell of changes themselves.
    fn refresh_card(&mut self, card: &mut Device) -> bool {
        let known = (std::mem::take(&mut card.virtual_functions), card.sriov.map(|sriov| sriov.num_vfs));
        self.mdevs_of(card.pci_address);
        let fresh = self.card_with(card.pci_address, known);
        match fresh {
            Ok(mut fresh) => {
                fresh.product.clone_from(&card.product);
                if !fresh.virtual_functions.is_empty() {
                    fresh.framework = card.framework;
                    fresh.placements = std::mem::take(&mut card.placements);
                    fresh.instances = std::mem::take(&mut card.instances);
                }
                *card = fresh;
                true
            }
            Err(functions) => {
                card.virtual_functions = functions;
                false
            }
        }
    }

    /// Reads again CPUs, NUMA cells, memory and hugepages.
    pub fn refresh_compute(&self, facts: &mut HostFacts) {
        let mut fresh = HostFacts::default();
        cpus::read(&self.tree, &mut fresh);
        if !fresh.numa_cells.is_empty() {
            facts.numa_cells = fresh.numa_cells;
            facts.cpus = fresh.cpus;
            cells::judge(&self.tree, facts);
        }
    }

    fn product(&mut self, vendor: &str, device: &str) -> String {
        let ids = (vendor.to_owned(), device.to_owned());
        if !self.products.contains_key(&ids) {
            self.name_products(&BTreeSet::from([ids.clone()]));
        }
        self.products.get(&ids).cloned().flatten().unwrap_or_else(|| format!("{vendor}:{device}"))
    }

    /// Looks up those ids that were never looked up.
    fn name_products(&mut self, wanted: &BTreeSet<pci_ids::Ids>) {
        let unknown: BTreeSet<_> =
            wanted.iter().filter(|ids| !self.products.contains_key(ids)).cloned().collect();
        if unknown.is_empty() {
            return;
        }
        let text = PCI_IDS.iter().find_map(|path| self.tree.head(path, LARGE)).unwrap_or_default();
        let mut found = pci_ids::products(&text, &unknown);
        for ids in unknown {
            let product = found.remove(&ids);
            self.products.insert(ids, product);
        }
    }

    fn name_all(&mut self, facts: &mut HostFacts) {
        let of_card = |card: &Device| (card.vendor_id.clone(), card.device_id.clone());
        let of_device = |device: &HostDevice| (device.vendor_id.clone(), device.device_id.clone());
        let wanted =
            facts.cards.iter().map(of_card).chain(facts.host_devices.iter().map(of_device)).collect();
        self.name_products(&wanted);
        for card in &mut facts.cards {
            // A driver that told the name is believed.
            if card.product == format!("{}:{}", card.vendor_id, card.device_id) {
                card.product = self.product(&card.vendor_id, &card.device_id);
            }
        }
        for device in &mut facts.host_devices {
            device.product = self.product(&device.vendor_id, &device.device_id);
        }
    }
}

/// What the host tells of a card after its drivers were asked: which modes work. To be called once all
/// answers are in.
pub fn judge_modes(facts: &mut HostFacts) {
    for card in &mut facts.cards {
        let mut modes = supports::judge(card, facts.iommu.groups);
        // What an admin's hook says of a mode is not judged again.
        for word in facts.hook_words.get(&card.pci_address).into_iter().flatten() {
            if let Some(mode) = modes.iter_mut().find(|mode| mode.mode == word.mode) {
                mode.clone_from(word);
            }
        }
        card.supports = modes;
    }
}

#[cfg(test)]
mod odd_tests;
#[cfg(test)]
mod tests;
