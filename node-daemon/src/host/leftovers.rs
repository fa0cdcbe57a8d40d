//! Disks of desktops that are this node's no more: put aside, never erased here.
//!
//! ```text
//!   <state>/leftovers/<uid>.<second>/   what was <state>/desktops/<uid>/, and leftover.json
//! ```
#![expect(clippy::disallowed_methods, reason = "adapter: renames folders")]

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::folder::{DesktopFolder, FolderError, Owner};

/// What says whose a leftover was and why it is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leftover {
    /// Whose it was.
    pub owner: Owner,
    /// Why it is left over, in words.
    pub why: String,
    /// Since when.
    pub since: Timestamp,
}

/// The leftovers of this node.
#[derive(Clone, Debug)]
pub struct Leftovers {
    root: PathBuf,
}

impl Leftovers {
    /// The leftovers below the state folder of the daemon.
    pub fn new(state_dir: &Path) -> Self {
        Self { root: state_dir.join("leftovers") }
    }

    /// Puts the folder of a desktop aside; `None` when there was none.
    ///
    /// # Errors
    /// Then it is where it was.
    pub async fn keep(
        &self,
        folder: &DesktopFolder,
        leftover: Leftover,
    ) -> Result<Option<PathBuf>, FolderError> {
        if !folder.exists().await? {
            return Ok(None);
        }
        folder.write_json("leftover.json", leftover.clone()).await?;
        let root = self.root.clone();
        folder.on_thread(move |files| put_aside(&files.file(""), &root, &leftover).map(Some)).await
    }

    /// How many there are. Blocks.
    ///
    /// # Errors
    /// When they cannot be listed; that is not "none".
    pub fn count(&self) -> io::Result<usize> {
        match fs::read_dir(&self.root) {
            Ok(entries) => Ok(entries.count()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }
}

fn put_aside(from: &Path, root: &Path, leftover: &Leftover) -> Result<PathBuf, FolderError> {
    let failed = |what: String| move |source: io::Error| FolderError::Io { what, source };
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(root);
    made.map_err(failed(format!("making {}", root.display())))?;
    // Two of one desktop within a second would meet: the next second is free.
    let second = leftover.since.as_second();
    for second in second..second.saturating_add(1000) {
        let to = root.join(format!("{}.{second}", leftover.owner.uid));
        match fs::rename(from, &to) {
            Ok(()) => return Ok(to),
            Err(error)
                if [io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::AlreadyExists]
                    .contains(&error.kind()) => {}
            Err(error) => {
                return Err(failed(format!("moving {} to {}", from.display(), to.display()))(error));
            }
        }
    }
    Err(failed(format!("moving {}", from.display()))(io::ErrorKind::AlreadyExists.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::folder::DesktopFolders;
    use uuid::Uuid;

    #[tokio::test]
    async fn what_is_put_aside_is_whole_and_never_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let (folders, leftovers) = (DesktopFolders::new(dir.path()), Leftovers::new(dir.path()));
        let owner = Owner { namespace: "school".into(), name: "anna".into(), uid: Uuid::from_u128(7) };
        let since = Timestamp::from_second(1000).unwrap();
        let leftover = Leftover { owner: owner.clone(), why: "moved on".into(), since };
        let folder = folders.of(owner.uid);
        assert_eq!(leftovers.keep(&folder, leftover.clone()).await.unwrap(), None);
        assert_eq!(leftovers.count().unwrap(), 0);
        for (text, second) in [("first", 1000), ("second", 1001)] {
            folder.create(&owner).await.unwrap();
            folder.write(folder.disk("system"), text.into()).await.unwrap();
            let kept = leftovers.keep(&folder, leftover.clone()).await.unwrap().unwrap();
            assert!(kept.ends_with(format!("{}.{second}", owner.uid)), "{}", kept.display());
            assert_eq!(fs::read_to_string(kept.join("disk-system.qcow2")).unwrap(), text);
            let told: Leftover =
                serde_json::from_slice(&fs::read(kept.join("leftover.json")).unwrap()).unwrap();
            assert_eq!(told, leftover);
            assert!(!folder.exists().await.unwrap());
        }
        assert_eq!(leftovers.count().unwrap(), 2);
        assert_eq!(folders.list().await.unwrap(), []);
    }
}
