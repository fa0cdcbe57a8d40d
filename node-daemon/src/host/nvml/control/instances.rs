//! GPU instances and compute instances of a card (MIG).
#![expect(unsafe_code, reason = "calls a C library by its interface")]

use std::ptr;

use nvml_wrapper_sys::bindings::{
    field_id, nvmlComputeInstance_t, nvmlComputeInstanceInfo_st, nvmlComputeInstanceProfileInfo_st,
    nvmlComputeInstanceProfileInfo_v2_st, nvmlGpuInstance_t, nvmlGpuInstanceInfo_st,
    nvmlGpuInstancePlacement_st,
};

use super::{
    Control, NvmlFault,
    change::{Activation, Done, Waiting},
    layout::{LiveComputeInstance, LiveInstance, MigMode, Place, Profile},
};
use crate::host::nvml::{
    card::{self, Reader, fields},
    library::{CallError, call, checked, code, from_chars, listed, number, small, text, version_of},
    mig,
};

/// Beyond the last number by which profiles of compute instances are asked for.
const COMPUTE_PROFILES: u32 = 0x10;
/// Room for the compute instances of one profile.
const ROOM: u32 = 64;

/// A profile of compute instances on a GPU instance.
struct ComputeProfile {
    id: u32,
    slices: u32,
}

impl Control {
    /// Whether MIG is on, and will be after a reset.
    ///
    /// # Errors
    /// When the driver gives no answer; "not supported" of a card without MIG.
    pub fn mig_mode(&self) -> Result<MigMode, NvmlFault> {
        let (mut current, mut pending) = (0, 0);
        self.told(call!(
            self.nvml(),
            nvmlDeviceGetMigMode,
            self.device.get(),
            &raw mut current,
            &raw mut pending
        ))?;
        Ok(MigMode { current: current == 1, pending: pending == 1 })
    }

    /// Whether MIG is turned on and off without a reset of the card; `None` when the driver does not say.
    pub fn mig_without_reset(&self) -> Option<bool> {
        let reader = Reader::new(self.nvml(), self.device.get());
        let [found] = fields(&reader, [field_id::NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED]);
        found.map(|found| found == 1)
    }

    /// Every profile that the card has, in the order of the driver. How many more fit is known while MIG
    /// is on.
    ///
    /// # Errors
    /// When the driver gives no answer.
    pub fn gpu_instance_profiles(&self) -> Result<Vec<Profile>, NvmlFault> {
        let on = self.mig_mode()?.current;
        let (nvml, device) = (self.nvml(), self.device.get());
        let mut found = vec![];
        for index in 0..mig::PROFILES {
            let info = match mig::profile_info(nvml, device, index) {
                Err(error) if error.code() == code::INVALID_ARGUMENT => break,
                Err(error) if error.code() == code::NOT_SUPPORTED => continue,
                answer => self.told(answer)?,
            };
            let placements = self.told(mig::placements(nvml, device, info.id))?;
            let remaining = on.then(|| {
                number(|count| call!(nvml, nvmlDeviceGetGpuInstanceRemainingCapacity, device, info.id, count))
            });
            let name = from_chars(&info.name);
            found.push(Profile {
                id: info.id,
                name: name.strip_prefix("MIG ").unwrap_or(&name).to_owned(),
                slices: small(info.sliceCount),
                size: placements.iter().map(|placement| placement.size).max().unwrap_or(0),
                starts: placements.iter().map(|placement| placement.start).collect(),
                max: small(info.instanceCount),
                memory_mib: i64::try_from(info.memorySizeMB).unwrap_or(i64::MAX),
                media: [info.decoderCount, info.encoderCount, info.jpegCount, info.ofaCount].map(small),
                remaining: remaining.map(|remaining| self.told(remaining)).transpose()?.map(small),
            });
        }
        Ok(found)
    }

    /// What there is, by start; nothing while MIG is off.
    ///
    /// # Errors
    /// When the driver gives no answer.
    pub fn gpu_instances(&self) -> Result<Vec<LiveInstance>, NvmlFault> {
        if !self.mig_mode()?.current {
            return Ok(vec![]);
        }
        let (nvml, device) = (self.nvml(), self.device.get());
        let mut found = vec![];
        for index in 0..mig::PROFILES {
            let profile = match mig::profile_info(nvml, device, index) {
                Err(error) if error.code() == code::INVALID_ARGUMENT => break,
                Err(error) if error.code() == code::NOT_SUPPORTED => continue,
                answer => self.told(answer)?,
            };
            for handle in self.told(mig::handles(nvml, device, profile.id))? {
                let info = self.told(mig::instance_info(nvml, handle))?;
                let compute = self.compute_instances(handle, info.id)?;
                found.push(LiveInstance { id: info.id, at: place(&info), compute });
            }
        }
        found.sort_by_key(|instance| instance.at.start);
        Ok(found)
    }

    fn compute_instances(
        &self,
        of: nvmlGpuInstance_t,
        instance: u32,
    ) -> Result<Vec<LiveComputeInstance>, NvmlFault> {
        let nvml = self.nvml();
        let mut found = vec![];
        for profile in self.compute_profiles(of)? {
            let handles = self.told(listed(ptr::null_mut(), ROOM, |count, handles| {
                call!(nvml, nvmlGpuInstanceGetComputeInstances, of, profile.id, handles, count)
            }))?;
            for handle in handles {
                let info = self.told(mig::compute_info(nvml, handle))?;
                found.push(LiveComputeInstance {
                    id: info.id,
                    profile: info.profileId,
                    start: small(info.placement.start),
                    slices: small(info.placement.size),
                    uuid: self.uuid(&info, instance),
                });
            }
        }
        found.sort_by_key(|compute| compute.id);
        found.dedup_by_key(|compute| compute.id);
        Ok(found)
    }

    /// The UUID of the MIG device that a compute instance makes: its own handle tells it at once, walking
    /// all of them takes seconds on a busy card.
    fn uuid(&self, of: &nvmlComputeInstanceInfo_st, instance: u32) -> Option<String> {
        let nvml = self.nvml();
        let told = text::<96>(|buffer, room| call!(nvml, nvmlDeviceGetUUID, of.device, buffer, room));
        told.ok().filter(|uuid| uuid.starts_with("MIG-")).or_else(|| {
            let reader = Reader::new(nvml, self.device.get());
            let mut devices = mig::mig_devices(&reader).into_iter();
            devices.find(|mig| mig.gpu_instance == instance && mig.compute_instance == of.id)?.uuid
        })
    }

    fn compute_profiles(&self, of: nvmlGpuInstance_t) -> Result<Vec<ComputeProfile>, NvmlFault> {
        let mut found = vec![];
        for index in 0..COMPUTE_PROFILES {
            match self.compute_profile(of, index) {
                Err(error) if error.code() == code::INVALID_ARGUMENT => break,
                Err(error) if error.code() == code::NOT_SUPPORTED => {}
                answer => found.push(self.told(answer)?),
            }
        }
        Ok(found)
    }

    fn compute_profile(&self, of: nvmlGpuInstance_t, index: u32) -> Result<ComputeProfile, CallError> {
        let nvml = self.nvml();
        // Engines that all compute instances share; there are no others.
        let engines = 0;
        // SAFETY: the structure is numbers only; zeros are valid for it.
        let mut info: nvmlComputeInstanceProfileInfo_v2_st = unsafe { std::mem::zeroed() };
        info.version = version_of::<nvmlComputeInstanceProfileInfo_v2_st>(2);
        let asked = &raw mut info;
        match call!(nvml, nvmlGpuInstanceGetComputeInstanceProfileInfoV, of, index, engines, asked) {
            Err(error) if error.code() == code::FUNCTION_NOT_FOUND => {}
            answer => return answer.map(|()| ComputeProfile { id: info.id, slices: info.sliceCount }),
        }
        // SAFETY: the structure is numbers only; zeros are valid for it.
        let mut info: nvmlComputeInstanceProfileInfo_st = unsafe { std::mem::zeroed() };
        let asked = &raw mut info;
        call!(nvml, nvmlGpuInstanceGetComputeInstanceProfileInfo, of, index, engines, asked)?;
        Ok(ComputeProfile { id: info.id, slices: info.sliceCount })
    }

    /// The GPU instance that is there.
    pub(super) fn find(
        &self,
        at: &Place,
    ) -> Result<Option<(nvmlGpuInstance_t, nvmlGpuInstanceInfo_st)>, NvmlFault> {
        for handle in self.told(mig::handles(self.nvml(), self.device.get(), at.profile))? {
            let info = self.told(mig::instance_info(self.nvml(), handle))?;
            if place(&info) == *at {
                return Ok(Some((handle, info)));
            }
        }
        Ok(None)
    }

    pub(super) fn there(&self, at: &Place) -> Result<nvmlGpuInstance_t, NvmlFault> {
        let gone = NvmlFault::NoInstance { card: self.card, at: *at };
        self.find(at)?.map(|(handle, _)| handle).ok_or(gone)
    }

    pub(super) fn set_mig_mode(&self, on: bool) -> Result<Activation, NvmlFault> {
        let mut status = 0;
        let nvml = self.nvml();
        self.told(call!(nvml, nvmlDeviceSetMigMode, self.device.get(), on.into(), &raw mut status))?;
        // The driver may have reset the card, or unbound it for a while.
        self.device.set(self.told(card::device(nvml, self.card))?);
        Ok(match checked("nvmlDeviceSetMigMode", status).map_err(CallError::code) {
            Ok(()) => Activation::Done,
            Err(code::IN_USE) => Activation::Pending(Waiting::InUse),
            Err(code::RESET_REQUIRED) => Activation::Pending(Waiting::Reset),
            Err(other) => Activation::Pending(Waiting::Other(other)),
        })
    }

    pub(super) fn create_gpu_instance(&self, at: &Place) -> Result<Done, NvmlFault> {
        let mut made = ptr::null_mut();
        let unsigned = |number: i32| u32::try_from(number).unwrap_or(u32::MAX);
        let placement = nvmlGpuInstancePlacement_st { start: unsigned(at.start), size: unsigned(at.size) };
        self.told(call!(
            self.nvml(),
            nvmlDeviceCreateGpuInstanceWithPlacement,
            self.device.get(),
            at.profile,
            &raw const placement,
            &raw mut made
        ))?;
        Ok(Done::GpuInstance(self.told(mig::instance_info(self.nvml(), made))?.id))
    }

    pub(super) fn create_compute_instance(
        &self,
        on: &Place,
        profile: Option<u32>,
    ) -> Result<Done, NvmlFault> {
        let Some((handle, instance)) = self.find(on)? else {
            return Err(NvmlFault::NoInstance { card: self.card, at: *on });
        };
        let profile = if let Some(profile) = profile {
            profile
        } else {
            let profiles = self.compute_profiles(handle)?;
            // The largest takes all slices; of two, the one without extras comes first.
            let whole = profiles.iter().rev().max_by_key(|profile| profile.slices);
            whole.ok_or(NvmlFault::NoProfile { card: self.card, on: *on })?.id
        };
        let mut made = ptr::null_mut();
        self.told(call!(self.nvml(), nvmlGpuInstanceCreateComputeInstance, handle, profile, &raw mut made))?;
        let info = self.told(mig::compute_info(self.nvml(), made))?;
        Ok(Done::ComputeInstance { id: info.id, uuid: self.uuid(&info, instance.id) })
    }

    pub(super) fn destroy_compute_instance(
        &self,
        on: &Place,
        id: u32,
        uuid: Option<&str>,
    ) -> Result<(), NvmlFault> {
        let nvml = self.nvml();
        let Some((handle, instance)) = self.find(on)? else { return Ok(()) };
        let mut compute: nvmlComputeInstance_t = ptr::null_mut();
        match call!(nvml, nvmlGpuInstanceGetComputeInstanceById, handle, id, &raw mut compute) {
            Err(error) if error.code() == code::NOT_FOUND => return Ok(()),
            answer => self.told(answer)?,
        }
        if let Some(wanted) = uuid {
            let info = self.told(mig::compute_info(nvml, compute))?;
            let found = self.uuid(&info, instance.id).unwrap_or_default();
            if found != wanted {
                let wanted = wanted.to_owned();
                return Err(NvmlFault::Another { card: self.card, on: *on, id, wanted, found });
            }
        }
        self.told(call!(nvml, nvmlComputeInstanceDestroy, compute))
    }

    pub(super) fn destroy_gpu_instance(&self, at: &Place) -> Result<(), NvmlFault> {
        let Some((handle, _)) = self.find(at)? else { return Ok(()) };
        self.told(call!(self.nvml(), nvmlGpuInstanceDestroy, handle))
    }
}

fn place(info: &nvmlGpuInstanceInfo_st) -> Place {
    let placement = info.placement;
    Place { profile: info.profileId, start: small(placement.start), size: small(placement.size) }
}
