//! The machine that is the GPU node.
//!
//! ```text
//! cell -  0000:00:02.0  VGA, the boot display     0000:00:04.0  virtio NIC
//! cell 0  0000:40:00.0  ─ 41:00.0  RTX 6000 Ada, 41:00.1 its sound
//!         0000:40:01.0  ─ 42:00.0  MI300X, an accelerator of class 1200
//!         0000:40:02.0  ─ (43)     empty, for a device that is plugged in
//!         0000:40:03.0  ─ 44:00.0  switch without ACS
//!                         ├ 45:00.0 ─ 46:00.0  virtio GPU
//!                         └ 45:01.0 ─ 47:00.0  bridge to conventional PCI
//!                                     ├ 48:01.0  display that shares its IOMMU group
//!                                     └ 48:02.0  with this NIC of the host
//! cell 1  0000:80:00.0  ─ 81:00.0  T4, mdev types
//!         0000:80:01.0  ─ 82:00.0  L40S, 8 virtual functions with vendor-specific VFIO
//!         0000:80:02.0  ─ 83:00.0  NVMe drive, 4 virtual functions
//!         0000:80:03.0  ─ 84:00.0  NIC, 7 virtual functions
//!         0000:80:04.0  ─ 85:00.0  RTX PRO 6000, 8 virtual functions with vendor-specific VFIO, also on MIG
//! ```
//! 4 CPUs, two threads to a core, a socket and 1 GiB to a cell. QEMU emulates none of these cards:
//! a drive, a display, a test device or a NIC is in the slot, and the kernel is given the ids of the card by
//! `gpu-node/modules/sim-ids.c`. Configuration space and resources are those of what is emulated.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Where the guest finds the API server, when it is given one.
pub const API: &str = "10.0.2.100:6443";

/// The emulator.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// The firmware's display: no NUMA cell is known for it.
pub const BOOT_DISPLAY: &str = "0000:00:02.0";
/// The guest's own network card.
pub(super) const OWN_NIC: &str = "0000:00:04.0";
/// A card with a companion.
pub const RTX_6000: &str = "0000:41:00.0";
/// An accelerator without a driver.
pub const MI300X: &str = "0000:42:00.0";
/// Behind a switch.
pub const VIRTIO_GPU: &str = "0000:46:00.0";
/// Shares its IOMMU group with [`OFFENDER`].
pub const GROUPED_DISPLAY: &str = "0000:48:01.0";
/// A network card of the host, bound to its driver.
pub const OFFENDER: &str = "0000:48:02.0";
/// A card with mdev types.
pub const T4: &str = "0000:81:00.0";
/// A card whose virtual functions have vendor-specific VFIO.
pub const L40S: &str = "0000:82:00.0";
/// A drive with virtual functions.
pub const NVME: &str = "0000:83:00.0";
/// A network card with virtual functions.
pub const NIC: &str = "0000:84:00.0";
/// A card with MIG, whose virtual functions are switched on while another driver has it.
pub const RTX_PRO_6000: &str = "0000:85:00.0";
/// The QEMU bus of the empty slot, for [`super::GpuNodeVm::plug`].
pub const EMPTY_BUS: &str = "port2";
/// A QEMU memory backend of 64 MiB, for the region of an `ivshmem-plain` that is too large for the
/// empty slot.
pub const LARGE_REGION: &str = "large";
/// Where a device comes to be that is plugged in there; it shows the ids of a Flex 170.
pub const PLUGGED: &str = "0000:43:00.0";

/// What else the kernel is told.
const KERNEL: &str = "console=ttyS0 panic=-1 intel_iommu=on iommu=pt mitigations=off nokaslr tsc=reliable";

/// The ids that functions show: `vendor:device:class[:subvendor:subdevice]`.
const IDS: [(&str, &str); 7] = [
    (RTX_6000, "10de:26b1:030200:10de:16a1"),
    ("0000:41:00.1", "10de:22ba:040300:10de:16a1"),
    (MI300X, "1002:74a1:120000:1002:74a1"),
    (PLUGGED, "8086:56c0:038000:8086:4905"),
    (T4, "10de:1eb8:030200:10de:12a2"),
    (L40S, "10de:26b9:030200:10de:1851"),
    (RTX_PRO_6000, "10de:2bb5:030200:10de:204e"),
];
/// The ids of the virtual functions of a function.
const VIRTUAL_IDS: [(&str, &str); 2] =
    [(L40S, "10de:26b9:030200:10de:1851"), (RTX_PRO_6000, "10de:2bb5:030200:10de:204e")];

/// The files and sockets of one machine.
#[derive(Debug)]
pub(super) struct Files {
    image: PathBuf,
    share: PathBuf,
    console: PathBuf,
    drive: PathBuf,
    qmp: PathBuf,
    control: PathBuf,
}

impl Files {
    /// `image` holds what `build.sh` made, `folder` is the machine's own, `share` is `/host` in the
    /// guest.
    pub(super) fn new(image: &Path, folder: &Path, share: &Path, console: &Path) -> Result<Self> {
        let drive = folder.join("nvme.raw");
        File::create(&drive)?.set_len(1 << 30)?;
        Ok(Self {
            image: image.to_owned(),
            share: share.to_owned(),
            console: console.to_owned(),
            drive,
            qmp: folder.join("qmp"),
            control: folder.join("control"),
        })
    }

    /// The socket of QEMU's monitor.
    pub(super) fn qmp(&self) -> &Path {
        &self.qmp
    }

    /// The socket of the guest's runner.
    pub(super) fn control(&self) -> &Path {
        &self.control
    }

    /// QEMU's arguments. With `api` the guest reaches that port of this machine, and no other, at
    /// [`API`].
    pub(super) fn arguments(&self, api: Option<u16>) -> Vec<OsString> {
        let file = |name: &str| self.image.join(name);
        let mut line = Line::default();
        line.add("-nodefaults -no-user-config -display none -no-reboot");
        // One thread for all CPUs: with a thread to each, QEMU 10.0 now and then loses a timer interrupt
        // while the guest boots, or fails an assertion over a stale TLB entry; and it is no slower
        // beside a busy build.
        line.add("-accel tcg,thread=single,tb-size=512 -machine q35 -cpu Nehalem");
        line.add("-smp 4,sockets=2,cores=1,threads=2 -m 2048");
        for cell in 0..2 {
            line.add(&format!("-object memory-backend-ram,id=memory{cell},size=1024M"));
            let (first, last) = (cell * 2, cell * 2 + 1);
            line.add(&format!("-numa node,nodeid={cell},cpus={first}-{last},memdev=memory{cell}"));
        }
        line.add("-numa dist,src=0,dst=1,val=20");
        line.pair("-kernel", file("vmlinuz")).pair("-initrd", file("initrd")).pair("-append", kernel_line());
        line.paths("-chardev", "file,id=console,path=", &self.console, "").add("-serial chardev:console");
        line.paths("-qmp", "unix:", &self.qmp, ",server=on,wait=off");

        // The guest's own: nothing of it stays.
        line.add("-device intel-iommu,intremap=on,caching-mode=on,aw-bits=48");
        line.add("-device VGA,bus=pcie.0,addr=2");
        line.paths("-drive", "if=none,id=root,format=qcow2,snapshot=on,file=", &file("root.qcow2"), "");
        line.add("-device virtio-blk-pci,drive=root,bus=pcie.0,addr=3");
        // A program for each connection: with a character device there could be only one.
        let api = api.map(|port| format!(",guestfwd=tcp:{API}-cmd:socat STDIO TCP4:127.0.0.1:{port}"));
        line.pair("-netdev", format!("user,id=net0,restrict=on{}", api.unwrap_or_default()));
        line.add("-device virtio-net-pci,netdev=net0,bus=pcie.0,addr=4,romfile=");
        let to = ",security_model=none,multidevs=remap";
        line.paths("-fsdev", "local,id=share,path=", &self.share, to);
        line.add("-device virtio-9p-pci,fsdev=share,mount_tag=host,bus=pcie.0,addr=5");
        line.paths("-chardev", "socket,id=control,path=", &self.control, ",server=on,wait=off");
        line.add("-device virtio-serial-pci,id=ports,bus=pcie.0,addr=6");
        line.add("-device virtserialport,bus=ports.0,chardev=control,name=gpudesk.control");
        line.add("-device virtio-rng-pci,bus=pcie.0,addr=7");

        // A root complex to a NUMA cell, a root port to a slot.
        for (cell, bus, slots) in [(0, 0x40, 4), (1, 0x80, 5)] {
            let addr = 8 + cell;
            line.add(&format!(
                "-device pxb-pcie,id=cell{cell},bus=pcie.0,addr={addr},bus_nr={bus},numa_node={cell}"
            ));
            for slot in 0..slots {
                let (port, chassis) = (cell * 4 + slot, 10 + cell * 4 + slot);
                line.add(&format!(
                    "-device pcie-root-port,id=port{port},bus=cell{cell},chassis={chassis},slot={port},addr={slot}"
                ));
            }
        }
        // A function that can be reset beside another.
        line.add("-device nvme,serial=card,bus=port0,addr=0.0,multifunction=on");
        line.add("-device ich9-intel-hda,bus=port0,addr=0.1");
        line.add("-device edu,bus=port1");
        line.add("-device x3130-upstream,id=switch,bus=port3");
        for port in 0..2 {
            let (slot, chassis) = (20 + port, 20 + port);
            line.add(&format!(
                "-device xio3130-downstream,id=down{port},bus=switch,chassis={chassis},slot={slot},addr={port}"
            ));
        }
        line.add("-device virtio-gpu-pci,bus=down0");
        line.add("-device pcie-pci-bridge,id=conventional,bus=down1");
        line.add("-device bochs-display,bus=conventional,addr=1");
        for (net, device) in [
            (1, "virtio-net-pci,bus=conventional,addr=2,mac=52:54:00:00:00:48,romfile="),
            (2, "igb,bus=port5,mac=52:54:00:00:00:82,romfile="),
            (3, "igb,bus=port7,mac=52:54:00:00:00:84,romfile="),
            (4, "igb,bus=port8,mac=52:54:00:00:00:85,romfile="),
        ] {
            line.add(&format!("-netdev user,id=net{net},restrict=on -device {device},netdev=net{net}"));
        }
        line.add(&format!("-object memory-backend-ram,id={LARGE_REGION},size=64M"));
        line.add("-device secondary-vga,bus=port4,romfile=");
        line.paths("-drive", "if=none,id=nvme,format=raw,cache=unsafe,file=", &self.drive, "");
        line.add("-device nvme-subsys,id=subsystem,nqn=gpudesk");
        line.add(
            "-device nvme,id=nvme0,serial=gpudesk,subsys=subsystem,bus=port6,sriov_max_vfs=4,\
             sriov_vq_flexible=8,sriov_vi_flexible=4,max_ioqpairs=18,msix_qsize=9",
        );
        line.add("-device nvme-ns,drive=nvme,bus=nvme0,nsid=1,shared=off,detached=off");
        line.0
    }
}

fn kernel_line() -> String {
    let list = |ids: &[(&str, &str)]| {
        ids.iter().map(|(address, ids)| format!("{address}={ids}")).collect::<Vec<_>>().join(",")
    };
    format!("{KERNEL} sim_ids.functions={} sim_ids.virtual_functions={}", list(&IDS), list(&VIRTUAL_IDS))
}

/// A command line in the making.
#[derive(Debug, Default)]
struct Line(Vec<OsString>);

impl Line {
    /// Adds words without spaces in them.
    fn add(&mut self, words: &str) -> &mut Self {
        self.0.extend(words.split_whitespace().map(OsString::from));
        self
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(option.into());
        self.0.push(value.into());
        self
    }

    /// Adds an option whose value has a path in it. QEMU takes a doubled comma for a comma.
    fn paths(&mut self, option: &str, before: &str, path: &Path, after: &str) -> &mut Self {
        let path = path.to_string_lossy().replace(',', ",,");
        self.pair(option, format!("{before}{path}{after}"))
    }
}
