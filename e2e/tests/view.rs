//! Screens: no port on the node, and the way in by a ticket of the API.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::join_all;
use gpudesk_crds::conditions::ConditionType;
use gpudesk_crds::relay::{Refusal, VIEW_TICKET_ANNOTATION, ViewTicket};
use gpudesk_crds::{Desktop, domain_name};
use gpudesk_e2e::cluster::SYSTEM_NAMESPACE;
use gpudesk_e2e::identity::service_account_kubeconfig;
use gpudesk_e2e::objects::{Objects, condition};
use gpudesk_e2e::programs::binaries;
use gpudesk_e2e::real_host::{RealHost, TINY};
use gpudesk_e2e::screen::Screen;
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::{eventually, until};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::RoleBinding;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use kubectl_desktop::view::dial::{self, Connection, Via};
use kubectl_desktop::view::rfb::Rfb;
use kubectl_desktop::view::run::ViewError;
use kubectl_desktop::view::target::{self, Target};
use kubectl_desktop::view::ticket::Ticket;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(90);

/// Held by each trial: some start the daemon again, and some crowd its relay.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn main() -> ExitCode {
    Suite::<RealHost>::new("view")
        .trial("a_screen_stands_on_no_port_and_is_seen_and_used_by_the_plugin", seen)
        .trial("a_ticket_opens_one_desktop_once_and_in_time", tickets)
        .trial("who_may_not_patch_the_desktop_sees_nothing", rights)
        .trial("strangers_and_impostors_get_nowhere", strangers)
        .trial("why_there_is_no_screen_is_said", reasons)
        .trial("a_machine_of_an_earlier_version_runs_on_and_says_that_it_is_open", older)
        .run()
}

async fn run_tiny(objects: &Objects, name: &str) -> Result<Desktop> {
    objects.desktop(name, "templateRef: {name: tiny}").await?;
    objects.is(name, ConditionType::Ready, true, SOON).await
}

/// Waits until the guest has drawn its test card.
async fn drawn(host: &RealHost, objects: &Objects, name: &str) -> Result<()> {
    let domain = domain_name(objects.namespace(), name);
    let screen = Screen::settled(host.libvirt(), &domain, SOON).await?;
    ensure!(screen.painted() > 500, "nothing stands on the screen of {domain}");
    Ok(())
}

fn plugin(kubeconfig: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binaries()?.join("kubectl-desktop"));
    command.args(arguments).env("KUBECONFIG", kubeconfig).stdin(Stdio::null());
    Ok(command)
}

async fn ended(mut command: Command) -> Result<Output> {
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A picture of the screen, by the plugin.
async fn picture(host: &RealHost, namespace: &str, name: &str) -> Result<Screen> {
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_str().context("a path that is text")?;
    let kubeconfig = host.cluster().control_plane().kubeconfig();
    let output = ended(plugin(kubeconfig, &["view", name, "-n", namespace, "--screenshot", path])?).await?;
    ensure!(output.status.success(), "{}: {}", output.status, said(&output));
    Screen::read(&std::fs::read(path)?)
}

/// Ends with its owner.
struct Viewing(Child);

impl Drop for Viewing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The plugin with a port, and that port's address.
fn viewing(kubeconfig: &Path, namespace: &str, name: &str) -> Result<(Viewing, String)> {
    let mut command = plugin(kubeconfig, &["view", name, "-n", namespace])?;
    let mut child = Viewing(command.stdout(Stdio::piped()).spawn()?);
    let mut address = String::new();
    BufReader::new(child.0.stdout.take().context("it is piped")?).read_line(&mut address)?;
    ensure!(!address.is_empty(), "the plugin printed no address: {:?}", child.0.wait()?);
    Ok((child, address.trim().to_owned()))
}

/// TCP sockets on which a process listens, as the kernel lists them.
fn listening(pid: u32) -> Result<Vec<String>> {
    let mut own = vec![];
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
        own.extend(inode.map(str::to_owned));
    }
    let mut found = vec![];
    for table in ["tcp", "tcp6"] {
        for line in std::fs::read_to_string(format!("/proc/{pid}/net/{table}"))?.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(3) == Some(&"0A")
                && fields.get(9).is_some_and(|inode| own.iter().any(|own| own == inode))
            {
                found.push(line.to_owned());
            }
        }
    }
    Ok(found)
}

/// What somebody else on this computer gets of a port that is open for a viewer: its end, and not a byte.
fn another_user_is_closed(address: &str) -> Result<()> {
    let script = format!("exec 3<>/dev/tcp/{}; head -c 1 <&3 | wc -c", address.replace(':', "/"));
    let output = Command::new("bash").args(["-c", &script]).uid(65_534).output()?;
    ensure!(String::from_utf8_lossy(&output.stdout).trim() == "0", "{output:?}");
    Ok(())
}

async fn seen(host: Arc<RealHost>) -> Result<()> {
    let _alone = ALONE.lock().await;
    let objects = host.objects("seen").await?;
    objects.template("tiny", TINY).await?;
    let desktop = run_tiny(&objects, "one").await?;
    let consoles = desktop.status.clone().unwrap_or_default().consoles;
    let console = consoles.first().context("it has a console")?;
    ensure!(console.address.is_empty() && console.relay.is_some(), "{console:?}");
    let guests = host.libvirt().guests();
    ensure!(!guests.is_empty(), "QEMU runs");
    for guest in guests {
        let listening = listening(guest.pid())?;
        ensure!(listening.is_empty(), "QEMU listens: {listening:?}");
    }
    let words = condition(&desktop, ConditionType::Running).context("Running is there")?.message.clone();
    ensure!(words.is_empty(), "nothing is said of an open port: {words}");

    drawn(&host, &objects, "one").await?;
    let before = picture(&host, objects.namespace(), "one").await?;
    ensure!(before.painted() > 500, "the test card stands on the screen");
    let kubeconfig = host.cluster().control_plane().kubeconfig().to_owned();
    let (mut plugin, address) = viewing(&kubeconfig, objects.namespace(), "one")?;
    ensure!(address.starts_with("127.0.0.1:"), "{address}");
    another_user_is_closed(&address)?;
    let mut rfb = Rfb::open(TcpStream::connect(&address).await?).await?;
    let first = rfb.picture().await?;
    ensure!(TcpStream::connect(&address).await.is_err(), "one viewer, and nobody else");
    rfb.press(u32::from(b'a')).await?;
    for _ in 0..100 {
        if rfb.picture().await? != first {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(rfb.picture().await? != first, "a key changes the picture");
    // Two look at the same screen.
    ensure!(picture(&host, objects.namespace(), "one").await? != before, "the other sees it too");
    drop(rfb);
    let status = tokio::task::spawn_blocking(move || plugin.0.wait()).await??;
    ensure!(status.success(), "the plugin ends well with its viewer: {status}");

    // Nothing of it is left in the Desktop, and nobody else's field was touched.
    let after = objects.desktops().get("one").await?;
    ensure!(!after.annotations().contains_key(VIEW_TICKET_ANNOTATION), "{:?}", after.annotations());
    let left = after.managed_fields().iter().any(|entry| {
        entry.manager.as_deref().is_some_and(|manager| manager.starts_with("kubectl-desktop-view"))
    });
    ensure!(
        !left && after.metadata.generation == desktop.metadata.generation,
        "{:?}",
        after.managed_fields()
    );

    // Where the daemon starts again it has another key, and the way is there again.
    host.restart_daemon(None).await?;
    eventually("it is seen after a restart of the daemon", SOON, || async {
        Ok(picture(&host, objects.namespace(), "one").await.ok())
    })
    .await?;
    // The machine ends, and so does the view.
    let (mut plugin, address) = viewing(&kubeconfig, objects.namespace(), "one")?;
    let _rfb = Rfb::open(TcpStream::connect(&address).await?).await?;
    objects.delete("one", SOON).await?;
    let status = tokio::task::spawn_blocking(move || plugin.0.wait()).await??;
    ensure!(status.code() == Some(1), "{status}");
    Ok(())
}

async fn target_of(objects: &Objects, name: &str) -> Result<Target> {
    target::of(&objects.desktops().get(name).await?).map_err(anyhow::Error::msg)
}

async fn knock(host: &RealHost, target: &Target, secret: &str) -> Result<Connection, ViewError> {
    let client = host.cluster().client();
    let connection = dial::connect(client, SYSTEM_NAMESPACE, target, Via::Direct).await?;
    dial::enter(connection, target, secret).await
}

fn refused<T>(outcome: Result<T, ViewError>, reason: Refusal) -> Result<()> {
    match outcome {
        Err(ViewError::Refused(said, _)) if said == reason => Ok(()),
        Err(other) => bail!("refused, but not as {reason:?}: {other}"),
        Ok(_) => bail!("let in, and should be refused as {reason:?}"),
    }
}

async fn tickets(host: Arc<RealHost>) -> Result<()> {
    let _alone = ALONE.lock().await;
    let objects = host.objects("tickets").await?;
    objects.template("tiny", TINY).await?;
    run_tiny(&objects, "one").await?;
    run_tiny(&objects, "two").await?;
    let (one, two) = (target_of(&objects, "one").await?, target_of(&objects, "two").await?);
    let client = host.cluster().client();

    refused(knock(&host, &one, "").await, Refusal::NoTicket)?;
    let ticket = Ticket::write(client, &one).await?;
    refused(knock(&host, &one, &"0".repeat(64)).await, Refusal::NoTicket)?;
    // Of another desktop: neither there, nor with both in one request, nor copied over.
    refused(knock(&host, &two, &ticket.secret).await, Refusal::NoTicket)?;
    let mixed = Target { uid: two.uid.clone(), ..one.clone() };
    refused(knock(&host, &mixed, &ticket.secret).await, Refusal::NoTicket)?;
    let text = objects.desktops().get("one").await?.annotations()[VIEW_TICKET_ANNOTATION].clone();
    objects.patch("two", json!({"metadata": {"annotations": {VIEW_TICKET_ANNOTATION: text}}})).await?;
    refused(knock(&host, &two, &ticket.secret).await, Refusal::NoTicket)?;
    // Once, whoever is first.
    let racers = join_all((0..10).map(|_| knock(&host, &one, &ticket.secret))).await;
    let (good, bad): (Vec<_>, Vec<_>) = racers.into_iter().partition(Result::is_ok);
    ensure!(good.len() == 1, "{} of 10 were let in", good.len());
    for outcome in bad {
        refused(outcome, Refusal::NoTicket)?;
    }
    drop(good);
    refused(knock(&host, &one, &ticket.secret).await, Refusal::NoTicket)?;
    ticket.remove().await;

    // In time.
    for (end, reason) in [(-1, Refusal::Expired), (3600, Refusal::Expired)] {
        let end = Time(jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + end)?);
        let content = serde_json::to_string(&ViewTicket::new(&one.uid, &one.relay.public_key, "s", end))?;
        objects.patch("one", json!({"metadata": {"annotations": {VIEW_TICKET_ANNOTATION: content}}})).await?;
        refused(knock(&host, &one, "s").await, reason)?;
    }
    // A ticket of the daemon before this one.
    let ticket = Ticket::write(client, &one).await?;
    host.restart_daemon(None).await?;
    let renewed = until(&objects.desktops(), "one", "the relay is another", SOON, |desktop| {
        target::of(desktop).is_ok_and(|now| now.relay != one.relay)
    })
    .await?;
    let renewed = target::of(&renewed).map_err(anyhow::Error::msg)?;
    refused(knock(&host, &renewed, &ticket.secret).await, Refusal::NoTicket)?;

    // A second machine of the same name does not open with what was said of the first.
    let ticket = Ticket::write(client, &renewed).await?;
    objects.delete("one", SOON).await?;
    run_tiny(&objects, "one").await?;
    refused(knock(&host, &renewed, &ticket.secret).await, Refusal::NoTicket)?;
    for name in ["one", "two"] {
        objects.delete(name, SOON).await?;
    }
    Ok(())
}

/// A kubeconfig of somebody with a role in a namespace.
async fn user(host: &RealHost, namespace: &str, name: &str, role: &str) -> Result<PathBuf> {
    let client = host.cluster().client();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let account = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    accounts.create(&PostParams::default(), &account).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    });
    bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await?;
    let (control_plane, state) = (host.cluster().control_plane(), host.cluster().state());
    service_account_kubeconfig(control_plane, state, namespace, name, None).await
}

async fn rights(host: Arc<RealHost>) -> Result<()> {
    let _alone = ALONE.lock().await;
    let objects = host.objects("rights").await?;
    objects.template("tiny", TINY).await?;
    run_tiny(&objects, "one").await?;
    drawn(&host, &objects, "one").await?;
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_str().context("a path that is text")?;
    let arguments = ["view", "one", "-n", objects.namespace(), "--screenshot", path];
    let editor = user(&host, objects.namespace(), "edith", "gpudesk-edit").await?;
    let looker = user(&host, objects.namespace(), "vic", "gpudesk-view").await?;
    eventually("the role is known", SOON, || async {
        Ok(ended(plugin(&editor, &arguments)?).await?.status.success().then_some(()))
    })
    .await?;
    ensure!(
        Screen::read(&std::fs::read(path)?)?.painted() > 500,
        "who may edit sees it, without a right on nodes"
    );
    let refused = eventually("the role is known", SOON, || async {
        let output = ended(plugin(&looker, &arguments)?).await?;
        Ok(said(&output).contains("patch").then_some(output))
    })
    .await?;
    let words = said(&refused);
    ensure!(refused.status.code() == Some(1) && words.contains("you may not open the screen"), "{words}");
    let nobody = user(&host, objects.namespace(), "nobody", "gpudesk-profile-reader").await?;
    let output = ended(plugin(&nobody, &arguments)?).await?;
    ensure!(output.status.code() == Some(3) && said(&output).contains("forbidden"), "{}", said(&output));
    let by_pod = ["view", "one", "-n", objects.namespace(), "--screenshot", path, "--via", "port-forward"];
    let output = ended(plugin(&editor, &by_pod)?).await?;
    let words = said(&output);
    ensure!(
        output.status.code() == Some(1) && words.contains("a port-forward: pods is forbidden"),
        "{words}"
    );
    objects.delete("one", SOON).await
}

async fn strangers(host: Arc<RealHost>) -> Result<()> {
    let _alone = ALONE.lock().await;
    let objects = host.objects("strangers").await?;
    objects.template("tiny", TINY).await?;
    run_tiny(&objects, "one").await?;
    drawn(&host, &objects, "one").await?;
    let one = target_of(&objects, "one").await?;
    let mut idle = vec![];
    for _ in 0..200 {
        idle.push(TcpStream::connect(&one.relay.address).await?);
    }
    for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], b"RFB 003.008\n"] {
        let mut garbage = TcpStream::connect(&one.relay.address).await?;
        garbage.write_all(words).await?;
        let mut answer = vec![];
        let _ = garbage.read_to_end(&mut answer).await;
        ensure!(!answer.starts_with(b"RFB"), "{answer:?}");
    }
    let ticket = Ticket::write(host.cluster().client(), &one).await?;
    let screen =
        knock(&host, &one, &ticket.secret).await.context("a good one comes in beside 200 idle ones")?;
    ensure!(
        Rfb::open(screen).await?.picture().await?.rgb.iter().any(|byte| *byte != 0),
        "and sees the screen"
    );
    drop(idle);
    ticket.remove().await;

    // Whoever stands at the address with another key is told nothing: no ticket is written even.
    let mut impostor = one.clone();
    let key = &mut impostor.relay.public_key;
    let other = if key.ends_with("AAA=") { "BBB=" } else { "AAA=" };
    key.replace_range(key.len() - 4.., other);
    let outcome = dial::connect(host.cluster().client(), SYSTEM_NAMESPACE, &impostor, Via::Direct).await;
    ensure!(matches!(outcome, Err(ViewError::WrongKey(_))), "the plugin refuses another key");
    objects.delete("one", SOON).await
}

async fn reasons(host: Arc<RealHost>) -> Result<()> {
    let _alone = ALONE.lock().await;
    let objects = host.objects("reasons").await?;
    objects.template("tiny", TINY).await?;
    objects.template("blind", &format!("{TINY}consoles: {{}}\n")).await?;
    objects.desktop("stopped", "{templateRef: {name: tiny}, powerState: Stopped}").await?;
    objects.desktop("waiting", "{templateRef: {name: missing}}").await?;
    objects.desktop("blind", "{templateRef: {name: blind}}").await?;
    objects.is("blind", ConditionType::Ready, true, SOON).await?;
    objects.has("waiting", ConditionType::Ready, SOON).await?;
    let kubeconfig = host.cluster().control_plane().kubeconfig();
    for (name, code, words) in [
        ("stopped", 1, "is stopped; to start it: kubectl patch desktop stopped"),
        ("waiting", 1, "missing does not exist"),
        ("blind", 1, "has no VNC screen"),
        ("nobody", 2, "does not exist"),
    ] {
        let output = ended(plugin(kubeconfig, &["view", name, "-n", objects.namespace()])?).await?;
        let text = said(&output);
        ensure!(
            output.status.code() == Some(code) && text.contains(words),
            "{name}: {} {text}",
            output.status
        );
    }
    for name in ["stopped", "waiting", "blind"] {
        objects.delete(name, SOON).await?;
    }
    Ok(())
}

async fn older(host: Arc<RealHost>) -> Result<()> {
    let _alone = ALONE.lock().await;
    let objects = host.objects("older").await?;
    objects.template("tiny", TINY).await?;
    let desktop = run_tiny(&objects, "one").await?;
    // The same domain as the version before made it.
    host.daemon().await.kill()?;
    let domain = domain_name(objects.namespace(), "one");
    let xml = host.libvirt().virsh(["dumpxml", &domain, "--inactive"])?;
    let (before, rest) = xml.split_once("<graphics").context("it has a screen")?;
    let (_, after) = rest.split_once("</graphics>").context("it has a screen")?;
    let graphics =
        "<graphics type='vnc' autoport='yes'><listen type='address' address='127.0.0.1'/></graphics>";
    let file = host.cluster().state().join("older.xml");
    std::fs::write(&file, format!("{before}{graphics}{after}"))?;
    host.libvirt().virsh(["destroy", &domain])?;
    host.libvirt().virsh(["define", file.to_str().context("a path that is text")?])?;
    host.libvirt().virsh(["start", &domain])?;
    let open = |desktop: &Desktop| {
        let consoles = desktop.status.as_ref().map(|status| status.consoles.clone()).unwrap_or_default();
        consoles.first().map(|console| console.address.clone()).filter(|address| !address.is_empty())
    };
    let pids =
        || host.libvirt().guests().into_iter().map(gpudesk_e2e::processes::Identity::pid).collect::<Vec<_>>();
    let running = pids();
    host.restart_daemon(None).await?;
    let shown =
        until(&objects.desktops(), "one", "its port is shown", SOON, |desktop| open(desktop).is_some())
            .await?;
    let words = condition(&shown, ConditionType::Running).context("Running is there")?.message.clone();
    ensure!(words.contains("open to everybody") && words.contains("the next start ends that"), "{words}");
    ensure!(pids() == running, "it runs on as it is");
    drawn(&host, &objects, "one").await?;
    ensure!(
        picture(&host, objects.namespace(), "one").await?.painted() > 500,
        "it is seen as the others are"
    );
    objects
        .patch("one", json!({"metadata": {"annotations": {gpudesk_crds::RESTARTED_AT_ANNOTATION: "now"}}}))
        .await?;
    until(&objects.desktops(), "one", "its next start has no port", SOON, |desktop| {
        let allocation = desktop.status.as_ref().and_then(|status| status.allocation.as_ref());
        allocation.is_some_and(|allocation| allocation.restarted_at.as_deref() == Some("now"))
            && condition(desktop, ConditionType::Ready).is_some_and(|ready| ready.status == "True")
            && open(desktop).is_none()
    })
    .await?;
    ensure!(desktop.uid().is_some());
    objects.delete("one", SOON).await
}
