//! Reads the estate of a cluster. Changes nothing there.
#![expect(clippy::disallowed_methods, reason = "adapter: leases are judged by the time now")]

use std::{collections::BTreeMap, error::Error, fmt::Debug, path::PathBuf};

use clap::Args;
use gpudesk_crds::{DEFAULT_SYSTEM_NAMESPACE, Desktop, DesktopTemplate, GpuNode, GpuProfile, node_identity};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, Config, Resource,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
    core::DeserializeGuard,
};
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::estate::Estate;
use crate::placement::request::DesktopKey;

/// Objects per answer of the API server.
const PAGE: u32 = 500;

/// Which cluster, as kubectl's own flags.
#[derive(Clone, Debug, Default, Args)]
pub struct Connection {
    /// The kubeconfig file. Default: KUBECONFIG, or ~/.kube/config.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
    /// The context in it. Default: the current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The namespace; of objects whose manifest names none, too. Default: that of the context, or
    /// `default`.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Where the operator and the leases of the node daemons are.
    #[arg(long, value_name = "NAMESPACE", default_value = DEFAULT_SYSTEM_NAMESPACE)]
    pub system_namespace: String,
}

impl Connection {
    /// The namespace where no cluster is asked.
    pub fn namespace_offline(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }
}

/// Why the cluster could not be read.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// No configuration.
    #[error("no cluster: {0}")]
    Config(#[from] kube::config::KubeconfigError),
    /// The API server refused or did not answer.
    #[error("reading {what}: {}", said(source))]
    Api {
        /// What was read.
        what: &'static str,
        /// The cause.
        source: kube::Error,
    },
}

/// What the API server said, or why it said nothing.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => {
            let mut texts = vec![other.to_string()];
            let mut cause = other.source();
            while let Some(error) = cause {
                texts.push(error.to_string());
                cause = error.source();
            }
            // An error often repeats its cause.
            texts.dedup_by(|cause, error| error.ends_with(cause.as_str()));
            texts.join(": ")
        }
    }
}

impl ClusterError {
    /// Whether it was refused to this user.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Api { what: _, source: kube::Error::Api(status) } if status.code == 403)
    }
}

/// A cluster that can be asked.
pub struct Cluster {
    client: Client,
    system_namespace: String,
    /// The namespace that is meant where none is named.
    pub namespace: String,
}

impl Cluster {
    /// Gets ready to ask.
    ///
    /// # Errors
    /// A kubeconfig that cannot be read or lacks the context.
    pub async fn connect(connection: &Connection) -> Result<Self, ClusterError> {
        let kubeconfig = match &connection.kubeconfig {
            Some(file) => Kubeconfig::read_from(file)?,
            None => Kubeconfig::read()?,
        };
        let options =
            KubeConfigOptions { context: connection.context.clone(), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        let namespace = connection.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config)
            .map_err(|source| ClusterError::Api { what: "the kubeconfig", source })?;
        Ok(Self { client, system_namespace: connection.system_namespace.clone(), namespace })
    }

    /// Everything of ours that the cluster has.
    ///
    /// # Errors
    /// What the API server says. An object that cannot be read is left out with a note.
    pub async fn estate(&self) -> Result<Estate, ClusterError> {
        let mut remarks = vec![];
        let nodes: Vec<GpuNode> = list("GpuNodes", self.all(), &mut remarks).await?;
        let profiles: Vec<GpuProfile> = list("GpuProfiles", self.all(), &mut remarks).await?;
        let templates: Vec<DesktopTemplate> = list("DesktopTemplates", self.all(), &mut remarks).await?;
        let desktops: Vec<Desktop> = list("Desktops", self.all(), &mut remarks).await?;
        let mut estate = Estate::of_cluster(nodes, profiles, templates, desktops);
        let leases = Api::namespaced(self.client.clone(), &self.system_namespace);
        match list::<Lease>("leases", leases, &mut remarks).await {
            Ok(leases) => silence(&mut estate, leases, Timestamp::now()),
            Err(error) => {
                remarks.push(format!("{error}; a node whose daemon is silent is taken for one that answers"));
            }
        }
        estate.notes.extend(remarks);
        Ok(estate)
    }

    fn all<K: Resource>(&self) -> Api<K>
    where
        K::DynamicType: Default,
    {
        Api::all(self.client.clone())
    }

    /// One desktop, for those who may not see more.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn desktop(&self, key: &DesktopKey) -> Result<Option<Desktop>, ClusterError> {
        let desktops: Api<Desktop> = Api::namespaced(self.client.clone(), &key.namespace);
        let found = desktops.get_opt(&key.name).await;
        found.map_err(|source| ClusterError::Api { what: "the Desktop", source })
    }
}

/// All objects behind `api`, page by page.
async fn list<K>(
    what: &'static str,
    api: Api<DeserializeGuard<K>>,
    notes: &mut Vec<String>,
) -> Result<Vec<K>, ClusterError>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut objects = vec![];
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let answer = api.list(&page).await.map_err(|source| ClusterError::Api { what, source })?;
        for guard in answer.items {
            match guard.0 {
                Ok(object) => objects.push(object),
                Err(invalid) => notes.push(format!(
                    "{what}: {} is left out, for it cannot be read: {invalid}",
                    invalid.metadata.name.clone().unwrap_or_default()
                )),
            }
        }
        match answer.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(objects),
        }
    }
}

/// Marks the nodes whose daemon has not renewed its lease. Clocks differ: twice the lease is waited.
fn silence(estate: &mut Estate, leases: Vec<Lease>, now: Timestamp) {
    let leases: BTreeMap<String, Lease> =
        leases.into_iter().filter_map(|lease| Some((lease.metadata.name.clone()?, lease))).collect();
    let alive = |node: &str| {
        let spec = leases.get(&node_identity(node)).and_then(|lease| lease.spec.as_ref());
        let renewed = spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(180);
        renewed.is_some_and(|renewed| now.as_second() - renewed.as_second() <= 2 * i64::from(seconds))
    };
    estate.silent = estate.nodes.keys().filter(|node| !alive(node)).cloned().collect();
}
