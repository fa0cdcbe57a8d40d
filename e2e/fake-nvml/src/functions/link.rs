//! Links between cards, and fabrics of them.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlGpuFabricInfo_t, nvmlGpuFabricInfo_v3_t, nvmlPciInfo_t};

use super::card::pci;
use crate::{
    answer::{INVALID_ARGUMENT, NOT_SUPPORTED, VERSION_MISMATCH, change, functions, put},
    state::Address,
};

/// Version words of the structure (`NVML_STRUCT_VERSION`).
const FABRIC_V2: c_uint = 0x0200_0024;
const FABRIC_V3: c_uint = 0x0300_0028;
const LINKS: c_uint = 18;

functions! {
    fn nvmlDeviceGetNvLinkState(device: nvmlDevice_t, link: c_uint, active: *mut c_uint) of device |state| {
        let card = state.card(device.addr())?;
        if card.world.nvlinks.is_empty() {
            return Err(NOT_SUPPORTED);
        }
        if link >= LINKS {
            return Err(INVALID_ARGUMENT);
        }
        put(active, (card.world.nvlinks.len() > link as usize).into())
    }

    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(device: nvmlDevice_t, link: c_uint, info: *mut nvmlPciInfo_t) of device |state| {
        let card = state.card(device.addr())?;
        let remote = card.world.nvlinks.get(link as usize).ok_or(INVALID_ARGUMENT)?;
        let remote = Address::parse(remote).ok_or(NOT_SUPPORTED)?;
        put(info, pci(remote, "10de:0000"))
    }

    fn nvmlDeviceGetGpuFabricInfoV(device: nvmlDevice_t, info: *mut nvmlGpuFabricInfo_v3_t) of device |state| {
        let fabric = state.card(device.addr())?.world.fabric.clone();
        let knows = |version| state.knows("GpuFabricInfo", version);
        change(info, |info| {
            if !(info.version == FABRIC_V2 && knows(2) || info.version == FABRIC_V3 && knows(3)) {
                return Err(VERSION_MISMATCH);
            }
            let fabric = fabric.ok_or(NOT_SUPPORTED)?;
            info.clusterUuid = fabric.cluster;
            info.status = fabric.status;
            info.cliqueId = fabric.clique;
            info.state = fabric.state;
            info.healthMask = 0;
            Ok(())
        })
    }

    fn nvmlDeviceGetGpuFabricInfo(device: nvmlDevice_t, info: *mut nvmlGpuFabricInfo_t) of device |state| {
        let fabric = state.card(device.addr())?.world.fabric.clone().ok_or(NOT_SUPPORTED)?;
        put(info, nvmlGpuFabricInfo_t {
            clusterUuid: fabric.cluster,
            status: fabric.status,
            cliqueId: fabric.clique,
            state: fabric.state,
        })
    }
}
