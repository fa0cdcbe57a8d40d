//! What fits on a card beside what is there: the tables and the state in the terms of the geometry.

use gpudesk_geometry::{Engines, Geometry, Kind, Misfit, Mode, OnInstance, Placed};

use crate::{
    cards::{Profile, TABLES, VgpuType},
    kernel::Instance,
    state::CardState,
};

fn signed(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn kind(mode: u16, size: u32, slices: u32, starts: &[u32], max: u32) -> Kind {
    let mut starts: Vec<i32> = starts.iter().copied().map(signed).collect();
    starts.sort_unstable();
    Kind {
        mode,
        size: signed(size),
        slices: signed(slices),
        starts,
        max_count: signed(max),
        ..Kind::default()
    }
}

fn number(position: Option<usize>) -> u16 {
    position.and_then(|position| u16::try_from(position).ok()).unwrap_or(u16::MAX)
}

/// The profiles of a card by their place in its table, and its instances.
fn profiles(card: &CardState) -> (Geometry, Vec<Placed>) {
    let profiles = TABLES.profiles(card.model);
    let engines = |of: &Profile| {
        // Copy engines are shared.
        let [_, media @ ..] = of.engines;
        Engines(media.map(|number| u16::try_from(number).unwrap_or(u16::MAX)))
    };
    let kinds = profiles
        .iter()
        .map(|of| Kind { engines: engines(of), ..kind(0, of.size, of.compute, &of.starts, of.max) });
    let kinds: Vec<Kind> = kinds.collect();
    let placed = card.made.instances.iter().map(|instance| Placed {
        kind: number(profiles.iter().position(|profile| profile.id == instance.profile)),
        start: Some(signed(instance.start)),
    });
    (Geometry { modes: vec![Mode::spanned_by(kinds.iter())], kinds }, placed.collect())
}

fn kind_of(card: &CardState, profile: &Profile) -> u16 {
    number(TABLES.profiles(card.model).iter().position(|other| other.id == profile.id))
}

/// How many more instances of `profile` can be made: memory, compute slices, engines and the most of it
/// all count.
pub(crate) fn remaining(card: &CardState, profile: &Profile) -> u32 {
    let (geometry, placed) = profiles(card);
    u32::try_from(geometry.more(&placed, kind_of(card, profile))).unwrap_or(0)
}

/// Starts at which an instance of `profile` can be made.
pub(crate) fn free_starts(card: &CardState, profile: &Profile) -> Vec<u32> {
    let (geometry, placed) = profiles(card);
    starts(&geometry.choices(&placed, kind_of(card, profile)))
}

fn starts(placed: &[Placed]) -> Vec<u32> {
    placed.iter().filter_map(|share| u32::try_from(share.start?).ok()).collect()
}

/// Whether an instance of `profile` can be made there.
pub(crate) fn check(card: &CardState, profile: &Profile, start: u32) -> Result<(), Misfit> {
    let (geometry, placed) = profiles(card);
    geometry.check(&placed, Placed { kind: kind_of(card, profile), start: Some(signed(start)) })
}

/// Length of a card in memory units.
fn units(card: &CardState) -> u32 {
    TABLES.profiles(card.model).iter().map(|profile| profile.size).max().unwrap_or(0)
}

/// The number of a GPU instance: that of its place in the tree of halves, quarters and eighths of the card.
/// So they come in no order of creation: 13, 11, 12, 7, 8, 9, 10 for seven smallest of an A100 (outputs of
/// `nvidia-smi mig -cgi` on A100, H100, A30 and RTX PRO 6000 agree).
pub(crate) fn number_of(card: &CardState, profile: &Profile, start: u32) -> u32 {
    (units(card) / profile.size.max(1)).saturating_sub(1) + start / profile.size.max(1)
}

/// The start that the driver takes when nobody names one: in the free half, quarter or eighth that holds
/// the fewest compute slices, so that room for larger ones stays as long as it can. It does not look ahead:
/// `-cgi 19,19,14,9` fails on an A100 and `9,14,19,19` works (MIG User Guide, known issues).
pub(crate) fn chosen_start(card: &CardState, profile: &Profile) -> Option<u32> {
    let profiles = TABLES.profiles(card.model);
    let smallest = profiles.iter().min_by_key(|profile| profile.size)?;
    // The last of eight memory units has no compute slice where there are seven.
    let ends = smallest.starts.iter().max()? + smallest.size;
    let taken = |unit: u32| {
        unit >= ends
            || card.made.instances.iter().any(|there| {
                let size = card.profile(there.profile).map_or(0, |profile| profile.size);
                (there.start..there.start + size).contains(&unit)
            })
    };
    let slices = |start: u32| {
        let (mut from, mut size) = (start, profile.size);
        while size < units(card) {
            let wider = from / (size * 2) * (size * 2);
            if (wider..wider + size * 2).any(taken) {
                break;
            }
            (from, size) = (wider, size * 2);
        }
        (from..from + size).filter(|unit| *unit < ends).count()
    };
    free_starts(card, profile).into_iter().min_by_key(|start| (slices(*start), *start))
}

/// The time-sliced types of a card by their place among its types, and its vGPUs. Those of equal size
/// have no start, and exclude those of another.
fn time_sliced(card: &CardState, mixed: bool) -> (Geometry, Vec<Placed>) {
    let types = card.types.iter().map(|of| {
        let placements = TABLES.mixed(card.model, of.framebuffer_mib).filter(|_| of.profile.is_none());
        let first = card.types.iter().position(|other| other.framebuffer_mib == of.framebuffer_mib);
        match placements {
            Some(placements) if mixed => kind(0, placements.size, 0, &placements.starts, of.most),
            None if mixed => kind(1, 1, 0, &[], 0),
            _ => kind(number(first), 1, 0, &[], if of.profile.is_none() { of.most } else { 0 }),
        }
    });
    let kinds: Vec<Kind> = types.collect();
    let mut modes = vec![Mode { units: i32::MAX, ..Mode::default() }; kinds.len()];
    if mixed && let Some(mode) = modes.first_mut() {
        *mode = Mode::spanned_by(kinds.iter());
    }
    let placed = card.vgpus().iter().map(|vgpu| Placed {
        kind: number(card.types.iter().position(|kind| kind.name == vgpu.type_name)),
        start: vgpu.placement.map(signed).filter(|_| mixed),
    });
    (Geometry { modes, kinds }, placed.collect())
}

/// Whether one more vGPU of `kind` can be made.
pub(crate) fn is_creatable(card: &CardState, kind: &VgpuType) -> bool {
    if kind.profile.is_none() {
        return !card.made.mig && !choices(card, kind, card.made.mixed_size).is_empty();
    }
    card.made.mig && card.made.instances.iter().any(|instance| is_creatable_on(card, instance, kind))
}

/// Whether one more vGPU of `kind` can be made on a GPU instance: all have one size, unless the instance
/// mixes them.
pub(crate) fn is_creatable_on(card: &CardState, instance: &Instance, kind: &VgpuType) -> bool {
    if kind.profile != Some(instance.profile) {
        return false;
    }
    if instance.mixed_size {
        return !starts_on(card, instance, kind).is_empty();
    }
    let on = |kind: &VgpuType| OnInstance {
        framebuffer_mib: i64::try_from(kind.framebuffer_mib).unwrap_or(i64::MAX),
        max: signed(kind.most),
    };
    let inside: Vec<Option<OnInstance>> =
        card.vgpus_on(instance.id).map(|vgpu| card.type_named(&vgpu.type_name).map(on)).collect();
    on(kind).joins(&inside).is_ok()
}

/// Starts at which a vGPU of `kind` can be made on a GPU instance that mixes sizes.
pub(crate) fn starts_on(card: &CardState, instance: &Instance, kind: &VgpuType) -> Vec<u32> {
    let Some(mixed) = TABLES.mixed_on_instance(card.model, kind) else { return vec![] };
    let taken: Vec<(u32, u32)> = card
        .vgpus_on(instance.id)
        .filter_map(|vgpu| {
            let of = TABLES.mixed_on_instance(card.model, card.type_named(&vgpu.type_name)?)?;
            Some((vgpu.placement?, of.size))
        })
        .collect();
    let free = |start: &u32| taken.iter().all(|(at, size)| start + mixed.size <= *at || at + size <= *start);
    mixed.starts.into_iter().filter(free).collect()
}

fn choices(card: &CardState, kind: &VgpuType, mixed: bool) -> Vec<Placed> {
    let (geometry, placed) = time_sliced(card, mixed);
    geometry.choices(&placed, number(card.types.iter().position(|other| other.id == kind.id)))
}

/// Starts at which a vGPU of `kind` can be made now, when sizes are mixed.
pub(crate) fn creatable_starts(card: &CardState, kind: &VgpuType) -> Vec<u32> {
    starts(&choices(card, kind, true))
}
