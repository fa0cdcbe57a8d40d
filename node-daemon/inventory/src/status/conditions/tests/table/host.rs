//! The IOMMU, vfio, memory, access, and the hook.

use gpudesk_crds::conditions::{ConditionType, Reason};

use super::{World, check};
use crate::hook::HookView;

fn without_groups(world: &mut World, line: &str, model: &str, kind: Option<&str>) {
    world.facts.iommu.groups = Some(0);
    world.facts.iommu.kind = kind.map(Into::into);
    world.facts.kernel_state.command_line = Some(line.into());
    world.facts.cpu_model = Some(model.into());
}

#[test]
fn iommu_enabled_is_judged_from_groups_and_explained_by_the_command_line() {
    check(
        ConditionType::IommuEnabled,
        &[
            (
                |world| without_groups(world, "quiet intel_iommu=on,sm_on", "Intel", None),
                false,
                Reason::IommuMissing,
                &["intel_iommu=on,sm_on", "off in the firmware", "VT-d"],
            ),
            (
                |world| without_groups(world, "intel_iommu=off", "Intel", None),
                false,
                Reason::IommuMissing,
                &["take intel_iommu=off off"],
            ),
            (
                |world| without_groups(world, "amd_iommu=off iommu=pt", "AMD", Some("ivhd")),
                false,
                Reason::IommuMissing,
                &["amd_iommu=off"],
            ),
            (
                |world| without_groups(world, "quiet", "Intel", None),
                false,
                Reason::IommuMissing,
                &["VT-d", "intel_iommu=on"],
            ),
            (
                |world| without_groups(world, "quiet", "AMD EPYC", None),
                false,
                Reason::IommuMissing,
                &["AMD-Vi"],
            ),
            (
                |world| without_groups(world, "quiet", "Intel", Some("dmar")),
                false,
                Reason::IommuMissing,
                &["dmar", "intel_iommu=on"],
            ),
            (|world| without_groups(world, "", "", None), false, Reason::IommuMissing, &["SMMU"]),
            (
                |world| {
                    world.facts.iommu.kind = None;
                    world.facts.iommu.no_iommu_mode = Some(true);
                },
                false,
                Reason::IommuMissing,
                &["no-IOMMU", "enable_unsafe_noiommu_mode"],
            ),
            // Groups are there, whatever the command line says.
            (
                |world| world.facts.kernel_state.command_line = Some("intel_iommu=off".into()),
                true,
                Reason::AsExpected,
                &[],
            ),
            (|world| world.card().iommu_group = None, true, Reason::AsExpected, &["0000:41:00.0"]),
            (|world| world.facts.iommu.groups = None, true, Reason::Unknown, &["not known"]),
            (|world| world.facts.cards.clear(), true, Reason::NotNeeded, &["no device"]),
        ],
    );
}

#[test]
fn unsafe_ways_of_vfio_are_reported() {
    check(
        ConditionType::IommuIsolating,
        &[
            (
                |world| world.facts.iommu.no_iommu_mode = Some(true),
                false,
                Reason::IommuUnsafe,
                &["enable_unsafe_noiommu_mode"],
            ),
            (
                |world| world.facts.iommu.unsafe_interrupts = Some(true),
                false,
                Reason::IommuUnsafe,
                &["allow_unsafe_interrupts"],
            ),
            (
                |world| world.facts.kernel_state.command_line = Some("pcie_acs_override=downstream".into()),
                false,
                Reason::IommuUnsafe,
                &["pcie_acs_override=downstream"],
            ),
            (|world| world.facts.iommu.groups = Some(0), true, Reason::NotNeeded, &[]),
            (|world| world.facts.iommu.groups = None, true, Reason::Unknown, &[]),
            (|world| world.facts.iommu.no_iommu_mode = None, true, Reason::AsExpected, &[]),
        ],
    );
    check(
        ConditionType::VfioReady,
        &[
            (
                |world| world.facts.kernel_state.vfio_pci = Some(false),
                false,
                Reason::ModuleMissing,
                &["vfio-pci", "modprobe"],
            ),
            (
                |world| world.facts.kernel_state.vfio_device = Some(false),
                false,
                Reason::ModuleMissing,
                &["/dev/vfio/vfio", "/dev/iommu"],
            ),
            (|world| world.facts.kernel_state.vfio_device = None, true, Reason::AsExpected, &[]),
            (|world| world.facts.kernel_state.vfio_pci = None, true, Reason::Unknown, &[]),
            (|world| world.facts.cards.clear(), true, Reason::NotNeeded, &[]),
        ],
    );
}

#[test]
fn hugepages_are_missed_where_other_cells_have_them() {
    check(
        ConditionType::HugepagesReserved,
        &[
            (
                |world| world.facts.numa_cells[1].hugepages[1].total = 0,
                false,
                Reason::HugepagesMissing,
                &["of 1Gi on cell 1", "node1/hugepages/hugepages-1048576kB/nr_hugepages"],
            ),
            (
                |world| world.facts.numa_cells[0].hugepages[0].total = 512,
                false,
                Reason::HugepagesMissing,
                &["of 2Mi on cell 1", "hugepages-2048kB"],
            ),
            (
                |world| {
                    for cell in &mut world.facts.numa_cells {
                        cell.hugepages[1].total = 0;
                    }
                },
                true,
                Reason::NotNeeded,
                &["ordinary pages"],
            ),
            // A cell of memory alone runs no desktops.
            (
                |world| {
                    world.facts.numa_cells[1].hugepages[1].total = 0;
                    world.facts.numa_cells[1].cores.clear();
                },
                true,
                Reason::AsExpected,
                &[],
            ),
            // What one cell has cannot be read.
            (|world| world.facts.numa_cells[1].hugepages.clear(), true, Reason::AsExpected, &[]),
            (|world| world.facts.numa_cells.clear(), true, Reason::NotNeeded, &[]),
        ],
    );
}

#[test]
fn what_is_denied_is_named_with_who_denies_it() {
    fn denied(world: &mut World) {
        world.facts.denied = (0..5).map(|n| format!("/sys/bus/pci/devices/{n}/config")).collect();
    }
    check(
        ConditionType::AccessGranted,
        &[
            (denied, false, Reason::AccessDenied, &["devices/0/config", "and 2 more", "root"]),
            (
                |world| {
                    denied(world);
                    world.facts.kernel_state.security_modules = Some("lockdown,apparmor".into());
                },
                false,
                Reason::AccessDenied,
                &["AppArmor"],
            ),
            (
                |world| {
                    denied(world);
                    world.facts.kernel_state.selinux_enforcing = Some(true);
                },
                false,
                Reason::AccessDenied,
                &["SELinux", "ausearch"],
            ),
        ],
    );
}

#[test]
fn a_hook_that_failed_is_quoted() {
    check(
        ConditionType::DiscoveryHookReady,
        &[
            (
                |world| {
                    world.hook = HookView::Failed {
                        why: "/etc/h ended with exit status: 3; it said: no\nvirsh.".into(),
                        answered: true,
                    }
                },
                false,
                Reason::HookFailed,
                &["exit status: 3", "no virsh", "last good"],
            ),
            (
                |world| world.hook = HookView::Failed { why: "too slow".into(), answered: false },
                false,
                Reason::HookFailed,
                &["has given no good answer yet", "too slow"],
            ),
            (|world| world.hook = HookView::NotConfigured, true, Reason::NotNeeded, &["no discovery hook"]),
        ],
    );
}
