//! What the operator keeps in order though somebody else, or nobody, does something: Roles that are
//! deleted, a namespace that ends, a node that falls silent, templates, desktops and layouts of cards that change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::{self, ConditionType, Reason};
use gpudesk_crds::{GpuNode, RELEASE_FINALIZER};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::objects::{Objects, condition};
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::Service;
use gpudesk_e2e::state::{StateDir, checkout};
use gpudesk_e2e::trials::{Environment, Suite};
use gpudesk_e2e::waiting::{eventually, until, until_gone};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::sync::Mutex;

const NODE: &str = "upkeep-1";
const ROLE: &str = "gpudesk-node-upkeep-1";
/// A node that falls silent; the other trials do not use it.
const SILENT: &str = "upkeep-silent";
const SOON: Duration = Duration::from_secs(90);
const TEMPLATE: &str = "{cpu: {cores: 1}, memory: {sizeMiB: 512}, guestAgent: false, \
     disks: [{name: system, image: {name: any}}], allowOverrides: [Cpu, CloudInit]}";

fn main() -> ExitCode {
    Suite::<Upkeep>::new("upkeep")
        .trial("a_namespace_whose_desktops_name_two_secrets_is_deleted", namespace_ends)
        .trial("a_role_that_somebody_deletes_comes_back", role_comes_back)
        .trial("a_foreign_role_is_named_and_left_alone", foreign_role)
        .trial("a_quota_on_roles_is_said_by_the_desktop", quota)
        .trial("a_silent_daemon_is_told_by_its_node_its_desktops_and_the_metric", silent_daemon)
        .trial("a_template_deleted_at_once_stays_while_it_is_used", template_stays)
        .trial("a_change_is_told_field_by_field_and_a_hopeless_restart_not_made", changes)
        .trial("a_fixed_layout_gives_its_places_and_a_new_one_waits_for_those_in_use", layouts)
        .run()
}

struct Upkeep {
    daemons: Mutex<Vec<Service>>,
    operator: Mutex<Service>,
    cluster: Cluster,
}

impl Environment for Upkeep {
    async fn start() -> Result<Self> {
        let state = Arc::new(StateDir::for_test("upkeep")?);
        let cluster = Cluster::start_in(&state, Lifetime::Test).await?;
        let operator = cluster.start_operator().await?;
        let file = checkout().join("examples/hosts/l40s-4.yaml");
        let daemon = cluster.start_simulated(NODE, &file).await?;
        Ok(Self { daemons: Mutex::new(vec![daemon]), operator: Mutex::new(operator), cluster })
    }

    async fn stop(self) -> Result<()> {
        for daemon in self.daemons.into_inner() {
            daemon.stop()?;
        }
        self.operator.into_inner().stop()?;
        self.cluster.stop_control_plane()
    }

    fn collect_logs(&self, suite: &str) -> Result<Option<std::path::PathBuf>> {
        self.cluster.save_evidence(suite).map(Some)
    }
}

impl Upkeep {
    async fn objects(&self, name: &str) -> Result<Objects> {
        let objects = Objects::new(self.cluster.client(), &self.cluster.namespace(name).await?);
        objects.template("t", TEMPLATE).await?;
        Ok(objects)
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client().clone(), namespace)
    }

    /// A Secret with user data, and a desktop on [`NODE`] that names it.
    async fn with_secret(&self, objects: &Objects, name: &str) -> Result<()> {
        let secret = Secret {
            metadata: ObjectMeta { name: Some(format!("s-{name}")), ..ObjectMeta::default() },
            string_data: Some([("userData".to_owned(), "#cloud-config\n".to_owned())].into()),
            ..Secret::default()
        };
        self.api::<Secret>(objects.namespace()).create(&PostParams::default(), &secret).await?;
        let own = format!("overrides: {{cloudInit: {{secretRef: {{name: s-{name}}}}}}}");
        objects.desktop(name, &format!("{{templateRef: {{name: t}}, {own}}}")).await?;
        Ok(())
    }

    /// The Secrets that the node may read in a namespace.
    async fn readable(&self, namespace: &str) -> Result<Option<Vec<String>>> {
        let role = self.api::<Role>(namespace).get_opt(ROLE).await?;
        Ok(role.map(|role| {
            role.rules
                .into_iter()
                .flatten()
                .flat_map(|rule| rule.resource_names.unwrap_or_default())
                .collect()
        }))
    }
}

async fn namespace_ends(environment: Arc<Upkeep>) -> Result<()> {
    let objects = environment.objects("room").await?;
    for name in ["a", "b"] {
        environment.with_secret(&objects, name).await?;
    }
    for name in ["a", "b"] {
        objects.is(name, ConditionType::Ready, true, SOON).await?;
    }
    let both = Some(vec!["s-a".to_owned(), "s-b".to_owned()]);
    ensure!(environment.readable(objects.namespace()).await? == both);
    environment.cluster.kubectl(["delete", "namespace", objects.namespace(), "--timeout=90s"])?;
    Ok(())
}

async fn role_comes_back(environment: Arc<Upkeep>) -> Result<()> {
    let objects = environment.objects("role").await?;
    environment.with_secret(&objects, "a").await?;
    objects.is("a", ConditionType::Ready, true, SOON).await?;
    let roles = environment.api::<Role>(objects.namespace());
    let bindings = environment.api::<RoleBinding>(objects.namespace());
    let first = roles.get(ROLE).await?.uid();
    roles.delete(ROLE, &DeleteParams::default()).await?;
    bindings.delete(ROLE, &DeleteParams::default()).await?;
    let back = || async {
        let (role, binding) = (roles.get_opt(ROLE).await?, bindings.get_opt(ROLE).await?);
        Ok((role.is_some_and(|role| role.uid() != first) && binding.is_some()).then_some(()))
    };
    eventually("Role and RoleBinding are made anew", SOON, back).await?;
    // Somebody widens it by hand.
    let wider = json!({"rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"]}]});
    roles.patch(ROLE, &PatchParams::default(), &Patch::Merge(wider)).await?;
    eventually("it is as small as it was", SOON, || async {
        Ok((environment.readable(objects.namespace()).await? == Some(vec!["s-a".into()])).then_some(()))
    })
    .await?;
    objects.delete("a", SOON).await?;
    until_gone(&roles, ROLE, SOON).await
}

async fn foreign_role(environment: Arc<Upkeep>) -> Result<()> {
    let objects = environment.objects("foreign").await?;
    let roles = environment.api::<Role>(objects.namespace());
    let metadata = ObjectMeta { name: Some(ROLE.into()), ..ObjectMeta::default() };
    let theirs = Role { metadata, rules: Some(vec![]) };
    roles.create(&PostParams::default(), &theirs).await?;
    environment.with_secret(&objects, "a").await?;
    let said = objects.says("a", ConditionType::Ready, Reason::SecretNotReadable, SOON).await?;
    ensure!(said.message.contains("was made by somebody else"), "{said:?}");
    ensure!(environment.readable(objects.namespace()).await? == Some(vec![]), "it was overwritten");
    roles.delete(ROLE, &DeleteParams::default()).await?;
    objects.is("a", ConditionType::Ready, true, Duration::from_mins(3)).await?;
    objects.delete("a", SOON).await
}

async fn quota(environment: Arc<Upkeep>) -> Result<()> {
    let objects = environment.objects("quota").await?;
    let none = "--hard=count/roles.rbac.authorization.k8s.io=0";
    environment.cluster.kubectl(["create", "quota", "none", none, "-n", objects.namespace()])?;
    environment.with_secret(&objects, "a").await?;
    let said = objects.says("a", ConditionType::Ready, Reason::SecretNotReadable, SOON).await?;
    ensure!(said.message.contains("exceeded quota"), "{said:?}");
    objects.delete("a", SOON).await
}

async fn silent_daemon(environment: Arc<Upkeep>) -> Result<()> {
    let objects = environment.objects("silent").await?;
    let nodes: Api<GpuNode> = Api::all(environment.cluster.client().clone());
    let heard = |node: &GpuNode, status: &str| {
        let said = node.status.as_ref();
        let said =
            said.and_then(|said| conditions::find(&said.conditions, ConditionType::DaemonHeard).cloned());
        said.is_some_and(|said| said.status == status)
    };
    let file = checkout().join("examples/hosts/l40s-4.yaml");
    let mut daemon = environment.cluster.start_simulated(SILENT, &file).await?;
    until(&nodes, SILENT, "its daemon is heard", SOON, |node| heard(node, "True")).await?;
    environment.cluster.kubectl(["label", "gpunode", SILENT, "upkeep=silent"])?;
    let spec = "{templateRef: {name: t}, nodeSelector: {upkeep: silent}}";
    objects.desktop("a", spec).await?;
    objects.is("a", ConditionType::Ready, true, SOON).await?;

    daemon.kill()?;
    // Nobody waits for three minutes: the lease says that it is a short one.
    let leases = environment.api::<Lease>(SYSTEM_NAMESPACE);
    let short = json!({"spec": {"leaseDurationSeconds": 1}});
    leases.patch(&format!("gpudesk-node-{SILENT}"), &PatchParams::default(), &Patch::Merge(short)).await?;
    until(&nodes, SILENT, "its daemon is silent", SOON, |node| heard(node, "False")).await?;
    let said = objects.says("a", ConditionType::Ready, Reason::DaemonSilent, SOON).await?;
    ensure!(said.status == "Unknown" && said.message.contains(" is silent since 20"), "{said:?}");
    let desktop = objects.desktops().get("a").await?;
    let status = desktop.status.as_ref().context("it has a status")?;
    ensure!(status.phase == Some(gpudesk_crds::desktop::Phase::Unknown), "{:?}", status.phase);
    ensure!(status.allocation.as_ref().is_some_and(|held| held.node == SILENT && held.compute.is_some()));
    let metrics = environment.operator.lock().await.metrics().await?;
    ensure!(metrics.contains(&format!("gpudesk_operator_node_silent{{node=\"{SILENT}\"}} 1")), "{metrics}");

    // An operator that begins then believes nothing that it has not seen.
    environment.operator.lock().await.restart()?;
    environment.operator.lock().await.wait_ready().await?;
    objects.desktop("b", spec).await?;
    let said = objects.says("b", ConditionType::Ready, Reason::Unschedulable, SOON).await?;
    ensure!(said.message.contains("node daemon silent"), "{said:?}");

    daemon.restart()?;
    until(&nodes, SILENT, "its daemon is heard again", SOON, |node| heard(node, "True")).await?;
    for name in ["a", "b"] {
        objects.is(name, ConditionType::Ready, true, SOON).await?;
        objects.delete(name, SOON).await?;
    }
    environment.daemons.lock().await.push(daemon);
    Ok(())
}

async fn template_stays(environment: Arc<Upkeep>) -> Result<()> {
    let objects = environment.objects("template").await?;
    let ours =
        |object: &gpudesk_crds::DesktopTemplate| object.finalizers().iter().any(|f| f == RELEASE_FINALIZER);
    until(&objects.templates(), "t", "it has the finalizer", SOON, ours).await?;
    objects.desktop("a", "{templateRef: {name: t}}").await?;
    // Refused once the count is in its status, a moment later; before that, it waits for the desktop.
    let _ = objects.templates().delete("t", &DeleteParams::default()).await;
    objects.is("a", ConditionType::Ready, true, SOON).await?;
    ensure!(objects.templates().get_opt("t").await?.is_some(), "it is gone although a desktop uses it");
    objects.delete("a", SOON).await?;
    eventually("nobody names it any more, and it can go", SOON, || async {
        match objects.templates().get_opt("t").await? {
            None => return Ok(Some(())),
            Some(there) if there.metadata.deletion_timestamp.is_none() => {
                let _ = objects.templates().delete("t", &DeleteParams::default()).await;
            }
            Some(_) => {}
        }
        Ok(None)
    })
    .await
}

async fn changes(environment: Arc<Upkeep>) -> Result<()> {
    let objects = environment.objects("changes").await?;
    objects.desktop("a", "{templateRef: {name: t}}").await?;
    objects.is("a", ConditionType::Ready, true, SOON).await?;
    objects.patch("a", json!({"spec": {"overrides": {"cpu": {"cores": 2}}}})).await?;
    let said = objects.says("a", ConditionType::RestartRequired, Reason::SpecChanged, SOON).await?;
    ensure!(said.message.contains("cpu.cores was 1 and is 2 now"), "{said:?}");
    // More than the host has: the restart would not come back.
    let restart =
        |at: &str| json!({"metadata": {"annotations": {gpudesk_crds::RESTARTED_AT_ANNOTATION: at}}});
    objects.patch("a", json!({"spec": {"overrides": {"cpu": {"cores": 512}}}})).await?;
    objects.patch("a", restart("one")).await?;
    // The counts come first, and that no host could ever do a moment later.
    until(&objects.desktops(), "a", "the restart is refused for 512 vCPUs", SOON, |desktop| {
        condition(desktop, ConditionType::RestartRequired).is_some_and(|said| {
            said.reason == Reason::RestartRefused.as_str() && said.message.contains("needs 512 vCPUs")
        })
    })
    .await?;
    let desktop = objects.desktops().get("a").await?;
    let running = condition(&desktop, ConditionType::Running).context("it says whether it runs")?;
    ensure!(running.status == "True", "{running:?}");
    objects.patch("a", json!({"spec": {"overrides": {"cpu": {"cores": 2}}}})).await?;
    let began = Instant::now();
    until(&objects.desktops(), "a", "it runs with two cores", SOON, |desktop| {
        let allocation = desktop.status.as_ref().and_then(|status| status.allocation.as_ref());
        let cores = allocation.and_then(|held| held.compute.as_ref()).map(|compute| compute.cores);
        cores == Some(2)
            && condition(desktop, ConditionType::Ready).is_some_and(|ready| ready.status == "True")
    })
    .await?;
    println!("restarted after {:.1?}", began.elapsed());
    objects.delete("a", SOON).await
}

/// Lets desktops have one card of [`NODE`] alone, with this layout of vGPUs.
async fn lay_out(nodes: &Api<GpuNode>, types: &[&str]) -> Result<()> {
    let node = until(nodes, NODE, "it shows its cards", SOON, |node| {
        node.status.as_ref().is_some_and(|status| status.devices.len() == 4)
    })
    .await?;
    let cards = node.status.iter().flat_map(|status| &status.devices).map(|card| card.pci_address);
    let rules = cards.enumerate().map(|(number, card)| {
        let rule = json!({"name": format!("card-{number}"), "selector": {"pciAddress": card}});
        let own = match number {
            0 => json!({"mode": "Vgpu", "layout": {"vgpu": types}}),
            _ => json!({"management": "Unmanaged"}),
        };
        rule.as_object()
            .into_iter()
            .chain(own.as_object())
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    });
    let rules: Vec<serde_json::Map<String, serde_json::Value>> = rules.collect();
    let patch = json!({"spec": {"devices": rules}});
    nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Waits until the layout of [`NODE`] is applied, or is not for this reason; what is said of it.
async fn is_laid_out(nodes: &Api<GpuNode>, reason: Reason) -> Result<(GpuNode, String)> {
    let node = until(nodes, NODE, &format!("LayoutApplied says {reason}"), SOON, |node| {
        let status = node.status.as_ref();
        let said =
            status.and_then(|status| conditions::find(&status.conditions, ConditionType::LayoutApplied));
        said.is_some_and(|said| {
            said.reason == reason.as_str() && said.observed_generation == node.metadata.generation
        })
    })
    .await?;
    let status = node.status.as_ref().context("it has a status")?;
    let said = conditions::find(&status.conditions, ConditionType::LayoutApplied).context("it is said")?;
    let message = said.message.clone();
    Ok((node, message))
}

async fn layouts(environment: Arc<Upkeep>) -> Result<()> {
    let objects = environment.objects("layouts").await?;
    let nodes: Api<GpuNode> = Api::all(environment.cluster.client().clone());
    environment.cluster.kubectl(["label", "gpunode", NODE, "upkeep=layouts"])?;
    objects.profile("half", "{alternatives: [{vgpu: {series: Q, framebufferMiB: 24576}}]}").await?;
    let with_gpu =
        TEMPLATE.replace("guestAgent", "gpus: [{name: screen, profileRef: {name: half}}], guestAgent");
    objects.template("half", &with_gpu).await?;

    lay_out(&nodes, &["L40S-24Q"]).await?;
    let (node, _) = is_laid_out(&nodes, Reason::AsExpected).await?;
    let places = &node.status.as_ref().context("it has a status")?.devices[0].layout;
    ensure!(places.len() == 1 && places[0].type_name == "L40S-24Q" && places[0].count == 1, "{places:?}");
    for name in ["a", "b"] {
        objects.desktop(name, "{templateRef: {name: half}, nodeSelector: {upkeep: layouts}}").await?;
        if name == "a" {
            objects.is("a", ConditionType::Ready, true, SOON).await?;
        }
    }
    // The card has room for a second one, and its layout has not.
    let taken = |desktop: &gpudesk_crds::Desktop| {
        condition(desktop, ConditionType::Allocated)
            .is_some_and(|said| said.message.contains("in layouts taken"))
    };
    until(&objects.desktops(), "b", "the one place is taken", SOON, taken).await?;

    // A layout without what is in use waits for who has it, and disturbs nobody.
    let began =
        |desktop: &gpudesk_crds::Desktop| desktop.status.as_ref()?.domain.as_ref()?.started_at.clone();
    let before = began(&objects.desktops().get("a").await?);
    lay_out(&nodes, &["L40S-16Q", "L40S-16Q", "L40S-16Q"]).await?;
    let (_, said) = is_laid_out(&nodes, Reason::LayoutInUse).await?;
    ensure!(said.contains(&format!("{}/a (L40S-24Q)", objects.namespace())), "{said}");
    let desktop = objects.is("a", ConditionType::Ready, true, SOON).await?;
    ensure!(before.is_some() && began(&desktop) == before, "it was disturbed");
    lay_out(&nodes, &["L40S-16Q", "L40S-8Q"]).await?;
    let (_, said) = is_laid_out(&nodes, Reason::InvalidSpec).await?;
    ensure!(said.contains("vgpuPlacement: MixedSize"), "{said}");

    // As many as it has places, once there is room.
    lay_out(&nodes, &["L40S-24Q", "L40S-24Q"]).await?;
    is_laid_out(&nodes, Reason::AsExpected).await?;
    objects.is("b", ConditionType::Ready, true, SOON).await?;
    for name in ["a", "b"] {
        objects.delete(name, SOON).await?;
    }
    let patch = json!({"spec": {"devices": null}});
    nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(patch)).await?;
    is_laid_out(&nodes, Reason::AsExpected).await?;
    Ok(())
}
