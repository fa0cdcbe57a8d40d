use proptest::prelude::*;

use super::*;
use crate::lookahead::{Kind, Mode};

fn kind(size: i32, slices: i32, max_count: i32, starts: &[i32]) -> Kind {
    Kind { size, slices, starts: starts.to_vec(), max_count, ..Kind::default() }
}

/// H100: 1g, 1g with double memory, 2g, 3g, 4g, 7g.
fn seven_slices() -> Geometry {
    Geometry {
        modes: vec![Mode { units: 8, slices: Some(7), ..Mode::default() }],
        kinds: vec![
            kind(1, 1, 7, &[0, 1, 2, 3, 4, 5, 6]),
            kind(2, 1, 4, &[0, 2, 4, 6]),
            kind(2, 2, 3, &[0, 2, 4]),
            kind(4, 3, 2, &[0, 4]),
            kind(4, 4, 1, &[0]),
            kind(8, 7, 1, &[0]),
        ],
    }
}

/// 48 GB, Ada: 6Q, 8Q, 12Q, 16Q, 24Q.
fn mixed_sizes() -> Geometry {
    Geometry {
        modes: vec![Mode { units: 48, ..Mode::default() }],
        kinds: vec![
            kind(6, 0, 8, &[0, 6, 12, 18, 24, 30, 36, 42]),
            kind(8, 0, 4, &[0, 16, 24, 40]),
            kind(12, 0, 4, &[0, 12, 24, 36]),
            kind(16, 0, 2, &[0, 32]),
            kind(24, 0, 2, &[0, 24]),
        ],
    }
}

const ALL: [Option<u16>; 6] = [Some(0), Some(1), Some(2), Some(3), Some(4), Some(5)];

fn want(counts: &[u32], worth: &[u32]) -> Vec<Want> {
    counts.iter().zip(worth).map(|(count, worth)| Want { count: *count, worth: *worth }).collect()
}

fn slices(counts: &[u32; 6]) -> Vec<Want> {
    want(counts, &[1, 1, 2, 3, 4, 7])
}

fn empty(geometry: &Geometry, count: u32) -> Class<'_> {
    Class { geometry, placed: &[], count, cost: 1, serves: &ALL }
}

/// Every share is legal in its order, no class gives more cards than it has, and what is placed and
/// what is not add up to what was wanted.
fn check(classes: &[Class<'_>], wanted: &[Want], plan: &Plan) {
    let mut placed = vec![0; wanted.len()];
    let mut used = vec![0; classes.len()];
    for card in &plan.cards {
        let class = &classes[card.class];
        used[card.class] += card.times;
        let mut shares = class.placed.to_vec();
        for (shape, add) in &card.adds {
            assert_eq!(class.serves[*shape], Some(add.kind));
            assert!(class.geometry.choices(&shares, add.kind).contains(add), "{add:?} on {shares:?}");
            shares.push(*add);
            placed[*shape] += card.times;
        }
    }
    assert!(used.iter().zip(classes).all(|(used, class)| *used <= class.count));
    for ((placed, unmet), wanted) in placed.iter().zip(&plan.unmet).zip(wanted) {
        assert_eq!(placed + unmet, wanted.count);
    }
}

/// The fewest cards of seven slices: 3g go to the upper halves first, double memory to units 6 and 7.
fn fewest(counts: [u32; 6]) -> u32 {
    let [one, double, two, three, four, seven] = counts.map(i64::from);
    let fits = |cards: i64| {
        let cards = cards - seven;
        let upper = three.min(cards);
        let (lower_free, upper_free) = (cards - four - (three - upper), cards - upper);
        let pairs = 2 * lower_free + upper_free - two;
        let last = double.min(upper_free);
        let pairs_left = pairs - (double - last);
        lower_free >= 0 && pairs >= 0 && pairs_left >= 0 && one <= 2 * pairs_left + upper_free - last
    };
    let cards = (0..100_000).find(|cards| fits(*cards)).expect("some number does");
    u32::try_from(cards).expect("small")
}

#[test]
fn two_cards_hold_what_two_cards_can() {
    let geometry = seven_slices();
    let (classes, wanted) = ([empty(&geometry, 9)], slices(&[2, 1, 1, 2, 1, 0]));
    let plan = plan(&classes, &wanted);
    check(&classes, &wanted, &plan);
    assert_eq!((plan.cost, plan.least), (3, 3));
}

#[test]
fn the_only_layout_for_eight_twelve_twelve_and_sixteen_is_found() {
    let geometry = mixed_sizes();
    let serves = [Some(1), Some(2), Some(3)];
    let classes = [Class { geometry: &geometry, placed: &[], count: 5, cost: 1, serves: &serves }];
    let wanted = want(&[1, 2, 1], &[8, 12, 16]);
    let plan = plan(&classes, &wanted);
    check(&classes, &wanted, &plan);
    assert_eq!(plan.cost, 1);
}

#[test]
fn cards_in_use_are_filled_before_empty_ones_are_opened() {
    let geometry = seven_slices();
    let on = [Placed { kind: 3, start: Some(4) }];
    let used = Class { geometry: &geometry, placed: &on, count: 2, cost: 0, serves: &ALL };
    let (classes, wanted) = ([empty(&geometry, 4), used], slices(&[0, 0, 0, 0, 2, 1]));
    let plan = plan(&classes, &wanted);
    check(&classes, &wanted, &plan);
    assert_eq!(plan.cost, 1);
}

#[test]
fn when_not_all_fit_the_most_worth_is_placed() {
    let geometry = seven_slices();
    let (classes, wanted) = ([empty(&geometry, 1)], slices(&[3, 0, 0, 0, 0, 1]));
    let plan = plan(&classes, &wanted);
    check(&classes, &wanted, &plan);
    assert_eq!(plan.unmet, [3, 0, 0, 0, 0, 0]);
}

#[test]
fn shares_without_a_position_are_counted() {
    let geometry = Geometry {
        modes: vec![Mode { units: 12, ..Mode::default() }, Mode { units: 6, ..Mode::default() }],
        kinds: vec![kind(1, 0, 12, &[]), Kind { mode: 1, size: 1, max_count: 6, ..Kind::default() }],
    };
    let on = [Placed { kind: 0, start: None }; 5];
    let serves = [Some(0), Some(1)];
    let classes = [
        Class { geometry: &geometry, placed: &on, count: 1, cost: 0, serves: &serves },
        Class { geometry: &geometry, placed: &[], count: 9, cost: 1, serves: &serves },
    ];
    let wanted = want(&[20, 7], &[4, 8]);
    let plan = plan(&classes, &wanted);
    check(&classes, &wanted, &plan);
    assert_eq!(plan.cost, 4);
}

#[test]
fn nothing_wanted_needs_nothing() {
    let geometry = seven_slices();
    assert_eq!(plan(&[empty(&geometry, 3)], &[]), Plan::default());
    assert_eq!(plan(&[], &slices(&[1, 0, 0, 0, 0, 0])).unmet, [1, 0, 0, 0, 0, 0]);
}

#[test]
fn a_share_that_nobody_serves_stays_unmet() {
    let geometry = seven_slices();
    let classes = [Class { serves: &[None, Some(5)], ..empty(&geometry, 3) }];
    let wanted = want(&[2, 2], &[1, 7]);
    let plan = plan(&classes, &wanted);
    check(&classes, &wanted, &plan);
    assert_eq!(plan.unmet, [2, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn seven_slices_are_filled_as_well_as_can_be(counts in prop::array::uniform6(0u32..40)) {
        let geometry = seven_slices();
        let (classes, wanted) = ([empty(&geometry, 1000)], slices(&counts));
        let plan = plan(&classes, &wanted);
        check(&classes, &wanted, &plan);
        prop_assert_eq!(plan.cost, u64::from(fewest(counts)));
    }

    #[test]
    fn mixed_sizes_on_cards_in_use_give_a_legal_plan(
        counts in prop::array::uniform5(0u32..9),
        cards in 0u32..6,
        start in prop::sample::select(vec![0, 16, 24, 40]),
    ) {
        let geometry = mixed_sizes();
        let on = [Placed { kind: 1, start: Some(start) }];
        let classes = [
            Class { geometry: &geometry, placed: &on, count: cards, cost: 0, serves: &ALL[..5] },
            Class { geometry: &geometry, placed: &[], count: 6, cost: 1, serves: &ALL[..5] },
        ];
        let wanted = want(&counts, &[6, 8, 12, 16, 24]);
        let plan = plan(&classes, &wanted);
        check(&classes, &wanted, &plan);
        prop_assert!(plan.cost >= plan.least || plan.unmet.iter().any(|unmet| *unmet > 0));
    }
}

#[test]
fn a_request_costs_what_it_takes_from_others_and_nothing_where_there_is_room() {
    let geometry = Geometry {
        modes: vec![Mode { units: 4, ..Mode::default() }],
        kinds: vec![
            Kind { size: 1, starts: vec![0, 1, 2, 3], max_count: 4, ..Kind::default() },
            Kind { size: 4, starts: vec![0], max_count: 1, ..Kind::default() },
        ],
    };
    let serves = [Some(0), Some(1)];
    let class = |count| Class { geometry: &geometry, placed: &[], count, cost: 0, serves: &serves };
    // One card for four small ones and a large one: one unit is worth what the best use pays for it.
    let scarce = prices(&[class(1)], &[1.0, 3.0], &[vec![4, 1]]);
    assert!((scarce[0] - 0.75).abs() < 1e-6 || (scarce[0] - 1.0).abs() < 1e-6, "{scarce:?}");
    assert!((scarce[1] - 3.0).abs() < 1e-6, "{scarce:?}");
    // Room for all.
    let enough = prices(&[class(3)], &[1.0, 3.0], &[vec![4, 1]]);
    assert_eq!(enough, [0.0, 0.0]);
    // No card at all.
    let nothing = prices(&[class(0)], &[1.0, 3.0], &[vec![4, 1]]);
    assert_eq!(nothing, [1.0, 3.0]);
    let mean = prices(&[class(1)], &[1.0, 3.0], &[vec![4, 1], vec![0, 0]]);
    assert!((mean[1] - scarce[1] / 2.0).abs() < 1e-6, "{mean:?}");
}
