use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::gpu_node_status::MigBackedType;
use gpudesk_inventory::simulated::HostFile;
use proptest::prelude::*;

use super::*;

fn card(model: &str) -> Device {
    let file = format!("{{coresPerSocket: 4, memoryMiB: 8192, cards: [{{model: {model}, count: 1}}]}}");
    HostFile::parse(&file).unwrap().host("n").unwrap().facts.cards.swap_remove(0)
}

fn rtx_pro_6000() -> Device {
    card("RTX PRO 6000 Blackwell Server Edition")
}

fn mig(profile: &str, vgpu: &str, start: i32) -> Share {
    Share {
        mode: ShareMode::Mig,
        type_name: profile.into(),
        vgpu_type: Some(vgpu.into()),
        start: Some(start),
    }
}

/// Shares of 24 GB instances with graphics.
fn small(vgpu: &str, start: i32) -> Share {
    mig("1g.24gb+gfx", vgpu, start)
}

#[test]
fn what_may_join_a_gpu_instance_and_what_may_not() {
    let card = rtx_pro_6000();
    let (two, four, all) = (small("DC-1-2Q", 3), small("DC-1-4Q", 3), small("DC-1-24Q", 3));
    let unknown = Share { vgpu_type: None, ..two.clone() };
    let gone = small("DC-1-7Q", 3);
    let full = vec![two.clone(); 12];
    let admitted: [(&[Share], &Share); 6] = [
        (&[], &two),
        (std::slice::from_ref(&two), &two),
        (&full[..11], &two),
        // Series may mix, sizes may not.
        (std::slice::from_ref(&two), &small("DC-1-2B", 3)),
        (&full, &small("DC-1-4Q", 6)),
        (&full, &mig("2g.48gb+gfx", "DC-2-48Q", 6)),
    ];
    for (existing, wanted) in admitted {
        assert_eq!(admit(&card, existing, wanted), Ok(()), "{wanted:?} beside {existing:?}");
    }
    let other_size = |vgpu: &str, other: &str| Refusal::OtherSizeOnInstance {
        type_name: "1g.24gb+gfx".into(),
        start: 3,
        vgpu_type: vgpu.into(),
        other: other.into(),
    };
    let is_full = |vgpu: &str, max| Refusal::InstanceFull {
        type_name: "1g.24gb+gfx".into(),
        start: 3,
        vgpu_type: vgpu.into(),
        max,
    };
    let refused: [(&[Share], &Share, Refusal); 8] = [
        (std::slice::from_ref(&two), &four, other_size("DC-1-4Q", "DC-1-2Q")),
        (std::slice::from_ref(&two), &all, other_size("DC-1-24Q", "DC-1-2Q")),
        (std::slice::from_ref(&all), &two, other_size("DC-1-2Q", "DC-1-24Q")),
        (std::slice::from_ref(&unknown), &two, other_size("DC-1-2Q", "a vGPU of a type not known")),
        (std::slice::from_ref(&gone), &two, other_size("DC-1-2Q", "DC-1-7Q")),
        (&full, &two, is_full("DC-1-2Q", 12)),
        (&full, &small("DC-1-2B", 3), is_full("DC-1-2B", 12)),
        (std::slice::from_ref(&all), &all, is_full("DC-1-24Q", 1)),
    ];
    for (existing, wanted, why) in refused {
        assert_eq!(admit(&card, existing, wanted), Err(why), "{wanted:?} beside {existing:?}");
    }
    // The same place and another profile, or the same profile half over it, is no joining.
    for wanted in [mig("2g.48gb+gfx", "DC-2-48Q", 0), mig("4g.96gb+gfx", "DC-4-96Q", 0)] {
        let refusal = admit(&card, std::slice::from_ref(&two), &wanted);
        assert!(matches!(refusal, Err(Refusal::Overlap { .. })), "{refusal:?}");
    }
    let nowhere = Share { start: None, ..two.clone() };
    let refusal = admit(&card, std::slice::from_ref(&two), &nowhere);
    assert!(matches!(refusal, Err(Refusal::StartMissing { .. })), "{refusal:?}");
    let refusal = admit(&card, std::slice::from_ref(&nowhere), &two);
    assert!(matches!(refusal, Err(Refusal::Overlap { .. })), "one could be anywhere: {refusal:?}");
}

#[test]
fn gpu_instances_count_and_not_the_vgpus_on_them() {
    let card = rtx_pro_6000();
    let mut existing: Vec<Share> = (0..36).map(|n| small("DC-1-2Q", n / 12 * 3)).collect();
    // Thirty-six vGPUs are three of four instances and slices.
    assert_eq!(admit(&card, &existing, &small("DC-1-24Q", 9)), Ok(()));
    existing.extend((0..12).map(|_| small("DC-1-2Q", 9)));
    let refusal = admit(&card, &existing, &small("DC-1-24Q", 9));
    assert!(matches!(refusal, Err(Refusal::OtherSizeOnInstance { .. })), "{refusal:?}");
    let mut few = card.clone();
    few.placements.iter_mut().find(|place| place.type_name == "1g.24gb+gfx").unwrap().max_count = 2;
    let refusal = admit(&few, &existing[..24], &small("DC-1-2Q", 6));
    assert!(matches!(refusal, Err(Refusal::Full { max: 2, .. })), "{refusal:?}");
    few.units.as_mut().unwrap().mig_compute = 1;
    let refusal = admit(&few, &existing[..12], &small("DC-1-2Q", 3));
    assert!(matches!(refusal, Err(Refusal::ComputeSlices { wanted: 1, free: 0, .. })), "{refusal:?}");
}

#[test]
fn media_engines_are_given_once() {
    let mut card = rtx_pro_6000();
    let on =
        card.placements.iter().find(|place| place.type_name == "1g.24gb+gfx").unwrap().vgpu_types.clone();
    for place in card.placements.iter_mut().filter(|place| place.type_name.starts_with("1g.24gb")) {
        place.vgpu_types.clone_from(&on);
    }
    let all = [mig("1g.24gb+me.all", "DC-1-24Q", 0)];
    assert_eq!(admit(&card, &all, &mig("1g.24gb-me", "DC-1-24Q", 3)), Ok(()));
    let refusal = admit(&card, &all, &small("DC-1-24Q", 3)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "1g.24gb+gfx takes media engines that others have: 1 decoders, of which 0 are free"
    );
    let refusal = admit(&card, &[small("DC-1-24Q", 3)], &all[0]);
    assert!(matches!(refusal, Err(Refusal::MediaEngines { wanted: 4, free: 3, .. })), "{refusal:?}");
    // Of +me there is one on any card; on an H100 the plain ones beside it have engines of their own.
    let card = self::card("H100 80GB");
    let me = |start| mig("1g.10gb+me", "H100-1-10CME", start);
    assert_eq!(admit(&card, &[me(0)], &mig("1g.10gb", "H100-1-10C", 1)), Ok(()));
    let refusal = admit(&card, &[me(0)], &me(1));
    assert!(matches!(refusal, Err(Refusal::Full { max: 1, .. })), "{refusal:?}");
    // The one optical flow engine binds them, whatever the count says.
    let mut card = card;
    card.placements.iter_mut().for_each(|place| place.max_count = 7);
    let refusal = admit(&card, &[me(0)], &me(1));
    assert!(
        matches!(refusal, Err(Refusal::MediaEngines { which: "optical flow engines", .. })),
        "{refusal:?}"
    );
    card.placements.iter_mut().for_each(|place| place.engines = None);
    assert_eq!(admit(&card, &[me(0)], &me(1)), Ok(()), "nobody told them");
}

#[test]
fn a_type_that_holds_fewer_beside_others_of_its_size_limits_the_instance() {
    let mut card = rtx_pro_6000();
    let place = card.placements.iter_mut().find(|place| place.type_name == "1g.24gb+gfx").unwrap();
    place.vgpu_types.iter_mut().find(|vgpu| vgpu.type_name == "DC-1-2B").unwrap().max_per_instance = 2;
    let beside = [small("DC-1-2B", 0), small("DC-1-2Q", 0)];
    let refusal = admit(&card, &beside, &small("DC-1-2Q", 0));
    assert!(matches!(refusal, Err(Refusal::InstanceFull { max: 2, .. })), "{refusal:?}");
}

/// Shares that a card with MIG could be asked for, in any order.
fn wishes(card: &Device) -> impl Strategy<Value = Vec<Share>> + use<> {
    let mut all = vec![];
    for place in card.placements.iter().filter(|place| place.mode == ShareMode::Mig) {
        for vgpu in &place.vgpu_types {
            all.extend(place.starts.iter().map(|start| mig(&place.type_name, &vgpu.type_name, *start)));
        }
    }
    // A few kinds, many of each: so that instances become full.
    let some = proptest::sample::subsequence(all.clone(), 1..=6.min(all.len()));
    some.prop_flat_map(|some| proptest::collection::vec(proptest::sample::select(some), 0..120))
}

fn any_of_a_card() -> impl Strategy<Value = (Device, Vec<Share>)> {
    let models = ["RTX PRO 6000 Blackwell Server Edition", "H100 80GB", "A100 40GB"];
    proptest::sample::select(models.map(card).to_vec()).prop_flat_map(|card| {
        let wishes = wishes(&card);
        (Just(card), wishes)
    })
}

proptest! {
    #[test]
    fn an_instance_never_holds_two_sizes_nor_more_than_it_can((card, wishes) in any_of_a_card()) {
        let mut on: Vec<Share> = vec![];
        for wish in wishes {
            if admit(&card, &on, &wish).is_ok() {
                on.push(wish);
            }
        }
        let mut instances: BTreeMap<(String, i32), Vec<&MigBackedType>> = BTreeMap::new();
        for share in &on {
            let vgpu = share.backed(&card).unwrap();
            instances.entry((share.type_name.clone(), share.start.unwrap())).or_default().push(vgpu);
        }
        let (mut slices, mut units, mut per_profile) = (0, BTreeSet::new(), BTreeMap::new());
        for ((type_name, start), vgpus) in instances {
            let sizes: BTreeSet<i64> = vgpus.iter().map(|vgpu| vgpu.framebuffer_mib).collect();
            prop_assert_eq!(sizes.len(), 1);
            let most = vgpus.iter().map(|vgpu| vgpu.max_per_instance).min().unwrap();
            prop_assert!(i32::try_from(vgpus.len()).unwrap() <= most);
            let place = card.placements.iter().find(|place| place.type_name == type_name).unwrap();
            slices += place.compute_slices;
            prop_assert!(place.starts.contains(&start));
            prop_assert!((start..start + place.size).all(|unit| units.insert(unit)), "no overlap");
            let count = per_profile.entry(type_name).or_insert(0);
            *count += 1;
            prop_assert!(*count <= place.max_count);
        }
        prop_assert!(slices <= card.units.unwrap().mig_compute);
    }
}
