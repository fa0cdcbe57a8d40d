//! Which decision what is here is for, and the node's last word on it. A file in the desktop's folder,
//! written before the word is said: a decision that was given back is never started again, whatever
//! becomes of the write that says so.

use gpudesk_crds::{Allocation, AllocationId, NodeReport, handover::Standing};
use serde::{Deserialize, Serialize};

use super::{Desktops, Round, problem::Problem};
use crate::domain::DomainMetadata;

/// Name of the file.
pub(super) const DECISION: &str = "decision.json";

/// The decision that a folder is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Its id.
    pub id: AllocationId,
    /// The node's last word on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_word: Option<NodeReport>,
}

impl Desktops {
    /// What is noted in the folder; nothing for a decision without id.
    pub(super) async fn noted_decision(&self, round: &Round<'_>) -> Result<Option<Decision>, Problem> {
        if round.id().is_none() {
            return Ok(None);
        }
        Ok(round.folder.read_json(DECISION).await?)
    }

    /// The last word on the decision that holds: what is `noted` in the folder, or from the API.
    pub(super) fn last_word(round: &Round<'_>, noted: Option<&Decision>) -> Option<NodeReport> {
        let noted = noted.filter(|noted| Some(noted.id) == round.id());
        noted.and_then(|noted| noted.last_word.clone()).or_else(|| Self::said(round))
    }

    /// The same from the API alone.
    pub(super) fn said(round: &Round<'_>) -> Option<NodeReport> {
        round.desktop.said_by_node().filter(|said| said.state.is_final()).cloned()
    }

    /// Notes down for which decision something is made here, or that it has ended.
    pub(super) async fn note_decision(
        &self,
        round: &Round<'_>,
        last_word: Option<&NodeReport>,
    ) -> Result<(), Problem> {
        let Some(id) = round.id() else { return Ok(()) };
        if !round.folder.exists().await? {
            round.folder.create(&round.owner).await?;
        }
        let decision = Decision { id, last_word: last_word.cloned() };
        Ok(round.folder.write_json(DECISION, decision).await?)
    }
}

/// How the decision that a domain was made for stands to `allocation`, the one that holds. Where one of
/// them is of a version without ids, the time of the decision tells.
pub fn standing(made_for: &DomainMetadata, allocation: &Allocation) -> Standing {
    let Ok(made_for) = serde_json::from_str::<Allocation>(&made_for.allocation) else {
        return Standing::Unknown;
    };
    compare(&made_for, allocation)
}

/// The same of the allocation itself.
pub fn compare(made_for: &Allocation, allocation: &Allocation) -> Standing {
    match (made_for.id, allocation.id) {
        (Some(made_for), Some(current)) => made_for.standing(current),
        _ => match made_for.decided_at.0.as_second().cmp(&allocation.decided_at.0.as_second()) {
            std::cmp::Ordering::Equal => Standing::Current,
            std::cmp::Ordering::Less => Standing::Older,
            std::cmp::Ordering::Greater => Standing::Unknown,
        },
    }
}
