//! A libvirtd of its own, beside the machine's.
//!
//! ```text
//! unshare -m ── holder (libvirt-namespace.sh): /etc/libvirt, /run/libvirt, /var/*/libvirt are <state>/host/*
//!  (and -n)       in tests with a network of its own, which has nothing but loopback
//!   ├─ libvirtd    nsenter into it; its socket is <state>/host/run/libvirt-sock for everyone
//!   └─ QEMU, ...   children of libvirtd that outlive it; known by their mount namespace
//! ```
//! All other paths are the machine's: a disk image has the same path inside and outside. QEMU
//! runs as the user that the distribution's libvirt gives it, so images lie where that user can
//! read them: [`LibvirtHost::place`].

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::processes::{self, Identity, Launch, Lifetime, Process, run};
use crate::state::StateDir;
use crate::waiting::eventually;

const HOLDER: &str = "libvirt-namespace";
const DAEMON: &str = "libvirtd";
const GRACE: Duration = Duration::from_secs(20);
/// The first call makes libvirt try out every QEMU it finds: 4 to 8 s, more on a busy machine.
const READY: Duration = Duration::from_secs(90);

pub(crate) const LIBVIRTD_CONF: &str = r#"auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
log_outputs = "2:stderr"
"#;

pub(crate) const QEMU_CONF: &str = r#"# No virtlogd, no AppArmor, no cgroups: those are the machine's.
stdio_handler = "file"
security_driver = "none"
cgroup_controllers = []
# QEMU stays in libvirtd's mount namespace: this is how its processes are known.
namespaces = []
# Leave no marks on files that another libvirt may use.
remember_owner = 0
"#;

/// A running private libvirtd.
#[derive(Debug)]
pub struct LibvirtHost {
    state: Arc<StateDir>,
    lifetime: Lifetime,
    daemon: Option<Process>,
    holder: Process,
    /// Closed when this process ends: the holder then ends what is left.
    _alive: Option<ChildStdin>,
}

impl LibvirtHost {
    /// Starts one and waits until a client call answers. Needs root.
    pub async fn start(state: &Arc<StateDir>, lifetime: Lifetime) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "a libvirtd in a mount namespace of its own needs root"
        );
        let root = prepare(state)?;
        let (holder, alive) = start_holder(state, &root, lifetime)?;
        eventually("the mount namespace is made", Duration::from_secs(10), || async {
            ensure!(holder.is_running(), "the mount namespace was not made: {}", holder.log_tail());
            Ok(root.join("ready").exists().then_some(()))
        })
        .await?;
        let mut host = Self { state: Arc::clone(state), lifetime, daemon: None, holder, _alive: alive };
        host.start_daemon().await?;
        Ok(host)
    }

    /// The detached one that an earlier run left in this state folder, if it still runs.
    pub fn running_in(state: &Arc<StateDir>) -> Option<Self> {
        let holder = Process::recorded(state, HOLDER)?;
        let daemon = Some(Process::recorded(state, DAEMON)?);
        Some(Self { state: Arc::clone(state), lifetime: Lifetime::Detached, daemon, holder, _alive: None })
    }

    /// Stops whatever a detached host left running in this state folder.
    pub fn stop_recorded(state: &Arc<StateDir>) -> Result<()> {
        let Some(holder) = Process::recorded(state, HOLDER) else { return Ok(()) };
        let daemon = Process::recorded(state, DAEMON);
        Self { state: Arc::clone(state), lifetime: Lifetime::Detached, daemon, holder, _alive: None }.stop()
    }

    /// The connection URI, for any process on the machine that runs as root.
    pub fn uri(&self) -> String {
        format!("qemu:///system?socket={}", self.state.join("host/run/libvirt-sock").display())
    }

    /// Where a path that libvirt gives, such as a console's socket, is for processes outside the
    /// namespace.
    pub fn outside(&self, inside: &Path) -> PathBuf {
        let host = self.state.join("host");
        let moved = [
            ("/etc/libvirt", "etc"),
            ("/run/libvirt", "run"),
            ("/var/run/libvirt", "run"),
            ("/var/lib/libvirt", "lib"),
            ("/var/log/libvirt", "log"),
        ];
        let found =
            moved.iter().find_map(|(from, to)| Some(host.join(to).join(inside.strip_prefix(from).ok()?)));
        found.unwrap_or_else(|| inside.to_owned())
    }

    /// Copies a file to where QEMU's user can read it, and returns the copy.
    pub fn place(&self, file: &Path) -> Result<PathBuf> {
        let name = file.file_name().with_context(|| format!("{} is no file", file.display()))?;
        let to = self.images()?.join(name);
        fs::copy(file, &to).with_context(|| format!("copy {}", file.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644))?;
        Ok(to)
    }

    /// A folder that QEMU's user can read, for images and overlays.
    pub fn images(&self) -> Result<PathBuf> {
        let folder = self.state.join("images");
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        Ok(folder)
    }

    /// Runs `virsh` against this host and returns its standard output.
    pub fn virsh<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        run(Command::new("virsh").args(["--quiet", "--connect", &self.uri()]).args(arguments))
    }

    /// The process id of libvirtd.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Process::pid)
    }

    /// The QEMU processes of this host.
    pub fn guests(&self) -> Vec<Identity> {
        self.inhabitants().into_iter().filter(Identity::is_qemu).collect()
    }

    /// Every process of this host: the holder, libvirtd, guests and their helpers.
    pub fn inhabitants(&self) -> Vec<Identity> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let Some(own) = namespace(self.holder.pid()) else { return Vec::new() };
        Identity::matching(|pid| namespace(*pid).as_ref() == Some(&own))
    }

    /// Stops libvirtd and starts it again; guests run on.
    pub async fn restart(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.stop(GRACE)?;
        }
        self.start_daemon().await
    }

    /// Ends libvirtd with `SIGKILL`; guests run on. [`Self::restart`] brings it back.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.daemon.as_mut().context("libvirtd was not started")?.kill()
    }

    /// Stops libvirtd and ends its guests; no process is left on return.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.stop(GRACE)?;
        }
        // Once more after each round: something may have been forked meanwhile.
        loop {
            let holder = self.holder.identity();
            let left: Vec<_> = self.inhabitants().into_iter().filter(|process| *process != holder).collect();
            if left.is_empty() {
                return self.holder.kill();
            }
            for process in left {
                process.end(Signal::KILL, GRACE)?;
            }
        }
    }

    /// Arguments of `nsenter` that lead to where libvirtd and its guests are.
    fn namespaces(&self) -> [String; 2] {
        let pid = self.holder.pid();
        [format!("--mount=/proc/{pid}/ns/mnt"), format!("--net=/proc/{pid}/ns/net")]
    }

    /// A program that runs where libvirtd and its guests do, and ends with them.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.namespaces()).args(["--wdns=/", "--", program]);
        command
    }

    async fn start_daemon(&mut self) -> Result<()> {
        let [mount, network] = self.namespaces();
        let daemon = Launch::new(DAEMON, "nsenter")
            .args([mount.as_str(), network.as_str(), "--wdns=/", "--"])
            .args(["libvirtd", "--pid-file", "/run/libvirt/libvirtd.pid"])
            .start(&self.state, self.lifetime)?;
        self.daemon = Some(daemon);
        let (host, daemon) = (&*self, self.daemon.as_ref());
        eventually("libvirtd answers", READY, || async {
            if let Some(daemon) = daemon {
                ensure!(daemon.is_running(), "libvirtd ended; {}", daemon.log_tail());
            }
            Ok(host.virsh(["version"]).ok())
        })
        .await?;
        Ok(())
    }
}

impl Drop for LibvirtHost {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Test
            && self.holder.is_running()
            && let Err(error) = self.end()
        {
            tracing::warn!("stop the private libvirtd: {error:#}");
        }
    }
}

/// Makes the folders and settings, and returns where they are.
fn prepare(state: &StateDir) -> Result<PathBuf> {
    let root = state.join("host");
    for folder in ["etc", "run", "lib", "log", "empty"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let _ = fs::remove_file(root.join("ready"));
    // What libvirt finds out about QEMU costs seconds and is good for later runs too; it
    // checks by itself that it still holds.
    let cache = state.libvirt_cache();
    fs::create_dir_all(&cache)?;
    let link = root.join("cache");
    if !link.exists() {
        std::os::unix::fs::symlink(&cache, link)?;
    }
    fs::write(root.join("etc/libvirtd.conf"), LIBVIRTD_CONF)?;
    fs::write(root.join("etc/qemu.conf"), QEMU_CONF)?;
    let socket = root.join("run/libvirt-sock");
    ensure!(socket.as_os_str().len() < 108, "{} is too long for a Unix socket", socket.display());
    Ok(root)
}

fn start_holder(state: &StateDir, root: &Path, lifetime: Lifetime) -> Result<(Process, Option<ChildStdin>)> {
    let log = fs::File::options().create(true).append(true).open(state.log(HOLDER))?;
    let (detach, mode, input) = match lifetime {
        Lifetime::Test => ("env", "test", Stdio::piped()),
        Lifetime::Detached => ("setsid", "detached", Stdio::null()),
    };
    let mut command = Command::new(detach);
    command.args(["unshare", "--mount", "--propagation", "private"]);
    if lifetime == Lifetime::Test {
        // What guests send, and the rules that filter it, stay off the machine.
        command.arg("--net");
    }
    command.args(["sh", "-c"]);
    command.args([include_str!("libvirt-namespace.sh"), "sh"]).arg(root).arg(mode);
    if lifetime == Lifetime::Test {
        command.process_group(0);
    }
    command.stdin(input).stdout(log.try_clone()?).stderr(log).current_dir("/");
    let mut child = processes::spawn(command).context("start unshare")?;
    let alive = child.stdin.take();
    Ok((Process::adopt(HOLDER, child, state, lifetime)?, alive))
}
