//! The stand-in answers as `nvml.h` says where vGPUs are placed and scheduled, and a card is set.
#![expect(unsafe_code, reason = "calls the library by its C interface")]

use std::{fs, ptr};

use nvml_wrapper_sys::bindings::{
    nvmlActiveVgpuInstanceInfo_v1_t, nvmlDevice_t, nvmlGpuInstance_t, nvmlReturn_t,
    nvmlVgpuCreatablePlacementInfo_v1_t, nvmlVgpuHeterogeneousMode_v1_t, nvmlVgpuPlacementList_v2_t,
    nvmlVgpuSchedulerGetState_st, nvmlVgpuSchedulerSetState_st, nvmlVgpuSchedulerState_v1_t,
    nvmlVgpuTypeIdInfo_v1_t,
};

use crate::{
    changes::{Card, IN_USE, INVALID_ARGUMENT, NOT_SUPPORTED, call},
    fake::Fake,
};

const INSUFFICIENT_SIZE: u32 = 7;
const VERSION_MISMATCH: u32 = 25;
const RTX: &str = "model: RTX PRO 6000 Blackwell Server Edition 96GB, address: '0000:41:00.0'";
const L40S: &str = "model: L40S, address: '0000:41:00.0'";
const T4: &str = "model: Tesla T4, address: '0000:41:00.0'";

fn card(words: &str) -> (Fake, Card) {
    let fake = Fake::new(&format!("cards: [{{{words}}}]"));
    let card = Card::new(&fake);
    (fake, card)
}

fn mode(mode: u32) -> nvmlVgpuHeterogeneousMode_v1_t {
    nvmlVgpuHeterogeneousMode_v1_t { version: 0x0100_0008, mode }
}

impl Card {
    fn set_mixed(&self, wanted: nvmlVgpuHeterogeneousMode_v1_t) -> u32 {
        call!(self.lib, nvmlDeviceSetVgpuHeterogeneousMode, self.device, &raw const wanted)
    }

    fn mixed(&self) -> Result<u32, u32> {
        let mut found = mode(9);
        let asked = call!(self.lib, nvmlDeviceGetVgpuHeterogeneousMode, self.device, &raw mut found);
        if asked == 0 { Ok(found.mode) } else { Err(asked) }
    }

    fn vgpu_type(&self, name: &str) -> u32 {
        let mut ids = [0; 128];
        let mut count = 128;
        assert_eq!(
            call!(self.lib, nvmlDeviceGetSupportedVgpus, self.device, &raw mut count, ids.as_mut_ptr()),
            0
        );
        let named = |id: &&u32| {
            let (mut text, mut room) = ([0; 64], 64);
            assert_eq!(call!(self.lib, nvmlVgpuTypeGetName, **id, text.as_mut_ptr(), &raw mut room), 0);
            let text: Vec<u8> = text.iter().map(|c| c.to_ne_bytes()[0]).take_while(|c| *c != 0).collect();
            String::from_utf8(text).unwrap().ends_with(&format!(" {name}"))
        };
        *ids[..count as usize].iter().find(named).unwrap()
    }

    /// The starts of a type when sizes are mixed, and its length.
    fn placements(&self, name: &str, creatable: bool, mode: u32) -> Result<(Vec<u32>, u32), u32> {
        let mut ids = [0; 64];
        let mut list = nvmlVgpuPlacementList_v2_t {
            version: 0x0200_0020,
            placementSize: 0,
            count: 64,
            placementIds: ids.as_mut_ptr(),
            mode,
        };
        let (lib, device, kind) = (&self.lib, self.device, self.vgpu_type(name));
        let asked = if creatable {
            call!(lib, nvmlDeviceGetVgpuTypeCreatablePlacements, device, kind, &raw mut list)
        } else {
            call!(lib, nvmlDeviceGetVgpuTypeSupportedPlacements, device, kind, &raw mut list)
        };
        if asked == 0 { Ok((ids[..list.count as usize].to_vec(), list.placementSize)) } else { Err(asked) }
    }

    fn capability(&self, number: u32) -> u32 {
        let mut found = 9;
        let asked = call!(self.lib, nvmlDeviceGetVgpuCapabilities, self.device, number, &raw mut found);
        if asked == 0 { found } else { asked * 100 }
    }

    fn set_scheduler(&self, policy: u32) -> u32 {
        // SAFETY: numbers only.
        let mut wanted: nvmlVgpuSchedulerSetState_st = unsafe { std::mem::zeroed() };
        wanted.schedulerPolicy = policy;
        call!(self.lib, nvmlDeviceSetVgpuSchedulerState, self.device, &raw mut wanted)
    }

    fn scheduler(&self) -> Result<u32, u32> {
        // SAFETY: numbers only.
        let mut found: nvmlVgpuSchedulerGetState_st = unsafe { std::mem::zeroed() };
        let asked = call!(self.lib, nvmlDeviceGetVgpuSchedulerState, self.device, &raw mut found);
        if asked == 0 { Ok(found.schedulerPolicy) } else { Err(asked) }
    }

    /// A function that the bindings do not know, with the four numbers that it takes.
    fn newer(&self, name: &[u8], of: *mut std::ffi::c_void, numbers: &mut [u32; 4]) -> u32 {
        type Function = unsafe extern "C" fn(*mut std::ffi::c_void, *mut u32) -> nvmlReturn_t;
        // SAFETY: the functions of this test have this shape.
        unsafe { self.lib.__library.get::<Function>(name).unwrap()(of, numbers.as_mut_ptr()) }
    }
}

#[test]
fn mixed_sizes_are_refused_by_what_is_wrong() {
    // nvml.h, nvmlDeviceSetVgpuHeterogeneousMode; MIG: NVML change log, release 575.
    let (fake, on) = card(L40S);
    assert_eq!((on.set_mixed(mode(2)), on.set_mixed(mode(7))), (INVALID_ARGUMENT, INVALID_ARGUMENT));
    let unversioned = nvmlVgpuHeterogeneousMode_v1_t { version: 8, mode: 1 };
    assert_eq!((on.set_mixed(unversioned), on.set_mixed(mode(1)), on.mixed()), (VERSION_MISMATCH, 0, Ok(1)));
    fake.world(&format!("cards: [{{{L40S}, vgpus: [{{type: L40S-8Q, placement: 0}}]}}]"));
    assert_eq!((on.set_mixed(mode(0)), on.mixed()), (IN_USE, Ok(1)));
    let (_fake, mig) = card(&format!("{RTX}, mig: true"));
    assert_eq!((mig.set_mixed(mode(1)), mig.mixed()), (NOT_SUPPORTED, Err(NOT_SUPPORTED)));
    assert_eq!(mig.placements("DC-48Q", true, 0), Err(NOT_SUPPORTED), "which are free");
    assert_eq!(mig.placements("DC-48Q", false, 0), Ok((vec![0, 48], 48)), "which there are");
    // vGPU User Guide: Turing cards cannot.
    let (_fake, cannot) = card(T4);
    assert_eq!(cannot.set_mixed(mode(1)), NOT_SUPPORTED);
    // vGPU User Guide: off again after a reset.
    fake.world(&format!("cards: [{{{L40S}, resets: 1}}]"));
    assert_eq!(on.mixed(), Ok(0));
}

#[test]
fn nothing_falls_on_blackwell_and_16q_falls_on_ada() {
    // open-gpu-kernel-modules 595.45.04, kernel_vgpu_mgr.c: start j = floor(region x j / most).
    let (_fake, blackwell) = card(RTX);
    let starts = |step: u32, most: u32| (0..most).map(|part| part * step).collect::<Vec<_>>();
    for (gb, most) in
        [(96, 1), (48, 2), (32, 3), (24, 4), (16, 6), (12, 8), (8, 12), (6, 16), (4, 24), (3, 32)]
    {
        let expected = Ok((starts(gb, most), gb));
        assert_eq!(blackwell.placements(&format!("DC-{gb}Q"), false, 0), expected);
        assert_eq!(
            blackwell.placements(&format!("DC-{gb}Q"), false, 1),
            expected,
            "the same when sizes are equal"
        );
    }
    assert_eq!(blackwell.placements("DC-2B", false, 0), Ok((starts(3, 32), 3)));
    // vGPU User Guide, "vGPU Placements for GPUs in Mixed-Size Mode".
    let (_fake, ada) = card(L40S);
    assert_eq!(ada.placements("L40S-16Q", false, 0), Ok((vec![0, 32], 16)));
    assert_eq!(ada.placements("L40S-16Q", false, 1), Err(NOT_SUPPORTED));
}

#[test]
fn capabilities_are_those_of_the_chip() {
    // nvml.h, nvmlDeviceVgpuCapability_t: 1 series beside each other, 9 equal placements, 10 and 11 several
    // vGPUs on a GPU instance; nvmlDeviceSetVgpuCapabilities: 6, 7 and 11 can be set.
    let (_fake, rtx) = card(RTX);
    assert_eq!([1, 2, 9, 10, 11, 0, 12].map(|number| rtx.capability(number)), [1, 1, 1, 1, 1, 0, 200]);
    let (_fake, ada) = card(L40S);
    assert_eq!([1, 2, 9, 10, 11].map(|number| ada.capability(number)), [1, 1, 1, 0, 0]);
    let (_fake, turing) = card(T4);
    assert_eq!([1, 2, 9, 10, 11].map(|number| turing.capability(number)), [1, 0, 0, 0, 0]);
    let set =
        |card: &Card, number, on| call!(card.lib, nvmlDeviceSetVgpuCapabilities, card.device, number, on);
    assert_eq!((set(&rtx, 11, 0), rtx.capability(11), rtx.capability(10)), (0, 0, 1));
    assert_eq!((set(&rtx, 7, 1), set(&rtx, 2, 1), set(&rtx, 11, 2)), (0, NOT_SUPPORTED, INVALID_ARGUMENT));
    assert_eq!((set(&ada, 11, 1), set(&ada, 7, 1)), (NOT_SUPPORTED, NOT_SUPPORTED));
}

#[test]
fn a_scheduler_is_not_changed_under_a_vgpu() {
    // nvml.h, nvmlDeviceSetVgpuSchedulerState: not supported while MIG is on, or with any vGPU.
    let (fake, on) = card(L40S);
    assert_eq!((on.set_scheduler(2), on.scheduler(), on.set_scheduler(9)), (0, Ok(2), INVALID_ARGUMENT));
    fake.world(&format!("cards: [{{{L40S}, vgpus: [{{type: L40S-8Q}}]}}]"));
    assert_eq!((on.set_scheduler(1), on.scheduler()), (NOT_SUPPORTED, Ok(2)));
    fake.world(&format!("{{loads: 1, cards: [{{{L40S}}}]}}"));
    assert_eq!(on.scheduler(), Ok(1), "lost when the module is loaded");
    // vGPU User Guide: fixed share needs equal sizes.
    assert_eq!((on.set_mixed(mode(1)), on.set_scheduler(3)), (0, NOT_SUPPORTED));
    let (_fake, mig) = card(&format!("{RTX}, mig: true"));
    assert_eq!((mig.set_scheduler(2), mig.scheduler()), (NOT_SUPPORTED, Err(NOT_SUPPORTED)));
    // The newer functions, without a version word: engine, policy, average, and a frequency to set.
    let device: *mut std::ffi::c_void = on.device.cast();
    let (set, get) = (b"nvmlDeviceSetVgpuSchedulerState_v2\0", b"nvmlDeviceGetVgpuSchedulerState_v2\0");
    assert_eq!(on.newer(set, device, &mut [1, 2, 33, 480]), 0);
    let mut found = [1, 0, 0, 0];
    assert_eq!((on.newer(get, device, &mut found), found[1], found[2]), (0, 2, 33));
    assert_eq!(on.newer(set, device, &mut [4, 2, 0, 0]), INVALID_ARGUMENT, "no such engine");
}

#[test]
fn a_gpu_instance_mixes_sizes_by_itself() {
    // NVML change log, release 575, and nvml.h at the functions of GPU instances.
    let (fake, on) = card(&format!("{RTX}, mig: true"));
    let made: nvmlGpuInstance_t = on.make_at(47, 3, 3).unwrap();
    let kind = on.vgpu_type("DC-1-6Q");
    let placements = |room: u32| {
        let mut ids = [0; 16];
        let mut info = nvmlVgpuCreatablePlacementInfo_v1_t {
            version: 0x0100_0020,
            vgpuTypeId: kind,
            count: room,
            placementIds: ids.as_mut_ptr(),
            placementSize: 0,
        };
        let asked = call!(on.lib, nvmlGpuInstanceGetVgpuTypeCreatablePlacements, made, &raw mut info);
        (asked, info.count, ids)
    };
    assert_eq!(placements(16).0, NOT_SUPPORTED, "of equal sizes");
    let set = |wanted: u32| {
        let wanted = mode(wanted);
        call!(on.lib, nvmlGpuInstanceSetVgpuHeterogeneousMode, made, &raw const wanted)
    };
    assert_eq!((set(2), set(1)), (INVALID_ARGUMENT, 0));
    assert_eq!(placements(1).0, INSUFFICIENT_SIZE, "room for one");
    assert_eq!(placements(1).1, 4, "and how many there are");
    assert_eq!((placements(16).0, placements(16).1, &placements(16).2[..4]), (0, 4, &[0, 6, 12, 18][..]));

    let vgpus = "vgpus: [{type: DC-1-12Q, gpuInstance: 4, placement: 12}]";
    fake.world(&format!("cards: [{{{RTX}, mig: true, {vgpus}}}]"));
    assert_eq!((placements(16).1, &placements(16).2[..2]), (2, &[0, 6][..]), "beside another size");
    assert_eq!(set(0), IN_USE);
    let mut handles = [0; 4];
    let mut active = nvmlActiveVgpuInstanceInfo_v1_t {
        version: 0x0100_0010,
        vgpuCount: 0,
        vgpuInstances: ptr::null_mut(),
    };
    assert_eq!(call!(on.lib, nvmlGpuInstanceGetActiveVgpus, made, &raw mut active), INSUFFICIENT_SIZE);
    active.vgpuInstances = handles.as_mut_ptr();
    assert_eq!(call!(on.lib, nvmlGpuInstanceGetActiveVgpus, made, &raw mut active), 0);
    assert_eq!((active.vgpuCount, handles[0] != 0), (1, true));

    // SAFETY: numbers only.
    let mut wanted: nvmlVgpuSchedulerState_v1_t = unsafe { std::mem::zeroed() };
    (wanted.version, wanted.engineId, wanted.schedulerPolicy) = (0x0100_0018, 1, 2);
    let busy = call!(on.lib, nvmlGpuInstanceSetVgpuSchedulerState, made, &raw mut wanted);
    assert_eq!(busy, NOT_SUPPORTED);
    fake.world(&format!("cards: [{{{RTX}, mig: true}}]"));
    assert_eq!(call!(on.lib, nvmlGpuInstanceSetVgpuSchedulerState, made, &raw mut wanted), 0);
    let mut found = [1, 0, 0, 0];
    assert_eq!(on.newer(b"nvmlGpuInstanceGetVgpuSchedulerState_v2\0", made.cast(), &mut found), 0);
    assert_eq!(found[1], 2);

    // Cards with one vGPU for each GPU instance have none of it.
    let (_fake, hopper) = card("model: H100 PCIe 80GB, address: '0000:41:00.0', mig: true");
    let alone = hopper.make(19).unwrap();
    let mut asked = mode(0);
    assert_eq!(
        call!(hopper.lib, nvmlGpuInstanceGetVgpuHeterogeneousMode, alone, &raw mut asked),
        NOT_SUPPORTED
    );
    let mut types =
        nvmlVgpuTypeIdInfo_v1_t { version: 0x0100_0010, vgpuCount: 0, vgpuTypeIds: ptr::null_mut() };
    assert_eq!(call!(hopper.lib, nvmlGpuInstanceGetCreatableVgpus, alone, &raw mut types), NOT_SUPPORTED);
}

#[test]
fn settings_of_an_admin_have_bounds_and_go_with_the_module() {
    // nvml.h, nvmlDeviceSetPowerManagementLimit: "not persistent across reboots or driver unloads".
    let (fake, on) = card(&format!("{L40S}, power: [100000, 350000, 400000]"));
    let (lib, device): (_, nvmlDevice_t) = (&on.lib, on.device);
    assert_eq!(call!(lib, nvmlDeviceSetPowerManagementLimit, device, 250_000), 0);
    assert_eq!(call!(lib, nvmlDeviceSetPowerManagementLimit, device, 99_999), INVALID_ARGUMENT);
    assert_eq!(call!(lib, nvmlDeviceSetGpuLockedClocks, device, 900, 600), INVALID_ARGUMENT);
    assert_eq!(call!(lib, nvmlDeviceSetGpuLockedClocks, device, 600, 900), 0);
    assert_eq!(call!(lib, nvmlDeviceSetPersistenceMode, device, 1), 0);
    let now = || {
        let (mut limit, mut persistence) = (0, 0);
        assert_eq!(call!(lib, nvmlDeviceGetPowerManagementLimit, device, &raw mut limit), 0);
        assert_eq!(call!(lib, nvmlDeviceGetPersistenceMode, device, &raw mut persistence), 0);
        (limit, persistence)
    };
    assert_eq!(now(), (250_000, 1));
    fake.world(&format!("{{loads: 1, cards: [{{{L40S}, power: [100000, 350000, 400000]}}]}}"));
    assert_eq!(now(), (350_000, 0));
}

#[test]
fn what_changes_something_is_recorded_and_a_lost_answer_is_not_a_lost_change() {
    let fault = "faults: [{function: nvmlDeviceCreateGpuInstance, error: TIMEOUT, after: true}]";
    let fake = Fake::new(&format!("{{recorder: calls, {fault}, cards: [{{{RTX}}}]}}"));
    let on = Card::new(&fake);
    on.set_mig(1);
    assert_eq!(on.make(47), Err(10));
    assert_eq!(on.make_at(47, 4, 3), Err(INVALID_ARGUMENT));
    let mut count = 0;
    assert_eq!(call!(on.lib, nvmlDeviceGetGpuInstanceRemainingCapacity, on.device, 47, &raw mut count), 0);
    assert_eq!(count, 3, "it was made");
    let calls = fs::read_to_string(fake.path().with_file_name("calls")).unwrap();
    assert_eq!(
        calls,
        "nvmlDeviceSetMigMode 0000:41:00.0 1 = 0\n\
         nvmlDeviceCreateGpuInstance 0000:41:00.0 profile 47 = 0\n\
         nvmlDeviceCreateGpuInstanceWithPlacement 0000:41:00.0 profile 47 at 4 = 2\n"
    );
}

#[test]
fn vgpus_on_virtual_functions_hold_their_instance_whether_they_run_or_not() {
    let fake = Fake::new("cards: []");
    let sysfs = fake.path().with_file_name("sys");
    let device = sysfs.join("bus/pci/devices/0000:41:00.0");
    let function = device.join("virtfn0/nvidia");
    fs::create_dir_all(&function).unwrap();
    std::os::unix::fs::symlink("../../drivers/nvidia", device.join("driver")).unwrap();
    let put = |file: &str, text: &str| fs::write(device.join(file), text).unwrap();
    put("sriov_numvfs", "48\n");
    put("gpu_instances", "");
    put("virtfn0/nvidia/current_vgpu_type", "0\n");
    fake.world(&format!("{{sysfs: {}, cards: [{{{RTX}, mig: true}}]}}", sysfs.display()));
    let on = Card::new(&fake);
    let made = on.make_at(47, 3, 3).unwrap();
    let told = || fs::read_to_string(device.join("gpu_instances")).unwrap();
    assert_eq!(told(), "mig 1 mixed 0\n4 profile 47 at 3 size 3 ready 0 mixed 0\n");
    let kind = on.vgpu_type("DC-1-24Q");
    put("virtfn0/nvidia/current_vgpu_type", &kind.to_string());
    put("virtfn0/nvidia/gpu_instance_id", "4\n");
    put("virtfn0/nvidia/placement_id", "0\n");
    assert_eq!(call!(on.lib, nvmlGpuInstanceDestroy, made), IN_USE);
    let (mut ids, mut count) = ([0; 64], 64);
    assert_eq!(call!(on.lib, nvmlDeviceGetCreatableVgpus, on.device, &raw mut count, ids.as_mut_ptr()), 0);
    assert_eq!(count, 0, "the one instance is full");
    let mut running = 64;
    assert_eq!(call!(on.lib, nvmlDeviceGetActiveVgpus, on.device, &raw mut running, ids.as_mut_ptr()), 0);
    assert_eq!(running, 0, "nobody started a guest");
    put("virtfn0/nvidia/current_vgpu_type", "0\n");
    assert_eq!(call!(on.lib, nvmlGpuInstanceDestroy, made), 0);
    assert_eq!(told(), "mig 1 mixed 0\n");
    // CubeCOS, driver for RTX PRO 6000: MIG is not turned off while virtual functions exist.
    assert_eq!(on.set_mig(0), (0, IN_USE));
    put("sriov_numvfs", "0\n");
    assert_eq!(on.set_mig(0), (0, 0));
}
