//! The one way in which objects come in: guarded ([`gpudesk_watch`]), stored, told to an observer.

use std::collections::HashSet;
use std::{fmt::Debug, hash::Hash, pin::pin, time::Duration};

use futures::{Stream, StreamExt, TryStreamExt};
use gpudesk_watch::{Note, understood::Read};
use kube::{
    Api, Resource,
    runtime::{
        reflector::{ObjectRef, store::Writer},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::{cause, metrics::Metrics};

/// What an observer hears, once the store shows it.
#[derive(Debug)]
pub enum Seen<'a, K> {
    /// The object is there, new or changed or said again.
    There(&'a K),
    /// The object is gone.
    Gone(&'a K),
    /// What was said so far is complete.
    Complete,
}

impl<K> Clone for Seen<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Seen<'_, K> {}

/// How long a watch that is refused may say nothing: it is tried again after half a minute at most.
const QUIET: Duration = Duration::from_mins(3);

/// Watches a kind until the future is dropped.
pub async fn watch<K>(
    api: Api<Read<K>>,
    config: watcher::Config,
    writer: Writer<K>,
    metrics: Metrics,
    observe: impl FnMut(Seen<'_, K>) + Send,
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Debug,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let (figures, what) = (metrics.clone(), kind.clone());
    let mut forbidden = false;
    let events = gpudesk_watch::watch(api, config, move |note| match note {
        Note::Interrupted => metrics.watch_errors(&kind),
        Note::Malformed => metrics.malformed(&kind),
        Note::Odd(count) => metrics.odd(&kind, count),
    });
    let mut told = pin!(stored(events, writer, observe));
    loop {
        // One that is refused says so at each try; one that goes on where it was says nothing.
        let event = match timeout(QUIET, told.next()).await {
            Ok(None) => return,
            Ok(Some(event)) => event,
            Err(_) => {
                if std::mem::take(&mut forbidden) {
                    figures.hindered(&what, None);
                }
                continue;
            }
        };
        match &event {
            // It says only that a list is begun.
            Ok(Event::Init) => {}
            Ok(_) if forbidden => {
                forbidden = false;
                figures.hindered(&what, None);
            }
            Err(error) if code(error) == Some(403) => {
                forbidden = true;
                let error = cause::of(error);
                let why = format!(
                    "{what} may not be read, see the ClusterRole and Role gpudesk-operator and their bindings: {error}"
                );
                figures.hindered(&what, Some(why));
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// The API server's code, where it answered.
pub(crate) fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// The events, once the store shows them and the observer has heard of them.
fn stored<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    mut writer: Writer<K>,
    mut observe: impl FnMut(Seen<'_, K>) + Send,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let store = writer.as_reader();
    let mut listed: HashSet<ObjectRef<K>> = HashSet::new();
    // The store shows an event before the observer hears of it: whoever the observer wakes finds in
    // the store what it was woken for.
    events.inspect_ok(move |event| {
        let gone = match event {
            Event::Init => {
                listed.clear();
                vec![]
            }
            Event::InitApply(object) => {
                listed.insert(ObjectRef::from_obj(object));
                vec![]
            }
            // What was there before and is not in the new list was deleted meanwhile.
            Event::InitDone => {
                let old = store.state();
                let listed = std::mem::take(&mut listed);
                old.into_iter().filter(|old| !listed.contains(&ObjectRef::from_obj(&**old))).collect()
            }
            Event::Apply(_) | Event::Delete(_) => vec![],
        };
        writer.apply_watcher_event(event);
        match event {
            Event::Apply(object) | Event::InitApply(object) => observe(Seen::There(object)),
            Event::Delete(object) => observe(Seen::Gone(object)),
            Event::Init => {}
            Event::InitDone => {
                for gone in &gone {
                    observe(Seen::Gone(gone));
                }
                observe(Seen::Complete);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::{future, stream};
    use gpudesk_crds::Desktop;
    use http::{Request, Response};
    use kube::{Client, ResourceExt, client::Body, runtime::reflector::store};
    use serde_json::json;

    use super::*;

    fn desktop(name: &str, version: &str) -> Desktop {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "demo", "resourceVersion": version},
            "spec": {"templateRef": {"name": "t"}},
        }))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_forbidden_is_said_until_it_goes_on() {
        let (service, mut api) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let (_reader, writer) = store::<Desktop>();
        let metrics = Metrics::default();
        let desktops = Api::all(Client::new(service, "default"));
        let ignore = |_: Seen<'_, Desktop>| {};
        let config = watcher::Config::default();
        let watching = tokio::spawn(watch(desktops, config, writer, metrics.clone(), ignore));
        let answer = |code: u16, body: serde_json::Value| {
            Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap()
        };
        let (_, respond) = api.next_request().await.unwrap();
        respond.send_response(answer(
            403,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden",
                   "message": "no"}),
        ));
        let (_, respond) = api.next_request().await.unwrap();
        let said = metrics.hindrances();
        assert!(said.len() == 1 && said[0].starts_with("Desktop may not be read"), "{said:?}");
        respond.send_response(answer(
            200,
            json!({"kind": "DesktopList", "apiVersion": "gpudesk.dev/v1alpha1", "metadata": {"resourceVersion": "1"},
                   "items": []}),
        ));
        let (_request, respond) = api.next_request().await.unwrap();
        assert_eq!(metrics.hindrances(), Vec::<String>::new());
        respond.send_response(answer(
            403,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden",
                   "message": "no"}),
        ));
        // It goes on where it was, and nothing happens for hours.
        let (_request, _respond) = api.next_request().await.unwrap();
        assert_eq!(metrics.hindrances().len(), 1);
        tokio::time::sleep(QUIET + Duration::from_secs(1)).await;
        assert_eq!(metrics.hindrances(), Vec::<String>::new());
        watching.abort();
    }

    #[tokio::test]
    async fn what_is_seen_is_in_the_store_and_a_new_list_says_what_is_gone() {
        let (reader, writer) = store();
        let heard = Mutex::new(vec![]);
        let events = [
            Event::Init,
            Event::InitApply(desktop("a", "1")),
            Event::InitApply(desktop("b", "1")),
            Event::InitApply(desktop("c", "1")),
            Event::InitDone,
            Event::Init,
            Event::InitApply(desktop("a", "2")),
            Event::InitApply(desktop("b", "2")),
            Event::InitDone,
            Event::Delete(desktop("a", "3")),
        ];
        let observe = |seen: Seen<'_, Desktop>| {
            heard.lock().unwrap().push(match seen {
                Seen::There(d) => format!("+{}@{}", d.name_any(), d.resource_version().unwrap()),
                Seen::Gone(d) => format!("-{}", d.name_any()),
                Seen::Complete => "complete".into(),
            });
        };
        stored(stream::iter(events.map(Ok)), writer, observe).for_each(|_| future::ready(())).await;
        let heard = heard.into_inner().unwrap();
        assert_eq!(heard, ["+a@1", "+b@1", "+c@1", "complete", "+a@2", "+b@2", "-c", "complete", "-a"]);
        assert_eq!(reader.len(), 1);
    }
}
