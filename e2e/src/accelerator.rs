//! Whether KVM runs guests here, found out by running one.
//!
//! A `/dev/kvm` that opens and creates a VM proves nothing: on some hosts a guest then dies at
//! its first SSE instruction.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// See `kvm-probe/probe.S`.
const PROBE: &[u8] = include_bytes!("../kvm-probe/probe.bin");
/// QEMU's exit status when the probe got to its end.
const ALIVE: i32 = 67;
/// Under working KVM, and under emulation, the probe takes 0.2 s.
const LIMIT: Duration = Duration::from_secs(10);

/// What runs the guests' instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor, through KVM.
    Kvm,
    /// QEMU's emulator.
    Tcg {
        /// Why not KVM.
        reason: String,
    },
}

impl fmt::Display for Accelerator {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kvm => write!(out, "KVM"),
            Self::Tcg { reason } => write!(out, "emulation (TCG): {reason}"),
        }
    }
}

/// The accelerator of this machine; tried out once per process.
pub fn accelerator() -> &'static Accelerator {
    static FOUND: OnceLock<Accelerator> = OnceLock::new();
    FOUND.get_or_init(|| match probe_kvm() {
        Ok(()) => Accelerator::Kvm,
        Err(error) => Accelerator::Tcg { reason: format!("{error:#}") },
    })
}

fn probe_kvm() -> Result<()> {
    let device = Path::new("/dev/kvm");
    OpenOptions::new().read(true).write(true).open(device).context("/dev/kvm")?;
    run_probe("kvm")
}

/// Runs the probe guest under a QEMU accelerator.
///
/// # Errors
/// When the guest did not come to its end, with what QEMU says about it.
pub fn run_probe(accelerator: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (image, log) = (folder.path().join("probe.img"), folder.path().join("log"));
    File::create(&image)?.write_all(PROBE)?;
    // A guest that hangs ends with whoever asks, also when that is killed.
    let mut qemu = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
        .args([
            "-accel",
            accelerator,
            "-machine",
            "pc",
            "-m",
            "16",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-device", "isa-debug-exit,iobase=0xf4", "-drive"])
        .arg(format!("file={},format=raw,if=floppy,readonly=on", image.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?)
        .spawn()
        .context("start qemu-system-x86_64")?;
    let start = Instant::now();
    let outcome = loop {
        let words = std::fs::read_to_string(&log).unwrap_or_default();
        if let Some(status) = qemu.try_wait()? {
            match status.code() {
                Some(ALIVE) => return Ok(()),
                _ => break format!("a guest ended QEMU with {status}: {}", first_error(&words)),
            }
        }
        // After an internal error QEMU keeps the dead guest for inspection.
        if words.contains("internal error") {
            break format!("a guest dies: {}", first_error(&words));
        }
        if start.elapsed() > LIMIT {
            break format!("a guest that needs 0.2 s was not done after {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let _ = qemu.kill();
    qemu.wait()?;
    bail!(outcome)
}

/// The first line that is not a warning.
fn first_error(log: &str) -> &str {
    log.lines().find(|line| !line.contains("warning:")).unwrap_or("no message")
}
