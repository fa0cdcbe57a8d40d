//! No function of a card speaks for the others, and what is in use exists whoever lists it.

use super::*;

const UUID: &str = "0d3c5f1a-6b2e-4c8d-9f70-5a1e2b3c4d02";

fn judged(root: &Path) -> HostFacts {
    let mut facts = scanner(root).read();
    judge_modes(&mut facts);
    facts
}

fn gives_vgpus(card: &Device) -> bool {
    card.supports.iter().any(|support| support.mode == ShareMode::Vgpu && support.supported)
}

/// Turns the functions of the card into ones that carry mediated devices.
fn as_mdev(root: &Path) {
    for index in 0..3 {
        fs::remove_dir_all(root.join(vf(index)).join("nvidia")).unwrap();
    }
}

fn mdev(root: &Path, index: u8) {
    write(root, &format!("{}/{UUID}/uevent", vf(index)), "");
    link(root, &format!("{}/{UUID}/mdev_type", vf(index)), "../mdev_supported_types/nvidia-746");
    link(root, &format!("sys/bus/mdev/devices/{UUID}"), &format!("../../../{}/{UUID}", &vf(index)[4..]));
}

fn lists_types(root: &Path, index: u8, available: &str) {
    let folder = format!("{}/mdev_supported_types/nvidia-746", vf(index));
    write(root, &format!("{folder}/name"), "NVIDIA A2-4Q\n");
    write(root, &format!("{folder}/available_instances"), available);
    write(root, &format!("{folder}/description"), "num_heads=4, framebuffer=4096M, max_instance=4\n");
}

fn held_by_vfio(root: &Path, index: u8) {
    link(root, &format!("{}/driver", vf(index)), "../../../../bus/pci/drivers/vfio-pci");
}

#[test]
fn a_first_function_that_another_driver_holds_hides_nothing() {
    let host = host();
    held_by_vfio(host.path(), 0);
    fs::remove_dir_all(host.path().join(vf(0)).join("nvidia")).unwrap();
    write(host.path(), &format!("{}/nvidia/current_vgpu_type", vf(1)), "1155\n");
    write(host.path(), &format!("{}/nvidia/creatable_vgpu_types", vf(1)), "ID    : vGPU Name\n");
    let card = &judged(host.path()).cards[0];
    assert_eq!(card.framework, Some(Framework::VendorVfio));
    let instance = &card.instances[0];
    assert_eq!((instance.type_name.as_str(), &instance.owner), ("L40S-24Q", &None));
    assert!(card.placements.iter().any(|placement| placement.type_name == "L40S-8Q"));
    assert!(card.virtual_functions[0].unavailable.as_ref().unwrap().contains("vfio-pci holds it"));
    assert!(card.virtual_functions[2].unavailable.is_none());
}

#[test]
fn the_same_holds_of_mediated_devices() {
    let host = host();
    as_mdev(host.path());
    held_by_vfio(host.path(), 0);
    lists_types(host.path(), 1, "0\n");
    lists_types(host.path(), 2, "1\n");
    mdev(host.path(), 1);
    let card = &judged(host.path()).cards[0];
    assert_eq!(card.framework, Some(Framework::Mdev));
    let found = &card.placements[0];
    assert_eq!((found.type_name.as_str(), found.max_count, found.available), ("A2-4Q", 2, Some(1)));
    let instance = &card.instances[0];
    assert_eq!((instance.id.as_str(), instance.type_name.as_str()), (UUID, "A2-4Q"));
    assert!(card.virtual_functions[0].unavailable.is_some());
}

#[test]
fn a_mediated_device_exists_whoever_lists_its_type() {
    let host = host();
    as_mdev(host.path());
    mdev(host.path(), 2);
    let card = &judged(host.path()).cards[0];
    assert_eq!((card.framework, card.instances.len()), (Some(Framework::Mdev), 1));
    assert_eq!(card.instances[0].type_name, "nvidia-746");
    assert_eq!(
        (card.placements[0].type_name.as_str(), card.placements[0].available),
        ("nvidia-746", Some(0))
    );
    assert!(gives_vgpus(card));
}

#[test]
fn a_full_card_still_gives_vgpus_and_its_own_is_named_where_that_is_known() {
    let full = |root: &Path| {
        for index in 0..3 {
            write(root, &format!("{}/nvidia/creatable_vgpu_types", vf(index)), "ID    : vGPU Name\n");
        }
        write(root, &format!("{}/nvidia/current_vgpu_type", vf(0)), "1155\n");
    };
    let host = host();
    let mut names = scanner(host.path());
    names.read();
    full(host.path());
    let card = &judged(host.path()).cards[0];
    assert!(gives_vgpus(card));
    assert_eq!((card.instances[0].type_name.as_str(), card.placements.len()), ("1155", 1));
    assert_eq!(card.placements[0].available, Some(0));
    let card = &names.read().cards[0];
    assert_eq!(card.instances[0].type_name, "L40S-24Q");
    assert!(card.placements.iter().all(|placement| placement.available == Some(0)));
}

#[test]
fn a_function_of_which_nobody_can_tell_what_it_carries_is_not_free() {
    let host = host();
    write(host.path(), &format!("{}/nvidia/current_vgpu_type", vf(1)), "\n");
    let card = &judged(host.path()).cards[0];
    assert!(card.virtual_functions[1].unavailable.as_ref().unwrap().contains("could not be read"));
}

#[test]
fn of_two_numbers_with_one_name_the_one_that_is_offered_counts() {
    let host = host();
    let mut scanner = scanner(host.path());
    scanner.read();
    for index in 0..3 {
        let list = "ID    : vGPU Name\n2155  : NVIDIA L40S-24Q\n";
        write(host.path(), &format!("{}/nvidia/creatable_vgpu_types", vf(index)), list);
    }
    let facts = scanner.read();
    let found = facts.cards[0].placements.iter().find(|placement| placement.type_name == "L40S-24Q").unwrap();
    assert_eq!((found.driver_id.as_deref(), found.available), (Some("2155"), None));
}

#[test]
fn functions_that_their_card_does_not_list_are_its_own() {
    let host = host();
    write(host.path(), &format!("{CARD}/sriov_numvfs"), "0\n");
    let card = &judged(host.path()).cards[0];
    assert_eq!(card.virtual_functions.len(), 3);
    let refused = card.supports[0].reason.as_ref().unwrap();
    assert!(refused.contains("3 virtual functions of it are switched on"), "{refused}");
}

#[test]
fn functions_without_any_link_are_no_cards() {
    let host = host();
    for index in 0..3 {
        fs::remove_file(host.path().join(vf(index)).join("physfn")).unwrap();
        fs::remove_file(host.path().join(CARD).join(format!("virtfn{index}"))).unwrap();
    }
    let facts = judged(host.path());
    assert_eq!((facts.cards.len(), facts.cards[0].virtual_functions.len()), (1, 3));
}

#[test]
fn plain_functions_are_promised_what_the_least_of_them_has() {
    let host = host();
    as_mdev(host.path());
    for real in [CARD.to_owned(), vf(0), vf(1), vf(2)] {
        write(host.path(), &format!("{real}/vendor"), "0x8086");
        link(host.path(), &format!("{real}/driver"), "../../../../bus/pci/drivers/xe");
    }
    for (number, mib) in [(1, 4096_u64), (2, 2048), (3, 4096)] {
        let quota = format!("{CARD}/sriov_admin/vf{number}/profile/vram_quota");
        write(host.path(), &quota, &format!("{}\n", mib << 20));
    }
    let card = &judged(host.path()).cards[0];
    assert_eq!((card.placements[0].type_name.as_str(), card.placements[0].framebuffer_mib), ("3VF", 2048));
}
