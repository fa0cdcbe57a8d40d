use gpudesk_crds::{
    gpu_node_status::{Device, Instance, VirtualFunction},
    types::ShareMode,
};

use super::*;

#[test]
fn the_drivers_name_memory_and_uuid_come_first_and_blanks_count_for_nothing() {
    let card = first(MIG);
    assert_eq!(card.product, "NVIDIA RTX PRO 6000 Blackwell Server Edition");
    assert_eq!((card.uuid.as_deref(), card.serial, card.memory_mib), (Some("GPU-1"), None, Some(97_887)));
}

#[test]
fn mig_profiles_come_by_slices_size_and_number_under_their_own_names() {
    let card = first(MIG);
    let names: Vec<&str> = card.placements.iter().map(|placement| placement.type_name.as_str()).collect();
    assert_eq!(names, ["1g.24gb", "1g.24gb+gfx", "1g.24gb-me", "4g.96gb", "DC-24C"]);
    let slice = placement(&card, "1g.24gb+gfx");
    assert_eq!((slice.size, slice.starts.as_slice(), slice.max_count), (3, &[0, 3, 6, 9][..], 4));
    assert_eq!(
        (slice.framebuffer_mib, slice.available, slice.driver_id.as_deref()),
        (24_576, Some(3), Some("47"))
    );
    let units = card.units.unwrap();
    assert_eq!((units.mig_memory, units.mig_compute, units.vgpu_region), (12, 4, 0));
}

#[test]
fn types_on_a_gpu_instance_are_listed_with_their_profile_and_not_beside_it() {
    let card = first(MIG);
    let types: Vec<(&str, i32)> = placement(&card, "1g.24gb+gfx")
        .vgpu_types
        .iter()
        .map(|backed| (backed.type_name.as_str(), backed.max_per_instance))
        .collect();
    assert_eq!(types, [("DC-1-2Q", 12), ("DC-1-4Q", 6)]);
    assert!(placement(&card, "1g.24gb").vgpu_types.is_empty());
}

#[test]
fn a_gpu_instance_is_known_by_the_uuid_of_its_first_compute_instance() {
    let card = first(&MIG.replace("{handle: 7, uuid: vgpu-7, typeId: 901, gpuInstance: 4}", ""));
    let shown: Vec<(&str, &str, Option<i32>, Option<i32>)> = card
        .instances
        .iter()
        .map(|one| (one.id.as_str(), one.type_name.as_str(), one.start, one.gpu_instance))
        .collect();
    assert_eq!(
        shown,
        [("MIG-GPU-1/3", "1g.24gb", Some(0), Some(3)), ("MIG-a", "1g.24gb+gfx", Some(9), Some(4))]
    );
    assert!(card.instances.iter().all(|one| one.vgpu_type.is_none()));
}

/// Id, type, vGPU type, start and GPU instance of a share.
type OnSlice<'a> = (&'a str, &'a str, Option<&'a str>, Option<i32>, Option<i32>);

/// The vGPUs of a card, each with what is under it.
fn on_slices(card: &Device) -> Vec<OnSlice<'_>> {
    let slices = card.instances.iter().filter(|one| one.mode == ShareMode::Mig);
    slices
        .map(|one| (one.id.as_str(), &*one.type_name, one.vgpu_type.as_deref(), one.start, one.gpu_instance))
        .collect()
}

#[test]
fn a_gpu_instance_with_vgpus_is_shown_as_these() {
    let vgpu = "{handle: 7, uuid: vgpu-7, typeId: 901, gpuInstance: 4}";
    let more = format!("{vgpu}\n    - {}", vgpu.replace('7', "8"));
    assert_eq!(
        on_slices(&first(&MIG.replace(vgpu, &more))),
        [
            ("MIG-GPU-1/3", "1g.24gb", None, Some(0), Some(3)),
            ("vgpu-7", "1g.24gb+gfx", Some("DC-1-2Q"), Some(9), Some(4)),
            ("vgpu-8", "1g.24gb+gfx", Some("DC-1-2Q"), Some(9), Some(4)),
        ]
    );
    let nameless = MIG.replace(vgpu, "{handle: 7, typeId: 901, gpuInstance: 4}");
    assert_eq!(on_slices(&first(&nameless))[1], ("MIG-a", "1g.24gb+gfx", Some("DC-1-2Q"), Some(9), Some(4)));
}

#[test]
fn functions_that_carry_vgpus_of_a_gpu_instance_are_that_instances() {
    let readings: DriverReadings = serde_yaml::from_str(MIG).unwrap();
    let mut cards = [Device::new(readings.cards[0].address, "10de", "2bb5")];
    let carried = |function: &str, type_name: &str, owner: &str| Instance {
        id: function.into(),
        type_name: type_name.into(),
        mode: ShareMode::Mig,
        vgpu_type: None,
        start: None,
        virtual_function: Some(function.parse().unwrap()),
        gpu_instance: Some(4),
        owner: Some(owner.into()),
    };
    // Of the second, sysfs knows the number of its type only.
    let (ada, ben) = (carried("0000:41:00.4", "DC-1-2Q", "a/ada"), carried("0000:41:00.5", "901", "a/ben"));
    cards[0].instances = vec![ada, ben];
    describe(&mut cards, &readings);
    let shown = [
        ("MIG-GPU-1/3", "1g.24gb", None, Some(0), Some(3)),
        ("0000:41:00.4", "1g.24gb+gfx", Some("DC-1-2Q"), Some(9), Some(4)),
        ("0000:41:00.5", "1g.24gb+gfx", Some("DC-1-2Q"), Some(9), Some(4)),
    ];
    assert_eq!(on_slices(&cards[0]), shown);
    let owners: Vec<_> = cards[0].instances.iter().map(|one| one.owner.as_deref()).collect();
    assert_eq!(owners, [None, Some("a/ada"), Some("a/ben")]);
    // Once more, over what was made of it.
    let once = cards.clone();
    describe(&mut cards, &readings);
    assert_eq!(cards[0].instances, once[0].instances);
}

#[test]
fn names_that_an_old_driver_does_not_give_are_made_as_nvidias_tools_make_them() {
    let card = card(
        "memoryMiB: 40536, mig: {current: true, pending: true, profiles: [
            {id: 19, index: 0, computeSlices: 1, maxInstances: 7, memoryMiB: 4864},
            {id: 20, index: 7, computeSlices: 1, maxInstances: 1, memoryMiB: 4864},
            {id: 15, index: 9, computeSlices: 1, maxInstances: 4, memoryMiB: 9856},
            {id: 9, index: 2, computeSlices: 3, maxInstances: 2, memoryMiB: 19968},
            {id: 0, index: 4, computeSlices: 7, maxInstances: 1, memoryMiB: 40192}]}",
    );
    let mut names: Vec<&str> = card.placements.iter().map(|placement| placement.type_name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["1g.10gb", "1g.5gb", "1g.5gb+me", "3g.20gb", "7g.40gb"]);
}

#[test]
fn positions_that_a_card_does_not_tell_are_those_of_an_equal_card() {
    let profile = "{id: 19, index: 0, name: 1g.10gb, computeSlices: 1, maxInstances: 7, memoryMiB: 9856";
    let text = format!(
        "cards:
- {{address: '0000:41:00.0', pciId: '10de:2331', mig: {{current: false, profiles: [{profile}}}]}}}}
- {{address: '0000:42:00.0', pciId: '10de:2331', mig: {{current: true, profiles: [{profile}, placements: [{{start: 0, size: 1}}, {{start: 1, size: 1}}]}}]}}}}
- {{address: '0000:43:00.0', pciId: '10de:2339', mig: {{current: false, profiles: [{profile}}}]}}}}"
    );
    let cards = described(&text);
    assert_eq!(cards[0].placements[0].starts, [0, 1]);
    assert!(cards[2].placements[0].starts.is_empty());
}

const MIXED: &str = "vgpu: {mixedSizeCapable: true, mixedSize: true, scheduler: 1, schedulers: [2, 1, 9], types: [
    {id: 1153, name: NVIDIA L40S-16Q, framebufferMiB: 16384, heads: 4, maxResolution: [7680, 4320], frameRateLimit: 60, maxInstances: 3, creatable: true, mixedPlacements: {size: 16, starts: [32, 0]}, creatableStarts: [32]},
    {id: 1156, name: NVIDIA L40S-48Q, framebufferMiB: 49152, maxInstances: 1, creatable: false, mixedPlacements: {size: 48, starts: [0]}},
    {id: 1145, name: NVIDIA L40S-1B, framebufferMiB: 1024, maxInstances: 32}],
  instances: [{handle: 7, uuid: vgpu-7, typeId: 1153, placementId: 0}]}";

#[test]
fn vgpu_types_have_positions_where_sizes_can_be_mixed() {
    let card = card(MIXED);
    let sixteen = placement(&card, "L40S-16Q");
    assert_eq!((sixteen.size, sixteen.starts.as_slice(), sixteen.max_count), (16, &[0, 32][..], 3));
    assert_eq!((sixteen.heads, sixteen.max_resolution.as_deref()), (Some(4), Some("7680x4320")));
    assert_eq!((sixteen.frame_rate_limit, sixteen.available), (Some(60), Some(1)));
    assert_eq!(sixteen.driver_id.as_deref(), Some("1153"));
    assert_eq!(placement(&card, "L40S-48Q").available, Some(0));
    assert_eq!(placement(&card, "L40S-1B").available, None, "nobody said what can be made");
    assert_eq!(card.units.unwrap().vgpu_region, 48);
    let vgpu = card.vgpu.unwrap();
    assert_eq!(
        (vgpu.scheduler.as_deref(), vgpu.schedulers),
        (Some("BestEffort"), vec!["BestEffort".into(), "EqualShare".into()])
    );
    assert_eq!(card.instances[0].start, Some(0));
}

#[test]
fn what_sysfs_says_of_a_share_is_kept_beside_what_the_driver_says() {
    let readings: DriverReadings =
        serde_yaml::from_str(&format!("cards: [{{address: '0000:41:00.0', {MIXED}}}]")).unwrap();
    let mut cards = [Device::new(readings.cards[0].address, "10de", "26b9")];
    let function = "0000:41:00.4".parse().unwrap();
    cards[0].virtual_functions = vec![
        VirtualFunction {
            pci_address: function,
            index: 0,
            device_id: None,
            driver: None,
            iommu_group: None,
            unavailable: None,
        };
        2
    ];
    let mut known = crate::topology::vgpu_type::placement(
        &crate::topology::vgpu_type::parse("L40S-16Q").unwrap(),
        "nvidia-1153",
    );
    known.max_count = 2;
    cards[0].placements = vec![known];
    // A function of which sysfs knows the number of its type only.
    cards[0].instances = vec![Instance {
        id: "0000:41:00.4".into(),
        type_name: "1153".into(),
        mode: ShareMode::Vgpu,
        vgpu_type: None,
        start: None,
        virtual_function: Some(function),
        gpu_instance: None,
        owner: None,
    }];
    describe(&mut cards, &readings);
    let sixteen = placement(&cards[0], "L40S-16Q");
    assert_eq!((sixteen.driver_id.as_deref(), sixteen.max_count), (Some("nvidia-1153"), 2));
    assert_eq!(placement(&cards[0], "L40S-1B").max_count, 2, "no more than there are functions");
    let shown: Vec<_> =
        cards[0].instances.iter().map(|one| (one.id.as_str(), one.type_name.as_str(), one.start)).collect();
    assert_eq!(shown, [("0000:41:00.4", "L40S-16Q", Some(0))]);
}

#[test]
fn a_vgpu_that_sysfs_does_not_show_is_shown_by_its_uuid() {
    let card = card(
        "vgpu: {types: [{id: 746, name: NVIDIA A2-4Q, maxInstances: 4, creatable: true}],
         instances: [{handle: 1, uuid: u-1, mdevUuid: 83B8F4F2-509F-382F-3C1E-E6BFE0FA1001, typeId: 746}]}",
    );
    assert_eq!(card.instances[0].id, "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001");
    assert_eq!(placement(&card, "A2-4Q").available, Some(3));
}
