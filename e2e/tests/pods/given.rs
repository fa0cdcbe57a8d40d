//! What a host gives to discovery, through the mounts of the chart: NVML, a hook, the kubelet's configuration.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gpudesk_crds::GpuNode;
use gpudesk_e2e::node::Node;
use gpudesk_e2e::pods::Pods;
use gpudesk_e2e::processes::run;
use gpudesk_e2e::programs::binaries;
use gpudesk_e2e::waiting::until;
use kube::Api;

use crate::SOON;

/// Settings of the chart that name it.
pub(crate) const SETTINGS: [&str; 5] = [
    "nodeDaemon.discovery.nvml=/var/lib/kubelet/given/libgpudesk_fake_nvml.so",
    "nodeDaemon.discovery.hook=/var/lib/kubelet/given/hook",
    "nodeDaemon.discovery.kubeletConfig=/var/lib/kubelet/config.yaml",
    "nodeDaemon.discovery.kubeletConfigDirs={/etc/kubernetes/kubelet.conf.d}",
    "nodeDaemon.discovery.hookTimeoutSeconds=10",
];

/// In a folder of the node's own.
pub(crate) struct Given {
    folder: PathBuf,
}

impl Given {
    pub(crate) fn new(node: &Node) -> Result<Self> {
        let kubelet = node.outside("/var/lib/kubelet");
        let given = Self { folder: kubelet.join("given") };
        std::fs::create_dir_all(&given.folder)?;
        run(node.inside("mkdir").args(["-p", "/etc/kubernetes/kubelet.conf.d"]))?;
        let library = "libgpudesk_fake_nvml.so";
        std::fs::copy(binaries()?.join(library), given.folder.join(library))?;
        // The stand-in for NVML reads the file of its own name.
        put(&given.folder.join(format!("{library}.yaml")), "driverVersion: '570.1'", 0o644)?;
        put(&kubelet.join("config.yaml"), "reservedSystemCPUs: '0'", 0o644)?;
        given.hook("26b9")?;
        Ok(given)
    }

    fn hook(&self, device: &str) -> Result<()> {
        let card = format!(r#"{{"pci_address": "41:00.0", "vendor_id": "10de", "device_id": "{device}"}}"#);
        put(&self.folder.join("hook"), &format!("#!/bin/sh\necho '{{\"gpus\": [{card}]}}'"), 0o755)
    }

    /// Other files come in their places while the pod runs.
    pub(crate) fn replace(&self, node: &Node) -> Result<()> {
        let drop_in = "echo 'reservedSystemCPUs: \"1\"' >/etc/kubernetes/kubelet.conf.d/10-cpus.conf";
        run(node.inside("sh").args(["-ec", drop_in]))?;
        self.hook("2331")
    }

    pub(crate) async fn is_seen(&self, pods: &Pods) -> Result<()> {
        shows(pods, "26b9", "0").await
    }

    pub(crate) async fn replacement_is_seen(&self, pods: &Pods) -> Result<()> {
        shows(pods, "2331", "1").await.context("files that came in the place of others")
    }
}

/// As a package does it: a new file by the old one's name.
fn put(path: &Path, text: &str, mode: u32) -> Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, format!("{text}\n"))?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(beside, path).context("rename")
}

async fn shows(pods: &Pods, device: &str, cpus: &str) -> Result<()> {
    let nodes: Api<GpuNode> = Api::all(pods.cluster().client().clone());
    let what = format!("driver, card {device} of the hook and the kubelet's CPU {cpus} are shown");
    until(&nodes, "node-a", &what, SOON, |node| {
        let Some(status) = &node.status else { return false };
        let Some(host) = &status.host else { return false };
        host.gpu_driver_version.as_deref() == Some("570.1")
            && status.devices.iter().any(|card| card.device_id == device)
            && host.cpus.as_ref().is_some_and(|them| them.kubelet_reserved.to_string() == cpus)
    })
    .await
    .map(drop)
}
