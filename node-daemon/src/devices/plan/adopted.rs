//! What was made by hand and handed over: unmade once nobody has it open. vGPUs go first, for they stand on GPU instances.

use gpudesk_crds::types::PciAddress;
use gpudesk_inventory::topology::pci;

use super::sriov;
use crate::devices::{
    VFIO,
    control::GpuInstanceSeen,
    handed::Adopted,
    journal::{Claim, Journal, OurInstance},
    live::{Function, LiveCard, Mdev},
    refusal::Refusal,
    step::Step,
};

/// The steps that are left. What is in use waits, and holds up nothing else.
pub(super) fn gone(live: &LiveCard, journal: &Journal) -> Result<Vec<Step>, Refusal> {
    let (mut steps, mut last, mut refused) = (vec![], vec![], None);
    for adopted in journal.adopted(live.function.address) {
        match of_one(live, journal, adopted) {
            Ok(of_one) if matches!(adopted, Adopted::GpuInstance(_)) => last.extend(of_one),
            Ok(of_one) => steps.extend(of_one),
            Err(why) => refused = refused.or(Some(why)),
        }
    }
    steps.extend(last);
    match refused {
        Some(why) if steps.is_empty() => Err(why),
        _ => Ok(steps),
    }
}

/// Whether nothing is left of one: what stands there under its name later is not meant.
pub(in crate::devices) fn is_gone(live: &LiveCard, journal: &Journal, adopted: &Adopted) -> bool {
    of_one(live, journal, adopted).is_ok_and(|steps| steps.is_empty())
}

fn of_one(live: &LiveCard, journal: &Journal, adopted: &Adopted) -> Result<Vec<Step>, Refusal> {
    match adopted {
        Adopted::Function { function, cleaned } => function_back(live, journal, *function, *cleaned),
        Adopted::Vgpu { function, id } => vgpu(live, journal, &Claim::Vgpu { function: *function, id: *id }),
        Adopted::Mdev { uuid, parent, type_id } => {
            let same =
                |mdev: &&Mdev| mdev.uuid == *uuid && mdev.parent == *parent && mdev.type_id == *type_id;
            match live.mdevs.iter().find(same).map(|mdev| mdev.held_by) {
                Some(Some(process)) => Err(Refusal::Open { device: uuid.clone(), process }),
                Some(None) => Ok(vec![Step::MdevRemove { uuid: uuid.clone() }]),
                None => Ok(vec![]),
            }
        }
        Adopted::GpuInstance(place) => instance(live, journal, *place),
    }
}

/// A function that was bound for guests goes to a driver of the host, cleaned where it holds what a guest left.
fn function_back(
    live: &LiveCard,
    journal: &Journal,
    address: PciAddress,
    cleaned: bool,
) -> Result<Vec<Step>, Refusal> {
    // What is gone from the bus, or a desktop has by now, is nobody's to unmake.
    let ours = journal.on(live.function.address).any(|entry| {
        entry.claim.as_ref().and_then(Claim::function) == Some(address)
            || entry.claim == Some(Claim::Card) && !is_virtual(live, address)
    });
    let Some(function) = live.find(address).filter(|_| !ours) else { return Ok(vec![]) };
    let needs_driver = !is_virtual(live, address) || sriov::is_of_nvidia(live);
    let probe = Step::Probe { function: address, driver: None };
    if function.driver.is_none() {
        return Ok(if needs_driver { vec![probe] } else { vec![] });
    }
    if !function.is_vfio() {
        return Ok(vec![]);
    }
    // They go with the driver that the card has, whoever uses them, and were not handed over with it.
    if let Some(sriov) = live.sriov.filter(|sriov| address == live.function.address && sriov.on > 0) {
        return Err(Refusal::FunctionsOn { card: address, on: sriov.on });
    }
    if let Some(process) = function.held_by {
        return Err(Refusal::Open { device: address.to_string(), process });
    }
    let mut steps = vec![];
    if !cleaned && holds_what_guests_left(live, function) {
        steps.push(Step::Reset { function: address });
    }
    if function.driver_override.as_deref().is_some_and(|driver| driver.contains("vfio")) {
        steps.push(Step::Override { function: address, driver: None });
    }
    let driver = function.driver.clone().unwrap_or_else(|| VFIO.into());
    steps.push(Step::Unbind { function: address, driver });
    if needs_driver {
        steps.push(probe);
    }
    Ok(steps)
}

fn is_virtual(live: &LiveCard, address: PciAddress) -> bool {
    live.virtual_function(address).is_some()
}

/// Cards and virtual functions are reset between users, where the kernel can; sound and the like are not.
fn holds_what_guests_left(live: &LiveCard, function: &Function) -> bool {
    let is_card = pci::kind(&function.class) == pci::FunctionKind::Card || is_virtual(live, function.address);
    is_card && !function.reset_methods.is_empty()
}

fn vgpu(live: &LiveCard, journal: &Journal, claim: &Claim) -> Result<Vec<Step>, Refusal> {
    let Claim::Vgpu { function, id } = claim else { return Ok(vec![]) };
    let ours = journal.on(live.function.address).any(|entry| entry.claim.as_ref() == Some(claim));
    let Some(vf) = live.virtual_function(*function).filter(|_| !ours) else { return Ok(vec![]) };
    match vf.vgpu.as_ref().map(|vgpu| vgpu.current) {
        Some(None) => Err(Refusal::Unknown(format!("what {function} carries cannot be read"))),
        Some(Some(current)) if current == *id => match vf.function.held_by {
            Some(process) => Err(Refusal::Open { device: function.to_string(), process }),
            None => Ok(vec![Step::VgpuClear { function: *function }]),
        },
        // One of another type is somebody else's.
        Some(Some(_)) | None => Ok(vec![]),
    }
}

/// A GPU instance, unless a share of ours came to stand on it.
fn instance(live: &LiveCard, journal: &Journal, place: OurInstance) -> Result<Vec<Step>, Refusal> {
    let card = live.function.address;
    if let Some(why) = &live.control_fault {
        return Err(Refusal::NotTold { card, why: why.clone() });
    }
    let at = |seen: &&GpuInstanceSeen| (seen.profile, seen.start) == (place.profile, place.start);
    let ours = journal.on(card).any(|entry| {
        entry
            .profile
            .zip(entry.share.start)
            .is_some_and(|(profile, start)| (profile, start) == (place.profile, place.start))
    });
    let Some(seen) = live.control.gpu_instances.iter().find(at).filter(|_| !ours) else { return Ok(vec![]) };
    if let Some(why) = vgpu_on(live, seen.id) {
        return Err(Refusal::InUse(format!("GPU instance {} of {card} ({why})", seen.id)));
    }
    // Several compute instances go one by one: those that are idle would be gone before the driver refuses the others.
    if let Some(process) = live.function.held_by.filter(|_| seen.compute_instances > 1) {
        return Err(Refusal::Open { device: card.to_string(), process });
    }
    Ok(vec![Step::GpuInstanceDestroy { card, gpu_instance: seen.id }])
}

/// The vGPU that stands on a GPU instance, in a sentence. It goes first, also where it was handed over; one that does not
/// tell on which it stands may stand on each.
pub(in crate::devices) fn vgpu_on(live: &LiveCard, gpu_instance: u32) -> Option<String> {
    for vf in &live.virtual_functions {
        let address = vf.function.address;
        let Some(vgpu) = vf.vgpu.as_ref().filter(|vgpu| vgpu.current != Some(0)) else { continue };
        match vgpu.gpu_instance {
            Some(on) if u32::try_from(on) == Ok(gpu_instance) => {
                return Some(format!("the vGPU on {address} stands on it"));
            }
            Some(_) => {}
            None => return Some(format!("the vGPU on {address} may stand on it")),
        }
    }
    live.mdevs.first().map(|mdev| format!("the mediated device {} may stand on it", mdev.uuid))
}
