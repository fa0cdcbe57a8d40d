//! Partitions of a fabric: made active before the cards of a desktop leave their driver, and no more once all are back,
//! wherever the daemon is killed and whatever the manager forgets.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex},
};

use gpudesk_crds::{
    GpuNodeSpec,
    gpu_node_status::CardFabric,
    types::{PciAddress, ShareMode},
};
use gpudesk_inventory::topology::HostFacts;

use super::{
    engine::Devices,
    fake_kernel::{FakeKernel, Fun, at},
    scenarios::{CARD, kernel, share},
    tests::{self, settle, shares},
};
use crate::host::{
    fabric::{FabricError, FabricManager, Member, Partition},
    gpu_driver::{GpuDriver, InstanceKey, WantedInstance, WantedPartition},
};

const OTHER: &str = "0000:81:00.0";
/// Both cards; each of them alone.
const BOTH: u32 = 3;
const FIRST: u32 = 7;

/// A manager that refuses what the real one does, and what it is not known to take.
struct FakeFabric {
    kernel: Arc<FakeKernel>,
    state: Mutex<State>,
}

#[derive(Clone, Default)]
struct State {
    active: BTreeSet<u32>,
    /// It began anew and was not told.
    waits: bool,
    absent: bool,
    by_number: bool,
    said: Vec<String>,
}

fn cards_of(id: u32) -> &'static [&'static str] {
    match id {
        BOTH => &[CARD, OTHER],
        FIRST => &[CARD],
        _ => &[OTHER],
    }
}

impl FakeFabric {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn ready(&self) -> Result<std::sync::MutexGuard<'_, State>, FabricError> {
        let state = self.state();
        match (state.absent, state.waits) {
            (true, _) => Err(FabricError::Absent("libnvfm.so.1 is not to be had".into())),
            (_, true) => Err(FabricError::NotConfigured),
            _ => Ok(state),
        }
    }

    /// All cards of a partition are with NVIDIA's driver.
    fn are_home(&self, id: u32) -> bool {
        let world = self.kernel.world();
        cards_of(id).iter().all(|card| world.functions[&at(card)].driver.as_deref() == Some("nvidia"))
    }

    fn said(&self) -> Vec<String> {
        std::mem::take(&mut self.state().said)
    }
}

impl FabricManager for FakeFabric {
    fn partitions(&self) -> Result<Vec<Partition>, FabricError> {
        let state = self.ready()?;
        let member = |card: &&str| Member {
            physical_id: if *card == CARD { 1 } else { 2 },
            uuid: String::new(),
            pci: (!state.by_number).then(|| format!("0000{card}")),
        };
        let all = [BOTH, FIRST, 8];
        let list = all.map(|id| Partition {
            id,
            active: state.active.contains(&id),
            members: cards_of(id).iter().map(member).collect(),
        });
        Ok(list.to_vec())
    }

    fn activate(&self, id: u32) -> Result<(), FabricError> {
        let persistent = |card: &&str| self.kernel.world().functions[&at(card)].persistence == Some(true);
        let free = self.are_home(id) && !cards_of(id).iter().any(persistent);
        let mut state = self.ready()?;
        state.said.push(format!("activate {id}"));
        let overlaps = |other: &u32| cards_of(*other).iter().any(|card| cards_of(id).contains(card));
        if !free || state.active.iter().any(overlaps) {
            return Err(FabricError::Refused("in use".into()));
        }
        state.active.insert(id);
        Ok(())
    }

    fn deactivate(&self, id: u32) -> Result<(), FabricError> {
        let home = self.are_home(id);
        let mut state = self.ready()?;
        state.said.push(format!("deactivate {id}"));
        if !home || !state.active.remove(&id) {
            return Err(FabricError::Refused("not active, or in use".into()));
        }
        Ok(())
    }

    fn restore(&self, active: &[u32]) -> Result<(), FabricError> {
        let mut state = self.state();
        state.said.push(format!("restore {active:?}"));
        if !state.waits {
            return Err(FabricError::Refused("not supported".into()));
        }
        (state.active, state.waits) = (active.iter().copied().collect(), false);
        Ok(())
    }
}

fn host() -> Arc<FakeFabric> {
    let card = |group| Fun { persistence: Some(true), ..Fun::new(("10de", "2330"), Some("nvidia"), group) };
    let kernel = kernel(vec![(CARD, card(41)), (OTHER, card(81))]);
    Arc::new(FakeFabric { kernel, state: Mutex::default() })
}

fn facts(fabric: &FakeFabric) -> HostFacts {
    let mut facts = tests::facts(&fabric.kernel);
    for card in &mut facts.cards {
        let is_home = card.driver.as_deref() == Some("nvidia");
        card.uuid = is_home.then(|| format!("GPU-{}", card.pci_address.bus));
        card.module_id = is_home.then_some(if card.pci_address == at(CARD) { 1 } else { 2 });
        card.fabric = Some(CardFabric { state: "Completed".into(), ..CardFabric::default() });
    }
    facts
}

fn start(fabric: &Arc<FakeFabric>, folder: &Path) -> Devices {
    let devices = tests::start(&fabric.kernel, folder).with_fabric(Arc::<FakeFabric>::clone(fabric));
    devices.complete(&mut facts(fabric));
    devices
}

/// The whole cards of a desktop that form a partition.
fn wanted(desktop: &str, id: u32) -> Vec<WantedInstance> {
    let cards: Vec<PciAddress> = cards_of(id).iter().map(|card| at(card)).collect();
    let one = |card: &PciAddress| WantedInstance {
        key: InstanceKey { desktop_uid: desktop.into(), request: card.to_string() },
        card: *card,
        partition: Some(WantedPartition { id, cards: cards.clone() }),
        ..share(ShareMode::Passthrough, "Passthrough", None, None)
    };
    cards.iter().map(one).collect()
}

fn create(devices: &Devices, all: &[WantedInstance]) -> Result<(), String> {
    all.iter().try_for_each(|one| devices.create(one).map(drop).map_err(|error| error.to_string()))
}

fn destroy(devices: &Devices, all: &[WantedInstance]) -> Result<(), String> {
    all.iter().try_for_each(|one| devices.destroy(&one.key).map_err(|error| error.to_string()))
}

#[test]
fn a_partition_is_active_from_before_the_first_card_is_given_until_after_the_last_is_back() {
    let fabric = host();
    let (folder, before) = (tempfile::tempdir().unwrap(), fabric.kernel.world());
    let devices = start(&fabric, folder.path());
    let both = wanted("anna", BOTH);
    create(&devices, &both).unwrap();
    assert_eq!(fabric.said(), ["activate 3"]);
    let written = fabric.kernel.written();
    assert_eq!(written[..2], ["nvml 41:00.0 = persistence false", "nvml 81:00.0 = persistence false"]);
    // It is told in the status, and nothing is done twice.
    let mut seen = facts(&fabric);
    devices.complete(&mut seen);
    let told = seen.fabric.unwrap().partitions;
    let told: Vec<_> = told.iter().map(|one| (one.id, one.module_ids.clone(), one.active.unwrap())).collect();
    assert_eq!(told, [(3, vec![1, 2], true), (7, vec![1], false), (8, vec![2], false)]);
    assert!(devices.withheld(&facts(&fabric)).is_empty(), "it is not foreign");
    create(&devices, &both).unwrap();
    destroy(&devices, &both[..1]).unwrap();
    assert_eq!(fabric.said(), Vec::<String>::new(), "the other card is still with its desktop");
    destroy(&devices, &both[1..]).unwrap();
    assert_eq!(fabric.said(), ["deactivate 3"]);
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!((fabric.kernel.world(), fabric.said()), (before, vec![]));
    // Where the manager knows no addresses, its numbers are those of the modules.
    fabric.state().by_number = true;
    create(&devices, &wanted("bert", FIRST)).unwrap();
    assert_eq!(fabric.said(), ["activate 7"]);
}

#[test]
fn killed_at_any_point_it_goes_on_or_takes_all_back() {
    for ended in [false, true] {
        for points in 1.. {
            let fabric = host();
            let (folder, before) = (tempfile::tempdir().unwrap(), fabric.kernel.world());
            let both = wanted("anna", BOTH);
            let killed = start(&fabric, folder.path());
            killed.engine.fuse.set(points);
            let result = create(&killed, &both).and_then(|()| destroy(&killed, &both));
            if !killed.engine.fuse.is_blown() {
                result.unwrap();
                break;
            }
            let devices = start(&fabric, folder.path());
            settle(&devices, &GpuNodeSpec::default());
            if !ended {
                create(&devices, &both).unwrap_or_else(|error| panic!("killed at {points}: {error}"));
                assert_eq!(fabric.state().active, [BOTH].into(), "killed at {points}");
                assert_eq!(shares(&devices), 2);
            }
            destroy(&devices, &both).unwrap_or_else(|error| panic!("killed at {points}: {error}"));
            settle(&devices, &GpuNodeSpec::default());
            assert_eq!(fabric.kernel.world(), before, "killed at {points}, {ended}");
            assert_eq!(fabric.state().active, BTreeSet::new(), "killed at {points}, {ended}");
            let journal = devices.engine.journal().unwrap();
            assert!(
                journal.fabric.own.is_empty() && journal.cards.values().all(|card| card.changes.is_empty())
            );
        }
    }
}

#[test]
fn a_manager_that_began_anew_is_told_all_that_was_active_and_a_host_that_did_is_joined_again() {
    let fabric = host();
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&fabric, folder.path());
    let first = wanted("anna", FIRST);
    // Somebody else has the other card.
    fabric.state().active.insert(8);
    create(&devices, &first).unwrap();
    fabric.said();
    {
        let mut state = fabric.state();
        (state.active, state.waits) = (BTreeSet::new(), true);
    }
    let again = start(&fabric, folder.path());
    assert_eq!(fabric.said(), ["restore [7, 8]"], "its own and theirs");
    assert_eq!(fabric.state().active, [7, 8].into());
    // One that forgets does not join cards anew under a guest, and it is told.
    fabric.state().active = [8].into();
    again.complete(&mut facts(&fabric));
    settle(&again, &GpuNodeSpec::default());
    create(&again, &first).unwrap();
    assert_eq!(fabric.said(), Vec::<String>::new());
    let withheld = again.withheld(&facts(&fabric));
    assert!(withheld[&at(CARD)].contains("fabric partition 7, which a desktop has, is not active any more"));
    destroy(&again, &first).unwrap();
    create(&again, &first).unwrap();
    assert_eq!(fabric.said(), ["activate 7"], "with the next start");
    // After a reboot nothing is active, and cards are with their driver.
    fabric.state().active = BTreeSet::new();
    let fresh = host();
    fabric.kernel.change(|world| {
        *world = fresh.kernel.world();
        world.boot = "another".into();
    });
    let rebooted = start(&fabric, folder.path());
    settle(&rebooted, &GpuNodeSpec::default());
    assert_eq!((fabric.said(), shares(&rebooted)), (vec!["activate 7".to_owned()], 1));
    assert_eq!(fabric.kernel.world().functions[&at(CARD)].driver.as_deref(), Some("vfio-pci"));
}

#[test]
fn what_the_manager_does_not_list_or_somebody_else_has_is_refused_and_left_as_it_is() {
    let refused = |fabric: &Arc<FakeFabric>, all: &[WantedInstance], words: &str| {
        let folder = tempfile::tempdir().unwrap();
        let (before, active) = (fabric.kernel.world(), fabric.state().active.clone());
        let devices = start(fabric, folder.path());
        let error = create(&devices, all).expect_err(words);
        assert!(error.contains(words), "{words:?} is missing in {error:?}");
        settle(&devices, &GpuNodeSpec::default());
        assert_eq!((fabric.kernel.world(), shares(&devices)), (before, 0), "{words}");
        assert_eq!(fabric.state().active, active, "{words}");
        devices
    };
    let fabric = host();
    let mut unlisted = wanted("anna", BOTH);
    unlisted[0].partition.as_mut().unwrap().id = 12;
    refused(&fabric, &unlisted, "has no partition 12; it has 3, 7, 8");
    let mut other = wanted("anna", FIRST);
    other[0].partition.as_mut().unwrap().id = BOTH;
    refused(
        &fabric,
        &other,
        "fabric partition 3 is of 0000:41:00.0, 0000:81:00.0, and the desktop has 0000:41:00.0",
    );
    let mut alone = wanted("anna", FIRST);
    alone[0].partition = None;
    refused(&fabric, &alone, "goes to a guest whole only in a partition");
    assert_eq!(fabric.said(), Vec::<String>::new());
    fabric.state().active = [FIRST].into();
    let devices = refused(&fabric, &wanted("anna", FIRST), "fabric partition 7 is active, not by gpudesk");
    assert!(
        devices.withheld(&facts(&fabric))[&at(CARD)]
            .contains("fabric partition 7, which is active, not by gpudesk")
    );
    refused(
        &fabric,
        &wanted("anna", BOTH),
        "fabric partition 7, which is active and has cards of partition 3,",
    );
    assert_eq!(fabric.said(), Vec::<String>::new(), "what is theirs is never touched");
    // Without the manager, or where it waits for somebody else's list.
    let fabric = host();
    fabric.state().absent = true;
    let devices = refused(&fabric, &wanted("anna", BOTH), "libnvfm.so.1 is not to be had");
    let told = devices.states(&facts(&fabric), &crate::foreign_domains::ForeignDomains::default());
    let why = told[&at(CARD)].not_whole.clone().unwrap();
    assert!(why.contains("only in a partition: libnvfm.so.1 is not to be had"), "{why}");
    let fabric = host();
    fabric.state().waits = true;
    refused(&fabric, &wanted("anna", BOTH), "waits to be told which partitions were active");
    assert_eq!(fabric.said(), Vec::<String>::new(), "nobody knows what was active");
}

#[test]
fn a_card_that_does_not_come_back_keeps_its_partition_until_it_does() {
    let fabric = host();
    let folder = tempfile::tempdir().unwrap();
    let devices = start(&fabric, folder.path());
    fabric.kernel.change(|world| world.functions.get_mut(&at(CARD)).unwrap().lost_by_reset = true);
    let both = wanted("anna", BOTH);
    create(&devices, &both).unwrap();
    destroy(&devices, &both).unwrap();
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!((shares(&devices), fabric.state().active.clone()), (0, [BOTH].into()));
    fabric.kernel.change(|world| {
        let card = world.functions.get_mut(&at(CARD)).unwrap();
        (card.lost, card.lost_by_reset) = (false, false);
    });
    settle(&devices, &GpuNodeSpec::default());
    assert_eq!((devices.figures().quarantined, fabric.state().active.len()), (0, 0));
}
