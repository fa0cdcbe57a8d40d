//! Positions on real cards.

use gpudesk_crds::{
    GpuNode,
    types::{ShareMode, VgpuSeries},
};
use serde_json::json;

use super::builders::*;
use crate::{
    cards::{self, Among, Cards, Found, NoGpus},
    facts::NodeFacts,
    fit::Prepared,
    occupancy::{Claim, NodeUse},
    request::{Demand, DesktopKey, Share, ShareRequest},
    shape::{NoShare, Refused, matches},
    state::UsedShare,
    tables::Tables,
};

/// The first card of a node, as the tables see it.
struct Card {
    facts: NodeFacts,
    used: NodeUse,
    tables: Tables,
}

impl Card {
    fn of(node: &GpuNode) -> Self {
        let facts = NodeFacts::read(node);
        let used = NodeUse::empty(&facts);
        Self { facts, used, tables: Tables::default() }
    }

    fn slots(&mut self) -> Vec<(u32, u32)> {
        let cards = self.facts.cards.iter().zip(&self.used.cards);
        cards
            .map(|(card, used)| {
                let shape = self.tables.shape(&card.shape);
                (shape, self.tables.state(shape, used))
            })
            .collect()
    }

    fn found(&mut self, shares: &[ShareRequest]) -> Result<Found, NoGpus> {
        self.found_at(shares, None)
    }

    /// Only with these cards, if any are named.
    fn found_at(&mut self, shares: &[ShareRequest], at: Option<&[usize]>) -> Result<Found, NoGpus> {
        let slots = self.slots();
        let asked = Demand { shares: shares.to_vec(), ..Demand::default() };
        let prepared = Prepared::new(&mut self.tables, &asked.into());
        let cards = Cards { facts: &self.facts, used: &self.used, slots: &slots };
        cards::best(&mut self.tables, cards, &prepared.sought, Among::All, at)
    }

    fn choices(&mut self, share: &Share) -> Result<Vec<UsedShare>, NoShare> {
        self.found_at(&[one("gpu", vec![share.clone()])], Some(&[0])).map_err(|none| none.why)?;
        let (of, state) = self.slots()[0];
        let wish = self.tables.wish(&one("gpu", vec![]), share);
        let found = self.tables.outcome(of, state, wish)?;
        Ok(found.iter().map(|candidate| candidate.choice.takes).collect())
    }

    fn starts(&mut self, share: &Share) -> Result<Vec<i32>, NoShare> {
        let mut starts: Vec<i32> =
            self.choices(share)?.into_iter().map(|takes| takes.start.unwrap()).collect();
        starts.sort_unstable();
        Ok(starts)
    }

    fn first(&mut self, share: &Share) -> Result<Option<i32>, NoShare> {
        let takes = self.choices(share)?[0];
        self.used.add_share(&self.facts, 0, takes);
        Ok(takes.start)
    }

    /// Puts a share at a position that something else chose.
    fn put(&mut self, share: &Share, start: i32) {
        let found = self.choices(share).unwrap();
        let takes = found.into_iter().find(|takes| takes.start == Some(start)).unwrap();
        self.used.add_share(&self.facts, 0, takes);
    }
}

fn mixed_l40s() -> Card {
    Card::of(&mixing_sizes(node("n", &[cell(0, 8, 65536, 0)], &[l40s(1, 0)])))
}

#[test]
fn a_24_gb_slice_of_an_rtx_pro_6000_starts_at_0_3_6_or_9() {
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[rtx_pro_6000(1, 0)]));
    let slice = mig("1g.24gb+gfx", VgpuSeries::Q);
    assert_eq!(card.starts(&slice), Ok(vec![0, 3, 6, 9]));
    card.put(&mig("2g.48gb+gfx", VgpuSeries::Q), 0);
    assert_eq!(card.starts(&slice), Ok(vec![6, 9]));
    assert_eq!(card.starts(&mig("4g.96gb+gfx", VgpuSeries::Q)), Err(NoShare::NoFreePlacement));
    card.put(&slice, 9);
    card.put(&slice, 6);
    assert_eq!(card.starts(&slice), Err(NoShare::NoFreePlacement));
}

#[test]
fn the_second_slice_stands_beside_the_first_so_that_a_half_stays_whole() {
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[rtx_pro_6000(1, 0)]));
    let slice = mig("1g.24gb+gfx", VgpuSeries::Q);
    assert_eq!(card.first(&slice), Ok(Some(0)));
    assert_eq!(card.first(&slice), Ok(Some(3)));
    assert_eq!(card.starts(&mig("2g.48gb+gfx", VgpuSeries::Q)), Ok(vec![6]));
}

#[test]
fn a_plain_slice_is_not_taken_for_one_with_graphics() {
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[a100(1, 0)]));
    assert_eq!(card.starts(&mig("1g.5gb+gfx", VgpuSeries::Q)), Err(NoShare::NotOffered));
    assert_eq!(
        card.starts(&mig("1g.5gb", VgpuSeries::Q)),
        Err(NoShare::NotOffered),
        "no vGPU type of series Q"
    );
    assert_eq!(card.starts(&mig("1g.5gb", VgpuSeries::C)).unwrap().len(), 7);
}

#[test]
fn small_instances_of_an_a100_leave_the_larger_possible() {
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[a100(1, 0)]));
    assert_eq!(card.first(&mig("1g.5gb", VgpuSeries::C)), Ok(Some(6)));
    assert_eq!(card.starts(&mig("4g.20gb", VgpuSeries::C)), Ok(vec![0]));
    assert_eq!(card.starts(&mig("2g.10gb", VgpuSeries::C)), Ok(vec![0, 2, 4]));
}

#[test]
fn compute_and_memory_are_both_limits() {
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[a100(1, 0)]));
    card.put(&mig("3g.20gb", VgpuSeries::C), 0);
    card.put(&mig("3g.20gb", VgpuSeries::C), 4);
    assert_eq!(card.starts(&mig("1g.5gb", VgpuSeries::C)), Err(NoShare::NoFreePlacement), "no memory");
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[a100(1, 0)]));
    card.put(&mig("4g.20gb", VgpuSeries::C), 0);
    card.put(&mig("2g.10gb", VgpuSeries::C), 4);
    assert_eq!(card.starts(&mig("1g.10gb", VgpuSeries::C)), Ok(vec![6]));
    card.put(&mig("1g.5gb", VgpuSeries::C), 6);
    assert_eq!(card.starts(&mig("1g.5gb", VgpuSeries::C)), Err(NoShare::NoFreePlacement), "no compute slice");
}

#[test]
fn compute_slices_run_out_before_memory_where_a_card_has_few() {
    let mut device = a100(1, 0);
    device["units"] = serde_json::json!({"migMemory": 8, "migCompute": 4});
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[device]));
    card.put(&mig("3g.20gb", VgpuSeries::C), 4);
    assert_eq!(card.starts(&mig("2g.10gb", VgpuSeries::C)), Err(NoShare::NoFreePlacement));
    assert_eq!(card.starts(&mig("1g.5gb", VgpuSeries::C)), Ok(vec![0, 1, 2, 3]));
    card.put(&mig("1g.5gb", VgpuSeries::C), 0);
    assert_eq!(card.starts(&mig("1g.5gb", VgpuSeries::C)), Err(NoShare::NoFreePlacement));
}

#[test]
fn one_media_extension_per_card() {
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[a100(1, 0)]));
    card.first(&mig("1g.5gb+me", VgpuSeries::C)).unwrap();
    assert_eq!(card.starts(&mig("1g.5gb+me", VgpuSeries::C)), Err(NoShare::NoFreePlacement));
}

#[test]
fn one_that_has_all_media_engines_stands_only_beside_those_without() {
    let mut device = rtx_pro_6000(1, 0);
    let engines = [[1, 1, 1, 0], [0; 4], [4, 4, 4, 1], [4, 4, 4, 1]];
    for (placement, [decoders, encoders, jpeg, optical_flow]) in
        device["placements"].as_array_mut().unwrap().iter_mut().zip(engines)
    {
        placement["engines"] =
            json!({"decoders": decoders, "encoders": encoders, "jpeg": jpeg, "opticalFlow": optical_flow});
    }
    let plain = mig("1g.24gb+gfx", VgpuSeries::Q);
    let none = mig("1g.24gb", VgpuSeries::Q);
    let all = mig("2g.48gb+gfx", VgpuSeries::Q);
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[device.clone()]));
    card.put(&all, 0);
    assert_eq!(card.starts(&plain), Err(NoShare::NoFreePlacement));
    assert_eq!(card.starts(&all), Err(NoShare::NoFreePlacement));
    assert_eq!(card.starts(&none), Ok(vec![6, 9]));
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[device.clone()]));
    card.put(&plain, 0);
    assert_eq!(card.starts(&all), Err(NoShare::NoFreePlacement), "in whatever order");
    // Where the profile of the whole card tells none, nothing is known.
    device["placements"][3]["engines"] = json!(null);
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[device]));
    card.put(&all, 0);
    assert_eq!(card.starts(&plain), Ok(vec![6, 9]));
}

#[test]
fn equal_size_means_that_the_first_vgpu_decides() {
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[l40s(1, 0)]));
    assert_eq!(card.first(&vgpu(8)), Ok(None));
    assert_eq!(card.first(&vgpu(16)), Err(NoShare::NoFreePlacement));
    for _ in 1..6 {
        assert_eq!(card.first(&vgpu(8)), Ok(None));
    }
    assert_eq!(card.first(&vgpu(8)), Err(NoShare::NoFreePlacement), "six at most");
}

#[test]
fn mixed_sizes_stand_at_the_positions_that_the_driver_lists() {
    let mut card = mixed_l40s();
    assert_eq!(card.starts(&vgpu(16)), Ok(vec![0, 32]));
    card.put(&vgpu(8), 16);
    assert_eq!(card.starts(&vgpu(12)), Ok(vec![0, 24, 36]));
    card.put(&vgpu(12), 0);
    card.put(&vgpu(12), 24);
    // 16 GB are free, at 12..16 and 36..48, and no 16Q may start there.
    assert_eq!(card.starts(&vgpu(16)), Err(NoShare::NoFreePlacement));
}

#[test]
fn the_layouts_of_the_vendors_figure_are_found_when_asked_for_together() {
    for wanted in [
        vec![6, 6, 6, 6, 12, 12],
        vec![24, 12, 12],
        vec![4, 4, 4, 4, 6, 6, 6, 6],
        vec![8, 12, 12, 16],
        vec![3, 3, 3, 3, 1, 1],
    ] {
        let mut card = mixed_l40s();
        let shares: Vec<_> = wanted.iter().map(|gib| one(&format!("s{gib}"), vec![vgpu(*gib)])).collect();
        let found = card.found(&shares).unwrap_or_else(|why| panic!("{wanted:?}: {why:?}"));
        let choices = found.picks.iter().map(|pick| pick.candidate.choice);
        let mut taken: Vec<(i32, i64)> =
            choices.map(|choice| (choice.takes.start.unwrap(), choice.framebuffer_mib / 1024)).collect();
        taken.sort_unstable();
        for pair in taken.windows(2) {
            assert!(i64::from(pair[0].0) + pair[0].1 <= i64::from(pair[1].0), "{taken:?}");
        }
    }
}

#[test]
fn looking_ahead_keeps_room_for_the_largest() {
    let mut card = mixed_l40s();
    card.first(&vgpu(8)).unwrap();
    assert_eq!(card.starts(&vgpu(24)).map(|starts| starts.len()), Ok(1));
    assert_eq!(
        card.starts(&vgpu(16)).map(|starts| starts.len()),
        Ok(2),
        "at 16 or 24 it takes no place of a 16Q"
    );
}

#[test]
fn a_vgpu_left_from_the_other_policy_keeps_the_card_until_it_goes() {
    let left = |card: &Card, start: Option<i32>| UsedShare {
        mode: ShareMode::Vgpu,
        kind: card.facts.cards[0].shape.kind_of(ShareMode::Vgpu, "L40S-8Q"),
        start,
        vgpu: None,
        scheduler: None,
    };
    let mut card = mixed_l40s();
    card.used.add_share(&card.facts, 0, left(&card, None));
    assert_eq!(card.first(&vgpu(8)), Err(NoShare::NoFreePlacement));
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[l40s(1, 0)]));
    card.used.add_share(&card.facts, 0, left(&card, Some(16)));
    assert_eq!(card.first(&vgpu(8)), Err(NoShare::NoFreePlacement));
}

#[test]
fn a_card_that_its_node_calls_unavailable_is_given_to_nobody() {
    let mut held = l40s(1, 0);
    held["unavailable"] = json!("the virtual machine i-2-34-VM, which is not gpudesk's, holds it");
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[held]));
    let refused = Err(NoShare::Refused(Refused::Unavailable));
    assert_eq!(card.first(&vgpu(8)), refused);
    assert_eq!(card.first(&Share::Passthrough), refused);
}

#[test]
fn cores_that_the_kubelet_keeps_are_not_dedicated() {
    let mut object = node("n", &[cell(0, 8, 65536, 0)], &[]);
    let free = |object: &GpuNode| NodeFacts::read(object).cells[0].cores.len();
    let before = free(&object);
    let status = object.status.as_mut().unwrap();
    let last = status.numa_cells[0].cores[7].clone();
    let host = status.host.get_or_insert_default();
    host.cpus.get_or_insert_default().kubelet_reserved = last.clone();
    // The one core that the owner wants kept is that of the kubelet.
    assert_eq!(free(&object), before);
    assert_eq!(NodeFacts::read(&object).cells[0].housekeeping, last);
}

#[test]
fn modes_exclude_each_other_and_a_whole_card_takes_its_group() {
    let mut first = l40s(1, 0);
    first["iommuGroup"] =
        json!({"id": 7, "members": [{"pciAddress": "0000:02:00.0"}, {"pciAddress": "0000:01:00.1"}]});
    let mut second = l40s(2, 0);
    second["iommuGroup"] =
        json!({"id": 7, "members": [{"pciAddress": "0000:01:00.0"}, {"pciAddress": "0000:01:00.1"}]});
    let object = node("n", &[cell(0, 8, 65536, 0)], &[first, second]);
    let mut card = Card::of(&object);
    assert_eq!(card.first(&Share::Passthrough), Ok(None));
    assert_eq!(card.first(&vgpu(8)), Err(NoShare::NoFreePlacement));
    let other = |card: &mut Card, share: &Share| {
        card.found_at(&[one("gpu", vec![share.clone()])], Some(&[1])).err().map(|none| none.why)
    };
    assert_eq!(other(&mut card, &vgpu(8)), Some(NoShare::NoFreePlacement));
    assert_eq!(other(&mut card, &Share::Passthrough), Some(NoShare::NoFreePlacement));

    let mut card = Card::of(&object);
    card.first(&vgpu(8)).unwrap();
    assert_eq!(other(&mut card, &Share::Passthrough), Some(NoShare::NoFreePlacement), "the group is in use");
    assert_eq!(other(&mut card, &vgpu(16)), None);
}

#[test]
fn product_globs_know_one_wildcard_and_no_case() {
    assert!(matches("*L40S*", "NVIDIA l40s"));
    assert!(matches("NVIDIA L40S", "NVIDIA L40S"));
    assert!(matches("NVIDIA*Server*", "NVIDIA RTX PRO 6000 Blackwell Server Edition"));
    assert!(!matches("*L40", "NVIDIA L40S"));
    assert!(!matches("L40S", "NVIDIA L40S"));
    assert!(!matches("*A*B*", "B then A"));
    assert!(matches("*", ""));
}

/// A 2 GB vGPU on a 24 GB GPU instance.
fn small() -> Share {
    Share::Mig { profile: "1g.24gb+gfx".into(), series: VgpuSeries::Q, framebuffer_mib: Some(2048) }
}

#[test]
fn forty_eight_desktops_of_2_gb_fit_on_one_card_and_no_more() {
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[rtx_pro_6000(1, 0)]));
    let mut starts: Vec<i32> = (0..48).map(|_| card.first(&small()).unwrap().unwrap()).collect();
    assert!(starts.chunks(12).all(|one| one.iter().all(|start| *start == one[0])), "one after the other");
    starts.dedup();
    starts.sort_unstable();
    assert_eq!(starts, [0, 3, 6, 9]);
    assert_eq!(card.first(&small()), Err(NoShare::NoFreePlacement));
}

#[test]
fn a_gpu_instance_takes_vgpus_of_its_own_size_only() {
    let mut device = rtx_pro_6000(1, 0);
    let four = json!({"type": "DC-1-4Q", "series": "Q", "framebufferMiB": 4096, "maxPerInstance": 6});
    device["placements"][0]["vgpuTypes"].as_array_mut().unwrap().push(four);
    let larger =
        Share::Mig { profile: "1g.24gb+gfx".into(), series: VgpuSeries::Q, framebuffer_mib: Some(4096) };
    let whole = mig("1g.24gb+gfx", VgpuSeries::Q);
    let mut card = Card::of(&node("n", &[cell(0, 8, 65536, 0)], &[device]));
    card.put(&small(), 3);
    assert_eq!(card.starts(&small()), Ok(vec![3]), "the instance that is there first");
    for other in [&larger, &whole] {
        assert_eq!(card.starts(other), Ok(vec![0, 6, 9]));
    }
    card.put(&larger, 0);
    card.put(&whole, 6);
    card.put(&whole, 9);
    assert_eq!((card.starts(&small()), card.starts(&larger)), (Ok(vec![3]), Ok(vec![0])));
    assert_eq!(card.starts(&whole), Err(NoShare::NoFreePlacement));
    for _ in 1..12 {
        card.put(&small(), 3);
    }
    assert_eq!(card.starts(&small()), Err(NoShare::NoFreePlacement), "there is room for larger ones only");
    assert_eq!(card.starts(&larger), Ok(vec![0]));
}

#[test]
fn an_instance_that_nobody_explains_is_joined_when_its_vgpu_is_known() {
    let on = |vgpus: serde_json::Value| {
        let mut object = node("n", &[cell(0, 8, 65536, 0)], &[rtx_pro_6000(1, 0)]);
        let device = &mut object.status.as_mut().unwrap().devices[0];
        device.instances = serde_json::from_value(vgpus).unwrap();
        let mut card = Card::of(&object);
        card.used = NodeUse::of(&card.facts, std::iter::empty(), None);
        card
    };
    let instance = |id: &str, vgpu: Option<&str>| {
        let mut instance = json!({"id": id, "type": "1g.24gb+gfx", "mode": "Mig", "start": 3});
        instance["vgpuType"] = json!(vgpu);
        instance
    };
    let known = |count: usize| {
        (0..count).map(|n| instance(&format!("0000:01:00.{n}"), Some("DC-1-2Q"))).collect::<Vec<_>>()
    };
    assert_eq!(on(json!(known(2))).starts(&small()), Ok(vec![3]));
    assert_eq!(on(json!(known(12))).starts(&small()), Ok(vec![0, 6, 9]), "it is full");
    assert_eq!(on(json!([instance("MIG-1", None)])).starts(&small()), Ok(vec![0, 6, 9]));
}

#[test]
fn an_instance_is_explained_by_a_desktop_with_its_vgpu_type_only() {
    let used = |vgpu: Option<&str>| {
        let mut object = node("n", &[cell(0, 8, 65536, 0)], &[rtx_pro_6000(1, 0)]);
        let device = &mut object.status.as_mut().unwrap().devices[0];
        device.instances = serde_json::from_value(json!([
            {"id": "a", "type": "1g.24gb+gfx", "mode": "Mig", "start": 3, "gpuInstance": 1, "vgpuType": vgpu},
        ]))
        .unwrap();
        let facts = NodeFacts::read(&object);
        let kind = facts.cards[0].shape.kind_of(ShareMode::Mig, "1g.24gb+gfx");
        let takes = UsedShare { mode: ShareMode::Mig, start: Some(3), kind, vgpu: Some(1), scheduler: None };
        let claim = Claim { shares: vec![(0, takes)], ..Claim::default() };
        let held = [(DesktopKey::new("demo", "a"), claim)];
        NodeUse::of(&facts, held.iter().map(|(key, claim)| (key, claim)), None).cards[0].shares().len()
    };
    assert_eq!((used(Some("DC-1-2Q")), used(None)), (1, 1), "it is that desktop's");
    assert_eq!(used(Some("DC-1-24Q")), 2, "it is another's");
}
