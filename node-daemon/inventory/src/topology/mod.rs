//! From what the kernel says of the host to its inventory. Pure: strings in, facts out.

pub mod block;
pub mod cpu;
pub mod device_plugins;
pub mod iommu;
pub mod kernel_text;
pub mod kubelet;
pub mod mdev;
pub mod memory;
pub mod nvidia;
pub mod pci;
pub mod pci_ids;
pub mod supports;
pub mod uevent;
pub mod vendor_vfio;
pub mod vgpu_type;

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_status::{Device, Fabric, HostCpus, HostDevice, ModeSupport, NumaCell},
    types::PciAddress,
};

/// What a host is, before any driver of its cards is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostFacts {
    /// Kernel release.
    pub kernel: Option<String>,
    /// CPU model name.
    pub cpu_model: Option<String>,
    /// CPUs that are not like the others.
    pub cpus: HostCpus,
    /// Board or system product name.
    pub board: Option<String>,
    /// NUMA cells, lowest number first.
    pub numa_cells: Vec<NumaCell>,
    /// Display controllers and accelerators, lowest address first.
    pub cards: Vec<Device>,
    /// Network cards and NVMe drives, lowest address first.
    pub host_devices: Vec<HostDevice>,
    /// NVSwitches on PCI.
    pub nvswitches: Vec<PciAddress>,
    /// The NVLink fabric, where it is known without asking anybody.
    pub fabric: Option<Fabric>,
    /// The IOMMU.
    pub iommu: Iommu,
    /// What the kernel has loaded and how it is set.
    pub kernel_state: KernelState,
    /// Device plugins of the kubelet; absent where its folder of them is not seen.
    pub device_plugins: Option<device_plugins::DevicePlugins>,
    /// What the admin's hook says of the modes of a card; it stands.
    pub hook_words: BTreeMap<PciAddress, Vec<ModeSupport>>,
    /// What could not be read, one sentence each.
    pub incomplete: Vec<String>,
    /// What kernel or firmware say that cannot be, or does not tell a card's place; one sentence each.
    pub odd: Vec<String>,
    /// Files that are there and may not be read, by path below the root.
    pub denied: Vec<String>,
}

/// The IOMMU, as sysfs shows it; the kernel's command line is not believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Iommu {
    /// Kind of the units: `dmar`, `ivhd`, `smmu3`, `virtio`.
    pub kind: Option<String>,
    /// IOMMU groups of the host, not only those of cards; absent when it could not be told, as from a
    /// capture of a part of a host.
    pub groups: Option<usize>,
    /// vfio may give devices away without any IOMMU (`vfio.enable_unsafe_noiommu_mode`); absent when
    /// the module is not loaded.
    pub no_iommu_mode: Option<bool>,
    /// vfio may give devices away without interrupt remapping
    /// (`vfio_iommu_type1.allow_unsafe_interrupts`); absent when the module is not loaded.
    pub unsafe_interrupts: Option<bool>,
}

/// What the kernel has loaded and how it is set. Each field is absent when it could not be told, as
/// from a capture of a part of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    /// Whether `vfio-pci` is loaded or built in.
    pub vfio_pci: Option<bool>,
    /// Whether `/dev/vfio/vfio` or `/dev/iommu` is there.
    pub vfio_device: Option<bool>,
    /// Whether `/dev/kvm` is there.
    pub kvm_device: Option<bool>,
    /// Whether the CPU says it can run guests (`vmx`, `svm`).
    pub cpu_virtualization: Option<bool>,
    /// The kernel's command line.
    pub command_line: Option<String>,
    /// Security modules that are active: `lockdown,capability,apparmor`.
    pub security_modules: Option<String>,
    /// SELinux: true when it enforces, false when it only warns; absent without SELinux.
    pub selinux_enforcing: Option<bool>,
    /// Version of the NVIDIA kernel module, from `/proc/driver/nvidia/version` or `/sys/module/nvidia`.
    pub nvidia_driver: Option<String>,
    /// Whether NVIDIA's module that makes vGPUs (`nvidia_vgpu_vfio`, `nvidia-vgpu-vfio`) is loaded.
    pub nvidia_vgpu_module: Option<bool>,
    /// Whether the fabric manager runs, as a service of the host or in a container.
    pub fabric_manager: Option<bool>,
    /// Whether the vGPU manager's service runs, as a service of the host or in a container.
    pub vgpu_manager_service: Option<bool>,
    /// Whether NVIDIA's driver and its services come from a container, as the GPU operator runs them.
    pub driver_in_container: bool,
}
