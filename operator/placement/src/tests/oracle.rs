//! A slow check of what was given on a node, written without the code that gives: counts units one
//! by one.

use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::{
    Allocation, GpuAllocation, GpuNode,
    gpu_node::VgpuPlacement,
    gpu_node_status::Device,
    types::{PageSize, PciAddress, ShareMode, VgpuSeries},
};

/// Gives up with a message when something does not hold.
macro_rules! must {
    ($holds:expr, $($why:tt)*) => {
        if !$holds {
            return Err(format!($($why)*));
        }
    };
}

/// Panics when `given`, all of it on `node`, is more than there is or more than may be.
pub(super) fn check(node: &GpuNode, given: &[&Allocation], overcommit: i64) {
    legal(node, given, overcommit).unwrap();
}

/// Whether `given`, all of it on `node`, is no more than there is and than may be.
pub(super) fn legal(node: &GpuNode, given: &[&Allocation], overcommit: i64) -> Result<(), String> {
    let status = node.status.as_ref().unwrap();
    let mut per_card: BTreeMap<PciAddress, Vec<&GpuAllocation>> = BTreeMap::new();
    let mut owner_of: BTreeMap<PciAddress, usize> = BTreeMap::new();
    for (owner, gpu) in
        given.iter().enumerate().flat_map(|(owner, a)| a.gpus.iter().map(move |gpu| (owner, gpu)))
    {
        per_card.entry(gpu.device).or_default().push(gpu);
        owner_of.insert(gpu.device, owner);
    }
    for allocation in given {
        one_board(node, allocation)?;
    }
    for (address, gpus) in &per_card {
        let device = status.devices.iter().find(|d| d.pci_address == *address).unwrap();
        check_card(device, gpus, mixes(node, device))?;
        if gpus[0].mode == ShareMode::Passthrough {
            for member in device.iommu_group.iter().flat_map(|group| &group.members) {
                let member = member.pci_address;
                // Two cards of a group may go to one machine, both whole.
                let also = per_card.get(&member);
                let together = owner_of.get(&member) == owner_of.get(address)
                    && also.is_some_and(|gpus| gpus[0].mode == ShareMode::Passthrough);
                must!(also.is_none() || together, "{member} goes with {address}");
            }
        }
    }
    check_cpus(node, given, overcommit)?;
    check_memory(node, given)
}

/// Whether the owner lets a card mix vGPU sizes.
pub(super) fn mixes(node: &GpuNode, device: &Device) -> bool {
    node.spec.devices.iter().any(|policy| {
        policy.selector.pci_address == Some(device.pci_address)
            && policy.vgpu_placement == Some(VgpuPlacement::MixedSize)
    })
}

/// All vGPUs of a machine are of one board and one series, Q or C.
fn one_board(node: &GpuNode, allocation: &Allocation) -> Result<(), String> {
    let devices = &node.status.as_ref().unwrap().devices;
    let mut seen = BTreeSet::new();
    let mut count = 0;
    for gpu in &allocation.gpus {
        let device = devices.iter().find(|device| device.pci_address == gpu.device).unwrap();
        let placement = device.placements.iter().find(|p| p.mode == gpu.mode && p.type_name == gpu.type_name);
        let backed = placement
            .and_then(|p| p.vgpu_types.iter().find(|v| Some(&v.type_name) == gpu.vgpu_type.as_ref()));
        let series = backed.map(|backed| backed.series).or_else(|| placement.and_then(|p| p.series));
        if let Some(series) = series {
            seen.insert((device.product.clone(), series));
            count += 1;
        }
    }
    must!(seen.len() <= 1, "vGPUs of {seen:?} in one machine");
    let fit = |(_, series): &(String, VgpuSeries)| matches!(series, VgpuSeries::Q | VgpuSeries::C);
    must!(count <= 1 || seen.iter().all(fit), "several vGPUs of {seen:?}");
    Ok(())
}

fn check_card(device: &Device, gpus: &[&GpuAllocation], mixed: bool) -> Result<(), String> {
    let modes: BTreeSet<ShareMode> = gpus.iter().map(|gpu| gpu.mode).collect();
    must!(modes.len() == 1, "two modes on {}", device.pci_address);
    if gpus[0].mode == ShareMode::Passthrough {
        must!(gpus.len() == 1, "{} given twice", device.pci_address);
        return Ok(());
    }
    // Those that share time share it in one way.
    let mut schedulers = BTreeMap::new();
    for gpu in gpus {
        let place = gpu.start.filter(|_| gpu.mode == ShareMode::Mig);
        if let Some(decided) = gpu.vgpu_scheduler {
            must!(
                *schedulers.entry(place).or_insert(decided) == decided,
                "two schedulers on {}",
                device.pci_address
            );
        }
    }
    let mut units = BTreeSet::new();
    let mut slices = 0;
    let mut counts: BTreeMap<&str, i32> = BTreeMap::new();
    for gpu in gpus {
        let placement =
            device.placements.iter().find(|p| p.mode == gpu.mode && p.type_name == gpu.type_name).unwrap();
        *counts.entry(&gpu.type_name).or_default() += 1;
        must!(counts[&*gpu.type_name] <= placement.max_count, "too many {}", gpu.type_name);
        slices += placement.compute_slices;
        let placed = gpu.mode == ShareMode::Mig || (gpu.mode == ShareMode::Vgpu && mixed);
        must!(gpu.start.is_some() == placed, "{} with start {:?}", gpu.type_name, gpu.start);
        if let Some(start) = gpu.start {
            must!(placement.starts.contains(&start), "{start} is no start of {}", gpu.type_name);
            for unit in start..start + placement.size {
                must!(units.insert(unit), "unit {unit} of {} given twice", device.pci_address);
            }
        } else {
            let total = i32::try_from(gpus.len()).unwrap();
            must!(total <= placement.max_count, "{total} shares on {}", device.pci_address);
            must!(gpus.iter().all(|other| other.framebuffer_mib == gpu.framebuffer_mib), "sizes mixed");
        }
    }
    if let Some(card) = device.units.filter(|units| units.mig_compute > 0) {
        must!(slices <= card.mig_compute, "{slices} compute slices");
        must!(units.iter().all(|unit| *unit < card.mig_memory), "past the end");
    }
    Ok(())
}

fn check_cpus(node: &GpuNode, given: &[&Allocation], overcommit: i64) -> Result<(), String> {
    let cells = &node.status.as_ref().unwrap().numa_cells;
    let core_of = |cpu: u32| cells.iter().flat_map(|c| &c.cores).position(|core| core.contains(cpu)).unwrap();
    let mut owners: BTreeMap<usize, usize> = BTreeMap::new();
    let mut single = BTreeSet::new();
    let mut cpus = BTreeSet::new();
    let mut floating = 0;
    for (owner, compute) in given.iter().filter_map(|a| a.compute.as_ref()).enumerate() {
        let vcpus = i64::from(compute.cores * compute.threads_per_core);
        if compute.vcpu_pins.is_empty() {
            floating += vcpus;
        } else {
            must!(i64::try_from(compute.vcpu_pins.len()) == Ok(vcpus), "a vCPU without a CPU");
        }
        for cpu in compute.vcpu_pins.iter().flat_map(|pin| pin.cpus.iter()) {
            must!(cpus.insert(cpu), "CPU {cpu} given twice");
            if compute.threads_only {
                single.insert(cpu);
            } else {
                let other = owners.entry(core_of(cpu)).or_insert(owner);
                must!(*other == owner, "the core of CPU {cpu} has two owners");
            }
            for cell in cells {
                let mut cores = cell.cores.clone();
                cores.sort();
                must!(!cores[0].contains(cpu), "CPU {cpu} is the host's");
            }
        }
    }
    must!(single.iter().all(|cpu| !owners.contains_key(&core_of(*cpu))), "a thread of somebody's core");
    let taken: usize = single.len()
        + owners
            .keys()
            .map(|core| cells.iter().flat_map(|c| &c.cores).nth(*core).unwrap().len())
            .sum::<usize>();
    let all: usize = cells.iter().flat_map(|c| &c.cores).map(gpudesk_crds::types::CpuSet::len).sum();
    let rest = i64::try_from(all - taken).unwrap();
    must!(floating <= rest * overcommit, "{floating} vCPUs on {rest} CPUs");
    Ok(())
}

fn check_memory(node: &GpuNode, given: &[&Allocation]) -> Result<(), String> {
    let cells = &node.status.as_ref().unwrap().numa_cells;
    for size in [PageSize::None, PageSize::Gi1] {
        let has = |cell: &gpudesk_crds::gpu_node_status::NumaCell| {
            let pages = cell.hugepages.iter().find(|p| p.size == PageSize::Gi1).map_or(0, |p| p.total) * 1024;
            if size == PageSize::Gi1 { pages } else { (cell.memory_mib - pages - 1024).max(0) }
        };
        let given = || given.iter().filter_map(|a| a.compute.as_ref()).filter(|c| c.page_size == size);
        let total: i64 = given().map(|c| c.memory_mib).sum();
        must!(total <= cells.iter().map(has).sum(), "{total} MiB of {size}");
        for cell in cells {
            let here: i64 = given().map(|c| on_cell(c, cell.id)).sum();
            must!(here <= has(cell), "{here} MiB of {size} on cell {}", cell.id);
        }
    }
    Ok(())
}

/// Memory that is certain to come from a cell.
fn on_cell(compute: &gpudesk_crds::Compute, cell: i32) -> i64 {
    let guest: i64 = compute
        .guest_cells
        .iter()
        .filter(|guest| guest.host_cell == cell)
        .map(|guest| guest.memory_mib)
        .sum();
    if compute.guest_cells.is_empty() && compute.numa_cells == [cell] { compute.memory_mib } else { guest }
}
