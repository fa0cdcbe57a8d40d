//! A plan in the words of an allocation.

use std::collections::BTreeMap;

use gpudesk_crds::{Compute, GpuAllocation, allocation::HostDeviceAllocation};

use crate::{
    compute::{self, Asked, Limits},
    fit::{Place, Plan, Prepared},
    functions,
    request::Share,
    shape::WHOLE_CARD,
};

/// CPUs and memory, shares, and functions, as an allocation names them.
pub type Built = (Compute, Vec<GpuAllocation>, Vec<HostDeviceAllocation>);

/// What the allocation says of a plan.
pub fn build(place: Place<'_>, prepared: &Prepared, limits: Limits, plan: &Plan) -> Option<Built> {
    let Place { facts, used, total, slots: _, rooms: _, starved: _ } = place;
    let demand = &prepared.demand;
    let asked = Asked { facts, used, total, demand, limits };
    let compute = compute::build(asked, plan.from.scope(), plan.pages)?;
    let mut gpus = vec![];
    for (share, pick) in demand.shares.iter().zip(&plan.found.picks) {
        let card = facts.cards.get(pick.card)?;
        let takes = pick.candidate.choice.takes;
        let kind = takes.kind.and_then(|kind| card.shape.kind(kind));
        let vgpu = takes.vgpu.and_then(|vgpu| kind?.backed.get(usize::from(vgpu)));
        gpus.push(GpuAllocation {
            name: share.name.clone(),
            device: card.address,
            device_uuid: card.uuid.clone(),
            product: card.shape.product.clone(),
            mode: takes.mode,
            type_name: kind.map_or_else(|| WHOLE_CARD.to_owned(), |kind| kind.name.clone()),
            framebuffer_mib: pick.candidate.choice.framebuffer_mib,
            start: takes.start,
            vgpu_type: vgpu.map(|vgpu| vgpu.name.clone()),
            vgpu_scheduler: takes.scheduler,
            vgpu_params: match share.ways.get(pick.way).map(|way| &way.share) {
                Some(Share::Vgpu(_, params)) => params.clone(),
                _ => BTreeMap::new(),
            },
            profile: share.profile.clone(),
        });
    }
    Some((compute, gpus, functions::allocations(facts, &demand.functions, &plan.functions)))
}
