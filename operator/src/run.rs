//! The parts put together: clients, leadership, watches, loops, and their orderly end.

use std::{fmt::Debug, num::NonZeroU32, sync::Arc, time::Duration};

use futures::{
    StreamExt,
    channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
    stream,
};
use gpudesk_crds::{Desktop, DesktopTemplate, GpuNode, GpuProfile};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, Config, Resource,
    client::ClientBuilder,
    runtime::{
        Controller,
        controller::Action,
        reflector::{ObjectRef, Store, store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::limit::RateLimitLayer;

use crate::{
    allocation_key::AllocationKey,
    backoff::Backoff,
    deadline::DeadlineLayer,
    definitions, desktop, desktop_template, gpu_node, gpu_profile,
    health::Readiness,
    leader::{Candidate, Leadership, Lost},
    metrics::Metrics,
    other_owners::{self, OtherOwners},
    placement::compute::Limits,
    secret_access::{self, AccessError, SecretAccess},
    stores::Stores,
    watch,
    world::{Queues, World},
    writer::Writer,
};

/// How the operator was told to work.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the operator, the node daemons and their leases.
    pub namespace: String,
    /// Who we are in the leader lease.
    pub identity: String,
    /// How long the leader lease holds.
    pub lease_duration: Duration,
    /// Desktops that are worked on at the same time.
    pub concurrency: u16,
    /// Writes per second.
    pub writes_per_second: NonZeroU32,
    /// The bounds of placement.
    pub limits: Limits,
    /// Room is kept for a desktop that has waited so long; never without.
    pub keep_room_after: Option<Duration>,
    /// Whether devices are tainted that others publish to pods and that are cards of gpudesk.
    pub device_taint_rules: bool,
}

/// Why the operator ended without being asked to.
#[derive(Debug, Error)]
pub enum Error {
    /// The client could not be made.
    #[error("cannot make a client: {}", crate::cause::of_request(.0))]
    Client(#[from] Box<kube::Error>),
    /// Somebody else may lead now.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// A part ended that runs for ever.
    #[error("the task {0} ended")]
    Ended(&'static str),
}

/// How long rounds that have begun may take to end once the process is asked to: a write may wait for an
/// API server that does not answer, and what it decided is in the API or was never.
const GRACE: Duration = Duration::from_secs(5);

/// How long giving the lease back may take, a renewal under way included; without it the next one waits
/// until it lapses.
const PATIENCE: Duration = Duration::from_secs(3);

/// Objects in one answer of a list: tenants may fill each up to what etcd takes, 1.5 MiB.
const PAGE: u32 = 64;

/// Name of the leader lease.
const LEADER_LEASE: &str = "gpudesk-operator";

/// Runs until `stop`.
///
/// # Errors
/// When leadership is lost or a part ends: the process must end and be started again.
pub async fn run(
    config: Config,
    settings: Settings,
    metrics: Metrics,
    ready: Readiness,
    stop: CancellationToken,
) -> Result<(), Error> {
    let lease_client = lease_client(config.clone(), settings.lease_duration)?;
    let leases = Api::<Lease>::namespaced(lease_client, &settings.namespace);
    let candidate = Candidate {
        name: LEADER_LEASE.into(),
        identity: settings.identity.clone(),
        duration: settings.lease_duration,
    };
    let client = gpudesk_watch::client(&config).map_err(Box::new)?;
    tokio::select! {
        () = definitions::wait(&client, &metrics) => {}
        () = stop.cancelled() => return Ok(()),
    }
    // Whoever stands by does so properly.
    ready.set(true);
    let acquired = tokio::select! {
        acquired = candidate.acquire(&leases, &stop, |why| metrics.hindered("Lease of the leader", why)) => acquired,
        () = stop.cancelled() => None,
    };
    let Some((taken, leadership)) = acquired else { return Ok(()) };
    tracing::info!(identity = %settings.identity, term = %leadership.term, "leading");
    ready.set(false);
    metrics.leading(true);

    let loops_ended = CancellationToken::new();
    let keep = candidate.keep(&leases, taken, &loops_ended);
    let work = work(config, &candidate, leadership, settings, metrics.clone(), ready, stop);
    tokio::pin!(keep, work);
    tokio::select! {
        lost = &mut keep => Err(lost.err().map_or(Error::Ended("leader lease"), Error::Lost)),
        end = &mut work => {
            // A write that is under way may land later: then the next one waits until the lease has lapsed.
            if end? == End::Whole {
                loops_ended.cancel();
                if let Ok(kept) = tokio::time::timeout(PATIENCE, keep).await {
                    kept?;
                } else {
                    tracing::warn!("the leader lease was not given back: the API server does not answer");
                }
            }
            Ok(())
        }
    }
}

/// How the work ended once it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// No write is under way.
    Whole,
    /// What was begun may still be carried out.
    Cut,
}

async fn work(
    config: Config,
    candidate: &Candidate,
    leadership: Leadership,
    settings: Settings,
    metrics: Metrics,
    ready: Readiness,
    stop: CancellationToken,
) -> Result<End, Error> {
    let connect = || {
        let client = lease_client(config.clone(), settings.lease_duration).ok()?;
        Some(Api::namespaced(client, &settings.namespace))
    };
    let mut tasks = Tasks::new();
    let (mut stale, figures, readiness) = (leadership.stale.subscribe(), metrics.clone(), ready.clone());
    tasks.spawn(async move {
        while stale.changed().await.is_ok() {
            let refused = *stale.borrow_and_update();
            figures.term_refused(refused);
            readiness.set_refused(refused);
        }
        "watch of the term"
    });
    // Who stood by for long may find them taken back meanwhile: the lease is given back, and another may lead.
    let client = gpudesk_watch::client(&config).map_err(Box::new)?;
    if definitions::lack(&client).await {
        tracing::error!(
            "the definitions in the API were taken back to older ones than this operator needs: it ends"
        );
        return Ok(End::Whole);
    }
    // Nothing is listed before what is listed can no longer change behind our back.
    tokio::select! {
        fenced = candidate.fenced(connect, &leadership) => if !fenced {
            tracing::warn!(
                "the admission policy operator-term.gpudesk.dev is not in force: waited for as long as a lease lasts instead; \
                 what an operator that led before sent last may still be written"
            );
        },
        () = stop.cancelled() => return Ok(End::Whole),
    }
    let Leadership { term, before: _, deadline, doubted, stale: _told } = leadership;
    let write_client = write_client(config, settings.writes_per_second, &DeadlineLayer(deadline))?;
    let writer = Writer::new(write_client, metrics.clone(), term, doubted);
    let reading = writer.client();
    let (key, keeper) = tokio::select! {
        key = AllocationKey::of_cluster(&reading, &settings.namespace) => key,
        () = stop.cancelled() => return Ok(End::Whole),
    };
    let keeping = keeper.keep(reading, settings.namespace.clone());
    tasks.spawn(async move {
        keeping.await;
        "keeper of the allocation key"
    });
    let (queue, access_events) = unbounded();
    let secrets = Arc::new(SecretAccess::new(writer.clone(), &settings.namespace, queue.clone()));
    let (world, refs, leases) = start_watches(&client, &settings, &metrics, key, queue, &mut tasks);
    let waker = world.clone();
    let wake_node = move |node: ObjectRef<GpuNode>| waker.wake_node(&node.name);
    let granted = secret_access::watch_all(&secrets, &client, &metrics, &mut tasks, wake_node);

    let owners = Arc::new(OtherOwners::new(settings.device_taint_rules));
    let waker = world.clone();
    let wake_node = move |node: &str| waker.wake_node(node);
    other_owners::watch_all(&owners, &client, &metrics, world.stores.nodes.clone(), &mut tasks, wake_node);

    // Nothing is decided before everything is known.
    let stores = &world.stores;
    let known = async {
        let _ = tokio::join!(
            stores.desktops.wait_until_ready(),
            stores.templates.wait_until_ready(),
            stores.profiles.wait_until_ready(),
            stores.nodes.wait_until_ready(),
            leases.wait_until_ready(),
            // The stores are ready a moment before the world has heard of it.
            world.nodes_known(),
        );
        for mut granted in granted {
            let _ = granted.wait_for(|listed| *listed).await;
        }
    };
    tokio::select! {
        () = known => {}
        () = stop.cancelled() => return Ok(End::Whole),
        ended = tasks.join_next() => return Err(name_of(ended)),
    }
    ready.set(true);
    tracing::info!(
        desktops = stores.desktops.len(),
        templates = stores.templates.len(),
        profiles = stores.profiles.len(),
        nodes = stores.nodes.len(),
        "all objects known"
    );
    start_wakers(&world, &writer, &mut tasks);
    let access_events = access_events.take_until(stop.clone().cancelled_owned());
    let tending = secret_access::tend(secrets.clone(), world.clone(), access_events);
    tokio::select! {
        _ = async { tokio::join!(loops(&world, refs, &writer, (&secrets, &owners), &settings, &stop), tending) } => {
            if stop.is_cancelled() { Ok(End::Whole) } else { Err(Error::Ended("loop over objects")) }
        }
        () = async { stop.cancelled().await; tokio::time::sleep(GRACE).await } => {
            tracing::warn!("some rounds have not ended: the API server does not answer; the lease is left to lapse");
            Ok(End::Cut)
        }
        ended = tasks.join_next() => Err(name_of(ended)),
    }
}

/// What runs for ever; each says its name should it end.
type Tasks = JoinSet<&'static str>;

/// What the loops take their work from.
struct Refs {
    desktops: UnboundedReceiver<ObjectRef<Desktop>>,
    templates: UnboundedReceiver<ObjectRef<DesktopTemplate>>,
    profiles: UnboundedReceiver<ObjectRef<GpuProfile>>,
    nodes: UnboundedReceiver<ObjectRef<GpuNode>>,
}

fn start_watches(
    client: &Client,
    settings: &Settings,
    metrics: &Metrics,
    key: AllocationKey,
    access: UnboundedSender<secret_access::Event>,
    tasks: &mut Tasks,
) -> (Arc<World>, Refs, Store<Lease>) {
    let (desktops, desktops_in) = store::<Desktop>();
    let (templates, templates_in) = store::<DesktopTemplate>();
    let (profiles, profiles_in) = store::<GpuProfile>();
    let (nodes, nodes_in) = store::<GpuNode>();
    let (leases, leases_in) = store::<Lease>();
    let (desktop_queue, desktop_refs) = unbounded();
    let (template_queue, template_refs) = unbounded();
    let (profile_queue, profile_refs) = unbounded();
    let (node_queue, node_refs) = unbounded();
    let queues = Queues {
        desktops: desktop_queue,
        templates: template_queue,
        profiles: profile_queue,
        nodes: node_queue,
        access,
    };
    let stores = Stores { desktops, templates, profiles, nodes };
    let mut world = World::new(stores, queues, settings.limits, key, metrics.clone());
    world.set_keep_room_after(settings.keep_room_after);
    let world = Arc::new(world);
    macro_rules! watch {
        ($name:literal, $api:expr, $writer:expr, $hear:ident) => {{
            let (world, metrics) = (world.clone(), metrics.clone());
            let hear = move |seen: watch::Seen<'_, _>| world.$hear(seen);
            let config = watcher::Config::default().page_size(PAGE);
            let watching = watch::watch($api, config, $writer, metrics, hear);
            tasks.spawn(async move {
                watching.await;
                $name
            });
        }};
    }
    watch!("watch of Desktops", Api::all(client.clone()), desktops_in, desktop);
    watch!("watch of DesktopTemplates", Api::all(client.clone()), templates_in, template);
    watch!("watch of GpuProfiles", Api::all(client.clone()), profiles_in, profile);
    watch!("watch of GpuNodes", Api::all(client.clone()), nodes_in, node);
    watch!("watch of Leases", Api::namespaced(client.clone(), &settings.namespace), leases_in, lease);
    let refs =
        Refs { desktops: desktop_refs, templates: template_refs, profiles: profile_refs, nodes: node_refs };
    (world, refs, leases)
}

fn start_wakers(world: &Arc<World>, writer: &Writer, tasks: &mut Tasks) {
    let (asker, client) = (world.clone(), writer.client());
    tasks.spawn(async move {
        asker.ask_for_nodes(client).await;
        "asker for Nodes"
    });
    let waker = world.clone();
    tasks.spawn(async move {
        waker.offer_freed().await;
        "offers to those that wait"
    });
    let counter = world.clone();
    tasks.spawn(async move {
        counter.wake_counts().await;
        "waker of counts"
    });
    let thinker = world.clone();
    tasks.spawn(async move {
        thinker.think().await;
        "thinker"
    });
    let clock = world.clone();
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(5));
        loop {
            ticks.tick().await;
            clock.tick();
        }
    });
}

/// The rounds over all kinds, until `stop`.
async fn loops(
    world: &Arc<World>,
    refs: Refs,
    writer: &Writer,
    (secrets, owners): (&Arc<SecretAccess>, &Arc<OtherOwners>),
    settings: &Settings,
    stop: &CancellationToken,
) {
    let stores = &world.stores;
    let metrics = &world.metrics;
    let context = Arc::new(desktop::Context {
        world: world.clone(),
        writer: writer.clone(),
        secrets: secrets.clone(),
        namespace: settings.namespace.clone(),
    });
    let desktops =
        rounds(stores.desktops.clone(), refs.desktops, settings.concurrency, stop, metrics, move |object| {
            let context = context.clone();
            async move {
                match desktop::reconcile(&object, &context).await {
                    // Another version is on its way and brings its own round; this one is for safety.
                    Err(error) if error.is_outdated() => Ok(Action::requeue(Duration::from_secs(15))),
                    result => {
                        result.map_err(|error| Failure { name: error.name(), message: error.to_string() })
                    }
                }
            }
        });
    let (template_world, template_writer) = (world.clone(), writer.clone());
    let templates = rounds(stores.templates.clone(), refs.templates, 4, stop, metrics, move |object| {
        let (world, writer) = (template_world.clone(), template_writer.clone());
        async move { Failure::of(desktop_template::reconcile(&object, &world, &writer).await) }
    });
    let (profile_world, profile_writer) = (world.clone(), writer.clone());
    let profiles = rounds(stores.profiles.clone(), refs.profiles, 2, stop, metrics, move |object| {
        let (world, writer) = (profile_world.clone(), profile_writer.clone());
        async move { Failure::of(gpu_profile::reconcile(&object, &world, &writer).await) }
    });
    let (node_world, node_writer, node_secrets) = (world.clone(), writer.clone(), secrets.clone());
    let node_owners = owners.clone();
    let nodes = rounds(stores.nodes.clone(), refs.nodes, 4, stop, metrics, move |object| {
        let (world, writer, secrets) = (node_world.clone(), node_writer.clone(), node_secrets.clone());
        let owners = node_owners.clone();
        async move {
            match gpu_node::reconcile(&object, &world, &writer, &secrets, &owners).await {
                Err(AccessError::Write(error)) => Failure::of(Err(error)),
                result => result.map_err(|error| Failure { name: error.name(), message: error.to_string() }),
            }
        }
    });
    tokio::join!(desktops, templates, profiles, nodes);
}

fn name_of(ended: Option<Result<&'static str, tokio::task::JoinError>>) -> Error {
    Error::Ended(ended.and_then(Result::ok).unwrap_or("a task that panicked"))
}

/// A failed round: all that is needed of it after it was said.
#[derive(Debug, Error)]
#[error("{message}")]
struct Failure {
    name: &'static str,
    message: String,
}

impl Failure {
    fn of(result: Result<Action, crate::writer::WriteError>) -> Result<Action, Self> {
        use crate::writer::WriteError;
        match result {
            Err(WriteError::Conflict | WriteError::Gone) => Ok(Action::requeue(Duration::from_secs(2))),
            result => result.map_err(|error| Self { name: error.name(), message: error.to_string() }),
        }
    }
}

/// What all rounds over a kind have in common.
struct Round<K: Resource<DynamicType = ()>> {
    metrics: Metrics,
    kind: String,
    backoff: Backoff<ObjectRef<K>>,
}

/// Rounds over the objects of a kind as `refs` names them, until `stop`; those begun are ended.
async fn rounds<K, F>(
    objects: Store<K>,
    refs: UnboundedReceiver<ObjectRef<K>>,
    concurrency: u16,
    stop: &CancellationToken,
    metrics: &Metrics,
    round: impl Fn(Arc<K>) -> F + Send + Sync + 'static,
) where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
    F: Future<Output = Result<Action, Failure>> + Send + 'static,
{
    let kind = K::kind(&()).into_owned();
    let backoff = Backoff::<ObjectRef<K>>::default();
    let context = Arc::new(Round { metrics: metrics.clone(), kind, backoff });
    let config = kube::runtime::controller::Config::default().concurrency(concurrency);
    Controller::for_stream(stream::pending(), objects)
        .with_config(config)
        .reconcile_on(refs)
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            move |object, context: Arc<Round<K>>| {
                let reference = ObjectRef::from_obj(&*object);
                let round = round(object);
                async move {
                    let Round { metrics, kind, backoff } = &*context;
                    let result = round.await;
                    match &result {
                        Ok(_) => {
                            backoff.reset(&reference);
                            metrics.reconciled(kind, "ok");
                        }
                        Err(failure) => {
                            metrics.reconciled(kind, failure.name);
                            tracing::warn!(%kind, object = %reference, %failure, "trying again later");
                        }
                    }
                    result
                }
            },
            |object, _, context| Action::requeue(context.backoff.failed(ObjectRef::from_obj(&*object))),
            context,
        )
        .for_each(|_| std::future::ready(()))
        .await;
}

/// Its own connection: neither watches nor writes hold the lease up.
fn lease_client(mut config: Config, duration: Duration) -> Result<Client, Error> {
    config.connect_timeout = Some(duration / 6);
    config.read_timeout = Some(duration / 6);
    config.write_timeout = Some(duration / 6);
    Ok(Client::try_from(config).map_err(Box::new)?)
}

fn write_client(
    mut config: Config,
    per_second: NonZeroU32,
    deadline: &DeadlineLayer,
) -> Result<Client, Error> {
    config.read_timeout = Some(Duration::from_secs(30));
    config.reset_reader_on_write = true;
    let per_second = u64::from(per_second.get());
    let builder = ClientBuilder::try_from(config).map_err(Box::new)?;
    let limit = RateLimitLayer::new(per_second, Duration::from_secs(1));
    // Asked last: what waited for its turn past the deadline is not sent.
    Ok(builder.with_layer(&limit).with_layer(deadline).build())
}
