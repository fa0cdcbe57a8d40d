//! A machine as the kernel shows it, below a folder: two NUMA cells, a GPU behind a bridge with its
//! sound beside it, a virtual function, a boot display, a card whose firmware names no cell.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{fs, os::unix::fs::symlink, path::Path};

use gpudesk_crds::types::PageSize;
use gpudesk_node_daemon::host::sysfs;

struct Root(tempfile::TempDir);

impl Root {
    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// A function below `bridges`, reached as on a real machine by a link.
    fn pci(&self, address: &str, bridges: &str, files: &[(&str, &str)]) {
        let real = format!("sys/devices/pci0000:00/{bridges}{address}");
        for (file, text) in files {
            self.write(&format!("{real}/{file}"), text);
        }
        let target = format!("../../../devices/pci0000:00/{bridges}{address}");
        self.link(&format!("sys/bus/pci/devices/{address}"), &target);
    }

    fn group(&self, id: u32, bridges: &str, addresses: &[&str]) {
        for address in addresses {
            self.write(&format!("sys/kernel/iommu_groups/{id}/devices/{address}"), "");
            let group = self.0.path().join(format!("sys/kernel/iommu_groups/{id}"));
            let real = format!("sys/devices/pci0000:00/{bridges}{address}/iommu_group");
            self.link(&real, group.to_str().unwrap());
        }
    }
}

fn machine() -> Root {
    let root = Root(tempfile::tempdir().unwrap());
    root.write("proc/sys/kernel/osrelease", "6.12.0-amd64\n");
    root.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD EPYC 9374F\n");
    root.write("sys/class/dmi/id/board_name", "G293-Z42\n");
    root.write("sys/devices/system/cpu/online", "0-6\n");
    for cpu in 0..8 {
        let path = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        root.write(&path, &format!("{},{}\n", cpu % 4, cpu % 4 + 4));
    }
    for (node, cpus) in [(0, "0-1,4-5"), (1, "2-3,6-7")] {
        let folder = format!("sys/devices/system/node/node{node}");
        root.write(&format!("{folder}/cpulist"), cpus);
        root.write(&format!("{folder}/meminfo"), &format!("Node {node} MemTotal:  67108864 kB\n"));
        root.write(&format!("{folder}/distance"), if node == 0 { "10 32\n" } else { "32 10\n" });
        root.write(&format!("{folder}/hugepages/hugepages-1048576kB/nr_hugepages"), "16\n");
        root.write(&format!("{folder}/hugepages/hugepages-1048576kB/free_hugepages"), "9\n");
        root.write(&format!("{folder}/hugepages/hugepages-2048kB/nr_hugepages"), "0\n");
    }
    root.write("usr/share/misc/pci.ids", "10de  NVIDIA Corporation\n\t2684  AD102 [GeForce RTX 4090]\n");
    let gpu = [
        ("class", "0x030000\n"),
        ("vendor", "0x10de\n"),
        ("device", "0x2684\n"),
        ("numa_node", "1\n"),
        ("reset_method", "bus\n"),
        ("boot_vga", "0\n"),
        ("resource", "0x0000000094000000 0x0000000094ffffff 0x0000000000040200\n"),
    ];
    root.pci("0000:41:00.0", "0000:00:01.1/", &gpu);
    root.pci(
        "0000:41:00.1",
        "0000:00:01.1/",
        &[("class", "0x040300\n"), ("vendor", "0x10de\n"), ("device", "0x22ba\n")],
    );
    root.group(17, "0000:00:01.1/", &["0000:41:00.0", "0000:41:00.1"]);
    root.link(
        "sys/devices/pci0000:00/0000:00:01.1/0000:41:00.0/driver",
        "../../../../bus/pci/drivers/nvidia",
    );
    let function =
        [("class", "0x030000\n"), ("vendor", "0x10de\n"), ("device", "0x2684\n"), ("physfn/x", "")];
    root.pci("0000:41:00.4", "0000:00:01.1/", &function);
    let screen = [
        ("class", "0x030000\n"),
        ("vendor", "0x1a03\n"),
        ("device", "0x2000\n"),
        ("numa_node", "-1\n"),
        ("boot_vga", "1\n"),
    ];
    root.pci("0000:02:00.0", "", &screen);
    root
}

fn read(root: &Path) -> gpudesk_node_daemon::topology::HostFacts {
    sysfs::read(root)
}

#[test]
fn cells_have_cores_of_online_threads_memory_and_pages() {
    let facts = read(machine().0.path());
    assert_eq!(facts.kernel.as_deref(), Some("6.12.0-amd64"));
    assert_eq!(facts.cpu_model.as_deref(), Some("AMD EPYC 9374F"));
    assert_eq!(facts.board.as_deref(), Some("G293-Z42"));
    let cores = |cell: usize| -> Vec<String> {
        facts.numa_cells[cell].cores.iter().map(ToString::to_string).collect()
    };
    assert_eq!(cores(0), ["0,4", "1,5"]);
    assert_eq!(cores(1), ["2,6", "3"], "CPU 7 is offline");
    let cell = &facts.numa_cells[1];
    assert_eq!((cell.memory_mib, cell.distances.as_slice()), (65536, &[32, 10][..]));
    assert_eq!(cell.hugepages.len(), 1);
    assert_eq!(
        (cell.hugepages[0].size, cell.hugepages[0].total, cell.hugepages[0].free),
        (PageSize::Gi1, 16, Some(9))
    );
    assert_eq!(facts.incomplete, [""; 0]);
}

#[test]
fn cards_are_functions_of_their_own_with_group_and_path() {
    let facts = read(machine().0.path());
    let addresses: Vec<String> = facts.cards.iter().map(|card| card.pci_address.to_string()).collect();
    assert_eq!(addresses, ["0000:02:00.0", "0000:41:00.0"], "neither the sound nor the virtual function");
    let card = &facts.cards[1];
    assert_eq!(card.product, "GeForce RTX 4090");
    assert_eq!(card.numa_cell, Some(1));
    assert_eq!(card.driver.as_deref(), Some("nvidia"));
    assert_eq!(card.reset_methods, ["bus"]);
    assert_eq!(card.bars[0].size_bytes, 16 << 20);
    assert_eq!(card.pcie_path.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0000:00:01.1"]);
    let group = card.iommu_group.as_ref().unwrap();
    assert_eq!((group.id, group.members[0].to_string().as_str()), (17, "0000:41:00.1"));
    let screen = &facts.cards[0];
    assert_eq!((screen.product.as_str(), screen.numa_cell), ("1a03:2000", None));
    assert_eq!(facts.boot_displays, [screen.pci_address]);
    assert_eq!(facts.iommu_groups, 1);
}

#[test]
fn a_machine_without_numa_has_one_cell_and_an_empty_folder_says_what_is_missing() {
    let root = Root(tempfile::tempdir().unwrap());
    assert_eq!(read(root.0.path()).incomplete.len(), 1);
    root.write("sys/devices/system/cpu/online", "0-1");
    root.write("proc/meminfo", "MemTotal: 2097152 kB\n");
    let facts = read(root.0.path());
    assert_eq!(
        (facts.numa_cells.len(), facts.numa_cells[0].id, facts.numa_cells[0].memory_mib),
        (1, 0, 2048)
    );
    assert!(facts.incomplete.is_empty() && facts.cards.is_empty());
}
