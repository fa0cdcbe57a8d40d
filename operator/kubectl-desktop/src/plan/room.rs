//! How many more would fit: of each profile's share, and of each template's desktop. Pure.
//!
//! Shares are counted by the engine. Desktops are placed one after the other, until none fits: nothing
//! is estimated.

use std::{cmp::Reverse, sync::Arc};

use gpudesk_crds::{Desktop, DesktopSpec, desktop::TemplateRef};

use super::{
    document::{Room, State},
    estate::Estate,
    order::{Candidate, Intent},
    round::{Progress, Round, allocation},
};
use crate::{
    desktop::validate::{Planned, Wanted, validate_for_plan},
    gpu_profile::validate::validate,
};

/// Where counting desktops ends.
const MOST: i64 = 10_000;

/// How many more of everything fit beside what `round` has placed. What cannot be made has no line.
pub(super) fn room(round: &Round<'_>, candidates: &[Candidate], progress: Progress<'_>) -> Vec<Room> {
    let (mut now, mut repacked) = (round.clone(), repacked(round, candidates, progress));
    let estate = round.estate();
    let mut found = vec![];
    for (name, profile) in &estate.profiles {
        let Ok(share) = validate(profile) else { continue };
        let more = i64::from(now.snapshot.count(&share).placeable);
        let again = repacked.as_mut().map_or(0, |again| again.snapshot.count(&share).placeable);
        found.push(Room {
            kind: "GpuProfile".into(),
            name: name.clone(),
            more,
            more_when_repacked: more.max(again.into()),
            at_least: false,
        });
    }
    for (done, key) in estate.templates.keys().enumerate() {
        progress("templates counted", done);
        let Some((desktop, wanted)) = probe(estate, &key.namespace, &key.name) else { continue };
        let more = count(round.clone(), &desktop, &wanted);
        let again = repacked.clone().map_or(0, |again| count(again, &desktop, &wanted));
        found.push(Room {
            kind: "DesktopTemplate".into(),
            name: key.to_string(),
            more,
            more_when_repacked: more.max(again),
            at_least: more.max(again) >= MOST,
        });
    }
    found
}

/// The same desktops placed anew, the largest first; `None` when not all of them find a place then.
fn repacked<'a>(round: &Round<'a>, candidates: &[Candidate], progress: Progress<'_>) -> Option<Round<'a>> {
    let has_place = |state: State| match state {
        State::Held | State::Placed => true,
        State::Pending | State::Stopped => false,
    };
    let mut again: Vec<(Candidate, i64)> = vec![];
    for (candidate, planned) in candidates.iter().zip(&round.desktops) {
        if has_place(planned.state) {
            let mut wanted = candidate.wanted.clone()?;
            // Else each would take again what it has.
            wanted.request.previous = None;
            let size = planned.gpus.iter().map(|gpu| gpu.framebuffer_mib).fold(0, i64::saturating_add);
            again.push((Candidate { intent: Intent::Wants(wanted), ..candidate.clone() }, size));
        }
    }
    let size = |candidate: &Candidate| {
        let demand = candidate.wanted.as_ref().map(|wanted| wanted.request.demand.clone());
        demand.map(|demand| (demand.cpu.vcpus(), demand.memory.mib))
    };
    again.sort_by_cached_key(|(candidate, cards)| {
        (Reverse(*cards), Reverse(size(candidate)), candidate.key.clone())
    });
    let mut fresh = Round::new(round.estate(), round.limits(), candidates, false);
    for (done, (candidate, _)) in again.iter().enumerate() {
        progress("desktops placed anew, to see what scattering costs", done);
        fresh.decide(candidate);
    }
    fresh.desktops.iter().all(|desktop| has_place(desktop.state)).then_some(fresh)
}

/// A desktop of a template, without a name.
fn probe(estate: &Estate, namespace: &str, template: &str) -> Option<(Desktop, Wanted)> {
    let spec = DesktopSpec { template_ref: TemplateRef { name: template.into() }, ..DesktopSpec::default() };
    let mut desktop = Desktop::new("", spec);
    desktop.metadata.namespace = Some(namespace.into());
    let Planned { wanted, refused: _ } = validate_for_plan(&desktop, &estate.referenced(&desktop)).ok()?;
    Some((desktop, wanted))
}

fn count(mut round: Round<'_>, desktop: &Desktop, wanted: &Wanted) -> i64 {
    let mut wanted = wanted.clone();
    for number in 0..MOST {
        // No desktop can have such a name: nobody's place is taken for its own.
        wanted.request.desktop.name = format!("#{number}");
        round.snapshot.catch_up();
        let Ok(placed) = round.snapshot.place(&wanted.request) else { return number };
        let allocation = Arc::new(allocation(placed, desktop, &wanted));
        round.snapshot.take(&wanted.request.desktop, &allocation);
    }
    MOST
}
