//! Every reason for which a condition is False, and the cases beside it.

mod cards;
mod device_plugins;
mod host;
mod node;

use gpudesk_crds::conditions::{self, ConditionType, Reason};

use super::{World, card, world};

type Change = fn(&mut World);
/// What is changed in a machine in order; status, reason; what the message names.
type Case = (Change, bool, Reason, &'static [&'static str]);

fn check(type_: ConditionType, cases: &[Case]) {
    for (number, (change, holds, reason, needles)) in cases.iter().enumerate() {
        let mut world = world();
        change(&mut world);
        let status = world.status();
        let said = conditions::find(&status.conditions, type_).unwrap();
        let expected = (if *holds { "True" } else { "False" }, reason.as_str());
        assert_eq!((said.status.as_str(), said.reason.as_str()), expected, "case {number}: {said:?}");
        for needle in *needles {
            assert!(said.message.contains(needle), "case {number}: {needle:?} is not in {:?}", said.message);
        }
    }
}
