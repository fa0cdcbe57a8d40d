//! One round over a profile: how many fit, how many more, and why none.
#![expect(clippy::disallowed_methods, reason = "an adapter: it tells the time to pure parts")]

use std::time::Duration;

use gpudesk_crds::GpuProfile;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt, runtime::controller::Action};

pub mod status;
pub mod validate;

use crate::{
    understood::odd,
    world::World,
    writer::{WriteError, Writer},
};

/// One round. Rounds come at most once a second, for whoever wakes them gathers first.
///
/// # Errors
/// Those of the write.
pub async fn reconcile(profile: &GpuProfile, world: &World, writer: &Writer) -> Result<Action, WriteError> {
    if odd(profile).is_some() {
        return Ok(Action::await_change());
    }
    let now = Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default());
    let wanted = match validate::validate(profile) {
        Ok(share) => status::status(profile, &share, &world.supply(&share), &now),
        Err(invalid) => status::invalid(profile, &invalid, world.in_use(&profile.name_any()), &now),
    };
    // Transition times move with the status only, so equal means that there is nothing new to say.
    if profile.status.as_ref() != Some(&wanted) {
        writer.apply_status(&Api::all(writer.client()), profile, &wanted).await?;
    }
    Ok(Action::requeue(Duration::from_mins(30)))
}
