//! What a desktop asks for, in the words of placement.

use std::{collections::BTreeMap, fmt, sync::Arc};

use gpudesk_crds::{
    desktop_template::{NumaPolicy, Pinning},
    gpu_node::VgpuScheduler,
    gpu_profile::Vendor,
    types::{Isolation, PageSize, PciAddress, ShareMode, VgpuSeries},
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks. What this desktop itself holds does not stand in its way.
    pub desktop: DesktopKey,
    /// Its labels, which the affinity of other desktops may name.
    pub labels: BTreeMap<String, String>,
    /// Near or apart from which other desktops.
    pub affinity: Vec<AffinityRule>,
    /// The only node that will do, because the desktop's disks are there.
    pub home: Option<String>,
    /// Where it ran last: taken again when all of it is free.
    pub previous: Option<Previous>,
    /// What it asks for, whoever it is.
    pub demand: Arc<Demand>,
}

impl Request {
    /// A share and next to nothing beside it: to learn whether there is one.
    pub fn smallest(share: &ShareRequest) -> Self {
        Self {
            desktop: DesktopKey::default(),
            labels: BTreeMap::new(),
            affinity: vec![],
            home: None,
            previous: None,
            demand: Arc::new(Demand {
                numa: NumaPolicy::None,
                cpu: CpuRequest { cores: 0, threads_per_core: 1, pinning: Pinning::Shared },
                shares: vec![share.clone()],
                ..Demand::default()
            }),
        }
    }
}

/// What is asked for, without a word on who asks: desktops of one template mostly share it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Demand {
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that are accepted.
    pub tolerations: Vec<Toleration>,
    /// Processors.
    pub cpu: CpuRequest,
    /// Memory.
    pub memory: MemoryRequest,
    /// How close they must be together.
    pub numa: NumaPolicy,
    /// Shares of GPUs, one entry per share.
    pub shares: Vec<ShareRequest>,
    /// Functions of network cards, and drives.
    pub functions: Vec<FunctionRequest>,
}

/// A taint that is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Toleration {
    /// Key of the taint.
    pub key: String,
    /// Its value; any, when there is none.
    pub value: Option<String>,
}

/// Where a desktop stands in relation to others of its namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AffinityRule {
    /// Near them or apart.
    pub relation: Relation,
    /// Label of nodes whose equal values make one place; absent: each node is a place.
    pub topology_key: Option<String>,
    /// Labels that the others have, all of them.
    pub match_labels: BTreeMap<String, String>,
    /// Whether the desktop waits when the rule cannot be kept.
    pub required: bool,
}

/// Near or apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Relation {
    /// In the same place.
    Together,
    /// In different places.
    Apart,
}

/// Where a desktop ran last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    /// The node.
    pub node: String,
    /// The card of each share, by the share's name.
    pub cards: BTreeMap<String, PreviousCard>,
}

/// A card as it was known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviousCard {
    /// UUID, where the card had one.
    pub uuid: Option<String>,
    /// Address.
    pub address: PciAddress,
}

/// A function of a network card, or a drive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FunctionRequest {
    /// Name of the interface or the disk, which the allocation repeats.
    pub name: String,
    /// What it is.
    pub kind: FunctionKind,
}

/// What is taken besides cards.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FunctionKind {
    /// A virtual function of a network card on this physical network.
    NetworkFunction {
        /// Name of the network, as the owner of the node calls it.
        physical_network: String,
    },
    /// A whole NVMe drive.
    Drive {
        /// Least size in GiB.
        minimum_gib: i64,
    },
}

/// Processors asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CpuRequest {
    /// Cores that the guest sees.
    pub cores: i32,
    /// Threads per core that the guest sees; 1 or 2.
    pub threads_per_core: i32,
    /// Whether each vCPU has a host CPU of its own, and what becomes of the CPU's core.
    pub pinning: Pinning,
}

impl CpuRequest {
    /// vCPUs.
    pub fn vcpus(&self) -> i64 {
        i64::from(self.cores) * i64::from(self.threads_per_core)
    }
}

/// Memory asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MemoryRequest {
    /// Size in MiB.
    pub mib: i64,
    /// Pages behind it.
    pub pages: PageSize,
    /// Whether ordinary pages will do where the hugepages do not suffice.
    pub allow_fallback: bool,
}

/// One share of a GPU asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    /// Position in the profile's list.
    pub index: usize,
    /// What is taken.
    pub share: Share,
}

/// What is taken of a card.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Share {
    /// All of it.
    Passthrough,
    /// A time-sliced vGPU, with these parameters of the driver.
    Vgpu(VgpuWish, BTreeMap<String, String>),
    /// A vGPU on a GPU instance of exactly this MIG profile.
    Mig {
        /// Profile as the driver prints it, with `+gfx` where graphics is asked for.
        profile: String,
        /// Series of the vGPU.
        series: VgpuSeries,
        /// Framebuffer of the vGPU in MiB, where it shares the GPU instance with others of its
        /// size; absent for the vGPU that fills it.
        framebuffer_mib: Option<i64>,
    },
    /// A virtual function.
    VirtualFunction {
        /// Least framebuffer in MiB.
        framebuffer_mib: i64,
    },
}

/// Which vGPU types will do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// What it isolates: a vGPU that shares its GPU instance shares the engines in time.
    pub fn isolation(&self) -> Isolation {
        match self {
            Self::Mig { profile: _, series: _, framebuffer_mib: Some(_) } => Isolation::TimeSliced,
            Self::Passthrough
            | Self::Vgpu(..)
            | Self::Mig { profile: _, series: _, framebuffer_mib: None }
            | Self::VirtualFunction { framebuffer_mib: _ } => self.mode().isolation(),
        }
    }

    /// The mode in which the card must be.
    pub fn mode(&self) -> ShareMode {
        match self {
            Self::Passthrough => ShareMode::Passthrough,
            Self::Vgpu(..) => ShareMode::Vgpu,
            Self::Mig { profile: _, series: _, framebuffer_mib: _ } => ShareMode::Mig,
            Self::VirtualFunction { framebuffer_mib: _ } => ShareMode::VirtualFunctions,
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passthrough => f.write_str("a whole card"),
            Self::Vgpu(VgpuWish::Type(name), _) => f.write_str(name),
            Self::Vgpu(VgpuWish::Size { series, min, max }, _) if min == max => {
                write!(f, "a {min} MiB {} vGPU", series_letter(*series))
            }
            Self::Vgpu(VgpuWish::Size { series, min, max }, _) => {
                write!(f, "a {min}-{max} MiB {} vGPU", series_letter(*series))
            }
            Self::Mig { profile, series: _, framebuffer_mib: None } => f.write_str(profile),
            Self::Mig { profile, series, framebuffer_mib: Some(size) } => {
                write!(f, "a {size} MiB {} vGPU on {profile}", series_letter(*series))
            }
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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
    /// How its vGPUs must share time.
    pub scheduler: Option<VgpuScheduler>,
    /// Least number of screens that it must drive.
    pub heads: Option<i32>,
}
