//! Network interfaces.

use std::fmt;
use std::num::NonZeroU32;

use uuid::Uuid;

use super::Transport;
use super::xml::Xml;

/// One virtio network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its address. Always given, so that a guest keeps its lease and its interface's name.
    pub mac: MacAddress,
    /// What it is connected to.
    pub link: Link,
    /// Position in the firmware's boot order, unique in the domain, disks included.
    pub boot: Option<NonZeroU32>,
}

/// What a network interface is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// QEMU's own user-mode network: outgoing connections only, no privileges.
    User,
    /// A bridge of the host.
    Bridge(String),
    /// A network that libvirt keeps.
    LibvirtNetwork(String),
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address `octets`; `None` for a group address and for the prefix `fe`, which libvirt keeps
    /// for the host's end of a tap device.
    pub fn new(octets: [u8; 6]) -> Option<Self> {
        (octets[0] & 1 == 0 && octets[0] != 0xFE).then_some(Self(octets))
    }

    /// The address of interface number `index` of the desktop `uuid`: the same at each start.
    ///
    /// Locally administered, with 44 bits of the UUID in it: a prefix of three fixed octets would
    /// leave 24, and tens of thousands of desktops on one network would collide.
    #[must_use]
    pub fn of_desktop(uuid: Uuid, index: u8) -> Self {
        let bytes = uuid.as_bytes();
        // Octets 6 and 8 of a UUID hold fixed bits: the first six and the last six do not.
        let mut octets: [u8; 6] = std::array::from_fn(|i| bytes[i] ^ bytes[i + 10]);
        octets[0] = octets[0] & 0xF0 | 0x02;
        octets[5] = octets[5].wrapping_add(index);
        Self(octets)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for octet in self.0 {
            write!(f, "{separator}{octet:02x}")?;
            separator = ":";
        }
        Ok(())
    }
}

impl Interface {
    pub(super) fn write(&self, xml: &mut Xml, transport: Transport) {
        let (kind, source) = match &self.link {
            Link::User => ("user", None),
            Link::Bridge(name) => ("bridge", Some(("bridge", name))),
            Link::LibvirtNetwork(name) => ("network", Some(("network", name))),
        };
        xml.nest("interface", &[("type", &kind)], |xml| {
            xml.empty("mac", &[("address", &self.mac)]);
            if let Some((key, name)) = source {
                xml.empty("source", &[(key, name)]);
            }
            xml.empty("model", &[("type", &"virtio")]);
            if let Some(boot) = self.boot {
                xml.empty("boot", &[("order", &boot)]);
            }
            transport.write_address(xml);
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_derived_address_is_one_that_may_be_used(bytes: [u8; 16], index: u8) {
            let mac = MacAddress::of_desktop(Uuid::from_bytes(bytes), index);
            prop_assert_eq!(MacAddress::new(mac.0), Some(mac));
            prop_assert_eq!(mac.0[0] & 0b10, 0b10, "locally administered");
        }
    }

    #[test]
    fn the_interfaces_of_a_desktop_differ() {
        let uuid = Uuid::from_u128(7);
        assert_ne!(MacAddress::of_desktop(uuid, 0), MacAddress::of_desktop(uuid, 1));
        assert_eq!(MacAddress::of_desktop(uuid, 1).to_string(), "02:00:00:00:00:08");
    }

    #[test]
    fn a_group_address_and_the_taps_prefix_are_refused() {
        assert_eq!(MacAddress::new([0x01, 0, 0, 0, 0, 0]), None);
        assert_eq!(MacAddress::new([0xFE, 0, 0, 0, 0, 0]), None);
    }
}
