//! A cluster with gpudesk installed: CRDs, helm chart, operator, node daemons.
//!
//! The chart's pods stay pending, for there is no kubelet. The programs they would run are
//! started here, each with a token of the service account that the chart gives it: RBAC and
//! admission policies apply to them as they do to users.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, Client};

use crate::control_plane::{ControlPlane, Place};
use crate::identity::{kubeconfig_path, service_account_kubeconfig, who_am_i};
use crate::processes::{Lifetime, run};
use crate::programs::{DaemonOptions, Service};
use crate::state::{StateDir, checkout};
use crate::trials::Environment;
use crate::waiting::{eventually, patient};

/// The namespace that gpudesk is installed in.
pub const SYSTEM_NAMESPACE: &str = "gpudesk-system";
const OPERATOR: &str = "gpudesk-operator";
const NODE_DAEMON: &str = "gpudesk-node-daemon";

/// A control plane with gpudesk's CRDs and chart. Programs are started by the tests.
pub struct Cluster {
    control_plane: ControlPlane,
    client: Client,
    lifetime: Lifetime,
    // Last: everything above has ended when a test's folder is removed.
    state: Arc<StateDir>,
}

impl Cluster {
    /// Starts a control plane and installs gpudesk in it.
    pub async fn start_in(state: &Arc<StateDir>, lifetime: Lifetime) -> Result<Self> {
        let cluster = Self::bare(state, lifetime).await?;
        cluster.apply_crds()?;
        cluster.helm_install(&[])?;
        Ok(cluster)
    }

    /// Starts a control plane with nothing in it.
    pub async fn bare(state: &Arc<StateDir>, lifetime: Lifetime) -> Result<Self> {
        Self::over(ControlPlane::start(state, lifetime).await?, state, lifetime).await
    }

    /// A control plane that was started, with nothing in it.
    pub async fn over(
        control_plane: ControlPlane,
        state: &Arc<StateDir>,
        lifetime: Lifetime,
    ) -> Result<Self> {
        let client = control_plane.client().await?;
        Ok(Self { control_plane, client, lifetime, state: Arc::clone(state) })
    }

    /// The detached cluster that an earlier run left in this state folder, if all of its control
    /// plane still runs.
    pub async fn running_in(state: &Arc<StateDir>, place: &Place) -> Result<Option<Self>> {
        let Some(control_plane) = ControlPlane::running_in(state, place)? else { return Ok(None) };
        let client = control_plane.client().await?;
        Ok(Some(Self { control_plane, client, lifetime: Lifetime::Detached, state: Arc::clone(state) }))
    }

    /// Applies `crds/*.yaml` and waits until the API server serves them.
    pub fn apply_crds(&self) -> Result<()> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(checkout().join("crds"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                files.push(OsString::from(format!("--filename={}", path.display())));
            }
        }
        files.sort();
        let with =
            |before: &[&str]| before.iter().map(OsString::from).chain(files.clone()).collect::<Vec<_>>();
        // Helm holds the definitions too, from the chart's own copy.
        self.kubectl(with(&["apply", "--server-side", "--force-conflicts"]))?;
        let limit = format!("--timeout={}s", patient(Duration::from_mins(1)).as_secs());
        self.kubectl(with(&["wait", "--for=condition=Established", &limit]))?;
        Ok(())
    }

    /// Installs `charts/gpudesk` as a user does, or upgrades it, with `name=value` settings.
    pub fn helm_install(&self, settings: &[&str]) -> Result<()> {
        self.helm_install_with(settings, &[])
    }

    /// As [`Self::helm_install`], with further flags.
    pub fn helm_install_with(&self, settings: &[&str], flags: &[&str]) -> Result<()> {
        let chart = checkout().join("charts/gpudesk");
        let chart = chart.to_str().context("the path of the chart is text")?;
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        let words = ["upgrade", "--install", "gpudesk", chart, "--create-namespace"].into_iter();
        self.helm(words.chain(flags.iter().copied()).chain(settings))?;
        Ok(())
    }

    /// Runs `helm` for the namespace of gpudesk, and returns its standard output.
    pub fn helm<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let mut command = Command::new(self.control_plane.program("helm"));
        self.run(command.args(arguments).args(["--namespace", SYSTEM_NAMESPACE]))
    }

    /// Runs a command as a person does in the checkout, and returns its standard output; after three minutes it has failed.
    pub fn shell(&self, command: &str) -> Result<String> {
        let kubectl = self.control_plane.program("kubectl");
        let folder = kubectl.parent().context("a program lies in a folder")?;
        let path = format!("{}:{}", folder.display(), std::env::var("PATH")?);
        let mut bash = Command::new("timeout");
        bash.args(["180", "bash", "-euo", "pipefail", "-c", command]).env("PATH", path);
        self.run(bash.current_dir(checkout())).with_context(|| command.to_owned())
    }

    /// A client with every right.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The control plane, to restart or harm parts of it.
    pub fn control_plane_mut(&mut self) -> &mut ControlPlane {
        &mut self.control_plane
    }

    /// The state folder.
    pub fn state(&self) -> &Arc<StateDir> {
        &self.state
    }

    /// Runs `kubectl` with every right and returns its standard output.
    pub fn kubectl<A: Into<OsString>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String> {
        self.control_plane.kubectl(arguments)
    }

    /// Runs a program of the user's side with the cluster's `KUBECONFIG`.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        let caches = self.state.join("helm");
        command.env("KUBECONFIG", self.control_plane.kubeconfig());
        // Not the user's own helm repositories and plugins.
        command
            .env("HELM_CACHE_HOME", &caches)
            .env("HELM_CONFIG_HOME", &caches)
            .env("HELM_DATA_HOME", &caches);
        run(command)
    }

    /// Makes a namespace for one test, ready for use: its name starts with `name`.
    pub async fn namespace(&self, name: &str) -> Result<String> {
        let metadata = ObjectMeta { generate_name: Some(format!("{name}-")), ..ObjectMeta::default() };
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let made = namespaces
            .create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() })
            .await?;
        let name = made.metadata.name.context("a namespace has a name")?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &name);
        let limit = Duration::from_secs(20);
        eventually("the namespace has its service account", limit, || async {
            Ok(accounts.get_opt("default").await?)
        })
        .await?;
        Ok(name)
    }

    /// Deletes a namespace and waits until nothing of it is left.
    pub async fn delete_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(name, &DeleteParams::default()).await?;
        crate::waiting::until_gone(&namespaces, name, Duration::from_secs(90)).await
    }

    /// A kubeconfig of the operator's service account.
    pub async fn operator_kubeconfig(&self) -> Result<PathBuf> {
        service_account_kubeconfig(&self.control_plane, &self.state, SYSTEM_NAMESPACE, OPERATOR, None).await
    }

    /// A kubeconfig of the node daemon's service account, bound to a node.
    pub async fn daemon_kubeconfig(&self, node: &str) -> Result<PathBuf> {
        service_account_kubeconfig(
            &self.control_plane,
            &self.state,
            SYSTEM_NAMESPACE,
            NODE_DAEMON,
            Some(node),
        )
        .await
    }

    /// Whether the API server still takes the kubeconfig that was last written for the operator, or for the
    /// daemon of a node, and for the service account that there is now.
    pub async fn is_accepted(&self, node: Option<&str>) -> Result<bool> {
        let account = if node.is_some() { NODE_DAEMON } else { OPERATOR };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let kubeconfig = kubeconfig_path(&self.state, SYSTEM_NAMESPACE, account, node);
        let Some(account) = accounts.get_opt(account).await? else { return Ok(false) };
        if !kubeconfig.exists() {
            return Ok(false);
        }
        match who_am_i(&kubeconfig).await {
            // For some seconds an API server takes a token whose account is gone.
            Ok(user) => Ok(user.uid == account.metadata.uid),
            Err(error) => match error.downcast_ref() {
                Some(kube::Error::Api(status)) if status.code == 401 => Ok(false),
                // It is of a control plane that is gone: this one has just answered.
                Some(kube::Error::Service(_)) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Starts the operator and waits until it is ready.
    pub async fn start_operator(&self) -> Result<Service> {
        let operator = self.spawn_operator(OPERATOR).await?;
        operator.wait_ready().await?;
        Ok(operator)
    }

    /// Starts one more operator under another log name, without waiting: only the leader works.
    pub async fn spawn_operator(&self, name: &str) -> Result<Service> {
        let kubeconfig = self.operator_kubeconfig().await?;
        // As the chart has it by default.
        let settings = ["--device-taint-rules"];
        Service::operator(name, &self.state, self.lifetime, &kubeconfig, SYSTEM_NAMESPACE, &settings)
    }

    /// Starts the node daemon of one node and waits until it is ready.
    pub async fn start_daemon(&self, options: &DaemonOptions) -> Result<Service> {
        let kubeconfig = self.daemon_kubeconfig(&options.node).await?;
        let daemon = self.spawn_daemon(options, &kubeconfig)?;
        daemon.wait_ready().await?;
        Ok(daemon)
    }

    /// Starts the node daemon of one node without waiting.
    pub fn spawn_daemon(&self, options: &DaemonOptions, kubeconfig: &Path) -> Result<Service> {
        Service::daemon(&self.state, self.lifetime, kubeconfig, SYSTEM_NAMESPACE, options)
    }

    /// Starts the daemon of a simulated host.
    pub async fn start_simulated(&self, node: &str, host_file: &Path) -> Result<Service> {
        let options = DaemonOptions {
            node: node.to_owned(),
            simulate: Some(host_file.to_owned()),
            ..DaemonOptions::default()
        };
        self.start_daemon(&options).await
    }

    /// Saves the logs and the gpudesk objects as they are now, and returns the folder.
    pub fn save_evidence(&self, name: &str) -> Result<PathBuf> {
        let folder = self.state.collect_logs(name)?;
        for kind in ["gpunodes", "gpuprofiles", "desktoptemplates", "desktops", "events", "leases"] {
            let listing = self.kubectl(["get", kind, "--all-namespaces", "--output=yaml"]);
            let text = listing.unwrap_or_else(|error| format!("{error:#}"));
            std::fs::write(folder.join(format!("{kind}.yaml")), text)?;
        }
        Ok(folder)
    }

    /// Stops the control plane. Programs started on it are stopped by those who hold them.
    pub fn stop_control_plane(self) -> Result<()> {
        self.control_plane.stop()
    }
}

impl Environment for Cluster {
    async fn start() -> Result<Self> {
        let state = Arc::new(StateDir::for_test("cluster")?);
        match Self::start_in(&state, Lifetime::Test).await {
            Ok(cluster) => Ok(cluster),
            Err(error) => {
                let logs = state.collect_logs("cluster-start")?;
                Err(error.context(format!("logs: {}", logs.display())))
            }
        }
    }

    async fn stop(self) -> Result<()> {
        self.stop_control_plane()
    }

    fn collect_logs(&self, suite: &str) -> Result<Option<PathBuf>> {
        self.save_evidence(suite).map(Some)
    }
}
