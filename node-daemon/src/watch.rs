//! Watches the desktops of this node and their templates, and brings each desktop through its rounds:
//! one round of a desktop at a time, a bounded number of desktops at once.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt, future, stream};
use gpudesk_crds::{Desktop, DesktopTemplate};
use gpudesk_watch::understood::{Read, odd};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        Controller, WatchStreamExt,
        controller::{Action, Config},
        reflector::{ObjectRef, store},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    desktop::Desktops,
    host::hypervisor::{DomainEventKind, HypervisorEvent},
    lease::Restored,
    metrics::Metrics,
    orphans::Watched,
    templates::Templates,
};

/// Desktops worked on at once. libvirt works on a handful of calls at a time; the others wait for files
/// or for the API server.
const AT_ONCE: u16 = 64;
/// Wait when work on a desktop is still under way: it ends by itself, or hangs and is waited for.
const BUSY: Duration = Duration::from_secs(3);
/// Wait after a status that could not be written.
const RETRY: Duration = Duration::from_secs(5);

/// Which desktop a domain is.
#[derive(Clone, Default)]
pub struct Index(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    desktops: HashMap<Uuid, ObjectRef<Desktop>>,
    /// Those of the list that is being read.
    listed: HashSet<Uuid>,
}

impl Index {
    /// Notes an event; returns the desktops that are not this node's any more.
    fn note(&self, event: &Event<Desktop>) -> Vec<Uuid> {
        let mut known = self.lock();
        match event {
            Event::Apply(desktop) | Event::InitApply(desktop) => {
                let Some(uid) = uid(desktop) else { return vec![] };
                known.desktops.insert(uid, ObjectRef::from_obj(desktop));
                known.listed.insert(uid);
                vec![]
            }
            Event::Delete(desktop) => {
                uid(desktop).into_iter().filter(|uid| known.desktops.remove(uid).is_some()).collect()
            }
            Event::Init => {
                known.listed.clear();
                vec![]
            }
            // Some may have gone while nobody watched.
            Event::InitDone => {
                let listed = std::mem::take(&mut known.listed);
                let gone = known.desktops.keys().filter(|uid| !listed.contains(uid)).copied().collect();
                known.desktops.retain(|uid, _| listed.contains(uid));
                gone
            }
        }
    }

    fn desktop(&self, uid: Uuid) -> Option<ObjectRef<Desktop>> {
        self.lock().desktops.get(&uid).cloned()
    }

    /// The desktops that have a round for this.
    fn touched(&self, event: &HypervisorEvent) -> Vec<ObjectRef<Desktop>> {
        match event {
            HypervisorEvent::Domain(event) if is_news(event.kind) => {
                self.desktop(event.uuid).into_iter().collect()
            }
            HypervisorEvent::Domain(_) => vec![],
            // All say the same at once, and are looked at again when it is back.
            HypervisorEvent::Closed { .. } | HypervisorEvent::Resync => self.all(),
        }
    }

    fn all(&self) -> Vec<ObjectRef<Desktop>> {
        self.lock().desktops.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn uid(desktop: &Desktop) -> Option<Uuid> {
    desktop.uid()?.parse().ok()
}

struct Context {
    desktops: Arc<Desktops>,
    templates: Templates,
}

/// Runs until `stop`. What runs then goes on running.
///
/// `watched` gets the stores once they are filled.
pub async fn run(
    desktops: Arc<Desktops>,
    client: Client,
    metrics: Metrics,
    restored: Restored,
    watched: tokio::sync::watch::Sender<Option<Watched>>,
    stop: CancellationToken,
) {
    let hint = Arc::clone(desktops.hint());
    let node = desktops.node().name.clone();
    let templates = Templates::new(client.clone());
    // They come from tenants and may be large: not many at a time.
    let all = watcher::Config::default().page_size(32);
    let template_events = understood::<DesktopTemplate>(Api::all(client.clone()), all, restored.clone());
    let templates_followed = template_events.for_each(|event| {
        if let Ok(event) = event {
            templates.hear(event);
        }
        future::ready(())
    });
    let index = Index::default();
    let (store, writer) = store();
    let config = watcher::Config::default().fields(&format!("status.allocation.node={node}"));
    let events = understood::<Desktop>(Api::all(client), config, restored).inspect({
        let (index, desktops, hint) = (index.clone(), Arc::clone(&desktops), Arc::clone(&hint));
        let templates = templates.clone();
        move |event| {
            let Ok(event) = event else { return };
            if let Event::Apply(desktop) | Event::InitApply(desktop) = event
                && let Some(uid) = uid(desktop)
            {
                templates.name(uid, desktop);
            }
            let gone = index.note(event);
            templates.forget(&gone);
            for uid in gone {
                desktops.forget(uid);
                hint.notify_one();
            }
        }
    });
    let happenings = happenings(&desktops, index, hint);
    let heard_again = stream::unfold(desktops.heard().clone(), |mut heard| async move {
        heard.heard_again().await;
        Some(((), heard))
    });
    let context = Arc::new(Context { desktops, templates: templates.clone() });
    let controller = Controller::for_stream(events.reflect(writer).touched_objects(), store.clone())
        .with_config(Config::default().concurrency(AT_ONCE))
        .reconcile_on(happenings)
        .reconcile_all_on(heard_again)
        .graceful_shutdown_on({
            let stop = stop.clone();
            async move { stop.cancelled().await }
        });
    let ready = async {
        let rounds = controller.run(round, |_, _, _| Action::requeue(RETRY), context);
        let filled = async {
            let _ = store.wait_until_ready().await;
            metrics.set_watching(true);
            watched.send_replace(Some(Watched { desktops: store.clone(), templates: templates.clone() }));
        };
        let rounds = rounds.for_each(|result| {
            if let Err(error) = result {
                tracing::debug!(%error, "a round will be repeated");
            }
            future::ready(())
        });
        // The store of a watch that never began is never filled, and rounds that never began do not end.
        let never_begun = async {
            tokio::select! {
                _ = store.wait_until_ready() => future::pending().await,
                () = stop.cancelled() => {}
            }
        };
        tokio::select! {
            _ = future::join(filled, rounds) => {}
            () = never_begun => {}
        }
    };
    tokio::select! {
        () = templates_followed => {}
        () = ready => {}
    }
}

async fn round(desktop: Arc<Desktop>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let span = tracing::info_span!(
        "desktop",
        desktop = format!("{}/{}", desktop.namespace().unwrap_or_default(), desktop.name_any()),
        node = context.desktops.node().name,
    );
    let Some(uid) = uid(&desktop) else { return Ok(Action::await_change()) };
    let namespace = desktop.namespace().unwrap_or_default();
    let template = match context.templates.get(&namespace, &desktop.spec.template_ref.name).await {
        Ok(template) => template,
        // It tells how long a guest has, and whether it is started again: without it nothing is done.
        Err(error) => {
            span.in_scope(|| tracing::warn!(%error, "it is looked at when its template is known"));
            return Ok(Action::requeue(RETRY));
        }
    };
    let work = {
        let desktops = Arc::clone(&context.desktops);
        async move { desktops.round(&desktop, template).await }.instrument(span.clone())
    };
    let Some(result) = context.desktops.alone(uid, work).await else { return Ok(Action::requeue(BUSY)) };
    let wait = result.inspect_err(|error| {
        span.in_scope(|| tracing::warn!(%error, "the status could not be written"));
    })?;
    Ok(Action::requeue(wait))
}

/// The desktops that something happened to on this host.
fn happenings(
    desktops: &Arc<Desktops>,
    index: Index,
    hint: Arc<Notify>,
) -> impl Stream<Item = ObjectRef<Desktop>> + Send + 'static {
    let events = desktops.node().hypervisor.events().into_stream();
    let (changed, desktops) = (Arc::clone(desktops.changed()), Arc::clone(desktops));
    events.flat_map(move |event| {
        if let HypervisorEvent::Domain(event) = &event
            && index.desktop(event.uuid).is_some()
        {
            desktops.note_end(event.uuid, event.kind);
        }
        if let HypervisorEvent::Domain(event) = &event
            && is_news(event.kind)
        {
            changed.notify_one();
            if index.desktop(event.uuid).is_none() || desktops.is_stray(event.uuid) {
                hint.notify_one();
            }
        }
        stream::iter(index.touched(&event))
    })
}

/// Whether an event says more than that something was done which a round has just done itself.
fn is_news(kind: DomainEventKind) -> bool {
    match kind {
        DomainEventKind::Undefined
        | DomainEventKind::Suspended
        | DomainEventKind::Resumed
        | DomainEventKind::Stopped { .. }
        | DomainEventKind::Crashed
        | DomainEventKind::AgentConnected => true,
        DomainEventKind::Defined
        | DomainEventKind::Started
        | DomainEventKind::FellAsleep
        | DomainEventKind::Shutdown
        | DomainEventKind::AgentDisconnected => false,
    }
}

/// Events of a kind. Those with an object that is not understood whole are left out: what runs of it goes on as it is.
/// What is gone is gone, whatever it said last.
fn understood<K>(
    api: Api<Read<K>>,
    config: watcher::Config,
    restored: Restored,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Debug,
{
    let watching = move || gpudesk_watch::watch(api.clone(), config.clone(), |_| {});
    restored.anew(watching).filter(|event| future::ready(is_understood(event)))
}

fn is_understood<K: Resource>(event: &watcher::Result<Event<K>>) -> bool {
    !matches!(event, Ok(Event::Apply(object) | Event::InitApply(object)) if odd(object).is_some())
}

#[cfg(test)]
mod tests {
    use gpudesk_watch::understood::as_far_as_understood;
    use serde_json::json;

    use super::*;

    fn desktop(uid: u128) -> Desktop {
        let mut desktop = Desktop::new("anna", gpudesk_crds::DesktopSpec::default());
        desktop.metadata.namespace = Some(format!("ns-{uid}"));
        desktop.metadata.uid = Some(Uuid::from_u128(uid).to_string());
        desktop
    }

    #[test]
    fn an_object_that_is_not_understood_is_left_out_and_its_end_is_seen() {
        let object = json!({"metadata": {"name": "a"}, "spec": {"templateRef": {"name": "t"}, "powerState": "Asleep"}});
        let object: Desktop = as_far_as_understood(object, "Desktop").unwrap();
        for event in [Event::Apply(object.clone()), Event::InitApply(object.clone())] {
            assert!(!is_understood(&Ok(event)));
        }
        assert!(is_understood(&Ok(Event::Delete(object))));
        assert!(is_understood(&Ok(Event::Apply(desktop(1)))));
        assert!(is_understood::<Desktop>(&Ok(Event::InitDone)));
    }

    #[test]
    fn a_desktop_that_is_not_listed_again_is_forgotten() {
        let index = Index::default();
        let listed = |uids: &[u128]| {
            index.note(&Event::Init);
            for uid in uids {
                index.note(&Event::InitApply(desktop(*uid)));
            }
            index.note(&Event::InitDone)
        };
        assert!(listed(&[1, 2]).is_empty());
        assert!(index.note(&Event::Apply(desktop(3))).is_empty());
        assert_eq!(index.note(&Event::Delete(desktop(3))), [Uuid::from_u128(3)]);
        assert!(index.note(&Event::Delete(desktop(3))).is_empty());
        assert_eq!(listed(&[2]), [Uuid::from_u128(1)]);
        assert_eq!(index.all().len(), 1);
        // A libvirt that is gone, or back, is news for each.
        for event in [HypervisorEvent::Closed { reason: "x".into() }, HypervisorEvent::Resync] {
            assert_eq!(index.touched(&event).len(), 1, "{event:?}");
        }
        assert!(index.desktop(Uuid::from_u128(2)).is_some());
    }
}
