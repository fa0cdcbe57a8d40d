//! What the node daemon is about on a card, and what it left alone there.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Something on a card that gpudesk did not make: it counts as taken, and nothing of gpudesk touches it, unless the
/// annotation `gpudesk.dev/adopt` of the `GpuNode` names it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForeignDevice {
    /// What it is called: the PCI address of a function, the UUID of a mediated device, or the UUID of a MIG device
    /// (`MIG-...`) for a GPU instance without a vGPU.
    #[schemars(length(min = 1, max = 128))]
    pub device: String,
    /// What somebody did: made it on the host, bound it to a driver by hand, gave it to a domain of libvirt that is
    /// not of gpudesk.
    #[schemars(length(max = 256))]
    pub what: String,
}

/// The last reset of a card, or of a function of it, between two users. It promises no more than what was seen.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CardReset {
    /// The kernel's method: `flr`, `bus`, `pm`, `device_specific`; `default` where the kernel does not say which.
    #[schemars(length(max = 32))]
    pub method: String,
    /// When.
    pub time: Time,
    /// Whether the function told the same ids and class afterwards as before, and its registers answered that did so
    /// before the card had its first user. When not, the card is given to nobody until a reset succeeds or the host was
    /// rebooted.
    pub succeeded: bool,
    /// What was seen to answer afterwards. `Registers` is missing of a virtual function, and where they cannot be read or
    /// never told anything but ones: as on a kernel in lockdown. Such a card is not held back for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub verified: Vec<ResetCheck>,
    /// What failed, in one sentence; absent when it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
}

/// What answers after a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum ResetCheck {
    /// Ids, revision and class in its configuration, the same as before the reset.
    Ids,
    /// The first word of the memory region with its registers: it is not all ones.
    Registers,
    /// What a newer version knows.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// How a drive was erased after a user. It promises no more than what the drive said of it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DriveErasure {
    /// As the rule in `spec.nvmeDrives` had it when the drive was given: `Format`, `Sanitize`, `Discard`, `None`.
    #[schemars(length(max = 32))]
    pub method: String,
    /// When it ended.
    pub time: Time,
    /// Whether the drive completed it and has the size that it had before. When not, it is given to nobody, and
    /// erased again.
    pub succeeded: bool,
    /// What failed, in one sentence; absent when it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
}

/// What a step on a card waits for.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CardWait {
    /// The step, and the process of the host that is waited for, where one is seen, in one sentence.
    #[schemars(length(max = 512))]
    pub what: String,
    /// Since when.
    pub since: Time,
}

/// How far what desktops had on a card is put back, after a start of the daemon or of the host.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Restoring {
    /// Shares that are put back.
    #[schemars(range(min = 0, max = 65_536))]
    pub done: i32,
    /// Shares of before.
    #[schemars(range(min = 0, max = 65_536))]
    pub total: i32,
}
