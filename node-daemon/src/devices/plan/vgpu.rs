//! vGPUs, time-sliced and on MIG: mediated devices on the card or on its virtual functions, and vendor-specific VFIO.

use gpudesk_crds::types::{PciAddress, ShareMode};
use gpudesk_inventory::simulated::uuid;

use super::{mig, params, settings, sriov};
use crate::devices::{
    journal::{Claim, Entry, Journal},
    live::{LiveCard, Mdev, VendorVgpu, VirtualFunction},
    refusal::Refusal,
    step::{Setting, Step},
};

pub(super) fn there(live: &LiveCard, journal: &Journal, entry: &Entry) -> Result<Vec<Step>, Refusal> {
    let card = live.function.address;
    let on_mig = entry.share.mode == ShareMode::Mig;
    // What is there needs nothing beside it, whatever else changed meanwhile.
    if let Some(steps) = made(live, entry, on_mig)? {
        return Ok(if steps.is_empty() { settings::there(live, journal) } else { steps });
    }
    settings::fit(live, journal)?;
    if !sriov::is_underway(live, journal) {
        if on_mig {
            if let Some(step) = mig::mode(live, journal)? {
                return Ok(vec![step]);
            }
        } else if let Some(why) = &live.control_fault {
            return Err(Refusal::NotTold { card, why: why.clone() });
        } else if live.control.mig.is_some_and(|mode| mode.current) {
            let why =
                "time-sliced vGPUs take it off, and it is not gpudesk's to switch off while MIG is used"
                    .into();
            return Err(Refusal::MigMode { card, is: "on", why });
        }
    }
    let mut steps = sriov::there(live, journal, entry)?;
    if !steps.is_empty() {
        return Ok(steps);
    }
    // The driver makes no vGPU on a card that sleeps.
    let asleep = journal.cards.get(&card).is_some_and(|known| known.wish.persistence == Some(false));
    if !asleep && journal.has_changed(card, Setting::Persistence) && live.control.persistence == Some(false) {
        return Ok(vec![Step::Persistence { card, on: true }]);
    }
    if on_mig {
        match mig::under(live, journal, entry)? {
            Ok(seen) => steps.extend(mig::scheduler(live, seen, entry)?),
            Err(steps) => return Ok(steps),
        }
    } else {
        steps.extend(settings::scheduler(live, journal, entry)?);
        steps.extend(mig::mixed(live, entry)?);
    }
    let wanted = entry.share.vgpu_type.as_ref().filter(|_| on_mig).unwrap_or(&entry.share.type_name);
    if live.virtual_functions.iter().any(|vf| vf.vgpu.is_some()) {
        steps.extend(vendor(live, journal, entry, wanted)?);
    } else {
        steps.extend(mdev(live, journal, entry, wanted)?);
    }
    Ok(steps)
}

/// What is left of a vGPU that exists; `None` when it does not.
fn made(live: &LiveCard, entry: &Entry, on_mig: bool) -> Result<Option<Vec<Step>>, Refusal> {
    match &entry.claim {
        Some(Claim::Vgpu { function, id }) => {
            let vf = live.virtual_function(*function);
            let Some((vf, vgpu)) = vf.and_then(|vf| Some((vf, vf.vgpu.as_ref()?))) else { return Ok(None) };
            if vgpu.current != Some(*id) {
                return Ok(None);
            }
            let mut steps = vec![];
            if on_mig {
                let instances = &live.control.gpu_instances;
                let place = (entry.profile, entry.share.start);
                let under = instances.iter().find(|seen| (Some(seen.profile), Some(seen.start)) == place);
                if let Some(under) = under
                    && vgpu.gpu_instance.is_some_and(|now| u32::try_from(now) != Ok(under.id))
                {
                    steps.push(Step::VgpuInstance { function: *function, gpu_instance: under.id });
                }
            } else if let Some(start) = entry.share.start
                && vgpu.placement != Some(start)
            {
                steps.push(Step::VgpuStart { function: *function, start });
            }
            if let Some(params) = params::text(entry, None)?
                && vgpu.params.as_ref() != Some(&params)
            {
                steps.push(Step::VgpuParams { function: *function, params });
            }
            // It is moved before anybody opens it, or not at all.
            match vf.function.held_by {
                Some(process) if !steps.is_empty() => {
                    Err(Refusal::Open { device: function.to_string(), process })
                }
                _ => Ok(Some(steps)),
            }
        }
        Some(Claim::Mdev { uuid, parent, type_id }) => {
            let start = entry.share.start.filter(|_| !on_mig);
            let params = params::text(entry, start)?;
            Ok(find(live, uuid, *parent, type_id).map(|mdev| match (params, start) {
                (Some(params), _) if mdev.params.as_ref() == Some(&params) => vec![],
                (Some(params), _) => vec![Step::MdevParams { uuid: uuid.clone(), params }],
                (None, Some(start))
                    if mdev.params.as_deref() != Some(&*format!("vgpu-placement-id={start}")) =>
                {
                    vec![Step::MdevStart { uuid: uuid.clone(), start }]
                }
                _ => vec![],
            }))
        }
        Some(Claim::Card | Claim::Function(_)) | None => Ok(None),
    }
}

fn find<'a>(live: &'a LiveCard, uuid: &str, parent: PciAddress, type_id: &str) -> Option<&'a Mdev> {
    let same = |mdev: &&Mdev| {
        mdev.uuid == uuid && mdev.parent == parent && mdev.type_id.as_deref().is_none_or(|id| id == type_id)
    };
    live.mdevs.iter().find(same)
}

/// Functions that another share of ours is to have.
fn taken(journal: &Journal, entry: &Entry) -> Vec<PciAddress> {
    let others = journal.on(entry.card).filter(|other| other.key != entry.key);
    others.filter_map(|other| other.claim.as_ref()?.function()).collect()
}

fn vendor(live: &LiveCard, journal: &Journal, entry: &Entry, wanted: &str) -> Result<Vec<Step>, Refusal> {
    let card = live.function.address;
    let taken = taken(journal, entry);
    let free = |vf: &VirtualFunction| {
        vf.vgpu.as_ref().is_some_and(|vgpu| vgpu.current == Some(0))
            && vf.alone
            && vf.function.held_by.is_none()
            && !vf.function.is_vfio()
            && !taken.contains(&vf.function.address)
    };
    let of = |vf: &VirtualFunction, vgpu: &VendorVgpu| {
        let (id, _) = vgpu.creatable.iter().find(|(_, name)| *name == wanted)?;
        Some((vf.function.address, *id))
    };
    let earlier = entry.claim.as_ref().and_then(Claim::function).or(entry.prefer);
    let earlier = live.virtual_functions.iter().filter(|vf| Some(vf.function.address) == earlier);
    let mut all = earlier.chain(&live.virtual_functions).filter(|vf| free(vf));
    let found = all.clone().find_map(|vf| of(vf, vf.vgpu.as_ref()?));
    let Some((function, id)) = found else {
        let Some(first) = all.next() else { return Err(Refusal::NoFunction(card)) };
        let offered = first.vgpu.iter().flat_map(|vgpu| vgpu.creatable.values());
        return Err(not_offered(card, wanted, offered));
    };
    let mut steps = vec![Step::VgpuType { function, id }];
    if let Some(start) = entry.share.start.filter(|_| entry.share.mode == ShareMode::Vgpu) {
        steps.push(Step::VgpuStart { function, start });
    }
    steps.extend(params::text(entry, None)?.map(|params| Step::VgpuParams { function, params }));
    Ok(steps)
}

fn not_offered<'a>(card: PciAddress, wanted: &str, offered: impl Iterator<Item = &'a String>) -> Refusal {
    let offered: Vec<&str> = offered.map(String::as_str).collect();
    let offered = if offered.is_empty() { "none".into() } else { offered.join(", ") };
    Refusal::NotOffered { card, type_name: wanted.into(), offered }
}

fn mdev(live: &LiveCard, journal: &Journal, entry: &Entry, wanted: &str) -> Result<Vec<Step>, Refusal> {
    let card = live.function.address;
    let taken = taken(journal, entry);
    let carries = |address: PciAddress| live.mdevs.iter().any(|mdev| mdev.parent == address);
    // A virtual function carries one; the card itself as many as its types say.
    let free = |vf: &&VirtualFunction| {
        let address = vf.function.address;
        vf.alone && !vf.function.is_vfio() && !carries(address) && !taken.contains(&address)
    };
    let on_functions = live.virtual_functions.iter().filter(free);
    let on_functions = on_functions.map(|vf| (vf.function.address, &vf.mdev_types));
    let all: Vec<_> = std::iter::once((card, &live.mdev_types)).chain(on_functions).collect();
    if all.iter().all(|(_, types)| types.is_empty()) {
        return Err(Refusal::NoFunction(card));
    }
    let prefers = |address: PciAddress| Some(address) == entry.prefer;
    let mut offers: Vec<_> = all
        .iter()
        .flat_map(|(address, types)| types.iter().map(move |offer| (*address, offer)))
        .filter(|(_, offer)| offer.available > 0)
        .collect();
    offers.sort_by_key(|(address, _)| !prefers(*address));
    let Some((parent, found)) = offers.iter().find(|(_, offer)| offer.name == wanted) else {
        let mut names: Vec<&String> = offers.iter().map(|(_, offer)| &offer.name).collect();
        names.sort();
        names.dedup();
        return Err(not_offered(card, wanted, names.into_iter()));
    };
    let uuid = uuid(&["mdev", &entry.key.desktop_uid, &entry.key.request]).to_string();
    if live.mdevs.iter().any(|mdev| mdev.uuid == uuid) {
        return Err(Refusal::Foreign {
            device: uuid,
            what: "a mediated device that is there already".into(),
        });
    }
    let mut steps = vec![Step::MdevCreate { parent: *parent, type_id: found.id.clone(), uuid: uuid.clone() }];
    let start = entry.share.start.filter(|_| entry.share.mode == ShareMode::Vgpu);
    match (params::text(entry, start)?, start) {
        (Some(params), _) => steps.push(Step::MdevParams { uuid, params }),
        (None, Some(start)) => steps.push(Step::MdevStart { uuid, start }),
        (None, None) => {}
    }
    Ok(steps)
}

pub(super) fn gone(live: &LiveCard, journal: &Journal, entry: &Entry) -> Result<Vec<Step>, Refusal> {
    let mut steps = vec![];
    match &entry.claim {
        Some(Claim::Vgpu { function, id }) => {
            let vf = live.virtual_function(*function);
            let ours = |vf: &&VirtualFunction| vf.vgpu.as_ref().is_some_and(|vgpu| vgpu.current == Some(*id));
            // One of another type is somebody else's.
            if let Some(vf) = vf.filter(ours) {
                if let Some(process) = vf.function.held_by {
                    return Err(Refusal::Open { device: function.to_string(), process });
                }
                // Whether they go with the vGPU nobody says.
                let ours = params::text(entry, None).ok().flatten();
                if ours.is_some() && vf.vgpu.as_ref().and_then(|vgpu| vgpu.params.as_ref()) == ours.as_ref() {
                    steps.push(Step::VgpuParams { function: *function, params: String::new() });
                }
                steps.push(Step::VgpuClear { function: *function });
            }
        }
        Some(Claim::Mdev { uuid, parent, type_id }) => {
            if let Some(mdev) = find(live, uuid, *parent, type_id) {
                if let Some(process) = mdev.held_by {
                    return Err(Refusal::Open { device: uuid.clone(), process });
                }
                steps.push(Step::MdevRemove { uuid: uuid.clone() });
            }
        }
        Some(Claim::Card | Claim::Function(_)) | None => {}
    }
    if entry.share.mode == ShareMode::Mig {
        steps.extend(mig::gone(live, journal, entry));
    }
    Ok(steps)
}
