//! The shares of cards in the catalogue.

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_status::{Framework, MediaEngines, MigBackedType, Placement},
    types::ShareMode,
};
use serde::Deserialize;

use super::SeriesName;

type TypesBySeries = BTreeMap<SeriesName, BTreeMap<i64, i32>>;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MixedSize {
    #[serde(rename = "framebufferMiB")]
    framebuffer_mib: i64,
    size: i32,
    starts: Vec<i32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Vgpu {
    prefix: String,
    #[serde(default)]
    pub(super) mixed_size_table: Option<String>,
    /// Whether the card can mix sizes, where no table says so.
    #[serde(default)]
    pub(super) mixed_size: Option<bool>,
    types: TypesBySeries,
    #[serde(default)]
    mib: BTreeMap<i64, i64>,
    #[serde(default)]
    numbers: BTreeMap<SeriesName, i32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Mig {
    /// Seven slices of eight memory units.
    Seven(SevenSlices),
    /// Written out.
    Other(Vec<MigProfile>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SevenSlices {
    #[serde(rename = "sizesGiB")]
    sizes_gib: [i64; 4],
    media: Media,
}

/// How media engines are spread over seven slices.
#[derive(Clone, Copy, Debug, Deserialize)]
enum Media {
    A100,
    H100,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct MigProfile {
    name: String,
    id: i32,
    compute: i32,
    size: i32,
    starts: Vec<i32>,
    max: i32,
    #[serde(rename = "framebufferMiB")]
    framebuffer_mib: i64,
    /// Decoders, encoders, JPEG and optical flow engines.
    engines: [i32; 4],
    #[serde(default)]
    vgpu_suffix: String,
    #[serde(default)]
    vgpu_types: TypesBySeries,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VirtualFunctions {
    prefix: String,
    pub(super) device_id: String,
    counts: BTreeMap<i32, i64>,
}

/// A profile of every card with seven slices.
struct Seven {
    id: i32,
    suffix: &'static str,
    compute: i32,
    /// Length and starts in memory units.
    size: i32,
    starts: &'static [i32],
    max: i32,
    /// Which of the card's four sizes.
    which: usize,
    /// Decoders of an A100; the others follow from slices and suffix.
    decoders: i32,
}

const ANYWHERE: &[i32] = &[0, 1, 2, 3, 4, 5, 6];
const SEVEN: [Seven; 7] = [
    Seven { id: 19, suffix: "", compute: 1, size: 1, starts: ANYWHERE, max: 7, which: 0, decoders: 0 },
    Seven { id: 20, suffix: "+me", compute: 1, size: 1, starts: ANYWHERE, max: 1, which: 0, decoders: 1 },
    Seven { id: 15, suffix: "", compute: 1, size: 2, starts: &[0, 2, 4, 6], max: 4, which: 1, decoders: 1 },
    Seven { id: 14, suffix: "", compute: 2, size: 2, starts: &[0, 2, 4], max: 3, which: 1, decoders: 1 },
    Seven { id: 9, suffix: "", compute: 3, size: 4, starts: &[0, 4], max: 2, which: 2, decoders: 2 },
    Seven { id: 5, suffix: "", compute: 4, size: 4, starts: &[0], max: 1, which: 2, decoders: 2 },
    Seven { id: 0, suffix: "", compute: 7, size: 8, starts: &[0], max: 1, which: 3, decoders: 5 },
];

impl Mig {
    pub(super) fn placements(&self, vgpu: Option<&Vgpu>) -> Vec<Placement> {
        let seven;
        let profiles = match self {
            Self::Seven(slices) => {
                seven = slices.profiles(vgpu);
                &seven
            }
            Self::Other(profiles) => profiles,
        };
        profiles.iter().map(|profile| profile.placement(vgpu)).collect()
    }
}

impl SevenSlices {
    fn profiles(&self, vgpu: Option<&Vgpu>) -> Vec<MigProfile> {
        let profile = |&Seven { id, suffix, compute, size, starts, max, which, decoders }: &Seven| {
            let gib = self.sizes_gib[which];
            let one = i32::from(compute == 7 || !suffix.is_empty());
            let engines = match self.media {
                Media::A100 => [decoders, 0, one, one],
                Media::H100 => [compute, 0, compute, one],
            };
            MigProfile {
                name: format!("{compute}g.{gib}gb{suffix}"),
                id,
                compute,
                size,
                starts: starts.into(),
                max,
                framebuffer_mib: vgpu.map_or(gib * 1024, |vgpu| vgpu.mib(gib)),
                engines,
                vgpu_suffix: if suffix.is_empty() { String::new() } else { "ME".into() },
                vgpu_types: [(SeriesName::C, [(gib, 1)].into())].into(),
            }
        };
        SEVEN.iter().map(profile).collect()
    }
}

impl MigProfile {
    fn placement(&self, vgpu: Option<&Vgpu>) -> Placement {
        let types = vgpu.into_iter().flat_map(|vgpu| {
            self.vgpu_types.iter().flat_map(move |(series, sizes)| {
                sizes.iter().map(move |(gib, max)| MigBackedType {
                    type_name: format!(
                        "{}-{}-{gib}{series:?}{}",
                        vgpu.prefix, self.compute, self.vgpu_suffix
                    ),
                    series: series.api(),
                    framebuffer_mib: vgpu.mib(*gib),
                    max_per_instance: *max,
                })
            })
        });
        let [decoders, encoders, jpeg, optical_flow] = self.engines;
        Placement {
            size: self.size,
            starts: self.starts.clone(),
            compute_slices: self.compute,
            engines: Some(MediaEngines { decoders, encoders, jpeg, optical_flow }),
            driver_id: Some(self.id.to_string()),
            vgpu_types: types.collect(),
            ..Placement::new(self.name.clone(), ShareMode::Mig, self.framebuffer_mib, self.max)
        }
    }
}

impl Vgpu {
    /// Framebuffer of the types with this number in their name.
    fn mib(&self, gib: i64) -> i64 {
        self.mib.get(&gib).copied().unwrap_or(gib * 1024)
    }

    pub(super) fn placements(
        &self,
        table: Option<&[MixedSize]>,
        framework: Option<Framework>,
    ) -> Vec<Placement> {
        let mut placements = vec![];
        for (series, sizes) in &self.types {
            let first = self.numbers.get(series);
            for ((gib, max), position) in sizes.iter().zip(0..) {
                let framebuffer_mib = self.mib(*gib);
                let mixed =
                    table.and_then(|table| table.iter().find(|size| size.framebuffer_mib == framebuffer_mib));
                let name = format!("{}-{gib}{series:?}", self.prefix);
                let (heads, resolution, rate) = screens(*series, *gib);
                placements.push(Placement {
                    series: Some(series.api()),
                    size: mixed.map_or(0, |size| size.size),
                    starts: mixed.map_or_else(Vec::new, |size| size.starts.clone()),
                    driver_id: first.map(|first| match framework {
                        Some(Framework::Mdev) => format!("nvidia-{}", first + position),
                        Some(Framework::VendorVfio | Framework::Sriov) | None => {
                            (first + position).to_string()
                        }
                    }),
                    heads: Some(heads),
                    max_resolution: Some(resolution.into()),
                    frame_rate_limit: Some(rate),
                    ..Placement::new(name, ShareMode::Vgpu, framebuffer_mib, *max)
                });
            }
        }
        placements
    }
}

/// Screens, their largest resolution and the frame limiter, the same on all cards since Volta.
fn screens(series: SeriesName, gib: i64) -> (i32, &'static str, i32) {
    match series {
        SeriesName::Q if gib > 1 => (4, "7680x4320", 60),
        SeriesName::Q => (4, "5120x2880", 60),
        SeriesName::B => (4, "5120x2880", 45),
        SeriesName::A => (1, "1280x1024", 60),
        SeriesName::C => (1, "4096x2160", 60),
    }
}

impl VirtualFunctions {
    pub(super) fn placements(&self) -> Vec<Placement> {
        let placement = |(count, framebuffer_mib): (&i32, &i64)| {
            let name = format!("{}-{count}VF", self.prefix);
            Placement::new(name, ShareMode::VirtualFunctions, *framebuffer_mib, *count)
        };
        self.counts.iter().map(placement).collect()
    }
}
