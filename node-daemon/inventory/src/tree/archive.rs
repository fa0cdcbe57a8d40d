//! A capture: a tar archive, compressed by zstd or gzip or not at all, held in memory.
#![expect(clippy::disallowed_methods, reason = "adapter: reads the archive")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use tar::EntryType;

use super::{Kind, LARGE, NAMES, TreeError, capture::ABSENT, clean, without_links};

/// Most bytes of all files together, uncompressed.
const TOTAL: u64 = 256 << 20;
/// Most entries.
const ENTRIES: usize = 1 << 19;

#[derive(Debug)]
pub(super) struct Archive {
    /// Without a slash at either end.
    entries: BTreeMap<String, Entry>,
    /// What its host did not have, as far as the capture says so.
    absent: BTreeSet<String>,
}

#[derive(Debug)]
enum Entry {
    File(Vec<u8>),
    Link(String),
    Folder,
    /// A file or device that is there and whose content was not taken.
    Unread,
    /// A file or folder that could not be read on its host.
    Denied,
}

impl Archive {
    pub(super) fn open(path: &Path) -> Result<Self, TreeError> {
        let open = |source| TreeError::Open { path: path.into(), source };
        let mut file = File::open(path).map_err(open)?;
        let mut magic = [0_u8; 4];
        let count = file.read(&mut magic).map_err(open)?;
        file.seek(SeekFrom::Start(0)).map_err(open)?;
        let file = BufReader::new(file);
        let bad = |why: String| TreeError::NotACapture { path: path.into(), why };
        let plain: Box<dyn Read> = match &magic[..count] {
            [0x28, 0xb5, 0x2f, 0xfd] => {
                let mut decoder = zstd::Decoder::new(file).map_err(open)?;
                // A window of 128 MiB at most, whatever the file asks for.
                decoder.window_log_max(27).map_err(open)?;
                Box::new(decoder)
            }
            [0x1f, 0x8b, ..] => Box::new(flate2::read::GzDecoder::new(file)),
            [b'B', b'Z', b'h', _] => return Err(bad("it is compressed by bzip2".into())),
            [0xfd, b'7', b'z', b'X'] => return Err(bad("it is compressed by xz".into())),
            _ => Box::new(file),
        };
        Self::read_from(plain).map_err(bad)
    }

    /// Fails with what is wrong. What the reader of archives says of it has bytes of the file in it.
    pub(super) fn read_from(plain: impl Read) -> Result<Self, String> {
        let mut entries = BTreeMap::new();
        let mut archive = tar::Archive::new(plain.take(TOTAL + (ENTRIES as u64) * 1024));
        let mut total = 0;
        let none = |error: io::Error| format!("it is no tar archive ({})", error.kind());
        for (index, entry) in archive.entries().map_err(none)?.enumerate() {
            let broken = |error: io::Error| match index {
                0 => none(error),
                _ => format!("its entry {} is broken ({})", index + 1, error.kind()),
            };
            let mut entry = entry.map_err(broken)?;
            if entries.len() >= ENTRIES {
                return Err(format!("it has more than {ENTRIES} entries"));
            }
            let path = clean(&String::from_utf8_lossy(&entry.path_bytes())).join("/");
            if path.is_empty() {
                continue;
            }
            let target =
                || entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned());
            let found = match entry.header().entry_type() {
                EntryType::Directory => Entry::Folder,
                EntryType::Symlink => Entry::Link(target().unwrap_or_default()),
                EntryType::Link => Entry::Link(format!("/{}", target().unwrap_or_default())),
                EntryType::Regular if entry.header().mode().is_ok_and(|mode| mode.trailing_zeros() >= 9) => {
                    Entry::Denied
                }
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    let mut bytes = vec![];
                    entry.by_ref().take(LARGE as u64).read_to_end(&mut bytes).map_err(broken)?;
                    total += bytes.len() as u64;
                    if total > TOTAL {
                        return Err(format!("its files are larger than {} MiB", TOTAL >> 20));
                    }
                    Entry::File(bytes)
                }
                EntryType::Char | EntryType::Block | EntryType::Fifo => Entry::Unread,
                _ => continue,
            };
            entries.insert(path, found);
        }
        if entries.is_empty() {
            return Err("it is empty".into());
        }
        let mut entries = without_wrapper(entries);
        let absent = match entries.remove(ABSENT) {
            Some(Entry::File(bytes)) => String::from_utf8_lossy(&bytes).lines().map(Into::into).collect(),
            _ => BTreeSet::new(),
        };
        Ok(Self { entries, absent })
    }

    /// Whether the host did not have it, by its own word.
    pub(super) fn is_absent(&self, path: &str) -> bool {
        self.absent.contains(&clean(path).join("/"))
    }

    /// The path without links, following one in the last part when `follow`.
    fn resolve(&self, path: &str, follow: bool) -> Option<String> {
        without_links(path, follow, |path| match self.entries.get(path) {
            Some(Entry::Link(target)) => Some(target.clone()),
            Some(Entry::File(_) | Entry::Folder | Entry::Unread | Entry::Denied) | None => None,
        })
    }

    pub(super) fn read(&self, path: &str, limit: usize) -> io::Result<Vec<u8>> {
        match self.resolve(path, true).and_then(|path| self.entries.get(&path)) {
            Some(Entry::File(bytes)) => Ok(bytes[..bytes.len().min(limit)].to_vec()),
            Some(Entry::Denied) => Err(io::ErrorKind::PermissionDenied.into()),
            Some(Entry::Link(_) | Entry::Folder | Entry::Unread) | None => {
                Err(io::ErrorKind::NotFound.into())
            }
        }
    }

    pub(super) fn link(&self, path: &str) -> io::Result<String> {
        match self.resolve(path, false).and_then(|path| self.entries.get(&path)) {
            Some(Entry::Link(target)) => Ok(target.clone()),
            Some(Entry::File(_) | Entry::Folder | Entry::Unread | Entry::Denied) | None => {
                Err(io::ErrorKind::NotFound.into())
            }
        }
    }

    pub(super) fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let path = self.resolve(path, true).ok_or(io::ErrorKind::NotFound)?;
        match self.entries.get(&path) {
            Some(Entry::Folder) => {}
            Some(Entry::Denied) => return Err(io::ErrorKind::PermissionDenied.into()),
            // What is not in the archive is another thing than an empty folder.
            _ if !self.has_children(&path) => return Err(io::ErrorKind::NotFound.into()),
            _ => {}
        }
        let head = format!("{path}/");
        let mut names: Vec<String> = vec![];
        for key in
            self.entries.range(head.clone()..).map(|(key, _)| key).take_while(|key| key.starts_with(&head))
        {
            let name = key[head.len()..].split('/').next().unwrap_or_default();
            if names.last().is_none_or(|last| last != name) {
                names.push(name.into());
            }
            if names.len() >= NAMES {
                break;
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        let Some(path) = self.resolve(path, true) else { return false };
        self.entries.contains_key(&path) || self.has_children(&path)
    }

    /// The path of a folder, without links.
    pub(super) fn dir(&self, path: &str) -> Option<String> {
        let path = self.resolve(path, true)?;
        (matches!(self.entries.get(&path), Some(Entry::Folder)) || self.has_children(&path)).then_some(path)
    }

    pub(super) fn kind(&self, path: &str) -> Option<Kind> {
        let path = self.resolve(path, false)?;
        match self.entries.get(&path) {
            Some(Entry::File(_) | Entry::Unread | Entry::Denied) => Some(Kind::File),
            Some(Entry::Link(_)) => Some(Kind::Link),
            Some(Entry::Folder) => Some(Kind::Folder),
            None => self.has_children(&path).then_some(Kind::Folder),
        }
    }

    fn has_children(&self, path: &str) -> bool {
        let head = format!("{path}/");
        self.entries.range(head.clone()..).next().is_some_and(|(key, _)| key.starts_with(&head))
    }
}

/// Some tools pack a host below a folder of its name; it is taken off, with what lies beside it.
fn without_wrapper(entries: BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    let tops: BTreeSet<&str> = entries.keys().filter_map(|key| key.split('/').next()).collect();
    if tops.contains("sys") || tops.contains("proc") {
        return entries;
    }
    let is_root = |top: &&&str| {
        ["sys", "proc"].iter().any(|name| {
            let head = format!("{top}/{name}/");
            entries.range(head.clone()..).next().is_some_and(|(key, _)| key.starts_with(&head))
        })
    };
    let roots: Vec<&&str> = tops.iter().filter(is_root).collect();
    let [root] = roots.as_slice() else { return entries };
    let head = format!("{root}/");
    entries
        .into_iter()
        .filter_map(|(key, entry)| Some((key.strip_prefix(&head)?.to_owned(), entry)))
        .collect()
}
