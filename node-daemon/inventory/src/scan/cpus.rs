//! CPUs and NUMA cells.

use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::{
    gpu_node_status::{CacheDomain, HostCpus, NumaCell},
    types::CpuSet,
};

use super::memory;
use crate::{
    topology::{HostFacts, cpu},
    tree::{LARGE, Tree},
};

const CPUS: &str = "sys/devices/system/cpu";
const NODES: &str = "sys/devices/system/node";
const KUBELET: [&str; 2] = ["var/lib/kubelet/config.yaml", "etc/kubernetes/kubelet/kubelet-config.json"];

pub(super) fn read(tree: &Tree, facts: &mut HostFacts) {
    let set =
        |name: &str| tree.text(&format!("{CPUS}/{name}")).and_then(|text| text.trim().parse::<CpuSet>().ok());
    let listed = set("online");
    let (online, cores) = match listed.or_else(|| by_folders(tree)) {
        Some(online) => (online, None),
        None => by_cpuinfo(tree).map_or_else(Default::default, |(online, cores)| (online, Some(cores))),
    };
    if online.is_empty() {
        facts.incomplete.push(format!("CPUs: {CPUS} is missing"));
    }
    facts.cpus = HostCpus {
        offline: set("offline").unwrap_or_default(),
        isolated: set("isolated").unwrap_or_default(),
        kubelet_reserved: KUBELET
            .iter()
            .find_map(|path| tree.text(path))
            .and_then(|config| cpu::kubelet_reserved(&config))
            .unwrap_or_default(),
        online: online.clone(),
    };
    let mut topology =
        Topology { tree, given: cores, sockets: BTreeMap::new(), last_level: LastLevel::NotAsked };
    let is_node = |name: &str| name.strip_prefix("node").is_some_and(|id| id.parse::<u16>().is_ok());
    let mut cells: Vec<i32> = tree
        .names(NODES, is_node)
        .iter()
        .filter_map(|name| name.strip_prefix("node")?.parse().ok())
        .collect();
    cells.sort_unstable();
    for id in cells.into_iter().take(64) {
        let folder = format!("{NODES}/node{id}");
        let list =
            tree.text(&format!("{folder}/cpulist")).and_then(|text| text.trim().parse::<CpuSet>().ok());
        let cpus = list.or_else(|| cpu::mask(&tree.text(&format!("{folder}/cpumap"))?));
        if cpus.is_none() {
            facts.incomplete.push(format!("the CPUs of NUMA cell {id}: {folder}/cpulist is missing"));
        }
        let cpus = cpus.unwrap_or_default().iter().filter(|cpu| online.contains(*cpu)).collect();
        let memory_kib = memory::total_kib(tree, &format!("{folder}/meminfo"));
        if memory_kib.is_none() {
            facts.incomplete.push(format!("the memory of NUMA cell {id}: {folder}/meminfo is missing"));
        }
        let distances = tree.text(&format!("{folder}/distance")).and_then(|text| cpu::distances(&text));
        let mut cell = topology.cell(id, &cpus);
        cell.memory_mib = memory_kib.unwrap_or_default() / 1024;
        cell.hugepages = memory::hugepages(tree, &format!("{folder}/hugepages"));
        cell.distances = distances.unwrap_or_default();
        facts.numa_cells.push(cell);
    }
    if facts.numa_cells.is_empty() {
        whole_machine(tree, facts, &mut topology, &online);
    }
}

/// A kernel without NUMA, or a tree without its folders: one cell with everything.
fn whole_machine(tree: &Tree, facts: &mut HostFacts, topology: &mut Topology<'_>, online: &CpuSet) {
    let memory_kib = memory::total_kib(tree, "proc/meminfo");
    if memory_kib.is_none() {
        facts.incomplete.push("memory: proc/meminfo is missing".into());
    }
    if online.is_empty() && memory_kib.is_none() {
        return;
    }
    let mut cell = topology.cell(0, online);
    cell.memory_mib = memory_kib.unwrap_or_default() / 1024;
    cell.hugepages = memory::hugepages(tree, "sys/kernel/mm/hugepages");
    cell.distances = vec![10];
    facts.numa_cells.push(cell);
}

/// Very old kernels, and some captures, have no list: the folders are the list.
fn by_folders(tree: &Tree) -> Option<CpuSet> {
    let number =
        |name: &str| name.strip_prefix("cpu")?.parse::<u32>().ok().filter(|cpu| *cpu < CpuSet::LIMIT);
    let names = tree.names(CPUS, |name| number(name).is_some());
    // A CPU that is switched off has no topology.
    let online: CpuSet = names
        .iter()
        .filter(|name| {
            tree.exists(&format!("{CPUS}/{name}/topology"))
                || tree.line(&format!("{CPUS}/{name}/online")).as_deref() == Some("1")
        })
        .filter_map(|name| number(name))
        .collect();
    (!online.is_empty()).then_some(online)
}

/// Sockets and cores by CPU.
type Cores = BTreeMap<u32, (i32, i32)>;

fn by_cpuinfo(tree: &Tree) -> Option<(CpuSet, Cores)> {
    let found = cpu::from_cpuinfo(&tree.head("proc/cpuinfo", LARGE)?);
    let online: CpuSet = found.iter().map(|(cpu, _)| *cpu).collect();
    let cores = found.iter().filter_map(|(cpu, core)| Some((*cpu, (*core)?))).collect();
    (!online.is_empty()).then_some((online, cores))
}

struct Topology<'a> {
    tree: &'a Tree,
    /// Where sysfs says nothing.
    given: Option<Cores>,
    /// The socket of each CPU that was asked for, with those beside it.
    sockets: BTreeMap<u32, i32>,
    /// Which cache folder is the last level.
    last_level: LastLevel,
}

/// What is known of the caches of the last level.
#[derive(Clone, Copy)]
enum LastLevel {
    NotAsked,
    /// Number of the cache folder, and the level.
    Known(Option<(i32, i32)>),
}

impl Topology<'_> {
    fn cell(&mut self, id: i32, cpus: &CpuSet) -> NumaCell {
        let cores = cpu::cores(cpus, |cpu| self.siblings(cpu));
        let firsts: Vec<u32> = cores.iter().filter_map(|core| core.iter().next()).collect();
        let sockets: BTreeSet<i32> = firsts.iter().filter_map(|cpu| self.socket(*cpu)).collect();
        let caches = self.caches(&firsts, cpus);
        NumaCell { id, cores, sockets: sockets.into_iter().collect(), caches, ..NumaCell::default() }
    }

    fn siblings(&self, cpu: u32) -> Option<CpuSet> {
        if let Some(cores) = &self.given {
            let core = cores.get(&cpu)?;
            return Some(cores.iter().filter(|(_, other)| *other == core).map(|(cpu, _)| *cpu).collect());
        }
        let file = |name: &str| self.tree.text(&format!("{CPUS}/cpu{cpu}/topology/{name}"));
        let list = file("thread_siblings_list").or_else(|| file("core_cpus_list"));
        match list {
            Some(list) => list.trim().parse().ok(),
            None => cpu::mask(&file("thread_siblings")?),
        }
    }

    fn socket(&mut self, cpu: u32) -> Option<i32> {
        if let Some(cores) = &self.given {
            return cores.get(&cpu).map(|(socket, _)| *socket);
        }
        if let Some(socket) = self.sockets.get(&cpu) {
            return Some(*socket);
        }
        let file = |name: &str| self.tree.line(&format!("{CPUS}/cpu{cpu}/topology/{name}"));
        let socket: i32 =
            file("physical_package_id")?.parse().ok().filter(|socket| (0..1024).contains(socket))?;
        // One file tells all CPUs of the socket; it can be longer than a line of ours.
        let text = |name: &str| self.tree.text(&format!("{CPUS}/cpu{cpu}/topology/{name}"));
        let beside = text("package_cpus_list").or_else(|| text("core_siblings_list"));
        let beside: CpuSet = beside.and_then(|text| text.trim().parse().ok()).unwrap_or_default();
        self.sockets.extend(beside.iter().map(|cpu| (cpu, socket)));
        self.sockets.insert(cpu, socket);
        Some(socket)
    }

    /// The caches of the last level, by the first CPU of each core.
    fn caches(&mut self, firsts: &[u32], cpus: &CpuSet) -> Vec<CacheDomain> {
        let mut seen = CpuSet::default();
        let mut caches = vec![];
        for cpu in firsts {
            if seen.contains(*cpu) {
                continue;
            }
            let Some((index, level)) = self.last_level(*cpu) else { continue };
            let Some(dir) = self.tree.dir(&format!("{CPUS}/cpu{cpu}/cache/index{index}")) else { continue };
            let shared = dir.text("shared_cpu_list").and_then(|text| text.trim().parse::<CpuSet>().ok());
            let Some(shared) = shared.or_else(|| cpu::mask(&dir.text("shared_cpu_map")?)) else { continue };
            seen.extend(shared.iter());
            let shared: CpuSet = shared.iter().filter(|cpu| cpus.contains(*cpu)).collect();
            let size_kib = dir.text("size").and_then(|text| cpu::cache_kib(&text));
            caches.push(CacheDomain { level, cpus: shared, size_kib });
        }
        caches.truncate(256);
        caches
    }

    /// Number of the cache folder with the highest level, and that level. The same on every CPU.
    fn last_level(&mut self, cpu: u32) -> Option<(i32, i32)> {
        if let LastLevel::Known(known) = self.last_level {
            return known;
        }
        let level = |index: i32| {
            let line = self.tree.line(&format!("{CPUS}/cpu{cpu}/cache/index{index}/level"))?;
            line.parse::<i32>().ok().filter(|level| (1..=9).contains(level))
        };
        let levels = (0..10).map_while(|index| Some((index, level(index)?)));
        let found = levels.max_by_key(|(index, level)| (*level, *index));
        self.last_level = LastLevel::Known(found);
        found
    }
}
