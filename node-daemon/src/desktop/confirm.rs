//! A machine is started only on the API's own word of now, never on a watch's of some time ago.

use std::time::Duration;

use gpudesk_crds::{Allocation, Desktop};
use kube::{Api, core::DeserializeGuard};

use super::{
    Desktops, Round,
    desired::{self, Wanted},
    problem::Problem,
};

/// How long the API server has for a read.
const PATIENCE: Duration = Duration::from_secs(10);

impl Desktops {
    /// Reads the Desktop anew and makes sure that it is to run here, by the decision that was worked on.
    pub(super) async fn confirm(&self, round: &Round<'_>) -> Result<(), Problem> {
        let owner = &round.owner;
        let desktops: Api<DeserializeGuard<Desktop>> = Api::namespaced(self.client.clone(), &owner.namespace);
        let unconfirmed = |why: String| Problem::Unconfirmed { why };
        let answer = tokio::time::timeout(PATIENCE, desktops.get_opt(&owner.name));
        let live = self
            .before_the_end(answer)
            .await
            .and_then(Result::ok)
            .ok_or_else(|| unconfirmed("the API server does not answer".into()))?
            .map_err(|error| unconfirmed(error.to_string()))?;
        let live = live
            .ok_or_else(|| unconfirmed("there is no such Desktop any more".into()))?
            .0
            .map_err(|error| unconfirmed(error.to_string()))?;
        differs(round, &live).map_or(Ok(()), |why| Err(unconfirmed(why.into())))
    }
}

/// In what the Desktop is not the one that was worked on.
fn differs(round: &Round<'_>, live: &Desktop) -> Option<&'static str> {
    if live.metadata.uid != round.desktop.metadata.uid {
        return Some("the Desktop of this name is another one now");
    }
    if desired::allocation(live).map(Allocation::held) != round.allocation.map(Allocation::held) {
        return Some("its allocation has changed meanwhile");
    }
    if live.said_by_node().is_some_and(|said| said.state.is_final()) {
        return Some("its decision was given back");
    }
    (desired::wanted(live) != Wanted::Run).then_some("it shall not run any more")
}
