//! The relay: the way from a person to the screen of a desktop on this node.
//!
//! ```text
//!   listener: TLS 1.3, one bounded line in time ─▶ door: ticket, place, domain ─▶ bytes both ways
//!       strangers: pure, identity: a key of this start    tickets: pure         QEMU, by a descriptor
//! ```
//!
//! QEMU listens nowhere, so this is the only way in from outside the node. Whoever knocks is a stranger
//! until his ticket is good, and strangers can neither hold up each other nor those who look already.

pub mod door;
pub mod identity;
pub mod listener;
mod strangers;
pub mod tickets;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use gpudesk_crds::desktop::ConsoleRelay;
use kube::Client;
use tokio::{
    net::{TcpListener, UdpSocket, lookup_host},
    sync::watch,
};

use self::{door::Door, identity::Identity, listener::Doorkeeper};
use crate::{host::hypervisor::Hypervisor, orphans::Watched};

/// A relay that listens already and answers once it is served.
pub struct Relay {
    identity: Identity,
    listener: TcpListener,
    announced: String,
}

impl Relay {
    /// Listens at `listen`, with a key that is made now.
    ///
    /// People are told the address `announce`; without it the one that is listened at, or, when that is
    /// every address, the one from which this node reaches `api_server`.
    ///
    /// # Errors
    /// When nobody can listen there, or no address is found to tell people.
    pub async fn bind(listen: SocketAddr, announce: Option<&str>, api_server: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let bound = listener.local_addr()?;
        let announced = match announce {
            Some(announce) => with_port(announce, bound.port()),
            None if bound.ip().is_unspecified() => {
                SocketAddr::new(address_towards(api_server).await?, bound.port()).to_string()
            }
            None => bound.to_string(),
        };
        Ok(Self { identity: Identity::new()?, listener, announced })
    }

    /// What the status of a desktop says of it.
    pub fn console(&self) -> ConsoleRelay {
        ConsoleRelay { address: self.announced.clone(), public_key: self.identity.public_key().to_owned() }
    }

    /// Lets in whom `keeper` lets in, for as long as it is awaited. Screens that are open close with
    /// the process.
    pub async fn serve(self, keeper: impl Doorkeeper) {
        listener::serve(self.listener, self.identity.tls(), keeper).await;
    }
}

/// Serves the relay of `node`, where it has one, to the desktops that are `watched`.
pub async fn serve(
    relay: Option<Relay>,
    node: &str,
    hypervisor: &Arc<dyn Hypervisor>,
    client: Client,
    watched: watch::Receiver<Option<Watched>>,
) {
    let Some(relay) = relay else { return std::future::pending().await };
    let door = Door::new(node, relay.console(), Arc::clone(hypervisor), client, watched);
    relay.serve(door).await;
}

/// An announced address with the port that it lacks.
fn with_port(announced: &str, port: u16) -> String {
    if let Ok(ip) = announced.parse::<IpAddr>() {
        return SocketAddr::new(ip, port).to_string();
    }
    let named = announced.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if named { announced.to_owned() } else { format!("{announced}:{port}") }
}

/// The address of this node on the way to `server` (`host:port`). Nothing is sent.
async fn address_towards(server: &str) -> io::Result<IpAddr> {
    let found = lookup_host(server).await?.next();
    let to = found.ok_or_else(|| io::Error::other(format!("{server} has no address")))?;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announced_address_gets_the_port_that_it_lacks() {
        for (announced, told) in [
            ("192.0.2.7", "192.0.2.7:8443"),
            ("192.0.2.7:30443", "192.0.2.7:30443"),
            ("2001:db8::7", "[2001:db8::7]:8443"),
            ("[2001:db8::7]:30443", "[2001:db8::7]:30443"),
            ("gpu-1.example.org", "gpu-1.example.org:8443"),
            ("gpu-1.example.org:30443", "gpu-1.example.org:30443"),
        ] {
            assert_eq!(with_port(announced, 8443), told);
        }
    }

    #[tokio::test]
    async fn who_listens_everywhere_tells_the_address_towards_the_api_server() {
        let relay = Relay::bind("0.0.0.0:0".parse().unwrap(), None, "127.0.0.1:6443").await.unwrap();
        let console = relay.console();
        assert!(console.address.starts_with("127.0.0.1:") && !console.address.ends_with(":0"), "{console:?}");
        let again = Relay::bind("127.0.0.1:0".parse().unwrap(), None, "").await.unwrap().console();
        assert_ne!(console.public_key, again.public_key, "each start has a key of its own");
    }
}
