//! One round over a template: who uses it, and whether desktops can be made from it. It has our finalizer
//! from first sight, so that it stays for as long as a desktop names it: the policy that refuses the
//! deletion of a template in use reads the count in its status, which comes a moment later.
#![expect(clippy::disallowed_methods, reason = "an adapter: it tells the time to pure parts")]

use std::time::Duration;

use gpudesk_crds::{DesktopTemplate, RELEASE_FINALIZER};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{ResourceExt, runtime::controller::Action};

pub mod status;
pub mod validate;

use crate::{
    placement::request::DesktopKey,
    understood::odd,
    world::World,
    writer::{Own, WriteError, Writer},
};

/// What of a template's status goes when the operator does not say it.
const OWN: Own = Own { fields: &["users"], conditions: &[] };

/// One round. Rounds come at most once a second, for whoever wakes them gathers first.
///
/// # Errors
/// Those of the write.
pub async fn reconcile(
    template: &DesktopTemplate,
    world: &World,
    writer: &Writer,
) -> Result<Action, WriteError> {
    let key = DesktopKey::new(&template.namespace().unwrap_or_default(), &template.name_any());
    let (desktops, users) = world.users(&key, status::NAMED_USERS);
    let ours = template.finalizers().iter().any(|finalizer| finalizer == RELEASE_FINALIZER);
    match (template.metadata.deletion_timestamp.is_some(), ours) {
        (false, false) => {
            writer.finalizer(template, true).await?;
            return Ok(Action::requeue(Duration::from_mins(30)));
        }
        (true, true) if desktops == 0 => {
            writer.finalizer(template, false).await?;
            return Ok(Action::await_change());
        }
        _ => {}
    }
    if odd(template).is_some() {
        return Ok(Action::await_change());
    }
    let names = template.spec.gpus.iter().map(|gpu| gpu.profile_ref.name.clone());
    let profiles =
        names.filter_map(|name| Some((name.clone(), world.stores.profile_named(&name)?))).collect();
    let now = Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default());
    let wanted = status::status(template, &profiles, desktops, users, &now);
    // Transition times move with the status only, so equal means that there is nothing new to say.
    if template.status.as_ref() != Some(&wanted) {
        writer.status(template, &wanted, OWN).await?;
    }
    Ok(Action::requeue(Duration::from_mins(30)))
}
