//! CPUs that are one desktop's own: nobody else's threads run there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::Desktop;
use gpudesk_crds::conditions::{ConditionType, Reason};
use gpudesk_crds::types::CpuSet;
use gpudesk_e2e::real_host::{RealHost, TINY};
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::eventually;
use kube::ResourceExt;

const SOON: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    Suite::<RealHost>::new("pinning").trial("dedicated_cpus_are_kept_free_of_other_desktops", dedicated).run()
}

async fn dedicated(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("pinning").await?;
    objects.template("shared", TINY).await?;
    objects.template("own", &TINY.replace("cpu: {cores: 1}", "cpu: {cores: 1, pinning: Dedicated}")).await?;
    let start = async |name: &str, template: &str| -> Result<Desktop> {
        objects.desktop(name, &format!("templateRef: {{name: {template}}}")).await?;
        objects.is(name, ConditionType::Ready, true, SOON).await
    };
    let before = start("before", "shared").await?;
    let everywhere = allowed(&environment, &before)?;
    let own = start("own", "own").await?;
    let after = start("after", "shared").await?;

    let given = pins(&own)?;
    ensure!(!given.is_empty(), "it was given CPUs: {own:?}");
    let vcpus: Vec<CpuSet> = threads(&environment, &own, true)?;
    ensure!(vcpus == [given.clone()], "its vCPU runs where it was told to: {vcpus:?}, not {given}");
    for (name, desktop) in [("before", &before), ("after", &after)] {
        let cpus = allowed(&environment, desktop)?;
        ensure!(cpus.is_disjoint(&given), "{name} may run on {cpus}, of which {given} are another's own");
    }
    // There is no second core to give: the refusal says so.
    objects.desktop("too-many", "templateRef: {name: own}").await?;
    if everywhere.len() == 2 {
        let said = objects.says("too-many", ConditionType::Allocated, Reason::Unschedulable, SOON).await?;
        ensure!(said.message.contains("not enough free cores"), "{said:?}");
    }
    objects.delete("too-many", SOON).await?;

    // A daemon that starts finds it so, and given back they are everybody's again.
    environment.restart_daemon(None).await?;
    ensure!(allowed(&environment, &before)?.is_disjoint(&given), "a restart of the daemon changes nothing");
    objects.delete("own", SOON).await?;
    eventually("the CPUs are everybody's again", SOON, || async {
        Ok((allowed(&environment, &before)? == everywhere).then_some(()))
    })
    .await?;
    objects.delete("before", SOON).await?;
    objects.delete("after", SOON).await
}

fn pins(desktop: &Desktop) -> Result<CpuSet> {
    let allocation = desktop.status.as_ref().and_then(|status| status.allocation.as_ref());
    let compute = allocation.and_then(|allocation| allocation.compute.as_ref()).context("it is allocated")?;
    Ok(compute.vcpu_pins.iter().flat_map(|pin| pin.cpus.iter()).collect())
}

/// CPUs that the vCPUs and the main loop of a desktop's QEMU may run on. The libvirt of the tests has
/// no cgroups, which elsewhere keep the few helper threads beside the main loop.
fn allowed(environment: &RealHost, desktop: &Desktop) -> Result<CpuSet> {
    let mut all = CpuSet::default();
    for cpus in threads(environment, desktop, false)? {
        all.extend(cpus.iter());
    }
    Ok(all)
}

/// Per vCPU of a desktop's QEMU, and for its main loop, the CPUs it may run on.
fn threads(environment: &RealHost, desktop: &Desktop, only_vcpus: bool) -> Result<Vec<CpuSet>> {
    let uid = desktop.uid().context("a desktop has a UID")?;
    let of_desktop = |pid: u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&uid)
    };
    let guests = environment.libvirt().guests();
    let pid =
        guests.iter().map(|guest| guest.pid()).find(|pid| of_desktop(*pid)).context("it has a process")?;
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let vcpu = field("Name:").is_some_and(|name| name.starts_with("CPU "));
        let main = field("Pid:") == Some(&pid.to_string());
        // A worker that has just ended has no status any more.
        let Some(cpus) = field("Cpus_allowed_list:") else { continue };
        if vcpu || (main && !only_vcpus) {
            found.push(cpus.parse()?);
        }
    }
    Ok(found)
}
