//! The filter of guests' networks on real nftables, in network namespaces of this test's own: a host,
//! a place outside it, and another guest on a bridge. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test ends where it fails; it starts processes"
)]

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use clap::Parser;
use gpudesk_inventory::status::GuestNetworkView;
use gpudesk_node_daemon::host::guest_network::{GuestNetwork, GuestNetworkSettings};
use rustix::{
    process::Gid,
    thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_gid},
};

/// The group of guests in this test.
const GROUP: u32 = 2_113_000_777;
/// Nothing here is far away.
const PATIENCE: Duration = Duration::from_secs(10);

/// Holds its namespace until its input ends, behind what passes for libvirt's socket.
const HOLDER: &str = "
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(64)
print('ready', flush=True)
sys.stdin.read()
";

/// Another guest: a tap device in a bridge, of which it prints what UDP brings.
const OTHER_GUEST: &str = "
import fcntl, os, struct, subprocess, sys
tap = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', b'vnet7', 0x1002))
for command in ('link set vnet7 master br0 up', 'neigh add 203.0.113.9 lladdr 52:54:00:00:00:09 dev br0'):
    subprocess.check_call(['ip'] + command.split())
subprocess.check_call('bridge fdb add 52:54:00:00:00:09 dev vnet7 master static'.split())
print('ready', flush=True)
while True:
    frame = os.read(tap, 2048)
    if frame[12:14] == b'\\x08\\x00' and frame[23] == 17:
        print(frame[42:].decode(), flush=True)
";

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    settings: GuestNetworkSettings,
}

/// The settings that a command line gives.
fn settings(arguments: &[&str]) -> GuestNetworkSettings {
    let group = GROUP.to_string();
    let all = ["x", "--guest-group", &group].into_iter().chain(arguments.iter().copied());
    Arguments::parse_from(all).settings
}

/// A process in a network namespace of its own, or in another's. Ends with the test.
struct Inhabitant {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Inhabitant {
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut this = Self { process, output };
        assert_eq!(this.line(), "ready", "run this test as root");
        this
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.process.id())
    }

    /// Runs a program there; returns whether it succeeded.
    fn run(&self, command: &str) -> bool {
        let net = format!("--net={}", self.namespace());
        Command::new("nsenter").args([&net, "--"]).args(command.split(' ')).status().unwrap().success()
    }

    fn must(&self, commands: &[&str]) {
        for command in commands {
            assert!(self.run(command), "{command}");
        }
    }

    /// Does something on a thread in that namespace, and in that group.
    fn inside<T: Send + 'static>(&self, group: u32, act: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(self.namespace()).unwrap();
        let thread = thread::spawn(move || {
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
                .unwrap();
            set_thread_gid(Gid::from_raw(group)).unwrap();
            act()
        });
        thread.join().unwrap()
    }

    /// Answers at this address, over TCP and UDP, for as long as the test runs.
    fn listen(&self, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        let (tcp, udp) =
            self.inside(0, move || (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap()));
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let _ = stream.unwrap().write_all(b"tcp");
            }
        });
        thread::spawn(move || {
            let mut bytes = [0; 16];
            while let Ok((_, from)) = udp.recv_from(&mut bytes) {
                let _ = udp.send_to(b"udp", from);
            }
        });
    }

    /// Whether a process of this group gets an answer from there by TCP, and by UDP.
    fn reaches(&self, group: u32, address: &str) -> (bool, bool) {
        let address: SocketAddr = address.parse().unwrap();
        self.inside(group, move || (tcp(address).is_ok(), udp(address).is_ok()))
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn tcp(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut [0; 3])
}

fn udp(address: SocketAddr) -> std::io::Result<()> {
    let any: IpAddr = if address.is_ipv4() { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(address)?;
    socket.send(b"?")?;
    socket.recv(&mut [0; 3]).map(drop)
}

struct World {
    host: Inhabitant,
    outside: Inhabitant,
    folder: tempfile::TempDir,
}

impl World {
    fn uri(&self) -> String {
        format!("qemu:///system?socket={}", self.folder.path().join("host-sock").display())
    }

    fn filter(&self, arguments: &[&str]) -> GuestNetwork {
        GuestNetwork::new(settings(arguments), &self.uri())
    }

    /// That a guest gets no answer from any of these, and everybody else does.
    fn refuses(&self, addresses: &[&str]) {
        for address in addresses {
            assert_eq!(self.host.reaches(GROUP, address), (false, false), "{address} by a guest");
            assert_eq!(self.host.reaches(0, address), (true, true), "{address} by the host");
        }
    }

    fn allows(&self, addresses: &[&str]) {
        for address in addresses {
            assert_eq!(self.host.reaches(GROUP, address), (true, true), "{address} by a guest");
        }
    }
}

/// Every address of the host.
const OF_HOST: [&str; 7] = [
    "127.0.0.1:7777",
    "127.0.0.53:7777",
    "[::1]:7777",
    "192.0.2.1:7777",
    "[2001:db8:1::1]:7777",
    "169.254.7.7:7777",
    "[::ffff:127.0.0.1]:7777",
];
/// Addresses outside.
const OUTSIDE: [&str; 2] = ["192.0.2.2:7777", "[2001:db8:1::2]:7777"];
const DENIED: [&str; 2] = ["198.51.100.9:7777", "[2001:db8:2::9]:7777"];

/// A host with a nameserver on its loopback, and a place outside that has some addresses.
fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(file("resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
    let holder = |name: &str, before: &str| {
        let script = format!("{before} exec python3 -c \"$1\" \"$2\"");
        Inhabitant::start(
            Command::new("unshare").args(["--net", "--mount", "--propagation", "private"]).args([
                "sh",
                "-c",
                &script,
                "sh",
                HOLDER,
                &file(name),
            ]),
        )
    };
    let bind = format!("mount --bind {} \"$(readlink -f /etc/resolv.conf)\" &&", file("resolv.conf"));
    let (host, outside) = (holder("host-sock", &bind), holder("outside-sock", ""));
    host.must(&[
        "ip link set lo up",
        &format!("ip link add out0 type veth peer name in0 netns {}", outside.process.id()),
        "ip link set out0 up",
        "ip addr add 192.0.2.1/24 dev out0",
        "ip addr add 2001:db8:1::1/64 dev out0 nodad",
        "ip addr add 169.254.7.7/32 dev lo",
        "ip route add default via 192.0.2.2",
        "ip route add default via 2001:db8:1::2",
        "ip link add br0 type bridge",
        "ip link set br0 up",
        "ip addr add 203.0.113.1/24 dev br0",
    ]);
    outside.must(&[
        "ip link set lo up",
        "ip link set in0 up",
        "ip addr add 192.0.2.2/24 dev in0",
        "ip addr add 2001:db8:1::2/64 dev in0 nodad",
        "ip addr add 198.51.100.9/32 dev lo",
        "ip addr add 2001:db8:2::9/128 dev lo nodad",
        "ip addr add 169.254.169.254/32 dev lo",
    ]);
    for address in &OF_HOST[..6] {
        host.listen(address);
    }
    for address in OUTSIDE.iter().chain(&DENIED).chain(&["169.254.169.254:7777"]) {
        outside.listen(address);
    }
    host.listen("127.0.0.53:53");
    World { host, outside, folder }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reaches_out_and_never_the_host() {
    let world = world();
    world.allows(&["127.0.0.1:7777", "192.0.2.1:7777"]);
    let filter = world.filter(&["--guest-deny", "198.51.100.0/24", "--guest-deny", "2001:db8:2::/64"]);
    filter.ensure().await.unwrap();
    assert_eq!(*filter.view().borrow(), GuestNetworkView::Filtered { except: vec![] });

    world.refuses(&OF_HOST[..6]);
    assert_eq!(world.host.reaches(GROUP, OF_HOST[6]), (false, false));
    world.refuses(&DENIED);
    world.refuses(&["169.254.169.254:7777"]);
    world.allows(&OUTSIDE);
    // Names may be asked for, and nothing else, at the nameserver of the host.
    world.allows(&["127.0.0.53:53"]);

    // A Service that leads to a port of the host itself.
    world.host.must(&[
        "nft add table ip service",
        "nft add chain ip service output { type nat hook output priority -100 ; }",
    ]);
    world.host.must(&["nft add rule ip service output ip daddr 10.99.0.1 dnat to 192.0.2.1"]);
    world.refuses(&["10.99.0.1:7777"]);
    // And one that leads outside, which is a way like another.
    world.host.must(&["nft add rule ip service output ip daddr 10.99.0.2 dnat to 192.0.2.2"]);
    world.allows(&["10.99.0.2:7777"]);

    world.filter(&["--guest-host-resolver", "refuse"]).ensure().await.unwrap();
    world.refuses(&["127.0.0.53:53"]);
    // Other settings replace those before.
    world.allows(&DENIED);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_guest_on_a_bridge_hears_nothing() {
    let world = world();
    world.filter(&[]).ensure().await.unwrap();
    let net = format!("--net={}", world.host.namespace());
    let mut other =
        Inhabitant::start(Command::new("nsenter").args([&net, "--", "python3", "-c", OTHER_GUEST]));
    let tell = |group: u32, word: &'static str| {
        let send = move || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(word.as_bytes(), "203.0.113.9:7");
        world.host.inside(group, send).map(drop)
    };
    let _ = tell(GROUP, "from a guest");
    tell(0, "from the host").unwrap();
    assert_eq!(other.line(), "from the host");
    world.refuses_bridge_of_libvirt();
}

impl World {
    /// The way to libvirt's own networks is refused at once.
    fn refuses_bridge_of_libvirt(&self) {
        self.host.must(&[
            "ip link add virbr7 type bridge",
            "ip link set virbr7 up",
            "ip addr add 203.0.114.1/24 dev virbr7",
        ]);
        let send = || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"?", "203.0.114.9:7").map(drop);
        assert!(self.host.inside(0, send).is_ok());
        assert!(self.host.inside(GROUP, send).is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_done_to_the_rules_is_put_right() {
    let world = world();
    let filter = world.filter(&[]);
    filter.ensure().await.unwrap();
    let table = format!("inet gpudesk-guests-{GROUP}");
    for damage in [
        "nft flush ruleset".to_owned(),
        format!("nft delete table {table}"),
        format!("nft delete table bridge gpudesk-guests-{GROUP}"),
        format!("nft flush chain {table} guest"),
        format!("nft insert rule {table} guest accept"),
        format!("nft delete element {table} denied4 {{ 169.254.0.0/16 }}"),
        format!("nft add table {table} {{ flags dormant ; }}"),
    ] {
        world.host.must(&[&damage]);
        filter.ensure().await.unwrap();
        world.refuses(&["127.0.0.1:7777", "169.254.169.254:7777"]);
        world.allows(&OUTSIDE[..1]);
    }
    // A daemon that starts anew finds the rules of the one before and leaves no gap.
    world.filter(&[]).ensure().await.unwrap();
    world.refuses(&["127.0.0.1:7777"]);
    // libvirt is away for a while: guests run on, and so does the filter.
    std::fs::remove_file(world.folder.path().join("host-sock")).unwrap();
    world.host.must(&["nft flush ruleset"]);
    filter.ensure().await.unwrap();
    world.refuses(&["127.0.0.1:7777"]);
    assert!(Path::new(&world.outside.namespace()).exists());
}

#[tokio::test]
async fn where_it_cannot_be_there_it_says_why_and_what_else_would_do() {
    for (uri, cause) in [
        ("qemu+tcp://elsewhere/system", "qemu+tcp://elsewhere/system"),
        ("qemu:///session", "qemu:///session"),
        ("qemu:///system?socket=/nowhere/libvirt-sock", "/nowhere/libvirt-sock"),
    ] {
        let filter = GuestNetwork::new(settings(&[]), uri);
        let why = filter.ensure().await.unwrap_err().to_string();
        assert!(why.contains(cause) && why.contains("--guest-network-filter external"), "{why}");
        assert_eq!(*filter.view().borrow(), GuestNetworkView::Unfiltered(why));
    }
    let external = GuestNetwork::new(settings(&["--guest-network-filter", "external"]), "qemu:///session");
    external.ensure().await.unwrap();
    assert_eq!(*external.view().borrow(), GuestNetworkView::External);
    let simulated = GuestNetwork::new(settings(&[]), "test:///default");
    simulated.ensure().await.unwrap();
    assert_eq!(*simulated.view().borrow(), GuestNetworkView::NoGuests);
}
