//! What libvirt's description of a domain says once the domain runs.

use gpudesk_crds::types::PciAddress;

use super::agent::AGENT_CHANNEL;
use super::xml::{Element, Item, NotXml, read};

/// What libvirt's description of a domain says; of a domain that does not run, what is known before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LiveDomain {
    /// `kvm`, `qemu` or `test`.
    pub kind: String,
    /// The domain's name.
    pub name: String,
    /// MiB, rounded down; 0 when the description does not say.
    pub memory_mib: u64,
    /// vCPUs; 0 when the description does not say.
    pub vcpus: u32,
    /// The graphics servers, in their order.
    pub graphics: Vec<Endpoint>,
    /// The guest agent's channel exists.
    pub has_agent: bool,
    /// An agent has opened it.
    pub agent_connected: bool,
    /// The terminal on the host of the first serial port.
    pub serial_terminal: Option<String>,
    /// It has an interface of the kind `user`.
    pub has_user_network: bool,
    /// Devices of the host that it has: PCI addresses, and UUIDs of mediated devices.
    pub hostdevs: Vec<String>,
    /// Number of the group that its QEMU was told to run in.
    pub qemu_group: Option<u32>,
}

/// A graphics server, and where it listens: nowhere, but in a domain of an earlier version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// `vnc` or `spice`.
    pub kind: String,
    /// Its TCP port.
    pub port: Option<u16>,
    /// The address of that.
    pub address: Option<String>,
}

impl Endpoint {
    /// Where everybody who reaches it is let in: `address:port`; `None` when it listens nowhere.
    pub fn open_at(&self) -> Option<String> {
        let ip = self.address.as_deref().unwrap_or("127.0.0.1");
        self.port.map(|port| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") })
    }
}

impl LiveDomain {
    /// Reads libvirt's description.
    ///
    /// # Errors
    /// [`NotXml`]; what is well formed and strange only leaves fields empty.
    pub fn parse(xml: &str) -> Result<Self, NotXml> {
        let mut live = Self::default();
        read(xml, |item| match item {
            Item::Open(path) => live.open(path),
            Item::Text(path, text) => live.text(path, text),
        })?;
        Ok(live)
    }

    fn open(&mut self, path: &[Element]) {
        let names: Vec<&str> = path.iter().map(|element| element.name.as_str()).collect();
        let Some(last) = path.last() else { return };
        let attribute = |name| last.attribute(name).map(str::to_owned);
        match names.as_slice() {
            ["domain"] => self.kind = attribute("type").unwrap_or_default(),
            ["domain", "devices", "graphics"] => self.graphics.push(Endpoint {
                kind: attribute("type").unwrap_or_default(),
                port: last.attribute("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0),
                address: attribute("listen"),
            }),
            ["domain", "devices", "graphics", "listen"] => {
                if let Some(endpoint) = self.graphics.last_mut() {
                    endpoint.address = attribute("address").or(endpoint.address.take());
                }
            }
            ["domain", "devices", "channel", "target"] if last.attribute("name") == Some(AGENT_CHANNEL) => {
                self.has_agent = true;
                self.agent_connected = last.attribute("state") == Some("connected");
            }
            ["domain", "devices", "serial", "source"] if self.serial_terminal.is_none() => {
                self.serial_terminal = attribute("path");
            }
            ["domain", "devices", "hostdev" | "interface", "source", "address"] => {
                self.hostdevs.extend(hostdev(last));
            }
            ["domain", "devices", "interface"] => {
                self.has_user_network |= last.attribute("type") == Some("user");
            }
            _ => {}
        }
    }

    fn text(&mut self, path: &[Element], text: &str) {
        if let [domain, seclabel, label] = path
            && domain.is("", "domain")
            && seclabel.is("", "seclabel")
            && seclabel.attribute("model") == Some("dac")
            && label.is("", "label")
        {
            self.qemu_group = text.split_once(":+").and_then(|(_, group)| group.trim().parse().ok());
        }
        let [domain, part] = path else { return };
        if !domain.is("", "domain") || !part.namespace.is_empty() {
            return;
        }
        match part.name.as_str() {
            "name" => self.name.push_str(text),
            "memory" => self.memory_mib = mib(text, part.attribute("unit")),
            "vcpu" => self.vcpus = text.trim().parse().unwrap_or_default(),
            _ => {}
        }
    }
}

/// A device of the host, as the source of one names it.
fn hostdev(address: &Element) -> Option<String> {
    if let Some(uuid) = address.attribute("uuid") {
        return uuid.parse::<uuid::Uuid>().ok().map(|uuid| uuid.to_string());
    }
    let number = |name| {
        let text = address.attribute(name)?;
        text.strip_prefix("0x")
            .map_or_else(|| text.parse().ok(), |digits| u32::from_str_radix(digits, 16).ok())
    };
    let (domain, bus) = (number("domain").unwrap_or(0), number("bus")?);
    let (slot, function) = (number("slot")?, number("function").unwrap_or(0));
    let text = format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}");
    text.parse::<PciAddress>().ok().map(|address| address.to_string())
}

/// libvirt reports KiB; other units are those that this crate writes.
fn mib(text: &str, unit: Option<&str>) -> u64 {
    let number: u64 = text.trim().parse().unwrap_or_default();
    match unit {
        Some("GiB") => number.saturating_mul(1024),
        Some("MiB") => number,
        Some("KiB") | None => number / 1024,
        Some(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_running_domain_says_where_its_screen_is() {
        let xml = "<domain type='kvm' id='3'><name>a.b</name><memory unit='KiB'>2097152</memory>\
            <vcpu placement='static'>4</vcpu><devices>\
            <serial type='pty'><source path='/dev/pts/4'/></serial>\
            <channel type='unix'><target type='virtio' name='other' state='connected'/></channel>\
            <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='disconnected'/></channel>\
            <graphics type='vnc' port='5901' autoport='yes'><listen type='address' address='127.0.0.1'/></graphics>\
            <graphics type='vnc' sharePolicy='ignore'><listen type='none'/></graphics>\
            <hostdev mode='subsystem' type='pci' managed='yes'><source>\
            <address domain='0x0000' bus='0x41' slot='0x00' function='0x0'/></source>\
            <address type='pci' domain='0x0000' bus='0x06' slot='0x00' function='0x0'/></hostdev>\
            <hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>\
            <address uuid='11111111-2222-4333-8444-555555555555'/></source></hostdev>\
            <interface type='hostdev'><source><address type='pci' bus='0x82' slot='0x10' function='0x2'/></source></interface>\
            <interface type='bridge'/><interface type='user'><mac address='02:00:00:00:00:01'/></interface>\
            </devices><seclabel type='dynamic' model='apparmor'><label>x:+1</label></seclabel>\
            <seclabel type='static' model='dac' relabel='yes'><label>+64055:+2113000001</label>\
            <imagelabel>+64055:+2</imagelabel></seclabel></domain>";
        let older = Endpoint { kind: "vnc".into(), port: Some(5901), address: Some("127.0.0.1".into()) };
        let nowhere = Endpoint { kind: "vnc".into(), ..Endpoint::default() };
        assert_eq!((older.open_at().as_deref(), nowhere.open_at()), (Some("127.0.0.1:5901"), None));
        assert_eq!(
            LiveDomain::parse(xml).unwrap(),
            LiveDomain {
                kind: "kvm".into(),
                name: "a.b".into(),
                memory_mib: 2048,
                vcpus: 4,
                graphics: vec![older, nowhere],
                has_agent: true,
                agent_connected: false,
                serial_terminal: Some("/dev/pts/4".into()),
                has_user_network: true,
                hostdevs: vec![
                    "0000:41:00.0".into(),
                    "11111111-2222-4333-8444-555555555555".into(),
                    "0000:82:10.2".into()
                ],
                qemu_group: Some(2_113_000_001),
            }
        );
    }

    #[test]
    fn a_port_that_is_not_yet_chosen_is_no_port() {
        let xml = "<domain type='qemu'><devices><graphics type='vnc' port='-1'/></devices></domain>";
        assert_eq!(LiveDomain::parse(xml).unwrap().graphics[0].port, None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = LiveDomain::parse(&text);
        }
    }
}
