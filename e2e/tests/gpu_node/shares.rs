//! What the drivers offer and what exists on their cards.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::gpu_node::machine::{L40S, T4};
use serde_json::Value;

use crate::{MDEV, Node};

/// The types of a card by the driver's own name of them.
fn offered(card: &Value) -> BTreeMap<&str, &Value> {
    let types = card["placements"].as_array().into_iter().flatten();
    types.filter_map(|offered| Some((offered["driverId"].as_str()?, offered))).collect()
}

fn instances(card: &Value) -> &[Value] {
    card["instances"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Names, counts, all five fields of a description, and the one that exists.
pub(crate) async fn mdev(node: Arc<Node>) -> Result<()> {
    let card = node.card(T4)?;
    ensure!(card["framework"] == "Mdev", "{card}");
    let types = &node.libvirt[T4].capability.of_type("mdev_types").context("libvirt has no types")?.types;
    let offered = offered(card);
    ensure!(types.len() == 7 && offered.len() == 7, "{offered:?}");
    let folder = format!("/sys/bus/pci/devices/{T4}/mdev_supported_types");
    let descriptions = node.vm.run(&format!("cd {folder}; grep --with-filename '' */description")).await?;
    let descriptions: BTreeMap<&str, &str> =
        descriptions.lines().filter_map(|line| line.split_once("/description:")).collect();
    for kind in types {
        let shown = offered.get(&*kind.id).with_context(|| format!("no {} in {offered:?}", kind.id))?;
        ensure!(
            Some(kind.name.as_str()) == shown["type"].as_str().map(|name| format!("GRID {name}")).as_deref()
        );
        ensure!(shown["available"] == kind.available_instances, "{shown}, libvirt says {kind:?}");
        ensure!(shown["mode"] == "Vgpu", "{shown}");
        let rebuilt = format!(
            "num_heads={}, frl_config={}, framebuffer={}M, max_resolution={}, max_instance={}",
            shown["heads"],
            shown["frameRateLimit"],
            shown["framebufferMiB"],
            shown["maxResolution"].as_str().unwrap_or_default(),
            shown["maxCount"]
        );
        ensure!(descriptions.get(&*kind.id) == Some(&&*rebuilt), "{rebuilt:?}, sysfs says {descriptions:?}");
    }
    let [instance] = instances(card) else { anyhow::bail!("{}", card["instances"]) };
    ensure!(instance["id"] == MDEV && instance["type"] == "T4-2Q", "{instance}");
    Ok(())
}

/// The shrunken list, the virtual functions and the vGPU that is on one of them.
pub(crate) async fn vendor_vfio(node: Arc<Node>) -> Result<()> {
    let card = node.card(L40S)?;
    ensure!(card["framework"] == "VendorVfio", "{card}");
    let offered = offered(card);
    // One of 24 GiB exists: only types of that size can be made beside it.
    for (id, name) in [("1155", "L40S-24Q"), ("1165", "L40S-24A")] {
        let shown = offered.get(id).with_context(|| format!("no {id} in {offered:?}"))?;
        ensure!(shown["type"] == name && shown["framebufferMiB"] == 24576, "{shown}");
    }
    let [instance] = instances(card) else { anyhow::bail!("{}", card["instances"]) };
    let carrier = card["virtualFunctions"][0]["pciAddress"].as_str().context("no virtual function")?;
    ensure!(instance["type"] == "L40S-24Q" && instance["virtualFunction"] == carrier, "{instance}");
    Ok(())
}
