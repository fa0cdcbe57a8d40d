//! Whether what the operator gave a desktop is held by another domain of this host. Pure.
//!
//! The operator sees to it that it never is. Where facts disagree all the same, the node refuses.

use std::{collections::BTreeSet, fmt};

use gpudesk_crds::{
    AllocatedDeviceKind, Allocation, HostDeviceAllocation,
    gpu_node_status::Device,
    types::{CpuSet, PciAddress, ShareMode},
};

use crate::partition::{self, Share};

/// What another domain of this host holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// The desktop, as `namespace/name`.
    pub owner: String,
    /// What its domain was made from.
    pub allocation: Allocation,
}

/// What of an allocation is not free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// CPUs of its own.
    Cpus(CpuSet),
    /// A share of a card.
    Share {
        /// The card.
        card: PciAddress,
        /// Type of the share.
        share: String,
        /// The rule that it would break.
        why: String,
    },
    /// Perhaps anything: somebody holds what cannot be read.
    Unreadable,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpus(cpus) => write!(f, "CPU {cpus}"),
            Self::Share { card, share, why } => write!(f, "{share} on {card} ({why})"),
            Self::Unreadable => f.write_str("what cannot be read, perhaps a part"),
        }
    }
}

/// What of `ours` somebody else holds, and who.
pub fn conflict(ours: &Allocation, others: &[Holder], cards: &[Device]) -> Option<(Held, String)> {
    let own_cpus = dedicated_cpus(ours);
    for other in others {
        let shared: CpuSet =
            dedicated_cpus(&other.allocation).into_iter().filter(|cpu| own_cpus.contains(cpu)).collect();
        if !shared.is_empty() {
            return Some((Held::Cpus(shared), other.owner.clone()));
        }
    }
    for gpu in &ours.gpus {
        let held: Vec<(&Holder, Share)> = others
            .iter()
            .flat_map(|other| other.allocation.gpus.iter().map(move |theirs| (other, theirs)))
            .filter(|(_, theirs)| theirs.device == gpu.device)
            .map(|(other, theirs)| (other, share(theirs)))
            .collect();
        let Some((first, _)) = held.first() else { continue };
        let what =
            |why: &str| Held::Share { card: gpu.device, share: gpu.type_name.clone(), why: why.to_owned() };
        let Some(card) = cards.iter().find(|card| card.pci_address == gpu.device) else {
            return Some((what("the card is not there"), first.owner.clone()));
        };
        // One by one, so that the refusal names the one in the way; then one more at a time, so that it
        // names one of those who fill the card or the GPU instance.
        let wanted = share(gpu);
        for (holder, theirs) in &held {
            if let Err(refusal) = partition::admit(card, std::slice::from_ref(theirs), &wanted) {
                return Some((what(&refusal.to_string()), holder.owner.clone()));
            }
        }
        let mut beside: Vec<Share> = vec![];
        for (holder, theirs) in held {
            beside.push(theirs);
            if let Err(refusal) = partition::admit(card, &beside, &wanted) {
                return Some((what(&refusal.to_string()), holder.owner.clone()));
            }
        }
    }
    for device in &ours.host_devices {
        let has_it =
            |other: &&Holder| other.allocation.host_devices.iter().any(|it| it.device == device.device);
        if let Some(holder) = others.iter().find(has_it) {
            let (card, share) = (device.device, device.name.clone());
            let why = "it goes to one desktop whole".into();
            return Some((Held::Share { card, share, why }, holder.owner.clone()));
        }
    }
    None
}

/// The CPUs of `host` that desktops without CPUs of their own may run on, when these are held.
/// `None` when nothing would be left.
pub fn shared_cpus(host: &CpuSet, held: &[Allocation]) -> Option<CpuSet> {
    let dedicated: BTreeSet<u32> = held.iter().flat_map(dedicated_cpus).collect();
    let left: CpuSet = host.iter().filter(|cpu| !dedicated.contains(cpu)).collect();
    (!left.is_empty()).then_some(left)
}

/// Whether the vCPUs of an allocation may run on any CPU that is nobody's own.
pub fn floats(allocation: &Allocation) -> bool {
    allocation.compute.as_ref().is_some_and(|compute| compute.vcpu_pins.is_empty())
}

/// CPUs that one vCPU has for itself. Pins to several CPUs are shared by their nature.
fn dedicated_cpus(allocation: &Allocation) -> BTreeSet<u32> {
    let pins = allocation.compute.iter().flat_map(|compute| &compute.vcpu_pins);
    pins.filter(|pin| pin.cpus.len() == 1).flat_map(|pin| pin.cpus.iter().collect::<Vec<_>>()).collect()
}

/// What of a host an allocation names beside cards, as it is given.
pub fn host_device(device: &HostDeviceAllocation) -> Share {
    Share {
        mode: ShareMode::Passthrough,
        type_name: match device.kind {
            AllocatedDeviceKind::NetworkFunction => "NetworkFunction".into(),
            AllocatedDeviceKind::NvmeDrive => "NvmeDrive".into(),
        },
        vgpu_type: None,
        start: None,
    }
}

/// What it is called among the shares of its desktop: a card, an interface and a disk may have one name.
pub fn request(device: &HostDeviceAllocation) -> String {
    match device.kind {
        AllocatedDeviceKind::NetworkFunction => format!("network:{}", device.name),
        AllocatedDeviceKind::NvmeDrive => format!("disk:{}", device.name),
    }
}

/// The share that an allocation names.
pub fn share(gpu: &gpudesk_crds::GpuAllocation) -> Share {
    Share {
        mode: gpu.mode,
        type_name: gpu.type_name.clone(),
        vgpu_type: gpu.vgpu_type.clone(),
        start: gpu.start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpudesk_inventory::simulated::HostFile;

    fn allocation(yaml: &str) -> Allocation {
        let text = format!(
            "{{node: n, desktopGeneration: 1, templateGeneration: 1, decidedAt: 2026-01-01T00:00:00Z, {yaml}}}"
        );
        serde_yaml::from_str(&text).unwrap()
    }

    fn compute(pins: &str) -> Allocation {
        allocation(&format!("compute: {{cores: 1, threadsPerCore: 1, memoryMiB: 64, vcpuPins: {pins}}}"))
    }

    fn gpu(mode: &str, type_name: &str, start: Option<i32>, card: &Device) -> Allocation {
        let start = start.map(|start| format!(", start: {start}")).unwrap_or_default();
        allocation(&format!(
            "gpus: [{{name: g, device: '{}', product: p, mode: {mode}, type: {type_name}, framebufferMiB: 1, profile: x{start}}}]",
            card.pci_address
        ))
    }

    fn cards() -> Vec<Device> {
        let file = "{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: L40S, count: 2}]}";
        HostFile::parse(file).unwrap().host("n").unwrap().facts.cards
    }

    fn holder(allocation: Allocation) -> Vec<Holder> {
        vec![Holder { owner: "school/other".into(), allocation }]
    }

    #[test]
    fn who_has_no_cpus_of_his_own_keeps_off_those_of_others() {
        let host: CpuSet = "0-5".parse().unwrap();
        let shared = compute("[]");
        assert_eq!(shared_cpus(&host, std::slice::from_ref(&shared)), Some(host.clone()));
        let dedicated = compute("[{vcpu: 0, cpus: '4'}, {vcpu: 1, cpus: '5'}]");
        let left = shared_cpus(&host, &[shared.clone(), dedicated.clone()]);
        assert_eq!(left, Some("0-3".parse().unwrap()));
        assert!(floats(&shared) && !floats(&dedicated));
        assert_eq!(shared_cpus(&"4,5".parse().unwrap(), &[dedicated]), None, "never on no CPU at all");
    }

    #[test]
    fn a_dedicated_cpu_is_given_once() {
        let ours = compute("[{vcpu: 0, cpus: '4'}, {vcpu: 1, cpus: '5'}]");
        let found = conflict(&ours, &holder(compute("[{vcpu: 0, cpus: '5'}]")), &[]);
        assert_eq!(found, Some((Held::Cpus("5".parse().unwrap()), "school/other".into())));
        assert_eq!(conflict(&ours, &holder(compute("[{vcpu: 0, cpus: '6'}]")), &[]), None);
        let floating = compute("[{vcpu: 0, cpus: '0-7'}]");
        assert_eq!(conflict(&ours, &holder(floating.clone()), &[]), None);
        assert_eq!(conflict(&floating, &holder(floating.clone()), &[]), None);
    }

    #[test]
    fn shares_of_a_card_must_fit_beside_each_other() {
        let cards = cards();
        let whole = gpu("Passthrough", "Passthrough", None, &cards[0]);
        let eight = gpu("Vgpu", "L40S-8Q", None, &cards[0]);
        let four = gpu("Vgpu", "L40S-4Q", None, &cards[0]);
        let elsewhere = gpu("Vgpu", "L40S-4Q", None, &cards[1]);
        assert_eq!(conflict(&eight, &holder(eight.clone()), &cards), None);
        assert_eq!(conflict(&eight, &holder(elsewhere), &cards), None);
        for other in [&whole, &four] {
            let (what, who) = conflict(&eight, &holder(other.clone()), &cards).unwrap();
            let what = what.to_string();
            assert!(what.contains("L40S-8Q") && who == "school/other", "{what}");
        }
        assert!(conflict(&whole, &holder(whole.clone()), &cards).is_some());
        let six: Vec<Holder> = (0..6).flat_map(|_| holder(eight.clone())).collect();
        assert!(conflict(&eight, &six, &cards).unwrap().0.to_string().contains("no more fit"));
        let first = gpu("Vgpu", "L40S-16Q", Some(0), &cards[0]);
        assert!(conflict(&first, &holder(first.clone()), &cards).is_some());
        let second = gpu("Vgpu", "L40S-16Q", Some(32), &cards[0]);
        assert_eq!(conflict(&first, &holder(second), &cards), None);
    }

    #[test]
    fn a_drive_is_given_once() {
        let drive = |name: &str, address: &str| {
            allocation(&format!("hostDevices: [{{name: {name}, kind: NvmeDrive, device: '{address}'}}]"))
        };
        let ours = drive("data", "0000:64:00.0");
        let (what, who) = conflict(&ours, &holder(drive("scratch", "0000:64:00.0")), &[]).unwrap();
        assert_eq!(
            (what.to_string().as_str(), who.as_str()),
            ("data on 0000:64:00.0 (it goes to one desktop whole)", "school/other")
        );
        assert_eq!(conflict(&ours, &holder(drive("data", "0000:65:00.0")), &[]), None);
    }

    #[test]
    fn desktops_share_a_gpu_instance_until_it_is_full() {
        let file = "{coresPerSocket: 4, memoryMiB: 8192, cards: [{model: RTX PRO 6000 Blackwell Server Edition, count: 1}]}";
        let cards = HostFile::parse(file).unwrap().host("n").unwrap().facts.cards;
        let on = |vgpu: &str, start: i32| {
            let mut allocation = gpu("Mig", "1g.24gb+gfx", Some(start), &cards[0]);
            allocation.gpus[0].vgpu_type = Some(vgpu.into());
            allocation
        };
        let held = |allocation: Allocation, owner: &str| Holder { owner: owner.into(), allocation };
        let small = on("DC-1-2Q", 0);
        let mut others: Vec<Holder> = (1..12).map(|n| held(small.clone(), &format!("school/{n}"))).collect();
        others.insert(0, held(on("DC-1-4Q", 3), "school/elsewhere"));
        assert_eq!(conflict(&small, &others, &cards), None, "eleven are on it");
        others.push(held(small.clone(), "school/12"));
        let (what, who) = conflict(&small, &others, &cards).unwrap();
        let what = what.to_string();
        assert!(what.contains("DC-1-2Q it holds 12 at most") && who == "school/12", "{what}: {who}");
        let (what, who) = conflict(&on("DC-1-2Q", 3), &others, &cards).unwrap();
        let what = what.to_string();
        assert!(what.contains("holds DC-1-4Q") && who == "school/elsewhere", "{what}: {who}");
        assert_eq!(conflict(&on("DC-1-4Q", 6), &others, &cards), None);
    }
}
