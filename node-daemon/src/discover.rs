//! `discover`: what a host would show, without a cluster.
#![expect(clippy::disallowed_methods, reason = "adapter: conditions carry times")]

use std::fmt::Write;

use gpudesk_crds::{GpuNode, GpuNodeSpec, GpuNodeStatus, gpu_node_status::Device};
use jiff::Timestamp;

use crate::{
    cli::Output,
    host::source::HostSource,
    inventory::{self, Findings, HypervisorView},
};

/// The `GpuNode` that `source` would show. libvirt is not asked.
pub fn gpu_node(source: &HostSource, name: &str) -> GpuNode {
    let facts = source.facts();
    let hypervisor = HypervisorView::Silent("it was not asked".into());
    let status = inventory::status(&Findings {
        facts: &facts,
        simulated: source.is_simulated(),
        hypervisor: &hypervisor,
        gpu_driver_version: source.gpus().version(),
        instances: Ok(&[]),
        whole_cards: &[],
        spec: &GpuNodeSpec::default(),
        generation: None,
        before: None,
        now: Timestamp::now(),
    });
    GpuNode { status: Some(status), ..GpuNode::new(name, GpuNodeSpec::default()) }
}

/// The text of a `GpuNode`.
///
/// # Errors
/// When it cannot be written as YAML or JSON.
pub fn print(node: &GpuNode, output: Output) -> anyhow::Result<String> {
    Ok(match output {
        Output::Yaml => serde_yaml::to_string(node)?,
        Output::Json => format!("{}\n", serde_json::to_string_pretty(node)?),
        Output::Table => node.status.as_ref().map(table).unwrap_or_default(),
    })
}

fn table(status: &GpuNodeStatus) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line(format!("{:<6}{:<8}{:<10}{:<12}{}", "CELL", "CORES", "CPUS", "MEMORY MiB", "HUGEPAGES"));
    for cell in &status.numa_cells {
        let cpus: usize = cell.cores.iter().map(gpudesk_crds::types::CpuSet::len).sum();
        let pages: Vec<String> =
            cell.hugepages.iter().map(|pages| format!("{} x {}", pages.total, pages.size)).collect();
        line(format!(
            "{:<6}{:<8}{:<10}{:<12}{}",
            cell.id,
            cell.cores.len(),
            cpus,
            cell.memory_mib,
            pages.join(", ")
        ));
    }
    if status.devices.is_empty() {
        line("No cards.".into());
        return text;
    }
    line(format!("{:<14}{:<40}{:<6}{:<7}{:<12}{}", "ADDRESS", "PRODUCT", "CELL", "GROUP", "DRIVER", "MODES"));
    for card in &status.devices {
        let number = |number: Option<i32>| number.map_or("-".into(), |number| number.to_string());
        line(format!(
            "{:<14}{:<40}{:<6}{:<7}{:<12}{}",
            card.pci_address.to_string(),
            card.product,
            number(card.numa_cell),
            number(card.iommu_group.as_ref().map(|group| group.id)),
            card.driver.as_deref().unwrap_or("-"),
            modes(card),
        ));
    }
    text
}

fn modes(card: &Device) -> String {
    let supported = card.supports.iter().filter(|support| support.supported);
    let modes: Vec<String> = supported.map(|support| support.mode.to_string()).collect();
    if !modes.is_empty() {
        return modes.join(", ");
    }
    let reason = card.supports.iter().find_map(|support| support.reason.as_deref());
    reason.map_or("none".into(), |reason| format!("none ({reason})"))
}
