//! What the operator says of a profile. Pure.

use gpudesk_crds::{
    GpuProfile, GpuProfileStatus,
    conditions::{self, ConditionType, Reason},
    gpu_profile::{AlternativeStatus, ProfileSummary},
    types::Isolation,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::{
    invalid::Invalid,
    placement::{
        explain::Explanation,
        request::{Share, ShareRequest, VgpuWish, series_letter},
    },
    world::Supply,
};

/// The status of a profile that asks for `share`.
pub fn status(profile: &GpuProfile, share: &ShareRequest, supply: &Supply, now: &Time) -> GpuProfileStatus {
    let Supply { in_use, counts, why_none } = supply;
    let satisfiable = match why_none {
        None => (true, Reason::AsExpected, String::new()),
        Some(Explanation { reason, message }) => (false, *reason, message.clone()),
    };
    let index = |way: usize| i32::try_from(share.ways.get(way).map_or(0, |way| way.index)).unwrap_or(0);
    let alternatives = counts.ways.iter().enumerate();
    GpuProfileStatus {
        total: counts.total,
        in_use: *in_use,
        placeable: counts.placeable,
        alternatives: alternatives
            .map(|(way, (total, placeable))| AlternativeStatus {
                index: index(way),
                total: *total,
                placeable: *placeable,
            })
            .collect(),
        summary: Some(summary(share)),
        conditions: said(profile, (true, Reason::AsExpected, String::new()), satisfiable, now),
        operator_term: None,
    }
}

/// The status of a profile that asks for what cannot be.
pub fn invalid(profile: &GpuProfile, why: &Invalid, in_use: i32, now: &Time) -> GpuProfileStatus {
    let so = || (false, why.reason, why.message.clone());
    GpuProfileStatus { in_use, conditions: said(profile, so(), so(), now), ..GpuProfileStatus::default() }
}

/// Whether it is so, the reason, and the message.
type Verdict = (bool, Reason, String);

fn said(profile: &GpuProfile, valid: Verdict, satisfiable: Verdict, now: &Time) -> Vec<Condition> {
    let mut conditions = profile.status.clone().unwrap_or_default().conditions;
    let own = [ConditionType::Valid, ConditionType::Satisfiable];
    conditions.retain(|condition| own.iter().any(|own| own.as_str() == condition.type_));
    for (type_, (status, reason, message)) in own.into_iter().zip([valid, satisfiable]) {
        conditions::set(&mut conditions, type_, status, reason, message, profile.metadata.generation, now);
    }
    conditions
}

fn summary(share: &ShareRequest) -> ProfileSummary {
    let gib = |mib: i64| {
        if mib % 1024 == 0 { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") }
    };
    let first = share.ways.first().map(|way| &way.share);
    let (words, memory) = match first {
        None => (String::new(), String::new()),
        Some(Share::Passthrough) => ("Passthrough".to_owned(), "whole card".to_owned()),
        Some(Share::Vgpu(VgpuWish::Type(name), _)) => (format!("vGPU {name}"), of_type(name)),
        Some(Share::Vgpu(VgpuWish::Size { series, min, max }, _)) => {
            let memory = match (min % 1024, max % 1024) {
                _ if min == max => gib(*min),
                (0, 0) => format!("{}-{} GiB", min / 1024, max / 1024),
                _ => format!("{min}-{max} MiB"),
            };
            (format!("vGPU {}", series_letter(*series)), memory)
        }
        Some(Share::Mig { profile, series: _, framebuffer_mib }) => {
            let name = profile.strip_suffix("+gfx").unwrap_or(profile);
            let digits =
                name.split_once('.').and_then(|(_, size)| size.split_once("gb")).map(|(size, _)| size);
            let whole = digits.map_or(String::new(), |size| format!("{size} GiB"));
            (format!("MIG {name}"), framebuffer_mib.map_or(whole, gib))
        }
        Some(Share::VirtualFunction { framebuffer_mib }) => {
            let memory =
                if *framebuffer_mib == 0 { "any".into() } else { format!("from {}", gib(*framebuffer_mib)) };
            ("VF".to_owned(), memory)
        }
    };
    let weakest = share.ways.iter().map(|way| way.share.isolation()).min().unwrap_or_default();
    let isolation = match weakest {
        Isolation::TimeSliced => "TimeSliced",
        Isolation::HardwarePartition => "HardwarePartition",
        Isolation::Exclusive => "Exclusive",
    };
    ProfileSummary { share: words, memory, isolation: isolation.into() }
}

/// The size in a type's name: `L40S-8Q` has 8 GiB.
fn of_type(name: &str) -> String {
    let size = name.rsplit_once('-').map_or(name, |(_, size)| size);
    let digits: String = size.chars().take_while(char::is_ascii_digit).collect();
    if digits.is_empty() { String::new() } else { format!("{digits} GiB") }
}
