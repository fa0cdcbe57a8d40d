//! From what the kernel says of the host to its inventory. Pure: strings in, facts out.

pub mod cpu;
pub mod memory;
pub mod pci;
pub mod pci_ids;

use gpudesk_crds::gpu_node_status::{Device, NumaCell};

/// What a host is, before any driver of its cards is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostFacts {
    /// Kernel release.
    pub kernel: Option<String>,
    /// CPU model name.
    pub cpu_model: Option<String>,
    /// Board or system product name.
    pub board: Option<String>,
    /// NUMA cells, lowest number first.
    pub numa_cells: Vec<NumaCell>,
    /// Display controllers and accelerators, lowest address first.
    pub cards: Vec<Device>,
    /// Cards that drive the host's own screen, by address.
    pub boot_displays: Vec<gpudesk_crds::types::PciAddress>,
    /// IOMMU groups of the host, not only those of cards.
    pub iommu_groups: usize,
    /// What could not be read, one sentence each.
    pub incomplete: Vec<String>,
}
