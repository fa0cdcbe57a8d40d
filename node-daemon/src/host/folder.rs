//! The folder of a desktop on this node: its disks, its seed, its serial log, its record.
//!
//! ```text
//!   <state>/desktops/<uid>/   owner.json  run.json  disk-<name>.qcow2  scratch-<name>.qcow2
//!                             seed.img    serial.log  uefi-vars.fd
//! ```
//!
//! Every file is written under another name and renamed, so that one that is there is whole. The
//! folder may be entered but not listed by others, for QEMU runs as a user of its own; the files in
//! it are for their owner alone, and libvirt gives them to QEMU while it runs.
#![expect(clippy::disallowed_methods, reason = "adapter: files, and qemu-img")]

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use uuid::Uuid;

use super::paths::exists;

/// Why something in a folder could not be done.
#[derive(Debug, Error)]
pub enum FolderError {
    /// Reading or writing.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// `qemu-img` refused.
    #[error("{what}: {message}")]
    Image {
        /// What was being done, with the path.
        what: String,
        /// The words of `qemu-img`.
        message: String,
    },
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let what = format!("{doing} {}", path.display());
    move |source| FolderError::Io { what, source }
}

/// Whose folder it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Namespace of the Desktop.
    pub namespace: String,
    /// Name of the Desktop.
    pub name: String,
    /// UID of the Desktop.
    pub uid: Uuid,
}

/// The folders of all desktops on this node.
#[derive(Clone, Debug)]
pub struct DesktopFolders {
    root: PathBuf,
}

impl DesktopFolders {
    /// The folders below the state folder of the daemon.
    pub fn new(state_dir: &Path) -> Self {
        Self { root: state_dir.join("desktops") }
    }

    /// The folder of one desktop, whether or not it exists.
    pub fn of(&self, uid: Uuid) -> DesktopFolder {
        DesktopFolder { path: self.root.join(uid.to_string()) }
    }

    /// Every folder there is. One that does not say whose it is comes without owner.
    ///
    /// # Errors
    /// When the folders cannot be listed; that is not "none".
    pub fn list(&self) -> Result<Vec<(Uuid, Option<Owner>)>, FolderError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(failed("listing", &self.root)(error)),
        };
        let mut found = vec![];
        for entry in entries {
            let name = entry.map_err(failed("listing", &self.root))?.file_name();
            if let Some(uid) = name.to_str().and_then(|name| name.parse().ok()) {
                found.push((uid, self.of(uid).read_json("owner.json")?));
            }
        }
        Ok(found)
    }
}

/// The folder of one desktop.
#[derive(Clone, Debug)]
pub struct DesktopFolder {
    path: PathBuf,
}

impl DesktopFolder {
    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The disk of this name that lives as long as the desktop.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.file(&format!("disk-{name}.qcow2"))
    }

    /// The disk of this name that is new at every start.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.file(&format!("scratch-{name}.qcow2"))
    }

    /// The seed disk.
    pub fn seed(&self) -> PathBuf {
        self.file("seed.img")
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        exists(&self.path)
    }

    /// Makes it, and notes down whose it is.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn create(&self, owner: &Owner) -> Result<(), FolderError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o711).create(&self.path).map_err(failed("making", &self.path))?;
        self.write_json("owner.json", owner)
    }

    /// A record in it; `None` when there is none.
    ///
    /// # Errors
    /// [`FolderError::Io`], also for one that cannot be understood.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FolderError> {
        let path = self.file(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| failed("reading", &path)(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }

    /// Writes a record in it.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), FolderError> {
        let path = self.file(name);
        let bytes = serde_json::to_vec(value).map_err(|error| failed("writing", &path)(error.into()))?;
        self.write(&path, &bytes)
    }

    /// Writes a file for its owner alone.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
        let new = temporary(path);
        let written = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            io::Write::write_all(&mut file, bytes)?;
            file.sync_data()?;
            fs::rename(&new, path)
        };
        written().map_err(failed("writing", path))
    }

    /// Removes a file in it; one that is not there counts as removed.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn remove_file(&self, path: &Path) -> Result<(), FolderError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes what is there for one run only, and all of it when no disk of the desktop is left.
    /// Returns whether the folder is gone.
    ///
    /// # Errors
    /// [`FolderError::Io`]; what is left is removed the next time.
    pub fn remove_run(&self) -> Result<bool, FolderError> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(failed("listing", &self.path)(error)),
        };
        let mut keeps_disks = false;
        for entry in entries {
            let path = entry.map_err(failed("listing", &self.path))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Not one that was begun and never finished.
            keeps_disks |= name.starts_with("disk-") && path.extension().is_some_and(|end| end != "new");
            if name.starts_with("scratch-") || name == "run.json" {
                self.remove_file(&path)?;
            }
        }
        if !keeps_disks {
            self.remove()?;
        }
        Ok(!keeps_disks)
    }

    /// Removes it with all that is in it; one that is not there counts as removed.
    ///
    /// # Errors
    /// [`FolderError::Io`]; what is left is removed the next time.
    pub fn remove(&self) -> Result<(), FolderError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("removing", &self.path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Makes a disk: an overlay of `golden`, or an empty one. Replaces one that is there.
    ///
    /// # Errors
    /// [`FolderError::Image`] with the words of `qemu-img`.
    pub async fn make_disk(
        &self,
        path: &Path,
        golden: Option<&Path>,
        size_gib: Option<i32>,
    ) -> Result<(), FolderError> {
        let new = temporary(path);
        let mut command = tokio::process::Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]);
        if let Some(golden) = golden {
            command.args(["-F", "qcow2", "-b"]).arg(golden);
        }
        command.arg(&new);
        if let Some(size) = size_gib {
            command.arg(format!("{size}G"));
        }
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
        let output = output.map_err(failed("starting qemu-img for", path))?;
        if !output.status.success() {
            let message: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(512).collect();
            return Err(FolderError::Image { what: format!("making {}", path.display()), message });
        }
        let owner_only = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
        fs::set_permissions(&new, owner_only).map_err(failed("protecting", &new))?;
        fs::rename(&new, path).map_err(failed("writing", path))
    }
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// The boot of this host: another after each start of it.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn fixture() -> (tempfile::TempDir, DesktopFolder, Owner) {
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner { namespace: "school".into(), name: "anna".into(), uid: Uuid::from_u128(7) };
        let folder = DesktopFolders::new(dir.path()).of(owner.uid);
        (dir, folder, owner)
    }

    #[test]
    fn a_folder_says_whose_it_is() {
        let (dir, folder, owner) = fixture();
        let folders = DesktopFolders::new(dir.path());
        assert_eq!(folders.list().unwrap(), []);
        folder.create(&owner).unwrap();
        folder.create(&owner).unwrap();
        fs::create_dir(dir.path().join("desktops/no-desktop")).unwrap();
        assert_eq!(folders.list().unwrap(), [(owner.uid, Some(owner))]);
    }

    #[tokio::test]
    async fn an_overlay_names_its_image_and_is_its_owners_alone() {
        let (dir, folder, owner) = fixture();
        folder.create(&owner).unwrap();
        let golden = dir.path().join("golden.qcow2");
        folder.make_disk(&golden, None, Some(1)).await.unwrap();
        let disk = folder.disk("system");
        folder.make_disk(&disk, Some(&golden), Some(2)).await.unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().permissions().mode() & 0o777, 0o600);
        let text = String::from_utf8_lossy(&fs::read(&disk).unwrap()).into_owned();
        assert!(text.contains("golden.qcow2"));
        assert!(!exists(&temporary(&disk)));
    }

    #[tokio::test]
    async fn what_is_no_image_is_refused_in_the_words_of_qemu_img() {
        let (dir, folder, owner) = fixture();
        folder.create(&owner).unwrap();
        let golden = dir.path().join("golden.qcow2");
        fs::write(&golden, "not an image").unwrap();
        let error = folder.make_disk(&folder.disk("system"), Some(&golden), None).await.unwrap_err();
        assert!(matches!(error, FolderError::Image { .. }), "{error}");
        assert!(!exists(&folder.disk("system")));
    }

    #[test]
    fn after_a_run_disks_stay_and_without_disks_nothing_does() {
        let (_dir, folder, owner) = fixture();
        folder.create(&owner).unwrap();
        for name in ["disk-system.qcow2", "scratch-swap.qcow2", "run.json", "seed.img"] {
            folder.write(&folder.file(name), b"x").unwrap();
        }
        assert!(!folder.remove_run().unwrap());
        assert!(exists(&folder.disk("system")) && exists(&folder.seed()));
        assert!(!exists(&folder.scratch("swap")) && !exists(&folder.file("run.json")));
        folder.remove_file(&folder.disk("system")).unwrap();
        assert!(folder.remove_run().unwrap());
        assert!(!folder.exists());
        assert!(folder.remove_run().unwrap());
        folder.remove().unwrap();
    }
}
