//! Desktops on this machine: real libvirt, real QEMU, a guest that only has to exist.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

#[path = "desktops/disks.rs"]
mod disks;

use std::os::unix::fs::{MetadataExt, symlink};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::{ConditionType, Reason};
use gpudesk_crds::{Desktop, domain_name};
use gpudesk_e2e::objects::{Objects, condition};
use gpudesk_e2e::processes::Identity;
use gpudesk_e2e::real_host::{NODE, RealHost, TINY};
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::{eventually, until};
use kube::ResourceExt;
use rustix::process::Signal;
use serde_json::json;

const SOON: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    Suite::<RealHost>::new("desktops")
        .trial("a_desktop_runs_shows_its_screen_and_leaves_nothing", life)
        .trial("stopped_and_started_again_it_has_its_disk", stop_and_start)
        .trial("a_restart_is_asked_for_by_annotation", restart)
        .trial("a_guest_that_dies_is_started_again", guest_dies)
        .trial("what_was_removed_from_libvirt_by_hand_is_told_as_it_was_seen", removed_by_hand)
        .trial("each_mistake_shows_its_own_reason_and_the_others_go_on", mistakes)
        .trial("a_missing_template_that_appears_is_taken", template_appears)
        .trial("golden_images_kernels_and_what_is_only_read_stay_their_owners", disks::ownership)
        .trial("a_forged_header_opens_no_other_file", disks::forged_headers)
        .trial("a_file_is_shared_only_by_those_who_read_it", disks::shared_files)
        .trial("a_disk_keeps_to_its_golden_image_and_is_not_cut", disks::golden_images)
        .trial("a_disk_that_has_vanished_is_not_replaced_by_an_empty_one", disks::vanished)
        .run()
}

async fn run_tiny(objects: &Objects, name: &str) -> Result<Desktop> {
    objects.desktop(name, "templateRef: {name: tiny}").await?;
    objects.is(name, ConditionType::Ready, true, SOON).await
}

fn gone(environment: &RealHost, objects: &Objects, desktop: &Desktop) -> Result<()> {
    let domain = domain_name(objects.namespace(), &desktop.name_any());
    ensure!(!environment.domains()?.contains(&domain), "domain {domain} is left");
    let folder = environment.desktop_folder(&desktop.uid().context("a desktop has a UID")?);
    ensure!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}

async fn life(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("life").await?;
    objects.template("tiny", TINY).await?;
    let desktop = run_tiny(&objects, "one").await?;
    let uid = desktop.uid().context("a desktop has a UID")?;
    let status = desktop.status.clone().context("a running desktop has a status")?;
    let domain = domain_name(objects.namespace(), "one");

    let allocation = status.allocation.as_ref().context("it is allocated")?;
    ensure!(allocation.node == NODE && allocation.compute.is_some(), "{allocation:?}");
    ensure!(status.domain.as_ref().is_some_and(|it| it.name == domain), "{:?}", status.domain);

    let xml = environment.libvirt().virsh(["dumpxml", &domain])?;
    ensure!(xml.contains(&format!("<uuid>{uid}</uuid>")), "the domain's UUID is the desktop's UID: {xml}");
    ensure!(
        xml.contains("https://gpudesk.dev/domain/v1"),
        "the allocation is in the domain's metadata: {xml}"
    );
    let folder = environment.desktop_folder(&uid);
    ensure!(folder.is_dir(), "{} holds disk and seed", folder.display());

    let console = status.consoles.first().context("it has a console")?;
    ensure!(
        console.address.is_empty() && console.relay.is_some(),
        "the screen stands on no port: {console:?}"
    );

    let by_node = kube::api::ListParams::default().fields(&format!("status.allocation.node={NODE}"));
    let listed = objects.desktops().list(&by_node).await?;
    ensure!(listed.items.len() == 1, "a field selector lists desktops by node");

    objects.delete("one", SOON).await?;
    gone(&environment, &objects, &desktop)
}

async fn stop_and_start(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("stop").await?;
    objects.template("tiny", TINY).await?;
    let desktop = run_tiny(&objects, "one").await?;
    let folder = environment.desktop_folder(&desktop.uid().unwrap());
    let inodes = || -> Result<Vec<u64>> {
        let mut disks: Vec<u64> = std::fs::read_dir(&folder)?
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "qcow2"))
            .map(|entry| entry.metadata().map(|metadata| metadata.ino()))
            .collect::<Result<_, _>>()?;
        disks.sort_unstable();
        Ok(disks)
    };
    let before = inodes()?;
    ensure!(before.len() == 1, "one disk: {before:?}");

    objects.patch("one", json!({"spec": {"powerState": "Stopped"}})).await?;
    let parked = until(&objects.desktops(), "one", "it is parked", SOON, |desktop| {
        let allocation = desktop.status.as_ref().and_then(|status| status.allocation.as_ref());
        allocation.is_some_and(|allocation| allocation.compute.is_none())
    })
    .await?;
    let status = parked.status.clone().unwrap();
    ensure!(status.allocation.as_ref().unwrap().node == NODE, "it keeps its home");
    ensure!(
        status.domain.is_none() && status.consoles.is_empty(),
        "nothing of the machine is shown: {status:?}"
    );
    let domain = domain_name(objects.namespace(), "one");
    ensure!(!environment.domains()?.contains(&domain), "the domain is gone");

    objects.patch("one", json!({"spec": {"powerState": "Running"}})).await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    ensure!(inodes()? == before, "the disk is the same");
    // Stopped again and deleted while stopped: the disk goes too.
    objects.patch("one", json!({"spec": {"powerState": "Stopped"}})).await?;
    objects.is("one", ConditionType::Running, false, SOON).await?;
    objects.delete("one", SOON).await?;
    gone(&environment, &objects, &desktop)
}

async fn restart(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("restart").await?;
    objects.template("tiny", TINY).await?;
    let desktop = run_tiny(&objects, "one").await?;
    let started = |desktop: &Desktop| {
        desktop.status.as_ref().and_then(|status| status.domain.as_ref()?.started_at.clone())
    };
    let before = qemu_of(&environment, &desktop)?;
    objects
        .patch("one", json!({"metadata": {"annotations": {gpudesk_crds::RESTARTED_AT_ANNOTATION: "now"}}}))
        .await?;
    let after = until(&objects.desktops(), "one", "it runs again", SOON, |desktop| {
        let allocation = desktop.status.as_ref().and_then(|status| status.allocation.as_ref());
        allocation.is_some_and(|allocation| allocation.restarted_at.as_deref() == Some("now"))
            && condition(desktop, ConditionType::Ready).is_some_and(|ready| ready.status == "True")
    })
    .await?;
    ensure!(started(&after).is_some(), "it says when it was started");
    ensure!(qemu_of(&environment, &after)? != before, "it is another QEMU process");
    objects.delete("one", SOON).await?;
    gone(&environment, &objects, &desktop)
}

/// The QEMU process of a desktop.
fn qemu_of(environment: &RealHost, desktop: &Desktop) -> Result<Identity> {
    let uid = desktop.uid().context("a desktop has a UID")?;
    let mut guests = environment.libvirt().guests().into_iter().filter(|guest| {
        let line = std::fs::read(format!("/proc/{}/cmdline", guest.pid())).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&uid)
    });
    let found = guests.next().context("the desktop has a QEMU process")?;
    ensure!(guests.next().is_none(), "one QEMU process for one desktop");
    Ok(found)
}

async fn guest_dies(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("dies").await?;
    objects.template("tiny", TINY).await?;
    let desktop = run_tiny(&objects, "one").await?;
    let before = qemu_of(&environment, &desktop)?;
    before.end(Signal::KILL, Duration::from_secs(10))?;
    eventually("another QEMU process runs", SOON, || async {
        Ok(qemu_of(&environment, &desktop).ok().filter(|now| *now != before))
    })
    .await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;

    objects.template("never", &TINY.replace("lifecycle: {", "lifecycle: {restartPolicy: Never, ")).await?;
    objects.desktop("two", "templateRef: {name: never}").await?;
    let two = objects.is("two", ConditionType::Ready, true, SOON).await?;
    qemu_of(&environment, &two)?.end(Signal::KILL, Duration::from_secs(10))?;
    objects.says("two", ConditionType::Running, Reason::GuestCrashed, SOON).await?;
    for (name, desktop) in [("one", &desktop), ("two", &two)] {
        objects.delete(name, SOON).await?;
        gone(&environment, &objects, desktop)?;
    }
    Ok(())
}

async fn removed_by_hand(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("removed").await?;
    objects.template("tiny", TINY).await?;
    let virsh = |verb: &str, name: &str| {
        environment.libvirt().virsh([verb, domain_name(objects.namespace(), name).as_str()])
    };
    for name in ["killed", "destroyed", "unseen"] {
        run_tiny(&objects, name).await?;
        virsh("undefine", name)?;
    }
    // The daemon hears how they end, or does not live then.
    let killed = objects.desktops().get("killed").await?;
    let before = qemu_of(&environment, &killed)?;
    before.end(Signal::KILL, Duration::from_secs(10))?;
    eventually("a crash is answered", SOON, || async {
        Ok(qemu_of(&environment, &killed).ok().filter(|now| *now != before))
    })
    .await?;
    virsh("destroy", "destroyed")?;
    let said = objects.says("destroyed", ConditionType::Running, Reason::GuestStopped, SOON).await?;
    ensure!(said.message.contains("powered off on the host"), "{said:?}");
    environment.daemon().await.kill()?;
    virsh("destroy", "unseen")?;
    environment.restart_daemon(None).await?;
    let said = objects.says("unseen", ConditionType::Running, Reason::EndUnseen, SOON).await?;
    ensure!(said.message.contains("how was not seen") && said.message.contains("virsh undefine"), "{said:?}");
    let parked = objects.says("unseen", ConditionType::Allocated, Reason::EndUnseen, SOON).await?;
    ensure!(parked.message.contains("ask for a restart"), "{parked:?}");
    // It starts again as everything that has ended does.
    let at = json!({"metadata": {"annotations": {gpudesk_crds::RESTARTED_AT_ANNOTATION: "now"}}});
    objects.patch("unseen", at).await?;
    objects.is("unseen", ConditionType::Ready, true, SOON).await?;
    for name in ["killed", "destroyed", "unseen"] {
        objects.delete(name, SOON).await?;
    }
    Ok(())
}

async fn mistakes(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("mistakes").await?;
    let secret = environment.allowed_root().join("../secret.img").canonicalize().unwrap_or_else(|_| {
        let path = environment.allowed_root().parent().unwrap().join("secret.img");
        std::fs::write(&path, vec![0; 4096]).unwrap();
        path
    });
    let link = environment.allowed_root().join("link.img");
    symlink(&secret, &link)?;
    let with_disk =
        |disk: &str| TINY.replace("disks: [{name: data, blank: {sizeGiB: 1}}]", &format!("disks: [{disk}]"));
    let host_file = |path: &str| with_disk(&format!("{{name: data, hostFile: {{path: {path}}}}}"));
    let missing_file = format!("{}/missing.img", environment.allowed_root().display());
    // Template, where the reason shows, the reason, and words that its message must have.
    let cases: &[(&str, String, ConditionType, Reason, &[&str])] = &[
        (
            "image",
            with_disk("{name: data, image: {name: not-there}}"),
            ConditionType::DevicesPrepared,
            Reason::ImageNotFound,
            &["not-there", NODE],
        ),
        (
            "outside",
            host_file("/etc/shadow"),
            ConditionType::DevicesPrepared,
            Reason::HostPathNotAllowed,
            &["disks[data].hostFile.path: \"/etc/shadow\"", "regular file below", "nodeDaemon.allowedRoots"],
        ),
        (
            "link",
            host_file(&link.display().to_string()),
            ConditionType::DevicesPrepared,
            Reason::HostPathNotAllowed,
            &["link.img"],
        ),
        (
            "file",
            host_file(&missing_file),
            ConditionType::DevicesPrepared,
            Reason::HostPathNotFound,
            &["missing.img"],
        ),
        (
            "memory",
            TINY.replace("sizeMiB: 64", "sizeMiB: 16000000"),
            ConditionType::Allocated,
            Reason::Unsatisfiable,
            &["16000000", NODE],
        ),
        (
            "profile",
            format!("{TINY}gpus: [{{name: g, profileRef: {{name: no-such-profile}}}}]\n"),
            ConditionType::Allocated,
            Reason::ProfileNotFound,
            &["no-such-profile"],
        ),
        (
            "share",
            format!("{TINY}filesystems: [{{tag: home, source: /srv/home}}]\n"),
            ConditionType::Allocated,
            Reason::NotYetSupported,
            &["filesystems"],
        ),
        (
            "secret",
            TINY.replace("{inline: {userData: '#cloud-config'}}", "{secretRef: {name: no-such-secret}}"),
            ConditionType::DevicesPrepared,
            Reason::SecretNotReadable,
            &["no-such-secret"],
        ),
    ];
    for (name, template, ..) in cases {
        objects.template(name, template).await?;
        objects.desktop(name, &format!("templateRef: {{name: {name}}}")).await?;
    }
    objects.desktop("template", "templateRef: {name: no-such-template}").await?;
    // One without mistake comes last and runs all the same.
    objects.template("tiny", TINY).await?;
    run_tiny(&objects, "good").await?;
    for (name, _, type_, reason, words) in cases {
        let found = objects.says(name, *type_, *reason, SOON).await?;
        for word in *words {
            ensure!(found.message.contains(word), "{name}: {word:?} is missing in {:?}", found.message);
        }
        let desktop = objects.desktops().get(name).await?;
        let ready = condition(&desktop, ConditionType::Ready).context("Ready is there")?;
        ensure!(ready.status == "False" && !ready.message.is_empty(), "{name}: {ready:?}");
    }
    let found = objects.says("template", ConditionType::Allocated, Reason::TemplateNotFound, SOON).await?;
    ensure!(found.message.contains("no-such-template"), "{found:?}");
    // All of them can be deleted, whatever they wait for.
    for name in cases.iter().map(|case| case.0).chain(["template", "good"]) {
        objects.delete(name, SOON).await.with_context(|| name.to_owned())?;
    }
    ensure!(
        !environment.domains()?.iter().any(|domain| domain.starts_with(objects.namespace())),
        "no domain is left"
    );
    Ok(())
}

async fn template_appears(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("late").await?;
    objects.desktop("one", "templateRef: {name: tiny}").await?;
    objects.says("one", ConditionType::Allocated, Reason::TemplateNotFound, SOON).await?;
    objects.template("tiny", TINY).await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    objects.delete("one", SOON).await
}
