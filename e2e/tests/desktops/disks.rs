//! Disks against guests and templates that mean harm: what is the node's stays the node's.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::{ConditionType, Reason};
use gpudesk_crds::domain_name;
use gpudesk_e2e::processes::run;
use gpudesk_e2e::real_host::{RealHost, TINY};
use kube::ResourceExt;
use rustix::process::Signal;
use serde_json::json;

use super::{SOON, qemu_of};

/// The tiny guest with these disks instead of its own.
fn with_disks(disks: &str) -> String {
    TINY.replace("disks: [{name: data, blank: {sizeGiB: 1}}]", &format!("disks: [{disks}]"))
}

fn qemu_img<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
    run(Command::new("qemu-img").args(arguments)).map(drop)
}

/// A file of the node's owner that everybody may read.
fn readable(path: &Path) -> Result<String> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))?;
    Ok(path.display().to_string())
}

/// A golden image with a disk of this size.
fn golden(environment: &RealHost, name: &str, size: &str) -> Result<PathBuf> {
    let path = environment.libvirt().images()?.join(format!("{name}.qcow2"));
    qemu_img(["create", "-q", "-f", "qcow2", &path.display().to_string(), size])?;
    readable(&path)?;
    Ok(path)
}

/// Whose a file is, what it may, and what is in it.
fn state(path: &Path) -> Result<(u32, u32, u32, Vec<u8>)> {
    let metadata = path.metadata().with_context(|| path.display().to_string())?;
    Ok((metadata.uid(), metadata.gid(), metadata.mode(), std::fs::read(path)?))
}

pub(crate) async fn ownership(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("ownership").await?;
    let image = golden(&environment, "kept", "64M")?;
    let kernel = environment.libvirt().images()?.join("tiny.elf");
    let [read, written] = ["read.raw", "written.raw"].map(|name| environment.allowed_root().join(name));
    for file in [&read, &written] {
        std::fs::write(file, vec![0; 1 << 20])?;
        readable(file)?;
    }
    let kept = [image, kernel, read.clone()];
    let before = kept.iter().map(|path| state(path)).collect::<Result<Vec<_>>>()?;
    let unchanged = |when: &str| -> Result<()> {
        for (path, before) in kept.iter().zip(&before) {
            ensure!(state(path)? == *before, "{when}: {} is another's or another", path.display());
        }
        Ok(())
    };
    objects
        .template(
            "owned",
            &with_disks(&format!(
                "{{name: system, image: {{name: kept}}}}, {{name: r, hostFile: {{path: {}, readOnly: true}}}}, \
                 {{name: w, hostFile: {{path: {}}}}}",
                read.display(),
                written.display()
            )),
        )
        .await?;
    objects.desktop("one", "templateRef: {name: owned}").await?;
    let desktop = objects.is("one", ConditionType::Ready, true, SOON).await?;
    unchanged("while it runs")?;
    ensure!(written.metadata()?.uid() != 0, "what the guest writes is QEMU's while it runs");
    let xml = environment.libvirt().virsh(["dumpxml", &domain_name(objects.namespace(), "one")])?;
    let (images, ends) = (xml.matches("<driver name='qemu'").count(), xml.matches("<backingStore/>").count());
    ensure!(images == 4 && ends == 4, "each of {images} chains has an end: {ends} in {xml}");

    environment.restart_daemon(None).await?;
    let first = qemu_of(&environment, &desktop)?;
    unchanged("after the daemon was killed")?;
    first.end(Signal::KILL, Duration::from_secs(10))?;
    gpudesk_e2e::waiting::eventually("another QEMU process runs", SOON, || async {
        Ok(qemu_of(&environment, &desktop).ok().filter(|now| *now != first))
    })
    .await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    unchanged("after QEMU was killed")?;
    objects.patch("one", json!({"spec": {"powerState": "Stopped"}})).await?;
    objects.says("one", ConditionType::Running, Reason::Stopped, SOON).await?;
    unchanged("once it is stopped")?;
    ensure!(written.metadata()?.uid() == 0, "what the guest wrote is root's again");
    objects.delete("one", SOON).await?;
    unchanged("once it is gone")
}

pub(crate) async fn forged_headers(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("forged").await?;
    let secret = environment.allowed_root().parent().context("a parent")?.join("shadow");
    std::fs::write(&secret, vec![b's'; 1 << 20])?;
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600))?;
    let before = state(&secret)?;
    let target = secret.display().to_string();
    let json =
        format!("json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{target}\"}}}}");
    let backed = |name: &str| -> Vec<String> { ["-u", "-F", "raw", "-b", name].map(str::to_owned).to_vec() };
    let forgeries = [
        ("backing", backed(&target), target.as_str()),
        ("json", backed(&json), "json:"),
        ("device", backed("/dev/vda"), "/dev/vda"),
        ("nbd", backed("nbd://127.0.0.1:1/x"), "nbd://127.0.0.1:1/x"),
        ("old", [backed(&target), vec!["-o".into(), "compat=0.10".into()]].concat(), target.as_str()),
        ("data", vec!["-o".into(), format!("data_file={target}")], "external data file"),
    ];
    for (name, arguments, _) in &forgeries {
        let file = environment.allowed_root().join(format!("{name}.img"));
        let file = file.display().to_string();
        let create = ["create", "-q", "-f", "qcow2"].into_iter();
        qemu_img(create.chain(arguments.iter().map(String::as_str)).chain([file.as_str(), "1M"]))?;
        // qemu-img made the data file anew.
        std::fs::write(&secret, &before.3)?;
        readable(Path::new(&file))?;
        objects
            .template(name, &with_disks(&format!("{{name: d, hostFile: {{path: {file}, format: Qcow2}}}}")))
            .await?;
        objects.desktop(name, &format!("templateRef: {{name: {name}}}")).await?;
    }
    for (name, _, word) in &forgeries {
        let said = objects.says(name, ConditionType::DevicesPrepared, Reason::ImageInvalid, SOON).await?;
        ensure!(
            said.message.contains(word) && said.message.contains("disks[d].hostFile"),
            "{name}: {said:?}"
        );
        ensure!(!environment.domains()?.contains(&domain_name(objects.namespace(), name)));
        objects.delete(name, SOON).await?;
    }
    ensure!(state(&secret)? == before, "the file that the headers name is another's or another");
    Ok(())
}

pub(crate) async fn shared_files(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("shared").await?;
    let file = environment.allowed_root().join("shared.raw");
    std::fs::write(&file, vec![0; 1 << 20])?;
    let path = readable(&file)?;
    let second = environment.allowed_root().join("second-name.raw");
    for (name, options) in [("writer", ""), ("reader", ", readOnly: true")] {
        let disk = format!("{{name: d, hostFile: {{path: {path}{options}}}}}");
        objects.template(name, &with_disks(&disk)).await?;
    }
    objects.desktop("one", "templateRef: {name: reader}").await?;
    objects.desktop("two", "templateRef: {name: reader}").await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    let two = objects.is("two", ConditionType::Ready, true, SOON).await?;
    // A daemon that has just started knows it too.
    environment.restart_daemon(None).await?;
    objects.desktop("three", "templateRef: {name: writer}").await?;
    let said = objects.says("three", ConditionType::Running, Reason::HostPathNotAllowed, SOON).await?;
    // Whose it is may be another tenant: that stands in the node's log.
    for word in [path.as_str(), "in use by another desktop"] {
        ensure!(said.message.contains(word), "{word}: {said:?}");
    }
    qemu_of(&environment, &two)?;
    objects.delete("one", SOON).await?;
    objects.delete("two", SOON).await?;
    objects.is("three", ConditionType::Ready, true, SOON).await?;
    objects.delete("three", SOON).await?;

    std::fs::hard_link(&file, &second)?;
    objects.desktop("four", "templateRef: {name: writer}").await?;
    let said = objects.says("four", ConditionType::DevicesPrepared, Reason::HostPathNotAllowed, SOON).await?;
    ensure!(said.message.contains("hard links"), "{said:?}");
    objects.delete("four", SOON).await
}

pub(crate) async fn golden_images(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("golden").await?;
    let image = golden(&environment, "three", "3G")?;
    let sized = |size: &str| with_disks(&format!("{{name: d, image: {{name: three{size}}}}}"));
    objects.template("small", &sized(", sizeGiB: 2")).await?;
    objects.desktop("small", "templateRef: {name: small}").await?;
    let said = objects.says("small", ConditionType::DevicesPrepared, Reason::InvalidSpec, SOON).await?;
    ensure!(said.message.contains("2 GiB") && said.message.contains("3221225472"), "{said:?}");
    objects.delete("small", SOON).await?;

    objects.template("whole", &sized("")).await?;
    objects.desktop("one", "templateRef: {name: whole}").await?;
    let desktop = objects.is("one", ConditionType::Ready, true, SOON).await?;
    // As an earlier version left it: no record of the image.
    let folder = environment.desktop_folder(&desktop.uid().context("a UID")?);
    objects.patch("one", json!({"spec": {"powerState": "Stopped"}})).await?;
    objects.says("one", ConditionType::Running, Reason::Stopped, SOON).await?;
    std::fs::remove_file(folder.join("golden-d.json"))?;
    objects.patch("one", json!({"spec": {"powerState": "Running"}})).await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    ensure!(folder.join("golden-d.json").exists(), "it is noted at the next start");

    objects.patch("one", json!({"spec": {"powerState": "Stopped"}})).await?;
    objects.says("one", ConditionType::Running, Reason::Stopped, SOON).await?;
    qemu_img(["resize", "-q", &image.display().to_string(), "4G"])?;
    objects.patch("one", json!({"spec": {"powerState": "Running"}})).await?;
    let said = objects.says("one", ConditionType::DevicesPrepared, Reason::ImageInvalid, SOON).await?;
    ensure!(said.message.contains("changed") && said.message.contains("three.qcow2"), "{said:?}");
    objects.delete("one", SOON).await?;

    // One that QEMU's user cannot read says whose fault it is.
    let closed = golden(&environment, "closed", "64M")?;
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o600))?;
    objects.template("closed", &with_disks("{name: d, image: {name: closed}}")).await?;
    objects.desktop("closed", "templateRef: {name: closed}").await?;
    let said = objects.says("closed", ConditionType::Running, Reason::ImageInvalid, SOON).await?;
    for word in ["closed.qcow2", "0600", "chmod o+r"] {
        ensure!(said.message.contains(word), "{word}: {said:?}");
    }
    ensure!(closed.metadata()?.uid() == 0, "it is root's all the same");
    objects.delete("closed", SOON).await
}

pub(crate) async fn vanished(environment: Arc<RealHost>) -> Result<()> {
    let objects = environment.objects("vanished").await?;
    objects.template("tiny", TINY).await?;
    objects.desktop("one", "templateRef: {name: tiny}").await?;
    let desktop = objects.is("one", ConditionType::Ready, true, SOON).await?;
    let uid = desktop.uid().context("a UID")?;
    let folder = environment.desktop_folder(&uid);
    let disk = folder.join("disk-data.qcow2");
    let power = async |state: &str| objects.patch("one", json!({"spec": {"powerState": state}})).await;
    let stop = async || -> Result<()> {
        power("Stopped").await?;
        objects.says("one", ConditionType::Running, Reason::Stopped, SOON).await.map(drop)
    };
    let refused = async || -> Result<()> {
        power("Running").await?;
        let said = objects.says("one", ConditionType::DevicesPrepared, Reason::DiskMissing, SOON).await?;
        ensure!(said.message.contains(&disk.display().to_string()), "{said:?}");
        ensure!(!disk.exists(), "an empty disk is in its place");
        Ok(())
    };
    stop().await?;
    std::fs::remove_file(&disk)?;
    refused().await?;
    // Its user's word.
    let id = objects.desktops().get("one").await?.allocation().and_then(|held| held.id).context("an id")?;
    let word = json!({gpudesk_crds::ABANDON_DISKS_ANNOTATION: id.to_string()});
    objects.patch("one", json!({"metadata": {"annotations": word}})).await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;

    // A word that stays would be taken for one about the disks of that decision, wherever they are.
    let no_word = json!({gpudesk_crds::ABANDON_DISKS_ANNOTATION: null});
    objects.patch("one", json!({"metadata": {"annotations": no_word}})).await?;

    // As after a boot at which the file system with the state folder was not mounted.
    stop().await?;
    let inode = disk.metadata()?.ino();
    let used = folder.parent().and_then(Path::parent).context("a parent")?.join(format!("disks/{uid}.json"));
    let aside = folder.with_extension("aside");
    std::fs::rename(&folder, &aside)?;
    std::fs::remove_file(&used)?;
    environment.restart_daemon(None).await?;
    refused().await?;
    ensure!(!folder.exists(), "something was made in place of what is not mounted");
    std::fs::rename(&aside, &folder)?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    ensure!(disk.metadata()?.ino() == inode, "it is another disk");
    objects.delete("one", SOON).await?;
    ensure!(!used.exists(), "it is forgotten with its desktop");
    Ok(())
}
