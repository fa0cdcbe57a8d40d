//! Time-sliced vGPUs: all of one size, or of mixed sizes at listed positions.

use gpudesk_crds::gpu_node_status::Device;

use super::{Refusal, Share, at_most, free_position, placement};

pub(super) fn admit(card: &Device, existing: &[Share], wanted: &Share) -> Result<(), Refusal> {
    let place = placement(card, wanted)?;
    let type_name = || wanted.type_name.clone();
    let Some(start) = wanted.start else {
        if existing.iter().any(|share| share.start.is_some()) {
            return Err(Refusal::MixedWithEqual {
                type_name: type_name(),
                there: "with",
                asked: "without one",
            });
        }
        for share in existing {
            if placement(card, share)?.framebuffer_mib != place.framebuffer_mib {
                return Err(Refusal::OtherSize { type_name: type_name(), other: share.type_name.clone() });
            }
        }
        return at_most(existing, &wanted.type_name, existing.len(), place.max_count);
    };
    if existing.iter().any(|share| share.start.is_none()) {
        return Err(Refusal::MixedWithEqual { type_name: type_name(), there: "without", asked: "with one" });
    }
    free_position(card, existing, place, start)
}
