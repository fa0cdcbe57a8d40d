//! What is told of cards beside what is found on them: resets, what is waited for, how far what was before is put back.
#![expect(clippy::disallowed_methods, reason = "adapter: notes since when something is waited for")]

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_status::{CardReset, CardWait, Restoring},
    types::PciAddress,
};
use gpudesk_inventory::{status::CardState, topology::HostFacts};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    engine::{Engine, lock},
    foreign::{Foreign, foreign},
    journal::Reset,
    observe::holder,
    refusal::Refusal,
    slots::Doing,
};
use crate::{
    foreign_domains::ForeignDomains,
    host::gpu_driver::{CardFigures, GpuError},
};

/// The most characters of a sentence, as the schema has it.
const SENTENCE: usize = 512;

impl Engine {
    /// What is known of each card.
    pub(super) fn states(
        &self,
        facts: &HostFacts,
        domains: &ForeignDomains,
    ) -> BTreeMap<PciAddress, CardState> {
        // Without the journal nobody can tell what is whose.
        let Ok(journal) = self.journal() else { return BTreeMap::new() };
        let working = self.slots.waiting(self.patience);
        let mut foreign = foreign(facts, &journal, domains);
        let states = facts.cards.iter().map(|card| {
            let address = card.pci_address;
            let Foreign { devices, taken, along } = foreign.remove(&address).unwrap_or_default();
            let reset = journal.cards.get(&address).and_then(|known| known.last_reset.as_ref());
            let not_whole = along.map(|along| {
                format!("{along}, which would go along with the card, is bound for guests, not by gpudesk")
            });
            let waiting = working.get(&address).map(|doing| (self.waits(doing), doing.since));
            let waiting = waiting.or_else(|| lock(&self.blocked).get(&address).cloned());
            let restoring = lock(&self.restoring).get(&address).copied();
            let state = CardState {
                foreign: devices,
                taken,
                not_whole,
                last_reset: reset.map(shown),
                waiting_for: waiting.map(|(what, since)| CardWait { what: cut(&what), since: second(since) }),
                restoring: restoring
                    .map(|(done, total)| Restoring { done: count(done), total: count(total) }),
            };
            (address, state)
        });
        states.collect()
    }

    /// A step that the kernel has not come back from, and whom that waits for.
    fn waits(&self, doing: &Doing) -> String {
        let Some(step) = doing.step.as_ref().filter(|step| step.may_wait()) else {
            return format!("{} is not done yet", doing.what);
        };
        let opened = self.kernel.open_devices().unwrap_or_default();
        match holder(&*self.kernel, &opened, step) {
            Ok(Some(process)) => format!("{step} waits for process {}", self.process(process)),
            Ok(None) | Err(_) => {
                format!("{step} waits for the kernel, and no process is seen that it waits for")
            }
        }
    }

    /// A process of the host by its number and the name of its program.
    fn process(&self, process: u32) -> String {
        let name = self.kernel.read(&format!("proc/{process}/comm")).unwrap_or_default();
        let name: String =
            String::from_utf8_lossy(&name).trim().chars().filter(|c| !c.is_control()).take(64).collect();
        if name.is_empty() { process.to_string() } else { format!("{process} ({name})") }
    }

    /// Notes what work that is tried again waits for; nothing once it is done.
    pub(super) fn note_wait(&self, card: PciAddress, error: Option<&GpuError>) {
        let what = error.and_then(|error| match error {
            GpuError::Unfit { source: Refusal::Open { device, process }, .. } => {
                Some(format!("{device} is open: it waits for process {}", self.process(*process)))
            }
            GpuError::Unfit { source, .. } => Some(source.to_string()),
            GpuError::Step { step, why, .. } => Some(format!("{step}: {why}")),
            GpuError::Waiting { what, .. } => Some(what.clone()),
            _ => None,
        });
        let mut blocked = lock(&self.blocked);
        match what {
            Some(what) => {
                let since = blocked.get(&card).map_or_else(Timestamp::now, |(_, since)| *since);
                blocked.insert(card, (what, since));
            }
            None => _ = blocked.remove(&card),
        }
    }

    /// Counts a reset.
    pub(super) fn count(&self, reset: &Reset) {
        let key = (reset.method.clone(), reset.fault.is_none());
        *lock(&self.resets).entry(key).or_default() += 1;
    }

    /// What is counted of cards.
    pub(super) fn figures(&self) -> CardFigures {
        let journal = self.journal();
        let cards = journal.iter().flat_map(|journal| journal.cards.values());
        CardFigures {
            resets: lock(&self.resets).clone(),
            quarantined: cards.filter(|card| card.quarantine.is_some()).count(),
        }
    }
}

fn shown(reset: &Reset) -> CardReset {
    CardReset {
        method: reset.method.chars().take(32).collect(),
        time: second(reset.at),
        succeeded: reset.fault.is_none(),
        message: reset.fault.as_deref().map(cut),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(SENTENCE).collect()
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Whole seconds, as the API keeps them.
fn second(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}
