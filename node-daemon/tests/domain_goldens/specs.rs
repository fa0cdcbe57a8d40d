//! The domains that are written down.

use std::num::{NonZeroU32, NonZeroU64};

use gpudesk_node_daemon::domain::{
    Cache, Cpu, CpuModel, CpuSet, DirectKernel, Disk, DomainMetadata, DomainSpec, Filesystem, Firmware,
    Given, Graphics, GuestCell, HostCells, Hostdev, Image, ImageFormat, ImageSource, Interface, Kind, Link,
    MacAddress, MdevDisplay, Memory, MemoryLayout, Microvm, PageSize, PciAddress, Pinning, Platform, Q35,
    QemuProcess, Screen, Slot, Topology, Tpm, Uefi, Video,
};
use uuid::Uuid;

pub(crate) const UID: Uuid = Uuid::from_u128(0x7f1c_2a58_3c1e_4f0e_9a53_0d4f_6f5b_9a01);

pub(crate) fn cpus(members: impl IntoIterator<Item = u32>) -> CpuSet {
    CpuSet::new(members).expect("not empty")
}

pub(crate) fn mib(mib: u64) -> NonZeroU64 {
    NonZeroU64::new(mib).expect("not zero")
}

pub(crate) fn count(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).expect("not zero")
}

pub(crate) fn image(path: &str, format: ImageFormat) -> Image {
    let source = ImageSource::File(path.into());
    Image {
        source,
        format,
        backing: None,
        read_only: false,
        keeps_owner: false,
        serial: None,
        cache: Cache::None,
        boot: None,
    }
}

pub(crate) fn interface(index: u8, link: Link) -> Interface {
    Interface { mac: MacAddress::of_desktop(UID, index), link, boot: None }
}

pub(crate) fn vnc(video: Video) -> Screen {
    Screen { server: Graphics::Vnc, video }
}

pub(crate) fn q35() -> Q35 {
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

pub(crate) fn spec(kind: Kind, platform: Platform) -> DomainSpec {
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
        process: None,
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
pub(crate) fn quickstart() -> DomainSpec {
    let overlay = Image {
        backing: Some("/var/lib/gpudesk/images/debian & co.qcow2".into()),
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
pub(crate) fn pinned_card() -> DomainSpec {
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
                Disk {
                    image: Image { keeps_owner: true, ..image("/images/tools.iso", ImageFormat::Raw) },
                    slot: Slot::ScsiCdrom,
                },
            ],
            hostdevs: vec![card(0).into(), card(1).into()],
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
        process: Some(QemuProcess { user: 64055, group: 2_113_000_001 }),
        ..base
    }
}

/// Two cells that the guest sees, a vGPU and a card with its sound on the second, a card on the first,
/// and one that belongs to none.
pub(crate) fn guest_cells() -> DomainSpec {
    let cell = |first: u32, host: u32| GuestCell {
        vcpus: cpus(first..first + 3),
        mib: mib(4096),
        place: Some(HostCells::Preferred(host)),
    };
    let card = |bus, function, guest_cell| Given {
        device: Hostdev::Pci { address: PciAddress { domain: 0, bus, device: 0, function }, managed: false },
        guest_cell,
    };
    let vgpu = Given {
        device: Hostdev::Mdev {
            uuid: Uuid::from_u128(0xaaaa_aaaa_bbbb_4ccc_8ddd_eeee_ffff_0001),
            display: MdevDisplay::Off,
        },
        guest_cell: Some(1),
    };
    let hostdevs = vec![
        vgpu,
        card(0xc1, 0, Some(1)),
        card(0xc1, 1, Some(1)),
        card(0x3b, 0, Some(0)),
        card(0x05, 0, None),
    ];
    let base =
        spec(Kind::Qemu, Platform::Q35(Box::new(Q35 { hostdevs, screen: Some(vnc(Video::Vga)), ..q35() })));
    DomainSpec {
        cpu: Cpu { topology: Topology { cores: count(6), threads: count(1) }, ..base.cpu },
        memory: Memory { layout: MemoryLayout::Cells(vec![cell(0, 0), cell(3, 2)]), pages: PageSize::Mib2 },
        ..base
    }
}

/// A vGPU that is the only screen, a shared folder, a protected console.
pub(crate) fn vgpu_display() -> DomainSpec {
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
            hostdevs: vec![
                Hostdev::Mdev {
                    uuid: Uuid::from_u128(0xaaaa_aaaa_bbbb_4ccc_8ddd_eeee_ffff_0001),
                    display: MdevDisplay::OnWithRamfb,
                }
                .into(),
            ],
            screen: Some(Screen { server: Graphics::Spice, video: Video::None }),
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

pub(crate) fn kernel() -> DirectKernel {
    DirectKernel {
        kernel: "/images/vmlinuz".into(),
        initrd: Some("/images/initrd.img".into()),
        cmdline: Some("console=ttyS0 quiet a=\"b<c\"".into()),
    }
}

pub(crate) fn direct_kernel() -> DomainSpec {
    spec(
        Kind::Qemu,
        Platform::Q35(Box::new(Q35 { firmware: Firmware::DirectKernel(kernel()), agent: false, ..q35() })),
    )
}

pub(crate) fn microvm() -> DomainSpec {
    let root = Image { serial: Some("root".into()), ..image("/images/root.raw", ImageFormat::Raw) };
    spec(Kind::Kvm, Platform::Microvm(Microvm { kernel: kernel(), disks: vec![root], agent: true }))
}

pub(crate) fn test_driver() -> DomainSpec {
    let mut spec = quickstart();
    spec.kind = Kind::Test;
    spec.metadata.restarted_at = Some("2026-01-05T08:00:00Z".into());
    spec
}
