//! What is on this host of desktops that the watch does not show as this node's: a domain, a folder, a
//! share of a GPU. And machines that run here for a decision that does not hold.
//!
//! ```text
//!   read of the Desktop              what is here
//!   allocated here, this decision    left: the watch is late, or cannot understand it
//!   allocated here, an older one     left: its rounds take it down
//!   moved on to another node         taken down: asked, then off; disks are put aside
//!   a newer or unheard-of decision   left running, and listed
//!   allocated nowhere                left as it is, and listed: it may be the only copy
//!   no such Desktop                  runs: left and listed. Off: disks are put aside after a while, unless
//!                                    many are missed. Was being deleted when last seen: removed
//!   no clear answer                  left, and listed where it runs
//! ```
//!
//! What is left running is ended by its admin's word alone, and so is what was saved on the host. "Missing in the watch" is never "gone": the watch
//! shows only what is allocated to this node. Nothing is touched on the word of another cluster.
//!
//! Each look judges all of it first, so that what is listed is whole; then it acts, each time on a read of
//! its own.
#![expect(clippy::disallowed_methods, reason = "adapter: time passes between two looks")]

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use gpudesk_crds::{
    Desktop, GpuNodeSpec,
    gpu_node_status::{self, StrayStanding},
    gpu_node_words::StrayWord,
};
use jiff::Timestamp;
use kube::{Client, ResourceExt, api::DynamicObject, runtime::reflector::Store};
use thiserror::Error;
use tokio::{sync::watch, time::Instant};
use tracing::Instrument;
use uuid::Uuid;

use self::here::Here;
use crate::{
    brake::{self, Removals},
    cluster::{Belongs, Cluster, ClusterError},
    desktop::{
        Desktops,
        problem::Problem,
        standing::{MadeFor, Verdict},
        stray::{Plan, plan},
        withdraw::{Disks, Withdrawn},
    },
    gpu_node::Stored,
    host::{
        folder::{FolderError, Owner},
        hypervisor::HypervisorError,
        leftovers::Retention,
    },
    metrics::{Metrics, Stray},
    templates::{TemplateError, Templates},
    upkeep::{Removal, Seen},
};

mod here;
mod leftovers;
mod told;

/// Desktops that are looked at at once.
const AT_ONCE: usize = 8;
/// How long the API server has for a read.
const PATIENCE: Duration = Duration::from_secs(10);
/// The shortest time between two looks; and the wait where something changed while it was looked at.
const AGAIN: Duration = Duration::from_secs(1);

/// Why a look was not finished.
#[derive(Debug, Error)]
enum OrphanError {
    #[error(transparent)]
    Problem(#[from] Problem),
    #[error("asking for the Desktop: {0}")]
    Api(#[from] kube::Error),
    #[error("asking for the Desktop: the API server does not answer")]
    Silent,
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("it changed while it was looked at")]
    Changing,
}

impl From<HypervisorError> for OrphanError {
    fn from(error: HypervisorError) -> Self {
        Self::Problem(error.into())
    }
}

impl From<FolderError> for OrphanError {
    fn from(error: FolderError) -> Self {
        Self::Problem(error.into())
    }
}

/// The stores that the watches fill.
#[derive(Clone)]
pub struct Watched {
    /// The desktops of this node.
    pub desktops: Store<Desktop>,
    /// Their templates.
    pub templates: Templates,
}

/// The settings.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Time between two looks.
    pub look: Duration,
    /// How many may be put aside.
    pub brake: brake::Rules,
    /// How long leftovers are kept.
    pub retention: Retention,
}

/// What looking after them needs.
pub struct Orphans {
    /// The desktops of this node.
    pub desktops: Arc<Desktops>,
    /// The API.
    pub client: Client,
    /// The cluster of this host.
    pub cluster: Cluster,
    /// Figures.
    pub metrics: Metrics,
    /// The settings.
    pub settings: Settings,
    /// The `GpuNode` with its admin's words.
    pub stored: watch::Receiver<Stored>,
    /// Where what was found is left.
    pub seen: watch::Sender<Seen>,
}

struct Judged {
    here: Here,
    verdict: Result<Verdict, OrphanError>,
}

/// What became of something that was acted on.
enum Found {
    /// Nothing is left of it.
    Nothing,
    /// It is still here.
    Still,
    /// It is still here and is to be looked at at this time.
    Until(Timestamp),
}

impl Orphans {
    /// Looks after them for as long as it is awaited, once the desktops of this node are known.
    pub async fn look_after(self, mut watched: watch::Receiver<Option<Watched>>) {
        let Ok(stores) = watched.wait_for(Option::is_some).await.map(|stores| stores.clone()) else { return };
        let Some(stores) = stores else { return };
        let (mut objects, mut belongs) = (self.stored.clone(), self.desktops.node().belongs.clone());
        let hint = Arc::clone(self.desktops.hint());
        let looking = Arc::new(Looking {
            this: self,
            stores,
            told: Mutex::default(),
            asked: Mutex::default(),
            known: tokio::sync::Mutex::default(),
        });
        loop {
            let begun = Instant::now();
            belongs.mark_unchanged();
            let spec = objects.borrow().spec();
            let wait = match looking.look(spec.as_ref()).await {
                Ok(again) => again,
                Err(error) => {
                    tracing::warn!(%error, "what is on this host of other desktops was not looked at");
                    looking.this.settings.look
                }
            };
            let called = async {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = hint.notified() => {}
                    Ok(_) = objects.wait_for(|objects| objects.spec() != spec) => {}
                    Ok(()) = belongs.changed() => {}
                }
            };
            not_at_once(begun, called).await;
        }
    }
}

/// Waits until it is `called` for another look, and not for one right after the one `begun`: a guest may call
/// for them as often as it likes.
async fn not_at_once(begun: Instant, called: impl Future<Output = ()>) {
    tokio::join!(tokio::time::sleep_until(begun + AGAIN), called);
}

struct Looking {
    this: Orphans,
    stores: Watched,
    /// What was logged of whom, so that it is logged once.
    told: Mutex<BTreeSet<(Uuid, String)>>,
    /// When machines whose metadata cannot be read were asked to end.
    asked: Mutex<HashMap<Uuid, Timestamp>>,
    known: tokio::sync::Mutex<Known>,
}

/// What lasts from one look to the next.
#[derive(Default)]
struct Known {
    strays: HashMap<Uuid, gpu_node_status::Stray>,
    /// As it is on disk.
    removals: Option<Removals>,
}

/// Desktops of which something is here and that the API does not know.
#[derive(Default)]
struct Missed {
    off: Vec<Here>,
    running: usize,
    /// Of all it is known whether they are such, and what their admin says.
    certain: bool,
}

/// What one look comes to.
struct Look {
    wait: Duration,
    now: Timestamp,
    counts: HashMap<Stray, usize>,
    /// What is kept on this host and cannot be understood, in words.
    odd: BTreeSet<String>,
}

impl Look {
    fn until(&mut self, at: Timestamp) {
        let left = Duration::try_from(at.duration_since(self.now)).unwrap_or_default();
        self.wait = self.wait.min(left.saturating_add(Duration::from_millis(10)));
    }

    /// Notes what is odd of a desktop.
    fn note(&mut self, owner: &Owner, error: &OrphanError) {
        if let OrphanError::Problem(Problem::Folder(error)) = error {
            self.odd.insert(format!("{}/{}: {error}", owner.namespace, owner.name));
        }
    }

    fn count(&mut self, verdict: Option<&Verdict>) {
        let stray = match verdict {
            Some(Verdict::Current | Verdict::OlderHere) => return,
            Some(Verdict::MovedOn(_)) => Stray::Elsewhere,
            Some(Verdict::Newer { .. }) => Stray::Newer,
            Some(Verdict::Unallocated) => Stray::Unallocated,
            Some(Verdict::NoDesktop) => Stray::NoDesktop,
            Some(Verdict::Unclear { .. }) | None => Stray::Unclear,
        };
        *self.counts.entry(stray).or_default() += 1;
    }
}

impl Looking {
    /// Looks at everything once; returns after what time to look again.
    async fn look(self: &Arc<Self>, spec: Option<&GpuNodeSpec>) -> Result<Duration, OrphanError> {
        let now = Timestamp::now();
        let mut look =
            Look { wait: self.this.settings.look, now, counts: HashMap::new(), odd: BTreeSet::new() };
        let belongs = self.this.desktops.node().belongs.borrow().clone();
        if let Belongs::Unknown(_) = belongs {
            return Ok(AGAIN);
        }
        let here = match self.here(&mut look.odd).await {
            Ok(here) => here,
            Err(error) => {
                if let OrphanError::Problem(Problem::Folder(fault)) = &error {
                    self.this.seen.send_modify(|seen| seen.state = Some(vec![fault.to_string()]));
                }
                return Err(error);
            }
        };
        if belongs != Belongs::Here {
            // Whatever the API says of them is of others.
            let active = here.iter().filter(|here| here.is_active());
            let strays = active.map(|here| here.stray(StrayStanding::Unclear, now));
            self.show(strays.collect(), vec![], vec![]);
            return Ok(look.wait);
        }
        let total = here.iter().map(|here| here.owner.uid).collect::<HashSet<_>>();
        let watched: HashSet<Uuid> =
            self.stores.desktops.state().iter().filter_map(|desktop| desktop.uid()?.parse().ok()).collect();
        let total = total.union(&watched).count();
        let judged: Vec<Judged> = stream::iter(here)
            .map(|here| {
                let this = Arc::clone(self);
                async move {
                    let verdict = this.judge(&here).await;
                    Judged { here, verdict }
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut known = self.known.lock().await;
        self.list(&judged, spec, &mut known, now);
        let removal = self.handle_all(&judged, total, spec, &mut known, &mut look).await;
        drop(known);
        self.this.metrics.set_strays(&look.counts);
        let uids: HashSet<Uuid> = judged.iter().map(|judged| judged.here.owner.uid).collect();
        self.told.lock().unwrap_or_else(PoisonError::into_inner).retain(|(uid, _)| uids.contains(uid));
        self.asked().retain(|uid, _| uids.contains(uid));
        let leftovers = self.keep_leftovers(spec, &mut look).await;
        let unwritable = self.this.desktops.node().leftovers.try_writing().await.err();
        let unwritable = unwritable.map(|error| error.to_string());
        self.this.seen.send_if_modified(|seen| {
            let before = seen.clone();
            seen.removal = removal;
            seen.state = Some(look.odd.into_iter().collect());
            seen.unwritable = unwritable;
            match leftovers {
                Ok(leftovers) => {
                    seen.leftovers = Some(leftovers.all);
                    (seen.leftovers_said, seen.unerased) = (leftovers.said, leftovers.unerased);
                }
                Err(error) => tracing::warn!(%error, "disks that are kept aside were not looked at"),
            }
            *seen != before
        });
        Ok(look.wait)
    }

    /// Does what is to be done; returns what is held back.
    async fn handle_all(
        self: &Arc<Self>,
        judged: &[Judged],
        total: usize,
        spec: Option<&GpuNodeSpec>,
        known: &mut Known,
        look: &mut Look,
    ) -> Removal {
        let word = |here: &Here| {
            let uid = here.owner.uid.to_string();
            spec?.strays.iter().find(|word| word.uid == uid).cloned()
        };
        let (mut acts, mut missed) = (vec![], Missed { certain: spec.is_some(), ..Missed::default() });
        for judged in judged {
            let here = &judged.here;
            let verdict = match &judged.verdict {
                Ok(verdict) => verdict,
                Err(OrphanError::Changing) => {
                    look.wait = look.wait.min(AGAIN);
                    continue;
                }
                Err(error) => {
                    missed.certain = false;
                    look.count(None);
                    look.note(&here.owner, error);
                    self.tell(&here.owner, &format!("left as it is: {error}"));
                    continue;
                }
            };
            missed.running += usize::from(*verdict == Verdict::NoDesktop && here.is_active());
            let planned = plan(verdict, here.trace(), word(here).as_ref());
            if !matches!(planned, Plan::End(_)) {
                // A word that is said again asks again.
                self.asked().remove(&here.owner.uid);
            }
            match planned {
                Plan::Leave => {
                    self.tell_of(here, verdict);
                    if here.is_active() && !matches!(verdict, Verdict::Current | Verdict::OlderHere) {
                        acts.push((here.clone(), verdict.clone(), Plan::Leave));
                    } else {
                        look.count(Some(verdict));
                    }
                }
                Plan::PutAside => missed.off.push(here.clone()),
                plan => acts.push((here.clone(), verdict.clone(), plan)),
            }
        }
        let acts: Vec<_> = acts
            .into_iter()
            .map(|(here, verdict, plan)| {
                let (this, word) = (Arc::clone(self), word(&here));
                async move { (this.act(here, plan, word).await, verdict) }
            })
            .collect();
        for (found, verdict) in stream::iter(acts).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
            match found {
                Found::Nothing => continue,
                Found::Still => {}
                Found::Until(at) => look.until(at),
            }
            look.count(Some(&verdict));
        }
        match self.put_aside(missed, total, spec, known, look).await {
            Ok(None) if spec.is_none() => Removal::Unclear(self.this.stored.borrow().why_silent().into()),
            Ok(held) => held.map_or(Removal::Allowed, Removal::Held),
            Err(error) => {
                tracing::warn!(%error, "nothing is put aside");
                Removal::Unclear(error.to_string())
            }
        }
    }

    /// Acts on one desktop. Whatever is wrong with it holds up no other.
    async fn act(self: Arc<Self>, here: Here, planned: Plan, word: Option<StrayWord>) -> Found {
        let owner = &here.owner;
        let span = tracing::info_span!("stray", desktop = format!("{}/{}", owner.namespace, owner.name), uid = %owner.uid);
        let this = Arc::clone(&self);
        let uid = owner.uid;
        let acting = async move { this.handle(here, planned, word).await }.instrument(span.clone());
        // A round of it may be under way: it has just come back.
        match self.this.desktops.alone(uid, acting).await {
            Some(Ok(found)) => found,
            Some(Err(error)) => {
                span.in_scope(|| tracing::warn!(%error, "left as it is"));
                Found::Still
            }
            None => Found::Still,
        }
    }

    async fn handle(&self, here: Here, planned: Plan, word: Option<StrayWord>) -> Result<Found, OrphanError> {
        if planned == Plan::Leave {
            if let Err(error) = self.this.desktops.call_off(&here.owner).await {
                self.tell(&here.owner, &format!("it may still be asked to shut down: {error}"));
            }
            return Ok(Found::Still);
        }
        self.this.cluster.check(&self.this.client).await?;
        // The read comes after everything else that may take time: what is done next rests on it.
        let (here, verdict, live) = self.look_at(&here.owner).await?;
        if plan(&verdict, here.trace(), word.as_ref()) != planned {
            return Err(OrphanError::Changing);
        }
        let (owner, desktops) = (&here.owner, &self.this.desktops);
        let template = template_of(owner, live.as_ref());
        // It tells how long the guest may take.
        let template = match template {
            Some(name) => self.stores.templates.get(&owner.namespace, name).await?,
            None => None,
        };
        let done = match planned {
            Plan::Leave => return Ok(Found::Still),
            Plan::Clear => {
                if desktops.clear_if_given_back(owner).await? {
                    return Ok(Found::Nothing);
                }
                self.tell(owner, "it is allocated to no node and something of it is here: left as it is");
                return Ok(Found::Still);
            }
            Plan::TakeDown(other) => {
                let why = format!("the desktop is allocated to node {other}");
                desktops.withdraw(owner, template, &why, Disks::PutAside).await?
            }
            Plan::PutAside if desktops.was_being_deleted(owner).await? => {
                tracing::warn!("it was being deleted and is gone: removing what is left of it");
                desktops.erase(owner).await?;
                return Ok(Found::Nothing);
            }
            Plan::PutAside => {
                desktops.withdraw(owner, None, "there is no such Desktop", Disks::PutAside).await?
            }
            Plan::End(action) => {
                let why = "spec.strays of the GpuNode ends it";
                let disks = match verdict {
                    Verdict::OlderHere | Verdict::Newer { here: true } => Disks::Stay,
                    _ => Disks::PutAside,
                };
                if here.made_for == MadeFor::Unreadable {
                    let asked = self.asked().get(&owner.uid).copied();
                    let done = desktops.end_unreadable(owner, action, asked, why, disks).await?;
                    if let Withdrawn::Waiting(_) = done {
                        self.asked().entry(owner.uid).or_insert_with(Timestamp::now);
                    }
                    done
                } else {
                    desktops.end(owner, action, template, why, disks).await?
                }
            }
        };
        Ok(match done {
            Withdrawn::Whole => Found::Nothing,
            Withdrawn::Waiting(until) => Found::Until(until),
        })
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<Uuid, Timestamp>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of the template of a desktop, by the answer to a read of it: not of the next one of its name.
fn template_of<'a>(owner: &Owner, live: Option<&'a DynamicObject>) -> Option<&'a str> {
    let live = live.filter(|live| live.metadata.uid.as_deref() == Some(&owner.uid.to_string()))?;
    live.data.pointer("/spec/templateRef/name")?.as_str()
}

#[cfg(test)]
mod look_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn looks_that_are_called_for_are_not_back_to_back() {
        let began = Instant::now();
        not_at_once(began, async {}).await;
        assert_eq!(began.elapsed(), AGAIN);
        not_at_once(began, tokio::time::sleep(2 * AGAIN)).await;
        assert_eq!(began.elapsed(), 3 * AGAIN, "and come when they are called for");
    }

    #[test]
    fn the_template_of_the_next_desktop_of_a_name_says_nothing_of_the_one_before() {
        let uid = Uuid::from_u128(7);
        let owner = Owner { namespace: "school".into(), name: "anna".into(), uid };
        let live = |uid: Uuid| -> DynamicObject {
            serde_json::from_value(json!({
                "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop",
                "metadata": { "name": "anna", "namespace": "school", "uid": uid },
                "spec": { "templateRef": { "name": "patient" } },
            }))
            .unwrap()
        };
        assert_eq!(template_of(&owner, Some(&live(uid))), Some("patient"));
        assert_eq!(template_of(&owner, Some(&live(Uuid::from_u128(8)))), None);
        assert_eq!(template_of(&owner, None), None);
    }
}
