//! How each function answers: faults and delays first, then what it does, then where it writes.
#![expect(unsafe_code, reason = "writes where callers of a C interface point")]

use std::{
    ffi::{c_char, c_uint},
    thread,
    time::Duration,
};

use crate::state::{CardState, Object, State, lock};

/// What a function returns: nothing, or the code of an error.
pub(crate) type Answer<T = ()> = Result<T, c_uint>;

/// Return codes (`nvml.h`, `nvmlReturn_t`).
pub(crate) const UNINITIALIZED: c_uint = 1;
pub(crate) const INVALID_ARGUMENT: c_uint = 2;
pub(crate) const NOT_SUPPORTED: c_uint = 3;
pub(crate) const NO_PERMISSION: c_uint = 4;
pub(crate) const NOT_FOUND: c_uint = 6;
pub(crate) const INSUFFICIENT_SIZE: c_uint = 7;
pub(crate) const DRIVER_NOT_LOADED: c_uint = 9;
pub(crate) const TIMEOUT: c_uint = 10;
pub(crate) const FUNCTION_NOT_FOUND: c_uint = 13;
pub(crate) const GPU_IS_LOST: c_uint = 15;
pub(crate) const RESET_REQUIRED: c_uint = 16;
pub(crate) const OPERATING_SYSTEM: c_uint = 17;
pub(crate) const IN_USE: c_uint = 19;
pub(crate) const INSUFFICIENT_RESOURCES: c_uint = 23;
pub(crate) const VERSION_MISMATCH: c_uint = 25;
const UNKNOWN: c_uint = 999;

const NAMES: [(&str, c_uint); 20] = [
    ("UNINITIALIZED", UNINITIALIZED),
    ("INVALID_ARGUMENT", INVALID_ARGUMENT),
    ("NOT_SUPPORTED", NOT_SUPPORTED),
    ("NO_PERMISSION", NO_PERMISSION),
    ("NOT_FOUND", NOT_FOUND),
    ("INSUFFICIENT_SIZE", INSUFFICIENT_SIZE),
    ("DRIVER_NOT_LOADED", DRIVER_NOT_LOADED),
    ("TIMEOUT", TIMEOUT),
    ("FUNCTION_NOT_FOUND", FUNCTION_NOT_FOUND),
    ("GPU_IS_LOST", GPU_IS_LOST),
    ("RESET_REQUIRED", RESET_REQUIRED),
    ("OPERATING_SYSTEM", OPERATING_SYSTEM),
    ("LIB_RM_VERSION_MISMATCH", 18),
    ("IN_USE", IN_USE),
    ("MEMORY", 20),
    ("NO_DATA", 21),
    ("INSUFFICIENT_RESOURCES", INSUFFICIENT_RESOURCES),
    ("ARGUMENT_VERSION_MISMATCH", VERSION_MISMATCH),
    ("NOT_READY", 27),
    ("UNKNOWN", UNKNOWN),
];

/// The return code of this name.
pub(crate) fn code(name: &str) -> c_uint {
    NAMES.iter().find(|(known, _)| *known == name).map_or(UNKNOWN, |(_, code)| *code)
}

/// Answers one call. `subject` is the handle that the call is about, where it has one; `changes` says what
/// the call wants, where it changes something.
pub(crate) fn answer(
    function: &str,
    subject: usize,
    changes: Option<String>,
    work: impl FnOnce(&mut State) -> Answer,
) -> c_uint {
    let mut state = lock();
    state.refresh();
    let Some(world) = &state.world else { return UNKNOWN };
    let begins = matches!(function, "nvmlInit_v2" | "nvmlInitWithFlags");
    if !begins && state.begun == 0 {
        return UNINITIALIZED;
    }
    if world.missing.contains(function) {
        return FUNCTION_NOT_FOUND;
    }
    let call = changes.map(|wants| format!("{function} {wants}"));
    if call.is_some() && !world.privileged {
        return NO_PERMISSION;
    }
    let object = state.object(subject);
    let card = object.map(|object| object.address().to_owned());
    let of = object.map(ToString::to_string).unwrap_or_default();
    let fault = world.faults.iter().find(|fault| {
        fault.function.as_deref().is_none_or(|named| named == function)
            && (fault.card.is_none() || fault.card == card)
            && (fault.function.is_some() || card.is_some())
    });
    let (before, after) = match fault.cloned() {
        Some(fault) if fault.after => (None, Some(fault)),
        fault => (fault, None),
    };
    if let Some(fault) = before {
        // Others go on meanwhile.
        drop(state);
        thread::sleep(Duration::from_millis(fault.delay_ms));
        state = lock();
        if let Some(error) = fault.error {
            let error = code(&error);
            if let Some(call) = call {
                state.record(&call, &of, error);
            }
            return error;
        }
    }
    let answer = match call {
        Some(call) => state.change(&call, subject, work),
        None => work(&mut state).err().unwrap_or(0),
    };
    drop(state);
    let Some(fault) = after else { return answer };
    thread::sleep(Duration::from_millis(fault.delay_ms));
    fault.error.map_or(answer, |error| code(&error))
}

/// Defines functions of the C interface. `of` names the handle that a call is about.
macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $(of $handle:ident)? |$state:pat_param| $body:block)*) => {$(
        // SAFETY: NVML's names, in a library that stands in its place.
        #[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $kind),*) -> std::ffi::c_uint {
            let subject = 0 $(+ $handle.addr())?;
            $crate::answer::answer(stringify!($name), subject, None, |$state| $body)
        }
    )*};
}
pub(crate) use functions;

/// Defines functions that change something; what they want is told to the recorder.
macro_rules! changes {
    ($(fn $name:ident($($argument:ident: $kind:ty),* $(,)?) of $handle:ident, $wants:expr, |$state:pat_param| $body:block)*) => {$(
        // SAFETY: NVML's names, in a library that stands in its place.
        #[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $kind),*) -> std::ffi::c_uint {
            let wants = $wants.to_string();
            $crate::answer::answer(stringify!($name), $handle.addr(), Some(wants), |$state| $body)
        }
    )*};
}
pub(crate) use changes;

/// Writes to where a caller points.
pub(crate) fn put<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: the caller of the C function points to a place for a value of this type.
    unsafe { to.write(value) };
    Ok(())
}

/// Reads from where a caller points.
pub(crate) fn get<T: Copy>(from: *const T) -> Answer<T> {
    if from.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: the caller of the C function points to a value of this type.
    Ok(unsafe { from.read() })
}

/// Changes what a caller points to.
pub(crate) fn change<T>(at: *mut T, change: impl FnOnce(&mut T) -> Answer) -> Answer {
    // SAFETY: the caller of the C function points to a value of this type that nobody else uses now.
    unsafe { at.as_mut() }.ok_or(INVALID_ARGUMENT).and_then(change)
}

/// Writes a text and its end into a buffer.
pub(crate) fn put_text(to: *mut c_char, room: c_uint, text: &str) -> Answer {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= room as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    for (place, byte) in text.bytes().chain([0]).enumerate() {
        // SAFETY: the caller of the C function gave room for that many bytes.
        unsafe { to.add(place).write(c_char::from_ne_bytes([byte])) };
    }
    Ok(())
}

/// A field of fixed length with a text in it.
pub(crate) fn field<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (place, byte) in field.iter_mut().take(N.saturating_sub(1)).zip(text.bytes()) {
        *place = c_char::from_ne_bytes([byte]);
    }
    field
}

/// Writes entries from `to` on, for which there is room.
pub(crate) fn put_entries<T: Copy>(to: *mut T, entries: &[T]) -> Answer {
    if to.is_null() && !entries.is_empty() {
        return Err(INVALID_ARGUMENT);
    }
    for (place, entry) in entries.iter().enumerate() {
        // SAFETY: the caller of the C function gave room for them.
        unsafe { to.add(place).write(*entry) };
    }
    Ok(())
}

/// A list that is asked for twice: how long it is, then what is in it.
pub(crate) fn put_list<T: Copy>(count: *mut c_uint, to: *mut T, entries: &[T]) -> Answer {
    let room = get(count)?;
    let there = c_uint::try_from(entries.len()).unwrap_or(c_uint::MAX);
    put(count, there)?;
    if there == 0 {
        return Ok(());
    }
    if to.is_null() || room < there {
        return Err(INSUFFICIENT_SIZE);
    }
    put_entries(to, entries)
}

impl State {
    /// Refuses who may not list instances, or what there is room for.
    pub(crate) fn privileged(&self) -> Answer {
        if self.world.as_ref().is_some_and(|world| world.privileged) { Ok(()) } else { Err(NO_PERMISSION) }
    }

    /// The card that a handle stands for.
    pub(crate) fn card(&self, handle: usize) -> Answer<&CardState> {
        let Some(Object::Card(address)) = self.object(handle) else { return Err(INVALID_ARGUMENT) };
        // A card that is not there any more is lost as well.
        self.card_at(address).filter(|card| !card.world.lost).ok_or(GPU_IS_LOST)
    }

    /// The card that a handle stands for, to be changed.
    pub(crate) fn card_mut(&mut self, handle: usize) -> Answer<&mut CardState> {
        let Some(Object::Card(address)) = self.object(handle).cloned() else { return Err(INVALID_ARGUMENT) };
        self.card_at_mut(&address).filter(|card| !card.world.lost).ok_or(GPU_IS_LOST)
    }
}
