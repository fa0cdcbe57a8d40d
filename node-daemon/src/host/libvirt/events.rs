//! libvirt's event loop, and its callbacks as values.
//!
//! The virt crate wraps the loop and no registration, so this one file speaks to the C interface. What
//! it keeps to:
//!
//! - the loop is registered and its thread runs before the first connection is opened;
//! - a callback never unwinds, never calls libvirt but to read the UUID, and never keeps the domain
//!   pointer, which is only lent to it;
//! - what a callback points to is freed by libvirt's own call of [`free_sink`], or by us when the
//!   registration failed, and by nobody twice. It is a weak reference only: a driver that has no
//!   connection to lose takes a close callback, forgets it, and never frees it.

#![expect(unsafe_code, reason = "the virt crate wraps no registration of callbacks")]

use std::ffi::{c_int, c_void};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::Duration;

use uuid::Uuid;
use virt::connect::Connect;
use virt::error::{Error, ErrorNumber, clear_error_callback};
use virt::sys;

use crate::host::hypervisor::{DomainEvent, DomainEventKind, StopReason};

/// What libvirt reports by itself.
#[derive(Debug)]
pub(super) enum Notice {
    /// Something happened to a domain.
    Domain(DomainEvent),
    /// The connection is closed.
    Closed(&'static str),
}

/// Where notices go. Called on the loop's thread: it must neither block nor call libvirt.
pub(super) type Sink = Arc<dyn Fn(Notice) + Send + Sync>;

/// Registers libvirt's event loop and starts its thread, once in a process; later calls only repeat
/// the first one's answer.
///
/// # Errors
/// When libvirt or the host refuses: no connection can be watched then.
pub(super) fn start_loop() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // Errors are values here; libvirt would print each to stderr too.
            clear_error_callback();
            virt::event::event_register_default_impl().map_err(|e| e.to_string())?;
            // The loop sleeps until something is ready: the timer makes it see what was added since.
            virt::event::event_add_timeout(1000, |_, _| {}, ptr::null_mut()).map_err(|e| e.to_string())?;
            thread::Builder::new()
                .name("libvirt-events".to_owned())
                .spawn(|| {
                    loop {
                        if let Err(error) = virt::event::event_run_default_impl() {
                            tracing::warn!(%error, "libvirt's event loop");
                            thread::sleep(Duration::from_millis(100));
                        }
                    }
                })
                .map_err(|e| e.to_string())?;
            Ok(())
        })
        .clone()
}

/// The callbacks of one connection; removed when dropped, which may ask the server.
pub(super) struct Subscription {
    connect: Connect,
    sink: Sink,
    domain_callbacks: Vec<c_int>,
    close_callback: bool,
}

impl Subscription {
    /// Watches all domains of a connection, and the connection itself where the driver has one to lose.
    ///
    /// # Errors
    /// libvirt's, when domains cannot be watched.
    pub(super) fn new(connect: &Connect, sink: Sink) -> Result<Self, Error> {
        let mut this =
            Self { connect: connect.clone(), sink, domain_callbacks: Vec::new(), close_callback: false };
        // SAFETY: libvirt calls a lifecycle callback with the arguments of `on_lifecycle`; the C
        // interface takes all kinds of callbacks as this one type.
        let lifecycle = unsafe { mem::transmute::<LifecycleCallback, GenericCallback>(on_lifecycle) };
        this.watch(sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle)?;
        // SAFETY: as above, for `on_agent`.
        let agent = unsafe { mem::transmute::<AgentCallback, GenericCallback>(on_agent) };
        unless_unsupported(this.watch(sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent))?;
        unless_unsupported(this.watch_connection())?;
        Ok(this)
    }

    fn watch(&mut self, event: sys::virDomainEventID, callback: GenericCallback) -> Result<(), Error> {
        let opaque = lend(&self.sink);
        // SAFETY: the connection is open while `self` has it; `opaque` is a box of `lend`, which
        // `free_sink` takes back when libvirt is done with it.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                self.connect.as_ptr(),
                ptr::null_mut(),
                event.cast_signed(),
                Some(callback),
                opaque,
                Some(free_sink),
            )
        };
        if id < 0 {
            let error = Error::last_error();
            // SAFETY: a refused registration leaves `opaque` to us.
            unsafe { free_sink(opaque) };
            return Err(error);
        }
        self.domain_callbacks.push(id);
        Ok(())
    }

    fn watch_connection(&mut self) -> Result<(), Error> {
        let opaque = lend(&self.sink);
        // SAFETY: as in `watch`.
        let answer = unsafe {
            sys::virConnectRegisterCloseCallback(
                self.connect.as_ptr(),
                Some(on_close),
                opaque,
                Some(free_sink),
            )
        };
        if answer < 0 {
            let error = Error::last_error();
            // SAFETY: a refused registration leaves `opaque` to us.
            unsafe { free_sink(opaque) };
            return Err(error);
        }
        self.close_callback = true;
        Ok(())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // A lost connection refuses some of this; libvirt drops its own side all the same.
        for id in &self.domain_callbacks {
            // SAFETY: the connection is open while `self` has it.
            unsafe { sys::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), *id) };
        }
        if self.close_callback {
            // SAFETY: as above.
            unsafe { sys::virConnectUnregisterCloseCallback(self.connect.as_ptr(), Some(on_close)) };
        }
    }
}

fn unless_unsupported(answer: Result<(), Error>) -> Result<(), Error> {
    answer.or_else(|error| if error.code().is(ErrorNumber::NoSupport) { Ok(()) } else { Err(error) })
}

type GenericCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
type LifecycleCallback =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type AgentCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void);

type WeakSink = Weak<dyn Fn(Notice) + Send + Sync>;

/// A reference of libvirt's own to a sink, to be taken back by [`free_sink`].
fn lend(sink: &Sink) -> *mut c_void {
    Box::into_raw(Box::new(Arc::downgrade(sink))).cast()
}

/// Calls the sink, if it is still there.
///
/// # Safety
/// `opaque` comes from [`lend`], and [`free_sink`] has not taken it back.
unsafe fn give(opaque: *mut c_void, notice: Notice) {
    // SAFETY: the caller's promise.
    let sink = unsafe { &*opaque.cast_const().cast::<WeakSink>() };
    if let Some(sink) = sink.upgrade() {
        sink(notice);
    }
}

unsafe extern "C" fn free_sink(opaque: *mut c_void) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `opaque` comes from `lend`, and libvirt calls this once.
        drop(unsafe { Box::from_raw(opaque.cast::<WeakSink>()) });
    }));
}

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: libvirt gives back the `opaque` of `lend`, and a domain that is valid during the call.
    unsafe { report(domain, lifecycle(event, detail), opaque) };
    0
}

unsafe extern "C" fn on_agent(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    let kind = match state.cast_unsigned() {
        sys::VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED => DomainEventKind::AgentConnected,
        _ => DomainEventKind::AgentDisconnected,
    };
    // SAFETY: as in `on_lifecycle`.
    unsafe { report(domain, Some(kind), opaque) };
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, reason: c_int, opaque: *mut c_void) {
    let reason = match reason.cast_unsigned() {
        sys::VIR_CONNECT_CLOSE_REASON_EOF => "the server closed it",
        sys::VIR_CONNECT_CLOSE_REASON_KEEPALIVE => "the server does not answer",
        sys::VIR_CONNECT_CLOSE_REASON_CLIENT => "closed by us",
        _ => "an error on it",
    };
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: libvirt gives back the `opaque` of `lend`, and no more after `free_sink`.
        unsafe { give(opaque, Notice::Closed(reason)) };
    }));
}

/// # Safety
/// `domain` is valid during the call; `opaque` as for [`give`].
unsafe fn report(domain: sys::virDomainPtr, kind: Option<DomainEventKind>, opaque: *mut c_void) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let mut bytes = [0; 16];
        // SAFETY: the caller's `domain` is valid, and a raw UUID has VIR_UUID_BUFLEN = 16 bytes.
        let answer = unsafe { sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) };
        if let (0, Some(kind)) = (answer, kind) {
            // SAFETY: the caller's promise.
            unsafe { give(opaque, Notice::Domain(DomainEvent { uuid: Uuid::from_bytes(bytes), kind })) };
        }
    }));
}

/// `None` for what a newer libvirt may report.
fn lifecycle(event: c_int, detail: c_int) -> Option<DomainEventKind> {
    Some(match event.cast_unsigned() {
        sys::VIR_DOMAIN_EVENT_DEFINED => DomainEventKind::Defined,
        sys::VIR_DOMAIN_EVENT_UNDEFINED => DomainEventKind::Undefined,
        sys::VIR_DOMAIN_EVENT_STARTED => DomainEventKind::Started,
        sys::VIR_DOMAIN_EVENT_SUSPENDED => DomainEventKind::Suspended,
        sys::VIR_DOMAIN_EVENT_RESUMED => DomainEventKind::Resumed,
        sys::VIR_DOMAIN_EVENT_STOPPED => DomainEventKind::Stopped { reason: stop_reason(detail) },
        sys::VIR_DOMAIN_EVENT_SHUTDOWN => DomainEventKind::Shutdown,
        sys::VIR_DOMAIN_EVENT_PMSUSPENDED => DomainEventKind::FellAsleep,
        sys::VIR_DOMAIN_EVENT_CRASHED => DomainEventKind::Crashed,
        _ => return None,
    })
}

fn stop_reason(detail: c_int) -> StopReason {
    match detail.cast_unsigned() {
        sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => StopReason::Shutdown,
        sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => StopReason::Destroyed,
        sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED => StopReason::Crashed,
        sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED => StopReason::Migrated,
        sys::VIR_DOMAIN_EVENT_STOPPED_SAVED => StopReason::Saved,
        sys::VIR_DOMAIN_EVENT_STOPPED_FAILED => StopReason::Failed,
        _ => StopReason::Other,
    }
}
