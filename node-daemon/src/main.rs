//! The node daemon. See the library for what it does.

use std::{io::IsTerminal, process::ExitCode};

use clap::{CommandFactory, Parser};
use gpudesk_node_daemon::{
    cli::{self, Cli, Command, LogFormat, told},
    daemon, discover,
    layout::{self, Outcome},
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match run() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Discover(options) => {
            let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(is_terminal());
            log.with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")))
                .init();
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?
                .block_on(discover::run(&options))?;
        }
        Command::Layout(options) => return Ok(place(&options)),
        Command::Completion { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "gpudesk-node-daemon",
                &mut std::io::stdout(),
            );
        }
        Command::Run(options) => {
            let options = *options;
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
            let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
            match options.log_format {
                LogFormat::Text => log.with_ansi(is_terminal()).init(),
                LogFormat::Json => log.json().init(),
            }
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let result = runtime.block_on(daemon::run(options));
            // A thread that waits for a file system that does not answer is not waited for.
            runtime.shutdown_background();
            result?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a layout, or why there is none.
fn place(options: &cli::Layout) -> ExitCode {
    match layout::run(options) {
        Ok(Outcome::Legal(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Outcome::Refused(why)) => {
            eprintln!("refused: {why}");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Colours are for people who look on, not for files.
fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}
