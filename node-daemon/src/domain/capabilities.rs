//! What libvirt's `capabilities` and `domcapabilities` say.

use super::xml::{Item, NotXml, read};

/// What libvirt's `domcapabilities` say, as far as the daemon asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DomainCapabilities {
    /// The kind of domain they are about: `kvm`, `qemu` or `test`.
    pub kind: String,
    /// The program that runs them.
    pub emulator: Option<String>,
    /// Names of the CPU models that it knows, whether or not this host's CPU can be one.
    pub cpu_models: Vec<String>,
}

impl DomainCapabilities {
    /// Reads libvirt's description.
    ///
    /// # Errors
    /// [`NotXml`]; what is well formed and strange only leaves fields empty.
    pub fn parse(xml: &str) -> Result<Self, NotXml> {
        let mut this = Self::default();
        read(xml, |item| {
            if let Item::Text([root, cpu, mode, model], text) = item
                && root.is("", "domainCapabilities")
                && (cpu.is("", "cpu") && mode.is("", "mode") && model.is("", "model"))
                && mode.attribute("name") == Some("custom")
            {
                this.cpu_models.push(text.to_owned());
            }
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

/// What libvirt's `capabilities` say of the host, as far as the daemon asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostCapabilities {
    /// Number of the user that QEMU runs as; `None` where libvirt has no such choice.
    pub qemu_user: Option<u32>,
}

impl HostCapabilities {
    /// Reads libvirt's description.
    ///
    /// # Errors
    /// [`NotXml`]; what is well formed and strange only leaves fields empty.
    pub fn parse(xml: &str) -> Result<Self, NotXml> {
        let mut this = Self::default();
        let (mut model, mut label) = (String::new(), String::new());
        read(xml, |item| match item {
            Item::Open([root, host, secmodel])
                if root.is("", "capabilities") && host.is("", "host") && secmodel.is("", "secmodel") =>
            {
                model.clear();
                label.clear();
            }
            Item::Text([root, host, secmodel, part], text)
                if root.is("", "capabilities") && host.is("", "host") && secmodel.is("", "secmodel") =>
            {
                match part.name.as_str() {
                    "model" => model.push_str(text),
                    // One for each kind of domain, all alike; the model comes first.
                    "baselabel" if model == "dac" && this.qemu_user.is_none() => {
                        label.push_str(text);
                        let user = label.split_once(':').and_then(|(user, _)| user.strip_prefix('+'));
                        this.qemu_user = user.and_then(|user| user.parse().ok());
                    }
                    _ => {}
                }
            }
            _ => {}
        })?;
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_qemu_is_in_the_base_label_of_the_model_dac() {
        let of = |host: &str| {
            let xml = format!(
                "<capabilities><host>{host}</host><secmodel><model>dac</model></secmodel></capabilities>"
            );
            HostCapabilities::parse(&xml).unwrap().qemu_user
        };
        let dac = "<secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+994</baselabel>\
            <baselabel type='qemu'>+64055:+994</baselabel></secmodel>";
        let selinux = "<secmodel><model>selinux</model><baselabel type='kvm'>+1:+1</baselabel></secmodel>";
        assert_eq!(of(dac), Some(64055));
        assert_eq!(of(&format!("{selinux}{dac}")), Some(64055));
        assert_eq!(of(selinux), None);
        assert_eq!(of("<secmodel><model>dac</model><baselabel>qemu:kvm</baselabel></secmodel>"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn kind_and_program_are_read() {
        let xml = "<domainCapabilities><path>/usr/bin/qemu-system-x86_64</path><domain>kvm</domain>\
            <os><loader><value>/x.fd</value></loader></os>\
            <cpu><mode name='host-model' supported='yes'><model fallback='forbid'>Skylake</model></mode>\
            <mode name='custom' supported='yes'><model usable='yes' vendor='AMD'>EPYC-Milan</model>\
            <blockers model='x'><feature name='y'/></blockers><model usable='no'>Nehalem</model></mode></cpu>\
            </domainCapabilities>";
        let read = DomainCapabilities::parse(xml).unwrap();
        assert_eq!(
            (read.kind.as_str(), read.emulator.as_deref()),
            ("kvm", Some("/usr/bin/qemu-system-x86_64"))
        );
        assert_eq!(read.cpu_models, ["EPYC-Milan", "Nehalem"]);
        assert_eq!(HostCapabilities::parse(xml).unwrap(), HostCapabilities::default());
        assert_eq!(DomainCapabilities::parse("<other/>").unwrap(), DomainCapabilities::default());
    }
}
