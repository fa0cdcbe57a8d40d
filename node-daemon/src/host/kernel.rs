//! The kernel of this machine, or of the one below a root folder: the only place from which devices are changed.
#![expect(clippy::disallowed_methods, reason = "adapter: reads and writes sysfs and procfs")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, StatVfsMountFlags, StatxFlags, statvfs, statx};

use crate::devices::Kernel;

/// Most bytes taken of a file; sysfs gives no more than a page of text, and 4 KiB of configuration.
const MOST: u64 = 64 << 10;

/// The files below one root.
#[derive(Clone, Debug)]
pub struct HostKernel {
    root: PathBuf,
}

impl HostKernel {
    /// Below this root; `/` is this machine.
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

impl Kernel for HostKernel {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let mut bytes = vec![];
        File::open(self.at(path))?.take(MOST).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let written = || {
            // Nothing is ever made or cut here: one write to what the kernel shows.
            let mut file = File::options().write(true).open(self.at(path))?;
            let count = file.write(value.as_bytes())?;
            if count == value.len() { Ok(()) } else { Err(io::Error::other("it took only a part")) }
        };
        let result = written();
        match &result {
            Ok(()) => tracing::info!(path, value = value.trim(), "written"),
            Err(error) => tracing::warn!(path, value = value.trim(), %error, "not written"),
        }
        result
    }

    fn link(&self, path: &str) -> io::Result<String> {
        Ok(fs::read_link(self.at(path))?.to_string_lossy().into_owned())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let names =
            fs::read_dir(self.at(path))?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn open_devices(&self) -> io::Result<BTreeMap<String, u32>> {
        let mut opened = BTreeMap::new();
        for name in self.list("proc")? {
            let Ok(pid) = name.parse::<u32>() else { continue };
            // What this process has open, it lets go of itself.
            if pid == std::process::id() {
                continue;
            }
            let folder = self.at(&format!("proc/{pid}/fd"));
            let files = match fs::read_dir(&folder) {
                Ok(files) => files,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            for file in files {
                let file = match file {
                    Ok(file) => file.path(),
                    Err(error) if is_gone(&error) => break,
                    Err(error) => return Err(error),
                };
                if let Some(number) = device(&file)? {
                    opened.entry(number).or_insert(pid);
                }
            }
        }
        Ok(opened)
    }

    fn unable(&self) -> Option<String> {
        let sys = self.at("sys");
        if statvfs(&sys).is_ok_and(|seen| seen.f_flag.contains(StatVfsMountFlags::RDONLY)) {
            return Some(
                "the node daemon may not write to /sys, so it can make and unmake nothing: set nodeDaemon.privileged".into(),
            );
        }
        if !rustix::process::geteuid().is_root() {
            return Some(
                "the node daemon does not run as root, so it can make and unmake nothing on cards".into(),
            );
        }
        let second = self.read("proc/2/comm").unwrap_or_default();
        (second.trim_ascii() != b"kthreadd").then(|| {
            "the node daemon does not see the processes of the host, so it cannot tell who uses a card: set \
             nodeDaemon.privileged"
                .into()
        })
    }
}

/// The number of an open character device. What is said of it is what the kernel has already: a file system that is gone,
/// or that answers its user alone, is not asked, and has no devices. One below `/dev` that tells nothing may be any.
fn device(open: &Path) -> io::Result<Option<String>> {
    let target = match fs::read_link(open) {
        Ok(target) => target,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    // Sockets, pipes and the like have no path.
    if !target.is_absolute() {
        return Ok(None);
    }
    // Through the link, for a container has other names for the same device.
    let seen = match statx(CWD, open, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE) {
        Ok(seen) => seen,
        Err(error) if target.starts_with("/dev") && !is_gone(&error.into()) => return Err(error.into()),
        Err(_) => return Ok(None),
    };
    let is_device = FileType::from_raw_mode(seen.stx_mode.into()) == FileType::CharacterDevice;
    Ok(is_device.then(|| format!("{}:{}", seen.stx_rdev_major, seen.stx_rdev_minor)))
}

/// Whether a process ended while it was looked at.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use rustix::fs::{major, minor};

    use super::*;

    #[test]
    fn what_is_not_there_is_not_made_and_nothing_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sys")).unwrap();
        fs::write(folder.path().join("sys/file"), "before").unwrap();
        let kernel = HostKernel::new(folder.path());
        assert_eq!(kernel.write("sys/none", "1").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!folder.path().join("sys/none").exists());
        kernel.write("sys/file", "B").unwrap();
        assert_eq!(kernel.read("sys/file").unwrap(), b"Before");
        assert_eq!(kernel.list("sys").unwrap(), ["file"]);
        assert!(kernel.unable().is_some(), "no processes of a host are seen below it");
    }

    #[test]
    fn devices_that_are_open_are_found_by_their_numbers() {
        let open = File::open("/dev/null").unwrap();
        let number = open.metadata().unwrap().rdev();
        let mut other = std::process::Command::new("sleep").arg("60").stdin(open).spawn().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let processes = folder.path().join("proc");
        fs::create_dir(&processes).unwrap();
        for pid in [other.id(), std::process::id()] {
            std::os::unix::fs::symlink(format!("/proc/{pid}"), processes.join(pid.to_string())).unwrap();
        }
        let opened = HostKernel::new(folder.path()).open_devices().unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        let number = format!("{}:{}", major(number), minor(number));
        assert_eq!(opened.get(&number), Some(&other.id()), "and not this process");
    }
}
