//! Tests of a desktop's rounds: pure steps by table, whole rounds against a scripted API server.

mod rig;
mod rounds;
mod steps;
