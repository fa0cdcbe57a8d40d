//! Virtual functions of NVIDIA cards, whose driver takes no number of them: they are switched while `pci-pf-stub` has the
//! card, and go to the driver one by one once it has the card again. The order is that of NVIDIA's `sriov-manage`; the card
//! is reserved by its address, for an id that another driver is told of takes the virtual functions as well.

use gpudesk_crds::types::PciAddress;

use crate::devices::{
    control::GpuInstanceSeen,
    handed::Adopted,
    journal::{Entry, Journal},
    live::{LiveCard, Sriov},
    refusal::Refusal,
    step::{Setting, Step},
};

/// The kernel's driver that can switch virtual functions of any card, and does nothing else.
pub(in crate::devices) const STUB: &str = "pci-pf-stub";
const DRIVER: &str = "nvidia";

/// What is left before a vGPU can be on a virtual function; none where they are on, and where the card needs none.
pub(super) fn there(live: &LiveCard, journal: &Journal, entry: &Entry) -> Result<Vec<Step>, Refusal> {
    let card = live.function.address;
    // Its types come a moment after the driver.
    if is_turing(live) || entry.prefer == Some(card) {
        return Ok(vec![]);
    }
    let Some(sriov) = live.sriov.filter(|_| is_of_nvidia(live) && live.mdev_types.is_empty()) else {
        return Ok(vec![]);
    };
    // What somebody else switched on stays as it is.
    let ours = sriov.on == 0 || journal.has_changed(card, Setting::NumVfs);
    if ours || is_underway(live, journal) { switch(live, journal, sriov.total) } else { Ok(vec![]) }
}

/// What is left before as many are on as there were before gpudesk.
pub(super) fn back(live: &LiveCard, journal: &Journal) -> Result<Vec<Step>, Refusal> {
    if is_switched_back(live, journal) {
        let on = live.sriov.map_or(0, |sriov| sriov.on);
        switch(live, journal, before(live, journal).unwrap_or(on))
    } else {
        Ok(vec![])
    }
}

/// Whether they are to be switched back. The card and they have a plan of their own then.
pub(super) fn is_switched_back(live: &LiveCard, journal: &Journal) -> bool {
    let other = |sriov: Sriov| before(live, journal).is_some_and(|before| before != sriov.on);
    let sriov = live.sriov.filter(|_| is_of_nvidia(live));
    sriov.is_some_and(|sriov| other(sriov) || is_underway(live, journal))
}

/// The driver for guests that somebody bound the card to by hand, while gpudesk waited to put back how many virtual functions
/// were on. gpudesk itself takes a card to that driver for a share alone; one that did not come back from its reset stays
/// there, and is kept apart meanwhile.
pub(in crate::devices) fn taken_by_hand(live: &LiveCard, journal: &Journal) -> Option<String> {
    let card = live.function.address;
    let known = journal.cards.get(&card)?;
    let waits = known.changes.iter().any(|change| {
        change.of.is_none() && [Setting::NumVfs, Setting::Driver(card)].contains(&change.setting)
    });
    let is_handed_over = known
        .adopted
        .iter()
        .any(|adopted| matches!(adopted, Adopted::Function { function, .. } if *function == card));
    let kept = known.quarantine.is_some() || !known.unclean.is_empty() || is_handed_over;
    let none = journal.on(card).next().is_none();
    live.function.driver.clone().filter(|_| live.function.is_vfio() && waits && none && !kept)
}

/// How many were on before gpudesk changed it.
fn before(live: &LiveCard, journal: &Journal) -> Option<u32> {
    let changes = journal.changes(live.function.address, None);
    let change = changes.iter().find(|change| change.setting == Setting::NumVfs)?;
    Some(change.before.as_deref().and_then(|count| count.parse().ok()).unwrap_or(0))
}

/// Whether vGPUs stand on the card itself, whatever virtual functions it could have (vGPU User Guide: SR-IOV vGPU begins
/// with Ampere).
fn is_turing(live: &LiveCard) -> bool {
    let id = u32::from_str_radix(&live.function.device, 16).unwrap_or(0);
    matches!(id, 0x1e00..=0x1fff | 0x2180..=0x21ff)
}

pub(super) fn is_of_nvidia(live: &LiveCard) -> bool {
    live.function.vendor == "10de"
}

/// Whether gpudesk took the card from its driver for it.
pub(super) fn is_underway(live: &LiveCard, journal: &Journal) -> bool {
    let own = &live.function;
    let is_ours = |change: &&crate::devices::journal::Change| {
        [Setting::Driver(own.address), Setting::Override(own.address)].contains(&change.setting)
    };
    let away =
        matches!(own.driver.as_deref(), None | Some(STUB)) || own.driver_override.as_deref() == Some(STUB);
    away && journal.changes(own.address, None).iter().any(is_ours)
}

/// Whether gpudesk made a GPU instance.
pub(in crate::devices) fn is_ours(journal: &Journal, card: PciAddress, seen: &GpuInstanceSeen) -> bool {
    let ours = journal.cards.get(&card).map_or(&[][..], |card| &card.gpu_instances);
    ours.iter().any(|ours| (ours.profile, ours.start) == (seen.profile, seen.start))
}

/// A GPU instance that gpudesk did not make.
pub(super) fn foreign_instance(live: &LiveCard, journal: &Journal) -> Option<u32> {
    let mut all = live.control.gpu_instances.iter();
    all.find(|seen| !is_ours(journal, live.function.address, seen)).map(|seen| seen.id)
}

/// The steps that are left until so many are on, and the card and all of them have NVIDIA's driver.
fn switch(live: &LiveCard, journal: &Journal, count: u32) -> Result<Vec<Step>, Refusal> {
    let own = &live.function;
    let card = own.address;
    let sriov = live.sriov.ok_or(Refusal::NoFunction(card))?;
    let driver = own.driver.as_deref();
    if let Some(other) = driver.filter(|driver| ![DRIVER, STUB].contains(driver)) {
        return Err(Refusal::Foreign { device: card.to_string(), what: format!("bound to {other}") });
    }
    let reserved = own.driver_override.as_deref() == Some(STUB);
    let taking = |function, driver: &str| Step::Unbind { function, driver: driver.into() };
    let giving = |function, driver: &str| Step::Probe { function, driver: Some(driver.into()) };
    let mut steps = vec![];
    if sriov.on == count {
        if reserved {
            let changes = journal.changes(card, None);
            let before = changes.iter().find(|change| change.setting == Setting::Override(card));
            steps.push(Step::Override {
                function: card,
                driver: before.and_then(|change| change.before.clone()),
            });
        }
        if driver == Some(STUB) {
            steps.push(taking(card, STUB));
        }
        if driver != Some(DRIVER) {
            steps.push(giving(card, DRIVER));
        }
        let without = live.virtual_functions.iter().filter(|vf| vf.function.driver.is_none());
        steps.extend(without.map(|vf| giving(vf.function.address, DRIVER)));
        return Ok(steps);
    }
    if let Some(vgpu) = live.vgpu() {
        return Err(Refusal::InUse(vgpu));
    }
    if let Some(why) = &live.control_fault {
        return Err(Refusal::NotTold { card, why: why.clone() });
    }
    // They do not outlive the driver's hold on the card.
    if let Some(foreign) = foreign_instance(live, journal) {
        let device = format!("GPU instance {foreign} of {card}");
        return Err(Refusal::Foreign { device, what: "made on the host".into() });
    }
    let mut all = std::iter::once(own).chain(live.virtual_functions.iter().map(|vf| &vf.function));
    if let Some((function, process)) = all.find_map(|one| Some((one.address, one.held_by?))) {
        return Err(Refusal::Open { device: function.to_string(), process });
    }
    let functions = || live.virtual_functions.iter().map(|vf| &vf.function);
    if let Some(given) = functions().find(|function| function.is_vfio()) {
        return Err(Refusal::Foreign { device: given.address.to_string(), what: "bound to vfio-pci".into() });
    }
    if !live.has_stub {
        return Err(Refusal::FunctionsOff(card));
    }
    if driver == Some(DRIVER) && live.control.persistence == Some(true) {
        steps.push(Step::Persistence { card, on: false });
    }
    if driver == Some(DRIVER) {
        let bound = functions().filter(|function| function.driver.as_deref() == Some(DRIVER));
        steps.extend(bound.map(|function| taking(function.address, DRIVER)));
        steps.push(taking(card, DRIVER));
    }
    if !reserved {
        steps.push(Step::Override { function: card, driver: Some(STUB.into()) });
    }
    if driver != Some(STUB) {
        steps.push(giving(card, STUB));
    }
    // From one number to another only through none.
    if sriov.on > 0 && count > 0 {
        steps.push(Step::NumVfs { card, count: 0 });
    }
    steps.push(Step::NumVfs { card, count });
    Ok(steps)
}
