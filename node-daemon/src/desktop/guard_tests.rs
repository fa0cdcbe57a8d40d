//! What a node must not do: start what is not its own, take down what could not start again, keep what is
//! another's.
#![allow(clippy::disallowed_methods, reason = "a test looks at files")]

use std::{sync::Arc, time::Duration};

use serde_json::json;
use uuid::Uuid;

use super::{
    fixtures::{SMALL, desktop, template},
    tests::{OFFICE, api, decided, desktops, reason, renamed, seen, with_gpu},
    *,
};
use crate::host::hypervisor::{DomainState, HypervisorError};

#[tokio::test]
async fn nothing_is_started_that_the_api_does_not_give_to_this_node_now() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 20);
    let mut moved = desktop.clone();
    moved.status.as_mut().unwrap().allocation.as_mut().unwrap().node = "node-b".into();
    let mut replaced = desktop.clone();
    replaced.metadata.uid = Some(Uuid::from_u128(1).to_string());
    let mut stopped = desktop.clone();
    stopped.spec.power_state = gpudesk_crds::desktop::PowerState::Stopped;
    // The watch still shows the desktop as this node's.
    let mut reasons = vec![];
    for live in [&moved, &replaced, &stopped] {
        desktops.api_has(live);
        let wait = desktops.desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
        assert!(wait <= Duration::from_secs(30));
        let state = desktops.node.hypervisor.get(uid).await.unwrap().state;
        assert!(!state.is_active(), "{state:?}");
        reasons.push(written.recv().await.unwrap());
    }
    assert_eq!(reason(&reasons[0], "Running"), ("False", "Unknown"));
    assert_eq!(reasons[0]["phase"], "Starting");
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
}

#[tokio::test]
async fn a_restart_that_could_not_succeed_is_not_begun() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 21);
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    let running = seen(&desktop, &written.recv().await.unwrap());
    let asked = |value: &str| {
        let mut asked = running.clone();
        let annotation = (gpudesk_crds::RESTARTED_AT_ANNOTATION.to_owned(), value.to_owned());
        asked.metadata.annotations = Some([annotation].into());
        asked.status.as_mut().unwrap().allocation.as_mut().unwrap().stop_for = Some(value.into());
        asked
    };
    let broken = |from: &str, to: &str| Some(template(&OFFICE.replace(from, to)));
    let cases = [
        (asked("now"), broken("name: win", "name: gone"), "ImageNotFound"),
        (asked("now"), None, "TemplateNotFound"),
        (asked("now"), broken("guestAgent", "machine: {tpm: true}, guestAgent"), "NotYetSupported"),
        (
            asked("now"),
            broken("guestAgent", "cloudInit: {secretRef: {name: none}}, guestAgent"),
            "SecretNotReadable",
        ),
        (asked(&"x".repeat(129)), Some(template(OFFICE)), "InvalidSpec"),
    ];
    for (asked, template, why) in cases {
        let wait = desktops.round(&asked, template).await.unwrap();
        assert!(wait <= Duration::from_secs(30), "it is tried again soon");
        let status = written.recv().await.unwrap();
        assert_eq!(reason(&status, "Running"), ("True", why));
        assert_eq!(reason(&status, "Ready"), ("True", why));
        assert_eq!(desktops.node.hypervisor.get(uid).await.unwrap().state, DomainState::Running, "{why}");
    }
    // Nor is one that the operator has not checked.
    let mut unchecked = asked("now");
    unchecked.status.as_mut().unwrap().allocation.as_mut().unwrap().stop_for = Some("earlier".into());
    desktops.round(&unchecked, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
    assert_eq!(desktops.node.hypervisor.get(uid).await.unwrap().state, DomainState::Running);
    desktops.round(&asked("now"), Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("False", "Stopped"));
}

/// A machine that was asked to shut down long ago, by a stop that was called off.
async fn called_off(desktops: &tests::Fixture, running: &Desktop, uid: Uuid) {
    let folder = desktops.node.folders.of(uid);
    let record: record::RunRecord = folder.read_json(run_notes::RECORD).await.unwrap().unwrap();
    let sent = Timestamp::now().checked_sub(SignedDuration::from_mins(5)).unwrap();
    let asked = record::RunRecord { shutdown_sent_at: Some(sent), ..record };
    folder.write_json(run_notes::RECORD, asked).await.unwrap();
    desktops.round(running, Some(template(OFFICE))).await.unwrap();
    let record: record::RunRecord = folder.read_json(run_notes::RECORD).await.unwrap().unwrap();
    assert_eq!((record.shutdown_sent_at, record.called_off), (None, Some(sent)), "the next stop asks anew");
}

#[tokio::test]
async fn a_stop_that_was_called_off_is_forgotten() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 28);
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    let running = seen(&desktop, &written.recv().await.unwrap());
    called_off(&desktops, &running, uid).await;
    // A restart is looked at before it is begun.
    let mut restart = running.clone();
    restart.metadata.annotations =
        Some([(gpudesk_crds::RESTARTED_AT_ANNOTATION.into(), "now".into())].into());
    restart.status.as_mut().unwrap().allocation.as_mut().unwrap().stop_for = Some("now".into());
    desktops.round(&restart, Some(template(&OFFICE.replace("name: win", "name: gone")))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "ImageNotFound"));
    assert_eq!(desktops.node.hypervisor.get(uid).await.unwrap().state, DomainState::Running);
    desktops.round(&running, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));

    // A guest that obeys it all the same comes up again: it did not stop by itself.
    desktops.node.hypervisor.shutdown(uid).await.unwrap();
    desktops.round(&running, Some(template(OFFICE))).await.unwrap();
    assert_eq!(desktops.node.hypervisor.get(uid).await.unwrap().state, DomainState::Running);
    // The run after it owes nothing to that stop.
    desktops.node.hypervisor.shutdown(uid).await.unwrap();
    desktops.round(&running, Some(template(OFFICE))).await.unwrap();
    let mut last = None;
    while let Ok(status) = written.try_recv() {
        last = Some(status);
    }
    assert_eq!(reason(&last.unwrap(), "Running"), ("False", "GuestStopped"));
}

#[tokio::test]
async fn what_ended_for_good_holds_nothing_and_says_so_until_it_is_switched_off() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, &with_gpu()), 22);
    let never = template(&OFFICE.replace("guestAgent", "lifecycle: {restartPolicy: Never}, guestAgent"));
    desktops.round(&desktop, Some(never.clone())).await.unwrap();
    let running = seen(&desktop, &written.recv().await.unwrap());
    desktops.node.hypervisor.shutdown(uid).await.unwrap();
    desktops.round(&running, Some(never.clone())).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "Running"), ("False", "GuestStopped"));
    assert_eq!(reason(&status, "DevicesPrepared"), ("False", "Stopped"));
    assert!(status.get("gpus").is_none());
    assert!(desktops.node.hypervisor.get(uid).await.is_err());
    assert_eq!(desktops.instances(uid).await.unwrap(), []);
    let ended = seen(&running, &status);
    desktops.round(&ended, Some(never.clone())).await.unwrap();
    // Parked, it says the same: that it stopped by itself is why it is not started.
    let mut parked = ended.clone();
    let stored = parked.status.as_mut().unwrap();
    stored.allocation.as_mut().unwrap().compute = None;
    stored.allocation.as_mut().unwrap().gpus.clear();
    stored.phase = None;
    stored.conditions.retain(|condition| condition.type_ != "Ready");
    parked.metadata.resource_version = Some("72".into());
    desktops.round(&parked, Some(never.clone())).await.unwrap();
    assert!(written.try_recv().is_err(), "nothing new");
    // A new decision begins a new run, whatever became of the one before.
    let mut again = ended.clone();
    let allocation = again.status.as_mut().unwrap().allocation.as_mut().unwrap();
    allocation.decided_at = serde_json::from_value(json!("2026-01-06T08:00:00Z")).unwrap();
    allocation.id = Some("2-00000002".parse().unwrap());
    again.metadata.resource_version = Some("73".into());
    desktops.round(&again, Some(never.clone())).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
    desktops.node.hypervisor.shutdown(uid).await.unwrap();
    desktops.round(&seen(&again, &status), Some(never.clone())).await.unwrap();
    parked.spec.power_state = gpudesk_crds::desktop::PowerState::Stopped;
    parked.metadata.resource_version = Some("75".into());
    desktops.round(&parked, Some(never)).await.unwrap();
    let mut last = None;
    while let Ok(status) = written.try_recv() {
        last = Some(status);
    }
    assert_eq!(reason(&last.unwrap(), "Running"), ("False", "Stopped"));
}

#[tokio::test]
async fn what_is_another_nodes_is_taken_down_and_its_disks_are_kept() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, &with_gpu()), 23);
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
    let folder = desktops.node.folders.of(uid);
    folder.write(folder.disk("system"), b"what the user made".into()).await.unwrap();
    folder.write(folder.scratch("swap"), vec![]).await.unwrap();
    let namespace = desktop.metadata.namespace.clone().unwrap();
    let owner = Owner { namespace, name: "anna".into(), uid };
    assert!(!desktops.was_being_deleted(&owner).await.unwrap());
    let done = desktops.withdraw(&owner, None, "moved to node-b", withdraw::Disks::PutAside).await.unwrap();
    assert_eq!(done, withdraw::Withdrawn::Whole);
    assert!(matches!(desktops.node.hypervisor.get(uid).await, Err(HypervisorError::NotFound { .. })));
    assert_eq!(desktops.instances(uid).await.unwrap(), []);
    assert!(!folder.exists().await.unwrap());
    assert_eq!(desktops.node.leftovers.list().await.unwrap().len(), 1);
    let kept = std::fs::read_dir(state.path().join("leftovers")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::read(kept.join("disk-system.qcow2")).unwrap(), b"what the user made");
    assert!(!kept.join("scratch-swap.qcow2").exists());
    assert!(written.try_recv().is_err(), "its status is another node's to write");
    // Nothing is left to do, and nothing is done.
    assert_eq!(
        desktops.withdraw(&owner, None, "again", withdraw::Disks::PutAside).await.unwrap(),
        withdraw::Withdrawn::Whole
    );
    assert_eq!(desktops.node.leftovers.list().await.unwrap().len(), 1);
    // Handed back, it starts anew.
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    assert_eq!(desktops.node.hypervisor.get(uid).await.unwrap().state, DomainState::Running);
}

#[tokio::test]
async fn a_simulated_host_misses_a_secret_as_a_real_one_does() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 24);
    let secret = template(&OFFICE.replace("guestAgent", "cloudInit: {secretRef: {name: none}}, guestAgent"));
    desktops.round(&desktop, Some(secret.clone())).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "DevicesPrepared"), ("False", "SecretNotReadable"));
    desktops.round(&seen(&desktop, &status), Some(secret)).await.unwrap();
    assert!(written.try_recv().is_err(), "it is not started without");
    assert!(desktops.node.hypervisor.get(uid).await.is_err());
}

#[tokio::test]
async fn work_on_one_desktop_is_one_at_a_time_and_holds_up_no_other() {
    let state = tempfile::tempdir().unwrap();
    let (api, _written) = api();
    let desktops = desktops(state.path(), api).await;
    let (release, held) = tokio::sync::oneshot::channel::<()>();
    let (begun, waits) = tokio::sync::oneshot::channel::<()>();
    let stuck = Uuid::from_u128(25);
    let work = async move {
        begun.send(()).unwrap();
        held.await.unwrap();
    };
    let first = tokio::spawn({
        let desktops = Arc::clone(&desktops);
        async move { desktops.alone(stuck, work).await }
    });
    waits.await.unwrap();
    assert_eq!(desktops.alone(stuck, async {}).await, None, "one at a time");
    assert_eq!(desktops.alone(Uuid::from_u128(26), async { 7 }).await, Some(7));
    release.send(()).unwrap();
    assert_eq!(first.await.unwrap(), Some(()));
    assert_eq!(desktops.alone(stuck, async { 8 }).await, Some(8));
}

#[tokio::test]
async fn what_the_operator_says_of_a_silent_node_is_taken_back_once_it_is_heard() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let mut fixture = desktops(state.path(), api).await;
    let (renewed, heard) = Heard::new();
    Arc::get_mut(&mut fixture.desktops).unwrap().heard = heard;
    let (desktop, _) = renamed(desktop("", SMALL, "[]"), 27);
    fixture.round(&desktop, Some(template(OFFICE))).await.unwrap();
    let mut silent = seen(&desktop, &written.recv().await.unwrap());
    let ready = silent.status.as_mut().unwrap().conditions.iter_mut().find(|it| it.type_ == "Ready").unwrap();
    (ready.status, ready.reason) = ("Unknown".into(), "DaemonSilent".into());
    fixture.round(&silent, Some(template(OFFICE))).await.unwrap();
    assert!(written.try_recv().is_err(), "as long as nobody hears it, the operator has the word");
    renewed.send_replace(Some(std::time::Instant::now()));
    fixture.round(&silent, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Ready"), ("True", "AsExpected"));
}

#[tokio::test]
async fn the_machine_of_an_older_decision_is_asked_once_and_gets_its_grace_and_then_the_next_one_starts() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 40);
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    let next = decided(&seen(&desktop, &written.recv().await.unwrap()), "2-00000002");
    let folder = desktops.node.folders.of(uid);
    let asked = async |seconds: i64| {
        let record: record::RunRecord = folder.read_json(run_notes::RECORD).await.unwrap().unwrap();
        let sent = Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).unwrap();
        let record = record::RunRecord { shutdown_sent_at: Some(sent), ..record };
        folder.write_json(run_notes::RECORD, record).await.unwrap();
        sent
    };
    let sent = asked(10).await;
    let patient =
        template(&OFFICE.replace("guestAgent", "lifecycle: {shutdownGraceSeconds: 600}, guestAgent"));
    desktops.round(&next, Some(patient.clone())).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(status["node"], json!({"allocationId": "2-00000002", "state": "Preparing"}));
    assert_eq!(reason(&status, "Running"), ("False", "Starting"), "what runs is not this decision's");
    assert!(status.get("domain").is_none());
    assert!(desktops.node.hypervisor.get(uid).await.unwrap().state.is_active());
    let record: record::RunRecord = folder.read_json(run_notes::RECORD).await.unwrap().unwrap();
    assert_eq!(record.shutdown_sent_at, Some(sent), "nobody called it off");
    asked(700).await;
    desktops.round(&next, Some(patient)).await.unwrap();
    assert_eq!(written.recv().await.unwrap()["node"]["state"], "Running");
    let domain = desktops.node.hypervisor.get(uid).await.unwrap();
    let metadata = crate::domain::metadata::parse(&domain.metadata.unwrap()).unwrap().unwrap();
    assert!(metadata.allocation.contains("2-00000002"), "{}", metadata.allocation);
}

#[tokio::test]
async fn a_machine_of_an_unknown_decision_is_left_running_until_its_desktop_is_deleted() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 41);
    let newer = decided(&desktop, "5-00000005");
    desktops.round(&newer, Some(template(OFFICE))).await.unwrap();
    written.recv().await.unwrap();
    // What holds is a copy from before it: as decided then, switched off, or parked.
    let mut off = decided(&desktop, "3-00000003");
    off.spec.power_state = gpudesk_crds::desktop::PowerState::Stopped;
    let mut parked = decided(&desktop, "4-00000004");
    parked.status.as_mut().unwrap().allocation.as_mut().unwrap().compute = None;
    for held in [decided(&desktop, "5-00000006"), off.clone(), parked] {
        desktops.round(&held, Some(template(OFFICE))).await.unwrap();
        let status = written.recv().await.unwrap();
        assert_eq!(reason(&status, "Running"), ("False", "AllocationConflict"));
        assert!(!["Running", "Stopped"].contains(&status["node"]["state"].as_str().unwrap()), "{status}");
        assert_eq!(desktops.node.hypervisor.get(uid).await.unwrap().state, DomainState::Running);
    }
    off.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-05T09:00:00Z")).unwrap();
    desktops.round(&off, Some(template(OFFICE))).await.unwrap();
    assert_eq!(written.recv().await.unwrap()["node"]["state"], "Released");
    assert!(desktops.node.hypervisor.get(uid).await.is_err());
}

#[tokio::test]
async fn shares_of_an_older_decision_are_given_back_before_the_next_one_is_made() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (before, uid) = renamed(desktop("", SMALL, &with_gpu()), 42);
    desktops.round(&before, Some(template(OFFICE))).await.unwrap();
    written.recv().await.unwrap();
    let other = with_gpu().replace("name: screen", "name: another");
    let (next, _) = renamed(desktop("", SMALL, &other), 42);
    // Its machine is gone, and its share is still there.
    desktops.node.hypervisor.destroy(uid).await.unwrap();
    desktops.round(&decided(&next, "2-00000002"), Some(template(OFFICE))).await.unwrap();
    assert_eq!(written.recv().await.unwrap()["node"]["state"], "Running");
    let instances = desktops.instances(uid).await.unwrap();
    let requests: Vec<&str> = instances.iter().map(|instance| instance.key.request.as_str()).collect();
    assert_eq!(requests, ["another"]);
}

#[tokio::test]
async fn a_machine_that_an_admin_ends_leaves_its_disks() {
    use gpudesk_crds::gpu_node_words::StrayAction;
    use withdraw::{Disks, Withdrawn};
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, &with_gpu()), 43);
    let owner = Owner { namespace: desktop.metadata.namespace.clone().unwrap(), name: "anna".into(), uid };
    let folder = desktops.node.folders.of(uid);
    let gone = async || {
        assert!(matches!(desktops.node.hypervisor.get(uid).await, Err(HypervisorError::NotFound { .. })));
        assert_eq!(desktops.instances(uid).await.unwrap(), []);
    };
    let start = async |id: &str| {
        desktops.round(&decided(&desktop, id), Some(template(OFFICE))).await.unwrap();
        folder.write(folder.disk("system"), b"what the user made".into()).await.unwrap();
        assert!(desktops.node.hypervisor.get(uid).await.unwrap().state.is_active());
    };
    for (id, action) in [("1-00000001", StrayAction::PowerOff), ("2-00000002", StrayAction::ShutDown)] {
        Box::pin(start(id)).await;
        let done = desktops.end(&owner, action, None, "told to", Disks::Stay).await.unwrap();
        assert_eq!(done, Withdrawn::Whole);
        gone().await;
        assert!(folder.disk("system").exists(), "they are the next machine's");
    }
    Box::pin(start("3-00000003")).await;
    desktops.end(&owner, StrayAction::PowerOff, None, "told to", Disks::PutAside).await.unwrap();
    gone().await;
    assert!(!folder.exists().await.unwrap());
    assert_eq!(desktops.node.leftovers.list().await.unwrap().len(), 1);

    // What cannot be read is no desktop's machine that is known, and is ended by its UUID.
    let xml = format!(
        "<domain type='test'><name>school.anna</name><uuid>{uid}</uuid><metadata>\
         <g:desktop xmlns:g='{}' uid='?'/></metadata><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
         <os><type>hvm</type></os></domain>",
        crate::domain::metadata::NAMESPACE
    );
    for action in [StrayAction::ShutDown, StrayAction::PowerOff] {
        desktops.node.hypervisor.define(xml.clone()).await.unwrap();
        desktops.node.hypervisor.start(uid).await.unwrap();
        folder.create(&owner).await.unwrap();
        folder.write(folder.disk("system"), b"another".into()).await.unwrap();
        assert!(desktops.end(&owner, action, None, "told to", Disks::PutAside).await.is_err());
        let mut done =
            desktops.end_unreadable(&owner, action, None, "told to", Disks::PutAside).await.unwrap();
        if let Withdrawn::Waiting(until) = done {
            assert_eq!(action, StrayAction::ShutDown);
            assert!(until > Timestamp::now(), "the guest has its grace");
            let asked = Some(Timestamp::now());
            done = desktops.end_unreadable(&owner, action, asked, "told to", Disks::PutAside).await.unwrap();
        }
        assert_eq!(done, Withdrawn::Whole);
        gone().await;
    }
    assert_eq!(desktops.node.leftovers.list().await.unwrap().len(), 3);
    while written.try_recv().is_ok() {}
}

#[tokio::test]
async fn a_leftover_is_given_to_a_desktop_and_what_it_had_becomes_one() {
    let state = tempfile::tempdir().unwrap();
    let (api, _written) = api();
    let desktops = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 44);
    let owner = Owner { namespace: desktop.metadata.namespace.clone().unwrap(), name: "anna".into(), uid };
    let folder = desktops.node.folders.of(uid);
    let put = async |text: &str| {
        folder.create(&owner).await.unwrap();
        folder.write(folder.disk("system"), text.into()).await.unwrap();
    };
    put("first").await;
    desktops.withdraw(&owner, None, "moved", withdraw::Disks::PutAside).await.unwrap();
    let name = desktops.node.leftovers.list().await.unwrap()[0].name.clone();
    desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
    let refused = desktops.attach(&name, &owner, &template(OFFICE)).await.unwrap();
    assert!(refused.unwrap_err().contains("machine"), "nothing is put below a machine");
    desktops.node.hypervisor.destroy(uid).await.unwrap();
    desktops.node.hypervisor.undefine(uid, crate::host::hypervisor::GuestState::Keep).await.unwrap();
    put("second").await;
    desktops.attach(&name, &owner, &template(OFFICE)).await.unwrap().unwrap();
    let text = || std::fs::read_to_string(folder.disk("system")).unwrap();
    assert_eq!(text(), "first");
    let others = desktops.node.leftovers.list().await.unwrap();
    assert_eq!(others.len(), 1);
    // A daemon that ended in between: the desktop has no folder, and the word is still there.
    desktops.withdraw(&owner, None, "in between", withdraw::Disks::PutAside).await.unwrap();
    desktops.attach(&others[0].name, &owner, &template(OFFICE)).await.unwrap().unwrap();
    assert_eq!(text(), "second");
    // A word that names what is there no more costs the desktop nothing.
    assert!(
        desktops
            .attach(&others[0].name, &owner, &template(OFFICE))
            .await
            .unwrap()
            .unwrap_err()
            .contains("no such leftover")
    );
    assert_eq!(text(), "second");
}

#[tokio::test]
async fn nothing_is_touched_on_the_word_of_another_cluster() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let mut fixture = desktops(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 45);
    fixture.round(&desktop, Some(template(OFFICE))).await.unwrap();
    let mut off = seen(&desktop, &written.recv().await.unwrap());
    off.spec.power_state = gpudesk_crds::desktop::PowerState::Stopped;
    for belongs in [Belongs::Unknown(None), Belongs::Another { known: "one".into(), found: "two".into() }] {
        Arc::get_mut(&mut fixture.desktops).unwrap().node.belongs = watch::channel(belongs).1;
        fixture.round(&off, Some(template(OFFICE))).await.unwrap();
        assert_eq!(fixture.node.hypervisor.get(uid).await.unwrap().state, DomainState::Running);
        assert!(written.try_recv().is_err(), "and nothing is said of it");
    }
    Arc::get_mut(&mut fixture.desktops).unwrap().node.belongs = watch::channel(Belongs::Here).1;
    fixture.round(&off, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("False", "Stopped"));
}

#[tokio::test]
async fn a_machine_of_an_earlier_desktop_of_the_name_is_said_to_be_in_the_way() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = desktops(state.path(), api).await;
    let (earlier, before) = renamed(desktop("", SMALL, "[]"), 50);
    desktops.round(&earlier, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
    // Its finalizer was taken away by hand, and another one has its name.
    let (mut next, uid) = renamed(desktop("", SMALL, "[]"), 51);
    next.metadata.namespace.clone_from(&earlier.metadata.namespace);
    desktops.round(&next, Some(template(OFFICE))).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(reason(&status, "Running"), ("False", "AllocationConflict"));
    for word in ["earlier Desktop of this name", &before.to_string(), "virsh shutdown"] {
        assert!(status.to_string().contains(word), "{word} is missing in {status}");
    }
    assert!(desktops.node.hypervisor.get(uid).await.is_err());
    assert_eq!(desktops.node.hypervisor.get(before).await.unwrap().state, DomainState::Running);
    let namespace = earlier.metadata.namespace.clone().unwrap();
    desktops.node.hypervisor.shutdown(before).await.unwrap();
    desktops
        .withdraw(
            &Owner { namespace, name: "anna".into(), uid: before },
            None,
            "gone",
            withdraw::Disks::PutAside,
        )
        .await
        .unwrap();
    desktops.round(&next, Some(template(OFFICE))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
}
