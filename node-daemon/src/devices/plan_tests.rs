//! Properties of plans: whatever is there and was noted down, nothing foreign and nothing in use is touched, and what a
//! plan comes to needs no other.

use std::collections::BTreeMap;

use gpudesk_crds::types::{PciAddress, ShareMode};
use jiff::Timestamp;
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    handed::Adopted,
    journal::{Claim, Entry, Journal, Reset, State},
    live::{Control, Function, LiveCard, Mdev, MdevType, Quotas, Sriov, VendorVgpu, VirtualFunction},
    plan::{Wanted, plan},
    rehearse,
    scenarios::share,
    step::{Setting, Step},
};

const CARD: &str = "0000:41:00.0";
const FOREIGN: &str = "11111111-2222-4333-8444-555555555555";

fn at(n: u32) -> PciAddress {
    CARD.parse::<PciAddress>().unwrap().further(n).unwrap()
}

fn function(n: u32, drivers: &'static [Option<&'static str>]) -> impl Strategy<Value = Function> {
    let driver = select(drivers);
    let reserved = select(&[None, None, Some("vfio-pci"), Some("other")][..]);
    let held = select(&[None, None, None, Some(7_u32)][..]);
    (driver, reserved, held, any::<bool>(), any::<bool>()).prop_map(
        move |(driver, reserved, held_by, d3cold, auto)| Function {
            address: at(n),
            class: if n == 1 { "0403".into() } else { "0302".into() },
            vendor: "10de".into(),
            device: "26b9".into(),
            driver: driver.map(Into::into),
            driver_override: reserved.map(Into::into),
            d3cold: Some(d3cold),
            power: Some(if auto { "auto".into() } else { "on".into() }),
            reset_methods: vec!["flr".into()],
            held_by,
            locked: driver == Some("nvidia") && d3cold && auto,
        },
    )
}

const VENDOR: u32 = 1155;

fn virtual_function(n: u32, framework: u8) -> impl Strategy<Value = VirtualFunction> {
    let drivers: &'static [Option<&'static str>] =
        if framework == 0 { &[Some("nvidia")] } else { &[None, Some("xe"), Some("vfio-pci")] };
    let current = select(&[0, 0, VENDOR, 99][..]);
    (function(n, drivers), current, any::<bool>()).prop_map(move |(function, current, offers)| {
        VirtualFunction {
            function: Function { locked: false, ..function },
            alone: true,
            vgpu: (framework == 0).then(|| VendorVgpu {
                current: Some(current),
                creatable: if offers { BTreeMap::from([(VENDOR, "X-8Q".into())]) } else { BTreeMap::new() },
                placement: (current != 0).then_some(0),
                gpu_instance: None,
                params: None,
            }),
            mdev_types: vec![],
            quotas: Quotas::default(),
        }
    })
}

fn live() -> impl Strategy<Value = LiveCard> {
    (0..4_u8, 0..3_u32).prop_flat_map(|(framework, on)| {
        let card = function(0, &[None, Some("nvidia"), Some("amdgpu"), Some("vfio-pci")]);
        let sound = option::of(function(1, &[None, Some("snd_hda_intel"), Some("vfio-pci")]));
        let vfs = if framework < 2 { on } else { 0 };
        let vfs: Vec<_> = (0..vfs).map(|n| virtual_function(4 + n, framework)).collect();
        let types = vec![MdevType { id: "nvidia-1".into(), name: "X-8Q".into(), available: 1 }];
        (card, sound, vfs, any::<bool>(), any::<bool>(), option::of(any::<bool>())).prop_map(
            move |(function, sound, virtual_functions, has_mdev, answers, mixed_size)| LiveCard {
                function,
                answers,
                boot_vga: false,
                group: Some(41),
                members: sound.into_iter().collect(),
                resizable: None,
                sriov: Some(Sriov {
                    total: 8,
                    on: u32::try_from(virtual_functions.len()).unwrap(),
                    autoprobe: Some(answers),
                    quotas: false,
                }),
                virtual_functions,
                mdev_types: if framework == 2 { types.clone() } else { vec![] },
                mdevs: if framework == 2 && has_mdev {
                    vec![Mdev {
                        uuid: FOREIGN.into(),
                        parent: at(0),
                        type_id: Some("nvidia-1".into()),
                        params: None,
                        held_by: None,
                    }]
                } else {
                    vec![]
                },
                control: Control { mixed_size, persistence: Some(answers), ..Control::default() },
                has_vfio: true,
                has_stub: true,
                control_fault: None,
                uuid: None,
                along_in_use: None,
                drive: None,
                network: None,
            },
        )
    })
}

fn entry(name: &'static str) -> impl Strategy<Value = Entry> {
    let mode = select(&[ShareMode::Passthrough, ShareMode::Vgpu, ShareMode::VirtualFunctions][..]);
    let claim = option::of(4..7_u32);
    (mode, claim, option::of(0..2), any::<bool>(), any::<bool>()).prop_map(
        move |(mode, claim, start, cleaned, made)| {
            let type_name = match mode {
                ShareMode::Passthrough => "Passthrough",
                ShareMode::VirtualFunctions => "2VF",
                ShareMode::Vgpu | ShareMode::Mig => "X-8Q",
            };
            let mut wanted = share(mode, type_name, start.filter(|_| mode == ShareMode::Vgpu), None);
            wanted.key.request = name.into();
            let mut entry = Entry::new(&wanted, None);
            entry.cleaned = if cleaned { (0..8).map(at).collect() } else { vec![] };
            entry.state = if made { State::Made } else { State::Wanted };
            entry.claim = match mode {
                ShareMode::Passthrough => Some(Claim::Card),
                ShareMode::VirtualFunctions => claim.map(|n| Claim::Function(at(n))),
                ShareMode::Vgpu | ShareMode::Mig => {
                    claim.map(|n| Claim::Vgpu { function: at(n), id: VENDOR })
                }
            };
            entry
        },
    )
}

/// A journal of one share and perhaps another, with changes of functions that are what a daemon could have noted.
fn journal() -> impl Strategy<Value = Journal> {
    let drivers = select(&[None, Some("nvidia"), Some("xe"), Some("snd_hda_intel")][..]);
    let changed = vec((select(&[0, 1, 4, 5][..]), drivers, any::<bool>()), 0..3);
    (entry("a"), option::of(entry("b")), changed, any::<bool>()).prop_map(
        |(one, other, changed, functions)| {
            let mut journal = Journal::new("boot");
            let key = one.key.clone();
            journal.shares.push(one);
            journal.shares.extend(other);
            let card = journal.cards.entry(at(0)).or_default();
            card.ids = "10de:26b9".into();
            for (n, driver, stranded) in changed {
                let of = if stranded { None } else { Some(key.clone()) };
                for (setting, before) in [
                    (Setting::Driver(at(n)), driver.map(String::from)),
                    (Setting::Override(at(n)), None),
                    (Setting::D3cold(at(n)), Some("true".into())),
                    (Setting::Power(at(n)), Some("auto".into())),
                ] {
                    if !card.changes.iter().any(|change| change.setting == setting) {
                        card.changes.push(super::journal::Change { setting, before, of: of.clone() });
                    }
                }
            }
            if functions {
                card.changes.push(super::journal::Change {
                    setting: Setting::NumVfs,
                    before: Some("0".into()),
                    of: None,
                });
            }
            journal
        },
    )
}

/// Why a step may not be.
fn wrong(step: &Step, live: &LiveCard, journal: &Journal) -> Option<String> {
    let changed = |function: PciAddress| journal.has_changed(at(0), Setting::Driver(function));
    let claimed = |wanted: &Claim| journal.shares.iter().any(|entry| entry.claim.as_ref() == Some(wanted));
    let held = |address: PciAddress| live.find(address).is_some_and(|function| function.held_by.is_some());
    let bad = |is: bool, why: &str| is.then(|| format!("{step}: {why}"));
    match step {
        Step::Unbind { function, .. } | Step::Reset { function } | Step::Registers { function } => {
            let vfio = live.find(*function).is_some_and(Function::is_vfio);
            bad(held(*function), "in use").or_else(|| bad(vfio && !changed(*function), "foreign"))
        }
        Step::Override { function, .. } => {
            let vfio = live.find(*function).is_some_and(Function::is_vfio);
            bad(vfio && !changed(*function), "foreign")
        }
        Step::VgpuType { function, .. } => {
            let now = live.virtual_function(*function)?.vgpu.as_ref()?.current;
            bad(now != Some(0), "foreign").or_else(|| bad(held(*function), "in use"))
        }
        Step::VgpuClear { function } | Step::VgpuStart { function, .. } => {
            let now = live.virtual_function(*function)?.vgpu.as_ref()?.current.unwrap_or(0);
            let ours = claimed(&Claim::Vgpu { function: *function, id: now }) || now == 0;
            bad(!ours, "foreign").or_else(|| bad(held(*function), "in use"))
        }
        Step::MdevRemove { uuid } => bad(uuid == FOREIGN, "foreign"),
        Step::NumVfs { .. } => {
            let used = |vf: &VirtualFunction| {
                let typed = vf.vgpu.as_ref().is_some_and(|vgpu| vgpu.current != Some(0));
                let own = journal
                    .shares
                    .iter()
                    .any(|entry| entry.claim.as_ref().and_then(Claim::function) == Some(vf.function.address));
                !own && (typed || vf.function.is_vfio() || vf.function.held_by.is_some())
            };
            bad(live.virtual_functions.iter().any(used), "somebody uses them")
        }
        _ => None,
    }
}

/// The card and its journal after a step, where everything obeys.
fn apply(live: &mut LiveCard, journal: &mut Journal, step: &Step) {
    if let Step::Reset { function } = step {
        journal.shares.iter_mut().for_each(|entry| entry.cleaned.push(*function));
    }
    if let Step::Registers { function } = step {
        journal.note_registers(at(0), *function, None);
    }
    rehearse::apply(live, step);
    // Which driver of the host takes it is the kernel's to say.
    if let Step::Probe { function, driver: None } = step {
        let named = Step::Probe { function: *function, driver: Some("host".into()) };
        rehearse::apply(live, &named);
    }
}

/// Something that was handed over, whether it is there or not.
fn adopted() -> impl Strategy<Value = Adopted> {
    let function =
        select(&[0, 1, 4, 5][..]).prop_map(|n| Adopted::Function { function: at(n), cleaned: false });
    let vgpu = (4..6_u32, select(&[VENDOR, 99][..]));
    let vgpu = vgpu.prop_map(|(n, id)| Adopted::Vgpu { function: at(n), id });
    let mdev = Just(Adopted::Mdev { uuid: FOREIGN.into(), parent: at(0), type_id: Some("nvidia-1".into()) });
    prop_oneof![function, vgpu, mdev]
}

/// Why a step is none that unmakes what was handed over.
fn not_handed_over(step: &Step, live: &LiveCard, journal: &Journal) -> Option<String> {
    let adopted = journal.adopted(at(0));
    let held = |address: PciAddress| live.find(address).is_some_and(|function| function.held_by.is_some());
    let is_fine = match step {
        Step::Unlock { .. } => true,
        Step::Reset { function }
        | Step::Override { function, .. }
        | Step::Unbind { function, .. }
        | Step::Probe { function, driver: None } => {
            let is_it =
                |one: &Adopted| matches!(one, Adopted::Function { function: of, .. } if of == function);
            adopted.iter().any(is_it)
                && live.find(*function).is_some_and(|one| one.is_vfio() || one.driver.is_none())
                && (!held(*function) || matches!(step, Step::Probe { .. }))
        }
        Step::VgpuClear { function } => {
            let id = live.virtual_function(*function)?.vgpu.as_ref()?.current?;
            let claim = Claim::Vgpu { function: *function, id };
            adopted.contains(&Adopted::Vgpu { function: *function, id })
                && !held(*function)
                && journal.shares.iter().all(|entry| entry.claim.as_ref() != Some(&claim))
        }
        Step::MdevRemove { uuid } => {
            adopted.iter().any(|one| matches!(one, Adopted::Mdev { uuid: of, .. } if of == uuid))
        }
        _ => false,
    };
    (!is_fine).then(|| step.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_foreign_or_in_use_is_touched_and_a_plan_comes_to_its_end(
        mut live in live(), mut journal in journal(), goal in 0..3_u8,
    ) {
        let key = journal.shares[0].key.clone();
        if goal == 2 {
            journal.shares.clear();
            let card = journal.cards.get_mut(&at(0)).unwrap();
            card.changes.retain(|change| change.of.is_none());
        }
        let mut left = 100;
        loop {
            let entry = journal.entry(&key).cloned();
            let wanted = match (goal, &entry) {
                (0, Some(entry)) => Wanted::There(entry),
                (1, Some(entry)) => Wanted::Gone(entry),
                _ => Wanted::Home,
            };
            // A refusal does nothing.
            let Ok(steps) = plan(&live, &journal, wanted) else { break };
            let Some(step) = steps.first().cloned() else { break };
            prop_assert_eq!(wrong(&step, &live, &journal), None);
            left -= 1;
            prop_assert!(left > 0, "it does not end: {}", step);
            let before = live.clone();
            journal.begin(at(0), entry.as_ref().map(|entry| &entry.key), &step, &live, goal == 0);
            apply(&mut live, &mut journal, &step);
            // What a step changed is taken back by its own undoing.
            if let Some((setting, value)) = step.changes(&before)
                && let Some(undo) = step.undo(&before)
                && !matches!(setting, Setting::NumVfs | Setting::Driver(_))
            {
                let mut undone = live.clone();
                apply(&mut undone, &mut journal.clone(), &undo);
                prop_assert_eq!(undo.changes(&undone), Some((setting, value)));
            }
        }
    }

    #[test]
    fn only_what_was_handed_over_and_is_free_is_unmade(
        mut live in live(), mut journal in journal(), adopted in vec(adopted(), 1..4),
    ) {
        journal.cards.get_mut(&at(0)).unwrap().adopted = adopted;
        let mut left = 40;
        while let Ok(steps) = plan(&live, &journal, Wanted::Adopted) {
            let Some(step) = steps.first() else { break };
            prop_assert_eq!(not_handed_over(step, &live, &journal), None);
            left -= 1;
            prop_assert!(left > 0, "it does not end: {}", step);
            if let Step::Reset { function } = step {
                let reset = Reset { method: "flr".into(), at: Timestamp::UNIX_EPOCH, verified: vec![], fault: None };
                journal.note_reset(at(0), None, Some(*function), reset);
            }
            apply(&mut live, &mut journal, step);
        }
    }
}
