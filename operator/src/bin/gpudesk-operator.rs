//! The operator's program.
#![expect(clippy::disallowed_methods, reason = "the program reads its surroundings")]
#![expect(clippy::doc_markdown, reason = "the doc comments are what --help prints")]

use std::{io::IsTerminal, net::SocketAddr, num::NonZeroU32, time::Duration};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use gpudesk_crds::DEFAULT_SYSTEM_NAMESPACE;
use gpudesk_operator::{
    health::{self, Readiness},
    metrics::Metrics,
    placement::compute::{DEFAULT_CPU_OVERCOMMIT, Limits},
    run::{self, Settings},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

// Each list of everything is a peak. The C library keeps what it was given for good, in pieces, and grows
// with every list (`make bench-memory`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Decides where gpudesk desktops run and what they get there.
///
/// Watches desktops, templates, profiles and nodes; chooses node, CPUs, memory and shares of GPUs
/// for each desktop and records them in its status, from which the node daemon of that node makes
/// the machine. Several replicas may run: one acts, the others stand by.
///
/// The cluster is that of KUBECONFIG, or the one it runs in. SIGTERM ends it in order; no desktop
/// stops when the operator does.
#[derive(Debug, Parser)]
#[command(version, name = "gpudesk-operator")]
struct Arguments {
    /// Namespace of the operator, the node daemons and their leases.
    #[arg(long, env = "GPUDESK_NAMESPACE", default_value = DEFAULT_SYSTEM_NAMESPACE)]
    namespace: String,

    /// Where /metrics, /healthz and /readyz are served. Port 0 takes any free one.
    #[arg(long, env = "GPUDESK_METRICS_ADDR", default_value = "127.0.0.1:8080")]
    metrics_addr: SocketAddr,

    /// How log lines look. Their level is set by RUST_LOG (default: info).
    #[arg(long, env = "GPUDESK_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// vCPUs that may stand on one host CPU where desktops share CPUs. Dedicated CPUs are never
    /// shared.
    #[arg(long, env = "GPUDESK_CPU_OVERCOMMIT", default_value_t = DEFAULT_CPU_OVERCOMMIT,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    cpu_overcommit: u32,

    /// Minutes that the first of those who wait is passed by smaller ones that fit. Then what it needs is
    /// kept for it on the node where the fewest desktops are in its way. 0: never.
    #[arg(long, env = "GPUDESK_KEEP_ROOM_AFTER_MINUTES", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=10080))]
    keep_room_after_minutes: u64,

    /// Taint devices that drivers of others publish to pods (ResourceSlices) and that are cards of gpudesk, where
    /// the cluster has DeviceTaintRules: gpudesk.dev/managed, NoSchedule.
    #[arg(long, env = "GPUDESK_DEVICE_TAINT_RULES")]
    device_taint_rules: bool,

    /// Desktops that are worked on at the same time.
    #[arg(long, env = "GPUDESK_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,

    /// Writes per second to the API server, at most.
    #[arg(long, env = "GPUDESK_WRITES_PER_SECOND", default_value = "200")]
    writes_per_second: NonZeroU32,

    /// Seconds for which the leader lease holds without renewal; it is renewed three times as
    /// often. After a crash the next operator starts when it has lapsed.
    #[arg(long, env = "GPUDESK_LEASE_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(6..=600))]
    lease_seconds: u64,

    /// Name of this process in the leader lease. Two processes must not have the same. Default:
    /// host name, process id and time of start.
    #[arg(long, env = "GPUDESK_IDENTITY")]
    identity: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    start_log(arguments.log_format);
    let config = kube::Config::infer().await.context("no cluster: set KUBECONFIG, or run in a pod")?;
    let listener = TcpListener::bind(arguments.metrics_addr)
        .await
        .with_context(|| format!("cannot listen on --metrics-addr {}", arguments.metrics_addr))?;
    tracing::info!(address = %listener.local_addr()?, "serving /metrics, /healthz and /readyz");

    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("asked to end");
            stop.cancel();
        }
    });

    let (metrics, ready) = (Metrics::default(), Readiness::default());
    let served = CancellationToken::new();
    let serving = tokio::spawn(health::serve(listener, metrics.clone(), ready.clone(), served.clone()));
    let settings = Settings {
        namespace: arguments.namespace,
        identity: arguments.identity.unwrap_or_else(default_identity),
        lease_duration: Duration::from_secs(arguments.lease_seconds),
        concurrency: arguments.concurrency,
        writes_per_second: arguments.writes_per_second,
        limits: Limits { cpu_overcommit: i64::from(arguments.cpu_overcommit) },
        keep_room_after: Some(Duration::from_mins(arguments.keep_room_after_minutes))
            .filter(|after| !after.is_zero()),
        device_taint_rules: arguments.device_taint_rules,
    };
    let result = Box::pin(run::run(config, settings, metrics, ready, stop)).await;
    served.cancel();
    // An open connection to /metrics does not hold the end up.
    let _ = tokio::time::timeout(Duration::from_secs(2), serving).await;
    result.context("the operator ended")
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Colours are for a terminal; in a file they are noise.
    let colours = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

/// Unique also where a pod is started again under its old name.
fn default_identity() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".into());
    format!("{host}-{}-{}", std::process::id(), jiff::Timestamp::now().as_millisecond())
}
