//! MIG: what can be made, and what there is.

use std::{ffi::c_uint, ptr};

use nvml_wrapper_sys::bindings::{
    nvmlComputeInstance_t, nvmlComputeInstanceInfo_t, nvmlComputeInstancePlacement_st,
    nvmlComputeInstanceProfileInfo_st, nvmlComputeInstanceProfileInfo_v2_st, nvmlDevice_t, nvmlGpuInstance_t,
    nvmlGpuInstanceInfo_t, nvmlGpuInstancePlacement_st, nvmlGpuInstanceProfileInfo_st,
    nvmlGpuInstanceProfileInfo_v2_st,
};

use crate::{
    answer::{
        Answer, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, VERSION_MISMATCH, change,
        field, functions, get, put, put_entries,
    },
    cards::{Profile, TABLES},
    geometry,
    kernel::{Compute, Instance},
    state::{CardState, Object, State},
};

/// The numbers by which profiles are asked for end before this one.
const PROFILES: c_uint = 0x12;
/// Slices of the compute profiles, by the number by which they are asked for.
pub(super) const COMPUTE_SLICES: [u32; 8] = [1, 2, 3, 4, 7, 8, 6, 1];
/// Version words of the structures (`NVML_STRUCT_VERSION`).
const PROFILE_V2: c_uint = 0x0200_0098;
const COMPUTE_V2: c_uint = 0x0200_0088;

fn profile_at(card: &CardState, index: c_uint) -> Answer<&'static Profile> {
    if index >= PROFILES {
        return Err(INVALID_ARGUMENT);
    }
    TABLES.profiles(card.model).iter().find(|profile| profile.index == index).ok_or(NOT_SUPPORTED)
}

/// A card that is in MIG mode.
fn divided(state: &State, device: nvmlDevice_t) -> Answer<&CardState> {
    state.card(device.addr()).and_then(|card| if card.made.mig { Ok(card) } else { Err(NOT_SUPPORTED) })
}

/// The card and the GPU instance of a handle; an instance that is gone has no valid handle.
pub(super) fn instance(state: &State, handle: nvmlGpuInstance_t) -> Answer<(&CardState, &Instance)> {
    let Some(Object::GpuInstance(address, id)) = state.object(handle.addr()) else {
        return Err(INVALID_ARGUMENT);
    };
    let card = state.card_at(address).ok_or(INVALID_ARGUMENT)?;
    Ok((card, card.instance(*id).ok_or(INVALID_ARGUMENT)?))
}

/// The numbers of the GPU instance and of the compute instance that a handle stands for.
pub(super) fn compute(state: &State, handle: nvmlComputeInstance_t) -> Answer<(&CardState, u32, &Compute)> {
    let Some(Object::ComputeInstance(address, on, id)) = state.object(handle.addr()) else {
        return Err(INVALID_ARGUMENT);
    };
    let card = state.card_at(address).ok_or(INVALID_ARGUMENT)?;
    let instance = card.instance(*on).ok_or(INVALID_ARGUMENT)?;
    let compute = instance.compute.iter().find(|compute| compute.id == *id).ok_or(INVALID_ARGUMENT)?;
    Ok((card, *on, compute))
}

/// Slices of a compute profile by its number, where a GPU instance has it, and where it can start.
pub(super) fn compute_profile(card: &CardState, on: &Instance, profile: c_uint) -> Answer<(u32, Vec<u32>)> {
    let slices = COMPUTE_SLICES.get(profile as usize).copied().ok_or(INVALID_ARGUMENT)?;
    let all = card.profile(on.profile).map_or(0, |profile| profile.compute);
    if slices > all || profile == 7 {
        return Err(NOT_SUPPORTED);
    }
    // As `nvidia-smi mig -lcipp` has them: {0,2,4} for two of seven, {0,4} for three of seven.
    let starts = (0..all).step_by(slices.next_power_of_two() as usize);
    Ok((slices, starts.filter(|start| start + slices <= all).collect()))
}

/// A list of which the number is the answer where there is no room for it.
fn put_placements<T: Copy>(to: *mut T, count: *mut c_uint, entries: &[T]) -> Answer {
    let room = get(count)?;
    let there = c_uint::try_from(entries.len()).unwrap_or(0);
    put(count, there)?;
    if to.is_null() {
        return Ok(());
    }
    if room < there { Err(INSUFFICIENT_SIZE) } else { put_entries(to, entries) }
}

fn mig_device(state: &State, handle: nvmlDevice_t) -> Answer<(u32, u32)> {
    let Some(Object::MigDevice(address, instance, compute)) = state.object(handle.addr()) else {
        return Err(INVALID_ARGUMENT);
    };
    let there =
        state.card_at(address).is_some_and(|card| card.mig_devices().contains(&(*instance, *compute)));
    if there { Ok((*instance, *compute)) } else { Err(INVALID_ARGUMENT) }
}

functions! {
    fn nvmlDeviceGetMigMode(device: nvmlDevice_t, current: *mut c_uint, pending: *mut c_uint) of device |state| {
        let card = state.card(device.addr())?;
        if TABLES.profiles(card.model).is_empty() {
            return Err(NOT_SUPPORTED);
        }
        put(current, card.made.mig.into())?;
        put(pending, card.made.mig_pending.into())
    }

    fn nvmlDeviceGetGpuInstanceProfileInfoV(
        device: nvmlDevice_t,
        index: c_uint,
        info: *mut nvmlGpuInstanceProfileInfo_v2_st,
    ) of device |state| {
        let profile = profile_at(state.card(device.addr())?, index)?;
        let knows = state.knows("GpuInstanceProfileInfo", 2);
        change(info, |info| {
            if info.version != PROFILE_V2 || !knows {
                return Err(VERSION_MISMATCH);
            }
            let [copy, decoder, encoder, jpeg, optical] = profile.engines;
            *info = nvmlGpuInstanceProfileInfo_v2_st {
                version: info.version,
                id: profile.id,
                isP2pSupported: 0,
                sliceCount: profile.compute,
                instanceCount: profile.max,
                multiprocessorCount: profile.compute * 14,
                copyEngineCount: copy,
                decoderCount: decoder,
                encoderCount: encoder,
                jpegCount: jpeg,
                ofaCount: optical,
                memorySizeMB: profile.memory_mib,
                name: field(&format!("MIG {}", profile.name)),
            };
            Ok(())
        })
    }

    fn nvmlDeviceGetGpuInstanceProfileInfo(
        device: nvmlDevice_t,
        index: c_uint,
        info: *mut nvmlGpuInstanceProfileInfo_st,
    ) of device |state| {
        let profile = profile_at(state.card(device.addr())?, index)?;
        let [copy, decoder, encoder, jpeg, optical] = profile.engines;
        put(info, nvmlGpuInstanceProfileInfo_st {
            id: profile.id,
            isP2pSupported: 0,
            sliceCount: profile.compute,
            instanceCount: profile.max,
            multiprocessorCount: profile.compute * 14,
            copyEngineCount: copy,
            decoderCount: decoder,
            encoderCount: encoder,
            jpegCount: jpeg,
            ofaCount: optical,
            memorySizeMB: profile.memory_mib,
        })
    }

    fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(
        device: nvmlDevice_t,
        profile: c_uint,
        placements: *mut nvmlGpuInstancePlacement_st,
        count: *mut c_uint,
    ) of device |state| {
        state.privileged()?;
        let profile = state.card(device.addr())?.profile(profile).ok_or(INVALID_ARGUMENT)?;
        let entry = |start: &u32| nvmlGpuInstancePlacement_st { start: *start, size: profile.size };
        put_placements(placements, count, &profile.starts.iter().map(entry).collect::<Vec<_>>())
    }

    fn nvmlDeviceGetGpuInstanceRemainingCapacity(device: nvmlDevice_t, profile: c_uint, count: *mut c_uint) of device |state| {
        state.privileged()?;
        let card = divided(state, device)?;
        let profile = card.profile(profile).ok_or(INVALID_ARGUMENT)?;
        put(count, geometry::remaining(card, profile))
    }

    fn nvmlDeviceGetGpuInstances(
        device: nvmlDevice_t,
        profile: c_uint,
        instances: *mut nvmlGpuInstance_t,
        count: *mut c_uint,
    ) of device |state| {
        state.privileged()?;
        let card = divided(state, device)?;
        card.profile(profile).ok_or(INVALID_ARGUMENT)?;
        let address = card.world.address.clone();
        let ids: Vec<u32> =
            card.made.instances.iter().filter(|instance| instance.profile == profile).map(|instance| instance.id).collect();
        let handles: Vec<nvmlGpuInstance_t> = ids
            .into_iter()
            .map(|id| ptr::without_provenance_mut(state.handle(Object::GpuInstance(address.clone(), id))))
            .collect();
        // The count is not looked at, only written: the buffer must be large enough.
        put(count, c_uint::try_from(handles.len()).unwrap_or(0))?;
        put_entries(instances, &handles)
    }

    fn nvmlDeviceGetGpuInstanceById(device: nvmlDevice_t, id: c_uint, found: *mut nvmlGpuInstance_t) of device |state| {
        state.privileged()?;
        let card = divided(state, device)?;
        card.instance(id).ok_or(NOT_FOUND)?;
        let object = Object::GpuInstance(card.world.address.clone(), id);
        let handle = state.handle(object);
        put(found, ptr::without_provenance_mut(handle))
    }

    fn nvmlGpuInstanceGetInfo(of: nvmlGpuInstance_t, info: *mut nvmlGpuInstanceInfo_t) of of |state| {
        let (card, instance) = instance(state, of)?;
        let size = card.profile(instance.profile).map_or(0, |profile| profile.size);
        let (address, id, profile, start) = (card.world.address.clone(), instance.id, instance.profile, instance.start);
        let device = state.handle(Object::Card(address));
        put(info, nvmlGpuInstanceInfo_t {
            device: ptr::without_provenance_mut(device),
            id,
            profileId: profile,
            placement: nvmlGpuInstancePlacement_st { start, size },
        })
    }

    fn nvmlGpuInstanceGetComputeInstanceProfileInfoV(
        of: nvmlGpuInstance_t,
        index: c_uint,
        engines: c_uint,
        info: *mut nvmlComputeInstanceProfileInfo_v2_st,
    ) of of |state| {
        let (card, instance) = instance(state, of)?;
        if engines != 0 {
            return Err(INVALID_ARGUMENT);
        }
        let (slices, starts) = compute_profile(card, instance, index)?;
        let profile = card.profile(instance.profile).ok_or(INVALID_ARGUMENT)?;
        let name = if slices == profile.compute {
            format!("MIG {}", profile.name)
        } else {
            format!("MIG {slices}c.{}", profile.name)
        };
        change(info, |info| {
            if info.version != COMPUTE_V2 {
                return Err(VERSION_MISMATCH);
            }
            info.id = index;
            info.sliceCount = slices;
            info.instanceCount = c_uint::try_from(starts.len()).unwrap_or(0);
            info.multiprocessorCount = slices * 14;
            info.name = field(&name);
            Ok(())
        })
    }

    fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
        of: nvmlGpuInstance_t,
        index: c_uint,
        engines: c_uint,
        info: *mut nvmlComputeInstanceProfileInfo_st,
    ) of of |state| {
        let (card, instance) = instance(state, of)?;
        if engines != 0 {
            return Err(INVALID_ARGUMENT);
        }
        let (slices, starts) = compute_profile(card, instance, index)?;
        change(info, |info| {
            info.id = index;
            info.sliceCount = slices;
            info.instanceCount = c_uint::try_from(starts.len()).unwrap_or(0);
            info.multiprocessorCount = slices * 14;
            Ok(())
        })
    }

    fn nvmlGpuInstanceGetComputeInstanceRemainingCapacity(
        of: nvmlGpuInstance_t,
        profile: c_uint,
        count: *mut c_uint,
    ) of of |state| {
        state.privileged()?;
        let (card, instance) = instance(state, of)?;
        let (slices, starts) = compute_profile(card, instance, profile)?;
        let free = starts.iter().filter(|start| instance.is_free(**start, slices)).count();
        put(count, c_uint::try_from(free).unwrap_or(0))
    }

    fn nvmlGpuInstanceGetComputeInstancePossiblePlacements(
        of: nvmlGpuInstance_t,
        profile: c_uint,
        placements: *mut nvmlComputeInstancePlacement_st,
        count: *mut c_uint,
    ) of of |state| {
        state.privileged()?;
        let (card, instance) = instance(state, of)?;
        let (slices, starts) = compute_profile(card, instance, profile)?;
        let entry = |start: u32| nvmlComputeInstancePlacement_st { start, size: slices };
        put_placements(placements, count, &starts.into_iter().map(entry).collect::<Vec<_>>())
    }

    fn nvmlGpuInstanceGetComputeInstances(
        of: nvmlGpuInstance_t,
        profile: c_uint,
        instances: *mut nvmlComputeInstance_t,
        count: *mut c_uint,
    ) of of |state| {
        state.privileged()?;
        let (card, instance) = instance(state, of)?;
        let (slices, _) = compute_profile(card, instance, profile)?;
        let (address, on) = (card.world.address.clone(), instance.id);
        let ids: Vec<u32> =
            instance.compute.iter().filter(|compute| compute.slices == slices).map(|compute| compute.id).collect();
        let handles: Vec<nvmlComputeInstance_t> = ids
            .into_iter()
            .map(|id| ptr::without_provenance_mut(state.handle(Object::ComputeInstance(address.clone(), on, id))))
            .collect();
        put(count, c_uint::try_from(handles.len()).unwrap_or(0))?;
        put_entries(instances, &handles)
    }

    fn nvmlGpuInstanceGetComputeInstanceById(
        of: nvmlGpuInstance_t,
        id: c_uint,
        found: *mut nvmlComputeInstance_t,
    ) of of |state| {
        state.privileged()?;
        let (card, instance) = instance(state, of)?;
        if !instance.compute.iter().any(|compute| compute.id == id) {
            return Err(NOT_FOUND);
        }
        let object = Object::ComputeInstance(card.world.address.clone(), instance.id, id);
        let handle = state.handle(object);
        put(found, ptr::without_provenance_mut(handle))
    }

    fn nvmlComputeInstanceGetInfo_v2(of: nvmlComputeInstance_t, info: *mut nvmlComputeInstanceInfo_t) of of |state| {
        let (card, instance, compute) = compute(state, of)?;
        let (address, compute) = (card.world.address.clone(), compute.clone());
        // The handle of the MIG device, which alone tells its UUID (k8s-dra-driver-gpu, `nvlib.go`).
        let device = state.handle(Object::MigDevice(address.clone(), instance, compute.id));
        let of_instance = state.handle(Object::GpuInstance(address, instance));
        let profile = COMPUTE_SLICES.iter().position(|slices| *slices == compute.slices).unwrap_or(0);
        put(info, nvmlComputeInstanceInfo_t {
            device: ptr::without_provenance_mut(device),
            gpuInstance: ptr::without_provenance_mut(of_instance),
            id: compute.id,
            profileId: c_uint::try_from(profile).unwrap_or(0),
            placement: nvmlComputeInstancePlacement_st { start: compute.start, size: compute.slices },
        })
    }

    fn nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: *mut c_uint) of device |state| {
        let card = state.card(device.addr())?;
        put(count, TABLES.profiles(card.model).iter().map(|profile| profile.compute).max().unwrap_or(0))
    }

    fn nvmlDeviceGetMigDeviceHandleByIndex(device: nvmlDevice_t, index: c_uint, found: *mut nvmlDevice_t) of device |state| {
        let card = divided(state, device)?;
        let (instance, compute) = card.mig_devices().get(index as usize).copied().ok_or(NOT_FOUND)?;
        let object = Object::MigDevice(card.world.address.clone(), instance, compute);
        let handle = state.handle(object);
        put(found, ptr::without_provenance_mut(handle))
    }

    fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, id: *mut c_uint) of device |state| {
        put(id, mig_device(state, device)?.0)
    }

    fn nvmlDeviceGetComputeInstanceId(device: nvmlDevice_t, id: *mut c_uint) of device |state| {
        put(id, mig_device(state, device)?.1)
    }
}
