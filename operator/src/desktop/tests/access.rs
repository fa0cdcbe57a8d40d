//! Which Secrets a node may read, and who is told when it may not.

use gpudesk_crds::{Desktop, conditions::Reason};
use serde_json::{Value, json};

use super::rig::*;
use crate::{
    desktop::{Error, reconcile},
    secret_access::{AccessError, Event, Kind, Pair},
};

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.template(&template(json!({"cloudInit": {"secretRef": {"name": "passwords"}}})));
    rig.node(&node("node-a", 4096));
    rig
}

fn made(version: &str) -> impl Fn(&Value) -> (u16, Value) {
    move |body| {
        let mut object = body.clone();
        object["metadata"]["resourceVersion"] = json!(version);
        (201, object)
    }
}

/// A desktop that was given its place, with its Role; and the requests that it took.
async fn placed(rig: &mut Rig, name: &str) -> (Desktop, Vec<(String, String, Value)>) {
    let object = desktop(name, 5, json!({}));
    rig.desktop(&object);
    let context = rig.beside();
    let answers = async {
        let role = rig.answer(made("r1")).await;
        let binding = rig.answer(made("b1")).await;
        let status = rig.answer(accept).await;
        vec![role, binding, status]
    };
    let (result, requests) = tokio::join!(reconcile(&object, &context), answers);
    result.unwrap();
    let object = after(&object, 6, &requests[2].2);
    rig.desktop(&object);
    (object, requests)
}

fn pair() -> Pair {
    Pair { namespace: "demo".into(), node: "node-a".into() }
}

#[tokio::test]
async fn the_node_may_read_the_secret_before_it_sees_the_allocation() {
    let mut rig = rig();
    let (_, requests) = placed(&mut rig, "a").await;
    let [role, binding, status] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(role.0, "POST");
    assert!(role.1.starts_with("/apis/rbac.authorization.k8s.io/v1/namespaces/demo/roles?"), "{}", role.1);
    assert_eq!(
        role.2["rules"],
        json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["passwords"], "verbs": ["get"]}])
    );
    assert_eq!(role.2["metadata"]["labels"], json!({"gpudesk.dev/node": "node-a"}));
    assert_eq!(binding.2["subjects"][0]["name"], "gpudesk-node-node-a");
    assert_eq!(binding.2["subjects"][0]["namespace"], "gpudesk-system");
    assert!(status.1.contains("/desktops/a/status"));
    // Its own objects, seen in the watch, are nothing new.
    rig.access.try_recv().ok();
    let context = rig.beside();
    for (kind, version) in [(Kind::Role, "r1"), (Kind::RoleBinding, "b1")] {
        seen(&mut rig, kind, Some(version));
    }
    rig.tend().await;
    assert!(context.secrets.has(&pair(), "passwords").await);
}

fn seen(rig: &mut Rig, kind: Kind, version: Option<&str>) {
    rig.context.secrets.notice(Event::Object(pair(), kind, version.map(Into::into)));
}

#[tokio::test]
async fn nothing_stands_between_a_desktop_and_the_loss_of_its_finalizer() {
    let mut rig = rig();
    let (object, _) = placed(&mut rig, "a").await;
    let mut gone = object.clone();
    gone.metadata.deletion_timestamp = object.metadata.creation_timestamp.clone();
    gone.metadata.resource_version = Some("7".into());
    gone.status.as_mut().unwrap().conditions.retain(|condition| condition.type_ != "Running");
    let released = json!({"type": "Running", "status": "False", "reason": "Released", "message": "",
                          "observedGeneration": 3, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    gone.status.as_mut().unwrap().conditions.push(serde_json::from_value(released).unwrap());
    rig.desktop(&gone);
    let context = rig.beside();
    // The one request is that for the finalizer; whatever becomes of Roles, it was not asked for.
    let (result, finalizer) = tokio::join!(reconcile(&gone, &context), rig.answer(accept));
    result.unwrap();
    assert_eq!(finalizer.2["metadata"]["finalizers"], json!([]));
    rig.desktop_gone(&gone);
    // What it leaves behind is taken back then, and nothing is made in a namespace that may be ending.
    let answers = async {
        let context = rig.beside();
        let ok = |_: &Value| (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}));
        let mut queue = std::mem::replace(&mut rig.access, futures::channel::mpsc::unbounded().1);
        let (sender, events) = futures::channel::mpsc::unbounded();
        while let Ok(event) = queue.try_recv() {
            sender.unbounded_send(event).unwrap();
        }
        drop(sender);
        let tending = crate::secret_access::tend(context.secrets.clone(), context.world.clone(), events);
        let answering = async {
            let binding = rig.answer(ok).await;
            let role = rig.answer(|_| failure(404, "NotFound")).await;
            (binding.0, role.0)
        };
        tokio::join!(tending, answering).1
    };
    assert_eq!(answers.await, ("DELETE".into(), "DELETE".into()));
    assert_eq!(context.secrets.remembered(), 0, "nothing of it is remembered");
}

#[tokio::test]
async fn a_role_that_somebody_deleted_or_changed_is_made_anew() {
    let mut rig = rig();
    placed(&mut rig, "a").await;
    while rig.access.try_recv().is_ok() {}
    seen(&mut rig, Kind::Role, None);
    let context = rig.beside();
    // Noted first, and looked at once everything that the watches had to say is noted.
    rig.tend().await;
    let event = rig.access.try_recv().unwrap();
    assert_eq!(event, Event::Desktops(pair()));
    let (sender, events) = futures::channel::mpsc::unbounded();
    sender.unbounded_send(event).unwrap();
    drop(sender);
    let tending = crate::secret_access::tend(context.secrets.clone(), context.world.clone(), events);
    let answers = async {
        let role = rig.answer(made("r2")).await;
        let binding = rig.answer(made("b1")).await;
        (role.0, binding.0)
    };
    let ((), methods) = tokio::join!(tending, answers);
    assert_eq!(methods, ("POST".into(), "PATCH".into()), "the binding is still there");
    assert!(context.secrets.has(&pair(), "passwords").await);
}

#[tokio::test]
async fn what_stands_in_the_way_of_a_role_is_said_by_the_desktop_and_not_overwritten() {
    let foreign = |_: &Value| {
        (
            200,
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                     "metadata": {"name": "gpudesk-node-node-a", "namespace": "demo",
                                  "managedFields": [{"manager": "kubectl-create", "operation": "Update"}]}}),
        )
    };
    let mut rig = rig();
    let object = desktop("a", 5, json!({}));
    rig.desktop(&object);
    let context = rig.beside();
    let answers = async {
        rig.answer(|_| failure(409, "AlreadyExists")).await;
        let read = rig.answer(foreign).await;
        let status = rig.answer(accept).await;
        (read.0, status.2)
    };
    let (result, (method, status)) = tokio::join!(reconcile(&object, &context), answers);
    assert!(matches!(result, Err(Error::Secrets(AccessError::Foreign { .. }))));
    assert_eq!(method, "GET");
    let (truth, reason, message) = conditions(&status)["Ready"].clone();
    assert_eq!((truth.as_str(), reason.as_str()), ("False", Reason::SecretNotReadable.as_str()));
    assert!(message.contains("Role demo/gpudesk-node-node-a was made by somebody else"), "{message}");
    assert!(status["status"].get("allocation").is_none(), "what was decided is free again");
    // A quota, say.
    let object = after(&object, 6, &status);
    rig.desktop(&object);
    let answers = async {
        let quota = |_: &Value| {
            let (code, mut status) = failure(403, "Forbidden");
            status["message"] = json!("exceeded quota: roles");
            (code, status)
        };
        rig.answer(quota).await;
        rig.answer(accept).await.2
    };
    let (result, status) = tokio::join!(reconcile(&object, &context), answers);
    assert!(result.is_err());
    assert!(conditions(&status)["Allocated"].2.contains("exceeded quota: roles"), "{status}");
}
