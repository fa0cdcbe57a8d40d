//! The placement lock under load, and what the number of different demands costs.
//!
//! A thousand nodes, a hundred and twenty demands, two thousand desktops for which there is no room, and
//! others that come and go: decisions under a lock as the operator makes them, and what takes long aside.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gpudesk_crds::{Allocation, desktop::PowerState};
use gpudesk_placement::{
    Limits, Snapshot,
    explain::{Insight, MOST_MOVES},
    request::{Demand, DesktopKey, Request},
};
use rustix::time::{ClockId, clock_gettime};

use crate::estate::{Random, demand, node, object};

/// Nodes.
const NODES: usize = 1000;
/// Desktops that are placed to see what demands cost.
const DESKTOPS: usize = 18_000;
/// Desktops for which there is no room.
const WAITING: usize = 2000;
/// Desktops that stop, each followed by one that starts and by some that try again.
const STEPS: usize = 2000;
/// How many of those that wait try again after each.
const TRIES: usize = 10;
/// Profiles by how often they are asked for.
const PROFILES: [&str; 12] = [
    "1g.10gb", "1g.20gb", "1g.10gb", "2g.20gb", "1g.10gb", "3g.40gb", "1g.10gb", "1g.20gb", "1g.10gb",
    "2g.20gb", "4g.40gb", "7g.80gb",
];

/// What this thread has used of a CPU: what else runs on the machine does not count.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// So many demands, no two alike.
fn demands(count: usize) -> Vec<Arc<Demand>> {
    let of = |number: usize| {
        let mut demand = (*demand(PROFILES[number % PROFILES.len()])).clone();
        demand.cpu.cores = 1 + i32::try_from(number / PROFILES.len() % 4).unwrap();
        demand.memory.mib = 1024 * (2 + i64::try_from(number).unwrap() / 7);
        Arc::new(demand)
    };
    (0..count).map(of).collect()
}

fn request(number: usize, demands: &[Arc<Demand>]) -> Request {
    Request {
        desktop: DesktopKey::new("school", &format!("desktop-{number}")),
        labels: BTreeMap::new(),
        affinity: vec![],
        home: None,
        previous: None,
        demand: demands[number % demands.len()].clone(),
    }
}

fn nodes(snapshot: &mut Snapshot) {
    let mut node = node();
    for number in 0..NODES {
        node.metadata.name = Some(format!("node-{number}"));
        snapshot.node_seen(&node);
    }
}

/// Nodes, and so many desktops that are defined and do not run.
fn estate(count: usize, demands: &[Arc<Demand>]) -> Snapshot {
    let mut snapshot = Snapshot::new(Limits::default());
    nodes(&mut snapshot);
    for number in 0..count {
        let request = request(number, demands);
        snapshot.desktop_seen(&object(&request.desktop));
        snapshot.wants(&request.desktop, Some(&request));
    }
    snapshot
}

/// Seconds that it takes to find a place for all desktops when they ask for so many different things.
pub(crate) fn fill(demands_count: usize, seed: u64) -> f64 {
    let demands = demands(demands_count);
    let mut snapshot = estate(DESKTOPS, &demands);
    snapshot.catch_up();
    let mut random = Random(seed);
    let mut order: Vec<usize> = (0..DESKTOPS).collect();
    for last in (1..DESKTOPS).rev() {
        order.swap(last, usize::try_from(random.below(last as u64 + 1)).unwrap());
    }
    let started = cpu_time();
    for number in order {
        let request = request(number, &demands);
        let placed = snapshot.place(&request).expect("there is room for all");
        snapshot.take(&request.desktop, &Arc::new(placed.allocation(None)));
    }
    cpu_time().saturating_sub(started).as_secs_f64()
}

/// How long a lock is held.
#[derive(Default)]
struct Holds(Vec<Duration>);

impl Holds {
    fn with<R>(&mut self, lock: &Mutex<Snapshot>, what: impl FnOnce(&mut Snapshot) -> R) -> R {
        let mut snapshot = lock.lock().unwrap();
        let started = cpu_time();
        let found = what(&mut snapshot);
        self.0.push(cpu_time().saturating_sub(started));
        found
    }
}

/// Requests for which there was no room.
type Asked = Mutex<Vec<Request>>;

/// Prices and explanations, once a second as in the operator.
fn think(lock: &Mutex<Snapshot>, mut copy: Snapshot, asked: &Asked, over: &AtomicBool) -> Holds {
    let mut holds = Holds::default();
    while !over.load(Ordering::Relaxed) {
        if let Some(work) = holds.with(lock, Snapshot::pricing_work) {
            let list = Arc::new(work.solve());
            holds.with(lock, |snapshot| snapshot.use_prices(&list));
        }
        copy.follow(holds.with(lock, Snapshot::news));
        let due: Vec<Request> = std::mem::take(&mut *asked.lock().unwrap()).into_iter().take(8).collect();
        for request in due {
            if let Err(no_room) = copy.place(&request) {
                copy.think(&request, &no_room, MOST_MOVES).explain(&request, &no_room);
            }
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    holds
}

/// One desktop is decided; what it gets is told.
fn decide(snapshot: &mut Snapshot, request: &Request, asked: &Asked) -> Option<Arc<Allocation>> {
    match snapshot.place(request) {
        Ok(placed) => {
            let given = Arc::new(placed.allocation(None));
            snapshot.take(&request.desktop, &given);
            Some(given)
        }
        Err(no_room) => {
            Insight::default().explain(request, &no_room);
            asked.lock().unwrap().push(request.clone());
            None
        }
    }
}

/// A desktop is switched on.
fn on(snapshot: &mut Snapshot, request: &Request) {
    let mut desktop = object(&request.desktop);
    desktop.spec.power_state = PowerState::Running;
    snapshot.desktop_seen(&desktop);
    snapshot.wants(&request.desktop, Some(request));
}

/// How long the lock is held each time: by decisions and events, and by the thinker.
pub(crate) fn holds(demands_count: usize) -> (Vec<Duration>, Vec<Duration>) {
    let demands = demands(demands_count);
    let mut snapshot = Snapshot::new(Limits::default()).followed();
    nodes(&mut snapshot);
    let (asked, over) = (Asked::default(), AtomicBool::new(false));
    let mut random = Random(7);
    let (mut running, mut waiting): (Vec<Request>, Vec<Request>) = (vec![], vec![]);
    let mut number = 0;
    while waiting.len() < WAITING {
        let request = request(number, &demands);
        number += 1;
        on(&mut snapshot, &request);
        if number % 250 == 0 {
            snapshot.catch_up();
        }
        match decide(&mut snapshot, &request, &asked) {
            Some(_) => running.push(request),
            None => waiting.push(request),
        }
    }
    eprintln!("{} run, {} wait", running.len(), waiting.len());
    let lock = Mutex::new(snapshot);
    std::thread::scope(|scope| {
        let thinker = scope.spawn(|| think(&lock, Snapshot::new(Limits::default()), &asked, &over));
        let mut holds = Holds::default();
        for _ in 0..STEPS {
            let gone = running.swap_remove(usize::try_from(random.below(running.len() as u64)).unwrap());
            holds.with(&lock, |snapshot| snapshot.desktop_gone(&gone.desktop));
            let new = request(number, &demands);
            number += 1;
            holds.with(&lock, |snapshot| on(snapshot, &new));
            // Those that have waited longest try first, and then the new one.
            let tries: Vec<Request> = waiting.drain(..TRIES).chain([new]).collect();
            for request in tries {
                match holds.with(&lock, |snapshot| decide(snapshot, &request, &asked)) {
                    Some(_) => running.push(request),
                    None => waiting.push(request),
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        (holds.0, thinker.join().unwrap().0)
    })
}
