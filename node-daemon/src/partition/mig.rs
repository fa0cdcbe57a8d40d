//! MIG GPU instances with a vGPU on each.

use gpudesk_crds::gpu_node_status::Device;

use super::{Refusal, Share, at_most, free_position, placement};

pub(super) fn admit(card: &Device, existing: &[Share], wanted: &Share) -> Result<(), Refusal> {
    let place = placement(card, wanted)?;
    let type_name = || wanted.type_name.clone();
    let vgpu_type = wanted.vgpu_type.clone().unwrap_or_default();
    if !place.vgpu_types.iter().any(|t| t.type_name == vgpu_type) {
        let possible: Vec<&str> = place.vgpu_types.iter().map(|t| t.type_name.as_str()).collect();
        let possible = if possible.is_empty() { "none".into() } else { possible.join(", ") };
        return Err(Refusal::VgpuType { type_name: type_name(), vgpu_type, possible });
    }
    let same = existing.iter().filter(|share| share.type_name == wanted.type_name).count();
    at_most(existing, &wanted.type_name, same, place.max_count)?;
    let start = wanted.start.ok_or_else(|| Refusal::StartMissing { type_name: type_name() })?;
    free_position(card, existing, place, start)?;
    let mut used = 0;
    for share in existing {
        used += placement(card, share)?.compute_slices;
    }
    let free = card.units.map_or(0, |units| units.mig_compute) - used;
    if place.compute_slices > free {
        return Err(Refusal::ComputeSlices { type_name: type_name(), wanted: place.compute_slices, free });
    }
    Ok(())
}
