//! The rules that keep guests away from the host, as a script for `nft`. Pure.
//!
//! QEMU's user-mode network (slirp) opens sockets of the host for its guest, so that what the guest
//! sends looks like the host's own traffic. It is told apart by the group of the process, and looked
//! at in the hook `output`, before and after addresses are translated: a Service may lead to a port of
//! the host itself.

use std::{
    fmt::{Display, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The families of the tables.
pub const FAMILIES: [&str; 2] = ["inet", "bridge"];

/// "This network", loopback, link-local, multicast, and reserved with the broadcast address. What the
/// host has an address in is found by the kernel's routes. And where clouds tell a machine who it is, with
/// credentials, beside the link-local 169.254.169.254.
const NEVER4: [(Ipv4Addr, u8); 8] = [
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
    // Alibaba Cloud: "Overview of ECS instance metadata".
    (Ipv4Addr::new(100, 100, 100, 200), 32),
    // Azure's wire server: "What is IP address 168.63.129.16?".
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    // Oracle Cloud at Customer: "Retrieve Predefined Instance Metadata".
    (Ipv4Addr::new(192, 0, 0, 192), 32),
];
/// Unspecified and loopback, addresses of IPv4 in IPv6's clothes, link-local, multicast; and services of
/// clouds as above.
const NEVER6: [(Ipv6Addr, u8); 9] = [
    (Ipv6Addr::UNSPECIFIED, 127),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xFFFF, 0, 0), 96),
    (Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xFF00, 0, 0, 0, 0, 0, 0, 0), 8),
    // AWS: "Use the Instance Metadata Service", and the agent of "EKS Pod Identity".
    (Ipv6Addr::new(0xFD00, 0xEC2, 0, 0, 0, 0, 0, 0x254), 128),
    (Ipv6Addr::new(0xFD00, 0xEC2, 0, 0, 0, 0, 0, 0x23), 128),
    // Google Cloud: "About VM metadata", of instances without IPv4.
    (Ipv6Addr::new(0xFD20, 0xCE, 0, 0, 0, 0, 0, 0x254), 128),
    // Oracle Cloud Infrastructure: its SDK for Python, `oci.auth.signers`.
    (Ipv6Addr::new(0xFD00, 0xC1, 0, 0, 0, 0, 0xA9FE, 0xA9FE), 128),
    // Scaleway: the data source of cloud-init.
    (Ipv6Addr::new(0xFD00, 0x42, 0, 0, 0, 0, 0, 0x42), 128),
];

/// What guests may not reach, and who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Group of their QEMU processes.
    pub group: u32,
    /// Networks that they may not reach, beside every address of the host.
    pub deny: Vec<IpNet>,
    /// Addresses where they may ask for names (port 53), wherever those are.
    pub resolvers: Vec<IpAddr>,
}

impl Rules {
    /// Name of the tables. Guests that run in another group keep the rules made for that one.
    #[must_use]
    pub fn table(&self) -> String {
        format!("gpudesk-guests-{}", self.group)
    }

    /// A script that replaces both tables in one transaction: at no moment is there no filter.
    #[must_use]
    pub fn script(&self) -> String {
        let mut text = String::new();
        let name = self.table();
        for family in FAMILIES {
            // `add` succeeds where there is one, so that `delete` always does.
            line(&mut text, format_args!("add table {family} {name}"));
            line(&mut text, format_args!("delete table {family} {name}"));
        }
        let [inet, bridge] = FAMILIES;
        line(&mut text, format_args!("table {inet} {name} {{"));
        Self::write_set(&mut text, "denied4", "ipv4_addr", &self.denied4());
        Self::write_set(&mut text, "denied6", "ipv6_addr", &self.denied6());
        for (chain, priority) in [("before-nat", "-300"), ("after-nat", "150")] {
            self.write_hook(&mut text, chain, priority, "jump guest");
        }
        line(&mut text, "\tchain guest {");
        for resolver in &self.resolvers {
            let family = if resolver.is_ipv4() { "ip" } else { "ip6" };
            for protocol in ["udp", "tcp"] {
                line(&mut text, format_args!("\t\t{family} daddr {resolver} {protocol} dport 53 accept"));
            }
        }
        line(&mut text, "\t\tfib daddr type { local, broadcast, anycast, multicast } goto refuse");
        line(&mut text, "\t\tip daddr @denied4 goto refuse");
        line(&mut text, "\t\tip6 daddr @denied6 goto refuse");
        // libvirt's own networks: other guests at once, in place of silence.
        line(&mut text, "\t\toifname \"virbr*\" goto refuse");
        line(&mut text, "\t}");
        line(&mut text, "\tchain refuse {");
        line(&mut text, "\t\tmeta l4proto tcp reject with tcp reset");
        line(&mut text, "\t\treject with icmpx type port-unreachable");
        line(&mut text, "\t}\n}");
        line(&mut text, format_args!("table {bridge} {name} {{"));
        // A port of a bridge that is a tap device is another guest. The kernel cannot reject here.
        self.write_hook(&mut text, "to-guests", "0", "meta oifkind \"tun\" drop");
        line(&mut text, "}");
        text
    }

    fn write_hook(&self, text: &mut String, chain: &str, priority: &str, then: &str) {
        line(text, format_args!("\tchain {chain} {{"));
        line(text, format_args!("\t\ttype filter hook output priority {priority}; policy accept;"));
        line(text, format_args!("\t\tmeta skgid {} {then}", self.group));
        line(text, "\t}");
    }

    fn write_set<T: Display>(text: &mut String, name: &str, of: &str, elements: &[T]) {
        let elements: Vec<String> = elements.iter().map(ToString::to_string).collect();
        line(text, format_args!("\tset {name} {{\n\t\ttype {of}\n\t\tflags interval"));
        line(text, format_args!("\t\telements = {{ {} }}\n\t}}", elements.join(", ")));
    }

    fn denied4(&self) -> Vec<Ipv4Net> {
        let never = NEVER4.iter().filter_map(|(address, prefix)| Ipv4Net::new(*address, *prefix).ok());
        let asked = self.deny.iter().filter_map(|net| match net {
            IpNet::V4(net) => Some(*net),
            IpNet::V6(_) => None,
        });
        // Overlaps are an error for some versions of nft.
        Ipv4Net::aggregate(&never.chain(asked).collect())
    }

    fn denied6(&self) -> Vec<Ipv6Net> {
        let never = NEVER6.iter().filter_map(|(address, prefix)| Ipv6Net::new(*address, *prefix).ok());
        let asked = self.deny.iter().filter_map(|net| match net {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some(*net),
        });
        Ipv6Net::aggregate(&never.chain(asked).collect())
    }
}

fn line(text: &mut String, line: impl Display) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "{line}");
}

/// A network as people write it, `10.96.0.0/12` or `fd00:10:96::/112`; an address alone is itself.
///
/// # Errors
/// A sentence that names the text and what would be right.
pub fn network(text: &str) -> Result<IpNet, String> {
    let parsed = match text.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address)),
        Err(_) => text.parse::<IpNet>().ok(),
    };
    let net = parsed.ok_or_else(|| {
        format!("{text:?} is no network: write an address and the length of its prefix, like 10.96.0.0/12 or fd00:10:96::/112")
    })?;
    Ok(net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(deny: &[&str], resolvers: &[&str]) -> Rules {
        Rules {
            group: 2_113_000_001,
            deny: deny.iter().map(|text| network(text).unwrap()).collect(),
            resolvers: resolvers.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn the_script_is_the_one_that_was_thought_about() {
        let rules = rules(&["10.96.0.0/12", "10.100.0.0/16", "fd00:10:96::/112"], &["127.0.0.53", "::1"]);
        insta::assert_snapshot!(rules.script());
    }

    #[test]
    fn a_network_is_an_address_with_or_without_a_length() {
        for (text, right) in [
            ("10.96.0.0/12", "10.96.0.0/12"),
            ("10.96.7.9/12", "10.96.0.0/12"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(network(text).unwrap().to_string(), right);
        }
        for text in ["", "10.96/12", "10.96.0.0/33", "10.96.0.0/12 ", "pods", "10.0.0.0/8; flush ruleset"] {
            let why = network(text).unwrap_err();
            assert!(why.contains(&format!("{text:?}")) && why.contains("10.96.0.0/12"), "{why}");
        }
    }

    fn networks() -> impl Strategy<Value = Vec<IpNet>> {
        let v4 = (any::<Ipv4Addr>(), 0..=32_u8).prop_map(|(a, n)| IpNet::new(a.into(), n).unwrap().trunc());
        let v6 = (any::<Ipv6Addr>(), 0..=128_u8).prop_map(|(a, n)| IpNet::new(a.into(), n).unwrap().trunc());
        proptest::collection::vec(prop_oneof![v4, v6], 0..12)
    }

    proptest! {
        /// What is to be denied is in a set whatever else is, and no two elements overlap.
        #[test]
        fn nothing_denied_is_lost(deny in networks(), group: u32) {
            let rules = Rules { group, deny: deny.clone(), resolvers: vec![] };
            let (v4, v6) = (rules.denied4(), rules.denied6());
            let sets: Vec<IpNet> =
                v4.iter().copied().map(IpNet::V4).chain(v6.iter().copied().map(IpNet::V6)).collect();
            for net in deny {
                prop_assert!(sets.iter().any(|set| set.contains(&net)), "{net}");
            }
            for address in ["127.0.0.1", "169.254.169.254", "255.255.255.255", "::1", "fe80::1", "ff02::1",
                "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23",
                "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42"]
            {
                let address: IpAddr = address.parse().unwrap();
                prop_assert!(sets.iter().any(|set| set.contains(&address)), "{address}");
            }
            for (i, one) in sets.iter().enumerate() {
                for other in &sets[i + 1..] {
                    prop_assert!(!one.contains(other) && !other.contains(one), "{one} {other}");
                }
            }
        }

        #[test]
        fn any_text_is_a_network_or_an_error(text in "\\PC{0,40}|[0-9a-f.:/]{0,40}") {
            if let Ok(net) = network(&text) {
                prop_assert_eq!(net, net.trunc());
            }
        }
    }
}
