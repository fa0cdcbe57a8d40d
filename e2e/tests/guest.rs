//! A Debian guest from the golden image: cloud-init, guest agent, and a boot id that stays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gpudesk_crds::conditions::{self, ConditionType, Reason};
use gpudesk_crds::{GpuNode, domain_name};
use gpudesk_e2e::guest_network::{NAMES, OUTSIDE, Surroundings, heard};
use gpudesk_e2e::processes::run;
use gpudesk_e2e::real_host::{NODE, RealHost, TINY, built};
use gpudesk_e2e::screen::Screen;
use gpudesk_e2e::trials::{Environment, Suite};
use gpudesk_e2e::waiting::eventually;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use rustix::process::Signal;
use serde_json::{Value, json};

const BOOT: Duration = Duration::from_mins(10);
const SOON: Duration = Duration::from_mins(4);

const TEMPLATE: &str = "
cpu: {cores: 2}
memory: {sizeMiB: 1024}
machine: {firmware: Bios}
disks: [{name: system, image: {name: debian-12}}]
cloudInit: {secretRef: {name: first-boot}}
lifecycle: {shutdownGraceSeconds: 20}
";

const USER_DATA: &str = "#cloud-config
write_files:
- path: /run/from-the-secret
  content: seen
";

fn main() -> ExitCode {
    Suite::<DebianHost>::new("guest")
        .trial("a_debian_guest_is_set_up_answers_never_reaches_its_host_and_is_never_restarted", guest)
        .trial("a_header_that_a_guest_writes_opens_no_file_of_the_host", forged_header)
        .run()
}

struct DebianHost(RealHost);

impl Environment for DebianHost {
    async fn start() -> Result<Self> {
        let images = [built("e2e/guest/build-image.sh")?, built("e2e/guest/build-tiny.sh")?];
        Ok(Self(RealHost::start_with("debian-host", &images).await?))
    }

    async fn stop(self) -> Result<()> {
        self.0.stop().await
    }

    fn collect_logs(&self, suite: &str) -> Result<Option<std::path::PathBuf>> {
        self.0.collect_logs(suite)
    }
}

async fn guest(environment: Arc<DebianHost>) -> Result<()> {
    let host = &environment.0;
    let objects = host.objects("guest").await?;
    // Its first-boot configuration is in a Secret that only this node may read, and only now.
    let secrets: Api<Secret> = Api::namespaced(host.cluster().client().clone(), objects.namespace());
    let secret = Secret {
        metadata: ObjectMeta { name: Some("first-boot".into()), ..ObjectMeta::default() },
        string_data: Some([("userData".to_owned(), USER_DATA.to_owned())].into()),
        ..Secret::default()
    };
    secrets.create(&PostParams::default(), &secret).await?;
    objects.template("debian", TEMPLATE).await?;
    objects.desktop("one", "templateRef: {name: debian}").await?;
    let desktop = objects.is("one", ConditionType::GuestReady, true, BOOT).await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    let domain = domain_name(objects.namespace(), "one");

    let written = eventually("cloud-init wrote the file of the Secret", BOOT, || async {
        Ok(read_file(host, &domain, "/run/from-the-secret").ok())
    })
    .await?;
    ensure!(written.trim() == "seen", "{written:?}");
    ensure!(
        read_file(host, &domain, "/etc/hostname")?.trim() == "one",
        "the host name is the desktop's name"
    );
    let screen = Screen::settled(host.libvirt(), &domain, Duration::from_mins(2)).await?;
    ensure!(screen.painted() > 500, "something stands on the screen");
    reaches_out_and_never_the_host(host, &domain).await?;

    let boot_id = read_file(host, &domain, "/proc/sys/kernel/random/boot_id")?;
    host.restart_daemon(None).await?;
    host.operator().await.kill()?;
    host.operator().await.restart()?;
    host.operator().await.wait_ready().await?;
    // Everything at once, as in an upgrade that goes wrong.
    host.operator().await.kill()?;
    host.restart_daemon(None).await?;
    host.operator().await.restart()?;
    host.operator().await.wait_ready().await?;
    // A desktop after it shows that both work again.
    objects
        .template(
            "other",
            &TEMPLATE
                .replace("sizeMiB: 1024", "sizeMiB: 256")
                .replace("lifecycle:", "guestAgent: false\nlifecycle:"),
        )
        .await?;
    objects.desktop("two", "templateRef: {name: other}").await?;
    objects.is("two", ConditionType::Running, true, SOON).await?;
    ensure!(
        read_file(host, &domain, "/proc/sys/kernel/random/boot_id")? == boot_id,
        "the guest was not restarted"
    );
    objects.is("one", ConditionType::Ready, true, SOON).await?;

    objects.delete("two", SOON).await?;
    objects.delete("one", SOON).await?;
    ensure!(!host.domains()?.contains(&domain), "domain {domain} is left");
    let folder = host.desktop_folder(&desktop.uid().context("a desktop has a UID")?);
    ensure!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}

/// What the guest's network leads to, tried from inside the guest.
async fn reaches_out_and_never_the_host(host: &RealHost, domain: &str) -> Result<()> {
    let libvirt = host.libvirt();
    let _around = Surroundings::around(libvirt)?;
    let nodes: Api<GpuNode> = Api::all(host.cluster().client().clone());
    let filtered = nodes.get(NODE).await?.status.unwrap_or_default().conditions;
    ensure!(conditions::is_true(&filtered, ConditionType::GuestNetworkFiltered), "{filtered:?}");
    let allowed = || OUTSIDE.into_iter().chain([NAMES]).map(str::to_owned);
    let open = |heard: &BTreeMap<String, String>| allowed().all(|address| heard[&address] == "tcp udp");
    // The nameserver has come since the filter was made: that is seen within seconds.
    eventually("the guest reaches out, and the nameserver of its host", SOON, || async {
        let heard = heard(libvirt, domain, allowed()).await?;
        println!("{heard:?}");
        Ok(open(&heard).then_some(()))
    })
    .await?;
    let forbidden = Surroundings::forbidden(libvirt)?;
    ensure!(forbidden.len() > 15, "{forbidden:?}");
    let silent = async || -> Result<()> {
        let heard = heard(libvirt, domain, forbidden.iter().cloned()).await?;
        let open: Vec<_> = heard.iter().filter(|(_, protocols)| !protocols.is_empty()).collect();
        ensure!(open.is_empty(), "the guest reaches its host: {open:?}");
        Ok(())
    };
    silent().await?;
    // Without the filter all this would be open: the test would see it.
    let rules = run(libvirt.inside("nft").args(["list", "ruleset"]))?;
    host.daemon().await.process().signal(Signal::STOP)?;
    run(libvirt.inside("nft").args(["flush", "ruleset"]))?;
    let open = eventually("the listeners can be heard at all", SOON, || async {
        let heard = heard(libvirt, domain, ["10.0.2.2 7777".to_owned(), "fec0::2 7777".to_owned()]).await?;
        Ok(heard.values().all(|protocols| protocols == "tcp udp").then_some(()))
    })
    .await;
    host.daemon().await.process().signal(Signal::CONT)?;
    open?;
    // And somebody who flushes the rules of the host under a running guest does not open it for long.
    eventually("the rules are put back", SOON, || async {
        Ok((run(libvirt.inside("nft").args(["list", "ruleset"]))? == rules).then_some(()))
    })
    .await?;
    silent().await
}

/// A guest writes a qcow2 header into its raw file, and another desktop names the file as Qcow2.
async fn forged_header(environment: Arc<DebianHost>) -> Result<()> {
    let host = &environment.0;
    let objects = host.objects("forger").await?;
    let golden = host.libvirt().images()?.join("debian-12.qcow2");
    let secret = host.allowed_root().parent().context("a parent")?.join("secret-of-the-host");
    std::fs::write(&secret, "secret")?;
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600))?;
    let file = host.allowed_root().join("guest.raw");
    std::fs::write(&file, vec![0; 1 << 20])?;
    let state = |path: &Path| -> Result<(u32, u32, u32, i64, u64)> {
        let it = path.metadata()?;
        Ok((it.uid(), it.gid(), it.mode(), it.mtime(), it.len()))
    };
    let before = (state(&golden)?, state(&secret)?);

    let disk = format!("{{name: raw, hostFile: {{path: {}}}}}", file.display());
    let disks = format!("disks: [{{name: system, image: {{name: debian-12}}}}, {disk}]");
    let template = TEMPLATE.replace("disks: [{name: system, image: {name: debian-12}}]", &disks);
    let inline = "cloudInit: {inline: {userData: '#cloud-config'}}";
    objects
        .template("forger", &template.replace("cloudInit: {secretRef: {name: first-boot}}", inline))
        .await?;
    objects.desktop("forger", "templateRef: {name: forger}").await?;
    objects.is("forger", ConditionType::GuestReady, true, BOOT).await?;
    ensure!(state(&golden)? == before.0, "the golden image is not given away");

    let forged = host.allowed_root().join("forged");
    let backing = ["create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b"];
    run(Command::new("qemu-img").args(backing).args([&secret, &forged]).arg("1G"))?;
    let mut header = std::fs::read(&forged)?;
    header.truncate(4096);
    let domain = domain_name(objects.namespace(), "forger");
    let open = json!({"execute": "guest-file-open", "arguments": {"path": "/dev/vdb", "mode": "r+"}});
    let handle = agent(host, &domain, &open)?;
    let written = json!({"handle": handle, "buf-b64": STANDARD.encode(&header)});
    agent(host, &domain, &json!({"execute": "guest-file-write", "arguments": written}))?;
    agent(host, &domain, &json!({"execute": "guest-file-close", "arguments": {"handle": handle}}))?;
    eventually("the header is in the file", SOON, || async {
        Ok(std::fs::read(&file)?.starts_with(b"QFI\xfb").then_some(()))
    })
    .await?;

    let disk = format!("{{name: d, hostFile: {{path: {}, format: Qcow2}}}}", file.display());
    let reader = TINY.replace("{name: data, blank: {sizeGiB: 1}}", &disk);
    objects.template("reader", &reader).await?;
    for when in ["while the forger runs", "once the forger is gone"] {
        objects.desktop("reader", "templateRef: {name: reader}").await?;
        let said = objects.says("reader", ConditionType::DevicesPrepared, Reason::ImageInvalid, SOON).await?;
        ensure!(said.message.contains("secret-of-the-host"), "{when}: {said:?}");
        objects.delete("reader", SOON).await?;
        ensure!((state(&golden)?, state(&secret)?) == before, "{when}: a file of the host was touched");
        if when.starts_with("while") {
            objects.delete("forger", SOON).await?;
        }
    }
    ensure!(std::fs::read(&secret)? == b"secret");
    Ok(())
}

/// What the guest's agent answers.
fn agent(host: &RealHost, domain: &str, command: &Value) -> Result<Value> {
    let answer =
        host.libvirt().virsh(["qemu-agent-command", domain, &command.to_string(), "--timeout", "60"])?;
    Ok(serde_json::from_str::<Value>(&answer)?["return"].take())
}

/// Reads a file of the guest through its agent.
fn read_file(host: &RealHost, domain: &str, path: &str) -> Result<String> {
    let agent = |command: Value| agent(host, domain, &command);
    let handle = agent(json!({"execute": "guest-file-open", "arguments": {"path": path}}))?;
    let content = agent(json!({"execute": "guest-file-read", "arguments": {"handle": handle}}))?;
    agent(json!({"execute": "guest-file-close", "arguments": {"handle": handle}}))?;
    let text = STANDARD.decode(content["buf-b64"].as_str().context("the agent gives the file's content")?)?;
    Ok(String::from_utf8(text)?)
}
