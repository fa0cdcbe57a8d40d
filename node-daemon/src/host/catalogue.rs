//! The catalogue of known cards: names them and feeds simulated hosts.
//!
//! What a real card can do is never taken from here; that is what its driver says.

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_status::{CardUnits, Framework, MigBackedType, ModeSupport, Placement},
    types::{ShareMode, VgpuSeries},
};
use serde::Deserialize;
use thiserror::Error;

/// Why the catalogue does not help.
#[derive(Debug, Error)]
pub enum CatalogueError {
    /// The file inside this program is broken; a test sees to it that it is not.
    #[error("the catalogue of cards cannot be read: {0}")]
    Unreadable(#[from] serde_yaml::Error),
    /// No such card.
    #[error("no card is called {model:?}; known are: {known}")]
    UnknownModel {
        /// The name asked for.
        model: String,
        /// Every name there is.
        known: String,
    },
    /// A card names a table that is not there.
    #[error("the card {model:?} names the table {table:?}, which is not in the catalogue")]
    UnknownTable {
        /// The card.
        model: String,
        /// The table.
        table: String,
    },
}

/// Every known card.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Catalogue {
    mixed_size_tables: BTreeMap<String, MixedSizeTable>,
    cards: Vec<CardModel>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MixedSizeTable {
    region: i32,
    sizes: Vec<MixedSize>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MixedSize {
    #[serde(rename = "framebufferMiB")]
    framebuffer_mib: i64,
    size: i32,
    starts: Vec<i32>,
}

/// One known card.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CardModel {
    /// Product name.
    pub model: String,
    /// `vendor:device`, four hexadecimal digits each.
    pub pci_id: String,
    /// PCI class and subclass, four hexadecimal digits.
    pub class: String,
    /// Memory of one GPU in MiB; 0 for graphics that use the host's memory.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: i64,
    /// The host driver that owns the card.
    pub driver: String,
    /// Sizes of the memory regions in MiB, in their order.
    #[serde(rename = "barsMiB")]
    pub bars_mib: Vec<i64>,
    /// Reset methods in the kernel's order.
    pub reset_methods: Vec<String>,
    /// Classes of the other functions of the card, such as the sound of a consumer card.
    #[serde(default)]
    pub companions: Vec<String>,
    /// Whether the host's own screen hangs on it.
    #[serde(default)]
    pub boot_vga: bool,
    /// GPUs on one board.
    #[serde(default = "one")]
    pub gpus_per_board: i32,
    /// How shares of it become devices.
    #[serde(default)]
    pub framework: Option<Framework>,
    #[serde(default)]
    vgpu: Option<Vgpu>,
    #[serde(default)]
    mig: Option<Mig>,
    #[serde(default)]
    virtual_functions: Option<VirtualFunctions>,
}

type TypesBySeries = BTreeMap<SeriesName, BTreeMap<i64, i32>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum SeriesName {
    Q,
    B,
    A,
    C,
}

impl SeriesName {
    fn api(self) -> VgpuSeries {
        match self {
            Self::Q => VgpuSeries::Q,
            Self::B => VgpuSeries::B,
            Self::A => VgpuSeries::A,
            Self::C => VgpuSeries::C,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Vgpu {
    prefix: String,
    #[serde(default)]
    mixed_size_table: Option<String>,
    types: TypesBySeries,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mig {
    memory_units: i32,
    compute_slices: i32,
    profiles: Vec<MigProfile>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MigProfile {
    name: String,
    compute: i32,
    size: i32,
    starts: Vec<i32>,
    max: i32,
    #[serde(rename = "framebufferMiB")]
    framebuffer_mib: i64,
    #[serde(default)]
    vgpu_suffix: String,
    #[serde(default)]
    vgpu_types: TypesBySeries,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VirtualFunctions {
    prefix: String,
    device_id: String,
    counts: BTreeMap<i32, i64>,
}

fn one() -> i32 {
    1
}

impl Catalogue {
    /// The catalogue inside this program.
    ///
    /// # Errors
    /// [`CatalogueError::Unreadable`], which a test excludes.
    pub fn embedded() -> Result<Self, CatalogueError> {
        Ok(serde_yaml::from_str(include_str!("catalogue.yaml"))?)
    }

    /// The card called `model`, upper and lower case alike.
    ///
    /// # Errors
    /// [`CatalogueError::UnknownModel`], with every name that is known.
    pub fn card(&self, model: &str) -> Result<&CardModel, CatalogueError> {
        self.cards.iter().find(|card| card.model.eq_ignore_ascii_case(model)).ok_or_else(|| {
            CatalogueError::UnknownModel {
                model: model.chars().take(80).collect(),
                known: self.cards.iter().map(|card| card.model.as_str()).collect::<Vec<_>>().join(", "),
            }
        })
    }

    /// Every card.
    pub fn cards(&self) -> &[CardModel] {
        &self.cards
    }

    /// Every share that `card` offers, with its size and legal positions: MIG profiles in the order
    /// of the driver, then vGPU types by series and size, then virtual functions.
    ///
    /// # Errors
    /// [`CatalogueError::UnknownTable`], which a test excludes.
    pub fn placements(&self, card: &CardModel) -> Result<Vec<Placement>, CatalogueError> {
        let mut placements = vec![];
        let prefix = card.vgpu.as_ref().map_or("", |vgpu| vgpu.prefix.as_str());
        placements.extend(card.mig.iter().flat_map(|mig| &mig.profiles).map(|p| p.placement(prefix)));
        if let Some(vgpu) = &card.vgpu {
            let table = self.mixed_sizes(card)?;
            placements.extend(vgpu_placements(vgpu, table));
        }
        placements.extend(card.virtual_functions.iter().flat_map(VirtualFunctions::placements));
        Ok(placements)
    }

    /// The units in which `card` is divided.
    ///
    /// # Errors
    /// [`CatalogueError::UnknownTable`], which a test excludes.
    pub fn units(&self, card: &CardModel) -> Result<CardUnits, CatalogueError> {
        Ok(CardUnits {
            mig_memory: card.mig.as_ref().map_or(0, |mig| mig.memory_units),
            mig_compute: card.mig.as_ref().map_or(0, |mig| mig.compute_slices),
            vgpu_region: self.mixed_sizes(card)?.map_or(0, |table| table.region),
        })
    }

    fn mixed_sizes(&self, card: &CardModel) -> Result<Option<&MixedSizeTable>, CatalogueError> {
        let Some(name) = card.vgpu.as_ref().and_then(|vgpu| vgpu.mixed_size_table.as_ref()) else {
            return Ok(None);
        };
        match self.mixed_size_tables.get(name) {
            Some(table) => Ok(Some(table)),
            None => Err(CatalogueError::UnknownTable { model: card.model.clone(), table: name.clone() }),
        }
    }
}

impl CardModel {
    /// Vendor id and device id.
    pub fn ids(&self) -> (&str, &str) {
        self.pci_id.split_once(':').unwrap_or((&self.pci_id, ""))
    }

    /// Device id of its virtual functions, when they have one of their own.
    pub fn virtual_function_id(&self) -> Option<&str> {
        self.virtual_functions.as_ref().map(|functions| functions.device_id.as_str())
    }

    /// Each mode, whether the card can be used in it, and if not, why.
    pub fn supports(&self) -> Vec<ModeSupport> {
        let support = |mode, refused: Option<&str>| ModeSupport {
            mode,
            supported: refused.is_none(),
            reason: refused.map(Into::into),
        };
        let without = |has: bool, why| (!has).then_some(why);
        vec![
            support(
                ShareMode::Passthrough,
                self.boot_vga
                    .then_some("the host's own screen hangs on this card: give the host another one"),
            ),
            support(ShareMode::Vgpu, without(self.vgpu.is_some(), "no vGPU types exist for this card")),
            support(ShareMode::Mig, without(self.mig.is_some(), "this card has no MIG")),
            support(
                ShareMode::VirtualFunctions,
                without(
                    self.virtual_functions.is_some(),
                    "no virtual functions of this card can be given away",
                ),
            ),
        ]
    }
}

impl MigProfile {
    fn placement(&self, prefix: &str) -> Placement {
        let vgpu_types = self.vgpu_types.iter().flat_map(|(series, sizes)| {
            sizes.iter().map(move |(gib, max)| MigBackedType {
                type_name: format!("{prefix}-{}-{gib}{series:?}{}", self.compute, self.vgpu_suffix),
                series: series.api(),
                framebuffer_mib: gib * 1024,
                max_per_instance: *max,
            })
        });
        Placement {
            type_name: self.name.clone(),
            mode: ShareMode::Mig,
            framebuffer_mib: self.framebuffer_mib,
            series: None,
            size: self.size,
            starts: self.starts.clone(),
            compute_slices: self.compute,
            max_count: self.max,
            vgpu_types: vgpu_types.collect(),
        }
    }
}

fn vgpu_placements(vgpu: &Vgpu, table: Option<&MixedSizeTable>) -> Vec<Placement> {
    let mut placements = vec![];
    for (series, sizes) in &vgpu.types {
        for (gib, max) in sizes {
            let mixed =
                table.and_then(|table| table.sizes.iter().find(|size| size.framebuffer_mib == gib * 1024));
            placements.push(Placement {
                type_name: format!("{}-{gib}{series:?}", vgpu.prefix),
                mode: ShareMode::Vgpu,
                framebuffer_mib: gib * 1024,
                series: Some(series.api()),
                size: mixed.map_or(0, |size| size.size),
                starts: mixed.map_or_else(Vec::new, |size| size.starts.clone()),
                compute_slices: 0,
                max_count: *max,
                vgpu_types: vec![],
            });
        }
    }
    placements
}

impl VirtualFunctions {
    fn placements(&self) -> Vec<Placement> {
        let placement = |(count, framebuffer_mib): (&i32, &i64)| Placement {
            type_name: format!("{}-{count}VF", self.prefix),
            mode: ShareMode::VirtualFunctions,
            framebuffer_mib: *framebuffer_mib,
            series: None,
            size: 0,
            starts: vec![],
            compute_slices: 0,
            max_count: *count,
            vgpu_types: vec![],
        };
        self.counts.iter().map(placement).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_has_placements_that_fit_on_it() {
        let catalogue = Catalogue::embedded().unwrap();
        for card in catalogue.cards() {
            let units = catalogue.units(card).unwrap();
            assert_eq!(card.pci_id.len(), 9, "{}", card.model);
            for placement in catalogue.placements(card).unwrap() {
                let room = match placement.mode {
                    ShareMode::Mig => units.mig_memory,
                    _ => units.vgpu_region,
                };
                for start in &placement.starts {
                    assert!(start + placement.size <= room, "{} {}", card.model, placement.type_name);
                }
                assert!(placement.max_count > 0);
            }
        }
    }

    #[test]
    fn the_rtx_pro_6000_offers_what_its_driver_prints() {
        let catalogue = Catalogue::embedded().unwrap();
        let card = catalogue.card("rtx pro 6000 blackwell server edition").unwrap();
        let placements = catalogue.placements(card).unwrap();
        let slice = placements.iter().find(|p| p.type_name == "1g.24gb+gfx").unwrap();
        assert_eq!((slice.size, slice.starts.as_slice(), slice.max_count), (3, &[0, 3, 6, 9][..], 4));
        let q = slice.vgpu_types.iter().find(|t| t.type_name == "DC-1-2Q").unwrap();
        assert_eq!(q.max_per_instance, 12);
        let plain = placements.iter().find(|p| p.type_name == "1g.24gb").unwrap();
        assert!(plain.vgpu_types.is_empty(), "only +gfx instances hold vGPUs");
        let eight = placements.iter().find(|p| p.type_name == "DC-8Q").unwrap();
        assert_eq!((eight.max_count, eight.size), (12, 0));
    }

    #[test]
    fn the_l40s_has_no_mig_and_mixes_sizes() {
        let catalogue = Catalogue::embedded().unwrap();
        let card = catalogue.card("L40S").unwrap();
        assert_eq!(catalogue.units(card).unwrap().vgpu_region, 48);
        let mig = card.supports().into_iter().find(|support| support.mode == ShareMode::Mig).unwrap();
        assert!(!mig.supported);
        let sixteen = catalogue.placements(card).unwrap();
        let sixteen = sixteen.iter().find(|p| p.type_name == "L40S-16Q").unwrap();
        assert_eq!((sixteen.max_count, sixteen.starts.as_slice()), (3, &[0, 32][..]));
    }

    #[test]
    fn an_unknown_card_is_answered_with_the_known_ones() {
        let error = Catalogue::embedded().unwrap().card("L50").unwrap_err().to_string();
        assert!(error.contains("\"L50\"") && error.contains("L40S"), "{error}");
    }
}
