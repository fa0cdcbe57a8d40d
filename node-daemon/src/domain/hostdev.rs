//! Host devices given to the guest: mediated devices (vGPUs) and whole PCI functions or VFs.

use std::fmt::Display;

use uuid::Uuid;

use super::DomainError;
use super::xml::{Xml, on_off, yes_no};

/// One host device.
///
/// Each gets the alias `ua-gpu<N>` in the order of the list, so that a live domain's devices can be
/// told apart by more than their addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hostdev {
    /// A mediated device, made beforehand.
    Mdev {
        /// Its UUID under `/sys/bus/mdev/devices`.
        uuid: Uuid,
        /// Whether the guest's screen is drawn by it.
        display: MdevDisplay,
    },
    /// A PCI function: a whole card, or a virtual function.
    Pci {
        /// Where it is on the host.
        address: PciAddress,
        /// libvirt binds it to vfio-pci and gives it back. `false` where the daemon does that itself
        /// and for VFs of vendor VFIO drivers, which must keep their driver.
        managed: bool,
    },
}

/// A host device and where the guest finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The device.
    pub device: Hostdev,
    /// The guest's NUMA cell that it belongs to; `None` when the guest is told of none.
    pub guest_cell: Option<u32>,
}

impl From<Hostdev> for Given {
    /// Of no cell.
    fn from(device: Hostdev) -> Self {
        Self { device, guest_cell: None }
    }
}

/// Whether the guest's screen is drawn by a mediated device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MdevDisplay {
    /// Compute only, or seen by remote software in the guest.
    Off,
    /// Shown by the graphics server once the guest's driver runs.
    On,
    /// The same, with a plain framebuffer until then. One device at most.
    OnWithRamfb,
}

/// A PCI function: `domain:bus:device.function`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// PCI domain.
    pub domain: u16,
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl Display for PciAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl Hostdev {
    fn display(&self) -> MdevDisplay {
        match self {
            Self::Mdev { display, .. } => *display,
            Self::Pci { .. } => MdevDisplay::Off,
        }
    }

    pub(super) fn check(all: &[Given], has_graphics: bool) -> Result<(), DomainError> {
        let all: Vec<&Self> = all.iter().map(|given| &given.device).collect();
        let with = |wanted| all.iter().filter(|device| device.display() == wanted).count();
        if with(MdevDisplay::OnWithRamfb) > 1 {
            return Err(DomainError::TwoRamfb);
        }
        if with(MdevDisplay::OnWithRamfb) + with(MdevDisplay::On) > 0 && !has_graphics {
            return Err(DomainError::DisplayWithoutGraphics);
        }
        for (index, device) in all.iter().enumerate() {
            if all[..index].iter().any(|earlier| earlier.same_device(device)) {
                return Err(DomainError::GivenTwice { device: device.to_string() });
            }
            if let Self::Pci { address, .. } = device
                && (address.device > 31 || address.function > 7)
            {
                return Err(DomainError::NoPciAddress { address: *address });
            }
        }
        Ok(())
    }

    fn same_device(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Mdev { uuid: a, .. }, Self::Mdev { uuid: b, .. }) => a == b,
            (Self::Pci { address: a, .. }, Self::Pci { address: b, .. }) => a == b,
            (Self::Mdev { .. }, Self::Pci { .. }) | (Self::Pci { .. }, Self::Mdev { .. }) => false,
        }
    }

    /// `place` writes where in the guest it is, if anything is to be said of that.
    pub(super) fn write(&self, xml: &mut Xml, index: usize, place: impl FnOnce(&mut Xml)) {
        let alias = format!("ua-gpu{index}");
        match self {
            Self::Mdev { uuid, display } => {
                let on = !matches!(display, MdevDisplay::Off);
                let ramfb = matches!(display, MdevDisplay::OnWithRamfb);
                xml.nest(
                    "hostdev",
                    &[
                        ("mode", &"subsystem"),
                        ("type", &"mdev"),
                        ("managed", &"no"),
                        ("model", &"vfio-pci"),
                        ("display", &on_off(on)),
                        ("ramfb", &on_off(ramfb)),
                    ],
                    |xml| {
                        xml.nest("source", &[], |xml| xml.empty("address", &[("uuid", uuid)]));
                        xml.empty("alias", &[("name", &alias)]);
                        place(xml);
                    },
                );
            }
            Self::Pci { address: PciAddress { domain, bus, device, function }, managed } => xml.nest(
                "hostdev",
                &[("mode", &"subsystem"), ("type", &"pci"), ("managed", &yes_no(*managed))],
                |xml| {
                    xml.empty("driver", &[("name", &"vfio")]);
                    xml.nest("source", &[], |xml| {
                        xml.empty(
                            "address",
                            &[
                                ("domain", &format_args!("{domain:#06x}")),
                                ("bus", &format_args!("{bus:#04x}")),
                                ("slot", &format_args!("{device:#04x}")),
                                ("function", &format_args!("{function:#x}")),
                            ],
                        );
                    });
                    xml.empty("alias", &[("name", &alias)]);
                    place(xml);
                },
            ),
        }
    }
}

impl Display for Hostdev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mdev { uuid, .. } => write!(f, "mdev {uuid}"),
            Self::Pci { address, .. } => write!(f, "PCI {address}"),
        }
    }
}
