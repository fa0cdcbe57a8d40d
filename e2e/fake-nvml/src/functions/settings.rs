//! How an admin sets a card, and who uses it.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlProcessInfo_t};

use crate::{
    answer::{Answer, INVALID_ARGUMENT, changes, functions, put, put_list},
    state::State,
};

/// Not on a part of the card.
const NONE: c_uint = 0xffff_ffff;

fn put_processes(
    state: &State,
    device: nvmlDevice_t,
    graphics: bool,
    count: *mut c_uint,
    to: *mut nvmlProcessInfo_t,
) -> Answer {
    let processes = state.card(device.addr())?.world.processes.iter();
    let entries = processes.filter(|process| process.graphics == graphics).map(|process| nvmlProcessInfo_t {
        pid: process.pid,
        usedGpuMemory: 256 << 20,
        gpuInstanceId: process.gpu_instance.unwrap_or(NONE),
        computeInstanceId: process.compute_instance.unwrap_or(NONE),
    });
    put_list(count, to, &entries.collect::<Vec<_>>())
}

functions! {
    fn nvmlDeviceGetComputeRunningProcesses_v3(
        device: nvmlDevice_t,
        count: *mut c_uint,
        to: *mut nvmlProcessInfo_t,
    ) of device |state| {
        put_processes(state, device, false, count, to)
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v3(
        device: nvmlDevice_t,
        count: *mut c_uint,
        to: *mut nvmlProcessInfo_t,
    ) of device |state| {
        put_processes(state, device, true, count, to)
    }

    fn nvmlDeviceGetPersistenceMode(device: nvmlDevice_t, mode: *mut c_uint) of device |state| {
        put(mode, state.card(device.addr())?.made.persistence.into())
    }

    fn nvmlDeviceGetPowerManagementLimit(device: nvmlDevice_t, limit: *mut c_uint) of device |state| {
        let card = state.card(device.addr())?;
        put(limit, card.made.power_limit.unwrap_or(card.world.power[1]))
    }

    fn nvmlDeviceGetPowerManagementDefaultLimit(device: nvmlDevice_t, limit: *mut c_uint) of device |state| {
        put(limit, state.card(device.addr())?.world.power[1])
    }

    fn nvmlDeviceGetPowerManagementLimitConstraints(
        device: nvmlDevice_t,
        least: *mut c_uint,
        most: *mut c_uint,
    ) of device |state| {
        let [from, _, to] = state.card(device.addr())?.world.power;
        put(least, from)?;
        put(most, to)
    }
}

changes! {
    fn nvmlDeviceSetPersistenceMode(device: nvmlDevice_t, mode: c_uint) of device, mode, |state| {
        let card = state.card_mut(device.addr())?;
        if mode > 1 {
            return Err(INVALID_ARGUMENT);
        }
        card.made.persistence = mode == 1;
        Ok(())
    }

    fn nvmlDeviceSetPowerManagementLimit(device: nvmlDevice_t, limit: c_uint) of device, limit, |state| {
        let card = state.card_mut(device.addr())?;
        let [from, _, to] = card.world.power;
        if !(from..=to).contains(&limit) {
            return Err(INVALID_ARGUMENT);
        }
        card.made.power_limit = Some(limit);
        Ok(())
    }

    fn nvmlDeviceSetGpuLockedClocks(
        device: nvmlDevice_t,
        least: c_uint,
        most: c_uint,
    ) of device, format!("{least} {most}"), |state| {
        let card = state.card_mut(device.addr())?;
        if least > most {
            return Err(INVALID_ARGUMENT);
        }
        card.made.locked_clocks = Some((least, most));
        Ok(())
    }

    fn nvmlDeviceResetGpuLockedClocks(device: nvmlDevice_t) of device, "", |state| {
        state.card_mut(device.addr())?.made.locked_clocks = None;
        Ok(())
    }
}
