//! A drive is free only where everything that could use it was looked at.

use gpudesk_crds::gpu_node_status::HostDevice;

use super::*;

const DRIVE: &str = "sys/devices/pci0000:40/0000:40:03.0/0000:43:00.0";
const SUBSYSTEM: &str = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";

/// A host with one drive that nothing is known to use.
fn with_drive() -> tempfile::TempDir {
    let host = host();
    let root = host.path();
    function(root, DRIVE, 50, "nvme");
    write(root, &format!("{DRIVE}/class"), "0x010802");
    write(root, &format!("{DRIVE}/nvme/nvme0/nvme0n1/size"), "7501476528\n");
    write(root, &format!("{DRIVE}/nvme/nvme0/nvme0n1/dev"), "259:0\n");
    link(root, "sys/block/nvme0n1", &format!("../../{DRIVE}/nvme/nvme0/nvme0n1"));
    write(root, "proc/1/mounts", "/dev/mapper/vg-root / ext4 rw 0 0\n");
    host
}

fn read(host: &tempfile::TempDir) -> HostDevice {
    let facts = scanner(host.path()).read();
    facts.host_devices.into_iter().find(|device| device.pci_address == address("0000:43:00.0")).unwrap()
}

/// What is said of the drive after a change.
fn after(change: impl FnOnce(&Path)) -> String {
    let host = with_drive();
    change(host.path());
    let drive = read(&host);
    assert!(!drive.usable, "{drive:?}");
    drive.message.unwrap()
}

#[test]
fn a_drive_that_nobody_uses_is_free() {
    let drive = read(&with_drive());
    assert!(drive.usable, "{drive:?}");
    assert_eq!((drive.names, drive.size_mib), (vec!["nvme0n1".into()], Some(3_662_830)));
}

#[test]
fn each_way_to_use_a_drive_is_told() {
    let block = |file: &str| format!("{DRIVE}/nvme/nvme0/nvme0n1/{file}");
    let mounted = |text: &'static str| {
        move |root: &Path| {
            write(root, "proc/1/mounts", text);
            write(root, &format!("{DRIVE}/nvme/nvme0/nvme0n1/nvme0n1p2/dev"), "259:2\n");
        }
    };
    assert!(after(mounted("/dev/nvme0n1p2 / ext4 rw 0 0\n")).contains("mounted at /"));
    let said = after(|root| {
        mounted("/dev/root / ext4 rw 0 0\n")(root);
        write(root, "proc/1/mountinfo", "29 1 259:2 / / rw shared:1 - ext4 /dev/root rw\n");
    });
    assert!(said.contains("mounted at /"), "by the number of the device: {said}");
    let said = after(|root| {
        write(root, "proc/1/mounts", "/dev/disk/by-id/nvme-X /data xfs rw 0 0\n");
        link(root, "dev/disk/by-id/nvme-X", "../../nvme0n1");
    });
    assert!(said.contains("mounted at /data"), "by another name of the device: {said}");
    let swaps = "Filename Type Size Used Priority\n/dev/nvme0n1 partition 8 0 -2\n";
    assert!(after(|root| write(root, "proc/swaps", swaps)).contains("swaps to /dev/nvme0n1"));
    assert!(after(|root| write(root, &block("holders/dm-0/x"), "")).contains("dm-0 is on"));
    assert!(after(|root| write(root, &block("nvme0n1p1/holders/md127/x"), "")).contains("md127 is on"));
    assert!(after(|root| write(root, &block("bcache/state"), "dirty\n")).contains("bcache is on"));
    assert!(after(|root| write(root, &block("nvme0n1p1/partition"), "1\n")).contains("holds a partition"));
    let btrfs = "sys/fs/btrfs/0d3c5f1a-6b2e-4c8d-9f70-5a1e2b3c4d01/devices/nvme0n1";
    assert!(after(|root| link(root, btrfs, "../../../../block/nvme0n1")).contains("btrfs 0d3c"));
    let file = "sys/block/loop3/loop/backing_file";
    assert!(after(|root| write(root, file, "/dev/nvme0n1\n")).contains("loop3 is on"));
    let found = "E:ID_FS_TYPE=zfs_member\nE:ID_FS_LABEL=tank\n";
    assert!(after(|root| write(root, "run/udev/data/b259:0", found)).contains("holds zfs_member (tank)"));
    let said = after(|root| {
        write(root, "proc/4711/comm", "ceph-osd\n");
        link(root, "proc/4711/fd/12", "/dev/nvme0n1");
    });
    assert!(said.contains("process 4711 (ceph-osd)"), "{said}");
}

#[test]
fn where_a_process_does_not_tell_what_it_has_open_a_drive_is_not_free() {
    let said = after(|root| link(root, "proc/4711/fd", "fd"));
    assert!(said.contains("nobody can tell who has /dev/nvme0n1 open, for the process 4711"), "{said}");
    let said = after(|root| {
        write(root, "proc/4711/comm", "ev\u{1b}[31mil\n");
        link(root, "proc/4711/fd/12", "/dev/nvme0n1");
    });
    assert!(said.contains("process 4711 (ev[31mil)"), "{said}");
}

#[test]
fn where_nobody_can_tell_what_is_mounted_a_drive_is_not_free() {
    let unmounted = |text: Option<&'static str>| {
        move |root: &Path| {
            fs::remove_file(root.join("proc/1/mounts")).unwrap();
            // Of this process, which may be in a container.
            write(root, "proc/mounts", "overlay / overlay rw 0 0\n");
            if let Some(text) = text {
                write(root, "proc/1/mounts", text);
            }
        }
    };
    for text in [None, Some("")] {
        assert!(after(unmounted(text)).contains("nobody can tell what is mounted"));
    }
}

#[test]
fn another_drive_with_a_longer_number_is_another_drive() {
    let host = with_drive();
    write(host.path(), "proc/1/mounts", "/dev/nvme0n10 / ext4 rw 0 0\n");
    assert!(read(&host).usable);
}

#[test]
fn a_long_list_of_mounts_is_read_to_its_end() {
    let said = after(|root| {
        let mut text = "tmpfs /var/lib/kubelet/pods/0d3c5f1a/volumes tmpfs rw 0 0\n".repeat(2_000);
        text += "/dev/nvme0n1 /data xfs rw 0 0\n";
        write(root, "proc/1/mounts", &text);
    });
    assert!(said.contains("mounted at /data"), "{said}");
}

/// The same drive with native multipath: the controller holds a path, the subsystem the device.
fn with_multipath(mounts: &str) -> tempfile::TempDir {
    let host = with_drive();
    let root = host.path();
    fs::remove_dir_all(root.join(format!("{DRIVE}/nvme/nvme0/nvme0n1"))).unwrap();
    write(root, &format!("{DRIVE}/nvme/nvme0/nvme0c0n1/wwid"), "eui.1\n");
    write(root, &format!("{SUBSYSTEM}/nvme0n1/size"), "7501476528\n");
    link(root, &format!("{SUBSYSTEM}/nvme0"), "../../../pci0000:40/0000:40:03.0/0000:43:00.0/nvme/nvme0");
    link(root, "sys/class/nvme-subsystem/nvme-subsys0", "../../devices/virtual/nvme-subsystem/nvme-subsys0");
    link(root, "sys/block/nvme0n1", "../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1");
    write(root, "proc/1/mounts", mounts);
    host
}

#[test]
fn a_drive_behind_multipath_has_the_devices_of_its_subsystem() {
    let drive = read(&with_multipath("/dev/nvme0n1p2 / ext4 rw 0 0\n"));
    assert_eq!(
        (drive.names.as_slice(), drive.size_mib),
        (["nvme0n1".to_owned()].as_slice(), Some(3_662_830))
    );
    assert!(!drive.usable && drive.message.unwrap().contains("mounted at /"));
    let free = with_multipath("/dev/mapper/vg-root / ext4 rw 0 0\n");
    assert!(read(&free).usable, "nobody uses it");
    fs::remove_file(free.path().join("sys/block/nvme0n1")).unwrap();
    assert_eq!(read(&free).size_mib, Some(3_662_830), "the subsystem shows it all the same");
}

#[test]
fn a_drive_with_a_second_way_to_it_is_not_given_away_by_the_first() {
    let host = with_multipath("/dev/mapper/vg-root / ext4 rw 0 0\n");
    link(host.path(), &format!("{SUBSYSTEM}/nvme1"), "../../../pci0000:40/x/nvme/nvme1");
    assert!(read(&host).message.unwrap().contains("also reached by the controller nvme1"));
}

#[test]
fn a_drive_of_which_its_driver_shows_nothing_is_not_free_and_one_that_is_given_away_is() {
    let said = after(|root| fs::remove_dir_all(root.join(format!("{DRIVE}/nvme/nvme0/nvme0n1"))).unwrap());
    assert!(said.contains("shows no namespace"), "{said}");
    let host = with_drive();
    fs::remove_dir_all(host.path().join(format!("{DRIVE}/nvme"))).unwrap();
    link(host.path(), &format!("{DRIVE}/driver"), "../../../../bus/pci/drivers/vfio-pci");
    assert!(read(&host).usable);
}
