//! The demo as a newcomer runs it: interrupted, run again, run while it runs, taken down.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::processes::run as output_of;
use gpudesk_e2e::programs::binaries;
use gpudesk_e2e::screen::Screen;
use gpudesk_e2e::trials::Suite;
use tokio::sync::Mutex;

#[path = "pods/left.rs"]
#[allow(dead_code)]
mod left;

/// One demo at a time, on a machine of two cores.
static ONE: Mutex<()> = Mutex::const_new(());

fn main() -> ExitCode {
    Suite::<()>::new("demo")
        .trial("up_interrupted_again_and_down_leaves_nothing", |_| demo(up_and_down))
        .trial("as_processes_where_no_node_can_be_made", |_| demo(as_processes))
        .run()
}

async fn demo(steps: fn(&Path) -> Result<()>) -> Result<()> {
    let _one = ONE.lock().await;
    // Not the folder of a demo that somebody runs from this checkout.
    let state = tempfile::Builder::new().prefix("gpudesk-demo-").rand_bytes(4).tempdir_in("/var/tmp")?;
    let before = left::machine(state.path())?;
    let outcome = tokio::task::spawn_blocking({
        let state = state.path().to_owned();
        move || {
            let outcome = steps(&state);
            let own = own(&state);
            // Whatever failed, nothing is left running.
            let down = run(&state, "down");
            outcome.and(down.and(own))
        }
    })
    .await?;
    let own = outcome?;
    left::as_before(&before, &own).await?;
    let left = std::fs::read_dir(state.path())?.count();
    ensure!(left == 0, "{left} files are left");
    Ok(())
}

/// The folder in which a demo has everything.
fn own(state: &Path) -> Result<PathBuf> {
    let folders = std::fs::read_dir(state)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    folders.into_iter().find(|it| it.join("lock").exists()).context("no folder of a demo")
}

/// Where no containerd is, and where one is that does not start; it is killed when its nodes are ready.
fn as_processes(state: &Path) -> Result<()> {
    let programs = state.join("programs");
    std::fs::create_dir(&programs)?;
    for folder in ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"] {
        for program in std::fs::read_dir(folder)?.flatten().filter(|it| it.file_name() != "containerd") {
            // The first of a name counts, as in a PATH.
            let _ = symlink(program.path(), programs.join(program.file_name()));
        }
    }
    let up = || -> Result<Command> {
        let mut up = command(state, "up")?;
        up.env("PATH", &programs);
        Ok(up)
    };
    let words =
        "as processes, this machine lets no Kubernetes node be made: containerd is not installed (package";
    interrupted(up()?, words, |own| own.join("way").exists())?;
    run(state, "down")?;

    std::fs::write(programs.join("containerd"), "#!/bin/sh\necho nothing starts here\nexit 1\n")?;
    std::fs::set_permissions(programs.join("containerd"), std::fs::Permissions::from_mode(0o755))?;
    let said = interrupted(up()?, "nodes: all of them ready", |_| true)?;
    for words in [
        "as pods of the chart, this machine lets a Kubernetes node be made",
        "as processes, the pods did not come up: containerd-node-a ended",
        "nothing starts here",
        "operator: runs with service account gpudesk-operator",
        "(this machine) runs with a token",
    ] {
        ensure!(said.contains(words), "{words:?} is missing in {said}");
    }
    let other = command(state, "up")?.arg("--pods").output()?;
    let said = String::from_utf8_lossy(&other.stderr);
    ensure!(!other.status.success() && said.contains("runs as processes"), "{said}");
    std::fs::remove_dir_all(programs)?;
    Ok(())
}

fn up_and_down(state: &Path) -> Result<()> {
    let before = left::machine(state)?;
    // Half of the node is there, and nobody comes back for it.
    let half = |own: &Path| ["node-a/ready", "processes/etcd.json"].iter().all(|it| own.join(it).exists());
    interrupted(command(state, "up")?, "Kubernetes node: etcd", half)?;
    let own = own(state)?;
    ensure!(left::machine(&own)? != before, "what is left would not be seen");
    run(state, "down")?;
    tokio::runtime::Handle::current().block_on(left::as_before(&before, &own))?;

    interrupted(command(state, "up")?, "definitions: crds/ applied", |_| true)?;
    let first = run(state, "up")?;
    ensure!(first.contains("Kubernetes node: runs already"), "{first}");
    for words in [
        "gpudesk-operator",
        "are the chart's own pods",
        "quickstart/hello: ready",
        "sim-rtx-pro-6000",
        "sim-l40s",
        "simulated",
        "kubectl-desktop view hello -n quickstart",
        &format!("GPUDESK_STATE_DIR='{}' make demo-down", state.display()),
    ] {
        ensure!(first.contains(words), "{words:?} is missing in {first}");
    }
    let line = |name: &str| {
        first.lines().find(|line| line.contains(&format!("desktop.gpudesk.dev/{name} "))).unwrap_or("")
    };
    ensure!(line("cad-1").contains("1x RTX PRO 6000 16Q") && line("cad-1").contains("True"), "{first}");
    ensure!(line("anna").contains("8Q") && line("anna").contains("sim-l40s"), "{first}");
    ensure!(line("cad-1").contains("sim-rtx-pro-6000"), "{first}");
    ensure!(line("training").contains("whole card"), "{first}");
    let picture =
        first.lines().find_map(|line| line.trim().strip_prefix("as a picture")).context("no picture")?;
    let picture = Path::new(picture.trim());
    ensure!(picture.starts_with(state), "{} is left behind", picture.display());
    let picture = Screen::read(&std::fs::read(picture)?)?;
    ensure!(picture.painted() > 500, "something stands on the screen");

    let second = run(state, "up")?;
    for words in [
        "as pods of the chart, as it did before",
        "Kubernetes node: runs already",
        "l40s (simulated host) runs already",
    ] {
        ensure!(second.contains(words), "{words:?} is missing in {second}");
    }
    ensure!(second.contains("quickstart/hello: ready"), "{second}");

    // Somebody changes an example and takes the chart away: the accounts of the programs go with it.
    let kubeconfig = first.lines().find_map(|line| Some(line.split_once("export KUBECONFIG=")?.1));
    let programs = first.lines().find_map(|line| Some(line.split_once("export PATH=$PATH:")?.1));
    let (kubeconfig, programs) = (kubeconfig.context("no kubeconfig")?, programs.context("no folder")?);
    let user = |program: &str, arguments: &[&str]| -> Result<String> {
        let program = Path::new(programs).join(program);
        let output = Command::new(program).args(arguments).env("KUBECONFIG", kubeconfig).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    // What runs is the chart's own pods, and what was printed works when nothing of `up` runs any more.
    let pods_run = || -> Result<()> {
        let phases = "jsonpath={.items[*].status.phase}";
        let phases = user("kubectl", &["get", "pods", "-n", "gpudesk-system", "-o", phases])?;
        ensure!(phases == "Running Running Running", "{phases}");
        Ok(())
    };
    pods_run()?;
    let again = own.join("again.png");
    let mut view = Command::new(binaries()?.join("kubectl-desktop"));
    view.args(["view", "hello", "-n", "quickstart", "--via", "direct", "--screenshot"]).arg(&again);
    output_of(view.env("KUBECONFIG", kubeconfig))?;
    ensure!(Screen::read(&std::fs::read(again)?)?.painted() > 500, "nothing is on the screen");
    let uri = first.lines().find_map(|line| line.split("virsh -c '").nth(1)?.split('\'').next());
    let listed = output_of(Command::new("virsh").args(["-c", uri.context("no URI")?, "list"]))?;
    ensure!(listed.contains("quickstart.hello"), "{listed}");

    let theirs = r#"{"spec": {"memory": {"sizeMiB": 9000}}}"#;
    user(
        "kubectl",
        &["patch", "desktoptemplate", "office", "-n", "quickstart", "--type=merge", "-p", theirs],
    )?;
    user("helm", &["uninstall", "gpudesk", "--namespace", "gpudesk-system"])?;
    let third = run(state, "up")?;
    for words in [
        "Kubernetes node: runs already",
        "sim-l40s (simulated host) runs with",
        "DesktopTemplate office was changed",
    ] {
        ensure!(third.contains(words), "{words:?} is missing in {third}");
    }
    let size = "jsonpath={.spec.memory.sizeMiB}";
    let kept = user("kubectl", &["get", "desktoptemplate", "office", "-n", "quickstart", "-o", size])?;
    ensure!(kept == "9000", "{kept}");
    pods_run()
}

/// Runs it until it says this and this holds for its folder, and kills it there. Returns what it said.
fn interrupted(mut up: Command, says: &str, holds: impl Fn(&Path) -> bool) -> Result<String> {
    let state = up.get_envs().find(|(name, _)| *name == "GPUDESK_STATE_DIR").and_then(|(_, value)| value);
    let state = PathBuf::from(state.context("it has a folder")?);
    let mut child = up.stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    let mut output = BufReader::new(child.stdout.take().context("its output is piped")?);
    while !said.contains(says) && output.read_line(&mut said)? > 0 {}
    while child.try_wait()?.is_none() && !own(&state).is_ok_and(|own| holds(&own)) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let ended = child.try_wait()?;
    child.kill()?;
    child.wait()?;
    ensure!(ended.is_none() && said.contains(says), "it did not come as far as {says:?}: {said}");
    Ok(said)
}

fn command(state: &Path, step: &str) -> Result<Command> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpudesk-demo"));
    command
        .arg(step)
        .env("GPUDESK_STATE_DIR", state)
        .env("GPUDESK_BIN_DIR", binaries()?)
        .stdin(Stdio::null());
    Ok(command)
}

fn run(state: &Path, step: &str) -> Result<String> {
    let output = command(state, step)?.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{step}: {}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}
