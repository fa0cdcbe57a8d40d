//! What a machine is put together from, besides CPUs, memory and GPUs: where its disks come from,
//! what it boots, its first-boot configuration. The template with the overrides that it permits.

use std::path::PathBuf;

use gpudesk_crds::{
    Allocation, Desktop, DesktopTemplate,
    desktop_template::{Cpu, DesktopTemplateSpec, Firmware, Override},
    desktop_template_devices::{CloudInit, Disk, DiskBus, DiskFormat},
};

use super::{desired, problem::Problem};
use crate::host::{images::ImageStore, paths::AllowedRoots};

/// What a machine is put together from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Materials {
    /// Disks in the order of the template.
    pub disks: Vec<DiskMaterial>,
    /// The kernel that is started without firmware, and its initial RAM disk.
    pub kernel: Option<(PathBuf, Option<PathBuf>)>,
    /// First-boot configuration.
    pub cloud_init: Option<CloudInit>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskMaterial {
    /// Its name.
    pub name: String,
    /// How the guest sees it.
    pub bus: DiskBus,
    /// What it is made from.
    pub origin: Origin,
}

/// What a disk is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An overlay of a golden image, as large as that or larger.
    Overlay {
        /// The image.
        golden: PathBuf,
        /// Size in GiB, when larger.
        size_gib: Option<i32>,
    },
    /// Empty, for the life of the desktop.
    Blank {
        /// Size in GiB.
        size_gib: i32,
    },
    /// Empty at every start.
    Scratch {
        /// Size in GiB.
        size_gib: i32,
    },
    /// A file of the host, as it is.
    HostFile {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: DiskFormat,
        /// The guest may only read.
        read_only: bool,
    },
}

/// The processors: those of the desktop where the template permits, else of the template.
pub fn cpu<'a>(desktop: &'a Desktop, template: &'a DesktopTemplateSpec) -> &'a Cpu {
    let own = desktop.spec.overrides.as_ref().and_then(|overrides| overrides.cpu.as_ref());
    own.filter(|_| template.allow_overrides.contains(&Override::Cpu)).unwrap_or(&template.cpu)
}

fn cloud_init<'a>(desktop: &'a Desktop, template: &'a DesktopTemplateSpec) -> Option<&'a CloudInit> {
    let own = desktop.spec.overrides.as_ref().and_then(|overrides| overrides.cloud_init.as_ref());
    own.filter(|_| template.allow_overrides.contains(&Override::CloudInit)).or(template.cloud_init.as_ref())
}

impl Materials {
    /// Finds everything that `template` names on this node.
    ///
    /// # Errors
    /// What is not there, may not be used, or is not done by this version.
    pub fn find(
        desktop: &Desktop,
        template: &DesktopTemplate,
        images: &ImageStore,
        roots: &AllowedRoots,
    ) -> Result<Self, Problem> {
        let spec = &template.spec;
        refuse_unsupported(spec, desired::allocation(desktop))?;
        let disks = spec.disks.iter().map(|disk| material(disk, images, roots)).collect::<Result<_, _>>()?;
        let kernel = match (&spec.machine.firmware, &spec.machine.direct_kernel) {
            (Firmware::DirectKernel, Some(direct)) => {
                let initrd = direct.initrd.as_ref().map(|initrd| images.kernel(initrd)).transpose()?;
                Some((images.kernel(&direct.kernel)?, initrd))
            }
            (Firmware::DirectKernel, None) => {
                return Err(Problem::Invalid(
                    "machine.firmware DirectKernel needs machine.directKernel".into(),
                ));
            }
            (Firmware::Uefi | Firmware::UefiSecureBoot | Firmware::Bios, _) => None,
        };
        Ok(Self { disks, kernel, cloud_init: cloud_init(desktop, spec).cloned() })
    }
}

fn material(disk: &Disk, images: &ImageStore, roots: &AllowedRoots) -> Result<DiskMaterial, Problem> {
    let Disk { name, bus, image, blank, host_file, nfs: _, scratch, nvme: _ } = disk;
    let origin = match (image, blank, host_file, scratch) {
        (Some(image), None, None, None) => match &image.name {
            Some(image_name) => {
                Origin::Overlay { golden: images.image(image_name)?, size_gib: image.size_gib }
            }
            None => return Err(Problem::Invalid(format!("disks[{name}].image names no image"))),
        },
        (None, Some(blank), None, None) => Origin::Blank { size_gib: blank.size_gib },
        (None, None, None, Some(scratch)) => Origin::Scratch { size_gib: scratch.size_gib },
        (None, None, Some(file), None) => {
            let path = if images.is_pretended() {
                roots.pretend_file(&file.path)?
            } else {
                roots.file(&file.path)?
            };
            Origin::HostFile { path, format: file.format, read_only: file.read_only }
        }
        _ => return Err(Problem::Invalid(format!("disks[{name}] must have exactly one source"))),
    };
    Ok(DiskMaterial { name: name.clone(), bus: *bus, origin })
}

/// The operator does not place desktops that ask for these; a node that is asked all the same must
/// not make half of a machine.
fn refuse_unsupported(spec: &DesktopTemplateSpec, allocation: Option<&Allocation>) -> Result<(), Problem> {
    let mut fields = vec![];
    let mut refuse = |condition: bool, field: &str| {
        if condition {
            fields.push(field.to_owned());
        }
    };
    refuse(!spec.filesystems.is_empty(), "filesystems");
    refuse(spec.machine.tpm, "machine.tpm");
    refuse(spec.consoles.spice.is_some(), "consoles.spice");
    refuse(spec.consoles.on_gpu, "consoles.onGpu");
    let password = spec.consoles.vnc.as_ref().is_some_and(|vnc| vnc.password_secret_ref.is_some());
    refuse(password, "consoles.vnc.passwordSecretRef");
    for disk in &spec.disks {
        refuse(disk.nfs.is_some(), "disks[].nfs");
        refuse(disk.nvme.is_some(), "disks[].nvme");
        refuse(disk.image.as_ref().is_some_and(|image| image.url.is_some()), "disks[].image.url");
    }
    for network in &spec.networks {
        refuse(network.ovs.is_some(), "networks[].ovs");
        refuse(network.sriov.is_some(), "networks[].sriov");
    }
    for device in allocation.map_or(&[][..], |allocation| &allocation.host_devices) {
        refuse(true, &format!("allocation.hostDevices[{}] ({})", device.name, device.device));
    }
    if fields.is_empty() { Ok(()) } else { Err(Problem::NotYetSupported { fields: fields.join(", ") }) }
}
