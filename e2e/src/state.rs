//! State folders: where a control plane, a libvirtd and their logs live.
//!
//! Their paths are short, because a Unix socket's path has at most 107 bytes:
//! `/var/tmp/gpudesk/<8 hex digits>`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::node::cgroups;
use crate::processes::{self, Identity};

/// A folder that holds everything one environment leaves on disk.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    ephemeral: bool,
}

impl StateDir {
    /// A folder of this process alone, removed when dropped.
    ///
    /// Folders left by test processes that were killed are removed on the way,
    /// together with what they recorded as running.
    pub fn for_test(name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let base = base()?;
        sweep(&base);
        let own = Identity::of_this_process()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(short_hash(&format!("{name} {count} {} {}", own.pid(), own.start_time())));
        let state = Self::create(path, true)?;
        fs::write(state.path.join("owner"), serde_json::to_string(&own)?)?;
        Ok(state)
    }

    /// The folder of this name in this checkout: the same one in every run, kept when dropped.
    pub fn named(name: &str) -> Result<Self> {
        Self::named_in(&base()?, name)
    }

    /// The same below another folder than that of this process.
    pub(crate) fn named_in(base: &Path, name: &str) -> Result<Self> {
        Self::create(base.join(short_hash(name)), false)
    }

    fn create(path: PathBuf, ephemeral: bool) -> Result<Self> {
        for folder in ["logs", "processes"] {
            fs::create_dir_all(path.join(folder)).with_context(|| format!("create {}", path.display()))?;
        }
        // QEMU runs as another user and has to pass through to its own folders.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
        Ok(Self { path, ephemeral })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's own name: 8 hex digits, other ones for each folder on the machine.
    pub fn name(&self) -> Result<&str> {
        self.path.file_name().and_then(|name| name.to_str()).context("a state folder has a name")
    }

    /// A path in the folder.
    pub fn join(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.path.join(relative)
    }

    /// Where processes write their logs, one file each.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The log of the process of this name.
    pub fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    /// Copies all logs to `target/e2e-logs/<name>` of the checkout, and returns that folder.
    pub fn collect_logs(&self, name: &str) -> Result<PathBuf> {
        let to = checkout().join("target/e2e-logs").join(name);
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(self.logs())? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(to)
    }

    /// Removes the folder. Every process that uses it must have ended.
    pub fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }

    /// What libvirt finds out about QEMU: state folders beside each other share it.
    pub fn libvirt_cache(&self) -> PathBuf {
        self.path.with_file_name("libvirt-cache")
    }

    /// Removes the folder, and what state folders share when there is no other one.
    pub fn remove_last(&self) -> Result<()> {
        self.remove()?;
        let cache = self.libvirt_cache();
        let beside = fs::read_dir(self.path.parent().context("a state folder has a parent")?)?;
        if cache.exists() && beside.flatten().all(|entry| entry.path() == cache) {
            fs::remove_dir_all(&cache).with_context(|| format!("remove {}", cache.display()))?;
        }
        Ok(())
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if self.ephemeral
            && let Err(error) = self.remove()
        {
            tracing::warn!("{error:#}");
        }
    }
}

/// The root of the checkout this was built from.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// Copies a file into a folder, for all to read, if it is not there yet: it appears whole or not at all.
pub(crate) fn copy_whole(file: &Path, folder: &Path) -> Result<()> {
    let to = folder.join(file.file_name().with_context(|| format!("{} is no file", file.display()))?);
    if !to.exists() {
        let partial = to.with_extension("partial");
        fs::copy(file, &partial).with_context(|| format!("copy {}", file.display()))?;
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o644))?;
        fs::rename(&partial, &to)?;
    }
    Ok(())
}

/// The blocks of shell commands in a section of the README.
pub fn readme_commands(heading: &str) -> Result<Vec<String>> {
    let readme = fs::read_to_string(checkout().join("README.md"))?;
    let (_, section) = readme.split_once(heading).with_context(|| format!("no section {heading}"))?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let blocks = section.split("```sh\n").skip(1);
    Ok(blocks.filter_map(|block| Some(block.split_once("```")?.0.to_owned())).collect())
}

/// `GPUDESK_STATE_DIR`, else `/var/tmp/gpudesk` for root and `/var/tmp/gpudesk-<uid>` for others.
fn base() -> Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let base = match std::env::var_os("GPUDESK_STATE_DIR") {
        Some(folder) => PathBuf::from(folder),
        None if user == 0 => PathBuf::from("/var/tmp/gpudesk"),
        None => PathBuf::from(format!("/var/tmp/gpudesk-{user}")),
    };
    fs::create_dir_all(&base).with_context(|| format!("create {}", base.display()))?;
    // Everyone may create folders in /var/tmp: one that another user made first is not to be trusted.
    let owner = fs::symlink_metadata(&base)?.uid();
    ensure!(owner == user, "{} belongs to user {owner}, not to user {user}", base.display());
    fs::set_permissions(&base, fs::Permissions::from_mode(0o711))?;
    Ok(base)
}

/// Of the checkout's path and a name: the same in every run, whatever built it.
fn short_hash(name: &str) -> String {
    format!("{:08x}", hash(&[checkout().as_os_str().as_encoded_bytes(), &[0], name.as_bytes()].concat()))
}

/// 32 bits of FNV-1a.
pub fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Removes the folders of test processes that are gone. What cannot be removed stays: another
/// process may be sweeping too.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for folder in entries.flatten().map(|entry| entry.path()) {
        let owner = fs::read_to_string(folder.join("owner"))
            .ok()
            .and_then(|text| serde_json::from_str::<Identity>(&text).ok());
        if owner.is_some_and(|owner| !owner.is_running()) {
            processes::kill_recorded(&folder);
            cgroups::remove_recorded(&folder);
            let _ = fs::remove_dir_all(&folder);
        }
    }
}
