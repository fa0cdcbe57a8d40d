//! What a card offers, as far as room goes: which shares, of what length, from which positions.

/// Everything that a card offers, in all its modes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Modes that exclude each other: a card with shares of one has none of another.
    pub modes: Vec<Mode>,
    /// Shares on offer.
    pub kinds: Vec<Kind>,
}

/// A way to divide a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mode {
    /// Length of the card in units: MIG memory units, vGPU placement units. For shares without a
    /// position how many of the smallest fit; 1 for a card given away whole.
    pub units: i32,
    /// Compute slices, where they limit too.
    pub slices: Option<i32>,
}

/// A share on offer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Position of its mode in [`Geometry::modes`].
    pub mode: u16,
    /// Length in units.
    pub size: i32,
    /// Compute slices; 0 where they do not matter.
    pub slices: i32,
    /// Legal starts, ascending; empty when only the number counts.
    pub starts: Vec<i32>,
    /// How many fit on an empty card.
    pub max_count: i32,
}

/// A share on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Placed {
    /// Position in [`Geometry::kinds`].
    pub kind: u16,
    /// First unit; absent when the kind has no positions.
    pub start: Option<i32>,
}

/// What is left in the mode of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// The mode, once something is placed.
    pub(crate) mode: Option<u16>,
    /// Units in use.
    pub(crate) units: i32,
    /// Compute slices in use.
    pub(crate) slices: i32,
}

impl Geometry {
    /// A kind by its position.
    pub fn kind(&self, kind: u16) -> Option<&Kind> {
        self.kinds.get(usize::from(kind))
    }

    /// The mode of a kind.
    pub fn mode_of(&self, kind: &Kind) -> Mode {
        self.modes.get(usize::from(kind.mode)).copied().unwrap_or(Mode { units: 0, slices: None })
    }

    /// How many of a kind an empty card holds.
    pub fn most(&self, kind: &Kind) -> i32 {
        let mode = self.mode_of(kind);
        let by_units = mode.units.checked_div(kind.size).unwrap_or(0);
        let by_slices = mode.slices.and_then(|all| all.checked_div(kind.slices)).unwrap_or(i32::MAX);
        let by_starts = if kind.starts.is_empty() {
            i32::MAX
        } else {
            i32::try_from(kind.starts.len()).unwrap_or(i32::MAX)
        };
        by_units.min(by_slices).min(by_starts).min(kind.max_count).max(0)
    }

    pub(crate) fn room(&self, placed: &[Placed]) -> Room {
        let mut room = Room { mode: None, units: 0, slices: 0 };
        for kind in placed.iter().filter_map(|share| self.kind(share.kind)) {
            room.mode = Some(kind.mode);
            room.units += kind.size;
            room.slices += kind.slices;
        }
        room
    }

    /// Whether a kind may join what is placed, positions aside.
    fn joins(&self, placed: &[Placed], share: u16) -> bool {
        let Some(kind) = self.kind(share) else { return false };
        let Room { mode, units, slices } = self.room(placed);
        let of = self.mode_of(kind);
        let same = placed.iter().filter(|other| other.kind == share).count();
        mode.is_none_or(|mode| mode == kind.mode)
            && units + kind.size <= of.units
            && of.slices.is_none_or(|all| slices + kind.slices <= all)
            && i32::try_from(same).is_ok_and(|same| same < kind.max_count)
    }

    /// How many of the placed shares lie in the way of a kind at a start.
    pub(crate) fn in_the_way(&self, placed: &[Placed], kind: &Kind, start: i32) -> usize {
        placed
            .iter()
            .filter(|other| {
                let (Some(at), Some(of)) = (other.start, self.kind(other.kind)) else { return false };
                at < start + kind.size && start < at + of.size
            })
            .count()
    }

    /// Where a kind can go on a card with these shares, lowest start first; nothing when it cannot.
    pub fn choices(&self, placed: &[Placed], kind: u16) -> Vec<Placed> {
        let Some(of) = self.kind(kind) else { return vec![] };
        if !self.joins(placed, kind) {
            return vec![];
        }
        if of.starts.is_empty() {
            return vec![Placed { kind, start: None }];
        }
        let free = of.starts.iter().filter(|start| self.in_the_way(placed, of, **start) == 0);
        free.map(|start| Placed { kind, start: Some(*start) }).collect()
    }
}
