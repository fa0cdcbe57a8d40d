//! What is checked.

use stateright::{Checker, HasDiscoveries, Model};

use crate::model::{Faults, Handover};

/// Checks every order of events, and prints how many states that made.
fn check(model: Handover) {
    let faults = model.faults;
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).threads(2).spawn_bfs().join();
    checker.assert_properties();
    println!("{} states, depth {}, {faults:?}", checker.unique_state_count(), checker.max_depth());
}

fn model(desktops: usize, hosts: usize, faults: Faults) -> Handover {
    Handover { desktops, hosts, keeps_disks: false, fenced: true, waits: true, looks: false, faults }
}

#[test]
fn one_desktop_on_two_nodes() {
    for keeps_disks in [false, true] {
        let two = |faults| check(Handover { keeps_disks, ..model(1, 2, faults) });
        two(Faults { switches: 3, losses: 1, ..Faults::default() });
        two(Faults { switches: 2, ends: 1, crashes: 1, ..Faults::default() });
        two(Faults { switches: 1, deletions: 1, crashes: 1, losses: 1, ..Faults::default() });
    }
}

#[test]
fn two_desktops_on_one_node() {
    check(model(2, 1, Faults { switches: 2, ..Faults::default() }));
    check(model(2, 1, Faults { switches: 1, ends: 1, ..Faults::default() }));
    check(model(2, 1, Faults { switches: 1, crashes: 1, losses: 1, ..Faults::default() }));
}

#[test]
fn two_leaders() {
    check(model(2, 1, Faults { switches: 1, takeovers: 1, ..Faults::default() }));
}

#[test]
fn a_node_that_is_lost() {
    for keeps_disks in [false, true] {
        let two = |faults| check(Handover { keeps_disks, ..model(1, 2, faults) });
        two(Faults { lost: 1, offs: 1, abandons: 1, ..Faults::default() });
        two(Faults { lost: 1, offs: 1, switches: 1, ..Faults::default() });
        two(Faults { lost: 1, abandons: 1, deletions: 1, ..Faults::default() });
    }
    check(model(2, 1, Faults { lost: 1, abandons: 1, ..Faults::default() }));
}

#[test]
fn a_status_that_is_wiped() {
    for keeps_disks in [false, true] {
        check(Handover { keeps_disks, ..model(1, 2, Faults { wipes: 1, switches: 1, ..Faults::default() }) });
        check(Handover {
            keeps_disks,
            ..model(1, 2, Faults { wipes: 1, deletions: 1, ..Faults::default() })
        });
    }
    check(model(2, 1, Faults { wipes: 1, ..Faults::default() }));
}

#[test]
fn a_node_that_is_silent() {
    for keeps_disks in [false, true] {
        let two = |faults| check(Handover { keeps_disks, ..model(1, 2, faults) });
        two(Faults { silences: 1, offs: 1, abandons: 1, ..Faults::default() });
        two(Faults { silences: 1, abandons: 1, switches: 1, ..Faults::default() });
        two(Faults { silences: 1, lost: 1, offs: 1, ..Faults::default() });
        two(Faults { silences: 1, abandons: 1, deletions: 1, ..Faults::default() });
        two(Faults { silences: 1, abandons: 1, takeovers: 1, ..Faults::default() });
    }
    check(model(2, 1, Faults { silences: 1, abandons: 1, ..Faults::default() }));
}

#[test]
fn an_api_that_goes_back_to_a_backup() {
    for keeps_disks in [false, true] {
        let two = |faults| check(Handover { keeps_disks, looks: true, ..model(1, 2, faults) });
        two(Faults { restores: 1, switches: 1, ..Faults::default() });
        two(Faults { restores: 1, deletions: 1, ..Faults::default() });
        two(Faults { restores: 1, crashes: 1, ..Faults::default() });
        two(Faults { restores: 1, takeovers: 1, ..Faults::default() });
    }
    check(Handover { looks: true, ..model(2, 1, Faults { restores: 1, ..Faults::default() }) });
}

#[test]
fn a_node_that_loses_what_it_noted_down() {
    for keeps_disks in [false, true] {
        let two = |faults| check(Handover { keeps_disks, ..model(1, 2, faults) });
        two(Faults { folders: 1, switches: 2, ..Faults::default() });
        two(Faults { folders: 1, takeovers: 1, switches: 1, ..Faults::default() });
        two(Faults { folders: 1, crashes: 1, ends: 1, ..Faults::default() });
        two(Faults { folders: 1, deletions: 1, takeovers: 1, ..Faults::default() });
    }
    check(model(2, 1, Faults { folders: 1, switches: 1, ..Faults::default() }));
}

#[test]
fn without_waiting_for_nodes_a_desktop_runs_twice_after_a_restore() {
    let faults = Faults { restores: 1, ..Faults::default() };
    let hasty = Handover { waits: false, looks: true, ..model(1, 2, faults) };
    let twice = HasDiscoveries::AnyOf(["no desktop runs twice"].into());
    let checker = hasty.checker().finish_when(twice).spawn_bfs().join();
    assert!(checker.discovery("no desktop runs twice").is_some(), "the model sees what it is to see");
}

#[test]
fn without_the_term_two_leaders_give_a_place_twice() {
    let faults = Faults { switches: 1, takeovers: 1, ..Faults::default() };
    let unfenced = Handover { fenced: false, ..model(2, 1, faults) };
    let checker = unfenced.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    assert!(checker.discovery("no place is used twice").is_some(), "the model sees what it is to see");
}
