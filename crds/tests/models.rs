//! What several cards have in common is written once, and each says all when it is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use gpudesk_crds::{
    GpuNodeStatus,
    gpu_node_status::{
        Bar, Device, LayoutPlaces, MigBackedType, ModeSupport, PcieLink, Placement, VgpuState,
        VirtualFunction,
    },
    types::{PciAddress, ShareMode, VgpuSeries},
};
use proptest::{collection::vec, option::of, prelude::*, sample::select};
use serde_json::{Value, from_value, json, to_value};

fn address(bus: u8, number: u32) -> PciAddress {
    PciAddress { domain: 0, bus, device: 0, function: 0 }.further(number).unwrap()
}

fn function(index: i32, number: u32) -> VirtualFunction {
    VirtualFunction {
        pci_address: address(0x41, number),
        index,
        device_id: None,
        driver: Some("nvidia".into()),
        iommu_group: Some(100 + index),
        unavailable: None,
    }
}

fn written(functions: Vec<VirtualFunction>) -> Value {
    let mut card = Device::new(address(0x41, 0), "10de", "26b9");
    card.virtual_functions = functions;
    let value = to_value(&card).unwrap();
    assert_eq!(from_value::<Device>(value.clone()).unwrap(), card);
    value["virtualFunctions"].clone()
}

#[test]
fn functions_in_a_row_are_one_entry() {
    let row =
        |count: i32, step: u32| (0..count).zip((4..).step_by(step as usize)).map(|(i, n)| function(i, n));
    let first = json!({"pciAddress": "0000:41:00.4", "index": 0, "driver": "nvidia", "iommuGroup": 100});
    let with = |more: Value| {
        let mut entry = first.clone();
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([entry])
    };
    assert_eq!(written(row(1, 1).collect()), json!([first]), "as it was before there were rows");
    assert_eq!(written(row(48, 1).collect()), with(json!({"count": 48})), "over several devices");
    assert_eq!(written(row(16, 2).collect()), with(json!({"count": 16, "stride": 2})));
    let mut held: Vec<VirtualFunction> = row(32, 1).collect();
    held[7].driver = Some("vfio-pci".into());
    held[7].unavailable = Some("vfio-pci holds it".into());
    let counts: Vec<i64> =
        written(held).as_array().unwrap().iter().map(|e| e["count"].as_i64().unwrap_or(1)).collect();
    assert_eq!(counts, [7, 1, 24]);
}

#[test]
fn no_count_makes_more_functions_than_a_card_has() {
    let entry = json!({"pciAddress": "0000:41:00.0", "index": 0, "count": 2_000_000_000});
    let card = json!({"pciAddress": "0000:41:00.0", "vendorId": "10de", "deviceId": "26b9", "product": "L40S",
        "virtualFunctions": vec![entry; 256]});
    assert_eq!(from_value::<Device>(card).unwrap().virtual_functions.len(), 256);
}

fn l40s(bus: u8) -> Device {
    let mut card = Device::new(address(bus, 0), "10de", "26b9");
    card.uuid = Some(format!("GPU-{bus}"));
    card.supports = vec![ModeSupport { mode: ShareMode::Vgpu, supported: true, reason: None }];
    let of = |gib: i64| Placement {
        series: Some(VgpuSeries::Q),
        heads: Some(4),
        available: Some(i32::try_from(48 / gib).unwrap()),
        ..Placement::new(
            format!("L40S-{gib}Q"),
            ShareMode::Vgpu,
            gib * 1024,
            i32::try_from(48 / gib).unwrap(),
        )
    };
    card.placements = vec![of(8), of(48)];
    card
}

fn status(devices: Vec<Device>) -> Value {
    let status = GpuNodeStatus { devices, ..GpuNodeStatus::default() };
    let value = to_value(&status).unwrap();
    assert_eq!(from_value::<GpuNodeStatus>(value.clone()).unwrap(), status);
    value
}

#[test]
fn cards_say_what_differs_and_their_model_the_rest() {
    let alone = status(vec![l40s(1)]);
    assert!(alone["deviceModels"].is_null() && alone["devices"][0]["placements"].is_array(), "{alone}");

    let (mut busy, mut broken) = (l40s(2), l40s(3));
    busy.placements[1].available = Some(0);
    broken.supports[0] =
        ModeSupport { supported: false, reason: Some("why".into()), ..broken.supports[0].clone() };
    let shown = status(vec![l40s(1), busy, broken]);
    let model = &shown["deviceModels"][0];
    assert_eq!((&model["name"], &shown["devices"][1]["model"]), (&json!("10de:26b9"), &json!("10de:26b9")));
    assert_eq!(
        model["placements"][1],
        json!({"type": "L40S-48Q", "mode": "Vgpu", "framebufferMiB": 49152,
        "series": "Q", "maxCount": 1, "available": 1})
    );
    assert_eq!(model["vgpuDisplays"], json!([{"series": "Q", "heads": 4}]));
    assert_eq!(shown["devices"][1]["available"], json!({"L40S-48Q": 0}));
    assert_eq!(shown["devices"][2]["supports"][0]["reason"], "why");
    let last = ["pciAddress", "model", "vendorId", "deviceId", "product", "uuid", "health"];
    let names: Vec<&String> = shown["devices"][0].as_object().unwrap().keys().collect();
    assert!(names.iter().all(|name| last.contains(&name.as_str())), "{names:?}");

    let mut other = l40s(2);
    other.placements.pop();
    let two = status(vec![l40s(1), other.clone(), l40s(3), other.clone(), l40s(4)]);
    let names: Vec<&Value> =
        two["deviceModels"].as_array().unwrap().iter().map(|model| &model["name"]).collect();
    assert_eq!(names, ["10de:26b9", "10de:26b9-2"]);
}

#[test]
fn a_layout_that_all_cards_have_is_written_once() {
    let with = |bus: u8, starts: &[i32]| {
        let places = LayoutPlaces { type_name: "L40S-8Q".into(), starts: starts.to_vec(), count: 0 };
        Device { layout: vec![places], ..l40s(bus) }
    };
    let shown = status((1..9).map(|bus| with(bus, &[0, 16])).collect());
    assert_eq!(shown["deviceModels"][0]["layout"], json!([{"type": "L40S-8Q", "starts": [0, 16]}]));
    assert_eq!(shown.to_string().matches("layout").count(), 1);
    // One without a layout has none.
    let shown = status(vec![with(1, &[0]), with(2, &[0]), l40s(3)]);
    assert_eq!(shown.to_string().matches("layout").count(), 2);
}

#[test]
fn a_card_is_nobodys_while_its_model_is_not_there() {
    let mut shown = status(vec![l40s(1), l40s(2)]);
    shown.as_object_mut().unwrap().remove("deviceModels");
    for card in from_value::<GpuNodeStatus>(shown).unwrap().devices {
        assert!(card.unavailable.unwrap().contains("10de:26b9"));
        assert_eq!((card.placements, card.supports), (vec![], vec![]));
    }
}

fn functions() -> impl Strategy<Value = Vec<VirtualFunction>> {
    let word = || of(select(vec!["nvidia".to_owned(), "vfio-pci".to_owned()]));
    let one = (0_u32..4, 0_i32..3, word(), of(0_i32..3), word());
    vec(one, 0..12).prop_map(|steps| {
        let (mut number, mut index, mut functions) = (0, 0, vec![]);
        for (step, skipped, driver, group, unavailable) in steps {
            let device_id = unavailable.clone().filter(|_| skipped == 1);
            let iommu_group = group.map(|group| index + group);
            functions.push(VirtualFunction {
                pci_address: address(0x41, number),
                index,
                device_id,
                driver,
                iommu_group,
                unavailable,
            });
            (number, index) = (number + step, index + skipped);
        }
        functions
    })
}

fn placements() -> impl Strategy<Value = Vec<Placement>> {
    let display = (of(1_i32..3), of(select(vec!["1x1".to_owned(), "2x2".to_owned()])), of(45_i32..47));
    let one = (
        0_i32..2,
        of(0_i32..3),
        display,
        select(vec![None, Some(VgpuSeries::Q), Some(VgpuSeries::B)]),
        select(vec![ShareMode::Vgpu, ShareMode::Mig]),
    );
    vec(one, 0..4).prop_map(|types| {
        let types = types.into_iter().enumerate();
        let each = types.map(
            |(number, (size, available, (heads, max_resolution, frame_rate_limit), series, mode))| {
                let vgpu_types = MigBackedType {
                    type_name: "x".into(),
                    series: VgpuSeries::C,
                    framebuffer_mib: 1,
                    max_per_instance: 1,
                };
                Placement {
                    size,
                    starts: (0..size).collect(),
                    available,
                    heads,
                    max_resolution,
                    frame_rate_limit,
                    series,
                    vgpu_types: vec![vgpu_types; usize::try_from(size).unwrap()],
                    ..Placement::new(format!("T-{number}"), mode, 1024, 2)
                }
            },
        );
        each.collect()
    })
}

fn device() -> impl Strategy<Value = Device> {
    let words = || vec(select(vec!["a".to_owned(), "b".to_owned()]), 0..2);
    let peers = select(vec![vec![], vec![1_u8], vec![0, 1, 2, 3], vec![3, 0]]);
    let parts = (words(), peers, placements(), functions(), any::<bool>(), of(0_i64..2), of(0_i32..3));
    (parts, select(vec!["26b9", "2bb5"]), of(Just("GPU-x"))).prop_map(|(parts, id, _)| {
        let (reset_methods, peers, placements, virtual_functions, supported, memory_mib, small) = parts;
        let mut card = Device::new(address(0x41, 0), "10de", id);
        card.class = reset_methods.concat();
        card.subsystem = reset_methods.first().cloned();
        card.link = small.map(|width| PcieLink { width: Some(width), ..PcieLink::default() });
        card.bars = small.map(|index| Bar { index, size_bytes: 1, unassigned: false }).into_iter().collect();
        card.vgpu = memory_mib.map(|_| VgpuState { mixed_size: Some(supported), ..VgpuState::default() });
        card.supports = small
            .map(|_| ModeSupport { mode: ShareMode::Vgpu, supported, reason: None })
            .into_iter()
            .collect();
        card.layout = small
            .filter(|_| supported)
            .map(|start| LayoutPlaces { type_name: "T-0".into(), starts: vec![start], count: 0 })
            .into_iter()
            .collect();
        card.nvlink_peers = peers.iter().map(|number| format!("GPU-{number}")).collect();
        Device { reset_methods, placements, virtual_functions, memory_mib, ..card }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn what_was_written_is_read_as_it_was(cards in vec((device(), any::<bool>()), 0..7), uuids in any::<bool>()) {
        let mut devices: Vec<Device> = vec![];
        for (bus, (card, same)) in (0_u8..).zip(cards) {
            // Cards of one machine are often alike.
            let card = devices.last().filter(|_| same).cloned().unwrap_or(card);
            let uuid = uuids.then(|| format!("GPU-{bus}"));
            devices.push(Device { pci_address: address(bus, 0), uuid, ..card });
        }
        let all: Vec<String> = devices.iter().filter_map(|card| card.uuid.clone()).collect();
        for card in devices.iter_mut().filter(|card| card.nvlink_peers.len() == 4) {
            card.nvlink_peers = all.iter().filter(|uuid| Some(*uuid) != card.uuid.as_ref()).cloned().collect();
        }
        let status = GpuNodeStatus { devices, ..GpuNodeStatus::default() };
        let value = to_value(&status).unwrap();
        prop_assert_eq!(from_value::<GpuNodeStatus>(value.clone()).unwrap(), status.clone());
        prop_assert_eq!(to_value(from_value::<GpuNodeStatus>(value.clone()).unwrap()).unwrap(), value);
        // A version before this one wrote each card whole.
        let before = json!({"devices": status.devices});
        prop_assert_eq!(from_value::<GpuNodeStatus>(before).unwrap(), status);
    }
}
