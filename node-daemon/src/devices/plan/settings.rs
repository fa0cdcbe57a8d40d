//! How the owner of the host wants a card while desktops have vGPUs of it: vGPU scheduler, persistence mode, power and clocks. A card that is
//! given whole has no driver of the host that could be told.

use gpudesk_crds::gpu_node::{DevicePolicy, VgpuScheduler, VirtualFunctionQuotas};
use serde::{Deserialize, Serialize};

use crate::devices::{
    journal::{Change, Entry, Journal},
    live::LiveCard,
    refusal::Refusal,
    step::{Setting, Step},
};

/// What the rule of a card says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wish {
    /// Persistence mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence: Option<bool>,
    /// How vGPUs share its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<VgpuScheduler>,
    /// Power limit in watts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watts: Option<u32>,
    /// Clocks in MHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<(u32, u32)>,
    /// Milliseconds of a turn of a virtual function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantum_ms: Option<u32>,
    /// Microseconds until a virtual function must give way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_us: Option<u32>,
    /// Size in MiB of its memory region, where it is given whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bar_mib: Option<i64>,
}

impl Wish {
    /// Whether nothing is wished.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl From<&DevicePolicy> for Wish {
    fn from(policy: &DevicePolicy) -> Self {
        let clocks = policy
            .lock_clocks_mhz
            .and_then(|range| Some((u32::try_from(range.min).ok()?, u32::try_from(range.max).ok()?)));
        let quota = |of: fn(&VirtualFunctionQuotas) -> Option<i32>| {
            policy.virtual_functions.as_ref().and_then(of).and_then(|value| u32::try_from(value).ok())
        };
        Self {
            persistence: policy.persistence_mode,
            scheduler: policy.vgpu_scheduler,
            watts: policy.power_limit_watts.and_then(|watts| u32::try_from(watts).ok()),
            clocks,
            quantum_ms: quota(|quotas| quotas.exec_quantum_ms),
            timeout_us: quota(|quotas| quotas.preempt_timeout_us),
            bar_mib: policy.resizable_bar_mib,
        }
    }
}

/// Whether the card can be as it is wished.
pub(super) fn fit(live: &LiveCard, journal: &Journal) -> Result<(), Refusal> {
    let card = live.function.address;
    let Some(wish) = journal.cards.get(&card).map(|card| card.wish) else { return Ok(()) };
    // Asked for again once the card is back from what is done to its virtual functions.
    if live.function.driver.as_deref() != Some("nvidia") || live.function.locked {
        return Ok(());
    }
    let control = &live.control;
    if (wish.persistence.is_some() || wish.clocks.is_some()) && control.persistence.is_none() {
        return Err(Refusal::NoControl { card, what: "persistenceMode or lockClocksMHz" });
    }
    let Some(watts) = wish.watts else { return Ok(()) };
    let power = control.power.ok_or(Refusal::NoControl { card, what: "powerLimitWatts" })?;
    let (least, most) = (power.least.div_ceil(1000), power.most / 1000);
    if (least..=most).contains(&watts) {
        return Ok(());
    }
    Err(Refusal::Unknown(format!(
        "the rule of spec.devices for {card} has powerLimitWatts {watts}, and the card takes {least} to {most}"
    )))
}

/// The steps that are left until the card is as it is wished.
pub(super) fn there(live: &LiveCard, journal: &Journal) -> Vec<Step> {
    let card = live.function.address;
    let Some(known) = journal.cards.get(&card) else { return vec![] };
    let mut steps = vec![];
    if let Some(on) = known.wish.persistence
        && live.control.persistence == Some(!on)
    {
        steps.push(Step::Persistence { card, on });
    }
    if let (Some(watts), Some(power)) = (known.wish.watts, live.control.power)
        && power.limit != watts.saturating_mul(1000)
    {
        steps.push(Step::PowerLimit { card, milliwatts: watts.saturating_mul(1000) });
    }
    if known.wish.clocks.is_some() && known.clocks != known.wish.clocks {
        steps.push(Step::Clocks { card, range: known.wish.clocks });
    }
    steps
}

/// The step after which time-sliced vGPUs share the card as it is wished: before the first of them, for the driver sets it
/// on a card without vGPUs alone. What is wished of the card is what its owner wants, else what the first share wanted.
pub(super) fn scheduler(live: &LiveCard, journal: &Journal, entry: &Entry) -> Result<Option<Step>, Refusal> {
    let card = live.function.address;
    let of_card = journal.cards.get(&card).and_then(|card| card.wish.scheduler);
    let asked = entry.setup.scheduler;
    if let (Some(of_card), Some(asked)) = (of_card, asked)
        && of_card != asked
    {
        return Err(Refusal::Unknown(format!(
            "the GpuProfile has vgpuScheduler {asked:?}, and {card} has {of_card:?} until its last vGPU is gone, or by the \
             rule of spec.devices"
        )));
    }
    let Some(wanted) = of_card.or(asked) else { return Ok(None) };
    let who = match asked {
        Some(_) => "the GpuProfile".to_owned(),
        None => format!("the rule of spec.devices for {card}"),
    };
    if wanted == VgpuScheduler::FixedShare && entry.share.start.is_some() {
        return Err(Refusal::Unknown(format!(
            "{who} has vgpuScheduler FixedShare, which is for vGPUs of one size, and vGPUs of {card} have several \
             (vgpuPlacement MixedSize)"
        )));
    }
    match (live.control.scheduler, live.vgpu()) {
        (Some(is), _) if is == wanted => Ok(None),
        (None, _) => Err(Refusal::NoControl { card, what: "vgpuScheduler" }),
        (Some(_), None) => Ok(Some(Step::Scheduler { card, scheduler: wanted })),
        (Some(is), Some(vgpu)) => Err(Refusal::Unknown(format!(
            "{who} has vgpuScheduler {wanted:?}, it is {is:?}, and the driver changes it only while no vGPU is on {card}: \
             {vgpu} is"
        ))),
    }
}

/// The step after which the memory region of a card that is given whole is as large as it is wished.
pub(super) fn size(live: &LiveCard, journal: &Journal) -> Result<Option<Step>, Refusal> {
    let function = live.function.address;
    let Some(mib) = journal.cards.get(&function).and_then(|card| card.wish.bar_mib) else { return Ok(None) };
    let asked = format!("the rule of spec.devices for {function} has resizableBarMiB {mib}");
    let Some(region) = &live.resizable else {
        return Err(Refusal::Unknown(format!("{asked}, and no memory region of the card can be resized")));
    };
    if !region.bar.sizes_mib.contains(&mib) {
        let sizes: Vec<String> = region.bar.sizes_mib.iter().map(ToString::to_string).collect();
        return Err(Refusal::Unknown(format!("{asked}, and the card takes {}", sizes.join(", "))));
    }
    let step = Step::BarSize { function, region: region.bar.index, mib };
    Ok((region.mib != Some(mib)).then_some(step))
}

/// The step that puts it back. What somebody else made of it since then stays.
pub(super) fn size_back(live: &LiveCard, change: &Change) -> Option<Step> {
    let Setting::BarSize { function, mib: ours } = change.setting else { return None };
    let region = live.resizable.as_ref().filter(|_| function == live.function.address)?;
    let mib = change.before.as_ref()?.parse().ok()?;
    let is_ours = region.mib.is_none_or(|now| now == ours && now != mib);
    is_ours.then_some(Step::BarSize { function, region: region.bar.index, mib })
}

/// The steps that put it back, while the driver of the host has the card. What somebody else set since then stays.
pub(super) fn back(live: &LiveCard, journal: &Journal, changes: &[&Change]) -> Vec<Step> {
    let card = live.function.address;
    let before = |wanted: Setting| changes.iter().find(|change| change.setting == wanted);
    let mut steps = vec![];
    if live.function.driver.as_deref() != Some("nvidia") || live.control_fault.is_some() {
        return steps;
    }
    let wish = journal.cards.get(&card).map(|known| known.wish).unwrap_or_default();
    let ours = wish.watts;
    if let Some(change) = before(Setting::Scheduler)
        && let Some(scheduler) = all_schedulers().find(|one| change.before == Some(format!("{one:?}")))
        && live
            .control
            .scheduler
            .is_some_and(|is| is != scheduler && wish.scheduler.is_none_or(|wish| is == wish))
        && live.vgpu().is_none()
    {
        steps.push(Step::Scheduler { card, scheduler });
    }
    if let Some(change) = before(Setting::PowerLimit)
        && let Some(milliwatts) = change.before.as_deref().and_then(|before| before.parse().ok())
        && let Some(power) = live.control.power
        && power.limit != milliwatts
        && ours.is_none_or(|watts| power.limit == watts.saturating_mul(1000))
    {
        steps.push(Step::PowerLimit { card, milliwatts });
    }
    // Where NVML tells nothing there is nobody who could unlock them.
    if before(Setting::Clocks).is_some() && live.control.persistence.is_some() {
        steps.push(Step::Clocks { card, range: None });
    }
    steps
}

fn all_schedulers() -> impl Iterator<Item = VgpuScheduler> {
    [VgpuScheduler::BestEffort, VgpuScheduler::EqualShare, VgpuScheduler::FixedShare].into_iter()
}

impl Journal {
    /// Notes what the driver does not tell, once a step is done.
    pub fn done(&mut self, card: gpudesk_crds::types::PciAddress, step: &Step) {
        if let (Step::Clocks { range, .. }, Some(known)) = (step, self.cards.get_mut(&card)) {
            known.clocks = *range;
            if range.is_none() {
                known.changes.retain(|change| change.setting != Setting::Clocks);
            }
        }
    }
}
