//! Beginning, ending, versions, and which cards there are.

use std::ffi::{CStr, c_char, c_uint};

use nvml_wrapper_sys::bindings::nvmlDevice_t;

use crate::{
    answer::{
        Answer, DRIVER_NOT_LOADED, GPU_IS_LOST, INVALID_ARGUMENT, NOT_FOUND, UNINITIALIZED, functions, put,
        put_text,
    },
    state::{Address, Object, State},
};

fn begin(state: &mut State) -> Answer {
    if !state.world.as_ref().is_some_and(|world| world.driver_loaded) {
        return Err(DRIVER_NOT_LOADED);
    }
    if state.begun == 0 {
        // Cards that come later are not seen before all users ended.
        state.seen = state.cards.iter().map(|card| card.world.address.clone()).collect();
    }
    state.begun += 1;
    Ok(())
}

fn handle(state: &mut State, address: &str, device: *mut nvmlDevice_t) -> Answer {
    if state.card_at(address).is_none_or(|card| card.world.lost) {
        return Err(GPU_IS_LOST);
    }
    let handle = state.handle(Object::Card(address.to_owned()));
    put(device, std::ptr::without_provenance_mut(handle))
}

functions! {
    fn nvmlInit_v2() |state| { begin(state) }

    fn nvmlInitWithFlags(_flags: c_uint) |state| { begin(state) }

    fn nvmlShutdown() |state| {
        state.begun = state.begun.checked_sub(1).ok_or(UNINITIALIZED)?;
        Ok(())
    }

    fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) |state| {
        let said = state.world.as_ref().map(|world| world.driver_version.clone()).unwrap_or_default();
        put_text(version, length, &said)
    }

    fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) |state| {
        let said = state.world.as_ref().map(|world| format!("13.{}", world.driver_version)).unwrap_or_default();
        put_text(version, length, &said)
    }

    fn nvmlDeviceGetCount_v2(count: *mut c_uint) |state| {
        put(count, c_uint::try_from(state.seen.len()).unwrap_or(0))
    }

    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t) |state| {
        let address = state.seen.get(index as usize).cloned().ok_or(INVALID_ARGUMENT)?;
        fails_for(state, "nvmlDeviceGetHandleByIndex_v2", &address)?;
        handle(state, &address, device)
    }

    fn nvmlDeviceGetHandleByPciBusId_v2(bus_id: *const c_char, device: *mut nvmlDevice_t) |state| {
        if bus_id.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: the caller gives a text with an end.
        let text = unsafe { CStr::from_ptr(bus_id) }.to_string_lossy().into_owned();
        let wanted = Address::parse(&text).ok_or(INVALID_ARGUMENT)?;
        let address = state.seen.iter().find(|seen| Address::parse(seen) == Some(wanted)).cloned();
        let address = address.ok_or(NOT_FOUND)?;
        fails_for(state, "nvmlDeviceGetHandleByPciBusId_v2", &address)?;
        handle(state, &address, device)
    }
}

/// Faults of a card, where the card is not known before the call.
fn fails_for(state: &State, function: &str, address: &str) -> Answer {
    let faults = state.world.iter().flat_map(|world| &world.faults);
    let mut of_it = faults.filter(|fault| {
        fault.function.as_deref().is_some_and(|named| named == function)
            && fault.card.as_deref() == Some(address)
    });
    match of_it.find_map(|fault| fault.error.as_deref()) {
        Some(error) => Err(crate::answer::code(error)),
        None => Ok(()),
    }
}
