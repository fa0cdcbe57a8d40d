//! What a card is, its memory regions, and functions of network cards.

use gpudesk_crds::gpu_node_status::DeviceKind;

use super::*;

const EMPTY: &str = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";

#[test]
fn a_placed_region_hides_no_lost_one() {
    let host = host();
    // Region 1 of 64 bits is lost; region 0 and region 3 of 64 bits are placed.
    let placed = ["0x9e000000 0x9effffff 0x40200\n", "0xa0000000 0xa1ffffff 0x14220c\n"];
    let resource = format!("{}{EMPTY}{EMPTY}{}{EMPTY}{EMPTY}", placed[0], placed[1]);
    write(host.path(), &format!("{CARD}/resource"), &resource);
    let mut header = [0_u8; 64];
    for (register, value) in [(0, 0x9e00_0000_u32), (1, 0xc), (3, 0xa000_000c)] {
        header[0x10 + 4 * register..0x14 + 4 * register].copy_from_slice(&value.to_le_bytes());
    }
    fs::write(host.path().join(CARD).join("config"), header).unwrap();
    let mut scanner = scanner(host.path());
    for _ in 0..2 {
        let mut facts = scanner.read();
        judge_modes(&mut facts);
        let lost: Vec<i32> =
            facts.cards[0].bars.iter().filter(|bar| bar.unassigned).map(|bar| bar.index).collect();
        assert_eq!(lost, [1]);
        assert!(facts.cards[0].supports[0].reason.as_ref().unwrap().contains("BarsAssigned"));
        // It is not read again while the regions are the same.
        let _ = fs::remove_file(host.path().join(CARD).join("config"));
    }
}

#[test]
fn a_screen_and_an_accelerator_are_no_gpus() {
    let host = host();
    let kind = |class: &str, vendor: &str, device: &str| {
        for (file, text) in [("class", class), ("vendor", vendor), ("device", device)] {
            write(host.path(), &format!("{CARD}/{file}"), text);
        }
        scanner(host.path()).read().cards[0].kind
    };
    for (class, vendor, device) in
        [("0x030200", "0x10de", "0x26b9"), ("0x120000", "0x1002", "0x74a1"), ("0x038000", "0x8086", "0x56c0")]
    {
        assert_eq!(kind(class, vendor, device), DeviceKind::Gpu, "{vendor}:{device}");
    }
    for (vendor, device) in
        [("0x1a03", "0x2000"), ("0x102b", "0x0536"), ("0x1234", "0x1111"), ("0x1002", "0x515e")]
    {
        assert_eq!(kind("0x030000", vendor, device), DeviceKind::Display, "{vendor}:{device}");
    }
    assert_eq!(kind("0x120000", "0x8086", "0xad1d"), DeviceKind::Accelerator);
}

/// The virtual functions of the network card: bound to a driver each, with or without an interface.
fn network(functions: &[(&str, Option<&str>)]) -> Vec<Option<String>> {
    const NIC: &str = "sys/devices/pci0000:40/0000:40:02.0/0000:42:00.0";
    let host = host();
    let root = host.path();
    write(root, &format!("{NIC}/sriov_totalvfs"), "8\n");
    write(root, &format!("{NIC}/sriov_numvfs"), &format!("{}\n", functions.len()));
    for (index, (driver, state)) in functions.iter().enumerate() {
        let real = format!("sys/devices/pci0000:40/0000:40:02.0/0000:42:01.{index}");
        function(root, &real, 60 + u32::try_from(index).unwrap(), driver);
        write(root, &format!("{real}/class"), "0x020000");
        link(root, &format!("{real}/physfn"), "../0000:42:00.0");
        link(root, &format!("{NIC}/virtfn{index}"), &format!("../0000:42:01.{index}"));
        if let Some(state) = state {
            write(root, &format!("{real}/net/ens1v{index}/{state}"), "0x1003\n");
            let operstate = if *state == "operstate" { "up\n" } else { "down\n" };
            write(root, &format!("{real}/net/ens1v{index}/operstate"), operstate);
        }
    }
    let facts = scanner(root).read();
    let nic = facts.host_devices.iter().find(|device| device.pci_address == address("0000:42:00.0")).unwrap();
    nic.virtual_functions.iter().map(|function| function.unavailable.clone()).collect()
}

#[test]
fn a_function_that_the_host_uses_itself_is_the_hosts() {
    let found = network(&[
        ("iavf", Some("operstate")),
        ("iavf", Some("flags")),
        ("iavf", Some("master/x")),
        ("iavf", Some("upper_vlan5/x")),
        ("iavf", Some("address")),
        ("vfio-pci", None),
        ("iavf", None),
    ]);
    for (index, said) in found.iter().enumerate().take(4) {
        assert!(said.as_ref().is_some_and(|said| said.contains(&format!("ens1v{index}"))), "{said:?}");
    }
    assert_eq!((&found[4], &found[5]), (&None, &None), "an interface that is down, and none");
    assert!(found[6].as_ref().unwrap().contains("a container or a program may have it"));
}

#[test]
fn a_card_in_a_domain_of_five_digits_is_read_like_any_other() {
    let host = host();
    let real = "sys/devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0";
    function(host.path(), real, 70, "nvidia");
    let mut facts = scanner(host.path()).read();
    judge_modes(&mut facts);
    let card = facts.cards.iter().find(|card| card.pci_address == address("10000:e1:00.0")).unwrap();
    assert!(card.supports[0].reason.as_ref().unwrap().contains("behind a controller"), "{card:?}");
    assert_eq!(card.pci_address.to_string(), "10000:e1:00.0");
    assert_eq!(card.iommu_group.as_ref().unwrap().id, 70);
    assert_eq!(card.pcie_path.last(), Some(&address("10000:e0:06.0")));
}
