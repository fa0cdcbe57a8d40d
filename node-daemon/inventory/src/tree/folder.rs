//! A root folder.
#![expect(clippy::disallowed_methods, reason = "adapter: reads files of the host")]

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use rustix::{
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{ATTRIBUTE, Kind, NAMES};

/// How often a path is followed anew that the kernel could not follow for renames elsewhere (openat2(2), EAGAIN).
const RETRIES: usize = 256;
/// First bytes asked for; attributes of sysfs are no longer than a page.
const PAGE: usize = 4096;
/// Folders in which pods put files: device plugins have theirs below the first.
const OF_PODS: [&str; 2] = ["var/lib/kubelet/", "run/"];

#[derive(Debug)]
pub(super) struct Folder {
    root: OwnedFd,
    path: PathBuf,
    /// Whether the root is that of this process, where nothing needs to be confined.
    is_root: bool,
}

impl Folder {
    /// A folder, or the one folder in it that looks like a root.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut path = path.canonicalize()?;
        let is_root = path == Path::new("/");
        if !is_root && !looks_like_root(&path) {
            let inside = fs::read_dir(&path)?.flatten().map(|entry| entry.path());
            let roots: Vec<PathBuf> =
                inside.filter(|path| !path.is_symlink() && looks_like_root(path)).take(2).collect();
            if let [only] = roots.as_slice() {
                path.clone_from(only);
            }
        }
        let root = File::open(&path)?.into();
        Ok(Self { root, path, is_root })
    }

    /// Opens below the root; a link that points out of it stays in it.
    fn at(&self, dir: Option<&OwnedFd>, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        // openat2 refuses them where nothing is opened for reading.
        let reading =
            if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK | OFlags::NOCTTY };
        let flags = flags | OFlags::CLOEXEC | reading;
        let base = dir.unwrap_or(&self.root);
        if self.is_root {
            return Ok(rustix::fs::openat(base, path, flags, Mode::empty())?);
        }
        // With a folder as base, that folder is the root for its links: sysfs has none to follow there.
        let confined = || rustix::fs::openat2(base, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        let mut opened = confined();
        // The kernel answers so when anything on the machine was renamed while it followed a `..` of a link.
        for _ in 0..RETRIES {
            if opened.as_ref().err() != Some(&Errno::AGAIN) {
                break;
            }
            opened = confined();
        }
        Ok(match opened {
            Err(Errno::NOSYS) => self.by_hand(base.as_fd(), path, flags)?,
            result => result?,
        })
    }

    /// For kernels before 5.6 and sandboxes: no link may leave the root.
    fn by_hand(&self, base: BorrowedFd<'_>, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let file = rustix::fs::openat(base, path, flags | OFlags::PATH, Mode::empty())?;
        let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if !real.starts_with(&self.path) {
            return Err(Errno::XDEV.into());
        }
        Ok(rustix::fs::openat(base, path, flags, Mode::empty())?)
    }

    /// Opens a file that is not the kernel's. To open a device or a pipe can do something by itself, so it is found without
    /// being opened, and opened only when it is a regular one. Where pods put files no link is followed.
    fn regular(&self, path: &str) -> io::Result<OwnedFd> {
        let found = if OF_PODS.iter().any(|head| path.starts_with(head)) {
            let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
            let folder = self.at(None, folder, OFlags::PATH | OFlags::DIRECTORY)?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&folder, name, flags, Mode::empty())?
        } else {
            self.at(None, path, OFlags::PATH)?
        };
        let what = match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
                return Ok(rustix::fs::openat(CWD, itself, flags, Mode::empty())?);
            }
            FileType::Symlink => "a symbolic link",
            FileType::Directory => "a folder",
            FileType::CharacterDevice | FileType::BlockDevice => "a device",
            FileType::Fifo | FileType::Socket | FileType::Unknown => "a pipe or a socket",
        };
        Err(io::Error::other(format!("it is {what} and no regular file, so it is not opened")))
    }

    pub(super) fn read(&self, dir: Option<&OwnedFd>, path: &str, limit: usize) -> io::Result<Vec<u8>> {
        let is_kernels = dir.is_some() || path.starts_with("sys/") || path.starts_with("proc/");
        let file = if is_kernels { self.at(dir, path, OFlags::RDONLY)? } else { self.regular(path)? };
        if limit > ATTRIBUTE {
            let mut bytes = vec![];
            File::from(file).take(limit as u64).read_to_end(&mut bytes)?;
            return Ok(bytes);
        }
        let mut bytes = Vec::new();
        let mut buffer = [0_u8; PAGE];
        loop {
            let wanted = PAGE.min(limit - bytes.len());
            let count = rustix::io::read(&file, &mut buffer[..wanted])?;
            bytes.extend_from_slice(&buffer[..count]);
            // A file of sysfs is read whole by one call; procfs may give less than there is.
            let whole = count < wanted && (dir.is_some() || path.starts_with("sys/"));
            if count == 0 || whole || bytes.len() >= limit {
                return Ok(bytes);
            }
        }
    }

    pub(super) fn link(&self, dir: Option<&OwnedFd>, path: &str) -> io::Result<String> {
        let target =
            if let (false, Some((folder, name))) = (self.is_root || dir.is_some(), path.rsplit_once('/')) {
                let folder = self.at(None, folder, OFlags::PATH | OFlags::DIRECTORY)?;
                rustix::fs::readlinkat(&folder, name, Vec::with_capacity(256))?
            } else {
                rustix::fs::readlinkat(dir.unwrap_or(&self.root), path, Vec::with_capacity(256))?
            };
        Ok(target.to_string_lossy().into_owned())
    }

    pub(super) fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let dir = self.at(None, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = vec![];
        for entry in rustix::fs::Dir::new(dir)?.take(NAMES) {
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Whether it is the root of this machine.
    pub(super) fn is_root(&self) -> bool {
        self.is_root
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        if self.is_root {
            return rustix::fs::accessat(&self.root, path, Access::EXISTS, AtFlags::empty()).is_ok();
        }
        self.at(None, path, OFlags::PATH).is_ok()
    }

    pub(super) fn dir(&self, path: &str) -> io::Result<OwnedFd> {
        self.at(None, path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Whether a block device is held by somebody who lets nobody else have it. Only of this machine.
    pub(super) fn is_claimed(&self, path: &str) -> bool {
        let is_block = || {
            let stat = rustix::fs::statat(&self.root, path, AtFlags::empty());
            stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)
        };
        if !self.is_root || !is_block() {
            return false;
        }
        // Without "create" this asks for the device alone, as mount does. Source: open(2), O_EXCL.
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
        matches!(rustix::fs::openat(&self.root, path, flags, Mode::empty()), Err(Errno::BUSY))
    }

    /// What is at a path, without following a link in its last part.
    pub(super) fn kind(&self, path: &str) -> Option<Kind> {
        let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
        let folder = self.at(None, folder, OFlags::PATH | OFlags::DIRECTORY).ok()?;
        let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Folder,
            FileType::Symlink => Kind::Link,
            _ => Kind::File,
        })
    }
}

fn looks_like_root(path: &Path) -> bool {
    path.join("sys").is_dir() || path.join("proc").is_dir()
}
