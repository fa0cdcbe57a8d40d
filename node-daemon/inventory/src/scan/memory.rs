//! Memory and hugepages.

use gpudesk_crds::gpu_node_status::{Hugepages, NumaCell};

use crate::{
    topology::{HostFacts, memory},
    tree::Tree,
};

/// The memory that a `meminfo` file tells, in KiB.
pub(super) fn total_kib(tree: &Tree, path: &str) -> Option<i64> {
    memory::meminfo_kib(&tree.text(path)?, "MemTotal")
}

/// Memory and hugepages of the cell in `folder`; the memory by `whole`, the machine's own, where the
/// cell does not tell it.
pub(super) fn describe(
    tree: &Tree,
    folder: &str,
    whole: Option<&str>,
    cell: &mut NumaCell,
    facts: &mut HostFacts,
) {
    let own = format!("{folder}/meminfo");
    let memory_kib = total_kib(tree, &own).or_else(|| total_kib(tree, whole?));
    if memory_kib.is_none() {
        facts.incomplete.push(format!("the memory of NUMA cell {}: {own} is missing", cell.id));
    }
    cell.memory_mib = memory_kib.unwrap_or_default() / 1024;
    hugepages(tree, &format!("{folder}/hugepages"), cell, facts);
}

/// The hugepages, per size that the kernel has. Of sizes that no desktop uses it is told what they take.
pub(super) fn hugepages(tree: &Tree, folder: &str, cell: &mut NumaCell, facts: &mut HostFacts) {
    for name in tree.names(folder, |name| memory::page_kib(name).is_some()) {
        let dir = tree.dir(&format!("{folder}/{name}"));
        let count = |file: &str| dir.as_ref()?.text(file).and_then(|text| memory::count(&text));
        // None reserved is another thing than a size of which nothing can be read.
        let Some(total) = count("nr_hugepages") else {
            facts.incomplete.push(format!(
                "the hugepages of NUMA cell {}: {folder}/{name}/nr_hugepages is missing",
                cell.id
            ));
            continue;
        };
        let Some(size) = memory::hugepage_size(&name) else {
            let mib = memory::page_kib(&name).unwrap_or_default().saturating_mul(total) / 1024;
            cell.other_hugepages_mib = cell.other_hugepages_mib.saturating_add(mib);
            continue;
        };
        cell.hugepages.push(Hugepages {
            size,
            total,
            free: count("free_hugepages"),
            surplus: count("surplus_hugepages").filter(|surplus| *surplus > 0),
        });
    }
}

/// Cells that tell no hugepages where others do.
pub(super) fn compare(facts: &mut HostFacts) {
    let runs = |cell: &&NumaCell| !cell.cores.is_empty();
    if facts.numa_cells.iter().filter(runs).all(|cell| cell.hugepages.is_empty()) {
        return;
    }
    let silent = facts.numa_cells.iter().filter(runs).filter(|cell| cell.hugepages.is_empty());
    let silent: Vec<String> = silent
        .map(|cell| {
            format!("the hugepages of NUMA cell {} are not told, although those of others are", cell.id)
        })
        .collect();
    facts.incomplete.extend(silent);
}
