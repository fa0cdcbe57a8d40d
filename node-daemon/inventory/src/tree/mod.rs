//! Reading files of a host: below a root folder, or out of a capture of one.
//!
//! A [`Tree`] never leaves its root: a symbolic link that points out of it, as a hostile capture may
//! hold, is followed as if the root were `/`. What it reads is bounded, whatever the file claims to be.

mod archive;
mod capture;
mod folder;
mod processes;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rustix::fd::OwnedFd;
use thiserror::Error;

use self::{archive::Archive, folder::Folder};
pub use self::{
    capture::{CaptureError, Recording},
    processes::Opened,
};
use crate::topology::kernel_text;

/// Most bytes taken of a file of sysfs or procfs.
pub const ATTRIBUTE: usize = 64 << 10;
/// Most bytes taken of any other file, such as `pci.ids`.
pub const LARGE: usize = 8 << 20;
/// Most names taken of one folder.
const NAMES: usize = 1 << 16;
/// Most paths remembered as denied.
const DENIED: usize = 64;

/// Why a tree cannot be opened.
#[derive(Debug, Error)]
pub enum TreeError {
    /// Neither a folder nor a file that can be read.
    #[error("{path}: {source}", path = path.display())]
    Open {
        /// The path given.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file that is no capture.
    #[error(
        "{path} is no capture: {why}; give the root folder of a host or a .tar.zst that discover --capture wrote",
        path = path.display()
    )]
    NotACapture {
        /// The path given.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The files of a host.
#[derive(Debug)]
pub struct Tree {
    source: Source,
    recording: Option<Mutex<Recording>>,
    denied: Mutex<BTreeSet<String>>,
    /// Files that are not opened, each with why.
    refused: Mutex<BTreeSet<String>>,
}

#[derive(Debug)]
enum Source {
    Folder(Folder),
    Archive(Archive),
}

/// A folder of a tree, opened once for many reads.
#[derive(Debug)]
pub struct Dir<'a> {
    tree: &'a Tree,
    path: String,
    handle: Handle,
}

#[derive(Debug)]
enum Handle {
    Folder(OwnedFd),
    /// Path in an archive, without symbolic links.
    Archive(String),
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Folder,
    Link,
}

impl Source {
    fn kind(&self, path: &str) -> Option<Kind> {
        match self {
            Self::Folder(folder) => folder.kind(path),
            Self::Archive(archive) => archive.kind(path),
        }
    }

    fn link(&self, path: &str) -> io::Result<String> {
        match self {
            Self::Folder(folder) => folder.link(None, path),
            Self::Archive(archive) => archive.link(path),
        }
    }
}

impl Tree {
    /// The host whose root folder is `path` (`/` for this machine), or that a capture holds.
    ///
    /// # Errors
    /// [`TreeError`], naming the path.
    pub fn open(path: &Path) -> Result<Self, TreeError> {
        let open = |source| TreeError::Open { path: path.into(), source };
        let source = if path.is_dir() {
            Source::Folder(Folder::open(path).map_err(open)?)
        } else {
            Source::Archive(Archive::open(path)?)
        };
        Ok(Self { source, recording: None, denied: Mutex::default(), refused: Mutex::default() })
    }

    /// The same tree, which remembers from now on what is read of it.
    #[must_use]
    pub fn recording(self) -> Self {
        Self { recording: Some(Mutex::default()), ..self }
    }

    /// What was read since [`Tree::recording`].
    pub fn recorded(&self) -> Option<Recording> {
        let recording = self.recording.as_ref()?;
        Some(recording.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Whether this is a machine or a folder like one, rather than an archive.
    pub fn is_folder(&self) -> bool {
        matches!(self.source, Source::Folder(_))
    }

    /// Files that are there and may not be read, as far as they were asked for.
    pub fn denied(&self) -> Vec<String> {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Files that are there and were not opened since this was last asked, each with why.
    pub fn take_refused(&self) -> Vec<String> {
        std::mem::take(&mut *self.refused.lock().unwrap_or_else(PoisonError::into_inner))
            .into_iter()
            .collect()
    }

    /// Whether it is known that there is no such thing on the host. What a folder like one or an archive
    /// does not hold may be there on the host: only this machine, and a capture that says so, tell.
    pub fn is_absent(&self, path: &str) -> bool {
        let absent = match &self.source {
            Source::Folder(folder) => folder.is_root() && !folder.exists(path),
            Source::Archive(archive) => archive.is_absent(path),
        };
        if absent {
            self.record(|recording, _| recording.add_absence(path));
        }
        absent
    }

    /// At most `limit` bytes of a file as text, up to the first NUL; `None` when it is not there or cannot be read.
    pub fn head(&self, path: &str, limit: usize) -> Option<String> {
        let bytes = match &self.source {
            Source::Folder(folder) => folder.read(None, path, limit),
            Source::Archive(archive) => archive.read(path, limit),
        };
        self.note(path, bytes)
    }

    /// At most `limit` bytes of a file as they are; `None` when it is not there or cannot be read.
    pub fn bytes(&self, path: &str, limit: usize) -> Option<Vec<u8>> {
        let bytes = match &self.source {
            Source::Folder(folder) => folder.read(None, path, limit),
            Source::Archive(archive) => archive.read(path, limit),
        };
        let bytes = self.known(path, bytes)?;
        self.record(|recording, source| recording.add_file(source, path, &bytes));
        Some(bytes)
    }

    /// What `take` reads out of a file of at most `limit` bytes. A capture carries away what `keep` writes of that alone,
    /// and `take` must read the same out of it.
    ///
    /// # Errors
    /// Why the file tells nothing, in words.
    pub fn distilled<T>(
        &self,
        path: &str,
        limit: usize,
        take: impl FnOnce(&[u8]) -> Result<T, String>,
        keep: impl FnOnce(&T) -> Option<Vec<u8>>,
    ) -> Result<T, String> {
        let most = limit.saturating_add(1);
        let bytes = match &self.source {
            Source::Folder(folder) => folder.read(None, path, most),
            Source::Archive(archive) => archive.read(path, most),
        };
        let bytes = bytes.map_err(|error| {
            let why = error.to_string();
            if error.get_ref().is_none() {
                self.known::<()>(path, Err(error));
            } else {
                self.record(|recording, source| recording.add_denial(source, path));
            }
            why
        })?;
        if bytes.len() > limit {
            return Err(format!("it is larger than {} KiB", limit >> 10));
        }
        let taken = take(&bytes)?;
        self.record(|recording, source| {
            if let Some(kept) = keep(&taken) {
                recording.add_file(source, path, &kept);
            }
        });
        Ok(taken)
    }

    /// A file of sysfs or procfs as text.
    pub fn text(&self, path: &str) -> Option<String> {
        self.head(path, ATTRIBUTE)
    }

    /// A file that holds one line: that line, without blanks around it. `None` when it is empty.
    pub fn line(&self, path: &str) -> Option<String> {
        one_line(&self.text(path)?)
    }

    /// Where a symbolic link points, as it is written there.
    pub fn link(&self, path: &str) -> Option<String> {
        let target = self.known(path, self.source.link(path))?;
        self.record(|recording, source| recording.add_link(source, path));
        Some(target)
    }

    /// The last part of where a symbolic link points.
    pub fn link_name(&self, path: &str) -> Option<String> {
        last_part(&self.link(path)?)
    }

    /// Those names in a folder that `keep` keeps, sorted; none when there is no such folder.
    pub fn names(&self, path: &str, keep: impl Fn(&str) -> bool) -> Vec<String> {
        let names = match &self.source {
            Source::Folder(folder) => folder.names(path),
            Source::Archive(archive) => archive.names(path),
        };
        let Some(mut names) = self.known(path, names) else { return vec![] };
        names.retain(|name| keep(name));
        names.sort_unstable();
        self.record(|recording, source| recording.add_names(source, path, &names));
        names
    }

    /// Whether there is a file, folder or device.
    pub fn exists(&self, path: &str) -> bool {
        let there = match &self.source {
            Source::Folder(folder) => folder.exists(path),
            Source::Archive(archive) => archive.exists(path),
        };
        if there {
            self.record(|recording, source| recording.add_existence(source, path));
        }
        there
    }

    /// A folder, for many reads.
    pub fn dir(&self, path: &str) -> Option<Dir<'_>> {
        let handle = match &self.source {
            Source::Folder(folder) => self.known(path, folder.dir(path)).map(Handle::Folder)?,
            Source::Archive(archive) => Handle::Archive(archive.dir(path)?),
        };
        Some(Dir { tree: self, path: path.into(), handle })
    }

    fn note(&self, path: &str, bytes: io::Result<Vec<u8>>) -> Option<String> {
        let bytes = self.known(path, bytes)?;
        self.record(|recording, source| recording.add_file(source, path, &bytes));
        Some(as_text(bytes))
    }

    fn known<T>(&self, path: &str, result: io::Result<T>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        // What the kernel says has a number and no words.
        let refused = error.get_ref().map(|why| format!("{path}: {why}"));
        if refused.is_none() && error.kind() != io::ErrorKind::PermissionDenied {
            return None;
        }
        let (list, entry) = match refused {
            Some(words) => (&self.refused, words),
            None => (&self.denied, path.to_owned()),
        };
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() < DENIED {
            list.insert(entry);
        }
        drop(list);
        self.record(|recording, source| recording.add_denial(source, path));
        None
    }

    fn record(&self, add: impl FnOnce(&mut Recording, &Source)) {
        if let Some(recording) = &self.recording {
            add(&mut recording.lock().unwrap_or_else(PoisonError::into_inner), &self.source);
        }
    }
}

impl Dir<'_> {
    /// At most `limit` bytes of a file of the folder as they are.
    pub fn bytes(&self, name: &str, limit: usize) -> Option<Vec<u8>> {
        let bytes = match (&self.tree.source, &self.handle) {
            (Source::Folder(folder), Handle::Folder(dir)) => folder.read(Some(dir), name, limit),
            (Source::Archive(archive), Handle::Archive(path)) => {
                archive.read(&format!("{path}/{name}"), limit)
            }
            (Source::Folder(_), Handle::Archive(_)) | (Source::Archive(_), Handle::Folder(_)) => return None,
        };
        let path = format!("{}/{name}", self.path);
        let bytes = self.tree.known(&path, bytes)?;
        self.tree.record(|recording, source| recording.add_file(source, &path, &bytes));
        Some(bytes)
    }

    /// A file of the folder as text.
    pub fn text(&self, name: &str) -> Option<String> {
        let bytes = match (&self.tree.source, &self.handle) {
            (Source::Folder(folder), Handle::Folder(dir)) => folder.read(Some(dir), name, ATTRIBUTE),
            (Source::Archive(archive), Handle::Archive(path)) => {
                archive.read(&format!("{path}/{name}"), ATTRIBUTE)
            }
            (Source::Folder(_), Handle::Archive(_)) | (Source::Archive(_), Handle::Folder(_)) => return None,
        };
        // The path is put together only where somebody wants it.
        if self.tree.recording.is_none() && bytes.is_ok() {
            return bytes.ok().map(as_text);
        }
        self.tree.note(&format!("{}/{name}", self.path), bytes)
    }

    /// A file that holds one line: that line, without blanks around it.
    pub fn line(&self, name: &str) -> Option<String> {
        one_line(&self.text(name)?)
    }

    /// Where a symbolic link of the folder points, as it is written there.
    pub fn link(&self, name: &str) -> Option<String> {
        let target = match (&self.tree.source, &self.handle) {
            (Source::Folder(folder), Handle::Folder(dir)) => folder.link(Some(dir), name).ok()?,
            (Source::Archive(archive), Handle::Archive(path)) => {
                archive.link(&format!("{path}/{name}")).ok()?
            }
            (Source::Folder(_), Handle::Archive(_)) | (Source::Archive(_), Handle::Folder(_)) => return None,
        };
        self.tree.record(|recording, source| recording.add_link(source, &format!("{}/{name}", self.path)));
        Some(target)
    }

    /// The last part of where a symbolic link of the folder points.
    pub fn link_name(&self, name: &str) -> Option<String> {
        last_part(&self.link(name)?)
    }

    /// The path below the root by which it was opened.
    pub fn path(&self) -> &str {
        &self.path
    }
}

fn as_text(mut bytes: Vec<u8>) -> String {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    String::from_utf8(bytes).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into())
}

/// Most characters of a line that are kept; names in the API are no longer.
const LINE: usize = 128;

fn one_line(text: &str) -> Option<String> {
    let line = kernel_text::line(text);
    (!line.is_empty()).then(|| line.chars().take(LINE).collect())
}

fn last_part(target: &str) -> Option<String> {
    let part = target.trim_end_matches('/').rsplit('/').next()?;
    (!part.is_empty() && part != "..").then(|| part.chars().take(LINE).collect())
}

/// Most symbolic links on one way, as in Linux.
const LINKS: usize = 40;

/// A path without links, following one in its last part when `follow`; `target` says where the link at
/// a path points. Never above the root. `None` when links lead round.
fn without_links(path: &str, follow: bool, mut target: impl FnMut(&str) -> Option<String>) -> Option<String> {
    let mut left = clean(path);
    left.reverse();
    let mut done: Vec<String> = vec![];
    let mut links = 0;
    while let Some(part) = left.pop() {
        if part == ".." {
            done.pop();
            continue;
        }
        done.push(part);
        if left.is_empty() && !follow {
            break;
        }
        let Some(target) = target(&done.join("/")) else { continue };
        links += 1;
        if links > LINKS {
            return None;
        }
        done.pop();
        if target.starts_with('/') {
            done.clear();
        }
        let parts = target.split('/').filter(|part| !part.is_empty() && *part != ".");
        left.extend(parts.rev().map(Into::into));
    }
    Some(done.join("/"))
}

/// A path in an archive: no empty parts, no `.`, never above the root.
fn clean(path: &str) -> Vec<String> {
    let mut parts: Vec<String> = vec![];
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part.into()),
        }
    }
    parts
}

#[cfg(test)]
mod tests;
