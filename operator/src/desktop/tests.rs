//! Tests of a desktop's rounds: pure steps by table, whole rounds against a scripted API server.

#![expect(clippy::needless_pass_by_value, reason = "tests hand over what they wrote in place")]

mod access;
mod away;
mod odd;
mod queue;
mod reading;
mod rig;
mod rounds;
mod silence;
mod steps;
