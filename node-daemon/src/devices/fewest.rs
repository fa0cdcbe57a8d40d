//! The fewest writes that lead from one state of a host to another, found by trying them all: on the kernel of the other
//! tests, and each no earlier than its maker lets it be, which the kernel itself does not always refuse.

use std::{
    collections::{BTreeSet, HashSet},
    fmt::Write as _,
    hash::{DefaultHasher, Hasher as _},
    sync::Arc,
};

use gpudesk_crds::{
    gpu_node::VgpuScheduler,
    types::{PciAddress, ShareMode},
};

use super::{
    control::DriverControl as _,
    fake_control::FakeControl,
    fake_kernel::{FakeKernel, Fun, World, at},
    kernel::Kernel as _,
    plan::settings::Wish,
    scenarios::CARD,
};
use crate::host::gpu_driver::WantedInstance;

const UUID: &str = "99999999-2222-4333-8444-555555555555";

/// One write to the kernel, or one call of the driver's library.
#[derive(Clone, Debug, PartialEq)]
enum Act {
    Write(String, String),
    Mig(bool),
    Instance(u32, i32),
    Compute(u32),
    NoInstance(u32),
    Mixed(bool),
    Persistence(bool),
    Scheduler(VgpuScheduler),
    Power(u32),
    Clocks(Option<(u32, u32)>),
}

/// A way that is looked for.
pub(super) struct Way<'a> {
    /// The host before gpudesk.
    pub(super) initial: &'a World,
    /// Now.
    pub(super) before: &'a World,
    /// What desktops are to have in the end.
    pub(super) wanted: Vec<&'a WantedInstance>,
    pub(super) wish: Wish,
    /// Whether one comes; else one goes.
    pub(super) coming: bool,
    /// Functions and mediated devices that others use.
    pub(super) running: BTreeSet<String>,
}

/// What was done so far: the host, and the functions that were reset after their user.
type State = (World, BTreeSet<PciAddress>);

impl Way<'_> {
    /// The number of steps of the shortest one.
    pub(super) fn fewest(&self) -> usize {
        let mut now: Vec<State> = vec![(self.before.clone(), BTreeSet::new())];
        let mut seen = HashSet::from([key(&now[0])]);
        for steps in 0.. {
            if now.iter().any(|(world, _)| self.is_there(world)) {
                return steps;
            }
            let mut next = vec![];
            for (world, cleaned) in &now {
                for act in self.acts(world) {
                    if self.is_forbidden(world, cleaned, &act) {
                        continue;
                    }
                    let Some(after) = done(world, &act) else { continue };
                    let mut cleaned = cleaned.clone();
                    if let Act::Write(path, _) = &act
                        && let Some((function, "reset")) = function_of(path)
                    {
                        cleaned.insert(function);
                    }
                    let state = (after, cleaned);
                    if seen.insert(key(&state)) {
                        next.push(state);
                    }
                }
            }
            assert!(!next.is_empty(), "there is no way after {steps} steps");
            now = next;
        }
        unreachable!()
    }

    /// Whether desktops have what they are to have, and all else is as it was.
    pub(super) fn is_there(&self, world: &World) -> bool {
        let Some(first) = self.wanted.first() else { return world == self.initial };
        match first.share.mode {
            ShareMode::Passthrough => world.functions.values().filter(|fun| !is_bridge(fun)).all(is_given),
            ShareMode::VirtualFunctions => self.functions_are_there(world),
            ShareMode::Vgpu | ShareMode::Mig => {
                let card = &world.functions[&at(CARD)];
                let as_wished = card.persistence == self.wish.persistence.or(self.card().persistence)
                    && (self.wish.scheduler.is_none() || card.scheduler == self.wish.scheduler)
                    && self.wish.watts.is_none_or(|watts| card.milliwatts == Some(watts * 1000))
                    && (self.wish.clocks.is_none() || card.clocks == self.wish.clocks);
                let has_driver = card.driver == self.card().driver && card.reserved == self.card().reserved;
                let vgpus = if card.types.is_empty() {
                    self.mdevs_are_there(world)
                } else {
                    self.vgpus_are_there(world, card)
                };
                as_wished && has_driver && vgpus
            }
        }
    }

    /// The card before gpudesk.
    fn card(&self) -> &Fun {
        &self.initial.functions[&at(CARD)]
    }

    fn functions_are_there(&self, world: &World) -> bool {
        let vfs = &world.functions[&at(CARD)].vfs;
        let mut given = 0;
        for vf in vfs {
            let fun = &world.functions[vf];
            if self.initial.functions.get(vf) == Some(fun) {
                continue;
            }
            let fresh = fun.reserved.is_none() && !is_vfio(fun) && fun.d3cold && fun.power == "auto";
            // vfio-pci lets one sleep that nobody has open.
            if is_vfio(fun) && !fun.d3cold {
                given += 1;
            } else if !fresh || self.initial.functions.contains_key(vf) {
                return false;
            }
        }
        given == self.wanted.len() && self.wanted[0].share.type_name == format!("{}VF", vfs.len())
    }

    fn mdevs_are_there(&self, world: &World) -> bool {
        let types = world.functions.values().flat_map(|fun| &fun.mdev_types);
        let types: Vec<_> = types.collect();
        let id = |name: &str| types.iter().find(|kind| kind.1 == name).map(|kind| kind.0.to_owned());
        let made = world.mdevs.iter().filter(|(uuid, _)| !self.initial.mdevs.contains_key(*uuid));
        let mut made: Vec<_> = made.map(|(_, mdev)| Some(mdev.type_id.clone())).collect();
        let mut wanted: Vec<_> = self.wanted.iter().map(|wanted| id(&wanted.share.type_name)).collect();
        made.sort();
        wanted.sort();
        made == wanted
    }

    fn vgpus_are_there(&self, world: &World, card: &Fun) -> bool {
        let mixes = self.wanted.iter().any(|wanted| is_at_a_start(wanted));
        let place_of = |id: Option<i32>| {
            let of = card.instances.iter().find(|one| i32::try_from(one.id).ok() == id);
            of.map(|one| (one.profile, one.start))
        };
        let (mut made, mut all_bound) = (vec![], true);
        for vf in &card.vfs {
            let fun = &world.functions[vf];
            all_bound &= fun.driver.as_deref() == Some("nvidia");
            let before = self.initial.functions.get(vf).and_then(|fun| fun.vgpu);
            if let Some((id, start, instance)) = fun.vgpu.filter(|vgpu| vgpu.0 != 0 && Some(*vgpu) != before)
            {
                made.push((id, start.filter(|_| mixes), place_of(instance)));
            }
        }
        let mut wanted: Vec<_> = self.wanted.iter().map(|wanted| self.vgpu(wanted)).collect();
        made.sort_unstable();
        wanted.sort_unstable();
        let mut places: Vec<_> = self.wanted.iter().filter_map(|wanted| place(wanted)).collect();
        places.sort_unstable();
        places.dedup();
        let mut instances: Vec<_> = card.instances.iter().map(|one| (one.profile, one.start)).collect();
        instances.sort_unstable();
        let complete = card.instances.iter().all(|one| one.compute_instances == 1);
        made == wanted && all_bound && places == instances && complete && (!mixes || card.mixed == Some(true))
    }

    fn vgpu(&self, wanted: &WantedInstance) -> (u32, Option<i32>, Option<(u32, i32)>) {
        let name = wanted.share.vgpu_type.as_ref().unwrap_or(&wanted.share.type_name);
        let id = self.card().types.iter().find(|kind| kind.1 == name).unwrap().0;
        (id, wanted.share.start.filter(|_| is_at_a_start(wanted)), place(wanted))
    }

    /// Whether functions go to guests, and not vGPUs on them.
    fn gives_functions(&self) -> bool {
        !matches!(self.mode_of_all(), ShareMode::Vgpu | ShareMode::Mig)
    }

    fn mode_of_all(&self) -> ShareMode {
        self.wanted.first().map_or_else(|| self.mode(), |wanted| wanted.share.mode)
    }

    /// What could be done now. What changes nothing is in no shortest way; what nothing else waits for, `d3cold_allowed`,
    /// can always stand after it is bound, or after it is unbound.
    fn acts(&self, world: &World) -> Vec<Act> {
        let is_vgpu = !self.gives_functions();
        // Functions that were on before gpudesk are not switched, so nobody takes the card from its driver for them.
        let switches = self.card().total > 0 && self.card().vfs.is_empty();
        let moves = !is_vgpu || switches;
        let mut acts = vec![];
        for (address, fun) in &world.functions {
            if is_bridge(fun) || self.running.contains(&address.to_string()) {
                continue;
            }
            let mut write =
                |file: &str, value: &str| acts.push(Act::Write(of_function(*address, file), value.into()));
            let is_card = *address == at(CARD);
            if moves && (is_card || !is_vgpu) {
                let reserves = if is_vgpu { "pci-pf-stub" } else { "vfio-pci" };
                write("driver_override", if fun.reserved.is_some() { "\n" } else { reserves });
            }
            if moves && fun.driver.is_some() {
                write("driver/unbind", &address.to_string());
            }
            if !is_vgpu && is_vfio(fun) == self.coming {
                write("d3cold_allowed", if self.coming { "0" } else { "1" });
            }
            if !is_vgpu && (self.coming || !is_vfio(fun)) {
                write("power/control", if self.coming { "on" } else { "auto" });
            }
            if is_vfio(fun) && !self.coming {
                write("reset", "1");
            }
            if fun.total > 0 && switches && self.mode_of_all() != ShareMode::Passthrough {
                let on = if is_vgpu { fun.total } else { 2 };
                let count = if fun.vfs.is_empty() { on } else { 0 };
                write("sriov_numvfs", &count.to_string());
                write("sriov_drivers_autoprobe", if fun.autoprobe { "0" } else { "1" });
            }
            if fun.vgpu.is_some_and(|vgpu| vgpu.0 != 0) {
                write("nvidia/current_vgpu_type", "0");
            }
            for wanted in self.wanted.iter().filter(|_| is_vgpu && fun.vgpu.is_some()) {
                let (id, start, _) = self.vgpu(wanted);
                write("nvidia/current_vgpu_type", &id.to_string());
                if let Some(start) = start {
                    write("nvidia/placement_id", &start.to_string());
                }
            }
            for one in world.functions[&at(CARD)].instances.iter().filter(|_| fun.vgpu.is_some()) {
                write("nvidia/gpu_instance_id", &one.id.to_string());
            }
            for kind in fun.mdev_types.iter().filter(|_| self.coming) {
                write(&format!("mdev_supported_types/{}/create", kind.0), UUID);
            }
            if fun.driver.is_none() {
                acts.push(Act::Write("sys/bus/pci/drivers_probe".into(), address.to_string()));
            }
            if is_card && fun.driver.as_deref() == Some("nvidia") && !fun.locked {
                let lock = format!("proc/driver/nvidia/gpus/{address}/unbindLock");
                acts.extend(moves.then(|| Act::Write(lock, "1".into())));
                acts.extend(self.of_the_library(fun));
            }
        }
        let ours = world.mdevs.keys().filter(|uuid| !self.running.contains(*uuid));
        acts.extend(ours.map(|uuid| Act::Write(format!("sys/bus/mdev/devices/{uuid}/remove"), "1".into())));
        acts
    }

    fn mode(&self) -> ShareMode {
        let card = self.card();
        match (card.ids.0, card.total, card.types.is_empty() && card.mdev_types.is_empty()) {
            ("10de", total, no_types) if total > 0 || !no_types => ShareMode::Vgpu,
            (_, 1.., _) => ShareMode::VirtualFunctions,
            _ => ShareMode::Passthrough,
        }
    }

    fn of_the_library(&self, card: &Fun) -> Vec<Act> {
        let mut acts = vec![];
        acts.extend(card.mig.map(|on| Act::Mig(!on)));
        acts.extend(card.mixed.map(|on| Act::Mixed(!on)));
        acts.extend(card.persistence.map(|on| Act::Persistence(!on)));
        acts.extend(self.wish.scheduler.map(Act::Scheduler));
        acts.extend(self.card().scheduler.map(Act::Scheduler));
        acts.extend(self.wish.watts.map(|watts| Act::Power(watts * 1000)));
        acts.extend(self.card().milliwatts.map(Act::Power));
        if self.wish.clocks.is_some() {
            acts.extend([Act::Clocks(self.wish.clocks), Act::Clocks(None)]);
        }
        for (profile, start) in self.wanted.iter().filter_map(|wanted| place(wanted)) {
            acts.push(Act::Instance(profile, start));
        }
        for one in &card.instances {
            acts.push(Act::Compute(one.id));
            acts.push(Act::NoInstance(one.id));
        }
        acts
    }

    /// What the makers' own orders do not allow, beside what the kernel refuses.
    fn is_forbidden(&self, world: &World, cleaned: &BTreeSet<PciAddress>, act: &Act) -> bool {
        let card = &world.functions[&at(CARD)];
        // The driver makes nothing on a card that sleeps (facts 9.1: keep persistence mode on).
        let sleeps = self.card().persistence == Some(true) && card.persistence == Some(false);
        let holds_guests_data = |address: &PciAddress| {
            let fun = &world.functions[address];
            is_vfio(fun) && fun.class.starts_with("03") && !cleaned.contains(address)
        };
        // A function changes its driver only while it is awake (facts 9.5), and vfio-pci lets it sleep once it has it.
        let is_asleep = |address: PciAddress| {
            let fun = &world.functions[&address];
            self.coming && self.gives_functions() && !is_vfio(fun) && fun.power != "on"
        };
        match act {
            Act::Instance(..) | Act::Compute(_) => sleeps,
            Act::Write(path, address) if path.ends_with("/drivers_probe") => {
                address.parse().is_ok_and(is_asleep)
            }
            Act::Write(path, value) if path.ends_with("/unbindLock") => {
                // It is taken only while the card has no user, the persistence of the driver among them (facts 3.2, 9.1).
                value == "1" && card.persistence == Some(true)
            }
            Act::Write(path, value) => match function_of(path) {
                Some((address, "driver/unbind")) if is_asleep(address) => true,
                Some((address, "driver/unbind"))
                    if address == at(CARD) && card.driver.as_deref() == Some("nvidia") =>
                {
                    // sriov-manage -d: the lock, after each function is off its driver; the User Guide takes types and
                    // GPU instances away before (facts 9.1, 9.2).
                    let bound = card.vfs.iter().any(|vf| world.functions[vf].driver.is_some());
                    !card.locked || bound || !card.instances.is_empty()
                }
                Some((address, "driver/unbind")) => {
                    let typed = world.functions[&address].vgpu.is_some_and(|vgpu| vgpu.0 != 0);
                    typed || holds_guests_data(&address)
                }
                Some((_, "sriov_numvfs")) => {
                    let others = card.vfs.iter().any(|vf| self.running.contains(&vf.to_string()));
                    others || card.vfs.iter().any(holds_guests_data)
                }
                Some((_, "nvidia/current_vgpu_type")) => sleeps && value != "0",
                _ => false,
            },
            _ => false,
        }
    }
}

fn done(world: &World, act: &Act) -> Option<World> {
    let kernel = Arc::new(FakeKernel::default());
    kernel.change(|it| it.clone_from(world));
    let (control, card) = (FakeControl(Arc::clone(&kernel)), at(CARD));
    let done = match act {
        Act::Write(path, value) => kernel.write(path, value).is_ok(),
        Act::Mig(on) => control.set_mig_mode(card, *on).is_ok(),
        Act::Instance(profile, start) => control.create_gpu_instance(card, *profile, *start).is_ok(),
        Act::Compute(id) => control.create_compute_instance(card, *id).is_ok(),
        Act::NoInstance(id) => control.destroy_gpu_instance(card, *id).is_ok(),
        Act::Mixed(on) => control.set_mixed_size(card, *on).is_ok(),
        Act::Persistence(on) => control.set_persistence(card, *on).is_ok(),
        Act::Scheduler(scheduler) => control.set_scheduler(card, *scheduler).is_ok(),
        Act::Power(milliwatts) => control.set_power(card, *milliwatts).is_ok(),
        Act::Clocks(range) => control.lock_clocks(card, *range).is_ok(),
    };
    done.then(|| kernel.world())
}

fn key(state: &State) -> u64 {
    struct Key(DefaultHasher);
    impl std::fmt::Write for Key {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.write(text.as_bytes());
            Ok(())
        }
    }
    let mut into = Key(DefaultHasher::new());
    write!(into, "{state:?}").unwrap();
    into.0.finish()
}

fn of_function(address: PciAddress, file: &str) -> String {
    format!("sys/bus/pci/devices/{address}/{file}")
}

fn function_of(path: &str) -> Option<(PciAddress, &str)> {
    let (address, file) = path.strip_prefix("sys/bus/pci/devices/")?.split_once('/')?;
    Some((at(address), file))
}

fn is_bridge(fun: &Fun) -> bool {
    fun.class.starts_with("06")
}

fn is_vfio(fun: &Fun) -> bool {
    fun.driver.as_deref() == Some("vfio-pci")
}

fn is_given(fun: &Fun) -> bool {
    is_vfio(fun) && !fun.d3cold && fun.power == "on"
}

fn is_at_a_start(wanted: &WantedInstance) -> bool {
    wanted.share.mode == ShareMode::Vgpu && wanted.share.start.is_some()
}

/// The GPU instance that is under a share.
fn place(wanted: &WantedInstance) -> Option<(u32, i32)> {
    (wanted.share.mode == ShareMode::Mig).then_some((47, wanted.share.start?))
}
