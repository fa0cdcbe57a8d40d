//! `make demo`: a whole gpudesk on this machine, and its end.
//!
//! ```text
//! up    ┌ pods       a Kubernetes node ─▶ definitions, chart and its pods ───────────────────┐
//!       └ processes  control plane ─▶ libvirt ─▶ definitions, chart ─▶ operator, node daemon ┴▶ quickstart ─▶ screen
//! down  the same backwards; nothing is left running
//! ```
//! As pods where the machine lets a node be made ([`way`]), else as processes.
//!
//! Each step looks first at what is there: a demo that was interrupted goes on, and one that still
//! runs is only looked at. The state folder has the records of what was started.

mod pods;
mod report;
mod steps;
mod way;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::libvirt_host::LibvirtHost;
use crate::node::Node;
use crate::processes::Process;
use crate::programs;
use crate::screen::Virsh;
use crate::state::StateDir;

pub use way::Way;

/// Namespace of `examples/quickstart`.
const NAMESPACE: &str = "quickstart";
/// The desktop that boots for real.
const DESKTOP: &str = "hello";
/// Simulated hosts: node name and host file below `examples/hosts`.
const SIMULATED: [(&str, &str); 2] =
    [("sim-rtx-pro-6000", "rtx-pro-6000-8.yaml"), ("sim-l40s", "l40s-4.yaml")];

/// The cluster, and the node in it that is no simulation.
struct Real {
    cluster: Cluster,
    node: String,
    host: Host,
    /// Where its desktops have their files.
    desktops: PathBuf,
}

/// What runs guests.
enum Host {
    Node(Node),
    Libvirt(LibvirtHost),
}

impl Host {
    fn uri(&self) -> String {
        match self {
            Self::Node(node) => node.libvirt_uri(),
            Self::Libvirt(host) => host.uri(),
        }
    }
}

impl Virsh for Host {
    fn virsh(&self, arguments: &[&str]) -> Result<String> {
        match self {
            Self::Node(node) => Virsh::virsh(node, arguments),
            Self::Libvirt(host) => Virsh::virsh(host, arguments),
        }
    }
}

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

/// Brings the demo up, or completes one that is there, and reports. Without a word, what the machine lets be done
/// decides which way.
///
/// # Errors
/// The first step that failed, with what it was doing. What was started before runs on: the same
/// command goes on from there.
pub async fn up(asked: Option<Way>) -> Result<()> {
    let progress = Progress { start: Instant::now() };
    let state = Arc::new(StateDir::named("demo")?);
    let _lock = steps::lock(&state)?;
    progress.say(&format!("state and logs are in {}", state.path().display()));
    let image = steps::golden_image(progress)?;
    let choice = way::of(&state, asked)?;
    let real = match choice.way {
        Way::Pods => {
            progress.say(&format!("operator and node daemon: as pods of the chart, {}", choice.because));
            way::remember(&state, Way::Pods)?;
            match pods::up(&state, &image, progress).await {
                Err(error) if choice.free => {
                    pods::stop(&state)?;
                    processes(&state, &image, &format!("the pods did not come up: {error:#}"), progress)
                        .await?
                }
                outcome => outcome?,
            }
        }
        Way::Processes => processes(&state, &image, &choice.because, progress).await?,
    };
    steps::simulated(&real.cluster, progress).await?;
    // A node that is not ready gets no desktops.
    steps::wait_for_nodes(&real, progress).await?;
    let applied = steps::apply_quickstart(&real.cluster, progress).await?;
    steps::wait_for_desktop(&real, progress).await?;
    steps::wait_for_others(&real.cluster, &applied, progress).await?;
    steps::wait_for_first_boot(&real, progress).await?;
    report::print(&real, progress).await
}

async fn processes(
    state: &Arc<StateDir>,
    image: &std::path::Path,
    because: &str,
    progress: Progress,
) -> Result<Real> {
    progress.say(&format!("operator and node daemon: as processes, {because}"));
    way::remember(state, Way::Processes)?;
    steps::processes(state, image, progress).await
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
    failures.extend(outcome("stopping the control plane and the Kubernetes node", pods::stop(&state)));
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
