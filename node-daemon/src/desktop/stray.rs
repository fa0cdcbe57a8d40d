//! What is done with what is here of a desktop, by what the API says of it and by an admin's word. Pure.

use gpudesk_crds::{
    AllocationId,
    gpu_node_status::StrayStanding,
    gpu_node_words::{StrayAction, StrayWord},
};

use super::standing::Verdict;

/// What is here of a desktop.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Its domain is known to libvirt.
    pub domain: bool,
    /// Its domain holds memory and devices.
    pub active: bool,
    /// Its memory was saved on the host: it holds nothing, and is not taken down without a word.
    pub saved: bool,
    /// Its domain is a copy, or has metadata that cannot be read: it may be none of ours.
    pub foreign: bool,
    /// The decision that this was made for.
    pub made_for: Option<AllocationId>,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: it is left as it is, or the rounds of its desktop see to it.
    Leave,
    /// It is taken down: the desktop went on to another node, of this name.
    TakeDown(String),
    /// An admin ends it.
    End(StrayAction),
    /// What only says that its decision was given back is removed.
    Clear,
    /// It is put aside, unless too many are missed.
    PutAside,
}

/// How a machine that is active stands, for those who look at the node; `None`: it is its desktop's own.
pub fn standing_of(verdict: &Verdict) -> Option<StrayStanding> {
    Some(match verdict {
        Verdict::Current => return None,
        Verdict::OlderHere | Verdict::MovedOn(_) => StrayStanding::Older,
        Verdict::Newer { .. } => StrayStanding::Newer,
        Verdict::Unallocated => StrayStanding::Unallocated,
        Verdict::NoDesktop => StrayStanding::NoDesktop,
        Verdict::Unclear { .. } => StrayStanding::Unclear,
    })
}

/// What is done, where `word` is what an admin said of this UID.
pub fn plan(verdict: &Verdict, trace: Trace, word: Option<&StrayWord>) -> Plan {
    let word = word.filter(|word| may_end(verdict, trace, word).is_ok()).map(|word| word.action);
    match (verdict, word) {
        // They are on their way down; a word may only hasten it.
        (Verdict::OlderHere | Verdict::MovedOn(_), Some(StrayAction::PowerOff)) => {
            Plan::End(StrayAction::PowerOff)
        }
        (Verdict::Current | Verdict::Unclear { may_be_current: true } | Verdict::OlderHere, _) => Plan::Leave,
        (Verdict::MovedOn(_) | Verdict::NoDesktop, None) if trace.saved || trace.foreign && !trace.active => {
            Plan::Leave
        }
        (Verdict::MovedOn(node), _) => Plan::TakeDown(node.clone()),
        (_, Some(action)) => Plan::End(action),
        (Verdict::Unallocated, None) if !trace.active => Plan::Clear,
        (Verdict::NoDesktop, None) if !trace.active => Plan::PutAside,
        _ => Plan::Leave,
    }
}

/// Whether `word` ends what is here; else why not, in words.
fn may_end(verdict: &Verdict, trace: Trace, word: &StrayWord) -> Result<(), String> {
    match verdict {
        Verdict::Current => return Err("it is the machine of the allocation that holds".into()),
        Verdict::Unclear { may_be_current: true } => {
            return Err("it may be the machine of the allocation that holds: end it on the host".into());
        }
        // The rounds of its desktop see to what is off.
        Verdict::OlderHere | Verdict::Newer { here: true } if !trace.active => return Err(GONE.into()),
        _ if !trace.domain => return Err(GONE.into()),
        _ => {}
    }
    if trace.saved && word.action == StrayAction::ShutDown {
        return Err("its memory was saved on the host: action PowerOff gives it up".into());
    }
    match (word.allocation_id, trace.made_for) {
        (Some(meant), Some(made_for)) if meant != made_for => {
            Err(format!("allocationId is {meant} and the machine is of {made_for}"))
        }
        (Some(meant), None) => {
            Err(format!("allocationId is {meant} and of which decision the machine is cannot be read"))
        }
        // A word that still stands would end later ones too.
        (None, Some(made_for)) => Err(format!("write which machine is meant: allocationId: {made_for}")),
        (Some(_), Some(_)) | (None, None) => Ok(()),
    }
}

/// What is said of a word that ends nothing.
pub const GONE: &str = "no such machine is here";

/// What is answered to `word`: why it is not obeyed, or that there is nothing to do.
pub fn answer(word: &StrayWord, here: Option<(&Verdict, Trace)>) -> Option<String> {
    let Some((verdict, trace)) = here else { return Some(GONE.into()) };
    may_end(verdict, trace, word).err()
}

#[cfg(test)]
mod tests {
    use gpudesk_crds::Allocation;
    use kube::api::DynamicObject;
    use proptest::prelude::*;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::desktop::standing::{MadeFor, verdict};

    const UID: Uuid = Uuid::from_u128(7);

    fn id(number: u8) -> AllocationId {
        format!("{number}-0000000{number}").parse().unwrap()
    }

    fn word(action: StrayAction, of: Option<u8>) -> StrayWord {
        StrayWord { uid: UID.to_string(), allocation_id: of.map(id), action }
    }

    #[test]
    fn each_verdict_has_its_plan_and_a_word_ends_what_is_left_running() {
        use StrayAction::{PowerOff, ShutDown};
        let on = Trace { domain: true, active: true, saved: false, foreign: false, made_for: Some(id(2)) };
        let off = Trace { active: false, ..on };
        let folder = Trace { domain: false, ..off };
        let moved = || Plan::TakeDown("node-b".into());
        // Without a word: running, off, only a folder. With one: running, off, only a folder.
        for (verdict, plain, told) in [
            (
                Verdict::Current,
                [Plan::Leave, Plan::Leave, Plan::Leave],
                [Plan::Leave, Plan::Leave, Plan::Leave],
            ),
            (
                Verdict::Unclear { may_be_current: true },
                [Plan::Leave, Plan::Leave, Plan::Leave],
                [Plan::Leave, Plan::Leave, Plan::Leave],
            ),
            (
                Verdict::Unclear { may_be_current: false },
                [Plan::Leave, Plan::Leave, Plan::Leave],
                [Plan::End(ShutDown), Plan::End(ShutDown), Plan::Leave],
            ),
            (
                Verdict::OlderHere,
                [Plan::Leave, Plan::Leave, Plan::Leave],
                [Plan::Leave, Plan::Leave, Plan::Leave],
            ),
            (Verdict::MovedOn("node-b".into()), [moved(), moved(), moved()], [moved(), moved(), moved()]),
            (
                Verdict::Newer { here: true },
                [Plan::Leave, Plan::Leave, Plan::Leave],
                [Plan::End(ShutDown), Plan::Leave, Plan::Leave],
            ),
            (
                Verdict::Newer { here: false },
                [Plan::Leave, Plan::Leave, Plan::Leave],
                [Plan::End(ShutDown), Plan::End(ShutDown), Plan::Leave],
            ),
            (
                Verdict::Unallocated,
                [Plan::Leave, Plan::Clear, Plan::Clear],
                [Plan::End(ShutDown), Plan::End(ShutDown), Plan::Clear],
            ),
            (
                Verdict::NoDesktop,
                [Plan::Leave, Plan::PutAside, Plan::PutAside],
                [Plan::End(ShutDown), Plan::End(ShutDown), Plan::PutAside],
            ),
        ] {
            for ((trace, plain), told) in [on, off, folder].into_iter().zip(plain).zip(told) {
                assert_eq!(plan(&verdict, trace, None), plain, "{verdict:?} {trace:?}");
                assert_eq!(
                    plan(&verdict, trace, Some(&word(ShutDown, Some(2)))),
                    told,
                    "{verdict:?} {trace:?}"
                );
                let unread = Trace { made_for: None, ..trace };
                assert_eq!(
                    plan(&verdict, unread, Some(&word(ShutDown, None))),
                    told,
                    "which one is not known"
                );
                for meant in [Some(3), None] {
                    assert_eq!(plan(&verdict, trace, Some(&word(PowerOff, meant))), plain, "{meant:?}");
                    let said = answer(&word(PowerOff, meant), Some((&verdict, trace)));
                    assert!(said.is_some(), "{verdict:?} {trace:?} {meant:?}");
                }
            }
        }
        let said = answer(&word(PowerOff, None), Some((&Verdict::NoDesktop, on))).unwrap();
        assert!(said.contains("allocationId: 2-00000002"), "{said}");
        let older = plan(&Verdict::OlderHere, on, Some(&word(PowerOff, Some(2))));
        assert_eq!(older, Plan::End(PowerOff), "what is going down anyway may be hastened");
        let moved = Verdict::MovedOn("node-b".into());
        assert_eq!(plan(&moved, on, Some(&word(PowerOff, Some(2)))), Plan::End(PowerOff));
        assert_eq!(answer(&word(PowerOff, None), None).as_deref(), Some(GONE));
        let unread = Trace { made_for: None, ..on };
        assert_eq!(plan(&Verdict::NoDesktop, unread, Some(&word(PowerOff, Some(2)))), Plan::Leave);
    }

    #[test]
    fn memory_that_was_saved_is_given_up_by_a_word_alone() {
        let saved = Trace { domain: true, active: false, saved: true, foreign: false, made_for: Some(id(2)) };
        for verdict in [Verdict::MovedOn("node-b".into()), Verdict::NoDesktop] {
            assert_eq!(plan(&verdict, saved, None), Plan::Leave, "{verdict:?}");
            assert_eq!(plan(&verdict, saved, Some(&word(StrayAction::ShutDown, Some(2)))), Plan::Leave);
            let said = answer(&word(StrayAction::ShutDown, Some(2)), Some((&verdict, saved))).unwrap();
            assert!(said.contains("action PowerOff"), "{said}");
            let off = word(StrayAction::PowerOff, Some(2));
            assert_eq!(plan(&verdict, saved, Some(&off)), Plan::End(StrayAction::PowerOff));
            assert_eq!(answer(&off, Some((&verdict, saved))), None);
        }
    }

    fn allocation(number: u8, node: &str) -> serde_json::Value {
        json!({
            "node": node, "id": id(number), "desktopGeneration": 1, "templateGeneration": 1,
            "decidedAt": "2026-01-05T08:00:00Z",
        })
    }

    proptest! {
        /// Whatever is said, and however the API's answers change between looks: while the decision that a
        /// machine was made for is the one that holds, it is left alone.
        #[test]
        fn no_word_ever_ends_the_machine_of_the_allocation_that_holds(
            runs in 1_u8..5,
            looks in prop::collection::vec((1_u8..5, 0_u8..4, prop::option::of((any::<bool>(), prop::option::of(1_u8..5))), any::<bool>()), 1..20),
        ) {
            let made: Allocation = serde_json::from_value(allocation(runs, "node-a")).unwrap();
            for (holds, answer, said, active) in looks {
                let status = match answer {
                    0 | 1 => json!({ "allocation": allocation(holds, "node-a") }),
                    2 => json!({ "allocation": { "node": 7, "id": id(holds) } }),
                    _ => json!({}),
                };
                let live: DynamicObject = serde_json::from_value(json!({
                    "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop",
                    "metadata": { "name": "anna", "namespace": "school", "uid": UID }, "status": status,
                })).unwrap();
                let said = said.map(|(off, of)| {
                    word(if off { StrayAction::PowerOff } else { StrayAction::ShutDown }, of)
                });
                let verdict = verdict("node-a", UID, Some(&live), &MadeFor::Allocation(Box::new(made.clone())));
                let trace = Trace { domain: true, active, saved: false, foreign: false, made_for: made.id };
                let plan = plan(&verdict, trace, said.as_ref());
                if answer < 3 && holds == runs {
                    prop_assert_eq!(plan, Plan::Leave);
                    prop_assert_eq!(standing_of(&verdict).is_some(), answer == 2);
                } else if matches!(plan, Plan::End(_)) {
                    let said = said.unwrap();
                    prop_assert_eq!(said.allocation_id, Some(id(runs)));
                } else if active {
                    prop_assert_eq!(plan, Plan::Leave, "what runs is ended by a word alone");
                }
            }
        }
    }
}
