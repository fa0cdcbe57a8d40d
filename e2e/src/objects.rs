//! gpudesk objects from the smallest YAML, created and watched through the API.

use std::time::Duration;

use anyhow::{Context, Result};
use gpudesk_crds::conditions::{self, ConditionType};
use gpudesk_crds::{Desktop, DesktopTemplate, GpuProfile};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::waiting::{until, until_gone};

/// The objects of one namespace, and the profiles of the cluster.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    namespace: String,
}

impl Objects {
    /// Works in `namespace`.
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self { client: client.clone(), namespace: namespace.to_owned() }
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The desktops.
    pub fn desktops(&self) -> Api<Desktop> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The templates.
    pub fn templates(&self) -> Api<DesktopTemplate> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The profiles.
    pub fn profiles(&self) -> Api<GpuProfile> {
        Api::all(self.client.clone())
    }

    /// Creates a template with this spec.
    pub async fn template(&self, name: &str, spec: &str) -> Result<DesktopTemplate> {
        let template = DesktopTemplate::new(name, read(spec)?);
        self.templates()
            .create(&PostParams::default(), &template)
            .await
            .with_context(|| format!("template {name}"))
    }

    /// Creates a profile with this spec, or leaves the one there is.
    pub async fn profile(&self, name: &str, spec: &str) -> Result<()> {
        match self.profiles().create(&PostParams::default(), &GpuProfile::new(name, read(spec)?)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("profile {name}")),
        }
    }

    /// Creates a desktop with this spec.
    pub async fn desktop(&self, name: &str, spec: &str) -> Result<Desktop> {
        let desktop = Desktop::new(name, read(spec)?);
        self.desktops()
            .create(&PostParams::default(), &desktop)
            .await
            .with_context(|| format!("desktop {name}"))
    }

    /// Merges a patch into a desktop, as `kubectl patch --type=merge` does.
    pub async fn patch(&self, name: &str, patch: Value) -> Result<Desktop> {
        Ok(self.desktops().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?)
    }

    /// Deletes a desktop and waits until it is gone.
    pub async fn delete(&self, name: &str, limit: Duration) -> Result<()> {
        self.desktops().delete(name, &DeleteParams::default()).await?;
        until_gone(&self.desktops(), name, limit).await
    }

    /// Waits until a condition of a desktop has this status.
    pub async fn is(
        &self,
        name: &str,
        type_: ConditionType,
        status: bool,
        limit: Duration,
    ) -> Result<Desktop> {
        let word = if status { "True" } else { "False" };
        until(&self.desktops(), name, &format!("{type_} is {word}"), limit, |desktop| {
            condition(desktop, type_).is_some_and(|condition| condition.status == word)
        })
        .await
    }

    /// Waits until a condition of a desktop is there, whatever it says.
    pub async fn has(&self, name: &str, type_: ConditionType, limit: Duration) -> Result<Condition> {
        let desktop = until(&self.desktops(), name, &format!("{type_} is there"), limit, |desktop| {
            condition(desktop, type_).is_some()
        })
        .await?;
        condition(&desktop, type_).cloned().context("the condition that was waited for")
    }

    /// Waits until a condition of a desktop has this reason.
    pub async fn says(
        &self,
        name: &str,
        type_: ConditionType,
        reason: conditions::Reason,
        limit: Duration,
    ) -> Result<Condition> {
        let desktop = until(&self.desktops(), name, &format!("{type_} says {reason}"), limit, |desktop| {
            condition(desktop, type_).is_some_and(|condition| condition.reason == reason.as_str())
        })
        .await?;
        condition(&desktop, type_).cloned().context("the condition that was waited for")
    }
}

/// A condition of a desktop.
pub fn condition(desktop: &Desktop, type_: ConditionType) -> Option<&Condition> {
    conditions::find(&desktop.status.as_ref()?.conditions, type_)
}

/// Reads a spec.
fn read<T: DeserializeOwned>(spec: &str) -> Result<T> {
    serde_yaml::from_str(spec).with_context(|| format!("read {spec}"))
}
