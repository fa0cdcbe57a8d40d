//! What a card is.

use std::ffi::{c_char, c_uint};

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlMemory_st, nvmlPciInfo_t};

use crate::{
    answer::{INVALID_ARGUMENT, NOT_SUPPORTED, field, functions, put, put_text},
    state::{Address, Object},
};

/// PCI as NVML writes it: eight digits of domain in the newer field, four in the older.
pub(super) fn pci(address: Address, id: &str) -> nvmlPciInfo_t {
    let Address { domain, bus, device } = address;
    let (vendor, of_vendor) = id.split_once(':').unwrap_or(("10de", "0000"));
    let hex = |text: &str| u32::from_str_radix(text, 16).unwrap_or(0);
    nvmlPciInfo_t {
        busIdLegacy: field(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
        domain,
        bus,
        device,
        pciDeviceId: hex(of_vendor) << 16 | hex(vendor),
        pciSubSystemId: 0,
        busId: field(&format!("{domain:08X}:{bus:02X}:{device:02X}.0")),
    }
}

functions! {
    fn nvmlDeviceGetPciInfo_v3(device: nvmlDevice_t, info: *mut nvmlPciInfo_t) of device |state| {
        let card = state.card(device.addr())?;
        let id = card.world.pci_id.as_ref().or(card.model.pci_ids.first());
        put(info, pci(card.address, id.map_or("", String::as_str)))
    }

    fn nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: c_uint) of device |state| {
        let product = state.card(device.addr())?.model.product();
        put_text(name, length, &product)
    }

    fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) of device |state| {
        let said = match state.object(device.addr()).cloned() {
            Some(Object::MigDevice(address, instance, compute)) => {
                state.card_at(&address).ok_or(INVALID_ARGUMENT)?.mig_uuid(instance, compute)
            }
            _ => state.card(device.addr())?.uuid(),
        };
        put_text(uuid, length, &said)
    }

    fn nvmlDeviceGetSerial(device: nvmlDevice_t, serial: *mut c_char, length: c_uint) of device |state| {
        let card = state.card(device.addr())?;
        if card.model.is_consumer() {
            return Err(NOT_SUPPORTED);
        }
        let made_up = format!("16{:05}{:06}", card.address.bus, card.address.device);
        let said = card.world.serial.clone().unwrap_or(made_up);
        put_text(serial, length, &said)
    }

    fn nvmlDeviceGetMemoryInfo(device: nvmlDevice_t, memory: *mut nvmlMemory_st) of device |state| {
        let total = state.card(device.addr())?.model.memory_mib << 20;
        put(memory, nvmlMemory_st { total, free: total, used: 0 })
    }

    fn nvmlDeviceGetModuleId(device: nvmlDevice_t, id: *mut c_uint) of device |state| {
        let module = state.card(device.addr())?.world.module_id.ok_or(NOT_SUPPORTED)?;
        put(id, module)
    }
}
