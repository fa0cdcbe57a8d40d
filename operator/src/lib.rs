//! The operator: turns desktops into allocations.
//!
//! ```text
//!  watch ──▶ stores ──▶ desktop: dereference ─▶ validate ─▶ decide ─▶ apply ──▶ Desktop.status
//!    │                                                        │
//!    └─────▶ placement::snapshot (with an assumed overlay) ───┘
//! ```
//!
//! `placement` and the files named `validate`, `decide` and `status` are pure; the others are
//! adapters.
#![forbid(unsafe_code)]

pub mod placement;
