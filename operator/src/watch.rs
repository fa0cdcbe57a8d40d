//! The one way in which objects come in: watched, guarded against malformed ones, trimmed, told to
//! an observer, stored.

use std::collections::HashSet;
use std::{fmt::Debug, hash::Hash};

use futures::{Stream, StreamExt, TryStreamExt, future};
use kube::{
    Api, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

use crate::metrics::Metrics;

/// What `kubectl apply` keeps of the last version: as large as the object and of no use here.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What an observer hears, before the store shows it.
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
/// An object that does not parse is logged once per version, counted, and left out; what was last
/// known of it stays in the store and with the observer until it parses again or is deleted.
pub async fn watch<K>(
    api: Api<DeserializeGuard<K>>,
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
        tracing::warn!(kind = %warn_kind, %error, "watch interrupted; trying again");
    });
    through(events, writer, kind, metrics, observe).for_each(|_| future::ready(())).await;
}

/// The road of events from the watch to the store.
fn through<K>(
    events: impl Stream<Item = Result<Event<DeserializeGuard<K>>, watcher::Error>> + Send,
    writer: Writer<K>,
    kind: String,
    metrics: Metrics,
    mut observe: impl FnMut(Seen<'_, K>) + Send,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send
where
    K: Resource + Clone + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let store = writer.as_reader();
    let mut listed: HashSet<ObjectRef<K>> = HashSet::new();
    let mut logged: HashSet<String> = HashSet::new();
    let events = events.filter_map({
        let store = store.clone();
        move |event| {
            let known = event.map(|event| known(event, &store, &kind, &metrics, &mut logged)).transpose();
            future::ready(known)
        }
    });
    let events = events.inspect(move |event| {
        let Ok(event) = event else { return };
        match event {
            Event::Apply(object) => observe(Seen::There(object)),
            Event::Delete(object) => observe(Seen::Gone(object)),
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                listed.insert(ObjectRef::from_obj(object));
                observe(Seen::There(object));
            }
            Event::InitDone => {
                // What was there before and is not in the new list was deleted meanwhile.
                for gone in store.state().iter().filter(|old| !listed.contains(&ObjectRef::from_obj(&***old)))
                {
                    observe(Seen::Gone(gone));
                }
                listed = HashSet::new();
                observe(Seen::Complete);
            }
        }
    });
    events.reflect(writer)
}

/// The event with a parsed, trimmed object; with the last known one in place of one that does not
/// parse; or nothing.
fn known<K>(
    event: Event<DeserializeGuard<K>>,
    store: &Store<K>,
    kind: &str,
    metrics: &Metrics,
    logged: &mut HashSet<String>,
) -> Option<Event<K>>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let mut parse = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(mut object) => {
            trim(&mut object);
            Some(object)
        }
        Err(invalid) => {
            let meta = &invalid.metadata;
            let name = meta.name.as_deref().unwrap_or_default();
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            let version = meta.resource_version.as_deref().unwrap_or_default();
            if logged.insert(format!("{namespace}/{name}/{version}")) {
                metrics.malformed(kind);
                tracing::error!(kind, namespace, name, error = %invalid.error, "object does not parse; what was last known of it counts");
            }
            let reference = ObjectRef::new(name);
            let reference = if namespace.is_empty() { reference } else { reference.within(namespace) };
            store.get(&reference).map(|object| K::clone(&object))
        }
    };
    match event {
        Event::Apply(guard) => parse(guard).map(Event::Apply),
        Event::Delete(guard) => parse(guard).map(Event::Delete),
        Event::InitApply(guard) => parse(guard).map(Event::InitApply),
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
    }
}

/// Clears what would dominate memory and nobody reads.
fn trim<K: Resource>(object: &mut K) {
    object.managed_fields_mut().clear();
    object.annotations_mut().remove(LAST_APPLIED);
}
