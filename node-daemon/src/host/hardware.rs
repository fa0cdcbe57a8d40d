//! What desktops can be given of this host now: a view that follows the inventory.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use gpudesk_crds::{
    GpuNodeSpec,
    gpu_node_status::{Device, HostDevice, LayoutPlaces},
    types::{CpuSet, PciAddress},
};
use gpudesk_inventory::topology::HostFacts;
use tokio::{sync::watch, time::timeout};

/// The places of cards with a fixed layout.
pub type Layouts = BTreeMap<PciAddress, Vec<LayoutPlaces>>;

/// What desktops can be given of this host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hardware {
    /// Its cards.
    pub cards: Vec<Device>,
    /// Its network cards and drives.
    pub host_devices: Vec<HostDevice>,
    /// Its online CPUs that desktops without CPUs of their own may run on: all but the isolated ones.
    pub cpus: CpuSet,
    /// The places of the cards whose owner fixes a layout: only these are given, and none where it cannot be. Absent
    /// before it is known what the owner wants.
    pub layouts: Option<Layouts>,
}

impl Hardware {
    fn of(facts: &HostFacts, layouts: Option<Layouts>) -> Self {
        let cores = facts.numa_cells.iter().flat_map(|cell| &cell.cores);
        let is_shared = |cpu: &u32| !facts.cpus.isolated.contains(*cpu);
        let cpus = cores.flat_map(CpuSet::iter).filter(is_shared).collect();
        Self { cards: facts.cards.clone(), host_devices: facts.host_devices.clone(), cpus, layouts }
    }
}

/// The newest view, for those who read it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HardwareView(watch::Receiver<Arc<Hardware>>);

/// Where each look at the host leaves what it saw. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HardwareSeen(watch::Sender<Arc<Hardware>>);

/// A view and its source; empty before the first look.
pub fn hardware() -> (HardwareSeen, HardwareView) {
    let (sender, receiver) = watch::channel(Arc::default());
    (HardwareSeen(sender), HardwareView(receiver))
}

impl HardwareSeen {
    /// The places of the cards for which a rule fixes a layout.
    pub fn layouts(spec: &GpuNodeSpec, shown: &[Device]) -> Layouts {
        let fixed = |card: &&Device| {
            spec.rule_for(card, shown.iter())
                .is_some_and(|rule| !rule.keeps() && rule.policy.layout.is_some())
        };
        shown.iter().filter(fixed).map(|card| (card.pci_address, card.layout.clone())).collect()
    }

    /// Leaves what was seen, and the places of fixed layouts that are published with it, where they are known; those
    /// that were known last stand. Those who wait for a change are told when it is one.
    pub fn set(&self, facts: &HostFacts, layouts: Option<Layouts>) {
        self.0.send_if_modified(|last| {
            let seen = Hardware::of(facts, layouts.or_else(|| last.layouts.clone()));
            let changed = **last != seen;
            if changed {
                *last = Arc::new(seen);
            }
            changed
        });
    }
}

impl HardwareView {
    /// What there is now.
    pub fn now(&self) -> Arc<Hardware> {
        Arc::clone(&self.0.borrow())
    }

    /// What there is once it is known what its owner wants of the cards; nothing where that takes longer.
    pub async fn with_layouts(&self, patience: Duration) -> Option<Arc<Hardware>> {
        let mut view = self.clone();
        let known = async {
            loop {
                let now = view.now();
                if now.layouts.is_some() {
                    return now;
                }
                view.changed().await;
            }
        };
        timeout(patience, known).await.ok()
    }

    /// Waits for a change. Never ends once nobody looks at the host any more.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpudesk_crds::gpu_node_status::NumaCell;

    #[tokio::test]
    async fn a_view_shows_what_was_seen_last_and_tells_of_changes_only() {
        let (seen, view) = hardware();
        assert_eq!(*view.now(), Hardware::default());
        let mut facts = HostFacts::default();
        facts.numa_cells.push(NumaCell { cores: vec!["0-1".parse().unwrap()], ..NumaCell::default() });
        seen.set(&facts, None);
        assert_eq!(view.now().cpus, "0-1".parse().unwrap());
        let mut waiting = view.clone();
        waiting.changed().await;
        seen.set(&facts, None);
        assert!(!waiting.0.has_changed().unwrap());
        facts.cards.push(Device::new("0000:41:00.0".parse().unwrap(), "10de", "26b9"));
        seen.set(&facts, None);
        waiting.changed().await;
        assert_eq!(view.now().cards.len(), 1);
        facts.cpus.isolated = "1".parse().unwrap();
        seen.set(&facts, None);
        assert_eq!(view.now().cpus, "0".parse().unwrap(), "nobody floats on isolated CPUs");
        assert_eq!(view.with_layouts(Duration::ZERO).await, None, "nobody has said what the owner wants");
        seen.set(&facts, Some(BTreeMap::from([(facts.cards[0].pci_address, vec![])])));
        let known = view.with_layouts(Duration::from_mins(1)).await.unwrap();
        assert_eq!(known.layouts.as_ref().unwrap().len(), 1, "a layout that is not planned has no places");
        seen.set(&facts, None);
        assert_eq!(view.now(), known, "what was known stands");
    }
}
