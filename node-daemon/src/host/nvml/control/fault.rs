//! Why a card was not changed, or not read.

use gpudesk_crds::types::PciAddress;
use thiserror::Error;

use super::layout::Place;
use crate::host::nvml::{
    NvmlError,
    library::{CallError, code, meaning},
};

/// Why a call about one card failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NvmlFault {
    /// The driver as a whole gives no answer.
    #[error("card {card}: {error}")]
    Driver {
        /// The card.
        card: PciAddress,
        /// Why not.
        error: NvmlError,
    },
    /// A call said no.
    #[error("card {card}: {call}: {} (return code {number})", meaning(*number))]
    Call {
        /// The card.
        card: PciAddress,
        /// The function.
        call: &'static str,
        /// Its return code (`nvmlReturn_t`).
        number: u32,
    },
    /// The driver does not have the function.
    #[error(
        "card {card}: {call} is not in this version of NVIDIA's driver: it needs release {release} or later"
    )]
    Missing {
        /// The card.
        card: PciAddress,
        /// The function.
        call: &'static str,
        /// The first release that has it.
        release: u32,
    },
    /// There is no such GPU instance.
    #[error("card {card}: there is no GPU instance of {at}")]
    NoInstance {
        /// The card.
        card: PciAddress,
        /// Where it should be.
        at: Place,
    },
    /// What is there is not what was meant.
    #[error("card {card}: compute instance {id} of {on} is {found}, not {wanted}: it is left alone")]
    Another {
        /// The card.
        card: PciAddress,
        /// The GPU instance.
        on: Place,
        /// The number that both have.
        id: u32,
        /// UUID of what was meant.
        wanted: String,
        /// UUID of what is there.
        found: String,
    },
    /// The driver lists no profile for it.
    #[error("card {card}: no compute instance takes the whole of {on}")]
    NoProfile {
        /// The card.
        card: PciAddress,
        /// The GPU instance.
        on: Place,
    },
}

impl NvmlFault {
    pub(super) fn new(card: PciAddress, error: CallError) -> Self {
        match error {
            CallError::Missing(call) => Self::Missing { card, call, release: first_release(call) },
            CallError::Code { function: call, code: code::FUNCTION_NOT_FOUND } => {
                Self::Missing { card, call, release: first_release(call) }
            }
            CallError::Code { function: call, code: number } => Self::Call { card, call, number },
        }
    }

    /// The return code, where a call said no.
    pub fn number(&self) -> Option<u32> {
        match self {
            Self::Call { number, .. } => Some(*number),
            _ => None,
        }
    }

    /// Somebody uses it; that can pass.
    pub fn is_in_use(&self) -> bool {
        self.number() == Some(code::IN_USE)
    }

    /// No room is left, or somebody has the place.
    pub fn is_full(&self) -> bool {
        self.number() == Some(code::INSUFFICIENT_RESOURCES)
    }

    /// The card, or the driver, cannot do it, or not in this mode.
    pub fn not_supported(&self) -> bool {
        self.number() == Some(code::NOT_SUPPORTED) || matches!(self, Self::Missing { .. })
    }

    /// The library does not know the card: it may have come to the driver after the library was begun.
    pub fn is_unknown(&self) -> bool {
        self.number() == Some(code::NOT_FOUND)
    }

    /// Nothing works any more before a reset or a reboot.
    pub fn needs_reset(&self) -> bool {
        self.number() == Some(code::RESET_REQUIRED)
    }

    /// The card fell off the bus.
    pub fn is_lost(&self) -> bool {
        self.number() == Some(code::GPU_IS_LOST)
    }
}

/// The first release of the driver that has a function, by NVML's change log.
fn first_release(call: &str) -> u32 {
    let on_instance = call.starts_with("nvmlGpuInstance");
    match call {
        _ if call.ends_with("SchedulerState_v2") => 595,
        _ if on_instance && call.contains("Vgpu") => 575,
        _ if call.contains("Heterogeneous") || call.contains("Placements") && call.contains("VgpuType") => {
            550
        }
        "nvmlDeviceSetVgpuCapabilities" => 550,
        "nvmlDeviceSetVgpuSchedulerState" => 535,
        "nvmlDeviceGetVgpuSchedulerState" => 530,
        _ if call.ends_with("RunningProcesses_v3") => 535,
        "nvmlDeviceGetGpuInstancePossiblePlacements_v2" => 470,
        "nvmlDeviceCreateGpuInstanceWithPlacement" => 460,
        _ => 450,
    }
}
