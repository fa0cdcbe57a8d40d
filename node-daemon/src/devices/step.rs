//! The steps by which shares are made and unmade. Each may be done again, and each can be undone.

use gpudesk_crds::{gpu_node::VgpuScheduler, gpu_node_drives::DriveErase, types::PciAddress};
use serde::{Deserialize, Serialize};

use super::{
    live::{LiveCard, QuotaSeen},
    network::VfSettings,
};

/// What a step changes beside making a share, and what is put back when nobody needs it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Setting {
    /// The driver of a function.
    Driver(PciAddress),
    /// The only driver that it may have.
    Override(PciAddress),
    /// Whether it may lose its power.
    D3cold(PciAddress),
    /// Whether it may sleep.
    Power(PciAddress),
    /// How large its memory region is that can be resized.
    BarSize {
        /// The function.
        function: PciAddress,
        /// The size in MiB that gpudesk gives it.
        mib: i64,
    },
    /// What its network card was told of it.
    Network(PciAddress),
    /// How many virtual functions are on.
    NumVfs,
    /// Whether they are given to drivers.
    Autoprobe,
    /// Persistence mode.
    Persistence,
    /// How much power it may draw.
    PowerLimit,
    /// Between which clocks it is kept.
    Clocks,
    /// MIG mode.
    MigMode,
    /// Whether sizes of vGPUs stand side by side.
    MixedSize,
    /// How vGPUs share its time.
    Scheduler,
    /// What a virtual function may take of it.
    Quota(PciAddress, Quota),
}

/// What the driver can hold a virtual function to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Quota {
    /// Milliseconds of a turn.
    ExecQuantum,
    /// Microseconds until it must give way.
    PreemptTimeout,
}

impl Quota {
    /// The driver's file of it.
    pub fn file(self) -> &'static str {
        match self {
            Self::ExecQuantum => "exec_quantum_ms",
            Self::PreemptTimeout => "preempt_timeout_us",
        }
    }

    /// What a rule calls it.
    pub fn field(self) -> &'static str {
        match self {
            Self::ExecQuantum => "execQuantumMs",
            Self::PreemptTimeout => "preemptTimeoutUs",
        }
    }
}

impl Setting {
    /// The function that has it, where it is of one.
    pub fn function(self) -> Option<PciAddress> {
        match self {
            Self::Driver(function)
            | Self::Override(function)
            | Self::D3cold(function)
            | Self::Power(function)
            | Self::Network(function)
            | Self::Quota(function, _)
            | Self::BarSize { function, .. } => Some(function),
            Self::NumVfs
            | Self::Autoprobe
            | Self::Persistence
            | Self::PowerLimit
            | Self::Clocks
            | Self::MigMode
            | Self::MixedSize
            | Self::Scheduler => None,
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "step")]
pub enum Step {
    /// Sets the only driver that a function may have, or lifts that.
    Override {
        /// The function.
        function: PciAddress,
        /// The driver.
        driver: Option<String>,
    },
    /// Takes a function from its driver.
    Unbind {
        /// The function.
        function: PciAddress,
        /// The driver.
        driver: String,
    },
    /// Lets a function be opened again that was about to be unbound.
    Unlock {
        /// The function.
        function: PciAddress,
    },
    /// Has the kernel find the driver, and sees that it is this one.
    Probe {
        /// The function.
        function: PciAddress,
        /// The driver; any that does not give it to guests, without it.
        driver: Option<String>,
    },
    /// Sets whether a function may lose its power.
    D3cold {
        /// The function.
        function: PciAddress,
        /// Whether.
        allowed: bool,
    },
    /// Sets whether a function may sleep: `on`, `auto`.
    Power {
        /// The function.
        function: PciAddress,
        /// The word.
        control: String,
    },
    /// Gives the memory region of a function that no driver has another size.
    BarSize {
        /// The function.
        function: PciAddress,
        /// Number of the region.
        region: i32,
        /// The size in MiB.
        mib: i64,
    },
    /// Tells a network card what holds for a function of it, and sees that it does.
    Network {
        /// The function.
        function: PciAddress,
        /// What holds.
        settings: VfSettings,
    },
    /// Resets a function, sees that it is back, and records it.
    Reset {
        /// The function.
        function: PciAddress,
    },
    /// Reads and records what the registers of a function tell before it has its first user.
    Registers {
        /// The function.
        function: PciAddress,
    },
    /// Erases a drive after its last user, and sees that it completed that and has its size.
    Erase {
        /// The drive.
        function: PciAddress,
        /// How.
        method: DriveErase,
        /// Its size before, in MiB.
        size_mib: Option<i64>,
    },
    /// Switches virtual functions on, or off.
    NumVfs {
        /// The card.
        card: PciAddress,
        /// How many.
        count: u32,
    },
    /// Sets whether new virtual functions are given to drivers.
    Autoprobe {
        /// The card.
        card: PciAddress,
        /// Whether.
        on: bool,
    },
    /// Makes a mediated device.
    MdevCreate {
        /// The function that carries it.
        parent: PciAddress,
        /// The driver's name of its type.
        type_id: String,
        /// Its UUID.
        uuid: String,
    },
    /// Asks for the start of a mediated device.
    MdevStart {
        /// Its UUID.
        uuid: String,
        /// The start.
        start: i32,
    },
    /// Gives a mediated device its parameters, all of them.
    MdevParams {
        /// Its UUID.
        uuid: String,
        /// The parameters, as the driver reads them.
        params: String,
    },
    /// Unmakes a mediated device.
    MdevRemove {
        /// Its UUID.
        uuid: String,
    },
    /// Makes a vGPU on a virtual function.
    VgpuType {
        /// The function.
        function: PciAddress,
        /// Number of its type.
        id: u32,
    },
    /// Moves the vGPU of a virtual function to its start.
    VgpuStart {
        /// The function.
        function: PciAddress,
        /// The start.
        start: i32,
    },
    /// Moves the vGPU of a virtual function to its GPU instance.
    VgpuInstance {
        /// The function.
        function: PciAddress,
        /// The GPU instance.
        gpu_instance: u32,
    },
    /// Gives the vGPU of a virtual function its parameters, all of them.
    VgpuParams {
        /// The function.
        function: PciAddress,
        /// The parameters, as the driver reads them; none when empty.
        params: String,
    },
    /// Unmakes the vGPU of a virtual function.
    VgpuClear {
        /// The function.
        function: PciAddress,
    },
    /// Switches MIG on or off.
    MigMode {
        /// The card.
        card: PciAddress,
        /// On.
        on: bool,
    },
    /// Makes a GPU instance.
    GpuInstance {
        /// The card.
        card: PciAddress,
        /// Number of its profile.
        profile: u32,
        /// Its start.
        start: i32,
    },
    /// Makes the compute instance of a GPU instance.
    ComputeInstance {
        /// The card.
        card: PciAddress,
        /// The GPU instance.
        gpu_instance: u32,
    },
    /// Unmakes a GPU instance with its compute instances.
    GpuInstanceDestroy {
        /// The card.
        card: PciAddress,
        /// The GPU instance.
        gpu_instance: u32,
    },
    /// Sets whether sizes of vGPUs stand side by side.
    MixedSize {
        /// The card.
        card: PciAddress,
        /// Whether.
        on: bool,
    },
    /// Sets persistence mode.
    Persistence {
        /// The card.
        card: PciAddress,
        /// On.
        on: bool,
    },
    /// Sets how vGPUs share the time of a card, on which there is none.
    Scheduler {
        /// The card.
        card: PciAddress,
        /// How.
        scheduler: VgpuScheduler,
    },
    /// Sets how vGPUs share the time of a GPU instance, on which there is none.
    InstanceScheduler {
        /// The card.
        card: PciAddress,
        /// The GPU instance.
        gpu_instance: u32,
        /// How.
        scheduler: VgpuScheduler,
    },
    /// Sets what a virtual function may take of its card.
    Quota {
        /// The card.
        card: PciAddress,
        /// The function.
        function: PciAddress,
        /// Its number on the card, from 1.
        number: u32,
        /// What.
        quota: Quota,
        /// How much.
        value: u32,
    },
    /// Sets how much power a card may draw.
    PowerLimit {
        /// The card.
        card: PciAddress,
        /// How much.
        milliwatts: u32,
    },
    /// Keeps the clocks of a card between two, or no more.
    Clocks {
        /// The card.
        card: PciAddress,
        /// The lowest and the highest, in MHz.
        range: Option<(u32, u32)>,
    },
}

impl Step {
    /// The function that it is done on, where it is one.
    pub fn function(&self) -> Option<PciAddress> {
        match self {
            Self::Override { function, .. }
            | Self::Unbind { function, .. }
            | Self::Unlock { function }
            | Self::Probe { function, .. }
            | Self::D3cold { function, .. }
            | Self::Power { function, .. }
            | Self::BarSize { function, .. }
            | Self::Reset { function }
            | Self::Registers { function }
            | Self::Erase { function, .. }
            | Self::Network { function, .. }
            | Self::VgpuType { function, .. }
            | Self::VgpuStart { function, .. }
            | Self::VgpuInstance { function, .. }
            | Self::VgpuParams { function, .. }
            | Self::Quota { function, .. }
            | Self::VgpuClear { function } => Some(*function),
            _ => None,
        }
    }

    /// Whether nobody may have the device open while it is done.
    pub fn needs_it_closed(&self) -> bool {
        self.may_wait() || matches!(self, Self::Registers { .. })
    }

    /// Whether the kernel may wait in it until somebody closes the device.
    pub fn may_wait(&self) -> bool {
        matches!(
            self,
            Self::Unbind { .. }
                | Self::Reset { .. }
                | Self::Erase { .. }
                | Self::MdevRemove { .. }
                | Self::NumVfs { .. }
                | Self::VgpuClear { .. }
                | Self::MigMode { .. }
                | Self::GpuInstanceDestroy { .. }
        )
    }

    /// The setting that it changes, with the value of now.
    pub fn changes(&self, live: &LiveCard) -> Option<(Setting, Option<String>)> {
        let of = |function: &PciAddress| live.find(*function);
        let flag = |on: bool| Some(on.to_string());
        Some(match self {
            Self::Override { function, .. } => {
                (Setting::Override(*function), of(function)?.driver_override.clone())
            }
            Self::Unbind { function, .. } | Self::Probe { function, .. } => {
                (Setting::Driver(*function), of(function)?.driver.clone())
            }
            Self::D3cold { function, .. } => {
                (Setting::D3cold(*function), of(function)?.d3cold.and_then(flag))
            }
            // The driver that gives functions to guests lets each sleep: that is not how the host had it.
            Self::Power { function, .. } => {
                let function = of(function).filter(|function| !function.is_given())?;
                (Setting::Power(function.address), function.power.clone())
            }
            Self::BarSize { function, mib, .. } => (
                Setting::BarSize { function: *function, mib: *mib },
                live.resizable.as_ref()?.mib.map(|mib| mib.to_string()),
            ),
            Self::Network { function, .. } => {
                let now = live.network.as_ref()?.as_ref().ok()?;
                (Setting::Network(*function), serde_json::to_string(&now.settings).ok())
            }
            Self::NumVfs { .. } => (Setting::NumVfs, live.sriov.map(|sriov| sriov.on.to_string())),
            Self::Autoprobe { .. } => (Setting::Autoprobe, live.sriov?.autoprobe.and_then(flag)),
            Self::MigMode { .. } => (Setting::MigMode, flag(live.control.mig?.current)),
            Self::MixedSize { .. } => (Setting::MixedSize, live.control.mixed_size.and_then(flag)),
            Self::Persistence { .. } => (Setting::Persistence, live.control.persistence.and_then(flag)),
            Self::Scheduler { .. } => {
                (Setting::Scheduler, live.control.scheduler.map(|scheduler| format!("{scheduler:?}")))
            }
            Self::PowerLimit { .. } => {
                (Setting::PowerLimit, live.control.power.map(|power| power.limit.to_string()))
            }
            Self::Clocks { .. } => (Setting::Clocks, None),
            Self::Quota { function, quota, .. } => {
                let QuotaSeen::Value(is) = live.virtual_function(*function)?.quotas.of(*quota) else {
                    return None;
                };
                (Setting::Quota(*function, *quota), Some(is.to_string()))
            }
            Self::Reset { .. }
            | Self::Registers { .. }
            | Self::Erase { .. }
            | Self::Unlock { .. }
            | Self::MdevCreate { .. }
            | Self::MdevStart { .. }
            | Self::MdevRemove { .. }
            | Self::VgpuType { .. }
            | Self::VgpuStart { .. }
            | Self::VgpuInstance { .. }
            | Self::VgpuParams { .. }
            | Self::MdevParams { .. }
            | Self::InstanceScheduler { .. }
            | Self::VgpuClear { .. }
            | Self::GpuInstance { .. }
            | Self::ComputeInstance { .. }
            | Self::GpuInstanceDestroy { .. } => return None,
        })
    }

    /// What was there before it, in words for the journal.
    pub fn before(&self, live: &LiveCard) -> String {
        if let Some((_, before)) = self.changes(live) {
            return before.unwrap_or_else(|| "none".into());
        }
        match self {
            Self::VgpuType { function, .. }
            | Self::VgpuStart { function, .. }
            | Self::VgpuInstance { function, .. }
            | Self::VgpuParams { function, .. }
            | Self::VgpuClear { function } => {
                let vgpu = live.virtual_function(*function).and_then(|vf| vf.vgpu.as_ref());
                vgpu.map_or_else(|| "not known".into(), |vgpu| format!("type {:?}", vgpu.current))
            }
            Self::MdevCreate { uuid, .. }
            | Self::MdevStart { uuid, .. }
            | Self::MdevParams { uuid, .. }
            | Self::MdevRemove { uuid } => {
                let there = live.mdevs.iter().any(|mdev| mdev.uuid == *uuid);
                if there { "there".into() } else { "none".into() }
            }
            _ => String::new(),
        }
    }

    /// What takes it back, on a card that was as `live` before it. A reset has nothing to take back, and what unmakes
    /// a share is taken back by making it.
    pub fn undo(&self, live: &LiveCard) -> Option<Self> {
        let function = |function: &PciAddress| live.find(*function);
        Some(match self {
            Self::Override { function: at, .. } => {
                Self::Override { function: *at, driver: function(at)?.driver_override.clone() }
            }
            Self::Unbind { function, driver } => {
                Self::Probe { function: *function, driver: Some(driver.clone()) }
            }
            Self::Probe { function, driver } => Self::Unbind { function: *function, driver: driver.clone()? },
            Self::D3cold { function: at, .. } => {
                Self::D3cold { function: *at, allowed: function(at)?.d3cold? }
            }
            Self::Power { function: at, .. } => {
                Self::Power { function: *at, control: function(at)?.power.clone()? }
            }
            Self::BarSize { function, region, .. } => {
                Self::BarSize { function: *function, region: *region, mib: live.resizable.as_ref()?.mib? }
            }
            Self::Network { function, .. } => {
                let settings = live.network.as_ref()?.as_ref().ok()?.settings.clone();
                Self::Network { function: *function, settings }
            }
            Self::NumVfs { card, .. } => Self::NumVfs { card: *card, count: live.sriov?.on },
            Self::Autoprobe { card, .. } => Self::Autoprobe { card: *card, on: live.sriov?.autoprobe? },
            Self::MdevCreate { uuid, .. } | Self::MdevStart { uuid, .. } | Self::MdevParams { uuid, .. } => {
                Self::MdevRemove { uuid: uuid.clone() }
            }
            Self::VgpuType { function, .. }
            | Self::VgpuStart { function, .. }
            | Self::VgpuInstance { function, .. }
            | Self::VgpuParams { function, .. } => Self::VgpuClear { function: *function },
            Self::InstanceScheduler { card, gpu_instance, .. } => {
                let seen = live.control.gpu_instances.iter().find(|seen| seen.id == *gpu_instance)?;
                let (card, gpu_instance) = (*card, *gpu_instance);
                Self::InstanceScheduler { card, gpu_instance, scheduler: seen.scheduler? }
            }
            Self::Quota { card, function, number, quota, .. } => {
                let QuotaSeen::Value(value) = *live.virtual_function(*function)?.quotas.of(*quota) else {
                    return None;
                };
                Self::Quota { card: *card, function: *function, number: *number, quota: *quota, value }
            }
            Self::MigMode { card, on } => Self::MigMode { card: *card, on: !on },
            Self::MixedSize { card, on } => Self::MixedSize { card: *card, on: !on },
            Self::Persistence { card, on } => Self::Persistence { card: *card, on: !on },
            Self::Scheduler { card, .. } => {
                Self::Scheduler { card: *card, scheduler: live.control.scheduler? }
            }
            Self::PowerLimit { card, .. } => {
                Self::PowerLimit { card: *card, milliwatts: live.control.power?.limit }
            }
            Self::Clocks { card, range: Some(_) } => Self::Clocks { card: *card, range: None },
            Self::ComputeInstance { card, gpu_instance } => {
                Self::GpuInstanceDestroy { card: *card, gpu_instance: *gpu_instance }
            }
            Self::GpuInstance { .. }
            | Self::Unlock { .. }
            | Self::Reset { .. }
            | Self::Registers { .. }
            | Self::Erase { .. }
            | Self::MdevRemove { .. }
            | Self::VgpuClear { .. }
            | Self::Clocks { range: None, .. }
            | Self::GpuInstanceDestroy { .. } => return None,
        })
    }
}
