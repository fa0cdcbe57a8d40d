//! CPUs and NUMA cells.

use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::{
    gpu_node_status::{HostCpus, NumaCell},
    types::CpuSet,
};

use super::{caches, kubelet, memory};
use crate::{
    topology::{HostFacts, cpu},
    tree::{LARGE, Tree},
};

pub(super) const CPUS: &str = "sys/devices/system/cpu";
pub(super) const NODES: &str = "sys/devices/system/node";
/// Where cpusets list the CPUs of their isolated partitions (Linux 6.8).
const ISOLATED_PARTITIONS: &str = "sys/fs/cgroup/cpuset.cpus.isolated";
/// Most cells, and most sockets of one, as the API has them.
const CELLS: usize = 64;
const SOCKETS: usize = 1024;

pub(super) fn read(tree: &Tree, facts: &mut HostFacts) {
    let set = |name: &str| tree.text(&format!("{CPUS}/{name}")).and_then(|text| cpu::list(&text));
    let listed = set("online");
    let (online, cores) = match listed.or_else(|| by_folders(tree)) {
        Some(online) => (online, None),
        None => by_cpuinfo(tree).map_or_else(Default::default, |(online, cores)| (online, Some(cores))),
    };
    if online.is_empty() {
        facts.incomplete.push(format!("CPUs: {CPUS} is missing"));
    }
    // The kernel lists as offline what it could have, up to the largest number that it was built for.
    let present = set("present").or_else(|| folders(tree));
    let is_there =
        |cpu: &u32| online.contains(*cpu) || present.as_ref().is_none_or(|present| present.contains(*cpu));
    let there = |cpus: Option<CpuSet>| cpus.unwrap_or_default().iter().filter(is_there).collect::<CpuSet>();
    let mut isolated = there(set("isolated"));
    isolated.extend(there(tree.text(ISOLATED_PARTITIONS).and_then(|text| cpu::list(&text))).iter());
    let offline = there(set("offline")).iter().filter(|cpu| !online.contains(*cpu)).collect();
    let kubelet_reserved = kubelet::reserved(tree, facts);
    facts.cpus = HostCpus { offline, isolated, kubelet_reserved, online: online.clone() };
    let mut topology = Topology { tree, given: cores, silent: CpuSet::default() };
    if !cells(tree, facts, &mut topology, &online) {
        whole_machine(tree, facts, &mut topology, &online);
    }
    if !topology.silent.is_empty() && topology.given.is_none() {
        facts.incomplete.push(format!(
            "the cores of CPUs {}: {CPUS}/cpu*/topology/thread_siblings_list is missing there, each is shown as a core",
            topology.silent
        ));
    }
}

/// The NUMA cells that the kernel shows; whether there are any.
fn cells(tree: &Tree, facts: &mut HostFacts, topology: &mut Topology<'_>, online: &CpuSet) -> bool {
    let number = |name: &str| name.strip_prefix("node").and_then(|id| id.parse::<u16>().ok());
    let up = tree.text(&format!("{NODES}/online")).and_then(|text| cpu::list(&text));
    let is_up = |id: &u16| up.as_ref().is_none_or(|up| up.contains(u32::from(*id)));
    let names = tree.names(NODES, |name| number(name).is_some());
    let mut ids: Vec<u16> = names.iter().filter_map(|name| number(name)).filter(is_up).collect();
    ids.sort_unstable();
    ids.dedup();
    let count = ids.len();
    if count > CELLS {
        facts.incomplete.push(format!("{count} NUMA cells: the first {CELLS} are shown"));
        ids.truncate(CELLS);
    }
    let mut placed = CpuSet::default();
    let mut twice = CpuSet::default();
    let mut all_told = count <= CELLS;
    for id in ids {
        let folder = format!("{NODES}/node{id}");
        let list = tree.text(&format!("{folder}/cpulist")).and_then(|text| cpu::list(&text));
        let cpus = list.or_else(|| cpu::mask(&tree.text(&format!("{folder}/cpumap"))?));
        if cpus.is_none() {
            facts.incomplete.push(format!("the CPUs of NUMA cell {id}: {folder}/cpulist is missing"));
        }
        all_told &= cpus.is_some();
        let cpus: CpuSet = cpus.unwrap_or_default().iter().filter(|cpu| online.contains(*cpu)).collect();
        twice.extend(cpus.iter().filter(|cpu| placed.contains(*cpu)));
        let cpus = cpus.iter().filter(|cpu| !placed.contains(*cpu)).collect();
        let mut cell = topology.cell(i32::from(id), &cpus, facts);
        placed.extend(cpus.iter());
        let whole = (count == 1).then_some("proc/meminfo");
        memory::describe(tree, &folder, whole, &mut cell, facts);
        cell.distances = distances(tree, &folder, count, facts);
        facts.numa_cells.push(cell);
    }
    let cellless: CpuSet = online.iter().filter(|cpu| !placed.contains(*cpu)).collect();
    if !twice.is_empty() {
        facts.odd.push(format!(
            "CPUs {twice} are in several NUMA cells at once: each counts in the first that lists it"
        ));
    }
    if count > 0 && all_told && !cellless.is_empty() {
        facts.odd.push(format!("CPUs {cellless} are online and in no NUMA cell: no desktop gets them"));
    }
    memory::compare(facts);
    count > 0
}

/// The distances of a cell to each of `count` cells; none where the kernel tells another number of them.
fn distances(tree: &Tree, folder: &str, count: usize, facts: &mut HostFacts) -> Vec<i32> {
    let Some(text) = tree.text(&format!("{folder}/distance")) else { return vec![] };
    let Some(mut distances) = cpu::distances(&text).filter(|distances| distances.len() == count) else {
        facts.odd.push(format!("the distances in {folder}/distance are not those of {count} NUMA cells"));
        return vec![];
    };
    distances.truncate(CELLS);
    distances
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
    let mut cell = topology.cell(0, online, facts);
    cell.memory_mib = memory_kib.unwrap_or_default() / 1024;
    memory::hugepages(tree, "sys/kernel/mm/hugepages", &mut cell, facts);
    cell.distances = vec![10];
    facts.numa_cells.push(cell);
}

fn cpu_number(name: &str) -> Option<u32> {
    name.strip_prefix("cpu")?.parse::<u32>().ok().filter(|cpu| *cpu < CpuSet::LIMIT)
}

/// The CPUs that have a folder; `None` when none has.
fn folders(tree: &Tree) -> Option<CpuSet> {
    let names = tree.names(CPUS, |name| cpu_number(name).is_some());
    let cpus: CpuSet = names.iter().filter_map(|name| cpu_number(name)).collect();
    (!cpus.is_empty()).then_some(cpus)
}

/// Very old kernels, and some captures, have no list: the folders are the list.
fn by_folders(tree: &Tree) -> Option<CpuSet> {
    // A CPU that is switched off has no topology.
    let is_online = |cpu: &u32| {
        let folder = format!("{CPUS}/cpu{cpu}");
        tree.exists(&format!("{folder}/topology"))
            || tree.line(&format!("{folder}/online")).as_deref() == Some("1")
    };
    let online: CpuSet = folders(tree)?.iter().filter(is_online).collect();
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
    /// CPUs of which nothing tells with whom they share a core.
    silent: CpuSet,
}

impl Topology<'_> {
    fn cell(&mut self, id: i32, cpus: &CpuSet, facts: &mut HostFacts) -> NumaCell {
        let siblings: BTreeMap<u32, CpuSet> =
            cpus.iter().filter_map(|cpu| Some((cpu, self.siblings(cpu)?))).collect();
        let cores = cpu::cores(cpus, |cpu| siblings.get(&cpu).cloned());
        let is_told = |cpu: &u32| siblings.values().any(|siblings| siblings.contains(*cpu));
        self.silent.extend(cpus.iter().filter(|cpu| !siblings.contains_key(cpu) && !is_told(cpu)));
        let firsts: Vec<u32> = cores.iter().filter_map(|core| core.iter().next()).collect();
        let sockets: BTreeSet<i32> = firsts.iter().filter_map(|cpu| self.socket(*cpu)).collect();
        if sockets.len() > SOCKETS {
            facts
                .incomplete
                .push(format!("{} sockets of NUMA cell {id}: the first {SOCKETS} are shown", sockets.len()));
        }
        let (caches, count) = caches::of_cell(self.tree, &firsts, cpus);
        if caches.len() < count {
            facts
                .incomplete
                .push(format!("{count} caches of NUMA cell {id}: the first {} are shown", caches.len()));
        }
        let sockets = sockets.into_iter().take(SOCKETS).collect();
        NumaCell { id, cores, sockets, caches, ..NumaCell::default() }
    }

    fn siblings(&self, cpu: u32) -> Option<CpuSet> {
        if let Some(cores) = &self.given {
            let core = cores.get(&cpu)?;
            return Some(cores.iter().filter(|(_, other)| *other == core).map(|(cpu, _)| *cpu).collect());
        }
        let file = |name: &str| self.tree.text(&format!("{CPUS}/cpu{cpu}/topology/{name}"));
        let list = |name: &str| file(name).and_then(|text| cpu::list(&text)).filter(|cpus| !cpus.is_empty());
        let mask = |name: &str| file(name).and_then(|text| cpu::mask(&text)).filter(|cpus| !cpus.is_empty());
        list("thread_siblings_list")
            .or_else(|| list("core_cpus_list"))
            .or_else(|| mask("thread_siblings"))
            .or_else(|| mask("core_cpus"))
    }

    fn socket(&self, cpu: u32) -> Option<i32> {
        if let Some(cores) = &self.given {
            return cores.get(&cpu).map(|(socket, _)| *socket);
        }
        cpu::socket(&self.tree.text(&format!("{CPUS}/cpu{cpu}/topology/physical_package_id"))?)
    }
}
