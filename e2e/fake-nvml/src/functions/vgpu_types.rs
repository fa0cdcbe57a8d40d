//! vGPU types: the same on every card that has them.

use std::ffi::{c_char, c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::nvmlVgpuTypeMaxInstance_v1_t;

use crate::{
    answer::{
        Answer, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_SUPPORTED, VERSION_MISMATCH, change, functions, get,
        put, put_text,
    },
    cards::{TABLES, VgpuType},
};

/// What the name and the class of a type have room for.
const NAME: c_uint = 64;
/// No GPU instance profile.
const NONE: c_uint = 0xffff_ffff;
/// Version word of the structure (`NVML_STRUCT_VERSION`).
const MAX_INSTANCE_V1: c_uint = 0x0100_000c;

fn known(id: c_uint) -> Answer<&'static VgpuType> {
    TABLES.type_of(id).ok_or(INVALID_ARGUMENT)
}

fn series(kind: &VgpuType) -> char {
    let last = kind.name.rsplit('-').next().unwrap_or_default();
    last.chars().find(char::is_ascii_uppercase).unwrap_or('C')
}

/// A text for which a room of 64 is wanted, whatever its length.
fn wide_text(to: *mut c_char, room: *mut c_uint, text: impl FnOnce() -> Answer<String>) -> Answer {
    if get(room)? < NAME {
        put(room, NAME)?;
        return Err(INSUFFICIENT_SIZE);
    }
    put_text(to, NAME, &text()?)
}

functions! {
    fn nvmlVgpuTypeGetName(id: c_uint, name: *mut c_char, room: *mut c_uint) |_| {
        wide_text(name, room, || Ok(known(id)?.full_name.clone()))
    }

    fn nvmlVgpuTypeGetClass(id: c_uint, class: *mut c_char, room: *mut c_uint) |_| {
        wide_text(class, room, || {
            let class = match series(known(id)?) {
                'Q' => "Quadro",
                'C' => "Compute",
                _ => "NVS",
            };
            Ok(class.to_owned())
        })
    }

    fn nvmlVgpuTypeGetFramebufferSize(id: c_uint, bytes: *mut c_ulonglong) |_| {
        put(bytes, known(id)?.framebuffer_mib << 20)
    }

    fn nvmlVgpuTypeGetNumDisplayHeads(id: c_uint, heads: *mut c_uint) |_| {
        let heads_of = match series(known(id)?) {
            'Q' | 'B' => 4,
            _ => 1,
        };
        put(heads, heads_of)
    }

    fn nvmlVgpuTypeGetResolution(id: c_uint, display: c_uint, x: *mut c_uint, y: *mut c_uint) |_| {
        let kind = known(id)?;
        let (width, height) = match series(kind) {
            'Q' if kind.framebuffer_mib > 1024 => (7680, 4320),
            'Q' | 'B' => (5120, 2880),
            'A' => (1280, 1024),
            _ => (4096, 2160),
        };
        if display > 3 {
            return Err(INVALID_ARGUMENT);
        }
        put(x, width)?;
        put(y, height)
    }

    fn nvmlVgpuTypeGetFrameRateLimit(id: c_uint, limit: *mut c_uint) |_| {
        put(limit, if series(known(id)?) == 'B' { 45 } else { 60 })
    }

    fn nvmlVgpuTypeGetMaxInstancesPerVm(id: c_uint, most: *mut c_uint) |_| {
        let many = matches!(series(known(id)?), 'Q' | 'C');
        put(most, if many { 16 } else { 1 })
    }

    fn nvmlVgpuTypeGetMaxInstancesPerGpuInstance(found: *mut nvmlVgpuTypeMaxInstance_v1_t) |_| {
        change(found, |found| {
            if found.version != MAX_INSTANCE_V1 {
                return Err(VERSION_MISMATCH);
            }
            let kind = known(found.vgpuTypeId)?;
            kind.profile.ok_or(NOT_SUPPORTED)?;
            found.maxInstancePerGI = kind.most;
            Ok(())
        })
    }

    fn nvmlVgpuTypeGetGpuInstanceProfileId(id: c_uint, profile: *mut c_uint) |_| {
        put(profile, known(id)?.profile.unwrap_or(NONE))
    }
}
