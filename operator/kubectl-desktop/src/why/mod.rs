//! `kubectl desktop why`: why a desktop is where it is, or why it waits.
//!
//! ```text
//!  estate (of `plan`) ─▶ report: its record, or what the engine says of each node ─▶ table, YAML
//! ```
//!
//! `run` reads and prints; everything else is pure.

pub mod document;
pub mod report;
pub mod run;
pub mod table;
