//! What is said of a desktop whose node is away, or whose machine is where it should not be. Pure.

use gpudesk_crds::{ABANDON_DISKS_ANNOTATION, Allocation, AllocationId, Desktop, conditions::Reason};

use super::decide::{self, Around, Found};
use crate::invalid::Invalid;

/// Of a desktop whose node is lost.
pub fn lost(desktop: &Desktop, allocation: &Allocation, around: &Around) -> Invalid {
    let node = &allocation.node;
    let known = if decide::is_settled(desktop) {
        "nothing of the desktop runs there, and its disks are there"
    } else {
        "whether the machine runs is not known, and nothing is started in its place"
    };
    let ways = ways(desktop, allocation, around);
    Invalid::new(Reason::NodeLost, format!("GpuNode {node} does not exist: {known}. {ways}"))
}

/// What people can do for a desktop whose node is away.
pub fn ways(desktop: &Desktop, allocation: &Allocation, around: &Around) -> String {
    let node = &allocation.node;
    if around.alive && around.node.is_away() {
        return format!("The daemon of {node} still renews its lease: what runs there is not given up");
    }
    let mut ways = vec![format!("Bring {node} back")];
    let deleted = desktop.metadata.deletion_timestamp.is_some();
    let only_runs = deleted || around.keeps_disks == Some(false);
    if !decide::is_settled(desktop) && only_runs {
        ways.push(format!(
            "or, if it is off for good, let its administrator say so: by the taint node.kubernetes.io/out-of-service of Node \
             {node}, or by spec.outOfService of GpuNode {node}, made again where it is gone"
        ));
    }
    let decision = allocation.decision();
    ways.push(format!(
        "or give up what the desktop has there, its disks too: kubectl annotate --overwrite desktop {} {ABANDON_DISKS_ANNOTATION}={decision}",
        desktop.metadata.name.as_deref().unwrap_or_default()
    ));
    let mut ways = ways.join("; ");
    if let Some(said) = decide::abandoned(desktop).filter(|said| *said != decision) {
        let other = format!(
            ". Its annotation {ABANDON_DISKS_ANNOTATION} names {said:?}, which is not the decision that holds, and gives up nothing"
        );
        ways += &other;
    }
    ways
}

/// Of a desktop that is to give up what a node has that is heard.
pub fn is_heard(desktop: &Desktop, allocation: &Allocation) -> Option<Invalid> {
    decide::abandons(desktop, &allocation.decision()).then(|| {
        let message = format!(
            "the annotation {ABANDON_DISKS_ANNOTATION} has no effect while the daemon of {} is heard: stop or delete the desktop",
            allocation.node
        );
        Invalid::new(Reason::AbandonRefused, message)
    })
}

/// Of a desktop of which machines run where its status does not say.
pub fn elsewhere(found: &[Found]) -> Invalid {
    let each: Vec<String> = found
        .iter()
        .map(|found| format!("on {} by decision {}", found.node, found.allocation.decision()))
        .collect();
    let message = format!(
        "a machine of this desktop runs {} and is left alone: nothing is started beside it. The administrator of a node ends one \
         by spec.strays of its GpuNode{}",
        each.join(", and another "),
        if found.len() == 1 { "; with spec.powerState: Running the desktop takes it up" } else { "" },
    );
    Invalid::new(Reason::AllocationConflict, message)
}

/// Of a desktop whose status tells less than was decided.
pub fn forgotten(desktop: &Desktop, decision: AllocationId) -> Invalid {
    let name = desktop.metadata.name.as_deref().unwrap_or_default();
    let message = format!(
        "a machine of this desktop ran by decision {decision}, of which its status does not tell any more: nothing is started beside \
         it. It is given back once its node reports it; where there is none any more, say so: kubectl annotate --overwrite \
         desktop {name} {ABANDON_DISKS_ANNOTATION}={decision}"
    );
    Invalid::new(Reason::AllocationConflict, message)
}
