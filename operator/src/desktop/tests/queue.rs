//! The order in which those who wait are given what comes free.

use serde_json::{Value, json};

use super::rig::*;
use crate::{
    desktop::{dereference::dereference, now, validate::validate},
    placement::snapshot::key_of,
    world::Decision,
};
use gpudesk_crds::Desktop;

/// What the operator decides of a desktop now.
fn decide(rig: &Rig, desktop: &Desktop) -> Decision {
    let world = &rig.context.world;
    let wanted = validate(desktop, &dereference(world, desktop)).unwrap();
    world.wants(&key_of(desktop), Some(&wanted), None);
    world.decide(desktop, &wanted, None, &now())
}

fn is_new(decision: &Decision) -> bool {
    matches!(decision, Decision::Assumed { fresh: true, .. })
}

/// A desktop that the watch shows.
fn seen(rig: &mut Rig, name: &str, more: Value) -> Desktop {
    let object = desktop(name, 5, more);
    rig.desktop(&object);
    object
}

fn waits_since(second: u32) -> Value {
    json!({"status": {"waitingSince": format!("2026-01-01T00:00:{second:02}Z")}})
}

fn sized(mib: i32, more: Value) -> Value {
    let mut object = json!({"spec": {"overrides": {"memory": {"sizeMiB": mib}}}});
    merge(&mut object, more);
    object
}

#[tokio::test]
async fn a_place_that_comes_free_goes_to_the_first_and_is_offered_once() {
    let mut rig = Rig::small();
    let holder = seen(&mut rig, "holder", json!({}));
    assert!(is_new(&decide(&rig, &holder)));
    let young = seen(&mut rig, "young", waits_since(30));
    let old = seen(&mut rig, "old", waits_since(10));
    let urgent = seen(&mut rig, "urgent", json!({"spec": {"priority": 5}}));
    for desktop in [&young, &old, &urgent] {
        assert!(matches!(decide(&rig, desktop), Decision::NoRoom(_)));
    }
    for first in [&urgent, &old, &young] {
        rig.drain_woken();
        rig.context.world.forget(&key_of(&holder));
        if first.metadata.name != urgent.metadata.name {
            let before = if first.metadata.name == old.metadata.name { &urgent } else { &old };
            rig.context.world.forget(&key_of(before));
        }
        // Somebody who comes at this moment stands behind those who wait.
        let newcomer = seen(&mut rig, "newcomer", json!({}));
        assert!(matches!(decide(&rig, &newcomer), Decision::NoRoom(_)));
        assert_eq!(rig.drain_woken(), ["newcomer".to_owned(), first.metadata.name.clone().unwrap()]);
        assert!(is_new(&decide(&rig, first)), "its own round writes it, as the first");
        assert!(matches!(decide(&rig, first), Decision::Assumed { fresh: false, .. }));
    }
}

#[tokio::test]
async fn a_place_stays_given_while_its_desktop_says_why_it_waited_and_not_once_it_is_switched_off() {
    let mut rig = Rig::small();
    let holder = seen(&mut rig, "holder", json!({}));
    assert!(is_new(&decide(&rig, &holder)));
    let waiter = seen(&mut rig, "waiter", waits_since(1));
    let other = seen(&mut rig, "other", waits_since(59));
    assert!(matches!(decide(&rig, &waiter), Decision::NoRoom(_)));
    rig.context.world.forget(&key_of(&holder));
    assert!(matches!(decide(&rig, &other), Decision::NoRoom(_)), "the turn was the waiter's");
    // Its status, which it was just writing, makes another version of it.
    let mut said = desktop("waiter", 6, waits_since(1));
    rig.desktop(&said);
    assert!(matches!(decide(&rig, &other), Decision::NoRoom(_)));
    // It is switched off before its round came: the next has the place.
    said.metadata.generation = Some(4);
    said.metadata.resource_version = Some("7".into());
    said.spec.power_state = gpudesk_crds::desktop::PowerState::Stopped;
    rig.desktop(&said);
    assert!(is_new(&decide(&rig, &other)));
}

#[tokio::test]
async fn many_who_fit_nowhere_hold_up_nobody_whatever_comes_free() {
    let mut rig = Rig::small();
    rig.template(&template(json!({"allowOverrides": ["Memory"]})));
    for number in 0..50 {
        let more = sized(1_000_000, json!({"spec": {"priority": 100}}));
        let large = seen(&mut rig, &format!("large-{number}"), more);
        assert!(matches!(decide(&rig, &large), Decision::NoRoom(_)));
    }
    let holder = seen(&mut rig, "holder", json!({}));
    for _ in 0..20 {
        assert!(is_new(&decide(&rig, &holder)), "in one round");
        rig.context.world.forget(&key_of(&holder));
    }
}

#[tokio::test]
async fn what_one_needs_who_waited_long_is_kept_for_it() {
    let mut rig = Rig::new();
    rig.keep_room_after(std::time::Duration::from_mins(10));
    rig.template(&template(json!({"allowOverrides": ["Memory"]})));
    rig.node(&node("node-a", 1024 + 2048));
    let (one, two) = (seen(&mut rig, "one", json!({})), seen(&mut rig, "two", json!({})));
    assert!(is_new(&decide(&rig, &one)) && is_new(&decide(&rig, &two)));
    let large = seen(&mut rig, "large", sized(2048, waits_since(1)));
    let beyond = seen(&mut rig, "beyond", sized(9_000_000, waits_since(0)));
    assert!(matches!(decide(&rig, &large), Decision::NoRoom(_)));
    assert!(matches!(decide(&rig, &beyond), Decision::NoRoom(_)));
    rig.context.world.think_once();
    let Decision::NoRoom(why) = decide(&rig, &large) else { panic!("there is no room") };
    assert!(
        why.message.ends_with("room is kept for it on node-a, where 2 desktops have to end first"),
        "{}",
        why.message
    );
    // One ends: a small one would fit, and does not get it.
    rig.context.world.forget(&key_of(&one));
    let small = seen(&mut rig, "small", json!({}));
    assert!(matches!(decide(&rig, &small), Decision::NoRoom(_)));
    // One of those that hold a place asks for it anew: it has it already.
    rig.context.world.forget(&key_of(&two));
    assert!(is_new(&decide(&rig, &large)));
    rig.context.world.forget(&key_of(&large));
    assert!(is_new(&decide(&rig, &small)), "nothing is kept any more");
}

#[tokio::test]
async fn one_whom_a_neighbour_keeps_away_takes_no_hope_from_others() {
    let mut rig = Rig::new();
    rig.template(&template(json!({})));
    let mut wary = template(json!({"affinity": [
        {"name": "exam", "relation": "Apart", "matchLabels": {"exam": "a"}, "required": true},
    ]}));
    wary.metadata.name = Some("wary".into());
    rig.template(&wary);
    rig.node(&node("node-a", 1024 + 2048));
    let neighbour = seen(&mut rig, "neighbour", json!({"spec": {"templateRef": {"name": "wary"}}}));
    let holder = seen(&mut rig, "holder", json!({}));
    assert!(is_new(&decide(&rig, &neighbour)) && is_new(&decide(&rig, &holder)));
    let mut barred = waits_since(1);
    merge(&mut barred, json!({"metadata": {"labels": {"exam": "a"}}}));
    let barred = seen(&mut rig, "barred", barred);
    let next = seen(&mut rig, "next", waits_since(2));
    for desktop in [&barred, &next] {
        assert!(matches!(decide(&rig, desktop), Decision::NoRoom(_)));
    }
    rig.context.world.forget(&key_of(&holder));
    let late = seen(&mut rig, "late", waits_since(3));
    assert!(matches!(decide(&rig, &late), Decision::NoRoom(_)), "it is not its turn");
    assert!(is_new(&decide(&rig, &next)));
}

#[tokio::test]
async fn who_was_given_a_place_by_another_writer_has_no_turn() {
    let mut rig = Rig::small();
    let holder = seen(&mut rig, "holder", json!({}));
    assert!(is_new(&decide(&rig, &holder)));
    let waiter = seen(&mut rig, "waiter", waits_since(1));
    assert!(matches!(decide(&rig, &waiter), Decision::NoRoom(_)));
    let given = desktop(
        "waiter",
        6,
        json!({"status": {"allocation": {
            "node": "node-a", "id": "1-00000001", "desktopGeneration": 3, "templateGeneration": 7,
            "decidedAt": "2026-01-01T00:00:00Z",
            "compute": {"cores": 2, "threadsPerCore": 1, "memoryMiB": 1024},
        }}}),
    );
    assert!(given.allocation().unwrap().compute.is_some());
    rig.desktop(&given);
    rig.drain_woken();
    rig.context.world.forget(&key_of(&holder));
    let other = seen(&mut rig, "other", waits_since(2));
    assert!(matches!(decide(&rig, &other), Decision::NoRoom(_)), "the place is the waiter's");
    assert_eq!(rig.drain_woken(), ["other"], "the waiter has what its status says, and no turn");
}
