//! Doing one step, and seeing that it was done.

use std::{io, sync::mpsc, thread, time::Duration};

use gpudesk_crds::types::PciAddress;
use jiff::Timestamp;
use thiserror::Error;

use super::{
    control::{ControlError, DriverControl},
    journal::Reset,
    kernel::{Kernel, function, line, link_name, number},
    observe::{Opened, identity, read_function},
    refusal::Refusal,
    step::Step,
};

/// How long the daemon uses no card of NVIDIA's while one is unbound.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why a step was not done.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// The kernel refused.
    #[error("the kernel refuses: {0}")]
    Kernel(#[from] io::Error),
    /// The driver's library refused.
    #[error("the GPU driver refuses: {0}")]
    Control(#[from] ControlError),
    /// It was accepted, and is not so.
    #[error("{0}")]
    NotSo(String),
    /// It is in use.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Does a step; a reset is returned with what came of it.
pub(super) fn perform(
    kernel: &dyn Kernel,
    control: &dyn DriverControl,
    step: &Step,
    now: Timestamp,
) -> Result<Option<Reset>, Failure> {
    let on = |address: &PciAddress, file: &str| format!("{}/{file}", function(*address));
    let flag = |on: bool| if on { "1" } else { "0" };
    match step {
        Step::Override { function, driver } => {
            // A line of its own lifts it.
            kernel.write(&on(function, "driver_override"), driver.as_deref().unwrap_or("\n"))?;
        }
        Step::Unbind { function, driver } => unbind(kernel, control, *function, driver)?,
        Step::Unlock { function } => {
            kernel.write(&format!("proc/driver/nvidia/gpus/{function}/unbindLock"), "0")?;
        }
        Step::Probe { function, driver } => {
            kernel.write("sys/bus/pci/drivers_probe", &function.to_string())?;
            let found = link_name(kernel, &on(function, "driver"))?;
            let right = match driver {
                Some(driver) => found.as_ref() == Some(driver),
                None => found.as_ref().is_some_and(|found| !found.contains("vfio")),
            };
            let is_nvidias = found.as_deref() == Some("nvidia");
            if !right {
                let has = found.unwrap_or_else(|| "none".into());
                let wanted = driver.as_deref().unwrap_or("one of the host");
                return Err(Failure::NotSo(format!(
                    "{function} has the driver {has} and not {wanted}: the kernel's log says why"
                )));
            }
            // Its library knows the cards that were there when its first user came.
            if is_nvidias {
                drop(control.let_go(*function));
            }
        }
        Step::D3cold { function, allowed } => {
            kernel.write(&on(function, "d3cold_allowed"), flag(*allowed))?;
        }
        Step::Power { function, control } => kernel.write(&on(function, "power/control"), control)?,
        Step::Reset { function } => return reset(kernel, *function, now).map(Some),
        Step::NumVfs { card, count } => {
            kernel.write(&on(card, "sriov_numvfs"), &count.to_string())?;
            // A driver may make fewer, or none.
            let found = number::<u32>(kernel, &on(card, "sriov_numvfs"))?.unwrap_or(0);
            if found != *count {
                return Err(Failure::NotSo(format!(
                    "{found} virtual functions of {card} are on and not {count}"
                )));
            }
        }
        Step::Autoprobe { card, on: probe } => {
            kernel.write(&on(card, "sriov_drivers_autoprobe"), flag(*probe))?;
        }
        Step::MdevCreate { parent, type_id, uuid } => {
            kernel.write(&on(parent, &format!("mdev_supported_types/{type_id}/create")), uuid)?;
        }
        Step::MdevStart { uuid, start } => {
            let path = format!("sys/bus/mdev/devices/{uuid}/nvidia/vgpu_params");
            kernel.write(&path, &format!("vgpu-placement-id={start}"))?;
        }
        Step::MdevRemove { uuid } => kernel.write(&format!("sys/bus/mdev/devices/{uuid}/remove"), "1")?,
        Step::VgpuType { function, id } => {
            let path = on(function, "nvidia/current_vgpu_type");
            kernel.write(&path, &id.to_string())?;
            told(kernel, &path, id)?;
        }
        Step::VgpuStart { function, start } => {
            let path = on(function, "nvidia/placement_id");
            kernel.write(&path, &start.to_string())?;
            told(kernel, &path, start)?;
        }
        Step::VgpuInstance { function, gpu_instance } => {
            let path = on(function, "nvidia/gpu_instance_id");
            kernel.write(&path, &gpu_instance.to_string())?;
            told(kernel, &path, gpu_instance)?;
        }
        Step::VgpuClear { function } => {
            let path = on(function, "nvidia/current_vgpu_type");
            kernel.write(&path, "0")?;
            told(kernel, &path, &0)?;
        }
        Step::MigMode { card, on } => control.set_mig_mode(*card, *on)?,
        Step::GpuInstance { card, profile, start } => control.create_gpu_instance(*card, *profile, *start)?,
        Step::ComputeInstance { card, gpu_instance } => {
            control.create_compute_instance(*card, *gpu_instance)?;
        }
        Step::GpuInstanceDestroy { card, gpu_instance } => {
            control.destroy_gpu_instance(*card, *gpu_instance)?;
        }
        Step::MixedSize { card, on } => control.set_mixed_size(*card, *on)?,
        Step::Persistence { card, on } => control.set_persistence(*card, *on)?,
        Step::Scheduler { card, scheduler } => control.set_scheduler(*card, *scheduler)?,
        Step::PowerLimit { card, milliwatts } => control.set_power(*card, *milliwatts)?,
        Step::Clocks { card, range } => control.lock_clocks(*card, *range)?,
    }
    Ok(None)
}

/// Whether a file tells what was written to it.
fn told<T: std::str::FromStr + PartialEq + std::fmt::Display>(
    kernel: &dyn Kernel,
    path: &str,
    wanted: &T,
) -> Result<(), Failure> {
    let found: Option<T> = number(kernel, path)?;
    if found.as_ref() == Some(wanted) {
        return Ok(());
    }
    let found = found.map_or_else(|| "nothing".into(), |found| found.to_string());
    Err(Failure::NotSo(format!("{path} tells {found} and not {wanted}, which was written")))
}

/// Takes a function from its driver. NVIDIA's is asked for its lock first: unbinding a card that is open waits in the
/// kernel until everybody closes it.
fn unbind(
    kernel: &dyn Kernel,
    control: &dyn DriverControl,
    address: PciAddress,
    driver: &str,
) -> Result<(), Failure> {
    let path = format!("{}/driver/unbind", function(address));
    let lock = format!("proc/driver/nvidia/gpus/{address}/unbindLock");
    let of_nvidia = driver == "nvidia" && line(kernel, &lock)?.is_some();
    // Not for ever: the kernel may wait in this for somebody else, and other cards need the library.
    let (_until, ended) = mpsc::channel::<()>();
    if of_nvidia {
        let own_use = control.let_go(address)?;
        thread::spawn(move || {
            let _ = ended.recv_timeout(LONGEST_PAUSE);
            drop(own_use);
        });
    }
    if of_nvidia {
        // The write never fails: what is read afterwards is the answer.
        kernel.write(&lock, "1")?;
        if number::<u32>(kernel, &lock)? != Some(1) {
            kernel.write(&lock, "0")?;
            return Err(Refusal::Locked(address).into());
        }
    }
    if let Err(error) = kernel.write(&path, &address.to_string()) {
        if of_nvidia {
            kernel.write(&lock, "0")?;
        }
        return Err(error.into());
    }
    Ok(())
}

/// Resets a function by the kernel's first method. That the method is listed proves nothing: what it tells afterwards
/// does.
fn reset(kernel: &dyn Kernel, address: PciAddress, now: Timestamp) -> Result<Reset, Failure> {
    let folder = function(address);
    let before = read_function(kernel, &Opened::new(), address)?;
    let Some(before) = before else {
        return Err(Failure::NotSo(format!("{address} is not there any more")));
    };
    let told = identity(kernel, &folder)?;
    let method = before.reset_methods.first().cloned().unwrap_or_else(|| "none".into());
    let fault = match kernel.write(&format!("{folder}/reset"), "1") {
        Err(error) => Some(format!("its reset ({method}) failed: {error}")),
        Ok(()) if told.is_some() && identity(kernel, &folder)? == told => None,
        Ok(()) => Some(format!("after its reset ({method}) it does not tell its ids any more")),
    };
    Ok(Reset { method, at: now, fault })
}
