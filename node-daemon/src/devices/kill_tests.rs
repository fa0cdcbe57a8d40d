//! The daemon killed before, in and after each single step of making and unmaking, in every mode.

use std::{io, sync::Mutex};

use super::{
    engine::Devices,
    scenarios::{Scenario, scenarios},
    tests::{owner, settle, shares, start},
};
use crate::host::gpu_driver::{GpuDriver, GpuError};

/// Ends a daemon at its n-th point: from then on it does nothing more.
#[derive(Debug, Default)]
pub(super) struct Fuse {
    left: Mutex<Option<usize>>,
}

impl Fuse {
    pub(super) fn set(&self, points: usize) {
        *self.left.lock().unwrap() = Some(points);
    }

    pub(super) fn is_blown(&self) -> bool {
        *self.left.lock().unwrap() == Some(0)
    }

    pub(super) fn point(&self) -> Result<(), GpuError> {
        let mut left = self.left.lock().unwrap();
        match &mut *left {
            Some(0) => {
                Err(GpuError::State { what: "killed".into(), source: io::Error::other("by the test") })
            }
            Some(points) => {
                *points -= 1;
                if *points == 0 {
                    Err(GpuError::State { what: "killed".into(), source: io::Error::other("now") })
                } else {
                    Ok(())
                }
            }
            None => Ok(()),
        }
    }
}

/// What to do after the kill.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Next {
    /// The same is asked for again.
    Again,
    /// It is not wanted any more.
    Ended,
    /// Nobody asks: the daemon goes on by itself, and then it is ended.
    Alone,
}

fn converged(name: &str, scenario: &Scenario, devices: &Devices, before: &super::fake_kernel::World) {
    let Scenario { kernel, wanted, .. } = scenario;
    devices.destroy(&wanted.key).unwrap_or_else(|error| panic!("{name}: {error}"));
    settle(devices, &owner());
    assert_eq!(&kernel.world(), before, "{name}: all is as it was");
    assert_eq!(shares(devices), 0, "{name}");
    let journal = devices.engine.journal().unwrap();
    assert!(
        journal.cards.values().all(|card| card.changes.is_empty() && card.gpu_instances.is_empty()),
        "{name}"
    );
}

#[test]
fn killed_at_any_point_of_making_it_goes_on_or_takes_all_back() {
    for next in [Next::Again, Next::Ended, Next::Alone] {
        for mode in 0..scenarios().len() {
            for points in 1.. {
                let scenario = scenarios().remove(mode);
                let name = format!("{}, killed at {points}, {next:?}", scenario.name);
                let folder = tempfile::tempdir().unwrap();
                let (before, kernel) = (scenario.kernel.world(), &scenario.kernel);
                let killed = start(kernel, folder.path());
                killed.engine.fuse.set(points);
                let result = killed.create(&scenario.wanted);
                if !killed.engine.fuse.is_blown() {
                    result.unwrap();
                    break;
                }
                assert!(result.is_err(), "{name}");
                let devices = start(kernel, folder.path());
                match next {
                    Next::Again => {
                        // A desktop asks while the daemon puts back what it knows of.
                        settle(&devices, &owner());
                        let made = devices
                            .create(&scenario.wanted)
                            .unwrap_or_else(|error| panic!("{name}: {error}"));
                        assert_eq!((&made.handle, made.pending), (&scenario.handle, false), "{name}");
                        let ideal = scenarios().remove(mode);
                        let elsewhere = tempfile::tempdir().unwrap();
                        start(&ideal.kernel, elsewhere.path()).create(&ideal.wanted).unwrap();
                        assert_eq!(kernel.world(), ideal.kernel.world(), "{name}: as without the kill");
                    }
                    Next::Ended => {}
                    Next::Alone => settle(&devices, &owner()),
                }
                converged(&name, &scenario, &devices, &before);
            }
        }
    }
}

#[test]
fn killed_at_any_point_of_unmaking_it_goes_on_by_itself() {
    for mode in 0..scenarios().len() {
        for points in 1.. {
            let scenario = scenarios().remove(mode);
            let name = format!("{}, killed at {points} of its end", scenario.name);
            let folder = tempfile::tempdir().unwrap();
            let (before, kernel) = (scenario.kernel.world(), &scenario.kernel);
            let killed = start(kernel, folder.path());
            killed.create(&scenario.wanted).unwrap();
            killed.engine.fuse.set(points);
            let result = killed.destroy(&scenario.wanted.key);
            if !killed.engine.fuse.is_blown() {
                result.unwrap();
                break;
            }
            let devices = start(kernel, folder.path());
            settle(&devices, &owner());
            if points > 1 {
                // Once it was noted that it is to go, nobody need ask again.
                let left = shares(&devices);
                assert!(left == 0 || points == 2 && left == 1, "{name}");
            }
            converged(&name, &scenario, &devices, &before);
        }
    }
}
