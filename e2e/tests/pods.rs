//! The chart's own pods on two real nodes, from installation to removal: one desktop runs through all of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::ConditionType;
use gpudesk_e2e::cluster::SYSTEM_NAMESPACE;
use gpudesk_e2e::identity::who_am_i;
use gpudesk_e2e::kubeconfig;
use gpudesk_e2e::node::{Node, Part};
use gpudesk_e2e::objects::Objects;
use gpudesk_e2e::pods::Pods;
use gpudesk_e2e::processes::{Identity, Lifetime, run};
use gpudesk_e2e::real_host::{TINY, built};
use gpudesk_e2e::state::{StateDir, readme_commands};
use gpudesk_e2e::trials::{Environment, Suite, soak};
use gpudesk_e2e::waiting::{eventually, until_gone};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use rustix::process::Signal;
use serde_json::json;

const SOON: Duration = Duration::from_mins(2);
const FOR: &str = "--timeout=150s";

#[path = "pods/given.rs"]
mod given;
#[path = "pods/left.rs"]
mod left;
#[path = "pods/scraped.rs"]
mod scraped;
#[path = "pods/tokens.rs"]
mod tokens;

fn main() -> ExitCode {
    if std::env::var_os(left::VICTIM).is_some() {
        return left::be_killed();
    }
    Suite::<TwoNodes>::new("pods")
        .trial("a_desktop_runs_from_the_installation_of_the_chart_to_its_removal", story)
        .trial("nodes_leave_nothing_after_a_failure", |_| left::after_failure())
        .trial("nodes_leave_nothing_after_a_kill", |_| left::after_kill())
        .run()
}

struct TwoNodes {
    pods: Pods,
    before: BTreeSet<String>,
}

impl Environment for TwoNodes {
    async fn start() -> Result<Self> {
        let state = Arc::new(StateDir::for_test("pods")?);
        let before = left::machine(state.path())?;
        let started = Pods::start(&state, Lifetime::Test, 2, &[built("e2e/guest/build-tiny.sh")?]).await;
        match started {
            Ok(pods) => Ok(Self { pods, before }),
            Err(error) => {
                let logs = state.collect_logs("pods-start")?;
                Err(error.context(format!("logs: {}", logs.display())))
            }
        }
    }

    async fn stop(self) -> Result<()> {
        let state = Arc::clone(self.pods.cluster().state());
        self.pods.stop()?;
        left::as_before(&self.before, state.path()).await
    }

    fn collect_logs(&self, suite: &str) -> Result<Option<PathBuf>> {
        self.pods.save_evidence(suite).map(Some)
    }
}

/// The steps in their order: what one leaves, the next one finds.
async fn story(environment: Arc<TwoNodes>) -> Result<()> {
    let pods = &environment.pods;
    pods.install(&[]).context("installation")?;
    spread(pods).await.context("after the installation")?;
    labelled_only(pods).await?;
    identity(pods).await.context("the daemon's own token")?;
    pod_security(pods, "restricted", &["privileged", "host namespaces", "restricted volume types"])?;

    let objects = pods.objects("lab").await?;
    let qemu = first_desktop(pods, &objects).await.context("the first desktop")?;
    let story = Story { pods, objects, qemu };
    story.secrets().await.context("Secrets by the daemon's own token")?;
    story.rollouts().await?;
    story.restarts().await?;
    story.drain().await?;
    story.leaders().await.context("leaders")?;
    story.late_mount().await.context("an image store that is mounted while the pod runs")?;
    story.without_privileges().await.context("without privileges")?;
    if soak() {
        tokens::outlived(&story).await.context("tokens that are no longer good")?;
    }
    story.removal().await
}

/// Both operators are ready, on different nodes.
async fn spread(pods: &Pods) -> Result<()> {
    let found = eventually("two operators are ready", SOON, || async {
        let found = pods.of("operator").await?;
        Ok((found.len() == 2 && found.iter().all(ready)).then_some(found))
    })
    .await?;
    let nodes: BTreeSet<_> = found.iter().map(node_of).collect();
    ensure!(nodes == BTreeSet::from(["node-a", "node-b"]), "the operators are on {nodes:?}");
    Ok(())
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True")
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// The daemon's pod, which is ready.
async fn daemon(pods: &Pods) -> Result<Pod> {
    eventually("the node daemon is ready", SOON, || async {
        let found = pods.of("node-daemon").await?;
        ensure!(found.len() < 2, "{} daemons on one node", found.len());
        Ok(found.into_iter().find(ready))
    })
    .await
}

async fn labelled_only(pods: &Pods) -> Result<()> {
    let found = pods.of("node-daemon").await?;
    let nodes: Vec<_> = found.iter().map(node_of).collect();
    ensure!(nodes == ["node-a"], "the node daemon is on {nodes:?}, and node-a has the label");
    Ok(())
}

/// A kubeconfig with what the kubelet gave the daemon.
async fn token_of_daemon(pods: &Pods) -> Result<PathBuf> {
    let pod = daemon(pods).await?;
    let volumes = format!(
        "/var/lib/kubelet/pods/{}/volumes/kubernetes.io~projected",
        pod.uid().context("a pod has a UID")?
    );
    // In memory, and mounted in the node alone.
    let token = run(pods.nodes().await[0].inside("sh").args(["-ec", &format!("cat {volumes}/*/token")]))?;
    let cluster = pods.cluster();
    let path = cluster.state().join("pod.kubeconfig");
    kubeconfig::write_like(&path, cluster.control_plane().kubeconfig(), &token)?;
    Ok(path)
}

/// The daemon's token is bound to its node, and no other node's object is written with it.
async fn identity(pods: &Pods) -> Result<()> {
    let path = token_of_daemon(pods).await?;
    let user = who_am_i(&path).await?;
    let node = user.extra.unwrap_or_default().remove("authentication.kubernetes.io/node-name");
    ensure!(node == Some(vec!["node-a".to_owned()]), "the token is bound to {node:?}");
    let nodes: Api<gpudesk_crds::GpuNode> = Api::all(kubeconfig::client(&path).await?);
    let other = gpudesk_crds::GpuNode::new("node-b", serde_json::from_value(json!({}))?);
    let refused = nodes.create(&PostParams::default(), &other).await.err().context("node-b is written")?;
    ensure!(format!("{refused}").contains("gpudesk.dev"), "refused by the policy of the chart: {refused}");
    Ok(())
}

/// Only the node daemon's pods are kept out at this level, and for these causes; the API server says so.
fn pod_security(pods: &Pods, level: &str, causes: &[&str]) -> Result<()> {
    let words = ["label", "--dry-run=server", "--overwrite", "namespace", SYSTEM_NAMESPACE];
    let mut command = std::process::Command::new(pods.cluster().control_plane().program("kubectl"));
    command.env("KUBECONFIG", pods.cluster().control_plane().kubeconfig()).args(words);
    let output = command.arg(format!("pod-security.kubernetes.io/enforce={level}")).output()?;
    let warnings = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && warnings.contains("gpudesk-node-daemon"), "{warnings}");
    ensure!(causes.iter().all(|cause| warnings.contains(cause)), "{level}, not {causes:?}: {warnings}");
    ensure!(!warnings.contains("gpudesk-operator"), "{warnings}");
    Ok(())
}

const FROM_SECRET: &str = "cloudInit: {secretRef: {name: first-boot}}";

/// From apply to the guest's own word; its cloud-init Secret is read with the node's own token.
async fn first_desktop(pods: &Pods, objects: &Objects) -> Result<Identity> {
    let secrets: Api<Secret> = Api::namespaced(pods.cluster().client().clone(), objects.namespace());
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "first-boot"}, "stringData": {"userData": "#cloud-config"}});
    secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
    objects.template("tiny", &TINY.replace("shutdownGraceSeconds: 5", "shutdownGraceSeconds: 0")).await?;
    objects
        .template("secret", &TINY.replace("cloudInit: {inline: {userData: '#cloud-config'}}", FROM_SECRET))
        .await?;
    objects.desktop("one", "templateRef: {name: secret}").await?;
    runs(pods, objects, "one").await
}

/// Waits until a desktop is ready and its guest has said so on its serial port, and returns its process.
async fn runs(pods: &Pods, objects: &Objects, name: &str) -> Result<Identity> {
    let desktop = objects.is(name, ConditionType::Ready, true, SOON).await?;
    let uid = desktop.uid().context("a desktop has a UID")?;
    let nodes = pods.nodes().await;
    let log = nodes[0].outside(&format!("/var/lib/gpudesk/desktops/{uid}/serial.log"));
    eventually("the guest answers", SOON, || async {
        let said = std::fs::read(&log).unwrap_or_default();
        Ok(String::from_utf8_lossy(&said).contains("tiny: ready").then_some(()))
    })
    .await?;
    process_of(&nodes[0], &uid)
}

fn process_of(node: &Node, uid: &str) -> Result<Identity> {
    let mut found = node.guests().into_iter().filter(|guest| {
        let line = std::fs::read(format!("/proc/{}/cmdline", guest.pid())).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(uid)
    });
    let process = found.next().context("the desktop has a process")?;
    ensure!(found.next().is_none(), "one process for one desktop");
    Ok(process)
}

struct Story<'a> {
    pods: &'a Pods,
    objects: Objects,
    qemu: Identity,
}

impl Story<'_> {
    /// The desktop runs on in the same process, and the daemon that is there now says so.
    async fn goes_on(&self, after: &str) -> Result<()> {
        let check = async {
            daemon(self.pods).await?;
            let now = runs(self.pods, &self.objects, "one").await?;
            ensure!(
                now == self.qemu && now.is_running(),
                "another process runs: {now:?}, not {:?}",
                self.qemu
            );
            Ok(())
        };
        check.await.with_context(|| format!("after {after}"))?;
        tracing::info!("it goes on after {after}");
        Ok(())
    }

    /// A new desktop comes and goes: operator and daemon work, and did not only survive.
    async fn new_desktop(&self, after: &str) -> Result<()> {
        let name = "another";
        let check = async {
            self.objects.desktop(name, "templateRef: {name: tiny}").await?;
            runs(self.pods, &self.objects, name).await?;
            self.objects.delete(name, SOON).await
        };
        check.await.with_context(|| format!("a new desktop after {after}"))?;
        tracing::info!("a new desktop came and went after {after}");
        Ok(())
    }

    fn kubectl(&self, words: &str) -> Result<String> {
        self.pods.cluster().kubectl(words.split_whitespace())
    }

    /// With a token of its node's account the daemon reads what its desktop names, and nothing else of the namespace.
    async fn secrets(&self) -> Result<()> {
        let path = token_of_daemon(self.pods).await?;
        let daemon: Api<ServiceAccount> = Api::namespaced(kubeconfig::client(&path).await?, SYSTEM_NAMESPACE);
        let token = |account: &'static str| {
            let bound = json!({"apiVersion": "v1", "kind": "Node", "name": "node-a"});
            let spec = json!({"audiences": [], "boundObjectRef": bound, "expirationSeconds": 600});
            let request: TokenRequest = serde_json::from_value(json!({"spec": spec})).unwrap();
            let daemon = daemon.clone();
            async move { daemon.create_token_request(account, &PostParams::default(), &request).await }
        };
        self.kubectl(&format!("create serviceaccount gpudesk-node-node-b -n {SYSTEM_NAMESPACE}"))?;
        let refused = token("gpudesk-node-node-b").await.err().context("it is another node, too")?;
        ensure!(format!("{refused}").contains("may only request tokens"), "{refused}");
        let token = token("gpudesk-node-node-a").await?.status.context("no token")?.token;
        kubeconfig::write_like(&path, self.pods.cluster().control_plane().kubeconfig(), &token)?;
        let secrets: Api<Secret> =
            Api::namespaced(kubeconfig::client(&path).await?, self.objects.namespace());
        ensure!(secrets.get("first-boot").await?.data.is_some_and(|data| data.contains_key("userData")));
        let refused = secrets.get("another").await.err().context("any Secret is read")?;
        ensure!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");
        Ok(())
    }

    async fn rollouts(&self) -> Result<()> {
        for workload in ["deployment/gpudesk-operator", "daemonset/gpudesk-node-daemon"] {
            self.kubectl(&format!("-n {SYSTEM_NAMESPACE} rollout restart {workload}"))?;
        }
        for workload in ["deployment/gpudesk-operator", "daemonset/gpudesk-node-daemon"] {
            self.kubectl(&format!("-n {SYSTEM_NAMESPACE} rollout status {FOR} {workload}"))?;
        }
        spread(self.pods).await.context("after a rollout")?;
        self.goes_on("a rollout").await?;
        self.pods.install(&["log.level=debug", "metrics.service.enabled=true"]).context("upgrade")?;
        spread(self.pods).await.context("after an upgrade")?;
        self.goes_on("an upgrade").await?;
        scraped::by_prometheus(self.pods).await.context("metrics")?;
        self.pods.cluster().helm(["rollback", "gpudesk", "1", "--wait", FOR]).context("rollback")?;
        spread(self.pods).await.context("after a rollback")?;
        self.goes_on("a rollback").await?;
        self.new_desktop("a rollback").await
    }

    async fn restarts(&self) -> Result<()> {
        let before = daemon(self.pods).await?.uid();
        for (part, signal) in [
            (Part::Kubelet, Signal::TERM),
            (Part::Kubelet, Signal::KILL),
            (Part::Containerd, Signal::KILL),
            (Part::Libvirt, Signal::TERM),
        ] {
            self.pods.nodes().await[0].restart(part, signal).await?;
            // Through kubelet and containerd.
            let inside = format!(
                "exec -n {SYSTEM_NAMESPACE} daemonset/gpudesk-node-daemon -- gpudesk-node-daemon --version"
            );
            eventually("a program runs in the daemon's pod", SOON, || async {
                Ok(self.kubectl(&inside).is_ok().then_some(()))
            })
            .await?;
            self.goes_on(&format!("a restart of {part:?} by {signal:?}")).await?;
        }
        // As when a package makes the folder of libvirt's sockets anew. What libvirt notes down of machines stays.
        let anew = "cp -a /run/libvirt /run/new && rm -r /run/libvirt && mv /run/new /run/libvirt";
        self.pods.nodes().await[0].restart_around(Part::Libvirt, Signal::TERM, anew).await?;
        self.new_desktop("another folder of libvirt's sockets").await?;
        self.goes_on("another folder of libvirt's sockets").await?;
        ensure!(daemon(self.pods).await?.uid() == before, "the daemon's pod is the same");
        Ok(())
    }

    async fn drain(&self) -> Result<()> {
        self.kubectl(&format!("drain node-a --ignore-daemonsets --delete-emptydir-data {FOR}"))?;
        self.goes_on("a drain").await?;
        self.kubectl("uncordon node-a")?;
        self.all_at_once().await
    }

    /// Both old operators are on the drained node's neighbour, and stay until both new ones are ready: whoever keeps away
    /// from the old ones puts both new ones on one node.
    async fn all_at_once(&self) -> Result<()> {
        let old = eventually("two operators are ready", SOON, || async {
            let found = self.pods.of("operator").await?;
            Ok((found.len() == 2 && found.iter().all(ready)).then_some(found))
        })
        .await?;
        ensure!(old.iter().all(|pod| node_of(pod) == "node-b"), "a pod came to a node that was drained");
        let deployment = format!("-n {SYSTEM_NAMESPACE} deployment/gpudesk-operator");
        let surge = |surge: &str, missing: &str| {
            let strategy =
                format!(r#"{{"rollingUpdate":{{"maxSurge":{surge},"maxUnavailable":{missing}}}}}"#);
            self.kubectl(&format!(r#"patch {deployment} -p {{"spec":{{"strategy":{strategy}}}}}"#))
        };
        surge("2", "0")?;
        self.kubectl(&format!("rollout restart {deployment}"))?;
        self.kubectl(&format!("rollout status {FOR} {deployment}"))?;
        // As the chart has it, or Helm finds a field that somebody else wants otherwise.
        surge(r#""25%""#, r#""25%""#)?;
        spread(self.pods).await.context("after a rollout of all at once")
    }

    /// The name of the leader's pod, once it is another one than `before`.
    async fn leader(&self, before: Option<&str>) -> Result<String> {
        let leases: Api<Lease> = Api::namespaced(self.pods.cluster().client().clone(), SYSTEM_NAMESPACE);
        eventually("an operator leads", SOON, || async {
            let lease = leases.get_opt("gpudesk-operator").await?;
            let holder = lease.and_then(|lease| lease.spec?.holder_identity);
            let pods = self.pods.of("operator").await?;
            let names = pods.iter().map(ResourceExt::name_any);
            let holder = holder.unwrap_or_default();
            Ok(names
                .into_iter()
                .find(|name| holder.starts_with(name.as_str()) && before != Some(name.as_str())))
        })
        .await
    }

    async fn leaders(&self) -> Result<()> {
        let first = self.leader(None).await?;
        let pods: Api<Pod> = Api::namespaced(self.pods.cluster().client().clone(), SYSTEM_NAMESPACE);
        pods.delete(&first, &DeleteParams::default()).await?;
        let second = self.leader(Some(&first)).await.context("after the leader's pod was deleted")?;
        spread(self.pods).await.context("after the leader's pod was deleted")?;
        self.new_desktop("the leader was deleted").await?;

        let on = node_of(&pods.get(&second).await?).to_owned();
        let nodes = self.pods.nodes().await;
        let node = nodes.iter().find(|node| node.name() == on).context("the leader's node")?;
        let name = |process: &Identity| std::fs::read_to_string(format!("/proc/{}/comm", process.pid()));
        let operator: Vec<_> = node
            .inhabitants()
            .into_iter()
            .filter(|process| name(process).is_ok_and(|name| name.starts_with("gpudesk-operato")))
            .collect();
        ensure!(!operator.is_empty(), "the leader has a process on {on}");
        for process in operator {
            process.end(Signal::KILL, SOON)?;
        }
        drop(nodes);
        self.new_desktop("the leader was killed").await?;
        spread(self.pods).await?;
        self.goes_on("two changes of the leader").await
    }

    /// A file system that comes after the pod, as an image store on the network may, is seen by the daemon.
    async fn late_mount(&self) -> Result<()> {
        let images = "/var/lib/gpudesk/images";
        {
            let nodes = self.pods.nodes().await;
            let script = format!(
                "mkdir /run/late && mount -t tmpfs tmpfs /run/late && cp {images}/tiny.elf /run/late/late.elf && \
                 chmod 755 /run/late && mount --bind /run/late {images}"
            );
            run(nodes[0].inside("sh").args(["-c", &script]))?;
        }
        self.objects.template("late", &TINY.replace("tiny.elf", "late.elf")).await?;
        self.objects.desktop("late", "templateRef: {name: late}").await?;
        runs(self.pods, &self.objects, "late").await?;
        self.objects.delete("late", SOON).await?;
        run(self.pods.nodes().await[0].inside("umount").arg(images)).map(drop)
    }

    /// Also with what hosts have that this node has not: a driver's library, a hook, and a kubelet that keeps CPUs.
    async fn without_privileges(&self) -> Result<()> {
        let given = given::Given::new(&self.pods.nodes().await[0])?;
        let settings = [
            "nodeDaemon.privileged=false",
            "nodeDaemon.acceleration=emulation",
            "nodeDaemon.guestNetwork.filter=external",
        ];
        self.pods.install(&[&settings[..], &given::SETTINGS].concat())?;
        self.goes_on("an upgrade to no privileges").await?;
        given.is_seen(self.pods).await?;
        given.replace(&self.pods.nodes().await[0])?;
        pod_security(self.pods, "baseline", &["hostPath volumes"])?;
        self.new_desktop("an upgrade to no privileges").await?;
        given.replacement_is_seen(self.pods).await
    }

    /// Uninstalled with desktops that run, installed again, and all taken down with the commands of the README.
    async fn removal(&self) -> Result<()> {
        self.objects.desktop("late", "templateRef: {name: tiny}").await?;
        let late = runs(self.pods, &self.objects, "late").await?;
        self.uninstall()?;
        for component in ["operator", "node-daemon"] {
            ensure!(self.pods.of(component).await?.is_empty(), "a pod of the {component} is left");
        }
        let delete = format!("delete desktop late --namespace {} --timeout=5s", self.objects.namespace());
        ensure!(self.kubectl(&delete).is_err(), "a desktop was let go, and its node has not said a word");
        tracing::info!("uninstalled");
        ensure!(late.is_running() && self.qemu.is_running(), "desktops run on without gpudesk");
        self.pods.install(&[]).context("installation after a removal")?;
        spread(self.pods).await?;
        until_gone(&self.objects.desktops(), "late", SOON).await?;
        ensure!(!late.is_running(), "what was deleted meanwhile is off");
        self.goes_on("a removal and an installation").await?;

        let blocks = readme_commands("## Remove everything")?;
        for command in blocks.first().context("no commands")?.lines() {
            self.pods.cluster().shell(command)?;
        }
        ensure!(!self.qemu.is_running(), "the desktop is off");
        let nodes = self.pods.nodes().await;
        let folders = std::fs::read_dir(nodes[0].outside("/var/lib/gpudesk/desktops"))?.count();
        ensure!(folders == 0 && nodes[0].guests().is_empty(), "{folders} desktops are left");
        ensure!(!Path::new("/dev/termination-log").exists(), "a pod left a file in the host's /dev");
        Ok(())
    }

    fn uninstall(&self) -> Result<()> {
        self.pods.cluster().helm(["uninstall", "gpudesk", "--wait", FOR]).map(drop).context("uninstall")
    }
}
