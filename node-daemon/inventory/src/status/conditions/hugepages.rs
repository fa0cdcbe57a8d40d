//! Hugepages: `HugepagesReserved`.

use std::collections::BTreeSet;

use gpudesk_crds::{
    conditions::Reason,
    gpu_node_status::{Hugepages, NumaCell},
    types::PageSize,
};

use super::{Findings, PART, Say, is_whole, message};

/// Hugepages are reserved on every NUMA cell that runs desktops, or on none.
///
/// A machine without hugepages is not called wrong: most desktops do without, and one that asks for
/// them says itself why it waits. Pages of a size on some cells and not on others are: desktops that
/// ask for them then crowd on some cells, and the cards of the others stay idle.
pub(super) fn reserved(findings: &Findings<'_>) -> Say {
    let cells: Vec<&NumaCell> = findings
        .facts
        .numa_cells
        .iter()
        .filter(|cell| !cell.cores.is_empty() && !cell.hugepages.is_empty())
        .collect();
    if cells.is_empty() {
        return if is_whole(findings) {
            Say::not_needed("the kernel offers no hugepages on a cell with CPUs")
        } else {
            Say::unknown(PART)
        };
    }
    let has = |cell: &NumaCell, size: PageSize| {
        cell.hugepages.iter().any(|pages: &Hugepages| pages.size == size && pages.total > 0)
    };
    let sizes: BTreeSet<PageSize> = cells
        .iter()
        .flat_map(|cell| &cell.hugepages)
        .filter(|pages| pages.total > 0)
        .map(|pages| pages.size)
        .collect();
    if sizes.is_empty() {
        return Say::not_needed(
            "no hugepages are reserved: desktops use ordinary pages, and one that asks for hugepages waits",
        );
    }
    let lacking: Vec<String> = sizes
        .iter()
        .flat_map(|size| {
            let cells = cells.iter().filter(|cell| !has(cell, *size));
            cells.map(move |cell| format!("of {size} on cell {}", cell.id))
        })
        .collect();
    if lacking.is_empty() {
        return Say::expected();
    }
    let first = sizes.iter().find_map(|size| {
        let cell = cells.iter().find(|cell| !has(cell, *size))?;
        let kib = size.mib().unwrap_or_default() * 1024;
        Some(format!("/sys/devices/system/node/node{}/hugepages/hugepages-{kib}kB/nr_hugepages", cell.id))
    });
    let message = format!(
        "no hugepages {}, although other cells have them: write their number to {}, or reserve them on the \
         kernel's command line with hugepages=<cell>:<number>",
        message::listed(&lacking),
        first.unwrap_or_default(),
    );
    Say::no(Reason::HugepagesMissing, message)
}
