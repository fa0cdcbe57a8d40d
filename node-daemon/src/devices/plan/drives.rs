//! NVMe drives: given whole like cards, never from under the host, and erased once they are back at the host's driver.

use gpudesk_crds::gpu_node_drives::DriveErase;

use crate::devices::{journal::Card, live::LiveCard, refusal::Refusal, step::Step};

/// Whether a drive can be taken from the host now. What is on one that a desktop had before is that desktop's.
pub(super) fn fit(live: &LiveCard, known: Option<&Card>) -> Result<(), Refusal> {
    let address = live.function.address;
    let was_given = known.is_some_and(|known| known.erase.is_some());
    let refused = |why: String| Err(Refusal::Drive { drive: address, why });
    match &live.drive {
        // Taken from its driver by a step before this one.
        None if was_given && live.function.driver.is_none() => Ok(()),
        None => {
            let driver = live.function.driver.as_deref().unwrap_or("none");
            refused(format!(
                "its driver is {driver}, and only one that the host's driver nvme has can be looked at and erased"
            ))
        }
        Some(drive) => match drive.in_use.as_ref().or(drive.holds.as_ref().filter(|_| !was_given)) {
            Some(why) => refused(why.clone()),
            None => Ok(()),
        },
    }
}

/// The one step by which a drive is erased that is back at the host.
pub(super) fn erase(live: &LiveCard, known: &Card, method: DriveErase) -> Result<Vec<Step>, Refusal> {
    let address = live.function.address;
    let refused = |why: String| Err(Refusal::Drive { drive: address, why });
    let Some(drive) = &live.drive else {
        return refused(
            "the host's driver nvme does not have it, so it is not erased after its last user".into(),
        );
    };
    if let Some(process) = live.function.held_by {
        return Err(Refusal::Open { device: address.to_string(), process });
    }
    // The host may have come upon what a guest left there: volumes, file systems.
    if let Some(why) = &drive.in_use {
        return refused(format!("it is not erased after its last user: {why}"));
    }
    Ok(vec![Step::Erase { function: address, method, size_mib: known.memory_mib }])
}
