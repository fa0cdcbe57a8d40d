//! That the VM is what the other trials take it for; changes while it runs.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::gpu_node::machine::{
    EMPTY_BUS, GROUPED_DISPLAY, L40S, LARGE_REGION, NIC, NVME, OFFENDER, PLUGGED, RTX_6000, T4,
};
use gpudesk_e2e::processes::run;
use gpudesk_e2e::programs;
use serde_json::{Value, json};

use crate::{L40S_VFS, MDEV, NIC_VFS, Node, by_address, discover};

/// Groups, cells, virtual functions and mdev types as `gpu_node::machine` says.
pub(crate) async fn is_as_described(node: Arc<Node>) -> Result<()> {
    let sysfs = &node.sysfs;
    ensure!(sysfs.values().all(|function| function.contains_key("iommu_group")), "a function has no group");
    let sound = format!("{}1", RTX_6000.strip_suffix('0').context("function 0")?);
    ensure!(sysfs[RTX_6000]["iommu_group"] == sysfs[&sound]["iommu_group"]);
    ensure!(sysfs[GROUPED_DISPLAY]["iommu_group"] == sysfs[OFFENDER]["iommu_group"]);
    ensure!(sysfs[T4]["numa_node"] == "1" && sysfs[RTX_6000]["numa_node"] == "0");
    let distances = node.vm.run("cat /sys/devices/system/node/node[01]/distance").await?;
    ensure!(distances == "10 20\n20 10\n", "{distances}");
    for (function, on, most) in [(L40S, L40S_VFS, "8"), (NIC, NIC_VFS, "7"), (NVME, 0, "4")] {
        let record = &sysfs[function];
        ensure!(record["sriov_totalvfs"] == most && record["sriov_numvfs"] == on.to_string(), "{record:?}");
        let of_it = sysfs.values().filter(|record| record.get("physfn").is_some_and(|pf| pf == function));
        ensure!(of_it.count() == on, "{function}");
    }
    let groups: Vec<_> = sysfs
        .values()
        .filter(|record| record.get("physfn").is_some_and(|function| function == L40S))
        .map(|record| &record["iommu_group"])
        .collect();
    ensure!(groups.len() == L40S_VFS && groups[0] != groups[1] && groups[1] != groups[2], "{groups:?}");
    let description = node
        .vm
        .read(&format!("/sys/bus/pci/devices/{T4}/mdev_supported_types/nvidia-230/description"))
        .await?;
    ensure!(
        description
            == "num_heads=4, frl_config=60, framebuffer=1024M, max_resolution=5120x2880, max_instance=16",
        "{description}"
    );
    let mdev = node.vm.run(&format!("basename $(readlink /sys/bus/mdev/devices/{MDEV}/mdev_type)")).await?;
    ensure!(mdev.trim() == "nvidia-231", "{mdev}");
    Ok(())
}

/// Versions, and the conditions that this machine must and must not meet.
pub(crate) async fn readiness(node: Arc<Node>) -> Result<()> {
    let host = &node.status["host"];
    ensure!(host["kernel"] == node.vm.run("uname -r").await?.trim(), "{host}");
    ensure!(host["iommu"] == "dmar", "{host}");
    let versions = node.vm.run("virsh --connect qemu:///system version").await?;
    for (name, line) in
        [("libvirtVersion", "Using library: libvirt "), ("qemuVersion", "Running hypervisor: QEMU ")]
    {
        let said = versions.lines().find_map(|version| version.strip_prefix(line));
        ensure!(said.is_some() && host[name].as_str() == said, "{host}, libvirt says {versions}");
    }
    let conditions = node.status["conditions"].as_array().context("no conditions")?;
    for (kind, status) in [
        ("IommuEnabled", "True"),
        ("VfioReady", "True"),
        ("HugepagesReserved", "True"),
        ("BarsAssigned", "True"),
        ("SriovEnabled", "True"),
        ("HypervisorReady", "True"),
        ("KvmUsable", "False"),
    ] {
        let condition = conditions.iter().find(|condition| condition["type"] == kind);
        let condition = condition.with_context(|| format!("no {kind} in {conditions:?}"))?;
        ensure!(condition["status"] == status, "{condition}");
        // Virtual functions of the L40S are on: that is no "does not apply".
        ensure!(kind != "SriovEnabled" || condition["reason"] == "AsExpected", "{condition}");
        ensure!(status == "True" || condition["message"].as_str().is_some_and(|words| !words.is_empty()));
    }
    Ok(())
}

/// The list shrinks, the header stays, and what the driver refuses is refused.
pub(crate) async fn vendor_vfio(node: Arc<Node>) -> Result<()> {
    let mut before = node.creatable_before.lines();
    ensure!(before.next() == Some("ID    : vGPU Name"));
    ensure!(before.clone().count() == 23 && before.any(|line| line == "1155  : NVIDIA L40S-24Q"));

    let _changing = node.changing.lock().await;
    let virtual_function = |number: u32| format!("/sys/bus/pci/devices/{L40S}/virtfn{number}/nvidia");
    let (first, second) = (virtual_function(0), virtual_function(1));
    let list = node.vm.run(&format!("cat {second}/creatable_vgpu_types")).await?;
    ensure!(list == "ID    : vGPU Name\n1155  : NVIDIA L40S-24Q\n1165  : NVIDIA L40S-24A\n", "{list}");
    ensure!(node.vm.run(&format!("cat {first}/creatable_vgpu_types")).await? == "ID    : vGPU Name\n");
    ensure!(node.vm.read(&format!("{second}/current_vgpu_type")).await? == "0");

    for (script, refusal) in [
        (format!("echo 0 >{second}/current_vgpu_type"), "Operation not permitted"),
        (format!("echo 1155 >{first}/current_vgpu_type"), "Operation not permitted"),
        (format!("echo 1156 >{second}/current_vgpu_type"), "Input/output error"),
        (format!("cat {second}/placement_id"), "No such device or address"),
        (format!("cat {second}/gpu_instance_id"), "No such device or address"),
        (format!("echo 4 >/sys/bus/pci/devices/{L40S}/sriov_numvfs"), "Device or resource busy"),
    ] {
        let output = node.vm.output(&script).await?;
        ensure!(output.status != 0 && output.stderr.contains(refusal), "{script}: {output:?}");
    }

    let made = node
        .vm
        .run(&format!(
            "set -e; echo 1165 >{second}/current_vgpu_type; cat {second}/placement_id
             cat {}/creatable_vgpu_types; echo 0 >{second}/current_vgpu_type",
            virtual_function(2)
        ))
        .await?;
    ensure!(made == "24\nID    : vGPU Name\n", "{made}");

    // A guest gets a function that has a vGPU, and keeps it.
    let qemu = "qemu-system-x86_64 -machine q35 -accel tcg -m 64 -nodefaults -display none -S";
    let function = |number: u32| {
        format!("-device vfio-pci,sysfsdev=$(readlink -f /sys/bus/pci/devices/{L40S}/virtfn{number})")
    };
    let without = node.vm.output(&format!("timeout 60 {qemu} {}", function(1))).await?;
    ensure!(without.status == 1 && without.stderr.contains("No such device"), "{without:?}");
    node.vm.run(&format!("{qemu} {} -daemonize -pidfile /run/guest.pid", function(0))).await?;
    let taken = node.vm.output(&format!("echo 0 >{first}/current_vgpu_type")).await?;
    node.vm.run("kill -KILL $(cat /run/guest.pid)").await?;
    ensure!(taken.stderr.contains("Device or resource busy"), "{taken:?}");
    Ok(())
}

/// The kernel's uevents come, and discovery shows what is there.
pub(crate) async fn hot_plug(node: Arc<Node>) -> Result<()> {
    let _changing = node.changing.lock().await;
    ensure!(plugged(&node.status)?.is_none(), "{PLUGGED} is there before");
    let monitor = "stdbuf -oL udevadm monitor --kernel --subsystem-match=pci";
    node.vm.run(&format!("timeout 300 {monitor} >/run/uevents & sleep 1")).await?;
    node.vm.plug(json!({ "driver": "edu", "id": "plugged", "bus": EMPTY_BUS })).await?;
    uevent(&node, "add").await?;
    let status = discover(&node.vm, &node.daemon).await?;
    let card = plugged(&status)?.with_context(|| format!("{PLUGGED} is not in {status}"))?;
    ensure!(card["vendorId"] == "8086" && card["deviceId"] == "56c0", "{card}");

    node.vm.unplug("plugged").await?;
    uevent(&node, "remove").await?;
    let status = discover(&node.vm, &node.daemon).await?;
    ensure!(plugged(&status)?.is_none(), "{PLUGGED} is still in {status}");
    Ok(())
}

/// The slot has no room for 64 MiB, as a host without Above-4G decoding has none for a large card.
pub(crate) async fn unassigned_region(node: Arc<Node>) -> Result<()> {
    let _changing = node.changing.lock().await;
    let device =
        json!({ "driver": "ivshmem-plain", "id": "plugged", "bus": EMPTY_BUS, "memdev": LARGE_REGION });
    node.vm.plug(device).await?;
    node.vm
        .run(&format!("until [ -e /sys/bus/pci/devices/{PLUGGED} ]; do sleep 0.1; done; udevadm settle"))
        .await?;
    // The kernel gave up on region 2 and forgot it; what is left is its kind in configuration space,
    // 64 bits wide and prefetchable, without an address.
    let kept = node
        .vm
        .run(&format!("cd /sys/bus/pci/devices/{PLUGGED}; sed -n 3p resource; od -An -tx4 -j24 -N4 config"))
        .await?;
    ensure!(kept == format!("{} {0} {0}\n 0000000c\n", "0x0000000000000000"), "{kept}");
    let status = discover(&node.vm, &node.daemon).await?;
    node.vm.unplug("plugged").await?;
    let card = plugged(&status)?.with_context(|| format!("{PLUGGED} is not in {status}"))?;
    let mut regions = card["bars"].as_array().into_iter().flatten();
    ensure!(regions.any(|region| region["unassigned"] == true), "{card}");
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    let condition =
        conditions.find(|condition| condition["type"] == "BarsAssigned").context("no condition")?;
    ensure!(condition["status"] == "False", "{condition}");
    ensure!(condition["message"].as_str().is_some_and(|words| words.contains(PLUGGED)), "{condition}");
    Ok(())
}

fn plugged(status: &Value) -> Result<Option<&Value>> {
    Ok(by_address(&status["devices"])?.remove(PLUGGED))
}

/// Waits for a uevent of the plugged device.
async fn uevent(node: &Node, action: &str) -> Result<()> {
    let seen = format!("grep -q ' {action} .*{PLUGGED}' /run/uevents");
    node.vm
        .run(&format!(
            "for try in $(seq 150); do {seen} && exit; sleep 0.2; done; cat /run/uevents >&2; exit 1"
        ))
        .await?;
    Ok(())
}

/// What was read there gives the same status here.
pub(crate) async fn capture(node: Arc<Node>) -> Result<()> {
    let _changing = node.changing.lock().await;
    let name = "capture.tar.zst";
    // libvirt answers there and not here.
    let options = "discover --output json --libvirt-uri none";
    let inside = node.vm.run(&format!("{} {options} --capture /host/{name}", node.daemon)).await?;
    let mut outside = Command::new(programs::binaries()?.join("gpudesk-node-daemon"));
    outside.args(options.split(' ')).arg("--host-root").arg(node.vm.share().join(name));
    let (inside, outside) = (facts(&inside)?, facts(&run(&mut outside)?)?);
    for (what, there) in &inside {
        ensure!(outside.get(what) == Some(there), "{what}: {there} there, {:?} here", outside.get(what));
    }
    ensure!(inside.len() == outside.len(), "there is more here: {outside:?}");
    Ok(())
}

/// What a status says, each list keyed by what its members are about; the times of conditions are
/// those of the run.
fn facts(node: &str) -> Result<BTreeMap<String, Value>> {
    let mut node: Value = serde_json::from_str(node)?;
    let status = node["status"].as_object_mut().context("no status")?;
    let mut facts = BTreeMap::new();
    for (name, value) in std::mem::take(status) {
        let Value::Array(members) = value else {
            facts.insert(name, value);
            continue;
        };
        for (place, mut member) in members.into_iter().enumerate() {
            let key = ["type", "pciAddress", "id"].iter().find_map(|key| Some(member.get(key)?.to_string()));
            member.as_object_mut().map(|member| member.remove("lastTransitionTime"));
            facts.insert(format!("{name} {}", key.unwrap_or_else(|| place.to_string())), member);
        }
    }
    Ok(facts)
}
