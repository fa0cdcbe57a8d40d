//! Metadata is no way around a right: owners that do not exist delete, finalizers keep, labels attract.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::GpuNode;
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::objects::Objects;
use gpudesk_e2e::waiting::until_gone;
use kube::Api;
use serde_json::{Value, json};

use crate::ask::{Ask, Person, apply, condition, create, get, gpunode, merge, namespaced, object};
use crate::people::{give, knows};
use crate::secrets::{binding, reading, role};

/// An owner that the garbage collector does not find.
fn nobody() -> Value {
    json!([{
        "apiVersion": "v1", "kind": "Namespace", "name": "nobody", "uid": "00000000-0000-4000-8000-000000000000"
    }])
}

/// The attack itself, not a dry run, beside an object on which an administrator does the same: when that is
/// gone, the collector has worked.
pub(crate) async fn garbage(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("garbage").await?;
    let objects = Objects::new(cluster.client(), &namespace);
    let (admin, operator) = (Person::admin(&cluster), Person::operator(&cluster).await?);
    let daemon = Person::daemon(&cluster, "kept-node").await?;
    let cordoned = json!({"spec": {"cordoned": true, "taints": [{"key": "exams"}]}});
    for name in ["kept-node", "lost-node"] {
        admin.may(&create(gpunode(""), object("GpuNode", name, cordoned.clone()))).await?;
    }
    objects.desktop("kept", "{templateRef: {name: t}}").await?;
    objects.desktop("lost", "{templateRef: {name: t}}").await?;
    let desktop = |name: &str| namespaced(&namespace, &format!("desktops/{name}"));
    // Somebody who may write desktops and not delete them.
    let rules = json!([{"apiGroups": ["gpudesk.dev"], "resources": ["desktops"], "verbs": ["get", "list", "update", "patch"]}]);
    let writer_role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "desktop-writer"}, "rules": rules,
    });
    admin.may(&create("/apis/rbac.authorization.k8s.io/v1/clusterroles", writer_role)).await?;
    give(&cluster, "writer", "desktop-writer", Some(&namespace)).await?;
    let writer = Person::user(&cluster, "writer");
    knows(&writer, &namespaced(&namespace, "desktops")).await?;

    let owned = |path: String| merge(path, json!({"metadata": {"ownerReferences": nobody()}}));
    let applied = |path: String, kind: &str, name: &str| {
        let mut parts = json!({"metadata": {"name": name, "ownerReferences": nobody()}});
        if kind == "GpuNode" {
            parts["spec"] = json!({});
        }
        apply(path, object(kind, name, parts))
    };
    // More than one policy refuses it; any may be the first.
    for (person, ask, words) in [
        (&daemon, owned(gpunode("kept-node")), "metadata.ownerReferences"),
        (&daemon, applied(gpunode("kept-node"), "GpuNode", "kept-node"), "metadata.ownerReferences"),
        (&operator, owned(desktop("kept")), "denied request: "),
        (&writer, owned(desktop("kept")), "may be changed only with the right to delete kept"),
    ] {
        person.may_not(&ask, words).await?;
        let refused = person.try_ask(&ask).await?;
        ensure!(refused.is_err(), "{ask:?}");
    }
    // A status carries no metadata, whatever is sent with it.
    let beside = json!({"metadata": {"ownerReferences": nobody()}, "status": {"phase": "Pending"}});
    operator.may(&merge(format!("{}/status", desktop("kept")), beside)).await?;
    let host = json!({"metadata": {"ownerReferences": nobody()}, "status": {"host": {"simulated": true}}});
    daemon.may(&merge(gpunode("kept-node/status"), host)).await?;

    let limit = Duration::from_mins(1);
    admin.may(&owned(gpunode("lost-node"))).await?;
    admin.may(&owned(desktop("lost"))).await?;
    until_gone(&Api::<GpuNode>::all(cluster.client().clone()), "lost-node", limit).await?;
    until_gone(&objects.desktops(), "lost", limit).await?;
    let node = admin.may(&get(gpunode("kept-node"))).await?;
    ensure!(node["spec"]["cordoned"] == true && node["metadata"]["ownerReferences"].is_null(), "{node:#}");
    let kept = admin.may(&get(desktop("kept"))).await?;
    ensure!(kept["metadata"]["ownerReferences"].is_null(), "{kept:#}");
    Ok(())
}

/// What a program makes, as it makes it.
struct Made {
    who: &'static str,
    folder: String,
    body: Value,
}

impl Made {
    fn with(&self, field: &str, value: Value) -> Ask {
        let mut body = self.body.clone();
        body["metadata"][field] = value;
        create(&self.folder, body)
    }
}

pub(crate) async fn made(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("made").await?;
    let (operator, daemon) = (Person::operator(&cluster).await?, Person::daemon(&cluster, "made-a").await?);
    let name = "gpudesk-node-made-a";
    let of = |group: &str, namespace: &str, plural: &str| {
        format!("/apis/{group}/v1/namespaces/{namespace}/{plural}")
    };
    let marked = |mut body: Value| {
        body["metadata"]["labels"] = json!({"gpudesk.dev/node": "made-a"});
        body
    };
    let lease = |name: &str| {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 180},
        })
    };
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}, "automountServiceAccountToken": false,
    });
    let rbac = "rbac.authorization.k8s.io";
    let leases = of("coordination.k8s.io", SYSTEM_NAMESPACE, "leases");
    let mut node = object("GpuNode", "made-a", json!({"spec": {}}));
    node["metadata"]["labels"] = json!({"gpudesk.dev/simulated": "false"});
    let accounts = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/serviceaccounts");
    let all = [
        Made { who: "daemon", folder: "/apis/gpudesk.dev/v1alpha1/gpunodes".into(), body: node },
        Made { who: "daemon", folder: leases.clone(), body: marked(lease(name)) },
        Made { who: "operator", folder: leases, body: lease("gpudesk-operator") },
        Made { who: "operator", folder: accounts, body: marked(account) },
        Made {
            who: "operator",
            folder: of(rbac, &namespace, "roles"),
            body: marked(role(name, &reading(&["a"]))),
        },
        Made {
            who: "operator",
            folder: of(rbac, &namespace, "rolebindings"),
            body: marked(binding(name, name, &[name])),
        },
    ];
    let own = |node: &str, more: Value| {
        let mut owner = nobody()[0].clone();
        owner["apiVersion"] = "gpudesk.dev/v1alpha1".into();
        owner["kind"] = "GpuNode".into();
        owner["name"] = node.into();
        for (field, value) in more.as_object().into_iter().flatten() {
            owner[field] = value.clone();
        }
        json!([owner])
    };
    for made in &all {
        let person = if made.who == "daemon" { &daemon } else { &operator };
        person.may(&create(format!("{}?dryRun=All", made.folder), made.body.clone())).await?;
        let mut labels = made.body["metadata"]["labels"].clone();
        labels["rack"] = "a1".into();
        for (field, value, words) in [
            // Roles and accounts have an owner, but no other than their GpuNode.
            ("ownerReferences", nobody(), ""),
            ("finalizers", json!(["example.org/keep"]), "finalizers"),
            ("annotations", json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/a"}), "annotations"),
            ("labels", labels, "may not write"),
        ] {
            person.may_not(&made.with(field, value), words).await?;
        }
        if made.folder == all[2].folder || made.who == "daemon" {
            continue;
        }
        let mut dry = made.with("ownerReferences", own("made-a", json!({})));
        dry.path.push_str("?dryRun=All");
        operator.may(&dry).await?;
        for other in [
            own("made-b", json!({})),
            own("made-a", json!({"blockOwnerDeletion": true})),
            own("made-a", json!({"controller": true})),
        ] {
            operator.may_not(&made.with("ownerReferences", other), "may name no owner of the").await?;
        }
        if made.body["kind"] == "Role" {
            // What is bound next has to be there.
            operator.may(&create(&made.folder, made.body.clone())).await?;
        }
    }
    let mut account = all[3].body.clone();
    account["secrets"] = json!([{"name": "a"}]);
    operator.may_not(&create(&all[3].folder, account), "may name no Secrets in a ServiceAccount").await?;
    // The sign of life of a node is the node's.
    let of_a_node = create(&all[2].folder, lease(name));
    operator.may_not(&of_a_node, "may only write the Lease gpudesk-operator").await
}

/// Two managers of one list of conditions, each with its own.
pub(crate) async fn heard(cluster: Arc<Cluster>) -> Result<()> {
    let (admin, operator) = (Person::admin(&cluster), Person::operator(&cluster).await?);
    let daemon = Person::daemon(&cluster, "heard-a").await?;
    let (node, status) = (gpunode("heard-a"), gpunode("heard-a/status"));
    admin.may(&apply(&node, object("GpuNode", "heard-a", json!({"spec": {}})))).await?;
    let says = |manager: &str, parts: Value| {
        let mut ask = apply(&status, object("GpuNode", "heard-a", json!({"status": parts})));
        ask.path = format!("{status}?fieldManager={manager}&force=true");
        ask
    };
    // Before the daemon's first word as well as after it.
    operator.may(&says("gpudesk-operator", json!({"conditions": [condition("DaemonHeard", "a")]}))).await?;
    let own = |message: &str| json!({"host": {"simulated": true}, "conditions": [condition("Ready", message), condition("KvmUsable", "")]});
    daemon.may(&says("gpudesk-node-daemon", own("a"))).await?;
    let both = json!([condition("DaemonHeard", "b"), condition("CardsUnpublished", "b")]);
    operator.may(&says("gpudesk-operator", json!({"conditions": both}))).await?;
    let after = daemon.may(&says("gpudesk-node-daemon", own("b"))).await?;
    let mut said: Vec<_> = after["status"]["conditions"]
        .as_array()
        .context("no conditions")?
        .iter()
        .map(|condition| {
            (
                condition["type"].as_str().unwrap_or_default(),
                condition["message"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    said.sort_unstable();
    let expected = [("CardsUnpublished", "b"), ("DaemonHeard", "b"), ("KvmUsable", ""), ("Ready", "b")];
    ensure!(said == expected, "{said:?}");

    let words = "may write nothing of a GpuNode but the conditions DaemonHeard and CardsUnpublished";
    for parts in [
        json!({"conditions": [condition("DaemonHeard", "b"), condition("Ready", "by the operator")]}),
        json!({"conditions": [condition("DaemonHeard", "b"), condition("VfioReady", "")]}),
        json!({"conditions": [condition("DaemonHeard", "b")], "host": {"simulated": false}}),
        json!({"conditions": [condition("DaemonHeard", "b")], "missing": ["all"]}),
    ] {
        operator.may_not(&says_dry(&status, &parts), words).await?;
    }
    operator.may_not(&merge(&status, json!({"status": {"conditions": []}})), words).await?;
    operator.may_not(&merge(&status, json!({"status": null})), words).await?;
    for patch in [json!({"spec": {"cordoned": true}}), json!({"metadata": {"labels": {"a": "b"}}})] {
        operator.may_not(&merge(&node, patch), "cannot patch resource").await?;
    }
    let words = "may not write the conditions DaemonHeard and CardsUnpublished of a GpuNode";
    for operators in ["DaemonHeard", "CardsUnpublished"] {
        let mine = json!({"conditions": [condition(operators, "by me")]});
        daemon.may_not(&says_dry(&status, &mine), words).await?;
    }
    let without = json!({"status": {"conditions": [condition("Ready", "b"), condition("KvmUsable", "")]}});
    daemon.may_not(&merge(&status, without), words).await
}

/// Applies, with force, under a name that nobody has yet.
fn says_dry(status: &str, parts: &Value) -> Ask {
    apply(status, object("GpuNode", "heard-a", json!({"status": parts})))
}
