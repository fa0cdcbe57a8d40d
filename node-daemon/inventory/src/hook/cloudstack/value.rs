//! Values as shells write them.

use gpudesk_crds::types::PciAddress;
use serde_json::Value;

use crate::hook::clip;

/// A text that says something: not empty, not `null` or `none`.
pub(super) fn text(value: &Value, limit: usize) -> Option<String> {
    let text = match value {
        Value::String(text) => clip(text.trim(), limit),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let text = text.trim();
    let nothing = text.is_empty() || text.eq_ignore_ascii_case("null") || text.eq_ignore_ascii_case("none");
    (!nothing).then(|| text.to_owned())
}

/// A whole number: as a number, as decimal digits, with `0x`, or with `M`, `MB` or `MiB` behind.
pub(super) fn number(value: &Value) -> Option<i64> {
    if let Value::Number(number) = value {
        return number.as_i64();
    }
    let text = text(value, 32)?;
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return i64::from_str_radix(digits, 16).ok();
    }
    let plain = ["MiB", "MB", "M"].iter().find_map(|unit| text.strip_suffix(unit)).unwrap_or(&text);
    plain.trim().parse().ok()
}

/// Whether a value means yes.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_i64().is_some_and(|number| number != 0),
        Value::String(text) => {
            ["1", "true", "yes", "on"].iter().any(|yes| text.trim().eq_ignore_ascii_case(yes))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Four hexadecimal digits in lower case, from `1EB8` or `0x1eb8`.
pub(super) fn hex_id(value: &Value) -> Option<String> {
    let text = text(value, 16)?.to_ascii_lowercase();
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    (digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| digits.to_owned())
}

/// Class and subclass, from `3D controller [0302]` or from the name alone.
pub(super) fn class(value: &Value) -> Option<String> {
    let text = text(value, 128)?.to_ascii_lowercase();
    let code = text.rsplit_once('[').and_then(|(_, code)| code.strip_suffix(']'));
    if let Some(code) = code.filter(|code| code.len() == 4 && code.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Some(code.to_owned());
    }
    let names = [("vga", "0300"), ("3d", "0302"), ("display", "0380"), ("processing accelerator", "1200")];
    names.iter().find(|(name, _)| text.starts_with(name)).map(|(_, code)| (*code).to_owned())
}

/// An address by itself.
pub(super) fn plain_address(value: &Value) -> Option<PciAddress> {
    text(value, 32)?.parse().ok()
}

/// The address of a function, of which older versions leave out the domain: the address for libvirt
/// beside it then tells it.
pub(super) fn address(value: &Value, libvirt: &Value) -> Option<PciAddress> {
    let beside = libvirt_address(libvirt);
    let Some(text) = text(value, 32) else { return beside };
    let address: PciAddress = text.parse().ok()?;
    let without_domain = text.matches(':').count() == 1;
    let same = |beside: &PciAddress| {
        (beside.bus, beside.device, beside.function) == (address.bus, address.device, address.function)
    };
    Some(beside.filter(|beside| without_domain && same(beside)).unwrap_or(address))
}

/// `{"domain": "0x0000", "bus": "0xae", "slot": "0x00", "function": "0x0"}`
pub(super) fn libvirt_address(value: &Value) -> Option<PciAddress> {
    let part = |name: &str| {
        let text = text(&value[name], 16)?;
        u32::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).ok()
    };
    let byte = |name: &str, below: u8| {
        part(name).and_then(|number| u8::try_from(number).ok()).filter(|number| *number < below)
    };
    Some(PciAddress {
        domain: part("domain").unwrap_or(0),
        bus: part("bus").and_then(|bus| u8::try_from(bus).ok())?,
        device: byte("slot", 32)?,
        function: byte("function", 8)?,
    })
}
