//! Steps in words, for logs, conditions and `gpudesk-node-daemon layout`.

use std::fmt;

use super::step::Step;

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Override { function, driver: Some(driver) } => {
                write!(f, "reserving {function} for the driver {driver}")
            }
            Self::Override { function, driver: None } => write!(f, "reserving {function} for no driver"),
            Self::Unbind { function, driver } => write!(f, "taking {function} from the driver {driver}"),
            Self::Unlock { function } => write!(f, "letting {function} be opened again"),
            Self::Probe { function, driver: Some(driver) } => {
                write!(f, "giving {function} to the driver {driver}")
            }
            Self::Probe { function, driver: None } => write!(f, "giving {function} to a driver of the host"),
            Self::D3cold { function, allowed } => {
                write!(f, "switching loss of power of {function} {}", on_off(*allowed))
            }
            Self::Power { function, control } => {
                write!(f, "setting the power control of {function} to {control}")
            }
            Self::BarSize { function, region, mib } => {
                write!(f, "resizing memory region {region} of {function} to {mib} MiB")
            }
            Self::Reset { function } => write!(f, "resetting {function}"),
            Self::Registers { function } => write!(f, "reading the registers of {function}"),
            Self::Network { function, settings } => {
                write!(f, "setting the network function {function} to {settings}")
            }
            Self::Erase { function, method, .. } => write!(f, "erasing {function} ({method})"),
            Self::NumVfs { card, count } => write!(f, "switching virtual functions of {card} to {count}"),
            Self::Autoprobe { card, on } => {
                write!(f, "switching drivers for new virtual functions of {card} {}", on_off(*on))
            }
            Self::MdevCreate { parent, type_id, uuid } => {
                write!(f, "making the mediated device {uuid} of type {type_id} on {parent}")
            }
            Self::MdevStart { uuid, start } => {
                write!(f, "asking for start {start} of the mediated device {uuid}")
            }
            Self::MdevParams { uuid, params } => {
                write!(f, "giving the mediated device {uuid} the parameters {params}")
            }
            Self::MdevRemove { uuid } => write!(f, "unmaking the mediated device {uuid}"),
            Self::VgpuType { function, id } => write!(f, "making a vGPU of type {id} on {function}"),
            Self::VgpuStart { function, start } => {
                write!(f, "moving the vGPU of {function} to start {start}")
            }
            Self::VgpuInstance { function, gpu_instance } => {
                write!(f, "moving the vGPU of {function} to GPU instance {gpu_instance}")
            }
            Self::VgpuParams { function, params } if params.is_empty() => {
                write!(f, "clearing the parameters of the vGPU of {function}")
            }
            Self::VgpuParams { function, params } => {
                write!(f, "giving the vGPU of {function} the parameters {params}")
            }
            Self::VgpuClear { function } => write!(f, "unmaking the vGPU of {function}"),
            Self::MigMode { card, on } => write!(f, "switching MIG of {card} {}", on_off(*on)),
            Self::GpuInstance { card, profile, start } => {
                write!(f, "making a GPU instance of profile {profile} at {start} on {card}")
            }
            Self::ComputeInstance { card, gpu_instance } => {
                write!(f, "making the compute instance of GPU instance {gpu_instance} on {card}")
            }
            Self::GpuInstanceDestroy { card, gpu_instance } => {
                write!(f, "unmaking GPU instance {gpu_instance} of {card}")
            }
            Self::MixedSize { card, on } => {
                write!(f, "switching vGPUs of several sizes on {card} {}", on_off(*on))
            }
            Self::Persistence { card, on } => {
                write!(f, "switching persistence mode of {card} {}", on_off(*on))
            }
            Self::Scheduler { card, scheduler } => {
                write!(f, "setting the vGPU scheduler of {card} to {scheduler:?}")
            }
            Self::InstanceScheduler { card, gpu_instance, scheduler } => {
                write!(
                    f,
                    "setting the vGPU scheduler of GPU instance {gpu_instance} on {card} to {scheduler:?}"
                )
            }
            Self::Quota { card: _, function, number: _, quota, value } => {
                write!(f, "setting {} of {function} to {value}", quota.file())
            }
            Self::PowerLimit { card, milliwatts } => {
                write!(f, "setting the power limit of {card} to {milliwatts} mW")
            }
            Self::Clocks { card, range: Some((least, most)) } => {
                write!(f, "locking the clocks of {card} between {least} and {most} MHz")
            }
            Self::Clocks { card, range: None } => write!(f, "locking the clocks of {card} no more"),
        }
    }
}
