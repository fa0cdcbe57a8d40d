//! What cards report of their own accord.
#![expect(clippy::disallowed_methods, reason = "adapter: waits as long as it is asked to")]

use std::{
    ffi::{c_uint, c_ulonglong},
    ptr, thread,
    time::{Duration, Instant},
};

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t};

use crate::{
    answer::{Answer, INVALID_ARGUMENT, NOT_SUPPORTED, TIMEOUT, answer, functions, put},
    state::{Address, EventSet, Object, State},
    world::Event,
};

const XID: c_ulonglong = 0x8;
/// What these cards report: errors of memory, XIDs, states, clocks, recovery.
const SUPPORTED: c_ulonglong = 0x1 | 0x2 | 0x4 | XID | 0x10 | 0x4000 | 0x8000;
const NONE: c_uint = 0xffff_ffff;
/// How soon an event is seen.
const PACE: Duration = Duration::from_millis(20);

/// The set of a handle. Handles of sets are odd, so that no other handle is one.
fn set(state: &mut State, handle: usize) -> Answer<&mut EventSet> {
    let place = (handle & 1 == 1).then_some(handle >> 8).ok_or(INVALID_ARGUMENT)?;
    state.sets.get_mut(place).filter(|set| !set.freed).ok_or(INVALID_ARGUMENT)
}

/// The next event that nobody was told of.
fn next(state: &mut State, handle: usize) -> Answer<Option<Event>> {
    let events = state.world.as_ref().map(|world| world.events.clone()).unwrap_or_default();
    let set = set(state, handle)?;
    set.told = set.told.min(events.len());
    while let Some(event) = events.get(set.told) {
        set.told += 1;
        let of = |address: &str| Address::parse(address) == Address::parse(&event.card);
        let kind = event.kind.unwrap_or(XID);
        if set.registered.iter().any(|(address, types)| of(address) && types & kind != 0) {
            return Ok(Some(event.clone()));
        }
    }
    Ok(None)
}

functions! {
    fn nvmlEventSetCreate(found: *mut nvmlEventSet_t) |state| {
        let told = state.world.as_ref().map_or(0, |world| world.events.len());
        state.sets.push(EventSet { told, registered: std::collections::BTreeMap::new(), freed: false });
        put(found, ptr::without_provenance_mut((state.sets.len() - 1) << 8 | 1))
    }

    fn nvmlEventSetFree(of: nvmlEventSet_t) |state| {
        set(state, of.addr())?.freed = true;
        Ok(())
    }

    fn nvmlDeviceGetSupportedEventTypes(device: nvmlDevice_t, types: *mut c_ulonglong) of device |state| {
        state.card(device.addr())?;
        put(types, SUPPORTED)
    }

    fn nvmlDeviceRegisterEvents(device: nvmlDevice_t, types: c_ulonglong, of: nvmlEventSet_t) of device |state| {
        let address = state.card(device.addr())?.world.address.clone();
        if types & !SUPPORTED != 0 {
            return Err(NOT_SUPPORTED);
        }
        *set(state, of.addr())?.registered.entry(address).or_default() |= types;
        Ok(())
    }
}

// SAFETY: NVML's name, in a library that stands in its place.
#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetWait_v2(
    of: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> c_uint {
    let until = Instant::now() + Duration::from_millis(timeout_ms.into());
    loop {
        let told = answer("nvmlEventSetWait_v2", 0, None, |state| {
            let Some(event) = next(state, of.addr())? else { return Err(TIMEOUT) };
            // The card may be lost by now; its handle is as good as before.
            let device = state.handle(Object::Card(event.card.clone()));
            put(
                data,
                nvmlEventData_t {
                    device: ptr::without_provenance_mut(device),
                    eventType: event.kind.unwrap_or(XID),
                    eventData: event.xid,
                    gpuInstanceId: event.gpu_instance.unwrap_or(NONE),
                    computeInstanceId: event.compute_instance.unwrap_or(NONE),
                },
            )
        });
        if told != TIMEOUT || Instant::now() >= until {
            return told;
        }
        thread::sleep(PACE);
    }
}
