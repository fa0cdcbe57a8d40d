//! An H100 of 80 GB and an RTX PRO 6000, as their drivers list them.

use super::*;

fn profile(
    id: u32,
    name: &str,
    (slices, size, max): (i32, i32, i32),
    starts: &[i32],
    media: [i32; 4],
) -> Profile {
    let (name, starts) = (name.to_owned(), starts.to_vec());
    Profile { id, name, slices, size, starts, max, memory_mib: 0, media, remaining: None }
}

fn h100() -> Vec<Profile> {
    vec![
        profile(19, "1g.10gb", (1, 1, 7), &[0, 1, 2, 3, 4, 5, 6], [1, 0, 1, 0]),
        profile(20, "1g.10gb+me", (1, 1, 1), &[0, 1, 2, 3, 4, 5, 6], [1, 0, 1, 1]),
        profile(15, "1g.20gb", (1, 2, 4), &[0, 2, 4, 6], [1, 0, 1, 0]),
        profile(14, "2g.20gb", (2, 2, 3), &[0, 2, 4], [2, 0, 2, 0]),
        profile(9, "3g.40gb", (3, 4, 2), &[0, 4], [3, 0, 3, 0]),
        profile(5, "4g.40gb", (4, 4, 1), &[0], [4, 0, 4, 0]),
        profile(0, "7g.80gb", (7, 8, 1), &[0], [7, 0, 7, 1]),
    ]
}

fn rtx_pro_6000() -> Vec<Profile> {
    vec![
        profile(14, "1g.24gb", (1, 3, 4), &[0, 3, 6, 9], [1, 1, 1, 0]),
        profile(65, "1g.24gb+me.all", (1, 3, 1), &[0, 3, 6, 9], [4, 4, 4, 1]),
        profile(67, "1g.24gb-me", (1, 3, 4), &[0, 3, 6, 9], [0, 0, 0, 0]),
        profile(5, "2g.48gb", (2, 6, 2), &[0, 6], [2, 2, 2, 0]),
        profile(0, "4g.96gb", (4, 12, 1), &[0], [4, 4, 4, 1]),
    ]
}

const ON: MigMode = MigMode { current: true, pending: true };

fn at(profiles: &[Profile], profile: u32, start: i32) -> Place {
    let size = profiles.iter().find(|known| known.id == profile).unwrap().size;
    Place { profile, start, size }
}

/// An instance with a compute instance that takes it whole.
fn slot(profiles: &[Profile], profile: u32, start: i32, used_by: Option<&str>) -> Slot {
    let slices = profiles.iter().find(|known| known.id == profile).unwrap().slices;
    let uuid = Some(format!("MIG-{profile}-{start}"));
    let compute = vec![LiveComputeInstance { id: 0, profile: 0, start: 0, slices, uuid }];
    let at = at(profiles, profile, start);
    Slot { instance: LiveInstance { id: 7, at, compute }, used_by: used_by.map(Into::into) }
}

fn words(changes: &[Change]) -> Vec<String> {
    changes.iter().map(ToString::to_string).collect()
}

#[test]
fn an_instance_is_made_from_the_mode_on_and_no_step_is_done_twice() {
    let profiles = h100();
    let rules = Rules::new(&profiles);
    let off = MigMode { current: false, pending: false };
    let all = rules.creation(off, &[], 9, 4).unwrap();
    let expected =
        ["MIG on", "make a GPU instance of profile 9 at 4", "make a compute instance on profile 9 at 4"];
    assert_eq!(words(&all), expected);
    // Cut short after each step, what is left is the rest.
    assert_eq!(rules.creation(ON, &[], 9, 4).unwrap(), all[1..]);
    let mut half = slot(&profiles, 9, 4, None);
    half.instance.compute.clear();
    assert_eq!(rules.creation(ON, &[half], 9, 4).unwrap(), all[2..]);
    let there = slot(&profiles, 9, 4, Some("a desktop"));
    assert_eq!(rules.creation(ON, &[there], 9, 4).unwrap(), []);
    // A mode that waits to be off would take everything with it at the next reset.
    let ending = MigMode { current: true, pending: false };
    assert_eq!(rules.creation(ending, &[], 9, 4).unwrap()[0], Change::MigMode(true));
}

#[test]
fn only_what_is_in_the_way_goes_and_never_what_is_used() {
    let profiles = h100();
    let rules = Rules::new(&profiles);
    let live =
        [slot(&profiles, 19, 0, None), slot(&profiles, 19, 5, None), slot(&profiles, 14, 2, Some("lab/one"))];
    let changes = rules.creation(ON, &live, 9, 4).unwrap();
    assert_eq!(
        words(&changes)[..2],
        ["take away compute instance 0 of profile 19 at 5", "take away the GPU instance of profile 19 at 5"]
    );
    assert_eq!(changes.len(), 4);
    let refused = rules.creation(ON, &live, 9, 0).unwrap_err();
    assert_eq!(refused.to_string(), "3g.40gb at 0 would overlap with 2g.20gb at 2, which lab/one uses");
    assert_eq!(
        rules.removal(&live, at(&profiles, 14, 2)).unwrap_err().to_string(),
        "2g.20gb at 2 is in use by lab/one"
    );
    assert_eq!(rules.removal(&live, at(&profiles, 9, 0)).unwrap(), []);
}

#[test]
fn of_idle_ones_the_cheapest_make_room_for_slices_and_engines() {
    let profiles = h100();
    let rules = Rules::new(&profiles);
    // Two halves take six of seven slices: a 1g has a free unit nowhere, and the half in use stays.
    let live = [slot(&profiles, 9, 0, Some("lab/one")), slot(&profiles, 9, 4, None)];
    let changes = rules.creation(ON, &live, 19, 6).unwrap();
    assert_eq!(changes[1], Change::DestroyGpuInstance(at(&profiles, 9, 4)));
    // Of +me there is one, wherever it is.
    let live = [slot(&profiles, 20, 3, None), slot(&profiles, 19, 4, None)];
    let changes = rules.creation(ON, &live, 20, 0).unwrap();
    assert_eq!((&changes[1], changes.len()), (&Change::DestroyGpuInstance(at(&profiles, 20, 3)), 4));
    let used = [slot(&profiles, 20, 3, Some("b"))];
    let refused = rules.creation(ON, &used, 20, 0).unwrap_err();
    assert_eq!(refused.to_string(), "1 of 1g.10gb+me are in use, and the card holds 1 at most");

    let profiles = rtx_pro_6000();
    let rules = Rules::new(&profiles);
    let all = slot(&profiles, 65, 9, Some("b"));
    let refused = rules.creation(ON, std::slice::from_ref(&all), 14, 0).unwrap_err();
    assert_eq!(refused, Refusal::Media { name: "1g.24gb".into(), used_by: "b".into() });
    assert_eq!(rules.creation(ON, &[all], 67, 0).unwrap().len(), 2);
}

#[test]
fn the_fifth_is_refused_with_the_count() {
    let profiles = rtx_pro_6000();
    let rules = Rules::new(&profiles);
    let live: Vec<Slot> = [0, 3, 6, 9].map(|start| slot(&profiles, 14, start, Some("lab/one"))).into();
    assert_eq!(rules.creation(ON, &live, 14, 0), Ok(vec![]), "it is there already");
    let refused = rules.creation(ON, &live, 65, 0).unwrap_err();
    assert_eq!(
        refused,
        Refusal::InTheWay {
            name: "1g.24gb+me.all".into(),
            start: 0,
            other: "1g.24gb".into(),
            other_start: 0,
            used_by: "lab/one".into(),
        }
    );
    let used: Vec<Place> = live.iter().map(|slot| slot.instance.at).collect();
    let refused = rules.arrange(&used, &[14]).unwrap_err();
    assert_eq!(refused.to_string(), "4 of 1g.24gb are in use, and the card holds 4 at most");
    assert_eq!(rules.arrange(&[], &[14; 4]).unwrap().len(), 4);
    assert_eq!(
        rules.arrange(&[], &[14; 5]).unwrap_err().to_string(),
        "1g.24gb, 1g.24gb, 1g.24gb, 1g.24gb, 1g.24gb do not fit on the card beside what is in use"
    );
    assert_eq!(
        rules.creation(ON, &[], 99, 0).unwrap_err().to_string(),
        "the card has no MIG profile 99; it has 14 (1g.24gb), 65 (1g.24gb+me.all), 67 (1g.24gb-me), 5 (2g.48gb), 0 (4g.96gb)"
    );
}

#[test]
fn three_two_one_and_one_fit_only_with_the_three_at_four() {
    let profiles = h100();
    let rules = Rules::new(&profiles);
    for order in [[9, 14, 19, 19], [19, 19, 14, 9], [14, 19, 9, 19]] {
        let places = rules.arrange(&[], &order).unwrap();
        let three = places.iter().find(|place| place.profile == 9).unwrap();
        assert_eq!(three.start, 4);
        assert_eq!(places.iter().map(|place| place.profile).collect::<Vec<_>>(), order);
    }
    // A place that only the second can have is not kept by the first.
    let (first, second) =
        (profile(1, "a", (1, 2, 1), &[0, 2], [0; 4]), profile(2, "b", (1, 2, 1), &[2], [0; 4]));
    let two = [first, second, profile(0, "whole", (2, 4, 1), &[0], [0; 4])];
    let places = Rules::new(&two).arrange(&[], &[1, 2]).unwrap();
    assert_eq!((places[0].start, places[1].start), (0, 2));
    let in_the_way = at(&profiles, 19, 5);
    assert!(rules.arrange(&[in_the_way], &[9, 14, 19]).is_err());
}
