//! Why a list of shares has no layout, in words.

use gpudesk_geometry::{Geometry, Misfit, NoLayout, Placed};

/// Why a list has no layout beside what is there. `names` and `kinds` are the list, `there` what is on the card with its
/// names.
pub fn why_not(
    geometry: &Geometry,
    names: &[&str],
    kinds: &[u16],
    there: (&[Placed], &[&str]),
    why: NoLayout,
) -> String {
    let (placed, before) = there;
    let type_name = |at: usize| names.get(at).copied().unwrap_or("one of the list");
    match why {
        NoLayout::Alone(at, misfit) => {
            let beside = |other: usize| before.get(other).copied().unwrap_or("what is there").to_owned();
            let whose = if before.is_empty() { "" } else { " beside what is on the card" };
            let reason = of_misfit(geometry, type_name(at), kinds.get(at).copied(), misfit, &beside);
            format!("{} has no place{whose}: {reason}", type_name(at))
        }
        NoLayout::Together(at) => {
            // One layout of those that fit tells the reason; none of the others has room either.
            let first = kinds.get(..at).and_then(|first| geometry.arrange(placed, first).ok());
            let all: Vec<Placed> = placed.iter().copied().chain(first.unwrap_or_default()).collect();
            let beside = |other: usize| match other.checked_sub(placed.len()) {
                Some(other) => type_name(other).to_owned(),
                None => before.get(other).copied().unwrap_or("what is there").to_owned(),
            };
            let kind = kinds.get(at).copied();
            let reason = match kind.map_or(Err(Misfit::NotOffered), |kind| geometry.fits(&all, kind)) {
                Err(misfit) => of_misfit(geometry, type_name(at), kind, misfit, &beside),
                Ok(()) => "no arrangement of all of them is legal".into(),
            };
            let first = match at {
                1 => "the first of the list fits".into(),
                at => format!("the first {at} of the list fit"),
            };
            format!("{first}; number {}, {}, does not: {reason}", at + 1, type_name(at))
        }
        NoLayout::TooMany(tries) => {
            format!("no layout was found in {tries} tries; whether there is one is not known")
        }
    }
}

fn of_misfit(
    geometry: &Geometry,
    name: &str,
    kind: Option<u16>,
    misfit: Misfit,
    beside: &dyn Fn(usize) -> String,
) -> String {
    let kind = kind.and_then(|kind| geometry.kind(kind));
    match misfit {
        Misfit::NotOffered => format!("the card offers no {name}"),
        Misfit::Excluded(other) => {
            format!("{name} cannot be on a card with {}: all must have one size and mode", beside(other))
        }
        Misfit::Full => format!(
            "{} of {name} are on the card then, and no more fit",
            kind.map_or(0, |kind| kind.max_count.min(geometry.most(kind)))
        ),
        Misfit::Start | Misfit::InTheWay(_) => {
            let starts = kind.map(|kind| kind.starts.as_slice()).unwrap_or_default();
            format!("{name} can start at {starts:?}, and at each of them something is in the way")
        }
        Misfit::Slices(free) => {
            format!("{name} takes {} compute slices and {free} are free", kind.map_or(0, |kind| kind.slices))
        }
        Misfit::Engines { which, wanted, free } => {
            format!("{name} takes media engines that others have: {wanted} {which}, of which {free} are free")
        }
    }
}
