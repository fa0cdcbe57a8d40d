//! What the operator may do with rights that RBAC gives whole only.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::objects::Objects;
use serde_json::{Value, json};

use crate::ask::{Person, allocation, apply, create, delete, get, merge, namespaced, object};
use crate::node_daemon::{account, token_request};
use crate::secrets::{binding, reading, role};

fn paths(namespace: &str, plural: &str, name: &str) -> String {
    format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{plural}/{name}")
}

const NAME: &str = "gpudesk-node-grant-a";

pub(crate) async fn roles(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("grants").await?;
    let operator = Person::operator(&cluster).await?;
    let roles = |name: &str| paths(&namespace, "roles", name);
    let bindings = |name: &str| paths(&namespace, "rolebindings", name);
    operator.may(&apply(roles(NAME), role(NAME, &reading(&["a"])))).await?;

    let (limit, names) =
        ("whose rules are get on secrets with resourceNames", "named gpudesk-node-NODE, not");
    let rule = |part: Value| {
        let mut changed = reading(&["a"]);
        if let Value::Object(part) = part {
            for (key, value) in part {
                changed[0][&key] = value;
            }
        }
        changed
    };
    for rules in [
        rule(json!({"resourceNames": []})),
        rule(json!({"resourceNames": null})),
        json!([reading(&["a"])[0], {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]),
    ] {
        operator.may_not(&apply(roles(NAME), role(NAME, &rules)), limit).await?;
        operator
            .may_not(&apply(roles("gpudesk-node-grant-b"), role("gpudesk-node-grant-b", &rules)), limit)
            .await?;
    }
    // These RBAC itself refuses, for the operator does not have them.
    for rules in [
        rule(json!({"verbs": ["get", "list"]})),
        rule(json!({"verbs": ["*"]})),
        rule(json!({"resources": ["secrets", "configmaps"]})),
        rule(json!({"resources": ["*"]})),
        rule(json!({"apiGroups": ["*"]})),
    ] {
        operator.may_not(&apply(roles(NAME), role(NAME, &rules)), "not currently held").await?;
    }
    // What it holds itself it may still not hand on.
    let held = json!([{"apiGroups": ["gpudesk.dev"], "resources": ["desktops"], "verbs": ["list"], "resourceNames": ["a"]}]);
    operator.may_not(&apply(roles(NAME), role(NAME, &held)), limit).await?;
    for name in ["secret-reader", "gpudesk-node-daemon"] {
        operator.may_not(&apply(roles(name), role(name, &reading(&["a"]))), names).await?;
        operator.may_not(&create(roles(""), role(name, &reading(&["a"]))), names).await?;
    }

    let limit = "may only bind the Role gpudesk-node-grant-a to the service account of the same name";
    for subjects in [&["default"][..], &[NAME, "gpudesk-node-daemon"], &["gpudesk-node-grant-b"]] {
        operator.may_not(&apply(bindings(NAME), binding(NAME, NAME, subjects)), limit).await?;
    }
    let mut elsewhere = binding(NAME, NAME, &[NAME]);
    elsewhere["subjects"][0]["namespace"] = namespace.clone().into();
    operator.may_not(&apply(bindings(NAME), elsewhere), limit).await?;
    let mut user = binding(NAME, NAME, &[NAME]);
    user["subjects"] =
        json!([{"kind": "Group", "name": "system:authenticated", "apiGroup": "rbac.authorization.k8s.io"}]);
    operator.may_not(&apply(bindings(NAME), user), limit).await?;
    Person::admin(&cluster).may(&apply(roles("admin-made"), role("admin-made", &reading(&["b"])))).await?;
    operator.may_not(&apply(bindings(NAME), binding(NAME, "admin-made", &[NAME])), limit).await?;
    operator.may_not(&apply(bindings("other"), binding("other", "admin-made", &["other"])), names).await?;
    operator.may(&apply(bindings(NAME), binding(NAME, NAME, &[NAME]))).await?;

    // What others have marked stays the operator's to change and to take away; their marks are not. A mark
    // like ours gives it nothing.
    let admin = Person::admin(&cluster);
    let marks = json!({"metadata": {
        "labels": {"gpudesk.dev/node": "grant-a", "rack": "a1"}, "annotations": {"example.org/why": "audit"},
        "finalizers": ["example.org/keep"],
    }});
    for marked in [roles(NAME), bindings(NAME), roles("admin-made")] {
        admin.may(&merge(&marked, marks.clone())).await?;
    }
    operator.may(&apply(roles(NAME), role(NAME, &reading(&["a", "b"])))).await?;
    operator.may(&delete(roles(NAME)).dry()).await?;
    operator.may(&delete(bindings(NAME)).dry()).await?;
    for (field, words) in [
        ("labels", "may not write the label"),
        ("annotations", "may not write metadata.annotations"),
        ("finalizers", "may not write metadata.finalizers"),
    ] {
        operator.may_not(&merge(roles(NAME), json!({"metadata": {field: null}})), words).await?;
    }
    operator.may_not(&merge(roles("admin-made"), json!({"rules": []})), names).await?;
    for marked in [roles(NAME), bindings(NAME)] {
        admin.may(&merge(&marked, json!({"metadata": {"finalizers": null}}))).await?;
    }
    operator.may_not(&delete(roles("admin-made")), names).await?;
    operator.may_not(&delete(paths(SYSTEM_NAMESPACE, "roles", "gpudesk-node-daemon")), names).await?;
    operator.may_not(&delete(paths(SYSTEM_NAMESPACE, "rolebindings", "gpudesk-operator")), names).await?;
    operator.may(&delete(bindings(NAME))).await?;
    operator.may(&delete(roles(NAME))).await?;
    Ok(())
}

pub(crate) async fn accounts(cluster: Arc<Cluster>) -> Result<()> {
    let operator = Person::operator(&cluster).await?;
    operator.may(&account("gpudesk-node-account-a")).await?;
    let words = "may only write ServiceAccounts named gpudesk-node-NODE";
    for name in ["other", "gpudesk-operator-2", "gpudesk-node"] {
        operator.may_not(&account(name), words).await?;
    }
    let accounts = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/serviceaccounts");
    operator.may_not(&delete(format!("{accounts}/gpudesk-node-daemon")), "cannot delete resource").await?;
    operator
        .may_not(&create(format!("{accounts}/gpudesk-operator/token"), json!({})), "cannot create resource")
        .await
}

pub(crate) async fn key(cluster: Arc<Cluster>) -> Result<()> {
    let secrets = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets");
    let own = format!("{secrets}/gpudesk-allocation-key");
    let secret = |name: &str| {
        let data = json!({"key": "c2VjcmV0"});
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data})
    };
    let operator = Person::operator(&cluster).await?;
    operator.may(&create(&secrets, secret("gpudesk-allocation-key"))).await?;
    operator.may(&get(&own)).await?;
    let words = "may write no Secret but make its own";
    operator.may_not(&create(&secrets, secret("another")), words).await?;
    let mut marked = secret("gpudesk-allocation-key");
    marked["metadata"]["finalizers"] = json!(["example.org/keep"]);
    operator.may_not(&create(&secrets, marked), "may not write metadata.finalizers").await?;
    operator.may_not(&merge(&own, json!({"data": {"key": "b3RoZXI="}})), "cannot patch resource").await?;
    operator.may_not(&delete(&own), "cannot delete resource").await?;
    let elsewhere = create("/api/v1/namespaces/default/secrets", secret("gpudesk-allocation-key"));
    operator.may_not(&elsewhere, "cannot create resource").await?;
    // Who has the key can claim the desktops of others: no node has it.
    for node in ["key-a", "key-b"] {
        let daemon = Person::daemon(&cluster, node).await?;
        daemon.may_not(&get(&own), "cannot get resource").await?;
        let identity = format!("gpudesk-node-{node}");
        operator.may(&account(&identity)).await?;
        let answer = daemon.may(&token_request(&identity, node)).await?;
        let token = answer["status"]["token"].as_str().context("no token")?;
        Person::with_token(&cluster, token).await?.may_not(&get(&own), "cannot get resource").await?;
    }
    Person::admin(&cluster).may(&delete(&own)).await?;
    Ok(())
}

/// Where the API server has such rules.
pub(crate) async fn taints(cluster: Arc<Cluster>) -> Result<()> {
    let admin = Person::admin(&cluster);
    let mut served = None;
    for version in ["v1", "v1beta2"] {
        let group =
            admin.try_ask(&get(format!("/apis/resource.k8s.io/{version}"))).await?.unwrap_or_default();
        let has = |resource: &Value| resource["name"] == "devicetaintrules";
        if served.is_none() && group["resources"].as_array().is_some_and(|all| all.iter().any(has)) {
            served = Some(version);
        }
    }
    let Some(version) = served else { return Ok(()) };
    let rules = format!("/apis/resource.k8s.io/{version}/devicetaintrules");
    let uid = "5e1c4c2e-0d53-4d1c-9d0f-0a4f6f5b9a01";
    let rule = |pointer: &str, value: Value| {
        let mut rule = json!({
            "apiVersion": format!("resource.k8s.io/{version}"), "kind": "DeviceTaintRule",
            "metadata": {"name": "gpudesk-0011", "labels": {"gpudesk.dev/node": "taint-a"}, "ownerReferences": [
                {"apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode", "name": "taint-a", "uid": uid}]},
            "spec": {"deviceSelector": {"driver": "gpu.nvidia.com", "pool": "taint-a", "device": "gpu-0"},
                     "taint": {"key": "gpudesk.dev/managed", "effect": "NoSchedule"}},
        });
        if let Some((parent, key)) = pointer.rsplit_once('/')
            && let Some(Value::Object(parent)) = rule.pointer_mut(parent)
        {
            if value.is_null() {
                parent.remove(key);
            } else {
                parent.insert(key.to_owned(), value);
            }
        }
        create(&rules, rule)
    };
    let operator = Person::operator(&cluster).await?;
    operator.may(&rule("", Value::Null).dry()).await?;
    let (whose, what, owner) = (
        "may only make and remove DeviceTaintRules named",
        "may only taint one device each",
        "belongs to one GpuNode",
    );
    let node =
        |kind: &str| json!([{"apiVersion": "gpudesk.dev/v1alpha1", "kind": kind, "name": "a", "uid": uid}]);
    for (pointer, value, words) in [
        ("/metadata/name", json!("other"), whose),
        ("/spec/taint/key", json!("example.org/broken"), whose),
        ("/spec/taint/effect", json!("NoExecute"), what),
        ("/spec/deviceSelector/device", Value::Null, what),
        ("/spec/deviceSelector/driver", Value::Null, what),
        ("/spec/deviceSelector", Value::Null, what),
        ("/metadata/ownerReferences", Value::Null, owner),
        ("/metadata/ownerReferences", node("Desktop"), owner),
        ("/metadata/finalizers", json!(["example.org/keep"]), "may not write metadata.finalizers"),
        ("/metadata/labels", json!({"team": "a"}), "may not write the label team"),
    ] {
        operator.may_not(&rule(pointer, value), words).await?;
    }
    // Those of others are nobody's but theirs.
    let mut foreign = rule("/metadata/ownerReferences", Value::Null);
    foreign.body["metadata"]["name"] = json!("broken-card");
    foreign.body["spec"]["taint"]["key"] = json!("example.org/broken");
    admin.may(&foreign).await?;
    let foreign = format!("{rules}/broken-card");
    operator.may_not(&delete(&foreign), whose).await?;
    operator
        .may_not(&merge(&foreign, json!({"metadata": {"labels": {"a": "b"}}})), "cannot patch resource")
        .await?;
    admin.may(&delete(foreign)).await?;
    let slices = format!("/apis/resource.k8s.io/{version}/resourceslices");
    operator.may(&get(slices.replace("v1beta2", "v1"))).await?;
    operator.may_not(&delete(slices.replace("v1beta2", "v1")), "cannot deletecollection resource").await?;
    let daemon = Person::daemon(&cluster, "taint-a").await?;
    daemon.may_not(&create(&rules, rule("", Value::Null).body), "cannot create resource").await
}

pub(crate) async fn desktops(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("operator").await?;
    let objects = Objects::new(cluster.client(), &namespace);
    objects.desktop("a", "{templateRef: {name: t}}").await?;
    let operator = Person::operator(&cluster).await?;
    let (desktop, status) =
        (namespaced(&namespace, "desktops/a"), namespaced(&namespace, "desktops/a/status"));

    let finalizers = |list: Value| json!({"metadata": {"finalizers": list}});
    operator.may(&merge(&desktop, finalizers(json!([gpudesk_crds::RELEASE_FINALIZER])))).await?;
    let decided = json!({"status": {"allocation": allocation("n")}});
    operator.may(&apply(&status, object("Desktop", "a", decided))).await?;
    let words = "may write nothing of desktops but the status and its finalizer";
    for patch in [
        json!({"spec": {"powerState": "Stopped"}}),
        json!({"metadata": {"labels": {"a": "b"}}}),
        json!({"metadata": {"annotations": {"gpudesk.dev/restartedAt": "now"}}}),
    ] {
        operator.may_not(&merge(&desktop, patch), words).await?;
    }
    // It names Secrets in Roles and has no business with what is in them.
    operator.may_not(&get(format!("/api/v1/namespaces/{namespace}/secrets")), "cannot list resource").await?;
    let after = operator.may(&merge(&desktop, finalizers(json!([])))).await?;
    ensure!(after["metadata"]["finalizers"].is_null(), "{after:#}");
    Ok(())
}
