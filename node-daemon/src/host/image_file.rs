//! An image file as it is at this moment: what it is, whose, and how it begins.
//!
//! A file is found without being opened and only then, when it is a regular one, opened: to open a
//! device or a pipe can do something by itself.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, Stat, fstat, open, openat, readlinkat, stat},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::qcow2::{ENOUGH, Header, HeaderError};

/// Which file it is, whatever its names. Good for as long as the host is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    device: u64,
    inode: u64,
}

/// An image file at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// Its path, as it is named to libvirt.
    pub path: PathBuf,
    /// Which file it is.
    pub id: FileId,
    /// Bytes in it.
    pub size: u64,
    /// When its content was last changed, in nanoseconds since 1970.
    pub modified: i64,
    /// Names that it has.
    pub links: u64,
    /// Its owner's user number.
    pub owner: u32,
    /// Who may not read it although all should, when somebody may not.
    pub closed: Option<Closed>,
}

/// A file or its folder that not everybody may read or enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The file or the folder.
    pub path: PathBuf,
    /// Its permissions.
    pub mode: u32,
    /// What opens it.
    pub remedy: &'static str,
}

/// A regular file that was found, with the way to read it.
#[derive(Debug)]
pub struct Found {
    /// What it is.
    pub file: ImageFile,
    handle: OwnedFd,
}

impl Found {
    /// The file at `path`, links followed; `None` when there is something else.
    ///
    /// # Errors
    /// The kernel's.
    pub fn at(path: &Path) -> Result<Option<Self>, Errno> {
        let handle = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Self::opened(path.to_owned(), handle)
    }

    /// The file behind `handle`, which was opened as a path only; `None` when it is something else.
    ///
    /// # Errors
    /// The kernel's.
    pub fn opened(path: PathBuf, handle: OwnedFd) -> Result<Option<Self>, Errno> {
        let status = fstat(&handle)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let Stat { st_dev, st_ino, st_nlink, st_uid, st_size, st_mtime, st_mtime_nsec, .. } = status;
        let file = ImageFile {
            id: FileId { device: st_dev, inode: st_ino },
            size: u64::try_from(st_size).unwrap_or_default(),
            modified: nanoseconds(st_mtime, st_mtime_nsec),
            links: st_nlink,
            owner: st_uid,
            closed: closed(&path, status.st_mode),
            path,
        };
        Ok(Some(Self { file, handle }))
    }

    /// Where it really is, without any link.
    ///
    /// # Errors
    /// The kernel's.
    pub fn real_path(&self) -> Result<PathBuf, Errno> {
        let link = readlinkat(CWD, self.itself(), vec![])?;
        Ok(PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(
            link.into_bytes(),
        )))
    }

    /// Its header as a qcow2 image.
    ///
    /// # Errors
    /// Of the outer kind: the kernel's.
    pub fn header(&self) -> Result<Result<Header, HeaderError>, Errno> {
        let file = open(self.itself(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut bytes = vec![0; ENOUGH];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match rustix::io::read(&file, rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(Header::parse(&bytes))
    }

    fn itself(&self) -> String {
        format!("/proc/self/fd/{}", self.handle.as_raw_fd())
    }
}

fn closed(path: &Path, mode: u32) -> Option<Closed> {
    if mode & 0o004 == 0 {
        return Some(Closed { path: path.to_owned(), mode: mode & 0o7777, remedy: "chmod o+r" });
    }
    let folder = path.parent()?;
    let mode = stat(folder).ok()?.st_mode;
    (mode & 0o001 == 0).then(|| Closed { path: folder.to_owned(), mode: mode & 0o7777, remedy: "chmod o+x" })
}

/// Nanoseconds since 1970 of a time until 2262.
fn nanoseconds(seconds: i64, rest: u64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(i64::try_from(rest).unwrap_or_default())
}
