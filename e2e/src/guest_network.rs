//! What can be heard on the network of a private libvirt's host, and what a guest gets to hear of it.
//!
//! ```text
//!   guest ── slirp in QEMU ──▶ the host: loopback, its addresses, a nameserver ── veth ── outside
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::libvirt_host::LibvirtHost;
use crate::processes::run;
use crate::waiting::eventually;

/// Answers at each address over TCP and UDP, for as long as its input is open.
const LISTEN: &str = r"
import socket, sys, threading
def tcp(s):
    while True:
        c, _ = s.accept(); c.sendall(b'tcp'); c.close()
def udp(s):
    while True:
        _, peer = s.recvfrom(64); s.sendto(b'udp', peer)
for address in sys.argv[1:]:
    host, port = address.rsplit(' ', 1)
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    for kind, serve in ((socket.SOCK_STREAM, tcp), (socket.SOCK_DGRAM, udp)):
        s = socket.socket(family, kind); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((host, int(port)))
        if kind == socket.SOCK_STREAM: s.listen(64)
        threading.Thread(target=serve, args=(s,), daemon=True).start()
print('ready', flush=True); sys.stdin.read()
";

/// Runs in the guest: prints which of its arguments answer over which protocol.
const TRY: &str = r"
import concurrent.futures, json, os, socket, subprocess, sys
nic = [name for name in os.listdir('/sys/class/net') if name != 'lo'][0]
for command in (f'link set {nic} up', f'-6 addr replace fec0::77/64 dev {nic} nodad', f'-6 route replace default via fec0::2 dev {nic}'):
    subprocess.run(['ip'] + command.split())
def hears(address):
    host, port = address.rsplit(' ', 1)
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    heard = []
    for name, kind in (('tcp', socket.SOCK_STREAM), ('udp', socket.SOCK_DGRAM)):
        with socket.socket(family, kind) as s:
            s.settimeout(15)
            try:
                s.connect((host, int(port)))
                if name == 'udp': s.send(b'?')
                if s.recv(3): heard.append(name)
            except OSError: pass
    return address, ' '.join(heard)
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print(json.dumps(dict(pool.map(hears, sys.argv[1:]))))
";

/// A port where the harness listens.
const PORT: u16 = 7777;
/// Addresses of the host beside those of its loopback.
const HOST: [&str; 3] = ["192.0.2.1", "2001:db8:1::1", "169.254.7.7"];
/// Addresses outside that may be reached.
pub const OUTSIDE: [&str; 2] = ["192.0.2.2 7777", "2001:db8:1::2 7777"];
/// The nameserver that QEMU gives its guest.
pub const NAMES: &str = "10.0.2.3 53";

/// The network around the libvirt of a test. What it started ends with the libvirt, or before.
#[derive(Debug)]
pub struct Surroundings {
    listeners: Vec<Child>,
}

impl Surroundings {
    /// Gives the host addresses, a nameserver on its loopback, and a neighbour outside.
    pub fn around(host: &LibvirtHost) -> Result<Self> {
        let outside = host.inside("unshare").args(["--net", "python3", "-c", LISTEN]).piped()?;
        let neighbour = outside.id();
        let mut this = Self { listeners: vec![outside] };
        let ip = |words: &str| run(host.inside("ip").args(words.split(' ')));
        ip(&format!("link add out0 type veth peer name in0 netns {neighbour}"))?;
        for words in [
            "link set out0 up",
            "addr add 192.0.2.1/24 dev out0",
            "addr add 2001:db8:1::1/64 dev out0 nodad",
            "addr add 169.254.7.7/32 dev lo",
            "route add default via 192.0.2.2",
            "route add default via 2001:db8:1::2",
        ] {
            ip(words)?;
        }
        let namespace = format!("--net=/proc/{neighbour}/ns/net");
        for words in [
            "link set lo up",
            "link set in0 up",
            "addr add 192.0.2.2/24 dev in0",
            "addr add 2001:db8:1::2/64 dev in0 nodad",
            "addr add 169.254.169.254/32 dev lo",
        ] {
            run(Command::new("nsenter").args([namespace.as_str(), "ip"]).args(words.split(' ')))?;
        }
        let beyond = OUTSIDE.map(str::to_owned).into_iter().chain(["169.254.169.254 7777".to_owned()]);
        let mut outside = Command::new("nsenter");
        outside.args([namespace.as_str(), "python3", "-c", LISTEN]).args(beyond);
        this.listeners.push(outside.piped()?);
        let own = ["127.0.0.1", "127.0.0.53", "::1"].iter().chain(&HOST).map(|host| format!("{host} {PORT}"));
        let own = own.chain(["127.0.0.53 53".to_owned()]);
        this.listeners.push(host.inside("python3").args(["-c", LISTEN]).args(own).piped()?);
        // The file that QEMU reads is the one of its mount namespace.
        let file = host.images()?.join("resolv.conf");
        fs::write(&file, "nameserver 127.0.0.53\n")?;
        let bind = "mount --bind \"$1\" \"$(readlink -f /etc/resolv.conf)\"";
        run(host.inside("sh").args(["-c", bind, "sh"]).arg(&file))?;
        Ok(this)
    }

    /// What a guest may try in vain: every address of the host with every port at which anything
    /// listens, whoever it is, by the names that QEMU gives the host, too.
    pub fn forbidden(host: &LibvirtHost) -> Result<Vec<String>> {
        let mut ports = vec![PORT];
        for line in
            run(host.inside("ss").args(["--no-header", "--listening", "--numeric", "--tcp", "--udp"]))?
                .lines()
        {
            let address = line.split_whitespace().nth(4).context("ss names an address")?;
            ports.push(address.rsplit(':').next().context("and a port")?.parse()?);
        }
        ports.sort_unstable();
        ports.dedup();
        let aliases = ["10.0.2.2", "10.0.2.3", "10.0.2.77", "fec0::2", "fec0::3", "169.254.169.254"];
        let pairs = aliases
            .into_iter()
            .chain(HOST)
            .flat_map(|host| ports.iter().map(move |port| format!("{host} {port}")));
        Ok(pairs.filter(|pair| pair != NAMES).collect())
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        for process in &mut self.listeners {
            // It may have ended with its host.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A process that says that it is ready, and ends with its input.
trait Piped {
    fn piped(&mut self) -> Result<Child>;
}

impl Piped for Command {
    fn piped(&mut self) -> Result<Child> {
        let mut child = self.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "{self:?} did not start");
        Ok(child)
    }
}

/// Which of these addresses a guest hears from, and over which protocols, as `tcp udp`. Asked by the
/// guest's agent.
pub async fn heard(
    host: &LibvirtHost,
    domain: &str,
    addresses: impl IntoIterator<Item = String>,
) -> Result<BTreeMap<String, String>> {
    let agent = |command: Value| -> Result<Value> {
        let answer = host.virsh(["qemu-agent-command", domain, &command.to_string(), "--timeout", "60"])?;
        Ok(serde_json::from_str::<Value>(&answer)?["return"].take())
    };
    let arguments: Vec<String> = ["-c".to_owned(), TRY.to_owned()].into_iter().chain(addresses).collect();
    let started = agent(json!({
        "execute": "guest-exec",
        "arguments": {"path": "python3", "arg": arguments, "capture-output": true},
    }))?;
    let status = json!({"execute": "guest-exec-status", "arguments": {"pid": started["pid"]}});
    let ended = eventually("the guest has tried all addresses", Duration::from_mins(5), || async {
        Ok(agent(status.clone()).ok().filter(|status| status["exited"] == true))
    })
    .await?;
    let text = |key: &str| -> Result<String> {
        Ok(String::from_utf8(STANDARD.decode(ended[key].as_str().unwrap_or_default())?)?)
    };
    ensure!(ended["exitcode"] == 0, "in the guest: {} {}", text("err-data")?, text("out-data")?);
    Ok(serde_json::from_str(&text("out-data")?)?)
}
