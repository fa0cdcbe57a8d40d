//! The command line.

use std::{
    net::{AddrParseError, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use gpudesk_crds::DEFAULT_SYSTEM_NAMESPACE;
use jiff::SignedDuration;

use crate::{
    brake,
    host::{guest_network::GuestNetworkSettings, hook::DiscoveryHook, leftovers::Retention},
    orphans::Settings,
};

/// Shows a GPU host as a `GpuNode` and runs the desktops that are allocated to it as libvirt domains.
#[derive(Debug, Parser)]
#[command(name = "gpudesk-node-daemon", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run as the daemon of a node, until SIGTERM. Desktops go on running after it ends.
    ///
    /// The API server is found by KUBECONFIG, or as in a pod.
    Run(Box<Run>),
    /// Print what this host would show in its `GpuNode`, without a cluster.
    ///
    /// Needs no cluster, no libvirt and no GPU driver; what is missing is named. Run it as root, or some
    /// files may not be read.
    Discover(Discover),
    /// Print where shares would be on a card and how they would be made, without a cluster and without touching anything.
    ///
    /// The whole list is placed at once, beside what is on the card; then come the steps that the daemon would take for
    /// it. What they assume of a host that does not tell it stands in a note. Exit status: 0 there is a layout, 1 there
    /// is none or it cannot be made now, and why is printed, 2 the question is wrong.
    Layout(Layout),
    /// Print a script that completes this command line in a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Name of the node: that of its Kubernetes node, and of its `GpuNode`.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: String,
    /// Stand for the host that this file describes, instead of this machine. Nothing of this machine
    /// is touched then, and libvirt's test driver runs the desktops.
    #[arg(long, value_name = "HOSTFILE")]
    pub simulate: Option<PathBuf>,
    /// Begin as a simulated host does after a reboot: its shares of GPUs are gone.
    #[arg(long, requires = "simulate", hide = true)]
    pub rebooted: bool,
    /// libvirt. Default: `qemu:///system`, with --simulate `test:///default`.
    #[arg(long, value_name = "URI")]
    pub libvirt_uri: Option<String>,
    /// A folder with golden images (`NAME.qcow2`) and kernels. May be given several times; the first
    /// that has an image gives it.
    #[arg(long = "image-root", value_name = "DIR")]
    pub image_roots: Vec<PathBuf>,
    /// A folder below which templates may name files of this host. May be given several times;
    /// without it none may be named.
    #[arg(long = "allowed-root", value_name = "DIR")]
    pub allowed_roots: Vec<PathBuf>,
    /// Give functions of network cards to desktops, whose settings are told to the card in the host's network.
    #[arg(long, conflicts_with = "simulate")]
    pub network_functions: bool,
    /// Where and how the host is looked at.
    #[command(flatten)]
    pub look: Look,
    /// Where the daemon keeps the disks of desktops and its own records.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/gpudesk")]
    pub state_dir: PathBuf,
    /// How guests run. `auto` tries KVM with a test guest and falls back to emulation.
    #[arg(long, value_enum, default_value_t)]
    pub acceleration: AccelerationChoice,
    /// Seconds after which a desktop whose guest ended by itself, and is not started again, gives back what
    /// it held. A host that is shut down ends its guests first: within this time they start again with it.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub give_back_after: u32,
    /// What becomes of what is no desktop's any more.
    #[command(flatten)]
    pub upkeep: Upkeep,
    /// How guests are kept away from the host.
    #[command(flatten)]
    pub guest_network: GuestNetworkSettings,
    /// Namespace of the operator, the leases and the service accounts of the nodes.
    #[arg(long, value_name = "NAMESPACE", default_value = DEFAULT_SYSTEM_NAMESPACE)]
    pub namespace: String,
    /// Where /metrics, /healthz and /readyz are served. Port 0 takes a free one, which the log names.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub metrics_addr: SocketAddr,
    /// Where the relay listens, through which `kubectl desktop view` opens screens: TLS 1.3, for who shows
    /// a ticket of the API. Empty: nowhere, and no screen is reached from outside the node.
    #[arg(long, value_name = "ADDRESS", default_value = RELAY_ADDR, value_parser = ListenAt::from_str)]
    pub relay_addr: ListenAt,
    /// Where people reach the relay: ADDRESS or ADDRESS:PORT. Default: where it listens, or, when that is
    /// every address, the one from which this host reaches the API server.
    #[arg(long, value_name = "ADDRESS", value_parser = announced)]
    pub relay_announce: Option<String>,
    /// How the log is written. What is written is set by `RUST_LOG`, `info` without it.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// What becomes of what is no desktop's any more.
#[derive(Clone, Debug, Args)]
pub struct Upkeep {
    /// Seconds for which disks of desktops that are this node's no more are kept as leftovers, and then
    /// erased. 0: they are kept until an admin erases them.
    #[arg(long, value_name = "SECONDS", default_value_t = 604_800, value_parser = clap::value_parser!(u32).range(0..=315_360_000))]
    pub leftovers_keep: u32,
    /// MiB that leftovers may take in all; beyond that the oldest are erased early. 0: no limit.
    #[arg(long, value_name = "MIB", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1 << 34))]
    pub leftovers_limit: u64,
    /// Seconds for which each leftover is kept at least, whatever room they take.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(0..=315_360_000))]
    pub leftovers_least: u32,
    /// Seconds between two looks at what is on the host of desktops that are not in the API or not this
    /// node's. What was being deleted when it was last seen is removed when it was missed for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub orphans_look: u32,
    /// Seconds for which a desktop that is off and not in the API is waited for before its disks become a
    /// leftover, and in which those that do are counted.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=604_800))]
    pub orphans_window: u32,
    /// How many may become leftovers so within that time; when more are missed, none does, and the
    /// condition `RemovalAllowed` lists them.
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    pub orphans_most: u16,
    /// The same, in percent of the node's desktops. The larger of the two holds.
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub orphans_percent: u8,
}

impl Upkeep {
    /// As the daemon takes them.
    pub fn settings(&self) -> Settings {
        let seconds = |seconds: u32| SignedDuration::from_secs(seconds.into());
        Settings {
            look: Duration::from_secs(self.orphans_look.into()),
            brake: brake::Rules {
                window: seconds(self.orphans_window),
                most: self.orphans_most.into(),
                percent: self.orphans_percent.into(),
            },
            retention: Retention {
                keep: seconds(self.leftovers_keep),
                limit: self.leftovers_limit << 20,
                least: seconds(self.leftovers_least),
            },
        }
    }
}

/// Every address, at [`gpudesk_crds::relay::DEFAULT_PORT`].
const RELAY_ADDR: &str = "0.0.0.0:8443";

/// Where something listens; `None`: nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAt(pub Option<SocketAddr>);

impl FromStr for ListenAt {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() { Ok(Self(None)) } else { text.parse().map(|address| Self(Some(address))) }
    }
}

fn announced(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    if (1..=255).contains(&text.len()) && text.chars().all(legal) {
        Ok(text.to_owned())
    } else {
        Err("write an IP address or a name, with or without :PORT".to_owned())
    }
}

/// Where and how a host is looked at.
#[derive(Debug, Default, Clone, Args)]
pub struct Look {
    /// Root folder of the host: its /sys, /proc, /run are below it. Default: /.
    #[arg(long, value_name = "DIR", conflicts_with = "simulate")]
    pub host_root: Option<PathBuf>,
    /// NVIDIA's library NVML. Default: libnvidia-ml.so.1, where it is installed.
    #[arg(long, value_name = "FILE", conflicts_with = "simulate")]
    pub nvml: Option<PathBuf>,
    /// An executable that replaces or extends what was found: it gets the `GpuNode` as JSON on its
    /// standard input and prints CloudStack's GPU discovery JSON, or gpudesk's own. It must belong to
    /// root and be writable by root alone.
    #[arg(long, value_name = "FILE", conflicts_with = "simulate")]
    pub hook: Option<PathBuf>,
    /// Seconds after which the hook is ended. 1 to 600.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub hook_timeout: u64,
}

impl Look {
    /// The hook in `file`, for this node.
    pub fn hook_at(&self, file: &Path, node: &str) -> DiscoveryHook {
        let root = self.host_root.as_deref().unwrap_or(Path::new("/"));
        DiscoveryHook::new(file.into(), node, root).with_patience(Duration::from_secs(self.hook_timeout))
    }
}

/// Options of `discover`.
#[derive(Debug, Args)]
pub struct Discover {
    /// Where and how the host is looked at. With `discover`, --host-root also takes a capture.
    #[command(flatten)]
    pub look: Look,
    /// Write exactly the files that were read into this archive (.tar.zst), with what the GPU driver
    /// said. `discover --host-root FILE` shows the same host from it.
    #[arg(long, value_name = "FILE", conflicts_with = "simulate")]
    pub capture: Option<PathBuf>,
    /// Go on, and print the whole again each time the hardware changes: YAML documents, or one JSON
    /// document a line. Ends with SIGINT or SIGTERM.
    #[arg(long, conflicts_with_all = ["simulate", "capture"])]
    pub watch: bool,
    /// Blank serial numbers and UUIDs of cards in the capture and in what is printed.
    #[arg(long)]
    pub blank_serials: bool,
    /// libvirt, asked for its version. `none` asks nobody. Default: `qemu:///system` on this machine.
    #[arg(long, value_name = "URI")]
    pub libvirt_uri: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Show the host that this file describes, instead of this machine.
    #[arg(long, value_name = "HOSTFILE")]
    pub simulate: Option<PathBuf>,
    /// Name of the node.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", default_value = "this-host")]
    pub node_name: String,
}

/// Options of `layout`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["mig", "vgpu", "mixed"])))]
pub struct Layout {
    /// A host file (`NAME.yaml`), or the root folder or capture of a host, as `discover --capture` writes it.
    #[arg(value_name = "HOSTFILE|HOST-ROOT")]
    pub host: PathBuf,
    /// The card: its number in what `discover` prints, from 0, or its PCI address or UUID.
    #[arg(long, value_name = "N", default_value = "0")]
    pub card: String,
    /// GPU instances by profile, or vGPUs on GPU instances by type, with counts:
    /// `3g.40gb,1g.10gb*2`, `DC-1-2Q*48`.
    #[arg(long, value_name = "LIST", conflicts_with_all = ["vgpu", "mixed"])]
    pub mig: Option<String>,
    /// Time-sliced vGPUs by type, with counts; the part of the name before the first hyphen may be left out:
    /// `L40S-8Q*2,16Q`.
    #[arg(long, value_name = "LIST")]
    pub vgpu: Option<String>,
    /// Sizes are mixed: vGPUs have start positions, also where all have one size. Alone it prints every start.
    #[arg(long)]
    pub mixed: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: LayoutOutput,
}

/// How a layout is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LayoutOutput {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Yaml,
}

/// How guests run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AccelerationChoice {
    /// By KVM where it works.
    #[default]
    Auto,
    /// By KVM, without trying it first.
    Kvm,
    /// By plain emulation.
    Emulation,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How an inventory is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table of cards and NUMA cells.
    #[default]
    Table,
    /// The `GpuNode` as YAML.
    Yaml,
    /// The `GpuNode` as JSON.
    Json,
}

/// An error with its causes, each said once.
pub fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| {
        if said.contains(&cause) {
            said
        } else if said.is_empty() {
            cause
        } else {
            format!("{said}: {cause}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn no_cause_is_said_twice() {
        let error = anyhow::anyhow!("not found").context("a.yaml: not found").context("the host file");
        assert_eq!(told(&error), "the host file: a.yaml: not found");
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_relay_listens_at_its_port_or_nowhere() {
        let default = ListenAt::from_str(RELAY_ADDR).unwrap();
        assert_eq!(default.0.map(|address| address.port()), Some(gpudesk_crds::relay::DEFAULT_PORT));
        assert_eq!(ListenAt::from_str("").unwrap(), ListenAt(None));
        assert!(ListenAt::from_str("8443").is_err());
        for (text, right) in
            [("192.0.2.7", true), ("[2001:db8::7]:1", true), ("a.b:1", true), ("", false), ("a b", false)]
        {
            assert_eq!(announced(text).is_ok(), right, "{text:?}");
        }
    }
}
