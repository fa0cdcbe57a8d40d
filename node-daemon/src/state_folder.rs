//! The state folder is one daemon's at a time, and one node's for good: two daemons would each make the disks of a desktop,
//! and to one of another node the desktops of this one seem to be elsewhere.
#![expect(clippy::disallowed_methods, reason = "adapter: keeps files")]

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

/// Between attempts to have the folder to oneself, and how many: a daemon that is being replaced takes so long to end.
const AGAIN: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 60;

/// Why the folder is not this daemon's.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// Another daemon has it.
    #[error(
        "another node daemon runs with the state folder {0}: end it, or give this one a folder of its own (--state-dir). \
         Where none is to be found, one that was killed waits for a file system that does not answer"
    )]
    InUse(PathBuf),
    /// It was another node's.
    #[error(
        "the state folder {folder} is of node {known}, and this daemon is to be of node {node} (--node-name): nothing is touched. \
         Where the host has another name now, remove {file}: what is left there of desktops of {known} is then put aside as \
         leftovers"
    )]
    OfAnotherNode {
        /// The folder.
        folder: PathBuf,
        /// Whose it was.
        known: String,
        /// Whose it shall be.
        node: String,
        /// Where that stands.
        file: PathBuf,
    },
    /// It cannot be told.
    #[error("{file}: {source}")]
    File {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Makes the folder this daemon's, for as long as what is returned is kept.
///
/// # Errors
/// [`ClaimError`].
pub async fn claim(folder: &Path, node: &str) -> Result<File, ClaimError> {
    let mut attempts = ATTEMPTS;
    let lock = loop {
        match lock(folder) {
            Err(ClaimError::InUse(_)) if attempts > 1 => {
                if attempts == ATTEMPTS {
                    tracing::warn!(folder = %folder.display(), "another node daemon has the state folder; waiting for its end");
                }
                attempts -= 1;
                tokio::time::sleep(AGAIN).await;
            }
            result => break result?,
        }
    };
    name(folder, node)?;
    Ok(lock)
}

fn lock(folder: &Path) -> Result<File, ClaimError> {
    let file = folder.join("daemon.lock");
    let failed = |source| ClaimError::File { file: file.clone(), source };
    // Whoever can open it can hold it.
    let lock =
        File::options().create(true).truncate(false).write(true).mode(0o600).open(&file).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(ClaimError::InUse(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Notes whose the folder is, or compares.
fn name(folder: &Path, node: &str) -> Result<(), ClaimError> {
    let file = folder.join("node-name");
    let failed = |source| ClaimError::File { file: file.clone(), source };
    match fs::read_to_string(&file) {
        Ok(known) if known.trim() == node => Ok(()),
        // A loss of power may have cut it.
        Ok(known) if !known.trim().is_empty() => Err(ClaimError::OfAnotherNode {
            folder: folder.to_owned(),
            known: known.trim().to_owned(),
            node: node.to_owned(),
            file,
        }),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        Ok(_) | Err(_) => {
            let write = || {
                let mut written = File::create(&file)?;
                writeln!(written, "{node}")?;
                written.sync_all()?;
                File::open(folder)?.sync_all()
            };
            write().map_err(failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_folder_is_one_daemons_and_one_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let held = claim(folder.path(), "a").await.unwrap();
        let error = claim(folder.path(), "a").await.unwrap_err();
        assert!(matches!(&error, ClaimError::InUse(_)), "{error}");
        let waiting = claim(folder.path(), "a");
        let (claimed, ()) = tokio::join!(waiting, async {
            tokio::time::sleep(AGAIN * 5).await;
            drop(held);
        });
        drop(claimed.unwrap());
        let error = claim(folder.path(), "b").await.unwrap_err().to_string();
        for word in ["is of node a", "to be of node b", "node-name: what is left"] {
            assert!(error.contains(word), "{word} is missing in {error}");
        }
        fs::write(folder.path().join("node-name"), "").unwrap();
        claim(folder.path(), "b").await.unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("node-name")).unwrap(), "b\n");
    }
}
