//! `gpudesk-node-daemon discover` with a library that stands in NVML's place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod control;
mod settings;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use gpudesk_crds::{GpuNode, gpu_node_status::Device};
use gpudesk_e2e::{programs::binaries, state::checkout};

/// A host of which sysfs shows the cards and NVML says the rest.
struct Host {
    folder: tempfile::TempDir,
}

/// The stand-in, built unless somebody built everything.
fn library() -> PathBuf {
    let folder = binaries().unwrap();
    if std::env::var_os("GPUDESK_BIN_DIR").is_none_or(|folder| folder.is_empty()) {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(checkout()).args(["build", "--quiet", "--package", "gpudesk-fake-nvml"]);
        assert!(cargo.status().unwrap().success(), "the stand-in for NVML is not built");
    }
    folder.join("libgpudesk_fake_nvml.so")
}

impl Host {
    /// A host with NVIDIA cards at these addresses, with these device ids.
    fn new(cards: &[(&str, &str)], world: &str) -> Self {
        let host = Self { folder: tempfile::tempdir().unwrap() };
        let driver = host.root().join("sys/bus/pci/drivers/nvidia");
        fs::create_dir_all(&driver).unwrap();
        for (address, device) in cards {
            let card = host.root().join("sys/bus/pci/devices").join(address);
            fs::create_dir_all(&card).unwrap();
            for (file, text) in [("class", "0x030200"), ("vendor", "0x10de"), ("device", device)] {
                fs::write(card.join(file), format!("{text}\n")).unwrap();
            }
            symlink("../../../../bus/pci/drivers/nvidia", card.join("driver")).unwrap();
        }
        host.world(world);
        host
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Changes what the driver says.
    fn world(&self, world: &str) {
        let new = self.folder.path().join("new.yaml");
        fs::write(&new, world).unwrap();
        fs::rename(new, self.folder.path().join("world.yaml")).unwrap();
    }

    fn discover(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binaries().unwrap().join("gpudesk-node-daemon"));
        command.args(["discover", "-o", "json", "--libvirt-uri", "none", "--nvml"]).arg(library());
        command.arg("--host-root").arg(self.root()).args(arguments);
        command.env("GPUDESK_FAKE_NVML", self.folder.path().join("world.yaml"));
        command
    }

    fn cards(&self, arguments: &[&str]) -> Vec<Device> {
        cards(&mut self.discover(arguments))
    }
}

fn cards(command: &mut Command) -> Vec<Device> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let node: GpuNode = serde_json::from_slice(&output.stdout).unwrap();
    node.status.unwrap().devices
}

const SLICED: &str = "cards:
- {model: H100 PCIe 80GB, address: '0000:41:00.0', uuid: GPU-a, serial: '1652823054567', mig: true, gpuInstances: [{profile: 3g.40gb, start: 4}]}
- {model: L40S, address: '0000:c1:00.0', uuid: GPU-b, mixedSize: true, vgpus: [{type: L40S-16Q, placement: 32}]}";

#[test]
fn cards_are_shown_with_all_that_their_driver_says() {
    let host = Host::new(&[("0000:41:00.0", "0x2331"), ("0000:c1:00.0", "0x26b9")], SLICED);
    let cards = host.cards(&[]);
    assert_eq!(
        (cards[0].product.as_str(), cards[0].uuid.as_deref()),
        ("NVIDIA H100 PCIe 80GB", Some("GPU-a"))
    );
    assert_eq!((cards[0].mig.unwrap().current, cards[0].units.unwrap().mig_memory), (true, 8));
    let small = cards[0].placements.iter().find(|placement| placement.type_name == "1g.10gb").unwrap();
    assert_eq!((small.starts.len(), small.available, small.driver_id.as_deref()), (7, Some(4), Some("19")));
    let slice = &cards[0].instances[0];
    assert_eq!((slice.type_name.as_str(), slice.start, slice.gpu_instance), ("3g.40gb", Some(4), Some(2)));
    let large = cards[1].placements.iter().find(|placement| placement.type_name == "L40S-16Q").unwrap();
    assert_eq!((large.starts.as_slice(), large.available), (&[0, 32][..], Some(1)));
    assert_eq!(cards[1].instances[0].start, Some(32));
    assert_eq!(host.cards(&[]), cards, "the same host is shown the same");
}

#[test]
fn who_only_looks_changes_nothing() {
    let host = Host::new(&[("0000:41:00.0", "0x2331"), ("0000:c1:00.0", "0x26b9")], SLICED);
    let recorder = host.folder.path().join("calls");
    host.world(&format!("recorder: calls\n{SLICED}"));
    assert_eq!(host.cards(&[]).len(), 2);
    assert_eq!(fs::read_to_string(&recorder).unwrap_or_default(), "");
}

#[test]
fn a_capture_shows_the_same_host_without_its_driver() {
    let host = Host::new(&[("0000:41:00.0", "0x2331"), ("0000:c1:00.0", "0x26b9")], SLICED);
    let file = host.folder.path().join("host.tar.zst");
    let there = host.cards(&["--capture", file.to_str().unwrap()]);
    let daemon = binaries().unwrap().join("gpudesk-node-daemon");
    let again = |file: &Path| {
        let mut command = Command::new(&daemon);
        command.args(["discover", "-o", "json", "--libvirt-uri", "none", "--host-root"]).arg(file);
        cards(&mut command)
    };
    assert_eq!(again(&file), there);

    let blank = host.folder.path().join("blank.tar.zst");
    host.cards(&["--blank-serials", "--capture", blank.to_str().unwrap()]);
    let blanked = again(&blank);
    assert_eq!(blanked[0].placements, there[0].placements);
    assert!(!format!("{blanked:?}").contains("1652823054567"));
}

#[test]
fn a_host_without_the_library_or_with_its_driver_away_is_shown_by_its_bus() {
    let host = Host::new(&[("0000:c1:00.0", "0x26b9")], "driverLoaded: false");
    let cards = host.cards(&[]);
    assert_eq!((cards[0].device_id.as_str(), cards[0].uuid.as_ref()), ("26b9", None));
    let output = host.discover(&[]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("kernel module is not loaded"));
}

/// A running `discover --watch`, and each `GpuNode` that it prints.
struct Watch {
    child: Child,
    nodes: Receiver<GpuNode>,
}

impl Watch {
    fn new(host: &Host) -> Self {
        let mut child = host.discover(&["--watch"]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, nodes) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(node) = serde_json::from_str(&line)
                    && sender.send(node).is_err()
                {
                    break;
                }
            }
        });
        Self { child, nodes }
    }

    /// Waits for a host of which this is true.
    fn until(&self, what: &str, is_so: impl Fn(&[Device]) -> bool) {
        loop {
            let node = self.nodes.recv_timeout(Duration::from_secs(90)).unwrap_or_else(|_| panic!("{what}"));
            if is_so(&node.status.unwrap().devices) {
                return;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_error_of_a_slice_is_shown_while_the_machine_is_watched() {
    let host = Host::new(&[("0000:41:00.0", "0x2331"), ("0000:c1:00.0", "0x26b9")], SLICED);
    let watch = Watch::new(&host);
    watch.until("two cards", |cards| cards.len() == 2 && cards[0].uuid.is_some());
    // Listening begins a while after the first look.
    for round in 1.. {
        let event = "{card: '0000:41:00.0', xid: 94, gpuInstance: 2, computeInstance: 0}";
        host.world(&format!("{SLICED}\nevents: [{}]", vec![event; round].join(", ")));
        let node = watch.nodes.recv_timeout(Duration::from_secs(5));
        let Ok(node) = node else {
            assert!(round < 20, "the error is not shown");
            continue;
        };
        let health = &node.status.unwrap().devices[0].health;
        if let Some(xid) = health.xids.first() {
            assert_eq!((xid.code, xid.gpu_instance, xid.compute_instance), (94, Some(2), Some(0)));
            break;
        }
    }
}
