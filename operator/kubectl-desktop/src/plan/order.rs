//! Which desktops want a place, and who goes first. Pure.

use std::{cmp::Reverse, sync::Arc};

use gpudesk_crds::{Allocation, Desktop, DesktopTemplate, conditions::Reason, desktop::PowerState};

use super::estate::{Entry, Estate};
use crate::{
    desktop::decide::stays_ended,
    desktop::validate::{Planned, Wanted, validate, validate_for_plan},
    desktop_template::validate::keeps_disks,
    gpu_profile::validate as profile_validate,
    invalid::Invalid,
    placement::request::DesktopKey,
};

/// What a desktop is about.
#[derive(Clone, Debug)]
pub enum Intent {
    /// It holds a place already.
    Holds(Arc<Allocation>),
    /// It wants one.
    Wants(Box<Wanted>),
    /// It cannot be made.
    Cannot(Invalid),
    /// It should not run.
    Rests,
}

/// A desktop and what it is about.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its key.
    pub key: DesktopKey,
    /// The object.
    pub desktop: Arc<Desktop>,
    /// What it is about.
    pub intent: Intent,
    /// What it asks for, whatever it is about; absent when it cannot be made.
    pub wanted: Option<Box<Wanted>>,
    /// The fields that this version plans for and does not do yet, each with its object.
    pub refused: Vec<String>,
}

/// The key of a desktop.
pub fn key(desktop: &Desktop) -> DesktopKey {
    let metadata = &desktop.metadata;
    DesktopKey::new(
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

/// All desktops in the order in which the operator decides: by priority, then by age. Those that exist
/// only as manifests are the youngest, in the order in which they stand.
///
/// With `all`, desktops that should not run count as if they were to be started.
///
/// # Errors
/// What is wrong with manifests, a sentence each. What is wrong in the cluster makes a desktop wait.
pub fn candidates(estate: &Estate, all: bool) -> Result<Vec<Candidate>, Vec<String>> {
    let mut faults = vec![];
    for (name, profile) in &estate.profiles {
        if let (Some(origin), Err(invalid)) =
            (estate.origin_of_profile(name), profile_validate::validate(profile))
            && !is_pending(&invalid)
        {
            faults.push(format!("{origin}: {}", invalid.message));
        }
    }
    let mut candidates = vec![];
    for entry in &estate.desktops {
        match candidate(estate, entry, all) {
            Ok(candidate) => candidates.push(candidate),
            Err(fault) => faults.push(fault),
        }
    }
    candidates.sort_by_key(|candidate| {
        let desktop = &candidate.desktop;
        let created = desktop.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
        (Reverse(desktop.spec.priority), created.is_none(), created)
    });
    if faults.is_empty() { Ok(candidates) } else { Err(faults) }
}

/// Whether a desktop waits on the cluster with such a manifest, which is as it should be.
fn is_pending(invalid: &Invalid) -> bool {
    invalid.reason == Reason::NotYetSupported
}

fn candidate(estate: &Estate, entry: &Entry, all: bool) -> Result<Candidate, String> {
    let desktop = &entry.desktop;
    let referenced = estate.referenced(desktop);
    // What the cluster refuses waits there; what is only planned can be planned ahead.
    let planned = match &entry.origin {
        None => validate(desktop, &referenced).map(|wanted| Planned { wanted, refused: vec![] }),
        Some(_) => validate_for_plan(desktop, &referenced),
    };
    let mut refused = vec![];
    let wanted = planned.map(|planned| {
        refused = planned.refused;
        let mut wanted = Box::new(planned.wanted);
        wanted.request.home = home(desktop, referenced.template.as_deref());
        wanted
    });
    if let (Some(origin), Err(invalid)) = (&entry.origin, &wanted)
        && !is_pending(invalid)
    {
        let name = key(desktop);
        let said = invalid.message.strip_prefix(&format!("Desktop {name}: ")).unwrap_or(&invalid.message);
        return Err(format!("{origin} (Desktop {name}): {said}"));
    }
    let rests = desktop.metadata.deletion_timestamp.is_some()
        || !all && stays_ended(desktop).is_some()
        || match desktop.spec.power_state {
            PowerState::Running => false,
            PowerState::Stopped | PowerState::Suspended => !all,
        };
    let intent = match (held(desktop), &wanted) {
        (Some(allocation), _) => Intent::Holds(Arc::new(allocation.clone())),
        (None, _) if rests => Intent::Rests,
        (None, Ok(wanted)) => Intent::Wants(wanted.clone()),
        (None, Err(invalid)) => Intent::Cannot(invalid.clone()),
    };
    Ok(Candidate { key: key(desktop), desktop: desktop.clone(), intent, wanted: wanted.ok(), refused })
}

/// What a desktop holds; nothing while it is parked.
pub(super) fn held(desktop: &Desktop) -> Option<&Allocation> {
    desktop.allocation().filter(|allocation| allocation.compute.is_some())
}

/// The node that has the disks of a desktop, where it left any. Without a template to tell, it did.
pub fn home(desktop: &Desktop, template: Option<&DesktopTemplate>) -> Option<String> {
    let allocation = desktop.allocation()?;
    template.is_none_or(|template| keeps_disks(&template.spec)).then(|| allocation.node.clone())
}
