//! Decisions while writes conflict, answers get lost and the watch lags: whatever the order, what the API
//! server holds is legal at every moment.
//!
//! The server is a map with versions and guarded writes. The operator is the snapshot, driven as a round over
//! a desktop drives it: place, assume, write under the guard of the version seen, and then `written`,
//! `forget`, or nothing at all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use gpudesk_crds::{Allocation, GpuNode, types::VgpuSeries};
use proptest::prelude::*;

use super::{builders::*, oracle};
use crate::{
    Limits, Snapshot,
    request::{DesktopKey, Share},
};

const DESKTOPS: usize = 7;

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A round over a desktop: decides if it has no place, or writes again what is assumed.
    Round(usize),
    /// The server answers the oldest write of a desktop.
    Answer(usize, Answer),
    /// A write that its sender has given up arrives after all.
    Arrive,
    /// The watch shows the next change.
    Watch,
    /// Somebody edits a desktop: another version, the same allocation.
    Edit(usize),
    /// The node gave up what a desktop held, and that is written.
    Release(usize),
    /// A desktop is deleted and made anew.
    Replace(usize),
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    /// It comes through: success or conflict, as the version says.
    Heard,
    /// The server does as it should, and the answer is lost.
    Lost,
    /// The sender gives up, and the write is still on its way.
    Late,
    /// The server refuses to look at it.
    Refused,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let desktop = || 0..DESKTOPS;
    let answer =
        prop::sample::select(vec![Answer::Heard, Answer::Heard, Answer::Lost, Answer::Late, Answer::Refused]);
    prop::collection::vec(
        prop_oneof![
            4 => desktop().prop_map(Step::Round),
            4 => (desktop(), answer).prop_map(|(desktop, answer)| Step::Answer(desktop, answer)),
            4 => Just(Step::Watch),
            1 => Just(Step::Arrive),
            1 => desktop().prop_map(Step::Edit),
            2 => desktop().prop_map(Step::Release),
            1 => desktop().prop_map(Step::Replace),
        ],
        1..120,
    )
}

/// An object of the server.
#[derive(Clone, Debug, Default)]
struct Object {
    version: u64,
    allocation: Option<Arc<Allocation>>,
}

/// A write on its way: guard, what, and whether it was decided just then.
type Write = (u64, Arc<Allocation>, bool);

struct Model {
    nodes: Vec<GpuNode>,
    objects: Vec<Object>,
    versions: u64,
    events: VecDeque<(usize, Option<Object>)>,
    shown: Vec<Object>,
    writes: Vec<VecDeque<Write>>,
    late: VecDeque<(usize, Write)>,
    snapshot: Snapshot,
}

fn name(desktop: usize) -> String {
    format!("d{desktop}")
}

fn key(desktop: usize) -> DesktopKey {
    DesktopKey::new("demo", &name(desktop))
}

/// Few shares of a kind, so that all want the same.
fn share(desktop: usize) -> Share {
    match desktop % 3 {
        0 => Share::Passthrough,
        1 => vgpu(24),
        _ => mig("2g.48gb+gfx", VgpuSeries::Q),
    }
}

impl Model {
    fn new() -> Self {
        let nodes = vec![
            node("a", &[cell(0, 8, 65_536, 0)], &[rtx_pro_6000(1, 0)]),
            node("b", &[cell(0, 8, 65_536, 0)], &[l40s(1, 0)]),
        ];
        let mut model = Self {
            nodes,
            objects: vec![Object::default(); DESKTOPS],
            versions: 0,
            events: VecDeque::new(),
            shown: vec![Object::default(); DESKTOPS],
            writes: vec![VecDeque::new(); DESKTOPS],
            late: VecDeque::new(),
            snapshot: Snapshot::new(Limits::default()),
        };
        for node in &model.nodes {
            model.snapshot.node_seen(node);
        }
        for desktop in 0..DESKTOPS {
            model.change(desktop, None);
        }
        while model.watch() {}
        model
    }

    /// The server writes an object, and will show it.
    fn change(&mut self, desktop: usize, allocation: Option<Arc<Allocation>>) {
        self.versions += 1;
        let object = Object { version: self.versions, allocation };
        self.objects[desktop] = object.clone();
        self.events.push_back((desktop, Some(object)));
    }

    fn watch(&mut self) -> bool {
        let Some((at, object)) = self.events.pop_front() else { return false };
        if let Some(object) = object {
            self.snapshot.desktop_seen(&desktop(&name(at), object.version, object.allocation.as_deref()));
            self.shown[at] = object;
        } else {
            self.snapshot.desktop_gone(&key(at));
            self.shown[at] = Object::default();
        }
        true
    }

    fn round(&mut self, at: usize) {
        let Object { version, allocation } = self.shown[at].clone();
        // Rounds over one desktop follow each other: the next waits for the answer, or gives it up.
        if version == 0 || allocation.is_some() || !self.writes[at].is_empty() {
            return;
        }
        let (allocation, fresh) = match self.snapshot.assumed(&key(at)) {
            Some(assumed) if assumed.written => return,
            Some(assumed) => (assumed.allocation, false),
            None => {
                let Ok(placed) = self.snapshot.place(&request(&name(at), vec![share(at)])) else { return };
                let given = allocation_of(&placed);
                if self.snapshot.assume(&key(at), &version.to_string(), &given).is_err() {
                    return;
                }
                (given, true)
            }
        };
        self.writes[at].push_back((version, allocation, fresh));
    }

    fn answer(&mut self, at: usize, answer: Answer) {
        let Some((guard, allocation, fresh)) = self.writes[at].pop_front() else { return };
        if matches!(answer, Answer::Late) {
            self.late.push_back((at, (guard, allocation, fresh)));
            return;
        }
        if matches!(answer, Answer::Refused) {
            // Only a first write that was refused is known to have changed nothing.
            if fresh {
                self.snapshot.forget(&key(at));
            }
            return;
        }
        let done = self.objects[at].version == guard;
        if done {
            self.change(at, Some(allocation));
        }
        if done && matches!(answer, Answer::Heard) {
            self.snapshot.written(&key(at));
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Round(at) => self.round(*at),
            Step::Answer(at, answer) => self.answer(*at, *answer),
            Step::Arrive => {
                if let Some((at, (guard, allocation, _))) = self.late.pop_front()
                    && self.objects[at].version == guard
                {
                    self.change(at, Some(allocation));
                }
            }
            Step::Watch => {
                self.watch();
            }
            Step::Edit(at) => {
                let same = self.objects[*at].allocation.clone();
                self.change(*at, same);
            }
            Step::Release(at) => {
                if self.objects[*at].allocation.is_some() {
                    self.change(*at, None);
                }
            }
            Step::Replace(at) => {
                self.objects[*at] = Object::default();
                self.events.push_back((*at, None));
                self.change(*at, None);
            }
        }
    }

    /// What the server holds is legal.
    fn check(&self) -> Result<(), String> {
        for node in &self.nodes {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let here: Vec<&Allocation> = self
                .objects
                .iter()
                .filter_map(|object| object.allocation.as_deref())
                .filter(|allocation| allocation.node == name)
                .collect();
            oracle::legal(node, &here, 4)?;
        }
        Ok(())
    }
}

fn allocation_of(placed: &crate::Placed) -> Arc<Allocation> {
    allocation(placed)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_given_twice_however_writes_and_events_cross(steps in steps()) {
        let mut model = Model::new();
        for (number, step) in steps.iter().enumerate() {
            model.step(step);
            if let Err(why) = model.check() {
                prop_assert!(false, "after step {number}: {why}");
            }
        }
        // Once everything is answered and seen, the snapshot is the server's.
        for at in 0..DESKTOPS {
            while !model.writes[at].is_empty() {
                model.answer(at, Answer::Heard);
            }
        }
        while model.watch() {}
        let mut built = Snapshot::new(Limits::default());
        for node in &model.nodes {
            built.node_seen(node);
        }
        let mut held = BTreeMap::new();
        for (at, object) in model.objects.iter().enumerate() {
            built.desktop_seen(&desktop(&name(at), object.version, object.allocation.as_deref()));
            held.insert(at, object.allocation.clone());
        }
        for at in 0..DESKTOPS {
            // An assumption whose write was refused or lost a race ends with the next version; until then it counts.
            if model.snapshot.assumed(&key(at)).is_none() {
                prop_assert_eq!(model.snapshot.holds(&key(at)).cloned(), held[&at].clone());
            }
        }
        model.check().map_err(TestCaseError::fail)?;
    }
}
