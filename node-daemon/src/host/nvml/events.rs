//! What cards report of their own accord: errors first of all.
#![expect(unsafe_code, reason = "calls a C library by its interface")]
#![expect(clippy::disallowed_methods, reason = "adapter: notes when an event came")]

use std::{
    ptr,
    sync::{Arc, atomic::Ordering, mpsc::sync_channel},
    thread,
    time::Duration,
};

use gpudesk_crds::types::PciAddress;
use gpudesk_inventory::driver::{DriverEvent, EventKind};
use jiff::Timestamp;
use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{
    NvmlError, Shared, card,
    find::MOST_CARDS,
    library::{CallError, Session, call, code, number, small, valid},
    lock,
    watchdog::{Deadline, Job},
};

/// Events that wait for their reader; NVML keeps those that do not fit.
const ROOM: usize = 256;
/// How long one wait takes, and so how soon a dropped receiver or a rescan is noticed.
const WAIT_MS: u32 = 1000;
/// How long to leave a driver alone that cannot be listened to.
const PAUSE: Duration = Duration::from_secs(2);

/// `nvmlEventType…`
const DOUBLE_BIT_ECC: u64 = 0x2;
const XID: u64 = 0x8;
const UNAVAILABLE: u64 = 0x4000;
const RECOVERY_ACTION: u64 = 0x8000;
const WANTED: u64 = DOUBLE_BIT_ECC | XID | UNAVAILABLE | RECOVERY_ACTION;

pub(super) fn listen(shared: &Arc<Shared>) -> Result<Receiver<DriverEvent>, NvmlError> {
    let busy = shared.busy.begin(Job::Events).map_err(|since| NvmlError::StillBusy(since.as_secs()))?;
    let (events, receiver) = channel(ROOM);
    let (answer, begun) = sync_channel(1);
    let patience = shared.patience;
    let shared = Arc::clone(shared);
    busy.spawn(move || {
        let mut listening = match Listening::begin(&shared) {
            Ok(listening) => {
                let _ = answer.send(Ok(()));
                Some(listening)
            }
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        while !events.is_closed() {
            if shared.gate.is_closed() {
                drop(listening.take());
                shared.gate.wait_open();
                continue;
            }
            if listening.as_ref().is_some_and(|listening| !listening.is_current(&shared)) {
                // NVML looks for cards when nobody uses it, so no reading may go on meanwhile.
                let _no_reading = lock(&shared.reading);
                drop(listening.take());
                listening = Listening::begin(&shared).ok();
            }
            match &listening {
                Some(ears) => match ears.pass_on(&events) {
                    Ok(()) => {}
                    Err(error) => {
                        tracing::warn!(%error, "NVML does not tell events; listening anew");
                        listening = None;
                        thread::sleep(PAUSE);
                    }
                },
                None => match Listening::begin(&shared) {
                    Ok(ears) => listening = Some(ears),
                    Err(error) => {
                        tracing::debug!(%error, "NVML cannot be listened to");
                        thread::sleep(PAUSE);
                    }
                },
            }
        }
    })?;
    let deadline = Deadline::after(patience);
    begun.recv_timeout(deadline.left()).map_err(|_| NvmlError::NoAnswer(patience.as_secs()))??;
    Ok(receiver)
}

/// A set of events that the cards of now put theirs into.
struct Listening {
    session: Session,
    set: nvmlEventSet_t,
    /// A card that is lost does not tell its address any more.
    addresses: Vec<(nvmlDevice_t, PciAddress)>,
    rescans: u64,
}

impl Listening {
    fn begin(shared: &Shared) -> Result<Self, NvmlError> {
        let rescans = shared.rescans.load(Ordering::Relaxed);
        let session = Session::begin(Arc::clone(&shared.library), &shared.gate)?;
        let nvml = session.functions();
        let needed = |error: CallError| NvmlError::Call(error.to_string());
        let mut set = ptr::null_mut();
        call!(nvml, nvmlEventSetCreate, &raw mut set).map_err(needed)?;
        let mut listening = Self { session, set, addresses: vec![], rescans };
        let count = number(|count| call!(listening.session.functions(), nvmlDeviceGetCount_v2, count))
            .map_err(needed)?;
        for index in 0..count.min(MOST_CARDS) {
            if let Err(error) = listening.add(index) {
                tracing::debug!(index, %error, "a card's events cannot be listened to");
            }
        }
        Ok(listening)
    }

    fn is_current(&self, shared: &Shared) -> bool {
        self.rescans == shared.rescans.load(Ordering::Relaxed)
    }

    fn add(&mut self, index: u32) -> Result<(), CallError> {
        let nvml = self.session.functions();
        let mut device = ptr::null_mut();
        call!(nvml, nvmlDeviceGetHandleByIndex_v2, index, &raw mut device)?;
        let mut supported = 0_u64;
        call!(nvml, nvmlDeviceGetSupportedEventTypes, device, &raw mut supported)?;
        let types = supported & WANTED;
        if types == 0 {
            return Ok(());
        }
        let mut pci = card::NO_PCI;
        call!(nvml, nvmlDeviceGetPciInfo_v3, device, &raw mut pci)?;
        call!(nvml, nvmlDeviceRegisterEvents, device, types, self.set)?;
        self.addresses.extend(card::address(&pci).map(|address| (device, address)));
        Ok(())
    }

    /// Waits a while and passes on what comes. Ends early when nobody listens any more.
    fn pass_on(&self, events: &Sender<DriverEvent>) -> Result<(), CallError> {
        let nvml = self.session.functions();
        let nothing = u32::MAX;
        let mut data = nvmlEventData_t {
            device: ptr::null_mut(),
            eventType: 0,
            eventData: 0,
            gpuInstanceId: nothing,
            computeInstanceId: nothing,
        };
        match call!(nvml, nvmlEventSetWait_v2, self.set, &raw mut data, WAIT_MS) {
            Err(error) if error.code() == code::TIMEOUT => return Ok(()),
            answer => answer?,
        }
        let address = self.addresses.iter().find(|(device, _)| *device == data.device);
        let Some((_, address)) = address else { return Ok(()) };
        let kind = match data.eventType {
            XID => EventKind::Xid(u32::try_from(data.eventData).unwrap_or(u32::MAX)),
            DOUBLE_BIT_ECC => EventKind::DoubleBitEcc,
            UNAVAILABLE => EventKind::Unavailable,
            RECOVERY_ACTION => EventKind::RecoveryAction,
            other => EventKind::Other(other),
        };
        let event = DriverEvent {
            card: *address,
            at: Timestamp::now(),
            kind,
            gpu_instance: valid(data.gpuInstanceId).map(small),
            compute_instance: valid(data.computeInstanceId).map(small),
        };
        // Nobody to tell is no error: the loop ends by it.
        let _ = events.blocking_send(event);
        Ok(())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let nvml = self.session.functions();
        if let Err(error) = call!(nvml, nvmlEventSetFree, self.set) {
            tracing::debug!(%error, "a set of events was not freed");
        }
    }
}
