//! Whether one more share fits on a card beside those that exist: rules of modes, positions and counts.
//!
//! The geometry comes from the card's own `placements` and `units`. The driver has the last word;
//! these rules refuse before anything is touched, and make a simulated card as strict as a real one.

mod mig;
mod vgpu;
mod virtual_functions;

#[cfg(test)]
mod tests;

use gpudesk_crds::{
    gpu_node_status::{Device, Placement},
    types::ShareMode,
};
use thiserror::Error;

/// A share on a card, existing or wanted. Shares of mode `Mig` with equal type and start are vGPUs on
/// one GPU instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Mode.
    pub mode: ShareMode,
    /// Type as in the card's placements; `Passthrough` for the whole card.
    pub type_name: String,
    /// The vGPU type on the GPU instance, in mode `Mig`.
    pub vgpu_type: Option<String>,
    /// Start position.
    pub start: Option<i32>,
}

/// Why a share cannot be on a card.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// The card cannot be used so at all.
    #[error("mode {mode} does not work on this card: {reason}")]
    NotSupported {
        /// Mode asked for.
        mode: ShareMode,
        /// Why not.
        reason: String,
    },
    /// No such type.
    #[error("the card offers no {mode} type {type_name:?}")]
    UnknownType {
        /// Mode asked for.
        mode: ShareMode,
        /// Type asked for.
        type_name: String,
    },
    /// Another mode is in use.
    #[error("the card is in mode {in_use} and cannot take a share of mode {wanted} beside it")]
    ModeInUse {
        /// Mode in use.
        in_use: ShareMode,
        /// Mode asked for.
        wanted: ShareMode,
    },
    /// No start was given where one is needed.
    #[error("{type_name} needs a start position")]
    StartMissing {
        /// Type asked for.
        type_name: String,
    },
    /// A start that the driver does not list.
    #[error("{type_name} cannot start at {start}; legal are {legal:?}")]
    IllegalStart {
        /// Type asked for.
        type_name: String,
        /// Start asked for.
        start: i32,
        /// Every legal start.
        legal: Vec<i32>,
    },
    /// Units that another share has.
    #[error("{type_name} at {start} would overlap with {other} at {other_start}")]
    Overlap {
        /// Type asked for.
        type_name: String,
        /// Start asked for.
        start: i32,
        /// Type in the way.
        other: String,
        /// Its start.
        other_start: i32,
    },
    /// As many as fit are there.
    #[error("{max} of {type_name} are on the card, and no more fit")]
    Full {
        /// Type asked for.
        type_name: String,
        /// The most that fit.
        max: i32,
    },
    /// Compute slices are used up.
    #[error("{type_name} takes {wanted} compute slices and {free} are free")]
    ComputeSlices {
        /// Type asked for.
        type_name: String,
        /// Slices it takes.
        wanted: i32,
        /// Slices free.
        free: i32,
    },
    /// The card holds another size in equal-size mode.
    #[error("the card holds {other}, and all shares on it must have its size: {type_name} has another")]
    OtherSize {
        /// Type asked for.
        type_name: String,
        /// Type on the card.
        other: String,
    },
    /// Shares with and without position on one card.
    #[error("shares on the card are {there} start positions, and {type_name} was asked {asked}")]
    MixedWithEqual {
        /// Type asked for.
        type_name: String,
        /// `with` or `without`.
        there: &'static str,
        /// `with one` or `without one`.
        asked: &'static str,
    },
    /// No vGPU was named for a GPU instance, or one that cannot live on it.
    #[error("no vGPU type {vgpu_type:?} can live on a GPU instance {type_name}; possible are: {possible}")]
    VgpuType {
        /// Type of the GPU instance.
        type_name: String,
        /// vGPU type asked for.
        vgpu_type: String,
        /// What could.
        possible: String,
    },
    /// The GPU instance holds vGPUs of another size, or of one that is not known.
    #[error(
        "the GPU instance {type_name} at {start} holds {other}, and all vGPUs on it must have its framebuffer size: {vgpu_type} cannot join"
    )]
    OtherSizeOnInstance {
        /// Type of the GPU instance.
        type_name: String,
        /// Its start.
        start: i32,
        /// vGPU type asked for.
        vgpu_type: String,
        /// vGPU type on the instance.
        other: String,
    },
    /// As many vGPUs as fit are on the GPU instance.
    #[error("the GPU instance {type_name} at {start} is full: of {vgpu_type} it holds {max} at most")]
    InstanceFull {
        /// Type of the GPU instance.
        type_name: String,
        /// Its start.
        start: i32,
        /// vGPU type asked for.
        vgpu_type: String,
        /// The most that the instance holds.
        max: i32,
    },
}

impl Share {
    /// Whether this and another share of the same card are vGPUs on one GPU instance.
    pub fn is_on_one_instance(&self, other: &Self) -> bool {
        self.mode == ShareMode::Mig && mig::is_on_one_instance(self, other)
    }
}

/// Whether `wanted` fits on `card` beside `existing`.
///
/// # Errors
/// The first rule that refuses.
pub fn admit(card: &Device, existing: &[Share], wanted: &Share) -> Result<(), Refusal> {
    if let Some(support) = card.supports.iter().find(|support| support.mode == wanted.mode)
        && !support.supported
    {
        return Err(Refusal::NotSupported {
            mode: wanted.mode,
            reason: support.reason.clone().unwrap_or_default(),
        });
    }
    if let Some(other) = existing.iter().find(|share| share.mode != wanted.mode) {
        return Err(Refusal::ModeInUse { in_use: other.mode, wanted: wanted.mode });
    }
    match wanted.mode {
        ShareMode::Passthrough if existing.is_empty() => Ok(()),
        ShareMode::Passthrough => Err(Refusal::Full { type_name: wanted.type_name.clone(), max: 1 }),
        ShareMode::Vgpu => vgpu::admit(card, existing, wanted),
        ShareMode::Mig => mig::admit(card, existing, wanted),
        ShareMode::VirtualFunctions => virtual_functions::admit(card, existing, wanted),
    }
}

/// The placement of a share.
fn placement<'a>(card: &'a Device, share: &Share) -> Result<&'a Placement, Refusal> {
    card.placements
        .iter()
        .find(|placement| placement.mode == share.mode && placement.type_name == share.type_name)
        .ok_or_else(|| Refusal::UnknownType { mode: share.mode, type_name: share.type_name.clone() })
}

/// Checks that `start` is listed and that no existing share lies there.
fn free_position(card: &Device, existing: &[Share], wanted: &Placement, start: i32) -> Result<(), Refusal> {
    if !wanted.starts.contains(&start) {
        return Err(Refusal::IllegalStart {
            type_name: wanted.type_name.clone(),
            start,
            legal: wanted.starts.clone(),
        });
    }
    for share in existing {
        let size = placement(card, share)?.size;
        // A share without position could be anywhere: it overlaps with everything.
        let other_start = share.start.unwrap_or(0);
        let other_size = if share.start.is_some() { size } else { i32::MAX };
        if start < other_start.saturating_add(other_size) && other_start < start.saturating_add(wanted.size) {
            return Err(Refusal::Overlap {
                type_name: wanted.type_name.clone(),
                start,
                other: share.type_name.clone(),
                other_start,
            });
        }
    }
    Ok(())
}

fn at_most(existing: &[Share], type_name: &str, count: usize, max: i32) -> Result<(), Refusal> {
    debug_assert!(count <= existing.len());
    if i32::try_from(count).unwrap_or(i32::MAX) >= max {
        return Err(Refusal::Full { type_name: type_name.into(), max });
    }
    Ok(())
}
