//! Which Secrets a node may read: for each namespace and node one Role with just the Secrets that
//! desktops there name, bound to the node's own service account. The operator reads no Secret.
//!
//! ```text
//!  desktops that come and go ──▶ wake ─┐
//!  our Roles, bindings, accounts ──────┴─▶ queue ─▶ tend: one pair at a time is what it should be
//!  a desktop that is placed or goes on ───────────▶ sync: the same, and the desktop says what failed
//! ```
//!
//! What is remembered of the cluster is watched (`seen`), so what somebody deletes or changes is made
//! anew. What is not ours is reported and never overwritten. Nothing here stands between a desktop and
//! the end of its deletion: what a desktop leaves behind is taken back afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::channel::mpsc::UnboundedSender;
use gpudesk_crds::{GpuNode, OPERATOR_FIELD_MANAGER, node_identity};
use k8s_openapi::{
    api::{
        core::v1::ServiceAccount,
        rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::writer::{WriteError, Writer};

mod seen;
mod tend;

pub use seen::watch_all;
pub use tend::tend;

/// Label on all that is made for a node, with its name; empty where that is longer than a label may be.
pub const NODE_LABEL: &str = "gpudesk.dev/node";

/// A namespace and a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// The namespace.
    pub namespace: String,
    /// The node.
    pub node: String,
}

/// The Secrets that the desktops of a pair name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Their names.
    pub secrets: BTreeSet<String>,
    /// Of a desktop there it is not understood what it names: nothing is taken away.
    pub maybe_more: bool,
}

/// Why a node cannot be given, or not be taken, access to a Secret.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The write.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// An object of the name is there and is not ours.
    #[error("{kind} {name} was made by somebody else: the operator does not overwrite it; remove it")]
    Foreign {
        /// Its kind.
        kind: &'static str,
        /// Its name, with its namespace.
        name: String,
    },
}

impl AccessError {
    /// For metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Write(error) => error.name(),
            Self::Foreign { .. } => "foreign",
        }
    }
}

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What the desktops of a pair name may be something else than before.
    Desktops(Pair),
    /// A Role or `RoleBinding` of ours has this version now, or is gone.
    Object(Pair, Kind, Option<String>),
}

impl Event {
    fn pair(&self) -> &Pair {
        match self {
            Self::Desktops(pair) | Self::Object(pair, _, _) => pair,
        }
    }
}

/// The two objects of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The Role.
    Role,
    /// The `RoleBinding`.
    RoleBinding,
}

/// What is known of a pair.
#[derive(Debug, Default)]
struct Granted {
    /// What its Role names, once that is known.
    names: Option<BTreeSet<String>>,
    /// Version of the Role, where there is one of ours.
    role: Option<String>,
    /// Version of the `RoleBinding`, where there is one of ours.
    binding: Option<String>,
    /// Somebody is about to try again.
    retrying: bool,
}

impl Granted {
    fn version(&mut self, kind: Kind) -> &mut Option<String> {
        match kind {
            Kind::Role => &mut self.role,
            Kind::RoleBinding => &mut self.binding,
        }
    }

    /// Nothing of ours is there, as far as is known.
    fn is_nothing(&self) -> bool {
        self.role.is_none() && self.binding.is_none() && !self.retrying
    }
}

type Shared = Arc<tokio::sync::Mutex<Granted>>;

/// Keeps Roles as small as they can be.
pub struct SecretAccess {
    writer: Writer,
    system_namespace: String,
    pairs: Mutex<BTreeMap<Pair, Shared>>,
    /// The service accounts of nodes that are there, by the node: the UID of the `GpuNode` each belongs to.
    accounts: Mutex<BTreeMap<String, Option<String>>>,
    queue: UnboundedSender<Event>,
}

impl SecretAccess {
    /// Writes through `writer`; service accounts of nodes are in `system_namespace`. What is to be looked
    /// at goes into `queue`, from which [`tend`] takes it.
    pub fn new(writer: Writer, system_namespace: &str, queue: UnboundedSender<Event>) -> Self {
        Self {
            writer,
            system_namespace: system_namespace.into(),
            pairs: Mutex::default(),
            accounts: Mutex::default(),
            queue,
        }
    }

    /// Makes the Role of a pair name exactly the Secrets that `wanted` returns, or removes it when there
    /// is none. `wanted` is asked once this pair is nobody else's turn. Writes nothing when nothing changed.
    ///
    /// # Errors
    /// [`AccessError`]; what is granted then counts as not known.
    pub async fn sync(
        &self,
        pair: &Pair,
        owner: Option<OwnerReference>,
        wanted: impl FnOnce() -> Named,
    ) -> Result<(), AccessError> {
        let shared = self.pair(pair);
        let mut granted = shared.lock().await;
        let result = self.bring(pair, owner, wanted(), &mut granted).await;
        drop(granted);
        self.forget_nothing(pair, &shared);
        result
    }

    /// Whether the Role of a pair is known to name `secret`.
    pub async fn has(&self, pair: &Pair, secret: &str) -> bool {
        let known = self.pairs().get(pair).cloned();
        let Some(known) = known else { return false };
        let granted = known.lock().await;
        granted.names.as_ref().is_some_and(|names| names.contains(secret))
    }

    /// Has something looked at.
    pub fn notice(&self, event: Event) {
        // A receiver that is gone means that the process ends.
        let _ = self.queue.unbounded_send(event);
    }

    /// How many pairs are remembered.
    pub fn remembered(&self) -> usize {
        self.pairs().len()
    }

    /// Makes the service account of a node, where it is not known to be there. One that belongs to an
    /// earlier `GpuNode` of the name is about to be collected: its end wakes the node.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn service_account(&self, node: &GpuNode) -> Result<(), AccessError> {
        let name = node.name_any();
        let accounts = || self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts().contains_key(&name) {
            return Ok(());
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                namespace: Some(self.system_namespace.clone()),
                ..metadata(&name, owner_reference(node))
            },
            // Its tokens are made on request only.
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        };
        let api = Api::<ServiceAccount>::namespaced(self.writer.client(), &self.system_namespace);
        let result = api.create(&created(), &account).await;
        match self.writer.counted("ServiceAccount", result) {
            Ok(_) => {}
            Err(WriteError::Conflict) => self.is_ours(&api, "ServiceAccount", &node_identity(&name)).await?,
            Err(error) => return Err(error.into()),
        }
        accounts().insert(name, node.uid());
        Ok(())
    }

    fn pairs(&self) -> std::sync::MutexGuard<'_, BTreeMap<Pair, Shared>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pair(&self, pair: &Pair) -> Shared {
        self.pairs().entry(pair.clone()).or_default().clone()
    }

    /// Of a pair that has nothing, nothing is remembered.
    fn forget_nothing(&self, pair: &Pair, shared: &Shared) {
        let mut pairs = self.pairs();
        let nothing = shared.try_lock().is_ok_and(|granted| granted.is_nothing());
        // The map's and ours: nobody else is about to use it.
        if nothing && Arc::strong_count(shared) == 2 {
            pairs.remove(pair);
        }
    }

    async fn bring(
        &self,
        pair: &Pair,
        owner: Option<OwnerReference>,
        Named { secrets: mut wanted, maybe_more }: Named,
        granted: &mut Granted,
    ) -> Result<(), AccessError> {
        if maybe_more {
            wanted.extend(self.granted_now(pair, granted).await?);
        }
        if granted.names.as_ref() == Some(&wanted) {
            return Ok(());
        }
        if wanted.is_empty() && granted.is_nothing() {
            return Ok(());
        }
        granted.names = None;
        if wanted.is_empty() {
            self.remove(pair, granted).await?;
        } else {
            self.grant(pair, owner, &wanted, granted).await?;
        }
        granted.names = Some(wanted);
        Ok(())
    }

    /// What the Role of a pair names now.
    async fn granted_now(&self, pair: &Pair, granted: &Granted) -> Result<BTreeSet<String>, AccessError> {
        if let Some(names) = &granted.names {
            return Ok(names.clone());
        }
        let api = Api::<Role>::namespaced(self.writer.client(), &pair.namespace);
        let role = api.get_opt(&node_identity(&pair.node)).await.map_err(WriteError::from)?;
        let rules = role.and_then(|role| role.rules).unwrap_or_default();
        Ok(rules.into_iter().flat_map(|rule| rule.resource_names.unwrap_or_default()).collect())
    }

    async fn grant(
        &self,
        pair: &Pair,
        owner: Option<OwnerReference>,
        secrets: &BTreeSet<String>,
        granted: &mut Granted,
    ) -> Result<(), AccessError> {
        let Pair { namespace, node } = pair;
        let identity = node_identity(node);
        let role = Role {
            metadata: metadata(node, owner.clone()),
            rules: Some(vec![PolicyRule {
                api_groups: Some(vec![String::new()]),
                resources: Some(vec!["secrets".into()]),
                resource_names: Some(secrets.iter().cloned().collect()),
                verbs: vec!["get".into()],
                non_resource_urls: None,
            }]),
        };
        let binding = RoleBinding {
            metadata: metadata(node, owner),
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".into(),
                kind: "Role".into(),
                name: identity.clone(),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".into(),
                name: identity,
                namespace: Some(self.system_namespace.clone()),
                api_group: None,
            }]),
        };
        let roles = Api::<Role>::namespaced(self.writer.client(), namespace);
        granted.role = Some(self.put(&roles, "Role", &role, granted.role.is_some()).await?);
        let bindings = Api::<RoleBinding>::namespaced(self.writer.client(), namespace);
        granted.binding =
            Some(self.put(&bindings, "RoleBinding", &binding, granted.binding.is_some()).await?);
        Ok(())
    }

    /// Makes an object, or brings the one that is there to what it should be; its version then. `known`:
    /// one of ours is there.
    async fn put<K>(
        &self,
        api: &Api<K>,
        kind: &'static str,
        object: &K,
        known: bool,
    ) -> Result<String, AccessError>
    where
        K: Resource + Clone + Debug + Serialize + DeserializeOwned,
    {
        let name = object.name_any();
        if !known {
            match self.writer.counted(kind, api.create(&created(), object).await) {
                Ok(made) => return Ok(made.resource_version().unwrap_or_default()),
                Err(WriteError::Conflict) => self.is_ours(api, kind, &name).await?,
                Err(error) => return Err(error.into()),
            }
        }
        let params = PatchParams::apply(OPERATOR_FIELD_MANAGER).force();
        let result = api.patch(&name, &params, &Patch::Apply(object)).await;
        Ok(self.writer.counted(kind, result)?.resource_version().unwrap_or_default())
    }

    /// Makes sure that what has a name of ours was made by the operator: it has our label, or our name
    /// stands among those who wrote its fields.
    async fn is_ours<K>(&self, api: &Api<K>, kind: &'static str, name: &str) -> Result<(), AccessError>
    where
        K: Resource + Clone + Debug + DeserializeOwned,
    {
        let found = api.get_metadata(name).await.map_err(WriteError::from)?;
        let by_us = |entry: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry| {
            entry.manager.as_deref() == Some(OPERATOR_FIELD_MANAGER)
        };
        if found.labels().contains_key(NODE_LABEL) || found.managed_fields().iter().any(by_us) {
            return Ok(());
        }
        let namespace = found.namespace().map(|namespace| format!("{namespace}/")).unwrap_or_default();
        Err(AccessError::Foreign { kind, name: format!("{namespace}{name}") })
    }

    async fn remove(&self, pair: &Pair, granted: &mut Granted) -> Result<(), AccessError> {
        let identity = node_identity(&pair.node);
        if granted.binding.is_some() {
            let bindings = Api::<RoleBinding>::namespaced(self.writer.client(), &pair.namespace);
            let result = bindings.delete(&identity, &DeleteParams::default()).await.map(|_| ());
            unless_gone(self.writer.counted("RoleBinding", result))?;
            granted.binding = None;
        }
        if granted.role.is_some() {
            let roles = Api::<Role>::namespaced(self.writer.client(), &pair.namespace);
            let result = roles.delete(&identity, &DeleteParams::default()).await.map(|_| ());
            unless_gone(self.writer.counted("Role", result))?;
            granted.role = None;
        }
        Ok(())
    }
}

fn created() -> PostParams {
    PostParams { field_manager: Some(OPERATOR_FIELD_MANAGER.into()), ..PostParams::default() }
}

fn unless_gone(result: Result<(), WriteError>) -> Result<(), WriteError> {
    match result {
        Err(WriteError::Gone) => Ok(()),
        other => other,
    }
}

fn metadata(node: &str, owner: Option<OwnerReference>) -> ObjectMeta {
    // A label holds 63 characters, a node's name more.
    let label = if node.len() <= 63 { node } else { "" };
    ObjectMeta {
        name: Some(node_identity(node)),
        labels: Some(BTreeMap::from([(NODE_LABEL.to_owned(), label.to_owned())])),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// With it, what is made for a node goes with the node.
pub fn owner_reference(node: &GpuNode) -> Option<OwnerReference> {
    node.owner_ref(&())
}
