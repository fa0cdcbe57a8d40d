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
        Answer, Capabilities, DomainDetails, DomainSummary, Events, GuestState, HypervisorError,
        NetworkSummary, Screenshot, Versions,
    },
};

/// A libvirt that is away.
struct Away;

fn away<T: Send + 'static>() -> Answer<'static, T> {
    let error = HypervisorError::Transient { doing: "asking".into(), message: "away".into() };
    Box::pin(async { Err(error) })
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
    assert_eq!(reason(&fault, "Ready"), ("False", "HypervisorUnavailable"));
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
