//! The tree of a large host, with all the files that Linux 6.12 shows beside those that are needed.

use std::{fmt::Write, fs, os::unix::fs::symlink, path::Path};

const CPUS: usize = 256;
const CORES: usize = CPUS / 2;
const CARDS: usize = 8;
const FUNCTIONS: usize = 32;

/// Files that every CPU has and discovery does not need.
const CPU_FILES: [&str; 38] = [
    "acpi_cppc/feedback_ctrs",
    "acpi_cppc/highest_perf",
    "acpi_cppc/lowest_freq",
    "acpi_cppc/lowest_nonlinear_perf",
    "acpi_cppc/lowest_perf",
    "acpi_cppc/nominal_freq",
    "acpi_cppc/nominal_perf",
    "acpi_cppc/reference_perf",
    "acpi_cppc/wraparound_time",
    "cpufreq/affected_cpus",
    "cpufreq/cpuinfo_max_freq",
    "cpufreq/cpuinfo_min_freq",
    "cpufreq/cpuinfo_transition_latency",
    "cpufreq/related_cpus",
    "cpufreq/scaling_available_governors",
    "cpufreq/scaling_cur_freq",
    "cpufreq/scaling_driver",
    "cpufreq/scaling_governor",
    "cpufreq/scaling_max_freq",
    "cpufreq/scaling_min_freq",
    "cpufreq/scaling_setspeed",
    "crash_notes",
    "crash_notes_size",
    "hotplug/state",
    "hotplug/target",
    "hotplug/fail",
    "microcode/version",
    "microcode/processor_flags",
    "power/async",
    "power/autosuspend_delay_ms",
    "power/control",
    "power/pm_qos_resume_latency_us",
    "power/runtime_active_kids",
    "power/runtime_active_time",
    "power/runtime_enabled",
    "power/runtime_status",
    "thermal_throttle/core_throttle_count",
    "uevent",
];
/// Files of each of three states in which a CPU idles.
const IDLE_FILES: [&str; 11] = [
    "above",
    "below",
    "default_status",
    "desc",
    "disable",
    "latency",
    "name",
    "power",
    "rejected",
    "residency",
    "usage",
];
/// Files of each cache.
const CACHE_FILES: [&str; 8] = [
    "coherency_line_size",
    "id",
    "number_of_sets",
    "physical_line_partition",
    "shared_cpu_map",
    "type",
    "uevent",
    "ways_of_associativity",
];
/// Files that every PCI function has and discovery does not need.
const PCI_FILES: [&str; 36] = [
    "aer_dev_correctable",
    "aer_dev_fatal",
    "aer_dev_nonfatal",
    "ari_enabled",
    "broken_parity_status",
    "config",
    "consistent_dma_mask_bits",
    "d3cold_allowed",
    "dma_mask_bits",
    "driver_override",
    "enable",
    "irq",
    "local_cpulist",
    "local_cpus",
    "modalias",
    "msi_bus",
    "power/async",
    "power/autosuspend_delay_ms",
    "power/control",
    "power/runtime_active_kids",
    "power/runtime_active_time",
    "power/runtime_enabled",
    "power/runtime_status",
    "power/runtime_suspended_time",
    "power/runtime_usage",
    "power/wakeup",
    "power_state",
    "remove",
    "rescan",
    "reset",
    "resource0",
    "resource1",
    "resource3",
    "revision",
    "uevent",
    "link/l1_aspm",
];

struct Host<'a> {
    root: &'a Path,
    files: usize,
}

/// Writes the tree, and says how many files and links it has.
pub(crate) fn compose(root: &Path) -> usize {
    let mut host = Host { root, files: 0 };
    host.kernel();
    host.cpus();
    host.memory();
    for card in 0..CARDS {
        host.card(card);
    }
    host.others();
    host.files
}

impl Host<'_> {
    fn write(&mut self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self.files += 1;
    }

    fn link(&mut self, path: &str, target: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self.files += 1;
    }

    fn kernel(&mut self) {
        self.write("proc/sys/kernel/osrelease", "6.12.0-amd64\n");
        self.write("proc/cmdline", "root=/dev/sda1 ro iommu=pt\n");
        self.write("proc/mounts", "/dev/sda1 / ext4 rw 0 0\n");
        let mut cpuinfo = String::new();
        for cpu in 0..CPUS {
            let flags =
                "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov svm avx2 avx512f ".repeat(12);
            writeln!(cpuinfo, "processor\t: {cpu}\nmodel name\t: AMD EPYC 9575F\nflags\t\t: {flags}\n")
                .unwrap();
        }
        self.write("proc/cpuinfo", &cpuinfo);
        self.write("sys/class/dmi/id/board_name", "G893-ZX1\n");
        for module in ["vfio", "vfio_pci", "vfio_iommu_type1", "kvm", "kvm_amd", "nvidia", "nvidia_vgpu_vfio"]
        {
            self.write(&format!("sys/module/{module}/refcnt"), "1\n");
        }
        self.write("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n");
        self.write("sys/module/nvidia/version", "580.65.05\n");
        self.write("sys/class/iommu/ivhd0/amd-iommu/cap", "0\n");
        self.write("dev/kvm", "");
        self.write("dev/vfio/vfio", "");
        let mut ids = String::new();
        for vendor in 0..2400 {
            writeln!(ids, "{:04x}  Vendor number {vendor}", 0x1000 + vendor * 7).unwrap();
            for device in 0..14 {
                writeln!(ids, "\t{device:04x}  Some device [Of some family {device}]").unwrap();
            }
        }
        ids.push_str("10de  NVIDIA Corporation\n\t2bb5  GB202GL [RTX PRO 6000 Blackwell Server Edition]\n");
        self.write("usr/share/misc/pci.ids", &ids);
    }

    fn cpus(&mut self) {
        let cpus = "sys/devices/system/cpu";
        self.write(&format!("{cpus}/online"), "0-255\n");
        self.write(&format!("{cpus}/offline"), "\n");
        self.write(&format!("{cpus}/isolated"), "\n");
        for cpu in 0..CPUS {
            let folder = format!("{cpus}/cpu{cpu}");
            let core = cpu % CORES;
            let socket = core / (CORES / 2);
            for file in CPU_FILES {
                self.write(&format!("{folder}/{file}"), "0\n");
            }
            for state in 0..3 {
                for file in IDLE_FILES {
                    self.write(&format!("{folder}/cpuidle/state{state}/{file}"), "0\n");
                }
            }
            let list = format!("{core},{}\n", core + CORES);
            let first = socket * CORES / 2;
            let package = format!("{first}-{},{}-{}\n", first + 63, first + CORES, first + CORES + 63);
            for (file, text) in [
                ("thread_siblings_list", list.as_str()),
                ("core_cpus_list", &list),
                ("physical_package_id", if socket == 0 { "0\n" } else { "1\n" }),
                ("package_cpus_list", &package),
                ("core_siblings_list", &package),
                ("core_id", "0\n"),
                ("die_id", "0\n"),
                ("cluster_id", "65535\n"),
                ("thread_siblings", "1\n"),
                ("core_cpus", "1\n"),
                ("package_cpus", "1\n"),
                ("core_siblings", "1\n"),
                ("die_cpus", "1\n"),
                ("die_cpus_list", "0\n"),
            ] {
                self.write(&format!("{folder}/topology/{file}"), text);
            }
            let complex = core / 8 * 8;
            let shared = format!("{complex}-{},{}-{}\n", complex + 7, complex + CORES, complex + CORES + 7);
            for (index, level) in [(0, "1\n"), (1, "1\n"), (2, "2\n"), (3, "3\n")] {
                let cache = format!("{folder}/cache/index{index}");
                for file in CACHE_FILES {
                    self.write(&format!("{cache}/{file}"), "0\n");
                }
                self.write(&format!("{cache}/level"), level);
                self.write(&format!("{cache}/size"), if index == 3 { "32768K\n" } else { "32K\n" });
                self.write(&format!("{cache}/shared_cpu_list"), if index == 3 { &shared } else { &list });
            }
        }
    }

    fn memory(&mut self) {
        for node in 0..2 {
            let folder = format!("sys/devices/system/node/node{node}");
            let first = node * CORES / 2;
            self.write(
                &format!("{folder}/cpulist"),
                &format!("{first}-{},{}-{}\n", first + 63, first + CORES, first + CORES + 63),
            );
            let mut meminfo = format!("Node {node} MemTotal:       792469504 kB\n");
            for key in
                ["MemFree", "MemUsed", "Active", "Inactive", "Dirty", "AnonPages", "Slab", "HugePages_Total"]
            {
                writeln!(meminfo, "Node {node} {key}:       1024 kB").unwrap();
            }
            self.write(&format!("{folder}/meminfo"), &meminfo);
            self.write(&format!("{folder}/distance"), if node == 0 { "10 32\n" } else { "32 10\n" });
            self.write(&format!("{folder}/vmstat"), &"nr_free_pages 1\n".repeat(120));
            self.write(&format!("{folder}/numastat"), "numa_hit 1\n");
            for size in ["1048576kB", "2048kB"] {
                for file in ["nr_hugepages", "free_hugepages", "surplus_hugepages"] {
                    self.write(&format!("{folder}/hugepages/hugepages-{size}/{file}"), "64\n");
                }
            }
            // One folder for each block of memory that can be taken out.
            for block in 0..384 {
                self.link(&format!("{folder}/memory{}", node * 384 + block), "../../memory/memory0");
            }
        }
        for block in 0..768 {
            for file in ["online", "phys_device", "phys_index", "removable", "state", "valid_zones"] {
                self.write(&format!("sys/devices/system/memory/memory{block}/{file}"), "1\n");
            }
        }
        self.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "128\n");
    }

    fn function(
        &mut self,
        real: &str,
        address: &str,
        group: usize,
        driver: Option<&str>,
        files: &[(&str, &str)],
    ) {
        for file in PCI_FILES {
            self.write(&format!("{real}/{file}"), "0\n");
        }
        for (file, text) in files {
            self.write(&format!("{real}/{file}"), text);
        }
        let up = "../".repeat(real.matches('/').count());
        self.link(&format!("sys/bus/pci/devices/{address}"), &format!("../../../{}", &real[4..]));
        self.link(&format!("{real}/iommu_group"), &format!("{up}kernel/iommu_groups/{group}"));
        self.link(&format!("{real}/subsystem"), &format!("{up}bus/pci"));
        if let Some(driver) = driver {
            self.link(&format!("{real}/driver"), &format!("{up}bus/pci/drivers/{driver}"));
        }
        self.link(
            &format!("sys/kernel/iommu_groups/{group}/devices/{address}"),
            &format!("../../../../{}", &real[4..]),
        );
        self.write(&format!("sys/kernel/iommu_groups/{group}/type"), "DMA-FQ\n");
    }

    fn card(&mut self, card: usize) {
        let bus = 0x10 + card * 0x18;
        let root = format!("sys/devices/pci0000:{:02x}", bus - 1);
        let port = format!("{root}/0000:{:02x}:01.0", bus - 1);
        let bridge = [("class", "0x060400\n"), ("vendor", "0x1022\n"), ("device", "0x14a5\n")];
        self.function(&port, &format!("0000:{:02x}:01.0", bus - 1), card, Some("pcieport"), &bridge);
        let address = format!("0000:{bus:02x}:00.0");
        let real = format!("{port}/{address}");
        let mut resource = String::new();
        for line in 0..13 {
            let size = [64 << 20, 128 << 30, 0, 32 << 20].get(line).copied().unwrap_or(0_u64);
            let start = if size > 0 { 0x100_0000_0000 + ((line as u64) << 40) } else { 0 };
            let end = if size > 0 { start + size - 1 } else { 0 };
            let flags = if size > 0 { 0x0014_220c } else { 0 };
            writeln!(resource, "0x{start:016x} 0x{end:016x} 0x{flags:016x}").unwrap();
        }
        let cell = if card < 4 { "0\n" } else { "1\n" };
        let files = [
            ("class", "0x030200\n"),
            ("vendor", "0x10de\n"),
            ("device", "0x2bb5\n"),
            ("subsystem_vendor", "0x10de\n"),
            ("subsystem_device", "0x204e\n"),
            ("numa_node", cell),
            ("resource", &resource),
            ("reset_method", "flr bus\n"),
            ("sriov_totalvfs", "32\n"),
            ("sriov_numvfs", "32\n"),
            ("sriov_vf_device", "2bb5\n"),
            ("sriov_offset", "1\n"),
            ("sriov_stride", "1\n"),
            ("sriov_drivers_autoprobe", "1\n"),
            ("current_link_width", "16\n"),
            ("max_link_width", "16\n"),
            ("current_link_speed", "32.0 GT/s PCIe\n"),
            ("max_link_speed", "32.0 GT/s PCIe\n"),
            ("boot_vga", "0\n"),
        ];
        let group = 100 + card * 40;
        self.function(&real, &address, group, Some("nvidia"), &files);
        let mut types = "ID    : vGPU Name\n".to_owned();
        for size in [3, 4, 6, 8, 12, 16, 24, 32, 48, 96] {
            for (number, series) in ["Q", "A", "C", "B"].iter().enumerate() {
                writeln!(
                    types,
                    "{}  : NVIDIA RTX Pro 6000 Blackwell DC-{size}{series}",
                    1100 + size * 4 + number
                )
                .unwrap();
            }
        }
        for index in 0..FUNCTIONS {
            let vf = format!("0000:{bus:02x}:{:02x}.{}", (index + 1) / 8, (index + 1) % 8);
            let path = format!("{port}/{vf}");
            let files = [
                ("class", "0x030200\n"),
                ("vendor", "0x10de\n"),
                ("device", "0x2bb5\n"),
                ("subsystem_vendor", "0x10de\n"),
                ("subsystem_device", "0x204e\n"),
                ("numa_node", cell),
                ("resource", &resource),
                ("reset_method", "flr\n"),
                ("nvidia/creatable_vgpu_types", if index < 12 { "" } else { &types }),
                ("nvidia/current_vgpu_type", if index < 12 { "1132\n" } else { "0\n" }),
                ("nvidia/gpu_instance_id", "4294967295\n"),
                ("nvidia/placement_id", "4294967295\n"),
                ("nvidia/vgpu_params", ""),
                ("nvidia/warm_update", "0\n"),
            ];
            self.function(&path, &vf, group + 1 + index, Some("nvidia"), &files);
            self.link(&format!("{path}/physfn"), &format!("../{address}"));
            self.link(&format!("{real}/virtfn{index}"), &format!("../{vf}"));
        }
    }

    /// What else is on such a board: bridges, a network card with functions, drives.
    fn others(&mut self) {
        for bus in 0..48 {
            let address = format!("0000:f0:{:02x}.{}", bus / 8, bus % 8);
            let class = [("class", "0x060000\n"), ("vendor", "0x1022\n"), ("device", "0x14a4\n")];
            self.function(&format!("sys/devices/pci0000:f0/{address}"), &address, 600 + bus, None, &class);
        }
        for drive in 0..8 {
            let address = format!("0000:{:02x}:00.0", 0xe0 + drive);
            let real = format!("sys/devices/pci0000:e0/{address}");
            let files = [
                ("class", "0x010802\n"),
                ("vendor", "0x144d\n"),
                ("device", "0xa824\n"),
                ("numa_node", "1\n"),
                ("reset_method", "flr\n"),
            ];
            self.function(&real, &address, 700 + drive, Some("nvme"), &files);
            self.write(&format!("{real}/nvme/nvme{drive}/nvme{drive}n1/size"), "1\n");
        }
        for nic in 0..4 {
            let address = format!("0000:d{nic}:00.0");
            let real = format!("sys/devices/pci0000:d{nic}/{address}");
            let files = [
                ("class", "0x020000\n"),
                ("vendor", "0x15b3\n"),
                ("device", "0x1021\n"),
                ("numa_node", "0\n"),
                ("reset_method", "flr bus\n"),
                ("sriov_totalvfs", "16\n"),
                ("sriov_numvfs", "0\n"),
            ];
            self.function(&real, &address, 800 + nic, Some("mlx5_core"), &files);
            self.write(&format!("{real}/net/ens{nic}/operstate"), "down\n");
        }
    }
}
