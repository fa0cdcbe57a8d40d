use gpudesk_crds::relay::TICKET_SECONDS;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::*;
use crate::desktop::fixtures::{SMALL, UID, desktop};

const GATE: Gate<'_> = Gate { node: "node-a", public_key: "key" };

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_767_600_000 + second).unwrap()
}

fn ticket(secret: &str) -> ViewTicket {
    ViewTicket::new(UID, "key", secret, Time(at(TICKET_SECONDS)))
}

fn with(ticket: &ViewTicket) -> Desktop {
    let mut desktop = desktop("", SMALL, "[]");
    let text = serde_json::to_string(ticket).unwrap();
    desktop.metadata.annotations = Some([(VIEW_TICKET_ANNOTATION.to_owned(), text)].into());
    desktop
}

fn request(secret: &str) -> RelayRequest {
    RelayRequest {
        namespace: "school".into(),
        name: "anna".into(),
        desktop_uid: UID.into(),
        secret: secret.into(),
    }
}

fn reason(judged: Result<ViewTicket, Refused>) -> Option<Refusal> {
    judged.err().map(|refused| refused.reason)
}

#[test]
fn a_ticket_is_good_for_its_desktop_on_its_node_in_its_time() {
    let desktop = with(&ticket("s"));
    assert_eq!(GATE.judge(&desktop, &request("s"), at(0)), Ok(ticket("s")));
    assert_eq!(GATE.judge(&desktop, &request("s"), at(TICKET_SECONDS - 1)), Ok(ticket("s")));
    for late in [TICKET_SECONDS, TICKET_SECONDS + 1, 86_400] {
        assert_eq!(reason(GATE.judge(&desktop, &request("s"), at(late))), Some(Refusal::Expired));
    }
    let eternal = ViewTicket::new(UID, "key", "s", Time(at(LONGEST_TICKET_SECONDS + 1)));
    assert_eq!(reason(GATE.judge(&with(&eternal), &request("s"), at(0))), Some(Refusal::Expired));
}

#[test]
fn everything_else_is_no_ticket_in_the_same_words() {
    let good = with(&ticket("s"));
    let elsewhere = Gate { node: "node-b", ..GATE };
    let later = Gate { public_key: "key of the next start", ..GATE };
    let nothing = desktop("", SMALL, "[]");
    let mut garbled = with(&ticket("s"));
    garbled.metadata.annotations = Some([(VIEW_TICKET_ANNOTATION.to_owned(), "{}".to_owned())].into());
    // Somebody who may write the other desktop copied the annotation there.
    let mut copied = with(&ticket("s"));
    copied.metadata.uid = Some("7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a02".into());
    let of_other = RelayRequest { desktop_uid: copied.metadata.uid.clone().unwrap(), ..request("s") };
    let namespace = RelayRequest { namespace: "other".into(), ..request("s") };
    let name = RelayRequest { name: "ben".into(), ..request("s") };
    let refused = [
        GATE.judge(&good, &request("t"), at(0)),
        GATE.judge(&good, &request(""), at(0)),
        GATE.judge(&good, &namespace, at(0)),
        GATE.judge(&good, &name, at(0)),
        GATE.judge(&good, &of_other, at(0)),
        GATE.judge(&copied, &of_other, at(0)),
        GATE.judge(&nothing, &request("s"), at(0)),
        GATE.judge(&garbled, &request("s"), at(0)),
        elsewhere.judge(&good, &request("s"), at(0)),
        later.judge(&good, &request("s"), at(0)),
        // Of one that has ended, who does not know the secret learns nothing.
        GATE.judge(&good, &request("t"), at(3600)),
    ];
    for judged in refused {
        assert_eq!(judged, Err(no_ticket()));
    }
}

#[test]
fn a_ticket_is_used_once_also_by_many_at_once() {
    let lookers = Lookers::default();
    let first = ticket("s");
    let taken = std::thread::scope(|scope| {
        let racers: Vec<_> =
            (0..10).map(|_| scope.spawn(|| lookers.take("school", UID, &first, at(0)))).collect();
        racers.into_iter().filter_map(|racer| racer.join().unwrap().ok()).collect::<Vec<_>>()
    });
    assert_eq!(taken.len(), 1);
    drop(taken);
    assert_eq!(lookers.take("school", UID, &first, at(TICKET_SECONDS)).err(), Some(no_ticket()));
    // What has ended long ago needs no memory.
    let _later =
        lookers.take("school", UID, &ticket("t"), at(TICKET_SECONDS + MEMORY.as_secs() + 1)).ok().unwrap();
    assert_eq!(lookers.lock().used.len(), 1);
}

#[test]
fn places_are_limited_and_the_first_at_a_desktop_is_always_there() {
    let lookers = Lookers::default();
    let mut number = 0;
    let mut take = |namespace: &str, uid: &str| {
        number += 1;
        lookers.take(namespace, uid, &ticket(&number.to_string()), at(0))
    };
    let mut places: Vec<_> = (0..LOOKERS_OF_A_DESKTOP).map(|_| take("a", "a-0").ok().unwrap()).collect();
    let full = take("a", "a-0").err().unwrap();
    assert_eq!(full.reason, Refusal::Full);
    assert!(full.message.contains("16 look at this desktop"), "{full:?}");
    places.pop();
    places.push(take("a", "a-0").ok().unwrap());

    // One namespace takes what it can of as many desktops as it likes.
    let mut crowd = |namespace: &str, places: &mut Vec<Place>| {
        for desktop in 0..40 {
            let uid = format!("{namespace}-{desktop}");
            while let Ok(place) = take(namespace, &uid) {
                places.push(place);
            }
        }
    };
    crowd("a", &mut places);
    assert_eq!(places.len(), 40 + FURTHER_OF_A_NAMESPACE, "the first of each, and its share beside them");
    for namespace in ["b", "c", "d", "e"] {
        crowd(namespace, &mut places);
    }
    assert_eq!(places.len(), 5 * 40 + FURTHER_OF_A_NODE);
    for (namespace, uid, message) in [
        ("a", "a-39", "look at desktops of namespace a on this node already"),
        ("e", "e-39", "look at desktops of this node already"),
    ] {
        let full = take(namespace, uid).err().unwrap();
        assert!(full.reason == Refusal::Full && full.message.contains(message), "{full:?}");
    }
    // However full it is, who looks at a desktop that nobody looks at gets in.
    places.push(take("a", "another").ok().unwrap());
    places.push(take("f", "f-0").ok().unwrap());
    assert_eq!(take("f", "f-0").err().unwrap().reason, Refusal::Full);
    drop(places);
    assert!(lookers.lock().of_desktop.is_empty(), "nothing is kept of desktops nobody looks at");
    assert!(take("a", "a-0").is_ok());
}

#[test]
fn a_refusal_for_lack_of_room_leaves_the_ticket_as_it_is() {
    let lookers = Lookers::default();
    let places: Vec<_> = (0..LOOKERS_OF_A_DESKTOP)
        .map(|number| lookers.take("school", UID, &ticket(&number.to_string()), at(0)).ok().unwrap())
        .collect();
    assert_eq!(lookers.take("school", UID, &ticket("s"), at(0)).err().unwrap().reason, Refusal::Full);
    drop(places);
    assert!(lookers.take("school", UID, &ticket("s"), at(1)).is_ok());
}

proptest! {
    #[test]
    fn no_annotation_and_no_secret_opens_another_ticket(annotation in ".{0,200}", secret in ".{0,40}") {
        let mut desktop = desktop("", SMALL, "[]");
        desktop.metadata.annotations = Some([(VIEW_TICKET_ANNOTATION.to_owned(), annotation)].into());
        prop_assert_eq!(GATE.judge(&desktop, &request(&secret), at(0)), Err(no_ticket()));
        prop_assert!(secret == "s" || GATE.judge(&with(&ticket("s")), &request(&secret), at(0)).is_err());
    }
}
