//! Whole machines, composed file by file as kernels and drivers show them, against the whole status of
//! their `GpuNode`, byte for byte.
//!
//! `GPUDESK_UPDATE_GOLDENS=1 cargo test -p gpudesk-node-daemon --test discovery_goldens` writes them anew.

#![expect(clippy::disallowed_methods, reason = "fixtures and goldens are files")]
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod fixtures;

use std::{fs, path::Path};

use fixtures::Machine;
use gpudesk_crds::{GpuNode, GpuNodeSpec};
use gpudesk_inventory::{
    scan::{self, Scanner},
    status::{self, Findings},
    topology::HostFacts,
    tree::Tree,
};

/// What the host at `path` says of itself.
fn facts(path: &Path) -> HostFacts {
    let mut facts = Scanner::new(Tree::open(path).unwrap()).read();
    scan::judge_modes(&mut facts);
    facts
}

fn node(facts: &HostFacts, name: &str) -> GpuNode {
    let mut status = status::status(&Findings { generation: Some(1), ..Findings::of(facts) });
    // It is another one with each release.
    status.host.as_mut().unwrap().daemon_version = None;
    GpuNode { status: Some(status), ..GpuNode::new(name, GpuNodeSpec::default()) }
}

/// The names of all composed machines.
fn names() -> Vec<String> {
    let entries = fs::read_dir(fixtures::folder()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> =
        entries.filter_map(|name| Some(name.to_str()?.strip_suffix(".tree")?.to_owned())).collect();
    names.sort();
    names
}

/// A folder in memory where there is such a thing: the machines have many small files.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Calls `check` with each machine, written below a folder; what it says is wrong is told with names.
fn of_each_machine(check: impl Fn(&str, &Machine, &Path) -> Result<(), String>) {
    let names = names();
    assert!(names.len() >= 20, "fixtures are missing: {names:?}");
    let mut wrong = vec![];
    for name in names {
        let machine = Machine::load(&name).unwrap();
        let root = folder();
        machine.write_to(root.path()).unwrap();
        if let Err(why) = check(&name, &machine, root.path()) {
            wrong.push(format!("{name}: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The first line in which two texts differ.
fn compare(expected: &str, found: &str) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    let line = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    let line = line.unwrap_or_else(|| found.lines().count().min(expected.lines().count()));
    let at = |text: &str| text.lines().nth(line).unwrap_or("(the end)").to_owned();
    Err(format!("line {}: expected {:?}, found {:?}", line + 1, at(expected), at(found)))
}

fn yaml(name: &str, facts: &HostFacts) -> String {
    serde_yaml::to_string(&node(facts, name)).unwrap()
}

#[test]
fn every_machine_is_described_as_its_golden_says() {
    let update = std::env::var_os("GPUDESK_UPDATE_GOLDENS").is_some();
    of_each_machine(|name, _, root| {
        let found = yaml(name, &facts(root));
        let golden = fixtures::folder().join(format!("{name}.golden.yaml"));
        if update {
            fs::write(&golden, &found).unwrap();
        }
        compare(&fs::read_to_string(&golden).unwrap_or_default(), &found)
    });
}

#[test]
fn the_schema_of_the_api_takes_every_machine_as_it_was_found() {
    of_each_machine(|name, _, root| {
        let status = node(&facts(root), name).status.unwrap_or_default();
        let mended = status.missing.iter().filter(|sentence| sentence.starts_with("status."));
        let faults: Vec<String> = status::faults(&status).into_iter().chain(mended.cloned()).collect();
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
    });
}

#[test]
fn archives_captures_and_second_readings_say_the_same() {
    of_each_machine(|name, machine, root| {
        let mut scanner = Scanner::new(Tree::open(root).unwrap().recording());
        let mut read = scanner.read();
        let first = read.clone();
        scan::judge_modes(&mut read);
        let said = yaml(name, &read);

        let archive = tempfile::NamedTempFile::new().unwrap();
        machine.pack_to(archive.as_file()).unwrap();
        compare(&said, &yaml(name, &facts(archive.path()))).map_err(|why| format!("as an archive, {why}"))?;

        let capture = tempfile::NamedTempFile::new().unwrap();
        scanner.tree().recorded().unwrap().write(capture.as_file()).unwrap();
        compare(&said, &yaml(name, &facts(capture.path()))).map_err(|why| format!("captured, {why}"))?;

        let mut again = first.clone();
        let cards = first.cards.iter().map(|card| card.pci_address);
        for address in cards.chain(first.host_devices.iter().map(|device| device.pci_address)) {
            if !scanner.refresh(&mut again, address) {
                return Err(format!("{address} is gone when it is read again"));
            }
        }
        scanner.refresh_compute(&mut again);
        scan::judge_modes(&mut again);
        compare(&said, &yaml(name, &again)).map_err(|why| format!("read again, {why}"))
    });
}
