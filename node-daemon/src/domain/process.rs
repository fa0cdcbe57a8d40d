//! As whom QEMU runs.

use super::xml::Xml;

/// User and group of a domain's QEMU.
///
/// libvirt gives the files of the domain to both while it runs, and adds the groups that the user has
/// anyway, of which `kvm` opens `/dev/kvm`. The numbers need no names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QemuProcess {
    /// The user that libvirt runs QEMU as.
    pub user: u32,
    /// The group by which the host's filter tells guests' traffic from its own.
    pub group: u32,
}

impl QemuProcess {
    pub(super) fn write(self, xml: &mut Xml) {
        let Self { user, group } = self;
        xml.nest("seclabel", &[("type", &"static"), ("model", &"dac"), ("relabel", &"yes")], |xml| {
            xml.text("label", &[], format_args!("+{user}:+{group}"));
        });
    }
}
