//! `kubectl desktop plan`: what would become of an estate, without changing anything.
//!
//! ```text
//!  cluster ───────┐
//!  host files ────┼─▶ estate ─▶ order ─▶ round (the operator's engine) ─▶ document ─▶ table, YAML, JSON
//!  manifests ─────┘                        └─▶ usage, room, defragmentation
//!    └─ schema: as the API server would judge them
//! ```
//!
//! `files`, `cluster` and `run` read and print; everything else is pure.

pub mod cluster;
pub mod document;
pub mod estate;
pub mod files;
pub mod manifest;
pub mod order;
mod room;
pub mod round;
pub mod run;
pub mod schema;
mod spelling;
pub mod table;
pub mod usage;
#[cfg(test)]
mod written_tests;

pub use gpudesk_inventory::simulated::hosts;
