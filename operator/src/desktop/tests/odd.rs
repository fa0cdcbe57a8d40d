//! Objects that a newer version wrote and this one does not understand whole: they count, and nobody acts on them.

use std::time::Duration;

use gpudesk_crds::{Desktop, DesktopTemplate, GpuNode};
use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::rig::*;
use crate::desktop::{decide::Presence, reconcile};
use crate::understood::as_far_as_understood;

/// An object with `more` on top, which this version does not understand.
fn odd<K: Resource<DynamicType = ()> + Serialize + DeserializeOwned>(object: &K, more: Value) -> K {
    let mut value = serde_json::to_value(object).unwrap();
    merge(&mut value, more);
    assert!(serde_json::from_value::<K>(value.clone()).is_err());
    as_far_as_understood(value, &K::kind(&())).unwrap()
}

async fn silent(rig: &Rig, desktop: &Desktop) {
    let round = reconcile(desktop, &rig.context);
    tokio::time::timeout(Duration::from_secs(2), round).await.expect("it wrote").unwrap();
}

/// What a round writes.
async fn written(rig: &mut Rig, desktop: &Desktop) -> Value {
    let context = rig.beside();
    let (result, (_, _, body)) = tokio::join!(reconcile(desktop, &context), rig.answer(accept));
    result.unwrap();
    body
}

/// A desktop that holds all there is on the small rig's node.
async fn placed(rig: &mut Rig) -> Desktop {
    let object = desktop("a", 5, json!({}));
    rig.desktop(&object);
    let body = written(rig, &object).await;
    let placed = after(&object, 6, &body);
    rig.desktop(&placed);
    placed
}

const UNCLEAR: &str =
    "0/1 nodes: 1 with something that this version of the operator does not understand (see its log)";

#[tokio::test]
async fn what_a_desktop_held_stays_taken_whatever_is_not_understood_of_it_now() {
    for more in [
        json!({"spec": {"powerState": "Hibernated"}}),
        json!({"status": {"allocation": {"compute": "all of it"}}}),
        json!({"status": {"allocation": "gone"}}),
    ] {
        let mut rig = Rig::small();
        let object = placed(&mut rig).await;
        let object = odd(&object, more.clone());
        rig.desktop(&object);
        silent(&rig, &object).await;
        let other = desktop("b", 7, json!({}));
        rig.desktop(&other);
        let said = conditions(&written(&mut rig, &other).await);
        assert_eq!(said["Ready"].2, "0/1 nodes: 1 not enough memory", "{more}");
    }
}

#[tokio::test]
async fn where_nothing_is_known_of_what_is_held_the_node_takes_no_more() {
    let allocation = |more: Value| {
        let mut allocation = json!({"node": "node-a", "desktopGeneration": 1, "templateGeneration": 1, "decidedAt": "2026-01-01T00:00:00Z"});
        merge(&mut allocation, more);
        desktop("a", 5, json!({"status": {"allocation": allocation}}))
    };
    for (more, message) in [
        // All that it holds can be read: it counts as any other, and there is room beside it.
        (json!({"spec": {"powerState": "Hibernated"}}), ""),
        (json!({"status": {"allocation": {"compute": "all of it"}}}), UNCLEAR),
        (json!({"status": {"allocation": {"decidedAt": 7}}}), UNCLEAR),
        // It may be on any node.
        (json!({"status": {"allocation": {"node": 7}}}), UNCLEAR),
    ] {
        let mut rig = Rig::small();
        let object = odd(&allocation(json!({})), more.clone());
        rig.desktop(&object);
        silent(&rig, &object).await;
        let other = desktop("b", 7, json!({}));
        rig.desktop(&other);
        let said = conditions(&written(&mut rig, &other).await);
        assert_eq!(said["Ready"].2.contains(UNCLEAR), !message.is_empty(), "{more}: {said:?}");
        // It is gone, seen to be so: there is room.
        rig.desktop_gone(&other);
        rig.desktop_gone(&object);
        let other = desktop("c", 8, json!({}));
        rig.desktop(&other);
        let body = written(&mut rig, &other).await;
        if !message.is_empty() {
            assert_eq!(body["status"]["allocation"]["node"], "node-a", "{more}");
        }
    }
}

#[tokio::test]
async fn a_desktop_whose_template_is_not_understood_goes_on_and_is_not_told_that_it_is_gone() {
    let mut rig = Rig::small();
    let object = placed(&mut rig).await;
    let newer: DesktopTemplate =
        odd(&template(json!({})), json!({"spec": {"machine": {"firmware": "Coreboot"}}}));
    rig.template(&newer);
    let body = written(&mut rig, &object).await;
    let said = conditions(&body);
    assert_eq!(body["status"]["allocation"]["compute"]["memoryMiB"], 1024);
    assert_eq!(said["Allocated"].0, "True");
    let (status, _, message) = &said["RestartRequired"];
    assert_eq!(status, "True");
    let words = "DesktopTemplate demo/template is not understood by this version of the operator: spec.machine.firmware: unknown variant `Coreboot`";
    assert!(message.contains(words), "{message}");
    // Another is not made of it, and is told why.
    let other = desktop("b", 7, json!({}));
    rig.desktop(&other);
    let said = conditions(&written(&mut rig, &other).await);
    assert_eq!(said["Allocated"].1, "NotYetSupported");
    assert!(said["Allocated"].2.contains(words), "{said:?}");
}

#[tokio::test]
async fn a_node_that_is_not_understood_is_there_and_takes_no_more() {
    let mut rig = Rig::small();
    let object = placed(&mut rig).await;
    let newer: GpuNode =
        odd(&node("node-a", 8192), json!({"status": {"numaCells": [{"id": 0, "memoryMiB": "much"}]}}));
    rig.node(&newer);
    assert_eq!(rig.context.world.presence("node-a"), Presence::Present);
    silent(&rig, &object).await;
    let other = desktop("b", 7, json!({}));
    rig.desktop(&other);
    let said = conditions(&written(&mut rig, &other).await);
    assert!(said["Ready"].2.contains(UNCLEAR), "{said:?}");
    rig.node(&node("node-a", 8192));
    let other = desktop("c", 8, json!({}));
    rig.desktop(&other);
    assert_eq!(written(&mut rig, &other).await["status"]["allocation"]["node"], "node-a");
}
