//! Who connects to the loopback port: the viewer of whoever runs the plugin, and nobody else.
//!
//! Linux tells of each TCP connection whose it is (`/proc/net/tcp`, `/proc/net/tcp6`: proc(5)). Elsewhere
//! nobody is asked, and the first who connects is the viewer.
#![expect(clippy::disallowed_methods, reason = "adapter: reads what the kernel tells of connections")]

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::MetadataExt,
};

use tokio::net::{TcpListener, TcpStream};

/// The first connection that is this user's. Others are closed with a word about them.
///
/// # Errors
/// When nobody can be waited for.
pub(super) async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    accept_of(listener, |peer, own| if cfg!(target_os = "linux") { stranger(peer, own) } else { None }).await
}

/// The first connection of which `stranger` has nothing to say.
async fn accept_of(
    listener: &TcpListener,
    stranger: impl Fn(SocketAddr, SocketAddr) -> Option<String>,
) -> io::Result<TcpStream> {
    loop {
        let (viewer, peer) = listener.accept().await?;
        match stranger(peer, viewer.local_addr()?) {
            None => return Ok(viewer),
            Some(why) => eprintln!("A connection from {peer} was closed: {why}."),
        }
    }
}

/// Why the other end of a connection from `peer` to `own` is not this user's.
fn stranger(peer: SocketAddr, own: SocketAddr) -> Option<String> {
    let table = |name: &str| fs::read_to_string(format!("/proc/self/net/{name}")).ok();
    let tables = [table("tcp"), table("tcp6")];
    let Ok(me) = fs::metadata("/proc/self").map(|process| process.uid()) else {
        return Some("/proc does not say whose it is".into());
    };
    match tables.iter().flatten().find_map(|table| owner(table, peer, own)) {
        Some(user) if user == me => None,
        Some(user) => Some(format!("it is of the user {user}, and the screen is open for {me} alone")),
        None => Some("the kernel does not say whose it is".into()),
    }
}

/// The user of the socket at `local` that is connected to `remote`, from a table of the kernel.
fn owner(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_it = address(words.next()?)? == local && address(words.next()?)? == remote;
        // Behind the state, two queues, a timer and the retransmits.
        if is_it { words.nth(4)?.parse().ok() } else { None }
    })
}

/// An address as the kernel prints it: words of 32 bits as they lie in memory, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = if address.len() == 8 {
        IpAddr::from(Ipv4Addr::from(word(0)?))
    } else {
        let words = [word(0)?, word(8)?, word(16)?, word(24)?];
        let bytes: [u8; 16] = words.as_flattened().try_into().ok()?;
        IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::CommandExt, process::Command};

    use tokio::io::AsyncReadExt;

    use super::*;

    const TABLE: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 2 1 0 20 4 30 10 -1
   2: 0100007F:D431 0100007F:1F90 01 00000000:00000000 02:000A1B2C 00000000  1001        0 3 2 0 20 4 30 10 -1
";
    const TABLE6: &str = "  sl  local_address                         remote_address                        st
   0: 0000000000000000FFFF00000100007F:D432 0000000000000000FFFF00000100007F:1F90 01 00000000:00000000 00:00000000 00000000  1002        0 4
   1: 00000000000000000000000001000000:D433 00000000000000000000000001000000:1F90 01 00000000:00000000 00:00000000 00000000  1003        0 5
";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_owner_of_a_connection_is_read() {
        let own: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let at = |text: &str| text.parse().unwrap();
        assert_eq!(owner(TABLE, at("127.0.0.1:54321"), own), Some(1001));
        assert_eq!(owner(TABLE, at("127.0.0.1:54322"), own), None);
        assert_eq!(owner(TABLE6, at("127.0.0.1:54322"), own), Some(1002), "a socket of IPv6");
        assert_eq!(owner(TABLE6, at("[::1]:54323"), at("[::1]:8080")), Some(1003));
        for broken in ["", "x\n", "x\n0: 0100007F:1F90", "x\n0: é:1 é:2 01 0 0 0 0 0"] {
            assert_eq!(owner(broken, at("127.0.0.1:54321"), own), None);
        }
    }

    #[tokio::test]
    async fn a_stranger_is_closed_and_keeps_nobody_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut stranger = TcpStream::connect(address).await.unwrap();
        let known = stranger.local_addr().unwrap();
        let viewer = TcpStream::connect(address).await.unwrap();
        let accepted = accept_of(&listener, |peer, _| (peer == known).then(|| "it is a stranger".into()));
        assert_eq!(accepted.await.unwrap().peer_addr().unwrap(), viewer.local_addr().unwrap());
        assert_eq!(stranger.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn the_kernel_tells_users_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let viewer = TcpStream::connect(address).await.unwrap();
        let accepted = accept(&listener).await.unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), viewer.local_addr().unwrap());
        // Only root can be somebody else.
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            return;
        }
        let mut other = Command::new("bash");
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; read -r line <&3", address.port());
        let mut other = other.args(["-c", &script]).uid(65_534).spawn().unwrap();
        let (connection, peer) = listener.accept().await.unwrap();
        let why = stranger(peer, connection.local_addr().unwrap()).unwrap();
        assert!(why.contains("of the user 65534"), "{why}");
        drop(connection);
        other.wait().unwrap();
    }
}
