//! A plan as tables for people. Pure.

use std::fmt::Write;

use comfy_table::{Table, presets::NOTHING};
use gpudesk_crds::{Compute, GpuAllocation, types::ShareMode};

use super::{
    document::{
        Defragmentation, DesktopPlan, FewestCards, NodeUsage, PlannedDesktop, PlannedMove, Room, State,
    },
    usage::share_text,
};

/// How many of those that wait for one reason are named.
const NAMED: usize = 5;

/// All of it: desktops, why some wait, moves, machines with their cards, and room.
pub fn print(plan: &DesktopPlan) -> String {
    let DesktopPlan {
        api_version: _,
        kind: _,
        summary,
        desktops,
        defragmentation,
        nodes,
        room,
        fewest_cards,
        // Said on standard error.
        notes: _,
    } = plan;
    let mut text = String::new();
    if !desktops.is_empty() {
        text += &part(&of_desktops(desktops));
    }
    text += &why_pending(desktops);
    for one in defragmentation {
        text += &moves(one);
    }
    text += &part(&of_nodes(nodes));
    if nodes.iter().any(|node| !node.cards.is_empty()) {
        text += &part(&of_cards(nodes));
    }
    if !room.is_empty() {
        text += &part(&of_room(room));
    }
    if !fewest_cards.is_empty() {
        let mut cards = table(&["PRODUCT", "CARDS", "WOULD DO WITH"]);
        for FewestCards { product, cards: all, needed } in fewest_cards {
            cards.add_row([product.clone(), all.to_string(), needed.to_string()]);
        }
        text += &part(&cards);
    }
    let held = if summary.held > 0 { format!("{} held, ", summary.held) } else { String::new() };
    let stopped = if summary.stopped > 0 { format!(", {} stopped", summary.stopped) } else { String::new() };
    let _ = writeln!(
        text,
        "{} desktops: {held}{} placed, {} pending{stopped}",
        summary.desktops, summary.placed, summary.pending
    );
    text
}

/// The lines of a table, without blanks at their ends, and an empty line.
pub fn part(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).chain(["\n".into()]).collect()
}

/// An empty table with a head.
pub fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(head.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The reasons, each with those that wait for it.
fn why_pending(desktops: &[PlannedDesktop]) -> String {
    let mut reasons: Vec<(&str, Vec<String>)> = vec![];
    for desktop in desktops.iter().filter(|desktop| desktop.state == State::Pending) {
        let why = desktop.message.as_deref().unwrap_or("no place");
        match reasons.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(desktop.full_name()),
            None => reasons.push((why, vec![desktop.full_name()])),
        }
    }
    let mut text = String::new();
    for (why, names) in &reasons {
        let first = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        // Writing to a String does not fail.
        let _ = match names.len().checked_sub(NAMED) {
            Some(more @ 1..) => writeln!(text, "{first} and {more} more: {why}"),
            _ => writeln!(text, "{first}: {why}"),
        };
    }
    if !reasons.is_empty() {
        text.push('\n');
    }
    text
}

fn of_desktops(desktops: &[PlannedDesktop]) -> Table {
    let mut table = table(&["DESKTOP", "STATE", "NODE", "CARDS", "CELLS"]);
    for desktop in desktops {
        let state = match desktop.state {
            State::Held => "held",
            State::Placed => "placed",
            State::Pending => "pending",
            State::Stopped => "stopped",
        };
        table.add_row([
            desktop.full_name(),
            state.into(),
            or_dash(desktop.node.clone().unwrap_or_default()),
            or_dash(shares(&desktop.gpus, "\n")),
            desktop.compute.as_ref().map_or("-".into(), cells),
        ]);
    }
    table
}

/// Address, and type with start position, of each share.
pub fn shares(gpus: &[GpuAllocation], between: &str) -> String {
    gpus.iter().map(share).collect::<Vec<_>>().join(between)
}

fn share(gpu: &GpuAllocation) -> String {
    match gpu.mode {
        ShareMode::Passthrough => format!("{} {} (whole card)", gpu.device, gpu.product),
        ShareMode::Vgpu | ShareMode::Mig | ShareMode::VirtualFunctions => {
            format!("{} {}", gpu.device, share_text(&gpu.type_name, gpu.start))
        }
    }
}

/// NUMA cells of CPUs and memory.
pub fn cells(compute: &Compute) -> String {
    if compute.numa_cells.is_empty() {
        return "any".into();
    }
    compute.numa_cells.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

fn moves(one: &Defragmentation) -> String {
    let count = one.moves.len();
    let what = if count == 1 { "move" } else { "moves" };
    let mut text = format!("{} would fit on {} after {count} {what}:\n", one.desktop, one.node);
    one.moves.iter().for_each(|step| text += &of_move(step));
    let _ = writeln!(text, "  then {} gets {}\n", one.desktop, or_dash(shares(&one.gpus, ", ")));
    text
}

/// A move in one line, set in by two blanks.
pub fn of_move(step: &PlannedMove) -> String {
    let PlannedMove { desktop, from, from_gpus, to, to_gpus } = step;
    let (before, after) = (or_dash(shares(from_gpus, ", ")), or_dash(shares(to_gpus, ", ")));
    format!("  {desktop} from {from} {before} to {to} {after}\n")
}

fn of_nodes(nodes: &[NodeUsage]) -> Table {
    let mut table = table(&[
        "NODE",
        "DESKTOPS",
        "GPUS",
        "FREE",
        "SLICES",
        "DEDICATED CPUS",
        "SHARED VCPUS",
        "MEMORY MiB",
    ]);
    for node in nodes {
        table.add_row([
            node.name.clone(),
            node.desktops.to_string(),
            node.gpus.to_string(),
            node.free_gpus.to_string(),
            format!("{}/{}", node.slices_used, node.slices_total),
            format!("{}/{}", node.dedicated_cpus, node.cpus),
            node.shared_vcpus.to_string(),
            format!("{}/{}", node.memory_used_mib, node.memory_total_mib),
        ]);
    }
    table
}

fn of_cards(nodes: &[NodeUsage]) -> Table {
    let mut table = table(&["NODE", "CARD", "PRODUCT", "SLICES", "STRANDED", "SHARES"]);
    for (node, card) in nodes.iter().flat_map(|node| node.cards.iter().map(move |card| (node, card))) {
        let shares = match &card.unavailable {
            Some(why) if card.shares.is_empty() => format!("unavailable: {why}"),
            _ => or_dash(counted(&card.shares)),
        };
        table.add_row([
            node.name.clone(),
            card.address.to_string(),
            card.product.clone(),
            format!("{}/{}", card.slices_used, card.slices_total),
            percent(card.stranded_permille),
            shares,
        ]);
    }
    table
}

/// With one digit after the point, where it is not zero.
fn percent(permille: i32) -> String {
    match permille % 10 {
        0 => format!("{}%", permille / 10),
        tenths => format!("{}.{tenths}%", permille / 10),
    }
}

/// Equal shares counted, in their order: `3x L40S-8Q`.
fn counted(shares: &[String]) -> String {
    let mut counts: Vec<(&String, usize)> = vec![];
    for share in shares {
        match counts.last_mut() {
            Some((last, count)) if *last == share => *count += 1,
            _ => counts.push((share, 1)),
        }
    }
    let words = |(share, count): (&String, usize)| {
        if count == 1 { share.clone() } else { format!("{count}x {share}") }
    };
    counts.into_iter().map(words).collect::<Vec<_>>().join(", ")
}

fn of_room(room: &[Room]) -> Table {
    let mut table = table(&["ROOM FOR", "NAME", "MORE", "WHEN REPACKED"]);
    for one in room {
        let figure = |count: i64| if one.at_least { format!("{count} or more") } else { count.to_string() };
        table.add_row([one.kind.clone(), one.name.clone(), figure(one.more), figure(one.more_when_repacked)]);
    }
    table
}
