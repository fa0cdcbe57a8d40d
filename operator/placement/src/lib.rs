//! Where a desktop runs and which shares of which cards it gets. Pure: no clock, no client.
//!
//! ```text
//!  GpuNode ──▶ facts ─┐          ┌─▶ ranking per demand ─▶ best node ─▶ Placed
//!  Desktop ─▶ claims ─┼─▶ estate ┤     ▲ one verdict per node, kept by events
//!  demands ─▶ mix ────┘          └─▶ fit on a node = filters, cards, functions, CPUs and memory
//! ```
//!
//! The same events and the same request give the same decision. Among places that are equally legal the
//! order of events may tell: [`prices`] take cards in the order in which they were first seen, and while
//! desktops wait they are up to one change in 32 cards old.
//! [`score::Score`] is the policy, [`filters::FILTERS`] and [`fit`] are what must hold,
//! [`Snapshot::explain`] says why a desktop waits.
#![forbid(unsafe_code)]

pub mod affinity;
pub mod batch;
pub mod build;
pub mod cards;
pub mod compute;
pub mod decide;
pub mod estate;
pub mod explain;
pub mod facts;
pub mod filters;
pub mod fit;
pub mod fragments;
pub mod functions;
pub mod links;
pub mod lookahead;
pub mod mix;
pub mod moves;
pub mod need;
pub mod occupancy;
pub mod prices;
pub mod ranking;
pub mod request;
pub mod reserve;
pub mod score;
pub mod shape;
pub mod snapshot;
pub mod starving;
pub mod state;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod worth;

pub use build::Built;
pub use compute::Limits;
pub use decide::{NoRoom, Placed};
pub use explain::Explanation;
pub use moves::Move;
pub use request::Request;
pub use reserve::Reservation;
pub use snapshot::{Change, Snapshot};
