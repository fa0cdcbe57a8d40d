//! Whether one more share fits on a card beside those that exist: rules of modes, positions and counts.
//!
//! What fits is the card's own geometry; here it gets names. The driver has the last word; these rules
//! refuse before anything is touched, and make a simulated card as strict as a real one.

#[cfg(test)]
mod tests;

use gpudesk_crds::{
    gpu_node_status::{Device, MigBackedType},
    types::ShareMode,
};
use gpudesk_geometry::{Misfit, NoJoin, OnInstance, Placed};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A share on a card, existing or wanted. Shares of mode `Mig` with equal type and start are vGPUs on
/// one GPU instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Mode.
    pub mode: ShareMode,
    /// Type as in the card's placements; `Passthrough` for the whole card.
    pub type_name: String,
    /// The vGPU type on the GPU instance, in mode `Mig`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vgpu_type: Option<String>,
    /// Start position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    /// Others have the media engines.
    #[error("{type_name} takes media engines that others have: {wanted} {which}, of which {free} are free")]
    MediaEngines {
        /// Type asked for.
        type_name: String,
        /// Which.
        which: &'static str,
        /// How many it takes.
        wanted: i32,
        /// How many are free.
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
    /// Whether this and another share of the same card are vGPUs on one GPU instance. One without
    /// position is on no known one.
    pub fn is_on_one_instance(&self, other: &Self) -> bool {
        let key = |share: &Self| (share.mode, share.type_name.clone(), share.start);
        self.mode == ShareMode::Mig && self.start.is_some() && key(self) == key(other)
    }

    /// In the terms of the card's geometry.
    fn placed(&self, card: &Device) -> Placed {
        Placed { kind: card.kind_of(self.mode, &self.type_name), start: self.start }
    }

    /// The vGPU type on the GPU instance, as the profile under it lists it.
    fn backed<'a>(&self, card: &'a Device) -> Option<&'a MigBackedType> {
        let place = card.placements.iter().find(|p| p.mode == self.mode && p.type_name == self.type_name)?;
        place.vgpu_types.iter().find(|vgpu| Some(&vgpu.type_name) == self.vgpu_type.as_ref())
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
    let type_name = || wanted.type_name.clone();
    let unknown =
        |share: &Share| Refusal::UnknownType { mode: share.mode, type_name: share.type_name.clone() };
    let mixed = wanted.mode == ShareMode::Vgpu && wanted.start.is_some();
    if wanted.mode == ShareMode::Vgpu && existing.iter().any(|share| share.start.is_some() != mixed) {
        let (there, asked) = if mixed { ("without", "with one") } else { ("with", "without one") };
        return Err(Refusal::MixedWithEqual { type_name: type_name(), there, asked });
    }
    let geometry = card.geometry(mixed);
    let share = wanted.placed(card);
    let kind = geometry.kind(share.kind).ok_or_else(|| unknown(wanted))?;
    let mut beside: Vec<&Share> = existing.iter().collect();
    if wanted.mode == ShareMode::Mig {
        let inside: Vec<&Share> = existing.iter().filter(|share| share.is_on_one_instance(wanted)).collect();
        join(card, &inside, wanted)?;
        if !inside.is_empty() {
            return Ok(());
        }
        // What counts are GPU instances, however many vGPUs are on each.
        let is_first = |position: usize, share: &Share| {
            existing[..position].iter().all(|before| !before.is_on_one_instance(share))
        };
        beside =
            existing.iter().enumerate().filter(|(n, share)| is_first(*n, share)).map(|(_, s)| s).collect();
    }
    let layout: Vec<Placed> = beside.iter().map(|share| share.placed(card)).collect();
    let start = share.start.unwrap_or_default();
    geometry.check(&layout, share).map_err(|misfit| match misfit {
        Misfit::NotOffered => unknown(wanted),
        Misfit::Excluded(other) if geometry.kind(layout[other].kind).is_none() => unknown(beside[other]),
        Misfit::Excluded(other) => {
            Refusal::OtherSize { type_name: type_name(), other: beside[other].type_name.clone() }
        }
        Misfit::Full => Refusal::Full { type_name: type_name(), max: kind.max_count },
        Misfit::Start if share.start.is_none() => Refusal::StartMissing { type_name: type_name() },
        Misfit::Start => Refusal::IllegalStart { type_name: type_name(), start, legal: kind.starts.clone() },
        Misfit::InTheWay(other) => Refusal::Overlap {
            type_name: type_name(),
            start,
            other: beside[other].type_name.clone(),
            other_start: beside[other].start.unwrap_or(0),
        },
        Misfit::Slices(free) => Refusal::ComputeSlices { type_name: type_name(), wanted: kind.slices, free },
        Misfit::Engines { which, wanted, free } => {
            Refusal::MediaEngines { type_name: type_name(), which, wanted, free }
        }
    })
}

/// Whether the vGPU of a share may be on its GPU instance, beside those `inside` it.
fn join(card: &Device, inside: &[&Share], wanted: &Share) -> Result<(), Refusal> {
    let type_name = wanted.type_name.clone();
    let vgpu_type = wanted.vgpu_type.clone().unwrap_or_default();
    let Some(vgpu) = wanted.backed(card) else {
        let of = card.placements.iter().filter(|p| p.mode == wanted.mode && p.type_name == type_name);
        let possible: Vec<&str> =
            of.flat_map(|place| &place.vgpu_types).map(|vgpu| vgpu.type_name.as_str()).collect();
        let possible = if possible.is_empty() { "none".into() } else { possible.join(", ") };
        return Err(Refusal::VgpuType { type_name, vgpu_type, possible });
    };
    let Some(start) = wanted.start else { return Err(Refusal::StartMissing { type_name }) };
    let on = |vgpu: &MigBackedType| OnInstance {
        framebuffer_mib: vgpu.framebuffer_mib,
        max: vgpu.max_per_instance,
    };
    let others: Vec<Option<OnInstance>> = inside.iter().map(|share| share.backed(card).map(on)).collect();
    on(vgpu).joins(&others).map_err(|why| match why {
        NoJoin::OtherSize(other) => {
            let other = inside[other].vgpu_type.clone();
            let other = other.unwrap_or_else(|| "a vGPU of a type not known".into());
            Refusal::OtherSizeOnInstance { type_name, start, vgpu_type, other }
        }
        NoJoin::Full(max) => Refusal::InstanceFull { type_name, start, vgpu_type, max },
    })
}
