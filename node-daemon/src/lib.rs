//! The node daemon: discovers a host, makes devices of its cards, runs desktops as libvirt domains.

pub mod crash_point;
pub mod desktop;
pub mod domain;
pub mod host;
pub mod metrics;
pub mod partition;
pub mod secrets;
pub mod topology;
