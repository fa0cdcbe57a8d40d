//! Files that desktops share: golden images, and files of the host that templates name.
//!
//! Two desktops use one file at once only when neither writes to it, whatever names they know it by.
//! What a running desktop uses is noted down in its folder before it starts, as device and inode: a
//! guest that still wrote to a file could forge it between our look at its header and QEMU's.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Desktops, Round,
    materials::{Materials, Origin},
    problem::Problem,
};
use crate::{
    domain::metadata,
    host::{
        folder::{FolderError, FolderFiles},
        image_file::FileId,
    },
};

/// Name of the record.
const RECORD: &str = "files.json";

/// A file that a desktop uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Use {
    id: FileId,
    path: String,
    writes: bool,
}

/// What is used by desktops that are about to run.
#[derive(Debug, Default)]
pub(super) struct Starting {
    /// Held while the files of one desktop are compared with those of all others.
    comparing: tokio::sync::Mutex<()>,
    uses: Arc<Mutex<HashMap<Uuid, Vec<Use>>>>,
}

/// Until it is dropped, the files count as in use without a domain that runs.
#[derive(Debug)]
pub(super) struct Claim {
    uid: Uuid,
    uses: Arc<Mutex<HashMap<Uuid, Vec<Use>>>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.uses).remove(&self.uid);
    }
}

fn lock(uses: &Mutex<HashMap<Uuid, Vec<Use>>>) -> MutexGuard<'_, HashMap<Uuid, Vec<Use>>> {
    uses.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first file of `own` that cannot be used beside `others`.
fn clash<'a>(own: &'a [Use], others: &[Use]) -> Option<&'a Use> {
    own.iter().find(|own| others.iter().any(|other| other.id == own.id && (other.writes || own.writes)))
}

impl Desktops {
    /// Makes what is new at every start, and takes the files that others may use too.
    pub(super) async fn make_ready(
        &self,
        round: &Round<'_>,
        materials: &Materials,
    ) -> Result<Option<Claim>, Problem> {
        if self.node.images.is_pretended() {
            return Ok(None);
        }
        let claim = self.claim(round, materials).await?;
        for disk in &materials.disks {
            match &disk.origin {
                Origin::Scratch { size_gib } => round.folder.make_scratch(&disk.name, *size_gib).await?,
                Origin::Overlay { golden, .. } => {
                    round.folder.adopt_disk(&disk.name, golden.clone()).await?;
                }
                Origin::Blank { .. } | Origin::HostFile { .. } => {}
            }
        }
        if let Some((kernel, initrd)) = &materials.kernel {
            round.folder.copy(kernel.clone(), "kernel").await?;
            if let Some(initrd) = initrd {
                round.folder.copy(initrd.clone(), "initrd").await?;
            }
        }
        Ok(Some(claim))
    }

    async fn claim(&self, round: &Round<'_>, materials: &Materials) -> Result<Claim, Problem> {
        let uid = round.owner.uid;
        let uses = materials.shared_files().map(|(file, writes)| Use {
            id: file.id,
            path: file.path.display().to_string(),
            writes,
        });
        let own: Vec<Use> = uses.collect();
        if let Some((path, holder)) = clash_within(&own) {
            return Err(Problem::Invalid(format!(
                "two disks of this desktop are the file {path}, also named {holder}"
            )));
        }
        let _comparing = self.starting.comparing.lock().await;
        // Before the list: a claim that is given up after this is of a machine that the list shows.
        for (other, others) in lock(&self.starting.uses).iter().filter(|(other, _)| **other != uid) {
            refuse(clash(&own, others), || format!("the desktop {other}, which is just starting"))?;
        }
        let mut running = vec![];
        for summary in self.node.hypervisor.list().await? {
            if summary.uuid != uid
                && summary.state.is_active()
                && let Some(ours) =
                    summary.metadata.as_deref().and_then(|text| metadata::parse(text).transpose())
            {
                let files = self.node.folders.of(summary.uuid).files().clone();
                running.push((
                    ours.map_or(summary.name, |ours| format!("{}/{}", ours.namespace, ours.name)),
                    files,
                ));
            }
        }
        // On this desktop's own thread: another's may hang in files that this one has nothing to do with.
        let read = move |_: &FolderFiles| -> Result<_, FolderError> {
            let read = |(owner, files): (String, FolderFiles)| (owner, files.read_json::<Vec<Use>>(RECORD));
            Ok(running.into_iter().map(read).collect::<Vec<_>>())
        };
        let others = if own.is_empty() { vec![] } else { round.folder.on_thread(read).await? };
        for (owner, others) in others {
            match others {
                // Of a desktop that an earlier version started nothing is known; QEMU's own locks hold.
                Ok(others) => refuse(clash(&own, &others.unwrap_or_default()), || owner)?,
                Err(error) => {
                    tracing::warn!(%error, of = owner, "which files another desktop uses cannot be read");
                    if let Some(own) = own.first() {
                        return Err(Problem::FileUnclear { path: own.path.clone() });
                    }
                }
            }
        }
        round.folder.write_json(RECORD, own.clone()).await?;
        lock(&self.starting.uses).insert(uid, own);
        Ok(Claim { uid, uses: Arc::clone(&self.starting.uses) })
    }
}

fn refuse(clash: Option<&Use>, holder: impl FnOnce() -> String) -> Result<(), Problem> {
    match clash {
        Some(file) => Err(Problem::FileInUse { path: file.path.clone(), holder: holder() }),
        None => Ok(()),
    }
}

/// Two disks of one desktop that are one file which is written to.
fn clash_within(own: &[Use]) -> Option<(&str, &str)> {
    own.iter().enumerate().find_map(|(index, file)| {
        let others = own.get(index + 1..).unwrap_or_default();
        let other = others.iter().find(|other| other.id == file.id && (other.writes || file.writes))?;
        Some((file.path.as_str(), other.path.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn used(inode: u64, writes: bool) -> Use {
        let id = serde_json::from_value(serde_json::json!({"device": 1, "inode": inode})).unwrap();
        Use { id, path: format!("/srv/{inode}"), writes }
    }

    #[test]
    fn a_file_is_shared_only_by_those_who_read() {
        for (own, other, clashes) in
            [(false, false, false), (true, false, true), (false, true, true), (true, true, true)]
        {
            assert_eq!(clash(&[used(1, own)], &[used(1, other)]).is_some(), clashes);
            assert_eq!(clash_within(&[used(2, false), used(1, own), used(1, other)]).is_some(), clashes);
            assert!(clash(&[used(1, own)], &[used(2, other)]).is_none());
        }
    }

    proptest! {
        #[test]
        fn who_clashes_with_whom_is_the_same_from_both_sides(
            one in proptest::collection::vec((0_u64..4, any::<bool>()), 0..4),
            other in proptest::collection::vec((0_u64..4, any::<bool>()), 0..4),
        ) {
            let uses = |list: &[(u64, bool)]| list.iter().map(|(id, writes)| used(*id, *writes)).collect::<Vec<_>>();
            let (one, other) = (uses(&one), uses(&other));
            prop_assert_eq!(clash(&one, &other).is_some(), clash(&other, &one).is_some());
        }
    }
}
