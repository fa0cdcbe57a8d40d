//! What the driver keeps in the kernel: it outlives the process that made it. Here it is a file beside
//! that of the world, with a lock of its own.
#![expect(clippy::disallowed_methods, reason = "adapter: reads and writes the file")]

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    cards::Architecture,
    world::{self, World},
};

/// What was made on each card, by its address.
pub(crate) type Kept = BTreeMap<String, Made>;

/// What was made on a card, and how it was set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "a card has many things that are on or off")]
pub(crate) struct Made {
    /// What the world said when it was made: another world begins anew.
    pub(crate) basis: String,
    resets: u32,
    loads: u32,
    pub(crate) mig: bool,
    pub(crate) mig_pending: bool,
    pub(crate) mixed_size: bool,
    pub(crate) instances: Vec<Instance>,
    pub(crate) scheduler: Scheduler,
    /// Capabilities of vGPUs that were set.
    pub(crate) capabilities: BTreeMap<u32, bool>,
    pub(crate) persistence: bool,
    pub(crate) power_limit: Option<u32>,
    pub(crate) locked_clocks: Option<(u32, u32)>,
}

/// A GPU instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Instance {
    pub(crate) id: u32,
    pub(crate) profile: u32,
    pub(crate) start: u32,
    pub(crate) compute: Vec<Compute>,
    pub(crate) mixed_size: bool,
    pub(crate) scheduler: Scheduler,
}

/// A compute instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Compute {
    pub(crate) id: u32,
    pub(crate) start: u32,
    pub(crate) slices: u32,
}

/// How vGPUs share time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scheduler {
    pub(crate) policy: u32,
    /// Without it, the time slice is given in nanoseconds instead of a frequency.
    pub(crate) adaptive: bool,
    pub(crate) average: u32,
    pub(crate) frequency: u32,
    pub(crate) timeslice: u32,
}

impl Default for Scheduler {
    /// Best effort.
    fn default() -> Self {
        Self { policy: 1, adaptive: false, average: 0, frequency: 0, timeslice: 2_000_000 }
    }
}

impl Made {
    /// What there is on a card of which only the world is known; instances are added to it.
    pub(crate) fn new(card: &world::Card, loads: u32) -> Self {
        Self {
            basis: Self::basis(card),
            resets: card.resets,
            loads,
            mig: card.mig,
            mig_pending: card.mig_pending.unwrap_or(card.mig),
            mixed_size: card.mixed_size,
            scheduler: Scheduler { policy: card.scheduler, ..Scheduler::default() },
            ..Self::default()
        }
    }

    pub(crate) fn basis(card: &world::Card) -> String {
        format!("{:?}", (card.mig, card.mig_pending, card.mixed_size, card.scheduler, &card.gpu_instances))
    }

    /// What is left of it after the resets and loads that the world counts. Instances and mixed sizes do
    /// not outlive one, and a MIG mode that waited begins. Only Ampere cards keep the mode when the module
    /// is loaded: it is stored in the card.
    pub(crate) fn now(mut self, card: &world::Card, loads: u32, architecture: Architecture) -> Self {
        if (self.resets, self.loads) == (card.resets, loads) {
            return self;
        }
        let mode = self.mig_pending && (self.loads == loads || architecture == Architecture::Ampere);
        let of_the_module = Self { basis: self.basis.clone(), ..Self::default() };
        if self.loads != loads {
            self = of_the_module;
        }
        let (mig, mig_pending) = (mode, mode);
        Self { resets: card.resets, loads, mig, mig_pending, mixed_size: false, instances: vec![], ..self }
    }
}

impl Instance {
    pub(crate) fn new(id: u32, profile: u32, start: u32) -> Self {
        Self { id, profile, start, compute: vec![], mixed_size: false, scheduler: Scheduler::default() }
    }

    /// The numbers of compute instances begin at 0 in each GPU instance, and are given again.
    pub(crate) fn add_compute(&mut self, slices: u32, start: u32) -> u32 {
        let id = (0..64).find(|id| self.compute.iter().all(|compute| compute.id != *id)).unwrap_or(0);
        self.compute.push(Compute { id, start, slices });
        id
    }

    /// Whether nothing is on these slices.
    pub(crate) fn is_free(&self, start: u32, slices: u32) -> bool {
        let beside = |other: &Compute| start + slices <= other.start || other.start + other.slices <= start;
        self.compute.iter().all(beside)
    }
}

/// A file beside that of the world.
fn beside(world: &Path, end: &str) -> PathBuf {
    let mut file = world.as_os_str().to_owned();
    file.push(end);
    file.into()
}

/// The text of what was made; nothing when nothing was.
pub(crate) fn text(world: &Path) -> String {
    fs::read_to_string(beside(world, ".kernel")).unwrap_or_default()
}

/// What such a text says; of one that says nothing of sense, nothing.
pub(crate) fn parse(text: &str) -> Kept {
    serde_yaml::from_str(text).unwrap_or_default()
}

/// Keeps it. Who reads meanwhile reads what was before.
pub(crate) fn write(world: &Path, text: &str) -> io::Result<()> {
    let new = beside(world, ".new");
    fs::write(&new, text)?;
    fs::rename(new, beside(world, ".kernel"))
}

/// Waits for those who change something. Over when it is dropped, or its process ends.
pub(crate) fn lock(world: &Path) -> io::Result<File> {
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(beside(world, ".lock"))?;
    lock.lock()?;
    Ok(lock)
}

/// Adds a line about a call that changes something, where the world wants one.
pub(crate) fn record(file: &Path, world: &World, line: &str) {
    let Some(recorder) = &world.recorder else { return };
    let recorder = file.parent().unwrap_or(Path::new(".")).join(recorder);
    let opened = OpenOptions::new().create(true).append(true).open(recorder);
    if let Err(error) = opened.and_then(|mut opened| opened.write_all(format!("{line}\n").as_bytes())) {
        eprintln!("fake NVML: not recorded: {error}");
    }
}
