//! Starts and stops the demo; `make demo` and `make demo-down` call it.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use gpudesk_e2e::demo::Way;
use tracing_subscriber::EnvFilter;

/// A whole gpudesk on this machine: control plane, operator, node daemons, a desktop that runs.
#[derive(Parser)]
#[command(name = "gpudesk-demo", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring it up, complete one that was interrupted, or look at one that runs.
    Up(Up),
    /// Stop all of it and remove what it left.
    Down,
}

/// Without either, what the machine allows decides, and the demo says why.
#[derive(Args)]
struct Up {
    /// Operator and node daemon run as the chart's own pods, on a Kubernetes node that lasts as long as the demo.
    #[arg(long, conflicts_with = "processes")]
    pods: bool,
    /// They run as processes beside a control plane.
    #[arg(long)]
    processes: bool,
}

impl Up {
    fn way(&self) -> Option<Way> {
        match (self.pods, self.processes) {
            (true, _) => Some(Way::Pods),
            (_, true) => Some(Way::Processes),
            _ => None,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,kube_client::client::builder=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let outcome = match arguments.command {
        Command::Up(up) => gpudesk_e2e::demo::up(up.way()).await,
        Command::Down => gpudesk_e2e::demo::down().await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpudesk-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
