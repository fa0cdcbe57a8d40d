//! Estates, desktops in the order in which they arrive, and the most that can be placed of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

/// What one card gives for one wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Modes exclude each other on a card.
    pub(crate) mode: String,
    /// Length in units; 1 without positions.
    pub(crate) size: i32,
    /// Compute slices.
    pub(crate) slices: i32,
    /// How many fit on an empty card.
    pub(crate) most: i32,
    /// Legal starts; none where only the number counts.
    pub(crate) starts: Vec<i32>,
}

/// A card and how it is set up.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    /// Its model in a host file.
    pub(crate) model: String,
    /// Whether vGPUs of several sizes may share it.
    pub(crate) mixed: bool,
    /// Units and, where they limit, compute slices of the modes with positions.
    pub(crate) modes: BTreeMap<String, (i32, Option<i32>)>,
    /// What it gives, by wish.
    pub(crate) kinds: BTreeMap<String, Kind>,
}

/// A share that desktops ask for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// GiB of GPU memory.
    pub(crate) worth: i64,
    /// What it is.
    pub(crate) what: What,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A vGPU on a GPU instance of this profile, of this series.
    Mig(String, String),
    /// A vGPU of so many GiB and this series.
    Vgpu(i64, String),
    /// A whole card of this model.
    Whole(String),
}

/// A host with two cells that are alike but for their cards.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Cores per cell for desktops.
    pub(crate) cores: i64,
    /// Hugepages of 1 GiB per cell.
    pub(crate) pages: i64,
    /// Cards by name, and the cell of each.
    pub(crate) cards: Vec<(String, usize)>,
}

/// Desktops that ask for the same.
#[derive(Clone, Debug)]
pub(crate) struct Type {
    /// Name of its wish.
    pub(crate) wish: String,
    /// Cores for itself, two threads each.
    pub(crate) cores: i64,
    /// Memory in hugepages of 1 GiB.
    pub(crate) gib: i64,
    /// Whether it must be on the cell of its card.
    pub(crate) strict: bool,
}

/// An estate and who asks for it.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    /// Name of the mix.
    pub(crate) mix: String,
    /// GPU memory asked for, of all that there is.
    pub(crate) load: f64,
    /// Nodes.
    pub(crate) nodes: Vec<Node>,
    /// Who asks for what.
    pub(crate) types: Vec<Type>,
    /// Desktops, each by the position of its type.
    pub(crate) arrivals: Vec<usize>,
    /// No placement has more GiB of GPU memory.
    pub(crate) bound: i64,
    /// Whether the most can be had with every desktop on the cell of its card; false when not known.
    pub(crate) local: bool,
}

/// Everything in the file.
pub(crate) struct Fixtures {
    /// Cards by name.
    pub(crate) cards: BTreeMap<String, Card>,
    /// Wishes by name.
    pub(crate) wishes: BTreeMap<String, Wish>,
    /// Estates.
    pub(crate) instances: Vec<Instance>,
}

fn number<T: TryFrom<i64>>(value: &Value, of: &str) -> Result<T> {
    let number = value[of].as_i64().with_context(|| format!("{of} is not a number"))?;
    T::try_from(number).ok().with_context(|| format!("{of} is {number}"))
}

fn text(value: &Value, of: &str) -> Result<String> {
    value[of].as_str().map(str::to_owned).with_context(|| format!("{of} is not a text"))
}

fn flag(value: &Value, of: &str) -> Result<bool> {
    value[of].as_bool().with_context(|| format!("{of} is neither true nor false"))
}

fn list<'a>(value: &'a Value, of: &str) -> Result<&'a Vec<Value>> {
    value[of].as_array().with_context(|| format!("{of} is not a list"))
}

fn table<T>(value: &Value, of: &str, read: impl Fn(&Value) -> Result<T>) -> Result<BTreeMap<String, T>> {
    let table = value[of].as_object().with_context(|| format!("{of} is not a table"))?;
    table.iter().map(|(name, value)| Ok((name.clone(), read(value).with_context(|| name.clone())?))).collect()
}

fn kind(value: &Value) -> Result<Kind> {
    let start =
        |start: &Value| start.as_i64().and_then(|start| i32::try_from(start).ok()).context("not a start");
    Ok(Kind {
        mode: text(value, "mode")?,
        size: number(value, "size")?,
        slices: number(value, "slices")?,
        most: number(value, "max")?,
        starts: list(value, "starts")?.iter().map(start).collect::<Result<_>>()?,
    })
}

fn card(value: &Value) -> Result<Card> {
    let mode = |mode: &String| {
        let slices = value["slices"][mode].is_number().then(|| number(&value["slices"], mode)).transpose()?;
        Ok((mode.clone(), (number(&value["units"], mode)?, slices)))
    };
    let modes = value["units"].as_object().context("units is not a table")?;
    Ok(Card {
        model: text(value, "model")?,
        mixed: flag(value, "mixed")?,
        modes: modes.keys().map(mode).collect::<Result<_>>()?,
        kinds: table(value, "kinds", kind)?,
    })
}

fn wish(value: &Value) -> Result<Wish> {
    let what = if value["mig"].is_object() {
        What::Mig(text(&value["mig"], "profile")?, text(&value["mig"], "series")?)
    } else if value["vgpu"].is_object() {
        What::Vgpu(number(&value["vgpu"], "gib")?, text(&value["vgpu"], "series")?)
    } else {
        What::Whole(text(&value["whole"], "model")?)
    };
    Ok(Wish { worth: number(value, "worth")?, what })
}

fn node(value: &Value) -> Result<Node> {
    let card = |card: &Value| {
        let name = card[0].as_str().context("not a card")?.to_owned();
        let cell = card[1].as_u64().and_then(|cell| usize::try_from(cell).ok()).context("not a cell")?;
        Ok((name, cell))
    };
    Ok(Node {
        cores: number(value, "cores")?,
        pages: number(value, "pages")?,
        cards: list(value, "cards")?.iter().map(card).collect::<Result<_>>()?,
    })
}

fn of_type(value: &Value) -> Result<Type> {
    Ok(Type {
        wish: text(value, "wish")?,
        cores: number(value, "cores")?,
        gib: number(value, "gib")?,
        strict: flag(value, "strict")?,
    })
}

fn instance(value: &Value) -> Result<Instance> {
    let arrival = |arrival: &Value| {
        arrival.as_u64().and_then(|arrival| usize::try_from(arrival).ok()).context("not a type")
    };
    Ok(Instance {
        mix: text(value, "mix")?,
        load: value["load"].as_f64().context("load is not a number")?,
        nodes: list(value, "nodes")?.iter().map(node).collect::<Result<_>>()?,
        types: list(value, "types")?.iter().map(of_type).collect::<Result<_>>()?,
        arrivals: list(value, "arrivals")?.iter().map(arrival).collect::<Result<_>>()?,
        bound: number(value, "bound")?,
        local: value["local"].as_bool().unwrap_or(false),
    })
}

/// All of them.
pub(crate) fn all(text: &str) -> Result<Fixtures> {
    let file: Value = serde_json::from_str(text).context("fixtures.json")?;
    Ok(Fixtures {
        cards: table(&file, "cards", card)?,
        wishes: table(&file, "wishes", wish)?,
        instances: list(&file, "instances")?.iter().map(instance).collect::<Result<_>>()?,
    })
}
