//! A Kubernetes control plane of its own: etcd, the API server and the controller manager.
//!
//! ```text
//! etcd <- kube-apiserver <- kube-controller-manager      start: left to right, stop: right to left
//!   data, keys, kubeconfigs, logs: the state folder      ports: free ones on 127.0.0.1
//! ```
//! There is no scheduler and no kubelet: pods stay pending, and the controllers that judge nodes
//! by their kubelet are off. In the network of a [`node`](crate::node) all of that is on, and a
//! forwarder leads to the API server from this machine.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};

use crate::etcd::Etcd;
use crate::kubeconfig;
use crate::node::Joining;
use crate::pki::Pki;
use crate::ports;
use crate::processes::{Launch, Lifetime, Process, run};
use crate::state::{StateDir, checkout};
use crate::waiting::eventually;

const ETCD: &str = "etcd";
const API_SERVER: &str = "kube-apiserver";
const CONTROLLERS: &str = "kube-controller-manager";
const SCHEDULER: &str = "kube-scheduler";
const FORWARDER: &str = "api-forwarder";

/// How long a part may take to stop by itself.
const GRACE: Duration = Duration::from_secs(20);
const READY: Duration = Duration::from_mins(1);

/// Where a control plane runs, and with that whom it serves.
#[derive(Debug, Clone, Default)]
pub enum Place {
    /// On a loopback address of this machine: programs beside it, and no pods.
    #[default]
    Loopback,
    /// In the network of the first node, or in one that leads to it: nodes and pods.
    Node {
        /// The network namespace, as a file.
        network: PathBuf,
        /// The address in it.
        address: String,
    },
}

/// A running control plane.
///
/// With `GPUDESK_USE_KUBECONFIG` set it is the cluster of `KUBECONFIG` instead: starting and
/// stopping it do nothing, and what only an own control plane can do is an error.
#[derive(Debug)]
pub struct ControlPlane {
    kubeconfig: PathBuf,
    programs: PathBuf,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    state: Arc<StateDir>,
    lifetime: Lifetime,
    programs: PathBuf,
    pki: Pki,
    ports: Ports,
    place: Place,
    // Dropped in this order, which is the order to stop them in.
    forwarder: Option<Process>,
    scheduler: Option<Process>,
    controllers: Option<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ports {
    etcd: u16,
    etcd_peers: u16,
    api_server: u16,
}

/// Resident memory of each part, in KiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// etcd.
    pub etcd: u64,
    /// kube-apiserver.
    pub api_server: u64,
    /// kube-controller-manager.
    pub controllers: u64,
}

impl ControlPlane {
    /// Starts one and waits until its API answers and its controllers work.
    ///
    /// Builds the programs first when they are not in the cache. Data of an earlier run in the
    /// same state folder is kept.
    pub async fn start(state: &Arc<StateDir>, lifetime: Lifetime) -> Result<Self> {
        Self::start_at(state, lifetime, &Place::Loopback).await
    }

    /// As [`Self::start`], in a place.
    pub async fn start_at(state: &Arc<StateDir>, lifetime: Lifetime, place: &Place) -> Result<Self> {
        let programs = build_programs()?;
        if std::env::var_os("GPUDESK_USE_KUBECONFIG").is_some_and(|value| !value.is_empty()) {
            let kubeconfig =
                std::env::var_os("KUBECONFIG").context("GPUDESK_USE_KUBECONFIG needs KUBECONFIG")?;
            return Ok(Self { kubeconfig: kubeconfig.into(), programs, own: None });
        }
        for _ in 0..3 {
            let ports =
                Ports { etcd: ports::free()?, etcd_peers: ports::free()?, api_server: ports::free()? };
            let mut own = Own::new(state, lifetime, &programs, ports, place)?;
            match own.start().await {
                Ok(()) => return Ok(Self { kubeconfig: own.kubeconfig("admin"), programs, own: Some(own) }),
                // Someone else took a port between our choice of it and its use.
                Err(error) if format!("{error:#}").to_lowercase().contains("address already in use") => {
                    tracing::warn!("a port was taken, trying others: {error:#}");
                    own.stop()?;
                }
                Err(error) => {
                    own.stop()?;
                    return Err(error);
                }
            }
        }
        bail!("three times in a row another program took a port chosen for the control plane")
    }

    /// The detached control plane that an earlier run left in this state folder; `None` when
    /// not all of it runs any more.
    pub fn running_in(state: &Arc<StateDir>, place: &Place) -> Result<Option<Self>> {
        let Ok(ports) = fs::read_to_string(state.join("ports.json")) else { return Ok(None) };
        let programs = build_programs()?;
        let ports = serde_json::from_str(&ports)?;
        let mut own = Own::new(state, Lifetime::Detached, &programs, ports, place)?;
        own.etcd = Process::recorded(state, ETCD);
        own.api_server = Process::recorded(state, API_SERVER);
        own.controllers = Process::recorded(state, CONTROLLERS);
        own.scheduler = Process::recorded(state, SCHEDULER);
        own.forwarder = Process::recorded(state, FORWARDER);
        let pods = own.scheduler.is_some() && own.forwarder.is_some();
        let whole = own.etcd.is_some() && own.api_server.is_some() && own.controllers.is_some();
        let whole = whole && (pods || matches!(place, Place::Loopback));
        Ok(whole.then(|| Self { kubeconfig: own.kubeconfig("admin"), programs, own: Some(own) }))
    }

    /// Stops whatever a detached control plane left running in this state folder.
    pub fn stop_recorded(state: &StateDir) -> Result<()> {
        for name in [FORWARDER, SCHEDULER, CONTROLLERS, API_SERVER, ETCD] {
            if let Some(mut process) = Process::recorded(state, name) {
                process.stop(GRACE)?;
            }
        }
        Ok(())
    }

    /// A kubeconfig with every right.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A program of the control plane's folder: `kubectl`, `helm`, ...
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// What nodes need to join it.
    pub fn joining(&self) -> Result<Joining> {
        let own = self.own.as_ref().context("nodes join a control plane of the harness's own only")?;
        let Place::Node { address, .. } = &own.place else {
            bail!("nodes do not reach a control plane on a loopback address")
        };
        let server = format!("https://{address}:{}", own.ports.api_server);
        Ok(Joining::new(&self.programs, &own.pki, server))
    }

    /// A client with every right.
    pub async fn client(&self) -> Result<Client> {
        kubeconfig::client(&self.kubeconfig).await
    }

    /// Runs `kubectl` with every right and returns its standard output.
    pub fn kubectl<A: Into<OsString>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String> {
        let mut command = Command::new(self.program("kubectl"));
        run(command.env("KUBECONFIG", &self.kubeconfig).args(arguments.into_iter().map(Into::into)))
    }

    /// Stops the API server and starts it again on the same port; ready on return.
    pub async fn restart_api_server(&mut self) -> Result<()> {
        let own = self.own()?;
        if let Some(process) = &mut own.api_server {
            process.stop(GRACE)?;
        }
        own.start_api_server()?;
        own.wait_ready().await
    }

    /// Ends the API server with `SIGKILL`; [`Self::restart_api_server`] brings it back.
    pub fn kill_api_server(&mut self) -> Result<()> {
        self.own()?.api_server.as_mut().context("the API server was not started")?.kill()
    }

    /// Stops everything, copies what etcd has stored, and starts everything again on the same ports.
    pub async fn back_up(&mut self) -> Result<()> {
        self.while_stopped("etcd", "etcd-backup").await
    }

    /// Goes back to what [`Self::back_up`] copied, as a restore of etcd does.
    pub async fn restore(&mut self) -> Result<()> {
        self.while_stopped("etcd-backup", "etcd").await
    }

    async fn while_stopped(&mut self, from: &str, to: &str) -> Result<()> {
        let own = self.own()?;
        own.stop()?;
        let (from, to) = (own.state.join(from), own.state.join(to));
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        run(Command::new("cp").arg("-a").args([from, to]))?;
        own.start().await
    }

    /// The store below the API server, for objects that it would refuse.
    pub async fn etcd(&mut self) -> Result<Etcd> {
        let own = self.own()?;
        Ok(Etcd::new(kubeconfig::client(&own.kubeconfig("etcd")).await?))
    }

    /// Resident memory of each part.
    pub fn memory(&mut self) -> Result<Memory> {
        let own = self.own()?;
        let of = |process: &Option<Process>| process.as_ref().and_then(Process::memory_kib).unwrap_or(0);
        Ok(Memory { etcd: of(&own.etcd), api_server: of(&own.api_server), controllers: of(&own.controllers) })
    }

    /// The process ids of etcd, the API server and the controller manager.
    pub fn pids(&self) -> Vec<u32> {
        let Some(own) = &self.own else { return Vec::new() };
        [&own.etcd, &own.api_server, &own.controllers].into_iter().flatten().map(Process::pid).collect()
    }

    /// Stops everything; no process of it is left on return.
    pub fn stop(mut self) -> Result<()> {
        self.own.as_mut().map_or(Ok(()), Own::stop)
    }

    fn own(&mut self) -> Result<&mut Own> {
        self.own
            .as_mut()
            .context("this needs a control plane of the harness's own, and GPUDESK_USE_KUBECONFIG is set")
    }
}

impl Own {
    fn new(
        state: &Arc<StateDir>,
        lifetime: Lifetime,
        programs: &Path,
        ports: Ports,
        place: &Place,
    ) -> Result<Self> {
        fs::write(state.join("ports.json"), serde_json::to_string(&ports)?)?;
        let pki = Pki::open_or_create(state.join("pki"))?;
        let own = Self {
            state: Arc::clone(state),
            lifetime,
            programs: programs.to_owned(),
            pki,
            ports,
            place: place.clone(),
            forwarder: None,
            scheduler: None,
            controllers: None,
            api_server: None,
            etcd: None,
        };
        for (name, user, port) in [
            ("admin", "admin", ports.api_server),
            ("controllers", "controllers", ports.api_server),
            ("scheduler", "scheduler", ports.api_server),
            ("etcd", "admin", ports.etcd),
        ] {
            let server = format!("https://127.0.0.1:{port}");
            kubeconfig::write(
                &own.kubeconfig(name),
                &server,
                &own.pki.certificate("ca"),
                &own.pki.certificate(user),
                &own.pki.key(user),
            )?;
        }
        Ok(own)
    }

    fn kubeconfig(&self, name: &str) -> PathBuf {
        self.state.join(format!("{name}.kubeconfig"))
    }

    async fn start(&mut self) -> Result<()> {
        self.start_etcd()?;
        // The API server waits for etcd by itself.
        self.start_api_server()?;
        self.start_forwarder()?;
        self.wait_ready().await?;
        self.start_controllers()?;
        if let Place::Node { .. } = self.place {
            let kubeconfig = file("--kubeconfig", self.kubeconfig("scheduler"));
            let arguments = [kubeconfig, "--secure-port=0".to_owned(), "--leader-elect=false".to_owned()];
            self.scheduler = Some(self.launch(SCHEDULER, arguments)?);
        }
        self.wait_for_controllers().await
    }

    fn start_etcd(&mut self) -> Result<()> {
        let (clients, peers) = (self.ports.etcd, self.ports.etcd_peers);
        let arguments = [
            format!("--data-dir={}", self.state.join("etcd").display()),
            format!("--listen-client-urls=https://127.0.0.1:{clients}"),
            format!("--advertise-client-urls=https://127.0.0.1:{clients}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peers}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peers}"),
            format!("--initial-cluster=default=http://127.0.0.1:{peers}"),
            format!("--cert-file={}", self.pki.certificate("etcd").display()),
            format!("--key-file={}", self.pki.key("etcd").display()),
            format!("--trusted-ca-file={}", self.pki.certificate("ca").display()),
            "--client-cert-auth".to_owned(),
            // Nothing here has to survive a power cut.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        self.etcd = Some(self.launch(ETCD, arguments)?);
        Ok(())
    }

    fn start_api_server(&mut self) -> Result<()> {
        let arguments = [
            format!("--secure-port={}", self.ports.api_server),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            // Without it open watches keep a stopping server for a minute.
            "--shutdown-watch-termination-grace-period=1s".to_owned(),
            format!("--etcd-servers=https://127.0.0.1:{}", self.ports.etcd),
            file("--etcd-cafile", self.pki.certificate("ca")),
            file("--etcd-certfile", self.pki.certificate("etcd")),
            file("--etcd-keyfile", self.pki.key("etcd")),
            file("--client-ca-file", self.pki.certificate("ca")),
            file("--tls-cert-file", self.pki.certificate("apiserver")),
            file("--tls-private-key-file", self.pki.key("apiserver")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            file("--service-account-key-file", self.pki.public_key("service-accounts")),
            file("--service-account-signing-key-file", self.pki.key("service-accounts")),
            // Without these the controller manager asks for ever for the configuration they make.
            file("--requestheader-client-ca-file", self.pki.certificate("front-proxy-ca")),
            "--requestheader-allowed-names=front-proxy".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            file("--proxy-client-cert-file", self.pki.certificate("front-proxy")),
            file("--proxy-client-key-file", self.pki.key("front-proxy")),
        ];
        let here = match &self.place {
            Place::Loopback => vec![
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=127.0.0.1".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
            ],
            Place::Node { address, .. } => vec![
                "--bind-address=0.0.0.0".to_owned(),
                format!("--advertise-address={address}"),
                "--enable-admission-plugins=NodeRestriction".to_owned(),
                file("--kubelet-certificate-authority", self.pki.certificate("ca")),
                file("--kubelet-client-certificate", self.pki.certificate("kubelet-client")),
                file("--kubelet-client-key", self.pki.key("kubelet-client")),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
            ],
        };
        let taints = taint_rules(&self.programs.join(API_SERVER))?.iter().map(|flag| (*flag).to_owned());
        self.api_server = Some(self.launch(API_SERVER, arguments.into_iter().chain(here).chain(taints))?);
        Ok(())
    }

    /// The way from this machine into the network of the node: the same port on 127.0.0.1.
    fn start_forwarder(&mut self) -> Result<()> {
        if let Place::Node { network, address } = &self.place
            && self.forwarder.is_none()
        {
            let port = self.ports.api_server;
            let forwarder = forwarder(FORWARDER, network, port, &format!("{address}\\:{port}"));
            self.forwarder = Some(forwarder.start(&self.state, self.lifetime)?);
        }
        Ok(())
    }

    fn start_controllers(&mut self) -> Result<()> {
        let arguments = [
            file("--kubeconfig", self.kubeconfig("controllers")),
            // It serves nothing that is used here; that its controllers work is seen in the API.
            "--secure-port=0".to_owned(),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            // Each controller asks for a token of its own: at the usual 20 requests a second that takes 5 s.
            "--kube-api-qps=1000".to_owned(),
            "--kube-api-burst=2000".to_owned(),
            file("--root-ca-file", self.pki.certificate("ca")),
            file("--service-account-private-key-file", self.pki.key("service-accounts")),
            match self.place {
                Place::Node { .. } => "--controllers=*".to_owned(),
                Place::Loopback => {
                    // Those that need a cloud are not named: of 1.37 there are none, and elsewhere they do nothing.
                    "--controllers=*,-node-lifecycle-controller,-node-ipam-controller,\
                     -taint-eviction-controller,-pod-garbage-collector-controller"
                        .to_owned()
                }
            },
        ];
        self.controllers = Some(self.launch(CONTROLLERS, arguments)?);
        Ok(())
    }

    fn launch(&self, name: &str, arguments: impl IntoIterator<Item = String>) -> Result<Process> {
        let program = self.programs.join(name);
        let launch = match &self.place {
            Place::Loopback => Launch::new(name, program),
            Place::Node { network, .. } => {
                Launch::new(name, "nsenter").args([file("--net", network).as_ref(), program.as_os_str()])
            }
        };
        launch.args(arguments).start(&self.state, self.lifetime)
    }

    async fn wait_ready(&self) -> Result<()> {
        let client = kubeconfig::client(&self.kubeconfig("admin")).await?;
        eventually("the API server is ready", READY, || async {
            self.check_alive()?;
            let request = http::Request::get("/readyz").body(Vec::new())?;
            Ok(client.request_text(request).await.ok().filter(|answer| answer == "ok"))
        })
        .await?;
        Ok(())
    }

    /// A controller made the first service account: they all run.
    async fn wait_for_controllers(&self) -> Result<()> {
        let client = kubeconfig::client(&self.kubeconfig("admin")).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
        eventually("the controller manager works", READY, || async {
            self.check_alive()?;
            Ok(accounts.get_opt("default").await?)
        })
        .await?;
        Ok(())
    }

    fn check_alive(&self) -> Result<()> {
        let all = [&self.etcd, &self.api_server, &self.controllers, &self.scheduler, &self.forwarder];
        for process in all.into_iter().flatten() {
            ensure!(process.is_running(), "{} ended; {}", process.name(), process.log_tail());
        }
        Ok(())
    }

    /// With etcd gone first, the API server would hang for a minute and hold its port.
    fn stop(&mut self) -> Result<()> {
        let all = [
            &mut self.forwarder,
            &mut self.scheduler,
            &mut self.controllers,
            &mut self.api_server,
            &mut self.etcd,
        ];
        for process in all {
            if let Some(mut process) = process.take() {
                process.stop(GRACE)?;
            }
        }
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Test
            && let Err(error) = self.stop()
        {
            tracing::warn!("stop the control plane: {error:#}");
        }
    }
}

/// Flags with which an API server serves `DeviceTaintRules`: none where it does so by itself, as Kubernetes 1.37, nor where it
/// has none that operators are to write yet.
fn taint_rules(api_server: &Path) -> Result<&'static [&'static str]> {
    let version = run(Command::new(api_server).arg("--version"))?;
    Ok(if version.starts_with("Kubernetes v1.36.") {
        &["--runtime-config=resource.k8s.io/v1beta2=true", "--feature-gates=DRADeviceTaintRules=true"]
    } else {
        &[]
    })
}

/// What leads from a port on 127.0.0.1 to an address (`A.B.C.D\:PORT`) in another network.
pub(crate) fn forwarder(name: &str, network: &Path, port: u16, to: &str) -> Launch {
    Launch::new(name, "socat").args([
        format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay"),
        format!("EXEC:nsenter --net={} socat STDIO TCP\\:{to}", network.display()),
    ])
}

/// The folder with etcd, kube-apiserver, kube-controller-manager, kubectl and helm, built if need be.
fn build_programs() -> Result<PathBuf> {
    let script = checkout().join("e2e/control-plane/build.sh");
    let output = Command::new(&script)
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("run {}", script.display()))?;
    ensure!(output.status.success(), "{} failed: {}", script.display(), output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(PathBuf::from(text.lines().next_back().context("build.sh printed no folder")?))
}

fn file(flag: &str, path: impl AsRef<Path>) -> String {
    format!("{flag}={}", path.as_ref().display())
}
