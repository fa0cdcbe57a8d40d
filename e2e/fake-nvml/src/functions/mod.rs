//! The functions, as `nvml.h` declares them.
#![expect(unsafe_code, reason = "exports C functions by their names")]

mod card;
mod events;
mod health;
mod link;
mod mig;
mod mig_changes;
mod scheduler;
mod settings;
mod system;
mod vgpu;
mod vgpu_on_instance;
mod vgpu_types;
