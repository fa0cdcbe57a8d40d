//! Limits of a namespace that those who live in it do not set: how high a priority may be, and whether
//! first-boot configuration may stand in the open.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use gpudesk_e2e::cluster::Cluster;
use serde_json::{Value, json};

use crate::ask::{Person, apply, create, get, merge, namespaced, object, replace};
use crate::people::{give, knows};

fn desktop(name: &str, parts: &Value) -> Value {
    let mut spec = json!({"templateRef": {"name": "t"}});
    if let (Some(spec), Some(parts)) = (spec.as_object_mut(), parts.as_object()) {
        spec.extend(parts.clone());
    }
    object("Desktop", name, json!({"spec": spec}))
}

pub(crate) async fn priority(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("priority").await?;
    let admin = Person::admin(&cluster);
    give(&cluster, "prio", "edit", Some(&namespace)).await?;
    give(&cluster, "prio-all", "cluster-admin", Some(&namespace)).await?;
    let (user, all) = (Person::user(&cluster, "prio"), Person::user(&cluster, "prio-all"));
    let (desktops, one) = (namespaced(&namespace, "desktops"), namespaced(&namespace, "desktops/a"));
    knows(&user, &desktops).await?;
    knows(&all, &desktops).await?;
    let with = |name: &str, priority: i64| create(&desktops, desktop(name, &json!({"priority": priority})));
    let to = |priority: i64| merge(&one, json!({"spec": {"priority": priority}}));

    // Nobody of the namespace is above 0 unless its label says so, whatever rights he has there.
    let words = format!("spec.priority is 1000000; namespace {namespace} allows at most 0");
    for person in [&user, &all] {
        person.may_not(&with("a", 1_000_000), &words).await?;
    }
    user.may(&with("low", -5)).await?;
    user.may(&with("a", 0)).await?;
    user.may_not(&to(1), "allows at most 0").await?;
    let whole = format!("/api/v1/namespaces/{namespace}");
    let labelled = |label: &str, value: &str| json!({"metadata": {"labels": {label: value}}});
    let label = |value: &str| merge(&whole, labelled("gpudesk.dev/max-priority", value));
    let words = "only with the right to override-limits";
    all.may_not(&label("1000000"), words).await?;
    // Nor beside its status or its finalizers, with which other labels are written.
    let (status, finalize) = (format!("{whole}/status"), format!("{whole}/finalize"));
    for (name, allowed) in
        [("team", true), ("gpudesk.dev/max-priority", false), ("gpudesk.dev/inline-user-data", false)]
    {
        let mut body = all.may(&get(&whole)).await?;
        body["metadata"]["labels"][name] = "100".into();
        for ask in [merge(&status, labelled(name, "100")), replace(&finalize, body)] {
            if allowed {
                all.may(&ask.dry()).await?;
            } else {
                all.may_not(&ask, words).await?;
            }
        }
    }
    for (name, wrong, right) in [
        ("gpudesk.dev/max-priority", "high", "write a whole number from 0 to 1000000"),
        ("gpudesk.dev/max-priority", "1000001", "write a whole number from 0 to 1000000"),
        ("gpudesk.dev/max-priority", "1.5", "write a whole number from 0 to 1000000"),
        ("gpudesk.dev/inline-user-data", "Deny", "is \"Deny\"; write deny, or leave it out"),
        ("gpudesk.dev/inline-user-data", "", "is \"\"; write deny, or leave it out"),
        (
            "gpudesk.dev/max-prority",
            "5",
            "has gpudesk.dev/max-prority, which gpudesk does not know of a namespace; write gpudesk.dev/max-priority or \
             gpudesk.dev/inline-user-data",
        ),
    ] {
        let said = admin.try_ask(&merge(&whole, labelled(name, wrong))).await?.err();
        ensure!(
            said.as_ref().is_some_and(|(code, words)| *code == 422 && words.contains(right)),
            "{name}={wrong}: {said:?}"
        );
    }
    let clear = json!({"metadata": {"labels": {"gpudesk.dev/inline-user-data": null}}});
    admin.may(&merge(&whole, labelled("gpudesk.dev/inline-user-data", "deny"))).await?;
    admin.may(&merge(&whole, clear)).await?;
    admin.may(&label("100")).await?;
    all.may(&merge(&whole, labelled("team", "a"))).await?;
    user.may_not(&to(101), "allows at most 100").await?;
    user.may(&to(100)).await?;

    // An administrator of the cluster may go above, and what stands can be changed otherwise.
    admin.may(&to(5000)).await?;
    user.may(&merge(&one, json!({"spec": {"powerState": "Stopped"}}))).await?;
    Person::operator(&cluster)
        .await?
        .may(&merge(&one, json!({"metadata": {"finalizers": ["gpudesk.dev/release"]}})))
        .await?;
    user.may_not(&to(5001), "allows at most 100").await?;
    user.may(&to(4000)).await?;
    user.may(&to(-1)).await?;
    user.may_not(&to(4000), "allows at most 100").await
}

pub(crate) async fn host_networks(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("bridges").await?;
    give(&cluster, "bridger", "admin", Some(&namespace)).await?;
    let (admin, user) = (Person::admin(&cluster), Person::user(&cluster, "bridger"));
    let templates = namespaced(&namespace, "desktoptemplates");
    knows(&user, &templates).await?;
    let template = |name: &str, networks: &Value| {
        let machine = json!({"firmware": "DirectKernel", "directKernel": {"kernel": "a"}});
        let spec = json!({
            "cpu": {"cores": 1}, "memory": {"sizeMiB": 64}, "machine": machine, "networks": networks,
        });
        create(&templates, object("DesktopTemplate", name, json!({"spec": spec})))
    };
    let out = json!([{"name": "out", "user": {}}]);
    let bridge = json!([{"name": "out", "user": {}}, {"name": "host", "bridge": {"name": "cni0"}}]);
    let network = json!([{"name": "host", "libvirtNetwork": {"name": "default"}}]);
    user.may_not(&template("a", &bridge), "spec.networks names bridge/cni0;").await?;
    user.may_not(&template("a", &network), "spec.networks names libvirtNetwork/default;").await?;
    for (kind, words) in [
        (json!({"name": "host", "ovs": {"name": "br0"}}), "spec.networks names ovs/br0;"),
        (json!({"name": "host", "sriov": {"physicalNetwork": "mgmt"}}), "spec.networks names sriov/mgmt;"),
    ] {
        user.may_not(&template("a", &json!([kind])), words).await?;
        admin.may(&template("a", &json!([kind])).dry()).await?;
    }
    user.may(&template("mine", &out)).await?;
    let mine = namespaced(&namespace, "desktoptemplates/mine");
    user.may_not(&merge(&mine, json!({"spec": {"networks": bridge}})), "names bridge/cni0;").await?;

    // What an administrator has put there stays, and can be changed otherwise.
    admin.may(&template("given", &bridge)).await?;
    let given = namespaced(&namespace, "desktoptemplates/given");
    user.may(&merge(&given, json!({"spec": {"cpu": {"cores": 2}}}))).await?;
    user.may_not(&merge(&given, json!({"spec": {"networks": network}})), "libvirtNetwork/default").await
}

pub(crate) async fn inline(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("inline").await?;
    let admin = Person::admin(&cluster);
    give(&cluster, "inliner", "admin", Some(&namespace)).await?;
    let user = Person::user(&cluster, "inliner");
    let (desktops, templates) =
        (namespaced(&namespace, "desktops"), namespaced(&namespace, "desktoptemplates"));
    knows(&user, &templates).await?;

    let inline = |text: &str| json!({"inline": {"userData": text}});
    let template = |name: &str, cloud_init: Value| {
        let disks = json!([{"name": "system", "image": {"name": "debian-12"}}]);
        let spec = json!({"memory": {"sizeMiB": 1024}, "disks": disks, "cloudInit": cloud_init});
        create(&templates, object("DesktopTemplate", name, json!({"spec": spec})))
    };
    let override_ = |name: &str, cloud_init: Value| {
        create(&desktops, desktop(name, &json!({"overrides": {"cloudInit": cloud_init}})))
    };
    let secret = json!({"secretRef": {"name": "seed"}});

    // A warning, and it is accepted.
    for (ask, field) in [
        (template("a", inline("x")), "spec.cloudInit"),
        (override_("a", inline("x")), "spec.overrides.cloudInit"),
    ] {
        let warnings = user.warnings(&ask).await?;
        let words = format!("{field}.inline can be read on every node of the cluster");
        ensure!(
            warnings
                .iter()
                .any(|warning| warning.contains(&words) && warning.contains(&format!("{field}.secretRef"))),
            "{warnings:?}"
        );
    }
    for ask in [template("b", secret.clone()), override_("b", secret)] {
        let warnings = user.warnings(&ask).await?;
        ensure!(warnings.is_empty(), "{warnings:?}");
    }

    // In namespaces that an admin names it is refused; what stands may be changed otherwise.
    let label = json!({"metadata": {"labels": {"gpudesk.dev/inline-user-data": "deny"}}});
    admin.may(&merge(format!("/api/v1/namespaces/{namespace}"), label)).await?;
    for ask in [
        template("c", inline("x")),
        override_("c", inline("x")),
        merge(format!("{templates}/a"), json!({"spec": {"cloudInit": inline("y")}})),
        merge(
            format!("{desktops}/a"),
            json!({"spec": {"overrides": {"cloudInit": {"inline": {"networkData": "y"}}}}}),
        ),
    ] {
        user.may_not(&ask, "put it into a Secret").await?;
        admin.may_not(&ask, "put it into a Secret").await?;
    }
    for ask in [
        merge(format!("{templates}/a"), json!({"spec": {"memory": {"sizeMiB": 2048}}})),
        merge(format!("{desktops}/a"), json!({"spec": {"powerState": "Stopped"}})),
        merge(format!("{desktops}/a"), json!({"spec": {"overrides": null}})),
        merge(format!("{templates}/a"), json!({"spec": {"cloudInit": null}})),
    ] {
        let warnings = user.warnings(&ask).await?;
        ensure!(warnings.is_empty(), "{warnings:?}");
    }
    Ok(())
}

/// Who fills objects fills the memory of every program that keeps them.
pub(crate) async fn sizes(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("sizes").await?;
    let admin = Person::admin(&cluster);
    let (desktops, one) = (namespaced(&namespace, "desktops"), namespaced(&namespace, "desktops/a"));
    let labels = |count: usize| -> Value {
        let labels = (0..count).map(|number| (format!("label-{number}"), json!("x")));
        json!({"metadata": {"labels": labels.collect::<serde_json::Map<_, _>>()}})
    };
    let named = |field: &str, count: usize| {
        let entry = |number: usize| match field {
            "finalizers" => json!(format!("example.com/{number}")),
            _ => {
                json!({"apiVersion": "v1", "kind": "Pod", "name": format!("p{number}"), "uid": format!("u{number}")})
            }
        };
        let mut body = desktop("b", &json!({}));
        body["metadata"][field] = (0..count).map(entry).collect();
        create(&desktops, body)
    };
    admin.may(&create(&desktops, desktop("a", &json!({})))).await?;
    admin.may(&merge(&one, labels(64))).await?;
    let said = admin.try_ask(&merge(&one, labels(65))).await?.err();
    let words = "metadata.labels has 65 entries; at most 64 are kept";
    ensure!(said.as_ref().is_some_and(|(code, said)| *code == 422 && said.contains(words)), "{said:?}");
    let annotations = |count: usize| -> Value {
        let annotations = (0..count).map(|number| (format!("example.com/note-{number}"), json!("x")));
        json!({"metadata": {"annotations": annotations.collect::<serde_json::Map<_, _>>()}})
    };
    admin.may(&merge(&one, annotations(64))).await?;
    let said = admin.try_ask(&merge(&one, annotations(65))).await?.err();
    let words = "metadata.annotations has 65 entries; at most 64 are kept";
    ensure!(said.as_ref().is_some_and(|(code, said)| *code == 422 && said.contains(words)), "{said:?}");
    for field in ["finalizers", "ownerReferences"] {
        admin.may(&named(field, 16).dry()).await?;
        let said = admin.try_ask(&named(field, 17).dry()).await?.err();
        let words = format!("metadata.{field} has 17 entries; at most 16");
        ensure!(said.as_ref().is_some_and(|(_, said)| said.contains(&words)), "{said:?}");
    }
    let with = |field: &str, value: Value| {
        let mut body = desktop("c", &json!({}));
        body["metadata"][field] = value;
        create(&desktops, body).dry()
    };
    let owner = |name: String| json!([{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "u"}]);
    let restart = |value: &str| json!({"gpudesk.dev/restartedAt": value});
    admin.may(&with("ownerReferences", owner("n".repeat(1000)))).await?;
    admin.may(&with("annotations", json!({"team.example/notes": "n".repeat(100_000)}))).await?;
    admin.may(&with("annotations", restart("2026-01-31T08:00:00Z"))).await?;
    for (field, value, words) in [
        (
            "ownerReferences",
            owner("n".repeat(1_000_000)),
            "metadata.ownerReferences has more than 1,024 characters",
        ),
        ("finalizers", json!([format!("example.com/{}", "f".repeat(400))]), "metadata.finalizers"),
        (
            "annotations",
            json!({"gpudesk.dev/notes": "n".repeat(1025)}),
            "gpudesk.dev/notes has more than 1,024",
        ),
        ("annotations", restart(&"n".repeat(129)), "takes at most 128 printable ASCII characters"),
        ("annotations", restart("a\u{1}"), "takes at most 128 printable ASCII characters"),
        ("annotations", restart("\u{7f}"), "takes at most 128 printable ASCII characters"),
    ] {
        let said = admin.try_ask(&with(field, value)).await?.err();
        ensure!(said.as_ref().is_some_and(|(_, said)| said.contains(words)), "{words}: {said:?}");
    }
    // The API server bounds the managers that update, and not those that apply.
    admin.may(&create(&desktops, desktop("d", &json!({})))).await?;
    let managed = namespaced(&namespace, "desktops/d");
    for number in 0..=64 {
        let label = json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop", "metadata": {"labels": {"x": "y"}}});
        let mut ask = apply(&managed, label);
        ask.path = ask.path.replace("fieldManager=trial", &format!("fieldManager=m-{number}"));
        let said = admin.try_ask(&ask).await?.err();
        // The first that wrote has an entry of its own, and so has the operator, where one runs.
        ensure!(said.is_none() || number > 56, "manager {number}: {said:?}");
        if let Some((_, said)) = said {
            ensure!(said.contains("metadata.managedFields has 65 entries; at most 64"), "{said}");
            return Ok(());
        }
    }
    bail!("65 managers apply to one object")
}
