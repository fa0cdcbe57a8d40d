//! vGPUs of a card: types, where they can be, and what exists.
#![expect(unsafe_code, reason = "calls a C library by its interface")]

use gpudesk_inventory::driver::{VgpuInstanceReading, VgpuPlacements, VgpuReadings, VgpuTypeReading};
use nvml_wrapper_sys::bindings::{
    nvmlVgpuHeterogeneousMode_v1_t, nvmlVgpuLicenseExpiry_st, nvmlVgpuLicenseInfo_st,
    nvmlVgpuPlacementId_v1_t, nvmlVgpuPlacementList_v1_t, nvmlVgpuPlacementList_v2_t,
    nvmlVgpuSchedulerCapabilities_st, nvmlVgpuSchedulerGetState_st, nvmlVgpuTypeMaxInstance_v1_t,
};

use super::{
    card::Reader,
    library::{CallError, call, code, list, number, small, text, valid, version_of},
};

/// `NVML_DEVICE_VGPU_CAP_HETEROGENEOUS_TIMESLICE_SIZES`.
const CAN_MIX_SIZES: u32 = 2;
/// `NVML_DEVICE_VGPU_CAP_MIG_TIMESLICING_SUPPORTED`: several vGPUs share a GPU instance, which has a scheduler.
const MIG_SHARES_TIME: u32 = 10;
/// `NVML_GPU_VIRTUALIZATION_MODE_HOST_VGPU`.
const HOST_VGPU: u32 = 3;
/// Room for the positions of one type. Older drivers fill in as many as there are, whatever the room.
const ROOM: u32 = 1024;
/// `NVML_INVALID_VGPU_PLACEMENT_ID`.
const NO_PLACEMENT: u32 = 0xffff;

/// `None` when the driver is no vGPU host driver, or the card takes no vGPUs.
pub(super) fn read(reader: &Reader<'_>) -> Option<VgpuReadings> {
    let Reader { nvml, device, .. } = *reader;
    let mode = reader.number(|mode| call!(nvml, nvmlDeviceGetVirtualizationMode, device, mode));
    let types =
        reader.ask(|| list(0, |count, ids| call!(nvml, nvmlDeviceGetSupportedVgpus, device, count, ids)));
    let types = types.unwrap_or_default();
    if types.is_empty() && mode != Some(HOST_VGPU) {
        return None;
    }
    let creatable =
        reader.ask(|| list(0, |count, ids| call!(nvml, nvmlDeviceGetCreatableVgpus, device, count, ids)));
    let mixed_size_capable = reader
        .number(|able| call!(nvml, nvmlDeviceGetVgpuCapabilities, device, CAN_MIX_SIZES, able))
        .map(|able| able == 1);
    let mixed_size = reader.ask(|| {
        let mut found = nvmlVgpuHeterogeneousMode_v1_t {
            version: version_of::<nvmlVgpuHeterogeneousMode_v1_t>(1),
            mode: 0,
        };
        call!(nvml, nvmlDeviceGetVgpuHeterogeneousMode, device, &raw mut found)?;
        Ok(found.mode == 1)
    });
    let mut found = VgpuReadings {
        on_virtual_functions: reader
            .number(|mode| call!(nvml, nvmlDeviceGetHostVgpuMode, device, mode))
            .map(|mode| mode == 1),
        mixed_size_capable,
        mixed_size,
        scheduler: scheduler(reader),
        schedulers: schedulers(reader),
        on_instances: reader
            .number(|able| call!(nvml, nvmlDeviceGetVgpuCapabilities, device, MIG_SHARES_TIME, able))
            .map(|able| able == 1),
        types: types.iter().filter_map(|id| vgpu_type(reader, *id)).collect(),
        instances: instances(reader),
    };
    for kind in &mut found.types {
        kind.creatable = creatable.as_ref().map(|creatable| creatable.contains(&kind.id));
        if mixed_size_capable == Some(true) && kind.gpu_instance_profile_id.is_none() {
            kind.mixed_placements = supported(reader, kind.id);
            if mixed_size == Some(true) && kind.mixed_placements.is_some() {
                kind.creatable_starts = creatable_starts(reader, kind.id);
            }
        }
    }
    Some(found)
}

fn scheduler(reader: &Reader<'_>) -> Option<u32> {
    let Reader { nvml, device, .. } = *reader;
    reader.ask(|| {
        // SAFETY: the structure is numbers only; zeros are valid for it.
        let mut found: nvmlVgpuSchedulerGetState_st = unsafe { std::mem::zeroed() };
        call!(nvml, nvmlDeviceGetVgpuSchedulerState, device, &raw mut found)?;
        Ok(found.schedulerPolicy)
    })
}

fn schedulers(reader: &Reader<'_>) -> Vec<u32> {
    let Reader { nvml, device, .. } = *reader;
    let found = reader.ask(|| {
        // SAFETY: the structure is numbers only; zeros are valid for it.
        let mut found: nvmlVgpuSchedulerCapabilities_st = unsafe { std::mem::zeroed() };
        call!(nvml, nvmlDeviceGetVgpuSchedulerCapabilities, device, &raw mut found)?;
        Ok(found.supportedSchedulers)
    });
    // 0 fills up the places that are left.
    found.map(|found| found.into_iter().filter(|policy| *policy != 0).collect()).unwrap_or_default()
}

fn vgpu_type(reader: &Reader<'_>, id: u32) -> Option<VgpuTypeReading> {
    let Reader { nvml, device, .. } = *reader;
    // These two take the room by a pointer.
    let name = reader
        .ask(|| text::<64>(|buffer, mut room| call!(nvml, nvmlVgpuTypeGetName, id, buffer, &raw mut room)))?;
    let class = reader
        .ask(|| text::<64>(|buffer, mut room| call!(nvml, nvmlVgpuTypeGetClass, id, buffer, &raw mut room)));
    let heads = reader.number(|heads| call!(nvml, nvmlVgpuTypeGetNumDisplayHeads, id, heads));
    // A type without screens has no resolution; asking for it is an error.
    let max_resolution = heads.filter(|heads| *heads > 0).and_then(|_| {
        reader.ask(|| {
            let (mut x, mut y) = (0, 0);
            call!(nvml, nvmlVgpuTypeGetResolution, id, 0, &raw mut x, &raw mut y)?;
            Ok((x, y))
        })
    });
    let gpu_instance_profile_id = reader
        .number(|profile| call!(nvml, nvmlVgpuTypeGetGpuInstanceProfileId, id, profile))
        .and_then(valid);
    Some(VgpuTypeReading {
        id,
        name,
        class,
        framebuffer_mib: reader.ask(|| {
            let mut bytes = 0_u64;
            call!(nvml, nvmlVgpuTypeGetFramebufferSize, id, &raw mut bytes)?;
            Ok(i64::try_from(bytes >> 20).unwrap_or(i64::MAX))
        }),
        heads: heads.map(small),
        max_resolution,
        frame_rate_limit: reader
            .number(|limit| call!(nvml, nvmlVgpuTypeGetFrameRateLimit, id, limit))
            .map(small),
        max_instances: reader
            .number(|most| call!(nvml, nvmlVgpuTypeGetMaxInstances, device, id, most))
            .map(small),
        max_instances_per_vm: reader
            .number(|most| call!(nvml, nvmlVgpuTypeGetMaxInstancesPerVm, id, most))
            .map(small),
        gpu_instance_profile_id,
        max_per_gpu_instance: gpu_instance_profile_id.and_then(|_| max_per_gpu_instance(reader, id)),
        creatable: None,
        mixed_placements: None,
        creatable_starts: None,
    })
}

fn max_per_gpu_instance(reader: &Reader<'_>, id: u32) -> Option<i32> {
    let nvml = reader.nvml;
    reader.ask(|| {
        let mut found = nvmlVgpuTypeMaxInstance_v1_t {
            version: version_of::<nvmlVgpuTypeMaxInstance_v1_t>(1),
            vgpuTypeId: id,
            maxInstancePerGI: 0,
        };
        call!(nvml, nvmlVgpuTypeGetMaxInstancesPerGpuInstance, &raw mut found)?;
        Ok(small(found.maxInstancePerGI))
    })
}

/// Where a type can be when sizes are mixed.
fn supported(reader: &Reader<'_>, id: u32) -> Option<VgpuPlacements> {
    let Reader { nvml, device, .. } = *reader;
    let (size, starts) = reader
        .ask(|| placements(|list| call!(nvml, nvmlDeviceGetVgpuTypeSupportedPlacements, device, id, list)))?;
    Some(VgpuPlacements { size, starts })
}

fn creatable_starts(reader: &Reader<'_>, id: u32) -> Option<Vec<i32>> {
    let Reader { nvml, device, .. } = *reader;
    reader
        .ask(|| placements(|list| call!(nvml, nvmlDeviceGetVgpuTypeCreatablePlacements, device, id, list)))
        .map(|(_, starts)| starts)
}

/// Asks with the newer structure, then with the older one, which is its beginning.
pub(super) fn placements(
    ask: impl Fn(*mut nvmlVgpuPlacementList_v2_t) -> Result<(), CallError>,
) -> Result<(i32, Vec<i32>), CallError> {
    let mut ids = vec![0_u32; ROOM as usize];
    let mut answer = Err(CallError::Missing("nvmlDeviceGetVgpuTypeSupportedPlacements"));
    for version in [version_of::<nvmlVgpuPlacementList_v2_t>(2), version_of::<nvmlVgpuPlacementList_v1_t>(1)]
    {
        let mut found = nvmlVgpuPlacementList_v2_t {
            version,
            placementSize: 0,
            count: ROOM,
            placementIds: ids.as_mut_ptr(),
            // Mixed sizes.
            mode: 0,
        };
        answer = ask(&raw mut found).map(|()| (small(found.placementSize), found.count.min(ROOM)));
        if !matches!(answer, Err(error) if error.code() == code::VERSION_MISMATCH) {
            break;
        }
    }
    let (size, count) = answer?;
    Ok((size, ids[..count as usize].iter().map(|id| small(*id)).collect()))
}

fn instances(reader: &Reader<'_>) -> Vec<VgpuInstanceReading> {
    let Reader { nvml, device, .. } = *reader;
    let handles = reader
        .ask(|| list(0, |count, handles| call!(nvml, nvmlDeviceGetActiveVgpus, device, count, handles)));
    handles.unwrap_or_default().into_iter().filter_map(|handle| instance(reader, handle)).collect()
}

/// `None` when it is gone by now.
fn instance(reader: &Reader<'_>, handle: u32) -> Option<VgpuInstanceReading> {
    let nvml = reader.nvml;
    let type_id = match number(|kind| call!(nvml, nvmlVgpuInstanceGetType, handle, kind)) {
        Err(error) if error.code() == code::NOT_FOUND => return None,
        answer => reader.ask(|| answer)?,
    };
    let uuid =
        reader.ask(|| text::<80>(|buffer, room| call!(nvml, nvmlVgpuInstanceGetUUID, handle, buffer, room)));
    let mdev_uuid = reader
        .ask(|| text::<80>(|buffer, room| call!(nvml, nvmlVgpuInstanceGetMdevUUID, handle, buffer, room)));
    let vm_id = reader.ask(|| {
        let mut kind = 0;
        text::<80>(|buffer, room| call!(nvml, nvmlVgpuInstanceGetVmID, handle, buffer, room, &raw mut kind))
    });
    let guest = reader.ask(|| {
        text::<80>(|buffer, room| call!(nvml, nvmlVgpuInstanceGetVmDriverVersion, handle, buffer, room))
    });
    let placement = reader.ask(|| {
        let mut found = nvmlVgpuPlacementId_v1_t {
            version: version_of::<nvmlVgpuPlacementId_v1_t>(1),
            placementId: NO_PLACEMENT,
        };
        call!(nvml, nvmlVgpuInstanceGetPlacementId, handle, &raw mut found)?;
        Ok(found.placementId)
    });
    let license = license(reader, handle);
    Some(VgpuInstanceReading {
        handle,
        uuid: uuid.filter(|uuid| !uuid.is_empty()),
        mdev_uuid: mdev_uuid.filter(|uuid| !uuid.is_empty()),
        type_id,
        vm_id: vm_id.filter(|id| !id.is_empty()),
        placement_id: placement.filter(|id| *id != NO_PLACEMENT).and_then(valid).map(small),
        gpu_instance: reader
            .number(|id| call!(nvml, nvmlVgpuInstanceGetGpuInstanceId, handle, id))
            .and_then(valid),
        licensed: license.map(|license| license.isLicensed != 0),
        license_state: license.map(|license| license.currentState),
        // Before the guest has loaded its driver the text is a sentence that says so.
        guest_driver_version: guest.filter(|version| version.starts_with(|c: char| c.is_ascii_digit())),
    })
}

fn license(reader: &Reader<'_>, handle: u32) -> Option<nvmlVgpuLicenseInfo_st> {
    let nvml = reader.nvml;
    reader.ask(|| {
        let mut found = nvmlVgpuLicenseInfo_st {
            isLicensed: 0,
            licenseExpiry: nvmlVgpuLicenseExpiry_st {
                year: 0,
                month: 0,
                day: 0,
                hour: 0,
                min: 0,
                sec: 0,
                status: 0,
            },
            currentState: 0,
        };
        call!(nvml, nvmlVgpuInstanceGetLicenseInfo_v2, handle, &raw mut found)?;
        Ok(found)
    })
}
