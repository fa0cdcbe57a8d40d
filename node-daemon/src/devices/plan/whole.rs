//! Whole cards: every endpoint of the IOMMU group goes to `vfio-pci`, one by one, and comes back.

use gpudesk_inventory::topology::{iommu, pci};

use super::{back, drives, networks, settings};
use crate::{
    devices::{
        VFIO,
        journal::{Entry, Journal},
        live::{Function, LiveCard},
        refusal::Refusal,
        step::{Setting, Step},
    },
    host::gpu_driver::What,
};

/// Cards that a reset loses when they are given whole, by vendor and device id.
const LOST_BY_RESET: [(&str, &str, &str); 2] =
    [("1002", "74a1", "Instinct MI300X"), ("1002", "75a3", "Instinct MI355X")];

pub(super) fn there(live: &LiveCard, journal: &Journal, entry: &Entry) -> Result<Vec<Step>, Refusal> {
    let card = live.function.address;
    let changes = journal.changes(card, Some(&entry.key));
    let ours = |function: &Function| {
        changes.iter().any(|change| change.setting == Setting::Driver(function.address))
    };
    let mut steps = networks::there(live, entry)?;
    if live.all().all(|function| function.is_given() && ours(function)) {
        steps.extend(before_its_user(live, journal));
        return Ok(steps);
    }
    fit(live, journal, entry)?;
    for function in live.all() {
        if function.is_given() && ours(function) {
            continue;
        }
        if function.is_vfio() {
            let what = format!("bound to {}", function.driver.as_deref().unwrap_or(VFIO));
            return Err(Refusal::Foreign { device: function.address.to_string(), what });
        }
        in_the_way(live, function)?;
        if let Some(process) = function.held_by {
            return Err(Refusal::Open { device: function.address.to_string(), process });
        }
    }
    if live.control.persistence == Some(true) {
        steps.push(Step::Persistence { card, on: false });
    }
    let size = settings::size(live, journal)?;
    for function in live.all() {
        for step in give(function) {
            // While no driver has it: just before one gets it.
            let is_due = function.address == card && matches!(step, Step::Probe { .. });
            steps.extend(size.clone().filter(|_| is_due));
            steps.push(step);
        }
    }
    Ok(steps)
}

/// What is left once `vfio-pci` has all, and nobody has them open: it lets them sleep, and what their registers tell is
/// known before the first user.
fn before_its_user(live: &LiveCard, journal: &Journal) -> Vec<Step> {
    let known = journal.cards.get(&live.function.address).map(|card| &card.registers);
    let mut steps = vec![];
    for function in live.all().filter(|function| function.held_by.is_none()) {
        steps.extend(wake(function));
        let is_known = known.is_some_and(|known| known.contains_key(&function.address));
        if is_cleaned(live, function) && !is_known {
            steps.push(Step::Registers { function: function.address });
        }
    }
    steps
}

/// Whether a function is reset between users.
fn is_cleaned(live: &LiveCard, function: &Function) -> bool {
    function.address == live.function.address || is_card(function)
}

fn wake(function: &Function) -> Option<Step> {
    let sleeps = function.power.as_deref() == Some("auto");
    sleeps.then(|| Step::Power { function: function.address, control: "on".into() })
}

/// The reset of a function, which has to be awake to be seen again.
pub(super) fn clean(function: &Function) -> impl Iterator<Item = Step> {
    wake(function).into_iter().chain([Step::Reset { function: function.address }])
}

/// Whether the card can be given whole at all, and nobody has a part of it.
fn fit(live: &LiveCard, journal: &Journal, entry: &Entry) -> Result<(), Refusal> {
    let card = live.function.address;
    let own = &live.function;
    if live.boot_vga {
        return Err(Refusal::BootVga(card));
    }
    let mut lost = LOST_BY_RESET.iter();
    let lost = lost.find(|(vendor, device, _)| own.vendor == *vendor && own.device == *device);
    if let Some((.., product)) = lost {
        return Err(Refusal::LostByReset { card, product });
    }
    if live.group.is_none() {
        return Err(Refusal::NoIommu(card));
    }
    let is_reset = |one: &&Function| one.address == card || is_card(one);
    if let Some(function) = live.all().filter(is_reset).find(|one| one.reset_methods.is_empty()) {
        return Err(Refusal::NoReset(function.address));
    }
    if !live.has_vfio {
        return Err(Refusal::NoVfio);
    }
    if entry.what == What::Drive {
        drives::fit(live, journal.cards.get(&card))?;
    }
    if let Some(vgpu) = live.vgpu() {
        return Err(Refusal::InUse(vgpu));
    }
    if let Some(sriov) = live.sriov.filter(|sriov| sriov.on > 0) {
        return Err(Refusal::FunctionsOn { card, on: sriov.on });
    }
    if let Some((device, what)) = &live.along_in_use {
        return Err(Refusal::InUse(format!("{device}, which would go along ({what}),")));
    }
    if let Some(why) = &live.control_fault {
        return Err(Refusal::NotTold { card, why: why.clone() });
    }
    if live.control.mig.is_some_and(|mode| mode.current || mode.pending) {
        let why = "it would be given to the guest so; switch it off on the host first".into();
        return Err(Refusal::MigMode { card, is: "on", why });
    }
    // Another share of the card, or of a card that would go along.
    let others = journal.shares.iter().filter(|other| other.key != entry.key);
    for other in others {
        if let Some(function) = live
            .all()
            .find(|function| function.address == other.card || other.companions.contains(&function.address))
        {
            return Err(Refusal::InUse(function.address.to_string()));
        }
    }
    Ok(())
}

fn is_card(function: &Function) -> bool {
    pci::kind(&function.class) == pci::FunctionKind::Card
}

/// Whether a function of the group is one that the host uses for itself.
fn in_the_way(live: &LiveCard, function: &Function) -> Result<(), Refusal> {
    let card = live.function.address;
    let kind = pci::kind(&function.class);
    let along = function.address == card
        || kind == pci::FunctionKind::Card && is_card(&live.function)
        || kind == pci::FunctionKind::Other && iommu::is_companion(card, function.address);
    match function.driver.as_deref() {
        None | Some("pci-stub") => Ok(()),
        Some(_) if along => Ok(()),
        Some(driver) => {
            Err(Refusal::GroupShared { card, device: function.address, driver: driver.to_owned() })
        }
    }
}

/// One function to `vfio-pci`, awake and kept so.
pub(super) fn give(function: &Function) -> Vec<Step> {
    let address = function.address;
    let mut steps = vec![];
    if function.d3cold == Some(true) {
        steps.push(Step::D3cold { function: address, allowed: false });
    }
    steps.extend(wake(function));
    if function.driver_override.as_deref() != Some(VFIO) {
        steps.push(Step::Override { function: address, driver: Some(VFIO.into()) });
    }
    if function.is_given() {
        return steps;
    }
    if let Some(driver) = &function.driver {
        steps.push(Step::Unbind { function: address, driver: driver.clone() });
    }
    steps.push(Step::Probe { function: address, driver: Some(VFIO.into()) });
    steps
}

pub(super) fn gone(live: &LiveCard, journal: &Journal, entry: &Entry) -> Result<Vec<Step>, Refusal> {
    let card = live.function.address;
    let changes = journal.changes(card, Some(&entry.key));
    let given = |function: &&Function| {
        let by_us = Setting::Driver(function.address);
        function.is_given() && changes.iter().any(|change| change.setting == by_us)
    };
    for function in live.all().filter(given) {
        if let Some(process) = function.held_by {
            return Err(Refusal::Open { device: function.address.to_string(), process });
        }
    }
    let was_used =
        |function: &&Function| is_cleaned(live, function) && !entry.cleaned.contains(&function.address);
    let mut steps: Vec<Step> = live.all().filter(given).filter(was_used).flat_map(clean).collect();
    steps.extend(networks::gone(live, entry, &changes)?);
    steps.extend(back::functions(live, &changes)?);
    if steps.is_empty() {
        steps.extend(networks::mtu(live, &changes));
    }
    Ok(steps)
}

/// A card that is kept for the host, to the host's drivers: only when nobody uses the group.
pub(super) fn host(live: &LiveCard, journal: &Journal) -> Result<Vec<Step>, Refusal> {
    let card = live.function.address;
    let own = |function: &&Function| function.address == card || iommu::is_companion(card, function.address);
    let stubbed = |function: &&Function| {
        // One of which the driver was taken, and the other not yet given.
        let between =
            function.driver.is_none() && journal.has_changed(card, Setting::Driver(function.address));
        function.is_vfio() || function.driver.as_deref() == Some("pci-stub") || between
    };
    let bound: Vec<&Function> = live.all().filter(own).filter(stubbed).collect();
    if bound.is_empty() {
        return Ok(vec![]);
    }
    // They go with the driver that the card has, whoever uses them.
    if let Some(sriov) = live.sriov.filter(|sriov| sriov.on > 0)
        && bound.iter().any(|function| function.address == card && function.driver.is_some())
    {
        return Err(Refusal::FunctionsOn { card, on: sriov.on });
    }
    if journal.shares.iter().any(|entry| {
        live.all()
            .any(|function| function.address == entry.card || entry.companions.contains(&function.address))
    }) {
        return Err(Refusal::InUse(card.to_string()));
    }
    for function in live.all() {
        if let Some(process) = function.held_by {
            return Err(Refusal::Open { device: function.address.to_string(), process });
        }
    }
    let mut steps = vec![];
    for function in bound {
        let address = function.address;
        if function.driver_override.is_some() {
            steps.push(Step::Override { function: address, driver: None });
        }
        if let Some(driver) = function.driver.clone() {
            steps.push(Step::Unbind { function: address, driver });
        }
        steps.push(Step::Probe { function: address, driver: None });
    }
    Ok(steps)
}
