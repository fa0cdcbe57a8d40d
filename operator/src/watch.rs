//! The one way in which objects come in: guarded ([`gpudesk_watch`]), stored, told to an observer.

use std::collections::HashSet;
use std::{fmt::Debug, hash::Hash};

use futures::{Stream, StreamExt, TryStreamExt, future};
use gpudesk_watch::{Note, understood::Read};
use kube::{
    Api, Resource,
    runtime::{
        reflector::{ObjectRef, store::Writer},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;

use crate::metrics::Metrics;

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
    let events = gpudesk_watch::watch(api, config, move |note| match note {
        Note::Interrupted => metrics.watch_errors(&kind),
        Note::Malformed => metrics.malformed(&kind),
        Note::Odd(count) => metrics.odd(&kind, count),
    });
    stored(events, writer, observe).for_each(|_| future::ready(())).await;
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

    use futures::stream;
    use gpudesk_crds::Desktop;
    use kube::{ResourceExt, runtime::reflector::store};
    use serde_json::json;

    use super::*;

    fn desktop(name: &str, version: &str) -> Desktop {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "demo", "resourceVersion": version},
            "spec": {"templateRef": {"name": "t"}},
        }))
        .unwrap()
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
