//! What is taken on a node: from allocations, and from what exists on cards though no allocation
//! explains it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpudesk_crds::{
    Allocation, AllocationId, Compute,
    types::{CpuSet, PciAddress, ShareMode},
};

use crate::{
    facts::{self, FreeCores, NodeFacts, Stray, page},
    request::DesktopKey,
    state::{CardUse, UsedShare},
};

/// What is taken on a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeUse {
    /// Per card, in the order of the node's cards.
    pub cards: Vec<CardUse>,
    /// Per cell, in the order of the node's cells.
    pub cells: Vec<CellUse>,
    /// Taken from the node without a say from which cell.
    pub floating: Taken,
    /// Functions of network cards, and drives.
    pub functions: BTreeSet<PciAddress>,
}

/// What is taken of a cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CellUse {
    /// Shared vCPUs and memory.
    pub taken: Taken,
    /// CPUs that desktops have for themselves, with those that go along.
    pub dedicated: CpuSet,
    /// Cores of which nothing is dedicated: how many, with how many threads altogether, and how
    /// many of them have two threads or more.
    pub free_cores: FreeCores,
    /// Threads that are nobody's, in whatever core.
    pub free_threads: i64,
    /// Cores with two such threads or more.
    pub free_pairs: i64,
}

/// Amounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// vCPUs that share CPUs.
    pub vcpus: i64,
    /// Memory per size of page: MiB, or pages.
    pub memory: [i64; 3],
}

/// What one allocation takes, in the terms of its node. Read once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claim {
    /// The decision.
    pub id: Option<AllocationId>,
    /// Shares, each with the position of its card.
    pub shares: Vec<(usize, UsedShare)>,
    /// Amounts, each with the position of its cell; from no cell in particular without.
    pub taken: Vec<(Option<usize>, Taken)>,
    /// CPUs for itself, with those that go along.
    pub dedicated: CpuSet,
    /// Functions and drives.
    pub functions: Vec<PciAddress>,
}

impl Claim {
    /// What `allocation` takes on a node. A card that is not there is not taken: the node has
    /// another reason not to give it.
    pub fn of(facts: &NodeFacts, allocation: &Allocation) -> Self {
        let mut claim = Self { id: allocation.id, ..Self::default() };
        for gpu in &allocation.gpus {
            let Some(position) = facts.card_of(gpu.device_uuid.as_deref(), gpu.device) else { continue };
            let Some(card) = facts.cards.get(position) else { continue };
            let kind = card.shape.kind_of(gpu.mode, &gpu.type_name);
            let backed = kind.and_then(|kind| card.shape.kind(kind)).map(|kind| kind.backed.as_slice());
            let vgpu = gpu.vgpu_type.as_ref().and_then(|name| {
                let position = backed.unwrap_or_default().iter().position(|vgpu| vgpu.name == *name)?;
                u16::try_from(position).ok()
            });
            let scheduler = gpu.vgpu_scheduler;
            let share = UsedShare { mode: gpu.mode, start: gpu.start, kind, vgpu, scheduler };
            claim.shares.push((position, share));
        }
        claim.functions = allocation.host_devices.iter().map(|device| device.device).collect();
        if let Some(compute) = &allocation.compute {
            claim.add_compute(facts, compute);
        }
        claim
    }

    fn add_compute(&mut self, facts: &NodeFacts, compute: &Compute) {
        let pages = |mib: i64| compute.page_size.mib().map_or(mib, |page| (mib + page - 1) / page);
        let of = |vcpus: i64, mib: i64| {
            let mut taken = Taken { vcpus: facts::vcpus(vcpus), memory: [0; 3] };
            taken.memory[page(compute.page_size)] = pages(facts::memory(mib));
            taken
        };
        let shares_cpus = compute.vcpu_pins.is_empty();
        if compute.guest_cells.is_empty() {
            let vcpus = i64::from(compute.cores) * i64::from(compute.threads_per_core);
            let cell = match compute.numa_cells.as_slice() {
                [cell] => facts.cell(*cell),
                _ => None,
            };
            self.taken.push((cell, of(if shares_cpus { vcpus } else { 0 }, compute.memory_mib)));
        } else {
            for guest in &compute.guest_cells {
                let vcpus = i64::try_from(guest.vcpus.len()).unwrap_or(i64::MAX);
                let taken = of(if shares_cpus { vcpus } else { 0 }, guest.memory_mib);
                self.taken.push((facts.cell(guest.host_cell), taken));
            }
        }
        let pinned: CpuSet = compute.vcpu_pins.iter().flat_map(|pin| pin.cpus.iter()).collect();
        if !compute.threads_only {
            // A core is given whole: its other threads are taken with it.
            let cores = facts.cells.iter().flat_map(|cell| &cell.cores);
            let touched = cores.filter(|core| !core.is_disjoint(&pinned));
            self.dedicated.extend(touched.flat_map(CpuSet::iter));
        }
        self.dedicated.extend(pinned.iter());
    }
}

impl NodeUse {
    /// A node on which nothing is taken.
    pub fn empty(facts: &NodeFacts) -> Self {
        let mut used = Self {
            cards: vec![CardUse::default(); facts.cards.len()],
            cells: vec![CellUse::default(); facts.cells.len()],
            ..Self::default()
        };
        used.count_cores(facts);
        used
    }

    /// What `held`, machines that no allocation accounts for, and the instances on the cards take. The desktop
    /// `except` counts as if it held nothing there.
    pub fn of<'a>(
        facts: &'a NodeFacts,
        held: impl Iterator<Item = (&'a DesktopKey, &'a Claim)> + Clone,
        except: Option<&DesktopKey>,
    ) -> Self {
        let mut used = Self {
            cards: vec![CardUse::default(); facts.cards.len()],
            cells: vec![CellUse::default(); facts.cells.len()],
            ..Self::default()
        };
        let all = held.clone();
        // Its allocation was given back, and the node has not heard of it yet.
        let is_held = move |stray: &Stray| {
            let same =
                |(key, claim): (&DesktopKey, &Claim)| *key == stray.owner && claim.id == stray.claim.id;
            stray.claim.id.is_some() && all.clone().any(same)
        };
        let strays = facts.strays.iter().filter(move |stray| !is_held(stray));
        let held = held.filter(|(key, _)| Some(*key) != except);
        let taken = held.chain(strays.map(|stray| (&stray.owner, &stray.claim)));
        for (_, claim) in taken.clone() {
            used.add(facts, claim);
        }
        for (card, share) in foreign(facts, &taken, except) {
            used.add_share(facts, card, share);
        }
        used.count_cores(facts);
        used
    }

    fn add(&mut self, facts: &NodeFacts, claim: &Claim) {
        let Claim { id: _, shares, taken, dedicated, functions } = claim;
        for (card, share) in shares {
            self.add_share(facts, *card, *share);
        }
        for (cell, taken) in taken {
            let into = cell.and_then(|cell| self.cells.get_mut(cell)).map(|cell| &mut cell.taken);
            into.unwrap_or(&mut self.floating).add(taken);
        }
        if !dedicated.is_empty() {
            for (cell, used) in facts.cells.iter().zip(&mut self.cells) {
                let here = cell.cores.iter().flat_map(CpuSet::iter).filter(|cpu| dedicated.contains(*cpu));
                used.dedicated.extend(here);
            }
        }
        self.functions.extend(functions.iter().copied());
    }

    /// Puts a share on a card. A whole card takes the cards of its IOMMU group with it.
    pub fn add_share(&mut self, facts: &NodeFacts, card: usize, share: UsedShare) {
        if share.mode == ShareMode::Passthrough
            && let Some(facts) = facts.cards.get(card)
        {
            for member in &facts.group {
                if let Some(member) = self.cards.get_mut(*member) {
                    member.take_with_group();
                }
            }
        }
        if let (Some(used), Some(facts)) = (self.cards.get_mut(card), facts.cards.get(card)) {
            used.put(share);
            used.is_in_force(facts.scheduler);
        }
    }

    fn count_cores(&mut self, facts: &NodeFacts) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (cell, used) in facts.cells.iter().zip(&mut self.cells) {
            let CellUse { taken: _, dedicated, free_cores, free_threads, free_pairs } = used;
            if dedicated.is_empty() {
                (*free_cores, *free_threads, *free_pairs) =
                    (cell.whole, cell.whole.threads, cell.whole.pairs);
                continue;
            }
            (*free_cores, *free_threads, *free_pairs) = (FreeCores::default(), 0, 0);
            for core in &cell.cores {
                let free = core.iter().filter(|cpu| !dedicated.contains(*cpu)).count();
                *free_threads += number(free);
                *free_pairs += i64::from(free >= 2);
                if free == core.len() {
                    free_cores.threads += number(free);
                    free_cores.pairs += i64::from(free >= 2);
                }
            }
        }
    }

    /// CPUs that desktops have for themselves.
    pub fn dedicated(&self) -> i64 {
        self.cells.iter().map(|cell| i64::try_from(cell.dedicated.len()).unwrap_or(i64::MAX)).sum()
    }

    /// Taken altogether, in cells and out of them.
    pub fn total(&self) -> Taken {
        let mut total = self.floating;
        for cell in &self.cells {
            total.add(&cell.taken);
        }
        total
    }
}

impl Taken {
    fn add(&mut self, other: &Self) {
        let Self { vcpus, memory } = other;
        self.vcpus = self.vcpus.saturating_add(*vcpus);
        for (own, other) in self.memory.iter_mut().zip(memory) {
            *own = own.saturating_add(*other);
        }
    }
}

/// The instances that no allocation explains: left behind, or made by somebody else. They occupy
/// the card all the same. Those of the desktop `except` are its own and not in its way.
fn foreign<'a>(
    facts: &NodeFacts,
    held: &(impl Iterator<Item = (&'a DesktopKey, &'a Claim)> + Clone),
    except: Option<&DesktopKey>,
) -> Vec<(usize, UsedShare)> {
    let mut found = vec![];
    let mut own: Option<String> = None;
    for (index, card) in facts.cards.iter().enumerate() {
        if card.instances.is_empty() {
            continue;
        }
        let own = except.map(|key| &*own.get_or_insert_with(|| key.to_string()));
        let on_card = held.clone().flat_map(|(key, claim)| {
            let here = claim.shares.iter().filter(move |(card, _)| *card == index);
            here.map(move |(_, share)| (key, *share))
        });
        let mut expected: Vec<(String, UsedShare)> =
            on_card.map(|(key, share)| (key.to_string(), share)).collect();
        for instance in &card.instances {
            if instance.owner.is_some() && instance.owner.as_ref() == own {
                continue;
            }
            let takes = instance.takes;
            let explained = expected.iter().position(|(owner, share)| {
                share.mode == takes.mode
                    && share.kind == takes.kind
                    && instance.owner.as_ref().is_none_or(|named| named == owner)
                    && (share.start.is_none() || takes.start.is_none() || share.start == takes.start)
                    && (share.vgpu.is_none() || takes.vgpu.is_none() || share.vgpu == takes.vgpu)
            });
            match explained {
                Some(position) => {
                    expected.remove(position);
                }
                None => found.push((index, takes)),
            }
        }
    }
    found
}

/// Desktops that left something on the cards of a node, or hold something there by the node's word.
pub fn named_owners(facts: &NodeFacts) -> BTreeSet<&str> {
    let instances = facts.cards.iter().flat_map(|card| &card.instances);
    instances.filter_map(|instance| instance.owner.as_deref()).collect()
}

/// What is held on a node, with what it means there.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// As it was decided.
    pub allocation: Arc<Allocation>,
    /// What it takes.
    pub claim: Claim,
}

/// Who holds what on a node.
pub type HeldBy = BTreeMap<DesktopKey, Held>;
