//! Which way the real node of the demo runs.

use std::fs;
use std::sync::Arc;

use anyhow::{Result, bail};

use super::foreign_cluster;
use crate::libvirt_host::LibvirtHost;
use crate::node;
use crate::state::StateDir;

/// The file in the state folder that says it.
const FILE: &str = "way";

/// What runs operator and node daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A Kubernetes node: the chart's own pods.
    Pods,
    /// The harness: processes beside a control plane.
    Processes,
}

impl Way {
    fn word(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Processes => "processes",
        }
    }
}

/// A way, and whether it was found by what is possible, and not by anybody's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) way: Way,
    pub(super) free: bool,
    /// Why it is this one, in words.
    pub(super) because: String,
}

/// The way of the demo in this folder: that of an earlier run, else what was asked for, else what is possible.
pub(super) fn of(state: &Arc<StateDir>, asked: Option<Way>) -> Result<Choice> {
    let before = match fs::read_to_string(state.join(FILE)).as_deref() {
        Ok("pods") => Some(Way::Pods),
        Ok("processes") => Some(Way::Processes),
        // One of a version that wrote no such file.
        _ => LibvirtHost::running_in(state).map(|_| Way::Processes),
    };
    choose(asked, before, foreign_cluster(), || node::possible(state))
}

/// Remembers it for later runs.
pub(super) fn remember(state: &StateDir, way: Way) -> Result<()> {
    Ok(fs::write(state.join(FILE), way.word())?)
}

fn choose(
    asked: Option<Way>,
    before: Option<Way>,
    foreign: bool,
    possible: impl FnOnce() -> Result<()>,
) -> Result<Choice> {
    let choice = |way, because: &str| Ok(Choice { way, free: false, because: because.to_owned() });
    match (asked, before) {
        (Some(Way::Pods), _) if foreign => {
            bail!(
                "--pods starts a node of the demo's own, and KUBECONFIG gives a cluster: leave out one of them"
            )
        }
        _ if foreign => {
            choice(Way::Processes, "KUBECONFIG gives a cluster, and this machine is none of its nodes")
        }
        (Some(asked), Some(before)) if asked != before => bail!(
            "--{}: the demo that is there runs as {}; end it with `make demo-down`, or leave out --{}",
            asked.word(),
            before.word(),
            asked.word()
        ),
        (_, Some(before)) => choice(before, "as it did before"),
        (Some(Way::Processes), None) => choice(Way::Processes, "as asked for"),
        (Some(Way::Pods), None) => {
            possible()
                .map_err(|error| error.context("--pods: this machine lets no Kubernetes node be made"))?;
            choice(Way::Pods, "as asked for")
        }
        (None, None) => Ok(match possible() {
            Ok(()) => Choice {
                way: Way::Pods,
                free: true,
                because: "this machine lets a Kubernetes node be made".to_owned(),
            },
            Err(error) => Choice {
                way: Way::Processes,
                free: true,
                because: format!("this machine lets no Kubernetes node be made: {error:#}"),
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    const YES: fn() -> Result<()> = || Ok(());
    const NO: fn() -> Result<()> = || Err(anyhow!("runc is not installed"));
    const UNTRIED: fn() -> Result<()> = || panic!("it was tried");

    #[test]
    fn what_is_possible_decides_where_nobody_did() {
        let pods = choose(None, None, false, YES).unwrap();
        assert!(pods.way == Way::Pods && pods.free);
        let processes = choose(None, None, false, NO).unwrap();
        assert!(processes.way == Way::Processes && processes.free);
        assert!(processes.because.contains("runc is not installed"), "{}", processes.because);
    }

    #[test]
    fn a_demo_that_is_there_goes_on_its_way() {
        for before in [Way::Pods, Way::Processes] {
            for asked in [None, Some(before)] {
                let choice = choose(asked, Some(before), false, UNTRIED).unwrap();
                assert!(choice.way == before && !choice.free);
            }
        }
        let said = choose(Some(Way::Processes), Some(Way::Pods), false, UNTRIED).unwrap_err().to_string();
        assert!(said.contains("runs as pods") && said.contains("make demo-down"), "{said}");
    }

    #[test]
    fn a_word_counts_or_is_refused() {
        assert_eq!(choose(Some(Way::Processes), None, false, UNTRIED).unwrap().way, Way::Processes);
        assert_eq!(choose(Some(Way::Pods), None, false, YES).unwrap().way, Way::Pods);
        let said = format!("{:#}", choose(Some(Way::Pods), None, false, NO).unwrap_err());
        assert!(said.contains("--pods") && said.contains("runc is not installed"), "{said}");
    }

    #[test]
    fn in_a_given_cluster_there_is_no_node_of_ours() {
        assert_eq!(choose(None, None, true, UNTRIED).unwrap().way, Way::Processes);
        assert!(choose(Some(Way::Pods), None, true, UNTRIED).unwrap_err().to_string().contains("KUBECONFIG"));
    }
}
