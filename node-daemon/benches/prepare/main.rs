//! What it costs to make and to unmake a share of a card beyond the kernel's and the driver's own time: in each mode, from
//! the call to its end, over the bare writes and calls of the same steps one after another, in one run and in turns.
//!
//! The host is the kernel of the tests of `devices`, in memory. So that nothing is cheaper than on a machine, each file
//! that is looked at also costs a look at a file of this machine, each write a write to one, and each look for who has
//! devices open goes through all processes of this machine. The journal is on the disk of the target folder.
//!
//! Two paces: `none`, where kernel and driver answer at once and what is left is gpudesk's own, and `documented`:
//!
//! | | | source |
//! | --- | --- | --- |
//! | destroying a GPU instance | 1 s | k8s-dra-driver-gpu and others, as measured there |
//! | reset of a function | 100 ms | `pcie_flr()` of the kernel sleeps so long |
//! | switching virtual functions on | 100 ms | `sriov_enable()` of the kernel, likewise |
//! | everything else | 10 ms (`--assumed-ms`) | nobody says; real drivers take seconds for a card that they bind |
//!
//! ```console
//! $ cargo bench -p gpudesk-node-daemon --bench prepare [-- --rounds N] [--assumed-ms N] [--folder DIR]
//! ```
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss
)]

#[path = "../../src/devices/fake_attributes.rs"]
mod fake_attributes;
#[path = "../../src/devices/fake_control.rs"]
mod fake_control;
#[path = "../../src/devices/fake_files.rs"]
mod fake_files;
#[path = "../../src/devices/fake_kernel.rs"]
mod fake_kernel;
mod paced;
#[path = "../../src/devices/scenarios.rs"]
mod scenarios;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use gpudesk_crds::{
    GpuNodeSpec,
    gpu_node_status::{CardUnits, Device, MigBackedType, Placement},
    types::{ShareMode, VgpuSeries},
};
use gpudesk_inventory::topology::HostFacts;
use gpudesk_node_daemon::{
    devices::{Devices, control, kernel, network},
    host::{self, gpu_driver::GpuDriver as _},
    partition,
};
use rustix::fs::inotify;

use self::{
    fake_kernel::FakeKernel,
    paced::{Host, Library, Pace},
    scenarios::{Scenario, scenarios},
};

/// Nothing ends this daemon.
mod kill_tests {
    #[derive(Debug, Default)]
    pub(super) struct Fuse;

    impl Fuse {
        #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as in the tests")]
        pub(super) fn point(&self) -> Result<(), ()> {
            Ok(())
        }
    }
}

const HELP: &str = "\
What making and unmaking shares of cards costs beyond the kernel's and the driver's own time: one JSON line for each mode and
pace, and one for all. Times are in microseconds, medians; `journal` counts writes of the journal, of two fsyncs each; `looks`
counts looks for who has devices open.

Options:
      --rounds N      Rounds of each measurement [default: 5]
      --assumed-ms N  What calls take of which nobody says how long they take [default: 10]
      --folder DIR    Where the journal is written [default: the target folder]
  -h, --help          Print help
";

struct Options {
    rounds: usize,
    assumed: Duration,
    folder: PathBuf,
}

impl Options {
    /// Cargo gives `--bench` and a filter to every benchmark.
    fn read() -> Option<Self> {
        let all: Vec<String> = std::env::args().collect();
        if all.iter().any(|argument| argument == "-h" || argument == "--help") {
            return None;
        }
        let of = |name: &str| all.iter().position(|it| it == name).and_then(|at| all.get(at + 1)).cloned();
        let number = |name: &str, default| {
            of(name).map_or(default, |text| {
                text.parse::<u32>().unwrap_or_else(|_| panic!("{name} is {text:?}; write a number"))
            })
        };
        Some(Self {
            rounds: number("--rounds", 5).max(1) as usize,
            assumed: Duration::from_millis(number("--assumed-ms", 10).into()),
            folder: of("--folder").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into()).into(),
        })
    }
}

fn main() {
    let Some(options) = Options::read() else {
        print!("{HELP}");
        return;
    };
    let mut all = [Measure::new("all modes"), Measure::new("all modes")];
    for pace in [Pace { assumed: None }, Pace { assumed: Some(options.assumed) }] {
        for mode in 0..scenarios().len() {
            // A drive is the slower the larger it is, and a network card is told by another interface.
            if !scenarios().remove(mode).wanted.what.is_card() {
                continue;
            }
            let name = scenarios().remove(mode).name;
            let mut measures = [Measure::new(name), Measure::new(name)];
            for _ in 0..options.rounds {
                let both = round(scenarios().remove(mode), &options, pace);
                for (measure, once) in measures.iter_mut().zip(both) {
                    measure.add(once);
                }
            }
            for (measure, (what, all)) in measures.iter().zip(["make", "unmake"].into_iter().zip(&mut all)) {
                println!("{}", measure.line(what, pace));
                all.sum(measure);
            }
        }
        for (measure, what) in all.iter_mut().zip(["make", "unmake"]) {
            println!("{}", measure.line(what, pace));
            *measure = Measure::new("all modes");
        }
    }
}

/// One making or unmaking.
#[derive(Clone, Copy, Default)]
struct Once {
    ours: Duration,
    bare: Duration,
    steps: usize,
    journal: usize,
    looks: usize,
}

/// A share made and unmade on a fresh host, each time with the bare calls of the same steps after it.
fn round(scenario: Scenario, options: &Options, pace: Pace) -> [Once; 2] {
    let Scenario { name, kernel, wanted, .. } = scenario;
    let before = kernel.world();
    let state = tempfile::Builder::new().prefix("prepare-").tempdir_in(&options.folder).unwrap();
    let host = Arc::new(Host::new(Arc::clone(&kernel), pace, state.path()));
    let devices =
        Devices::open(Arc::<Host>::clone(&host), Arc::new(Library(Arc::clone(&host))), state.path());
    devices.complete(&mut facts(&kernel));
    devices.settle(&owner());
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, state.path(), inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO)
        .unwrap();
    let timed = |work: &dyn Fn()| {
        host.forget();
        let begin = Instant::now();
        work();
        let ours = begin.elapsed();
        let (calls, looks) = host.calls();
        let begin = Instant::now();
        for call in &calls {
            host.bare(call);
        }
        let bare = begin.elapsed();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&watch, &mut buffer);
        let mut journal = 0;
        // Equal events in a row are told once: a file comes to be before each that is moved to its place.
        while let Ok(event) = reader.next() {
            journal += usize::from(event.events().contains(inotify::ReadFlags::MOVED_TO));
        }
        Once { ours, bare, steps: calls.len(), journal, looks }
    };
    let made = timed(&|| drop(devices.create(&wanted).unwrap_or_else(|error| panic!("{name}: {error}"))));
    let unmade = timed(&|| devices.destroy(&wanted.key).unwrap_or_else(|error| panic!("{name}: {error}")));
    assert_eq!(kernel.world(), before, "{name}: all is as it was");
    [made, unmade]
}

/// What its owner allows: what the modes ask for.
fn owner() -> GpuNodeSpec {
    serde_json::from_value(serde_json::json!({"devices": [{
        "name": "a", "selector": {"pciAddress": scenarios::CARD},
        "vgpuParams": ["frame_rate_limiter=0", "disable_vnc"],
    }]}))
    .unwrap()
}

/// What the inventory says of the host.
fn facts(kernel: &FakeKernel) -> HostFacts {
    let mut facts = HostFacts::default();
    for (address, fun) in kernel.world().functions {
        if fun.class.starts_with("03") && address.function == 0 {
            let mut card = Device::new(address, fun.ids.0, fun.ids.1);
            if fun.mig.is_some() {
                card.units = Some(CardUnits { mig_memory: 12, mig_compute: 4, vgpu_region: 0 });
                card.placements = vec![Placement {
                    driver_id: Some("47".into()),
                    size: 3,
                    starts: vec![0, 3, 6, 9],
                    vgpu_types: vec![MigBackedType {
                        type_name: "DC-1-24Q".into(),
                        series: VgpuSeries::Q,
                        framebuffer_mib: 24576,
                        max_per_instance: 1,
                    }],
                    ..Placement::new("1g.24gb+gfx", ShareMode::Mig, 24576, 4)
                }];
            } else if fun.total > 0 && fun.ids.0 != "10de" {
                card.placements = vec![Placement::new("2VF", ShareMode::VirtualFunctions, 1024, 2)];
            }
            facts.cards.push(card);
        }
    }
    facts
}

/// All rounds of one making or unmaking.
struct Measure {
    mode: &'static str,
    all: Vec<Once>,
}

impl Measure {
    fn new(mode: &'static str) -> Self {
        Self { mode, all: vec![] }
    }

    fn add(&mut self, once: Once) {
        self.all.push(once);
    }

    /// Adds each round of another mode to the same round here.
    fn sum(&mut self, other: &Self) {
        self.all.resize(other.all.len(), Once::default());
        for (sum, one) in self.all.iter_mut().zip(&other.all) {
            sum.ours += one.ours;
            sum.bare += one.bare;
            sum.steps += one.steps;
            sum.journal += one.journal;
            sum.looks += one.looks;
        }
    }

    /// One line of JSON; the spread is the least and the largest ratio.
    fn line(&self, what: &str, pace: Pace) -> String {
        let ratio = |once: &Once| once.ours.as_secs_f64() / once.bare.as_secs_f64().max(1e-9);
        let rounded = |number: f64| (number * 1e4).round() / 1e4;
        let mut ratios: Vec<f64> = self.all.iter().map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let median = |of: &dyn Fn(&Once) -> Duration| {
            let mut times: Vec<Duration> = self.all.iter().map(of).collect();
            times.sort_unstable();
            (times[times.len() / 2].as_secs_f64() * 1e7).round() / 10.0
        };
        let mut line = serde_json::json!({
            "measure": format!("prepare.{what}-over-bare-calls"),
            "mode": self.mode,
            "pace": if pace.assumed.is_some() { "documented" } else { "none" },
            "ours_us": median(&|once| once.ours),
            "baseline_us": median(&|once| once.bare),
            "own_us": median(&|once| once.ours.saturating_sub(once.bare)),
            "ratio": rounded(ratios[ratios.len() / 2]),
            "spread": [rounded(ratios[0]), rounded(ratios[ratios.len() - 1])],
            "steps": self.all[0].steps,
            "journal": self.all[0].journal,
            "looks": self.all[0].looks,
            "rounds": ratios.len(),
        });
        // Without any time of the kernel there is nothing to compare with.
        if pace.assumed.is_some() {
            (line["floor"], line["goal"]) = (1.3.into(), 1.05.into());
        }
        line.to_string()
    }
}
