//! What discovery shows, as the API has it: every composed and simulated machine is taken as it is, and a
//! daemon keeps its `GpuNode` true while the driver, the hook and the machine change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use gpudesk_crds::{GpuNode, conditions, conditions::ConditionType, gpu_node_status::HealthState};
use gpudesk_e2e::{
    cluster::Cluster,
    programs::{DaemonOptions, binaries},
    state::checkout,
    trials::Suite,
    waiting::until,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_mins(1);

fn main() -> ExitCode {
    Suite::<Cluster>::new("discovery")
        .trial("every_machine_is_taken_by_the_api_as_it_is_shown", every_machine)
        .trial("a_daemon_shows_what_driver_and_hook_say_and_keeps_it_true", kept_true)
        .run()
}

/// Applies a status as the daemon does, and compares what the API kept of it.
async fn taken_whole(cluster: &Cluster, name: &str, mut status: Value) -> Result<()> {
    let nodes: Api<GpuNode> = Api::all(cluster.client().clone());
    let params = PatchParams::apply("gpudesk-node-daemon").force();
    let head = json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode", "metadata": {"name": name}});
    let mut object = head.clone();
    object["spec"] = json!({});
    nodes.patch(name, &params, &Patch::Apply(&object)).await?;
    let mut object = head;
    object["status"] = status.clone();
    let answer = nodes.patch_status(name, &params, &Patch::Apply(&object)).await;
    let answer = answer.with_context(|| format!("the API refuses {name}"))?;
    let mut kept = serde_json::to_value(answer.status)?;
    // Through the types once, so that both write numbers and absent fields alike.
    status = serde_json::to_value(serde_json::from_value::<gpudesk_crds::GpuNodeStatus>(status)?)?;
    for value in [&mut kept, &mut status] {
        sort_conditions(value);
    }
    ensure!(kept == status, "{name} came back otherwise:\n{kept:#}\n{status:#}");
    cluster.kubectl(["delete", "gpunode", name, "--wait=false"])?;
    Ok(())
}

fn sort_conditions(status: &mut Value) {
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.sort_by_key(|condition| condition["type"].to_string());
    }
}

async fn every_machine(cluster: Arc<Cluster>) -> Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(checkout().join("node-daemon/tests/fixtures"))? {
        let path = entry?.path();
        let Some(name) = file_name(&path).strip_suffix(".golden.yaml").map(str::to_owned) else { continue };
        let golden: Value = serde_yaml::from_str(&fs::read_to_string(&path)?)?;
        taken_whole(&cluster, &format!("golden-{name}"), golden["status"].clone()).await?;
        count += 1;
    }
    ensure!(count >= 10, "only {count} composed machines were found");
    for entry in fs::read_dir(checkout().join("examples/hosts"))? {
        let path = entry?.path();
        let Some(name) = file_name(&path).strip_suffix(".yaml").map(str::to_owned) else { continue };
        let mut discover = Command::new(binaries()?.join("gpudesk-node-daemon"));
        let output = discover.args(["discover", "-o", "json", "--simulate"]).arg(&path).output()?;
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let shown: Value = serde_json::from_slice(&output.stdout)?;
        taken_whole(&cluster, &format!("example-{name}"), shown["status"].clone()).await?;
    }
    Ok(())
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// A root folder with one card, what NVML says of it, and a hook.
struct Machine {
    folder: tempfile::TempDir,
}

const ADDRESS: &str = "0000:41:00.0";

impl Machine {
    fn new() -> Result<Self> {
        let machine = Self { folder: tempfile::tempdir()? };
        let pci = machine.path("root/sys/bus/pci");
        let card = pci.join("devices").join(ADDRESS);
        fs::create_dir_all(&card)?;
        fs::create_dir_all(pci.join("drivers/nvidia"))?;
        symlink("../../../../bus/pci/drivers/nvidia", card.join("driver"))?;
        for (file, text) in [("class", "0x030200\n"), ("vendor", "0x10de\n"), ("device", "0x26b9\n")] {
            fs::write(card.join(file), text)?;
        }
        machine.write("root/sys/devices/system/cpu/online", "0-3\n")?;
        machine.write("root/proc/meminfo", "MemTotal: 16777216 kB\n")?;
        machine.world("")?;
        machine.hook("echo '{\"gpus\": []}'")?;
        Ok(machine)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("a path below the root")?)?;
        // Renamed, so that nobody reads a half.
        let beside = path.with_extension("new");
        fs::write(&beside, text)?;
        fs::rename(beside, path)?;
        Ok(())
    }

    /// What the driver says: one L40S, and these events.
    fn world(&self, events: &str) -> Result<()> {
        self.world_with(events, "")
    }

    fn world_with(&self, events: &str, state: &str) -> Result<()> {
        let cards = format!("[{{model: L40S, address: '{ADDRESS}', uuid: GPU-a, serial: '1'{state}}}]");
        self.write("world.yaml", &format!("events: [{events}]\ncards: {cards}\n"))
    }

    fn hook(&self, script: &str) -> Result<()> {
        let path = self.path("hook");
        let beside = self.path("hook.new");
        fs::write(&beside, format!("#!/bin/sh\ncat > /dev/null\n{script}\n"))?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o755))?;
        fs::rename(beside, path)?;
        Ok(())
    }

    fn options(&self, node: &str) -> Result<DaemonOptions> {
        let arguments = [
            ("--host-root", self.path("root")),
            ("--nvml", binaries()?.join("libgpudesk_fake_nvml.so")),
            ("--hook", self.path("hook")),
            ("--libvirt-uri", "test:///default".into()),
        ];
        Ok(DaemonOptions {
            node: node.into(),
            arguments: arguments.into_iter().flat_map(|(name, value)| [name.into(), value.into()]).collect(),
            environment: vec![("GPUDESK_FAKE_NVML".into(), self.path("world.yaml").into())],
            ..DaemonOptions::default()
        })
    }
}

/// As CloudStack's script prints it: no domain, numbers as text.
const FOREIGN_USE: &str = r#"echo '{"gpus": [{"pci_address": "41:00.0", "numa_node": "-1",
  "full_passthrough": {"enabled": 1, "used_by_vm": "i-2-34-VM"}}]}'"#;

async fn kept_true(cluster: Arc<Cluster>) -> Result<()> {
    build_fake_nvml()?;
    let machine = Machine::new()?;
    machine.hook(FOREIGN_USE)?;
    let daemon = cluster.start_daemon(&machine.options("found")?).await?;
    let nodes: Api<GpuNode> = Api::all(cluster.client().clone());
    let card = |node: &GpuNode| node.status.as_ref().and_then(|status| status.devices.first().cloned());
    let shown = until(&nodes, "found", "driver and hook are heard", SOON, |node| {
        card(node).is_some_and(|card| {
            card.product.contains("L40S")
                && card.unavailable.as_ref().is_some_and(|why| why.contains("i-2-34-VM"))
                && card.placements.iter().any(|placement| placement.type_name == "L40S-8Q")
        })
    })
    .await?;
    let status = shown.status.context("status")?;
    ensure!(conditions::is_true(&status.conditions, ConditionType::DiscoveryHookReady));
    ensure!(card_state(&status) == Some(HealthState::Healthy), "{status:#?}");

    // The driver reports an error; the hook fails at the next look and its answer stands.
    machine.hook("echo broken >&2; exit 3")?;
    // Listening begins some moments after the first look: an error before that is nobody's event.
    let has_error = |node: &GpuNode, code: i32| {
        card(node).is_some_and(|card| {
            card.health.xids.iter().any(|xid| xid.code == code && xid.gpu_instance.is_none())
        })
    };
    let mut events = vec![];
    loop {
        events.push(format!("{{card: '{ADDRESS}', xid: 13}}"));
        machine.world(&events.join(", "))?;
        let seen =
            until(&nodes, "found", "an error is shown", Duration::from_secs(6), |node| has_error(node, 13));
        match seen.await {
            Err(_) if events.len() < 8 => {}
            seen => break drop(seen?),
        }
    }
    // An application's error is no fault of the card; falling off the bus is.
    events.push(format!("{{card: '{ADDRESS}', xid: 79}}"));
    machine.world_with(&events.join(", "), ", lost: true")?;
    let lost = until(&nodes, "found", "the card has failed", Duration::from_secs(30), |node| {
        node.status.as_ref().is_some_and(|status| card_state(status) == Some(HealthState::Failed))
    });
    ensure!(has_error(&lost.await?, 79), "the event itself is shown, too");
    let failed = until(&nodes, "found", "the failed hook is said", Duration::from_secs(100), |node| {
        let conditions = node.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        conditions::find(conditions, ConditionType::DiscoveryHookReady)
            .is_some_and(|condition| condition.status == "False" && condition.message.contains("broken"))
    })
    .await?;
    let card = card(&failed).context("the card is still there")?;
    ensure!(card.unavailable.is_some_and(|why| why.contains("i-2-34-VM")), "the last good answer stands");
    daemon.stop()?;
    Ok(())
}

fn card_state(status: &gpudesk_crds::GpuNodeStatus) -> Option<HealthState> {
    status.devices.first().map(|card| card.health.state)
}

/// Unless everything was built before.
fn build_fake_nvml() -> Result<()> {
    if std::env::var_os("GPUDESK_BIN_DIR").is_none_or(|folder| folder.is_empty()) {
        let mut cargo = Command::new(env!("CARGO"));
        let cargo =
            cargo.current_dir(checkout()).args(["build", "--quiet", "--package", "gpudesk-fake-nvml"]);
        ensure!(cargo.status()?.success(), "the stand-in for NVML is not built");
    }
    Ok(())
}
