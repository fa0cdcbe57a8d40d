//! The steps of the demo, each of which looks first at what is there already.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use gpudesk_crds::conditions::{self, ConditionType};
use gpudesk_crds::{Desktop, GpuNode, domain_name};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Api, ResourceExt};
use serde::Deserialize;
use tokio::time::sleep;

use super::{
    DESKTOP, Host, NAMESPACE, Progress, Real, SIMULATED, current, desktops, foreign_cluster, report,
    this_node,
};
use crate::accelerator::{Accelerator, accelerator};
use crate::cluster::{Cluster, SYSTEM_NAMESPACE};
use crate::control_plane::{ControlPlane, Place};
use crate::libvirt_host::LibvirtHost;
use crate::processes::{Lifetime, Process};
use crate::programs::{self, DaemonOptions};
use crate::screen::Virsh;
use crate::state::{StateDir, checkout, copy_whole, hash};
use crate::waiting::eventually;

/// Whose the fields are that the demo applies.
const MANAGER: &str = "gpudesk-demo";
/// How long a node may take until it is ready.
const NODE: Duration = Duration::from_mins(2);

/// How long a guest may take to boot: under plain emulation on a busy machine of two cores it takes its time.
const fn boot(accelerator: &Accelerator) -> Duration {
    match accelerator {
        Accelerator::Kvm => Duration::from_mins(5),
        Accelerator::Tcg { .. } => Duration::from_mins(30),
    }
}

/// Keeps two demos of one checkout from working at the same time.
pub(super) fn lock(state: &StateDir) -> Result<File> {
    let file = File::create(state.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another `make demo` or `make demo-down` of this checkout is at work")
        }
        Err(TryLockError::Error(error)) => Err(error).context("lock the state folder"),
    }
}

/// The golden image, built on the first run.
pub(super) fn golden_image(progress: Progress) -> Result<PathBuf> {
    progress.say("golden image: Debian 12 (built once, about a minute and a half)");
    let output = Command::new(checkout().join("e2e/guest/build-image.sh"))
        .stderr(Stdio::inherit())
        .output()
        .context("run e2e/guest/build-image.sh")?;
    ensure!(output.status.success(), "the golden image was not built: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let path = PathBuf::from(text.lines().next_back().context("build-image.sh printed no path")?);
    progress.say(&format!("golden image: {}", path.display()));
    Ok(path)
}

/// The control plane: the given one, the one of an earlier run, or a new one.
async fn cluster(state: &Arc<StateDir>, progress: Progress) -> Result<Cluster> {
    if !foreign_cluster() {
        if let Some(cluster) = Cluster::running_in(state, &Place::Loopback).await? {
            progress.say("control plane: runs already");
            return Ok(cluster);
        }
        // What an interrupted run left half is not worth keeping.
        ControlPlane::stop_recorded(state)?;
        progress
            .say("control plane: etcd, kube-apiserver, kube-controller-manager (built once, some minutes)");
    }
    let cluster = Cluster::bare(state, Lifetime::Detached).await?;
    progress.say("control plane: ready");
    Ok(cluster)
}

/// Group of this demo's guests, which names the tables that filter their network: another for each state
/// folder, so that one demo that ends leaves the guests of the others filtered.
fn group(state: &StateDir) -> Result<String> {
    let path = state.path().canonicalize().context("the state folder")?;
    let number = hash(path.as_os_str().as_encoded_bytes());
    Ok((2_114_000_000 + number % 1_000_000_000).to_string())
}

/// A libvirt of the demo's own.
async fn libvirt(state: &Arc<StateDir>, progress: Progress) -> Result<LibvirtHost> {
    if let Some(host) = LibvirtHost::running_in(state) {
        progress.say("libvirt: runs already");
        return Ok(host);
    }
    LibvirtHost::stop_recorded(state)?;
    progress.say(&format!("guests will run with {}", accelerator()));
    progress.say("libvirt: starting one of the demo's own; that of this machine is left alone");
    let host = LibvirtHost::start(state, Lifetime::Detached).await?;
    progress.say("libvirt: ready");
    Ok(host)
}

/// Definitions and chart.
fn install(cluster: &Cluster, progress: Progress) -> Result<()> {
    cluster.apply_crds()?;
    progress.say("definitions: crds/ applied");
    cluster.helm_install(&[])?;
    progress.say("chart: charts/gpudesk installed (its pods wait: no kubelet runs here)");
    Ok(())
}

/// All of it as processes, each with the token of its own service account.
pub(super) async fn processes(state: &Arc<StateDir>, image: &Path, progress: Progress) -> Result<Real> {
    let cluster = cluster(state, progress).await?;
    let host = libvirt(state, progress).await?;
    install(&cluster, progress)?;
    let binaries = programs::binaries()?;
    let accepted = cluster.is_accepted(None).await?;
    if is_current(state, "gpudesk-operator", &binaries.join("gpudesk-operator"), accepted)? {
        progress.say("operator: runs already");
    } else {
        cluster.start_operator().await?;
        progress.say("operator: runs with service account gpudesk-operator");
    }
    let images = host.images()?;
    // An image that is there stays: the disks of desktops are overlays on it.
    copy_whole(image, &images)?;
    let node = this_node();
    let options = DaemonOptions {
        node: node.clone(),
        libvirt_uri: Some(host.uri()),
        image_roots: vec![images],
        arguments: vec!["--guest-group".into(), group(state)?.into()],
        ..DaemonOptions::default()
    };
    daemon(&cluster, &options, progress).await?;
    let desktops = state.join("daemons").join(&node).join("desktops");
    Ok(Real { cluster, node, host: Host::Libvirt(host), desktops })
}

/// The daemons of simulated hosts, which have no Kubernetes node to be pods on.
pub(super) async fn simulated(cluster: &Cluster, progress: Progress) -> Result<()> {
    for (node, file) in SIMULATED {
        let options = DaemonOptions {
            node: node.to_owned(),
            simulate: Some(checkout().join("examples/hosts").join(file)),
            ..DaemonOptions::default()
        };
        daemon(cluster, &options, progress).await?;
    }
    Ok(())
}

async fn daemon(cluster: &Cluster, options: &DaemonOptions, progress: Progress) -> Result<()> {
    let kind = if options.simulate.is_some() { "simulated host" } else { "this machine" };
    let name = format!("gpudesk-node-daemon-{}", options.node);
    let accepted = cluster.is_accepted(Some(&options.node)).await?;
    let binary = programs::binaries()?.join("gpudesk-node-daemon");
    if is_current(cluster.state(), &name, &binary, accepted)? {
        progress.say(&format!("node daemon: {} ({kind}) runs already", options.node));
    } else {
        cluster.start_daemon(options).await?;
        progress.say(&format!("node daemon: {} ({kind}) runs with a token bound to its node", options.node));
    }
    Ok(())
}

/// Takes the filter of the demo's guests from this machine, once none runs.
pub(super) fn remove_filter(state: &StateDir) -> Result<()> {
    let table = format!("gpudesk-guests-{}", group(state)?);
    for family in ["inet", "bridge"] {
        let table = [family, &table].map(str::to_owned);
        let nft = |verb: &str| Command::new("nft").args(verb.split(' ')).args(&table).output();
        // Without nft there is none.
        if nft("list table").is_ok_and(|listed| listed.status.success()) {
            ensure!(nft("delete table")?.status.success(), "nft did not delete the table {table:?}");
        }
    }
    Ok(())
}

/// Whether the program runs as it was last built, with a token that is `accepted`; another is stopped, for a
/// new start.
fn is_current(state: &StateDir, name: &str, binary: &Path, accepted: bool) -> Result<bool> {
    if accepted && current(state, name, binary).is_some() {
        return Ok(true);
    }
    if let Some(mut outdated) = Process::recorded(state, name) {
        outdated.stop(Duration::from_secs(15))?;
    }
    Ok(false)
}

/// Waits until desktops can be placed on every node.
pub(super) async fn wait_for_nodes(real: &Real, progress: Progress) -> Result<()> {
    let Real { cluster, node, .. } = real;
    let api: Api<GpuNode> = Api::all(cluster.client().clone());
    let start = Instant::now();
    for name in std::iter::once(node.as_str()).chain(SIMULATED.map(|(name, _)| name)) {
        loop {
            let found = api.get_opt(name).await?;
            let status = found.as_ref().and_then(|node| node.status.as_ref());
            let ready = status.and_then(|status| conditions::find(&status.conditions, ConditionType::Ready));
            if ready.is_some_and(|ready| ready.status == "True") {
                break;
            }
            if start.elapsed() > NODE {
                let why = ready.map_or_else(
                    || "its daemon has said nothing".to_owned(),
                    |ready| format!("{}: {}", ready.reason, ready.message),
                );
                bail!(
                    "node {name} is not ready after {}: {why}. {}",
                    minutes(NODE),
                    what_now(&cluster.state().logs(), None)
                );
            }
            sleep(Duration::from_millis(300)).await;
        }
    }
    progress.say("nodes: all of them ready");
    Ok(())
}

/// What can be done when a step takes too long.
fn what_now(logs: &Path, guest_log: Option<&Path>) -> String {
    let guest = guest_log.map(|log| format!("; what the guest prints is in {}", log.display()));
    format!(
        "All of it stays up and the same command goes on from here; logs are in {}{}; `{}` ends it",
        logs.display(),
        guest.unwrap_or_default(),
        report::down(),
    )
}

fn minutes(time: Duration) -> String {
    format!("{} minutes", time.as_secs() / 60)
}

/// Where the console of the desktop that boots for real is written to.
async fn guest_log(real: &Real) -> Result<PathBuf> {
    let uid = desktops(&real.cluster).get(DESKTOP).await?.uid().unwrap_or_default();
    Ok(real.desktops.join(uid).join("serial.log"))
}

/// The manifests that a user would apply. Where he has changed what is in them, his word counts. Returns the names of
/// the desktops in them.
pub(super) async fn apply_quickstart(cluster: &Cluster, progress: Progress) -> Result<Vec<String>> {
    let mut desktops = vec![];
    let mut files = fs::read_dir(checkout().join("examples/quickstart"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file)?;
        for document in serde_yaml::Deserializer::from_str(&text) {
            let object = DynamicObject::deserialize(document).with_context(|| file.display().to_string())?;
            let types = object.types.as_ref().context("a manifest names its kind")?;
            let resource = ApiResource::from_gvk(&types.try_into()?);
            let api: Api<DynamicObject> = match &object.metadata.namespace {
                Some(namespace) => Api::namespaced_with(cluster.client().clone(), namespace, &resource),
                None => Api::all_with(cluster.client().clone(), &resource),
            };
            let name = object.name_any();
            desktops.extend((types.kind == "Desktop").then(|| name.clone()));
            match api.patch(&name, &PatchParams::apply(MANAGER), &Patch::Apply(&object)).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    progress.say(&format!("{} {name} was changed and stays as it is", types.kind));
                }
                Err(error) => return Err(error).with_context(|| format!("apply {} {name}", types.kind)),
            }
        }
    }
    progress.say("applied: examples/quickstart/");
    Ok(desktops)
}

/// Waits until the desktop that boots for real is ready, and says what it waits for.
pub(super) async fn wait_for_desktop(real: &Real, progress: Progress) -> Result<()> {
    let cluster = &real.cluster;
    let (api, limit) = (desktops(cluster), boot(accelerator()));
    let start = Instant::now();
    let mut said = (String::new(), Instant::now());
    loop {
        let desktop = api.get(DESKTOP).await?;
        let words = state_of(&desktop);
        if is_ready(&desktop) {
            progress.say(&format!("desktop {NAMESPACE}/{DESKTOP}: ready"));
            return Ok(());
        }
        if words != said.0 || said.1.elapsed() > Duration::from_secs(10) {
            progress.say(&format!("desktop {NAMESPACE}/{DESKTOP}: {words}"));
            said = (words.clone(), Instant::now());
        }
        if start.elapsed() > limit {
            let log = guest_log(real).await?;
            bail!(
                "desktop {NAMESPACE}/{DESKTOP} is not ready after {}: {words}. {}",
                minutes(limit),
                what_now(&cluster.state().logs(), Some(&log))
            );
        }
        sleep(Duration::from_millis(300)).await;
    }
}

/// Waits until cloud-init has done in the guest what the quickstart's template says: only then is
/// there somebody who can log in. The guest agent, which comes earlier, is asked.
pub(super) async fn wait_for_first_boot(real: &Real, progress: Progress) -> Result<()> {
    const DONE: &str =
        r#"{"execute":"guest-file-open","arguments":{"path":"/run/gpudesk-cloud-init-was-here"}}"#;
    let (host, domain) = (&real.host, domain_name(NAMESPACE, DESKTOP));
    progress.say(&format!("desktop {NAMESPACE}/{DESKTOP}: cloud-init sets it up"));
    let opened = eventually("cloud-init has set up the guest", boot(accelerator()), || async {
        Ok(host.virsh(&["qemu-agent-command", &domain, DONE, "--timeout", "5"]).ok())
    });
    let log = guest_log(real).await?;
    let logs = real.cluster.state().logs();
    let opened = opened.await.map_err(|error| anyhow!("{error:#}. {}", what_now(&logs, Some(&log))))?;
    let handle = serde_json::from_str::<serde_json::Value>(&opened)?["return"].take();
    let close = serde_json::json!({"execute": "guest-file-close", "arguments": {"handle": handle}});
    host.virsh(&["qemu-agent-command", &domain, &close.to_string(), "--timeout", "5"])?;
    progress.say(&format!("desktop {NAMESPACE}/{DESKTOP}: set up"));
    Ok(())
}

/// Waits until these desktops run. Others, which somebody else made, are his.
pub(super) async fn wait_for_others(cluster: &Cluster, names: &[String], progress: Progress) -> Result<()> {
    let api = desktops(cluster);
    let start = Instant::now();
    loop {
        let mut all = api.list(&ListParams::default()).await?.items;
        all.retain(|desktop| names.contains(&desktop.name_any()));
        let ready = all.iter().filter(|desktop| is_ready(desktop)).count();
        if ready == names.len() {
            progress.say(&format!("desktops: {ready} of {ready} ready"));
            return Ok(());
        }
        if start.elapsed() > Duration::from_mins(1) {
            let waiting: Vec<String> = all
                .iter()
                .filter(|desktop| !is_ready(desktop))
                .map(|desktop| format!("{}: {}", desktop.name_any(), state_of(desktop)))
                .collect();
            bail!(
                "after a minute these desktops do not run: {}. {}",
                waiting.join("; "),
                what_now(&cluster.state().logs(), None)
            );
        }
        sleep(Duration::from_millis(300)).await;
    }
}

fn is_ready(desktop: &Desktop) -> bool {
    let status = desktop.status.as_ref();
    status.is_some_and(|status| conditions::is_true(&status.conditions, ConditionType::Ready))
}

/// The condition `Ready` in words.
fn state_of(desktop: &Desktop) -> String {
    let ready =
        desktop.status.as_ref().and_then(|status| conditions::find(&status.conditions, ConditionType::Ready));
    ready.map_or_else(
        || "not seen by the operator yet".into(),
        |ready| format!("{}: {}", ready.reason, ready.message),
    )
}

/// Deletes the quickstart from a cluster that is not ours, while the programs still run that give
/// back what its desktops hold.
pub(super) async fn remove_quickstart(state: &Arc<StateDir>) -> Result<()> {
    let cluster = Cluster::bare(state, Lifetime::Detached).await?;
    let folder = format!("--filename={}", checkout().join("examples/quickstart").display());
    cluster.kubectl(["delete", "--ignore-not-found", "--timeout=120s", &folder])?;
    Ok(())
}

/// Takes gpudesk out of a cluster that is not ours, once no daemon makes its node again. The
/// definitions stay: with them everybody's desktops would go.
pub(super) async fn remove_installation(state: &Arc<StateDir>) -> Result<()> {
    let cluster = Cluster::bare(state, Lifetime::Detached).await?;
    let nodes: Api<GpuNode> = Api::all(cluster.client().clone());
    for node in std::iter::once(this_node()).chain(SIMULATED.map(|(node, _)| node.to_owned())) {
        if nodes.get_opt(&node).await?.is_some() {
            nodes.delete(&node, &kube::api::DeleteParams::default()).await?;
        }
    }
    let mut helm = Command::new(cluster.control_plane().program("helm"));
    cluster.run(helm.args([
        "uninstall",
        "gpudesk",
        "--namespace",
        SYSTEM_NAMESPACE,
        "--ignore-not-found",
    ]))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_waited_in_vain_is_told_what_to_do() {
        let said = what_now(Path::new("/state/logs"), Some(Path::new("/state/serial.log")));
        for words in
            ["stays up", "the same command goes on", "/state/logs", "/state/serial.log", "make demo-down"]
        {
            assert!(said.contains(words), "{words}: {said}");
        }
        let emulated = boot(&Accelerator::Tcg { reason: String::new() });
        assert!(emulated > boot(&Accelerator::Kvm));
        assert_eq!(minutes(emulated), "30 minutes");
    }

    #[test]
    fn each_demo_has_a_group_of_its_own_and_has_it_again() {
        let [one, other] = ["group-one", "group-other"].map(|name| StateDir::named(name).unwrap());
        let again = StateDir::named("group-one").unwrap();
        // Of one checkout, in another GPUDESK_STATE_DIR.
        let elsewhere = tempfile::tempdir().unwrap();
        let third = StateDir::named_in(elsewhere.path(), "group-one").unwrap();
        assert_eq!(third.path().file_name(), one.path().file_name());
        assert_ne!(group(&third).unwrap(), group(&one).unwrap());
        assert_eq!(group(&one).unwrap(), group(&again).unwrap());
        assert_ne!(group(&one).unwrap(), group(&other).unwrap());
        for state in [one, other] {
            state.remove().unwrap();
        }
    }
}
