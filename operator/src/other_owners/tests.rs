//! Who offers cards to pods, what is said of it, and the taints.

use std::sync::Arc;
use std::time::Duration;

use gpudesk_crds::conditions;
use gpudesk_crds::{GpuNode, conditions::ConditionType};
use http::{Request, Response};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Client, ResourceExt,
    client::Body,
    core::{ApiResource, GroupVersionKind},
    runtime::reflector::store,
    runtime::watcher::Event,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};
use tower_test::mock::Handle;

use super::*;
use crate::{
    metrics::Metrics,
    writer::{WriteError, Writer},
};

/// A node with two L40S at 41 and 42, the first with a virtual function, and an MI300X at 19.
fn node(rules: &Value) -> GpuNode {
    let card = |address: &str, vendor: &str, product: &str| {
        json!({"pciAddress": address, "vendorId": vendor, "deviceId": "26b9", "product": product,
               "class": "0302", "health": {"state": "Healthy"}})
    };
    let mut first = card("0000:41:00.0", "10de", "NVIDIA L40S");
    first["virtualFunctions"] = json!([{"pciAddress": "0000:41:00.4", "index": 0}]);
    serde_json::from_value(json!({
        "apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode",
        "metadata": {"name": "node-a", "resourceVersion": "1", "uid": "uid-of-node-a"},
        "spec": {"devices": rules},
        "status": {"devices": [
            card("0000:19:00.0", "1002", "AMD Instinct MI300X"), first, card("0000:42:00.0", "10de", "NVIDIA L40S"),
        ]},
    }))
    .unwrap()
}

pub(super) fn all_managed() -> GpuNode {
    node(&json!([]))
}

/// A rule of the owner for a card.
fn rule_for(address: &str, more: &Value) -> Value {
    let mut rule = json!({"name": format!("r{}", &address[5..7]), "selector": {"pciAddress": address}});
    if let (Value::Object(rule), Value::Object(more)) = (&mut rule, more) {
        rule.extend(more.clone());
    }
    rule
}

fn device(driver: &str, name: &str, address: &str) -> Published {
    Published {
        driver: driver.into(),
        pool: "node-a".into(),
        device: name.into(),
        address: address.parse().unwrap(),
    }
}

pub(super) fn of_nvidia(name: &str, address: &str) -> Published {
    device("gpu.nvidia.com", name, address)
}

/// What is known of a node that is alone in its pools, where nothing is tainted.
pub(super) fn known(published: &[Published]) -> Known {
    Known {
        slices: Sight::Whole,
        published: published.to_vec(),
        node: Sight::Whole,
        alone: published.iter().map(|device| (device.driver.clone(), device.pool.clone())).collect(),
        ..Known::default()
    }
}

/// A slice of one pool of NVIDIA's driver.
pub(super) fn slice_of(pool: &str, node: Option<&str>, devices: Devices) -> Slice {
    let pool = ("gpu.nvidia.com".to_owned(), pool.to_owned());
    Slice { pool, node: node.map(str::to_owned), devices }
}

/// Status, reason and message; nothing where nothing is said.
pub(super) fn said(node: &GpuNode, known: &Known) -> (String, String, String) {
    let condition = judge::condition(node, known, &Time(Timestamp::UNIX_EPOCH));
    condition.map(|said| (said.status, said.reason, said.message)).unwrap_or_default()
}

fn told(said: &(String, String, String)) -> (&str, &str) {
    (&said.0, &said.1)
}

#[test]
fn a_node_whose_cards_a_driver_publishes_says_whose_which_and_what_helps() {
    let found = said(
        &all_managed(),
        &known(&[of_nvidia("gpu-0", "0000:41:00.0"), of_nvidia("gpu-1", "0000:42:00.0")]),
    );
    assert_eq!(told(&found), ("False", "OfferedToPods"));
    for words in [
        "gpu.nvidia.com",
        "0000:41:00.0 (NVIDIA L40S), 0000:42:00.0 (NVIDIA L40S)",
        "nvidia.com/gpu.deploy.dra-driver=false",
        "management: Unmanaged",
    ] {
        assert!(found.2.contains(words), "{words:?} is not in {:?}", found.2);
    }
    assert!(!found.2.contains("tainted"), "{}", found.2);
    let gpu = of_nvidia("gpu-0", "0000:41:00.0");
    let rule = rules::name("uid-of-node-a", &gpu);
    let tainted = Known { rules: Some([rule].into()), ..known(&[gpu]) };
    assert!(said(&all_managed(), &tainted).2.contains("gpudesk.dev/managed:NoSchedule"));
    let function = said(&all_managed(), &known(&[of_nvidia("vf-0", "0000:41:00.4")]));
    assert!(
        function.2.contains("0000:41:00.0 (NVIDIA L40S)"),
        "a function of a card is of the card: {}",
        function.2
    );
    let amd = said(&all_managed(), &known(&[device("gpu.amd.com", "gpu-0-128", "0000:19:00.0")]));
    assert!(amd.2.contains("gpu.amd.com") && amd.2.contains("DeviceConfig"), "{}", amd.2);
    let other = said(&all_managed(), &known(&[device("dra.example.org", "a", "0000:19:00.0")]));
    assert!(other.2.contains("dra.example.org") && other.2.contains("DaemonSet"), "{}", other.2);
}

#[test]
fn what_is_no_managed_card_may_be_published() {
    let nic = known(&[device("sriovnetwork.k8snetworkplumbingwg.io", "vf", "0000:5e:00.2")]);
    assert_eq!(told(&said(&all_managed(), &nic)), ("True", "AsExpected"));
    let first = known(&[of_nvidia("gpu-0", "0000:41:00.0")]);
    for more in [json!({"management": "Unmanaged"}), json!({"mode": "Host"})] {
        let left = node(&json!([rule_for("0000:41:00.0", &more)]));
        assert_eq!(told(&said(&left, &first)), ("True", "AsExpected"), "{more}");
        assert!(rules::wanted(&left, &first).is_empty());
    }
    let passed = node(&json!([rule_for("0000:41:00.0", &json!({"mode": "Passthrough"}))]));
    assert_eq!(told(&said(&passed, &first)), ("False", "OfferedToPods"));
    let each = ["0000:41:00.0", "0000:42:00.0", "0000:19:00.0"];
    let none = node(&json!(each.map(|address| rule_for(address, &json!({"management": "Unmanaged"})))));
    assert_eq!(told(&said(&none, &Known::default())), ("True", "NotNeeded"));
}

#[test]
fn resources_of_the_node_tell_of_device_plugins() {
    let with = |resource: &str, amount: &str| Known {
        resources: [(resource.to_owned(), amount.to_owned())].into(),
        ..known(&[])
    };
    let found = said(&all_managed(), &with("nvidia.com/gpu", "2"));
    assert_eq!(told(&found), ("False", "OfferedToPods"));
    for words in [
        "nvidia.com/gpu: 2",
        "0000:41:00.0 (NVIDIA L40S), 0000:42:00.0",
        "nvidia.com/gpu.deploy.device-plugin=false",
    ] {
        assert!(found.2.contains(words), "{words:?} is not in {:?}", found.2);
    }
    assert!(!found.2.contains("MI300X"), "{}", found.2);
    assert_eq!(
        told(&said(&all_managed(), &with("gpu.intel.com/xe", "1"))),
        ("True", "AsExpected"),
        "no such card"
    );
    // The resource may be the card that gpudesk leaves alone; its daemon sees which.
    let left = node(&json!([rule_for("0000:41:00.0", &json!({"management": "Unmanaged"}))]));
    assert_eq!(told(&said(&left, &with("nvidia.com/gpu", "1"))), ("True", "AsExpected"));
    let (_, _, message) = said(&left, &with("nvidia.com/gpu", "1"));
    assert!(message.contains("nvidia.com/gpu to pods, which may be the cards"), "{message}");
    assert_eq!(told(&said(&left, &with("amd.com/gpu", "1"))), ("False", "OfferedToPods"));
}

#[test]
fn what_is_not_seen_is_not_said_to_be_fine() {
    let seen = |slices: Sight, node: Sight| said(&all_managed(), &Known { slices, node, ..Known::default() });
    assert_eq!(told(&seen(Sight::NotYet, Sight::Whole)), ("", ""), "nobody has looked");
    assert_eq!(told(&seen(Sight::Whole, Sight::NotYet)), ("", ""));
    assert_eq!(
        told(&seen(Sight::Unserved, Sight::Whole)),
        ("True", "AsExpected"),
        "the cluster has no slices"
    );
    let forbidden = seen(Sight::Unread("forbidden".into()), Sight::Whole);
    assert_eq!(told(&forbidden), ("Unknown", "Unknown"));
    assert!(forbidden.2.contains("ResourceSlices cannot be read (forbidden)"), "{}", forbidden.2);
    assert_eq!(told(&seen(Sight::Whole, Sight::Unread("timeout".into()))), ("Unknown", "Unknown"));
    let known = Known { slices: Sight::Unread("x".into()), ..known(&[of_nvidia("gpu-0", "0000:41:00.0")]) };
    assert_eq!(told(&said(&all_managed(), &known)), ("False", "OfferedToPods"), "what was seen was seen");
}

/// An `OtherOwners` that knows all, with these devices in one slice, and no rules.
pub(super) fn owners(published: &[Published]) -> OtherOwners {
    let owners = OtherOwners::new(true);
    let devices = [("node-a".to_owned(), published.to_vec())].into();
    owners.slice("slice", Some(slice_of("node-a", Some("node-a"), devices)));
    owners.see_slices(Sight::Whole);
    owners.rules_known(Some(api()));
    owners
}

fn api() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("resource.k8s.io", "v1beta2", "DeviceTaintRule"))
}

#[test]
fn slices_that_come_change_and_go_name_the_nodes_that_are_to_be_looked_at() {
    let owners = OtherOwners::new(false);
    let at = |nodes: &[(&str, &str)]| {
        let of =
            |(node, device): &(&str, &str)| ((*node).to_owned(), vec![of_nvidia(device, "0000:41:00.0")]);
        let devices: Devices = nodes.iter().map(of).collect();
        (!nodes.is_empty()).then(|| slice_of("pool", None, devices))
    };
    let changed =
        |slice: &str, nodes: &[(&str, &str)]| owners.slice(slice, at(nodes)).into_iter().collect::<Vec<_>>();
    assert_eq!(changed("s1", &[("a", "gpu-0")]), ["a"]);
    assert_eq!(changed("s1", &[("a", "gpu-0")]), [""; 0]);
    assert_eq!(changed("s2", &[("a", "gpu-1"), ("b", "gpu-0")]), ["a", "b"]);
    assert_eq!(owners.known("a").published.len(), 2);
    assert_eq!(changed("s2", &[("b", "gpu-0")]), ["a"]);
    assert_eq!(owners.known("a").published, [of_nvidia("gpu-0", "0000:41:00.0")]);
    let only = owners.only_slices(&["s2".to_owned()].into());
    assert_eq!(only.into_iter().collect::<Vec<_>>(), ["a"], "a new list does not have it");
    assert_eq!(owners.known("a").published, []);
    assert_eq!(changed("s2", &[]), ["b"]);
    assert!(
        owners.lock().by_node.is_empty() && owners.lock().published.is_empty(),
        "nothing is left of them"
    );
    assert!(owners.lock().pools.is_empty(), "nor of their pools");
}

pub(super) struct Rig {
    pub(super) writer: Writer,
    api: Handle<Request<Body>, Response<Body>>,
}

impl Rig {
    pub(super) fn new() -> Self {
        let (service, api) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        Self {
            writer: Writer::new(client, Metrics::default(), "lease:1".into(), watch::Sender::new(false)),
            api,
        }
    }

    /// Answers the next request; its method, path and body.
    pub(super) async fn answer(
        &mut self,
        code: u16,
        answer: impl FnOnce(&Value) -> Value,
    ) -> (String, String, Value) {
        answer_one(&mut self.api, code, answer).await
    }
}

async fn answer_one(
    api: &mut Handle<Request<Body>, Response<Body>>,
    code: u16,
    answer: impl FnOnce(&Value) -> Value,
) -> (String, String, Value) {
    let next = tokio::time::timeout(Duration::from_secs(5), api.next_request()).await;
    let (request, send) = next.expect("no request came").unwrap();
    let (method, path) = (request.method().to_string(), request.uri().to_string());
    let bytes = request.into_body().collect_bytes().await.unwrap();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let answer = serde_json::to_vec(&answer(&body)).unwrap();
    send.send_response(Response::builder().status(code).body(Body::from(answer)).unwrap());
    (method, path, body)
}

pub(super) fn failure(code: u16) -> impl FnOnce(&Value) -> Value {
    move |_| json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": format!("says {code}")})
}

#[tokio::test]
async fn each_published_device_of_a_managed_card_is_tainted_once() {
    let mut rig = Rig::new();
    let owners =
        owners(&[of_nvidia("gpu-0", "0000:41:00.0"), device("nic.example.org", "vf", "0000:5e:00.2")]);
    let (node, writer) = (all_managed(), rig.writer.clone());
    let (result, (method, path, body)) =
        tokio::join!(owners.bring_rules(&node, &writer), rig.answer(201, Value::clone));
    result.unwrap();
    assert_eq!(method, "POST");
    assert!(path.starts_with("/apis/resource.k8s.io/v1beta2/devicetaintrules?"), "{path}");
    let name = rules::name("uid-of-node-a", &of_nvidia("gpu-0", "0000:41:00.0"));
    assert_eq!(body["metadata"]["name"], name);
    assert_eq!(
        body["spec"],
        json!({"deviceSelector": {"driver": "gpu.nvidia.com", "pool": "node-a", "device": "gpu-0"},
               "taint": {"key": "gpudesk.dev/managed", "effect": "NoSchedule"}})
    );
    assert_eq!(body["metadata"]["labels"], json!({"gpudesk.dev/node": "node-a"}));
    let owner = &body["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["name"], &owner["uid"]),
        (&json!("GpuNode"), &json!("node-a"), &json!("uid-of-node-a"))
    );
    assert!(owner["controller"].is_null() && owner["blockOwnerDeletion"].is_null(), "{owner}");
    assert!(rules::is_sound(&body["spec"]));
    // Nothing is asked again.
    owners.bring_rules(&node, &writer).await.unwrap();
}

#[tokio::test]
async fn a_taint_goes_with_what_it_was_for() {
    let gpu = of_nvidia("gpu-0", "0000:41:00.0");
    let name = rules::name("uid-of-node-a", &gpu);
    let there =
        |owners: &OtherOwners, sound: bool| owners.rule(&name, Some(Rule { node: "node-a".into(), sound }));
    let unmanaged = node(&json!([rule_for("0000:41:00.0", &json!({"management": "Unmanaged"}))]));
    for (node, published, sound, why) in [
        (all_managed(), vec![], true, "it is published no more"),
        (unmanaged, vec![gpu.clone()], true, "its owner gave the card to others"),
        (all_managed(), vec![gpu.clone()], false, "somebody changed the rule"),
    ] {
        let mut rig = Rig::new();
        let owners = owners(&published);
        there(&owners, sound);
        let writer = rig.writer.clone();
        let (result, (method, path, _)) = tokio::join!(
            owners.bring_rules(&node, &writer),
            rig.answer(200, |_| json!({"kind": "Status", "status": "Success"}))
        );
        result.unwrap();
        assert_eq!((method.as_str(), path.contains(&name)), ("DELETE", true), "{why}: {path}");
        owners.rule(&name, None);
    }
    // Another node's is not ours to remove.
    let owners = owners(&[]);
    owners.rule(&name, Some(Rule { node: "node-b".into(), sound: true }));
    owners.bring_rules(&all_managed(), &Rig::new().writer).await.unwrap();
}

#[tokio::test]
async fn nothing_is_made_or_removed_by_half_a_look() {
    let gpu = of_nvidia("gpu-0", "0000:41:00.0");
    let rig = Rig::new();
    // A request would find nobody to answer it, and fail.
    drop(rig.api);
    let quiet = |owners: OtherOwners, node: GpuNode| {
        let writer = rig.writer.clone();
        async move { owners.bring_rules(&node, &writer).await.unwrap() }
    };
    let stale = || {
        let owners = owners(&[]);
        owners.rule("gpudesk-00", Some(Rule { node: "node-a".into(), sound: true }));
        owners
    };
    for sight in [Sight::NotYet, Sight::Unserved, Sight::Unread("x".into())] {
        let owners = stale();
        owners.see_slices(sight);
        quiet(owners, all_managed()).await;
    }
    let unlisted = owners(std::slice::from_ref(&gpu));
    unlisted.rules_known(None);
    quiet(unlisted, all_managed()).await;
    let mut without = all_managed();
    without.status = None;
    quiet(stale(), without).await;
    let off = OtherOwners::new(false);
    let devices = [("node-a".to_owned(), vec![gpu])].into();
    off.slice("slice", Some(slice_of("node-a", Some("node-a"), devices)));
    off.see_slices(Sight::Whole);
    off.rules_known(Some(api()));
    quiet(off, all_managed()).await;
}

#[tokio::test]
async fn a_rule_that_is_refused_holds_nothing_up_and_one_that_fails_is_tried_again() {
    let owners = owners(&[of_nvidia("gpu-0", "0000:41:00.0")]);
    let mut rig = Rig::new();
    let (node, writer) = (all_managed(), rig.writer.clone());
    let (result, _) = tokio::join!(owners.bring_rules(&node, &writer), rig.answer(403, failure(403)));
    result.unwrap();
    assert!(owners.lock().refused.is_some() && owners.lock().rules.is_empty());
    let (result, _) = tokio::join!(owners.bring_rules(&node, &writer), rig.answer(500, failure(500)));
    assert!(matches!(result, Err(WriteError::Unclear(_))), "{result:?}");
    let (result, _) = tokio::join!(owners.bring_rules(&node, &writer), rig.answer(409, failure(409)));
    result.unwrap();
    assert!(owners.lock().rules.is_empty(), "whether the one that is there is ours the watch shows");
    assert_eq!(owners.lock().refused, None);
}

#[test]
fn a_rule_that_says_more_or_less_is_not_ours() {
    let sound = rules::spec(&of_nvidia("gpu-0", "0000:41:00.0"));
    assert!(rules::is_sound(&sound));
    let changed = |pointer: &str, value: Value| {
        let mut spec = sound.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value;
        rules::is_sound(&spec)
    };
    assert!(changed("/taint/timeAdded", json!("2026-01-01T00:00:00Z")), "the API server adds it");
    assert!(changed("/deviceSelector/selectors", Value::Null));
    assert!(!changed("/taint/effect", json!("NoExecute")));
    assert!(!changed("/taint/key", json!("other")));
    assert!(!changed("/taint/value", json!("x")));
    assert!(!changed("/deviceSelector/device", Value::Null), "it would be the whole pool");
    assert!(!changed("/deviceSelector/selectors", json!([{"cel": {"expression": "false"}}])));
}

proptest! {
    #[test]
    fn each_device_of_each_node_has_a_rule_of_its_own_that_is_a_legal_name(
        uids in proptest::collection::btree_set("[a-f0-9-]{1,36}", 1..3),
        drivers in proptest::collection::btree_set("[a-z.]{1,12}", 1..3),
        pools in proptest::collection::btree_set("[a-z./]{1,12}", 1..3),
        devices in proptest::collection::btree_set("[a-z0-9-]{1,12}", 1..4),
    ) {
        let mut names = BTreeSet::new();
        let mut count = 0;
        for uid in &uids {
            for driver in &drivers {
                for pool in &pools {
                    for name in &devices {
                        let device = Published { pool: pool.clone(), ..device(driver, name, "0000:41:00.0") };
                        let name = rules::name(uid, &device);
                        prop_assert!(name.len() < 64 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
                        names.insert(name);
                        count += 1;
                    }
                }
            }
        }
        prop_assert_eq!(names.len(), count);
    }
}

/// Plays the cluster: answers discovery, lists and Nodes by path; watches stay open.
async fn serve(
    mut api: Handle<Request<Body>, Response<Body>>,
    answer: impl Fn(&str) -> Option<(u16, Value)>,
) {
    let mut open = vec![];
    while let Some((request, send)) = api.next_request().await {
        let path = request.uri().to_string();
        match answer(&path) {
            Some((code, body)) => {
                let body = Body::from(serde_json::to_vec(&body).unwrap());
                send.send_response(Response::builder().status(code).body(body).unwrap());
            }
            None => open.push(send),
        }
    }
}

/// The group as an API server of Kubernetes 1.36 with the gate of the rules serves it.
fn cluster(path: &str, slices: &[Value]) -> Option<(u16, Value)> {
    let resources = |names: &[(&str, &str)]| {
        let of = |(name, kind): &(&str, &str)| json!({"name": name, "singularName": "", "namespaced": false, "kind": kind, "verbs": ["list", "watch"]});
        names.iter().map(of).collect::<Vec<_>>()
    };
    let list = |version: &str, names: &[(&str, &str)]| {
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("resource.k8s.io/{version}"),
               "resources": resources(names)})
    };
    let version = |name: &str| json!({"groupVersion": format!("resource.k8s.io/{name}"), "version": name});
    Some((
        200,
        match path {
            "/apis" => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [{
                "name": "resource.k8s.io", "versions": [version("v1"), version("v1beta2")], "preferredVersion": version("v1"),
            }]}),
            "/apis/resource.k8s.io/v1" => list("v1", &[("resourceslices", "ResourceSlice")]),
            "/apis/resource.k8s.io/v1beta2" => list(
                "v1beta2",
                &[("resourceslices", "ResourceSlice"), ("devicetaintrules", "DeviceTaintRule")],
            ),
            _ if path.contains("watch=true") => return None,
            _ if path.starts_with("/apis/resource.k8s.io/v1/resourceslices?") => json!({
                "kind": "ResourceSliceList", "apiVersion": "resource.k8s.io/v1", "metadata": {"resourceVersion": "7"}, "items": slices,
            }),
            _ if path.starts_with("/apis/resource.k8s.io/v1beta2/devicetaintrules?") => json!({
                "kind": "DeviceTaintRuleList", "apiVersion": "resource.k8s.io/v1beta2", "metadata": {"resourceVersion": "7"}, "items": [],
            }),
            "/api/v1/nodes/node-a" => json!({
                "kind": "Node", "apiVersion": "v1", "metadata": {"name": "node-a"},
                "status": {"allocatable": {"cpu": "64", "nvidia.com/gpu": "2", "amd.com/gpu": "0", "nvidia.com/hostdev": "4"}},
            }),
            _ => return Some((404, failure(404)(&Value::Null))),
        },
    ))
}

/// What is known of `node-a` once `enough` says so.
async fn seen(
    taints: bool,
    answer: impl Fn(&str) -> Option<(u16, Value)> + Send + 'static,
    enough: impl Fn(&Known) -> bool,
) -> Known {
    let (service, api) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let client = Client::new(service, "default");
    let (nodes, mut nodes_in) = store();
    nodes_in.apply_watcher_event(&Event::Apply(all_managed()));
    let owners = Arc::new(OtherOwners::new(taints));
    let (wake, mut woken) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        serve(api, answer).await;
        "cluster"
    });
    watch_all(&owners, &client, &Metrics::default(), nodes, &mut tasks, move |node| {
        let _ = wake.send(node.to_owned());
    });
    let waiting = async {
        while !enough(&owners.known("node-a")) {
            woken.recv().await.unwrap();
        }
        owners.known("node-a")
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("nobody was woken for it")
}

#[tokio::test]
async fn a_cluster_with_slices_and_rules_is_seen_whole() {
    let slice = json!({
        "kind": "ResourceSlice", "apiVersion": "resource.k8s.io/v1",
        "metadata": {"name": "node-a-gpu.nvidia.com-x", "resourceVersion": "5", "uid": "u"},
        "spec": {"driver": "gpu.nvidia.com", "nodeName": "node-a",
                 "pool": {"name": "node-a", "generation": 1, "resourceSliceCount": 1},
                 "devices": [{"name": "gpu-0", "attributes": {"resource.kubernetes.io/pciBusID": {"string": "0000:41:00.0"}}}]},
    });
    let enough =
        |known: &Known| known.slices == Sight::Whole && known.node == Sight::Whole && known.rules.is_some();
    let known = seen(true, move |path| cluster(path, std::slice::from_ref(&slice)), enough).await;
    assert_eq!(known.published, [of_nvidia("gpu-0", "0000:41:00.0")]);
    assert_eq!(known.resources, [("nvidia.com/gpu".to_owned(), "2".to_owned())].into());
}

#[tokio::test]
async fn a_cluster_without_the_api_is_left_alone() {
    let without = |path: &str| match path {
        "/apis" => Some((200, json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}))),
        path if path.starts_with("/apis/resource.k8s.io") => panic!("{path} is asked for"),
        path => cluster(path, &[]),
    };
    let known =
        seen(true, without, |known| known.slices != Sight::NotYet && known.node != Sight::NotYet).await;
    assert_eq!((known.slices, known.rules), (Sight::Unserved, None));
}

#[tokio::test]
async fn slices_that_may_not_be_read_are_said_so() {
    let forbidden = |path: &str| {
        if path.starts_with("/apis/resource.k8s.io/v1/resourceslices?") || path.starts_with("/api/v1/nodes/")
        {
            return Some((403, failure(403)(&Value::Null)));
        }
        assert!(!path.contains("devicetaintrules"), "rules are off: {path}");
        cluster(path, &[])
    };
    let unread = |sight: &Sight| matches!(sight, Sight::Unread(_));
    let known = seen(false, forbidden, |known| unread(&known.slices) && unread(&known.node)).await;
    assert_eq!(told(&said(&all_managed(), &known)), ("Unknown", "Unknown"));
}

#[test]
fn the_condition_is_kept_with_its_time_while_it_says_the_same() {
    let mut node = all_managed();
    let known = known(&[]);
    let at = |second: i64| Time(Timestamp::from_second(second).unwrap());
    let first = judge::condition(&node, &known, &at(1)).unwrap();
    node.status.as_mut().unwrap().conditions.push(first.clone());
    let again = judge::condition(&node, &known, &at(2)).unwrap();
    assert_eq!(again.last_transition_time, first.last_transition_time);
    let status = node.status.as_ref().unwrap();
    assert!(conditions::is_true(&status.conditions, ConditionType::CardsUnpublished));
    assert_eq!(node.name_any(), "node-a");
}
