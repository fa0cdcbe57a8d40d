//! SR-IOV virtual functions: a card is divided into equal parts, so all on it have one type.

use gpudesk_crds::gpu_node_status::Device;

use super::{Refusal, Share, at_most, placement};

pub(super) fn admit(card: &Device, existing: &[Share], wanted: &Share) -> Result<(), Refusal> {
    let place = placement(card, wanted)?;
    if let Some(other) = existing.iter().find(|share| share.type_name != wanted.type_name) {
        return Err(Refusal::OtherSize {
            type_name: wanted.type_name.clone(),
            other: other.type_name.clone(),
        });
    }
    at_most(existing, &wanted.type_name, existing.len(), place.max_count)
}
