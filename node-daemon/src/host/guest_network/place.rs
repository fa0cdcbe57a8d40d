//! The network namespace in which libvirt runs QEMU, which need not be the daemon's.
//!
//! A pod has a network of its own; libvirt's, and with it every guest's way out, is the host's. The
//! process behind libvirt's socket tells: libvirtd, virtqemud, or the host's systemd that holds the
//! socket for them.
#![expect(clippy::disallowed_methods, reason = "adapter: finds a process and runs nft")]

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use tokio::{io::AsyncWriteExt, net::UnixStream, process::Command, time::timeout};

use super::GuestNetworkError;

/// Sockets of `qemu:///system`, where the URI names none: of the modular daemon and of the one for all.
const SOCKETS: [&str; 2] = ["/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"];
/// Time for libvirt's socket and for nft.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes taken of a `resolv.conf`.
const RESOLV_CONF: u64 = 64 << 10;

/// The place where libvirt runs QEMU.
#[derive(Debug)]
pub(super) struct Place {
    /// `/proc/PID` of the process behind the socket. Nothing can be opened in it when that has ended,
    /// also when its number is another's.
    process: OwnedFd,
    /// Its network namespace, which stays as long as this is open.
    network: OwnedFd,
    /// Its root folder.
    root: OwnedFd,
}

impl Place {
    /// The place behind the URI of a connection to libvirt.
    pub(super) async fn find(uri: &str) -> Result<Self, GuestNetworkError> {
        let pid =
            timeout(PATIENCE, peer(uri)).await.map_err(|_| lost("libvirt's socket does not answer"))??;
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let failed = |error: rustix::io::Errno| {
            let error = io::Error::from(error);
            lost(format!(
                "the network namespace of libvirt's process {pid} cannot be opened ({error}); run the daemon as \
                 root with the capability SYS_PTRACE, in the chart with nodeDaemon.privileged"
            ))
        };
        let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process = openat(CWD, &folder, path, Mode::empty()).map_err(failed)?;
        let network =
            openat(&process, "ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let root = openat(&process, "root", path, Mode::empty()).map_err(failed)?;
        Ok(Self { process, network, root })
    }

    /// Whether the process still is there.
    pub(super) fn lasts(&self) -> bool {
        openat(&self.process, "ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).is_ok()
    }

    /// Whether both are the same network namespace.
    pub(super) fn is_network_of(&self, other: &Self) -> bool {
        let identity = |place: &Self| fstat(&place.network).map(|stat| (stat.st_dev, stat.st_ino));
        matches!((identity(self), identity(other)), (Ok(one), Ok(two)) if one == two)
    }

    /// `/etc/resolv.conf` as QEMU sees it; `None` when it cannot be read.
    pub(super) fn resolv_conf(&self) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        // Links in it are those of that root.
        let open = || openat2(&self.root, "etc/resolv.conf", flags, Mode::empty(), ResolveFlags::IN_ROOT);
        // Renames elsewhere, while a `..` of the link is followed: openat2(2), EAGAIN.
        let file =
            (0..256).map(|_| open()).find(|opened| opened.as_ref().err() != Some(&Errno::AGAIN))?.ok()?;
        let mut bytes = vec![];
        File::from(file).take(RESOLV_CONF).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Runs `nft` there, and returns what it prints.
    pub(super) async fn nft(&self, arguments: &[&str], script: &str) -> Result<String, GuestNetworkError> {
        let namespace = format!("--net=/proc/{}/fd/{}", std::process::id(), self.network.as_raw_fd());
        let mut command = Command::new("nsenter");
        command.args([namespace.as_str(), "--", "nft"]).args(arguments).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = async {
            let mut child = command.spawn()?;
            if let Some(mut input) = child.stdin.take() {
                input.write_all(script.as_bytes()).await?;
            }
            child.wait_with_output().await
        };
        let output = match timeout(PATIENCE, run).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(GuestNetworkError::Nft(format!("nsenter: {error}"))),
            Err(_) => return Err(GuestNetworkError::Nft(format!("no answer in {} s", PATIENCE.as_secs()))),
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let words: String =
            words.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(256).collect();
        Err(GuestNetworkError::Nft(words))
    }
}

fn lost(why: impl Into<String>) -> GuestNetworkError {
    GuestNetworkError::Place(why.into())
}

/// The process behind the socket of libvirt.
async fn peer(uri: &str) -> Result<i32, GuestNetworkError> {
    let mut why = String::new();
    for socket in sockets(uri).ok_or_else(|| lost(format!("{uri} is not the QEMU driver of this host")))? {
        match UnixStream::connect(&socket).await {
            Ok(stream) => {
                let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
                return pid.filter(|pid| *pid > 0).ok_or_else(|| {
                    lost(format!(
                        "the process behind {} cannot be seen from here; let the daemon see the host's \
                         processes, in the chart with nodeDaemon.guestNetwork.filter: enforce",
                        socket.display()
                    ))
                });
            }
            Err(error) => why = format!("{}: {error}", socket.display()),
        }
    }
    Err(lost(why))
}

/// The sockets that a URI may mean; `None` for one that does not lead to this host's QEMU driver.
fn sockets(uri: &str) -> Option<Vec<PathBuf>> {
    let (place, query) = uri.split_once('?').unwrap_or((uri, ""));
    if !["qemu:///system", "qemu+unix:///system"].contains(&place) {
        return None;
    }
    let named = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
    Some(named.map_or_else(|| SOCKETS.map(PathBuf::from).into(), |socket| vec![socket.into()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_qemu_driver_of_this_host_has_a_socket_here() {
        let of = |uri| sockets(uri).unwrap_or_default();
        assert_eq!(of("qemu:///system"), SOCKETS.map(PathBuf::from));
        assert_eq!(of("qemu:///system?socket=/a/b-sock"), [PathBuf::from("/a/b-sock")]);
        assert_eq!(of("qemu+unix:///system?keepalive=1&socket=/s"), [PathBuf::from("/s")]);
        for uri in
            ["qemu:///session", "qemu+tcp://host/system", "qemu+ssh://host/system", "test:///default", ""]
        {
            assert_eq!(sockets(uri), None, "{uri}");
        }
    }

    #[tokio::test]
    async fn the_place_of_a_socket_of_this_process_is_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("libvirt-sock");
        let uri = format!("qemu:///system?socket={}", socket.display());
        let why = Place::find(&uri).await.unwrap_err().to_string();
        assert!(why.contains("libvirt-sock"), "{why}");
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let place = Place::find(&uri).await.unwrap();
        assert!(place.lasts() && place.is_network_of(&Place::find(&uri).await.unwrap()));
        let here = std::fs::read_to_string("/etc/resolv.conf").ok();
        assert_eq!(place.resolv_conf(), here);
    }

    #[test]
    fn renames_elsewhere_do_not_hide_the_resolver() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        for name in ["etc", "run/systemd"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::write(root.join("run/systemd/resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
        // A long way, so that a rename comes in between.
        let target = format!("{}../run/systemd/resolv.conf", "../etc/".repeat(20));
        std::os::unix::fs::symlink(target, root.join("etc/resolv.conf")).unwrap();
        let open = |path: &std::path::Path| {
            openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
        };
        let place = Place { process: open(&root), network: open(&root), root: open(&root) };
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        std::fs::write(&one, "").unwrap();
        std::thread::scope(|scope| {
            let renaming = scope.spawn(|| {
                for _ in 0..5000 {
                    std::fs::rename(&one, &other).unwrap();
                    std::fs::rename(&other, &one).unwrap();
                }
            });
            while !renaming.is_finished() {
                assert_eq!(place.resolv_conf().as_deref(), Some("nameserver 192.0.2.53\n"));
            }
        });
    }
}
