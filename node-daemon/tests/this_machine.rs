//! The machine that the tests run on, read by discovery and by the plainest means there are.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{fs, path::Path};

use gpudesk_crds::types::CpuSet;
use gpudesk_inventory::{scan::Scanner, topology::HostFacts, tree::Tree};

fn facts() -> HostFacts {
    Scanner::new(Tree::open(Path::new("/")).unwrap()).read()
}

#[test]
fn cpus_and_memory_are_those_of_procfs() {
    let facts = facts();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    assert_eq!(facts.cpus.online.len(), processors);
    let of_cells: usize = facts.numa_cells.iter().flat_map(|cell| &cell.cores).map(CpuSet::len).sum();
    assert_eq!(of_cells, processors, "each CPU is in one core of one cell");
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    let total: i64 = total.split_whitespace().next().unwrap().parse().unwrap();
    let of_cells: i64 = facts.numa_cells.iter().map(|cell| cell.memory_mib).sum();
    // A kernel that prepares memory only when it is needed tells less of a cell than of the whole.
    assert!(of_cells > 0 && of_cells <= total / 1024 + 64, "{of_cells} MiB of {total} KiB");
}

#[test]
fn every_card_network_card_and_drive_on_pci_is_found() {
    let facts = facts();
    let mut found: Vec<String> = facts.cards.iter().map(|card| card.pci_address.to_string()).collect();
    found.extend(facts.host_devices.iter().map(|device| device.pci_address.to_string()));
    found.sort();
    let mut there = vec![];
    for entry in fs::read_dir("/sys/bus/pci/devices").into_iter().flatten() {
        let path = entry.unwrap().path();
        let class = fs::read_to_string(path.join("class")).unwrap();
        let shown = ["0x0300", "0x0302", "0x0380", "0x1200", "0x0200", "0x0207", "0x0280", "0x0108"];
        if shown.contains(&&class[..6]) && !path.join("physfn").exists() {
            there.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    there.sort();
    assert_eq!(found, there);
}

#[test]
fn the_kernel_is_this_one() {
    let release = rustix::system::uname().release().to_str().unwrap().to_owned();
    assert_eq!(facts().kernel, Some(release));
}
