//! Which cluster this host belongs to: the UID of the namespace `kube-system`, kept over restarts.
//!
//! "There is no such Desktop" is true of every desktop in a cluster that this host does not belong to. In
//! such a one nothing of desktops is touched, until an admin's word in the `GpuNode` there names the UID
//! that is noted here.
#![expect(clippy::disallowed_methods, reason = "adapter: keeps a file")]

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt};
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::gpu_node::Stored;

/// How often it is asked which cluster this is.
const INTERVAL: Duration = Duration::from_secs(30);
/// Wait after an answer that did not come.
const RETRY: Duration = Duration::from_secs(2);
/// How long the API server has for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose this host is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Belongs {
    /// The API server has not answered yet.
    #[default]
    Unknown,
    /// To the cluster that this daemon talks to.
    Here,
    /// To another one.
    Another {
        /// UID of `kube-system` there.
        known: String,
        /// UID of `kube-system` here.
        found: String,
    },
}

/// Why it is not certain that this is the cluster of this host.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// Another one.
    #[error(
        "the API server belongs to another cluster (kube-system is {found}, that of this host was {known}): \
         nothing of desktops is touched. If this host was given to that cluster, set spec.adoptFromCluster: {known} in \
         its GpuNode"
    )]
    Another {
        /// UID of `kube-system` there.
        found: String,
        /// UID of `kube-system` before.
        known: String,
    },
    /// The API server gave no answer.
    #[error("asking for the namespace kube-system: {0}")]
    Api(#[from] kube::Error),
    /// Not even an error.
    #[error("asking for the namespace kube-system: the API server does not answer")]
    Silent,
    /// The file.
    #[error("{file}: {source}")]
    File {
        /// The file.
        file: String,
        /// The cause.
        source: io::Error,
    },
}

/// The cluster of this host.
#[derive(Clone, Debug)]
pub struct Cluster {
    file: PathBuf,
}

impl Cluster {
    /// As noted below the state folder of the daemon.
    pub fn new(state_dir: &Path) -> Self {
        Self { file: state_dir.join("cluster-uid") }
    }

    /// Makes sure that `client` reaches the cluster of this host, which is the first one that it ever
    /// reached. Where the daemon may not read the namespace, nothing can be compared and that is logged.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn check(&self, client: &Client) -> Result<(), ClusterError> {
        self.check_or_adopt(client, None).await
    }

    /// The same; a host of the cluster whose UID is `adopt` is this one's from now on.
    async fn check_or_adopt(&self, client: &Client, adopt: Option<String>) -> Result<(), ClusterError> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let asked = timeout(PATIENCE, namespaces.get_metadata("kube-system")).await;
        let found = match asked.map_err(|_| ClusterError::Silent)? {
            Ok(namespace) => namespace.uid().unwrap_or_default(),
            Err(kube::Error::Api(answer)) if answer.code == 403 => {
                tracing::debug!(
                    "the namespace kube-system may not be read: which cluster this is cannot be told"
                );
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let file = self.file.clone();
        let answer = tokio::task::spawn_blocking(move || compare(&file, &found, adopt.as_deref())).await;
        answer.unwrap_or_else(|panic| {
            let file = self.file.display().to_string();
            Err(ClusterError::File { file, source: io::Error::other(panic) })
        })
    }
}

impl Cluster {
    /// Keeps `belongs` true, and takes the host over when an admin says so, for as long as it is awaited.
    pub async fn watch_over(
        self,
        client: Client,
        mut stored: watch::Receiver<Stored>,
        belongs: watch::Sender<Belongs>,
    ) {
        loop {
            let adopt = stored.borrow_and_update().spec().and_then(|spec| spec.adopt_from_cluster);
            let now = match self.check_or_adopt(&client, adopt.clone()).await {
                Ok(()) => Some(Belongs::Here),
                Err(ClusterError::Another { found, known }) => Some(Belongs::Another { known, found }),
                Err(error) => {
                    tracing::warn!(%error, "which cluster this host belongs to cannot be told");
                    None
                }
            };
            let wait = if now.is_some() { INTERVAL } else { RETRY };
            if let Some(now) = now {
                belongs.send_if_modified(|before| {
                    let new = *before != now;
                    if new && let Belongs::Another { known, found } = &now {
                        tracing::error!(
                            known,
                            found,
                            "this host belongs to another cluster: nothing is touched"
                        );
                    }
                    *before = now;
                    new
                });
            }
            let said = async {
                let other = |stored: &Stored| stored.spec().and_then(|spec| spec.adopt_from_cluster) != adopt;
                if stored.wait_for(other).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = said => {}
            }
        }
    }
}

/// Compares with what is noted, or notes it. What is noted is replaced only where `adopt` names it.
fn compare(file: &Path, found: &str, adopt: Option<&str>) -> Result<(), ClusterError> {
    let failed = |source| ClusterError::File { file: file.display().to_string(), source };
    let known = match fs::read_to_string(file) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    let adopted = known != found && adopt == Some(known.as_str());
    if adopted {
        tracing::warn!(known, found, "this host is taken over from another cluster, as its GpuNode says");
    }
    if known.is_empty() || adopted {
        let new = file.with_extension("new");
        return fs::write(&new, found).and_then(|()| fs::rename(&new, file)).map_err(failed);
    }
    if known == found {
        return Ok(());
    }
    Err(ClusterError::Another { found: found.into(), known })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cluster_is_remembered_and_another_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cluster-uid");
        let compare = |found, adopt| compare(&file, found, adopt);
        compare("one", None).unwrap();
        compare("one", None).unwrap();
        for said in [None, Some(""), Some("two"), Some("on")] {
            let error = compare("two", said).unwrap_err().to_string();
            assert!(error.contains("two") && error.contains("spec.adoptFromCluster: one"), "{error}");
        }
        assert!(compare("one", None).is_ok(), "a word that names another UID changes nothing");
        compare("two", Some("one")).unwrap();
        compare("two", None).unwrap();
        // The word that stands there still says nothing any more.
        assert!(compare("one", Some("one")).is_err());
        // Nor is the first cluster anything to take over.
        fs::write(&file, "").unwrap();
        compare("two", Some("two")).unwrap();
        assert!(compare("one", None).is_err());
    }
}
