//! Cards of a few units, whose layouts can all be tried.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const UNITS: i32 = 6;

/// Shares with a position, and shares of which only the number counts, in modes of their own.
fn geometry() -> impl Strategy<Value = Geometry> {
    let engines = || [0..3u16, 0..2u16].prop_map(|[decoders, jpeg]| Engines([decoders, 0, jpeg, 0]));
    let starts = prop::collection::btree_set(0..UNITS, 0..6);
    let kind = (0u16..3, 1..4i32, 0..3i32, engines(), 0..5i32, starts);
    let kinds = prop::collection::vec(kind, 1..5).prop_map(|kinds| {
        let kind = |(mode, size, slices, engines, max_count, starts): (
            u16,
            i32,
            i32,
            Engines,
            i32,
            BTreeSet<i32>,
        )| {
            let starts = if mode == 2 { vec![] } else { starts.into_iter().collect() };
            let max_count = if mode < 2 && starts.is_empty() { 0 } else { max_count };
            Kind { mode, size, slices, engines, starts, max_count, places: None }
        };
        kinds.into_iter().map(kind).collect()
    });
    (kinds, prop::option::of(0..5i32), engines()).prop_map(|(kinds, slices, engines)| {
        let mode = |slices| Mode { units: UNITS, slices, engines };
        Geometry { modes: vec![mode(slices), mode(None), mode(None)], kinds }
    })
}

/// Whether a layout is legal as a whole: units counted one by one.
fn is_legal(geometry: &Geometry, layout: &[Placed]) -> bool {
    let kinds: Vec<&Kind> = layout.iter().map(|share| &geometry.kinds[usize::from(share.kind)]).collect();
    let modes: BTreeSet<u16> = kinds.iter().map(|kind| kind.mode).collect();
    let Some(mode) = modes.first().map(|mode| geometry.modes[usize::from(*mode)]) else { return true };
    let mut units = BTreeSet::new();
    let mut counted = 0;
    for (share, kind) in layout.iter().zip(&kinds) {
        if let Some(start) = share.start {
            let apart = (start..start + kind.size).all(|unit| unit < mode.units && units.insert(unit));
            let same = layout.iter().filter(|other| other.kind == share.kind).count();
            if !apart || !kind.starts.contains(&start) || i32::try_from(same).unwrap() > kind.max_count {
                return false;
            }
        } else {
            counted += kind.size;
        }
    }
    let counts = layout.iter().zip(&kinds).filter(|(share, _)| share.start.is_none());
    let most = counts.map(|(_, kind)| kind.max_count * kind.size).min().unwrap_or(0).min(mode.units);
    let slices: i32 = kinds.iter().map(|kind| kind.slices).sum();
    let engines = (0..4).all(|which| {
        let sum: u16 = kinds.iter().map(|kind| kind.engines.0[which]).sum();
        mode.engines.0[which] == 0 || sum <= mode.engines.0[which]
    });
    modes.len() == 1 && counted <= most && mode.slices.is_none_or(|all| slices <= all) && engines
}

/// Every share of a kind at every start.
fn everywhere(geometry: &Geometry, kind: u16) -> Vec<Placed> {
    let starts = &geometry.kinds[usize::from(kind)].starts;
    if starts.is_empty() {
        return vec![Placed { kind, start: None }];
    }
    starts.iter().map(|start| Placed { kind, start: Some(*start) }).collect()
}

/// A layout as requests left it, each refused where it does not fit.
fn filled(geometry: &Geometry, asked: &[(prop::sample::Index, prop::sample::Index)]) -> Vec<Placed> {
    let mut layout = vec![];
    for (kind, start) in asked {
        let kind = u16::try_from(kind.index(geometry.kinds.len())).unwrap();
        let share = *start.get(&everywhere(geometry, kind));
        if geometry.check(&layout, share).is_ok() {
            layout.push(share);
        }
    }
    layout
}

/// How many of a kind fit, by trying each at each place that is left.
fn most_by_trying(geometry: &Geometry, layout: &[Placed], all: &[Placed]) -> i32 {
    let after = all.iter().enumerate().filter_map(|(position, share)| {
        let after: Vec<Placed> = layout.iter().copied().chain([*share]).collect();
        let rest = if share.start.is_some() { &all[position + 1..] } else { all };
        is_legal(geometry, &after).then(|| 1 + most_by_trying(geometry, &after, rest))
    });
    after.max().unwrap_or(0)
}

fn asked() -> impl Strategy<Value = Vec<(prop::sample::Index, prop::sample::Index)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..8)
}

/// Whether shares of these kinds can be beside a layout, by trying each at each start.
fn can_be_by_trying(geometry: &Geometry, layout: &[Placed], wanted: &[u16]) -> bool {
    let Some((first, rest)) = wanted.split_first() else { return true };
    everywhere(geometry, *first).into_iter().any(|share| {
        let after: Vec<Placed> = layout.iter().copied().chain([share]).collect();
        is_legal(geometry, &after) && can_be_by_trying(geometry, &after, rest)
    })
}

proptest! {
    #[test]
    fn a_list_has_a_layout_where_trying_all_finds_one(
        geometry in geometry(), asked in asked(), wanted in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        let layout = filled(&geometry, &asked[..asked.len().min(3)]);
        let wanted = wanted.iter().map(|kind| u16::try_from(kind.index(geometry.kinds.len())).unwrap());
        let wanted: Vec<u16> = wanted.collect();
        let found = geometry.arrange(&layout, &wanted);
        prop_assert_eq!(found.is_ok(), can_be_by_trying(&geometry, &layout, &wanted), "{:?}", found);
        if let Ok(found) = found {
            let all: Vec<Placed> = layout.iter().chain(&found).copied().collect();
            prop_assert!(is_legal(&geometry, &all), "{:?}", all);
        }
    }

    #[test]
    fn what_may_join_is_what_leaves_the_layout_legal(geometry in geometry(), asked in asked()) {
        let layout = filled(&geometry, &asked);
        prop_assert!(is_legal(&geometry, &layout), "{layout:?}");
        for kind in 0..u16::try_from(geometry.kinds.len()).unwrap() {
            let fits = |share: &Placed| {
                let after: Vec<Placed> = layout.iter().copied().chain([*share]).collect();
                is_legal(&geometry, &after)
            };
            let places = everywhere(&geometry, kind);
            let legal: Vec<Placed> = places.iter().copied().filter(fits).collect();
            prop_assert_eq!(geometry.choices(&layout, kind), legal.clone());
            let checked: Vec<Placed> =
                places.iter().copied().filter(|share| geometry.check(&layout, *share).is_ok()).collect();
            prop_assert_eq!(checked, legal);
        }
    }

    #[test]
    fn a_layout_can_come_to_be_in_any_order(
        (geometry, layout) in (geometry(), asked()).prop_flat_map(|(geometry, asked)| {
            let layout = filled(&geometry, &asked);
            (Just(geometry), Just(layout).prop_shuffle())
        }),
    ) {
        for (position, share) in layout.iter().enumerate() {
            prop_assert_eq!(geometry.check(&layout[..position], *share), Ok(()));
        }
    }

    #[test]
    fn a_fixed_layout_fills_up_in_any_order_and_nothing_else_gets_in(
        (geometry, order, taken) in (geometry(), prop::collection::vec(any::<prop::sample::Index>(), 0..6))
            .prop_flat_map(|(geometry, wanted)| {
                let kinds = geometry.kinds.len();
                let wanted: Vec<u16> =
                    wanted.iter().map(|kind| u16::try_from(kind.index(kinds)).unwrap()).collect();
                let taken = prop::collection::vec(any::<prop::sample::Index>(), wanted.len());
                (Just(geometry), Just(wanted).prop_shuffle(), taken)
            }),
        others in asked(),
    ) {
        let Ok(places) = geometry.arrange(&[], &order) else { return Ok(()) };
        prop_assert!(is_legal(&geometry, &places), "{:?}", places);
        let mut fixed = geometry.clone();
        fixed.fix(&places);
        let mut there = vec![];
        for (kind, which) in order.iter().zip(&taken) {
            let choices = fixed.choices(&there, *kind);
            prop_assert!(!choices.is_empty(), "{kind} beside {there:?} of {places:?}");
            there.push(*which.get(&choices));
        }
        let sorted = |mut places: Vec<Placed>| { places.sort_unstable(); places };
        prop_assert_eq!(sorted(there.clone()), sorted(places.clone()));
        // What stands there from before takes places away, and adds none.
        let before = filled(&geometry, &others[..others.len().min(3)]);
        for (kind, of) in (0u16..).zip(&fixed.kinds) {
            prop_assert_eq!(fixed.choices(&there, kind), vec![]);
            let count = places.iter().filter(|place| place.kind == kind).count();
            prop_assert_eq!(fixed.most(of), i32::try_from(count).unwrap());
            for choice in fixed.choices(&before, kind) {
                prop_assert!(places.contains(&choice), "{choice:?}");
                prop_assert_eq!(geometry.check(&before, choice), Ok(()));
            }
        }
    }

    #[test]
    fn counts_are_what_trying_all_finds(geometry in geometry(), asked in asked()) {
        let layout = filled(&geometry, &asked);
        for kind in 0..u16::try_from(geometry.kinds.len()).unwrap() {
            let found = most_by_trying(&geometry, &layout, &everywhere(&geometry, kind));
            prop_assert_eq!(geometry.more(&layout, kind), found, "kind {} beside {:?}", kind, layout);
            prop_assert!(found <= geometry.most(&geometry.kinds[usize::from(kind)]));
        }
    }

    #[test]
    fn any_numbers_are_survived(
        kinds in prop::collection::vec((any::<[i32; 3]>(), prop::collection::vec(any::<i32>(), 0..3)), 1..4),
        mode in any::<(i32, Option<i32>, [u16; 4])>(),
        placed in prop::collection::vec((0u16..5, any::<Option<i32>>()), 0..4),
    ) {
        let kind = |([size, slices, max_count], starts): ([i32; 3], Vec<i32>)| {
            Kind { size, slices, starts, max_count, ..Kind::default() }
        };
        let geometry = Geometry {
            modes: vec![Mode { units: mode.0, slices: mode.1, engines: Engines(mode.2) }],
            kinds: kinds.into_iter().map(kind).collect(),
        };
        let placed: Vec<Placed> = placed.into_iter().map(|(kind, start)| Placed { kind, start }).collect();
        for kind in 0..4 {
            let _ = (geometry.choices(&placed, kind), geometry.more(&placed, kind));
        }
    }
}

#[test]
fn what_nobody_knows_is_in_the_way() {
    let kind = |starts: &[i32]| Kind { size: 1, starts: starts.to_vec(), max_count: 2, ..Kind::default() };
    let at = |kind, start| Placed { kind, start };
    let placed = Geometry { modes: vec![Mode { units: 2, ..Mode::default() }], kinds: vec![kind(&[0, 1])] };
    let counted = Geometry { kinds: vec![kind(&[])], ..placed.clone() };
    for geometry in [&placed, &counted] {
        assert_eq!(geometry.more(&[], 0), 2);
        assert_eq!(geometry.more(&[at(7, None)], 0), 0, "a share that the card does not list");
    }
    assert_eq!(placed.check(&[at(0, None)], at(0, Some(1))), Err(Misfit::InTheWay(0)), "it could be there");
    assert_eq!(counted.check(&[at(0, Some(1))], at(0, None)), Err(Misfit::Excluded(0)), "another division");
    assert_eq!(placed.check(&[], at(0, None)), Err(Misfit::Start));
    assert_eq!(counted.check(&[], at(0, Some(0))), Err(Misfit::Start));
}

#[test]
fn engines_that_nobody_told_limit_nothing_and_others_do() {
    let one = |engines: [u16; 4]| Kind {
        size: 1,
        starts: vec![0, 1],
        max_count: 2,
        engines: Engines(engines),
        ..Kind::default()
    };
    let card = |told: [u16; 4]| Geometry {
        modes: vec![Mode { units: 2, slices: None, engines: Engines(told) }],
        kinds: vec![one([4, 0, 1, 1]), one([1, 0, 0, 0]), one([0; 4])],
    };
    let all = [Placed { kind: 0, start: Some(0) }];
    let [known, unknown] = [card([4, 0, 4, 1]), card([0; 4])];
    assert_eq!(known.fits(&all, 1), Err(Misfit::Engines { which: "decoders", wanted: 1, free: 0 }));
    let refused = Err(Misfit::Engines { which: "decoders", wanted: 4, free: 3 });
    assert_eq!(known.fits(&[Placed { kind: 1, start: Some(0) }], 0), refused, "in whatever order");
    assert_eq!((known.more(&all, 1), known.more(&all, 2), known.most(&known.kinds[0])), (0, 1, 1));
    assert_eq!(known.choices(&all, 2), [Placed { kind: 2, start: Some(1) }]);
    assert_eq!((unknown.more(&all, 1), unknown.most(&unknown.kinds[0])), (1, 2));
    // One more of the same kind is refused where the shares of it are too many; what takes none never is.
    let full = [Placed { kind: 0, start: Some(0) }, Placed { kind: 0, start: Some(1) }];
    assert_eq!(known.fits(&full, 2), Err(Misfit::InTheWay(1)));
    let spanned = Mode::spanned_by(known.kinds.iter());
    assert_eq!(spanned.engines, Engines([4, 0, 1, 1]));
}

#[test]
fn one_gpu_instance_holds_one_size_and_the_least_of_the_most() {
    let on = |framebuffer_mib, max| OnInstance { framebuffer_mib, max };
    let (two, few) = (on(2048, 12), on(2048, 2));
    assert_eq!(two.joins(&[Some(two); 11]), Ok(()));
    assert_eq!(two.joins(&[Some(two); 12]), Err(NoJoin::Full(12)));
    assert_eq!(two.joins(&[Some(few), Some(two)]), Err(NoJoin::Full(2)));
    assert_eq!(two.joins(&[Some(two), Some(on(4096, 6))]), Err(NoJoin::OtherSize(1)));
    assert_eq!(two.joins(&[None]), Err(NoJoin::OtherSize(0)));
}
