//! MIG: making and unmaking.

use std::{ffi::c_uint, ptr};

use gpudesk_geometry::Misfit;
use nvml_wrapper_sys::bindings::{
    nvmlComputeInstance_t, nvmlDevice_t, nvmlGpuInstance_t, nvmlGpuInstancePlacement_t,
};

use super::mig::{COMPUTE_SLICES, instance};
use crate::{
    answer::{Answer, IN_USE, INSUFFICIENT_RESOURCES, INVALID_ARGUMENT, NOT_SUPPORTED, functions, get, put},
    cards::{Architecture, TABLES},
    geometry,
    state::{Instance, Object, State},
};

fn make(state: &mut State, device: nvmlDevice_t, profile: c_uint, at: Option<u32>) -> Answer<usize> {
    let card = state.card_mut(device.addr())?;
    if !card.mig {
        return Err(NOT_SUPPORTED);
    }
    let profile = card.profile(profile).ok_or(INVALID_ARGUMENT)?;
    if geometry::remaining(card, profile) == 0 {
        return Err(INSUFFICIENT_RESOURCES);
    }
    let start = match at {
        Some(start) => match geometry::check(card, profile, start) {
            Ok(()) => start,
            Err(Misfit::Start) => return Err(INVALID_ARGUMENT),
            Err(_) => return Err(INSUFFICIENT_RESOURCES),
        },
        // Without a wish the driver begins at the far end, which can be in the way of larger ones.
        None => geometry::free_starts(card, profile).last().copied().ok_or(INSUFFICIENT_RESOURCES)?,
    };
    let id = card.free_id();
    card.instances.push(Instance { id, profile: profile.id, start, compute: vec![] });
    let object = Object::GpuInstance(card.world.address.clone(), id);
    Ok(state.handle(object))
}

functions! {
    fn nvmlDeviceSetMigMode(device: nvmlDevice_t, mode: c_uint, status: *mut c_uint) of device |state| {
        let card = state.card_mut(device.addr())?;
        if TABLES.profiles(card.model).is_empty() {
            return Err(NOT_SUPPORTED);
        }
        let on = match mode {
            0 => false,
            1 => true,
            _ => return Err(INVALID_ARGUMENT),
        };
        if !on && !card.instances.is_empty() || !card.world.vgpus.is_empty() {
            return Err(IN_USE);
        }
        card.mig_pending = on;
        // The Ampere cards need a reset, which somebody who uses the card is in the way of.
        if card.model.architecture == Architecture::Ampere && card.world.in_use && card.mig != on {
            return put(status, IN_USE);
        }
        card.mig = on;
        put(status, 0)
    }

    fn nvmlDeviceCreateGpuInstance(device: nvmlDevice_t, profile: c_uint, made: *mut nvmlGpuInstance_t) of device |state| {
        let handle = make(state, device, profile, None)?;
        put(made, ptr::without_provenance_mut(handle))
    }

    fn nvmlDeviceCreateGpuInstanceWithPlacement(
        device: nvmlDevice_t,
        profile: c_uint,
        placement: *const nvmlGpuInstancePlacement_t,
        made: *mut nvmlGpuInstance_t,
    ) of device |state| {
        let start = get(placement)?.start;
        let handle = make(state, device, profile, Some(start))?;
        put(made, ptr::without_provenance_mut(handle))
    }

    fn nvmlGpuInstanceDestroy(of: nvmlGpuInstance_t) of of |state| {
        let (card, gone) = instance(state, of)?;
        let held = card.world.vgpus.iter().any(|vgpu| vgpu.gpu_instance == Some(gone.id));
        if !gone.compute.is_empty() || held {
            return Err(IN_USE);
        }
        let (address, id) = (card.world.address.clone(), gone.id);
        let card = state.card_at_mut(&address).ok_or(INVALID_ARGUMENT)?;
        card.instances.retain(|instance| instance.id != id);
        Ok(())
    }

    fn nvmlGpuInstanceCreateComputeInstance(
        of: nvmlGpuInstance_t,
        profile: c_uint,
        made: *mut nvmlComputeInstance_t,
    ) of of |state| {
        let (card, on) = instance(state, of)?;
        let slices = COMPUTE_SLICES.get(profile as usize).copied().ok_or(INVALID_ARGUMENT)?;
        let all = card.profile(on.profile).map_or(0, |profile| profile.compute);
        if on.free_slices(all) < slices {
            return Err(INSUFFICIENT_RESOURCES);
        }
        let (address, id) = (card.world.address.clone(), on.id);
        let card = state.card_at_mut(&address).ok_or(INVALID_ARGUMENT)?;
        let on = card.instances.iter_mut().find(|instance| instance.id == id).ok_or(INVALID_ARGUMENT)?;
        let compute = on.add_compute(slices);
        let handle = state.handle(Object::ComputeInstance(address, id, compute));
        put(made, ptr::without_provenance_mut(handle))
    }

    fn nvmlComputeInstanceDestroy(of: nvmlComputeInstance_t) of of |state| {
        let Some(Object::ComputeInstance(address, instance, id)) = state.object(of.addr()).cloned() else {
            return Err(INVALID_ARGUMENT);
        };
        let card = state.card_at_mut(&address).ok_or(INVALID_ARGUMENT)?;
        let on = card.instances.iter_mut().find(|on| on.id == instance).ok_or(INVALID_ARGUMENT)?;
        let before = on.compute.len();
        on.compute.retain(|compute| compute.id != id);
        if on.compute.len() == before { Err(INVALID_ARGUMENT) } else { Ok(()) }
    }
}
