//! NVIDIA's library for tests, over the cards of the fake kernel. It refuses what the real one does.

use gpudesk_crds::{gpu_node::VgpuScheduler, gpu_node_status::MigMode, types::PciAddress};

use super::{
    control::{ControlError, DriverControl, GpuInstanceSeen, PowerSeen},
    fake_kernel::{FakeKernel, Fun},
};

/// The driver's library over the same cards, with the refusals of `facts` 9.4.
pub(super) struct FakeControl(pub(super) std::sync::Arc<FakeKernel>);

impl FakeControl {
    fn with<T>(&self, card: PciAddress, act: impl FnOnce(&mut Fun, bool) -> T) -> T {
        let mut state = self.0.state.lock().unwrap();
        let vfs = state.world.functions[&card].vfs.clone();
        let typed = vfs.iter().any(|vf| state.world.functions[vf].vgpu.is_some_and(|(id, ..)| id != 0));
        act(state.world.functions.get_mut(&card).unwrap(), typed)
    }

    fn note(&self, card: PciAddress, what: String) {
        self.0.state.lock().unwrap().writes.push((format!("nvml {}", &card.to_string()[5..]), what));
    }
}

impl DriverControl for FakeControl {
    fn mig_mode(&self, card: PciAddress) -> Result<Option<MigMode>, ControlError> {
        Ok(self.with(card, |fun, _| fun.mig.map(|on| MigMode { current: on, pending: on })))
    }
    fn set_mig_mode(&self, card: PciAddress, on: bool) -> Result<(), ControlError> {
        self.note(card, format!("mig {on}"));
        self.with(card, |fun, typed| {
            if typed || !fun.vfs.is_empty() {
                return Err(ControlError::InUse("in use by another client".into()));
            }
            fun.mig = Some(on);
            Ok(())
        })
    }
    fn gpu_instances(&self, card: PciAddress) -> Result<Vec<GpuInstanceSeen>, ControlError> {
        Ok(self.with(card, |fun, _| fun.instances.clone()))
    }
    fn create_gpu_instance(&self, card: PciAddress, profile: u32, start: i32) -> Result<(), ControlError> {
        self.note(card, format!("gi {profile} at {start}"));
        self.with(card, |fun, _| {
            // An occupied start is INSUFFICIENT_RESOURCES, also where the same one is there.
            if fun.mig != Some(true)
                || fun.instances.iter().any(|one| one.start < start + 2 && start < one.start + one.size)
            {
                return Err(ControlError::Refused("insufficient resources".into()));
            }
            let id = (1..=64).find(|id| fun.instances.iter().all(|one| one.id != *id)).unwrap();
            let uuid = Some(format!("MIG-{id}"));
            fun.instances.push(GpuInstanceSeen {
                id,
                profile,
                start,
                size: 2,
                compute_instances: 0,
                uuid,
                scheduler: fun.schedules_instances.then_some(VgpuScheduler::BestEffort),
            });
            Ok(())
        })
    }
    fn create_compute_instance(&self, card: PciAddress, gpu_instance: u32) -> Result<(), ControlError> {
        self.note(card, format!("ci on {gpu_instance}"));
        self.with(card, |fun, _| {
            let found =
                fun.instances.iter_mut().find(|one| one.id == gpu_instance && one.compute_instances == 0);
            found.ok_or(ControlError::Refused("not found".into()))?.compute_instances = 1;
            Ok(())
        })
    }
    fn destroy_gpu_instance(&self, card: PciAddress, gpu_instance: u32) -> Result<(), ControlError> {
        self.note(card, format!("no gi {gpu_instance}"));
        let world = self.0.world();
        let on_it = |vf: &PciAddress| {
            world.functions[vf].vgpu.is_some_and(|(_, _, gi)| gi == i32::try_from(gpu_instance).ok())
        };
        let in_use = world.functions[&card].vfs.iter().any(on_it);
        self.with(card, |fun, _| {
            if in_use {
                return Err(ControlError::InUse("in use by another client".into()));
            }
            fun.instances.retain(|one| one.id != gpu_instance);
            Ok(())
        })
    }
    fn mixed_size(&self, card: PciAddress) -> Result<Option<bool>, ControlError> {
        Ok(self.with(card, |fun, _| fun.mixed))
    }
    fn set_mixed_size(&self, card: PciAddress, on: bool) -> Result<(), ControlError> {
        self.note(card, format!("mixed {on}"));
        self.with(card, |fun, typed| {
            // 3 with MIG on, 19 with a vGPU present.
            if typed || fun.mig == Some(true) {
                return Err(ControlError::InUse("in use".into()));
            }
            fun.mixed = Some(on);
            Ok(())
        })
    }
    fn persistence(&self, card: PciAddress) -> Result<Option<bool>, ControlError> {
        Ok(self.with(card, |fun, _| fun.persistence))
    }
    fn set_persistence(&self, card: PciAddress, on: bool) -> Result<(), ControlError> {
        self.note(card, format!("persistence {on}"));
        self.with(card, |fun, _| fun.persistence = Some(on));
        Ok(())
    }
    fn scheduler(&self, card: PciAddress) -> Result<Option<VgpuScheduler>, ControlError> {
        Ok(self.with(card, |fun, _| fun.scheduler.filter(|_| fun.mig != Some(true))))
    }
    fn set_scheduler(&self, card: PciAddress, scheduler: VgpuScheduler) -> Result<(), ControlError> {
        self.note(card, format!("scheduler {scheduler:?}"));
        self.with(card, |fun, typed| {
            // 3 with MIG on, and with a vGPU present.
            // Fixed shares need equal sizes.
            let unlike = fun.mixed == Some(true) && scheduler == VgpuScheduler::FixedShare;
            if typed || fun.mig == Some(true) || unlike {
                return Err(ControlError::Refused("not supported".into()));
            }
            fun.scheduler = Some(scheduler);
            Ok(())
        })
    }
    fn set_instance_scheduler(
        &self,
        card: PciAddress,
        gpu_instance: u32,
        scheduler: VgpuScheduler,
    ) -> Result<(), ControlError> {
        self.note(card, format!("scheduler {scheduler:?} on {gpu_instance}"));
        let world = self.0.world();
        let on_it = |vf: &PciAddress| {
            world.functions[vf].vgpu.is_some_and(|(_, _, gi)| gi == i32::try_from(gpu_instance).ok())
        };
        let in_use = world.functions[&card].vfs.iter().any(on_it);
        self.with(card, |fun, _| {
            let found = fun.instances.iter_mut().find(|one| one.id == gpu_instance);
            let found = found.filter(|one| one.scheduler.is_some() && !in_use);
            // 3 with a vGPU on it, and of a card whose GPU instances hold one each.
            found.ok_or(ControlError::Refused("not supported".into()))?.scheduler = Some(scheduler);
            Ok(())
        })
    }
    fn power(&self, card: PciAddress) -> Result<Option<PowerSeen>, ControlError> {
        let seen = |limit| PowerSeen { limit, least: 100_000, most: 350_000 };
        Ok(self.with(card, |fun, _| fun.milliwatts.map(seen)))
    }
    fn set_power(&self, card: PciAddress, milliwatts: u32) -> Result<(), ControlError> {
        self.note(card, format!("power {milliwatts}"));
        // nvmlDeviceSetPowerManagementLimit: 2 out of range.
        if !(100_000..=350_000).contains(&milliwatts) {
            return Err(ControlError::Refused("invalid argument".into()));
        }
        self.with(card, |fun, _| fun.milliwatts = Some(milliwatts));
        Ok(())
    }
    fn lock_clocks(&self, card: PciAddress, range: Option<(u32, u32)>) -> Result<(), ControlError> {
        self.note(card, format!("clocks {range:?}"));
        self.with(card, |fun, _| fun.clocks = range);
        Ok(())
    }
    fn let_go(&self, _: PciAddress) -> Result<Box<dyn Send>, ControlError> {
        Ok(Box::new(()))
    }
}
