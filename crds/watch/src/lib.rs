//! The guard of every watch: an object that comes in is read as far as this version understands it, trimmed, and
//! marked where that is not all of it. What a program does with such an object is its own matter.
#![forbid(unsafe_code)]

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    hash::Hash,
};

use futures::{Stream, StreamExt, future};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::ObjectRef,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

mod client;
mod lean;
mod trim;
pub mod understood;

pub use client::client;
use understood::{Read, odd};

/// What a watch tells for figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// It was interrupted, and goes on by itself.
    Interrupted,
    /// A version of an object was not understood whole, for the first time.
    Malformed,
    /// So many objects are not understood whole now.
    Odd(usize),
}

/// The events of a kind, until dropped. Errors of the watch are logged and retried with backoff; an object that is not
/// understood whole is marked, and logged once for each version.
pub fn watch<K>(
    api: Api<Read<K>>,
    config: watcher::Config,
    note: impl Fn(Note) + Send,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Debug,
{
    guard(watcher(api, config).default_backoff(), note)
}

/// The same, of the events of a watch.
pub fn guard<K>(
    events: impl Stream<Item = watcher::Result<Event<Read<K>>>> + Send,
    note: impl Fn(Note) + Send,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + DeserializeOwned + Send + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let mut odd_ones = OddOnes::default();
    events.filter_map(move |event| {
        let event = match event {
            Ok(event) => read(event, &kind, &note).map(Ok),
            Err(error) => {
                note(Note::Interrupted);
                let cause: &(dyn std::error::Error + 'static) = &error;
                tracing::warn!(%kind, error = cause, "watch interrupted; trying again");
                Some(Err(error))
            }
        };
        if let Some(Ok(event)) = &event {
            odd_ones.hear(event, &kind, &note);
            note(Note::Odd(odd_ones.said.len()));
        }
        future::ready(event)
    })
}

/// The event with an object that is trimmed and, if need be, odd. Nothing where not even its metadata can be read.
fn read<K>(event: Event<Read<K>>, kind: &str, note: &impl Fn(Note)) -> Option<Event<K>>
where
    K: Resource + DeserializeOwned,
    K::DynamicType: Default,
{
    let read = |read: Read<K>| {
        let mut object = match read {
            Read::Whole(mut object) => {
                understood::unmark(&mut object);
                object
            }
            Read::Odd { metadata, value } => {
                let Some(object) = understood::as_far_as_understood(value, kind) else {
                    note(Note::Malformed);
                    tracing::error!(kind, ?metadata.namespace, ?metadata.name, "of an object not even the metadata is understood: it is left out");
                    return None;
                };
                object
            }
        };
        trim::trim(&mut object);
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

/// The objects that are not understood whole, and those of them in the list that is being read.
struct OddOnes<K: Resource<DynamicType: Hash + Eq>> {
    /// The version of each of which that was said last.
    said: HashMap<ObjectRef<K>, String>,
    listed: HashSet<ObjectRef<K>>,
}

impl<K: Resource<DynamicType: Hash + Eq>> Default for OddOnes<K> {
    fn default() -> Self {
        Self { said: HashMap::new(), listed: HashSet::new() }
    }
}

impl<K> OddOnes<K>
where
    K: Resource,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    fn hear(&mut self, event: &Event<K>, kind: &str, note: &impl Fn(Note)) {
        match event {
            Event::Apply(object) => self.say(object, kind, note),
            Event::InitApply(object) => {
                self.say(object, kind, note);
                if odd(object).is_some() {
                    self.listed.insert(ObjectRef::from_obj(object));
                }
            }
            Event::Delete(object) => _ = self.said.remove(&ObjectRef::from_obj(object)),
            Event::Init => self.listed.clear(),
            // What was there before and is not in the new list was deleted meanwhile.
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                self.said.retain(|object, _| listed.contains(object));
            }
        }
    }

    /// Says of an odd object what is not understood of it, once for each version.
    fn say(&mut self, object: &K, kind: &str, note: &impl Fn(Note)) {
        let reference = ObjectRef::from_obj(object);
        let Some(fields) = odd(object) else {
            self.said.remove(&reference);
            return;
        };
        let version = object.resource_version().unwrap_or_default();
        if self.said.insert(reference, version.clone()) != Some(version) {
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            let fields = fields.replace('\n', "; ");
            note(Note::Malformed);
            tracing::error!(
                kind,
                namespace,
                name,
                fields,
                "object is not understood whole: it counts, and nobody acts on it"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::stream;
    use gpudesk_crds::Desktop;
    use serde_json::{Value, json};

    use super::*;

    type Input = watcher::Result<Event<Read<Desktop>>>;

    fn event(event: fn(Read<Desktop>) -> Event<Read<Desktop>>, value: Value) -> Input {
        serde_json::from_value(value).map(event).map_err(|_| watcher::Error::NoResourceVersion)
    }

    fn good(name: &str, version: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "demo", "resourceVersion": version,
                            "annotations": {"large": "yes", "gpudesk.dev/restartedAt": "yes"},
                            "managedFields": [{"manager": "kubectl"}]},
               "spec": {"templateRef": {"name": "t"}}})
    }

    fn bad(name: &str, version: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "demo", "resourceVersion": version},
               "spec": {"templateRef": 5}})
    }

    /// Plays events; returns those that come through, how many versions were malformed, and how many are odd.
    async fn play(events: Vec<Input>) -> (Vec<watcher::Result<Event<Desktop>>>, usize, usize) {
        let notes = Mutex::new(vec![]);
        let through = guard(stream::iter(events), |note| notes.lock().unwrap().push(note)).collect().await;
        let notes = notes.into_inner().unwrap();
        let malformed = notes.iter().filter(|note| **note == Note::Malformed).count();
        let odd =
            notes.iter().rev().find_map(|note| if let Note::Odd(count) = note { Some(*count) } else { None });
        (through, malformed, odd.unwrap_or_default())
    }

    fn objects(events: &[watcher::Result<Event<Desktop>>]) -> Vec<&Desktop> {
        events
            .iter()
            .filter_map(|event| match event {
                Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => Some(object),
                _ => None,
            })
            .collect()
    }

    #[tokio::test]
    async fn an_object_that_does_not_parse_is_there_and_is_counted_once_per_version() {
        let (through, malformed, odd_ones) = play(vec![
            Ok(Event::Init),
            event(Event::InitApply, good("a", "1")),
            event(Event::InitApply, bad("b", "1")),
            Ok(Event::InitDone),
            event(Event::Apply, bad("a", "2")),
            event(Event::Apply, bad("a", "2")),
            event(Event::Apply, good("c", "3")),
        ])
        .await;
        let objects = objects(&through);
        let names: Vec<String> = objects.iter().map(|object| object.name_any()).collect();
        assert_eq!(names, ["a", "b", "a", "a", "c"]);
        assert_eq!((malformed, odd_ones), (2, 2));
        assert!(odd(objects[2]).unwrap().starts_with("spec.templateRef: "), "{:?}", odd(objects[2]));
        assert_eq!(odd(objects[4]), None);
    }

    #[tokio::test]
    async fn what_is_gone_is_odd_no_more_and_its_end_is_seen_whatever_it_said_last() {
        let (through, _, odd_ones) = play(vec![
            Ok(Event::Init),
            event(Event::InitApply, bad("a", "1")),
            event(Event::InitApply, bad("c", "1")),
            Ok(Event::InitDone),
            Ok(Event::Init),
            event(Event::InitApply, bad("a", "2")),
            Ok(Event::InitDone),
        ])
        .await;
        assert_eq!((through.len(), odd_ones), (7, 1));
        let (through, _, odd_ones) =
            play(vec![event(Event::Apply, bad("a", "2")), event(Event::Delete, bad("a", "3"))]).await;
        assert!(matches!(&through[1], Ok(Event::Delete(object)) if object.name_any() == "a"));
        assert_eq!(odd_ones, 0);
    }

    #[tokio::test]
    async fn what_nobody_reads_is_not_kept_and_an_interruption_is_told() {
        let interrupted = Err(watcher::Error::NoResourceVersion);
        let (through, malformed, _) = play(vec![event(Event::Apply, good("a", "1")), interrupted]).await;
        let kept = objects(&through)[0];
        assert!(kept.metadata.managed_fields.as_ref().is_none_or(Vec::is_empty));
        let annotations: Vec<&String> = kept.annotations().keys().collect();
        assert_eq!(annotations, ["gpudesk.dev/restartedAt"]);
        assert!(through[1].is_err() && malformed == 0);
    }
}
