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

/// What is kept in `folder`, in the cluster of the host.
fn load(folder: &Path) -> OwnerSpec {
    OwnerSpec::load(folder, watch::channel(Some("here".into())).1)
}

/// What a daemon makes again that has seen this spec.
fn made(spec: Value) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let owner = load(folder.path());
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
    let whole = json!({
        "taints": [{"key": "exam"}], "outOfService": true, "physicalNetworks": [{"name": "lab"}],
        "strays": [{"uid": "u", "action": "PowerOff"}], "removeOrphansBefore": "2026-01-05T08:00:00Z",
    });
    let given_back = json!({"taints": [{"key": "exam"}], "cordoned": true});
    let first = load(folder.path());
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
        let owner = load(folder.path());
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
        for part in ["strays", "removeOrphansBefore"] {
            assert!(!words.contains(part), "that is missed by nobody: {words}");
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
    let owner = load(folder.path());
    owner.see(&node("c", 1, json!({}), json!({})));
    assert_eq!((owner.condition().0, owner.again()), (true, json!({})));
}

#[test]
fn what_cannot_be_read_closes_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("gpu-node.json"), "{").unwrap();
    let owner = load(folder.path());
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
    let owner = load(&folder.path().join("gone"));
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

#[test]
fn who_wrote_a_spec_tells_whether_it_is_what_its_owner_wants() {
    let folder = tempfile::tempdir().unwrap();
    let made_here = || {
        let mut node = node("b", 1, closed(), json!({}));
        let fields = |manager: &str, fields: Value| ManagedFieldsEntry {
            manager: Some(manager.into()),
            fields_v1: Some(serde_json::from_value(fields).unwrap()),
            ..ManagedFieldsEntry::default()
        };
        node.metadata.managed_fields = Some(vec![
            fields(NODE_DAEMON_FIELD_MANAGER, json!({"f:spec": {"f:cordoned": {}}})),
            fields("gpudesk-operator", json!({"f:status": {"f:operatorTerm": {}}})),
            fields("kubectl-label", json!({"f:metadata": {"f:labels": {"f:rack": {}}}})),
        ]);
        (node, fields)
    };
    let lost = || {
        let owner = load(folder.path());
        owner.see(&node("a", 3, json!({"outOfService": true}), json!({})));
        owner
    };
    let owner = lost();
    owner.see(&made_here().0);
    assert_eq!(owner.condition().1, Reason::SpecNotKept, "nobody wrote its spec");
    // Server-side apply makes its user an owner of what was there; client-side apply leaves a note.
    for applied in [true, false] {
        let owner = lost();
        let (mut node, fields) = made_here();
        if applied {
            let spec = fields("flux", json!({"f:spec": {"f:cordoned": {}}}));
            node.metadata.managed_fields.as_mut().unwrap().push(spec);
        } else {
            node.metadata.annotations = Some([(LAST_APPLIED.into(), "{}".into())].into());
        }
        owner.see(&node);
        assert_eq!((owner.condition().0, owner.again()), (true, closed()), "{applied}");
        owner.see(&node_without_word(&node));
        assert!(owner.condition().0, "and it is what is remembered");
    }
}

/// The same, as its daemon made it.
fn node_without_word(node: &DynamicObject) -> DynamicObject {
    let mut node = node.clone();
    (node.metadata.managed_fields, node.metadata.annotations) = (None, None);
    node
}

#[tokio::test]
async fn what_another_cluster_says_is_not_kept_and_what_is_kept_is_not_said_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gpu-node.json");
    let (cluster, at) = watch::channel(None);
    let owner = OwnerSpec::load(folder.path(), at);
    assert_eq!(owner.again(), json!({}), "a host that never had one");
    let taints = json!({"taints": [{"key": "exam"}]});
    // Before it is known whose the host is, nothing is taken in, and then what was seen last.
    owner.see(&node("a", 3, taints.clone(), json!({})));
    assert_eq!(owner.condition().1, Reason::Unknown);
    let written = async || {
        while fs::read(&file).is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = async { cluster.send_replace(Some("one".into())); written().await } => {}
        () = owner.keep() => {}
    }
    assert_eq!((owner.condition().0, owner.again()), (true, taints.clone()));
    // Another cluster's API server answers in its place.
    cluster.send_replace(None);
    owner.see(&node("b", 2, json!({}), json!({})));
    assert_eq!((owner.condition().1, owner.again()), (Reason::Unknown, closed()));
    cluster.send_replace(Some("one".into()));
    assert_eq!(owner.again(), taints);
    // The host was taken over by another one.
    let owner = OwnerSpec::load(folder.path(), watch::channel(Some("two".into())).1);
    assert_eq!(owner.again(), closed(), "what it kept is another's");
    owner.see(&node("b", 2, json!({}), json!({})));
    assert_eq!((owner.condition().0, owner.again()), (true, json!({})));
}
