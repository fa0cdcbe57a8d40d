//! What is there now of one card. Pure data.

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node::VgpuScheduler,
    gpu_node_status::{MigMode, ResizableBar},
    types::PciAddress,
};
use gpudesk_inventory::scan::DriveNow;

use super::{
    VFIO,
    control::{GpuInstanceSeen, PowerSeen},
    network::NetworkNow,
    step::Quota,
};

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// Class and subclass, four hexadecimal digits.
    pub class: String,
    /// Vendor id, four hexadecimal digits.
    pub vendor: String,
    /// Device id, four hexadecimal digits.
    pub device: String,
    /// The driver bound.
    pub driver: Option<String>,
    /// The only driver that may be bound.
    pub driver_override: Option<String>,
    /// Whether it may lose its power altogether.
    pub d3cold: Option<bool>,
    /// `on` or `auto`.
    pub power: Option<String>,
    /// Its reset methods, in the kernel's order.
    pub reset_methods: Vec<String>,
    /// A process that has one of its device nodes open.
    pub held_by: Option<u32>,
    /// NVIDIA's driver keeps it from being opened, until it is unbound.
    pub locked: bool,
}

impl Function {
    /// Whether the driver that gives functions to guests has it, or a variant of it.
    pub fn is_vfio(&self) -> bool {
        self.driver.as_deref().is_some_and(|driver| driver.contains("vfio"))
    }

    /// Whether it is a drive that the host's own driver has.
    pub fn has_namespaces(&self) -> bool {
        self.class.starts_with("0108") && self.driver.as_deref() == Some("nvme")
    }

    /// Whether `vfio-pci` itself has it.
    pub fn is_given(&self) -> bool {
        self.driver.as_deref() == Some(VFIO)
    }
}

/// A type of mediated device that a function offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MdevType {
    /// Name of its folder: `nvidia-222`.
    pub id: String,
    /// Its name, as placements have it.
    pub name: String,
    /// How many more of it can be made.
    pub available: i32,
}

/// A mediated device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mdev {
    /// Its UUID.
    pub uuid: String,
    /// The function that carries it.
    pub parent: PciAddress,
    /// The driver's name of its type.
    pub type_id: Option<String>,
    /// What it was asked for, where it can be asked.
    pub params: Option<String>,
    /// A process that has it open.
    pub held_by: Option<u32>,
}

/// What a virtual function says of the vGPU on it, by vendor-specific VFIO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VendorVgpu {
    /// Number of its type; 0 when free, `None` when it cannot be told.
    pub current: Option<u32>,
    /// Types that can be made on it now, by number.
    pub creatable: BTreeMap<u32, String>,
    /// Its start.
    pub placement: Option<i32>,
    /// The GPU instance under it.
    pub gpu_instance: Option<i32>,
    /// What it was asked for, where it can be asked.
    pub params: Option<String>,
}

/// What a virtual function may take of its card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuotaSeen {
    /// The driver has no such quota.
    None,
    /// So much.
    Value(u32),
    /// It does not tell, and why.
    Unclear(String),
}

/// Quotas of a virtual function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Its number on the card, from 1.
    pub number: u32,
    /// Milliseconds of a turn.
    pub exec_quantum: QuotaSeen,
    /// Microseconds until it must give way.
    pub preempt_timeout: QuotaSeen,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { number: 0, exec_quantum: QuotaSeen::None, preempt_timeout: QuotaSeen::None }
    }
}

impl Quotas {
    /// One of them.
    pub fn of(&self, quota: Quota) -> &QuotaSeen {
        match quota {
            Quota::ExecQuantum => &self.exec_quantum,
            Quota::PreemptTimeout => &self.preempt_timeout,
        }
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, quota: Quota) -> &mut QuotaSeen {
        match quota {
            Quota::ExecQuantum => &mut self.exec_quantum,
            Quota::PreemptTimeout => &mut self.preempt_timeout,
        }
    }
}

/// A virtual function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualFunction {
    /// The function.
    pub function: Function,
    /// Whether it has an IOMMU group for itself.
    pub alone: bool,
    /// Its vGPU, by vendor-specific VFIO.
    pub vgpu: Option<VendorVgpu>,
    /// The mediated devices that it offers.
    pub mdev_types: Vec<MdevType>,
    /// What it may take of its card.
    pub quotas: Quotas,
}

/// Virtual functions of a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sriov {
    /// That can be on.
    pub total: u32,
    /// That are on.
    pub on: u32,
    /// Whether new ones are given to drivers.
    pub autoprobe: Option<bool>,
    /// Whether the driver has quotas for each.
    pub quotas: bool,
}

/// The memory region of a card that can be resized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResizableRegion {
    /// Its size now in MiB; `None` when it has no address.
    pub mib: Option<i64>,
    /// Its number, and the sizes that it can have.
    pub bar: ResizableBar,
}

/// What the driver's library says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// MIG mode; `None` without MIG.
    pub mig: Option<MigMode>,
    /// Its GPU instances.
    pub gpu_instances: Vec<GpuInstanceSeen>,
    /// Whether sizes may stand side by side; `None` where they never can.
    pub mixed_size: Option<bool>,
    /// How vGPUs share its time; `None` where that cannot be set.
    pub scheduler: Option<VgpuScheduler>,
    /// Persistence mode.
    pub persistence: Option<bool>,
    /// How much power it may draw; `None` where it has no limit.
    pub power: Option<PowerSeen>,
}

/// One card and its IOMMU group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a card has many things that are so or not")]
pub struct LiveCard {
    /// The card itself.
    pub function: Function,
    /// Whether the configuration of the card tells what it is: one that is lost answers with ones alone.
    pub answers: bool,
    /// Whether the firmware shows the host's own screen on it.
    pub boot_vga: bool,
    /// Number of its IOMMU group.
    pub group: Option<i32>,
    /// The other functions in its group but bridges.
    pub members: Vec<Function>,
    /// Its memory region that can be resized.
    pub resizable: Option<ResizableRegion>,
    /// Its virtual functions in numbers; `None` when it can have none.
    pub sriov: Option<Sriov>,
    /// Its virtual functions.
    pub virtual_functions: Vec<VirtualFunction>,
    /// The mediated devices that the card itself offers.
    pub mdev_types: Vec<MdevType>,
    /// Mediated devices on it and on its virtual functions.
    pub mdevs: Vec<Mdev>,
    /// What the driver's library says; nothing while it does not answer.
    pub control: Control,
    /// Why it does not answer.
    pub control_fault: Option<String>,
    /// UUID, where its driver tells it.
    pub uuid: Option<String>,
    /// Another card of its group that carries something for somebody, with what.
    pub along_in_use: Option<(PciAddress, String)>,
    /// What the host does with it, where it is a drive that the host's own driver has.
    pub drive: Option<DriveNow>,
    /// What its network card says of it, where it is a virtual function of one; or why that cannot be told.
    pub network: Option<Result<NetworkNow, String>>,
    /// Whether `vfio-pci` is loaded.
    pub has_vfio: bool,
    /// Whether `pci-pf-stub` is loaded.
    pub has_stub: bool,
}

impl LiveCard {
    /// The card and the others of its group.
    pub fn all(&self) -> impl Iterator<Item = &Function> {
        std::iter::once(&self.function).chain(&self.members)
    }

    /// A function of the card, of its group or of its virtual ones.
    pub fn find(&self, address: PciAddress) -> Option<&Function> {
        let virtual_ones = self.virtual_functions.iter().map(|vf| &vf.function);
        self.all().chain(virtual_ones).find(|function| function.address == address)
    }

    /// A virtual function.
    pub fn virtual_function(&self, address: PciAddress) -> Option<&VirtualFunction> {
        self.virtual_functions.iter().find(|vf| vf.function.address == address)
    }

    /// Whether a vGPU is there, whoever made it.
    pub fn vgpu(&self) -> Option<String> {
        let typed = |vf: &&VirtualFunction| vf.vgpu.as_ref().is_some_and(|vgpu| vgpu.current != Some(0));
        let typed = self.virtual_functions.iter().find(typed).map(|vf| vf.function.address.to_string());
        typed.or_else(|| self.mdevs.first().map(|mdev| mdev.uuid.clone()))
    }
}
