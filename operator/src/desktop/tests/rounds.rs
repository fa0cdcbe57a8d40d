//! Whole rounds: which requests go out, and what their answers change.

use std::time::Duration;

use gpudesk_crds::Desktop;
use kube::runtime::controller::Action;
use serde_json::{Value, json};

use super::rig::*;
use crate::desktop::{Error, reconcile};
use crate::writer::WriteError;

/// A round in which no request may go out.
async fn silent(rig: &Rig, desktop: &Desktop) -> Result<Action, Error> {
    let round = reconcile(desktop, &rig.context);
    tokio::time::timeout(Duration::from_secs(2), round)
        .await
        .expect("the round waits for an answer: it wrote")
}

/// A round with one write, which is answered; returns the write.
async fn round(
    rig: &mut Rig,
    desktop: &Desktop,
    answer: impl FnOnce(&Value) -> (u16, Value),
) -> (Result<Action, Error>, (String, String, Value)) {
    let context = rig.beside();
    let (result, request) = tokio::join!(reconcile(desktop, &context), rig.answer(answer));
    (result, request)
}

#[tokio::test]
async fn the_finalizer_comes_first_and_keeps_those_of_others() {
    let mut rig = Rig::small();
    let object = desktop("a", 5, json!({"metadata": {"finalizers": ["example.com/other"]}}));
    rig.desktop(&object);
    let (result, (method, path, body)) = round(&mut rig, &object, accept).await;
    result.unwrap();
    assert_eq!(method, "PATCH");
    assert!(path.starts_with("/apis/gpudesk.dev/v1alpha1/namespaces/demo/desktops/a?"), "{path}");
    assert!(path.contains("fieldManager=gpudesk-operator"), "{path}");
    assert_eq!(body["metadata"]["finalizers"], json!(["example.com/other", "gpudesk.dev/release"]));
    assert_eq!(body["metadata"]["resourceVersion"], "5");
}

#[tokio::test]
async fn a_start_is_one_guarded_write_that_says_everything() {
    let mut rig = Rig::small();
    let object = desktop("a", 5, json!({"metadata": {"annotations": {"gpudesk.dev/restartedAt": "now"}}}));
    rig.desktop(&object);
    let (result, (method, path, body)) = round(&mut rig, &object, accept).await;
    result.unwrap();
    assert_eq!(method, "PATCH");
    assert!(path.starts_with("/apis/gpudesk.dev/v1alpha1/namespaces/demo/desktops/a/status?"), "{path}");
    assert!(path.contains("fieldManager=gpudesk-operator") && path.contains("force=true"), "{path}");
    assert_eq!(body["metadata"]["resourceVersion"], "5");
    assert_eq!(body["metadata"]["uid"], "uid-of-a");
    let allocation = &body["status"]["allocation"];
    assert_eq!(allocation["node"], "node-a");
    assert_eq!(allocation["compute"]["memoryMiB"], 1024);
    assert_eq!((&allocation["desktopGeneration"], &allocation["templateGeneration"]), (&json!(3), &json!(7)));
    assert_eq!(allocation["restartedAt"], "now");
    assert_eq!(body["status"]["phase"], "Starting");
    let said = conditions(&body);
    assert_eq!((said["Allocated"].0.as_str(), said["Ready"].1.as_str()), ("True", "Starting"));
    // Seen in the watch, nothing is left to say.
    let object = after(&object, 6, &body);
    rig.desktop(&object);
    silent(&rig, &object).await.unwrap();
}

#[tokio::test]
async fn after_a_conflict_the_place_stays_taken_until_the_watch_shows_who_won() {
    let mut rig = Rig::small();
    let (first, second) = (desktop("a", 5, json!({})), desktop("b", 6, json!({})));
    rig.desktop(&first);
    rig.desktop(&second);
    let (result, _) = round(&mut rig, &first, conflict).await;
    assert!(matches!(result, Err(Error::Allocation(WriteError::Conflict))));
    // There is room for one. The version that was in the way may be our own write, not yet seen.
    let (_, (_, _, body)) = round(&mut rig, &second, accept).await;
    assert_eq!(conditions(&body)["Ready"].1, "Unschedulable");
    // It was somebody else's: the room is free again, and is not taken twice.
    let first = desktop("a", 7, json!({}));
    rig.desktop(&first);
    let second = desktop("b", 8, json!({}));
    rig.desktop(&second);
    let (result, (_, _, body)) = round(&mut rig, &second, accept).await;
    result.unwrap();
    assert_eq!(body["status"]["allocation"]["node"], "node-a");
    let (result, (_, _, body)) = round(&mut rig, &first, accept).await;
    result.unwrap();
    assert_eq!(conditions(&body)["Ready"].1, "Unschedulable");
    assert_eq!(conditions(&body)["Ready"].2, "0/1 nodes: 1 not enough memory");
    assert!(body["status"].get("allocation").is_none());
}

#[tokio::test]
async fn a_round_between_the_write_and_its_sight_writes_nothing_and_frees_nothing() {
    let mut rig = Rig::small();
    let (first, second) = (desktop("a", 5, json!({})), desktop("b", 6, json!({})));
    rig.desktop(&first);
    rig.desktop(&second);
    let (result, _) = round(&mut rig, &first, accept).await;
    result.unwrap();
    // Something else wakes it, and the watch still shows what was read before.
    silent(&rig, &first).await.unwrap();
    let (_, (_, _, body)) = round(&mut rig, &second, accept).await;
    assert_eq!(conditions(&body)["Ready"].1, "Unschedulable", "the place is not given twice");
}

#[tokio::test]
async fn without_a_clear_answer_the_place_stays_taken_and_the_same_is_written_again() {
    let mut rig = Rig::small();
    let (first, second) = (desktop("a", 5, json!({})), desktop("b", 6, json!({})));
    rig.desktop(&first);
    rig.desktop(&second);
    let (result, (_, _, once)) = round(&mut rig, &first, |_| failure(504, "Timeout")).await;
    assert!(matches!(result, Err(Error::Allocation(WriteError::Unclear(_)))));
    let (_, (_, _, other)) = round(&mut rig, &second, accept).await;
    assert_eq!(conditions(&other)["Ready"].1, "Unschedulable", "it may have been written");
    let (_, (_, _, again)) = round(&mut rig, &first, |_| failure(504, "Timeout")).await;
    assert_eq!(once["status"]["allocation"], again["status"]["allocation"]);
    // The watch shows that another write came first: then the guarded one never happened.
    rig.desktop(&desktop("a", 8, json!({"spec": {"powerState": "Stopped"}})));
    let second = desktop("b", 9, json!({}));
    rig.desktop(&second);
    let (_, (_, _, other)) = round(&mut rig, &second, accept).await;
    assert_eq!(other["status"]["allocation"]["node"], "node-a");
}

#[tokio::test]
async fn where_the_term_is_refused_the_place_stays_taken_the_lease_is_asked_and_the_same_is_written_again() {
    let mut rig = Rig::small();
    let (first, second) = (desktop("a", 5, json!({})), desktop("b", 6, json!({})));
    rig.desktop(&first);
    rig.desktop(&second);
    let refusal = |_: &Value| {
        let (code, mut status) = failure(403, "Forbidden");
        status["message"] = "desktops.gpudesk.dev \"a\" is forbidden: ValidatingAdmissionPolicy 'operator-term.gpudesk.dev' \
                             with binding 'operator-term.gpudesk.dev' denied request: an operator of the term ...".into();
        (code, status)
    };
    let (result, (_, _, once)) = round(&mut rig, &first, refusal).await;
    assert!(matches!(result, Err(Error::Allocation(WriteError::Fenced(_)))), "{result:?}");
    assert_eq!(once["status"]["operatorTerm"], "lease:1");
    assert!(*rig.doubted.borrow(), "whoever keeps the lease hears of it");
    let (_, (_, _, other)) = round(&mut rig, &second, accept).await;
    assert_eq!(conditions(&other)["Ready"].1, "Unschedulable", "another leader may have given it");
    let (_, (_, _, again)) = round(&mut rig, &first, accept).await;
    assert_eq!(once["status"]["allocation"], again["status"]["allocation"]);
    assert!(!*rig.doubted.borrow(), "and that it is taken again");
}

#[tokio::test]
async fn a_first_write_that_is_refused_for_what_it_says_takes_nothing() {
    for (code, message) in [(403, ""), (413, ""), (500, "etcdserver: request is too large")] {
        let mut rig = Rig::small();
        let (first, second) = (desktop("a", 5, json!({})), desktop("b", 6, json!({})));
        rig.desktop(&first);
        rig.desktop(&second);
        let refusal = |_: &Value| {
            let (code, mut status) = failure(code, "");
            status["message"] = message.into();
            (code, status)
        };
        let (result, _) = round(&mut rig, &first, refusal).await;
        assert!(matches!(result, Err(Error::Allocation(WriteError::Refused(_)))), "{result:?}");
        let (_, (_, _, other)) = round(&mut rig, &second, accept).await;
        assert_eq!(other["status"]["allocation"]["node"], "node-a");
    }
}

#[tokio::test]
async fn a_term_alone_is_never_a_reason_to_write() {
    let mut rig = Rig::small();
    let object = desktop("a", 5, json!({}));
    rig.desktop(&object);
    let (_, (_, _, body)) = round(&mut rig, &object, accept).await;
    let mut seen = serde_json::to_value(after(&object, 6, &body)).unwrap();
    seen["status"]["operatorTerm"] = "another:7".into();
    let seen: Desktop = serde_json::from_value(seen).unwrap();
    rig.desktop(&seen);
    silent(&rig, &seen).await.unwrap();
}

#[tokio::test]
async fn a_round_on_an_old_version_writes_nothing() {
    let mut rig = Rig::small();
    let old = desktop("a", 5, json!({}));
    rig.desktop(&old);
    rig.desktop(&desktop("a", 6, json!({})));
    silent(&rig, &old).await.unwrap();
}

#[tokio::test]
async fn a_missing_template_is_named_and_its_coming_wakes_the_desktop() {
    let mut rig = Rig::new();
    rig.node(&node("node-a", 2048));
    let object = desktop("a", 5, json!({}));
    rig.desktop(&object);
    rig.drain_woken();
    let (_, (_, _, body)) = round(&mut rig, &object, accept).await;
    assert_eq!(
        conditions(&body)["Allocated"],
        ("False".into(), "TemplateNotFound".into(), "DesktopTemplate demo/template does not exist".into())
    );
    let object = after(&object, 6, &body);
    rig.desktop(&object);
    silent(&rig, &object).await.unwrap();
    rig.drain_woken();
    rig.template(&template(json!({"gpus": [{"name": "gpu", "profileRef": {"name": "whole"}}]})));
    assert_eq!(rig.drain_woken(), ["a"]);
    let (_, (_, _, body)) = round(&mut rig, &object, accept).await;
    assert_eq!(conditions(&body)["Ready"].1, "ProfileNotFound");
    rig.profile(&profile(json!({"alternatives": [{"passthrough": {}}]})));
    assert_eq!(rig.drain_woken(), ["a"]);
    let object = after(&object, 7, &body);
    rig.desktop(&object);
    let (_, (_, _, body)) = round(&mut rig, &object, accept).await;
    let said = conditions(&body);
    assert_eq!(said["Ready"].1, "Unschedulable", "what is counted is said at once: {body}");
    assert!(said["Ready"].2.starts_with("0/1 nodes: 1 no card"), "{body}");
    let object = after(&object, 8, &body);
    rig.desktop(&object);
    rig.drain_woken();
    rig.context.world.think_once();
    assert_eq!(rig.drain_woken(), ["a"], "it has something else to say");
    let (_, (_, _, body)) = round(&mut rig, &object, accept).await;
    assert_eq!(conditions(&body)["Ready"].1, "Unsatisfiable", "{body}");
    let object = after(&object, 9, &body);
    rig.desktop(&object);
    rig.drain_woken();
    silent(&rig, &object).await.unwrap();
    rig.context.world.think_once();
    assert_eq!(rig.drain_woken(), [""; 0], "it has said so");
}

#[tokio::test]
async fn a_stop_parks_after_the_node_has_reported_and_the_next_start_is_at_home() {
    let mut rig = Rig::small();
    let object = desktop("a", 5, json!({}));
    rig.desktop(&object);
    let (_, (_, _, body)) = round(&mut rig, &object, accept).await;
    let mut object = after(&object, 6, &body);
    object.spec.power_state = gpudesk_crds::desktop::PowerState::Stopped;
    object.metadata.generation = Some(4);
    rig.desktop(&object);
    silent(&rig, &object).await.unwrap();
    // The node says that it is gone.
    let mut reported = body.clone();
    for condition in reported["status"]["conditions"].as_array_mut().unwrap() {
        if condition["type"] == "Running" {
            condition["reason"] = json!("Stopped");
            condition["observedGeneration"] = json!(4);
        }
    }
    let mut object = after(&object, 7, &reported);
    rig.desktop(&object);
    rig.node(&node("node-b", 8192));
    let (_, (_, _, body)) = round(&mut rig, &object, accept).await;
    assert_eq!(body["status"]["allocation"]["node"], "node-a");
    assert!(body["status"]["allocation"].get("compute").is_none());
    assert_eq!(body["status"]["lastPlacement"]["node"], "node-a");
    assert_eq!(body["status"]["lastPlacement"]["allocationId"], body["status"]["allocation"]["id"]);
    assert_eq!(body["status"]["phase"], "Stopped");
    assert_eq!(conditions(&body)["Ready"].1, "Stopped");
    // Started again: only its home will do.
    object.spec.power_state = gpudesk_crds::desktop::PowerState::Running;
    object.metadata.generation = Some(5);
    let object = after(&object, 8, &body);
    rig.desktop(&object);
    let (_, (_, _, body)) = round(&mut rig, &object, accept).await;
    assert_eq!(body["status"]["allocation"]["node"], "node-a");
    assert_eq!(body["status"]["allocation"]["compute"]["cores"], 2);
    assert_eq!(body["status"]["allocation"]["desktopGeneration"], 5);
    assert!(body["status"].get("lastPlacement").is_none(), "the allocation says it");
}

#[tokio::test]
async fn a_node_without_lease_gets_nothing_and_its_first_renewal_wakes_nobody_in_vain() {
    let mut rig = Rig::new();
    rig.template(&template(json!({})));
    let object = node("node-a", 2048);
    rig.context.world.node(crate::watch::Seen::There(&object));
    let asked = desktop("a", 5, json!({}));
    rig.desktop(&asked);
    let (_, (_, _, body)) = round(&mut rig, &asked, accept).await;
    assert_eq!(conditions(&body)["Ready"].2, "0/1 nodes: 1 node daemon silent");
    rig.drain_woken();
    let waker = rig.context.world.clone();
    let waking = tokio::spawn(async move { waker.offer_freed().await });
    rig.node(&object);
    tokio::time::sleep(Duration::from_millis(400)).await;
    waking.abort();
    assert_eq!(rig.drain_woken(), ["a"]);
}

/// A desktop that was placed, and is as the watch shows it then.
async fn placed(rig: &mut Rig) -> (Desktop, Value) {
    let object = desktop("a", 5, json!({}));
    rig.desktop(&object);
    let (_, (_, _, body)) = round(rig, &object, accept).await;
    let object = after(&object, 6, &body);
    rig.desktop(&object);
    (object, body)
}

#[tokio::test]
async fn a_node_is_lost_when_the_api_server_says_so_and_not_when_the_watch_does() {
    let mut rig = Rig::small();
    let (object, _) = placed(&mut rig).await;
    rig.node_lost(&node("node-a", 2048));
    let there = |_: &Value| {
        let api = ("meta.k8s.io/v1", "PartialObjectMetadata");
        (200, json!({"apiVersion": api.0, "kind": api.1, "metadata": {"name": "node-a"}}))
    };
    let (result, (method, path, _)) = round(&mut rig, &object, there).await;
    result.unwrap();
    assert_eq!((method.as_str(), path.as_str()), ("GET", "/apis/gpudesk.dev/v1alpha1/gpunodes/node-a"));
    // Somebody between may know no such path; a server that restarts may not either.
    for (code, reason) in [(503, "ServiceUnavailable"), (404, "NotFound"), (403, "Forbidden")] {
        let (result, (method, _, _)) = round(&mut rig, &object, |_| failure(code, reason)).await;
        assert!(matches!(result, Err(Error::Node { .. })), "{code}: {result:?}");
        assert_eq!(method, "GET");
    }
    let context = rig.beside();
    let (result, (_, _, body)) = tokio::join!(reconcile(&object, &context), async {
        rig.answer(gone).await;
        rig.answer(accept).await
    });
    result.unwrap();
    assert_eq!(conditions(&body)["Ready"].1, "NodeLost");
    assert_eq!(body["status"]["phase"], "Unknown");
    assert!(body["status"]["allocation"]["compute"].is_object(), "it keeps what it has there: {body}");
}

/// What the node says once a guest has ended for good.
fn ended(placed: &Value) -> Value {
    let mut said = placed.clone();
    let all = said["status"]["conditions"].as_array_mut().unwrap();
    let running = all.iter_mut().find(|condition| condition["type"] == "Running").unwrap();
    (running["reason"], running["message"]) = (json!("GuestStopped"), json!("the guest shut itself down"));
    let mut prepared = running.clone();
    (prepared["type"], prepared["reason"]) = (json!("DevicesPrepared"), json!("Stopped"));
    all.push(prepared);
    said
}

#[tokio::test]
async fn an_end_is_said_of_each_generation_so_that_a_stop_and_a_start_are_seen_later() {
    let mut rig = Rig::small();
    let (object, body) = placed(&mut rig).await;
    let object = after(&object, 7, &ended(&body));
    rig.desktop(&object);
    let (_, (_, _, body)) = round(&mut rig, &object, accept).await;
    assert_eq!(conditions(&body)["Allocated"].1, "GuestStopped");
    let mut object = after(&object, 8, &body);
    rig.desktop(&object);
    silent(&rig, &object).await.unwrap();
    // Another change, as of its owner.
    (object.metadata.generation, object.metadata.resource_version) = (Some(4), Some("9".into()));
    rig.desktop(&object);
    let (_, (_, _, noted)) = round(&mut rig, &object, accept).await;
    assert_eq!(conditions(&noted), conditions(&body));
    assert_eq!(noted["status"]["phase"], body["status"]["phase"]);
    assert!(noted["status"]["allocation"].get("compute").is_none());
    let mut object = after(&object, 10, &noted);
    rig.desktop(&object);
    silent(&rig, &object).await.unwrap();
    // Stopped and started while no operator looked.
    (object.metadata.generation, object.metadata.resource_version) = (Some(6), Some("11".into()));
    rig.desktop(&object);
    let (_, (_, _, body)) = round(&mut rig, &object, accept).await;
    assert_eq!(body["status"]["allocation"]["compute"]["cores"], 2);
}

#[tokio::test]
async fn a_desktop_that_ended_and_cannot_be_restarted_holds_nothing_and_says_why() {
    let mut rig = Rig::small();
    let (object, body) = placed(&mut rig).await;
    let mut object = after(&object, 7, &ended(&body));
    object.metadata.annotations = Some([("gpudesk.dev/restartedAt".to_owned(), "now".to_owned())].into());
    rig.desktop(&object);
    rig.template(&template(json!({"memory": {"sizeMiB": 4096}})));
    let (result, (_, _, body)) = round(&mut rig, &object, accept).await;
    result.unwrap();
    assert_eq!(body["status"]["allocation"]["node"], "node-a");
    assert!(body["status"]["allocation"].get("compute").is_none(), "{body}");
    assert_eq!(conditions(&body)["Ready"].1, "Unschedulable", "{body}");
    // What it held is another's now, and it waits as others do.
    rig.template(&template(json!({})));
    rig.desktop(&after(&object, 8, &body));
    let other = desktop("b", 9, json!({}));
    rig.desktop(&other);
    let (_, (_, _, body)) = round(&mut rig, &other, accept).await;
    assert_eq!(body["status"]["allocation"]["node"], "node-a");
}

/// The writes of a round of two, and how it ended.
async fn two_writes(
    rig: &mut Rig,
    object: &Desktop,
    first: impl FnOnce(&Value) -> (u16, Value),
    second: (u16, Value),
) -> (Result<Action, Error>, Value, Value) {
    let context = rig.beside();
    let answers = async {
        let (_, _, applied) = rig.answer(first).await;
        let (method, path, sent) = rig.answer(|_| second).await;
        assert_eq!(method, "PATCH");
        assert!(path.ends_with("/desktops/a/status?fieldManager=gpudesk-operator"), "{path}");
        (applied, sent)
    };
    let (result, (applied, patch)) = tokio::join!(reconcile(object, &context), answers);
    (result, applied, patch)
}

/// As if somebody else owned CPUs, the last place, and a condition of his own.
fn mixed(body: &Value) -> (u16, Value) {
    let (code, mut object) = accept(body);
    object["metadata"]["resourceVersion"] = "6".into();
    object["status"]["allocation"]["compute"]["vcpuPins"] = json!([{"vcpu": 0, "cpus": "3"}]);
    object["status"]["lastPlacement"] = json!({"node": "node-b"});
    let ours = json!({"type": "RestartRequired", "status": "True", "reason": "SpecChanged", "message": "",
                      "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let mut theirs = ours.clone();
    theirs["type"] = "GuestReady".into();
    object["status"]["conditions"].as_array_mut().unwrap().extend([ours, theirs]);
    (code, object)
}

#[tokio::test]
async fn what_others_own_too_does_not_stay_in_the_status() {
    let mut rig = Rig::small();
    let object = desktop("a", 5, json!({}));
    rig.desktop(&object);
    let done = (200, serde_json::to_value(&object).unwrap());
    let (result, applied, patch) = two_writes(&mut rig, &object, mixed, done).await;
    result.unwrap();
    let patch = patch.as_array().unwrap();
    assert_eq!(patch[0], json!({"op": "replace", "path": "/metadata/resourceVersion", "value": "6"}));
    let of = |path: &str| patch.iter().find(|operation| operation["path"] == path).unwrap();
    assert_eq!(of("/status/allocation")["value"], applied["status"]["allocation"]);
    assert_eq!(of("/status/lastPlacement")["op"], "remove");
    assert_eq!(of("/status/operatorTerm")["value"], "lease:1");
    let types: Vec<&Value> =
        of("/status/conditions")["value"].as_array().unwrap().iter().map(|c| &c["type"]).collect();
    assert_eq!(types, ["Allocated", "Ready", "Running", "GuestReady"]);
    silent(&rig, &object).await.unwrap();
}

#[tokio::test]
async fn a_status_that_cannot_be_applied_is_written_whole_and_counts_until_that_is_refused_too() {
    let mut rig = Rig::small();
    let object = desktop("a", 5, json!({}));
    rig.desktop(&object);
    let invalid = |_: &Value| failure(422, "Invalid");
    let (result, ..) = two_writes(&mut rig, &object, invalid, failure(422, "Invalid")).await;
    assert!(matches!(result, Err(Error::Allocation(WriteError::Refused(_)))), "{result:?}");
    // Nothing was written: it is decided anew. Something was: the same place counts until it is seen.
    let (result, first, _) = two_writes(&mut rig, &object, mixed, failure(422, "Invalid")).await;
    assert!(matches!(result, Err(Error::Allocation(WriteError::Unclear(_)))), "{result:?}");
    let (result, again, patch) =
        two_writes(&mut rig, &object, invalid, (200, serde_json::to_value(&object).unwrap())).await;
    result.unwrap();
    assert_eq!(patch[0]["value"], "5");
    assert_eq!(again["status"]["allocation"], first["status"]["allocation"]);
}
