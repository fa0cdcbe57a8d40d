//! Operators that lead one after the other, and for some seconds both: only the leader's word is written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use gpudesk_crds::{Desktop, conditions::ConditionType};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::held_proxy::HeldProxy;
use gpudesk_e2e::kubeconfig;
use gpudesk_e2e::objects::Objects;
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::Service;
use gpudesk_e2e::state::checkout;
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::eventually;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(90);
const LEASE: &str = "gpudesk-operator";
const TERM: &str = "gpudesk.dev/operator-term";
/// The shortest duration of a lease that there is; held for twice that, as 60 s are to the usual 30 s.
const LEASE_SECONDS: u64 = 6;
const DESKTOPS: usize = 30;

fn main() -> ExitCode {
    Suite::<Cluster>::new("leaders")
        // One trial: the parts take the same Lease, one after the other.
        .trial("what_a_deposed_leader_sent_is_refused_and_gives_nothing_twice", |cluster| async move {
            terms(&cluster).await?;
            overlap(&cluster).await?;
            taken_away(&cluster).await
        })
        .run()
}

fn leases(client: &Client) -> Api<Lease> {
    Api::namespaced(client.clone(), SYSTEM_NAMESPACE)
}

/// A status as the operator applies it: with a place, or with none.
fn status(gives: bool, term: Option<&str>) -> Value {
    let mut status = json!({"phase": "Pending"});
    if gives {
        status["allocation"] = json!({
            "node": "n", "desktopGeneration": 1, "templateGeneration": 1, "decidedAt": "2026-01-01T00:00:00Z",
        });
    }
    if let Some(term) = term {
        status["operatorTerm"] = term.into();
    }
    json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop", "metadata": {"name": "a"}, "status": status})
}

/// Every way in which the account of the operator may write a status.
async fn write(desktops: &Api<Desktop>, status: &Value, manager: &str) -> Vec<Result<(), kube::Error>> {
    let applied = PatchParams::apply(manager).force();
    // Dry: what is applied after it owns the fields alone.
    let merged = PatchParams { field_manager: Some(manager.into()), dry_run: true, ..PatchParams::default() };
    vec![
        desktops.patch_status("a", &applied, &Patch::Apply(status)).await.map(|_| ()),
        desktops
            .patch_status("a", &merged, &Patch::Merge(json!({"status": status["status"]})))
            .await
            .map(|_| ()),
    ]
}

fn is_refused(result: &Result<(), kube::Error>) -> bool {
    matches!(result, Err(kube::Error::Api(answer)) if answer.code == 403 && answer.message.contains("may write nothing"))
}

/// What the policy refuses and what it takes, whoever leads.
async fn terms(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let objects = Objects::new(client, &cluster.namespace("terms").await?);
    objects.desktop("a", "{templateRef: {name: t}}").await?;
    let operator = kubeconfig::client(&cluster.operator_kubeconfig().await?).await?;
    let desktops: Api<Desktop> = Api::namespaced(operator.clone(), objects.namespace());
    let lease: Lease = serde_json::from_value(json!({
        "metadata": {"name": LEASE, "annotations": {TERM: "3"}},
        "spec": {"holderIdentity": "other", "leaseTransitions": 3, "leaseDurationSeconds": 600},
    }))?;
    let made = leases(client).create(&PostParams::default(), &lease).await?;
    let term = |turns: i32| format!("{}:{turns}", made.metadata.uid.as_deref().unwrap_or_default());

    let refused = |term: Option<String>| {
        let desktops = desktops.clone();
        async move {
            for (gives, manager) in [(true, "gpudesk-operator"), (false, "gpudesk-operator")] {
                let status = status(gives, term.as_deref());
                // A policy is in effect some time after it was made.
                eventually(&format!("{manager}: {status} is refused"), SOON, || async {
                    Ok(write(&desktops, &status, manager).await.iter().all(is_refused).then_some(()))
                })
                .await?;
            }
            anyhow::Ok(())
        }
    };
    let taken = async |turns: i32| -> Result<()> {
        for result in write(&desktops, &status(true, Some(&term(turns))), "gpudesk-operator").await {
            result.with_context(|| format!("the leader's own term, {turns}"))?;
        }
        Ok(())
    };
    for old in [None, Some(String::new()), Some(term(2)), Some(term(33)), Some("another-lease:3".to_owned())]
    {
        refused(old).await?;
    }
    taken(3).await?;
    // Another takes over: what the leader before it sends then is refused, what it sent before stands.
    let turns = json!({"metadata": {"annotations": {TERM: "4"}}, "spec": {"leaseTransitions": 4}});
    leases(client).patch(LEASE, &PatchParams::default(), &Patch::Merge(turns)).await?;
    refused(Some(term(3))).await?;
    taken(4).await?;
    ensure!(desktops.get("a").await?.status.is_some_and(|status| status.allocation.is_some()));

    // Nobody else needs a term, and nobody else may say one: not the daemon of the desktop's node.
    let daemon = kubeconfig::client(&cluster.daemon_kubeconfig("n").await?).await?;
    let of_daemon: Api<Desktop> = Api::namespaced(daemon, objects.namespace());
    let says = |status: Value| json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop", "metadata": {"name": "a"}, "status": status});
    let params = PatchParams::apply("gpudesk-node-daemon").force();
    let running = says(json!({"addresses": ["10.0.2.15"]}));
    of_daemon.patch_status("a", &params, &Patch::Apply(running)).await.context("the daemon's status")?;
    let term_of_daemon = says(json!({"addresses": ["10.0.2.15"], "operatorTerm": term(9)}));
    ensure!(of_daemon.patch_status("a", &params, &Patch::Apply(term_of_daemon)).await.is_err());

    // An operator of a version that says no term takes over and leaves the annotation: it is held up by nothing,
    // and who said a term before it is refused.
    let turns = json!({"spec": {"leaseTransitions": 5}});
    leases(client).patch(LEASE, &PatchParams::default(), &Patch::Merge(turns)).await?;
    eventually("whoever promised no term needs none", SOON, || async {
        let (params, patch) =
            (PatchParams::apply("gpudesk-operator").force(), Patch::Apply(status(true, None)));
        let applied = desktops.patch_status("a", &params, &patch);
        Ok(applied.await.is_ok().then_some(()))
    })
    .await?;
    refused(Some(term(4))).await?;

    // The account may try to make the one Lease by which it asks for its term, and not make it; and write
    // nothing into its own but the promise.
    let leases_of_operator = leases(&operator);
    let probe = |name: &str| -> Result<Lease> {
        Ok(serde_json::from_value(json!({"metadata": {"name": name, "annotations": {TERM: term(5)}}}))?)
    };
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    leases_of_operator.create(&dry, &probe("gpudesk-operator-term")?).await.context("the trial")?;
    ensure!(
        leases_of_operator.create(&PostParams::default(), &probe("gpudesk-operator-term")?).await.is_err()
    );
    ensure!(leases_of_operator.create(&dry, &probe("gpudesk-node-n")?).await.is_err());
    let mut own = leases_of_operator.get(LEASE).await?;
    own.annotations_mut().insert("example.org/other".into(), "x".into());
    ensure!(leases_of_operator.replace(LEASE, &dry, &own).await.is_err());

    // Without a Lease nobody leads and nobody else is held up.
    leases(client).delete(LEASE, &DeleteParams::default()).await?;
    eventually("without a Lease the policy refuses nothing", SOON, || async {
        let results = write(&desktops, &status(true, Some("none")), "gpudesk-operator").await;
        Ok(results.iter().all(Result::is_ok).then_some(()))
    })
    .await
}

/// A proxy before the API server, and a kubeconfig of the operator's account that goes through it.
async fn held(cluster: &Cluster) -> Result<(HeldProxy, PathBuf)> {
    let own = cluster.operator_kubeconfig().await?;
    let mut config: Value = serde_yaml::from_slice(&std::fs::read(&own)?)?;
    let server = &mut config["clusters"][0]["cluster"]["server"];
    let address = server.as_str().and_then(|server| server.strip_prefix("https://")).context("no server")?;
    let proxy = HeldProxy::start(address.parse()?).await?;
    *server = format!("https://{}", proxy.address()).into();
    let path = cluster.state().join("held.kubeconfig");
    std::fs::write(&path, config.to_string())?;
    Ok((proxy, path))
}

fn operator(cluster: &Cluster, name: &str, kubeconfig: &Path, more: &[&str]) -> Result<Service> {
    let seconds = LEASE_SECONDS.to_string();
    let settings = [&["--lease-seconds", &seconds], more].concat();
    Service::operator(name, cluster.state(), Lifetime::Test, kubeconfig, SYSTEM_NAMESPACE, &settings)
}

/// UID of the Lease and its transitions.
async fn term_now(client: &Client) -> Result<Option<String>> {
    let lease = leases(client).get_opt(LEASE).await?;
    Ok(lease.and_then(|lease| Some(format!("{}:{}", lease.uid()?, lease.spec?.lease_transitions?))))
}

/// How often the API server refused a term.
async fn refusals(client: &Client) -> Result<u64> {
    let text = client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
    let of_policy = |line: &&str| {
        line.starts_with("apiserver_validating_admission_policy_check_total{")
            && line.contains("operator-term.gpudesk.dev")
            && line.contains("\"deny\"")
    };
    Ok(text.lines().filter(of_policy).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

/// The holders of each card.
async fn holders(objects: &Objects) -> Result<BTreeMap<String, Vec<String>>> {
    let mut holders: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for desktop in objects.desktops().list(&ListParams::default()).await? {
        let allocation = desktop.status.as_ref().and_then(|status| status.allocation.as_ref());
        for gpu in allocation.into_iter().flat_map(|allocation| &allocation.gpus) {
            holders.entry(gpu.device.to_string()).or_default().push(desktop.name_any());
        }
    }
    let twice = holders.values().any(|holders| holders.len() > 1);
    ensure!(!twice, "a card was given twice: {holders:?}");
    Ok(holders)
}

/// A leader decides and is held up; another takes over and decides otherwise; then what the first sent
/// arrives, before the second has written to all that it looked at.
async fn overlap(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let daemon = cluster.start_simulated("host", &checkout().join("examples/hosts/t4.yaml")).await?;
    let objects = Objects::new(client, &cluster.namespace("overlap").await?);
    objects.profile("whole-t4", "{alternatives: [{passthrough: {}}]}").await?;
    objects
        .template("t", "{cpu: {cores: 1}, memory: {sizeMiB: 1024}, gpus: [{name: g, profileRef: {name: whole-t4}}], disks: [{name: s, image: {name: any}}], guestAgent: false}")
        .await?;
    let names: Vec<String> = (0..DESKTOPS).map(|index| format!("d-{index}")).collect();
    let stopped = "{templateRef: {name: t}, powerState: Stopped}";
    try_join_all(names.iter().map(|name| objects.desktop(name, stopped))).await?;

    let (proxy, through) = held(cluster).await?;
    let mut first = operator(cluster, "held-operator", &through, &[])?;
    first.wait_ready().await?;
    for name in &names {
        objects.is(name, ConditionType::Ready, false, SOON).await?;
    }
    let before = term_now(client).await?;

    // The first hears what is asked for, decides, and is not heard any more: it ends by itself.
    proxy.hold();
    let on = json!({"spec": {"powerState": "Running"}});
    try_join_all(names.iter().map(|name| objects.patch(name, on.clone()))).await?;
    let ended =
        eventually("the first ends", SOON, || async { Ok((!first.process().is_running()).then_some(())) });
    ended.await.with_context(|| first.process().log_tail())?;
    // One write a second: it writes the places first, and long not all that it has to say.
    let own = cluster.operator_kubeconfig().await?;
    let second = operator(cluster, "second-operator", &own, &["--writes-per-second", "1"])?;
    eventually("the second leads", SOON, || async { Ok((term_now(client).await? != before).then_some(())) })
        .await?;
    eventually("both cards are given", SOON, || async {
        Ok((holders(&objects).await?.len() == 2).then_some(()))
    })
    .await?;
    let (given, refused) = (holders(&objects).await?, refusals(client).await?);
    proxy.let_go();
    eventually("what the first sent arrives and is refused", SOON, || async {
        ensure!(holders(&objects).await? == given, "given was {given:?}");
        Ok((refusals(client).await? > refused).then_some(()))
    })
    .await?;
    eventually("the second has said all that it has to say", SOON, || async {
        ensure!(holders(&objects).await? == given, "given was {given:?}");
        let all = objects.desktops().list(&ListParams::default()).await?.items;
        let term = term_now(client).await?;
        let raw: Vec<Value> = all.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
        let says = |desktop: &Value| {
            desktop["status"]["allocation"].is_object() || desktop["status"]["phase"] == "Pending"
        };
        Ok((raw.iter().all(says) && term.is_some()).then_some(()))
    })
    .await?;
    first.kill()?;
    second.stop()?;
    daemon.stop()?;
    Ok(())
}

/// The Lease is deleted under a leader, and a leader starts again under its name.
async fn taken_away(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let objects = Objects::new(client, &cluster.namespace("taken").await?);
    let own = cluster.operator_kubeconfig().await?;
    let mut terms = vec![term_now(client).await?.context("the one before leaves a Lease")?];
    // Whoever stands by is ready too: only another term says that it leads.
    let leads = async |last: &str| {
        eventually("it leads", SOON, || async { Ok(term_now(client).await?.filter(|term| term != last)) })
            .await
    };
    let mut leader = operator(cluster, "named-operator", &own, &["--identity", "always-me"])?;
    terms.push(leads(&terms[0]).await?);
    let works = async |name: &str| -> Result<()> {
        objects.desktop(name, "{templateRef: {name: none}}").await?;
        objects.is(name, ConditionType::Allocated, false, SOON).await.map(|_| ())
    };
    works("before").await?;

    // Killed, it gives nothing back: the next of its name takes the Lease at once, and under another term.
    leader.kill()?;
    leader.restart()?;
    terms.push(leads(&terms[1]).await?);
    works("restarted").await?;

    leases(client).delete(LEASE, &DeleteParams::default()).await?;
    eventually("a leader whose Lease is gone ends", SOON, || async {
        Ok((!leader.process().is_running()).then_some(()))
    })
    .await?;
    let log = leader.process().log()?;
    ensure!(log.contains("the leader lease was deleted"), "{log}");
    leader.restart()?;
    terms.push(leads(&terms[2]).await?);
    works("anew").await?;
    let uids: Vec<&str> = terms.iter().filter_map(|term| term.split(':').next()).collect();
    ensure!(uids[1] == uids[2] && uids[2] != uids[3], "{terms:?}");
    // What it wrote last carries the term that it had then.
    let written =
        cluster.kubectl(["get", "desktops", "--namespace", objects.namespace(), "--output=json"])?;
    let written: Value = serde_json::from_str(&written)?;
    let items = written["items"].as_array().context("no list")?;
    let term_of = |name: &str| {
        let named = items.iter().find(|desktop| desktop["metadata"]["name"] == name);
        named.map(|desktop| desktop["status"]["operatorTerm"].clone())
    };
    ensure!(term_of("anew") == Some(json!(terms[3])), "{:?}", term_of("anew"));
    leader.stop()?;
    Ok(())
}
