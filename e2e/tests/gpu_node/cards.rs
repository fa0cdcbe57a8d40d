//! Cards, their groups, network cards and drives.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::gpu_node::machine::{
    BOOT_DISPLAY, GROUPED_DISPLAY, MI300X, NIC, NVME, OFFENDER, RTX_6000, VIRTIO_GPU,
};
use gpudesk_e2e::gpu_node::witness;
use serde_json::Value;

use crate::{NIC_VFS, Node, by_address};

/// Display controllers and accelerators, whosever they are.
const CARDS: [&str; 4] = ["0300", "0302", "0380", "1200"];
const NETWORK_CARDS: [&str; 1] = ["0200"];
const DRIVES: [&str; 1] = ["0108"];

fn addresses<'a>(found: impl IntoIterator<Item = &'a String>) -> BTreeSet<&'a str> {
    found.into_iter().map(String::as_str).collect()
}

/// The facts of a function that cards and host devices share, against three witnesses.
fn same_function(node: &Node, address: &str, found: &Value) -> Result<()> {
    let record = &node.lspci[address];
    let sysfs = &node.sysfs[address];
    let libvirt = &node.libvirt.get(address).context("libvirt does not know it")?.capability;
    let named = |key: &str| record.get(key).and_then(|name| witness::id(name));

    let (vendor, device) = (found["vendorId"].as_str(), found["deviceId"].as_str());
    ensure!(vendor == named("Vendor") && device == named("Device"), "lspci: {record:?}");
    ensure!(
        vendor == libvirt.vendor.id.strip_prefix("0x") && device == libvirt.product.id.strip_prefix("0x")
    );
    ensure!(found["class"].as_str() == named("Class"), "lspci: {record:?}");
    let subsystem = format!("{}:{}", bare(&sysfs["subsystem_vendor"]), bare(&sysfs["subsystem_device"]));
    ensure!(found["subsystem"].as_str() == Some(&subsystem), "sysfs: {subsystem}");
    ensure!(found["driver"].as_str() == record.get("Driver").map(String::as_str), "lspci: {record:?}");
    ensure!(found["driver"].as_str() == node.libvirt[address].driver.as_ref().map(|driver| &*driver.name));

    let cell = found["numaCell"].as_i64();
    let known = sysfs["numa_node"].parse().ok().filter(|cell: &i64| *cell >= 0);
    ensure!(cell == known, "sysfs: {}", sysfs["numa_node"]);
    ensure!(cell == libvirt.numa.as_ref().map(|numa| numa.node.into()), "libvirt: {:?}", libvirt.numa);

    let reset: Vec<&str> = sysfs.get("reset_method").map_or(vec![], |text| text.split_whitespace().collect());
    ensure!(strings(&found["resetMethods"]) == reset, "sysfs: {reset:?}");
    let most = sysfs.get("sriov_totalvfs").and_then(|text| text.parse::<i64>().ok()).filter(|most| *most > 0);
    ensure!(found["sriov"]["totalVfs"].as_i64() == most, "sysfs: {most:?}");
    if most.is_some() {
        ensure!(found["sriov"]["numVfs"].as_i64() == sysfs["sriov_numvfs"].parse().ok());
    }
    let virtual_functions = libvirt
        .of_type("virt_functions")
        .map_or(vec![], |list| list.address.iter().map(ToString::to_string).collect());
    let shown = by_address(&found["virtualFunctions"])?;
    ensure!(shown.keys().eq(virtual_functions.iter().collect::<BTreeSet<_>>()), "{virtual_functions:?}");
    for (address, function) in shown {
        let record = &node.sysfs[&address];
        ensure!(function["iommuGroup"].as_i64() == record["iommu_group"].parse().ok(), "{function}");
        ensure!(function["driver"].as_str() == record.get("driver").map(String::as_str), "{function}");
    }
    Ok(())
}

fn bare(hexadecimal: &str) -> &str {
    hexadecimal.strip_prefix("0x").unwrap_or(hexadecimal)
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Ids, class, driver, cell, reset methods, link, regions, virtual functions.
pub(crate) async fn same_cards(node: Arc<Node>) -> Result<()> {
    let cards = node.cards()?;
    let expected: BTreeSet<&str> = node.functions_of_class(&CARDS).into_iter().collect();
    ensure!(expected.len() >= 7, "{expected:?}");
    ensure!(addresses(cards.keys()) == expected, "{:?}, lspci says {expected:?}", cards.keys());
    for (address, card) in cards {
        same_function(&node, &address, card).with_context(|| format!("{address}: {card}"))?;
        let sysfs = &node.sysfs[&address];
        let boot = sysfs.get("boot_vga").is_some_and(|flag| flag == "1");
        ensure!(card["bootVga"].as_bool().unwrap_or_default() == boot, "{address}: {card}");
        ensure!(boot == (address == BOOT_DISPLAY), "{address}");
        let shown: Vec<(i64, u64)> = card["bars"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|bar| Some((bar["index"].as_i64()?, bar["sizeBytes"].as_u64()?)))
            .collect();
        ensure!(shown == regions(&sysfs["resource"]), "{address}: {shown:?}: {}", sysfs["resource"]);
        ensure!(
            number(&card["link"]["maxWidth"])
                == sysfs.get("max_link_width").cloned().filter(|width| width != "0" && width != "255"),
            "{address}: {}, sysfs: {:?}",
            card["link"],
            sysfs.get("max_link_width")
        );
    }
    Ok(())
}

fn number(value: &Value) -> Option<String> {
    value.as_i64().map(|number| number.to_string())
}

/// Index and size of the memory regions in the first six lines of `resource`: start, end, flags.
fn regions(lines: &str) -> Vec<(i64, u64)> {
    const MEMORY: u64 = 0x200;
    let parse = |number: &str| u64::from_str_radix(bare(number), 16).unwrap_or(0);
    let sizes = lines.lines().take(6).map(|line| {
        let numbers: Vec<u64> = line.split_whitespace().map(parse).collect();
        let is_memory = numbers.len() == 3 && numbers[2] & MEMORY != 0;
        if is_memory { numbers[1] - numbers[0] + 1 } else { 0 }
    });
    (0..).zip(sizes).filter(|(_, size)| *size > 0).collect()
}

/// The group and its members, the bridges above, the functions beside.
pub(crate) async fn same_groups(node: Arc<Node>) -> Result<()> {
    for (address, card) in node.cards()? {
        let group = &card["iommuGroup"];
        let libvirt =
            node.libvirt[&address].capability.iommu_group.as_ref().context("libvirt has no group")?;
        ensure!(group["id"].as_i64() == Some(libvirt.number.into()), "{address}: {group}, {libvirt:?}");
        ensure!(node.lspci[&address].get("IOMMUGroup") == number(&group["id"]).as_ref(), "{address}");
        let shown = by_address(&group["members"])?;
        let others: BTreeSet<String> =
            libvirt.address.iter().map(ToString::to_string).filter(|other| *other != address).collect();
        ensure!(shown.keys().eq(&others), "{address}: {group}, libvirt says {others:?}");
        for (other, member) in shown {
            let driver = node.sysfs[&other].get("driver").map(String::as_str);
            ensure!(member["driver"].as_str() == driver, "{address}: {member}");
        }
        let path: Vec<&str> =
            node.sysfs[&address]["path"].split('/').filter(|part| part.contains('.')).collect();
        let above: Vec<&str> = path.into_iter().filter(|part| *part != ".." && *part != address).collect();
        ensure!(strings(&card["pciePath"]) == above, "{address}: {}, sysfs: {above:?}", card["pciePath"]);
    }
    let behind_switch = strings(&node.card(VIRTIO_GPU)?["pciePath"]);
    ensure!(behind_switch == ["0000:40:03.0", "0000:44:00.0", "0000:45:00.0"], "{behind_switch:?}");
    let companions = by_address(&node.card(RTX_6000)?["companions"])?;
    ensure!(addresses(companions.keys()) == BTreeSet::from(["0000:41:00.1"]), "{companions:?}");
    ensure!(node.card(RTX_6000)?["iommuGroup"]["viable"] == true, "{}", node.card(RTX_6000)?);
    Ok(())
}

/// -1 of the firmware is neither cell 0 nor cell -1.
pub(crate) async fn unknown_cell(node: Arc<Node>) -> Result<()> {
    ensure!(node.sysfs[BOOT_DISPLAY]["numa_node"] == "-1");
    let shown = node.card(BOOT_DISPLAY)?;
    ensure!(shown.get("numaCell").is_none(), "{shown}");
    ensure!(node.card(MI300X)?["numaCell"] == 0, "{}", node.card(MI300X)?);
    Ok(())
}

/// A group with a NIC of the host in it is no desktop's.
pub(crate) async fn offender(node: Arc<Node>) -> Result<()> {
    let group = &node.card(GROUPED_DISPLAY)?["iommuGroup"];
    ensure!(group["viable"] == false, "{group}");
    let message = group["message"].as_str().unwrap_or_default();
    ensure!(message.contains(OFFENDER) && message.contains("virtio-pci"), "{message:?}");
    Ok(())
}

/// NICs and NVMe drives, with their virtual functions.
pub(crate) async fn same_host_devices(node: Arc<Node>) -> Result<()> {
    let shown = by_address(&node.status["hostDevices"])?;
    let classes = [NETWORK_CARDS, DRIVES].concat();
    let expected: BTreeSet<&str> = node.functions_of_class(&classes).into_iter().collect();
    ensure!(expected.contains(NIC) && expected.contains(NVME) && expected.contains(OFFENDER), "{expected:?}");
    ensure!(addresses(shown.keys()) == expected, "{:?}, lspci says {expected:?}", shown.keys());
    for (address, device) in &shown {
        same_function(&node, address, device).with_context(|| format!("{address}: {device}"))?;
    }
    let functions = shown[NIC]["virtualFunctions"].as_array().map_or(0, Vec::len);
    ensure!(functions == NIC_VFS, "{}", shown[NIC]);
    Ok(())
}
