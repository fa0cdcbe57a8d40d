//! Which Secrets a node may read: for each namespace and node one Role with just the Secrets that
//! desktops there name, bound to the node's own service account. The operator reads no Secret.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

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

use crate::writer::{WriteError, Writer};

/// Label with the name of the node on all that is made for it.
pub const NODE_LABEL: &str = "gpudesk.dev/node";

/// One pair of namespace and node: what its Role names, once that is known.
type Granted = Arc<tokio::sync::Mutex<Option<BTreeSet<String>>>>;

/// Keeps Roles as small as they can be.
pub struct SecretAccess {
    writer: Writer,
    system_namespace: String,
    granted: Mutex<BTreeMap<(String, String), Granted>>,
}

impl SecretAccess {
    /// Writes through `writer`; service accounts of nodes are in `system_namespace`.
    pub fn new(writer: Writer, system_namespace: &str) -> Self {
        Self { writer, system_namespace: system_namespace.into(), granted: Mutex::default() }
    }

    /// Makes the Role of `node` in `namespace` name exactly the Secrets that `wanted` returns, or
    /// removes it when there is none. `wanted` is asked once this pair is nobody else's turn.
    /// Writes nothing when nothing changed.
    ///
    /// # Errors
    /// Those of the writes; what is granted then counts as not known.
    pub async fn sync(
        &self,
        namespace: &str,
        node: &str,
        owner: Option<OwnerReference>,
        wanted: impl FnOnce() -> BTreeSet<String>,
    ) -> Result<(), WriteError> {
        let granted = self.pair(namespace, node);
        let mut granted = granted.lock().await;
        let wanted = wanted();
        if granted.as_ref() == Some(&wanted) {
            return Ok(());
        }
        *granted = None;
        if wanted.is_empty() {
            self.remove(namespace, node).await?;
        } else {
            self.grant(namespace, node, owner, &wanted).await?;
        }
        *granted = Some(wanted);
        Ok(())
    }

    /// Whether the Role of `node` in `namespace` is known to name `secret`.
    pub async fn has(&self, namespace: &str, node: &str, secret: &str) -> bool {
        let granted = self.pair(namespace, node);
        let granted = granted.lock().await;
        granted.as_ref().is_some_and(|granted| granted.contains(secret))
    }

    /// Whether the Role of `node` in `namespace` is known to name nothing.
    pub async fn has_nothing(&self, namespace: &str, node: &str) -> bool {
        let granted = self.pair(namespace, node);
        let granted = granted.lock().await;
        granted.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// Makes the service account of a node. Says whether it was there already.
    ///
    /// # Errors
    /// Those of the write.
    pub async fn service_account(&self, node: &GpuNode) -> Result<bool, WriteError> {
        let name = node.name_any();
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
        let params =
            PostParams { field_manager: Some(OPERATOR_FIELD_MANAGER.into()), ..PostParams::default() };
        let result = api.create(&params, &account).await;
        match self.writer.counted("ServiceAccount", result) {
            Ok(_) => Ok(false),
            Err(WriteError::Conflict) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn pair(&self, namespace: &str, node: &str) -> Granted {
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        granted.entry((namespace.to_owned(), node.to_owned())).or_default().clone()
    }

    async fn grant(
        &self,
        namespace: &str,
        node: &str,
        owner: Option<OwnerReference>,
        secrets: &BTreeSet<String>,
    ) -> Result<(), WriteError> {
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
                name: identity.clone(),
                namespace: Some(self.system_namespace.clone()),
                api_group: None,
            }]),
        };
        let params = PatchParams::apply(OPERATOR_FIELD_MANAGER).force();
        let roles = Api::<Role>::namespaced(self.writer.client(), namespace);
        let result = roles.patch(&identity, &params, &Patch::Apply(&role)).await;
        self.writer.counted("Role", result)?;
        let bindings = Api::<RoleBinding>::namespaced(self.writer.client(), namespace);
        let result = bindings.patch(&identity, &params, &Patch::Apply(&binding)).await;
        self.writer.counted("RoleBinding", result)?;
        Ok(())
    }

    async fn remove(&self, namespace: &str, node: &str) -> Result<(), WriteError> {
        let identity = node_identity(node);
        let bindings = Api::<RoleBinding>::namespaced(self.writer.client(), namespace);
        let result = bindings.delete(&identity, &DeleteParams::default()).await.map(|_| ());
        unless_gone(self.writer.counted("RoleBinding", result))?;
        let roles = Api::<Role>::namespaced(self.writer.client(), namespace);
        let result = roles.delete(&identity, &DeleteParams::default()).await.map(|_| ());
        unless_gone(self.writer.counted("Role", result))
    }
}

fn unless_gone(result: Result<(), WriteError>) -> Result<(), WriteError> {
    match result {
        Err(WriteError::Gone) => Ok(()),
        other => other,
    }
}

fn metadata(node: &str, owner: Option<OwnerReference>) -> ObjectMeta {
    // A label holds 63 characters, a node's name more: the longest have no label.
    let label = (node.len() <= 63).then(|| (NODE_LABEL.to_owned(), node.to_owned()));
    ObjectMeta {
        name: Some(node_identity(node)),
        labels: label.map(|label| BTreeMap::from([label])),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// With it, what is made for a node goes with the node.
pub fn owner_reference(node: &GpuNode) -> Option<OwnerReference> {
    node.owner_ref(&())
}
