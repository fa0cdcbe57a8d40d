//! A slow check of what was given on a node, written without the code that gives: counts units one
//! by one.

use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::{
    Allocation, GpuAllocation, GpuNode,
    gpu_node_status::Device,
    types::{PageSize, PciAddress, ShareMode},
};

/// Panics when `given`, all of it on `node`, is more than there is or more than may be.
pub(super) fn check(node: &GpuNode, given: &[&Allocation], overcommit: i64) {
    let status = node.status.as_ref().unwrap();
    let mut per_card: BTreeMap<PciAddress, Vec<&GpuAllocation>> = BTreeMap::new();
    for gpu in given.iter().flat_map(|a| &a.gpus) {
        per_card.entry(gpu.device).or_default().push(gpu);
    }
    for (address, gpus) in &per_card {
        let device = status.devices.iter().find(|d| d.pci_address == *address).unwrap();
        check_card(device, gpus);
        if gpus[0].mode == ShareMode::Passthrough {
            for member in device.iommu_group.iter().flat_map(|group| &group.members) {
                let member = member.pci_address;
                assert!(!per_card.contains_key(&member), "{member} goes with {address}");
            }
        }
    }
    check_cpus(node, given, overcommit);
    check_memory(node, given);
}

fn check_card(device: &Device, gpus: &[&GpuAllocation]) {
    let modes: BTreeSet<ShareMode> = gpus.iter().map(|gpu| gpu.mode).collect();
    assert_eq!(modes.len(), 1, "two modes on {}", device.pci_address);
    if gpus[0].mode == ShareMode::Passthrough {
        assert_eq!(gpus.len(), 1, "{} given twice", device.pci_address);
        return;
    }
    let mut units = BTreeSet::new();
    let mut slices = 0;
    let mut counts: BTreeMap<&str, i32> = BTreeMap::new();
    for gpu in gpus {
        let placement =
            device.placements.iter().find(|p| p.mode == gpu.mode && p.type_name == gpu.type_name).unwrap();
        *counts.entry(&gpu.type_name).or_default() += 1;
        assert!(counts[&*gpu.type_name] <= placement.max_count, "too many {}", gpu.type_name);
        slices += placement.compute_slices;
        if let Some(start) = gpu.start {
            assert!(placement.starts.contains(&start), "{start} is no start of {}", gpu.type_name);
            for unit in start..start + placement.size {
                assert!(units.insert(unit), "unit {unit} of {} given twice", device.pci_address);
            }
        } else {
            assert_ne!(gpu.mode, ShareMode::Mig, "a MIG share without position");
            let total = i32::try_from(gpus.len()).unwrap();
            assert!(total <= placement.max_count, "{total} shares on {}", device.pci_address);
            assert!(gpus.iter().all(|other| other.framebuffer_mib == gpu.framebuffer_mib), "sizes mixed");
        }
    }
    if let Some(card) = device.units.filter(|units| units.mig_compute > 0) {
        assert!(slices <= card.mig_compute, "{slices} compute slices");
        assert!(units.iter().all(|unit| *unit < card.mig_memory), "past the end");
    }
}

fn check_cpus(node: &GpuNode, given: &[&Allocation], overcommit: i64) {
    let cells = &node.status.as_ref().unwrap().numa_cells;
    let core_of = |cpu: u32| cells.iter().flat_map(|c| &c.cores).position(|core| core.contains(cpu)).unwrap();
    let mut owners: BTreeMap<usize, usize> = BTreeMap::new();
    let mut cpus = BTreeSet::new();
    let mut floating = 0;
    for (owner, compute) in given.iter().filter_map(|a| a.compute.as_ref()).enumerate() {
        let vcpus = i64::from(compute.cores * compute.threads_per_core);
        if compute.vcpu_pins.is_empty() {
            floating += vcpus;
        } else {
            assert_eq!(i64::try_from(compute.vcpu_pins.len()).unwrap(), vcpus);
        }
        for cpu in compute.vcpu_pins.iter().flat_map(|pin| pin.cpus.iter()) {
            assert!(cpus.insert(cpu), "CPU {cpu} given twice");
            let other = owners.entry(core_of(cpu)).or_insert(owner);
            assert_eq!(*other, owner, "the core of CPU {cpu} has two owners");
            for cell in cells {
                let mut cores = cell.cores.clone();
                cores.sort();
                assert!(!cores[0].contains(cpu), "CPU {cpu} is the host's");
            }
        }
    }
    let taken: usize =
        owners.keys().map(|core| cells.iter().flat_map(|c| &c.cores).nth(*core).unwrap().len()).sum();
    let all: usize = cells.iter().flat_map(|c| &c.cores).map(gpudesk_crds::types::CpuSet::len).sum();
    let rest = i64::try_from(all - taken).unwrap();
    assert!(floating <= rest * overcommit, "{floating} vCPUs on {rest} CPUs");
}

fn check_memory(node: &GpuNode, given: &[&Allocation]) {
    let cells = &node.status.as_ref().unwrap().numa_cells;
    for size in [PageSize::None, PageSize::Gi1] {
        let has = |cell: &gpudesk_crds::gpu_node_status::NumaCell| {
            let pages = cell.hugepages.iter().find(|p| p.size == PageSize::Gi1).map_or(0, |p| p.total) * 1024;
            if size == PageSize::Gi1 { pages } else { (cell.memory_mib - pages - 1024).max(0) }
        };
        let given = || given.iter().filter_map(|a| a.compute.as_ref()).filter(|c| c.page_size == size);
        let total: i64 = given().map(|c| c.memory_mib).sum();
        assert!(total <= cells.iter().map(has).sum(), "{total} MiB of {size}");
        for cell in cells {
            let here: i64 = given().filter(|c| c.numa_cells == [cell.id]).map(|c| c.memory_mib).sum();
            assert!(here <= has(cell), "{here} MiB of {size} on cell {}", cell.id);
        }
    }
}
