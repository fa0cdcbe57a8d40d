//! What is told of cards beside what is found on them: resets, what is waited for, how far what was before is put back.
#![expect(clippy::disallowed_methods, reason = "adapter: notes since when something is waited for")]

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_status::{CardReset, CardWait, DriveErasure, Restoring},
    types::{PciAddress, ShareMode},
};
use gpudesk_inventory::{status::CardState, topology::HostFacts};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    engine::{Engine, lock},
    foreign::{Foreign, foreign, words},
    host_devices::Erasure,
    journal::{Claim, Entry, Reset},
    live::LiveCard,
    observe::holder,
    refusal::Refusal,
    slots::Doing,
};
use crate::{
    foreign_domains::ForeignDomains,
    host::gpu_driver::{CardFigures, GpuError, InstanceKey},
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
            let not_whole = not_whole.or_else(|| self.without_partition(card));
            let waiting = working.get(&address).map(|doing| (self.waits(doing), doing.since));
            let waiting = waiting.or_else(|| lock(&self.blocked).get(&address).cloned());
            let restoring = lock(&self.restoring).get(&address).copied();
            let state = CardState {
                foreign: devices,
                taken,
                not_whole,
                last_reset: reset.map(shown),
                last_erase: None,
                waiting_for: waiting.map(|(what, since)| CardWait { what: cut(&what), since: second(since) }),
                restoring: restoring
                    .map(|(done, total)| Restoring { done: count(done), total: count(total) }),
            };
            (address, state)
        });
        let functions = facts.host_devices.iter().map(|device| device.pci_address);
        let others = functions.filter_map(|address| {
            let known = journal.cards.get(&address)?;
            let state = CardState {
                last_reset: known.last_reset.as_ref().map(shown),
                last_erase: known.last_erase.as_ref().map(erased),
                ..CardState::default()
            };
            Some((address, state))
        });
        states.chain(others).collect()
    }

    /// A step that the kernel has not come back from, and whom that waits for.
    fn waits(&self, doing: &Doing) -> String {
        let Some(step) = doing.step.as_ref().filter(|step| step.may_wait()) else {
            return format!("{} is not done yet", doing.what);
        };
        let opened = self.kernel.open_devices();
        match opened.and_then(|opened| holder(&*self.kernel, &opened, step)) {
            Ok(Some(process)) => format!("{step} waits for process {}", self.process(process)),
            Ok(None) => format!("{step} waits for the kernel, and no process is seen that it waits for"),
            Err(error) => {
                format!("{step} waits for the kernel, and whom that waits for is not seen: {error}")
            }
        }
    }

    /// A process of the host by its number and the name of its program.
    fn process(&self, process: u32) -> String {
        let name = self.kernel.read(&format!("proc/{process}/comm")).unwrap_or_default();
        let name = words(String::from_utf8_lossy(&name).trim(), 64);
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

    /// Says that a function which carried a share is somebody else's by now.
    pub(super) fn tell_of_others(&self, key: &InstanceKey, live: Option<&LiveCard>) {
        let Ok(journal) = self.journal() else { return };
        let claim = journal.entry(key).and_then(|entry| entry.claim.as_ref());
        if let (Some(Claim::Vgpu { function, id }), Some(live)) = (claim, live)
            && let Some(vgpu) = live.virtual_function(*function).and_then(|vf| vf.vgpu.as_ref())
            && vgpu.current != Some(0)
        {
            let found = vgpu.current;
            tracing::warn!(%key, %function, id, ?found, "it has another vGPU by now, which is left as it is");
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

/// What of a share is told to the guest and in the API.
pub(super) fn describe(entry: &mut Entry, live: &LiveCard) {
    match entry.share.mode {
        ShareMode::Passthrough => {
            entry.companions = live.members.iter().map(|member| member.address).collect();
            entry.bar_mib = live.resizable.as_ref().and_then(|region| region.mib);
        }
        ShareMode::Mig => {
            let place = (entry.profile, entry.share.start);
            let instances = &live.control.gpu_instances;
            let under = instances.iter().find(|seen| (Some(seen.profile), Some(seen.start)) == place);
            entry.gpu_instance = under.and_then(|seen| i32::try_from(seen.id).ok());
            entry.mig_uuid = under.and_then(|seen| seen.uuid.clone());
        }
        ShareMode::Vgpu | ShareMode::VirtualFunctions => {}
    }
}

fn shown(reset: &Reset) -> CardReset {
    CardReset {
        method: reset.method.chars().take(32).collect(),
        time: second(reset.at),
        succeeded: reset.fault.is_none(),
        verified: reset.verified.clone(),
        message: reset.fault.as_deref().map(cut),
    }
}

fn erased(erasure: &Erasure) -> DriveErasure {
    DriveErasure {
        method: erasure.method.to_string(),
        time: second(erasure.at),
        succeeded: erasure.fault.is_none(),
        message: erasure.fault.as_deref().map(cut),
    }
}

fn cut(text: &str) -> String {
    words(text, SENTENCE)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Whole seconds, as the API keeps them.
fn second(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}
