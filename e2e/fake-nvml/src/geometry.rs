//! What fits on a card beside what is there: the tables and the state in the terms of the geometry.

use gpudesk_geometry::{Geometry, Kind, Misfit, Mode, OnInstance, Placed};

use crate::{
    cards::{Profile, TABLES, VgpuType},
    state::CardState,
};

fn signed(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn kind(mode: u16, size: u32, slices: u32, starts: &[u32], max: u32) -> Kind {
    let mut starts: Vec<i32> = starts.iter().copied().map(signed).collect();
    starts.sort_unstable();
    Kind { mode, size: signed(size), slices: signed(slices), starts, max_count: signed(max) }
}

fn number(position: Option<usize>) -> u16 {
    position.and_then(|position| u16::try_from(position).ok()).unwrap_or(u16::MAX)
}

/// The profiles of a card by their place in its table, and its instances.
fn profiles(card: &CardState) -> (Geometry, Vec<Placed>) {
    let profiles = TABLES.profiles(card.model);
    let kinds: Vec<Kind> =
        profiles.iter().map(|of| kind(0, of.size, of.compute, &of.starts, of.max)).collect();
    let placed = card.instances.iter().map(|instance| Placed {
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
    u32::try_from(geometry.more(&placed, kind_of(card, profile))).unwrap_or(0).min(by_engines(card, profile))
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

/// Shared engines are those of the profile that takes the whole card.
fn by_engines(card: &CardState, profile: &Profile) -> u32 {
    let profiles = TABLES.profiles(card.model);
    let Some(whole) = profiles.iter().max_by_key(|profile| (profile.compute, profile.size)) else { return 0 };
    let mut left = whole.engines;
    for instance in card.instances.iter().filter_map(|instance| card.profile(instance.profile)) {
        for (left, used) in left.iter_mut().zip(instance.engines) {
            *left = left.saturating_sub(used);
        }
    }
    // Copy engines are shared.
    let limits = left.iter().zip(profile.engines).skip(1).filter(|(_, wanted)| *wanted > 0);
    limits.map(|(left, wanted)| left / wanted).min().unwrap_or(u32::MAX)
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
    let mut modes = vec![Mode { units: i32::MAX, slices: None }; kinds.len()];
    if mixed && let Some(mode) = modes.first_mut() {
        *mode = Mode::spanned_by(kinds.iter());
    }
    let placed = card.world.vgpus.iter().map(|vgpu| Placed {
        kind: number(card.types.iter().position(|kind| kind.name == vgpu.type_name)),
        start: vgpu.placement.map(signed).filter(|_| mixed),
    });
    (Geometry { modes, kinds }, placed.collect())
}

/// Whether one more vGPU of `kind` can be made.
pub(crate) fn is_creatable(card: &CardState, kind: &VgpuType) -> bool {
    let Some(profile) = kind.profile else {
        return !card.mig && !choices(card, kind, card.mixed_size).is_empty();
    };
    let on = |kind: &VgpuType| OnInstance {
        framebuffer_mib: i64::try_from(kind.framebuffer_mib).unwrap_or(i64::MAX),
        max: signed(kind.most),
    };
    let has_room = |id: u32| {
        let inside = card.world.vgpus.iter().filter(|vgpu| vgpu.gpu_instance == Some(id));
        let inside: Vec<Option<OnInstance>> =
            inside.map(|vgpu| card.types.iter().find(|kind| kind.name == vgpu.type_name).map(on)).collect();
        on(kind).joins(&inside).is_ok()
    };
    let mut instances = card.instances.iter().filter(|instance| instance.profile == profile);
    card.mig && instances.any(|instance| has_room(instance.id))
}

fn choices(card: &CardState, kind: &VgpuType, mixed: bool) -> Vec<Placed> {
    let (geometry, placed) = time_sliced(card, mixed);
    geometry.choices(&placed, number(card.types.iter().position(|other| other.id == kind.id)))
}

/// Starts at which a vGPU of `kind` can be made now, when sizes are mixed.
pub(crate) fn creatable_starts(card: &CardState, kind: &VgpuType) -> Vec<u32> {
    starts(&choices(card, kind, true))
}
