//! Whatever the facts are, a condition is one sentence that can be written.

use gpudesk_crds::gpu_node_status::{Acceleration, Bar, CardFabric, Device, Health, HealthState, Sriov};
use proptest::prelude::*;

use super::{ORDER, World, card, cell, world};
use crate::{
    hook::HookView,
    status::{GuestNetworkView, HypervisorVersions, HypervisorView},
    topology::device_plugins::{Counted, DevicePlugins},
};

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{0,600}", "[a-z .\\n\\t]{0,200}", Just(String::new())]
}

fn any_card() -> impl Strategy<Value = Device> {
    let ids = prop_oneof![Just("10de"), Just("1002"), Just("8086"), Just("1a03")];
    let driver = prop_oneof![Just("nvidia"), Just("vfio-pci"), Just("xe"), Just("gim")];
    let facts = (ids, proptest::option::of(driver), text(), text(), any::<[bool; 4]>());
    (facts, any::<i64>(), any::<(i32, i32)>(), 0_u8..4).prop_map(
        |((vendor, driver, product, words, flags), size, (total_vfs, num_vfs), bus)| {
            let mut card = card(&format!("0000:{bus:02x}:00.0"));
            card.vendor_id = vendor.into();
            card.driver = driver.map(Into::into);
            card.product = product;
            card.health = Health {
                state: if flags[0] { HealthState::Failed } else { HealthState::Unknown },
                message: Some(words.clone()),
                ..Health::default()
            };
            card.bars = vec![Bar { index: 1, size_bytes: size, unassigned: flags[1] }];
            card.sriov = flags[2].then_some(Sriov { total_vfs, num_vfs });
            card.fabric = flags[3].then(|| CardFabric { state: words, ..CardFabric::default() });
            card
        },
    )
}

fn any_world() -> impl Strategy<Value = World> {
    let states = proptest::collection::vec(any::<Option<bool>>(), 8);
    let words = proptest::collection::vec(text(), 6);
    let lists = (proptest::collection::vec(text(), 0..8), proptest::collection::vec(text(), 0..8));
    let cards = proptest::collection::vec(any_card(), 0..4);
    let numbers = (proptest::option::of(0_usize..3), proptest::collection::vec(0_i64..3, 0..3), 0_u8..4);
    (states, words, lists, cards, numbers).prop_map(|(states, words, lists, cards, (groups, pages, kind))| {
        let mut world = world();
        let facts = &mut world.facts;
        (facts.incomplete, facts.denied) = lists;
        facts.cards = cards;
        facts.numa_cells = (0..).zip(&pages).map(|(id, pages)| cell(id, *pages)).collect();
        facts.cpu_model = Some(words[0].clone());
        facts.iommu.groups = groups;
        facts.iommu.kind = states[0].map(|_| words[1].clone());
        (facts.iommu.no_iommu_mode, facts.iommu.unsafe_interrupts) = (states[1], states[2]);
        facts.device_plugins = states[4].map(|counts| DevicePlugins {
            sockets: vec![words[0].clone(), "nvidia-gpu.sock".into()],
            counted: match (counts, states[5]) {
                (true, _) => {
                    Counted::Devices([(format!("nvidia.com/gpu{}", words[1]), vec![words[2].clone()])].into())
                }
                (false, Some(_)) => Counted::Unread("it is a link".into()),
                (false, None) => Counted::Never,
            },
        });
        let state = &mut facts.kernel_state;
        (state.vfio_pci, state.vfio_device, state.kvm_device) = (states[3], states[4], states[5]);
        (state.cpu_virtualization, state.fabric_manager) = (states[6], states[7]);
        state.command_line = states[0].map(|_| format!("iommu=off {}", words[2]));
        state.nvidia_driver = states[1].map(|_| words[3].clone());
        world.gpu_driver_version = None;
        world.vgpu_manager_version = states[2].map(|_| words[3].clone());
        world.unlicensed_vgpus = groups;
        world.hook = HookView::Failed { why: words[4].clone(), answered: words[4].len() % 2 == 0 };
        world.instances = if states[5].is_some() { Ok(vec![]) } else { Err(words[5].clone()) };
        world.hypervisor = match kind {
            0 => HypervisorView::Silent(words[5].clone()),
            1 => HypervisorView::Answers {
                versions: Some(HypervisorVersions {
                    libvirt: words[4].clone(),
                    qemu: Some(words[3].clone()),
                }),
                acceleration: Acceleration::Kvm,
                why_not_kvm: None,
            },
            _ => HypervisorView::Answers {
                versions: None,
                acceleration: Acceleration::Emulation,
                why_not_kvm: Some(words[5].clone()),
            },
        };
        world.guest_network = match kind {
            0 => GuestNetworkView::NotAsked,
            1 => GuestNetworkView::External,
            _ => GuestNetworkView::Unfiltered(words[2].clone()),
        };
        world
    })
}

proptest! {
    #[test]
    fn every_condition_is_one_sentence_of_at_most_512_characters(world in any_world()) {
        let status = world.status();
        prop_assert_eq!(status.conditions.len(), ORDER.len());
        for condition in status.conditions {
            let message = &condition.message;
            prop_assert!(message.chars().count() <= 512, "{}", message);
            prop_assert!(!message.contains(|c: char| c.is_control()), "{message:?}");
            prop_assert!(!message.contains(". ") || message.contains(".. "), "{message:?}");
            prop_assert!(condition.status == "True" || !message.is_empty());
        }
        for sentence in status.missing {
            prop_assert!(!sentence.is_empty() && sentence.chars().count() <= 512);
        }
    }
}
