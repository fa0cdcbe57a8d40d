//! The key by which the operator knows its decisions again: the tag of each id is a message authentication code
//! of whose decision it is, where and when. A node that made one up cannot claim the desktops of others.

use std::{collections::BTreeMap, time::Duration};

use gpudesk_crds::{Allocation, AllocationId, Desktop};
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{Api, Client, api::PostParams};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use thiserror::Error;

use crate::cause;

/// The Secret, and the entry in it.
const SECRET: &str = "gpudesk-allocation-key";
const ENTRY: &str = "key";
const BYTES: usize = 32;
/// Between attempts to read it.
const AGAIN: Duration = Duration::from_secs(2);
/// Between looks whether it is still there.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The key.
#[derive(Debug)]
pub struct AllocationKey(hmac::Key);

/// What keeps the Secret: without it the operator that leads next knows no decision of before.
pub struct Keeper(Vec<u8>);

/// Why there is no key.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The API server does not give the Secret.
    #[error("{}", cause::of_request(.0))]
    Request(#[from] Box<kube::Error>),
    /// The Secret is not ours.
    #[error(
        "data.{ENTRY} has {0} bytes and must have {BYTES}; where the key is lost, delete the Secret and a new one is made"
    )]
    Length(usize),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

impl AllocationKey {
    /// A key of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The id of the next decision of a desktop: above all that its status tells of, and above the one by which it is
    /// remembered to have held something. Else it would be given up for this decision, and missed again before the next.
    pub fn mint(
        &self,
        desktop: &Desktop,
        remembered: Option<AllocationId>,
        node: &str,
        decided_at: &Time,
    ) -> AllocationId {
        let above = remembered.map_or(0, |remembered| remembered.number().saturating_add(1));
        let number = AllocationId::new(desktop.next_number().max(above), 0).number();
        let uid = desktop.metadata.uid.as_deref().unwrap_or_default();
        AllocationId::new(number, self.tag(number, uid, node, decided_at))
    }

    /// Whether an operator with this key decided this for the desktop of a UID.
    pub fn is_authentic(&self, uid: &str, allocation: &Allocation) -> bool {
        let Allocation { node, decided_at, .. } = allocation;
        allocation.id.is_some_and(|id| {
            id == AllocationId::new(id.number(), self.tag(id.number(), uid, node, decided_at))
        })
    }

    fn tag(&self, number: u64, uid: &str, node: &str, decided_at: &Time) -> u32 {
        let text = format!("{number}|{uid}|{node}|{}", decided_at.0.as_second());
        let code = hmac::sign(&self.0, text.as_bytes());
        code.as_ref().iter().take(4).fold(0, |tag, byte| tag << 8 | u32::from(*byte))
    }

    /// The key of this cluster. Without it nothing can be decided: it is asked for until it is there.
    pub async fn of_cluster(client: &Client, namespace: &str) -> (Self, Keeper) {
        loop {
            match read_or_make(&Api::namespaced(client.clone(), namespace), new_bytes).await {
                Ok(bytes) => return (Self::new(&bytes), Keeper(bytes)),
                Err(error) => tracing::error!(
                    "Secret {namespace}/{SECRET}, without which nothing is decided, cannot be read or made: {error}; trying again"
                ),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

impl Keeper {
    /// Makes the Secret again whenever somebody has deleted it. Runs until dropped.
    pub async fn keep(self, client: Client, namespace: String) {
        let secrets = Api::namespaced(client, &namespace);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let again = || {
                tracing::warn!(
                    "Secret {namespace}/{SECRET} is gone and is made again of the same key: without it the operator that leads \
                     next knows no decision of before"
                );
                Ok(self.0.clone())
            };
            match read_or_make(&secrets, again).await {
                Ok(bytes) if bytes == self.0 => {}
                Ok(_) => tracing::error!(
                    "Secret {namespace}/{SECRET} has another key than the one by which this operator decides: what runs is \
                     not known to the next operator as decided, should its status be lost; put the old one back"
                ),
                Err(error) => {
                    tracing::warn!("Secret {namespace}/{SECRET} cannot be read or made again: {error}");
                }
            }
        }
    }
}

/// The key in the Secret; where that is not there, it is made of `bytes`.
async fn read_or_make(
    secrets: &Api<Secret>,
    bytes: impl FnOnce() -> Result<Vec<u8>, KeyError>,
) -> Result<Vec<u8>, KeyError> {
    let secret = match secrets.get_opt(SECRET).await.map_err(Box::new)? {
        Some(secret) => secret,
        None => match secrets.create(&PostParams::default(), &secret_of(bytes()?)).await {
            Ok(secret) => secret,
            // Another operator was first.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                secrets.get(SECRET).await.map_err(Box::new)?
            }
            Err(error) => return Err(Box::new(error).into()),
        },
    };
    let bytes = secret.data.unwrap_or_default().remove(ENTRY).unwrap_or_default().0;
    if bytes.len() == BYTES { Ok(bytes) } else { Err(KeyError::Length(bytes.len())) }
}

fn new_bytes() -> Result<Vec<u8>, KeyError> {
    let mut bytes = vec![0; BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeyError::Random)?;
    Ok(bytes)
}

fn secret_of(bytes: Vec<u8>) -> Secret {
    Secret {
        metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([(ENTRY.to_owned(), ByteString(bytes))])),
        immutable: Some(true),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn allocation(key: &AllocationKey, uid: &str) -> Allocation {
        let desktop: Desktop = serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": uid}, "spec": {"templateRef": {"name": "t"}},
            "status": {"lastPlacement": {"node": "n", "allocationId": "4-00000001"},
                       "node": {"allocationId": "6-00000001", "state": "Running"}},
        }))
        .unwrap();
        let mut allocation: Allocation = serde_json::from_value(json!({
            "node": "n", "desktopGeneration": 1, "templateGeneration": 1, "decidedAt": "2026-01-01T00:00:00Z",
        }))
        .unwrap();
        allocation.id = Some(key.mint(&desktop, None, &allocation.node, &allocation.decided_at));
        allocation
    }

    #[test]
    fn a_decision_is_known_again_and_none_that_differs_in_anything_is() {
        let key = AllocationKey::new(&[7; BYTES]);
        let decided = allocation(&key, "u");
        assert_eq!(decided.id.unwrap().number(), 7, "above all that was said");
        assert!(key.is_authentic("u", &decided));
        assert!(!key.is_authentic("v", &decided));
        assert!(!AllocationKey::new(&[8; BYTES]).is_authentic("u", &decided));
        let later = Time(decided.decided_at.0 + k8s_openapi::jiff::SignedDuration::from_secs(1));
        let id = decided.id.unwrap();
        let number = AllocationId::new(8, u32::from_str_radix(&id.to_string()[2..], 16).unwrap());
        for other in [
            Allocation { node: "m".into(), ..decided.clone() },
            Allocation { decided_at: later, ..decided.clone() },
            Allocation { id: Some(number), ..decided.clone() },
            Allocation { id: None, ..decided.clone() },
        ] {
            assert!(!key.is_authentic("u", &other), "{other:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_that_is_deleted_is_made_again_of_the_same_key() {
        use http::{Request, Response};
        use kube::client::Body;
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let keeper = Keeper(vec![7; BYTES]);
        let keeping =
            tokio::spawn(keeper.keep(Client::new(service, "gpudesk-system"), "gpudesk-system".into()));
        let answer = |code: u16, body: serde_json::Value| {
            Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap()
        };
        let begun = tokio::time::Instant::now();
        let (request, send) = handle.next_request().await.unwrap();
        assert!(begun.elapsed() <= Duration::from_mins(1), "it is missed soon");
        assert_eq!(request.method(), "GET");
        send.send_response(answer(
            404,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound"}),
        ));
        let (request, send) = handle.next_request().await.unwrap();
        assert_eq!(request.method(), "POST");
        let made: serde_json::Value =
            serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
        assert_eq!(made["data"]["key"], format!("{}Bwc=", "BwcH".repeat(10)));
        send.send_response(answer(201, made));
        keeping.abort();
    }
}
