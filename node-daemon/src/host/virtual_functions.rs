//! Virtual functions of network cards by the kernel's rtnetlink, in the network namespace in which the cards are.
//!
//! A pod has a network of its own, and the cards are in the host's: that of its first process. A thread goes there, opens
//! the one socket, and ends; the socket stays of the place where it was opened. Sources: the kernel's
//! `net/core/rtnetlink.c` (`do_setvfinfo`, `rtnl_fill_vfinfo`), `include/uapi/linux/if_link.h`.
#![expect(clippy::disallowed_methods, reason = "adapter: opens a network namespace")]

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    thread,
    time::Duration,
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        LinkAttribute, LinkExtentMask, LinkMessage, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac,
        VfInfoRate, VfInfoSpoofCheck, VfInfoTrust, VfVlan, VfVlanInfo,
    },
};
use rustix::{
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::devices::network::{DOT1Q, VfSettings};

/// Time for the kernel's answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Room for what it says of a card with 256 functions, figures included.
const ANSWER: usize = 512 << 10;

/// The socket to the kernel that has the host's cards.
struct Socket(OwnedFd);

impl Socket {
    /// Of the host whose processes are below `root`.
    fn open(root: &Path) -> io::Result<Self> {
        let namespace = File::open(root.join("proc/1/ns/net")).map_err(|error| {
            io::Error::other(format!(
                "the host's network cannot be reached (/proc/1/ns/net: {error}); set nodeDaemon.privileged"
            ))
        })?;
        let opened = thread::spawn(move || -> io::Result<OwnedFd> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            let flags = SocketFlags::CLOEXEC;
            // NETLINK_ROUTE is number 0.
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
            Ok(socket)
        });
        let opened =
            opened.join().map_err(|_| io::Error::other("the thread for the host's network failed"))?;
        opened.map(Self)
    }

    /// Asks, and hears the one answer.
    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut asked = NetlinkMessage::new(header, NetlinkPayload::from(message));
        asked.finalize();
        let mut bytes = vec![0; asked.buffer_len()];
        asked.serialize(&mut bytes);
        send(&self.0, &bytes, SendFlags::empty())?;
        let mut answer = vec![0; ANSWER];
        let (_, length) = recv(&self.0, answer.as_mut_slice(), RecvFlags::TRUNC)?;
        let answer =
            answer.get(..length).ok_or_else(|| io::Error::other("the kernel's answer is too long"))?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer).map_err(io::Error::other)?;
        match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
            _ => Ok(None),
        }
    }
}

/// What a card says of its function number `index`, by the card's interface.
pub(super) fn read(root: &Path, interface: u32, index: u32) -> io::Result<VfSettings> {
    let mut message = LinkMessage::default();
    message.header.index = interface;
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats]));
    let answer = Socket::open(root)?.ask(RouteNetlinkMessage::GetLink(message), 0)?;
    let Some(RouteNetlinkMessage::NewLink(link)) = answer else {
        return Err(io::Error::other("the kernel says nothing of the network card"));
    };
    found(&link, index).ok_or_else(|| io::Error::other("the network card says nothing of its function"))
}

/// What a link says of its function number `index`. Pure.
fn found(link: &LinkMessage, index: u32) -> Option<VfSettings> {
    let lists = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::VfInfoList(list) => Some(list),
        _ => None,
    });
    let is_it =
        |info: &&LinkVfInfo| info.0.iter().any(|word| matches!(word, VfInfo::Mac(mac) if mac.vf_id == index));
    let info = lists.flatten().find(is_it)?;
    let mut settings = VfSettings { protocol: DOT1Q, ..VfSettings::default() };
    for word in &info.0 {
        match word {
            VfInfo::Mac(mac) => settings.mac = address(&mac.mac[..6]),
            VfInfo::Vlan(vlan) => (settings.vlan, settings.qos) = (vlan.vlan_id, vlan.qos),
            VfInfo::VlanList(list) => {
                for one in list {
                    if let VfVlan::Info(vlan) = one {
                        (settings.vlan, settings.qos) = (vlan.vlan_id, vlan.qos);
                        settings.protocol = vlan.protocol.into();
                    }
                }
            }
            VfInfo::Rate(rate) => settings.rates = Some((rate.min_tx_rate, rate.max_tx_rate)),
            VfInfo::SpoofCheck(check) => settings.spoof_check = Some(check.enabled),
            VfInfo::LinkState(link) => settings.link_state = Some(link.state.into()),
            VfInfo::Trust(trust) => settings.trust = Some(trust.enabled),
            _ => {}
        }
    }
    Some(settings)
}

/// Tells a card what holds for its function number `index`, one thing at a time, so that a refusal names it.
pub(super) fn write(root: &Path, interface: u32, index: u32, wanted: &VfSettings) -> io::Result<()> {
    let now = read(root, interface, index)?;
    let socket = Socket::open(root)?;
    for (name, word) in words(index, &now, wanted)? {
        let mut message = LinkMessage::default();
        message.header.index = interface;
        message.attributes.push(LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![word])]));
        socket.ask(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map_err(|error| {
            io::Error::new(error.kind(), format!("the network card does not take {name}: {error}"))
        })?;
    }
    Ok(())
}

/// What is to be said so that what holds `now` becomes what is wanted. The check of addresses comes after the address, for
/// without one it is not defined what it does. Pure.
fn words(index: u32, now: &VfSettings, wanted: &VfSettings) -> io::Result<Vec<(&'static str, VfInfo)>> {
    let mut words = vec![];
    if now.mac != wanted.mac {
        let octets = octets(&wanted.mac)
            .ok_or_else(|| io::Error::other(format!("{} is no address of an interface", wanted.mac)))?;
        words.push(("the address", VfInfo::Mac(VfInfoMac::new(index, &octets))));
    }
    let tag = |settings: &VfSettings| (settings.vlan, settings.qos, settings.protocol);
    if tag(now) != tag(wanted) {
        let info = VfVlanInfo::new(index, wanted.vlan, wanted.qos, wanted.protocol.into());
        words.push(("the VLAN", VfInfo::VlanList(vec![VfVlan::Info(info)])));
    }
    if let Some((least, most)) = wanted.rates.filter(|_| now.rates != wanted.rates) {
        words.push(("the rates", VfInfo::Rate(VfInfoRate::new(index, least, most))));
    }
    if let Some(on) = wanted.spoof_check.filter(|_| now.spoof_check != wanted.spoof_check) {
        words.push(("the spoof check", VfInfo::SpoofCheck(VfInfoSpoofCheck::new(index, on))));
    }
    if let Some(state) = wanted.link_state.filter(|_| now.link_state != wanted.link_state) {
        words.push(("the link state", VfInfo::LinkState(VfInfoLinkState::new(index, state.into()))));
    }
    if let Some(on) = wanted.trust.filter(|_| now.trust != wanted.trust) {
        words.push(("trust", VfInfo::Trust(VfInfoTrust::new(index, on))));
    }
    Ok(words)
}

fn address(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":")
}

fn octets(text: &str) -> Option<[u8; 6]> {
    let octets: Option<Vec<u8>> =
        text.split(':').map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2)).collect();
    octets?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings() -> impl Strategy<Value = VfSettings> {
        let tag = (0..4095_u32, 0..8_u32, prop_oneof![Just(0x8100_u16), Just(0x88a8_u16)]);
        let flags = (any::<bool>(), any::<bool>(), 0..3_u32, (0..100_u32, 0..1000_u32));
        (any::<[u8; 6]>(), tag, flags).prop_map(
            |(mac, (vlan, qos, protocol), (spoof, trust, link, rates))| VfSettings {
                mac: address(&mac),
                vlan,
                qos,
                protocol,
                spoof_check: Some(spoof),
                trust: Some(trust),
                link_state: Some(link),
                rates: Some(rates),
                mtu: None,
            },
        )
    }

    /// As the kernel would answer after these words.
    fn link(index: u32, words: Vec<VfInfo>) -> LinkMessage {
        let mut link = LinkMessage::default();
        let other = LinkVfInfo(vec![VfInfo::Mac(VfInfoMac::new(index + 1, &[2, 0, 0, 0, 0, 9]))]);
        link.attributes.push(LinkAttribute::VfInfoList(vec![other, LinkVfInfo(words)]));
        link
    }

    proptest! {
        #[test]
        fn what_is_said_is_what_is_read(wanted in settings(), index in 0..255_u32) {
            let never = VfSettings { mac: "no address".into(), vlan: 9999, ..VfSettings::default() };
            let words: Vec<VfInfo> =
                words(index, &never, &wanted).unwrap().into_iter().map(|(_, word)| word).collect();
            let message = link(index, words);
            // Through the bytes that the kernel sees.
            let mut asked = NetlinkMessage::new(
                NetlinkHeader::default(),
                NetlinkPayload::from(RouteNetlinkMessage::NewLink(message)),
            );
            asked.finalize();
            let mut bytes = vec![0; asked.buffer_len()];
            asked.serialize(&mut bytes);
            let heard = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap();
            let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(heard)) = heard.payload else {
                return Err(TestCaseError::fail("another message"));
            };
            prop_assert_eq!(found(&heard, index), Some(wanted.clone()));
            prop_assert!(super::words(index, &wanted, &wanted).unwrap().is_empty());
        }

        #[test]
        fn no_text_is_an_address_but_an_address(text in "\\PC{0,24}") {
            if let Some(octets) = octets(&text) {
                prop_assert_eq!(address(&octets), text.to_lowercase());
            }
        }
    }

    #[test]
    fn a_function_that_the_card_does_not_have_tells_nothing() {
        assert_eq!(found(&link(3, vec![]), 3), None);
        assert_eq!(found(&LinkMessage::default(), 0), None);
        let odd = VfSettings { mac: "01".into(), ..VfSettings::default() };
        assert!(words(0, &VfSettings::default(), &odd).is_err());
    }
}
