//! vGPUs of a card.

use std::ffi::{c_char, c_uint};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlVgpuHeterogeneousMode_v1_t, nvmlVgpuLicenseExpiry_st, nvmlVgpuLicenseInfo_st,
    nvmlVgpuPlacementId_v1_t, nvmlVgpuPlacementList_v1_t, nvmlVgpuPlacementList_v2_t,
};

use crate::{
    answer::{
        Answer, IN_USE, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, VERSION_MISMATCH,
        change, changes, functions, get, put, put_entries, put_list, put_text,
    },
    cards::{Architecture, TABLES, VgpuType},
    geometry,
    state::{CardState, State},
    world::Vgpu,
};

/// Version words of the structures (`NVML_STRUCT_VERSION`).
pub(super) const MODE_V1: c_uint = 0x0100_0008;
const PLACEMENT_V1: c_uint = 0x0100_0008;
const LIST_V1: c_uint = 0x0100_0018;
const LIST_V2: c_uint = 0x0200_0020;
/// No start, no GPU instance.
const NO_PLACEMENT: c_uint = 0xffff;
const NONE: c_uint = 0xffff_ffff;

/// A card that takes vGPUs under a driver that makes them.
pub(super) fn host(state: &State, device: nvmlDevice_t) -> Answer<&CardState> {
    let card = state.card(device.addr())?;
    let makes = state.world.as_ref().is_some_and(|world| world.vgpu_host);
    if makes && !card.types.is_empty() { Ok(card) } else { Err(NOT_SUPPORTED) }
}

pub(super) fn type_on(card: &CardState, id: c_uint) -> Answer<&VgpuType> {
    card.types.iter().find(|kind| kind.id == id).ok_or(INVALID_ARGUMENT)
}

/// The handle of the vGPU at a place of a card: numbers, and no small ones.
pub(super) fn handle(card: &CardState, place: usize) -> c_uint {
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

/// A mode for the recorder.
pub(super) fn mode(wanted: *const nvmlVgpuHeterogeneousMode_v1_t) -> String {
    get(wanted).map_or_else(|_| "nothing".into(), |wanted| wanted.mode.to_string())
}

/// Whether sizes are to be mixed.
pub(super) fn wanted_mode(wanted: *const nvmlVgpuHeterogeneousMode_v1_t) -> Answer<bool> {
    let wanted = get(wanted)?;
    match (wanted.version, wanted.mode) {
        (MODE_V1, mode @ 0..=1) => Ok(mode == 1),
        (MODE_V1, _) => Err(INVALID_ARGUMENT),
        _ => Err(VERSION_MISMATCH),
    }
}

/// What a card's vGPUs can do (`nvmlDeviceVgpuCapability_t`).
fn capability(card: &CardState, capability: c_uint) -> Option<bool> {
    let capable = match capability {
        // Series beside each other; every card's driver can.
        1 => true,
        2 => card.model.mixes_sizes,
        // Positions also where sizes are equal.
        9 => card.model.architecture >= Architecture::Ada,
        // Several vGPUs on one GPU instance: possible, and reported.
        10 => card.model.shares_instances(),
        11 => card.made.capabilities.get(&11).copied().unwrap_or(card.model.shares_instances()),
        6 | 7 => card.made.capabilities.get(&capability).copied().unwrap_or(false),
        0 | 3..=5 | 8 => false,
        _ => return None,
    };
    Some(capable)
}

/// Fills in positions in the form that the caller knows: the older one has no room to check.
fn put_placements(
    state: &State,
    to: *mut nvmlVgpuPlacementList_v2_t,
    size: u32,
    starts: &[u32],
    equal: bool,
) -> Answer {
    let older: *mut nvmlVgpuPlacementList_v1_t = to.cast();
    let there = c_uint::try_from(starts.len()).unwrap_or(0);
    let version = get(older)?.version;
    if version == LIST_V2 && state.knows("VgpuPlacementList", 2) {
        return change(to, |list| {
            // Those of equal sizes are known of Blackwell cards alone, where they are the same.
            if list.mode != 0 && !equal {
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
        let equal = card.model.architecture == Architecture::Blackwell;
        put_placements(state, list, mixed.size, &mixed.starts, equal)
    }

    fn nvmlDeviceGetVgpuTypeCreatablePlacements(
        device: nvmlDevice_t,
        id: c_uint,
        list: *mut nvmlVgpuPlacementList_v2_t,
    ) of device |state| {
        let card = host(state, device)?;
        let kind = type_on(card, id)?;
        let mixed = TABLES.mixed(card.model, kind.framebuffer_mib).filter(|_| kind.profile.is_none() && !card.made.mig);
        let mixed = mixed.ok_or(NOT_SUPPORTED)?;
        put_placements(state, list, mixed.size, &geometry::creatable_starts(card, kind), false)
    }

    fn nvmlDeviceGetVgpuCapabilities(device: nvmlDevice_t, wanted: c_uint, found: *mut c_uint) of device |state| {
        let card = host(state, device)?;
        put(found, capability(card, wanted).ok_or(INVALID_ARGUMENT)?.into())
    }

    fn nvmlDeviceGetVgpuHeterogeneousMode(device: nvmlDevice_t, mode: *mut nvmlVgpuHeterogeneousMode_v1_t) of device |state| {
        let card = host(state, device)?;
        if !card.model.mixes_sizes || card.made.mig {
            return Err(NOT_SUPPORTED);
        }
        change(mode, |mode| {
            if mode.version != MODE_V1 {
                return Err(VERSION_MISMATCH);
            }
            mode.mode = card.made.mixed_size.into();
            Ok(())
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

changes! {
    fn nvmlDeviceSetVgpuHeterogeneousMode(
        device: nvmlDevice_t,
        wanted: *const nvmlVgpuHeterogeneousMode_v1_t,
    ) of device, mode(wanted), |state| {
        host(state, device)?;
        let wanted = wanted_mode(wanted)?;
        let card = state.card_mut(device.addr())?;
        if !card.model.mixes_sizes || card.made.mig {
            return Err(NOT_SUPPORTED);
        }
        if !card.vgpus().is_empty() {
            return Err(IN_USE);
        }
        card.made.mixed_size = wanted;
        Ok(())
    }

    fn nvmlDeviceSetVgpuCapabilities(
        device: nvmlDevice_t,
        wanted: c_uint,
        on: c_uint,
    ) of device, format!("{wanted} {on}"), |state| {
        let card = host(state, device)?;
        let shares = card.model.shares_instances();
        let known = capability(card, wanted).is_some();
        if !known || on > 1 {
            return Err(INVALID_ARGUMENT);
        }
        let settable = match wanted {
            6 | 7 => !TABLES.profiles(card.model).is_empty(),
            11 => shares,
            _ => false,
        };
        if !settable {
            return Err(NOT_SUPPORTED);
        }
        state.card_mut(device.addr())?.made.capabilities.insert(wanted, on == 1);
        Ok(())
    }
}
