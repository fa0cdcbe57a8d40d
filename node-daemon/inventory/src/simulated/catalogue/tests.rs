use gpudesk_crds::gpu_node_status::CardUnits;

use super::*;

fn placements(model: &str) -> Vec<Placement> {
    let catalogue = Catalogue::embedded().unwrap();
    let card = catalogue.card(model).unwrap();
    catalogue.placements(card, card.frameworks.first().copied()).unwrap()
}

#[test]
fn every_card_has_placements_that_fit_on_it() {
    let catalogue = Catalogue::embedded().unwrap();
    for card in catalogue.cards() {
        assert_eq!(card.pci_id.len(), 9, "{}", card.model);
        let placements = catalogue.placements(card, card.frameworks.first().copied()).unwrap();
        assert_eq!(placements.is_empty(), card.frameworks.is_empty(), "{}", card.model);
        let units = CardUnits::of(&placements);
        for placement in &placements {
            let room = match placement.mode {
                ShareMode::Mig => units.mig_memory,
                _ => units.vgpu_region,
            };
            for start in &placement.starts {
                assert!(start + placement.size <= room, "{} {}", card.model, placement.type_name);
            }
            assert!(placement.max_count > 0);
            let whole = placement.framebuffer_mib * i64::from(placement.max_count);
            // The driver rounds framebuffers, up and down.
            let fits = whole <= card.memory_mib + 64;
            assert!(placement.mode == ShareMode::Mig || fits, "{} {whole}", placement.type_name);
        }
        let mut names: Vec<&str> = placements.iter().map(|placement| placement.type_name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), placements.len(), "{}: names are keys", card.model);
    }
}

#[test]
fn the_rtx_pro_6000_offers_what_its_driver_prints() {
    let placements = placements("rtx pro 6000 blackwell server edition");
    let slice = placements.iter().find(|p| p.type_name == "1g.24gb+gfx").unwrap();
    assert_eq!((slice.size, slice.starts.as_slice(), slice.max_count), (3, &[0, 3, 6, 9][..], 4));
    assert_eq!(slice.driver_id.as_deref(), Some("47"));
    let q = slice.vgpu_types.iter().find(|t| t.type_name == "DC-1-2Q").unwrap();
    assert_eq!(q.max_per_instance, 12);
    let plain = placements.iter().find(|p| p.type_name == "1g.24gb").unwrap();
    assert!(plain.vgpu_types.is_empty(), "only +gfx instances hold vGPUs");
    let eight = placements.iter().find(|p| p.type_name == "DC-8Q").unwrap();
    assert_eq!((eight.max_count, eight.size, eight.starts.len()), (12, 8, 12), "mixing costs nothing");
}

#[test]
fn the_l40s_has_no_mig_and_mixes_sizes() {
    let catalogue = Catalogue::embedded().unwrap();
    let card = catalogue.card("L40S").unwrap();
    assert!(!card.has_mig());
    let placements = placements("L40S");
    assert_eq!(CardUnits::of(&placements).vgpu_region, 48);
    let sixteen = placements.iter().find(|p| p.type_name == "L40S-16Q").unwrap();
    assert_eq!((sixteen.max_count, sixteen.starts.as_slice()), (3, &[0, 32][..]));
    assert_eq!(
        (sixteen.driver_id.as_deref(), sixteen.heads, sixteen.frame_rate_limit),
        (Some("1154"), Some(4), Some(60))
    );
    assert_eq!(card.total_virtual_functions(&placements), Some(32));
}

#[test]
fn a_card_of_seven_slices_has_their_profiles_by_its_own_sizes() {
    let found = placements("H100 NVL");
    let profiles: Vec<_> = found.iter().filter(|p| p.mode == ShareMode::Mig).collect();
    let names: Vec<&str> = profiles.iter().map(|p| p.type_name.as_str()).collect();
    assert_eq!(names, ["1g.12gb", "1g.12gb+me", "1g.24gb", "2g.24gb", "3g.47gb", "4g.47gb", "7g.94gb"]);
    assert_eq!(profiles[1].vgpu_types[0].type_name, "H100L-1-12CME");
    assert_eq!((profiles[6].framebuffer_mib, profiles[6].driver_id.as_deref()), (96_246, Some("0")));
}

#[test]
fn types_are_numbered_as_the_frameworks_do() {
    let number = |framework| {
        let catalogue = Catalogue::embedded().unwrap();
        let found = catalogue.placements(catalogue.card("A2").unwrap(), Some(framework)).unwrap();
        found.iter().find(|p| p.type_name == "A2-2Q").unwrap().driver_id.clone().unwrap()
    };
    assert_eq!(number(Framework::Mdev), "nvidia-745");
    assert_eq!(number(Framework::VendorVfio), "745");
}

#[test]
fn a_card_has_as_many_functions_as_it_carries_vgpus_where_nothing_else_is_known() {
    let catalogue = Catalogue::embedded().unwrap();
    let total = |model: &str| catalogue.card(model).unwrap().total_virtual_functions(&placements(model));
    assert_eq!(total("A40"), Some(32));
    assert_eq!(total("V100 16GB"), None, "its vGPUs are made on the card");
    assert_eq!(total("GeForce RTX 4090"), None);
    assert_eq!(total("Data Center GPU Flex 170"), Some(31));
}

#[test]
fn an_unknown_card_is_answered_with_the_known_ones() {
    let catalogue = Catalogue::embedded().unwrap();
    let error = catalogue.card("L50").unwrap_err().to_string();
    assert!(error.contains("\"L50\"") && error.contains("L40S"), "{error}");
    let error = catalogue.host_device(HostDeviceKind::NvmeDrive, "ConnectX-7").unwrap_err().to_string();
    assert!(error.contains("no drive") && error.contains("PM173X"), "{error}");
}
