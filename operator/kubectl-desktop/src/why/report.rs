//! The answer. Pure.

use gpudesk_crds::{
    Desktop, GROUP, RELEASE_FINALIZER, VERSION,
    conditions::{self, ConditionType},
};

use super::document::{Deleting, DesktopExplanation, LeftOut, Nearest, Said};
use crate::{
    placement::{Limits, explain, request::DesktopKey},
    plan::{
        document::{PlannedDesktop, State},
        estate::Estate,
        order::{Candidate, Intent, candidates},
        round::{Round, standing},
    },
};

/// Why `key` is where it is, or why it waits: decided after those that go first, as the operator does.
/// `None` when there is no such desktop.
///
/// # Errors
/// What is wrong with manifests, a sentence each.
pub fn report(
    estate: &Estate,
    limits: Limits,
    most_moves: usize,
    key: &DesktopKey,
) -> Result<Option<DesktopExplanation>, Vec<String>> {
    let candidates = candidates(estate, false)?;
    let Some(place) = candidates.iter().position(|candidate| candidate.key == *key) else { return Ok(None) };
    let mut round = Round::new(estate, limits, &candidates, true);
    let (before, rest) = candidates.split_at(place);
    for candidate in before {
        round.decide(candidate);
    }
    let Some(asked) = rest.first() else { return Ok(None) };
    let (nodes, nearest) = match &asked.intent {
        Intent::Wants(wanted) => {
            let request = &wanted.request;
            let left_out = round.snapshot.rejections(request).into_iter();
            let nodes = left_out
                .filter_map(|(node, why)| Some(LeftOut { node, reason: explain::text(request, &why?) }))
                .collect();
            (nodes, nearest(round.clone(), &candidates, asked, most_moves))
        }
        Intent::Holds(_) | Intent::Cannot(_) | Intent::Rests => (vec![], None),
    };
    round.decide(asked);
    Ok(round.desktops.pop().map(|desktop| {
        let pending = desktop.state == State::Pending;
        document(
            desktop,
            &asked.desktop,
            if pending { nodes } else { vec![] },
            nearest.filter(|_| pending),
            estate.notes.clone(),
        )
    }))
}

/// All that can be said by one who may see nothing but the desktop itself.
pub fn of_desktop_alone(desktop: &Desktop, note: String) -> Option<DesktopExplanation> {
    let mut estate = Estate::of_cluster(vec![], vec![], vec![], vec![desktop.clone()]);
    let mut planned = standing(candidates(&estate, false).ok()?.first()?);
    estate.notes.push(note);
    // Template and profiles were not seen: what the operator says counts.
    if planned.state == State::Pending {
        (planned.reason, planned.message) = (None, None);
    }
    Some(document(planned, desktop, vec![], None, estate.notes))
}

fn document(
    desktop: PlannedDesktop,
    object: &Desktop,
    left_out: Vec<LeftOut>,
    nearest: Option<Nearest>,
    notes: Vec<String>,
) -> DesktopExplanation {
    let conditions = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let said = |type_: ConditionType| {
        conditions::find(conditions, type_).map(|condition| Said {
            status: condition.status.clone(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        })
    };
    let allocated = said(ConditionType::Allocated);
    let ready =
        said(ConditionType::Ready).filter(|ready| desktop.state == State::Held && ready.status != "True");
    DesktopExplanation {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: "DesktopExplanation".into(),
        deleting: deleting(object),
        planned: desktop.state == State::Placed && object.metadata.uid.is_none(),
        desktop,
        allocated,
        ready,
        nodes: left_out,
        nearest,
        notes,
    }
}

/// Since when a desktop is being deleted, and what it waits for.
fn deleting(desktop: &Desktop) -> Option<Deleting> {
    let since = desktop.metadata.deletion_timestamp.as_ref()?.0.to_string();
    let finalizers = desktop.metadata.finalizers.iter().flatten().map(String::as_str);
    let (ours, others): (Vec<_>, Vec<_>) = finalizers.partition(|finalizer| *finalizer == RELEASE_FINALIZER);
    let waits_for = match desktop.allocation() {
        Some(held) if !ours.is_empty() => {
            format!("the node daemon of {}, which ends the machine and releases what it holds", held.node)
        }
        _ if others.is_empty() => "the operator, which takes its finalizer off".into(),
        _ => format!("who takes these finalizers off: {}", others.join(", ")),
    };
    Some(Deleting { since, waits_for })
}

fn nearest(
    mut round: Round<'_>,
    candidates: &[Candidate],
    asked: &Candidate,
    most: usize,
) -> Option<Nearest> {
    let found = round.after_moving(candidates, asked, most)?;
    Some(Nearest { node: found.node, moves: found.moves })
}
