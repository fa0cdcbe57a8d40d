//! Virtual functions of network cards: what their card says of them. Pure.

use std::fmt;

use gpudesk_crds::types::PciAddress;
use serde::{Deserialize, Serialize};

/// The tag of a VLAN as IEEE 802.1Q has it.
pub const DOT1Q: u16 = 0x8100;

/// What a network card is told of one of its virtual functions, and what the host's interface on it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VfSettings {
    /// Its address: `02:00:00:00:00:01`. Zeros where none is set.
    pub mac: String,
    /// Its VLAN; 0 where it has none.
    pub vlan: u32,
    /// Priority of that.
    pub qos: u32,
    /// Protocol of that.
    pub protocol: u16,
    /// Whether what it sends must carry its address.
    pub spoof_check: Option<bool>,
    /// Whether its driver may change what the card was told.
    pub trust: Option<bool>,
    /// 0 as the card's own link is, 1 up, 2 down.
    pub link_state: Option<u32>,
    /// Least and most rate in Mbit/s; 0 for no limit.
    pub rates: Option<(u32, u32)>,
    /// MTU of the host's interface on it, while there is one.
    pub mtu: Option<u32>,
}

impl VfSettings {
    /// What the card alone keeps of it.
    #[must_use]
    pub fn of_card(&self) -> Self {
        Self { mtu: None, ..self.clone() }
    }
}

impl fmt::Display for VfSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {}", self.mac)?;
        if self.vlan != 0 {
            write!(f, ", VLAN {}", self.vlan)?;
        }
        for (name, on) in [("spoof check", self.spoof_check), ("trust", self.trust)] {
            if let Some(on) = on {
                write!(f, ", {name} {}", if on { "on" } else { "off" })?;
            }
        }
        match self.mtu {
            Some(mtu) => write!(f, ", MTU {mtu}"),
            None => Ok(()),
        }
    }
}

/// A virtual function of a network card as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkNow {
    /// The card.
    pub parent: PciAddress,
    /// Whether the card switches by representors, which take the place of these settings.
    pub is_switchdev: bool,
    /// Why the host or a container needs it now.
    pub in_use: Option<String>,
    /// As the card tells it.
    pub settings: VfSettings,
}

/// What a desktop is given a virtual function of a network card with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkWish {
    /// The card.
    pub parent: PciAddress,
    /// Its address.
    pub mac: String,
    /// Its VLAN; as the owner of the card has it, without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u32>,
}

impl NetworkWish {
    /// What the card is told, where it told this before.
    pub fn settings(&self, now: &VfSettings) -> VfSettings {
        let tagged = self.vlan.map_or((now.vlan, now.qos, now.protocol), |vlan| (vlan, 0, DOT1Q));
        VfSettings {
            mac: self.mac.clone(),
            vlan: tagged.0,
            qos: tagged.1,
            protocol: tagged.2,
            spoof_check: Some(true),
            // A card that knows no trust gives none.
            trust: now.trust.map(|_| false),
            ..now.clone()
        }
    }
}
