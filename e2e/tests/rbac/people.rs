//! What people may do, with the cluster's own roles and beyond them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use gpudesk_e2e::cluster::Cluster;
use gpudesk_e2e::objects::Objects;
use gpudesk_e2e::waiting::eventually;
use serde_json::{Value, json};

use crate::ask::{Person, allocation, create, delete, get, gpunode, merge, namespaced, object};

const TEMPLATE: &str = "{memory: {sizeMiB: 1024}, disks: [{name: system, image: {name: debian-12}}]}";

pub(crate) async fn template_in_use(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("in-use").await?;
    Objects::new(cluster.client(), &namespace).template("office", TEMPLATE).await?;
    let (admin, operator) = (Person::admin(&cluster), Person::operator(&cluster).await?);
    let template = namespaced(&namespace, "desktoptemplates/office");
    let used = |desktops: i32, users: &[&str]| {
        merge(format!("{template}/status"), json!({"status": {"desktops": desktops, "users": users}}))
    };
    for (desktops, users, words) in [
        (1, &["anna"][..], "DesktopTemplate office is in use by 1 desktop: anna; delete them first"),
        (2, &["anna", "ben"], "in use by 2 desktops: anna, ben; delete"),
        (12, &["anna", "ben"], "in use by 12 desktops: anna, ben, ...; delete"),
    ] {
        operator.may(&used(desktops, users)).await?;
        admin.may_not(&delete(&template), words).await?;
        // All of them at once is no way around it.
        admin.may_not(&delete(namespaced(&namespace, "desktoptemplates")), words).await?;
    }
    operator.may(&used(0, &[])).await?;
    admin.may(&delete(&template)).await?;
    Ok(())
}

pub(crate) async fn namespace(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("leaving").await?;
    Objects::new(cluster.client(), &namespace).template("office", TEMPLATE).await?;
    let template = namespaced(&namespace, "desktoptemplates/office");
    let admin = Person::admin(&cluster);
    let status = json!({"status": {"desktops": 1, "users": ["anna"]}});
    admin.may(&merge(format!("{template}/status"), status)).await?;
    admin.may_not(&delete(&template), "is in use").await?;
    cluster.delete_namespace(&namespace).await
}

/// Gives a user a role, in a namespace or everywhere.
pub(crate) async fn give(cluster: &Cluster, user: &str, role: &str, namespace: Option<&str>) -> Result<()> {
    let (kind, path) = match namespace {
        Some(namespace) => ("RoleBinding", format!("namespaces/{namespace}/rolebindings")),
        None => ("ClusterRoleBinding", "clusterrolebindings".to_owned()),
    };
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": format!("{user}-{role}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    let path = format!("/apis/rbac.authorization.k8s.io/v1/{path}");
    Person::admin(cluster).may(&create(path, binding)).await?;
    Ok(())
}

/// Waits until roles that were just given are known everywhere.
pub(crate) async fn knows(person: &Person, path: &str) -> Result<Value> {
    eventually(&format!("{path} can be read"), Duration::from_secs(15), || async {
        Ok(person.try_ask(&get(path)).await?.ok())
    })
    .await
}

pub(crate) async fn tenants(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("tenant").await?;
    Objects::new(cluster.client(), &namespace).template("t", TEMPLATE).await?;
    // Every verb on everything of the namespace, subresources included.
    give(&cluster, "tess", "cluster-admin", Some(&namespace)).await?;
    let (admin, tenant) = (Person::admin(&cluster), Person::user(&cluster, "tess"));
    let path = |rest: &str| namespaced(&namespace, rest);
    knows(&tenant, &path("desktops")).await?;

    let desktop = object("Desktop", "a", json!({"spec": {"templateRef": {"name": "t"}}}));
    tenant.may(&create(path("desktops"), desktop)).await?;
    tenant.may(&merge(path("desktops/a"), json!({"spec": {"powerState": "Stopped"}}))).await?;
    let words = "is written by gpudesk itself";
    for (object, status) in [
        ("desktops/a", json!({"allocation": allocation("some-node")})),
        ("desktops/a", json!({"phase": "Running"})),
        ("desktoptemplates/t", json!({"desktops": 0})),
    ] {
        let write = merge(path(&format!("{object}/status")), json!({"status": status}));
        tenant.may_not(&write, words).await?;
        admin.may(&write).await?;
    }

    let finalizers = |list: Value| merge(path("desktops/a"), json!({"metadata": {"finalizers": list}}));
    let words = "finalizers that begin with gpudesk.dev/ are the gpudesk operator's";
    tenant.may_not(&finalizers(json!(["gpudesk.dev/release"])), words).await?;
    Person::operator(&cluster).await?.may(&finalizers(json!(["gpudesk.dev/release"]))).await?;
    tenant.may_not(&finalizers(json!([])), words).await?;
    tenant.may_not(&finalizers(json!(["example.org/own"])), words).await?;
    tenant.may(&finalizers(json!(["gpudesk.dev/release", "example.org/own"]))).await?;
    let status = merge(path("desktops/a/status"), json!({"metadata": {"finalizers": []}}));
    tenant.may_not(&status, "is written by gpudesk itself").await?;

    // An administrator of the cluster, of whatever group, may repair things by hand.
    give(&cluster, "root-of-all", "cluster-admin", None).await?;
    let administrator = Person::user(&cluster, "root-of-all");
    knows(&administrator, "/api/v1/nodes").await?;
    administrator.may(&merge(path("desktops/a/status"), json!({"status": {"allocation": null}}))).await?;
    administrator.may(&finalizers(json!([]))).await?;
    Ok(())
}

pub(crate) async fn roles(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("roles").await?;
    let path = |rest: &str| namespaced(&namespace, rest);
    let desktop =
        create(path("desktops"), object("Desktop", "a", json!({"spec": {"templateRef": {"name": "t"}}})));
    let spec: Value = serde_yaml::from_str(TEMPLATE)?;
    let template = create(path("desktoptemplates"), object("DesktopTemplate", "a", json!({"spec": spec})));

    for role in ["view", "edit", "admin"] {
        let user = format!("user-{role}");
        give(&cluster, &user, role, Some(&namespace)).await?;
        let person = Person::user(&cluster, &user);
        // A controller of the cluster puts gpudesk's rules into its own roles.
        knows(&person, &path("desktops")).await?;
        person.may(&get(path("desktoptemplates"))).await?;
        person.may(&get("/apis/gpudesk.dev/v1alpha1/gpuprofiles")).await?;
        person.may_not(&get(gpunode("")), "cannot list resource").await?;
        person
            .may_not(&merge(path("desktops/a/status"), json!({"status": {}})), "cannot patch resource")
            .await?;
        match role {
            "view" => {
                person.may_not(&desktop, "cannot create resource").await?;
                person.may_not(&template, "cannot create resource").await?;
            }
            "edit" => {
                person.may(&desktop).await?;
                person.may_not(&template, "cannot create resource").await?;
                person.may(&delete(path("desktops/a"))).await?;
            }
            _ => {
                person.may(&template).await?;
                person.may(&desktop).await?;
            }
        }
    }
    let stranger = Person::user(&cluster, "stranger");
    stranger.may(&get("/apis/gpudesk.dev/v1alpha1/gpuprofiles")).await?;
    stranger.may_not(&get(path("desktops")), "cannot list resource").await?;
    ensure!(stranger.try_ask(&desktop).await?.is_err());
    Ok(())
}
