mod health;
mod properties;
mod shares;

use gpudesk_crds::gpu_node_status::{Device, Placement};

use super::*;

/// The readings of a file, and of each card in it a device of which sysfs knows nothing but the address.
fn described(text: &str) -> Vec<Device> {
    let readings: DriverReadings = serde_yaml::from_str(text).unwrap();
    let mut cards: Vec<Device> =
        readings.cards.iter().map(|card| Device::new(card.address, "10de", "2bb5")).collect();
    describe(&mut cards, &readings);
    cards
}

fn first(text: &str) -> Device {
    described(text).swap_remove(0)
}

/// A card of which the driver says this beside its address.
fn card(says: &str) -> Device {
    first(&format!("cards: [{{address: '0000:41:00.0', {says}}}]"))
}

fn placement<'a>(card: &'a Device, name: &str) -> &'a Placement {
    card.placements.iter().find(|placement| placement.type_name == name).unwrap()
}

const MIG: &str = "
cards:
- address: 00000000:41:00.0
  pciId: 10de:2bb5
  product: NVIDIA RTX PRO 6000 Blackwell Server Edition
  uuid: GPU-1
  serial: '0'
  memoryMiB: 97887
  mig:
    current: true
    pending: true
    profiles:
    - {id: 0, index: 4, name: MIG 4g.96gb, computeSlices: 4, maxInstances: 1, memoryMiB: 97280, placements: [{start: 0, size: 12}], remaining: 0}
    - {id: 47, index: 10, name: MIG 1g.24gb+gfx, computeSlices: 1, maxInstances: 4, memoryMiB: 24187, placements: [{start: 9, size: 3}, {start: 0, size: 3}, {start: 3, size: 3}, {start: 6, size: 3}], remaining: 3}
    - {id: 14, index: 0, name: MIG 1g.24gb, computeSlices: 1, maxInstances: 4, memoryMiB: 24187, placements: [{start: 0, size: 3}, {start: 3, size: 3}, {start: 6, size: 3}, {start: 9, size: 3}], remaining: 3}
    - {id: 67, index: 13, name: MIG 1g.24gb-me, computeSlices: 1, maxInstances: 4, memoryMiB: 24187, placements: [{start: 0, size: 3}], remaining: 3}
    instances:
    - {id: 4, profileId: 47, placement: {start: 9, size: 3}, computeInstances: [{id: 1, uuid: MIG-b}, {id: 0, uuid: MIG-a}]}
    - {id: 3, profileId: 14, placement: {start: 0, size: 3}}
  vgpu:
    types:
    - {id: 900, name: NVIDIA RTX Pro 6000 Blackwell DC-1-4Q, framebufferMiB: 4096, maxInstances: 24, maxPerGpuInstance: 6, gpuInstanceProfileId: 47}
    - {id: 901, name: NVIDIA RTX Pro 6000 Blackwell DC-1-2Q, framebufferMiB: 2048, maxInstances: 48, maxPerGpuInstance: 12, gpuInstanceProfileId: 47}
    - {id: 902, name: NVIDIA RTX Pro 6000 Blackwell DC-24C, framebufferMiB: 24576, maxInstances: 4}
    instances:
    - {handle: 7, uuid: vgpu-7, typeId: 901, gpuInstance: 4}
";

#[test]
fn cards_that_share_a_switch_or_a_link_reach_each_other() {
    let cards = described(
        "cards:
- {address: '0000:41:00.0', uuid: GPU-a, nvlinks: [{link: 0, remote: '0000:c0:00.0'}]}
- {address: '0000:42:00.0', uuid: GPU-b, nvlinks: [{link: 0, remote: '0000:c0:00.0'}]}
- {address: '0000:43:00.0', uuid: GPU-c, nvlinks: [{link: 0, remote: '0000:44:00.0'}]}
- {address: '0000:44:00.0', uuid: GPU-d, nvlinks: [{link: 0}]}",
    );
    let peers: Vec<_> = cards.iter().map(|card| card.nvlink_peers.join(" ")).collect();
    assert_eq!(peers, ["GPU-b", "GPU-a", "GPU-d", "GPU-c"]);
}

#[test]
fn a_fabric_says_how_registering_ended_only_when_it_has() {
    let registered = card("fabric: {state: 3, status: 0, clusterUuid: aa-bb, cliqueId: 2}").fabric.unwrap();
    assert_eq!((registered.state.as_str(), registered.status.as_deref()), ("Completed", Some("Success")));
    assert_eq!(registered.clique_id, Some(2));
    let waiting = card("fabric: {state: 2, status: 0, clusterUuid: aa-bb, cliqueId: 2}").fabric.unwrap();
    assert_eq!((waiting.state.as_str(), waiting.status, waiting.cluster_uuid), ("InProgress", None, None));
    let failed = card("fabric: {state: 3, status: 999}").fabric.unwrap();
    assert_eq!(failed.status.as_deref(), Some("NVML error 999"));
}

#[test]
fn cards_that_the_driver_does_not_have_stay_as_they_are() {
    let readings: DriverReadings = serde_yaml::from_str(MIG).unwrap();
    let mut cards = [Device::new("0000:42:00.0".parse().unwrap(), "1002", "74a1")];
    let before = cards.clone();
    describe(&mut cards, &readings);
    assert_eq!(cards, before);
}

#[test]
fn readings_come_back_from_a_file_as_they_were() {
    let readings: DriverReadings = serde_yaml::from_str(MIG).unwrap();
    let text = serde_yaml::to_string(&readings).unwrap();
    assert_eq!(serde_yaml::from_str::<DriverReadings>(&text).unwrap(), readings);
    let json = serde_json::to_string(&readings).unwrap();
    assert_eq!(serde_json::from_str::<DriverReadings>(&json).unwrap(), readings);
}
