//! Why a card is not given, or not taken back now. Names devices, never who uses them.

use gpudesk_crds::types::PciAddress;
use thiserror::Error;

/// Why not.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// Another card stands at the address.
    #[error("{card} is another card ({found}) than the one that was chosen ({known})")]
    OtherCard {
        /// Where.
        card: PciAddress,
        /// Ids of what is there.
        found: String,
        /// Ids of what was chosen.
        known: String,
    },
    /// The host's own screen is on it.
    #[error("the host shows its own screen on {0}: give the host another card")]
    BootVga(PciAddress),
    /// No IOMMU.
    #[error("{0} has no IOMMU group: switch the IOMMU on in the firmware and on the kernel's command line")]
    NoIommu(PciAddress),
    /// It cannot be cleaned between users.
    #[error("{0} has no reset method, so it cannot be cleaned between users")]
    NoReset(PciAddress),
    /// Its reset loses it.
    #[error(
        "{card} is an {product}: given whole, a reset leaves its configuration unreadable until the host reboots \
         (amd/MxGPU-Virtualization, issue 25); give its virtual functions instead"
    )]
    LostByReset {
        /// The card.
        card: PciAddress,
        /// What it is.
        product: &'static str,
    },
    /// Virtual functions are on.
    #[error("{on} virtual functions of {card} are switched on, and have to be off first")]
    FunctionsOn {
        /// The card.
        card: PciAddress,
        /// How many.
        on: u32,
    },
    /// The module is not loaded.
    #[error(
        "the kernel module vfio-pci is not loaded on the host: run modprobe vfio-pci, and name it in /etc/modules-load.d"
    )]
    NoVfio,
    /// A process has it open.
    #[error("{device} is in use: process {process} of the host has it open")]
    Open {
        /// The device.
        device: String,
        /// The process.
        process: u32,
    },
    /// A share is on it.
    #[error("{0} is in use")]
    InUse(String),
    /// Its driver does not let go.
    #[error("{0} is in use: its driver does not let go of it")]
    Locked(PciAddress),
    /// Somebody else made or bound it.
    #[error("{device} is {what}, not by gpudesk: it is left as it is")]
    Foreign {
        /// The device.
        device: String,
        /// What somebody did.
        what: String,
    },
    /// Something of the host is in its group.
    #[error("{card} is in one IOMMU group with {device} (driver {driver}), which the host uses")]
    GroupShared {
        /// The card.
        card: PciAddress,
        /// The other function.
        device: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// The host uses a drive, or somebody may want back what is on it.
    #[error("{drive} goes to nobody: {why}")]
    Drive {
        /// The drive.
        drive: PciAddress,
        /// Why.
        why: String,
    },
    /// A function of a network card is not given with the settings that it takes, or they are not put back.
    #[error("{function}: {why}")]
    Network {
        /// The function.
        function: PciAddress,
        /// Why.
        why: String,
    },
    /// Nothing offers the type.
    #[error("no function of {card} offers the type {type_name} now; free functions offer: {offered}")]
    NotOffered {
        /// The card.
        card: PciAddress,
        /// The type.
        type_name: String,
        /// What they offer.
        offered: String,
    },
    /// Nothing is free.
    #[error("no virtual function of {0} is free")]
    NoFunction(PciAddress),
    /// No virtual functions, and no way to switch them.
    #[error(
        "the virtual functions of {0} are to be switched by the kernel module pci-pf-stub, which is not loaded on the host: \
         run modprobe pci-pf-stub, and name it in /etc/modules-load.d"
    )]
    FunctionsOff(PciAddress),
    /// Another number of virtual functions is on, and in use.
    #[error(
        "{on} virtual functions of {card} are on, and {wanted} are wanted: that changes only while none is in use"
    )]
    OtherCount {
        /// The card.
        card: PciAddress,
        /// How many are on.
        on: u32,
        /// How many were wanted.
        wanted: u32,
    },
    /// Only the driver's library can do it.
    #[error(
        "{what} of {card} takes NVIDIA's library NVML and a card that can: set nodeDaemon.discovery.nvml (--nvml)"
    )]
    NoControl {
        /// The card.
        card: PciAddress,
        /// What.
        what: &'static str,
    },
    /// MIG mode is not what it takes and cannot change now.
    #[error("MIG of {card} is {is}, and cannot be switched now: {why}")]
    MigMode {
        /// The card.
        card: PciAddress,
        /// On or off.
        is: &'static str,
        /// Why.
        why: String,
    },
    /// The driver does not answer now.
    #[error("NVIDIA's driver does not tell now what is on {card}: {why}")]
    NotTold {
        /// The card.
        card: PciAddress,
        /// Why.
        why: String,
    },
    /// Not enough is known of what was asked for.
    #[error("{0}")]
    Unknown(String),
}
