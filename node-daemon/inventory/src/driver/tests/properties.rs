use proptest::prelude::*;

use gpudesk_crds::gpu_node_status::MediaEngines;

use super::*;

fn any_int() -> impl Strategy<Value = i32> {
    prop_oneof![Just(0), Just(i32::MAX), Just(i32::MIN), -2..20_i32, any::<i32>()]
}

fn any_id() -> impl Strategy<Value = u32> {
    prop_oneof![0..8_u32, Just(u32::MAX), any::<u32>()]
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("NVIDIA L40S-8Q".to_owned()),
        Just("MIG 1g.24gb+me".to_owned()),
        "[A-Z0-9]{1,5}-[0-9]{1,5}[QBAC]",
        "[0-9]g\\.[0-9]{0,25}gb(\\+me)?",
        "\\PC{0,120}"
    ]
}

prop_compose! {
    fn any_profile()(
        id in any_id(), index in any_id(), name in proptest::option::of(any_text()), compute_slices in any_int(),
        max_instances in any_int(), memory_mib in any::<i64>(), remaining in proptest::option::of(any_int()),
        engines in proptest::option::of((any_int(), any_int())),
        placements in proptest::option::of(proptest::collection::vec((any_int(), any_int()), 0..6)),
    ) -> MigProfile {
        let placements = placements.map(|all| {
            all.into_iter().map(|(start, size)| MigPlacement { start, size }).collect()
        });
        let engines = engines.map(|(decoders, jpeg)| MediaEngines { decoders, jpeg, ..MediaEngines::default() });
        MigProfile { id, index, name, compute_slices, max_instances, memory_mib, engines, placements, remaining }
    }
}

prop_compose! {
    fn any_type()(
        (id, name, framebuffer_mib) in (any_id(), any_text(), proptest::option::of(any::<i64>())),
        heads in proptest::option::of(any_int()), max_resolution in proptest::option::of((any_id(), any_id())),
        frame_rate_limit in proptest::option::of(any_int()), max_instances in proptest::option::of(any_int()),
        gpu_instance_profile_id in proptest::option::of(any_id()),
        max_per_gpu_instance in proptest::option::of(any_int()), creatable in proptest::option::of(any::<bool>()),
        mixed in proptest::option::of((any_int(), proptest::collection::vec(any_int(), 0..6))),
        creatable_starts in proptest::option::of(proptest::collection::vec(any_int(), 0..6)),
    ) -> VgpuTypeReading {
        VgpuTypeReading {
            id, name, class: None, framebuffer_mib, heads, max_resolution, frame_rate_limit, max_instances,
            max_instances_per_vm: None, gpu_instance_profile_id, max_per_gpu_instance, creatable,
            mixed_placements: mixed.map(|(size, starts)| VgpuPlacements { size, starts }), creatable_starts,
        }
    }
}

prop_compose! {
    fn any_card()(
        bus in 0..4_u8, texts in proptest::collection::vec(proptest::option::of(any_text()), 3),
        memory_mib in proptest::option::of(any::<i64>()),
        profiles in proptest::collection::vec(any_profile(), 0..5),
        instances in proptest::collection::vec((any_id(), any_id(), any_int(), proptest::option::of(any_text())), 0..5),
        (mixed_size, types) in (proptest::option::of(any::<bool>()), proptest::collection::vec(any_type(), 0..6)),
        vgpus in proptest::collection::vec((any_id(), proptest::option::of(any_text()), proptest::option::of(any_int()), proptest::option::of(any_id())), 0..5),
        temperature in proptest::collection::vec(proptest::option::of(any_int()), 5),
        (recovery_action, clocks_event_reasons) in (proptest::option::of(any_id()), proptest::option::of(any::<u64>())),
        remote in 0..6_u8,
    ) -> CardReadings {
        let address = |bus| gpudesk_crds::types::PciAddress { domain: 0, bus, device: 0, function: 0 };
        let mut card = CardReadings::new(address(bus));
        [card.product, card.uuid, card.serial] = [0, 1, 2].map(|place: usize| texts[place].clone());
        card.memory_mib = memory_mib;
        card.pci_id = Some("10de:2bb5".into());
        card.mig = Some(MigReadings {
            current: true,
            pending: false,
            profiles,
            instances: instances.into_iter().map(|(id, profile_id, start, uuid)| GpuInstanceReading {
                id,
                profile_id,
                placement: MigPlacement { start, size: 1 },
                compute_instances: vec![ComputeInstanceReading { id, uuid, ..ComputeInstanceReading::default() }],
            }).collect(),
        });
        card.vgpu = Some(VgpuReadings {
            mixed_size,
            types,
            instances: vgpus.into_iter().map(|(type_id, uuid, placement_id, gpu_instance)| VgpuInstanceReading {
                type_id, mdev_uuid: uuid.clone(), uuid, placement_id, gpu_instance, ..VgpuInstanceReading::default()
            }).collect(),
            ..VgpuReadings::default()
        });
        let limits = Thresholds { shutdown: temperature[2], slowdown: temperature[3], gpu_max: temperature[4], memory_max: None };
        card.temperature = Some(TemperatureReadings { now: temperature[0], degrees: None, margin: temperature[1], margins: Some(limits) });
        card.recovery_action = recovery_action;
        card.clocks_event_reasons = clocks_event_reasons;
        card.nvlinks = vec![NvLink { link: 0, remote: Some(address(remote)) }];
        card
    }
}

proptest! {
    #[test]
    fn no_reading_panics_and_a_second_look_changes_nothing(cards in proptest::collection::vec(any_card(), 0..4)) {
        let mut readings = DriverReadings::default();
        for card in cards {
            readings.put_card(card);
        }
        let mut once: Vec<Device> = readings.cards.iter().map(|card| Device::new(card.address, "10de", "2bb5")).collect();
        describe(&mut once, &readings);
        for card in &once {
            let mut names: Vec<&str> = card.placements.iter().map(|placement| placement.type_name.as_str()).collect();
            names.sort_unstable();
            prop_assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "keys of a list are unique");
            let mut ids: Vec<&str> = card.instances.iter().map(|instance| instance.id.as_str()).collect();
            ids.sort_unstable();
            prop_assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "keys of a list are unique: {ids:?}");
            for placement in &card.placements {
                prop_assert!((0..=4096).contains(&placement.max_count) && placement.framebuffer_mib >= 0);
                prop_assert!(placement.starts.iter().all(|start| (0..=4096).contains(start)));
                prop_assert!(!placement.type_name.is_empty() && placement.type_name.chars().count() <= 64);
            }
        }
        let mut twice = once.clone();
        describe(&mut twice, &readings);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn the_order_of_lists_in_a_reading_does_not_matter(card in any_card()) {
        let mut readings = DriverReadings { cards: vec![card], ..DriverReadings::default() };
        // Numbers are keys in what a driver says.
        let (mut mig, mut vgpu) = (readings.cards[0].mig.take().unwrap(), readings.cards[0].vgpu.take().unwrap());
        mig.profiles.sort_by_key(|profile| profile.id);
        mig.profiles.dedup_by_key(|profile| profile.id);
        vgpu.types.sort_by_key(|kind| kind.id);
        vgpu.types.dedup_by_key(|kind| kind.id);
        (mig.instances, vgpu.instances) = (vec![], vec![]);
        readings.cards[0].mig = Some(mig.clone());
        readings.cards[0].vgpu = Some(vgpu.clone());
        let mut forward = [Device::new(readings.cards[0].address, "10de", "2bb5")];
        describe(&mut forward, &readings);
        mig.profiles.reverse();
        vgpu.types.reverse();
        readings.cards[0].mig = Some(mig);
        readings.cards[0].vgpu = Some(vgpu);
        let mut backward = [Device::new(readings.cards[0].address, "10de", "2bb5")];
        describe(&mut backward, &readings);
        prop_assert_eq!(forward, backward);
    }

    #[test]
    fn no_file_panics(text in "(cards:\n- address: '0000:41:00.0'\n)?\\PC{0,200}") {
        let _ = serde_yaml::from_str::<DriverReadings>(&text);
    }
}
