use super::*;
use gpudesk_crds::{gpu_node_status::HostDeviceKind, types::ShareMode};

fn host(text: &str) -> Result<SimulatedHost, HostFileError> {
    HostFile::parse(text)?.host("sim-a")
}

const TWO_A16: &str = "{sockets: 2, coresPerSocket: 4, threadsPerCore: 2, memoryMiB: 65536, hugepages: {1Gi: 8}, cards: [{model: A16, count: 2}]}";
const HGX: &str =
    "{sockets: 2, coresPerSocket: 4, memoryMiB: 65536, cards: [{model: H100 SXM5 80GB, count: 8}]}";

#[test]
fn threads_are_numbered_as_linux_does() {
    let host = host(TWO_A16).unwrap();
    let cells = &host.facts.numa_cells;
    assert_eq!(cells[1].cores[0].to_string(), "4,12");
    assert_eq!((cells[0].memory_mib, cells[0].hugepages[0].total), (32768, 8));
    assert_eq!(cells[1].distances, [21, 10]);
    assert_eq!(
        (cells[1].sockets.as_slice(), cells[1].caches[0].cpus.to_string().as_str()),
        (&[1][..], "4-7,12-15")
    );
    assert_eq!(host.facts.cpus.online.to_string(), "0-15");
}

#[test]
fn caches_divide_the_cores_of_a_socket() {
    let host = host(
        "{coresPerSocket: 8, threadsPerCore: 2, memoryMiB: 8192, lastLevelCaches: {perSocket: 2, sizeKiB: 32768}}",
    );
    let caches = host.unwrap().facts.numa_cells[0].caches.clone();
    let found: Vec<_> = caches.iter().map(|cache| (cache.cpus.to_string(), cache.size_kib)).collect();
    assert_eq!(found, [("0-3,8-11".into(), Some(32768)), ("4-7,12-15".into(), Some(32768))]);
}

#[test]
fn a_board_with_four_gpus_gives_four_cards_behind_one_switch() {
    let host = host(TWO_A16).unwrap();
    let cards = &host.facts.cards;
    assert_eq!(cards.len(), 8);
    let switches: std::collections::BTreeSet<_> = cards.iter().map(|card| card.pcie_path[1]).collect();
    assert_eq!(switches.len(), 2);
    let addresses: std::collections::BTreeSet<_> = cards.iter().map(|card| card.pci_address).collect();
    assert_eq!(addresses.len(), 8);
    assert_eq!(cards.iter().filter(|card| card.numa_cell == Some(1)).count(), 4);
}

#[test]
fn identities_follow_from_the_name_alone() {
    let (a, b) = (host(TWO_A16).unwrap(), host(TWO_A16).unwrap());
    assert_eq!(a.facts, b.facts);
    let other = HostFile::parse(TWO_A16).unwrap().host("sim-b").unwrap();
    assert_ne!(a.facts.cards[0].uuid, other.facts.cards[0].uuid);
}

#[test]
fn every_address_and_every_group_is_there_once() {
    let text = "{sockets: 2, coresPerSocket: 4, memoryMiB: 65536, networkCards: [{model: I210, count: 9}], \
                nvmeDrives: [{model: PM173X, count: 12, inUse: 1}], cards: [{model: H100 SXM5 80GB, count: 8}, \
                {model: A16, count: 2}, {model: GeForce RTX 4090, count: 1}]}";
    let facts = host(text).unwrap().facts;
    let mut addresses = facts.nvswitches.clone();
    let mut groups = vec![];
    for card in &facts.cards {
        addresses.push(card.pci_address);
        addresses.extend(card.companions.iter().map(|companion| companion.pci_address));
        addresses.extend(card.virtual_functions.iter().map(|vf| vf.pci_address));
        groups.push(card.iommu_group.as_ref().unwrap().id);
        groups.extend(card.virtual_functions.iter().filter_map(|vf| vf.iommu_group));
    }
    addresses.extend(facts.host_devices.iter().map(|device| device.pci_address));
    groups.extend(facts.host_devices.iter().map(|device| device.iommu_group.as_ref().unwrap().id));
    assert_eq!(addresses.len(), addresses.iter().collect::<std::collections::BTreeSet<_>>().len());
    assert_eq!(groups.len(), groups.iter().collect::<std::collections::BTreeSet<_>>().len());
    let drives = facts.host_devices.iter().filter(|device| device.kind == HostDeviceKind::NvmeDrive);
    assert_eq!(drives.filter(|device| device.usable).count(), 11);
}

#[test]
fn vgpus_are_made_on_functions_or_on_the_card_as_their_kind_is() {
    let text = "{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: A2, count: 1}, {model: A2, count: 1, framework: VendorVfio}, {model: V100 16GB, count: 1}, {model: T4, count: 1}]}";
    let cards = host(text).unwrap().facts.cards;
    let found: Vec<_> = cards
        .iter()
        .map(|card| (card.framework, card.virtual_functions.len(), card.sriov.map(|sriov| sriov.total_vfs)))
        .collect();
    assert_eq!(
        found,
        [
            (Some(Framework::Mdev), 16, Some(16)),
            (Some(Framework::VendorVfio), 16, Some(16)),
            (Some(Framework::Mdev), 0, None),
            (Some(Framework::Mdev), 0, Some(16)),
        ]
    );
    assert_eq!(cards[0].virtual_functions[4].pci_address.to_string(), "0000:08:01.0");
    assert!(cards.iter().all(|card| {
        card.supports
            .iter()
            .all(|s| s.supported == matches!(s.mode, ShareMode::Passthrough | ShareMode::Vgpu))
    }));
}

#[test]
fn a_board_with_nvswitches_has_its_fifteen_partitions() {
    let facts = host(HGX).unwrap().facts;
    let fabric = facts.fabric.unwrap();
    assert_eq!((fabric.switches.len(), fabric.partitions.len()), (4, 15));
    assert_eq!(fabric.partitions[4].module_ids, [2, 4]);
    let mut modules: Vec<i32> = facts.cards.iter().filter_map(|card| card.module_id).collect();
    assert_ne!(modules, [1, 2, 3, 4, 5, 6, 7, 8], "not the order on PCI");
    modules.sort_unstable();
    assert_eq!(modules, [1, 2, 3, 4, 5, 6, 7, 8]);
    let card = &facts.cards[3];
    assert_eq!((card.nvlink_peers.len(), card.fabric.as_ref().unwrap().state.as_str()), (7, "Completed"));
    assert!(!card.nvlink_peers.contains(card.uuid.as_ref().unwrap()));
}

#[test]
fn without_its_manager_a_fabric_has_not_started() {
    let facts = host(&HGX.replace("{sockets", "{fabricManager: false, sockets")).unwrap().facts;
    assert_eq!(facts.cards[0].fabric.as_ref().unwrap().state, "NotStarted");
    assert!(facts.fabric.unwrap().partitions.is_empty());
    assert_eq!(facts.kernel_state.fabric_manager, Some(false));
}

#[test]
fn without_an_iommu_no_card_is_given_whole() {
    let facts = host("{iommu: false, coresPerSocket: 4, memoryMiB: 8192, cards: [{model: T4, count: 1}]}")
        .unwrap()
        .facts;
    assert_eq!((facts.iommu.groups, facts.iommu.kind), (Some(0), None));
    assert!(facts.cards[0].iommu_group.is_none());
    let whole = facts.cards[0].supports.iter().find(|s| s.mode == ShareMode::Passthrough).unwrap();
    assert!(whole.reason.as_ref().unwrap().contains("IommuEnabled"));
}

#[test]
fn a_consumer_card_has_its_sound_beside_it() {
    let facts = host("{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: GeForce RTX 4090, count: 1}]}")
        .unwrap()
        .facts;
    let card = &facts.cards[0];
    assert_eq!((card.companions[0].class.as_str(), card.companions[0].device_id.as_str()), ("0403", "22ba"));
    let group = card.iommu_group.as_ref().unwrap();
    assert!(group.viable);
    assert_eq!(group.members[0].driver.as_deref(), Some("snd_hda_intel"));
}

#[test]
fn a_card_with_the_hosts_screen_is_not_given_away() {
    let host =
        host("{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: Iris Xe Graphics, count: 1}]}").unwrap();
    let card = &host.facts.cards[0];
    let whole = card.supports.iter().find(|s| s.mode == ShareMode::Passthrough).unwrap();
    assert!(!whole.supported && whole.reason.as_ref().unwrap().contains("screen"));
    assert!(card.boot_vga);
}

#[test]
fn what_cannot_be_is_refused_with_its_field() {
    for (file, part) in [
        ("{coresPerSocket: 0, memoryMiB: 8192}", "coresPerSocket"),
        ("{coresPerSocket: 4, memoryMiB: 8192, sockets: 9}", "sockets"),
        ("{coresPerSocket: 4, memoryMiB: 8192, hugepages: {1Gi: 9}}", "hugepages"),
        ("{coresPerSocket: 4, memoryMiB: 8192, isolatedCpus: 3-4}", "the CPUs 0-3"),
        (
            "{coresPerSocket: 4, memoryMiB: 8192, lastLevelCaches: {perSocket: 5}}",
            "lastLevelCaches.perSocket is 5",
        ),
        ("{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: T4, count: 32}]}", "on one socket"),
        (
            "{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: T4, count: 1, numaCells: [3]}]}",
            "numaCells is 3",
        ),
        (
            "{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: T4, count: 1, numaCells: [0, 0]}]}",
            "numaCells",
        ),
        ("{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: X, count: 1}]}", "L40S"),
        (
            "{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: T4, count: 1, framework: VendorVfio}]}",
            "made by Mdev",
        ),
        (
            "{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: GeForce RTX 4090, count: 1, framework: Mdev}]}",
            "leave it out",
        ),
        ("{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: H100 SXM5 80GB, count: 4}]}", "write 8"),
        ("{coresPerSocket: 4, memoryMiB: 8192, networkCards: [{model: X, count: 1}]}", "ConnectX-7"),
        (
            "{coresPerSocket: 4, memoryMiB: 8192, nvmeDrives: [{model: PM173X, count: 1, inUse: 2}]}",
            "nvmeDrives[].inUse is 2",
        ),
        (
            "{coresPerSocket: 4, memoryMiB: 8192, nvmeDrives: [{model: PM173X, count: 33}]}",
            "on one socket is 33",
        ),
        ("{coresPerSocket: 4, memory: 8192}", "memory"),
    ] {
        let error = host(file).unwrap_err().to_string();
        assert!(error.contains(part), "{file}: {error}");
    }
}
