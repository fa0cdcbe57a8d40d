//! gpudesk's own form: a document of kind `Discovery`.

use std::collections::BTreeMap;

use gpudesk_crds::{gpu_node_status::Device, types::PciAddress};
use serde_json::{Map, Value};

use super::{API_VERSION, Devices, HookAnswer, HookError, KIND, MAX_CARDS, Mode, clip, schema, shown};

/// A card as the hook names it: an address, and the fields that it says something of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Card {
    pub(super) address: PciAddress,
    /// Fields of a device as in `GpuNode.status.devices`, each checked.
    pub(super) fields: Map<String, Value>,
}

impl Card {
    /// The card, with every field that the hook names as the hook says and the others as in `base`.
    pub(super) fn over(&self, base: &Device) -> Result<Device, String> {
        let mut value = serde_json::to_value(base).map_err(|error| error.to_string())?;
        if let Value::Object(fields) = &mut value {
            fields.extend(self.fields.clone());
        }
        serde_json::from_value(value).map_err(|error| clip(&error.to_string(), 200))
    }

    /// Vendor and device id, when both are named.
    pub(super) fn ids(&self) -> Option<(&str, &str)> {
        let text = |name: &str| self.fields.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        Some((text("vendorId")?, text("deviceId")?))
    }
}

fn field(path: impl Into<String>, problem: impl Into<String>) -> HookError {
    HookError::Field { path: path.into(), problem: problem.into() }
}

pub(super) fn parse(mut document: Map<String, Value>) -> Result<HookAnswer, HookError> {
    let mut take = |name: &str| document.remove(name);
    expect(take("apiVersion").as_ref(), "apiVersion", API_VERSION)?;
    expect(take("kind").as_ref(), "kind", KIND)?;
    let mode = match take("mode") {
        None => Mode::Extend,
        Some(Value::String(text)) if text == "Extend" => Mode::Extend,
        Some(Value::String(text)) if text == "Replace" => Mode::Replace,
        Some(other) => return Err(field("mode", format!("{} is neither Extend nor Replace", shown(&other)))),
    };
    let devices = match take("devices") {
        Some(Value::Array(devices)) => devices,
        Some(other) => return Err(field("devices", format!("{} is no list", shown(&other)))),
        None => return Err(field("devices", "is missing: write a list of cards, [] for none")),
    };
    if let Some(name) = document.keys().next() {
        let path = clip(name, 60);
        return Err(field(path, "there is no such field: write apiVersion, kind, mode and devices"));
    }
    if devices.len() > MAX_CARDS {
        return Err(field("devices", format!("has {} entries, more than {MAX_CARDS}", devices.len())));
    }
    let mut cards: BTreeMap<PciAddress, (usize, Card)> = BTreeMap::new();
    for (index, value) in devices.into_iter().enumerate() {
        let card = card(value, index, mode)?;
        if let Some((first, card)) = cards.insert(card.address, (index, card)) {
            let problem = format!("{} is named twice, first in devices[{first}]", card.address);
            return Err(field(format!("devices[{index}].pciAddress"), problem));
        }
    }
    let cards = cards.into_values().map(|(_, card)| card).collect();
    Ok(HookAnswer { mode, devices: Devices::Own(cards), notes: vec![] })
}

fn expect(value: Option<&Value>, path: &str, wanted: &str) -> Result<(), HookError> {
    match value {
        Some(Value::String(text)) if text == wanted => Ok(()),
        Some(other) => Err(field(path, format!("{} is not {wanted}", shown(other)))),
        None => Err(field(path, format!("is missing: write {wanted}"))),
    }
}

fn card(value: Value, index: usize, mode: Mode) -> Result<Card, HookError> {
    let at = format!("devices[{index}]");
    let Value::Object(mut fields) = value else {
        return Err(field(at, format!("{} is no object", shown(&value))));
    };
    let path = format!("{at}.pciAddress");
    let address = match fields.remove("pciAddress") {
        Some(Value::String(text)) => {
            text.parse::<PciAddress>().map_err(|error| field(&path, error.to_string()))?
        }
        Some(other) => return Err(field(path, format!("{} is no PCI address", shown(&other)))),
        None => return Err(field(path, "is missing: every card is named by its address")),
    };
    let probe = Device::new(address, "0000", "0000");
    for (name, value) in &fields {
        let path = format!("{at}.{}", clip(name, 60));
        let Some(schema) = schema::device_field(name) else {
            return Err(field(path, "there is no such field in GpuNode.status.devices"));
        };
        schema::check(value, schema, &path)?;
        let alone = Map::from_iter([(name.clone(), value.clone())]);
        let alone = Card { address, fields: alone };
        alone.over(&probe).map_err(|problem| field(&path, problem))?;
    }
    check_ids(&fields, &at)?;
    check_owners(&fields, &at)?;
    let card = Card { address, fields };
    if mode == Mode::Replace && card.ids().is_none() {
        return Err(field(at, "vendorId and deviceId are missing: in mode Replace nothing else tells them"));
    }
    Ok(card)
}

fn check_ids(fields: &Map<String, Value>, at: &str) -> Result<(), HookError> {
    for name in ["vendorId", "deviceId", "class"] {
        let Some(value) = fields.get(name) else { continue };
        let text = value.as_str().unwrap_or_default();
        if text.len() != 4 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            let problem = format!("{} is not four hexadecimal digits in lower case", shown(value));
            return Err(field(format!("{at}.{name}"), problem));
        }
    }
    Ok(())
}

/// An owner is a desktop that gpudesk gave a share to: nobody else says so.
fn check_owners(fields: &Map<String, Value>, at: &str) -> Result<(), HookError> {
    let instances = fields.get("instances").and_then(Value::as_array);
    let mut claims = instances.into_iter().flatten().enumerate().filter_map(|(index, instance)| {
        let owner = instance.get("owner").filter(|owner| !owner.is_null())?;
        Some((index, owner))
    });
    match claims.next() {
        Some((index, owner)) => Err(field(
            format!("{at}.instances[{index}].owner"),
            format!("{}: leave it out, only gpudesk says which desktop holds a share", shown(owner)),
        )),
        None => Ok(()),
    }
}
