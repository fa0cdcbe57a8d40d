//! What a driver answers about how a card is.

use serde::{Deserialize, Serialize};

/// Temperatures of a card in degrees Celsius.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TemperatureReadings {
    /// Now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<i32>,
    /// Thresholds in degrees, as drivers give them up to the Ampere cards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degrees: Option<Thresholds>,
    /// How far it is to the highest operating temperature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<i32>,
    /// Thresholds as margins: what `margin` has fallen to when the driver acts, negative beyond the
    /// highest operating temperature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margins: Option<Thresholds>,
}

/// Thresholds at which the driver acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Thresholds {
    /// The card shuts down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<i32>,
    /// The card slows down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowdown: Option<i32>,
    /// The highest at which the GPU is meant to work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_max: Option<i32>,
    /// The highest at which its memory is meant to work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<i32>,
}

/// Memory errors since the driver was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EccReadings {
    /// Whether ECC is on.
    pub enabled: bool,
    /// Errors corrected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrected: Option<u64>,
    /// Errors not corrected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncorrected: Option<u64>,
}

/// Rows of memory replaced by spare ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RowRemappingReadings {
    /// Rows replaced after errors that were corrected.
    pub corrected: u32,
    /// Rows replaced after errors that were not.
    pub uncorrected: u32,
    /// A replacement waits for a reset.
    pub pending: bool,
    /// A replacement failed.
    pub failed: bool,
}
