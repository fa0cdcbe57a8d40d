//! What `kubectl desktop` does. It decides with the operator's own code.
#![forbid(unsafe_code)]

pub mod plan;
pub mod view;
pub mod why;

use gpudesk_operator::{cause, desktop, desktop_template, gpu_profile, invalid, node_liveness, placement};
