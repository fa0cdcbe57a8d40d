//! The file: which cards there are, in what state, and what goes wrong.
#![expect(clippy::disallowed_methods, reason = "adapter: reads the file")]

use std::{collections::BTreeSet, env, fs, path::PathBuf, sync::LazyLock};

use serde::Deserialize;
use thiserror::Error;

/// The world, as the file says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "a driver has many things that are so or not")]
pub(crate) struct World {
    #[serde(default = "driver_version")]
    pub(crate) driver_version: String,
    /// Whether the kernel module is loaded.
    #[serde(default = "yes")]
    pub(crate) driver_loaded: bool,
    /// Whether the driver is a vGPU host driver.
    #[serde(default = "yes")]
    pub(crate) vgpu_host: bool,
    /// Functions that this driver does not know.
    #[serde(default)]
    pub(crate) missing: BTreeSet<String>,
    /// Structures of which the driver knows only this version or older ones: `VgpuPlacementList: 1`.
    #[serde(default)]
    pub(crate) newest: std::collections::BTreeMap<String, u32>,
    #[serde(default)]
    pub(crate) faults: Vec<Fault>,
    #[serde(default)]
    pub(crate) cards: Vec<Card>,
    /// What cards report; those that are there when somebody begins to listen are past.
    #[serde(default)]
    pub(crate) events: Vec<Event>,
    /// Counts how often the kernel module was loaded, by hand or with the host.
    #[serde(default)]
    pub(crate) loads: u32,
    /// Whether the caller may change things, and list instances.
    #[serde(default = "yes")]
    pub(crate) privileged: bool,
    /// The cards are given to a virtual machine, and this is inside it.
    #[serde(default)]
    pub(crate) guest: bool,
    /// File to which each call is added that changes something, beside this one unless it is a path.
    #[serde(default)]
    pub(crate) recorder: Option<PathBuf>,
    /// Where the PCI devices of the cards are: `/sys`. `vgpus` are then only those that run.
    #[serde(default)]
    pub(crate) sysfs: Option<PathBuf>,
}

/// Something that goes wrong.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Fault {
    /// The function; all when absent.
    #[serde(default)]
    pub(crate) function: Option<String>,
    /// The card; all when absent.
    #[serde(default)]
    pub(crate) card: Option<String>,
    /// What the function returns, without `NVML_ERROR_`: `IN_USE`. It works when absent.
    #[serde(default)]
    pub(crate) error: Option<String>,
    /// How long it takes before.
    #[serde(default)]
    pub(crate) delay_ms: u64,
    /// The function works, and the delay and the error come after it: what it did is done.
    #[serde(default)]
    pub(crate) after: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "a card has many things that are on or off")]
pub(crate) struct Card {
    /// Model, as in `cards.yaml`; or by PCI id.
    #[serde(default)]
    pub(crate) model: Option<String>,
    #[serde(default)]
    pub(crate) pci_id: Option<String>,
    /// Prefix of its vGPU types, where several models have the PCI id.
    #[serde(default)]
    pub(crate) prefix: Option<String>,
    pub(crate) address: String,
    #[serde(default)]
    pub(crate) uuid: Option<String>,
    #[serde(default)]
    pub(crate) serial: Option<String>,
    #[serde(default)]
    pub(crate) module_id: Option<u32>,
    /// It fell off the bus.
    #[serde(default)]
    pub(crate) lost: bool,
    /// Somebody holds it open, a display server or nvidia-drm, so that it cannot be reset.
    #[serde(default)]
    pub(crate) in_use: bool,
    /// Who computes or draws on it.
    #[serde(default)]
    pub(crate) processes: Vec<Process>,
    /// Numbers of GPU instances that somebody holds who is in no list.
    #[serde(default)]
    pub(crate) leaked: Vec<u32>,
    /// Counts resets, and bindings to the driver: instances do not outlive one.
    #[serde(default)]
    pub(crate) resets: u32,
    /// Least, default and greatest limit of power in milliwatts.
    #[serde(default = "power")]
    pub(crate) power: [u32; 3],
    #[serde(default)]
    pub(crate) mig: bool,
    /// MIG after the next reset, where it is another.
    #[serde(default)]
    pub(crate) mig_pending: Option<bool>,
    #[serde(default)]
    pub(crate) gpu_instances: Vec<GpuInstance>,
    #[serde(default)]
    pub(crate) mixed_size: bool,
    #[serde(default = "best_effort")]
    pub(crate) scheduler: u32,
    #[serde(default)]
    pub(crate) vgpus: Vec<Vgpu>,
    #[serde(default = "warm")]
    pub(crate) temperature: u32,
    #[serde(default = "margin")]
    pub(crate) margin: i32,
    /// Bits of reasons for low clocks.
    #[serde(default)]
    pub(crate) throttle: u64,
    #[serde(default = "yes")]
    pub(crate) ecc: bool,
    #[serde(default)]
    pub(crate) ecc_corrected: u64,
    #[serde(default)]
    pub(crate) ecc_uncorrected: u64,
    #[serde(default)]
    pub(crate) rows: Rows,
    /// Absent: the driver is too old to say.
    #[serde(default = "nothing_to_do")]
    pub(crate) recovery_action: Option<u32>,
    /// What is at the other end of each link that is up.
    #[serde(default)]
    pub(crate) nvlinks: Vec<String>,
    #[serde(default)]
    pub(crate) fabric: Option<Fabric>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct GpuInstance {
    pub(crate) profile: String,
    pub(crate) start: u32,
    #[serde(default)]
    pub(crate) id: Option<u32>,
    /// Slices of each compute instance; one that takes all when absent.
    #[serde(default)]
    pub(crate) compute: Option<Vec<u32>>,
}

/// A process that uses a card.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    #[serde(default)]
    pub(crate) graphics: bool,
    #[serde(default)]
    pub(crate) gpu_instance: Option<u32>,
    #[serde(default)]
    pub(crate) compute_instance: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Vgpu {
    #[serde(rename = "type")]
    pub(crate) type_name: String,
    #[serde(default)]
    pub(crate) uuid: Option<String>,
    #[serde(default)]
    pub(crate) mdev_uuid: Option<String>,
    #[serde(default)]
    pub(crate) vm_id: Option<String>,
    #[serde(default)]
    pub(crate) placement: Option<u32>,
    #[serde(default)]
    pub(crate) gpu_instance: Option<u32>,
    #[serde(default)]
    pub(crate) licensed: bool,
    #[serde(default)]
    pub(crate) guest_driver: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Rows {
    pub(crate) corrected: u32,
    pub(crate) uncorrected: u32,
    pub(crate) pending: bool,
    pub(crate) failed: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Fabric {
    pub(crate) state: u8,
    #[serde(default)]
    pub(crate) status: u32,
    #[serde(default)]
    pub(crate) cluster: [u8; 16],
    #[serde(default)]
    pub(crate) clique: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Event {
    pub(crate) card: String,
    /// The bit of the event; that of an XID when absent.
    #[serde(rename = "type", default)]
    pub(crate) kind: Option<u64>,
    #[serde(default)]
    pub(crate) xid: u64,
    #[serde(default)]
    pub(crate) gpu_instance: Option<u32>,
    #[serde(default)]
    pub(crate) compute_instance: Option<u32>,
}

fn driver_version() -> String {
    "580.95.05".into()
}

fn yes() -> bool {
    true
}

fn best_effort() -> u32 {
    1
}

fn power() -> [u32; 3] {
    [200_000, 450_000, 600_000]
}

fn warm() -> u32 {
    41
}

fn margin() -> i32 {
    49
}

#[expect(clippy::unnecessary_wraps, reason = "the default of an optional field")]
fn nothing_to_do() -> Option<u32> {
    Some(0)
}

/// Why there is no world.
#[derive(Debug, Error)]
pub(crate) enum WorldError {
    /// No file.
    #[error("no file: set GPUDESK_FAKE_NVML")]
    NoFile,
    /// It cannot be read.
    #[error("{0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// It says nothing of sense.
    #[error("{0}: {1}")]
    Parse(PathBuf, serde_yaml::Error),
}

/// The file's text.
pub(crate) fn text() -> Result<(PathBuf, String), WorldError> {
    let file = file().ok_or(WorldError::NoFile)?;
    match fs::read_to_string(&file) {
        Ok(text) => Ok((file, text)),
        Err(error) => Err(WorldError::Read(file, error)),
    }
}

/// The world that a text describes.
pub(crate) fn parse(file: PathBuf, text: &str) -> Result<World, WorldError> {
    serde_yaml::from_str(text).map_err(|error| WorldError::Parse(file, error))
}

/// The file of this library.
static OWN: LazyLock<Option<PathBuf>> = LazyLock::new(own_path);

fn file() -> Option<PathBuf> {
    if let Ok(file) = env::var("GPUDESK_FAKE_NVML") {
        return Some(file.into());
    }
    let mut own = OWN.clone()?.into_os_string();
    own.push(".yaml");
    Some(own.into())
}

/// The file of this library: that of the mapping in which its own code lies.
fn own_path() -> Option<PathBuf> {
    let here = (own_path as *const ()).addr();
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let within =
            (usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?).contains(&here);
        let path = rest.splitn(5, ' ').last()?.trim_start();
        (within && path.starts_with('/')).then(|| path.into())
    })
}
