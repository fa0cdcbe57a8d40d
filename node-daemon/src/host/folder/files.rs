//! What is done in a desktop's folder, where it may block.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    fs::{CWD, OFlags, RenameFlags, renameat_with},
    io::Errno,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{FolderError, Owner};
use crate::host::images::Golden;

/// Bytes of the serial log on the host's disk from which on it begins anew.
const SERIAL_LOG_LIMIT: u64 = 16 << 20;
/// A record is a few hundred bytes.
const RECORD_LIMIT: u64 = 1 << 20;

/// The files of one desktop.
#[derive(Clone, Debug)]
pub struct FolderFiles {
    pub(super) path: PathBuf,
    /// Where it stands which disks were used: outside of the folder, so that it is known when that is lost.
    pub(super) used: PathBuf,
}

/// Disks of a desktop that a machine of it has used, and that so hold what nothing can make again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedDisks {
    /// Their names.
    pub disks: BTreeSet<String>,
    /// Their names are not known, for the folder and what was noted of it are lost: any may be one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub any: bool,
    /// The word by which its user gave up those that were lost. It is done, and holds for no later loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abandoned: Option<String>,
    /// Whose they are; absent in records of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

pub(super) fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let what = format!("{doing} {}", path.display());
    move |source| FolderError::Io { what, source }
}

impl FolderFiles {
    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The disk of this name that lives as long as the desktop.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.file(&format!("disk-{name}.qcow2"))
    }

    /// The name of the record of the golden image below the disk `name`.
    pub fn golden_record(name: &str) -> String {
        format!("golden-{name}.json")
    }

    /// Whether `path` is there, whatever it is.
    ///
    /// # Errors
    /// When that cannot be told; that is not "no".
    pub fn exists(path: &Path) -> Result<bool, FolderError> {
        path.try_exists().map_err(failed("looking for", path))
    }

    pub(super) fn create(&self, owner: &Owner) -> Result<(), FolderError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o711).create(&self.path).map_err(failed("making", &self.path))?;
        self.write_json("owner.json", owner)
    }

    /// A record in it; `None` when there is none.
    ///
    /// # Errors
    /// [`FolderError::Odd`] for one that cannot be understood, else [`FolderError::Io`].
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FolderError> {
        Self::read_record(&self.file(name))
    }

    /// A record beside the folders; `None` when there is none.
    ///
    /// # Errors
    /// [`FolderError::Odd`] for one that cannot be understood, else [`FolderError::Io`].
    pub fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FolderError> {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("reading", path)(error)),
        };
        let mut bytes = vec![];
        file.take(RECORD_LIMIT).read_to_end(&mut bytes).map_err(failed("reading", path))?;
        let odd = |error: serde_json::Error| FolderError::Odd {
            path: path.display().to_string(),
            why: error.to_string(),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(odd)
    }

    pub(super) fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), FolderError> {
        Self::write_record(&self.file(name), value)
    }

    /// Writes a record beside the folders, whole or not at all; what is written outlives a loss of power.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn write_record<T: Serialize>(path: &Path, value: &T) -> Result<(), FolderError> {
        let bytes = serde_json::to_vec(value).map_err(|error| failed("writing", path)(error.into()))?;
        Self::write(path, &mut bytes.as_slice())?;
        sync_folder(path).map_err(failed("writing", path))
    }

    /// Which disks were used; `None` when nothing was noted down, which an earlier version did not do.
    ///
    /// # Errors
    /// When that cannot be told; that is not "none".
    pub fn used(&self) -> Result<Option<UsedDisks>, FolderError> {
        Self::read_record(&self.used)
    }

    /// Notes down which disks were used.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn write_used(&self, used: &UsedDisks) -> Result<(), FolderError> {
        let folder = self.used.parent().unwrap_or(Path::new("/"));
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(failed("making", folder))?;
        // When the folder is lost, nothing else tells whose they were.
        let owner = used.owner.clone().or_else(|| self.read_json("owner.json").ok().flatten());
        Self::write_record(&self.used, &UsedDisks { owner, ..used.clone() })
    }

    /// Notes anew which disks were used, where what was noted cannot be understood and a machine runs with all of
    /// them: those that are here, and `more`, of which one may have been removed beside the machine.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn note_used_anew(
        &self,
        owner: &Owner,
        more: BTreeSet<String>,
        abandoned: Option<String>,
    ) -> Result<Option<bool>, FolderError> {
        let mut disks = more;
        disks.extend(self.disk_names()?.unwrap_or_default());
        let has_disks = !disks.is_empty();
        self.write_used(&UsedDisks { disks, any: false, abandoned, owner: Some(owner.clone()) })?;
        Ok(Some(has_disks))
    }

    pub(super) fn note_used(&self, disks: &[String]) -> Result<(), FolderError> {
        let before = self.used()?.unwrap_or_default();
        let mut used = before.clone();
        used.disks.extend(disks.iter().cloned());
        // A machine only starts where all of them are there.
        used.any &= disks.is_empty();
        if used == before { Ok(()) } else { self.write_used(&used) }
    }

    /// Whether disks are here that live as long as their desktop; `None` when nothing here tells.
    ///
    /// # Errors
    /// When that cannot be told; that is not "none".
    pub fn has_disks(&self) -> Result<Option<bool>, FolderError> {
        if let Some(used) = self.used()? {
            return Ok(Some(used.any || !used.disks.is_empty()));
        }
        let disks = self.disk_names()?;
        Ok(disks.map(|disks| !disks.is_empty()))
    }

    /// The names of the disks in the folder that live as long as their desktop; `None` without folder.
    ///
    /// # Errors
    /// When that cannot be told; that is not "none".
    pub fn disk_names(&self) -> Result<Option<BTreeSet<String>>, FolderError> {
        match disk_names(&self.path) {
            Ok(names) => Ok(Some(names)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("listing", &self.path)(error)),
        }
    }

    /// Names of the leftovers of this desktop, as far as they can be told.
    pub fn left_over(&self) -> Vec<String> {
        let state = self.path.ancestors().nth(2).unwrap_or(&self.path);
        let uid = self.path.file_name().unwrap_or_default().to_string_lossy();
        let names = fs::read_dir(state.join("leftovers")).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(&format!("{uid}."))).collect();
        names.sort();
        names
    }

    /// Whether the folder is there.
    ///
    /// # Errors
    /// When that cannot be told; that is not "no".
    pub fn is_there(&self) -> Result<bool, FolderError> {
        Self::exists(&self.path)
    }

    pub(super) fn write(path: &Path, content: &mut dyn io::Read) -> Result<(), FolderError> {
        let new = temporary(path);
        let mut written = || {
            let mut file = replacing(&new)?;
            io::copy(content, &mut file)?;
            file.sync_data()?;
            fs::rename(&new, path)
        };
        written().map_err(failed("writing", path))
    }

    /// Copies `source`, a file of the node's owner, to the file `name`: libvirt gives what a machine
    /// starts from to QEMU's user for the time it runs.
    pub(super) fn copy(&self, source: &Path, name: &str) -> Result<(), FolderError> {
        let (to, new) = (self.file(name), temporary(&self.file(name)));
        let copied = || {
            let mut from = fs::File::open(source)?;
            // What starts the machine this once needs no safety from a loss of power.
            io::copy(&mut from, &mut replacing(&new)?)?;
            fs::rename(&new, &to)
        };
        copied().map_err(failed("copying", source))
    }

    pub(super) fn remove_file(path: &Path) -> Result<(), FolderError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
            _ => Ok(()),
        }
    }

    pub(super) fn remove_run(&self) -> Result<bool, FolderError> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(failed("listing", &self.path)(error)),
        };
        let mut keeps_disks = false;
        for entry in entries {
            let path = entry.map_err(failed("listing", &self.path))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            keeps_disks |= is_disk(&path);
            if name.starts_with("scratch-") || ["run.json", "files.json", "kernel", "initrd"].contains(&name)
            {
                Self::remove_file(&path)?;
            }
        }
        if !keeps_disks {
            self.remove()?;
        }
        Ok(!keeps_disks)
    }

    /// The last thing that is forgotten is which disks there were.
    pub(super) fn remove_all(&self) -> Result<(), FolderError> {
        self.remove()?;
        Self::remove_file(&self.used)
    }

    fn remove(&self) -> Result<(), FolderError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("removing", &self.path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Makes the disk `path` of `bytes`, and replaces one that is there only if told so. `qemu-img` opens nothing but the new file: what it writes into
    /// the header was looked at before, and is not followed.
    pub(crate) fn make_image(
        path: &Path,
        golden: Option<&Path>,
        bytes: u64,
        replace: bool,
    ) -> Result<(), FolderError> {
        let new = temporary(path);
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]);
        if let Some(golden) = golden {
            command.args(["-u", "-F", "qcow2", "-b"]).arg(golden);
        }
        command.arg(&new).arg(bytes.to_string());
        let output = command.stdin(Stdio::null()).output();
        let output = output.map_err(failed("starting qemu-img for", path))?;
        if !output.status.success() {
            let message: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(512).collect();
            return Err(FolderError::Image { what: format!("making {}", path.display()), message });
        }
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).map_err(failed("protecting", &new))?;
        let named = if replace { fs::rename(&new, path) } else { name_new(&new, path) };
        named.map_err(failed("writing", path))
    }

    /// Notes down what the golden image below the disk `name` is, before the disk is there.
    pub(super) fn note_golden(&self, name: &str, golden: &Golden) -> Result<(), FolderError> {
        let record = Self::golden_record(name);
        match golden.identity() {
            Some(identity) => self.write_json(&record, &identity),
            None => Ok(()),
        }
    }

    /// Begins the serial log anew when it has grown large: where libvirt has no virtlogd, nothing else
    /// keeps a guest that prints for ever from filling the host's disk. QEMU only ever appends to it.
    pub(super) fn bound_serial_log(&self) -> Result<(), FolderError> {
        let path = self.file("serial.log");
        let bound = || {
            let mut options = fs::OpenOptions::new();
            let file = options.write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path)?;
            if file.metadata()?.blocks().saturating_mul(512) > SERIAL_LOG_LIMIT {
                file.set_len(0)
            } else {
                Ok(())
            }
        };
        match bound() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("bounding", &path)(error)),
            _ => Ok(()),
        }
    }
}

/// Whether a file is a disk that lives as long as its desktop, and not one that was begun and never finished.
fn is_disk(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("disk-") && path.extension().is_some_and(|end| end != "new")
}

/// The names of such disks in a folder.
pub(in crate::host) fn disk_names(folder: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()?.strip_prefix("disk-"));
        names.extend(stem.filter(|_| is_disk(&path)).map(ToOwned::to_owned));
    }
    Ok(names)
}

/// Gives the file `new` the name `path`, unless something has that name.
fn name_new(new: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, path, RenameFlags::NOREPLACE) {
        // Not every file system knows that, NFS for one.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if !path.try_exists()? => fs::rename(new, path),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Err(io::ErrorKind::AlreadyExists.into()),
        named => Ok(named?),
    }
}

/// Sees to it that the name of a file outlives a loss of power.
pub(in crate::host) fn sync_folder(file: &Path) -> io::Result<()> {
    fs::File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// A file for its owner alone, empty, whatever was there.
fn replacing(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

pub(super) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}
