//! The configuration of the kubelet.

use gpudesk_crds::types::CpuSet;

use crate::{
    topology::{
        HostFacts, cpu,
        kubelet::{self, Flags},
    },
    tree::{ATTRIBUTE, Tree},
};

/// Where its main file is, the first that is there; of kubeadm, EKS and older EKS.
const CONFIGS: [&str; 3] = [
    "var/lib/kubelet/config.yaml",
    "etc/kubernetes/kubelet/config.json",
    "etc/kubernetes/kubelet/kubelet-config.json",
];
/// Where its drop-in files are: of kubeadm, EKS, k3s and RKE2.
const DROP_INS: [&str; 4] = [
    "etc/kubernetes/kubelet.conf.d",
    "etc/kubernetes/kubelet/config.json.d",
    "var/lib/rancher/k3s/agent/etc/kubelet.conf.d",
    "var/lib/rancher/rke2/agent/etc/kubelet.conf.d",
];
/// Where systemd lists the processes of its service.
const PROCESSES: [&str; 4] = [
    "sys/fs/cgroup/system.slice/kubelet.service/cgroup.procs",
    "sys/fs/cgroup/runtime.slice/kubelet.service/cgroup.procs",
    "sys/fs/cgroup/systemd/system.slice/kubelet.service/cgroup.procs",
    "sys/fs/cgroup/systemd/system.slice/kubelet.service/tasks",
];

/// The CPUs that the kubelet keeps for the system. What cannot be understood is named in the facts.
pub(super) fn reserved(tree: &Tree, facts: &mut HostFacts) -> CpuSet {
    let flags = running(tree);
    if let Some(text) = flags.as_ref().and_then(|flags| flags.reserved_cpus.as_deref()) {
        return cpu::list(text).unwrap_or_else(|| {
            let text: String = text.chars().take(40).collect();
            facts.incomplete.push(format!(
                "the CPUs that the kubelet reserves: its flag --reserved-cpus is {text:?}, which is no list of CPUs"
            ));
            CpuSet::default()
        });
    }
    let mut reserved = CpuSet::default();
    for path in files(tree, flags.as_ref()) {
        let Some(text) = tree.text(&path) else { continue };
        match kubelet::reserved(&text) {
            Ok(Some(cpus)) => reserved = cpus,
            Ok(None) => {}
            Err(why) => facts.incomplete.push(format!("the CPUs that the kubelet reserves: {path}: {why}")),
        }
    }
    reserved
}

/// The files in the order in which they count. A kubelet that runs names them; else its usual places
/// are looked at.
fn files(tree: &Tree, flags: Option<&Flags>) -> Vec<String> {
    let below_root = |path: &String| path.trim_start_matches('/').to_owned();
    let named =
        flags.and_then(|flags| flags.config.as_ref()).map(below_root).filter(|path| tree.exists(path));
    let usual = || CONFIGS.iter().find(|path| tree.exists(path)).map(|path| (*path).to_owned());
    let mut files: Vec<String> = named.or_else(usual).into_iter().collect();
    let folders: Vec<String> = match flags {
        Some(flags) => flags.config_dir.iter().map(below_root).collect(),
        None => DROP_INS.iter().map(|folder| (*folder).to_owned()).collect(),
    };
    for folder in folders {
        let drop_ins = tree.names(&folder, |name| name.strip_suffix(".conf").is_some());
        files.extend(drop_ins.iter().map(|name| format!("{folder}/{name}")));
    }
    files
}

/// The flags of the kubelet that runs; `None` where none is seen. Other processes' are never read: they
/// may hold secrets, which a capture would carry away.
fn running(tree: &Tree) -> Option<Flags> {
    let processes = PROCESSES.iter().find_map(|path| tree.text(path))?;
    let process = processes
        .lines()
        .map(str::trim)
        .filter(|process| !process.is_empty() && process.bytes().all(|b| b.is_ascii_digit()))
        .take(64)
        .find(|process| tree.line(&format!("proc/{process}/comm")).as_deref() == Some("kubelet"))?;
    let command_line = tree.bytes(&format!("proc/{process}/cmdline"), ATTRIBUTE)?;
    (!command_line.is_empty()).then(|| kubelet::flags(&command_line))
}
