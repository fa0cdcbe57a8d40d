//! The seam between the daemon and what runs the domains.

use std::{fmt, os::fd::OwnedFd};

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::broadcast;
use uuid::Uuid;

use gpudesk_inventory::status::HypervisorVersions;

use gpudesk_crds::Allocation;

use crate::domain::{DomainMetadata, LiveDomain, metadata};

/// What a call gives, once it is awaited.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, HypervisorError>>;

/// Something that runs domains.
///
/// Calls are safe to repeat: starting what runs, or stopping what does not, succeeds. A call whose
/// future is dropped may still take effect.
pub trait Hypervisor: Send + Sync {
    /// All domains, running or not, ours or somebody else's.
    fn list(&self) -> Answer<'_, Vec<DomainSummary>>;

    /// One domain.
    fn get(&self, uuid: Uuid) -> Answer<'_, DomainSummary>;

    /// Makes a domain, or replaces what is known about one; a running one goes on as it is.
    fn define(&self, xml: String) -> Answer<'_, Uuid>;

    /// Starts a defined domain.
    fn start(&self, uuid: Uuid) -> Answer<'_, ()>;

    /// Asks the guest to shut down: by its agent when it answers, else by the power button. Returns
    /// when the guest was asked; the end of the domain is an event.
    fn shutdown(&self, uuid: Uuid) -> Answer<'_, ()>;

    /// Takes the power away.
    fn destroy(&self, uuid: Uuid) -> Answer<'_, ()>;

    /// Forgets a domain and snapshots' records. A running one goes on and is forgotten when it ends. One
    /// whose memory was saved is refused, unless that is to be given up.
    fn undefine(&self, uuid: Uuid, state: GuestState) -> Answer<'_, ()>;

    /// What is known about a domain while it runs.
    fn details(&self, uuid: Uuid) -> Answer<'_, DomainDetails>;

    /// Keeps the vCPUs and the emulator of a running domain on these CPUs of the host, for this run.
    fn confine(&self, uuid: Uuid, cpus: Vec<u32>) -> Answer<'_, ()>;

    /// Whether the guest's agent answers within five seconds.
    fn agent_ping(&self, uuid: Uuid) -> Answer<'_, bool>;

    /// Gives the guest's agent a command, a JSON object, and returns its answer, another.
    ///
    /// An agent that does not answer is [`HypervisorError::Transient`].
    fn agent_command(&self, uuid: Uuid, command: String) -> Answer<'_, String>;

    /// A client's end of the first VNC screen, which asks for no password.
    fn open_screen(&self, uuid: Uuid) -> Answer<'_, OwnedFd>;

    /// A picture of the first screen.
    fn screenshot(&self, uuid: Uuid) -> Answer<'_, Screenshot>;

    /// Which software this is.
    fn versions(&self) -> Answer<'_, Versions>;

    /// What it says it can do.
    fn capabilities(&self) -> Answer<'_, Capabilities>;

    /// Number of the user that it runs QEMU as; `None` where it has no such choice.
    fn qemu_user(&self) -> Answer<'_, Option<u32>>;

    /// Its own networks.
    fn networks(&self) -> Answer<'_, Vec<NetworkSummary>>;

    /// Everything that happens from now on.
    fn events(&self) -> Events;
}

/// Why a call failed. The variants are the four things a caller can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HypervisorError {
    /// There is no such domain.
    #[error("{doing}: no such domain")]
    NotFound {
        /// What was being done.
        doing: String,
    },
    /// We are not allowed to: a person must change the host's configuration.
    #[error("{doing}: denied: {message}")]
    Denied {
        /// What was being done.
        doing: String,
        /// The hypervisor's words.
        message: String,
    },
    /// The connection is lost, and is being opened again: it is the same for every call.
    #[error("{doing}: the connection to libvirt is lost and being opened again")]
    Away {
        /// What was being done.
        doing: String,
    },
    /// Something is busy: worth trying again as it is.
    #[error("{doing}: {message}")]
    Transient {
        /// What was being done.
        doing: String,
        /// The hypervisor's words.
        message: String,
    },
    /// It will not do that: the domain or the host must change first.
    #[error("{doing}: {message}")]
    Refused {
        /// What was being done.
        doing: String,
        /// The hypervisor's words.
        message: String,
    },
}

/// A domain in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainSummary {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: DomainState,
    /// Our element of its metadata, for [`metadata::parse`](crate::domain::metadata::parse); `None`
    /// for a domain that has none.
    pub metadata: Option<String>,
}

impl DomainSummary {
    /// What it says that it is of, and what it holds, if it is ours; in that `None` where that cannot be read: it may
    /// hold anything.
    pub fn ours(&self) -> Option<Option<(DomainMetadata, Allocation)>> {
        let ours = metadata::parse(self.metadata.as_deref()?).transpose()?;
        Some(ours.ok().and_then(|ours| serde_json::from_str(&ours.allocation).ok().map(|held| (ours, held))))
    }
}

/// What a domain is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainState {
    /// Running, or waiting for a device.
    Running,
    /// Paused by the host.
    Paused,
    /// Asleep by the guest's own wish.
    Asleep,
    /// On its way down.
    ShuttingDown,
    /// Not running: its guest shut down.
    ShutDown,
    /// Not running. How it ended is not known, if it ever ran.
    Off,
    /// Not running, for somebody on the host took its power.
    PoweredOff,
    /// Not running: its memory was saved, and it goes on from there.
    Saved,
    /// Not running after a crash.
    Crashed,
}

impl DomainState {
    /// Whether it holds its memory and devices.
    #[must_use]
    pub fn is_active(self) -> bool {
        match self {
            Self::Running | Self::Paused | Self::Asleep | Self::ShuttingDown => true,
            Self::ShutDown | Self::Off | Self::PoweredOff | Self::Saved | Self::Crashed => false,
        }
    }
}

/// What becomes of a domain's UEFI variables and TPM where libvirt keeps them in its own folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestState {
    /// Kept: the next domain of the same name and UUID finds them.
    Keep,
    /// Kept, but memory of it that was saved is given up.
    KeepButMemory,
    /// Deleted, with memory of it that was saved.
    Delete,
}

/// What is known about a domain while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainDetails {
    /// What it is doing.
    pub state: DomainState,
    /// What its description says: consoles, agent, memory.
    pub live: LiveDomain,
}

/// A picture of a screen.
#[derive(Clone, PartialEq, Eq)]
pub struct Screenshot {
    /// `image/png` or `image/x-portable-pixmap`.
    pub mime: String,
    /// The picture.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Screenshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Screenshot({}, {} bytes)", self.mime, self.bytes.len())
    }
}

/// Which software this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions {
    /// The library in this process.
    pub library: Version,
    /// The daemon at the other end.
    pub daemon: Version,
    /// The hypervisor's name: `QEMU` or `TEST`.
    pub hypervisor_name: String,
    /// The hypervisor.
    pub hypervisor: Version,
}

impl Versions {
    /// As the status of the `GpuNode` has them.
    pub fn view(&self) -> HypervisorVersions {
        let is_qemu = self.hypervisor_name == "QEMU";
        HypervisorVersions {
            libvirt: self.daemon.to_string(),
            qemu: is_qemu.then(|| self.hypervisor.to_string()),
        }
    }
}

/// A version as libvirt counts: `major * 1000000 + minor * 1000 + release`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0 / 1_000_000, self.0 / 1000 % 1000, self.0 % 1000)
    }
}

/// What a hypervisor says it can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// It offers KVM for `x86_64`. No proof that a guest runs: some hosts' KVM fails at that.
    pub kvm: bool,
    /// The program that emulates `x86_64`.
    pub emulator: Option<String>,
    /// Names of the CPU models that it knows; none when it does not say.
    pub cpu_models: Vec<String>,
}

/// A network of the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSummary {
    /// Its name.
    pub name: String,
    /// It is started.
    pub active: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HypervisorEvent {
    /// To a domain.
    Domain(DomainEvent),
    /// The connection is lost. Calls fail as [`HypervisorError::Away`] until [`HypervisorEvent::Resync`].
    Closed {
        /// Why.
        reason: String,
    },
    /// Events may have been missed: look at all domains again.
    Resync,
}

/// Something that happened to a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DomainEvent {
    /// The domain.
    pub uuid: Uuid,
    /// What happened.
    pub kind: DomainEventKind,
}

/// What happened to a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainEventKind {
    /// Made or replaced.
    Defined,
    /// Forgotten.
    Undefined,
    /// Started.
    Started,
    /// Paused.
    Suspended,
    /// Goes on.
    Resumed,
    /// Fell asleep by the guest's own wish.
    FellAsleep,
    /// The guest is down; the process follows.
    Shutdown,
    /// Ended.
    Stopped {
        /// Why.
        reason: StopReason,
    },
    /// The guest panicked.
    Crashed,
    /// The guest's agent came.
    AgentConnected,
    /// The guest's agent went.
    AgentDisconnected,
}

/// Why a domain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The guest shut down.
    Shutdown,
    /// Somebody took the power away.
    Destroyed,
    /// The guest or its process crashed.
    Crashed,
    /// It went to another host.
    Migrated,
    /// It was saved.
    Saved,
    /// The hypervisor failed.
    Failed,
    /// Something else.
    Other,
}

/// Everything that happens, from the moment it was asked for.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<HypervisorEvent>);

impl Events {
    /// The events of a channel. A reader that is too slow for it sees [`HypervisorEvent::Resync`] in
    /// place of what it missed.
    #[must_use]
    pub fn new(receiver: broadcast::Receiver<HypervisorEvent>) -> Self {
        Self(receiver)
    }

    /// The next event; `None` when the hypervisor is dropped.
    pub async fn next(&mut self) -> Option<HypervisorEvent> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(HypervisorEvent::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// The same as a stream.
    #[must_use]
    pub fn into_stream(self) -> BoxStream<'static, HypervisorEvent> {
        stream::unfold(self, |mut events| async move { events.next().await.map(|event| (event, events)) })
            .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_reader_is_told_to_look_again() {
        let (sender, receiver) = broadcast::channel(2);
        let mut events = Events::new(receiver);
        for n in 0..5 {
            let closed = HypervisorEvent::Closed { reason: n.to_string() };
            sender.send(closed).unwrap();
        }
        drop(sender);
        assert_eq!(events.next().await, Some(HypervisorEvent::Resync));
        assert_eq!(events.next().await, Some(HypervisorEvent::Closed { reason: "3".into() }));
        let rest: Vec<_> = events.into_stream().collect().await;
        assert_eq!(rest, [HypervisorEvent::Closed { reason: "4".into() }]);
    }

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(Version(11_003_000).to_string(), "11.3.0");
    }
}
