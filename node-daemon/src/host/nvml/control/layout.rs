//! Which changes lead from what there is on a card to one more GPU instance, or to one fewer. Pure.
//!
//! The smallest set of them, and never one that touches an instance in use. Starts are always named: the
//! driver's own choice does not look ahead.

#[cfg(test)]
mod tests;

use std::fmt;

use gpudesk_geometry::{Engines, Geometry, Kind, Misfit, Mode, Placed};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Change;

/// Whether MIG is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigMode {
    /// Now.
    pub current: bool,
    /// After the next reset.
    pub pending: bool,
}

/// Where a GPU instance is, and what it is. While it is there, no other of its card has this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Number of its profile.
    pub profile: u32,
    /// First memory unit.
    pub start: i32,
    /// Length in memory units.
    pub size: i32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "profile {} at {}", self.profile, self.start)
    }
}

/// A kind of GPU instance that a card has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Number, which makes one.
    pub id: u32,
    /// Name without "MIG "; empty from old drivers. Names that differ in one character are of different
    /// profiles: compare whole ones.
    pub name: String,
    /// Compute slices.
    pub slices: i32,
    /// Length in memory units.
    pub size: i32,
    /// Where it can begin.
    pub starts: Vec<i32>,
    /// The most of it on an empty card.
    pub max: i32,
    /// Memory that programs see.
    pub memory_mib: i64,
    /// Decoders, encoders, JPEG and optical flow engines that are its own.
    pub media: [i32; 4],
    /// How many more can be made now, by the driver; absent while MIG is off.
    pub remaining: Option<i32>,
}

/// A GPU instance that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveInstance {
    /// Number, given again after it goes.
    pub id: u32,
    /// Where it is.
    pub at: Place,
    /// What is on it.
    pub compute: Vec<LiveComputeInstance>,
}

/// A compute instance that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveComputeInstance {
    /// Number in its GPU instance, given again after it goes.
    pub id: u32,
    /// Number of its profile.
    pub profile: u32,
    /// First compute slice.
    pub start: i32,
    /// Compute slices.
    pub slices: i32,
    /// UUID of the MIG device that it makes.
    pub uuid: Option<String>,
}

/// A GPU instance, and whether it may be touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The instance.
    pub instance: LiveInstance,
    /// Who uses it, or whose it is; `None` when it may go.
    pub used_by: Option<String>,
}

/// Why an instance cannot be made, or unmade.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// No such profile.
    #[error("the card has no MIG profile {id}; it has {}", known.join(", "))]
    Unknown {
        /// The number asked for.
        id: u32,
        /// What there is.
        known: Vec<String>,
    },
    /// No such start.
    #[error("{name} cannot start at {start}; legal are {legal:?}")]
    Start {
        /// The profile.
        name: String,
        /// The start asked for.
        start: i32,
        /// Every legal start.
        legal: Vec<i32>,
    },
    /// Somebody has the place.
    #[error("{name} at {start} would overlap with {other} at {other_start}, which {used_by} uses")]
    InTheWay {
        /// The profile.
        name: String,
        /// Its start.
        start: i32,
        /// The profile that is there.
        other: String,
        /// Where it starts.
        other_start: i32,
        /// Who uses it.
        used_by: String,
    },
    /// As many as fit are in use.
    #[error("{there} of {name} are in use, and the card holds {max} at most")]
    Full {
        /// The profile.
        name: String,
        /// How many are in use.
        there: usize,
        /// The most that fit.
        max: i32,
    },
    /// Compute slices are used up.
    #[error("{name} takes {wanted} compute slices and {free} are not in use")]
    Slices {
        /// The profile.
        name: String,
        /// How many it takes.
        wanted: i32,
        /// How many are free.
        free: i32,
    },
    /// Decoders and the like are used up.
    #[error("{name} takes media engines that others have: {used_by}")]
    Media {
        /// The profile.
        name: String,
        /// Who has them.
        used_by: String,
    },
    /// Several do not fit together, in whatever order.
    #[error("{} do not fit on the card beside what is in use", names.join(", "))]
    Together {
        /// The profiles.
        names: Vec<String>,
    },
    /// What should go is used.
    #[error("{name} at {start} is in use by {used_by}")]
    InUse {
        /// The profile.
        name: String,
        /// Its start.
        start: i32,
        /// Who uses it.
        used_by: String,
    },
}

/// The profiles of a card, with the rules of what fits beside what.
#[derive(Clone, Debug)]
pub struct Rules<'a> {
    profiles: &'a [Profile],
    geometry: Geometry,
}

impl<'a> Rules<'a> {
    /// The rules that follow from what the driver lists.
    pub fn new(profiles: &'a [Profile]) -> Self {
        let kind = |of: &Profile| {
            let mut starts = of.starts.clone();
            starts.sort_unstable();
            let engines = Engines(of.media.map(|number| u16::try_from(number).unwrap_or(0)));
            Kind {
                mode: 0,
                size: of.size,
                slices: of.slices,
                engines,
                starts,
                max_count: of.max,
                places: None,
            }
        };
        let kinds: Vec<Kind> = profiles.iter().map(kind).collect();
        Self { profiles, geometry: Geometry { modes: vec![Mode::spanned_by(kinds.iter())], kinds } }
    }

    /// The changes that lead to a GPU instance of this profile at this start with one compute instance that
    /// takes it whole. None when it is there already, whoever uses it: whether it may be shared is for the
    /// caller to know.
    ///
    /// # Errors
    /// When an instance in use would have to go.
    pub fn creation(
        &self,
        mode: MigMode,
        live: &[Slot],
        profile: u32,
        start: i32,
    ) -> Result<Vec<Change>, Refusal> {
        let of = self.profile(profile)?;
        let at = Place { profile, start, size: of.size };
        if !of.starts.contains(&start) {
            return Err(Refusal::Start { name: of.name.clone(), start, legal: of.starts.clone() });
        }
        let mut changes = vec![];
        if !(mode.current && mode.pending) {
            changes.push(Change::MigMode(true));
        }
        let whole = Change::CreateComputeInstance { on: at, profile: None };
        if let Some(there) = live.iter().find(|slot| slot.instance.at == at) {
            let compute = &there.instance.compute;
            if !compute.iter().any(|compute| compute.slices >= of.slices) {
                if let Some(used_by) = there.used_by.as_ref().filter(|_| !compute.is_empty()) {
                    return Err(self.in_use(at, used_by));
                }
                changes.extend(compute_goes(&there.instance));
                changes.push(whole);
            }
            return Ok(changes);
        }
        let kept: Vec<&Slot> = live.iter().filter(|slot| slot.used_by.is_some()).collect();
        self.fits(&kept, at).map_err(|misfit| self.refusal(misfit, of, start, &kept))?;
        let idle: Vec<&Slot> = live.iter().filter(|slot| slot.used_by.is_none()).collect();
        for gone in self.least(&kept, &idle, at) {
            changes.extend(gone_changes(&gone.instance));
        }
        changes.push(Change::CreateGpuInstance(at));
        changes.push(whole);
        Ok(changes)
    }

    /// The changes that take a GPU instance away, from the inside out; none when it is gone. What is left of
    /// an undoing that was cut short is what this gives for what there is then.
    ///
    /// # Errors
    /// When it is in use.
    pub fn removal(&self, live: &[Slot], at: Place) -> Result<Vec<Change>, Refusal> {
        let Some(there) = live.iter().find(|slot| slot.instance.at == at) else { return Ok(vec![]) };
        match &there.used_by {
            Some(used_by) => Err(self.in_use(at, used_by)),
            None => Ok(gone_changes(&there.instance)),
        }
    }

    /// Places for several profiles beside what is in use, in the order in which they were asked for. Looks
    /// ahead: a place is found where there is one.
    ///
    /// # Errors
    /// When they do not fit together.
    pub fn arrange(&self, used: &[Place], wanted: &[u32]) -> Result<Vec<Place>, Refusal> {
        let profiles: Vec<&Profile> = wanted.iter().map(|id| self.profile(*id)).collect::<Result<_, _>>()?;
        // The large ones have the fewest places.
        let mut order: Vec<usize> = (0..profiles.len()).collect();
        order.sort_by_key(|position| std::cmp::Reverse(profiles[*position].size));
        let mut placed = used.to_vec();
        if !self.place(&mut placed, &profiles, &order) {
            let in_use = |of: &Profile| used.iter().filter(|at| at.profile == of.id).count();
            let full = |of: &&&Profile| i32::try_from(in_use(of)).is_ok_and(|there| there >= of.max);
            if let Some(of) = profiles.iter().find(full) {
                return Err(Refusal::Full { name: of.name.clone(), there: in_use(of), max: of.max });
            }
            let names = profiles.iter().map(|profile| profile.name.clone()).collect();
            return Err(Refusal::Together { names });
        }
        let mut found: Vec<(usize, Place)> = order.into_iter().zip(placed.split_off(used.len())).collect();
        found.sort_by_key(|(position, _)| *position);
        Ok(found.into_iter().map(|(_, place)| place).collect())
    }

    fn place(&self, placed: &mut Vec<Place>, profiles: &[&Profile], order: &[usize]) -> bool {
        let Some((first, rest)) = order.split_first() else { return true };
        let of = profiles[*first];
        // A start that leaves a part of the card unused by compute slices is for the large ones: last first.
        for start in of.starts.iter().rev() {
            let at = Place { profile: of.id, start: *start, size: of.size };
            if self.fits_beside(placed, at).is_ok() {
                placed.push(at);
                if self.place(placed, profiles, rest) {
                    return true;
                }
                placed.pop();
            }
        }
        false
    }

    fn profile(&self, id: u32) -> Result<&'a Profile, Refusal> {
        let known = || self.profiles.iter().map(|profile| format!("{} ({})", profile.id, profile.name));
        let found = self.profiles.iter().find(|profile| profile.id == id);
        found.ok_or_else(|| Refusal::Unknown { id, known: known().collect() })
    }

    fn name(&self, id: u32) -> String {
        let known = self.profiles.iter().find(|profile| profile.id == id);
        known.map_or_else(|| format!("profile {id}"), |profile| profile.name.clone())
    }

    fn in_use(&self, at: Place, used_by: &str) -> Refusal {
        Refusal::InUse { name: self.name(at.profile), start: at.start, used_by: used_by.to_owned() }
    }

    fn placed(&self, at: Place) -> Placed {
        let kind = self.profiles.iter().position(|profile| profile.id == at.profile);
        Placed {
            kind: kind.and_then(|kind| u16::try_from(kind).ok()).unwrap_or(u16::MAX),
            start: Some(at.start),
        }
    }

    fn fits(&self, kept: &[&Slot], at: Place) -> Result<(), Misfit> {
        let places: Vec<Place> = kept.iter().map(|slot| slot.instance.at).collect();
        self.fits_beside(&places, at)
    }

    fn fits_beside(&self, kept: &[Place], at: Place) -> Result<(), Misfit> {
        let placed: Vec<Placed> = kept.iter().map(|at| self.placed(*at)).collect();
        self.geometry.check(&placed, self.placed(at))
    }

    /// The idle instances that must go: of all choices, one with the fewest changes.
    fn least<'s>(&self, kept: &[&'s Slot], idle: &[&'s Slot], at: Place) -> Vec<&'s Slot> {
        let cost = |choice: u32| -> usize {
            let gone = (0..idle.len()).filter(|bit| choice >> bit & 1 == 1);
            gone.map(|bit| 1 + idle[bit].instance.compute.len()).sum()
        };
        let ends = 1_u32 << idle.len().min(16);
        let mut choices: Vec<u32> = (0..ends).collect();
        choices.sort_by_key(|choice| (cost(*choice), *choice));
        let split = |choice: u32, goes: bool| {
            let bits = (0..idle.len()).filter(move |bit| (choice >> bit & 1 == 1) == goes);
            bits.map(|bit| idle[bit]).collect::<Vec<_>>()
        };
        let works = |choice: &u32| {
            let stay: Vec<&Slot> = kept.iter().copied().chain(split(*choice, false)).collect();
            self.fits(&stay, at).is_ok()
        };
        choices.into_iter().find(works).map_or_else(|| idle.to_vec(), |choice| split(choice, true))
    }

    fn refusal(&self, misfit: Misfit, of: &Profile, start: i32, kept: &[&Slot]) -> Refusal {
        let name = of.name.clone();
        let users = || {
            let names = kept.iter().filter_map(|slot| slot.used_by.as_deref());
            names.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
        };
        let same = kept.iter().filter(|slot| slot.instance.at.profile == of.id).count();
        match misfit {
            Misfit::Engines { .. } => Refusal::Media { name, used_by: users() },
            Misfit::Slices(free) => Refusal::Slices { name, wanted: of.slices, free },
            Misfit::InTheWay(position) | Misfit::Excluded(position) => {
                // One that the card does not list could be anywhere.
                let Some(other) = kept.get(position) else {
                    return Refusal::Full { name, there: same, max: of.max };
                };
                Refusal::InTheWay {
                    name,
                    start,
                    other: self.name(other.instance.at.profile),
                    other_start: other.instance.at.start,
                    used_by: other.used_by.clone().unwrap_or_default(),
                }
            }
            Misfit::Full | Misfit::Start | Misfit::NotOffered => {
                Refusal::Full { name, there: same, max: of.max }
            }
        }
    }
}

fn compute_goes(instance: &LiveInstance) -> impl Iterator<Item = Change> {
    instance.compute.iter().map(|compute| Change::DestroyComputeInstance {
        on: instance.at,
        id: compute.id,
        uuid: compute.uuid.clone(),
    })
}

fn gone_changes(instance: &LiveInstance) -> Vec<Change> {
    compute_goes(instance).chain([Change::DestroyGpuInstance(instance.at)]).collect()
}
