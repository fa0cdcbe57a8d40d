//! The machine, and the devices that only it can have.

use std::num::NonZeroU64;

use super::disk::{Placer, write_scsi_controller};
use super::pcie::Buses;
use super::xml::{Xml, on_off};
use super::{
    DirectKernel, Disk, DomainError, Filesystem, Firmware, Given, Graphics, Hostdev, Image, Interface, Kind,
    Pinning, Screen, Slot, Tpm, Transport, Video, agent,
};

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platform {
    /// A PC with PCI Express: everything a desktop may have.
    Q35(Box<Q35>),
    /// QEMU's minimal machine: no PCI, no screen, no firmware; starts in half a second.
    Microvm(Microvm),
}

/// A PC with PCI Express.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Q35 {
    /// What runs first.
    pub firmware: Firmware,
    /// An emulated TPM.
    pub tpm: Option<Tpm>,
    /// What Windows guests like: Hyper-V enlightenments (under KVM only) and a clock in local time.
    pub hyperv: bool,
    /// Disks, in the order the guest finds them.
    pub disks: Vec<Disk>,
    /// Shared folders.
    pub filesystems: Vec<Filesystem>,
    /// Host devices.
    pub hostdevs: Vec<Given>,
    /// The screen; `None`: no screen at all.
    pub screen: Option<Screen>,
    /// A channel for the guest agent.
    pub agent: bool,
}

/// QEMU's minimal machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Microvm {
    /// What runs first.
    pub kernel: DirectKernel,
    /// Disks on virtio, in the order the guest finds them.
    pub disks: Vec<Image>,
    /// A channel for the guest agent.
    pub agent: bool,
}

impl Platform {
    pub(super) fn check(&self, guest_cells: usize, interfaces: usize) -> Result<(), DomainError> {
        match self {
            Self::Q35(q35) => q35.check(guest_cells, interfaces),
            Self::Microvm(_) if guest_cells > 0 => Err(DomainError::MicrovmCells),
            Self::Microvm(Microvm { kernel, disks, agent: _ }) => {
                kernel.check()?;
                Image::check_all(disks.iter())
            }
        }
    }

    pub(super) fn shares_memory(&self) -> bool {
        match self {
            Self::Q35(q35) => !q35.filesystems.is_empty(),
            Self::Microvm(_) => false,
        }
    }

    pub(super) fn pci_window_mib(&self) -> Option<NonZeroU64> {
        match self {
            Self::Q35(q35) => q35.firmware.pci_window_mib(),
            Self::Microvm(_) => None,
        }
    }

    pub(super) fn write_machine(&self, xml: &mut Xml, kind: Kind) {
        match self {
            Self::Q35(q35) => {
                q35.firmware.write_os(xml);
                q35.write_features(xml, kind);
            }
            Self::Microvm(microvm) => {
                microvm.kernel.write_os(xml, "microvm");
                xml.nest("features", &[], |xml| xml.empty("acpi", &[]));
            }
        }
    }

    pub(super) fn write_clock(&self, xml: &mut Xml, kind: Kind) {
        match self {
            Self::Q35(q35) => q35.write_clock(xml, kind),
            Self::Microvm(_) => xml.empty("clock", &[("offset", &"utc")]),
        }
    }

    pub(super) fn write_devices(&self, xml: &mut Xml, pinning: &Pinning, interfaces: &[Interface]) {
        match self {
            Self::Q35(q35) => q35.write_devices(xml, pinning, interfaces),
            Self::Microvm(microvm) => microvm.write_devices(xml, interfaces),
        }
    }
}

impl Q35 {
    fn check(&self, guest_cells: usize, interfaces: usize) -> Result<(), DomainError> {
        let Self { firmware, tpm, hyperv: _, disks, filesystems, hostdevs, screen, agent: _ } = self;
        firmware.check()?;
        tpm.as_ref().map_or(Ok(()), Tpm::check)?;
        Image::check_all(disks.iter().map(|disk| &disk.image))?;
        filesystems.iter().try_for_each(Filesystem::check)?;
        Hostdev::check(hostdevs, screen.is_some())?;
        self.buses(interfaces).check(guest_cells)
    }

    fn write_features(&self, xml: &mut Xml, kind: Kind) {
        xml.nest("features", &[], |xml| {
            xml.empty("acpi", &[]);
            xml.empty("apic", &[]);
            if self.hyperv && kind == Kind::Kvm {
                xml.nest("hyperv", &[("mode", &"custom")], |xml| {
                    for feature in ["relaxed", "vapic"] {
                        xml.empty(feature, &[("state", &"on")]);
                    }
                    xml.empty("spinlocks", &[("state", &"on"), ("retries", &8191)]);
                    for feature in ["vpindex", "runtime", "synic"] {
                        xml.empty(feature, &[("state", &"on")]);
                    }
                    xml.nest("stimer", &[("state", &"on")], |xml| {
                        xml.empty("direct", &[("state", &"on")]);
                    });
                    for feature in ["reset", "frequencies", "tlbflush", "ipi"] {
                        xml.empty(feature, &[("state", &"on")]);
                    }
                });
            }
            xml.empty("vmport", &[("state", &"off")]);
            if self.firmware.secure_boot() {
                xml.empty("smm", &[("state", &on_off(true))]);
            }
        });
    }

    fn write_clock(&self, xml: &mut Xml, kind: Kind) {
        let offset = if self.hyperv { "localtime" } else { "utc" };
        xml.nest("clock", &[("offset", &offset)], |xml| {
            xml.empty("timer", &[("name", &"rtc"), ("tickpolicy", &"catchup")]);
            xml.empty("timer", &[("name", &"pit"), ("tickpolicy", &"delay")]);
            xml.empty("timer", &[("name", &"hpet"), ("present", &"no")]);
            if self.hyperv && kind == Kind::Kvm {
                xml.empty("timer", &[("name", &"hypervclock"), ("present", &"yes")]);
            }
        });
        // A guest that sleeps to memory or disk would lose its passed-through devices.
        xml.nest("pm", &[], |xml| {
            xml.empty("suspend-to-mem", &[("enabled", &"no")]);
            xml.empty("suspend-to-disk", &[("enabled", &"no")]);
        });
    }

    fn write_devices(&self, xml: &mut Xml, pinning: &Pinning, interfaces: &[Interface]) {
        let Self { firmware: _, tpm, hyperv: _, disks, filesystems, hostdevs, screen, agent: has_agent } =
            self;
        let transport = Transport::Pci;
        let buses = self.buses(interfaces.len());
        buses.write(xml);
        let mut placer = Placer::new(pinning.io_threads.len());
        for Disk { image, slot } in disks {
            image.write(xml, *slot, transport, &mut placer);
        }
        if disks.iter().any(|disk| disk.slot.is_scsi()) {
            write_scsi_controller(xml, &mut placer);
        }
        for filesystem in filesystems {
            filesystem.write(xml);
        }
        for interface in interfaces {
            interface.write(xml, transport);
        }
        xml.empty("controller", &[("type", &"usb"), ("index", &0), ("model", &"qemu-xhci")]);
        if *has_agent {
            agent::write(xml, transport);
        }
        match screen {
            Some(screen) => {
                // Absolute positions: the pointer of a remote screen stays where the user's is.
                xml.empty("input", &[("type", &"tablet"), ("bus", &"usb")]);
                screen.write(xml);
            }
            None => Video::None.write(xml),
        }
        for (position, Given { device, guest_cell: _ }) in hostdevs.iter().enumerate() {
            buses.write_hostdev(xml, position, device);
        }
        if let Some(tpm) = tpm {
            tpm.write(xml);
        }
        xml.empty("memballoon", &[("model", &"virtio")]);
        write_rng(xml, transport);
    }

    /// One PCIe port for each device that takes one, and the spare ones.
    fn buses(&self, interfaces: usize) -> Buses {
        let count = |condition: bool| usize::from(condition);
        let virtio_disks = self.disks.iter().filter(|disk| disk.slot == Slot::Virtio).count();
        let spice = self.screen.as_ref().is_some_and(|screen| matches!(screen.server, Graphics::Spice));
        let others = interfaces
            + virtio_disks
            + count(self.disks.iter().any(|disk| disk.slot.is_scsi()))
            + self.filesystems.len()
            + count(self.agent || spice)
            // USB, balloon, random numbers.
            + 3;
        Buses::plan(others, &self.hostdevs)
    }
}

impl Microvm {
    fn write_devices(&self, xml: &mut Xml, interfaces: &[Interface]) {
        let Self { kernel: _, disks, agent: has_agent } = self;
        let transport = Transport::Mmio;
        let mut placer = Placer::new(0);
        for image in disks {
            image.write(xml, Slot::Virtio, transport, &mut placer);
        }
        for interface in interfaces {
            interface.write(xml, transport);
        }
        // Without these two libvirt looks for a PCI bus to put its own on.
        xml.empty("controller", &[("type", &"usb"), ("index", &0), ("model", &"none")]);
        xml.empty("memballoon", &[("model", &"none")]);
        if *has_agent {
            agent::write(xml, transport);
        }
        write_rng(xml, transport);
    }
}

fn write_rng(xml: &mut Xml, transport: Transport) {
    xml.nest("rng", &[("model", &"virtio")], |xml| {
        xml.text("backend", &[("model", &"random")], "/dev/urandom");
        transport.write_address(xml);
    });
}
