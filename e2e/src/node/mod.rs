//! A Kubernetes node of its own: kubelet, containerd, kube-proxy, libvirt, and pods.
//!
//! ```text
//! unshare ── init.sh        PID 1 of new mount, PID, network, UTS, IPC and cgroup namespaces
//!   ├─ containerd ── shims ── pods         images are imported from archives, no registry
//!   ├─ kubelet, kube-proxy                 the API server is in the first node's network, or see `vm`
//!   └─ libvirtd ── QEMU                    at its standard paths
//!
//! first node  eth0 10.199.0.2 ── port-0 ─┐
//!                                   bridge `nodes`        pods of node N: 10.244.N.0/24
//! second node eth0 10.199.0.3 ── port-1 ─┘
//! ```
//! Nothing of the machine is written but the node's own folder and cgroups, and the death of PID 1 ends every process
//! and takes every mount and device along.

pub(crate) mod cgroups;
pub mod images;
mod joining;
mod settings;
pub mod vm;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::control_plane::Place;
use crate::processes::{Identity, Launch, Lifetime, Process, run};
use crate::state::StateDir;
use crate::waiting::eventually;
use cgroups::Cgroups;
pub use joining::Joining;

/// As many nodes there can be, on one machine.
pub(crate) const MOST: u8 = 2;
/// Arguments of `unshare`: all namespaces but that of cgroups.
const NAMESPACES: [&str; 7] = ["-m", "-p", "-n", "-u", "-i", "--fork", "--kill-child"];
const GRACE: Duration = Duration::from_secs(20);
const READY: Duration = Duration::from_secs(90);
/// Whether this machine lets a node be made: in `$1`, the folder of a try.
const PROBE: &str = include_str!("../../node/probe.sh");
/// What a node runs of the machine's programs, and the packages that have them.
const PROGRAMS: [(&str, &str); 8] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("socat", "socat"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
];
/// Where containerd looks for them.
const PLUGINS: &str = "/usr/lib/cni";

/// A program of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Runs containers.
    Containerd,
    /// Runs pods.
    Kubelet,
    /// Makes the addresses of services reach pods.
    Proxy,
    /// Runs desktops.
    Libvirt,
}

impl Part {
    const ALL: [Self; 4] = [Self::Containerd, Self::Kubelet, Self::Proxy, Self::Libvirt];

    fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::Proxy => "kube-proxy",
            Self::Libvirt => "libvirtd",
        }
    }
}

/// A program inside, and the `nsenter` outside that waits for it.
#[derive(Debug)]
struct Running {
    /// None where an earlier run started it.
    launch: Option<Launch>,
    outside: Process,
    inside: Identity,
}

/// Whether this machine lets a node be made, by trying what one takes.
///
/// # Errors
/// What it does not let be done.
pub fn possible(state: &StateDir) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "only root makes namespaces and cgroups of a node's own");
    let path = std::env::var("PATH").unwrap_or_default();
    for (program, package) in PROGRAMS {
        let found = path.split(':').any(|folder| Path::new(folder).join(program).is_file());
        ensure!(found, "{program} is not installed (package {package}; `make setup` installs it)");
    }
    let bridge = Path::new(PLUGINS).join("bridge");
    ensure!(bridge.is_file(), "no {} (package containernetworking-plugins; `make setup`)", bridge.display());
    let folder = state.join("probe");
    fs::create_dir_all(&folder)?;
    let cgroups = Cgroups::create(&folder, &format!("gpudesk-{}-probe", state.name()?))?;
    let tried = cgroups.hand_down().and_then(|()| {
        let mut probe = Command::new("unshare");
        probe.args(NAMESPACES).args(["-C", "--propagation", "private", "sh", "-c", PROBE, "sh"]);
        let output = probe.arg(&folder).stdin(Stdio::null()).output().context("run unshare")?;
        let said = [output.stdout, output.stderr].concat();
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&said).trim());
        Ok(())
    });
    tried.and(cgroups.remove())?;
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
}

/// One node.
#[derive(Debug)]
pub struct Node {
    index: u8,
    folder: PathBuf,
    state: Arc<StateDir>,
    lifetime: Lifetime,
    parts: BTreeMap<Part, Running>,
    cgroups: Cgroups,
    first: Identity,
    holder: Process,
}

impl Node {
    /// Makes the namespaces of node `index`, the first of which is 0, with nothing running in them. Needs root.
    ///
    /// A node after the first is cabled to `switch`, the first one.
    pub async fn start(
        state: &Arc<StateDir>,
        lifetime: Lifetime,
        index: u8,
        switch: Option<&Self>,
    ) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "a Kubernetes node of its own needs root");
        let name = name(index);
        let folder = state.join(&name);
        // Of containers of an earlier run, as after a start of the machine, nothing is of use; desktops stay.
        for of_containers in ["over", "work", "root/var/lib/containerd", "root/var/lib/kubelet"] {
            match fs::remove_dir_all(folder.join(of_containers)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        settings::write(&folder, index)?;
        let _ = fs::remove_file(folder.join("ready"));
        let cache = state.libvirt_cache();
        fs::create_dir_all(&cache)?;
        let cgroups = Cgroups::create(&folder, &format!("gpudesk-{}-{name}", state.name()?))?;
        let holder = Launch::new(name.clone(), "sh")
            .args(["-c", cgroups::BEGIN, "sh"])
            .args([folder.join(cgroups::RECORD), folder.join(cgroups::ENTRANCES)])
            .args(["unshare"])
            .args(NAMESPACES)
            .args(["--propagation", "private", "sh", "-c", include_str!("../../node/init.sh"), "sh"])
            .args([folder.as_os_str(), name.as_ref(), cache.as_os_str()])
            .start(state, lifetime)?;
        let pid = holder.pid();
        let made = eventually("the node's namespaces are made", Duration::from_secs(20), || async {
            ensure!(holder.is_running(), "node {name} was not made: {}", holder.log_tail());
            Ok(folder.join("ready").exists().then(|| Identity::child_of(pid)).flatten())
        });
        let made = made.await.and_then(|first| cgroups.hand_down().map(|()| first));
        let first = match made {
            Ok(first) => first,
            Err(error) => {
                drop(holder);
                cgroups.end()?;
                cgroups.remove()?;
                return Err(error);
            }
        };
        let node = Self {
            index,
            folder,
            state: Arc::clone(state),
            lifetime,
            parts: BTreeMap::new(),
            cgroups,
            first,
            holder,
        };
        node.cable(switch)?;
        Ok(node)
    }

    /// The detached node that an earlier run left in this state folder; `None` when not all of it runs any more.
    pub fn running_in(state: &Arc<StateDir>, index: u8) -> Option<Self> {
        let name = name(index);
        let folder = state.join(&name);
        let cgroups = Cgroups::recorded(&folder)?;
        let holder = Process::recorded(state, &name)?;
        let first = Identity::child_of(holder.pid())?;
        let parts = Part::ALL.into_iter().map(|part| {
            let outside = Process::recorded(state, &format!("{}-{name}", part.name()))?;
            let inside = Identity::child_of(outside.pid())?;
            Some((part, Running { launch: None, outside, inside }))
        });
        let parts = parts.collect::<Option<_>>()?;
        let (state, lifetime) = (Arc::clone(state), Lifetime::Detached);
        Some(Self { index, folder, state, lifetime, parts, cgroups, first, holder })
    }

    /// Ends what detached nodes left in this state folder, however far their start had come.
    pub fn stop_recorded(state: &StateDir) -> Result<()> {
        for folder in fs::read_dir(state.path())? {
            let folder = folder?;
            let Some(cgroups) = Cgroups::recorded(&folder.path()) else { continue };
            // It may be on its way into its cgroups.
            if let Some(mut holder) = folder.file_name().to_str().and_then(|it| Process::recorded(state, it))
            {
                holder.kill()?;
            }
            cgroups.end()?;
            cgroups.remove()?;
        }
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> String {
        name(self.index)
    }

    /// Its address in the network of nodes.
    pub fn address(&self) -> String {
        address(self.index)
    }

    /// A control plane of the harness may run in this node's network.
    pub fn place(&self) -> Place {
        Place::Node { network: self.network(), address: self.address() }
    }

    /// Where a path of the node's own folders is for processes outside.
    pub fn outside(&self, inside: &str) -> PathBuf {
        self.folder.join("root").join(inside.trim_start_matches('/'))
    }

    pub(crate) fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.first.pid()))
    }

    /// Runs `ip` in the node's network.
    fn ip(&self, words: &str) -> Result<()> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.network().display())).args(["--", "ip"]);
        run(command.args(words.split_whitespace())).map(drop)
    }

    fn cable(&self, switch: Option<&Self>) -> Result<()> {
        self.ip("link set lo up")?;
        if switch.is_none() {
            self.ip("link add nodes type bridge")?;
            self.ip("link set nodes up")?;
        }
        let (port, at) = (format!("port-{}", self.index), switch.unwrap_or(self));
        at.ip(&format!("link add {port} type veth peer name eth0 netns {}", self.first.pid()))?;
        at.ip(&format!("link set {port} master nodes up"))?;
        self.ip(&format!("address add {}/24 dev eth0", self.address()))?;
        self.ip("link set eth0 up")?;
        // Nobody answers there, unless it is a VM: the address of a service is replaced only where some route takes it.
        self.ip("route add default via 10.199.0.1 dev eth0")?;
        if let Some(switch) = switch {
            self.ip(&format!("route add {} via {}", pods(switch.index), switch.address()))?;
            switch.ip(&format!("route add {} via {}", pods(self.index), self.address()))?;
        }
        Ok(())
    }

    /// Words that lead a program into the node, by `sh`; the program and its arguments follow.
    fn entrance(&self) -> Vec<OsString> {
        let entrances = self.folder.join(cgroups::ENTRANCES);
        let pid = self.first.pid().to_string();
        let words = ["nsenter", "-t", &pid, "-m", "-p", "-n", "-u", "-i", "-C", "--wdns=/", "--"];
        let begin = ["-c".into(), cgroups::MOVE.into(), "sh".into(), entrances.into_os_string()];
        begin.into_iter().chain(words.map(OsString::from)).collect()
    }

    /// A command inside the node.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(self.entrance()).arg(program);
        command
    }

    /// The connection URI of its libvirt for any process on the machine that runs as root.
    pub fn libvirt_uri(&self) -> String {
        format!("qemu:///system?socket=/proc/{}/root/run/libvirt/libvirt-sock", self.first.pid())
    }

    /// Runs `virsh` with the node's libvirt and returns its standard output.
    pub fn virsh<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        run(self.inside("virsh").args(["--quiet", "--connect", "qemu:///system"]).args(arguments))
    }

    /// Starts containerd and waits until it answers.
    pub async fn start_containerd(&mut self) -> Result<()> {
        let config = self.folder.join("settings/containerd.toml");
        self.spawn(Part::Containerd, "containerd", vec![flag("--config", config)]).await?;
        self.answers(Part::Containerd, || run(self.inside("ctr").arg("version")).map(drop)).await
    }

    /// Gives containerd an image; see [`images::build`].
    pub fn import(&self, archive: &Path) -> Result<()> {
        let mut command = self.inside("ctr");
        run(command.args(["-n", "k8s.io", "images", "import"]).arg(archive)).map(drop)
    }

    /// Starts the libvirt of the node and waits until it answers.
    pub async fn start_libvirt(&mut self) -> Result<()> {
        self.spawn(Part::Libvirt, "libvirtd", Vec::new()).await?;
        self.answers(Part::Libvirt, || self.virsh(["version"]).map(drop)).await
    }

    /// Starts kubelet and kube-proxy.
    pub async fn join(&mut self, joining: &Joining) -> Result<()> {
        let name = self.name();
        let node = joining.access(&name)?;
        let config = self.folder.join("settings/kubelet.yaml");
        fs::write(&config, settings::kubelet(&node))?;
        let kubelet: Vec<OsString> = vec![
            flag("--config", config),
            flag("--kubeconfig", node.kubeconfig),
            flag("--node-ip", self.address()),
            flag("--hostname-override", &name),
            flag("--root-dir", "/var/lib/kubelet"),
        ];
        self.spawn(Part::Kubelet, joining.program("kubelet"), kubelet).await?;
        let proxy = vec![
            flag("--kubeconfig", joining.proxy()?.kubeconfig),
            flag("--hostname-override", &name),
            flag("--proxy-mode", "iptables"),
            flag("--cluster-cidr", "10.244.0.0/16"),
            // These are settings of the whole machine.
            flag("--conntrack-max-per-core", "0"),
            flag("--conntrack-min", "0"),
        ];
        self.spawn(Part::Proxy, joining.program("kube-proxy"), proxy).await
    }

    async fn spawn(&mut self, part: Part, program: impl AsRef<Path>, arguments: Vec<OsString>) -> Result<()> {
        let launch = Launch::new(format!("{}-{}", part.name(), self.name()), "sh")
            .args(self.entrance())
            .args([program.as_ref()])
            .args(arguments);
        self.launch(part, launch).await
    }

    async fn launch(&mut self, part: Part, launch: Launch) -> Result<()> {
        let outside = launch.start(&self.state, self.lifetime)?;
        // The child of `nsenter`, which is the program in the end.
        let inside = eventually("a program of the node starts", Duration::from_secs(20), || async {
            ensure!(outside.is_running(), "{} ended; {}", outside.name(), outside.log_tail());
            Ok(Identity::child_of(outside.pid()))
        })
        .await?;
        self.parts.insert(part, Running { launch: Some(launch), outside, inside });
        Ok(())
    }

    async fn answers(&self, part: Part, ask: impl Fn() -> Result<()>) -> Result<()> {
        let running = self.parts.get(&part).with_context(|| format!("{} was not started", part.name()))?;
        eventually(&format!("{} answers", running.outside.name()), READY, || async {
            let outside = &running.outside;
            ensure!(outside.is_running(), "{} ended; {}", outside.name(), outside.log_tail());
            Ok(ask().ok())
        })
        .await
    }

    /// Ends a part with this signal and starts it again with the same words; what it started runs on.
    pub async fn restart(&mut self, part: Part, signal: Signal) -> Result<()> {
        self.restart_around(part, signal, "").await
    }

    /// As [`Self::restart`], with a shell script that runs in the node in between.
    pub async fn restart_around(&mut self, part: Part, signal: Signal, script: &str) -> Result<()> {
        let mut running =
            self.parts.remove(&part).with_context(|| format!("{} was not started", part.name()))?;
        running.inside.end(signal, GRACE)?;
        ensure!(running.outside.wait(GRACE)?, "{} does not end", running.outside.name());
        run(self.inside("sh").args(["-ec", script]))?;
        self.launch(part, running.launch.context("an earlier run started it")?).await?;
        match part {
            Part::Containerd => self.answers(part, || run(self.inside("ctr").arg("version")).map(drop)).await,
            Part::Libvirt => self.answers(part, || self.virsh(["version"]).map(drop)).await,
            Part::Kubelet | Part::Proxy => Ok(()),
        }
    }

    /// The QEMU processes of the node.
    pub fn guests(&self) -> Vec<Identity> {
        self.inhabitants().into_iter().filter(Identity::is_qemu).collect()
    }

    /// Every process of the node, in whatever namespaces of a pod.
    pub fn inhabitants(&self) -> Vec<Identity> {
        self.cgroups.processes()
    }

    /// Ends the node whole; no process, mount, device or cgroup of it is left on return.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        // The kernel ends the others before the first one is gone.
        self.first.end(Signal::KILL, GRACE)?;
        for running in self.parts.values_mut() {
            ensure!(running.outside.wait(GRACE)?, "{} is left", running.outside.name());
        }
        self.parts.clear();
        ensure!(self.holder.wait(GRACE)?, "{} is left", self.holder.name());
        self.cgroups.remove()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Test
            && let Err(error) = self.end()
        {
            tracing::warn!("stop node {}: {error:#}", self.name());
        }
    }
}

pub(crate) fn name(index: u8) -> String {
    format!("node-{}", char::from(b'a' + index))
}

pub(crate) fn address(index: u8) -> String {
    format!("10.199.0.{}", index + 2)
}

/// The addresses of a node's pods.
fn pods(index: u8) -> String {
    format!("10.244.{index}.0/24")
}

fn flag(name: &str, value: impl Into<OsString>) -> OsString {
    let mut flag = OsString::from(name);
    flag.push("=");
    flag.push(value.into());
    flag
}
