//! What somebody does on the host by hand, and what is told of it.
#![allow(clippy::disallowed_methods, reason = "a test looks at files")]

use serde_json::json;
use uuid::Uuid;

use super::{
    fixtures::{SMALL, desktop, template},
    tests::{OFFICE, api, decided, desktops, reason, renamed, seen, with_gpu},
    *,
};
use crate::host::hypervisor::{DomainState, HypervisorError};

/// What somebody does on the host.
fn on_the_host(uid: Uuid, act: impl FnOnce(virt::domain::Domain)) {
    let host = virt::connect::Connect::open(Some("test:///default")).unwrap();
    act(host.lookup_domain_by_uuid(uid).unwrap());
}

#[tokio::test]
async fn memory_that_was_saved_on_the_host_is_not_thrown_away_until_its_desktop_is_deleted() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 52);
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    let running = seen(&desktop, &written.recv().await.unwrap());
    on_the_host(uid, |domain| domain.managed_save(0).unwrap());
    let mut off = running.clone();
    off.spec.power_state = gpudesk_crds::desktop::PowerState::Stopped;
    // However long ago: nothing is given back.
    let next = decided(&running, "2-00000002");
    for wanted in [&running, &running, &off, &next] {
        desktops.round(wanted, Some(template(OFFICE))).await.unwrap();
        assert_eq!(desktops.node.hypervisor.get(uid).await.unwrap().state, DomainState::Saved);
    }
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "Running"), ("False", "GuestStopped"));
    assert!(status.to_string().contains("saved on the host"), "{status}");
    let saved = seen(&desktop, &status);
    while let Ok(later) = written.try_recv() {
        assert_ne!(later["node"]["state"], "Stopped", "{later}");
    }
    // It goes on, and says so.
    on_the_host(uid, |domain| domain.create().unwrap());
    desktops.round(&saved, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
    on_the_host(uid, |domain| domain.managed_save(0).unwrap());
    let mut deleted = running.clone();
    deleted.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-05T09:00:00Z")).unwrap();
    desktops.round(&deleted, Some(template(OFFICE))).await.unwrap();
    assert!(desktops.node.hypervisor.get(uid).await.is_err());
}

#[tokio::test]
async fn saved_memory_of_what_is_no_desktops_is_given_up_by_an_admins_word_alone() {
    use gpudesk_crds::gpu_node_words::StrayAction;
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, &with_gpu()), 54);
    let owner = Owner { namespace: desktop.metadata.namespace.clone().unwrap(), name: "anna".into(), uid };
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    written.recv().await.unwrap();
    let folder = desktops.node.folders.of(uid);
    folder.write(folder.disk("system"), b"what the user made".into()).await.unwrap();
    on_the_host(uid, |domain| domain.managed_save(0).unwrap());
    assert!(desktops.withdraw(&owner, None, "moved", withdraw::Disks::PutAside).await.is_err());
    for action in [StrayAction::ShutDown, StrayAction::PowerOff] {
        assert_eq!(desktops.node.hypervisor.get(uid).await.unwrap().state, DomainState::Saved);
        let done = desktops.end(&owner, action, None, "told to", withdraw::Disks::PutAside).await;
        assert_eq!(done.is_ok(), action == StrayAction::PowerOff);
    }
    assert!(matches!(desktops.node.hypervisor.get(uid).await, Err(HypervisorError::NotFound { .. })));
    assert_eq!(desktops.instances(uid).await.unwrap(), []);
    assert_eq!(desktops.node.leftovers.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn who_took_the_power_of_a_machine_is_not_its_guest() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 53);
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    let running = seen(&desktop, &written.recv().await.unwrap());
    on_the_host(uid, |domain| domain.destroy().unwrap());
    desktops.round(&running, Some(template(OFFICE))).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "Running"), ("False", "GuestStopped"));
    assert!(status.to_string().contains("the machine was powered off on the host at"), "{status}");
}

#[tokio::test]
async fn a_domain_of_somebody_else_is_named_with_what_to_do() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 55);
    let needed = gpudesk_crds::domain_name(desktop.metadata.namespace.as_ref().unwrap(), "anna");
    let other = Uuid::from_u128(55 << 64 | 0x8000_0000_0000_0002);
    let copied = format!(
        "<metadata><g:desktop xmlns:g='{}' uid='{}' namespace='secret' name='bob'><g:daemon version='1'/>\
         <g:template generation='1'/><g:allocation>{}</g:allocation></g:desktop></metadata>",
        crate::domain::metadata::NAMESPACE,
        Uuid::from_u128(9),
        // What cannot be read would be in the way of all others in this process.
        json!({
            "node": "node-a", "desktopGeneration": 1, "templateGeneration": 1, "decidedAt": "2026-01-05T08:00:00Z",
        }),
    );
    let mut now = desktop.clone();
    for (name, uuid, metadata, words) in [
        (needed.as_str(), other, "", ["was not made by gpudesk", "virsh domrename"]),
        (&needed, other, &copied, ["is a copy of the machine of another", "virsh domrename"]),
        ("mine", uid, "", ["has the UUID of this desktop", "virsh undefine mine"]),
        ("mine", uid, &copied, ["is a copy of the machine of another", "another <uuid>"]),
    ] {
        let xml = format!(
            "<domain type='test'><name>{name}</name><uuid>{uuid}</uuid>{metadata}<memory unit='MiB'>64</memory>\
             <vcpu>1</vcpu><os><type>hvm</type></os></domain>"
        );
        desktops.node.hypervisor.define(xml).await.unwrap();
        desktops.round(&now, Some(template(OFFICE))).await.unwrap();
        let status = written.recv().await.unwrap();
        assert_eq!(reason(&status, "Running"), ("False", "AllocationConflict"), "{status}");
        let text = status.to_string();
        for part in words.into_iter().chain([name, &uuid.to_string()]) {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("bob"), "who has it is not theirs to know: {text}");
        desktops.node.hypervisor.undefine(uuid, crate::host::hypervisor::GuestState::Keep).await.unwrap();
        now = seen(&now, &status);
    }
    desktops.round(&now, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
}
