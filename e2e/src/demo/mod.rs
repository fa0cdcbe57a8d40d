//! `make demo`: a whole gpudesk on this machine, and its end.
//!
//! ```text
//! up    control plane ─▶ libvirt ─▶ definitions, chart ─▶ operator, daemons ─▶ quickstart ─▶ screen
//! down  the same backwards; nothing is left running
//! ```
//! Each step looks first at what is there: a demo that was interrupted goes on, and one that still
//! runs is only looked at. The state folder has the records of what was started.

mod report;
mod steps;

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::control_plane::ControlPlane;
use crate::libvirt_host::LibvirtHost;
use crate::processes::Process;
use crate::programs;
use crate::state::StateDir;

/// Namespace of `examples/quickstart`.
const NAMESPACE: &str = "quickstart";
/// The desktop that boots for real.
const DESKTOP: &str = "hello";
/// Simulated hosts: node name and host file below `examples/hosts`.
const SIMULATED: [(&str, &str); 2] =
    [("sim-rtx-pro-6000", "rtx-pro-6000-8.yaml"), ("sim-l40s", "l40s-4.yaml")];

/// Prints what happens and when.
#[derive(Clone, Copy, Debug)]
struct Progress {
    start: Instant,
}

impl Progress {
    fn say(self, words: &str) {
        println!("[{:6.1} s] {words}", self.start.elapsed().as_secs_f64());
    }
}

/// Brings the demo up, or completes one that is there, and reports.
///
/// # Errors
/// The first step that failed, with what it was doing. What was started before runs on: the same
/// command goes on from there.
pub async fn up() -> Result<()> {
    let progress = Progress { start: Instant::now() };
    let state = Arc::new(StateDir::named("demo")?);
    let _lock = steps::lock(&state)?;
    progress.say(&format!("state and logs are in {}", state.path().display()));
    let image = steps::golden_image(progress)?;
    let cluster = steps::cluster(&state, progress).await?;
    let host = steps::libvirt(&state, progress).await?;
    steps::install(&cluster, progress)?;
    let node = steps::programs(&cluster, &host, &image, progress).await?;
    // A node that is not ready gets no desktops.
    steps::wait_for_nodes(&cluster, &node, progress).await?;
    steps::apply_quickstart(&cluster, progress).await?;
    steps::wait_for_desktop(&cluster, &node, progress).await?;
    steps::wait_for_others(&cluster, progress).await?;
    steps::wait_for_first_boot(&cluster, &host, &node, progress).await?;
    report::print(&cluster, &host, &node, progress).await
}

/// Stops everything that the demo started and removes its folder.
///
/// # Errors
/// When something could not be stopped; the rest is stopped all the same.
pub async fn down() -> Result<()> {
    let state = Arc::new(StateDir::named("demo")?);
    let _lock = steps::lock(&state)?;
    let mut failures = Vec::new();
    if foreign_cluster() {
        let words = "removing the quickstart from the given cluster";
        failures.extend(outcome(words, steps::remove_quickstart(&state).await));
    }
    let words = "stopping the operator and the node daemons";
    failures.extend(outcome(words, programs::stop_recorded(&state)));
    if foreign_cluster() {
        let words = "removing the chart and the nodes from the given cluster; the definitions stay";
        failures.extend(outcome(words, steps::remove_installation(&state).await));
    }
    failures.extend(outcome("stopping libvirt and its guests", LibvirtHost::stop_recorded(&state)));
    if failures.is_empty() {
        failures.extend(outcome("removing the filter of their network", steps::remove_filter(&state)));
    }
    failures.extend(outcome("stopping the control plane", ControlPlane::stop_recorded(&state)));
    // While something runs, its records are needed to stop it.
    if failures.is_empty() {
        failures.extend(outcome("removing the state folder", state.remove_last()));
    }
    if failures.is_empty() {
        if foreign_cluster() {
            println!(
                "The definitions and the policy operator-term.gpudesk.dev stay in the given cluster (see the README)."
            );
        }
        println!("Nothing {}of the demo is left.", if foreign_cluster() { "else " } else { "" });
        return Ok(());
    }
    anyhow::bail!("{}", failures.join("; "))
}

/// Says what was done, and returns the failure, if it was one.
fn outcome(words: &str, outcome: Result<()>) -> Option<String> {
    println!("{words}");
    outcome.err().map(|error| format!("{words}: {error:#}"))
}

/// Whether a cluster was given instead of one of our own.
fn foreign_cluster() -> bool {
    std::env::var_os("GPUDESK_USE_KUBECONFIG").is_some_and(|value| !value.is_empty())
}

/// The node name of this machine: its host name as a legal Kubernetes name.
fn this_node() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let legal: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let legal = legal.trim_matches(|c: char| !c.is_ascii_alphanumeric()).chars().take(63).collect::<String>();
    if legal.is_empty() { "this-machine".to_owned() } else { legal }
}

/// The desktops of the quickstart.
fn desktops(cluster: &Cluster) -> kube::Api<gpudesk_crds::Desktop> {
    kube::Api::namespaced(cluster.client().clone(), NAMESPACE)
}

/// A process that an earlier run started and that is not older than its binary.
fn current(state: &StateDir, name: &str, binary: &std::path::Path) -> Option<Process> {
    let process = Process::recorded(state, name)?;
    let started =
        std::fs::metadata(state.join("processes").join(format!("{name}.json"))).ok()?.modified().ok()?;
    let built = std::fs::metadata(binary).ok()?.modified().ok()?;
    (built <= started).then_some(process)
}
