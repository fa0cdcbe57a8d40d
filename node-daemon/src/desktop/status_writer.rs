//! Writes what the daemon says of a desktop, when it says something new.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use gpudesk_crds::{
    Desktop, DesktopStatus, NODE_DAEMON_FIELD_MANAGER,
    conditions::{ConditionType, Reason},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use uuid::Uuid;

use super::{desired::Wanted, status};
use crate::{
    crash_point::{self, Step},
    host::folder::Owner,
};

/// Writes statuses. Remembers the last one written of each desktop, for the watch shows it later.
pub(super) struct StatusWriter {
    client: Client,
    written: Mutex<HashMap<Uuid, Written>>,
}

struct Written {
    status: DesktopStatus,
    /// The object that the write was computed from: as long as the watch shows that one, what was
    /// written is not yet seen.
    seen: Option<String>,
}

impl StatusWriter {
    pub(super) fn new(client: Client) -> Self {
        Self { client, written: Mutex::default() }
    }

    /// Writes `status` unless it is what the API has.
    pub(super) async fn write(
        &self,
        desktop: &Desktop,
        wanted: Wanted,
        owner: &Owner,
        status: DesktopStatus,
    ) -> Result<(), kube::Error> {
        let stored = self.stored(desktop, owner.uid);
        if !status::differs(desktop, wanted, &stored, &status) {
            return Ok(());
        }
        let desktops: Api<Desktop> = Api::namespaced(self.client.clone(), &owner.namespace);
        // The operator takes an allocation back on these words: they must not be said of one that it
        // gave after what was looked at.
        let final_ = status.node.as_ref().is_some_and(|said| said.state.is_final());
        let gives_back = final_
            || status.conditions.iter().any(|said| {
                said.type_ == ConditionType::DevicesPrepared.as_str()
                    && said.reason == Reason::Stopped.as_str()
            });
        let guard = match wanted {
            Wanted::Stop | Wanted::Remove => desktop.resource_version(),
            Wanted::Run | Wanted::Leave | Wanted::Withdraw => {
                desktop.resource_version().filter(|_| gives_back)
            }
        };
        let mut apply = json!({
            "apiVersion": Desktop::api_version(&()),
            "kind": Desktop::kind(&()),
            // With the UID, so that a desktop of the same name that came after is not meant.
            "metadata": { "name": owner.name, "namespace": owner.namespace, "uid": owner.uid },
            "status": status,
        });
        if let Some(version) = guard {
            apply["metadata"]["resourceVersion"] = version.into();
        }
        let params = PatchParams::apply(NODE_DAEMON_FIELD_MANAGER).force();
        match desktops.patch_status(&owner.name, &params, &Patch::Apply(&apply)).await {
            Ok(_) => {
                let written = Written { status, seen: desktop.resource_version() };
                self.lock().insert(owner.uid, written);
                crash_point::done(Step::StatusWritten);
                Ok(())
            }
            // Gone, or replaced by another of its name: nobody is left to be told. Or another version
            // is on its way, and brings its own round.
            Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => {
                self.lock().remove(&owner.uid);
                Ok(())
            }
            Err(error) => {
                // It may have been written all the same.
                self.lock().remove(&owner.uid);
                Err(error)
            }
        }
    }

    /// What the API has: the watch's copy, or, while that is the one from before our last write, what
    /// we wrote.
    fn stored(&self, desktop: &Desktop, uid: Uuid) -> DesktopStatus {
        let mut written = self.lock();
        match written.get(&uid) {
            Some(written) if written.seen == desktop.resource_version() => written.status.clone(),
            // The watch has shown another version since: what it shows is what counts.
            Some(_) => {
                written.remove(&uid);
                status::owned(desktop)
            }
            None => status::owned(desktop),
        }
    }

    /// Forgets what was written of a desktop.
    pub(super) fn forget(&self, uid: Uuid) {
        self.lock().remove(&uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Written>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use gpudesk_crds::conditions;
    use http::{Request, Response};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::client::Body;

    use super::*;
    use crate::desktop::fixtures::{SMALL, UID, desktop};

    /// The version that a status is written with, and whether it was taken for written when the API says
    /// `code`.
    async fn guarded(wanted: Wanted, prepared: Reason, code: u16) -> (Option<String>, bool) {
        let (service, mut api) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let writer = StatusWriter::new(Client::new(service, "school"));
        let desktop = desktop("", SMALL, "[]");
        let owner = Owner { namespace: "school".into(), name: "anna".into(), uid: UID.parse().unwrap() };
        let mut status = DesktopStatus::default();
        let now = Time(Timestamp::UNIX_EPOCH);
        conditions::set(
            &mut status.conditions,
            ConditionType::DevicesPrepared,
            false,
            prepared,
            "",
            Some(7),
            &now,
        );
        let asked = async {
            let (request, respond) = api.next_request().await.unwrap();
            let body = request.into_body().collect_bytes().await.unwrap();
            let object: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let answer = if code == 200 {
                serde_json::to_vec(&desktop).unwrap()
            } else {
                format!(r#"{{"kind":"Status","status":"Failure","code":{code},"message":"x","reason":"x"}}"#)
                    .into()
            };
            respond.send_response(Response::builder().status(code).body(Body::from(answer)).unwrap());
            object["metadata"]["resourceVersion"].as_str().map(ToOwned::to_owned)
        };
        let (version, written) = tokio::join!(asked, writer.write(&desktop, wanted, &owner, status));
        written.unwrap();
        (version, writer.lock().contains_key(&owner.uid))
    }

    #[tokio::test]
    async fn words_that_free_something_are_bound_to_the_version_that_was_looked_at() {
        let seen = Some("70".to_owned());
        for (wanted, prepared, version) in [
            (Wanted::Stop, Reason::Stopped, &seen),
            (Wanted::Stop, Reason::Stopping, &seen),
            (Wanted::Remove, Reason::Released, &seen),
            // A machine that ended by itself for good gives back what it held.
            (Wanted::Run, Reason::Stopped, &seen),
            (Wanted::Leave, Reason::Stopped, &seen),
            // Nothing is freed by these, and no other writer is in their way.
            (Wanted::Run, Reason::AsExpected, &None),
            (Wanted::Run, Reason::GuestStopped, &None),
            (Wanted::Leave, Reason::NotYetSupported, &None),
        ] {
            let (said, written) = guarded(wanted, prepared, 200).await;
            assert_eq!((&said, written), (version, true), "{wanted:?} {prepared}");
        }
        // Another version is there already: it was not said, and that is no failure.
        assert_eq!(guarded(Wanted::Stop, Reason::Stopped, 409).await, (seen, false));
    }
}
