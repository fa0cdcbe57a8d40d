//! IOMMU groups: whether one can be given away.
//!
//! A group is the unit of assignment: the kernel gives it to a guest when every function in it has no
//! driver, or one that leaves DMA to the guest: a vfio driver, `pci-stub`, and since Linux 5.19 the port
//! driver of PCI bridges (before, bridges were not asked). An ISA bridge or an NVSwitch is an endpoint
//! like any other. Sources: the kernel's `Documentation/driver-api/vfio.rst`, and the drivers with
//! `driver_managed_dma`.

use gpudesk_crds::{
    gpu_node_status::{GroupMember, IommuGroup},
    types::PciAddress,
};

use super::pci::{self, FunctionKind, class_words};

/// Most members that the API takes.
const MEMBERS: usize = 64;

/// The group of the function at `address`, judged. `is_card` tells which functions are cards: those go
/// along, with the functions that belong to them. What is no card goes alone.
pub fn judge(
    id: i32,
    address: PciAddress,
    mut members: Vec<GroupMember>,
    is_card: impl Fn(PciAddress) -> bool,
) -> IommuGroup {
    members.sort_by_key(|member| member.pci_address);
    members.dedup_by_key(|member| member.pci_address);
    let (mut in_the_way, mut along) = (vec![], vec![]);
    let all = members.iter().map(|member| member.pci_address).chain([address]);
    let cards: Vec<PciAddress> = all.filter(|_| is_card(address)).filter(|a| is_card(*a)).collect();
    for member in &members {
        if cards.contains(&member.pci_address) {
            along.push(member.pci_address.to_string());
        } else if !is_left_to_guests(member)
            && !cards.iter().any(|card| is_companion(*card, member.pci_address) && is_part(member))
        {
            in_the_way.push(member.clone());
        }
    }
    members.truncate(MEMBERS);
    // A device that the host uses tells more than a bridge before it.
    in_the_way.sort_by_key(is_bridge);
    let (viable, message) = if let Some(first) = in_the_way.first() {
        let more = match in_the_way.len() {
            1 => String::new(),
            more => format!(" and {} more", more - 1),
        };
        let what = first.class.as_deref().map_or("unknown function".into(), class_words);
        let driver = first.driver.as_deref().unwrap_or("none");
        let otherwise = if is_bridge(first) {
            "or switch ACS on in the firmware"
        } else {
            "or bind that function to vfio-pci"
        };
        let message = format!(
            "IOMMU group {id} also holds {} ({what}, driver {driver}){more}, which the host uses: put the card in \
             a slot with a group of its own, {otherwise}",
            first.pci_address
        );
        (false, Some(message))
    } else if along.is_empty() {
        (true, None)
    } else {
        (true, Some(format!("goes together with {}, in the same IOMMU group", along.join(", "))))
    };
    IommuGroup { id, members, viable, message }
}

/// Whether both are functions of one card: the same bus and device.
pub fn is_companion(one: PciAddress, other: PciAddress) -> bool {
    one != other && (one.domain, one.bus, one.device) == (other.domain, other.bus, other.device)
}

fn is_bridge(member: &GroupMember) -> bool {
    member.class.as_deref().is_some_and(|class| class.starts_with("06"))
}

/// Whether a function of a card's slot is a part of the card: its sound, its USB-C controller. A bridge or
/// a network port in the same slot is none.
fn is_part(member: &GroupMember) -> bool {
    let is_other = |class: &str| pci::kind(class) == FunctionKind::Other;
    !is_bridge(member) && member.class.as_deref().is_none_or(is_other)
}

/// Whether its driver, if any, leaves the function to guests.
fn is_left_to_guests(member: &GroupMember) -> bool {
    match member.driver.as_deref() {
        None | Some("pci-stub" | "pcieport") => true,
        Some(driver) => driver.contains("vfio"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(address: &str, class: &str, driver: Option<&str>) -> GroupMember {
        GroupMember {
            pci_address: address.parse().unwrap(),
            class: Some(class.into()),
            driver: driver.map(Into::into),
        }
    }

    fn group(members: Vec<GroupMember>) -> IommuGroup {
        let card: PciAddress = "0000:01:00.0".parse().unwrap();
        judge(14, card, members, |address| {
            ["0000:01:00.0", "0000:05:00.0"].contains(&address.to_string().as_str())
        })
    }

    #[test]
    fn a_bridge_is_in_the_way_like_any_endpoint_that_a_driver_has() {
        for (class, driver) in [("0601", "lpc_ich"), ("0680", "nvidia-nvswitch"), ("0600", "skl_uncore")] {
            let found = group(vec![member("0000:00:1f.0", class, Some(driver))]);
            let message = found.message.unwrap();
            assert!(!found.viable && message.contains("0000:00:1f.0"), "{message}");
            assert!(message.contains(driver) && !message.contains("vfio-pci"), "{message}");
        }
        let free =
            vec![member("0000:00:1f.0", "0601", None), member("0000:00:1d.0", "0604", Some("pcieport"))];
        assert!(group(free).viable);
        assert!(!group(vec![member("0000:00:1d.0", "0604", Some("shpchp"))]).viable);
    }

    #[test]
    fn what_is_in_one_slot_is_not_one_device() {
        let nic: PciAddress = "0000:00:1f.6".parse().unwrap();
        let beside = vec![member("0000:00:1f.0", "0601", Some("lpc_ich"))];
        assert!(!judge(15, nic, beside, |_| false).viable, "a chipset has many functions in one slot");
        let port: PciAddress = "0000:18:00.0".parse().unwrap();
        let other = || vec![member("0000:18:00.1", "0200", Some("ice"))];
        assert!(!judge(15, port, other(), |_| false).viable, "the other port is the host's");
        let card = |address: PciAddress| address.to_string() == "0000:05:00.0";
        let with_card = vec![member("0000:05:00.0", "0302", Some("nvidia"))];
        assert!(!judge(15, port, with_card, card).viable, "a card does not go along with a network card");
    }

    #[test]
    fn a_large_group_is_judged_whole() {
        let many =
            (0..100).map(|n| member(&format!("0000:{:02x}:00.0", n + 6), "0200", (n == 99).then_some("ice")));
        let found = group(many.collect());
        assert!(!found.viable && found.members.len() == 64);
        assert!(found.message.unwrap().contains("0000:69:00.0"));
    }

    #[test]
    fn the_cards_own_functions_and_bridges_are_not_in_the_way() {
        let found = group(vec![
            member("0000:01:00.1", "0403", Some("snd_hda_intel")),
            member("0000:00:01.0", "0604", Some("pcieport")),
        ]);
        assert!(found.viable && found.message.is_none());
        assert_eq!(found.members[0].pci_address.to_string(), "0000:00:01.0", "lowest first");
    }

    #[test]
    fn a_function_that_the_host_uses_is_named() {
        let found = group(vec![
            member("0000:02:00.0", "0200", Some("e1000e")),
            member("0000:03:00.0", "0108", Some("nvme")),
        ]);
        let message = found.message.unwrap();
        assert!(!found.viable);
        assert!(message.contains("0000:02:00.0 (network card, driver e1000e) and 1 more"), "{message}");
    }

    #[test]
    fn what_is_unbound_or_bound_to_vfio_is_not_in_the_way() {
        let bound = [None, Some("vfio-pci"), Some("mlx5_vfio_pci"), Some("pci-stub")];
        let members = bound
            .iter()
            .zip(2..)
            .map(|(driver, bus)| member(&format!("0000:{bus:02x}:00.0"), "0200", *driver));
        assert!(group(members.collect()).viable);
    }

    #[test]
    fn another_card_goes_along_with_its_sound() {
        let sound = member("0000:05:00.1", "0403", Some("snd_hda_intel"));
        let found = group(vec![member("0000:05:00.0", "0300", Some("nvidia")), sound]);
        assert!(found.viable && found.message.unwrap().contains("0000:05:00.0"));
    }
}
