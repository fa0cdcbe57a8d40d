//! What a guest agent says. Pure: its answers are made by the guest and are not to be trusted.

use std::net::IpAddr;

use serde::Deserialize;

/// The question for the addresses of a guest.
pub const INTERFACES: &str = r#"{"execute":"guest-network-get-interfaces"}"#;

/// Most addresses that are shown.
const MOST: usize = 16;

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Interface {
    #[serde(default)]
    ip_addresses: Vec<Address>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Address {
    ip_address: String,
}

/// The addresses in an answer, IPv4 first, without those that mean nothing outside the guest.
pub fn addresses(answer: &str) -> Vec<String> {
    let Ok(answer) = serde_json::from_str::<Answer>(answer) else { return vec![] };
    let mut addresses: Vec<IpAddr> = answer
        .interfaces
        .into_iter()
        .flat_map(|interface| interface.ip_addresses)
        .filter_map(|address| address.ip_address.parse().ok())
        .filter(|address: &IpAddr| match address {
            IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified()),
            IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified()),
        })
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.dedup();
    addresses.truncate(MOST);
    addresses.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_addresses_that_reach_the_guest_are_shown() {
        let answer = r#"{"return":[
            {"name":"lo","ip-addresses":[{"ip-address-type":"ipv4","ip-address":"127.0.0.1","prefix":8}]},
            {"name":"eth0","hardware-address":"52:54:00:1:2:3","ip-addresses":[
                {"ip-address-type":"ipv6","ip-address":"fe80::1","prefix":64},
                {"ip-address-type":"ipv6","ip-address":"2001:db8::7","prefix":64},
                {"ip-address-type":"ipv4","ip-address":"10.0.2.15","prefix":24}]},
            {"name":"dummy0"}]}"#;
        assert_eq!(addresses(answer), ["10.0.2.15", "2001:db8::7"]);
    }

    #[test]
    fn a_guest_that_lies_gives_no_addresses() {
        for answer in ["", "{}", r#"{"return":7}"#, r#"{"return":[{"ip-addresses":[{"ip-address":"<b>"}]}]}"#]
        {
            assert!(addresses(answer).is_empty(), "{answer}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(answer in "\\PC{0,300}") {
            let _ = addresses(&answer);
        }
    }
}
