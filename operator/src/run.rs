//! The parts put together: clients, leadership, watches, loops, and their orderly end.

use std::{fmt::Debug, num::NonZeroU32, sync::Arc, time::Duration};

use futures::{
    StreamExt,
    channel::mpsc::{UnboundedReceiver, unbounded},
    stream,
};
use gpudesk_crds::{Desktop, DesktopTemplate, GpuNode, GpuProfile};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, Config, Resource,
    client::ClientBuilder,
    core::DeserializeGuard,
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
    backoff::Backoff,
    desktop, desktop_template, gpu_node, gpu_profile,
    health::Readiness,
    leader::{Candidate, Lost},
    metrics::Metrics,
    placement::compute::Limits,
    secret_access::SecretAccess,
    watch,
    world::{Queues, Stores, World},
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
}

/// Why the operator ended without being asked to.
#[derive(Debug, Error)]
pub enum Error {
    /// The client could not be made.
    #[error("cannot make a client: {0}")]
    Client(#[from] Box<kube::Error>),
    /// Somebody else may lead now.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// A part ended that runs for ever.
    #[error("the task {0} ended")]
    Ended(&'static str),
}

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
    // Whoever stands by does so properly.
    ready.set(true);
    let Some(lease) = candidate.acquire(&leases, &stop).await else { return Ok(()) };
    tracing::info!(identity = %settings.identity, "leading");
    ready.set(false);
    metrics.leading(true);

    // The lease is given back after the loops have ended, and not before.
    let loops_ended = CancellationToken::new();
    let keep = candidate.keep(&leases, lease, &loops_ended);
    let work = async {
        let result = work(config, settings, metrics.clone(), ready, stop).await;
        loops_ended.cancel();
        result
    };
    tokio::pin!(keep, work);
    tokio::select! {
        lost = &mut keep => Err(lost.err().map_or(Error::Ended("leader lease"), Error::Lost)),
        result = &mut work => {
            keep.await?;
            result
        }
    }
}

async fn work(
    config: Config,
    settings: Settings,
    metrics: Metrics,
    ready: Readiness,
    stop: CancellationToken,
) -> Result<(), Error> {
    let client = Client::try_from(config.clone()).map_err(Box::new)?;
    let writer = Writer::new(write_client(config, settings.writes_per_second)?, metrics.clone());
    let secrets = Arc::new(SecretAccess::new(writer.clone(), &settings.namespace));

    let (desktops, desktops_in) = store::<Desktop>();
    let (templates, templates_in) = store::<DesktopTemplate>();
    let (profiles, profiles_in) = store::<GpuProfile>();
    let (nodes, nodes_in) = store::<GpuNode>();
    let (leases, leases_in) = store::<Lease>();
    let stores = Stores { desktops, templates, profiles, nodes };
    let (desktop_queue, desktop_refs) = unbounded();
    let (template_queue, template_refs) = unbounded();
    let (profile_queue, profile_refs) = unbounded();
    let (node_queue, node_refs) = unbounded();
    let queues = Queues {
        desktops: desktop_queue,
        templates: template_queue,
        profiles: profile_queue,
        nodes: node_queue,
    };
    let world = Arc::new(World::new(stores.clone(), queues, settings.limits, metrics.clone()));

    let mut tasks = JoinSet::new();
    macro_rules! watch {
        ($api:expr, $writer:expr, $hear:ident) => {{
            let (world, metrics) = (world.clone(), metrics.clone());
            let watching = watch::watch($api, watcher::Config::default(), $writer, metrics, move |seen| {
                world.$hear(seen)
            });
            tasks.spawn(async move {
                watching.await;
                concat!("watch of ", stringify!($hear), "s")
            });
        }};
    }
    watch!(Api::<DeserializeGuard<Desktop>>::all(client.clone()), desktops_in, desktop);
    watch!(Api::<DeserializeGuard<DesktopTemplate>>::all(client.clone()), templates_in, template);
    watch!(Api::<DeserializeGuard<GpuProfile>>::all(client.clone()), profiles_in, profile);
    watch!(Api::<DeserializeGuard<GpuNode>>::all(client.clone()), nodes_in, node);
    let node_leases = Api::<DeserializeGuard<Lease>>::namespaced(client, &settings.namespace);
    watch!(node_leases, leases_in, lease);

    // Nothing is decided before everything is known.
    let known = async {
        let _ = tokio::join!(
            stores.desktops.wait_until_ready(),
            stores.templates.wait_until_ready(),
            stores.profiles.wait_until_ready(),
            stores.nodes.wait_until_ready(),
            leases.wait_until_ready(),
        );
    };
    tokio::select! {
        () = known => {}
        () = stop.cancelled() => return Ok(()),
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

    let waker = world.clone();
    tasks.spawn(async move {
        waker.wake_waiting().await;
        "waker of those that wait"
    });
    let counter = world.clone();
    tasks.spawn(async move {
        counter.wake_counts().await;
        "waker of counts"
    });
    let clock = world.clone();
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(5));
        loop {
            ticks.tick().await;
            clock.tick();
        }
    });

    let context =
        Arc::new(desktop::Context { world: world.clone(), writer: writer.clone(), secrets: secrets.clone() });
    let desktops =
        rounds(stores.desktops.clone(), desktop_refs, settings.concurrency, &stop, &metrics, move |object| {
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
    let templates = rounds(stores.templates.clone(), template_refs, 4, &stop, &metrics, move |object| {
        let (world, writer) = (template_world.clone(), template_writer.clone());
        async move { Failure::of(desktop_template::reconcile(&object, &world, &writer).await) }
    });
    let (profile_world, profile_writer) = (world.clone(), writer.clone());
    let profiles = rounds(stores.profiles.clone(), profile_refs, 2, &stop, &metrics, move |object| {
        let (world, writer) = (profile_world.clone(), profile_writer.clone());
        async move { Failure::of(gpu_profile::reconcile(&object, &world, &writer).await) }
    });
    let accounts = Arc::new(gpu_node::Accounts::default());
    let nodes = rounds(stores.nodes.clone(), node_refs, 4, &stop, &metrics, move |object| {
        let (secrets, accounts) = (secrets.clone(), accounts.clone());
        async move { Failure::of(gpu_node::reconcile(&object, &secrets, &accounts).await) }
    });
    let loops = async {
        tokio::join!(desktops, templates, profiles, nodes);
    };
    tokio::select! {
        () = loops => if stop.is_cancelled() { Ok(()) } else { Err(Error::Ended("loop over objects")) },
        ended = tasks.join_next() => Err(name_of(ended)),
    }
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
    let backoff = Arc::new(Backoff::<ObjectRef<K>>::default());
    let context = Arc::new((metrics.clone(), kind, backoff));
    let config = kube::runtime::controller::Config::default().concurrency(concurrency);
    Controller::for_stream(stream::pending(), objects)
        .with_config(config)
        .reconcile_on(refs)
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            move |object, context: Arc<(Metrics, String, Arc<Backoff<ObjectRef<K>>>)>| {
                let reference = ObjectRef::from_obj(&*object);
                let round = round(object);
                async move {
                    let (metrics, kind, backoff) = &*context;
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
            |object, _, context| Action::requeue(context.2.failed(ObjectRef::from_obj(&*object))),
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

fn write_client(mut config: Config, per_second: NonZeroU32) -> Result<Client, Error> {
    config.read_timeout = Some(Duration::from_secs(30));
    let per_second = u64::from(per_second.get());
    let builder = ClientBuilder::try_from(config).map_err(Box::new)?;
    Ok(builder.with_layer(&RateLimitLayer::new(per_second, Duration::from_secs(1))).build())
}
