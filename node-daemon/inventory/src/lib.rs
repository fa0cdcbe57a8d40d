//! What a host has: from what the kernel, its drivers or a host file say, to the status of a `GpuNode`.
//!
//! ```text
//!   a machine, a capture ─▶ tree ─▶ scan ──┐
//!                                  │       ├─▶ topology::HostFacts ─▶ status ─▶ GpuNodeStatus
//!   a host file ─▶ simulated ──────┘───────┘         ▲
//!                                    answers of GPU drivers, of a discovery hook
//! ```
//!
//! `topology`, `layout`, `status` and `simulated` are pure. `tree` reads files below a root folder, or out of a
//! capture; `scan` says which. No Kubernetes, no libvirt: programs that plan without a cluster use it too.

pub mod driver;
pub mod hook;
pub mod layout;
pub mod scan;
pub mod simulated;
pub mod status;
pub mod topology;
pub mod tree;
