//! A node in a virtual machine, of a control plane on this machine.
//!
//! ```text
//! this machine               a network with nothing in it but                  VM
//! kubectl, helm ── forwarder ── API server  10.0.2.100 ───── guestfwd ── kubelet, kube-proxy, pods
//!                               10.199.0.2:10250 ─────────── hostfwd ─── kubelet
//! ```
//! The API server finds the kubelet where the node says that it is, and the VM reaches the API server and nothing else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::DeleteParams;
use kube::{Api, Client};

use super::{Joining, Node};
use crate::control_plane::Place;
use crate::processes::{Launch, Lifetime, Process, run};
use crate::state::StateDir;
use crate::waiting::eventually;

/// The address of the API server, for QEMU's network of the VM and in that of the control plane.
pub(crate) const API_SERVER: &str = "10.0.2.100";
/// The address of the VM in QEMU's network.
const VM: &str = "10.0.2.15";
const KUBELET: u16 = 10250;
/// What the console says at the end, before the status of the VM's part.
const STATUS: &str = "try in a VM: status ";
const SOON: Duration = Duration::from_secs(20);

/// The network of a control plane and of the QEMU whose guest is its node: a loopback interface with the addresses of both.
#[derive(Debug)]
pub struct Network {
    holder: Process,
    state: Arc<StateDir>,
}

impl Network {
    /// Makes it. Needs root.
    pub async fn start(state: &Arc<StateDir>) -> Result<Self> {
        let ready = state.join("network-ready");
        // QEMU puts its own address in the place of 127.0.0.1, and the node's would be no sender for the node.
        let script = format!(
            "ip link set lo up; ip address add {API_SERVER}/32 dev lo
             ip route add local {} dev lo table local src 127.0.0.1
             : >\"$1\"; exec sleep infinity",
            super::address(0)
        );
        let holder = Launch::new("network", "unshare")
            .args(["--net", "sh", "-ec", &script, "sh"])
            .args([&ready])
            .start(state, Lifetime::Test)?;
        eventually("the network is made", SOON, || async {
            ensure!(holder.is_running(), "no network: {}", holder.log_tail());
            Ok(ready.exists().then_some(()))
        })
        .await?;
        Ok(Self { holder, state: Arc::clone(state) })
    }

    /// The control plane's place in it.
    pub fn place(&self) -> Place {
        Place::Node { network: self.file(), address: API_SERVER.to_owned() }
    }

    fn file(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.pid()))
    }

    /// Starts a VM in it whose console is that file: QEMU's words, to which those for its network and its keys are added.
    pub fn start_vm(&self, qemu: &[OsString], joining: &Joining, console: &Path) -> Result<NodeVm> {
        let keys = self.state.join("keys.tar");
        joining.archive(0, &keys)?;
        let (server, kubelet) = (joining.server(), super::address(0));
        let port = server.rsplit_once(':').context("the API server has a port")?.1;
        // A program for each connection: with a character device there could be only one.
        let api_server = format!("guestfwd=tcp:{server}-cmd:socat STDIO TCP4:127.0.0.1:{port}");
        let to_kubelet = format!("hostfwd=tcp:{kubelet}:{KUBELET}-{VM}:{KUBELET}");
        let qemu = Launch::new("node-vm", "nsenter")
            .args([OsString::from(format!("--net={}", self.file().display()))])
            .args(qemu)
            .args(["-netdev", &format!("user,id=net0,restrict=on,{api_server},{to_kubelet}")])
            .args(["-device", "virtio-net-pci,netdev=net0,romfile="])
            .args(["-drive", &format!("if=none,id=keys,format=raw,read-only=on,file={}", keys.display())])
            .args(["-device", "virtio-blk-pci,drive=keys,serial=keys"])
            .start(&self.state, Lifetime::Test)?;
        Ok(NodeVm { qemu, console: console.to_owned() })
    }
}

/// A VM with [`Node`] `node-a` in it.
#[derive(Debug)]
pub struct NodeVm {
    qemu: Process,
    console: PathBuf,
}

impl NodeVm {
    /// Returns with an error when it ends.
    pub async fn lost(&self) -> Result<()> {
        while self.qemu.is_running() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        bail!("the VM ended; {}", self.qemu.log_tail())
    }

    /// Takes the node out of its cluster, on which the VM ends the node and itself, and finds nothing left.
    pub async fn leave(&self, client: &Client) -> Result<()> {
        let nodes: Api<NodeObject> = Api::all(client.clone());
        nodes.delete(&super::name(0), &DeleteParams::default()).await?;
        let off = || async { Ok((!self.qemu.is_running()).then_some(())) };
        eventually("the VM is off", Duration::from_mins(1), off).await?;
        let console = std::fs::read(&self.console)?;
        let console = String::from_utf8_lossy(&console);
        let status = console.lines().find_map(|line| line.trim().strip_prefix(STATUS));
        ensure!(
            status == Some("0"),
            "the VM's part of the trial ended with status {}",
            status.unwrap_or("none")
        );
        Ok(())
    }
}

impl Node {
    /// Joins the network of the first node to that of a VM made by [`Network::start_vm`], in which this is called.
    pub fn wire(&self) -> Result<()> {
        self.ip("link add port-up type veth peer name uplink netns 1")?;
        self.ip("link set port-up master nodes up")?;
        let script = format!(
            "ip address add 10.199.0.1/24 dev uplink; ip link set uplink up
             nic=$(ls -d /sys/bus/virtio/devices/*/net/*); nic=${{nic##*/}}
             ip address add {VM}/24 dev \"$nic\"; ip link set \"$nic\" up
             echo 1 >/proc/sys/net/ipv4/ip_forward
             iptables -t nat -A POSTROUTING -o \"$nic\" -j MASQUERADE
             iptables -t nat -A PREROUTING -i \"$nic\" -p tcp --dport {KUBELET} -j DNAT --to-destination {}",
            self.address()
        );
        run(Command::new("sh").args(["-ec", &script])).map(drop)
    }
}

/// Returns when the node is no object of its cluster any more, after it was one.
pub async fn left(joining: &Joining) -> Result<()> {
    let nodes: Api<NodeObject> = Api::all(joining.client(0).await?);
    let mut seen = false;
    loop {
        match nodes.get_opt(&super::name(0)).await {
            Ok(None) if seen => return Ok(()),
            Ok(object) => seen |= object.is_some(),
            Err(error) => tracing::warn!("look at the node: {error}"),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}
