//! Drivers that are old, absent, slow or lose a card.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use gpudesk_crds::gpu_node_status::{HealthState, Placement};
use gpudesk_inventory::driver::{DriverReadings, FaultKind};
use gpudesk_node_daemon::host::nvml::{Nvml, NvmlError};

use crate::fake::{Fake, devices, read};

const TWO: &str = "
- {model: L40S, address: '0000:41:00.0'}
- {model: L4, address: '0000:42:00.0'}";

fn kinds(readings: &DriverReadings) -> Vec<Option<FaultKind>> {
    readings.cards.iter().map(|card| card.fault.as_ref().map(|fault| fault.kind)).collect()
}

#[test]
fn no_library_is_an_ordinary_answer_and_a_broken_one_an_error() {
    assert!(Nvml::open(Some(Path::new("/nonexistent/libnvidia-ml.so.1"))).unwrap().is_none());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libnvidia-ml.so.1");
    fs::write(&file, "no library").unwrap();
    let error = Nvml::open(Some(&file)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("libnvidia-ml.so.1"), "{error}");
}

#[test]
fn a_driver_that_is_loaded_later_is_read_then() {
    let fake = Fake::new(&format!("driverLoaded: false\ncards: {TWO}"));
    let nvml = fake.nvml();
    assert_eq!(nvml.read().unwrap_err(), NvmlError::DriverNotLoaded);
    fake.world(&format!("cards: {TWO}"));
    assert_eq!(nvml.read().unwrap().cards.len(), 2);
}

#[test]
fn a_library_of_another_release_than_the_module_says_what_to_do() {
    let fake =
        Fake::new("{faults: [{function: nvmlInitWithFlags, error: LIB_RM_VERSION_MISMATCH}], cards: []}");
    let error = fake.nvml().read().unwrap_err();
    assert_eq!(error, NvmlError::VersionMismatch);
    assert!(error.to_string().contains("reboot"));
}

/// The functions that drivers before R495 do not have, of those that are asked.
const NEWER: [&str; 12] = [
    "nvmlDeviceGetGpuInstanceProfileInfoV",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetModuleId",
    "nvmlDeviceGetMarginTemperature",
    "nvmlDeviceGetGpuFabricInfoV",
    "nvmlDeviceGetGpuFabricInfo",
    "nvmlDeviceGetVgpuHeterogeneousMode",
    "nvmlDeviceGetVgpuCapabilities",
    "nvmlDeviceGetVgpuSchedulerState",
    "nvmlDeviceGetVgpuSchedulerCapabilities",
    "nvmlVgpuTypeGetMaxInstancesPerGpuInstance",
    "nvmlVgpuInstanceGetPlacementId",
];

#[test]
fn an_old_driver_tells_the_same_of_mig_as_a_new_one() {
    let world = "{driverVersion: 470.57.02, cards: [{model: A100 SXM4 40GB (HGX), address: '0000:41:00.0', mig: true, throttle: 4,
        gpuInstances: [{profile: 1g.5gb+me, start: 0}]}]}";
    let shares = |readings: &DriverReadings| -> Vec<Placement> {
        devices(readings).swap_remove(0).placements.into_iter().filter(|p| p.compute_slices > 0).collect()
    };
    let (new, old) = (read(world), Fake::without(world, &NEWER).nvml().read().unwrap());
    assert_eq!(shares(&old), shares(&new));
    assert_eq!(old.cards[0].failed_calls, Vec::<String>::new(), "what is not there is no failure");
    assert_eq!(old.cards[0].clocks_event_reasons, Some(4));
    assert_eq!(old.cards[0].vgpu.as_ref().unwrap().mixed_size_capable, None);
    assert_eq!(devices(&old)[0].instances, devices(&new)[0].instances);
}

#[test]
fn a_library_that_is_newer_than_its_driver_has_functions_that_say_no() {
    let world = format!("missing: [{}]\ncards: [{{model: L40S, address: '0000:41:00.0'}}]", NEWER.join(", "));
    let readings = read(&world);
    assert_eq!(readings.cards[0].vgpu.as_ref().unwrap().types.len(), 29);
    assert_eq!(readings.cards[0].module_id, None);
}

#[test]
fn older_structures_are_asked_with_when_the_newer_are_refused() {
    let world = |newest: &str| {
        format!(
            "{{newest: {{{newest}}}, cards: [{{model: L40S, address: '0000:41:00.0', mixedSize: true}}]}}"
        )
    };
    let (new, old) = (read(&world("")), read(&world("VgpuPlacementList: 1, GpuFabricInfo: 2")));
    assert_eq!(old, new);
    let sixteen = devices(&old)[0].placements.iter().find(|p| p.type_name == "L40S-16Q").unwrap().clone();
    assert_eq!((sixteen.starts.as_slice(), sixteen.available), (&[0, 32][..], Some(2)));
}

#[test]
fn what_is_refused_is_named_and_the_rest_is_read() {
    let world = format!(
        "faults: [{{function: nvmlDeviceGetSerial, card: '0000:41:00.0', error: NO_PERMISSION}}]\ncards: {TWO}"
    );
    let readings = Fake::new(&world).nvml().read().unwrap();
    let card = &readings.cards[0];
    assert_eq!(card.failed_calls, ["nvmlDeviceGetSerial: no permission"]);
    assert_eq!((card.serial.as_deref(), card.fault.as_ref()), (None, None));
    assert!(card.uuid.is_some() && card.vgpu.is_some());
    assert!(readings.cards[1].serial.is_some());
}

#[test]
fn a_lost_card_keeps_what_was_known_of_it_and_the_others_go_on() {
    let fake = Fake::new(&format!("cards: {TWO}"));
    let nvml = fake.nvml();
    let before = nvml.read().unwrap();
    fake.world(&format!("faults: [{{card: '0000:41:00.0', error: GPU_IS_LOST}}]\ncards: {TWO}"));
    let after = nvml.read().unwrap();
    assert_eq!(kinds(&after), [Some(FaultKind::Lost), None]);
    assert_eq!((&after.cards[0].uuid, &after.cards[0].vgpu), (&before.cards[0].uuid, &before.cards[0].vgpu));
    let states: Vec<HealthState> = devices(&after).iter().map(|card| card.health.state).collect();
    assert_eq!(states, [HealthState::Failed, HealthState::Healthy]);
    fake.world(&format!("cards: {TWO}"));
    assert_eq!(nvml.read().unwrap(), before, "it came back");
}

#[test]
fn a_card_that_does_not_even_tell_its_address_is_found_by_who_is_missing() {
    let lost = "
- {model: L40S, address: '0000:41:00.0', lost: true}
- {model: L4, address: '0000:42:00.0'}";
    let fake = Fake::new(&format!("cards: {TWO}"));
    let nvml = fake.nvml();
    nvml.read().unwrap();
    fake.world(&format!("cards: {lost}"));
    assert_eq!(kinds(&nvml.read().unwrap()), [Some(FaultKind::Lost), None]);
    // Asked by its address, it is told even by a daemon that never saw it work.
    let late = fake.nvml();
    let readings = late.read().unwrap();
    assert_eq!((readings.cards.len(), readings.problems.len()), (1, 1));
    assert!(readings.problems[0].contains("fell off the bus"), "{:?}", readings.problems);
    let asked = late.read_card("0000:41:00.0".parse().unwrap()).unwrap().unwrap();
    assert_eq!(asked.fault.unwrap().kind, FaultKind::Lost);
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(Result::ok)
        .filter(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "nvml 77:00")
        })
        .count()
}

#[test]
fn a_card_that_hangs_keeps_nobody_waiting_and_is_not_asked_twice() {
    let cards = "
- {model: L40S, address: '0000:77:00.0'}
- {model: L4, address: '0000:42:00.0'}";
    let fake = Fake::new(&format!("cards: {cards}"));
    let nvml = fake.impatient(Duration::from_millis(700));
    let before = nvml.read().unwrap();
    fake.world(&format!(
        "faults: [{{function: nvmlDeviceGetUUID, card: '0000:77:00.0', delayMs: 3000}}]\ncards: {cards}"
    ));
    for _ in 0..3 {
        let began = Instant::now();
        let readings = nvml.read().unwrap();
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert_eq!(kinds(&readings), [None, Some(FaultKind::NoAnswer)]);
        assert_eq!(readings.cards[1].uuid, before.cards[1].uuid, "what was read before stands");
        assert_eq!(threads(), 1);
    }
    fake.world(&format!("cards: {cards}"));
    let until = Instant::now() + Duration::from_secs(20);
    while nvml.read().unwrap() != before {
        assert!(Instant::now() < until, "it does not come back");
        thread::sleep(Duration::from_millis(100));
    }
    // Its answer comes a moment before the thread that asked has ended.
    while threads() > 0 {
        assert!(Instant::now() < until, "the thread that hung is still there");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_driver_that_hangs_as_a_whole_is_an_error_and_is_asked_again_when_it_is_back() {
    let fake = Fake::new(&format!(
        "faults: [{{function: nvmlSystemGetDriverVersion, delayMs: 2500}}]\ncards: {TWO}"
    ));
    let nvml = fake.impatient(Duration::from_millis(400));
    assert_eq!(nvml.read().unwrap_err(), NvmlError::NoAnswer(0));
    let began = Instant::now();
    assert!(matches!(nvml.read().unwrap_err(), NvmlError::StillBusy(_)));
    assert!(began.elapsed() < Duration::from_millis(300), "nobody waits behind one who hangs");
    fake.world(&format!("cards: {TWO}"));
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match nvml.read() {
            Ok(readings) => break assert_eq!(readings.cards.len(), 2),
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}
