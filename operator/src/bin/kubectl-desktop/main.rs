//! `kubectl desktop`: plans desktops without a cluster or beside one, and says why a desktop waits.

mod complete;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use gpudesk_operator::{
    plan::run::{self as plan, Failure},
    why::run as why,
};

/// Plans gpudesk desktops, and says why one waits. Changes nothing, anywhere.
#[derive(Debug, Parser)]
#[command(name = "kubectl-desktop", bin_name = "kubectl desktop", version, after_long_help = STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const STATUS: &str = "Exit status: 0 every desktop has its place; 1 some are pending; 2 wrong input; \
                      3 the cluster could not be read.";

const PLAN_EXAMPLES: &str = "\
Examples:
  # Do these desktops fit on two kinds of servers, one of them four times?
  kubectl desktop plan -f desktops/ --nodes hosts/l40s.yaml hosts/rtx-6000.yaml=4

  # Would these desktops fit beside those that run? And if two more servers came?
  kubectl desktop plan -f new-room.yaml --from-cluster
  kubectl desktop plan -f new-room.yaml --from-cluster --nodes hosts/l40s.yaml=2

  # Does the estate bear all desktops at once, also those that are stopped now?
  kubectl desktop plan --from-cluster --all

  # What would have to move for pending ones to fit? For a program:
  kubectl desktop plan --from-cluster --defragment -o json

  # What a kustomization makes
  kubectl kustomize overlays/school | kubectl desktop plan -f - --nodes hosts/l40s.yaml

Exit status: 0 every desktop that should run has a place; 1 some are pending; 2 wrong input, each named
with file, document, field and value; 3 the cluster could not be read.";

const WHY_EXAMPLES: &str = "\
Examples:
  kubectl desktop why anna -n school

  # Without a cluster, from what it was
  kubectl get gpunodes,gpuprofiles,desktoptemplates,desktops -A -o yaml > dump.yaml
  kubectl desktop why school/anna --from dump.yaml

  # Why the plan has no place for it
  kubectl desktop why school/anna --from desktops/ --nodes hosts/l40s.yaml

Exit status: 0 it has its place, or should have none; 1 it is pending; 2 wrong input, or no such desktop;
3 the cluster could not be read.";

const COMPLETION_EXAMPLES: &str = "\
Examples:
  # For `kubectl-desktop`
  kubectl desktop completion bash > /etc/bash_completion.d/kubectl-desktop

  # For `kubectl desktop`: kubectl asks a program of this name in the PATH
  printf '#!/bin/sh\\nexec kubectl-desktop __complete \"$@\"\\n' > ~/.local/bin/kubectl_complete-desktop
  chmod +x ~/.local/bin/kubectl_complete-desktop";

#[derive(Debug, Subcommand)]
enum Command {
    /// Say where desktops would go, which would wait and why, and what room is left. Decided by the
    /// operator's own engine; nothing is written.
    #[command(after_long_help = PLAN_EXAMPLES)]
    Plan(Box<plan::Plan>),
    /// Say why a desktop is where it is, or why it waits: node by node, and what is nearest to a place.
    #[command(after_long_help = WHY_EXAMPLES)]
    Why(Box<why::Why>),
    /// Print a script that completes this command line in a shell.
    #[command(after_long_help = COMPLETION_EXAMPLES)]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Answer kubectl, which asks how a command line could go on.
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete {
        /// The words so far; the last one is being written.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            for line in failure.to_string().lines() {
                eprintln!("error: {line}");
            }
            ExitCode::from(failure.exit_status())
        }
    }
}

fn run(command: Command) -> Result<bool, Failure> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match command {
        Command::Plan(options) => runtime()?.block_on(plan::run(&options)),
        Command::Why(options) => runtime()?.block_on(why::run(&options)),
        Command::Completion { shell } => {
            let mut script = vec![];
            clap_complete::generate(shell, &mut Cli::command(), "kubectl-desktop", &mut script);
            plan::print(&String::from_utf8_lossy(&script)).map(|()| true)
        }
        Command::Complete { words } => plan::print(&complete::answer(&Cli::command(), &words)).map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
