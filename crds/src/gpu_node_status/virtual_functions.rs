//! Virtual functions. A card has up to 256 that differ in nothing but their numbers: those are written as one.

use kube::KubeSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::types::PciAddress;

/// The most of one card.
const MOST: usize = 256;

/// A virtual function that is switched on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualFunction {
    /// PCI address.
    pub pci_address: PciAddress,
    /// Number among those of its card, from 0.
    pub index: i32,
    /// Device id, four hexadecimal digits, where it is not the card's own.
    pub device_id: Option<String>,
    /// Kernel driver bound; absent when none is.
    pub driver: Option<String>,
    /// Number of its IOMMU group; absent without an IOMMU.
    pub iommu_group: Option<i32>,
    /// Why no desktop can get it, when its IOMMU group or a foreign user stands in the way.
    pub unavailable: Option<String>,
}

/// Virtual functions that are switched on: one, or several in a row that differ in nothing but their numbers.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualFunctions {
    /// PCI address of the first.
    pub pci_address: PciAddress,
    /// Number of the first among those of its card, from 0; the others have the next ones.
    #[schemars(range(min = 0, max = 65_535))]
    pub index: i32,
    /// How many there are. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub count: Option<i32>,
    /// From one address to the next, counted over bus, device and function. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub stride: Option<i32>,
    /// Device id, four hexadecimal digits, where it is not the card's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub device_id: Option<String>,
    /// Kernel driver bound; absent when none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub driver: Option<String>,
    /// Number of the IOMMU group of the first, the others are in the next ones; absent without an IOMMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub iommu_group: Option<i32>,
    /// Why no desktop can get them, when their IOMMU group or a foreign user stands in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub unavailable: Option<String>,
}

impl VirtualFunctions {
    fn one(function: &VirtualFunction) -> Self {
        let VirtualFunction { pci_address, index, device_id, driver, iommu_group, unavailable } =
            function.clone();
        Self { pci_address, index, count: None, stride: None, device_id, driver, iommu_group, unavailable }
    }

    fn len(&self) -> i32 {
        self.count.unwrap_or(1)
    }

    fn get(&self, number: i32) -> Option<VirtualFunction> {
        let further = u32::try_from(self.stride.unwrap_or(1).checked_mul(number)?).ok()?;
        Some(VirtualFunction {
            pci_address: self.pci_address.further(further)?,
            index: self.index.checked_add(number)?,
            device_id: self.device_id.clone(),
            driver: self.driver.clone(),
            iommu_group: self.iommu_group.map(|group| group.saturating_add(number)),
            unavailable: self.unavailable.clone(),
        })
    }

    /// The same and `next`, where that goes on with the row.
    fn and(&self, next: &VirtualFunction) -> Option<Self> {
        let mut more = Self { count: Some(self.len() + 1), ..self.clone() };
        if self.len() == 1 {
            let step = next.pci_address.routing_id().checked_sub(self.pci_address.routing_id())?;
            more.stride = Some(i32::try_from(step).ok()?).filter(|step| *step != 1);
        }
        (more.get(self.len()).as_ref() == Some(next)).then_some(more)
    }
}

/// Writes functions that follow each other as one.
pub(crate) fn serialize<S: Serializer>(functions: &[VirtualFunction], to: S) -> Result<S::Ok, S::Error> {
    let mut rows: Vec<VirtualFunctions> = vec![];
    for function in functions {
        match rows.last_mut() {
            Some(row)
                if row.len() < 256
                    && let Some(more) = row.and(function) =>
            {
                *row = more;
            }
            _ => rows.push(VirtualFunctions::one(function)),
        }
    }
    rows.serialize(to)
}

/// Reads them one by one; not more than a card has, whatever the counts say.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<VirtualFunction>, D::Error> {
    let rows = Vec::<VirtualFunctions>::deserialize(from)?;
    Ok(rows.iter().flat_map(|row| (0..row.len()).map_while(|number| row.get(number))).take(MOST).collect())
}
