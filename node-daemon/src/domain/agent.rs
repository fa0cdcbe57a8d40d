//! The guest agent's channel: `org.qemu.guest_agent.0` on virtio-serial.

use super::Transport;
use super::xml::Xml;

/// The name by which the agent in the guest finds its channel.
pub const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";

pub(super) fn write(xml: &mut Xml, transport: Transport) {
    let controller: [(&'static str, &dyn std::fmt::Display); 2] = [("type", &"virtio-serial"), ("index", &0)];
    match transport {
        Transport::Pci => xml.empty("controller", &controller),
        Transport::Mmio => xml.nest("controller", &controller, |xml| transport.write_address(xml)),
    }
    xml.nest("channel", &[("type", &"unix")], |xml| {
        xml.empty("target", &[("type", &"virtio"), ("name", &AGENT_CHANNEL)]);
    });
}
