//! What the operator says of a profile. Pure.

use gpudesk_crds::{
    GpuProfile, GpuProfileStatus,
    conditions::{self, ConditionType, Reason},
    desktop_template::NumaPolicy,
    gpu_profile::{AlternativeStatus, ProfileSummary},
    types::{Isolation, PageSize},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::validate;
use crate::{
    invalid::Invalid,
    placement::{
        self,
        compute::Limits,
        explain::Explanation,
        gpus,
        occupancy::NodeUse,
        request::{
            CpuRequest, DesktopKey, MemoryRequest, Request, Share, ShareRequest, VgpuWish, series_letter,
        },
        snapshot::View,
    },
};

/// The status of a profile on these nodes, with `in_use` shares given.
pub fn status(
    profile: &GpuProfile,
    view: &View,
    in_use: i32,
    limits: Limits,
    now: &Time,
) -> GpuProfileStatus {
    let generation = profile.metadata.generation;
    let mut conditions = profile.status.clone().unwrap_or_default().conditions;
    conditions.retain(|c| {
        [ConditionType::Valid.as_str(), ConditionType::Satisfiable.as_str()].contains(&&*c.type_)
    });
    let mut say = |type_, status, reason, message: String| {
        conditions::set(&mut conditions, type_, status, reason, message, generation, now);
    };
    let share = match validate::validate(profile) {
        Ok(share) => share,
        Err(Invalid { reason, message }) => {
            say(ConditionType::Valid, false, reason, message.clone());
            say(ConditionType::Satisfiable, false, reason, message);
            return GpuProfileStatus { in_use, conditions, ..GpuProfileStatus::default() };
        }
    };
    say(ConditionType::Valid, true, Reason::AsExpected, String::new());
    let counts = count(view, &share);
    if counts.placeable > 0 {
        say(ConditionType::Satisfiable, true, Reason::AsExpected, String::new());
    } else {
        let Explanation { reason, message } = why_none(view, &share, limits);
        say(ConditionType::Satisfiable, false, reason, message);
    }
    GpuProfileStatus {
        total: counts.total,
        in_use,
        placeable: counts.placeable,
        alternatives: counts.alternatives,
        summary: Some(summary(&share)),
        conditions,
    }
}

#[derive(Default)]
struct Counts {
    total: i32,
    placeable: i32,
    alternatives: Vec<AlternativeStatus>,
}

fn count(view: &View, share: &ShareRequest) -> Counts {
    let index = |way: usize| i32::try_from(share.ways.get(way).map_or(0, |way| way.index)).unwrap_or(0);
    let mut counts = Counts {
        alternatives: (0..share.ways.len())
            .map(|way| AlternativeStatus { index: index(way), total: 0, placeable: 0 })
            .collect(),
        ..Counts::default()
    };
    for (facts, state) in view.nodes() {
        let (total, alone) = gpus::count(facts, &NodeUse::empty(facts), share);
        counts.total += total;
        for (alternative, total) in counts.alternatives.iter_mut().zip(alone) {
            alternative.total += total;
        }
        if facts.cordoned || !facts.ready || view.is_silent(&facts.name) {
            continue;
        }
        let (placeable, alone) = gpus::count(facts, &state.used, share);
        counts.placeable += placeable;
        for (alternative, placeable) in counts.alternatives.iter_mut().zip(alone) {
            alternative.placeable += placeable;
        }
    }
    counts
}

/// Why not even one more fits, were it asked for by the smallest of machines.
fn why_none(view: &View, share: &ShareRequest, limits: Limits) -> Explanation {
    let request = Request {
        desktop: DesktopKey::default(),
        node_selector: std::collections::BTreeMap::new(),
        home: None,
        cpu: CpuRequest { cores: 0, threads_per_core: 1, dedicated: false },
        memory: MemoryRequest { mib: 0, pages: PageSize::None, allow_fallback: false },
        numa: NumaPolicy::None,
        shares: vec![share.clone()],
    };
    match placement::place(view, &request, limits) {
        Err(rejections) => placement::explain(view, &request, &rejections, limits),
        Ok(_) => Explanation { reason: Reason::Unknown, message: String::new() },
    }
}

fn summary(share: &ShareRequest) -> ProfileSummary {
    let gib = |mib: i64| {
        if mib % 1024 == 0 { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") }
    };
    let first = share.ways.first().map(|way| &way.share);
    let (words, memory) = match first {
        None => (String::new(), String::new()),
        Some(Share::Passthrough) => ("Passthrough".to_owned(), "whole card".to_owned()),
        Some(Share::Vgpu(VgpuWish::Type(name))) => (format!("vGPU {name}"), of_type(name)),
        Some(Share::Vgpu(VgpuWish::Size { series, min, max })) => {
            let memory = match (min % 1024, max % 1024) {
                _ if min == max => gib(*min),
                (0, 0) => format!("{}-{} GiB", min / 1024, max / 1024),
                _ => format!("{min}-{max} MiB"),
            };
            (format!("vGPU {}", series_letter(*series)), memory)
        }
        Some(Share::Mig { profile, series: _ }) => {
            let name = profile.strip_suffix("+gfx").unwrap_or(profile);
            let digits =
                name.split_once('.').and_then(|(_, size)| size.split_once("gb")).map(|(size, _)| size);
            (format!("MIG {name}"), digits.map_or(String::new(), |size| format!("{size} GiB")))
        }
        Some(Share::VirtualFunction { framebuffer_mib }) => {
            let memory =
                if *framebuffer_mib == 0 { "any".into() } else { format!("from {}", gib(*framebuffer_mib)) };
            ("VF".to_owned(), memory)
        }
    };
    let weakest = share.ways.iter().map(|way| way.share.mode().isolation()).min().unwrap_or_default();
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
