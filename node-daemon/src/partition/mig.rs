//! MIG GPU instances with vGPUs on them: one that fills its instance, or several of one framebuffer
//! size that share it. What a profile is limited to, by count, position and compute slices, are GPU
//! instances, however many vGPUs are on each.

use gpudesk_crds::gpu_node_status::{Device, MigBackedType, Placement};

use super::{Refusal, Share, at_most, free_position, placement};

pub(super) fn admit(card: &Device, existing: &[Share], wanted: &Share) -> Result<(), Refusal> {
    let place = placement(card, wanted)?;
    let type_name = || wanted.type_name.clone();
    let Some(vgpu) = backed(place, wanted) else {
        let possible: Vec<&str> = place.vgpu_types.iter().map(|t| t.type_name.as_str()).collect();
        let possible = if possible.is_empty() { "none".into() } else { possible.join(", ") };
        let vgpu_type = wanted.vgpu_type.clone().unwrap_or_default();
        return Err(Refusal::VgpuType { type_name: type_name(), vgpu_type, possible });
    };
    let start = wanted.start.ok_or_else(|| Refusal::StartMissing { type_name: type_name() })?;
    let inside: Vec<&Share> = existing.iter().filter(|share| is_on_one_instance(share, wanted)).collect();
    if !inside.is_empty() {
        return join(place, &inside, vgpu, start);
    }
    let instances = gpu_instances(existing);
    let same = instances.iter().filter(|share| share.type_name == wanted.type_name).count();
    at_most(&instances, &wanted.type_name, same, place.max_count)?;
    free_position(card, &instances, place, start)?;
    let mut used = 0;
    for share in &instances {
        used += placement(card, share)?.compute_slices;
    }
    let free = card.units.map_or(0, |units| units.mig_compute) - used;
    if place.compute_slices > free {
        return Err(Refusal::ComputeSlices { type_name: type_name(), wanted: place.compute_slices, free });
    }
    Ok(())
}

/// Whether one more vGPU may be on the GPU instance at `start`, beside those `inside` it.
fn join(place: &Placement, inside: &[&Share], vgpu: &MigBackedType, start: i32) -> Result<(), Refusal> {
    let mut max = vgpu.max_per_instance;
    for share in inside {
        let other = backed(place, share);
        // Of a vGPU that the card does not list nobody knows the size.
        let Some(other) = other.filter(|other| other.framebuffer_mib == vgpu.framebuffer_mib) else {
            return Err(Refusal::OtherSizeOnInstance {
                type_name: place.type_name.clone(),
                start,
                vgpu_type: vgpu.type_name.clone(),
                other: share.vgpu_type.clone().unwrap_or_else(|| "a vGPU of a type not known".into()),
            });
        };
        // Types of one size and different series are limited alike; where they are not, the least counts.
        max = max.min(other.max_per_instance);
    }
    if i32::try_from(inside.len()).unwrap_or(i32::MAX) >= max {
        return Err(Refusal::InstanceFull {
            type_name: place.type_name.clone(),
            start,
            vgpu_type: vgpu.type_name.clone(),
            max,
        });
    }
    Ok(())
}

/// The vGPU type of a share, as the profile under it lists it.
fn backed<'a>(place: &'a Placement, share: &Share) -> Option<&'a MigBackedType> {
    let name = share.vgpu_type.as_ref()?;
    place.vgpu_types.iter().find(|vgpu| vgpu.type_name == *name)
}

/// Whether two shares are vGPUs on the same GPU instance. One without position is on no known one.
pub(super) fn is_on_one_instance(one: &Share, other: &Share) -> bool {
    let key = |share: &Share| (share.mode, share.type_name.clone(), share.start);
    one.start.is_some() && key(one) == key(other)
}

/// One share of each GPU instance.
fn gpu_instances(shares: &[Share]) -> Vec<Share> {
    let mut found: Vec<Share> = vec![];
    for share in shares {
        if !found.iter().any(|known| is_on_one_instance(known, share)) {
            found.push(share.clone());
        }
    }
    found
}
