//! What is asked for altogether: the shares that defined desktops want, running or not.
//!
//! Look-ahead weighs what a card could still give by how often it is wanted. The weights are coarse
//! on purpose: a pure function of what is defined, and one desktop more seldom changes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::request::{CardRequirements, Demand, Share, ShareRequest};

/// Weights add up to about this.
pub const WHOLE: u32 = 64;

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
}

/// Counts of demands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    counts: BTreeMap<String, (ShareRequest, u64)>,
}

/// What makes two requests want the same: all but names. As text, which has an order.
fn key(share: &ShareRequest) -> String {
    format!("{:?} {:?}", share.ways, share.cards)
}

impl Census {
    /// One more, or one less, asks for this.
    pub fn count(&mut self, demand: &Arc<Demand>, more: bool) {
        for share in &demand.shares {
            let key = key(share);
            let entry = self.counts.entry(key.clone()).or_insert_with(|| (share.clone(), 0));
            entry.1 = if more { entry.1 + 1 } else { entry.1.saturating_sub(1) };
            if entry.1 == 0 {
                self.counts.remove(&key);
            }
        }
    }

    /// The mix: every weight a power of two, so that it changes only when a count doubles or halves
    /// against the rest.
    pub fn mix(&self) -> Mix {
        let total: u64 = self.counts.values().map(|(_, count)| count).sum();
        let weight = |count: u64| {
            let share = (count * u64::from(WHOLE)).checked_div(total).unwrap_or(0).max(1);
            u32::try_from(share.next_power_of_two()).unwrap_or(WHOLE).min(WHOLE)
        };
        let wanted = self.counts.values().map(|(share, count)| {
            let ways = share.ways.iter().map(|way| way.share.clone()).collect();
            (Wanted { ways, cards: share.cards.clone() }, weight(*count))
        });
        Mix { wanted: wanted.collect() }
    }
}
