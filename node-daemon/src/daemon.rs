//! `run`: puts the parts together, in this order: libvirt, the host in the API, the sign of life, the
//! desktops. Ends with SIGTERM or SIGINT; desktops go on running.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use backon::{BackoffBuilder, ExponentialBuilder};
use gpudesk_crds::gpu_node_status::Acceleration;
use gpudesk_inventory::{status::HypervisorView, topology::uevent::Change};
use jiff::SignedDuration;
use kube::{Client, Config};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{AccelerationChoice, Look, Run},
    cluster::{Belongs, Cluster},
    desktop::{Desktops, Node},
    domain::Kind,
    gpu_node::{Publisher, Stored},
    host::{
        changes::Changes,
        folder::{DesktopFolders, boot_id},
        guest_network::GuestNetwork,
        hardware::{HardwareSeen, HardwareView, hardware},
        hypervisor::{Hypervisor, HypervisorEvent},
        images::ImageStore,
        kvm_probe::{Kvm, probe_once},
        leftovers::Leftovers,
        libvirt::{LibvirtHypervisor, socket},
        paths::AllowedRoots,
        simulated_driver::list_file,
        simulated_hypervisor::{SimulatedHypervisor, simulated_boot},
        source::{HostSource, SourceError},
        survey::Place,
        uevents,
    },
    lease::{self, Heard, Restored},
    metrics::Metrics,
    orphans::Orphans,
    owner_spec::OwnerSpec,
    relay::{self, Relay},
    secrets::Secrets,
    state_folder,
    upkeep::Seen,
    watch as desktops_watch,
};

/// The emulator, when libvirt does not name one.
const QEMU: &str = "qemu-system-x86_64";

/// Descriptors that the daemon may have where its host allows it: each who looks at a screen takes two.
const DESCRIPTORS: u64 = 65_536;

/// How long rounds may still take once the daemon was asked to end.
const LAST_ROUNDS: Duration = Duration::from_secs(20);

type HypervisorState = (HypervisorView, Option<Arc<dyn Hypervisor>>);

/// Runs the daemon until it is asked to end.
///
/// # Errors
/// What makes it impossible to run at all: a host file, the state folder, the address for metrics,
/// the way to the API server.
#[expect(clippy::too_many_lines, reason = "the parts are put together in their order")]
pub async fn run(options: Run) -> anyhow::Result<()> {
    raise_descriptors();
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true).mode(0o711).create(&options.state_dir).context("making the state folder")?;
    let state_dir = options.state_dir.canonicalize().context("finding the state folder")?;
    let _ours = state_folder::claim(&state_dir, &options.node_name).await?;
    let source = source(&options, &state_dir)?;
    if options.rebooted {
        let _ = fs::remove_file(list_file(&state_dir));
    }
    let boot = boot_of(&source, &state_dir, &options)?;
    let config = Config::infer().await.context("finding the API server")?;
    let client = gpudesk_watch::client(&config).context("connecting to the API server")?;
    // The lease must not wait behind a hundred status writes.
    let lease_client = gpudesk_watch::client(&config).context("connecting to the API server")?;
    let api_server = config.cluster_url.clone();
    let metrics = Metrics::default();
    let listener = TcpListener::bind(options.metrics_addr).await.context("listening for metrics")?;
    tracing::info!(address = %listener.local_addr()?, node = options.node_name, "serving metrics and health");

    let stop = CancellationToken::new();
    let ended = end_signal(stop.clone())?;
    // First of all: a node that lives is heard, however long it takes to look at it.
    let (renewed, heard) = Heard::new();
    let (went_back, restored) = Restored::new();
    let renewing = lease::Renewal {
        node: options.node_name.clone(),
        namespace: options.namespace.clone(),
        client: lease_client,
        metrics: metrics.clone(),
        renewed,
        restored: went_back,
    }
    .keep();
    // Each on its own, so that none waits for what another one waits for. They end with the last of us.
    let mut aside = JoinSet::new();
    aside.spawn(renewing);
    let serving = axum::serve(listener, metrics.router());
    aside.spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "metrics and health are not served any more");
        }
    });
    aside.spawn({
        let (uri, stop) = (libvirt_uri(&options).to_owned(), stop.clone());
        async move { end_with_its_socket(socket::removed(&uri), &stop).await }
    });
    let silent = HypervisorView::Silent("not connected yet".into());
    let (sender, hypervisor) = watch::channel::<HypervisorState>((silent, None));
    let done = Arc::new(Notify::new());
    let changes = Arc::new(Changes::default());
    let (seen, hardware) = hardware();
    let guest_network = Arc::new(GuestNetwork::new(options.guest_network.clone(), libvirt_uri(&options)));
    let (stored, words) = watch::channel(Stored::default());
    let (upkeep, upkept) = watch::channel(Seen::default());
    let (judging, belongs) = watch::channel(Belongs::default());
    let cluster = Cluster::new(&state_dir);
    aside.spawn(cluster.clone().watch_over(client.clone(), words.clone(), judging));
    let publisher = Publisher {
        node: options.node_name.clone(),
        source: source.clone(),
        client: client.clone(),
        hypervisor,
        guest_network: Arc::clone(&guest_network),
        changed: Arc::clone(&done),
        changes: Arc::clone(&changes),
        seen: seen.clone(),
        hook: options.look.hook.as_deref().map(|file| options.look.hook_at(file, &options.node_name)),
        metrics: metrics.clone(),
        stored,
        upkeep: upkept,
        belongs: belongs.clone(),
        restored: restored.clone(),
        owner: Arc::new(OwnerSpec::load(&state_dir, cluster.uid())),
    };
    aside.spawn(publisher.run());
    aside.spawn({
        let (source, changes) = (source.clone(), Arc::clone(&changes));
        async move { follow_hardware(&source, &changes).await }
    });
    let secrets = Secrets::new(client.clone(), config, &options.node_name, &options.namespace);
    let run = Desks {
        options: &options,
        api_server: &api_server,
        state_dir: &state_dir,
        boot,
        source,
        seen,
        hardware,
        guest_network,
        secrets,
        sender,
        heard,
        cluster,
        belongs,
        words,
        upkeep,
        restored,
    };
    let desktops = Box::pin(run.run(client, metrics, done, stop.clone()));
    tokio::select! {
        result = desktops => result?,
        // Whatever ends here is a fault: together they are the daemon.
        _ = aside.join_next() => anyhow::bail!("a part of the daemon ended"),
        () = async { ended.await; tokio::time::sleep(LAST_ROUNDS).await } => {
            tracing::warn!("rounds were still under way");
        }
    }
    tracing::info!("ended; desktops go on running");
    Ok(())
}

/// What running desktops needs.
struct Desks<'a> {
    options: &'a Run,
    api_server: &'a http::Uri,
    state_dir: &'a Path,
    boot: String,
    source: HostSource,
    seen: HardwareSeen,
    hardware: HardwareView,
    guest_network: Arc<GuestNetwork>,
    secrets: Secrets,
    sender: watch::Sender<HypervisorState>,
    heard: Heard,
    cluster: Cluster,
    belongs: watch::Receiver<Belongs>,
    words: watch::Receiver<Stored>,
    upkeep: watch::Sender<Seen>,
    restored: Restored,
}

impl Desks<'_> {
    /// Runs the desktops of this node until `stop`.
    #[expect(clippy::too_many_lines, reason = "the parts are put together in their order")]
    async fn run(
        self,
        client: Client,
        metrics: Metrics,
        changed: Arc<Notify>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self {
            options,
            api_server,
            state_dir,
            boot,
            source,
            seen,
            mut hardware,
            guest_network,
            secrets,
            sender,
            heard,
            cluster,
            belongs,
            words,
            upkeep,
            restored,
        } = self;
        let simulated = source.is_simulated();
        let root = options.look.host_root.as_deref().unwrap_or(Path::new("/"));
        let desktops = |hypervisor: Arc<dyn Hypervisor>, kind, relay: Option<&Relay>, stop| {
            let node = Node {
                name: options.node_name.clone(),
                hypervisor,
                guest_network: Arc::clone(&guest_network),
                gpus: Arc::clone(source.gpus()),
                hardware: hardware.clone(),
                network_devices: (!simulated).then(|| root.join("sys/class/net")),
                images: if simulated {
                    ImageStore::pretended(&options.node_name, source.missing_images())
                } else {
                    ImageStore::folders(&options.node_name, absolute(&options.image_roots))
                },
                roots: AllowedRoots::new(absolute(&options.allowed_roots))
                    .besides(state_dir, &absolute(&options.image_roots)),
                folders: DesktopFolders::new(state_dir),
                leftovers: Leftovers::new(state_dir),
                secrets: secrets.clone(),
                kind,
                boot: boot.clone(),
                latency: source.latency(),
                give_back_after: SignedDuration::from_secs(options.give_back_after.into()),
                relay: relay.map(Relay::console),
                belongs: belongs.clone(),
            };
            let (client, metrics, changed) = (client.clone(), metrics.clone(), Arc::clone(&changed));
            Arc::new(Desktops::new(node, client, metrics, changed, heard.clone(), stop))
        };
        // A libvirt that does not answer from the beginning is one that does not answer: the desktops say so,
        // until it does.
        let (mut answers, connected) = (sender.subscribe(), stop.child_token());
        let meanwhile = async {
            tokio::select! {
                _ = answers.changed() => {}
                () = connected.cancelled() => return,
            }
            if answers.borrow().1.is_none() {
                let silent = Arc::new(LibvirtHypervisor::silent(libvirt_uri(options)));
                // How guests would run is of no interest as long as nothing is done.
                let desktops = desktops(silent, Kind::Qemu, None, connected.clone());
                let (client, metrics, restored) = (client.clone(), metrics.clone(), restored.clone());
                let watched = watch::channel(None).0;
                desktops_watch::run(desktops, client, metrics, restored, watched, connected.clone()).await;
            }
        };
        let ready = async {
            let ready = async {
                let connected = connect(options, state_dir, &sender, &metrics).await?;
                // Nothing is decided without a first look, which a hook or the API server may delay elsewhere.
                let looking = source.clone();
                let facts = tokio::task::spawn_blocking(move || looking.facts()).await;
                seen.set(&facts.context("looking at the host")?, None);
                anyhow::Ok(connected)
            };
            let ready = tokio::select! {
                ready = ready => Some(ready),
                () = stop.cancelled() => None,
            };
            connected.cancel();
            ready
        };
        let (ready, ()) = tokio::join!(ready, meanwhile);
        let Some(ready) = ready else { return Ok(()) };
        let (hypervisor, kind) = ready?;
        let relay = open_relay(options, api_server).await;
        let desktops = desktops(Arc::clone(&hypervisor), kind, relay.as_ref(), stop.clone());
        report_given_away(&desktops.node().images);
        desktops.settle().await;
        let (watched, stores) = watch::channel(None);
        let screens = relay::serve(relay, &options.node_name, &hypervisor, client.clone(), stores.clone());
        let rounds = desktops_watch::run(
            Arc::clone(&desktops),
            client.clone(),
            metrics.clone(),
            restored,
            watched,
            stop.clone(),
        );
        let orphans = Orphans {
            desktops: Arc::clone(&desktops),
            client,
            cluster,
            metrics: metrics.clone(),
            settings: options.upkeep.settings(),
            stored: words,
            seen: upkeep,
        };
        let settling = async {
            loop {
                hardware.changed().await;
                desktops.settle().await;
            }
        };
        tokio::select! {
            () = rounds => {}
            () = orphans.look_after(stores) => {}
            () = follow(Arc::clone(&hypervisor), &sender, &metrics) => {}
            () = settling => {}
            () = guest_network.keep() => {}
            () = screens => {}
        }
        Ok(())
    }
}

/// Has the daemon end as when it is asked to, once the folder of libvirt's socket is `removed`. Never ends itself: the
/// daemon would take that for a fault, and wait for none of its rounds.
async fn end_with_its_socket(removed: impl Future<Output = PathBuf>, stop: &CancellationToken) {
    let folder = removed.await;
    tracing::error!(folder = %folder.display(), "the folder of libvirt's socket was removed on the host: the daemon ends, so that its container is started with the folder that is there now");
    stop.cancel();
    std::future::pending::<()>().await;
}

/// Which boot of the host this is. A reboot of a simulated one ends what ran there.
fn boot_of(source: &HostSource, state_dir: &Path, options: &Run) -> anyhow::Result<String> {
    if !source.is_simulated() {
        return Ok(boot_id());
    }
    simulated_boot(state_dir, options.rebooted).context("noting down the boot of a simulated host")
}

/// The relay, where it is wanted and can listen. Desktops run without it, so it is no reason to end.
async fn open_relay(options: &Run, api_server: &http::Uri) -> Option<Relay> {
    // On a simulated host there is nothing to see.
    let listen = options.relay_addr.0.filter(|_| options.simulate.is_none())?;
    let (host, port) = (api_server.host().unwrap_or_default(), api_server.port_u16().unwrap_or(443));
    match Relay::bind(listen, options.relay_announce.as_deref(), &format!("{host}:{port}")).await {
        Ok(relay) => {
            tracing::info!(address = relay.console().address, "the relay of screens listens");
            Some(relay)
        }
        Err(error) => {
            tracing::error!(%listen, %error, "the relay of screens cannot listen: no screen is reached through this node until the daemon is started with another --relay-addr");
            None
        }
    }
}

/// Lets this process have more descriptors than the usual 1,024, within what the host allows.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })
    {
        tracing::warn!(%error, "the daemon may have no more descriptors than before");
    }
}

fn source(options: &Run, state_dir: &Path) -> Result<HostSource, SourceError> {
    if let Some(file) = &options.simulate {
        return HostSource::simulated(file, &options.node_name, state_dir);
    }
    let Look { host_root, nvml, hook: _, hook_timeout: _ } = options.look.clone();
    let network_functions = options.network_functions;
    let state_dir = Some(state_dir.into());
    HostSource::machine(Place { root: host_root, nvml, network_functions, state_dir }, false)
}

/// Says which golden images are not root's, on a thread that nobody waits for.
fn report_given_away(images: &ImageStore) {
    let images = images.clone();
    std::thread::spawn(move || {
        for file in images.given_away() {
            let path = file.path.display();
            tracing::warn!(%path, owner = file.owner, "an image is not root's, perhaps given to QEMU's user by an earlier version: run `chown root:root` on it");
        }
    });
}

fn libvirt_uri(options: &Run) -> &str {
    let default = if options.simulate.is_some() { "test:///default" } else { "qemu:///system" };
    options.libvirt_uri.as_deref().unwrap_or(default)
}

/// Connects to libvirt, however long it takes, and finds out how guests run.
async fn connect(
    options: &Run,
    state_dir: &std::path::Path,
    sender: &watch::Sender<HypervisorState>,
    metrics: &Metrics,
) -> anyhow::Result<(Arc<dyn Hypervisor>, Kind)> {
    let uri = libvirt_uri(options);
    let mut delays = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(15))
        .with_jitter()
        .without_max_times()
        .build();
    let hypervisor = loop {
        match LibvirtHypervisor::connect(uri).await {
            Ok(hypervisor) => break hypervisor,
            Err(error) => {
                tracing::warn!(%error, "not connected to libvirt yet");
                sender.send_replace((HypervisorView::Silent(error.to_string()), None));
                tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(15))).await;
            }
        }
    };
    let (kind, why_not_kvm) = kind(options, uri, &hypervisor, state_dir).await;
    tracing::info!(uri, kind = kind.name(), why_not_kvm, "connected to libvirt");
    let view = HypervisorView::Answers {
        versions: hypervisor.versions().await.ok().map(|versions| versions.view()),
        acceleration: match kind {
            Kind::Kvm => Acceleration::Kvm,
            Kind::Qemu => Acceleration::Emulation,
            Kind::Test => Acceleration::Simulated,
        },
        why_not_kvm,
    };
    let hypervisor: Arc<dyn Hypervisor> = match kind {
        Kind::Kvm | Kind::Qemu => Arc::new(hypervisor),
        Kind::Test => {
            let hypervisor = SimulatedHypervisor::new(hypervisor, state_dir).await;
            Arc::new(hypervisor.context("bringing back the domains of a simulated host")?)
        }
    };
    metrics.set_hypervisor(true);
    sender.send_replace((view, Some(Arc::clone(&hypervisor))));
    Ok((hypervisor, kind))
}

async fn kind(
    options: &Run,
    uri: &str,
    hypervisor: &LibvirtHypervisor,
    state_dir: &std::path::Path,
) -> (Kind, Option<String>) {
    if uri.starts_with("test:") {
        return (Kind::Test, None);
    }
    match options.acceleration {
        AccelerationChoice::Kvm => (Kind::Kvm, None),
        AccelerationChoice::Emulation => (Kind::Qemu, Some("--acceleration emulation is set".into())),
        AccelerationChoice::Auto => {
            let capabilities = hypervisor.capabilities().await.ok();
            if capabilities.as_ref().is_some_and(|capabilities| !capabilities.kvm) {
                return (Kind::Qemu, Some("libvirt offers no KVM on this host".into()));
            }
            let emulator = capabilities.and_then(|capabilities| capabilities.emulator);
            match probe_once(emulator.as_deref().unwrap_or(QEMU), state_dir, &boot_id()).await {
                Kvm::Works => (Kind::Kvm, None),
                Kvm::Unusable(why) | Kvm::Hung(why) | Kvm::Untried(why) => (Kind::Qemu, Some(why)),
            }
        }
    }
}

/// Follows whether libvirt answers. Never ends while the hypervisor is there.
async fn follow(hypervisor: Arc<dyn Hypervisor>, sender: &watch::Sender<HypervisorState>, metrics: &Metrics) {
    let answering = sender.borrow().clone();
    let mut events = hypervisor.events();
    while let Some(event) = events.next().await {
        match event {
            HypervisorEvent::Closed { reason } => {
                metrics.set_hypervisor(false);
                sender.send_replace((HypervisorView::Silent(reason), None));
            }
            HypervisorEvent::Resync => {
                metrics.set_hypervisor(true);
                sender.send_replace(answering.clone());
            }
            HypervisorEvent::Domain(_) => {}
        }
    }
}

/// Hears what changes in the hardware. Never ends: where the kernel cannot be heard, the slow pass has
/// to do.
async fn follow_hardware(source: &HostSource, changes: &Changes) {
    if source.is_simulated() {
        return std::future::pending().await;
    }
    let kernel = async {
        loop {
            if let Err(error) = uevents::listen(changes).await {
                tracing::warn!(%error, "the kernel's messages about hardware cannot be heard; changes show within a minute");
            }
            tokio::time::sleep(Duration::from_mins(5)).await;
            changes.add(Change::Whole);
        }
    };
    tokio::join!(kernel, follow_driver(source, changes));
}

/// Hears what the GPU driver tells of its cards.
pub(crate) async fn follow_driver(source: &HostSource, changes: &Changes) {
    loop {
        let nvml = source.survey().and_then(|survey| survey.nvml());
        match nvml.map(|nvml| nvml.events()) {
            Some(Ok(mut events)) => {
                while let Some(event) = events.recv().await {
                    tracing::warn!(card = %event.card, ?event, "the GPU driver reports an event");
                    let (card, source) = (event.card, source.clone());
                    // A look at the host may hold the survey for some time.
                    let told = tokio::task::spawn_blocking(move || {
                        if let Some(mut survey) = source.survey() {
                            survey.add_event(event);
                        }
                    });
                    if told.await.is_ok() {
                        changes.add(Change::Function(card));
                    }
                }
            }
            Some(Err(error)) => tracing::warn!(%error, "the GPU driver's events cannot be heard"),
            None => {}
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Cancels `stop` when the process is asked to end; the future ends then.
fn end_signal(stop: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ended = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to end");
        stop.cancel();
    });
    Ok(async move { ended.cancelled().await })
}

/// libvirt takes absolute paths only.
fn absolute(paths: &[std::path::PathBuf]) -> Vec<std::path::PathBuf> {
    paths.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_socket_that_is_removed_ends_the_daemon_as_a_signal_does() {
        let stop = CancellationToken::new();
        let mut ending = Box::pin(end_with_its_socket(std::future::ready("/run/libvirt".into()), &stop));
        assert_eq!((&mut ending).now_or_never(), None, "a part that ends is a fault, and cuts rounds off");
        assert!(stop.is_cancelled());
    }
}
