//! How vGPUs share time: of a card, and of a GPU instance.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlGpuInstance_t, nvmlVgpuSchedulerCapabilities_st, nvmlVgpuSchedulerGetState_st,
    nvmlVgpuSchedulerParams_t, nvmlVgpuSchedulerParams_t__bindgen_ty_1,
    nvmlVgpuSchedulerParams_t__bindgen_ty_2, nvmlVgpuSchedulerSetParams_t, nvmlVgpuSchedulerSetState_st,
    nvmlVgpuSchedulerState_v1_t, nvmlVgpuSchedulerStateInfo_v1_t,
};

use super::{
    vgpu::host,
    vgpu_on_instance::{shared, shared_mut},
};
use crate::{
    answer::{
        Answer, INVALID_ARGUMENT, NOT_SUPPORTED, VERSION_MISMATCH, change, changes, functions, get, put,
    },
    kernel::Scheduler,
    state::State,
};

/// `NVML_VGPU_SCHEDULER_ENGINE_TYPE_GRAPHICS`.
const GRAPHICS: c_uint = 1;
const BEST_EFFORT: c_uint = 1;
const FIXED_SHARE: c_uint = 3;
/// Version words of the structures (`NVML_STRUCT_VERSION`).
const STATE_V1: c_uint = 0x0100_0018;
const INFO_V1: c_uint = 0x0100_0018;

/// What the newer functions take (release 595). It has no version word.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct StateV2 {
    engine: c_uint,
    policy: c_uint,
    average: c_uint,
    frequency: c_uint,
}

/// What the newer functions tell.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct InfoV2 {
    engine: c_uint,
    policy: c_uint,
    average: c_uint,
    timeslice: c_uint,
}

/// What the older functions want.
fn older(policy: c_uint, adaptive: c_uint, params: nvmlVgpuSchedulerSetParams_t) -> Answer<Scheduler> {
    // SAFETY: both members are numbers only, and the mode says which one the caller filled in.
    let (shares, plain) = unsafe { (params.vgpuSchedDataWithARR, params.vgpuSchedData) };
    let default = Scheduler { policy, ..Scheduler::default() };
    // `NVML_VGPU_SCHEDULER_ARR_…`: the driver's default, never, always.
    match adaptive {
        0 => default.checked(),
        1 => Scheduler { timeslice: plain.timeslice, ..default }.checked(),
        2 => {
            let (average, frequency) = (shares.avgFactor, shares.frequency);
            Scheduler { adaptive: true, average, frequency, ..default }.checked()
        }
        _ => Err(INVALID_ARGUMENT),
    }
}

impl Scheduler {
    fn checked(self) -> Answer<Self> {
        if (BEST_EFFORT..=FIXED_SHARE).contains(&self.policy) { Ok(self) } else { Err(INVALID_ARGUMENT) }
    }

    fn params(self) -> nvmlVgpuSchedulerParams_t {
        if self.adaptive {
            let (avg_factor, timeslice) = (self.average, self.timeslice);
            nvmlVgpuSchedulerParams_t {
                vgpuSchedDataWithARR: nvmlVgpuSchedulerParams_t__bindgen_ty_1 {
                    avgFactor: avg_factor,
                    timeslice,
                },
            }
        } else {
            let timeslice = self.timeslice;
            nvmlVgpuSchedulerParams_t { vgpuSchedData: nvmlVgpuSchedulerParams_t__bindgen_ty_2 { timeslice } }
        }
    }

    fn newer(wanted: StateV2) -> Answer<Self> {
        let StateV2 { engine, policy, average, frequency } = wanted;
        if engine != GRAPHICS {
            return Err(INVALID_ARGUMENT);
        }
        Self { policy, adaptive: true, average, frequency, ..Self::default() }.checked()
    }

    fn info(self) -> InfoV2 {
        InfoV2 { engine: GRAPHICS, policy: self.policy, average: self.average, timeslice: self.timeslice }
    }
}

/// The scheduler of a card that is not divided by MIG (release 575 and later).
fn of_card(state: &State, device: nvmlDevice_t) -> Answer<Scheduler> {
    let card = host(state, device)?;
    if card.made.mig { Err(NOT_SUPPORTED) } else { Ok(card.made.scheduler) }
}

/// Sets it; any vGPU makes it "not supported". Fixed shares need equal sizes.
fn set(state: &mut State, device: nvmlDevice_t, wanted: Answer<Scheduler>) -> Answer {
    of_card(state, device)?;
    let wanted = wanted?;
    let card = state.card_mut(device.addr())?;
    if !card.vgpus().is_empty() || card.made.mixed_size && wanted.policy == FIXED_SHARE {
        return Err(NOT_SUPPORTED);
    }
    card.made.scheduler = wanted;
    Ok(())
}

/// Sets that of a GPU instance. It goes with the instance.
fn set_on(state: &mut State, of: nvmlGpuInstance_t, wanted: Answer<Scheduler>) -> Answer {
    let (card, instance) = shared(state, of)?;
    let busy = card.vgpus_on(instance.id).next().is_some();
    let mixed = instance.mixed_size;
    let wanted = wanted?;
    if busy || mixed && wanted.policy == FIXED_SHARE {
        return Err(NOT_SUPPORTED);
    }
    shared_mut(state, of)?.scheduler = wanted;
    Ok(())
}

fn policy<T: Copy>(wanted: *const T, policy: impl FnOnce(T) -> c_uint) -> String {
    get(wanted).map_or_else(|_| "nothing".into(), |wanted| format!("policy {}", policy(wanted)))
}

functions! {
    fn nvmlDeviceGetVgpuSchedulerState(device: nvmlDevice_t, found: *mut nvmlVgpuSchedulerGetState_st) of device |state| {
        let scheduler = of_card(state, device)?;
        put(found, nvmlVgpuSchedulerGetState_st {
            schedulerPolicy: scheduler.policy,
            arrMode: if scheduler.adaptive { 2 } else { 1 },
            schedulerParams: scheduler.params(),
        })
    }

    fn nvmlDeviceGetVgpuSchedulerState_v2(device: nvmlDevice_t, found: *mut InfoV2) of device |state| {
        let scheduler = of_card(state, device)?;
        if get(found)?.engine != GRAPHICS {
            return Err(INVALID_ARGUMENT);
        }
        put(found, scheduler.info())
    }

    fn nvmlGpuInstanceGetVgpuSchedulerState(of: nvmlGpuInstance_t, found: *mut nvmlVgpuSchedulerStateInfo_v1_t) of of |state| {
        let scheduler = shared(state, of)?.1.scheduler;
        change(found, |found| {
            if found.version != INFO_V1 {
                return Err(VERSION_MISMATCH);
            }
            if found.engineId != GRAPHICS {
                return Err(INVALID_ARGUMENT);
            }
            found.schedulerPolicy = scheduler.policy;
            found.arrMode = if scheduler.adaptive { 2 } else { 1 };
            found.schedulerParams = scheduler.params();
            Ok(())
        })
    }

    fn nvmlGpuInstanceGetVgpuSchedulerState_v2(of: nvmlGpuInstance_t, found: *mut InfoV2) of of |state| {
        let scheduler = shared(state, of)?.1.scheduler;
        if get(found)?.engine != GRAPHICS {
            return Err(INVALID_ARGUMENT);
        }
        put(found, scheduler.info())
    }

    fn nvmlDeviceGetVgpuSchedulerCapabilities(
        device: nvmlDevice_t,
        found: *mut nvmlVgpuSchedulerCapabilities_st,
    ) of device |state| {
        let card = host(state, device)?;
        put(found, nvmlVgpuSchedulerCapabilities_st {
            // Fixed shares need equal sizes.
            supportedSchedulers: if card.made.mixed_size { [2, 1, 0] } else { [3, 2, 1] },
            maxTimeslice: 30_000_000,
            minTimeslice: 1_000_000,
            isArrModeSupported: 1,
            maxFrequencyForARR: 960,
            minFrequencyForARR: 63,
            maxAvgFactorForARR: 60,
            minAvgFactorForARR: 1,
        })
    }
}

changes! {
    fn nvmlDeviceSetVgpuSchedulerState(
        device: nvmlDevice_t,
        wanted: *mut nvmlVgpuSchedulerSetState_st,
    ) of device, policy(wanted, |wanted| wanted.schedulerPolicy), |state| {
        let wanted = get(wanted)?;
        set(state, device, older(wanted.schedulerPolicy, wanted.enableARRMode, wanted.schedulerParams))
    }

    fn nvmlDeviceSetVgpuSchedulerState_v2(
        device: nvmlDevice_t,
        wanted: *mut StateV2,
    ) of device, policy(wanted, |wanted| wanted.policy), |state| {
        set(state, device, Scheduler::newer(get(wanted)?))
    }

    fn nvmlGpuInstanceSetVgpuSchedulerState(
        of: nvmlGpuInstance_t,
        wanted: *mut nvmlVgpuSchedulerState_v1_t,
    ) of of, policy(wanted, |wanted| wanted.schedulerPolicy), |state| {
        let wanted = get(wanted)?;
        if wanted.version != STATE_V1 {
            return Err(VERSION_MISMATCH);
        }
        if wanted.engineId != GRAPHICS {
            return Err(INVALID_ARGUMENT);
        }
        set_on(state, of, older(wanted.schedulerPolicy, wanted.enableARRMode, wanted.schedulerParams))
    }

    fn nvmlGpuInstanceSetVgpuSchedulerState_v2(
        of: nvmlGpuInstance_t,
        wanted: *mut StateV2,
    ) of of, policy(wanted, |wanted| wanted.policy), |state| {
        set_on(state, of, Scheduler::newer(get(wanted)?))
    }
}
