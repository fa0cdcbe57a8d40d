//! The operator: turns desktops into allocations.
//!
//! ```text
//!  watch ──▶ stores ──▶ desktop: dereference ─▶ validate ─▶ decide ─▶ apply ──▶ Desktop.status
//!    │                                                        │
//!    └─────▶ placement::Snapshot (with an assumed overlay) ───┘
//! ```
//!
//! Everything that decides is pure: the crate `gpudesk-placement`, `thinker`, `index`, `queue`, `node_liveness`, and the files
//! named `admit`, `judge`, `slices`, `validate`, `decide`, `made_of`, `status` and `summary`. `world` holds them behind one lock; `watch`
//! fills it, with what `understood` makes of an object that this version does not understand whole; `writer`, `secret_access` and the files named `apply` write; `run` puts it together.
#![forbid(unsafe_code)]

pub mod allocation_key;
pub mod backoff;
pub mod cause;
pub mod deadline;
pub mod definitions;
pub mod desktop;
pub mod desktop_template;
pub mod gpu_node;
pub mod gpu_profile;
pub mod health;
pub mod index;
pub mod invalid;
pub mod leader;
pub mod metrics;
pub mod node_liveness;
pub mod other_owners;
pub mod queue;
pub mod refusals;
pub mod run;
pub mod secret_access;
pub mod stores;
pub mod thinker;
pub mod understood;
pub mod watch;
pub mod world;
pub mod writer;

pub use gpudesk_placement as placement;
