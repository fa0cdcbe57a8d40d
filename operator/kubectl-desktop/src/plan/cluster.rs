//! Reads the estate of a cluster. Changes nothing there.

use std::{
    env,
    fmt::Debug,
    path::{Path, PathBuf},
};

use clap::Args;
use gpudesk_crds::{Desktop, DesktopTemplate, GpuNode, GpuProfile};
use kube::{
    Api, Client, Config, Resource,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
    core::DeserializeGuard,
};
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::estate::Estate;
use crate::{cause, node_liveness, placement::request::DesktopKey};

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
    /// No kubeconfig that serves.
    #[error("no cluster: {0}")]
    Config(String),
    /// A context that was asked for and is not there.
    #[error("{0}")]
    Context(String),
    /// The API server refused or did not answer.
    #[error("reading {what}: {}", cause::of_request(source))]
    Api {
        /// What was read.
        what: &'static str,
        /// The cause.
        source: kube::Error,
    },
}

/// The files that are meant, as for kubectl.
fn files(connection: &Connection) -> Vec<PathBuf> {
    if let Some(file) = &connection.kubeconfig {
        return vec![file.clone()];
    }
    let listed = env::var_os("KUBECONFIG").unwrap_or_default();
    let listed: Vec<_> = env::split_paths(&listed).filter(|file| !file.as_os_str().is_empty()).collect();
    if !listed.is_empty() {
        return listed;
    }
    env::home_dir().into_iter().map(|home| home.join(".kube/config")).collect()
}

fn read(file: &Path) -> Result<Kubeconfig, ClusterError> {
    let fault = |why: String| ClusterError::Config(format!("the kubeconfig {} {why}", file.display()));
    let kubeconfig = Kubeconfig::read_from(file).map_err(|error| {
        fault(match error {
            KubeconfigError::ReadConfig(source, _) => format!("cannot be read: {source}"),
            // The lines themselves may be secret.
            KubeconfigError::Parse(error) => {
                let said = error.without_snippet().to_string();
                format!("is none: {}", said.lines().next().unwrap_or_default())
            }
            other => format!("cannot be read: {other}"),
        })
    })?;
    match kubeconfig.kind.as_deref() {
        None | Some("Config") => Ok(kubeconfig),
        Some(kind) => Err(fault(format!("is none: its kind is {kind}, and would be Config"))),
    }
}

/// The kubeconfig and the context in it that are meant.
fn chosen(connection: &Connection) -> Result<(Kubeconfig, String, String), ClusterError> {
    let mut files = files(connection);
    // kubectl passes over those of its list that are not there.
    let may_be_there = |file: &PathBuf| !matches!(file.try_exists(), Ok(false));
    if files.iter().any(may_be_there) {
        files.retain(may_be_there);
    }
    let mut kubeconfig = Kubeconfig::default();
    for file in &files {
        let merged = kubeconfig.merge(read(file)?);
        kubeconfig = merged.map_err(|error| ClusterError::Config(format!("{}: {error}", file.display())))?;
    }
    let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    let named = format!("the kubeconfig {}", files.join(", "));
    let contexts: Vec<&str> = kubeconfig.contexts.iter().map(|context| context.name.as_str()).collect();
    let has = if contexts.is_empty() {
        "it has none".to_owned()
    } else {
        format!("it has {}", contexts.join(", "))
    };
    let current = kubeconfig.current_context.as_deref().filter(|name| !name.is_empty());
    let context = match (&connection.context, current) {
        (Some(asked), _) if contexts.contains(&asked.as_str()) => asked.clone(),
        (Some(asked), _) => {
            return Err(ClusterError::Context(format!(
                "--context {asked}: {named} has no such context; {has}"
            )));
        }
        (None, Some(current)) if contexts.contains(&current) => current.to_owned(),
        (None, Some(current)) => {
            return Err(ClusterError::Config(format!(
                "{named} has the current-context {current}, and no such context; {has}: name one with --context"
            )));
        }
        (None, None) if contexts.is_empty() => {
            return Err(ClusterError::Config(format!(
                "{named} has no context: give another file with --kubeconfig, or set KUBECONFIG"
            )));
        }
        (None, None) => {
            return Err(ClusterError::Config(format!(
                "{named} has no current-context; {has}: name one with --context"
            )));
        }
    };
    Ok((kubeconfig, context, named))
}

impl ClusterError {
    /// Whether something else is to be asked for.
    pub fn is_wrong_input(&self) -> bool {
        matches!(self, Self::Context(_))
    }

    /// Whether it was refused to this user.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Api { what: _, source: kube::Error::Api(status) } if status.code == 403)
    }
}

/// A cluster that can be asked.
pub struct Cluster {
    client: Client,
    /// The namespace that is meant where none is named.
    pub namespace: String,
}

impl Cluster {
    /// Gets ready to ask.
    ///
    /// # Errors
    /// A kubeconfig that cannot be read or lacks the context.
    pub async fn connect(connection: &Connection) -> Result<Self, ClusterError> {
        let (kubeconfig, context, named) = chosen(connection)?;
        let fault = |why: String| ClusterError::Config(format!("{named}, context {context}: {why}"));
        let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let config = config.map_err(|error| {
            fault(match error {
                KubeconfigError::LoadClusterOfContext(cluster) => {
                    format!("it names the cluster {cluster}, which is not there")
                }
                other => cause::of(&other),
            })
        })?;
        let namespace = connection.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| fault(cause::of(&error)))?;
        Ok(Self { client, namespace })
    }

    /// The way to it.
    pub fn client(&self) -> &Client {
        &self.client
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
        let unheard = estate.nodes.values().filter(|node| node_liveness::said(node).is_none()).count();
        if unheard > 0 {
            let which = if unheard == 1 { "1 GpuNode".to_owned() } else { format!("{unheard} GpuNodes") };
            remarks.push(format!(
                "of {which} no operator has said whether the daemon lives (condition DaemonHeard): taken for heard"
            ));
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
