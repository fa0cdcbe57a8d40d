//! What the name of an NVIDIA vGPU type says.
//!
//! Names are `PREFIX-[SLICES-]SIZE SERIES [ATTRIBUTE]`: `L40S-8Q`, `A100-1-5CME`, `DC-1-24QGFX`. The
//! size is in GB, `0` means 512 MiB. Source: NVIDIA vGPU User Guide, "Virtual GPU Types".

use gpudesk_crds::{
    gpu_node_status::Placement,
    types::{ShareMode, VgpuSeries},
};

/// What a name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VgpuName {
    /// The whole name without the maker's head: `L40S-8Q`.
    pub name: String,
    /// MIG slices below it; absent for a time-sliced type.
    pub slices: Option<i32>,
    /// Framebuffer in MiB.
    pub framebuffer_mib: i64,
    /// Series.
    pub series: VgpuSeries,
}

/// The name as placements have it: without `NVIDIA ` or `GRID ` before it, and without the product that
/// drivers put between (`NVIDIA RTX Pro 6000 Blackwell DC-1-24Q` is `DC-1-24Q`).
pub fn short(name: &str) -> &str {
    let name = name.trim();
    match name.strip_prefix("NVIDIA ").or_else(|| name.strip_prefix("GRID ")) {
        Some(rest) => rest.rsplit(' ').next().unwrap_or(rest),
        None => name,
    }
}

/// Reads a name; `None` when it is not one of NVIDIA's.
pub fn parse(name: &str) -> Option<VgpuName> {
    let name = short(name);
    let (head, last) = name.rsplit_once('-')?;
    let digits = last.find(|c: char| !c.is_ascii_digit())?;
    let gigabytes: i64 = last[..digits].parse().ok().filter(|size| *size <= 4096)?;
    let series = match last[digits..].chars().next()? {
        'Q' => VgpuSeries::Q,
        'B' => VgpuSeries::B,
        'A' => VgpuSeries::A,
        'C' => VgpuSeries::C,
        _ => return None,
    };
    // What follows the series: ME, NOME, MEALL, GFX, or the 2 and 4 of the old B types (`M10-1B4`).
    if !last[digits + 1..].bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()) {
        return None;
    }
    let slices =
        head.rsplit_once('-').and_then(|(_, slices)| slices.parse().ok()).filter(|n| (1..=64).contains(n));
    (!head.is_empty() && name.len() <= 64).then(|| VgpuName {
        name: name.into(),
        slices,
        framebuffer_mib: if gigabytes == 0 { 512 } else { gigabytes * 1024 },
        series,
    })
}

/// A share of this type, of which nothing but the name is known. How many fit is 0: not known.
pub fn placement(name: &VgpuName, driver_id: &str) -> Placement {
    let mode = if name.slices.is_some() { ShareMode::Mig } else { ShareMode::Vgpu };
    Placement {
        series: Some(name.series),
        compute_slices: name.slices.unwrap_or(0),
        driver_id: Some(driver_id.chars().take(64).collect()),
        ..Placement::new(name.name.clone(), mode, name.framebuffer_mib, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_say_size_series_and_slices() {
        for (name, short, slices, mib, series) in [
            ("NVIDIA L40S-8Q", "L40S-8Q", None, 8192, VgpuSeries::Q),
            ("GRID M60-0B", "M60-0B", None, 512, VgpuSeries::B),
            ("GRID M10-1B4", "M10-1B4", None, 1024, VgpuSeries::B),
            ("NVIDIA A100-1-5CME", "A100-1-5CME", Some(1), 5120, VgpuSeries::C),
            ("DC-1-24QGFX", "DC-1-24QGFX", Some(1), 24576, VgpuSeries::Q),
            ("NVIDIA RTX Pro 6000 Blackwell DC-4-96A", "DC-4-96A", Some(4), 98304, VgpuSeries::A),
        ] {
            let found = parse(name).unwrap();
            assert_eq!(
                (found.name.as_str(), found.slices, found.framebuffer_mib, found.series),
                (short, slices, mib, series)
            );
        }
    }

    #[test]
    fn other_names_are_not_read() {
        for name in ["", "mtty-1", "i915-GVTg_V5_4", "L40S-Q", "L40S-8X", "L40S", "-8Q", "L40S-99999Q"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_name_panics(name in "([A-Z0-9 -]|\\PC){0,80}") {
            if let Some(found) = parse(&name) {
                prop_assert!(found.framebuffer_mib > 0 && found.name.len() <= 64);
            }
        }
    }
}
