//! Folders of the host shared with the guest by virtiofs.

use std::path::PathBuf;

use super::xml::Xml;
use super::{DomainError, path_text};

/// A folder of the host that the guest mounts by its tag.
///
/// A domain with one gets shared memory by itself: virtiofs is refused without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// The folder, an absolute path.
    pub source: PathBuf,
    /// What the guest mounts: `mount -t virtiofs TAG /where`. 1 to 35 bytes.
    pub tag: String,
    /// virtiofsd opens nothing for writing; the guest's own mount options are not to be trusted.
    pub read_only: bool,
    /// The virtiofsd program; `None`: the one libvirt finds.
    pub program: Option<PathBuf>,
}

impl Filesystem {
    pub(super) fn check(&self) -> Result<(), DomainError> {
        path_text(&self.source)?;
        if let Some(program) = &self.program {
            path_text(program)?;
        }
        if self.tag.is_empty() || self.tag.len() > 35 {
            return Err(DomainError::Tag { tag: self.tag.clone() });
        }
        Ok(())
    }

    pub(super) fn write(&self, xml: &mut Xml) {
        xml.nest("filesystem", &[("type", &"mount"), ("accessmode", &"passthrough")], |xml| {
            xml.empty("driver", &[("type", &"virtiofs")]);
            if let Some(program) = &self.program {
                xml.empty("binary", &[("path", &program.display())]);
            }
            xml.empty("source", &[("dir", &self.source.display())]);
            xml.empty("target", &[("dir", &self.tag)]);
            if self.read_only {
                xml.empty("readonly", &[]);
            }
        });
    }
}
