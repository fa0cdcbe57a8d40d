//! Runs the admin's discovery hook.
//!
//! The hook is a program of the admin and runs as the daemon. So it must be one that only the admin or
//! the daemon's user could have put there, it gets no more environment than it needs, and neither what
//! it prints nor how long it takes can hold up the daemon. What is made of its answer is
//! [`gpudesk_inventory::hook`].
#![expect(clippy::disallowed_methods, reason = "adapter: starts the admin's program")]

use std::{
    ffi::OsString,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use gpudesk_crds::GpuNode;
use gpudesk_inventory::hook::{self, HookAnswer, HookView, MAX_BYTES};
use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::{sleep, timeout},
};

/// Time that a hook has when nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Time that what a hook left running has to close its output after the hook itself ended.
const GRACE: Duration = Duration::from_millis(500);
/// The end of what a hook wrote to its standard error that is kept.
const LAST_WORDS: usize = 4 << 10;
/// Where programs are looked for when the daemon itself was told nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a hook gave no usable answer.
#[derive(Debug, Error)]
pub enum HookFailure {
    /// It cannot be looked at.
    #[error("{}: {source}", file.display())]
    Unreadable {
        /// The hook.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is not what the daemon would run.
    #[error("{} {problem}", file.display())]
    Refused {
        /// The hook.
        file: PathBuf,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// It did not start.
    #[error("{} could not be started: {source}", file.display())]
    NotStarted {
        /// The hook.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It ended badly.
    #[error("{} ended with {status}{}", file.display(), said(last_words))]
    Ended {
        /// The hook.
        file: PathBuf,
        /// How.
        status: ExitStatus,
        /// The last line that it wrote to its standard error.
        last_words: String,
    },
    /// It did not end.
    #[error("{} did not end within {} s and was killed{}", file.display(), patience.as_secs_f32(), said(last_words))]
    TimedOut {
        /// The hook.
        file: PathBuf,
        /// The time it had.
        patience: Duration,
        /// The last line that it wrote to its standard error.
        last_words: String,
    },
    /// It printed more than anybody reads.
    #[error("{} printed more than {MAX_BYTES} bytes and was killed", file.display())]
    TooMuch {
        /// The hook.
        file: PathBuf,
    },
    /// Its output could not be read.
    #[error("reading what {} prints: {source}", file.display())]
    Pipe {
        /// The hook.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It printed what cannot be used.
    #[error("{} printed what cannot be used: {source}", file.display())]
    Output {
        /// The hook.
        file: PathBuf,
        /// The cause.
        source: hook::HookError,
    },
    /// What was found cannot be put into JSON for it.
    #[error("writing what was found for {}: {source}", file.display())]
    Input {
        /// The hook.
        file: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
}

fn said(last_words: &str) -> String {
    if last_words.is_empty() { String::new() } else { format!("; it last said: {last_words}") }
}

/// The admin's discovery hook, and the last good answer that it gave.
#[derive(Debug)]
pub struct DiscoveryHook {
    file: PathBuf,
    patience: Duration,
    environment: Vec<(&'static str, OsString)>,
    answer: Option<HookAnswer>,
}

impl DiscoveryHook {
    /// The hook in `file`, on the node of this name whose files are below `host_root`.
    pub fn new(file: PathBuf, node: &str, host_root: &Path) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        let environment =
            vec![("PATH", path), ("GPUDESK_NODE_NAME", node.into()), ("GPUDESK_HOST_ROOT", host_root.into())];
        Self { file, patience: PATIENCE, environment, answer: None }
    }

    /// The same hook with another time to end within.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The last good answer.
    pub fn answer(&self) -> Option<&HookAnswer> {
        self.answer.as_ref()
    }

    /// Runs the hook and keeps what it said; one that fails leaves the last good answer as it was.
    ///
    /// `found` is what was found so far; the hook reads it as JSON on its standard input. Dropping the
    /// future kills the hook and what it started.
    pub async fn ask(&mut self, found: &GpuNode) -> HookView {
        match self.run(found).await {
            Ok(answer) => {
                self.answer = Some(answer);
                HookView::Good
            }
            Err(failure) => {
                tracing::warn!(%failure, "the discovery hook gave no usable answer");
                HookView::Failed { why: failure.to_string(), answered: self.answer.is_some() }
            }
        }
    }

    async fn run(&self, found: &GpuNode) -> Result<HookAnswer, HookFailure> {
        let file = || self.file.clone();
        let input =
            serde_json::to_vec(found).map_err(|source| HookFailure::Input { file: file(), source })?;
        let program = self.checked().await?;
        let mut child = self.start(&program).await?;
        let mut group = Group::of(&child);
        let mut heard = Heard::default();
        let ended = timeout(self.patience, attend(&mut child, &input, &mut heard)).await;
        if !matches!(ended, Ok(Ok(Attended { silent: true, .. }))) {
            group.kill();
            // Also reaps it; a hook stuck in the kernel must not hold up the daemon.
            let _ = timeout(Duration::from_secs(1), child.wait()).await;
        }
        group.forget();
        let last_words = last_line(&heard.errors);
        match ended {
            Err(_) => Err(HookFailure::TimedOut { file: file(), patience: self.patience, last_words }),
            Ok(Err(Trouble::TooMuch)) => Err(HookFailure::TooMuch { file: file() }),
            Ok(Err(Trouble::Pipe(source))) => Err(HookFailure::Pipe { file: file(), source }),
            Ok(Ok(Attended { status, .. })) if !status.success() => {
                Err(HookFailure::Ended { file: file(), status, last_words })
            }
            Ok(Ok(_)) => {
                // Up to 4 MiB of JSON: tens of milliseconds that the async threads should not spend.
                let output = std::mem::take(&mut heard.output);
                let parsed = tokio::task::spawn_blocking(move || hook::parse(&output)).await;
                let parsed =
                    parsed.map_err(|error| HookFailure::Pipe { file: file(), source: error.into() })?;
                parsed.map_err(|source| HookFailure::Output { file: file(), source })
            }
        }
    }

    /// The program that the file names, when it is one that the daemon may run.
    async fn checked(&self) -> Result<PathBuf, HookFailure> {
        let unreadable = |source| HookFailure::Unreadable { file: self.file.clone(), source };
        // What is looked at is what is run, also behind a symbolic link.
        let program = tokio::fs::canonicalize(&self.file).await.map_err(unreadable)?;
        let meta = tokio::fs::symlink_metadata(&program).await.map_err(unreadable)?;
        let folder = match program.parent() {
            Some(folder) => Some(tokio::fs::metadata(folder).await.map_err(unreadable)?),
            None => None,
        };
        let own = geteuid().as_raw();
        let problem = if !meta.is_file() {
            Some("is no regular file".to_owned())
        } else if meta.uid() != 0 && meta.uid() != own {
            Some(format!("is owned by user {}: only root or user {own} may own it", meta.uid()))
        } else if meta.mode() & 0o022 != 0 {
            Some("can be written by its group or by others: run chmod go-w on it".to_owned())
        } else if meta.mode() & 0o111 == 0 {
            Some("is not executable: run chmod +x on it".to_owned())
        } else if folder.is_some_and(|folder| folder.mode() & 0o1002 == 0o002) {
            Some(
                "is in a folder that others can write to: move it, or run chmod o-w on the folder".to_owned(),
            )
        } else {
            None
        };
        match problem {
            Some(problem) => Err(HookFailure::Refused { file: self.file.clone(), problem }),
            None => Ok(program),
        }
    }

    async fn start(&self, program: &Path) -> Result<Child, HookFailure> {
        let mut tries = 0;
        loop {
            let started = Command::new(program)
                .env_clear()
                .envs(self.environment.iter().map(|(name, value)| (*name, value)))
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .process_group(0)
                .kill_on_drop(true)
                .spawn();
            match started {
                // Somebody is writing it just now: an admin who installs a new one.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < 20 => {
                    tries += 1;
                    sleep(Duration::from_millis(25)).await;
                }
                Err(source) => return Err(HookFailure::NotStarted { file: self.file.clone(), source }),
                Ok(child) => return Ok(child),
            }
        }
    }
}

/// The process group of a hook, killed when it is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let number = child.id().and_then(|id| i32::try_from(id).ok());
        Self(number.and_then(Pid::from_raw))
    }

    fn kill(&self) {
        if let Some(group) = self.0 {
            // One that is gone already is as wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Its number may soon be another's.
    fn forget(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a hook printed so far.
#[derive(Default)]
struct Heard {
    output: Vec<u8>,
    errors: Vec<u8>,
}

/// How a hook ended.
struct Attended {
    status: ExitStatus,
    /// Whether nobody holds its output any more.
    silent: bool,
}

enum Trouble {
    TooMuch,
    Pipe(io::Error),
}

/// Feeds a hook and listens to it until it ends. What it started and left behind is listened to for
/// [`GRACE`] more.
async fn attend(child: &mut Child, input: &[u8], heard: &mut Heard) -> Result<Attended, Trouble> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A hook need not read what it is given.
            let _ = stdin.write_all(input).await;
        }
        Ok(())
    };
    let Heard { output, errors } = heard;
    let pipes =
        async { tokio::try_join!(feed, listen(stdout, output), overhear(stderr, errors)).map(|_| ()) };
    tokio::pin!(pipes);
    let status = tokio::select! {
        biased;
        listened = &mut pipes => {
            listened?;
            let status = child.wait().await.map_err(Trouble::Pipe)?;
            return Ok(Attended { status, silent: true });
        }
        status = child.wait() => status.map_err(Trouble::Pipe)?,
    };
    match timeout(GRACE, pipes).await {
        Ok(listened) => listened.map(|()| Attended { status, silent: true }),
        Err(_) => Ok(Attended { status, silent: false }),
    }
}

/// Reads all of it, up to what an answer may have.
async fn listen(pipe: Option<impl AsyncRead + Unpin>, heard: &mut Vec<u8>) -> Result<(), Trouble> {
    let Some(pipe) = pipe else { return Ok(()) };
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    pipe.take(limit).read_to_end(heard).await.map_err(Trouble::Pipe)?;
    if heard.len() > MAX_BYTES { Err(Trouble::TooMuch) } else { Ok(()) }
}

/// Reads all of it and keeps the end.
async fn overhear(pipe: Option<impl AsyncRead + Unpin>, heard: &mut Vec<u8>) -> Result<(), Trouble> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut buffer = [0; 4096];
    loop {
        let count = pipe.read(&mut buffer).await.map_err(Trouble::Pipe)?;
        if count == 0 {
            return Ok(());
        }
        heard.extend_from_slice(&buffer[..count]);
        let excess = heard.len().saturating_sub(LAST_WORDS);
        heard.drain(..excess);
    }
}

/// The last line with something in it, as people can read it.
fn last_line(errors: &[u8]) -> String {
    let text = String::from_utf8_lossy(errors);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_with_something_in_it_is_what_a_hook_last_said() {
        assert_eq!(last_line(b"first\n  second \x1b[0m\n\n"), "second [0m");
        assert_eq!(last_line(b""), "");
        assert_eq!(last_line(&[0xff, b'x']), "\u{fffd}x");
    }
}
