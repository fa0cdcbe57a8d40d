//! The GPU instance under a MIG-backed vGPU.

use super::sriov;
use crate::devices::{
    control::GpuInstanceSeen,
    journal::{Entry, Journal},
    live::{LiveCard, VirtualFunction},
    refusal::Refusal,
    step::{Setting, Step},
};

/// The step that switches MIG on; none when it is. It comes before the virtual functions, which carry the vGPUs.
pub(super) fn mode(live: &LiveCard, journal: &Journal) -> Result<Option<Step>, Refusal> {
    let card = live.function.address;
    if let Some(why) = &live.control_fault {
        return Err(Refusal::NotTold { card, why: why.clone() });
    }
    let mode = live.control.mig.ok_or(Refusal::NoControl { card, what: "MIG" })?;
    if mode.current != mode.pending {
        // Asked for by gpudesk while somebody had the card open: it is asked for again.
        if mode.pending && journal.has_changed(card, Setting::MigMode) {
            return Ok(Some(Step::MigMode { card, on: true }));
        }
        let why = "the card waits for a reset to change it".into();
        return Err(Refusal::MigMode { card, is: if mode.current { "on" } else { "off" }, why });
    }
    if mode.current {
        return Ok(None);
    }
    off_to_on(live)?;
    Ok(Some(Step::MigMode { card, on: true }))
}

/// The GPU instance of a share, or the steps that make it.
pub(super) fn under<'a>(
    live: &'a LiveCard,
    journal: &Journal,
    entry: &Entry,
) -> Result<Result<&'a GpuInstanceSeen, Vec<Step>>, Refusal> {
    let card = live.function.address;
    let unknown =
        |what: &str| Refusal::Unknown(format!("{what} of {} on {card} is not known", entry.share.type_name));
    let profile = entry.profile.ok_or_else(|| unknown("the number of the profile"))?;
    let start = entry.share.start.ok_or_else(|| unknown("the start"))?;
    match live.control.gpu_instances.iter().find(|seen| (seen.profile, seen.start) == (profile, start)) {
        Some(seen) if !sriov::is_ours(journal, card, seen) => {
            let device = format!("GPU instance {} of {card}", seen.id);
            Err(Refusal::Foreign { device, what: "made on the host".into() })
        }
        Some(seen) if seen.compute_instances > 0 => Ok(Ok(seen)),
        Some(seen) => Ok(Err(vec![Step::ComputeInstance { card, gpu_instance: seen.id }])),
        None => Ok(Err(vec![Step::GpuInstance { card, profile, start }])),
    }
}

/// The step after which vGPUs of a GPU instance share its time as a share wants it: before the first of them.
pub(super) fn scheduler(
    live: &LiveCard,
    seen: &GpuInstanceSeen,
    entry: &Entry,
) -> Result<Option<Step>, Refusal> {
    let Some(wanted) = entry.setup.scheduler else { return Ok(None) };
    let (card, id) = (live.function.address, seen.id);
    let on_it = |vf: &&VirtualFunction| {
        let vgpu = vf.vgpu.as_ref().filter(|vgpu| vgpu.current != Some(0));
        vgpu.is_some_and(|vgpu| vgpu.gpu_instance.is_none_or(|on| u32::try_from(on) == Ok(id)))
    };
    match (seen.scheduler, live.virtual_functions.iter().find(on_it)) {
        (Some(is), _) if is == wanted => Ok(None),
        (None, _) => Err(Refusal::Unknown(format!(
            "the GpuProfile has vgpuScheduler {wanted:?}, and GPU instances of {card} have no vGPU scheduler that could be \
             set: it takes a card on which several vGPUs share a GPU instance, and its driver"
        ))),
        (Some(_), None) => Ok(Some(Step::InstanceScheduler { card, gpu_instance: id, scheduler: wanted })),
        (Some(is), Some(vf)) => Err(Refusal::Unknown(format!(
            "the GpuProfile has vgpuScheduler {wanted:?}, GPU instance {id} of {card} has {is:?}, and the driver changes it \
             only while no vGPU is on the instance: that of {} is",
            vf.function.address
        ))),
    }
}

/// Whether MIG can be switched on now: nobody has anything of the card, and no virtual functions are on.
fn off_to_on(live: &LiveCard) -> Result<(), Refusal> {
    let card = live.function.address;
    let refused = |why: String| Err(Refusal::MigMode { card, is: "off", why });
    if let Some(vgpu) = live.vgpu() {
        return refused(format!("the vGPU {vgpu} is on it"));
    }
    if let Some(sriov) = live.sriov.filter(|sriov| sriov.on > 0) {
        return refused(format!(
            "{} virtual functions of it are on: run sriov-manage -d {card}, switch MIG on, then sriov-manage -e {card}",
            sriov.on
        ));
    }
    if let Some(process) = live.function.held_by {
        return refused(format!("process {process} of the host has it open"));
    }
    Ok(())
}

/// What unmakes the GPU instance of a share, once its vGPU is gone and no other share is on it.
pub(super) fn gone(live: &LiveCard, journal: &Journal, entry: &Entry) -> Vec<Step> {
    let card = live.function.address;
    let place = |entry: &Entry| Some((entry.profile?, entry.share.start?));
    let Some((profile, start)) = place(entry) else { return vec![] };
    let shared = journal.on(card).any(|other| other.key != entry.key && place(other) == place(entry));
    if shared {
        return vec![];
    }
    let there = live.control.gpu_instances.iter().find(|seen| (seen.profile, seen.start) == (profile, start));
    let destroy = |seen: &GpuInstanceSeen| Step::GpuInstanceDestroy { card, gpu_instance: seen.id };
    there.filter(|seen| sriov::is_ours(journal, card, seen)).map(destroy).into_iter().collect()
}

/// Whether vGPUs of several sizes may be made side by side on the card; the step that makes it so.
pub(super) fn mixed(live: &LiveCard, entry: &Entry) -> Result<Option<Step>, Refusal> {
    let card = live.function.address;
    match (entry.share.start, live.control.mixed_size) {
        (None, _) | (Some(_), Some(true)) => Ok(None),
        (Some(_), None) => Err(Refusal::NoControl { card, what: "vGPUs of several sizes" }),
        (Some(_), Some(false)) => match live.vgpu() {
            Some(vgpu) => Err(Refusal::InUse(vgpu)),
            None => Ok(Some(Step::MixedSize { card, on: true })),
        },
    }
}
