//! How few cards a set of desktops needs, were they packed as tightly as can be.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{
    batch::{self, Class, Want},
    request::{Demand, ShareRequest},
    shape::{Offer, Shape},
    snapshot::Snapshot,
    worth,
};

/// Cards of one product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardsNeeded {
    /// The product.
    pub product: String,
    /// How many of them desktops may have something of.
    pub cards: u32,
    /// How many would do.
    pub needed: u32,
}

/// How few cards would do for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// By product.
    pub products: Vec<CardsNeeded>,
    /// Shares for which all cards together have no room.
    pub unmet: u32,
}

impl Snapshot {
    /// How few cards the shares of these demands need, from the first of their ways that a card
    /// offers, when nothing else is on any card. Only cards count: no CPUs, memory, or nodes.
    pub fn cards_needed<'a>(&self, demands: impl Iterator<Item = &'a Arc<Demand>>) -> Need {
        let mut wanted: Vec<(&ShareRequest, u32)> = vec![];
        for share in demands.flat_map(|demand| &demand.shares) {
            let same = |(other, _): &&mut (&ShareRequest, u32)| {
                other.ways == share.ways && other.cards == share.cards
            };
            match wanted.iter_mut().find(same) {
                Some((_, count)) => *count += 1,
                None => wanted.push((share, 1)),
            }
        }
        let mut shapes: BTreeMap<String, (Arc<Shape>, u32)> = BTreeMap::new();
        for (_, facts) in self.estate.existing() {
            for card in facts.cards.iter().filter(|card| card.shape.refused.is_none()) {
                // As text, which has an order: equal estates give equal plans.
                let key = format!("{:?}", card.shape);
                shapes.entry(key).or_insert_with(|| (card.shape.clone(), 0)).1 += 1;
            }
        }
        let serves: Vec<Vec<Option<u16>>> = shapes
            .values()
            .map(|(shape, _)| wanted.iter().map(|(share, _)| kind_for(shape, share)).collect())
            .collect();
        let classes: Vec<Class<'_>> = shapes
            .values()
            .zip(&serves)
            .map(|((shape, count), serves)| Class {
                geometry: &shape.geometry,
                placed: &[],
                count: *count,
                cost: 1,
                serves,
            })
            .collect();
        let want: Vec<Want> = wanted
            .iter()
            .map(|(share, count)| {
                let together = shapes.values().filter_map(|(shape, _)| on_one_instance(shape, share)).min();
                Want { count: count.div_ceil(together.unwrap_or(1)), worth: 1 }
            })
            .collect();
        let plan = batch::plan(&classes, &want);
        let mut products: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
        for (position, (shape, count)) in shapes.values().enumerate() {
            let used: u32 =
                plan.cards.iter().filter(|card| card.class == position).map(|card| card.times).sum();
            let (cards, needed) = products.entry(&shape.product).or_default();
            (*cards, *needed) = (*cards + count, *needed + used);
        }
        Need {
            products: products
                .into_iter()
                .map(|(product, (cards, needed))| CardsNeeded { product: product.to_owned(), cards, needed })
                .collect(),
            unmet: plan.unmet.iter().sum(),
        }
    }
}

/// The kind of the geometry that serves a share: the whole card is the first, then the shape's own.
fn kind_for(shape: &Shape, asked: &ShareRequest) -> Option<u16> {
    worth::kind_of(&first_offer(shape, asked)?)
}

/// How many of a share live on one GPU instance.
fn on_one_instance(shape: &Shape, asked: &ShareRequest) -> Option<u32> {
    worth::on_one_instance(shape, &first_offer(shape, asked)?)
}

fn first_offer(shape: &Shape, asked: &ShareRequest) -> Option<Offer> {
    shape.first_offer(&asked.cards, asked.ways.iter().map(|way| &way.share))
}
