//! Shows the host in the API: its `GpuNode`, made when it is missing, its status written when it
//! says something new.
#![expect(clippy::disallowed_methods, reason = "adapter: conditions carry times")]

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use gpudesk_crds::{GpuNode, GpuNodeSpec, GpuNodeStatus, NODE_DAEMON_FIELD_MANAGER, types::ShareMode};
use jiff::Timestamp;
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde_json::json;
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use crate::{
    domain::metadata,
    host::{gpu_driver::GpuInstance, hypervisor::Hypervisor, source::HostSource},
    inventory::{self, Findings, HypervisorView, WholeCard},
    metrics::Metrics,
    topology::HostFacts,
};

/// How often the host is looked at when nothing calls for it.
const SLOWLY: Duration = Duration::from_mins(1);
/// The shortest time between two writes, so that a hundred desktops that start are a few writes.
const PAUSE: Duration = Duration::from_secs(2);

/// How long the first look waits for what may come at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the host could not be shown.
#[derive(Debug, Error)]
enum ShowError {
    #[error("writing the GpuNode: {0}")]
    Api(#[from] kube::Error),
    #[error("looking at the host: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// The `GpuNode` as the API has it.
#[derive(Clone, Debug, Default)]
struct Stored {
    /// Whether the watch has said anything yet.
    known: bool,
    node: Option<Arc<GpuNode>>,
}

/// Shows one host.
pub struct Publisher {
    /// Name of the node.
    pub node: String,
    /// The host.
    pub source: HostSource,
    /// The API.
    pub client: Client,
    /// What is known of libvirt.
    pub hypervisor: watch::Receiver<(HypervisorView, Option<Arc<dyn Hypervisor>>)>,
    /// Told when something on the host may have changed.
    pub changed: Arc<Notify>,
    /// Figures.
    pub metrics: Metrics,
}

/// What is on the host now.
struct Content {
    facts: HostFacts,
    instances: Result<Vec<GpuInstance>, String>,
}

impl Publisher {
    /// Shows the host for as long as it is awaited.
    pub async fn run(mut self) {
        let (sender, mut stored) = watch::channel(Stored::default());
        let watching = observe(self.client.clone(), self.node.clone(), sender);
        let publishing = async {
            let mut said: Option<GpuNodeStatus> = None;
            // Before the first look it is not known whether there is a GpuNode at all.
            let _ = timeout(PATIENCE, stored.wait_for(|stored| stored.known)).await;
            // And a libvirt that answers at once need not be said to be silent first.
            let _ = timeout(PATIENCE, self.hypervisor.wait_for(|(_, hypervisor)| hypervisor.is_some())).await;
            loop {
                let now = stored.borrow_and_update().clone();
                if let Err(error) = self.show(now.node.as_deref(), &mut said).await {
                    tracing::warn!(%error, "the host is not shown as it is");
                    said = None;
                }
                sleep(PAUSE).await;
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep(SLOWLY) => {}
                    _ = stored.changed() => {}
                    _ = self.hypervisor.changed() => {}
                }
            }
        };
        tokio::join!(watching, publishing);
    }

    async fn show(
        &mut self,
        stored: Option<&GpuNode>,
        said: &mut Option<GpuNodeStatus>,
    ) -> Result<(), ShowError> {
        let nodes: Api<GpuNode> = Api::all(self.client.clone());
        let params = PatchParams::apply(NODE_DAEMON_FIELD_MANAGER).force();
        let simulated = self.source.is_simulated().to_string();
        let labels = stored.and_then(|node| node.metadata.labels.as_ref());
        if labels.and_then(|labels| labels.get("gpudesk.dev/simulated")) != Some(&simulated) {
            // An empty spec is what the schema asks for; those of people stay beside it.
            let apply = json!({
                "apiVersion": GpuNode::api_version(&()),
                "kind": GpuNode::kind(&()),
                "metadata": { "name": self.node, "labels": { "gpudesk.dev/simulated": simulated } },
                "spec": {},
            });
            nodes.patch(&self.node, &params, &Patch::Apply(&apply)).await?;
            *said = None;
        }
        let (view, hypervisor) = self.hypervisor.borrow_and_update().clone();
        let whole_cards = whole_cards(hypervisor.as_deref(), &self.metrics).await;
        let unknown = whole_cards.as_ref().err().cloned();
        let source = self.source.clone();
        let content = tokio::task::spawn_blocking(move || Content {
            facts: source.facts(),
            instances: match unknown {
                Some(why) => Err(why),
                None => source.gpus().instances().map_err(|error| error.to_string()),
            },
        });
        let content = content.await?;
        let before = said.as_ref().or_else(|| stored.and_then(|node| node.status.as_ref()));
        let none = GpuNodeSpec::default();
        let status = inventory::status(&Findings {
            facts: &content.facts,
            simulated: self.source.is_simulated(),
            hypervisor: &view,
            gpu_driver_version: self.source.gpus().version(),
            instances: content.instances.as_deref().map_err(Clone::clone),
            whole_cards: whole_cards.as_deref().unwrap_or_default(),
            spec: stored.map_or(&none, |node| &node.spec),
            generation: stored.and_then(|node| node.metadata.generation),
            before,
            now: Timestamp::now(),
        });
        if before.is_some_and(|before| !inventory::differs(before, &status)) {
            return Ok(());
        }
        let apply = json!({
            "apiVersion": GpuNode::api_version(&()),
            "kind": GpuNode::kind(&()),
            "metadata": { "name": self.node },
            "status": status,
        });
        nodes.patch_status(&self.node, &params, &Patch::Apply(&apply)).await?;
        self.metrics.node_written();
        *said = Some(status);
        Ok(())
    }
}

/// Watches the one `GpuNode`.
async fn observe(client: Client, node: String, stored: watch::Sender<Stored>) {
    let nodes: Api<DeserializeGuard<GpuNode>> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let mut events = watcher(nodes, config).default_backoff().boxed();
    let mut listed = None;
    while let Some(event) = events.next().await {
        // One that does not parse counts as there, with what was last known of it.
        match event {
            Ok(Event::Init) => listed = None,
            Ok(Event::InitApply(DeserializeGuard(node))) => listed = node.ok().map(Arc::new),
            Ok(Event::InitDone) => {
                stored.send_replace(Stored { known: true, node: listed.take() });
            }
            Ok(Event::Apply(DeserializeGuard(Ok(node)))) => {
                stored.send_replace(Stored { known: true, node: Some(Arc::new(node)) });
            }
            Ok(Event::Apply(DeserializeGuard(Err(error)))) => {
                tracing::warn!(%error, "the GpuNode cannot be understood");
            }
            Ok(Event::Delete(_)) => {
                stored.send_replace(Stored { known: true, node: None });
            }
            Err(error) => tracing::warn!(%error, "the GpuNode cannot be watched"),
        }
    }
}

/// Cards that domains of ours hold whole; or why it cannot be told.
async fn whole_cards(
    hypervisor: Option<&dyn Hypervisor>,
    metrics: &Metrics,
) -> Result<Vec<WholeCard>, String> {
    let Some(hypervisor) = hypervisor else { return Err("libvirt does not answer".into()) };
    let domains = hypervisor.list().await.map_err(|error| error.to_string())?;
    let mut whole = vec![];
    let mut active = 0;
    for domain in domains {
        let Some(Ok(Some(ours))) = domain.metadata.as_deref().map(metadata::parse) else { continue };
        active += usize::from(domain.state.is_active());
        let allocation = serde_json::from_str::<gpudesk_crds::Allocation>(&ours.allocation);
        let owner = format!("{}/{}", ours.namespace, ours.name);
        let gpus = allocation.into_iter().flat_map(|allocation| allocation.gpus);
        let cards = gpus.filter(|gpu| gpu.mode == ShareMode::Passthrough).map(|gpu| gpu.device);
        whole.extend(cards.map(|card| WholeCard { card, owner: owner.clone() }));
    }
    metrics.set_desktops(active);
    Ok(whole)
}
