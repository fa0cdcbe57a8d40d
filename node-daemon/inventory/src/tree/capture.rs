//! What was read of a tree, and how it becomes an archive that reads the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use tar::{EntryType, Header};
use thiserror::Error;

use super::{Kind, Source, clean, without_links};

/// Where a capture lists what its host did not have: a path a line.
pub(super) const ABSENT: &str = "gpudesk/absent";
/// Most paths listed there.
const ABSENCES: usize = 4096;

/// Why a capture could not be written.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The file cannot be written.
    #[error("writing the capture: {0}")]
    Write(#[from] io::Error),
}

/// What was read of a tree: files with what they held, links, and names of folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// By path without links.
    entries: BTreeMap<String, Recorded>,
    /// What was looked for and is not there.
    absent: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Recorded {
    File(Vec<u8>),
    Link(String),
    Folder,
    /// There, and its content was not asked for: another thing than an empty file.
    Unread,
    /// There, and may not be read.
    Denied,
}

impl Recording {
    /// Adds a file that is not of the host: what a driver said, or libvirt.
    pub fn add_answer(&mut self, path: &str, content: impl Into<Vec<u8>>) {
        self.entries.insert(clean(path).join("/"), Recorded::File(content.into()));
    }

    /// Puts `blank` over what each file holds; it gets the path and the content.
    pub fn blank(&mut self, blank: impl Fn(&str, &str) -> Option<String>) {
        for (path, entry) in &mut self.entries {
            if let Recorded::File(bytes) = entry
                && let Ok(text) = std::str::from_utf8(bytes)
                && let Some(blanked) = blank(path, text)
            {
                *bytes = blanked.into_bytes();
            }
        }
    }

    /// How many files, links and folders there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes a `.tar.zst`. The same recording always gives the same bytes.
    ///
    /// # Errors
    /// [`CaptureError::Write`].
    pub fn write(&self, to: impl Write) -> Result<(), CaptureError> {
        let mut builder = tar::Builder::new(zstd::Encoder::new(to, 9)?);
        let absent: String = self.absent.iter().flat_map(|path| [path.as_str(), "\n"]).collect();
        let absent = Recorded::File(absent.into_bytes());
        let absences = (!self.absent.is_empty()).then_some((ABSENT, &absent));
        let entries = self.entries.iter().map(|(path, entry)| (path.as_str(), entry));
        for (path, entry) in absences.into_iter().chain(entries) {
            let mut header = Header::new_gnu();
            header.set_mtime(0);
            match entry {
                Recorded::File(bytes) => {
                    header.set_mode(0o644);
                    header.set_size(bytes.len() as u64);
                    builder.append_data(&mut header, path, bytes.as_slice())?;
                }
                Recorded::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    builder.append_link(&mut header, path, target)?;
                }
                Recorded::Folder => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(0o755);
                    header.set_size(0);
                    builder.append_data(&mut header, path, io::empty())?;
                }
                Recorded::Unread => {
                    header.set_entry_type(EntryType::Fifo);
                    header.set_mode(0o644);
                    header.set_size(0);
                    builder.append_data(&mut header, path, io::empty())?;
                }
                Recorded::Denied => {
                    header.set_mode(0);
                    header.set_size(0);
                    builder.append_data(&mut header, path, io::empty())?;
                }
            }
        }
        builder.into_inner()?.finish()?;
        Ok(())
    }

    pub(super) fn add_file(&mut self, source: &Source, path: &str, bytes: &[u8]) {
        let path = self.way(source, path, true);
        self.entries.insert(path, Recorded::File(bytes.into()));
    }

    pub(super) fn add_denial(&mut self, source: &Source, path: &str) {
        let path = self.way(source, path, true);
        self.entries.insert(path, Recorded::Denied);
    }

    pub(super) fn add_absence(&mut self, path: &str) {
        if self.absent.len() < ABSENCES {
            self.absent.insert(clean(path).join("/"));
        }
    }

    pub(super) fn add_link(&mut self, source: &Source, path: &str) {
        let path = self.way(source, path, false);
        if let Ok(target) = source.link(&path) {
            self.entries.insert(path, Recorded::Link(target));
        }
    }

    pub(super) fn add_names(&mut self, source: &Source, path: &str, names: &[String]) {
        let folder = self.way(source, path, true);
        for name in names {
            let path = format!("{folder}/{name}");
            self.add_there(source, path);
        }
        self.entries.entry(folder).or_insert(Recorded::Folder);
    }

    pub(super) fn add_existence(&mut self, source: &Source, path: &str) {
        let path = self.way(source, path, true);
        self.add_there(source, path);
    }

    fn add_there(&mut self, source: &Source, path: String) {
        let entry = match source.kind(&path) {
            Some(Kind::Link) => source.link(&path).map_or(Recorded::Folder, Recorded::Link),
            Some(Kind::Folder) => Recorded::Folder,
            Some(Kind::File) => Recorded::Unread,
            None => return,
        };
        self.entries.entry(path).or_insert(entry);
    }

    /// The path without links; the links on the way are added.
    fn way(&mut self, source: &Source, path: &str, follow: bool) -> String {
        let found = without_links(path, follow, |path| {
            let target = match self.entries.get(path) {
                Some(Recorded::Link(target)) => return Some(target.clone()),
                None if source.kind(path) == Some(Kind::Link) => source.link(path).ok()?,
                Some(Recorded::File(_) | Recorded::Folder | Recorded::Unread | Recorded::Denied) | None => {
                    return None;
                }
            };
            self.entries.insert(path.into(), Recorded::Link(target.clone()));
            Some(target)
        });
        // What was read was reached, so its links do not lead round.
        found.unwrap_or_else(|| clean(path).join("/"))
    }
}
