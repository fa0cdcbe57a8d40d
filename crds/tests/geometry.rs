//! What fits on a card, by what its driver lists.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use gpudesk_crds::{
    gpu_node_status::{CardUnits, Device, MediaEngines, Placement},
    types::ShareMode::{self, Mig, Vgpu, VirtualFunctions},
};
use gpudesk_geometry::{Engines, Misfit, Placed};

fn card(placements: Vec<Placement>) -> Device {
    let units = CardUnits::of(&placements);
    Device { units: Some(units), placements, ..Device::new("0000:01:00.0".parse().unwrap(), "10de", "2bb5") }
}

fn placement(mode: ShareMode, name: &str, gib: i64, max_count: i32, size: i32, starts: &[i32]) -> Placement {
    let compute_slices = if mode == Mig { size } else { 0 };
    let starts = starts.to_vec();
    Placement { size, starts, compute_slices, ..Placement::new(name, mode, gib * 1024, max_count) }
}

/// An A30 in part, vGPUs of two sizes, and virtual functions that are as large as a vGPU.
fn many() -> Device {
    card(vec![
        placement(Mig, "1g.6gb", 6, 4, 1, &[3, 2, 1, 0, 0]),
        placement(Mig, "4g.24gb", 24, 1, 4, &[0]),
        placement(Vgpu, "4Q", 4, 6, 4, &[0, 8]),
        placement(Vgpu, "4B", 4, 2, 4, &[0, 8]),
        placement(Vgpu, "8Q", 8, 3, 0, &[]),
        placement(VirtualFunctions, "3VF", 8, 3, 0, &[]),
        placement(VirtualFunctions, "2VF", 8, 2, 0, &[]),
    ])
}

fn counted(kind: u16) -> Placed {
    Placed { kind, start: None }
}

#[test]
fn units_follow_from_what_takes_the_whole_card() {
    let card = many();
    assert_eq!(card.units, Some(CardUnits { mig_memory: 4, mig_compute: 4, vgpu_region: 12 }));
    assert_eq!(card.geometry(false).kinds[1].starts, [0, 1, 2, 3]);
    let most = |mixed: bool| -> Vec<i32> {
        let geometry = card.geometry(mixed);
        (0..8).map(|kind| geometry.more(&[], kind)).collect()
    };
    assert_eq!(most(false), [1, 4, 1, 6, 2, 3, 3, 2]);
    assert_eq!(most(true), [1, 4, 1, 2, 2, 0, 3, 2], "8Q has no start");
}

#[test]
fn a_card_whose_units_nobody_said_gives_no_share_that_needs_them() {
    let geometry = Device { units: None, ..many() }.geometry(true);
    assert_eq!((0..4).map(|kind| geometry.more(&[], kind)).collect::<Vec<_>>(), [1, 0, 0, 0]);
    let slices = Some(CardUnits { mig_memory: 4, ..CardUnits::default() });
    let geometry = Device { units: slices, ..many() }.geometry(true);
    assert_eq!(geometry.check(&[], Placed { kind: 1, start: Some(0) }), Err(Misfit::Slices(0)));
}

#[test]
fn engines_of_the_card_are_those_of_the_profile_that_takes_it_whole() {
    let mut card = many();
    assert!(card.geometry(true).modes.iter().all(|mode| mode.engines.is_none()));
    let tell = |card: &mut Device, position: usize, decoders: i32| {
        card.placements[position].engines = Some(MediaEngines { decoders, ..MediaEngines::default() });
    };
    tell(&mut card, 0, 3);
    let two = [Placed { kind: 1, start: Some(0) }, Placed { kind: 1, start: Some(1) }];
    let check = |card: &Device| card.geometry(true).check(&two[..1], two[1]);
    assert_eq!(check(&card), Ok(()), "the whole card tells none");
    tell(&mut card, 1, 4);
    assert_eq!(check(&card), Err(Misfit::Engines { which: "decoders", wanted: 3, free: 1 }));
    tell(&mut card, 1, 6);
    assert_eq!(check(&card), Ok(()));
    assert_eq!(card.geometry(true).more(&[], 1), 2);
    tell(&mut card, 0, -1);
    tell(&mut card, 1, i32::MAX);
    let geometry = card.geometry(true);
    assert_eq!(
        (geometry.kinds[1].engines, geometry.kinds[2].engines),
        (Engines([0; 4]), Engines([255, 0, 0, 0]))
    );
    // Engines without numbers are none, and no engines are nothing known.
    let text = serde_yaml::to_string(&card.placements[0]).unwrap();
    let back: Placement = serde_yaml::from_str(&text).unwrap();
    assert_eq!(back, card.placements[0]);
}

#[test]
fn of_one_size_the_least_that_any_type_allows_is_the_most() {
    let geometry = many().geometry(false);
    let (q, b) = (counted(3), counted(4));
    assert_eq!(geometry.more(&[q], 4), 1);
    assert_eq!(geometry.check(&[q, q], b), Err(Misfit::Full));
    assert_eq!(geometry.check(&[q, b], q), Err(Misfit::Full), "in whatever order");
    assert_eq!(geometry.check(&[q], counted(5)), Err(Misfit::Excluded(0)), "another size");
    assert_eq!(geometry.check(&[counted(6)], counted(7)), Err(Misfit::Excluded(0)), "another division");
}

#[test]
fn units_are_taken_once_by_the_vgpus_of_one_gpu_instance() {
    let card = many();
    let on = |start| (Mig, "1g.6gb", Some(start));
    assert_eq!(card.units_taken([on(0), on(0), on(3)].into_iter()), 2);
    assert_eq!(card.units_taken([(Vgpu, "8Q", None)].into_iter()), 2, "a third of four, rounded up");
    assert_eq!(card.units_taken([(Vgpu, "gone", None)].into_iter()), card.unit_count());
}
