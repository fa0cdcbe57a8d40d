//! What is taken of one card, and what it can still give.

use gpudesk_crds::types::ShareMode;

use crate::shape::{Kind, NoShare, Offer, Shape};

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
}

/// What is taken of a card. Equal uses are equal values, whatever came first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CardUse {
    /// Shares on it, in order.
    shares: Vec<UsedShare>,
    /// A card of its IOMMU group is given away whole, and this one with it.
    with_group: bool,
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
            let kind = share.kind.and_then(|kind| shape.kind(kind));
            kind.map_or(0, |kind| kind.size).max(1)
        };
        self.placed().map(of).sum()
    }
}

/// The ways in which a card can give what it offers now: smallest framebuffer first, then starts
/// ascending. Whether the other cards of its IOMMU group are free is for the caller to see.
///
/// # Errors
/// [`NoShare::NoFreePlacement`].
pub fn choices(shape: &Shape, taken: &CardUse, offer: &Offer) -> Result<Vec<Choice>, NoShare> {
    if taken.with_group {
        return Err(NoShare::NoFreePlacement);
    }
    let found = match offer {
        Offer::Whole if taken.shares.is_empty() => {
            let whole = UsedShare { mode: ShareMode::Passthrough, start: None, kind: None, vgpu: None };
            vec![Choice { takes: whole, framebuffer_mib: shape.memory_mib.unwrap_or(0) }]
        }
        Offer::Whole => vec![],
        Offer::Kinds(kinds) => {
            kinds.iter().flat_map(|(kind, vgpu)| of_kind(shape, taken, *kind, *vgpu)).collect()
        }
    };
    if found.is_empty() { Err(NoShare::NoFreePlacement) } else { Ok(found) }
}

fn of_kind(shape: &Shape, taken: &CardUse, position: u16, vgpu: Option<u16>) -> Vec<Choice> {
    let Some(kind) = shape.kind(position) else { return vec![] };
    if taken.shares.iter().any(|other| other.mode != kind.mode) {
        return vec![];
    }
    let choice = |start: Option<i32>| {
        let backed = vgpu.and_then(|vgpu| kind.backed.get(usize::from(vgpu)));
        Choice {
            takes: UsedShare { mode: kind.mode, start, kind: Some(position), vgpu },
            framebuffer_mib: backed.map_or(kind.framebuffer_mib, |backed| backed.framebuffer_mib),
        }
    };
    match kind.mode {
        ShareMode::Passthrough => vec![],
        ShareMode::Mig => {
            let joined = with_room(kind, taken, position, vgpu);
            if joined.is_empty() {
                free_starts(shape, taken, position).into_iter().map(|start| choice(Some(start))).collect()
            } else {
                joined.into_iter().map(|start| choice(Some(start))).collect()
            }
        }
        ShareMode::Vgpu if shape.mixed => {
            free_starts(shape, taken, position).into_iter().map(|start| choice(Some(start))).collect()
        }
        ShareMode::Vgpu => {
            if equal_size_room(shape, taken, kind) > 0 {
                vec![choice(None)]
            } else {
                vec![]
            }
        }
        ShareMode::VirtualFunctions => {
            let same = taken.shares.iter().all(|other| other.kind == Some(position));
            if same && count(taken) < i64::from(kind.max_count) { vec![choice(None)] } else { vec![] }
        }
    }
}

/// How many more of a type fit on a card whose vGPUs all have one size.
pub(crate) fn equal_size_room(shape: &Shape, taken: &CardUse, kind: &Kind) -> i64 {
    // A vGPU with a start position was made while the card mixed sizes: the card must empty first.
    let same = |other: &UsedShare| {
        other.start.is_none()
            && other.kind.and_then(|other| shape.kind(other)).map(|other| other.framebuffer_mib)
                == Some(kind.framebuffer_mib)
    };
    if taken.shares.iter().all(same) { (i64::from(kind.max_count) - count(taken)).max(0) } else { 0 }
}

/// Starts of the GPU instances of this profile in which there is room for one more of this vGPU
/// type: all vGPUs of an instance have one framebuffer size.
fn with_room(kind: &Kind, taken: &CardUse, position: u16, vgpu: Option<u16>) -> Vec<i32> {
    let Some(backed) = vgpu.and_then(|vgpu| kind.backed.get(usize::from(vgpu))) else { return vec![] };
    if backed.max <= 1 {
        return vec![];
    }
    let here = |start: i32| taken.shares.iter().filter(move |other| other.start == Some(start));
    let fits = |start: &i32| {
        let same_size = here(*start).all(|other| {
            let size = other.vgpu.and_then(|other| kind.backed.get(usize::from(other)));
            other.kind == Some(position)
                && size.is_some_and(|size| size.framebuffer_mib == backed.framebuffer_mib)
        });
        // The least that any type on the instance allows, as the node sees it.
        let of = |other: &UsedShare| other.vgpu.and_then(|other| kind.backed.get(usize::from(other)));
        let most = here(*start).filter_map(of).map(|other| other.max).fold(backed.max, i32::min);
        let there = here(*start).count();
        same_size && there > 0 && i32::try_from(there).is_ok_and(|there| there < most)
    };
    kind.starts.iter().copied().filter(fits).collect()
}

fn count(taken: &CardUse) -> i64 {
    i64::try_from(taken.shares.len()).unwrap_or(i64::MAX)
}

/// The legal start positions of a kind that are free, ascending.
pub(crate) fn free_starts(shape: &Shape, taken: &CardUse, position: u16) -> Vec<i32> {
    let Some(kind) = shape.kind(position) else { return vec![] };
    let size_of =
        |other: &UsedShare| other.kind.and_then(|other| shape.kind(other)).map_or(0, |other| other.size);
    let same = taken.placed().filter(|other| other.kind == Some(position)).count();
    let unknown = taken.shares.iter().any(|other| other.start.is_none() || size_of(other) <= 0);
    if unknown
        || kind.size <= 0
        || i32::try_from(same).is_ok_and(|same| same >= kind.max_count)
        || slices_left(shape, taken) < kind.slices
    {
        return vec![];
    }
    let is_free = |start: &i32| {
        taken.placed().all(|other| match other.start {
            Some(other_start) => start + kind.size <= other_start || other_start + size_of(other) <= *start,
            None => false,
        })
    };
    kind.starts.iter().copied().filter(is_free).collect()
}

fn slices_left(shape: &Shape, taken: &CardUse) -> i32 {
    if shape.mig_compute <= 0 {
        return i32::MAX;
    }
    let of = |share: &UsedShare| share.kind.and_then(|kind| shape.kind(kind)).map_or(0, |kind| kind.slices);
    shape.mig_compute - taken.placed().map(of).sum::<i32>()
}

/// How many of some offers fit on a card beside what is taken, the first offer for as long as it goes;
/// one after the other at the start that leaves the most of its own kind possible.
pub fn count_more(shape: &Shape, taken: &CardUse, offers: &[Offer]) -> i32 {
    let mut taken = taken.clone();
    let mut count = 0;
    for offer in offers {
        // Cards hold at most a few hundred shares; the bound is for hostile figures.
        while count < 4096 {
            let Some(best) = first_of(shape, &taken, offer) else { break };
            taken.put(best);
            count += 1;
        }
    }
    count
}

fn first_of(shape: &Shape, taken: &CardUse, offer: &Offer) -> Option<UsedShare> {
    let found = choices(shape, taken, offer).ok()?;
    let smallest = found.first()?.framebuffer_mib;
    let left = |choice: &Choice| {
        let mut after = taken.clone();
        after.put(choice.takes);
        choices(shape, &after, offer).map_or(0, |left| left.len())
    };
    let same = found.iter().filter(|choice| choice.framebuffer_mib == smallest);
    same.max_by_key(|choice| (left(choice), std::cmp::Reverse(choice.takes.start))).map(|choice| choice.takes)
}
