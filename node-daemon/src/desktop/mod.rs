//! The way of a desktop on its node.
//!
//! ```text
//!   Desktop, template ──▶ desired ─┐
//!   libvirt, disks, GPUs ─▶ observe ─▶ decide ─▶ one action ─▶ act ─┐
//!                             ▲                                     │ until there is nothing to do
//!                             └─────────────────────────────────────┘
//!                                                        status ─▶ one write, when it says something new
//! ```
//!
//! Nothing is remembered between rounds but in libvirt, on disk and in the API, so that a daemon
//! killed between any two steps goes on where it was.
#![expect(clippy::disallowed_methods, reason = "adapter: the rounds ask for the time")]

mod act;
pub mod attach;
pub mod cells;
mod confirm;
pub mod conflict;
pub mod decide;
pub mod decision;
pub mod desired;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod guest;
mod host_check;
pub mod lost_disks;
pub mod machine;
pub mod materials;
mod observe;
pub mod problem;
pub mod record;
mod restart;
mod run_notes;
mod shared_files;
pub mod standing;
pub mod status;
mod status_writer;
pub mod stray;
pub mod tuning;
pub mod withdraw;

#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod guard_tests;
#[cfg(test)]
mod host_tests;
#[cfg(test)]
pub(crate) mod pretended;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gpudesk_crds::{
    Allocation, AllocationId, Desktop, DesktopTemplate, NodeState, Refusal, desktop::ConsoleRelay,
    desktop_template::Lifecycle, gpu_node_status::Acceleration,
};
use jiff::{SignedDuration, Timestamp};
use kube::{Client, ResourceExt};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    decide::{Action, Rules, decide},
    desired::Wanted,
    observe::Sight,
    problem::Problem,
    record::RunRecord,
    status::{Guest, Report},
    status_writer::StatusWriter,
};
use gpudesk_inventory::simulated::Latency;

use crate::{
    cluster::Belongs,
    domain::Kind,
    host::{
        folder::{DesktopFolder, DesktopFolders, Owner},
        gpu_driver::GpuDriver,
        guest_network::GuestNetwork,
        hardware::HardwareView,
        hypervisor::{Hypervisor, HypervisorError, StopReason},
        images::ImageStore,
        leftovers::Leftovers,
        paths::AllowedRoots,
    },
    lease::Heard,
    metrics::Metrics,
    secrets::Secrets,
};

/// Most actions in one round of a desktop; a start takes three.
const MOST_ACTIONS: usize = 16;
/// How often a desktop is looked at when nothing calls for it.
const SLOWLY: Duration = Duration::from_mins(5);
/// How long after its start a guest is asked often for its addresses.
const ADDRESS_PATIENCE: SignedDuration = SignedDuration::from_mins(2);
/// Wait before the first repetition after a passing problem; each further one waits twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait after a problem. What a person mends is seen within it.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// A machine that is not made by then is said to be under way.
const TAKES_LONG: Duration = Duration::from_secs(5);
/// Wait while it is not known that this is the cluster of the host.
const NOT_OURS: Duration = Duration::from_secs(2);
/// How long a status may still take to be written once the process was asked to end.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Everything that desktops need of this node.
pub struct Node {
    /// Name of the node.
    pub name: String,
    /// What runs the domains.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// What makes shares of GPUs.
    pub gpus: Arc<dyn GpuDriver>,
    /// Cards and CPUs of the host, as they are now.
    pub hardware: HardwareView,
    /// What keeps guests away from the host.
    pub guest_network: Arc<GuestNetwork>,
    /// Where the kernel lists the host's network devices; `None` for a simulated host.
    pub network_devices: Option<PathBuf>,
    /// Golden images.
    pub images: ImageStore,
    /// Folders that tenants may name files in.
    pub roots: AllowedRoots,
    /// Folders of the desktops.
    pub folders: DesktopFolders,
    /// Disks of desktops that are this node's no more.
    pub leftovers: Leftovers,
    /// Secrets of the desktops.
    pub secrets: Secrets,
    /// What a domain is for libvirt.
    pub kind: Kind,
    /// The boot of this host.
    pub boot: String,
    /// How long a simulated host takes.
    pub latency: Latency,
    /// Time from a run's end by itself until what it held is given back.
    pub give_back_after: SignedDuration,
    /// Where people reach the screens.
    pub relay: Option<ConsoleRelay>,
    /// Whose this host is.
    pub belongs: watch::Receiver<Belongs>,
}

impl Node {
    /// How guests run here.
    pub fn acceleration(&self) -> Acceleration {
        match self.kind {
            Kind::Kvm => Acceleration::Kvm,
            Kind::Qemu => Acceleration::Emulation,
            Kind::Test => Acceleration::Simulated,
        }
    }

    /// Whether what the API says is about this host: nothing of desktops is touched otherwise.
    pub fn is_ours(&self) -> bool {
        *self.belongs.borrow() == Belongs::Here
    }
}

/// What a thread that panicked left behind is still right: single inserts and removals.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Brings the desktops of this node to where they should be.
pub struct Desktops {
    node: Node,
    client: Client,
    writer: StatusWriter,
    metrics: Metrics,
    changed: Arc<Notify>,
    /// Whether the cluster hears this node.
    heard: Heard,
    /// The process was asked to end.
    stop: CancellationToken,
    failures: Mutex<HashMap<Uuid, u32>>,
    /// Desktops that are being worked on.
    busy: Mutex<HashSet<Uuid>>,
    /// Held while domains are moved between CPUs, so that the last word is the newest.
    moving: tokio::sync::Mutex<()>,
    /// Files that desktops take which are about to run.
    starting: shared_files::Starting,
    /// Told when something may have become a stray, or is one no more.
    hint: Arc<Notify>,
    /// Machines that stray, as they were last seen.
    strays: Mutex<HashSet<Uuid>>,
    /// Records of runs that are not on disk as they should be: what they are.
    unwritten: Mutex<HashMap<Uuid, Option<RunRecord>>>,
    /// Why domains stopped, as libvirt said then.
    ends: Mutex<HashMap<Uuid, StopReason>>,
}

/// One desktop in one round.
struct Round<'a> {
    desktop: &'a Desktop,
    owner: Owner,
    wanted: Wanted,
    allocation: Option<&'a Allocation>,
    template: Option<Arc<DesktopTemplate>>,
    folder: DesktopFolder,
    /// The domain was given to libvirt in this round, and so is what it should be.
    defined: bool,
    /// Why the restart that was asked for is not done.
    held_back: Option<Problem>,
    /// What of the decision this node cannot give; nothing is left of what was made for it.
    refusal: Option<Refusal>,
}

impl Round<'_> {
    /// The decision that holds.
    fn id(&self) -> Option<AllocationId> {
        self.allocation?.id
    }

    /// Whether its machine ended by itself for good, and nobody has asked for anything else since.
    fn stays(&self, sight: &Sight, node: &Node) -> bool {
        decide::stays(&sight.observed, &self.rules(node))
    }

    /// Whether that is to be said: while its host may be going down it is not.
    fn stays_for_good(&self, sight: &Sight, node: &Node, now: Timestamp) -> bool {
        let said = self.wanted != Wanted::Run || sight.last_word.is_some();
        if said {
            self.stays(sight, node)
        } else {
            decide::stays_for_good(&sight.observed, &self.rules(node), now)
        }
    }

    fn rules<'b>(&self, node: &'b Node) -> Rules<'b> {
        let lifecycle = self.lifecycle();
        Rules {
            restart_policy: lifecycle.restart_policy,
            shutdown_grace: SignedDuration::from_secs(lifecycle.shutdown_grace_seconds.into()),
            boot: &node.boot,
            end_counts: desired::end_counts(self.desktop),
            give_back_after: node.give_back_after,
        }
    }

    fn lifecycle(&self) -> Lifecycle {
        self.template.as_ref().map(|template| template.spec.lifecycle.clone()).unwrap_or_default()
    }

    /// Whether what is said of it may free what the operator counts.
    fn frees(&self) -> bool {
        matches!(self.wanted, Wanted::Stop | Wanted::Remove)
    }

    /// The template, no older than the one that was decided for.
    fn template(&self) -> Result<&Arc<DesktopTemplate>, Problem> {
        let name = &self.desktop.spec.template_ref.name;
        let template = self.template.as_ref().ok_or_else(|| Problem::TemplateNotFound {
            name: name.clone(),
            namespace: self.owner.namespace.clone(),
        })?;
        let wanted = self.allocation.map_or(0, |allocation| allocation.template_generation);
        if template.metadata.generation.unwrap_or_default() < wanted {
            return Err(Problem::TemplateOutdated { name: name.clone(), wanted });
        }
        Ok(template)
    }
}

impl Desktops {
    /// The desktops of `node`, with what is said of them written by `client`.
    /// `changed` is told after each round in which something was done on the host.
    pub fn new(
        node: Node,
        client: Client,
        metrics: Metrics,
        changed: Arc<Notify>,
        heard: Heard,
        stop: CancellationToken,
    ) -> Self {
        let writer = StatusWriter::new(client.clone());
        Self {
            node,
            client,
            writer,
            metrics,
            changed,
            heard,
            stop,
            failures: Mutex::default(),
            busy: Mutex::default(),
            moving: tokio::sync::Mutex::default(),
            starting: shared_files::Starting::default(),
            hint: Arc::default(),
            strays: Mutex::default(),
            unwritten: Mutex::default(),
            ends: Mutex::default(),
        }
    }

    /// Told when something may have become a stray, or is one no more.
    pub fn hint(&self) -> &Arc<Notify> {
        &self.hint
    }

    /// Notes which machines stray.
    pub fn set_strays(&self, strays: HashSet<Uuid>) {
        *lock(&self.strays) = strays;
    }

    /// Whether a machine strayed when it was last looked at.
    pub fn is_stray(&self, uid: Uuid) -> bool {
        lock(&self.strays).contains(&uid)
    }

    /// Told after each round in which something was done on the host.
    pub fn changed(&self) -> &Arc<Notify> {
        &self.changed
    }

    /// Whether the cluster hears this node.
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// Forgets what is remembered of a desktop that is not this node's any more.
    pub fn forget(&self, uid: Uuid) {
        lock(&self.failures).remove(&uid);
        lock(&self.ends).remove(&uid);
        self.writer.forget(uid);
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// What a daemon before this one may not have lived to do. Only domains that run are touched.
    pub async fn settle(&self) {
        if let Err(error) = self.share_cpus(Uuid::nil(), false).await {
            tracing::warn!(%error, "desktops may run on CPUs that are another desktop's own");
        }
    }

    /// One round: acts until nothing is to be done, says what became of it, and returns after what
    /// time to look again. A desktop without UID or namespace, which no API server gives, is ignored.
    ///
    /// # Errors
    /// When the status could not be written. Everything else is said in the status.
    pub async fn round(
        &self,
        desktop: &Desktop,
        template: Option<Arc<DesktopTemplate>>,
    ) -> Result<Duration, kube::Error> {
        let uid = desktop.uid().and_then(|uid| uid.parse::<Uuid>().ok());
        let (Some(uid), Some(namespace)) = (uid, desktop.namespace()) else { return Ok(SLOWLY) };
        if !self.node.is_ours() {
            return Ok(NOT_OURS);
        }
        let mut round = Round {
            desktop,
            owner: Owner { namespace, name: desktop.name_any(), uid },
            wanted: desired::wanted(desktop),
            allocation: desired::allocation(desktop),
            template,
            folder: self.node.folders.of(uid),
            defined: false,
            held_back: None,
            refusal: None,
        };
        let mut sight = Sight::default();
        let early = self.say_that_it_takes_long(desktop, round.owner.clone());
        let worked = match self.note_lost_disks(&round).await {
            Ok(()) => tokio::select! {
                biased;
                worked = Box::pin(self.work(&mut round, &mut sight)) => worked,
                never = early => match never {},
            },
            Err(problem) => Err(problem),
        };
        let (mut look_again, mut problem) = (None, None);
        match worked {
            Ok(at) => look_again = at,
            Err(error) => {
                let error = match error {
                    Problem::Hypervisor(HypervisorError::Away { doing }) => {
                        tracing::debug!(doing, "libvirt is away");
                        Problem::LibvirtAway { node: self.node.name.clone() }
                    }
                    error => error,
                };
                tracing::warn!(%error, held_by = error.holder(), "not as wanted");
                self.metrics.problem(error.reason());
                if matches!(error, Problem::OtherDecision { .. }) && !self.is_stray(uid) {
                    self.hint.notify_one();
                }
                problem = Box::pin(self.refuse(&mut round, &mut sight, error)).await;
            }
        }
        if let Some(fault) = &sight.unkept {
            tracing::warn!(%fault, "what is kept of it on this node is not as it should be");
            self.metrics.problem(fault.reason());
        }
        let unsaid = Box::pin(self.say(&round, &sight, problem.as_ref())).await?;
        let problem =
            problem.as_ref().or(round.held_back.as_ref()).or(sight.unkept.as_ref()).or(unsaid.as_ref());
        Ok(self.look_again(uid, &sight, problem, look_again))
    }

    /// Notes down that disks are lost, before anything is said or made that would hide it.
    async fn note_lost_disks(&self, round: &Round<'_>) -> Result<(), Problem> {
        let lost = !self.node.images.is_pretended() && lost_disks::were_here(round.desktop);
        if lost && round.wanted != Wanted::Remove {
            let desktop = round.desktop.clone();
            round.folder.on_thread(move |files| lost_disks::note(&desktop, files)).await?;
        }
        Ok(())
    }

    /// Acts until nothing is to be done; returns when to look again.
    async fn work(&self, round: &mut Round<'_>, sight: &mut Sight) -> Result<Option<Timestamp>, Problem> {
        for _ in 0..MOST_ACTIONS {
            match self.step(round, sight).await? {
                Action::Nothing(at) => {
                    let observed = &sight.observed;
                    let left = observed.domain.is_some() || observed.instances || observed.folder;
                    if round.wanted == Wanted::Remove && !left {
                        round.folder.forget_used().await?;
                    }
                    return Ok(at);
                }
                action => {
                    self.changed.notify_one();
                    tracing::info!(?action, "done");
                }
            }
        }
        Ok(None)
    }

    /// Gives a decision back that this node cannot give, with all that was made for it. Another problem is
    /// left to be tried again.
    async fn refuse(&self, round: &mut Round<'_>, sight: &mut Sight, problem: Problem) -> Option<Problem> {
        let refusal = problem.refusal().filter(|_| round.wanted == Wanted::Run && round.id().is_some());
        let Some(refusal) = refusal else { return Some(problem) };
        if sight.observed.domain.is_some_and(|domain| domain.active) {
            return Some(problem);
        }
        if let Err(error) = self.undo(round, sight).await {
            return Some(error);
        }
        round.refusal = Some(refusal);
        Some(problem)
    }

    async fn undo(&self, round: &mut Round<'_>, sight: &mut Sight) -> Result<(), Problem> {
        sight.instances = self.instances(round.owner.uid).await?;
        self.act(Action::Release, round, sight).await?;
        sight.observed.domain = None;
        sight.observed.instances = false;
        sight.instances.clear();
        Ok(())
    }

    /// Says that the machine of a decision is being made, when that takes long.
    async fn say_that_it_takes_long(&self, desktop: &Desktop, owner: Owner) -> Infallible {
        tokio::time::sleep(TAKES_LONG).await;
        let wanted = desired::wanted(desktop);
        let nothing_said = desktop.said_by_node().is_none()
            && desktop.status.as_ref().is_none_or(|status| status.domain.is_none());
        let has_id = desktop.allocation().is_some_and(|allocation| allocation.id.is_some());
        // The word of a version that did not say whether it left disks is all that tells of them.
        let said = desktop.status.as_ref().and_then(|status| status.node.as_ref());
        let tells = said.is_some_and(|said| said.has_disks.is_none())
            && lost_disks::were_here(desktop)
            && !self.node.images.is_pretended();
        if wanted == Wanted::Run && has_id && nothing_said && !tells && !status::is_unknown(desktop) {
            let status = status::status(&Report::of_nothing_yet(desktop, &self.node, Timestamp::now()));
            if let Err(error) = self.writer.write(desktop, wanted, &owner, status).await {
                tracing::debug!(%error, "that it takes long was not written");
            }
        }
        std::future::pending().await
    }

    async fn step(&self, round: &mut Round<'_>, sight: &mut Sight) -> Result<Action, Problem> {
        // What was seen before a failure is still the best that is known.
        self.observe(round, sight).await?;
        self.hold_back(round, sight).await;
        let rules = round.rules(&self.node);
        let action = decide(round.wanted, &sight.observed, &rules, Timestamp::now());
        self.act(action, round, sight).await?;
        Ok(action)
    }

    async fn say(
        &self,
        round: &Round<'_>,
        sight: &Sight,
        problem: Option<&Problem>,
    ) -> Result<Option<Problem>, kube::Error> {
        let gpus = sight.prepared_gpus(round);
        let report = Report {
            desktop: round.desktop,
            wanted: round.wanted,
            observed: &sight.observed,
            machine: sight.machine.as_ref(),
            gpus: &gpus,
            problem,
            held_back: round.held_back.as_ref(),
            unkept: sight.unkept.as_ref(),
            stays: round.stays_for_good(sight, &self.node, Timestamp::now()),
            restart_policy: round.lifecycle().restart_policy,
            boot: &self.node.boot,
            acceleration: self.node.acceleration(),
            relay: self.node.relay.as_ref(),
            now: Timestamp::now(),
            last_word: sight.last_word.as_ref(),
            refusal: round.refusal.as_ref(),
            abandoned_disks: sight.abandoned_disks.as_deref(),
        };
        let (mut status, mut unsaid) = (status::status(&report), None);
        if let Some(word) = status.node.as_ref().filter(|said| said.state.is_final())
            && word.state != NodeState::Released
            && Some(word.allocation_id) == round.id()
            && ![sight.last_word.as_ref(), round.desktop.said_by_node()].contains(&Some(word))
            && let Err(error) = self.note_decision(round, Some(word)).await
        {
            tracing::warn!(%error, "that a decision has ended cannot be noted down, so it is not said");
            let error = unsaid.insert(Problem::Unnoted(Box::new(error)));
            status = status::status(&Report { problem: Some(error), refusal: None, ..report });
        }
        // While nobody hears this node it is the operator who says that nothing is known of its desktops.
        if !self.heard.is_heard() && status::is_unknown(round.desktop) && !round.frees() {
            return Ok(unsaid);
        }
        let written = self.writer.write(round.desktop, round.wanted, &round.owner, status);
        // What is not written by then the next daemon says.
        self.before_the_end(written).await.unwrap_or(Ok(())).map(|()| unsaid)
    }

    /// What comes of `asking` the API server; `None` when the process is to end and it does not answer.
    async fn before_the_end<T>(&self, asking: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            answer = asking => Some(answer),
            () = async { self.stop.cancelled().await; tokio::time::sleep(LAST_WORDS).await } => None,
        }
    }

    fn look_again(
        &self,
        uid: Uuid,
        sight: &Sight,
        problem: Option<&Problem>,
        at: Option<Timestamp>,
    ) -> Duration {
        let mut failures = lock(&self.failures);
        if problem.is_none() {
            failures.remove(&uid);
        } else {
            let count = failures.entry(uid).or_default();
            *count = count.saturating_add(1);
            let retry = FIRST_RETRY.saturating_mul(1 << count.saturating_sub(1).min(8));
            return retry.min(LONGEST_RETRY);
        }
        if let Some(at) = at {
            let wait = at.duration_since(Timestamp::now());
            return Duration::try_from(wait).unwrap_or_default().saturating_add(Duration::from_millis(10));
        }
        let Some(machine) = &sight.machine else { return SLOWLY };
        let age = Timestamp::now().duration_since(machine.started_at);
        match &machine.guest {
            // Its agent's arrival is an event; this is for a hypervisor that has missed it.
            Guest::Silent => {
                Duration::try_from(age / 4).unwrap_or_default().clamp(Duration::from_secs(2), SLOWLY)
            }
            // An agent that starts early answers before the guest has an address.
            Guest::Answers if machine.addresses.is_empty() && age < ADDRESS_PATIENCE => {
                Duration::from_secs(5)
            }
            Guest::Answers | Guest::NoAgent | Guest::Simulated => SLOWLY,
        }
    }
}
