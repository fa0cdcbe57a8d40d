//! Cards changed through the real interface of the library, by the daemon's own calls.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use gpudesk_crds::{gpu_node::VgpuScheduler, types::PciAddress};
use gpudesk_node_daemon::devices::DriverControl;
use gpudesk_node_daemon::host::nvml::{
    Nvml, SharedNvml,
    control::{
        Activation, Change, ChangeLog, Control, Done, NvmlFault, Scheduling, Waiting,
        layout::{MigMode, Place, Profile, Rules, Slot},
    },
};
use gpudesk_node_daemon::host::nvml_control::NvmlControl;

use crate::library;

/// A copy of the library with a world of its own.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new(world: &str) -> Self {
        let host = Self { folder: tempfile::tempdir().unwrap() };
        fs::copy(library(), host.path()).unwrap();
        host.world(world);
        host
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }

    fn world(&self, world: &str) {
        let new = self.folder.path().join("new.yaml");
        fs::write(&new, world).unwrap();
        fs::rename(new, self.folder.path().join("libnvidia-ml.so.1.yaml")).unwrap();
    }

    fn control(&self, card: &str) -> Control {
        control(&self.path(), card, Arc::new(())).unwrap()
    }

    /// Calls that changed something, and how each ended.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        calls.lines().map(ToOwned::to_owned).collect()
    }

    /// As the daemon changes cards.
    fn driver(&self) -> NvmlControl {
        let shared = SharedNvml::default();
        shared.set(Nvml::open(Some(&self.path())).unwrap());
        NvmlControl::new(shared)
    }

    /// Number of a vGPU type by the end of its name.
    fn vgpu_type(&self, card: &str, name: &str) -> u32 {
        let nvml = Nvml::open(Some(&self.path())).unwrap().unwrap();
        let readings = nvml.read_card(card.parse().unwrap()).unwrap().unwrap();
        let types = readings.vgpu.unwrap().types;
        types.iter().find(|kind| kind.name.ends_with(&format!(" {name}"))).unwrap().id
    }
}

fn control(library: &Path, card: &str, log: Arc<dyn ChangeLog>) -> Result<Control, NvmlFault> {
    let card: PciAddress = card.parse().unwrap();
    Nvml::open(Some(library)).unwrap().unwrap().control(card, log)
}

const CARD: &str = "0000:41:00.0";
const RTX: &str = "model: RTX PRO 6000 Blackwell Server Edition 96GB, address: '0000:41:00.0'";
const H100: &str = "model: H100 PCIe 80GB, address: '0000:41:00.0'";

fn named<'a>(profiles: &'a [Profile], name: &str) -> &'a Profile {
    profiles.iter().find(|profile| profile.name == name).unwrap_or_else(|| panic!("{name}: {profiles:?}"))
}

fn place(profiles: &[Profile], name: &str, start: i32) -> Place {
    let Profile { id, size, .. } = *named(profiles, name);
    Place { profile: id, start, size }
}

/// What there is, none of it in use.
fn idle(card: &Control) -> Vec<Slot> {
    let live = card.gpu_instances().unwrap();
    live.into_iter().map(|instance| Slot { instance, used_by: None }).collect()
}

/// Plans from what there is, and does it.
fn make(card: &Control, profile: &str, start: i32) -> Result<Vec<Done>, NvmlFault> {
    let profiles = card.gpu_instance_profiles()?;
    let id = named(&profiles, profile).id;
    let changes = Rules::new(&profiles).creation(card.mig_mode()?, &idle(card), id, start).unwrap();
    changes.iter().map(|change| card.change(change)).collect()
}

fn remove(card: &Control, at: Place) {
    let profiles = card.gpu_instance_profiles().unwrap();
    for change in Rules::new(&profiles).removal(&idle(card), at).unwrap() {
        card.change(&change).unwrap();
    }
}

#[test]
fn four_to_a_card_and_32_to_eight_and_the_fifth_is_refused_with_the_count() {
    let cards: Vec<String> = (0..8)
        .map(|bus| format!("{{model: RTX PRO 6000 Blackwell Server Edition 96GB, address: '0000:{bus:02x}:00.0', mig: true}}"))
        .collect();
    let host = Host::new(&format!("cards: [{}]", cards.join(", ")));
    let mut made = 0;
    for bus in 0..8 {
        let card = host.control(&format!("0000:{bus:02x}:00.0"));
        for start in [0, 3, 6, 9] {
            make(&card, "1g.24gb", start).unwrap();
        }
        let profiles = card.gpu_instance_profiles().unwrap();
        assert_eq!(named(&profiles, "1g.24gb").remaining, Some(0));
        let live = card.gpu_instances().unwrap();
        made += live.len();
        let used: Vec<Place> = live.iter().map(|instance| instance.at).collect();
        let refused = Rules::new(&profiles).arrange(&used, &[14]).unwrap_err();
        assert_eq!(refused.to_string(), "4 of 1g.24gb are in use, and the card holds 4 at most");
        for start in [0, 3, 6, 9] {
            let fifth = Change::CreateGpuInstance(Place { profile: 14, start, size: 3 });
            assert!(card.change(&fifth).unwrap_err().is_full());
        }
        let uuids: BTreeSet<_> =
            live.into_iter().map(|instance| instance.compute[0].uuid.clone().unwrap()).collect();
        assert!(uuids.len() == 4 && uuids.iter().all(|uuid| uuid.starts_with("MIG-")), "{uuids:?}");
    }
    assert_eq!(made, 32);
}

#[test]
fn three_two_one_and_one_fit_with_the_three_at_four_by_the_fewest_calls() {
    let host = Host::new(&format!("{{recorder: calls, cards: [{{{H100}}}]}}"));
    let card = host.control(CARD);
    let profiles = card.gpu_instance_profiles().unwrap();
    let wanted = ["1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb"].map(|name| named(&profiles, name).id);
    let places = Rules::new(&profiles).arrange(&[], &wanted).unwrap();
    assert_eq!(places[3].start, 4);
    for at in &places {
        let name = &profiles.iter().find(|profile| profile.id == at.profile).unwrap().name;
        make(&card, name, at.start).unwrap();
    }
    // MIG on once, and for each instance two calls.
    let calls = host.calls();
    assert_eq!((calls.len(), calls.iter().all(|call| call.ends_with("= 0"))), (9, true), "{calls:?}");
    assert_eq!(card.gpu_instances().unwrap().len(), 4);
    // A second time there is nothing to do.
    make(&card, "3g.40gb", 4).unwrap();
    assert_eq!(host.calls().len(), 9);
    // One goes from the inside out, and the others are as they were.
    let before = card.gpu_instances().unwrap();
    remove(&card, place(&profiles, "2g.20gb", places[2].start));
    assert_eq!(host.calls().len(), 11);
    let after = card.gpu_instances().unwrap();
    assert!(after.len() == 3 && after.iter().all(|left| before.contains(left)), "{after:?}");
}

#[test]
fn mixed_sizes_keep_all_starts_on_blackwell_and_lose_one_on_ada() {
    let host = Host::new(&format!(
        "cards: [{{{RTX}}}, {{model: L40S, address: '0000:42:00.0'}}, {{model: Tesla T4, address: '0000:43:00.0'}}]"
    ));
    let (blackwell, ada, turing) =
        (host.control(CARD), host.control("0000:42:00.0"), host.control("0000:43:00.0"));
    for card in [&blackwell, &ada] {
        assert!(!card.mixed_size().unwrap());
        card.change(&Change::MixedSize(true)).unwrap();
        assert!(card.mixed_size().unwrap());
    }
    assert!(turing.change(&Change::MixedSize(true)).unwrap_err().not_supported());
    let sixteen = host.vgpu_type(CARD, "DC-16Q");
    assert_eq!(
        blackwell.supported_starts(sixteen).unwrap().starts,
        [0, 16, 32, 48, 64, 80],
        "six, as in equal sizes"
    );
    assert_eq!(blackwell.creatable_starts(sixteen).unwrap(), blackwell.supported_starts(sixteen).unwrap());
    let on_ada = host.vgpu_type("0000:42:00.0", "L40S-16Q");
    assert_eq!(ada.supported_starts(on_ada).unwrap().starts, [0, 32], "two, where three fit in equal sizes");
    // With MIG on the card as a whole mixes nothing.
    blackwell.change(&Change::MigMode(true)).unwrap();
    assert!(blackwell.mixed_size().unwrap_err().not_supported());
    assert!(blackwell.creatable_starts(sixteen).unwrap_err().not_supported());
}

/// vGPUs on GPU instances, as a world has them.
fn vgpus(kind: &str, instances: &[(u32, usize)]) -> String {
    let each = instances.iter().flat_map(|(id, many)| std::iter::repeat_n(id, *many));
    let vgpus: Vec<String> = each.map(|id| format!("{{type: {kind}, gpuInstance: {id}}}")).collect();
    vgpus.join(", ")
}

#[test]
fn twelve_to_each_of_four_instances_are_48_and_no_more() {
    let host = Host::new(&format!("cards: [{{{RTX}, mig: true}}]"));
    let card = host.control(CARD);
    for start in [0, 3, 6, 9] {
        make(&card, "1g.24gb+gfx", start).unwrap();
    }
    let kind = host.vgpu_type(CARD, "DC-1-2Q");
    let live = card.gpu_instances().unwrap();
    let mut there: Vec<(u32, usize)> = live.iter().map(|instance| (instance.id, 0)).collect();
    for (position, instance) in live.iter().enumerate() {
        assert!(card.creatable_types_on(&instance.at).unwrap().contains(&kind));
        there[position].1 = 12;
        host.world(&format!("cards: [{{{RTX}, mig: true, vgpus: [{}]}}]", vgpus("DC-1-2Q", &there)));
        assert_eq!(card.active_vgpus_on(&instance.at).unwrap().len(), 12);
        assert!(card.creatable_types_on(&instance.at).unwrap().is_empty(), "it is full");
        // Its instance is not taken away under them.
        let gone = Change::DestroyGpuInstance(instance.at);
        assert!(card.change(&gone).unwrap_err().is_in_use());
    }
    assert_eq!(card.active_vgpus().unwrap().len(), 48);
    assert!(card.creatable_types().unwrap().is_empty());
}

#[test]
fn a_second_size_is_taken_only_by_an_instance_that_mixes_them() {
    let host = Host::new(&format!("cards: [{{{RTX}, mig: true}}]"));
    let card = host.control(CARD);
    let profiles = card.gpu_instance_profiles().unwrap();
    make(&card, "1g.24gb+gfx", 0).unwrap();
    make(&card, "1g.24gb+gfx", 3).unwrap();
    let (equal, mixed) = (place(&profiles, "1g.24gb+gfx", 0), place(&profiles, "1g.24gb+gfx", 3));
    card.change(&Change::MixedSizeOn { on: mixed, mixed: true }).unwrap();
    assert_eq!((card.mixed_size_on(&equal), card.mixed_size_on(&mixed)), (Ok(false), Ok(true)));
    let ids: Vec<u32> = card.gpu_instances().unwrap().iter().map(|instance| instance.id).collect();
    host.world(&format!(
        "cards: [{{{RTX}, mig: true, vgpus: [{{type: DC-1-6Q, gpuInstance: {}, placement: 6}}, {{type: DC-1-6Q, gpuInstance: {}, placement: 6}}]}}]",
        ids[0], ids[1]
    ));
    let (six, twelve) = (host.vgpu_type(CARD, "DC-1-6Q"), host.vgpu_type(CARD, "DC-1-12Q"));
    let creatable = |at: &Place| card.creatable_types_on(at).unwrap();
    assert!(creatable(&equal).contains(&six) && !creatable(&equal).contains(&twelve));
    assert!(creatable(&mixed).contains(&six) && creatable(&mixed).contains(&twelve));
    assert!(card.creatable_starts_on(&equal, twelve).unwrap_err().not_supported());
    assert_eq!(card.creatable_starts_on(&mixed, twelve).unwrap().starts, [12], "0 to 12 is in use");
    assert_eq!(card.creatable_starts_on(&mixed, six).unwrap().starts, [0, 12, 18]);
    // Not while somebody is there; and an instance made anew is of equal sizes.
    let off = Change::MixedSizeOn { on: mixed, mixed: false };
    assert!(card.change(&off).unwrap_err().is_in_use());
    host.world(&format!("cards: [{{{RTX}, mig: true}}]"));
    remove(&card, mixed);
    make(&card, "1g.24gb+gfx", 3).unwrap();
    assert_eq!(card.mixed_size_on(&mixed), Ok(false));
    // Time is shared by instance as well.
    let wanted = Scheduling { policy: 2, average: 0, frequency: 0 };
    card.change(&Change::SchedulerOn { on: mixed, wanted }).unwrap();
    assert_eq!((card.scheduler_on(&mixed), card.scheduler_on(&equal)), (Ok(2), Ok(1)));
    assert!(card.scheduler().unwrap_err().not_supported());
}

/// Whether a layout is legal, counted unit by unit.
fn is_legal(profiles: &[Profile], layout: &[Place]) -> bool {
    let of: Vec<&Profile> =
        layout.iter().map(|at| profiles.iter().find(|profile| profile.id == at.profile).unwrap()).collect();
    let mut units = BTreeSet::new();
    let apart = layout.iter().all(|at| (at.start..at.start + at.size).all(|unit| units.insert(unit)));
    let whole = profiles.iter().max_by_key(|profile| (profile.slices, profile.size)).unwrap();
    let sum = |part: &dyn Fn(&Profile) -> i32| of.iter().map(|profile| part(profile)).sum::<i32>();
    let engines = (0..4).all(|engine| sum(&|profile| profile.media[engine]) <= whole.media[engine]);
    let counts = of.iter().all(|one| {
        let same = of.iter().filter(|other| other.id == one.id).count();
        i32::try_from(same).unwrap() <= one.max
    });
    apart && engines && counts && sum(&|profile| profile.slices) <= whole.slices
}

/// Makes every legal layout that begins with this one, and asks of each that is full for all the rest.
fn every_layout(
    card: &Control,
    profiles: &[Profile],
    all: &[Place],
    layout: &mut Vec<Place>,
    seen: &mut usize,
) {
    *seen += 1;
    let last = layout.last().map_or(-1, |at| at.start);
    let mut full = true;
    for at in all {
        layout.push(*at);
        let legal = is_legal(profiles, layout);
        full &= !legal;
        if legal && at.start > last {
            let made = card.change(&Change::CreateGpuInstance(*at));
            assert!(made.is_ok(), "{layout:?}: {made:?}");
            every_layout(card, profiles, all, layout, seen);
            card.change(&Change::DestroyGpuInstance(*at)).unwrap();
        }
        layout.pop();
    }
    if full {
        for at in all {
            let refused = card.change(&Change::CreateGpuInstance(*at));
            assert!(refused.as_ref().is_err_and(NvmlFault::is_full), "{layout:?} and {at}: {refused:?}");
        }
    }
}

#[test]
fn every_legal_layout_is_taken_and_nothing_fits_on_a_full_one() {
    for (model, left_out) in [
        ("A30", &[][..]),
        ("A100 SXM4 40GB (HGX)", &["1g.5gb+me"][..]),
        ("H200 NVL 141GB", &["1g.18gb", "2g.35gb"][..]),
        (
            "RTX PRO 6000 Blackwell Server Edition 96GB",
            &["1g.24gb+me", "2g.48gb", "2g.48gb-me", "4g.96gb"][..],
        ),
    ] {
        let host = Host::new(&format!("cards: [{{model: {model}, address: '{CARD}', mig: true}}]"));
        let card = host.control(CARD);
        let mut profiles = card.gpu_instance_profiles().unwrap();
        let starts = |of: &Profile| {
            let Profile { id, size, .. } = *of;
            of.starts.iter().map(move |start| Place { profile: id, start: *start, size }).collect::<Vec<_>>()
        };
        let offered = profiles.iter().filter(|profile| !left_out.contains(&profile.name.as_str()));
        let all: Vec<Place> = offered.flat_map(starts).collect();
        profiles.sort_by_key(|profile| profile.id);
        let mut seen = 0;
        every_layout(&card, &profiles, &all, &mut vec![], &mut seen);
        assert!(seen > 30, "{model}: {seen} layouts");
    }
}

/// Ends its process at a change: before it begins (even numbers), or after it ended (odd ones).
struct Dies {
    at: usize,
    seen: AtomicUsize,
}

impl Dies {
    fn tick(&self) {
        if self.seen.fetch_add(1, Ordering::SeqCst) == self.at {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

impl ChangeLog for Dies {
    fn begins(&self, _: PciAddress, _: &Change) {
        self.tick();
    }

    fn ended(&self, _: PciAddress, _: &Change, _: Result<&Done, &NvmlFault>) {
        self.tick();
    }
}

/// A daemon that dies: makes a half of a card and takes a quarter away.
fn die(library: &Path, at: usize) {
    let log = Dies { at, seen: AtomicUsize::new(0) };
    let card = control(library, CARD, Arc::new(log)).unwrap();
    make(&card, "3g.40gb", 4).unwrap();
    let profiles = card.gpu_instance_profiles().unwrap();
    remove(&card, place(&profiles, "2g.20gb", 0));
}

#[test]
fn a_daemon_killed_at_any_change_finds_what_it_had_made() {
    // The daemon is this test once more, in a process of its own.
    if let (Ok(library), Ok(at)) = (std::env::var("DYING_LIBRARY"), std::env::var("DYING_AT")) {
        return die(Path::new(&library), at.parse().unwrap());
    }
    let world = format!("{{recorder: calls, cards: [{{{H100}}}]}}");
    for at in 0.. {
        let host = Host::new(&world);
        let card = host.control(CARD);
        make(&card, "2g.20gb", 0).unwrap();
        make(&card, "1g.10gb", 3).unwrap();
        let (before, neighbour) = (host.calls().len(), card.gpu_instances().unwrap()[1].clone());
        let mut dying = Command::new(std::env::current_exe().unwrap());
        dying.args(["--exact", "control::a_daemon_killed_at_any_change_finds_what_it_had_made", "--quiet"]);
        dying.env("DYING_LIBRARY", host.path()).env("DYING_AT", at.to_string());
        let ended = dying.output().unwrap();
        // Made again by who knows nothing but what is wanted, and what there is.
        make(&card, "3g.40gb", 4).unwrap();
        let profiles = card.gpu_instance_profiles().unwrap();
        remove(&card, place(&profiles, "2g.20gb", 0));
        let live = card.gpu_instances().unwrap();
        let places: Vec<Place> = live.iter().map(|instance| instance.at).collect();
        assert_eq!(
            places,
            [place(&profiles, "1g.10gb", 3), place(&profiles, "3g.40gb", 4)],
            "killed at {at}"
        );
        assert_eq!(live[0], neighbour, "killed at {at}");
        assert_eq!(live[1].compute.len(), 1, "killed at {at}");
        // No call twice: two to make, two to unmake.
        let calls = &host.calls()[before..];
        assert_eq!(
            (calls.len(), calls.iter().all(|call| call.ends_with("= 0"))),
            (4, true),
            "killed at {at}: {calls:?}"
        );
        if ended.status.success() {
            assert_eq!(at, 8, "before and after each of four changes");
            break;
        }
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended.status), Some(9), "{ended:?}");
    }
}

#[test]
fn a_mode_that_waits_says_for_what_and_an_old_driver_which_one_is_needed() {
    let a100 = "model: A100 SXM4 80GB (HGX), address: '0000:41:00.0'";
    let host = Host::new(&format!("cards: [{{{a100}, inUse: true}}]"));
    let card = host.control(CARD);
    assert_eq!(card.mig_without_reset(), Some(false));
    let on = Change::MigMode(true);
    assert_eq!(card.change(&on), Ok(Done::Activation(Activation::Pending(Waiting::InUse))));
    assert_eq!(card.mig_mode(), Ok(MigMode { current: false, pending: true }));
    assert_eq!(card.gpu_instances(), Ok(vec![]));
    let at = Place { profile: 9, start: 4, size: 4 };
    assert!(card.change(&Change::CreateGpuInstance(at)).unwrap_err().not_supported());
    host.world(&format!("cards: [{{{a100}}}]"));
    assert_eq!(card.change(&on), Ok(Done::Activation(Activation::Done)));
    host.world(&format!("{{missing: [nvmlDeviceCreateGpuInstanceWithPlacement], cards: [{{{a100}}}]}}"));
    let fault = card.change(&Change::CreateGpuInstance(at)).unwrap_err();
    assert!(fault.to_string().ends_with("it needs release 460 or later"), "{fault}");
    host.world(&format!("{{privileged: false, cards: [{{{a100}}}]}}"));
    let fault = card.change(&Change::CreateGpuInstance(at)).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "card 0000:41:00.0: nvmlDeviceCreateGpuInstanceWithPlacement: no permission (return code 4)"
    );
    assert!(control(&host.path(), "0000:99:00.0", Arc::new(())).is_err());
}

#[test]
fn a_compute_instance_that_took_the_number_of_another_is_left_alone() {
    let host = Host::new(&format!("cards: [{{{H100}, mig: true}}]"));
    let card = host.control(CARD);
    make(&card, "3g.40gb", 4).unwrap();
    let there = card.gpu_instances().unwrap().remove(0);
    let other = Change::DestroyComputeInstance { on: there.at, id: 0, uuid: Some("MIG-of-another".into()) };
    assert!(matches!(card.change(&other), Err(NvmlFault::Another { .. })));
    assert_eq!(card.gpu_instances().unwrap(), [there]);
    // Held by who is in no list: the compute instance goes, the rest is resumed when it is let go.
    let id = card.gpu_instances().unwrap()[0].id;
    host.world(&format!("cards: [{{{H100}, mig: true, leaked: [{id}]}}]"));
    let profiles = card.gpu_instance_profiles().unwrap();
    let undo = Rules::new(&profiles).removal(&idle(&card), place(&profiles, "3g.40gb", 4)).unwrap();
    card.change(&undo[0]).unwrap();
    assert!(card.change(&undo[1]).unwrap_err().is_in_use());
    assert_eq!((card.processes().unwrap(), card.gpu_instances().unwrap()[0].compute.len()), (vec![], 0));
    host.world(&format!("cards: [{{{H100}, mig: true}}]"));
    remove(&card, place(&profiles, "3g.40gb", 4));
    assert_eq!(card.gpu_instances().unwrap(), []);
}

#[test]
fn settings_of_an_admin_are_set_read_and_taken_back() {
    let host = Host::new(
        "{recorder: calls, cards: [{model: L40S, address: '0000:41:00.0', processes: [{pid: 12}, {pid: 13, graphics: true}]}]}",
    );
    let card = host.control(CARD);
    let before = card.power_limits().unwrap();
    for change in [
        Change::Persistence(true),
        Change::PowerLimit { milliwatts: before.least },
        Change::LockClocks { least_mhz: 600, most_mhz: 1200 },
        Change::Scheduler(Scheduling { policy: 3, average: 0, frequency: 0 }),
    ] {
        assert_eq!(card.change(&change), Ok(Done::Plainly), "{change}");
    }
    assert_eq!(
        (card.persistence(), card.power_limits().unwrap().limit, card.scheduler()),
        (Ok(true), before.least, Ok(3))
    );
    let too_much = Change::PowerLimit { milliwatts: before.most + 1 };
    assert_eq!(card.change(&too_much).unwrap_err().number(), Some(2));
    card.change(&Change::ResetClocks).unwrap();
    assert!(
        host.calls()[2].contains("nvmlDeviceSetGpuLockedClocks 0000:41:00.0 600 1200 = 0"),
        "{:?}",
        host.calls()
    );
    let pids: Vec<(u32, bool)> =
        card.processes().unwrap().iter().map(|process| (process.pid, process.graphics)).collect();
    assert_eq!(pids, [(12, false), (13, true)]);
    assert!(!card.vgpu_capability(10).unwrap());
    // Without the newer functions the older ones do it.
    let newer = "nvmlDeviceSetVgpuSchedulerState_v2, nvmlDeviceGetVgpuSchedulerState_v2";
    host.world(&format!("{{missing: [{newer}], cards: [{{model: L40S, address: '0000:41:00.0'}}]}}"));
    card.change(&Change::Scheduler(Scheduling { policy: 2, average: 33, frequency: 480 })).unwrap();
    assert_eq!(card.scheduler(), Ok(2));
}

#[test]
fn a_gpu_instance_has_a_scheduler_of_its_own_where_several_vgpus_share_one() {
    let host = Host::new(&format!("cards: [{{{RTX}, mig: true}}]"));
    let (driver, card) = (host.driver(), CARD.parse().unwrap());
    make(&host.control(CARD), "1g.24gb+gfx", 0).unwrap();
    let seen = || driver.gpu_instances(card).unwrap().remove(0);
    let id = seen().id;
    assert_eq!(seen().scheduler, Some(VgpuScheduler::BestEffort));
    driver.set_instance_scheduler(card, id, VgpuScheduler::FixedShare).unwrap();
    assert_eq!(seen().scheduler, Some(VgpuScheduler::FixedShare));
    assert_eq!(driver.scheduler(card).unwrap(), None, "the card has none meanwhile");
    host.world(&format!("cards: [{{{RTX}, mig: true, vgpus: [{}]}}]", vgpus("DC-1-2Q", &[(id, 1)])));
    assert!(driver.set_instance_scheduler(card, id, VgpuScheduler::EqualShare).is_err(), "a vGPU is on it");
    assert_eq!(seen().scheduler, Some(VgpuScheduler::FixedShare));
    // It goes with the instance.
    host.world(&format!("cards: [{{{RTX}, mig: true}}]"));
    driver.destroy_gpu_instance(card, id).unwrap();
    make(&host.control(CARD), "1g.24gb+gfx", 0).unwrap();
    assert_eq!(seen().scheduler, Some(VgpuScheduler::BestEffort));
    assert!(driver.set_instance_scheduler(card, 99, VgpuScheduler::EqualShare).is_err());
    // Where an instance holds one vGPU there is no time to share.
    let alone = Host::new(&format!("cards: [{{{H100}, mig: true}}]"));
    make(&alone.control(CARD), "1g.10gb", 0).unwrap();
    let seen = alone.driver().gpu_instances(card).unwrap().remove(0);
    assert_eq!(seen.scheduler, None);
    let refused = alone.driver().set_instance_scheduler(card, seen.id, VgpuScheduler::EqualShare);
    assert!(refused.is_err());
    let told = |host: &Host| {
        let nvml = Nvml::open(Some(&host.path())).unwrap().unwrap();
        nvml.read_card(card).unwrap().unwrap().vgpu.unwrap().on_instances
    };
    assert_eq!((told(&host), told(&alone)), (Some(true), Some(false)));
}
