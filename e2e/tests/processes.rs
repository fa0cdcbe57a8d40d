//! Processes, ports and state folders of the harness.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use gpudesk_e2e::ports;
use gpudesk_e2e::processes::{Identity, Launch, Lifetime, Process, run};
use gpudesk_e2e::state::StateDir;
use gpudesk_e2e::waiting::eventually;
use serde_json::json;

const LONG: Duration = Duration::from_secs(20);

fn shell(name: &str, script: &str) -> Launch {
    Launch::new(name, "/bin/sh").args(["-c", script])
}

/// Starts a script and waits until it has written `ready`.
fn started(state: &StateDir, name: &str, script: &str) -> Process {
    let process = shell(name, script).start(state, Lifetime::Test).unwrap();
    let deadline = Instant::now() + LONG;
    while !process.log_tail().contains("ready") {
        assert!(Instant::now() < deadline && process.is_running(), "{}", process.log_tail());
        std::thread::sleep(Duration::from_millis(5));
    }
    process
}

#[test]
fn a_process_that_ends_when_asked_is_not_killed() {
    let state = StateDir::for_test("processes").unwrap();
    let mut process =
        started(&state, "polite", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done");
    assert!(process.stop(LONG).unwrap());
    assert!(!process.is_running() && !process.identity().is_running());
}

#[test]
fn a_process_that_ignores_the_request_is_killed_after_its_grace() {
    let state = StateDir::for_test("processes").unwrap();
    let mut process = started(&state, "stubborn", "trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let began = Instant::now();
    let grace = Duration::from_millis(300);
    assert!(!process.stop(grace).unwrap());
    assert!(began.elapsed() >= grace && !process.is_running());
}

#[test]
fn a_dropped_process_is_gone_and_a_detached_one_is_not() {
    let state = StateDir::for_test("processes").unwrap();
    let bound = started(&state, "bound", "echo ready; exec sleep 600");
    let identity = bound.identity();
    drop(bound);
    assert!(!identity.is_running());

    let detached = Launch::new("free", "sleep").args(["600"]).start(&state, Lifetime::Detached).unwrap();
    let identity = detached.identity();
    drop(detached);
    assert!(identity.is_running());
    let mut again = Process::recorded(&state, "free").unwrap();
    assert_eq!(again.identity(), identity);
    again.stop(LONG).unwrap();
    assert!(!identity.is_running() && Process::recorded(&state, "free").is_none());
}

#[test]
fn another_process_with_the_same_number_is_not_taken_for_the_old_one() {
    let own = Identity::of_this_process().unwrap();
    assert!(own.is_running());
    let earlier: Identity =
        serde_json::from_value(json!({ "pid": own.pid(), "startTime": own.start_time() - 1 })).unwrap();
    assert!(!earlier.is_running());
    // It is not signalled either: this process would be gone.
    earlier.end(rustix::process::Signal::KILL, LONG).unwrap();

    let state = StateDir::for_test("processes").unwrap();
    std::fs::write(state.join("processes/old.json"), serde_json::to_string(&earlier).unwrap()).unwrap();
    assert!(Process::recorded(&state, "old").is_none());
}

#[test]
fn a_failed_command_tells_its_words_and_what_it_said() {
    let words = run(std::process::Command::new("sh").args(["-c", "echo broken >&2; exit 3"]))
        .unwrap_err()
        .to_string();
    assert!(
        words.contains("sh -c") && words.contains("exit status: 3") && words.contains("broken"),
        "{words}"
    );
    let state = StateDir::for_test("processes").unwrap();
    let missing = Launch::new("missing", "/no/such/program").start(&state, Lifetime::Test).unwrap_err();
    assert!(missing.to_string().contains("/no/such/program"));
}

#[test]
fn a_port_is_free_and_given_once() {
    let (one, other) = (ports::free().unwrap(), ports::free().unwrap());
    assert_ne!(one, other);
    for port in [one, other] {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    }
}

#[test]
fn state_folders_are_short_distinct_and_go_with_their_owner() {
    let (one, other) = (StateDir::for_test("same").unwrap(), StateDir::for_test("same").unwrap());
    assert_ne!(one.path(), other.path());
    assert!(one.join("host/run/libvirt-sock").as_os_str().len() < 108);
    let folder = one.path().to_owned();
    drop(one);
    assert!(!folder.exists() && other.path().exists());

    let name = format!("named-{}", std::process::id());
    let (first, second) = (StateDir::named(&name).unwrap(), StateDir::named(&name).unwrap());
    assert_eq!(first.path(), second.path());
    drop(second);
    assert!(first.path().exists());
    first.remove().unwrap();
}

#[test]
fn the_folder_of_a_process_that_is_gone_is_swept_with_what_it_left_running() {
    let state = StateDir::named(&format!("abandoned-{}", std::process::id())).unwrap();
    let left =
        Launch::new("left", "sleep").args(["600"]).start(&state, Lifetime::Detached).unwrap().identity();
    assert!(left.is_running());
    let own = Identity::of_this_process().unwrap();
    let gone = json!({ "pid": own.pid(), "startTime": own.start_time() - 1 });
    std::fs::write(state.join("owner"), gone.to_string()).unwrap();
    drop(StateDir::for_test("sweeper").unwrap());
    // Another test may be sweeping it right now.
    let deadline = Instant::now() + LONG;
    while left.is_running() || state.path().exists() {
        assert!(Instant::now() < deadline, "{} is left", state.path().display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_wait_that_ends_in_vain_says_for_what() {
    let never = eventually("the sun rises", Duration::from_millis(30), || async { Ok(None::<()>) }).await;
    assert!(never.unwrap_err().to_string().contains("the sun rises"));
    let broken = eventually("it works", LONG, || async {
        anyhow::bail!("no: it is broken") as anyhow::Result<Option<()>>
    });
    assert_eq!(broken.await.unwrap_err().to_string(), "no: it is broken");
}
