//! Doing one step, and seeing that it was done.

use std::{io, sync::mpsc, thread, time::Duration};

use gpudesk_crds::{gpu_node_drives::DriveErase, gpu_node_status::ResetCheck, types::PciAddress};
use jiff::Timestamp;
use thiserror::Error;

use super::{
    control::{ControlError, DriverControl},
    host_devices::Erasure,
    journal::Reset,
    kernel::{Kernel, function, line, link_name, maybe, number, text},
    network::VfSettings,
    observe::{Opened, identity, read_function, resizable},
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

/// What came of a step, where it is more than done.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is done.
    Done,
    /// A reset.
    Reset(Reset),
    /// What erasing a drive came to.
    Erased(Erasure),
    /// What the registers of a function tell; nothing where they cannot be read.
    Registers(PciAddress, Option<u32>),
}

/// Does a step. `registers` is what those of its function told before its first user, where that is known.
pub(super) fn perform(
    kernel: &dyn Kernel,
    control: &dyn DriverControl,
    step: &Step,
    registers: Option<u32>,
    now: Timestamp,
) -> Result<Outcome, Failure> {
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
        Step::Probe { function, driver } => probe(kernel, control, *function, driver.as_deref())?,
        Step::D3cold { function, allowed } => {
            kernel.write(&on(function, "d3cold_allowed"), flag(*allowed))?;
        }
        Step::Power { function, control } => kernel.write(&on(function, "power/control"), control)?,
        Step::BarSize { function, region, mib } => resize(kernel, *function, *region, *mib)?,
        Step::Reset { function } => {
            return reset(kernel, *function, registers, now).map(Outcome::Reset);
        }
        Step::Registers { function } => {
            let told = super::registers::read(kernel, *function);
            if let Err(error) = &told {
                tracing::warn!(%function, %error, "its registers cannot be read: after resets its ids alone tell that it is back");
            }
            return Ok(Outcome::Registers(*function, told.ok()));
        }
        Step::Erase { function, method, size_mib } => {
            let fault = erase(kernel, *function, *method, *size_mib)?;
            return Ok(Outcome::Erased(Erasure { method: *method, at: now, fault }));
        }
        Step::Network { function, settings } => tell(kernel, *function, settings)?,
        Step::NumVfs { card, count } => {
            kernel.write(&on(card, "sriov_numvfs"), &count.to_string())?;
            // A driver may make fewer, or none.
            let found = number::<u32>(kernel, &on(card, "sriov_numvfs"))?.unwrap_or(0);
            if found != *count {
                return Err(Failure::NotSo(format!(
                    "{found} virtual functions of {card} are on and not {count}: its driver or firmware makes no other \
                     number now, and the kernel's log says why (\"exceeds the vf limit\" of AMD's gim: the firmware of the \
                     card allows fewer, update it or take a type with fewer functions)"
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
        Step::MdevParams { uuid, params } => {
            set_params(kernel, &format!("sys/bus/mdev/devices/{uuid}/nvidia/vgpu_params"), params)?;
        }
        Step::MdevRemove { uuid } => kernel.write(&format!("sys/bus/mdev/devices/{uuid}/remove"), "1")?,
        Step::VgpuType { function, id } => set(kernel, &on(function, "nvidia/current_vgpu_type"), id)?,
        Step::VgpuStart { function, start } => set(kernel, &on(function, "nvidia/placement_id"), start)?,
        Step::VgpuInstance { function, gpu_instance } => {
            set(kernel, &on(function, "nvidia/gpu_instance_id"), gpu_instance)?;
        }
        Step::VgpuParams { function, params } => {
            set_params(kernel, &on(function, "nvidia/vgpu_params"), params)?;
        }
        Step::Quota { card, number, quota, value, .. } => {
            set(kernel, &on(card, &format!("sriov_admin/vf{number}/profile/{}", quota.file())), value)?;
        }
        Step::InstanceScheduler { card, gpu_instance, scheduler } => {
            control.set_instance_scheduler(*card, *gpu_instance, *scheduler)?;
        }
        Step::VgpuClear { function } => set(kernel, &on(function, "nvidia/current_vgpu_type"), &0)?,
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
    Ok(Outcome::Done)
}

/// Has the kernel find the driver of a function, and sees that it is the one that it should be.
fn probe(
    kernel: &dyn Kernel,
    control: &dyn DriverControl,
    address: PciAddress,
    driver: Option<&str>,
) -> Result<(), Failure> {
    kernel.write("sys/bus/pci/drivers_probe", &address.to_string())?;
    let found = link_name(kernel, &format!("{}/driver", function(address)))?;
    let right = match driver {
        Some(driver) => found.as_deref() == Some(driver),
        None => found.as_ref().is_some_and(|found| !found.contains("vfio")),
    };
    if !right {
        let has = found.unwrap_or_else(|| "none".into());
        let wanted = driver.unwrap_or("one of the host");
        return Err(Failure::NotSo(format!(
            "{address} has the driver {has} and not {wanted}: the kernel's log says why"
        )));
    }
    // Its library knows the cards that were there when its first user came.
    if found.as_deref() == Some("nvidia") {
        drop(control.let_go(address));
    }
    Ok(())
}

/// Tells a network card what holds for a function of it, and sees that it does.
fn tell(kernel: &dyn Kernel, address: PciAddress, settings: &VfSettings) -> Result<(), Failure> {
    kernel.set_network(address, settings)?;
    let now = kernel.network(address)?.and_then(Result::ok).map(|now| now.settings);
    let is_so = now.as_ref().is_some_and(|now| {
        now.of_card() == settings.of_card() && (settings.mtu.is_none() || now.mtu == settings.mtu)
    });
    if is_so {
        return Ok(());
    }
    let now = now.map_or_else(|| "nothing".into(), |now| now.to_string());
    Err(Failure::NotSo(format!("the network card says of {address}: {now}; it was told: {settings}")))
}

/// Gives a memory region another size. The kernel takes the power of two, and may put everything where it was before.
fn resize(kernel: &dyn Kernel, address: PciAddress, region: i32, mib: i64) -> Result<(), Failure> {
    let folder = function(address);
    let written = kernel
        .write(&format!("{folder}/resource{region}_resize"), &mib.checked_ilog2().unwrap_or(0).to_string());
    let found = resizable(kernel, &folder)?.and_then(|found| found.mib);
    let why = match written {
        Ok(()) if found == Some(mib) => return Ok(()),
        Ok(()) => "the kernel took it".to_owned(),
        Err(error) => format!("the kernel refuses ({error})"),
    };
    let found = found.map_or_else(|| "no address".into(), |found| format!("{found} MiB"));
    Err(Failure::NotSo(format!(
        "{why}, and the region has {found}: the bridge above the card has no room, or another function uses the same room. \
         Switch Above 4G decoding and Resizable BAR on in the firmware, or remove resizableBarMiB from the rule"
    )))
}

/// Writes a number to a file, and sees that the file tells it.
fn set<T: std::str::FromStr + PartialEq + std::fmt::Display>(
    kernel: &dyn Kernel,
    path: &str,
    wanted: &T,
) -> Result<(), Failure> {
    kernel.write(path, &wanted.to_string())?;
    let found: Option<T> = number(kernel, path)?;
    if found.as_ref() == Some(wanted) {
        return Ok(());
    }
    let found = found.map_or_else(|| "nothing".into(), |found| found.to_string());
    Err(Failure::NotSo(format!("{path} tells {found} and not {wanted}, which was written")))
}

/// Gives a vGPU its parameters. A space takes all away (NVIDIA vGPU User Guide).
fn set_params(kernel: &dyn Kernel, path: &str, params: &str) -> Result<(), Failure> {
    if maybe(kernel.read(path))?.is_none() {
        return Err(Failure::NotSo(format!(
            "{path} is not there: the vGPU driver of this host takes no vgpu.params"
        )));
    }
    kernel.write(path, if params.is_empty() { " " } else { params })?;
    let found = text(kernel, path)?.unwrap_or_default();
    if found.trim() == params {
        return Ok(());
    }
    Err(Failure::NotSo(format!("{path} tells {found:?} and not {params:?}, which was written")))
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

/// Erases a drive, and compares its size: a guest can change the namespaces of what it has whole. Why it is not as it was.
fn erase(
    kernel: &dyn Kernel,
    address: PciAddress,
    method: DriveErase,
    before: Option<i64>,
) -> Result<Option<String>, Failure> {
    if method == DriveErase::None {
        return Ok(None);
    }
    let changed = || -> io::Result<Option<String>> {
        let now = kernel.drive(address)?.size_mib;
        let mib = |size: Option<i64>| size.map_or_else(|| "no size".into(), |size| format!("{size} MiB"));
        Ok((before.is_some() && now != before).then(|| {
            format!(
                "it has {} and not {}: its last user changed its namespaces, which are to be made anew by hand (nvme create-ns); \
                 it is erased ({method}) once it has its size",
                mib(now),
                mib(before)
            )
        }))
    };
    // Before, so that it is not erased again and again.
    if let Some(why) = changed()? {
        return Ok(Some(why));
    }
    match kernel.erase(address, method) {
        Ok(()) => Ok(changed()?),
        Err(error) => Ok(Some(format!("erasing it ({method}) failed: {error}"))),
    }
}

/// Resets a function by the kernel's first method. That the method is listed proves nothing: what it tells afterwards
/// does.
fn reset(
    kernel: &dyn Kernel,
    address: PciAddress,
    registers: Option<u32>,
    now: Timestamp,
) -> Result<Reset, Failure> {
    let folder = function(address);
    let before = read_function(kernel, &Opened::new(), address)?;
    let Some(before) = before else {
        return Err(Failure::NotSo(format!("{address} is not there any more")));
    };
    let told = identity(kernel, &folder)?;
    let method = before.reset_methods.first().cloned().unwrap_or_else(|| "none".into());
    let mut verified = vec![];
    let fault = match kernel.write(&format!("{folder}/reset"), "1") {
        Err(error) => Some(format!("its reset ({method}) failed: {error}")),
        Ok(()) if told.is_some() && identity(kernel, &folder)? == told => {
            verified.push(ResetCheck::Ids);
            match super::registers::answer(kernel, address, registers) {
                Ok(seen) => {
                    verified.extend(seen.then_some(ResetCheck::Registers));
                    None
                }
                Err(why) => Some(format!("after its reset ({method}) {why}")),
            }
        }
        Ok(()) => Some(format!("after its reset ({method}) it does not tell its ids any more")),
    };
    Ok(Reset { method, at: now, verified, fault })
}
