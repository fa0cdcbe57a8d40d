//! The seam to the GPU drivers of the host: what cards offer, what exists on them, making and
//! unmaking shares.
//!
//! Calls block; callers run them off the async threads.

use std::{collections::BTreeMap, fmt, sync::Arc};

use gpudesk_crds::{
    AllocationId, GpuNodeSpec,
    gpu_node::VgpuScheduler,
    gpu_node_status::{Framework, Instance},
    types::{PciAddress, ShareMode},
};
use gpudesk_inventory::{
    simulated::uuid,
    status::{CardState, HeldShare},
    topology::HostFacts,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Notify;

use crate::{
    devices::{network::NetworkWish, notices::Notice},
    foreign_domains::ForeignDomains,
    partition::{Refusal, Share},
};

/// Identity of a share that gpudesk makes: the desktop and the name of its request. Making the same
/// one twice gives the first back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceKey {
    /// UID of the Desktop.
    pub desktop_uid: String,
    /// Name of the request, as in `status.allocation.gpus`.
    pub request: String,
}

impl fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.desktop_uid, self.request)
    }
}

/// What of a host is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// A card, or a share of one.
    #[default]
    Card,
    /// A whole NVMe drive.
    Drive,
    /// A virtual function of a network card, with what that is told of it.
    Network(NetworkWish),
}

impl What {
    /// Whether it is of a card.
    pub fn is_card(&self) -> bool {
        matches!(self, Self::Card)
    }
}

/// A share to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedInstance {
    /// Its identity.
    pub key: InstanceKey,
    /// The desktop, as `namespace/name`.
    pub owner: String,
    /// The decision that it is made for; decisions of versions without ids have none.
    pub allocation: Option<AllocationId>,
    /// The card.
    pub card: PciAddress,
    /// What it is.
    pub share: Share,
    /// How a vGPU is set up.
    pub setup: Setup,
    /// The partition of the NVLink fabric that it is to be in, of a whole card.
    pub partition: Option<WantedPartition>,
    /// What of the host it is of.
    pub what: What,
}

/// What is set of a vGPU besides its type and place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Setup {
    /// How the vGPUs beside it share time with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<VgpuScheduler>,
    /// Parameters in the driver's words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, String>,
}

impl Setup {
    /// Whether nothing is set.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A partition of the NVLink fabric that the whole cards of a desktop form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WantedPartition {
    /// Its number.
    pub id: u32,
    /// All its cards.
    pub cards: Vec<PciAddress>,
}

/// A share that exists. Made by [`GpuDriver::create`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuInstance {
    /// Its identity.
    pub key: InstanceKey,
    /// The desktop, as `namespace/name`.
    pub owner: String,
    /// The card.
    pub card: PciAddress,
    /// Mode.
    pub mode: ShareMode,
    /// Type as in the card's placements.
    pub type_name: String,
    /// The vGPU type on the GPU instance, in mode `Mig`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vgpu_type: Option<String>,
    /// Start position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<i32>,
    /// UUID of the MIG instance, the same for all vGPUs on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig_uuid: Option<String>,
    /// Number of the GPU instance, the same for all vGPUs on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<i32>,
    /// Size in MiB of the memory region of the card that can be resized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bar_mib: Option<i64>,
    /// What the guest is given.
    pub handle: Handle,
    /// Other functions that go to the guest with it: those of the card's IOMMU group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub companions: Vec<PciAddress>,
    /// It holds its place, and cannot be used: it is being made, put back or unmade.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
}

/// What a guest is given of a card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Handle {
    /// A mediated device with this UUID.
    Mdev(String),
    /// A PCI function.
    Function(PciAddress),
    /// Nothing yet.
    NotYet,
}

impl GpuInstance {
    /// The share that it is.
    pub fn share(&self) -> Share {
        Share {
            mode: self.mode,
            type_name: self.type_name.clone(),
            vgpu_type: self.vgpu_type.clone(),
            start: self.start,
        }
    }

    /// As the API shows it. Its identity is that of what the guest is given, for several vGPUs can be
    /// on one MIG instance.
    pub fn api(&self) -> Instance {
        Instance {
            id: match &self.handle {
                Handle::Mdev(uuid) => uuid.clone(),
                Handle::Function(address) => address.to_string(),
                Handle::NotYet => uuid(&["share", &self.key.desktop_uid, &self.key.request]).to_string(),
            },
            type_name: self.type_name.clone(),
            mode: self.mode,
            vgpu_type: self.vgpu_type.clone(),
            start: self.start,
            virtual_function: match &self.handle {
                Handle::Function(address) if *address != self.card => Some(*address),
                Handle::Function(_) | Handle::Mdev(_) | Handle::NotYet => None,
            },
            gpu_instance: self.gpu_instance,
            owner: Some(self.owner.clone()),
        }
    }

    /// The share on its card, for the status of the `GpuNode`.
    pub fn held(&self) -> HeldShare {
        HeldShare { card: self.card, instance: self.api() }
    }
}

/// Why a driver did not do what was asked.
#[derive(Debug, Error)]
pub enum GpuError {
    /// There is no such card.
    #[error("the host has no card at {0}")]
    NoSuchCard(PciAddress),
    /// A rule of the card refuses.
    #[error("{card}: {source}")]
    Refused {
        /// The card.
        card: PciAddress,
        /// The rule.
        source: Refusal,
    },
    /// No function or device is left to give away.
    #[error("{0}: no virtual function is left")]
    NoFunctionLeft(PciAddress),
    /// A share with this identity exists and is another one.
    #[error("{key} exists as {existing}, which is not what was asked for")]
    Differs {
        /// The identity.
        key: InstanceKey,
        /// What exists.
        existing: String,
    },
    /// What exists could not be read or noted down.
    #[error("{what}: {source}")]
    State {
        /// What was being done, with the file.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Nothing drives the cards here.
    #[error("nothing makes shares of cards here: {0}")]
    NotDriven(PciAddress),
    /// The card is not given now, for something of it is in use, foreign, or does not work.
    #[error("{card}: {source}")]
    Unfit {
        /// The card.
        card: PciAddress,
        /// Why.
        source: crate::devices::Refusal,
    },
    /// Nothing is changed on the card.
    #[error("{card}: {why}")]
    Unable {
        /// The card.
        card: PciAddress,
        /// Why.
        why: String,
    },
    /// The kernel or the driver refused a step.
    #[error("{step}: {why}")]
    Step {
        /// The card.
        card: PciAddress,
        /// What was being done.
        step: String,
        /// What they said.
        why: String,
    },
    /// The card is worked on, and the kernel or the driver has not come back.
    #[error("{card} is being waited for: {what}, since {since}")]
    Waiting {
        /// The card.
        card: PciAddress,
        /// What is being done.
        what: String,
        /// Since when.
        since: Timestamp,
    },
}

impl GpuError {
    /// The card that cannot give a share, when that is it.
    pub fn card(&self) -> Option<PciAddress> {
        match self {
            Self::NoSuchCard(card)
            | Self::Refused { card, .. }
            | Self::NoFunctionLeft(card)
            | Self::NotDriven(card)
            | Self::Unfit { card, .. }
            | Self::Unable { card, .. }
            | Self::Step { card, .. } => Some(*card),
            Self::Differs { .. } | Self::State { .. } | Self::Waiting { .. } => None,
        }
    }
}

/// What is counted of the cards of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CardFigures {
    /// Resets between users since the daemon began, by method and whether they succeeded.
    pub resets: BTreeMap<(String, bool), u64>,
    /// Cards that nobody gets before they are seen healthy.
    pub quarantined: usize,
}

/// What drives the cards of a host.
pub trait GpuDriver: Send + Sync {
    /// Version of the driver, when there is one.
    fn version(&self) -> Option<String>;

    /// Every share that exists, ours and others'.
    ///
    /// # Errors
    /// [`GpuError::State`] when it cannot be told; that is not "none".
    fn instances(&self) -> Result<Vec<GpuInstance>, GpuError>;

    /// Makes a share, or gives back the one with this identity.
    ///
    /// # Errors
    /// A refusal of the card, or that it could not be noted down; then nothing was made.
    fn create(&self, wanted: &WantedInstance) -> Result<GpuInstance, GpuError>;

    /// Unmakes a share; one that is not there counts as unmade. A GPU instance goes with the last vGPU
    /// on it.
    ///
    /// # Errors
    /// [`GpuError::State`]; the share then still exists.
    fn destroy(&self, key: &InstanceKey) -> Result<(), GpuError>;

    /// Fills in what cards do not tell while desktops have them, and remembers what was seen.
    fn complete(&self, _facts: &mut HostFacts) {}

    /// Why cards are given to nobody now, in one sentence each.
    fn withheld(&self, _facts: &HostFacts) -> BTreeMap<PciAddress, String> {
        BTreeMap::new()
    }

    /// What is known of cards beside what is found on them. `domains` are those that are not of gpudesk, by the
    /// devices that they have: a PCI address, or the UUID of a mediated device.
    fn states(&self, _facts: &HostFacts, _domains: &ForeignDomains) -> BTreeMap<PciAddress, CardState> {
        BTreeMap::new()
    }

    /// Begins to take over what the annotation of the admin names, and says, a sentence each, what of it is not so.
    /// Returns at once.
    fn adopt(&self, annotation: Option<&str>, _facts: &HostFacts, _domains: &ForeignDomains) -> Vec<String> {
        let nothing = "no card of this host has anything that was made by hand: take the annotation away";
        annotation.map(|_| nothing.into()).into_iter().collect()
    }

    /// What is counted of cards.
    fn figures(&self) -> CardFigures {
        CardFigures::default()
    }

    /// What is to be told of cards, oldest first.
    fn notices(&self) -> Vec<Notice> {
        vec![]
    }

    /// These were told.
    fn told(&self, _told: &[Notice]) {}

    /// Begins what is to be done without being asked, within what the owner of the host says. Returns at once.
    fn settle(&self, _spec: &GpuNodeSpec) {}

    /// Has somebody told when what it says changes by itself.
    fn wake(&self, _changed: Arc<Notify>) {}
}

/// For a host whose cards are only shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDriver;

impl GpuDriver for NoDriver {
    fn version(&self) -> Option<String> {
        None
    }

    fn instances(&self) -> Result<Vec<GpuInstance>, GpuError> {
        Ok(vec![])
    }

    fn create(&self, wanted: &WantedInstance) -> Result<GpuInstance, GpuError> {
        Err(GpuError::NotDriven(wanted.card))
    }

    fn destroy(&self, _: &InstanceKey) -> Result<(), GpuError> {
        Ok(())
    }
}

/// Whether shares of this framework are mediated devices.
pub fn is_mdev(framework: Option<Framework>) -> bool {
    matches!(framework, Some(Framework::Mdev))
}
