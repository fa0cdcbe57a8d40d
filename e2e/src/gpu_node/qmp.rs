//! QEMU's monitor.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// QEMU answers at once, unless it hangs.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection to the monitor. Events that come meanwhile are kept for [`Qmp::event`].
#[derive(Debug)]
pub(super) struct Qmp {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects and takes up the conversation.
    pub(super) async fn connect(socket: &Path) -> Result<Self> {
        let (reader, writer) = UnixStream::connect(socket).await?.into_split();
        let mut qmp = Self { lines: BufReader::new(reader).lines(), writer, events: Vec::new() };
        qmp.message().await.context("QEMU did not greet")?;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returns.
    pub(super) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.writer.write_all(format!("{line}\n").as_bytes()).await?;
        loop {
            let mut message = timeout(ANSWER, self.message())
                .await
                .with_context(|| format!("QEMU does not answer to {line}"))??;
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                bail!("QEMU refused {line}: {}", error["desc"]);
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Waits for an event of this name whose data meets a condition; an earlier one counts.
    pub(super) async fn event(&mut self, name: &str, condition: impl Fn(&Value) -> bool) -> Result<()> {
        let meets = |event: &Value| event["event"] == name && condition(&event["data"]);
        if let Some(place) = self.events.iter().position(meets) {
            self.events.remove(place);
            return Ok(());
        }
        loop {
            let message = self.message().await?;
            if meets(&message) {
                return Ok(());
            }
            self.events.push(message);
        }
    }

    async fn message(&mut self) -> Result<Value> {
        let line = self.lines.next_line().await?.context("QEMU closed its monitor")?;
        serde_json::from_str(&line).with_context(|| format!("QEMU wrote {line:?}"))
    }
}
