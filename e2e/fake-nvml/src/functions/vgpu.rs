//! vGPUs of a card.

use std::ffi::{c_char, c_uint};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlVgpuHeterogeneousMode_v1_t, nvmlVgpuLicenseExpiry_st, nvmlVgpuLicenseInfo_st,
    nvmlVgpuPlacementId_v1_t, nvmlVgpuPlacementList_v1_t, nvmlVgpuPlacementList_v2_t,
    nvmlVgpuSchedulerCapabilities_st, nvmlVgpuSchedulerGetState_st,
};

use crate::{
    answer::{
        Answer, IN_USE, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, VERSION_MISMATCH,
        change, functions, get, put, put_entries, put_list, put_text,
    },
    cards::{Architecture, TABLES, VgpuType},
    geometry,
    state::{CardState, State},
    world::Vgpu,
};

/// Version words of the structures (`NVML_STRUCT_VERSION`).
const MODE_V1: c_uint = 0x0100_0008;
const PLACEMENT_V1: c_uint = 0x0100_0008;
const LIST_V1: c_uint = 0x0100_0018;
const LIST_V2: c_uint = 0x0200_0020;
/// No start, no GPU instance.
const NO_PLACEMENT: c_uint = 0xffff;
const NONE: c_uint = 0xffff_ffff;

/// A card that takes vGPUs under a driver that makes them.
fn host(state: &State, device: nvmlDevice_t) -> Answer<&CardState> {
    let card = state.card(device.addr())?;
    let makes = state.world.as_ref().is_some_and(|world| world.vgpu_host);
    if makes && !card.types.is_empty() { Ok(card) } else { Err(NOT_SUPPORTED) }
}

fn type_on(card: &CardState, id: c_uint) -> Answer<&VgpuType> {
    card.types.iter().find(|kind| kind.id == id).ok_or(INVALID_ARGUMENT)
}

/// The handle of the vGPU at a place of a card: numbers, and no small ones.
fn handle(card: &CardState, place: usize) -> c_uint {
    3_251_000_000 + card.address.bus * 1000 + c_uint::try_from(place).unwrap_or(999)
}

fn vgpu(state: &State, wanted: c_uint) -> Answer<(&CardState, &Vgpu)> {
    if wanted == 0 {
        return Err(INVALID_ARGUMENT);
    }
    let all = state
        .cards
        .iter()
        .flat_map(|card| card.world.vgpus.iter().enumerate().map(move |(n, vgpu)| (card, n, vgpu)));
    let mut found = all.filter(|(card, place, _)| handle(card, *place) == wanted);
    found.next().map(|(card, _, vgpu)| (card, vgpu)).ok_or(NOT_FOUND)
}

/// Fills in positions in the form that the caller knows: the older one has no room to check.
fn put_placements(state: &State, to: *mut nvmlVgpuPlacementList_v2_t, size: u32, starts: &[u32]) -> Answer {
    let older: *mut nvmlVgpuPlacementList_v1_t = to.cast();
    let there = c_uint::try_from(starts.len()).unwrap_or(0);
    let version = get(older)?.version;
    if version == LIST_V2 && state.knows("VgpuPlacementList", 2) {
        return change(to, |list| {
            if list.mode != 0 {
                return Err(NOT_SUPPORTED);
            }
            let room = list.count;
            list.count = there;
            if room < there {
                return Err(INSUFFICIENT_SIZE);
            }
            list.placementSize = size;
            put_entries(list.placementIds, starts)
        });
    }
    if version != LIST_V1 {
        return Err(VERSION_MISMATCH);
    }
    change(older, |list| {
        list.count = there;
        list.placementSize = size;
        put_entries(list.placementIds, starts)
    })
}

functions! {
    fn nvmlDeviceGetVirtualizationMode(device: nvmlDevice_t, mode: *mut c_uint) of device |state| {
        state.card(device.addr())?;
        put(mode, if host(state, device).is_ok() { 3 } else { 0 })
    }

    fn nvmlDeviceGetHostVgpuMode(device: nvmlDevice_t, mode: *mut c_uint) of device |state| {
        put(mode, (host(state, device)?.model.architecture >= Architecture::Ampere).into())
    }

    fn nvmlDeviceGetSupportedVgpus(device: nvmlDevice_t, count: *mut c_uint, ids: *mut c_uint) of device |state| {
        let all: Vec<c_uint> = host(state, device)?.types.iter().map(|kind| kind.id).collect();
        put_list(count, ids, &all)
    }

    fn nvmlDeviceGetCreatableVgpus(device: nvmlDevice_t, count: *mut c_uint, ids: *mut c_uint) of device |state| {
        let card = host(state, device)?;
        let creatable = card.types.iter().filter(|kind| geometry::is_creatable(card, kind));
        put_list(count, ids, &creatable.map(|kind| kind.id).collect::<Vec<_>>())
    }

    fn nvmlVgpuTypeGetMaxInstances(device: nvmlDevice_t, id: c_uint, most: *mut c_uint) of device |state| {
        let card = host(state, device)?;
        let kind = type_on(card, id)?;
        let instances = kind.profile.and_then(|profile| card.profile(profile)).map_or(1, |profile| profile.max);
        put(most, kind.most * instances)
    }

    fn nvmlDeviceGetVgpuTypeSupportedPlacements(
        device: nvmlDevice_t,
        id: c_uint,
        list: *mut nvmlVgpuPlacementList_v2_t,
    ) of device |state| {
        let card = host(state, device)?;
        let kind = type_on(card, id)?;
        if kind.profile.is_some() || !card.model.mixes_sizes {
            return Err(NOT_SUPPORTED);
        }
        let mixed = TABLES.mixed(card.model, kind.framebuffer_mib).ok_or(NOT_SUPPORTED)?;
        put_placements(state, list, mixed.size, &mixed.starts)
    }

    fn nvmlDeviceGetVgpuTypeCreatablePlacements(
        device: nvmlDevice_t,
        id: c_uint,
        list: *mut nvmlVgpuPlacementList_v2_t,
    ) of device |state| {
        let card = host(state, device)?;
        let kind = type_on(card, id)?;
        let mixed = TABLES.mixed(card.model, kind.framebuffer_mib).filter(|_| kind.profile.is_none()).ok_or(NOT_SUPPORTED)?;
        put_placements(state, list, mixed.size, &geometry::creatable_starts(card, kind))
    }

    fn nvmlDeviceGetVgpuCapabilities(device: nvmlDevice_t, capability: c_uint, found: *mut c_uint) of device |state| {
        let card = host(state, device)?;
        match capability {
            2 => put(found, card.model.mixes_sizes.into()),
            0..=11 => put(found, 0),
            _ => Err(INVALID_ARGUMENT),
        }
    }

    fn nvmlDeviceGetVgpuHeterogeneousMode(device: nvmlDevice_t, mode: *mut nvmlVgpuHeterogeneousMode_v1_t) of device |state| {
        let card = host(state, device)?;
        if !card.model.mixes_sizes {
            return Err(NOT_SUPPORTED);
        }
        change(mode, |mode| {
            if mode.version != MODE_V1 {
                return Err(VERSION_MISMATCH);
            }
            mode.mode = card.mixed_size.into();
            Ok(())
        })
    }

    fn nvmlDeviceSetVgpuHeterogeneousMode(device: nvmlDevice_t, mode: *const nvmlVgpuHeterogeneousMode_v1_t) of device |state| {
        host(state, device)?;
        let wanted = get(mode)?;
        let card = state.card_mut(device.addr())?;
        if wanted.version != MODE_V1 {
            return Err(VERSION_MISMATCH);
        }
        if !card.model.mixes_sizes || wanted.mode > 1 {
            return Err(NOT_SUPPORTED);
        }
        if !card.world.vgpus.is_empty() {
            return Err(IN_USE);
        }
        card.mixed_size = wanted.mode == 1;
        Ok(())
    }

    fn nvmlDeviceGetVgpuSchedulerState(device: nvmlDevice_t, found: *mut nvmlVgpuSchedulerGetState_st) of device |state| {
        let policy = host(state, device)?.world.scheduler;
        change(found, |found| {
            found.schedulerPolicy = policy;
            found.arrMode = 0;
            Ok(())
        })
    }

    fn nvmlDeviceGetVgpuSchedulerCapabilities(
        device: nvmlDevice_t,
        found: *mut nvmlVgpuSchedulerCapabilities_st,
    ) of device |state| {
        let card = host(state, device)?;
        put(found, nvmlVgpuSchedulerCapabilities_st {
            // Fixed shares need equal sizes.
            supportedSchedulers: if card.mixed_size { [2, 1, 0] } else { [3, 2, 1] },
            maxTimeslice: 30_000_000,
            minTimeslice: 1_000_000,
            isArrModeSupported: 1,
            maxFrequencyForARR: 960,
            minFrequencyForARR: 63,
            maxAvgFactorForARR: 60,
            minAvgFactorForARR: 1,
        })
    }

    fn nvmlDeviceGetActiveVgpus(device: nvmlDevice_t, count: *mut c_uint, found: *mut c_uint) of device |state| {
        let card = host(state, device)?;
        let handles: Vec<c_uint> = (0..card.world.vgpus.len()).map(|place| handle(card, place)).collect();
        put_list(count, found, &handles)
    }

    fn nvmlVgpuInstanceGetType(id: c_uint, found: *mut c_uint) |state| {
        let (card, vgpu) = vgpu(state, id)?;
        let kind = card.types.iter().find(|kind| kind.name == vgpu.type_name).ok_or(NOT_FOUND)?;
        put(found, kind.id)
    }

    fn nvmlVgpuInstanceGetUUID(id: c_uint, to: *mut c_char, room: c_uint) |state| {
        let (card, vgpu) = vgpu(state, id)?;
        let made_up = crate::state::made_up(&format!("{}/{id}", card.world.address));
        put_text(to, room, vgpu.uuid.as_ref().unwrap_or(&made_up))
    }

    fn nvmlVgpuInstanceGetMdevUUID(id: c_uint, to: *mut c_char, room: c_uint) |state| {
        let (_, vgpu) = vgpu(state, id)?;
        put_text(to, room, vgpu.mdev_uuid.as_ref().ok_or(NOT_SUPPORTED)?)
    }

    fn nvmlVgpuInstanceGetVmID(id: c_uint, to: *mut c_char, room: c_uint, kind: *mut c_uint) |state| {
        // The room is looked at before the number.
        if room < 80 {
            return Err(INSUFFICIENT_SIZE);
        }
        let (_, vgpu) = vgpu(state, id)?;
        put(kind, 1)?;
        put_text(to, room, vgpu.vm_id.as_deref().unwrap_or(""))
    }

    fn nvmlVgpuInstanceGetVmDriverVersion(id: c_uint, to: *mut c_char, room: c_uint) |state| {
        let (_, vgpu) = vgpu(state, id)?;
        put_text(to, room, vgpu.guest_driver.as_deref().unwrap_or("Not Available"))
    }

    fn nvmlVgpuInstanceGetPlacementId(id: c_uint, found: *mut nvmlVgpuPlacementId_v1_t) |state| {
        change(found, |found| {
            if found.version != PLACEMENT_V1 {
                return Err(VERSION_MISMATCH);
            }
            found.placementId = vgpu(state, id)?.1.placement.unwrap_or(NO_PLACEMENT);
            Ok(())
        })
    }

    fn nvmlVgpuInstanceGetLicenseInfo_v2(id: c_uint, found: *mut nvmlVgpuLicenseInfo_st) |state| {
        let licensed = vgpu(state, id)?.1.licensed;
        put(found, nvmlVgpuLicenseInfo_st {
            isLicensed: licensed.into(),
            licenseExpiry: nvmlVgpuLicenseExpiry_st { year: 0, month: 0, day: 0, hour: 0, min: 0, sec: 0, status: 0 },
            currentState: if licensed { 5 } else { 3 },
        })
    }

    fn nvmlVgpuInstanceGetGpuInstanceId(id: c_uint, found: *mut c_uint) |state| {
        put(found, vgpu(state, id)?.1.gpu_instance.unwrap_or(NONE))
    }
}
