//! The answer for people. Pure.

use std::fmt::Write;

use gpudesk_crds::DecisionRecord;

use super::document::{Deleting, DesktopExplanation, Said};
use crate::plan::{
    document::{PlannedDesktop, State},
    table::{cells, of_move, part, shares, table},
};

/// All of it.
pub fn print(answer: &DesktopExplanation) -> String {
    let DesktopExplanation {
        api_version: _,
        kind: _,
        desktop,
        planned,
        deleting,
        allocated,
        ready,
        nodes,
        nearest,
        // Said on standard error.
        notes: _,
    } = answer;
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = match desktop.state {
        State::Held => writeln!(text, "{} is on {}.", desktop.full_name(), node(desktop)),
        State::Placed if *planned => {
            writeln!(text, "{} would get a place on {}.", desktop.full_name(), node(desktop))
        }
        State::Placed => writeln!(
            text,
            "{} has no place yet, and would get one on {} now.",
            desktop.full_name(),
            node(desktop)
        ),
        State::Stopped => writeln!(text, "{} should not run, and holds nothing.", desktop.full_name()),
        State::Pending => writeln!(text, "{} is pending.", desktop.full_name()),
    };
    if let Some(Deleting { since, waits_for }) = deleting {
        let _ = writeln!(text, "It is being deleted since {since}, and waits for {waits_for}.");
    }
    text.push('\n');
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<14}{value}");
        }
    };
    line("Now:", desktop.message.as_deref().unwrap_or_default());
    if let Some(said) = allocated {
        line("Operator says:", &format!(" {} ({})", said.message, said.reason));
    }
    if let Some(Said { status, reason, message }) = ready {
        line("Ready:", &format!("{status}: {message} ({reason})"));
    }
    line("Cards:", &shares(&desktop.gpus, ", "));
    if let Some(compute) = &desktop.compute {
        line("NUMA cells:", &cells(compute));
        let vcpus = compute.cores * compute.threads_per_core;
        let how = if compute.vcpu_pins.is_empty() { "shared" } else { "dedicated" };
        line("CPUs:", &format!("{vcpus} vCPUs, {how}"));
        line("Memory:", &format!("{} MiB, hugepages {}", compute.memory_mib, compute.page_size));
    }
    for device in &desktop.host_devices {
        line("Device:", &format!("{} {}", device.device, device.name));
    }
    if let Some(partition) = desktop.fabric_partition {
        line("Fabric:", &format!("partition {partition}"));
    }
    let taken = if desktop.state == State::Placed { "would be" } else { "was" };
    text += &desktop.decision.as_ref().map(|decision| record(decision, taken)).unwrap_or_default();
    if !nodes.is_empty() {
        let mut rows = table(&["NODE", "WHY NOT"]);
        for one in nodes {
            rows.add_row([&one.node, &one.reason]);
        }
        let _ = write!(text, "\n{}", part(&rows));
    }
    if let Some(nearest) = nearest {
        let count = nearest.moves.len();
        let what = if count == 1 { "desktop" } else { "desktops" };
        let _ = writeln!(text, "Nearest: fits on {} after moving {count} {what}:", nearest.node);
        nearest.moves.iter().for_each(|step| text += &of_move(step));
    }
    text
}

fn node(desktop: &PlannedDesktop) -> &str {
    desktop.node.as_deref().unwrap_or("no node")
}

fn record(record: &DecisionRecord, taken: &str) -> String {
    let DecisionRecord { nodes, filtered, best } = record;
    let mut text = format!("\nOf {nodes} nodes");
    if filtered.is_empty() {
        text += " none was left out.\n";
    } else {
        text += " these were left out:\n";
        for one in filtered {
            let _ = writeln!(text, "  {} {}", one.nodes, one.reason);
        }
    }
    if !best.is_empty() {
        let _ = writeln!(text, "The best of the others, the first of which {taken} taken:");
        for one in best {
            let _ = writeln!(text, "  {}: {}", one.node, one.score);
        }
    }
    text
}
