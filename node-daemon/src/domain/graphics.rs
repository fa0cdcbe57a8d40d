//! The screen as the host serves it (`<graphics>`) and as the guest sees it (`<video>`).

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::xml::{Attributes, Xml, yes_no};
use super::{DomainError, path_text};

/// A screen: a server on the host and an adapter in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Screen {
    /// The server.
    pub server: Graphics,
    /// The emulated adapter.
    pub video: Video,
}

/// A graphics server of QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Graphics {
    /// RFB.
    Vnc {
        /// Where it listens.
        listen: Listen,
        /// Asked of every client. VNC uses no more than eight bytes of it.
        password: Option<Password>,
    },
    /// SPICE, with its agent channel.
    Spice {
        /// Where it listens.
        listen: Listen,
        /// Asked of every client.
        password: Option<Password>,
    },
}

/// Where a graphics server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP port of this address.
    Tcp {
        /// The address.
        address: IpAddr,
        /// The port; `None`: libvirt picks one at each start.
        port: Option<u16>,
    },
    /// A Unix socket, an absolute path.
    Socket(PathBuf),
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

/// A password that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Wraps a password.
    pub fn new(password: impl Into<String>) -> Self {
        Self(password.into())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

impl Screen {
    pub(super) fn check(&self) -> Result<(), DomainError> {
        let (Graphics::Vnc { listen, password } | Graphics::Spice { listen, password }) = &self.server;
        if let Listen::Socket(path) = listen {
            path_text(path)?;
        }
        let limit = match self.server {
            Graphics::Vnc { .. } => 8,
            // SPICE_MAX_PASSWORD_LENGTH of the protocol.
            Graphics::Spice { .. } => 60,
        };
        match password {
            Some(Password(password)) if password.is_empty() || password.len() > limit => {
                Err(DomainError::PasswordLength { limit })
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn write(&self, xml: &mut Xml) {
        match &self.server {
            Graphics::Vnc { listen, password } => listen.write(xml, "vnc", password.as_ref()),
            Graphics::Spice { listen, password } => {
                listen.write(xml, "spice", password.as_ref());
                xml.nest("channel", &[("type", &"spicevmc")], |xml| {
                    xml.empty("target", &[("type", &"virtio"), ("name", &"com.redhat.spice.0")]);
                });
            }
        }
        self.video.write(xml);
    }
}

impl Listen {
    fn write(&self, xml: &mut Xml, kind: &'static str, password: Option<&Password>) {
        let mut attributes: Vec<(&'static str, &dyn fmt::Display)> = vec![("type", &kind)];
        let (port, auto);
        if let Self::Tcp { port: wanted, .. } = self {
            port = wanted.map_or(-1, i32::from);
            auto = yes_no(wanted.is_none());
            attributes
                .extend::<[(&'static str, &dyn fmt::Display); 2]>([("port", &port), ("autoport", &auto)]);
        }
        if let Some(Password(password)) = password {
            attributes.push(("passwd", password));
        }
        let attributes: &Attributes<'_> = &attributes;
        xml.nest("graphics", attributes, |xml| match self {
            Self::Tcp { address, .. } => {
                xml.empty("listen", &[("type", &"address"), ("address", address)]);
            }
            Self::Socket(path) => {
                xml.empty("listen", &[("type", &"socket"), ("socket", &path.display())]);
            }
        });
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
