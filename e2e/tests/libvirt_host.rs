//! The private libvirtd of the harness: what the tests with real guests rely on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::accelerator::{Accelerator, accelerator, run_probe};
use gpudesk_e2e::libvirt_host::LibvirtHost;
use gpudesk_e2e::processes::{Identity, Lifetime, run};
use gpudesk_e2e::state::{StateDir, checkout};
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::eventually;
use serde_json::json;

/// Set for the copy of this program that is killed in `a_killed_test_leaves_nothing`.
const VICTIM: &str = "GPUDESK_E2E_VICTIM";

fn main() -> ExitCode {
    if std::env::var_os(VICTIM).is_some() {
        return be_killed();
    }
    Suite::<()>::new("libvirt_host")
        .trial("the_probe_guest_is_the_one_of_its_source", |_| async { probe_matches_source() })
        .trial("the_probe_guest_runs_under_emulation", |_| async { run_probe("tcg") })
        .trial("a_guest_outlives_a_restart_and_stop_leaves_nothing", |_| guest_outlives_restart())
        .trial("a_detached_one_is_found_and_stopped_by_a_later_run", |_| detached())
        .trial("a_killed_test_leaves_nothing", |_| killed())
        .run()
}

fn probe_matches_source() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (object, binary) = (folder.path().join("probe.o"), folder.path().join("probe.bin"));
    let source = checkout().join("e2e/kvm-probe");
    run(Command::new("as").args(["--64", "-o"]).arg(&object).arg(source.join("probe.S")))?;
    let link = ["-m", "elf_x86_64", "--oformat", "binary", "-Ttext", "0x7c00", "-o"];
    run(Command::new("ld").args(link).arg(&binary).arg(&object))?;
    ensure!(
        std::fs::read(binary)? == std::fs::read(source.join("probe.bin"))?,
        "probe.bin is not made of probe.S"
    );
    Ok(())
}

async fn start(name: &str) -> Result<(LibvirtHost, Arc<StateDir>)> {
    let state = Arc::new(StateDir::for_test(name)?);
    Ok((LibvirtHost::start(&state, Lifetime::Test).await?, state))
}

/// Defines and starts the tiny guest.
fn start_guest(host: &LibvirtHost) -> Result<()> {
    let kernel = run(&mut Command::new(checkout().join("e2e/guest/build-tiny.sh")))?;
    let kernel = host.place(Path::new(kernel.lines().next_back().context("no path printed")?))?;
    let (domain_type, serial) = match accelerator() {
        Accelerator::Kvm => ("kvm", "kvm"),
        Accelerator::Tcg { .. } => ("qemu", "qemu"),
    };
    let domain = format!(
        "<domain type='{domain_type}'><name>tiny</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
         <os><type machine='q35'>hvm</type><kernel>{}</kernel><cmdline>hold {serial}</cmdline></os>\
         <features><acpi/></features>\
         <devices><controller type='usb' model='none'/><memballoon model='none'/><video><model type='none'/></video>\
         <serial type='file'><source path='/var/log/libvirt/tiny-serial.log'/></serial></devices></domain>",
        kernel.display()
    );
    let file = kernel.with_extension("xml");
    std::fs::write(&file, domain)?;
    host.virsh(["define", &file.to_string_lossy()])?;
    host.virsh(["start", "tiny"])?;
    Ok(())
}

/// Everything in the machine's own libvirt folders.
fn machine_files() -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    for folder in
        ["/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt"]
    {
        if Path::new(folder).exists() {
            let listing =
                run(Command::new("find").arg(folder).args(["-mindepth", "1", "-printf", "%p %U %m %T@\\n"]))?;
            files.extend(listing.lines().map(str::to_owned));
        }
    }
    Ok(files)
}

async fn guest_outlives_restart() -> Result<()> {
    let before = machine_files()?;
    let began = Instant::now();
    let (mut host, state) = start("guest").await?;
    println!("libvirtd answers after {:.1?}; guests run by {}", began.elapsed(), accelerator());
    ensure!(host.uri().contains(&*state.path().to_string_lossy()));
    ensure!(host.guests().is_empty() && host.virsh(["list", "--all"])?.trim().is_empty());

    start_guest(&host)?;
    let serial = host.outside(Path::new("/var/log/libvirt/tiny-serial.log"));
    eventually("the guest speaks", Duration::from_secs(30), || async {
        Ok(std::fs::read_to_string(&serial).ok().filter(|text| !text.trim().is_empty()))
    })
    .await?;
    let guests = host.guests();
    ensure!(guests.len() == 1, "{guests:?}");

    let daemon = host.pid();
    host.restart().await?;
    ensure!(host.pid() != daemon && host.guests() == guests, "{:?} {guests:?}", host.guests());
    ensure!(host.virsh(["domstate", "tiny"])?.trim() == "running");
    host.kill_daemon()?;
    ensure!(host.guests() == guests);
    host.restart().await?;
    ensure!(host.virsh(["domstate", "tiny"])?.trim() == "running");

    let inhabitants = host.inhabitants();
    ensure!(inhabitants.len() >= 3, "{inhabitants:?}");
    host.stop()?;
    ensure!(inhabitants.iter().all(|process| !process.is_running()), "a process is left");
    let (after, folder) = (machine_files()?, state.path().to_owned());
    ensure!(before == after, "the machine's libvirt was touched: {:?}", before.symmetric_difference(&after));
    drop(state);
    ensure!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}

async fn detached() -> Result<()> {
    let state = Arc::new(StateDir::named(&format!("detached-host-{}", std::process::id()))?);
    let outcome = detached_in(&state).await;
    LibvirtHost::stop_recorded(&state)?;
    state.remove()?;
    outcome
}

async fn detached_in(state: &Arc<StateDir>) -> Result<()> {
    let host = LibvirtHost::start(state, Lifetime::Detached).await?;
    start_guest(&host)?;
    let processes = host.inhabitants();
    drop(host);
    let again = LibvirtHost::running_in(state).context("a later run does not find it")?;
    ensure!(again.guests().len() == 1 && again.virsh(["domstate", "tiny"])?.trim() == "running");
    LibvirtHost::stop_recorded(state)?;
    ensure!(
        processes.len() >= 3 && processes.iter().all(|process| !process.is_running()),
        "a process is left"
    );
    ensure!(LibvirtHost::running_in(state).is_none());
    Ok(())
}

/// Starts a host with a guest, says what it started, and waits for the end.
fn be_killed() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (host, state) = runtime.block_on(start("host-victim")).unwrap();
    start_guest(&host).unwrap();
    println!("{}", json!({ "folder": state.path(), "processes": host.inhabitants() }));
    loop {
        std::thread::park();
    }
}

async fn killed() -> Result<()> {
    let mut victim = Command::new(std::env::current_exe()?);
    let mut victim = victim.env(VICTIM, "1").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(victim.stdout.take().context("no pipe")?).read_line(&mut line)?;
    let started: serde_json::Value = serde_json::from_str(&line).context("the victim did not start")?;
    let processes: Vec<Identity> = serde_json::from_value(started["processes"].clone())?;
    let folder = PathBuf::from(started["folder"].as_str().context("no folder")?);
    ensure!(processes.len() >= 3 && processes.iter().all(|process| process.is_running()));

    victim.kill()?;
    victim.wait()?;
    eventually("what the killed test started is gone", Duration::from_secs(20), || async {
        Ok(processes.iter().all(|process| !process.is_running()).then_some(()))
    })
    .await?;
    drop(StateDir::for_test("sweeper")?);
    // Another trial may be sweeping it right now.
    eventually("its folder is gone", Duration::from_secs(10), || async {
        Ok((!folder.exists()).then_some(()))
    })
    .await
}
