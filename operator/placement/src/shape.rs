//! What all cards of one kind have in common for placement: what their driver offers and what their
//! owner allows. Thousands of cards share a few shapes.

use gpudesk_crds::{
    gpu_node::{DeviceMode, DevicePolicy, Management, VgpuPlacement, VgpuScheduler},
    gpu_node_status::{CardUnits, Device, HealthState},
    gpu_profile::params_not_allowed,
    types::{ShareMode, VgpuSeries},
};
use gpudesk_geometry::{Geometry, OnInstance};

use crate::{
    facts,
    request::{CardRequirements, Share, VgpuWish},
};

/// Type of a whole card.
pub const WHOLE_CARD: &str = "Passthrough";

/// Everything about a card that does not depend on which one it is, nor on what is taken of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// `vendor:device`, hexadecimal in lower case.
    pub pci_id: String,
    /// Product name.
    pub product: String,
    /// Memory in MiB, where it is known.
    pub memory_mib: Option<i64>,
    /// Whether it is a GPU; what is none is taken only by profiles that name it.
    pub is_gpu: bool,
    /// Why the card is out of use, if it is.
    pub refused: Option<Refused>,
    /// Which modes its owner allows.
    pub mode: DeviceMode,
    /// Whether vGPUs of different size may stand side by side.
    pub mixed: bool,
    /// Its owner fixes a layout: only the places of it are in the geometry.
    pub fixed: bool,
    /// How its vGPUs can share time.
    pub schedulers: Schedulers,
    /// Parameters of vGPUs that its owner allows: a key, or `key=value`.
    pub params: Vec<String>,
    /// Which modes the host says it can do, as it says it.
    pub supports: Vec<(ShareMode, bool)>,
    /// MIG memory units of the card; 0 without MIG.
    pub mig_memory: i32,
    /// Units of the card's region for vGPUs of mixed size; 0 when it has none.
    pub vgpu_region: i32,
    /// What fits on it: the card as a whole, then the kinds in their order.
    pub geometry: Geometry,
    /// What the driver offers, in its order.
    pub kinds: Vec<Kind>,
}

/// A share that the driver offers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Name as the driver prints it.
    pub name: String,
    /// Mode.
    pub mode: ShareMode,
    /// Framebuffer in MiB.
    pub framebuffer_mib: i64,
    /// Series of a vGPU type.
    pub series: Option<VgpuSeries>,
    /// Screens that it drives, where the driver tells.
    pub heads: Option<i32>,
    /// vGPU types that live on a GPU instance of this profile.
    pub backed: Vec<Backed>,
}

/// A vGPU type on a GPU instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backed {
    /// Name as the driver prints it.
    pub name: String,
    /// Series.
    pub series: VgpuSeries,
    /// Framebuffer in MiB.
    pub framebuffer_mib: i64,
    /// How many of it one GPU instance holds.
    pub max: i32,
}

impl Backed {
    /// As one GPU instance sees it.
    pub(crate) fn on_instance(&self) -> OnInstance {
        OnInstance { framebuffer_mib: self.framebuffer_mib, max: self.max }
    }
}

/// How vGPUs of a card can share time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Schedulers {
    /// The one that its owner wants: no other then.
    pub rule: Option<VgpuScheduler>,
    /// Those that its driver offers.
    pub offered: Vec<VgpuScheduler>,
    /// Whether a GPU instance has its own.
    pub on_instances: bool,
}

impl Schedulers {
    fn read(device: &Device, policy: Option<&DevicePolicy>) -> Self {
        let vgpu = device.vgpu.as_ref();
        let offered = vgpu.into_iter().flat_map(|vgpu| &vgpu.schedulers);
        Self {
            rule: policy.and_then(|policy| policy.vgpu_scheduler),
            offered: offered.filter_map(|name| scheduler(name)).collect(),
            on_instances: vgpu.and_then(|vgpu| vgpu.on_instances) == Some(true),
        }
    }

    /// Whether vGPUs of a mode can share time so, when none is there. Other modes have no vGPUs.
    fn can(&self, mode: ShareMode, wanted: VgpuScheduler, mixed: bool) -> bool {
        let can = self.rule.is_none_or(|rule| rule == wanted) && self.offered.contains(&wanted);
        match mode {
            ShareMode::Passthrough | ShareMode::VirtualFunctions => true,
            ShareMode::Vgpu => can && !(mixed && wanted == VgpuScheduler::FixedShare),
            ShareMode::Mig => can && self.on_instances,
        }
    }
}

/// The scheduler of a name, as a node tells it.
pub(crate) fn scheduler(name: &str) -> Option<VgpuScheduler> {
    let all = [VgpuScheduler::BestEffort, VgpuScheduler::EqualShare, VgpuScheduler::FixedShare];
    all.into_iter().find(|one| format!("{one:?}") == name)
}

/// Why a card gets no desktops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refused {
    /// Its owner keeps it.
    Unmanaged,
    /// Its health.
    Failed,
    /// A fixed layout that is not planned: the node says why.
    Layout,
    /// The node says that no desktop can have it: somebody else's machine holds it, say.
    Unavailable,
}

/// Why a card does not give a share. The later, the nearer it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoShare {
    /// The node has no card that qualifies.
    NoCard,
    /// The card is out of use.
    Refused(Refused),
    /// The owner of the card does not allow the mode.
    ModeNotAllowed,
    /// The driver does not offer the share on this card.
    NotOffered,
    /// What the card offers drives fewer screens, or does not tell.
    FewHeads,
    /// The owner of the card does not allow the parameters of the vGPU.
    ParamsNotAllowed,
    /// Cards of another board or series than the desktop's other vGPUs.
    NotTogether,
    /// The fixed layout of the card has no place for the share.
    NotInLayout,
    /// No fabric partition has these cards free.
    NoPartition,
    /// None of so many places for it in the fixed layouts of cards is free.
    LayoutTaken(i32),
    /// vGPUs of the card share time in another way, or can in no such way.
    OtherScheduler,
    /// The card has no room for it now.
    NoFreePlacement,
}

impl NoShare {
    /// The nearer of two reasons, with the places of both.
    #[must_use]
    pub fn nearer(self, other: Self) -> Self {
        match (self, other) {
            (Self::LayoutTaken(one), Self::LayoutTaken(more)) => Self::LayoutTaken(one.saturating_add(more)),
            (one, other) => one.max(other),
        }
    }
}

/// What of a shape satisfies a share: positions in [`Shape::kinds`], smallest framebuffer first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// All of the card.
    Whole,
    /// One of these kinds, each with the vGPU type on it in mode `Mig`, beside vGPUs that share time so.
    Kinds(Vec<(u16, Option<u16>)>, Option<VgpuScheduler>),
}

impl Shape {
    /// Reads a card with the rule that its owner set for it, if any.
    pub fn read(device: &Device, policy: Option<&DevicePolicy>) -> Self {
        let refused = match policy {
            Some(p) if p.management == Some(Management::Unmanaged) || p.mode == Some(DeviceMode::Host) => {
                Some(Refused::Unmanaged)
            }
            _ if device.health.state == HealthState::Failed => Some(Refused::Failed),
            Some(p) if p.layout.as_ref().is_some_and(|of| !of.is_planned_as(&device.layout)) => {
                Some(Refused::Layout)
            }
            _ if device.unavailable.is_some() => Some(Refused::Unavailable),
            _ => None,
        };
        let units = device.units.unwrap_or_default();
        let mixed = policy.and_then(|p| p.vgpu_placement) == Some(VgpuPlacement::MixedSize);
        let fixed = policy.and_then(|p| p.layout.as_ref());
        let kinds = device.placements.iter().map(|placement| {
            let backed = placement.vgpu_types.iter().map(|vgpu| Backed {
                name: vgpu.type_name.clone(),
                series: vgpu.series,
                framebuffer_mib: facts::card_memory(vgpu.framebuffer_mib),
                max: facts::units(vgpu.max_per_instance),
            });
            Kind {
                name: placement.type_name.clone(),
                mode: placement.mode,
                framebuffer_mib: facts::card_memory(placement.framebuffer_mib),
                series: placement.series,
                heads: placement.heads,
                backed: backed.collect(),
            }
        });
        Self {
            pci_id: format!("{}:{}", device.vendor_id, device.device_id).to_ascii_lowercase(),
            product: device.product.clone(),
            memory_mib: device.memory_mib.map(facts::card_memory),
            is_gpu: device.kind.is_gpu(),
            refused,
            mode: policy.and_then(|p| p.mode).unwrap_or_default(),
            mixed,
            schedulers: Schedulers::read(device, policy),
            params: policy.map(|policy| policy.vgpu_params.clone()).unwrap_or_default(),
            supports: device.supports.iter().map(|support| (support.mode, support.supported)).collect(),
            mig_memory: facts::units(units.mig_memory),
            vgpu_region: facts::units(units.vgpu_region),
            geometry: counted(match fixed {
                Some(layout) => device.fixed_geometry(layout.mode(), mixed),
                None => device.geometry(mixed),
            }),
            fixed: fixed.is_some(),
            kinds: kinds.collect(),
        }
    }

    /// Whether the card works in a mode: said so for whole cards, not denied for shares, which are
    /// offered one by one.
    pub fn supports(&self, mode: ShareMode) -> bool {
        match self.supports.iter().find(|(said, _)| *said == mode) {
            Some((_, supported)) => *supported,
            None => mode != ShareMode::Passthrough,
        }
    }

    /// The kind of a name in a mode.
    pub fn kind_of(&self, mode: ShareMode, name: &str) -> Option<u16> {
        let position = self.kinds.iter().position(|kind| kind.mode == mode && kind.name == name)?;
        u16::try_from(position).ok()
    }

    /// A kind by its position.
    pub fn kind(&self, kind: u16) -> Option<&Kind> {
        self.kinds.get(usize::from(kind))
    }

    /// How a kind fits on the card, by its position.
    pub fn extent(&self, kind: u16) -> Option<&gpudesk_geometry::Kind> {
        self.geometry.kind(kind + 1)
    }

    /// Whether the card is one of those that a profile wants.
    pub fn qualifies(&self, wanted: &CardRequirements) -> bool {
        let CardRequirements {
            vendor,
            pci_ids,
            products,
            minimum_memory_mib,
            capabilities,
            // Of what it offers.
            scheduler: _,
            heads: _,
        } = wanted;
        let of_vendor =
            |id: &str| self.pci_id.split(':').next().is_some_and(|own| own.eq_ignore_ascii_case(id));
        // A wildcard alone names nothing.
        let names_it = |glob: &String| glob.chars().any(|c| c != '*') && matches(glob, &self.product);
        (self.is_gpu
            || pci_ids.iter().any(|id| id.eq_ignore_ascii_case(&self.pci_id))
            || products.iter().any(names_it))
            && vendor.is_none_or(|vendor| of_vendor(vendor.pci_id()))
            && (pci_ids.is_empty() || pci_ids.iter().any(|id| id.eq_ignore_ascii_case(&self.pci_id)))
            && (products.is_empty() || products.iter().any(|glob| matches(glob, &self.product)))
            && minimum_memory_mib.is_none_or(|least| self.memory_mib.is_some_and(|has| has >= least))
            && capabilities.iter().all(|mode| self.supports(*mode))
    }

    /// What it offers when nothing is taken, of the first of these ways that it offers at all.
    pub fn first_offer<'a>(
        &self,
        cards: &CardRequirements,
        mut ways: impl Iterator<Item = &'a Share>,
    ) -> Option<Offer> {
        ways.find_map(|way| self.gives(cards, way).ok())
    }

    /// What of the card satisfies a share, if it is one of those that are wanted and nothing is taken of it.
    ///
    /// # Errors
    /// The reason why nothing ever does.
    pub fn gives(&self, cards: &CardRequirements, share: &Share) -> Result<Offer, NoShare> {
        if !self.qualifies(cards) {
            return Err(NoShare::NoCard);
        }
        let mut offer = self.offer(share)?;
        if let Some(least) = cards.heads {
            let enough = |kind: &u16| self.kind(*kind).is_some_and(|kind| kind.heads >= Some(least));
            match &mut offer {
                Offer::Kinds(kinds, _) if share.mode() == ShareMode::Vgpu => {
                    kinds.retain(|(kind, _)| enough(kind));
                    if kinds.is_empty() {
                        return Err(NoShare::FewHeads);
                    }
                }
                Offer::Kinds(..) | Offer::Whole => return Err(NoShare::FewHeads),
            }
        }
        if let Share::Vgpu(_, params) = share
            && !params_not_allowed(params, &self.params).is_empty()
        {
            return Err(NoShare::ParamsNotAllowed);
        }
        if let (Some(wanted), Offer::Kinds(_, scheduler)) = (cards.scheduler, &mut offer) {
            if !self.schedulers.can(share.mode(), wanted, self.mixed) {
                return Err(NoShare::OtherScheduler);
            }
            *scheduler = cards.scheduler.filter(|_| share.mode() != ShareMode::VirtualFunctions);
        }
        Ok(offer)
    }

    /// What the driver offers of a share, as far as the owner allows its mode.
    fn offer(&self, share: &Share) -> Result<Offer, NoShare> {
        if let Some(refused) = self.refused {
            return Err(NoShare::Refused(refused));
        }
        if !self.mode.allows(share.mode()) {
            return Err(NoShare::ModeNotAllowed);
        }
        if !self.supports(share.mode()) {
            return Err(NoShare::NotOffered);
        }
        let mut found: Vec<(u16, Option<u16>)> = match share {
            Share::Passthrough => return Ok(Offer::Whole),
            Share::Vgpu(wish, _) => self
                .of_mode(ShareMode::Vgpu)
                .filter(|(_, kind)| wished(kind, wish))
                .filter(|(position, _)| {
                    !self.mixed
                        || self.fixed
                        || self.extent(*position).is_some_and(|kind| !kind.starts.is_empty())
                })
                .map(|(position, _)| (position, None))
                .collect(),
            Share::Mig { profile, series, framebuffer_mib } => self
                .of_mode(ShareMode::Mig)
                .filter(|(_, kind)| kind.name == *profile)
                .filter_map(|(position, kind)| {
                    Some((position, Some(backed(kind, *series, *framebuffer_mib)?)))
                })
                .collect(),
            Share::VirtualFunction { framebuffer_mib } => self
                .of_mode(ShareMode::VirtualFunctions)
                .filter(|(_, kind)| kind.framebuffer_mib >= *framebuffer_mib)
                .map(|(position, _)| (position, None))
                .collect(),
        };
        found
            .sort_by_key(|(position, _)| self.kind(*position).map(|kind| (kind.framebuffer_mib, &kind.name)));
        if found.is_empty() {
            return Err(NoShare::NotOffered);
        }
        if self.fixed {
            found.retain(|(position, _)| self.places(*position) > 0);
        }
        if found.is_empty() { Err(NoShare::NotInLayout) } else { Ok(Offer::Kinds(found, None)) }
    }

    /// How many places a fixed layout has for a kind.
    pub fn places(&self, kind: u16) -> i32 {
        let starts = |kind: &gpudesk_geometry::Kind| i32::try_from(kind.starts.len()).unwrap_or(i32::MAX);
        self.extent(kind).map_or(0, |kind| kind.places.unwrap_or_else(|| starts(kind)))
    }

    fn of_mode(&self, mode: ShareMode) -> impl Iterator<Item = (u16, &Kind)> {
        let numbered = self.kinds.iter().zip(0u16..).map(|(kind, position)| (position, kind));
        numbered.filter(move |(_, kind)| kind.mode == mode)
    }

    /// Units in use by `size` of a kind are counted of so many; 1 for cards that have no units.
    pub fn units(&self, mode: ShareMode) -> i32 {
        match mode {
            ShareMode::Mig => self.mig_memory.max(1),
            ShareMode::Vgpu if self.mixed => self.vgpu_region.max(1),
            ShareMode::Vgpu | ShareMode::Passthrough | ShareMode::VirtualFunctions => 1,
        }
    }
}

/// Starts of all kinds of a mode together; what comes after them is not offered. The largest cards have about 1,200.
const MOST_STARTS: usize = 1 << 12;

/// A geometry whose figures can be counted with. What would lie beyond the units that a card may have is not offered.
fn counted(mut geometry: Geometry) -> Geometry {
    let Geometry { modes, kinds } = &mut geometry;
    for (number, gpudesk_geometry::Mode { units, slices, engines: _ }) in (0u16..).zip(modes) {
        let of_mode = || kinds.iter().filter(|kind| kind.mode == number);
        let most = match slices {
            Some(_) => CardUnits::MOST_MIG,
            None if of_mode().any(|kind| !kind.starts.is_empty()) => CardUnits::MOST_VGPU,
            None => facts::MOST_UNITS,
        };
        *units = facts::units(*units).min(most);
        *slices = slices.map(|slices| facts::units(slices).min(CardUnits::MOST_MIG));
        let mut left = MOST_STARTS;
        for kind in kinds.iter_mut().filter(|kind| kind.mode == number) {
            let gpudesk_geometry::Kind { mode: _, size, slices, engines: _, starts, max_count, places } =
                kind;
            (*size, *slices, *max_count) =
                (facts::units(*size), facts::units(*slices), facts::units(*max_count));
            *places = places.map(facts::units);
            starts.retain(|start| (0..most).contains(start));
            if starts.len() > left {
                starts.clear();
            }
            left -= starts.len();
            if starts.is_empty() && most != facts::MOST_UNITS {
                *max_count = 0;
            }
        }
    }
    geometry
}

fn wished(kind: &Kind, wish: &VgpuWish) -> bool {
    match wish {
        VgpuWish::Type(name) => kind.name == *name,
        VgpuWish::Size { series, min, max } => {
            kind.series == Some(*series) && (*min..=*max).contains(&kind.framebuffer_mib)
        }
    }
}

/// The vGPU type on a GPU instance: the one that fills it, or the one of the size asked for.
fn backed(kind: &Kind, series: VgpuSeries, framebuffer_mib: Option<i64>) -> Option<u16> {
    let types = kind.backed.iter().zip(0u16..).filter(|(vgpu, _)| vgpu.series == series);
    let best = match framebuffer_mib {
        None => types.filter(|(vgpu, _)| vgpu.max == 1).max_by(|(a, _), (b, _)| {
            (a.framebuffer_mib, std::cmp::Reverse(&a.name))
                .cmp(&(b.framebuffer_mib, std::cmp::Reverse(&b.name)))
        }),
        Some(size) => types
            .filter(|(vgpu, _)| vgpu.framebuffer_mib == size)
            .min_by(|(a, _), (b, _)| a.name.cmp(&b.name)),
    };
    best.map(|(_, position)| position)
}

/// Whether `text` matches `glob`, in which `*` stands for any text; upper and lower case alike.
pub fn matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.to_lowercase(), text.to_lowercase());
    let mut parts = glob.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}
