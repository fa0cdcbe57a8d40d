//! The control plane of the harness: what the other tests rely on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::control_plane::{ControlPlane, Place};
use gpudesk_e2e::identity::{service_account_kubeconfig, who_am_i};
use gpudesk_e2e::processes::{Identity, Lifetime, run};
use gpudesk_e2e::state::StateDir;
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::eventually;
use gpudesk_e2e::{etcd, kubeconfig};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use serde_json::json;

/// Set for a copy of this program that plays a part in a trial.
const ROLE: &str = "GPUDESK_E2E_ROLE";

fn main() -> ExitCode {
    match std::env::var(ROLE).as_deref() {
        Ok("victim") => return be_killed(),
        Ok("visitor") => return visit(),
        _ => {}
    }
    Suite::<()>::new("control_plane")
        .trial("two_run_side_by_side_and_stop_leaves_no_process", |_| two_side_by_side())
        .trial("a_restarted_api_server_has_its_objects", |_| restart_keeps_objects())
        .trial("a_token_bound_to_a_node_carries_its_name", |_| bound_token())
        .trial("an_object_that_the_schema_refuses_can_be_stored", |_| malformed_object())
        .trial("a_detached_one_is_found_and_stopped_by_a_later_run", |_| detached())
        .trial("a_cluster_that_is_there_is_used_and_left_running", |_| visited())
        .trial("a_killed_test_leaves_nothing", |_| killed())
        .run()
}

async fn start(name: &str) -> Result<(ControlPlane, Arc<StateDir>)> {
    let state = Arc::new(StateDir::for_test(name)?);
    let control_plane = ControlPlane::start(&state, Lifetime::Test).await?;
    Ok((control_plane, state))
}

fn identities(control_plane: &ControlPlane) -> Vec<Identity> {
    control_plane.pids().into_iter().map(|pid| Identity::of(pid).expect("it runs")).collect()
}

async fn config_maps(control_plane: &ControlPlane) -> Result<Api<ConfigMap>> {
    Ok(Api::namespaced(control_plane.client().await?, "default"))
}

fn config_map(name: &str) -> ConfigMap {
    let data = BTreeMap::from([("key".to_owned(), "value".to_owned())]);
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }
}

async fn two_side_by_side() -> Result<()> {
    let began = Instant::now();
    let (mut first, first_state) = start("first").await?;
    let (took, memory) = (began.elapsed(), first.memory()?);
    println!("ready after {took:.1?}; {memory:?} KiB");
    let (second, second_state) = start("second").await?;

    config_maps(&first).await?.create(&PostParams::default(), &config_map("of-the-first")).await?;
    ensure!(config_maps(&second).await?.get_opt("of-the-first").await?.is_none(), "they share a store");

    let processes = [identities(&first), identities(&second)].concat();
    ensure!(processes.len() == 6 && processes.iter().all(|process| process.is_running()));
    let folder = first_state.path().to_owned();
    let began = Instant::now();
    first.stop()?;
    println!("stopped after {:.1?}", began.elapsed());
    ensure!(
        config_maps(&second).await?.get_opt("kube-root-ca.crt").await.is_ok(),
        "the other one went with it"
    );
    second.stop()?;
    ensure!(processes.iter().all(|process| !process.is_running()), "a process is left");
    drop((first_state, second_state));
    ensure!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}

async fn restart_keeps_objects() -> Result<()> {
    let (mut control_plane, _state) = start("restart").await?;
    config_maps(&control_plane).await?.create(&PostParams::default(), &config_map("kept")).await?;
    let before = control_plane.pids();

    let began = Instant::now();
    control_plane.restart_api_server().await?;
    println!("API server restarted after {:.1?}", began.elapsed());
    let object = config_maps(&control_plane).await?.get("kept").await?;
    ensure!(object.data.unwrap_or_default()["key"] == "value");

    control_plane.kill_api_server()?;
    ensure!(config_maps(&control_plane).await?.get("kept").await.is_err(), "it answers though it was killed");
    control_plane.restart_api_server().await?;
    config_maps(&control_plane).await?.get("kept").await?;

    let after = control_plane.pids();
    ensure!(before[0] == after[0] && before[1] != after[1] && before[2] == after[2], "{before:?} {after:?}");
    control_plane.stop()
}

async fn bound_token() -> Result<()> {
    let (control_plane, state) = start("token").await?;
    let bound =
        service_account_kubeconfig(&control_plane, &state, "default", "default", Some("node-a")).await?;
    let user = who_am_i(&bound).await?;
    ensure!(user.username.as_deref() == Some("system:serviceaccount:default:default"), "{user:?}");
    let extra = user.extra.clone().unwrap_or_default();
    let node = extra.get("authentication.kubernetes.io/node-name");
    ensure!(node == Some(&vec!["node-a".to_owned()]), "{user:?}");

    let unbound = service_account_kubeconfig(&control_plane, &state, "default", "default", None).await?;
    let extra = who_am_i(&unbound).await?.extra.unwrap_or_default();
    ensure!(!extra.contains_key("authentication.kubernetes.io/node-name"), "{extra:?}");
    control_plane.stop()
}

async fn malformed_object() -> Result<()> {
    let (mut control_plane, state) = start("malformed").await?;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "things.example.org" },
        "spec": {
            "group": "example.org", "scope": "Namespaced",
            "names": { "plural": "things", "singular": "thing", "kind": "Thing" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                "type": "object", "properties": { "size": { "type": "integer" } },
            } } }],
        },
    });
    let file = state.join("things.json");
    std::fs::write(&file, definition.to_string())?;
    control_plane.kubectl(["apply", "-f", &file.to_string_lossy()])?;
    control_plane.kubectl([
        "wait",
        "--for=condition=Established",
        "--timeout=20s",
        "crd/things.example.org",
    ])?;

    let thing = json!({
        "apiVersion": "example.org/v1", "kind": "Thing", "size": "not a number",
        "metadata": { "name": "odd", "namespace": "default", "uid": "6cf7a0bc-4c0b-4f3e-9a25-53a0e0a1d5c1" },
    });
    let file = state.join("thing.json");
    std::fs::write(&file, thing.to_string())?;
    let refused = control_plane.kubectl(["create", "--validate=false", "-f", &file.to_string_lossy()]);
    ensure!(refused.is_err(), "the API server accepts it, so this proves nothing");

    let store = control_plane.etcd().await?;
    let key = etcd::key("example.org", "things", Some("default"), "odd");
    ensure!(store.get(&key).await?.is_none());
    store.put(&key, &thing).await?;
    ensure!(store.get(&key).await? == Some(thing));
    let seen = control_plane.kubectl(["get", "things", "odd", "-o", "jsonpath={.size}"])?;
    ensure!(seen == "not a number", "{seen}");
    control_plane.stop()
}

async fn detached() -> Result<()> {
    // A name of this process, so that two runs of this test do not meet.
    let state = Arc::new(StateDir::named(&format!("detached-{}", std::process::id()))?);
    let outcome = detached_in(&state).await;
    ControlPlane::stop_recorded(&state)?;
    state.remove()?;
    outcome
}

async fn detached_in(state: &Arc<StateDir>) -> Result<()> {
    let control_plane = ControlPlane::start(state, Lifetime::Detached).await?;
    let processes = identities(&control_plane);
    drop(control_plane);
    ensure!(processes.iter().all(|process| process.is_running()), "a detached process ended with its handle");

    let again = ControlPlane::running_in(state, &Place::Loopback)?.context("a later run does not find it")?;
    ensure!(identities(&again) == processes);
    config_maps(&again).await?.get("kube-root-ca.crt").await.ok();
    ControlPlane::stop_recorded(state)?;
    ensure!(processes.iter().all(|process| !process.is_running()), "a process is left");
    ensure!(ControlPlane::running_in(state, &Place::Loopback)?.is_none());
    Ok(())
}

async fn visited() -> Result<()> {
    let (control_plane, _state) = start("visited").await?;
    let mut visitor = Command::new(std::env::current_exe()?);
    visitor.env(ROLE, "visitor").env("GPUDESK_USE_KUBECONFIG", "1");
    run(visitor.env("KUBECONFIG", control_plane.kubeconfig()))?;
    config_maps(&control_plane).await?.get("of-the-visitor").await?;
    control_plane.stop()
}

/// Uses the cluster of `KUBECONFIG` as a test does that would otherwise start its own.
fn visit() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (mut control_plane, _state) = start("visitor").await.unwrap();
        assert!(control_plane.pids().is_empty(), "it started one of its own");
        let maps = config_maps(&control_plane).await.unwrap();
        maps.create(&PostParams::default(), &config_map("of-the-visitor")).await.unwrap();
        assert!(control_plane.restart_api_server().await.is_err() && control_plane.etcd().await.is_err());
        control_plane.stop().unwrap();
    });
    ExitCode::SUCCESS
}

/// Starts a control plane, says what it started, and waits for the end.
fn be_killed() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (control_plane, state) = runtime.block_on(start("victim")).unwrap();
    println!("{}", json!({ "folder": state.path(), "processes": identities(&control_plane) }));
    loop {
        std::thread::park();
    }
}

async fn killed() -> Result<()> {
    let mut victim = Command::new(std::env::current_exe()?);
    let mut victim = victim.env(ROLE, "victim").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(victim.stdout.take().context("no pipe")?).read_line(&mut line)?;
    let started: serde_json::Value = serde_json::from_str(&line).context("the victim did not start")?;
    let processes: Vec<Identity> = serde_json::from_value(started["processes"].clone())?;
    let folder = std::path::PathBuf::from(started["folder"].as_str().context("no folder")?);
    ensure!(processes.len() == 3 && processes.iter().all(|process| process.is_running()));

    victim.kill()?;
    victim.wait()?;
    eventually("what the killed test started is gone", Duration::from_secs(10), || async {
        Ok(processes.iter().all(|process| !process.is_running()).then_some(()))
    })
    .await?;
    // Its folder goes with the next test that makes one.
    drop(StateDir::for_test("sweeper")?);
    eventually("its folder is gone", Duration::from_secs(10), || async {
        Ok((!folder.exists()).then_some(()))
    })
    .await?;
    // The client module is what every test uses: it must fail for a server that is gone.
    ensure!(kubeconfig::client(&folder.join("admin.kubeconfig")).await.is_err());
    Ok(())
}
