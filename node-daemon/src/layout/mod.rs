//! `layout`: where shares would be on a card, and what the daemon would do to make them, without a cluster and without
//! touching anything.

#[cfg(test)]
mod mig_tests;
mod print;
mod steps;
#[cfg(test)]
mod tests;
mod wanted;

use std::{collections::BTreeSet, path::Path};

use anyhow::Context;
use gpudesk_crds::{
    gpu_node_status::{Device, Instance},
    types::{PciAddress, ShareMode},
};
use gpudesk_geometry::Placed;
use gpudesk_inventory::{layout, topology::uevent::Change};
use serde::Serialize;
use thiserror::Error;

use crate::{
    cli::{Layout, LayoutOutput},
    host::{source::HostSource, survey::Place},
    partition::Share,
};
use wanted::{Asked, AskedShare, BadList};

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// There is a layout; this is it, as text.
    Legal(String),
    /// There is none, and why.
    Refused(String),
}

/// Why the question could not be answered.
#[derive(Debug, Error)]
pub enum BadInput {
    /// No host there.
    #[error("{0:#}")]
    Host(anyhow::Error),
    /// No such card on it.
    #[error("--card is {card:?}; {expected}")]
    Card {
        /// What was asked for.
        card: String,
        /// The cards that there are.
        expected: String,
    },
    /// A list of shares that is none, or names what the card has not.
    #[error(transparent)]
    List(#[from] BadList),
}

/// A share with its place, as it is printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Type as the driver prints it.
    #[serde(rename = "type")]
    pub type_name: String,
    /// First unit; absent where only the number counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<i32>,
    /// Length in units; absent where only the number counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<i32>,
    /// vGPUs on the GPU instance: type and how many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vgpus: Vec<OnInstance>,
    /// It was there before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub there: bool,
}

/// vGPUs of one type on a GPU instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OnInstance {
    /// The type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// How many.
    pub count: i32,
}

/// A layout, as it is printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The card.
    pub card: PciAddress,
    /// Its name.
    pub product: String,
    /// How it is divided.
    pub mode: ShareMode,
    /// Whether vGPUs have start positions.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub mixed_size: bool,
    /// Units of the card in this mode; absent where only numbers count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<i32>,
    /// What is on it then, in order of starts.
    pub shares: Vec<Line>,
    /// What the daemon would do to make them, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
    /// What is worth knowing beside it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Looks at the host and places the shares.
///
/// # Errors
/// What in the question is wrong. That there is no layout is an [`Outcome`].
pub fn run(options: &Layout) -> Result<Outcome, BadInput> {
    let (cards, described) = cards(&options.host).map_err(BadInput::Host)?;
    let card = find(&cards, &options.card)?;
    Ok(match plan(card, options, described)? {
        Ok(plan) => Outcome::Legal(match options.output {
            LayoutOutput::Table => print::table(&plan),
            LayoutOutput::Yaml => print::yaml(&plan).map_err(BadInput::Host)?,
        }),
        Err(refusal) => Outcome::Refused(refusal),
    })
}

/// The cards of a host file, or of a folder or capture of a host; and whether the host is only described.
fn cards(host: &Path) -> anyhow::Result<(Vec<Device>, bool)> {
    let name = host.to_string_lossy();
    let is_file = [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending));
    let source = if is_file {
        HostSource::simulated(host, "this-host", &std::env::temp_dir())?
    } else {
        let place = Place { root: Some(host.into()), ..Place::default() };
        HostSource::machine(place, false).with_context(|| format!("{name}: no host file (.yaml), and"))?
    };
    Ok((source.look(&BTreeSet::from([Change::Whole])).cards, is_file))
}

/// The card by its number in the order of `discover`, from 0, or by its address or UUID.
fn find<'a>(cards: &'a [Device], wanted: &str) -> Result<&'a Device, BadInput> {
    let named = |card: &&Device| {
        card.pci_address.to_string() == wanted.to_ascii_lowercase() || card.uuid.as_deref() == Some(wanted)
    };
    let by_number = || wanted.parse::<usize>().ok().and_then(|number| cards.get(number));
    cards.iter().find(named).or_else(by_number).ok_or_else(|| {
        let listed: Vec<String> =
            cards.iter().enumerate().map(|(n, card)| format!("{n} ({})", card.pci_address)).collect();
        let expected = match listed.as_slice() {
            [] => "the host has no cards".into(),
            listed => format!("write the number, PCI address or UUID of one of {}", listed.join(", ")),
        };
        BadInput::Card { card: wanted.into(), expected }
    })
}

/// Why no vGPUs of unlike sizes can be on the card.
fn cannot_mix(card: &Device) -> Option<String> {
    let mut types = card.placements.iter().filter(|place| place.mode == ShareMode::Vgpu);
    types.all(|place| place.size == 0).then(|| {
        let capable = card.vgpu.as_ref().and_then(|vgpu| vgpu.mixed_size_capable);
        match capable {
            Some(false) => "the card cannot mix vGPUs of unlike sizes".into(),
            Some(true) | None => "the driver lists no start positions for vGPUs of unlike sizes".into(),
        }
    })
}

/// Each type with all its starts, a line a start.
fn starts(card: &Device) -> Result<Plan, String> {
    if let Some(why) = cannot_mix(card) {
        return Err(why);
    }
    let types = card.placements.iter().filter(|place| place.mode == ShareMode::Vgpu);
    let lines = types.flat_map(|place| {
        place.starts.iter().map(|start| Line {
            type_name: place.type_name.clone(),
            start: Some(*start),
            size: Some(place.size),
            vgpus: vec![],
            there: false,
        })
    });
    let shares = lines.collect();
    Ok(Plan {
        card: card.pci_address,
        product: card.product.clone(),
        mode: ShareMode::Vgpu,
        mixed_size: true,
        units: card.units.map(|units| units.vgpu_region),
        shares,
        steps: vec![],
        notes: vec!["each line is a legal start, not a vGPU beside the others: --vgpu gives a layout".into()],
    })
}

/// The layout of the card, or why there is none.
fn plan(card: &Device, options: &Layout, described: bool) -> Result<Result<Plan, String>, BadList> {
    let mode = if options.mig.is_some() { ShareMode::Mig } else { ShareMode::Vgpu };
    if card.placements.iter().all(|placement| placement.mode != mode) {
        let support = card.supports.iter().find(|support| support.mode == mode);
        let why = support.and_then(|support| support.reason.clone());
        return Ok(Err(why.unwrap_or_else(|| format!("the card offers no {mode} types"))));
    }
    let mut asked = match (&options.mig, &options.vgpu) {
        (Some(list), _) => wanted::mig(card, list)?,
        (None, Some(list)) => wanted::vgpu(card, list, options.mixed)?,
        (None, None) => return Ok(starts(card)),
    };
    if let Some(why) = asked.mixed.then(|| cannot_mix(card)).flatten() {
        return Ok(Err(why));
    }
    let geometry = card.geometry(asked.mixed);
    let before: Vec<&Instance> = layout::there(card);
    let placed: Vec<Placed> = before
        .iter()
        .map(|instance| Placed {
            kind: card.kind_of(instance.mode, &instance.type_name),
            start: instance.start,
        })
        .collect();
    let kinds: Vec<u16> =
        asked.shares.iter().map(|share| card.kind_of(asked.mode, &share.type_name)).collect();
    let found = match geometry.arrange(&placed, &kinds) {
        Ok(found) => found,
        Err(why) => {
            let names: Vec<&str> = asked.shares.iter().map(|share| share.type_name.as_str()).collect();
            let there: Vec<&str> = before.iter().map(|instance| instance.type_name.as_str()).collect();
            return Ok(Err(layout::why_not(&geometry, &names, &kinds, (&placed, &there), why)));
        }
    };
    let steps = match steps::steps(card, &given(&asked, &found), asked.mode, described) {
        Ok(steps) => steps,
        Err(why) => return Ok(Err(format!("there is room for all, and they cannot be made now: {why}"))),
    };
    asked.notes.push(steps::assumed(card, asked.mode, described));
    let size = |share: &Placed| share.start.and_then(|_| Some(geometry.kind(share.kind)?.size));
    let old = before.iter().zip(&placed).map(|(instance, place)| Line {
        type_name: instance.type_name.clone(),
        start: place.start,
        size: size(place),
        vgpus: vec![],
        there: true,
    });
    let new = asked.shares.iter().zip(&found).map(|(share, place)| Line {
        type_name: share.type_name.clone(),
        start: place.start,
        size: size(place),
        vgpus: share.vgpus.clone(),
        there: false,
    });
    let mut shares: Vec<Line> = old.chain(new).collect();
    shares.sort_by_key(|line| line.start);
    let kind = kinds.first().and_then(|kind| geometry.kind(*kind));
    let units = kind.filter(|kind| !kind.starts.is_empty()).map(|kind| geometry.mode_of(kind).units);
    Ok(Ok(Plan {
        card: card.pci_address,
        product: card.product.clone(),
        mode: asked.mode,
        mixed_size: asked.mixed,
        units,
        shares,
        steps,
        notes: asked.notes,
    }))
}

/// The shares with their starts, one for each vGPU, in the order of starts.
fn given(asked: &Asked, found: &[Placed]) -> Vec<Share> {
    let mut all: Vec<(&AskedShare, Option<i32>)> =
        asked.shares.iter().zip(found.iter().map(|place| place.start)).collect();
    all.sort_by_key(|(_, start)| *start);
    let mut given = vec![];
    for (share, start) in all {
        let (mode, type_name) = (asked.mode, &share.type_name);
        let one = |vgpu_type| Share { mode, type_name: type_name.clone(), vgpu_type, start };
        if share.vgpus.is_empty() {
            given.push(one(None));
        }
        for OnInstance { type_name, count } in &share.vgpus {
            given.extend((0..*count).map(|_| one(Some(type_name.clone()))));
        }
    }
    given
}
