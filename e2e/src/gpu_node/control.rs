//! Commands into the guest, and their output: the host's end of `gpu-node/image/runner`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};

/// What a script left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit status, as a shell gives it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

type Senders = HashMap<u32, oneshot::Sender<i32>>;

/// A connection to the guest's runner.
#[derive(Debug)]
pub(super) struct Control {
    jobs: PathBuf,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Arc<Mutex<Senders>>,
    /// How often the guest began to take commands.
    ready: watch::Receiver<u32>,
    next: AtomicU32,
}

impl Control {
    /// Connects to QEMU's end of the port. `jobs` is the folder of scripts and their output.
    pub(super) async fn connect(socket: &Path, jobs: PathBuf) -> Result<Self> {
        let (reader, writer) = UnixStream::connect(socket)
            .await
            .with_context(|| format!("connect to {}", socket.display()))?
            .into_split();
        let waiting = Arc::<Mutex<Senders>>::default();
        let (sender, ready) = watch::channel(0);
        tokio::spawn(listen(reader, Arc::clone(&waiting), sender));
        Ok(Self { jobs, writer: tokio::sync::Mutex::new(writer), waiting, ready, next: AtomicU32::new(1) })
    }

    /// How often the guest began to take commands: once for each boot.
    pub(super) fn boots(&self) -> u32 {
        *self.ready.borrow()
    }

    /// Waits until the guest takes commands after so many boots.
    ///
    /// # Errors
    /// When QEMU ends before.
    pub(super) async fn ready_after(&self, boots: u32) -> Result<()> {
        self.ready.clone().wait_for(|ready| *ready > boots).await.context("the guest is gone")?;
        Ok(())
    }

    /// Runs a script to its end.
    ///
    /// # Errors
    /// When the guest is gone.
    pub(super) async fn run(&self, script: &str) -> Result<Output> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let file = |extension: &str| self.jobs.join(format!("{number}.{extension}"));
        fs::write(file("sh"), script)?;
        let (sender, ended) = oneshot::channel();
        lock(&self.waiting).insert(number, sender);
        self.writer.lock().await.write_all(format!("{number}\n").as_bytes()).await?;
        let status = ended.await.context("the guest is gone")?;
        let read = |extension: &str| -> Result<String> {
            let path = file(extension);
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Output { status, stdout: read("out")?, stderr: read("err")? })
    }
}

/// Hands out what the runner says, until it is gone; then nobody waits any more.
async fn listen(reader: OwnedReadHalf, waiting: Arc<Mutex<Senders>>, ready: watch::Sender<u32>) {
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line == "ready" {
            ready.send_modify(|boots| *boots += 1);
        }
        let job = line
            .split_once(' ')
            .and_then(|(number, status)| Some((number.parse::<u32>().ok()?, status.parse::<i32>().ok()?)));
        if let Some((number, status)) = job
            && let Some(sender) = lock(&waiting).remove(&number)
        {
            // Nobody may wait for it any more.
            let _ = sender.send(status);
        }
    }
    lock(&waiting).clear();
}

fn lock(waiting: &Mutex<Senders>) -> MutexGuard<'_, Senders> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
