//! The planner that knows all requests at once, on the cards alone.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use gpudesk_placement::batch::{self, Class, Want};

use crate::{
    fixtures::{Fixtures, Instance},
    rules::Rules,
};

/// GiB of GPU memory that the batch planner places, cores and pages left aside.
///
/// # Errors
/// A name that the fixtures lack.
pub(crate) fn placed(
    fixtures: &Fixtures,
    rules: &BTreeMap<String, Rules>,
    instance: &Instance,
) -> Result<i64> {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for of in &instance.arrivals {
        let of = instance.types.get(*of).context("no such type")?;
        *counts.entry(&of.wish).or_default() += 1;
    }
    let worth = |wish: &str| fixtures.wishes.get(wish).map_or(0, |wish| wish.worth);
    let mut cards: BTreeMap<&str, u32> = BTreeMap::new();
    for (name, _) in instance.nodes.iter().flat_map(|node| &node.cards) {
        *cards.entry(name).or_default() += 1;
    }
    let mut parts = vec![];
    for (name, count) in cards {
        let rules = rules.get(name).with_context(|| format!("no card {name}"))?;
        let serves: Vec<Option<u16>> = counts.keys().map(|wish| rules.kinds.get(*wish).copied()).collect();
        parts.push((rules, count, serves));
    }
    let class = |(rules, count, serves)| {
        let (rules, count): (&&Rules, &u32) = (rules, count);
        let serves: &Vec<Option<u16>> = serves;
        Class { geometry: &rules.geometry, placed: &[], count: *count, cost: 1, serves }
    };
    let classes: Vec<Class<'_>> =
        parts.iter().map(|(rules, count, serves)| class((rules, count, serves))).collect();
    let want = |(wish, count): (&&str, &u32)| Ok(Want { count: *count, worth: u32::try_from(worth(wish))? });
    let wants: Vec<Want> = counts.iter().map(want).collect::<Result<_>>()?;
    let plan = batch::plan(&classes, &wants);
    let unmet = plan.unmet.iter().zip(&wants);
    let asked = wants.iter().map(|want| i64::from(want.count) * i64::from(want.worth)).sum::<i64>();
    Ok(asked - unmet.map(|(unmet, want)| i64::from(*unmet) * i64::from(want.worth)).sum::<i64>())
}
