//! Small machines: the input says which of these paths are there and what they hold.
#![no_main]

use gpudesk_inventory::{
    scan::{self, Scanner},
    status::{self, Findings},
    tree::Tree,
};

#[path = "../scratch.rs"]
mod scratch;

/// Where PCI functions are, by which of them the paths below are completed.
const FUNCTIONS: [&str; 4] = ["0000:41:00.0", "0000:41:00.1", "0000:41:00.4", "0000:42:00.0"];
/// Files; `@` stands for a function.
const FILES: [&str; 80] = [
    "@/class",
    "@/vendor",
    "@/device",
    "@/subsystem_vendor",
    "@/subsystem_device",
    "@/numa_node",
    "@/resource",
    "@/reset_method",
    "@/reset",
    "@/uevent",
    "@/boot_vga",
    "@/sriov_totalvfs",
    "@/sriov_numvfs",
    "@/sriov_vf_device",
    "@/current_link_width",
    "@/max_link_width",
    "@/current_link_speed",
    "@/max_link_speed",
    "@/mdev_supported_types/nvidia-745/name",
    "@/mdev_supported_types/nvidia-745/description",
    "@/mdev_supported_types/nvidia-745/available_instances",
    "@/mdev_supported_types/mtty-1/available_instances",
    "@/nvidia/current_vgpu_type",
    "@/nvidia/creatable_vgpu_types",
    "@/nvidia/gpu_instance_id",
    "@/nvidia/placement_id",
    "@/mem_info_vram_total",
    "@/drm/card1/lmem_total_bytes",
    "@/drm/card1/iov/vf1/gt/lmem_quota",
    "@/tile0/physical_vram_size_bytes",
    "@/sriov_admin/vf1/profile/vram_quota",
    "@/net/eth0/operstate",
    "@/nvme/nvme0/nvme0n1/size",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/offline",
    "sys/devices/system/cpu/isolated",
    "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
    "sys/devices/system/cpu/cpu1/topology/thread_siblings",
    "sys/devices/system/cpu/cpu0/topology/physical_package_id",
    "sys/devices/system/cpu/cpu0/topology/core_siblings_list",
    "sys/devices/system/cpu/cpu0/cache/index0/level",
    "sys/devices/system/cpu/cpu0/cache/index0/shared_cpu_list",
    "sys/devices/system/cpu/cpu0/cache/index0/size",
    "sys/devices/system/node/node0/cpulist",
    "sys/devices/system/node/node0/cpumap",
    "sys/devices/system/node/node0/meminfo",
    "sys/devices/system/node/node0/distance",
    "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages",
    "sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages",
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/cmdline",
    "proc/version",
    "proc/sys/kernel/osrelease",
    "proc/1/mounts",
    "proc/driver/nvidia/version",
    "sys/class/dmi/id/board_name",
    "sys/class/iommu/dmar0/name",
    "sys/kernel/security/lsm",
    "sys/kernel/mm/x",
    "sys/module/vfio/parameters/enable_unsafe_noiommu_mode",
    "usr/share/misc/pci.ids",
    "var/lib/kubelet/config.yaml",
    "sys/kernel/iommu_groups/3/devices/0000:41:00.1",
    "sys/devices/system/cpu/present",
    "sys/devices/system/cpu/cpu1/topology/physical_package_id",
    "sys/devices/system/cpu/cpu1/cache/index0/level",
    "sys/devices/system/cpu/cpu1/cache/index0/shared_cpu_map",
    "sys/devices/system/cpu/cpu1/cache/index1/level",
    "sys/devices/system/cpu/cpu1/cache/index1/type",
    "sys/devices/system/node/online",
    "sys/devices/system/node/has_generic_initiator",
    "sys/devices/system/node/node1/cpulist",
    "sys/devices/system/node/node1/meminfo",
    "sys/devices/system/node/node1/distance",
    "sys/devices/system/node/node1/hugepages/hugepages-16777216kB/nr_hugepages",
    "sys/fs/cgroup/cpuset.cpus.isolated",
    "etc/kubernetes/kubelet.conf.d/10.conf",
    "sys/bus/dax/devices/dax0.0/target_node",
    "gpudesk/absent",
];
/// Symbolic links.
const LINKS: [&str; 12] = [
    "@",
    "@/driver",
    "@/iommu_group",
    "@/physfn",
    "@/virtfn0",
    "@/virtfn1",
    "@/virtfn2",
    "@/11111111-2222-3333-4444-555555555555/mdev_type",
    "sys/bus/mdev/devices/11111111-2222-3333-4444-555555555555",
    "sys/block/nvme0n1",
    "sys/kernel/iommu_groups/3/devices/0000:42:00.0",
    "sys/class/net/eth0",
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut archive = tar::Builder::new(vec![]);
    for entry in bytes.split(|byte| *byte == 0xff).take(256) {
        let [which, function, content @ ..] = entry else { continue };
        let which = usize::from(*which) % (FILES.len() + LINKS.len());
        let folder = format!("sys/bus/pci/devices/{}", FUNCTIONS[usize::from(*function) % FUNCTIONS.len()]);
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        let written = if let Some(file) = FILES.get(which) {
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, file.replace('@', &folder), content)
        } else {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            let target = String::from_utf8_lossy(content).replace('\0', "");
            archive.append_link(&mut header, LINKS[which - FILES.len()].replace('@', &folder), target)
        };
        if written.is_err() {
            return;
        }
    }
    let Ok(bytes) = archive.into_inner() else { return };
    let path = scratch::file(&bytes);
    let Ok(tree) = Tree::open(&path) else { return };
    let mut scanner = Scanner::new(tree.recording());
    let mut facts = scanner.read();
    let first = facts.clone();
    for address in FUNCTIONS {
        scanner.refresh(&mut facts, address.parse().expect("an address"));
    }
    let mut again = scanner.read();
    // Names of vGPU types are remembered; else nothing may change by reading twice.
    assert_eq!(first.cards.len(), again.cards.len());
    scan::judge_modes(&mut again);
    let status = status::status(&Findings::of(&again));
    for card in &status.devices {
        assert!(card.placements.len() <= 256 && card.instances.len() <= 256 && card.bars.len() <= 6);
        assert!(card.product.chars().count() <= 128 && card.reset_methods.len() <= 8);
        for support in &card.supports {
            assert!(support.reason.as_ref().is_none_or(|reason| reason.chars().count() <= 512));
        }
        for placement in &card.placements {
            assert!((0..=4096).contains(&placement.max_count) && placement.framebuffer_mib >= 0);
            assert!((1..=64).contains(&placement.type_name.chars().count()));
        }
        for instance in &card.instances {
            assert!((1..=64).contains(&instance.type_name.chars().count()));
        }
    }
    for cell in &status.numa_cells {
        assert!(cell.cores.len() <= 4096 && cell.caches.len() <= 256 && cell.distances.len() <= 64);
    }
    assert!(status.missing.len() <= 64);
    // What the schema of the API would refuse.
    assert_eq!(status::faults(&status), [""; 0]);
    let mended = status.missing.iter().find(|sentence| sentence.starts_with("status."));
    assert_eq!(mended, None, "and nothing had to be left out for that");
});
