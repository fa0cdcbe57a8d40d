//! Captures: what was read of a host, packed, so that it can be looked at elsewhere.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::Context;
use gpudesk_crds::GpuNode;
use gpudesk_inventory::driver::DriverReadings;

use crate::host::survey::{DRIVER_ANSWERS, Survey};

/// Writes what the survey read; gives how many files, links and folders it were.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write(file: &Path, survey: &Survey, blank_serials: bool) -> anyhow::Result<usize> {
    let mut recording = survey.tree().recorded().unwrap_or_default();
    if let Some(readings) = survey.readings() {
        let mut readings = readings.clone();
        if blank_serials {
            blank_readings(&mut readings);
        }
        recording.add_answer(DRIVER_ANSWERS, serde_yaml::to_string(&readings)?);
    }
    if blank_serials {
        // The kernel's command line names file systems by UUID and may name the host.
        recording.blank(|path, text| {
            if path == "proc/cmdline" || path.ends_with("/mounts") || path.ends_with("/mountinfo") {
                Some(blank_uuids(text))
            } else if path.starts_with("run/udev/data/") {
                Some(without_serials(text))
            } else if path.starts_with("proc/driver/nvidia/gpus/") {
                let lines = text.lines().filter(|line| !line.starts_with("GPU UUID"));
                Some(lines.flat_map(|line| [line, "\n"]).collect())
            } else {
                let is_serial = path.ends_with("/serial_number") || path.ends_with("/serial");
                is_serial.then(|| "blanked\n".into())
            }
        });
    }
    let count = recording.len();
    let beside = file.with_extension("partial");
    let written = (|| {
        let mut to = BufWriter::new(File::create(&beside)?);
        recording.write(&mut to)?;
        to.flush()?;
        std::fs::rename(&beside, file)?;
        anyhow::Ok(())
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written.with_context(|| format!("the capture {}", file.display()))?;
    Ok(count)
}

/// Puts blanks over what identifies single cards, the same for the same card, so that links between
/// cards can still be followed.
pub(super) fn blank(node: &mut GpuNode) {
    let Some(status) = &mut node.status else { return };
    let uuids: Vec<String> = status.devices.iter().filter_map(|card| card.uuid.clone()).collect();
    let blank_uuid = |uuid: &String| match uuids.iter().position(|known| known == uuid) {
        Some(number) => format!("GPU-blanked-{number}"),
        None => "GPU-blanked".into(),
    };
    for card in &mut status.devices {
        card.uuid = card.uuid.as_ref().map(blank_uuid);
        card.serial = card.serial.as_ref().map(|_| "blanked".into());
        card.nvlink_peers = card.nvlink_peers.iter().map(blank_uuid).collect();
    }
    for drive in &mut status.host_devices {
        drive.serial = drive.serial.as_ref().map(|_| "blanked".into());
    }
}

fn blank_readings(readings: &mut DriverReadings) {
    for (number, card) in readings.cards.iter_mut().enumerate() {
        card.uuid = card.uuid.as_ref().map(|_| format!("GPU-blanked-{number}"));
        card.serial = card.serial.as_ref().map(|_| "blanked".into());
    }
}

/// What udev found on a device, and nothing that identifies it.
fn without_serials(text: &str) -> String {
    text.lines().filter(|line| line.starts_with("E:ID_FS_TYPE=")).flat_map(|line| [line, "\n"]).collect()
}

/// Text with a blank for each UUID in it.
fn blank_uuids(text: &str) -> String {
    let words = text.split_inclusive([' ', '=', '\n', '/']);
    let blanked = words.map(|word| {
        let end =
            word.len() - word.chars().next_back().filter(|c| " =\n/".contains(*c)).map_or(0, char::len_utf8);
        if word[..end].parse::<uuid::Uuid>().is_ok() {
            format!("blanked{}", &word[end..])
        } else {
            word.into()
        }
    });
    blanked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_udev_found_only_the_kind_is_left() {
        let text =
            "S:disk/by-id/nvme-X_S1234\nE:ID_SERIAL_SHORT=S1234\nE:ID_FS_TYPE=ext4\nE:ID_FS_LABEL=home\n";
        assert_eq!(without_serials(text), "E:ID_FS_TYPE=ext4\n");
    }

    #[test]
    fn no_drive_is_named_in_what_is_blanked() {
        let drive = serde_json::json!({
            "pciAddress": "0000:64:00.0", "kind": "NvmeDrive", "class": "0108", "vendorId": "144d", "deviceId": "a824",
            "product": "p", "serial": "S64YNE0R",
        });
        let mut node = GpuNode::new("n", gpudesk_crds::GpuNodeSpec::default());
        let status = gpudesk_crds::GpuNodeStatus {
            host_devices: vec![serde_json::from_value(drive).unwrap()],
            ..Default::default()
        };
        node.status = Some(status);
        blank(&mut node);
        assert_eq!(node.status.unwrap().host_devices[0].serial.as_deref(), Some("blanked"));
    }

    #[test]
    fn file_systems_are_not_named_in_a_blanked_command_line() {
        let line = "BOOT_IMAGE=/vmlinuz root=UUID=83b8f4f2-509f-382f-3c1e-e6bfe0fa1001 ro intel_iommu=on\n";
        assert_eq!(blank_uuids(line), "BOOT_IMAGE=/vmlinuz root=UUID=blanked ro intel_iommu=on\n");
    }
}
