//! The header of a qcow2 image, read and never followed. Pure.
//!
//! A guest that once wrote the file raw may have written this header: it can name a backing file or an
//! external data file, and QEMU or libvirt would open what it names. Whatever QEMU takes for such a
//! name is found here or the header is refused; nothing else of the image is looked at.
//!
//! ```text
//!   0 "QFI\xfb"  4 version  8 backing offset  16 backing length  20 cluster bits  24 size  32 encryption
//!   version 3:   72 incompatible features  80 compatible  88 autoclear  96 refcount order  100 length
//!   then extensions (type, length, data padded to 8), up to type 0, the backing name or the cluster's end
//! ```
//! QEMU, `docs/interop/qcow2.rst` and `block/qcow2.c`.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Bytes from the beginning of the file that are enough for every header that is accepted.
pub const ENOUGH: usize = 64 << 10;

const MAGIC: &[u8] = b"QFI\xfb";
/// Length of a header of version 2, which says no length.
const LENGTH_2: usize = 72;
/// Least length of a header of version 3.
const LENGTH_3: usize = 104;
/// QEMU takes no longer name of a backing file.
const LONGEST_NAME: usize = 1023;
/// More extensions than any program writes.
const MOST_EXTENSIONS: usize = 64;

const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
/// Dirty, corrupt, external data file, compression, extended L2 entries.
const KNOWN: u64 = 0b1_1111;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE_NAME: u32 = 0x4441_5441;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the disk that the guest sees.
    pub virtual_size: u64,
    /// The image that it is an overlay of.
    pub backing: Option<Backing>,
    /// The guest's data is in another file. Its name, empty when the header gives none.
    pub data_file: Option<String>,
    /// Its content is encrypted.
    pub encrypted: bool,
    /// QEMU found it damaged and opens it for reading only.
    pub corrupt: bool,
}

/// The image that another is an overlay of, as the overlay's header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// A path, or whatever else QEMU opens: `nbd://...`, `json:{...}`.
    pub name: String,
    /// Its format, when the header says one.
    pub format: Option<String>,
}

/// Why a file is no image that can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Another kind of file.
    #[error("it is not a qcow2 image")]
    NotQcow2,
    /// A version that is not known.
    #[error("it is of qcow2 version {0}; 2 and 3 can be used")]
    Version(u32),
    /// A field that cannot be.
    #[error("its header is damaged: {0}")]
    Damaged(&'static str),
    /// Nobody here can tell what the features mean.
    #[error("it has qcow2 features that this version does not know (bits {0:#x})")]
    UnknownFeatures(u64),
}

/// Why an image with a sound header is not used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// It would make QEMU read another file.
    #[error("its header names the backing file {0:?}")]
    Backing(String),
    /// It would make QEMU read and write another file.
    #[error("its header names the external data file {0:?}")]
    DataFile(String),
    /// Nobody has a key.
    #[error("it is encrypted")]
    Encrypted,
    /// QEMU would refuse it.
    #[error("it is marked as damaged: try `qemu-img check -r all`")]
    Corrupt,
    /// It is an overlay of something else.
    #[error(
        "its header names the backing file {found:?} of format {format:?} instead of {wanted:?} of format qcow2"
    )]
    OtherBacking {
        /// The name in the header; empty when there is none.
        found: String,
        /// The format in the header; empty when there is none.
        format: String,
        /// The name that should be there.
        wanted: PathBuf,
    },
}

impl Header {
    /// The header at the beginning of `bytes`: the file's first [`ENOUGH`], or all of a shorter one.
    ///
    /// # Errors
    /// [`HeaderError`] for everything that is not certain to be read by QEMU in the same way.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.get(..MAGIC.len()) != Some(MAGIC) {
            return Err(HeaderError::NotQcow2);
        }
        let version = number4(bytes, 4)?;
        if !matches!(version, 2 | 3) {
            return Err(HeaderError::Version(version));
        }
        let cluster_bits = number4(bytes, 20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(HeaderError::Damaged("its cluster size"));
        }
        let cluster = 1_usize << cluster_bits;
        let (features, length) = if version == 2 {
            (0, LENGTH_2)
        } else {
            (number8(bytes, 72)?, index(number4(bytes, 100)?.into())?)
        };
        if version == 3 && !(LENGTH_3..=cluster).contains(&length) {
            return Err(HeaderError::Damaged("its length"));
        }
        if features & !KNOWN != 0 {
            return Err(HeaderError::UnknownFeatures(features & !KNOWN));
        }
        let virtual_size = number8(bytes, 24)?;
        if virtual_size == 0 || i64::try_from(virtual_size).is_err() {
            return Err(HeaderError::Damaged("the size of the disk"));
        }
        let name = backing_name(bytes, length, cluster)?;
        let end = name.as_ref().map_or(cluster, |(offset, _)| *offset);
        let extensions = Extensions::read(bytes, length, end)?;
        // A name without the feature is ignored by QEMU, and no program writes it.
        let named = extensions.data_file.or_else(|| (features & DATA_FILE != 0).then(String::new));
        Ok(Self {
            virtual_size,
            backing: name.map(|(_, name)| Backing { name, format: extensions.backing_format }),
            data_file: named,
            encrypted: number4(bytes, 32)? != 0,
            corrupt: features & CORRUPT != 0,
        })
    }

    /// That the image is all in its one file.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn check_alone(&self) -> Result<(), Unusable> {
        match &self.backing {
            Some(backing) => Err(Unusable::Backing(backing.name.clone())),
            None => self.check_own_data(),
        }
    }

    /// That the image is an overlay of exactly the qcow2 image `golden`, and has its own data in its
    /// one file.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn check_overlay_of(&self, golden: &Path) -> Result<(), Unusable> {
        let (found, format) = match &self.backing {
            Some(Backing { name, format }) => (name.clone(), format.clone().unwrap_or_default()),
            None => (String::new(), String::new()),
        };
        if golden.to_str() != Some(&found) || format != "qcow2" {
            return Err(Unusable::OtherBacking { found, format, wanted: golden.to_owned() });
        }
        self.check_own_data()
    }

    fn check_own_data(&self) -> Result<(), Unusable> {
        match &self.data_file {
            Some(name) => Err(Unusable::DataFile(name.clone())),
            None if self.encrypted => Err(Unusable::Encrypted),
            None if self.corrupt => Err(Unusable::Corrupt),
            None => Ok(()),
        }
    }
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
}

impl Extensions {
    /// Those from `start` on, up to the one that ends them or to `end`.
    fn read(bytes: &[u8], start: usize, end: usize) -> Result<Self, HeaderError> {
        let mut found = Self::default();
        let mut at = start;
        for _ in 0..MOST_EXTENSIONS {
            if at >= end {
                return Ok(found);
            }
            let (kind, length) = (number4(bytes, at)?, index(number4(bytes, at + 4)?.into())?);
            let data = at + 8;
            if data > end || length > end - data {
                return Err(HeaderError::Damaged("an extension that is longer than the header"));
            }
            match kind {
                END => return Ok(found),
                BACKING_FORMAT => found.backing_format = Some(text(bytes, data, length)?),
                DATA_FILE_NAME => found.data_file = Some(text(bytes, data, length)?),
                _ => {}
            }
            at = data + length.next_multiple_of(8);
        }
        Err(HeaderError::Damaged("more extensions than can be"))
    }
}

/// Where the name of the backing file is, and the name.
fn backing_name(bytes: &[u8], start: usize, cluster: usize) -> Result<Option<(usize, String)>, HeaderError> {
    let (offset, length) = (index(number8(bytes, 8)?)?, index(number4(bytes, 16)?.into())?);
    if offset == 0 && length == 0 {
        return Ok(None);
    }
    if offset < start || offset > cluster || length > LONGEST_NAME.min(cluster - offset) {
        return Err(HeaderError::Damaged("the place or length of its backing file's name"));
    }
    Ok(Some((offset, text(bytes, offset, length)?)))
}

fn text(bytes: &[u8], at: usize, length: usize) -> Result<String, HeaderError> {
    let bytes = at.checked_add(length).and_then(|end| bytes.get(at..end));
    let bytes = bytes.ok_or(HeaderError::Damaged("it ends too early"))?;
    // C programs end a name at its first NUL; one that holds more is not what it seems.
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    text.map(str::to_owned).ok_or(HeaderError::Damaged("a name that is not text"))
}

fn number4(bytes: &[u8], at: usize) -> Result<u32, HeaderError> {
    let number = bytes.get(at..).and_then(|rest| rest.first_chunk());
    number.map(|bytes| u32::from_be_bytes(*bytes)).ok_or(HeaderError::Damaged("it ends too early"))
}

fn number8(bytes: &[u8], at: usize) -> Result<u64, HeaderError> {
    let number = bytes.get(at..).and_then(|rest| rest.first_chunk());
    number.map(|bytes| u64::from_be_bytes(*bytes)).ok_or(HeaderError::Damaged("it ends too early"))
}

fn index(number: u64) -> Result<usize, HeaderError> {
    usize::try_from(number).map_err(|_| HeaderError::Damaged("a place that cannot be"))
}

#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod tests;
