//! Settings of the node's programs.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::images::PAUSE;
use super::joining::NodeAccess;
use super::pods;
use crate::libvirt_host::{LIBVIRTD_CONF, QEMU_CONF};

/// Writes what does not depend on the control plane to `settings/` in the node's folder.
pub(super) fn write(folder: &Path, index: u8) -> Result<()> {
    let settings = folder.join("settings");
    let files = [
        ("containerd.toml", containerd()),
        ("cni/10-pods.conflist", network(&pods(index))),
        ("libvirt/libvirtd.conf", LIBVIRTD_CONF.to_owned()),
        ("libvirt/qemu.conf", QEMU_CONF.to_owned()),
    ];
    for (name, text) in files {
        let path = settings.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&settings))?;
        fs::write(path, text)?;
    }
    Ok(())
}

fn containerd() -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
disable_apparmor = true
# A lower score than one's own takes a right that a machine in a container lacks.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
"#
    )
}

fn network(pods: &str) -> String {
    let ipam =
        json!({ "type": "host-local", "ranges": [[{ "subnet": pods }]], "routes": [{ "dst": "0.0.0.0/0" }] });
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam,
    });
    let ports = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports] }).to_string()
}

/// The kubelet's configuration file.
pub(super) fn kubelet(access: &NodeAccess) -> String {
    let all = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": access.authority },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": access.certificate,
        "tlsPrivateKeyFile": access.key,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "failSwapOn": false,
        // A full disk of the machine is no matter of the node's.
        "evictionHard": { "nodefs.available": "1%", "imagefs.available": "1%" },
        "imageGCHighThresholdPercent": 100,
    });
    all.to_string()
}
