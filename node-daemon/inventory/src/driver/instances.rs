//! The shares that exist on a card, as its driver lists them.
//!
//! GPU instances are the driver's to tell, and each vGPU on one is a share of its own. vGPUs are seen in
//! sysfs first, which knows the function that carries them; the driver adds type and position to those,
//! and those that sysfs does not show.

use std::collections::BTreeSet;

use gpudesk_crds::{
    gpu_node_status::{Device, Instance},
    types::ShareMode,
};

use super::{
    CardReadings, GpuInstanceReading, MigReadings, VgpuInstanceReading, VgpuReadings, placements, text,
};
use crate::topology::{mdev, vgpu_type};

/// The most that the API takes.
const INSTANCES: usize = 256;

pub(super) fn describe(card: &mut Device, found: &CardReadings) {
    if let Some(vgpu) = &found.vgpu {
        time_sliced(card, vgpu);
    }
    if let Some(mig) = &found.mig {
        gpu_instances(card, found, mig);
    }
    card.instances.sort_by(|a, b| order(a).cmp(&order(b)));
    let mut seen = BTreeSet::new();
    card.instances.retain(|instance| seen.insert(instance.id.clone()));
    card.instances.truncate(INSTANCES);
}

fn order(instance: &Instance) -> (ShareMode, i32, &str) {
    (instance.mode, instance.start.unwrap_or(i32::MAX), &instance.id)
}

fn gpu_instances(card: &mut Device, found: &CardReadings, mig: &MigReadings) {
    let before = std::mem::take(&mut card.instances);
    let (mut on_slices, others): (Vec<Instance>, Vec<Instance>) =
        before.into_iter().partition(|instance| instance.mode == ShareMode::Mig);
    let mut listed: Vec<Instance> = vec![];
    for instance in &mig.instances {
        let Some(shown) = gpu_instance(found, mig, instance) else { continue };
        let readings = found.vgpu.iter().flat_map(|vgpu| &vgpu.instances);
        let readings: Vec<&VgpuInstanceReading> =
            readings.filter(|vgpu| vgpu.gpu_instance == Some(instance.id)).collect();
        // What sysfs shows on this instance: the vGPUs in it, and what an earlier reading made of it.
        let mut inside = vec![];
        on_slices.retain(|other| {
            let same = other.id == shown.id
                || other.gpu_instance == shown.gpu_instance
                || readings.iter().any(|vgpu| id(vgpu).as_ref() == Some(&other.id));
            if same {
                inside.push(other.clone());
            }
            !same
        });
        listed.extend(shares_of(&shown, inside, found.vgpu.as_ref(), &readings));
    }
    card.instances = others;
    card.instances.extend(listed);
    // What sysfs shows and the driver does not place, stays as sysfs shows it; what only an earlier
    // reading showed is gone.
    card.instances.extend(on_slices.into_iter().filter(|other| other.virtual_function.is_some()));
}

/// The vGPUs on a GPU instance, or the instance itself where there is none. `inside` are those that
/// sysfs shows; where it shows none, `readings` are those of the driver.
fn shares_of(
    instance: &Instance,
    inside: Vec<Instance>,
    vgpu: Option<&VgpuReadings>,
    readings: &[&VgpuInstanceReading],
) -> Vec<Instance> {
    let type_of = |reading: &VgpuInstanceReading| name_of(vgpu?, reading.type_id);
    let mut shares: Vec<Instance> = vec![];
    for other in inside.into_iter().filter(|other| other.virtual_function.is_some()) {
        let by_driver = readings.iter().find(|reading| id(reading).as_ref() == Some(&other.id));
        let named = || vgpu_type::parse(&other.type_name).map(|name| name.name);
        shares.push(Instance {
            vgpu_type: by_driver.and_then(|reading| type_of(reading)).or(other.vgpu_type).or_else(named),
            id: other.id,
            virtual_function: other.virtual_function,
            owner: other.owner,
            ..instance.clone()
        });
    }
    if shares.is_empty() {
        let known = readings.iter().filter_map(|reading| {
            Some(Instance { id: id(reading)?, vgpu_type: type_of(reading), ..instance.clone() })
        });
        shares = known.collect();
    }
    if shares.is_empty() {
        let vgpu_type = readings.iter().find_map(|reading| type_of(reading));
        shares.push(Instance { vgpu_type, ..instance.clone() });
    }
    shares
}

fn gpu_instance(found: &CardReadings, mig: &MigReadings, instance: &GpuInstanceReading) -> Option<Instance> {
    let number = i32::try_from(instance.id).ok()?;
    let profile = mig.profiles.iter().find(|profile| profile.id == instance.profile_id);
    let type_name = profile
        .and_then(|profile| placements::profile_name(profile, found.memory_mib))
        .unwrap_or_else(|| format!("profile {}", instance.profile_id));
    let first =
        instance.compute_instances.iter().filter(|compute| compute.uuid.is_some()).min_by_key(|c| c.id);
    let id = first.and_then(|compute| text(compute.uuid.as_deref(), 96)).unwrap_or_else(|| {
        // Without a compute instance there is no MIG device yet, and no UUID.
        let card = text(found.uuid.as_deref(), 64).unwrap_or_else(|| found.address.to_string());
        format!("MIG-{card}/{number}")
    });
    Some(Instance {
        id,
        type_name,
        mode: ShareMode::Mig,
        vgpu_type: None,
        start: Some(instance.placement.start.clamp(0, 4096)),
        virtual_function: None,
        gpu_instance: Some(number),
        owner: None,
    })
}

fn time_sliced(card: &mut Device, vgpu: &VgpuReadings) {
    // sysfs alone knows some types by their numbers only.
    for instance in &mut card.instances {
        let number = instance.type_name.parse().ok().or_else(|| mdev::nvidia_number(&instance.type_name));
        if let Some(id) = number
            && let Some(name) = name_of(vgpu, id)
        {
            instance.type_name = name;
        }
    }
    let mut taken = vec![false; card.instances.len()];
    let mut seen = BTreeSet::new();
    let slices = vgpu.instances.iter().filter(|found| found.gpu_instance.is_none());
    for found in slices.filter(|found| id(found).is_none_or(|id| seen.insert(id))) {
        let type_name = name_of(vgpu, found.type_id).unwrap_or_else(|| found.type_id.to_string());
        let start = found.placement_id.filter(|start| (0..4096).contains(start));
        let place = place_of(&card.instances, &taken, found, &type_name, start);
        if let Some(place) = place {
            taken[place] = true;
            let known = &mut card.instances[place];
            known.type_name = type_name;
            known.start = start.or(known.start);
        } else if let Some(id) = id(found) {
            card.instances.push(Instance {
                id,
                type_name,
                mode: ShareMode::Vgpu,
                vgpu_type: None,
                start,
                virtual_function: None,
                gpu_instance: None,
                owner: None,
            });
            taken.push(true);
        }
    }
}

fn id(found: &VgpuInstanceReading) -> Option<String> {
    text(found.mdev_uuid.as_deref(), 96)
        .map(|uuid| uuid.to_ascii_lowercase())
        .or_else(|| text(found.uuid.as_deref(), 96))
}

/// Which of the shares that are known a vGPU of the driver is: the same device, else one of the same
/// type that says nothing else.
fn place_of(
    known: &[Instance],
    taken: &[bool],
    found: &VgpuInstanceReading,
    type_name: &str,
    start: Option<i32>,
) -> Option<usize> {
    let free = |place: &usize| !taken.get(*place).copied().unwrap_or(false);
    if let Some(id) = id(found)
        && let Some(place) = known.iter().position(|instance| instance.id == id)
    {
        return Some(place).filter(free);
    }
    if found.mdev_uuid.is_some() {
        return None;
    }
    let fits = |place: &usize, exactly: bool| {
        let instance = &known[*place];
        let same_start = if exactly { instance.start == start } else { instance.start.is_none() };
        instance.virtual_function.is_some()
            && instance.mode == ShareMode::Vgpu
            && instance.type_name == type_name
            && same_start
    };
    let places = 0..known.len();
    places
        .clone()
        .filter(free)
        .find(|place| fits(place, true))
        .or_else(|| places.filter(free).find(|place| fits(place, false)))
}

fn name_of(vgpu: &VgpuReadings, id: u32) -> Option<String> {
    let name = &vgpu.types.iter().find(|kind| kind.id == id)?.name;
    let short = vgpu_type::short(name);
    (!short.is_empty()).then(|| short.chars().take(64).collect())
}
