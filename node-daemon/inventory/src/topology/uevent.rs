//! What the kernel tells when hardware changes, and what must be read again for it.
//!
//! A message is `ACTION@DEVPATH` and `KEY=value` fields, each ended by a zero byte. Source: the kernel's
//! `lib/kobject_uevent.c`.

use gpudesk_crds::types::PciAddress;

/// What must be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// Everything: messages were lost, or functions came or went.
    Whole,
    /// CPUs, memory, NUMA cells.
    Compute,
    /// What belongs to this PCI function.
    Function(PciAddress),
}

/// Modules whose coming or going changes what the host can do.
const MODULES: [&str; 7] = ["vfio", "nvidia", "kvm", "amdgpu", "gim", "i915", "xe"];

/// What a message of the kernel calls for; `None` when it concerns nothing that gpudesk shows.
pub fn change(message: &[u8]) -> Option<Change> {
    let mut parts = message.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let head = parts.next()?;
    let (action, path) = head.split_once('@')?;
    let subsystem = parts.find_map(|field| field.strip_prefix("SUBSYSTEM=").map(ToOwned::to_owned))?;
    match subsystem.as_str() {
        "pci" => match action {
            "add" | "remove" | "move" => Some(Change::Whole),
            _ => function(path),
        },
        "mdev" | "net" | "nvme" | "block" | "drm" | "vfio-dev" => function(path),
        "cpu" | "memory" | "node" => Some(Change::Compute),
        "module" => {
            let name = path.rsplit('/').next()?;
            MODULES.iter().any(|module| name.starts_with(module)).then_some(Change::Whole)
        }
        _ => None,
    }
}

/// The function that a path leads to or through: the last one in it.
fn function(path: &str) -> Option<Change> {
    path.rsplit('/').find_map(|part| part.parse().ok()).map(Change::Function)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(action: &str, path: &str, subsystem: &str) -> Vec<u8> {
        format!("{action}@{path}\0ACTION={action}\0DEVPATH={path}\0SUBSYSTEM={subsystem}\0SEQNUM=7\0")
            .into_bytes()
    }

    fn of(action: &str, path: &str, subsystem: &str) -> Option<Change> {
        change(&message(action, path, subsystem))
    }

    #[test]
    fn a_driver_that_is_bound_concerns_one_function() {
        let path = "/devices/pci0000:40/0000:40:01.1/0000:41:00.0";
        let function = Some(Change::Function("0000:41:00.0".parse().unwrap()));
        assert_eq!(of("bind", path, "pci"), function);
        assert_eq!(of("add", &format!("{path}/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"), "mdev"), function);
        assert_eq!(of("change", &format!("{path}/net/ens1"), "net"), function);
    }

    #[test]
    fn functions_that_come_or_go_concern_everything() {
        assert_eq!(of("add", "/devices/pci0000:40/0000:40:01.1/0000:41:00.4", "pci"), Some(Change::Whole));
        assert_eq!(of("remove", "/devices/pci0000:40/0000:41:00.0", "pci"), Some(Change::Whole));
        assert_eq!(of("add", "/module/nvidia_vgpu_vfio", "module"), Some(Change::Whole));
    }

    #[test]
    fn cpus_and_memory_are_read_alone() {
        assert_eq!(of("offline", "/devices/system/cpu/cpu3", "cpu"), Some(Change::Compute));
        assert_eq!(of("online", "/devices/system/memory/memory44", "memory"), Some(Change::Compute));
    }

    #[test]
    fn what_gpudesk_does_not_show_is_passed_over() {
        assert_eq!(of("change", "/devices/virtual/block/loop0", "block"), None);
        assert_eq!(of("add", "/module/ext4", "module"), None);
        assert_eq!(of("add", "/kernel/slab/x", "slab"), None);
        assert_eq!(change(b"libudev\0"), None);
    }

    proptest! {
        #[test]
        fn no_message_panics(message in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = change(&message);
        }
    }
}
