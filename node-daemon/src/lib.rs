//! The node daemon: discovers a host, makes devices of its cards, runs desktops as libvirt domains.

pub mod cli;
pub mod crash_point;
pub mod daemon;
pub mod desktop;
pub mod discover;
pub mod domain;
pub mod gpu_node;
pub mod host;
pub mod inventory;
pub mod lease;
pub mod metrics;
pub mod orphans;
pub mod partition;
pub mod secrets;
pub mod topology;
pub mod watch;
