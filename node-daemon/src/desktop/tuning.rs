//! What became of each tuning asked for. Pure.

use gpudesk_crds::{
    Compute, DesktopTemplate,
    desktop::TuningResult,
    desktop_template::{Cpu, MachineType},
    types::PageSize,
};

use crate::domain::Kind;

/// Each tuning asked for and whether it is in effect; in the order of their names in the API.
pub fn results(compute: &Compute, template: &DesktopTemplate, cpu: &Cpu, kind: Kind) -> Vec<TuningResult> {
    let mut results = vec![];
    let mut say = |name: &str, applied: bool, message: String| {
        let (applied, message) = match kind {
            Kind::Test => (false, "this host is simulated: no machine runs".into()),
            Kind::Kvm | Kind::Qemu => (applied, message),
        };
        results.push(TuningResult { name: name.into(), applied, message: Some(message) });
    };
    if !compute.vcpu_pins.is_empty() {
        let to = if compute.threads_only { " to single hardware threads" } else { "" };
        say("CpuPinning", true, format!("{} vCPUs pinned{to}", compute.vcpu_pins.len()));
    }
    let asked = template.spec.memory.hugepages;
    match compute.page_size {
        PageSize::None if asked != PageSize::None => {
            say("Hugepages", false, format!("ordinary pages instead of {asked}: not enough were free"));
        }
        PageSize::None => {}
        size => say("Hugepages", true, format!("{size} pages")),
    }
    let cells: Vec<String> = compute.numa_cells.iter().map(ToString::to_string).collect();
    let shown = match template.spec.machine.machine_type {
        MachineType::Q35 => compute.guest_cells.len(),
        MachineType::Microvm => 0,
    };
    match cells.len() {
        0 => {}
        _ if compute.numa_strict => say("NumaMemory", true, format!("cells {} only", cells.join(","))),
        1 => say("NumaMemory", true, format!("cell {} preferred", cells.join(","))),
        _ if shown > 0 => say("NumaMemory", true, format!("cells {} preferred", cells.join(","))),
        _ => say("NumaMemory", false, "a preference for several cells is not possible".into()),
    }
    match (compute.guest_cells.len(), shown) {
        (0, _) => {}
        (_, 0) => say("GuestNuma", false, "a microvm cannot show NUMA cells to its guest".into()),
        (_, shown) => say("GuestNuma", true, format!("the guest sees {shown} cells")),
    }
    if let Some(cpus) = &compute.emulator_cpus {
        say("EmulatorPinning", true, format!("CPUs {cpus}"));
    }
    let of_host = cpu.model.starts_with("host-");
    if of_host && kind == Kind::Qemu {
        say("CpuModel", false, format!("{} needs KVM: Nehalem stands in under plain emulation", cpu.model));
    } else {
        say("CpuModel", true, cpu.model.clone());
    }
    if template.spec.machine.hyperv {
        if kind == Kind::Qemu {
            say("HyperV", false, "the enlightenments need KVM".into());
        } else {
            say("HyperV", true, "on".into());
        }
    }
    results
}
