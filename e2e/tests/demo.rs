//! The demo as a newcomer runs it: interrupted, run again, run while it runs, taken down.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::programs::binaries;
use gpudesk_e2e::screen::Screen;
use gpudesk_e2e::trials::Suite;

fn main() -> ExitCode {
    Suite::<()>::new("demo").trial("up_interrupted_again_and_down_leaves_nothing", |_| demo()).run()
}

async fn demo() -> Result<()> {
    // Not the folder of a demo that somebody runs from this checkout.
    let state = tempfile::Builder::new().prefix("gpudesk-demo-").rand_bytes(4).tempdir_in("/var/tmp")?;
    let outcome = tokio::task::spawn_blocking({
        let state = state.path().to_owned();
        move || {
            let outcome = up_and_down(&state);
            // Whatever failed, nothing is left running.
            let down = run(&state, "down");
            outcome.and(down.map(|_| ()))
        }
    })
    .await?;
    outcome?;
    let left = processes_of(state.path())?;
    ensure!(left.is_empty(), "still running: {left:?}");
    Ok(())
}

fn up_and_down(state: &Path) -> Result<()> {
    interrupted(state)?;
    let first = run(state, "up")?;
    for words in [
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
    for words in ["control plane: runs already", "libvirt: runs already", "operator: runs already"] {
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
    let theirs = r#"{"spec": {"memory": {"sizeMiB": 9000}}}"#;
    user(
        "kubectl",
        &["patch", "desktoptemplate", "office", "-n", "quickstart", "--type=merge", "-p", theirs],
    )?;
    user("helm", &["uninstall", "gpudesk", "--namespace", "gpudesk-system"])?;
    let third = run(state, "up")?;
    for words in
        ["operator: runs with", "sim-l40s (simulated host) runs with", "DesktopTemplate office was changed"]
    {
        ensure!(third.contains(words), "{words:?} is missing in {third}");
    }
    let size = "jsonpath={.spec.memory.sizeMiB}";
    let kept = user("kubectl", &["get", "desktoptemplate", "office", "-n", "quickstart", "-o", size])?;
    ensure!(kept == "9000", "{kept}");
    let down = run(state, "down")?;
    ensure!(down.contains("Nothing of the demo is left"), "{down}");
    let left = std::fs::read_dir(state)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Runs it until it has started some of what it starts, and kills it there.
fn interrupted(state: &Path) -> Result<()> {
    let mut child = command(state, "up")?.stdout(Stdio::piped()).spawn()?;
    let output = BufReader::new(child.stdout.take().context("its output is piped")?);
    let reached =
        output.lines().map_while(Result::ok).any(|line| line.contains("chart: charts/gpudesk installed"));
    child.kill()?;
    child.wait()?;
    ensure!(reached, "the demo did not come as far as the chart");
    Ok(())
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

/// Processes that name the state folder on their command line.
fn processes_of(state: &Path) -> Result<Vec<String>> {
    let name = state.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let line = std::fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&name) {
            found.push(line);
        }
    }
    Ok(found)
}
