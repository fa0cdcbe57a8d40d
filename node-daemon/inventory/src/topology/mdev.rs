//! Mediated devices: what `mdev_supported_types` says.
//!
//! Source: the kernel's ABI document `sysfs-bus-vfio-mdev`; `name` and `description` are optional in it.

use gpudesk_crds::{
    gpu_node_status::Placement,
    types::{PciAddress, ShareMode},
};
use uuid::Uuid;

use super::vgpu_type;

/// What a type's `description` says: `num_heads=4, frl_config=45, framebuffer=1024M,
/// max_resolution=5120x2880, max_instance=16`. What is absent there is absent here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Screens.
    pub heads: Option<i32>,
    /// Frames per second of the frame limiter.
    pub frame_rate_limit: Option<i32>,
    /// Framebuffer in MiB.
    pub framebuffer_mib: Option<i64>,
    /// Largest resolution.
    pub max_resolution: Option<String>,
    /// Most on one card.
    pub max_instances: Option<i32>,
}

/// Reads a description: pairs with `=` or `:` between, divided by commas or lines. Keys that are not
/// known are passed over.
pub fn description(text: &str) -> Description {
    let mut found = Description::default();
    for pair in text.split([',', '\n']) {
        let Some((key, value)) = pair.split_once(['=', ':']) else { continue };
        let value = value.trim();
        let number = || value.parse::<i32>().ok().filter(|number| (0..=4096).contains(number));
        match key.trim() {
            "num_heads" => found.heads = number().filter(|heads| *heads <= 64),
            "frl_config" => found.frame_rate_limit = number().filter(|limit| *limit <= 1000),
            "framebuffer" | "low_gm_size" => found.framebuffer_mib = size_mib(value),
            "max_resolution" | "resolution" => {
                found.max_resolution = (!value.is_empty() && value.len() <= 32).then(|| value.into());
            }
            "max_instance" => found.max_instances = number(),
            _ => {}
        }
    }
    found
}

/// A size such as `1024M`, `128MB` or `2G`, in MiB.
fn size_mib(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: i64 = text[..digits].parse().ok().filter(|number| *number <= 1 << 24)?;
    match text[digits..].trim() {
        "M" | "MB" | "MiB" => Some(number),
        "G" | "GB" | "GiB" => Some(number * 1024),
        _ => None,
    }
}

/// A type that a card or a virtual function offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MdevType {
    /// Name of its folder: `nvidia-222`.
    pub id: String,
    /// Its `name`: `NVIDIA A2-4Q`.
    pub name: Option<String>,
    /// Its `description`.
    pub description: Option<String>,
    /// Its `available_instances`.
    pub available: Option<i32>,
}

/// The type as a share of its card; `functions` virtual functions carry one each, where they carry them.
pub fn placement(found: &MdevType, functions: Option<i32>) -> Placement {
    let said = found.description.as_deref().map(description).unwrap_or_default();
    let name = found.name.as_deref().and_then(vgpu_type::parse);
    let text = found.name.as_deref().map(vgpu_type::short).filter(|name| !name.is_empty());
    let unknown = vgpu_type::VgpuName {
        name: text.unwrap_or(&found.id).chars().take(64).collect(),
        slices: None,
        framebuffer_mib: said.framebuffer_mib.unwrap_or(0),
        series: gpudesk_crds::types::VgpuSeries::Q,
    };
    let known = name.is_some();
    let mut placement = vgpu_type::placement(name.as_ref().unwrap_or(&unknown), &found.id);
    if !known {
        placement.series = None;
        placement.mode = ShareMode::Vgpu;
    }
    // A function carries one, however many the card could hold; what is free tells what fits at least.
    let most = said.max_instances.or(found.available.filter(|_| functions.is_none()));
    placement.max_count = match (most, functions) {
        (Some(most), Some(functions)) => most.min(functions),
        (Some(most), None) => most,
        (None, _) => 0,
    };
    placement.framebuffer_mib = said.framebuffer_mib.unwrap_or(placement.framebuffer_mib);
    placement.heads = said.heads;
    placement.max_resolution = said.max_resolution;
    placement.frame_rate_limit = said.frame_rate_limit;
    placement.available = found.available.map(|available| available.clamp(0, 4096));
    placement
}

/// The number of one of NVIDIA's types: `nvidia-222` is 222, the number that other interfaces have for it.
pub fn nvidia_number(type_id: &str) -> Option<u32> {
    type_id.strip_prefix("nvidia-")?.parse().ok().filter(|number| *number > 0)
}

/// The UUID and the function that carries it, from where a link of `/sys/bus/mdev/devices` points:
/// `../../../devices/pci0000:00/0000:08:00.4/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001`.
pub fn parent(link: &str) -> Option<(String, PciAddress)> {
    let mut parts = link.trim_end_matches('/').rsplit('/');
    let uuid: Uuid = parts.next()?.parse().ok()?;
    let parent = parts.find_map(|part| part.parse().ok())?;
    Some((uuid.to_string(), parent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpudesk_crds::types::VgpuSeries;
    use proptest::prelude::*;

    fn a2() -> MdevType {
        MdevType {
            id: "nvidia-745".into(),
            name: Some("NVIDIA A2-1Q\n".into()),
            description: Some(
                "num_heads=4, frl_config=60, framebuffer=1024M, max_resolution=5120x2880, max_instance=16\n"
                    .into(),
            ),
            available: Some(1),
        }
    }

    #[test]
    fn all_five_fields_of_a_description_are_read() {
        let found = placement(&a2(), None);
        assert_eq!((found.type_name.as_str(), found.series), ("A2-1Q", Some(VgpuSeries::Q)));
        assert_eq!((found.heads, found.frame_rate_limit), (Some(4), Some(60)));
        assert_eq!((found.framebuffer_mib, found.max_count), (1024, 16));
        assert_eq!(found.max_resolution.as_deref(), Some("5120x2880"));
        assert_eq!(found.driver_id.as_deref(), Some("nvidia-745"));
    }

    #[test]
    fn functions_that_carry_one_each_bound_what_fits() {
        assert_eq!(placement(&a2(), Some(8)).max_count, 8);
        assert_eq!(placement(&a2(), Some(32)).max_count, 16);
    }

    #[test]
    fn a_type_without_name_and_description_keeps_its_id() {
        let bare = MdevType { id: "mtty-2".into(), available: Some(24), ..MdevType::default() };
        let found = placement(&bare, None);
        assert_eq!((found.type_name.as_str(), found.max_count, found.series), ("mtty-2", 24, None));
    }

    #[test]
    fn unknown_keys_are_passed_over_and_lines_are_pairs_too() {
        let found = description(
            "low_gm_size: 128MB\nhigh_gm_size: 512MB\nfence: 4\nresolution: 1920x1200\nweight: 4\n",
        );
        assert_eq!(found.framebuffer_mib, Some(128));
        assert_eq!(found.max_resolution.as_deref(), Some("1920x1200"));
        assert_eq!(description("2 ports, x=1, num_heads=banana").heads, None);
    }

    #[test]
    fn a_device_names_the_function_that_carries_it() {
        let link =
            "../../../devices/pci0000:00/0000:00:02.0/0000:08:00.4/83B8F4F2-509f-382f-3c1e-e6bfe0fa1001";
        let (uuid, parent) = parent(link).unwrap();
        assert_eq!(uuid, "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001");
        assert_eq!(parent.to_string(), "0000:08:00.4");
        assert_eq!(
            super::parent("../../../devices/virtual/mtty/mtty/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"),
            None
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "([a-z_0-9=:, MG\n]|\\PC){0,300}", id in "\\PC{0,100}", link in "\\PC{0,200}") {
            let found = MdevType { id, name: Some(text.clone()), description: Some(text), available: Some(-3) };
            let placement = placement(&found, Some(4));
            prop_assert!(placement.max_count >= 0 && placement.type_name.chars().count() <= 64);
            let _ = parent(&link);
        }
    }
}
