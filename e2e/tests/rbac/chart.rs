//! The chart as it stands: policies, settings, pods, rights.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::state::checkout;
use gpudesk_e2e::waiting::eventually;
use serde_json::{Value, json};

use crate::ask::{Person, create, get};

const POLICIES: [&str; 25] = [
    "finalizers.gpudesk.dev",
    "host-networks.gpudesk.dev",
    "inline-user-data.gpudesk.dev",
    "namespace-labels.gpudesk.dev",
    "node-daemon-desktops.gpudesk.dev",
    "node-daemon-events.gpudesk.dev",
    "node-daemon-gpunodes.gpudesk.dev",
    "node-daemon-leases.gpudesk.dev",
    "node-daemon-tokens.gpudesk.dev",
    "operator-accounts.gpudesk.dev",
    "operator-desktop-status.gpudesk.dev",
    "operator-desktops.gpudesk.dev",
    "operator-device-taint-rules.gpudesk.dev",
    "operator-gpunodes.gpudesk.dev",
    "operator-leases.gpudesk.dev",
    "operator-rolebindings.gpudesk.dev",
    "operator-roles.gpudesk.dev",
    "operator-secrets.gpudesk.dev",
    "operator-term.gpudesk.dev",
    "owner-references.gpudesk.dev",
    "priority.gpudesk.dev",
    "sizes.gpudesk.dev",
    "status-owners.gpudesk.dev",
    "status.gpudesk.dev",
    "template-in-use.gpudesk.dev",
];

pub(crate) async fn policies(cluster: Arc<Cluster>) -> Result<()> {
    let admin = Person::admin(&cluster);
    let of = |plural: &str| get(format!("/apis/admissionregistration.k8s.io/v1/{plural}"));
    let items = |list: Value| -> Vec<Value> {
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.into_iter().filter(|item| name(item).ends_with(".gpudesk.dev")).collect()
    };
    let checked = eventually("every policy is type-checked", Duration::from_secs(30), || async {
        let policies = items(admin.may(&of("validatingadmissionpolicies")).await?);
        let all = policies.iter().all(|policy| policy["status"]["observedGeneration"].is_i64());
        Ok((all && !policies.is_empty()).then_some(policies))
    })
    .await?;
    let names: Vec<_> = checked.iter().map(name).collect();
    ensure!(names == POLICIES, "{names:?}");
    for policy in &checked {
        let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
        ensure!(warnings.is_null(), "{}: {warnings:#}", name(policy));
        ensure!(policy["spec"]["failurePolicy"] == "Fail", "{}", name(policy));
    }
    let bindings = items(admin.may(&of("validatingadmissionpolicybindings")).await?);
    let bound: BTreeSet<_> =
        bindings.iter().map(|binding| binding["spec"]["policyName"].to_string()).collect();
    ensure!(bound.len() == POLICIES.len() && bindings.len() == POLICIES.len() + 1, "{bound:?}");
    for binding in &bindings {
        let only_warns = name(binding) == "inline-user-data-warn.gpudesk.dev";
        let actions = if only_warns { json!(["Warn"]) } else { json!(["Deny"]) };
        ensure!(binding["spec"]["validationActions"] == actions, "{binding:#}");
    }
    Ok(())
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// The chart's manifests with `name=value` settings, as JSON values where they look like such.
pub(crate) fn template(cluster: &Cluster, settings: &[&str]) -> Result<String> {
    let mut helm = Command::new(cluster.control_plane().program("helm"));
    helm.args(["template", "gpudesk"]).arg(checkout().join("charts/gpudesk"));
    helm.args(["--namespace", SYSTEM_NAMESPACE, "--skip-tests"]);
    cluster.run(helm.args(settings.iter().flat_map(|setting| ["--set-json", setting])))
}

pub(crate) async fn settings(cluster: Arc<Cluster>) -> Result<()> {
    template(&cluster, &[])?;
    let mut lint = Command::new(cluster.control_plane().program("helm"));
    cluster.run(lint.args(["lint", "--strict"]).arg(checkout().join("charts/gpudesk")))?;
    for (setting, words) in [
        ("operator.replica=3", "replica"),
        ("replicas=3", "replicas"),
        ("operator.replicas=0", "/operator/replicas"),
        (r#"operator.replicas="two""#, "/operator/replicas"),
        ("operator.cpuOvercommit=65", "/operator/cpuOvercommit"),
        (r#"image.pullPolicy="Sometimes""#, "/image/pullPolicy"),
        (r#"image.tag="a b""#, "/image/tag"),
        (r#"operator.deviceTaintRules="auto""#, "/operator/deviceTaintRules"),
        (r#"nodeDaemon.discovery.devicePlugins="kubelet""#, "/nodeDaemon/discovery/devicePlugins"),
        (r#"log.format="xml""#, "/log/format"),
        (r#"nodeDaemon.stateDir="var/lib""#, "/nodeDaemon/stateDir"),
        (r#"nodeDaemon.stateDir="/""#, "/nodeDaemon/stateDir"),
        (r#"nodeDaemon.allowedRoots=["/srv/../etc"]"#, "/nodeDaemon/allowedRoots/0"),
        (r#"nodeDaemon.allowedRoots=["/srv,/etc"]"#, "/nodeDaemon/allowedRoots/0"),
        ("nodeDaemon.imageRoots=[]", "/nodeDaemon/imageRoots"),
        (r#"nodeDaemon.libvirt.uri="qemu+ssh://elsewhere/system""#, "/nodeDaemon/libvirt/uri"),
        (r#"nodeDaemon.maxUnavailable="0%""#, "/nodeDaemon/maxUnavailable"),
        (r#"nodeDaemon.nodeSelector={"a": true}"#, "/nodeDaemon/nodeSelector/a"),
        (r#"nodeDaemon.tolerations=[{"operator": "Is"}]"#, "/nodeDaemon/tolerations/0/operator"),
        (r#"nodeDaemon.acceleration="hvf""#, "/nodeDaemon/acceleration"),
        (r#"nodeDaemon.guestNetwork.filter="none""#, "/nodeDaemon/guestNetwork/filter"),
        ("metrics.port=80", "/metrics/port"),
        (r#"access.aggregate="no""#, "/access/aggregate"),
        ("admission.maxPriority.default=-1", "/admission/maxPriority/default"),
        ("admission.maxPriority.default=1000001", "/admission/maxPriority/default"),
        (r#"admission.apiAudiences=["https://a\"b"]"#, "/admission/apiAudiences/0"),
        (r#"admission.inlineUserData.action="Refuse""#, "/admission/inlineUserData/action"),
        (
            r#"admission.inlineUserData.denyNamespaces={"team": "a"}"#,
            "/admission/inlineUserData/denyNamespaces",
        ),
    ] {
        let refused = template(&cluster, &[setting]).err();
        let said = format!("{:#}", refused.with_context(|| format!("{setting} is accepted"))?);
        ensure!(said.contains("specifications of the schema") && said.contains(words), "{setting}: {said}");
    }
    in_words(&cluster)?;
    let readme = std::fs::read_to_string(checkout().join("README.md"))?;
    let chart = std::fs::read_to_string(checkout().join("charts/gpudesk/Chart.yaml"))?;
    let version = chart.lines().find_map(|line| line.strip_prefix("kubeVersion: \">=")?.split_once(".0-0"));
    let version = version.context("no kubeVersion")?.0;
    ensure!(readme.contains(&format!("Kubernetes {version} or later")), "{version}");
    Ok(())
}

/// What no schema can say is refused in words.
fn in_words(cluster: &Cluster) -> Result<()> {
    for (settings, words) in [
        (&["metrics.port=8443"][..], "metrics.port and nodeDaemon.relay.port are both 8443"),
        (&["nodeDaemon.relay.enabled=false", "nodeDaemon.relay.hostPort=true"], "enable the relay"),
        (&["nodeDaemon.privileged=false"], "set filter to external"),
        (
            &["nodeDaemon.privileged=false", r#"nodeDaemon.guestNetwork.filter="external""#],
            "set acceleration to kvm or emulation",
        ),
        (
            &[r#"image.registry="https://example.org/gpudesk""#],
            "without https:// and without a slash at the end",
        ),
        (&[r#"image.registry="example.org/gpudesk/""#], r#"image.registry is "example.org/gpudesk/";"#),
        (&[r#"log.level="loud""#], r#"log.level is "loud"; write error, warn,"#),
        (
            &[r#"nodeDaemon.guestNetwork.deny=["10.96.0.0/12", "10.96.0.0/33"]"#],
            r#"deny[1] is "10.96.0.0/33"; write"#,
        ),
        (&[r#"nodeDaemon.guestNetwork.deny=["pods"]"#], r#"deny[0] is "pods"; write an address"#),
        (&[r#"nodeDaemon.guestNetwork.deny=["999.1.1.1/16"]"#], "deny[0] is"),
        (&[r#"nodeDaemon.guestNetwork.deny=[":"]"#], "deny[0] is"),
        (
            &[r#"operator.resources.limits.memory="2GB""#],
            "operator.resources.limits.memory is 2GB; write a quantity",
        ),
        (&[r#"nodeDaemon.resources.requests.cpu="-1""#], "nodeDaemon.resources.requests.cpu is -1;"),
        (&[r#"commonLabels={"a b": "x"}"#], r#"commonLabels has the name "a b";"#),
        (&[r#"commonLabels={"a": "x y"}"#], r#"commonLabels.a is "x y";"#),
        (&[r#"operator.podLabels={"a/b/c": "x"}"#], r#"operator.podLabels has the name "a/b/c";"#),
        (&[r#"nodeDaemon.nodeSelector={"a": "-"}"#], r#"nodeDaemon.nodeSelector.a is "-";"#),
        (&[r#"operator.podAnnotations={"a b": "x"}"#], r#"operator.podAnnotations has the name "a b";"#),
        (&[r#"metrics.service.annotations={"": "x"}"#], r#"metrics.service.annotations has the name "";"#),
        (
            &[r#"admission.inlineUserData.denyNamespaces={"matchLabels": {"a": "é"}}"#],
            "denyNamespaces.matchLabels.a is",
        ),
        (
            &[
                r#"admission.inlineUserData.denyNamespaces={"matchExpressions": [{"key": "a", "operator": "In", "values": ["n'o"]}]}"#,
            ],
            "matchExpressions.a is",
        ),
    ] {
        let said = template(cluster, settings).err().with_context(|| format!("{settings:?} is accepted"))?;
        ensure!(format!("{said:#}").contains(words), "{settings:?}: {said:#}");
    }
    for right in [
        r#"log.level="warn""#,
        r#"log.level="info,gpudesk_operator=debug""#,
        r#"operator.resources={"limits": {"memory": 2000000000, "cpu": 0.5}, "requests": {"memory": "1.5Gi", "cpu": "1e3"}}"#,
    ] {
        template(cluster, &[right])?;
    }
    // Only where it may do something about them does it see the host's processes.
    let unable = [
        "nodeDaemon.privileged=false",
        r#"nodeDaemon.acceleration="kvm""#,
        r#"nodeDaemon.guestNetwork.filter="external""#,
    ];
    let unable = template(cluster, &unable)?;
    ensure!(!unable.contains("hostPID") && template(cluster, &[])?.contains("hostPID: true"), "{unable}");
    // Who asks for no taints gets no right to them, and a folder that is not to be looked at is not mounted.
    let less = ["operator.deviceTaintRules=false", r#"nodeDaemon.discovery.devicePlugins="""#];
    let (less, all) = (template(cluster, &less)?, template(cluster, &[])?);
    for words in
        ["resources: [devicetaintrules]", "- --device-taint-rules", "path: /var/lib/kubelet/device-plugins"]
    {
        ensure!(all.contains(words) && !less.contains(words), "{words}: {less}");
    }
    // What a label of a namespace may say is what the selector of namespaces asks for, to which helm adds the default.
    let selector = r#"admission.inlineUserData.denyNamespaces={"matchExpressions": [{"key": "gpudesk.dev/data", "operator": "In", "values": ["no", "never"]}, {"key": "gpudesk.dev/closed", "operator": "Exists"}, {"key": "team", "operator": "In", "values": ["a"]}]}"#;
    let text = template(cluster, &[selector])?;
    ensure!(text.contains("variables.labels['gpudesk.dev/data'] in ['no', 'never']"), "{text}");
    ensure!(
        text.contains("in ['gpudesk.dev/max-priority', 'gpudesk.dev/closed', 'gpudesk.dev/data', 'gpudesk.dev/inline-user-data']"),
        "{text}"
    );
    Ok(())
}

pub(crate) async fn variants(cluster: Arc<Cluster>) -> Result<()> {
    for (index, settings) in [
        &[][..],
        &["nodeDaemon.enabled=false", "metrics.service.enabled=true", "operator.replicas=1"],
        &[
            "nodeDaemon.privileged=false",
            r#"nodeDaemon.acceleration="kvm""#,
            r#"nodeDaemon.guestNetwork.filter="external""#,
            r#"nodeDaemon.guestNetwork.deny=["10.244.0.0/16", "fd00:10:96::/112"]"#,
            "nodeDaemon.guestNetwork.group=2113000003",
            "metrics.service.enabled=true",
            r#"metrics.service.annotations={"prometheus.io/scrape": "true"}"#,
            r#"nodeDaemon.allowedRoots=["/srv/vms", "/mnt/nas"]"#,
            r#"nodeDaemon.discovery.nvml="/run/nvidia/driver/usr/lib/libnvidia-ml.so.1""#,
            r#"nodeDaemon.discovery.hook="/opt/site/hook""#,
            r#"nodeDaemon.discovery.devicePlugins="""#,
            "operator.deviceTaintRules=false",
            r#"nodeDaemon.discovery.kubeletConfig="/var/lib/kubelet/config.yaml""#,
            r#"nodeDaemon.discovery.kubeletConfigDirs=["/etc/kubernetes/kubelet.conf.d"]"#,
            r#"nodeDaemon.relay={"hostPort": true, "announce": "$(NODE_NAME).example.org"}"#,
            r#"nodeDaemon.imageRoots=["/var/lib/gpudesk/images", "/mnt/images"]"#,
            r#"nodeDaemon.libvirt.uri="qemu:///system?mode=direct""#,
            r#"nodeDaemon.tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]"#,
            "nodeDaemon.maxUnavailable=1",
            r#"image={"registry": "localhost:5000/gpudesk", "tag": "1.0", "pullSecrets": ["pull"]}"#,
            r#"commonLabels={"team": "labs"}"#,
            "access.aggregate=false",
            "access.profilesForAll=false",
            r#"operator.affinity={"nodeAffinity": {}}"#,
            r#"operator.podAnnotations={"a": "b"}"#,
            r#"nodeDaemon.podLabels={"a": "b"}"#,
            r#"admission.inlineUserData.action="Deny""#,
            r#"admission.inlineUserData.denyNamespaces={"matchExpressions": [{"key": "gpudesk.dev/a", "operator": "Exists"}]}"#,
            "admission.maxPriority.default=1000",
        ],
    ]
    .into_iter()
    .enumerate()
    {
        let file = cluster.state().join(format!("chart-{index}.yaml"));
        std::fs::write(&file, template(&cluster, settings)?)?;
        let file = file.display().to_string();
        // Strict: a field in the wrong place is an error and not left out in silence.
        cluster.kubectl([
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--validate=strict",
            "--filename",
            &file,
        ])?;
    }
    Ok(())
}

pub(crate) async fn pods(cluster: Arc<Cluster>) -> Result<()> {
    let admin = Person::admin(&cluster);
    let of = |plural: &str, name: &str| {
        get(format!("/apis/apps/v1/namespaces/{SYSTEM_NAMESPACE}/{plural}/{name}"))
    };
    let operator = admin.may(&of("deployments", "gpudesk-operator")).await?;
    let pod = &operator["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    ensure!(operator["spec"]["replicas"] == 2);
    ensure!(
        pod["securityContext"]["runAsNonRoot"] == true && pod["serviceAccountName"] == "gpudesk-operator"
    );
    ensure!(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault");
    ensure!(pod["hostNetwork"].is_null() && pod["hostPID"].is_null() && pod["volumes"].is_null(), "{pod:#}");
    let expected = json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}
    });
    ensure!(container["securityContext"] == expected, "{container:#}");
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        ensure!(container[probe]["httpGet"]["port"] == "metrics", "{container:#}");
    }

    let daemon = admin.may(&of("daemonsets", "gpudesk-node-daemon")).await?;
    let pod = &daemon["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    ensure!(pod["serviceAccountName"] == "gpudesk-node-daemon" && pod["hostNetwork"].is_null(), "{pod:#}");
    ensure!(daemon["spec"]["updateStrategy"]["type"] == "RollingUpdate");
    ensure!(container["securityContext"]["readOnlyRootFilesystem"] == true);
    let arguments = container["args"].as_array().context("no arguments")?;
    ensure!(arguments[..2] == [json!("run"), json!("--node-name=$(NODE_NAME)")], "{arguments:?}");
    ensure!(container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName");
    let mounts = container["volumeMounts"].as_array().context("no mounts")?;
    let image_root = mounts.iter().find(|mount| mount["mountPath"] == "/var/lib/gpudesk/images");
    ensure!(image_root.is_some_and(|mount| mount["readOnly"] == true), "{mounts:?}");
    Ok(())
}

/// What an account may do, one line per group and resource.
async fn rights_of(cluster: &Cluster, account: &str, namespace: &str) -> Result<BTreeSet<String>> {
    let user = format!("system:serviceaccount:{SYSTEM_NAMESPACE}:{account}");
    let person = Person::user(cluster, &user);
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}
    });
    let review = person.may(&create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)).await?;
    let mut rights = BTreeSet::new();
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    for rule in review["status"]["resourceRules"].as_array().context("no rules")? {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                let mut verbs = texts(&rule["verbs"]);
                verbs.sort();
                let names = texts(&rule["resourceNames"]).join(",");
                let dot = if group.is_empty() { "" } else { "." };
                rights.insert(
                    format!("{resource}{dot}{group} {names}: {}", verbs.join(" ")).replace(" :", ":"),
                );
            }
        }
    }
    // What Kubernetes gives everybody, and the chart every user.
    rights.retain(|right| {
        !right.starts_with("selfsubject") && right != "gpuprofiles.gpudesk.dev: get list watch"
    });
    Ok(rights)
}

pub(crate) async fn rights(cluster: Arc<Cluster>) -> Result<()> {
    let operator = [
        "desktops.gpudesk.dev/status: patch",
        "desktops.gpudesk.dev: get list watch",
        "desktops.gpudesk.dev: patch",
        "desktoptemplates.gpudesk.dev/status: patch",
        "desktoptemplates.gpudesk.dev: get list watch",
        "desktoptemplates.gpudesk.dev: patch",
        "devicetaintrules.resource.k8s.io: create delete get list watch",
        "gpunodes.gpudesk.dev/status: patch",
        "gpunodes.gpudesk.dev: get list watch",
        "gpuprofiles.gpudesk.dev/status: patch",
        "nodes: get",
        "resourceslices.resource.k8s.io: get list watch",
        "rolebindings.rbac.authorization.k8s.io: create delete get list patch watch",
        "roles.rbac.authorization.k8s.io: create delete get list patch watch",
        "secrets: get",
    ];
    let operator_at_home = [
        "leases.coordination.k8s.io: create get list watch",
        "leases.coordination.k8s.io gpudesk-operator: update",
        "secrets: create",
        "serviceaccounts: create get list watch",
    ];
    let daemon = [
        "desktops.gpudesk.dev/status: patch",
        "desktops.gpudesk.dev: get list watch",
        "desktoptemplates.gpudesk.dev: get list watch",
        "gpunodes.gpudesk.dev/status: patch",
        "gpunodes.gpudesk.dev: create get list patch watch",
        "namespaces kube-system: get",
    ];
    let daemon_at_home = ["leases.coordination.k8s.io: create get patch", "serviceaccounts/token: create"];
    let daemon_in_default = ["events.events.k8s.io: create"];
    for (account, everywhere, at_home, in_default) in [
        ("gpudesk-operator", &operator[..], &operator_at_home[..], &[][..]),
        ("gpudesk-node-daemon", &daemon, &daemon_at_home, &daemon_in_default),
        ("gpudesk-node-some-node", &[], &[], &[]),
    ] {
        for (namespace, expected) in [
            ("default", [everywhere, in_default].concat()),
            (SYSTEM_NAMESPACE, [everywhere, at_home].concat()),
        ] {
            let rights = rights_of(&cluster, account, namespace).await?;
            // `desktops/status.gpudesk.dev` reads better with the group first.
            let rights: BTreeSet<String> = rights
                .iter()
                .map(|right| right.replace("/status.gpudesk.dev", ".gpudesk.dev/status"))
                .collect();
            let expected = expected.into_iter().map(str::to_owned).collect();
            ensure!(rights == expected, "{account} in {namespace}: {rights:#?}");
        }
    }
    Ok(())
}
