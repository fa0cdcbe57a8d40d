//! Takes connections, and passes bytes for those that the door lets in.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use gpudesk_crds::relay::{LONGEST_LINE, PROTOCOL, Refusal, RelayAnswer, RelayRequest};
use rustix::net::sockopt;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    task::AbortHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::strangers::Strangers;

/// Time for the handshake and the line. A client writes its ticket between the two.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for the door to decide, and for the answer to go out.
const DECISION: Duration = Duration::from_secs(20);
/// After so long without a word a client that is there is asked whether it is, and counts as gone after
/// three questions.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Decides who is let in.
pub trait Doorkeeper: Send + Sync + 'static {
    /// The screen that a request is for, or why there is none.
    fn admit(&self, request: RelayRequest) -> BoxFuture<'_, Result<Admitted, Refused>>;
}

/// A screen that is open.
pub struct Admitted {
    /// The screen.
    pub screen: UnixStream,
    /// Given back when the screen is closed.
    pub place: Box<dyn Send>,
}

/// A screen that stays closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why, for programs.
    pub reason: Refusal,
    /// Why, for people.
    pub message: String,
}

impl Refused {
    /// With words.
    pub fn new(reason: Refusal, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Serves for as long as it is awaited.
pub(super) async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, keeper: impl Doorkeeper) {
    let acceptor = TlsAcceptor::from(tls);
    let keeper = Arc::new(keeper);
    let mut strangers = Strangers::<AbortHandle>::default();
    loop {
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: those who look go on, newcomers wait.
                tracing::warn!(%error, "a connection to the relay could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, keeper) = (acceptor.clone(), Arc::clone(&keeper));
        let meeting = tokio::spawn(async move {
            if let Err(error) = meet(&acceptor, &*keeper, socket, peer).await {
                tracing::debug!(%peer, %error, "a connection to the relay came to nothing");
            }
        });
        strangers.retain(|stranger| !stranger.is_finished());
        if let Some(too_many) = strangers.push(peer.ip(), meeting.abort_handle()) {
            too_many.abort();
        }
    }
}

async fn meet(
    acceptor: &TlsAcceptor,
    keeper: &impl Doorkeeper,
    socket: TcpStream,
    peer: SocketAddr,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(&socket, 3)?;
    let (mut client, line) = timeout(PATIENCE, async {
        let mut client = acceptor.accept(socket).await?;
        if client.get_ref().1.alpn_protocol() != Some(PROTOCOL) {
            return Err(io::Error::other("another protocol"));
        }
        let line = first_line(&mut client).await?;
        Ok((client, line))
    })
    .await??;
    let mut desktop = String::new();
    let admitted = timeout(DECISION, async {
        let admitted = match line.as_deref().map(serde_json::from_slice::<RelayRequest>) {
            Some(Ok(request)) => {
                desktop = format!("{}/{}", request.namespace, request.name);
                keeper.admit(request).await
            }
            Some(Err(error)) => Err(Refused::new(Refusal::BadRequest, format!("the first line: {error}"))),
            None => {
                let message = format!("the first line has more than {LONGEST_LINE} bytes, or more behind it");
                Err(Refused::new(Refusal::BadRequest, message))
            }
        };
        let answer = match &admitted {
            Ok(_) => RelayAnswer::Granted,
            Err(Refused { reason, message }) => {
                RelayAnswer::Refused { reason: *reason, message: message.clone() }
            }
        };
        let mut answer = serde_json::to_vec(&answer)?;
        answer.push(b'\n');
        client.write_all(&answer).await?;
        client.flush().await?;
        if admitted.is_err() {
            client.shutdown().await?;
        }
        io::Result::Ok(admitted)
    })
    .await??;
    match admitted {
        Ok(admitted) => {
            tracing::info!(%peer, desktop, "a screen is open");
            // No stranger any more.
            tokio::spawn(async move {
                pass(client, admitted).await;
                tracing::info!(%peer, desktop, "a screen is closed");
            });
        }
        // Not louder: any stranger can make it.
        Err(refused) => tracing::debug!(%peer, desktop, ?refused, "a screen stays closed"),
    }
    Ok(())
}

/// The first line without its end; `None` when it is too long, or when something follows it already.
async fn first_line(client: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = vec![];
    let mut piece = [0; LONGEST_LINE];
    loop {
        let count = client.read(&mut piece).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&piece[..count]);
        match line.iter().position(|byte| *byte == b'\n') {
            Some(end) if end + 1 == line.len() && line.len() <= LONGEST_LINE => {
                line.pop();
                return Ok(Some(line));
            }
            None if line.len() < LONGEST_LINE => {}
            Some(_) | None => return Ok(None),
        }
    }
}

/// Passes bytes until either side ends.
async fn pass(client: TlsStream<TcpStream>, admitted: Admitted) {
    let Admitted { screen, place } = admitted;
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_screen, mut to_screen) = screen.into_split();
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_screen) => {}
        _ = tokio::io::copy(&mut from_screen, &mut to_client) => {}
    }
    let _ = timeout(PATIENCE, to_client.shutdown()).await;
    drop(place);
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
