//! The node daemon: discovers a host, makes devices of its cards, runs desktops as libvirt domains.
//!
//! ```text
//!   sysfs, procfs ─▶ topology ─▶ inventory ─▶ gpu_node ──▶ GpuNode.status
//!                                    ▲
//!   Desktop, template ─▶ watch ─▶ desktop: observe ─▶ decide ─▶ act ──▶ Desktop.status
//!                                    │                  partition (shares of cards), domain (XML)
//!                                    ▼                                       relay ◀── people who look
//!   host: the two seams, hypervisor (libvirt) and gpu_driver; files, images, seeds; the simulated host
//! ```
//!
//! `devices` plans and makes shares of real cards, behind `gpu_driver`.
//!
//! `topology`, `partition`, `domain`, `inventory` and the files named `decide`, `desired`, `conflict`,
//! `machine`, `record`, `standing`, `stray`, `status`, `tuning`, `brake`, `upkeep` and `qcow2` are pure; `host` touches the machine.

pub mod brake;
pub mod cli;
pub mod cluster;
pub mod crash_point;
pub mod daemon;
pub mod desktop;
pub mod devices;
pub mod discover;
pub mod domain;
pub mod foreign_domains;
pub mod gpu_node;
pub mod host;
pub mod layout;
pub mod lease;
pub mod metrics;
pub mod node_events;
pub mod orphans;
pub mod owner_spec;
pub mod partition;
pub mod qcow2;
pub mod relay;
pub mod secrets;
pub mod state_folder;
pub mod templates;
pub mod upkeep;
pub mod watch;
