//! What there is now: the world of the file, changed by what callers made since.

use std::{
    collections::BTreeMap,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use crate::{
    cards::{Model, Profile, TABLES, VgpuType},
    world::{self, World},
};

/// Numbers of GPU instances, in the order in which they are given: not that of counting.
const INSTANCE_IDS: [u32; 14] = [3, 4, 2, 5, 1, 6, 9, 8, 7, 10, 13, 12, 11, 14];

#[derive(Default)]
pub(crate) struct State {
    /// How often NVML was begun and not ended.
    pub(crate) begun: u32,
    /// The cards that were there when it was first begun, in the order of their index.
    pub(crate) seen: Vec<String>,
    text: String,
    complaint: String,
    pub(crate) world: Option<World>,
    pub(crate) cards: Vec<CardState>,
    objects: Vec<Object>,
    pub(crate) sets: Vec<EventSet>,
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
    pub(crate) mig: bool,
    pub(crate) mig_pending: bool,
    pub(crate) mixed_size: bool,
    pub(crate) instances: Vec<Instance>,
}

/// A GPU instance.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) id: u32,
    pub(crate) profile: u32,
    pub(crate) start: u32,
    pub(crate) compute: Vec<Compute>,
}

/// A compute instance.
#[derive(Clone, Debug)]
pub(crate) struct Compute {
    pub(crate) id: u32,
    pub(crate) start: u32,
    pub(crate) slices: u32,
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

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

pub(crate) fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Looks at the file again. A file that cannot be read leaves the world as it is: a writer may be
    /// at it.
    pub(crate) fn refresh(&mut self) {
        let read = world::text().and_then(|(file, text)| {
            if self.world.is_some() && text == self.text {
                return Ok(None);
            }
            world::parse(file, &text).map(|world| Some((text, world)))
        });
        match read {
            Ok(None) => {}
            Ok(Some((text, world))) => {
                self.text = text;
                let before = std::mem::take(&mut self.cards);
                self.cards = world.cards.iter().filter_map(|card| CardState::new(card, &before)).collect();
                self.cards.sort_by_key(|card| card.address);
                self.world = Some(world);
            }
            Err(error) => self.complain(&error.to_string()),
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
    fn new(card: &world::Card, before: &[Self]) -> Option<Self> {
        let model = TABLES.model(card.model.as_deref(), card.pci_id.as_deref(), card.prefix.as_deref());
        let (Some(model), Some(address)) = (model, Address::parse(&card.address)) else {
            eprintln!("fake NVML: no such card, or no such address: {card:?}");
            return None;
        };
        let mut state = Self {
            model,
            address,
            types: TABLES.types(model),
            mig: card.mig,
            mig_pending: card.mig_pending.unwrap_or(card.mig),
            mixed_size: card.mixed_size,
            instances: vec![],
            world: card.clone(),
        };
        // What callers made stays, unless the file says other things of it or counts a reset.
        let made = |card: &world::Card| {
            (card.resets, card.mig, card.mig_pending, card.mixed_size, card.gpu_instances.clone())
        };
        let same = before.iter().find(|other| other.address == address && made(&other.world) == made(card));
        if let Some(same) = same {
            (state.mig, state.mig_pending, state.mixed_size) = (same.mig, same.mig_pending, same.mixed_size);
            state.instances.clone_from(&same.instances);
            return Some(state);
        }
        for instance in &card.gpu_instances {
            let Some(profile) = TABLES.profiles(model).iter().find(|known| known.name == instance.profile)
            else {
                eprintln!("fake NVML: {} has no profile {}", model.name, instance.profile);
                continue;
            };
            let id = instance.id.unwrap_or_else(|| state.free_id());
            let sizes = instance.compute.clone().unwrap_or_else(|| vec![profile.compute]);
            let mut made = Instance { id, profile: profile.id, start: instance.start, compute: vec![] };
            for slices in sizes {
                made.add_compute(slices);
            }
            state.instances.push(made);
        }
        Some(state)
    }

    pub(crate) fn profile(&self, id: u32) -> Option<&'static Profile> {
        TABLES.profiles(self.model).iter().find(|profile| profile.id == id)
    }

    pub(crate) fn free_id(&self) -> u32 {
        let taken = |id: &u32| self.instances.iter().any(|instance| instance.id == *id);
        INSTANCE_IDS.into_iter().chain(15..64).find(|id| !taken(id)).unwrap_or(0)
    }

    /// MIG devices in the order of their index: largest first, which changes with each that is made.
    pub(crate) fn mig_devices(&self) -> Vec<(u32, u32)> {
        let mut devices: Vec<(u32, u32, u32, u32)> = vec![];
        for instance in &self.instances {
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

impl Instance {
    pub(crate) fn add_compute(&mut self, slices: u32) -> u32 {
        let start = self.compute.iter().map(|compute| compute.start + compute.slices).max().unwrap_or(0);
        let id = (0..64).find(|id| self.compute.iter().all(|compute| compute.id != *id)).unwrap_or(0);
        self.compute.push(Compute { id, start, slices });
        id
    }

    pub(crate) fn free_slices(&self, of: u32) -> u32 {
        of.saturating_sub(self.compute.iter().map(|compute| compute.slices).sum())
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
