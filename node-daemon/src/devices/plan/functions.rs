//! Plain virtual functions, as AMD's and Intel's drivers make them: each goes to `vfio-pci` by itself.

use gpudesk_crds::types::PciAddress;

use super::{back, quotas, sriov, whole};
use crate::devices::{
    journal::{Claim, Entry, Journal},
    live::{LiveCard, VirtualFunction},
    refusal::Refusal,
    step::{Setting, Step},
};

/// How many functions a type has, as in `8VF` and `MI300X-8VF`.
pub(super) fn count(type_name: &str) -> Option<u32> {
    let digits = type_name.rsplit('-').next()?.strip_suffix("VF")?;
    digits.parse().ok().filter(|count| *count > 0)
}

pub(super) fn there(live: &LiveCard, journal: &Journal, entry: &Entry) -> Result<Vec<Step>, Refusal> {
    let card = live.function.address;
    let ours = |function: PciAddress| journal.has_changed(card, Setting::Driver(function));
    let claimed = match entry.claim {
        Some(Claim::Function(function)) => live.virtual_function(function),
        _ => None,
    };
    if let Some(vf) = claimed.filter(|vf| vf.function.is_given() && ours(vf.function.address)) {
        return quotas::there(live, journal, vf);
    }
    quotas::fit(live, journal)?;
    if !live.has_vfio {
        return Err(Refusal::NoVfio);
    }
    let mut steps = switch_on(live, journal, entry)?;
    if !steps.is_empty() {
        return Ok(steps);
    }
    let taken = |address| {
        let others = journal.on(card).filter(|other| other.key != entry.key);
        others.filter_map(|other| other.claim.as_ref()?.function()).any(|function| function == address)
    };
    let free = |vf: &&VirtualFunction| {
        let function = &vf.function;
        vf.alone
            && !function.reset_methods.is_empty()
            && !taken(function.address)
            && function.held_by.is_none()
            && (!function.is_vfio() || function.is_given() && ours(function.address))
    };
    let preferred = live.virtual_functions.iter().find(|vf| Some(vf.function.address) == entry.prefer);
    let mut uncleanable = live.virtual_functions.iter().map(|vf| &vf.function);
    let free = claimed.into_iter().chain(preferred).chain(&live.virtual_functions).find(free);
    if let (None, Some(function)) = (free, uncleanable.find(|function| function.reset_methods.is_empty())) {
        return Err(Refusal::NoReset(function.address));
    }
    steps.extend(whole::give(&free.ok_or(Refusal::NoFunction(card))?.function));
    Ok(steps)
}

/// The right number of functions, which changes only through none and only while nobody uses one.
fn switch_on(live: &LiveCard, journal: &Journal, entry: &Entry) -> Result<Vec<Step>, Refusal> {
    let card = live.function.address;
    let unknown = || Refusal::Unknown(format!("{} is no type of virtual functions", entry.share.type_name));
    let wanted = count(&entry.share.type_name).ok_or_else(unknown)?;
    let sriov = live.sriov.ok_or(Refusal::NoFunction(card))?;
    if sriov.on == wanted {
        return Ok(vec![]);
    }
    let mut all = live.virtual_functions.iter();
    let used = live.vgpu().is_some() || all.any(|vf| vf.function.held_by.is_some() || vf.function.is_vfio());
    let shared = journal.on(card).any(|other| other.key != entry.key);
    // What somebody else switched on stays as it is.
    let foreign = sriov.on > 0 && !journal.has_changed(card, Setting::NumVfs);
    if used || shared || foreign || wanted > sriov.total {
        return Err(Refusal::OtherCount { card, on: sriov.on, wanted });
    }
    if let Some(process) = live.function.held_by.filter(|_| live.function.is_vfio()) {
        return Err(Refusal::Open { device: card.to_string(), process });
    }
    let mut steps = vec![];
    if sriov.on > 0 {
        steps.push(Step::NumVfs { card, count: 0 });
    }
    if sriov.autoprobe == Some(true) {
        steps.push(Step::Autoprobe { card, on: false });
    }
    steps.push(Step::NumVfs { card, count: wanted });
    Ok(steps)
}

pub(super) fn gone(live: &LiveCard, journal: &Journal, entry: &Entry) -> Result<Vec<Step>, Refusal> {
    let changes = journal.changes(live.function.address, Some(&entry.key));
    let mut steps = vec![];
    if let Some(Claim::Function(address)) = entry.claim
        && let Some(function) = live.find(address).filter(|function| function.is_given())
        && changes.iter().any(|change| change.setting == Setting::Driver(address))
    {
        if let Some(process) = function.held_by {
            return Err(Refusal::Open { device: address.to_string(), process });
        }
        if !entry.cleaned.contains(&address) {
            steps.push(Step::Reset { function: address });
        }
    }
    steps.extend(quotas::back(live, journal, &changes));
    match all_off(live, journal, entry) {
        Some(step) => steps.push(step),
        None => steps.extend(back::functions(live, &changes)?),
    }
    Ok(steps)
}

/// With the last share the functions go, and with them what was changed on them. Where the driver refused that, they go back
/// one by one, and the rest later.
fn all_off(live: &LiveCard, journal: &Journal, entry: &Entry) -> Option<Step> {
    let card = live.function.address;
    live.sriov.filter(|sriov| sriov.on > 0 && !sriov::is_of_nvidia(live))?;
    let switched =
        journal.changes(card, None).into_iter().find(|change| change.setting == Setting::NumVfs)?;
    let off = Step::NumVfs { card, count: 0 };
    let refused = entry.underway.as_ref().is_some_and(|underway| underway.what == off);
    let own = entry.claim.as_ref().and_then(Claim::function);
    let ours = |address| Some(address) == own && journal.has_changed(card, Setting::Driver(address));
    let used = |vf: &VirtualFunction| {
        vf.function.held_by.is_some() || vf.function.is_vfio() && !ours(vf.function.address)
    };
    let others = journal.on(card).any(|other| other.key != entry.key)
        || live.vgpu().is_some()
        || live.virtual_functions.iter().any(used);
    let back_to_none = switched.before.as_deref().is_none_or(|before| before == "0");
    (back_to_none && !refused && !others).then_some(off)
}
