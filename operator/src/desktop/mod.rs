//! One round over a desktop.
//!
//! ```text
//! dereference ─▶ validate ─▶ decide ─▶ one step: place | hold | release | rest | finalizer
//! ```
#![expect(clippy::disallowed_methods, reason = "an adapter: it tells the time to pure parts")]

use std::sync::Arc;
use std::time::Duration;

use gpudesk_crds::{
    Desktop,
    conditions::Reason,
    desktop::{Phase, PowerState},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{ResourceExt, runtime::controller::Action};
use thiserror::Error;

pub mod apply;
pub mod decide;
pub mod dereference;
pub mod status;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod validate;

use crate::{
    desktop_template::validate::keeps_disks,
    invalid::Invalid,
    placement::{request::DesktopKey, snapshot::key_of},
    secret_access::{SecretAccess, owner_reference},
    world::{Decision, NODE_LOST_AFTER, World},
    writer::{WriteError, Writer},
};
use decide::{Presence, Step};
use status::Situation;
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
    Secrets(#[source] WriteError),
}

impl Error {
    /// For metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Finalizer(error) | Self::Status(error) | Self::Allocation(error) | Self::Secrets(error) => {
                error.name()
            }
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
}

/// One round.
///
/// # Errors
/// When a write failed; the next round starts from what the watch shows.
pub async fn reconcile(desktop: &Desktop, context: &Context) -> Result<Action, Error> {
    let world = &context.world;
    let key = key_of(desktop);
    let referenced = dereference::dereference(world, desktop);
    let wanted = validate::validate(desktop, &referenced);
    let presence = node_of(desktop).map_or(Presence::Present, |node| world.presence(node));
    let keeps_disks = referenced.template.as_ref().map(|template| keeps_disks(&template.spec));
    let bound_to = node_of(desktop).filter(|_| keeps_disks != Some(false)).map(ToOwned::to_owned);
    world.wants(&key, wanted.as_ref().ok(), bound_to);
    let step = decide::decide(desktop, presence, keeps_disks);
    if !matches!(step, Step::Place { .. }) {
        world.not_waiting(&key);
    }
    match step {
        Step::AddFinalizer => {
            apply::set_finalizer(&context.writer, desktop, true).await.map_err(Error::Finalizer)?;
        }
        Step::RemoveFinalizer => {
            shrink_secrets(desktop, &referenced, context).await?;
            apply::set_finalizer(&context.writer, desktop, false).await.map_err(Error::Finalizer)?;
        }
        Step::Wait => {}
        Step::Hold => hold(desktop, &referenced, context).await?,
        Step::Release { park, reason } => release(desktop, &referenced, park, reason, context).await?,
        Step::Rest => rest(desktop, context).await?,
        Step::Place { home } => match wanted {
            Ok(wanted) => return place(desktop, &wanted, home, context).await,
            Err(invalid) => {
                world.not_waiting(&key);
                say_idle(desktop, Phase::Pending, home, invalid, context).await?;
            }
        },
    }
    Ok(Action::requeue(match presence {
        Presence::Missing => NODE_LOST_AFTER,
        Presence::Present | Presence::Lost => SLOWLY,
    }))
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
    let (allocation, fresh) = match world.decide(desktop, wanted, home.clone(), &now()) {
        Decision::Assumed { allocation, fresh } => (allocation, fresh),
        Decision::Written => return Ok(Action::requeue(WATCH_LAGS)),
        Decision::Stale | Decision::Yield => return Ok(Action::requeue(SOON)),
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
    if wanted.secret.is_some()
        && let Err(error) = sync_secrets(&key, &allocation.node, None, context).await
    {
        if fresh {
            world.forget(&key);
        }
        return Err(error);
    }
    let status = status::status(desktop, Situation::Placed((*allocation).clone()), &now());
    match context.writer.status(desktop, &status).await {
        Ok(()) => {
            world.written(&key);
            tracing::info!(desktop = %key, node = %allocation.node, gpus = ?status.gpu_summary, "placed");
            if let Some(record) = &allocation.decision {
                tracing::debug!(desktop = %key, node = %allocation.node, ?record, "decided");
            }
            Ok(Action::requeue(SLOWLY))
        }
        Err(error) => {
            // Only a first write that was refused is known to have changed nothing. After any other
            // answer the assumption stays until the watch shows what became of it.
            if fresh && matches!(error, WriteError::Refused(_)) {
                world.forget(&key);
            }
            Err(Error::Allocation(error))
        }
    }
}

/// Says what the node does not say of a desktop that holds its place.
async fn hold(desktop: &Desktop, referenced: &Referenced, context: &Context) -> Result<(), Error> {
    if let (Some(node), Some(secret)) =
        (node_of(desktop), validate::secret_name(desktop, referenced.template.as_deref()))
        && !context.secrets.has(&desktop.namespace().unwrap_or_default(), node, &secret).await
    {
        sync_secrets(&key_of(desktop), node, None, context).await?;
    }
    let remark = (desktop.spec.power_state == PowerState::Suspended)
        .then(|| "spec.powerState: Suspended is not yet supported; the desktop goes on as it is".to_owned());
    let template_generation = referenced.template.as_ref().and_then(|template| template.metadata.generation);
    let situation = Situation::Holding { template_generation, remark };
    let status = status::status(desktop, situation, &now());
    apply::write_status(&context.writer, desktop, &status).await.map_err(Error::Status)
}

/// Takes back what the node has given up.
async fn release(
    desktop: &Desktop,
    referenced: &Referenced,
    park: bool,
    reason: Reason,
    context: &Context,
) -> Result<(), Error> {
    shrink_secrets(desktop, referenced, context).await?;
    let node = node_of(desktop).unwrap_or_default().to_owned();
    let (phase, message) = match reason {
        Reason::NodeLost => (
            Phase::Pending,
            format!("GpuNode {node} does not exist any more: what the desktop had there is given up"),
        ),
        _ => (Phase::Stopped, "stopped, as asked".to_owned()),
    };
    tracing::info!(desktop = %key_of(desktop), %node, park, %reason, "released");
    say_idle(desktop, phase, park.then_some(node), Invalid::new(reason, message), context).await
}

/// Says that a desktop that shall not run does not.
async fn rest(desktop: &Desktop, context: &Context) -> Result<(), Error> {
    let why = match desktop.spec.power_state {
        PowerState::Suspended => Invalid::new(
            Reason::NotYetSupported,
            "spec.powerState: Suspended is not yet supported; use Running or Stopped",
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

/// Takes from the node the Secret of a desktop that does not run there any more.
async fn shrink_secrets(desktop: &Desktop, referenced: &Referenced, context: &Context) -> Result<(), Error> {
    let key = key_of(desktop);
    let Some(node) = node_of(desktop) else { return Ok(()) };
    let names_none = referenced.template.is_some()
        && validate::secret_name(desktop, referenced.template.as_deref()).is_none();
    if names_none || context.secrets.has_nothing(&key.namespace, node).await {
        return Ok(());
    }
    sync_secrets(&key, node, Some(&key), context).await
}

async fn sync_secrets(
    key: &DesktopKey,
    node: &str,
    except: Option<&DesktopKey>,
    context: &Context,
) -> Result<(), Error> {
    let world = &context.world;
    let object = world.stores.nodes.get(&kube::runtime::reflector::ObjectRef::new(node));
    let owner = object.and_then(|node| owner_reference(&node));
    let wanted = || world.secrets(&key.namespace, node, except);
    match context.secrets.sync(&key.namespace, node, owner, wanted).await {
        // A namespace that is being deleted takes its Roles with it.
        Err(WriteError::Gone) if except.is_some() => Ok(()),
        result => result.map_err(Error::Secrets),
    }
}

/// The node of the allocation, parked or not.
fn node_of(desktop: &Desktop) -> Option<&str> {
    Some(desktop.status.as_ref()?.allocation.as_ref()?.node.as_str())
}

/// Now, in the whole seconds that the API keeps.
fn now() -> Time {
    let seconds = Timestamp::now().as_second();
    Time(Timestamp::from_second(seconds).unwrap_or_default())
}
