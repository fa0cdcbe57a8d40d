//! This machine as a node: a cluster, a libvirt of its own, the operator and a real node daemon.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::{Mutex, MutexGuard};

use crate::accelerator::{Accelerator, accelerator};
use crate::cluster::Cluster;
use crate::libvirt_host::LibvirtHost;
use crate::objects::Objects;
use crate::processes::Lifetime;
use crate::programs::{DaemonOptions, Service};
use crate::state::{StateDir, checkout};
use crate::trials::Environment;
use crate::waiting::eventually;

/// Name of the node.
pub const NODE: &str = "real";

/// A template whose guest only has to exist: half a second from start to hold, under emulation.
pub const TINY: &str = "
cpu: {cores: 1}
memory: {sizeMiB: 64}
machine: {firmware: DirectKernel, directKernel: {kernel: tiny.elf}}
disks: [{name: data, blank: {sizeGiB: 1}}]
guestAgent: false
cloudInit: {inline: {userData: '#cloud-config'}}
lifecycle: {shutdownGraceSeconds: 5}
";

/// A cluster with this machine as its only node.
pub struct RealHost {
    daemon: Mutex<Service>,
    operator: Mutex<Service>,
    options: DaemonOptions,
    host: LibvirtHost,
    cluster: Cluster,
}

impl RealHost {
    /// Starts all of it. `images` are put into the node's image folder.
    pub async fn start_with(name: &str, images: &[PathBuf]) -> Result<Self> {
        let state = Arc::new(StateDir::for_test(name)?);
        let cluster = Cluster::start_in(&state, Lifetime::Test).await?;
        let host = LibvirtHost::start(&state, Lifetime::Test).await?;
        for image in images {
            host.place(image)?;
        }
        let allowed = state.join("allowed");
        std::fs::create_dir_all(&allowed)?;
        let options = DaemonOptions { allowed_roots: vec![allowed], ..options(&host, NODE)? };
        let operator = Mutex::new(cluster.start_operator().await?);
        let daemon = Mutex::new(cluster.start_daemon(&options).await?);
        Ok(Self { daemon, operator, options, host, cluster })
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The libvirt of the node.
    pub fn libvirt(&self) -> &LibvirtHost {
        &self.host
    }

    /// The operator.
    pub async fn operator(&self) -> MutexGuard<'_, Service> {
        self.operator.lock().await
    }

    /// The node daemon.
    pub async fn daemon(&self) -> MutexGuard<'_, Service> {
        self.daemon.lock().await
    }

    /// Ends the daemon with `SIGKILL` and starts it again, to end itself the same way after a step
    /// when one is named. It may end itself before it is ready, so that is not waited for then.
    pub async fn restart_daemon(&self, kill_after: Option<&str>) -> Result<()> {
        let mut daemon = self.daemon.lock().await;
        daemon.kill()?;
        let options = DaemonOptions { kill_after: kill_after.map(str::to_owned), ..self.options.clone() };
        let kubeconfig = self.cluster.daemon_kubeconfig(NODE).await?;
        *daemon = self.cluster.spawn_daemon(&options, &kubeconfig)?;
        if kill_after.is_none() {
            daemon.wait_ready().await?;
        }
        Ok(())
    }

    /// Waits until the daemon has ended itself.
    pub async fn wait_for_crash(&self, limit: Duration) -> Result<()> {
        let daemon = self.daemon.lock().await;
        eventually("the node daemon ends itself", limit, || async {
            Ok((!daemon.process().is_running()).then_some(()))
        })
        .await
        .with_context(|| daemon.process().log_tail())
    }

    /// A folder that desktops may name files of.
    pub fn allowed_root(&self) -> &Path {
        self.options.allowed_roots.first().map_or(Path::new("/"), PathBuf::as_path)
    }

    /// Where the daemon keeps what belongs to a desktop.
    pub fn desktop_folder(&self, uid: &str) -> PathBuf {
        self.cluster.state().join("daemons").join(NODE).join("desktops").join(uid)
    }

    /// A new namespace and what is in it.
    pub async fn objects(&self, name: &str) -> Result<Objects> {
        Ok(Objects::new(self.cluster.client(), &self.cluster.namespace(name).await?))
    }

    /// The names of all domains, running or not.
    pub fn domains(&self) -> Result<Vec<String>> {
        let list = self.host.virsh(["list", "--all", "--name"])?;
        Ok(list.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }
}

/// With the tiny guest alone.
impl Environment for RealHost {
    async fn start() -> Result<Self> {
        Self::start_with("real-host", &[built("e2e/guest/build-tiny.sh")?]).await
    }

    async fn stop(self) -> Result<()> {
        self.daemon.into_inner().stop()?;
        self.operator.into_inner().stop()?;
        self.host.stop()?;
        self.cluster.stop_control_plane()
    }

    fn collect_logs(&self, suite: &str) -> Result<Option<PathBuf>> {
        self.cluster.save_evidence(suite).map(Some)
    }
}

/// With what the daemon of a node is started that runs its guests by `host`.
pub fn options(host: &LibvirtHost, node: &str) -> Result<DaemonOptions> {
    Ok(DaemonOptions {
        node: node.to_owned(),
        libvirt_uri: Some(host.uri()),
        image_roots: vec![host.images()?],
        emulated: *accelerator() != Accelerator::Kvm,
        ..DaemonOptions::default()
    })
}

/// What a build script of the checkout makes: it prints the path as its last line.
pub fn built(script: &str) -> Result<PathBuf> {
    let output = Command::new(checkout().join(script))
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {script}"))?;
    ensure!(output.status.success(), "{script} failed: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(PathBuf::from(text.lines().next_back().with_context(|| format!("{script} printed nothing"))?))
}
