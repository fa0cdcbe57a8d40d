//! NVMe drives that desktops may have whole, and how they are erased between users.

use std::fmt;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{gpu_node::GpuNodeSpec, gpu_node_status::HostDevice, types::PciAddress};

/// A drive that desktops may have whole, and how it is erased after each of them.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NvmeDriveRule {
    /// A name for this rule, unique in the list.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("write lower-case letters, digits and hyphens, with a letter or digit at both ends, like system-1"))]
    pub name: String,
    /// Which drive is meant.
    pub selector: DriveSelector,
    /// How it is erased once a desktop gave it back, before anybody else gets it.
    pub erase: DriveErase,
}

/// Selects a drive. Exactly one of the two; prefer the serial number, for PCI addresses change when a card is added.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.serial) != has(self.pciAddress)").message("a drive selector names exactly one of serial and pciAddress")
)]
pub struct DriveSelector {
    /// Serial number of the drive, as in `status.hostDevices[].serial`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub serial: Option<String>,
    /// PCI address, for example `0000:64:00.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::pci_address")]
    pub pci_address: Option<PciAddress>,
}

/// How a drive is erased between users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum DriveErase {
    /// Format NVM with a user data erase, of each namespace: what a drive does at once or within minutes. Its completion
    /// is checked.
    Format,
    /// Sanitize with a block erase, or a cryptographic erase where the drive has no other: it reaches what Format may
    /// leave, and may take hours. The drive's own log is checked.
    Sanitize,
    /// Every block is given back (discard). A drive need not forget it, nor read as zeros: for trusted users alone.
    Discard,
    /// Nothing is erased: the next user reads what the last one left. A drive on which a partition or a file system was
    /// left is given to nobody before somebody wipes it.
    None,
}

impl fmt::Display for DriveErase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Format => "Format",
            Self::Sanitize => "Sanitize",
            Self::Discard => "Discard",
            Self::None => "None",
        })
    }
}

impl NvmeDriveRule {
    /// Whether the rule names this drive.
    pub fn selects(&self, drive: &HostDevice) -> bool {
        let DriveSelector { serial, pci_address } = &self.selector;
        let same = serial.as_ref().zip(drive.serial.as_ref());
        same.is_some_and(|(asked, has)| asked.trim().eq_ignore_ascii_case(has.trim()))
            || *pci_address == Some(drive.pci_address)
    }
}

impl GpuNodeSpec {
    /// How a drive is erased between users, as its owner says it. Placement and the node read it here and nowhere else.
    ///
    /// # Errors
    /// Why nobody gets the drive, in one sentence.
    pub fn drive_erase(&self, drive: &HostDevice) -> Result<DriveErase, String> {
        let named: Vec<&NvmeDriveRule> = self.nvme_drives.iter().filter(|rule| rule.selects(drive)).collect();
        let Some(first) = named.first() else {
            return Err("its owner has not said how it is erased between users: add a rule for it to spec.nvmeDrives of \
                        the GpuNode"
                .into());
        };
        match named.iter().find(|rule| rule.erase != first.erase) {
            None => Ok(first.erase),
            Some(other) => Err(format!(
                "nvmeDrives[{}].erase is {} and nvmeDrives[{}].erase is {} for this drive: let one of them stand",
                first.name, first.erase, other.name, other.erase
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn drive() -> HostDevice {
        serde_json::from_value(json!({
            "pciAddress": "0000:64:00.0", "kind": "NvmeDrive", "class": "0108", "vendorId": "144d", "deviceId": "a824",
            "product": "p", "serial": "S64YNE0R ", "usable": true,
        }))
        .unwrap()
    }

    fn spec(rules: &serde_json::Value) -> GpuNodeSpec {
        serde_json::from_value(json!({ "nvmeDrives": rules })).unwrap()
    }

    #[test]
    fn a_drive_without_a_word_of_its_owner_is_nobodys() {
        assert!(spec(&json!([])).drive_erase(&drive()).unwrap_err().contains("spec.nvmeDrives"));
        let other = json!([{"name": "a", "selector": {"pciAddress": "65:00.0"}, "erase": "Format"}]);
        assert!(spec(&other).drive_erase(&drive()).is_err());
        let mut silent = drive();
        silent.serial = None;
        let by_serial =
            spec(&json!([{"name": "a", "selector": {"serial": "s64yne0r"}, "erase": "Sanitize"}]));
        assert_eq!(by_serial.drive_erase(&drive()), Ok(DriveErase::Sanitize));
        assert!(by_serial.drive_erase(&silent).is_err(), "one that does not tell is not meant");
    }

    #[test]
    fn rules_that_contradict_each_other_name_themselves() {
        let two = |erase: &str| {
            spec(&json!([
                {"name": "a", "selector": {"pciAddress": "64:00.0"}, "erase": "Format"},
                {"name": "b", "selector": {"serial": "S64YNE0R"}, "erase": erase},
            ]))
        };
        assert_eq!(two("Format").drive_erase(&drive()), Ok(DriveErase::Format));
        let why = two("None").drive_erase(&drive()).unwrap_err();
        assert!(why.contains("nvmeDrives[a].erase is Format and nvmeDrives[b].erase is None"), "{why}");
    }
}
