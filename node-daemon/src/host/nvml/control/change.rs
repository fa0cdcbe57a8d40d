//! What can be changed of a card, in words that can be kept in a file.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::layout::Place;

/// A change of a card. Instances are named by their place, never by a number: numbers are given again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// MIG on or off.
    MigMode(bool),
    /// A GPU instance, empty.
    CreateGpuInstance(Place),
    /// A compute instance.
    CreateComputeInstance {
        /// The GPU instance.
        on: Place,
        /// Number of its profile; one that takes the whole GPU instance when absent.
        profile: Option<u32>,
    },
    /// A compute instance goes. No error when it is gone.
    DestroyComputeInstance {
        /// The GPU instance.
        on: Place,
        /// Its number there.
        id: u32,
        /// It is left alone when it has another UUID than this.
        uuid: Option<String>,
    },
    /// A GPU instance goes, that has no compute instances any more. No error when it is gone.
    DestroyGpuInstance(Place),
    /// vGPUs of unlike sizes beside each other, on a card without MIG.
    MixedSize(bool),
    /// vGPUs of unlike sizes on one GPU instance. Lost with the instance.
    MixedSizeOn {
        /// The GPU instance.
        on: Place,
        /// Whether sizes may be unlike.
        mixed: bool,
    },
    /// How the vGPUs of a card without MIG share time.
    Scheduler(Scheduling),
    /// How the vGPUs of a GPU instance share time. Lost with the instance.
    SchedulerOn {
        /// The GPU instance.
        on: Place,
        /// How.
        wanted: Scheduling,
    },
    /// A capability of vGPUs (`nvmlDeviceVgpuCapability_t`) that can be set.
    VgpuCapability {
        /// Its number.
        number: u32,
        /// Its state.
        on: bool,
    },
    /// Whether the driver stays on the card when nobody uses it.
    Persistence(bool),
    /// How much power the card may draw.
    PowerLimit {
        /// In milliwatts.
        milliwatts: u32,
    },
    /// Clocks of the GPU stay between these.
    LockClocks {
        /// Lower bound in MHz.
        least_mhz: u32,
        /// Upper bound in MHz.
        most_mhz: u32,
    },
    /// Clocks as the driver wants them.
    ResetClocks,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |on: &bool| if *on { "on" } else { "off" };
        match self {
            Self::MigMode(on) => write!(f, "MIG {}", word(on)),
            Self::CreateGpuInstance(at) => write!(f, "make a GPU instance of {at}"),
            Self::CreateComputeInstance { on, .. } => write!(f, "make a compute instance on {on}"),
            Self::DestroyComputeInstance { on, id, .. } => {
                write!(f, "take away compute instance {id} of {on}")
            }
            Self::DestroyGpuInstance(at) => write!(f, "take away the GPU instance of {at}"),
            Self::MixedSize(mixed) => write!(f, "mixed sizes of vGPUs {}", word(mixed)),
            Self::MixedSizeOn { on, mixed } => write!(f, "mixed sizes of vGPUs on {on} {}", word(mixed)),
            Self::Scheduler(wanted) => write!(f, "vGPU scheduler {}", wanted.policy),
            Self::SchedulerOn { on, wanted } => write!(f, "vGPU scheduler {} on {on}", wanted.policy),
            Self::VgpuCapability { number, on } => write!(f, "vGPU capability {number} {}", word(on)),
            Self::Persistence(on) => write!(f, "persistence {}", word(on)),
            Self::PowerLimit { milliwatts } => write!(f, "power limit {milliwatts} mW"),
            Self::LockClocks { least_mhz, most_mhz } => write!(f, "clocks {least_mhz} to {most_mhz} MHz"),
            Self::ResetClocks => f.write_str("clocks of the driver's choice"),
        }
    }
}

/// How vGPUs share time. Numbers of 0 leave it to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scheduling {
    /// 1 best effort, 2 equal share, 3 fixed share (`NVML_VGPU_SCHEDULER_POLICY_…`).
    pub policy: u32,
    /// Over how many time slices the adaptive mode averages.
    pub average: u32,
    /// How often a second vGPUs take turns.
    pub frequency: u32,
}

/// A change was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// There is nothing to add.
    Plainly,
    /// The mode of MIG is set.
    Activation(Activation),
    /// A GPU instance has this number now.
    GpuInstance(u32),
    /// A compute instance is there.
    ComputeInstance {
        /// Its number in the GPU instance.
        id: u32,
        /// UUID of the MIG device that it makes.
        uuid: Option<String>,
    },
}

/// Whether a mode of MIG is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// It is.
    Done,
    /// It is set, and waits.
    Pending(Waiting),
}

/// What a mode of MIG waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Somebody uses the card: free it, and set the mode again.
    InUse,
    /// A reset that the driver cannot do by itself: reboot.
    Reset,
    /// The driver gives this return code.
    Other(u32),
}
