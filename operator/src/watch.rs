//! The one way in which objects come in: watched, read as far as they are understood, trimmed, told to
//! an observer, stored.

use std::collections::{HashMap, HashSet};
use std::{fmt::Debug, hash::Hash};

use futures::{Stream, StreamExt, TryStreamExt, future};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

use crate::{
    cause,
    metrics::Metrics,
    understood::{self, Read, odd},
};

/// What `kubectl apply` keeps of the last version: as large as the object and of no use here.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

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

/// Watches a kind until the future is dropped. Errors of the watch are logged and retried with
/// backoff.
///
/// An object that does not parse is logged once per version, counted, and there as far as it is understood:
/// see [`understood`].
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
    let events = watcher(api, config).default_backoff();
    let (warn_metrics, warn_kind) = (metrics.clone(), kind.clone());
    let events = events.inspect_err(move |error| {
        warn_metrics.watch_errors(&warn_kind);
        tracing::warn!(kind = %warn_kind, error = %cause::of(error), "watch interrupted; trying again");
    });
    through(events, writer, kind, metrics, observe).for_each(|_| future::ready(())).await;
}

/// The version of each object that does not parse of which that was said last.
type Logged<K> = HashMap<ObjectRef<K>, String>;

/// The road of events from the watch to the store.
fn through<K>(
    events: impl Stream<Item = Result<Event<Read<K>>, watcher::Error>> + Send,
    mut writer: Writer<K>,
    kind: String,
    metrics: Metrics,
    mut observe: impl FnMut(Seen<'_, K>) + Send,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send
where
    K: Resource + DeserializeOwned + Clone + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let store = writer.as_reader();
    let mut listed: HashSet<ObjectRef<K>> = HashSet::new();
    // Per odd object, the version of which that was said.
    let mut logged: Logged<K> = HashMap::new();
    let reading = (kind.clone(), metrics.clone());
    let events = events.filter_map(move |event| {
        let (kind, metrics) = &reading;
        future::ready(event.map(|event| read(event, kind, metrics)).transpose())
    });
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
        match event {
            Event::Apply(object) | Event::InitApply(object) => say_odd(object, &kind, &metrics, &mut logged),
            Event::Delete(object) => _ = logged.remove(&ObjectRef::from_obj(object)),
            Event::Init => {}
            Event::InitDone => gone.iter().for_each(|gone| _ = logged.remove(&ObjectRef::from_obj(&**gone))),
        }
        metrics.odd(&kind, logged.len());
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

/// The event with an object that is trimmed and, if need be, odd. Nothing where not even its metadata can be read.
fn read<K>(event: Event<Read<K>>, kind: &str, metrics: &Metrics) -> Option<Event<K>>
where
    K: Resource + DeserializeOwned,
{
    let read = |read: Read<K>| {
        let mut object = match read {
            Read::Whole(mut object) => {
                understood::unmark(&mut object);
                object
            }
            Read::Odd { metadata, value } => {
                let Some(object) = understood::as_far_as_understood(value, kind) else {
                    metrics.malformed(kind);
                    tracing::error!(kind, ?metadata.namespace, ?metadata.name, "of an object not even the metadata is understood: it is left out");
                    return None;
                };
                object
            }
        };
        trim(&mut object);
        Some(object)
    };
    match event {
        Event::Apply(object) => read(object).map(Event::Apply),
        Event::Delete(object) => read(object).map(Event::Delete),
        Event::InitApply(object) => read(object).map(Event::InitApply),
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
    }
}

/// Says of an odd object what is not understood of it, once for each version.
fn say_odd<K>(object: &K, kind: &str, metrics: &Metrics, logged: &mut Logged<K>)
where
    K: Resource,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let reference = ObjectRef::from_obj(object);
    let Some(fields) = odd(object) else {
        logged.remove(&reference);
        return;
    };
    let version = object.resource_version().unwrap_or_default();
    if logged.insert(reference, version.clone()) != Some(version) {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let fields = fields.replace('\n', "; ");
        metrics.malformed(kind);
        tracing::error!(
            kind,
            namespace,
            name,
            fields,
            "object is not understood whole: it counts, and nobody acts on it"
        );
    }
}

/// Clears what would dominate memory and nobody reads.
fn trim<K: Resource>(object: &mut K) {
    object.managed_fields_mut().clear();
    object.annotations_mut().remove(LAST_APPLIED);
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::stream;
    use gpudesk_crds::Desktop;
    use kube::runtime::reflector::{Store, store};
    use serde_json::{Value, json};

    use super::*;

    fn event(event: fn(Read<Desktop>) -> Event<Read<Desktop>>, value: Value) -> Input {
        serde_json::from_value(value).map(event).map_err(|_| watcher::Error::NoResourceVersion)
    }

    type Input = Result<Event<Read<Desktop>>, watcher::Error>;

    fn good(name: &str, version: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "demo", "resourceVersion": version,
                            "annotations": {LAST_APPLIED: "large", "kept": "yes"},
                            "managedFields": [{"manager": "kubectl"}]},
               "spec": {"templateRef": {"name": "t"}}})
    }

    fn bad(name: &str, version: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "demo", "resourceVersion": version},
               "spec": {"templateRef": 5}})
    }

    /// Plays events; returns the store, what the observer heard, and the metrics.
    async fn play(events: Vec<Input>) -> (Store<Desktop>, Vec<String>, String) {
        let (reader, writer) = store();
        let heard = Arc::new(Mutex::new(vec![]));
        let metrics = Metrics::default();
        let observe = {
            let heard = heard.clone();
            move |seen: Seen<'_, Desktop>| {
                heard.lock().unwrap().push(match seen {
                    Seen::There(d) => format!("+{}@{}", d.name_any(), d.resource_version().unwrap()),
                    Seen::Gone(d) => format!("-{}", d.name_any()),
                    Seen::Complete => "complete".into(),
                });
            }
        };
        let played = through(stream::iter(events), writer, "Desktop".into(), metrics.clone(), observe);
        played.for_each(|_| future::ready(())).await;
        let heard = heard.lock().unwrap().clone();
        (reader, heard, metrics.text())
    }

    fn malformed(count: u32) -> String {
        format!("gpudesk_operator_malformed_objects_total{{kind=\"Desktop\"}} {count}")
    }

    #[tokio::test]
    async fn an_object_that_does_not_parse_is_there_and_is_counted() {
        let (store, heard, metrics) = play(vec![
            Ok(Event::Init),
            event(Event::InitApply, good("a", "1")),
            event(Event::InitApply, bad("b", "1")),
            Ok(Event::InitDone),
            event(Event::Apply, bad("a", "2")),
            event(Event::Apply, bad("a", "2")),
            event(Event::Apply, good("c", "3")),
        ])
        .await;
        assert_eq!(heard, ["+a@1", "+b@1", "complete", "+a@2", "+a@2", "+c@3"]);
        assert_eq!(store.len(), 3);
        assert!(metrics.contains(&malformed(2)), "once per version: {metrics}");
        assert!(metrics.contains("gpudesk_operator_odd_objects{kind=\"Desktop\"} 2"), "{metrics}");
        let odd = |name: &str| {
            let object = store.get(&ObjectRef::new(name).within("demo")).unwrap();
            understood::odd(&*object).map(ToOwned::to_owned)
        };
        assert!(odd("a").unwrap().starts_with("spec.templateRef: "), "{:?}", odd("a"));
        assert_eq!(odd("c"), None);
    }

    #[tokio::test]
    async fn a_new_list_says_what_is_gone_and_keeps_what_does_not_parse() {
        let (store, heard, metrics) = play(vec![
            Ok(Event::Init),
            event(Event::InitApply, good("a", "1")),
            event(Event::InitApply, good("b", "1")),
            event(Event::InitApply, bad("c", "1")),
            Ok(Event::InitDone),
            Ok(Event::Init),
            event(Event::InitApply, bad("a", "2")),
            event(Event::InitApply, good("b", "2")),
            Ok(Event::InitDone),
            event(Event::Delete, bad("a", "3")),
        ])
        .await;
        assert_eq!(heard[4..], ["+a@2", "+b@2", "-c", "complete", "-a"]);
        assert_eq!(store.len(), 1);
        assert!(metrics.contains("gpudesk_operator_odd_objects{kind=\"Desktop\"} 0"), "{metrics}");
    }

    #[tokio::test]
    async fn what_nobody_reads_is_not_kept() {
        let (store, _, _) =
            play(vec![Ok(Event::Init), event(Event::InitApply, good("a", "1")), Ok(Event::InitDone)]).await;
        let kept = store.state().remove(0);
        assert!(kept.metadata.managed_fields.as_ref().is_none_or(Vec::is_empty));
        let annotations: Vec<&String> = kept.annotations().keys().collect();
        assert_eq!(annotations, ["kept"]);
    }
}
