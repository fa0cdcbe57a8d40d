//! The hypervisor over libvirt's own test driver: real library, real events, no guest.
//!
//! `test:///default` is one host for all connections of this process, so each test looks at its own
//! domains only.

#![expect(clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use futures::future::try_join_all;
use gpudesk_node_daemon::domain::{
    Cpu, CpuModel, CpuSet, DomainMetadata, DomainSpec, Firmware, Given, Graphics, GuestCell, HostCells,
    Hostdev, Kind, MdevDisplay, Memory, MemoryLayout, PageSize, Pinning, Platform, Q35, Screen, Topology,
    Video, metadata,
};
use gpudesk_node_daemon::host::hypervisor::{
    DomainEventKind as K, DomainState, Events, GuestState, Hypervisor, HypervisorError, HypervisorEvent,
    StopReason,
};
use gpudesk_node_daemon::host::libvirt::LibvirtHypervisor;
use uuid::Uuid;

const URI: &str = "test:///default";

async fn libvirt() -> LibvirtHypervisor {
    LibvirtHypervisor::connect(URI).await.expect("the test driver opens")
}

fn spec(uuid: Uuid) -> DomainSpec {
    DomainSpec {
        uuid,
        name: format!("tests.d-{}", uuid.simple()),
        kind: Kind::Test,
        cpu: Cpu {
            model: CpuModel::HostPassthrough,
            topology: Topology { cores: NonZeroU32::MIN, threads: NonZeroU32::MIN },
            pinning: Pinning::default(),
        },
        memory: Memory {
            layout: MemoryLayout::Flat { mib: NonZeroU64::new(64).expect("not zero"), place: None },
            pages: PageSize::Normal,
        },
        platform: Platform::Q35(Box::new(Q35 {
            firmware: Firmware::Bios,
            tpm: None,
            hyperv: false,
            disks: vec![],
            filesystems: vec![],
            hostdevs: vec![],
            screen: Some(Screen { server: Graphics::Vnc, video: Video::Vga }),
            agent: true,
        })),
        interfaces: vec![],
        serial_log: None,
        process: None,
        metadata: DomainMetadata {
            desktop_uid: uuid,
            namespace: "tests".into(),
            name: format!("d-{}", uuid.simple()),
            daemon_version: "0.1.0".into(),
            template_generation: 7,
            restarted_at: Some("2026-01-05T08:00:00Z".into()),
            allocation: r#"{"node":"gpu-1","note":"<&>\"' ü\n"}"#.into(),
        },
    }
}

fn xml(spec: &DomainSpec) -> String {
    spec.render().expect("a good spec renders")
}

/// The kinds of one domain's events until `count` of them came.
async fn kinds(events: &mut Events, uuid: Uuid, count: usize) -> Vec<K> {
    let mut kinds = Vec::new();
    let all = async {
        while kinds.len() < count {
            match events.next().await {
                Some(HypervisorEvent::Domain(event)) if event.uuid == uuid => kinds.push(event.kind),
                Some(HypervisorEvent::Domain(_)) => {}
                other => panic!("not expected here: {other:?}"),
            }
        }
    };
    let on_time = tokio::time::timeout(Duration::from_secs(20), all).await;
    assert!(on_time.is_ok(), "only {kinds:?} came of {count}");
    kinds
}

#[tokio::test]
async fn a_domain_lives_and_dies_and_every_step_is_an_event() {
    let libvirt = libvirt().await;
    let uuid = Uuid::from_u128(0x1);
    let mut events = libvirt.events();

    assert_eq!(libvirt.define(xml(&spec(uuid))).await, Ok(uuid));
    assert_eq!(libvirt.get(uuid).await.map(|domain| domain.state), Ok(DomainState::Off));
    libvirt.start(uuid).await.expect("starts");
    assert_eq!(libvirt.start(uuid).await, Ok(()), "starting what runs is no fault");
    assert_eq!(libvirt.get(uuid).await.map(|domain| domain.state), Ok(DomainState::Running));
    libvirt.destroy(uuid).await.expect("is destroyed");
    assert_eq!(libvirt.get(uuid).await.map(|domain| domain.state), Ok(DomainState::PoweredOff));
    assert_eq!(libvirt.destroy(uuid).await, Ok(()), "destroying what is off is no fault");
    libvirt.start(uuid).await.expect("starts again");
    libvirt.shutdown(uuid).await.expect("shuts down");
    assert_eq!(libvirt.shutdown(uuid).await, Ok(()), "shutting down what is off is no fault");
    libvirt.undefine(uuid, GuestState::Delete).await.expect("is forgotten");

    let stopped = |reason| K::Stopped { reason };
    let wanted = [
        K::Defined,
        K::Started,
        stopped(StopReason::Destroyed),
        K::Started,
        stopped(StopReason::Shutdown),
        K::Undefined,
    ];
    assert_eq!(kinds(&mut events, uuid, wanted.len()).await, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_at_once_lose_no_event() {
    let libvirt = libvirt().await;
    let uuids: Vec<Uuid> = (0..100).map(|n| Uuid::from_u128(0x100 + n)).collect();
    let mut events = libvirt.events();
    try_join_all(uuids.iter().map(|uuid| {
        let libvirt = libvirt.clone();
        async move {
            libvirt.define(xml(&spec(*uuid))).await?;
            libvirt.start(*uuid).await?;
            libvirt.destroy(*uuid).await?;
            libvirt.undefine(*uuid, GuestState::Keep).await
        }
    }))
    .await
    .expect("all of them");

    let mut seen: std::collections::BTreeMap<Uuid, Vec<K>> =
        uuids.iter().map(|uuid| (*uuid, Vec::new())).collect();
    let all = async {
        while seen.values().any(|kinds| kinds.len() < 4) {
            match events.next().await {
                Some(HypervisorEvent::Domain(event)) => {
                    if let Some(kinds) = seen.get_mut(&event.uuid) {
                        kinds.push(event.kind);
                    }
                }
                other => panic!("not expected here: {other:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(1), all).await.expect("every event within a minute");
    let stopped = K::Stopped { reason: StopReason::Destroyed };
    for (uuid, kinds) in seen {
        let wanted = [K::Defined, K::Started, stopped, K::Undefined];
        assert_eq!(kinds, wanted, "{uuid}");
    }
}

#[tokio::test]
async fn what_a_domain_carries_comes_back_from_libvirt() {
    let libvirt = libvirt().await;
    let spec = spec(Uuid::from_u128(0x2));
    libvirt.define(xml(&spec)).await.expect("defined");
    for started in [false, true] {
        if started {
            libvirt.start(spec.uuid).await.expect("starts");
        }
        let listed = libvirt.list().await.expect("a list");
        let ours = listed.iter().find(|domain| domain.uuid == spec.uuid).expect("ours is in it");
        assert_eq!(ours.name, spec.name);
        let carried = metadata::parse(ours.metadata.as_deref().expect("metadata")).expect("ours");
        assert_eq!(carried.as_ref(), Some(&spec.metadata));
        let foreign = listed.iter().find(|domain| domain.name == "test").expect("the driver's own domain");
        assert_eq!(foreign.metadata, None);
    }
    libvirt.destroy(spec.uuid).await.expect("destroyed");
    libvirt.undefine(spec.uuid, GuestState::Delete).await.expect("forgotten");
}

#[tokio::test]
async fn a_vgpu_is_accepted_and_described() {
    let libvirt = libvirt().await;
    let mut spec = spec(Uuid::from_u128(0x3));
    if let Platform::Q35(q35) = &mut spec.platform {
        q35.hostdevs =
            vec![Hostdev::Mdev { uuid: Uuid::from_u128(0xA), display: MdevDisplay::OnWithRamfb }.into()];
    }
    libvirt.define(xml(&spec)).await.expect("defined");
    libvirt.start(spec.uuid).await.expect("started");
    let details = libvirt.details(spec.uuid).await.expect("described");
    assert_eq!(details.state, DomainState::Running);
    assert_eq!((details.live.kind.as_str(), details.live.memory_mib, details.live.vcpus), ("test", 64, 1));
    assert_eq!(details.live.graphics[0].kind, "vnc");
    assert!(details.live.has_agent && !details.live.agent_connected);
    let picture = libvirt.screenshot(spec.uuid).await.expect("a picture");
    assert_eq!(picture.mime, "image/png");
    assert!(picture.bytes.starts_with(b"\x89PNG"), "{picture:?}");
    libvirt.destroy(spec.uuid).await.expect("destroyed");
    libvirt.undefine(spec.uuid, GuestState::Delete).await.expect("forgotten");
}

#[tokio::test]
async fn guest_cells_are_accepted_and_change_no_figure() {
    let libvirt = libvirt().await;
    let mut spec = spec(Uuid::from_u128(0x4));
    spec.cpu.topology.cores = NonZeroU32::new(4).expect("not zero");
    let cell = |first: u32| GuestCell {
        vcpus: CpuSet::new([first, first + 1]).expect("not empty"),
        mib: NonZeroU64::new(32).expect("not zero"),
        place: Some(HostCells::Strict(CpuSet::only(0))),
    };
    spec.memory.layout = MemoryLayout::Cells(vec![cell(0), cell(2)]);
    if let Platform::Q35(q35) = &mut spec.platform {
        let given = |number: u32| Given {
            device: Hostdev::Mdev { uuid: Uuid::from_u128(number.into()), display: MdevDisplay::Off },
            guest_cell: Some(number),
        };
        q35.hostdevs = vec![given(0), given(1)];
    }
    libvirt.define(xml(&spec)).await.expect("defined");
    let details = libvirt.details(spec.uuid).await.expect("described");
    assert_eq!((details.live.memory_mib, details.live.vcpus), (64, 4));
    libvirt.undefine(spec.uuid, GuestState::Delete).await.expect("forgotten");
}

#[tokio::test]
async fn an_unknown_domain_is_not_found_whatever_is_asked() {
    let libvirt = libvirt().await;
    let nobody = Uuid::from_u128(0xDEAD);
    let state = GuestState::Delete;
    let answers = [
        libvirt.get(nobody).await.map(drop),
        libvirt.start(nobody).await,
        libvirt.shutdown(nobody).await,
        libvirt.destroy(nobody).await,
        libvirt.undefine(nobody, state).await,
        libvirt.details(nobody).await.map(drop),
        libvirt.agent_ping(nobody).await.map(drop),
        libvirt.agent_command(nobody, "{}".into()).await.map(drop),
        libvirt.screenshot(nobody).await.map(drop),
    ];
    for answer in answers {
        match answer {
            Err(HypervisorError::NotFound { doing }) => {
                assert!(doing.contains(&nobody.to_string()), "{doing}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_connection_that_does_not_open_is_an_error_that_names_it() {
    let uri = "qemu:///system?socket=/nowhere/libvirt-sock";
    match LibvirtHypervisor::connect(uri).await.map(|_| ()) {
        Err(error @ HypervisorError::Transient { .. }) => assert!(error.to_string().contains(uri), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_domain_that_libvirt_does_not_take_is_refused_with_its_words() {
    let libvirt = libvirt().await;
    match libvirt.define("<domain type='test'><name>a</name></domain>".into()).await {
        Err(HypervisorError::Refused { message, .. }) => assert!(!message.is_empty()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_test_driver_says_what_it_is() {
    let libvirt = libvirt().await;
    let versions = libvirt.versions().await.expect("versions");
    assert_eq!(versions.hypervisor_name.to_uppercase(), "TEST");
    assert_eq!(versions.library, versions.daemon, "the driver is in this process");
    let capabilities = libvirt.capabilities().await.expect("capabilities");
    assert!(!capabilities.kvm, "{capabilities:?}");
}

#[tokio::test]
async fn the_events_end_with_the_hypervisor() {
    let libvirt = libvirt().await;
    let mut events = libvirt.events();
    drop(libvirt);
    let end = tokio::time::timeout(Duration::from_secs(20), async { while events.next().await.is_some() {} });
    end.await.expect("the last clone is gone, and so are the events");
}
