//! Two open connections with their callbacks.

use tokio::sync::{broadcast, mpsc};
use virt::connect::Connect;
use virt::error::{Error, ErrorNumber};

use super::events::{Notice, Sink, Subscription, start_loop};
use super::fault;
use crate::host::hypervisor::{HypervisorError, HypervisorEvent};

/// Seconds between questions to a silent server, and how many may stay unanswered: a server that
/// hangs fails every call after 20 seconds.
const KEEPALIVE: (i32, u32) = (5, 3);

/// Says that a session is lost.
#[derive(Debug)]
pub(super) struct Lost {
    /// Which: the number given to [`Session::open`].
    pub(super) number: u64,
    /// Why.
    pub(super) reason: String,
}

/// Two open connections with their callbacks. Blocking: opening, and dropping the last of it.
pub(super) struct Session {
    // Before its connection, so that it is dropped first.
    _subscription: Subscription,
    /// For calls that libvirt answers by itself; events come here.
    pub(super) quick: Connect,
    /// For calls that wait for a guest.
    pub(super) guest: Connect,
    pub(super) number: u64,
}

impl Session {
    /// Opens the connections and passes on what happens there.
    ///
    /// # Errors
    /// `Denied` or `Transient`, naming the URI.
    pub(super) fn open(
        uri: &str,
        number: u64,
        events: broadcast::Sender<HypervisorEvent>,
        lost: mpsc::UnboundedSender<Lost>,
    ) -> Result<Self, HypervisorError> {
        start_loop().map_err(|message| HypervisorError::Refused {
            doing: "start libvirt's event loop".to_owned(),
            message,
        })?;
        let sink: Sink = std::sync::Arc::new(move |notice| match notice {
            // Nobody listening is not a fault.
            Notice::Domain(event) => drop(events.send(HypervisorEvent::Domain(event))),
            Notice::Closed(reason) => drop(lost.send(Lost { number, reason: reason.to_owned() })),
        });
        let open = move || -> Result<Self, Error> {
            let quick = open_kept_alive(uri)?;
            let guest = open_kept_alive(uri)?;
            Ok(Self { _subscription: Subscription::new(&quick, sink)?, quick, guest, number })
        };
        open().map_err(|error| fault::of_open(uri, &error))
    }
}

fn open_kept_alive(uri: &str) -> Result<Connect, Error> {
    let connect = Connect::open(Some(uri))?;
    let (seconds, times) = KEEPALIVE;
    match connect.set_keep_alive(seconds, times) {
        // A driver in this process has no server to lose.
        Err(error) if !error.code().is(ErrorNumber::NoSupport) => Err(error),
        Ok(()) | Err(_) => Ok(connect),
    }
}
