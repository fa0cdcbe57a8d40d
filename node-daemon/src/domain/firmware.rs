//! What runs first in the guest: `<os>`, the firmware's window for BARs, and `<tpm>`.

use std::num::NonZeroU64;
use std::path::PathBuf;

use super::xml::{Xml, yes_no};
use super::{DomainError, path_text};

/// What runs first in the guest of a q35 machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS. No room for large BARs: not for cards of 64 GB or more.
    Bios,
    /// OVMF.
    Uefi(Uefi),
    /// A kernel of the host, loaded by QEMU.
    DirectKernel(DirectKernel),
}

/// How OVMF is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uefi {
    /// Only signed code is started, with Microsoft's keys enrolled.
    pub secure_boot: bool,
    /// Where its variables are kept between starts, an absolute path; `None`: libvirt's own folder,
    /// by the domain's name. libvirt fills it from the template when it does not exist.
    pub variables: Option<PathBuf>,
    /// MiB of 64-bit address space for BARs. OVMF's own 32 GiB lose a larger BAR without a word, and
    /// the guest's driver then reports no memory: twice the sum of the BARs, as a power of two.
    pub pci_window_mib: Option<NonZeroU64>,
}

/// A kernel of the host, loaded by QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectKernel {
    /// The kernel, an absolute path.
    pub kernel: PathBuf,
    /// Its initial RAM disk, an absolute path.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub cmdline: Option<String>,
}

/// A TPM 2.0 emulated by swtpm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tpm {
    /// The folder of its state, an absolute path; `None`: libvirt's own, by the domain's UUID.
    pub state: Option<PathBuf>,
}

impl Firmware {
    pub(super) fn check(&self) -> Result<(), DomainError> {
        match self {
            Self::Bios => Ok(()),
            Self::Uefi(Uefi { variables, secure_boot: _, pci_window_mib: _ }) => {
                variables.as_deref().map_or(Ok(()), path_text)
            }
            Self::DirectKernel(kernel) => kernel.check(),
        }
    }

    pub(super) fn secure_boot(&self) -> bool {
        matches!(self, Self::Uefi(Uefi { secure_boot: true, .. }))
    }

    pub(super) fn write_os(&self, xml: &mut Xml) {
        match self {
            Self::Bios => xml.nest("os", &[], |xml| write_type(xml, "q35")),
            Self::Uefi(Uefi { secure_boot, variables, pci_window_mib: _ }) => {
                xml.nest("os", &[("firmware", &"efi")], |xml| {
                    write_type(xml, "q35");
                    xml.nest("firmware", &[], |xml| {
                        for feature in ["secure-boot", "enrolled-keys"] {
                            xml.empty("feature", &[("enabled", &yes_no(*secure_boot)), ("name", &feature)]);
                        }
                    });
                    if *secure_boot {
                        xml.empty("loader", &[("secure", &"yes")]);
                    }
                    if let Some(variables) = variables {
                        xml.text("nvram", &[], variables.display());
                    }
                });
            }
            Self::DirectKernel(kernel) => kernel.write_os(xml, "q35"),
        }
    }

    /// The window for BARs, when one is asked for.
    pub(super) fn pci_window_mib(&self) -> Option<NonZeroU64> {
        match self {
            Self::Uefi(uefi) => uefi.pci_window_mib,
            Self::Bios | Self::DirectKernel(_) => None,
        }
    }
}

/// Tells OVMF how large the window for BARs is.
///
/// As an argument of QEMU's own: libvirt refuses names below `opt/ovmf` in its `<sysinfo>`.
pub(super) fn write_pci_window(xml: &mut Xml, mib: NonZeroU64) {
    xml.nest("qemu:commandline", &[], |xml| {
        xml.empty("qemu:arg", &[("value", &"-fw_cfg")]);
        let setting = format!("name=opt/ovmf/X-PciMmio64Mb,string={mib}");
        xml.empty("qemu:arg", &[("value", &setting)]);
    });
}

impl DirectKernel {
    pub(super) fn check(&self) -> Result<(), DomainError> {
        path_text(&self.kernel)?;
        self.initrd.as_deref().map_or(Ok(()), path_text)
    }

    pub(super) fn write_os(&self, xml: &mut Xml, machine: &'static str) {
        let Self { kernel, initrd, cmdline } = self;
        xml.nest("os", &[], |xml| {
            write_type(xml, machine);
            xml.text("kernel", &[], kernel.display());
            if let Some(initrd) = initrd {
                xml.text("initrd", &[], initrd.display());
            }
            if let Some(cmdline) = cmdline {
                xml.text("cmdline", &[], cmdline);
            }
        });
    }
}

fn write_type(xml: &mut Xml, machine: &'static str) {
    xml.text("type", &[("arch", &"x86_64"), ("machine", &machine)], "hvm");
}

impl Tpm {
    pub(super) fn check(&self) -> Result<(), DomainError> {
        self.state.as_deref().map_or(Ok(()), path_text)
    }

    pub(super) fn write(&self, xml: &mut Xml) {
        xml.nest("tpm", &[("model", &"tpm-crb")], |xml| {
            let backend: [(&'static str, &dyn std::fmt::Display); 2] =
                [("type", &"emulator"), ("version", &"2.0")];
            match &self.state {
                None => xml.empty("backend", &backend),
                Some(folder) => xml.nest("backend", &backend, |xml| {
                    xml.empty("source", &[("type", &"dir"), ("path", &folder.display())]);
                }),
            }
        });
    }
}
