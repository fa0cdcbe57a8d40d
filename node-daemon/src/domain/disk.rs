//! Disks and CD-ROMs.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use super::xml::Xml;
use super::{DomainError, Transport, path_text};

/// What is in a disk, whatever it is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is: a file or a block device of the host, an absolute path.
    pub source: ImageSource,
    /// How it is laid out.
    pub format: ImageFormat,
    /// The golden image, all in one qcow2 file, that this qcow2 image is an overlay of. What the image's
    /// header names is not asked: the chain ends where it ends here.
    pub backing: Option<PathBuf>,
    /// The guest cannot write.
    pub read_only: bool,
    /// The file stays its owner's, who lets QEMU's user read it. Otherwise libvirt gives it to QEMU's
    /// user, and takes back only what the guest can write.
    pub keeps_owner: bool,
    /// What the guest reads as the serial number: 1 to 20 of `A-Z a-z 0-9 _ . + -`.
    pub serial: Option<String>,
    /// How writes reach the host's storage.
    pub cache: Cache,
    /// Position in the firmware's boot order, unique in the domain, networks included.
    pub boot: Option<NonZeroU32>,
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A file.
    File(PathBuf),
    /// A block device.
    Block(PathBuf),
}

/// How an image is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// Sparse, possibly an overlay of another image.
    Qcow2,
    /// Sector for sector.
    Raw,
}

/// How writes reach the host's storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Past the host's page cache. Needs a filesystem with direct I/O.
    None,
    /// Through the host's page cache; the guest's flushes are obeyed.
    Writeback,
    /// The guest's flushes are ignored: only for what may be lost with the host.
    Unsafe,
}

/// A disk of a q35 machine: an image and what it is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What is in it.
    pub image: Image,
    /// What it is plugged into.
    pub slot: Slot,
}

/// What a disk is plugged into. A CD-ROM has no virtio slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// A disk on virtio-blk.
    Virtio,
    /// A disk on the AHCI controller.
    Sata,
    /// A disk on virtio-scsi.
    Scsi,
    /// A CD-ROM on the AHCI controller; always read-only.
    SataCdrom,
    /// A CD-ROM on virtio-scsi; always read-only.
    ScsiCdrom,
}

impl Slot {
    fn bus(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Sata | Self::SataCdrom => "sata",
            Self::Scsi | Self::ScsiCdrom => "scsi",
        }
    }

    fn is_cdrom(self) -> bool {
        match self {
            Self::SataCdrom | Self::ScsiCdrom => true,
            Self::Virtio | Self::Sata | Self::Scsi => false,
        }
    }

    pub(super) fn is_scsi(self) -> bool {
        match self {
            Self::Scsi | Self::ScsiCdrom => true,
            Self::Virtio | Self::Sata | Self::SataCdrom => false,
        }
    }
}

/// Gives out target names and I/O threads in the order of the disks.
pub(super) struct Placer {
    virtio: usize,
    others: usize,
    io_threads: usize,
    next_io_thread: usize,
}

impl Placer {
    pub(super) fn new(io_threads: usize) -> Self {
        Self { virtio: 0, others: 0, io_threads, next_io_thread: 0 }
    }

    fn target(&mut self, slot: Slot) -> String {
        let (prefix, counter) = match slot {
            Slot::Virtio => ("vd", &mut self.virtio),
            Slot::Sata | Slot::Scsi | Slot::SataCdrom | Slot::ScsiCdrom => ("sd", &mut self.others),
        };
        let name = format!("{prefix}{}", letters(*counter));
        *counter += 1;
        name
    }

    pub(super) fn io_thread(&mut self) -> Option<usize> {
        let threads = self.io_threads;
        (threads > 0).then(|| {
            let id = self.next_io_thread % threads + 1;
            self.next_io_thread += 1;
            id
        })
    }
}

/// `a` to `z`, `aa` to `zz`, ...: the host's way of counting disks.
fn letters(index: usize) -> String {
    let mut reversed = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        let digit = u8::try_from((rest - 1) % 26).unwrap_or_default();
        reversed.push(char::from(b'a' + digit));
        rest = (rest - 1) / 26;
    }
    reversed.into_iter().rev().collect()
}

impl Image {
    fn check(&self) -> Result<(), DomainError> {
        let (ImageSource::File(path) | ImageSource::Block(path)) = &self.source;
        path_text(path)?;
        if let Some(backing) = &self.backing {
            path_text(backing)?;
            if self.format != ImageFormat::Qcow2 {
                return Err(DomainError::RawOverlay { path: path.clone() });
            }
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
        match &self.serial {
            Some(serial) if serial.is_empty() || serial.len() > 20 || !serial.chars().all(legal) => {
                Err(DomainError::Serial { serial: serial.clone() })
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn check_all<'a>(images: impl Iterator<Item = &'a Self>) -> Result<(), DomainError> {
        let mut serials = BTreeSet::new();
        for image in images {
            image.check()?;
            if let Some(serial) = &image.serial
                && !serials.insert(serial)
            {
                return Err(DomainError::Serial { serial: serial.clone() });
            }
        }
        Ok(())
    }

    pub(super) fn write(&self, xml: &mut Xml, slot: Slot, transport: Transport, placer: &mut Placer) {
        let (kind, key, path) = match &self.source {
            ImageSource::File(path) => ("file", "file", path),
            ImageSource::Block(path) => ("block", "dev", path),
        };
        let device = if slot.is_cdrom() { "cdrom" } else { "disk" };
        let target = placer.target(slot);
        xml.nest("disk", &[("type", &kind), ("device", &device)], |xml| {
            self.write_driver(xml, slot, transport, placer);
            write_source(xml, key, path, self.keeps_owner);
            self.write_backing(xml);
            xml.empty("target", &[("dev", &target), ("bus", &slot.bus())]);
            if self.read_only || slot.is_cdrom() {
                xml.empty("readonly", &[]);
            }
            if let Some(serial) = &self.serial {
                xml.text("serial", &[], serial);
            }
            if let Some(boot) = self.boot {
                xml.empty("boot", &[("order", &boot)]);
            }
            transport.write_address(xml);
        });
    }

    /// The whole chain, so that neither libvirt nor QEMU looks for one in a header.
    fn write_backing(&self, xml: &mut Xml) {
        let Some(golden) = &self.backing else { return xml.empty("backingStore", &[]) };
        xml.nest("backingStore", &[("type", &"file")], |xml| {
            xml.empty("format", &[("type", &"qcow2")]);
            write_source(xml, "file", golden, true);
            xml.empty("backingStore", &[]);
        });
    }

    fn write_driver(&self, xml: &mut Xml, slot: Slot, transport: Transport, placer: &mut Placer) {
        let format = match self.format {
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Raw => "raw",
        };
        let (cache, io) = match self.cache {
            Cache::None => ("none", Some("native")),
            Cache::Writeback => ("writeback", None),
            Cache::Unsafe => ("unsafe", None),
        };
        let mut attributes: Vec<(&'static str, &dyn std::fmt::Display)> =
            vec![("name", &"qemu"), ("type", &format), ("cache", &cache)];
        if let Some(io) = &io {
            attributes.push(("io", io));
        }
        if !slot.is_cdrom() && !self.read_only {
            attributes.push(("discard", &"unmap"));
        }
        let thread = match (slot, transport) {
            (Slot::Virtio, Transport::Pci) => placer.io_thread(),
            (Slot::Virtio, Transport::Mmio)
            | (Slot::Sata | Slot::Scsi | Slot::SataCdrom | Slot::ScsiCdrom, _) => None,
        };
        if let Some(thread) = &thread {
            attributes.push(("iothread", thread));
        }
        xml.empty("driver", &attributes);
    }
}

/// libvirt gives the images of a chain to QEMU's user and takes back only the first.
fn write_source(xml: &mut Xml, key: &'static str, path: &Path, keeps_owner: bool) {
    if !keeps_owner {
        return xml.empty("source", &[(key, &path.display())]);
    }
    xml.nest("source", &[(key, &path.display())], |xml| {
        xml.empty("seclabel", &[("model", &"dac"), ("relabel", &"no")]);
    });
}

/// The one virtio-scsi controller of a machine that has SCSI disks.
pub(super) fn write_scsi_controller(xml: &mut Xml, placer: &mut Placer) {
    let model: [(&'static str, &dyn std::fmt::Display); 3] =
        [("type", &"scsi"), ("index", &0), ("model", &"virtio-scsi")];
    match placer.io_thread() {
        Some(thread) => {
            xml.nest("controller", &model, |xml| xml.empty("driver", &[("iothread", &thread)]));
        }
        None => xml.empty("controller", &model),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_count_on_after_z() {
        assert_eq!(letters(0), "a");
        assert_eq!(letters(25), "z");
        assert_eq!(letters(26), "aa");
        assert_eq!(letters(701), "zz");
        assert_eq!(letters(702), "aaa");
    }
}
