//! What may stand where: cards by the tables of the fixtures, cores and pages by cell.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use gpudesk_placement::lookahead::{Geometry, Kind, Mode, Placed};

use crate::fixtures::{Card, Fixtures, Node, Type};

/// A card in the terms of look-ahead.
pub(crate) struct Rules {
    /// What it offers.
    pub(crate) geometry: Geometry,
    /// Wish by wish the kind that serves it.
    pub(crate) kinds: BTreeMap<String, u16>,
}

impl Rules {
    /// Of a card.
    fn new(card: &Card) -> Result<Self> {
        let mut rules = Self { geometry: Geometry { modes: vec![], kinds: vec![] }, kinds: BTreeMap::new() };
        let mut modes: Vec<&str> = vec![];
        for (wish, kind) in &card.kinds {
            let mode = modes.iter().position(|mode| *mode == kind.mode).unwrap_or_else(|| {
                modes.push(&kind.mode);
                let (units, slices) = card.modes.get(&kind.mode).copied().unwrap_or((kind.most, None));
                rules.geometry.modes.push(Mode { units, slices, ..Mode::default() });
                modes.len() - 1
            });
            rules.kinds.insert(wish.clone(), u16::try_from(rules.geometry.kinds.len())?);
            rules.geometry.kinds.push(Kind {
                mode: u16::try_from(mode)?,
                size: kind.size,
                slices: kind.slices,
                starts: kind.starts.clone(),
                max_count: kind.most,
                ..Kind::default()
            });
        }
        Ok(rules)
    }

    /// Of all cards, by name.
    pub(crate) fn all(fixtures: &Fixtures) -> Result<BTreeMap<String, Self>> {
        fixtures.cards.iter().map(|(name, card)| Ok((name.clone(), Self::new(card)?))).collect()
    }

    /// Used units in thousandths.
    fn full(&self, placed: &[Placed]) -> i32 {
        let kinds = placed.iter().filter_map(|share| self.geometry.kind(share.kind));
        kinds.map(|kind| kind.size * 1000 / self.geometry.mode_of(kind).units.max(1)).sum()
    }
}

/// A card and what is on it.
struct Slot<'a> {
    rules: &'a Rules,
    cell: usize,
    placed: Vec<Placed>,
}

/// A node and what is left of it.
struct Site<'a> {
    cores: [i64; 2],
    pages: [i64; 2],
    cards: Vec<Slot<'a>>,
}

/// An estate by the rules alone.
pub(crate) struct Ledger<'a> {
    sites: Vec<Site<'a>>,
}

impl<'a> Ledger<'a> {
    /// With nothing on it.
    pub(crate) fn new(rules: &'a BTreeMap<String, Rules>, nodes: &[Node]) -> Result<Self> {
        let slot = |(name, cell): &(String, usize)| {
            let rules = rules.get(name).with_context(|| format!("no card {name}"))?;
            Ok(Slot { rules, cell: *cell, placed: vec![] })
        };
        let site = |node: &Node| {
            Ok(Site {
                cores: [node.cores; 2],
                pages: [node.pages; 2],
                cards: node.cards.iter().map(slot).collect::<Result<_>>()?,
            })
        };
        Ok(Self { sites: nodes.iter().map(site).collect::<Result<_>>()? })
    }

    /// Puts a share on a card.
    ///
    /// # Errors
    /// When it may not stand there.
    pub(crate) fn put(&mut self, node: usize, card: usize, wish: &str, start: Option<i32>) -> Result<()> {
        let slot = self.sites.get_mut(node).and_then(|site| site.cards.get_mut(card)).context("no card")?;
        let kind = *slot.rules.kinds.get(wish).with_context(|| format!("no {wish} on card {card}"))?;
        let share = Placed { kind, start };
        let legal = slot.rules.geometry.choices(&slot.placed, kind).contains(&share);
        ensure!(legal, "{wish} at {start:?} beside {:?}", slot.placed);
        slot.placed.push(share);
        Ok(())
    }

    /// Best-fit: the fullest card that has a start, the first start; on the cell of the card if there
    /// is one, else for those who may anywhere on the node.
    pub(crate) fn best_fit(&mut self, desktop: &Type) -> bool {
        self.fullest(desktop, true) || (!desktop.strict && self.fullest(desktop, false))
    }

    fn fullest(&mut self, desktop: &Type, local: bool) -> bool {
        let mut best: Option<(i32, usize, usize, Placed)> = None;
        for (node, site) in self.sites.iter().enumerate() {
            for (card, slot) in site.cards.iter().enumerate() {
                let Some(kind) = slot.rules.kinds.get(&desktop.wish) else { continue };
                let suffices = if local {
                    site.cores[slot.cell] >= desktop.cores && site.pages[slot.cell] >= desktop.gib
                } else {
                    site.cores.iter().sum::<i64>() >= desktop.cores
                        && site.pages.iter().sum::<i64>() >= desktop.gib
                };
                let full = slot.rules.full(&slot.placed);
                if suffices
                    && best.as_ref().is_none_or(|(other, ..)| full > *other)
                    && let Some(share) = slot.rules.geometry.choices(&slot.placed, *kind).first()
                {
                    best = Some((full, node, card, *share));
                }
            }
        }
        let Some((_, node, card, share)) = best else { return false };
        let Some(site) = self.sites.get_mut(node) else { return false };
        let Some(slot) = site.cards.get_mut(card) else { return false };
        slot.placed.push(share);
        // Off the cell as much as can be from one other, the rest from the card's.
        let first = if local { slot.cell } else { 1 - slot.cell };
        for (left, mut wanted) in [(&mut site.cores, desktop.cores), (&mut site.pages, desktop.gib)] {
            let here = wanted.min(left[first]);
            left[first] -= here;
            wanted -= here;
            left[1 - first] -= wanted;
        }
        true
    }
}
