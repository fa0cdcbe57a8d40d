//! The hypervisor over libvirt.
//!
//! ```text
//!   async callers ──▶ lane (semaphore) ──▶ blocking thread ──▶ calls.rs ──▶ its connection
//!   Events ◀── broadcast ◀── sink ◀── libvirt's loop thread (events.rs)          │
//!   supervisor ◀── lost ◀─────┴── close callback, or a call that finds it dead ◀─┘
//! ```
//!
//! Works with `qemu:///system`, with `qemu:///system?socket=PATH`, and with `test:///default`, which
//! lives in this process and is shared by all its connections.

mod calls;
mod events;
mod fault;
mod session;
pub mod socket;

use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{Semaphore, broadcast, mpsc};
use uuid::Uuid;
use virt::connect::Connect;

use self::fault::Fault;
use self::session::{Lost, Session};
use super::hypervisor::{
    Answer, Capabilities, DomainDetails, DomainSummary, Events, GuestState, Hypervisor, HypervisorError,
    HypervisorEvent, NetworkSummary, Screenshot, Versions,
};

/// Calls under way on one connection. A server works on five of a client and then reads no more from
/// it, not even keepalives, and the client takes it for dead. Each lane has a connection of its own,
/// so that guests that do not answer hold up guests only.
const LANE: usize = 4;
/// Events that a reader may be behind before it is told to look at everything again.
const EVENT_BACKLOG: usize = 4096;

/// The hypervisor over libvirt. Cheap to clone; the connection ends with the last clone.
#[derive(Clone)]
pub struct LibvirtHypervisor {
    shared: Arc<Shared>,
}

struct Shared {
    uri: String,
    session: RwLock<Option<Arc<Session>>>,
    quick: Arc<Semaphore>,
    guest: Arc<Semaphore>,
    events: broadcast::Sender<HypervisorEvent>,
    lost: mpsc::WeakUnboundedSender<Lost>,
}

/// Who a call waits for.
#[derive(Clone, Copy)]
enum Lane {
    /// libvirt.
    Quick,
    /// The guest.
    Guest,
}

impl LibvirtHypervisor {
    /// Opens a connection and keeps it open: when it is lost it is opened again, after 0.2 to 15
    /// seconds between attempts, and [`HypervisorEvent::Resync`] follows.
    ///
    /// # Errors
    /// When the first attempt fails: `Denied` or `Transient`, naming the URI.
    pub async fn connect(uri: &str) -> Result<Self, HypervisorError> {
        let (lost, losses) = mpsc::unbounded_channel();
        let this = Self::without_session(uri, lost.downgrade());
        let session = open(uri.to_owned(), 0, this.shared.events.clone(), lost.clone()).await?;
        this.shared.replace(Some(Arc::new(session)));
        tokio::spawn(supervise(Arc::downgrade(&this.shared), losses, lost.downgrade()));
        Ok(this)
    }

    /// One whose connection is never opened: each call fails as those of a lost connection do.
    pub fn silent(uri: &str) -> Self {
        Self::without_session(uri, mpsc::unbounded_channel().0.downgrade())
    }

    fn without_session(uri: &str, lost: mpsc::WeakUnboundedSender<Lost>) -> Self {
        let shared = Shared {
            uri: uri.to_owned(),
            session: RwLock::new(None),
            quick: Arc::new(Semaphore::new(LANE)),
            guest: Arc::new(Semaphore::new(LANE)),
            events: broadcast::channel(EVENT_BACKLOG).0,
            lost,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The URI of the connection.
    pub fn uri(&self) -> &str {
        &self.shared.uri
    }

    fn call<T: Send + 'static>(
        &self,
        lane: Lane,
        doing: String,
        ask: impl FnOnce(&Connect) -> Result<T, Fault> + Send + 'static,
    ) -> Answer<'_, T> {
        Box::pin(async move {
            let places = match lane {
                Lane::Quick => &self.shared.quick,
                Lane::Guest => &self.shared.guest,
            };
            let transient = |doing: &str, message: &str| HypervisorError::Transient {
                doing: doing.to_owned(),
                message: message.to_owned(),
            };
            // Never closed; if it were, the answer would be the same.
            let Ok(permit) = Arc::clone(places).acquire_owned().await else {
                return Err(transient(&doing, "shutting down"));
            };
            let Some(session) = self.shared.session() else {
                return Err(HypervisorError::Away { doing });
            };
            let lost = self.shared.lost.upgrade();
            let asked = doing.clone();
            let answer = tokio::task::spawn_blocking(move || {
                // Held by the thread, so that a dropped future does not let more calls in.
                let _permit = permit;
                let connect = match lane {
                    Lane::Quick => &session.quick,
                    Lane::Guest => &session.guest,
                };
                ask(connect).map_err(|fault| {
                    let alive = connect.is_alive().unwrap_or(false);
                    if let (false, Some(lost)) = (alive, lost) {
                        let reason = "a call found it closed".to_owned();
                        let _ = lost.send(Lost { number: session.number, reason });
                    }
                    fault.into_error(asked, alive)
                })
            });
            // The virt crate panics on what it thinks cannot happen; that is one failed call, not ours.
            answer.await.unwrap_or_else(|panic| Err(transient(&doing, &panic.to_string())))
        })
    }
}

impl Shared {
    fn session(&self) -> Option<Arc<Session>> {
        self.session.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, session: Option<Arc<Session>>) -> Option<Arc<Session>> {
        std::mem::replace(&mut *self.session.write().unwrap_or_else(PoisonError::into_inner), session)
    }
}

async fn open(
    uri: String,
    number: u64,
    events: broadcast::Sender<HypervisorEvent>,
    lost: mpsc::UnboundedSender<Lost>,
) -> Result<Session, HypervisorError> {
    let doing = format!("open libvirt at {uri}");
    tokio::task::spawn_blocking(move || Session::open(&uri, number, events, lost))
        .await
        .unwrap_or_else(|panic| Err(HypervisorError::Transient { doing, message: panic.to_string() }))
}

/// Opens the connection again whenever it is lost; ends with the last clone of the hypervisor.
async fn supervise(
    shared: Weak<Shared>,
    mut losses: mpsc::UnboundedReceiver<Lost>,
    sender: mpsc::WeakUnboundedSender<Lost>,
) {
    // The sessions' own callbacks keep the channel open, and a lost session goes before the next comes.
    let mut next = 1;
    while let Some(Lost { number, reason }) = losses.recv().await {
        let (Some(this), Some(lost)) = (shared.upgrade(), sender.upgrade()) else { return };
        if this.session().is_none_or(|session| session.number != number) {
            continue;
        }
        tracing::warn!(uri = this.uri, reason, "the connection to libvirt is lost");
        let gone = this.replace(None);
        let _ = this.events.send(HypervisorEvent::Closed { reason });
        // Dropping it may ask a server that is not there.
        tokio::task::spawn_blocking(move || drop(gone));
        drop(this);
        let Some(session) = reopen(&shared, next, &lost).await else { return };
        next += 1;
        let Some(this) = shared.upgrade() else { return };
        this.replace(Some(Arc::new(session)));
        tracing::info!(uri = this.uri, "connected to libvirt again");
        let _ = this.events.send(HypervisorEvent::Resync);
    }
}

async fn reopen(shared: &Weak<Shared>, number: u64, lost: &mpsc::UnboundedSender<Lost>) -> Option<Session> {
    let mut delays = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(15))
        .with_jitter()
        .without_max_times()
        .build();
    loop {
        tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(15))).await;
        let this = shared.upgrade()?;
        let attempt = open(this.uri.clone(), number, this.events.clone(), lost.clone());
        drop(this);
        match attempt.await {
            Ok(session) => return Some(session),
            Err(error) => tracing::warn!(%error, "not connected to libvirt yet"),
        }
    }
}

impl Hypervisor for LibvirtHypervisor {
    fn list(&self) -> Answer<'_, Vec<DomainSummary>> {
        self.call(Lane::Quick, "list domains".to_owned(), calls::list)
    }

    fn get(&self, uuid: Uuid) -> Answer<'_, DomainSummary> {
        self.call(Lane::Quick, format!("look at domain {uuid}"), move |c| calls::get(c, uuid))
    }

    fn define(&self, xml: String) -> Answer<'_, Uuid> {
        self.call(Lane::Quick, "define a domain".to_owned(), move |c| calls::define(c, &xml))
    }

    fn start(&self, uuid: Uuid) -> Answer<'_, ()> {
        self.call(Lane::Quick, format!("start domain {uuid}"), move |c| calls::start(c, uuid))
    }

    fn shutdown(&self, uuid: Uuid) -> Answer<'_, ()> {
        self.call(Lane::Guest, format!("shut down domain {uuid}"), move |c| calls::shutdown(c, uuid))
    }

    fn destroy(&self, uuid: Uuid) -> Answer<'_, ()> {
        self.call(Lane::Quick, format!("destroy domain {uuid}"), move |c| calls::destroy(c, uuid))
    }

    fn undefine(&self, uuid: Uuid, state: GuestState) -> Answer<'_, ()> {
        self.call(Lane::Quick, format!("undefine domain {uuid}"), move |c| calls::undefine(c, uuid, state))
    }

    fn details(&self, uuid: Uuid) -> Answer<'_, DomainDetails> {
        self.call(Lane::Quick, format!("describe domain {uuid}"), move |c| calls::details(c, uuid))
    }

    fn confine(&self, uuid: Uuid, cpus: Vec<u32>) -> Answer<'_, ()> {
        self.call(Lane::Quick, format!("move domain {uuid} to other CPUs"), move |c| {
            calls::confine(c, uuid, &cpus)
        })
    }

    fn agent_ping(&self, uuid: Uuid) -> Answer<'_, bool> {
        self.call(Lane::Guest, format!("ping the agent of domain {uuid}"), move |c| {
            calls::agent_ping(c, uuid)
        })
    }

    fn agent_command(&self, uuid: Uuid, command: String) -> Answer<'_, String> {
        self.call(Lane::Guest, format!("ask the agent of domain {uuid}"), move |c| {
            calls::agent_command(c, uuid, &command)
        })
    }

    fn open_screen(&self, uuid: Uuid) -> Answer<'_, OwnedFd> {
        self.call(Lane::Quick, format!("open the screen of domain {uuid}"), move |c| {
            calls::open_screen(c, uuid)
        })
    }

    fn screenshot(&self, uuid: Uuid) -> Answer<'_, Screenshot> {
        self.call(Lane::Quick, format!("take a picture of domain {uuid}"), move |c| {
            calls::screenshot(c, uuid)
        })
    }

    fn versions(&self) -> Answer<'_, Versions> {
        self.call(Lane::Quick, "ask for versions".to_owned(), calls::versions)
    }

    fn capabilities(&self) -> Answer<'_, Capabilities> {
        self.call(Lane::Quick, "ask for capabilities".to_owned(), calls::capabilities)
    }

    fn qemu_user(&self) -> Answer<'_, Option<u32>> {
        self.call(Lane::Quick, "ask for the user of QEMU".to_owned(), calls::qemu_user)
    }

    fn networks(&self) -> Answer<'_, Vec<NetworkSummary>> {
        self.call(Lane::Quick, "list networks".to_owned(), calls::networks)
    }

    fn events(&self) -> Events {
        Events::new(self.shared.events.subscribe())
    }
}
