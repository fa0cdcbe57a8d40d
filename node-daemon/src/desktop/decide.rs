//! What is done next for a desktop: exactly one action. Pure.

use gpudesk_crds::{desktop_template::RestartPolicy, handover::Standing};
use jiff::{SignedDuration, Timestamp};

use super::{
    desired::Wanted,
    record::{AfterEnd, Ended, RunRecord},
};

/// A request to shut down whose grace is over for so long was not followed up: nobody was there, or it was called off. It
/// is none any more, and the guest is asked anew.
const FORGOTTEN: SignedDuration = SignedDuration::from_mins(5);

/// What is there. By default nothing was looked at.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The domain.
    pub domain: Option<DomainView>,
    /// Every disk, the seed and every share of a GPU is made.
    pub prepared: bool,
    /// Shares of GPUs of this desktop exist.
    pub instances: bool,
    /// The desktop's folder exists.
    pub folder: bool,
    /// Disks that live as long as the desktop are here; `None` where nothing tells.
    pub disks: Option<bool>,
    /// libvirt and the folder were asked.
    pub looked: bool,
    /// The last run.
    pub record: Option<RunRecord>,
    /// A domain that is off, or shares of GPUs, of a decision before the one that holds.
    pub of_another: bool,
    /// The last word on the decision that holds was said: it is never started again.
    pub given_back: bool,
}

/// A domain, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainView {
    /// It holds memory and devices.
    pub active: bool,
    /// It was made from the allocation and the template as they are.
    pub current: bool,
    /// How the decision that it was made for stands to the one that holds.
    pub standing: Standing,
}

/// The rules that apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules<'a> {
    /// Whether a machine that ended by itself is started again.
    pub restart_policy: RestartPolicy,
    /// Time to shut down before the power is taken.
    pub shutdown_grace: SignedDuration,
    /// The boot of the host.
    pub boot: &'a str,
    /// The end of the last run is still what is to be said of the desktop.
    pub end_counts: bool,
    /// Time from a run's end by itself until what it held is given back: a host that is shut down ends
    /// its guests first, and they are to start again with it.
    pub give_back_after: SignedDuration,
}

/// The one action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make disks, seed and shares of GPUs.
    Prepare,
    /// Give libvirt the domain.
    Define,
    /// Start the domain.
    Start,
    /// Ask the guest to shut down.
    Shutdown,
    /// Take the power.
    Destroy,
    /// Forget the domain and give back what it held.
    Release,
    /// It is as wanted, or has to wait until this time at most.
    Nothing(Option<Timestamp>),
}

/// Decides.
pub fn decide(wanted: Wanted, observed: &Observed, rules: &Rules<'_>, now: Timestamp) -> Action {
    let active = observed.domain.is_some_and(|domain| domain.active);
    let older = observed.domain.is_some_and(|domain| domain.standing == Standing::Older);
    match wanted {
        Wanted::Run | Wanted::Leave if active && (older || observed.given_back) => {
            bring_down(observed, rules, now)
        }
        Wanted::Run if active => Action::Nothing(None),
        Wanted::Run if observed.of_another => Action::Release,
        Wanted::Run if observed.given_back && holds(observed) => Action::Release,
        Wanted::Run if observed.given_back => Action::Nothing(None),
        Wanted::Run => bring_up(observed, rules, now),
        Wanted::Stop | Wanted::Remove | Wanted::Withdraw if active => bring_down(observed, rules, now),
        Wanted::Stop | Wanted::Withdraw if holds(observed) => Action::Release,
        Wanted::Stop if observed.record.is_some() && !stays(observed, rules) => Action::Release,
        Wanted::Remove if holds(observed) || observed.folder => Action::Release,
        Wanted::Leave | Wanted::Stop | Wanted::Remove | Wanted::Withdraw => Action::Nothing(None),
    }
}

/// Whether it ended by itself for good, and nobody has asked for anything else since.
pub fn stays(observed: &Observed, rules: &Rules<'_>) -> bool {
    let stays = |record: &RunRecord| record.stays(rules.boot, rules.restart_policy);
    rules.end_counts && observed.record.as_ref().is_some_and(stays)
}

/// The same, and that no host which was going down with it starts it again. Also one of which nothing is left is
/// waited for: its domain may be gone from libvirt with it.
pub fn stays_for_good(observed: &Observed, rules: &Rules<'_>, now: Timestamp) -> bool {
    let end = observed.record.as_ref().and_then(|record| record.end_in(rules.boot));
    stays(observed, rules) && end.is_some_and(|end| waits_until(&end, rules) <= now)
}

fn waits_until(end: &Ended, rules: &Rules<'_>) -> Timestamp {
    end.at.checked_add(rules.give_back_after).unwrap_or(end.at)
}

fn holds(observed: &Observed) -> bool {
    observed.domain.is_some() || observed.instances
}

fn bring_up(observed: &Observed, rules: &Rules<'_>, now: Timestamp) -> Action {
    let end = observed.record.as_ref().and_then(|record| Some((record, record.end_in(rules.boot)?)));
    if let Some((record, end)) = end {
        match record.after(end, rules.restart_policy) {
            // What it held is given back, for nothing may need it for a long time.
            AfterEnd::Stay => {
                return match waits_until(&end, rules) {
                    at if now < at => Action::Nothing(Some(at)),
                    _ if holds(observed) => Action::Release,
                    _ => Action::Nothing(None),
                };
            }
            AfterEnd::RestartAt(time) if now < time => return Action::Nothing(Some(time)),
            AfterEnd::RestartAt(_) => {}
        }
    }
    if !observed.prepared {
        Action::Prepare
    } else if observed.domain.is_some_and(|domain| domain.current) {
        Action::Start
    } else {
        Action::Define
    }
}

fn bring_down(observed: &Observed, rules: &Rules<'_>, now: Timestamp) -> Action {
    if rules.shutdown_grace.is_zero() {
        return Action::Destroy;
    }
    match observed.record.as_ref().and_then(|record| record.shutdown_sent_at) {
        None => Action::Shutdown,
        Some(sent) => match sent.checked_add(rules.shutdown_grace) {
            Ok(deadline) if now < deadline => Action::Nothing(Some(deadline)),
            Ok(deadline) if now.duration_since(deadline) > FORGOTTEN => Action::Shutdown,
            _ => Action::Destroy,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desktop::record::End;

    const NOW: i64 = 1000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn domain(active: bool, current: bool) -> DomainView {
        DomainView { active, current, standing: Standing::Current }
    }

    fn run(ended: Option<(i64, bool)>, row: u32, shutdown: Option<i64>) -> RunRecord {
        RunRecord {
            started_at: at(1),
            boot: "boot".into(),
            allocation_id: None,
            decided_at: None,
            ended: ended.map(|(second, crashed)| {
                Ended::new(at(second), if crashed { End::Crashed } else { End::ShutDown })
            }),
            ends_in_a_row: row,
            shutdown_sent_at: shutdown.map(at),
            called_off: None,
            deleting: false,
        }
    }

    fn go(wanted: Wanted, observed: &Observed) -> Action {
        with(wanted, observed, RestartPolicy::OnFailure, 60)
    }

    fn with(wanted: Wanted, observed: &Observed, restart_policy: RestartPolicy, grace: i64) -> Action {
        let shutdown_grace = SignedDuration::from_secs(grace);
        let rules = Rules {
            restart_policy,
            shutdown_grace,
            boot: "boot",
            end_counts: true,
            give_back_after: SignedDuration::ZERO,
        };
        decide(wanted, observed, &rules, at(NOW))
    }

    #[test]
    fn a_start_goes_step_by_step_from_wherever_it_was_left() {
        let nothing = Observed::default();
        assert_eq!(go(Wanted::Run, &nothing), Action::Prepare);
        // Killed after some of the preparation: the folder is there and not all is in it.
        let begun = Observed { folder: true, instances: true, ..nothing };
        assert_eq!(go(Wanted::Run, &begun), Action::Prepare);
        let prepared = Observed { prepared: true, ..begun };
        assert_eq!(go(Wanted::Run, &prepared), Action::Define);
        let outdated = Observed { domain: Some(domain(false, false)), ..prepared.clone() };
        assert_eq!(go(Wanted::Run, &outdated), Action::Define);
        let defined = Observed { domain: Some(domain(false, true)), ..prepared.clone() };
        assert_eq!(go(Wanted::Run, &defined), Action::Start);
        // Killed between start and record.
        let started = Observed { domain: Some(domain(true, true)), ..prepared };
        assert_eq!(go(Wanted::Run, &started), Action::Nothing(None));
    }

    #[test]
    fn a_running_machine_is_left_alone_whatever_else_is_missing() {
        let running = Observed { domain: Some(domain(true, false)), ..Observed::default() };
        for wanted in [Wanted::Run, Wanted::Leave] {
            assert_eq!(go(wanted, &running), Action::Nothing(None));
        }
        assert_eq!(go(Wanted::Leave, &Observed::default()), Action::Nothing(None));
    }

    #[test]
    fn only_the_decision_that_holds_is_kept_running() {
        let with = |standing, given_back| Observed {
            domain: Some(DomainView { standing, ..domain(true, true) }),
            given_back,
            ..Observed::default()
        };
        for wanted in [Wanted::Run, Wanted::Leave] {
            assert_eq!(go(wanted, &with(Standing::Current, false)), Action::Nothing(None));
            assert_eq!(go(wanted, &with(Standing::Older, false)), Action::Shutdown);
            assert_eq!(
                go(wanted, &with(Standing::Current, true)),
                Action::Shutdown,
                "its place is another's"
            );
        }
        let off = Observed { prepared: true, folder: true, given_back: true, ..Observed::default() };
        assert_eq!(go(Wanted::Run, &off), Action::Nothing(None), "given back is never started again");
        let shares = Observed { instances: true, ..off };
        assert_eq!(go(Wanted::Run, &shares), Action::Release);
        let before = Observed { prepared: true, instances: true, of_another: true, ..Observed::default() };
        assert_eq!(go(Wanted::Run, &before), Action::Release, "its shares are not this decision's");
    }

    #[test]
    fn an_end_by_itself_is_answered_by_the_policy() {
        let ended = |crashed, row| Observed {
            domain: Some(domain(false, true)),
            prepared: true,
            record: Some(run(Some((NOW - 5, crashed)), row, None)),
            ..Observed::default()
        };
        for (crashed, policy, action) in [
            (true, RestartPolicy::OnFailure, Action::Start),
            (false, RestartPolicy::OnFailure, Action::Release),
            (true, RestartPolicy::Always, Action::Start),
            (false, RestartPolicy::Always, Action::Start),
            (true, RestartPolicy::Never, Action::Release),
        ] {
            assert_eq!(with(Wanted::Run, &ended(crashed, 1), policy, 60), action, "{crashed} {policy:?}");
        }
        assert_eq!(go(Wanted::Run, &ended(true, 2)), Action::Nothing(Some(at(NOW + 5))));
        let lost = Observed { domain: None, ..ended(true, 1) };
        assert_eq!(go(Wanted::Run, &lost), Action::Define);
    }

    #[test]
    fn what_ended_for_good_holds_nothing_and_is_remembered_until_it_is_stopped() {
        let gone = Observed {
            folder: true,
            record: Some(run(Some((NOW - 5, true)), 1, None)),
            ..Observed::default()
        };
        let never = |wanted, observed: &Observed| with(wanted, observed, RestartPolicy::Never, 60);
        assert_eq!(never(Wanted::Run, &gone), Action::Nothing(None));
        assert_eq!(never(Wanted::Stop, &gone), Action::Nothing(None), "parked, and still says so");
        let shares = Observed { instances: true, ..gone.clone() };
        assert_eq!(never(Wanted::Run, &shares), Action::Release);
        let rules = Rules {
            restart_policy: RestartPolicy::Never,
            shutdown_grace: SignedDuration::ZERO,
            boot: "boot",
            end_counts: false,
            give_back_after: SignedDuration::ZERO,
        };
        assert_eq!(decide(Wanted::Stop, &gone, &rules, at(NOW)), Action::Release, "switched off");
    }

    #[test]
    fn what_ended_with_its_host_is_kept_for_a_while_and_starts_with_it_again() {
        let ended = |at| Observed {
            domain: Some(domain(false, true)),
            prepared: true,
            instances: true,
            folder: true,
            record: Some(run(Some((at, false)), 1, None)),
            ..Observed::default()
        };
        let rules = |boot| Rules {
            restart_policy: RestartPolicy::OnFailure,
            shutdown_grace: SignedDuration::ZERO,
            boot,
            end_counts: true,
            give_back_after: SignedDuration::from_secs(300),
        };
        let go = |observed: &Observed, boot| decide(Wanted::Run, observed, &rules(boot), at(NOW));
        // A host that is shut down ends its guests first: nothing is given back yet, and it is looked at
        // again when it would be.
        assert_eq!(go(&ended(NOW), "boot"), Action::Nothing(Some(at(NOW + 300))));
        assert_eq!(go(&ended(NOW - 299), "boot"), Action::Nothing(Some(at(NOW + 1))));
        assert_eq!(go(&ended(NOW - 300), "boot"), Action::Release);
        // Nor where it is gone from libvirt with its end.
        let gone = |since| Observed { domain: None, instances: false, ..ended(NOW - since) };
        assert_eq!(go(&gone(299), "boot"), Action::Nothing(Some(at(NOW + 1))));
        assert_eq!(go(&gone(300), "boot"), Action::Nothing(None));
        for (since, good) in [(299, false), (300, true)] {
            assert_eq!(stays_for_good(&gone(since), &rules("boot"), at(NOW)), good);
        }
        for since in [0, 299, 300, 86_400] {
            assert_eq!(go(&ended(NOW - since), "the next boot"), Action::Start, "after {since} s");
        }
        // Who asks for another thing meanwhile does not wait.
        for wanted in [Wanted::Stop, Wanted::Remove, Wanted::Withdraw] {
            assert_eq!(decide(wanted, &ended(NOW), &rules("boot"), at(NOW)), Action::Release);
        }
    }

    #[test]
    fn what_is_another_nodes_is_brought_down_and_its_disks_are_left() {
        let running = Observed { domain: Some(domain(true, false)), ..Observed::default() };
        assert_eq!(go(Wanted::Withdraw, &running), Action::Shutdown);
        let asked = Observed { record: Some(run(None, 0, Some(NOW - 60))), ..running };
        assert_eq!(go(Wanted::Withdraw, &asked), Action::Destroy);
        let off = Observed { domain: Some(domain(false, true)), folder: true, ..Observed::default() };
        assert_eq!(go(Wanted::Withdraw, &off), Action::Release);
        let disks = Observed { folder: true, ..Observed::default() };
        assert_eq!(go(Wanted::Withdraw, &disks), Action::Nothing(None));
    }

    #[test]
    fn after_a_reboot_of_the_host_it_is_started_whatever_the_policy() {
        let mut before = run(Some((NOW - 5, false)), 1, None);
        before.boot = "the boot before".into();
        let observed = Observed {
            domain: Some(domain(false, true)),
            prepared: true,
            record: Some(before),
            ..Observed::default()
        };
        assert_eq!(with(Wanted::Run, &observed, RestartPolicy::Never, 60), Action::Start);
        let unprepared = Observed { prepared: false, ..observed };
        assert_eq!(go(Wanted::Run, &unprepared), Action::Prepare, "shares of GPUs are lost by a reboot");
    }

    #[test]
    fn a_stop_asks_waits_and_takes_the_power() {
        let running = |record| Observed { domain: Some(domain(true, true)), record, ..Observed::default() };
        for wanted in [Wanted::Stop, Wanted::Remove] {
            assert_eq!(go(wanted, &running(None)), Action::Shutdown);
            assert_eq!(go(wanted, &running(Some(run(None, 0, None)))), Action::Shutdown);
            let asked = running(Some(run(None, 0, Some(NOW - 10))));
            assert_eq!(go(wanted, &asked), Action::Nothing(Some(at(NOW + 50))));
            assert_eq!(go(wanted, &running(Some(run(None, 0, Some(NOW - 60))))), Action::Destroy);
            assert_eq!(go(wanted, &running(Some(run(None, 0, Some(NOW - 360))))), Action::Destroy);
            let long_ago = running(Some(run(None, 0, Some(NOW - 361))));
            assert_eq!(go(wanted, &long_ago), Action::Shutdown, "it may have been called off since");
            assert_eq!(with(wanted, &running(None), RestartPolicy::Always, 0), Action::Destroy);
        }
    }

    #[test]
    fn what_is_off_is_released_until_nothing_is_left() {
        let off = Observed { domain: Some(domain(false, true)), ..Observed::default() };
        let shares = Observed { instances: true, ..Observed::default() };
        let record = Observed { folder: true, record: Some(run(None, 0, Some(1))), ..Observed::default() };
        let disks = Observed { folder: true, ..Observed::default() };
        for observed in [&off, &shares, &record] {
            assert_eq!(go(Wanted::Stop, observed), Action::Release);
            assert_eq!(go(Wanted::Remove, observed), Action::Release);
        }
        assert_eq!(go(Wanted::Stop, &disks), Action::Nothing(None), "a stopped desktop keeps its disks");
        assert_eq!(go(Wanted::Remove, &disks), Action::Release);
        assert_eq!(go(Wanted::Remove, &Observed::default()), Action::Nothing(None));
    }
}
