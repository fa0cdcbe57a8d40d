//! What there is now: the world of the file, changed by what callers made since.
#![expect(clippy::disallowed_methods, reason = "adapter: looks at files now and then")]

use std::{
    collections::BTreeMap,
    ffi::c_uint,
    fmt,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    answer::{Answer, OPERATING_SYSTEM},
    cards::{Model, Profile, TABLES, VgpuType},
    geometry,
    kernel::{self, Instance, Kept, Made},
    sysfs::{self, Beside},
    world::{self, World},
};

/// How old what is known of files may be, where they are many.
const MOMENT: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(crate) struct State {
    /// How often NVML was begun and not ended.
    pub(crate) begun: u32,
    /// The cards that were there when it was first begun, in the order of their index.
    pub(crate) seen: Vec<String>,
    /// The file of the world, its text, and that of what was made.
    file: PathBuf,
    text: String,
    kept: String,
    complaint: String,
    bound: Vec<Bound>,
    looked: Option<Instant>,
    pub(crate) world: Option<World>,
    pub(crate) cards: Vec<CardState>,
    objects: Vec<Object>,
    pub(crate) sets: Vec<EventSet>,
}

/// Whether the driver had a card, and how often it was given to it, when the world was last read.
struct Bound {
    sysfs: PathBuf,
    address: Address,
    was: (bool, u32),
}

impl Bound {
    fn new(sysfs: &Path, address: Address) -> Self {
        let was = (sysfs::is_bound(sysfs, address), sysfs::bindings(sysfs, address));
        Self { sysfs: sysfs.into(), address, was }
    }

    fn is_so(&self) -> bool {
        Self::new(&self.sysfs, self.address).was == self.was
    }
}

/// What a handle stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Card(String),
    GpuInstance(String, u32),
    ComputeInstance(String, u32, u32),
    MigDevice(String, u32, u32),
}

impl Object {
    pub(crate) fn address(&self) -> &str {
        match self {
            Self::Card(address)
            | Self::GpuInstance(address, _)
            | Self::ComputeInstance(address, ..)
            | Self::MigDevice(address, ..) => address,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Card(address) => f.write_str(address),
            Self::GpuInstance(address, id) => write!(f, "{address} gi {id}"),
            Self::ComputeInstance(address, instance, id) | Self::MigDevice(address, instance, id) => {
                write!(f, "{address} gi {instance} ci {id}")
            }
        }
    }
}

pub(crate) struct EventSet {
    /// Events of the world that were told, or were past when the set was made.
    pub(crate) told: usize,
    pub(crate) registered: BTreeMap<String, u64>,
    pub(crate) freed: bool,
}

/// A card.
pub(crate) struct CardState {
    pub(crate) world: world::Card,
    pub(crate) model: &'static Model,
    pub(crate) address: Address,
    pub(crate) types: Vec<VgpuType>,
    pub(crate) made: Made,
    /// What is on its virtual functions, where they can be seen.
    pub(crate) beside: Option<Beside>,
}

/// A PCI address. The function is always 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) domain: u32,
    pub(crate) bus: u32,
    pub(crate) device: u32,
}

impl Address {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (rest, _function) = text.rsplit_once('.')?;
        let mut parts = rest.rsplit(':').map(|part| u32::from_str_radix(part, 16).ok());
        let (device, bus) = (parts.next()??, parts.next()??);
        let domain = parts.next().flatten().unwrap_or(0);
        Some(Self { domain, bus, device })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.0", self.domain, self.bus, self.device)
    }
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

pub(crate) fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Looks at the files again. A file that cannot be read leaves the world as it is: a writer may be
    /// at it.
    pub(crate) fn refresh(&mut self) {
        // One look at a card is thousands of calls, and each would read many files.
        let beside = self.world.as_ref().is_some_and(|world| world.sysfs.is_some());
        if beside && self.looked.is_some_and(|looked| looked.elapsed() < MOMENT) {
            return;
        }
        self.looked = Some(Instant::now());
        let read = world::text().and_then(|(file, text)| {
            let kept = kernel::text(&file);
            let same = text == self.text && kept == self.kept;
            if same && self.world.is_some() && self.bound.iter().all(Bound::is_so) {
                return Ok(None);
            }
            let mut world = world::parse(file.clone(), &text)?;
            self.bound.clear();
            if let Some(sysfs) = world.sysfs.clone() {
                let at = |card: &world::Card| Address::parse(&card.address);
                self.bound = world.cards.iter().filter_map(at).map(|at| Bound::new(&sysfs, at)).collect();
                world.cards.retain(|card| at(card).is_some_and(|at| sysfs::is_bound(&sysfs, at)));
                for card in &mut world.cards {
                    card.resets += Address::parse(&card.address).map_or(0, |at| sysfs::bindings(&sysfs, at));
                }
            }
            Ok(Some((file, text, kept, world)))
        });
        match read {
            Ok(None) => {}
            Ok(Some((file, text, kept, world))) => {
                let made = kernel::parse(&kept);
                (self.file, self.text, self.kept) = (file, text, kept);
                let cards = world.cards.iter();
                self.cards = cards.filter_map(|card| CardState::new(card, world.loads, &made)).collect();
                self.cards.sort_by_key(|card| card.address);
                self.world = Some(world);
            }
            Err(error) => self.complain(&error.to_string()),
        }
        if let Some(sysfs) = self.world.as_ref().and_then(|world| world.sysfs.as_ref()) {
            for card in &mut self.cards {
                card.beside = Some(sysfs::look(sysfs, card.address, &card.types));
            }
        }
    }

    /// Does what changes something, as one step for every process, and keeps what comes of it.
    pub(crate) fn change(
        &mut self,
        call: &str,
        subject: usize,
        work: impl FnOnce(&mut Self) -> Answer,
    ) -> c_uint {
        let Ok(_others_wait) = kernel::lock(&self.file) else { return OPERATING_SYSTEM };
        self.looked = None;
        self.refresh();
        let of = self.object(subject).map(ToString::to_string).unwrap_or_default();
        let answer = work(self).err().unwrap_or(0);
        // What is known of cards that another driver has by now stays.
        let mut made = kernel::parse(&self.kept);
        made.extend(self.cards.iter().map(|card| (card.address.to_string(), card.made.clone())));
        let Ok(text) = serde_yaml::to_string(&made) else { return OPERATING_SYSTEM };
        if text != self.kept && kernel::write(&self.file, &text).is_err() {
            return OPERATING_SYSTEM;
        }
        self.kept = text;
        self.record(call, &of, answer);
        if let Some(sysfs) = self.world.as_ref().and_then(|world| world.sysfs.as_ref()) {
            for card in &self.cards {
                if let Err(error) = sysfs::tell(sysfs, card) {
                    eprintln!("fake NVML: {}: {error}", card.address);
                }
            }
        }
        answer
    }

    pub(crate) fn record(&self, call: &str, of: &str, answer: c_uint) {
        if let Some(world) = &self.world {
            let words: Vec<&str> = call.split_whitespace().collect();
            let (function, rest) = words.split_first().unwrap_or((&"", &[]));
            let line = [&[*function, of][..], rest].concat().join(" ");
            kernel::record(&self.file, world, &format!("{line} = {answer}"));
        }
    }

    /// Says what is wrong with the file, once.
    fn complain(&mut self, error: &str) {
        if self.complaint != error {
            eprintln!("fake NVML: {error}");
            error.clone_into(&mut self.complaint);
        }
    }

    pub(crate) fn card_at(&self, address: &str) -> Option<&CardState> {
        let address = Address::parse(address)?;
        self.cards.iter().find(|card| card.address == address)
    }

    pub(crate) fn card_at_mut(&mut self, address: &str) -> Option<&mut CardState> {
        let address = Address::parse(address)?;
        self.cards.iter_mut().find(|card| card.address == address)
    }

    /// The handle of an object, always the same one.
    pub(crate) fn handle(&mut self, object: Object) -> usize {
        let place = self.objects.iter().position(|known| *known == object).unwrap_or_else(|| {
            self.objects.push(object);
            self.objects.len() - 1
        });
        (place + 1) << 8
    }

    pub(crate) fn object(&self, handle: usize) -> Option<&Object> {
        (handle.trailing_zeros() >= 8).then_some(())?;
        self.objects.get((handle >> 8).checked_sub(1)?)
    }

    /// Whether the driver knows this version of a structure.
    pub(crate) fn knows(&self, structure: &str, version: u32) -> bool {
        let newest = self.world.as_ref().and_then(|world| world.newest.get(structure));
        newest.is_none_or(|newest| version <= *newest)
    }
}

impl CardState {
    fn new(card: &world::Card, loads: u32, kept: &Kept) -> Option<Self> {
        let model = TABLES.model(card.model.as_deref(), card.pci_id.as_deref(), card.prefix.as_deref());
        let (Some(model), Some(address)) = (model, Address::parse(&card.address)) else {
            eprintln!("fake NVML: no such card, or no such address: {card:?}");
            return None;
        };
        let made = Made::new(card, loads);
        let (types, world) = (TABLES.types(model), card.clone());
        let mut state = Self { model, address, types, made, world, beside: None };
        // What callers made stays, unless the file says other things of it.
        if let Some(kept) = kept.get(&address.to_string()).filter(|kept| kept.basis == state.made.basis) {
            state.made = kept.clone().now(card, loads, model.architecture);
            return Some(state);
        }
        for instance in &card.gpu_instances {
            let Some(profile) = TABLES.profiles(model).iter().find(|known| known.name == instance.profile)
            else {
                eprintln!("fake NVML: {} has no profile {}", model.name, instance.profile);
                continue;
            };
            let id = instance.id.unwrap_or_else(|| geometry::number_of(&state, profile, instance.start));
            let mut made = Instance::new(id, profile.id, instance.start);
            let mut start = 0;
            for slices in instance.compute.clone().unwrap_or_else(|| vec![profile.compute]) {
                made.add_compute(slices, start);
                start += slices;
            }
            state.made.instances.push(made);
        }
        Some(state)
    }

    pub(crate) fn instance(&self, id: u32) -> Option<&Instance> {
        self.made.instances.iter().find(|instance| instance.id == id)
    }

    pub(crate) fn instance_mut(&mut self, id: u32) -> Option<&mut Instance> {
        self.made.instances.iter_mut().find(|instance| instance.id == id)
    }

    pub(crate) fn type_named(&self, name: &str) -> Option<&VgpuType> {
        self.types.iter().find(|kind| kind.name == name)
    }

    /// vGPUs that were made, whether they run or not.
    pub(crate) fn vgpus(&self) -> &[world::Vgpu] {
        self.beside.as_ref().map_or(&self.world.vgpus, |beside| &beside.vgpus)
    }

    /// Those on a GPU instance.
    pub(crate) fn vgpus_on(&self, instance: u32) -> impl Iterator<Item = &world::Vgpu> {
        self.vgpus().iter().filter(move |vgpu| vgpu.gpu_instance == Some(instance))
    }

    /// Whether a process computes on a GPU instance, or on one compute instance of it.
    pub(crate) fn is_busy(&self, instance: u32, compute: Option<u32>) -> bool {
        let mut there = self.world.processes.iter().filter(|process| process.gpu_instance == Some(instance));
        there.any(|process| compute.is_none() || process.compute_instance == compute)
    }

    pub(crate) fn profile(&self, id: u32) -> Option<&'static Profile> {
        TABLES.profiles(self.model).iter().find(|profile| profile.id == id)
    }

    /// MIG devices in the order of their index: largest first, which changes with each that is made.
    pub(crate) fn mig_devices(&self) -> Vec<(u32, u32)> {
        let mut devices: Vec<(u32, u32, u32, u32)> = vec![];
        for instance in &self.made.instances {
            for compute in &instance.compute {
                devices.push((u32::MAX - compute.slices, instance.start, instance.id, compute.id));
            }
        }
        devices.sort_unstable();
        devices.into_iter().map(|(_, _, instance, compute)| (instance, compute)).collect()
    }

    pub(crate) fn uuid(&self) -> String {
        self.world.uuid.clone().unwrap_or_else(|| format!("GPU-{}", made_up(&self.world.address)))
    }

    pub(crate) fn mig_uuid(&self, instance: u32, compute: u32) -> String {
        format!("MIG-{}", made_up(&format!("{}/{}/{instance}/{compute}", self.uuid(), self.world.resets)))
    }
}

/// A UUID that follows from `text`.
pub(crate) fn made_up(text: &str) -> String {
    let hash = |seed: u64| {
        text.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    };
    let (a, b) = (hash(0), hash(0x9e37_79b9));
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xffff,
        b >> 48,
        b & 0xffff_ffff_ffff
    )
}
