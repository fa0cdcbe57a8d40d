//! Writes the ticket into the Desktop: the API server decides who may.
#![expect(clippy::disallowed_methods, reason = "adapter: a ticket ends some time from now")]

use std::fmt::Write;

use gpudesk_crds::{
    Desktop,
    relay::{TICKET_SECONDS, VIEW_TICKET_ANNOTATION, ViewTicket},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use rustls::crypto::ring::default_provider;
use serde_json::{Value, json};

use super::{run::ViewError, target::Target};

/// A clock that is this far from the API server's is not the one to go by.
const CLOCKS_AGREE: SignedDuration = SignedDuration::from_secs(5);

/// The API server's clock is gone by at the second attempt; several servers may differ.
const CLOCKS: usize = 3;

/// A ticket in a Desktop, and its secret.
pub struct Ticket {
    /// Opens the screen once.
    pub secret: String,
    desktops: Api<Desktop>,
    name: String,
    uid: String,
    /// A field manager of its own: nobody who applies the Desktop finds it changed, and taking this
    /// ticket away takes nobody else's.
    manager: String,
}

impl Ticket {
    /// Writes a ticket for the screen of `target`.
    ///
    /// # Errors
    /// What the API server says; [`ViewError::Forbidden`] to who may not `patch` the desktop.
    pub async fn write(client: &Client, target: &Target) -> Result<Self, ViewError> {
        let ticket = Self {
            secret: random(32)?,
            desktops: Api::namespaced(client.clone(), &target.namespace),
            name: target.name.clone(),
            uid: target.uid.clone(),
            manager: format!("kubectl-desktop-view-{}", random(4)?),
        };
        let mut now = Timestamp::now();
        for _ in 0..CLOCKS {
            let end = now.checked_add(SignedDuration::from_secs(TICKET_SECONDS)).unwrap_or(now);
            let end = Time(Timestamp::from_second(end.as_second()).unwrap_or(end));
            let content = ViewTicket::new(&target.uid, &target.relay.public_key, &ticket.secret, end);
            let text =
                serde_json::to_string(&content).map_err(|error| ViewError::Failed(error.to_string()))?;
            let written = ticket.apply(Some(json!({ VIEW_TICKET_ANNOTATION: text }))).await;
            let written = written.map_err(|error| ViewError::patch(error, target))?;
            // The end is by the clock of the API server, whatever this computer's says.
            let own =
                written.managed_fields().iter().find(|entry| entry.manager.as_ref() == Some(&ticket.manager));
            match own.and_then(|entry| entry.time.as_ref()) {
                Some(time) if time.0.duration_since(now).abs() > CLOCKS_AGREE => now = time.0,
                Some(_) | None => break,
            }
        }
        Ok(ticket)
    }

    /// Takes it away again. It ends by itself, so a failure is nobody's.
    pub async fn remove(self) {
        let _ = self.apply(None).await;
    }

    /// Applies these annotations, or nothing at all: then no trace of the manager is left.
    async fn apply(&self, annotations: Option<Value>) -> Result<Desktop, kube::Error> {
        // The UID keeps it from being a Desktop that was made anew meanwhile.
        let mut metadata = json!({ "name": self.name, "uid": self.uid });
        if let Some(annotations) = annotations {
            metadata["annotations"] = annotations;
        }
        let apply = json!({
            "apiVersion": Desktop::api_version(&()),
            "kind": Desktop::kind(&()),
            "metadata": metadata,
        });
        let params = PatchParams::apply(&self.manager).force();
        self.desktops.patch(&self.name, &params, &Patch::Apply(&apply)).await
    }
}

/// Random bytes as hexadecimal digits.
fn random(bytes: usize) -> Result<String, ViewError> {
    let mut random = vec![0; bytes];
    default_provider()
        .secure_random
        .fill(&mut random)
        .map_err(|_| ViewError::Failed("the system gives no random numbers".into()))?;
    let mut text = String::with_capacity(2 * bytes);
    for byte in random {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_256_random_bits() {
        let (one, two) = (random(32).unwrap(), random(32).unwrap());
        assert_eq!(one.len(), 64);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()) && one != two);
    }
}
