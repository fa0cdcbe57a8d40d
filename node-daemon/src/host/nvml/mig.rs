//! MIG of a card: profiles, where they can be, and what exists.
#![expect(unsafe_code, reason = "calls a C library by its interface")]

use std::ptr;

use gpudesk_crds::gpu_node_status::MediaEngines;
use gpudesk_inventory::driver::{
    ComputeInstanceReading, GpuInstanceReading, MigPlacement, MigProfile, MigReadings,
};
use nvml_wrapper_sys::bindings::{
    NvmlLib, nvmlComputeInstance_t, nvmlComputeInstanceInfo_st, nvmlComputeInstancePlacement_st,
    nvmlDevice_t, nvmlGpuInstance_t, nvmlGpuInstanceInfo_st, nvmlGpuInstancePlacement_st,
    nvmlGpuInstanceProfileInfo_st, nvmlGpuInstanceProfileInfo_v2_st,
};

use super::{
    card::Reader,
    library::{CallError, call, code, from_chars, list, listed, small, text, version_of},
};

/// Profiles are asked for by numbers that grow with each release; this is beyond the last one known.
pub(super) const PROFILES: u32 = 0x20;
/// Room for the instances of one profile. NVML fills in as many as there are, whatever the room.
const ROOM: u32 = 256;

/// `None` when the card has no MIG.
pub(super) fn read(reader: &Reader<'_>) -> Option<MigReadings> {
    let Reader { nvml, device, .. } = *reader;
    let (current, pending) = reader.ask(|| {
        let (mut current, mut pending) = (0, 0);
        call!(nvml, nvmlDeviceGetMigMode, device, &raw mut current, &raw mut pending)?;
        Ok((current == 1, pending == 1))
    })?;
    let mut found = MigReadings { current, pending, ..MigReadings::default() };
    for index in 0..PROFILES {
        match profile(reader, index) {
            // The numbers end here.
            Err(error) if error.code() == code::INVALID_ARGUMENT => break,
            Err(error) if error.is_nothing() => {}
            answer => found.profiles.extend(reader.ask(|| answer)),
        }
    }
    for profile in &mut found.profiles {
        profile.placements = reader.ask(|| placements(nvml, device, profile.id));
        if current {
            profile.remaining = reader
                .number(|count| {
                    call!(nvml, nvmlDeviceGetGpuInstanceRemainingCapacity, device, profile.id, count)
                })
                .map(small);
        }
    }
    if current {
        found.instances = instances(reader, &found.profiles);
    }
    Some(found)
}

fn profile(reader: &Reader<'_>, index: u32) -> Result<MigProfile, CallError> {
    let info = profile_info(reader.nvml, reader.device, index)?;
    let name = from_chars(&info.name);
    Ok(MigProfile {
        id: info.id,
        index,
        name: (!name.is_empty()).then_some(name),
        compute_slices: small(info.sliceCount),
        max_instances: small(info.instanceCount),
        memory_mib: i64::try_from(info.memorySizeMB).unwrap_or(i64::MAX),
        engines: Some(MediaEngines {
            decoders: small(info.decoderCount),
            encoders: small(info.encoderCount),
            jpeg: small(info.jpegCount),
            optical_flow: small(info.ofaCount),
        }),
        placements: None,
        remaining: None,
    })
}

/// What the driver says of a profile. Those of the first MIG cards say it without a name.
pub(super) fn profile_info(
    nvml: &NvmlLib,
    device: nvmlDevice_t,
    index: u32,
) -> Result<nvmlGpuInstanceProfileInfo_v2_st, CallError> {
    // SAFETY: the structure is numbers only; zeros are valid for it.
    let mut info: nvmlGpuInstanceProfileInfo_v2_st = unsafe { std::mem::zeroed() };
    info.version = version_of::<nvmlGpuInstanceProfileInfo_v2_st>(2);
    let answer = call!(nvml, nvmlDeviceGetGpuInstanceProfileInfoV, device, index, &raw mut info);
    if !matches!(answer, Err(error) if error.code() == code::FUNCTION_NOT_FOUND) {
        return answer.map(|()| info);
    }
    // SAFETY: the structure is numbers only; zeros are valid for it.
    let mut older: nvmlGpuInstanceProfileInfo_st = unsafe { std::mem::zeroed() };
    call!(nvml, nvmlDeviceGetGpuInstanceProfileInfo, device, index, &raw mut older)?;
    Ok(nvmlGpuInstanceProfileInfo_v2_st {
        id: older.id,
        sliceCount: older.sliceCount,
        instanceCount: older.instanceCount,
        multiprocessorCount: older.multiprocessorCount,
        copyEngineCount: older.copyEngineCount,
        decoderCount: older.decoderCount,
        encoderCount: older.encoderCount,
        jpegCount: older.jpegCount,
        ofaCount: older.ofaCount,
        memorySizeMB: older.memorySizeMB,
        ..info
    })
}

pub(super) fn placements(
    nvml: &NvmlLib,
    device: nvmlDevice_t,
    profile_id: u32,
) -> Result<Vec<MigPlacement>, CallError> {
    let none = nvmlGpuInstancePlacement_st { start: 0, size: 0 };
    let found = list(none, |count, placements| {
        call!(nvml, nvmlDeviceGetGpuInstancePossiblePlacements_v2, device, profile_id, placements, count)
    })?;
    Ok(found.into_iter().map(placement).collect())
}

/// The GPU instances of a profile.
pub(super) fn handles(
    nvml: &NvmlLib,
    device: nvmlDevice_t,
    profile_id: u32,
) -> Result<Vec<nvmlGpuInstance_t>, CallError> {
    listed(ptr::null_mut(), ROOM, |count, handles| {
        call!(nvml, nvmlDeviceGetGpuInstances, device, profile_id, handles, count)
    })
}

pub(super) fn instance_info(
    nvml: &NvmlLib,
    handle: nvmlGpuInstance_t,
) -> Result<nvmlGpuInstanceInfo_st, CallError> {
    let mut info = nvmlGpuInstanceInfo_st {
        device: ptr::null_mut(),
        id: 0,
        profileId: 0,
        placement: nvmlGpuInstancePlacement_st { start: 0, size: 0 },
    };
    call!(nvml, nvmlGpuInstanceGetInfo, handle, &raw mut info)?;
    Ok(info)
}

pub(super) fn compute_info(
    nvml: &NvmlLib,
    handle: nvmlComputeInstance_t,
) -> Result<nvmlComputeInstanceInfo_st, CallError> {
    let mut info = nvmlComputeInstanceInfo_st {
        device: ptr::null_mut(),
        gpuInstance: ptr::null_mut(),
        id: 0,
        profileId: 0,
        placement: nvmlComputeInstancePlacement_st { start: 0, size: 0 },
    };
    call!(nvml, nvmlComputeInstanceGetInfo_v2, handle, &raw mut info)?;
    Ok(info)
}

fn placement(found: nvmlGpuInstancePlacement_st) -> MigPlacement {
    MigPlacement { start: small(found.start), size: small(found.size) }
}

fn instances(reader: &Reader<'_>, profiles: &[MigProfile]) -> Vec<GpuInstanceReading> {
    let Reader { nvml, device, .. } = *reader;
    let devices = mig_devices(reader);
    let mut found = vec![];
    for profile in profiles {
        for handle in reader.ask(|| handles(nvml, device, profile.id)).unwrap_or_default() {
            let info = reader.ask(|| instance_info(nvml, handle));
            let Some(info) = info else { continue };
            let inside = devices.iter().filter(|mig| mig.gpu_instance == info.id);
            found.push(GpuInstanceReading {
                id: info.id,
                profile_id: info.profileId,
                placement: placement(info.placement),
                compute_instances: inside.map(|mig| compute_instance(reader, handle, mig)).collect(),
            });
        }
    }
    found
}

/// A GPU instance and a compute instance in it make a MIG device.
pub(super) struct MigDevice {
    pub(super) gpu_instance: u32,
    pub(super) compute_instance: u32,
    pub(super) uuid: Option<String>,
}

/// Their index says nothing: it changes with each instance that is made.
pub(super) fn mig_devices(reader: &Reader<'_>) -> Vec<MigDevice> {
    let Reader { nvml, device, .. } = *reader;
    let most = reader.number(|count| call!(nvml, nvmlDeviceGetMaxMigDeviceCount, device, count)).unwrap_or(0);
    let mut found = vec![];
    for index in 0..most.min(ROOM) {
        let mut mig = ptr::null_mut();
        let handle = match call!(nvml, nvmlDeviceGetMigDeviceHandleByIndex, device, index, &raw mut mig) {
            // Indices without a device.
            Err(error) if matches!(error.code(), code::NOT_FOUND | code::INVALID_ARGUMENT) => continue,
            answer => reader.ask(|| answer),
        };
        if handle.is_none() {
            continue;
        }
        let gpu_instance = reader.number(|id| call!(nvml, nvmlDeviceGetGpuInstanceId, mig, id));
        let compute_instance = reader.number(|id| call!(nvml, nvmlDeviceGetComputeInstanceId, mig, id));
        let uuid =
            reader.ask(|| text::<96>(|buffer, length| call!(nvml, nvmlDeviceGetUUID, mig, buffer, length)));
        if let (Some(gpu_instance), Some(compute_instance)) = (gpu_instance, compute_instance) {
            found.push(MigDevice { gpu_instance, compute_instance, uuid });
        }
    }
    found.sort_by_key(|mig| (mig.gpu_instance, mig.compute_instance));
    found
}

fn compute_instance(reader: &Reader<'_>, of: nvmlGpuInstance_t, mig: &MigDevice) -> ComputeInstanceReading {
    let nvml = reader.nvml;
    let info = reader.ask(|| {
        let mut handle = ptr::null_mut();
        call!(nvml, nvmlGpuInstanceGetComputeInstanceById, of, mig.compute_instance, &raw mut handle)?;
        compute_info(nvml, handle)
    });
    ComputeInstanceReading {
        id: mig.compute_instance,
        profile_id: info.map(|info| info.profileId),
        placement: info.map(|info| MigPlacement {
            start: small(info.placement.start),
            size: small(info.placement.size),
        }),
        uuid: mig.uuid.clone(),
    }
}
