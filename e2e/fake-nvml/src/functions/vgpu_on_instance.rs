//! vGPUs on GPU instances that several can share: cards with the `GB20x` chips (release 575 and later).

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    nvmlActiveVgpuInstanceInfo_v1_t, nvmlGpuInstance_t, nvmlVgpuCreatablePlacementInfo_v1_t,
    nvmlVgpuHeterogeneousMode_v1_t, nvmlVgpuTypeIdInfo_v1_t,
};

use super::{
    mig::instance,
    vgpu::{MODE_V1, handle, mode, type_on, wanted_mode},
};
use crate::{
    answer::{
        Answer, IN_USE, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_SUPPORTED, VERSION_MISMATCH, change,
        changes, functions, put_entries, put_list,
    },
    cards::TABLES,
    geometry,
    kernel::Instance,
    state::{CardState, State},
};

/// Version words of the structures (`NVML_STRUCT_VERSION`).
const LIST_V1: c_uint = 0x0100_0010;
const CREATABLE_V1: c_uint = 0x0100_0020;

/// A GPU instance that several vGPUs can share, under a driver that makes them.
pub(super) fn shared(state: &State, of: nvmlGpuInstance_t) -> Answer<(&CardState, &Instance)> {
    let (card, on) = instance(state, of)?;
    let makes = state.world.as_ref().is_some_and(|world| world.vgpu_host);
    if makes && card.model.shares_instances() { Ok((card, on)) } else { Err(NOT_SUPPORTED) }
}

/// The same, to be changed.
pub(super) fn shared_mut(state: &mut State, of: nvmlGpuInstance_t) -> Answer<&mut Instance> {
    let (card, on) = shared(state, of)?;
    let (address, on) = (card.world.address.clone(), on.id);
    let card = state.card_at_mut(&address).ok_or(INVALID_ARGUMENT)?;
    card.instance_mut(on).ok_or(INVALID_ARGUMENT)
}

functions! {
    fn nvmlGpuInstanceGetCreatableVgpus(of: nvmlGpuInstance_t, found: *mut nvmlVgpuTypeIdInfo_v1_t) of of |state| {
        let (card, on) = shared(state, of)?;
        let creatable = card.types.iter().filter(|kind| geometry::is_creatable_on(card, on, kind));
        let ids: Vec<c_uint> = creatable.map(|kind| kind.id).collect();
        change(found, |found| {
            if found.version != LIST_V1 {
                return Err(VERSION_MISMATCH);
            }
            put_list(&raw mut found.vgpuCount, found.vgpuTypeIds, &ids)
        })
    }

    fn nvmlGpuInstanceGetActiveVgpus(of: nvmlGpuInstance_t, found: *mut nvmlActiveVgpuInstanceInfo_v1_t) of of |state| {
        let (card, on) = shared(state, of)?;
        let vgpus = card.world.vgpus.iter().enumerate();
        let inside = vgpus.filter(|(_, vgpu)| vgpu.gpu_instance == Some(on.id));
        let handles: Vec<c_uint> = inside.map(|(place, _)| handle(card, place)).collect();
        change(found, |found| {
            if found.version != LIST_V1 {
                return Err(VERSION_MISMATCH);
            }
            put_list(&raw mut found.vgpuCount, found.vgpuInstances, &handles)
        })
    }

    fn nvmlGpuInstanceGetVgpuTypeCreatablePlacements(
        of: nvmlGpuInstance_t,
        found: *mut nvmlVgpuCreatablePlacementInfo_v1_t,
    ) of of |state| {
        let (card, on) = shared(state, of)?;
        change(found, |found| {
            if found.version != CREATABLE_V1 {
                return Err(VERSION_MISMATCH);
            }
            let kind = type_on(card, found.vgpuTypeId)?;
            if !on.mixed_size || kind.profile != Some(on.profile) {
                return Err(NOT_SUPPORTED);
            }
            let starts = geometry::starts_on(card, on, kind);
            let room = found.count;
            found.count = c_uint::try_from(starts.len()).unwrap_or(0);
            if room < found.count {
                return Err(INSUFFICIENT_SIZE);
            }
            found.placementSize = TABLES.mixed_on_instance(card.model, kind).map_or(0, |mixed| mixed.size);
            put_entries(found.placementIds, &starts)
        })
    }

    fn nvmlGpuInstanceGetVgpuHeterogeneousMode(of: nvmlGpuInstance_t, mode: *mut nvmlVgpuHeterogeneousMode_v1_t) of of |state| {
        let mixed = shared(state, of)?.1.mixed_size;
        change(mode, |mode| {
            if mode.version != MODE_V1 {
                return Err(VERSION_MISMATCH);
            }
            mode.mode = mixed.into();
            Ok(())
        })
    }
}

changes! {
    fn nvmlGpuInstanceSetVgpuHeterogeneousMode(
        of: nvmlGpuInstance_t,
        wanted: *const nvmlVgpuHeterogeneousMode_v1_t,
    ) of of, mode(wanted), |state| {
        let (card, on) = shared(state, of)?;
        let wanted = wanted_mode(wanted)?;
        if card.vgpus_on(on.id).next().is_some() {
            return Err(IN_USE);
        }
        shared_mut(state, of)?.mixed_size = wanted;
        Ok(())
    }
}
