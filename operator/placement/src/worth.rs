//! What a card in a state is worth to the requests to come: the card's shape and the mix, in the
//! terms of [`crate::lookahead`].

use std::sync::Arc;

use gpudesk_crds::types::ShareMode;

use crate::{
    lookahead::{ALL_CARDS, Geometry, Kind, Mode, Placed, Values},
    mix::{Mix, Wanted},
    shape::{Offer, Shape},
    state::{self, CardUse, UsedShare},
};

/// Memory that a card counts for when nobody says how much it has, in MiB.
const UNKNOWN_MEMORY_MIB: u64 = 16 * 1024;

/// The cards of an estate by shape: which part of all cards each is, in [`ALL_CARDS`]ths, rounded to
/// three binary digits so that one card more seldom changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supply {
    shapes: Vec<(Arc<Shape>, u64)>,
}

impl Supply {
    /// From how many cards there are of each shape.
    pub fn new<'a>(counts: impl Iterator<Item = (&'a Arc<Shape>, u64)> + Clone) -> Self {
        let total: u64 = counts.clone().map(|(_, count)| count).sum();
        let part = |count: u64| {
            let part = (count * ALL_CARDS).checked_div(total).unwrap_or(0).max(1);
            let step = 1u64 << part.ilog2().saturating_sub(2);
            (part + step / 2) / step * step
        };
        let shapes = counts.filter(|(_, count)| *count > 0);
        Self { shapes: shapes.map(|(shape, count)| (shape.clone(), part(count))).collect() }
    }

    /// On which part of all cards a request can go.
    fn of(&self, wanted: &Wanted) -> u64 {
        let offers = |shape: &Shape| {
            shape.qualifies(&wanted.cards) && wanted.ways.iter().any(|way| shape.offer(way).is_ok())
        };
        let parts = self.shapes.iter().filter(|(shape, _)| offers(shape)).map(|(_, part)| *part);
        parts.sum::<u64>().clamp(1, ALL_CARDS)
    }
}

/// The mix as it concerns one shape.
#[derive(Clone, Debug)]
pub struct Outlook {
    values: Values,
    offers: Vec<(Offer, i64)>,
}

/// The shape as a geometry: the whole card first, then the shape's kinds in their order. vGPUs of
/// equal size exclude those of other sizes, so each size is a mode of its own.
pub(crate) fn geometry(shape: &Shape) -> Geometry {
    let mut modes = vec![Mode { units: 1, slices: None }];
    let mut kinds = vec![Kind { mode: 0, size: 1, slices: 0, starts: vec![], max_count: 1 }];
    let mut known: Vec<((ShareMode, i64), u16)> = vec![];
    for kind in &shape.kinds {
        let positioned = kind.mode == ShareMode::Mig || (kind.mode == ShareMode::Vgpu && shape.mixed);
        let key = (kind.mode, if positioned { 0 } else { kind.framebuffer_mib });
        let mode = if let Some((_, mode)) = known.iter().find(|(other, _)| *other == key) {
            *mode
        } else {
            let mode = u16::try_from(modes.len()).unwrap_or(u16::MAX);
            let slices = (kind.mode == ShareMode::Mig && shape.mig_compute > 0).then_some(shape.mig_compute);
            let units = if positioned { shape.units(kind.mode) } else { kind.max_count };
            modes.push(Mode { units, slices });
            known.push((key, mode));
            mode
        };
        kinds.push(Kind {
            mode,
            size: if positioned { kind.size } else { 1 },
            slices: kind.slices,
            starts: if positioned { kind.starts.clone() } else { vec![] },
            max_count: kind.max_count,
        });
    }
    Geometry { modes, kinds }
}

/// A share in the terms of the geometry.
fn placed(share: &UsedShare) -> Option<Placed> {
    match share.kind {
        Some(kind) => Some(Placed { kind: kind + 1, start: share.start }),
        None => (share.mode == ShareMode::Passthrough).then_some(Placed { kind: 0, start: None }),
    }
}

impl Outlook {
    /// What the mix wants of cards of this shape: of each request, the first way that they offer.
    pub fn new(shape: &Shape, mix: &Mix, supply: &Supply) -> Self {
        let geometry = geometry(shape);
        let mut counts = vec![0; geometry.kinds.len()];
        let mut served = vec![0; geometry.kinds.len()];
        let mut total = 0;
        let mut offers: Vec<(Offer, i64)> = vec![];
        for (wanted, weight) in &mix.wanted {
            total += u64::from(*weight);
            if !shape.qualifies(&wanted.cards) {
                continue;
            }
            let Some(offer) = wanted.ways.iter().find_map(|way| shape.offer(way).ok()) else { continue };
            let kind = match &offer {
                Offer::Whole => 0,
                Offer::Kinds(kinds) => kinds.first().map_or(0, |(kind, _)| usize::from(*kind) + 1),
            };
            if let (Some(count), Some(served)) = (counts.get_mut(kind), served.get_mut(kind)) {
                *count += u64::from(*weight);
                // Of several requests for a kind, the one that has the most other cards to go to.
                *served = supply.of(wanted).max(*served);
            }
            match offers.iter_mut().find(|(other, _)| *other == offer) {
                Some((_, sum)) => *sum += i64::from(*weight),
                None => offers.push((offer, i64::from(*weight))),
            }
        }
        let memory = shape.memory_mib.and_then(|mib| u64::try_from(mib).ok()).unwrap_or(UNKNOWN_MEMORY_MIB);
        for served in served.iter_mut().filter(|served| **served == 0) {
            *served = ALL_CARDS;
        }
        Self { values: Values::scarce(geometry, &counts, total, memory, &served), offers }
    }

    /// What a card is worth; the cost of a choice is what it takes away.
    pub fn worth(&self, used: &CardUse) -> i64 {
        let shares: Vec<Placed> = used.placed().filter_map(placed).collect();
        self.values.value(&shares)
    }

    /// Of the free units, how many in a thousand the mix cannot use.
    pub fn stranded_permille(&self, shape: &Shape, used: &CardUse) -> i32 {
        let Some(mode) = used.shares().first().map(|share| share.mode) else { return 0 };
        let free = (shape.units(mode) - used.units(shape)).max(0);
        let weights: i64 = self.offers.iter().map(|(_, weight)| weight).sum();
        if free == 0 || weights == 0 {
            return 0;
        }
        let usable = |offer: &Offer| {
            let size = match offer {
                Offer::Whole => shape.units(mode),
                Offer::Kinds(kinds) => {
                    kinds.first().and_then(|(kind, _)| shape.kind(*kind)).map_or(1, |kind| kind.size.max(1))
                }
            };
            i64::from((state::count_more(shape, used, std::slice::from_ref(offer)) * size).min(free))
        };
        let used: i64 = self.offers.iter().map(|(offer, weight)| usable(offer) * weight).sum();
        i32::try_from(1000 - used * 1000 / (weights * i64::from(free))).unwrap_or(0)
    }
}
