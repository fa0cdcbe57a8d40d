//! A TCP proxy that can hold back what clients send, as a slow network does: it arrives later, also
//! when its sender is gone by then. What the server sends is never held.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Between pieces of what was held: a server that reads a request and the end of its connection together
/// gives the request up.
const PAUSE: Duration = Duration::from_millis(200);

/// A proxy on a free port of the loopback address. It ends when it is dropped.
pub struct HeldProxy {
    address: SocketAddr,
    held: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl HeldProxy {
    /// Starts one in front of `server`.
    pub async fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (held, follow) = watch::channel(false);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, server, follow.clone()));
            }
        });
        Ok(Self { address, held, accepting })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing that clients send arrives; it is kept.
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// What was kept arrives, in order, and so does what follows.
    pub fn let_go(&self) {
        self.held.send_replace(false);
    }
}

impl Drop for HeldProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn connection(client: TcpStream, server: SocketAddr, mut held: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (keep, mut kept) = mpsc::unbounded_channel::<(bool, Vec<u8>)>();
    let is_held = held.clone();
    let sending = async {
        while let Some((late, bytes)) = kept.recv().await {
            if held.wait_for(|held| !held).await.is_err() || to_server.write_all(&bytes).await.is_err() {
                return;
            }
            if late {
                tokio::time::sleep(PAUSE).await;
            }
        }
        // The server hears late that the client is gone.
        tokio::time::sleep(25 * PAUSE).await;
        _ = to_server.shutdown().await;
    };
    let reading = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            let late = *is_held.borrow();
            let Some(bytes) = buffer.get(..count) else { return };
            if keep.send((late, bytes.to_vec())).is_err() {
                return;
            }
        }
    };
    let answering = async {
        // Whoever is gone hears no answer, and that ends nothing: the server is read all the same.
        if tokio::io::copy(&mut from_server, &mut to_client).await.is_err() {
            _ = tokio::io::copy(&mut from_server, &mut tokio::io::sink()).await;
        }
    };
    tokio::join!(sending, reading, answering);
}
