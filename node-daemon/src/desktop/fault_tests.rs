//! What a fault of the host, or a state folder that is not mounted, must not make of a desktop.
#![allow(clippy::disallowed_methods, reason = "a test looks at files")]

use std::{os::fd::OwnedFd, path::Path, sync::Arc};

use gpudesk_crds::desktop::PowerState;
use serde_json::json;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::{
    fixtures::{SMALL, desktop, template},
    tests::{Fixture, OFFICE, api, decided, desktops, reason, renamed, seen, with_gpu},
    *,
};
use crate::host::{
    gpu_driver::{GpuDriver, GpuError, GpuInstance, InstanceKey, WantedInstance},
    hypervisor::{
        Answer, Capabilities, DomainDetails, DomainEventKind, DomainSummary, Events, GuestState,
        HypervisorError, NetworkSummary, Screenshot, StopReason, Versions,
    },
};

/// A libvirt that is away.
struct Away;

fn away<T: Send + 'static>() -> Answer<'static, T> {
    Box::pin(async { Err(HypervisorError::Away { doing: "asking".into() }) })
}

#[rustfmt::skip]
impl Hypervisor for Away {
    fn list(&self) -> Answer<'_, Vec<DomainSummary>> { away() }
    fn get(&self, _: Uuid) -> Answer<'_, DomainSummary> { away() }
    fn define(&self, _: String) -> Answer<'_, Uuid> { away() }
    fn start(&self, _: Uuid) -> Answer<'_, ()> { away() }
    fn shutdown(&self, _: Uuid) -> Answer<'_, ()> { away() }
    fn destroy(&self, _: Uuid) -> Answer<'_, ()> { away() }
    fn undefine(&self, _: Uuid, _: GuestState) -> Answer<'_, ()> { away() }
    fn details(&self, _: Uuid) -> Answer<'_, DomainDetails> { away() }
    fn confine(&self, _: Uuid, _: Vec<u32>) -> Answer<'_, ()> { away() }
    fn agent_ping(&self, _: Uuid) -> Answer<'_, bool> { away() }
    fn agent_command(&self, _: Uuid, _: String) -> Answer<'_, String> { away() }
    fn open_screen(&self, _: Uuid) -> Answer<'_, OwnedFd> { away() }
    fn screenshot(&self, _: Uuid) -> Answer<'_, Screenshot> { away() }
    fn versions(&self) -> Answer<'_, Versions> { away() }
    fn capabilities(&self) -> Answer<'_, Capabilities> { away() }
    fn qemu_user(&self) -> Answer<'_, Option<u32>> { away() }
    fn networks(&self) -> Answer<'_, Vec<NetworkSummary>> { away() }
    fn events(&self) -> Events { Events::new(broadcast::channel(1).1) }
}

/// Cards that cannot be asked.
struct Mute;

#[rustfmt::skip]
impl GpuDriver for Mute {
    fn version(&self) -> Option<String> { None }
    fn instances(&self) -> Result<Vec<GpuInstance>, GpuError> { Err(mute()) }
    fn create(&self, _: &WantedInstance) -> Result<GpuInstance, GpuError> { Err(mute()) }
    fn destroy(&self, _: &InstanceKey) -> Result<(), GpuError> { Err(mute()) }
}

fn mute() -> GpuError {
    GpuError::State { what: "asking".into(), source: std::io::ErrorKind::TimedOut.into() }
}

fn node(fixture: &mut Fixture) -> &mut Node {
    &mut Arc::get_mut(&mut fixture.desktops).unwrap().node
}

/// One round while libvirt is away.
async fn without_libvirt(fixture: &mut Fixture, desktop: &Desktop, template: Option<Arc<DesktopTemplate>>) {
    let there = std::mem::replace(&mut node(fixture).hypervisor, Arc::new(Away));
    fixture.round(desktop, template).await.unwrap();
    node(fixture).hypervisor = there;
}

fn off(desktop: &Desktop) -> Desktop {
    let mut off = desktop.clone();
    off.spec.power_state = PowerState::Stopped;
    off
}

#[tokio::test]
async fn a_fault_takes_no_word_of_the_node_back() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let mut desktops = desktops(state.path(), api).await;
    let (desktop, _) = renamed(desktop("", SMALL, &with_gpu()), 60);
    let office = || Some(template(OFFICE));
    desktops.round(&desktop, office()).await.unwrap();
    let running = written.recv().await.unwrap();
    let desktop = seen(&desktop, &running);
    without_libvirt(&mut desktops, &desktop, office()).await;
    let fault = written.recv().await.unwrap();
    for type_ in ["DevicesPrepared", "Running", "GuestReady", "Ready"] {
        assert_eq!(reason(&fault, type_), ("Unknown", "HypervisorUnavailable"));
    }
    assert_eq!(fault["phase"], "Unknown");
    let kept = ["node", "domain", "consoles", "gpus"];
    assert!(fault["domain"].is_object() && fault["gpus"].is_array());
    for field in kept {
        assert_eq!(fault[field], running[field], "{field}");
    }
    // Nor where only its cards cannot be asked.
    let cards = std::mem::replace(&mut node(&mut desktops).gpus, Arc::new(Mute));
    desktops.round(&seen(&desktop, &fault), office()).await.unwrap();
    let fault = written.recv().await.unwrap();
    assert_eq!(reason(&fault, "Ready"), ("False", "DeviceFailed"));
    for field in kept {
        assert_eq!(fault[field], running[field], "{field}");
    }
    node(&mut desktops).gpus = cards;

    let desktop = seen(&desktop, &fault);
    desktops.round(&off(&desktop), office()).await.unwrap();
    let stopped = written.recv().await.unwrap();
    assert_eq!(stopped["node"]["state"], "Stopped");
    let parked = seen(&desktop, &stopped);
    // Its place is another's by now, whatever is asked for; and so it is said, also where only the API knows.
    for asked in [off(&parked), parked.clone()] {
        desktops
            .node
            .folders
            .of(asked.metadata.uid.as_ref().unwrap().parse().unwrap())
            .remove()
            .await
            .unwrap();
        desktops.forget(asked.metadata.uid.as_ref().unwrap().parse().unwrap());
        without_libvirt(&mut desktops, &asked, office()).await;
        assert_eq!(written.recv().await.unwrap()["node"], stopped["node"]);
    }
    // Of a decision of which nothing was said yet, a fault says nothing.
    let next = decided(&parked, "2-00000002");
    without_libvirt(&mut desktops, &next, office()).await;
    assert_eq!(written.recv().await.unwrap()["node"], stopped["node"]);
    desktops.round(&next, office()).await.unwrap();
    assert_eq!(
        written.recv().await.unwrap()["node"],
        json!({"allocationId": "2-00000002", "state": "Running"}),
        "and takes nothing from it"
    );
    desktops.round(&off(&next), office()).await.unwrap();
}

const BLANK: &str = "{memory: {sizeMiB: 64}, guestAgent: false, disks: [{name: data, blank: {sizeGiB: 1}}]}";
const SCRATCH: &str =
    "{memory: {sizeMiB: 64}, guestAgent: false, disks: [{name: tmp, scratch: {sizeGiB: 1}}]}";

/// A node whose machines have real disks.
async fn with_disks(state: &Path, api: tests::PretendedApi) -> Fixture {
    let mut fixture = desktops(state, api).await;
    node(&mut fixture).images = ImageStore::folders("node-a", vec![]);
    fixture
}

/// The host starts anew, and its state folder is on a file system that is not there.
async fn reboot_without_state(fixture: &mut Fixture, uid: Uuid, state: &Path) {
    fixture.node.hypervisor.destroy(uid).await.unwrap();
    let node = node(fixture);
    (node.folders, node.boot) = (DesktopFolders::new(state), "next boot".into());
}

#[tokio::test]
async fn no_empty_disks_are_made_where_the_state_folder_is_not_mounted() {
    let blank = || Some(template(BLANK));
    // What comes first may be a fault of libvirt, or of whatever else; or the desktop is switched off and on.
    for (number, first) in [(61, "libvirt"), (62, "template"), (63, "nothing"), (64, "switched off")] {
        let (state, bare) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (api, mut written) = api();
        let mut desktops = with_disks(state.path(), api).await;
        let (desktop, uid) = renamed(desktop("", SMALL, "[]"), number);
        desktops.round(&desktop, blank()).await.unwrap();
        let said = written.recv().await.unwrap();
        let runs = json!({"allocationId": "1-00000001", "state": "Running", "hasDisks": true});
        assert_eq!(said["node"], runs, "{said}");
        let mut desktop = seen(&desktop, &said);
        reboot_without_state(&mut desktops, uid, bare.path()).await;
        match first {
            "libvirt" => without_libvirt(&mut desktops, &desktop, blank()).await,
            "template" => _ = desktops.round(&desktop, None).await.unwrap(),
            "switched off" => {
                desktops.round(&off(&desktop), blank()).await.unwrap();
                let stopped = written.recv().await.unwrap();
                assert_eq!(stopped["node"]["state"], "Stopped");
                desktop = decided(&seen(&desktop, &stopped), "2-00000002");
            }
            _ => {}
        }
        while let Ok(said) = written.try_recv() {
            desktop = seen(&desktop, &said);
        }
        desktops.round(&desktop, blank()).await.unwrap();
        let said = written.recv().await.unwrap();
        assert_eq!(reason(&said, "DevicesPrepared"), ("False", "DiskMissing"), "{first}: {said}");
        assert!(!bare.path().join(format!("desktops/{uid}/disk-data.qcow2")).exists(), "{first}");
        // Mounted again, it goes on.
        node(&mut desktops).folders = DesktopFolders::new(state.path());
        desktops.round(&desktop, blank()).await.unwrap();
        assert!(desktops.node.hypervisor.get(uid).await.unwrap().state.is_active(), "{first}");
        desktops.round(&off(&desktop), blank()).await.unwrap();
    }
}

#[tokio::test]
async fn a_desktop_that_had_no_disks_misses_none() {
    let (state, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (api, mut written) = api();
    let mut desktops = with_disks(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 65);
    desktops.round(&desktop, Some(template(SCRATCH))).await.unwrap();
    let running = seen(&desktop, &written.recv().await.unwrap());
    desktops.round(&off(&running), Some(template(SCRATCH))).await.unwrap();
    let said = written.recv().await.unwrap();
    let stopped = json!({"allocationId": "1-00000001", "state": "Stopped", "hasDisks": false});
    assert_eq!(said["node"], stopped, "{said}");
    // Its template gets its first lasting disk, and it comes to another node.
    node(&mut desktops).folders = DesktopFolders::new(elsewhere.path());
    let next = decided(&seen(&desktop, &said), "2-00000002");
    desktops.round(&next, Some(template(BLANK))).await.unwrap();
    assert_eq!(reason(&written.recv().await.unwrap(), "Running"), ("True", "AsExpected"));
    assert!(desktops.node.hypervisor.get(uid).await.unwrap().state.is_active());
    desktops.round(&off(&next), Some(template(BLANK))).await.unwrap();
}

#[tokio::test]
async fn nothing_is_remembered_of_disks_whose_desktop_is_deleted() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = with_disks(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 66);
    desktops.round(&desktop, Some(template(BLANK))).await.unwrap();
    let record = state.path().join(format!("disks/{uid}.json"));
    assert!(record.exists());
    // Its machine and its folder are lost.
    desktops.node.hypervisor.destroy(uid).await.unwrap();
    desktops.node.hypervisor.undefine(uid, GuestState::Keep).await.unwrap();
    std::fs::remove_dir_all(state.path().join(format!("desktops/{uid}"))).unwrap();
    let mut deleted = seen(&desktop, &written.recv().await.unwrap());
    deleted.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-05T09:00:00Z")).unwrap();
    desktops.round(&deleted, None).await.unwrap();
    assert_eq!(written.recv().await.unwrap()["node"]["state"], "Released");
    assert!(!record.exists());
}

#[tokio::test]
async fn a_leftover_is_given_only_where_its_disks_are_those_of_the_template() {
    let state = tempfile::tempdir().unwrap();
    let (api, _written) = api();
    let desktops = with_disks(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 67);
    let owner = Owner { namespace: desktop.metadata.namespace.clone().unwrap(), name: "anna".into(), uid };
    let folder = desktops.node.folders.of(uid);
    folder.create(&owner).await.unwrap();
    folder.make_disk("data", None, Some(1)).await.unwrap();
    desktops.withdraw(&owner, None, "moved", withdraw::Disks::PutAside).await.unwrap();
    let name = desktops.node.leftovers.list().await.unwrap()[0].name.clone();
    for (other, names) in [(BLANK.replace("name: data", "name: home"), "[home]"), (SCRATCH.into(), "[]")] {
        let refusal = desktops.attach(&name, &owner, &template(&other)).await.unwrap().unwrap_err();
        assert!(refusal.contains(names) && refusal.contains("[data]"), "{refusal}");
        assert_eq!(desktops.node.leftovers.list().await.unwrap().len(), 1);
    }
    desktops.attach(&name, &owner, &template(BLANK)).await.unwrap().unwrap();
    assert!(folder.disk("data").exists());
    assert_eq!(folder.files().used().unwrap().unwrap().disks, ["data".to_owned()].into());
}

#[tokio::test]
async fn while_libvirt_is_away_every_desktop_says_the_same() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let mut desktops = desktops(state.path(), api).await;
    let mut all = vec![];
    for (number, power) in [(70, PowerState::Running), (71, PowerState::Stopped), (72, PowerState::Suspended)]
    {
        let (mut desktop, _) = renamed(desktop("", SMALL, "[]"), number);
        desktop.spec.power_state = power;
        desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
        all.push(seen(&desktop, &written.recv().await.unwrap()));
    }
    // One that is to start, one that is switched off meanwhile, and one whose template is gone.
    all.push(renamed(desktop("", SMALL, "[]"), 73).0);
    let mut switched = off(&all[0]);
    switched.metadata.resource_version = Some("72".into());
    all.push(switched);
    let mut said = vec![];
    for desktop in &all {
        let template = (desktop.spec.power_state != PowerState::Suspended).then(|| template(OFFICE));
        without_libvirt(&mut desktops, desktop, template).await;
        let status = written.recv().await.unwrap();
        let conditions = status["conditions"].as_array().unwrap().iter();
        let words = conditions.map(|it| (it["status"].clone(), it["reason"].clone(), it["message"].clone()));
        said.extend(words.chain([(status["phase"].clone(), json!(null), json!(null))]));
    }
    let conditions: Vec<_> = said.iter().filter(|(_, reason, _)| !reason.is_null()).collect();
    assert_eq!(conditions.len(), 4 * all.len());
    assert!(conditions.iter().all(|it| **it == *conditions[0]), "{conditions:#?}");
    let (status, reason, message) = conditions[0];
    assert_eq!((status, reason), (&json!("Unknown"), &json!("HypervisorUnavailable")));
    assert!(message.as_str().unwrap().starts_with("libvirt on node node-a does not answer: "), "{message}");
    desktops.round(&off(&all[0]), Some(template(OFFICE))).await.unwrap();
}

/// What somebody does on the host.
fn on_the_host(uid: Uuid, act: impl FnOnce(virt::domain::Domain)) {
    let host = virt::connect::Connect::open(Some("test:///default")).unwrap();
    act(host.lookup_domain_by_uuid(uid).unwrap());
}

#[tokio::test]
async fn the_end_of_a_machine_that_was_removed_by_hand_is_not_its_guests() {
    let stopped = |reason| DomainEventKind::Stopped { reason };
    for (number, heard, reasons, words) in [
        (74, vec![], ("False", "EndUnseen"), "how was not seen"),
        (75, vec![stopped(StopReason::Destroyed)], ("False", "GuestStopped"), "powered off on the host"),
        (76, vec![stopped(StopReason::Shutdown)], ("False", "GuestStopped"), "the guest shut itself down"),
        (77, vec![stopped(StopReason::Crashed)], ("True", "AsExpected"), ""),
        // Of the run before.
        (
            78,
            vec![stopped(StopReason::Crashed), DomainEventKind::Started],
            ("False", "EndUnseen"),
            "virsh undefine",
        ),
    ] {
        let state = tempfile::tempdir().unwrap();
        let (api, mut written) = api();
        let desktops = desktops(state.path(), api).await;
        let (desktop, uid) = renamed(desktop("", SMALL, "[]"), number);
        desktops.round(&desktop, Some(template(OFFICE))).await.unwrap();
        let running = seen(&desktop, &written.recv().await.unwrap());
        on_the_host(uid, |domain| domain.undefine().unwrap());
        desktops.round(&running, Some(template(OFFICE))).await.unwrap();
        assert!(written.try_recv().is_err(), "it runs on");
        on_the_host(uid, |domain| domain.destroy().unwrap());
        assert!(desktops.node.hypervisor.get(uid).await.is_err(), "libvirt has forgotten it");
        for event in heard {
            desktops.note_end(uid, event);
        }
        desktops.round(&running, Some(template(OFFICE))).await.unwrap();
        if reasons.0 == "True" {
            assert!(
                desktops.node.hypervisor.get(uid).await.unwrap().state.is_active(),
                "a crash is answered"
            );
            desktops.round(&off(&running), Some(template(OFFICE))).await.unwrap();
            continue;
        }
        let status = written.recv().await.unwrap();
        assert_eq!(reason(&status, "Running"), reasons, "{status}");
        assert_eq!(status["node"]["state"], "Ended");
        let text = status.to_string();
        assert!(text.contains(words), "{words}: {text}");
        assert_eq!(text.contains("shut itself down"), number == 76, "{text}");
        assert!(desktops.node.hypervisor.get(uid).await.is_err(), "it stays as it is");
    }
}

/// Runs `test` over a file system of its own, which this thread and those that it begins alone see. Only root may.
fn on_a_disk_of_its_own(test: impl AsyncFnOnce(&Path) + Send + 'static) {
    use rustix::mount::{MountFlags, MountPropagationFlags as Propagation, mount, mount_change};
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: this thread and those that it begins have other mounts from here on, and they end with them.
        #[allow(unsafe_code)]
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", Propagation::PRIVATE | Propagation::REC).unwrap();
        let disk = tempfile::tempdir().unwrap();
        mount("tmpfs", disk.path(), "tmpfs", MountFlags::empty(), Some(c"size=1m")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(disk.path()));
        drop(runtime);
        rustix::mount::unmount(disk.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    });
    thread.join().unwrap();
}

fn writable(disk: &Path, yes: bool) {
    use rustix::mount::{MountFlags, mount_remount};
    let flags = if yes { MountFlags::empty() } else { MountFlags::RDONLY };
    mount_remount(disk, flags, "").unwrap();
}

fn message<'a>(status: &'a serde_json::Value, type_: &str) -> &'a str {
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().find(|it| it["type"] == type_).unwrap()["message"].as_str().unwrap()
}

#[test]
fn on_a_disk_that_can_only_be_read_what_runs_runs_on_and_a_stop_and_a_delete_end_when_it_is_mended() {
    on_a_disk_of_its_own(async |disk| {
        let (api, mut written) = api();
        let desktops = desktops(disk, api).await;
        let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 80);
        let office = || Some(template(OFFICE));
        desktops.round(&desktop, office()).await.unwrap();
        let running = seen(&desktop, &written.recv().await.unwrap());
        let folder = disk.join(format!("desktops/{uid}"));
        // A daemon before this one did not live to note the start down.
        std::fs::remove_file(folder.join("run.json")).unwrap();
        writable(disk, false);
        let wait = desktops.round(&running, office()).await.unwrap();
        assert!(wait <= Duration::from_secs(30), "it is tried again");
        let status = written.recv().await.unwrap();
        for type_ in ["Running", "Ready"] {
            assert_eq!(reason(&status, type_), ("True", "StateNotKept"), "{status}");
            for part in [folder.join("run.json").to_str().unwrap(), "os error 30", "mount it for writing"] {
                assert!(message(&status, type_).contains(part), "{part}: {status}");
            }
        }
        assert_eq!((&status["node"]["state"], &status["phase"]), (&json!("Running"), &json!("Running")));
        let started = status["domain"]["startedAt"].clone();
        // The same is said again, and nothing else.
        let told = seen(&running, &status);
        desktops.round(&told, office()).await.unwrap();
        assert!(written.try_recv().is_err());

        let mut waits = off(&told);
        for _ in 0..2 {
            let wait = desktops.round(&waits, office()).await.unwrap();
            assert!(wait <= Duration::from_secs(30));
            assert!(desktops.node.hypervisor.get(uid).await.is_err(), "its machine is off");
            while let Ok(status) = written.try_recv() {
                assert_eq!(reason(&status, "Running"), ("False", "StateNotKept"), "{status}");
                assert!(message(&status, "Running").contains("mount it for writing"), "{status}");
                assert_eq!(
                    (&status["node"]["state"], &status["phase"]),
                    (&json!("Stopping"), &json!("Stopping"))
                );
                waits = seen(&waits, &status);
            }
        }
        writable(disk, true);
        desktops.round(&waits, office()).await.unwrap();
        let status = written.recv().await.unwrap();
        assert_eq!(
            (reason(&status, "Running"), &status["node"]["state"]),
            (("False", "Stopped"), &json!("Stopped"))
        );
        let noted: decision::Decision =
            desktops.node.folders.of(uid).read_json(decision::DECISION).await.unwrap().unwrap();
        assert_eq!(noted.last_word.unwrap().state, NodeState::Stopped, "noted before it was said");

        // Nothing is started meanwhile that could not be noted; what is deleted goes as soon as it can.
        let next = decided(&seen(&waits, &status), "2-00000002");
        let mut next = Desktop { spec: desktop.spec.clone(), ..next };
        writable(disk, false);
        desktops.round(&next, office()).await.unwrap();
        let status = written.recv().await.unwrap();
        assert_eq!(reason(&status, "Running"), ("False", "StateNotKept"), "{status}");
        assert!(!desktops.node.hypervisor.get(uid).await.unwrap().state.is_active());
        writable(disk, true);
        next = seen(&next, &status);
        desktops.round(&next, office()).await.unwrap();
        let status = written.recv().await.unwrap();
        assert_eq!(reason(&status, "Running"), ("True", "AsExpected"), "{status}");
        assert_ne!(status["domain"]["startedAt"], json!(null), "{started}");
        let mut deleted = seen(&next, &status);
        deleted.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-05T09:00:00Z")).unwrap();
        writable(disk, false);
        let wait = desktops.round(&deleted, None).await.unwrap();
        assert!(wait <= Duration::from_secs(30));
        assert!(desktops.node.hypervisor.get(uid).await.is_err(), "its machine is off");
        let status = written.recv().await.unwrap();
        assert_eq!(reason(&status, "Running"), ("False", "StateNotKept"));
        assert!(message(&status, "Running").contains(folder.to_str().unwrap()), "{status}");
        assert_eq!((&status["node"]["state"], &status["phase"]), (&json!("Stopping"), &json!("Deleting")));
        writable(disk, true);
        desktops.round(&seen(&deleted, &status), None).await.unwrap();
        assert_eq!(written.recv().await.unwrap()["node"]["state"], "Released");
        assert!(!folder.exists());
    });
}

#[test]
fn on_a_full_disk_what_runs_runs_on_and_what_is_stopped_is_off_and_gives_back_once_there_is_room() {
    on_a_disk_of_its_own(async |disk| {
        let (api, mut written) = api();
        let desktops = desktops(disk, api).await;
        let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 81);
        let office = || Some(template(OFFICE));
        desktops.round(&desktop, office()).await.unwrap();
        let running = seen(&desktop, &written.recv().await.unwrap());
        std::fs::remove_file(disk.join(format!("desktops/{uid}/run.json"))).unwrap();
        let full = disk.join("full");
        assert!(std::fs::write(&full, vec![0; 2 << 20]).is_err(), "no room is left");
        desktops.round(&running, office()).await.unwrap();
        let status = written.recv().await.unwrap();
        assert_eq!(reason(&status, "Running"), ("True", "StateNotKept"), "{status}");
        for part in ["run.json", "os error 28", "make room"] {
            assert!(message(&status, "Running").contains(part), "{part}: {status}");
        }
        let mut waits = off(&seen(&running, &status));
        desktops.round(&waits, office()).await.unwrap();
        assert!(desktops.node.hypervisor.get(uid).await.is_err(), "its machine is off");
        // What the stop removed may have made room for its last word.
        std::fs::remove_file(&full).unwrap();
        desktops.round(&waits, office()).await.unwrap();
        while let Ok(status) = written.try_recv() {
            waits = seen(&waits, &status);
        }
        assert_eq!(waits.said_by_node().unwrap().state, NodeState::Stopped);
    });
}

#[tokio::test]
async fn a_record_that_cannot_be_understood_is_written_anew_by_what_runs() {
    let state = tempfile::tempdir().unwrap();
    let (api, mut written) = api();
    let desktops = with_disks(state.path(), api).await;
    let (desktop, uid) = renamed(desktop("", SMALL, "[]"), 82);
    let blank = || Some(template(BLANK));
    desktops.round(&desktop, blank()).await.unwrap();
    let running = seen(&desktop, &written.recv().await.unwrap());
    let file = |name: &str| state.path().join(name.replace("UID", &uid.to_string()));
    let files = ["desktops/UID/decision.json", "desktops/UID/run.json", "disks/UID.json"].map(file);
    for path in &files {
        let before = std::fs::read(path).unwrap();
        for odd in ["", "{", r#"{"id": "much"}"#] {
            std::fs::write(path, odd).unwrap();
            desktops.round(&running, blank()).await.unwrap();
            if let Ok(status) = written.try_recv() {
                panic!("{}: {status}", path.display());
            }
            let again: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            let before: serde_json::Value = serde_json::from_slice(&before).unwrap();
            assert_eq!(again["id"], before["id"]);
            assert_eq!(again["disks"], before["disks"]);
            assert_eq!(again["allocationId"], before["allocationId"]);
        }
    }
    // Where nothing runs nobody can know: it is said, and nothing is started until a person has seen to it.
    desktops.node.hypervisor.destroy(uid).await.unwrap();
    let mut now = running.clone();
    for (path, remedy) in
        files.iter().zip(["stop the desktop", "stop the desktop", "all disks of the desktop"])
    {
        let before = std::fs::read(path).unwrap();
        std::fs::write(path, "{").unwrap();
        desktops.round(&now, blank()).await.unwrap();
        let status = written.recv().await.unwrap();
        assert_eq!(reason(&status, "Running"), ("False", "StateNotKept"), "{status}");
        for part in [path.to_str().unwrap(), "cannot be understood", remedy] {
            assert!(message(&status, "Running").contains(part), "{part}: {status}");
        }
        assert_eq!(status["node"]["state"], "Preparing", "nothing is given back");
        assert!(!desktops.node.hypervisor.get(uid).await.unwrap().state.is_active());
        std::fs::write(path, before).unwrap();
        now = seen(&now, &status);
    }
    // A stop needs none of them.
    for path in &files {
        std::fs::write(path, "{").unwrap();
    }
    desktops.round(&off(&now), blank()).await.unwrap();
    let status = written.recv().await.unwrap();
    assert_eq!(
        (reason(&status, "Running"), &status["node"]["state"]),
        (("False", "Stopped"), &json!("Stopped"))
    );
    assert_eq!(status["node"]["hasDisks"], true, "as it was said before");
    assert!(message(&status, "Running").contains(files[2].to_str().unwrap()), "{status}");
    let noted: serde_json::Value = serde_json::from_slice(&std::fs::read(&files[0]).unwrap()).unwrap();
    assert_eq!(noted["lastWord"]["state"], "Stopped");
    assert!(!files[1].exists());
    let mut deleted = seen(&now, &status);
    deleted.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-05T09:00:00Z")).unwrap();
    desktops.round(&deleted, None).await.unwrap();
    assert_eq!(written.recv().await.unwrap()["node"]["state"], "Released");
}
