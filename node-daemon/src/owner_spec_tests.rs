//! What is made again of a spec, and what is told of the rest.
#![expect(clippy::disallowed_methods, reason = "tests look at files")]

use std::fs;

use gpudesk_crds::schema;

use super::*;

#[expect(clippy::needless_pass_by_value, reason = "it is written where it is called")]
fn node(uid: &str, generation: i64, spec: Value, labels: Value) -> DynamicObject {
    let node = json!({
        "apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode", "spec": spec,
        "metadata": {"name": "node-a", "uid": uid, "generation": generation, "labels": labels},
    });
    serde_json::from_value(node).unwrap()
}

/// What a daemon makes again that has seen this spec.
fn made(spec: Value) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let owner = OwnerSpec::load(folder.path());
    owner.see(&node("a", 3, spec, json!({})));
    owner.again()
}

#[test]
fn each_part_of_a_spec_is_given_back_or_left_out_and_nothing_opens() {
    let crd = schema::all().into_iter().find(|crd| crd.spec.names.kind == "GpuNode").unwrap();
    let crd = serde_json::to_value(crd).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let known: Vec<&str> = GIVEN_BACK.into_iter().chain(LEFT_OUT).chain(["outOfService"]).collect();
    for part in spec.as_object().unwrap().keys() {
        assert!(known.contains(&part.as_str()), "spec.{part} is new: is it given back, left out or closing?");
    }
    assert_eq!(known.len(), spec.as_object().unwrap().len(), "{known:?}");

    let kept = json!({
        "cordoned": true, "taints": [{"key": "exam"}], "housekeeping": {"coresPerNumaCell": 4},
        "devices": [{"name": "mine", "selector": {"uuid": "GPU-1"}, "management": "Unmanaged"}],
    });
    assert_eq!(made(kept.clone()), kept);
    for (words, again) in [
        (json!({}), json!({})),
        (json!({"outOfService": true}), closed()),
        (json!({"outOfService": false, "cordoned": false}), json!({"cordoned": false})),
        (json!({"quarantine": {"until": "later"}}), closed()),
        (
            json!({"strays": [{"uid": "u", "action": "PowerOff"}], "physicalNetworks": [{"name": "lab"}]}),
            json!({}),
        ),
    ] {
        assert_eq!(made(words), again);
    }
}

#[tokio::test]
async fn what_was_not_given_back_is_told_and_remembered_until_the_spec_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let whole =
        json!({"taints": [{"key": "exam"}], "outOfService": true, "physicalNetworks": [{"name": "lab"}]});
    let given_back = json!({"taints": [{"key": "exam"}], "cordoned": true});
    let first = OwnerSpec::load(folder.path());
    assert_eq!(first.again(), json!({}), "a host that never had one");
    first.see(&node("a", 3, whole.clone(), json!({"rack": "a1", "gpudesk.dev/simulated": "true"})));
    assert!(first.condition().0);
    let keeping = async {
        let kept = || fs::read_to_string(folder.path().join("gpu-node.json")).is_ok();
        while !kept() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! { () = keeping => {}, () = first.keep() => {} }

    // The daemon begins anew, and the GpuNode is gone.
    for _ in 0..2 {
        let owner = OwnerSpec::load(folder.path());
        assert_eq!(owner.again(), given_back);
        owner.see(&node("b", 1, given_back.clone(), json!({"gpudesk.dev/simulated": "true"})));
        let (holds, reason, words) = owner.condition();
        assert_eq!((holds, reason), (false, Reason::SpecNotKept));
        for part in [
            "spec.outOfService true (it is cordoned",
            "spec.physicalNetworks [{\"name\":\"lab\"}];",
            "rack=a1",
        ] {
            assert!(words.contains(part), "{part}: {words}");
        }
        assert_eq!(owner.again(), given_back, "and once more, if that one is deleted too");
        // The API had to be asked for a smaller one.
        owner.see(&node("b", 1, closed(), json!({})));
        assert!(owner.condition().2.contains("spec.taints"), "{:?}", owner.condition());
        // Its owner has spoken.
        owner.see(&node("b", 2, json!({"cordoned": false}), json!({})));
        assert_eq!((owner.condition().0, owner.again()), (true, json!({"cordoned": false})));
    }
    // Somebody else made it, with another spec.
    let owner = OwnerSpec::load(folder.path());
    owner.see(&node("c", 1, json!({}), json!({})));
    assert_eq!((owner.condition().0, owner.again()), (true, json!({})));
}

#[test]
fn what_cannot_be_read_closes_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("gpu-node.json"), "{").unwrap();
    let owner = OwnerSpec::load(folder.path());
    assert_eq!(owner.again(), closed());
    owner.see(&node("b", 1, closed(), json!({})));
    let (holds, _, words) = owner.condition();
    assert!(!holds && words.contains("gpu-node.json") && words.contains("cordoned"), "{words}");
    assert_eq!(owner.again(), closed());
    // One that is there says all that there is to know.
    owner.see(&node("a", 1, json!({"taints": [{"key": "exam"}]}), json!({})));
    assert_eq!((owner.condition().0, owner.again()), (true, json!({"taints": [{"key": "exam"}]})));
}

#[tokio::test]
async fn what_cannot_be_written_is_told_and_known_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let owner = OwnerSpec::load(&folder.path().join("gone"));
    owner.see(&node("a", 1, closed(), json!({})));
    let told = async {
        while owner.condition().0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! { () = told => {}, () = owner.keep() => {} }
    let (_, reason, words) = owner.condition();
    assert!(reason == Reason::SpecNotKept && words.contains("gone/gpu-node.json"), "{words}");
    assert_eq!(owner.again(), closed());
}
