//! Nodes, cards and requests in few words.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpudesk_crds::{
    Allocation, Desktop, GpuNode,
    desktop_template::{NumaPolicy, Pinning},
    types::{PageSize, VgpuSeries},
};
use serde_json::{Value, json};

use crate::{
    Placed,
    request::{
        CardRequirements, CpuRequest, Demand, DesktopKey, MemoryRequest, Request, Share, ShareRequest,
        VgpuWish, Way,
    },
};

pub(super) fn node(name: &str, cells: &[Value], devices: &[Value]) -> GpuNode {
    serde_json::from_value(json!({
        "apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode",
        "metadata": {"name": name, "resourceVersion": "1"},
        "spec": {},
        "status": {
            "numaCells": cells, "devices": devices,
            "conditions": [{"type": "Ready", "status": "True", "reason": "AsExpected", "message": "",
                            "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        },
    }))
    .unwrap()
}

/// A cell of `cores` cores with two threads each; CPU numbers start at `cores * id`.
pub(super) fn cell(id: i32, cores: i32, memory_mib: i64, gi_pages: i64) -> Value {
    let cpus: Vec<String> =
        (0..cores).map(|core| format!("{},{}", id * cores + core, 1000 + id * cores + core)).collect();
    json!({"id": id, "cores": cpus, "memoryMiB": memory_mib, "hugepages": [{"size": "1Gi", "total": gi_pages}]})
}

fn device(bus: u8, cell: i32, product: &str, memory_mib: i64) -> Value {
    json!({
        "pciAddress": format!("0000:{bus:02x}:00.0"), "vendorId": "10de", "deviceId": "2bb5",
        "product": product, "uuid": format!("GPU-{bus}"), "numaCell": cell, "memoryMiB": memory_mib,
        "health": {"state": "Healthy"},
        "supports": [{"mode": "Passthrough", "supported": true}],
    })
}

fn with(mut device: Value, field: &str, value: Value) -> Value {
    device[field] = value;
    device
}

/// An L40S: the vGPU table of Ada cards with 48 GB, in part.
pub(super) fn l40s(bus: u8, cell: i32) -> Value {
    let types: [(i64, i32, &[i32]); 10] = [
        (48, 1, &[0]),
        (24, 2, &[0, 24]),
        (16, 3, &[0, 32]),
        (12, 4, &[0, 12, 24, 36]),
        (8, 6, &[0, 16, 24, 40]),
        (6, 8, &[0, 6, 12, 18, 24, 30, 36, 42]),
        (4, 12, &[0, 8, 12, 20, 24, 32, 36, 44]),
        (3, 16, &[0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45]),
        (2, 24, &[0, 4, 6, 10, 12, 16, 18, 22, 24, 28, 30, 34, 36, 40, 42, 46]),
        (1, 32, &[0, 5, 6, 11, 12, 17, 18, 23, 24, 29, 30, 35, 36, 41, 42, 47]),
    ];
    let placements: Vec<Value> = types
        .iter()
        .map(|(gib, max, starts)| {
            json!({"type": format!("L40S-{gib}Q"), "mode": "Vgpu", "framebufferMiB": gib * 1024, "series": "Q",
                   "size": gib, "starts": starts, "maxCount": max})
        })
        .collect();
    let card = with(device(bus, cell, "NVIDIA L40S", 46068), "placements", json!(placements));
    with(card, "units", json!({"vgpuRegion": 48}))
}

/// An RTX PRO 6000: MIG with 12 memory units and 4 compute slices, and two sizes of vGPU.
pub(super) fn rtx_pro_6000(bus: u8, cell: i32) -> Value {
    let mig = |name: &str, size: i32, starts: &[i32], slices: i32, gib: i64| {
        json!({"type": name, "mode": "Mig", "framebufferMiB": gib * 1024, "size": size, "starts": starts,
        "computeSlices": slices, "maxCount": starts.len(),
        "vgpuTypes": [
            {"type": format!("DC-{slices}-{gib}Q"), "series": "Q", "framebufferMiB": gib * 1024, "maxPerInstance": 1},
            {"type": format!("DC-{slices}-2Q"), "series": "Q", "framebufferMiB": 2048, "maxPerInstance": 12},
        ]})
    };
    let vgpu = |gib: i64, max: i32| {
        json!({"type": format!("DC-{gib}Q"), "mode": "Vgpu", "framebufferMiB": gib * 1024, "series": "Q",
               "maxCount": max})
    };
    let placements = json!([
        mig("1g.24gb+gfx", 3, &[0, 3, 6, 9], 1, 24),
        mig("1g.24gb", 3, &[0, 3, 6, 9], 1, 24),
        mig("2g.48gb+gfx", 6, &[0, 6], 2, 48),
        mig("4g.96gb+gfx", 12, &[0], 4, 96),
        vgpu(8, 12),
        vgpu(16, 6),
    ]);
    let product = "NVIDIA RTX PRO 6000 Blackwell Server Edition";
    let card = with(device(bus, cell, product, 97887), "placements", placements);
    with(card, "units", json!({"migMemory": 12, "migCompute": 4}))
}

/// An A100 with 40 GB, its MIG profiles in part.
pub(super) fn a100(bus: u8, cell: i32) -> Value {
    let mig = |name: &str, size: i32, starts: &[i32], slices: i32, max: i32| {
        json!({"type": name, "mode": "Mig", "framebufferMiB": 5120 * size, "size": size, "starts": starts,
               "computeSlices": slices, "maxCount": max,
               "vgpuTypes": [{"type": format!("A100-{slices}-{}C", 5 * size), "series": "C",
                              "framebufferMiB": 5120 * size, "maxPerInstance": 1}]})
    };
    let placements = json!([
        mig("1g.5gb", 1, &[0, 1, 2, 3, 4, 5, 6], 1, 7),
        mig("1g.5gb+me", 1, &[0, 1, 2, 3, 4, 5, 6], 1, 1),
        mig("1g.10gb", 2, &[0, 2, 4, 6], 1, 4),
        mig("2g.10gb", 2, &[0, 2, 4], 2, 3),
        mig("3g.20gb", 4, &[0, 4], 3, 2),
        mig("4g.20gb", 4, &[0], 4, 1),
        mig("7g.40gb", 8, &[0], 7, 1),
    ]);
    let card = with(device(bus, cell, "NVIDIA A100-SXM4-40GB", 40960), "placements", placements);
    with(card, "units", json!({"migMemory": 8, "migCompute": 7}))
}

/// A card whose virtual functions are given away.
pub(super) fn flex(bus: u8, cell: i32) -> Value {
    let placements = json!([
        {"type": "VF", "mode": "VirtualFunctions", "framebufferMiB": 3072, "maxCount": 4},
    ]);
    with(device(bus, cell, "Intel Flex 170", 16384), "placements", placements)
}

/// A card whose driver tells how vGPUs share its time, and has it on GPU instances too.
pub(super) fn scheduling(card: Value) -> Value {
    let all = ["BestEffort", "EqualShare", "FixedShare"];
    with(card, "vgpu", json!({"scheduler": "BestEffort", "schedulers": all, "onInstances": true}))
}

/// Lets all cards of a node mix vGPU sizes.
pub(super) fn mixing_sizes(mut node: GpuNode) -> GpuNode {
    let devices = node.status.as_ref().unwrap().devices.clone();
    let rules = devices.iter().enumerate().map(|(index, device)| {
        serde_json::from_value(json!({
            "name": format!("card-{index}"), "selector": {"pciAddress": device.pci_address},
            "vgpuPlacement": "MixedSize",
        }))
        .unwrap()
    });
    node.spec.devices = rules.collect();
    node
}

pub(super) fn request(name: &str, shares: Vec<Share>) -> Request {
    let shares =
        shares.into_iter().enumerate().map(|(index, share)| one(&format!("gpu{index}"), vec![share]));
    Request {
        desktop: DesktopKey::new("demo", name),
        labels: BTreeMap::new(),
        affinity: vec![],
        home: None,
        previous: None,
        demand: Arc::new(Demand {
            node_selector: BTreeMap::new(),
            tolerations: vec![],
            cpu: CpuRequest { cores: 2, threads_per_core: 1, pinning: Pinning::Shared },
            memory: MemoryRequest { mib: 1024, pages: PageSize::None, allow_fallback: false },
            numa: NumaPolicy::Preferred,
            shares: shares.collect(),
            functions: vec![],
        }),
    }
}

/// What a request asks for, to change it.
pub(super) fn demand(request: &mut Request) -> &mut Demand {
    Arc::make_mut(&mut request.demand)
}

pub(super) fn dedicated(cores: i32, threads_per_core: i32) -> CpuRequest {
    CpuRequest { cores, threads_per_core, pinning: Pinning::Dedicated }
}

pub(super) fn one(name: &str, ways: Vec<Share>) -> ShareRequest {
    ShareRequest {
        name: name.into(),
        profile: "profile".into(),
        ways: ways.into_iter().enumerate().map(|(index, share)| Way { index, share }).collect(),
        cards: CardRequirements::default(),
        spread: false,
    }
}

pub(super) fn vgpu(gib: i64) -> Share {
    Share::Vgpu(VgpuWish::Size { series: VgpuSeries::Q, min: gib * 1024, max: gib * 1024 }, BTreeMap::new())
}

pub(super) fn mig(profile: &str, series: VgpuSeries) -> Share {
    Share::Mig { profile: profile.into(), series, framebuffer_mib: None }
}

pub(super) fn allocation(placed: &Placed) -> Arc<Allocation> {
    Arc::new(placed.allocation(None))
}

pub(super) fn desktop(name: &str, version: u64, allocation: Option<&Allocation>) -> Desktop {
    serde_json::from_value(json!({
        "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop",
        "metadata": {"name": name, "namespace": "demo", "resourceVersion": version.to_string()},
        "spec": {"templateRef": {"name": "template"}},
        "status": {"allocation": allocation},
    }))
    .unwrap()
}
