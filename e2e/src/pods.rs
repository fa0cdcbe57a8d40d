//! gpudesk as its users have it: the chart's own pods on real nodes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::Api;
use kube::api::ListParams;
use tokio::sync::{Mutex, MutexGuard};

use crate::cluster::{Cluster, SYSTEM_NAMESPACE};
use crate::control_plane::ControlPlane;
use crate::node::images::{self, Images};
use crate::node::{MOST, Node};
use crate::objects::Objects;
use crate::processes::Lifetime;
use crate::state::{StateDir, copy_whole};
use crate::waiting::{patient, until};

const READY: Duration = Duration::from_mins(2);

/// A cluster of real nodes, on which the chart is not installed yet.
pub struct Pods {
    // The control plane is in the network of the first node.
    cluster: Cluster,
    nodes: Mutex<Vec<Node>>,
}

impl Pods {
    /// Starts `count` nodes, the first of which has the image of the node daemon, a libvirt, and `guests` among its golden images.
    pub async fn start(
        state: &Arc<StateDir>,
        lifetime: Lifetime,
        count: u8,
        guests: &[PathBuf],
    ) -> Result<Self> {
        let folder = state.join("images");
        let archives = tokio::task::spawn_blocking(move || images::build(&folder));
        let mut nodes = make_nodes(state, lifetime, count, guests).await?;
        let place = nodes.first().context("at least one node")?.place();
        let control_plane = ControlPlane::start_at(state, lifetime, &place);
        let runtimes = start_runtimes(&mut nodes, async { archives.await? });
        let (control_plane, ()) = tokio::try_join!(control_plane, runtimes)?;
        tracing::info!("control plane and containerd are there, with the images");
        let cluster = Cluster::over(control_plane, state, lifetime).await?;
        for node in &mut nodes {
            node.join(&cluster.control_plane().joining()?).await?;
        }
        for node in &nodes {
            is_ready(&cluster, &node.name()).await?;
        }
        tracing::info!("the nodes are ready");
        Ok(Self { cluster, nodes: Mutex::new(nodes) })
    }

    /// The detached ones that an earlier run left in this state folder; `None` when not all of it runs any more.
    pub async fn running_in(state: &Arc<StateDir>) -> Result<Option<Self>> {
        let nodes: Vec<_> = (0..MOST).map_while(|index| Node::running_in(state, index)).collect();
        let Some(first) = nodes.first() else { return Ok(None) };
        let cluster = Cluster::running_in(state, &first.place()).await?;
        Ok(cluster.map(|cluster| Self { cluster, nodes: Mutex::new(nodes) }))
    }

    /// Stops whatever detached ones left in this state folder, however far their start had come.
    pub fn stop_recorded(state: &StateDir) -> Result<()> {
        // The API server waits for those who watch it.
        Node::stop_recorded(state)?;
        ControlPlane::stop_recorded(state)
    }

    /// The cluster and its nodes.
    pub fn into_parts(self) -> (Cluster, Vec<Node>) {
        (self.cluster, self.nodes.into_inner())
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The nodes.
    pub async fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().await
    }

    /// A new namespace and what is in it.
    pub async fn objects(&self, name: &str) -> Result<Objects> {
        Ok(Objects::new(self.cluster.client(), &self.cluster.namespace(name).await?))
    }

    /// Gives the first node to gpudesk and installs the chart, or upgrades it, waiting until its pods are ready.
    pub fn install(&self, settings: &[&str]) -> Result<()> {
        install(&self.cluster, settings)
    }

    /// The pods of `operator` or `node-daemon` that are not being deleted.
    pub async fn of(&self, component: &str) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client().clone(), SYSTEM_NAMESPACE);
        let selector = ListParams::default().labels(&format!("app.kubernetes.io/name=gpudesk-{component}"));
        let listed = pods.list(&selector).await?;
        Ok(listed.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// As the function of this name.
    pub fn save_evidence(&self, name: &str) -> Result<PathBuf> {
        save_evidence(&self.cluster, name)
    }

    /// Stops all of it; nothing is left on return.
    pub fn stop(self) -> Result<()> {
        self.cluster.stop_control_plane()?;
        let mut nodes = self.nodes.into_inner();
        // The first one has the switch.
        while let Some(node) = nodes.pop() {
            node.stop()?;
        }
        Ok(())
    }
}

/// As [`Pods::install`].
pub fn install(cluster: &Cluster, settings: &[&str]) -> Result<()> {
    cluster.kubectl(["label", "--overwrite", "node", "node-a", "gpudesk.dev/host=true"])?;
    let limit = format!("--timeout={}s", patient(Duration::from_mins(3)).as_secs());
    cluster.helm_install_with(&[&images::SETTINGS[..], settings].concat(), &["--wait", &limit])
}

/// Makes nodes with nothing running in them, the first of which has `guests` among its golden images.
pub async fn make_nodes(
    state: &Arc<StateDir>,
    lifetime: Lifetime,
    count: u8,
    guests: &[PathBuf],
) -> Result<Vec<Node>> {
    let mut nodes: Vec<Node> = Vec::new();
    for index in 0..count {
        let node = Node::start(state, lifetime, index, nodes.first()).await?;
        nodes.push(node);
    }
    let first = nodes.first().context("at least one node")?;
    for guest in guests {
        copy_whole(guest, &first.outside("/var/lib/gpudesk/images"))?;
    }
    Ok(nodes)
}

/// Starts containerd and gives it the images; the first node also gets that of the node daemon, and a libvirt.
pub async fn start_runtimes(
    nodes: &mut [Node],
    archives: impl Future<Output = Result<Images>>,
) -> Result<()> {
    try_join_all(nodes.iter_mut().map(Node::start_containerd)).await?;
    let archives = archives.await?;
    for node in &*nodes {
        node.import(&archives.pause)?;
        node.import(&archives.operator)?;
    }
    // The larger one, where it is wanted.
    if let Some(first) = nodes.first_mut() {
        first.import(&archives.daemon)?;
        first.start_libvirt().await?;
    }
    Ok(())
}

/// Waits until a node is Ready.
pub async fn is_ready(cluster: &Cluster, name: &str) -> Result<()> {
    let objects: Api<NodeObject> = Api::all(cluster.client().clone());
    until(&objects, name, "it is Ready", READY, |node| {
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True")
    })
    .await
    .map(drop)
}

/// Saves the logs of everything, of pods too, and the objects as they are now, and returns the folder.
pub fn save_evidence(cluster: &Cluster, name: &str) -> Result<PathBuf> {
    let folder = cluster.save_evidence(name)?;
    let of_pods = ["logs", "--namespace", SYSTEM_NAMESPACE, "--prefix", "--tail=2000", "--all-containers"];
    for (file, words) in [
        ("pods.yaml", vec!["get", "pods,nodes", "--all-namespaces", "--output=yaml"]),
        (
            "operator-pods.log",
            [&of_pods[..], &["--selector=app.kubernetes.io/name=gpudesk-operator"]].concat(),
        ),
        (
            "daemon-pods.log",
            [&of_pods[..], &["--selector=app.kubernetes.io/name=gpudesk-node-daemon"]].concat(),
        ),
    ] {
        let text = cluster.kubectl(words).unwrap_or_else(|error| format!("{error:#}"));
        std::fs::write(folder.join(file), text)?;
    }
    Ok(folder)
}
