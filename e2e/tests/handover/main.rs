//! The hand-over between operator and nodes as a model: every order of events, up to a number of faults.
//!
//! What is checked is the code that decides: `desktop::decide` of the operator, `desktop::decide` and
//! `desktop::status` of the node daemon. Around them stand an API server (versions, the leader's term, what
//! admission lets through), watches that show things late, and writes that arrive late or never.
//!
//! A desktop takes the one place that a node has. Nodes do not look whether their place is taken (as they
//! do in truth), so that the hand-over is shown to be right by itself; but after a restore they do.
//!
//! A node that is lost or silent cannot be spoken to and goes on, or was switched off, as somebody says of it. The last look at
//! it and the write that gives up what it has count as one, and so do its return and its report of machines.
#![allow(clippy::unwrap_used, clippy::panic)]

mod model;
mod objects;
mod scenarios;
mod world;
