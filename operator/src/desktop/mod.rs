//! One round over a desktop.
//!
//! ```text
//! dereference ─▶ validate ─▶ decide ─▶ one step: hold | release | rest | finalizer | place
//!                                                                                   └▶ admit ─▶ queue ─▶ placement
//! ```
#![expect(clippy::disallowed_methods, reason = "an adapter: it tells the time to pure parts")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use gpudesk_crds::{
    Desktop, NodeReport, NodeState, RELEASE_FINALIZER,
    conditions::{self, ConditionType, Reason},
    desktop::{Phase, PowerState},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::controller::Action;
use thiserror::Error;

pub mod admit;
pub mod apply;
pub mod away;
pub mod decide;
pub mod dereference;
pub mod made_of;
pub mod status;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod validate;

use crate::{
    cause,
    desktop_template::validate::keeps_disks,
    invalid::Invalid,
    placement::{request::DesktopKey, snapshot::key_of},
    secret_access::{AccessError, Pair, SecretAccess, owner_reference},
    understood::{holds_nothing, odd},
    world::{Decision, NODE_LOST_AFTER, World},
    writer::{WriteError, Writer},
};
use admit::{Admission, admit};
use decide::{Around, Presence, Step};
use status::{Holding, Situation};
use validate::{Referenced, Wanted};

/// How often a desktop is looked at when nothing happens.
const SLOWLY: Duration = Duration::from_mins(30);
/// How often a desktop without room tries again when nothing was freed.
const RETRY: Duration = Duration::from_mins(5);
/// When to look again at what is written and not yet seen, should the watch miss it.
const WATCH_LAGS: Duration = Duration::from_secs(15);
/// A moment, after which the watch shows more.
const SOON: Duration = Duration::from_millis(100);

/// A round that did not reach its end.
#[derive(Debug, Error)]
pub enum Error {
    /// The finalizer could not be set.
    #[error("cannot change the finalizer: {0}")]
    Finalizer(#[source] WriteError),
    /// The status could not be written.
    #[error("cannot write the status: {0}")]
    Status(#[source] WriteError),
    /// The allocation could not be written.
    #[error("cannot write the allocation: {0}")]
    Allocation(#[source] WriteError),
    /// The node could not be given or taken access to a Secret.
    #[error("cannot change which Secrets the node may read: {0}")]
    Secrets(#[source] AccessError),
    /// The API server does not say clearly whether a node is gone.
    #[error("whether GpuNode {node} is gone is not clear: {}", cause::of_request(.source))]
    Node {
        /// The node.
        node: String,
        /// What came instead of an answer.
        source: Box<kube::Error>,
    },
}

impl Error {
    /// For metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Finalizer(error) | Self::Status(error) | Self::Allocation(error) => error.name(),
            Self::Secrets(error) => error.name(),
            Self::Node { .. } => "unclear",
        }
    }

    /// Whether another version of the desktop is on its way: that is no failure.
    pub fn is_outdated(&self) -> bool {
        matches!(
            self,
            Self::Finalizer(e) | Self::Status(e) | Self::Allocation(e) if matches!(e, WriteError::Conflict | WriteError::Gone)
        )
    }
}

/// What a round needs.
pub struct Context {
    /// What is known.
    pub world: Arc<World>,
    /// Writes.
    pub writer: Writer,
    /// Access to Secrets.
    pub secrets: Arc<SecretAccess>,
    /// Namespace of the nodes' leases.
    pub namespace: String,
}

/// One round.
///
/// # Errors
/// When a write failed; the next round starts from what the watch shows.
pub async fn reconcile(desktop: &Desktop, context: &Context) -> Result<Action, Error> {
    let world = &context.world;
    let key = key_of(desktop);
    // It goes on as it is: what it is asked to be, or what it holds, is not understood.
    if odd(desktop).is_some() {
        world.not_waiting(&key);
        return odd_round(desktop, context).await;
    }
    let referenced = dereference::dereference(world, desktop);
    let wanted = validate::validate(desktop, &referenced);
    let keeps_disks = keeps_disks_of(&referenced);
    let bound_to = node_of(desktop).filter(|_| keeps_disks != Some(false)).map(ToOwned::to_owned);
    let mut around = world.around(desktop, keeps_disks);
    let mut step = decide::decide(desktop, &around);
    if around.node.is_away() {
        let node = if around.node == Presence::Lost { Presence::Missing } else { Presence::Present };
        let there = Around { node, ..around.clone() };
        let unless_away = decide::decide(desktop, &there);
        // What is given away is not taken back, and a watch may be behind or wrong.
        if step != unless_away && !away::is_away(desktop, &around, &step, context).await? {
            (around, step) = (there, unless_away);
        }
    }
    // Who waits for nobody but its user is not looked ahead for.
    world.wants(&key, wanted.as_ref().ok().filter(|_| !matches!(step, Step::Ended(_))), bound_to);
    if !matches!(step, Step::Place { .. }) {
        world.not_waiting(&key);
    }
    match desktop.said_by_node() {
        // What is parked keeps the word of its node, and asks for nothing.
        Some(NodeReport { allocation_id, state: NodeState::Refused, refusal, .. })
            if desktop.allocation().is_some_and(|allocation| allocation.compute.is_some()) =>
        {
            let node = node_of(desktop).unwrap_or_default();
            world.refused(&key, *allocation_id, node, &refusal.clone().unwrap_or_default());
        }
        Some(said) if said.state == NodeState::Running => world.not_refused(&key),
        _ => {}
    }
    match step {
        Step::AddFinalizer => match context.writer.finalizer(desktop, true).await {
            Err(WriteError::Refused(refused)) => {
                let error = WriteError::Refused(refused);
                let message = format!("the finalizer cannot be set, without which nothing is begun: {error}");
                let why = Invalid::new(Reason::WriteRefused, message);
                say_idle(desktop, Phase::Pending, None, why, context).await?;
                return Err(Error::Finalizer(error));
            }
            result => result.map_err(Error::Finalizer)?,
        },
        // A machine of it may run of which its node has not told yet.
        Step::RemoveFinalizer if let Some(unproven) = world.unproven() => {
            away::say_held(desktop, admit::not_heard(&unproven), context).await?;
            return Ok(Action::requeue(unproven.until.saturating_duration_since(Instant::now())));
        }
        // What it leaves behind is taken back once it is gone: nothing stands between.
        Step::RemoveFinalizer => context.writer.finalizer(desktop, false).await.map_err(Error::Finalizer)?,
        Step::Wait => away::wait(desktop, &around, context).await?,
        Step::NodeLost => away::say_lost(desktop, &around, context).await?,
        Step::GiveBack { node } => return give_back(desktop, &around, &node, context).await,
        Step::Ended(how) => stay(desktop, how, context).await?,
        Step::Hold => hold(desktop, &wanted, &referenced, &around, context).await?,
        Step::Release { park, reason } => release(desktop, park, reason, context).await?,
        Step::NotOver => {
            let node = node_of(desktop).unwrap_or_default().to_owned();
            let message = format!(
                "node {node} says that a machine of this desktop runs there by another decision: nothing is started beside it"
            );
            let why = Invalid::new(Reason::AllocationConflict, message);
            say_idle(desktop, Phase::Pending, Some(node), why, context).await?;
        }
        Step::Elsewhere => {
            say_idle(
                desktop,
                idle_phase(desktop),
                node_of(desktop).map(ToOwned::to_owned),
                away::elsewhere(&around.found),
                context,
            )
            .await?;
        }
        Step::Forgotten(decision) => {
            say_idle(
                desktop,
                idle_phase(desktop),
                node_of(desktop).map(ToOwned::to_owned),
                away::forgotten(desktop, decision),
                context,
            )
            .await?;
        }
        Step::Rest => {
            world.not_refused(&key);
            rest(desktop, context).await?;
        }
        Step::Place { home } => match wanted {
            Ok(wanted) => return place(desktop, &wanted, home, context).await,
            Err(invalid) => {
                world.not_waiting(&key);
                say_idle(desktop, Phase::Pending, home, invalid, context).await?;
            }
        },
    }
    Ok(Action::requeue(if around.node == Presence::Missing { NODE_LOST_AFTER } else { SLOWLY }))
}

/// One round over a desktop that is not understood. Nobody acts on it but to let it go, once there is nothing
/// that its node would have to give back.
async fn odd_round(desktop: &Desktop, context: &Context) -> Result<Action, Error> {
    let ours = desktop.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == RELEASE_FINALIZER);
    if desktop.metadata.deletion_timestamp.is_some() && ours {
        let around = context.world.around(desktop, None);
        if let Some(unproven) = context.world.unproven() {
            return Ok(Action::requeue(unproven.until.saturating_duration_since(Instant::now())));
        }
        // As for one that is understood: what nodes report of it, and what we remember, is held too.
        let untold = decide::forgotten(desktop, around.remembered).is_some() || !around.found.is_empty();
        if holds_nothing(desktop) && !untold {
            context.writer.finalizer(desktop, false).await.map_err(Error::Finalizer)?;
        } else {
            let remembered = decide::forgotten(desktop, around.remembered);
            let why =
                remembered.map(|decision| away::forgotten(desktop, decision).message).unwrap_or_default();
            tracing::warn!(
                desktop = %key_of(desktop), why,
                "is deleted and not understood: it waits for its node to say Released of the decision that it holds"
            );
        }
    }
    Ok(Action::await_change())
}

/// Finds a place and writes it down; or says why there is none.
async fn place(
    desktop: &Desktop,
    wanted: &Wanted,
    home: Option<String>,
    context: &Context,
) -> Result<Action, Error> {
    let world = &context.world;
    let key = key_of(desktop);
    let moment = Instant::now();
    if let Admission::Held { why, until } =
        admit(&world.admission_facts(desktop, &wanted.made_of), moment, &now())
    {
        world.not_waiting(&key);
        if !status::only_message_differs(desktop, &why) {
            say_idle(desktop, Phase::Pending, home, why, context).await?;
        }
        return Ok(Action::requeue(until.saturating_duration_since(moment)));
    }
    let (allocation, fresh) = match world.decide(desktop, wanted, home.clone(), &now()) {
        Decision::Assumed { allocation, fresh } => (allocation, fresh),
        Decision::Written | Decision::Queued => return Ok(Action::requeue(WATCH_LAGS)),
        Decision::Stale => return Ok(Action::requeue(SOON)),
        Decision::NoRoom(explanation) => {
            let why = Invalid::new(explanation.reason, explanation.message);
            if status::only_message_differs(desktop, &why) {
                let rest = world.may_say(&key);
                if !rest.is_zero() {
                    return Ok(Action::requeue(rest));
                }
            }
            say_idle(desktop, Phase::Pending, home, why, context).await?;
            return Ok(Action::requeue(RETRY));
        }
    };
    // The node must be able to read the Secret from the moment at which it sees the allocation.
    if let Some(secret) = &wanted.secret
        && let Err(error) = sync_secrets(&key, &allocation.node, context).await
    {
        if fresh {
            world.forget(&key);
            let why = not_readable(&allocation.node, secret, &error);
            say_idle(desktop, Phase::Pending, home, why, context).await?;
        }
        return Err(Error::Secrets(error));
    }
    let status = status::status(desktop, Situation::Placed((*allocation).clone()), &now());
    match apply::put(&context.writer, desktop, &status).await {
        Ok(()) => {
            world.written(desktop);
            let gpus = status.gpu_summary.as_deref().unwrap_or("none");
            tracing::info!(desktop = %key, node = %allocation.node, %gpus, "placed");
            if let Some(record) = &allocation.decision {
                tracing::debug!(desktop = %key, node = %allocation.node, ?record, "decided");
            }
            Ok(Action::requeue(SLOWLY))
        }
        Err(error) => {
            // Only a first write that was refused is known to have changed nothing. After any other
            // answer the assumption stays until the watch shows what became of it; one whose term was
            // refused is written again, for an API server may not have heard yet that we lead.
            if fresh && matches!(error, WriteError::Refused(_)) {
                world.forget(&key);
            }
            Err(Error::Allocation(error))
        }
    }
}

/// Gives a desktop back what a node reports to run of it.
async fn give_back(
    desktop: &Desktop,
    around: &Around,
    node: &str,
    context: &Context,
) -> Result<Action, Error> {
    let Some(found) = around.found.iter().find(|found| found.node == node) else {
        return Ok(Action::requeue(SOON));
    };
    let (world, key) = (&context.world, key_of(desktop));
    if !world.give_back(desktop, &found.allocation) {
        return Ok(Action::requeue(SOON));
    }
    let situation = Situation::GivenBack((*found.allocation).clone());
    let written = apply::put(&context.writer, desktop, &status::status(desktop, situation, &now())).await;
    match &written {
        Ok(()) => {
            world.written(desktop);
            tracing::warn!(desktop = %key, %node, decision = found.allocation.decision(), "given back what its status did not tell of");
        }
        Err(WriteError::Refused(_)) => world.forget(&key),
        Err(_) => {}
    }
    written.map_err(Error::Allocation)?;
    Ok(Action::requeue(SLOWLY))
}

/// Says what the node does not say of a desktop that holds its place.
async fn hold(
    desktop: &Desktop,
    wanted: &Result<Wanted, Invalid>,
    referenced: &Referenced,
    around: &Around,
    context: &Context,
) -> Result<(), Error> {
    let world = &context.world;
    let key = key_of(desktop);
    let Some(allocation) = desktop.allocation() else { return Ok(()) };
    let node = &allocation.node;
    let mut remark = (desktop.spec.power_state == PowerState::Suspended).then(|| {
        let message = "spec.powerState: Suspended is not yet supported: the machine goes on";
        Invalid::new(Reason::NotYetSupported, message)
    });
    if around.node == Presence::Present {
        remark = away::is_heard(desktop, allocation).or(remark);
    }
    let mut failed = Ok(());
    if let Some(secret) = validate::secret_name(desktop, referenced.template.as_deref())
        && !context.secrets.has(&Pair { namespace: key.namespace.clone(), node: node.clone() }, &secret).await
        && let Err(error) = sync_secrets(&key, node, context).await
    {
        remark = Some(not_readable(node, &secret, &error));
        failed = Err(Error::Secrets(error));
    }
    let due =
        decide::restart_due(desktop, allocation).filter(|_| desktop.spec.power_state == PowerState::Running);
    // The machine is only taken down for a start that can be made.
    let refused = due.as_ref().and_then(|due| {
        let home = Some(node.clone()).filter(|_| keeps_disks_of(referenced) != Some(false));
        let fits = |wanted: &Wanted| {
            let fits = world.would_fit(wanted, home);
            fits.map_err(|why| Invalid::new(why.reason, why.message))
        };
        let why = wanted.as_ref().map_err(Clone::clone).and_then(fits).err()?;
        let message = format!(
            "the restart {due:?} is not made, for the desktop could not be started again: {}",
            why.message
        );
        Some(Invalid::new(Reason::RestartRefused, message))
    });
    let stop_for = due.filter(|_| refused.is_none());
    let restart = refused.or_else(|| restart_required(desktop, wanted, referenced));
    let silence = world.heard(node).filter(|heard| !heard.heard && away::may_tell(desktop, context));
    let silence = silence.map(|heard| {
        let asked = around.off || desktop.abandon_word().is_some();
        let ways =
            if asked { format!(". {}", away::ways(desktop, allocation, around)) } else { String::new() };
        let message = format!("{}: whether the machine runs is not known{ways}", heard.silence(node));
        Invalid::new(Reason::DaemonSilent, message)
    });
    let tells = silence.is_some();
    let situation = Situation::Holding(Holding { remark, restart, stop_for, silence });
    let status = status::status(desktop, situation, &now());
    apply::write_status(&context.writer, desktop, &status).await.map_err(Error::Status)?;
    if tells {
        world.tell(node, &key);
    }
    failed
}

/// What another start would change.
fn restart_required(
    desktop: &Desktop,
    wanted: &Result<Wanted, Invalid>,
    referenced: &Referenced,
) -> Option<Invalid> {
    let allocation = desktop.allocation()?;
    let generation = referenced.template.as_ref()?.metadata.generation;
    let of_template = generation != Some(allocation.template_generation);
    let (changes, what) = match wanted {
        Ok(wanted) => {
            let made_by =
                desktop.status.as_ref()?.domain.as_ref().and_then(|domain| domain.template_generation);
            let changes = made_of::changes(allocation, wanted, of_template && made_by == generation);
            (changes, "")
        }
        // What cannot be read cannot be compared, and will not start.
        Err(invalid) => (vec![invalid.message.clone()], "as it is, it would not start: "),
    };
    if changes.is_empty() {
        return None;
    }
    let own = desktop.metadata.generation != Some(allocation.desktop_generation);
    let reason = if of_template && !own { Reason::TemplateChanged } else { Reason::SpecChanged };
    let message =
        format!("changed since the start, and in effect at the next one: {what}{}", changes.join(", "));
    Some(Invalid::new(reason, message))
}

fn not_readable(node: &str, secret: &str, error: &AccessError) -> Invalid {
    let message = format!("node {node} cannot be allowed to read the Secret {secret}: {error}");
    Invalid::new(Reason::SecretNotReadable, message)
}

/// How a desktop looks that holds nothing and waits.
fn idle_phase(desktop: &Desktop) -> Phase {
    if desktop.metadata.deletion_timestamp.is_some() {
        Phase::Deleting
    } else if desktop.spec.power_state == PowerState::Running {
        Phase::Pending
    } else {
        Phase::Stopped
    }
}

/// Takes back what the node has given up.
async fn release(desktop: &Desktop, park: bool, reason: Reason, context: &Context) -> Result<(), Error> {
    let node = node_of(desktop).unwrap_or_default().to_owned();
    let said = desktop.status.as_ref();
    let (phase, message) = match reason {
        Reason::NodeLost => {
            (Phase::Pending, format!("node {node} is away, and what the desktop had there was given up"))
        }
        Reason::GuestStopped | Reason::GuestCrashed | Reason::EndUnseen => {
            let conditions = said.map(|said| said.conditions.as_slice()).unwrap_or_default();
            let how = conditions::find(conditions, ConditionType::Running);
            let how = how.map(|running| running.message.clone()).unwrap_or_default();
            let rest = "CPUs, memory and GPU shares are given back; ask for a restart, or stop and start it";
            (ended_phase(reason), format!("{how}; {rest}"))
        }
        _ => (Phase::Stopped, "stopped, as asked".to_owned()),
    };
    tracing::info!(desktop = %key_of(desktop), %node, park, %reason, "released");
    say_idle(desktop, phase, park.then_some(node), Invalid::new(reason, message), context).await
}

/// Says the same of the generation that is there now, so that a stop and a start after it are told from
/// another change.
async fn stay(desktop: &Desktop, how: Reason, context: &Context) -> Result<(), Error> {
    let said = desktop.status.as_ref();
    let allocated = said.and_then(|said| conditions::find(&said.conditions, ConditionType::Allocated));
    let why = Invalid::new(how, allocated.map(|said| said.message.clone()).unwrap_or_default());
    let home = node_of(desktop).map(ToOwned::to_owned);
    say_idle(desktop, ended_phase(how), home, why, context).await
}

/// How a desktop looks whose guest ended for good.
fn ended_phase(how: Reason) -> Phase {
    if how == Reason::GuestCrashed { Phase::Failed } else { Phase::Stopped }
}

/// Says that a desktop that shall not run does not.
async fn rest(desktop: &Desktop, context: &Context) -> Result<(), Error> {
    let why = match desktop.spec.power_state {
        PowerState::Suspended => Invalid::new(
            Reason::NotYetSupported,
            "spec.powerState: Suspended is not yet supported: what does not run is not started; use Running or Stopped",
        ),
        PowerState::Running | PowerState::Stopped => Invalid::new(Reason::Stopped, "stopped, as asked"),
    };
    say_idle(desktop, Phase::Stopped, node_of(desktop).map(ToOwned::to_owned), why, context).await
}

/// Says of a desktop that holds nothing but, perhaps, disks at `home` why that is so.
async fn say_idle(
    desktop: &Desktop,
    phase: Phase,
    home: Option<String>,
    why: Invalid,
    context: &Context,
) -> Result<(), Error> {
    let allocation = desktop.status.as_ref().and_then(|status| status.allocation.as_ref());
    let parked = home.and(allocation).map(status::parked);
    let situation = Situation::Idle { parked, phase, reason: why.reason, message: why.message };
    let status = status::status(desktop, situation, &now());
    apply::write_status(&context.writer, desktop, &status).await.map_err(Error::Status)
}

/// Lets the node read just the Secrets that desktops of the namespace on it name.
async fn sync_secrets(key: &DesktopKey, node: &str, context: &Context) -> Result<(), AccessError> {
    let world = &context.world;
    let object = world.stores.nodes.get(&kube::runtime::reflector::ObjectRef::new(node));
    let owner = object.and_then(|node| owner_reference(&node));
    let pair = Pair { namespace: key.namespace.clone(), node: node.to_owned() };
    context.secrets.sync(&pair, owner, || world.secrets(&key.namespace, node)).await
}

fn keeps_disks_of(referenced: &Referenced) -> Option<bool> {
    let template = referenced.template.as_ref().filter(|template| odd(&***template).is_none());
    template.map(|template| keeps_disks(&template.spec))
}

/// The node of the allocation, parked or not.
fn node_of(desktop: &Desktop) -> Option<&str> {
    Some(desktop.allocation()?.node.as_str())
}

/// Now, in the whole seconds that the API keeps.
pub(crate) fn now() -> Time {
    let seconds = Timestamp::now().as_second();
    Time(Timestamp::from_second(seconds).unwrap_or_default())
}
