//! A node whose daemon is silent, and restarts that cannot be made.

use gpudesk_crds::Desktop;
use serde_json::{Value, json};

use super::rig::*;
use crate::desktop::reconcile;

/// The next write of a round over `object`, and the object after it.
async fn write(rig: &mut Rig, object: &Desktop, version: u64) -> (Value, Desktop) {
    rig.desktop(object);
    let context = rig.beside();
    let (result, (_, _, body)) = tokio::join!(reconcile(object, &context), rig.answer(accept));
    result.unwrap();
    let mut after = after(object, version, &body);
    // What the node owns stays beside what the operator applies.
    let kept = object.status.iter().flat_map(|status| &status.conditions);
    let kept: Vec<_> = kept
        .filter(|old| {
            body["status"]["conditions"].as_array().unwrap().iter().all(|new| new["type"] != old.type_)
        })
        .cloned()
        .collect();
    after.status.as_mut().unwrap().conditions.extend(kept);
    rig.desktop(&after);
    (body, after)
}

async fn nothing(rig: &mut Rig, object: &Desktop) {
    let context = rig.beside();
    let round = reconcile(object, &context);
    tokio::time::timeout(std::time::Duration::from_secs(2), round).await.expect("it wrote").unwrap();
}

/// The node says that the machine runs.
fn runs(object: &Desktop, version: u64) -> Desktop {
    let mut object = object.clone();
    object.metadata.resource_version = Some(version.to_string());
    let status = object.status.as_mut().unwrap();
    status.phase = Some(gpudesk_crds::desktop::Phase::Running);
    for condition in status.conditions.iter_mut().filter(|c| ["Ready", "Running"].contains(&c.type_.as_str()))
    {
        (condition.status, condition.reason) = ("True".into(), "AsExpected".into());
    }
    object
}

#[tokio::test]
async fn desktops_of_a_silent_node_say_since_when_nothing_is_known_and_keep_their_place() {
    let mut rig = Rig::small();
    let (_, object) = write(&mut rig, &desktop("a", 5, json!({})), 6).await;
    rig.drain_woken();
    rig.lease("node-a", 100, -1);
    rig.context.world.tick();
    assert_eq!(rig.drain_woken(), ["a"], "its desktops are looked at");
    assert!(rig.context.world.metrics.text().contains("gpudesk_operator_node_silent{node=\"node-a\"} 1"));
    let (body, object) = write(&mut rig, &object, 7).await;
    let (truth, reason, message) = conditions(&body)["Ready"].clone();
    assert_eq!((truth.as_str(), reason.as_str()), ("Unknown", "DaemonSilent"));
    assert_eq!(
        message,
        "the node daemon of node-a is silent since 1970-01-01T00:01:40Z: whether the machine runs is not known"
    );
    assert_eq!(body["status"]["phase"], "Unknown");
    assert_eq!(body["status"]["allocation"]["node"], "node-a", "time alone moves nothing");
    nothing(&mut rig, &object).await;
    // The daemon's own word counts from then on, though its lease may come later.
    let object = runs(&object, 8);
    rig.desktop(&object);
    nothing(&mut rig, &object).await;
    rig.lease("node-a", 200, 180);
    nothing(&mut rig, &object).await;
    assert!(!rig.context.world.metrics.text().contains("node_silent{"));
}

#[tokio::test]
async fn a_restart_that_cannot_succeed_does_not_take_the_machine_down() {
    let mut rig = Rig::small();
    let (_, object) = write(&mut rig, &desktop("a", 5, json!({})), 6).await;
    let mut object = runs(&object, 7);
    let asked = |object: &mut Desktop, at: &str| {
        object.metadata.annotations = Some([("gpudesk.dev/restartedAt".to_owned(), at.to_owned())].into());
    };
    asked(&mut object, "one");
    let (body, object) = write(&mut rig, &object, 8).await;
    assert_eq!(body["status"]["allocation"]["stopFor"], "one", "it fits where it is");
    // Larger than any host, and then without a profile that it names, and then too long.
    let refused = |body: &Value| {
        assert!(body["status"]["allocation"].get("stopFor").is_none(), "{body}");
        let said = conditions(body)["RestartRequired"].clone();
        assert_eq!((said.0.as_str(), said.1.as_str()), ("True", "RestartRefused"));
        said.2
    };
    rig.template(&template(json!({"memory": {"sizeMiB": 65536}})));
    let (body, object) = write(&mut rig, &object, 9).await;
    assert!(refused(&body).contains("0/1 nodes: 1 not enough memory"), "{body}");
    rig.context.world.think_once();
    let (body, object) = write(&mut rig, &object, 10).await;
    assert!(refused(&body).contains("needs 65536 MiB"), "{body}");
    rig.template(&template(json!({"gpus": [{"name": "g", "profileRef": {"name": "none"}}]})));
    let (body, object) = write(&mut rig, &object, 11).await;
    assert!(refused(&body).contains("GpuProfile none does not exist"), "{body}");
    rig.template(&template(json!({})));
    let (body, mut object) = write(&mut rig, &object, 12).await;
    assert_eq!(body["status"]["allocation"]["stopFor"], "one");
    asked(&mut object, &"x".repeat(200));
    let (body, mut object) = write(&mut rig, &object, 13).await;
    assert!(refused(&body).contains("is 200 characters long; it takes at most 128 printable"), "{body}");
    for odd in ["a\u{1}", "\u{7f}", "\u{fffe}"] {
        asked(&mut object, odd);
        let (body, now) = write(&mut rig, &object, 14).await;
        let code = u32::from(odd.chars().last().unwrap());
        assert!(refused(&body).contains(&format!("has the character U+{code:04X}")), "{body}");
        assert!(!body.to_string().contains(odd), "no API server takes it: {body}");
        object = now;
    }
}

#[tokio::test]
async fn a_change_of_its_own_spec_is_said_and_said_no_more_when_taken_back() {
    let mut rig = Rig::new();
    rig.template(&template(json!({"allowOverrides": ["Cpu"]})));
    rig.node(&node("node-a", 2048));
    let (_, object) = write(&mut rig, &desktop("a", 5, json!({})), 6).await;
    let plain = runs(&object, 7);
    let mut object = plain.clone();
    object.spec.overrides = serde_json::from_value(json!({"cpu": {"cores": 1}})).unwrap();
    object.metadata.generation = Some(4);
    let (body, object) = write(&mut rig, &object, 8).await;
    assert_eq!(
        conditions(&body)["RestartRequired"],
        (
            "True".into(),
            "SpecChanged".into(),
            "changed since the start, and in effect at the next one: cpu.cores was 2 and is 1 now".into()
        )
    );
    let back = Desktop { spec: plain.spec, ..object };
    let (body, _) = write(&mut rig, &back, 9).await;
    assert!(!conditions(&body).contains_key("RestartRequired"), "{body}");
}

#[tokio::test]
async fn a_deleted_desktop_that_its_node_released_says_which_nodes_it_waits_for() {
    let mut rig = Rig::before_leases();
    rig.template(&template(json!({})));
    rig.lease("node-a", 1_900_000_000, 180);
    rig.context.world.lease(crate::watch::Seen::Complete);
    rig.node_alone(&node("node-a", 2048));
    rig.context.world.node(crate::watch::Seen::Complete);
    let allocation = json!({
        "node": "node-a", "id": "1-00000001", "desktopGeneration": 3, "templateGeneration": 1,
        "decidedAt": "2026-01-01T00:00:00Z", "compute": {"cores": 1, "threadsPerCore": 1, "memoryMiB": 64},
    });
    let over = json!({
        "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"allocation": allocation, "node": {"allocationId": "1-00000001", "state": "Released"}},
    });
    let (body, _) = write(&mut rig, &desktop("over", 5, over), 6).await;
    let (truth, reason, message) = conditions(&body)["Ready"].clone();
    assert_eq!((truth.as_str(), reason.as_str()), ("Unknown", "AwaitingNodes"));
    assert!(message.contains("nothing is placed or let go before"), "{message}");
}

#[tokio::test]
async fn nothing_is_placed_before_nodes_whose_leases_are_old_have_said_what_they_have() {
    let mut rig = Rig::before_leases();
    rig.template(&template(json!({})));
    // In whatever order the watches list.
    let (lease, object) = (crate::watch::Seen::Complete, node("node-a", 2048));
    rig.lease("node-a", 1_900_000_000, 180);
    rig.context.world.lease(lease);
    rig.node_alone(&object);
    rig.context.world.node(crate::watch::Seen::Complete);
    let (body, object) = write(&mut rig, &desktop("a", 5, json!({})), 6).await;
    assert_eq!(conditions(&body)["Allocated"].1, "AwaitingNodes");
    let deleted = desktop("gone", 5, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    let (body, deleted) = write(&mut rig, &deleted, 6).await;
    assert_eq!(body["status"]["phase"], "Deleting");
    assert!(conditions(&body)["Ready"].2.contains("nothing is placed or let go before"), "{body}");
    nothing(&mut rig, &deleted).await;
    rig.lease("node-a", 2_000_000_000, 180);
    rig.drain_woken();
    nothing(&mut rig, &object).await;
    rig.lease("node-a", 2_000_000_060, 180);
    let mut woken = rig.drain_woken();
    woken.sort();
    assert_eq!(woken, ["a", "gone"], "all are looked at then");
    let (body, _) = write(&mut rig, &object, 7).await;
    assert_eq!(body["status"]["allocation"]["node"], "node-a");
}
