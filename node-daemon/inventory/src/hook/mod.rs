//! What an admin's discovery hook printed, and how it joins what was found.
//!
//! ```text
//!   bytes ─▶ parse ─▶ HookAnswer ─┐
//!                                 ├─▶ merge ─▶ HostFacts
//!   a scan ─▶ HostFacts ──────────┘
//! ```
//!
//! Two forms are read. The discovery document of Apache CloudStack (`gpudiscovery.sh`) is taken as it
//! is, with all the freedom its shells and versions take. gpudesk's own form is strict: what is wrong is
//! named by field and value, and nothing of it is used.

mod cloudstack;
mod merge;
mod own;
mod schema;

#[cfg(test)]
mod tests;

use gpudesk_crds::types::PciAddress;
use serde_json::Value;
use thiserror::Error;

pub use merge::merge;

/// The most bytes that an answer may have.
pub const MAX_BYTES: usize = 4 << 20;
/// The most cards in an answer, and on a host.
const MAX_CARDS: usize = 64;
/// The most remarks on an answer that are kept.
const MAX_NOTES: usize = 16;

/// How sentences about what of an answer could not be used begin.
pub(crate) const REMARK: &str = "of the discovery hook's answer";

/// How a discovery hook fared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HookView {
    /// There is none.
    #[default]
    NotConfigured,
    /// Its last answer is used.
    Good,
    /// It failed; an older answer of it, if any, still stands.
    Failed {
        /// The cause, in one sentence.
        why: String,
        /// Whether there is an older answer.
        answered: bool,
    },
}

/// What a hook said, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct HookAnswer {
    mode: Mode,
    devices: Devices,
    notes: Vec<String>,
}

impl HookAnswer {
    /// Whether the answer adds to what was found or stands in its place.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Entries of the answer that could not be used, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The cards in the answer, lowest address first.
    pub fn addresses(&self) -> Vec<PciAddress> {
        match &self.devices {
            Devices::CloudStack(cards) => cards.iter().map(cloudstack::Card::address).collect(),
            Devices::Own(cards) => cards.iter().map(|card| card.address).collect(),
        }
    }
}

/// What becomes of the cards that were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They stay; fields that the hook names are as the hook says.
    Extend,
    /// Only what the hook says counts.
    Replace,
}

#[derive(Clone, Debug, PartialEq)]
enum Devices {
    CloudStack(Vec<cloudstack::Card>),
    Own(Vec<own::Card>),
}

/// Why what a hook printed cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum HookError {
    /// More than [`MAX_BYTES`].
    #[error("the output is {bytes} bytes long, more than {MAX_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not JSON, or nested too deep.
    #[error("the output is not JSON: {0}")]
    NotJson(String),
    /// JSON of neither form.
    #[error(
        "the output is neither CloudStack's {{\"gpus\": [...]}} nor gpudesk's {{\"apiVersion\": \"{API_VERSION}\", \"kind\": \"{KIND}\"}}"
    )]
    NeitherForm,
    /// A field that is not as it should be.
    #[error("{path}: {problem}")]
    Field {
        /// Where it is, as `devices[0].bars[1].index`.
        path: String,
        /// The value, and what would be right.
        problem: String,
    },
}

const API_VERSION: &str = "gpudesk.dev/v1alpha1";
const KIND: &str = "Discovery";

/// Reads what a hook printed.
///
/// Takes memory in proportion to the bytes, of which there may be [`MAX_BYTES`]; nesting is limited by
/// the JSON reader (128 levels).
///
/// # Errors
/// [`HookError`], which names the field and the value. CloudStack's form fails only where it is no
/// list of cards at all; entries in it that cannot be used become [`HookAnswer::notes`].
pub fn parse(output: &[u8]) -> Result<HookAnswer, HookError> {
    if output.len() > MAX_BYTES {
        return Err(HookError::TooLarge { bytes: output.len() });
    }
    let value: Value =
        serde_json::from_slice(output).map_err(|error| HookError::NotJson(clip(&error.to_string(), 200)))?;
    let Value::Object(fields) = value else { return Err(HookError::NeitherForm) };
    if fields.contains_key("apiVersion") || fields.contains_key("kind") {
        own::parse(fields)
    } else if let Some(cards) = fields.get("gpus") {
        cloudstack::parse(cards)
    } else {
        Err(HookError::NeitherForm)
    }
}

/// What is said of a card or a virtual function that a foreign virtual machine holds.
pub(crate) fn foreign_use(machine: &str) -> String {
    format!("in use by the virtual machine {}, which gpudesk did not make", clip(machine, 200))
}

/// At most `limit` characters of the text, none of them a control character.
fn clip(text: &str, limit: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(limit).collect()
}

/// A value as messages show it.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => clip(&value.to_string(), 80),
    }
}
