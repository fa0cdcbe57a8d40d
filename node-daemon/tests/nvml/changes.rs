//! The stand-in is as strict as the real library where instances are made and unmade. `nvml.h` is NVIDIA's
//! header of the library, as go-nvml has it.
#![expect(unsafe_code, reason = "calls the library by its C interface")]

use std::ptr;

use nvml_wrapper_sys::bindings::{
    NvmlLib, nvmlComputeInstance_t, nvmlComputeInstancePlacement_st, nvmlDevice_t, nvmlGpuInstance_t,
    nvmlGpuInstanceInfo_st, nvmlGpuInstancePlacement_st,
};

use crate::fake::Fake;

pub(crate) const INVALID_ARGUMENT: u32 = 2;
pub(crate) const NOT_SUPPORTED: u32 = 3;
pub(crate) const NO_PERMISSION: u32 = 4;
const NOT_FOUND: u32 = 6;
const RESET_REQUIRED: u32 = 16;
pub(crate) const IN_USE: u32 = 19;
const INSUFFICIENT_RESOURCES: u32 = 23;

/// Calls a function by its name and gives its return code.
macro_rules! call {
    ($lib:expr, $function:ident $(, $argument:expr)*) => {
        // SAFETY: the arguments are handles of this library, numbers and places of the test.
        unsafe { ($lib.$function.as_ref().unwrap())($($argument),*) }
    };
}
pub(crate) use call;

pub(crate) struct Card {
    pub(crate) lib: NvmlLib,
    pub(crate) device: nvmlDevice_t,
}

impl Card {
    pub(crate) fn new(fake: &Fake) -> Self {
        // SAFETY: a library made to be loaded so.
        let lib = unsafe { NvmlLib::new(fake.path()) }.unwrap();
        let mut device = ptr::null_mut();
        assert_eq!(call!(lib, nvmlInit_v2), 0);
        assert_eq!(call!(lib, nvmlDeviceGetHandleByIndex_v2, 0, &raw mut device), 0);
        Self { lib, device }
    }

    /// The return code and the activation status.
    pub(crate) fn set_mig(&self, on: u32) -> (u32, u32) {
        let mut status = 0;
        (call!(self.lib, nvmlDeviceSetMigMode, self.device, on, &raw mut status), status)
    }

    /// Whether MIG is on, and will be.
    fn mig(&self) -> (u32, u32) {
        let (mut current, mut pending) = (9, 9);
        let asked = call!(self.lib, nvmlDeviceGetMigMode, self.device, &raw mut current, &raw mut pending);
        assert_eq!(asked, 0);
        (current, pending)
    }

    pub(crate) fn make(&self, profile: u32) -> Result<nvmlGpuInstance_t, u32> {
        let mut made = ptr::null_mut();
        match call!(self.lib, nvmlDeviceCreateGpuInstance, self.device, profile, &raw mut made) {
            0 => Ok(made),
            code => Err(code),
        }
    }

    pub(crate) fn make_at(&self, profile: u32, start: u32, size: u32) -> Result<nvmlGpuInstance_t, u32> {
        let (mut made, place) = (ptr::null_mut(), nvmlGpuInstancePlacement_st { start, size });
        let created = call!(
            self.lib,
            nvmlDeviceCreateGpuInstanceWithPlacement,
            self.device,
            profile,
            &raw const place,
            &raw mut made
        );
        if created == 0 { Ok(made) } else { Err(created) }
    }

    /// Number and start of an instance.
    fn place(&self, of: nvmlGpuInstance_t) -> (u32, u32) {
        let placement = nvmlGpuInstancePlacement_st { start: 0, size: 0 };
        let mut info = nvmlGpuInstanceInfo_st { device: ptr::null_mut(), id: 0, profileId: 0, placement };
        assert_eq!(call!(self.lib, nvmlGpuInstanceGetInfo, of, &raw mut info), 0);
        (info.id, info.placement.start)
    }

    fn make_compute(&self, of: nvmlGpuInstance_t, profile: u32) -> Result<nvmlComputeInstance_t, u32> {
        let mut made = ptr::null_mut();
        match call!(self.lib, nvmlGpuInstanceCreateComputeInstance, of, profile, &raw mut made) {
            0 => Ok(made),
            code => Err(code),
        }
    }

    fn by_id(&self, id: u32) -> u32 {
        let mut found = ptr::null_mut();
        call!(self.lib, nvmlDeviceGetGpuInstanceById, self.device, id, &raw mut found)
    }

    fn remaining(&self, profile: u32) -> Result<u32, u32> {
        let mut count = 0;
        let asked =
            call!(self.lib, nvmlDeviceGetGpuInstanceRemainingCapacity, self.device, profile, &raw mut count);
        if asked == 0 { Ok(count) } else { Err(asked) }
    }
}

const A100: &str = "model: A100 SXM4 80GB (HGX), address: '0000:41:00.0'";
const H100: &str = "model: H100 PCIe 80GB, address: '0000:41:00.0'";

fn world(card: &str) -> Fake {
    Fake::new(&format!("cards: [{{{card}}}]"))
}

#[test]
fn a_busy_card_is_no_failed_call_and_its_mode_waits() {
    // nvml.h, nvmlDeviceSetMigMode: "if device unbind fails because the device isn't idle,
    // NVML_ERROR_IN_USE would be returned" in activationStatus, and the call succeeds.
    let held = world(&format!("{A100}, inUse: true"));
    let card = Card::new(&held);
    assert_eq!((card.set_mig(1), card.mig()), ((0, IN_USE), (0, 1)));
    assert_eq!(card.make(19), Err(NOT_SUPPORTED));
    held.world(&format!("cards: [{{{A100}}}]"));
    assert_eq!((card.mig(), card.set_mig(1), card.mig()), ((0, 1), (0, 0), (1, 1)), "freed, and set again");
    let busy = world(&format!("{H100}, processes: [{{pid: 7}}]"));
    assert_eq!(Card::new(&busy).set_mig(1), (0, IN_USE));
    let divided = world(&format!("{H100}, mig: true, gpuInstances: [{{profile: 1g.10gb, start: 0}}]"));
    let card = Card::new(&divided);
    assert_eq!((card.set_mig(0), card.mig()), ((0, IN_USE), (1, 0)));
    assert_eq!((card.set_mig(1), card.mig(), card.set_mig(2).0), ((0, 0), (1, 1), INVALID_ARGUMENT));
}

#[test]
fn only_ampere_cards_need_a_reset_for_their_mode() {
    // MIG User Guide, "Enable MIG Mode": from Hopper on no reset is needed; until then who holds the card
    // open is in its way, and nvidia-drm is one of those (mig-parted 181).
    let held = world(&format!("{H100}, inUse: true"));
    assert_eq!(Card::new(&held).set_mig(1), (0, 0));
    // nvml.h, nvmlDeviceSetMigMode: in a virtual machine "activationStatus would return
    // NVML_ERROR_RESET_REQUIRED".
    let guest = Fake::new(&format!("{{guest: true, vgpuHost: false, cards: [{{{A100}}}]}}"));
    let card = Card::new(&guest);
    assert_eq!((card.set_mig(1), card.mig()), ((0, RESET_REQUIRED), (0, 1)));
    guest.world(&format!("{{guest: true, vgpuHost: false, loads: 1, cards: [{{{A100}}}]}}"));
    assert_eq!(card.mig(), (1, 1), "the machine was started again");
    let none = world("model: L40S, address: '0000:41:00.0'");
    assert_eq!(Card::new(&none).set_mig(1).0, NOT_SUPPORTED);
}

#[test]
fn the_mode_of_an_ampere_card_outlives_a_reboot_and_nothing_else_does() {
    // MIG User Guide, "Device nodes and capabilities" and "Getting started": instances are never
    // persistent, the mode of A100 and A30 is; that of an H100 is not (gpu-admin-tools 2).
    for (model, left) in [(A100, (1, 1)), (H100, (0, 0))] {
        let fake = world(model);
        let card = Card::new(&fake);
        card.set_mig(1);
        card.make(19).unwrap();
        fake.world(&format!("cards: [{{{model}, temperature: 60}}]"));
        assert_eq!(card.remaining(19), Ok(6), "weather changes no instances");
        fake.world(&format!("cards: [{{{model}, resets: 1}}]"));
        assert_eq!((card.mig(), card.remaining(19)), ((1, 1), Ok(7)), "{model}: a reset");
        card.make(19).unwrap();
        fake.world(&format!("{{loads: 1, cards: [{{{model}, resets: 1}}]}}"));
        assert_eq!(card.mig(), left, "{model}: a reboot");
        assert_eq!(card.by_id(13), if left.0 == 1 { NOT_FOUND } else { NOT_SUPPORTED });
    }
}

#[test]
fn without_a_wished_place_the_driver_does_not_look_ahead() {
    // MIG User Guide, "Known issues": -cgi 19,19,14,9 fails, 9,14,19,19 works.
    let fake = world(&format!("{A100}, mig: true"));
    let card = Card::new(&fake);
    for profile in [19, 19, 14] {
        card.make(profile).unwrap();
    }
    assert_eq!(card.make(9).unwrap_err(), INSUFFICIENT_RESOURCES);
    let fake = world(&format!("{A100}, mig: true"));
    let card = Card::new(&fake);
    for (profile, start) in [(9, 4), (14, 0), (19, 2), (19, 3)] {
        assert_eq!(card.place(card.make(profile).unwrap()).1, start);
    }
}

#[test]
fn numbers_of_instances_are_those_of_their_places_in_no_order() {
    // Outputs of `nvidia-smi mig -cgi 19,19,19,19,19,19,19` and `-cgi 19,14,5` on A100 cards.
    let fake = world(&format!("{A100}, mig: true"));
    let card = Card::new(&fake);
    let ids: Vec<u32> = (0..7).map(|_| card.place(card.make(19).unwrap()).0).collect();
    assert_eq!(ids, [13, 11, 12, 7, 8, 9, 10]);
    let fake = world(&format!("{A100}, mig: true"));
    let card = Card::new(&fake);
    let made = [19, 14, 5].map(|profile| card.place(card.make(profile).unwrap()));
    assert_eq!(made, [(13, 6), (5, 4), (1, 0)]);
    // A30: 3, 4, then 2 (go-nvlib). RTX PRO 6000: 3 is the first.
    let fake = world("model: A30, address: '0000:41:00.0', mig: true");
    let card = Card::new(&fake);
    assert_eq!([14, 14, 5].map(|profile| card.place(card.make(profile).unwrap()).0), [3, 4, 2]);
}

#[test]
fn what_cannot_be_made_says_why_only_roughly() {
    // nvml.h, nvmlDeviceCreateGpuInstance(WithPlacement).
    let fake = world(&format!("{H100}, mig: true"));
    let card = Card::new(&fake);
    card.make_at(9, 4, 4).unwrap();
    assert_eq!(card.make_at(9, 4, 4), Err(INSUFFICIENT_RESOURCES), "nothing says that it exists");
    assert_eq!(card.make_at(19, 5, 1), Err(INSUFFICIENT_RESOURCES));
    assert_eq!(
        (card.make_at(9, 2, 4), card.make_at(9, 0, 3)),
        (Err(INVALID_ARGUMENT), Err(INVALID_ARGUMENT))
    );
    assert_eq!((card.make(77), card.remaining(77)), (Err(INVALID_ARGUMENT), Err(INVALID_ARGUMENT)));
    // nvml.h, nvmlDeviceGetGpuInstanceById.
    assert_eq!((card.by_id(2), card.by_id(1)), (0, NOT_FOUND));
    // After every change the driver counts anew: something is in the way of a 4g no more than of a 7g.
    assert_eq!((card.remaining(5), card.remaining(0), card.remaining(9)), (Ok(1), Ok(0), Ok(1)));
    let off = world(H100);
    let card = Card::new(&off);
    assert_eq!(
        (card.make(19), card.remaining(19), card.by_id(1)),
        (Err(NOT_SUPPORTED), Err(NOT_SUPPORTED), NOT_SUPPORTED)
    );
    // NVML change log, release 550: possible placements do not need MIG to be on.
    let mut count = 0;
    let places = ptr::null_mut();
    let asked = call!(
        card.lib,
        nvmlDeviceGetGpuInstancePossiblePlacements_v2,
        card.device,
        19,
        places,
        &raw mut count
    );
    assert_eq!((asked, count), (0, 7));
}

#[test]
fn instances_go_from_the_inside_out_and_not_while_somebody_uses_them() {
    // nvml.h, nvmlGpuInstanceDestroy and nvmlComputeInstanceDestroy.
    let fake = world(&format!("{A100}, mig: true"));
    let card = Card::new(&fake);
    let instance = card.make_at(9, 4, 4).unwrap();
    let (id, _) = card.place(instance);
    let compute = card.make_compute(instance, 2).unwrap();
    assert_eq!(call!(card.lib, nvmlGpuInstanceDestroy, instance), IN_USE);
    let used = format!("processes: [{{pid: 7, gpuInstance: {id}, computeInstance: 0}}]");
    fake.world(&format!("cards: [{{{A100}, mig: true, {used}}}]"));
    assert_eq!(call!(card.lib, nvmlComputeInstanceDestroy, compute), IN_USE);
    // DCGM issue 276: a leaked handle is no process, and the instance stays in use when its compute
    // instances are gone.
    fake.world(&format!("cards: [{{{A100}, mig: true, leaked: [{id}]}}]"));
    assert_eq!(call!(card.lib, nvmlComputeInstanceDestroy, compute), 0);
    assert_eq!(call!(card.lib, nvmlGpuInstanceDestroy, instance), IN_USE);
    fake.world(&format!("cards: [{{{A100}, mig: true}}]"));
    assert_eq!(call!(card.lib, nvmlGpuInstanceDestroy, instance), 0);
    assert_eq!(call!(card.lib, nvmlGpuInstanceDestroy, instance), INVALID_ARGUMENT, "its handle is no more");
    assert_eq!(call!(card.lib, nvmlComputeInstanceDestroy, compute), INVALID_ARGUMENT);
}

#[test]
fn compute_instances_have_places_and_numbers_of_their_own() {
    // nvidia-smi mig -lcipp, MIG User Guide: 2c.7g {0,2,4}:2, 3c.7g {0,4}:3. Numbers begin at 0 in each.
    let fake = world(&format!("{A100}, mig: true"));
    let card = Card::new(&fake);
    let whole = card.make(0).unwrap();
    for (profile, most) in [(0, 7), (1, 3), (2, 2), (3, 1), (4, 1)] {
        let mut count = 0;
        let places = ptr::null_mut();
        let asked = call!(
            card.lib,
            nvmlGpuInstanceGetComputeInstancePossiblePlacements,
            whole,
            profile,
            places,
            &raw mut count
        );
        assert_eq!((asked, count), (0, most));
    }
    let at = |profile, start, size| {
        let (mut made, place) = (ptr::null_mut(), nvmlComputeInstancePlacement_st { start, size });
        call!(
            card.lib,
            nvmlGpuInstanceCreateComputeInstanceWithPlacement,
            whole,
            profile,
            &raw const place,
            &raw mut made
        )
    };
    assert_eq!((at(2, 4, 3), at(2, 4, 3), at(2, 1, 3)), (0, INSUFFICIENT_RESOURCES, INVALID_ARGUMENT));
    let mut left = 9;
    let asked = call!(card.lib, nvmlGpuInstanceGetComputeInstanceRemainingCapacity, whole, 1, &raw mut left);
    assert_eq!((asked, left), (0, 2));
    let second = card.make_compute(whole, 1).unwrap();
    assert_eq!(card.make_compute(whole, 3).unwrap_err(), INSUFFICIENT_RESOURCES);
    assert_eq!(call!(card.lib, nvmlComputeInstanceDestroy, second), 0);
    let small = world(&format!("{A100}, mig: true"));
    let card = Card::new(&small);
    let instance = card.make(14).unwrap();
    assert_eq!(
        (card.make_compute(instance, 2), card.make_compute(instance, 40)),
        (Err(NOT_SUPPORTED), Err(INVALID_ARGUMENT))
    );
}

#[test]
fn who_has_no_privilege_may_not_list_nor_change() {
    // nvml.h: "Requires privileged user".
    let fake = Fake::new(&format!("{{privileged: false, cards: [{{{A100}, mig: true}}]}}"));
    let card = Card::new(&fake);
    assert_eq!(
        (card.set_mig(0).0, card.make(19), card.remaining(19)),
        (NO_PERMISSION, Err(NO_PERMISSION), Err(NO_PERMISSION))
    );
    assert_eq!((card.by_id(1), card.mig()), (NO_PERMISSION, (1, 1)));
}
