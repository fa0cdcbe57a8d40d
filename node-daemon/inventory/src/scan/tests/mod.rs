//! A change is answered as a whole pass would answer it.
#![expect(clippy::disallowed_methods, reason = "composes hosts")]

mod cards;
mod device_plugins;
mod drives;
mod services;
mod shares;

use std::{fs, os::unix::fs::symlink, path::Path};

use gpudesk_crds::{
    gpu_node_status::Framework,
    types::{PciAddress, ShareMode},
};

use super::*;

const CARD: &str = "sys/devices/pci0000:40/0000:40:01.0/0000:41:00.0";

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn link(root: &Path, path: &str, target: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let _ = fs::remove_file(&path);
    symlink(target, path).unwrap();
}

fn function(root: &Path, real: &str, group: u32, driver: &str) {
    let address = real.rsplit('/').next().unwrap();
    for (file, text) in
        [("class", "0x030200"), ("vendor", "0x10de"), ("device", "0x26b9"), ("reset_method", "flr")]
    {
        write(root, &format!("{real}/{file}"), text);
    }
    link(root, &format!("sys/bus/pci/devices/{address}"), &format!("../../../{}", &real[4..]));
    link(root, &format!("{real}/iommu_group"), &format!("../../../../kernel/iommu_groups/{group}"));
    link(
        root,
        &format!("sys/kernel/iommu_groups/{group}/devices/{address}"),
        &format!("../../../../{}", &real[4..]),
    );
    link(root, &format!("{real}/driver"), &format!("../../../../bus/pci/drivers/{driver}"));
}

fn vf(index: u8) -> String {
    format!("sys/devices/pci0000:40/0000:40:01.0/0000:41:00.{}", index + 4)
}

/// A card with three virtual functions by vendor-specific VFIO, and a network card.
fn host() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    function(root, CARD, 20, "nvidia");
    write(root, &format!("{CARD}/sriov_totalvfs"), "32\n");
    write(root, &format!("{CARD}/sriov_numvfs"), "3\n");
    for index in 0..3 {
        function(root, &vf(index), 21 + u32::from(index), "nvidia");
        link(root, &format!("{}/physfn", vf(index)), "../0000:41:00.0");
        link(root, &format!("{CARD}/virtfn{index}"), &format!("../0000:41:00.{}", index + 4));
        write(root, &format!("{}/nvidia/current_vgpu_type", vf(index)), "0\n");
        write(
            root,
            &format!("{}/nvidia/creatable_vgpu_types", vf(index)),
            "ID    : vGPU Name\n1149  : NVIDIA L40S-8Q\n1155  : NVIDIA L40S-24Q\n",
        );
    }
    let nic = "sys/devices/pci0000:40/0000:40:02.0/0000:42:00.0";
    function(root, nic, 40, "mlx5_core");
    write(root, &format!("{nic}/class"), "0x020000");
    write(root, &format!("{nic}/net/ens1/operstate"), "down\n");
    folder
}

fn scanner(root: &Path) -> Scanner {
    Scanner::new(Tree::open(root).unwrap())
}

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// Whether a refresh of `address` after `change` shows what a whole pass shows.
fn agrees(change: impl FnOnce(&Path), changed: &str) -> HostFacts {
    let host = host();
    let mut scanner = scanner(host.path());
    let mut facts = scanner.read();
    change(host.path());
    assert!(scanner.refresh(&mut facts, address(changed)));
    let mut fresh = Scanner { type_names: scanner.type_names.clone(), ..self::scanner(host.path()) };
    assert_eq!(facts, fresh.read());
    facts
}

#[test]
fn a_vgpu_on_one_function_is_seen_and_its_type_named_when_no_list_has_it_any_more() {
    let facts = agrees(
        |root| {
            write(root, &format!("{}/nvidia/current_vgpu_type", vf(1)), "1155\n");
            for index in 0..3 {
                write(root, &format!("{}/nvidia/creatable_vgpu_types", vf(index)), "ID    : vGPU Name\n");
            }
        },
        "0000:41:00.5",
    );
    let card = &facts.cards[0];
    assert_eq!(card.framework, Some(Framework::VendorVfio));
    assert_eq!((card.instances.len(), card.instances[0].type_name.as_str()), (1, "L40S-24Q"));
    assert_eq!(
        (card.instances[0].mode, card.instances[0].virtual_function),
        (ShareMode::Vgpu, Some(address("0000:41:00.5")))
    );
    assert!(
        card.placements
            .iter()
            .any(|placement| placement.type_name == "L40S-24Q" && placement.available == Some(0))
    );
}

#[test]
fn a_driver_that_changes_is_seen() {
    let rebound = |root: &Path| link(root, &format!("{CARD}/driver"), "../../../../bus/pci/drivers/vfio-pci");
    let facts = agrees(rebound, "0000:41:00.0");
    assert_eq!(facts.cards[0].driver.as_deref(), Some("vfio-pci"));
}

#[test]
fn an_interface_that_comes_up_is_in_use() {
    let facts = agrees(
        |root| write(root, "sys/devices/pci0000:40/0000:40:02.0/0000:42:00.0/net/ens1/operstate", "up\n"),
        "0000:42:00.0",
    );
    assert!(
        !facts.host_devices[0].usable && facts.host_devices[0].message.as_ref().unwrap().contains("ens1")
    );
}

#[test]
fn a_drive_is_as_large_as_its_namespaces_together_when_all_of_them_say_so() {
    const DRIVE: &str = "sys/devices/pci0000:40/0000:40:03.0/0000:43:00.0";
    let size_with = |sizes: &[&str]| {
        let host = host();
        for (file, text) in [("class", "0x010802"), ("vendor", "0x144d"), ("device", "0xa824")] {
            write(host.path(), &format!("{DRIVE}/{file}"), text);
        }
        link(host.path(), "sys/bus/pci/devices/0000:43:00.0", &format!("../../../../{DRIVE}"));
        for (number, size) in (1..).zip(sizes) {
            write(host.path(), &format!("{DRIVE}/nvme/nvme0/nvme0n{number}/size"), size);
        }
        let facts = scanner(host.path()).read();
        let drive = facts.host_devices.iter().find(|device| device.pci_address == address("0000:43:00.0"));
        drive.unwrap().size_mib
    };
    assert_eq!(size_with(&["4096\n"]), Some(2));
    assert_eq!(size_with(&["4095\n", "2049\n"]), Some(3));
    assert_eq!(size_with(&["4096\n", "many\n"]), None);
    assert_eq!(size_with(&["18446744073709551615\n", "1\n"]), Some(9_007_199_254_740_991));
    assert_eq!(size_with(&[]), None, "the drive is with another driver");
}

#[test]
fn functions_that_go_call_for_a_whole_pass() {
    let host = host();
    let mut scanner = scanner(host.path());
    let mut facts = scanner.read();
    let before = facts.clone();
    write(host.path(), &format!("{CARD}/sriov_numvfs"), "0\n");
    assert!(!scanner.refresh(&mut facts, address("0000:41:00.0")));
    assert_eq!(facts, before, "and nothing was changed");
    assert!(!scanner.refresh(&mut facts, address("0000:99:00.0")), "as does a function that was never seen");
}

#[test]
fn a_kernel_that_says_only_that_it_can_reset_is_believed() {
    let host = host();
    fs::remove_file(host.path().join(format!("{CARD}/reset_method"))).unwrap();
    assert!(scanner(host.path()).read().cards[0].reset_methods.is_empty());
    write(host.path(), &format!("{CARD}/reset"), "");
    assert_eq!(scanner(host.path()).read().cards[0].reset_methods, ["default"]);
}

/// The tree with folders and files where it had links, as `cp -rL` leaves it.
fn without_links(from: &Path, to: &Path, depth: usize) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() && depth > 0 => without_links(&path, &to, depth - 1),
            Ok(meta) if meta.is_file() => drop(fs::copy(&path, to).unwrap()),
            // A link to nowhere, or a folder too deep.
            _ => {}
        }
    }
}

#[test]
fn a_copy_without_links_tells_as_much_as_it_can() {
    let host = host();
    for real in [CARD.to_owned(), vf(0), vf(1), vf(2)] {
        write(host.path(), &format!("{real}/uevent"), "DRIVER=nvidia\nPCI_CLASS=30200\n");
    }
    write(host.path(), "sys/bus/pci/drivers/nvidia/bind", "");
    write(host.path(), &format!("{CARD}/sriov_offset"), "4\n");
    write(host.path(), &format!("{CARD}/sriov_stride"), "1\n");
    let copy = tempfile::tempdir().unwrap();
    without_links(host.path(), copy.path(), 8);
    let (whole, copied) = (scanner(host.path()).read(), scanner(copy.path()).read());
    let (card, copied) = (&whole.cards[0], &copied.cards[0]);
    assert_eq!((&copied.driver, &copied.iommu_group), (&card.driver, &card.iommu_group));
    assert_eq!(copied.virtual_functions, card.virtual_functions);
    assert_eq!(copied.placements, card.placements);
    assert!(copied.pcie_path.is_empty(), "only the link told the way");
}
