//! What cards can do, from the table inside this library.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Tables {
    #[serde(rename = "mixedSizeTables")]
    mixed: BTreeMap<String, Vec<MixedSize>>,
    #[serde(rename = "migTables")]
    mig: BTreeMap<String, Vec<Profile>>,
    cards: Vec<Model>,
    /// Numbers of vGPU types that the table does not know.
    #[serde(skip)]
    numbers: BTreeMap<String, u32>,
    /// Types by number.
    #[serde(skip)]
    all_types: BTreeMap<u32, VgpuType>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MixedSize {
    #[serde(rename = "framebufferMiB")]
    framebuffer_mib: u64,
    pub(crate) size: u32,
    pub(crate) starts: Vec<u32>,
}

/// A MIG profile.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Profile {
    pub(crate) name: String,
    pub(crate) id: u32,
    pub(crate) index: u32,
    pub(crate) compute: u32,
    #[serde(rename = "memoryMiB")]
    pub(crate) memory_mib: u64,
    pub(crate) max: u32,
    pub(crate) size: u32,
    pub(crate) starts: Vec<u32>,
    /// Copy, decoder, encoder, JPEG, optical flow.
    pub(crate) engines: [u32; 5],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Architecture {
    Volta,
    Turing,
    Ampere,
    Ada,
    Hopper,
    Blackwell,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Model {
    #[serde(rename = "model")]
    pub(crate) name: String,
    pub(crate) pci_ids: Vec<String>,
    pub(crate) architecture: Architecture,
    #[serde(rename = "memoryMiB")]
    pub(crate) memory_mib: u64,
    #[serde(default)]
    mig: Option<String>,
    #[serde(default)]
    pub(crate) prefix: Option<String>,
    #[serde(default)]
    name_head: Option<String>,
    #[serde(default)]
    pub(crate) mixes_sizes: bool,
    #[serde(default)]
    mixed_size_table: Option<String>,
    #[serde(default)]
    types: Vec<TimeSliced>,
    #[serde(default)]
    mig_types: Vec<OnMig>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TimeSliced {
    name: String,
    #[serde(rename = "framebufferMiB")]
    framebuffer_mib: u64,
    most: u32,
    #[serde(default)]
    id: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OnMig {
    name: String,
    #[serde(rename = "framebufferMiB")]
    framebuffer_mib: u64,
    profile: String,
    most: u32,
    #[serde(default)]
    id: Option<u32>,
}

/// A vGPU type of a card.
#[derive(Clone, Debug)]
pub(crate) struct VgpuType {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) full_name: String,
    pub(crate) framebuffer_mib: u64,
    /// On one card; on one GPU instance for a type that lives on one.
    pub(crate) most: u32,
    pub(crate) profile: Option<u32>,
}

/// The tables; empty when they cannot be read, which a test excludes.
pub(crate) static TABLES: LazyLock<Tables> = LazyLock::new(|| Tables::read().unwrap_or_default());

impl Tables {
    fn read() -> Result<Self, serde_yaml::Error> {
        let mut tables: Self = serde_yaml::from_str(include_str!("cards.yaml"))?;
        let given = |model: &Model| -> Vec<(String, Option<u32>)> {
            let plain = model.types.iter().map(|kind| (kind.name.clone(), kind.id));
            plain.chain(model.mig_types.iter().map(|kind| (kind.name.clone(), kind.id))).collect()
        };
        let all: Vec<_> = tables.cards.iter().flat_map(given).collect();
        let taken: BTreeSet<u32> = all.iter().filter_map(|(_, id)| *id).collect();
        let mut next = 300;
        for (name, id) in all {
            if tables.numbers.contains_key(&name) {
                continue;
            }
            let id = id.unwrap_or_else(|| {
                while taken.contains(&next) {
                    next += 1;
                }
                next += 1;
                next - 1
            });
            tables.numbers.insert(name, id);
        }
        let all: Vec<VgpuType> = tables.cards.iter().flat_map(|card| tables.types(card)).collect();
        for kind in all {
            tables.all_types.entry(kind.id).or_insert(kind);
        }
        Ok(tables)
    }

    /// The card of this model, or with this PCI id and, where several have it, this prefix of vGPU types.
    pub(crate) fn model(
        &self,
        named: Option<&str>,
        pci_id: Option<&str>,
        prefix: Option<&str>,
    ) -> Option<&Model> {
        self.cards.iter().find(|card| {
            named.is_none_or(|name| card.name.eq_ignore_ascii_case(name))
                && pci_id.is_none_or(|id| card.pci_ids.iter().any(|known| known.eq_ignore_ascii_case(id)))
                && prefix.is_none_or(|prefix| card.prefix.as_deref() == Some(prefix))
        })
    }

    pub(crate) fn profiles(&self, model: &Model) -> &[Profile] {
        model.mig.as_ref().and_then(|name| self.mig.get(name)).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn types(&self, model: &Model) -> Vec<VgpuType> {
        let number = |name: &str| self.numbers.get(name).copied().unwrap_or(0);
        let full = |name: &str| model.full_type_name(name);
        let plain = model.types.iter().map(|kind| VgpuType {
            id: number(&kind.name),
            full_name: full(&kind.name),
            name: kind.name.clone(),
            framebuffer_mib: kind.framebuffer_mib,
            most: kind.most,
            profile: None,
        });
        let on_mig = model.mig_types.iter().filter_map(|kind| {
            let profile = self.profiles(model).iter().find(|profile| profile.name == kind.profile)?;
            Some(VgpuType {
                id: number(&kind.name),
                full_name: full(&kind.name),
                name: kind.name.clone(),
                framebuffer_mib: kind.framebuffer_mib,
                most: kind.most,
                profile: Some(profile.id),
            })
        });
        // The driver's order is by number, in which sizes and series are mixed.
        let mut types: Vec<VgpuType> = plain.chain(on_mig).collect();
        types.sort_by_key(|kind| kind.id);
        types
    }

    /// Where vGPUs of this size can be when sizes are mixed.
    pub(crate) fn mixed(&self, model: &Model, framebuffer_mib: u64) -> Option<MixedSize> {
        let Some(table) = &model.mixed_size_table else {
            let most = model.types.iter().find(|kind| kind.framebuffer_mib == framebuffer_mib)?.most;
            let computed = model.mixes_sizes && model.architecture == Architecture::Blackwell;
            return computed.then(|| equal_parts(model.memory_mib >> 10, framebuffer_mib, most));
        };
        self.mixed.get(table)?.iter().find(|size| size.framebuffer_mib == framebuffer_mib).cloned()
    }

    /// Where vGPUs of this type can be on a GPU instance whose sizes are mixed.
    pub(crate) fn mixed_on_instance(&self, model: &Model, kind: &VgpuType) -> Option<MixedSize> {
        let profiles = self.profiles(model);
        let units = profiles.iter().map(|profile| profile.size).max()?;
        let profile = profiles.iter().find(|profile| Some(profile.id) == kind.profile)?;
        let region = (model.memory_mib >> 10) * u64::from(profile.size) / u64::from(units);
        Some(equal_parts(region, kind.framebuffer_mib, kind.most))
    }

    /// The type of this number, on whatever card.
    pub(crate) fn type_of(&self, id: u32) -> Option<&VgpuType> {
        self.all_types.get(&id)
    }
}

/// Blackwell cards divide a region evenly, whatever else is on it (open-gpu-kernel-modules 595.45.04,
/// `kernel_vgpu_mgr.c`). 2 GB on a card of 96 take the place of 3.
fn equal_parts(region_gb: u64, framebuffer_mib: u64, most: u32) -> MixedSize {
    let small = |gb: u64| u32::try_from(gb).unwrap_or(u32::MAX);
    let size = match (framebuffer_mib >> 10, region_gb) {
        (2, 96) => 3,
        (size, _) => size,
    };
    let starts = (0..u64::from(most)).map(|part| small(region_gb * part / u64::from(most)));
    MixedSize { framebuffer_mib, size: small(size), starts: starts.collect() }
}

impl Model {
    /// Whether several vGPUs share one GPU instance: cards with the `GB20x` chips alone.
    pub(crate) fn shares_instances(&self) -> bool {
        self.mig_types.iter().any(|kind| kind.most > 1)
    }

    fn full_type_name(&self, name: &str) -> String {
        let head = self.name_head.as_deref().unwrap_or(match self.architecture {
            Architecture::Volta | Architecture::Turing => "GRID",
            _ => "NVIDIA",
        });
        format!("{head} {name}")
    }

    /// The name that the driver gives the card.
    pub(crate) fn product(&self) -> String {
        let named = ["Tesla ", "Quadro "].iter().any(|head| self.name.starts_with(head));
        if named { self.name.clone() } else { format!("NVIDIA {}", self.name) }
    }

    pub(crate) fn is_consumer(&self) -> bool {
        self.name.starts_with("GeForce")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_can_be_read_and_numbers_are_given_once() {
        let tables = Tables::read().unwrap();
        assert!(tables.cards.len() > 50);
        let numbers: BTreeSet<u32> = tables.numbers.values().copied().collect();
        assert_eq!(numbers.len(), tables.numbers.len());
        assert_eq!(tables.numbers["L40S-24Q"], 1155);
    }

    #[test]
    fn every_profile_and_position_lies_on_its_card() {
        let tables = Tables::read().unwrap();
        for profiles in tables.mig.values() {
            let units = profiles.iter().map(|p| p.starts.iter().max().unwrap() + p.size).max().unwrap();
            assert!([4, 8, 12].contains(&units));
            let ids: BTreeSet<u32> = profiles.iter().map(|profile| profile.id).collect();
            let indices: BTreeSet<u32> = profiles.iter().map(|profile| profile.index).collect();
            assert_eq!((ids.len(), indices.len()), (profiles.len(), profiles.len()));
        }
        for card in &tables.cards {
            assert_eq!(tables.types(card).len(), card.types.len() + card.mig_types.len(), "{}", card.name);
        }
    }
}
