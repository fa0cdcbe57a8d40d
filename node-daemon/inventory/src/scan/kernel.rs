//! The kernel, the firmware's names, modules and services.

use super::services;
use crate::{
    topology::{HostFacts, Iommu, KernelState, cpu},
    tree::Tree,
};

/// Where the kernel lists the IOMMU groups.
const GROUPS: &str = "sys/kernel/iommu_groups";
/// Enough of `/proc/cpuinfo` for one CPU: reading it whole asks every CPU for its clock.
const ONE_CPU: usize = 8 << 10;

pub(super) fn read(tree: &Tree, facts: &mut HostFacts) {
    facts.kernel = tree.line("proc/sys/kernel/osrelease").or_else(|| release(&tree.line("proc/version")?));
    if facts.kernel.is_none() {
        facts.incomplete.push("the kernel's release: proc/sys/kernel/osrelease is missing".into());
    }
    let cpuinfo = tree.head("proc/cpuinfo", ONE_CPU);
    facts.cpu_model = cpuinfo.as_deref().and_then(cpu::model);
    facts.board = ["board_name", "product_name"]
        .iter()
        .find_map(|name| tree.line(&format!("sys/class/dmi/id/{name}")))
        .or_else(|| tree.line("proc/device-tree/model"));
    facts.iommu = iommu(tree, facts.kernel.as_deref());
    if facts.iommu.groups.is_none() {
        facts.incomplete.push("the IOMMU: sys/kernel/iommu_groups is missing".into());
    }
    facts.kernel_state = KernelState {
        vfio_pci: module(tree, "vfio_pci"),
        vfio_device: device(tree, &["dev/vfio/vfio", "dev/iommu"]),
        kvm_device: device(tree, &["dev/kvm"]),
        cpu_virtualization: cpuinfo.as_deref().and_then(cpu::virtualization),
        command_line: tree.text("proc/cmdline").map(|text| text.trim().chars().take(4096).collect()),
        security_modules: tree.line("sys/kernel/security/lsm"),
        selinux_enforcing: tree.line("sys/fs/selinux/enforce").map(|line| line == "1"),
        nvidia_driver: tree
            .line("sys/module/nvidia/version")
            .or_else(|| nvidia_version(&tree.text("proc/driver/nvidia/version")?)),
        nvidia_vgpu_module: module(tree, "nvidia_vgpu_vfio"),
        ..KernelState::default()
    };
    services::read(tree, &mut facts.kernel_state);
}

/// Whether a kernel of this release is older than IOMMU groups, which came with Linux 3.6.
fn has_no_groups(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let major_and_minor = numbers.next().and_then(Result::ok).zip(numbers.next().and_then(Result::ok));
    major_and_minor.is_some_and(|version| version < (3, 6))
}

fn iommu(tree: &Tree, kernel: Option<&str>) -> Iommu {
    // A tree that does not hold the folder may be a part of a host, and says nothing of its IOMMU.
    let groups = if tree.exists(GROUPS) {
        let is_number = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
        Some(tree.names(GROUPS, is_number).len())
    } else {
        (tree.is_absent(GROUPS) || kernel.is_some_and(has_no_groups)).then_some(0)
    };
    // `dmar0`, `ivhd1`, `smmu3.0x…`: the kind is the name without its number.
    let units = tree.names("sys/class/iommu", |_| true);
    let kind = units.first().map(|name| {
        let name = name.split('.').next().unwrap_or(name);
        let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
        if name.starts_with("smmu3") { "smmu3".into() } else { kind.chars().take(64).collect() }
    });
    let switch = |path: &str| tree.line(path).map(|line| matches!(line.as_str(), "Y" | "1"));
    Iommu {
        kind,
        groups,
        no_iommu_mode: switch("sys/module/vfio/parameters/enable_unsafe_noiommu_mode"),
        unsafe_interrupts: switch("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"),
    }
}

/// Whether a module is loaded or built in; `None` where the tree says nothing of modules.
fn module(tree: &Tree, name: &str) -> Option<bool> {
    if tree.exists(&format!("sys/module/{name}")) {
        return Some(true);
    }
    tree.exists("sys/module").then_some(false)
}

/// Whether one of these is there; `None` where the tree does not have the devices of a host: every host
/// has a kernel log, a container of its own has not.
fn device(tree: &Tree, paths: &[&str]) -> Option<bool> {
    if paths.iter().any(|path| tree.exists(path)) {
        return Some(true);
    }
    tree.exists("dev/kmsg").then_some(false)
}

/// `Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org) …`
fn release(version: &str) -> Option<String> {
    version.strip_prefix("Linux version ")?.split_whitespace().next().map(Into::into)
}

/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024`
fn nvidia_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    let is_version = |word: &&str| {
        word.split('.').count() >= 2
            && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    line.split_whitespace().find(is_version).map(|word| word.chars().take(64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_are_found_in_their_sentences() {
        let nvrm = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.10  Release Build\nGCC version: 12\n";
        assert_eq!(nvidia_version(nvrm).as_deref(), Some("570.133.10"));
        assert!(has_no_groups("2.6.32-754.el6.x86_64") && has_no_groups("3.5.0"));
        assert!(!has_no_groups("3.10.0-1160.el7") && !has_no_groups("6.1") && !has_no_groups("odd"));
        assert_eq!(release("Linux version 6.1.0-18-amd64 (x) #1").as_deref(), Some("6.1.0-18-amd64"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = (release(&text), nvidia_version(&text), has_no_groups(&text));
        }
    }
}
