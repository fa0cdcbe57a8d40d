//! What a desktop asks for, in the words of placement.

use std::{collections::BTreeMap, fmt};

use gpudesk_crds::{
    desktop_template::NumaPolicy,
    gpu_profile::Vendor,
    types::{PageSize, ShareMode, VgpuSeries},
};

/// Names a desktop.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DesktopKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl DesktopKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for DesktopKey {
    /// `namespace/name`, which is also how a node names the owner of an instance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything that decides where a desktop can run. Valid by construction of `desktop::validate`.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Who asks. What this desktop itself holds does not stand in its way.
    pub desktop: DesktopKey,
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// The only node that will do, because the desktop's disks are there.
    pub home: Option<String>,
    /// Processors.
    pub cpu: CpuRequest,
    /// Memory.
    pub memory: MemoryRequest,
    /// How close they must be together.
    pub numa: NumaPolicy,
    /// Shares of GPUs, one entry per share.
    pub shares: Vec<ShareRequest>,
}

/// Processors asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuRequest {
    /// Cores that the guest sees.
    pub cores: i32,
    /// Threads per core that the guest sees; 1 or 2.
    pub threads_per_core: i32,
    /// Whether each vCPU has a host CPU of its own.
    pub dedicated: bool,
}

impl CpuRequest {
    /// vCPUs.
    pub fn vcpus(&self) -> i64 {
        i64::from(self.cores) * i64::from(self.threads_per_core)
    }
}

/// Memory asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRequest {
    /// Size in MiB.
    pub mib: i64,
    /// Pages behind it.
    pub pages: PageSize,
    /// Whether ordinary pages will do where the hugepages do not suffice.
    pub allow_fallback: bool,
}

/// One share of a GPU asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ShareRequest {
    /// Name in the allocation: that of the request, with `-0`, `-1`… when it asks for several.
    pub name: String,
    /// The profile.
    pub profile: String,
    /// Ways to satisfy it, best first. Those below the profile's isolation are not among them.
    pub ways: Vec<Way>,
    /// Which cards qualify.
    pub cards: CardRequirements,
    /// Whether the emptiest card is taken first instead of the fullest.
    pub spread: bool,
}

/// One alternative of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Position in the profile's list.
    pub index: usize,
    /// What is taken.
    pub share: Share,
}

/// What is taken of a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Share {
    /// All of it.
    Passthrough,
    /// A time-sliced vGPU.
    Vgpu(VgpuWish),
    /// A vGPU that fills a GPU instance of exactly this MIG profile.
    Mig {
        /// Profile as the driver prints it, with `+gfx` where graphics is asked for.
        profile: String,
        /// Series of the vGPU.
        series: VgpuSeries,
    },
    /// A virtual function.
    VirtualFunction {
        /// Least framebuffer in MiB.
        framebuffer_mib: i64,
    },
}

/// Which vGPU types will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VgpuWish {
    /// The type of this name.
    Type(String),
    /// Any type of the series with a framebuffer within the bounds (MiB, both included), the
    /// smallest first.
    Size {
        /// Series.
        series: VgpuSeries,
        /// Least framebuffer.
        min: i64,
        /// Largest framebuffer.
        max: i64,
    },
}

impl Share {
    /// The mode in which the card must be.
    pub fn mode(&self) -> ShareMode {
        match self {
            Self::Passthrough => ShareMode::Passthrough,
            Self::Vgpu(_) => ShareMode::Vgpu,
            Self::Mig { .. } => ShareMode::Mig,
            Self::VirtualFunction { .. } => ShareMode::VirtualFunctions,
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passthrough => f.write_str("a whole card"),
            Self::Vgpu(VgpuWish::Type(name)) => f.write_str(name),
            Self::Vgpu(VgpuWish::Size { series, min, max }) if min == max => {
                write!(f, "a {min} MiB {} vGPU", series_letter(*series))
            }
            Self::Vgpu(VgpuWish::Size { series, min, max }) => {
                write!(f, "a {min}-{max} MiB {} vGPU", series_letter(*series))
            }
            Self::Mig { profile, series: _ } => f.write_str(profile),
            Self::VirtualFunction { framebuffer_mib: 0 } => f.write_str("a virtual function"),
            Self::VirtualFunction { framebuffer_mib } => {
                write!(f, "a virtual function with {framebuffer_mib} MiB")
            }
        }
    }
}

/// The letter of a series.
pub fn series_letter(series: VgpuSeries) -> char {
    match series {
        VgpuSeries::Q => 'Q',
        VgpuSeries::B => 'B',
        VgpuSeries::A => 'A',
        VgpuSeries::C => 'C',
    }
}

/// Which cards qualify. Everything that is named must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CardRequirements {
    /// Vendor.
    pub vendor: Option<Vendor>,
    /// PCI ids, `vendor:device`; one must match unless there is none.
    pub pci_ids: Vec<String>,
    /// Product names with `*`; one must match unless there is none.
    pub products: Vec<String>,
    /// Least memory of the card in MiB.
    pub minimum_memory_mib: Option<i64>,
    /// Modes that the card must support.
    pub capabilities: Vec<ShareMode>,
}
