//! The node daemon is killed between any two steps, and the desktop comes out right all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::ConditionType;
use gpudesk_crds::domain_name;
use gpudesk_e2e::objects::Objects;
use gpudesk_e2e::real_host::{RealHost, TINY};
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::until_gone;
use kube::ResourceExt;
use kube::api::DeleteParams;

const SOON: Duration = Duration::from_secs(90);

/// Steps of a start after which the daemon ends itself with SIGKILL.
const START: [&str; 7] = [
    "gpus-created",
    "overlay-written",
    "disks-written",
    "seed-written",
    "defined",
    "started",
    "status-written",
];
/// The same for a deletion.
const DELETE: [&str; 6] =
    ["shutdown-sent", "destroyed", "undefined", "gpus-destroyed", "folder-removed", "status-written"];

fn main() -> ExitCode {
    // One after the other within a trial, for there is one daemon; the trials share it too.
    Suite::<RealHost>::new("crashes").trial("killed_after_any_step_of_start_and_deletion", each_step).run()
}

async fn each_step(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("crash").await?;
    objects.template("tiny", TINY).await?;
    // One that is powered off at once, and never asked.
    objects.template("abrupt", &TINY.replace("shutdownGraceSeconds: 5", "shutdownGraceSeconds: 0")).await?;
    for step in START {
        killed_in_start(&environment, &objects, step).await.with_context(|| format!("start, {step}"))?;
    }
    for step in DELETE {
        killed_in_deletion(&environment, &objects, step)
            .await
            .with_context(|| format!("deletion, {step}"))?;
    }
    Ok(())
}

async fn killed_in_start(environment: &RealHost, objects: &Objects, step: &str) -> Result<()> {
    environment.restart_daemon(Some(step)).await?;
    objects.desktop(step, "templateRef: {name: tiny}").await?;
    environment.wait_for_crash(SOON).await?;
    let before = environment.libvirt().guests();
    // The operator may be restarted at any point as well.
    environment.operator().await.restart()?;
    environment.restart_daemon(None).await?;
    let desktop = objects.is(step, ConditionType::Ready, true, SOON).await?;
    let after = environment.libvirt().guests();
    ensure!(after.len() == 1, "one guest for one desktop: {after:?}");
    ensure!(before.is_empty() || before == after, "the guest that ran still runs: {before:?} {after:?}");
    objects.delete(step, SOON).await?;
    nothing_left(environment, objects, &desktop)
}

async fn killed_in_deletion(environment: &RealHost, objects: &Objects, step: &str) -> Result<()> {
    environment.restart_daemon(None).await?;
    let template = if step == "destroyed" { "abrupt" } else { "tiny" };
    objects.desktop(step, &format!("templateRef: {{name: {template}}}")).await?;
    let desktop = objects.is(step, ConditionType::Ready, true, SOON).await?;
    environment.restart_daemon(Some(step)).await?;
    // A daemon that starts says where its relay is: after that status it may have ended already.
    if step != "status-written" {
        environment.daemon().await.wait_ready().await?;
    }
    objects.desktops().delete(step, &DeleteParams::default()).await?;
    environment.wait_for_crash(SOON).await?;
    environment.operator().await.restart()?;
    environment.restart_daemon(None).await?;
    until_gone(&objects.desktops(), step, SOON).await?;
    nothing_left(environment, objects, &desktop)
}

fn nothing_left(environment: &RealHost, objects: &Objects, desktop: &gpudesk_crds::Desktop) -> Result<()> {
    let domain = domain_name(objects.namespace(), &desktop.name_any());
    ensure!(!environment.domains()?.contains(&domain), "domain {domain} is left");
    let guests = environment.libvirt().guests();
    ensure!(guests.is_empty(), "guests are left: {guests:?}");
    let folder = environment.desktop_folder(&desktop.uid().context("a desktop has a UID")?);
    ensure!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}
