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
        let Some((folder, level)) = last_level(tree, *first) else { continue };
        let Some(dir) = tree.dir(&folder) else { continue };
        let list = dir.text("shared_cpu_list").and_then(|text| cpu::list(&text));
        let Some(shared) = list.or_else(|| cpu::mask(&dir.text("shared_cpu_map")?)) else { continue };
        let shared: CpuSet = shared.iter().filter(|cpu| cpus.contains(*cpu)).collect();
        if !shared.contains(*first) || caches.iter().any(|known| known.cpus == shared) {
            continue;
        }
        seen.extend(shared.iter());
        let size_kib = dir.text("size").and_then(|text| cpu::cache_kib(&text));
        caches.push(CacheDomain { level, cpus: shared, size_kib });
    }
    let count = caches.len();
    caches.truncate(CACHES);
    (caches, count)
}

/// The folder of the highest level of this CPU, and that level. Of caches of one level the one that
/// holds data.
fn last_level(tree: &Tree, cpu: u32) -> Option<(String, i32)> {
    let caches = format!("{CPUS}/cpu{cpu}/cache");
    let number = |name: &str| name.strip_prefix("index").and_then(|number| number.parse::<u32>().ok());
    let found = tree.names(&caches, |name| number(name).is_some());
    let found = found.iter().filter_map(|name| {
        let folder = format!("{caches}/{name}");
        let level = kernel_text::number(&tree.text(&format!("{folder}/level"))?);
        Some((level.filter(|level| (1..=9).contains(level))?, Reverse(number(name)?), folder))
    });
    let mut found: Vec<(i32, Reverse<u32>, String)> = found.collect();
    found.sort();
    let highest = found.last()?.0;
    let of_highest = found.into_iter().rev().filter(|(level, _, _)| *level == highest);
    let folders: Vec<String> = of_highest.map(|(_, _, folder)| folder).collect();
    let holds_data =
        |folder: &&String| tree.line(&format!("{folder}/type")).as_deref() != Some("Instruction");
    let chosen = match folders.as_slice() {
        [only] => only,
        several => several.iter().find(holds_data).or(several.first())?,
    };
    Some((chosen.clone(), highest))
}
