//! The node daemon. See the library for what it does.

use clap::Parser;
use gpudesk_node_daemon::{
    cli::{Cli, Command, LogFormat},
    daemon, discover,
    host::source::HostSource,
};
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Discover(options) => {
            let source = match &options.simulate {
                Some(file) => HostSource::simulated(file, &options.node_name, &std::env::temp_dir())?,
                None => HostSource::machine(),
            };
            let node = discover::gpu_node(&source, &options.node_name);
            print!("{}", discover::print(&node, options.output)?);
            Ok(())
        }
        Command::Run(options) => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
            let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
            match options.log_format {
                LogFormat::Text => log.with_ansi(false).init(),
                LogFormat::Json => log.json().init(),
            }
            tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(daemon::run(options))
        }
    }
}
