//! Rounds of a desktop over libvirt's test driver, on a simulated host, against a pretended API.
#![allow(clippy::disallowed_methods, reason = "a test looks at files")]

use std::{path::Path, sync::Arc, time::Duration};

use gpudesk_crds::{Desktop, DesktopStatus, conditions};
use gpudesk_inventory::topology::HostFacts;
use http::{Request, Response};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    fixtures::{SMALL, desktop, template},
    *,
};
use crate::{
    domain::metadata,
    host::{
        guest_network::{GuestNetwork, GuestNetworkSettings},
        hardware::{HardwareSeen, Layouts, hardware},
        hypervisor::{DomainState, HypervisorError},
        libvirt::LibvirtHypervisor,
        source::HostSource,
    },
};

/// Statuses that were written, in their order.
pub(super) type Written = tokio::sync::mpsc::UnboundedReceiver<Value>;

/// What the API answers when a Desktop is read: by its path.
pub(super) type Live = Arc<Mutex<HashMap<String, Value>>>;

/// An API that takes every status and tells the test, answers reads of Desktops with those it was given,
/// and gives nobody a token.
pub(super) struct PretendedApi {
    pub(super) client: Client,
    pub(super) live: Live,
}

pub(super) fn api() -> (PretendedApi, Written) {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let (sender, written) = tokio::sync::mpsc::unbounded_channel();
    let live = Live::default();
    let known = Arc::clone(&live);
    let refusal = |code: u16| json!({ "kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": if code == 404 { "NotFound" } else { "x" } });
    tokio::spawn(async move {
        while let Some((request, respond)) = handle.next_request().await {
            let path = request.uri().path().to_owned();
            let (code, answer) = if request.method() == http::Method::GET {
                lock(&known).get(&path).map_or((404, refusal(404)), |desktop| (200, desktop.clone()))
            } else if path.ends_with("/token") {
                (403, refusal(403))
            } else {
                assert!(path.ends_with("/desktops/anna/status"), "{path}");
                assert!(
                    request.uri().query().unwrap_or_default().contains("fieldManager=gpudesk-node-daemon")
                );
                let body = request.into_body().collect_bytes().await.unwrap();
                let mut object: Value = serde_json::from_slice(&body).unwrap();
                sender.send(object["status"].clone()).unwrap();
                object["spec"] = json!({ "templateRef": { "name": "office" } });
                (200, object)
            };
            let body = Body::from(serde_json::to_vec(&answer).unwrap());
            respond.send_response(Response::builder().status(code).body(body).unwrap());
        }
    });
    (PretendedApi { client: Client::new(service, "school"), live }, written)
}

/// The desktops of a node, and what the API says of them.
pub(super) struct Fixture {
    pub(super) desktops: Arc<Desktops>,
    live: Live,
    seen: HardwareSeen,
    facts: HostFacts,
}

impl std::ops::Deref for Fixture {
    type Target = Arc<Desktops>;

    fn deref(&self) -> &Self::Target {
        &self.desktops
    }
}

impl Fixture {
    /// A round over a desktop that the API has as it is.
    pub(super) async fn round(
        &self,
        desktop: &Desktop,
        template: Option<Arc<DesktopTemplate>>,
    ) -> Result<Duration, kube::Error> {
        self.api_has(desktop);
        self.desktops.round(desktop, template).await
    }

    /// The owner fixes the layout of a card; nobody's is fixed without.
    fn lays_out(&self, card: &str, places: Option<Value>) {
        let places = places.map(|places| serde_json::from_value(places).unwrap());
        let layouts = places.map(|places| (card.parse().unwrap(), places)).into_iter().collect();
        self.seen.set(&self.facts, Some(layouts));
    }

    pub(super) fn api_has(&self, desktop: &Desktop) {
        let namespace = desktop.metadata.namespace.clone().unwrap();
        let path = format!("/apis/gpudesk.dev/v1alpha1/namespaces/{namespace}/desktops/anna");
        lock(&self.live).insert(path, serde_json::to_value(desktop).unwrap());
    }
}

/// A node on a simulated host with three L40S. Domains of the test driver live in this process, so each
/// test has desktops of its own, and the ones that need a whole card have that card for themselves.
pub(super) async fn desktops(state: &Path, api: PretendedApi) -> Fixture {
    let file = state.join("host.yaml");
    let text =
        "{coresPerSocket: 8, memoryMiB: 65536, cards: [{model: L40S, count: 3}], missingImages: [gone]}";
    std::fs::write(&file, text).unwrap();
    let source = HostSource::simulated(&file, "node-a", state).unwrap();
    let hypervisor = LibvirtHypervisor::connect("test:///default").await.unwrap();
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let (seen, hardware) = hardware();
    seen.set(&source.facts(), Some(Layouts::new()));
    let client = api.client;
    let node = Node {
        name: "node-a".into(),
        hypervisor: Arc::new(hypervisor),
        gpus: Arc::clone(source.gpus()),
        guest_network: Arc::new(GuestNetwork::new(GuestNetworkSettings::default(), "test:///default")),
        hardware,
        network_devices: None,
        images: ImageStore::pretended("node-a", source.missing_images()),
        roots: AllowedRoots::default(),
        folders: DesktopFolders::new(state),
        leftovers: Leftovers::new(state),
        secrets: Secrets::new(client.clone(), config, "node-a", "gpudesk-system"),
        kind: Kind::Test,
        boot: "boot".into(),
        latency: Latency::default(),
        give_back_after: SignedDuration::ZERO,
        relay: None,
        belongs: tokio::sync::watch::channel(crate::cluster::Belongs::Here).1,
    };
    let (changed, stop) = (Arc::new(Notify::new()), CancellationToken::new());
    let (_, heard) = Heard::new();
    let desktops = Desktops::new(node, client, Metrics::default(), changed, heard, stop);
    Fixture { desktops: Arc::new(desktops), live: api.live, seen, facts: source.facts() }
}

/// The card of those tests that only need a part of one.
const CARD: &str = "0000:08:00.0";

pub(super) fn with_gpu() -> String {
    format!(
        "[{{name: screen, device: '{CARD}', product: L40S, mode: Vgpu, type: L40S-8Q, framebufferMiB: 8192, profile: office-8q}}]"
    )
}

/// Gives the desktop another identity, so that tests do not share a domain.
pub(super) fn renamed(mut desktop: Desktop, uid: u128) -> (Desktop, Uuid) {
    let uid = Uuid::from_u128(uid << 64 | 0x8000_0000_0000_0001);
    desktop.metadata.uid = Some(uid.to_string());
    desktop.metadata.namespace = Some(format!("ns-{uid}"));
    (desktop, uid)
}

/// What the watch shows once a status was written.
pub(super) fn seen(desktop: &Desktop, written: &Value) -> Desktop {
    let mut desktop = desktop.clone();
    let mut status: DesktopStatus = serde_json::from_value(written.clone()).unwrap();
    status.allocation = desktop.status.take().unwrap().allocation;
    desktop.status = Some(status);
    desktop.metadata.resource_version = Some("71".into());
    desktop
}

/// The desktop by another decision.
pub(super) fn decided(desktop: &Desktop, id: &str) -> Desktop {
    let mut desktop = desktop.clone();
    desktop.status.as_mut().unwrap().allocation.as_mut().unwrap().id = Some(id.parse().unwrap());
    desktop.metadata.resource_version = Some(format!("of {id}"));
    desktop
}

pub(super) fn reason<'a>(status: &'a Value, type_: &str) -> (&'a str, &'a str) {
    let conditions = status["conditions"].as_array().unwrap();
    let condition = conditions.iter().find(|condition| condition["type"] == type_).unwrap();
    (condition["status"].as_str().unwrap(), condition["reason"].as_str().unwrap())
}

pub(super) const OFFICE: &str =
    "{memory: {sizeMiB: 1024}, guestAgent: false, disks: [{name: system, image: {name: win}}]}";

#[tokio::test]
async fn a_start_is_one_write_and_a_stop_gives_everything_back() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, &with_gpu()), 1);
    let template = template(OFFICE);

    desktops.round(&desktop, Some(template.clone())).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "Running"), ("True", "AsExpected"));
    assert_eq!(reason(&status, "Ready"), ("True", "AsExpected"));
    assert_eq!(reason(&status, "DevicesPrepared"), ("True", "AsExpected"));
    assert_eq!(reason(&status, "GuestReady"), ("False", "AgentNotConfigured"));
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["domain"]["acceleration"], "Simulated");
    assert_eq!(status["gpus"][0]["pciAddress"], "0000:08:00.4");
    assert!(status.get("allocation").is_none(), "the allocation is the operator's");
    let domain = desktops.node.hypervisor.get(uid).await.unwrap();
    assert_eq!(domain.state, DomainState::Running);
    let ours = metadata::parse(&domain.metadata.unwrap()).unwrap().unwrap();
    let allocation: Allocation = serde_json::from_str(&ours.allocation).unwrap();
    assert_eq!(Some(&allocation), desired::allocation(&desktop));

    // Again, before and after the watch has shown the write: nothing new is to be said.
    desktops.round(&desktop, Some(template.clone())).await.unwrap();
    let running = seen(&desktop, &status);
    desktops.round(&running, Some(template.clone())).await.unwrap();
    assert!(written.try_recv().is_err(), "one write for one start");

    let mut stopping = running.clone();
    stopping.spec.power_state = gpudesk_crds::desktop::PowerState::Stopped;
    stopping.metadata.generation = Some(8);
    desktops.round(&stopping, Some(template.clone())).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "Running"), ("False", "Stopped"));
    assert_eq!(status["conditions"][1]["observedGeneration"], 8);
    assert!(status.get("domain").is_none() && status.get("gpus").is_none());
    let gone = desktops.node.hypervisor.get(uid).await;
    assert!(matches!(gone, Err(HypervisorError::NotFound { .. })));
    assert_eq!(desktops.all_instances().await.unwrap(), []);
    assert!(written.try_recv().is_err());
}

#[tokio::test]
async fn a_problem_is_said_once_and_a_mended_one_goes_on() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, _) = renamed(desktop("", SMALL, "[]"), 2);
    let broken = template(&OFFICE.replace("name: win", "name: gone"));

    let wait = desktops.round(&desktop, Some(broken.clone())).await.unwrap();
    assert!(wait <= Duration::from_secs(30), "a mended problem is seen soon");
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "DevicesPrepared"), ("False", "ImageNotFound"));
    assert_eq!(reason(&status, "Ready"), ("False", "ImageNotFound"));
    assert_eq!(status["phase"], "Failed");
    desktops.round(&desktop, Some(broken)).await.unwrap();
    assert!(written.try_recv().is_err());

    let failed = seen(&desktop, &status);
    desktops.round(&failed, None).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "DevicesPrepared"), ("False", "TemplateNotFound"));
    desktops.round(&seen(&desktop, &status), Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Ready"), ("True", "AsExpected"));
}

#[tokio::test]
async fn what_another_desktop_holds_is_not_given_again() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let pinned = "{cores: 1, threadsPerCore: 1, memoryMiB: 64, vcpuPins: [{vcpu: 0, cpus: '3'}]}";
    let (first, _) = renamed(desktop("", pinned, "[]"), 3);
    let (second, uid) = renamed(desktop("", pinned, "[]"), 4);
    desktops.round(&first, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
    desktops.round(&second, Some(template(OFFICE))).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "Running"), ("False", "AllocationConflict"));
    assert_eq!(
        (&status["node"]["state"], &status["node"]["refusal"]["cpus"]),
        (&json!("Refused"), &json!("3"))
    );
    let words = status.to_string();
    assert!(words.contains("CPU 3") && !words.contains("/anna"), "who has it is not theirs to know: {words}");
    assert!(desktops.node.hypervisor.get(uid).await.is_err());
    // The word is kept, also when what was in the way is gone, and by a daemon that starts anew.
    let mut off = first.clone();
    off.spec.power_state = gpudesk_crds::desktop::PowerState::Stopped;
    desktops.round(&off, Some(template(OFFICE))).await.unwrap();
    assert_eq!(written.recv().await.unwrap()["node"]["state"], "Stopped");
    desktops.round(&second, Some(template(OFFICE))).await.unwrap();
    desktops.round(&seen(&second, &status), Some(template(OFFICE))).await.unwrap();
    // Said once more where the second is another one.
    while let Ok(again) = written.try_recv() {
        assert_eq!(again["node"], status["node"]);
    }
    assert!(desktops.node.hypervisor.get(uid).await.is_err());
    let again = decided(&seen(&second, &status), "2-00000002");
    desktops.round(&again, Some(template(OFFICE))).await.unwrap();
    assert_eq!(
        written.recv().await.unwrap()["node"],
        json!({"allocationId": "2-00000002", "state": "Running"})
    );
}

#[tokio::test]
async fn a_share_that_a_card_has_no_room_for_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let whole = with_gpu().replace("L40S-8Q", "L40S-48Q").replace(CARD, "0000:10:00.0");
    let (first, _) = renamed(desktop("", SMALL, &whole), 10);
    let (second, uid) = renamed(desktop("", SMALL, &whole), 11);
    desktops.round(&first, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
    desktops.round(&second, Some(template(OFFICE))).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "DevicesPrepared"), ("False", "AllocationConflict"));
    assert_eq!(status["node"]["state"], "Refused");
    assert_eq!(status["node"]["refusal"]["device"], "0000:10:00.0");
    let owner = format!("{}/anna", first.metadata.namespace.unwrap());
    assert!(!status.to_string().contains(&owner), "{status}");
    assert_eq!(desktops.instances(uid).await.unwrap(), [], "what was begun is undone");
    assert!(desktops.node.hypervisor.get(uid).await.is_err());
}

#[tokio::test]
async fn a_new_share_is_a_place_of_the_layout_and_one_that_exists_stays() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let card = "0000:18:00.0";
    let of_type = |name: &str| with_gpu().replace("L40S-8Q", name).replace(CARD, card);
    let (first, uid) = renamed(desktop("", SMALL, &of_type("L40S-8Q")), 90);
    desktops.round(&first, Some(template(OFFICE))).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "Running"), ("True", "AsExpected"));

    // It has a share that the new layout lacks, and runs on with it; nobody else gets one.
    desktops.lays_out(card, Some(json!([{"type": "L40S-16Q", "count": 2}])));
    desktops.round(&seen(&first, &status), Some(template(OFFICE))).await.unwrap();
    assert!(written.try_recv().is_err(), "nothing that runs is disturbed");
    assert_eq!(desktops.instances(uid).await.unwrap().len(), 1);
    let (second, uid) = renamed(desktop("", SMALL, &of_type("L40S-8Q")), 91);
    desktops.round(&second, Some(template(OFFICE))).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(status["node"]["refusal"]["device"], card);
    let words = status.to_string();
    assert!(words.contains("fixed layout, and it has no place for L40S-8Q"), "{words}");
    assert!(!words.contains(first.metadata.namespace.as_ref().unwrap()), "{words}");
    assert_eq!(desktops.instances(uid).await.unwrap(), []);

    // As many as the layout has places, and no more although the card has room.
    desktops.lays_out(card, Some(json!([{"type": "L40S-8Q", "count": 2}])));
    for (number, running) in [(92, true), (93, false)] {
        let (next, _) = renamed(desktop("", SMALL, &of_type("L40S-8Q")), number);
        desktops.round(&next, Some(template(OFFICE))).await.unwrap();
        let status = written.recv().await.unwrap();
        assert_eq!(reason(&status, "Running").0 == "True", running, "{status}");
        let words = status.to_string();
        assert_eq!(words.contains("all 2 places for L40S-8Q in it are taken"), !running, "{words}");
    }
    desktops.lays_out(card, None);
    let (last, _) = renamed(desktop("", SMALL, &of_type("L40S-8Q")), 94);
    desktops.round(&last, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
}

#[tokio::test]
async fn a_restart_by_annotation_stops_and_waits_for_the_operator() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, _) = renamed(desktop("", SMALL, "[]"), 5);
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    let mut asked = seen(&desktop, &written.recv().await.unwrap());
    let annotation = (gpudesk_crds::RESTARTED_AT_ANNOTATION.to_owned(), "now".to_owned());
    asked.metadata.annotations = Some([annotation].into());
    asked.status.as_mut().unwrap().allocation.as_mut().unwrap().stop_for = Some("now".into());
    desktops.round(&asked, Some(template(OFFICE))).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "Running"), ("False", "Stopped"));
    let mut decided = seen(&asked, &status);
    decided.status.as_mut().unwrap().allocation.as_mut().unwrap().restarted_at = Some("now".into());
    desktops.round(&decided, Some(template(OFFICE))).await.unwrap();
    assert!(written.try_recv().is_err(), "what was given back is never started again");
    let decided = self::decided(&decided, "2-00000002");
    desktops.round(&decided, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
}

#[tokio::test]
async fn a_guest_that_ends_is_answered_by_the_policy() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 6);
    let stays = template(OFFICE);
    let always = template(&OFFICE.replace("guestAgent", "lifecycle: {restartPolicy: Always}, guestAgent"));
    desktops.round(&desktop, Some(stays.clone())).await.unwrap();
    let running = seen(&desktop, &written.recv().await.unwrap());
    desktops.node.hypervisor.shutdown(uid).await.unwrap();
    desktops.round(&running, Some(always.clone())).await.unwrap();
    assert!(desktops.node.hypervisor.get(uid).await.unwrap().state.is_active());
    desktops.node.hypervisor.shutdown(uid).await.unwrap();
    desktops.round(&running, Some(stays)).await.unwrap();
    // The restart says nothing new when it comes within the same second.
    let mut status = written.recv().await.unwrap();
    while let Ok(later) = written.try_recv() {
        status = later;
    }
    assert_eq!(reason(&status, "Running"), ("False", "GuestStopped"));
    assert_eq!(status["node"]["state"], "Ended");
    assert!(status.get("domain").is_none());
    // The word frees what it held: another policy comes too late for this decision.
    desktops.round(&seen(&running, &status), Some(always)).await.unwrap();
    assert!(desktops.node.hypervisor.get(uid).await.is_err());
}

#[tokio::test]
async fn a_deleted_desktop_leaves_nothing_and_says_so() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, &with_gpu()), 7);
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    let mut deleted = seen(&desktop, &written.recv().await.unwrap());
    deleted.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-05T09:00:00Z")).unwrap();
    // The template may be gone as well.
    desktops.round(&deleted, None).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "Running"), ("False", "Released"));
    assert!(!desktops.node.folders.of(uid).exists().await.unwrap());
    assert_eq!(desktops.all_instances().await.unwrap(), []);
    desktops.round(&seen(&deleted, &status), None).await.unwrap();
    assert!(written.try_recv().is_err());
}

#[tokio::test]
async fn a_parked_desktop_is_not_told_again_and_its_readiness_is_the_operators() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (mut desktop, _) = renamed(desktop(", powerState: Stopped", SMALL, "[]"), 8);
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "Ready"), ("False", "Stopped"));
    desktop = seen(&desktop, &status);
    let stored = desktop.status.as_mut().unwrap();
    stored.allocation.as_mut().unwrap().compute = None;
    let ready = conditions::find(&stored.conditions, conditions::ConditionType::Ready).cloned().unwrap();
    desktop.metadata.generation = Some(9);
    desktop.metadata.resource_version = Some("72".into());
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    assert!(written.try_recv().is_err());
    assert_eq!(ready.reason, "Stopped");
}
