//! The steps that the daemon would take for a layout: its own planner, on a card that does what it is told. Pure.

use gpudesk_crds::{
    gpu_node_status::{Device, Framework, Instance, MigBackedType, MigMode, Placement},
    types::{PciAddress, ShareMode},
};
use gpudesk_geometry::OnInstance;
use gpudesk_inventory::topology::mdev;

use crate::{
    devices::{
        control::GpuInstanceSeen,
        journal::{Entry, Journal},
        live::{Control, Function, LiveCard, Mdev, MdevType, Quotas, Sriov, VendorVgpu, VirtualFunction},
        plan::{Wanted, plan},
        refusal::Refusal,
        rehearse,
        step::Step,
    },
    host::gpu_driver::{InstanceKey, Setup, WantedInstance, What},
    partition::Share,
};

/// More steps than any share takes.
const MOST: usize = 512;

/// A vGPU type of the card.
struct Type<'a> {
    name: &'a str,
    /// Number of the driver, or one that stands for it.
    number: u32,
    is_made_up: bool,
    /// Name of its mediated devices.
    id: String,
    place: &'a Placement,
    /// On a GPU instance of the profile `place`.
    backed: Option<&'a MigBackedType>,
}

/// The driver's number of a type or profile.
fn number(place: &Placement) -> Option<u32> {
    let id = place.driver_id.as_ref()?;
    id.parse().ok().or_else(|| mdev::nvidia_number(id))
}

fn types(card: &Device) -> Vec<Type<'_>> {
    let of_mode = |mode| card.placements.iter().filter(move |place| place.mode == mode);
    let time_sliced = of_mode(ShareMode::Vgpu).map(|place| (place, None));
    let backed = of_mode(ShareMode::Mig)
        .flat_map(|place| place.vgpu_types.iter().map(move |backed| (place, Some(backed))));
    let known = time_sliced.chain(backed).zip(0u32..).map(|((place, backed), position)| {
        let name = backed.map_or(&place.type_name, |backed| &backed.type_name);
        let own = place.driver_id.clone().filter(|_| backed.is_none());
        let number = number(place).filter(|_| backed.is_none());
        Type {
            name,
            number: number.unwrap_or(u32::MAX - position),
            is_made_up: number.is_none(),
            id: own.unwrap_or_else(|| name.clone()),
            place,
            backed,
        }
    });
    known.collect()
}

/// What the steps stand on, in one line.
pub(super) fn assumed(card: &Device, mode: ShareMode, described: bool) -> String {
    let mut facts = vec!["nobody has the card open"];
    if described {
        facts.extend(card.mig.map(|_| if mode == ShareMode::Mig { "MIG is on" } else { "MIG is off" }));
        facts.extend((!card.virtual_functions.is_empty()).then_some("its virtual functions are on"));
    }
    format!(
        "the steps assume that {}; numbers and UUIDs are examples where the driver or a desktop gives them",
        facts.join(", ")
    )
}

/// The steps in words, for these shares one after the other; of a GPU instance without a vGPU those that make it. Of a
/// host that is only `described`, nothing is told of its driver.
///
/// # Errors
/// Why the daemon would not take them.
pub(super) fn steps(
    card: &Device,
    shares: &[Share],
    mode: ShareMode,
    described: bool,
) -> Result<Vec<String>, Refusal> {
    let types = types(card);
    let mut live = live(card, &types, mode, described);
    let mut journal = Journal::new("layout");
    let mut words = vec![];
    for (share, n) in shares.iter().zip(1..) {
        let profile = card.placements.iter().find(|place| {
            share.mode == ShareMode::Mig && place.mode == share.mode && place.type_name == share.type_name
        });
        let key = InstanceKey { desktop_uid: "layout".into(), request: format!("share {n}") };
        let wanted = WantedInstance {
            key: key.clone(),
            owner: "layout".into(),
            allocation: None,
            card: card.pci_address,
            share: share.clone(),
            setup: Setup::default(),
            partition: None,
            what: What::Card,
        };
        journal.shares.push(Entry::new(&wanted, profile.and_then(number)));
        for _ in 0..MOST {
            let Some(entry) = journal.entry(&key) else { break };
            if share.mode == ShareMode::Mig && share.vgpu_type.is_none() && has_instance(&live, entry) {
                break;
            }
            answer(&mut live, card, &types);
            let Some(step) = plan(&live, &journal, Wanted::There(entry))?.into_iter().next() else { break };
            journal.begin(card.pci_address, Some(&key), &step, &live, true);
            rehearse::apply(&mut live, &step);
            decide(&mut live, card, &types, &step);
            words.push(in_words(&step, &types));
        }
    }
    Ok(words)
}

/// As the daemon says it; where the driver's number of a type is not known, its name stands for it.
fn in_words(step: &Step, types: &[Type<'_>]) -> String {
    let made_up = |id: &u32| types.iter().find(|of| of.number == *id && of.is_made_up);
    match step {
        Step::VgpuType { id, .. } if made_up(id).is_some() => {
            let name = made_up(id).map_or("", |of| of.name);
            step.to_string().replace(&id.to_string(), name)
        }
        step => step.to_string(),
    }
}

fn has_instance(live: &LiveCard, entry: &Entry) -> bool {
    let place = (entry.profile, entry.share.start);
    let instances = live.control.gpu_instances.iter();
    instances
        .filter(|seen| seen.compute_instances > 0)
        .any(|seen| (Some(seen.profile), Some(seen.start)) == place)
}

fn function(card: &Device, address: PciAddress, driver: Option<&String>) -> Function {
    Function {
        address,
        class: card.class.clone(),
        vendor: card.vendor_id.clone(),
        device: card.device_id.clone(),
        driver: driver.cloned(),
        driver_override: None,
        d3cold: None,
        power: None,
        reset_methods: card.reset_methods.clone(),
        held_by: None,
        locked: false,
    }
}

fn live(card: &Device, types: &[Type<'_>], mode: ShareMode, described: bool) -> LiveCard {
    let count = |number: i32| u32::try_from(number).unwrap_or(0);
    let by_vendor = card.framework == Some(Framework::VendorVfio);
    let virtual_functions = card.virtual_functions.iter().map(|vf| VirtualFunction {
        function: function(card, vf.pci_address, vf.driver.as_ref()),
        alone: vf.unavailable.is_none() && vf.iommu_group.is_some(),
        vgpu: by_vendor.then(|| vendor_vgpu(card, types, vf.pci_address)),
        mdev_types: vec![],
        quotas: Quotas::default(),
    });
    let on = mode == ShareMode::Mig;
    let mixed_size = card.vgpu.as_ref().filter(|vgpu| vgpu.mixed_size_capable != Some(false));
    let of_mig = card.instances.iter().filter(|instance| instance.mode == ShareMode::Mig);
    let mut gpu_instances: Vec<GpuInstanceSeen> = vec![];
    for instance in of_mig {
        let place = card.placements.iter().find(|place| place.type_name == instance.type_name);
        let (Some(profile), Some(start)) = (place.and_then(number), instance.start) else { continue };
        if !gpu_instances.iter().any(|seen| (seen.profile, seen.start) == (profile, start)) {
            let size = place.map_or(0, |place| place.size);
            let id = instance.gpu_instance.map_or_else(|| gpu_instance_number(card, start, size), count);
            gpu_instances.push(GpuInstanceSeen {
                id,
                profile,
                start,
                size,
                compute_instances: 1,
                uuid: None,
                scheduler: None,
            });
        }
    }
    let is_vgpu = |instance: &&Instance| instance.mode == ShareMode::Vgpu || instance.vgpu_type.is_some();
    let by_mdev = card.framework == Some(Framework::Mdev);
    let mdevs = card.instances.iter().filter(is_vgpu).filter(|_| by_mdev);
    let mdevs = mdevs.map(|instance| Mdev {
        uuid: instance.id.clone(),
        parent: instance.virtual_function.unwrap_or(card.pci_address),
        type_id: None,
        params: None,
        held_by: None,
    });
    LiveCard {
        function: function(card, card.pci_address, card.driver.as_ref()),
        answers: true,
        boot_vga: card.boot_vga,
        group: card.iommu_group.as_ref().map(|group| group.id),
        // They go along with a whole card alone.
        members: vec![],
        resizable: None,
        sriov: card.sriov.map(|sriov| Sriov {
            total: count(sriov.total_vfs),
            on: count(sriov.num_vfs),
            autoprobe: None,
            quotas: false,
        }),
        virtual_functions: virtual_functions.collect(),
        mdev_types: vec![],
        mdevs: mdevs.collect(),
        control: Control {
            // A description says nothing of what an admin switched on: all that the layout needs is.
            mig: card.mig.map(|mode| if described { MigMode { current: on, pending: on } } else { mode }),
            gpu_instances,
            mixed_size: mixed_size.and_then(|vgpu| if described { Some(false) } else { vgpu.mixed_size }),
            persistence: None,
            scheduler: None,
            power: None,
        },
        control_fault: None,
        uuid: None,
        along_in_use: None,
        drive: None,
        network: None,
        has_vfio: true,
        has_stub: true,
    }
}

/// What is on a virtual function; of a type that the card does not list, nobody knows which it is.
fn vendor_vgpu(card: &Device, types: &[Type<'_>], address: PciAddress) -> VendorVgpu {
    let there = card.instances.iter().find(|instance| instance.virtual_function == Some(address));
    let current = there.map_or(Some(0), |there| {
        let name = there.vgpu_type.as_ref().unwrap_or(&there.type_name);
        types.iter().find(|of| of.name == *name).map(|of| of.number)
    });
    VendorVgpu {
        current,
        creatable: std::collections::BTreeMap::new(),
        placement: there.and_then(|there| there.start.filter(|_| there.mode == ShareMode::Vgpu)),
        gpu_instance: there.and_then(|there| there.gpu_instance),
        params: None,
    }
}

/// The number of a GPU instance is that of its place in the tree of halves, quarters and eighths of the card, as
/// `nvidia-smi mig -lgi` shows it.
fn gpu_instance_number(card: &Device, start: i32, size: i32) -> u32 {
    let units = card.units.unwrap_or_default().mig_memory;
    let number = units.checked_div(size).unwrap_or(1) - 1 + start.checked_div(size).unwrap_or(0);
    u32::try_from(number).unwrap_or(0)
}

/// What the driver offers now, with MIG on or off. Whether there is room is seen already: the layout is a legal one.
fn answer(live: &mut LiveCard, card: &Device, types: &[Type<'_>]) {
    let mig = live.control.mig.is_some_and(|mode| mode.current);
    let offered: Vec<&Type<'_>> = types
        .iter()
        .filter(|of| of.backed.is_some() == mig && (!mig || instance_with_room(live, types, of).is_some()))
        .collect();
    let carried: Vec<PciAddress> = live.mdevs.iter().map(|mdev| mdev.parent).collect();
    let as_mdev = |of: &&Type<'_>| MdevType { id: of.id.clone(), name: of.name.into(), available: 1 };
    for vf in &mut live.virtual_functions {
        match &mut vf.vgpu {
            Some(vgpu) if vgpu.current == Some(0) => {
                vgpu.creatable = offered.iter().map(|of| (of.number, of.name.to_owned())).collect();
            }
            Some(_) => {}
            None if carried.contains(&vf.function.address) => vf.mdev_types.clear(),
            None => vf.mdev_types = offered.iter().map(as_mdev).collect(),
        }
    }
    if live.virtual_functions.is_empty() && card.framework == Some(Framework::Mdev) {
        live.mdev_types = offered.iter().map(as_mdev).collect();
    }
}

/// The GPU instance that the driver takes for a type: of those with room the one with the lowest number.
fn instance_with_room(live: &LiveCard, types: &[Type<'_>], of: &Type<'_>) -> Option<u32> {
    let on = |vgpu: &MigBackedType| OnInstance {
        framebuffer_mib: vgpu.framebuffer_mib,
        max: vgpu.max_per_instance,
    };
    let wanted = on(of.backed?);
    let profile = number(of.place)?;
    let has_room = |seen: &&GpuInstanceSeen| {
        let here = live.virtual_functions.iter().filter_map(|vf| vf.vgpu.as_ref());
        let here = here.filter(|vgpu| vgpu.gpu_instance.is_some_and(|id| u32::try_from(id) == Ok(seen.id)));
        let inside: Vec<Option<OnInstance>> = here
            .map(|vgpu| types.iter().find(|of| Some(of.number) == vgpu.current)?.backed.map(on))
            .collect();
        seen.profile == profile && seen.compute_instances > 0 && wanted.joins(&inside).is_ok()
    };
    live.control.gpu_instances.iter().filter(has_room).map(|seen| seen.id).min()
}

/// What the driver decides by itself: the number of a GPU instance, and where a vGPU is that was just made.
fn decide(live: &mut LiveCard, card: &Device, types: &[Type<'_>], step: &Step) {
    match step {
        Step::GpuInstance { profile, start, .. } => {
            let mut of_mig = card.placements.iter().filter(|place| place.mode == ShareMode::Mig);
            let size = of_mig.find(|place| number(place) == Some(*profile)).map_or(0, |place| place.size);
            let id = gpu_instance_number(card, *start, size);
            let instances = &mut live.control.gpu_instances;
            let is_taken = instances.iter().any(|seen| seen.id == id);
            if let Some(seen) = instances.last_mut().filter(|_| !is_taken) {
                (seen.id, seen.size) = (id, size);
            }
        }
        Step::VgpuType { function, id } => {
            let Some(of) = types.iter().find(|of| of.number == *id) else { return };
            let gpu_instance = instance_with_room(live, types, of).and_then(|id| i32::try_from(id).ok());
            let taken: Vec<(i32, i32)> = live
                .virtual_functions
                .iter()
                .filter_map(|vf| {
                    let vgpu = vf.vgpu.as_ref()?;
                    let of = types.iter().find(|of| Some(of.number) == vgpu.current)?;
                    Some((vgpu.placement?, of.place.size))
                })
                .collect();
            let free = |start: &&i32| {
                taken.iter().all(|(at, size)| **start + of.place.size <= *at || at + size <= **start)
            };
            let placement = of.place.starts.iter().find(free).copied();
            let mixed = of.backed.is_none() && live.control.mixed_size == Some(true);
            let vf = live.virtual_functions.iter_mut().find(|vf| vf.function.address == *function);
            if let Some(vgpu) = vf.and_then(|vf| vf.vgpu.as_mut()) {
                (vgpu.gpu_instance, vgpu.placement) = (gpu_instance, placement.filter(|_| mixed));
            }
        }
        // A virtual function that was switched on comes to the driver.
        Step::Probe { function, driver: Some(driver) } if driver == "nvidia" => {
            let vf = live.virtual_functions.iter_mut().find(|vf| vf.function.address == *function);
            if let Some(vf) = vf.filter(|_| card.framework != Some(Framework::Mdev)) {
                vf.vgpu.get_or_insert_with(|| vendor_vgpu(card, types, *function));
            }
        }
        _ => {}
    }
}
