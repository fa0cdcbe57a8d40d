//! What libvirt's `domcapabilities` say.

use super::xml::{Item, NotXml, read};

/// What libvirt's `domcapabilities` say, as far as the daemon asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DomainCapabilities {
    /// The kind of domain they are about: `kvm`, `qemu` or `test`.
    pub kind: String,
    /// The program that runs them.
    pub emulator: Option<String>,
}

impl DomainCapabilities {
    /// Reads libvirt's description.
    ///
    /// # Errors
    /// [`NotXml`]; what is well formed and strange only leaves fields empty.
    pub fn parse(xml: &str) -> Result<Self, NotXml> {
        let mut this = Self::default();
        read(xml, |item| {
            if let Item::Text([root, part], text) = item
                && root.is("", "domainCapabilities")
            {
                match part.name.as_str() {
                    "domain" => this.kind.push_str(text),
                    "path" => this.emulator.get_or_insert_default().push_str(text),
                    _ => {}
                }
            }
        })?;
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_and_program_are_read() {
        let xml = "<domainCapabilities><path>/usr/bin/qemu-system-x86_64</path><domain>kvm</domain>\
            <os><loader><value>/x.fd</value></loader></os></domainCapabilities>";
        let read = DomainCapabilities::parse(xml).unwrap();
        assert_eq!(
            (read.kind.as_str(), read.emulator.as_deref()),
            ("kvm", Some("/usr/bin/qemu-system-x86_64"))
        );
        assert_eq!(DomainCapabilities::parse("<other/>").unwrap(), DomainCapabilities::default());
    }
}
