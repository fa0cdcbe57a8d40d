//! MIG: making and unmaking. Which error is said when: `nvml.h`, at each function.

use std::{ffi::c_uint, ptr};

use gpudesk_geometry::Misfit;
use nvml_wrapper_sys::bindings::{
    nvmlComputeInstance_t, nvmlComputeInstancePlacement_t, nvmlDevice_t, nvmlGpuInstance_t,
    nvmlGpuInstancePlacement_t,
};

use super::mig::{compute, compute_profile, instance};
use crate::{
    answer::{
        Answer, IN_USE, INSUFFICIENT_RESOURCES, INVALID_ARGUMENT, NOT_SUPPORTED, RESET_REQUIRED, changes,
        get, put,
    },
    cards::{Architecture, TABLES},
    geometry,
    kernel::Instance,
    state::{Object, State},
};

/// A placement for the recorder.
fn place<T: Copy>(placement: *const T, start: impl FnOnce(T) -> u32) -> String {
    get(placement).map_or_else(|_| "nowhere".into(), |placement| start(placement).to_string())
}

fn make(
    state: &mut State,
    device: nvmlDevice_t,
    profile: c_uint,
    at: Option<nvmlGpuInstancePlacement_t>,
) -> Answer<usize> {
    let guest = state.world.as_ref().is_some_and(|world| world.guest && world.vgpu_host);
    let card = state.card_mut(device.addr())?;
    if !card.made.mig || guest {
        return Err(NOT_SUPPORTED);
    }
    let profile = card.profile(profile).ok_or(INVALID_ARGUMENT)?;
    if at.is_some_and(|at| at.size != profile.size || !profile.starts.contains(&at.start)) {
        return Err(INVALID_ARGUMENT);
    }
    if geometry::remaining(card, profile) == 0 {
        return Err(INSUFFICIENT_RESOURCES);
    }
    let start = match at {
        Some(at) => match geometry::check(card, profile, at.start) {
            Ok(()) => at.start,
            Err(Misfit::Start) => return Err(INVALID_ARGUMENT),
            // Also where the very same instance is there already: nothing says that it exists.
            Err(_) => return Err(INSUFFICIENT_RESOURCES),
        },
        None => geometry::chosen_start(card, profile).ok_or(INSUFFICIENT_RESOURCES)?,
    };
    let id = geometry::number_of(card, profile, start);
    card.made.instances.push(Instance::new(id, profile.id, start));
    let object = Object::GpuInstance(card.world.address.clone(), id);
    Ok(state.handle(object))
}

fn make_compute(
    state: &mut State,
    of: nvmlGpuInstance_t,
    profile: c_uint,
    at: Option<nvmlComputeInstancePlacement_t>,
) -> Answer<usize> {
    let (card, on) = instance(state, of)?;
    let (slices, starts) = compute_profile(card, on, profile)?;
    if at.is_some_and(|at| at.size != slices || !starts.contains(&at.start)) {
        return Err(INVALID_ARGUMENT);
    }
    let free = |start: &&u32| on.is_free(**start, slices) && at.is_none_or(|at| at.start == **start);
    let start = starts.iter().find(free).copied().ok_or(INSUFFICIENT_RESOURCES)?;
    let (address, on) = (card.world.address.clone(), on.id);
    let card = state.card_at_mut(&address).ok_or(INVALID_ARGUMENT)?;
    let made = card.instance_mut(on).ok_or(INVALID_ARGUMENT)?.add_compute(slices, start);
    Ok(state.handle(Object::ComputeInstance(address, on, made)))
}

changes! {
    fn nvmlDeviceSetMigMode(device: nvmlDevice_t, mode: c_uint, status: *mut c_uint) of device, mode, |state| {
        let guest = state.world.as_ref().is_some_and(|world| world.guest);
        let card = state.card_mut(device.addr())?;
        if TABLES.profiles(card.model).is_empty() {
            return Err(NOT_SUPPORTED);
        }
        let on = match mode {
            0 => false,
            1 => true,
            _ => return Err(INVALID_ARGUMENT),
        };
        // Who is in the way is no failure of the call: the mode waits, and the status says for what.
        card.made.mig_pending = on;
        if card.made.mig == on {
            return put(status, 0);
        }
        let ampere = card.model.architecture == Architecture::Ampere;
        // Virtual functions keep it on: the order down is vGPUs, instances, functions, mode.
        let functions = !on && card.beside.as_ref().is_some_and(|beside| beside.functions > 0);
        let used = !card.vgpus().is_empty() || !card.world.processes.is_empty();
        let busy = functions || used || !card.made.instances.is_empty();
        // The Ampere cards alone need a reset, for which nobody may even hold them open.
        if busy || ampere && card.world.in_use {
            return put(status, IN_USE);
        }
        if ampere && guest {
            return put(status, RESET_REQUIRED);
        }
        card.made.mig = on;
        // Who asks for MIG gives up what the card was divided into before.
        card.made.mixed_size = false;
        put(status, 0)
    }

    fn nvmlDeviceCreateGpuInstance(
        device: nvmlDevice_t,
        profile: c_uint,
        made: *mut nvmlGpuInstance_t,
    ) of device, format!("profile {profile}"), |state| {
        let handle = make(state, device, profile, None)?;
        put(made, ptr::without_provenance_mut(handle))
    }

    fn nvmlDeviceCreateGpuInstanceWithPlacement(
        device: nvmlDevice_t,
        profile: c_uint,
        placement: *const nvmlGpuInstancePlacement_t,
        made: *mut nvmlGpuInstance_t,
    ) of device, format!("profile {profile} at {}", place(placement, |at| at.start)), |state| {
        let handle = make(state, device, profile, Some(get(placement)?))?;
        put(made, ptr::without_provenance_mut(handle))
    }

    fn nvmlGpuInstanceDestroy(of: nvmlGpuInstance_t) of of, "", |state| {
        let (card, gone) = instance(state, of)?;
        let held = card.vgpus_on(gone.id).next().is_some()
            || card.is_busy(gone.id, None)
            // Who leaked a handle is in no list of processes (DCGM issue 276).
            || card.world.leaked.contains(&gone.id);
        if !gone.compute.is_empty() || held {
            return Err(IN_USE);
        }
        let (address, id) = (card.world.address.clone(), gone.id);
        let card = state.card_at_mut(&address).ok_or(INVALID_ARGUMENT)?;
        card.made.instances.retain(|instance| instance.id != id);
        Ok(())
    }

    fn nvmlGpuInstanceCreateComputeInstance(
        of: nvmlGpuInstance_t,
        profile: c_uint,
        made: *mut nvmlComputeInstance_t,
    ) of of, format!("profile {profile}"), |state| {
        let handle = make_compute(state, of, profile, None)?;
        put(made, ptr::without_provenance_mut(handle))
    }

    fn nvmlGpuInstanceCreateComputeInstanceWithPlacement(
        of: nvmlGpuInstance_t,
        profile: c_uint,
        placement: *const nvmlComputeInstancePlacement_t,
        made: *mut nvmlComputeInstance_t,
    ) of of, format!("profile {profile} at {}", place(placement, |at| at.start)), |state| {
        let handle = make_compute(state, of, profile, Some(get(placement)?))?;
        put(made, ptr::without_provenance_mut(handle))
    }

    fn nvmlComputeInstanceDestroy(of: nvmlComputeInstance_t) of of, "", |state| {
        let (card, on, gone) = compute(state, of)?;
        // A vGPU runs on the compute instance of its GPU instance.
        if card.is_busy(on, Some(gone.id)) || card.vgpus_on(on).next().is_some() {
            return Err(IN_USE);
        }
        let (address, id) = (card.world.address.clone(), gone.id);
        let card = state.card_at_mut(&address).ok_or(INVALID_ARGUMENT)?;
        let on = card.instance_mut(on).ok_or(INVALID_ARGUMENT)?;
        on.compute.retain(|compute| compute.id != id);
        Ok(())
    }
}
