//! What a machine is put together from, besides CPUs, memory and GPUs: where its disks come from,
//! what it boots, its first-boot configuration. The template with the overrides that it permits.

use std::path::PathBuf;

use gpudesk_crds::{
    Desktop, DesktopTemplate,
    desktop_template::{Cpu, DesktopTemplateSpec, Firmware, Override},
    desktop_template_devices::{CloudInit, Disk, DiskBus, DiskFormat, HostFileDisk, ImageDisk, SizedDisk},
};
use rustix::io::Errno;

use super::problem::Problem;
use crate::host::{
    folder::{FolderFiles, bytes},
    image_file::{Closed, Found, ImageFile},
    images::{Golden, Identity, ImageError, ImageStore},
    paths::AllowedRoots,
};
use crate::qcow2::HeaderError;

/// What a machine is put together from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Materials {
    /// Disks in the order of the template.
    pub disks: Vec<DiskMaterial>,
    /// The kernel that is started without firmware, and its initial RAM disk.
    pub kernel: Option<(PathBuf, Option<PathBuf>)>,
    /// First-boot configuration.
    pub cloud_init: Option<CloudInit>,
    /// The seed disk is made.
    pub has_seed: bool,
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
    /// There is nothing to make before the machine is described to libvirt.
    pub made: bool,
}

/// What a disk is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An overlay of a golden image, as large as that or larger.
    Overlay {
        /// The image. Of a disk that is there, the one that its header names.
        golden: Golden,
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
        /// As it is at this moment; `None` on a simulated host.
        file: Option<ImageFile>,
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
    /// Finds everything that `template` names on this node, and looks at the header of every image: what
    /// a guest could have written since the last start counts, not what was there then. May block.
    ///
    /// # Errors
    /// What is not there, may not be used, or is not done by this version.
    pub fn find(
        desktop: &Desktop,
        template: &DesktopTemplate,
        images: &ImageStore,
        roots: &AllowedRoots,
        folder: &FolderFiles,
    ) -> Result<Self, Problem> {
        let spec = &template.spec;
        refuse_unsupported(spec)?;
        let place = Place { images, roots, folder };
        // A drive of the host is made from nothing here.
        let disks = spec.disks.iter().filter(|disk| disk.nvme.is_none());
        let disks = disks.map(|disk| place.material(disk)).collect::<Result<_, _>>()?;
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
        let has_seed = FolderFiles::exists(&folder.file("seed.img"))?;
        Ok(Self { disks, kernel, cloud_init: cloud_init(desktop, spec).cloned(), has_seed })
    }

    /// Every image that is not the desktop's own, and whether the guest writes to it.
    pub fn shared_files(&self) -> impl Iterator<Item = (&ImageFile, bool)> {
        self.disks.iter().filter_map(|disk| match &disk.origin {
            Origin::Overlay { golden, .. } => Some((golden.file.as_ref()?, false)),
            Origin::HostFile { file, read_only, .. } => Some((file.as_ref()?, !read_only)),
            Origin::Blank { .. } | Origin::Scratch { .. } => None,
        })
    }

    /// What QEMU's user reads as everybody else may, and perhaps may not.
    pub fn closed(&self) -> Option<&Closed> {
        self.shared_files().filter(|(_, writes)| !writes).find_map(|(file, _)| file.closed.as_ref())
    }
}

/// Where disks are found.
struct Place<'a> {
    images: &'a ImageStore,
    roots: &'a AllowedRoots,
    folder: &'a FolderFiles,
}

impl Place<'_> {
    fn material(&self, disk: &Disk) -> Result<DiskMaterial, Problem> {
        let Disk { name, bus, image, blank, host_file, nfs: _, scratch, nvme: _ } = disk;
        let (origin, made) = match (image, blank, host_file, scratch) {
            (Some(ImageDisk { size_gib, .. }), None, None, None) => match self.own(name, *size_gib)? {
                Some(origin) => (origin, true),
                None => (self.overlay(name, image.as_ref())?, false),
            },
            (None, Some(SizedDisk { size_gib }), None, None) => match self.own(name, Some(*size_gib))? {
                Some(origin) => (origin, true),
                None => (Origin::Blank { size_gib: *size_gib }, false),
            },
            (None, None, None, Some(SizedDisk { size_gib })) => {
                (Origin::Scratch { size_gib: *size_gib }, true)
            }
            (None, None, Some(file), None) => (self.host_file(name, file)?, true),
            _ => return Err(Problem::Invalid(format!("disks[{name}] must have exactly one source"))),
        };
        Ok(DiskMaterial { name: name.clone(), bus: *bus, origin, made })
    }

    /// The disk that this desktop has already, when it has. It stays what it is, whatever image the
    /// template names by now: an overlay cannot change what is below it.
    fn own(&self, name: &str, size_gib: Option<i32>) -> Result<Option<Origin>, Problem> {
        if self.images.is_pretended() {
            return Ok(None);
        }
        let path = self.folder.disk(name);
        let unreadable = |source| ImageError::Unreadable { path: path.clone(), source };
        let no_image = |source| ImageError::Header { path: path.clone(), source };
        let found = match Found::at(&path) {
            Ok(found) => found.ok_or(HeaderError::NotQcow2).map_err(no_image)?,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(unreadable(error).into()),
        };
        let header = found.header().map_err(unreadable)?.map_err(no_image)?;
        let Some(golden) = self.images.below(&path, &header)? else {
            return Ok(Some(Origin::Blank { size_gib: size_gib.unwrap_or_default() }));
        };
        // A disk of an earlier version has no record; it gets one at its next start.
        let was: Option<Identity> = self.folder.read_json(&FolderFiles::golden_record(name))?;
        match (was, golden.identity()) {
            (Some(was), Some(is)) if was != is => Err(ImageError::Changed {
                path,
                golden: golden.path,
                was: was.to_string(),
                is: is.to_string(),
            }
            .into()),
            _ => Ok(Some(Origin::Overlay { golden, size_gib })),
        }
    }

    /// A new overlay.
    fn overlay(&self, disk: &str, image: Option<&ImageDisk>) -> Result<Origin, Problem> {
        let Some(ImageDisk { name: Some(name), size_gib, .. }) = image else {
            return Err(Problem::Invalid(format!("disks[{disk}].image names no image")));
        };
        let (golden, size_gib) = (self.images.image(name)?, *size_gib);
        match size_gib {
            Some(size_gib) if bytes(size_gib) < golden.virtual_size => Err(ImageError::LargerThanDisk {
                disk: disk.into(),
                size_gib,
                image: golden.path,
                bytes: golden.virtual_size,
            }
            .into()),
            _ => Ok(Origin::Overlay { golden, size_gib }),
        }
    }

    fn host_file(&self, disk: &str, named: &HostFileDisk) -> Result<Origin, Problem> {
        let HostFileDisk { path, format, read_only } = named;
        let (format, read_only) = (*format, *read_only);
        let odd = |source| Problem::Path { disk: disk.into(), source };
        if self.images.is_pretended() {
            return Ok(Origin::HostFile {
                path: self.roots.pretend_file(path).map_err(odd)?,
                file: None,
                format,
                read_only,
            });
        }
        let found = self.roots.file(path, !read_only).map_err(odd)?;
        if format == DiskFormat::Qcow2 {
            let refused = |why| ImageError::HostFile { disk: disk.into(), path: path.into(), why };
            let unreadable = |source: Errno| refused(format!("it could not be read: {source}"));
            let header = found.header().map_err(unreadable)?.map_err(|error| refused(error.to_string()))?;
            header.check_alone().map_err(|error| refused(error.to_string()))?;
        }
        Ok(Origin::HostFile { path: found.file.path.clone(), file: Some(found.file), format, read_only })
    }
}

/// The operator does not place desktops that ask for these; a node that is asked all the same must
/// not make half of a machine.
fn refuse_unsupported(spec: &DesktopTemplateSpec) -> Result<(), Problem> {
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
        refuse(disk.image.as_ref().is_some_and(|image| image.url.is_some()), "disks[].image.url");
    }
    for network in &spec.networks {
        refuse(network.ovs.is_some(), "networks[].ovs");
    }
    if fields.is_empty() { Ok(()) } else { Err(Problem::NotYetSupported { fields: fields.join(", ") }) }
}

#[cfg(test)]
#[path = "materials_tests.rs"]
mod tests;
