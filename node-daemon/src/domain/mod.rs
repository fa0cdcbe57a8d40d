//! A libvirt domain as a type, and its XML.
//!
//! ```text
//!                 DomainSpec
//!    ┌───────┬────────┼─────────┬───────────┐           render()
//!   Cpu   Memory   Platform  Interface  DomainMetadata ─────────▶ XML ──▶ libvirt
//!                  ├ Q35: Firmware, Disk, Hostdev behind its cell's bus, Screen, Filesystem
//!                  └ Microvm: DirectKernel, Image
//!                                                        metadata::parse ◀┐
//!                                                        LiveDomain::parse ◀── libvirt
//! ```
//!
//! Everything here is pure. Each file knows one part of the format; [`DomainSpec::render`] puts them
//! in order. What libvirt would refuse late or change in silence is either not expressible (a
//! microvm with PCI devices, memory that disagrees with its cells, a CD-ROM on virtio, an empty CPU
//! set) or a [`DomainError`] before libvirt sees it.

mod agent;
mod capabilities;
mod cpu;
mod cpu_set;
mod disk;
mod error;
mod filesystem;
mod firmware;
mod graphics;
mod hostdev;
mod live;
mod memory;
pub mod metadata;
mod network;
mod pcie;
mod platform;
mod process;
mod xml;

use std::fmt::Display;
use std::path::{Path, PathBuf};

pub use agent::AGENT_CHANNEL;
pub use capabilities::{DomainCapabilities, HostCapabilities};
pub use cpu::{Cpu, CpuModel, Pinning, Topology};
pub use cpu_set::CpuSet;
pub use disk::{Cache, Disk, Image, ImageFormat, ImageSource, Slot};
pub use error::DomainError;
pub use filesystem::Filesystem;
pub use firmware::{DirectKernel, Firmware, Tpm, Uefi};
pub use graphics::{Graphics, Screen, Video};
pub use hostdev::{Given, Hostdev, MdevDisplay, PciAddress};
pub use live::{Endpoint, LiveDomain};
pub use memory::{GuestCell, HostCells, Memory, MemoryLayout, PageSize};
pub use metadata::{DomainMetadata, MetadataError};
pub use network::{Interface, Link, MacAddress};
pub use platform::{Microvm, Platform, Q35};
pub use process::QemuProcess;
pub use xml::NotXml;

use uuid::Uuid;
use xml::Xml;

/// A domain as the daemon wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainSpec {
    /// Its UUID: the Desktop's UID.
    pub uuid: Uuid,
    /// Its name: `<namespace>.<name>` of the Desktop.
    pub name: String,
    /// What runs it.
    pub kind: Kind,
    /// Processors.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// The machine and what only that machine can have.
    pub platform: Platform,
    /// Network interfaces, in the order the guest finds them.
    pub interfaces: Vec<Interface>,
    /// A file of the host that the first serial port is copied to, an absolute path.
    pub serial_log: Option<PathBuf>,
    /// As whom QEMU runs; `None` for libvirt's own choice.
    pub process: Option<QemuProcess>,
    /// What the domain carries about its Desktop.
    pub metadata: DomainMetadata,
}

/// What runs a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// QEMU with KVM.
    Kvm,
    /// QEMU alone, by emulation.
    Qemu,
    /// libvirt's test driver: nothing runs.
    Test,
}

impl Kind {
    /// As libvirt spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
            Self::Test => "test",
        }
    }
}

/// How virtio devices reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    /// By PCI; libvirt chooses the addresses.
    Pci,
    /// By memory-mapped registers; each device must say so.
    Mmio,
}

impl Transport {
    fn write_address(self, xml: &mut Xml) {
        match self {
            Self::Pci => {}
            Self::Mmio => xml.empty("address", &[("type", &"virtio-mmio")]),
        }
    }
}

impl DomainSpec {
    /// The domain's XML.
    ///
    /// The same spec gives the same bytes. A domain is destroyed when its guest crashes or powers
    /// off, so that the daemon sees the end and the template's restart policy decides what follows;
    /// a guest that reboots goes on.
    ///
    /// # Errors
    /// [`DomainError`] for what libvirt would refuse, or accept and change.
    pub fn render(&self) -> Result<String, DomainError> {
        self.check()?;
        let Self { uuid, name, kind, cpu, memory, platform, interfaces, serial_log, process, metadata } =
            self;
        let window = platform.pci_window_mib();
        let kind_name = kind.name();
        let mut attributes: Vec<(&'static str, &dyn Display)> = vec![("type", &kind_name)];
        if window.is_some() {
            attributes.push(("xmlns:qemu", &"http://libvirt.org/schemas/domain/qemu/1.0"));
        }
        let mut xml = Xml::new();
        xml.nest("domain", &attributes, |xml| {
            xml.text("name", &[], name);
            xml.text("uuid", &[], uuid);
            metadata.write(xml);
            memory.write_size(xml);
            memory.write_backing(xml, platform.shares_memory());
            cpu.write_tuning(xml);
            memory.write_place(xml);
            platform.write_machine(xml, *kind);
            cpu.write_model(xml, *kind, memory);
            platform.write_clock(xml, *kind);
            for (event, action) in
                [("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")]
            {
                xml.text(event, &[], action);
            }
            xml.nest("devices", &[], |xml| {
                platform.write_devices(xml, &cpu.pinning, interfaces);
                if let Some(log) = serial_log {
                    write_serial(xml, log);
                }
            });
            if let Some(process) = process {
                process.write(xml);
            }
            if let Some(mib) = window {
                firmware::write_pci_window(xml, mib);
            }
        });
        xml.finish()
    }

    fn check(&self) -> Result<(), DomainError> {
        let Self { uuid, name, kind: _, cpu, memory, platform, interfaces, serial_log, process: _, metadata } =
            self;
        if name.is_empty() || name.contains(['/', '\n']) {
            return Err(DomainError::Name { name: name.clone() });
        }
        if metadata.desktop_uid != *uuid {
            return Err(DomainError::ForeignMetadata { uuid: *uuid, desktop: metadata.desktop_uid });
        }
        cpu.check()?;
        memory.check(cpu.topology.vcpus())?;
        platform.check(memory.guest_cells().len(), interfaces.len())?;
        serial_log.as_deref().map_or(Ok(()), path_text)
    }
}

/// The first serial port: a terminal on the host, copied to a file that outlives the domain.
fn write_serial(xml: &mut Xml, log: &Path) {
    xml.nest("serial", &[("type", &"pty")], |xml| {
        xml.empty("log", &[("file", &log.display()), ("append", &"on")]);
        xml.empty("target", &[("port", &0)]);
    });
}

/// Whether a path can stand in a domain: absolute, and text.
fn path_text(path: &Path) -> Result<(), DomainError> {
    if path.is_absolute() && path.to_str().is_some() {
        Ok(())
    } else {
        Err(DomainError::Path { path: path.to_owned() })
    }
}
