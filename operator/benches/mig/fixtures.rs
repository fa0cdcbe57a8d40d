//! The sets of shares whose fewest cards are known.

use anyhow::{Context, Result};
use gpudesk_placement::lookahead::{Geometry, Kind, Mode, Placed};
use serde_json::Value;

/// A set of shares.
pub(crate) struct Instance {
    /// Name of the card.
    pub(crate) card: String,
    /// Name of the mix.
    pub(crate) mix: String,
    /// What the card offers.
    pub(crate) geometry: Geometry,
    /// How many of each kind.
    pub(crate) wanted: Vec<u32>,
    /// Cards in use, and how many of each.
    pub(crate) used: Vec<(Vec<Placed>, u32)>,
    /// The fewest empty cards that hold the rest.
    pub(crate) fewest: u64,
}

fn number<T: TryFrom<i64>>(value: &Value, of: &str) -> Result<T> {
    let number = value.as_i64().with_context(|| format!("{of} is not a number"))?;
    T::try_from(number).ok().with_context(|| format!("{of} is {number}"))
}

fn list<'a>(value: &'a Value, of: &str) -> Result<&'a Vec<Value>> {
    value.as_array().with_context(|| format!("{of} is not a list"))
}

fn geometry(value: &Value) -> Result<Geometry> {
    let slices = if value["slices"].is_null() { None } else { Some(number(&value["slices"], "slices")?) };
    let kind = |kind: &Value| {
        let starts = list(&kind["starts"], "starts")?.iter().map(|start| number(start, "start"));
        Ok(Kind {
            size: number(&kind["size"], "size")?,
            slices: number(&kind["slices"], "slices")?,
            starts: starts.collect::<Result<_>>()?,
            max_count: number(&kind["max"], "max")?,
            ..Kind::default()
        })
    };
    let kinds = list(&value["kinds"], "kinds")?.iter().map(kind).collect::<Result<_>>()?;
    Ok(Geometry {
        modes: vec![Mode { units: number(&value["units"], "units")?, slices, ..Mode::default() }],
        kinds,
    })
}

fn used(value: &Value) -> Result<(Vec<Placed>, u32)> {
    let share = |pair: &Value| {
        Ok(Placed { kind: number(&pair[0], "kind")?, start: Some(number(&pair[1], "start")?) })
    };
    let placed = list(&value["placed"], "placed")?.iter().map(share).collect::<Result<_>>()?;
    Ok((placed, number(&value["count"], "count")?))
}

/// All of them.
pub(crate) fn all() -> Result<Vec<Instance>> {
    let file: Value = serde_json::from_str(include_str!("fixtures.json")).context("fixtures.json")?;
    let instance = |value: &Value| {
        let text =
            |field: &str| value[field].as_str().map(str::to_owned).with_context(|| format!("no {field}"));
        let card = text("geometry")?;
        let wanted = list(&value["wanted"], "wanted")?.iter().map(|count| number(count, "wanted"));
        Ok(Instance {
            geometry: geometry(&file["geometries"][&card]).with_context(|| card.clone())?,
            card,
            mix: text("mix")?,
            wanted: wanted.collect::<Result<_>>()?,
            used: list(&value["used"], "used")?.iter().map(used).collect::<Result<_>>()?,
            fewest: number(&value["fewest"], "fewest")?,
        })
    };
    list(&file["instances"], "instances")?.iter().map(instance).collect()
}
