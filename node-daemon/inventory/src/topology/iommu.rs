//! IOMMU groups: whether one can be given away.
//!
//! A group is the unit of assignment: every endpoint in it must be bound to a vfio driver or to none.
//! Bridges need nothing. Source: the kernel's `Documentation/driver-api/vfio.rst`.

use gpudesk_crds::{
    gpu_node_status::{GroupMember, IommuGroup},
    types::PciAddress,
};

use super::pci::class_words;

/// The group of the function at `address`, judged. `is_card` tells which members are cards.
pub fn judge(
    id: i32,
    address: PciAddress,
    mut members: Vec<GroupMember>,
    is_card: impl Fn(PciAddress) -> bool,
) -> IommuGroup {
    members.sort_by_key(|member| member.pci_address);
    members.dedup_by_key(|member| member.pci_address);
    members.truncate(64);
    let (mut in_the_way, mut along) = (vec![], vec![]);
    let cards: Vec<PciAddress> =
        members.iter().map(|member| member.pci_address).filter(|a| is_card(*a)).collect();
    for member in &members {
        let goes_along =
            |card: &PciAddress| is_companion(*card, member.pci_address) && !is_card(member.pci_address);
        let same_card = is_companion(address, member.pci_address) || cards.iter().any(goes_along);
        if same_card || is_bridge(member) || is_given_away(member) {
            continue;
        }
        if is_card(member.pci_address) {
            along.push(member.pci_address.to_string());
        } else {
            in_the_way.push(member);
        }
    }
    let (viable, message) = if let Some(first) = in_the_way.first() {
        let more = match in_the_way.len() {
            1 => String::new(),
            more => format!(" and {} more", more - 1),
        };
        let what = first.class.as_deref().map_or("unknown function".into(), class_words);
        let driver = first.driver.as_deref().unwrap_or("none");
        let message = format!(
            "IOMMU group {id} also holds {} ({what}, driver {driver}){more}, which the host uses: put the card in \
             a slot with a group of its own, or bind that function to vfio-pci",
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

fn is_given_away(member: &GroupMember) -> bool {
    match member.driver.as_deref() {
        None | Some("pci-stub") => true,
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
        judge(14, card, members, |address| address.to_string() == "0000:05:00.0")
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
