//! What the daemon of one node may do with the account that all share.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::objects::Objects;
use serde_json::{Value, json};

use crate::ask::{Person, allocation, apply, condition, create, delete, gpunode, merge, namespaced, object};

pub(crate) async fn nodes(cluster: Arc<Cluster>) -> Result<()> {
    let daemon = Person::daemon(&cluster, "own-a").await?;
    let admin = Person::admin(&cluster);
    let node = |name: &str, parts: Value| object("GpuNode", name, parts);

    // It makes its own node, and no other; of a spec it says then what keeps desktops away, and no more.
    let make = |spec: Value| {
        let of = node("own-a", json!({"spec": spec}));
        [create(format!("{}?dryRun=All", gpunode("")), of.clone()), apply(gpunode("own-a"), of)]
    };
    let closing = json!({
        "cordoned": true, "taints": [{"key": "exam"}], "housekeeping": {"coresPerNumaCell": 2},
        "devices": [{"name": "a", "selector": {"uuid": "u"}, "management": "Unmanaged"}],
    });
    daemon.may(&make(closing.clone())[0]).await?;
    for part in [
        json!({"outOfService": true}),
        json!({"outOfService": false}),
        json!({"drain": {"deadlineSeconds": 1}}),
        json!({"physicalNetworks": [{"name": "lab", "devices": ["0000:81:00.0"]}]}),
        json!({"nvmeDrives": [{"name": "a", "selector": {"serial": "S1"}, "erase": "Format"}]}),
        json!({"strays": [{"uid": "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01", "action": "PowerOff"}]}),
        json!({"leftovers": [{"name": "a.1", "action": "Erase"}]}),
        json!({"removeOrphansBefore": "2026-01-01T00:00:00Z"}),
        json!({"adoptFromCluster": "a"}),
    ] {
        let mut spec = closing.clone();
        spec.as_object_mut().context("a spec")?.extend(part.as_object().cloned().unwrap_or_default());
        for made in [make(part), make(spec)].iter().flatten() {
            daemon.may_not(made, "may not write the spec").await?;
        }
    }
    let words = "the daemon of node own-a may not write GpuNode own-b";
    daemon.may_not(&apply(gpunode("own-b"), node("own-b", json!({"spec": {}}))), words).await?;
    daemon.may_not(&create(gpunode(""), node("own-b", json!({"spec": {}}))), words).await?;
    let labelled = |labels: Value| json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode", "metadata": {"name": "own-a", "labels": labels}, "spec": {}});
    daemon
        .may_not(
            &apply(gpunode("own-a"), labelled(json!({"rack": "a1"}))),
            "may not write the label rack of a GpuNode",
        )
        .await?;
    daemon.may(&apply(gpunode("own-a"), labelled(json!({"gpudesk.dev/simulated": "true"})))).await?;

    // From then on it writes the status and labels of its own.
    let status = |name: &str| node(name, json!({"status": {"host": {"simulated": true}}}));
    daemon.may(&apply(gpunode("own-a/status"), status("own-a"))).await?;
    for (index, bad) in [
        json!({"waitingFor": {"what": "a\u{1b}[2J", "since": "2026-01-01T00:00:00Z"}}),
        json!({"foreign": [{"device": "0000:41:00.0", "what": "a\u{9b}2J"}]}),
    ]
    .into_iter()
    .enumerate()
    {
        let mut card = json!({
            "pciAddress": "0000:41:00.0", "vendorId": "10de", "deviceId": "26b9", "class": "0302", "product": "NVIDIA L40S",
            "health": {"state": "Healthy"},
        });
        card.as_object_mut().context("a card")?.extend(bad.as_object().cloned().unwrap_or_default());
        let told = node("own-a", json!({"status": {"host": {"simulated": true}, "devices": [card]}}));
        // YAML has no such characters, JSON has.
        let ask = merge(gpunode("own-a/status"), told);
        daemon.may_not(&ask, "no control characters").await.with_context(|| format!("trial {index}"))?;
    }
    admin
        .may(&merge(
            gpunode("own-a"),
            json!({"spec": {"cordoned": true}, "metadata": {"labels": {"rack": "a1"}}}),
        ))
        .await?;
    daemon.may(&apply(gpunode("own-a"), labelled(json!({"gpudesk.dev/simulated": "false"})))).await?;
    daemon
        .may_not(&merge(gpunode("own-a"), json!({"spec": {"cordoned": null}})), "may not write the spec")
        .await?;
    for labels in [json!({"rack": "b2"}), json!({"rack": null})] {
        let patch = merge(gpunode("own-a"), json!({"metadata": {"labels": labels}}));
        daemon.may_not(&patch, "may not write the label rack of a GpuNode").await?;
    }
    // What was made by hand is handed over by an admin, never by the node itself.
    let adopt = json!({gpudesk_crds::ADOPT_ANNOTATION: "0000:41:00.0"});
    let adopting = merge(gpunode("own-a"), json!({"metadata": {"annotations": adopt}}));
    daemon.may_not(&adopting, "may not write metadata.annotations of a GpuNode").await?;
    admin.may(&adopting).await?;
    let other = json!({gpudesk_crds::ADOPT_ANNOTATION: null});
    let other = merge(gpunode("own-a"), json!({"metadata": {"annotations": other}}));
    daemon.may_not(&other, "may not write metadata.annotations of a GpuNode").await?;
    let finalizer = merge(gpunode("own-a"), json!({"metadata": {"finalizers": ["example.org/a"]}}));
    daemon.may_not(&finalizer, "may not write metadata.finalizers of a GpuNode").await?;
    daemon.may_not(&delete(gpunode("own-a")), "cannot delete resource").await?;

    admin.may(&apply(gpunode("own-b"), node("own-b", json!({"spec": {}})))).await?;
    daemon.may_not(&apply(gpunode("own-b/status"), status("own-b")), words).await?;
    let other = Person::daemon(&cluster, "own-b").await?;
    other.may(&apply(gpunode("own-b/status"), status("own-b"))).await?;
    Ok(())
}

pub(crate) async fn desktops(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("daemon").await?;
    let objects = Objects::new(cluster.client(), &namespace);
    let (admin, daemon) = (Person::admin(&cluster), Person::daemon(&cluster, "run-a").await?);
    let desktop = |name: &str| namespaced(&namespace, &format!("desktops/{name}"));
    let status = |name: &str| namespaced(&namespace, &format!("desktops/{name}/status"));
    for name in ["here", "there", "nowhere"] {
        objects.desktop(name, "{templateRef: {name: t}}").await?;
    }
    for (name, node) in [("here", "run-a"), ("there", "run-b")] {
        let decided = json!({
            "allocation": allocation(node), "gpuSummary": "1x A", "conditions": [condition("Allocated", "decided")],
        });
        admin.may(&merge(status(name), json!({"status": decided}))).await?;
    }

    let runs = |name: &str| {
        object(
            "Desktop",
            name,
            json!({"status": {"phase": "Running", "conditions": [condition("Running", "")]}}),
        )
    };
    let after = daemon.may(&apply(status("here"), runs("here"))).await?;
    ensure!(after["status"]["conditions"].as_array().map(Vec::len) == Some(2), "{after:#}");
    daemon.may_not(&apply(status("there"), runs("there")), "which is allocated to node run-b").await?;
    daemon.may_not(&apply(status("nowhere"), runs("nowhere")), "which is allocated to no node").await?;

    // It speaks of the decision that holds, and of no other.
    let word = |id: &str| {
        merge(status("here"), json!({"status": {"node": {"allocationId": id, "state": "Running"}}}))
    };
    daemon.may_not(&word("1-00000001"), "and the decision that holds is one without an id").await?;
    let decided = |id: &str| merge(status("here"), json!({"status": {"allocation": {"id": id}}}));
    admin.may(&decided("1-00000001")).await?;
    daemon.may(&word("1-00000001")).await?;
    for other in ["2-00000001", "1-00000002"] {
        daemon.may_not(&word(other), "and the decision that holds is 1-00000001").await?;
    }
    admin.may(&decided("2-00000002")).await?;
    let late = json!({"status": {"node": {"allocationId": "1-00000001", "state": "Stopped"}}});
    daemon.may_not(&merge(status("here"), late), "and the decision that holds is 2-00000002").await?;
    // One that says nothing of it is of a version without ids.
    daemon.may(&merge(status("here"), json!({"status": {"phase": "Running", "node": null}}))).await?;

    // Not even of its own desktop does it write what the operator decides.
    let parts = [
        (json!({"allocation": {"node": "run-b", "id": "3-00000003"}}), "status.allocation"),
        (json!({"allocation": {"compute": {"cores": 64}}}), "status.allocation"),
        (json!({"allocation": {"compute": null}}), "status.allocation"),
        (json!({"allocation": null}), "status.allocation"),
        (json!({"gpuSummary": "8x A"}), "status.gpuSummary"),
        (json!({"lastPlacement": {"node": "run-a"}}), "status.lastPlacement"),
    ];
    for (part, field) in parts {
        let patch = merge(status("here"), json!({"status": part}));
        daemon.may_not(&patch, &format!("a node daemon may not write {field} of a Desktop")).await?;
    }
    for conditions in [
        json!([condition("Running", ""), condition("Allocated", "by me")]),
        json!([condition("Running", "")]),
        json!([
            condition("Running", ""),
            condition("Allocated", "decided"),
            condition("RestartRequired", "")
        ]),
    ] {
        let patch = merge(status("here"), json!({"status": {"conditions": conditions}}));
        daemon.may_not(&patch, "a node daemon may not write the condition").await?;
    }
    // To take a desktop that is allocated elsewhere, or nowhere.
    for name in ["there", "nowhere"] {
        let patch = merge(status(name), json!({"status": {"allocation": allocation("run-a")}}));
        daemon.may_not(&patch, "which is allocated to").await?;
    }
    // Without CPUs, phase and Ready are the operator's.
    admin.may(&merge(status("here"), json!({"status": {"allocation": {"compute": null}}}))).await?;
    for part in [
        json!({"phase": "Stopped"}),
        json!({"conditions": [condition("Allocated", "decided"), condition("Ready", "")]}),
    ] {
        let patch = merge(status("here"), json!({"status": part}));
        daemon.may_not(&patch, "may not write status.phase and the condition Ready").await?;
    }
    daemon
        .may_not(&merge(desktop("here"), json!({"spec": {"powerState": "Stopped"}})), "cannot patch resource")
        .await?;
    daemon.may_not(&delete(desktop("here")), "cannot delete resource").await?;
    Ok(())
}

fn lease_path(name: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM_NAMESPACE}/leases/{name}")
}

fn lease(name: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 180},
    })
}

pub(crate) async fn leases(cluster: Arc<Cluster>) -> Result<()> {
    let daemon = Person::daemon(&cluster, "lease-a").await?;
    let (own, others) = ("gpudesk-node-lease-a", "gpudesk-node-lease-b");
    daemon.may(&apply(lease_path(own), lease(own))).await?;
    daemon.may(&merge(lease_path(own), json!({"spec": {"leaseTransitions": 1}}))).await?;
    for (patch, words) in [
        (json!({"spec": {"holderIdentity": "h".repeat(257)}}), "has more than 256 characters"),
        (json!({"metadata": {"annotations": {"a": "b"}}}), "may not write metadata.annotations of a Lease"),
        (json!({"metadata": {"labels": {"a": "b"}}}), "may not write the label a of a Lease"),
    ] {
        daemon.may_not(&merge(lease_path(own), patch), words).await?;
    }
    let words = "may only write the Lease gpudesk-node-lease-a";
    daemon.may_not(&apply(lease_path(others), lease(others)), words).await?;
    daemon.may_not(&create(lease_path(""), lease("gpudesk-operator")), words).await?;
    Person::admin(&cluster).may(&apply(lease_path(others), lease(others))).await?;
    daemon.may_not(&merge(lease_path(others), json!({"spec": {"leaseTransitions": 1}})), words).await?;
    let elsewhere = lease_path(own).replace(SYSTEM_NAMESPACE, "kube-system");
    daemon.may_not(&apply(elsewhere, lease(own)), "cannot patch resource").await
}

/// An Event as a daemon tells it of a card.
fn card_event(node: &str) -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": format!("{node}.a"), "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "gpudesk-node-daemon", "reportingInstance": node,
        "action": "Quarantine", "reason": "CardQuarantined", "type": "Warning", "note": "0000:41:00.0 is given to nobody",
        "regarding": {"apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode", "name": node},
    })
}

pub(crate) async fn events(cluster: Arc<Cluster>) -> Result<()> {
    let daemon = Person::daemon(&cluster, "event-a").await?;
    let path = |namespace: &str| format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    daemon.may(&create(path("default"), card_event("event-a"))).await?;
    daemon
        .may_not(&create(path("default"), card_event("event-b")), "may only create Events about GpuNode")
        .await?;
    for (field, value, words) in [
        ("/regarding/kind", json!("Node"), "may only create Events about GpuNode event-a"),
        ("/regarding/apiVersion", json!("v1"), "may only create Events about GpuNode event-a"),
        ("/regarding/name", json!("event-b"), "may only create Events about GpuNode event-a"),
        ("/reason", json!("NodeReady"), "has the reason CardQuarantined or CardReturned"),
        ("/reportingController", json!("kubelet"), "has the reason CardQuarantined or CardReturned"),
        ("/reportingInstance", json!("event-b"), "has the reason CardQuarantined or CardReturned"),
    ] {
        let mut event = card_event("event-a");
        *event.pointer_mut(field).context("a field")? = value;
        daemon.may_not(&create(path("default"), event), words).await?;
    }
    // Nothing of an Event may grow without bound, or hide what it says.
    let long = "u".repeat(1000);
    let series = json!({"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000000Z"});
    let of = |field: &str, value: Value| {
        let mut event = card_event("event-a");
        event["regarding"][field] = value;
        event
    };
    let with = |field: &str, value: Value| {
        let mut event = card_event("event-a");
        event[field] = value;
        event
    };
    for (event, words) in [
        (of("fieldPath", json!(long)), "has no regarding.fieldPath"),
        (of("resourceVersion", json!(long)), "has no regarding.resourceVersion"),
        (of("namespace", json!("default")), "has no regarding.namespace"),
        (of("uid", json!(long)), "a regarding.uid of at most 36"),
        (of("apiVersion", json!("gpudesk.dev/v9")), "may only create Events about GpuNode event-a"),
        (with("series", series), "has no series"),
        (with("note", json!("a\u{1b}[2J")), "without control characters"),
    ] {
        daemon.may_not(&create(path("default"), event), words).await?;
    }
    let fields = json!({"f:metadata": {"f:labels": {format!("f:{long}"): {}}}});
    let entry = json!({
        "manager": "a", "operation": "Update", "apiVersion": "events.k8s.io/v1", "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": fields,
    });
    let mut grown = card_event("event-a");
    grown["metadata"]["managedFields"] = json!([entry]);
    let words = "may write no entry of metadata.managedFields of an Event";
    daemon.may_not(&create(path("default"), grown), words).await?;
    let mut whole = card_event("event-a");
    whole["metadata"]["name"] = "event-a.whole".into();
    whole["regarding"]["uid"] = "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01".into();
    whole["note"] = "é".repeat(512).into();
    daemon.may(&create(path("default"), whole)).await?;
    let mut related = card_event("event-a");
    related["related"] = json!({"kind": "Node", "name": "event-a"});
    daemon.may_not(&create(path("default"), related), "may only create Events about GpuNode event-a").await?;
    let mut labelled = card_event("event-a");
    labelled["metadata"]["labels"] = json!({"a": "b"});
    daemon.may_not(&create(path("default"), labelled), "may not write metadata.labels of a Event").await?;
    let mut elsewhere = card_event("event-a");
    elsewhere["metadata"]["namespace"] = SYSTEM_NAMESPACE.into();
    daemon.may_not(&create(path(SYSTEM_NAMESPACE), elsewhere), "cannot create resource").await?;
    let one = format!("{}/event-a.a", path("default"));
    daemon.may_not(&delete(one.clone()), "cannot delete resource").await?;
    daemon.may_not(&merge(one, json!({"note": "b"})), "cannot patch resource").await?;
    let core = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "event-a.b", "namespace": "default"},
        "involvedObject": {"apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode", "name": "event-a"},
    });
    daemon.may_not(&create("/api/v1/namespaces/default/events", core), "cannot create resource").await
}

/// Asks for a token of an account in the namespace of gpudesk.
pub(crate) fn token_request(account: &str, node: &str) -> crate::ask::Ask {
    let path = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/serviceaccounts/{account}/token");
    let bound = json!({"apiVersion": "v1", "kind": "Node", "name": node});
    create(
        path,
        json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [], "boundObjectRef": bound},
        }),
    )
}

pub(crate) async fn tokens(cluster: Arc<Cluster>) -> Result<()> {
    let daemon = Person::daemon(&cluster, "token-a").await?;
    let operator = Person::operator(&cluster).await?;
    for name in ["gpudesk-node-token-a", "gpudesk-node-token-b"] {
        operator.may(&account(name)).await?;
    }
    daemon.may(&token_request("gpudesk-node-token-a", "token-a")).await?;
    let words = "may only request tokens of the service account gpudesk-node-token-a";
    for other in ["gpudesk-node-token-b", "gpudesk-operator", "gpudesk-node-daemon", "default"] {
        daemon.may_not(&token_request(other, "token-a"), words).await?;
    }
    // A node of this name would have the account of all daemons for its own.
    let mut longer = token_request("gpudesk-node-token-a", "token-a");
    longer.body["spec"]["expirationSeconds"] = 86400.into();
    for loose in [token_request("gpudesk-node-token-a", "token-b"), longer] {
        daemon.may_not(&loose, "must be bound to Node token-a (spec.boundObjectRef) and end within").await?;
    }
    let odd = Person::daemon(&cluster, "daemon").await?;
    odd.may_not(&token_request("gpudesk-node-daemon", "daemon"), "may only request tokens").await?;

    // The policy of an admin who says which audiences there are, beside that of everybody else here.
    let chart =
        crate::chart::template(&cluster, &[r#"admission.apiAudiences=["https://kubernetes.default.svc"]"#])?;
    let named = |part: &&str| part.contains("name: node-daemon-tokens.gpudesk.dev");
    let policy: Vec<&str> = chart.split("\n---").filter(named).collect();
    let policy = policy.join("\n---").replace("node-daemon-tokens.gpudesk.dev", "audiences.example.org");
    let file = cluster.state().join("audiences.yaml");
    std::fs::write(&file, policy)?;
    cluster.kubectl([std::ffi::OsString::from("apply"), "-f".into(), file.into()])?;
    let mut elsewhere = token_request("gpudesk-node-token-a", "token-a");
    elsewhere.body["spec"]["audiences"] = json!(["https://vault.example"]);
    daemon.may_not(&elsewhere, "is for the API server alone").await?;
    daemon.may(&token_request("gpudesk-node-token-a", "token-a")).await?;
    Ok(())
}

/// Creates a service account in the namespace of gpudesk.
pub(crate) fn account(name: &str) -> crate::ask::Ask {
    let body = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    create(format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/serviceaccounts"), body)
}

pub(crate) async fn unbound(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("unbound").await?;
    let objects = Objects::new(cluster.client(), &namespace);
    objects.desktop("a", "{templateRef: {name: t}}").await?;
    let admin = Person::admin(&cluster);
    let status = namespaced(&namespace, "desktops/a/status");
    admin.may(&apply(gpunode("unbound-a"), object("GpuNode", "unbound-a", json!({"spec": {}})))).await?;
    admin.may(&merge(status.clone(), json!({"status": {"allocation": allocation("unbound-a")}}))).await?;

    let nobody = Person::daemon_of_no_node(&cluster).await?;
    for write in [
        apply(gpunode("unbound-b"), object("GpuNode", "unbound-b", json!({"spec": {}}))),
        merge(gpunode("unbound-a"), json!({"metadata": {"labels": {"gpudesk.dev/simulated": "true"}}})),
        apply(
            gpunode("unbound-a/status"),
            object("GpuNode", "unbound-a", json!({"status": {"summary": null}})),
        ),
        merge(status, json!({"status": {"phase": "Running"}})),
        create(lease_path(""), lease("gpudesk-node-unbound-a")),
        apply(lease_path("gpudesk-node-unbound-a"), lease("gpudesk-node-unbound-a")),
        create(lease_path(""), lease("gpudesk-node-0")),
        token_request("gpudesk-operator", "unbound-a"),
        token_request("gpudesk-node-daemon", "unbound-a"),
        create("/apis/events.k8s.io/v1/namespaces/default/events", card_event("unbound-a")),
    ] {
        nobody.may_not(&write, "the token of this node daemon names no node").await?;
    }
    Ok(())
}
