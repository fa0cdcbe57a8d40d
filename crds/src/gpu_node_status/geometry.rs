//! What a card's driver lists, as a geometry.

use std::collections::BTreeSet;

use gpudesk_geometry::{Engines, Geometry, Kind, Mode, Placed};

use super::{
    device::Device,
    shares::{CardUnits, MediaEngines, Placement},
};
use crate::types::ShareMode;

impl CardUnits {
    /// The units that follow from what is offered.
    pub fn of(placements: &[Placement]) -> Self {
        let span = |mode: ShareMode| {
            let of_mode = placements.iter().filter(|placement| placement.mode == mode);
            let kinds: Vec<Kind> = of_mode.map(|placement| placement.kind(0, true)).collect();
            Mode::spanned_by(kinds.iter())
        };
        let (mig, vgpu) = (span(ShareMode::Mig), span(ShareMode::Vgpu));
        Self {
            mig_memory: mig.units.clamp(0, Self::MOST_MIG),
            mig_compute: mig.slices.unwrap_or(0).clamp(0, Self::MOST_MIG),
            vgpu_region: vgpu.units.clamp(0, Self::MOST_VGPU),
        }
    }
}

impl MediaEngines {
    /// The most of one kind that is counted with. Cards have eight.
    pub const MOST: i32 = 255;

    fn counted(self) -> Engines {
        let Self { decoders, encoders, jpeg, optical_flow } = self;
        let counted = |number: i32| u16::try_from(number.clamp(0, Self::MOST)).unwrap_or(0);
        Engines([decoders, encoders, jpeg, optical_flow].map(counted))
    }
}

impl Placement {
    /// One without a legal start where there should be one fits nowhere.
    fn kind(&self, mode: u16, positioned: bool) -> Kind {
        let mut starts = if positioned && self.size > 0 { self.starts.clone() } else { vec![] };
        starts.sort_unstable();
        starts.dedup();
        Kind {
            mode,
            size: if positioned { self.size } else { 1 },
            slices: self.compute_slices,
            engines: self.engines.map(MediaEngines::counted).unwrap_or_default(),
            max_count: if positioned && starts.is_empty() { 0 } else { self.max_count },
            starts,
            places: None,
        }
    }
}

impl Device {
    /// What fits on the card: first the card as a whole, then `placements` in their order. vGPUs have a
    /// position when their sizes are `mixed`; else vGPUs of one size exclude those of another, and so
    /// does each kind of virtual function.
    pub fn geometry(&self, mixed: bool) -> Geometry {
        let whole = Kind { size: 1, max_count: 1, ..Kind::default() };
        let mut geometry = Geometry { modes: vec![Mode { units: 1, ..Mode::default() }], kinds: vec![whole] };
        let units = self.units.unwrap_or_default();
        let mut known = vec![];
        for (placement, position) in self.placements.iter().zip(0..) {
            let (length, slices, size) = match placement.mode {
                ShareMode::Mig => (Some(units.mig_memory), Some(units.mig_compute), 0),
                ShareMode::Vgpu if mixed => (Some(units.vgpu_region), None, 0),
                ShareMode::Vgpu => (None, None, placement.framebuffer_mib),
                ShareMode::VirtualFunctions | ShareMode::Passthrough => (None, None, position),
            };
            let key = (placement.mode, size);
            let number = known.iter().position(|other| *other == key).unwrap_or_else(|| {
                known.push(key);
                geometry.modes.push(Mode { units: length.unwrap_or(0), slices, ..Mode::default() });
                known.len() - 1
            });
            let kind = placement.kind(u16::try_from(number + 1).unwrap_or(u16::MAX), length.is_some());
            if let Some(mode) = geometry.modes.get_mut(number + 1).filter(|_| length.is_none()) {
                mode.units = mode.units.max(kind.max_count);
            }
            geometry.kinds.push(kind);
        }
        // Of all shares of a mode, the one that takes the whole card has all of its engines.
        for (mode, number) in geometry.modes.iter_mut().zip(0u16..).filter(|(mode, _)| mode.slices.is_some())
        {
            let of_mode = geometry.kinds.iter().filter(|kind| kind.mode == number);
            mode.engines = Mode::spanned_by(of_mode).engines;
        }
        geometry
    }

    /// The same, where only the places of the fixed layout are given, in its mode.
    pub fn fixed_geometry(&self, mode: ShareMode, mixed: bool) -> Geometry {
        let mut geometry = self.geometry(mixed);
        geometry.fix(&self.places(mode));
        geometry
    }

    /// The places of the fixed layout in the terms of the card's geometry.
    pub fn places(&self, mode: ShareMode) -> Vec<Placed> {
        let places = self.layout.iter().flat_map(|of| {
            let kind = self.kind_of(mode, &of.type_name);
            let starts = of.starts.iter().map(|start| Some(*start));
            let counted = (0..of.count.clamp(0, CardUnits::MOST_VGPU)).map(|_| None);
            starts.chain(counted).map(move |start| Placed { kind, start })
        });
        places.collect()
    }

    /// Units of the card as people count them: MIG memory units, vGPU units, else as many as of its
    /// smallest share fit, and 1 for a card given only whole.
    pub fn unit_count(&self) -> i32 {
        let CardUnits { mig_memory, vgpu_region, .. } = self.units.unwrap_or_default();
        let counts = self.placements.iter().map(|placement| placement.max_count);
        let units = if mig_memory > 0 { mig_memory } else { vgpu_region };
        if units > 0 { units } else { counts.max().unwrap_or(1).max(1) }
    }

    /// How many of them shares take, rounded up; each is its mode, its type and its start. vGPUs on one
    /// GPU instance take its units once.
    pub fn units_taken<'a>(&self, shares: impl Iterator<Item = (ShareMode, &'a str, Option<i32>)>) -> i32 {
        let total = self.unit_count();
        // In parts of a unit, for the shares of equal size need not be whole ones.
        let (mut taken, mut instances) = (0_i64, BTreeSet::new());
        let fine = 1_i64 << 20;
        for (mode, type_name, start) in shares {
            if mode == ShareMode::Mig && start.is_some() && !instances.insert((type_name, start)) {
                continue;
            }
            let offered = self.placements.iter().find(|p| p.mode == mode && p.type_name == type_name);
            taken += match offered {
                Some(placement) if start.is_some() => i64::from(placement.size) * fine,
                Some(placement) => i64::from(total) * fine / i64::from(placement.max_count.max(1)),
                None => i64::from(total) * fine,
            };
        }
        i32::try_from((taken + fine - 1) / fine).unwrap_or(total).min(total)
    }

    /// The kind of a share in the card's geometry; that past its end for one that is not listed.
    pub fn kind_of(&self, mode: ShareMode, type_name: &str) -> u16 {
        if mode == ShareMode::Passthrough {
            return 0;
        }
        let found = self.placements.iter().position(|p| p.mode == mode && p.type_name == type_name);
        found.and_then(|position| u16::try_from(position + 1).ok()).unwrap_or(u16::MAX)
    }
}
