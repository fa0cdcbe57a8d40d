//! How the owner of the host wants a card while desktops have vGPUs of it: vGPU scheduler, persistence mode, power and clocks. A card that is
//! given whole has no driver of the host that could be told.

use gpudesk_crds::gpu_node::{DevicePolicy, VgpuScheduler};
use serde::{Deserialize, Serialize};

use crate::devices::{
    journal::{Change, Journal},
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
        Self {
            persistence: policy.persistence_mode,
            scheduler: policy.vgpu_scheduler,
            watts: policy.power_limit_watts.and_then(|watts| u32::try_from(watts).ok()),
            clocks,
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
/// on a card without vGPUs alone.
pub(super) fn scheduler(live: &LiveCard, journal: &Journal) -> Result<Option<Step>, Refusal> {
    let card = live.function.address;
    let Some(wanted) = journal.cards.get(&card).and_then(|card| card.wish.scheduler) else { return Ok(None) };
    match (live.control.scheduler, live.vgpu()) {
        (Some(is), _) if is == wanted => Ok(None),
        (None, _) => Err(Refusal::NoControl { card, what: "vgpuScheduler" }),
        (Some(_), None) => Ok(Some(Step::Scheduler { card, scheduler: wanted })),
        (Some(is), Some(vgpu)) => Err(Refusal::Unknown(format!(
            "the rule of spec.devices for {card} has vgpuScheduler {wanted:?}, it is {is:?}, and the driver changes it only \
             while no vGPU is on the card: {vgpu} is"
        ))),
    }
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
