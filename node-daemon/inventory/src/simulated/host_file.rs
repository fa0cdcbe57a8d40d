//! Host files: what they may say, and what is refused.

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_status::Framework,
    types::{CpuSet, PageSize},
};
use jiff::SignedDuration;
use serde::Deserialize;
use thiserror::Error;

use super::catalogue::CatalogueError;

/// Why a host file describes no host.
#[derive(Debug, Error)]
pub enum HostFileError {
    /// Not YAML, or not the fields of a host file.
    #[error("the host file cannot be read: {0}")]
    Unreadable(#[from] serde_yaml::Error),
    /// Empty, or a text or list.
    #[error(
        "there are no fields in it; a host file has at least coresPerSocket: NUMBER and memoryMiB: NUMBER"
    )]
    NoFields,
    /// A card that is not known.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// A figure out of range.
    #[error("the host file's {field} is {value}; write {expected}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What it says.
        value: i64,
        /// What would be right.
        expected: String,
    },
    /// A value that does not fit what else the file says.
    #[error("the host file's {field} is {value:?}; {expected}")]
    NotPossible {
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// `numaCells` does not match the boards.
    #[error("{model}: numaCells names {named} cells for a count of {count}; name one for each, or none")]
    CellCount {
        /// The card or device.
        model: String,
        /// Cells named.
        named: usize,
        /// Boards.
        count: i32,
    },
}

/// A host file: the machine, and how many of which card are in it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostFile {
    /// Name; the node name when absent. Identities of cards are made from it.
    #[serde(default)]
    pub name: Option<String>,
    /// Board or system product name.
    #[serde(default)]
    pub board: Option<String>,
    /// Kernel release.
    #[serde(default)]
    pub kernel: Option<String>,
    /// CPU model name.
    #[serde(default)]
    pub cpu_model: Option<String>,
    /// Cards.
    #[serde(default)]
    pub cards: Vec<Cards>,
    /// Network cards.
    #[serde(default)]
    pub network_cards: Vec<HostDevices>,
    /// NVMe drives.
    #[serde(default)]
    pub nvme_drives: Vec<HostDevices>,
    /// Sockets, each a NUMA cell. 1 to 8.
    #[serde(default = "one")]
    pub sockets: i32,
    /// Cores per socket. 1 to 256.
    pub cores_per_socket: i32,
    /// Threads per core. 1 or 2.
    #[serde(default = "one")]
    pub threads_per_core: i32,
    /// Caches of the last level on each socket; one without a size when absent.
    #[serde(default)]
    pub last_level_caches: LastLevelCaches,
    /// CPUs that the kernel's scheduler leaves alone.
    #[serde(default)]
    pub isolated_cpus: CpuSet,
    /// CPUs that the kubelet keeps for the system.
    #[serde(default)]
    pub reserved_cpus: CpuSet,
    /// Memory of the machine in MiB, divided equally between the sockets.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: i64,
    /// Hugepages reserved on each NUMA cell, per size.
    #[serde(default)]
    pub hugepages: BTreeMap<PageSize, i64>,
    /// Whether the firmware has the IOMMU on.
    #[serde(default = "yes")]
    pub iommu: bool,
    /// Whether the fabric manager runs on a board with NVSwitches.
    #[serde(default = "yes")]
    pub fabric_manager: bool,
    /// How long things take.
    #[serde(default)]
    pub latency: Latency,
    /// Names of images that this host does not have; it has every other.
    #[serde(default)]
    pub missing_images: Vec<String>,
}

/// Equal cards.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cards {
    /// Product name, as in the catalogue.
    pub model: String,
    /// Boards; one board can hold several GPUs.
    pub count: i32,
    /// The NUMA cell of each board; spread in order when absent.
    #[serde(default)]
    pub numa_cells: Vec<i32>,
    /// How vGPUs are made: `Mdev` or `VendorVfio`, as the card can; the card's usual way when absent.
    #[serde(default)]
    pub framework: Option<Framework>,
}

/// Equal network cards or drives.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostDevices {
    /// Product name, as in the catalogue.
    pub model: String,
    /// How many.
    pub count: i32,
    /// The NUMA cell of each; spread in order when absent.
    #[serde(default)]
    pub numa_cells: Vec<i32>,
    /// How many of them the host uses itself, the first ones.
    #[serde(default)]
    pub in_use: i32,
}

/// Caches of the last level.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LastLevelCaches {
    /// How many each socket has; its cores are divided between them. 1 to 64.
    #[serde(default = "one")]
    pub per_socket: i32,
    /// Size of each in KiB.
    #[serde(rename = "sizeKiB", default)]
    pub size_kib: Option<i64>,
}

impl Default for LastLevelCaches {
    fn default() -> Self {
        Self { per_socket: 1, size_kib: None }
    }
}

/// How long a simulated host takes. Nothing by default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Latency {
    /// Starting a desktop, for example `0.5s`.
    pub start: Option<SignedDuration>,
    /// Stopping a desktop.
    pub stop: Option<SignedDuration>,
}

fn one() -> i32 {
    1
}

fn yes() -> bool {
    true
}

impl HostFile {
    /// Reads a host file.
    ///
    /// # Errors
    /// [`HostFileError::Unreadable`], naming the line, or [`HostFileError::NoFields`].
    pub fn parse(text: &str) -> Result<Self, HostFileError> {
        if !serde_yaml::from_str::<serde_yaml::Value>(text)?.is_mapping() {
            return Err(HostFileError::NoFields);
        }
        Ok(serde_yaml::from_str(text)?)
    }

    /// All CPUs, numbered as Linux does.
    pub(super) fn cpus(&self) -> i32 {
        self.sockets * self.cores_per_socket * self.threads_per_core
    }

    pub(super) fn check(&self) -> Result<(), HostFileError> {
        within("sockets", self.sockets.into(), 1, 8)?;
        within("coresPerSocket", self.cores_per_socket.into(), 1, 256)?;
        within("threadsPerCore", self.threads_per_core.into(), 1, 2)?;
        within("memoryMiB", self.memory_mib, 1024, 1 << 30)?;
        let caches = self.last_level_caches;
        let most = self.cores_per_socket.min(64);
        within("lastLevelCaches.perSocket", caches.per_socket.into(), 1, most.into())?;
        within("lastLevelCaches.sizeKiB", caches.size_kib.unwrap_or(1), 1, 1 << 24)?;
        for (size, pages) in &self.hugepages {
            let most = self.memory_mib / i64::from(self.sockets) / size.mib().unwrap_or(1);
            within("hugepages", *pages, 0, most)?;
        }
        for (field, cpus) in [("isolatedCpus", &self.isolated_cpus), ("reservedCpus", &self.reserved_cpus)] {
            let last = cpus.iter().last().map_or(0, i64::from);
            if last >= i64::from(self.cpus()) {
                let expected = format!("the host has the CPUs 0-{}", self.cpus() - 1);
                return Err(HostFileError::NotPossible { field, value: cpus.to_string(), expected });
            }
        }
        for cards in &self.cards {
            within("cards[].count", cards.count.into(), 0, 64)?;
            self.check_cells("cards[].numaCells", &cards.model, &cards.numa_cells, cards.count)?;
        }
        for (devices, count, used, cells) in [
            (&self.network_cards, "networkCards[].count", "networkCards[].inUse", "networkCards[].numaCells"),
            (&self.nvme_drives, "nvmeDrives[].count", "nvmeDrives[].inUse", "nvmeDrives[].numaCells"),
        ] {
            for device in devices {
                within(count, device.count.into(), 0, 64)?;
                within(used, device.in_use.into(), 0, device.count.into())?;
                self.check_cells(cells, &device.model, &device.numa_cells, device.count)?;
            }
        }
        Ok(())
    }

    fn check_cells(
        &self,
        field: &'static str,
        model: &str,
        cells: &[i32],
        count: i32,
    ) -> Result<(), HostFileError> {
        if !cells.is_empty() && i32::try_from(cells.len()).ok() != Some(count) {
            return Err(HostFileError::CellCount { model: model.into(), named: cells.len(), count });
        }
        cells.iter().try_for_each(|cell| within(field, (*cell).into(), 0, i64::from(self.sockets) - 1))
    }
}

pub(super) fn within(field: &'static str, value: i64, least: i64, most: i64) -> Result<(), HostFileError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(HostFileError::OutOfRange { field, value, expected: format!("{least} to {most}") })
}
