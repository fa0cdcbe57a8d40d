//! The door of this node: asks the watch for the ticket and libvirt for the screen.
#![expect(clippy::disallowed_methods, reason = "adapter: tickets end by the time now")]

use std::{
    os::unix::net::UnixStream as StdUnixStream,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use gpudesk_crds::{
    Desktop,
    desktop::ConsoleRelay,
    relay::{Refusal, RelayRequest, ViewTicket},
};
use jiff::Timestamp;
use kube::{Api, Client, runtime::reflector::ObjectRef};
use tokio::{net::UnixStream, sync::watch, time::sleep};
use uuid::Uuid;

use super::{
    listener::{Admitted, Doorkeeper, Refused},
    tickets::{Gate, Lookers, no_ticket},
};
use crate::{
    domain::metadata,
    host::hypervisor::{Hypervisor, HypervisorError},
    orphans::Watched,
};

/// How long the watch may be behind a client that has just written its ticket.
const WATCH_LAG: Duration = Duration::from_secs(2);
/// How often the store is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(50);
/// The API server itself is asked no more often than this, whoever knocks.
const ASK: Duration = Duration::from_secs(1);

/// The door of this node.
pub struct Door {
    node: String,
    relay: ConsoleRelay,
    hypervisor: Arc<dyn Hypervisor>,
    watched: watch::Receiver<Option<Watched>>,
    client: Client,
    lookers: Lookers,
    asked: Mutex<Option<Instant>>,
}

impl Door {
    /// The door of `node`, to the desktops that are `watched`.
    pub fn new(
        node: &str,
        relay: ConsoleRelay,
        hypervisor: Arc<dyn Hypervisor>,
        client: Client,
        watched: watch::Receiver<Option<Watched>>,
    ) -> Self {
        Self {
            node: node.into(),
            relay,
            hypervisor,
            watched,
            client,
            lookers: Lookers::default(),
            asked: Mutex::default(),
        }
    }

    fn judge(&self, desktop: &Desktop, request: &RelayRequest) -> Result<ViewTicket, Refused> {
        let gate = Gate { node: &self.node, public_key: &self.relay.public_key };
        gate.judge(desktop, request, Timestamp::now())
    }

    /// The good ticket that is asked with. The watch may be some moments behind, and where it is
    /// interrupted the API server is asked.
    async fn ticket(&self, request: &RelayRequest) -> Result<ViewTicket, Refused> {
        let name = ObjectRef::new(&request.name).within(&request.namespace);
        let start = Instant::now();
        loop {
            let known = self.watched.borrow().as_ref().and_then(|watched| watched.desktops.get(&name));
            let judged =
                known.as_deref().map_or_else(|| Err(no_ticket()), |known| self.judge(known, request));
            let is_missing = judged.as_ref().is_err_and(|refused| refused.reason == Refusal::NoTicket);
            if !is_missing {
                return judged;
            }
            if start.elapsed() >= WATCH_LAG {
                // Strangers cannot make this node ask for desktops of others, or for any they do not know.
                let is_known =
                    known.is_some_and(|known| known.metadata.uid.as_ref() == Some(&request.desktop_uid));
                return if is_known { self.ask(request).await } else { judged };
            }
            sleep(LOOK).await;
        }
    }

    async fn ask(&self, request: &RelayRequest) -> Result<ViewTicket, Refused> {
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.is_some_and(|asked| asked.elapsed() < ASK) {
                return Err(no_ticket());
            }
            *asked = Some(Instant::now());
        }
        let desktops: Api<Desktop> = Api::namespaced(self.client.clone(), &request.namespace);
        match desktops.get_opt(&request.name).await {
            Ok(Some(desktop)) => self.judge(&desktop, request),
            Ok(None) => Err(no_ticket()),
            Err(error) => {
                tracing::warn!(%error, "the API server was not asked for a ticket");
                Err(no_ticket())
            }
        }
    }

    /// The screen of the domain, which must be the desktop's own.
    async fn screen(&self, request: &RelayRequest) -> Result<UnixStream, Refused> {
        let not_running = || {
            let message =
                format!("no machine of {}/{} runs on node {}", request.namespace, request.name, self.node);
            Refused::new(Refusal::NotRunning, message)
        };
        let failed = |error: HypervisorError| match error {
            HypervisorError::NotFound { .. } => not_running(),
            error => Refused::new(Refusal::Failed, error.to_string()),
        };
        let uid: Uuid = request.desktop_uid.parse().map_err(|_| no_ticket())?;
        let domain = self.hypervisor.get(uid).await.map_err(failed)?;
        let Some(Ok(Some(ours))) = domain.metadata.as_deref().map(metadata::parse) else {
            return Err(not_running());
        };
        let is_its_own =
            ours.desktop_uid == uid && ours.namespace == request.namespace && ours.name == request.name;
        if !is_its_own || !domain.state.is_active() {
            return Err(not_running());
        }
        let screen = StdUnixStream::from(self.hypervisor.open_screen(uid).await.map_err(failed)?);
        let ready = screen.set_nonblocking(true).and_then(|()| UnixStream::from_std(screen));
        ready.map_err(|error| Refused::new(Refusal::Failed, format!("the screen could not be read: {error}")))
    }
}

impl Doorkeeper for Door {
    fn admit(&self, request: RelayRequest) -> BoxFuture<'_, Result<Admitted, Refused>> {
        async move {
            let ticket = self.ticket(&request).await?;
            let place =
                self.lookers.take(&request.namespace, &request.desktop_uid, &ticket, Timestamp::now())?;
            let screen = self.screen(&request).await?;
            Ok(Admitted { screen, place: Box::new(place) })
        }
        .boxed()
    }
}
