//! `kubectl desktop`: plans desktops without a cluster or beside one, says why a desktop waits, and opens
//! its screen.

mod complete;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use kubectl_desktop::{
    plan::run::{self as plan, Failure},
    view::run as view,
    why::run as why,
};

/// Plans gpudesk desktops, says why one waits, and opens the screen of one that runs.
#[derive(Debug, Parser)]
#[command(name = "kubectl-desktop", bin_name = "kubectl desktop", version, after_long_help = STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const STATUS: &str = "Exit status: 0 every desktop has its place; 1 some are pending, or the screen is not there; \
                      2 wrong input; 3 the cluster could not be read.";

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
with file, document, field and value, or no input at all; 3 the cluster could not be read.";

const WHY_EXAMPLES: &str = "\
Examples:
  kubectl desktop why anna -n school

  # Without a cluster, from what it was
  kubectl get gpunodes,gpuprofiles,desktoptemplates,desktops -A -o yaml > dump.yaml
  kubectl desktop why school/anna --from dump.yaml

  # Why the plan has no place for it
  kubectl desktop why school/anna --from desktops/ --nodes hosts/l40s.yaml

Exit status: 0 it has its place (with --from, as a manifest that no cluster has: it would get one), or should
have none; 1 it is pending; 2 wrong input, or no such desktop; 3 the cluster could not be read.";

const VIEW_EXAMPLES: &str = "\
Examples:
  # Prints 127.0.0.1:PORT, and passes the screen to the first viewer that connects there, until he leaves
  kubectl desktop view anna -n school
  vncviewer 127.0.0.1::PORT

  # A picture of it
  kubectl desktop view anna -n school --screenshot anna.png

Who may patch the Desktop may open its screen (the roles edit and admin): a ticket for it, good for a minute
and once, is written into the annotation gpudesk.dev/view-ticket and taken away again. The screen comes from the
node daemon of its node over TLS. Where this computer does not reach the node, a port-forward to the daemon's pod
is tried, which takes the right to create pods/portforward in the namespace of gpudesk.

Exit status: 0 it was seen; 1 there is no screen to see now, or none for you; 2 wrong input, or no such
desktop; 3 the API server could not be asked.";

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
    /// Open the screen of a desktop for a VNC viewer on this computer, or take a picture of it.
    #[command(after_long_help = VIEW_EXAMPLES)]
    View(Box<view::View>),
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
            for line in failure.lines() {
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
        Command::View(options) => runtime()?.block_on(view::run(&options)),
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
