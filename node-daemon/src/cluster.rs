//! Which cluster this host belongs to: the UID of the namespace `kube-system`, kept over restarts.
//!
//! "There is no such Desktop" is true of every desktop in a cluster that this host does not belong to.
#![expect(clippy::disallowed_methods, reason = "adapter: keeps a file")]

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt};
use thiserror::Error;

/// Why it is not certain that this is the cluster of this host.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// Another one.
    #[error(
        "the API server belongs to another cluster (kube-system is {found}, that of this host was {known}): \
         nothing of desktops that it does not know is touched. If this host was given to that cluster, empty {file}"
    )]
    Another {
        /// UID of `kube-system` there.
        found: String,
        /// UID of `kube-system` before.
        known: String,
        /// Where that is kept.
        file: String,
    },
    /// The API server gave no answer.
    #[error("asking for the namespace kube-system: {0}")]
    Api(#[from] kube::Error),
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
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let found = match namespaces.get_metadata("kube-system").await {
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
        let answer = tokio::task::spawn_blocking(move || compare(&file, &found)).await;
        answer.unwrap_or_else(|panic| {
            let file = self.file.display().to_string();
            Err(ClusterError::File { file, source: io::Error::other(panic) })
        })
    }
}

/// Compares with what is noted, or notes it.
fn compare(file: &Path, found: &str) -> Result<(), ClusterError> {
    let failed = |source| ClusterError::File { file: file.display().to_string(), source };
    let known = match fs::read_to_string(file) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    if known.is_empty() {
        let new = file.with_extension("new");
        return fs::write(&new, found).and_then(|()| fs::rename(&new, file)).map_err(failed);
    }
    if known == found {
        return Ok(());
    }
    Err(ClusterError::Another { found: found.into(), known, file: file.display().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cluster_is_remembered_and_another_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cluster-uid");
        compare(&file, "one").unwrap();
        compare(&file, "one").unwrap();
        let error = compare(&file, "two").unwrap_err().to_string();
        assert!(error.contains("two") && error.contains("one") && error.contains("cluster-uid"), "{error}");
        fs::write(&file, "").unwrap();
        compare(&file, "two").unwrap();
        assert!(compare(&file, "one").is_err());
    }
}
