//! What only the GPU driver can change, through its own library: MIG, sizes side by side, persistence.

use gpudesk_crds::{gpu_node::VgpuScheduler, gpu_node_status::MigMode, types::PciAddress};
use thiserror::Error;

/// Why the driver did not do it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ControlError {
    /// There is nobody to ask.
    #[error("NVIDIA's library NVML is not there to be asked: set nodeDaemon.discovery.nvml (--nvml)")]
    Absent,
    /// Somebody uses what would change.
    #[error("{0}")]
    InUse(String),
    /// It refuses.
    #[error("{0}")]
    Refused(String),
}

/// A GPU instance of MIG that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInstanceSeen {
    /// The driver's number; it uses numbers again.
    pub id: u32,
    /// Number of the profile.
    pub profile: u32,
    /// Start, in memory units.
    pub start: i32,
    /// Memory units that it takes.
    pub size: i32,
    /// Its compute instances.
    pub compute_instances: u32,
    /// UUID of its first MIG device.
    pub uuid: Option<String>,
    /// How vGPUs on it share time; `None` where it has none of its own.
    pub scheduler: Option<VgpuScheduler>,
}

/// How much power a card may draw, in milliwatts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerSeen {
    /// Now.
    pub limit: u32,
    /// The least that can be set.
    pub least: u32,
    /// The most that can be set.
    pub most: u32,
}

/// The driver of the cards. Every call may block as long as the driver does; asking twice for the same is no error.
pub trait DriverControl: Send + Sync {
    /// MIG mode; `None` for a card without MIG, and where nobody can be asked.
    ///
    /// # Errors
    /// When the driver does not say.
    fn mig_mode(&self, card: PciAddress) -> Result<Option<MigMode>, ControlError>;

    /// Switches MIG on or off. A mode that stays pending is an error.
    ///
    /// # Errors
    /// [`ControlError`].
    fn set_mig_mode(&self, card: PciAddress, on: bool) -> Result<(), ControlError>;

    /// The GPU instances of a card; none while MIG is off.
    ///
    /// # Errors
    /// When the driver does not say.
    fn gpu_instances(&self, card: PciAddress) -> Result<Vec<GpuInstanceSeen>, ControlError>;

    /// Makes a GPU instance of this profile at this start.
    ///
    /// # Errors
    /// [`ControlError`].
    fn create_gpu_instance(&self, card: PciAddress, profile: u32, start: i32) -> Result<(), ControlError>;

    /// Makes the one compute instance that takes all of a GPU instance.
    ///
    /// # Errors
    /// [`ControlError`].
    fn create_compute_instance(&self, card: PciAddress, gpu_instance: u32) -> Result<(), ControlError>;

    /// Unmakes a GPU instance with its compute instances.
    ///
    /// # Errors
    /// [`ControlError`].
    fn destroy_gpu_instance(&self, card: PciAddress, gpu_instance: u32) -> Result<(), ControlError>;

    /// Whether vGPUs of several sizes may stand side by side; `None` where the card cannot, and where nobody can be
    /// asked.
    ///
    /// # Errors
    /// When the driver does not say.
    fn mixed_size(&self, card: PciAddress) -> Result<Option<bool>, ControlError>;

    /// Sets it.
    ///
    /// # Errors
    /// [`ControlError`].
    fn set_mixed_size(&self, card: PciAddress, on: bool) -> Result<(), ControlError>;

    /// How vGPUs share the time of a card; `None` where it cannot be set, as with MIG on, and where nobody can be asked.
    ///
    /// # Errors
    /// When the driver does not say.
    fn scheduler(&self, card: PciAddress) -> Result<Option<VgpuScheduler>, ControlError>;

    /// Sets it. No vGPU may be on the card.
    ///
    /// # Errors
    /// [`ControlError`].
    fn set_scheduler(&self, card: PciAddress, scheduler: VgpuScheduler) -> Result<(), ControlError>;

    /// Sets how vGPUs on a GPU instance share time. None may be on it.
    ///
    /// # Errors
    /// [`ControlError`].
    fn set_instance_scheduler(
        &self,
        card: PciAddress,
        gpu_instance: u32,
        scheduler: VgpuScheduler,
    ) -> Result<(), ControlError>;

    /// Persistence mode; `None` where nobody can be asked.
    ///
    /// # Errors
    /// When the driver does not say.
    fn persistence(&self, card: PciAddress) -> Result<Option<bool>, ControlError>;

    /// Sets it.
    ///
    /// # Errors
    /// [`ControlError`].
    fn set_persistence(&self, card: PciAddress, on: bool) -> Result<(), ControlError>;

    /// How much power the card may draw; `None` where nobody can be asked, and of a card without a limit.
    ///
    /// # Errors
    /// When the driver does not say.
    fn power(&self, card: PciAddress) -> Result<Option<PowerSeen>, ControlError>;

    /// Sets it, in milliwatts.
    ///
    /// # Errors
    /// [`ControlError`].
    fn set_power(&self, card: PciAddress, milliwatts: u32) -> Result<(), ControlError>;

    /// Keeps the clocks of the card between these, in MHz; with `None` no more. The driver does not tell them.
    ///
    /// # Errors
    /// [`ControlError`].
    fn lock_clocks(&self, card: PciAddress, range: Option<(u32, u32)>) -> Result<(), ControlError>;

    /// Ends the daemon's own use of the driver for as long as what is returned lives: it would hold the card open.
    ///
    /// # Errors
    /// When that use does not end.
    fn let_go(&self, card: PciAddress) -> Result<Box<dyn Send>, ControlError>;
}

/// Where there is no such library.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoControl;

impl DriverControl for NoControl {
    fn mig_mode(&self, _: PciAddress) -> Result<Option<MigMode>, ControlError> {
        Ok(None)
    }
    fn set_mig_mode(&self, _: PciAddress, _: bool) -> Result<(), ControlError> {
        Err(ControlError::Absent)
    }
    fn gpu_instances(&self, _: PciAddress) -> Result<Vec<GpuInstanceSeen>, ControlError> {
        Ok(vec![])
    }
    fn create_gpu_instance(&self, _: PciAddress, _: u32, _: i32) -> Result<(), ControlError> {
        Err(ControlError::Absent)
    }
    fn create_compute_instance(&self, _: PciAddress, _: u32) -> Result<(), ControlError> {
        Err(ControlError::Absent)
    }
    fn destroy_gpu_instance(&self, _: PciAddress, _: u32) -> Result<(), ControlError> {
        Err(ControlError::Absent)
    }
    fn mixed_size(&self, _: PciAddress) -> Result<Option<bool>, ControlError> {
        Ok(None)
    }
    fn set_mixed_size(&self, _: PciAddress, _: bool) -> Result<(), ControlError> {
        Err(ControlError::Absent)
    }
    fn scheduler(&self, _: PciAddress) -> Result<Option<VgpuScheduler>, ControlError> {
        Ok(None)
    }
    fn set_scheduler(&self, _: PciAddress, _: VgpuScheduler) -> Result<(), ControlError> {
        Err(ControlError::Absent)
    }
    fn set_instance_scheduler(&self, _: PciAddress, _: u32, _: VgpuScheduler) -> Result<(), ControlError> {
        Err(ControlError::Absent)
    }
    fn persistence(&self, _: PciAddress) -> Result<Option<bool>, ControlError> {
        Ok(None)
    }
    fn set_persistence(&self, _: PciAddress, _: bool) -> Result<(), ControlError> {
        Err(ControlError::Absent)
    }
    fn power(&self, _: PciAddress) -> Result<Option<PowerSeen>, ControlError> {
        Ok(None)
    }
    fn set_power(&self, _: PciAddress, _: u32) -> Result<(), ControlError> {
        Err(ControlError::Absent)
    }
    fn lock_clocks(&self, _: PciAddress, _: Option<(u32, u32)>) -> Result<(), ControlError> {
        Err(ControlError::Absent)
    }
    fn let_go(&self, _: PciAddress) -> Result<Box<dyn Send>, ControlError> {
        Ok(Box::new(()))
    }
}
