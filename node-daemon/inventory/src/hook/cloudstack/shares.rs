//! vGPUs and virtual functions in the document.

use gpudesk_crds::{
    gpu_node_status::{Device, Instance, Placement, VirtualFunction},
    types::{PciAddress, ShareMode},
};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Notes,
    value::{address, libvirt_address, number, text},
};
use crate::{
    hook::{clip, foreign_use, shown},
    topology::vgpu_type::{self, VgpuName},
};

/// Entries of a card's lists, as the schema has them.
const LIST: usize = 256;

/// What the document says of a type.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Type {
    name: String,
    max_count: Option<i32>,
    framebuffer_mib: Option<i64>,
    heads: Option<i32>,
    max_resolution: Option<String>,
}

/// A mediated device that exists.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Vgpu {
    uuid: String,
    type_: Type,
    /// The virtual function that carries it, where one does.
    function: Option<PciAddress>,
}

/// A virtual function that is switched on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Function {
    pub(super) address: PciAddress,
    type_: Option<Type>,
    /// Whether a vGPU is set up on it.
    vgpu: bool,
    used_by: Option<String>,
}

fn entries<'a>(value: &'a Value, at: &str, notes: &mut Notes) -> &'a [Value] {
    let entries = value.as_array().map_or(&[][..], Vec::as_slice);
    if entries.len() > LIST {
        notes.push(format!("{at} has {} entries, those beyond {LIST} are left out", entries.len()));
    }
    &entries[..entries.len().min(LIST)]
}

fn type_of(entry: &Value, name: &str) -> Option<Type> {
    let name = text(&entry[name], 128)?;
    let count = |name: &str, most: i64| {
        let count = number(&entry[name]).filter(|count| (1..=most).contains(count))?;
        i32::try_from(count).ok()
    };
    let side = |name: &str| number(&entry[name]).filter(|side| (1..1_000_000).contains(side));
    let resolution = side("max_resolution_x").zip(side("max_resolution_y"));
    Some(Type {
        name: clip(vgpu_type::short(&name), 64),
        max_count: count("max_instances", 4096),
        framebuffer_mib: number(&entry["video_ram"]).filter(|mib| (1..=1 << 30).contains(mib)),
        heads: count("max_heads", 64),
        max_resolution: resolution.map(|(x, y)| format!("{x}x{y}")),
    })
    .filter(|type_| !type_.name.is_empty())
}

pub(super) fn vgpus(value: &Value, card: PciAddress, at: &str, notes: &mut Notes) -> Vec<Vgpu> {
    let at = format!("{at}.vgpu_instances");
    let mut vgpus: Vec<Vgpu> = vec![];
    for (index, entry) in entries(value, &at, notes).iter().enumerate() {
        let uuid = text(&entry["mdev_uuid"], 64).and_then(|text| Uuid::parse_str(&text).ok());
        let Some(uuid) = uuid.map(|uuid| uuid.to_string()) else {
            let what = shown(&entry["mdev_uuid"]);
            notes.push(format!("{at}[{index}].mdev_uuid {what} is no UUID, the entry is left out"));
            continue;
        };
        if vgpus.iter().any(|vgpu| vgpu.uuid == uuid) {
            continue;
        }
        let unknown = Type {
            name: "vGPU".into(),
            max_count: None,
            framebuffer_mib: None,
            heads: None,
            max_resolution: None,
        };
        let type_ = type_of(entry, "profile_name").unwrap_or(unknown);
        // The address is that of the function under the device; in samples it is sometimes the card's.
        let function = libvirt_address(&entry["libvirt_address"]).filter(|function| *function != card);
        vgpus.push(Vgpu { uuid, type_, function });
    }
    vgpus
}

pub(super) fn functions(value: &Value, nvidia: bool, at: &str, notes: &mut Notes) -> Vec<Function> {
    let at = format!("{at}.vf_instances");
    let mut functions: Vec<Function> = vec![];
    for (index, entry) in entries(value, &at, notes).iter().enumerate() {
        let Some(address) = address(&entry["vf_pci_address"], &entry["libvirt_address"]) else {
            let what = shown(&entry["vf_pci_address"]);
            notes.push(format!(
                "{at}[{index}].vf_pci_address {what} is no PCI address, the entry is left out"
            ));
            continue;
        };
        if functions.iter().any(|function| function.address == address) {
            continue;
        }
        let type_ = type_of(entry, "vf_profile");
        // Functions without a vGPU have no figures; their profile is then what lspci calls them.
        let figures =
            type_.as_ref().is_some_and(|type_| type_.max_count.is_some() || type_.framebuffer_mib.is_some());
        let used_by = text(&entry["used_by_vm"], 200);
        functions.push(Function { address, type_, vgpu: nvidia && figures, used_by });
    }
    functions
}

/// Puts the shares on the card: what was found stays, what is new is added.
pub(super) fn join(card: &mut Device, vgpus: &[Vgpu], functions: &[Function], nvidia: bool) {
    for function in functions {
        put_function(card, function);
    }
    card.virtual_functions.sort_by_key(|function| (function.index, function.pci_address));
    for vgpu in vgpus {
        let mode = vgpu_mode(&vgpu.type_);
        offer(card, &vgpu.type_, mode, 1);
        let function = vgpu
            .function
            .filter(|function| card.virtual_functions.iter().any(|known| known.pci_address == *function));
        put_instance(card, &vgpu.uuid, &vgpu.type_.name, mode, function);
    }
    for function in functions {
        let mode = match &function.type_ {
            Some(type_) if nvidia => vgpu_mode(type_),
            None if nvidia => ShareMode::Vgpu,
            Some(_) | None => ShareMode::VirtualFunctions,
        };
        let name = function.type_.as_ref().map_or("VirtualFunction", |type_| type_.name.as_str());
        if function.vgpu || function.used_by.is_some() {
            put_instance(card, &function.address.to_string(), name, mode, Some(function.address));
        }
    }
    for type_ in
        functions.iter().filter(|function| function.vgpu).filter_map(|function| function.type_.as_ref())
    {
        offer(card, type_, vgpu_mode(type_), 1);
    }
    if !nvidia && card.placements.iter().all(|placement| placement.mode != ShareMode::VirtualFunctions) {
        let mut types: Vec<&Type> = vec![];
        for type_ in functions.iter().filter_map(|function| function.type_.as_ref()) {
            if types.iter().all(|known| known.name != type_.name) {
                types.push(type_);
            }
        }
        for type_ in types {
            let alike = functions
                .iter()
                .filter(|function| function.type_.as_ref().is_some_and(|other| other.name == type_.name));
            let count = i32::try_from(alike.count()).unwrap_or(i32::MAX);
            offer(card, type_, ShareMode::VirtualFunctions, count);
        }
    }
}

fn put_function(card: &mut Device, said: &Function) {
    let used = said.used_by.as_deref().map(foreign_use);
    let count = card.virtual_functions.len();
    let next = card.virtual_functions.iter().map(|function| function.index + 1).max().unwrap_or(0);
    let known = card.virtual_functions.iter_mut().find(|function| function.pci_address == said.address);
    match known {
        Some(function) => function.unavailable = used.or(function.unavailable.take()),
        None if count < LIST => card.virtual_functions.push(VirtualFunction {
            pci_address: said.address,
            index: next.min(65_535),
            device_id: None,
            driver: None,
            iommu_group: None,
            unavailable: used,
        }),
        None => {}
    }
}

fn put_instance(card: &mut Device, id: &str, type_name: &str, mode: ShareMode, function: Option<PciAddress>) {
    let same =
        |known: &Instance| known.id == id || (function.is_some() && known.virtual_function == function);
    if card.instances.len() < LIST && !card.instances.iter().any(same) {
        card.instances.push(Instance {
            id: id.into(),
            type_name: type_name.into(),
            mode,
            vgpu_type: (mode == ShareMode::Mig).then(|| type_name.into()),
            start: None,
            virtual_function: function,
            gpu_instance: None,
            owner: None,
        });
    }
}

/// Puts a type among what the card offers. What the driver says of it stands; gaps are filled.
fn offer(card: &mut Device, type_: &Type, mode: ShareMode, least: i32) {
    let known = card
        .placements
        .iter_mut()
        .find(|placement| placement.mode == mode && placement.type_name == type_.name);
    if let Some(placement) = known {
        placement.heads = placement.heads.or(type_.heads);
        if placement.max_resolution.is_none() {
            placement.max_resolution.clone_from(&type_.max_resolution);
        }
        return;
    }
    if card.placements.len() >= LIST {
        return;
    }
    let said = vgpu_name(&type_.name);
    let framebuffer = type_.framebuffer_mib.or(said.as_ref().map(|said| said.framebuffer_mib)).unwrap_or(0);
    card.placements.push(Placement {
        series: said.as_ref().map(|said| said.series),
        compute_slices: said.and_then(|said| said.slices).unwrap_or(0),
        heads: type_.heads,
        max_resolution: type_.max_resolution.clone(),
        ..Placement::new(type_.name.clone(), mode, framebuffer, type_.max_count.unwrap_or(least))
    });
}

/// What the name of a vGPU says; shells also write it in lower case.
fn vgpu_name(name: &str) -> Option<VgpuName> {
    vgpu_type::parse(name).or_else(|| vgpu_type::parse(&name.to_ascii_uppercase()))
}

/// The mode that a vGPU of this type belongs to.
fn vgpu_mode(type_: &Type) -> ShareMode {
    let sliced = vgpu_name(&type_.name).is_some_and(|name| name.slices.is_some());
    if sliced { ShareMode::Mig } else { ShareMode::Vgpu }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpudesk_crds::types::VgpuSeries;

    #[test]
    fn names_of_vgpus_tell_size_and_series() {
        let said = |name: &str| vgpu_name(name).map(|name| (name.framebuffer_mib, name.series));
        assert_eq!(said("T4-16C"), Some((16 * 1024, VgpuSeries::C)));
        assert_eq!(said("grid_t4-8c"), Some((8 * 1024, VgpuSeries::C)));
        assert_eq!(said("A40-0Q"), Some((512, VgpuSeries::Q)));
        assert_eq!(said("i915-GVTg_V5_4"), None);
    }
}
