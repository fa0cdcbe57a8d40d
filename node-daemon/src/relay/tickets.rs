//! Which tickets are good, and how many may look. Pure: the caller tells the time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gpudesk_crds::{
    Desktop,
    relay::{LONGEST_TICKET_SECONDS, Refusal, RelayRequest, VIEW_TICKET_ANNOTATION, ViewTicket},
};
use jiff::{SignedDuration, Timestamp};

use super::listener::Refused;

/// Most who look at one desktop at a time.
const LOOKERS_OF_A_DESKTOP: usize = 16;
/// Most who look beside another at the same desktop, on this node: each is two descriptors. The first who
/// looks at a desktop always has a place, so that nobody's desktops keep another's owner out.
const FURTHER_OF_A_NODE: usize = 256;
/// And most of those in one namespace.
const FURTHER_OF_A_NAMESPACE: usize = 64;
/// For so long after its end a used ticket is remembered, should the clock be set back.
const MEMORY: SignedDuration = SignedDuration::from_mins(10);

/// What somebody shows a ticket to.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// Name of the node.
    pub node: &'a str,
    /// The relay's key, as the status of desktops has it.
    pub public_key: &'a str,
}

impl Gate<'_> {
    /// The ticket of `desktop`, when it is the one that is asked with, and good `now`.
    ///
    /// # Errors
    /// `NoTicket` for everything that a stranger could ask; `Expired` only to who knows the secret.
    pub fn judge(
        &self,
        desktop: &Desktop,
        request: &RelayRequest,
        now: Timestamp,
    ) -> Result<ViewTicket, Refused> {
        let Self { node, public_key } = *self;
        let metadata = &desktop.metadata;
        let allocation = desktop.status.as_ref().and_then(|status| status.allocation.as_ref());
        let is_here = metadata.name.as_deref() == Some(&request.name)
            && metadata.namespace.as_deref() == Some(&request.namespace)
            && metadata.uid.as_deref() == Some(&request.desktop_uid)
            && allocation.is_some_and(|allocation| allocation.node == node);
        let annotation =
            metadata.annotations.as_ref().and_then(|annotations| annotations.get(VIEW_TICKET_ANNOTATION));
        let ticket = annotation
            .filter(|_| is_here)
            .and_then(|annotation| ViewTicket::read(annotation).ok())
            .filter(|ticket| ticket.is_of(&request.desktop_uid, public_key, &request.secret))
            .ok_or_else(no_ticket)?;
        let left = ticket.expires_at.0.duration_since(now);
        if left <= SignedDuration::ZERO {
            let message = format!("the ticket ended at {}; on node {node} it is {now}", ticket.expires_at.0);
            return Err(Refused::new(Refusal::Expired, message));
        }
        if left > SignedDuration::from_secs(LONGEST_TICKET_SECONDS) {
            let message = format!(
                "a ticket is good for at most {LONGEST_TICKET_SECONDS} s, and this one ends at {}; on node {node} it is {now}",
                ticket.expires_at.0
            );
            return Err(Refused::new(Refusal::Expired, message));
        }
        Ok(ticket)
    }
}

/// Said of everything that is not there, so that nobody learns what is.
pub fn no_ticket() -> Refused {
    Refused::new(Refusal::NoTicket, "no such ticket for such a desktop on this node")
}

/// Tickets that were used, and who looks at what. Cheap to clone.
#[derive(Clone, Default)]
pub struct Lookers(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    used: HashMap<String, Timestamp>,
    of_desktop: HashMap<String, Looked>,
}

/// How many look at a desktop.
#[derive(Default)]
struct Looked {
    namespace: String,
    count: usize,
}

impl Looked {
    /// Those beside the first.
    fn further(&self) -> usize {
        self.count.saturating_sub(1)
    }
}

impl Lookers {
    /// Uses `ticket` up and takes a place at the desktop with this UID in `namespace`.
    ///
    /// # Errors
    /// `Full`, which leaves the ticket as it is; `NoTicket` when it was used before.
    pub fn take(
        &self,
        namespace: &str,
        uid: &str,
        ticket: &ViewTicket,
        now: Timestamp,
    ) -> Result<Place, Refused> {
        let mut counts = self.lock();
        counts.used.retain(|_, end| now.duration_since(*end) < MEMORY);
        if counts.used.contains_key(&ticket.sha256) {
            return Err(no_ticket());
        }
        let full = |message: String| Err(Refused::new(Refusal::Full, message));
        let here = counts.of_desktop.get(uid).map_or(0, |looked| looked.count);
        if here >= LOOKERS_OF_A_DESKTOP {
            return full(format!("{here} look at this desktop, and more may not"));
        }
        if here > 0 {
            let further = |of: &dyn Fn(&Looked) -> bool| -> usize {
                counts.of_desktop.values().filter(|looked| of(looked)).map(Looked::further).sum()
            };
            if further(&|looked| looked.namespace == namespace) >= FURTHER_OF_A_NAMESPACE {
                return full(format!(
                    "somebody looks at this desktop, and beside others {FURTHER_OF_A_NAMESPACE} look at desktops of \
                     namespace {namespace} on this node already"
                ));
            }
            if further(&|_| true) >= FURTHER_OF_A_NODE {
                return full(format!(
                    "somebody looks at this desktop, and beside others {FURTHER_OF_A_NODE} look at desktops of this \
                     node already"
                ));
            }
        }
        counts.used.insert(ticket.sha256.clone(), ticket.expires_at.0);
        let looked = counts.of_desktop.entry(uid.to_owned()).or_default();
        namespace.clone_into(&mut looked.namespace);
        looked.count += 1;
        Ok(Place { lookers: self.clone(), uid: uid.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place at a desktop, given back when it is dropped.
pub struct Place {
    lookers: Lookers,
    uid: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.lookers.lock();
        if let Some(looked) = counts.of_desktop.get_mut(&self.uid) {
            looked.count -= 1;
            if looked.count == 0 {
                counts.of_desktop.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
#[path = "tickets_tests.rs"]
mod tests;
