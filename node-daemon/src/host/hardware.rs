//! What desktops can be given of this host now: a view that follows the inventory.

use std::sync::Arc;

use gpudesk_crds::{gpu_node_status::Device, types::CpuSet};
use gpudesk_inventory::topology::HostFacts;
use tokio::sync::watch;

/// What desktops can be given of this host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hardware {
    /// Its cards.
    pub cards: Vec<Device>,
    /// Its online CPUs that desktops without CPUs of their own may run on: all but the isolated ones.
    pub cpus: CpuSet,
}

impl From<&HostFacts> for Hardware {
    fn from(facts: &HostFacts) -> Self {
        let cores = facts.numa_cells.iter().flat_map(|cell| &cell.cores);
        let is_shared = |cpu: &u32| !facts.cpus.isolated.contains(*cpu);
        Self { cards: facts.cards.clone(), cpus: cores.flat_map(CpuSet::iter).filter(is_shared).collect() }
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
    /// Leaves what was seen; those who wait for a change are told when it is one.
    pub fn set(&self, facts: &HostFacts) {
        let seen = Hardware::from(facts);
        self.0.send_if_modified(|last| {
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
        seen.set(&facts);
        assert_eq!(view.now().cpus, "0-1".parse().unwrap());
        let mut waiting = view.clone();
        waiting.changed().await;
        seen.set(&facts);
        assert!(!waiting.0.has_changed().unwrap());
        facts.cards.push(Device::new("0000:41:00.0".parse().unwrap(), "10de", "26b9"));
        seen.set(&facts);
        waiting.changed().await;
        assert_eq!(view.now().cards.len(), 1);
        facts.cpus.isolated = "1".parse().unwrap();
        seen.set(&facts);
        assert_eq!(view.now().cpus, "0".parse().unwrap(), "nobody floats on isolated CPUs");
    }
}
