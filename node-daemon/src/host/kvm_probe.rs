//! Whether KVM works, by running a few instructions with it.
//!
//! `/dev/kvm` that opens proves nothing, nor does creating a virtual machine: on some hosts (nested
//! ones, mostly) the guest then hangs or QEMU aborts. So a throw-away QEMU runs a ROM that enters
//! 64-bit mode with paging, touches memory and SSE, and ends QEMU with a number that only it knows.
#![expect(clippy::disallowed_methods, reason = "adapter: starts a throw-away QEMU")]

use std::{fs::File, io::Write, os::fd::AsRawFd, path::Path, process::Stdio, time::Duration};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use tokio::{io, process::Command, time::timeout};

/// Time that the ROM has; it needs a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(5);
/// The ROM writes 9 to the exit port, and QEMU ends with twice that and one.
const EXIT: i32 = 9 * 2 + 1;

/// Whether KVM works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// It ran the ROM.
    Works,
    /// It did not; why, in one sentence.
    Unusable(String),
    /// It was not tried, which says nothing of KVM; why, in one sentence.
    Untried(String),
}

/// Runs the ROM with KVM. `qemu` is the program.
pub async fn probe(qemu: &str) -> Kvm {
    if !Path::new("/dev/kvm").exists() {
        return Kvm::Untried("there is no /dev/kvm: enable virtualization in the firmware, or nested virtualization on the host of this host".into());
    }
    match run(qemu, "kvm", "host,arch-capabilities=off").await {
        Ok(Ok(())) => Kvm::Works,
        Err(why) => Kvm::Untried(format!("/dev/kvm is there and was not tried: {why}")),
        Ok(Err(why)) => Kvm::Unusable(format!(
            "/dev/kvm is there but a test guest did not run with it ({why}): this host's own virtualization does not work"
        )),
    }
}

/// What was found out, and what for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    boot: String,
    qemu: String,
    unusable: Option<String>,
}

/// As [`probe`], once in each boot of the host, which `boot` names: a probe that hangs takes seconds. What it found is
/// kept in `folder`.
pub async fn probe_once(qemu: &str, folder: &Path, boot: &str) -> Kvm {
    once(&folder.join("kvm-probe.json"), qemu, boot, async || probe(qemu).await).await
}

async fn once(file: &Path, qemu: &str, boot: &str, ask: impl AsyncFnOnce() -> Kvm) -> Kvm {
    let kept = std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Found>(&bytes).ok());
    if let Some(found) = kept.filter(|found| !boot.is_empty() && found.boot == boot && found.qemu == qemu) {
        return found.unusable.map_or(Kvm::Works, |why| {
            let file = file.display();
            Kvm::Unusable(format!(
                "{why}; tried once since the host started: remove {file} to have it tried again"
            ))
        });
    }
    let found = ask().await;
    let unusable = match &found {
        Kvm::Works => None,
        Kvm::Unusable(why) => Some(why.clone()),
        Kvm::Untried(_) => return found,
    };
    // Not kept, it is found out again. Half of a file is not read above.
    let kept = Found { boot: boot.to_owned(), qemu: qemu.to_owned(), unusable };
    if let Err(error) =
        serde_json::to_vec(&kept).map_err(io::Error::from).and_then(|kept| std::fs::write(file, kept))
    {
        tracing::warn!(file = %file.display(), "what the test of KVM found is not kept: {error}");
    }
    found
}

/// Whether QEMU ran the ROM, or why it did not.
///
/// # Errors
/// Why it was not even started.
async fn run(qemu: &str, accelerator: &str, cpu: &str) -> Result<Result<(), String>, String> {
    // In memory: a full disk says nothing of KVM. QEMU opens it while we have it open.
    let made = memfd_create("gpudesk-probe", MemfdFlags::CLOEXEC).map_err(io::Error::from);
    let mut file = made.map(File::from).map_err(|error| format!("making a file in memory: {error}"))?;
    file.write_all(&rom()).map_err(|error| format!("writing a file in memory: {error}"))?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    run_rom(qemu, Path::new(&path), accelerator, cpu).await
}

async fn run_rom(qemu: &str, rom: &Path, accelerator: &str, cpu: &str) -> Result<Result<(), String>, String> {
    let mut child = Command::new(qemu)
        .args(["-machine", &format!("q35,accel={accelerator}"), "-cpu", cpu, "-m", "16"])
        .args(["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot", "-bios"])
        .arg(rom)
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| start_failed(qemu, &error))?;
    Ok(match timeout(PATIENCE, child.wait()).await {
        Ok(Ok(status)) if status.code() == Some(EXIT) => Ok(()),
        Ok(Ok(status)) => Err(format!("QEMU ended with {status}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => {
            // Also reaps it; a QEMU stuck in the kernel must not hold up the daemon.
            let _ = timeout(Duration::from_secs(1), child.kill()).await;
            Err(format!("it hung for {} s", PATIENCE.as_secs()))
        }
    })
}

fn start_failed(qemu: &str, error: &io::Error) -> String {
    format!("{qemu} could not be started: {error}")
}

/// The ROM: 64 KiB, with the reset vector 16 bytes below its end.
fn rom() -> Vec<u8> {
    let mut rom = CODE.to_vec();
    rom.resize(0xfff0, 0);
    // Jump to the beginning of the ROM.
    rom.extend([0xea, 0x00, 0x00, 0x00, 0xf0]);
    rom.resize(0x1_0000, 0);
    rom
}

/// Machine code that begins in 16-bit mode at f000:0000.
#[rustfmt::skip]
const CODE: [u8; 0xd6] = [
    // No interrupts; data and stack segments at 0, stack below 0x7000.
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x70,
    // Clear 12 KiB at 0x1000 for page tables.
    0xbf, 0x00, 0x10, 0x8e, 0xc0, 0xb9, 0x00, 0x18, 0xfc, 0xf3, 0xab,
    // They map the first 2 MiB onto themselves; this ROM is seen there, at 0xf0000.
    0x66, 0xc7, 0x06, 0x00, 0x10, 0x03, 0x20, 0x00, 0x00, 0x66, 0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0x00, 0x00, 0x66, 0xc7, 0x06, 0x00, 0x30, 0x83, 0x00, 0x00, 0x00,
    // CR4: PAE, SSE.
    0x0f, 0x20, 0xe0, 0x66, 0x0d, 0x20, 0x06, 0x00, 0x00, 0x0f, 0x22, 0xe0,
    // CR3: the page tables. EFER: long mode.
    0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, 0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x66, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30,
    // The segment table at the end.
    0x2e, 0x66, 0x0f, 0x01, 0x16, 0xd0, 0x00,
    // CR0: protected mode, paging. Jump into 64-bit code.
    0x66, 0xb8, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0x6d, 0x00, 0x0f, 0x00, 0x08, 0x00,
    // Segments and stack again.
    0xb8, 0x10, 0x00, 0x00, 0x00, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0x48, 0xc7, 0xc4, 0x00, 0x70, 0x00, 0x00,
    // Clear 16 bytes at 0x5000 by SSE.
    0x66, 0x0f, 0xef, 0xc0, 0x0f, 0x11, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00,
    // Write 5 there and add 4, locked.
    0xc7, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0xf0, 0x83, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, 0x04,
    // CPUID, RDTSC.
    0x31, 0xc0, 0x0f, 0xa2, 0x0f, 0x31,
    // Write the sum to the exit port; wait if nothing comes of it.
    0x8b, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, 0xba, 0xf4, 0x00, 0x00, 0x00, 0xee, 0xf4, 0xeb, 0xfd,
    // Up to a multiple of 8.
    0x8d, 0x74, 0x00,
    // Segments: none, 64-bit code, data.
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xaf, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00,
    // Size and place of that table.
    0x17, 0x00, 0xb8, 0x00, 0x0f, 0x00,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_rom_ends_qemu_with_its_number() {
        assert_eq!(run("qemu-system-x86_64", "tcg", "qemu64").await, Ok(Ok(())));
    }

    #[tokio::test]
    async fn what_was_found_is_kept_until_the_host_starts_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kvm-probe.json");
        let hangs = || async { Kvm::Unusable("it hung".into()) };
        let ask = |boot, found: Kvm| {
            let file = file.clone();
            async move { once(&file, "qemu", boot, async || found).await }
        };
        assert_eq!(ask("first", hangs().await).await, hangs().await);
        // The second answer would be another one: it is not asked for, and the words say how it would be.
        let Kvm::Unusable(kept) = ask("first", Kvm::Works).await else { panic!("it was asked again") };
        assert!(kept.contains("it hung") && kept.contains("kvm-probe.json"), "{kept}");
        assert_eq!(ask("second", Kvm::Works).await, Kvm::Works);
        assert_eq!(ask("second", hangs().await).await, Kvm::Works);
        // What was not tried is no answer: it is asked again.
        let untried = Kvm::Untried("no QEMU".into());
        assert_eq!(ask("third", untried.clone()).await, untried);
        assert_eq!(ask("third", Kvm::Works).await, Kvm::Works);
        // A host whose boot has no name is asked each time, as is one whose file is broken.
        assert_eq!(ask("", hangs().await).await, hangs().await);
        assert_eq!(ask("", Kvm::Works).await, Kvm::Works);
        std::fs::write(&file, "{").unwrap();
        assert_eq!(ask("", hangs().await).await, hangs().await);
    }

    #[tokio::test]
    async fn a_qemu_that_is_not_there_is_named() {
        let why = run("/no/such/qemu", "tcg", "qemu64").await.unwrap_err();
        assert!(why.contains("/no/such/qemu"), "{why}");
    }
}
