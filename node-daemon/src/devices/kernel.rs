//! The kernel's files, as far as devices need them. The adapter is `host/kernel.rs`.

use std::{collections::BTreeMap, io};

use gpudesk_crds::{gpu_node_drives::DriveErase, types::PciAddress};
use gpudesk_inventory::{scan::DriveNow, topology::kernel_text};

use super::network::{NetworkNow, VfSettings};

/// Files below one root. Calls may block as long as the kernel does.
pub trait Kernel: Send + Sync {
    /// A file of sysfs or procfs.
    ///
    /// # Errors
    /// As the kernel says.
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;

    /// Writes to a file that is there, in one call, and notes that it did.
    ///
    /// # Errors
    /// As the kernel says.
    fn write(&self, path: &str, value: &str) -> io::Result<()>;

    /// The first word of a region of a function's memory, read at once and as a whole. Of a function that answers
    /// nothing it is all ones.
    ///
    /// # Errors
    /// As the kernel says.
    fn peek(&self, path: &str) -> io::Result<u32>;

    /// Where a link points, as it is written there.
    ///
    /// # Errors
    /// As the kernel says.
    fn link(&self, path: &str) -> io::Result<String>;

    /// The names in a folder.
    ///
    /// # Errors
    /// As the kernel says.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;

    /// Character devices that some process has open, `major:minor`, and functions of which one has the memory open
    /// ([`memory_of`]), or block devices ([`block_of`]), each with one of the processes; with [`ANY`], one that may have others open too.
    ///
    /// # Errors
    /// When that cannot be told: what is not seen is not free.
    fn open_devices(&self) -> io::Result<BTreeMap<String, u32>>;

    /// What the host does with a drive now, and what it holds.
    ///
    /// # Errors
    /// When that cannot be told.
    fn drive(&self, address: PciAddress) -> io::Result<DriveNow>;

    /// Erases a drive that the host's own driver has and nobody uses, and sees that the drive completed it.
    ///
    /// # Errors
    /// Why it is not erased, or not known to be.
    fn erase(&self, address: PciAddress, method: DriveErase) -> io::Result<()>;

    /// What a network card says of a virtual function of it, or why that cannot be told; `None` of anything else.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn network(&self, function: PciAddress) -> io::Result<Option<Result<NetworkNow, String>>>;

    /// Tells a network card what holds for a virtual function of it, as far as that is something else now.
    ///
    /// # Errors
    /// As the card says, with the setting.
    fn set_network(&self, function: PciAddress, settings: &VfSettings) -> io::Result<()>;

    /// Why no functions of network cards are given here, with the remedy.
    fn no_network_functions(&self) -> Option<String>;

    /// Why nothing can be changed here, with the remedy.
    fn unable(&self) -> Option<String>;
}

/// In the place of a device: whoever is named may have any open, for not all that it has open was looked at.
pub const ANY: &str = "any";

/// The name of an open block device of this number.
pub fn block_of(number: &str) -> String {
    format!("block {number}")
}

/// The folder of a PCI function.
pub fn function(address: PciAddress) -> String {
    format!("sys/bus/pci/devices/{address}")
}

/// In the place of a device: the memory of a function, which its files `resourceN` give to whoever opens one.
pub fn memory_of(address: PciAddress) -> String {
    format!("{address} memory")
}

/// What is not there is `None`; what cannot be told is an error.
pub(super) fn maybe<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        // Below a file there is nothing either.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The text of a file; `None` when there is none.
pub(super) fn text(kernel: &dyn Kernel, path: &str) -> io::Result<Option<String>> {
    Ok(maybe(kernel.read(path))?.map(|bytes| kernel_text::text(&String::from_utf8_lossy(&bytes)).to_owned()))
}

/// The one line of a file; `None` when there is none or it is empty.
pub(crate) fn line(kernel: &dyn Kernel, path: &str) -> io::Result<Option<String>> {
    let text = text(kernel, path)?;
    Ok(text.map(|text| kernel_text::line(&text).to_owned()).filter(|line| !line.is_empty()))
}

/// The number in a file; `None` when there is none.
pub(crate) fn number<T: std::str::FromStr>(kernel: &dyn Kernel, path: &str) -> io::Result<Option<T>> {
    Ok(line(kernel, path)?.and_then(|line| line.parse().ok()))
}

/// The last part of where a link points; `None` when there is none.
pub(crate) fn link_name(kernel: &dyn Kernel, path: &str) -> io::Result<Option<String>> {
    let target = maybe(kernel.link(path))?;
    Ok(target.and_then(|target| Some(target.rsplit('/').next()?.to_owned())).filter(|name| !name.is_empty()))
}

/// The names in a folder; none when there is no such folder.
pub(crate) fn names(kernel: &dyn Kernel, path: &str) -> io::Result<Vec<String>> {
    let mut names = maybe(kernel.list(path))?.unwrap_or_default();
    names.sort();
    Ok(names)
}
