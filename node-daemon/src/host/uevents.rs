//! The kernel's messages about hardware that changes.
//!
//! They come over a netlink socket, in a container's network namespace as in the host's; those of network
//! interfaces come only to the namespace that the interface is in. Source: the kernel's
//! `lib/kobject_uevent.c`.
#![expect(unsafe_code, reason = "tokio's promise about descriptors is made by the caller")]

use std::io;

use gpudesk_inventory::topology::uevent::{Change, change};
use rustix::{
    fd::OwnedFd,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind,
        netlink::{self, SocketAddrNetlink},
        recvfrom, socket_with, sockopt,
    },
};
use tokio::io::unix::AsyncFd;

use super::changes::Changes;

/// The group of the kernel's own messages; group 2 is udev's.
const KERNEL: u32 = 1;
/// Room for a burst: 512 virtual functions that come at once are half a thousand messages.
const BUFFER: usize = 4 << 20;
/// The kernel's messages are no longer than this.
const MESSAGE: usize = 8192;

/// Passes on what changes, for as long as it is awaited.
///
/// Where the kernel had to drop messages, everything counts as changed.
///
/// # Errors
/// When the socket cannot be opened or read.
pub async fn listen(changes: &Changes) -> io::Result<()> {
    // SAFETY: the AsyncFd owns the only handle of the socket, whose descriptor stays the same and open
    // until it is dropped.
    let socket = unsafe { AsyncFd::register(open()?) }.map_err(io::Error::from)?;
    let mut buffer = vec![0_u8; MESSAGE];
    loop {
        let mut ready = socket.readable().await?;
        match recvfrom(socket.get_ref(), buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((_, count, from)) => {
                // Any process may send to this address; the kernel is number 0.
                let sender = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
                if sender.is_some_and(|sender| sender.pid() == 0)
                    && let Some(change) = change(&buffer[..count.min(MESSAGE)])
                {
                    changes.add(change);
                }
            }
            Err(Errno::NOBUFS) => changes.add(Change::Whole),
            Err(Errno::AGAIN | Errno::INTR) => ready.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::KOBJECT_UEVENT))?;
    // Beyond the system's limit only with CAP_NET_ADMIN; without it, the limit is what there is.
    if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, BUFFER)?;
    }
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_opens_and_what_others_send_is_not_believed() {
        let changes = Changes::default();
        let forged = b"remove@/devices/pci0000:00/0000:41:00.0\0SUBSYSTEM=pci\0";
        let other = open().unwrap();
        // Sending to the group takes a privilege; without it there is nothing to believe either.
        let _ = rustix::net::sendto(
            &other,
            forged,
            rustix::net::SendFlags::empty(),
            &SocketAddrNetlink::new(0, KERNEL),
        );
        let heard = tokio::time::timeout(std::time::Duration::from_millis(100), listen(&changes)).await;
        assert!(heard.is_err(), "it listens until it is dropped");
        assert!(changes.take().is_empty());
    }
}
