//! Health of a card, as its driver tells it.
#![expect(clippy::struct_field_names, reason = "the unit is in the name, as everywhere in the API")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Health of a card.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// The judgement. Only `Healthy` and `Unknown` cards get new desktops.
    #[serde(default)]
    pub state: HealthState,
    /// Its cause, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
    /// What the driver says must be done; absent when it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::lenient::word")]
    #[schemars(schema_with = "crate::schema::optional::<RecoveryAction>")]
    pub recovery_action: Option<RecoveryAction>,
    /// Errors that the driver reported since the daemon started, one entry per code and slice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub xids: Vec<Xid>,
    /// Memory errors; absent when the card has no ECC or the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc: Option<Ecc>,
    /// Memory rows replaced by spare ones; absent when the card cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_remapping: Option<RowRemapping>,
    /// Why the card runs slower than it could: `SwPowerCap`, `HwThermalSlowdown`, `SwThermalSlowdown`,
    /// `HwPowerBrakeSlowdown`, `HwSlowdown`. Idle clocks and limits set by people are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 64)))]
    pub throttle_reasons: Vec<String>,
}

/// Judgement on a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum HealthState {
    /// Nothing speaks of health here (no driver that tells).
    #[default]
    Unknown,
    /// The driver sees no fault.
    Healthy,
    /// Out of capacity until it is seen healthy. So is read what only a newer version knows.
    #[serde(other)]
    Failed,
}

/// What the driver says must be done with a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum RecoveryAction {
    /// Nothing.
    #[default]
    None,
    /// Reset the card.
    GpuReset,
    /// Reboot the machine.
    NodeReboot,
    /// Stop traffic between cards.
    DrainP2P,
    /// Stop its users, then reset the card.
    DrainAndReset,
}

/// An error that the driver reported.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Xid {
    /// NVIDIA's number of the error.
    #[schemars(range(min = 0, max = 65_535))]
    pub code: i32,
    /// The slice that is blamed, by its GPU instance; absent when the whole card is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub gpu_instance: Option<i32>,
    /// The slice that is blamed, by its compute instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub compute_instance: Option<i32>,
    /// When it was last reported; a repetition alone writes nothing.
    pub last_seen: Time,
    /// What it means and what to do, in one sentence.
    #[schemars(length(max = 512))]
    pub message: String,
}

/// Memory errors since the driver was loaded.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ecc {
    /// Whether ECC is switched on.
    pub enabled: bool,
    /// Errors that were corrected; a change of this figure alone writes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub corrected: Option<i64>,
    /// Errors that were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub uncorrected: Option<i64>,
}

/// Memory rows replaced by spare ones.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RowRemapping {
    /// Rows replaced after errors that were corrected.
    #[schemars(range(min = 0))]
    pub corrected: i32,
    /// Rows replaced after errors that were not.
    #[schemars(range(min = 0))]
    pub uncorrected: i32,
    /// A row waits for a reset of the card.
    pub pending: bool,
    /// No spare row was left: the card must be replaced.
    pub failed: bool,
}

/// Temperatures that the driver itself acts on, in degrees Celsius. Newer drivers print margins; they
/// are added to what the driver says of now.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemperatureThresholds {
    /// The card shuts down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -100, max = 500))]
    pub shutdown_celsius: Option<i32>,
    /// The card slows down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -100, max = 500))]
    pub slowdown_celsius: Option<i32>,
    /// The highest at which the GPU is meant to work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -100, max = 500))]
    pub max_operating_celsius: Option<i32>,
    /// The highest at which its memory is meant to work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -100, max = 500))]
    pub memory_max_operating_celsius: Option<i32>,
}
