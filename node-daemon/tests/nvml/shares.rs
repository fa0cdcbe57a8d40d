//! What exists on cards, and what still fits beside it.

use gpudesk_crds::gpu_node_status::Device;

use crate::fake::{Fake, devices, read};

fn available(card: &Device, name: &str) -> Option<i32> {
    card.placements.iter().find(|placement| placement.type_name == name).unwrap().available
}

#[test]
fn instances_are_known_by_uuid_number_and_place_whatever_their_order() {
    let readings = read(
        "cards: [{model: A30, address: '0000:41:00.0', uuid: GPU-a30, mig: true, gpuInstances: [
            {profile: 1g.6gb, start: 0}, {profile: 1g.6gb, start: 1}, {profile: 2g.12gb, start: 2, compute: [1, 1]}]}]",
    );
    let mig = readings.cards[0].mig.as_ref().unwrap();
    let mut ids: Vec<(i32, u32)> = mig.instances.iter().map(|one| (one.placement.start, one.id)).collect();
    ids.sort_unstable();
    assert_eq!(ids, [(0, 3), (1, 4), (2, 2)], "numbers are not the order in which they were made");
    let large = mig.instances.iter().find(|one| one.id == 2).unwrap();
    assert_eq!(large.compute_instances.len(), 2);
    let places: Vec<i32> = large.compute_instances.iter().map(|one| one.placement.unwrap().start).collect();
    assert_eq!(places, [0, 1]);

    let card = &devices(&readings)[0];
    let shown: Vec<(&str, Option<i32>, Option<i32>)> =
        card.instances.iter().map(|one| (one.type_name.as_str(), one.start, one.gpu_instance)).collect();
    assert_eq!(
        shown,
        [("1g.6gb", Some(0), Some(3)), ("1g.6gb", Some(1), Some(4)), ("2g.12gb", Some(2), Some(2))]
    );
    assert!(card.instances.iter().all(|one| one.id.starts_with("MIG-")));
    assert_eq!(Some(&card.instances[2].id), large.compute_instances[0].uuid.as_ref());
}

#[test]
fn what_remains_is_what_the_driver_says_after_each_change() {
    let world = |instances: &str| {
        format!(
            "cards: [{{model: H100 PCIe 80GB, address: '0000:41:00.0', mig: true, gpuInstances: [{instances}]}}]"
        )
    };
    let fake = Fake::new(&world(""));
    let nvml = fake.nvml();
    let look = || devices(&nvml.read().unwrap()).swap_remove(0);
    let empty = look();
    assert_eq!((available(&empty, "4g.40gb"), available(&empty, "1g.10gb")), (Some(1), Some(7)));

    fake.world(&world("{profile: 1g.10gb, start: 2}"));
    let one = look();
    assert_eq!(
        (available(&one, "4g.40gb"), available(&one, "7g.80gb")),
        (Some(0), Some(0)),
        "something is in the way"
    );
    assert_eq!((available(&one, "3g.40gb"), available(&one, "1g.10gb")), (Some(1), Some(6)));

    // Two halves leave a compute slice, and no memory for it.
    fake.world(&world("{profile: 3g.40gb, start: 0}, {profile: 3g.40gb, start: 4}"));
    let halves = look();
    assert_eq!((available(&halves, "1g.10gb"), available(&halves, "1g.10gb+me")), (Some(0), Some(0)));

    fake.world(&world(""));
    assert_eq!(look(), empty, "a reset leaves nothing behind");
}

#[test]
fn only_one_slice_gets_the_media_engines() {
    let cards = devices(&read(
        "cards: [{model: RTX PRO 6000 Blackwell Server Edition 96GB, address: '0000:41:00.0', mig: true, gpuInstances: [
            {profile: 1g.24gb+me.all, start: 0}]}]",
    ));
    assert_eq!(available(&cards[0], "1g.24gb-me"), Some(3));
    assert_eq!((available(&cards[0], "1g.24gb"), available(&cards[0], "1g.24gb+gfx")), (Some(0), Some(0)));
}

#[test]
fn a_mig_mode_that_waits_for_a_reset_has_no_instances_yet() {
    let readings = read("cards: [{model: A100 SXM4 80GB (HGX), address: '0000:41:00.0', migPending: true}]");
    let mig = readings.cards[0].mig.as_ref().unwrap();
    assert!(!mig.current && mig.pending && mig.instances.is_empty());
    let card = &devices(&readings)[0];
    assert!(card.mig.unwrap().pending);
    let whole = card.placements.iter().find(|placement| placement.type_name == "7g.80gb").unwrap();
    assert_eq!((whole.size, whole.starts.as_slice(), whole.available), (8, &[0][..], None));
    assert!(card.health.message.as_ref().unwrap().contains("MIG will be on"));
}

#[test]
fn the_first_size_on_a_card_of_equal_sizes_rules_out_the_others() {
    let cards = devices(&read(
        "cards: [{model: L40S, address: '0000:41:00.0', vgpus: [
            {type: L40S-8Q, uuid: 11111111-2222-3333-4444-555555555555, vmId: aaaaaaaa-2222-3333-4444-555555555555}]}]",
    ));
    let card = &cards[0];
    assert_eq!(
        (available(card, "L40S-8Q"), available(card, "L40S-8A"), available(card, "L40S-6Q")),
        (Some(5), Some(5), Some(0))
    );
    assert_eq!(card.instances[0].id, "11111111-2222-3333-4444-555555555555");
    assert_eq!((card.instances[0].type_name.as_str(), card.instances[0].start), ("L40S-8Q", None));
    let vgpu = card.vgpu.as_ref().unwrap();
    assert_eq!((vgpu.mixed_size_capable, vgpu.mixed_size), (Some(true), Some(false)));
    assert_eq!(vgpu.schedulers, ["BestEffort", "EqualShare", "FixedShare"]);
}

#[test]
fn with_mixed_sizes_positions_decide_and_a_bad_one_shuts_out_the_larger() {
    // 8Q at 16 and 12Q at 0 and 24: no start is left for a 16Q, though 16 GB are free.
    let readings = read(
        "cards: [{model: L40S, address: '0000:41:00.0', mixedSize: true, scheduler: 2, vgpus: [
            {type: L40S-8Q, placement: 16, licensed: true, guestDriver: 580.95.05, vmId: vm-1},
            {type: L40S-12Q, placement: 0}, {type: L40S-12Q, placement: 24}]}]",
    );
    let vgpus = &readings.cards[0].vgpu.as_ref().unwrap().instances;
    assert_eq!(
        (vgpus[0].licensed, vgpus[0].license_state, vgpus[0].vm_id.as_deref()),
        (Some(true), Some(5), Some("vm-1"))
    );
    assert_eq!(
        (vgpus[0].guest_driver_version.as_deref(), vgpus[1].guest_driver_version.as_deref()),
        (Some("580.95.05"), None)
    );
    let card = &devices(&readings)[0];
    assert_eq!(
        (available(card, "L40S-16Q"), available(card, "L40S-12Q"), available(card, "L40S-48Q")),
        (Some(0), Some(1), Some(0))
    );
    let starts: Vec<Option<i32>> = card.instances.iter().map(|one| one.start).collect();
    assert_eq!(starts, [Some(0), Some(16), Some(24)]);
    let vgpu = card.vgpu.as_ref().unwrap();
    assert_eq!((vgpu.scheduler.as_deref(), vgpu.schedulers.len()), (Some("EqualShare"), 2));
}

#[test]
fn vgpus_on_a_gpu_instance_are_that_instances() {
    let readings = read(
        "cards: [{model: RTX PRO 6000 Blackwell Server Edition 96GB, address: '0000:41:00.0', mig: true,
          gpuInstances: [{profile: 1g.24gb+gfx, start: 3, id: 5}],
          vgpus: [{type: DC-1-2Q, gpuInstance: 5}, {type: DC-1-2Q, gpuInstance: 5}]}]",
    );
    let types = &readings.cards[0].vgpu.as_ref().unwrap().types;
    let creatable = |name: &str| types.iter().find(|kind| kind.name.ends_with(name)).unwrap().creatable;
    assert_eq!(
        (creatable(" DC-1-2Q"), creatable(" DC-1-4Q"), creatable(" DC-24Q")),
        (Some(true), Some(false), Some(false))
    );
    let card = &devices(&readings)[0];
    assert_eq!(card.instances.len(), 2);
    assert_ne!(card.instances[0].id, card.instances[1].id);
    for vgpu in &card.instances {
        assert_eq!((vgpu.type_name.as_str(), vgpu.vgpu_type.as_deref()), ("1g.24gb+gfx", Some("DC-1-2Q")));
        assert_eq!((vgpu.start, vgpu.gpu_instance), (Some(3), Some(5)));
    }
    assert_eq!(available(card, "DC-24Q"), Some(0));
}
