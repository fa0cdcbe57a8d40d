//! A library with NVML's C interface that answers for cards described in a file, for tests.
//!
//! The file is the one that `GPUDESK_FAKE_NVML` names, else the library's own path with `.yaml` after it.
//! It is looked at before each call, so that a test can change the world while a daemon runs. What it
//! says is in [`world`]; what the cards of it can do is in `cards.yaml`.
//!
//! What callers make is kept in a file beside it, as the real driver keeps it in the kernel: it outlives
//! the process that made it, and goes with a reset, a load of the module or a reboot, which the world counts.
//!
//! Where the world names a sysfs, vGPUs are those on the virtual functions there, and the driver of the
//! card there is told of GPU instances.
//!
//! No kinder than the real library: its return codes, its versions of structures, lists that are asked
//! for twice, eight digits of PCI domain, instances whose numbers are not their order. A function can be
//! made to fail or to hang. Real absence of a function is had by a copy of this file in which its name
//! is overwritten.
//!
//! ```text
//!   functions ─▶ answer: faults, delays ─▶ state: handles, what exists ─▶ geometry: what fits
//!                                             ▲ world (the file), kernel (what was made), cards (the tables)
//! ```

mod answer;
mod cards;
mod functions;
mod geometry;
mod kernel;
mod state;
mod sysfs;
mod world;
