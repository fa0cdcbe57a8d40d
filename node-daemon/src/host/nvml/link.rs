//! The links of a card to others (`NVLink`), and its place in a fabric.
#![expect(unsafe_code, reason = "calls a C library by its interface")]

use gpudesk_inventory::driver::{FabricReading, NvLink};
use nvml_wrapper_sys::bindings::{
    nvmlGpuFabricInfo_t, nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfo_v3_t, nvmlGpuFabricInfoV_t,
};
use uuid::Uuid;

use super::{
    card::{NO_PCI, Reader, address},
    library::{CallError, call, code, number, version_of},
};

/// Beyond the last link of any card known (NVLink 5 cards have 18, later ones up to 36).
const LINKS: u32 = 64;

pub(super) fn nvlinks(reader: &Reader<'_>) -> Vec<NvLink> {
    let Reader { nvml, device, .. } = *reader;
    let mut found = vec![];
    for link in 0..LINKS {
        match number(|state| call!(nvml, nvmlDeviceGetNvLinkState, device, link, state)) {
            Ok(1) => {}
            Ok(_) => continue,
            // The links end here; or there is none.
            Err(error) if error.is_nothing() || error.code() == code::INVALID_ARGUMENT => break,
            Err(error) => {
                reader.ask(|| Err::<(), _>(error));
                break;
            }
        }
        let remote = reader.ask(|| {
            let mut pci = NO_PCI;
            call!(nvml, nvmlDeviceGetNvLinkRemotePciInfo_v2, device, link, &raw mut pci)?;
            Ok(address(&pci))
        });
        found.push(NvLink { link, remote: remote.flatten() });
    }
    found
}

pub(super) fn fabric(reader: &Reader<'_>) -> Option<FabricReading> {
    let found = reader.ask(|| info(reader))?;
    // 0: the card has no fabric.
    (found.state != 0).then(|| {
        let uuid = Uuid::from_bytes(found.clusterUuid);
        FabricReading {
            state: u32::from(found.state),
            status: Some(found.status),
            cluster_uuid: (!uuid.is_nil()).then(|| uuid.to_string()),
            clique_id: Some(found.cliqueId),
        }
    })
}

/// The newest form that the driver knows.
fn info(reader: &Reader<'_>) -> Result<nvmlGpuFabricInfo_t, CallError> {
    let Reader { nvml, device, .. } = *reader;
    let mut answer = Err(CallError::Missing("nvmlDeviceGetGpuFabricInfoV"));
    // The second version is the beginning of the third.
    for version in [version_of::<nvmlGpuFabricInfo_v3_t>(3), version_of::<nvmlGpuFabricInfo_v2_t>(2)] {
        let mut found = nvmlGpuFabricInfoV_t {
            version,
            clusterUuid: [0; 16],
            status: 0,
            cliqueId: 0,
            state: 0,
            healthMask: 0,
            healthSummary: 0,
        };
        answer =
            call!(nvml, nvmlDeviceGetGpuFabricInfoV, device, &raw mut found).map(|()| nvmlGpuFabricInfo_t {
                clusterUuid: found.clusterUuid,
                status: found.status,
                cliqueId: found.cliqueId,
                state: found.state,
            });
        if !matches!(answer, Err(error) if error.code() == code::VERSION_MISMATCH) {
            break;
        }
    }
    if !matches!(answer, Err(error) if error.code() == code::FUNCTION_NOT_FOUND) {
        return answer;
    }
    let mut found = nvmlGpuFabricInfo_t { clusterUuid: [0; 16], status: 0, cliqueId: 0, state: 0 };
    call!(nvml, nvmlDeviceGetGpuFabricInfo, device, &raw mut found)?;
    Ok(found)
}
