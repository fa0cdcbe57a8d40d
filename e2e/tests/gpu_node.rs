//! The real node daemon in a VM that is a GPU node, against what the VM's own tools say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

#[path = "gpu_node/cards.rs"]
mod cards;
#[path = "gpu_node/machine.rs"]
mod machine_trials;
#[path = "gpu_node/memory.rs"]
mod memory;
#[path = "gpu_node/shares.rs"]
mod shares;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::{GpuNodeStatus, gpu_node_status::VirtualFunction};
use gpudesk_e2e::gpu_node::GpuNodeVm;
use gpudesk_e2e::gpu_node::machine::{L40S, NIC, T4};
use gpudesk_e2e::gpu_node::witness::{self, HostCapabilities, LspciRecord, NodeDevice, SysfsRecord};
use gpudesk_e2e::programs;
use gpudesk_e2e::state::StateDir;
use gpudesk_e2e::trials::{Environment, Suite};
use serde_json::{Value, json};
use tokio::sync::Mutex;

fn main() -> ExitCode {
    Suite::<Node>::new("gpu_node")
        .trial("the_vm_has_groups_cells_and_shares_as_it_should", machine_trials::is_as_described)
        .trial("vendor_vfio_is_no_kinder_than_the_real_one", machine_trials::vendor_vfio)
        .trial("readiness_is_that_of_this_vm", machine_trials::readiness)
        .trial("every_card_is_found_as_lspci_and_libvirt_name_it", cards::same_cards)
        .trial("groups_paths_and_companions_are_those_of_sysfs_and_libvirt", cards::same_groups)
        .trial("an_unknown_numa_cell_is_not_cell_0", cards::unknown_cell)
        .trial("the_one_in_the_way_of_a_group_is_named", cards::offender)
        .trial("network_cards_and_drives_are_found_too", cards::same_host_devices)
        .trial("cells_are_those_of_libvirt", memory::same_cells)
        .trial("mdev_types_are_those_of_libvirt", shares::mdev)
        .trial("vendor_vfio_types_and_virtual_functions_are_those_of_sysfs", shares::vendor_vfio)
        .trial("a_card_that_is_plugged_in_is_found_and_gone_when_pulled", machine_trials::hot_plug)
        .trial("a_region_that_found_no_place_is_said_so", machine_trials::unassigned_region)
        .trial("a_capture_shows_the_same_host_elsewhere", machine_trials::capture)
        .run()
}

/// The mdev that exists on the T4 when the daemon looks.
const MDEV: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
/// Virtual functions that are on.
const L40S_VFS: usize = 3;
/// Virtual functions that are on.
const NIC_VFS: usize = 2;

/// The VM, and what was said of it at one moment.
struct Node {
    vm: GpuNodeVm,
    /// Where the daemon is in the VM.
    daemon: String,
    /// What `discover` printed.
    status: Value,
    lspci: BTreeMap<String, LspciRecord>,
    sysfs: BTreeMap<String, SysfsRecord>,
    libvirt: BTreeMap<String, NodeDevice>,
    host: HostCapabilities,
    /// `creatable_vgpu_types` of a virtual function before any vGPU was there.
    creatable_before: String,
    /// For a trial that changes the VM.
    changing: Mutex<()>,
    state: Arc<StateDir>,
}

impl Node {
    async fn start_in(state: &Arc<StateDir>) -> Result<Self> {
        let vm = GpuNodeVm::start(state).await?;
        let daemon = vm.install(&programs::binaries()?.join("gpudesk-node-daemon")).await?;
        let creatable_before = vm
            .run(&format!(
                "set -e; cd /sys/bus/pci/devices
                 echo {L40S_VFS} >{L40S}/sriov_numvfs
                 echo {NIC_VFS} >{NIC}/sriov_numvfs
                 echo {MDEV} >{T4}/mdev_supported_types/nvidia-231/create
                 cat {L40S}/virtfn0/nvidia/creatable_vgpu_types
                 echo 1155 >{L40S}/virtfn0/nvidia/current_vgpu_type
                 echo 24 >/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages
                 echo 8 >/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages
                 udevadm settle"
            ))
            .await?;
        let (lspci, sysfs, libvirt, host) = tokio::try_join!(
            vm.run("lspci -Dvmmnnk"),
            vm.run(witness::SYSFS_SCRIPT),
            vm.run(witness::NODE_DEVICES_SCRIPT),
            vm.run("virsh --connect qemu:///system capabilities"),
        )?;
        // Last: libvirt answers its first client only after it has tried out QEMU.
        let status = discover(&vm, &daemon).await?;
        Ok(Self {
            lspci: witness::lspci(&lspci),
            sysfs: witness::sysfs(&sysfs),
            libvirt: witness::node_devices(&libvirt)?,
            host: witness::capabilities(&host)?,
            vm,
            daemon,
            status,
            creatable_before,
            changing: Mutex::new(()),
            state: Arc::clone(state),
        })
    }

    /// The cards of the status, by address.
    fn cards(&self) -> Result<BTreeMap<String, &Value>> {
        by_address(&self.status["devices"])
    }

    /// One card of the status.
    fn card(&self, address: &str) -> Result<&Value> {
        self.cards()?.remove(address).with_context(|| format!("{address} is not in the status"))
    }

    /// The functions of these classes that are no virtual functions, by what lspci says.
    fn functions_of_class(&self, classes: &[&str]) -> Vec<&str> {
        let of_class = |record: &LspciRecord| {
            record.get("Class").and_then(|class| witness::id(class)).is_some_and(|id| classes.contains(&id))
        };
        let physical = |address: &str| !self.sysfs[address].contains_key("physfn");
        let found = self.lspci.iter().filter(|(address, record)| of_class(record) && physical(address));
        found.map(|(address, _)| address.as_str()).collect()
    }
}

/// The members of a list by their `pciAddress`.
fn by_address(list: &Value) -> Result<BTreeMap<String, &Value>> {
    let members = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let keyed = members.iter().map(|member| {
        let address = member["pciAddress"].as_str().with_context(|| format!("no pciAddress: {member}"))?;
        Ok((address.to_owned(), member))
    });
    keyed.collect()
}

/// What `discover` shows in the VM, each card and each virtual function on its own.
async fn discover(vm: &GpuNodeVm, daemon: &str) -> Result<Value> {
    let text = vm.run(&format!("{daemon} discover -o json")).await?;
    let node: Value = serde_json::from_str(&text).with_context(|| format!("read {text}"))?;
    ensure!(node["kind"] == "GpuNode", "{text}");
    let mut status = node["status"].clone();
    let read: GpuNodeStatus = serde_json::from_value(status.clone())?;
    status["devices"] = serde_json::to_value(&read.devices)?;
    let functions = read.devices.iter().map(|card| &card.virtual_functions);
    one_by_one(&mut status["devices"], functions);
    one_by_one(&mut status["hostDevices"], read.host_devices.iter().map(|device| &device.virtual_functions));
    Ok(status)
}

/// Lists the virtual functions of each of `devices`.
fn one_by_one<'a>(devices: &mut Value, functions: impl Iterator<Item = &'a Vec<VirtualFunction>>) {
    for (device, functions) in devices.as_array_mut().into_iter().flatten().zip(functions) {
        let listed = functions
            .iter()
            .map(|f| json!({"pciAddress": f.pci_address, "driver": f.driver, "iommuGroup": f.iommu_group}));
        device["virtualFunctions"] = listed.collect();
    }
}

impl Environment for Node {
    async fn start() -> Result<Self> {
        let state = Arc::new(StateDir::for_test("gpu-node")?);
        match Self::start_in(&state).await {
            Ok(node) => Ok(node),
            Err(error) => Err(error.context(format!("logs: {}", state.collect_logs("gpu_node")?.display()))),
        }
    }

    async fn stop(self) -> Result<()> {
        self.vm.stop()
    }

    fn collect_logs(&self, suite: &str) -> Result<Option<PathBuf>> {
        std::fs::write(self.state.log("status"), serde_json::to_string_pretty(&self.status)?)?;
        self.state.collect_logs(suite).map(Some)
    }
}
