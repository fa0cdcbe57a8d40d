//! What happens to cards, as Events about the `GpuNode`: `kubectl describe gpunode` shows them.

use gpudesk_crds::{GpuNode, NODE_DAEMON_FIELD_MANAGER, types::PciAddress};
use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, Resource, ResourceExt, api::PostParams};

use crate::devices::notices::{Happened, Notice};

/// Where Events about what is in no namespace stand (validation of the API server).
const NAMESPACE: &str = "default";
/// The longest note that the API server takes, in bytes.
const NOTE: usize = 1024;
/// The longest `reportingInstance`.
const INSTANCE: usize = 128;
/// The longest name of an object.
const NAME: usize = 253;
/// Answers that stay the same however often an Event is sent: it is no Event, may not be written, or is too large.
const FOR_GOOD: [u16; 4] = [400, 403, 413, 422];

/// Tells what is to be told of cards; returns what need not be told again. What the API server refuses for good is told in the
/// log alone; any other failure, as that of a token that is just replaced, may be over the next time.
pub async fn tell(client: &Client, node: &GpuNode, notices: Vec<Notice>) -> Vec<Notice> {
    let events = Api::<Event>::namespaced(client.clone(), NAMESPACE);
    let mut told = vec![];
    for notice in notices {
        let made = events.create(&PostParams::default(), &event(node, &notice)).await;
        match made {
            Ok(_) => {}
            // It was told before, by a daemon that ended then.
            Err(kube::Error::Api(answer)) if answer.code == 409 => {}
            Err(kube::Error::Api(answer)) if FOR_GOOD.contains(&answer.code) => {
                tracing::warn!(%answer, ?notice, "an Event about a card is refused");
            }
            Err(error) => {
                tracing::warn!(%error, "an Event about a card is written later");
                break;
            }
        }
        told.push(notice);
    }
    told
}

/// One Event. The same notice gives the same name, so it stands there once.
fn event(node: &GpuNode, notice: &Notice) -> Event {
    let name = node.name_any();
    let Notice { card, what, at, why } = notice;
    let type_ = match what {
        Happened::CardQuarantined => "Warning",
        Happened::CardReturned => "Normal",
    };
    let action = match what {
        Happened::CardQuarantined => "Quarantine",
        Happened::CardReturned => "Return",
    };
    Event {
        metadata: ObjectMeta {
            name: Some(event_name(&name, *card, *what, *at)),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(*at)),
        reporting_controller: Some(NODE_DAEMON_FIELD_MANAGER.into()),
        // The admission policy takes no other than the node's name, or what fits of it.
        reporting_instance: Some(cut(&name, INSTANCE)),
        action: Some(action.into()),
        reason: Some(what.as_str().into()),
        regarding: Some(ObjectReference {
            api_version: Some(GpuNode::api_version(&()).into()),
            kind: Some(GpuNode::kind(&()).into()),
            name: Some(name),
            uid: node.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        // What a driver said may have several lines; the admission policy takes no control characters.
        note: Some(cut(&words(*card, *what, why).replace(char::is_control, " "), NOTE)),
        type_: Some(type_.into()),
        ..Event::default()
    }
}

fn words(card: PciAddress, what: Happened, why: &str) -> String {
    match what {
        Happened::CardQuarantined => format!(
            "{card} is given to nobody: {why}; it is given again once it is seen healthy, as after a reboot of the host"
        ),
        Happened::CardReturned => format!("{card} is given again: {why}"),
    }
}

/// A name of an object: letters, digits and dots. Of a long name of a node it has the beginning.
fn event_name(node: &str, card: PciAddress, what: Happened, at: Timestamp) -> String {
    let card: String = card.to_string().chars().filter(char::is_ascii_alphanumeric).collect();
    let rest = format!(".{card}.{}.{:x}", what.as_str().to_ascii_lowercase(), at.as_millisecond().max(0));
    let node = cut(node, NAME.saturating_sub(rest.len()));
    format!("{}{rest}", node.trim_end_matches(['.', '-']))
}

/// As much of a text as so many bytes hold.
fn cut(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    fn notice(what: Happened, second: i64) -> Notice {
        let at = Timestamp::from_second(second).unwrap();
        Notice { card: "0000:41:00.0".parse().unwrap(), what, at, why: "é".repeat(2000) }
    }

    fn node() -> GpuNode {
        let node = json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode",
            "metadata": {"name": "node-a", "uid": "u"}, "spec": {}});
        serde_json::from_value(node).unwrap()
    }

    #[tokio::test]
    async fn each_is_told_once_and_what_no_server_hears_is_told_later() {
        let (service, mut api) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        let notices: Vec<Notice> =
            (0..4).map(|n| notice([Happened::CardQuarantined, Happened::CardReturned][n % 2], 1)).collect();
        let mut notices = notices;
        for (n, notice) in notices.iter_mut().enumerate() {
            notice.at = Timestamp::from_second(i64::try_from(n).unwrap()).unwrap();
        }
        let asked = notices.clone();
        let telling = tokio::spawn(async move { tell(&client, &node(), asked).await });
        let mut bodies: Vec<Value> = vec![];
        for code in [201, 409, 403, 503] {
            let (request, respond) = api.next_request().await.unwrap();
            assert_eq!(request.uri().path(), "/apis/events.k8s.io/v1/namespaces/default/events");
            let body = request.into_body().collect_bytes().await.unwrap();
            let event: Value = serde_json::from_slice(&body).unwrap();
            let answer = if code == 201 {
                event.clone()
            } else {
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "X",
                    "message": "no", "code": code})
            };
            bodies.push(event);
            let answer = Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
            respond.send_response(answer.unwrap());
        }
        assert_eq!(telling.await.unwrap(), &notices[..3], "the last is told later");
        let first = &bodies[0];
        assert_eq!((&first["reason"], &first["type"]), (&json!("CardQuarantined"), &json!("Warning")));
        assert_eq!((&bodies[1]["reason"], &bodies[1]["type"]), (&json!("CardReturned"), &json!("Normal")));
        let regarding =
            json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode", "name": "node-a", "uid": "u"});
        assert_eq!(first["regarding"], regarding);
        assert_eq!(first["metadata"]["name"], "node-a.000041000.cardquarantined.0");
        assert_eq!(first["reportingInstance"], "node-a");
        let note = first["note"].as_str().unwrap();
        assert!(note.len() <= NOTE && note.starts_with("0000:41:00.0 is given to nobody: é"), "{note}");
    }

    #[tokio::test]
    async fn only_what_is_refused_for_good_is_told_no_more() {
        for (code, tells) in [
            (400_u16, true),
            (403, true),
            (409, true),
            (413, true),
            (422, true),
            (401, false),
            (404, false),
            (408, false),
            (429, false),
            (500, false),
        ] {
            let (service, mut api) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
            let client = Client::new(service, "default");
            let telling = tokio::spawn(async move {
                tell(&client, &node(), vec![notice(Happened::CardQuarantined, 1)]).await
            });
            let (_, respond) = api.next_request().await.unwrap();
            let answer = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "X",
                "message": "no", "code": code});
            let answer = Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
            respond.send_response(answer.unwrap());
            assert_eq!(telling.await.unwrap().len(), usize::from(tells), "{code}");
        }
    }

    #[test]
    fn an_event_of_a_node_with_the_longest_name_is_valid() {
        let notice = notice(Happened::CardQuarantined, 4_000_000_000);
        let rest = event_name("", notice.card, notice.what, notice.at);
        // The cut is right after a dot.
        let long = format!("{}.{}", "n".repeat(NAME - rest.len() - 1), "a".repeat(rest.len()));
        let mut node = node();
        node.metadata.name = Some(long.clone());
        let odd = Notice { why: "the driver says:\n\tXid 79\u{9b}".into(), ..notice };
        let event = event(&node, &odd);
        let said = event.note.unwrap();
        assert!(said.contains("the driver says:  Xid 79 ;") && !said.contains(char::is_control), "{said:?}");
        assert_eq!(event.reporting_instance.as_deref(), Some(&long[..INSTANCE]));
        assert_eq!(event.regarding.and_then(|about| about.name), Some(long));
        let name = event.metadata.name.unwrap();
        assert!(name.len() <= NAME && name.ends_with(&rest) && !name.contains(".."), "{name}");
    }
}
