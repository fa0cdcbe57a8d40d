//! The pure steps.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpudesk_crds::{
    Allocation, Desktop,
    conditions::{ConditionType, Reason, find},
    types::ShareMode,
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::{Value, json};

use super::rig::{desktop, merge, template};
use crate::{
    desktop::{
        decide::{Around, Presence, Step, decide},
        made_of,
        status::{self, Holding, Situation},
        summary,
        validate::{Referenced, validate},
    },
    invalid::Invalid,
    placement::request::{Previous, PreviousCard},
};

fn allocation(compute: bool) -> Value {
    let mut allocation = json!({"node": "node-a", "desktopGeneration": 3, "templateGeneration": 7,
                                "decidedAt": "2026-01-01T00:00:00Z"});
    if compute {
        allocation["compute"] = json!({"cores": 2, "threadsPerCore": 1, "memoryMiB": 1024});
    }
    allocation
}

fn running(status: &str, reason: &str, generation: i64) -> Value {
    json!([{"type": "Running", "status": status, "reason": reason, "message": "", "observedGeneration": generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z"}])
}

fn with(power: &str, allocation: Option<Value>, conditions: Value, more: Value) -> Desktop {
    let mut all = json!({"spec": {"powerState": power}, "status": {"allocation": allocation, "conditions": conditions}});
    merge(&mut all, more);
    desktop("a", 5, all)
}

fn step(desktop: &Desktop) -> Step {
    decide(desktop, &Around::present(Some(true)))
}

fn park() -> Step {
    Step::Release { park: true, reason: Reason::Stopped }
}

fn place(home: Option<&str>) -> Step {
    Step::Place { home: home.map(Into::into) }
}

#[test]
fn a_desktop_that_holds_its_place_is_left_to_the_node_until_the_node_reports_the_stop() {
    for (status, reason, generation, expected) in [
        ("True", "AsExpected", 3, Step::Hold),
        ("False", "Stopped", 2, Step::Hold), // said of an earlier stop
        ("False", "Starting", 3, Step::Hold),
        ("False", "GuestStopped", 3, Step::Hold),
        ("False", "Stopped", 3, park()),
    ] {
        let asked = with("Stopped", Some(allocation(true)), running(status, reason, generation), json!({}));
        assert_eq!(step(&asked), expected, "{status} {reason} {generation}");
        let asked = with("Running", Some(allocation(true)), running(status, reason, generation), json!({}));
        assert_eq!(step(&asked), Step::Hold, "{status} {reason} {generation}");
    }
    let domain = json!({"status": {"domain": {"name": "demo.a", "acceleration": "Kvm"}}});
    let asked = with("Stopped", Some(allocation(true)), running("False", "Stopped", 3), domain);
    assert_eq!(step(&asked), Step::Hold, "there still is a domain");
}

fn said(state: &str, id: &str) -> Value {
    json!({"status": {"allocation": {"id": "2-00000002"}, "node": {"allocationId": id, "state": state}}})
}

#[test]
fn a_nodes_last_word_on_the_decision_that_holds_ends_it_and_nothing_else_does() {
    let on = |power: &str, state: &str| {
        step(&with(power, Some(allocation(true)), json!([]), said(state, "2-00000002")))
    };
    for state in ["Preparing", "Running", "Stopping"] {
        assert_eq!(on("Stopped", state), Step::Hold);
        assert_eq!(on("Running", state), Step::Hold);
        // A parked desktop of which something still runs.
        let parked = with("Running", Some(allocation(false)), json!([]), said(state, "2-00000002"));
        assert_eq!(step(&parked), Step::NotOver);
    }
    assert_eq!(on("Stopped", "Stopped"), park());
    assert_eq!(on("Suspended", "Stopped"), park(), "nothing is left that could go on");
    assert_eq!(on("Running", "Stopped"), place(Some("node-a")), "it will not start this one again");
    assert_eq!(on("Running", "Refused"), place(Some("node-a")));
    assert_eq!(on("Stopped", "Refused"), park());
    assert_eq!(on("Running", "Ended"), Step::Release { park: true, reason: Reason::GuestStopped });
    assert_eq!(on("Stopped", "Ended"), Step::Hold, "it still says how it ended");
    for state in ["Stopped", "Refused", "Ended", "Released"] {
        for power in ["Stopped", "Running", "Suspended"] {
            let late = with(
                power,
                Some(allocation(true)),
                running("False", "Stopped", 3),
                said(state, "1-00000001"),
            );
            assert_eq!(step(&late), Step::Hold, "{state} is said of the decision before");
        }
    }
    let mut deleted = said("Stopped", "2-00000002");
    deleted["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
    assert_eq!(step(&with("Running", Some(allocation(true)), json!([]), deleted.clone())), Step::Wait);
    deleted["status"]["node"]["state"] = json!("Released");
    assert_eq!(step(&with("Running", Some(allocation(true)), json!([]), deleted)), Step::RemoveFinalizer);
}

#[test]
fn the_number_of_a_decision_only_grows() {
    let number = Desktop::next_number;
    let never = desktop("a", 1, json!({}));
    assert_eq!(number(&never), 1);
    let held = with("Running", Some(allocation(true)), json!([]), said("Running", "2-00000002"));
    assert_eq!(number(&held), 3);
    let mut cleared = held.clone();
    let idle = Situation::Idle {
        parked: None,
        phase: gpudesk_crds::desktop::Phase::Stopped,
        reason: Reason::Stopped,
        message: String::new(),
    };
    cleared.status = Some(status::status(&held, idle, &at(1)));
    assert_eq!(cleared.allocation(), None);
    assert_eq!(number(&cleared), 3, "also once nothing is held");
}

#[test]
fn a_restart_is_decided_anew_once_the_node_has_stopped_the_machine() {
    let restart = |at: &str| json!({"metadata": {"annotations": {"gpudesk.dev/restartedAt": at}}});
    let old = {
        let mut allocation = allocation(true);
        allocation["restartedAt"] = json!("one");
        Some(allocation)
    };
    let on = |conditions: Value, more: Value| step(&with("Running", old.clone(), conditions, more));
    assert_eq!(on(running("True", "AsExpected", 3), restart("two")), Step::Hold);
    assert_eq!(on(running("False", "Stopped", 3), restart("two")), place(Some("node-a")));
    assert_eq!(on(running("False", "Stopped", 3), restart("one")), Step::Hold);
    assert_eq!(
        on(running("False", "Starting", 3), restart("two")),
        Step::Hold,
        "the node has not spoken yet"
    );
}

#[test]
fn deletion_waits_for_the_release_also_of_a_parked_desktop() {
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let on = |allocation, conditions| with("Running", allocation, conditions, deleted.clone());
    assert_eq!(step(&on(None, json!([]))), Step::RemoveFinalizer);
    for compute in [true, false] {
        let asked = on(Some(allocation(compute)), running("False", "Stopped", 3));
        assert_eq!(step(&asked), Step::Wait, "its disks may still be there");
        assert_eq!(
            step(&on(Some(allocation(compute)), running("False", "Released", 3))),
            Step::RemoveFinalizer
        );
        let at = |node| decide(&asked, &Around { node, alive: false, ..Around::present(Some(true)) });
        assert_eq!(at(Presence::Missing), Step::Wait);
        assert_eq!(at(Presence::Lost), if compute { Step::NodeLost } else { Step::RemoveFinalizer });
    }
}

#[test]
fn the_home_of_disks_is_kept_and_nothing_else_is() {
    assert_eq!(step(&with("Running", None, json!([]), json!({}))), place(None));
    let parked = with("Running", Some(allocation(false)), json!([]), json!({}));
    assert_eq!(step(&parked), place(Some("node-a")));
    let keeping = |desktop, disks| decide(desktop, &Around::present(disks));
    assert_eq!(keeping(&parked, Some(false)), place(None), "no disk stays behind");
    assert_eq!(keeping(&parked, None), place(Some("node-a")), "no template tells");
    assert_eq!(step(&with("Stopped", Some(allocation(false)), json!([]), json!({}))), Step::Rest);
    let stopped = with("Stopped", Some(allocation(true)), running("False", "Stopped", 3), json!({}));
    assert_eq!(keeping(&stopped, Some(false)), Step::Release { park: false, reason: Reason::Stopped });
}

#[test]
fn how_it_was_decided_is_no_part_of_what_is_held() {
    let held: Allocation = serde_json::from_value(allocation(true)).unwrap();
    let mut object = desktop("a", 5, json!({}));
    object.status = Some(status::status(&object, Situation::Placed(held), &at(1)));
    let holding = Situation::Holding(Holding::default());
    let mut said = status::status(&object, holding, &at(2));
    let decision = gpudesk_crds::DecisionRecord { nodes: 3, ..Default::default() };
    said.allocation.as_mut().unwrap().decision = Some(decision);
    assert!(!status::differs(object.status.as_ref(), &said));
    said.allocation.as_mut().unwrap().fabric_partition = Some(1);
    assert!(status::differs(object.status.as_ref(), &said));
}

#[test]
fn a_restart_asks_for_the_cards_that_it_had() {
    let mut held = allocation(true);
    held["gpus"] = json!([{"name": "g", "device": "0000:41:00.0", "deviceUuid": "GPU-1", "product": "p",
                           "mode": "Passthrough", "type": "Passthrough", "framebufferMiB": 0, "profile": "whole"}]);
    let template = Some(Arc::new(template(json!({}))));
    let referenced = Referenced { template, profiles: BTreeMap::new() };
    let previous = |object: &Desktop| validate(object, &referenced).unwrap().request.previous;
    let card = PreviousCard { uuid: Some("GPU-1".into()), address: "0000:41:00.0".parse().unwrap() };
    let there = Previous { node: "node-a".into(), cards: BTreeMap::from([("g".to_owned(), card)]) };
    assert_eq!(previous(&with("Running", None, json!([]), json!({}))), None);
    let mut object = with("Running", Some(held), json!([]), json!({}));
    assert_eq!(previous(&object), Some(there.clone()));
    // Its shares are taken back; what they were stays known, however often that is said.
    for seconds in [1, 2] {
        let allocation = object.status.as_ref().unwrap().allocation.as_ref();
        let idle = Situation::Idle {
            parked: allocation.map(status::parked),
            phase: gpudesk_crds::desktop::Phase::Stopped,
            reason: Reason::Stopped,
            message: "stopped, as asked".into(),
        };
        let said = status::status(&object, idle, &at(seconds));
        assert_eq!(status::differs(object.status.as_ref(), &said), seconds == 1);
        object.status = Some(said);
        assert_eq!(previous(&object), Some(there.clone()));
    }
    let status = object.status.as_mut().unwrap();
    let parked = status.allocation.clone().unwrap();
    assert!(parked.compute.is_none() && parked.gpus.is_empty());
    status.last_placement = None;
    let only_the_node = Previous { node: "node-a".into(), cards: BTreeMap::new() };
    assert_eq!(previous(&object), Some(only_the_node), "parked by an operator that noted nothing down");
    // Placed again, the allocation says it.
    let held: Allocation = serde_json::from_value(allocation(true)).unwrap();
    assert_eq!(status::status(&object, Situation::Placed(held), &at(3)).last_placement, None);
}

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

#[test]
fn nothing_is_written_when_only_times_differ() {
    let object = desktop("a", 5, json!({}));
    let idle = || Situation::Idle {
        parked: None,
        phase: gpudesk_crds::desktop::Phase::Pending,
        reason: Reason::Unschedulable,
        message: "0/1 nodes: 1 cordoned".into(),
    };
    let first = status::status(&object, idle(), &at(1));
    assert!(status::differs(None, &first));
    let mut object = object;
    object.status = Some(first.clone());
    let second = status::status(&object, idle(), &at(100));
    assert!(!status::differs(object.status.as_ref(), &second));
    assert_eq!(find(&second.conditions, ConditionType::Ready).unwrap().last_transition_time, at(1));
    object.metadata.generation = Some(4);
    let third = status::status(&object, idle(), &at(100));
    assert!(status::differs(object.status.as_ref(), &third), "said of the new generation");
}

#[test]
fn what_is_said_of_a_restart_stands_beside_what_the_node_says() {
    let held: Allocation = serde_json::from_value(allocation(true)).unwrap();
    let mut object = desktop("a", 5, json!({}));
    let placed = status::status(&object, Situation::Placed(held), &at(1));
    object.status = Some(placed.clone());
    let restart = Invalid::new(Reason::TemplateChanged, "changed: disks");
    let holding = |restart| Situation::Holding(Holding { restart, ..Holding::default() });
    let same = status::status(&object, holding(None), &at(2));
    assert!(!status::differs(object.status.as_ref(), &same));
    let changed = status::status(&object, holding(Some(restart.clone())), &at(2));
    assert!(status::differs(object.status.as_ref(), &changed));
    assert_eq!(find(&changed.conditions, ConditionType::RestartRequired).unwrap().message, "changed: disks");
    // Before the node's first word what the operator said stays; after it, it is the node's.
    assert_eq!(changed.phase, placed.phase);
    assert!(find(&changed.conditions, ConditionType::Ready).is_some());
    spoken(&mut object);
    let changed = status::status(&object, holding(Some(restart)), &at(2));
    assert_eq!(changed.phase, None);
    assert!(find(&changed.conditions, ConditionType::Ready).is_none());
    assert!(find(&changed.conditions, ConditionType::Running).is_none());
}

/// The node says that the machine runs and is ready.
fn spoken(object: &mut Desktop) {
    let status = object.status.as_mut().unwrap();
    status.phase = Some(gpudesk_crds::desktop::Phase::Running);
    for condition in &mut status.conditions {
        if ["Running", "Ready"].contains(&condition.type_.as_str()) {
            condition.status = "True".into();
            condition.reason = "AsExpected".into();
        }
    }
}

#[test]
fn ready_and_phase_change_hands_with_the_silence_of_the_node_and_its_next_word() {
    let held: Allocation = serde_json::from_value(allocation(true)).unwrap();
    let mut object = desktop("a", 5, json!({}));
    object.status = Some(status::status(&object, Situation::Placed(held), &at(1)));
    spoken(&mut object);
    let holding = |silence: Option<&str>| {
        let silence = silence.map(|text| Invalid::new(Reason::DaemonSilent, text));
        Situation::Holding(Holding { silence, ..Holding::default() })
    };
    let silent = status::status(&object, holding(Some("silent since then")), &at(2));
    assert!(status::differs(object.status.as_ref(), &silent));
    let ready = find(&silent.conditions, ConditionType::Ready).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("Unknown", "DaemonSilent"));
    assert_eq!(
        (ready.last_transition_time.clone(), silent.phase),
        (at(2), Some(gpudesk_crds::desktop::Phase::Unknown))
    );
    assert!(
        find(&silent.conditions, ConditionType::Running).is_none(),
        "what frees something is the node's to say"
    );
    // It stays when the node is heard, until the node says something itself.
    let running = find(&object.status.as_ref().unwrap().conditions, ConditionType::Running).cloned();
    let mut there = silent.clone();
    there.conditions.extend(running);
    object.status = Some(there);
    let heard = status::status(&object, holding(None), &at(3));
    assert!(!status::differs(object.status.as_ref(), &heard));
    assert_eq!((find(&heard.conditions, ConditionType::Ready), heard.phase), (Some(ready), silent.phase));
    spoken(&mut object);
    let after = status::status(&object, holding(None), &at(4));
    assert!(find(&after.conditions, ConditionType::Ready).is_none() && after.phase.is_none());
}

#[test]
fn what_a_guest_that_ended_for_good_held_is_taken_back_once_the_node_has_given_it_up() {
    let ended = |reason: &str, prepared: &str| {
        let mut conditions = running("False", reason, 3);
        let prepared = json!({"type": "DevicesPrepared", "status": "False", "reason": prepared, "message": "",
                              "observedGeneration": 3, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        conditions.as_array_mut().unwrap().push(prepared);
        conditions
    };
    let on = |conditions: Value, more: Value| with("Running", Some(allocation(true)), conditions, more);
    let back = |reason| Step::Release { park: true, reason };
    assert_eq!(step(&on(ended("GuestStopped", "Stopped"), json!({}))), back(Reason::GuestStopped));
    assert_eq!(step(&on(ended("GuestCrashed", "Stopped"), json!({}))), back(Reason::GuestCrashed));
    assert_eq!(step(&on(ended("EndUnseen", "Stopped"), json!({}))), back(Reason::EndUnseen));
    assert_eq!(
        step(&on(ended("GuestCrashed", "GuestCrashed"), json!({}))),
        Step::Hold,
        "it is started again"
    );
    assert_eq!(step(&on(running("False", "GuestStopped", 3), json!({}))), Step::Hold);
    let restart = json!({"metadata": {"annotations": {"gpudesk.dev/restartedAt": "now"}}});
    assert_eq!(
        step(&on(ended("GuestStopped", "Stopped"), restart.clone())),
        place(Some("node-a")),
        "a start like any other, which may have to wait and holds nothing then"
    );
    assert_eq!(step(&on(ended("GuestStopped", "GuestStopped"), restart.clone())), Step::Hold);
    // Parked, it is left alone until somebody asks.
    let said = json!([{"type": "Allocated", "status": "False", "reason": "GuestStopped", "message": "",
                       "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let parked = |power: &str, more| with(power, Some(allocation(false)), said.clone(), more);
    assert_eq!(step(&parked("Running", json!({}))), Step::Ended(Reason::GuestStopped));
    assert_eq!(step(&parked("Running", restart)), place(Some("node-a")));
    assert_eq!(step(&parked("Stopped", json!({}))), Step::Rest);
    // The end was said of generation 3: one change is not a stop and a start, two may be.
    for (generation, expected) in [
        (3, Step::Ended(Reason::GuestStopped)),
        (4, Step::Ended(Reason::GuestStopped)),
        (5, place(Some("node-a"))),
    ] {
        let mut said = said.clone();
        said[0]["observedGeneration"] = json!(3);
        let more = json!({"metadata": {"generation": generation}});
        assert_eq!(step(&with("Running", Some(allocation(false)), said, more)), expected, "{generation}");
    }
}

#[test]
fn taking_the_restart_annotation_away_asks_for_nothing() {
    let mut held = allocation(true);
    held["restartedAt"] = json!("one");
    let object = with("Running", Some(held), running("False", "Stopped", 3), json!({}));
    assert_eq!(step(&object), Step::Hold);
}

#[test]
fn who_is_released_holds_nothing_whatever_keeps_the_object() {
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/other"]}});
    let object = with("Running", Some(allocation(true)), running("False", "Released", 3), deleted);
    assert_eq!((object.allocation(), step(&object)), (None, Step::Wait));
}

/// What has changed between two versions of template and desktop, as told to a desktop that runs.
fn changes(before: (Value, Value), after: (Value, Value)) -> Vec<String> {
    let read = |(of_template, own): (Value, Value)| {
        let template = Some(Arc::new(template(of_template)));
        let profiles = ["whole", "half"].map(|name| {
            let mut profile = super::rig::profile(json!({"alternatives": [{"passthrough": {}}]}));
            profile.metadata.name = Some(name.into());
            (name.to_owned(), Arc::new(profile))
        });
        let referenced = Referenced { template, profiles: profiles.into() };
        validate(&desktop("a", 5, json!({"spec": own})), &referenced).unwrap()
    };
    let mut held: Allocation = serde_json::from_value(allocation(true)).unwrap();
    held.made_of = Some(read(before).made_of);
    made_of::changes(&held, &read(after), false)
}

#[test]
fn a_restart_is_said_to_change_what_it_would_change_field_by_field() {
    let same = (json!({}), json!({}));
    assert_eq!(changes(same.clone(), same.clone()), [""; 0]);
    let cores = json!({"cpu": {"cores": 4, "pinning": "Dedicated"}});
    let both = ["cpu.cores was 2 and is 4 now", "cpu.pinning was Shared and is Dedicated now"];
    assert_eq!(changes(same.clone(), (cores, json!({}))), both);
    let open = |more: Value| {
        let mut all = json!({"allowOverrides": ["Cpu", "Gpus", "CloudInit"]});
        merge(&mut all, more);
        all
    };
    let own = json!({"overrides": {
        "cpu": {"cores": 4}, "gpus": [{"name": "g", "profileRef": {"name": "half"}}],
        "cloudInit": {"userData": "#cloud-config"},
    }});
    let found = changes((open(json!({})), json!({})), (open(json!({})), own.clone()));
    assert_eq!(found, ["cloudInit", "cpu.cores was 2 and is 4 now", "gpus was none and is g of half now"]);
    // What the desktop sets for itself does not change with the template.
    let found = changes((open(json!({})), own.clone()), (open(json!({"cpu": {"cores": 9}})), own));
    assert_eq!(found, [""; 0]);
    let disks = json!({"disks": [{"name": "system", "image": {"name": "other"}}], "lifecycle": {"restartPolicy": "Never"}});
    assert_eq!(
        changes(same.clone(), (disks, json!({"priority": 5, "nodeSelector": {"a": "b"}}))),
        ["disks", "nodeSelector"]
    );
}

#[test]
fn shares_in_words() {
    let share = |product: &str, mode: ShareMode, type_name: &str| -> gpudesk_crds::GpuAllocation {
        serde_json::from_value(
            json!({"name": "x", "device": "0000:01:00.0", "product": product, "mode": mode,
            "type": type_name, "framebufferMiB": 0, "profile": "p"}),
        )
        .unwrap()
    };
    let rtx = "NVIDIA RTX PRO 6000 Blackwell Server Edition";
    let l40s = share("NVIDIA L40S", ShareMode::Vgpu, "L40S-8Q");
    for (gpus, words) in [
        (vec![share(rtx, ShareMode::Vgpu, "DC-16Q")], "1x RTX PRO 6000 16Q"),
        (vec![l40s.clone(), l40s], "2x L40S 8Q"),
        (vec![share("NVIDIA H100 80GB HBM3", ShareMode::Passthrough, "Passthrough")], "1x H100 (whole card)"),
        (vec![share(rtx, ShareMode::Mig, "1g.24gb+gfx")], "1x RTX PRO 6000 MIG 1g.24gb"),
        (vec![share("GA102GL [RTX A6000]", ShareMode::Vgpu, "NVIDIA RTXA6000-4Q")], "1x RTX A6000 4Q"),
    ] {
        assert_eq!(summary::gpus(&gpus).as_deref(), Some(words));
    }
    assert_eq!(summary::gpus(&[]), None);
}
