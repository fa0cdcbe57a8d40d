//! Looks at what is on a host, over a libvirt whose guests obey nobody.
#![allow(clippy::disallowed_methods, reason = "a test looks at files")]

use std::{fs, os::unix::fs::symlink, path::Path};

use jiff::SignedDuration;
use kube::runtime::reflector::store;

use super::*;
use crate::{
    desktop::pretended::{Pretended, allocation, domain, node},
    host::hypervisor::DomainState,
    templates::Templates,
};

const SMALL: &str = "{cores: 2, threadsPerCore: 1, memoryMiB: 1024}";

async fn looking(state: &Path, libvirt: &Arc<Pretended>) -> Arc<Looking> {
    let (desktops, client) = node(state, libvirt).await;
    let none = SignedDuration::ZERO;
    let orphans = Orphans {
        desktops,
        client: client.clone(),
        cluster: Cluster::new(state),
        metrics: Metrics::default(),
        settings: Settings {
            look: Duration::from_mins(1),
            brake: brake::Rules { window: none, most: 3, percent: 0 },
            retention: Retention { keep: none, limit: 0, least: none },
        },
        stored: watch::channel(Stored::default()).1,
        seen: watch::channel(Seen::default()).0,
    };
    Arc::new(Looking {
        this: orphans,
        stores: Watched { desktops: store().0, templates: Templates::new(client) },
        told: Mutex::default(),
        asked: Mutex::default(),
        known: tokio::sync::Mutex::default(),
    })
}

#[tokio::test]
async fn a_word_that_was_taken_back_asks_the_guest_again_when_it_is_said_again() {
    let held = allocation(SMALL, "[]");
    for held in [Some(&held), None] {
        let state = tempfile::tempdir().unwrap();
        let machine = domain(7, DomainState::Running, held);
        let word = StrayWord {
            uid: machine.uuid.to_string(),
            allocation_id: held.and_then(|held| held.id),
            action: gpudesk_crds::gpu_node_words::StrayAction::ShutDown,
        };
        let libvirt = Pretended::new(vec![machine]);
        let looking = looking(state.path(), &libvirt).await;
        let told = GpuNodeSpec { strays: vec![word], ..GpuNodeSpec::default() };
        let silent = GpuNodeSpec::default();
        let mut asked = vec![];
        for spec in [&told, &told, &silent, &told, &told] {
            looking.look(Some(spec)).await.unwrap();
            asked.push(libvirt.asked().join(", "));
        }
        assert_eq!(asked, ["shutdown", "", "", "shutdown", ""], "it has its whole grace: {held:?}");
    }
}

fn owner() -> Owner {
    Owner { namespace: "school".into(), name: "anna".into(), uid: Uuid::from_u128(7) }
}

#[tokio::test]
async fn what_is_noted_of_disks_goes_with_their_desktop_also_where_their_folder_is_lost() {
    let state = tempfile::tempdir().unwrap();
    let looking = looking(state.path(), &Pretended::new(vec![])).await;
    let folder = looking.this.desktops.node().folders.of(owner().uid);
    folder.create(&owner()).await.unwrap();
    folder.note_used(vec!["a".into()]).await.unwrap();
    fs::remove_dir_all(state.path().join("desktops")).unwrap();
    let record = state.path().join(format!("disks/{}.json", owner().uid));
    assert!(record.exists());
    // Who cannot tell whether there is such a Desktop forgets nothing.
    looking.look(None).await.unwrap();
    assert!(record.exists());
    looking.look(Some(&GpuNodeSpec::default())).await.unwrap();
    assert!(!record.exists());
}

#[tokio::test]
async fn disks_that_cannot_be_put_aside_are_not_forgotten() {
    // Two file systems.
    let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let (desktops, _) = node(state.path(), &Pretended::new(vec![])).await;
    let owner = owner();
    let leftovers = state.path().join("leftovers");
    symlink(other.path(), &leftovers).unwrap();
    let folder = desktops.node().folders.of(owner.uid);
    folder.create(&owner).await.unwrap();
    folder.write(folder.disk("a"), b"what its user made".into()).await.unwrap();
    folder.note_used(vec!["a".into(), "lost".into()]).await.unwrap();
    let withdraw = || desktops.withdraw(&owner, None, "it moved on", Disks::PutAside);
    let error = withdraw().await.unwrap_err().to_string();
    assert!(error.contains("must be on one file system"), "{error}");
    assert!(folder.files().used().unwrap().is_some(), "the one that was lost is not made anew");
    fs::remove_file(&leftovers).unwrap();
    assert_eq!(withdraw().await.unwrap(), Withdrawn::Whole);
    assert_eq!(folder.files().used().unwrap(), None);
}
