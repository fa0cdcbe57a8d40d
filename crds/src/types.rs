//! Values that are more than a string: parsed once at the edge, printed the same way everywhere.
//!
//! Parsing never panics and never takes more memory than the limits named here allow.

use std::{borrow::Cow, collections::BTreeSet, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A text that is not the value it should be. Names the text and what would be right.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is no {kind}: {expected}")]
pub struct ParseError {
    text: String,
    kind: &'static str,
    expected: &'static str,
}

impl ParseError {
    pub(crate) fn new(text: &str, kind: &'static str, expected: &'static str) -> Self {
        // A hostile text must not come back whole in a message.
        Self { text: text.chars().take(80).collect(), kind, expected }
    }
}

/// Serde and schema by way of the text form.
macro_rules! as_text {
    ($type:ty, $name:literal, $pattern:literal, $max:literal, $description:literal) => {
        impl TryFrom<String> for $type {
            type Error = ParseError;
            fn try_from(text: String) -> Result<Self, ParseError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string", "pattern": $pattern, "maxLength": $max, "description": $description
                })
            }
        }
    };
}

/// A PCI address, `domain:bus:device.function` in hexadecimal: `0000:41:00.0`.
///
/// Also read: without domain (`41:00.0` is domain 0) and with the eight-digit domain that some
/// vendor tools print. Always printed with at least four digits of domain, as sysfs does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// PCI domain (segment); 0 on most machines, up to 32 bits wide behind VMD.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device (slot), 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

as_text!(
    PciAddress,
    "PciAddress",
    "^([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]\\.[0-7]$",
    16,
    "A PCI address: domain:bus:device.function in hexadecimal, for example 0000:41:00.0."
);

impl PciAddress {
    /// Bus, device and function as one number.
    pub fn routing_id(self) -> u32 {
        u32::from(self.bus) << 8 | u32::from(self.device) << 3 | u32::from(self.function)
    }

    /// The address so many functions further on. `None` beyond the last bus.
    pub fn further(self, by: u32) -> Option<Self> {
        let id = self.routing_id().checked_add(by)?;
        Some(Self {
            domain: self.domain,
            bus: u8::try_from(id >> 8).ok()?,
            device: u8::try_from(id >> 3 & 0x1f).ok()?,
            function: u8::try_from(id & 7).ok()?,
        })
    }
}

impl FromStr for PciAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail =
            || ParseError::new(text, "PCI address", "write domain:bus:device.function, like 0000:41:00.0");
        let hex = |part: &str, digits: std::ops::RangeInclusive<usize>| {
            (digits.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit()))
                .then(|| u32::from_str_radix(part, 16).ok())
                .flatten()
        };
        let (rest, function) = text.rsplit_once('.').ok_or_else(fail)?;
        let (rest, device) = rest.rsplit_once(':').ok_or_else(fail)?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
        let byte = |value: u32| u8::try_from(value).ok();
        Ok(Self {
            domain: hex(domain, 4..=8).ok_or_else(fail)?,
            bus: hex(bus, 2..=2).and_then(byte).ok_or_else(fail)?,
            device: hex(device, 2..=2).and_then(byte).filter(|d| *d < 32).ok_or_else(fail)?,
            function: hex(function, 1..=1).and_then(byte).filter(|f| *f < 8).ok_or_else(fail)?,
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// A set of CPU numbers in the kernel's list format: `0-3,8,10-11`. Empty is the empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuSet(BTreeSet<u32>);

as_text!(
    CpuSet,
    "CpuSet",
    "^([0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*)?$",
    20_480,
    "CPU numbers in the kernel's list format, for example 0-3,8. Empty for none."
);

impl CpuSet {
    /// One more than the highest CPU number accepted (Linux builds for x86 with at most 8192).
    pub const LIMIT: u32 = 8192;

    /// Whether `cpu` is in the set.
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }
    /// Adds `cpu`; a number at or over [`CpuSet::LIMIT`] is left out.
    pub fn insert(&mut self, cpu: u32) {
        if cpu < Self::LIMIT {
            self.0.insert(cpu);
        }
    }
    /// Takes `cpu` out.
    pub fn remove(&mut self, cpu: u32) {
        self.0.remove(&cpu);
    }
    /// How many CPUs.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The CPUs, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }
    /// Whether no CPU is in both sets.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.0.is_disjoint(&other.0)
    }
    /// Whether every CPU of this set is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        Self(cpus.into_iter().filter(|cpu| *cpu < Self::LIMIT).collect())
    }
}

impl Extend<u32> for CpuSet {
    fn extend<I: IntoIterator<Item = u32>>(&mut self, cpus: I) {
        self.0.extend(cpus.into_iter().filter(|cpu| *cpu < Self::LIMIT));
    }
}

impl FromStr for CpuSet {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = || ParseError::new(text, "CPU list", "write CPU numbers below 8192, like 0-3,8");
        let number = |part: &str| {
            (!part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
                .then(|| part.parse::<u32>().ok())
                .flatten()
                .filter(|cpu| *cpu < Self::LIMIT)
                .ok_or_else(fail)
        };
        let mut cpus = BTreeSet::new();
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self(cpus));
        }
        for part in text.split(',') {
            match part.split_once('-') {
                None => {
                    cpus.insert(number(part)?);
                }
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(fail());
                    }
                    cpus.extend(first..=last);
                }
            }
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if(|next| *next == last + 1) {
                last = next;
            }
            match last - first {
                0 => write!(f, "{separator}{first}")?,
                1 => write!(f, "{separator}{first},{last}")?,
                _ => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

/// How a card is given to a desktop. One card is in one mode at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ShareMode {
    /// The whole card, by vfio-pci.
    Passthrough,
    /// A time-sliced vGPU: its own framebuffer, shared engines.
    Vgpu,
    /// A vGPU on a MIG GPU instance: its own framebuffer and its own slice of the engines.
    Mig,
    /// An SR-IOV virtual function of an AMD or Intel card.
    VirtualFunctions,
}

impl fmt::Display for ShareMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passthrough => "Passthrough",
            Self::Vgpu => "Vgpu",
            Self::Mig => "Mig",
            Self::VirtualFunctions => "VirtualFunctions",
        })
    }
}

/// Series of a vGPU type: what it is licensed and tuned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum VgpuSeries {
    /// Workstation: graphics and compute.
    Q,
    /// Business desktop.
    B,
    /// Applications (published to many users from one server).
    A,
    /// Compute only.
    C,
}

/// Size of the memory pages that back a desktop's memory.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum PageSize {
    /// Ordinary pages of the host.
    #[default]
    None,
    /// Hugepages of 2 MiB.
    #[serde(rename = "2Mi")]
    Mi2,
    /// Hugepages of 1 GiB.
    #[serde(rename = "1Gi")]
    Gi1,
}

impl PageSize {
    /// Size of one page in MiB; `None` for ordinary pages.
    pub fn mib(self) -> Option<i64> {
        match self {
            Self::None => None,
            Self::Mi2 => Some(2),
            Self::Gi1 => Some(1024),
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Mi2 => "2Mi",
            Self::Gi1 => "1Gi",
        })
    }
}

/// How much another tenant on the same card can disturb, ranked: each is stronger than the one before.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Isolation {
    /// Own memory, engines shared in time.
    #[default]
    TimeSliced,
    /// Own memory and own engines, by MIG or by virtual functions with own engines.
    HardwarePartition,
    /// Nobody else on the card.
    Exclusive,
}

impl ShareMode {
    /// What a share of this mode isolates.
    pub fn isolation(self) -> Isolation {
        match self {
            Self::Passthrough => Isolation::Exclusive,
            Self::Mig => Isolation::HardwarePartition,
            Self::Vgpu | Self::VirtualFunctions => Isolation::TimeSliced,
        }
    }
}
