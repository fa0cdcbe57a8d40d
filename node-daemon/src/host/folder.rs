//! The folder of a desktop on this node: its disks, its seed, its serial log, its records.
//!
//! ```text
//!   <state>/desktops/<uid>/   owner.json  run.json   disk-<name>.qcow2  golden-<name>.json
//!                             files.json  seed.img   scratch-<name>.qcow2
//!                             kernel      initrd     serial.log  uefi-vars.fd
//!   <state>/disks/<uid>.json  which disks a machine has used: known when the folder is lost
//! ```
//!
//! Every file is written under another name and renamed, so that one that is there is whole. The
//! folder may be entered but not listed by others, for QEMU runs as a user of its own; the files in
//! it are for their owner alone, and libvirt gives them to QEMU while it runs.
//!
//! Everything that asks the file system does so on a thread of [`FileThreads`].
#![expect(clippy::disallowed_methods, reason = "adapter: files, and qemu-img")]

mod files;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use uuid::Uuid;

use self::files::failed;
pub use self::files::{FolderFiles, UsedDisks};
pub(super) use self::files::{disk_names, sync_folder};
use super::{
    file_threads::{FileThreads, ThreadError},
    images::Golden,
};

/// Why something in a folder could not be done.
#[derive(Debug, Error)]
pub enum FolderError {
    /// Reading or writing.
    #[error("{what}: {source}; {}", remedy(.source))]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// A record is there and cannot be understood.
    #[error("{path} cannot be understood ({why}): {}", remedy_of(.path))]
    Odd {
        /// The record.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// `qemu-img` refused.
    #[error("{what}: {message}")]
    Image {
        /// What was being done, with the path.
        what: String,
        /// The words of `qemu-img`.
        message: String,
    },
    /// There was no answer.
    #[error("files of the desktop: {0}")]
    Thread(#[from] ThreadError),
}

/// What a person does about a file that cannot be read or written.
fn remedy(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => {
            "make room on that file system of the node; it is tried again"
        }
        Kind::ReadOnlyFilesystem => {
            "see in the kernel's log of the node why that file system can only be read, and mount it for writing; it is \
             tried again"
        }
        Kind::PermissionDenied => "see the permissions of that path, and the security modules of the node",
        _ => "mend that path or its file system on the node; it is tried again",
    }
}

/// What a person does about a record that cannot be understood.
fn remedy_of(path: &str) -> &'static str {
    let path = Path::new(path);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match name {
        "decision.json" => {
            "whether the node gave the present decision back is not known: stop the desktop, which writes it anew, or \
             remove the file, and its machine is started"
        }
        "run.json" => {
            "how its last run ended is not known: stop the desktop, which removes it, or remove the file, and its machine is \
             started"
        }
        "owner.json" => {
            "whose folder it is is not known, and it is left as it is: write {\"namespace\": NAMESPACE, \"name\": NAME, \
             \"uid\": UID} of its Desktop into it, the UID being the name of the folder, or move the folder away"
        }
        _ if path.parent().is_some_and(|folder| folder.ends_with("disks")) => {
            "which disks a machine has used is not known: restore it, or remove it once all disks of the desktop are in \
             their folder"
        }
        _ => "restore it, or remove it",
    }
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

/// Whose a folder is, or why that cannot be told.
pub type Owned = Result<Owner, FolderError>;

/// The folders of all desktops on this node.
#[derive(Clone, Debug)]
pub struct DesktopFolders {
    root: PathBuf,
    threads: FileThreads,
}

impl DesktopFolders {
    /// The folders below the state folder of the daemon.
    pub fn new(state_dir: &Path) -> Self {
        Self { root: state_dir.join("desktops"), threads: FileThreads::default() }
    }

    /// The folder of one desktop, whether or not it exists.
    pub fn of(&self, uid: Uuid) -> DesktopFolder {
        let used = self.root.with_file_name("disks").join(format!("{uid}.json"));
        let files = FolderFiles { path: self.root.join(uid.to_string()), used };
        DesktopFolder { files, uid, threads: self.threads.clone() }
    }

    /// Whose disks were used here, as far as that was noted.
    ///
    /// # Errors
    /// When the records cannot be listed; that is not "none".
    pub async fn list_used(&self) -> Result<Vec<Owner>, FolderError> {
        let folders = self.clone();
        self.threads.run(Uuid::nil(), move || folders.list_used_now()).await?
    }

    fn list_used_now(&self) -> Result<Vec<Owner>, FolderError> {
        let root = self.root.with_file_name("disks");
        let entries = match fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(failed("listing", &root)(error)),
        };
        let mut owners = vec![];
        for entry in entries {
            let path = entry.map_err(failed("listing", &root))?.path();
            let uid = path.file_stem().and_then(|uid| uid.to_str()?.parse::<Uuid>().ok());
            // One that cannot be read is told of where its desktop is looked at.
            let used: Option<UsedDisks> = FolderFiles::read_record(&path).ok().flatten();
            owners.extend(used.and_then(|used| used.owner).filter(|owner| Some(owner.uid) == uid));
        }
        Ok(owners)
    }

    /// Every folder there is, with whose it is or why that cannot be told.
    ///
    /// # Errors
    /// When the folders cannot be listed; that is not "none".
    pub async fn list(&self) -> Result<Vec<(Uuid, Owned)>, FolderError> {
        let folders = self.clone();
        self.threads.run(Uuid::nil(), move || folders.list_now()).await?
    }

    fn list_now(&self) -> Result<Vec<(Uuid, Owned)>, FolderError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(failed("listing", &self.root)(error)),
        };
        let mut found = vec![];
        for entry in entries {
            let name = entry.map_err(failed("listing", &self.root))?.file_name();
            if let Some(uid) = name.to_str().and_then(|name| name.parse().ok()) {
                // One that is broken holds up no other.
                let files = self.of(uid).files;
                let odd = |why: &str| {
                    let path = files.file("owner.json").display().to_string();
                    FolderError::Odd { path, why: why.into() }
                };
                let owner = files.read_json("owner.json").and_then(|owner: Option<Owner>| {
                    let owner = owner.ok_or_else(|| odd("it is missing"))?;
                    if owner.uid == uid { Ok(owner) } else { Err(odd("it names the UID of another")) }
                });
                found.push((uid, owner));
            }
        }
        Ok(found)
    }
}

/// The folder of one desktop.
#[derive(Clone, Debug)]
pub struct DesktopFolder {
    files: FolderFiles,
    uid: Uuid,
    threads: FileThreads,
}

/// Each fails with [`FolderError`]; one that says [`ThreadError::Late`] may be done yet.
impl DesktopFolder {
    /// What may block, for those who are on a thread that may.
    pub fn files(&self) -> &FolderFiles {
        &self.files
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.file(name)
    }

    /// The disk of this name that lives as long as the desktop.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.files.disk(name)
    }

    /// The disk of this name that is new at every start.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.file(&format!("scratch-{name}.qcow2"))
    }

    /// The seed disk.
    pub fn seed(&self) -> PathBuf {
        self.file("seed.img")
    }

    /// The kernel of a machine that starts without firmware, a copy for one run.
    pub fn kernel(&self) -> PathBuf {
        self.file("kernel")
    }

    /// The initial RAM disk beside it.
    pub fn initrd(&self) -> PathBuf {
        self.file("initrd")
    }

    /// Makes `call` where it may block.
    ///
    /// # Errors
    /// [`ThreadError`], beside what the call says.
    pub async fn on_thread<T: Send + 'static, E: Send + 'static + From<ThreadError>>(
        &self,
        call: impl FnOnce(&FolderFiles) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let files = self.files.clone();
        self.threads.run(self.uid, move || call(&files)).await?
    }

    /// Whether it exists.
    pub async fn exists(&self) -> Result<bool, FolderError> {
        self.on_thread(FolderFiles::is_there).await
    }

    /// Makes it, and notes down whose it is.
    pub async fn create(&self, owner: &Owner) -> Result<(), FolderError> {
        let owner = owner.clone();
        self.on_thread(move |files| files.create(&owner)).await
    }

    /// A record in it; `None` when there is none. One that cannot be understood is an error.
    pub async fn read_json<T>(&self, name: &'static str) -> Result<Option<T>, FolderError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        self.on_thread(move |files| files.read_json(name)).await
    }

    /// Writes a record in it.
    pub async fn write_json<T>(&self, name: &'static str, value: T) -> Result<(), FolderError>
    where
        T: Serialize + Send + 'static,
    {
        self.on_thread(move |files| files.write_json(name, &value)).await
    }

    /// Writes a file for its owner alone.
    pub async fn write(&self, path: PathBuf, content: Vec<u8>) -> Result<(), FolderError> {
        self.on_thread(move |_| FolderFiles::write(&path, &mut content.as_slice())).await
    }

    /// Copies the file `source` of the node's owner to the file `name`.
    pub async fn copy(&self, source: PathBuf, name: &'static str) -> Result<(), FolderError> {
        self.on_thread(move |files| files.copy(&source, name)).await
    }

    /// Removes a file in it; one that is not there counts as removed.
    pub async fn remove_file(&self, name: &'static str) -> Result<(), FolderError> {
        self.on_thread(move |files| FolderFiles::remove_file(&files.file(name))).await
    }

    /// Removes what is there for one run only, and all of it when no disk of the desktop is left.
    /// Returns whether the folder is gone. What is left by an error is removed the next time.
    pub async fn remove_run(&self) -> Result<bool, FolderError> {
        self.on_thread(FolderFiles::remove_run).await
    }

    /// Removes it with all that is in it; one that is not there counts as removed. What is left by an
    /// error is removed the next time.
    pub async fn remove(&self) -> Result<(), FolderError> {
        self.on_thread(FolderFiles::remove_all).await
    }

    /// Makes the disk `name`: an overlay of `golden` with its size or a larger one, or an empty one. One that is there is
    /// an error: it was mounted since it was looked for.
    pub async fn make_disk(
        &self,
        name: &str,
        golden: Option<Golden>,
        size_gib: Option<i32>,
    ) -> Result<(), FolderError> {
        let name = name.to_owned();
        self.on_thread(move |files| {
            let path = files.disk(&name);
            let asked = size_gib.map(bytes).unwrap_or_default();
            if FolderFiles::exists(&path)? {
                return Err(failed("making", &path)(io::ErrorKind::AlreadyExists.into()));
            }
            let Some(golden) = golden else { return FolderFiles::make_image(&path, None, asked, false) };
            files.note_golden(&name, &golden)?;
            FolderFiles::make_image(&path, Some(&golden.path), asked.max(golden.virtual_size), false)
        })
        .await
    }

    /// Notes down that a machine is about to use these disks.
    pub async fn note_used(&self, disks: Vec<String>) -> Result<(), FolderError> {
        self.on_thread(move |files| files.note_used(&disks)).await
    }

    /// Forgets which disks were used: they are put aside, or gone with their desktop.
    pub async fn forget_used(&self) -> Result<(), FolderError> {
        self.on_thread(|files| FolderFiles::remove_file(&files.used)).await
    }

    /// Makes the disk `name` that is new at every start.
    pub async fn make_scratch(&self, name: &str, size_gib: i32) -> Result<(), FolderError> {
        let path = self.scratch(name);
        self.on_thread(move |_| FolderFiles::make_image(&path, None, bytes(size_gib), true)).await
    }

    /// Notes down what the golden image below the disk `name` is, where an earlier version made the disk
    /// and noted nothing.
    pub async fn adopt_disk(&self, name: &str, golden: Golden) -> Result<(), FolderError> {
        let name = name.to_owned();
        self.on_thread(move |files| {
            let record = files.file(&FolderFiles::golden_record(&name));
            if FolderFiles::exists(&record)? { Ok(()) } else { files.note_golden(&name, &golden) }
        })
        .await
    }

    /// Begins the serial log anew when the guest has filled it.
    pub async fn bound_serial_log(&self) -> Result<(), FolderError> {
        self.on_thread(FolderFiles::bound_serial_log).await
    }
}

/// Bytes of so many GiB.
pub fn bytes(gib: i32) -> u64 {
    u64::try_from(gib).unwrap_or_default() << 30
}

/// The boot of this host: another after each start of it.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
