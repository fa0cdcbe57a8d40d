//! Fixed layouts: where each partition that the owner of a card wants on it stands. Pure.
//!
//! ```text
//!   the list of the spec ─┐
//!   shares in use ────────┼─▶ plan ─▶ places (status.devices[].layout), or why there are none
//!   what was planned ─────┘
//! ```
//!
//! What was planned stays for as long as the list is the same and the card can be divided so. Else shares in use that
//! the list has stay where they are, and the rest is planned around them, the whole list at once.

#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::{
    gpu_node::{DevicePolicy, GpuNodeSpec, Layout, VgpuPlacement},
    gpu_node_status::{Device, Instance, LayoutPlaces, Placement},
    types::ShareMode,
};
use gpudesk_geometry::{Geometry, Placed};

pub use words::why_not;

/// Names that a sentence lists at most.
const MOST_NAMES: usize = 8;

/// A layout that is in effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    /// Its places, by type.
    pub places: Vec<LayoutPlaces>,
    /// Who has a share on the card that is none of them: the desktop, type and start.
    pub outside: Vec<String>,
}

/// Plans the layout of each card whose owner fixes one, from what was planned `before`, and returns what became of it:
/// by the position of the card, who is waited for, or why no desktop gets it. Of cards that are kept or cannot be used
/// as their owner wants nothing is said here.
pub fn plan_all(
    spec: &GpuNodeSpec,
    cards: &mut [Device],
    before: &[Device],
) -> BTreeMap<usize, Result<Vec<String>, String>> {
    let mut said = BTreeMap::new();
    let rules: Vec<Option<DevicePolicy>> = cards
        .iter()
        .map(|card| {
            let rule = spec.rule_for(card, cards.iter()).filter(|rule| !rule.keeps())?;
            Some(rule.policy).filter(|policy| policy.layout.is_some())
        })
        .collect();
    let unmet: Vec<bool> = cards.iter().map(|card| !spec.unmet(card, cards.iter()).is_empty()).collect();
    for (position, (card, rule)) in cards.iter_mut().zip(rules).enumerate() {
        card.layout.clear();
        let Some((rule, layout)) = rule.as_ref().and_then(|rule| Some((rule, rule.layout.as_ref()?))) else {
            continue;
        };
        let same = |other: &&Device| {
            (other.pci_address, &other.vendor_id, &other.device_id)
                == (card.pci_address, &card.vendor_id, &card.device_id)
        };
        let planned = before.iter().find(same).map(|card| card.layout.as_slice()).unwrap_or_default();
        if unmet.get(position) == Some(&true) {
            // The driver may be silent for a while: the places stay what they are.
            if layout.is_planned_as(planned) {
                card.layout = planned.to_vec();
            }
            continue;
        }
        said.insert(
            position,
            plan(card, rule, layout, planned).map(|planned| {
                card.layout = planned.places;
                planned.outside
            }),
        );
    }
    said
}

/// The places of a layout on a card on which this was planned `before`.
///
/// # Errors
/// Why there are none, with field, value and what would be right.
pub fn plan(
    card: &Device,
    rule: &DevicePolicy,
    layout: &Layout,
    before: &[LayoutPlaces],
) -> Result<Planned, String> {
    let mode = layout.mode();
    let mixed = mode == ShareMode::Vgpu && rule.vgpu_placement == Some(VgpuPlacement::MixedSize);
    let geometry = card.geometry(mixed);
    let mut fixed = Device { layout: before.to_vec(), ..card.clone() };
    if !layout.is_planned_as(before) || !is_legal(&geometry, &fixed.places(mode)) {
        let field = format!("devices[{}].{}", rule.name, layout.field());
        let listed = counted(layout.types());
        let found = offered(card, layout, mixed).and_then(|()| arranged(card, layout, &geometry));
        let found = found.map_err(|why| {
            format!(
                "{field} [{listed}] cannot be: {why}; until it can, or the layout is removed, no desktop gets the card"
            )
        })?;
        fixed.layout = by_type(card, &found);
    }
    let outside = outside(card, mode, &fixed.places(mode));
    Ok(Planned { places: fixed.layout, outside })
}

/// Whether a layout lists what the card offers to desktops, and of one size where sizes cannot be mixed.
fn offered(card: &Device, layout: &Layout, mixed: bool) -> Result<(), String> {
    let mode = layout.mode();
    let of_mode = || card.placements.iter().filter(|place| place.mode == mode);
    let carries = |place: &&Placement| mode != ShareMode::Mig || !place.vgpu_types.is_empty();
    let names = |chosen: &dyn Fn(&&Placement) -> bool| {
        let names: Vec<&str> = of_mode().filter(chosen).map(|place| place.type_name.as_str()).collect();
        let beyond = names.len().saturating_sub(MOST_NAMES);
        let few = names[..names.len().min(MOST_NAMES)].join(", ");
        match (names.is_empty(), beyond) {
            (true, _) => "none".into(),
            (false, 0) => few,
            (false, beyond) => format!("{few} and {beyond} more"),
        }
    };
    if layout.types().is_empty() {
        return Err("it lists nothing: write one type for each partition".into());
    }
    let mut first: Option<&Placement> = None;
    for name in layout.types() {
        let Some(place) = of_mode().find(|place| place.type_name == *name) else {
            return Err(format!("the card offers no {name}, it offers {}", names(&carries)));
        };
        if !carries(&place) {
            return Err(format!(
                "no vGPU lives on a GPU instance {name}, so no desktop could have it; on this card vGPUs live on {}",
                names(&carries)
            ));
        }
        if mixed && (place.size <= 0 || place.starts.is_empty()) {
            let with = |place: &&Placement| place.size > 0 && !place.starts.is_empty();
            return Err(format!(
                "the driver lists no start positions of {name} in mixed-size mode, it lists some of {}",
                names(&with)
            ));
        }
        let one = *first.get_or_insert(place);
        if mode == ShareMode::Vgpu && !mixed && one.framebuffer_mib != place.framebuffer_mib {
            let can = card.placements.iter().any(|place| place.mode == mode && !place.starts.is_empty());
            let right = if can {
                "write vgpuPlacement: MixedSize beside it, or types of one size"
            } else {
                "write types of one size, for this card cannot mix them"
            };
            return Err(format!("{} and {name} differ in size: {right}", one.type_name));
        }
    }
    Ok(())
}

/// The places of the whole list: around what is in use, as far as there is such a layout.
fn arranged(card: &Device, layout: &Layout, geometry: &Geometry) -> Result<Vec<Placed>, String> {
    let mode = layout.mode();
    let wanted: Vec<u16> = layout.types().iter().map(|name| card.kind_of(mode, name)).collect();
    let names: Vec<&str> = layout.types().iter().map(String::as_str).collect();
    // What no empty card can be divided in, no other can.
    let anywhere =
        geometry.arrange(&[], &wanted).map_err(|why| why_not(geometry, &names, &wanted, (&[], &[]), why))?;
    let mut used: Vec<Placed> = there(card)
        .into_iter()
        .map(|share| Placed { kind: card.kind_of(share.mode, &share.type_name), start: share.start })
        .collect();
    used.sort_unstable_by_key(|share| (share.start, share.kind));
    let (mut kept, mut others, mut rest) = (vec![], vec![], wanted.clone());
    for share in used {
        match rest.iter().position(|kind| *kind == share.kind) {
            Some(position) if geometry.check(&kept, share).is_ok() => {
                rest.remove(position);
                kept.push(share);
            }
            _ => others.push(share),
        }
    }
    let around = |stays: &[Placed]| {
        let beside: Vec<Placed> = stays.iter().chain(&others).copied().collect();
        let rest = without(&wanted, stays);
        // Beside what will go, too, where that can be: then nobody is waited for.
        let found = geometry.arrange(&beside, &rest).or_else(|_| geometry.arrange(stays, &rest));
        found.ok().map(|found| stays.iter().copied().chain(found).collect::<Vec<Placed>>())
    };
    if let Some(found) = around(&kept) {
        return Ok(found);
    }
    // Not all can stay: as many as can, from the first on.
    let mut stays: Vec<Placed> = vec![];
    for share in kept {
        stays.push(share);
        if around(&stays).is_none() {
            stays.pop();
        }
    }
    Ok(around(&stays).unwrap_or(anywhere))
}

/// The kinds that are still wanted beside these.
fn without(wanted: &[u16], placed: &[Placed]) -> Vec<u16> {
    let mut rest = wanted.to_vec();
    for share in placed {
        if let Some(position) = rest.iter().position(|kind| *kind == share.kind) {
            rest.remove(position);
        }
    }
    rest
}

fn is_legal(geometry: &Geometry, places: &[Placed]) -> bool {
    places.iter().enumerate().all(|(number, place)| geometry.check(&places[..number], *place).is_ok())
}

/// As the API has it.
fn by_type(card: &Device, places: &[Placed]) -> Vec<LayoutPlaces> {
    let mut of: BTreeMap<&str, LayoutPlaces> = BTreeMap::new();
    for place in places {
        let position = usize::from(place.kind).checked_sub(1);
        let Some(placement) = position.and_then(|position| card.placements.get(position)) else { continue };
        let name = placement.type_name.as_str();
        let of = of
            .entry(name)
            .or_insert_with(|| LayoutPlaces { type_name: name.into(), ..LayoutPlaces::default() });
        match place.start {
            Some(start) => of.starts.push(start),
            None => of.count += 1,
        }
    }
    let mut places: Vec<LayoutPlaces> = of.into_values().collect();
    for of in &mut places {
        of.starts.sort_unstable();
    }
    places
}

/// Who has a share that is no place of the layout. Of shares without position, those beyond the number of places.
fn outside(card: &Device, mode: ShareMode, places: &[Placed]) -> Vec<String> {
    let mut left: Vec<Placed> = places.iter().filter(|place| place.start.is_none()).copied().collect();
    let mut shares: Vec<&Instance> = card.instances.iter().collect();
    shares.sort_by_key(|share| (share.start, &share.owner, &share.id));
    let mut has_place = |share: &Instance| {
        let place = Placed { kind: card.kind_of(share.mode, &share.type_name), start: share.start };
        if share.mode != mode || place.start.is_some() {
            return share.mode == mode && places.contains(&place);
        }
        let found = left.iter().position(|free| *free == place);
        found.map(|position| left.remove(position)).is_some()
    };
    shares.retain(|share| !has_place(share));
    let text = |share: &&Instance| {
        let owner = share.owner.as_deref().unwrap_or("what gpudesk did not make");
        let start = share.start.map_or_else(String::new, |start| format!(" at {start}"));
        format!("{owner} ({}{start})", share.type_name)
    };
    shares.iter().map(text).collect()
}

/// What is on a card, a GPU instance once however many vGPUs are on it.
pub fn there(card: &Device) -> Vec<&Instance> {
    let mut seen = BTreeSet::new();
    let is_new = |instance: &&Instance| {
        let key = (instance.type_name.clone(), instance.start, instance.gpu_instance);
        instance.mode != ShareMode::Mig
            || instance.start.is_none() && instance.gpu_instance.is_none()
            || seen.insert(key)
    };
    card.instances.iter().filter(is_new).collect()
}

/// Whether a new share is one of the places of a layout, beside so many others of its type.
///
/// # Errors
/// Why not, without a word on who has what.
pub fn admits(
    places: &[LayoutPlaces],
    type_name: &str,
    start: Option<i32>,
    others: usize,
) -> Result<(), String> {
    let own = places.iter().find(|of| of.type_name == type_name);
    let free = own.is_some_and(|of| match start {
        Some(start) => of.starts.contains(&start),
        None => usize::try_from(of.count).is_ok_and(|count| others < count),
    });
    if free {
        return Ok(());
    }
    let what = match (start, own) {
        (Some(start), _) => format!("{type_name} at {start} is no place of it"),
        (None, Some(of)) => format!("all {} places for {type_name} in it are taken", of.count),
        (None, None) => format!("it has no place for {type_name}"),
    };
    Err(format!("its owner gives it a fixed layout, and {what}"))
}

/// A list with each name once: `1g.10gb*4, 3g.40gb`.
fn counted(types: &[String]) -> String {
    let mut counts: Vec<(&str, usize)> = vec![];
    for name in types {
        match counts.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    let more = counts.len().saturating_sub(MOST_NAMES);
    let text = |(name, count): &(&str, usize)| match count {
        1 => (*name).to_owned(),
        count => format!("{name}*{count}"),
    };
    let few: Vec<String> = counts.iter().take(MOST_NAMES).map(text).collect();
    let few = few.join(", ");
    if more > 0 { format!("{few} and {more} more") } else { few }
}
