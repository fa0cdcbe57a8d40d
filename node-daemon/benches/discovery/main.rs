//! What discovery costs: a whole pass, and a change of one function, on a host with two sockets, 256 CPUs
//! and 8 cards of 32 virtual functions, as a tree in memory.
//!
//! Each figure is a ratio of two measurements of one run, taken in turns. Baselines: (a) the files that a
//! pass needs, opened and read with nothing made of them; (b) a walk that reads every file of the tree.
//!
//! ```console
//! $ cargo bench -p gpudesk-node-daemon --bench discovery [-- --rounds N]
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, clippy::cast_precision_loss)]

mod host;

use std::{
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gpudesk_crds::GpuNodeStatus;
use gpudesk_inventory::{
    scan::{self, Scanner},
    status::{self, Findings},
    topology::HostFacts,
    tree::Tree,
};

/// Passes measured together, so that the clock's own grain does not matter.
const PASSES: u32 = 5;
const CHANGES: u32 = 200;

fn main() {
    // Cargo gives `--bench` and a filter to every benchmark.
    let arguments: Vec<String> = std::env::args().collect();
    let rounds =
        arguments.iter().position(|argument| argument == "--rounds").and_then(|at| arguments.get(at + 1));
    let rounds: usize = rounds.map_or(9, |rounds| rounds.parse().expect("--rounds takes a number"));
    let memory =
        if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    let folder = tempfile::Builder::new().prefix("gpudesk-discovery-").tempdir_in(memory).unwrap();
    let root = folder.path();
    let files = host::compose(root);

    let recorded = Scanner::new(Tree::open(root).unwrap().recording());
    let mut recorded = recorded;
    let facts = recorded.read();
    let needed = needed(root, &recorded);
    assert_eq!(
        (facts.cards.len(), facts.cards[0].virtual_functions.len()),
        (8, 32),
        "the host is read whole"
    );
    assert_eq!(facts.cpus.online.len(), 256);
    eprintln!("{files} files and links in the tree, {} of them needed", needed.len());

    let mut measures = [
        Measure::new("discovery.whole-pass-over-plain-reads", 3.0, 1.3),
        Measure::new("discovery.whole-pass-over-naive-walk", 0.5, 0.05),
        Measure::new("discovery.change-of-function-over-whole-pass", 0.2, 0.01),
        Measure::new("discovery.change-of-card-over-whole-pass", 0.2, 0.01),
        Measure::new("discovery.change-to-status-over-whole-pass", 0.2, 0.01),
    ];
    let card = facts.cards[3].pci_address;
    let function = facts.cards[3].virtual_functions[7].pci_address;
    for _ in 0..rounds {
        let whole = time(PASSES, || whole_pass(root));
        let plain = time(PASSES, || plain_reads(root, &needed));
        let naive = time(1, || naive_walk(root));
        // A daemon keeps its scanner open.
        let mut scanner = Scanner::new(Tree::open(root).unwrap());
        let mut facts = scanner.read();
        let of_function = time(CHANGES, || assert!(scanner.refresh(&mut facts, function)));
        let of_card = time(CHANGES, || assert!(scanner.refresh(&mut facts, card)));
        let mut before = status(&facts);
        let to_status = time(CHANGES, || {
            assert!(scanner.refresh(&mut facts, function));
            let mut shown = facts.clone();
            scan::judge_modes(&mut shown);
            let now = status(&shown);
            black_box(status::differs(&before, &now));
            before = now;
        });
        measures[0].add(whole, plain);
        measures[1].add(whole, naive);
        measures[2].add(of_function, whole);
        measures[3].add(of_card, whole);
        measures[4].add(to_status, whole);
    }
    for measure in &measures {
        println!("{}", measure.line());
    }
}

/// From an unopened tree to the status of a `GpuNode`.
fn whole_pass(root: &Path) {
    let mut facts = Scanner::new(Tree::open(root).unwrap()).read();
    scan::judge_modes(&mut facts);
    black_box(status(&facts));
}

fn status(facts: &HostFacts) -> GpuNodeStatus {
    status::status(&Findings::of(facts))
}

/// What a pass needs.
enum Needed {
    File(PathBuf),
    Link(PathBuf),
    Folder(PathBuf),
}

/// From what a pass was seen to read, out of the capture of it.
fn needed(root: &Path, scanner: &Scanner) -> Vec<Needed> {
    let mut archive = vec![];
    scanner.tree().recorded().unwrap().write(&mut archive).unwrap();
    let mut archive = tar::Archive::new(zstd::Decoder::new(archive.as_slice()).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let path = root.join(entry.path().unwrap());
        match entry.header().entry_type() {
            tar::EntryType::Symlink => Needed::Link(path),
            tar::EntryType::Directory => Needed::Folder(path),
            _ => Needed::File(path),
        }
    });
    entries.collect()
}

fn plain_reads(_: &Path, needed: &[Needed]) {
    for needed in needed {
        match needed {
            Needed::File(path) => drop(black_box(fs::read(path).unwrap())),
            Needed::Link(path) => drop(black_box(fs::read_link(path).unwrap())),
            Needed::Folder(path) => drop(black_box(fs::read_dir(path).unwrap().count())),
        }
    }
}

fn naive_walk(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            naive_walk(&entry.path());
        } else if kind.is_symlink() {
            black_box(fs::read_link(entry.path()).unwrap());
        } else {
            black_box(fs::read_to_string(entry.path()).unwrap_or_default());
        }
    }
}

/// The time of one of `count` calls.
fn time(count: u32, mut call: impl FnMut()) -> Duration {
    let begin = Instant::now();
    for _ in 0..count {
        call();
    }
    begin.elapsed() / count
}

/// A ratio, its floor and its goal.
struct Measure {
    name: &'static str,
    floor: f64,
    goal: f64,
    ours: Vec<Duration>,
    baseline: Vec<Duration>,
}

impl Measure {
    fn new(name: &'static str, floor: f64, goal: f64) -> Self {
        Self { name, floor, goal, ours: vec![], baseline: vec![] }
    }

    fn add(&mut self, ours: Duration, baseline: Duration) {
        self.ours.push(ours);
        self.baseline.push(baseline);
    }

    /// One line of JSON; times in microseconds, medians; the spread is the least and the largest ratio.
    fn line(&self) -> String {
        let ratio = |(ours, baseline): (&Duration, &Duration)| ours.as_secs_f64() / baseline.as_secs_f64();
        let mut ratios: Vec<f64> = self.ours.iter().zip(&self.baseline).map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let median = |times: &[Duration]| {
            let mut times = times.to_vec();
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64() * 1e6
        };
        serde_json::json!({
            "measure": self.name,
            "ours_us": (median(&self.ours) * 10.0).round() / 10.0,
            "baseline_us": (median(&self.baseline) * 10.0).round() / 10.0,
            "ratio": (ratios[ratios.len() / 2] * 1e4).round() / 1e4,
            "spread": [(ratios[0] * 1e4).round() / 1e4, (ratios[ratios.len() - 1] * 1e4).round() / 1e4],
            "rounds": ratios.len(),
            "floor": self.floor,
            "goal": self.goal,
        })
        .to_string()
    }
}
