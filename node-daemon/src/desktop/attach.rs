//! Giving a desktop the disks of a leftover.

use std::collections::BTreeSet;

use gpudesk_crds::{Desktop, DesktopTemplate};
use kube::{ResourceExt, api::DynamicObject};

use super::{Desktops, lost_disks, problem::Problem, withdraw::Disks};
use crate::host::{folder::Owner, hypervisor::HypervisorError};

/// The desktop that gets disks, by the answer to a read of it; or why it cannot get any. Pure.
///
/// # Errors
/// What must be done first, in words.
pub fn may_take(node: &str, live: Option<&DynamicObject>) -> Result<Owner, String> {
    let live = live.ok_or("attachTo names a Desktop that there is not")?;
    let desktop: Desktop =
        live.clone().try_parse().map_err(|error| format!("the Desktop cannot be understood: {error}"))?;
    let uid = desktop.uid().and_then(|uid| uid.parse().ok()).ok_or("the Desktop has no UID")?;
    if desktop.metadata.deletion_timestamp.is_some() {
        return Err("the Desktop is being deleted".into());
    }
    let allocation = desktop.status.as_ref().and_then(|status| status.allocation.as_ref());
    let allocation =
        allocation.ok_or("the Desktop keeps its disks on no node: start it once on this one and stop it")?;
    if allocation.node != node {
        return Err(format!("the Desktop keeps its disks on node {}", allocation.node));
    }
    if allocation.compute.is_some() || !allocation.gpus.is_empty() || !allocation.host_devices.is_empty() {
        return Err("the Desktop is not stopped: set its spec.powerState: Stopped".into());
    }
    Ok(Owner { namespace: desktop.namespace().unwrap_or_default(), name: desktop.name_any(), uid })
}

/// Why a machine of `template` would not start with just these disks. Pure.
fn misses(template: &DesktopTemplate, disks: &BTreeSet<String>) -> Option<String> {
    let wanted = lost_disks::lasting_of(&template.spec);
    let fits = !wanted.is_empty() && wanted.is_subset(disks);
    let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
    (!fits).then(|| {
        format!(
            "the disks of its template {} that last are [{}], and those of the leftover are [{}]: the machine would start \
             with empty ones; name them in the template as they are in the leftover",
            template.name_any(),
            list(&wanted),
            list(disks)
        )
    })
}

impl Desktops {
    /// Gives the disks of `leftover` to a desktop of `template` that is stopped and keeps its disks here. Those
    /// that it has become a leftover. Safe to repeat after it was interrupted anywhere.
    ///
    /// # Errors
    /// What could not be done: the outer ones may pass, the inner ones say what must be done first.
    pub async fn attach(
        &self,
        leftover: &str,
        owner: &Owner,
        template: &DesktopTemplate,
    ) -> Result<Result<(), String>, Problem> {
        match self.node.hypervisor.get(owner.uid).await {
            Err(HypervisorError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(Err("the machine of the Desktop is still here".into())),
        }
        if !self.instances(owner.uid).await?.is_empty() {
            return Ok(Err("shares of GPUs of the Desktop are still here".into()));
        }
        if !self.node.leftovers.list().await?.iter().any(|kept| kept.name == leftover) {
            return Ok(Err("no such leftover is here".into()));
        }
        let disks = self.node.leftovers.disks(leftover).await?;
        // No guest of a simulated host has disks.
        if !self.node.images.is_pretended()
            && let Some(refusal) = misses(template, &disks)
        {
            return Ok(Err(refusal));
        }
        let folder = self.node.folders.of(owner.uid);
        if folder.exists().await? {
            self.leave_disks(owner, &format!("{leftover} took its place"), Disks::PutAside).await?;
        }
        // They hold what nothing can make again.
        folder.note_used(disks.into_iter().collect()).await?;
        if !self.node.leftovers.give(leftover, &folder, owner).await? {
            return Ok(Err("no such leftover is here".into()));
        }
        tracing::warn!(
            leftover,
            desktop = format!("{}/{}", owner.namespace, owner.name),
            "its disks are the desktop's now"
        );
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desktop::fixtures::{SMALL, desktop};
    use serde_json::json;

    #[test]
    fn only_a_stopped_desktop_of_this_node_takes_disks() {
        let running = serde_json::to_value(desktop("", SMALL, "[]")).unwrap();
        let take = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut object = running.clone();
            object["status"]["allocation"].as_object_mut().unwrap().remove("compute");
            change(&mut object);
            let live: DynamicObject = serde_json::from_value(object).unwrap();
            may_take("node-a", Some(&live)).map(|owner| owner.name)
        };
        assert_eq!(take(&|_| {}), Ok("anna".into()));
        for (change, why) in [
            (
                &(|it: &mut serde_json::Value| {
                    it["status"]["allocation"]["compute"] = json!({
                        "cores": 1, "threadsPerCore": 1, "memoryMiB": 1
                    });
                }) as &dyn Fn(&mut serde_json::Value),
                "spec.powerState",
            ),
            (&|it| it["status"]["allocation"]["node"] = json!("node-b"), "on node node-b"),
            (&|it| it["status"] = json!({}), "start it once"),
            (&|it| it["metadata"]["deletionTimestamp"] = json!("2026-01-05T08:00:00Z"), "being deleted"),
            (&|it| it["status"]["allocation"] = json!("much"), "cannot be understood"),
        ] {
            let refusal = take(change).unwrap_err();
            assert!(refusal.contains(why), "{refusal}");
        }
        assert!(may_take("node-a", None).is_err());
    }
}
