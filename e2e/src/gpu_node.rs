//! A GPU node in a virtual machine: real IOMMU groups, SR-IOV, mdev and libvirt where there are none.
//!
//! ```text
//! machine   the QEMU command line: an IOMMU, two NUMA cells, what is plugged in where
//! control   commands into the guest and their output, over a virtio port and a shared folder
//! qmp       QEMU's monitor: devices that come and go
//! ```
//! The guest is built by `gpu-node/build.sh`; the README there says what is in it. It runs under
//! plain emulation everywhere, so that it is the same everywhere, and changes nothing on disk.

mod control;
pub mod machine;
mod qmp;
pub mod witness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::kubeconfig;
use crate::processes::{Launch, Lifetime, Process, run};
use crate::real_host::built;
use crate::state::StateDir;
use crate::waiting::{eventually, patient};
use control::Control;
pub use control::Output;
use machine::Files;
use qmp::Qmp;

const NAME: &str = "gpu-node";
/// Emulation of several CPUs is not beyond doubt: a machine that hangs or breaks down while it boots is
/// started again.
const ATTEMPTS: u32 = 3;
/// A boot takes 10 to 20 s, three times that on a busy machine.
const BOOT: Duration = Duration::from_mins(2);
/// Longest time in which a guest that boots writes nothing to its console; 6 s on a busy machine.
const SILENCE: Duration = Duration::from_secs(30);
/// A command that has not ended after this has failed.
const COMMAND: Duration = Duration::from_mins(2);
/// The guest takes 5 s to let go of a device that is to be unplugged.
const UNPLUG: Duration = Duration::from_mins(1);

/// A running GPU node.
#[derive(Debug)]
pub struct GpuNodeVm {
    share: PathBuf,
    control: Control,
    qmp: Mutex<Qmp>,
    qemu: Process,
}

impl GpuNodeVm {
    /// Builds the guest if that was not done yet, starts it, and waits until it takes commands.
    ///
    /// Its console is `gpu-node-console-<attempt>.log` among the logs of `state`.
    ///
    /// # Errors
    /// When the guest cannot be built, or did not come up in any of three attempts.
    pub async fn start(state: &Arc<StateDir>) -> Result<Self> {
        Self::start_with(state, None).await
    }

    /// The same, and the guest reaches the API server at this port of the loopback interface, and nothing
    /// else. The kubeconfig for it is [`Self::join`]'s.
    ///
    /// # Errors
    /// As of [`Self::start`].
    pub async fn start_with(state: &Arc<StateDir>, api: Option<u16>) -> Result<Self> {
        let image = built("e2e/gpu-node/build.sh")?;
        let mut failures = Vec::new();
        for attempt in 1..=ATTEMPTS {
            match Self::boot(state, &image, attempt, api).await? {
                Ok(node) => return Ok(node),
                Err(Failed(words)) => {
                    tracing::warn!("attempt {attempt} to start the GPU node: {words}");
                    failures.push(words);
                }
            }
        }
        bail!("the GPU node did not come up: {}", failures.join("; "))
    }

    /// Only a guest that began to boot is worth another attempt.
    async fn boot(
        state: &Arc<StateDir>,
        image: &Path,
        attempt: u32,
        api: Option<u16>,
    ) -> Result<Result<Self, Failed>> {
        let begun = Instant::now();
        let folder = state.join(format!("{NAME}-{attempt}"));
        let share = folder.join("host");
        let jobs = share.join("jobs");
        fs::create_dir_all(&jobs)?;
        let console = state.logs().join(format!("{NAME}-console-{attempt}.log"));
        let files = Files::new(image, &folder, &share, &console)?;
        let qemu =
            Launch::new(NAME, machine::QEMU).args(files.arguments(api)).start(state, Lifetime::Test)?;
        let qmp = eventually("QEMU answers", Duration::from_secs(20), || async {
            ensure!(qemu.is_running(), "QEMU ended; {}", qemu.log_tail());
            Ok(Qmp::connect(files.qmp()).await.ok())
        })
        .await?;
        let control = Control::connect(files.control(), jobs).await?;
        tokio::select! {
            ready = control.ready_after(0) => if ready.is_err() {
                return Ok(Err(Failed(format!("QEMU ended; {}", qemu.log_tail()))));
            },
            words = silence(&console) => return Ok(Err(Failed(words))),
            () = sleep(BOOT) => return Ok(Err(Failed(format!("it was not up within {BOOT:?}")))),
        }
        tracing::info!("the GPU node is up after {:.1?}", begun.elapsed());
        Ok(Ok(Self { share, control, qmp: Mutex::new(qmp), qemu }))
    }

    /// Runs a Bash script as root in the guest and returns its standard output. Several may run at
    /// once.
    ///
    /// # Errors
    /// When it fails or does not end within two minutes; the message holds the script and what it
    /// wrote to standard error.
    pub async fn run(&self, script: &str) -> Result<String> {
        let output = self.output(script).await?;
        if output.status != 0 {
            bail!("in the GPU node: {script}: status {}: {}", output.status, output.stderr.trim());
        }
        Ok(output.stdout)
    }

    /// Runs a Bash script as root in the guest, whatever its exit status is.
    ///
    /// # Errors
    /// When it does not end within two minutes.
    pub async fn output(&self, script: &str) -> Result<Output> {
        ensure!(self.qemu.is_running(), "the GPU node has ended; {}", self.qemu.log_tail());
        let begun = Instant::now();
        let output = timeout(COMMAND, self.control.run(script))
            .await
            .with_context(|| format!("in the GPU node: {script}: not ended after {COMMAND:?}"))?
            .with_context(|| format!("in the GPU node: {script}"))?;
        tracing::debug!("{:.1?} in the GPU node for {script:?}", begun.elapsed());
        Ok(output)
    }

    /// Reads a file of the guest; what sysfs ends with a newline comes without it.
    pub async fn read(&self, path: &str) -> Result<String> {
        Ok(self.run(&format!("cat '{path}'")).await?.trim_end().to_owned())
    }

    /// The folder on this machine that is `/host` in the guest.
    pub fn share(&self) -> &Path {
        &self.share
    }

    /// Copies a program into the guest's memory, without its symbols, and returns where it is there.
    pub async fn install(&self, program: &Path) -> Result<String> {
        let name = program.file_name().and_then(|name| name.to_str()).context("a program has a name")?;
        let copy = self.share.join(name);
        run(Command::new("strip").args(["--strip-all", "-o"]).arg(&copy).arg(program))?;
        let inside = format!("/usr/local/bin/{name}");
        // In large pieces: each takes a round trip.
        let script =
            format!("dd if='/host/{name}' of='{inside}' bs=500K status=none && chmod 755 '{inside}'");
        self.run(&script).await?;
        fs::remove_file(copy)?;
        Ok(inside)
    }

    /// Brings the guest's way to the API server up and gives it a kubeconfig like this one, and returns where
    /// it is there.
    pub async fn join(&self, kubeconfig: &Path) -> Result<String> {
        let inside = "/run/kubeconfig".to_owned();
        kubeconfig::write_elsewhere(&self.share.join("kubeconfig"), kubeconfig, machine::API)?;
        self.run(&format!(
            "set -e
             interface=$(ls -d /sys/bus/pci/devices/{nic}/virtio*/net/*)
             ip link set \"${{interface##*/}}\" up
             ip address add 10.0.2.15/24 dev \"${{interface##*/}}\"
             install --mode=600 /host/kubeconfig {inside}
             rm /host/kubeconfig",
            nic = machine::OWN_NIC,
        ))
        .await?;
        Ok(inside)
    }

    /// Plugs a device in while the guest runs. `device` holds QEMU's properties of it, `driver`,
    /// `id` and `bus` among them.
    pub async fn plug(&self, device: Value) -> Result<()> {
        self.qmp.lock().await.execute("device_add", device).await?;
        Ok(())
    }

    /// Asks the guest to let go of a device that was plugged in, and waits until it is gone.
    pub async fn unplug(&self, id: &str) -> Result<()> {
        let mut qmp = self.qmp.lock().await;
        qmp.execute("device_del", json!({ "id": id })).await?;
        let gone = qmp.event("DEVICE_DELETED", |data| data["device"] == id);
        timeout(UNPLUG, gone).await.with_context(|| format!("{id} is still there after {UNPLUG:?}"))?
    }

    /// Resets it, as the button does, and waits until it takes commands again: what is on its disk is there, and nothing
    /// else.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn reset(&self) -> Result<()> {
        let boots = self.control.boots();
        {
            let mut qmp = self.qmp.lock().await;
            qmp.execute("set-action", json!({ "reboot": "reset" })).await?;
            qmp.execute("system_reset", json!({})).await?;
        }
        let up = timeout(patient(BOOT), self.control.ready_after(boots)).await;
        up.with_context(|| format!("the GPU node was not up again within {BOOT:?}"))?
    }

    /// Ends it; no process is left on return.
    pub fn stop(mut self) -> Result<()> {
        self.qemu.kill()
    }
}

/// Why a guest did not come up on a machine that was started.
struct Failed(String);

/// Returns when the console has had nothing new for too long, and says so.
async fn silence(console: &Path) -> String {
    let length = || fs::metadata(console).map_or(0, |file| file.len());
    let (mut seen, mut since) = (length(), Instant::now());
    while since.elapsed() < SILENCE {
        sleep(Duration::from_millis(250)).await;
        let now = length();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    format!("its console was silent for {SILENCE:?}")
}
