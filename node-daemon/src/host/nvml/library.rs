//! NVML's library: found, loaded, asked.
#![expect(unsafe_code, reason = "calls a C library by its interface")]

use std::{
    ffi::{CStr, OsString, c_char},
    path::{Path, PathBuf},
    sync::Arc,
};

use nvml_wrapper_sys::bindings::{NvmlLib, nvmlReturn_t};
use thiserror::Error;

use super::{
    NvmlError,
    gate::{Gate, Use},
};

/// Where the library is, when no path is given: the loader's own search, then the places of
/// distributions that the loader of a container does not know.
const USUAL: [&str; 5] = [
    "libnvidia-ml.so.1",
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/run/nvidia/driver/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
    "/run/nvidia/driver/usr/lib64/libnvidia-ml.so.1",
    "/usr/lib/wsl/lib/libnvidia-ml.so.1",
];

/// Return codes of NVML (`nvml.h`, `nvmlReturn_t`) that mean something here.
pub(super) mod code {
    pub(crate) const INVALID_ARGUMENT: u32 = 2;
    pub(crate) const NOT_SUPPORTED: u32 = 3;
    pub(crate) const NO_PERMISSION: u32 = 4;
    pub(crate) const NOT_FOUND: u32 = 6;
    pub(crate) const INSUFFICIENT_SIZE: u32 = 7;
    pub(crate) const DRIVER_NOT_LOADED: u32 = 9;
    pub(crate) const TIMEOUT: u32 = 10;
    pub(crate) const FUNCTION_NOT_FOUND: u32 = 13;
    pub(crate) const GPU_IS_LOST: u32 = 15;
    pub(crate) const RESET_REQUIRED: u32 = 16;
    pub(crate) const IN_USE: u32 = 19;
    pub(crate) const INSUFFICIENT_RESOURCES: u32 = 23;
    pub(crate) const LIB_RM_VERSION_MISMATCH: u32 = 18;
    pub(crate) const VERSION_MISMATCH: u32 = 25;
}

/// Why a call gave no answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum CallError {
    /// The library does not have the function: the driver is older than it.
    #[error("{0}: not in this version of the driver")]
    Missing(&'static str),
    /// The function says no.
    #[error("{function}: {}", meaning(*code))]
    Code {
        /// The function.
        function: &'static str,
        /// Its return code.
        code: u32,
    },
}

impl CallError {
    /// The return code; that of a function that is not there is "function not found".
    pub(super) fn code(self) -> u32 {
        match self {
            Self::Missing(_) => code::FUNCTION_NOT_FOUND,
            Self::Code { code, .. } => code,
        }
    }

    /// Whether it only says that there is no such thing here.
    pub(super) fn is_nothing(self) -> bool {
        matches!(self.code(), code::NOT_SUPPORTED | code::FUNCTION_NOT_FOUND)
    }
}

/// A return code in words.
pub(super) fn meaning(code: u32) -> String {
    let words = match code {
        1 => "the library is not initialised",
        2 => "an argument is not valid",
        3 => "not supported",
        4 => "no permission",
        6 => "not found",
        7 => "the buffer is too small",
        8 => "a power cable is missing",
        9 => "the driver is not loaded",
        10 => "timed out in the driver",
        11 => "the kernel found a problem with interrupts",
        12 => "a library is missing",
        13 => "not in this version of the driver",
        14 => "the card's own memory of settings is corrupt",
        15 => "the GPU fell off the bus",
        16 => "the GPU must be reset",
        17 => "the operating system refused",
        18 => "the library and the kernel module are of different versions",
        19 => "in use",
        20 => "out of memory",
        21 => "no data",
        23 => "out of resources",
        25 => "the structure has another version",
        27 => "not ready",
        28 => "no GPU",
        29 => "not in this state",
        other => return format!("error {other}"),
    };
    words.to_owned()
}

/// Calls a function of the library by its name.
///
/// Pointers among the arguments must be to places that live until the call ends and are as large as
/// NVML's documentation asks for.
macro_rules! call {
    ($lib:expr, $function:ident $(, $argument:expr)* $(,)?) => {
        match &$lib.$function {
            // SAFETY: the function has the type that `nvml.h` gives it; the arguments are handles that
            // this library gave out, numbers, and places that the caller keeps.
            Ok(function) => $crate::host::nvml::library::checked(
                stringify!($function), unsafe { function($($argument),*) }
            ),
            Err(_) => Err($crate::host::nvml::library::CallError::Missing(stringify!($function))),
        }
    };
}
pub(super) use call;

/// A function that the bindings do not know yet, by its name with a 0 at its end.
///
/// # Safety
/// `F` must be the type that `nvml.h` gives the function.
pub(super) unsafe fn newer<F: Copy>(lib: &NvmlLib, name: &'static std::ffi::CStr) -> Result<F, CallError> {
    // SAFETY: by the caller's promise.
    let found = unsafe { lib.__library.get::<F>(name.to_bytes_with_nul()) };
    found.map(|found| *found).map_err(|_| CallError::Missing(name.to_str().unwrap_or_default()))
}

/// A return code as a result.
pub(super) fn checked(function: &'static str, code: nvmlReturn_t) -> Result<(), CallError> {
    if code == 0 { Ok(()) } else { Err(CallError::Code { function, code }) }
}

/// The library, loaded.
pub(super) struct Library {
    pub(super) functions: NvmlLib,
}

impl Library {
    /// Loads the library from `path`, or from where it usually is; `None` when there is none.
    pub(super) fn open(path: Option<&Path>) -> Result<Option<Self>, NvmlError> {
        let candidates: Vec<OsString> = match path {
            Some(path) => vec![path.into()],
            None => USUAL.iter().map(OsString::from).collect(),
        };
        for candidate in candidates {
            let file = PathBuf::from(&candidate);
            // A bare name is looked for by the loader; of a path we can see ourselves.
            let by_path = file.components().count() > 1;
            if by_path && !file.exists() {
                continue;
            }
            // SAFETY: loading runs the initialisers of the library, NVIDIA's or the one that the admin
            // names, which are made to be loaded so.
            match unsafe { NvmlLib::new(&candidate) } {
                Ok(functions) => return Ok(Some(Self { functions })),
                Err(_) if !by_path => {}
                Err(error) => return Err(NvmlError::Library { path: file, message: error.to_string() }),
            }
        }
        Ok(None)
    }
}

/// NVML, initialised. NVML counts: it ends with the last session of the process.
///
/// Cards that were plugged in after the first session of several began are not seen before all ended.
pub(super) struct Session {
    library: Arc<Library>,
    /// Ends after it.
    _use: Use,
}

impl Session {
    pub(super) fn begin(library: Arc<Library>, gate: &Gate) -> Result<Self, NvmlError> {
        let begun = gate.enter()?;
        let functions = &library.functions;
        // 1: a machine without cards is no error.
        let answer = match call!(functions, nvmlInitWithFlags, 1) {
            Err(error) if error.code() == code::FUNCTION_NOT_FOUND => call!(functions, nvmlInit_v2),
            answer => answer,
        };
        answer.map_err(|error| match error.code() {
            code::DRIVER_NOT_LOADED => NvmlError::DriverNotLoaded,
            code::LIB_RM_VERSION_MISMATCH => NvmlError::VersionMismatch,
            code::NO_PERMISSION => NvmlError::NoPermission,
            _ => NvmlError::Call(error.to_string()),
        })?;
        Ok(Self { library, _use: begun })
    }

    pub(super) fn functions(&self) -> &NvmlLib {
        &self.library.functions
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let functions = &self.library.functions;
        if let Err(error) = call!(functions, nvmlShutdown) {
            tracing::debug!(%error, "NVML did not end cleanly");
        }
    }
}

/// A text that a function writes into a buffer of `N` bytes, given by pointer and length.
pub(super) fn text<const N: usize>(
    fill: impl FnOnce(*mut c_char, u32) -> Result<(), CallError>,
) -> Result<String, CallError> {
    let mut buffer: [c_char; N] = [0; N];
    fill(buffer.as_mut_ptr(), u32::try_from(N).unwrap_or(u32::MAX))?;
    Ok(from_chars(&buffer))
}

/// The text in a fixed field, up to its end or to that of the field.
pub(super) fn from_chars(field: &[c_char]) -> String {
    let bytes: Vec<u8> = field.iter().map(|c| c.to_ne_bytes()[0]).chain([0]).collect();
    CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The most entries taken of one list.
const LONGEST: u32 = 4096;

/// A list whose length is asked for first, with no buffer.
pub(super) fn list<T: Copy>(
    zero: T,
    fill: impl Fn(*mut u32, *mut T) -> Result<(), CallError>,
) -> Result<Vec<T>, CallError> {
    let mut count = 0_u32;
    let enough = |answer: Result<(), CallError>| match answer {
        Err(error) if error.code() == code::INSUFFICIENT_SIZE => Ok(false),
        Ok(()) => Ok(true),
        Err(error) => Err(error),
    };
    enough(fill(&raw mut count, std::ptr::null_mut()))?;
    // It can grow between two calls.
    for _ in 0..4 {
        if count == 0 {
            return Ok(vec![]);
        }
        let room = count.min(LONGEST);
        let mut entries = vec![zero; room as usize];
        count = room;
        if enough(fill(&raw mut count, entries.as_mut_ptr()))? {
            entries.truncate(count.min(room) as usize);
            return Ok(entries);
        }
    }
    Err(CallError::Code { function: "a list", code: code::INSUFFICIENT_SIZE })
}

/// A list into a buffer of `room` entries, of which the function writes how many there are.
pub(super) fn listed<T: Copy>(
    zero: T,
    room: u32,
    fill: impl FnOnce(*mut u32, *mut T) -> Result<(), CallError>,
) -> Result<Vec<T>, CallError> {
    let room = room.min(LONGEST);
    let mut entries = vec![zero; room as usize];
    let mut count = room;
    fill(&raw mut count, entries.as_mut_ptr())?;
    entries.truncate(count.min(room) as usize);
    Ok(entries)
}

/// A number that a function writes.
pub(super) fn number(fill: impl FnOnce(*mut u32) -> Result<(), CallError>) -> Result<u32, CallError> {
    let mut value = 0_u32;
    fill(&raw mut value)?;
    Ok(value)
}

/// The version field of a structure (`NVML_STRUCT_VERSION`): its size, and its version in the top byte.
pub(super) fn version_of<T>(version: u32) -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(0) | version << 24
}

/// NVML writes all ones where a number does not apply.
pub(super) fn valid(number: u32) -> Option<u32> {
    (number != u32::MAX).then_some(number)
}

/// A number of the driver as the API has numbers.
pub(super) fn small(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_without_an_end_is_read_to_its_own() {
        let field = b"abc\0def".map(|byte| c_char::from_ne_bytes([byte]));
        assert_eq!(from_chars(&field), "abc");
        assert_eq!(from_chars(&field[..2]), "ab");
        assert_eq!(from_chars(&[]), "");
    }

    #[test]
    fn a_list_that_grows_is_asked_for_again() {
        let lengths = std::cell::RefCell::new(vec![3_u32, 2]);
        let list = list(0_u32, |count, entries| {
            // SAFETY: the places are those of `list`, which the test knows.
            let room = unsafe { *count };
            let there = lengths.borrow_mut().pop().unwrap_or(3);
            unsafe { *count = there };
            if room < there {
                return Err(CallError::Code { function: "test", code: code::INSUFFICIENT_SIZE });
            }
            for entry in 0..there {
                unsafe { *entries.add(entry as usize) = entry + 7 };
            }
            Ok(())
        });
        assert_eq!(list, Ok(vec![7, 8, 9]));
    }

    #[test]
    fn the_version_of_a_structure_has_its_size() {
        use nvml_wrapper_sys::bindings::{nvmlVgpuPlacementList_v1_t, nvmlVgpuPlacementList_v2_t};
        // The figures of NVIDIA's own Python bindings.
        assert_eq!(version_of::<nvmlVgpuPlacementList_v1_t>(1), 0x0100_0018);
        assert_eq!(version_of::<nvmlVgpuPlacementList_v2_t>(2), 0x0200_0020);
    }

    #[test]
    fn a_path_without_a_file_is_no_library() {
        assert!(Library::open(Some(Path::new("/nonexistent/libnvidia-ml.so.1"))).unwrap().is_none());
    }
}
