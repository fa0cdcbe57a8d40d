//! What the device module asks of NVIDIA's driver, asked through NVML.

use std::sync::Arc;

use gpudesk_crds::{gpu_node::VgpuScheduler, gpu_node_status::MigMode, types::PciAddress};

use super::nvml::{
    Nvml, SharedNvml,
    control::{
        Activation, Change, ChangeLog, Control, Done, NvmlFault, Scheduling, Waiting, layout::LiveInstance,
    },
};
use crate::devices::control::{ControlError, DriverControl, GpuInstanceSeen, PowerSeen};

/// NVIDIA's driver, once the host was looked at.
#[derive(Clone)]
pub struct NvmlControl {
    nvml: SharedNvml,
}

/// Each change is in the log of the daemon.
struct Told;

impl ChangeLog for Told {
    fn begins(&self, card: PciAddress, change: &Change) {
        tracing::info!(%card, "{change}");
    }

    fn ended(&self, card: PciAddress, change: &Change, outcome: Result<&Done, &NvmlFault>) {
        if let Err(error) = outcome {
            tracing::warn!(%card, %error, "{change}: not done");
        }
    }
}

impl NvmlControl {
    /// The driver behind this library.
    pub fn new(nvml: SharedNvml) -> Self {
        Self { nvml }
    }

    fn nvml(&self) -> Result<Arc<Nvml>, ControlError> {
        self.nvml.get().ok_or(ControlError::Absent)
    }

    fn open(&self, card: PciAddress) -> Result<Control, ControlError> {
        let nvml = self.nvml()?;
        match nvml.control(card, Arc::new(Told)) {
            // The library knows the cards that were there when its first user came: it is begun anew.
            Err(fault) if fault.is_unknown() => {
                drop(nvml.pause().map_err(|error| ControlError::InUse(error.to_string()))?);
                Ok(nvml.control(card, Arc::new(Told))?)
            }
            opened => Ok(opened?),
        }
    }

    /// What is read; `None` where nobody can be asked, and of a card that cannot have it.
    fn read<T>(
        &self,
        card: PciAddress,
        ask: impl FnOnce(&Control) -> Result<T, NvmlFault>,
    ) -> Result<Option<T>, ControlError> {
        if self.nvml.get().is_none() {
            return Ok(None);
        }
        match ask(&self.open(card)?) {
            Ok(found) => Ok(Some(found)),
            Err(fault) if fault.not_supported() => Ok(None),
            Err(fault) => Err(fault.into()),
        }
    }

    fn change(&self, card: PciAddress, change: &Change) -> Result<Done, ControlError> {
        Ok(self.open(card)?.change(change)?)
    }
}

impl From<NvmlFault> for ControlError {
    fn from(fault: NvmlFault) -> Self {
        if fault.is_in_use() { Self::InUse(fault.to_string()) } else { Self::Refused(fault.to_string()) }
    }
}

/// The scheduler of a policy (nvml.h: `NVML_VGPU_SCHEDULER_POLICY_BEST_EFFORT`, `_EQUAL_SHARE`, `_FIXED_SHARE`).
fn scheduler_of(policy: u32) -> Option<VgpuScheduler> {
    let all = [VgpuScheduler::BestEffort, VgpuScheduler::EqualShare, VgpuScheduler::FixedShare];
    all.into_iter().find(|scheduler| scheduling(*scheduler).policy == policy)
}

fn scheduling(scheduler: VgpuScheduler) -> Scheduling {
    let policy = match scheduler {
        VgpuScheduler::BestEffort => 1,
        VgpuScheduler::EqualShare => 2,
        VgpuScheduler::FixedShare => 3,
    };
    Scheduling { policy, average: 0, frequency: 0 }
}

/// The instance of this number.
fn numbered(control: &Control, number: u32) -> Result<Option<LiveInstance>, NvmlFault> {
    Ok(control.gpu_instances()?.into_iter().find(|instance| instance.id == number))
}

impl DriverControl for NvmlControl {
    fn mig_mode(&self, card: PciAddress) -> Result<Option<MigMode>, ControlError> {
        let found = self.read(card, Control::mig_mode)?;
        Ok(found.map(|mode| MigMode { current: mode.current, pending: mode.pending }))
    }

    fn set_mig_mode(&self, card: PciAddress, on: bool) -> Result<(), ControlError> {
        match self.change(card, &Change::MigMode(on))? {
            Done::Activation(Activation::Pending(Waiting::InUse)) => {
                Err(ControlError::InUse(format!("MIG of {card} waits until nobody uses the card")))
            }
            Done::Activation(Activation::Pending(Waiting::Reset)) => {
                Err(ControlError::Refused(format!("MIG of {card} waits for a reset: reboot the host")))
            }
            Done::Activation(Activation::Pending(Waiting::Other(code))) => {
                Err(ControlError::Refused(format!("MIG of {card} is not in force yet (NVML says {code})")))
            }
            Done::Activation(Activation::Done)
            | Done::Plainly
            | Done::GpuInstance(_)
            | Done::ComputeInstance { .. } => Ok(()),
        }
    }

    fn gpu_instances(&self, card: PciAddress) -> Result<Vec<GpuInstanceSeen>, ControlError> {
        let seen = |instance: LiveInstance| {
            Ok(GpuInstanceSeen {
                id: instance.id,
                profile: instance.at.profile,
                start: instance.at.start,
                size: instance.at.size,
                compute_instances: u32::try_from(instance.compute.len()).unwrap_or(u32::MAX),
                uuid: instance.compute.into_iter().find_map(|compute| compute.uuid),
                scheduler: self
                    .read(card, |control| control.scheduler_on(&instance.at))?
                    .and_then(scheduler_of),
            })
        };
        let found = self.read(card, Control::gpu_instances)?.unwrap_or_default();
        found.into_iter().map(seen).collect()
    }

    fn create_gpu_instance(&self, card: PciAddress, profile: u32, start: i32) -> Result<(), ControlError> {
        let control = self.open(card)?;
        let there = control.gpu_instances()?;
        if there.iter().any(|instance| (instance.at.profile, instance.at.start) == (profile, start)) {
            return Ok(());
        }
        let known = control.gpu_instance_profiles()?.into_iter().find(|known| known.id == profile);
        let known = known.ok_or_else(|| {
            ControlError::Refused(format!("{card} has no MIG profile of the number {profile}"))
        })?;
        let at = super::nvml::control::layout::Place { profile, start, size: known.size };
        control.change(&Change::CreateGpuInstance(at))?;
        Ok(())
    }

    fn create_compute_instance(&self, card: PciAddress, gpu_instance: u32) -> Result<(), ControlError> {
        let control = self.open(card)?;
        let on = numbered(&control, gpu_instance)?.ok_or_else(|| {
            ControlError::Refused(format!("{card} has no GPU instance {gpu_instance} any more"))
        })?;
        if on.compute.is_empty() {
            control.change(&Change::CreateComputeInstance { on: on.at, profile: None })?;
        }
        Ok(())
    }

    fn destroy_gpu_instance(&self, card: PciAddress, gpu_instance: u32) -> Result<(), ControlError> {
        let control = self.open(card)?;
        let Some(instance) = numbered(&control, gpu_instance)? else { return Ok(()) };
        for compute in &instance.compute {
            let (id, uuid) = (compute.id, compute.uuid.clone());
            control.change(&Change::DestroyComputeInstance { on: instance.at, id, uuid })?;
        }
        control.change(&Change::DestroyGpuInstance(instance.at))?;
        Ok(())
    }

    fn mixed_size(&self, card: PciAddress) -> Result<Option<bool>, ControlError> {
        self.read(card, Control::mixed_size)
    }

    fn set_mixed_size(&self, card: PciAddress, on: bool) -> Result<(), ControlError> {
        self.change(card, &Change::MixedSize(on)).map(drop)
    }

    fn persistence(&self, card: PciAddress) -> Result<Option<bool>, ControlError> {
        self.read(card, Control::persistence)
    }

    fn set_persistence(&self, card: PciAddress, on: bool) -> Result<(), ControlError> {
        self.change(card, &Change::Persistence(on)).map(drop)
    }

    fn scheduler(&self, card: PciAddress) -> Result<Option<VgpuScheduler>, ControlError> {
        Ok(self.read(card, Control::scheduler)?.and_then(scheduler_of))
    }

    fn set_scheduler(&self, card: PciAddress, scheduler: VgpuScheduler) -> Result<(), ControlError> {
        self.change(card, &Change::Scheduler(scheduling(scheduler))).map(drop)
    }

    fn set_instance_scheduler(
        &self,
        card: PciAddress,
        gpu_instance: u32,
        scheduler: VgpuScheduler,
    ) -> Result<(), ControlError> {
        let control = self.open(card)?;
        let on = numbered(&control, gpu_instance)?.ok_or_else(|| {
            ControlError::Refused(format!("{card} has no GPU instance {gpu_instance} any more"))
        })?;
        control.change(&Change::SchedulerOn { on: on.at, wanted: scheduling(scheduler) })?;
        Ok(())
    }

    fn power(&self, card: PciAddress) -> Result<Option<PowerSeen>, ControlError> {
        let found = self.read(card, Control::power_limits)?;
        Ok(found.map(|found| PowerSeen { limit: found.limit, least: found.least, most: found.most }))
    }

    fn set_power(&self, card: PciAddress, milliwatts: u32) -> Result<(), ControlError> {
        self.change(card, &Change::PowerLimit { milliwatts }).map(drop)
    }

    fn lock_clocks(&self, card: PciAddress, range: Option<(u32, u32)>) -> Result<(), ControlError> {
        let change = match range {
            Some((least_mhz, most_mhz)) => Change::LockClocks { least_mhz, most_mhz },
            None => Change::ResetClocks,
        };
        match self.open(card)?.change(&change) {
            // A card that cannot lock them has none locked.
            Err(fault) if range.is_none() && fault.not_supported() => Ok(()),
            done => Ok(done.map(drop)?),
        }
    }

    fn let_go(&self, _: PciAddress) -> Result<Box<dyn Send>, ControlError> {
        let Some(nvml) = self.nvml.get() else { return Ok(Box::new(())) };
        // The library holds all cards open that it knows, whichever is asked for.
        match nvml.pause() {
            Ok(paused) => Ok(Box::new(paused)),
            Err(error) => Err(ControlError::InUse(error.to_string())),
        }
    }
}
