//! What is asked for altogether: the shares that defined desktops want, running or not.
//!
//! Look-ahead weighs what a card could still give by how often it is wanted. The weights are coarse
//! on purpose: a pure function of what is defined, and one desktop more seldom changes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpudesk_crds::desktop_template::Pinning;

use crate::{
    facts::page,
    request::{CardRequirements, Demand, Share, ShareRequest, VgpuWish},
};

/// Weights add up to about this.
pub const WHOLE: u32 = 4096;

/// How often each kind of share is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mix {
    /// What is wanted, each with its weight of [`WHOLE`]; never 0.
    pub wanted: Vec<(Wanted, u32)>,
}

/// A share that desktops want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Ways, best first.
    pub ways: Vec<Share>,
    /// Which cards qualify.
    pub cards: CardRequirements,
    /// What comes with it.
    pub needs: Needs,
}

impl Wanted {
    /// Whether the same is asked of cards, whatever CPUs and memory come with it.
    pub fn is_the_same_share(&self, other: &Self) -> bool {
        let Self { ways, cards, needs: _ } = self;
        (ways, cards) == (&other.ways, &other.cards)
    }
}

/// CPUs and memory that come with one share, and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Needs {
    /// vCPUs.
    pub vcpus: i64,
    /// Whether each has a CPU of its own.
    pub dedicated: bool,
    /// Kind of pages, as [`page`] numbers them.
    pub page: usize,
    /// MiB of ordinary pages, or pages.
    pub memory: i64,
    /// Memory of the GPU share in MiB, as far as the request says it; else a guess.
    pub gpu_mib: i64,
}

/// GPU memory of a share that does not say how much it is: a whole card, a type by its name.
const UNSAID_MIB: i64 = 16 * 1024;

impl Needs {
    /// What a demand needs for one of its shares.
    fn of(demand: &Demand, share: &ShareRequest) -> Self {
        let shares = i64::try_from(demand.shares.len()).unwrap_or(1).max(1);
        let memory = demand.memory;
        let amount = memory.pages.mib().map_or(memory.mib, |page| memory.mib / page.max(1));
        let gpu_mib = share.ways.first().map_or(0, |way| match &way.share {
            Share::Vgpu(VgpuWish::Size { series: _, min, max: _ }, _) => *min,
            Share::VirtualFunction { framebuffer_mib } => *framebuffer_mib,
            Share::Mig { profile, series: _, framebuffer_mib } => {
                framebuffer_mib.unwrap_or_else(|| gib_of(profile).saturating_mul(1024))
            }
            Share::Passthrough | Share::Vgpu(VgpuWish::Type(_), _) => 0,
        });
        Self {
            vcpus: (demand.cpu.vcpus() / shares).max(1),
            dedicated: demand.cpu.pinning != Pinning::Shared,
            page: page(memory.pages),
            memory: (amount / shares).max(1),
            gpu_mib: if gpu_mib > 0 { gpu_mib } else { UNSAID_MIB },
        }
    }
}

/// The size that a MIG profile's name tells: 24 of `1g.24gb+gfx`; 0 when it tells none.
fn gib_of(profile: &str) -> i64 {
    let size = profile.split_once('.').map_or("", |(_, size)| size);
    let digits: String = size.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// Counts of demands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    counts: BTreeMap<String, (Wanted, u64)>,
}

/// What makes two requests want the same: all but names. As text, which has an order.
fn key(wanted: &Wanted) -> String {
    format!("{wanted:?}")
}

impl Census {
    /// One more, or one less, asks for this.
    pub fn count(&mut self, demand: &Arc<Demand>, more: bool) {
        for share in &demand.shares {
            let wanted = Wanted {
                ways: share.ways.iter().map(|way| way.share.clone()).collect(),
                cards: share.cards.clone(),
                needs: Needs::of(demand, share),
            };
            let key = key(&wanted);
            let entry = self.counts.entry(key.clone()).or_insert_with(|| (wanted, 0));
            entry.1 = if more { entry.1 + 1 } else { entry.1.saturating_sub(1) };
            if entry.1 == 0 {
                self.counts.remove(&key);
            }
        }
    }

    /// What is asked for, and how often.
    pub fn counts(&self) -> impl Iterator<Item = (&Wanted, u64)> {
        self.counts.values().map(|(wanted, count)| (wanted, *count))
    }

    /// Whether nobody asks for anything.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// The mix: every weight rounded to three binary digits, so that it changes only when a count
    /// changes by a tenth or more against the rest.
    pub fn mix(&self) -> Mix {
        let total: u64 = self.counts.values().map(|(_, count)| count).sum();
        let weight = |count: u64| {
            let share = (count.saturating_mul(u64::from(WHOLE))).checked_div(total).unwrap_or(0).max(1);
            let step = 1u64 << share.ilog2().saturating_sub(2);
            u32::try_from((share + step / 2) / step * step).unwrap_or(WHOLE)
        };
        let wanted = self.counts.values().map(|(wanted, count)| (wanted.clone(), weight(*count)));
        Mix { wanted: wanted.collect() }
    }
}
