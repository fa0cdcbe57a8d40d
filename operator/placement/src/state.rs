//! What is taken of one card, and what it can still give.

use gpudesk_crds::{gpu_node::VgpuScheduler, types::ShareMode};

use gpudesk_geometry::{OnInstance, Placed};

use crate::shape::{Backed, NoShare, Offer, Shape};

/// A share on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UsedShare {
    /// Mode.
    pub mode: ShareMode,
    /// Start position, when it has one.
    pub start: Option<i32>,
    /// Position in the shape's kinds; absent for a whole card, and for a type that the card does
    /// not list.
    pub kind: Option<u16>,
    /// Position of the vGPU type on the GPU instance, in mode `Mig`; absent when it is not known:
    /// then nobody else gets into the instance.
    pub vgpu: Option<u16>,
    /// How the vGPUs that it shares time with share it, where it was decided for them.
    pub scheduler: Option<VgpuScheduler>,
}

impl UsedShare {
    /// In the terms of the card's geometry.
    pub(crate) fn placed(&self) -> Placed {
        let whole = if self.mode == ShareMode::Passthrough { 0 } else { u16::MAX };
        Placed { kind: self.kind.map_or(whole, |kind| kind + 1), start: self.start }
    }
}

/// What is taken of a card. Equal uses are equal values, whatever came first.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CardUse {
    /// Shares on it, in order.
    shares: Vec<UsedShare>,
    /// A card of its IOMMU group is given away whole, and this one with it.
    with_group: bool,
    /// How time-sliced vGPUs on it share time by its node's word, for those of which nothing was decided.
    in_force: Option<VgpuScheduler>,
}

/// A share that a card can give now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What it takes of the card.
    pub takes: UsedShare,
    /// Framebuffer that the guest sees, in MiB; 0 when not known.
    pub framebuffer_mib: i64,
}

impl CardUse {
    /// What is on the card, in order.
    pub fn shares(&self) -> &[UsedShare] {
        &self.shares
    }

    /// Whether nothing is taken.
    pub fn is_free(&self) -> bool {
        self.shares.is_empty() && !self.with_group
    }

    /// Whether another card of the IOMMU group took it along.
    pub fn goes_with_group(&self) -> bool {
        self.with_group
    }

    /// Puts a share on the card.
    pub fn put(&mut self, share: UsedShare) {
        let at = self.shares.partition_point(|other| *other <= share);
        self.shares.insert(at, share);
    }

    /// The node says how time-sliced vGPUs share the card. Says nothing of a card that has none.
    pub fn is_in_force(&mut self, scheduler: Option<VgpuScheduler>) {
        if self.shares.iter().any(|share| share.mode == ShareMode::Vgpu) {
            self.in_force = scheduler;
        }
    }

    /// The vGPUs with which one more at this place would share time.
    fn beside(&self, takes: &UsedShare) -> impl Iterator<Item = &UsedShare> {
        let (mode, start) = (takes.mode, takes.start);
        self.shares.iter().filter(move |other| {
            other.mode == mode
                && match mode {
                    ShareMode::Vgpu => true,
                    ShareMode::Mig => other.start == start,
                    ShareMode::Passthrough | ShareMode::VirtualFunctions => false,
                }
        })
    }

    /// Whether one more that wants to share time so can be there.
    fn shares_time(&self, takes: &UsedShare, wanted: VgpuScheduler) -> bool {
        let in_force = self.in_force.filter(|_| takes.mode == ShareMode::Vgpu);
        self.beside(takes).all(|other| other.scheduler.or(in_force) == Some(wanted))
    }

    /// What was decided for those with which one more would share time.
    fn decided(&self, takes: &UsedShare) -> Option<VgpuScheduler> {
        self.beside(takes).find_map(|other| other.scheduler)
    }

    /// A card of the group is given away whole.
    pub fn take_with_group(&mut self) {
        self.with_group = true;
    }

    /// The GPU instances or placed vGPUs: what several vGPUs share counts once.
    pub fn placed(&self) -> impl Iterator<Item = &UsedShare> {
        let twin = |index: usize, share: &UsedShare| {
            let before = index.checked_sub(1).and_then(|before| self.shares.get(before));
            share.mode == ShareMode::Mig
                && share.start.is_some()
                && before.is_some_and(|other| (other.kind, other.start) == (share.kind, share.start))
        };
        self.shares
            .iter()
            .enumerate()
            .filter(move |(index, share)| !twin(*index, share))
            .map(|(_, share)| share)
    }

    /// Units in use, of those that [`Shape::units`] counts.
    pub fn units(&self, shape: &Shape) -> i32 {
        let of = |share: &UsedShare| {
            let kind = share.kind.and_then(|kind| shape.extent(kind));
            kind.map_or(0, |kind| kind.size).max(1)
        };
        self.placed().map(of).sum()
    }

    /// What is on the card in the terms of its geometry.
    pub(crate) fn layout(&self) -> Vec<Placed> {
        self.placed().map(UsedShare::placed).collect()
    }
}

/// The ways in which a card can give what it offers now: smallest framebuffer first, then starts
/// ascending. Whether the other cards of its IOMMU group are free is for the caller to see.
///
/// # Errors
/// [`NoShare::NoFreePlacement`], or [`NoShare::LayoutTaken`].
pub fn choices(shape: &Shape, taken: &CardUse, offer: &Offer) -> Result<Vec<Choice>, NoShare> {
    if taken.with_group {
        return Err(NoShare::NoFreePlacement);
    }
    let found = match offer {
        Offer::Whole if taken.shares.is_empty() => {
            let whole = UsedShare {
                mode: ShareMode::Passthrough,
                start: None,
                kind: None,
                vgpu: None,
                scheduler: None,
            };
            vec![Choice { takes: whole, framebuffer_mib: shape.memory_mib.unwrap_or(0) }]
        }
        Offer::Whole => vec![],
        Offer::Kinds(kinds, scheduler) => {
            kinds.iter().flat_map(|(kind, vgpu)| of_kind(shape, taken, (*kind, *vgpu), *scheduler)).collect()
        }
    };
    if !found.is_empty() {
        return Ok(found);
    }
    let otherwise = match offer {
        Offer::Kinds(kinds, Some(_)) => choices(shape, taken, &Offer::Kinds(kinds.clone(), None)).is_ok(),
        Offer::Kinds(_, None) | Offer::Whole => false,
    };
    Err(if otherwise { NoShare::OtherScheduler } else { none_free(shape, offer) })
}

/// Why a card has none of an offer.
fn none_free(shape: &Shape, offer: &Offer) -> NoShare {
    match offer {
        Offer::Kinds(kinds, _) if shape.fixed => {
            NoShare::LayoutTaken(kinds.iter().map(|(kind, _)| shape.places(*kind)).sum())
        }
        Offer::Kinds(..) | Offer::Whole => NoShare::NoFreePlacement,
    }
}

fn of_kind(
    shape: &Shape,
    taken: &CardUse,
    (position, vgpu): (u16, Option<u16>),
    scheduler: Option<VgpuScheduler>,
) -> Vec<Choice> {
    let Some(kind) = shape.kind(position) else { return vec![] };
    if taken.shares.iter().any(|other| other.mode != kind.mode) {
        return vec![];
    }
    let backed = vgpu.and_then(|vgpu| kind.backed.get(usize::from(vgpu)));
    let mut starts: Vec<Option<i32>> =
        backed.map_or_else(Vec::new, |backed| with_room(shape, taken, position, backed, scheduler));
    if starts.is_empty() {
        let free = shape.geometry.choices(&taken.layout(), position + 1);
        starts.extend(free.iter().map(|placed| placed.start));
    }
    let choice = |start| {
        let one = UsedShare { mode: kind.mode, start, kind: Some(position), vgpu, scheduler };
        if scheduler.is_some_and(|wanted| !taken.shares_time(&one, wanted)) {
            return None;
        }
        Some(Choice {
            takes: UsedShare { scheduler: scheduler.or_else(|| taken.decided(&one)), ..one },
            framebuffer_mib: backed.map_or(kind.framebuffer_mib, |backed| backed.framebuffer_mib),
        })
    };
    starts.into_iter().filter_map(choice).collect()
}

/// Starts of the GPU instances of this profile that one more of this vGPU type can join.
fn with_room(
    shape: &Shape,
    taken: &CardUse,
    position: u16,
    backed: &Backed,
    scheduler: Option<VgpuScheduler>,
) -> Vec<Option<i32>> {
    let (Some(kind), Some(extent)) = (shape.kind(position), shape.extent(position)) else { return vec![] };
    if backed.max <= 1 {
        return vec![];
    }
    let joins = |start: &Option<i32>| {
        let others = || taken.shares.iter().filter(|other| other.start == *start);
        if scheduler.is_some() && others().any(|other| other.scheduler != scheduler) {
            return false;
        }
        let inside = others().map(|other| {
            let vgpu = other.vgpu.filter(|_| other.kind == Some(position))?;
            kind.backed.get(usize::from(vgpu)).map(Backed::on_instance)
        });
        let inside: Vec<Option<OnInstance>> = inside.collect();
        !inside.is_empty() && backed.on_instance().joins(&inside).is_ok()
    };
    extent.starts.iter().copied().map(Some).filter(joins).collect()
}

/// Work of one count, in starts looked at times shares on the card, after which the start is not chosen any more,
/// and after which there is no counting on: MIG takes some thousands, figures that no card has would take hours.
const CHOOSY: usize = 1 << 18;
const MOST_WORK: usize = 1 << 20;

/// How many of some offers fit on a card beside what is taken, the first offer for as long as it goes;
/// one after the other at the start that leaves the most of its own kind possible.
pub fn count_more(shape: &Shape, taken: &CardUse, offers: &[Offer]) -> i32 {
    let mut taken = taken.clone();
    let (mut count, mut work) = (0, 0);
    for offer in offers {
        while work < MOST_WORK {
            let Some(best) = first_of(shape, &taken, offer, &mut work) else { break };
            taken.put(best);
            count += 1;
        }
    }
    count
}

fn first_of(shape: &Shape, taken: &CardUse, offer: &Offer, work: &mut usize) -> Option<UsedShare> {
    let starts = match offer {
        Offer::Whole => 1,
        Offer::Kinds(kinds, _) => {
            let extents = kinds.iter().filter_map(|(kind, _)| shape.extent(*kind));
            extents.map(|extent| extent.starts.len() + 1).sum()
        }
    };
    let one = starts * (taken.shares.len() + 1);
    *work += one;
    let found = choices(shape, taken, offer).ok()?;
    let first = found.first()?;
    if *work + one * found.len() > CHOOSY {
        return Some(first.takes);
    }
    *work += one * found.len();
    let smallest = first.framebuffer_mib;
    let left = |choice: &Choice| {
        let mut after = taken.clone();
        after.put(choice.takes);
        choices(shape, &after, offer).map_or(0, |left| left.len())
    };
    let same = found.iter().filter(|choice| choice.framebuffer_mib == smallest);
    same.max_by_key(|choice| (left(choice), std::cmp::Reverse(choice.takes.start))).map(|choice| choice.takes)
}
