//! What is taken on a node: from allocations, and from what exists on cards though no allocation
//! explains it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpudesk_crds::{
    Allocation, GpuAllocation,
    gpu_node_status::Instance,
    types::{CpuSet, PageSize, ShareMode},
};

use crate::{facts::NodeFacts, request::DesktopKey};

/// What is taken on a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeUse {
    /// Per card, in the order of the node's cards.
    pub cards: Vec<CardUse>,
    /// CPUs that desktops have for themselves.
    pub dedicated: CpuSet,
    /// vCPUs that share the other CPUs.
    pub shared_vcpus: Pool,
    /// Memory: MiB of ordinary pages, or pages of a size.
    pub memory: BTreeMap<PageSize, Pool>,
    /// Shares in use per profile.
    pub profiles: BTreeMap<String, i32>,
}

/// Something taken from cells, or from the node without a say from which cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Taken from one cell.
    pub cells: BTreeMap<i32, i64>,
    /// Taken from the node as a whole.
    pub floating: i64,
}

impl Pool {
    /// Taken altogether.
    pub fn total(&self) -> i64 {
        self.cells.values().sum::<i64>() + self.floating
    }
    /// Taken from a cell for certain.
    pub fn on(&self, cell: i32) -> i64 {
        self.cells.get(&cell).copied().unwrap_or(0)
    }
    fn add(&mut self, cells: &[i32], amount: i64) {
        match cells {
            [cell] => *self.cells.entry(*cell).or_default() += amount,
            _ => self.floating += amount,
        }
    }
}

/// What is taken of a card.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CardUse {
    /// Shares on it.
    pub shares: Vec<UsedShare>,
    /// A card of its IOMMU group is given away whole, and this one with it.
    pub with_group: bool,
}

/// A share on a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedShare {
    /// Mode.
    pub mode: ShareMode,
    /// Type, as in the card's placements.
    pub type_name: String,
    /// Framebuffer in MiB; 0 when not known.
    pub framebuffer_mib: i64,
    /// Start position, when it has one.
    pub start: Option<i32>,
    /// Length in units; 0 when it has no position or is of a type that the card does not list.
    pub size: i32,
    /// Compute slices.
    pub compute_slices: i32,
}

impl UsedShare {
    /// A share on `card`, with the geometry that the card lists for its type.
    fn on(facts: &NodeFacts, card: usize, mode: ShareMode, type_name: &str, start: Option<i32>) -> Self {
        let placement = facts.cards.get(card).and_then(|card| {
            card.device.placements.iter().find(|p| p.mode == mode && p.type_name == type_name)
        });
        Self {
            mode,
            type_name: type_name.into(),
            framebuffer_mib: placement.map_or(0, |p| p.framebuffer_mib),
            start,
            size: placement.map_or(0, |p| p.size),
            compute_slices: placement.map_or(0, |p| p.compute_slices),
        }
    }
}

impl NodeUse {
    /// A node on which nothing is taken.
    pub fn empty(facts: &NodeFacts) -> Self {
        Self { cards: vec![CardUse::default(); facts.cards.len()], ..Self::default() }
    }

    /// What `held` and the instances on the cards take. The desktop `except` counts as if it held
    /// nothing there.
    pub fn of(
        facts: &NodeFacts,
        held: &BTreeMap<DesktopKey, Arc<Allocation>>,
        except: Option<&DesktopKey>,
    ) -> Self {
        let mut used = Self::empty(facts);
        let held: BTreeMap<&DesktopKey, &Allocation> =
            held.iter().filter(|(key, _)| Some(*key) != except).map(|(key, a)| (key, &**a)).collect();
        for allocation in held.values() {
            used.add_compute(facts, allocation);
            for gpu in &allocation.gpus {
                *used.profiles.entry(gpu.profile.clone()).or_default() += 1;
                if let Some(card) = facts.card_of(gpu.device_uuid.as_deref(), gpu.device) {
                    used.add_share(
                        facts,
                        card,
                        UsedShare::on(facts, card, gpu.mode, &gpu.type_name, gpu.start),
                    );
                }
            }
        }
        for (card, share) in foreign(facts, &held, except) {
            used.add_share(facts, card, share);
        }
        used
    }

    fn add_compute(&mut self, facts: &NodeFacts, allocation: &Allocation) {
        let Some(compute) = &allocation.compute else { return };
        if compute.vcpu_pins.is_empty() {
            let vcpus = i64::from(compute.cores) * i64::from(compute.threads_per_core);
            self.shared_vcpus.add(&compute.numa_cells, vcpus);
        } else {
            let pinned: CpuSet = compute.vcpu_pins.iter().flat_map(|pin| pin.cpus.iter()).collect();
            // A core is given whole: its other threads are taken with it.
            let cores = facts.cells.iter().flat_map(|cell| &cell.cores);
            self.dedicated.extend(
                cores.filter(|core| !core.is_disjoint(&pinned)).flat_map(CpuSet::iter).collect::<Vec<_>>(),
            );
            self.dedicated.extend(pinned.iter().collect::<Vec<_>>());
        }
        let amount =
            compute.page_size.mib().map_or(compute.memory_mib, |page| (compute.memory_mib + page - 1) / page);
        self.memory.entry(compute.page_size).or_default().add(&compute.numa_cells, amount);
    }

    /// Puts a share on a card. A whole card takes the cards of its IOMMU group with it.
    pub fn add_share(&mut self, facts: &NodeFacts, card: usize, share: UsedShare) {
        if share.mode == ShareMode::Passthrough
            && let Some(facts) = facts.cards.get(card)
        {
            for member in &facts.group {
                if let Some(member) = self.cards.get_mut(*member) {
                    member.with_group = true;
                }
            }
        }
        if let Some(card) = self.cards.get_mut(card) {
            card.shares.push(share);
            card.shares.sort_by(|a, b| (a.start, &a.type_name).cmp(&(b.start, &b.type_name)));
        }
    }
}

/// The instances that no allocation explains: left behind, or made by somebody else. They occupy
/// the card all the same. Those of the desktop `except` are its own and not in its way.
fn foreign(
    facts: &NodeFacts,
    held: &BTreeMap<&DesktopKey, &Allocation>,
    except: Option<&DesktopKey>,
) -> Vec<(usize, UsedShare)> {
    let except = except.map(ToString::to_string);
    let mut found = vec![];
    for (index, card) in facts.cards.iter().enumerate() {
        if card.device.instances.is_empty() {
            continue;
        }
        let mut expected: Vec<(String, &GpuAllocation)> = held
            .iter()
            .flat_map(|(key, allocation)| allocation.gpus.iter().map(move |gpu| (key.to_string(), gpu)))
            .filter(|(_, gpu)| facts.card_of(gpu.device_uuid.as_deref(), gpu.device) == Some(index))
            .collect();
        let mut instances: Vec<&Instance> = card.device.instances.iter().collect();
        // Those with a known position first, so that an instance without one takes what is left.
        instances.sort_by_key(|instance| (instance.start.is_none(), instance.start, instance.id.clone()));
        for instance in instances {
            if instance.owner.is_some() && instance.owner == except {
                continue;
            }
            let explained = expected.iter().position(|(owner, gpu)| {
                gpu.mode == instance.mode
                    && gpu.type_name == instance.type_name
                    && instance.owner.as_ref().is_none_or(|named| named == owner)
                    && (gpu.start.is_none() || instance.start.is_none() || gpu.start == instance.start)
            });
            match explained {
                Some(position) => {
                    expected.remove(position);
                }
                None => found.push((
                    index,
                    UsedShare::on(facts, index, instance.mode, &instance.type_name, instance.start),
                )),
            }
        }
    }
    found
}

/// The CPUs of a cell that may still be dedicated, core by core.
pub fn free_cores<'a>(
    facts: &'a NodeFacts,
    used: &'a NodeUse,
    cells: &'a BTreeSet<i32>,
) -> impl Iterator<Item = &'a CpuSet> {
    facts
        .cells
        .iter()
        .filter(|cell| cells.contains(&cell.id))
        .flat_map(|cell| &cell.cores)
        .filter(|core| core.is_disjoint(&used.dedicated))
}
