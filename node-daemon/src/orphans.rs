//! What is left on this host of desktops that are gone: a domain, a folder, a share of a GPU.
//!
//! Released only when the API has said twice, some time apart, that there is no such Desktop. Anything
//! less certain is left alone.
#![expect(clippy::disallowed_methods, reason = "adapter: time passes between two looks")]

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use gpudesk_crds::Desktop;
use kube::{
    Api, Client, ResourceExt,
    core::DeserializeGuard,
    runtime::reflector::{ObjectRef, Store},
};
use thiserror::Error;
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    desktop::{Desktops, problem::Problem},
    domain::metadata,
    host::{folder::Owner, hypervisor::HypervisorError},
};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(30);

/// Why a look was not finished.
#[derive(Debug, Error)]
enum OrphanError {
    #[error(transparent)]
    Problem(#[from] Problem),
    #[error("asking whether a Desktop exists: {0}")]
    Api(#[from] kube::Error),
}

impl From<HypervisorError> for OrphanError {
    fn from(error: HypervisorError) -> Self {
        Self::Problem(error.into())
    }
}

/// Looks after orphans for as long as it is awaited, once the desktops of this node are known.
pub async fn look_after(
    desktops: Arc<Desktops>,
    client: Client,
    mut watched: watch::Receiver<Option<Store<Desktop>>>,
) {
    let Ok(store) = watched.wait_for(Option::is_some).await.map(|store| store.clone()) else { return };
    let Some(store) = store else { return };
    let mut orphans = Orphans { desktops, client, store, missing_since: HashMap::new() };
    loop {
        if let Err(error) = orphans.look(Instant::now()).await {
            tracing::warn!(%error, "leftovers were not looked after");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

struct Orphans {
    desktops: Arc<Desktops>,
    client: Client,
    store: Store<Desktop>,
    missing_since: HashMap<Uuid, Instant>,
}

impl Orphans {
    async fn look(&mut self, now: Instant) -> Result<(), OrphanError> {
        let mut still_missing = HashMap::new();
        for owner in self.owners().await? {
            if !self.is_gone(&owner).await? {
                continue;
            }
            let since = self.missing_since.get(&owner.uid).copied().unwrap_or(now);
            if now.duration_since(since) >= INTERVAL {
                tracing::warn!(namespace = owner.namespace, name = owner.name, uid = %owner.uid, "no such Desktop any more: releasing what is left of it");
                self.desktops.release_orphan(owner.uid).await?;
            } else {
                still_missing.insert(owner.uid, since);
            }
        }
        self.missing_since = still_missing;
        Ok(())
    }

    /// Whose leftovers there may be: everything on this host that says whose it is.
    async fn owners(&self) -> Result<Vec<Owner>, OrphanError> {
        let node = self.desktops.node();
        let mut owners: HashMap<Uuid, Owner> = HashMap::new();
        for (uid, owner) in node.folders.list().await.map_err(Problem::from)? {
            owners.extend(owner.filter(|owner| owner.uid == uid).map(|owner| (uid, owner)));
        }
        for instance in self.desktops.all_instances().await? {
            if let (Ok(uid), Some((namespace, name))) =
                (instance.key.desktop_uid.parse(), instance.owner.split_once('/'))
            {
                owners.insert(uid, Owner { namespace: namespace.into(), name: name.into(), uid });
            }
        }
        for domain in node.hypervisor.list().await? {
            if let Some(Ok(Some(ours))) = domain.metadata.as_deref().map(metadata::parse)
                && ours.desktop_uid == domain.uuid
            {
                let uid = domain.uuid;
                owners.insert(uid, Owner { namespace: ours.namespace, name: ours.name, uid });
            }
        }
        Ok(owners.into_values().collect())
    }

    /// Whether the API says that there is no such Desktop. One that cannot be understood is there.
    async fn is_gone(&self, owner: &Owner) -> Result<bool, OrphanError> {
        let uid = owner.uid.to_string();
        let known = self.store.get(&ObjectRef::new(&owner.name).within(&owner.namespace));
        if known.is_some_and(|desktop| desktop.uid().as_ref() == Some(&uid)) {
            return Ok(false);
        }
        let desktops: Api<DeserializeGuard<Desktop>> = Api::namespaced(self.client.clone(), &owner.namespace);
        let live = desktops.get_opt(&owner.name).await?;
        Ok(live.is_none_or(|desktop| desktop.uid().is_some_and(|live| live != uid)))
    }
}
