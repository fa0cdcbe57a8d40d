//! The host files that are shipped give the hosts they describe.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::{fmt::Write, path::PathBuf};

use gpudesk_crds::{GpuNodeStatus, gpu_node_status::Acceleration};
use gpudesk_inventory::{
    simulated::HostFile,
    status::{self, Findings, GuestNetworkView, HypervisorView},
};

fn examples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/hosts")
}

fn status(file: &str) -> GpuNodeStatus {
    let text = std::fs::read_to_string(examples().join(file)).unwrap();
    let host = HostFile::parse(&text).unwrap().host("sim").unwrap_or_else(|error| panic!("{file}: {error}"));
    status::status(&Findings {
        simulated: true,
        hypervisor: &HypervisorView::Answers {
            versions: None,
            acceleration: Acceleration::Simulated,
            why_not_kvm: None,
        },
        guest_network: &GuestNetworkView::NoGuests,
        gpu_driver_version: Some("simulated".into()),
        generation: Some(1),
        ..Findings::of(&host.facts)
    })
}

/// What matters of a status, a line per card and per share that the first card offers.
fn digest(status: &GpuNodeStatus) -> String {
    let mut text = String::new();
    let summary = status.summary.as_ref().unwrap();
    writeln!(
        text,
        "{} cards, {} free, {} slices, {} cells",
        summary.gpus, summary.free_gpus, summary.slices, summary.numa_cells
    )
    .unwrap();
    for cell in &status.numa_cells {
        let pages: Vec<_> = cell.hugepages.iter().map(|p| format!("{}x{}", p.total, p.size)).collect();
        writeln!(
            text,
            "cell {}: {} cores, first {}, {} MiB, {} {:?}",
            cell.id,
            cell.cores.len(),
            cell.cores[0],
            cell.memory_mib,
            pages.join(" "),
            cell.distances
        )
        .unwrap();
    }
    for card in &status.devices {
        writeln!(
            text,
            "{} {}:{} cell {:?} group {} {} {}",
            card.pci_address,
            card.vendor_id,
            card.device_id,
            card.numa_cell.unwrap(),
            card.iommu_group.as_ref().unwrap().id,
            card.uuid.as_ref().unwrap(),
            card.serial.as_ref().unwrap()
        )
        .unwrap();
    }
    if let Some(card) = status.devices.first() {
        writeln!(text, "units {:?}", card.units.unwrap()).unwrap();
        for placement in &card.placements {
            let vgpus: Vec<_> = placement
                .vgpu_types
                .iter()
                .map(|t| format!("{}x{}", t.max_per_instance, t.type_name))
                .collect();
            writeln!(
                text,
                "{} {} {} MiB size {} at {:?} max {} {}",
                placement.mode,
                placement.type_name,
                placement.framebuffer_mib,
                placement.size,
                placement.starts,
                placement.max_count,
                vgpus.join(" ")
            )
            .unwrap();
        }
    }
    for condition in &status.conditions {
        writeln!(
            text,
            "{}={} {}: {}",
            condition.type_, condition.status, condition.reason, condition.message
        )
        .unwrap();
    }
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[test]
fn eight_rtx_pro_6000_on_two_sockets() {
    insta::assert_snapshot!(digest(&status("rtx-pro-6000-8.yaml")));
}

#[test]
fn four_l40s() {
    insta::assert_snapshot!(digest(&status("l40s-4.yaml")));
}

#[test]
fn every_host_file_gives_its_host() {
    let expected = [
        ("a100-40gb.yaml", 4, "0/32"),
        ("a100-80gb.yaml", 4, "0/32"),
        ("a16.yaml", 8, "0/128"),
        ("a2.yaml", 2, "0/32"),
        ("a30.yaml", 4, "0/16"),
        ("b200-8.yaml", 8, "0/64"),
        ("flex-170.yaml", 2, "0/32"),
        ("gh200.yaml", 1, "0/8"),
        ("h100-8.yaml", 8, "0/64"),
        ("h100-80gb.yaml", 4, "0/32"),
        ("h100-94gb.yaml", 4, "0/32"),
        ("h100-96gb.yaml", 4, "0/32"),
        ("h200-8.yaml", 8, "0/64"),
        ("l40s-4.yaml", 4, "0/192"),
        ("laptop.yaml", 1, "0/1"),
        ("mi300x-8.yaml", 8, "0/64"),
        ("no-gpu.yaml", 0, "0/0"),
        ("rtx-pro-6000-8.yaml", 8, "0/96"),
        ("t4.yaml", 2, "0/32"),
        ("v100.yaml", 4, "0/96"),
    ];
    let entries = std::fs::read_dir(examples()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut files: Vec<String> = entries
        .map(|name| name.into_string().unwrap())
        .filter(|name| name.strip_suffix(".yaml").is_some())
        .collect();
    files.sort();
    assert_eq!(files, expected.map(|(file, ..)| file));
    for (file, cards, slices) in expected {
        let status = status(file);
        let summary = status.summary.unwrap();
        assert_eq!((summary.gpus, summary.slices.as_str()), (cards, slices), "{file}");
        let host = status.host.unwrap();
        assert!(host.simulated && host.iommu.is_some() && host.cpus.is_some(), "{file}");
        let wrong: Vec<_> = status.conditions.iter().filter(|condition| condition.status != "True").collect();
        assert!(wrong.is_empty(), "{file}: {wrong:?}");
    }
}

#[test]
fn cards_say_what_a_machine_and_its_drivers_say() {
    for (file, functions, framework) in [
        ("rtx-pro-6000-8.yaml", 48, Some("VendorVfio")),
        ("l40s-4.yaml", 32, Some("VendorVfio")),
        ("a16.yaml", 16, Some("Mdev")),
        ("a2.yaml", 16, Some("Mdev")),
        ("t4.yaml", 0, Some("Mdev")),
        ("v100.yaml", 0, Some("Mdev")),
        ("mi300x-8.yaml", 0, Some("Sriov")),
    ] {
        for card in status(file).devices {
            assert_eq!(card.virtual_functions.len(), functions, "{file}");
            assert_eq!(
                card.framework.map(|framework| format!("{framework:?}")).as_deref(),
                framework,
                "{file}"
            );
            assert!(card.root_complex.is_some() && card.link.is_some() && card.subsystem.is_some(), "{file}");
            assert!(!card.bars.is_empty() && !card.class.is_empty(), "{file}");
        }
    }
}

#[test]
fn the_fabric_of_eight_h100_is_up_and_has_fifteen_partitions() {
    let status = status("h100-8.yaml");
    let fabric = status.fabric.unwrap();
    assert_eq!((fabric.switches.len(), fabric.partitions.len()), (4, 15));
    for card in &status.devices {
        assert_eq!(card.fabric.as_ref().unwrap().state, "Completed");
        assert_eq!(card.nvlink_peers.len(), 7);
        let modules = fabric
            .partitions
            .iter()
            .filter(|partition| partition.module_ids.contains(&card.module_id.unwrap()));
        assert_eq!(modules.count(), 4, "all, a half, a pair and the card alone");
    }
    let usable = status.host_devices.iter().filter(|device| device.usable);
    assert_eq!(usable.count(), 3, "drives are given once their owner says how they are erased");
}
