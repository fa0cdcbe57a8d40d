//! Writes to the API server, and what their failures mean for what was decided.

use std::{fmt::Debug, sync::Arc};

use gpudesk_crds::{GROUP, OPERATOR_FIELD_MANAGER, RELEASE_FINALIZER, VERSION};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use thiserror::Error;
use tokio::sync::watch;

use crate::{cause, leader, metrics::Metrics};

/// A write that did not succeed.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The object changed since it was read: what the watch shows next is the truth.
    #[error("the object changed meanwhile")]
    Conflict,
    /// The object is gone.
    #[error("the object does not exist any more")]
    Gone,
    /// The API server refused; nothing was written.
    #[error("the API server refused: {}", cause::of_request(.0))]
    Refused(#[source] Box<kube::Error>),
    /// An API server takes our term for another than the leader's: either we lead no more, or it has not
    /// heard yet that we do. What was decided stands until it is known which.
    #[error("the API server refused the term: {}", cause::of_request(.0))]
    Fenced(#[source] Box<kube::Error>),
    /// Nobody knows whether it was written.
    #[error("no clear answer from the API server: {}", cause::of_request(.0))]
    Unclear(#[source] Box<kube::Error>),
}

impl WriteError {
    /// For metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Gone => "gone",
            Self::Refused(_) => "refused",
            Self::Fenced(_) => "fenced",
            Self::Unclear(_) => "unclear",
        }
    }
}

impl From<kube::Error> for WriteError {
    fn from(error: kube::Error) -> Self {
        if leader::is_refused(&error) {
            return Self::Fenced(Box::new(error));
        }
        let code = if let kube::Error::Api(status) = &error { status.code } else { 0 };
        match code {
            409 => Self::Conflict,
            404 => Self::Gone,
            // 408 says that the server gave up waiting, not that nothing was written.
            400..=407 | 410..=499 => Self::Refused(Box::new(error)),
            _ => Self::Unclear(Box::new(error)),
        }
    }
}

/// Writes with the operator's name. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    metrics: Metrics,
    term: Arc<str>,
    doubted: watch::Sender<bool>,
}

impl Writer {
    /// Writes through `client`, which limits how many go out and until when. Each status carries `term`;
    /// whether that is refused, `doubted` is told.
    pub fn new(client: Client, metrics: Metrics, term: Arc<str>, doubted: watch::Sender<bool>) -> Self {
        Self { client, metrics, term, doubted }
    }

    /// The client, for objects that are not ours.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Counts a write.
    ///
    /// # Errors
    /// Those of the write.
    pub fn counted<T>(&self, kind: &str, result: Result<T, kube::Error>) -> Result<T, WriteError> {
        let result = result.map_err(WriteError::from);
        if matches!(result, Err(WriteError::Fenced(_))) {
            self.doubted.send_replace(true);
        }
        self.metrics.wrote(kind, result.as_ref().map_or_else(WriteError::name, |_| "ok"));
        result
    }

    /// Puts our finalizer on or takes it off, if the object is still the version that was read; so no
    /// finalizer of somebody else is lost.
    ///
    /// # Errors
    /// Those of the write.
    pub async fn finalizer<K>(&self, object: &K, on: bool) -> Result<(), WriteError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let mut finalizers: Vec<String> = object.finalizers().to_vec();
        finalizers.retain(|finalizer| finalizer != RELEASE_FINALIZER);
        if on {
            finalizers.push(RELEASE_FINALIZER.into());
        }
        let patch = json!({
            "metadata": {
                "resourceVersion": object.resource_version(),
                "uid": object.uid(),
                "finalizers": finalizers,
            },
        });
        let params =
            PatchParams { field_manager: Some(OPERATOR_FIELD_MANAGER.into()), ..PatchParams::default() };
        let api = Api::<K>::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let result = api.patch_metadata(&object.name_any(), &params, &Patch::Merge(&patch)).await;
        self.counted(&K::kind(&()), result).map(|_| ())
    }

    /// Applies the status of a namespaced object, if it is still the version that was read.
    ///
    /// # Errors
    /// [`WriteError::Conflict`] when it is not.
    pub async fn status<K>(&self, object: &K, status: &impl Serialize) -> Result<(), WriteError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let namespace = object.namespace().unwrap_or_default();
        self.apply_status(&Api::namespaced(self.client.clone(), &namespace), object, status).await
    }

    /// Applies the status of an object through `api`, if it is still the version that was read.
    ///
    /// # Errors
    /// [`WriteError::Conflict`] when it is not.
    pub async fn apply_status<K>(
        &self,
        api: &Api<K>,
        object: &K,
        status: &impl Serialize,
    ) -> Result<(), WriteError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let kind = K::kind(&()).into_owned();
        let name = object.name_any();
        let mut patch = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": object.namespace(),
                // With it the API server compares versions, and never makes an object that is gone.
                "resourceVersion": object.resource_version(),
                "uid": object.uid(),
            },
            "status": status,
        });
        patch["status"]["operatorTerm"] = (*self.term).into();
        let params = PatchParams::apply(OPERATOR_FIELD_MANAGER).force();
        let result = api.patch_status(&name, &params, &Patch::Apply(&patch)).await;
        self.counted(&kind, result)?;
        self.doubted.send_if_modified(std::mem::take);
        Ok(())
    }
}
