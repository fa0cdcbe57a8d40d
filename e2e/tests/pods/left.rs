//! Nodes leave nothing on the machine: after a pass, a failure and a kill.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::node::Node;
use gpudesk_e2e::processes::{Identity, Lifetime, run};
use gpudesk_e2e::state::StateDir;
use gpudesk_e2e::waiting::eventually;
use serde_json::json;

/// Set for the copy of this program that is killed.
pub(crate) const VICTIM: &str = "GPUDESK_E2E_VICTIM";
/// Of the whole machine, and written by a kubelet and a kube-proxy that are not kept from it.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// What the machine shows of nodes, and what they could change of it.
pub(crate) fn machine(state: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        found.extend(line.contains(&*state.to_string_lossy()).then(|| format!("mount {line}")));
    }
    for device in fs::read_dir("/sys/class/net")? {
        found.insert(format!("interface {}", device?.file_name().to_string_lossy()));
    }
    for setting in SETTINGS {
        let value = fs::read_to_string(Path::new("/proc/sys").join(setting))?;
        found.insert(format!("{setting} = {}", value.trim()));
    }
    let name = state.file_name().context("a state folder has a name")?.to_string_lossy();
    let mut find = Command::new("find");
    let cgroups = run(find.args(["/sys/fs/cgroup", "-type", "d", "-name", &format!("gpudesk-{name}-*")]))?;
    found.extend(cgroups.lines().map(|line| format!("cgroup {line}")));
    let handed_down = Path::new("/sys/fs/cgroup/cgroup.subtree_control");
    if handed_down.exists() {
        let controllers = fs::read_to_string(handed_down)?;
        found.extend(controllers.split_whitespace().map(|it| format!("controller {it}")));
    }
    for folder in ["/etc/cni", "/etc/libvirt", "/run/containerd", "/run/libvirt", "/var/lib/kubelet"] {
        if Path::new(folder).exists() {
            let files = run(Command::new("find").arg(folder).args(["-printf", "%p %U %m\\n"]))?;
            found.extend(files.lines().map(|line| format!("file {line}")));
        }
    }
    for process in fs::read_dir("/proc")?.flatten() {
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        found.extend(words.contains(&*state.to_string_lossy()).then(|| format!("process {words}")));
    }
    Ok(found)
}

/// The machine is as it was before; what ended a moment ago may be there a little longer.
pub(crate) async fn as_before(before: &BTreeSet<String>, state: &Path) -> Result<()> {
    let differs = || anyhow::Ok(before.symmetric_difference(&machine(state)?).cloned().collect::<Vec<_>>());
    let same = eventually("the machine is as before", Duration::from_secs(20), || async {
        Ok(differs()?.is_empty().then_some(()))
    });
    same.await.with_context(|| format!("left or taken: {:#?}", differs().unwrap_or_default()))
}

/// Two nodes with whatever programs and pods leave in them.
async fn two(state: &Arc<StateDir>) -> Result<Vec<Node>> {
    let mut first = Node::start(state, Lifetime::Test, 0, None).await?;
    let second = Node::start(state, Lifetime::Test, 1, Some(&first)).await?;
    first.start_containerd().await?;
    let script = "mkdir /run/late && mount -t tmpfs tmpfs /run/late && touch /etc/cni/left /run/libvirt/left
        for at in /sys/fs/cgroup/*/; do mkdir -p $at/left/below; done
        echo 1 >/proc/sys/vm/overcommit_memory
        ip link add left type veth peer name right
        setsid sleep 1000 >/dev/null 2>&1 </dev/null &";
    run(first.inside("sh").args(["-ec", script]))?;
    Ok(vec![first, second])
}

/// A start that fails, as when a program of a node does not come up, drops what there is by then.
pub(crate) async fn after_failure() -> Result<()> {
    let state = Arc::new(StateDir::for_test("left")?);
    let before = machine(state.path())?;
    let nodes = two(&state).await?;
    let inhabitants: Vec<_> = nodes.iter().flat_map(Node::inhabitants).collect();
    ensure!(inhabitants.len() >= 6, "{inhabitants:?}");
    ensure!(machine(state.path())? != before, "the nodes are not seen, nor would be what they leave");
    drop(nodes);
    ensure!(inhabitants.iter().all(|process| !process.is_running()), "a process is left");
    as_before(&before, state.path()).await?;
    let folder = state.path().to_owned();
    drop(state);
    ensure!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}

/// Starts nodes, says what it started, and waits for the end.
pub(crate) fn be_killed() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let state = Arc::new(StateDir::for_test("victim").unwrap());
    let before = machine(state.path()).unwrap();
    let nodes = runtime.block_on(two(&state)).unwrap();
    let processes: Vec<_> = nodes.iter().flat_map(Node::inhabitants).collect();
    println!("{}", json!({ "folder": state.path(), "before": before, "processes": processes }));
    loop {
        std::thread::park();
    }
}

pub(crate) async fn after_kill() -> Result<()> {
    let mut victim = Command::new(std::env::current_exe()?);
    let mut victim = victim.env(VICTIM, "1").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(victim.stdout.take().context("no pipe")?).read_line(&mut line)?;
    let started: serde_json::Value = serde_json::from_str(&line).context("the victim did not start")?;
    let processes: Vec<Identity> = serde_json::from_value(started["processes"].clone())?;
    let folder: PathBuf = serde_json::from_value(started["folder"].clone())?;
    let before: BTreeSet<String> = serde_json::from_value(started["before"].clone())?;
    ensure!(processes.len() >= 6 && processes.iter().all(|process| process.is_running()));

    victim.kill()?;
    victim.wait()?;
    eventually("what the killed test started is gone", Duration::from_secs(20), || async {
        Ok(processes.iter().all(|process| !process.is_running()).then_some(()))
    })
    .await?;
    // Cgroups and folders are the next one's to remove; another trial may be at it right now.
    drop(StateDir::for_test("sweeper")?);
    as_before(&before, &folder).await?;
    eventually("its folder is gone", Duration::from_secs(10), || async {
        Ok((!folder.exists()).then_some(()))
    })
    .await
}
