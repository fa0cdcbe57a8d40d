//! Start positions for a whole list of shares at once.
//!
//! One share after the other is not enough: a share that takes the first start it finds can shut out the
//! next one, although both would fit. So the whole list is placed before anything is made.

use std::collections::HashSet;

use crate::{Geometry, Misfit, Placed, apart, count};

/// How many arrangements are tried before [`NoLayout::TooMany`]. The cards that exist need some hundreds;
/// the bound is for what a broken driver may list.
const MOST_TRIES: usize = 200_000;

/// Why a list of shares has no layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLayout {
    /// The share at this position of the list does not fit beside what is placed already, whatever becomes
    /// of the others.
    Alone(usize, Misfit),
    /// Those before this position have a layout, and none of theirs leaves room for it.
    Together(usize),
    /// Nobody knows: so many arrangements were tried.
    TooMany(usize),
}

impl Geometry {
    /// Places shares of these kinds beside those that are placed, which stay where they are. The answer is
    /// in the order of `wanted`; whether there is one does not depend on that order. Lowest starts come
    /// first, those of the longest shares before all others.
    ///
    /// # Errors
    /// Why there is no layout, with the first share of the list that is too much.
    pub fn arrange(&self, placed: &[Placed], wanted: &[u16]) -> Result<Vec<Placed>, NoLayout> {
        for (position, kind) in wanted.iter().enumerate() {
            if let Err(misfit) = self.fits(placed, *kind) {
                return Err(NoLayout::Alone(position, misfit));
            }
        }
        if let Some(found) = self.search(placed, wanted)? {
            return Ok(found);
        }
        // The longest beginning of the list that has a layout: a share more never makes one possible.
        let (mut fits, mut fails) = (0, wanted.len());
        while fails - fits > 1 {
            let middle = usize::midpoint(fits, fails);
            match self.search(placed, &wanted[..middle])? {
                Some(_) => fits = middle,
                None => fails = middle,
            }
        }
        Err(NoLayout::Together(fits))
    }

    /// Whether one share of a kind may be beside what is placed.
    ///
    /// # Errors
    /// Why not: the reason at the start where it came nearest.
    pub fn fits(&self, placed: &[Placed], kind: u16) -> Result<(), Misfit> {
        let of = self.kind(kind).ok_or(Misfit::NotOffered)?;
        let starts: Vec<Option<i32>> = match of.starts.as_slice() {
            [] => vec![None],
            starts => starts.iter().map(|start| Some(*start)).collect(),
        };
        let mut nearest = Misfit::NotOffered;
        for start in starts {
            match self.check(placed, Placed { kind, start }) {
                Ok(()) => return Ok(()),
                Err(misfit) => nearest = nearest.max(misfit),
            }
        }
        Err(nearest)
    }

    /// What no arrangement can help: of one kind alone not so many fit, or they are longer than the card.
    fn is_too_much(&self, placed: &[Placed], wanted: &[u16]) -> bool {
        let mut kinds = wanted.to_vec();
        kinds.sort_unstable();
        let with_starts =
            kinds.iter().filter_map(|kind| self.kind(*kind)).filter(|kind| !kind.starts.is_empty());
        let units = with_starts.clone().map(|kind| self.mode_of(kind).units).max();
        let length = with_starts.fold(self.room(placed).units, |sum, kind| sum.saturating_add(kind.size));
        units.is_some_and(|units| length > units)
            || kinds.chunk_by(|a, b| a == b).any(|run| count(run.len()) > self.more(placed, run[0]))
    }

    /// `None` when there is no layout; an error when too much was tried.
    fn search(&self, placed: &[Placed], wanted: &[u16]) -> Result<Option<Vec<Placed>>, NoLayout> {
        if self.is_too_much(placed, wanted) {
            return Ok(None);
        }
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        // Long ones and those with few starts have least choice. Equal kinds stand together.
        order.sort_by_key(|at| {
            let kind = self.kind(wanted[*at]);
            let starts = kind.map_or(0, |kind| kind.starts.len());
            (kind.map_or(0, |kind| -kind.size), starts, wanted[*at], *at)
        });
        let kinds: Vec<u16> = order.iter().map(|at| wanted[*at]).collect();
        let mut search = Search {
            geometry: self,
            kinds: &kinds,
            layout: placed.to_vec(),
            failed: HashSet::new(),
            tries: 0,
        };
        if !search.place(0)? {
            return Ok(None);
        }
        let mut found = vec![Placed { kind: 0, start: None }; wanted.len()];
        for (at, share) in order.iter().zip(&search.layout[placed.len()..]) {
            found[*at] = *share;
        }
        Ok(Some(found))
    }
}

/// Tries starts, share by share.
struct Search<'a> {
    geometry: &'a Geometry,
    kinds: &'a [u16],
    /// What is placed, at first by others.
    layout: Vec<Placed>,
    /// How many were placed, the start of the last where the next is of its kind, and the units in use,
    /// from which there is no way on.
    failed: HashSet<(usize, Option<i32>, Vec<u64>)>,
    tries: usize,
}

impl Search<'_> {
    fn place(&mut self, depth: usize) -> Result<bool, NoLayout> {
        let Some(kind) = self.kinds.get(depth).copied() else { return Ok(true) };
        self.tries += 1;
        if self.tries > MOST_TRIES {
            return Err(NoLayout::TooMany(MOST_TRIES));
        }
        // Equal shares are placed from left to right: which of them is where makes no difference.
        let after = depth
            .checked_sub(1)
            .filter(|before| self.kinds[*before] == kind)
            .and_then(|_| self.layout.last()?.start);
        let state = (depth, after, self.units());
        if self.failed.contains(&state) {
            return Ok(false);
        }
        let mut choices = self.geometry.choices(&self.layout, kind);
        choices.retain(|choice| after.is_none() || choice.start > after);
        // Those of its kind that are still to come need places, too.
        let same = self.kinds[depth..].iter().take_while(|other| **other == kind).count();
        let size = self.geometry.kind(kind).map_or(1, |kind| kind.size);
        let starts = choices.iter().filter_map(|choice| choice.start);
        if choices.iter().any(|choice| choice.start.is_some()) && apart(starts, size) < count(same) {
            choices.clear();
        }
        for choice in choices {
            self.layout.push(choice);
            if self.place(depth + 1)? {
                return Ok(true);
            }
            self.layout.pop();
        }
        self.failed.insert(state);
        Ok(false)
    }

    /// The units in use, as bits.
    fn units(&self) -> Vec<u64> {
        let mut bits = vec![];
        for share in &self.layout {
            let (Some(start), Some(kind)) = (share.start, self.geometry.kind(share.kind)) else { continue };
            for unit in start..start.saturating_add(kind.size) {
                let Ok(unit) = usize::try_from(unit) else { continue };
                if bits.len() <= unit / 64 {
                    bits.resize(unit / 64 + 1, 0);
                }
                bits[unit / 64] |= 1 << (unit % 64);
            }
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Engines, Kind, Mode};

    fn kind(size: i32, slices: i32, starts: &[i32], max_count: i32) -> Kind {
        Kind { size, slices, starts: starts.to_vec(), max_count, ..Kind::default() }
    }

    /// Seven slices, eight units: 1g, 1g of two units, 2g, 3g, 4g, 7g.
    fn seven() -> Geometry {
        let kinds = vec![
            kind(1, 1, &[0, 1, 2, 3, 4, 5, 6], 7),
            kind(2, 1, &[0, 2, 4, 6], 4),
            kind(2, 2, &[0, 2, 4], 3),
            kind(4, 3, &[0, 4], 2),
            kind(4, 4, &[0], 1),
            kind(8, 7, &[0], 1),
        ];
        Geometry { modes: vec![Mode { units: 8, slices: Some(7), ..Mode::default() }], kinds }
    }

    /// Mixed sizes on 48 GB of an Ada card: 1, 2, 3, 4, 6, 8, 12, 16, 24, 48.
    fn ada() -> Geometry {
        let every = |step: i32| (0..48 / step).map(|n| n * step).collect::<Vec<_>>();
        let starts = [
            (1, vec![0, 5, 6, 11, 12, 17, 18, 23, 24, 29, 30, 35, 36, 41, 42, 47]),
            (2, vec![0, 4, 6, 10, 12, 16, 18, 22, 24, 28, 30, 34, 36, 40, 42, 46]),
            (3, every(3)),
            (4, vec![0, 8, 12, 20, 24, 32, 36, 44]),
            (6, every(6)),
            (8, vec![0, 16, 24, 40]),
            (12, every(12)),
            (16, vec![0, 32]),
            (24, every(24)),
            (48, vec![0]),
        ];
        let kinds =
            starts.iter().map(|(size, starts)| kind(*size, 0, starts, i32::try_from(starts.len()).unwrap()));
        Geometry { modes: vec![Mode { units: 48, ..Mode::default() }], kinds: kinds.collect() }
    }

    fn starts(found: &[Placed]) -> Vec<i32> {
        found.iter().map(|share| share.start.unwrap()).collect()
    }

    #[test]
    fn the_whole_list_is_planned_before_any_of_it_is_placed() {
        // NVIDIA's MIG user guide: 1g, 1g, 2g, 3g in this order fails where each takes the first start.
        let found = seven().arrange(&[], &[0, 0, 2, 3]).unwrap();
        assert_eq!(starts(&found)[3], 4, "{found:?}");
        for order in [[3, 2, 0, 0], [0, 3, 0, 2], [2, 0, 3, 0]] {
            assert!(seven().arrange(&[], &order).is_ok(), "{order:?}");
        }
    }

    #[test]
    fn the_first_that_is_too_much_is_named() {
        let g = seven();
        assert_eq!(g.arrange(&[], &[3, 3, 0]), Err(NoLayout::Together(2)), "a slice is left and no memory");
        assert_eq!(g.arrange(&[], &[0, 4, 3]), Err(NoLayout::Together(2)));
        assert_eq!(g.arrange(&[], &[0, 9]), Err(NoLayout::Alone(1, Misfit::NotOffered)));
        let whole = Placed { kind: 5, start: Some(0) };
        assert!(matches!(g.arrange(&[whole], &[0]), Err(NoLayout::Alone(0, _))));
        assert_eq!(g.arrange(&[], &[]), Ok(vec![]));
    }

    #[test]
    fn what_is_there_stays_where_it_is() {
        let one = Placed { kind: 0, start: Some(5) };
        let found = seven().arrange(&[one], &[3, 0, 0]).unwrap();
        assert_eq!(starts(&found)[0], 0);
        assert_eq!(seven().arrange(&[Placed { kind: 0, start: Some(1) }, one], &[3]).map(drop), {
            Err(NoLayout::Alone(0, Misfit::InTheWay(1)))
        });
    }

    /// The six layouts of a 48 GB card in the figure of NVIDIA's vGPU user guide, in every order.
    #[test]
    fn published_layouts_of_unlike_sizes_have_starts_in_every_order_and_no_room_for_more() {
        let [one, two, three, four, six, eight, twelve, sixteen, half] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
        for layout in [
            vec![six, six, six, six, twelve, twelve],
            vec![four, four, four, four, six, six, six, six],
            vec![half, twelve, twelve],
            vec![eight, twelve, twelve, sixteen],
        ] {
            for turn in 0..layout.len() {
                let mut order = layout.clone();
                order.rotate_left(turn);
                assert!(ada().arrange(&[], &order).is_ok(), "{order:?}");
            }
            let units: i32 = layout.iter().map(|kind| ada().kinds[usize::from(*kind)].size).sum();
            let mut more = layout.clone();
            more.push(one);
            let refused = Err(NoLayout::Together(layout.len()));
            assert!(units < 48 || ada().arrange(&[], &more) == refused, "{layout:?}");
        }
        for layout in [vec![three, three, three, three, one, one], vec![half, two, two]] {
            assert!(ada().arrange(&[], &layout).is_ok(), "{layout:?}");
        }
        // Only two of its layouts exist: neither begins with the lowest start of each.
        let found = ada().arrange(&[], &[eight, twelve, twelve, sixteen]).unwrap();
        assert!([vec![16, 24, 36, 0], vec![24, 0, 12, 32]].contains(&starts(&found)), "{found:?}");
    }

    /// Every start of every share in turn, with nothing but the rules: apart, and slices, and counts.
    fn by_hand(g: &Geometry, layout: &mut Vec<(i32, i32)>, kinds: &[u16]) -> bool {
        let Some((first, rest)) = kinds.split_first() else { return true };
        let kind = g.kind(*first).unwrap();
        kind.starts.iter().any(|start| {
            let apart = layout.iter().all(|(at, end)| start + kind.size <= *at || *end <= *start);
            apart && {
                layout.push((*start, start + kind.size));
                let found = by_hand(g, layout, rest);
                layout.pop();
                found
            }
        })
    }

    /// RTX PRO 6000: 1g plain, with optical flow, with all engines, with none; 2g plain, all, none; 4g.
    fn four() -> Geometry {
        let of = |size: i32, slices: i32, max_count: i32, engines: [u16; 4]| Kind {
            engines: Engines(engines),
            ..kind(size, slices, &(0..12 / size).map(|n| n * size).collect::<Vec<_>>(), max_count)
        };
        let kinds = vec![
            of(3, 1, 4, [1, 1, 1, 0]),
            of(3, 1, 1, [1, 1, 1, 1]),
            of(3, 1, 1, [4, 4, 4, 1]),
            of(3, 1, 4, [0; 4]),
            of(6, 2, 2, [2, 2, 2, 0]),
            of(6, 2, 1, [4, 4, 4, 1]),
            of(6, 2, 2, [0; 4]),
            of(12, 4, 1, [4, 4, 4, 1]),
        ];
        Geometry { modes: vec![Mode::spanned_by(kinds.iter())], kinds }
    }

    #[test]
    fn one_that_has_all_engines_stands_only_beside_those_without() {
        let (g, [plain, me, all, none]) = (four(), [0, 1, 2, 3]);
        assert!(g.arrange(&[], &[none, all, none, none]).is_ok());
        assert!(g.arrange(&[], &[plain, plain, me, plain]).is_ok());
        assert!(g.arrange(&[], &[all, 6, none]).is_ok());
        for list in [vec![all, plain], vec![plain, all], vec![all, me], vec![all, 4], vec![5, plain]] {
            assert_eq!(g.arrange(&[], &list), Err(NoLayout::Together(1)), "{list:?}");
            let first = g.arrange(&[], &list[..1]).unwrap();
            assert!(matches!(g.fits(&first, list[1]), Err(Misfit::Engines { .. })), "{list:?}");
        }
        assert_eq!(g.arrange(&[], &[none, all, none, plain]), Err(NoLayout::Together(3)));
    }

    #[test]
    fn every_list_is_answered_as_by_trying_everything() {
        assert!(tried_lists(&seven(), 7) > 60);
        assert!(tried_lists(&four(), 4) > 30);
    }

    /// How many lists have a layout on an empty card, each answered rightly.
    fn tried_lists(g: &Geometry, all_slices: i32) -> i32 {
        let last = u16::try_from(g.kinds.len()).unwrap() - 1;
        let (mut lists, mut legal) = (vec![vec![]], 0);
        while let Some(list) = lists.pop() {
            let slices: i32 = list.iter().map(|kind: &u16| g.kind(*kind).unwrap().slices).sum();
            let count = |kind: u16| i32::try_from(list.iter().filter(|one| **one == kind).count()).unwrap();
            let counted = list.iter().all(|kind| count(*kind) <= g.kind(*kind).unwrap().max_count);
            let engines = (0..4).all(|which| {
                let sum: u16 = list.iter().map(|kind| g.kind(*kind).unwrap().engines.0[which]).sum();
                let all = g.modes[0].engines.0[which];
                all == 0 || sum <= all
            });
            let expected = slices <= all_slices && counted && engines && by_hand(g, &mut vec![], &list);
            assert_eq!(g.arrange(&[], &list).is_ok(), expected, "{list:?}");
            legal += i32::from(expected);
            // What is illegal stays so with one more.
            if expected {
                let from = list.last().copied().unwrap_or(0);
                lists
                    .extend((from..=last).map(|kind| list.iter().copied().chain([kind]).collect::<Vec<_>>()));
            }
        }
        legal
    }

    /// 96 GB of a Blackwell card: as many starts as shares of the size, so a list one too long has thousands of arrangements
    /// that all fail.
    #[test]
    fn one_too_many_of_a_size_with_many_starts_is_told_at_once() {
        let sizes = [48, 24, 16, 12, 8, 6, 4, 3];
        let of = |size: i32| kind(size, 0, &(0..96 / size).map(|n| n * size).collect::<Vec<_>>(), 96 / size);
        let g = Geometry {
            modes: vec![Mode { units: 96, ..Mode::default() }],
            kinds: sizes.into_iter().map(of).collect(),
        };
        for (size, number) in sizes.into_iter().zip(0u16..) {
            let most = usize::try_from(96 / size).unwrap();
            assert_eq!(g.arrange(&[], &vec![number; most]).map(|found| found.len()), Ok(most));
            assert_eq!(g.arrange(&[], &vec![number; most + 1]), Err(NoLayout::Together(most)));
            let mut more = vec![number; most];
            more.push(7);
            assert_eq!(g.arrange(&[], &more), Err(NoLayout::Together(most)), "{size}");
        }
        // One that is there takes two of these places.
        let there = [Placed { kind: 7, start: Some(42) }];
        assert_eq!(g.arrange(&there, &[6; 24]), Err(NoLayout::Together(22)));
    }

    #[test]
    fn shares_without_positions_are_counted() {
        let mode = Mode { units: 3, ..Mode::default() };
        let g = Geometry { modes: vec![mode], kinds: vec![kind(1, 0, &[], 3)] };
        assert_eq!(g.arrange(&[], &[0, 0, 0]).map(|found| found.len()), Ok(3));
        assert_eq!(g.arrange(&[], &[0; 5]), Err(NoLayout::Together(3)));
    }
}
