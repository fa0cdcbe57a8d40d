//! What the owner of the machine said last in its `GpuNode`, kept on the host: one that is gone is made again
//! with what keeps desktops away, so that its loss opens nothing.
//!
//! ```text
//!   as it was                              made again with
//!   cordoned, taints, devices,             the same
//!   housekeeping
//!   outOfService, what is not known here   cordoned: true
//!   physicalNetworks, nvmeDrives, drain,   nothing: they draw desktops here, or end, erase and
//!   and the words on strays, leftovers,    take over, and are their owner's to say again
//!   orphans and clusters; labels
//! ```
//!
//! Admission lets a node's token say the first line at the birth of its `GpuNode`, and nothing else of a spec.
//! What was not given back is told, and remembered, until somebody writes the spec: the fields of the object tell who
//! wrote them. All of this is of one cluster: what another says in a `GpuNode` of this name is not kept, and one that is
//! missing there is made as one that takes nothing new.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use gpudesk_crds::{NODE_DAEMON_FIELD_MANAGER, conditions::Reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::{ResourceExt, api::DynamicObject};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, watch};

use crate::host::folder::FolderFiles;

/// Parts of a spec that only keep desktops away, or concern this machine alone.
const GIVEN_BACK: [&str; 4] = ["cordoned", "devices", "housekeeping", "taints"];
/// Parts without which nothing is open that was closed.
const LEFT_OUT: [&str; 7] = [
    "adoptFromCluster",
    "drain",
    "leftovers",
    "nvmeDrives",
    "physicalNetworks",
    "removeOrphansBefore",
    "strays",
];
/// Those of them that are said for one time, and are not missed later.
const ONCE: [&str; 4] = ["adoptFromCluster", "leftovers", "removeOrphansBefore", "strays"];
/// Where client-side apply notes what it was given. It sends nothing of a spec that is there already.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The most characters of a value in a message.
const SHOWN: usize = 400;

/// What is noted down: a `GpuNode` as its owner wrote it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Note {
    uid: String,
    spec: Map<String, Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    /// UID of the cluster that it is of; absent in notes of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
}

/// A `GpuNode` as the API has it.
#[derive(Clone, Debug)]
struct Seen {
    note: Note,
    generation: Option<i64>,
    by_its_owner: bool,
}

/// What is known of it: nothing, where no `GpuNode` was ever seen; or why that cannot be told.
type Known = Result<Option<Note>, String>;

#[derive(Debug)]
struct State {
    known: Known,
    /// What was seen last.
    seen: Option<Seen>,
    /// What the `GpuNode` that there is now lacks, when it was made here.
    lacks: Vec<String>,
    /// Why it is not on the host.
    unkept: Option<String>,
}

/// The last word of the owner.
#[derive(Debug)]
pub struct OwnerSpec {
    file: PathBuf,
    state: Mutex<State>,
    news: Notify,
    cluster: watch::Receiver<Option<String>>,
}

impl OwnerSpec {
    /// As it was noted below the state folder of the daemon. `cluster` is that of the host, while it is known that the API
    /// server is of it.
    pub fn load(state_dir: &Path, cluster: watch::Receiver<Option<String>>) -> Self {
        let file = state_dir.join("gpu-node.json");
        let known = FolderFiles::read_record(&file).map_err(|error| error.to_string());
        if let Err(error) = &known {
            tracing::error!(error, "what the owner of this machine said in its GpuNode cannot be read");
        }
        let state = Mutex::new(State { known, seen: None, lacks: vec![], unkept: None });
        Self { file, state, news: Notify::new(), cluster }
    }

    /// The spec with which a `GpuNode` that is missing is made.
    pub fn again(&self) -> Value {
        let state = self.state();
        match &*self.cluster.borrow() {
            Some(cluster) => again(&of(&state.known, cluster)),
            None if state.known == Ok(None) => again(&state.known),
            None => closed(),
        }
    }

    /// Waits until it is known that the API server is of the cluster of this host.
    pub async fn is_known(&self) {
        if self.cluster.clone().wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes in the `GpuNode` as the API has it, understood or not.
    pub fn see(&self, node: &DynamicObject) {
        let spec = node.data.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
        let labels = node.labels().iter().filter(|(key, _)| !key.starts_with("gpudesk.dev/"));
        let seen = Note {
            uid: node.uid().unwrap_or_default(),
            spec,
            labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
            cluster: None,
        };
        let (generation, by_its_owner) = (node.metadata.generation, is_by_its_owner(node));
        self.state().seen = Some(Seen { note: seen, generation, by_its_owner });
        self.take_in();
    }

    /// Takes in what was seen, if it is known to be of the cluster of this host.
    fn take_in(&self) {
        let Some(cluster) = self.cluster.borrow().clone() else { return };
        let mut state = self.state();
        let Some(mut seen) = state.seen.clone() else { return };
        seen.note.cluster = Some(cluster.clone());
        state.lacks = lacks(&of(&state.known, &cluster), &seen);
        let seen = seen.note;
        // As long as it lacks something, what is remembered is what it was before.
        if state.lacks.is_empty() && state.known.as_ref().ok() != Some(&Some(seen.clone())) {
            state.known = Ok(Some(seen));
            self.news.notify_one();
        } else if state.unkept.is_some() {
            self.news.notify_one();
        }
    }

    /// Keeps the file as what was seen, for as long as it is awaited. Nobody waits for the disk.
    pub async fn keep(&self) {
        let mut cluster = self.cluster.clone();
        loop {
            tokio::select! {
                () = self.news.notified() => {}
                Ok(()) = cluster.changed() => {
                    self.take_in();
                    continue;
                }
            }
            let Ok(Some(note)) = self.state().known.clone() else { continue };
            let file = self.file.clone();
            let written = tokio::task::spawn_blocking(move || FolderFiles::write_record(&file, &note)).await;
            let unkept = match written {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(panic) => Some(panic.to_string()),
            };
            if let Some(error) = &unkept {
                tracing::error!(error, "what the owner of this machine says is not kept on it");
            }
            self.state().unkept = unkept;
        }
    }

    /// What the condition `SpecKept` says.
    pub fn condition(&self) -> (bool, Reason, String) {
        if self.cluster.borrow().is_none() {
            let words = "it is not known whether the host belongs to this cluster, so nothing of the spec is kept on it";
            return (false, Reason::Unknown, words.into());
        }
        let state = self.state();
        if !state.lacks.is_empty() {
            let words = format!(
                "this GpuNode was deleted and made again by its daemon, without {}: write into its spec and labels what \
                 should hold, or apply it as it is where that should hold; what it lacks is told until then",
                state.lacks.join("; ")
            );
            return (false, Reason::SpecNotKept, words);
        }
        match &state.unkept {
            None => (true, Reason::AsExpected, String::new()),
            Some(error) => {
                let words = format!(
                    "what the spec says is not kept on the host, and would be lost with this GpuNode after a restart of \
                     the daemon: {error}; mend the state folder of the daemon"
                );
                (false, Reason::SpecNotKept, words)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The spec of one that takes nothing new, whatever its owner said.
pub fn closed() -> Value {
    json!({ "cordoned": true })
}

/// What is known of it in this cluster.
fn of(known: &Known, cluster: &str) -> Known {
    match known {
        Ok(Some(Note { cluster: Some(other), .. })) if other != cluster => {
            Err(format!("what is kept on the host is of the cluster {other}"))
        }
        known => known.clone(),
    }
}

/// Whether anybody but this daemon has written anything of the spec, or applied it.
fn is_by_its_owner(node: &DynamicObject) -> bool {
    let of_another = |entry: &ManagedFieldsEntry| {
        entry.manager.as_deref() != Some(NODE_DAEMON_FIELD_MANAGER)
            && entry.fields_v1.as_ref().is_some_and(|fields| fields.0.get("f:spec").is_some())
    };
    node.managed_fields().iter().any(of_another) || node.annotations().contains_key(LAST_APPLIED)
}

fn again(known: &Known) -> Value {
    match known {
        Ok(None) => json!({}),
        Ok(Some(note)) => {
            let is = |list: &[&str], part: &str| list.contains(&part);
            let parts = note.spec.iter().filter(|(part, _)| is(&GIVEN_BACK, part));
            let mut spec: Map<String, Value> =
                parts.map(|(part, value)| (part.clone(), value.clone())).collect();
            if note.spec.iter().any(|(part, value)| {
                !is(&GIVEN_BACK, part) && !is(&LEFT_OUT, part) && *value != Value::Bool(false)
            }) {
                spec.insert("cordoned".into(), true.into());
            }
            spec.into()
        }
        Err(_) => closed(),
    }
}

/// What one that was made here lacks of what is known; nothing where somebody else wrote its spec.
fn lacks(known: &Known, seen: &Seen) -> Vec<String> {
    let Seen { note: seen, generation, by_its_owner } = seen;
    let spec = Value::Object(seen.spec.clone());
    if *by_its_owner || *generation != Some(1) || ![again(known), closed()].contains(&spec) {
        return vec![];
    }
    let note = match known {
        Ok(Some(note)) if note.uid != seen.uid => note,
        Ok(_) => return vec![],
        Err(why) => return vec![format!("what its owner had said, so it is cordoned ({why})")],
    };
    let parts = note.spec.iter().filter(|(part, value)| {
        let nothing = **value == Value::Bool(false) || **value == json!([]);
        seen.spec.get(*part) != Some(value) && !nothing && !ONCE.contains(&part.as_str())
    });
    let parts = parts.map(|(part, value)| {
        let value: String = value.to_string().chars().take(SHOWN).collect();
        let instead = if seen.spec.get("cordoned") == Some(&true.into()) && !LEFT_OUT.contains(&part.as_str())
        {
            " (it is cordoned instead)"
        } else {
            ""
        };
        format!("spec.{part} {value}{instead}")
    });
    let labels = note.labels.iter().filter(|(key, _)| !seen.labels.contains_key(*key));
    let mut lacks: Vec<String> =
        parts.chain(labels.map(|(key, value)| format!("label {key}={value}"))).collect();
    // Its cluster was not known in time.
    if lacks.is_empty() && spec == closed() && again(known) != spec {
        lacks.push("spec.cordoned false (it is cordoned instead)".into());
    }
    lacks
}

#[cfg(test)]
#[path = "owner_spec_tests.rs"]
mod tests;
