//! What a node cannot reach by what it publishes, and what is said of devices that are not tainted.

use serde_json::{Value, json};

use super::tests::{Rig, all_managed, failure, known, of_nvidia, owners, said, slice_of};
use super::*;

/// What the condition says of the node.
fn told(owners: &OtherOwners) -> String {
    said(&all_managed(), &owners.known("node-a")).2
}

/// Names under which a node publishes one card.
fn many(count: usize) -> Vec<Published> {
    (0..count).map(|n| of_nvidia(&format!("gpu-{n:03}"), "0000:41:00.0")).collect()
}

fn in_pool(pool: &str, device: &Published) -> Devices {
    [("node-a".to_owned(), vec![Published { pool: pool.into(), ..device.clone() }])].into()
}

#[test]
fn a_pool_to_which_another_node_belongs_is_not_tainted() {
    let owners = owners(&[]);
    let gpu = of_nvidia("gpu-0", "0000:41:00.0");
    let wanted = || rules::wanted(&all_managed(), &owners.known("node-a")).len();
    let changed =
        |name: &str, slice: Option<Slice>| owners.slice(name, slice).into_iter().collect::<Vec<_>>();
    changed("mine", Some(slice_of("node-b", Some("node-a"), in_pool("node-b", &gpu))));
    assert_eq!(wanted(), 1, "nobody else is known to have such a pool");
    for (node, why) in [(Some("node-b"), "another node"), (None, "no node, or several")] {
        // It publishes nothing that has a PCI address, and is there all the same.
        assert_eq!(changed("theirs", Some(slice_of("node-b", node, Devices::new()))), ["node-a"], "{why}");
        assert_eq!(wanted(), 0, "{why}");
        let said = told(&owners);
        assert!(said.contains("0 of 1 devices tainted"), "{said}");
        assert!(said.contains("1 of pools that are not of this node alone"), "{said}");
        let gone = changed("theirs", None);
        assert!(gone.contains(&"node-a".to_owned()), "{gone:?}");
        assert_eq!(wanted(), 1);
    }
    changed("theirs", Some(slice_of("node-b", Some("node-b"), Devices::new())));
    owners.only_slices(&["theirs".to_owned()].into());
    assert_eq!(owners.lock().alone(&("gpu.nvidia.com".into(), "node-b".into())), Some("node-b"));
    owners.only_slices(&BTreeSet::new());
    assert!(owners.lock().pools.is_empty(), "slices without devices go, too");
}

#[tokio::test]
async fn a_node_gets_a_limited_number_of_rules_and_some_each_round() {
    let owners = owners(&many(100));
    let first: Vec<String> = rules::wanted(&all_managed(), &owners.known("node-a"))
        .into_values()
        .map(|device| device.device)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let expected: Vec<String> = (0..rules::MOST).map(|n| format!("gpu-{n:03}")).collect();
    assert_eq!(first, expected, "the first in order, however they are published");
    let mut rig = Rig::new();
    let (node, writer) = (all_managed(), rig.writer.clone());
    for round in 1..=rules::MOST / rules::ROUND {
        let asked = async {
            for _ in 0..rules::ROUND {
                let (method, _, body) = rig.answer(201, Value::clone).await;
                assert_eq!(method, "POST");
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                owners.rule(&name, Some(Rule { node: "node-a".into(), sound: true }));
            }
        };
        let (result, ()) = tokio::join!(owners.bring_rules(&node, &writer), asked);
        result.unwrap();
        let said = told(&owners);
        assert!(said.contains(&format!("{} of 100 devices tainted", round * rules::ROUND)), "{said}");
        assert!(said.contains("36 beyond the 64 rules that a node may have"), "{said}");
    }
    // Nothing more is asked for.
    owners.bring_rules(&node, &writer).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn rules_that_another_node_had_taken_away_are_made_later_and_ever_later() {
    let gpu = of_nvidia("gpu-0", "0000:41:00.0");
    let owners = owners(std::slice::from_ref(&gpu));
    let name = rules::name("uid-of-node-a", &gpu);
    let mut rig = Rig::new();
    let (node, writer) = (all_managed(), rig.writer.clone());
    for minutes in [5, 10, 20, 40, 60, 60] {
        owners.rule(&name, Some(Rule { node: "node-a".into(), sound: true }));
        owners.slice("theirs", Some(slice_of("node-a", Some("node-b"), Devices::new())));
        let (result, (method, _, _)) = tokio::join!(
            owners.bring_rules(&node, &writer),
            rig.answer(200, |_| json!({"kind": "Status", "status": "Success"}))
        );
        result.unwrap();
        assert_eq!(method, "DELETE");
        owners.rule(&name, None);
        owners.slice("theirs", None);
        // Nothing is asked for.
        owners.bring_rules(&node, &writer).await.unwrap();
        let words =
            format!("1 not before {minutes} minutes are over since a pool was not of this node alone");
        assert!(told(&owners).contains(&words), "{}", told(&owners));
        let left = owners.pause_left("node-a").unwrap();
        assert!(left <= Duration::from_mins(minutes) && left > Duration::from_mins(minutes - 1), "{left:?}");
        tokio::time::advance(left).await;
        assert_eq!(owners.pause_left("node-a"), None);
        let (result, (method, _, _)) =
            tokio::join!(owners.bring_rules(&node, &writer), rig.answer(201, Value::clone));
        result.unwrap();
        assert_eq!(method, "POST");
    }
}

#[test]
fn who_publishes_a_card_under_many_names_takes_no_rule_from_others() {
    let real = [of_nvidia("gpu-0", "0000:41:00.0"), of_nvidia("gpu-1", "0000:42:00.0")];
    let name = |device: &Published| rules::name("uid-of-node-a", device);
    let of = |driver: &str, device: &Published| Published { driver: driver.into(), ..device.clone() };
    let flood: Vec<Published> = many(100).iter().map(|device| of("aaa.example.com", device)).collect();
    let mut seen = known(&[&flood[..], &real[..]].concat());
    seen.rules = Some(real.iter().map(name).collect());
    let wanted = rules::wanted(&all_managed(), &seen);
    assert_eq!(wanted.len(), rules::MOST);
    assert!(real.iter().all(|device| wanted.contains_key(&name(device))), "what stands is not in the way");
    // Where nothing stands yet the other card has its rule all the same.
    seen.rules = Some(BTreeSet::new());
    assert!(rules::wanted(&all_managed(), &seen).contains_key(&name(&real[1])));
    // A card that has more than its share makes room for another.
    let other: Vec<Published> =
        (0..100).map(|n| of_nvidia(&format!("vgpu-{n:03}"), "0000:42:00.0")).collect();
    let mut seen = known(&[&flood[..], &other[..]].concat());
    seen.rules = Some(flood.iter().take(rules::MOST).map(name).collect());
    let wanted = rules::wanted(&all_managed(), &seen);
    let first = wanted.values().filter(|device| device.driver == "aaa.example.com").count();
    assert_eq!((wanted.len(), first), (rules::MOST, rules::MOST / 2));
    // What stands and what is chosen next agree, whichever part of it is there.
    for part in 0..wanted.len() {
        seen.rules = Some(wanted.keys().take(part).cloned().collect());
        assert_eq!(rules::wanted(&all_managed(), &seen), wanted, "{part}");
    }
}

#[tokio::test]
async fn only_what_is_tainted_is_said_to_be() {
    let gpu = of_nvidia("gpu-0", "0000:41:00.0");
    let owners = owners(std::slice::from_ref(&gpu));
    let name = rules::name("uid-of-node-a", &gpu);
    let mut rig = Rig::new();
    let (node, writer) = (all_managed(), rig.writer.clone());
    assert!(told(&owners).contains("0 of 1 devices tainted"), "{}", told(&owners));
    assert!(told(&owners).contains("without it 1 not yet"), "{}", told(&owners));
    let (result, _) = tokio::join!(owners.bring_rules(&node, &writer), rig.answer(403, failure(403)));
    result.unwrap();
    assert!(told(&owners).contains("the API server refuses it with code 403"), "{}", told(&owners));
    assert_eq!(owners.take_news(), ["node-a".to_owned()].into(), "so that it is said soon");
    let (result, _) = tokio::join!(owners.bring_rules(&node, &writer), rig.answer(403, failure(403)));
    result.unwrap();
    assert_eq!(owners.take_news(), BTreeSet::new(), "it is said already");
    // Somebody else's object of this name: no watch of ours shows it.
    let (result, _) = tokio::join!(owners.bring_rules(&node, &writer), rig.answer(409, failure(409)));
    result.unwrap();
    assert!(told(&owners).contains("without it 1 not yet"), "{}", told(&owners));
    let (result, _) = tokio::join!(owners.bring_rules(&node, &writer), rig.answer(201, |_| json!({
        "apiVersion": "resource.k8s.io/v1beta2", "kind": "DeviceTaintRule", "metadata": {"name": name.clone()},
    })));
    result.unwrap();
    assert!(told(&owners).contains("without it 1 not yet"), "the watch has not shown it");
    let shown = owners.rule(&name, Some(Rule { node: "node-a".into(), sound: true }));
    assert_eq!(shown.as_deref(), Some("node-a"), "its node is looked at again");
    assert!(told(&owners).contains("(tainted gpudesk.dev/managed:NoSchedule"), "{}", told(&owners));
    owners.rule(&name, Some(Rule { node: "node-a".into(), sound: false }));
    assert!(told(&owners).contains("0 of 1 devices tainted"), "somebody changed it");
}
