//! A `GpuNode` that is deleted while the host is looked at, against a pretended API.

use std::{fs, os::unix::fs::PermissionsExt};

use http::{Method, Request, Response};
use kube::client::Body;
use serde_json::Value;

use super::*;
use crate::host::{
    guest_network::GuestNetworkSettings, hardware::hardware, libvirt::LibvirtHypervisor, source::HostSource,
};

fn answer(text: &str) -> Response<Body> {
    Response::new(Body::from(text.as_bytes().to_vec()))
}

#[tokio::test]
async fn one_that_is_deleted_is_made_again_while_the_hook_still_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (file, hook) = (folder.path().join("host.yaml"), folder.path().join("hook"));
    fs::write(&file, "{coresPerSocket: 8, memoryMiB: 65536, cards: [{model: L40S, count: 1}]}").unwrap();
    // The second time it is asked, it does not end before the test does.
    let script = "#!/bin/sh\ncat >/dev/null\ncd \"${0%/*}\"\nif [ -e asked ]; then : >again; sleep 60; fi\n: >asked\necho '{\"gpus\": []}'\n";
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let source = HostSource::simulated(&file, "node-a", folder.path()).unwrap();
    let hypervisor: Arc<dyn Hypervisor> =
        Arc::new(LibvirtHypervisor::connect("test:///default").await.unwrap());
    let view = HypervisorView::Answers {
        versions: None,
        acceleration: gpudesk_crds::gpu_node_status::Acceleration::Simulated,
        why_not_kvm: None,
    };
    let (_libvirt, hypervisor) = watch::channel((view, Some(hypervisor)));
    let (service, mut api) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let (seen, _hardware) = hardware();
    let changes = Arc::new(Changes::default());
    let (_looked, seen_strays) = watch::channel(Seen { strays: Some(vec![]), ..Seen::default() });
    let (_cluster, belongs) = watch::channel(Belongs::Here);
    let publisher = Publisher {
        node: "node-a".into(),
        source,
        client: Client::new(service, "default"),
        hypervisor,
        guest_network: Arc::new(GuestNetwork::new(GuestNetworkSettings::default(), "test:///default")),
        changed: Arc::new(Notify::new()),
        changes: Arc::clone(&changes),
        seen,
        hook: Some(DiscoveryHook::new(hook, "node-a", folder.path()).with_patience(Duration::from_mins(1))),
        metrics: Metrics::default(),
        stored: watch::channel(Stored::default()).0,
        upkeep: seen_strays,
        belongs,
        restored: Restored::new().1,
        owner: Arc::new(OwnerSpec::load(folder.path(), watch::channel(Some("c".into())).1)),
    };
    let running = tokio::spawn(publisher.run());
    let node = r#"{"apiVersion":"gpudesk.dev/v1alpha1","kind":"GpuNode","metadata":{"name":"node-a",
        "uid":"a","resourceVersion":"5","generation":3,"labels":{"gpudesk.dev/simulated":"true"}},
        "spec":{"cordoned":true,"physicalNetworks":[]}}"#
        .replace('\n', "");
    let list = format!(
        r#"{{"apiVersion":"v1","kind":"List","metadata":{{"resourceVersion":"5"}},"items":[{node}]}}"#
    );
    // The watch is answered once the hook runs for the second time: the node was deleted.
    let mut watched = None;
    let mut said: Vec<(String, Value)> = vec![];
    let is_again = || folder.path().join("again").exists();
    loop {
        let request = tokio::select! {
            request = api.next_request() => request,
            () = sleep(Duration::from_millis(50)) => None,
        };
        if let Some((request, respond)) = request {
            let path = request.uri().path().to_owned();
            if [Method::PATCH, Method::POST].contains(request.method()) {
                let body = request.into_body().collect_bytes().await.unwrap();
                said.push((path.clone(), serde_json::from_slice(&body).unwrap()));
                respond.send_response(answer(&node));
                // What is said first is everything that is known; then all is looked at again.
                if said.len() == 1 {
                    changes.add(Change::Whole);
                }
            } else if request.uri().query().unwrap_or_default().contains("watch=") {
                watched = Some(respond);
            } else {
                respond.send_response(answer(&list));
            }
        }
        if is_again()
            && let Some(respond) = watched.take()
        {
            respond.send_response(answer(&format!("{{\"type\":\"DELETED\",\"object\":{node}}}\n")));
        }
        if said.len() == 3 {
            break;
        }
        assert!(!running.is_finished());
    }
    let [(_, first), (made, bare), (status, again)] = said.as_slice() else { panic!("{said:?}") };
    assert!(made.ends_with("/gpunodes") && status.ends_with("/gpunodes/node-a/status"), "{said:?}");
    assert_eq!(bare["metadata"]["labels"]["gpudesk.dev/simulated"], "true");
    assert_eq!(bare["spec"], serde_json::json!({"cordoned": true}), "it is as closed as it was");
    assert_eq!(again["status"], first["status"], "it says what it last said");
    assert!(is_again(), "and the hook has not ended");
    running.abort();
}

#[tokio::test]
async fn what_cannot_be_understood_says_nothing_of_its_admins_words() {
    let (service, mut api) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let (sender, mut stored) = watch::channel(Stored::default());
    let nodes =
        Api::all_with(Client::new(service, "default"), &kube::api::ApiResource::erase::<GpuNode>(&()));
    let state = tempfile::tempdir().unwrap();
    let owner = OwnerSpec::load(state.path(), watch::channel(Some("c".into())).1);
    let watching =
        tokio::spawn(async move { observe(nodes, "node-a", sender, Restored::new().1, &owner).await });
    let node = |spec: &str, version: u32| {
        format!(
            r#"{{"apiVersion":"gpudesk.dev/v1alpha1","kind":"GpuNode","metadata":{{"name":"node-a","resourceVersion":"{version}"}},"spec":{spec}}}"#
        )
    };
    let (request, respond) = api.next_request().await.unwrap();
    assert!(!request.uri().query().unwrap_or_default().contains("watch="));
    let items = node(r#"{"cordoned":true}"#, 5);
    respond.send_response(answer(&format!(
        r#"{{"apiVersion":"v1","kind":"List","metadata":{{"resourceVersion":"5"}},"items":[{items}]}}"#
    )));
    stored.wait_for(|stored| stored.spec().is_some()).await.unwrap();
    let (_, respond) = api.next_request().await.unwrap();
    let events: String = [node(r#"{"cordoned":7}"#, 6)]
        .map(|object| format!("{{\"type\":\"MODIFIED\",\"object\":{object}}}\n"))
        .concat();
    respond.send_response(answer(&events));
    let unclear = stored.wait_for(|stored| stored.spec().is_none()).await.unwrap().clone();
    assert!(unclear.node.is_some(), "what was last known of it is not forgotten");
    watching.abort();
}

#[test]
fn why_its_admin_says_nothing_is_told() {
    let node = Some(Arc::new(GpuNode::new("node-a", GpuNodeSpec::default())));
    for (stored, why) in [
        (Stored::default(), "not known yet"),
        (Stored { known: true, ..Stored::default() }, "there is no GpuNode"),
        (Stored { known: true, unclear: true, node: None }, "cannot be understood"),
        (Stored { known: true, unclear: true, node }, "cannot be understood"),
    ] {
        assert!(stored.spec().is_none() && stored.why_silent().contains(why), "{why}");
    }
}

#[test]
fn a_status_that_the_api_lost_is_written_again() {
    let node = |version: &str, status: Option<GpuNodeStatus>| {
        let mut node = GpuNode::new("node-a", GpuNodeSpec::default());
        node.metadata.resource_version = Some(version.into());
        node.status = status;
        node
    };
    let written = GpuNodeStatus { more_strays: Some(7), ..GpuNodeStatus::default() };
    let said = Said {
        status: Some(written.clone()),
        kept: Some(Kept { over: Some("5".into()), status: Some(written.clone()) }),
        hook: HookView::NotConfigured,
        whole: None,
    };
    let lost = |version: &str, status: Option<GpuNodeStatus>| said.is_lost(Some(&node(version, status)));
    assert!(!lost("5", None), "it is from before the write");
    assert!(!lost("6", Some(written.clone())));
    let heard = GpuNodeStatus { operator_term: Some("3".into()), ..written };
    assert!(!lost("7", Some(heard)), "the operator's words are not the daemon's");
    assert!(lost("8", None) && lost("9", Some(GpuNodeStatus::default())));
    assert!(!said.is_lost(None), "it is made elsewhere");
}

#[tokio::test]
async fn a_card_that_a_machine_may_hold_that_cannot_be_read_is_not_free() {
    use crate::{
        desktop::pretended::{Pretended, allocation, domain},
        host::hypervisor::DomainState,
    };
    let card = "[{name: g, device: '0000:08:00.0', product: p, mode: Passthrough, type: Passthrough, framebufferMiB: 1, profile: x}]";
    let held = allocation("{cores: 1, threadsPerCore: 1, memoryMiB: 64}", card);
    let libvirt = Pretended::new(vec![domain(1, DomainState::Running, Some(&held))]);
    let whole = async || whole_cards(Some(&*libvirt), &Metrics::default()).await;
    assert_eq!(whole().await.unwrap().len(), 1);
    for state in [DomainState::Running, DomainState::Off] {
        let domains = vec![domain(1, DomainState::Running, Some(&held)), domain(2, state, None)];
        *libvirt.domains.lock().unwrap() = domains;
        let why = whole().await.unwrap_err();
        assert!(why.contains("school.d-2") && !why.contains("school.d-1"), "{why}");
    }
}
