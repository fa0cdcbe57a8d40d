//! Which cards the driver has.
#![expect(unsafe_code, reason = "calls a C library by its interface")]

use std::collections::BTreeSet;

use gpudesk_crds::types::PciAddress;
use gpudesk_inventory::driver::DriverReadings;

use super::{
    NvmlError, card,
    library::{CallError, Session, call, code, number, text},
};

/// More cards than any machine has.
pub(super) const MOST_CARDS: u32 = 128;

/// What was found before the cards were read.
pub(super) struct Head {
    pub(super) readings: DriverReadings,
    pub(super) addresses: BTreeSet<PciAddress>,
    /// Why cards that are there have no address, one entry each.
    pub(super) unknown: Vec<CallError>,
}

/// Finds the cards.
pub(super) fn find(session: &Session) -> Result<Head, NvmlError> {
    let nvml = session.functions();
    let needed = |error: CallError| NvmlError::Call(error.to_string());
    let mut readings = DriverReadings {
        driver_version: text::<96>(|buffer, room| call!(nvml, nvmlSystemGetDriverVersion, buffer, room)).ok(),
        library_version: text::<96>(|buffer, room| call!(nvml, nvmlSystemGetNVMLVersion, buffer, room)).ok(),
        ..DriverReadings::default()
    };
    let count = number(|count| call!(nvml, nvmlDeviceGetCount_v2, count)).map_err(needed)?;
    let (mut addresses, mut unknown) = (BTreeSet::new(), vec![]);
    for index in 0..count.min(MOST_CARDS) {
        match card_at(session, index) {
            Ok(Some(address)) => {
                addresses.insert(address);
            }
            Ok(None) => {
                readings.problems.push(format!("Card {index} of NVIDIA's driver has no PCI address."));
            }
            // The count has cards in it that we may not see.
            Err(error) if matches!(error.code(), code::NO_PERMISSION | code::NOT_FOUND) => {
                readings.problems.push(format!("Card {index} of NVIDIA's driver cannot be seen: {error}."));
            }
            Err(error) => unknown.push(error),
        }
    }
    Ok(Head { readings, addresses, unknown })
}

fn card_at(session: &Session, index: u32) -> Result<Option<PciAddress>, CallError> {
    let nvml = session.functions();
    let mut device = std::ptr::null_mut();
    call!(nvml, nvmlDeviceGetHandleByIndex_v2, index, &raw mut device)?;
    let mut pci = card::NO_PCI;
    call!(nvml, nvmlDeviceGetPciInfo_v3, device, &raw mut pci)?;
    Ok(card::address(&pci))
}
