//! Domains of several shapes against checked-in XML, byte for byte, and against libvirt's own schema.
//!
//! `GPUDESK_UPDATE_GOLDENS=1 cargo test -p gpudesk-node-daemon --test domain_goldens` writes them anew.

#![expect(clippy::disallowed_methods, reason = "goldens are files and the validator is a program")]
#![expect(clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

mod specs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpudesk_node_daemon::domain::{
    CpuSet, DomainError, DomainSpec, Given, GuestCell, Hostdev, MdevDisplay, MemoryLayout, PciAddress,
    Platform, Q35, metadata,
};
use uuid::Uuid;

use specs::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(format!("{name}.xml"))
}

fn compare(name: &str, spec: &DomainSpec) {
    let rendered = spec.render().expect("a good spec renders");
    let path = golden(name);
    if std::env::var("GPUDESK_UPDATE_GOLDENS").is_ok() {
        fs::write(&path, &rendered).expect("write the golden");
    }
    let wanted = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(rendered, wanted, "{} differs from what is rendered now", path.display());
    assert_eq!(metadata::parse(&rendered), Ok(Some(spec.metadata.clone())), "the metadata comes back");

    // Part of libvirt-clients, which this project's installation always brings.
    let verdict = Command::new("virt-xml-validate")
        .arg(&path)
        .arg("domain")
        .output()
        .expect("virt-xml-validate must be installed (libvirt-clients)");
    let said =
        [verdict.stdout, verdict.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(verdict.status.success(), "{}: {said}", path.display());
}

#[test]
fn the_quickstart_is_a_plain_emulated_pc() {
    compare("quickstart", &quickstart());
}

#[test]
fn a_whole_card_comes_with_pinned_cpus_and_huge_pages() {
    compare("pinned-card", &pinned_card());
}

#[test]
fn a_guest_finds_each_card_on_the_cell_that_it_belongs_to() {
    compare("guest-cells", &guest_cells());
}

#[test]
fn a_vgpu_can_be_the_only_screen() {
    compare("vgpu-display", &vgpu_display());
}

#[test]
fn a_kernel_can_be_started_directly() {
    compare("direct-kernel", &direct_kernel());
}

#[test]
fn a_microvm_has_no_pci() {
    compare("microvm", &microvm());
}

#[test]
fn the_test_driver_gets_the_same_shape() {
    compare("test-driver", &test_driver());
}

#[test]
fn no_golden_is_left_over() {
    let mut found: Vec<String> = fs::read_dir(golden("x").parent().expect("a folder"))
        .expect("goldens")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let wanted = [
        "direct-kernel",
        "guest-cells",
        "microvm",
        "pinned-card",
        "quickstart",
        "test-driver",
        "vgpu-display",
    ];
    assert_eq!(found, wanted.map(|name| format!("{name}.xml")));
}

/// The spec after one change, and the error it must give.
fn refused(base: DomainSpec, change: impl FnOnce(&mut DomainSpec)) -> DomainError {
    let mut spec = base;
    change(&mut spec);
    spec.render().expect_err("refused")
}

fn refused_q35(change: impl FnOnce(&mut Q35)) -> DomainError {
    refused(quickstart(), |spec| match &mut spec.platform {
        Platform::Q35(q35) => change(q35),
        Platform::Microvm(_) => unreachable!("the quickstart is a q35"),
    })
}

#[test]
fn what_libvirt_would_refuse_or_change_is_an_error_before() {
    let cases = [
        (refused(quickstart(), |s| s.name = "a/b".into()), "cannot be a domain's name"),
        (refused(quickstart(), |s| s.name = "a\u{1}".into()), "<name> holds a character"),
        (refused(quickstart(), |s| s.uuid = Uuid::nil()), "would carry the metadata"),
        (refused(quickstart(), |s| s.serial_log = Some("log".into())), "not an absolute path"),
        (
            refused(quickstart(), |s| s.cpu.pinning.vcpus = vec![(2, CpuSet::only(0))]),
            "vCPU 2 is pinned, but there are only 2",
        ),
        (
            refused(quickstart(), |s| s.cpu.pinning.vcpus = vec![(1, CpuSet::only(0)), (1, CpuSet::only(1))]),
            "vCPU 1 is pinned twice",
        ),
        (
            refused(pinned_card(), |s| s.cpu.topology.cores = count(5)),
            "must hold each of the 10 vCPUs exactly once",
        ),
        (
            refused(guest_cells(), |s| match &mut s.platform {
                Platform::Q35(q35) => q35.hostdevs[3].guest_cell = Some(2),
                Platform::Microvm(_) => unreachable!("it is a q35"),
            }),
            "NUMA cell 2, but there are only 2",
        ),
        (
            refused_q35(|q| {
                let device = Hostdev::Mdev { uuid: UID, display: MdevDisplay::Off };
                q.hostdevs = vec![Given { device, guest_cell: Some(0) }];
            }),
            "NUMA cell 0, but there are only 0",
        ),
        (
            refused(microvm(), |s| {
                let cell = GuestCell { vcpus: cpus(0..2), mib: mib(2048), place: None };
                s.memory.layout = MemoryLayout::Cells(vec![cell]);
            }),
            "a microvm cannot show NUMA cells",
        ),
        (
            refused(vgpu_display(), |s| {
                s.memory.layout = MemoryLayout::Flat { mib: mib(8191), place: None };
            }),
            "8191 MiB of memory are not a whole number of 2 MiB pages",
        ),
        (refused_q35(|q| q.disks[1].image.serial = Some("root".into())), "\"root\" is not a disk serial"),
        (refused_q35(|q| q.disks[0].image.backing = Some("a.qcow2".into())), "not an absolute path"),
        (
            refused_q35(|q| q.disks[1].image.backing = Some("/a.qcow2".into())),
            "is raw and cannot be an overlay",
        ),
        (refused_q35(|q| q.disks[0].image.serial = Some("a b".into())), "\"a b\" is not a disk serial"),
        (
            refused_q35(|q| {
                q.screen = None;
                q.hostdevs = vec![Hostdev::Mdev { uuid: UID, display: MdevDisplay::On }.into()];
            }),
            "needs a graphics server",
        ),
        (
            refused_q35(|q| {
                let with = |n| Hostdev::Mdev { uuid: Uuid::from_u128(n), display: MdevDisplay::OnWithRamfb };
                q.hostdevs = vec![with(1).into(), with(2).into()];
            }),
            "only one device can have a ramfb",
        ),
        (
            refused_q35(|q| {
                let device = Hostdev::Mdev { uuid: UID, display: MdevDisplay::Off };
                q.hostdevs = vec![device.clone().into(), device.into()];
            }),
            "is given twice",
        ),
        (
            refused_q35(|q| {
                let address = PciAddress { domain: 0, bus: 1, device: 32, function: 0 };
                q.hostdevs = vec![Hostdev::Pci { address, managed: true }.into()];
            }),
            "0000:01:20.0 is no PCI address",
        ),
    ];
    for (error, says) in cases {
        assert!(error.to_string().contains(says), "{error} / {says}");
    }
}
