//! Child processes: started with a log, ended by pid, waited for until they are gone.
//!
//! ```text
//! Lifetime::Test      setpriv --pdeathsig KILL -> program   the kernel ends it with this process
//! Lifetime::Detached  setsid -> program                     outlives this process;
//!                     <state>/processes/<name>.json         pid + start time, for a later run
//! ```
//! A process is held by a pidfd, so a signal never reaches a process that was given the same
//! number later.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::state::StateDir;
use crate::waiting::patient;

/// How long a process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until this process ends, in whatever way it does, `SIGKILL` included.
    Test,
    /// Until it is stopped, by this process or by a later one that reads its record.
    Detached,
}

/// A process and the moment it started: never another one that got its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pid: u32,
    /// In clock ticks since the machine started, as `/proc/<pid>/stat` gives it.
    start_time: u64,
}

impl Identity {
    /// Whether it is a QEMU, by the name of its program.
    pub fn is_qemu(&self) -> bool {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", self.pid())).unwrap_or_default();
        name.starts_with("qemu-system")
    }

    /// The identity of the process that has this number now; `None` when there is none.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in parentheses and may hold anything.
        let start_time = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, start_time })
    }

    /// The identity of the calling process.
    pub fn of_this_process() -> Result<Self> {
        Self::of(std::process::id()).context("read /proc/self/stat")
    }

    /// Every process whose number this holds for.
    pub(crate) fn matching(holds: impl FnMut(&u32) -> bool) -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.filter(holds).filter_map(Self::of).collect()
    }

    /// The first child of the process that has this number now.
    pub(crate) fn child_of(parent: u32) -> Option<Self> {
        let parent_of = |pid: &u32| -> Option<u32> {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
        };
        Self::matching(|pid| parent_of(pid) == Some(parent)).into_iter().next()
    }

    /// The process id.
    pub fn pid(self) -> u32 {
        self.pid
    }

    /// Clock ticks since the machine started.
    pub fn start_time(self) -> u64 {
        self.start_time
    }

    /// Whether this very process still exists. A zombie does not count.
    pub fn is_running(self) -> bool {
        self.open().is_some_and(|fd| !ended(&fd, Some(Duration::ZERO)).unwrap_or(true))
    }

    /// Signals this very process and waits until it has ended; one that is gone is no error.
    pub fn end(self, signal: Signal, limit: Duration) -> Result<()> {
        let limit = patient(limit);
        let Some(fd) = self.open() else { return Ok(()) };
        match pidfd_send_signal(&fd, signal) {
            Ok(()) => ensure!(ended(&fd, Some(limit))?, "process {} did not end within {limit:?}", self.pid),
            Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("signal process {}", self.pid)),
        }
        Ok(())
    }

    /// A descriptor for this very process; `None` when it is gone.
    fn open(self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Read after the descriptor was opened: from here on the number cannot change hands.
        (Self::of(self.pid) == Some(self)).then_some(fd)
    }
}

/// A program about to be started.
#[derive(Debug)]
pub struct Launch {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl Launch {
    /// `name` names the log and the record, so it is unique within a state folder.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), program: program.into(), arguments: Vec::new(), environment: Vec::new() }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts the program; its output is appended to `<state>/logs/<name>.log`.
    ///
    /// Ok says only that it was started: a program that ends at once is seen by
    /// [`Process::is_running`] and explained by [`Process::log_tail`].
    pub fn start(&self, state: &StateDir, lifetime: Lifetime) -> Result<Process> {
        if self.program.components().count() > 1 {
            ensure!(self.program.is_file(), "no program {}", self.program.display());
        }
        let log = state.log(&self.name);
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = self.command(lifetime);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn(command).with_context(|| format!("start {}", self.program.display()))?;
        let process = Process::of_child(&self.name, child, log, lifetime)?;
        if lifetime == Lifetime::Detached {
            fs::write(record(state.path(), &self.name), serde_json::to_string(&process.identity)?)?;
        }
        Ok(process)
    }

    fn command(&self, lifetime: Lifetime) -> Command {
        match lifetime {
            Lifetime::Test => {
                // The signal is for the death of the parent the process has when it asks for it:
                // the shell checks that this was still us, then becomes the program.
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "sh", "-c"]);
                command.arg(r#"test "$PPID" = "$0" && exec "$@""#).arg(std::process::id().to_string());
                command.arg(&self.program).args(&self.arguments);
                // Ctrl-C reaches us and not our children, so that they can be stopped in order.
                command.process_group(0);
                command
            }
            Lifetime::Detached => {
                let mut command = Command::new("setsid");
                command.arg(&self.program).args(&self.arguments);
                command
            }
        }
    }
}

/// A running process, or one that has ended.
#[derive(Debug)]
pub struct Process {
    name: String,
    identity: Identity,
    fd: OwnedFd,
    child: Option<Child>,
    log: PathBuf,
    lifetime: Lifetime,
}

impl Process {
    fn of_child(name: &str, mut child: Child, log: PathBuf, lifetime: Lifetime) -> Result<Self> {
        // Not reaped yet, so its number and its stat file are there even when it has ended.
        let identity = Identity::of(child.id());
        let pid = Pid::from_child(&child);
        match (identity, pidfd_open(pid, PidfdFlags::empty())) {
            (Some(identity), Ok(fd)) => {
                Ok(Self { name: name.to_owned(), identity, fd, child: Some(child), log, lifetime })
            }
            (_, fd) => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("process {name} cannot be watched: {:?}", fd.err())
            }
        }
    }

    /// Takes over a process that the caller spawned itself.
    pub fn adopt(name: &str, child: Child, state: &StateDir, lifetime: Lifetime) -> Result<Self> {
        let process = Self::of_child(name, child, state.log(name), lifetime)?;
        if lifetime == Lifetime::Detached {
            fs::write(record(state.path(), name), serde_json::to_string(&process.identity)?)?;
        }
        Ok(process)
    }

    /// The process of this name that an earlier run left in this state folder, if it still runs.
    pub fn recorded(state: &StateDir, name: &str) -> Option<Self> {
        let text = fs::read_to_string(record(state.path(), name)).ok()?;
        let identity: Identity = serde_json::from_str(&text).ok()?;
        let fd = identity.open()?;
        let process = Self {
            name: name.to_owned(),
            identity,
            fd,
            child: None,
            log: state.log(name),
            lifetime: Lifetime::Detached,
        };
        process.is_running().then_some(process)
    }

    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// Pid and start time.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        !ended(&self.fd, Some(Duration::ZERO)).unwrap_or(true)
    }

    /// Waits until it has ended, at most `limit`; says whether it has.
    pub fn wait(&mut self, limit: Duration) -> Result<bool> {
        let gone = ended(&self.fd, Some(patient(limit)))?;
        if gone && let Some(child) = &mut self.child {
            child.wait()?;
        }
        Ok(gone)
    }

    /// Asks it to end (`SIGTERM`), and after `grace` ends it (`SIGKILL`). It is gone on return.
    ///
    /// Returns whether it ended by itself.
    pub fn stop(&mut self, grace: Duration) -> Result<bool> {
        let begun = Instant::now();
        self.signal(Signal::TERM)?;
        if self.wait(grace)? {
            tracing::info!("{} ended after {:.1?}", self.name, begun.elapsed());
            return Ok(true);
        }
        tracing::warn!("{} did not end within {grace:?} and is killed", self.name);
        self.kill()?;
        Ok(false)
    }

    /// Like [`Self::stop`]; returns the status with which it ended by itself, where it is our child.
    pub fn end(&mut self, grace: Duration) -> Result<Option<ExitStatus>> {
        let by_itself = self.stop(grace)?;
        let status = self.child.as_mut().map(Child::wait).transpose()?;
        Ok(status.filter(|_| by_itself))
    }

    /// Ends it with `SIGKILL`. It is gone on return.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        let gone = self.wait(Duration::from_secs(30))?;
        ensure!(gone, "{} (pid {}) survives SIGKILL", self.name, self.pid());
        Ok(())
    }

    /// Sends a signal; to a process that has ended, none.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("signal {}", self.name)),
        }
    }

    /// Its log.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))
    }

    /// The last lines of its log, for a message.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(15)..];
        format!("{} ends with:\n{}", self.log.display(), last.join("\n"))
    }

    /// Resident memory in KiB.
    pub fn memory_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().trim_end_matches("kB").trim().parse().ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Test && self.is_running() && self.kill().is_err() {
            tracing::warn!("{} (pid {}) could not be killed", self.name, self.pid());
        }
    }
}

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails; the message holds the command and what it wrote to
/// standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let shown = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {shown}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}: {}", output.status, words.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Spawns from a thread that lives as long as the process: the kernel sends the signal of
/// `setpriv --pdeathsig` when the *thread* that made the child ends, and an async runtime ends
/// its threads when it likes.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
        let (sender, receiver) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in receiver {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (sender, receiver) = mpsc::channel();
    let lost = || io::Error::other("the spawning thread is gone");
    SPAWNER.send((command, sender)).map_err(|_| lost())?;
    receiver.recv().map_err(|_| lost())?
}

/// Kills every process recorded in a state folder. Best effort: what has ended already is fine.
pub(crate) fn kill_recorded(state: &Path) {
    let Ok(records) = fs::read_dir(state.join("processes")) else { return };
    for path in records
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension() == Some(OsStr::new("json")))
    {
        let identity =
            File::open(&path).ok().and_then(|file| serde_json::from_reader::<_, Identity>(file).ok());
        if let Some(fd) = identity.and_then(Identity::open) {
            let _ = pidfd_send_signal(&fd, Signal::KILL);
            let _ = ended(&fd, Some(Duration::from_secs(10)));
        }
        let _ = fs::remove_file(path);
    }
}

fn record(state: &Path, name: &str) -> PathBuf {
    state.join("processes").join(format!("{name}.json"))
}

/// Waits for the end of the process behind a pidfd; `None` waits for ever.
fn ended(fd: &OwnedFd, limit: Option<Duration>) -> Result<bool> {
    let limit = limit.map(Timespec::try_from).transpose()?;
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut polled, limit.as_ref()))? > 0)
}
