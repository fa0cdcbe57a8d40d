//! The parts of a `DesktopTemplate` that become devices: disks, folders, networks, screens, seed.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::desktop_template::yes;

/// A disk. Exactly one source.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.image), has(self.blank), has(self.hostFile), has(self.nfs), has(self.scratch), has(self.nvme)].filter(x, x).size() == 1").message("a disk has exactly one of image, blank, hostFile, nfs, scratch and nvme")
)]
pub struct Disk {
    /// A name for the disk, unique in the list.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("write lower-case letters, digits and hyphens, with a letter or digit at both ends, like system-1"))]
    pub name: String,
    /// How the guest sees it. Default: `Virtio`.
    #[serde(default)]
    pub bus: DiskBus,
    /// A golden image: the desktop writes to an overlay of its own and the image stays as it is. A
    /// desktop that has its overlay already keeps it when another image is named here; a golden image
    /// that was replaced or changed under its overlays is noticed, and they are not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageDisk>,
    /// An empty disk that lives as long as the desktop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blank: Option<SizedDisk>,
    /// An image file of the host, used as it is. Only regular files below the folders that the owner of
    /// the node allows; `..`, symbolic and hard links are refused on the node. Two desktops use one file
    /// at the same time only when both only read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_file: Option<HostFileDisk>,
    /// An image file on an NFS server. Not yet supported: a template that sets it is reported as
    /// not valid, and its desktops stay pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nfs: Option<NfsDisk>,
    /// An empty disk that is new at every start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<SizedDisk>,
    /// A whole NVMe drive of the node, which the guest has as an NVMe drive whatever `bus` says. What is on it lasts as
    /// long as the desktop holds its place: it is erased once the desktop is stopped, by the way that the owner of the
    /// node chose (`spec.nvmeDrives` of the `GpuNode`). A restart of the guest leaves it as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvme: Option<NvmeDisk>,
}

/// How a guest sees a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum DiskBus {
    /// virtio-blk.
    #[default]
    Virtio,
    /// SATA, for guests without virtio drivers.
    Sata,
    /// virtio-scsi.
    Scsi,
}

/// A golden image. Exactly one of `name` and `url`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.name) != has(self.url)").message("an image has exactly one of name and url"),
    validation = Rule::new("has(self.url) == has(self.sha256)").message("an image url comes with its sha256")
)]
pub struct ImageDisk {
    /// Name of an image in the node's image folders, without `.qcow2`: a name, not a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._+-]*$')").message("write a file name, not a path: letters, digits and . _ + - only, with a letter or digit first"))]
    pub name: Option<String>,
    /// Where the image is fetched from. Not yet supported: a template that sets it is reported as
    /// not valid, and its desktops stay pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[!-~]+$')").message("write an address that begins with http:// or https:// and has no spaces"))]
    pub url: Option<String>,
    /// SHA-256 of the file behind `url`, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{64}$')").message("write 64 lower-case hexadecimal digits, as sha256sum prints them"))]
    pub sha256: Option<String>,
    /// Size of the desktop's disk in GiB when it should be larger than the image; a smaller one than the
    /// image's is refused on the node. 1 to 65536.
    #[serde(rename = "sizeGiB", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub size_gib: Option<i32>,
}

/// A disk that is made empty.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SizedDisk {
    /// Size in GiB; takes room on the node as it fills. 1 to 65536.
    #[serde(rename = "sizeGiB")]
    #[schemars(range(min = 1, max = 65_536))]
    pub size_gib: i32,
}

/// An image file of the host.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostFileDisk {
    /// Absolute path on the node, below a folder that its owner allows.
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(validation = Rule::new("self.startsWith('/') && !self.matches('[[:cntrl:]]')").message("write an absolute path, one that begins with /, without control characters"))]
    #[x_kube(validation = Rule::new("!self.split('/').exists(p, p == '..')").message("path must not contain .."))]
    pub path: String,
    /// Format of the file. Stated and never guessed, for a guest could forge it. A `Qcow2` file that
    /// names a backing file or an external data file is refused at each start. Default: `Raw`.
    #[serde(default)]
    pub format: DiskFormat,
    /// Whether the guest may only read. The file then keeps its owner, and QEMU's user must be able to
    /// read it (`chmod o+r`); else it is QEMU's user's while the machine runs. Default: false.
    #[serde(default)]
    pub read_only: bool,
}

/// Format of an image file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum DiskFormat {
    /// The bytes of the disk.
    #[default]
    Raw,
    /// QEMU's own format.
    Qcow2,
}

/// An image file on an NFS server.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NfsDisk {
    /// Name or address of the server.
    #[schemars(length(min = 1, max = 253))]
    pub server: String,
    /// Path of the file on the server.
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(validation = Rule::new("self.startsWith('/') && !self.matches('[[:cntrl:]]')").message("write an absolute path, one that begins with /, without control characters"))]
    pub path: String,
}

/// A whole NVMe drive.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NvmeDisk {
    /// Least size in GiB. 1 to 1048576.
    #[serde(rename = "minimumSizeGiB")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub minimum_size_gib: i32,
}

/// A folder of the host.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filesystem {
    /// Name under which the guest mounts it, unique in the list.
    #[schemars(length(min = 1, max = 36))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*$')").message("write letters, digits and . _ - only, with a letter or digit first"))]
    pub tag: String,
    /// Absolute path on the node, below a folder that its owner allows.
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(validation = Rule::new("self.startsWith('/') && !self.matches('[[:cntrl:]]')").message("write an absolute path, one that begins with /, without control characters"))]
    #[x_kube(validation = Rule::new("!self.split('/').exists(p, p == '..')").message("source must not contain .."))]
    pub source: String,
    /// Whether the guest may only read; enforced on the host. Default: true.
    #[serde(default = "yes")]
    pub read_only: bool,
}

/// A network interface. Exactly one kind.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.user), has(self.bridge), has(self.libvirtNetwork), has(self.ovs), has(self.sriov)].filter(x, x).size() == 1").message("a network has exactly one of user, bridge, libvirtNetwork, ovs and sriov")
)]
pub struct Network {
    /// A name for the interface, unique in the list.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("write lower-case letters, digits and hyphens, with a letter or digit at both ends, like system-1"))]
    pub name: String,
    /// Address translation inside QEMU: reaches out, is not reached, and reaches neither the node nor
    /// other guests on it. Write `user: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserNetwork>,
    /// A bridge of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<NamedNetwork>,
    /// A network that libvirt on the node defines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libvirt_network: Option<NamedNetwork>,
    /// An Open vSwitch bridge of the host. Not yet supported: a template that sets it is reported
    /// as not valid, and its desktops stay pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ovs: Option<NamedNetwork>,
    /// An SR-IOV virtual function of a network card, given to the guest as it is: the guest needs a driver for it. Its
    /// address is derived from the desktop and the place in this list and stays the same; spoof check is on, and trust
    /// is off. What the card was told of the function before comes back once the desktop is stopped. The node must give functions of network
    /// cards (`nodeDaemon.networkFunctions` of the chart), and their number is its owner's to switch on. Cards in mode
    /// switchdev are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sriov: Option<SriovNetwork>,
}

/// Address translation inside QEMU.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNetwork {}

/// A network of the host by name.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedNetwork {
    /// Name on the host.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*$')").message("write letters, digits and . _ - only, with a letter or digit first"))]
    pub name: String,
}

/// An SR-IOV virtual function of a network card.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SriovNetwork {
    /// Name of the physical network as the owner of the node calls it, in `spec.physicalNetworks` of
    /// the `GpuNode`.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*$')").message("write letters, digits and . _ - only, with a letter or digit first"))]
    pub physical_network: String,
    /// VLAN, which the card adds and takes away. Without it the function keeps the one that the host's owner gave it.
    /// 1 to 4094.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4094))]
    pub vlan: Option<i32>,
}

/// Screens of the machine.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Consoles {
    /// VNC, on no port at all: `kubectl desktop view NAME` opens it, for who may `patch` the desktop.
    /// Write `vnc: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnc: Option<VncConsole>,
    /// SPICE. Not yet supported: a template that sets it is reported as not valid, and its desktops
    /// stay pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spice: Option<SpiceConsole>,
    /// Whether the screen is the one of the vGPU instead of an emulated card. Not yet supported
    /// when true: a template that says so is reported as not valid. Default: false.
    #[serde(default)]
    pub on_gpu: bool,
}

impl Default for Consoles {
    fn default() -> Self {
        Self { vnc: Some(VncConsole::default()), spice: None, on_gpu: false }
    }
}

/// A VNC screen.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VncConsole {
    /// Secret of the desktop's namespace whose key `password` protects the screen. Not yet
    /// supported: a template that sets it is reported as not valid, and its desktops stay pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretRef>,
}

/// A SPICE screen.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpiceConsole {}

/// First-boot configuration. Exactly one of `inline` and `secretRef`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.inline) != has(self.secretRef)").message("cloudInit has exactly one of inline and secretRef")
)]
pub struct CloudInit {
    /// The configuration itself. It can be read on every node of the cluster, and by whoever may read
    /// the object: what is secret belongs into a Secret (`secretRef`). The cluster may warn of it
    /// or refuse it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<InlineCloudInit>,
    /// Secret of the same namespace with the keys `userData` and, if wanted, `networkData`. Only the
    /// nodes read it that run a desktop which names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// First-boot configuration as text.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InlineCloudInit {
    /// User data: `#cloud-config` or a script. At most 32768 characters.
    #[schemars(length(min = 1, max = 32_768))]
    pub user_data: String,
    /// Network configuration, version 1 or 2. At most 8192 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub network_data: Option<String>,
}

/// Names a Secret of the same namespace.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message("write the name of a Secret: lower-case letters, digits, hyphens and dots"))]
    pub name: String,
}

/// One interface of kind `user`.
pub(crate) fn default_networks() -> Vec<Network> {
    vec![Network { name: "default".into(), user: Some(UserNetwork {}), ..Network::default() }]
}
