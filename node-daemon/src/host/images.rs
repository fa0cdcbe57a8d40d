//! Golden images and kernels: files that the node's owner put into its image folders.

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::image_file::{Found, ImageFile};
use crate::qcow2::{Header, HeaderError, Unusable};

/// Why an image cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ImageError {
    /// It is in none of the folders.
    #[error("no image {file:?} on node {node}: looked in {roots}")]
    NotFound {
        /// The file looked for.
        file: String,
        /// The node.
        node: String,
        /// The folders, as people read them.
        roots: String,
    },
    /// It is a path instead of a name.
    #[error("{name:?} is not the name of an image: write a file name without / and without a leading dot")]
    NotAName {
        /// What was given.
        name: String,
    },
    /// It could not be looked at; that is not "not there".
    #[error("the image {} could not be looked at: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Errno,
    },
    /// It is no image that QEMU and this program read in the same way.
    #[error("the image {} cannot be used: {source}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: HeaderError,
    },
    /// Its header leads elsewhere.
    #[error(
        "the golden image {0} cannot be used: {source}. A golden image holds all of its data itself: make one with \
         `qemu-img convert -O qcow2 {0} NEW.qcow2`",
        path.display()
    )]
    NotAlone {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Unusable,
    },
    /// A file of the host that a tenant names is no image that may be used.
    #[error(
        "disks[{disk}].hostFile.path: {} cannot be used as Qcow2: {why}. A guest may have written this header; an \
         image holds all of its data itself, and format: Raw gives the file as it is",
        path.display()
    )]
    HostFile {
        /// Name of the disk.
        disk: String,
        /// The file.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The disk of a desktop is not what this program made.
    #[error("the disk {} cannot be used: {source}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Unusable,
    },
    /// The disk of a desktop is an overlay of a file that is no golden image.
    #[error(
        "the disk {} cannot be used: its header names the backing file {backing:?}, which is no golden image: \
         those are files NAME.qcow2 in {roots}",
        path.display()
    )]
    ForeignBacking {
        /// The disk.
        path: PathBuf,
        /// What it names.
        backing: String,
        /// The folders, as people read them.
        roots: String,
    },
    /// The golden image below a disk is not the one that the disk was made on.
    #[error(
        "the golden image {} changed since the disk {} was made on it, and the disk holds only what differs from \
         it: it was {was}, it is {is}. Put the old image back; a new image needs a name of its own",
        golden.display(), path.display()
    )]
    Changed {
        /// The disk.
        path: PathBuf,
        /// The golden image.
        golden: PathBuf,
        /// What it was.
        was: String,
        /// What it is.
        is: String,
    },
    /// The disk is asked to be smaller than its image.
    #[error(
        "disks[{disk}].image.sizeGiB: {size_gib} GiB is less than the image {} of {bytes} bytes has; write {} or \
         more, or leave sizeGiB out",
        image.display(), bytes.div_ceil(1 << 30)
    )]
    LargerThanDisk {
        /// Name of the disk.
        disk: String,
        /// Size asked for.
        size_gib: i32,
        /// The image.
        image: PathBuf,
        /// Bytes of the disk in the image.
        bytes: u64,
    },
}

/// A golden image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Golden {
    /// The file.
    pub path: PathBuf,
    /// Bytes of the disk in it; 0 on a simulated host, which has no files.
    pub virtual_size: u64,
    /// The file as it is at this moment; `None` on a simulated host.
    pub file: Option<ImageFile>,
}

/// What tells that a golden image is still the one that a disk was made on. Not its inode: an image
/// that is put back from elsewhere with its time is the same. Not its content: reading gigabytes at
/// each start costs more than the mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The file.
    pub path: PathBuf,
    /// Bytes in it.
    pub size: u64,
    /// When its content was last changed, in nanoseconds since 1970.
    pub modified: i64,
}

impl Golden {
    /// What tells that it is still the same; `None` on a simulated host.
    pub fn identity(&self) -> Option<Identity> {
        let ImageFile { size, modified, .. } = *self.file.as_ref()?;
        Some(Identity { path: self.path.clone(), size, modified })
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = jiff::Timestamp::from_nanosecond(self.modified.into());
        let time = time.map_or_else(|_| "an unknown time".to_owned(), |time| time.to_string());
        write!(f, "{}, {} bytes of {time}", self.path.display(), self.size)
    }
}

/// Where images are found.
#[derive(Clone, Debug)]
pub struct ImageStore {
    node: String,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Folders(Vec<PathBuf>),
    /// Of a simulated host: every image but these. Its files exist in name only.
    AllBut(Vec<String>),
}

impl ImageStore {
    /// The images in these folders of `node`, the first one that has it.
    pub fn folders(node: &str, folders: Vec<PathBuf>) -> Self {
        Self { node: node.into(), content: Content::Folders(folders) }
    }

    /// For a simulated host: every image but those `missing`.
    pub fn pretended(node: &str, missing: Vec<String>) -> Self {
        Self { node: node.into(), content: Content::AllBut(missing) }
    }

    /// Whether files exist in name only.
    pub fn is_pretended(&self) -> bool {
        matches!(self.content, Content::AllBut(_))
    }

    /// The golden image of this name: `<folder>/<name>.qcow2`. It holds all of its data itself.
    ///
    /// # Errors
    /// [`ImageError`], naming node and folders.
    pub fn image(&self, name: &str) -> Result<Golden, ImageError> {
        match self.find(name, &format!("{name}.qcow2"))? {
            (path, None) => Ok(Golden { path, virtual_size: 0, file: None }),
            (_, Some(found)) => golden(found),
        }
    }

    /// The golden image below the disk `disk`, which the disk's header names.
    ///
    /// # Errors
    /// [`ImageError`], also when what is named is no golden image.
    pub fn below(&self, disk: &Path, header: &Header) -> Result<Option<Golden>, ImageError> {
        let Some(backing) = &header.backing else {
            let alone = header.check_alone();
            return alone.map(|()| None).map_err(|source| ImageError::Disk { path: disk.into(), source });
        };
        let path = Path::new(&backing.name);
        let folders: &[PathBuf] = match &self.content {
            Content::Folders(folders) => folders,
            Content::AllBut(_) => &[],
        };
        let in_folder = folders.iter().any(|folder| path.parent() == Some(folder));
        if !in_folder || path.extension().is_none_or(|end| end != "qcow2") || backing.name.ends_with('/') {
            return Err(ImageError::ForeignBacking {
                path: disk.into(),
                backing: backing.name.chars().take(256).collect(),
                roots: self.roots(),
            });
        }
        header.check_overlay_of(path).map_err(|source| ImageError::Disk { path: disk.into(), source })?;
        match Found::at(path) {
            Ok(Some(found)) => golden(found).map(Some),
            Ok(None) | Err(Errno::NOENT) => Err(self.not_found(&backing.name)),
            Err(source) => Err(unreadable(path)(source)),
        }
    }

    /// A kernel or initial RAM disk: `<folder>/<name>`.
    ///
    /// # Errors
    /// [`ImageError`], naming node and folders.
    pub fn kernel(&self, name: &str) -> Result<PathBuf, ImageError> {
        Ok(self.find(name, name)?.0)
    }

    /// Images that do not belong to root, as an earlier version let libvirt give them to QEMU's user:
    /// whoever breaks out of one QEMU could change what other desktops start from.
    pub fn given_away(&self) -> Vec<ImageFile> {
        let Content::Folders(folders) = &self.content else { return vec![] };
        let entries = folders.iter().filter_map(|folder| folder.read_dir().ok()).flatten().flatten();
        let found = entries.filter_map(|entry| Found::at(&entry.path()).ok().flatten());
        found.map(|found| found.file).filter(|file| file.owner != 0).collect()
    }

    /// The file, and how to read it where there are files.
    fn find(&self, name: &str, file: &str) -> Result<(PathBuf, Option<Found>), ImageError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(ImageError::NotAName { name: name.chars().take(80).collect() });
        }
        let folders = match &self.content {
            Content::Folders(folders) => folders,
            Content::AllBut(missing) if missing.iter().any(|image| image == name) => {
                return Err(self.not_found(file));
            }
            Content::AllBut(_) => return Ok((PretendFolder::path().join(file), None)),
        };
        for folder in folders {
            let path = folder.join(file);
            match Found::at(&path) {
                Ok(Some(found)) => return Ok((path, Some(found))),
                Ok(None) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(source) => return Err(unreadable(&path)(source)),
            }
        }
        Err(self.not_found(file))
    }

    fn not_found(&self, file: &str) -> ImageError {
        ImageError::NotFound { file: file.into(), node: self.node.clone(), roots: self.roots() }
    }

    fn roots(&self) -> String {
        let folders = match &self.content {
            Content::Folders(folders) => folders.clone(),
            Content::AllBut(_) => vec![PretendFolder::path()],
        };
        let roots: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        if roots.is_empty() { "no folder, for none is set".into() } else { roots.join(", ") }
    }
}

fn unreadable(path: &Path) -> impl FnOnce(Errno) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Unreadable { path, source }
}

fn golden(found: Found) -> Result<Golden, ImageError> {
    let path = found.file.path.clone();
    let header = found.header().map_err(|source| unreadable(&path)(source))?;
    let header = header.map_err(|source| ImageError::Header { path: path.clone(), source })?;
    header.check_alone().map_err(|source| ImageError::NotAlone { path: path.clone(), source })?;
    Ok(Golden { path, virtual_size: header.virtual_size, file: Some(found.file) })
}

struct PretendFolder;

impl PretendFolder {
    fn path() -> PathBuf {
        Path::new("/simulated/images").to_owned()
    }
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
