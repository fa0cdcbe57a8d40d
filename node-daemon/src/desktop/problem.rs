//! Why a desktop is not as wanted, each with its reason in the API and its own way to be tried again.

use std::fmt;

use gpudesk_crds::{Refusal, conditions::Reason};
use thiserror::Error;

use super::{conflict::Held, lost_disks::DisksMissing};
use crate::{
    domain::{DomainError, metadata},
    host::{
        file_threads::ThreadError,
        folder::FolderError,
        gpu_driver::GpuError,
        guest_network::GuestNetworkError,
        hypervisor::{DomainSummary, HypervisorError},
        images::ImageError,
        paths::PathError,
        seed::SeedError,
    },
    secrets::SecretError,
};

/// Why a desktop is not as wanted.
#[derive(Debug, Error)]
pub enum Problem {
    /// No template of that name.
    #[error("template {name:?} does not exist in namespace {namespace:?}")]
    TemplateNotFound {
        /// The template.
        name: String,
        /// The namespace.
        namespace: String,
    },
    /// The template that is known here is older than the one that was decided for.
    #[error("this node has not yet seen generation {wanted} of template {name:?}")]
    TemplateOutdated {
        /// The template.
        name: String,
        /// Its generation in the allocation.
        wanted: i64,
    },
    /// The operator calls the template invalid.
    #[error("template {name:?} is not valid: {message}")]
    TemplateInvalid {
        /// The template.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// The API server did not confirm that the desktop is to run here.
    #[error("not started, for the API server does not confirm that it is to run here: {why}")]
    Unconfirmed {
        /// What it said, or why it said nothing.
        why: String,
    },
    /// A field asks for what this version does not do.
    #[error("not yet supported: {fields}")]
    NotYetSupported {
        /// The fields.
        fields: String,
    },
    /// A value that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// A golden image or kernel.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Disks that hold what nothing can make again are not there.
    #[error(transparent)]
    Disks(#[from] DisksMissing),
    /// A file that the tenant named.
    #[error("disks[{disk}].hostFile.path: {source}")]
    Path {
        /// Name of the disk.
        disk: String,
        /// What is wrong with its file.
        source: PathError,
    },
    /// First-boot configuration.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The seed disk.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// The desktop's folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A share of a GPU.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// What the operator gave is held by another domain.
    #[error(
        "{what} of this desktop's allocation is in use by something else; this node does not give it twice"
    )]
    Conflict {
        /// What is held.
        what: Held,
        /// The other desktops, as `namespace/name`.
        holder: String,
    },
    /// A file of which it cannot be told whether another desktop uses it.
    #[error(
        "whether {path} is in use by another desktop cannot be told: what one uses that runs on this node cannot be read, and the \
         log of its daemon says of which and why"
    )]
    FileUnclear {
        /// The file.
        path: String,
    },
    /// A file that another desktop uses.
    #[error(
        "{path} is in use by another desktop: two share a file only when both only read it; name another file, or set \
         hostFile.readOnly for both"
    )]
    FileInUse {
        /// The file.
        path: String,
        /// The other desktop, as `namespace/name`.
        holder: String,
    },
    /// libvirt refused, and this is most likely why.
    #[error(
        "QEMU's user cannot read {path} (mode {mode:04o}), which belongs to its owner and is not given away: run \
         `{remedy} {path}`, and `chmod o+x` on the folders above. ({refused})"
    )]
    ClosedFile {
        /// The file or its folder.
        path: String,
        /// Its permissions.
        mode: u32,
        /// The command that opens it.
        remedy: &'static str,
        /// The words of libvirt.
        refused: HypervisorError,
    },
    /// The domain cannot be written.
    #[error("the machine cannot be described to libvirt: {0}")]
    Domain(#[from] DomainError),
    /// libvirt.
    #[error(transparent)]
    Hypervisor(HypervisorError),
    /// libvirt does not answer: of every desktop of the node the same is said.
    #[error(
        "libvirt on node {node} does not answer: what its desktops do is not known until it does; a machine that ran runs on, \
         and the condition HypervisorReady of GpuNode {node} says more"
    )]
    LibvirtAway {
        /// The node.
        node: String,
    },
    /// A last word cannot be noted down, and so is not said.
    #[error("the machine is off, and what it held is given back once that can be noted down: {0}")]
    Unnoted(Box<Self>),
    /// Its guest could reach the host.
    #[error(transparent)]
    GuestNetwork(#[from] GuestNetworkError),
    /// A domain with the UUID of this desktop is somebody else's.
    #[error(
        "the domain {name} on this node has the UUID of this desktop ({uuid}) and {whose}: it is left as it is, and \
         nothing is started beside it. Remove it there (`virsh shutdown {name}` if it runs, then `virsh undefine {name} \
         --keep-nvram`), or define it anew with another <uuid>"
    )]
    ForeignDomain {
        /// Name of the domain.
        name: String,
        /// UUID of the domain.
        uuid: String,
        /// What its metadata tells.
        whose: Whose,
    },
    /// A domain of this name is somebody else's.
    #[error(
        "the domain {name} ({uuid}) on this node has the name that the machine of this desktop needs, and {whose}: it is left \
         as it is. Rename it there while it is off (`virsh domrename {name} NEW-NAME`), or remove it (`virsh undefine {name}`)"
    )]
    ForeignName {
        /// Name of the domain.
        name: String,
        /// UUID of the domain.
        uuid: String,
        /// What its metadata tells.
        whose: Whose,
    },
    /// A domain of an earlier desktop has the name.
    #[error(
        "the machine {domain} ({uuid}) of an earlier Desktop of this name is still on this node{}: it is left as it is, \
         and nothing is started beside it. Shut it down in the guest or with `virsh shutdown {domain}` on the node; once \
         it is off the node puts it aside, and this one starts",
        if *.runs { " and runs" } else { "" }
    )]
    EarlierMachine {
        /// Name of the domain.
        domain: String,
        /// UUID of the domain, and UID of the desktop that it was made for.
        uuid: String,
        /// It holds memory and devices.
        runs: bool,
    },
    /// Somebody on the host saved its memory.
    #[error(
        "the memory of the machine {domain} was saved on the host (`virsh managedsave`), and the machine is off: \
         `virsh start {domain}` there goes on with it, `virsh managedsave-remove {domain}` gives it up. Until then it is \
         left as it is, and keeps what it holds"
    )]
    Saved {
        /// Name of the domain.
        domain: String,
    },
    /// What runs here is of a decision that this node does not know, or that is newer than the one that
    /// holds: what holds may be a copy from before it.
    #[error(
        "the machine {domain} of this desktop runs here by a decision that is newer than the present one, or was never \
         heard of: it is left running, and nothing is started beside it; shut it down in the guest or on the host"
    )]
    OtherDecision {
        /// Name of the domain.
        domain: String,
    },
    /// A step that ended without an answer, because this program failed in it.
    #[error("a step of the daemon failed: {0}")]
    Internal(String),
}

impl From<ThreadError> for Problem {
    fn from(error: ThreadError) -> Self {
        Self::Folder(error.into())
    }
}

impl From<HypervisorError> for Problem {
    fn from(mut error: HypervisorError) -> Self {
        let full = error.to_string();
        if let HypervisorError::Denied { message, .. }
        | HypervisorError::Transient { message, .. }
        | HypervisorError::Refused { message, .. } = &mut error
        {
            *message = without_holder(message);
        }
        if error.to_string() != full {
            tracing::warn!(full, "libvirt refused, and names who has it");
        }
        Self::Hypervisor(error)
    }
}

/// What libvirt says of a device that is taken, before it names the domain that has it ("PCI device 0000:41:00.0 is in use by
/// driver QEMU, domain lab.one"; `src/hypervisor/virhostdev.c`): that may be another tenant's.
const HELD: &str = "in use by";

/// The words of libvirt without who has what was refused.
fn without_holder(message: &str) -> String {
    match message.split_once(HELD) {
        Some((before, _)) => format!("{before}{HELD} another domain"),
        None => message.to_owned(),
    }
}

/// Whose a domain is that is not of a desktop. Never another tenant's name: that is in the node's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// It says nothing of gpudesk.
    Unmade,
    /// Its metadata is of another machine.
    Copy,
    /// Its metadata cannot be read.
    Unreadable,
}

impl Whose {
    /// As `domain` says.
    pub fn of(domain: &DomainSummary) -> Self {
        match domain.metadata.as_deref().map(metadata::parse) {
            None | Some(Ok(None)) => Self::Unmade,
            Some(Ok(Some(_))) => Self::Copy,
            Some(Err(_)) => Self::Unreadable,
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unmade => "was not made by gpudesk",
            Self::Copy => "is a copy of the machine of another one, whose metadata it has",
            Self::Unreadable => "has metadata of gpudesk that cannot be read",
        })
    }
}

/// Which condition a problem belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `DevicesPrepared`.
    Preparing,
    /// `Running`.
    Running,
}

impl Problem {
    /// The reason in the API.
    pub fn reason(&self) -> Reason {
        match self {
            Self::TemplateNotFound { .. } | Self::TemplateOutdated { .. } => Reason::TemplateNotFound,
            Self::TemplateInvalid { .. } => Reason::TemplateInvalid,
            Self::Unconfirmed { .. } => Reason::Unknown,
            Self::NotYetSupported { .. } => Reason::NotYetSupported,
            Self::Invalid(_) | Self::Domain(_) | Self::Image(ImageError::LargerThanDisk { .. }) => {
                Reason::InvalidSpec
            }
            Self::Image(ImageError::NotFound { .. } | ImageError::NotAName { .. }) => Reason::ImageNotFound,
            Self::Image(_) | Self::ClosedFile { .. } | Self::Folder(FolderError::Image { .. }) => {
                Reason::ImageInvalid
            }
            Self::Disks(_) => Reason::DiskMissing,
            Self::Path { source: PathError::NotFound { .. }, .. } => Reason::HostPathNotFound,
            Self::Path { .. } | Self::FileInUse { .. } | Self::FileUnclear { .. } => {
                Reason::HostPathNotAllowed
            }
            Self::Secret(_) => Reason::SecretNotReadable,
            Self::Folder(_) | Self::Unnoted(_) => Reason::StateNotKept,
            Self::Seed(_) | Self::Gpu(_) | Self::Internal(_) => Reason::DeviceFailed,
            Self::Conflict { .. }
            | Self::ForeignDomain { .. }
            | Self::ForeignName { .. }
            | Self::EarlierMachine { .. }
            | Self::OtherDecision { .. } => Reason::AllocationConflict,
            Self::Saved { .. } => Reason::GuestStopped,
            Self::GuestNetwork(_) => Reason::GuestNetworkUnfiltered,
            Self::LibvirtAway { .. }
            | Self::Hypervisor(HypervisorError::Away { .. } | HypervisorError::Transient { .. }) => {
                Reason::HypervisorUnavailable
            }
            Self::Hypervisor(
                HypervisorError::NotFound { .. }
                | HypervisorError::Denied { .. }
                | HypervisorError::Refused { .. },
            ) => Reason::HypervisorRefused,
        }
    }

    /// The condition that it belongs to.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Conflict { .. }
            | Self::FileInUse { .. }
            | Self::FileUnclear { .. }
            | Self::ClosedFile { .. }
            | Self::Domain(_)
            | Self::Hypervisor(_)
            | Self::LibvirtAway { .. }
            | Self::GuestNetwork(_)
            | Self::ForeignDomain { .. }
            | Self::ForeignName { .. }
            | Self::EarlierMachine { .. }
            | Self::Saved { .. }
            | Self::OtherDecision { .. }
            | Self::Unconfirmed { .. }
            | Self::Internal(_) => Stage::Running,
            Self::TemplateNotFound { .. }
            | Self::TemplateOutdated { .. }
            | Self::TemplateInvalid { .. }
            | Self::NotYetSupported { .. }
            | Self::Invalid(_)
            | Self::Image(_)
            | Self::Disks(_)
            | Self::Path { .. }
            | Self::Secret(_)
            | Self::Seed(_)
            | Self::Folder(_)
            | Self::Unnoted(_)
            | Self::Gpu(_) => Stage::Preparing,
        }
    }

    /// What of a decision this node cannot give, when that is it: without a word on who has it, which may
    /// be another tenant.
    pub fn refusal(&self) -> Option<Refusal> {
        // No longer than the API takes.
        let said = |device, cpus, message: String| {
            Some(Refusal { device, cpus, message: message.chars().take(500).collect() })
        };
        match self {
            Self::Conflict { what: Held::Cpus(cpus), .. } => said(None, Some(cpus.clone()), self.to_string()),
            Self::Conflict { what: Held::Share { card, .. }, .. } => {
                said(Some(*card), None, self.to_string())
            }
            Self::Conflict { what: Held::Unreadable, .. } => said(None, None, self.to_string()),
            Self::Gpu(error) => said(Some(error.card()?), None, error.to_string()),
            _ => None,
        }
    }

    /// Who has what this desktop cannot get: for the log alone, since it may be another tenant.
    pub fn holder(&self) -> Option<&str> {
        match self {
            Self::Conflict { holder, .. } | Self::FileInUse { holder, .. } => Some(holder),
            _ => None,
        }
    }

    /// Whether a record is there and cannot be understood.
    pub fn is_odd_record(&self) -> bool {
        matches!(self, Self::Folder(FolderError::Odd { .. }))
    }

    /// Whether it may pass by itself soon: then it is tried again soon, else slowly.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TemplateOutdated { .. }
            | Self::Unconfirmed { .. }
            | Self::LibvirtAway { .. }
            | Self::Hypervisor(
                HypervisorError::Away { .. }
                | HypervisorError::Transient { .. }
                | HypervisorError::NotFound { .. },
            )
            | Self::Secret(SecretError::Api { .. })
            | Self::Folder(FolderError::Thread(_))
            | Self::GuestNetwork(_)
            | Self::Gpu(GpuError::Waiting { .. })
            | Self::Internal(_) => true,
            Self::TemplateNotFound { .. }
            | Self::TemplateInvalid { .. }
            | Self::NotYetSupported { .. }
            | Self::Invalid(_)
            | Self::Image(_)
            | Self::Disks(_)
            | Self::Path { .. }
            | Self::Secret(SecretError::NotThere { .. } | SecretError::NoKey { .. })
            | Self::Seed(_)
            | Self::Folder(_)
            | Self::Unnoted(_)
            | Self::Gpu(_)
            | Self::Conflict { .. }
            | Self::FileInUse { .. }
            | Self::FileUnclear { .. }
            | Self::ClosedFile { .. }
            | Self::Domain(_)
            | Self::Hypervisor(HypervisorError::Denied { .. } | HypervisorError::Refused { .. })
            | Self::ForeignDomain { .. }
            | Self::ForeignName { .. }
            | Self::EarlierMachine { .. }
            | Self::Saved { .. }
            | Self::OtherDecision { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nobody_is_told_whose_domain_has_a_device(
            other in "[a-z0-9-]{8,20}\\.[a-z0-9-]{8,20}|\\PC{8,20}",
            device in "[0-9a-f]{4}:[0-9a-f]{2}:00\\.[0-7]",
            form in 0_usize..4,
        ) {
            let message = match form {
                0 => format!("Requested operation is not valid: PCI device {device} is in use by driver QEMU, domain {other}"),
                1 => format!("operation failed: mediated device {device} is in use by driver QEMU, domain {other}\nand {other}"),
                2 => format!("SCSI device {device} is already in use by other domain(s) as '{other}'"),
                _ => format!("USB device {device} is in use by driver QEMU, domain {other}"),
            };
            let doing = "start 8c5b".to_owned();
            for error in [
                HypervisorError::Refused { doing: doing.clone(), message: message.clone() },
                HypervisorError::Transient { doing: doing.clone(), message: message.clone() },
                HypervisorError::Denied { doing: doing.clone(), message: message.clone() },
            ] {
                let told = Problem::from(error).to_string();
                prop_assert!(!told.contains(&other) && told.contains(&device), "{told}");
                prop_assert!(told.ends_with("in use by another domain"), "{told}");
            }
        }

        #[test]
        fn all_else_that_libvirt_says_is_told(message in "[a-z :/]{0,60}") {
            prop_assume!(!message.contains(HELD));
            let error = HypervisorError::Refused { doing: "start".into(), message: message.clone() };
            prop_assert_eq!(Problem::from(error).to_string(), format!("start: {message}"));
        }
    }
}
