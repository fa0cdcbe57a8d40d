//! The functions, as `nvml.h` declares them.
#![expect(unsafe_code, reason = "exports C functions by their names")]

mod card;
mod events;
mod health;
mod link;
mod mig;
mod mig_changes;
mod system;
mod vgpu;
mod vgpu_types;
