//! Writes to the API server, and what their failures mean for what was decided.

use std::{fmt::Debug, sync::Arc};

use gpudesk_crds::{GROUP, OPERATOR_FIELD_MANAGER, RELEASE_FINALIZER, VERSION, conditions::ConditionType};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
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

/// How etcd's client says that an object is too large to be written: at etcd's limit, and at its own.
const TOO_LARGE: [&str; 2] = ["etcdserver: request is too large", "trying to send message larger than max"];

impl From<kube::Error> for WriteError {
    fn from(error: kube::Error) -> Self {
        if leader::is_refused(&error) {
            return Self::Fenced(Box::new(error));
        }
        let (code, message) = match &error {
            kube::Error::Api(status) => (status.code, status.message.as_str()),
            _ => (0, ""),
        };
        match code {
            // The store took nothing, though the API server calls it a fault of its own.
            500 if TOO_LARGE.iter().any(|words| message.contains(words)) => Self::Refused(Box::new(error)),
            409 => Self::Conflict,
            404 => Self::Gone,
            // 408 says that the server gave up waiting, not that nothing was written.
            400..=407 | 410..=499 => Self::Refused(Box::new(error)),
            _ => Self::Unclear(Box::new(error)),
        }
    }
}

/// What the operator may take out of a status, beside what it sets there.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// Fields.
    pub fields: &'static [&'static str],
    /// Conditions.
    pub conditions: &'static [ConditionType],
}

impl Own {
    fn has(&self, condition: &Value) -> bool {
        self.conditions.iter().any(|own| condition["type"] == own.as_str())
    }

    /// Whether `status` says what is wanted, and nothing of the operator's beyond it. What is wanted of
    /// conditions is whole; those of others do not count.
    fn is_said(&self, status: &Value, wanted: &Value) -> bool {
        let fields = wanted.as_object().into_iter().flatten().filter(|(name, _)| *name != "conditions");
        let (said, asked) = (conditions(status), conditions(wanted));
        fields.into_iter().all(|(name, value)| status[name] == *value)
            && self.fields.iter().all(|name| status[*name] == wanted[*name])
            && asked.iter().all(|condition| said.contains(condition))
            && said.iter().all(|condition| !self.has(condition) || of_type(asked, condition).is_some())
    }

    /// The JSON patch that makes a status say what is wanted.
    fn operations(&self, status: &Value, wanted: &Value) -> Vec<Value> {
        let put = |name: &str, value: Value| json!({"op": "add", "path": format!("/status/{name}"), "value": value});
        let (said, asked) = (conditions(status), conditions(wanted));
        let kept =
            said.iter().filter(|condition| !self.has(condition) || of_type(asked, condition).is_some());
        let mut all: Vec<Value> =
            kept.map(|condition| of_type(asked, condition).unwrap_or(condition).clone()).collect();
        all.extend(asked.iter().filter(|condition| of_type(said, condition).is_none()).cloned());
        let mut operations = vec![];
        if !status.is_object() {
            operations.push(json!({"op": "add", "path": "/status", "value": {}}));
        }
        let fields = wanted.as_object().into_iter().flatten().filter(|(name, _)| *name != "conditions");
        operations.extend(fields.map(|(name, value)| put(name, value.clone())));
        let surplus = self.fields.iter().filter(|name| wanted[**name].is_null() && !status[**name].is_null());
        operations.extend(surplus.map(|name| json!({"op": "remove", "path": format!("/status/{name}")})));
        operations.push(put("conditions", all.into()));
        operations
    }
}

fn conditions(status: &Value) -> &[Value] {
    status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn of_type<'a>(conditions: &'a [Value], like: &Value) -> Option<&'a Value> {
    conditions.iter().find(|condition| condition["type"] == like["type"])
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

    /// Makes the operator's part of a namespaced object's status what is wanted, if the object is still the
    /// version that was read: by applying it, and where that leaves something of it behind, for others
    /// own that too, by a patch that says it whole.
    ///
    /// # Errors
    /// [`WriteError::Conflict`] when it is not. [`WriteError::Refused`] only when nothing was written.
    pub async fn status<K>(&self, object: &K, wanted: &impl Serialize, own: Own) -> Result<(), WriteError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Serialize
            + Debug,
    {
        let api = Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let (mut wanted, status_of) = (value(wanted), |object: &K| value(object)["status"].take());
        let (found, applied) = match self.apply_status(&api, object, &wanted).await {
            Ok(answer) if own.is_said(&status_of(&answer), &wanted) => return Ok(()),
            Ok(answer) => (answer, true),
            // What others own would stay, and be no value of its field without the rest.
            Err(WriteError::Refused(error)) if is_invalid(&error) => (object.clone(), false),
            Err(error) => return Err(error),
        };
        let kind = K::kind(&()).into_owned();
        tracing::warn!(%kind, object = %found.name_any(), namespace = found.namespace(), "others own parts of the operator's status: it is written whole");
        wanted["operatorTerm"] = (*self.term).into();
        let mut operations = own.operations(&status_of(&found), &wanted);
        // Unlike a test, which would be refused as invalid, another version is a conflict.
        let version = found.resource_version();
        operations.insert(0, json!({"op": "replace", "path": "/metadata/resourceVersion", "value": version}));
        let namespace = found.namespace();
        let folder = K::url_path(&(), namespace.as_deref());
        let path = format!("{folder}/{}/status?fieldManager={OPERATOR_FIELD_MANAGER}", found.name_any());
        let request = http::Request::patch(path).header("Content-Type", "application/json-patch+json");
        let body = Value::from(operations).to_string().into_bytes();
        let result = match request.body(body) {
            Ok(request) => self.client.request::<K>(request).await,
            Err(error) => Err(kube::Error::HttpError(error)),
        };
        match self.counted(&kind, result) {
            // Something of it was.
            Err(WriteError::Refused(error)) if applied => Err(WriteError::Unclear(error)),
            result => result.map(|_| ()),
        }
    }

    /// Applies the status of an object through `api`, if it is still the version that was read; returns the
    /// object as it is then.
    ///
    /// # Errors
    /// [`WriteError::Conflict`] when it is not.
    pub async fn apply_status<K>(
        &self,
        api: &Api<K>,
        object: &K,
        status: &impl Serialize,
    ) -> Result<K, WriteError>
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
        let answer = self.counted(&kind, result)?;
        self.doubted.send_if_modified(std::mem::take);
        Ok(answer)
    }
}

/// As the API has it. What cannot be written so would be refused there too.
fn value(object: &impl Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

fn is_invalid(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 422)
}
