//! What the relay of a node and its clients say to each other, and the ticket that opens a screen.
//!
//! ```text
//!   client                            API server                         relay of the node
//!   ── patch: hash of a secret ─────▶ annotation of the Desktop ── watch ──▶
//!   ── TLS 1.3, key of status.consoles[].relay, one line with the secret ──▶ same hash, in time, once
//!   ◀──────────────────────────── one line: granted, or why not ───────────
//!   ◀═════════════════════════════ the bytes of the screen ═══════════════▶
//! ```
//!
//! Who may `patch` a Desktop may open its screen: the API server decides and audits that, and no
//! credential of it ever goes to a node. What a node learns is good for itself alone, once.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Annotation of a Desktop with the ticket that was asked for last: a [`ViewTicket`] as JSON.
pub const VIEW_TICKET_ANNOTATION: &str = "gpudesk.dev/view-ticket";
/// Seconds for which a client makes a ticket good.
pub const TICKET_SECONDS: i64 = 60;
/// Seconds for which a relay lets a ticket be good at most.
pub const LONGEST_TICKET_SECONDS: i64 = 300;
/// Name of the protocol, agreed on in the TLS handshake (ALPN).
pub const PROTOCOL: &[u8] = b"gpudesk-relay/1";
/// Port of the relay, unless told otherwise.
pub const DEFAULT_PORT: u16 = 8443;
/// Most bytes of a line, its end included.
pub const LONGEST_LINE: usize = 1024;

/// Permission to open the screen of one desktop once. What others may read of it opens nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ViewTicket {
    /// SHA-256 of the desktop's UID, the relay's key and the secret, as 64 hexadecimal digits.
    pub sha256: String,
    /// When it ends, by the clock of the API server.
    pub expires_at: Time,
}

impl ViewTicket {
    /// A ticket for the desktop with this UID, at the relay with this key as the status has it.
    pub fn new(desktop_uid: &str, public_key: &str, secret: &str, expires_at: Time) -> Self {
        Self { sha256: digest(desktop_uid, public_key, secret), expires_at }
    }

    /// Reads the annotation.
    ///
    /// # Errors
    /// When it is no ticket, in serde's words.
    pub fn read(annotation: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(annotation)
    }

    /// Whether it was made of this secret for this desktop and relay. Takes as long for any secret.
    pub fn is_of(&self, desktop_uid: &str, public_key: &str, secret: &str) -> bool {
        let wanted = digest(desktop_uid, public_key, secret);
        self.sha256.as_bytes().ct_eq(wanted.as_bytes()).into()
    }
}

fn digest(desktop_uid: &str, public_key: &str, secret: &str) -> String {
    // Neither a UID nor base64 has a line's end in it.
    let text = format!("{desktop_uid}\n{public_key}\n{secret}");
    format!("{:x}", Sha256::digest(text))
}

/// What a client says first: one line of JSON.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RelayRequest {
    /// Namespace of the Desktop.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub desktop_uid: String,
    /// The secret of the ticket.
    pub secret: String,
}

impl std::fmt::Debug for RelayRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RelayRequest({}/{}, {})", self.namespace, self.name, self.desktop_uid)
    }
}

/// What the relay answers: one line of JSON. After [`RelayAnswer::Granted`] come the bytes of the screen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer")]
pub enum RelayAnswer {
    /// The screen is open.
    Granted,
    /// It is not.
    Refused {
        /// Why, for programs.
        reason: Refusal,
        /// Why, for people.
        message: String,
    },
}

/// Why a relay does not open a screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The line is no request.
    BadRequest,
    /// There is no such ticket here: no such desktop, another secret, one that was used before, or a
    /// newer one in its place.
    NoTicket,
    /// The ticket has ended.
    Expired,
    /// The machine does not run here, or has no screen.
    NotRunning,
    /// As many look at this desktop, or at this node's, as may.
    Full,
    /// The node could not do it.
    Failed,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ticket() -> ViewTicket {
        ViewTicket::new("uid", "key", "secret", Time("2026-01-05T08:00:00Z".parse().unwrap()))
    }

    #[test]
    fn a_ticket_is_of_one_desktop_one_relay_and_one_secret() {
        let text = serde_json::to_string(&ticket()).unwrap();
        assert!(!text.contains("secret") && text.len() < 200, "{text}");
        let read = ViewTicket::read(&text).unwrap();
        assert_eq!(read, ticket());
        assert!(read.is_of("uid", "key", "secret"));
        for (uid, key, secret) in
            [("other", "key", "secret"), ("uid", "other", "secret"), ("uid", "key", "other"), ("", "", "")]
        {
            assert!(!read.is_of(uid, key, secret), "{uid} {key} {secret}");
        }
        let emptied = ViewTicket { sha256: String::new(), ..ticket() };
        assert!(!emptied.is_of("uid", "key", ""));
    }

    #[test]
    fn answers_and_requests_are_read_as_they_are_written() {
        let request = RelayRequest {
            namespace: "school".into(),
            name: "anna".into(),
            desktop_uid: "uid".into(),
            secret: "hidden".into(),
        };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<RelayRequest>(&text).unwrap(), request);
        assert!(!format!("{request:?}").contains("hidden"));
        // One that an older relay does not understand is refused, not taken for another.
        let newer = text.replace("\"name\"", "\"channel\":\"Serial\",\"name\"");
        assert!(serde_json::from_str::<RelayRequest>(&newer).is_err());
        let refused = RelayAnswer::Refused { reason: Refusal::Full, message: "16 look".into() };
        for answer in [RelayAnswer::Granted, refused] {
            let text = serde_json::to_string(&answer).unwrap();
            assert_eq!(serde_json::from_str::<RelayAnswer>(&text).unwrap(), answer);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            if let Ok(ticket) = ViewTicket::read(&text) {
                prop_assert!(!ticket.is_of("uid", "key", "secret"));
            }
        }

        #[test]
        fn parts_do_not_run_into_each_other(uid in "[a-z]{0,4}", key in "[a-z]{0,4}", secret in "[a-z]{0,4}") {
            let other = ViewTicket::new(&format!("{uid}{key}"), "", &secret, ticket().expires_at);
            prop_assert_eq!(other.is_of(&uid, &key, &secret), key.is_empty());
        }
    }
}
