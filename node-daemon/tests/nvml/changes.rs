//! The stand-in is as strict as the real library where instances are made and unmade.
#![expect(unsafe_code, reason = "calls the library by its C interface")]

use std::ptr;

use nvml_wrapper_sys::bindings::{
    NvmlLib, nvmlComputeInstance_t, nvmlDevice_t, nvmlGpuInstance_t, nvmlGpuInstancePlacement_st,
};

use crate::fake::Fake;

const NOT_SUPPORTED: u32 = 3;
const IN_USE: u32 = 19;
const INSUFFICIENT_RESOURCES: u32 = 23;

/// Calls a function by its name and gives its return code.
macro_rules! call {
    ($lib:expr, $function:ident $(, $argument:expr)*) => {
        // SAFETY: the arguments are handles of this library, numbers and places of the test.
        unsafe { ($lib.$function.as_ref().unwrap())($($argument),*) }
    };
}

struct Card {
    lib: NvmlLib,
    device: nvmlDevice_t,
}

impl Card {
    fn new(fake: &Fake) -> Self {
        // SAFETY: a library made to be loaded so.
        let lib = unsafe { NvmlLib::new(fake.path()) }.unwrap();
        let mut device = ptr::null_mut();
        assert_eq!(call!(lib, nvmlInit_v2), 0);
        assert_eq!(call!(lib, nvmlDeviceGetHandleByIndex_v2, 0, &raw mut device), 0);
        Self { lib, device }
    }

    fn set_mig(&self, on: u32) -> (u32, u32) {
        let mut status = 0;
        (call!(self.lib, nvmlDeviceSetMigMode, self.device, on, &raw mut status), status)
    }

    fn make(&self, profile: u32) -> Result<nvmlGpuInstance_t, u32> {
        let mut made = ptr::null_mut();
        match call!(self.lib, nvmlDeviceCreateGpuInstance, self.device, profile, &raw mut made) {
            0 => Ok(made),
            code => Err(code),
        }
    }

    fn make_at(&self, profile: u32, start: u32) -> Result<nvmlGpuInstance_t, u32> {
        let (mut made, place) = (ptr::null_mut(), nvmlGpuInstancePlacement_st { start, size: 0 });
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
}

const A100: &str = "model: A100 SXM4 80GB (HGX), address: '0000:41:00.0'";

#[test]
fn mig_mode_of_an_ampere_card_waits_for_those_who_use_it() {
    let fake = Fake::new(&format!("cards: [{{{A100}, inUse: true}}]"));
    let card = Card::new(&fake);
    assert_eq!(card.set_mig(1), (0, IN_USE));
    let mig = fake.nvml().read().unwrap().cards[0].mig.clone().unwrap();
    assert!(!mig.current && mig.pending);
    assert_eq!(card.make(19), Err(NOT_SUPPORTED));
    let free = Fake::new(&format!("cards: [{{{A100}}}]"));
    assert_eq!(Card::new(&free).set_mig(1), (0, 0));
}

#[test]
fn instances_without_a_wished_place_come_in_the_way_of_larger_ones() {
    let fake = Fake::new(&format!("cards: [{{{A100}, mig: true}}]"));
    let card = Card::new(&fake);
    // 1g, 1g, 2g, and then no half is left for a 3g; the other way round all fit.
    for profile in [19, 19, 14] {
        card.make(profile).unwrap();
    }
    card.make_at(19, 0).unwrap();
    assert_eq!(card.make(9).unwrap_err(), INSUFFICIENT_RESOURCES);
    let fake = Fake::new(&format!("cards: [{{{A100}, mig: true}}]"));
    let card = Card::new(&fake);
    for (profile, start) in [(9, 4), (14, 0), (19, 2), (19, 3)] {
        card.make_at(profile, start).unwrap();
    }
}

#[test]
fn instances_go_from_the_inside_out_and_with_a_reset() {
    let fake = Fake::new(&format!("cards: [{{{A100}, mig: true}}]"));
    let card = Card::new(&fake);
    let nvml = fake.nvml();
    let there = || nvml.read().unwrap().cards[0].mig.clone().unwrap().instances.len();
    let instance = card.make_at(9, 4).unwrap();
    let mut compute: nvmlComputeInstance_t = ptr::null_mut();
    assert_eq!(call!(card.lib, nvmlGpuInstanceCreateComputeInstance, instance, 2, &raw mut compute), 0);
    assert_eq!(call!(card.lib, nvmlGpuInstanceDestroy, instance), IN_USE);
    assert_eq!(card.set_mig(0).0, IN_USE);
    assert_eq!(call!(card.lib, nvmlComputeInstanceDestroy, compute), 0);
    assert_eq!(there(), 1);
    assert_eq!(call!(card.lib, nvmlGpuInstanceDestroy, instance), 0);
    assert_eq!(there(), 0);

    card.make_at(9, 0).unwrap();
    fake.world(&format!("cards: [{{{A100}, mig: true, temperature: 60}}]"));
    assert_eq!(there(), 1, "weather changes no instances");
    fake.world(&format!("cards: [{{{A100}, mig: true, resets: 1}}]"));
    assert_eq!(there(), 0);
}
