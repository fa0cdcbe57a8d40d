//! What the watches show of our Roles, `RoleBindings` and service accounts. Their metadata alone: what is
//! in them is known from what was written, and another version says that somebody else wrote.

use std::{collections::BTreeSet, fmt::Debug, sync::Arc};

use futures::StreamExt;
use gpudesk_crds::GpuNode;
use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::ObjectRef,
        watcher::{self, Event as Watched, watcher},
    },
};
use serde::de::DeserializeOwned;
use std::sync::PoisonError;
use tokio::{sync::watch, task::JoinSet};

use super::{Event, Kind, NODE_LABEL, Pair, SecretAccess};
use crate::{cause, metrics::Metrics};

/// What the names of all that is made for a node begin with.
const PREFIX: &str = "gpudesk-node-";

/// One object as a watch shows it.
type Meta<K> = PartialObjectMeta<K>;

/// Starts the watches. What is returned turns true once each has listed everything.
pub fn watch_all(
    access: &Arc<SecretAccess>,
    client: &Client,
    metrics: &Metrics,
    tasks: &mut JoinSet<&'static str>,
    wake_node: impl Fn(ObjectRef<GpuNode>) + Send + 'static,
) -> [watch::Receiver<bool>; 3] {
    let objects = |kind: Kind| {
        let access = access.clone();
        move |namespace: &str, name: &str, version: Option<String>, _: Option<String>| {
            let Some(node) = name.strip_prefix(PREFIX) else { return };
            let pair = Pair { namespace: namespace.into(), node: node.into() };
            access.notice(Event::Object(pair, kind, version));
        }
    };
    let accounts = {
        let access = access.clone();
        move |_: &str, name: &str, version: Option<String>, owner: Option<String>| {
            let Some(node) = name.strip_prefix(PREFIX) else { return };
            let mut known = access.accounts.lock().unwrap_or_else(PoisonError::into_inner);
            if version.is_some() {
                known.insert(node.into(), owner);
            } else if known.remove(node).is_some() {
                wake_node(ObjectRef::new(node));
            }
        }
    };
    let (roles, roles_listed) = watch::channel(false);
    let (bindings, bindings_listed) = watch::channel(false);
    let (there, accounts_listed) = watch::channel(false);
    let watching = follow::<Role>(Api::all(client.clone()), metrics.clone(), objects(Kind::Role), roles);
    tasks.spawn(async move {
        watching.await;
        "watch of Roles"
    });
    let watching = follow::<RoleBinding>(
        Api::all(client.clone()),
        metrics.clone(),
        objects(Kind::RoleBinding),
        bindings,
    );
    tasks.spawn(async move {
        watching.await;
        "watch of RoleBindings"
    });
    let of_nodes = Api::namespaced(client.clone(), &access.system_namespace);
    let watching = follow::<ServiceAccount>(of_nodes, metrics.clone(), accounts, there);
    tasks.spawn(async move {
        watching.await;
        "watch of ServiceAccounts"
    });
    [roles_listed, bindings_listed, accounts_listed]
}

/// Tells `hear` of each object of ours: namespace, name, its version or that it is gone, UID of its owner.
async fn follow<K>(
    api: Api<Meta<K>>,
    metrics: Metrics,
    mut hear: impl FnMut(&str, &str, Option<String>, Option<String>) + Send,
    listed: watch::Sender<bool>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let kind = K::kind(&()).into_owned();
    let mut events = watcher(api, watcher::Config::default().labels(NODE_LABEL)).default_backoff().boxed();
    let (mut known, mut listing) = (BTreeSet::new(), BTreeSet::new());
    let key = |object: &Meta<K>| (object.namespace().unwrap_or_default(), object.name_any());
    let owner = |object: &Meta<K>| object.owner_references().first().map(|owner| owner.uid.clone());
    while let Some(event) = events.next().await {
        match event {
            Ok(Watched::Init) => listing.clear(),
            Ok(Watched::InitApply(object) | Watched::Apply(object)) => {
                let (namespace, name) = key(&object);
                listing.insert((namespace.clone(), name.clone()));
                known.insert((namespace.clone(), name.clone()));
                hear(&namespace, &name, object.resource_version(), owner(&object));
            }
            Ok(Watched::InitDone) => {
                for (namespace, name) in known.difference(&listing) {
                    hear(namespace, name, None, None);
                }
                known = std::mem::take(&mut listing);
                listed.send_replace(true);
            }
            Ok(Watched::Delete(object)) => {
                let (namespace, name) = key(&object);
                known.remove(&(namespace.clone(), name.clone()));
                hear(&namespace, &name, None, None);
            }
            Err(error) => {
                metrics.watch_errors(&kind);
                tracing::warn!(%kind, error = %cause::of(&error), "watch interrupted; trying again");
            }
        }
    }
}
