//! What touches the machine: libvirt, sysfs, GPU drivers, files. And the simulated host beside it.

pub mod catalogue;
pub mod folder;
pub mod gpu_driver;
pub mod hypervisor;
pub mod images;
pub mod kvm_probe;
pub mod libvirt;
pub mod paths;
pub mod seed;
pub mod simulated;
pub mod simulated_driver;
pub mod source;
pub mod sysfs;
