//! How an admin sets a card, and who holds it.
#![expect(unsafe_code, reason = "calls a C library by its interface")]

use nvml_wrapper_sys::bindings::nvmlProcessInfo_t;

use super::{Control, NvmlFault};
use crate::host::nvml::library::{call, list, number, valid};

/// A process that computes or draws on a card. Who only holds it open is in no list of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldingProcess {
    /// Its number.
    pub pid: u32,
    /// Whether it draws.
    pub graphics: bool,
    /// The GPU instance that it uses, where the card is divided.
    pub gpu_instance: Option<u32>,
    /// The compute instance there.
    pub compute_instance: Option<u32>,
}

/// How much power a card may draw, in milliwatts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerLimits {
    /// Now.
    pub limit: u32,
    /// Unless somebody sets it.
    pub default: u32,
    /// The least that can be set.
    pub least: u32,
    /// The most that can be set.
    pub most: u32,
}

impl Control {
    /// Whether the driver stays on the card when nobody uses it.
    ///
    /// # Errors
    /// When the driver gives no answer.
    pub fn persistence(&self) -> Result<bool, NvmlFault> {
        let device = self.device.get();
        let mode = number(|mode| call!(self.nvml(), nvmlDeviceGetPersistenceMode, device, mode));
        self.told(mode).map(|mode| mode == 1)
    }

    pub(super) fn set_persistence(&self, on: bool) -> Result<(), NvmlFault> {
        self.told(call!(self.nvml(), nvmlDeviceSetPersistenceMode, self.device.get(), on.into()))
    }

    /// How much power the card may draw.
    ///
    /// # Errors
    /// When the driver gives no answer.
    pub fn power_limits(&self) -> Result<PowerLimits, NvmlFault> {
        let (nvml, device) = (self.nvml(), self.device.get());
        let (mut least, mut most) = (0, 0);
        let bounds =
            call!(nvml, nvmlDeviceGetPowerManagementLimitConstraints, device, &raw mut least, &raw mut most);
        self.told(bounds)?;
        let limit = number(|limit| call!(nvml, nvmlDeviceGetPowerManagementLimit, device, limit));
        let default = number(|limit| call!(nvml, nvmlDeviceGetPowerManagementDefaultLimit, device, limit));
        Ok(PowerLimits { limit: self.told(limit)?, default: self.told(default)?, least, most })
    }

    pub(super) fn set_power_limit(&self, milliwatts: u32) -> Result<(), NvmlFault> {
        let device = self.device.get();
        self.told(call!(self.nvml(), nvmlDeviceSetPowerManagementLimit, device, milliwatts))
    }

    pub(super) fn lock_clocks(&self, least_mhz: u32, most_mhz: u32) -> Result<(), NvmlFault> {
        let device = self.device.get();
        self.told(call!(self.nvml(), nvmlDeviceSetGpuLockedClocks, device, least_mhz, most_mhz))
    }

    pub(super) fn reset_clocks(&self) -> Result<(), NvmlFault> {
        self.told(call!(self.nvml(), nvmlDeviceResetGpuLockedClocks, self.device.get()))
    }

    /// Who computes or draws on the card.
    ///
    /// # Errors
    /// When the driver gives no answer.
    pub fn processes(&self) -> Result<Vec<HoldingProcess>, NvmlFault> {
        let (nvml, device) = (self.nvml(), self.device.get());
        let none = nvmlProcessInfo_t { pid: 0, usedGpuMemory: 0, gpuInstanceId: 0, computeInstanceId: 0 };
        let compute = list(none, |count, found| {
            call!(nvml, nvmlDeviceGetComputeRunningProcesses_v3, device, count, found)
        });
        let graphics = list(none, |count, found| {
            call!(nvml, nvmlDeviceGetGraphicsRunningProcesses_v3, device, count, found)
        });
        let mut found = vec![];
        for (graphics, processes) in [(false, self.told(compute)?), (true, self.told(graphics)?)] {
            found.extend(processes.into_iter().map(|process| HoldingProcess {
                pid: process.pid,
                graphics,
                gpu_instance: valid(process.gpuInstanceId),
                compute_instance: valid(process.computeInstanceId),
            }));
        }
        Ok(found)
    }
}
