//! Which cluster this host belongs to: the UID of the namespace `kube-system`, kept over restarts.
//!
//! "There is no such Desktop" is true of every desktop in a cluster that this host does not belong to. In
//! such a one nothing of desktops is touched, until an admin's word in the `GpuNode` there names the UID
//! that is noted here.
#![expect(clippy::disallowed_methods, reason = "adapter: keeps a file")]

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Belongs {
    /// It was not to be told yet; and why, if it was tried.
    Unknown(Option<String>),
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

impl Belongs {
    /// Notes why it is not known. What was known stands. Returns whether that is new.
    fn stays_unknown(&mut self, why: String) -> bool {
        let Self::Unknown(known) = self else { return false };
        let new = known.as_ref() != Some(&why);
        *known = Some(why);
        new
    }
}

impl Default for Belongs {
    fn default() -> Self {
        Self::Unknown(None)
    }
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
    /// The daemon may not ask.
    #[error(
        "the node daemon may not read the namespace kube-system, so it cannot tell which cluster this is: allow it to get \
         that namespace, as the chart does"
    )]
    Denied,
    /// What is noted is no UID.
    #[error(
        "{file} is empty, so it cannot be told which cluster the host belongs to: remove the file if it belongs to this \
         one, or write the UID of the namespace kube-system of its cluster into it"
    )]
    Empty {
        /// The file.
        file: String,
    },
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
    uid: Arc<watch::Sender<Option<String>>>,
}

impl Cluster {
    /// As noted below the state folder of the daemon.
    pub fn new(state_dir: &Path) -> Self {
        Self { file: state_dir.join("cluster-uid"), uid: Arc::default() }
    }

    /// The UID of the cluster of this host, once the API server was seen to be of it and for as long as it is.
    pub fn uid(&self) -> watch::Receiver<Option<String>> {
        self.uid.subscribe()
    }

    /// Makes sure that `client` reaches the cluster of this host, which is the first one that it ever
    /// reached.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn check(&self, client: &Client) -> Result<(), ClusterError> {
        self.check_or_adopt(client, None).await.map(drop)
    }

    /// The same; a host of the cluster whose UID is `adopt` is this one's from now on. Returns the UID of this one.
    async fn check_or_adopt(&self, client: &Client, adopt: Option<String>) -> Result<String, ClusterError> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let asked = timeout(PATIENCE, namespaces.get_metadata("kube-system")).await;
        let found = match asked.map_err(|_| ClusterError::Silent)? {
            Ok(namespace) => namespace.uid().unwrap_or_default(),
            Err(kube::Error::Api(answer)) if answer.code == 403 => return Err(ClusterError::Denied),
            Err(error) => return Err(error.into()),
        };
        let file = self.file.clone();
        let answer =
            tokio::task::spawn_blocking(move || compare(&file, &found, adopt.as_deref()).map(|()| found))
                .await;
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
                Ok(found) => {
                    self.tell(Some(found));
                    Some(Belongs::Here)
                }
                Err(ClusterError::Another { found, known }) => {
                    self.tell(None);
                    Some(Belongs::Another { known, found })
                }
                Err(error) => {
                    tracing::warn!(%error, "which cluster this host belongs to cannot be told");
                    belongs.send_if_modified(|belongs| belongs.stays_unknown(error.to_string()));
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

impl Cluster {
    fn tell(&self, uid: Option<String>) {
        self.uid.send_if_modified(|before| {
            let new = *before != uid;
            *before = uid;
            new
        });
    }
}

/// Compares with what is noted, or notes it. What is noted is replaced only where `adopt` names it.
fn compare(file: &Path, found: &str, adopt: Option<&str>) -> Result<(), ClusterError> {
    let failed = |source| ClusterError::File { file: file.display().to_string(), source };
    let known = match fs::read_to_string(file) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return note(file, found).map_err(failed),
        Err(error) => return Err(failed(error)),
    };
    if known.is_empty() {
        return Err(ClusterError::Empty { file: file.display().to_string() });
    }
    if known == found {
        return Ok(());
    }
    if adopt == Some(known.as_str()) {
        tracing::warn!(known, found, "this host is taken over from another cluster, as its GpuNode says");
        return note(file, found).map_err(failed);
    }
    Err(ClusterError::Another { found: found.into(), known })
}

/// Notes the UID, whole also after a loss of power.
fn note(file: &Path, found: &str) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut out = fs::File::create(&new)?;
    out.write_all(found.as_bytes())?;
    out.sync_all()?;
    fs::rename(&new, file)?;
    fs::File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use kube::client::Body;

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
        fs::remove_file(&file).unwrap();
        compare("two", Some("two")).unwrap();
        assert!(compare("one", None).is_err());
        // One that was lost is not the first.
        fs::write(&file, "").unwrap();
        for said in [None, Some(""), Some("two")] {
            let error = compare("two", said).unwrap_err().to_string();
            assert!(error.contains("cluster-uid is empty") && error.contains("remove the file"), "{error}");
        }
    }

    #[tokio::test]
    async fn what_may_not_be_read_is_not_known_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let (service, mut api) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let (sender, mut belongs) = watch::channel(Belongs::default());
        let watching = Cluster::new(dir.path()).watch_over(
            Client::new(service, "x"),
            watch::channel(Stored::default()).1,
            sender,
        );
        let watching = tokio::spawn(watching);
        let (_, respond) = api.next_request().await.unwrap();
        let denied = r#"{"kind":"Status","status":"Failure","code":403,"message":"x","reason":"Forbidden"}"#;
        respond.send_response(
            Response::builder().status(403).body(Body::from(denied.as_bytes().to_vec())).unwrap(),
        );
        let said = belongs.wait_for(|belongs| *belongs != Belongs::default()).await.unwrap().clone();
        let Belongs::Unknown(Some(why)) = said else { panic!("{said:?}") };
        assert!(why.contains("allow it to get that namespace"), "{why}");
        assert!(!dir.path().join("cluster-uid").exists());
        watching.abort();
        // What was known is not forgotten for that.
        let mut here = Belongs::Here;
        assert!(!here.stays_unknown(why) && here == Belongs::Here);
    }
}
