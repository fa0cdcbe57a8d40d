use gpudesk_crds::{
    GpuNodeStatus,
    gpu_node_status::{
        CardReset, CardUnits, CardWait, Device, Ecc, ForeignDevice, Hugepages, Instance, ModeSupport,
        NumaCell, PcieLink, Placement, Restoring, VirtualFunction, Xid,
    },
    types::{PageSize, ShareMode},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{CardState, Findings, HeldShare, differs, status};
use crate::{hook::foreign_use, topology::HostFacts};

const CARD: &str = "0000:41:00.0";

type Change = fn(&mut GpuNodeStatus);

fn card() -> Device {
    let mut card = Device::new(CARD.parse().unwrap(), "10de", "26b9");
    card.placements = vec![Placement::new("L40S-8Q", ShareMode::Vgpu, 8192, 6)];
    card.link = Some(PcieLink {
        width: Some(16),
        max_width: Some(16),
        speed_mtps: Some(16_000),
        max_speed_mtps: Some(16_000),
    });
    card.health.ecc = Some(Ecc { enabled: true, corrected: Some(1), uncorrected: Some(0) });
    card
}

fn facts() -> HostFacts {
    let hugepages = vec![Hugepages { size: PageSize::Gi1, total: 8, free: Some(8), surplus: None }];
    HostFacts {
        cards: vec![card()],
        numa_cells: vec![NumaCell { hugepages, ..NumaCell::default() }],
        ..HostFacts::default()
    }
}

fn said(
    facts: &HostFacts,
    instances: Result<&[HeldShare], String>,
    before: Option<&GpuNodeStatus>,
) -> GpuNodeStatus {
    status(&findings(facts, instances, before))
}

fn findings<'a>(
    facts: &'a HostFacts,
    instances: Result<&'a [HeldShare], String>,
    before: Option<&'a GpuNodeStatus>,
) -> Findings<'a> {
    Findings { instances, before, ..Findings::of(facts) }
}

#[test]
fn a_drive_is_usable_once_its_owner_says_how_it_is_erased() {
    let text = "{coresPerSocket: 4, memoryMiB: 8192, nvmeDrives: [{model: PM173X, count: 1}]}";
    let facts = crate::simulated::HostFile::parse(text).unwrap().host("n").unwrap().facts;
    let address = facts.host_devices[0].pci_address;
    let mut spec = gpudesk_crds::GpuNodeSpec::default();
    let shown = |spec: &gpudesk_crds::GpuNodeSpec, withheld: Option<&str>| {
        let withheld = withheld.map(|why| (address, why.to_owned())).into_iter().collect();
        let found = Findings { spec, generation: Some(1), withheld, ..findings(&facts, Ok(&[]), None) };
        let drive = status(&found).host_devices.remove(0);
        (drive.usable, drive.message.unwrap_or_default())
    };
    let (usable, why) = shown(&spec, None);
    assert!(!usable && why.contains("spec.nvmeDrives"), "{why}");
    let rule = serde_json::json!([{"name": "a", "selector": {"pciAddress": address}, "erase": "Format"}]);
    spec.nvme_drives = serde_json::from_value(rule).unwrap();
    assert_eq!(shown(&spec, None), (true, String::new()));
    assert_eq!(shown(&spec, Some("it is erased")), (false, "it is erased".into()));
    let nobody_asked = status(&findings(&facts, Ok(&[]), None));
    assert!(nobody_asked.host_devices[0].usable);
}

#[test]
fn cards_that_are_withheld_are_judged_and_given_to_nobody() {
    let facts = facts();
    let open = status(&findings(&facts, Ok(&[]), None));
    let why = [(facts.cards[0].pci_address, "not yet".to_owned())].into();
    let withheld = status(&Findings { withheld: why, ..findings(&facts, Ok(&[]), None) });
    assert_eq!(withheld.devices[0].unavailable.as_deref(), Some("not yet"));
    assert_eq!((withheld.capacity.len(), withheld.summary.as_ref().unwrap().free_gpus), (0, 0));
    assert_eq!(withheld.conditions, open.conditions, "the machine is the same");
}

#[test]
fn what_is_known_of_a_card_beside_what_was_found_is_shown_and_what_is_foreign_is_taken() {
    let mut facts = facts();
    let card = &mut facts.cards[0];
    let supports = |mode| ModeSupport { mode, supported: true, reason: None };
    card.supports = vec![supports(ShareMode::Passthrough), supports(ShareMode::VirtualFunctions)];
    card.placements = vec![Placement::new("2VF", ShareMode::VirtualFunctions, 1024, 2)];
    let time = Time(Timestamp::UNIX_EPOCH);
    let taken = Instance {
        type_name: "2VF".into(),
        mode: ShareMode::VirtualFunctions,
        virtual_function: Some("0000:41:00.1".parse().unwrap()),
        ..vgpu("0000:41:00.1", None)
    };
    let foreign = ForeignDevice { device: "0000:41:00.1".into(), what: "bound to vfio-pci".into() };
    let reset = CardReset {
        method: "flr".into(),
        time: time.clone(),
        succeeded: true,
        verified: vec![],
        message: None,
    };
    let known = CardState {
        foreign: vec![foreign.clone()],
        taken: vec![taken],
        not_whole: Some("0000:41:00.1 would go along".into()),
        last_reset: Some(reset.clone()),
        last_erase: None,
        waiting_for: Some(CardWait { what: "a".into(), since: time }),
        restoring: Some(Restoring { done: 1, total: 2 }),
    };
    let states = std::collections::BTreeMap::from([(facts.cards[0].pci_address, known)]);
    let shown = status(&Findings { states, ..findings(&facts, Ok(&[]), None) });
    assert_eq!(super::faults(&shown), Vec::<String>::new());
    let card = &shown.devices[0];
    assert_eq!((&card.foreign, &card.last_reset), (&vec![foreign], &Some(reset)));
    assert_eq!((card.waiting_for.is_some(), card.restoring), (true, Some(Restoring { done: 1, total: 2 })));
    assert_eq!(card.supports[0].reason.as_deref(), Some("0000:41:00.1 would go along"));
    let kinds = |counts: &[gpudesk_crds::gpu_node_status::TypeCount]| -> Vec<(String, i32)> {
        counts.iter().map(|count| (count.type_name.clone(), count.count)).collect()
    };
    assert_eq!(kinds(&shown.allocated), [("2VF".to_owned(), 1)], "it counts as taken");
    assert_eq!(kinds(&shown.capacity), [("2VF".to_owned(), 2)], "and the card is not to be had whole");
    // Read again it is the same, and what a reader of before knows of it is what it was.
    let read: GpuNodeStatus = serde_json::from_value(serde_json::to_value(&shown).unwrap()).unwrap();
    assert_eq!(read.devices, shown.devices);
}

fn vgpu(id: &str, owner: Option<&str>) -> Instance {
    Instance {
        id: id.into(),
        type_name: "L40S-8Q".into(),
        mode: ShareMode::Vgpu,
        vgpu_type: None,
        start: None,
        virtual_function: None,
        gpu_instance: None,
        owner: owner.map(Into::into),
    }
}

fn held(id: &str) -> HeldShare {
    HeldShare { card: CARD.parse().unwrap(), instance: vgpu(id, Some("demo/a")) }
}

#[test]
fn what_gpudesk_made_and_what_it_found_are_shown_once_each() {
    let mut facts = facts();
    facts.cards[0].instances = vec![vgpu("u1", None), vgpu("u2", None)];
    let status = said(&facts, Ok(&[held("u1")]), None);
    let shown: Vec<(&str, Option<&str>)> =
        status.devices[0].instances.iter().map(|i| (i.id.as_str(), i.owner.as_deref())).collect();
    assert_eq!(shown, [("u1", Some("demo/a")), ("u2", None)]);
    assert_eq!(status.allocated[0].count, 2);
}

#[test]
fn a_gpu_instance_counts_once_however_many_vgpus_share_it() {
    let mut facts = facts();
    let card = &mut facts.cards[0];
    let mut profile = Placement::new("1g.24gb+gfx", ShareMode::Mig, 24_576, 4);
    (profile.size, profile.starts, profile.compute_slices) = (3, vec![0, 3, 6, 9], 1);
    card.placements = vec![profile];
    card.units = Some(CardUnits { mig_memory: 12, mig_compute: 4, vgpu_region: 0 });
    card.supports = vec![ModeSupport { mode: ShareMode::Mig, supported: true, reason: None }];
    let on = |id: &str, start: i32, gpu_instance: Option<i32>| HeldShare {
        card: CARD.parse().unwrap(),
        instance: Instance {
            type_name: "1g.24gb+gfx".into(),
            mode: ShareMode::Mig,
            vgpu_type: Some("DC-1-2Q".into()),
            start: Some(start),
            gpu_instance,
            ..vgpu(id, Some("demo/a"))
        },
    };
    let held = [on("a", 0, Some(1)), on("b", 3, None), on("c", 0, Some(1)), on("d", 3, Some(2))];
    let status = said(&facts, Ok(&held), None);
    assert_eq!(status.devices[0].instances.len(), 4);
    assert_eq!((status.allocated.len(), status.allocated[0].count), (1, 2));
    assert_eq!(status.summary.unwrap().slices, "6/12");
}

#[test]
fn a_card_that_vanishes_while_a_desktop_holds_a_share_of_it_stays_shown() {
    let before = said(&facts(), Ok(&[held("u1")]), None);
    let empty = HostFacts::default();
    for instances in [Ok(&[held("u1")][..]), Err("NVML does not answer".into())] {
        let status = said(&empty, instances, Some(&before));
        let [card] = &status.devices[..] else { panic!("{:?}", status.devices) };
        assert_eq!(card.instances, [vgpu("u1", Some("demo/a"))]);
        assert_eq!(card.device_id, "26b9");
        assert!(card.unavailable.as_ref().unwrap().contains("demo/a"));
    }
    assert!(said(&empty, Ok(&[]), Some(&before)).devices.is_empty());
}

#[test]
fn a_card_that_no_desktop_gets_counts_for_nothing() {
    let mut facts = facts();
    facts.cards[0].supports = crate::topology::supports::judge(&facts.cards[0], Some(1));
    let free = said(&facts, Ok(&[]), None);
    assert_eq!(free.capacity.len(), 1);
    facts.cards[0].unavailable = Some("somebody has it".into());
    let taken = said(&facts, Ok(&[]), None);
    assert_eq!((taken.capacity.len(), taken.summary.unwrap().free_gpus), (0, 0));
}

#[test]
fn the_domains_of_gpudesk_are_not_foreign_to_it() {
    let mut facts = facts();
    let card = &mut facts.cards[0];
    let function = VirtualFunction {
        pci_address: "0000:41:00.4".parse().unwrap(),
        index: 0,
        device_id: None,
        driver: None,
        iommu_group: None,
        unavailable: Some(foreign_use("demo.a")),
    };
    card.virtual_functions = vec![function];
    card.unavailable = Some(foreign_use("demo.a"));
    let ours = said(&facts, Ok(&[held("u1")]), None);
    assert_eq!(ours.devices[0].unavailable, None);
    assert_eq!(ours.devices[0].virtual_functions[0].unavailable, None);
    let theirs = said(&facts, Ok(&[]), None);
    assert!(theirs.devices[0].unavailable.as_ref().unwrap().contains("demo.a"));
    assert!(theirs.devices[0].virtual_functions[0].unavailable.is_some());
}

#[test]
fn figures_that_change_all_the_time_write_nothing() {
    let old = said(&facts(), Ok(&[]), None);
    let mut old = old;
    let xid = |code, second| Xid {
        code,
        gpu_instance: None,
        compute_instance: None,
        last_seen: Time(Timestamp::from_second(second).unwrap()),
        message: "an error".into(),
    };
    old.devices[0].health.xids = vec![xid(13, 1)];
    let mut repeated = old.clone();
    repeated.devices[0].health.xids = vec![xid(13, 2)];
    assert!(!differs(&old, &repeated), "an error that is repeated");
    repeated.devices[0].health.xids.push(xid(48, 2));
    assert!(differs(&old, &repeated), "another error");
    let quiet: [Change; 8] = [
        |status| status.devices[0].health.throttle_reasons.push("SwPowerCap".into()),
        |_| {},
        |status| status.numa_cells[0].hugepages[0].free = Some(0),
        |status| status.devices[0].temperature_celsius = Some(61),
        |status| status.devices[0].link.as_mut().unwrap().width = Some(8),
        |status| status.devices[0].link.as_mut().unwrap().speed_mtps = Some(2_500),
        |status| status.devices[0].placements[0].available = Some(3),
        |status| status.devices[0].health.ecc.as_mut().unwrap().corrected = Some(2),
    ];
    for (number, change) in quiet.into_iter().enumerate() {
        let mut new = old.clone();
        change(&mut new);
        assert!(!differs(&old, &new), "change {number}");
    }
    let loud: [Change; 6] = [
        |status| status.devices[0].health.throttle_reasons.push("HwThermalSlowdown".into()),
        |status| status.numa_cells[0].hugepages[0].total = 4,
        |status| status.devices[0].link.as_mut().unwrap().max_width = Some(8),
        |status| status.devices[0].placements[0].max_count = 3,
        |status| status.devices[0].health.ecc.as_mut().unwrap().uncorrected = Some(2),
        |status| status.missing.push("something".into()),
    ];
    for (number, change) in loud.into_iter().enumerate() {
        let mut new = old.clone();
        change(&mut new);
        assert!(differs(&old, &new), "change {number}");
    }
    // A reset that is tried again and again says something new once.
    for succeeded in [false, true] {
        let reset = |second| CardReset {
            method: "flr".into(),
            time: Time(Timestamp::from_second(second).unwrap()),
            succeeded,
            verified: vec![],
            message: None,
        };
        let mut new = old.clone();
        new.devices[0].last_reset = Some(reset(1));
        assert!(differs(&old, &new));
        let mut again = new.clone();
        again.devices[0].last_reset = Some(reset(2));
        assert_eq!(differs(&new, &again), succeeded);
    }
}

#[test]
fn what_is_missing_is_listed_within_the_limits_of_the_schema() {
    let mut facts = facts();
    facts.incomplete = (0..100).map(|_| "x".repeat(600)).collect();
    facts.incomplete[0].clear();
    facts.iommu.kind = Some("dmar".into());
    facts.cpus.isolated = "2-3".parse().unwrap();
    facts.nvswitches = vec!["0000:b0:00.0".parse().unwrap()];
    let status = said(&facts, Ok(&[]), None);
    assert_eq!((status.missing.len(), status.missing[0].len()), (64, 512));
    let host = status.host.unwrap();
    assert_eq!(host.iommu.as_deref(), Some("dmar"));
    assert_eq!(host.cpus.unwrap().isolated.to_string(), "2,3");
    assert_eq!(status.fabric.unwrap().switches, facts.nvswitches);
    assert_eq!(said(&HostFacts::default(), Ok(&[]), None).host.unwrap().cpus, None);
}
