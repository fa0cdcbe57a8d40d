//! From what is there and what the journal knows to the steps that are left. Pure.
//!
//! Each plan is the smallest one from where things stand; steps of the same plan stand in their order. It is made anew
//! after each step, so one that was interrupted anywhere goes on. What belongs to nobody of ours, or is in use, is in no
//! step: then there is a refusal.

pub(super) mod adopted;
mod back;
mod drives;
mod functions;
mod mig;
mod networks;
pub(super) mod params;
mod quotas;
pub mod settings;
pub(super) mod sriov;
mod vgpu;
mod whole;

use gpudesk_crds::types::ShareMode;

use super::{
    journal::{Change, Entry, Journal},
    live::LiveCard,
    refusal::Refusal,
    step::{Setting, Step},
};

/// What is to become so.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// The share is there.
    There(&'a Entry),
    /// The share is gone.
    Gone(&'a Entry),
    /// Nobody has a share of the card: what gpudesk changed on it is as it was before.
    Home,
    /// What was made by hand on the card and handed over is gone, but for what is in use.
    Adopted,
    /// Its owner keeps the card for the host: it and its companions have the host's drivers.
    Host,
}

/// The steps that are left; none when all is as wanted. The ones that depend on what others make come in the next plan.
///
/// # Errors
/// Why it cannot be so now. Nothing is to be done then.
pub fn plan(live: &LiveCard, journal: &Journal, wanted: Wanted<'_>) -> Result<Vec<Step>, Refusal> {
    let address = live.function.address;
    if let Some(known) = journal.cards.get(&address).filter(|known| !known.ids.is_empty()) {
        let found = format!("{}:{}", live.function.vendor, live.function.device);
        if found != known.ids {
            return Err(Refusal::OtherCard { card: address, found, known: known.ids.clone() });
        }
    }
    if let (Some(found), Some(known)) =
        (&live.uuid, journal.cards.get(&address).and_then(|known| known.uuid.as_ref()))
        && found != known
    {
        return Err(Refusal::OtherCard { card: address, found: found.clone(), known: known.clone() });
    }
    let told = live.drive.as_ref().and_then(|drive| drive.serial.as_ref());
    if let Some((found, known)) =
        told.zip(journal.cards.get(&address).and_then(|known| known.serial.as_ref()))
        && found != known
    {
        return Err(Refusal::OtherCard { card: address, found: found.clone(), known: known.clone() });
    }
    // Left by a daemon that ended between the lock and the unbinding: nobody can open the card.
    if live.function.locked && journal.has_changed(address, Setting::Driver(address)) {
        return Ok(vec![Step::Unlock { function: address }]);
    }
    match wanted {
        Wanted::There(entry) => match entry.share.mode {
            ShareMode::Passthrough => whole::there(live, journal, entry),
            ShareMode::VirtualFunctions => functions::there(live, journal, entry),
            ShareMode::Vgpu | ShareMode::Mig => vgpu::there(live, journal, entry),
        },
        Wanted::Gone(entry) => match entry.share.mode {
            ShareMode::Passthrough => whole::gone(live, journal, entry),
            ShareMode::VirtualFunctions => functions::gone(live, journal, entry),
            ShareMode::Vgpu | ShareMode::Mig => vgpu::gone(live, journal, entry),
        },
        // It is somebody else's now, and with it all that was to be put back.
        Wanted::Home if sriov::taken_by_hand(live, journal).is_some() => Ok(vec![]),
        Wanted::Home => {
            let unclean = journal.cards.get(&address).map_or(&[][..], |card| &card.unclean);
            let mut unclean = unclean.iter().filter_map(|function| live.find(*function));
            if let Some(function) = unclean.find(|function| function.is_given()) {
                if let Some(process) = function.held_by {
                    return Err(Refusal::Open { device: function.address.to_string(), process });
                }
                return Ok(whole::clean(function).collect());
            }
            let mut changes = journal.changes(address, None);
            if sriov::is_switched_back(live, journal) {
                let of = |change: &Change| change.setting.function();
                let on_the_way = |function| function == address || live.virtual_function(function).is_some();
                changes.retain(|change| !of(change).is_some_and(on_the_way));
            }
            let mut steps = quotas::back(live, journal, &changes);
            steps.extend(back::functions(live, &changes)?);
            steps.extend(back::card(live, journal)?);
            if steps.is_empty()
                && let Some((known, method)) =
                    journal.cards.get(&address).and_then(|known| Some((known, known.erase?)))
            {
                return drives::erase(live, known, method);
            }
            Ok(steps)
        }
        Wanted::Adopted => adopted::gone(live, journal),
        Wanted::Host => whole::host(live, journal),
    }
}
