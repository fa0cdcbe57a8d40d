//! Condition types and reasons, and the one way to set a condition.
//!
//! A condition names a state, not a step. Reasons are a small closed set: programs may match on
//! them, people read the message.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Defines an enum whose variants are written exactly like their names.
macro_rules! names {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every variant.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The text in the API, and the label in metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }

            /// The variant with this text.
            pub fn from_text(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|variant| variant.as_str() == text)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names! {
    /// Types of conditions over all kinds.
    ConditionType {
        /// GpuNode: desktops can run here. Desktop: the machine can be used.
        Ready,
        /// GpuNode: the IOMMU is on and groups exist.
        IommuEnabled,
        /// GpuNode: libvirt and QEMU answer.
        HypervisorReady,
        /// GpuNode: guests run by hardware virtualization.
        KvmUsable,
        /// GpuNode: guests with user networks are kept away from the host.
        GuestNetworkFiltered,
        /// GpuNode: DMA and interrupts of devices are really confined to their guests.
        IommuIsolating,
        /// GpuNode: the kernel's vfio driver is there to take cards.
        VfioReady,
        /// GpuNode: every memory region of every card has an address (Above 4G decoding).
        BarsAssigned,
        /// GpuNode: virtual functions are switched on where cards make shares of them.
        SriovEnabled,
        /// GpuNode: hugepages are reserved on every NUMA cell that runs desktops.
        HugepagesReserved,
        /// GpuNode: the driver of the cards can make vGPUs and finds its licence service.
        VgpuHostReady,
        /// GpuNode: the NVLink fabric is up, and the cards in it are alike.
        FabricReady,
        /// GpuNode: nothing on the host denies the daemon what it must read.
        AccessGranted,
        /// GpuNode: the admin's discovery hook gave a usable answer.
        DiscoveryHookReady,
        /// GpuNode: no managed card is failed.
        DevicesHealthy,
        /// GpuNode: PCI, NUMA and IOMMU topology could be read whole.
        TopologyComplete,
        /// GpuNode: the spec's rules for cards are in effect.
        LayoutApplied,
        /// GpuNode: no machine runs that no allocation here accounts for.
        StraysCleared,
        /// GpuNode: what its admin said of leftovers is done.
        LeftoversHandled,
        /// GpuNode: desktops that are not in the API are so few that what is left of them is put aside.
        RemovalAllowed,
        /// GpuNode: its spec is as its owner wrote it, and kept on the host.
        SpecKept,
        /// GpuNode: what its daemon keeps of desktops on the host can be read and written.
        StateKept,
        /// GpuNode: what its admin hands over of what was made by hand is gpudesk's.
        DevicesAdopted,
        /// GpuNode: no device plugin of its kubelet offers managed cards to pods.
        DevicePluginsAbsent,
        /// GpuNode: its daemon renews its lease. Said by the operator, as is the next; all others there by the daemon.
        DaemonHeard,
        /// GpuNode: nothing in the cluster offers managed cards to pods, by `ResourceSlices` or the Node's resources.
        CardsUnpublished,
        /// GpuProfile, DesktopTemplate: the object says something that can be.
        Valid,
        /// GpuProfile: at least one more fits now.
        Satisfiable,
        /// Desktop: it holds CPUs, memory and its shares of GPUs.
        Allocated,
        /// Desktop: disks, seed and GPU shares are made on the node.
        DevicesPrepared,
        /// Desktop: the libvirt domain runs.
        Running,
        /// Desktop: the guest agent answers.
        GuestReady,
        /// Desktop: its own spec or the template says something else than what it runs with; that applies
        /// at the next start.
        RestartRequired,
    }
}

names! {
    /// Reasons of conditions over all kinds.
    Reason {
        /// The state is as wanted.
        AsExpected,
        /// Not known yet.
        Unknown,
        /// A field asks for what this version does not do; the message names the fields.
        NotYetSupported,
        /// A field has a value that cannot be; the message names field, value and what would be right.
        InvalidSpec,

        /// The template named does not exist.
        TemplateNotFound,
        /// The template named is not valid.
        TemplateInvalid,
        /// A profile named does not exist.
        ProfileNotFound,
        /// A profile named is not valid.
        ProfileInvalid,
        /// An override that the template does not permit.
        OverrideNotAllowed,
        /// Nothing is free where it would fit; the message counts nodes and reasons.
        Unschedulable,
        /// No host is large enough even when empty; the message counts nodes and reasons.
        Unsatisfiable,
        /// Placed; the node makes it.
        Starting,
        /// The machine runs; its guest agent has not answered yet.
        GuestStarting,
        /// Stopped, as asked.
        Stopped,
        /// Being shut down.
        Stopping,
        /// Everything the desktop held on the node is gone; only said of a desktop that is deleted.
        Released,
        /// The desktop is being deleted.
        Deleting,
        /// The node of the allocation is not there any more.
        NodeLost,
        /// What is to be given up is on a node that is heard: it can be stopped or deleted there.
        AbandonRefused,

        /// The image named does not exist on the node.
        ImageNotFound,
        /// The image or disk file cannot be used.
        ImageInvalid,
        /// A disk that a machine of this desktop has used is not on its node any more.
        DiskMissing,
        /// A path outside the folders that the owner of the node allows.
        HostPathNotAllowed,
        /// A path that does not exist on the node.
        HostPathNotFound,
        /// The Secret named does not exist, or lacks a key, or may not be read.
        SecretNotReadable,
        /// What the operator gave is held by another domain; the node refuses.
        AllocationConflict,
        /// A device could not be made.
        DeviceFailed,
        /// libvirt or QEMU refused; the message is theirs.
        HypervisorRefused,
        /// libvirt does not answer; it is tried again.
        HypervisorUnavailable,
        /// The guest ended by itself and the restart policy leaves it so.
        GuestStopped,
        /// The guest crashed.
        GuestCrashed,
        /// The machine ended, or was removed from libvirt, and how was not seen; the restart policy leaves it so.
        EndUnseen,
        /// The guest agent does not answer.
        AgentSilent,
        /// The template does without guest agent.
        AgentNotConfigured,
        /// The template changed after the start.
        TemplateChanged,
        /// The desktop's own spec changed after the start, and perhaps the template too.
        SpecChanged,
        /// A restart was asked for that could not succeed; the machine goes on.
        RestartRefused,
        /// Nodes refused several times what was decided: it waits for news of them.
        RefusedByNode,
        /// Nodes may run what the API does not tell of, as after its restore: nothing is placed before they are heard.
        AwaitingNodes,
        /// The API server refuses what the operator has to write; the message is the API server's.
        WriteRefused,
        /// The node's daemon does not renew its lease: what it said last may be old.
        DaemonSilent,

        /// Does not apply to this machine.
        NotNeeded,
        /// No IOMMU groups.
        IommuMissing,
        /// vfio is told to work without an IOMMU, or without safe interrupts.
        IommuUnsafe,
        /// A kernel module is not loaded.
        ModuleMissing,
        /// A memory region of a card has no address.
        BarUnassigned,
        /// Virtual functions are switched off.
        SriovOff,
        /// No hugepages, or none on a cell.
        HugepagesMissing,
        /// KVM does not work here.
        KvmUnusable,
        /// What keeps guests with user networks away from the host is not there.
        GuestNetworkUnfiltered,
        /// A program or library is older than what is needed.
        VersionTooOld,
        /// The GPU driver of the host makes no vGPUs, or is not there.
        HostDriverMissing,
        /// The licence service of the vGPUs does not answer.
        LicenceServiceMissing,
        /// A service that runs the NVLink fabric is missing, or the fabric is not up.
        FabricNotReady,
        /// Different cards in one NVLink domain.
        FabricMixed,
        /// AppArmor, SELinux or file permissions deny the daemon something.
        AccessDenied,
        /// The discovery hook failed; what it said last stands.
        HookFailed,
        /// A managed card is failed.
        DeviceUnhealthy,
        /// A part of the topology could not be read.
        TopologyIncomplete,
        /// This host is a description, not a machine.
        Simulated,
        /// The node is cordoned by its owner.
        Cordoned,
        /// Desktops have partitions that a new layout of their card lacks; the message names card, layout and desktops.
        LayoutInUse,
        /// Machines run that no allocation here accounts for.
        StraysRunning,
        /// Pods can be given managed cards, too; the message names by whom, which, and what keeps them away.
        OfferedToPods,
        /// So many desktops are not in the API that nothing of them is touched.
        RemovalHeld,
        /// Disks that are being erased cannot be; the message says why.
        NotErased,
        /// The spec lacks what its owner had written, or cannot be kept on the host; the message says what and why.
        SpecNotKept,
        /// What a node's daemon keeps on its host cannot be read or written; the message names file, cause and remedy.
        StateNotKept,
        /// What the annotation gpudesk.dev/adopt names is not there, in use or not gpudesk's to take; the message says
        /// which entry, why, and what would be right.
        NotAdopted,
        /// The host belongs to another cluster; the message says how it is taken over.
        ForeignCluster,
    }
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Nobody can tell.
    Unknown,
}

impl Truth {
    /// The text in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(truth: bool) -> Self {
        if truth { Self::True } else { Self::False }
    }
}

/// Sets a condition in `conditions`, which stays ordered as it was.
///
/// `lastTransitionTime` moves to `now` only when the status changes. Returns whether anything but
/// `observedGeneration` changed.
pub fn set(
    conditions: &mut Vec<Condition>,
    type_: ConditionType,
    status: impl Into<Truth>,
    reason: Reason,
    message: impl Into<String>,
    generation: Option<i64>,
    now: &Time,
) -> bool {
    let status = status.into().as_str();
    // The API server refuses more than 32768 characters.
    let message: String = message.into().chars().take(4096).collect();
    if let Some(old) = conditions.iter_mut().find(|condition| condition.type_ == type_.as_str()) {
        let changed = old.status != status || old.reason != reason.as_str() || old.message != message;
        if old.status != status {
            old.last_transition_time = now.clone();
        }
        old.status = status.into();
        old.reason = reason.as_str().into();
        old.message = message;
        old.observed_generation = generation;
        return changed;
    }
    conditions.push(Condition {
        type_: type_.as_str().into(),
        status: status.into(),
        reason: reason.as_str().into(),
        message,
        observed_generation: generation,
        last_transition_time: now.clone(),
    });
    true
}

/// The condition of a type, if there.
pub fn find(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == type_.as_str())
}

/// Whether the condition of a type is there and True.
pub fn is_true(conditions: &[Condition], type_: ConditionType) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = vec![];
        assert!(set(&mut conditions, ConditionType::Ready, false, Reason::Starting, "a", Some(1), &at(1)));
        assert!(set(&mut conditions, ConditionType::Ready, false, Reason::Stopped, "b", Some(2), &at(2)));
        assert_eq!(conditions[0].last_transition_time, at(1));
        assert!(!set(&mut conditions, ConditionType::Ready, false, Reason::Stopped, "b", Some(3), &at(3)));
        assert_eq!(conditions[0].observed_generation, Some(3));
        assert!(set(&mut conditions, ConditionType::Ready, true, Reason::AsExpected, "", Some(3), &at(4)));
        assert_eq!(conditions[0].last_transition_time, at(4));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn every_reason_is_a_legal_reason_of_a_condition() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_text(reason.as_str()), Some(*reason));
            assert!(reason.as_str().chars().all(|c| c.is_ascii_alphanumeric()));
        }
    }
}
