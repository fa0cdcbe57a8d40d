//! Every card that is known: what the adapter reads of it is what is known of it.

use gpudesk_crds::{
    gpu_node_status::{CardUnits, HealthState, Placement},
    types::ShareMode,
};
use gpudesk_inventory::simulated::catalogue::{CardModel, Catalogue};
use serde_yaml::Value;

use crate::fake::{Fake, devices, read};

/// What the catalogue knows of a share; the rest only a driver can tell.
fn known(placement: &Placement) -> Placement {
    Placement {
        available: None,
        driver_id: None,
        heads: None,
        max_resolution: None,
        frame_rate_limit: None,
        ..placement.clone()
    }
}

#[test]
fn the_driver_and_the_catalogue_of_simulated_hosts_tell_the_same_of_each_card() {
    let catalogue = Catalogue::embedded().unwrap();
    let cards: Vec<&CardModel> = catalogue.cards().iter().filter(|card| card.ids().0 == "10de").collect();
    assert!(cards.len() >= 12, "{}", cards.len());
    let expected: Vec<Vec<Placement>> =
        cards.iter().map(|card| catalogue.placements(card, None).unwrap()).collect();
    let world: Vec<String> = std::iter::zip(&cards, &expected)
        .enumerate()
        .map(|(bus, (card, placements))| {
            let first = placements.iter().find(|placement| placement.mode == ShareMode::Vgpu);
            let prefix = first.and_then(|placement| placement.type_name.rsplit_once('-'));
            let prefix = prefix.map_or(String::new(), |(prefix, _)| format!("prefix: {prefix}, "));
            let mig = card.has_mig();
            format!("{{pciId: '{}', {prefix}address: '00000000:{bus:02x}:00.0', mig: {mig}}}", card.pci_id)
        })
        .collect();
    let found = devices(&read(&format!("cards: [{}]", world.join(", "))));
    assert_eq!(found.len(), cards.len());
    for ((card, expected), found) in cards.iter().zip(&expected).zip(&found) {
        let placements: Vec<Placement> = found.placements.iter().map(known).collect();
        let expected: Vec<Placement> = expected.iter().map(known).collect();
        for (found, expected) in placements.iter().zip(&expected) {
            assert_eq!(found, expected, "{}", card.model);
        }
        assert_eq!(placements.len(), expected.len(), "{}", card.model);
        assert_eq!(found.units.unwrap_or_default(), CardUnits::of(&expected), "{}", card.model);
    }
}

/// The tables of the stand-in, as a file says them.
fn tables() -> Value {
    serde_yaml::from_str(include_str!("../../../e2e/fake-nvml/src/cards.yaml")).unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_sequence().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_card_of_the_tables_is_read_without_trouble_and_whole() {
    let tables = tables();
    let cards = tables["cards"].as_sequence().unwrap();
    let world: Vec<String> = cards
        .iter()
        .enumerate()
        .map(|(bus, card)| {
            let (model, mig) = (card["model"].as_str().unwrap(), card["mig"].as_str().is_some());
            format!("{{model: '{model}', address: '0001:{bus:02x}:00.0', mig: {mig}}}")
        })
        .collect();
    let found = devices(&read(&format!("cards: [{}]", world.join(", "))));
    assert_eq!(found.len(), cards.len());
    for (card, found) in cards.iter().zip(&found) {
        let model = card["model"].as_str().unwrap();
        let profiles =
            card["mig"].as_str().map(|name| tables["migTables"][name].as_sequence().unwrap().clone());
        let mig = profiles.is_some();
        assert_eq!(found.memory_mib, card["memoryMiB"].as_i64(), "{model}");
        assert_eq!(found.health.state, HealthState::Healthy, "{model}");

        let mut names: Vec<String> = vec![];
        for profile in profiles.iter().flatten() {
            let name = profile["name"].as_str().unwrap();
            let placement = found.placements.iter().find(|placement| placement.type_name == name).unwrap();
            let starts: Vec<i64> =
                profile["starts"].as_sequence().unwrap().iter().map(|n| n.as_i64().unwrap()).collect();
            assert_eq!(
                placement.starts.iter().map(|start| i64::from(*start)).collect::<Vec<_>>(),
                starts,
                "{model} {name}"
            );
            assert_eq!(Some(i64::from(placement.size)), profile["size"].as_i64());
            assert_eq!(Some(i64::from(placement.max_count)), profile["max"].as_i64());
            assert_eq!(placement.available, Some(placement.max_count), "{model} {name}: the card is empty");
            let inside: Vec<String> =
                placement.vgpu_types.iter().map(|kind| kind.type_name.clone()).collect();
            let mut expected: Vec<String> = (card["migTypes"].as_sequence().into_iter().flatten())
                .filter(|kind| kind["profile"].as_str() == Some(name))
                .map(|kind| kind["name"].as_str().unwrap().to_owned())
                .collect();
            expected.sort_by_key(|name| inside.iter().position(|other| other == name));
            assert_eq!(inside, expected, "{model} {name}");
            names.push(name.into());
        }
        for kind in card["types"].as_sequence().into_iter().flatten() {
            let name = kind["name"].as_str().unwrap();
            let placement = found.placements.iter().find(|placement| placement.type_name == name).unwrap();
            assert_eq!(Some(placement.framebuffer_mib), kind["framebufferMiB"].as_i64());
            assert_eq!(Some(i64::from(placement.max_count)), kind["most"].as_i64(), "{model} {name}");
            names.push(name.into());
        }
        assert_eq!(found.placements.len(), names.len(), "{model}");
        let units = found.units.unwrap_or(CardUnits::default());
        assert_eq!(units.mig_memory > 0, mig, "{model}");
        assert!(!texts(&card["pciIds"]).is_empty());
    }
}

#[test]
fn a_consumer_card_has_few_of_these_things_and_that_is_no_trouble() {
    let readings = read("cards: [{model: GeForce RTX 4090, address: '0000:01:00.0'}]");
    let card = &readings.cards[0];
    assert_eq!(
        (&card.mig, &card.vgpu, &card.serial, &card.ecc, &card.row_remapping),
        (&None, &None, &None, &None, &None)
    );
    assert_eq!(card.product.as_deref(), Some("NVIDIA GeForce RTX 4090"));
    assert_eq!(readings.vgpu_manager_version, None);
}

#[test]
fn a_driver_that_makes_no_vgpus_tells_of_none() {
    let readings = read("{vgpuHost: false, cards: [{model: L40S, address: '0000:41:00.0'}]}");
    assert_eq!((&readings.cards[0].vgpu, readings.vgpu_manager_version.as_deref()), (&None, None));
    let host = read("cards: [{model: L40S, address: '0000:41:00.0'}]");
    assert_eq!(host.vgpu_manager_version.as_deref(), Some("580.95.05"));
    assert_eq!(host.driver_version.as_deref(), Some("580.95.05"));
}

#[test]
fn health_is_read_in_degrees_or_margins_as_the_card_has_them() {
    let world = "cards:
- {model: Tesla T4, address: '0000:01:00.0', temperature: 45, recoveryAction: null}
- {model: L4, address: '0000:02:00.0', temperature: 36, margin: 49, throttle: 0x44, rows: {corrected: 1, uncorrected: 2, pending: true}}
- {model: A16 (4 GPUs per board), address: '0000:03:00.0', ecc: false, recoveryAction: 1}
- {model: A2, address: '0000:04:00.0', eccCorrected: 3, eccUncorrected: 18446744073709551615}";
    let cards = devices(&read(world));
    let thresholds = cards[0].temperature_thresholds.unwrap();
    assert_eq!(
        (thresholds.shutdown_celsius, thresholds.slowdown_celsius, thresholds.max_operating_celsius),
        (Some(96), Some(93), Some(85))
    );
    assert_eq!((cards[0].temperature_celsius, cards[0].health.recovery_action), (Some(45), None));
    let thresholds = cards[1].temperature_thresholds.unwrap();
    assert_eq!(
        (thresholds.shutdown_celsius, thresholds.slowdown_celsius, thresholds.max_operating_celsius),
        (Some(92), Some(87), Some(85))
    );
    assert_eq!(cards[1].health.throttle_reasons, ["SwPowerCap", "HwThermalSlowdown"]);
    assert!(cards[1].health.row_remapping.unwrap().pending);
    assert_eq!((cards[2].health.state, cards[2].health.ecc.unwrap().enabled), (HealthState::Failed, false));
    assert_eq!(cards[3].health.ecc.unwrap().corrected, Some(3));
    assert_eq!(cards[3].health.ecc.unwrap().uncorrected, Some(i64::MAX));
}

#[test]
fn nvlinks_and_fabrics_are_read() {
    let world = "
newest: {GpuFabricInfo: 2}
cards:
- {model: H100 SXM5 80GB, address: '0000:41:00.0', uuid: GPU-a, moduleId: 3, nvlinks: ['0000:c0:00.0', '0000:c1:00.0'], fabric: {state: 3, cluster: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], clique: 5}}
- {model: H100 SXM5 80GB, address: '0000:42:00.0', uuid: GPU-b, moduleId: 1, nvlinks: ['0000:c1:00.0'], fabric: {state: 2}}
- {model: L40S, address: '0000:43:00.0', uuid: GPU-c}";
    let cards = devices(&read(world));
    assert_eq!((cards[0].nvlink_peers.as_slice(), cards[0].module_id), (&["GPU-b".to_owned()][..], Some(3)));
    let fabric = cards[0].fabric.clone().unwrap();
    assert_eq!((fabric.state.as_str(), fabric.clique_id), ("Completed", Some(5)));
    assert_eq!(fabric.cluster_uuid.as_deref(), Some("01020304-0506-0708-090a-0b0c0d0e0f10"));
    assert_eq!(cards[1].fabric.clone().unwrap().state, "InProgress");
    assert_eq!((&cards[2].nvlink_peers, &cards[2].fabric), (&vec![], &None));
}

#[test]
fn the_same_world_reads_the_same_each_time() {
    let fake = Fake::new(
        "cards:
- {model: L40S, address: '0000:41:00.0', mixedSize: true, vgpus: [{type: L40S-8Q, placement: 16}]}
- {model: H100 PCIe 80GB, address: '0000:42:00.0', mig: true, gpuInstances: [{profile: 1g.10gb, start: 3}, {profile: 3g.40gb, start: 4}]}
- {model: Tesla T4, address: '0000:03:00.0'}",
    );
    let nvml = fake.nvml();
    let first = nvml.read().unwrap();
    let addresses: Vec<String> = first.cards.iter().map(|card| card.address.to_string()).collect();
    assert_eq!(addresses, ["0000:03:00.0", "0000:41:00.0", "0000:42:00.0"]);
    for _ in 0..3 {
        assert_eq!(nvml.read().unwrap(), first);
    }
    let one = nvml.read_card("0000:42:00.0".parse().unwrap()).unwrap().unwrap();
    assert_eq!(one, first.cards[2]);
    assert_eq!(nvml.read_card("0000:44:00.0".parse().unwrap()).unwrap(), None);
}
