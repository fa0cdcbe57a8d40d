//! A card after a step, where everything obeys: so steps are known before there is anything to take them on. Pure.

use gpudesk_crds::{gpu_node_status::MigMode, types::PciAddress};

use super::{
    control::GpuInstanceSeen,
    live::{Function, LiveCard, Mdev, QuotaSeen, Quotas, VendorVgpu, VirtualFunction},
    step::Step,
};

/// The first virtual function of NVIDIA's cards: four functions after the card.
const FIRST_FUNCTION: u32 = 4;

/// Does a step on what is only thought of. What a driver decides by itself, a start or the number of a GPU instance, is
/// left open, or the next one.
pub fn apply(live: &mut LiveCard, step: &Step) {
    match step {
        Step::Override { function, driver } => {
            change(live, *function, |f| f.driver_override.clone_from(driver));
        }
        Step::Unbind { function, .. } => change(live, *function, |f| (f.driver, f.locked) = (None, false)),
        Step::Unlock { function } => change(live, *function, |f| f.locked = false),
        Step::Probe { function, driver } => change(live, *function, |f| f.driver.clone_from(driver)),
        Step::D3cold { function, allowed } => change(live, *function, |f| f.d3cold = Some(*allowed)),
        Step::Power { function, control } => change(live, *function, |f| f.power = Some(control.clone())),
        Step::BarSize { mib, .. } => {
            if let Some(region) = &mut live.resizable {
                region.mib = Some(*mib);
            }
        }
        Step::Network { settings, .. } => {
            if let Some(Ok(now)) = &mut live.network {
                now.settings.clone_from(settings);
            }
        }
        Step::Reset { .. } | Step::Registers { .. } | Step::Erase { .. } | Step::Clocks { .. } => {}
        Step::NumVfs { count, .. } => num_vfs(live, *count),
        Step::Autoprobe { on, .. } => {
            if let Some(sriov) = &mut live.sriov {
                sriov.autoprobe = Some(*on);
            }
        }
        Step::MdevCreate { parent, type_id, uuid } => live.mdevs.push(Mdev {
            uuid: uuid.clone(),
            parent: *parent,
            type_id: Some(type_id.clone()),
            params: None,
            held_by: None,
        }),
        Step::MdevStart { uuid, start } => {
            if let Some(mdev) = live.mdevs.iter_mut().find(|mdev| mdev.uuid == *uuid) {
                mdev.params = Some(format!("vgpu-placement-id={start}"));
            }
        }
        Step::MdevParams { uuid, params } => {
            if let Some(mdev) = live.mdevs.iter_mut().find(|mdev| mdev.uuid == *uuid) {
                mdev.params = Some(params.clone());
            }
        }
        Step::MdevRemove { uuid } => live.mdevs.retain(|mdev| mdev.uuid != *uuid),
        Step::VgpuType { function, id } => vgpu(live, *function, |vgpu| vgpu.current = Some(*id)),
        Step::VgpuStart { function, start } => vgpu(live, *function, |vgpu| vgpu.placement = Some(*start)),
        Step::VgpuInstance { function, gpu_instance } => {
            vgpu(live, *function, |vgpu| vgpu.gpu_instance = i32::try_from(*gpu_instance).ok());
        }
        Step::VgpuParams { function, params } => {
            vgpu(live, *function, |vgpu| vgpu.params = Some(params.clone()));
        }
        Step::InstanceScheduler { gpu_instance, scheduler, .. } => {
            let instances = &mut live.control.gpu_instances;
            if let Some(seen) = instances.iter_mut().find(|seen| seen.id == *gpu_instance) {
                seen.scheduler = Some(*scheduler);
            }
        }
        Step::Quota { function, quota, value, .. } => {
            let mut all = live.virtual_functions.iter_mut();
            if let Some(vf) = all.find(|vf| vf.function.address == *function) {
                *vf.quotas.of_mut(*quota) = QuotaSeen::Value(*value);
            }
        }
        Step::VgpuClear { function } => vgpu(live, *function, |vgpu| {
            (vgpu.current, vgpu.placement, vgpu.gpu_instance) = (Some(0), None, None);
        }),
        Step::MigMode { on, .. } => live.control.mig = Some(MigMode { current: *on, pending: *on }),
        Step::GpuInstance { profile, start, .. } => {
            let instances = &mut live.control.gpu_instances;
            let id = instances.iter().map(|seen| seen.id + 1).max().unwrap_or(1);
            instances.push(GpuInstanceSeen {
                id,
                profile: *profile,
                start: *start,
                size: 0,
                compute_instances: 0,
                uuid: None,
                scheduler: None,
            });
        }
        Step::ComputeInstance { gpu_instance, .. } => {
            let instances = &mut live.control.gpu_instances;
            if let Some(seen) = instances.iter_mut().find(|seen| seen.id == *gpu_instance) {
                seen.compute_instances += 1;
            }
        }
        Step::GpuInstanceDestroy { gpu_instance, .. } => {
            live.control.gpu_instances.retain(|seen| seen.id != *gpu_instance);
        }
        Step::MixedSize { on, .. } => live.control.mixed_size = Some(*on),
        Step::Persistence { on, .. } => live.control.persistence = Some(*on),
        Step::Scheduler { scheduler, .. } => live.control.scheduler = Some(*scheduler),
        Step::PowerLimit { milliwatts, .. } => {
            if let Some(power) = &mut live.control.power {
                power.limit = *milliwatts;
            }
        }
    }
}

fn change(live: &mut LiveCard, address: PciAddress, change: impl FnOnce(&mut Function)) {
    let own = std::iter::once(&mut live.function).chain(&mut live.members);
    let mut all = own.chain(live.virtual_functions.iter_mut().map(|vf| &mut vf.function));
    if let Some(function) = all.find(|function| function.address == address) {
        change(function);
    }
}

fn vgpu(live: &mut LiveCard, address: PciAddress, change: impl FnOnce(&mut VendorVgpu)) {
    let vf = live.virtual_functions.iter_mut().find(|vf| vf.function.address == address);
    if let Some(vgpu) = vf.and_then(|vf| vf.vgpu.as_mut()) {
        change(vgpu);
    }
}

fn num_vfs(live: &mut LiveCard, count: u32) {
    if let Some(sriov) = &mut live.sriov {
        sriov.on = count;
    }
    let own = &live.function;
    let function = |n: u32| {
        Some(VirtualFunction {
            function: Function {
                address: own.address.further(FIRST_FUNCTION + n)?,
                driver: None,
                driver_override: None,
                held_by: None,
                ..own.clone()
            },
            alone: true,
            vgpu: None,
            mdev_types: vec![],
            quotas: Quotas::default(),
        })
    };
    live.virtual_functions = (0..count).filter_map(function).collect();
}
