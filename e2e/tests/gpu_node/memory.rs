//! NUMA cells.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Node;

/// Memory, cores, sockets, caches, distances and reserved hugepages.
pub(crate) async fn same_cells(node: Arc<Node>) -> Result<()> {
    let shown = node.status["numaCells"].as_array().context("no cells")?;
    let cells = &node.host.topology.cells.cell;
    ensure!(shown.len() == 2 && cells.len() == 2, "{shown:?}");
    for (cell, libvirt) in shown.iter().zip(cells) {
        let context = || format!("{cell}, libvirt says {libvirt:?}");
        ensure!(cell["id"] == libvirt.id, "{}", context());
        ensure!(cell["memoryMiB"].as_u64() == Some(libvirt.memory.kib / 1024), "{}", context());
        let distances: Vec<i32> = libvirt.distances.sibling.iter().map(|sibling| sibling.value).collect();
        ensure!(cell["distances"] == Value::from(distances), "{}", context());

        let cores: BTreeSet<_> = libvirt.cpus.cpu.iter().map(|cpu| cpus(&cpu.siblings)).collect();
        let shown_cores: BTreeSet<_> =
            cell["cores"].as_array().into_iter().flatten().filter_map(Value::as_str).map(cpus).collect();
        ensure!(cores == shown_cores, "{}", context());
        let all: BTreeSet<u32> = cores.into_iter().flatten().collect();
        let caches: BTreeSet<_> = (node.host.cache.bank.iter())
            .map(|bank| (bank.level, kib(bank.size, &bank.unit), cpus(&bank.cpus)))
            .filter(|(level, _, cpus)| *level == 3 && cpus.is_subset(&all))
            .collect();
        let shown_caches: BTreeSet<_> = (cell["caches"].as_array().into_iter().flatten())
            .filter_map(|cache| {
                let level = i32::try_from(cache["level"].as_i64()?).ok()?;
                Some((level, cache["sizeKiB"].as_i64()?, cpus(cache["cpus"].as_str()?)))
            })
            .collect();
        ensure!(!caches.is_empty() && caches == shown_caches, "{}: {caches:?}", context());
        let sockets: BTreeSet<i32> = libvirt.cpus.cpu.iter().map(|cpu| cpu.socket).collect();
        ensure!(cell["sockets"] == Value::from_iter(sockets), "{}", context());

        let large =
            libvirt.pages.iter().find(|pages| pages.size == 2048).context("libvirt has no 2 MiB pages")?;
        ensure!(large.count > 0, "{}", context());
        let shown_pages =
            cell["hugepages"].as_array().into_iter().flatten().find(|pages| pages["size"] == "2Mi");
        let shown_pages = shown_pages.with_context(context)?;
        ensure!(shown_pages["total"] == large.count && shown_pages["free"] == large.count, "{}", context());
    }
    Ok(())
}

/// The CPUs of a list such as `0-3,8`.
fn cpus(text: &str) -> BTreeSet<u32> {
    let parts = text.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
    });
    parts.flatten().collect()
}

fn kib(size: i64, unit: &str) -> i64 {
    if unit == "MiB" { size * 1024 } else { size }
}
