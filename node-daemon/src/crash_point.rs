//! A test aid: the daemon can be told to end itself right after a step.
//!
//! With `GPUDESK_KILL_AFTER=<step>` in the environment the process sends itself SIGKILL the first
//! time it has done that step. A daemon that is killed between any two steps must go on where it was;
//! the end-to-end tests prove that with this. Without the variable nothing happens. Steps:
//! `overlay-written`, `disks-written`, `seed-written`, `gpus-created`, `defined`, `started`,
//! `status-written`, `shutdown-sent`, `destroyed`, `undefined`, `gpus-destroyed`, `folder-removed`, and `card-changed`
//! for each single change of a card: a daemon that is started so again and again goes on by one change each time.
#![expect(clippy::disallowed_methods, reason = "adapter: reads one variable of the environment")]

use std::sync::OnceLock;

/// A step after which a test may end the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// One disk is in its place.
    OverlayWritten,
    /// Every disk is in its place.
    DisksWritten,
    /// The seed disk is in its place.
    SeedWritten,
    /// Every share of a GPU is made.
    GpusCreated,
    /// The domain is defined.
    Defined,
    /// The domain is started.
    Started,
    /// A desktop's status is written.
    StatusWritten,
    /// The guest was asked to shut down.
    ShutdownSent,
    /// The domain's power is off.
    Destroyed,
    /// The domain is forgotten.
    Undefined,
    /// Every share of a GPU is unmade.
    GpusDestroyed,
    /// The desktop's folder is gone.
    FolderRemoved,
    /// A card was changed, and nothing was noted since.
    CardChanged,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::OverlayWritten => "overlay-written",
            Self::DisksWritten => "disks-written",
            Self::SeedWritten => "seed-written",
            Self::GpusCreated => "gpus-created",
            Self::Defined => "defined",
            Self::Started => "started",
            Self::StatusWritten => "status-written",
            Self::ShutdownSent => "shutdown-sent",
            Self::Destroyed => "destroyed",
            Self::Undefined => "undefined",
            Self::GpusDestroyed => "gpus-destroyed",
            Self::FolderRemoved => "folder-removed",
            Self::CardChanged => "card-changed",
        }
    }
}

/// Says that a step is done.
pub fn done(step: Step) {
    static LAST: OnceLock<Option<String>> = OnceLock::new();
    let last = LAST.get_or_init(|| std::env::var("GPUDESK_KILL_AFTER").ok());
    if last.as_deref() == Some(step.name()) {
        tracing::warn!(step = step.name(), "ending as GPUDESK_KILL_AFTER asks");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
