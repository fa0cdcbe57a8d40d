//! Temperatures: in degrees, or as margins that newer drivers give instead.

use gpudesk_crds::gpu_node_status::{Device, TemperatureThresholds};

use super::{TemperatureReadings, Thresholds};

/// What is far from any card is no temperature.
const PLAUSIBLE: std::ops::RangeInclusive<i32> = -40..=200;

pub(super) fn describe(card: &mut Device, found: Option<&TemperatureReadings>) {
    let Some(found) = found else { return };
    if let Some(now) = found.now.filter(|now| PLAUSIBLE.contains(now)) {
        card.temperature_celsius = Some(now);
    }
    let thresholds = found.degrees.map(in_degrees).filter(says_something).or_else(|| from_margins(found));
    if let Some(thresholds) = thresholds {
        card.temperature_thresholds = Some(thresholds);
    }
}

fn in_degrees(found: Thresholds) -> TemperatureThresholds {
    // Some drivers give 0 for what they do not have.
    let degrees = |value: Option<i32>| value.filter(|value| *value > 0 && PLAUSIBLE.contains(value));
    TemperatureThresholds {
        shutdown_celsius: degrees(found.shutdown),
        slowdown_celsius: degrees(found.slowdown),
        max_operating_celsius: degrees(found.gpu_max),
        memory_max_operating_celsius: degrees(found.memory_max),
    }
}

/// The margin falls as the card gets warm: it is at `limit` when the card is `margin - limit` warmer
/// than now.
fn from_margins(found: &TemperatureReadings) -> Option<TemperatureThresholds> {
    let (now, margin, margins) = (found.now?, found.margin?, found.margins?);
    let at = |limit: Option<i32>| {
        let warmer = i64::from(margin) - i64::from(limit?);
        let degrees = i32::try_from(i64::from(now) + warmer).ok()?;
        PLAUSIBLE.contains(&degrees).then_some(degrees)
    };
    let thresholds = TemperatureThresholds {
        shutdown_celsius: at(margins.shutdown),
        slowdown_celsius: at(margins.slowdown),
        max_operating_celsius: at(margins.gpu_max),
        // The margin of now is that of the GPU; nothing tells how warm the memory is by it.
        memory_max_operating_celsius: None,
    };
    says_something(&thresholds).then_some(thresholds)
}

fn says_something(found: &TemperatureThresholds) -> bool {
    *found != TemperatureThresholds::default()
}
