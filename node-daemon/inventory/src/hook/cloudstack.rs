//! The discovery document of Apache CloudStack, `scripts/vm/hypervisor/kvm/gpudiscovery.sh`.
//!
//! Read with all the freedom that its versions take: addresses with and without domain, numbers as
//! numbers, as texts, or null, truth as 0 and 1, `null` and `unknown` as texts. Keys that are not known
//! are passed over.

mod shares;
mod value;

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_status::{Device, IommuGroup, ModeSupport, Sriov},
    types::{PciAddress, ShareMode},
};
use serde_json::Value;

use super::{Devices, HookAnswer, HookError, MAX_CARDS, MAX_NOTES, Mode, foreign_use, shown};
use crate::topology::{pci, supports::obstacle};
use shares::{Function, Vgpu};
use value::{address, class, hex_id, number, text, truth};

/// Vendor id of NVIDIA.
const NVIDIA: &str = "10de";

/// A card as the document has it; what it does not say is absent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Card {
    address: PciAddress,
    vendor_id: Option<String>,
    device_id: Option<String>,
    product: Option<String>,
    class: Option<String>,
    driver: Option<String>,
    iommu_group: Option<i32>,
    /// The uppermost bridge above the card.
    root: Option<PciAddress>,
    numa_cell: Option<i32>,
    sriov: Option<Sriov>,
    memory_mib: Option<i64>,
    /// Whether the script would give the card away whole, where it says.
    whole: Option<bool>,
    /// The virtual machine that holds the card whole.
    used_by: Option<String>,
    vgpus: Vec<Vgpu>,
    functions: Vec<Function>,
}

impl Card {
    pub(super) fn address(&self) -> PciAddress {
        self.address
    }
}

/// Remarks, of which there may be many.
struct Notes(Vec<String>);

impl Notes {
    fn push(&mut self, note: String) {
        if self.0.len() < MAX_NOTES {
            self.0.push(note);
        }
    }
}

pub(super) fn parse(cards: &Value) -> Result<HookAnswer, HookError> {
    let entries = match cards {
        Value::Array(entries) => entries.as_slice(),
        Value::Null => &[],
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            let problem = format!("{} is no list", shown(cards));
            return Err(HookError::Field { path: "gpus".into(), problem });
        }
    };
    let mut notes = Notes(vec![]);
    let mut cards: BTreeMap<PciAddress, Card> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let at = format!("gpus[{index}]");
        let Some(card) = card(entry, &at, &mut notes) else { continue };
        if cards.contains_key(&card.address) {
            notes.push(format!("{at}.pci_address {} is named before, the first stands", card.address));
        } else if cards.len() == MAX_CARDS {
            notes.push(format!("{at} is left out, it is beyond {MAX_CARDS} cards"));
        } else {
            cards.insert(card.address, card);
        }
    }
    let devices = Devices::CloudStack(cards.into_values().collect());
    Ok(HookAnswer { mode: Mode::Extend, devices, notes: notes.0 })
}

fn card(entry: &Value, at: &str, notes: &mut Notes) -> Option<Card> {
    let whole = &entry["full_passthrough"];
    let Some(address) = address(&entry["pci_address"], &whole["libvirt_address"]) else {
        let what = shown(&entry["pci_address"]);
        notes.push(format!("{at}.pci_address {what} is no PCI address, the entry is left out"));
        return None;
    };
    let vendor_id = hex_id(&entry["vendor_id"]);
    let nvidia = vendor_id.as_deref() == Some(NVIDIA);
    let count = |value: &Value| number(value).and_then(|n| i32::try_from(n).ok()).filter(|n| *n >= 0);
    let total_vfs = count(&entry["sriov_totalvfs"]).unwrap_or(0).min(65_535);
    let num_vfs = count(&entry["sriov_numvfs"]).unwrap_or(0).min(total_vfs);
    let mut card = Card {
        address,
        device_id: hex_id(&entry["device_id"]),
        // What lspci prints of a card that it does not know.
        product: text(&entry["device"], 128).filter(|product| product != "Device"),
        class: class(&entry["pci_class"]),
        driver: text(&entry["driver"], 64).filter(|driver| driver != "unknown"),
        iommu_group: count(&entry["iommu_group"]),
        root: value::plain_address(&entry["pci_root"]).filter(|root| *root != address),
        numa_cell: count(&entry["numa_node"]),
        sriov: (total_vfs > 0).then_some(Sriov { total_vfs, num_vfs }),
        memory_mib: number(&entry["video_ram"]).filter(|mib| *mib > 0),
        whole: (!whole["enabled"].is_null()).then(|| truth(&whole["enabled"])),
        used_by: text(&whole["used_by_vm"], 200),
        vgpus: shares::vgpus(&entry["vgpu_instances"], address, at, notes),
        functions: shares::functions(&entry["vf_instances"], nvidia, at, notes),
        vendor_id,
    };
    // A foreign machine that holds a share of a card by its own address holds the card.
    card.functions.retain(|function| function.address != address);
    Some(card)
}

/// The card, with what the document says of it over what was found, and of which modes it says whether
/// they work. `only_said`: what was found of it came from the document as well.
///
/// # Errors
/// One sentence, when it was not found and the document does not say what it is.
pub(super) fn over(
    said: &Card,
    found: Option<Device>,
    only_said: bool,
) -> Result<(Device, Vec<ModeSupport>), String> {
    let ids = said.vendor_id.as_ref().zip(said.device_id.as_ref());
    let (mut card, new) = match (found, ids) {
        (Some(card), _) => (card, only_said),
        (None, Some((vendor, device))) => (Device::new(said.address, vendor.clone(), device.clone()), true),
        (None, None) => {
            return Err(format!("{} was not found and has no vendor_id and device_id", said.address));
        }
    };
    let name = |field: &mut String, said: &Option<String>| {
        if let Some(said) = said {
            field.clone_from(said);
        }
    };
    name(&mut card.vendor_id, &said.vendor_id);
    name(&mut card.device_id, &said.device_id);
    name(&mut card.product, &said.product);
    name(&mut card.class, &said.class);
    card.driver = said.driver.clone().or(card.driver);
    if said.numa_cell.is_some() {
        (card.numa_cell, card.absent_numa_cell) = (said.numa_cell, None);
    }
    card.sriov = said.sriov.or(card.sriov);
    card.memory_mib = said.memory_mib.or(card.memory_mib);
    if let Some(id) = said.iommu_group
        && card.iommu_group.as_ref().is_none_or(|group| group.id != id)
    {
        // The document does not say who else is in the group; that the card can be given away, it does.
        card.iommu_group =
            Some(IommuGroup { id, members: vec![], viable: said.whole == Some(true), message: None });
    }
    if card.pcie_path.is_empty() {
        card.pcie_path.extend(said.root);
    }
    shares::join(&mut card, &said.vgpus, &said.functions, said.vendor_id.as_deref() == Some(NVIDIA));
    if new {
        card.kind = pci::card_kind(&card.class, &card.vendor_id, &card.device_id);
    }
    let words = if new { supports(said, &card) } else { words(said, &card) };
    if let Some(machine) = &said.used_by {
        card.unavailable = Some(foreign_use(machine));
    }
    Ok((card, words))
}

/// The sentence about a card that the script would not give away.
const NOT_WHOLE: &str = "the discovery hook does not offer the card whole";

/// What the document says of a card that was found too: that it is not given whole; or that it is, where
/// nothing that was seen speaks against it. What was only not seen does not.
fn words(said: &Card, card: &Device) -> Vec<ModeSupport> {
    let word = |supported: bool| ModeSupport {
        mode: ShareMode::Passthrough,
        supported,
        reason: (!supported).then(|| NOT_WHOLE.into()),
    };
    match said.whole {
        Some(false) => vec![word(false)],
        Some(true) if card.iommu_group.is_some() && obstacle(card).is_none() => vec![word(true)],
        Some(true) | None => vec![],
    }
}

/// What a card that only the hook knows can be used for: what the hook says it is used for.
fn supports(said: &Card, card: &Device) -> Vec<ModeSupport> {
    let offers = |mode| card.placements.iter().any(|placement| placement.mode == mode);
    let support = |mode, supported: bool, why: &str| ModeSupport {
        mode,
        supported,
        reason: (!supported).then(|| why.to_owned()),
    };
    let whole = match (said.whole, said.iommu_group) {
        (Some(false) | None, _) => Some(NOT_WHOLE.into()),
        (Some(true), None) => Some("the discovery hook names no IOMMU group".into()),
        (Some(true), Some(_)) => obstacle(card),
    };
    vec![
        support(ShareMode::Passthrough, whole.is_none(), whole.as_deref().unwrap_or_default()),
        support(ShareMode::Vgpu, offers(ShareMode::Vgpu), "the discovery hook names no vGPU types"),
        support(ShareMode::Mig, offers(ShareMode::Mig), "the discovery hook names no vGPUs on MIG instances"),
        support(
            ShareMode::VirtualFunctions,
            offers(ShareMode::VirtualFunctions),
            "the discovery hook names no virtual functions",
        ),
    ]
}
