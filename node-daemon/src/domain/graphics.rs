//! The screen as QEMU serves it (`<graphics>`) and as the guest sees it (`<video>`).
//!
//! A server listens nowhere: no port and no socket that others on the host, or guests, could reach.
//! Clients come in as descriptors that libvirt hands to QEMU
//! ([`Hypervisor::open_screen`](crate::host::hypervisor::Hypervisor::open_screen)).

use super::xml::Xml;

/// A screen: a server on the host and an adapter in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Screen {
    /// The server.
    pub server: Graphics,
    /// The emulated adapter.
    pub video: Video,
}

/// A graphics server of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Graphics {
    /// RFB.
    Vnc,
    /// SPICE, with its agent channel.
    Spice,
}

/// The display adapter that the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Video {
    /// virtio-vga: needs a driver in the guest.
    Virtio,
    /// Plain VGA: works everywhere.
    Vga,
    /// The framebuffer without VGA: for UEFI guests.
    Bochs,
    /// None: the screen is a vGPU's, see [`MdevDisplay`](super::MdevDisplay).
    None,
}

impl Screen {
    pub(super) fn write(&self, xml: &mut Xml) {
        let nowhere = |xml: &mut Xml| xml.empty("listen", &[("type", &"none")]);
        match self.server {
            // QEMU hangs up on all viewers but one where a viewer asks for that, unless told to share.
            Graphics::Vnc => {
                xml.nest("graphics", &[("type", &"vnc"), ("sharePolicy", &"ignore")], nowhere);
            }
            Graphics::Spice => {
                xml.nest("graphics", &[("type", &"spice"), ("autoport", &"no")], nowhere);
                xml.nest("channel", &[("type", &"spicevmc")], |xml| {
                    xml.empty("target", &[("type", &"virtio"), ("name", &"com.redhat.spice.0")]);
                });
            }
        }
        self.video.write(xml);
    }
}

impl Video {
    pub(super) fn write(self, xml: &mut Xml) {
        let model = match self {
            Self::Virtio => "virtio",
            Self::Vga => "vga",
            Self::Bochs => "bochs",
            Self::None => "none",
        };
        xml.nest("video", &[], |xml| xml.empty("model", &[("type", &model)]));
    }
}
