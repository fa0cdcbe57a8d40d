//! Putting back what was changed: only what still is as gpudesk set it.

use super::{settings, sriov};
use crate::devices::{
    VFIO,
    control::GpuInstanceSeen,
    handed::Adopted,
    journal::{Change, Entry, Journal, OurInstance},
    live::{Function, LiveCard},
    refusal::Refusal,
    step::{Setting, Step},
};

/// Functions to the drivers that they had.
pub(super) fn functions(live: &LiveCard, changes: &[&Change]) -> Result<Vec<Step>, Refusal> {
    let mut steps = vec![];
    let before = |wanted: Setting| changes.iter().find(|change| change.setting == wanted);
    let mut done = vec![];
    for change in changes {
        let Some(address) = change.setting.function() else { continue };
        if done.contains(&address) {
            continue;
        }
        done.push(address);
        // What is gone from the bus has nothing to be put back.
        let Some(function) = live.find(address) else { continue };
        if let Some(process) = function.held_by.filter(|_| function.is_given()) {
            return Err(Refusal::Open { device: address.to_string(), process });
        }
        let size = changes.iter().find_map(|change| {
            settings::size_back(live, change).filter(|_| change.setting.function() == Some(address))
        });
        let reserved = function.driver_override.as_deref() == Some(VFIO);
        if let Some(change) = before(Setting::Override(address))
            && reserved
            && change.before.as_deref() != Some(VFIO)
        {
            steps.push(Step::Override { function: address, driver: change.before.clone() });
        }
        if let Some(change) = before(Setting::Driver(address)) {
            if function.locked {
                steps.push(Step::Unlock { function: address });
            }
            let mut home = driver(function, change.before.as_deref());
            if function.is_given() && !home.is_empty() || function.driver.is_none() {
                // While no driver has it.
                let between = home.iter().position(|step| matches!(step, Step::Probe { .. }));
                let given = between.map_or_else(Vec::new, |between| home.split_off(between));
                home.extend(size.into_iter().chain(given));
            }
            steps.extend(home);
        } else if function.driver.is_none() {
            steps.extend(size);
        }
        if let Some(change) = before(Setting::D3cold(address))
            && change.before.as_deref() == Some("true")
            && function.d3cold == Some(false)
        {
            steps.push(Step::D3cold { function: address, allowed: true });
        }
        if let Some(control) = before(Setting::Power(address)).and_then(|change| change.before.clone())
            && function.power.as_deref() == Some("on")
            && control != "on"
        {
            steps.push(Step::Power { function: address, control });
        }
    }
    Ok(steps)
}

/// A function from `vfio-pci` to the driver before. What another driver has by now is not ours any more.
fn driver(function: &Function, before: Option<&str>) -> Vec<Step> {
    let mut steps = vec![];
    if before == Some(VFIO) || !(function.is_given() || function.driver.is_none()) {
        return steps;
    }
    if function.is_given() {
        steps.push(Step::Unbind { function: function.address, driver: VFIO.into() });
    }
    if let Some(driver) = before {
        steps.push(Step::Probe { function: function.address, driver: Some(driver.into()) });
    }
    steps
}

/// What was changed for the whole card, once nobody has a share of it. What somebody else came to use stays.
pub(super) fn card(live: &LiveCard, journal: &Journal) -> Result<Vec<Step>, Refusal> {
    let card = live.function.address;
    let changes = journal.changes(card, None);
    let before = |wanted: Setting| changes.iter().find(|change| change.setting == wanted);
    let flag =
        |wanted: Setting| before(wanted).and_then(|change| change.before.as_deref()?.parse::<bool>().ok());
    // Of another user: what is typed, bound by hand or open.
    let own: Vec<_> = journal.on(card).filter_map(|entry| entry.claim.as_ref()?.function()).collect();
    let foreign = live.virtual_functions.iter().any(|vf| {
        let address = vf.function.address;
        let typed = vf.vgpu.as_ref().is_some_and(|vgpu| vgpu.current != Some(0));
        !own.contains(&address) && (typed || vf.function.is_vfio() || vf.function.held_by.is_some())
    });
    let own_mdevs = journal.on(card).filter_map(|entry| match &entry.claim {
        Some(crate::devices::journal::Claim::Mdev { uuid, .. }) => Some(uuid),
        _ => None,
    });
    let own_mdevs: Vec<_> = own_mdevs.collect();
    let foreign = foreign
        || live.mdevs.iter().any(|mdev| !own_mdevs.contains(&&mdev.uuid))
        || sriov::foreign_instance(live, journal).is_some();
    let mut steps = settings::back(live, journal, &changes);
    if !steps.is_empty() {
        return Ok(steps);
    }
    let by_stub = sriov::is_of_nvidia(live);
    // Of gpudesk, and of no share any more: what could not be unmade while the driver did not answer. What was handed
    // over waits for its users.
    let place = |entry: &Entry| Some((entry.profile?, entry.share.start?));
    let adopted = |seen: &GpuInstanceSeen| {
        let place = OurInstance { profile: seen.profile, start: seen.start };
        journal.adopted(card).contains(&Adopted::GpuInstance(place))
    };
    let left = live.control.gpu_instances.iter().filter(|seen| {
        sriov::is_ours(journal, card, seen)
            && !adopted(seen)
            && journal.on(card).all(|entry| place(entry) != Some((seen.profile, seen.start)))
    });
    steps.extend(left.map(|seen| Step::GpuInstanceDestroy { card, gpu_instance: seen.id }));
    if !foreign && by_stub {
        steps.extend(sriov::back(live, journal)?);
    }
    if !foreign {
        // Taking the card from its driver ends it as well.
        if let (Some(before), Some(true)) = (flag(Setting::MixedSize), live.control.mixed_size)
            && !before
            && steps.is_empty()
        {
            steps.push(Step::MixedSize { card, on: false });
        }
        if let (Some(before), Some(mig)) = (flag(Setting::MigMode), live.control.mig)
            && (before != mig.current || before != mig.pending)
            && live.sriov.is_none_or(|sriov| sriov.on == 0)
        {
            steps.push(Step::MigMode { card, on: before });
        }
        if let Some(change) = before(Setting::NumVfs)
            && let Some(sriov) = live.sriov.filter(|_| !by_stub)
        {
            let count: u32 = change.before.as_deref().and_then(|count| count.parse().ok()).unwrap_or(0);
            if sriov.on != count {
                // From one number to another only through none.
                if sriov.on != 0 {
                    steps.push(Step::NumVfs { card, count: 0 });
                }
                if count != 0 {
                    steps.push(Step::NumVfs { card, count });
                }
            }
        }
    }
    if let (Some(on), Some(Some(now))) = (flag(Setting::Autoprobe), live.sriov.map(|sriov| sriov.autoprobe))
        && on != now
    {
        steps.push(Step::Autoprobe { card, on });
    }
    // After its driver is back.
    if let Some(on) = flag(Setting::Persistence)
        && live.control.persistence == Some(!on)
    {
        steps.push(Step::Persistence { card, on });
    }
    Ok(steps)
}
