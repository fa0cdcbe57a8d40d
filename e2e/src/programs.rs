//! The operator and the node daemon: the real binaries, each with a kubeconfig of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::{Client, Config};

use crate::ports;
use crate::processes::{Launch, Lifetime, Process};
use crate::state::{StateDir, checkout};
use crate::waiting::eventually;

const GRACE: Duration = Duration::from_secs(15);
const READY: Duration = Duration::from_mins(1);

/// The folder of the binaries under test.
///
/// `GPUDESK_BIN_DIR`, else the target folder that the calling program was built into; there the
/// binaries are first built from the checkout, once per process, so that none is older than its
/// source.
pub fn binaries() -> Result<PathBuf> {
    static FOLDER: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut folder = FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
    if folder.is_none() {
        *folder = Some(find_binaries()?);
    }
    folder.clone().context("just found")
}

fn find_binaries() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("GPUDESK_BIN_DIR").filter(|folder| !folder.is_empty()) {
        return Ok(PathBuf::from(folder));
    }
    let own = std::env::current_exe()?;
    let mut folder = own.parent().context("a program lies in a folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("deps lies in the target folder")?;
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The whole workspace: with some of it the dependencies have other features and are built anew.
    cargo.current_dir(checkout()).args(["build", "--quiet", "--workspace", "--bins"]);
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(profile) => _ = cargo.args(["--profile", profile]),
    }
    if let Some(target) = folder.parent() {
        cargo.arg("--target-dir").arg(target);
    }
    let status = cargo.status().context("run cargo")?;
    ensure!(status.success(), "building the operator and the node daemon failed: {status}");
    Ok(folder.to_owned())
}

/// What a node daemon is started with.
#[derive(Debug, Clone, Default)]
pub struct DaemonOptions {
    /// The node it stands for.
    pub node: String,
    /// A file that describes a simulated host; without it the daemon looks at this machine.
    pub simulate: Option<PathBuf>,
    /// The libvirt to use; the daemon's own default when absent.
    pub libvirt_uri: Option<String>,
    /// Folders from which golden images may be taken.
    pub image_roots: Vec<PathBuf>,
    /// Folders that shares and host disks may lie in.
    pub allowed_roots: Vec<PathBuf>,
    /// Whether it is spared the probe of a KVM that is known not to work.
    pub emulated: bool,
    /// The step after which it ends itself with `SIGKILL`, for tests of crashes.
    pub kill_after: Option<String>,
    /// Further arguments of the command line.
    pub arguments: Vec<OsString>,
    /// Further variables of its environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// A running operator or node daemon.
#[derive(Debug)]
pub struct Service {
    launch: Launch,
    state: Arc<StateDir>,
    lifetime: Lifetime,
    process: Process,
    metrics: u16,
}

impl Service {
    /// Starts the operator with further `settings` of its command line. `name` names its log: several
    /// may run, of which one leads.
    pub fn operator(
        name: &str,
        state: &Arc<StateDir>,
        lifetime: Lifetime,
        kubeconfig: &Path,
        namespace: &str,
        settings: &[&str],
    ) -> Result<Self> {
        let metrics = ports::free()?;
        let launch = Launch::new(name, binaries()?.join("gpudesk-operator"))
            .args(settings)
            .args(["--namespace", namespace])
            .args(["--metrics-addr", &format!("127.0.0.1:{metrics}"), "--log-format", "text"])
            .env("KUBECONFIG", kubeconfig);
        Self::start(launch, state, lifetime, metrics)
    }

    /// Starts the node daemon of one node.
    pub fn daemon(
        state: &Arc<StateDir>,
        lifetime: Lifetime,
        kubeconfig: &Path,
        namespace: &str,
        options: &DaemonOptions,
    ) -> Result<Self> {
        let DaemonOptions {
            node,
            simulate,
            libvirt_uri,
            image_roots,
            allowed_roots,
            emulated,
            kill_after,
            arguments,
            environment,
        } = options;
        let name = format!("gpudesk-node-daemon-{node}");
        let metrics = ports::free()?;
        let own_state = state.join("daemons").join(node);
        std::fs::create_dir_all(&own_state)?;
        let mut launch = Launch::new(name, binaries()?.join("gpudesk-node-daemon"))
            .args(["run", "--node-name", node, "--namespace", namespace])
            // At once: a test does not wait for a host that might be going down.
            .args(["--give-back-after", "0"])
            .args(["--metrics-addr", &format!("127.0.0.1:{metrics}"), "--log-format", "text"])
            // Several on one machine, and none in the way of one that is its own.
            .args(["--relay-addr", "127.0.0.1:0"])
            .args(["--state-dir".as_ref(), own_state.as_os_str()])
            .env("KUBECONFIG", kubeconfig);
        if let Some(file) = simulate {
            launch = launch.args(["--simulate".as_ref(), file.as_os_str()]);
        }
        if let Some(uri) = libvirt_uri {
            launch = launch.args(["--libvirt-uri", uri]);
        }
        for root in image_roots {
            launch = launch.args(["--image-root".as_ref(), root.as_os_str()]);
        }
        for root in allowed_roots {
            launch = launch.args(["--allowed-root".as_ref(), root.as_os_str()]);
        }
        if *emulated {
            launch = launch.args(["--acceleration", "emulation"]);
        }
        if let Some(step) = kill_after {
            launch = launch.env("GPUDESK_KILL_AFTER", step);
        }
        launch = launch.args(arguments);
        for (name, value) in environment {
            launch = launch.env(name, value);
        }
        Self::start(launch, state, lifetime, metrics)
    }

    fn start(launch: Launch, state: &Arc<StateDir>, lifetime: Lifetime, metrics: u16) -> Result<Self> {
        let process = launch.start(state, lifetime)?;
        Ok(Self { launch, state: Arc::clone(state), lifetime, process, metrics })
    }

    /// Waits until `/readyz` answers with success.
    pub async fn wait_ready(&self) -> Result<()> {
        eventually(&format!("{} is ready", self.process.name()), READY, || async {
            ensure!(self.process.is_running(), "{} ended; {}", self.process.name(), self.process.log_tail());
            Ok(self.get("/readyz").await.ok())
        })
        .await
        .with_context(|| self.process.log_tail())?;
        Ok(())
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> Result<String> {
        self.get("/metrics").await
    }

    /// Fetches a page of its metrics server.
    ///
    /// # Errors
    /// Also for an answer that is no success.
    pub async fn get(&self, path: &str) -> Result<String> {
        let server = format!("http://127.0.0.1:{}", self.metrics).parse()?;
        // What it says now counts, and 503 is an answer: kube would ask again for minutes.
        let mut config = Config::new(server);
        config.default_retry = false;
        let client = Client::try_from(config)?;
        Ok(client.request_text(http::Request::get(path).body(Vec::new())?).await?)
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it with `SIGKILL`; [`Self::restart`] brings it back.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Stops it, if it still runs, and starts it again with the same flags, port and log.
    pub fn restart(&mut self) -> Result<()> {
        self.process.stop(GRACE)?;
        self.process = self.launch.start(&self.state, self.lifetime)?;
        Ok(())
    }

    /// Stops it and returns the status with which it ended by itself; none when it did not.
    pub fn end(mut self) -> Result<Option<ExitStatus>> {
        self.process.end(GRACE)
    }

    /// Stops it and returns whether it ended by itself when asked to.
    pub fn stop(mut self) -> Result<bool> {
        self.process.stop(GRACE)
    }
}

/// Stops the operators and node daemons that a detached run left in a state folder.
pub fn stop_recorded(state: &StateDir) -> Result<()> {
    for entry in std::fs::read_dir(state.join("processes"))? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        if name.starts_with("gpudesk-")
            && let Some(mut process) = Process::recorded(state, name)
        {
            process.stop(GRACE)?;
        }
    }
    Ok(())
}
