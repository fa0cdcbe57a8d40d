//! The PCI device beside a card, where the world names a sysfs: vGPUs are made there, on its virtual
//! functions, and a driver that plays NVIDIA's is told there of GPU instances.
#![expect(clippy::disallowed_methods, reason = "adapter: reads and writes sysfs")]

use std::{
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    cards::VgpuType,
    state::{Address, CardState},
    world::Vgpu,
};

/// A file of that driver alone: what NVML knows of the card, for its lists of types.
const INSTANCES: &str = "gpu_instances";

/// What is on the virtual functions of a card.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beside {
    /// How many there are.
    pub(crate) functions: u32,
    /// Those that have a type, whether somebody runs on them or not.
    pub(crate) vgpus: Vec<Vgpu>,
}

fn device(sysfs: &Path, address: Address) -> PathBuf {
    sysfs.join("bus/pci/devices").join(address.to_string())
}

fn number(file: PathBuf) -> Option<u32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Whether the driver has the card.
pub(crate) fn is_bound(sysfs: &Path, address: Address) -> bool {
    let driver = fs::read_link(device(sysfs, address).join("driver"));
    driver.is_ok_and(|driver| driver.file_name().is_some_and(|name| name == "nvidia"))
}

/// How often a card was given to the driver, where that counts it.
pub(crate) fn bindings(sysfs: &Path, address: Address) -> u32 {
    number(device(sysfs, address).join(INSTANCES)).unwrap_or(0)
}

pub(crate) fn look(sysfs: &Path, address: Address, types: &[VgpuType]) -> Beside {
    let device = device(sysfs, address);
    let functions = number(device.join("sriov_numvfs")).unwrap_or(0);
    let vgpu = |function: u32| {
        let folder = device.join(format!("virtfn{function}/nvidia"));
        let id = number(folder.join("current_vgpu_type")).filter(|id| *id != 0)?;
        let known = types.iter().find(|kind| kind.id == id);
        Some(Vgpu {
            type_name: known.map_or_else(String::new, |kind| kind.name.clone()),
            placement: number(folder.join("placement_id")),
            gpu_instance: number(folder.join("gpu_instance_id")),
            ..Vgpu::default()
        })
    };
    Beside { functions, vgpus: (0..functions).filter_map(vgpu).collect() }
}

/// Tells the driver of the device, where it has a file for it: the modes first, then an instance a line.
pub(crate) fn tell(sysfs: &Path, card: &CardState) -> io::Result<()> {
    let file = device(sysfs, card.address).join(INSTANCES);
    if !file.exists() {
        return Ok(());
    }
    let made = &card.made;
    let mut text = format!("mig {} mixed {}\n", u8::from(made.mig), u8::from(made.mixed_size));
    for instance in &made.instances {
        let size = card.profile(instance.profile).map_or(0, |profile| profile.size);
        let (id, profile, start) = (instance.id, instance.profile, instance.start);
        let (ready, mixed) = (u8::from(!instance.compute.is_empty()), u8::from(instance.mixed_size));
        let _ = writeln!(text, "{id} profile {profile} at {start} size {size} ready {ready} mixed {mixed}");
    }
    fs::write(file, text)
}
