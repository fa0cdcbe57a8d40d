//! Where QEMU sends its guests' questions for names. Pure.

use std::net::IpAddr;

/// The addresses that slirp takes of a `resolv.conf`: the first of IPv4 for the guest's `10.0.2.3`,
/// and the first of IPv6 for its `fec0::3`. Source: libslirp, `get_dns_addr_resolv_conf`.
pub fn resolvers(resolv_conf: &str) -> Vec<IpAddr> {
    let servers = resolv_conf.lines().filter_map(|line| {
        let rest = line.strip_prefix("nameserver")?;
        let word = rest.strip_prefix([' ', '\t'])?.split_ascii_whitespace().next()?;
        // A link-local one names its interface: fe80::1%eth0.
        word.split('%').next()?.parse::<IpAddr>().ok()
    });
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = servers.partition(IpAddr::is_ipv4);
    v4.into_iter().take(1).chain(v6.into_iter().take(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_of_each_family_is_taken() {
        let text = "# nameserver 192.0.2.9\nsearch example.org\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n\
            nameserver\tfe80::1%eth0 # a comment\nnameserver ::1\nnameserverx 192.0.2.7\noptions edns0\n";
        let found: Vec<String> = resolvers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53", "fe80::1"]);
        assert_eq!(
            resolvers("nameserver dns.example.org\n nameserver 192.0.2.1\nnameserver"),
            [] as [IpAddr; 0]
        );
    }

    proptest! {
        #[test]
        fn any_text_gives_at_most_one_of_each_family(text in "(nameserver[ \t]?[0-9a-f.:%]{0,20}\n|\\PC{0,20}\n){0,6}") {
            let found = resolvers(&text);
            prop_assert!(found.iter().filter(|address| address.is_ipv4()).count() <= 1);
            prop_assert!(found.len() <= 2);
        }
    }
}
