//! One round over a node: the service account with which its daemon reads Secrets.
#![expect(clippy::disallowed_methods, reason = "an adapter: it looks at the clock")]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gpudesk_crds::GpuNode;
use kube::{ResourceExt, runtime::controller::Action};

use crate::{secret_access::SecretAccess, writer::WriteError};

/// A node whose object was made anew finds the account of the old one, which the garbage collector
/// is about to remove: it is looked at once more after this time.
const LOOK_AGAIN: Duration = Duration::from_mins(1);

/// The nodes, by UID: when their account was asked for first, and whether it is known to be new.
#[derive(Debug, Default)]
pub struct Accounts {
    asked: Mutex<BTreeMap<String, Asked>>,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    FoundAt(Instant),
    Done,
}

/// One round.
///
/// # Errors
/// Those of the write.
pub async fn reconcile(
    node: &GpuNode,
    secrets: &SecretAccess,
    accounts: &Accounts,
) -> Result<Action, WriteError> {
    let uid = node.uid().unwrap_or_default();
    let asked = || accounts.asked.lock().unwrap_or_else(PoisonError::into_inner);
    let before = asked().get(&uid).copied();
    if let Some(Asked::FoundAt(at)) = before
        && at.elapsed() < LOOK_AGAIN
    {
        return Ok(Action::requeue(LOOK_AGAIN.saturating_sub(at.elapsed())));
    }
    if matches!(before, Some(Asked::Done)) || node.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let existed = secrets.service_account(node).await?;
    if existed && before.is_none() {
        asked().insert(uid, Asked::FoundAt(Instant::now()));
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    asked().insert(uid, Asked::Done);
    Ok(Action::await_change())
}
