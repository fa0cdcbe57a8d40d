//! Whole decisions, and why there is none.

use gpudesk_crds::{
    GpuNode,
    conditions::Reason,
    desktop_template::NumaPolicy,
    types::{PageSize, VgpuSeries},
};
use serde_json::json;

use super::builders::*;
use crate::{
    Placed, Snapshot,
    explain::Explanation,
    request::{CardRequirements, Previous, PreviousCard, Request, Share, VgpuWish},
};

fn snapshot(nodes: &[GpuNode]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.node_seen(node);
    }
    snapshot
}

fn decide(snapshot: &mut Snapshot, request: &Request) -> Result<Placed, Explanation> {
    snapshot.place(request).map_err(|_| snapshot.explain(request))
}

fn give(snapshot: &mut Snapshot, request: &Request) -> Placed {
    let placed = decide(snapshot, request).unwrap();
    let object = desktop(&request.desktop.name, 1, Some(&allocation(&placed)));
    snapshot.desktop_seen(&object);
    placed
}

fn two_cells(name: &str, devices: &[serde_json::Value]) -> GpuNode {
    node(name, &[cell(0, 8, 65536, 8), cell(1, 8, 65536, 8)], devices)
}

#[test]
fn dedicated_cpus_are_whole_cores_of_the_cards_cell_and_never_the_hosts() {
    let mut request = request("a", vec![vgpu(8)]);
    demand(&mut request).cpu = dedicated(2, 2);
    demand(&mut request).numa = NumaPolicy::Strict;
    let placed = decide(&mut snapshot(&[two_cells("n", &[l40s(1, 1)])]), &request).unwrap();
    let compute = placed.compute;
    let pins: Vec<String> =
        compute.vcpu_pins.iter().map(|pin| format!("{}:{}", pin.vcpu, pin.cpus)).collect();
    // Cores 8 to 15 are of cell 1; core 8 is the host's.
    assert_eq!(pins, ["0:9", "1:1009", "2:10", "3:1010"]);
    assert_eq!(compute.emulator_cpus.unwrap().to_string(), "8,1008");
    assert_eq!(compute.numa_cells, [1]);
    assert!(compute.numa_strict);
}

#[test]
fn a_core_that_is_half_used_is_given_to_nobody_else() {
    let mut asked = request("a", vec![]);
    demand(&mut asked).cpu = dedicated(1, 1);
    let mut snapshot = snapshot(&[node("n", &[cell(0, 3, 65536, 0)], &[])]);
    for name in ["a", "b"] {
        asked.desktop.name = name.into();
        give(&mut snapshot, &asked);
    }
    asked.desktop.name = "c".into();
    let why = decide(&mut snapshot, &asked).unwrap_err();
    assert_eq!(why.message, "0/1 nodes: 1 not enough free cores");
}

#[test]
fn dedicating_cores_leaves_enough_for_those_who_share() {
    let mut snapshot = snapshot(&[node("n", &[cell(0, 3, 65536, 0)], &[])]);
    let mut shared = request("shared", vec![]);
    demand(&mut shared).cpu.cores = 20;
    give(&mut snapshot, &shared);
    // 6 threads x 4 = 24 vCPUs may float, 20 do; without one core it would be 16.
    let mut pinned = request("dedicated", vec![]);
    demand(&mut pinned).cpu = dedicated(1, 1);
    assert_eq!(decide(&mut snapshot, &pinned).unwrap_err().reason, Reason::Unschedulable);
    shared.desktop.name = "more".into();
    demand(&mut shared).cpu.cores = 5;
    assert!(decide(&mut snapshot, &shared).is_err());
    demand(&mut shared).cpu.cores = 4;
    assert!(decide(&mut snapshot, &shared).is_ok());
}

#[test]
fn strict_waits_and_preferred_goes_elsewhere() {
    let mut snapshot = snapshot(&[two_cells("n", &[l40s(1, 0)])]);
    let mut large = request("large", vec![]);
    demand(&mut large).memory.mib = 8 * 1024;
    demand(&mut large).memory.pages = PageSize::Gi1;
    demand(&mut large).numa = NumaPolicy::Strict;
    assert_eq!(give(&mut snapshot, &large).compute.numa_cells, [0]);
    let mut asked = request("a", vec![vgpu(8)]);
    demand(&mut asked).memory.mib = 1024;
    demand(&mut asked).memory.pages = PageSize::Gi1;
    demand(&mut asked).numa = NumaPolicy::Strict;
    let why = decide(&mut snapshot, &asked).unwrap_err();
    assert_eq!(why.message, "0/1 nodes: 1 not enough 1Gi hugepages on the GPU's NUMA cell");
    demand(&mut asked).numa = NumaPolicy::Preferred;
    let plan = decide(&mut snapshot, &asked).unwrap();
    assert_eq!((plan.compute.numa_cells, plan.compute.numa_strict), (vec![1], false));
}

#[test]
fn ordinary_pages_only_where_that_is_allowed() {
    let mut snapshot = snapshot(&[two_cells("n", &[])]);
    let mut asked = request("a", vec![]);
    demand(&mut asked).memory.mib = 32 * 1024;
    demand(&mut asked).memory.pages = PageSize::Gi1;
    let why = decide(&mut snapshot, &asked).unwrap_err();
    assert_eq!(why.reason, Reason::Unsatisfiable);
    assert_eq!(
        why.message,
        "needs 32768 MiB in 1Gi hugepages; the largest host, n, has 16384 MiB for desktops"
    );
    demand(&mut asked).memory.allow_fallback = true;
    assert_eq!(decide(&mut snapshot, &asked).unwrap().compute.page_size, PageSize::None);
}

#[test]
fn the_reasons_of_all_nodes_are_counted() {
    let mut full = two_cells("full", &[rtx_pro_6000(1, 0)]);
    full.status.as_mut().unwrap().devices[0].instances = serde_json::from_value(json!([
        {"id": "MIG-1", "type": "4g.96gb+gfx", "mode": "Mig", "start": 0},
    ]))
    .unwrap();
    let mut cordoned = two_cells("cordoned", &[rtx_pro_6000(1, 0)]);
    cordoned.spec.cordoned = true;
    let mut off = two_cells("off", &[rtx_pro_6000(1, 0)]);
    (off.spec.cordoned, off.spec.out_of_service) = (true, true);
    let mut absent = two_cells("absent", &[rtx_pro_6000(1, 0)]);
    absent.status.as_mut().unwrap().conditions.clear();
    let (plain, silent) = (two_cells("plain", &[]), two_cells("silent", &[]));
    let mut snapshot = snapshot(&[full, cordoned, off, absent, plain, silent]);
    snapshot.set_silent(["silent".to_owned()].into());
    let why = decide(&mut snapshot, &request("a", vec![mig("1g.24gb+gfx", VgpuSeries::Q)])).unwrap_err();
    assert_eq!(why.reason, Reason::Unschedulable);
    assert_eq!(
        why.message,
        "0/6 nodes: 1 cordoned, 1 no card that qualifies for profile, 1 no free placement for 1g.24gb+gfx, \
         1 node daemon silent, 1 not ready, 1 out of service"
    );
}

#[test]
fn what_no_host_has_is_unsatisfiable_and_names_the_largest() {
    let mut snapshot = snapshot(&[two_cells("small", &[]), node("x", &[cell(0, 8, 300_000, 0)], &[])]);
    let mut asked = request("a", vec![]);
    demand(&mut asked).memory.mib = 99_999_999;
    let why = decide(&mut snapshot, &asked).unwrap_err();
    assert_eq!(why.reason, Reason::Unsatisfiable);
    assert_eq!(why.message, "needs 99999999 MiB; the largest host, x, has 298976 MiB for desktops");
    assert_eq!(decide(&mut Snapshot::default(), &asked).unwrap_err().message, "0/0 nodes: no GpuNode exists");
}

#[test]
fn the_first_alternative_that_fits_somewhere_is_taken() {
    let mut asked = request("a", vec![]);
    demand(&mut asked).shares = vec![one("gpu", vec![mig("4g.96gb+gfx", VgpuSeries::Q), vgpu(8)])];
    let mut snapshot = snapshot(&[two_cells("a", &[l40s(1, 0)]), two_cells("b", &[rtx_pro_6000(1, 0)])]);
    let placed = give(&mut snapshot, &asked);
    assert_eq!((placed.node.as_str(), placed.gpus[0].type_name.as_str()), ("b", "4g.96gb+gfx"));
    assert_eq!(placed.gpus[0].vgpu_type.as_deref(), Some("DC-4-96Q"));
    asked.desktop.name = "next".into();
    assert_eq!(decide(&mut snapshot, &asked).unwrap().node, "a");
}

#[test]
fn pack_fills_a_card_and_spread_takes_the_emptiest() {
    let nodes = [two_cells("a", &[l40s(1, 0), l40s(2, 0)]), two_cells("b", &[l40s(1, 0)])];
    for (spread, second) in [(false, ("a", "0000:01:00.0")), (true, ("a", "0000:02:00.0"))] {
        let mut snapshot = snapshot(&nodes);
        let mut asked = request("first", vec![vgpu(8)]);
        demand(&mut asked).shares[0].spread = spread;
        give(&mut snapshot, &asked);
        asked.desktop.name = "second".into();
        let placed = decide(&mut snapshot, &asked).unwrap();
        assert_eq!((placed.node.as_str(), placed.gpus[0].device.to_string().as_str()), second, "{spread}");
    }
}

#[test]
fn several_cards_come_from_one_cell_where_possible() {
    let nodes = [two_cells("n", &[l40s(1, 0), l40s(2, 1), l40s(3, 1)])];
    let asked = request("a", vec![Share::Passthrough, Share::Passthrough]);
    let placed = decide(&mut snapshot(&nodes), &asked).unwrap();
    let cards: Vec<String> = placed.gpus.iter().map(|gpu| gpu.device.to_string()).collect();
    assert_eq!(cards, ["0000:02:00.0", "0000:03:00.0"]);
    assert_eq!(placed.compute.numa_cells, [1]);
    let mut two = asked.clone();
    demand(&mut two).numa = NumaPolicy::Strict;
    let mut snapshot = snapshot(&nodes);
    let mut one = request("one", vec![Share::Passthrough]);
    one.previous = Some(Previous {
        node: "n".into(),
        cards: [(
            "gpu0".to_owned(),
            PreviousCard { uuid: Some("GPU-3".into()), address: "0000:03:00.0".parse().unwrap() },
        )]
        .into(),
    });
    assert_eq!(give(&mut snapshot, &one).gpus[0].device.to_string(), "0000:03:00.0");
    let why = decide(&mut snapshot, &two).unwrap_err();
    assert_eq!(why.reason, Reason::Unschedulable);
    assert!(why.message.contains("1 free cards on different NUMA cells only"), "{}", why.message);
}

#[test]
fn a_card_of_which_the_cell_is_not_known_is_not_called_far_away() {
    let unknown = |absent: Option<i32>, cells: &[serde_json::Value]| {
        let mut object = node("n", cells, &[l40s(1, 0)]);
        let card = &mut object.status.as_mut().unwrap().devices[0];
        (card.numa_cell, card.absent_numa_cell) = (None, absent);
        object
    };
    let mut asked = request("a", vec![Share::Passthrough]);
    demand(&mut asked).numa = NumaPolicy::Strict;
    let two = [cell(0, 8, 65536, 0), cell(1, 8, 65536, 0)];
    let memory_alone = [cell(0, 8, 65536, 0), json!({"id": 1, "memoryMiB": 1024})];
    for object in [unknown(None, &two), unknown(Some(1), &two[..1]), unknown(Some(2), &two)] {
        let why = decide(&mut snapshot(std::slice::from_ref(&object)), &asked).unwrap_err();
        assert_eq!(why.reason, Reason::Unschedulable);
        assert!(why.message.contains("the cell of the card is not known"), "{}", why.message);
        assert!(decide(&mut snapshot(&[object]), &request("b", vec![Share::Passthrough])).is_ok());
    }
    for cells in [&two[..1], &memory_alone] {
        let placed = decide(&mut snapshot(&[unknown(None, cells)]), &asked).unwrap();
        assert_eq!(placed.compute.numa_cells, [0], "the only cell with CPUs");
    }
}

#[test]
fn memory_of_a_device_and_in_other_hugepages_is_nobodys() {
    let object = |second: serde_json::Value| node("n", &[cell(0, 8, 11264, 0), second], &[]);
    let mut asked = request("a", vec![]);
    demand(&mut asked).memory.mib = 14000;
    let expander = json!({"id": 1, "memoryMiB": 8192});
    assert!(decide(&mut snapshot(&[object(expander.clone())]), &asked).is_ok(), "memory of CXL is memory");
    for (field, value) in [("deviceMemory", json!(true)), ("otherHugepagesMiB", json!(8000))] {
        let mut second = expander.clone();
        second[field] = value;
        let why = decide(&mut snapshot(&[object(second)]), &asked).unwrap_err();
        assert!(why.message.contains("has 10240 MiB for desktops"), "{}", why.message);
    }
}

#[test]
fn memory_is_bound_to_cells_that_are_no_devices() {
    let device = json!({"id": 2, "memoryMiB": 98304, "deviceMemory": true});
    let superchip = node("n", &[cell(0, 8, 65536, 0), cell(1, 8, 65536, 0), device], &[l40s(1, 0)]);
    let given = |numa: NumaPolicy, mib: i64| {
        let mut asked = request("a", vec![]);
        demand(&mut asked).numa = numa;
        demand(&mut asked).memory.mib = mib;
        let compute = decide(&mut snapshot(std::slice::from_ref(&superchip)), &asked).unwrap().compute;
        (compute.numa_cells, compute.numa_strict)
    };
    assert_eq!(given(NumaPolicy::None, 4096), (vec![0, 1], true));
    assert_eq!(given(NumaPolicy::Preferred, 4096), (vec![0], true));
    assert_eq!(given(NumaPolicy::Preferred, 100_000), (vec![0, 1], true));
}

#[test]
fn isolated_cpus_are_for_who_has_cpus_for_himself() {
    let mut object = node("n", &[cell(0, 4, 65536, 0)], &[]);
    let host = object.status.as_mut().unwrap().host.get_or_insert_default();
    // All threads of the last two cores; the first core is housekeeping.
    host.cpus.get_or_insert_default().isolated = "2-3,1002-1003".parse().unwrap();
    let mut state = snapshot(&[object.clone()]);
    let mut own = request("own", vec![]);
    demand(&mut own).cpu = dedicated(1, 2);
    let pins: Vec<String> =
        give(&mut state, &own).compute.vcpu_pins.iter().map(|pin| pin.cpus.to_string()).collect();
    assert_eq!(pins, ["2", "1002"], "isolated ones first");
    let mut shared = request("shared", vec![]);
    demand(&mut shared).cpu.cores = 16;
    give(&mut state, &shared);
    let mut more = request("more", vec![]);
    demand(&mut more).cpu.cores = 1;
    let why = decide(&mut state, &more).unwrap_err();
    assert!(why.message.contains("not enough CPUs"), "four CPUs carry 16 vCPUs: {}", why.message);
    let mut another = request("another", vec![]);
    demand(&mut another).cpu = dedicated(1, 2);
    assert!(decide(&mut state, &another).is_ok(), "an isolated core takes nothing from who shares");
}

#[test]
fn cards_that_no_cell_has_all_of_come_from_the_fewest_and_the_guest_sees_a_cell_for_each() {
    let nodes = [two_cells("n", &[l40s(1, 0), l40s(2, 1), l40s(3, 1)])];
    let mut three = request("b", vec![Share::Passthrough, Share::Passthrough, Share::Passthrough]);
    demand(&mut three).numa = NumaPolicy::Strict;
    demand(&mut three).cpu = dedicated(3, 2);
    demand(&mut three).memory.mib = 5000;
    let compute = decide(&mut snapshot(&nodes), &three).unwrap().compute;
    assert_eq!((compute.numa_cells, compute.numa_strict), (vec![0, 1], true));
    let guest: Vec<(i32, i32, String, i64)> = compute
        .guest_cells
        .iter()
        .map(|guest| (guest.id, guest.host_cell, guest.vcpus.to_string(), guest.memory_mib))
        .collect();
    assert_eq!(guest, [(0, 0, "0-3".to_owned(), 2048), (1, 1, "4,5".to_owned(), 2952)]);
    let cell_of = |cpu: &str| i32::from(cpu.parse::<i32>().unwrap() % 1000 >= 8);
    let of: Vec<i32> = compute.vcpu_pins.iter().map(|pin| cell_of(&pin.cpus.to_string())).collect();
    assert_eq!(of, [0, 0, 0, 0, 1, 1]);
}

#[test]
fn a_desktop_at_home_stays_there_and_is_not_in_its_own_way() {
    let mut snapshot = snapshot(&[two_cells("a", &[]), two_cells("b", &[l40s(1, 0)])]);
    let mut asked = request("a", vec![Share::Passthrough]);
    give(&mut snapshot, &asked);
    asked.home = Some("b".into());
    assert_eq!(decide(&mut snapshot, &asked).unwrap().node, "b", "its own card is free for it");
    asked.home = Some("a".into());
    let why = decide(&mut snapshot, &asked).unwrap_err();
    assert!(why.message.contains("1 without the desktop's disks"), "{}", why.message);
}

#[test]
fn what_exists_and_nobody_explains_is_in_the_way() {
    let mut object = two_cells("n", &[l40s(1, 0)]);
    let instance = |owner: serde_json::Value| {
        serde_json::from_value(json!([{"id": "u", "type": "L40S-8Q", "mode": "Vgpu", "owner": owner}]))
            .unwrap()
    };
    object.status.as_mut().unwrap().devices[0].instances = instance(json!(null));
    assert!(decide(&mut snapshot(&[object.clone()]), &request("a", vec![Share::Passthrough])).is_err());
    // Left from its own last run: not in its own way.
    object.status.as_mut().unwrap().devices[0].instances = instance(json!("demo/a"));
    assert!(decide(&mut snapshot(&[object.clone()]), &request("a", vec![Share::Passthrough])).is_ok());
    assert!(decide(&mut snapshot(&[object]), &request("b", vec![Share::Passthrough])).is_err());
}

#[test]
fn an_instance_of_an_allocation_is_not_counted_twice() {
    let mut object = two_cells("n", &[l40s(1, 0)]);
    let mut snapshot = snapshot(&[object.clone()]);
    for name in ["a", "b", "c", "d", "e"] {
        give(&mut snapshot, &request(name, vec![vgpu(8)]));
    }
    object.status.as_mut().unwrap().devices[0].instances = serde_json::from_value(json!([
        {"id": "1", "type": "L40S-8Q", "mode": "Vgpu", "owner": "demo/a"},
        {"id": "2", "type": "L40S-8Q", "mode": "Vgpu"},
    ]))
    .unwrap();
    snapshot.node_seen(&object);
    give(&mut snapshot, &request("f", vec![vgpu(8)]));
    assert!(decide(&mut snapshot, &request("g", vec![vgpu(8)])).is_err());
}

#[test]
fn what_is_short_is_told_with_its_figures_and_what_is_offered_with_its_names() {
    let small = || snapshot(&[node("n", &[cell(0, 2, 65536, 0)], &[l40s(1, 0)])]);
    let mut asked = request("a", vec![]);
    demand(&mut asked).cpu.cores = 12;
    let mut estate = small();
    give(&mut estate, &asked);
    asked.desktop.name = "b".into();
    assert_eq!(decide(&mut estate, &asked).unwrap_err().message, "0/1 nodes: 1 not enough CPUs for 12 vCPUs");
    demand(&mut asked).cpu.cores = 100;
    let why = decide(&mut small(), &asked).unwrap_err().message;
    assert_eq!(why, "needs 100 vCPUs; the largest host, n, has 4 CPUs, and 4 vCPUs may share one");
    let none = std::collections::BTreeMap::new;
    let of_type = |name: &str| request("a", vec![Share::Vgpu(VgpuWish::Type(name.into()), none())]);
    let why = decide(&mut small(), &of_type("L40S")).unwrap_err().message;
    assert!(why.contains("no card that offers L40S; offered: L40S-"), "{why}");
    let why = decide(&mut small(), &of_type("A40-8Q")).unwrap_err().message;
    assert!(why.contains("no card that offers A40-8Q; offered: L40S-") && why.ends_with(" more"), "{why}");
}

#[test]
fn labels_and_rules_of_the_owner_hold() {
    let mut object = two_cells("n", &[l40s(1, 0)]);
    object.metadata.labels = Some([("zone".to_owned(), "a".to_owned())].into());
    let mut asked = request("a", vec![vgpu(8)]);
    demand(&mut asked).node_selector = [("zone".to_owned(), "b".to_owned())].into();
    assert_eq!(
        decide(&mut snapshot(&[object.clone()]), &asked).unwrap_err().message,
        "0/1 nodes: 1 without the label zone=b of nodeSelector"
    );
    demand(&mut asked).node_selector.clear();
    for (rule, text) in [
        (json!({"management": "Unmanaged"}), "1 cards for profile unmanaged"),
        (json!({"mode": "Passthrough"}), "1 mode Vgpu not allowed on cards for profile"),
        (
            json!({"mode": "Vgpu", "layout": {"vgpu": ["L40S-8Q"]}}),
            "1 cards for profile with a layout that is not planned",
        ),
    ] {
        let mut rule = rule;
        rule["name"] = json!("rule");
        rule["selector"] = json!({"uuid": "GPU-1"});
        object.spec.devices = vec![serde_json::from_value(rule).unwrap()];
        let why = decide(&mut snapshot(&[object.clone()]), &asked).unwrap_err();
        assert!(why.message.contains(text), "{}", why.message);
    }
}

#[test]
fn the_more_protective_of_two_rules_for_a_card_holds_in_any_order() {
    let mut object = two_cells("n", &[l40s(1, 0)]);
    let keep = json!({"name": "keep", "selector": {"pciAddress": "0000:01:00.0"}, "management": "Unmanaged"});
    let share = json!({"name": "share", "selector": {"uuid": "GPU-1"}, "vgpuPlacement": "MixedSize"});
    let vgpus = json!({"name": "vgpus", "selector": {"pciAddress": "0000:01:00.0"}, "mode": "Vgpu"});
    let whole = json!({"name": "whole", "selector": {"uuid": "GPU-1"}, "mode": "Passthrough"});
    for (a, b) in [(&keep, &share), (&share, &keep), (&vgpus, &whole), (&whole, &vgpus)] {
        object.spec.devices = [a, b].map(|rule| serde_json::from_value(rule.clone()).unwrap()).to_vec();
        let why = decide(&mut snapshot(&[object.clone()]), &request("a", vec![vgpu(8)])).unwrap_err();
        assert!(why.message.contains("1 cards for profile unmanaged"), "{}", why.message);
    }
}

#[test]
fn what_is_no_gpu_is_given_only_to_profiles_that_name_it() {
    let mut screen = l40s(1, 0);
    screen["kind"] = json!("Display");
    screen["product"] = json!("ASPEED Graphics Family");
    let object = two_cells("n", &[screen]);
    let asks = |change: fn(&mut CardRequirements)| {
        let mut asked = request("a", vec![Share::Passthrough]);
        change(&mut demand(&mut asked).shares[0].cards);
        decide(&mut snapshot(std::slice::from_ref(&object)), &asked).is_ok()
    };
    assert!(!asks(|_| ()));
    assert!(!asks(|cards| cards.products = vec!["*".into()]), "that names nothing");
    assert!(!asks(|cards| cards.minimum_memory_mib = Some(1)));
    assert!(asks(|cards| cards.products = vec!["ASPEED*".into()]));
}
