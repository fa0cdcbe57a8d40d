use super::*;
use crate::{
    desktop::fixtures::{SMALL, desktop},
    host::images::ImageError,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn machine(guest: Guest) -> Machine {
    let vnc = Endpoint { kind: "vnc".into(), ..Endpoint::default() };
    Machine {
        name: "school.anna".into(),
        paused: false,
        started_at: at(1000),
        template_generation: 3,
        endpoints: vec![vnc],
        guest,
        addresses: vec![],
        tuning: vec![],
    }
}

fn says(report: &Report<'_>, type_: ConditionType) -> (bool, String) {
    let status = status(report);
    let condition = conditions::find(&status.conditions, type_).unwrap();
    (condition.status == "True", condition.reason.clone())
}

fn report<'a>(desktop: &'a Desktop, observed: &'a Observed, machine: Option<&'a Machine>) -> Report<'a> {
    Report {
        desktop,
        wanted: Wanted::Run,
        observed,
        machine,
        gpus: &[],
        problem: None,
        held_back: None,
        unkept: None,
        stays: false,
        restart_policy: RestartPolicy::OnFailure,
        boot: "boot",
        acceleration: Acceleration::Kvm,
        relay: None,
        now: at(1010),
        last_word: None,
        refusal: None,
        abandoned_disks: None,
    }
}

#[test]
fn a_guest_with_agent_is_ready_once_it_answers() {
    let (desktop, observed) = (desktop("", SMALL, "[]"), Observed::default());
    let (silent, answers) = (machine(Guest::Silent), machine(Guest::Answers));
    let starting = report(&desktop, &observed, Some(&silent));
    assert_eq!(says(&starting, ConditionType::Running), (true, "AsExpected".into()));
    assert_eq!(says(&starting, ConditionType::Ready), (false, "GuestStarting".into()));
    let late = Report { now: at(1000 + 300), ..starting };
    assert_eq!(says(&late, ConditionType::Ready), (false, "AgentSilent".into()));
    let ready = report(&desktop, &observed, Some(&answers));
    assert_eq!(says(&ready, ConditionType::Ready), (true, "AsExpected".into()));
    let simulated = machine(Guest::Simulated);
    let pretended = report(&desktop, &observed, Some(&simulated));
    assert_eq!(says(&pretended, ConditionType::GuestReady), (false, "Simulated".into()));
    assert_eq!(says(&pretended, ConditionType::Ready), (true, "AsExpected".into()));
}

#[test]
fn a_screen_is_shown_with_the_relay_and_an_open_one_says_so() {
    let (desktop, observed) = (desktop("", SMALL, "[]"), Observed::default());
    let mut up = machine(Guest::NoAgent);
    let relay = ConsoleRelay { address: "192.0.2.7:8443".into(), public_key: "key".into() };
    let shown = status(&Report { relay: Some(&relay), ..report(&desktop, &observed, Some(&up)) });
    assert_eq!((shown.consoles[0].address.as_str(), &shown.consoles[0].relay), ("", &Some(relay)));
    let text = serde_json::to_value(&shown.consoles[0]).unwrap();
    assert_eq!(text["address"], "", "versions before this one read no console without it");
    let running = |status: &DesktopStatus| {
        conditions::find(&status.conditions, ConditionType::Running).unwrap().message.clone()
    };
    assert_eq!(running(&shown), "");
    // As the version before made it.
    up.endpoints[0].port = Some(5901);
    let shown = status(&report(&desktop, &observed, Some(&up)));
    assert_eq!((shown.consoles[0].address.as_str(), &shown.consoles[0].relay), ("127.0.0.1:5901", &None));
    assert!(running(&shown).contains("open to everybody who reaches 127.0.0.1:5901"), "{}", running(&shown));
    up.endpoints[0].kind = "rdp".into();
    assert_eq!(status(&report(&desktop, &observed, Some(&up))).consoles, []);
}

#[test]
fn a_problem_with_a_machine_that_runs_leaves_it_running() {
    let (desktop, observed) = (desktop("", SMALL, "[]"), Observed::default());
    let up = machine(Guest::NoAgent);
    let problem = Problem::Internal("x".into());
    let report = Report { problem: Some(&problem), ..report(&desktop, &observed, Some(&up)) };
    assert_eq!(says(&report, ConditionType::Running), (true, "AsExpected".into()));
    assert_eq!(says(&report, ConditionType::Ready), (false, "DeviceFailed".into()));
    assert!(status(&report).domain.is_some());
}

#[test]
fn transition_times_move_only_with_the_state() {
    let (mut desktop, observed) = (desktop("", SMALL, "[]"), Observed::default());
    let up = machine(Guest::Silent);
    let first = status(&report(&desktop, &observed, Some(&up)));
    let stored = desktop.status.as_mut().unwrap();
    stored.conditions.clone_from(&first.conditions);
    stored.domain.clone_from(&first.domain);
    stored.consoles.clone_from(&first.consoles);
    stored.phase = first.phase;
    stored.node.clone_from(&first.node);
    let later = Report { now: at(1020), ..report(&desktop, &observed, Some(&up)) };
    let second = status(&later);
    assert_eq!(second, first, "nothing changed, so nothing is said");
    assert!(!differs(&desktop, Wanted::Run, &owned(&desktop), &second));
    let answers = machine(Guest::Answers);
    let third = status(&Report { machine: Some(&answers), ..later });
    let ready = conditions::find(&third.conditions, ConditionType::Ready).unwrap();
    assert_eq!(ready.last_transition_time.0, at(1020));
    let running = conditions::find(&third.conditions, ConditionType::Running).unwrap();
    assert_eq!(running.last_transition_time.0, at(1010));
}

#[test]
fn a_restart_that_could_not_succeed_is_told_and_the_machine_is_ready() {
    let (desktop, observed) = (desktop("", SMALL, "[]"), Observed::default());
    let missing = Problem::Image(ImageError::NotAName { name: "/".into() });
    let up = machine(Guest::NoAgent);
    let held = Report { held_back: Some(&missing), ..report(&desktop, &observed, Some(&up)) };
    for type_ in [ConditionType::Running, ConditionType::Ready] {
        assert_eq!(says(&held, type_), (true, "ImageNotFound".into()));
    }
    let message = &conditions::find(&status(&held).conditions, ConditionType::Ready).unwrap().message.clone();
    assert!(
        message.contains("goes on as it is") && message.contains("is not the name of an image"),
        "{message}"
    );
    assert_eq!(status(&held).phase, Some(Phase::Running));
}

#[test]
fn a_lasting_problem_is_a_failure_and_a_passing_one_is_not() {
    let (desktop, observed) = (desktop("", SMALL, "[]"), Observed::default());
    let missing = Problem::Image(ImageError::NotAName { name: "/".into() });
    let failed = Report { problem: Some(&missing), ..report(&desktop, &observed, None) };
    assert_eq!(status(&failed).phase, Some(Phase::Failed));
    let passing = Problem::Internal("x".into());
    let starting = Report { problem: Some(&passing), ..failed };
    assert_eq!(status(&starting).phase, Some(Phase::Starting));
}

#[test]
fn a_word_that_was_used_is_told_with_every_word_from_then_on() {
    let (mut object, observed, up) = (desktop("", SMALL, "[]"), Observed::default(), machine(Guest::NoAgent));
    let used = Report { abandoned_disks: Some("1-00000001"), ..report(&object, &observed, Some(&up)) };
    let said = status(&used).node.unwrap();
    assert_eq!(said.abandoned_disks.as_deref(), Some("1-00000001"));
    object.status.as_mut().unwrap().node = Some(said.clone());
    let later = status(&report(&object, &observed, None)).node.unwrap();
    assert_eq!(later.abandoned_disks, said.abandoned_disks, "what this node remembers may be lost");
}
