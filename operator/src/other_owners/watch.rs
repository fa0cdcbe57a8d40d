//! What is watched and asked: `ResourceSlices` and our `DeviceTaintRules`, in whatever version the cluster serves, and Nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use gpudesk_crds::{GpuNode, pods};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt,
    core::{ApiResource, DynamicObject},
    discovery,
    error::DiscoveryError,
    runtime::{
        WatchStreamExt,
        reflector::Store,
        watcher::{self, Event, watcher},
    },
};
use tokio::task::JoinSet;

use super::{
    OtherOwners, Rule, Sight, judge,
    rules::{self, PREFIX},
    slices::{self, ResourceSlice},
};
use crate::{cause, metrics::Metrics, secret_access::NODE_LABEL, watch::code};

const GROUP: &str = "resource.k8s.io";
/// Between looks for an API that is not served, or may not be read, and between two looks at the Nodes.
const AGAIN: Duration = Duration::from_mins(5);
/// After a failure that may be over soon.
const SOON: Duration = Duration::from_secs(30);
/// Slices in one answer; each may hold 128 devices.
const PAGE: u32 = 100;

/// The versions in which the cluster serves what is watched; the most stable of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Served {
    slices: Option<ApiResource>,
    rules: Option<ApiResource>,
}

/// Starts what keeps `owners` up to date, and wakes nodes of which there is news.
pub fn watch_all(
    owners: &Arc<OtherOwners>,
    client: &Client,
    metrics: &Metrics,
    nodes: Store<GpuNode>,
    tasks: &mut JoinSet<&'static str>,
    wake: impl Fn(&str) + Clone + Send + Sync + 'static,
) {
    let watch = Watch {
        owners: owners.clone(),
        client: client.clone(),
        metrics: metrics.clone(),
        nodes: nodes.clone(),
        wake: Arc::new(wake.clone()),
    };
    tasks.spawn(async move {
        watch.follow().await;
        "watch of ResourceSlices"
    });
    let (owners, client) = (owners.clone(), client.clone());
    tasks.spawn(async move {
        ask_nodes(&owners, client, &nodes, wake).await;
        "asker for resources of Nodes"
    });
}

struct Watch {
    owners: Arc<OtherOwners>,
    client: Client,
    metrics: Metrics,
    nodes: Store<GpuNode>,
    wake: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Watch {
    /// Watches for as long as the cluster serves the same; looks again from time to time where something is not served.
    async fn follow(&self) {
        let mut told = None;
        loop {
            let served = match self.served().await {
                Ok(served) => served,
                Err(why) => {
                    if told.as_ref() != Some(&Err(why.clone())) {
                        tracing::warn!(
                            error = why,
                            "whether the cluster has ResourceSlices cannot be read; trying again"
                        );
                        told = Some(Err(why.clone()));
                    }
                    self.unread(why);
                    tokio::time::sleep(SOON).await;
                    continue;
                }
            };
            if told.as_ref() != Some(&Ok(served.clone())) {
                self.tell(&served);
                told = Some(Ok(served.clone()));
            }
            if served.slices.is_none() && self.owners.see_slices(Sight::Unserved) {
                self.wake_all();
            }
            if served.rules.is_none() && self.owners.rules_known(None) {
                self.wake_all();
            }
            tokio::select! {
                () = self.slices(served.slices.as_ref()) => {}
                () = self.rules(served.rules.as_ref()) => {}
                () = self.until_other(&served) => {}
            }
        }
    }

    fn tell(&self, served: &Served) {
        let version =
            |api: &Option<ApiResource>| api.as_ref().map_or("none", |api| api.version.as_str()).to_owned();
        tracing::info!(
            resource_slices = version(&served.slices),
            device_taint_rules = if self.owners.taints { version(&served.rules) } else { "off".to_owned() },
            "APIs of the cluster by which cards are offered to pods"
        );
    }

    /// What the cluster serves.
    async fn served(&self) -> Result<Served, String> {
        let group = match discovery::group(&self.client, GROUP).await {
            Ok(group) => group,
            Err(kube::Error::Discovery(DiscoveryError::MissingApiGroup(_))) => return Ok(Served::default()),
            Err(error) => return Err(cause::of_request(&error).to_string()),
        };
        let kinds = group.resources_by_stability();
        let of = |kind: &str| kinds.iter().map(|(api, _)| api).find(|api| api.kind == kind).cloned();
        Ok(Served {
            slices: of("ResourceSlice"),
            rules: of("DeviceTaintRule").filter(|_| self.owners.taints),
        })
    }

    /// Waits until the cluster serves something else: as after its upgrade.
    async fn until_other(&self, served: &Served) {
        loop {
            tokio::time::sleep(AGAIN).await;
            if self.served().await.is_ok_and(|now| now != *served) {
                return;
            }
        }
    }

    /// Follows the slices until they are not served, or may not be read, any more.
    async fn slices(&self, api: Option<&ApiResource>) {
        let Some(api) = api else { return std::future::pending().await };
        let slices: Api<ResourceSlice> = Api::all_with(self.client.clone(), api);
        let mut listed = BTreeSet::new();
        let mut events =
            watcher(slices, watcher::Config::default().page_size(PAGE)).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(slice)) => {
                    listed.insert(slice.name_any());
                    self.slice(&slice);
                }
                Ok(Event::InitDone) => {
                    let changed = self.owners.only_slices(&std::mem::take(&mut listed));
                    self.wake_each(&changed);
                    if self.owners.see_slices(Sight::Whole) {
                        self.wake_all();
                    }
                }
                Ok(Event::Apply(slice)) => self.slice(&slice),
                Ok(Event::Delete(slice)) => {
                    let changed = self.owners.slice(&slice.name_any(), None);
                    self.wake_each(&changed);
                }
                Err(error) => {
                    let why = cause::of(&error);
                    if let Some(wait) = self.interrupted("ResourceSlice", &error, &why) {
                        self.unread(why);
                        tokio::time::sleep(wait).await;
                        return;
                    }
                    // Of what was seen once the watch goes on by itself.
                    if self.owners.lock().slices != Sight::Whole {
                        self.unread(why);
                    }
                }
            }
        }
    }

    fn slice(&self, slice: &ResourceSlice) {
        let changed = self.owners.slice(&slice.name_any(), slices::read(&slice.spec));
        self.wake_each(&changed);
    }

    /// The same for our rules.
    async fn rules(&self, api: Option<&ApiResource>) {
        let Some(api) = api else { return std::future::pending().await };
        let rules: Api<DynamicObject> = Api::all_with(self.client.clone(), api);
        let mut listed = BTreeSet::new();
        let mut events =
            watcher(rules, watcher::Config::default().labels(NODE_LABEL)).default_backoff().boxed();
        while let Some(event) = events.next().await {
            let node = match event {
                Ok(Event::Init) => {
                    listed.clear();
                    None
                }
                Ok(Event::InitApply(rule)) => {
                    listed.insert(rule.name_any());
                    self.rule(&rule)
                }
                Ok(Event::InitDone) => {
                    self.owners.only_rules(&std::mem::take(&mut listed));
                    self.owners.rules_known(Some(api.clone()));
                    self.wake_all();
                    None
                }
                Ok(Event::Apply(rule)) => self.rule(&rule),
                Ok(Event::Delete(rule)) => self.owners.rule(&rule.name_any(), None),
                Err(error) => {
                    if let Some(wait) = self.interrupted("DeviceTaintRule", &error, &cause::of(&error)) {
                        self.owners.rules_known(None);
                        tokio::time::sleep(wait).await;
                        return;
                    }
                    None
                }
            };
            if let Some(node) = node {
                (self.wake)(&node);
            }
        }
    }

    fn rule(&self, rule: &DynamicObject) -> Option<String> {
        let name = rule.name_any();
        let owner = rule.owner_references().iter().find(|owner| owner.kind == "GpuNode");
        let label = || rule.labels().get(NODE_LABEL).cloned().filter(|node| !node.is_empty());
        let node =
            owner.map(|owner| owner.name.clone()).or_else(label).filter(|_| name.starts_with(PREFIX))?;
        let sound = owner.is_some()
            && rules::is_sound(&rule.data["spec"])
            && rule.metadata.deletion_timestamp.is_none();
        self.owners.rule(&name, Some(Rule { node, sound }))
    }

    /// Tells of an interruption; for how long to wait where the watch does not go on by itself.
    fn interrupted(&self, kind: &str, error: &watcher::Error, why: &str) -> Option<Duration> {
        self.metrics.watch_errors(kind);
        match code(error) {
            // An API that is gone, and one that may not be read: nothing changes by asking every few seconds.
            Some(404) => {
                tracing::info!(kind, error = why, "not served any more");
                Some(SOON)
            }
            Some(403) => {
                tracing::warn!(
                    kind,
                    error = why,
                    "may not be read (ClusterRole gpudesk-operator); looking again later"
                );
                Some(AGAIN)
            }
            _ => {
                tracing::warn!(kind, error = why, "watch interrupted; trying again");
                None
            }
        }
    }

    fn unread(&self, why: String) {
        if self.owners.see_slices(Sight::Unread(why)) {
            self.wake_all();
        }
    }

    fn wake_all(&self) {
        self.wake_each(&self.nodes.state().iter().map(|node| node.name_any()).collect());
    }

    fn wake_each(&self, nodes: &BTreeSet<String>) {
        for node in nodes {
            (self.wake)(node);
        }
    }
}

/// Asks for the Nodes with managed GPUs, one after the other, every five minutes, and soon for those that are new; a watch of
/// all Nodes would see a write of each kubelet every few seconds.
async fn ask_nodes(owners: &OtherOwners, client: Client, nodes: &Store<GpuNode>, wake: impl Fn(&str)) {
    let api: Api<Node> = Api::all(client);
    let rounds = AGAIN.as_secs() / SOON.as_secs();
    let mut asked: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0.. {
        let managed: Vec<String> = nodes
            .state()
            .iter()
            .filter(|node| judge::has_managed(node))
            .map(|node| node.name_any())
            .collect();
        for name in &managed {
            if asked.get(name).is_none_or(|last| round - last >= rounds) {
                asked.insert(name.clone(), round);
                if owners.node(name, resources(&api, name).await) {
                    wake(name);
                }
            }
        }
        for name in owners.take_news() {
            wake(&name);
        }
        let there: BTreeSet<String> = managed.into_iter().collect();
        asked.retain(|name, _| there.contains(name));
        owners.only_nodes(&there);
        tokio::time::sleep(SOON).await;
    }
}

/// The resources of a Node that stand for GPUs; none where there is no such Node, on which no pod can be.
async fn resources(api: &Api<Node>, name: &str) -> Result<BTreeMap<String, String>, String> {
    let node = api.get_opt(name).await.map_err(|error| cause::of_request(&error).to_string())?;
    let allocatable = node.and_then(|node| node.status?.allocatable).unwrap_or_default();
    let of_gpus =
        allocatable.into_iter().filter(|(resource, amount)| pods::gives_gpus(resource) && amount.0 != "0");
    Ok(of_gpus.map(|(resource, amount)| (resource, amount.0)).collect())
}
