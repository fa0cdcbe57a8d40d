//! Facts in, conditions out.

mod arbitrary;
mod table;

use gpudesk_crds::{
    GpuNodeSpec, GpuNodeStatus,
    conditions::ConditionType,
    gpu_node::{DevicePolicy, DeviceSelector},
    gpu_node_status::{Acceleration, Bar, Device, Hugepages, IommuGroup, NumaCell, Sriov},
    types::PageSize,
};
use jiff::Timestamp;

use crate::{
    hook::HookView,
    status::{Findings, GuestNetworkView, HeldShare, HypervisorVersions, HypervisorView, status},
    topology::{
        HostFacts, Iommu, KernelState,
        device_plugins::{Counted, DevicePlugins},
    },
};

/// Everything that a status is made from, owned.
#[derive(Debug)]
struct World {
    facts: HostFacts,
    simulated: bool,
    hypervisor: HypervisorView,
    guest_network: GuestNetworkView,
    gpu_driver_version: Option<String>,
    vgpu_manager_version: Option<String>,
    unlicensed_vgpus: Option<usize>,
    hook: HookView,
    instances: Result<Vec<HeldShare>, String>,
    spec: GpuNodeSpec,
    before: Option<GpuNodeStatus>,
}

impl World {
    fn status(&self) -> GpuNodeStatus {
        status(&Findings {
            facts: &self.facts,
            simulated: self.simulated,
            hypervisor: &self.hypervisor,
            guest_network: &self.guest_network,
            gpu_driver_version: self.gpu_driver_version.clone(),
            vgpu_manager_version: self.vgpu_manager_version.clone(),
            unlicensed_vgpus: self.unlicensed_vgpus,
            withheld: std::collections::BTreeMap::new(),
            states: std::collections::BTreeMap::new(),
            hook: &self.hook,
            instances: self.instances.as_deref().map_err(Clone::clone),
            spec: &self.spec,
            generation: Some(1),
            before: self.before.as_ref(),
            now: Timestamp::UNIX_EPOCH,
        })
    }

    fn card(&mut self) -> &mut Device {
        &mut self.facts.cards[0]
    }

    fn policy(&mut self) -> &mut DevicePolicy {
        if self.spec.devices.is_empty() {
            self.spec.devices.push(DevicePolicy {
                name: "one".into(),
                selector: DeviceSelector {
                    pci_address: Some(self.facts.cards[0].pci_address),
                    ..DeviceSelector::default()
                },
                management: None,
                mode: None,
                layout: None,
                vgpu_placement: None,
                vgpu_scheduler: None,
                vgpu_params: vec![],
                max_temperature_celsius: None,
                persistence_mode: None,
                power_limit_watts: None,
                resizable_bar_mib: None,
                lock_clocks_mhz: None,
                virtual_functions: None,
            });
        }
        &mut self.spec.devices[0]
    }
}

fn cell(id: i32, pages: i64) -> NumaCell {
    NumaCell {
        id,
        cores: vec![format!("{id}").parse().unwrap()],
        memory_mib: 65_536,
        hugepages: vec![
            Hugepages { size: PageSize::Mi2, total: 0, free: Some(0), surplus: None },
            Hugepages { size: PageSize::Gi1, total: pages, free: Some(pages), surplus: None },
        ],
        ..NumaCell::default()
    }
}

/// A card with everything in order: an L40S with its virtual functions on.
fn card(address: &str) -> Device {
    let mut card = Device::new(address.parse().unwrap(), "10de", "26b9");
    card.product = "NVIDIA L40S".into();
    card.class = "0302".into();
    card.driver = Some("nvidia".into());
    card.uuid = Some(format!("GPU-{address}"));
    card.iommu_group = Some(IommuGroup { id: 7, members: vec![], viable: true, message: None });
    card.bars = vec![Bar { index: 1, size_bytes: 64 << 30, unassigned: false }];
    card.sriov = Some(Sriov { total_vfs: 32, num_vfs: 32 });
    card
}

/// A machine with everything in order.
fn world() -> World {
    let facts = HostFacts {
        kernel: Some("6.8.0-60-generic".into()),
        cpu_model: Some("INTEL(R) XEON(R) GOLD 6448Y".into()),
        numa_cells: vec![cell(0, 16), cell(1, 16)],
        cards: vec![card("0000:41:00.0")],
        iommu: Iommu {
            kind: Some("dmar".into()),
            groups: Some(40),
            no_iommu_mode: Some(false),
            unsafe_interrupts: Some(false),
        },
        kernel_state: KernelState {
            vfio_pci: Some(true),
            vfio_device: Some(true),
            kvm_device: Some(true),
            cpu_virtualization: Some(true),
            command_line: Some("BOOT_IMAGE=/vmlinuz root=/dev/sda1 intel_iommu=on".into()),
            security_modules: Some("lockdown,capability,yama".into()),
            selinux_enforcing: None,
            nvidia_driver: Some("570.133.10".into()),
            nvidia_vgpu_module: Some(true),
            fabric_manager: Some(false),
            vgpu_manager_service: Some(true),
            driver_in_container: false,
        },
        device_plugins: Some(DevicePlugins { sockets: vec![], counted: Counted::Never }),
        ..HostFacts::default()
    };
    World {
        facts,
        simulated: false,
        hypervisor: HypervisorView::Answers {
            versions: Some(HypervisorVersions { libvirt: "11.3.0".into(), qemu: Some("10.0.0".into()) }),
            acceleration: Acceleration::Kvm,
            why_not_kvm: None,
        },
        guest_network: GuestNetworkView::Filtered { except: vec![] },
        gpu_driver_version: Some("570.133.10".into()),
        vgpu_manager_version: Some("570.133.10".into()),
        unlicensed_vgpus: Some(0),
        hook: HookView::Good,
        instances: Ok(vec![]),
        spec: GpuNodeSpec::default(),
        before: None,
    }
}

/// The types, in the order in which the type of the status lists them.
const ORDER: [ConditionType; 18] = [
    ConditionType::Ready,
    ConditionType::HypervisorReady,
    ConditionType::KvmUsable,
    ConditionType::GuestNetworkFiltered,
    ConditionType::TopologyComplete,
    ConditionType::DevicesHealthy,
    ConditionType::LayoutApplied,
    ConditionType::IommuEnabled,
    ConditionType::IommuIsolating,
    ConditionType::VfioReady,
    ConditionType::BarsAssigned,
    ConditionType::SriovEnabled,
    ConditionType::HugepagesReserved,
    ConditionType::VgpuHostReady,
    ConditionType::FabricReady,
    ConditionType::AccessGranted,
    ConditionType::DiscoveryHookReady,
    ConditionType::DevicePluginsAbsent,
];

#[test]
fn all_conditions_are_always_said_in_the_documented_order() {
    let types = |world: &World| -> Vec<String> {
        world.status().conditions.into_iter().map(|condition| condition.type_).collect()
    };
    let order: Vec<&str> = ORDER.iter().map(|type_| type_.as_str()).collect();
    assert_eq!(types(&world()), order);
    let mut again = world();
    again.before = Some(again.status());
    assert_eq!(types(&again), order);
}

#[test]
fn a_machine_in_order_has_nothing_to_say() {
    for condition in world().status().conditions {
        let expected = if condition.type_ == "FabricReady" { "NotNeeded" } else { "AsExpected" };
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            ("True", expected),
            "{condition:?}"
        );
    }
}

#[test]
fn a_part_of_a_machine_raises_no_alarm_about_what_is_absent_from_it() {
    let mut bare = Device::new("0000:08:00.0".parse().unwrap(), "10de", "25b6");
    bare.class = "0302".into();
    for cards in [vec![], vec![bare]] {
        let mut world = world();
        world.facts = HostFacts { cards, ..HostFacts::default() };
        (world.gpu_driver_version, world.vgpu_manager_version) = (None, None);
        for condition in world.status().conditions {
            // No CPUs: no desktops. All else is only not known.
            let wrong = match condition.type_.as_str() {
                "Ready" => "False",
                "DevicePluginsAbsent" if !world.facts.cards.is_empty() => "Unknown",
                _ => "True",
            };
            assert_eq!(condition.status, wrong, "{condition:?}");
        }
    }
}

#[test]
fn a_simulated_host_says_so_wherever_the_machine_is_judged() {
    let mut world = world();
    world.facts = HostFacts { numa_cells: world.facts.numa_cells, ..HostFacts::default() };
    world.simulated = true;
    world.guest_network = GuestNetworkView::NoGuests;
    world.hypervisor =
        HypervisorView::Answers { versions: None, acceleration: Acceleration::Simulated, why_not_kvm: None };
    for condition in world.status().conditions {
        let expected = match condition.type_.as_str() {
            "Ready" | "TopologyComplete" | "DevicesHealthy" | "LayoutApplied" | "DiscoveryHookReady" => {
                "AsExpected"
            }
            _ => "Simulated",
        };
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            ("True", expected),
            "{condition:?}"
        );
    }
}
