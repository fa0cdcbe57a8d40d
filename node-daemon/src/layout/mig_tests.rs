//! The published tables of MIG layouts, each through `layout` itself.

use super::tests::{legal, refused, shares};

/// Names of the profiles of a card with seven slices: one slice, the same with twice its memory, two, three, four, seven.
type Names = [&'static str; 6];

const ONE: usize = 0;
const DOUBLE: usize = 1;
const TWO: usize = 2;
const THREE: usize = 3;
const FOUR: usize = 4;
const SEVEN: usize = 5;

/// The cards with seven slices, by the names of the MIG User Guide, "Supported MIG Profiles".
const SEVENS: [(&str, Names); 8] = [
    ("a100-40gb.yaml", ["1g.5gb", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"]),
    ("a100-80gb.yaml", ["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"]),
    ("h100-80gb.yaml", ["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"]),
    ("h100-94gb.yaml", ["1g.12gb", "1g.24gb", "2g.24gb", "3g.47gb", "4g.47gb", "7g.94gb"]),
    ("h100-96gb.yaml", ["1g.12gb", "1g.24gb", "2g.24gb", "3g.48gb", "4g.48gb", "7g.96gb"]),
    ("gh200.yaml", ["1g.12gb", "1g.24gb", "2g.24gb", "3g.48gb", "4g.48gb", "7g.96gb"]),
    ("h200-8.yaml", ["1g.18gb", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb"]),
    ("b200-8.yaml", ["1g.23gb", "1g.45gb", "2g.45gb", "3g.90gb", "4g.90gb", "7g.180gb"]),
];

/// What may stand on a card with seven slices: the figure of the MIG User Guide, in which order does not count, and what
/// NVIDIA/mig-parted has for it in config-default.yaml.
const LAYOUTS: [&[usize]; 17] = [
    &[SEVEN],
    &[FOUR, THREE],
    &[FOUR, TWO, ONE],
    &[FOUR, ONE, ONE, ONE],
    &[THREE, THREE],
    &[THREE, TWO, ONE],
    &[THREE, ONE, ONE, ONE],
    &[TWO, TWO, THREE],
    &[TWO, ONE, ONE, THREE],
    &[ONE, ONE, ONE, ONE, THREE],
    &[TWO, TWO, TWO, ONE],
    &[TWO, TWO, ONE, ONE, ONE],
    &[TWO, ONE, ONE, ONE, ONE, ONE],
    &[ONE, ONE, ONE, ONE, ONE, ONE, ONE],
    &[DOUBLE, DOUBLE, DOUBLE, DOUBLE],
    &[TWO, TWO, TWO],
    &[FOUR],
];

#[test]
fn every_published_layout_of_seven_slices_is_planned_on_each_card_in_any_order() {
    for (file, names) in SEVENS {
        for layout in LAYOUTS {
            let mut list: Vec<&str> = layout.iter().map(|profile| names[*profile]).collect();
            for _ in 0..2 {
                assert_eq!(
                    shares(&legal(file, &["--mig", &list.join(",")])).len(),
                    layout.len(),
                    "{file} {list:?}"
                );
                list.reverse();
            }
        }
        // The engines that there are once go to one of them.
        legal(file, &["--mig", &format!("{}+me,{}*6", names[ONE], names[ONE])]);
        // What is full takes no more, and each profile only as often as it is listed.
        for full in
            [&[SEVEN][..], &[FOUR, THREE], &[THREE, THREE], &[TWO, TWO, THREE], &[DOUBLE; 4], &[ONE; 7]]
        {
            let list: Vec<&str> = full.iter().chain([&ONE]).map(|profile| names[*profile]).collect();
            let why = refused(file, &["--mig", &list.join(",")]);
            assert!(
                why.contains(&format!("number {}, {}", list.len(), names[ONE])),
                "{file} {list:?}: {why}"
            );
        }
        for (profile, most) in [(SEVEN, 1), (FOUR, 1), (THREE, 2), (TWO, 3), (DOUBLE, 4), (ONE, 7)] {
            let why = refused(file, &["--mig", &format!("{}*{}", names[profile], most + 1)]);
            assert!(why.contains(&format!("number {}, {}", most + 1, names[profile])), "{file}: {why}");
        }
    }
}

/// NVIDIA/mig-parted, config-default.yaml, for cards with four slices, and what is full.
#[test]
fn every_published_layout_of_four_slices_is_planned_and_takes_no_more() {
    let a30 = "a30.yaml";
    for list in [
        "1g.6gb*4",
        "1g.6gb+me,1g.6gb*3",
        "2g.12gb*2",
        "2g.12gb+me,2g.12gb",
        "4g.24gb",
        "1g.6gb*2,2g.12gb",
        "2g.12gb,1g.6gb*2",
    ] {
        legal(a30, &["--mig", list]);
        let why = refused(a30, &["--mig", &format!("{list},1g.6gb")]);
        assert!(why.contains(", 1g.6gb, does not"), "{list}: {why}");
    }
    let rtx = "rtx-pro-6000-8.yaml";
    for list in [
        "1g.24gb*4",
        "1g.24gb+gfx*4",
        "1g.24gb-me*4",
        "1g.24gb+me,1g.24gb*3",
        "1g.24gb+me.all,1g.24gb-me*3",
        "2g.48gb*2",
        "2g.48gb+gfx*2",
        "2g.48gb-me*2",
        "2g.48gb+me.all,2g.48gb-me",
        "4g.96gb",
        "4g.96gb+gfx",
        "2g.48gb,1g.24gb*2",
        "1g.24gb*2,2g.48gb",
    ] {
        legal(rtx, &["--mig", list]);
        let why = refused(rtx, &["--mig", &format!("{list},1g.24gb-me")]);
        assert!(why.contains(", 1g.24gb-me, does not"), "{list}: {why}");
    }
}
