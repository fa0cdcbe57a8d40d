use proptest::prelude::*;

use super::*;

fn kind(mode: u16, size: i32, slices: i32, max_count: i32, starts: &[i32]) -> Kind {
    Kind { mode, size, slices, starts: starts.to_vec(), max_count, ..Kind::default() }
}

/// H100: 1g, 1g with double memory, 2g, 3g, 4g, 7g.
pub(crate) fn seven_slices() -> Geometry {
    Geometry {
        modes: vec![Mode { units: 8, slices: Some(7), ..Mode::default() }],
        kinds: vec![
            kind(0, 1, 1, 7, &[0, 1, 2, 3, 4, 5, 6]),
            kind(0, 2, 1, 4, &[0, 2, 4, 6]),
            kind(0, 2, 2, 3, &[0, 2, 4]),
            kind(0, 4, 3, 2, &[0, 4]),
            kind(0, 4, 4, 1, &[0]),
            kind(0, 8, 7, 1, &[0]),
        ],
    }
}

/// L40S: 4Q and 8Q of equal size, 8Q, 16Q and 24Q of mixed size, the whole card.
fn many_modes() -> Geometry {
    Geometry {
        modes: vec![
            Mode { units: 12, ..Mode::default() },
            Mode { units: 6, ..Mode::default() },
            Mode { units: 48, ..Mode::default() },
            Mode { units: 1, ..Mode::default() },
        ],
        kinds: vec![
            kind(0, 1, 0, 12, &[]),
            kind(1, 1, 0, 6, &[]),
            kind(2, 8, 0, 4, &[0, 16, 24, 40]),
            kind(2, 16, 0, 2, &[0, 32]),
            kind(2, 24, 0, 2, &[0, 24]),
            kind(3, 1, 0, 1, &[]),
        ],
    }
}

fn at(kind: u16, start: i32) -> Placed {
    Placed { kind, start: Some(start) }
}

fn counted(kind: u16) -> Placed {
    Placed { kind, start: None }
}

fn even(geometry: Geometry) -> Values {
    let wanted = vec![1; geometry.kinds.len()];
    let total = u64::try_from(wanted.len()).expect("few");
    Values::new(geometry, &wanted, total, 80 << 10)
}

fn cheapest(values: &Values, placed: &[Placed], kind: u16) -> Placed {
    let choices = values.geometry().choices(placed, kind);
    choices.into_iter().min_by_key(|choice| values.cost(placed, *choice)).expect("it fits")
}

#[test]
fn a_chance_is_one_over_a_binomial() {
    let chances = chances();
    assert_eq!(chances[..4], [CHANCE, CHANCE / 17, CHANCE / 153, CHANCE / 969]);
    assert_eq!(chances.last(), Some(&0));
}

#[test]
fn three_slices_take_the_half_that_four_slices_cannot_use() {
    assert_eq!(cheapest(&even(seven_slices()), &[], 3), at(3, 4));
}

#[test]
fn a_small_share_joins_a_card_in_use_and_leaves_the_empty_one_alone() {
    let values = even(seven_slices());
    let small = cheapest(&values, &[], 0);
    let used = [at(3, 4)];
    let there = cheapest(&values, &used, 0);
    assert!(values.cost(&used, there) < values.cost(&[], small));
}

#[test]
fn the_middle_of_a_half_is_no_place_for_a_small_share() {
    let values = even(seven_slices());
    let used = [at(3, 0), at(2, 4)];
    assert_eq!(cheapest(&values, &used, 0), at(0, 6));
}

#[test]
fn sixteen_keeps_its_start_when_eight_and_twelve_come_first() {
    // The driver's own order puts 8Q at 0, and then no 16Q fits beside 24Q.
    let values = even(many_modes());
    let used = [at(4, 0)];
    let eight = cheapest(&values, &used, 2);
    assert_eq!(eight, at(2, 24), "start 40 would take the only start that is left for 16Q");
}

#[test]
fn a_card_that_is_in_the_mode_already_is_cheaper_than_an_empty_one() {
    let values = even(many_modes());
    assert!(values.cost(&[counted(0)], counted(0)) < values.cost(&[], counted(0)));
}

#[test]
fn what_is_scarce_is_dearer_the_more_it_is_wanted() {
    let of = |wanted: &[u64]| Values::new(seven_slices(), wanted, 100, 1 << 16);
    let (seldom, often) = (of(&[99, 0, 0, 0, 0, 1]), of(&[50, 0, 0, 0, 0, 50]));
    assert!(seldom.cost(&[], at(0, 6)) < often.cost(&[], at(0, 6)));
}

#[test]
fn with_no_mix_every_kind_counts() {
    let nothing = Values::new(seven_slices(), &[], 0, 1 << 16);
    assert_eq!(cheapest(&nothing, &[], 3), at(3, 4));
    assert!(nothing.value(&[]) > nothing.value(&[at(0, 6)]));
}

#[test]
fn what_no_card_offers_costs_nothing_and_does_not_fail() {
    let values = even(seven_slices());
    assert_eq!(values.geometry().choices(&[], 17), vec![]);
    assert_eq!(Values::new(Geometry::default(), &[3], 3, 9).value(&[]), 0);
}

#[test]
fn compute_slices_limit_as_units_do() {
    let mut geometry = seven_slices();
    geometry.modes[0].slices = Some(3);
    assert_eq!(geometry.choices(&[at(3, 4)], 0), vec![]);
    assert_eq!(geometry.choices(&[], 4), vec![]);
}

/// What [`fill`] finds, by trying every share at every start, one after the other.
fn fill_by_trying(geometry: &Geometry, placed: &[Placed], asked: &[Asked]) -> i64 {
    let mut best = 0;
    for (kind, of) in (0u16..).zip(asked).filter(|(_, of)| of.limit > 0 && of.price > 0) {
        let mut less = asked.to_vec();
        less[usize::from(kind)].limit -= 1;
        for share in geometry.choices(placed, kind) {
            let after: Vec<Placed> = placed.iter().copied().chain([share]).collect();
            best = best.max(of.price + fill_by_trying(geometry, &after, &less));
        }
    }
    best
}

/// A30 and a card that divides in two ways: few enough shares to try all.
fn few_shares() -> [Geometry; 2] {
    let a30 = Geometry {
        modes: vec![Mode { units: 4, slices: Some(4), ..Mode::default() }],
        kinds: vec![kind(0, 1, 1, 4, &[0, 1, 2, 3]), kind(0, 2, 2, 2, &[0, 2]), kind(0, 4, 4, 1, &[0])],
    };
    let two_ways = Geometry {
        modes: vec![Mode { units: 3, ..Mode::default() }, Mode { units: 6, ..Mode::default() }],
        kinds: vec![kind(0, 1, 0, 3, &[]), kind(1, 2, 0, 2, &[0, 4]), kind(1, 3, 0, 2, &[0, 3])],
    };
    [a30, two_ways]
}

/// A card as a sequence of requests left it, each at some legal start.
fn filled(geometry: &Geometry, asked: &[(u16, usize)]) -> Vec<Placed> {
    let mut placed = vec![];
    for (kind, nth) in asked {
        let choices = geometry.choices(&placed, *kind);
        placed.extend(choices.get(nth % choices.len().max(1)));
    }
    placed
}

proptest! {
    #[test]
    fn worth_does_not_depend_on_the_order(
        asked in prop::collection::vec((0u16..6, 0usize..8), 0..10),
        rotate in 0usize..10,
    ) {
        for geometry in [seven_slices(), many_modes()] {
            let placed = filled(&geometry, &asked);
            let mut other = placed.clone();
            other.rotate_left(rotate % placed.len().max(1));
            let values = even(geometry);
            prop_assert_eq!(values.value(&placed), values.value(&other));
        }
    }

    #[test]
    fn every_choice_is_legal_and_worth_is_never_negative(asked in prop::collection::vec((0u16..6, 0usize..8), 0..10)) {
        for geometry in [seven_slices(), many_modes()] {
            let placed = filled(&geometry, &asked);
            let room = geometry.room(&placed);
            let mode = room.mode.map(|mode| geometry.modes[usize::from(mode)]);
            if let Some(mode) = mode {
                prop_assert!(room.units <= mode.units);
                prop_assert!(mode.slices.is_none_or(|all| room.slices <= all));
            }
            let values = even(geometry);
            prop_assert!(values.value(&placed) >= 0);
            prop_assert!(values.value(&placed) <= values.value(&[]) * 2);
        }
    }

    #[test]
    fn what_fits_at_prices_is_what_trying_all_finds(
        filled_with in prop::collection::vec((0u16..3, 0usize..4), 0..3),
        asked in prop::collection::vec((0i64..9, 0u32..4), 3),
    ) {
        let asked: Vec<Asked> = asked.into_iter().map(|(price, limit)| Asked { price, limit }).collect();
        for geometry in few_shares() {
            let placed = filled(&geometry, &filled_with);
            prop_assert_eq!(fill(&geometry, &placed, &asked), fill_by_trying(&geometry, &placed, &asked));
        }
    }

    #[test]
    fn any_numbers_are_survived(
        wanted in prop::collection::vec(any::<u64>(), 0..8),
        total in any::<u64>(),
        whole in any::<u64>(),
        sizes in prop::collection::vec((-1i32..50, -1i32..9, -1i32..9), 0..6),
    ) {
        let kinds = sizes.iter().map(|(size, slices, max)| kind(0, *size, *slices, *max, &[0, 3])).collect();
        let geometry = Geometry { modes: vec![Mode { units: 48, slices: Some(7), ..Mode::default() }], kinds };
        let values = Values::new(geometry, &wanted, total, whole >> 24);
        let _ = values.value(&[at(0, 0), at(1, 3)]);
        let asked = vec![Asked { price: 1, limit: u32::MAX }; 7];
        prop_assert!(fill(values.geometry(), &[at(0, 0), at(1, 3)], &asked) >= 0);
    }
}
