//! What the guest's own tools say of it: sysfs read by a shell, `lspci`, libvirt.
//!
//! None of it goes through code of gpudesk, so that the two can be compared.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

/// One record of `lspci -Dvmmnnk`: its lines by their keys. `Module` may come more than once; the
/// last counts.
pub type LspciRecord = BTreeMap<String, String>;

/// The records of `lspci -Dvmmnnk` by address.
pub fn lspci(text: &str) -> BTreeMap<String, LspciRecord> {
    let records = text.split("\n\n").map(|record| {
        let lines = record.lines().filter_map(|line| line.split_once(":\t"));
        lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect::<LspciRecord>()
    });
    records.filter_map(|record| Some((record.get("Slot")?.clone(), record))).collect()
}

/// The four digits in brackets at the end of a name: `10de` of `NVIDIA Corporation [10de]`.
pub fn id(name: &str) -> Option<&str> {
    name.strip_suffix(']')?.rsplit_once('[').map(|(_, id)| id)
}

/// Prints what sysfs says of every PCI function, as [`sysfs`] reads it: `ADDRESS/FILE:LINE` for each
/// line of a file, and `ADDRESS/LINK->TARGET`. Few processes: starting one takes 40 ms in the guest.
pub const SYSFS_SCRIPT: &str = "
cd /sys/bus/pci/devices
for file in vendor device class subsystem_vendor subsystem_device numa_node boot_vga reset_method \
    sriov_totalvfs sriov_numvfs max_link_width max_link_speed resource; do
  grep --no-messages --with-filename '' */$file
done
find . -maxdepth 1 -type l -printf '%f/path->%l\\n'
find */ -maxdepth 1 -type l -printf '%p->%l\\n'
";

/// What sysfs says of one function: the lines of files, and where links point, by their names.
/// `path` is where the function's own link points.
pub type SysfsRecord = BTreeMap<String, String>;

/// The records that [`SYSFS_SCRIPT`] prints, by address.
pub fn sysfs(text: &str) -> BTreeMap<String, SysfsRecord> {
    let mut records: BTreeMap<String, SysfsRecord> = BTreeMap::new();
    for line in text.lines() {
        // An address has colons and a dot, but no slash.
        let Some((address, rest)) = line.split_once('/') else { continue };
        let Some((name, value)) = rest.split_once("->").or_else(|| rest.split_once(':')) else { continue };
        let value = if rest.contains("->") && name != "path" {
            value.rsplit('/').next().unwrap_or(value)
        } else {
            value
        };
        let entry = records.entry(address.to_owned()).or_default().entry(name.to_owned()).or_default();
        if !entry.is_empty() {
            entry.push('\n');
        }
        entry.push_str(value.trim());
    }
    records
}

/// Prints what libvirt says of every PCI function, as [`node_devices`] reads it.
pub const NODE_DEVICES_SCRIPT: &str = "
libvirt='virsh --quiet --connect qemu:///system'
$libvirt \"$(printf 'nodedev-dumpxml %s; ' $($libvirt nodedev-list --cap pci))\"
";

/// The documents that [`NODE_DEVICES_SCRIPT`] prints, by address.
///
/// # Errors
/// When one is not as libvirt documents it.
pub fn node_devices(text: &str) -> Result<BTreeMap<String, NodeDevice>> {
    let documents = text.split_inclusive("</device>").filter(|document| document.contains("<device>"));
    let devices = documents.map(|document| {
        let device: NodeDevice =
            quick_xml::de::from_str(document).with_context(|| format!("read {document}"))?;
        let PciCapability { domain, bus, slot, function, .. } = device.capability;
        Ok((format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"), device))
    });
    devices.collect()
}

/// A PCI function in `virsh nodedev-dumpxml`.
#[derive(Debug, Deserialize)]
pub struct NodeDevice {
    /// Kernel driver bound.
    pub driver: Option<Driver>,
    /// The rest.
    pub capability: PciCapability,
}

/// Name of a driver.
#[derive(Debug, Deserialize)]
pub struct Driver {
    /// The name.
    pub name: String,
}

/// `<capability type='pci'>`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PciCapability {
    domain: u32,
    bus: u8,
    slot: u8,
    function: u8,
    /// Product.
    pub product: Ids,
    /// Vendor.
    pub vendor: Ids,
    /// Virtual functions, the physical function, mdev types.
    #[serde(default)]
    pub capability: Vec<Capability>,
    /// The IOMMU group; absent without.
    pub iommu_group: Option<Group>,
    /// The NUMA cell; absent when unknown.
    pub numa: Option<Numa>,
}

impl PciCapability {
    /// The capability of this type.
    pub fn of_type(&self, kind: &str) -> Option<&Capability> {
        self.capability.iter().find(|capability| capability.kind == kind)
    }
}

/// The id of a vendor or product, with `0x`.
#[derive(Debug, Deserialize)]
pub struct Ids {
    /// The id.
    #[serde(rename = "@id")]
    pub id: String,
}

/// A capability of a PCI function.
#[derive(Debug, Deserialize)]
pub struct Capability {
    /// `virt_functions`, `phys_function`, `mdev_types` and others.
    #[serde(rename = "@type")]
    pub kind: String,
    /// How many virtual functions there can be.
    #[serde(rename = "@maxCount")]
    pub max_count: Option<u32>,
    /// The virtual functions, or the physical one.
    #[serde(default)]
    pub address: Vec<Address>,
    /// The mdev types.
    #[serde(default, rename = "type")]
    pub types: Vec<MdevType>,
}

/// An mdev type.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MdevType {
    /// Name of its folder in sysfs.
    #[serde(rename = "@id")]
    pub id: String,
    /// Product name.
    pub name: String,
    /// How many more can be created.
    pub available_instances: u32,
}

/// An IOMMU group, with the function itself among its members.
#[derive(Debug, Deserialize)]
pub struct Group {
    /// Its number.
    #[serde(rename = "@number")]
    pub number: i32,
    /// Its members.
    pub address: Vec<Address>,
}

/// A PCI address.
#[derive(Debug, Deserialize)]
pub struct Address {
    #[serde(rename = "@domain")]
    domain: String,
    #[serde(rename = "@bus")]
    bus: String,
    #[serde(rename = "@slot")]
    slot: String,
    #[serde(rename = "@function")]
    function: String,
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [domain, bus, slot, function] = [&self.domain, &self.bus, &self.slot, &self.function]
            .map(|number| number.strip_prefix("0x").unwrap_or(number));
        write!(out, "{domain}:{bus}:{slot}.{function}")
    }
}

/// A NUMA cell.
#[derive(Debug, Deserialize)]
pub struct Numa {
    /// Its number.
    #[serde(rename = "@node")]
    pub node: i32,
}

/// The cells and caches of the host in `virsh capabilities`.
///
/// # Errors
/// When the document is not as libvirt documents it.
pub fn capabilities(text: &str) -> Result<HostCapabilities> {
    let document: Capabilities = quick_xml::de::from_str(text).context("read virsh capabilities")?;
    Ok(document.host)
}

#[derive(Debug, Deserialize)]
struct Capabilities {
    host: HostCapabilities,
}

/// The host in `virsh capabilities`.
#[derive(Debug, Deserialize)]
pub struct HostCapabilities {
    /// Its NUMA topology.
    pub topology: Topology,
    /// Its caches.
    pub cache: Caches,
}

/// NUMA topology.
#[derive(Debug, Deserialize)]
pub struct Topology {
    /// The cells.
    pub cells: Cells,
}

/// NUMA cells.
#[derive(Debug, Deserialize)]
pub struct Cells {
    /// The cells.
    pub cell: Vec<Cell>,
}

/// A NUMA cell.
#[derive(Debug, Deserialize)]
pub struct Cell {
    /// Its number.
    #[serde(rename = "@id")]
    pub id: i32,
    /// Its memory.
    pub memory: Kibibytes,
    /// Pages of each size, also the ordinary ones.
    pub pages: Vec<Pages>,
    /// Distances to all cells.
    pub distances: Distances,
    /// Its CPUs.
    pub cpus: Cpus,
}

/// An amount of memory.
#[derive(Debug, Deserialize)]
pub struct Kibibytes {
    /// In KiB.
    #[serde(rename = "$text")]
    pub kib: u64,
}

/// Pages of one size.
#[derive(Debug, Deserialize)]
pub struct Pages {
    /// Size in KiB.
    #[serde(rename = "@size")]
    pub size: u64,
    /// How many there are.
    #[serde(rename = "$text")]
    pub count: i64,
}

/// Distances from a cell.
#[derive(Debug, Deserialize)]
pub struct Distances {
    /// One to each cell.
    pub sibling: Vec<Distance>,
}

/// The distance to a cell.
#[derive(Debug, Deserialize)]
pub struct Distance {
    /// Number of the other cell.
    #[serde(rename = "@id")]
    pub id: i32,
    /// The distance.
    #[serde(rename = "@value")]
    pub value: i32,
}

/// CPUs of a cell.
#[derive(Debug, Deserialize)]
pub struct Cpus {
    /// The CPUs.
    pub cpu: Vec<Cpu>,
}

/// A CPU.
#[derive(Debug, Deserialize)]
pub struct Cpu {
    /// Number of its socket.
    #[serde(rename = "@socket_id")]
    pub socket: i32,
    /// The threads of its core: `0-1`.
    #[serde(rename = "@siblings")]
    pub siblings: String,
}

/// Caches of the host.
#[derive(Debug, Deserialize)]
pub struct Caches {
    /// The caches.
    pub bank: Vec<Bank>,
}

/// A cache.
#[derive(Debug, Deserialize)]
pub struct Bank {
    /// Its level.
    #[serde(rename = "@level")]
    pub level: i32,
    /// Its size in `unit`.
    #[serde(rename = "@size")]
    pub size: i64,
    /// `KiB` or `MiB`.
    #[serde(rename = "@unit")]
    pub unit: String,
    /// The CPUs that share it.
    #[serde(rename = "@cpus")]
    pub cpus: String,
}
