//! What is on this host of desktops that the watch does not show as this node's: a domain, a folder, a
//! share of a GPU.
//!
//! ```text
//!   read of the Desktop     what is here
//!   allocated here          left: the watch is late, or cannot understand it
//!   allocated elsewhere     taken down: asked, then off; disks are put aside
//!   allocated nowhere       left as it is and told: it may be the only copy
//!   no such Desktop, twice  runs: left and told. Off: forgotten, disks are put aside.
//!                           Was being deleted when last seen: removed
//!   no clear answer         left
//! ```
//!
//! "Missing in the watch" is never "gone": the watch shows only what is allocated to this node. Nothing is
//! touched on the word of another cluster.
#![expect(clippy::disallowed_methods, reason = "adapter: time passes between two looks")]

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use gpudesk_crds::{Allocation, Desktop, DesktopTemplate, handover::Standing as Made};
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject},
    runtime::reflector::{ObjectRef, Store},
};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    cluster::{Cluster, ClusterError},
    desktop::{
        Desktops, decision,
        problem::Problem,
        standing::{Standing, standing},
        withdraw::Withdrawn,
    },
    domain::metadata,
    host::{folder::Owner, hypervisor::HypervisorError},
    metrics::{Metrics, Stray},
};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(30);
/// Desktops that are looked at at once.
const AT_ONCE: usize = 8;
/// How long the API server has for a read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a look was not finished.
#[derive(Debug, Error)]
enum OrphanError {
    #[error(transparent)]
    Problem(#[from] Problem),
    #[error("asking for the Desktop: {0}")]
    Api(#[from] kube::Error),
    #[error("asking for the Desktop: the API server does not answer")]
    Silent,
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl From<HypervisorError> for OrphanError {
    fn from(error: HypervisorError) -> Self {
        Self::Problem(error.into())
    }
}

/// The stores that the watches fill.
#[derive(Clone)]
pub struct Watched {
    /// The desktops of this node.
    pub desktops: Store<Desktop>,
    /// Templates of all namespaces.
    pub templates: Store<DesktopTemplate>,
}

/// What looking after them needs.
pub struct Orphans {
    /// The desktops of this node.
    pub desktops: Arc<Desktops>,
    /// The API.
    pub client: Client,
    /// The cluster of this host.
    pub cluster: Cluster,
    /// Figures.
    pub metrics: Metrics,
    /// Told when a desktop has left the watch, or something happened to a domain that is none of its.
    pub hint: Arc<Notify>,
}

/// What one look found of one desktop.
enum Found {
    /// It is this node's, or nothing is left of it.
    Nothing,
    /// It is still here.
    Still(Stray),
    /// It is still here and is to be looked at at this time.
    Until(Stray, Timestamp),
}

impl Orphans {
    /// Looks after them for as long as it is awaited, once the desktops of this node are known.
    pub async fn look_after(self, mut watched: watch::Receiver<Option<Watched>>) {
        let Ok(stores) = watched.wait_for(Option::is_some).await.map(|stores| stores.clone()) else { return };
        let Some(stores) = stores else { return };
        let looking =
            Arc::new(Looking { this: self, stores, missing: Mutex::default(), told: Mutex::default() });
        loop {
            let wait = match looking.look().await {
                Ok(again) => again,
                Err(error) => {
                    tracing::warn!(%error, "what is on this host of other desktops was not looked at");
                    INTERVAL
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = looking.this.hint.notified() => {}
            }
        }
    }
}

struct Looking {
    this: Orphans,
    stores: Watched,
    /// Since when the API has said that there is no such Desktop.
    missing: Mutex<HashMap<Uuid, Instant>>,
    /// What was logged of whom, so that it is logged once.
    told: Mutex<BTreeSet<(Uuid, String)>>,
}

impl Looking {
    /// Looks at everything once; returns after what time to look again.
    async fn look(self: &Arc<Self>) -> Result<Duration, OrphanError> {
        let owners = self.owners().await?.into_iter();
        let found: Vec<(Uuid, Found)> = stream::iter(owners.filter(|owner| !self.is_watched(owner)))
            .map(|owner| {
                let this = Arc::clone(self);
                async move { (owner.uid, this.one(owner).await) }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut wait = INTERVAL;
        let mut strays: HashMap<Stray, usize> = HashMap::new();
        let mut here = BTreeSet::new();
        for (uid, found) in found {
            let stray = match found {
                Found::Nothing => continue,
                Found::Still(stray) => stray,
                Found::Until(stray, time) => {
                    let left = Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default();
                    wait = wait.min(left.saturating_add(Duration::from_millis(10)));
                    stray
                }
            };
            here.insert(uid);
            *strays.entry(stray).or_default() += 1;
        }
        self.this.metrics.set_strays(&strays);
        let leftovers = self.this.desktops.node().leftovers.clone();
        match tokio::task::spawn_blocking(move || leftovers.count()).await {
            Ok(Ok(count)) => self.this.metrics.set_leftovers(count),
            Ok(Err(error)) => tracing::warn!(%error, "disks that are kept aside were not counted"),
            Err(_) => {}
        }
        self.lock_missing().retain(|uid, _| here.contains(uid));
        self.told.lock().unwrap_or_else(PoisonError::into_inner).retain(|(uid, _)| here.contains(uid));
        Ok(wait)
    }

    /// One desktop of which something is here. Whatever is wrong with it holds up no other.
    async fn one(self: Arc<Self>, owner: Owner) -> Found {
        let span = tracing::info_span!("stray", desktop = format!("{}/{}", owner.namespace, owner.name), uid = %owner.uid);
        let this = Arc::clone(&self);
        let uid = owner.uid;
        let work = async move { this.handle(&owner).await }.instrument(span.clone());
        // A round of it may be under way: it has just come back.
        match self.this.desktops.alone(uid, work).await {
            Some(Ok(found)) => found,
            Some(Err(error)) => {
                span.in_scope(|| tracing::warn!(%error, "left as it is"));
                Found::Still(Stray::Unclear)
            }
            None => Found::Still(Stray::Unclear),
        }
    }

    async fn handle(&self, owner: &Owner) -> Result<Found, OrphanError> {
        // The read comes after everything else that may take time: what is done next rests on it.
        let node = &self.this.desktops.node().name;
        let live = self.read(owner).await?;
        let standing = standing(node, owner.uid, live.as_ref());
        if standing != Standing::Gone {
            self.lock_missing().remove(&owner.uid);
        }
        match standing {
            Standing::Here => Ok(Found::Nothing),
            Standing::Unclear => {
                self.tell(owner, "where it is allocated cannot be understood: left as it is");
                Ok(Found::Still(Stray::Unclear))
            }
            Standing::Unallocated => {
                if self.this.desktops.traces(owner).await?.runs {
                    self.tell(owner, "it is allocated to no node and its machine runs here: left running");
                } else if self.this.desktops.clear_if_given_back(owner).await? {
                    return Ok(Found::Nothing);
                } else {
                    self.tell(owner, "it is allocated to no node and something of it is here: left as it is");
                }
                Ok(Found::Still(Stray::Unallocated))
            }
            Standing::Elsewhere(_) if self.is_of_another_decision(owner, live.as_ref()).await? => {
                let words = "its machine runs here by a decision that is newer than the present one, or was never \
                             heard of: left running";
                self.tell(owner, words);
                Ok(Found::Still(Stray::Unclear))
            }
            Standing::Elsewhere(other) => {
                let why = format!("the desktop is allocated to node {other}");
                self.withdraw(owner, live.as_ref(), &why, Stray::Elsewhere).await
            }
            Standing::Gone => self.gone(owner).await,
        }
    }

    /// Whether a machine runs here that was made for a decision that the one which holds does not follow.
    async fn is_of_another_decision(
        &self,
        owner: &Owner,
        live: Option<&DynamicObject>,
    ) -> Result<bool, OrphanError> {
        let allocation = live.and_then(|live| live.data.pointer("/status/allocation"));
        let allocation: Option<Allocation> =
            allocation.and_then(|held| serde_json::from_value(held.clone()).ok());
        let made_for = self.this.desktops.runs_for(owner).await?;
        Ok(match (made_for, allocation) {
            (None, _) => false,
            (Some(made_for), Some(allocation)) => decision::standing(&made_for, &allocation) == Made::Unknown,
            // Where it is allocated is known, and not by which decision.
            (Some(_), None) => true,
        })
    }

    /// There is no such Desktop, says the API now.
    async fn gone(&self, owner: &Owner) -> Result<Found, OrphanError> {
        self.this.cluster.check(&self.this.client).await?;
        let now = Instant::now();
        let since = *self.lock_missing().entry(owner.uid).or_insert(now);
        if now.duration_since(since) < INTERVAL {
            return Ok(Found::Still(Stray::NoDesktop));
        }
        let traces = self.this.desktops.traces(owner).await?;
        if traces.was_being_deleted {
            tracing::warn!("it was being deleted and is gone: removing what is left of it");
            self.this.desktops.erase(owner).await?;
            return Ok(Found::Nothing);
        }
        if traces.runs {
            // The object may have been lost, and not the desktop.
            self.tell(owner, "there is no such Desktop and its machine runs here: left running");
            return Ok(Found::Still(Stray::NoDesktop));
        }
        self.withdraw(owner, None, "there is no such Desktop", Stray::NoDesktop).await
    }

    async fn withdraw(
        &self,
        owner: &Owner,
        live: Option<&DynamicObject>,
        why: &str,
        stray: Stray,
    ) -> Result<Found, OrphanError> {
        // It tells how long the guest may take.
        let template = live.and_then(|desktop| desktop.data.pointer("/spec/templateRef/name")?.as_str());
        let template = template
            .and_then(|name| self.stores.templates.get(&ObjectRef::new(name).within(&owner.namespace)));
        match self.this.desktops.withdraw(owner, template, why).await? {
            Withdrawn::Whole => Ok(Found::Nothing),
            Withdrawn::Waiting(until) => Ok(Found::Until(stray, until)),
        }
    }

    async fn read(&self, owner: &Owner) -> Result<Option<DynamicObject>, OrphanError> {
        let kind = ApiResource::erase::<Desktop>(&());
        let desktops: Api<DynamicObject> =
            Api::namespaced_with(self.this.client.clone(), &owner.namespace, &kind);
        let answer = tokio::time::timeout(PATIENCE, desktops.get_opt(&owner.name)).await;
        Ok(answer.map_err(|_| OrphanError::Silent)??)
    }

    fn is_watched(&self, owner: &Owner) -> bool {
        let known = self.stores.desktops.get(&ObjectRef::new(&owner.name).within(&owner.namespace));
        known.is_some_and(|desktop| desktop.uid() == Some(owner.uid.to_string()))
    }

    /// Whose things there may be: everything on this host that says whose it is.
    async fn owners(&self) -> Result<Vec<Owner>, OrphanError> {
        let desktops = &self.this.desktops;
        let mut owners: HashMap<Uuid, Owner> = HashMap::new();
        for (uid, owner) in desktops.node().folders.list().await.map_err(Problem::from)? {
            owners.extend(owner.filter(|owner| owner.uid == uid).map(|owner| (uid, owner)));
        }
        for instance in desktops.all_instances().await? {
            if let (Ok(uid), Some((namespace, name))) =
                (instance.key.desktop_uid.parse(), instance.owner.split_once('/'))
            {
                owners.insert(uid, Owner { namespace: namespace.into(), name: name.into(), uid });
            }
        }
        for domain in desktops.node().hypervisor.list().await? {
            if let Some(Ok(Some(ours))) = domain.metadata.as_deref().map(metadata::parse)
                && ours.desktop_uid == domain.uuid
            {
                let uid = domain.uuid;
                owners.insert(uid, Owner { namespace: ours.namespace, name: ours.name, uid });
            }
        }
        Ok(owners.into_values().collect())
    }

    /// Logs `words` of a desktop once, for as long as they are true.
    fn tell(&self, owner: &Owner, words: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert((owner.uid, words.to_owned())) {
            tracing::warn!("{words}");
        }
    }

    fn lock_missing(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Instant>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
