//! Whether KVM works, by running a few instructions with it.
//!
//! `/dev/kvm` that opens proves nothing, nor does creating a virtual machine: on some hosts (nested
//! ones, mostly) the guest then hangs or QEMU aborts. So a throw-away QEMU runs a ROM that enters
//! 64-bit mode with paging, touches memory and SSE, and ends QEMU with a number that only it knows.
#![expect(clippy::disallowed_methods, reason = "adapter: starts a throw-away QEMU")]

use std::{
    fs::{self, File},
    io::Write,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
    process::Stdio,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{self, AsyncReadExt},
    process::Command,
    time::timeout,
};
use uuid::Uuid;

use super::file_threads::FileThreads;

/// Time that the ROM has; it needs a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long it is not tried again after it hung: a host that is busy, as while it starts its guests, may look so.
const HUNG: SignedDuration = SignedDuration::from_hours(1);
/// The most bytes of QEMU's words that are read.
const WORDS: u64 = 64 << 10;
/// The ROM writes 9 to the exit port, and QEMU ends with twice that and one.
const EXIT: i32 = 9 * 2 + 1;

/// Whether KVM works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// It ran the ROM.
    Works,
    /// It did not; why, in one sentence.
    Unusable(String),
    /// It did not come to an end; in one sentence.
    Hung(String),
    /// It was not tried, which says nothing of KVM; why, in one sentence.
    Untried(String),
}

/// Runs the ROM with KVM. `qemu` is the program.
pub async fn probe(qemu: &str) -> Kvm {
    if matches!(tokio::fs::try_exists("/dev/kvm").await, Ok(false)) {
        return Kvm::Untried("there is no /dev/kvm: enable virtualization in the firmware, or nested virtualization on the host of this host".into());
    }
    match run(qemu, "kvm", "host,arch-capabilities=off").await {
        Ok(Ok(())) => Kvm::Works,
        Err(why) => Kvm::Untried(format!("/dev/kvm is there and was not tried: {why}")),
        Ok(Err(Failure::Hung)) => Kvm::Hung(format!(
            "/dev/kvm is there but a test guest hung with it for {} s: this host's own virtualization does not work, or it \
             was very busy",
            PATIENCE.as_secs()
        )),
        Ok(Err(Failure::Ended(why))) => {
            Kvm::Unusable(format!("/dev/kvm is there but a test guest did not run with it: {why}"))
        }
    }
}

/// Why QEMU did not run the ROM.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    Hung,
    Ended(String),
}

/// What was found out, and what for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    boot: String,
    qemu: Qemu,
    /// In which words it hung, and when; absent where it works.
    hung: Option<(String, Timestamp)>,
}

/// A QEMU, so that another one is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Qemu {
    program: String,
    bytes: u64,
    modified: i64,
}

/// As [`probe`], once in each boot of the host, which `boot` names, where KVM works; where the probe hangs, which takes
/// seconds, once an hour. Any other failure may be of the moment, or be mended. What it found is kept in `folder`.
pub async fn probe_once(qemu: &str, folder: &Path, boot: &str) -> Kvm {
    once(&folder.join("kvm-probe.json"), qemu, boot, Timestamp::now(), async || probe(qemu).await).await
}

async fn once(file: &Path, qemu: &str, boot: &str, now: Timestamp, ask: impl AsyncFnOnce() -> Kvm) -> Kvm {
    let threads = FileThreads::default();
    let read = {
        let (file, program) = (file.to_owned(), qemu.to_owned());
        move || {
            let metadata = fs::metadata(&program).ok();
            let kept = fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Found>(&bytes).ok());
            let qemu = metadata.map(|it| Qemu { program, bytes: it.len(), modified: it.mtime() });
            (qemu, kept)
        }
    };
    // A folder that does not answer keeps nothing.
    let (qemu, kept) = threads.run(Uuid::nil(), read).await.unwrap_or_default();
    let is_same =
        |found: &Found| !boot.is_empty() && found.boot == boot && Some(&found.qemu) == qemu.as_ref();
    match kept.filter(is_same).map(|found| found.hung) {
        Some(None) => return Kvm::Works,
        Some(Some((words, at))) if at <= now && now.duration_since(at) < HUNG => {
            return Kvm::Hung(format!(
                "{words}; tried at {at}, and again when the daemon starts an hour later, or without {}",
                file.display()
            ));
        }
        _ => {}
    }
    let found = ask().await;
    let hung = match &found {
        Kvm::Works => None,
        Kvm::Hung(words) => Some((words.clone(), now)),
        Kvm::Unusable(_) | Kvm::Untried(_) => return found,
    };
    // One that is no file by that name cannot be known again.
    let Some(qemu) = qemu else { return found };
    let kept = Found { boot: boot.to_owned(), qemu, hung };
    let write = {
        let file = file.to_owned();
        move || serde_json::to_vec(&kept).map_err(io::Error::from).and_then(|kept| fs::write(file, kept))
    };
    // Not kept, it is found out again. Half of a file is not read above.
    match threads.run(Uuid::nil(), write).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(file = %file.display(), %error, "what the test of KVM found is not kept");
        }
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "what the test of KVM found is not kept");
        }
    }
    found
}

/// Whether QEMU ran the ROM, or why it did not.
///
/// # Errors
/// Why it was not even started.
async fn run(qemu: &str, accelerator: &str, cpu: &str) -> Result<Result<(), Failure>, String> {
    // In memory: a full disk says nothing of KVM. QEMU opens it while we have it open.
    let made = memfd_create("gpudesk-probe", MemfdFlags::CLOEXEC).map_err(io::Error::from);
    let mut file = made.map(File::from).map_err(|error| format!("making a file in memory: {error}"))?;
    file.write_all(&rom()).map_err(|error| format!("writing a file in memory: {error}"))?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    run_rom(qemu, Path::new(&path), accelerator, cpu).await
}

async fn run_rom(
    qemu: &str,
    rom: &Path,
    accelerator: &str,
    cpu: &str,
) -> Result<Result<(), Failure>, String> {
    let mut child = Command::new(qemu)
        .args(["-machine", &format!("q35,accel={accelerator}"), "-cpu", cpu, "-m", "16"])
        .args(["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot", "-bios"])
        .arg(rom)
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| start_failed(qemu, &error))?;
    let stderr = child.stderr.take();
    let ended = async {
        let mut said = vec![];
        if let Some(stderr) = stderr {
            let _ = stderr.take(WORDS).read_to_end(&mut said).await;
        }
        (child.wait().await, last_line(&said))
    };
    Ok(match timeout(PATIENCE, ended).await {
        Ok((Ok(status), _)) if status.code() == Some(EXIT) => Ok(()),
        Ok((Ok(status), said)) => Err(Failure::Ended(format!("QEMU ended with {status}{said}"))),
        Ok((Err(error), _)) => Err(Failure::Ended(error.to_string())),
        Err(_) => {
            // Also reaps it; a QEMU stuck in the kernel must not hold up the daemon.
            let _ = timeout(Duration::from_secs(1), child.kill()).await;
            Err(Failure::Hung)
        }
    })
}

/// The last of QEMU's words, to be added to others.
fn last_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty());
    let last = last.map(|line| line.chars().filter(|c| !c.is_control()).take(300).collect::<String>());
    last.map_or_else(String::new, |line| format!(": {line}"))
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
    async fn what_works_is_kept_for_a_boot_and_what_hung_for_an_hour() {
        let folder = tempfile::tempdir().unwrap();
        let (file, qemu) = (folder.path().join("kvm-probe.json"), folder.path().join("qemu"));
        fs::write(&qemu, "one").unwrap();
        let at = |minute: i64| Timestamp::from_second(minute * 60).unwrap();
        let hung = || Kvm::Hung("it hung".into());
        let ask = async |boot: &str, minute, found: Kvm| {
            once(&file, qemu.to_str().unwrap(), boot, at(minute), async || found).await
        };
        assert_eq!(ask("first", 0, hung()).await, hung());
        // The second answer would be another one: it is not asked for, and the words say how it would be.
        let Kvm::Hung(kept) = ask("first", 59, Kvm::Works).await else { panic!("it was asked again") };
        for part in ["it hung", "1970-01-01T00:00:00Z", "kvm-probe.json"] {
            assert!(kept.contains(part), "{kept}");
        }
        assert_eq!(ask("first", 60, Kvm::Works).await, Kvm::Works, "it may have been busy");
        assert_eq!(ask("first", 100_000, hung()).await, Kvm::Works);
        assert_eq!(ask("second", 100_000, hung()).await, hung());
        assert_eq!(ask("second", 99_999, Kvm::Works).await, Kvm::Works, "a clock that was set back");
        // Whatever else it was may be mended by now.
        let passing = [Kvm::Untried("no QEMU".into()), Kvm::Unusable("no permission".into())];
        for found in passing {
            assert_eq!(ask("third", 0, found.clone()).await, found);
        }
        assert_eq!(ask("third", 0, Kvm::Works).await, Kvm::Works);
        // Of another QEMU nothing is known.
        fs::write(&qemu, "another").unwrap();
        assert_eq!(ask("third", 0, hung()).await, hung());
        fs::remove_file(&qemu).unwrap();
        assert_eq!(ask("third", 0, Kvm::Works).await, Kvm::Works);
        assert_eq!(ask("third", 0, hung()).await, hung(), "nor of one that is no file");
        fs::write(&qemu, "one").unwrap();
        // A host whose boot has no name is asked each time, as is one whose file is broken.
        assert_eq!(ask("", 0, hung()).await, hung());
        assert_eq!(ask("", 0, Kvm::Works).await, Kvm::Works);
        fs::write(&file, "{").unwrap();
        assert_eq!(ask("first", 0, hung()).await, hung());
    }

    #[tokio::test]
    async fn why_qemu_ended_is_told_in_its_words() {
        let ended = run("qemu-system-x86_64", "nosuch", "qemu64").await.unwrap().unwrap_err();
        let Failure::Ended(why) = ended else { panic!("{ended:?}") };
        assert!(why.starts_with("QEMU ended with exit status: 1: ") && why.contains("nosuch"), "{why}");
        assert_eq!(last_line(b"first\n  second: no\x1b permission \n\n"), ": second: no permission");
        assert_eq!(last_line(b"\n"), "");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_end_hung() {
        assert_eq!(run("qemu-system-x86_64", "tcg", "qemu64").await, Ok(Err(Failure::Hung)));
    }

    #[tokio::test]
    async fn a_qemu_that_is_not_there_is_named() {
        let why = run("/no/such/qemu", "tcg", "qemu64").await.unwrap_err();
        assert!(why.contains("/no/such/qemu"), "{why}");
    }
}
