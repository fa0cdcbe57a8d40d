//! Hosts whose kernel or firmware says odd things, and parts of hosts.
#![expect(clippy::disallowed_methods, reason = "composes hosts")]

use std::{fs, path::Path};

use gpudesk_crds::{
    GpuNodeStatus,
    conditions::{self, ConditionType},
    gpu_node_status::NumaCell,
};
use proptest::prelude::*;

use super::*;
use crate::status::{self, Findings};

/// A host of these files.
fn read(files: &[(&str, &str)]) -> HostFacts {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), files);
    let mut facts = Scanner::new(Tree::open(folder.path()).unwrap()).read();
    judge_modes(&mut facts);
    facts
}

fn write(root: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn status(facts: &HostFacts) -> GpuNodeStatus {
    status::status(&Findings::of(facts))
}

/// Reason and message of a condition that is False; `None` when it is True.
fn wrong(facts: &HostFacts, type_: ConditionType) -> Option<String> {
    let status = status(facts);
    let condition = conditions::find(&status.conditions, type_).unwrap();
    (condition.status != "True").then(|| condition.message.clone())
}

fn reason(facts: &HostFacts, type_: ConditionType) -> (String, String) {
    let status = status(facts);
    let condition = conditions::find(&status.conditions, type_).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

/// Two CPUs that are cores of their own, as far as `files` does not say otherwise.
fn with_cpus(files: &[(&str, &str)]) -> HostFacts {
    let mut all = vec![
        ("sys/devices/system/cpu/online", "0-1\n"),
        ("sys/devices/system/cpu/cpu0/topology/physical_package_id", "0\n"),
        ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0\n"),
        ("sys/devices/system/cpu/cpu1/topology/physical_package_id", "0\n"),
        ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "1\n"),
    ];
    all.extend(files);
    read(&all)
}

fn cores(cell: &NumaCell) -> Vec<String> {
    cell.cores.iter().map(ToString::to_string).collect()
}

const CELL_0: &str = "sys/devices/system/node/node0";
const CELL_1: &str = "sys/devices/system/node/node1";

fn cells<'a>(cpus: [&'a str; 2], distance: &'a str) -> Vec<(String, &'a str)> {
    let files = [CELL_0, CELL_1].into_iter().zip(cpus).flat_map(|(folder, cpus)| {
        [
            (format!("{folder}/cpulist"), cpus),
            (format!("{folder}/meminfo"), "Node 0 MemTotal: 1048576 kB\n"),
            (format!("{folder}/distance"), distance),
        ]
    });
    files.collect()
}

fn borrowed<'a>(files: &'a [(String, &'a str)]) -> Vec<(&'a str, &'a str)> {
    files.iter().map(|(path, text)| (path.as_str(), *text)).collect()
}

#[test]
fn a_cache_without_cpus_is_none() {
    let empty = [
        ("sys/devices/system/cpu/cpu0/cache/index0/level", "3\n"),
        ("sys/devices/system/cpu/cpu0/cache/index0/shared_cpu_map", "00000000,00000000\n"),
        ("sys/devices/system/cpu/cpu1/cache/index0/level", "3\n"),
        ("sys/devices/system/cpu/cpu1/cache/index0/shared_cpu_map", "00000000,00000000\n"),
    ];
    let facts = with_cpus(&empty);
    assert!(facts.numa_cells[0].caches.is_empty());
    assert_eq!(status::faults(&status(&facts)), [""; 0]);
    let below = [
        ("sys/devices/system/cpu/cpu0/cache/index1/level", "2\n"),
        ("sys/devices/system/cpu/cpu0/cache/index1/shared_cpu_map", "00000001\n"),
    ];
    let facts = with_cpus(&empty.into_iter().chain(below).collect::<Vec<_>>());
    let caches: Vec<i32> = facts.numa_cells[0].caches.iter().map(|cache| cache.level).collect();
    assert_eq!(caches, [2], "the highest of which it is told who shares it");
}

#[test]
fn the_last_level_is_found_per_cpu() {
    let facts = with_cpus(&[
        ("sys/devices/system/cpu/online", "0-2\n"),
        ("sys/devices/system/cpu/cpu0/cache/index0/level", "1\n"),
        ("sys/devices/system/cpu/cpu0/cache/index0/type", "Data\n"),
        ("sys/devices/system/cpu/cpu0/cache/index0/size", "48K\n"),
        ("sys/devices/system/cpu/cpu0/cache/index0/shared_cpu_list", "0\n"),
        ("sys/devices/system/cpu/cpu0/cache/index1/level", "1\n"),
        ("sys/devices/system/cpu/cpu0/cache/index1/type", "Instruction\n"),
        ("sys/devices/system/cpu/cpu0/cache/index1/size", "32K\n"),
        ("sys/devices/system/cpu/cpu0/cache/index1/shared_cpu_list", "0\n"),
        ("sys/devices/system/cpu/cpu1/cache/index0/level", "1\n"),
        ("sys/devices/system/cpu/cpu1/cache/index0/shared_cpu_list", "1\n"),
        ("sys/devices/system/cpu/cpu1/cache/index2/level", "2\n"),
        ("sys/devices/system/cpu/cpu1/cache/index2/size", "4096K\n"),
        ("sys/devices/system/cpu/cpu1/cache/index2/shared_cpu_list", "1-2\n\0"),
        ("sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "2\n"),
    ]);
    let caches = facts.numa_cells[0].caches.iter();
    let caches: Vec<(i32, String, Option<i64>)> =
        caches.map(|cache| (cache.level, cache.cpus.to_string(), cache.size_kib)).collect();
    assert_eq!(caches, [(1, "0".into(), Some(48)), (2, "1,2".into(), Some(4096))]);
}

#[test]
fn high_numbers_of_sockets_are_shown() {
    let files = cells(["0\n", "1\n"], "10 20\n");
    let mut files = borrowed(&files);
    files.push(("sys/devices/system/cpu/cpu0/topology/physical_package_id", "36\n"));
    files.push(("sys/devices/system/cpu/cpu1/topology/physical_package_id", "3180\n"));
    let facts = with_cpus(&files);
    let sockets: Vec<&[i32]> = facts.numa_cells.iter().map(|cell| cell.sockets.as_slice()).collect();
    assert_eq!(sockets, [[36], [3180]]);
}

#[test]
fn a_cpu_counts_in_one_cell_and_what_is_odd_is_said() {
    let files = cells(["0-1\n", "0-1\n"], "10 10\n");
    let facts = with_cpus(&borrowed(&files));
    assert_eq!(
        (cores(&facts.numa_cells[0]), cores(&facts.numa_cells[1])),
        (vec!["0".into(), "1".into()], vec![])
    );
    let why = wrong(&facts, ConditionType::TopologyComplete).unwrap();
    assert!(why.contains("CPUs 0,1 are in several NUMA cells at once"), "{why}");
    let files = cells(["0\n", "\n"], "10 10\n");
    let facts = with_cpus(&borrowed(&files));
    let why = wrong(&facts, ConditionType::TopologyComplete).unwrap();
    assert!(why.contains("CPUs 1 are online and in no NUMA cell"), "{why}");
}

#[test]
fn a_list_ends_with_its_line() {
    let facts = with_cpus(&[
        ("sys/devices/system/node/node0/cpulist", "0-1\n\0"),
        ("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 1048576 kB\n"),
        ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1\n\0"),
        ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "0-1\n\0x\n"),
    ]);
    assert_eq!(cores(&facts.numa_cells[0]), ["0,1"]);
}

#[test]
fn cpus_that_are_not_there_are_not_offline() {
    let of = |files: &[(&str, &str)]| with_cpus(files).cpus;
    let offline = ("sys/devices/system/cpu/offline", "2-1023\n");
    assert!(of(&[offline, ("sys/devices/system/cpu/present", "0-1\n")]).offline.is_empty());
    assert!(of(&[offline]).offline.is_empty(), "the folders tell which are there");
    let three = of(&[offline, ("sys/devices/system/cpu/present", "0-2\n")]);
    assert_eq!(three.offline.to_string(), "2");
    let isolated = of(&[
        ("sys/devices/system/cpu/isolated", "1-7\n"),
        ("sys/fs/cgroup/cpuset.cpus.isolated", "0\n"),
        ("sys/devices/system/cpu/present", "0-1\n"),
    ]);
    assert_eq!(isolated.isolated.to_string(), "0,1");
}

#[test]
fn a_cpu_without_topology_is_where_the_others_say() {
    let files = [
        ("sys/devices/system/cpu/online", "0-2\n"),
        ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "0-1\n"),
        ("sys/devices/system/cpu/cpu2/online", "1\n"),
        ("proc/meminfo", "MemTotal: 1048576 kB\n"),
    ];
    let facts = read(&files);
    assert_eq!(cores(&facts.numa_cells[0]), ["0,1", "2"]);
    assert!(facts.incomplete.iter().any(|sentence| sentence.starts_with("the cores of CPUs 2:")));
}

#[test]
fn cells_can_have_gaps_and_distances_must_be_those_of_all() {
    let files = |distance: &'static str| {
        let facts = with_cpus(&[
            ("sys/devices/system/node/online", "0,8\n"),
            ("sys/devices/system/node/node0/cpulist", "0-1\n"),
            ("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 1048576 kB\n"),
            ("sys/devices/system/node/node0/distance", distance),
            ("sys/devices/system/node/node8/cpulist", "\n"),
            ("sys/devices/system/node/node8/meminfo", "Node 8 MemTotal: 1048576 kB\n"),
            ("sys/devices/system/node/node9/cpulist", "\n"),
        ]);
        let ids: Vec<i32> = facts.numa_cells.iter().map(|cell| cell.id).collect();
        assert_eq!(ids, [0, 8], "cell 9 is not online");
        (facts.numa_cells[0].distances.clone(), facts.odd.len())
    };
    assert_eq!(files("10 40\n\0"), (vec![10, 40], 0));
    assert_eq!(files("10\n"), (vec![], 1));
    assert_eq!(files("10 40 40\n"), (vec![], 1));
}

#[test]
fn memory_that_is_not_told_is_said_to_be_missing() {
    let pages = "sys/devices/system/node/node0/hugepages/hugepages";
    let facts = with_cpus(&[
        ("sys/devices/system/node/node0/cpulist", "0-1\n"),
        ("proc/meminfo", "MemTotal: 2097152 kB\n"),
        (&format!("{pages}-2048kB/free_hugepages"), "1\n"),
        (&format!("{pages}-16777216kB/nr_hugepages"), "2\n"),
        (&format!("{pages}-64kB/nr_hugepages"), "32\n"),
    ]);
    let cell = &facts.numa_cells[0];
    assert_eq!(cell.memory_mib, 2048, "the only cell has the memory of the machine");
    assert_eq!((cell.hugepages.len(), cell.other_hugepages_mib), (0, 32770));
    assert!(
        facts.incomplete.iter().any(|sentence| sentence.contains("hugepages-2048kB/nr_hugepages is missing"))
    );
}

#[test]
fn the_kubelets_drop_ins_count_like_its_file() {
    let reserved = |files: &[(&str, &str)]| {
        let facts = with_cpus(files);
        let why = facts.incomplete.iter().find(|sentence| sentence.contains("kubelet")).cloned();
        (facts.cpus.kubelet_reserved.to_string(), why.unwrap_or_default())
    };
    let main = ("var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\nreservedSystemCPUs: 0-1\n");
    let ten = ("etc/kubernetes/kubelet.conf.d/10-cpus.conf", "reservedSystemCPUs: 0,8\n");
    let twenty = ("etc/kubernetes/kubelet.conf.d/20-more.conf", "reservedSystemCPUs: 0,9\n");
    let none = |cpus: &str| (cpus.to_owned(), String::new());
    assert_eq!(reserved(&[main]), none("0,1"));
    assert_eq!(reserved(&[ten, main]), none("0,8"));
    assert_eq!(reserved(&[twenty, ten, main]), none("0,9"), "in the order of their names");
    assert_eq!(
        reserved(&[("etc/kubernetes/kubelet.conf.d/10.yaml", "reservedSystemCPUs: 0\n"), main]),
        none("0,1")
    );
    let bad = reserved(&[("var/lib/kubelet/config.yaml", "reservedSystemCPUs: [\n")]);
    assert!(bad.1.contains("var/lib/kubelet/config.yaml"), "{bad:?}");
    let process = ("sys/fs/cgroup/system.slice/kubelet.service/cgroup.procs", "7\n42\n");
    let helper = ("proc/7/comm", "journalctl\n");
    let kubelet = ("proc/42/comm", "kubelet\n");
    let elsewhere = ("opt/kubelet.d/1.conf", "reservedSystemCPUs: 3\n");
    let line = |text: &'static str| ("proc/42/cmdline", text);
    let plain = line("/usr/bin/kubelet\0--config=/var/lib/kubelet/config.yaml\0");
    assert_eq!(reserved(&[process, helper, kubelet, plain, main, ten]), none("0,1"), "it reads no drop-ins");
    let with_folder = line("kubelet\0--config=/var/lib/kubelet/config.yaml\0--config-dir=/opt/kubelet.d\0");
    assert_eq!(reserved(&[process, helper, kubelet, with_folder, main, ten, elsewhere]), none("3"));
    let flag = line("kubelet\0--config=/var/lib/kubelet/config.yaml\0--reserved-cpus=5\0");
    assert_eq!(reserved(&[process, kubelet, flag, main]), none("5"));
}

/// A card of NVIDIA at 0000:41:00.0.
fn card(device: &'static str, cell: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![
        ("sys/bus/pci/devices/0000:41:00.0/class", "0x030200\n"),
        ("sys/bus/pci/devices/0000:41:00.0/vendor", "0x10de\n"),
        ("sys/bus/pci/devices/0000:41:00.0/device", device),
        ("sys/bus/pci/devices/0000:41:00.0/numa_node", cell),
    ]
}

#[test]
fn a_card_whose_cell_is_not_known_says_why() {
    let with_cells = |list: [&str; 2], cell: &'static str| {
        let files = cells([list[0], list[1]], "10 21\n");
        let files: Vec<(&str, &str)> = borrowed(&files).into_iter().chain(card("0x26b9\n", cell)).collect();
        with_cpus(&files)
    };
    let said = |facts: &HostFacts| {
        let card = &facts.cards[0];
        let why = facts.odd.iter().find(|sentence| sentence.contains("0000:41:00.0")).cloned();
        (card.numa_cell, card.absent_numa_cell, why.unwrap_or_default())
    };
    assert_eq!(said(&with_cells(["0\n", "1\n"], "1\n")), (Some(1), None, String::new()));
    let (cell, absent, why) = said(&with_cells(["0\n", "1\n"], "-1\n"));
    assert_eq!((cell, absent), (None, None));
    assert!(why.contains("the firmware does not say it, and there are 2 cells with CPUs"), "{why}");
    let (cell, absent, why) = said(&with_cells(["0\n", "1\n"], "7\n"));
    assert_eq!((cell, absent), (None, Some(7)));
    assert!(why.contains("the firmware names cell 7, which this host does not have"), "{why}");
    assert_eq!(said(&with_cells(["0-1\n", "\n"], "-1\n")).2, "", "there is one cell with CPUs");
    let facts = with_cells(["0\n", "1\n"], "7\n");
    let why = wrong(&facts, ConditionType::TopologyComplete).unwrap();
    assert!(why.contains("0000:41:00.0 is not known"), "{why}");
    // A part of a host without its cells: what the card says cannot be compared.
    let part = with_cpus(&card("0x26b9\n", "1\n"));
    assert_eq!(said(&part), (Some(1), None, String::new()));
    assert!(part.incomplete.iter().any(|sentence| sentence.starts_with("NUMA cells:")));
}

#[test]
fn memory_of_a_device_is_told_from_memory_alone() {
    let second = |more: &[(&'static str, &'static str)], device: &'static str| {
        let files = cells(["0-1\n", "\n"], "10 80\n");
        let mut files = borrowed(&files);
        files.extend(card(device, "0\n"));
        files.extend(more);
        with_cpus(&files).numa_cells[1].device_memory
    };
    assert!(second(&[], "0x2342\n"), "Grace Hopper");
    assert!(!second(&[], "0x26b9\n"), "an ordinary card beside memory of CXL");
    let dax = ("sys/bus/dax/devices/dax0.0/target_node", "1\n");
    assert!(!second(&[dax], "0x2342\n"), "memory of CXL beside Grace Hopper");
    let driver = ("proc/driver/nvidia/gpus/0000:41:00.0/numa_status", "Node:\t\t1\nStatus:\t\tonline\n");
    assert!(second(&[driver], "0x1db1\n"), "by the driver's word, as on POWER9");
    let none = ("proc/driver/nvidia/gpus/0000:41:00.0/numa_status", "Node:\t\t-1\n");
    assert!(!second(&[none], "0x26b9\n"));
    assert!(second(&[("sys/devices/system/node/has_generic_initiator", "1\n")], "0x26b9\n"));
}

#[test]
fn an_iommu_is_not_missing_because_its_folder_is_not_in_a_part() {
    let part = |more: &[(&'static str, &'static str)]| {
        let mut files = card("0x26b9\n", "0\n");
        files.push(("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n"));
        files.extend(more);
        reason(&read(&files), ConditionType::IommuEnabled)
    };
    let unknown = ("True".to_owned(), "Unknown".to_owned());
    assert_eq!(part(&[]), unknown);
    assert_eq!(part(&[("proc/cmdline", "ro quiet\n")]), unknown, "nor with a command line");
    let missing = ("False".to_owned(), "IommuMissing".to_owned());
    assert_eq!(part(&[("proc/sys/kernel/osrelease", "2.6.32-754.el6\n")]), missing, "older than groups");
    assert_eq!(part(&[("sys/kernel/iommu_groups/.keep", "")]), missing, "the folder is there and empty");
}

proptest! {
    #[test]
    fn no_text_of_cpus_makes_a_status_that_the_api_refuses(
        texts in proptest::collection::vec("[0-9,\\-]{0,12}|(0-1|0|1|-1|3|2048K|00000000)\n?\x00?", 16),
    ) {
        let names = [
            "sys/devices/system/cpu/online", "sys/devices/system/cpu/present", "sys/devices/system/cpu/offline",
            "sys/devices/system/cpu/isolated", "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
            "sys/devices/system/cpu/cpu1/topology/core_cpus_list",
            "sys/devices/system/cpu/cpu0/topology/physical_package_id",
            "sys/devices/system/cpu/cpu0/cache/index0/level",
            "sys/devices/system/cpu/cpu0/cache/index0/shared_cpu_list",
            "sys/devices/system/cpu/cpu1/cache/index0/level",
            "sys/devices/system/cpu/cpu1/cache/index0/shared_cpu_map", "sys/devices/system/node/node0/cpulist",
            "sys/devices/system/node/node1/cpulist", "sys/devices/system/node/node0/distance",
            "sys/devices/system/node/online", "sys/bus/pci/devices/0000:41:00.0/numa_node",
        ];
        let mut files: Vec<(&str, &str)> = names.into_iter().zip(texts.iter().map(String::as_str)).collect();
        files.extend(card("0x26b9\n", "0\n").into_iter().take(3));
        let facts = read(&files);
        let status = status(&facts);
        prop_assert_eq!(status::faults(&status), Vec::<String>::new());
        let all: Vec<u32> = facts.numa_cells.iter().flat_map(|cell| &cell.cores).flat_map(|core| core.iter().collect::<Vec<_>>()).collect();
        let set: BTreeSet<u32> = all.iter().copied().collect();
        prop_assert_eq!(all.len(), set.len(), "no CPU counts twice");
        prop_assert!(all.iter().all(|cpu| facts.cpus.online.contains(*cpu)));
        prop_assert!(facts.cpus.offline.is_disjoint(&facts.cpus.online));
    }
}
