//! A libvirt of tests: its domains are as they are said to be, its guests obey nobody, and it tells what was asked of it.

use std::{
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex},
};

use gpudesk_crds::Allocation;
use kube::Client;
use serde_json::json;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::{
    Desktops,
    fixtures::{SMALL, desktop},
    lock,
    tests::{Fixture, api, desktops},
};
use crate::{
    domain::{Kind, LiveDomain},
    host::hypervisor::{
        Answer, Capabilities, DomainDetails, DomainState, DomainSummary, Events, GuestState, Hypervisor,
        HypervisorError, NetworkSummary, Screenshot, Versions,
    },
};

/// Of which nothing can be read.
pub(crate) const UNREADABLE: &str = "<desktop uid='?'/>";

pub(crate) struct Pretended {
    pub(crate) domains: Mutex<Vec<DomainSummary>>,
    asked: Mutex<Vec<String>>,
}

impl Pretended {
    pub(crate) fn new(domains: Vec<DomainSummary>) -> Arc<Self> {
        Arc::new(Self { domains: Mutex::new(domains), asked: Mutex::default() })
    }

    /// What was asked of it since this was last looked at.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.asked))
    }

    fn note(&self, what: String) -> Answer<'_, ()> {
        lock(&self.asked).push(what);
        Box::pin(async { Ok(()) })
    }

    fn find(&self, uuid: Uuid) -> Result<DomainSummary, HypervisorError> {
        let found = lock(&self.domains).iter().find(|domain| domain.uuid == uuid).cloned();
        found.ok_or_else(|| HypervisorError::NotFound { doing: "looking".into() })
    }
}

/// The domain of this number, which holds what `allocation` says.
pub(crate) fn domain(number: u128, state: DomainState, allocation: Option<&Allocation>) -> DomainSummary {
    let uuid = Uuid::from_u128(number);
    let metadata = allocation.map_or_else(
        || UNREADABLE.to_owned(),
        |allocation| {
            let allocation = serde_json::to_string(allocation).unwrap();
            format!(
                "<desktop uid='{uuid}' namespace='school' name='d-{number}'><daemon version='1'/><template generation='3'/>\
                 <allocation>{allocation}</allocation></desktop>"
            )
        },
    );
    DomainSummary { uuid, name: format!("school.d-{number}"), state, metadata: Some(metadata) }
}

/// What a desktop with this `compute` holds.
pub(crate) fn allocation(compute: &str, gpus: &str) -> Allocation {
    desktop("", compute, gpus).status.unwrap().allocation.unwrap()
}

fn on(fixture: &mut Fixture, hypervisor: &Arc<Pretended>, kind: Kind) {
    let node = &mut Arc::get_mut(&mut fixture.desktops).unwrap().node;
    (node.hypervisor, node.kind) = (Arc::clone(hypervisor) as _, kind);
}

/// The desktops of a node over it, and its API, which knows the cluster and no Desktop.
pub(crate) async fn node(state: &Path, hypervisor: &Arc<Pretended>) -> (Arc<Desktops>, Client) {
    let (api, _) = api();
    let cluster = json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {"name": "kube-system", "uid": "one"},
    });
    lock(&api.live).insert("/api/v1/namespaces/kube-system".into(), cluster);
    let client = api.client.clone();
    let mut fixture = desktops(state, api).await;
    on(&mut fixture, hypervisor, Kind::Test);
    (fixture.desktops, client)
}

fn no<T: Send + 'static>() -> Answer<'static, T> {
    Box::pin(async { Err(HypervisorError::Transient { doing: "asking".into(), message: "no".into() }) })
}

#[rustfmt::skip]
impl Hypervisor for Pretended {
    fn list(&self) -> Answer<'_, Vec<DomainSummary>> { Box::pin(async { Ok(lock(&self.domains).clone()) }) }
    fn get(&self, uuid: Uuid) -> Answer<'_, DomainSummary> { Box::pin(async move { self.find(uuid) }) }
    fn define(&self, _: String) -> Answer<'_, Uuid> { no() }
    fn start(&self, uuid: Uuid) -> Answer<'_, ()> { self.note(format!("start {uuid}")) }
    fn shutdown(&self, _: Uuid) -> Answer<'_, ()> { self.note("shutdown".into()) }
    fn destroy(&self, _: Uuid) -> Answer<'_, ()> { self.note("destroy".into()) }
    fn undefine(&self, _: Uuid, _: GuestState) -> Answer<'_, ()> { self.note("undefine".into()) }
    fn details(&self, uuid: Uuid) -> Answer<'_, DomainDetails> {
        Box::pin(async move { Ok(DomainDetails { state: self.find(uuid)?.state, live: LiveDomain::default() }) })
    }
    fn confine(&self, uuid: Uuid, _: Vec<u32>) -> Answer<'_, ()> { self.note(format!("confine {uuid}")) }
    fn agent_ping(&self, _: Uuid) -> Answer<'_, bool> { no() }
    fn agent_command(&self, _: Uuid, _: String) -> Answer<'_, String> { no() }
    fn open_screen(&self, _: Uuid) -> Answer<'_, OwnedFd> { no() }
    fn screenshot(&self, _: Uuid) -> Answer<'_, Screenshot> { no() }
    fn versions(&self) -> Answer<'_, Versions> { no() }
    fn capabilities(&self) -> Answer<'_, Capabilities> { no() }
    fn qemu_user(&self) -> Answer<'_, Option<u32>> { no() }
    fn networks(&self) -> Answer<'_, Vec<NetworkSummary>> { no() }
    fn events(&self) -> Events { Events::new(broadcast::channel(1).1) }
}

#[tokio::test]
async fn nobody_is_moved_onto_cpus_that_may_be_anothers_own() {
    let state = tempfile::tempdir().unwrap();
    let own = "{cores: 1, threadsPerCore: 1, memoryMiB: 64, vcpuPins: [{vcpu: 0, cpus: '1'}]}";
    let readable = [
        domain(1, DomainState::Running, Some(&allocation(SMALL, "[]"))),
        domain(2, DomainState::Running, Some(&allocation(own, "[]"))),
    ];
    let libvirt = Pretended::new(readable.to_vec());
    let mut fixture = desktops(state.path(), api().0).await;
    on(&mut fixture, &libvirt, Kind::Qemu);
    let moved = [format!("confine {}", Uuid::from_u128(1))];
    fixture.share_cpus(Uuid::nil(), false).await.unwrap();
    assert_eq!(libvirt.asked(), moved, "off those that the other one has for itself");
    // One that is off may start at any time.
    for state in [DomainState::Running, DomainState::Off] {
        *lock(&libvirt.domains) = readable.iter().cloned().chain([domain(3, state, None)]).collect();
        fixture.share_cpus(Uuid::nil(), false).await.unwrap();
        // What is released is released.
        fixture.share_cpus(Uuid::from_u128(2), true).await.unwrap();
        let error = fixture.share_cpus(Uuid::from_u128(1), false).await.unwrap_err();
        assert!(error.holder().unwrap().starts_with("school.d-3 "), "{error}");
        assert_eq!(libvirt.asked(), [""; 0], "{state:?}");
    }
}
