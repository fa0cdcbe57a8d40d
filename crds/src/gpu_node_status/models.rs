//! What several cards have in common is written once. Pure.
//!
//! ```text
//!   in memory                        in the API
//!   devices: each says all   ──▶     deviceModels: what they have in common
//!                            ◀──     devices: the rest, and what differs
//! ```
//!
//! A field stands in the model when every card of it has one: the most common value. A card of which the model is
//! missing is nobody's. A reader that knows no models finds no share on such a card.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{
    GpuNodeStatus,
    device::{Device, MigMode, VgpuState},
    health::TemperatureThresholds,
    pci::{Bar, PcieLink, ResizableBar, Sriov},
    shares::{CardUnits, Framework, LayoutPlaces, ModeSupport, Placement},
};
use crate::types::{ShareMode, VgpuSeries};

/// What cards of one model have in common: a field that a card does not say is as here.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceModel {
    /// Vendor and device id, `10de:26b9`; where the driver offers different shares on cards with the same ids,
    /// with a number behind it: `10de:26b9-2`.
    #[schemars(length(min = 1, max = 64))]
    pub name: String,
    /// Class and subclass, as in `devices`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 8))]
    pub class: String,
    /// Subsystem vendor and device id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub subsystem: Option<String>,
    /// Width and speed of the PCIe link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<PcieLink>,
    /// Virtual functions that each can have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sriov: Option<Sriov>,
    /// UUIDs of the cards that reach each other by NVLink. Each of them reaches all but itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub nvlink_peers: Vec<String>,
    /// Kernel driver now bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub driver: Option<String>,
    /// Memory regions assigned to each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub bars: Vec<Bar>,
    /// The memory region of each whose size can be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resizable_bar: Option<ResizableBar>,
    /// Reset methods, in the kernel's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub reset_methods: Vec<String>,
    /// Memory of each in MiB.
    #[serde(rename = "memoryMiB", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_073_741_824))]
    pub memory_mib: Option<i64>,
    /// Temperatures that the driver itself acts on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_thresholds: Option<TemperatureThresholds>,
    /// How vGPUs are made on them.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::lenient::word")]
    #[schemars(schema_with = "crate::schema::optional::<Framework>")]
    pub framework: Option<Framework>,
    /// Each mode, whether the cards can be used in it, and if not, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::lenient::items")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["mode".into()]))]
    pub supports: Vec<ModeSupport>,
    /// MIG mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<MigMode>,
    /// Time-sliced vGPUs as the driver has set them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vgpu: Option<VgpuState>,
    /// Units in which each is divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<CardUnits>,
    /// What vGPUs can show, by their series, where `placements` do not say it of a type.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::lenient::items")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["series".into()]))]
    pub vgpu_displays: Vec<VgpuDisplay>,
    /// Every share that the driver offers on each, with its size and its legal positions.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::lenient::items")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub placements: Vec<Placement>,
    /// The places of the fixed layout, where each has one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub layout: Vec<LayoutPlaces>,
}

/// What vGPUs of a series can show.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VgpuDisplay {
    /// Series.
    pub series: VgpuSeries,
    /// Screens that a vGPU can drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 64))]
    pub heads: Option<i32>,
    /// Largest resolution of a screen, as the driver writes it: `5120x2880`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub max_resolution: Option<String>,
    /// Frames per second to which the driver's frame limiter holds a vGPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub frame_rate_limit: Option<i32>,
}

/// Fields of a card that its model may say.
macro_rules! in_common {
    ($($field:ident)*) => {
        impl DeviceModel {
            /// Takes from cards what they have in common.
            fn taken(cards: &mut [&mut Device]) -> Self {
                Self { $($field: common(cards.iter_mut().map(|card| &mut card.$field)),)* ..Self::default() }
            }

            /// Gives a card what it does not say.
            fn give(&self, card: &mut Device) {
                $(give(&self.$field, &mut card.$field);)*
            }
        }
    };
}

in_common!(class subsystem link sriov driver bars resizable_bar reset_methods memory_mib temperature_thresholds framework
           supports mig vgpu units placements layout);

/// Takes the most common value out of fields that all have one; leaves them as they are where one has none.
fn common<'a, T: Clone + Default + PartialEq + 'a>(fields: impl Iterator<Item = &'a mut T>) -> T {
    let mut fields: Vec<&mut T> = fields.collect();
    let count = |value: &T| fields.iter().filter(|field| ***field == *value).count();
    if count(&T::default()) > 0 {
        return T::default();
    }
    let best = fields.iter().rev().max_by_key(|field| count(field)).map(|field| T::clone(field));
    let best = best.unwrap_or_default();
    for field in fields.iter_mut().filter(|field| ***field == best) {
        **field = T::default();
    }
    best
}

fn give<T: Clone + Default + PartialEq>(value: &T, field: &mut T) {
    if *field == T::default() {
        field.clone_from(value);
    }
}

/// As it is written: what several cards have in common stands in models.
pub(super) fn compact(status: &GpuNodeStatus) -> GpuNodeStatus {
    let mut status = status.clone();
    let mut groups: Vec<Vec<&mut Device>> = vec![];
    for card in &mut status.devices {
        (card.model, card.available) = (None, BTreeMap::new());
        match groups.iter_mut().find(|group| group.first().is_some_and(|first| is_alike(first, card))) {
            Some(group) => group.push(card),
            None => groups.push(vec![card]),
        }
    }
    let mut models: Vec<DeviceModel> = vec![];
    for cards in groups.iter_mut().filter(|cards| cards.len() > 1) {
        let model = model_of(cards, &models);
        models.push(model);
    }
    status.device_models = models;
    status
}

fn is_alike(one: &Device, other: &Device) -> bool {
    let offers_alike = |(one, other): (&Placement, &Placement)| {
        *one == *other || *one == Placement { available: one.available, ..other.clone() }
    };
    (&one.vendor_id, &one.device_id) == (&other.vendor_id, &other.device_id)
        && one.placements.len() == other.placements.len()
        && one.placements.iter().zip(&other.placements).all(offers_alike)
}

fn model_of(cards: &mut [&mut Device], others: &[DeviceModel]) -> DeviceModel {
    // How many more could be created is of each card.
    let types = cards.first().map_or(0, |card| card.placements.len());
    for position in 0..types {
        let of_type = cards.iter_mut().filter_map(|card| card.placements.get_mut(position));
        let all = common(of_type.map(|placement| &mut placement.available));
        for card in cards.iter_mut() {
            let Some(placement) = card.placements.get_mut(position) else { continue };
            if let Some(own) = std::mem::replace(&mut placement.available, all) {
                card.available.insert(placement.type_name.clone(), own);
            }
        }
    }
    let uuids: Vec<String> = cards.iter().filter_map(|card| card.uuid.clone()).collect();
    let mut model = DeviceModel::taken(cards);
    if cards.iter().all(|card| !card.nvlink_peers.is_empty()) {
        for card in cards.iter_mut().filter(|card| card.nvlink_peers == others_than(card, &uuids)) {
            card.nvlink_peers.clear();
            model.nvlink_peers.clone_from(&uuids);
        }
    }
    for series in [VgpuSeries::Q, VgpuSeries::B, VgpuSeries::A, VgpuSeries::C] {
        let mut of: Vec<&mut Placement> =
            model.placements.iter_mut().filter(|placement| is_vgpu_of(placement, series)).collect();
        let display = VgpuDisplay {
            series,
            heads: common(of.iter_mut().map(|placement| &mut placement.heads)),
            max_resolution: common(of.iter_mut().map(|placement| &mut placement.max_resolution)),
            frame_rate_limit: common(of.iter_mut().map(|placement| &mut placement.frame_rate_limit)),
        };
        let says_something =
            VgpuDisplay { heads: None, max_resolution: None, frame_rate_limit: None, ..display };
        if display != says_something {
            model.vgpu_displays.push(display);
        }
    }
    let ids = cards.first().map(|card| format!("{}:{}", card.vendor_id, card.device_id)).unwrap_or_default();
    let numbered = (2..).map(|number| format!("{ids}-{number}"));
    let is_free = |name: &String| others.iter().all(|other| other.name != *name);
    model.name = std::iter::once(ids.clone()).chain(numbered).find(is_free).unwrap_or_default();
    for card in cards {
        card.model = Some(model.name.clone());
    }
    model
}

fn others_than(card: &Device, uuids: &[String]) -> Vec<String> {
    uuids.iter().filter(|uuid| Some(*uuid) != card.uuid.as_ref()).cloned().collect()
}

fn is_vgpu_of(placement: &Placement, series: VgpuSeries) -> bool {
    placement.mode == ShareMode::Vgpu && placement.series == Some(series)
}

/// As it is in memory: each card says all.
pub(super) fn expand(mut status: GpuNodeStatus) -> GpuNodeStatus {
    let mut models = std::mem::take(&mut status.device_models);
    for model in &mut models {
        for display in std::mem::take(&mut model.vgpu_displays) {
            let of_series = model.placements.iter_mut().filter(|p| is_vgpu_of(p, display.series));
            for placement in of_series {
                placement.heads = placement.heads.or(display.heads);
                placement.frame_rate_limit = placement.frame_rate_limit.or(display.frame_rate_limit);
                if placement.max_resolution.is_none() {
                    placement.max_resolution.clone_from(&display.max_resolution);
                }
            }
        }
    }
    for card in &mut status.devices {
        let available = std::mem::take(&mut card.available);
        let Some(name) = card.model.take() else { continue };
        let Some(model) = models.iter().find(|model| model.name == name) else {
            card.unavailable.get_or_insert_with(|| {
                format!("status.deviceModels has no {name}: what it is, is not known")
            });
            continue;
        };
        model.give(card);
        if card.nvlink_peers.is_empty() {
            card.nvlink_peers = others_than(card, &model.nvlink_peers);
        }
        for placement in &mut card.placements {
            placement.available = available.get(&placement.type_name).copied().or(placement.available);
        }
    }
    status
}
