//! `kubectl desktop` beside a cluster: what it reads, and what manifests change about it. The API server is
//! a few answers on a loopback port.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::{collections::BTreeMap, path::PathBuf, process::Command, sync::Arc};

use axum::{
    Router,
    extract::State as Shared,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use kubectl_desktop::{
    plan::{
        document::{DesktopPlan, State},
        hosts,
    },
    why::document::DesktopExplanation,
};
use serde_json::{Value, json};

/// An answer to every path that is known; 403 to those that are forbidden.
#[derive(Clone)]
struct Answers {
    known: Arc<BTreeMap<String, Value>>,
    forbidden: Arc<Vec<&'static str>>,
}

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

async fn answer(Shared(answers): Shared<Answers>, uri: Uri) -> Response {
    let refuse = |code: StatusCode, reason: &str| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
            "reason": reason, "message": format!("{reason}: {}", uri.path())});
        (code, JSON, status.to_string()).into_response()
    };
    if answers.forbidden.contains(&uri.path()) {
        return refuse(StatusCode::FORBIDDEN, "Forbidden");
    }
    match answers.known.get(uri.path()) {
        Some(object) => (JSON, object.to_string()).into_response(),
        None => refuse(StatusCode::NOT_FOUND, "NotFound"),
    }
}

const API: &str = "/apis/gpudesk.dev/v1alpha1";
const NODES: &str = "/apis/gpudesk.dev/v1alpha1/gpunodes";

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/plan").join(name)
}

/// A cluster with the machine of `gpu.yaml` and what `scattered.yaml` says. `heard`: what the operator says
/// of its daemon.
fn cluster(heard: Option<&str>) -> BTreeMap<String, Value> {
    let dump = std::fs::read_to_string(fixture("scattered.yaml")).unwrap();
    let mut dump: Value = serde_yaml::from_str(&dump).unwrap();
    let mut lists: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut known = BTreeMap::new();
    for item in dump["items"].as_array_mut().unwrap() {
        let plural = format!("{}s", item["kind"].as_str().unwrap().to_lowercase());
        if plural == "desktops" {
            let name = item["metadata"]["name"].as_str().unwrap();
            known.insert(format!("{API}/namespaces/lab/desktops/{name}"), item.clone());
        }
        lists.entry(plural).or_default().push(item.take());
    }
    let host = std::fs::read_to_string(fixture("gpu.yaml")).unwrap();
    let hosts = hosts::hosts("gpu", &host, None).unwrap();
    let mut nodes: Vec<Value> = hosts.iter().map(|h| json!(hosts::node(h, None))).collect();
    let said = heard.map(|heard| {
        json!({"type": "DaemonHeard", "status": heard, "reason": "DaemonSilent", "message": "",
               "lastTransitionTime": "2026-01-01T00:00:00Z"})
    });
    nodes[0]["status"]["conditions"].as_array_mut().unwrap().extend(said);
    lists.insert("gpunodes".into(), nodes);
    let list = |kind: &str, items: Vec<Value>| json!({"kind": kind, "apiVersion": "v1", "metadata": {}, "items": items});
    for (plural, items) in lists {
        known.insert(format!("{API}/{plural}"), list("List", items));
    }
    known
}

const ALIVE: Option<&str> = Some("True");

/// Runs the program against such a cluster; exit status, standard output, standard error.
fn run(
    known: BTreeMap<String, Value>,
    forbidden: Vec<&'static str>,
    arguments: &str,
) -> (i32, String, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let answers = Answers { known: Arc::new(known), forbidden: Arc::new(forbidden) };
    runtime.spawn(
        async move { axum::serve(listener, Router::new().fallback(answer).with_state(answers)).await },
    );
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "other",
        "clusters": [{"name": "test", "cluster": {"server": format!("http://{address}")}},
            {"name": "other", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "lab"}},
            {"name": "other", "context": {"cluster": "other", "user": "test"}}]});
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kubectl-desktop"))
        .args(arguments.split_whitespace())
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .args(["--context", "test"])
        .current_dir(fixture(""))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn plan(arguments: &str) -> (i32, DesktopPlan) {
    let (status, out, err) = run(cluster(ALIVE), vec![], &format!("plan --from-cluster -o json {arguments}"));
    (status, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
}

#[test]
fn what_the_cluster_runs_counts_and_new_desktops_come_after_it() {
    let (status, plan) = plan("-f three.yaml");
    let found: Vec<(&str, State)> = plan.desktops.iter().map(|d| (d.name.as_str(), d.state)).collect();
    assert_eq!(found, [("one", State::Held), ("two", State::Held), ("three", State::Pending)]);
    assert_eq!(status, 1);
    assert!(plan.notes.is_empty(), "{:?}", plan.notes);
}

#[test]
fn a_change_of_what_runs_is_noted_and_not_planned_for() {
    let changed = std::fs::read_to_string(fixture("three.yaml")).unwrap();
    let changed =
        changed.replace("three", "one").replace("whole", "slice").replace("spec:", "spec:\n  priority: 9");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("one.yaml");
    std::fs::write(&file, changed).unwrap();
    let (status, plan) = plan(&format!("-f {}", file.display()));
    assert_eq!((status, plan.summary.held, plan.desktops[0].priority), (0, 2, 9));
    assert_eq!(plan.notes, ["Desktop lab/one changed: it keeps what it has until its next start"]);
}

#[test]
fn further_machines_are_laid_beside_those_of_the_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let more = folder.path().join("more.yaml");
    std::fs::copy(fixture("gpu.yaml"), &more).unwrap();
    let (status, plan) = plan(&format!("-f three.yaml --nodes {}", more.display()));
    assert_eq!(status, 0);
    assert_eq!(plan.desktops[2].node.as_deref(), Some("more"));
}

#[test]
fn a_machine_that_the_cluster_has_is_not_described_again() {
    let (status, out, err) = run(cluster(ALIVE), vec![], "plan --from-cluster --nodes gpu.yaml");
    assert_eq!((status, out.as_str()), (2, ""));
    assert_eq!(
        err,
        "error: gpu.yaml: there is a GpuNode gpu already; a host file makes a new one: give the file another name\n"
    );
}

#[test]
fn the_context_gives_the_namespace() {
    let (status, out, err) = run(cluster(ALIVE), vec![], "why one");
    assert_eq!(status, 0, "{err}");
    assert!(out.starts_with("lab/one is on gpu.\n"), "{out}");
    let (status, _, err) = run(cluster(ALIVE), vec![], "why one -n school");
    assert_eq!((status, err.as_str()), (2, "error: Desktop school/one does not exist\n"));
}

#[test]
fn a_node_whose_daemon_is_silent_takes_nothing_new() {
    let known = cluster(Some("False"));
    let (status, out, _) = run(known, vec![], "plan --from-cluster -f three.yaml");
    assert_eq!(status, 1);
    assert!(out.contains("node daemon silent"), "{out}");
}

#[test]
fn a_node_of_which_no_operator_has_said_anything_is_noted() {
    let (status, _, err) = run(cluster(None), vec![], "plan --from-cluster");
    assert_eq!(status, 0);
    let rest = "no operator has said whether the daemon lives (condition DaemonHeard): taken for heard";
    assert_eq!(err, format!("note: of 1 GpuNode {rest}\n"));
}

#[test]
fn who_may_see_only_a_desktop_is_told_what_the_operator_says_of_it() {
    let (status, out, err) = run(cluster(ALIVE), vec![NODES], "why one -o json");
    assert_eq!(status, 0, "{err}");
    let answer: DesktopExplanation = serde_json::from_str(&out).unwrap();
    assert_eq!(answer.desktop.node.as_deref(), Some("gpu"));
    assert_eq!(answer.allocated.unwrap().message, "on gpu");
    assert!(answer.notes[0].contains("without it nodes cannot be judged one by one"), "{:?}", answer.notes);
    let (status, _, err) = run(cluster(ALIVE), vec![NODES], "plan --from-cluster");
    assert_eq!(status, 3);
    assert_eq!(err, format!("error: reading GpuNodes: Forbidden: {NODES}\n"));
}

#[test]
fn an_object_that_cannot_be_read_is_left_out_with_a_note() {
    let mut known = cluster(ALIVE);
    let profiles = known.get_mut(&format!("{API}/gpuprofiles")).unwrap()["items"].as_array_mut().unwrap();
    profiles.push(
        json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuProfile", "metadata": {"name": "odd"},
        "spec": {"alternatives": 7}}),
    );
    let (status, _, err) = run(known, vec![], "plan --from-cluster");
    assert_eq!(status, 0);
    assert!(err.starts_with("note: GpuProfiles: odd is left out, for it cannot be read: "), "{err}");
}
