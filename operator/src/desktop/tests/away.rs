//! Nodes that are away, what people say of them, and machines that are where no status says.

use std::sync::Arc;

use gpudesk_crds::{Allocation, Desktop, conditions::Reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::rig::*;
use crate::{
    allocation_key::AllocationKey,
    desktop::{
        away,
        decide::{Around, Found, Presence, Step, decide},
        reconcile,
    },
    understood::{self, as_far_as_understood},
};

const ID: &str = "2-00000002";

/// What a desktop is, for the table.
#[derive(Clone, Copy, Debug)]
enum Has {
    /// A place, of which its node has said this.
    Held(&'static str),
    /// Only disks.
    Parked,
}

fn object(has: Has, deleted: bool, abandons: Option<&str>) -> Desktop {
    let mut all = json!({"status": {"allocation": {
        "node": "node-a", "id": ID, "desktopGeneration": 3, "templateGeneration": 7, "decidedAt": "2026-01-01T00:00:00Z",
    }}});
    if let Has::Held(state) = has {
        all["status"]["allocation"]["compute"] = json!({"cores": 2, "threadsPerCore": 1, "memoryMiB": 1024});
        all["status"]["node"] = json!({"allocationId": ID, "state": state});
    }
    if deleted {
        all["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    if let Some(id) = abandons {
        all["metadata"]["annotations"] = json!({"gpudesk.dev/abandon-disks": id});
    }
    desktop("a", 5, all)
}

#[test]
fn what_is_on_a_node_that_is_away_is_given_up_by_the_right_word_and_by_nothing_else() {
    let away = [Presence::Silent, Presence::Lost];
    for node in [Presence::Present, Presence::Silent, Presence::Missing, Presence::Lost] {
        for (off, alive, disks, deleted) in bools4() {
            for abandons in [None, Some("1-00000001"), Some("2-00000003"), Some("2"), Some(ID)] {
                for has in [Has::Held("Running"), Has::Held("Preparing"), Has::Held("Stopped"), Has::Parked] {
                    let around = Around { node, alive, off, ..Around::present(Some(disks)) };
                    let said = format!("{has:?} {abandons:?} deleted {deleted} {around:?}");
                    let step = decide(&object(has, deleted, abandons), &around);
                    let settled = !matches!(has, Has::Held("Running" | "Preparing"));
                    let word = abandons == Some(ID) || off && (deleted || !disks);
                    let given_up = away.contains(&node) && !alive && word;
                    let lost = node == Presence::Lost;
                    let expected = match (has, deleted) {
                        (_, true) if given_up || lost && settled => Step::RemoveFinalizer,
                        (_, true) if lost => Step::NodeLost,
                        (_, true) => Step::Wait,
                        (_, false) if given_up => Step::Release { park: false, reason: Reason::NodeLost },
                        (_, false) if !settled && lost => Step::NodeLost,
                        (_, false) if !settled => Step::Hold,
                        (_, false) if disks && lost => Step::NodeLost,
                        (_, false) => Step::Place { home: disks.then(|| "node-a".to_owned()) },
                    };
                    assert_eq!(step, expected, "{said}");
                }
            }
        }
    }
}

fn bools4() -> impl Iterator<Item = (bool, bool, bool, bool)> {
    (0..16).map(|bits| (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0, bits & 8 > 0))
}

#[test]
fn a_word_that_a_node_has_used_gives_up_nothing_later() {
    let away = Around { node: Presence::Silent, alive: false, ..Around::present(Some(true)) };
    let with = |word: &str| {
        let mut object = object(Has::Held("Running"), false, Some(word));
        object.status.as_mut().unwrap().node.as_mut().unwrap().abandoned_disks = Some(ID.into());
        decide(&object, &away)
    };
    assert_eq!(with(ID), Step::Hold);
    assert_eq!(with(&format!("{ID}/2")), Step::Release { park: false, reason: Reason::NodeLost });
}

#[test]
fn a_decision_without_an_id_is_given_up_by_its_time() {
    let with = |word: &str| {
        let mut object = object(Has::Held("Running"), false, Some(word));
        let status = object.status.as_mut().unwrap();
        status.allocation.as_mut().unwrap().id = None;
        status.node = None;
        decide(&object, &Around { node: Presence::Lost, alive: false, ..Around::present(Some(true)) })
    };
    assert_eq!(with("2026-01-01T00:00:00Z"), Step::Release { park: false, reason: Reason::NodeLost });
    for other in ["2026-01-01T00:00:01Z", "unnamed", "", "node-a"] {
        assert_eq!(with(other), Step::NodeLost, "{other}");
    }
}

fn found(node: &str, id: &str) -> Found {
    let allocation = json!({"node": node, "id": id, "desktopGeneration": 1, "templateGeneration": 1,
                            "decidedAt": "2026-01-01T00:00:00Z"});
    Found { node: node.into(), allocation: Arc::new(serde_json::from_value(allocation).unwrap()) }
}

#[test]
fn a_later_decision_that_runs_is_given_back_and_nothing_is_started_beside_it() {
    let on = |object: &Desktop, runs: &[Found]| {
        decide(object, &Around { found: runs.to_vec(), ..Around::present(Some(true)) })
    };
    let back = |node: &str| Step::GiveBack { node: node.into() };
    let never = desktop("a", 5, json!({}));
    let stopped = desktop("a", 5, json!({"spec": {"powerState": "Stopped"}}));
    let deleted = desktop("a", 5, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    let parked = object(Has::Parked, false, None);
    let held = object(Has::Held("Running"), false, None);
    let had = desktop("a", 5, json!({"status": {"lastPlacement": {"node": "node-a", "allocationId": ID}}}));
    let later = [found("node-b", "3-00000009")];
    for object in [&never, &deleted, &parked, &held, &had] {
        assert_eq!(on(object, &later), back("node-b"));
    }
    assert_eq!(on(&stopped, &later), Step::Elsewhere, "who asks for the stop may be a copy from before it");
    // The decision that it had was taken back, and one before it too.
    for over in [ID, "1-00000009"] {
        assert_eq!(on(&had, &[found("node-b", over)]), Step::Place { home: None });
    }
    // Of the same number, it is not known which came later; of two, which is right.
    assert_eq!(on(&parked, &[found("node-b", "2-00000009")]), Step::Elsewhere);
    let two = [later[0].clone(), found("node-c", "4-00000009")];
    for object in [&never, &deleted, &parked, &had] {
        assert_eq!(on(object, &two), Step::Elsewhere);
    }
    assert_eq!(on(&held, &two), Step::Hold, "it goes on as it is");
}

#[test]
fn a_desktop_whose_status_lost_its_decision_waits_for_its_node_or_its_users_word() {
    let lost = |annotation: &str| {
        desktop(
            "a",
            5,
            json!({
                "metadata": {"annotations": {"gpudesk.dev/abandon-disks": annotation}},
                "status": {"node": {"allocationId": ID, "state": "Running"}},
            }),
        )
    };
    let there = Around::present(Some(true));
    let forgotten = Step::Forgotten(ID.parse().unwrap());
    assert_eq!(decide(&lost(""), &there), forgotten);
    assert_eq!(decide(&lost("1-00000002"), &there), forgotten);
    assert_eq!(decide(&lost(ID), &there), Step::Place { home: None });
    assert_eq!(lost(ID).next_number(), 3, "never a number twice");
    // What the operator took back itself it does not look for.
    let back = json!({"status": {"lastPlacement": {"node": "node-a", "allocationId": ID}}});
    let mut taken = serde_json::to_value(lost("")).unwrap();
    merge(&mut taken, back);
    assert_eq!(decide(&serde_json::from_value(taken).unwrap(), &there), Step::Place { home: None });
    // All of the status is gone, but we remember.
    let remembered = Around { remembered: Some(ID.parse().unwrap()), ..there };
    assert_eq!(decide(&desktop("a", 5, json!({})), &remembered), forgotten);
    assert_eq!(
        decide(&object(Has::Parked, false, None), &remembered),
        Step::Place { home: Some("node-a".into()) }
    );
}

/// What may happen around one desktop.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Node(Presence),
    Alive(bool),
    Off(bool),
    Annotate(bool),
    Switch(bool),
}

fn happens() -> impl Strategy<Value = Happens> {
    let node =
        prop::sample::select(vec![Presence::Present, Presence::Silent, Presence::Missing, Presence::Lost]);
    prop_oneof![
        node.prop_map(Happens::Node),
        any::<bool>().prop_map(Happens::Alive),
        any::<bool>().prop_map(Happens::Off),
        any::<bool>().prop_map(Happens::Annotate),
        any::<bool>().prop_map(Happens::Switch),
    ]
}

proptest! {
    /// Its node never speaks: what it has there is taken back by a word that is there at that moment, while nothing is
    /// heard of the node, and never by time or order.
    #[test]
    fn nothing_gives_a_place_twice_without_a_word(events in prop::collection::vec(happens(), 1..24), disks: bool) {
        let mut object = object(Has::Held("Running"), false, None);
        let mut around = Around::present(Some(disks));
        let mut annotated = false;
        for event in events {
            match event {
                Happens::Node(node) => around.node = node,
                Happens::Alive(alive) => around.alive = alive,
                Happens::Off(off) => around.off = off,
                Happens::Annotate(on) => {
                    annotated = on;
                    let word = [("gpudesk.dev/abandon-disks".to_owned(), ID.to_owned())];
                    object.metadata.annotations = on.then(|| word.into());
                }
                Happens::Switch(on) => {
                    let state = if on { "Running" } else { "Stopped" };
                    object.spec.power_state = serde_json::from_value(json!(state)).unwrap();
                }
            }
            let step = decide(&object, &around);
            let away = matches!(around.node, Presence::Silent | Presence::Lost) && !around.alive;
            let word = annotated || around.off && !disks;
            let takes = !matches!(step, Step::Hold | Step::NodeLost);
            prop_assert_eq!(takes, away && word, "{:?} {:?}", step, around);
        }
    }
}

/// The next write of a round, after these answers; and the desktop after it.
async fn write(rig: &mut Rig, object: &Desktop, version: u64, answers: &[Answer]) -> (Value, Desktop) {
    rig.desktop(object);
    let context = rig.beside();
    let (result, body) = tokio::join!(reconcile(object, &context), async {
        for answer in answers {
            rig.answer(answer).await;
        }
        rig.answer(accept).await.2
    });
    result.unwrap();
    let after = after(object, version, &body);
    rig.desktop(&after);
    (body, after)
}

type Answer = fn(&Value) -> (u16, Value);

async fn nothing(rig: &Rig, object: &Desktop) {
    let round = reconcile(object, &rig.context);
    tokio::time::timeout(std::time::Duration::from_secs(2), round).await.expect("it asked").unwrap();
}

/// As the API server: what the node owns is still there after the operator's write.
fn annotated(object: &Desktop, version: u64, value: &str) -> Desktop {
    let mut object = object.clone();
    object.metadata.resource_version = Some(version.to_string());
    object.metadata.annotations = Some([("gpudesk.dev/abandon-disks".to_owned(), value.to_owned())].into());
    object
}

#[tokio::test]
async fn a_lost_node_says_what_can_be_done_and_its_disks_are_given_up_by_the_right_id_only() {
    let mut rig = Rig::small();
    let (body, object) = write(&mut rig, &desktop("a", 5, json!({})), 6, &[]).await;
    let id = body["status"]["allocation"]["id"].as_str().unwrap().to_owned();
    rig.node_lost(&node("node-a", 2048));
    rig.lease_over("node-a");
    rig.node(&node("node-b", 2048));
    let (body, object) = write(&mut rig, &object, 7, &[gone]).await;
    let message = conditions(&body)["Ready"].2.clone();
    assert!(message.contains(&format!("gpudesk.dev/abandon-disks={id}")), "{message}");
    // Somebody says that it is off: its disks are still there.
    rig.context.world.answered("node-a", true);
    let object = annotated(&object, 8, "1-00000000");
    let (body, object) = write(&mut rig, &object, 9, &[gone]).await;
    let message = conditions(&body)["Ready"].2.clone();
    assert!(message.contains("\"1-00000000\", which is not the decision that holds"), "{message}");
    assert!(body["status"]["allocation"]["compute"].is_object());
    let object = annotated(&object, 10, &id);
    let (body, object) = write(&mut rig, &object, 11, &[gone, none]).await;
    assert!(body["status"].get("allocation").is_none(), "{body}");
    let (body, _) = write(&mut rig, &object, 12, &[]).await;
    assert_eq!(body["status"]["allocation"]["node"], "node-b");
    assert!(body["status"]["allocation"]["id"].as_str().unwrap().starts_with("2-"), "{body}");
}

#[tokio::test]
async fn a_desktop_without_disks_goes_on_once_its_node_is_said_to_be_off_and_not_while_its_daemon_lives() {
    let mut rig = Rig::new();
    rig.template(&template(bare()));
    rig.node(&node("node-a", 2048));
    let (_, object) = write(&mut rig, &desktop("a", 5, json!({})), 6, &[]).await;
    rig.node_lost(&node("node-a", 2048));
    rig.node(&node("node-b", 2048));
    let (body, object) = write(&mut rig, &object, 7, &[gone]).await;
    assert!(conditions(&body)["Ready"].2.contains("still renews its lease"), "{body}");
    rig.drain_woken();
    rig.lease_gone("node-a");
    rig.context.world.answered("node-a", true);
    let context = rig.beside();
    // It was heard a moment ago, whoever deletes its lease: nothing is written.
    let (result, ()) = tokio::join!(reconcile(&object, &context), async {
        rig.answer(gone).await;
    });
    result.unwrap();
    rig.context.world.answered("node-a", false);
    rig.drain_woken();
    rig.lease_over("node-a");
    rig.context.world.answered("node-a", false);
    assert_eq!(rig.drain_woken(), ["a"], "that it is heard no more is news");
    rig.context.world.answered("node-a", true);
    assert_eq!(rig.drain_woken(), ["a"], "and so is the taint");
    // A lease that was renewed after all keeps it where it is.
    let renewed: Answer = |_| {
        (
            200,
            json!({"metadata": {"name": "gpudesk-node-node-a"}, "spec": {"renewTime": "2027-01-01T00:00:00.000000Z"}}),
        )
    };
    let context = rig.beside();
    let (result, ()) = tokio::join!(reconcile(&object, &context), async {
        rig.answer(gone).await;
        rig.answer(renewed).await;
    });
    result.unwrap();
    // And one that our own watch has shown meanwhile.
    let (result, ()) = tokio::join!(reconcile(&object, &context), async {
        rig.answer(gone).await;
        rig.lease("node-a", 1_798_761_600, 180);
        rig.answer(renewed).await;
    });
    result.unwrap();
    rig.lease_over("node-a");
    rig.context.world.answered("node-a", true);
    let (body, object) = write(&mut rig, &object, 9, &[gone, none]).await;
    assert!(body["status"].get("allocation").is_none(), "{body}");
    let (body, _) = write(&mut rig, &object, 10, &[]).await;
    assert_eq!(body["status"]["allocation"]["node"], "node-b");
}

#[tokio::test]
async fn the_word_of_a_gpunode_counts_while_its_daemon_is_silent_and_not_before() {
    let mut rig = Rig::new();
    rig.template(&template(bare()));
    rig.node(&node("node-a", 2048));
    let (_, object) = write(&mut rig, &desktop("a", 5, json!({})), 6, &[]).await;
    rig.node(&node("node-b", 2048));
    let mut off = node("node-a", 2048);
    off.spec.out_of_service = true;
    rig.drain_woken();
    rig.node(&off);
    assert_eq!(rig.drain_woken(), ["a"]);
    nothing(&rig, &object).await;
    rig.lease("node-a", 100, -1);
    rig.context.world.tick();
    let (body, _) = write(&mut rig, &object, 7, &[|_: &Value| (200, json!({"metadata": {"name": "gpudesk-node-node-a"}, "spec": {"renewTime": "1970-01-01T00:01:40.000000Z"}}))]).await;
    assert!(body["status"].get("allocation").is_none(), "{body}");
}

/// A template that leaves nothing on the node.
fn bare() -> Value {
    json!({"disks": [{"name": "system", "hostFile": {"path": "/srv/a"}}]})
}

/// The node as it reports a machine of a desktop.
fn reporting(name: &str, of: &Desktop, standing: &str, allocation: &Allocation) -> gpudesk_crds::GpuNode {
    let mut object = serde_json::to_value(node(name, 2048)).unwrap();
    object["status"]["strays"] = json!([{
        "uid": of.metadata.uid, "namespace": "demo", "name": of.metadata.name, "standing": standing,
        "allocation": allocation, "since": "2026-01-01T00:00:00Z",
    }]);
    serde_json::from_value(object).unwrap()
}

/// A decision for a desktop, as an operator with this key made it.
fn decided(key: &[u8], of: &Desktop, number: u64, on: &str) -> Allocation {
    let at = Time("2026-01-01T00:00:00Z".parse().unwrap());
    let mut before = of.clone();
    let last = json!({"lastPlacement": {"node": "x", "allocationId": format!("{}-00000001", number - 1)}});
    before.status = (number > 1).then(|| serde_json::from_value(last).unwrap());
    let mut allocation: Allocation = serde_json::from_value(json!({
        "node": on, "desktopGeneration": 3, "templateGeneration": 7, "decidedAt": at,
        "compute": {"cores": 2, "threadsPerCore": 1, "memoryMiB": 1024},
    }))
    .unwrap();
    allocation.id = Some(AllocationKey::new(key).mint(&before, None, on, &at));
    allocation
}

#[tokio::test]
async fn a_desktop_gets_back_what_its_node_reports_and_what_nobody_decided_holds_no_one() {
    let mut rig = Rig::small();
    let lost = desktop("a", 5, json!({}));
    rig.desktop(&lost);
    let runs = decided(KEY, &lost, 4, "node-b");
    rig.drain_woken();
    rig.node(&reporting("node-b", &lost, "Unallocated", &runs));
    assert_eq!(rig.drain_woken(), ["a"]);
    let (body, object) = write(&mut rig, &lost, 6, &[]).await;
    assert_eq!(body["status"]["allocation"], serde_json::to_value(&runs).unwrap());
    assert_eq!(body["metadata"]["resourceVersion"], "5");
    assert_eq!(conditions(&body)["Allocated"].0, "True");
    nothing(&rig, &object).await;

    // By another key, for another desktop, on another node, older, or without a machine: it is placed as any other.
    let other = desktop("b", 5, json!({}));
    let parked = Allocation { compute: None, ..decided(KEY, &other, 4, "node-b") };
    for (stray, standing) in [
        (decided(&[1; 32], &other, 4, "node-b"), "Newer"),
        (decided(KEY, &lost, 4, "node-b"), "Newer"),
        (decided(KEY, &other, 4, "node-c"), "Newer"),
        (decided(KEY, &other, 4, "node-b"), "Older"),
        (parked, "Unallocated"),
    ] {
        let mut rig = Rig::small();
        rig.desktop(&other);
        rig.node(&reporting("node-b", &other, standing, &stray));
        let (body, _) = write(&mut rig, &other, 6, &[]).await;
        assert_eq!(body["status"]["allocation"]["node"], "node-a", "{stray:?}");
        let counted = rig.context.world.metrics.text();
        let expected = format!("unproven_strays_total {}", u32::from(standing != "Older"));
        assert!(counted.contains(&expected), "{counted}");
    }
}

#[tokio::test]
async fn of_two_nodes_none_is_given_back_until_one_is_left() {
    let mut rig = Rig::small();
    let lost = desktop("a", 5, json!({}));
    rig.desktop(&lost);
    for name in ["node-b", "node-c"] {
        rig.node(&reporting(name, &lost, "Unallocated", &decided(KEY, &lost, 4, name)));
    }
    let (body, object) = write(&mut rig, &lost, 6, &[]).await;
    let message = conditions(&body)["Allocated"].2.clone();
    assert!(message.contains("node-b") && message.contains("node-c"), "{message}");
    assert!(body["status"].get("allocation").is_none());
    rig.drain_woken();
    rig.node(&node("node-b", 2048));
    assert_eq!(rig.drain_woken(), ["a"]);
    let (body, _) = write(&mut rig, &object, 7, &[]).await;
    assert_eq!(body["status"]["allocation"]["node"], "node-c");
}

#[tokio::test]
async fn what_a_desktop_held_stays_taken_when_its_status_is_wiped_and_is_given_back() {
    for wiped in [json!({}), json!({"status": {"node": {"allocationId": "1-00000000", "state": "Stopped"}}})]
    {
        let mut rig = Rig::small();
        // An older copy of the object asks for another restart: its machine is not to end for that.
        let restarted = |at: &str| json!({"metadata": {"annotations": {"gpudesk.dev/restartedAt": at}}});
        let mut wiped = wiped;
        merge(&mut wiped, restarted("3"));
        let (body, object) = write(&mut rig, &desktop("a", 5, restarted("5")), 6, &[]).await;
        let held: Allocation = serde_json::from_value(body["status"]["allocation"].clone()).unwrap();
        let (body, bare) = write(&mut rig, &desktop("a", 7, wiped), 8, &[]).await;
        assert!(conditions(&body)["Allocated"].2.contains(&held.decision()), "{body}");
        let (body, _) = write(&mut rig, &desktop("b", 9, json!({})), 10, &[]).await;
        assert_eq!(conditions(&body)["Ready"].2, "0/1 nodes: 1 not enough memory");
        rig.node(&reporting("node-a", &object, "Unallocated", &held));
        let (body, back) = write(&mut rig, &bare, 11, &[]).await;
        assert_eq!(body["status"]["allocation"]["id"], json!(held.id));
        rig.node(&node("node-a", 2048));
        nothing(&rig, &back).await;
    }
}

#[tokio::test]
async fn what_was_given_up_once_is_not_missed_again() {
    let mut rig = Rig::small();
    let (body, object) = write(&mut rig, &desktop("a", 5, json!({})), 6, &[]).await;
    let first = body["status"]["allocation"]["id"].as_str().unwrap().to_owned();
    // It is started again, and then its status is wiped.
    let mut next = serde_json::to_value(&object).unwrap();
    next["metadata"]["resourceVersion"] = json!("7");
    next["status"]["node"] = json!({"allocationId": first, "state": "Stopped"});
    let (body, _) = write(&mut rig, &serde_json::from_value(next).unwrap(), 8, &[]).await;
    let second = body["status"]["allocation"]["id"].as_str().unwrap().to_owned();
    assert!(second.starts_with("2-"), "{second}");
    let (body, bare) = write(&mut rig, &desktop("a", 9, json!({})), 10, &[]).await;
    assert!(conditions(&body)["Allocated"].2.contains(&format!("abandon-disks={second}")), "{body}");
    let (body, _) = write(&mut rig, &annotated(&bare, 11, &second), 12, &[]).await;
    let third = body["status"]["allocation"]["id"].as_str().unwrap().to_owned();
    assert!(third.starts_with("3-"), "{third}");
    // The annotation goes, and it ends and starts as ever.
    let mut over = after(&desktop("a", 13, json!({})), 13, &body);
    over.status.as_mut().unwrap().node =
        Some(serde_json::from_value(json!({"allocationId": third, "state": "Stopped"})).unwrap());
    let (body, _) = write(&mut rig, &over, 14, &[]).await;
    assert!(body["status"]["allocation"]["id"].as_str().unwrap().starts_with("4-"), "{body}");
}

#[tokio::test]
async fn an_odd_desktop_that_is_deleted_goes_once_there_is_nothing_to_give_back() {
    let allocation = json!({"node": "node-a", "id": ID, "desktopGeneration": "many"});
    for (status, goes) in [
        (json!({"allocation": allocation, "node": {"allocationId": ID, "state": "Released"}}), true),
        (
            json!({"allocation": allocation, "node": {"allocationId": "1-00000001", "state": "Released"}}),
            false,
        ),
        (json!({"allocation": allocation, "node": {"allocationId": ID, "state": "Stopped"}}), false),
        (json!({"conditions": "fine"}), true),
        (json!({"node": "fine"}), false),
        (json!("fine"), false),
    ] {
        let value = json!({
            "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop",
            "metadata": {"name": "a", "namespace": "demo", "resourceVersion": "5", "uid": "uid-of-a",
                         "finalizers": ["gpudesk.dev/release"], "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"templateRef": {"name": "template"}}, "status": status,
        });
        assert!(serde_json::from_value::<Desktop>(value.clone()).is_err());
        let object: Desktop = as_far_as_understood(value, "Desktop").unwrap();
        assert!(understood::odd(&object).is_some());
        let mut rig = Rig::small();
        rig.desktop(&object);
        if goes {
            let context = rig.beside();
            let (result, (_, _, body)) = tokio::join!(reconcile(&object, &context), rig.answer(accept));
            result.unwrap();
            assert_eq!(body["metadata"]["finalizers"], json!([]), "{status}");
        } else {
            nothing(&rig, &object).await;
        }
    }
}

#[tokio::test]
async fn an_odd_desktop_whose_status_is_lost_is_held_by_what_is_remembered() {
    let mut rig = Rig::small();
    let (_, object) = write(&mut rig, &desktop("a", 5, json!({})), 6, &[]).await;
    let mut value = serde_json::to_value(&object).unwrap();
    value["spec"]["powerState"] = "Hibernated".into();
    value["status"] = json!({});
    value["metadata"]["resourceVersion"] = "7".into();
    value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let lost: Desktop = as_far_as_understood(value, "Desktop").unwrap();
    rig.desktop(&lost);
    nothing(&rig, &lost).await;
    let other = desktop("b", 8, json!({}));
    rig.desktop(&other);
    let (body, _) = write(&mut rig, &other, 9, &[]).await;
    assert_eq!(conditions(&body)["Ready"].2, "0/1 nodes: 1 not enough memory", "what it held stays taken");
}

#[test]
fn a_word_that_gives_up_nothing_is_answered_while_the_node_is_heard() {
    let allocation = decided(KEY, &desktop("a", 5, json!({})), 3, "node-a");
    let id = allocation.decision();
    for (word, said) in [
        (id.clone(), Some("has no effect while the daemon of node-a is heard")),
        ("all".into(), Some("names \"all\", which is not the decision that holds")),
        (String::new(), Some("names \"\", which is not")),
        ("9-00000001".into(), Some("names \"9-00000001\", which is not")),
        ("2-00000001".into(), None),
        (format!("{id}/2"), Some("has no effect")),
    ] {
        let object = annotated(&desktop("a", 5, json!({})), 6, &word);
        let answer = away::is_heard(&object, &allocation).map(|answer| answer.message);
        match said {
            Some(said) => {
                assert!(answer.as_ref().is_some_and(|answer| answer.contains(said)), "{word}: {answer:?}");
            }
            None => assert_eq!(answer, None, "{word}: it did what it could"),
        }
    }
    assert!(away::is_heard(&desktop("a", 5, json!({})), &allocation).is_none());
}
