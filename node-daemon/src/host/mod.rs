//! What touches the machine: libvirt, sysfs, GPU drivers, files. And the simulated host beside it.

pub mod changes;
pub mod fabric;
pub mod file_threads;
pub mod folder;
pub mod gpu_driver;
pub mod guest_network;
pub mod hardware;
pub mod hook;
pub mod hypervisor;
pub mod image_file;
pub mod images;
pub mod kernel;
pub mod kvm_probe;
pub mod leftovers;
pub mod libvirt;
mod nvme;
pub mod nvml;
pub mod nvml_control;
pub mod paths;
pub mod seed;
pub mod simulated_driver;
pub mod simulated_hypervisor;
pub mod source;
pub mod survey;
pub mod type_names;
pub mod uevents;
mod virtual_functions;
