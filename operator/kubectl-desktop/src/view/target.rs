//! Where the screen of a desktop is, or why there is none to see. Pure.

use gpudesk_crds::{
    Desktop,
    conditions::{self, ConditionType},
    desktop::{ConsoleRelay, ConsoleType, PowerState},
    gpu_node_status::Acceleration,
};

/// Where the screen of a desktop is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Namespace of the desktop.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The node that it runs on.
    pub node: String,
    /// The relay of that node.
    pub relay: ConsoleRelay,
}

/// Where the screen of `desktop` is.
///
/// # Errors
/// A sentence that says why there is none to see now, and what would change that.
pub fn of(desktop: &Desktop) -> Result<Target, String> {
    let namespace = desktop.metadata.namespace.clone().unwrap_or_default();
    let name = desktop.metadata.name.clone().unwrap_or_default();
    let shown = format!("{namespace}/{name}");
    let status = desktop.status.clone().unwrap_or_default();
    let Some((domain, allocation)) = status.domain.zip(status.allocation) else {
        return Err(format!("{shown} {}", not_there(desktop, &namespace, &name)));
    };
    let node = allocation.node;
    if domain.acceleration == Acceleration::Simulated {
        return Err(format!(
            "{shown} is on the simulated host {node}: no guest runs there, and none has a screen"
        ));
    }
    let Some(console) = status.consoles.into_iter().find(|console| console.console_type == ConsoleType::Vnc)
    else {
        return Err(format!(
            "{shown} has no VNC screen: its DesktopTemplate {} has none in spec.consoles, or is a microvm",
            desktop.spec.template_ref.name
        ));
    };
    let Some(relay) = console.relay else {
        let open = match console.address {
            nowhere if nowhere.is_empty() => String::new(),
            address => format!("; the screen is at {address} there"),
        };
        return Err(format!(
            "{shown} runs on node {node}, whose daemon has no relay: --relay-addr is empty, the address was taken when \
             it started (its log says so), or it is an older version{open}"
        ));
    };
    let uid = desktop.metadata.uid.clone().unwrap_or_default();
    Ok(Target { namespace, name, uid, node, relay })
}

/// Why there is no machine.
fn not_there(desktop: &Desktop, namespace: &str, name: &str) -> String {
    if desktop.metadata.deletion_timestamp.is_some() {
        return "is being deleted".into();
    }
    if desktop.spec.power_state == PowerState::Stopped {
        let patch = r#"{"spec":{"powerState":"Running"}}"#;
        return format!(
            "is stopped; to start it: kubectl patch desktop {name} -n {namespace} --type=merge -p '{patch}'"
        );
    }
    let conditions = desktop.status.as_ref().map_or(&[][..], |status| &status.conditions);
    match conditions::find(conditions, ConditionType::Ready).filter(|ready| ready.status != "True") {
        Some(ready) if ready.message.is_empty() => format!("does not run yet: {}", ready.reason),
        Some(ready) => format!("does not run: {}", ready.message),
        None => "does not run yet: the operator has said nothing of it".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn desktop(mut spec: Value, status: &Value) -> Desktop {
        spec["templateRef"] = json!({"name": "office"});
        serde_json::from_value(json!({
            "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop",
            "metadata": {"name": "anna", "namespace": "school", "uid": "u-1"},
            "spec": spec, "status": status,
        }))
        .unwrap()
    }

    fn running(acceleration: &str, consoles: &Value) -> Desktop {
        let allocation = json!({"node": "gpu-1", "desktopGeneration": 1, "templateGeneration": 1,
            "decidedAt": "2026-01-05T08:00:00Z"});
        let domain = json!({"name": "school.anna", "acceleration": acceleration});
        desktop(json!({}), &json!({"allocation": allocation, "domain": domain, "consoles": consoles}))
    }

    #[test]
    fn a_machine_that_runs_has_its_screen_at_the_relay_of_its_node() {
        let relay = json!({"address": "192.0.2.7:8443", "publicKey": "key"});
        let target = of(&running("Kvm", &json!([{"type": "VNC", "relay": relay}]))).unwrap();
        assert_eq!((target.uid.as_str(), target.node.as_str()), ("u-1", "gpu-1"));
        assert_eq!(
            (target.relay.address.as_str(), target.relay.public_key.as_str()),
            ("192.0.2.7:8443", "key")
        );
    }

    #[test]
    fn why_there_is_none_is_said_with_what_would_change_it() {
        let ready = |reason: &str, message: &str| {
            json!({"conditions": [{"type": "Ready", "status": "False", "reason": reason, "message": message,
                "lastTransitionTime": "2026-01-05T08:00:00Z"}]})
        };
        let mut leaving = desktop(json!({}), &json!({}));
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-05T08:00:00Z")).unwrap();
        let cases = vec![
            (
                desktop(json!({"powerState": "Stopped"}), &json!({})),
                "school/anna is stopped; to start it: kubectl patch",
            ),
            (desktop(json!({}), &json!({})), "does not run yet: the operator has said nothing"),
            (
                desktop(json!({}), &ready("Unsatisfiable", "0/5 nodes: 5 cordoned")),
                "does not run: 0/5 nodes: 5 cordoned",
            ),
            (desktop(json!({}), &ready("Starting", "")), "does not run yet: Starting"),
            (leaving, "is being deleted"),
            (running("Simulated", &json!([{"type": "VNC"}])), "simulated host gpu-1"),
            (running("Kvm", &json!([])), "DesktopTemplate office has none"),
            (running("Kvm", &json!([{"type": "SPICE"}])), "has no VNC screen"),
            (running("Kvm", &json!([{"type": "VNC"}])), "node gpu-1, whose daemon has no relay"),
            (running("Kvm", &json!([{"type": "VNC", "address": ""}])), "or it is an older version"),
            (
                running("Kvm", &json!([{"type": "VNC", "address": "127.0.0.1:5901"}])),
                "is at 127.0.0.1:5901 there",
            ),
        ];
        for (desktop, words) in cases {
            let said = of(&desktop).unwrap_err();
            assert!(said.contains(words), "{words:?} is missing in {said:?}");
            assert!(!said.contains("is at  there"), "{said:?}");
        }
    }
}
