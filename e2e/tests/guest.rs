//! A Debian guest from the golden image: cloud-init, guest agent, and a boot id that stays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gpudesk_crds::conditions::ConditionType;
use gpudesk_crds::domain_name;
use gpudesk_e2e::real_host::{RealHost, built};
use gpudesk_e2e::screen::Screen;
use gpudesk_e2e::trials::{Environment, Suite};
use gpudesk_e2e::waiting::eventually;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const BOOT: Duration = Duration::from_mins(5);
const SOON: Duration = Duration::from_secs(90);

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
        .trial("a_debian_guest_is_set_up_answers_and_is_never_restarted", guest)
        .run()
}

struct DebianHost(RealHost);

impl Environment for DebianHost {
    async fn start() -> Result<Self> {
        Ok(Self(RealHost::start_with("debian-host", &[built("e2e/guest/build-image.sh")?]).await?))
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
    let screen = Screen::settled(host.libvirt(), &domain, Duration::from_secs(30)).await?;
    ensure!(screen.painted() > 500, "something stands on the screen");

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

/// Reads a file of the guest through its agent.
fn read_file(host: &RealHost, domain: &str, path: &str) -> Result<String> {
    let agent = |command: Value| -> Result<Value> {
        let answer =
            host.libvirt().virsh(["qemu-agent-command", domain, &command.to_string(), "--timeout", "10"])?;
        Ok(serde_json::from_str::<Value>(&answer)?["return"].take())
    };
    let handle = agent(json!({"execute": "guest-file-open", "arguments": {"path": path}}))?;
    let content = agent(json!({"execute": "guest-file-read", "arguments": {"handle": handle}}))?;
    agent(json!({"execute": "guest-file-close", "arguments": {"handle": handle}}))?;
    let text = STANDARD.decode(content["buf-b64"].as_str().context("the agent gives the file's content")?)?;
    Ok(String::from_utf8(text)?)
}
