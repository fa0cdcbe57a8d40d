//! Decisions against a slow oracle that tries everything, on small estates, in every mode.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpudesk_crds::{
    Allocation, GpuAllocation, GpuNode,
    desktop_template::NumaPolicy,
    gpu_node_status::{Device, Placement},
    types::{PageSize, ShareMode, VgpuSeries},
};
use proptest::prelude::*;

use super::{builders::*, oracle};
use crate::{
    Limits, Snapshot,
    request::{Demand, DesktopKey, Request, Share, VgpuWish},
};

fn nodes() -> Vec<GpuNode> {
    let grouped = |mut card: serde_json::Value, with: &str| {
        card["iommuGroup"] = serde_json::json!({"id": 7, "members": [{"pciAddress": with}]});
        card
    };
    let cells = || [cell(0, 8, 65_536, 0), cell(1, 8, 65_536, 0)];
    vec![
        node("equal", &cells(), &[l40s(1, 0), l40s(2, 1)]),
        mixing_sizes(node("mixed", &cells(), &[l40s(1, 0)])),
        node("mig", &cells(), &[a100(1, 0)]),
        node("graphics", &cells(), &[rtx_pro_6000(1, 0)]),
        node("functions", &cells(), &[flex(1, 0), a100(2, 1)]),
        node("group", &cells(), &[grouped(l40s(1, 0), "0000:02:00.0"), grouped(l40s(2, 0), "0000:01:00.0")]),
    ]
}

fn share() -> impl Strategy<Value = Share> {
    prop_oneof![
        Just(Share::Passthrough),
        prop::sample::select(vec![2i64, 4, 6, 8, 12, 16, 24]).prop_map(vgpu),
        Just(Share::Vgpu(
            VgpuWish::Size { series: VgpuSeries::Q, min: 5 * 1024, max: 12 * 1024 },
            BTreeMap::new()
        )),
        prop::sample::select(vec!["1g.24gb+gfx", "2g.48gb+gfx"]).prop_map(|p| mig(p, VgpuSeries::Q)),
        prop::sample::select(vec![
            "1g.5gb",
            "1g.5gb+me",
            "1g.10gb",
            "2g.10gb",
            "3g.20gb",
            "4g.20gb",
            "7g.40gb"
        ])
        .prop_map(|p| mig(p, VgpuSeries::C)),
        Just(Share::VirtualFunction { framebuffer_mib: 1000 }),
    ]
}

/// Requests on one of the nodes; each with one or two shares of one or two ways.
fn asks() -> impl Strategy<Value = Vec<(Vec<Vec<Share>>, bool)>> {
    let ways = prop::collection::vec(share(), 1..3);
    prop::collection::vec((prop::collection::vec(ways, 1..3), any::<bool>()), 1..14)
}

/// Everything that a share could be on a card, by the words of the driver alone.
fn could_be(node: &GpuNode, device: &Device, share: &Share, name: &str) -> Vec<GpuAllocation> {
    let gpu = |placement: &Placement, start: Option<i32>, vgpu: Option<String>| GpuAllocation {
        name: name.into(),
        device: device.pci_address,
        device_uuid: device.uuid.clone(),
        product: device.product.clone(),
        mode: placement.mode,
        type_name: placement.type_name.clone(),
        framebuffer_mib: placement.framebuffer_mib,
        start,
        vgpu_type: vgpu,
        vgpu_scheduler: None,
        vgpu_params: BTreeMap::new(),
        profile: "profile".into(),
    };
    let of = |mode: ShareMode| device.placements.iter().filter(move |placement| placement.mode == mode);
    let mixed = oracle::mixes(node, device);
    match share {
        Share::Passthrough => {
            let whole =
                Placement::new("Passthrough", ShareMode::Passthrough, device.memory_mib.unwrap_or(0), 1);
            let supported = device.supports.iter().any(|s| s.mode == ShareMode::Passthrough && s.supported);
            supported.then(|| gpu(&whole, None, None)).into_iter().collect()
        }
        Share::Vgpu(VgpuWish::Type(_), _) => vec![],
        Share::Vgpu(VgpuWish::Size { series, min, max }, _) => of(ShareMode::Vgpu)
            .filter(|p| p.series == Some(*series) && (*min..=*max).contains(&p.framebuffer_mib))
            .flat_map(|p| {
                let starts: Vec<Option<i32>> =
                    if mixed { p.starts.iter().copied().map(Some).collect() } else { vec![None] };
                starts.into_iter().map(|start| gpu(p, start, None)).collect::<Vec<_>>()
            })
            .collect(),
        Share::Mig { profile, series, framebuffer_mib: _ } => of(ShareMode::Mig)
            .filter(|p| p.type_name == *profile)
            .flat_map(|p| {
                let vgpu = p.vgpu_types.iter().find(|v| v.series == *series && v.max_per_instance == 1);
                let vgpu = vgpu.map(|vgpu| vgpu.type_name.clone());
                let starts = if vgpu.is_some() { p.starts.clone() } else { vec![] };
                starts.into_iter().map(|start| gpu(p, Some(start), vgpu.clone())).collect::<Vec<_>>()
            })
            .collect(),
        Share::VirtualFunction { framebuffer_mib } => of(ShareMode::VirtualFunctions)
            .filter(|p| p.framebuffer_mib >= *framebuffer_mib)
            .map(|p| gpu(p, None, None))
            .collect(),
    }
}

/// Whether any choice of shares is legal beside what runs; and the least alternatives among them.
fn least_ways(
    node: &GpuNode,
    running: &[&Allocation],
    demand: &Demand,
    base: &Allocation,
) -> Option<Vec<usize>> {
    fn descend(
        node: &GpuNode,
        running: &[&Allocation],
        demand: &Demand,
        so_far: &Allocation,
        ways: &[usize],
    ) -> Option<Vec<usize>> {
        let Some(share) = demand.shares.get(ways.len()) else { return Some(ways.to_vec()) };
        let mut best: Option<Vec<usize>> = None;
        for way in &share.ways {
            for device in &node.status.as_ref().unwrap().devices {
                for gpu in could_be(node, device, &way.share, &share.name) {
                    let mut next = so_far.clone();
                    next.gpus.push(gpu);
                    let all: Vec<&Allocation> = running.iter().copied().chain([&next]).collect();
                    if oracle::legal(node, &all, i64::MAX / 1_000_000).is_err() {
                        continue;
                    }
                    let ways: Vec<usize> = ways.iter().copied().chain([way.index]).collect();
                    let found = descend(node, running, demand, &next, &ways);
                    if found.is_some() && (best.is_none() || found < best) {
                        best = found;
                    }
                }
            }
            if best.is_some() && ways.len() + 1 == demand.shares.len() {
                break;
            }
        }
        best
    }
    descend(node, running, demand, base, &[])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// A request is placed if and only if some choice is legal, with the least alternatives that any
    /// choice has. Each case is up to 13 decisions.
    #[test]
    fn what_can_be_placed_is_placed(which in 0..6usize, asks in asks()) {
        let node = nodes().swap_remove(which);
        let mut snapshot = Snapshot::new(Limits { cpu_overcommit: 1000 });
        snapshot.node_seen(&node);
        let mut running: BTreeMap<usize, Arc<Allocation>> = BTreeMap::new();
        for (number, (shares, stop)) in asks.into_iter().enumerate() {
            if stop && let Some((first, _)) = running.pop_first() {
                snapshot.desktop_gone(&DesktopKey::new("demo", &format!("d{first}")));
            }
            let name = format!("d{number}");
            let mut asked = request(&name, vec![]);
            let wanted = demand(&mut asked);
            wanted.numa = NumaPolicy::None;
            wanted.memory.mib = 16;
            wanted.memory.pages = PageSize::None;
            wanted.shares =
                shares.into_iter().enumerate().map(|(index, ways)| one(&format!("gpu{index}"), ways)).collect();
            let base = Allocation { gpus: vec![], ..empty_allocation(&node) };
            let now: Vec<&Allocation> = running.values().map(|given| &**given).collect();
            let oracle = least_ways(&node, &now, &asked.demand, &base);
            snapshot.desktop_seen(&desktop(&asked.desktop.name, 1, None));
            snapshot.wants(&asked.desktop, Some(&asked));
            snapshot.catch_up();
            let placed = snapshot.place(&asked).ok();
            let ways = placed.as_ref().map(|placed| {
                (0..asked.demand.shares.len())
                    .map(|share| usize::try_from((placed.score.ways >> (60 - 4 * share)) & 15).unwrap())
                    .collect::<Vec<_>>()
            });
            prop_assert_eq!(&ways, &oracle, "{:?} beside {:?}", asked.demand.shares, now);
            if let Some(placed) = placed {
                let given = allocation(&placed);
                snapshot.desktop_seen(&desktop(&name, 1, Some(&given)));
                running.insert(number, given);
            }
        }
    }

    /// The ranking's choice is the one that looking at every node would make.
    #[test]
    fn a_decision_is_the_best_of_all_nodes(asks in asks()) {
        let mut snapshot = Snapshot::new(Limits { cpu_overcommit: 1000 });
        for node in nodes() {
            snapshot.node_seen(&node);
        }
        let mut running: Vec<String> = vec![];
        for (number, (shares, stop)) in asks.into_iter().enumerate() {
            if stop && !running.is_empty() {
                snapshot.desktop_gone(&DesktopKey::new("demo", &running.remove(0)));
            }
            let mut asked: Request = request(&format!("d{number}"), vec![]);
            demand(&mut asked).shares =
                shares.into_iter().enumerate().map(|(index, ways)| one(&format!("gpu{index}"), ways)).collect();
            snapshot.desktop_seen(&desktop(&asked.desktop.name, 1, None));
            snapshot.wants(&asked.desktop, Some(&asked));
            snapshot.catch_up();
            let best = snapshot.best_score_of_all(&asked);
            let placed = snapshot.place(&asked).ok();
            prop_assert_eq!(placed.as_ref().map(|placed| (placed.score, placed.node.clone())), best);
            if let Some(placed) = placed {
                let name = format!("d{number}");
                snapshot.desktop_seen(&desktop(&name, 1, Some(&allocation(&placed))));
                running.push(name);
            }
        }
    }
}

fn empty_allocation(node: &GpuNode) -> Allocation {
    let asked = request("x", vec![]);
    let mut snapshot = Snapshot::new(Limits { cpu_overcommit: 1000 });
    snapshot.node_seen(node);
    snapshot.place(&asked).unwrap().allocation(None)
}
