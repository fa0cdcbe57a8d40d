//! Why a domain cannot be written.

use std::path::PathBuf;

use uuid::Uuid;

use super::PciAddress;

/// Why a domain cannot be written. All of them wait for another spec: trying again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// libvirt takes no such name.
    #[error("{name:?} cannot be a domain's name")]
    Name {
        /// The name.
        name: String,
    },
    /// The metadata is another desktop's.
    #[error("the domain {uuid} would carry the metadata of the desktop {desktop}")]
    ForeignMetadata {
        /// The domain.
        uuid: Uuid,
        /// The desktop.
        desktop: Uuid,
    },
    /// A value holds a character that XML has no way to write.
    #[error("a value of <{element}> holds a character that XML cannot carry")]
    Unencodable {
        /// The element.
        element: &'static str,
    },
    /// A pin names a vCPU that the guest does not have.
    #[error("vCPU {vcpu} is pinned, but there are only {vcpus}")]
    NoSuchVcpu {
        /// The vCPU.
        vcpu: u32,
        /// How many there are.
        vcpus: u32,
    },
    /// A vCPU has two pins.
    #[error("vCPU {vcpu} is pinned twice")]
    PinnedTwice {
        /// The vCPU.
        vcpu: u32,
    },
    /// The guest's cells do not divide its vCPUs among them.
    #[error("the guest's NUMA cells must hold each of the {vcpus} vCPUs exactly once")]
    CellsAndVcpus {
        /// How many there are.
        vcpus: u32,
    },
    /// A host device is of a cell that the guest does not have.
    #[error("a host device belongs to the guest's NUMA cell {cell}, but there are only {cells}")]
    NoSuchCell {
        /// The cell.
        cell: u32,
        /// How many there are.
        cells: usize,
    },
    /// A microvm's firmware has no way to tell its guest of cells.
    #[error("a microvm cannot show NUMA cells to its guest")]
    MicrovmCells,
    /// More PCI buses than bus numbers.
    #[error("the machine would need {count} PCI buses, and 256 is all there are")]
    TooManyBuses {
        /// How many it would need.
        count: usize,
    },
    /// Memory is not a whole number of the reserved pages.
    #[error("{mib} MiB of memory are not a whole number of {page} MiB pages")]
    BrokenPages {
        /// MiB of memory.
        mib: u64,
        /// MiB of a page.
        page: u64,
    },
    /// A path is relative or not text.
    #[error("{} is not an absolute path of readable text", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A raw image with another below it.
    #[error("{} is raw and cannot be an overlay", path.display())]
    RawOverlay {
        /// The path.
        path: PathBuf,
    },
    /// A disk's serial number is not one, or is another disk's too.
    #[error("{serial:?} is not a disk serial: 1 to 20 of A-Z a-z 0-9 _ . + -, different for each disk")]
    Serial {
        /// The serial number.
        serial: String,
    },
    /// A folder's tag is too short or too long.
    #[error("{tag:?} is not the tag of a shared folder: 1 to 35 bytes")]
    Tag {
        /// The tag.
        tag: String,
    },
    /// Two devices want the one early framebuffer.
    #[error("only one device can have a ramfb")]
    TwoRamfb,
    /// A vGPU draws a screen that nothing shows.
    #[error("a device's display needs a graphics server")]
    DisplayWithoutGraphics,
    /// A device is given twice.
    #[error("{device} is given twice")]
    GivenTwice {
        /// The device.
        device: String,
    },
    /// A PCI address that no function has.
    #[error("{address} is no PCI address")]
    NoPciAddress {
        /// The address.
        address: PciAddress,
    },
}
