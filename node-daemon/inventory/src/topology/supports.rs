//! What a card can be used for, as far as the host tells, and if not, why.

use gpudesk_crds::{
    gpu_node_status::{Device, IommuGroup, ModeSupport, Sriov},
    types::{PciAddress, ShareMode},
};

/// Judges each mode from everything that is known of the card.
///
/// Passthrough needs an IOMMU group that can be given away, a reset between users, and a card that
/// the host does not show its own screen on. The other modes need a driver that offers shares.
pub fn judge(card: &Device, iommu_groups: Option<usize>) -> Vec<ModeSupport> {
    let support = |mode, refused: Option<String>| ModeSupport {
        mode,
        supported: refused.is_none(),
        reason: refused.map(|reason| reason.chars().take(512).collect()),
    };
    vec![
        support(ShareMode::Passthrough, passthrough(card, iommu_groups)),
        support(ShareMode::Vgpu, vgpu(card)),
        support(ShareMode::Mig, mig(card)),
        support(ShareMode::VirtualFunctions, virtual_functions(card)),
    ]
}

fn passthrough(card: &Device, iommu_groups: Option<usize>) -> Option<String> {
    if card.iommu_group.is_none() && iommu_groups == Some(0) && !card.boot_vga {
        return Some("the kernel shows no IOMMU groups: see the condition IommuEnabled".into());
    }
    obstacle(card).or_else(|| match &card.iommu_group {
        None => Some("the IOMMU group of the card is not known".into()),
        Some(_) if card.reset_methods.is_empty() => {
            Some("the card has no reset method, so it cannot be cleaned between users".into())
        }
        Some(_) => None,
    })
}

/// What was seen on the host and stands in the way of giving the card away whole. What was only not seen
/// is no obstacle here.
pub fn obstacle(card: &Device) -> Option<String> {
    if card.boot_vga {
        return Some("the host shows its own screen on this card: give the host another one".into());
    }
    if let Some(why) = behind_a_controller(card.pci_address) {
        return Some(why);
    }
    if let Some(group) = card.iommu_group.as_ref().filter(|group| !group.viable) {
        return Some(not_viable(group));
    }
    if card.bars.iter().any(|bar| bar.unassigned) {
        return Some("a memory region of the card has no address: see the condition BarsAssigned".into());
    }
    let mut on_functions = card.instances.iter().filter(|instance| instance.virtual_function.is_some());
    if let Some(first) = on_functions.next() {
        let more = match on_functions.count() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        return Some(format!(
            "the card is divided: {} is on its virtual function {}{more}",
            first.type_name,
            first.virtual_function.map_or_else(String::new, |function| function.to_string())
        ));
    }
    functions_on(card.sriov, card.virtual_functions.len())
}

/// Why a function cannot be given away whole while virtual ones of it are on. To switch them off takes
/// them from whoever uses one.
pub fn functions_on(sriov: Option<Sriov>, shown: usize) -> Option<String> {
    let stated = sriov.map_or(0, |sriov| usize::try_from(sriov.num_vfs).unwrap_or(0));
    let on = stated.max(shown);
    (on > 0).then(|| {
        let functions = if on == 1 { "1 virtual function of it is" } else { &format!("{on} virtual functions of it are") };
        format!("{functions} switched on: it can be given whole once no machine uses them and they are switched off")
    })
}

/// Why what has an address in a domain of more than sixteen bits cannot be given away: such domains are
/// made by Intel's VMD, whose requests all come from the controller itself.
///
/// Source: the kernel's `drivers/pci/controller/vmd.c`.
pub fn behind_a_controller(address: PciAddress) -> Option<String> {
    (address.domain > 0xffff).then(|| {
        format!(
            "it is behind a controller that makes PCI domain {:x} (Intel VMD), and cannot be given away alone: \
             switch VMD off in the firmware",
            address.domain
        )
    })
}

/// Why a group cannot be given away.
pub fn not_viable(group: &IommuGroup) -> String {
    let unknown = || format!("IOMMU group {} is said not to be one that can be given away", group.id);
    group.message.clone().unwrap_or_else(unknown)
}

fn offers(card: &Device, mode: ShareMode) -> bool {
    card.placements.iter().any(|placement| placement.mode == mode)
}

fn vgpu(card: &Device) -> Option<String> {
    (!offers(card, ShareMode::Vgpu)).then(|| no_shares(card, "vGPU types"))
}

fn mig(card: &Device) -> Option<String> {
    let of_mig = || card.placements.iter().filter(|placement| placement.mode == ShareMode::Mig);
    // A type with a series is itself a vGPU; a profile holds some, or none that a VM could be given.
    if of_mig().any(|placement| placement.series.is_some() || !placement.vgpu_types.is_empty()) {
        return None;
    }
    Some(if of_mig().next().is_some() {
        "a MIG instance alone cannot be given to a virtual machine, and the host driver makes no vGPUs on it"
            .into()
    } else if card.mig.is_some() {
        "the driver offers no MIG profiles now".into()
    } else {
        no_shares(card, "MIG profiles")
    })
}

fn virtual_functions(card: &Device) -> Option<String> {
    if offers(card, ShareMode::VirtualFunctions) {
        return None;
    }
    Some(match card.sriov {
        _ if card.vendor_id == "10de" => "virtual functions of NVIDIA cards only carry vGPUs".into(),
        Some(sriov) if sriov.num_vfs == 0 => {
            format!("none of the {} virtual functions is switched on", sriov.total_vfs)
        }
        Some(_) => "no driver says that the virtual functions can be given away".into(),
        None => "the card has no virtual functions".into(),
    })
}

fn no_shares(card: &Device, what: &str) -> String {
    match card.driver.as_deref() {
        None => format!("no driver is bound to the card, so nobody offers {what}"),
        Some(driver) => format!("the driver {driver} offers no {what} on this card"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpudesk_crds::gpu_node_status::{Bar, Instance};

    fn card() -> Device {
        let mut card = Device::new("0000:41:00.0".parse().unwrap(), "1002", "74a1");
        card.iommu_group = Some(IommuGroup { id: 1, members: vec![], viable: true, message: None });
        card.reset_methods = vec!["flr".into()];
        card
    }

    fn refusal(card: &Device) -> Option<String> {
        judge(card, Some(8))[0].reason.clone()
    }

    #[test]
    fn a_card_alone_in_its_group_that_can_be_reset_can_be_given_whole() {
        assert_eq!(refusal(&card()), None);
    }

    #[test]
    fn each_obstacle_is_named() {
        let change = |change: fn(&mut Device)| {
            let mut card = card();
            change(&mut card);
            refusal(&card).unwrap()
        };
        assert!(change(|card| card.boot_vga = true).contains("screen"));
        assert!(change(|card| card.iommu_group = None).contains("not known"));
        assert!(change(|card| card.reset_methods.clear()).contains("reset"));
        assert!(
            change(|card| card.sriov = Some(Sriov { total_vfs: 8, num_vfs: 3 }))
                .contains("3 virtual functions")
        );
        let unassigned =
            |card: &mut Device| card.bars = vec![Bar { index: 1, size_bytes: 1, unassigned: true }];
        assert!(change(unassigned).contains("BarsAssigned"));
        let group =
            IommuGroup { id: 2, members: vec![], viable: false, message: Some("a network card".into()) };
        let refused = refusal(&Device { iommu_group: Some(group), ..card() });
        assert_eq!(refused.as_deref(), Some("a network card"));
        let silent = IommuGroup { id: 2, members: vec![], viable: false, message: None };
        assert!(refusal(&Device { iommu_group: Some(silent), ..card() }).unwrap().contains("IOMMU group 2"));
        let bare = Device { iommu_group: None, ..card() };
        assert!(judge(&bare, Some(0))[0].reason.as_ref().unwrap().contains("IommuEnabled"));
    }

    #[test]
    fn what_is_in_use_is_not_advised_to_be_switched_off() {
        let mut card = card();
        card.sriov = Some(Sriov { total_vfs: 8, num_vfs: 2 });
        card.instances.push(Instance {
            id: "0000:41:00.4".into(),
            type_name: "L40S-24Q".into(),
            mode: ShareMode::Vgpu,
            vgpu_type: None,
            start: None,
            virtual_function: Some("0000:41:00.4".parse().unwrap()),
            gpu_instance: None,
            owner: None,
        });
        let reason = refusal(&card).unwrap();
        assert!(reason.contains("L40S-24Q is on its virtual function 0000:41:00.4"), "{reason}");
        assert!(!reason.contains("switched off"), "{reason}");
    }

    #[test]
    fn modes_without_shares_say_who_could_offer_them() {
        let reasons: Vec<String> =
            judge(&card(), Some(1)).into_iter().filter_map(|support| support.reason).collect();
        assert!(reasons[0].contains("no driver is bound"), "{reasons:?}");
        assert!(reasons[2].contains("no virtual functions"), "{reasons:?}");
    }
}
