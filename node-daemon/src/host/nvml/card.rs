//! One card, read.
#![expect(unsafe_code, reason = "calls a C library by its interface")]

use std::{cell::RefCell, ffi::CString, ptr};

use gpudesk_crds::types::PciAddress;
use gpudesk_inventory::driver::{
    CardFault, CardReadings, EccReadings, FaultKind, RowRemappingReadings, TemperatureReadings, Thresholds,
};
use nvml_wrapper_sys::bindings::{
    NvmlLib, field_id, nvmlDevice_t, nvmlFieldValue_st, nvmlMarginTemperature_v1_t, nvmlMemory_st,
    nvmlPciInfo_t, nvmlTemperature_v1_t,
};

use super::{
    library::{CallError, call, code, from_chars, number, small, text, version_of},
    link, mig, vgpu,
};

/// Asks about one card and keeps account of what failed.
pub(super) struct Reader<'a> {
    pub(super) nvml: &'a NvmlLib,
    pub(super) device: nvmlDevice_t,
    failed: RefCell<Vec<String>>,
    fault: RefCell<Option<CardFault>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(nvml: &'a NvmlLib, device: nvmlDevice_t) -> Self {
        Self { nvml, device, failed: RefCell::default(), fault: RefCell::default() }
    }

    /// The answer, when there is one. Once the card is known to be lost nothing is asked any more.
    pub(super) fn ask<T>(&self, question: impl FnOnce() -> Result<T, CallError>) -> Option<T> {
        if self.fault.borrow().is_some() {
            return None;
        }
        match question() {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.note(error);
                None
            }
        }
    }

    /// A number.
    pub(super) fn number(&self, question: impl FnOnce(*mut u32) -> Result<(), CallError>) -> Option<u32> {
        self.ask(|| number(question))
    }

    fn note(&self, error: CallError) {
        if let Some(fault) = fault(error) {
            *self.fault.borrow_mut() = Some(fault);
        } else if !error.is_nothing() {
            let mut failed = self.failed.borrow_mut();
            let sentence = error.to_string();
            if failed.len() < 32 && !failed.contains(&sentence) {
                failed.push(sentence);
            }
        }
    }
}

/// The fault of a whole card that an error tells of.
pub(super) fn fault(error: CallError) -> Option<CardFault> {
    let kind = match error.code() {
        code::GPU_IS_LOST => FaultKind::Lost,
        code::RESET_REQUIRED => FaultKind::ResetRequired,
        _ => return None,
    };
    Some(CardFault { kind, message: error.to_string() })
}

/// Reads the card at `address`; `None` when the driver has none there.
pub(super) fn read(nvml: &NvmlLib, address: PciAddress) -> Option<CardReadings> {
    let mut found = CardReadings::new(address);
    let device = match device(nvml, address) {
        Ok(device) => device,
        Err(error) if error.code() == code::NOT_FOUND => return None,
        Err(error) => {
            let other = || CardFault { kind: FaultKind::Other, message: error.to_string() };
            found.fault = Some(fault(error).unwrap_or_else(other));
            return Some(found);
        }
    };
    let reader = Reader::new(nvml, device);
    identity(&reader, &mut found);
    health(&reader, &mut found);
    found.mig = mig::read(&reader);
    found.vgpu = vgpu::read(&reader);
    found.nvlinks = link::nvlinks(&reader);
    found.fabric = link::fabric(&reader);
    found.failed_calls = reader.failed.into_inner();
    found.fault = reader.fault.into_inner();
    Some(found)
}

/// The handle of the card at `address`.
pub(super) fn device(nvml: &NvmlLib, address: PciAddress) -> Result<nvmlDevice_t, CallError> {
    let bus_id =
        format!("{:08X}:{:02X}:{:02X}.{:X}", address.domain, address.bus, address.device, address.function);
    let bus_id = CString::new(bus_id).unwrap_or_default();
    let mut device = ptr::null_mut();
    call!(nvml, nvmlDeviceGetHandleByPciBusId_v2, bus_id.as_ptr(), &raw mut device)?;
    Ok(device)
}

/// The address in what NVML says of PCI; its domain has eight digits.
pub(super) fn address(pci: &nvmlPciInfo_t) -> Option<PciAddress> {
    let named: Option<PciAddress> = from_chars(&pci.busId).parse().ok();
    named.or_else(|| from_chars(&pci.busIdLegacy).parse().ok())
}

/// An empty place for what NVML says of PCI.
pub(super) const NO_PCI: nvmlPciInfo_t = nvmlPciInfo_t {
    busIdLegacy: [0; 16],
    domain: 0,
    bus: 0,
    device: 0,
    pciDeviceId: 0,
    pciSubSystemId: 0,
    busId: [0; 32],
};

fn identity(reader: &Reader<'_>, found: &mut CardReadings) {
    let Reader { nvml, device, .. } = *reader;
    found.product =
        reader.ask(|| text::<96>(|buffer, length| call!(nvml, nvmlDeviceGetName, device, buffer, length)));
    found.uuid =
        reader.ask(|| text::<96>(|buffer, length| call!(nvml, nvmlDeviceGetUUID, device, buffer, length)));
    found.serial =
        reader.ask(|| text::<64>(|buffer, length| call!(nvml, nvmlDeviceGetSerial, device, buffer, length)));
    found.pci_id = reader.ask(|| {
        let mut pci = NO_PCI;
        call!(nvml, nvmlDeviceGetPciInfo_v3, device, &raw mut pci)?;
        Ok(format!("{:04x}:{:04x}", pci.pciDeviceId & 0xffff, pci.pciDeviceId >> 16))
    });
    found.memory_mib = reader.ask(|| {
        let mut memory = nvmlMemory_st { total: 0, free: 0, used: 0 };
        call!(nvml, nvmlDeviceGetMemoryInfo, device, &raw mut memory)?;
        Ok(i64::try_from(memory.total >> 20).unwrap_or(i64::MAX))
    });
    found.module_id = reader.number(|id| call!(nvml, nvmlDeviceGetModuleId, device, id)).map(small);
}

fn health(reader: &Reader<'_>, found: &mut CardReadings) {
    let Reader { nvml, device, .. } = *reader;
    found.temperature = temperature(reader);
    found.clocks_event_reasons = reader.ask(|| {
        let mut reasons = 0_u64;
        match call!(nvml, nvmlDeviceGetCurrentClocksEventReasons, device, &raw mut reasons) {
            Err(error) if error.code() == code::FUNCTION_NOT_FOUND => {
                call!(nvml, nvmlDeviceGetCurrentClocksThrottleReasons, device, &raw mut reasons)
            }
            answer => answer,
        }?;
        Ok(reasons)
    });
    let ecc = reader.ask(|| {
        let (mut current, mut pending) = (0, 0);
        call!(nvml, nvmlDeviceGetEccMode, device, &raw mut current, &raw mut pending)?;
        Ok(current == 1)
    });
    // 0 corrected, 1 not; 0 since the driver was loaded.
    let errors = |kind: u32| {
        reader.ask(|| {
            let mut count = 0_u64;
            call!(nvml, nvmlDeviceGetTotalEccErrors, device, kind, 0, &raw mut count)?;
            Ok(count)
        })
    };
    found.ecc = ecc.map(|enabled| EccReadings {
        enabled,
        corrected: enabled.then(|| errors(0)).flatten(),
        uncorrected: enabled.then(|| errors(1)).flatten(),
    });
    found.row_remapping = reader.ask(|| {
        let (mut corrected, mut uncorrected, mut pending, mut failed) = (0, 0, 0, 0);
        call!(
            nvml,
            nvmlDeviceGetRemappedRows,
            device,
            &raw mut corrected,
            &raw mut uncorrected,
            &raw mut pending,
            &raw mut failed,
        )?;
        Ok(RowRemappingReadings { corrected, uncorrected, pending: pending != 0, failed: failed != 0 })
    });
    let recovery = fields(reader, [field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]);
    found.recovery_action = recovery[0].and_then(|action| u32::try_from(action).ok());
}

fn temperature(reader: &Reader<'_>) -> Option<TemperatureReadings> {
    let Reader { nvml, device, .. } = *reader;
    // Sensor 0 is that of the GPU.
    let now =
        reader.ask(|| match number(|degrees| call!(nvml, nvmlDeviceGetTemperature, device, 0, degrees)) {
            Err(error) if error.is_nothing() => {
                let mut found = nvmlTemperature_v1_t {
                    version: version_of::<nvmlTemperature_v1_t>(1),
                    sensorType: 0,
                    temperature: 0,
                };
                call!(nvml, nvmlDeviceGetTemperatureV, device, &raw mut found)?;
                Ok(found.temperature)
            }
            answer => answer.map(small),
        });
    let threshold = |kind: u32| {
        reader
            .number(|degrees| call!(nvml, nvmlDeviceGetTemperatureThreshold, device, kind, degrees))
            .map(small)
    };
    let degrees = Thresholds {
        shutdown: threshold(0),
        slowdown: threshold(1),
        memory_max: threshold(2),
        gpu_max: threshold(3),
    };
    let margin = reader.ask(|| {
        let mut found = nvmlMarginTemperature_v1_t {
            version: version_of::<nvmlMarginTemperature_v1_t>(1),
            marginTemperature: 0,
        };
        call!(nvml, nvmlDeviceGetMarginTemperature, device, &raw mut found)?;
        Ok(found.marginTemperature)
    });
    let [shutdown, slowdown, memory_max, gpu_max] = fields(
        reader,
        [
            field_id::NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT,
            field_id::NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT,
            field_id::NVML_FI_DEV_TEMPERATURE_MEM_MAX_TLIMIT,
            field_id::NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT,
        ],
    )
    .map(|value| value.and_then(|value| i32::try_from(value).ok()));
    let margins = Thresholds { shutdown, slowdown, gpu_max, memory_max };
    let says_something = |found: &Thresholds| *found != Thresholds::default();
    let found = TemperatureReadings {
        now,
        degrees: Some(degrees).filter(says_something),
        margin,
        margins: Some(margins).filter(says_something),
    };
    (found != TemperatureReadings::default()).then_some(found)
}

/// Values that NVML keeps under numbers. The function succeeds as a whole; each value says for itself.
pub(super) fn fields<const N: usize>(reader: &Reader<'_>, ids: [u32; N]) -> [Option<i64>; N] {
    let Reader { nvml, device, .. } = *reader;
    let mut values = ids.map(|id| nvmlFieldValue_st {
        fieldId: id,
        scopeId: 0,
        timestamp: 0,
        latencyUsec: 0,
        valueType: 0,
        nvmlReturn: code::NOT_SUPPORTED,
        value: nvml_wrapper_sys::bindings::nvmlValue_st { ullVal: 0 },
    });
    let count = i32::try_from(N).unwrap_or(0);
    let asked = reader.ask(|| call!(nvml, nvmlDeviceGetFieldValues, device, count, values.as_mut_ptr()));
    if asked.is_none() {
        return [None; N];
    }
    values.map(|found| {
        reader.ask(|| {
            super::library::checked("nvmlDeviceGetFieldValues", found.nvmlReturn)?;
            Ok(field_value(&found))
        })?
    })
}

/// A value by the type that the driver gives it (`nvmlValueType_t`).
fn field_value(found: &nvmlFieldValue_st) -> Option<i64> {
    // SAFETY: every member of the union is plain numbers that any bits are valid for; the driver says
    // which one it wrote.
    unsafe {
        match found.valueType {
            // Margins below zero come as unsigned from some drivers.
            1 => Some(i64::from(found.value.uiVal.cast_signed())),
            2 => i64::try_from(found.value.ulVal).ok(),
            3 => i64::try_from(found.value.ullVal).ok(),
            4 => Some(found.value.sllVal),
            5 => Some(i64::from(found.value.siVal)),
            6 => Some(i64::from(found.value.usVal)),
            _ => None,
        }
    }
}
