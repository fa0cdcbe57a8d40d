//! A world filled by hand and an API server that answers as told.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::channel::mpsc::{UnboundedReceiver, unbounded};
use gpudesk_crds::{Desktop, DesktopTemplate, GpuNode, GpuProfile};
use http::{Request, Response};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Client, Resource,
    client::Body,
    runtime::{
        reflector::{ObjectRef, store, store::Writer as StoreWriter},
        watcher::Event,
    },
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower_test::mock::Handle;

use crate::{
    allocation_key::AllocationKey,
    desktop::Context,
    metrics::Metrics,
    placement::compute::Limits,
    secret_access::{self, Event as AccessEvent, SecretAccess},
    stores::Stores,
    watch::Seen,
    world::{Queues, World},
    writer::Writer,
};

/// The key of the cluster.
pub(super) const KEY: &[u8] = &[7; 32];

pub(super) struct Rig {
    pub(super) context: Context,
    pub(super) api: Handle<Request<Body>, Response<Body>>,
    pub(super) woken: UnboundedReceiver<ObjectRef<Desktop>>,
    pub(super) access: UnboundedReceiver<AccessEvent>,
    pub(super) doubted: watch::Sender<bool>,
    desktops: StoreWriter<Desktop>,
    templates: StoreWriter<DesktopTemplate>,
    profiles: StoreWriter<GpuProfile>,
    nodes: StoreWriter<GpuNode>,
}

impl Rig {
    pub(super) fn new() -> Self {
        let rig = Self::before_leases();
        rig.context.world.lease(Seen::Complete);
        rig
    }

    /// One that has not listed the leases of nodes yet.
    pub(super) fn before_leases() -> Self {
        let (service, api) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let metrics = Metrics::default();
        let doubted = watch::Sender::new(false);
        let client = Client::new(service, "default");
        let writer = Writer::new(client, metrics.clone(), "lease:1".into(), doubted.clone());
        let (desktops, desktops_in) = store();
        let (templates, templates_in) = store();
        let (profiles, profiles_in) = store();
        let (nodes, nodes_in) = store();
        let (desktop_queue, woken) = unbounded();
        let (access_queue, access) = unbounded();
        let queues = Queues {
            desktops: desktop_queue,
            templates: unbounded().0,
            profiles: unbounded().0,
            nodes: unbounded().0,
            access: access_queue.clone(),
        };
        let stores = Stores { desktops, templates, profiles, nodes };
        let mut world = World::new(stores, queues, Limits::default(), AllocationKey::new(KEY), metrics);
        world.take_time();
        let world = Arc::new(world);
        let secrets = Arc::new(SecretAccess::new(writer.clone(), "gpudesk-system", access_queue));
        Self {
            context: Context { world, writer, secrets, namespace: "gpudesk-system".into() },
            api,
            woken,
            access,
            doubted,
            desktops: desktops_in,
            templates: templates_in,
            profiles: profiles_in,
            nodes: nodes_in,
        }
    }

    /// Keeps room for those who have waited so long.
    pub(super) fn keep_room_after(&mut self, after: std::time::Duration) {
        let world = Arc::get_mut(&mut self.context.world).unwrap();
        world.set_keep_room_after(Some(after));
    }

    /// A rig with a template and a node that has room for just one of its desktops.
    pub(super) fn small() -> Self {
        let mut rig = Self::new();
        rig.template(&template(json!({})));
        rig.node(&node("node-a", 2048));
        rig
    }

    /// The same world once more, for a round beside its answers.
    pub(super) fn beside(&self) -> Context {
        Context {
            world: self.context.world.clone(),
            writer: self.context.writer.clone(),
            secrets: self.context.secrets.clone(),
            namespace: self.context.namespace.clone(),
        }
    }

    /// Works off what there is to be done for Roles.
    pub(super) async fn tend(&mut self) {
        let (sender, queue) = unbounded();
        while let Ok(event) = self.access.try_recv() {
            sender.unbounded_send(event).unwrap();
        }
        drop(sender);
        secret_access::tend(self.context.secrets.clone(), self.context.world.clone(), queue).await;
    }

    /// The lease of a node, renewed at a second.
    pub(super) fn lease(&self, node: &str, second: i64, duration: i32) {
        let renewed = jiff::Timestamp::from_second(second).unwrap();
        let lease: Lease = serde_json::from_value(json!({
            "metadata": {"name": format!("gpudesk-node-{node}")},
            "spec": {"renewTime": format!("{renewed:.6}"), "leaseDurationSeconds": duration},
        }))
        .unwrap();
        self.context.world.lease(Seen::There(&lease));
    }

    /// Somebody deletes the lease of a node.
    pub(super) fn lease_gone(&self, node: &str) {
        let lease: Lease =
            serde_json::from_value(json!({"metadata": {"name": format!("gpudesk-node-{node}")}})).unwrap();
        self.context.world.lease(Seen::Gone(&lease));
    }

    /// The lease of a node is gone, and nobody made it again for as long as it lasts.
    pub(super) fn lease_over(&self, node: &str) {
        self.lease_gone(node);
        self.context.world.let_lapse(node);
    }

    pub(super) fn desktop_gone(&mut self, object: &Desktop) {
        self.desktops.apply_watcher_event(&Event::Delete(object.clone()));
        self.context.world.desktop(Seen::Gone(object));
    }

    pub(super) fn desktop(&mut self, object: &Desktop) {
        self.desktops.apply_watcher_event(&Event::Apply(object.clone()));
        self.context.world.desktop(Seen::There(object));
    }

    pub(super) fn template(&mut self, object: &DesktopTemplate) {
        self.templates.apply_watcher_event(&Event::Apply(object.clone()));
        self.context.world.template(Seen::There(object));
    }

    pub(super) fn profile(&mut self, object: &GpuProfile) {
        self.profiles.apply_watcher_event(&Event::Apply(object.clone()));
        self.context.world.profile(Seen::There(object));
    }

    /// A node with a lease that was just renewed.
    pub(super) fn node(&mut self, object: &GpuNode) {
        let lease: Lease = serde_json::from_value(json!({
            "metadata": {"name": format!("gpudesk-node-{}", object.metadata.name.as_deref().unwrap())},
            "spec": {"renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 180},
        }))
        .unwrap();
        self.context.world.lease(Seen::There(&lease));
        self.node_alone(object);
    }

    /// A node, whatever its lease.
    pub(super) fn node_alone(&mut self, object: &GpuNode) {
        self.nodes.apply_watcher_event(&Event::Apply(object.clone()));
        self.context.world.node(Seen::There(object));
    }

    /// The watch shows the end of a node, long enough ago for its desktops to be given away.
    pub(super) fn node_lost(&mut self, object: &GpuNode) {
        self.nodes.apply_watcher_event(&Event::Delete(object.clone()));
        self.context.world.node(Seen::Gone(object));
        let name = object.metadata.name.as_deref().unwrap();
        self.context.world.missing_for(name, crate::world::NODE_LOST_AFTER);
    }

    /// Who was put into the queue since last asked.
    pub(super) fn drain_woken(&mut self) -> Vec<String> {
        let mut woken = vec![];
        while let Ok(reference) = self.woken.try_recv() {
            woken.push(reference.name);
        }
        woken
    }

    /// Answers the next request with `answer` of it, and returns it: method, path with query, body.
    pub(super) async fn answer(
        &mut self,
        answer: impl FnOnce(&Value) -> (u16, Value),
    ) -> (String, String, Value) {
        let wait = std::time::Duration::from_secs(5);
        let next = tokio::time::timeout(wait, self.api.next_request()).await;
        let (request, send) = next.expect("no request came").unwrap();
        let (method, path) = (request.method().to_string(), request.uri().to_string());
        let bytes = request.into_body().collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let (code, answer) = answer(&body);
        let response =
            Response::builder().status(code).body(Body::from(serde_json::to_vec(&answer).unwrap()));
        send.send_response(response.unwrap());
        (method, path, body)
    }
}

/// Says that the object is another version by now.
pub(super) fn conflict(_: &Value) -> (u16, Value) {
    failure(409, "Conflict")
}

pub(super) fn failure(code: u16, reason: &str) -> (u16, Value) {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason});
    (code, status)
}

/// Accepts what is applied to a desktop.
pub(super) fn accept(body: &Value) -> (u16, Value) {
    let mut object = body.clone();
    object["spec"] = json!({"templateRef": {"name": "template"}});
    (200, object)
}

/// Says that the GpuNode `node-a` does not exist.
pub(super) fn gone(_: &Value) -> (u16, Value) {
    let (code, mut status) = failure(404, "NotFound");
    status["details"] = json!({"name": "node-a", "group": "gpudesk.dev", "kind": "gpunodes"});
    (code, status)
}

/// Says that there is no such object.
pub(super) fn none(_: &Value) -> (u16, Value) {
    failure(404, "NotFound")
}

pub(super) fn node(name: &str, memory_mib: i64) -> GpuNode {
    serde_json::from_value(json!({
        "apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode",
        "metadata": {"name": name, "resourceVersion": "1", "uid": format!("uid-of-{name}")}, "spec": {},
        "status": {
            "numaCells": [{"id": 0, "cores": ["0", "1", "2", "3"], "memoryMiB": memory_mib}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "AsExpected", "message": "",
                            "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        },
    }))
    .unwrap()
}

/// A template of 1 GiB and two cores, with `spec` on top.
pub(super) fn template(spec: Value) -> DesktopTemplate {
    let mut object = json!({
        "apiVersion": "gpudesk.dev/v1alpha1", "kind": "DesktopTemplate",
        "metadata": {"name": "template", "namespace": "demo", "generation": 7, "resourceVersion": "1",
                     "uid": "uid-of-template", "finalizers": ["gpudesk.dev/release"]},
        "spec": {"memory": {"sizeMiB": 1024}, "disks": [{"name": "system", "image": {"name": "debian"}}]},
    });
    merge(&mut object["spec"], spec);
    serde_json::from_value(object).unwrap()
}

pub(super) fn profile(spec: Value) -> GpuProfile {
    serde_json::from_value(json!({
        "apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuProfile",
        "metadata": {"name": "whole", "generation": 1, "resourceVersion": "1"}, "spec": spec,
    }))
    .unwrap()
}

/// A desktop with the finalizer, as the API server shows it; `more` on top.
pub(super) fn desktop(name: &str, version: u64, more: Value) -> Desktop {
    let mut object = json!({
        "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop",
        "metadata": {"name": name, "namespace": "demo", "resourceVersion": version.to_string(), "generation": 3,
                     "uid": format!("uid-of-{name}"), "finalizers": ["gpudesk.dev/release"],
                     "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"templateRef": {"name": "template"}},
    });
    merge(&mut object, more);
    serde_json::from_value(object).unwrap()
}

/// The desktop as the watch shows it after a write.
pub(super) fn after(desktop: &Desktop, version: u64, written: &Value) -> Desktop {
    let mut desktop = desktop.clone();
    desktop.meta_mut().resource_version = Some(version.to_string());
    desktop.status = Some(serde_json::from_value(written["status"].clone()).unwrap());
    desktop
}

/// The conditions of what was written: type to (status, reason, message).
pub(super) fn conditions(written: &Value) -> BTreeMap<String, (String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = written["status"]["conditions"].as_array().unwrap().iter();
    all.map(|c| (text(&c["type"]), (text(&c["status"]), text(&c["reason"]), text(&c["message"])))).collect()
}

pub(super) fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}
