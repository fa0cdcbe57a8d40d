//! `view` as a command: its options, and how it ends.
#![expect(clippy::disallowed_methods, reason = "adapter: writes the picture")]

use std::{
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use gpudesk_crds::{DEFAULT_SYSTEM_NAMESPACE, relay::Refusal};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
    dial::{self, Connection as Relay, Via},
    screenshot,
    target::{self, Target},
    ticket::Ticket,
    viewer,
};
use crate::{
    placement::request::DesktopKey,
    plan::{
        cluster::{Cluster, Connection},
        run::{Failure, print},
    },
    why::run::key,
};

/// How often the way to a screen is tried, when what failed may pass: a daemon that starts again, or
/// somebody else who asked for the same screen at the same moment.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(700);
/// Time for a picture.
const PICTURE: Duration = Duration::from_secs(20);

/// Options of `view`.
#[derive(Clone, Debug, Args)]
pub struct View {
    /// The desktop: NAME, desktop/NAME, or NAMESPACE/NAME.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The port of 127.0.0.1 that the viewer connects to. 0: a free one.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, conflicts_with = "screenshot")]
    pub port: u16,
    /// Open no port: write a picture of the screen into this file, as PNG.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub screenshot: Option<PathBuf>,
    /// The way to the node.
    #[arg(long, value_enum, default_value_t)]
    pub via: Via,
    /// Where gpudesk is installed, for a way through the API server.
    #[arg(long, value_name = "NAMESPACE", default_value = DEFAULT_SYSTEM_NAMESPACE)]
    pub system_namespace: String,
    /// The cluster.
    #[command(flatten)]
    pub connection: Connection,
}

/// Why a screen is not seen.
#[derive(Debug, Error)]
pub enum ViewError {
    /// There is none to see now.
    #[error("{0}")]
    NotNow(String),
    /// The API server says no.
    #[error("{0}")]
    Forbidden(String),
    /// The API server could not do it.
    #[error("{0}")]
    Api(String),
    /// The node is not reached.
    #[error("{0}")]
    Unreachable(String),
    /// Something else than the node's relay answers.
    #[error("{0}")]
    WrongKey(String),
    /// The relay says no.
    #[error("{1}")]
    Refused(Refusal, String),
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

impl ViewError {
    /// Why the ticket was not written.
    pub(super) fn patch(error: kube::Error, target: &Target) -> Self {
        let desktop = format!("{}/{}", target.namespace, target.name);
        match error {
            kube::Error::Api(status) if status.code == 403 => Self::Forbidden(format!(
                "you may not open the screen of {desktop}, which takes the right to patch it, as the roles edit and admin \
                 have: {}",
                status.message
            )),
            kube::Error::Api(status) if status.code == 409 => {
                Self::NotNow(format!("{desktop} was made anew meanwhile: {}", status.message))
            }
            kube::Error::Api(status) => {
                Self::Api(format!("asking for the screen of {desktop}: {}", status.message))
            }
            error => Self::Api(format!("asking for the screen of {desktop}: {error}")),
        }
    }

    /// Whether the same may go well a moment later.
    fn may_pass(&self) -> bool {
        match self {
            Self::WrongKey(_) | Self::Refused(Refusal::NoTicket, _) => true,
            Self::Refused(..)
            | Self::NotNow(_)
            | Self::Forbidden(_)
            | Self::Api(_)
            | Self::Unreachable(_)
            | Self::Failed(_) => false,
        }
    }

    fn into_failure(self) -> Failure {
        match self {
            Self::Api(said) => Failure::Api(said),
            other => Failure::NotSeen(other.to_string()),
        }
    }
}

/// Opens the screen, and passes it to one viewer until he leaves, or into a file.
///
/// # Errors
/// [`Failure`]; a desktop that is not there is wrong input.
pub async fn run(options: &View) -> Result<bool, Failure> {
    if let Some(file) = &options.screenshot {
        try_to_write(file).map_err(|error| not_written(file, &error))?;
    }
    let cluster = Cluster::connect(&options.connection).await?;
    let key = key(&options.name, &cluster.namespace);
    // Before anything is asked for: a port that is taken is known at once.
    let listener = match options.screenshot {
        Some(_) => None,
        None => Some(TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await.map_err(|error| {
            Failure::Input(vec![format!("--port {}: 127.0.0.1 cannot be listened at: {error}", options.port)])
        })?),
    };
    let screen = open(&cluster, &key, options).await?;
    match (listener, &options.screenshot) {
        (_, Some(file)) => {
            let picture = timeout(PICTURE, screenshot::png(screen)).await;
            let picture =
                picture.map_err(|_| io::Error::other("it is not drawn in time")).and_then(|picture| picture);
            let picture =
                picture.map_err(|error| Failure::NotSeen(format!("the screen of {key}: {error}")))?;
            std::fs::write(file, picture).map_err(|error| not_written(file, &error))?;
        }
        (Some(listener), None) => pass(screen, listener, &key).await?,
        (None, None) => {}
    }
    Ok(true)
}

fn not_written(file: &Path, error: &io::Error) -> Failure {
    Failure::Input(vec![format!("--screenshot {}: the file cannot be written: {error}", file.display())])
}

/// Finds out whether a picture can be written, and leaves what is there as it is.
fn try_to_write(file: &Path) -> io::Result<()> {
    let there = std::fs::metadata(file);
    // A pipe would wait here for who reads it.
    if there.as_ref().is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        return Ok(());
    }
    std::fs::OpenOptions::new().append(true).create(true).open(file)?;
    if there.is_err() { std::fs::remove_file(file) } else { Ok(()) }
}

/// A connection to the screen of a desktop.
async fn open(cluster: &Cluster, key: &DesktopKey, options: &View) -> Result<Relay, Failure> {
    let mut attempt = 1;
    loop {
        let desktop = cluster.desktop(key).await?;
        let desktop = desktop.ok_or_else(|| Failure::Input(vec![format!("Desktop {key} does not exist")]))?;
        let target = target::of(&desktop).map_err(Failure::NotSeen)?;
        match enter(cluster, &target, options).await {
            Err(error) if error.may_pass() && attempt < ATTEMPTS => {
                attempt += 1;
                tokio::time::sleep(PAUSE).await;
            }
            other => return other.map_err(ViewError::into_failure),
        }
    }
}

async fn enter(cluster: &Cluster, target: &Target, options: &View) -> Result<Relay, ViewError> {
    let namespace = &options.system_namespace;
    // The key is proved before there is a ticket that could be shown to somebody else.
    let connection = dial::connect(cluster.client(), namespace, target, options.via).await?;
    let ticket = Ticket::write(cluster.client(), target).await?;
    let entered = dial::enter(connection, target, &ticket.secret).await;
    ticket.remove().await;
    entered
}

/// Passes the screen to the first of this user who connects, until either side ends.
async fn pass(mut screen: Relay, listener: TcpListener, key: &DesktopKey) -> Result<(), Failure> {
    let closed = || Failure::NotSeen(format!("the screen of {key} was closed"));
    // The server speaks first: that it does shows that the whole way is there.
    let mut banner = [0; 12];
    let read = timeout(PICTURE, screen.read_exact(&mut banner)).await;
    read.map_err(|_| closed())?.map_err(|_| closed())?;
    let address = listener.local_addr()?;
    eprintln!(
        "The screen of {key} is open for one VNC viewer, such as: vncviewer 127.0.0.1::{}",
        address.port()
    );
    print(&format!("{address}\n"))?;
    let mut nothing = [0; 1];
    let mut viewer: TcpStream = tokio::select! {
        accepted = viewer::accept(&listener) => accepted?,
        // The server waits for the viewer's word, so this is its end.
        _ = screen.read(&mut nothing) => return Err(closed()),
    };
    // One viewer: nobody else on this computer gets in.
    drop(listener);
    let _ = viewer.set_nodelay(true);
    viewer.write_all(&banner).await?;
    let (mut from_screen, mut to_screen) = tokio::io::split(screen);
    let (mut from_viewer, mut to_viewer) = viewer.split();
    tokio::select! {
        _ = tokio::io::copy(&mut from_viewer, &mut to_screen) => Ok(()),
        _ = tokio::io::copy(&mut from_screen, &mut to_viewer) => Err(closed()),
    }
}
