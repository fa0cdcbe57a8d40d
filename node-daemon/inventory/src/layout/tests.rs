use gpudesk_crds::gpu_node::{DeviceMode, DeviceSelector};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::simulated::HostFile;

fn card(model: &str) -> Device {
    let file = format!("{{coresPerSocket: 4, memoryMiB: 8192, cards: [{{model: {model}, count: 1}}]}}");
    HostFile::parse(&file).unwrap().host("n").unwrap().facts.cards.remove(0)
}

fn a100() -> Device {
    card("A100 40GB")
}

fn rule(layout: &Layout) -> DevicePolicy {
    let selector = DeviceSelector { pci_address: "0000:08:00.0".parse().ok(), ..DeviceSelector::default() };
    let mode = if layout.mig.is_some() { DeviceMode::Mig } else { DeviceMode::Vgpu };
    let rule = json!({"name": "a", "selector": selector, "mode": mode, "layout": layout});
    serde_json::from_value(rule).unwrap()
}

fn mig(types: &[&str]) -> Layout {
    Layout { mig: Some(types.iter().map(|name| (*name).to_owned()).collect()), vgpu: None }
}

fn vgpu(types: &[&str]) -> Layout {
    Layout { vgpu: Some(types.iter().map(|name| (*name).to_owned()).collect()), mig: None }
}

fn planned(card: &Device, layout: &Layout, before: &[LayoutPlaces]) -> Planned {
    plan(card, &rule(layout), layout, before).unwrap()
}

fn refused(card: &Device, layout: &Layout) -> String {
    plan(card, &rule(layout), layout, &[]).unwrap_err()
}

fn starts<'a>(planned: &'a Planned, name: &str) -> &'a [i32] {
    planned.places.iter().find(|of| of.type_name == name).map_or(&[], |of| &of.starts)
}

fn used(card: &mut Device, mode: ShareMode, name: &str, start: Option<i32>, owner: &str) {
    card.instances.push(Instance {
        id: format!("share-{}", card.instances.len()),
        type_name: name.into(),
        mode,
        vgpu_type: None,
        start,
        virtual_function: None,
        gpu_instance: None,
        owner: Some(owner.into()),
    });
}

#[test]
fn the_whole_list_is_planned_before_any_of_it_is_placed() {
    let layout = mig(&["1g.5gb", "1g.5gb", "2g.10gb", "3g.20gb"]);
    let found = planned(&a100(), &layout, &[]);
    assert_eq!(starts(&found, "3g.20gb"), [4]);
    assert!(layout.is_planned_as(&found.places) && found.outside.is_empty());
    assert_eq!(planned(&a100(), &layout, &[]), found, "the same each time");
}

#[test]
fn what_is_in_use_stays_and_the_rest_is_planned_around_it() {
    let mut card = a100();
    used(&mut card, ShareMode::Mig, "1g.5gb", Some(5), "lab/anna");
    let found = planned(&card, &mig(&["3g.20gb", "1g.5gb", "1g.5gb"]), &[]);
    assert_eq!((starts(&found, "1g.5gb"), starts(&found, "3g.20gb")), (&[4, 5][..], &[0][..]));
    assert_eq!(found.outside, [""; 0]);
    // Beside what the layout lacks, too, where that can be; its desktop is waited for all the same.
    let mut card = a100();
    used(&mut card, ShareMode::Mig, "1g.5gb+me", Some(0), "lab/ben");
    let found = planned(&card, &mig(&["3g.20gb"]), &[]);
    assert_eq!(starts(&found, "3g.20gb"), [4]);
    assert_eq!(found.outside, ["lab/ben (1g.5gb+me at 0)"]);
    // Where it cannot be, the layout is planned as if it were gone.
    used(&mut card, ShareMode::Mig, "1g.5gb", Some(4), "lab/carl");
    let found = planned(&card, &mig(&["3g.20gb", "3g.20gb"]), &[]);
    assert_eq!(starts(&found, "3g.20gb"), [0, 4]);
    assert_eq!(found.outside, ["lab/ben (1g.5gb+me at 0)", "lab/carl (1g.5gb at 4)"]);
    // Of those that the layout has, as many stay as can.
    let mut card = a100();
    used(&mut card, ShareMode::Mig, "1g.5gb", Some(1), "lab/anna");
    used(&mut card, ShareMode::Mig, "1g.5gb", Some(5), "lab/ben");
    let found = planned(&card, &mig(&["3g.20gb", "1g.5gb", "1g.5gb"]), &[]);
    assert!(starts(&found, "1g.5gb").contains(&1), "{found:?}");
    assert_eq!(found.outside, ["lab/ben (1g.5gb at 5)"]);
}

#[test]
fn what_was_planned_stays_until_the_list_changes() {
    let layout = mig(&["1g.5gb", "2g.10gb"]);
    let mut card = a100();
    used(&mut card, ShareMode::Mig, "1g.5gb", Some(5), "lab/anna");
    let first = planned(&card, &layout, &[]);
    card.instances.clear();
    assert_eq!(planned(&card, &layout, &first.places), first, "its desktop is gone, its place is not");
    let more = planned(&card, &mig(&["2g.10gb", "1g.5gb", "1g.5gb"]), &first.places);
    assert_eq!(starts(&more, "1g.5gb").len(), 2);
    // What is not legal on the card as it is now is planned anew.
    let odd = [LayoutPlaces { type_name: "1g.5gb".into(), starts: vec![0, 0], count: 0 }];
    assert_eq!(starts(&planned(&card, &mig(&["1g.5gb", "1g.5gb"]), &odd), "1g.5gb"), [0, 1]);
    let counted = [LayoutPlaces { type_name: "1g.5gb".into(), starts: vec![], count: 2 }];
    assert_eq!(starts(&planned(&card, &mig(&["1g.5gb", "1g.5gb"]), &counted), "1g.5gb"), [0, 1]);
}

#[test]
fn a_layout_that_cannot_be_is_refused_with_what_would_be_right() {
    for (layout, parts) in [
        (mig(&["1g.5gb", "9g.99gb"]), ["the card offers no 9g.99gb", "it offers 1g.5gb"]),
        (
            mig(&["3g.20gb", "3g.20gb", "1g.5gb"]),
            ["devices[a].layout.mig [3g.20gb*2, 1g.5gb] cannot be", "number 3, 1g.5gb, does not"],
        ),
        (mig(&["1g.5gb"; 8]), ["[1g.5gb*8]", "7 of 1g.5gb are on the card then, and no more fit"]),
    ] {
        let why = refused(&a100(), &layout);
        assert!(parts.iter().all(|part| why.contains(part)), "{why}");
        assert!(why.ends_with("no desktop gets the card"), "{why}");
    }
    let rtx = card("RTX PRO 6000 Blackwell Server Edition");
    let why = refused(&rtx, &mig(&["1g.24gb"]));
    assert!(why.contains("no vGPU lives on a GPU instance 1g.24gb") && why.contains("1g.24gb+gfx"), "{why}");
}

#[test]
fn unlike_sizes_need_to_be_mixed_and_equal_ones_are_counted() {
    let l40s = card("L40S");
    let equal = vgpu(&["L40S-8Q", "L40S-8Q", "L40S-8A"]);
    let found = planned(&l40s, &equal, &[]);
    let counts: Vec<(&str, i32)> = found.places.iter().map(|of| (of.type_name.as_str(), of.count)).collect();
    assert_eq!(counts, [("L40S-8A", 1), ("L40S-8Q", 2)]);
    let unlike = vgpu(&["L40S-16Q", "L40S-12Q", "L40S-12Q", "L40S-8Q"]);
    let why = refused(&l40s, &unlike);
    assert!(why.contains("L40S-16Q and L40S-12Q differ in size: write vgpuPlacement: MixedSize"), "{why}");
    let mixed = DevicePolicy { vgpu_placement: Some(VgpuPlacement::MixedSize), ..rule(&unlike) };
    let found = plan(&l40s, &mixed, &unlike, &[]).unwrap();
    assert!([16, 24].contains(&starts(&found, "L40S-8Q")[0]), "{found:?}");
    let why = refused(&card("V100 16GB"), &vgpu(&["V100-8Q", "V100-4Q"]));
    assert!(why.contains("this card cannot mix them"), "{why}");
    let why = refused(&l40s, &vgpu(&["L40S-8Q"; 7]));
    assert!(why.contains("6 of L40S-8Q are on the card then, and no more fit"), "{why}");

    // Of shares without position, those beyond the places are waited for; of another size, all.
    let mut l40s = l40s;
    for owner in ["lab/anna", "lab/ben", "lab/carl"] {
        used(&mut l40s, ShareMode::Vgpu, "L40S-8Q", None, owner);
    }
    assert_eq!(planned(&l40s, &vgpu(&["L40S-8Q", "L40S-8Q"]), &[]).outside, ["lab/carl (L40S-8Q)"]);
    assert_eq!(planned(&l40s, &vgpu(&["L40S-16Q"]), &[]).outside.len(), 3);
}

#[test]
fn a_new_share_is_one_of_the_places() {
    let places = [
        LayoutPlaces { type_name: "1g.5gb".into(), starts: vec![2, 3], count: 0 },
        LayoutPlaces { type_name: "L40S-8Q".into(), starts: vec![], count: 2 },
    ];
    assert_eq!(admits(&places, "1g.5gb", Some(3), 1), Ok(()));
    assert_eq!(admits(&places, "L40S-8Q", None, 1), Ok(()));
    for (name, start, others, part) in [
        ("1g.5gb", Some(4), 0, "1g.5gb at 4 is no place of it"),
        ("2g.10gb", Some(2), 0, "2g.10gb at 2 is no place of it"),
        ("L40S-8Q", None, 2, "all 2 places for L40S-8Q in it are taken"),
        ("L40S-4Q", None, 0, "it has no place for L40S-4Q"),
        ("L40S-8Q", Some(0), 0, "L40S-8Q at 0 is no place of it"),
    ] {
        let why = admits(&places, name, start, others).unwrap_err();
        assert!(why.contains(part), "{why}");
    }
    assert!(admits(&[], "1g.5gb", Some(2), 0).is_err(), "a layout that is not planned has no places");
}

/// A list of what vGPUs can live on, and shares that are there.
fn lists() -> impl Strategy<Value = (Vec<usize>, Vec<(usize, i32)>)> {
    (prop::collection::vec(0..6usize, 1..6), prop::collection::vec((0..6usize, 0..8i32), 0..4))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_layout_that_is_accepted_has_legal_places_apart_whatever_is_there((list, there) in lists()) {
        let mut card = a100();
        let offered: Vec<String> =
            card.placements.iter().filter(|of| of.mode == ShareMode::Mig).map(|of| of.type_name.clone()).collect();
        let geometry = card.geometry(false);
        let mut beside = vec![];
        for (profile, start) in there {
            let name = &offered[profile % offered.len()];
            let share = Placed { kind: card.kind_of(ShareMode::Mig, name), start: Some(start) };
            if geometry.check(&beside, share).is_ok() {
                beside.push(share);
                used(&mut card, ShareMode::Mig, name, Some(start), "lab/anna");
            }
        }
        let names: Vec<&str> = list.iter().map(|profile| offered[profile % offered.len()].as_str()).collect();
        let layout = mig(&names);
        let kinds: Vec<u16> = names.iter().map(|name| card.kind_of(ShareMode::Mig, name)).collect();
        let found = plan(&card, &rule(&layout), &layout, &[]);
        // Whether there is a layout does not depend on what is on the card.
        prop_assert_eq!(found.is_ok(), geometry.arrange(&[], &kinds).is_ok(), "{:?}", found);
        let Ok(found) = found else { return Ok(()) };
        prop_assert!(layout.is_planned_as(&found.places));
        card.layout = found.places.clone();
        let places = card.places(ShareMode::Mig);
        prop_assert!(is_legal(&geometry, &places), "{:?}", places);
        // Whoever is not told to be waited for has a place, and all places are free but for those who are.
        let told = beside.iter().filter(|share| !places.contains(share)).count();
        prop_assert_eq!(found.outside.len(), told);
        // It stays as it is, also when all have gone.
        prop_assert_eq!(&planned(&card, &layout, &found.places).places, &found.places);
        card.instances.clear();
        prop_assert_eq!(&planned(&card, &layout, &found.places).places, &found.places);
    }
}
