//! The adapter of NVML against a library that stands in its place: what it reads, and what becomes of it
//! when the driver is old, fails, hangs or loses a card.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test: writes the world of the stand-in, waits, and fails by panicking"
)]

mod answers;
mod cards;
mod changes;
mod events;
mod failures;
mod fake;
mod shares;
