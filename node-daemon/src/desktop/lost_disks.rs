//! A disk that a machine has used is never replaced by a new one without its user's word.
//!
//! ```text
//!   <state>/disks/<uid>.json names the disk  its file is not there                ─▶ it is lost
//!   neither this record nor the folder is there, and the API has a node's word
//!   that disks are there: the file system with the state folder is not mounted    ─▶ all are lost
//!   the folder is there without any disk and this record, and a node said that disks are there ─▶ all are lost
//!   else                                                                          ─▶ a disk is to be made
//! ```
//!
//! What a node says next takes the place of what the API knows, and what it does next makes a folder: so a
//! round begins with noting down that both are missing ([`note`]).
//!
//! A disk counts as used from just before the first start with it. One that was made and never used holds
//! nothing but what it was made from.

use std::{collections::BTreeSet, path::PathBuf};

use gpudesk_crds::{ABANDON_DISKS_ANNOTATION, Desktop, NodeState, desktop_template::DesktopTemplateSpec};
use kube::ResourceExt;
use thiserror::Error;

use super::{
    desired,
    materials::{Materials, Origin},
    problem::Problem,
};
use crate::host::folder::{FolderError, FolderFiles, Owner, UsedDisks};

/// Disks that hold what nothing can make again are not there.
#[derive(Debug, Error)]
#[error(
    "disks of this desktop are missing on this node: {}; nothing is started with empty ones in their place. Mount \
     or restore them; or annotate the desktop with {ABANDON_DISKS_ANNOTATION}={word}, which gives up what was on them \
     and lets new ones be made{}{}",
    list(.paths),
    if .aside.is_empty() { String::new() } else {
        format!("; put aside here and still there: {} (spec.leftovers[].attachTo of the GpuNode gives one back)", .aside.join(", "))
    },
    if *.spent { " (the word that stands there was acted on already)" } else { "" }
)]
pub struct DisksMissing {
    paths: Vec<PathBuf>,
    /// Leftovers of this desktop.
    aside: Vec<String>,
    word: String,
    spent: bool,
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The names of the disks that live as long as their desktop.
pub(super) fn lasting(materials: &Materials) -> Vec<String> {
    let lasting = materials.disks.iter().filter(|disk| lasts(&disk.origin));
    lasting.map(|disk| disk.name.clone()).collect()
}

/// The same of a template.
pub(super) fn lasting_of(spec: &DesktopTemplateSpec) -> BTreeSet<String> {
    let lasting = spec.disks.iter().filter(|disk| disk.image.is_some() || disk.blank.is_some());
    lasting.map(|disk| disk.name.clone()).collect()
}

fn lasts(origin: &Origin) -> bool {
    matches!(origin, Origin::Overlay { .. } | Origin::Blank { .. })
}

/// Refuses to let disks be made anew that a machine of this desktop has used here. Blocks.
pub(super) fn check(desktop: &Desktop, materials: &Materials, folder: &FolderFiles) -> Result<(), Problem> {
    let absent = materials.disks.iter().filter(|disk| lasts(&disk.origin) && !disk.made);
    let absent: BTreeSet<String> = absent.map(|disk| disk.name.clone()).collect();
    if absent.is_empty() {
        return Ok(());
    }
    let Some(used) = folder.used()? else { return Ok(()) };
    let lost: Vec<&String> = absent.iter().filter(|name| used.any || used.disks.contains(*name)).collect();
    if lost.is_empty() {
        return Ok(());
    }
    let status = desktop.status.as_ref();
    let said_of_before =
        status.and_then(|status| status.node.as_ref()).map(|said| said.allocation_id.to_string());
    let id = desired::allocation(desktop).and_then(|held| held.id).map(|id| id.to_string());
    let word = desktop.abandon_word();
    // Used, by what this node remembers; what the API remembers is in `abandons`.
    let spent = word.is_some() && word == used.abandoned.as_deref();
    if !spent && [&id, &said_of_before].into_iter().flatten().any(|id| desktop.abandons(id)) {
        tracing::warn!(disks = ?lost, "lost disks are made anew: their user gave them up");
        let disks = used.disks.difference(&absent).cloned().collect();
        let abandoned = word.map(Into::into);
        return Ok(folder.write_used(&UsedDisks { disks, any: false, abandoned, owner: used.owner })?);
    }
    let used_by_api = status.and_then(|status| status.node.as_ref()?.abandoned_disks.as_deref());
    Err(Problem::Disks(DisksMissing {
        paths: lost.iter().map(|name| folder.disk(name)).collect(),
        aside: folder.left_over(),
        word: id.map_or_else(|| "ALLOCATION-ID".into(), |id| desktop.next_abandon_word(&id)),
        spent: spent || word.is_some() && word == used_by_api,
    }))
}

/// The word on which this node has acted, where one stands there.
pub(super) fn used_word(desktop: &Desktop, folder: &FolderFiles) -> Result<Option<String>, Problem> {
    if desktop.abandon_word().is_none() {
        return Ok(None);
    }
    Ok(folder.used()?.and_then(|used| used.abandoned))
}

/// Notes down that disks of this desktop are lost, where the API has a node's word that they are there and
/// nothing here tells of them. Blocks.
///
/// # Errors
/// When that cannot be noted: then nothing may be said or made before it was.
pub(super) fn note(desktop: &Desktop, folder: &FolderFiles) -> Result<(), FolderError> {
    // What cannot be read is there, and is in the way of everything that would make disks.
    if !were_here(desktop) || !matches!(folder.used(), Ok(None)) {
        return Ok(());
    }
    // Versions that kept no record did not say either whether there are disks.
    let said = desktop.status.as_ref().and_then(|status| status.node.as_ref()?.has_disks) == Some(true);
    let lost = match folder.disk_names() {
        Ok(None) => true,
        Ok(Some(disks)) => said && disks.is_empty(),
        Err(_) => false,
    };
    if !lost {
        return Ok(());
    }
    let owner = desktop.uid().and_then(|uid| {
        Some(Owner { namespace: desktop.namespace()?, name: desktop.name_any(), uid: uid.parse().ok()? })
    });
    folder.write_used(&UsedDisks { any: true, owner, ..UsedDisks::default() })
}

/// Whether the API has a node's word that disks of this desktop are on it: on this one, by the present decision,
/// or where one ended, after which a desktop with disks comes back to where they are. Versions before this one
/// did not say what was left.
pub(super) fn were_here(desktop: &Desktop) -> bool {
    let Some(said) = desktop.status.as_ref().and_then(|status| status.node.as_ref()) else { return false };
    let held = desktop.said_by_node().is_some();
    match said.state {
        NodeState::Stopped | NodeState::Ended => said.has_disks != Some(false),
        NodeState::Refused => said.has_disks == Some(true),
        // Of another decision it is another node's that is out of service.
        NodeState::Running | NodeState::Stopping => held && said.has_disks != Some(false),
        NodeState::Preparing => held && said.has_disks == Some(true),
        NodeState::Released | NodeState::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desktop::fixtures::{SMALL, UID, desktop, template},
        host::{
            folder::{DesktopFolder, DesktopFolders},
            images::ImageStore,
            paths::AllowedRoots,
        },
    };
    use gpudesk_crds::NodeReport;

    const DISKS: &str =
        "{memory: {sizeMiB: 64}, disks: [{name: a, blank: {sizeGiB: 1}}, {name: b, blank: {sizeGiB: 1}}]}";

    async fn folder(state: &tempfile::TempDir) -> DesktopFolder {
        let folder = DesktopFolders::new(state.path()).of(UID.parse().unwrap());
        folder.create(&owner()).await.unwrap();
        folder
    }

    fn owner() -> Owner {
        Owner { namespace: "school".into(), name: "anna".into(), uid: UID.parse().unwrap() }
    }

    fn said(id: &str, state: NodeState) -> Desktop {
        let mut desktop = desktop("", SMALL, "[]");
        let said = NodeReport {
            allocation_id: id.parse().unwrap(),
            state,
            refusal: None,
            has_disks: None,
            abandoned_disks: None,
        };
        desktop.status.as_mut().unwrap().node = Some(said);
        desktop
    }

    /// What a start of `desktop` finds.
    fn start(desktop: &Desktop, folder: &DesktopFolder) -> Result<Vec<String>, Problem> {
        let (images, roots) = (ImageStore::folders("node-a", vec![]), AllowedRoots::default());
        let materials = Materials::find(desktop, &template(DISKS), &images, &roots, folder.files())?;
        note(desktop, folder.files())?;
        check(desktop, &materials, folder.files())?;
        Ok(materials.disks.into_iter().filter(|disk| !disk.made).map(|disk| disk.name).collect())
    }

    #[tokio::test]
    async fn a_disk_that_was_used_is_not_made_anew_without_its_users_word() {
        let state = tempfile::tempdir().unwrap();
        let folder = folder(&state).await;
        let mut desktop = said("1-00000001", NodeState::Preparing);
        assert_eq!(start(&desktop, &folder).unwrap(), ["a", "b"], "the first start");
        for name in ["a", "b"] {
            folder.make_disk(name, None, Some(1)).await.unwrap();
        }
        let path = folder.disk("a");
        let lose = async || folder.remove_file("disk-a.qcow2").await.unwrap();
        lose().await;
        assert_eq!(start(&desktop, &folder).unwrap(), ["a"], "it was made and never used");
        folder.make_disk("a", None, Some(1)).await.unwrap();
        folder.note_used(vec!["a".into(), "b".into()]).await.unwrap();
        assert_eq!(start(&desktop, &folder).unwrap(), [""; 0]);
        lose().await;
        let aside = format!("{UID}.1000");
        std::fs::create_dir_all(state.path().join("leftovers").join(&aside)).unwrap();
        let error = start(&desktop, &folder).unwrap_err().to_string();
        assert!(error.contains(&format!("still there: {aside} (spec.leftovers[].attachTo")), "{error}");
        for word in [path.to_str().unwrap(), "gpudesk.dev/abandon-disks=1-00000001", "restore"] {
            assert!(error.contains(word), "{word} is missing in {error}");
        }
        assert!(!error.contains("disk-b"), "{error}");
        // What is left of one run goes, and what is known of its disks stays.
        folder.remove_run().await.unwrap();
        assert!(start(&desktop, &folder).is_err());

        let annotate = |desktop: &mut Desktop, id: &str| {
            desktop.metadata.annotations = Some([(ABANDON_DISKS_ANNOTATION.into(), id.into())].into());
        };
        annotate(&mut desktop, "7-00000001");
        assert!(start(&desktop, &folder).is_err(), "another decision's");
        annotate(&mut desktop, "1-00000001");
        assert_eq!(start(&desktop, &folder).unwrap(), ["a"]);
        folder.make_disk("a", None, Some(1)).await.unwrap();
        folder.note_used(vec!["a".into(), "b".into()]).await.unwrap();
        lose().await;
        let error = start(&desktop, &folder).unwrap_err().to_string();
        assert!(error.contains("acted on already"), "the word was for the first loss: {error}");
        assert_eq!(
            used_word(&desktop, folder.files()).unwrap().as_deref(),
            Some("1-00000001"),
            "the API is told"
        );
        desktop.metadata.annotations = None;
        assert_eq!(used_word(&desktop, folder.files()).unwrap(), None, "nobody looks where no word stands");

        folder.remove().await.unwrap();
        folder.create(&owner()).await.unwrap();
        assert_eq!(start(&desktop, &folder).unwrap(), ["a", "b"], "deleted, it is forgotten");
    }

    #[tokio::test]
    async fn a_state_folder_that_is_not_mounted_is_no_new_host() {
        let before = "7-00000007";
        for (id, state, has_disks, lost) in [
            ("1-00000001", NodeState::Preparing, None, false),
            ("1-00000001", NodeState::Preparing, Some(true), true),
            ("1-00000001", NodeState::Running, None, true),
            ("1-00000001", NodeState::Stopping, Some(true), true),
            ("1-00000001", NodeState::Stopping, Some(false), false),
            (before, NodeState::Stopped, None, true),
            (before, NodeState::Ended, Some(true), true),
            // It had none, and its template has got some since.
            (before, NodeState::Stopped, Some(false), false),
            (before, NodeState::Ended, Some(false), false),
            (before, NodeState::Refused, None, false),
            (before, NodeState::Refused, Some(true), true),
            // It is another node's that is out of service.
            (before, NodeState::Running, Some(true), false),
            (before, NodeState::Preparing, Some(true), false),
        ] {
            let empty = tempfile::tempdir().unwrap();
            let folder = DesktopFolders::new(empty.path()).of(UID.parse().unwrap());
            let mut desktop = said(id, state);
            desktop.status.as_mut().unwrap().node.as_mut().unwrap().has_disks = has_disks;
            assert_eq!(start(&desktop, &folder).is_err(), lost, "{id} {state:?} {has_disks:?}");
            // Whatever this node says next, it stays so.
            assert_eq!(
                start(&said("1-00000001", NodeState::Preparing), &folder).is_err(),
                lost,
                "{id} {state:?} {has_disks:?}"
            );
            // A folder that is there is of this node, and may be from before the record was kept.
            let known = tempfile::tempdir().unwrap();
            let folder = self::folder(&known).await;
            let emptied = lost && has_disks == Some(true);
            assert_eq!(start(&desktop, &folder).is_err(), emptied, "{id} {state:?} {has_disks:?}");
            if !emptied {
                folder.make_disk("a", None, Some(1)).await.unwrap();
                assert_eq!(start(&desktop, &folder).unwrap(), ["b"], "{id} {state:?} {has_disks:?}");
            }
        }
        // Given up at another node, whose last word is still there.
        let empty = tempfile::tempdir().unwrap();
        let folder = DesktopFolders::new(empty.path()).of(UID.parse().unwrap());
        let mut desktop = said(before, NodeState::Stopped);
        desktop.metadata.annotations = Some([(ABANDON_DISKS_ANNOTATION.into(), before.into())].into());
        assert_eq!(start(&desktop, &folder).unwrap(), ["a", "b"]);
        // A word that was used before the folder went, and still stands there.
        for (id, state) in [("1-00000001", NodeState::Running), (before, NodeState::Stopped)] {
            let empty = tempfile::tempdir().unwrap();
            let folder = DesktopFolders::new(empty.path()).of(UID.parse().unwrap());
            let mut desktop = said(id, state);
            let node = desktop.status.as_mut().unwrap().node.as_mut().unwrap();
            node.abandoned_disks = Some(id.into());
            let annotate = |desktop: &mut Desktop, word: &str| {
                desktop.metadata.annotations = Some([(ABANDON_DISKS_ANNOTATION.into(), word.into())].into());
            };
            annotate(&mut desktop, id);
            let error = start(&desktop, &folder).unwrap_err().to_string();
            assert!(error.contains("acted on already"), "{error}");
            annotate(&mut desktop, &format!("{id}/2"));
            assert_eq!(start(&desktop, &folder).unwrap(), ["a", "b"], "said once more");
        }
    }

    #[tokio::test]
    async fn what_is_here_tells_whether_there_are_disks_and_nothing_tells_nothing() {
        let state = tempfile::tempdir().unwrap();
        let folder = DesktopFolders::new(state.path()).of(UID.parse().unwrap());
        let has = || folder.files().has_disks().unwrap();
        assert_eq!(has(), None);
        folder.create(&owner()).await.unwrap();
        assert_eq!(has(), Some(false));
        folder.make_disk("a", None, Some(1)).await.unwrap();
        assert_eq!(has(), Some(true), "made by a version that noted nothing");
        folder.note_used(vec!["a".into()]).await.unwrap();
        folder.remove_file("disk-a.qcow2").await.unwrap();
        assert_eq!(has(), Some(true), "it is lost, and not gone");
        folder.forget_used().await.unwrap();
        assert_eq!(has(), Some(false));
        folder.files().write_used(&UsedDisks { any: true, ..UsedDisks::default() }).unwrap();
        assert_eq!(has(), Some(true));
        folder.note_used(vec![]).await.unwrap();
        assert!(folder.files().used().unwrap().unwrap().any, "a machine without disks says nothing of them");
        folder.note_used(vec!["a".into()]).await.unwrap();
        let used = folder.files().used().unwrap().unwrap();
        assert_eq!((used.any, used.disks), (false, ["a".to_owned()].into()));
    }
}
