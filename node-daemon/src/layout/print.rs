//! A layout as a table or as YAML.

use std::fmt::Write;

use comfy_table::{Table, presets::NOTHING};

use super::Plan;

pub(super) fn yaml(plan: &Plan) -> anyhow::Result<String> {
    Ok(gpudesk_crds::yaml::to_string(plan)?)
}

pub(super) fn table(plan: &Plan) -> String {
    let mut text = format!("{} {}, {}", plan.card, plan.product, plan.mode);
    if plan.mixed_size {
        text += ", sizes mixed";
    }
    if let Some(units) = plan.units {
        let _ = write!(text, ", {units} units");
    }
    text += "\n\n";
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["TYPE", "START", "SIZE", "VGPUS", "STATE"]);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let number = |number: Option<i32>| number.map_or_else(|| "-".into(), |number| number.to_string());
    for line in &plan.shares {
        let vgpus: Vec<String> =
            line.vgpus.iter().map(|vgpu| format!("{} x {}", vgpu.count, vgpu.type_name)).collect();
        table.add_row([
            line.type_name.clone(),
            number(line.start),
            number(line.size),
            if vgpus.is_empty() { "-".into() } else { vgpus.join(", ") },
            if line.there { "there".into() } else { "new".to_owned() },
        ]);
    }
    for line in table.lines() {
        text.extend([line.trim_end(), "\n"]);
    }
    if !plan.steps.is_empty() {
        text += "\nSteps:\n";
    }
    for (number, step) in (1..).zip(&plan.steps) {
        let _ = writeln!(text, "{number:>3}. {step}");
    }
    if !plan.notes.is_empty() {
        text += "\n";
    }
    for note in &plan.notes {
        text.extend(["Note: ", note, "\n"]);
    }
    text
}
