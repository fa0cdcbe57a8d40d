//! Domains of several shapes against checked-in XML, byte for byte, and against libvirt's own schema.
//!
//! `GPUDESK_UPDATE_GOLDENS=1 cargo test -p gpudesk-node-daemon --test domain_goldens` writes them anew.

#![expect(clippy::disallowed_methods, reason = "goldens are files and the validator is a program")]
#![expect(clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

use std::fs;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::process::Command;

use gpudesk_node_daemon::domain::{
    Cache, Cpu, CpuModel, CpuSet, DirectKernel, Disk, DomainError, DomainMetadata, DomainSpec, Filesystem,
    Firmware, Graphics, GuestCell, HostCells, Hostdev, Image, ImageFormat, ImageSource, Interface, Kind,
    Link, Listen, MacAddress, MdevDisplay, Memory, MemoryLayout, Microvm, PageSize, Password, PciAddress,
    Pinning, Platform, Q35, Screen, Slot, Topology, Tpm, Uefi, Video, metadata,
};
use uuid::Uuid;

const UID: Uuid = Uuid::from_u128(0x7f1c_2a58_3c1e_4f0e_9a53_0d4f_6f5b_9a01);

fn cpus(members: impl IntoIterator<Item = u32>) -> CpuSet {
    CpuSet::new(members).expect("not empty")
}

fn mib(mib: u64) -> NonZeroU64 {
    NonZeroU64::new(mib).expect("not zero")
}

fn count(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).expect("not zero")
}

fn image(path: &str, format: ImageFormat) -> Image {
    let source = ImageSource::File(path.into());
    Image { source, format, read_only: false, serial: None, cache: Cache::None, boot: None }
}

fn interface(index: u8, link: Link) -> Interface {
    Interface { mac: MacAddress::of_desktop(UID, index), link, boot: None }
}

fn vnc(video: Video) -> Screen {
    let listen = Listen::Tcp { address: [127, 0, 0, 1].into(), port: None };
    Screen { server: Graphics::Vnc { listen, password: None }, video }
}

fn q35() -> Q35 {
    Q35 {
        firmware: Firmware::Bios,
        tpm: None,
        hyperv: false,
        disks: vec![],
        filesystems: vec![],
        hostdevs: vec![],
        screen: None,
        agent: true,
    }
}

fn spec(kind: Kind, platform: Platform) -> DomainSpec {
    DomainSpec {
        uuid: UID,
        name: "school.room-1-07".into(),
        kind,
        cpu: Cpu {
            model: CpuModel::HostPassthrough,
            topology: Topology { cores: count(2), threads: count(1) },
            pinning: Pinning::default(),
        },
        memory: Memory {
            layout: MemoryLayout::Flat { mib: mib(2048), place: None },
            pages: PageSize::Normal,
        },
        platform,
        interfaces: vec![interface(0, Link::User)],
        serial_log: Some("/var/lib/gpudesk/desktops/7f1c2a58/serial.log".into()),
        metadata: DomainMetadata {
            desktop_uid: UID,
            namespace: "school".into(),
            name: "room-1-07".into(),
            daemon_version: "0.1.0".into(),
            template_generation: 1,
            restarted_at: None,
            allocation: r#"{"node":"gpu-1","compute":{"cores":2,"memoryMiB":2048}}"#.into(),
        },
    }
}

/// The quickstart: an overlay and a seed on an emulated PC.
fn quickstart() -> DomainSpec {
    let overlay = Image {
        serial: Some("root".into()),
        cache: Cache::Unsafe,
        boot: Some(count(1)),
        ..image("/var/lib/gpudesk/desktops/7f1c2a58/root.qcow2", ImageFormat::Qcow2)
    };
    let seed = Image {
        read_only: true,
        cache: Cache::Writeback,
        ..image("/var/lib/gpudesk/desktops/7f1c2a58/seed & more.img", ImageFormat::Raw)
    };
    spec(
        Kind::Qemu,
        Platform::Q35(Box::new(Q35 {
            disks: vec![
                Disk { image: overlay, slot: Slot::Virtio },
                Disk { image: seed, slot: Slot::SataCdrom },
            ],
            screen: Some(vnc(Video::Vga)),
            ..q35()
        })),
    )
}

/// A whole card, CPUs and 1 GiB pages of two cells, Secure Boot, TPM, Windows.
fn pinned_card() -> DomainSpec {
    let cell = |first: u32, host: u32| GuestCell {
        vcpus: cpus(first..first + 4),
        mib: mib(16 * 1024),
        place: Some(HostCells::Strict(CpuSet::only(host))),
    };
    let card = |function| Hostdev::Pci {
        address: PciAddress { domain: 0, bus: 0x3b, device: 0, function },
        managed: false,
    };
    let scsi = Image {
        source: ImageSource::Block("/dev/vg0/data".into()),
        serial: Some("data-1".into()),
        ..image("", ImageFormat::Raw)
    };
    let base = spec(
        Kind::Kvm,
        Platform::Q35(Box::new(Q35 {
            firmware: Firmware::Uefi(Uefi {
                secure_boot: true,
                variables: Some("/var/lib/gpudesk/desktops/7f1c2a58/vars.fd".into()),
                pci_window_mib: Some(mib(262_144)),
            }),
            tpm: Some(Tpm { state: Some("/var/lib/gpudesk/desktops/7f1c2a58/tpm".into()) }),
            hyperv: true,
            disks: vec![
                Disk { image: image("/images/win.qcow2", ImageFormat::Qcow2), slot: Slot::Virtio },
                Disk { image: scsi, slot: Slot::Scsi },
                Disk { image: image("/images/tools.iso", ImageFormat::Raw), slot: Slot::ScsiCdrom },
            ],
            hostdevs: vec![card(0), card(1)],
            screen: Some(vnc(Video::Bochs)),
            ..q35()
        })),
    );
    DomainSpec {
        cpu: Cpu {
            model: CpuModel::HostPassthrough,
            topology: Topology { cores: count(4), threads: count(2) },
            pinning: Pinning {
                vcpus: (0..8).map(|vcpu| (vcpu, CpuSet::only(4 + vcpu))).collect(),
                emulator: Some(cpus([0, 1, 2, 16])),
                io_threads: vec![Some(CpuSet::only(3)), None],
            },
        },
        memory: Memory { layout: MemoryLayout::Cells(vec![cell(0, 0), cell(4, 1)]), pages: PageSize::Gib1 },
        interfaces: vec![interface(0, Link::Bridge("br0".into())), interface(1, Link::User)],
        ..base
    }
}

/// A vGPU that is the only screen, a shared folder, a protected console.
fn vgpu_display() -> DomainSpec {
    let base = spec(
        Kind::Kvm,
        Platform::Q35(Box::new(Q35 {
            firmware: Firmware::Uefi(Uefi { secure_boot: false, variables: None, pci_window_mib: None }),
            disks: vec![Disk { image: image("/images/a.qcow2", ImageFormat::Qcow2), slot: Slot::Sata }],
            filesystems: vec![Filesystem {
                source: "/srv/courses".into(),
                tag: "courses".into(),
                read_only: true,
                program: Some("/usr/lib/qemu/virtiofsd".into()),
            }],
            hostdevs: vec![Hostdev::Mdev {
                uuid: Uuid::from_u128(0xaaaa_aaaa_bbbb_4ccc_8ddd_eeee_ffff_0001),
                display: MdevDisplay::OnWithRamfb,
            }],
            screen: Some(Screen {
                server: Graphics::Spice {
                    listen: Listen::Tcp { address: [127, 0, 0, 1].into(), port: Some(5930) },
                    password: Some(Password::new("<\"&'>")),
                },
                video: Video::None,
            }),
            ..q35()
        })),
    );
    DomainSpec {
        memory: Memory {
            layout: MemoryLayout::Flat { mib: mib(8192), place: Some(HostCells::Preferred(1)) },
            pages: PageSize::Mib2,
        },
        cpu: Cpu { model: CpuModel::HostModel, ..base.cpu },
        interfaces: vec![interface(0, Link::LibvirtNetwork("default".into()))],
        ..base
    }
}

fn kernel() -> DirectKernel {
    DirectKernel {
        kernel: "/images/vmlinuz".into(),
        initrd: Some("/images/initrd.img".into()),
        cmdline: Some("console=ttyS0 quiet a=\"b<c\"".into()),
    }
}

fn direct_kernel() -> DomainSpec {
    spec(
        Kind::Qemu,
        Platform::Q35(Box::new(Q35 { firmware: Firmware::DirectKernel(kernel()), agent: false, ..q35() })),
    )
}

fn microvm() -> DomainSpec {
    let root = Image { serial: Some("root".into()), ..image("/images/root.raw", ImageFormat::Raw) };
    spec(Kind::Kvm, Platform::Microvm(Microvm { kernel: kernel(), disks: vec![root], agent: true }))
}

fn test_driver() -> DomainSpec {
    let mut spec = quickstart();
    spec.kind = Kind::Test;
    spec.metadata.restarted_at = Some("2026-01-05T08:00:00Z".into());
    spec
}

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
    let wanted = ["direct-kernel", "microvm", "pinned-card", "quickstart", "test-driver", "vgpu-display"];
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
            refused(vgpu_display(), |s| {
                s.memory.layout = MemoryLayout::Flat { mib: mib(8191), place: None };
            }),
            "8191 MiB of memory are not a whole number of 2 MiB pages",
        ),
        (refused_q35(|q| q.disks[1].image.serial = Some("root".into())), "\"root\" is not a disk serial"),
        (refused_q35(|q| q.disks[0].image.serial = Some("a b".into())), "\"a b\" is not a disk serial"),
        (
            refused_q35(|q| {
                q.screen = Some(Screen {
                    server: Graphics::Vnc {
                        listen: Listen::Socket("/run/x".into()),
                        password: Some(Password::new("ninechars")),
                    },
                    video: Video::Vga,
                });
            }),
            "1 to 8 bytes",
        ),
        (
            refused_q35(|q| {
                q.screen = None;
                q.hostdevs = vec![Hostdev::Mdev { uuid: UID, display: MdevDisplay::On }];
            }),
            "needs a graphics server",
        ),
        (
            refused_q35(|q| {
                let with = |n| Hostdev::Mdev { uuid: Uuid::from_u128(n), display: MdevDisplay::OnWithRamfb };
                q.hostdevs = vec![with(1), with(2)];
            }),
            "only one device can have a ramfb",
        ),
        (
            refused_q35(|q| {
                let device = Hostdev::Mdev { uuid: UID, display: MdevDisplay::Off };
                q.hostdevs = vec![device.clone(), device];
            }),
            "is given twice",
        ),
        (
            refused_q35(|q| {
                let address = PciAddress { domain: 0, bus: 1, device: 32, function: 0 };
                q.hostdevs = vec![Hostdev::Pci { address, managed: true }];
            }),
            "0000:01:20.0 is no PCI address",
        ),
    ];
    for (error, says) in cases {
        assert!(error.to_string().contains(says), "{error} / {says}");
    }
}

#[test]
fn a_password_is_not_shown() {
    let shown = format!("{:?}", vgpu_display());
    assert!(shown.contains("Password(..)") && !shown.contains("<\\\"&'>"), "{shown}");
}
