//! The shares that a driver offers on a card: MIG profiles, vGPU types.

use gpudesk_crds::{
    gpu_node_status::{CardUnits, Device, MediaEngines, MigBackedType, Placement},
    types::{ShareMode, VgpuSeries},
};

use super::{CardReadings, DriverReadings, MigPlacement, MigProfile, VgpuReadings, VgpuTypeReading, within};
use crate::topology::{mdev, vgpu_type};

/// The most that the API takes: shares of a card, starts of a share, vGPU types of a MIG profile, and
/// the largest position or count.
const SHARES: usize = 256;
const STARTS: usize = 256;
const BACKED_TYPES: usize = 64;
const LARGEST: i32 = 4096;

/// Fills in placements and units. What is known already of a share from elsewhere (its mdev name, what
/// virtual functions leave of it) is kept.
pub(super) fn describe(card: &mut Device, found: &CardReadings, all: &DriverReadings) {
    let mut offered = mig_placements(found, all);
    offered.extend(vgpu_placements(found));
    let mut seen = std::collections::BTreeSet::new();
    offered.retain(|placement| seen.insert(placement.type_name.clone()));
    offered.truncate(SHARES);
    card.units = Some(CardUnits::of(&offered));

    let able = card.virtual_functions.iter().filter(|function| function.unavailable.is_none());
    let functions = i32::try_from(able.count()).unwrap_or(i32::MAX);
    for placement in &mut offered {
        let known = (card.placements.iter())
            .find(|known| known.mode == placement.mode && known.type_name == placement.type_name);
        if let Some(known) = known {
            keep(placement, known);
        }
        // A function carries one vGPU, however many the card could hold.
        if placement.mode == ShareMode::Vgpu && !card.virtual_functions.is_empty() {
            placement.max_count = placement.max_count.min(functions);
        }
    }
    // A vGPU type on a MIG profile is no share of the card beside that profile.
    let backed =
        |name: &str| offered.iter().flat_map(|p| &p.vgpu_types).any(|backed| backed.type_name == name);
    // A type that sysfs knows by its number only, and the driver by its name.
    let is_named = |known: &Placement| {
        let number = known.type_name.parse().ok().or_else(|| mdev::nvidia_number(&known.type_name));
        let mut types = found.vgpu.iter().flat_map(|vgpu| &vgpu.types);
        number.is_some_and(|number: u32| types.any(|kind| kind.id == number))
    };
    let others: Vec<Placement> = (card.placements.drain(..))
        .filter(|known| offered.iter().all(|p| p.type_name != known.type_name) && !backed(&known.type_name))
        .filter(|known| !is_named(known))
        .collect();
    card.placements = offered;
    card.placements.extend(others);
    card.placements.truncate(SHARES);
}

fn keep(placement: &mut Placement, known: &Placement) {
    if known.driver_id.is_some() {
        placement.driver_id.clone_from(&known.driver_id);
    }
    if known.max_count > 0 && placement.max_count > 0 {
        placement.max_count = placement.max_count.min(known.max_count);
    } else {
        placement.max_count = placement.max_count.max(known.max_count);
    }
    placement.available = placement.available.or(known.available);
    placement.heads = placement.heads.or(known.heads);
    placement.frame_rate_limit = placement.frame_rate_limit.or(known.frame_rate_limit);
    if placement.max_resolution.is_none() {
        placement.max_resolution.clone_from(&known.max_resolution);
    }
}

fn mig_placements(found: &CardReadings, all: &DriverReadings) -> Vec<Placement> {
    let Some(mig) = &found.mig else { return vec![] };
    let mut sorted: Vec<(&MigProfile, (i32, Vec<i32>))> =
        mig.profiles.iter().map(|profile| (profile, positions(found, profile, all))).collect();
    sorted.sort_by(|(a, (a_size, _)), (b, (b_size, _))| {
        (a.compute_slices, a_size, a.id).cmp(&(b.compute_slices, b_size, b.id))
    });
    sorted.dedup_by_key(|(profile, _)| profile.id);
    let placement = |(profile, (size, starts)): (&MigProfile, (i32, Vec<i32>))| {
        let type_name = profile_name(profile, found.memory_mib)?;
        let vgpu_types = backed_types(found.vgpu.as_ref(), profile, &type_name);
        // A vGPU that takes a whole instance is as large as it; else the name tells.
        let whole = vgpu_types.iter().filter(|kind| kind.max_per_instance == 1);
        let whole = whole.map(|kind| kind.framebuffer_mib).max();
        Some(Placement {
            framebuffer_mib: whole.or(nominal_mib(&type_name)).unwrap_or(profile.memory_mib.max(0)),
            vgpu_types,
            type_name,
            mode: ShareMode::Mig,
            series: None,
            size,
            starts,
            compute_slices: within(profile.compute_slices, 256),
            engines: profile.engines.map(engines),
            max_count: within(profile.max_instances, LARGEST),
            available: profile.remaining.filter(|_| mig.current).map(|left| within(left, LARGEST)),
            driver_id: Some(profile.id.to_string()),
            heads: None,
            max_resolution: None,
            frame_rate_limit: None,
        })
    };
    sorted.into_iter().filter_map(placement).collect()
}

fn engines(told: MediaEngines) -> MediaEngines {
    let MediaEngines { decoders, encoders, jpeg, optical_flow } = told;
    let [decoders, encoders, jpeg, optical_flow] =
        [decoders, encoders, jpeg, optical_flow].map(|number| within(number, MediaEngines::MOST));
    MediaEngines { decoders, encoders, jpeg, optical_flow }
}

/// Length and starts of a profile. Where the driver does not tell them of this card, those of an equal
/// card count: same PCI ids, same profile id.
fn positions(found: &CardReadings, profile: &MigProfile, all: &DriverReadings) -> (i32, Vec<i32>) {
    let told = profile.placements.as_ref().or_else(|| {
        let equal = all.cards.iter().filter(|card| card.pci_id.is_some() && card.pci_id == found.pci_id);
        let profiles = equal.filter_map(|card| card.mig.as_ref()).flat_map(|mig| &mig.profiles);
        profiles.filter(|other| other.id == profile.id).find_map(|other| other.placements.as_ref())
    });
    let told: &[MigPlacement] = told.map_or(&[], Vec::as_slice);
    let size = told.iter().map(|placement| placement.size).filter(|size| (1..=256).contains(size)).min();
    let Some(size) = size else { return (0, vec![]) };
    (size, legal(told.iter().filter(|placement| placement.size == size).map(|placement| placement.start)))
}

fn legal(starts: impl Iterator<Item = i32>) -> Vec<i32> {
    let mut starts: Vec<i32> = starts.filter(|start| (0..LARGEST).contains(start)).collect();
    starts.sort_unstable();
    starts.dedup();
    starts.truncate(STARTS);
    starts
}

/// The name of a profile, exactly as the driver writes it but for the `MIG ` before it.
pub(super) fn profile_name(profile: &MigProfile, card_mib: Option<i64>) -> Option<String> {
    let name = profile.name.as_deref().map(str::trim).filter(|name| !name.is_empty());
    let name = match name {
        Some(name) => name.strip_prefix("MIG ").unwrap_or(name).trim_start().to_owned(),
        None => made_up_name(profile, card_mib?)?,
    };
    (!name.is_empty() && name.chars().count() <= 64).then_some(name)
}

/// Drivers before R495 give no names. People know the profiles by the names that NVIDIA's tools make:
/// slices, and memory in eighths of the card, rounded up, in GB.
fn made_up_name(profile: &MigProfile, card_mib: i64) -> Option<String> {
    if profile.compute_slices < 1 || profile.memory_mib < 1 || card_mib < 1 {
        return None;
    }
    let eighths = profile.memory_mib.checked_mul(8)?.checked_add(card_mib - 1)? / card_mib;
    let card_gb = card_mib.checked_add(1023)? / 1024;
    let gigabytes = eighths.checked_mul(card_gb)?.checked_add(4)? / 8;
    // The first revisions of profiles are those with the media engines (`nvml.h`).
    let media = if matches!(profile.index, 7 | 8) { "+me" } else { "" };
    Some(format!("{}g.{gigabytes}gb{media}", profile.compute_slices))
}

/// The size in a profile's name, in MiB: `1g.24gb+gfx` is 24 GB.
fn nominal_mib(name: &str) -> Option<i64> {
    let (_, size) = name.split_once('.')?;
    let digits = size.find(|c: char| !c.is_ascii_digit())?;
    let gigabytes: i64 = size[..digits].parse().ok().filter(|gigabytes| (1..=65_536).contains(gigabytes))?;
    size[digits..].starts_with("gb").then_some(gigabytes * 1024)
}

fn backed_types(vgpu: Option<&VgpuReadings>, profile: &MigProfile, name: &str) -> Vec<MigBackedType> {
    let Some(vgpu) = vgpu else { return vec![] };
    let lives_here = |found: &&VgpuTypeReading| match found.gpu_instance_profile_id {
        Some(id) => id == profile.id,
        None => name_fits(found, profile, name),
    };
    let backed = |found: &VgpuTypeReading| {
        let parsed = vgpu_type::parse(&found.name)?;
        // Drivers before R575 count per card only, and put one on each instance.
        let per_instance = (found.max_per_gpu_instance)
            .or_else(|| Some(found.max_instances? / profile.max_instances.max(1)))
            .unwrap_or(1);
        Some(MigBackedType {
            framebuffer_mib: found.framebuffer_mib.unwrap_or(parsed.framebuffer_mib).max(0),
            type_name: parsed.name,
            series: parsed.series,
            max_per_instance: per_instance.clamp(1, 256),
        })
    };
    let mut types: Vec<MigBackedType> = vgpu.types.iter().filter(lives_here).filter_map(backed).collect();
    // Of two of one name the first counts: the same whatever order the driver tells them in.
    types.sort_by(|a, b| {
        let of = |kind: &MigBackedType| (rank(kind.series), kind.framebuffer_mib);
        of(a)
            .cmp(&of(b))
            .then_with(|| (&a.type_name, a.max_per_instance).cmp(&(&b.type_name, b.max_per_instance)))
    });
    types.dedup_by(|a, b| a.type_name == b.type_name);
    types.truncate(BACKED_TYPES);
    types
}

/// Whether a type belongs to a profile by its name alone: same slices, same memory, same engines.
fn name_fits(found: &VgpuTypeReading, profile: &MigProfile, name: &str) -> bool {
    let Some(parsed) = vgpu_type::parse(&found.name) else { return false };
    parsed.slices == Some(profile.compute_slices)
        && nominal_mib(name) == Some(parsed.framebuffer_mib)
        && parsed.name.ends_with("ME") == name.ends_with("+me")
        && !name.ends_with("-me")
}

/// Whether a type lives on MIG instances.
fn is_backed(found: &VgpuTypeReading) -> bool {
    found.gpu_instance_profile_id.is_some()
        || vgpu_type::parse(&found.name).is_some_and(|name| name.slices.is_some())
}

fn vgpu_placements(found: &CardReadings) -> Vec<Placement> {
    let Some(vgpu) = &found.vgpu else { return vec![] };
    let placement = |kind: &VgpuTypeReading| {
        let parsed = vgpu_type::parse(&kind.name);
        let type_name = vgpu_type::short(&kind.name).to_owned();
        if type_name.is_empty() || type_name.chars().count() > 64 {
            return None;
        }
        let named_mib = parsed.as_ref().map_or(0, |name| name.framebuffer_mib);
        let (size, starts) = (kind.mixed_placements.as_ref())
            .map(|mixed| (mixed.size, legal(mixed.starts.iter().copied())))
            .filter(|(size, starts)| (1..=LARGEST).contains(size) && !starts.is_empty())
            .unwrap_or_default();
        Some(Placement {
            type_name,
            mode: ShareMode::Vgpu,
            framebuffer_mib: kind.framebuffer_mib.unwrap_or(named_mib).max(0),
            series: parsed.map(|name| name.series),
            size,
            starts,
            compute_slices: 0,
            engines: None,
            max_count: within(kind.max_instances.unwrap_or(0), LARGEST),
            available: available(vgpu, kind),
            driver_id: Some(kind.id.to_string()),
            heads: kind.heads.filter(|heads| (0..=64).contains(heads)),
            max_resolution: (kind.max_resolution)
                .filter(|(x, y)| *x > 0 && *y > 0)
                .map(|(x, y)| format!("{x}x{y}")),
            frame_rate_limit: kind.frame_rate_limit.filter(|limit| (1..=1000).contains(limit)),
            vgpu_types: vec![],
        })
    };
    let types = vgpu.types.iter().filter(|kind| !is_backed(kind));
    let mut placements: Vec<Placement> = types.filter_map(placement).collect();
    placements.sort_by(|a, b| {
        let key = |p: &Placement| (p.series.map_or(4, rank), p.framebuffer_mib);
        key(a).cmp(&key(b)).then_with(|| (&a.type_name, &a.driver_id).cmp(&(&b.type_name, &b.driver_id)))
    });
    placements
}

/// How many more of a type could be made now. With equal sizes every vGPU on the card takes the place
/// of one; with mixed sizes the driver lists the free starts.
fn available(vgpu: &VgpuReadings, kind: &VgpuTypeReading) -> Option<i32> {
    if !kind.creatable? {
        return Some(0);
    }
    if vgpu.mixed_size == Some(true) {
        let free = legal(kind.creatable_starts.as_ref()?.iter().copied()).len();
        return i32::try_from(free).ok();
    }
    let there = vgpu.instances.iter().filter(|instance| instance.gpu_instance.is_none()).count();
    let left = kind.max_instances?.saturating_sub(i32::try_from(there).unwrap_or(i32::MAX));
    Some(left.clamp(1, LARGEST))
}

/// The order in which people list series.
fn rank(series: VgpuSeries) -> u8 {
    match series {
        VgpuSeries::Q => 0,
        VgpuSeries::B => 1,
        VgpuSeries::A => 2,
        VgpuSeries::C => 3,
    }
}
