//! Memory and hugepages.

use gpudesk_crds::gpu_node_status::Hugepages;

use crate::{topology::memory, tree::Tree};

/// The memory that a `meminfo` file tells, in KiB.
pub(super) fn total_kib(tree: &Tree, path: &str) -> Option<i64> {
    memory::meminfo_kib(&tree.text(path)?, "MemTotal")
}

/// The hugepages, per size that the kernel has.
pub(super) fn hugepages(tree: &Tree, folder: &str) -> Vec<Hugepages> {
    let names = tree.names(folder, |name| memory::hugepage_size(name).is_some());
    let pages = names.iter().filter_map(|name| {
        let dir = tree.dir(&format!("{folder}/{name}"))?;
        let count = |file| dir.text(file).and_then(|text| memory::count(&text));
        // None reserved is another thing than a size that the kernel does not have.
        let total = count("nr_hugepages")?;
        Some(Hugepages {
            size: memory::hugepage_size(name)?,
            total,
            free: count("free_hugepages"),
            surplus: count("surplus_hugepages").filter(|surplus| *surplus > 0),
        })
    });
    pages.collect()
}
