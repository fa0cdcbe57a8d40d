//! From allocation and template to the libvirt domain. Pure.
//!
//! CPUs, memory, pages, NUMA cells and GPUs come from the allocation alone.

use std::{
    num::{NonZeroU32, NonZeroU64},
    path::PathBuf,
};

use gpudesk_crds::{
    Allocation, Compute, DesktopTemplate, GuestCell,
    desktop_template::{Cpu as TemplateCpu, Firmware as TemplateFirmware, Machine, MachineType},
    desktop_template_devices::{DiskBus, DiskFormat, Network},
    domain_name,
    gpu_node_status::{Bar, Device, HostDevice},
    types::{PciAddress as ApiPciAddress, ShareMode},
};
use uuid::Uuid;

use super::{
    cells::{self, out_of_range},
    conflict,
    materials::{Materials, Origin},
    problem::Problem,
};
use crate::{
    domain::{
        Cache, Cpu, CpuModel, CpuSet, DirectKernel, Disk, DomainMetadata, DomainSpec, Firmware, Given,
        Graphics, Hostdev, Image, ImageFormat, ImageSource, Interface, Kind, Link, MacAddress, MdevDisplay,
        Microvm, PciAddress, Pinning, Platform, Q35, QemuProcess, Screen, Slot, Topology, Uefi, Video,
    },
    host::{
        folder::{DesktopFolder, Owner},
        gpu_driver::{GpuInstance, Handle},
    },
};

/// Everything that a domain is made from.
pub struct Parts<'a> {
    /// The desktop.
    pub owner: &'a Owner,
    /// What it was given.
    pub allocation: &'a Allocation,
    /// CPUs and memory of the allocation.
    pub compute: &'a Compute,
    /// Its template.
    pub template: &'a DesktopTemplate,
    /// The processors, with what the desktop overrides.
    pub cpu: &'a TemplateCpu,
    /// Disks and kernel.
    pub materials: &'a Materials,
    /// Its folder.
    pub folder: &'a DesktopFolder,
    /// Shares of GPUs made for it.
    pub instances: &'a [GpuInstance],
    /// Cards of the host.
    pub cards: &'a [Device],
    /// Its network cards and drives.
    pub host_devices: &'a [HostDevice],
    /// What runs it.
    pub kind: Kind,
    /// As whom QEMU runs.
    pub process: Option<QemuProcess>,
}

/// What the metadata says of this desktop and allocation: what it holds, without how that was
/// decided.
pub fn metadata(parts: &Parts<'_>) -> Result<DomainMetadata, Problem> {
    let held = parts.allocation.held();
    let allocation = serde_json::to_string(&held)
        .map_err(|error| Problem::Invalid(format!("the allocation cannot be written down: {error}")))?;
    Ok(DomainMetadata {
        desktop_uid: parts.owner.uid,
        namespace: parts.owner.namespace.clone(),
        name: parts.owner.name.clone(),
        daemon_version: env!("CARGO_PKG_VERSION").into(),
        template_generation: parts.template.metadata.generation.unwrap_or_default(),
        restarted_at: parts.allocation.restarted_at.clone(),
        allocation,
    })
}

/// The domain.
///
/// # Errors
/// [`Problem::Invalid`] for what the validation rules of the API should have refused.
pub fn domain(parts: &Parts<'_>) -> Result<DomainSpec, Problem> {
    let uuid = parts.owner.uid;
    let spec = &parts.template.spec;
    let kernel = direct_kernel(&spec.machine, parts);
    let cells = cells::shown(parts.compute, spec.machine.machine_type)?;
    let platform = match spec.machine.machine_type {
        MachineType::Q35 => Platform::Q35(Box::new(Q35 {
            firmware: firmware(parts, kernel)?,
            tpm: None,
            hyperv: spec.machine.hyperv,
            disks: disks(parts),
            filesystems: vec![],
            hostdevs: hostdevs(parts, &cells)?,
            screen: spec.consoles.vnc.as_ref().map(|_| screen()),
            agent: spec.guest_agent,
        })),
        MachineType::Microvm
            if !parts.allocation.gpus.is_empty() || !parts.allocation.host_devices.is_empty() =>
        {
            let why = "a microvm has no PCI bus and cannot have a GPU, a network function or a drive";
            return Err(Problem::Invalid(why.into()));
        }
        MachineType::Microvm => Platform::Microvm(Microvm {
            kernel: kernel.ok_or_else(|| Problem::Invalid("a microvm needs machine.directKernel".into()))?,
            disks: disks(parts).into_iter().map(|disk| disk.image).collect(),
            agent: spec.guest_agent,
        }),
    };
    Ok(DomainSpec {
        uuid,
        name: domain_name(&parts.owner.namespace, &parts.owner.name),
        kind: parts.kind,
        cpu: cpu(parts)?,
        memory: cells::memory(parts.compute, &cells)?,
        platform,
        interfaces: interfaces(uuid, &spec.networks)?,
        // The test driver has no process that would write it.
        serial_log: (parts.kind != Kind::Test).then(|| parts.folder.file("serial.log")),
        process: parts.process,
        metadata: metadata(parts)?,
    })
}

/// Whether a machine of this template has a user network.
pub fn has_user_network(template: &DesktopTemplate) -> bool {
    template.spec.networks.iter().any(|network| network.user.is_some())
}

fn cpu(parts: &Parts<'_>) -> Result<Cpu, Problem> {
    let compute = parts.compute;
    let count = |field, value: i32| {
        u32::try_from(value).ok().and_then(NonZeroU32::new).ok_or_else(|| out_of_range(field, value))
    };
    let pins = compute.vcpu_pins.iter().map(|pin| {
        let cpus = CpuSet::new(pin.cpus.iter()).ok_or_else(|| out_of_range("vcpuPins[].cpus", "empty"))?;
        let vcpu = u32::try_from(pin.vcpu).map_err(|_| out_of_range("vcpuPins[].vcpu", pin.vcpu))?;
        Ok((vcpu, cpus))
    });
    let emulator = compute.emulator_cpus.as_ref().and_then(|cpus| CpuSet::new(cpus.iter()));
    Ok(Cpu {
        model: match parts.cpu.model.as_str() {
            "host-passthrough" => CpuModel::HostPassthrough,
            "host-model" => CpuModel::HostModel,
            name => CpuModel::Named(name.into()),
        },
        topology: Topology {
            cores: count("cores", compute.cores)?,
            threads: count("threadsPerCore", compute.threads_per_core)?,
        },
        pinning: Pinning {
            vcpus: pins.collect::<Result<_, Problem>>()?,
            // One thread for disks beside the emulator's, where those have CPUs of their own. A microvm
            // has no disk that could use it.
            io_threads: match (&emulator, parts.template.spec.machine.machine_type) {
                (Some(cpus), MachineType::Q35) => vec![Some(cpus.clone())],
                (None, _) | (Some(_), MachineType::Microvm) => vec![],
            },
            emulator,
        },
    })
}

/// The copies in the desktop's folder: libvirt gives them to QEMU's user, and the node's own are read by
/// other desktops.
fn direct_kernel(machine: &Machine, parts: &Parts<'_>) -> Option<DirectKernel> {
    let (_, initrd) = parts.materials.kernel.as_ref()?;
    let cmdline = machine.direct_kernel.as_ref().and_then(|direct| direct.command_line.clone());
    let initrd = initrd.as_ref().map(|_| parts.folder.initrd());
    Some(DirectKernel { kernel: parts.folder.kernel(), initrd, cmdline })
}

fn firmware(parts: &Parts<'_>, kernel: Option<DirectKernel>) -> Result<Firmware, Problem> {
    let uefi = |secure_boot| {
        Firmware::Uefi(Uefi {
            secure_boot,
            variables: (parts.kind != Kind::Test).then(|| parts.folder.file("uefi-vars.fd")),
            pci_window_mib: pci_window(parts),
        })
    };
    Ok(match parts.template.spec.machine.firmware {
        TemplateFirmware::Bios => Firmware::Bios,
        TemplateFirmware::Uefi => uefi(false),
        TemplateFirmware::UefiSecureBoot => uefi(true),
        TemplateFirmware::DirectKernel => Firmware::DirectKernel(kernel.ok_or_else(|| {
            Problem::Invalid("machine.firmware DirectKernel needs machine.directKernel".into())
        })?),
    })
}

/// Twice the memory regions of the whole cards given, as a power of two; `None` where the firmware's
/// own 32 GiB do.
fn pci_window(parts: &Parts<'_>) -> Option<NonZeroU64> {
    let whole = parts.allocation.gpus.iter().filter(|gpu| gpu.mode == ShareMode::Passthrough);
    let cards = whole.filter_map(|gpu| parts.cards.iter().find(|card| card.pci_address == gpu.device));
    // What the host was last looked at may be older than the size that the card was given.
    let size = |card: &Device, bar: &Bar| {
        let resizable = card.resizable_bar.as_ref().filter(|resizable| resizable.index == bar.index);
        let given = resizable.and(parts.instances.iter().find(|one| one.card == card.pci_address)?.bar_mib);
        given.map(|mib| mib.saturating_mul(1 << 20))
    };
    let sizes = cards.flat_map(|card| card.bars.iter().map(move |bar| (card, bar)));
    let bytes = sizes.map(|(card, bar)| bar.size_bytes.max(size(card, bar).unwrap_or(0)));
    let bytes = bytes.fold(0_i64, i64::saturating_add);
    let mib = u64::try_from(bytes).ok()?.saturating_mul(2).div_ceil(1 << 20);
    NonZeroU64::new(mib.checked_next_power_of_two()?).filter(|window| window.get() > 32 << 10)
}

fn disks(parts: &Parts<'_>) -> Vec<Disk> {
    let slot = |bus| match bus {
        DiskBus::Virtio => Slot::Virtio,
        DiskBus::Sata => Slot::Sata,
        DiskBus::Scsi => Slot::Scsi,
    };
    let mut disks: Vec<Disk> = vec![];
    for (order, disk) in (1..).zip(&parts.materials.disks) {
        let backing = match &disk.origin {
            Origin::Overlay { golden, .. } => Some(golden.path.clone()),
            Origin::Blank { .. } | Origin::Scratch { .. } | Origin::HostFile { .. } => None,
        };
        let (path, format, read_only, cache) = match &disk.origin {
            Origin::Overlay { .. } | Origin::Blank { .. } => {
                (parts.folder.disk(&disk.name), ImageFormat::Qcow2, false, Cache::Writeback)
            }
            Origin::Scratch { .. } => {
                (parts.folder.scratch(&disk.name), ImageFormat::Qcow2, false, Cache::Unsafe)
            }
            Origin::HostFile { path, file: _, format, read_only } => {
                let format = match format {
                    DiskFormat::Raw => ImageFormat::Raw,
                    DiskFormat::Qcow2 => ImageFormat::Qcow2,
                };
                (path.clone(), format, *read_only, Cache::Writeback)
            }
        };
        let image = Image {
            boot: NonZeroU32::new(order),
            serial: (disk.name.len() <= 20).then(|| disk.name.clone()),
            backing,
            // What the guest only reads stays its owner's; libvirt would not give it back.
            keeps_owner: read_only,
            ..image(path, format, read_only, cache)
        };
        disks.push(Disk { image, slot: slot(disk.bus) });
    }
    if parts.materials.cloud_init.is_some() {
        // On the bus of the first disk, for which the guest has a driver.
        let slot = disks.first().map_or(Slot::Virtio, |disk| disk.slot);
        disks
            .push(Disk { image: image(parts.folder.seed(), ImageFormat::Raw, true, Cache::Writeback), slot });
    }
    disks
}

fn image(path: PathBuf, format: ImageFormat, read_only: bool, cache: Cache) -> Image {
    let source = ImageSource::File(path);
    Image { source, format, backing: None, read_only, keeps_owner: false, serial: None, cache, boot: None }
}

fn interfaces(uuid: Uuid, networks: &[Network]) -> Result<Vec<Interface>, Problem> {
    // A function of a network card is a device of its own; its place in the list is in its address.
    let made = (0..=u8::MAX).zip(networks).filter(|(_, network)| network.sriov.is_none());
    let interface = |(index, network): (u8, &Network)| {
        let link = match network {
            Network { user: Some(_), bridge: None, libvirt_network: None, .. } => Link::User,
            Network { user: None, bridge: Some(bridge), libvirt_network: None, .. } => {
                Link::Bridge(bridge.name.clone())
            }
            Network { user: None, bridge: None, libvirt_network: Some(net), .. } => {
                Link::LibvirtNetwork(net.name.clone())
            }
            network => {
                return Err(Problem::Invalid(format!(
                    "networks[{}] must have exactly one kind",
                    network.name
                )));
            }
        };
        Ok(Interface { mac: MacAddress::of_desktop(uuid, index), link, boot: None })
    };
    made.map(interface).collect()
}

fn hostdevs(parts: &Parts<'_>, cells: &[&GuestCell]) -> Result<Vec<Given>, Problem> {
    let mut hostdevs = vec![];
    for gpu in &parts.allocation.gpus {
        let card = parts.cards.iter().find(|card| card.pci_address == gpu.device);
        let guest_cell = cells::of_card(card, cells);
        let mut give = |device| hostdevs.push(Given { device, guest_cell });
        let instance = parts.instances.iter().find(|instance| instance.key.request == gpu.name);
        let instance = instance
            .filter(|instance| !instance.pending)
            .ok_or_else(|| Problem::Internal(format!("the share {} of a GPU is not made", gpu.name)))?;
        give(match &instance.handle {
            Handle::Mdev(id) => Hostdev::Mdev {
                uuid: id.parse().map_err(|_| Problem::Internal(format!("{id:?} is no mdev UUID")))?,
                display: MdevDisplay::Off,
            },
            Handle::Function(address) => function(*address)?,
            Handle::NotYet => return Err(Problem::Internal(format!("the share {} has no device", gpu.name))),
        });
        // What is in a whole card's group, such as its sound, can only be given away with it.
        for companion in &instance.companions {
            give(function(*companion)?);
        }
    }
    for device in &parts.allocation.host_devices {
        let request = conflict::request(device);
        let instance = parts.instances.iter().find(|instance| instance.key.request == request);
        let made = instance.filter(|instance| !instance.pending && instance.card == device.device);
        if made.is_none() {
            return Err(Problem::Internal(format!("{} ({request}) is not made", device.device)));
        }
        let owner = device.parent.unwrap_or(device.device);
        let seen = parts.host_devices.iter().find(|seen| seen.pci_address == owner);
        let guest_cell = cells::of_host(seen.and_then(|seen| seen.numa_cell), cells);
        hostdevs.push(Given { device: function(device.device)?, guest_cell });
    }
    Ok(hostdevs)
}

fn function(address: ApiPciAddress) -> Result<Hostdev, Problem> {
    let ApiPciAddress { domain, bus, device, function } = address;
    let domain = u16::try_from(domain)
        .map_err(|_| Problem::Invalid(format!("{address}: libvirt gives no devices of such a PCI domain")))?;
    Ok(Hostdev::Pci { address: PciAddress { domain, bus, device, function }, managed: false })
}

fn screen() -> Screen {
    Screen { server: Graphics::Vnc, video: Video::Vga }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
