//! vGPUs of a card, and of its GPU instances: sizes, places, time.
#![expect(unsafe_code, reason = "calls a C library by its interface")]

use nvml_wrapper_sys::bindings::{
    nvmlActiveVgpuInstanceInfo_v1_t, nvmlDevice_t, nvmlGpuInstance_t, nvmlReturn_t,
    nvmlVgpuCreatablePlacementInfo_v1_t, nvmlVgpuHeterogeneousMode_v1_t, nvmlVgpuSchedulerGetState_st,
    nvmlVgpuSchedulerSetParams_t, nvmlVgpuSchedulerSetParams_t__bindgen_ty_1, nvmlVgpuSchedulerSetState_st,
    nvmlVgpuSchedulerState_v1_t, nvmlVgpuSchedulerStateInfo_v1_t, nvmlVgpuTypeIdInfo_v1_t,
};

use super::{Control, NvmlFault, change::Scheduling, layout::Place};
use crate::host::nvml::{
    library::{CallError, call, checked, code, list, newer, number, small, version_of},
    vgpu,
};

/// `NVML_VGPU_SCHEDULER_ENGINE_TYPE_GRAPHICS`.
const GRAPHICS: u32 = 1;
/// `NVML_VGPU_SCHEDULER_ARR_…`.
const ADAPTIVE_DEFAULT: u32 = 0;
const ADAPTIVE: u32 = 2;
/// Room for the starts of one type.
const ROOM: u32 = 1024;

/// Where vGPUs of a type can be, when sizes are mixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Starts {
    /// Length of one.
    pub size: i32,
    /// Where it can begin.
    pub starts: Vec<i32>,
}

/// What the newer functions of the scheduler take and tell: the last is a frequency for one and a time
/// slice for the other. There is no version word; the spare room is for fields that come later.
#[repr(C)]
#[derive(Clone, Copy)]
struct SchedulerV2 {
    engine: u32,
    policy: u32,
    average: u32,
    last: u32,
    spare: [u32; 28],
}

type OfDevice = unsafe extern "C" fn(nvmlDevice_t, *mut SchedulerV2) -> nvmlReturn_t;
type OfInstance = unsafe extern "C" fn(nvmlGpuInstance_t, *mut SchedulerV2) -> nvmlReturn_t;

impl SchedulerV2 {
    fn new(wanted: Scheduling) -> Self {
        let Scheduling { policy, average, frequency } = wanted;
        Self { engine: GRAPHICS, policy, average, last: frequency, spare: [0; 28] }
    }
}

/// Asks with the newer function, then with the one of releases before 595.
fn or_older<T>(
    newer: Result<T, CallError>,
    older: impl FnOnce() -> Result<T, CallError>,
) -> Result<T, CallError> {
    match newer {
        Err(error) if error.code() == code::FUNCTION_NOT_FOUND => older(),
        answer => answer,
    }
}

/// Whether turns are adaptive, and how, for the older functions: the driver's default unless asked.
fn older_params(wanted: Scheduling) -> (u32, nvmlVgpuSchedulerSetParams_t) {
    let Scheduling { average, frequency, .. } = wanted;
    let adaptive = if average == 0 && frequency == 0 { ADAPTIVE_DEFAULT } else { ADAPTIVE };
    let shares = nvmlVgpuSchedulerSetParams_t__bindgen_ty_1 { avgFactor: average, frequency };
    (adaptive, nvmlVgpuSchedulerSetParams_t { vgpuSchedDataWithARR: shares })
}

fn mode(mixed: bool) -> nvmlVgpuHeterogeneousMode_v1_t {
    let version = version_of::<nvmlVgpuHeterogeneousMode_v1_t>(1);
    nvmlVgpuHeterogeneousMode_v1_t { version, mode: mixed.into() }
}

impl Control {
    /// Whether vGPUs of unlike sizes can be beside each other.
    ///
    /// # Errors
    /// "Not supported" of a card that cannot, or while MIG is on.
    pub fn mixed_size(&self) -> Result<bool, NvmlFault> {
        let mut found = mode(false);
        let device = self.device.get();
        self.told(call!(self.nvml(), nvmlDeviceGetVgpuHeterogeneousMode, device, &raw mut found))?;
        Ok(found.mode == 1)
    }

    /// The same of one GPU instance.
    ///
    /// # Errors
    /// "Not supported" of a card whose GPU instances hold one vGPU each.
    pub fn mixed_size_on(&self, on: &Place) -> Result<bool, NvmlFault> {
        let mut found = mode(false);
        let of = self.there(on)?;
        self.told(call!(self.nvml(), nvmlGpuInstanceGetVgpuHeterogeneousMode, of, &raw mut found))?;
        Ok(found.mode == 1)
    }

    pub(super) fn set_mixed_size(&self, mixed: bool) -> Result<(), NvmlFault> {
        let wanted = mode(mixed);
        let device = self.device.get();
        self.told(call!(self.nvml(), nvmlDeviceSetVgpuHeterogeneousMode, device, &raw const wanted))
    }

    pub(super) fn set_mixed_size_on(&self, on: &Place, mixed: bool) -> Result<(), NvmlFault> {
        let wanted = mode(mixed);
        let of = self.there(on)?;
        self.told(call!(self.nvml(), nvmlGpuInstanceSetVgpuHeterogeneousMode, of, &raw const wanted))
    }

    /// Where vGPUs of this type can be on a card of mixed sizes that is empty.
    ///
    /// # Errors
    /// "Not supported" of a card, or a type, that mixes no sizes.
    pub fn supported_starts(&self, vgpu_type: u32) -> Result<Starts, NvmlFault> {
        let (nvml, device) = (self.nvml(), self.device.get());
        let found = vgpu::placements(|list| {
            call!(nvml, nvmlDeviceGetVgpuTypeSupportedPlacements, device, vgpu_type, list)
        });
        self.told(found).map(|(size, starts)| Starts { size, starts })
    }

    /// Where one more can be beside what is there.
    ///
    /// # Errors
    /// As [`Control::supported_starts`], and while MIG is on.
    pub fn creatable_starts(&self, vgpu_type: u32) -> Result<Starts, NvmlFault> {
        let (nvml, device) = (self.nvml(), self.device.get());
        let found = vgpu::placements(|list| {
            call!(nvml, nvmlDeviceGetVgpuTypeCreatablePlacements, device, vgpu_type, list)
        });
        self.told(found).map(|(size, starts)| Starts { size, starts })
    }

    /// Where one more can be on a GPU instance of mixed sizes.
    ///
    /// # Errors
    /// "Not supported" of a GPU instance of equal sizes.
    pub fn creatable_starts_on(&self, on: &Place, vgpu_type: u32) -> Result<Starts, NvmlFault> {
        let of = self.there(on)?;
        let mut ids = vec![0_u32; ROOM as usize];
        let mut found = nvmlVgpuCreatablePlacementInfo_v1_t {
            version: version_of::<nvmlVgpuCreatablePlacementInfo_v1_t>(1),
            vgpuTypeId: vgpu_type,
            count: ROOM,
            placementIds: ids.as_mut_ptr(),
            placementSize: 0,
        };
        self.told(call!(self.nvml(), nvmlGpuInstanceGetVgpuTypeCreatablePlacements, of, &raw mut found))?;
        let starts = ids[..found.count.min(ROOM) as usize].iter().map(|id| small(*id)).collect();
        Ok(Starts { size: small(found.placementSize), starts })
    }

    /// Numbers of the types of which one more can be made.
    ///
    /// # Errors
    /// When the driver gives no answer.
    pub fn creatable_types(&self) -> Result<Vec<u32>, NvmlFault> {
        let (nvml, device) = (self.nvml(), self.device.get());
        self.told(list(0, |count, ids| call!(nvml, nvmlDeviceGetCreatableVgpus, device, count, ids)))
    }

    /// The same on one GPU instance.
    ///
    /// # Errors
    /// "Not supported" of a card whose GPU instances hold one vGPU each.
    pub fn creatable_types_on(&self, on: &Place) -> Result<Vec<u32>, NvmlFault> {
        let of = self.there(on)?;
        let version = version_of::<nvmlVgpuTypeIdInfo_v1_t>(1);
        self.told(list(0, |count, ids| {
            // SAFETY: `list` gives a place for the count.
            let room = unsafe { *count };
            let mut found = nvmlVgpuTypeIdInfo_v1_t { version, vgpuCount: room, vgpuTypeIds: ids };
            let answer = call!(self.nvml(), nvmlGpuInstanceGetCreatableVgpus, of, &raw mut found);
            // SAFETY: as above.
            unsafe { *count = found.vgpuCount };
            answer
        }))
    }

    /// Handles of the vGPUs that run. One that was only made is not among them.
    ///
    /// # Errors
    /// When the driver gives no answer.
    pub fn active_vgpus(&self) -> Result<Vec<u32>, NvmlFault> {
        let (nvml, device) = (self.nvml(), self.device.get());
        self.told(list(0, |count, found| call!(nvml, nvmlDeviceGetActiveVgpus, device, count, found)))
    }

    /// The same on one GPU instance.
    ///
    /// # Errors
    /// "Not supported" of a card whose GPU instances hold one vGPU each.
    pub fn active_vgpus_on(&self, on: &Place) -> Result<Vec<u32>, NvmlFault> {
        let of = self.there(on)?;
        let version = version_of::<nvmlActiveVgpuInstanceInfo_v1_t>(1);
        self.told(list(0, |count, ids| {
            // SAFETY: `list` gives a place for the count.
            let room = unsafe { *count };
            let mut found = nvmlActiveVgpuInstanceInfo_v1_t { version, vgpuCount: room, vgpuInstances: ids };
            let answer = call!(self.nvml(), nvmlGpuInstanceGetActiveVgpus, of, &raw mut found);
            // SAFETY: as above.
            unsafe { *count = found.vgpuCount };
            answer
        }))
    }

    /// Whether the card has a capability of vGPUs (`nvmlDeviceVgpuCapability_t`).
    ///
    /// # Errors
    /// When the driver gives no answer.
    pub fn vgpu_capability(&self, capability: u32) -> Result<bool, NvmlFault> {
        let (nvml, device) = (self.nvml(), self.device.get());
        let found = number(|found| call!(nvml, nvmlDeviceGetVgpuCapabilities, device, capability, found));
        self.told(found).map(|found| found == 1)
    }

    pub(super) fn set_vgpu_capability(&self, capability: u32, on: bool) -> Result<(), NvmlFault> {
        let device = self.device.get();
        self.told(call!(self.nvml(), nvmlDeviceSetVgpuCapabilities, device, capability, on.into()))
    }

    /// How vGPUs share time, as the policy's number.
    ///
    /// # Errors
    /// "Not supported" while MIG is on: then each GPU instance has its own.
    pub fn scheduler(&self) -> Result<u32, NvmlFault> {
        let (nvml, device) = (self.nvml(), self.device.get());
        let name = c"nvmlDeviceGetVgpuSchedulerState_v2";
        // SAFETY: the type is the function's.
        let newer = unsafe { newer::<OfDevice>(nvml, name) }.and_then(|function| {
            let mut found = SchedulerV2::new(Scheduling { policy: 0, average: 0, frequency: 0 });
            // SAFETY: the place lives until the call ends, and is larger than what is written.
            checked("nvmlDeviceGetVgpuSchedulerState_v2", unsafe { function(device, &raw mut found) })?;
            Ok(found.policy)
        });
        self.told(or_older(newer, || {
            // SAFETY: the structure is numbers only; zeros are valid for it.
            let mut found: nvmlVgpuSchedulerGetState_st = unsafe { std::mem::zeroed() };
            call!(nvml, nvmlDeviceGetVgpuSchedulerState, device, &raw mut found)?;
            Ok(found.schedulerPolicy)
        }))
    }

    /// The same of one GPU instance.
    ///
    /// # Errors
    /// "Not supported" of a card whose GPU instances hold one vGPU each.
    pub fn scheduler_on(&self, on: &Place) -> Result<u32, NvmlFault> {
        let (nvml, of) = (self.nvml(), self.there(on)?);
        let name = c"nvmlGpuInstanceGetVgpuSchedulerState_v2";
        // SAFETY: the type is the function's.
        let newer = unsafe { newer::<OfInstance>(nvml, name) }.and_then(|function| {
            let mut found = SchedulerV2::new(Scheduling { policy: 0, average: 0, frequency: 0 });
            // SAFETY: the place lives until the call ends, and is larger than what is written.
            checked("nvmlGpuInstanceGetVgpuSchedulerState_v2", unsafe { function(of, &raw mut found) })?;
            Ok(found.policy)
        });
        self.told(or_older(newer, || {
            // SAFETY: the structure is numbers only; zeros are valid for it.
            let mut found: nvmlVgpuSchedulerStateInfo_v1_t = unsafe { std::mem::zeroed() };
            found.version = version_of::<nvmlVgpuSchedulerStateInfo_v1_t>(1);
            found.engineId = GRAPHICS;
            call!(nvml, nvmlGpuInstanceGetVgpuSchedulerState, of, &raw mut found)?;
            Ok(found.schedulerPolicy)
        }))
    }

    pub(super) fn set_scheduler(&self, wanted: Scheduling) -> Result<(), NvmlFault> {
        let (nvml, device) = (self.nvml(), self.device.get());
        let name = c"nvmlDeviceSetVgpuSchedulerState_v2";
        // SAFETY: the type is the function's.
        let newer = unsafe { newer::<OfDevice>(nvml, name) }.and_then(|function| {
            let mut state = SchedulerV2::new(wanted);
            // SAFETY: the place lives until the call ends.
            checked("nvmlDeviceSetVgpuSchedulerState_v2", unsafe { function(device, &raw mut state) })
        });
        self.told(or_older(newer, || {
            // SAFETY: the structure is numbers only; zeros are valid for it.
            let mut state: nvmlVgpuSchedulerSetState_st = unsafe { std::mem::zeroed() };
            state.schedulerPolicy = wanted.policy;
            (state.enableARRMode, state.schedulerParams) = older_params(wanted);
            call!(nvml, nvmlDeviceSetVgpuSchedulerState, device, &raw mut state)
        }))
    }

    pub(super) fn set_scheduler_on(&self, on: &Place, wanted: Scheduling) -> Result<(), NvmlFault> {
        let (nvml, of) = (self.nvml(), self.there(on)?);
        let name = c"nvmlGpuInstanceSetVgpuSchedulerState_v2";
        // SAFETY: the type is the function's.
        let newer = unsafe { newer::<OfInstance>(nvml, name) }.and_then(|function| {
            let mut state = SchedulerV2::new(wanted);
            // SAFETY: the place lives until the call ends.
            checked("nvmlGpuInstanceSetVgpuSchedulerState_v2", unsafe { function(of, &raw mut state) })
        });
        self.told(or_older(newer, || {
            // SAFETY: the structure is numbers only; zeros are valid for it.
            let mut state: nvmlVgpuSchedulerState_v1_t = unsafe { std::mem::zeroed() };
            state.version = version_of::<nvmlVgpuSchedulerState_v1_t>(1);
            state.engineId = GRAPHICS;
            state.schedulerPolicy = wanted.policy;
            (state.enableARRMode, state.schedulerParams) = older_params(wanted);
            call!(nvml, nvmlGpuInstanceSetVgpuSchedulerState, of, &raw mut state)
        }))
    }
}
