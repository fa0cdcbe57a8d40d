//! Shows the host in the API: its `GpuNode`, made when it is missing, its status written when it
//! says something new.
#![expect(clippy::disallowed_methods, reason = "adapter: conditions carry times")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use gpudesk_crds::{
    ADOPT_ANNOTATION, GpuNode, GpuNodeSpec, GpuNodeStatus, NODE_DAEMON_FIELD_MANAGER,
    types::{PciAddress, ShareMode},
};
use gpudesk_inventory::{
    hook::HookView,
    status::{self, CardState, Findings, GuestNetworkView, HeldShare, HypervisorView},
    topology::{HostFacts, uevent::Change},
};
use jiff::Timestamp;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use crate::{
    cluster::Belongs,
    domain::metadata,
    foreign_domains::{ForeignDomains, foreign_domains},
    host::{
        changes::Changes, gpu_driver::GpuInstance, guest_network::GuestNetwork, hardware::HardwareSeen,
        hook::DiscoveryHook, hypervisor::Hypervisor, source::HostSource,
    },
    lease::Restored,
    metrics::Metrics,
    node_events,
    owner_spec::{self, OwnerSpec},
    upkeep::{Additions, Seen},
};

/// How often the whole host is looked at when nothing calls for it: hugepages and the like change
/// without a word.
const SLOWLY: Duration = Duration::from_mins(1);
/// The shortest time between two writes, so that a hundred desktops that start are a few writes.
const PAUSE: Duration = Duration::from_secs(2);

/// How long the first look waits for what may come at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Wait before a missing `GpuNode` is made again that could not be made.
const RETRY: Duration = Duration::from_secs(1);

/// Why the host could not be shown.
#[derive(Debug, Error)]
enum ShowError {
    #[error("writing the GpuNode: {0}")]
    Api(#[from] kube::Error),
    #[error("looking at the host: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// The `GpuNode` as the API has it.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Whether the watch has said anything yet.
    known: bool,
    /// It is there and cannot be understood: `node` is what was last known.
    unclear: bool,
    node: Option<Arc<GpuNode>>,
}

impl Stored {
    /// Why its admin says nothing.
    pub fn why_silent(&self) -> &'static str {
        match (self.known, &self.node) {
            (false, _) => "what the admin says in the GpuNode is not known yet",
            (true, None) if !self.unclear => {
                "there is no GpuNode in which its admin could say otherwise; it is made again"
            }
            (true, _) => "what the admin of the GpuNode says cannot be understood",
        }
    }

    /// What its admin says; nothing while that cannot be understood.
    pub fn spec(&self) -> Option<GpuNodeSpec> {
        self.node.as_ref().filter(|_| !self.unclear).map(|node| node.spec.clone())
    }
}

/// Shows one host.
pub struct Publisher {
    /// Name of the node.
    pub node: String,
    /// The host.
    pub source: HostSource,
    /// The API.
    pub client: Client,
    /// What is known of libvirt.
    pub hypervisor: watch::Receiver<(HypervisorView, Option<Arc<dyn Hypervisor>>)>,
    /// What keeps guests away from the host.
    pub guest_network: Arc<GuestNetwork>,
    /// Told when desktops or shares on the host may have changed.
    pub changed: Arc<Notify>,
    /// What changed in the hardware.
    pub changes: Arc<Changes>,
    /// Where each look leaves what desktops can be given.
    pub seen: HardwareSeen,
    /// The admin's discovery hook.
    pub hook: Option<DiscoveryHook>,
    /// Figures.
    pub metrics: Metrics,
    /// Where the `GpuNode` is left as the API has it.
    pub stored: watch::Sender<Stored>,
    /// What the last look at strays and leftovers found.
    pub upkeep: watch::Receiver<Seen>,
    /// Whose the host is.
    pub belongs: watch::Receiver<Belongs>,
    /// Told when the API server has gone back to an earlier state.
    pub restored: Restored,
    /// What the owner said last.
    pub owner: Arc<OwnerSpec>,
}

/// What is on the host now.
struct Content {
    facts: HostFacts,
    instances: Result<Vec<HeldShare>, String>,
    driver_versions: (Option<String>, Option<String>),
    unlicensed_vgpus: Option<usize>,
    withheld: BTreeMap<PciAddress, String>,
    states: BTreeMap<PciAddress, CardState>,
    /// What of the annotation of the admin is not so.
    not_adopted: Option<Vec<String>>,
}

/// What lasts from one look to the next.
struct Said {
    /// The status that was last written.
    status: Option<GpuNodeStatus>,
    /// As the API then had it.
    kept: Option<Kept>,
    /// How the hook fared.
    hook: HookView,
    /// When everything was last read.
    whole: Option<Instant>,
}

/// What the API made of a write.
struct Kept {
    /// The version that the watch showed when it was written: the status that this has is older.
    over: Option<String>,
    status: Option<GpuNodeStatus>,
}

impl Said {
    /// Whether the API has lost what was last written, or somebody has changed it.
    fn is_lost(&self, stored: Option<&GpuNode>) -> bool {
        let (Some(kept), Some(stored)) = (&self.kept, stored) else { return false };
        let differs = match (&kept.status, &stored.status) {
            (Some(kept), Some(stored)) => status::differs(kept, stored),
            (kept, stored) => kept.is_some() != stored.is_some(),
        };
        stored.metadata.resource_version != kept.over && differs
    }
}

impl Publisher {
    /// Shows the host for as long as it is awaited.
    pub async fn run(mut self) {
        let mut stored = self.stored.subscribe();
        self.source.gpus().wake(Arc::clone(&self.changed));
        let owner = Arc::clone(&self.owner);
        let nodes = Api::all_with(self.client.clone(), &ApiResource::erase::<GpuNode>(&()));
        let name = self.node.clone();
        let watching = observe(nodes, &name, self.stored.clone(), self.restored.clone(), &owner);
        let (shown, last) = watch::channel(None);
        let keeping = keep(self.bare(), stored.clone(), last);
        let mut filter = self.guest_network.view();
        let mut upkeep = self.upkeep.clone();
        let publishing = async {
            let mut said = Said { status: None, kept: None, hook: HookView::NotConfigured, whole: None };
            // Before the first look it is not known whether there is a GpuNode at all.
            let _ = timeout(PATIENCE, stored.wait_for(|stored| stored.known)).await;
            // And a libvirt that answers at once need not be said to be silent first.
            let answers = self.hypervisor.wait_for(|(_, hypervisor)| hypervisor.is_some());
            let answers = timeout(PATIENCE, answers).await.is_ok();
            // Whose the host is decides what may be offered of it, and so does what else runs on it.
            let known = self.belongs.wait_for(|belongs| !matches!(belongs, Belongs::Unknown(_)));
            // Why it is not known stands in the status, like everything else.
            let _ = timeout(PATIENCE, known).await;
            if answers {
                let _ = timeout(PATIENCE, upkeep.wait_for(|seen| seen.strays.is_some())).await;
            }
            loop {
                let now = stored.borrow_and_update().clone();
                match self.show(&now, &mut said).await {
                    Ok(()) => _ = shown.send_replace(said.status.clone()),
                    Err(error) => {
                        tracing::warn!(%error, "the host is not shown as it is");
                        said.status = None;
                    }
                }
                sleep(PAUSE).await;
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = self.changes.some() => {}
                    () = sleep(SLOWLY) => {}
                    _ = stored.changed() => {}
                    _ = self.hypervisor.changed() => {}
                    _ = filter.changed() => {}
                    _ = upkeep.changed() => {}
                    _ = self.belongs.changed() => {}
                }
            }
        };
        tokio::join!(watching, keeping, publishing, owner.keep());
    }

    fn bare(&self) -> Bare {
        Bare {
            nodes: Api::all(self.client.clone()),
            name: self.node.clone(),
            simulated: self.source.is_simulated().to_string(),
            owner: Arc::clone(&self.owner),
        }
    }

    async fn show(&mut self, now: &Stored, said: &mut Said) -> Result<(), ShowError> {
        let (bare, stored) = (self.bare(), now.node.as_deref());
        if now.unclear && stored.is_none() {
            // What its owner keeps of the cards is not known: nothing is offered by it.
            return Ok(());
        }
        let labels = stored.and_then(|node| node.metadata.labels.as_ref());
        let is_labelled = labels
            .and_then(|labels| labels.get(Bare::SIMULATED))
            .is_some_and(|label| *label == bare.simulated);
        // One that is known to be missing is made elsewhere, where nothing here is waited for.
        if !now.known {
            bare.make().await?;
            said.status = None;
        } else if stored.is_some() && !is_labelled {
            bare.label().await?;
            said.status = None;
        }
        let (view, hypervisor) = self.hypervisor.borrow_and_update().clone();
        let whole_cards = whole_cards(hypervisor.as_deref(), &self.metrics).await;
        let mut changes = self.changes.take();
        if said.whole.is_none_or(|whole| whole.elapsed() >= SLOWLY) {
            changes = BTreeSet::from([Change::Whole]);
        }
        if changes.contains(&Change::Whole) {
            said.whole = Some(Instant::now());
            self.ask_hook(stored, said).await;
        }
        // What its owner says is known before anything is changed on a card.
        let is_owners = now.known && !now.unclear && *self.belongs.borrow() == Belongs::Here;
        let owned = stored.filter(|_| is_owners);
        let domains = foreign_domains(hypervisor.as_deref()).await;
        let content = self.content(changes, owned, domains, whole_cards).await?;
        let before = said.status.as_ref().or_else(|| stored.and_then(|node| node.status.as_ref()));
        let none = GpuNodeSpec::default();
        let (known, spec) = (now.known, stored.map_or(&none, |node| &node.spec));
        let (gpu_driver_version, vgpu_manager_version) = content.driver_versions;
        let mut guest_network = self.guest_network.view().borrow().clone();
        if let (GuestNetworkView::Filtered { except }, Some(hypervisor)) =
            (&mut guest_network, hypervisor.as_deref())
        {
            *except = unseen_guests(hypervisor, self.guest_network.group()).await;
        }
        let now = Timestamp::now();
        let generation = stored.and_then(|node| node.metadata.generation);
        let mut status = status::status(&Findings {
            facts: &content.facts,
            simulated: self.source.is_simulated(),
            hypervisor: &view,
            guest_network: &guest_network,
            gpu_driver_version,
            vgpu_manager_version,
            unlicensed_vgpus: content.unlicensed_vgpus,
            withheld: content.withheld,
            states: content.states,
            hook: &said.hook,
            instances: content.instances.as_deref().map_err(Clone::clone),
            spec,
            generation,
            before,
            now,
        });
        // Before it is written: what was decided by the layout of before is looked at by that of now.
        self.seen.set(&content.facts, known.then(|| HardwareSeen::layouts(spec, &status.devices)));
        let additions = Additions {
            seen: &self.upkeep.borrow_and_update().clone(),
            belongs: &self.belongs.borrow_and_update().clone(),
            before,
            spec,
            generation,
            kept: self.owner.condition(),
            not_adopted: content.not_adopted,
            now,
        };
        additions.add_to(&mut status);
        self.tell_of_cards(owned).await?;
        if before.is_some_and(|before| !status::differs(before, &status)) && !said.is_lost(stored) {
            return Ok(());
        }
        let written = bare.write(&status).await?;
        self.metrics.node_written();
        let over = stored.and_then(|node| node.metadata.resource_version.clone());
        said.kept = Some(Kept { over, status: written.status });
        said.status = Some(status);
        Ok(())
    }

    /// Looks at the host, and has done on its cards what is to be done without being asked, where `owner` says what may be.
    async fn content(
        &self,
        changes: BTreeSet<Change>,
        owner: Option<&GpuNode>,
        domains: ForeignDomains,
        whole_cards: Result<Vec<HeldShare>, String>,
    ) -> Result<Content, ShowError> {
        let source = self.source.clone();
        let adopt = owner.and_then(|node| node.metadata.annotations.as_ref()?.get(ADOPT_ANNOTATION).cloned());
        let owner = owner.map(|node| node.spec.clone());
        let content = tokio::task::spawn_blocking(move || {
            let facts = source.look(&changes);
            let mut not_adopted = None;
            if let Some(spec) = &owner {
                source.gpus().settle(spec);
                not_adopted = Some(source.gpus().adopt(adopt.as_deref(), &facts, &domains));
            }
            let instances = whole_cards.and_then(|held| {
                let instances = source.gpus().instances().map_err(|error| error.to_string())?;
                Ok(all_held(&instances, held))
            });
            Content {
                states: source.gpus().states(&facts, &domains),
                not_adopted,
                instances,
                driver_versions: source.driver_versions(),
                unlicensed_vgpus: source.unlicensed_vgpus(),
                withheld: source.gpus().withheld(&facts),
                facts,
            }
        });
        Ok(content.await?)
    }

    /// Counts what happened to cards, and tells it as Events about the `GpuNode`.
    async fn tell_of_cards(&self, node: Option<&GpuNode>) -> Result<(), ShowError> {
        let gpus = Arc::clone(self.source.gpus());
        self.metrics.set_cards(&gpus.figures());
        let notices = gpus.notices();
        let (Some(node), false) = (node, notices.is_empty()) else { return Ok(()) };
        let told = node_events::tell(&self.client, node, notices).await;
        Ok(tokio::task::spawn_blocking(move || gpus.told(&told)).await?)
    }

    /// Asks the hook; where it fails, its last answer stands.
    async fn ask_hook(&mut self, stored: Option<&GpuNode>, said: &mut Said) {
        let Some(hook) = &mut self.hook else { return };
        let mut so_far = stored.cloned().unwrap_or_else(|| GpuNode::new(&self.node, GpuNodeSpec::default()));
        if said.status.is_some() {
            so_far.status.clone_from(&said.status);
        }
        said.hook = hook.ask(&so_far).await;
        // Where it failed, its last good answer stands.
        if let Some(answer) = hook.answer().cloned() {
            let source = self.source.clone();
            // A look at the host may hold the survey for some time.
            let told = tokio::task::spawn_blocking(move || {
                if let Some(mut survey) = source.survey() {
                    survey.set_answer(answer);
                }
            });
            if let Err(error) = told.await {
                tracing::warn!(%error, "the hook's answer is not in what is shown");
            }
        }
    }
}

/// The `GpuNode` as the daemon makes it.
struct Bare {
    nodes: Api<GpuNode>,
    name: String,
    /// Value of the label.
    simulated: String,
    owner: Arc<OwnerSpec>,
}

impl Bare {
    const SIMULATED: &str = "gpudesk.dev/simulated";

    /// Makes it as closed as it was, unless it is there: then nothing of it changes.
    async fn make(&self) -> kube::Result<()> {
        // What its owner said holds in the cluster of the host alone.
        let _ = timeout(PAUSE, self.owner.is_known()).await;
        let spec = self.owner.again();
        match self.create(&spec).await {
            // The schema is that of another version, and refuses what one of before took.
            Err(kube::Error::Api(answer)) if answer.code == 422 => {
                tracing::error!(%answer, %spec, "the GpuNode is made again without what its owner had said, and cordoned");
                self.create(&owner_spec::closed()).await
            }
            made => made,
        }
    }

    async fn create(&self, spec: &Value) -> kube::Result<()> {
        let node = json!({
            "apiVersion": GpuNode::api_version(&()),
            "kind": GpuNode::kind(&()),
            "metadata": { "name": self.name, "labels": { Self::SIMULATED: self.simulated } },
            "spec": spec,
        });
        let node = serde_json::from_value(node).map_err(kube::Error::SerdeError)?;
        let params =
            PostParams { field_manager: Some(NODE_DAEMON_FIELD_MANAGER.into()), ..PostParams::default() };
        let nodes: Api<DynamicObject> =
            Api::all_with(self.nodes.clone().into_client(), &ApiResource::erase::<GpuNode>(&()));
        match nodes.create(&params, &node).await {
            Ok(_) => {
                tracing::warn!(%spec, "the GpuNode was missing and is made");
                Ok(())
            }
            Err(kube::Error::Api(answer)) if answer.is_already_exists() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sets the label of one that is there.
    async fn label(&self) -> kube::Result<()> {
        let label = json!({ "metadata": { "labels": { Self::SIMULATED: self.simulated } } });
        let params =
            PatchParams { field_manager: Some(NODE_DAEMON_FIELD_MANAGER.into()), ..PatchParams::default() };
        self.nodes.patch(&self.name, &params, &Patch::Merge(&label)).await?;
        Ok(())
    }

    async fn write(&self, status: &GpuNodeStatus) -> kube::Result<GpuNode> {
        let apply = json!({
            "apiVersion": GpuNode::api_version(&()),
            "kind": GpuNode::kind(&()),
            "metadata": { "name": self.name },
            "status": status,
        });
        let params = PatchParams::apply(NODE_DAEMON_FIELD_MANAGER).force();
        self.nodes.patch_status(&self.name, &params, &Patch::Apply(&apply)).await
    }
}

/// Makes the `GpuNode` whenever it is missing, as closed as it was and with what it last said. Nothing of the host is waited for:
/// a hook or a driver may take longer than the operator waits before it takes a node for lost.
async fn keep(bare: Bare, mut stored: watch::Receiver<Stored>, last: watch::Receiver<Option<GpuNodeStatus>>) {
    while stored.wait_for(|stored| stored.known && !stored.unclear && stored.node.is_none()).await.is_ok() {
        let last = last.borrow().clone();
        let made = async {
            bare.make().await?;
            if let Some(status) = &last { bare.write(status).await.map(drop) } else { Ok(()) }
        };
        match timeout(PATIENCE, made).await {
            // Soon the watch shows it.
            Ok(Ok(())) => _ = timeout(PAUSE, stored.changed()).await,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the GpuNode is missing and could not be made");
                sleep(RETRY).await;
            }
            Err(_) => tracing::warn!("the GpuNode is missing, and the API server does not answer"),
        }
    }
}

/// Watches the one `GpuNode`, as it is written: what its owner says is kept also where it is not understood.
async fn observe(
    nodes: Api<DynamicObject>,
    name: &str,
    stored: watch::Sender<Stored>,
    restored: Restored,
    owner: &OwnerSpec,
) {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let watching = || watcher(nodes.clone(), config.clone()).default_backoff();
    let mut events = restored.anew(watching).boxed();
    let (mut listed, mut unclear) = (None, false);
    let read = |node: DynamicObject| {
        owner.see(&node);
        node.try_parse::<GpuNode>().map(Arc::new)
    };
    while let Some(event) = events.next().await {
        // One that does not parse counts as there, with what was last known of it.
        match event {
            Ok(Event::Init) => (listed, unclear) = (None, false),
            Ok(Event::InitApply(node)) => {
                let node = read(node);
                unclear = node.is_err();
                listed = node.ok();
            }
            Ok(Event::InitDone) => {
                let node = listed.take().or_else(|| stored.borrow().node.clone().filter(|_| unclear));
                stored.send_replace(Stored { known: true, unclear, node });
            }
            Ok(Event::Apply(node)) => match read(node) {
                Ok(node) => {
                    stored.send_replace(Stored { known: true, unclear: false, node: Some(node) });
                }
                Err(error) => {
                    tracing::warn!(%error, "the GpuNode cannot be understood");
                    stored.send_modify(|stored| (stored.known, stored.unclear) = (true, true));
                }
            },
            Ok(Event::Delete(_)) => {
                stored.send_replace(Stored { known: true, unclear: false, node: None });
            }
            Err(error) => tracing::warn!(%error, "the GpuNode cannot be watched"),
        }
    }
}

/// Desktops whose guests run since before there was a filter that sees their network.
async fn unseen_guests(hypervisor: &dyn Hypervisor, group: u32) -> Vec<String> {
    let mut unseen = vec![];
    for domain in hypervisor.list().await.unwrap_or_default() {
        let ours = match domain.metadata.as_deref().map(metadata::parse) {
            None | Some(Ok(None)) => continue,
            Some(Ok(Some(ours))) => format!("{}/{}", ours.namespace, ours.name),
            Some(Err(_)) => domain.name.clone(),
        };
        if domain.state.is_active()
            && let Ok(details) = hypervisor.details(domain.uuid).await
            && details.live.has_user_network
            && details.live.qemu_group != Some(group)
        {
            unseen.push(ours);
        }
    }
    unseen.sort();
    unseen
}

/// What gpudesk made, and the whole cards of domains of ours, which an earlier version gave without noting it.
fn all_held(instances: &[GpuInstance], whole: Vec<HeldShare>) -> Vec<HeldShare> {
    let mut held: Vec<HeldShare> = instances.iter().map(GpuInstance::held).collect();
    for share in whole {
        if !held.iter().any(|known| known.card == share.card && known.instance.id == share.instance.id) {
            held.push(share);
        }
    }
    held
}

/// Cards that domains of ours hold whole; or why it cannot be told.
async fn whole_cards(
    hypervisor: Option<&dyn Hypervisor>,
    metrics: &Metrics,
) -> Result<Vec<HeldShare>, String> {
    let Some(hypervisor) = hypervisor else { return Err("libvirt does not answer".into()) };
    let domains = hypervisor.list().await.map_err(|error| error.to_string())?;
    let (mut whole, mut unreadable) = (vec![], vec![]);
    let mut active = 0;
    for domain in domains {
        let Some(ours) = domain.ours() else { continue };
        active += usize::from(domain.state.is_active());
        let Some((ours, allocation)) = ours else {
            unreadable.push(domain.name);
            continue;
        };
        let owner = format!("{}/{}", ours.namespace, ours.name);
        let gpus = allocation.gpus.into_iter();
        let cards = gpus.filter(|gpu| gpu.mode == ShareMode::Passthrough).map(|gpu| gpu.device);
        whole.extend(cards.map(|card| HeldShare::whole_card(card, owner.clone())));
    }
    metrics.set_desktops(active);
    if unreadable.is_empty() {
        return Ok(whole);
    }
    unreadable.sort();
    Err(format!(
        "what the domains {} hold cannot be read, for their metadata is broken or of a newer version: end them, or start \
         that version again",
        unreadable.join(", ")
    ))
}

#[cfg(test)]
#[path = "gpu_node_tests.rs"]
mod tests;
