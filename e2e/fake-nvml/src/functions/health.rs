//! How a card is.

use std::ffi::{c_int, c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlFieldValue_st, nvmlMarginTemperature_v1_t, nvmlTemperature_v1_t, nvmlValue_st,
};

use crate::{
    answer::{INVALID_ARGUMENT, NOT_SUPPORTED, VERSION_MISMATCH, change, functions, put},
    cards::Architecture,
    state::CardState,
};

/// Version words of the structures (`NVML_STRUCT_VERSION`).
const TEMPERATURE_V1: c_uint = 0x0100_000c;
const MARGIN_V1: c_uint = 0x0100_0008;

/// Whether the driver gives margins of this card instead of degrees.
fn has_margins(card: &CardState) -> bool {
    card.model.architecture >= Architecture::Ada
}

/// Shutdown, slowdown, memory, GPU in degrees.
fn degrees(card: &CardState) -> [u32; 4] {
    match card.model.architecture {
        Architecture::Turing => [96, 93, 0, 85],
        _ => [92, 89, 95, 85],
    }
}

/// A value that NVML keeps under a number: its type, and its bits.
fn value(card: &CardState, id: c_uint) -> Option<(c_uint, c_ulonglong)> {
    let signed = |value: c_int| (5, c_ulonglong::from(value.cast_unsigned()));
    match id {
        // MIG is turned on without a reset.
        184 => Some((1, u64::from(card.model.architecture >= Architecture::Hopper))),
        193 if has_margins(card) => Some(signed(-7)),
        194 if has_margins(card) => Some(signed(-2)),
        196 if has_margins(card) => Some(signed(0)),
        230 => card.world.recovery_action.map(|action| (1, c_ulonglong::from(action))),
        _ => None,
    }
}

functions! {
    fn nvmlDeviceGetTemperature(device: nvmlDevice_t, sensor: c_uint, degrees: *mut c_uint) of device |state| {
        let card = state.card(device.addr())?;
        if sensor != 0 {
            return Err(INVALID_ARGUMENT);
        }
        put(degrees, card.world.temperature)
    }

    fn nvmlDeviceGetTemperatureV(device: nvmlDevice_t, found: *mut nvmlTemperature_v1_t) of device |state| {
        let now = state.card(device.addr())?.world.temperature;
        change(found, |found| {
            if found.version != TEMPERATURE_V1 {
                return Err(VERSION_MISMATCH);
            }
            found.temperature = now.cast_signed();
            Ok(())
        })
    }

    fn nvmlDeviceGetTemperatureThreshold(device: nvmlDevice_t, kind: c_uint, found: *mut c_uint) of device |state| {
        let card = state.card(device.addr())?;
        let degrees = degrees(card).get(kind as usize).copied().ok_or(INVALID_ARGUMENT)?;
        if has_margins(card) || degrees == 0 {
            return Err(NOT_SUPPORTED);
        }
        put(found, degrees)
    }

    fn nvmlDeviceGetMarginTemperature(device: nvmlDevice_t, found: *mut nvmlMarginTemperature_v1_t) of device |state| {
        let card = state.card(device.addr())?;
        let margin = has_margins(card).then_some(card.world.margin);
        change(found, |found| {
            if found.version != MARGIN_V1 {
                return Err(VERSION_MISMATCH);
            }
            found.marginTemperature = margin.ok_or(NOT_SUPPORTED)?;
            Ok(())
        })
    }

    fn nvmlDeviceGetFieldValues(device: nvmlDevice_t, count: c_int, values: *mut nvmlFieldValue_st) of device |state| {
        let card = state.card(device.addr())?;
        let count = usize::try_from(count).ok().filter(|count| *count > 0).ok_or(INVALID_ARGUMENT)?;
        for place in 0..count {
            change(values.wrapping_add(place), |entry| {
                let found = value(card, entry.fieldId);
                entry.nvmlReturn = if found.is_some() { 0 } else { NOT_SUPPORTED };
                let (kind, bits) = found.unwrap_or((1, 0));
                entry.valueType = kind;
                entry.value = nvmlValue_st { ullVal: bits };
                Ok(())
            })?;
        }
        Ok(())
    }

    fn nvmlDeviceGetCurrentClocksEventReasons(device: nvmlDevice_t, reasons: *mut c_ulonglong) of device |state| {
        let throttle = state.card(device.addr())?.world.throttle;
        put(reasons, throttle)
    }

    fn nvmlDeviceGetCurrentClocksThrottleReasons(device: nvmlDevice_t, reasons: *mut c_ulonglong) of device |state| {
        let throttle = state.card(device.addr())?.world.throttle;
        put(reasons, throttle)
    }

    fn nvmlDeviceGetEccMode(device: nvmlDevice_t, current: *mut c_uint, pending: *mut c_uint) of device |state| {
        let card = state.card(device.addr())?;
        if card.model.is_consumer() {
            return Err(NOT_SUPPORTED);
        }
        put(current, card.world.ecc.into())?;
        put(pending, card.world.ecc.into())
    }

    fn nvmlDeviceGetTotalEccErrors(
        device: nvmlDevice_t,
        kind: c_uint,
        _counter: c_uint,
        count: *mut c_ulonglong,
    ) of device |state| {
        let card = state.card(device.addr())?;
        if card.model.is_consumer() || !card.world.ecc {
            return Err(NOT_SUPPORTED);
        }
        let errors = match kind {
            0 => card.world.ecc_corrected,
            1 => card.world.ecc_uncorrected,
            _ => return Err(INVALID_ARGUMENT),
        };
        put(count, errors)
    }

    fn nvmlDeviceGetRemappedRows(
        device: nvmlDevice_t,
        corrected: *mut c_uint,
        uncorrected: *mut c_uint,
        pending: *mut c_uint,
        failed: *mut c_uint,
    ) of device |state| {
        let card = state.card(device.addr())?;
        if card.model.is_consumer() || card.model.architecture < Architecture::Ampere {
            return Err(NOT_SUPPORTED);
        }
        let rows = card.world.rows;
        put(corrected, rows.corrected)?;
        put(uncorrected, rows.uncorrected)?;
        put(pending, rows.pending.into())?;
        put(failed, rows.failed.into())
    }
}
