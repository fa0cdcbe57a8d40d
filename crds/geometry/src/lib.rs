//! What fits on a card, as far as room goes: which shares, of what length, from which positions, beside
//! which others.
//!
//! All of it follows from what the card's driver lists. Whether a layout is legal does not depend on the
//! order in which it came to be.
#![forbid(unsafe_code)]

mod arrange;
#[cfg(test)]
mod tests;

pub use arrange::NoLayout;

/// Everything that a card offers, in all its modes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Modes that exclude each other: a card with shares of one has none of another.
    pub modes: Vec<Mode>,
    /// Shares on offer.
    pub kinds: Vec<Kind>,
}

/// A way to divide a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mode {
    /// Length of the card in units: MIG memory units, vGPU placement units. For shares without a
    /// position how many of the smallest fit; 1 for a card given away whole.
    pub units: i32,
    /// Compute slices, where they limit too.
    pub slices: Option<i32>,
    /// Media engines, where they limit too.
    pub engines: Engines,
}

/// Media engines: decoders, encoders, JPEG and optical flow engines. A number of 0 in a mode limits nothing:
/// nobody told it, and a card without such engines has no share that takes one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Engines(pub [u16; 4]);

impl Engines {
    const NAMES: [&str; 4] = ["decoders", "encoders", "JPEG engines", "optical flow engines"];

    /// Whether there are none.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    fn and(mut self, other: Self) -> Self {
        for (sum, other) in self.0.iter_mut().zip(other.0) {
            *sum = sum.saturating_add(other);
        }
        self
    }

    /// Whether `one` finds room in what `used` leaves of these.
    pub fn hold(self, used: Self, one: Self) -> bool {
        self.room_for(used, one).is_ok()
    }

    /// How often `one` finds room in what `used` leaves of these, at least once.
    ///
    /// # Errors
    /// [`Misfit::Engines`] with the first that are too few.
    fn room_for(self, used: Self, one: Self) -> Result<i32, Misfit> {
        let mut most = i32::MAX;
        for (position, wanted) in one.0.iter().enumerate().filter(|(_, wanted)| **wanted > 0) {
            let all = self.0[position];
            let free = all.saturating_sub(used.0[position]);
            if all > 0 && free < *wanted {
                let (wanted, free) = (i32::from(*wanted), i32::from(free));
                return Err(Misfit::Engines { which: Self::NAMES[position], wanted, free });
            }
            if all > 0 {
                most = most.min(i32::from(free / wanted));
            }
        }
        Ok(most)
    }
}

/// A share on offer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Position of its mode in [`Geometry::modes`].
    pub mode: u16,
    /// Length in units.
    pub size: i32,
    /// Compute slices; 0 where they do not matter.
    pub slices: i32,
    /// Media engines that are its own; none where nobody told them.
    pub engines: Engines,
    /// Legal starts, ascending; empty when only the number counts.
    pub starts: Vec<i32>,
    /// How many fit on an empty card.
    pub max_count: i32,
    /// Of a kind without positions, how many the owner of the card lets be there; absent where he sets no number.
    pub places: Option<i32>,
}

/// A share on a card. vGPUs on one GPU instance are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Placed {
    /// Position in [`Geometry::kinds`]; past its end for a share that the card does not list.
    pub kind: u16,
    /// First unit; absent when the kind has no positions, or nobody knows it.
    pub start: Option<i32>,
}

/// What is left in the mode of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The mode, once something is placed.
    pub mode: Option<u16>,
    /// Units in use.
    pub units: i32,
    /// Compute slices in use.
    pub slices: i32,
    /// Media engines in use.
    pub engines: Engines,
}

/// Why a share does not fit. A number is the position of the share that is in the way. The later, the nearer
/// it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Misfit {
    /// The card has no such kind.
    NotOffered,
    /// One of another mode, or that the card does not list.
    Excluded(usize),
    /// As many as fit are there.
    Full,
    /// It cannot start there.
    Start,
    /// One that lies there, or could.
    InTheWay(usize),
    /// Only so many compute slices are free.
    Slices(i32),
    /// Others have the media engines.
    Engines {
        /// Which.
        which: &'static str,
        /// How many it takes.
        wanted: i32,
        /// How many are free.
        free: i32,
    },
}

/// A vGPU on a GPU instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnInstance {
    /// Framebuffer in MiB.
    pub framebuffer_mib: i64,
    /// How many of its type one instance holds.
    pub max: i32,
}

/// Why a vGPU cannot join a GPU instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoJoin {
    /// The one at this position has another size, or nobody knows which.
    OtherSize(usize),
    /// So many are there, and no more fit.
    Full(i32),
}

impl OnInstance {
    /// Whether it may be on a GPU instance beside those `inside`: all have one framebuffer size, and the
    /// least that any type allows is the most. `None` is one that nobody knows.
    ///
    /// # Errors
    /// Why not.
    pub fn joins(self, inside: &[Option<Self>]) -> Result<(), NoJoin> {
        let mut most = self.max;
        for (position, other) in inside.iter().enumerate() {
            let same = other.filter(|other| other.framebuffer_mib == self.framebuffer_mib);
            most = most.min(same.ok_or(NoJoin::OtherSize(position))?.max);
        }
        if i32::try_from(inside.len()).is_ok_and(|there| there < most) {
            Ok(())
        } else {
            Err(NoJoin::Full(most))
        }
    }
}

impl Mode {
    /// Units, slices and engines follow from the shares: the one that takes the whole card ends where the card
    /// does.
    pub fn spanned_by<'a>(kinds: impl Iterator<Item = &'a Kind>) -> Self {
        let (mut units, mut slices, mut whole) = (0, 0, (0, 0, Engines::default()));
        for kind in kinds {
            let end = kind.starts.iter().max().map_or(0, |last| last.saturating_add(kind.size));
            (units, slices) = (end.max(units), kind.slices.max(slices));
            whole = whole.max((kind.slices, kind.size, kind.engines));
        }
        Self { units, slices: Some(slices), engines: whole.2 }
    }
}

impl Geometry {
    /// A kind by its position.
    pub fn kind(&self, kind: u16) -> Option<&Kind> {
        self.kinds.get(usize::from(kind))
    }

    /// The mode of a kind.
    pub fn mode_of(&self, kind: &Kind) -> Mode {
        self.modes.get(usize::from(kind.mode)).copied().unwrap_or_default()
    }

    /// How many of a kind are given of an empty card: no more than its owner lets be there.
    pub fn most(&self, kind: &Kind) -> i32 {
        self.holds(kind).min(kind.places.unwrap_or(i32::MAX)).max(0)
    }

    /// How many of a kind an empty card holds, by its figures.
    pub fn holds(&self, kind: &Kind) -> i32 {
        let mode = self.mode_of(kind);
        let by_units = mode.units.checked_div(kind.size).unwrap_or(0);
        let by_slices = mode.slices.and_then(|all| all.checked_div(kind.slices)).unwrap_or(i32::MAX);
        let by_starts = if kind.starts.is_empty() { i32::MAX } else { count(kind.starts.len()) };
        let by_engines = mode.engines.room_for(Engines::default(), kind.engines).unwrap_or(0);
        by_units.min(by_slices).min(by_engines).min(by_starts).min(kind.max_count).max(0)
    }

    /// What is in use.
    pub fn room(&self, placed: &[Placed]) -> Room {
        let mut room = Room { mode: None, units: 0, slices: 0, engines: Engines::default() };
        for kind in placed.iter().filter_map(|share| self.kind(share.kind)) {
            room.mode = Some(kind.mode);
            room.units = room.units.saturating_add(kind.size);
            room.slices = room.slices.saturating_add(kind.slices);
            room.engines = room.engines.and(kind.engines);
        }
        room
    }

    /// Only these places are given from now on: at the starts named, and of kinds without positions as many as are
    /// named. What is elsewhere stays in the way for as long as it is there.
    pub fn fix(&mut self, places: &[Placed]) {
        for (kind, number) in self.kinds.iter_mut().zip(0u16..) {
            let own = || places.iter().filter(|place| place.kind == number);
            kind.starts.retain(|start| own().any(|place| place.start == Some(*start)));
            let counted = own().filter(|place| place.start.is_none()).count();
            kind.places = kind.starts.is_empty().then(|| count(counted));
        }
    }

    /// How many of the placed shares lie in the way of a kind at a start.
    pub fn in_the_way(&self, placed: &[Placed], kind: &Kind, start: i32) -> usize {
        placed.iter().filter(|other| self.is_in_the_way(**other, kind, start)).count()
    }

    /// A share whose place nobody knows could be anywhere.
    fn is_in_the_way(&self, other: Placed, kind: &Kind, start: i32) -> bool {
        let (Some(at), Some(of)) = (other.start, self.kind(other.kind)) else { return true };
        at < start.saturating_add(kind.size) && start < at.saturating_add(of.size)
    }

    /// Whether a share may be beside what is placed.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, placed: &[Placed], share: Placed) -> Result<(), Misfit> {
        let of = self.kind(share.kind).ok_or(Misfit::NotOffered)?;
        self.left(placed, share.kind, of)?;
        self.position(placed, of, share.start)?;
        self.by_room(placed, of).map(|_| ())
    }

    /// Where a kind can go on a card with these shares, lowest start first; nothing when it cannot.
    pub fn choices(&self, placed: &[Placed], kind: u16) -> Vec<Placed> {
        let Some(of) = self.kind(kind) else { return vec![] };
        if self.left(placed, kind, of).is_err() || self.by_room(placed, of).is_err() {
            return vec![];
        }
        if of.starts.is_empty() {
            return vec![Placed { kind, start: None }];
        }
        let starts = of.starts.iter().map(|start| Some(*start));
        let free = starts.filter(|start| self.position(placed, of, *start).is_ok());
        free.map(|start| Placed { kind, start }).collect()
    }

    /// How many more of a kind fit on a card with these shares, one beside the other.
    pub fn more(&self, placed: &[Placed], kind: u16) -> i32 {
        let Some(of) = self.kind(kind) else { return 0 };
        let (Ok(left), Ok(by_room)) = (self.left(placed, kind, of), self.by_room(placed, of)) else {
            return 0;
        };
        let free = of.starts.iter().copied().filter(|start| self.position(placed, of, Some(*start)).is_ok());
        left.min(by_room).min(if of.starts.is_empty() { i32::MAX } else { apart(free, of.size) })
    }

    /// How many more of a kind there may be by number, at least one. Shares without a position take equal
    /// parts of the card, so the least that any of them allows is the most.
    fn left(&self, placed: &[Placed], share: u16, of: &Kind) -> Result<i32, Misfit> {
        let counted = of.starts.is_empty();
        let room = |kind: &Kind| kind.max_count.saturating_mul(kind.size);
        let (mut most, mut used, mut same) = (room(of).min(self.mode_of(of).units), 0i32, 0);
        for (position, other) in placed.iter().enumerate() {
            let there = self.kind(other.kind).filter(|there| there.mode == of.mode);
            let there = there.ok_or(Misfit::Excluded(position))?;
            if counted && other.start.is_some() {
                // It was made while the card was divided in another way.
                return Err(Misfit::Excluded(position));
            }
            most = most.min(room(there));
            used = used.saturating_add(there.size);
            same += i32::from(other.kind == share);
        }
        let left = match most.saturating_sub(used).checked_div(of.size) {
            Some(left) if counted => left,
            _ => of.max_count.saturating_sub(same),
        };
        let left = left.min(of.places.map_or(i32::MAX, |places| places.saturating_sub(same)));
        if left > 0 && of.size > 0 { Ok(left) } else { Err(Misfit::Full) }
    }

    /// How many more of a kind the compute slices and media engines allow, at least one.
    fn by_room(&self, placed: &[Placed], of: &Kind) -> Result<i32, Misfit> {
        let mode = self.mode_of(of);
        let slices = mode.slices.filter(|_| of.slices > 0);
        if slices.is_none() && of.engines.is_none() {
            return Ok(i32::MAX);
        }
        let room = self.room(placed);
        let free = slices.map_or(i32::MAX, |all| all.saturating_sub(room.slices));
        if free < of.slices {
            return Err(Misfit::Slices(free));
        }
        let by_slices = if slices.is_some() { free / of.slices } else { i32::MAX };
        Ok(mode.engines.room_for(room.engines, of.engines)?.min(by_slices))
    }

    /// Whether a kind may start there, and nothing is in the way.
    fn position(&self, placed: &[Placed], of: &Kind, start: Option<i32>) -> Result<(), Misfit> {
        let Some(start) = start.filter(|_| !of.starts.is_empty()) else {
            return if start.is_none() && of.starts.is_empty() { Ok(()) } else { Err(Misfit::Start) };
        };
        let ends = start.saturating_add(of.size) <= self.mode_of(of).units;
        if !of.starts.contains(&start) || start < 0 || !ends {
            return Err(Misfit::Start);
        }
        match placed.iter().position(|other| self.is_in_the_way(*other, of, start)) {
            Some(position) => Err(Misfit::InTheWay(position)),
            None => Ok(()),
        }
    }
}

/// How many shares of a length stand side by side at these starts, which ascend. Of intervals of one length, the one that
/// ends first is never the wrong one to take.
fn apart(starts: impl Iterator<Item = i32>, size: i32) -> i32 {
    let (mut apart, mut end) = (0, i32::MIN);
    for start in starts {
        if start >= end {
            (apart, end) = (apart + 1, start.saturating_add(size));
        }
    }
    apart
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
