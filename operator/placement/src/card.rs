//! Which shares one card can still give, and where on it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::{
    gpu_node_status::Placement,
    types::{ShareMode, VgpuSeries},
};

use crate::{
    facts::{Card, NodeFacts, Refused},
    occupancy::{CardUse, NodeUse, UsedShare},
    request::{CardRequirements, Share, VgpuWish},
};

/// Why a card does not give a share. The later, the nearer it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoShare {
    /// The node has no card that qualifies.
    NoCard,
    /// The card is out of use.
    Refused(Refused),
    /// The owner of the card does not allow the mode.
    ModeNotAllowed,
    /// The driver does not offer the share on this card.
    NotOffered,
    /// The card has no room for it now.
    NoFreePlacement,
}

/// A share that a card can give now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What it takes of the card.
    pub takes: UsedShare,
    /// The vGPU type on the GPU instance, in mode `Mig`.
    pub vgpu_type: Option<String>,
    /// Framebuffer that the guest sees, in MiB.
    pub framebuffer_mib: i64,
}

/// Type of a whole card.
pub const WHOLE_CARD: &str = "Passthrough";

/// Whether a card is one of those that a profile wants.
pub fn qualifies(card: &Card, wanted: &CardRequirements) -> bool {
    let device = &card.device;
    let CardRequirements { vendor, pci_ids, products, minimum_memory_mib, capabilities } = wanted;
    let id = format!("{}:{}", device.vendor_id, device.device_id).to_ascii_lowercase();
    vendor.is_none_or(|vendor| device.vendor_id.eq_ignore_ascii_case(vendor.pci_id()))
        && (pci_ids.is_empty() || pci_ids.iter().any(|wanted| wanted.eq_ignore_ascii_case(&id)))
        && (products.is_empty() || products.iter().any(|glob| matches(glob, &device.product)))
        && minimum_memory_mib.is_none_or(|least| device.memory_mib.is_some_and(|has| has >= least))
        && capabilities.iter().all(|mode| card.supports(*mode))
}

/// Whether `text` matches `glob`, in which `*` stands for any text; upper and lower case alike.
pub fn matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.to_lowercase(), text.to_lowercase());
    let mut parts = glob.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The ways in which a card can give a share now, best first.
///
/// # Errors
/// The reason why there is none.
pub fn choices(
    facts: &NodeFacts,
    used: &NodeUse,
    index: usize,
    share: &Share,
) -> Result<Vec<Choice>, NoShare> {
    let (Some(card), Some(taken)) = (facts.cards.get(index), used.cards.get(index)) else {
        return Err(NoShare::NoCard);
    };
    if let Some(refused) = card.refused {
        return Err(NoShare::Refused(refused));
    }
    if !card.mode.allows(share.mode()) {
        return Err(NoShare::ModeNotAllowed);
    }
    if !card.supports(share.mode()) {
        return Err(NoShare::NotOffered);
    }
    let found = match share {
        Share::Passthrough => whole(facts, used, card, taken)?,
        Share::Vgpu(wish) => vgpu(card, taken, wish)?,
        Share::Mig { profile, series } => mig(card, taken, profile, *series)?,
        Share::VirtualFunction { framebuffer_mib } => function(card, taken, *framebuffer_mib)?,
    };
    if taken.with_group || taken.shares.iter().any(|other| other.mode != share.mode()) || found.is_empty() {
        return Err(NoShare::NoFreePlacement);
    }
    Ok(found)
}

fn whole(facts: &NodeFacts, used: &NodeUse, card: &Card, taken: &CardUse) -> Result<Vec<Choice>, NoShare> {
    let members =
        || card.group.iter().filter_map(|member| Some((facts.cards.get(*member)?, used.cards.get(*member)?)));
    // What shares the IOMMU group goes with the card, so it must be ours to give.
    if let Some(refused) = members().find_map(|(member, _)| member.refused) {
        return Err(NoShare::Refused(refused));
    }
    let group_is_free = members().all(|(_, taken)| taken.shares.is_empty() && !taken.with_group);
    if !taken.shares.is_empty() || !group_is_free {
        return Ok(vec![]);
    }
    let framebuffer_mib = card.device.memory_mib.unwrap_or(0);
    Ok(vec![Choice {
        takes: UsedShare {
            mode: ShareMode::Passthrough,
            type_name: WHOLE_CARD.into(),
            framebuffer_mib: 0,
            start: None,
            size: 0,
            compute_slices: 0,
        },
        vgpu_type: None,
        framebuffer_mib,
    }])
}

fn vgpu(card: &Card, taken: &CardUse, wish: &VgpuWish) -> Result<Vec<Choice>, NoShare> {
    let mut types: Vec<&Placement> = offered(card, ShareMode::Vgpu)
        .filter(|p| match wish {
            VgpuWish::Type(name) => p.type_name == *name,
            VgpuWish::Size { series, min, max } => {
                p.series == Some(*series) && (*min..=*max).contains(&p.framebuffer_mib)
            }
        })
        .filter(|p| !card.mixed || (p.size > 0 && !p.starts.is_empty()))
        .collect();
    if types.is_empty() {
        return Err(NoShare::NotOffered);
    }
    types.sort_by(|a, b| (a.framebuffer_mib, &a.type_name).cmp(&(b.framebuffer_mib, &b.type_name)));
    let mut found = vec![];
    for placement in types {
        if card.mixed {
            found.extend(
                positions(card, taken, placement).into_iter().map(|start| choice(placement, Some(start))),
            );
        } else if equal_size_room(taken, placement) > 0 {
            found.push(choice(placement, None));
        }
    }
    Ok(found)
}

/// How many more of a type fit on a card whose vGPUs all have one size.
fn equal_size_room(taken: &CardUse, placement: &Placement) -> i64 {
    // A vGPU with a start position was made while the card mixed sizes: the card must empty first.
    let same =
        |other: &UsedShare| other.framebuffer_mib == placement.framebuffer_mib && other.start.is_none();
    if taken.shares.iter().all(same) { (i64::from(placement.max_count) - count(taken)).max(0) } else { 0 }
}

fn mig(card: &Card, taken: &CardUse, profile: &str, series: VgpuSeries) -> Result<Vec<Choice>, NoShare> {
    let placement =
        offered(card, ShareMode::Mig).find(|p| p.type_name == profile).ok_or(NoShare::NotOffered)?;
    // The vGPU that takes all of the instance.
    let vgpu = placement
        .vgpu_types
        .iter()
        .filter(|vgpu| vgpu.series == series && vgpu.max_per_instance == 1)
        .max_by(|a, b| {
            (a.framebuffer_mib, Reverse(&a.type_name)).cmp(&(b.framebuffer_mib, Reverse(&b.type_name)))
        })
        .ok_or(NoShare::NotOffered)?;
    let starts = positions(card, taken, placement).into_iter();
    Ok(starts
        .map(|start| Choice {
            vgpu_type: Some(vgpu.type_name.clone()),
            framebuffer_mib: vgpu.framebuffer_mib,
            ..choice(placement, Some(start))
        })
        .collect())
}

fn function(card: &Card, taken: &CardUse, least: i64) -> Result<Vec<Choice>, NoShare> {
    let mut kinds: Vec<&Placement> =
        offered(card, ShareMode::VirtualFunctions).filter(|p| p.framebuffer_mib >= least).collect();
    if kinds.is_empty() {
        return Err(NoShare::NotOffered);
    }
    kinds.sort_by(|a, b| (a.framebuffer_mib, &a.type_name).cmp(&(b.framebuffer_mib, &b.type_name)));
    kinds.retain(|kind| {
        taken.shares.iter().all(|other| other.type_name == kind.type_name)
            && count(taken) < i64::from(kind.max_count)
    });
    Ok(kinds.into_iter().map(|kind| choice(kind, None)).collect())
}

fn offered(card: &Card, mode: ShareMode) -> impl Iterator<Item = &Placement> {
    card.device.placements.iter().filter(move |placement| placement.mode == mode)
}

fn choice(placement: &Placement, start: Option<i32>) -> Choice {
    Choice {
        takes: UsedShare {
            mode: placement.mode,
            type_name: placement.type_name.clone(),
            framebuffer_mib: placement.framebuffer_mib,
            start,
            size: placement.size,
            compute_slices: placement.compute_slices,
        },
        vgpu_type: None,
        framebuffer_mib: placement.framebuffer_mib,
    }
}

fn count(taken: &CardUse) -> i64 {
    i64::try_from(taken.shares.len()).unwrap_or(i64::MAX)
}

/// The free start positions of a placement, the one first that keeps the most of the larger
/// placements possible; among equals the lowest.
fn positions(card: &Card, taken: &CardUse, placement: &Placement) -> Vec<i32> {
    let mut starts = free_starts(card, taken, placement);
    if starts.len() > 1 {
        starts.sort_by_cached_key(|start| {
            let mut after = taken.clone();
            after.shares.push(choice(placement, Some(*start)).takes);
            (Reverse(still_possible(card, &after, placement.mode)), *start)
        });
    }
    starts
}

/// For each size on the card, the largest first: how many start positions are left.
fn still_possible(card: &Card, taken: &CardUse, mode: ShareMode) -> Vec<usize> {
    // Types that differ in name only count once.
    let shapes: BTreeSet<(Reverse<i32>, &[i32], i32)> =
        offered(card, mode).map(|p| (Reverse(p.size), p.starts.as_slice(), p.compute_slices)).collect();
    let mut left: BTreeMap<Reverse<i32>, usize> = BTreeMap::new();
    for (size, starts, slices) in shapes {
        let free = if slices_left(card, taken) < slices {
            0
        } else {
            starts.iter().filter(|s| is_free(taken, **s, size.0)).count()
        };
        *left.entry(size).or_default() += free;
    }
    left.into_values().collect()
}

/// The legal start positions of a placement that are free.
fn free_starts(card: &Card, taken: &CardUse, placement: &Placement) -> Vec<i32> {
    let same = taken.shares.iter().filter(|other| other.type_name == placement.type_name).count();
    let unknown = taken.shares.iter().any(|other| other.start.is_none() || other.size <= 0);
    if unknown
        || placement.size <= 0
        || i32::try_from(same).is_ok_and(|same| same >= placement.max_count)
        || slices_left(card, taken) < placement.compute_slices
    {
        return vec![];
    }
    let mut starts: Vec<i32> =
        placement.starts.iter().copied().filter(|start| is_free(taken, *start, placement.size)).collect();
    starts.sort_unstable();
    starts.dedup();
    starts
}

fn is_free(taken: &CardUse, start: i32, size: i32) -> bool {
    taken.shares.iter().all(|other| match other.start {
        Some(other_start) => start + size <= other_start || other_start + other.size <= start,
        None => false,
    })
}

fn slices_left(card: &Card, taken: &CardUse) -> i32 {
    match card.device.units {
        Some(units) if units.mig_compute > 0 => {
            units.mig_compute - taken.shares.iter().map(|share| share.compute_slices).sum::<i32>()
        }
        _ => i32::MAX,
    }
}

/// How much more of a share a card has room for, roughly: the fullest card has the least.
pub fn room(facts: &NodeFacts, used: &NodeUse, index: usize, share: &Share) -> i64 {
    let Ok(found) = choices(facts, used, index, share) else { return 0 };
    let (Some(card), Some(taken)) = (facts.cards.get(index), used.cards.get(index)) else { return 0 };
    let by_count = found.iter().filter(|choice| choice.takes.start.is_none()).filter_map(|choice| {
        let placement = offered(card, share.mode()).find(|p| p.type_name == choice.takes.type_name)?;
        Some(i64::from(placement.max_count) - count(taken))
    });
    match by_count.max() {
        Some(room) => room,
        None => i64::try_from(found.len()).unwrap_or(i64::MAX),
    }
}
