//! What fits on a card beside what is there.

use crate::{
    cards::{Profile, TABLES, VgpuType},
    state::CardState,
};

/// How many more instances of `profile` can be made: memory, compute slices, engines and the most of it
/// all count.
pub(crate) fn remaining(card: &CardState, profile: &Profile) -> u32 {
    let free = free_starts(card, profile).len();
    let free = u32::try_from(free).unwrap_or(u32::MAX);
    let of_it = card.instances.iter().filter(|instance| instance.profile == profile.id).count();
    let of_it = u32::try_from(of_it).unwrap_or(u32::MAX);
    free.min(profile.max.saturating_sub(of_it)).min(by_engines(card, profile))
}

/// Starts at which instances of `profile` can be made, so that all of them could be.
pub(crate) fn free_starts(card: &CardState, profile: &Profile) -> Vec<u32> {
    let mut starts = profile.starts.clone();
    starts.sort_unstable();
    let mut end_of_last = 0;
    starts.retain(|start| {
        let fits = *start >= end_of_last && is_free(card, *start, profile.size);
        if fits {
            end_of_last = start + profile.size;
        }
        fits
    });
    starts
}

/// Whether no instance lies in these memory units.
pub(crate) fn is_free(card: &CardState, start: u32, size: u32) -> bool {
    card.instances.iter().all(|other| {
        let other_size = card.profile(other.profile).map_or(u32::MAX, |profile| profile.size);
        other.start >= start + size || start >= other.start.saturating_add(other_size)
    })
}

/// Compute slices and shared engines are those of the profile that takes the whole card.
fn by_engines(card: &CardState, profile: &Profile) -> u32 {
    let profiles = TABLES.profiles(card.model);
    let Some(whole) = profiles.iter().max_by_key(|profile| (profile.compute, profile.size)) else { return 0 };
    let limits = |profile: &Profile| {
        let [_, decoder, encoder, jpeg, optical] = profile.engines;
        [profile.compute, decoder, encoder, jpeg, optical]
    };
    let mut left = limits(whole);
    for instance in card.instances.iter().filter_map(|instance| card.profile(instance.profile)) {
        for (left, used) in left.iter_mut().zip(limits(instance)) {
            *left = left.saturating_sub(used);
        }
    }
    let wanted = limits(profile);
    left.iter()
        .zip(wanted)
        .filter(|(_, wanted)| *wanted > 0)
        .map(|(left, wanted)| left / wanted)
        .min()
        .unwrap_or(0)
}

/// Whether one more vGPU of `kind` can be made.
pub(crate) fn is_creatable(card: &CardState, kind: &VgpuType) -> bool {
    if let Some(profile) = kind.profile {
        let on = |id: u32| {
            card.world.vgpus.iter().filter(|vgpu| vgpu.gpu_instance == Some(id)).collect::<Vec<_>>()
        };
        return card.mig
            && card.instances.iter().filter(|instance| instance.profile == profile).any(|instance| {
                let there = on(instance.id);
                let one_size =
                    there.iter().all(|vgpu| size(card, &vgpu.type_name) == Some(kind.framebuffer_mib));
                one_size && there.len() < kind.most as usize
            });
    }
    if card.mig {
        return false;
    }
    if card.mixed_size {
        return !creatable_starts(card, kind).is_empty();
    }
    let one_size =
        card.world.vgpus.iter().all(|vgpu| size(card, &vgpu.type_name) == Some(kind.framebuffer_mib));
    one_size && card.world.vgpus.len() < kind.most as usize
}

fn size(card: &CardState, type_name: &str) -> Option<u64> {
    card.types.iter().find(|kind| kind.name == type_name).map(|kind| kind.framebuffer_mib)
}

/// Starts at which a vGPU of `kind` can be made now, when sizes are mixed.
pub(crate) fn creatable_starts(card: &CardState, kind: &VgpuType) -> Vec<u32> {
    let Some(mixed) = TABLES.mixed(card.model, kind.framebuffer_mib) else { return vec![] };
    let is_free = |start: &u32| {
        card.world.vgpus.iter().all(|vgpu| {
            let there = size(card, &vgpu.type_name).and_then(|mib| TABLES.mixed(card.model, mib));
            let (Some(there), Some(at)) = (there, vgpu.placement) else { return false };
            at >= start + mixed.size || *start >= at + there.size
        })
    };
    mixed.starts.iter().copied().filter(is_free).collect()
}
