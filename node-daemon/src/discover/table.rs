//! A `GpuNode` as tables for people.

use std::fmt::Write;

use comfy_table::{Table, presets::NOTHING};
use gpudesk_crds::{
    GpuNodeStatus,
    conditions::Reason,
    gpu_node_status::{Device, DeviceKind, HostDevice, IommuGroup},
    types::CpuSet,
};

/// NUMA cells, cards, network cards and drives, and what stands in the way.
pub(super) fn print(status: &GpuNodeStatus) -> String {
    let mut text = part(&cells(status));
    text += &if status.devices.is_empty() { "No cards.\n\n".into() } else { part(&cards(status)) };
    let refused = refusals(&status.devices);
    if !refused.is_empty() {
        text.extend([refused.as_str(), "\n"]);
    }
    if !status.host_devices.is_empty() {
        text += &part(&host_devices(status));
    }
    for condition in &status.conditions {
        if condition.status != "True" {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{}: {}", condition.type_, condition.message);
        }
    }
    for condition in &status.conditions {
        let silent =
            [Reason::NotNeeded.as_str(), Reason::Simulated.as_str()].contains(&condition.reason.as_str());
        if condition.status == "True" && !condition.message.is_empty() && !silent {
            let _ = writeln!(text, "{} (fine): {}", condition.type_, condition.message);
        }
    }
    text
}

/// The lines of a table, without blanks at their ends, and an empty line.
fn part(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).chain(["\n".into()]).collect()
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(head.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

fn cells(status: &GpuNodeStatus) -> Table {
    let mut table = table(&["CELL", "SOCKETS", "CORES", "CPUS", "CACHES", "MEMORY MiB", "HUGEPAGES"]);
    for cell in &status.numa_cells {
        let sockets: Vec<String> = cell.sockets.iter().map(ToString::to_string).collect();
        let pages: Vec<String> =
            cell.hugepages.iter().map(|pages| format!("{} x {}", pages.total, pages.size)).collect();
        table.add_row([
            cell.id.to_string(),
            or_dash(sockets.join(",")),
            cell.cores.len().to_string(),
            cell.cores.iter().map(CpuSet::len).sum::<usize>().to_string(),
            cell.caches.len().to_string(),
            cell.memory_mib.to_string(),
            or_dash(pages.join(", ")),
        ]);
    }
    table
}

fn cards(status: &GpuNodeStatus) -> Table {
    let mut table = table(&["ADDRESS", "PRODUCT", "CELL", "GROUP", "DRIVER", "VFS", "HEALTH", "MODES"]);
    for card in &status.devices {
        let vfs = card.sriov.map_or(String::new(), |sriov| format!("{}/{}", sriov.num_vfs, sriov.total_vfs));
        table.add_row([
            card.pci_address.to_string(),
            product(card),
            number(card.numa_cell),
            group(card.iommu_group.as_ref()),
            or_dash(card.driver.clone().unwrap_or_default()),
            or_dash(vfs),
            format!("{:?}", card.health.state),
            modes(card),
        ]);
    }
    table
}

fn host_devices(status: &GpuNodeStatus) -> Table {
    let mut table = table(&["ADDRESS", "DEVICE", "CELL", "GROUP", "DRIVER", "NAMES", "USABLE"]);
    for device in &status.host_devices {
        table.add_row([
            device.pci_address.to_string(),
            device.product.clone(),
            number(device.numa_cell),
            group(device.iommu_group.as_ref()),
            or_dash(device.driver.clone().unwrap_or_default()),
            or_dash(device.names.join(", ")),
            usable(device),
        ]);
    }
    table
}

fn usable(device: &HostDevice) -> String {
    match (&device.message, device.usable) {
        (_, true) => "yes".into(),
        (Some(message), false) => format!("no: {message}"),
        (None, false) => "no".into(),
    }
}

fn group(group: Option<&IommuGroup>) -> String {
    group.map_or("-".into(), |group| format!("{}{}", group.id, if group.viable { "" } else { " (shared)" }))
}

fn number(number: Option<i32>) -> String {
    number.map_or("-".into(), |number| number.to_string())
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

fn modes(card: &Device) -> String {
    let supported = card.supports.iter().filter(|support| support.supported);
    let modes: Vec<String> = supported.map(|support| support.mode.to_string()).collect();
    if modes.is_empty() { "none".into() } else { modes.join(", ") }
}

/// What a card is called, and what it is where it is no GPU.
fn product(card: &Device) -> String {
    match card.kind {
        DeviceKind::Gpu => card.product.clone(),
        DeviceKind::Display => format!("{} (no GPU, a display controller)", card.product),
        DeviceKind::Accelerator => format!("{} (no GPU, an accelerator)", card.product),
        DeviceKind::Unknown => format!("{} (not known to be a GPU)", card.product),
    }
}

/// Why cards work in no mode, or why no desktop gets them: a line for each reason, with its cards.
fn refusals(cards: &[Device]) -> String {
    let mut lines: Vec<(String, Vec<String>)> = vec![];
    let mut say = |card: &Device, what: String| {
        let address = card.pci_address.to_string();
        match lines.iter_mut().find(|(said, _)| *said == what) {
            Some((_, addresses)) => addresses.push(address),
            None => lines.push((what, vec![address])),
        }
    };
    for card in cards {
        if card.supports.iter().all(|support| !support.supported) {
            for support in &card.supports {
                let reason = support.reason.as_deref().unwrap_or("no reason is known");
                say(card, format!(" {}: {reason}", support.mode));
            }
        }
        if let Some(why) = &card.unavailable {
            say(card, format!(": {why}"));
        }
    }
    lines.iter().flat_map(|(what, addresses)| [addresses.join(", "), what.clone(), "\n".into()]).collect()
}
