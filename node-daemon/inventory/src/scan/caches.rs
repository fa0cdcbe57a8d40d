//! Caches of the last level, found per CPU: chips have cores without the cache that others have.

use std::cmp::Reverse;

use gpudesk_crds::{gpu_node_status::CacheDomain, types::CpuSet};

use super::cpus::CPUS;
use crate::{
    topology::{cpu, kernel_text},
    tree::Tree,
};

/// Most caches of a cell, as the API has it.
const CACHES: usize = 256;

/// The last-level caches of the CPUs of a cell, by the first CPU of each core. A cache whose CPUs the
/// kernel does not tell is left out. Also how many there are.
pub(super) fn of_cell(tree: &Tree, firsts: &[u32], cpus: &CpuSet) -> (Vec<CacheDomain>, usize) {
    let mut seen = CpuSet::default();
    let mut caches: Vec<CacheDomain> = vec![];
    for first in firsts {
        if seen.contains(*first) {
            continue;
        }
        let Some((folder, level, shared)) = last_level(tree, *first) else { continue };
        let shared: CpuSet = shared.iter().filter(|cpu| cpus.contains(*cpu)).collect();
        if caches.iter().any(|known| known.cpus == shared) {
            continue;
        }
        seen.extend(shared.iter());
        let size_kib = tree.text(&format!("{folder}/size")).and_then(|text| cpu::cache_kib(&text));
        caches.push(CacheDomain { level, cpus: shared, size_kib });
    }
    let count = caches.len();
    caches.truncate(CACHES);
    (caches, count)
}

/// The cache of the highest level of which the kernel tells that this CPU shares it: its folder, its level
/// and who shares it. Of caches of one level the one that holds data.
fn last_level(tree: &Tree, cpu: u32) -> Option<(String, i32, CpuSet)> {
    let caches = format!("{CPUS}/cpu{cpu}/cache");
    let number = |name: &str| name.strip_prefix("index").and_then(|number| number.parse::<u32>().ok());
    let found = tree.names(&caches, |name| number(name).is_some());
    let found = found.iter().filter_map(|name| {
        let folder = format!("{caches}/{name}");
        let level: Option<i32> = kernel_text::number(&tree.text(&format!("{folder}/level"))?);
        Some((level.filter(|level| (1..=9).contains(level))?, Reverse(number(name)?), folder))
    });
    let mut found: Vec<(i32, Reverse<u32>, String)> = found.collect();
    found.sort();
    let told = found.into_iter().rev().filter_map(|(level, _, folder)| {
        let list = tree.text(&format!("{folder}/shared_cpu_list")).and_then(|text| cpu::list(&text));
        let mask = || cpu::mask(&tree.text(&format!("{folder}/shared_cpu_map"))?);
        let shared = list.or_else(mask).filter(|shared| shared.contains(cpu))?;
        Some((folder, level, shared))
    });
    let mut told = told.peekable();
    let highest = told.peek()?.1;
    let mut of_highest: Vec<_> = told.take_while(|(_, level, _)| *level == highest).collect();
    let is_instruction =
        |folder: &str| tree.line(&format!("{folder}/type")).as_deref() == Some("Instruction");
    if of_highest.len() > 1 {
        of_highest.sort_by_key(|(folder, _, _)| is_instruction(folder));
    }
    of_highest.into_iter().next()
}
