//! The hand-over between operator and node: which decision something is for, and how far it came.
//!
//! Every decision has an id. What runs on a node names the decision it is for, and what the node says
//! names it too, so a word about one decision is never taken for one about another.

use std::{borrow::Cow, fmt, str::FromStr};

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    ABANDON_DISKS_ANNOTATION, Desktop,
    types::{CpuSet, ParseError, PciAddress},
};

/// Which decision of a desktop: `NUMBER-TAG`, for example `3-9f1c02ab`.
///
/// The number counts the decisions of the desktop. The tag tells decisions of one number apart, which
/// come to be when a cluster is restored from a backup and goes on from there; and by it the operator
/// knows its own decisions again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AllocationId {
    number: u64,
    tag: u32,
}

/// How the decision that something was made for stands to the one that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the one that holds.
    Current,
    /// The desktop has moved on since.
    Older,
    /// It is newer, or was never heard of: what holds may be an old copy of the truth.
    Unknown,
}

impl AllocationId {
    /// Highest number that is read: twelve digits.
    const LIMIT: u64 = 1_000_000_000_000;

    /// A decision of this number, at least 1 and at most what is read.
    pub fn new(number: u64, tag: u32) -> Self {
        Self { number: number.clamp(1, Self::LIMIT - 1), tag }
    }

    /// Which decision of its desktop.
    pub fn number(self) -> u64 {
        self.number
    }

    /// How something made for this decision stands to `current`, the one that holds.
    pub fn standing(self, current: Self) -> Standing {
        match self.number.cmp(&current.number) {
            std::cmp::Ordering::Equal if self.tag == current.tag => Standing::Current,
            std::cmp::Ordering::Less => Standing::Older,
            std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => Standing::Unknown,
        }
    }
}

impl fmt::Display for AllocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.number, self.tag)
    }
}

impl FromStr for AllocationId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let read = || {
            let (number, tag) = text.split_once('-')?;
            let decimal = !number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit());
            let hex = tag.len() == 8 && tag.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            let number = number.parse().ok().filter(|number| decimal && *number < Self::LIMIT)?;
            Some(Self { number, tag: u32::from_str_radix(tag, 16).ok().filter(|_| hex)? })
        };
        read().ok_or_else(|| ParseError::new(text, "allocation id", "write NUMBER-TAG, like 3-9f1c02ab"))
    }
}

impl TryFrom<String> for AllocationId {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<AllocationId> for String {
    fn from(id: AllocationId) -> Self {
        id.to_string()
    }
}

impl JsonSchema for AllocationId {
    fn schema_name() -> Cow<'static, str> {
        "AllocationId".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "pattern": "^[1-9][0-9]{0,11}-[0-9a-f]{8}$", "maxLength": 21,
            "description": "Which decision of a desktop: its number, and a tag."
        })
    }
}

/// What the node of an allocation says of it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// The decision that this is said of: `allocation.id`. Said of another, it says nothing of this one.
    pub allocation_id: AllocationId,
    /// How far the node is with it.
    pub state: NodeState,
    /// What stands in the way, with state `Refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// The value of the annotation `gpudesk.dev/abandon-disks` by which a node has made lost disks anew: it is used,
    /// and gives up nothing any more. It stays when the desktop moves on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub abandoned_disks: Option<String>,
    /// Whether disks that live as long as the desktop are on the node. Absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_disks: Option<bool>,
}

/// How far a node is with a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NodeState {
    /// Its machine is being made; said only when that takes long.
    Preparing,
    /// Its machine runs.
    Running,
    /// Its machine is being shut down.
    Stopping,
    /// Its machine ended by itself and is not started again. Only disks are left.
    Ended,
    /// Its machine was stopped, as asked. Only disks are left.
    Stopped,
    /// Nothing is left of the desktop.
    Released,
    /// The node cannot give what was decided. Nothing of the decision is left but disks.
    Refused,
    /// What a newer version knows: it ends nothing.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl NodeState {
    /// Whether this is the node's last word on a decision: it holds nothing of it any more but disks, and
    /// never starts it again.
    pub fn is_final(self) -> bool {
        match self {
            Self::Preparing | Self::Running | Self::Stopping | Self::Unknown => false,
            Self::Ended | Self::Stopped | Self::Released | Self::Refused => true,
        }
    }
}

/// What of a decision a node cannot give.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The card that cannot give its share.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::lenient::word")]
    pub device: Option<PciAddress>,
    /// CPUs that somebody else has.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::lenient::word")]
    pub cpus: Option<CpuSet>,
    /// What it is, in words. Who has it stands in the node's log, for that may be another tenant.
    #[schemars(length(max = 512))]
    pub message: String,
}

impl Desktop {
    /// What the node says of the decision that holds now; `None` before its first word, and where decision
    /// or node are of a version that had no ids.
    pub fn said_by_node(&self) -> Option<&NodeReport> {
        let said = self.status.as_ref()?.node.as_ref()?;
        (Some(said.allocation_id) == self.allocation()?.id).then_some(said)
    }

    /// The last decision that the operator's part of the status tells of: the one that holds, or that held.
    pub fn last_decision(&self) -> Option<AllocationId> {
        let status = self.status.as_ref()?;
        let held = status.allocation.as_ref().and_then(|allocation| allocation.id);
        held.max(status.last_placement.as_ref().and_then(|last| last.allocation_id))
    }

    /// The number of its next decision: above all that the status tells of, the node's part included.
    pub fn next_number(&self) -> u64 {
        let said = self.status.as_ref().and_then(|status| Some(status.node.as_ref()?.allocation_id));
        self.last_decision().max(said).map_or(1, |last| last.number.saturating_add(1))
    }

    /// The value of the annotation by which its user gives something up: `DECISION`, or `DECISION/ANYTHING` where that
    /// word is used already.
    pub fn abandon_word(&self) -> Option<&str> {
        let word = self.metadata.annotations.as_ref()?.get(ABANDON_DISKS_ANNOTATION)?;
        Some(word.as_str()).filter(|word| word.len() <= 64)
    }

    /// Whether its user gives this decision up, by a word on which no node has acted yet.
    pub fn abandons(&self, decision: &str) -> bool {
        self.abandon_word()
            .is_some_and(|word| of_decision(word) == decision && self.used_word() != Some(word))
    }

    /// What its user has to write to give this decision up.
    pub fn next_abandon_word(&self, decision: &str) -> String {
        match self.used_word().filter(|used| of_decision(used) == decision) {
            None => decision.to_owned(),
            Some(used) => {
                let number =
                    used.split_once('/').and_then(|(_, number)| number.parse::<u32>().ok()).unwrap_or(1);
                format!("{decision}/{}", number.saturating_add(1))
            }
        }
    }

    fn used_word(&self) -> Option<&str> {
        self.status.as_ref()?.node.as_ref()?.abandoned_disks.as_deref()
    }
}

fn of_decision(word: &str) -> &str {
    word.split_once('/').map_or(word, |(decision, _)| decision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_as_it_is_written_and_nothing_else_does() {
        let id = AllocationId::new(1, 7);
        assert_eq!(id.to_string(), "1-00000007");
        assert_eq!(id.to_string().parse(), Ok(id));
        for odd in [
            "",
            "1",
            "1-",
            "-1",
            "0-00000000",
            "01-00000000",
            "1-0000000",
            "1-0000000G",
            "1-0000000A",
            "1000000000000-00000000",
            "+1-00000000",
            "1-+0000000",
            "99999999999999999999999-00000000",
        ] {
            assert!(odd.parse::<AllocationId>().is_err(), "{odd}");
        }
    }

    #[test]
    fn a_refusal_that_names_what_cannot_be_is_still_one() {
        // The pattern of the schema lets this through, and a node may write it.
        let said = serde_json::json!({"cpus": "1-0", "device": "0000:41:00.0", "message": "x"});
        let said: Refusal = serde_json::from_value(said).unwrap();
        assert_eq!((said.cpus, said.device.is_some()), (None, true));
    }

    #[test]
    fn a_word_that_was_used_gives_up_nothing_until_it_is_another() {
        let desktop = |word: &str, used: &str| -> Desktop {
            let used = Some(used).filter(|used| !used.is_empty());
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "a", "annotations": {ABANDON_DISKS_ANNOTATION: word}},
                "spec": {"templateRef": {"name": "t"}},
                "status": {"node": {"allocationId": "9-00000001", "state": "Running", "abandonedDisks": used}},
            }))
            .unwrap()
        };
        let id = "3-00000001";
        for (word, used, counts, next) in [
            ("", "", false, "3-00000001"),
            (id, "", true, "3-00000001"),
            ("3-00000002", "", false, "3-00000001"),
            (id, id, false, "3-00000001/2"),
            (id, "2-00000001", true, "3-00000001"),
            ("3-00000001/2", id, true, "3-00000001/2"),
            ("3-00000001/2", "3-00000001/2", false, "3-00000001/3"),
            ("3-00000001/x", "3-00000001/x", false, "3-00000001/2"),
        ] {
            let desktop = desktop(word, used);
            assert_eq!(desktop.abandons(id), counts, "{word} {used}");
            assert_eq!(desktop.next_abandon_word(id), next, "{word} {used}");
        }
        let long = format!("{id}/{}", "x".repeat(64));
        assert!(!desktop(&long, "").abandons(id), "it could not be noted down");
    }

    #[test]
    fn ids_are_ordered_by_their_numbers_and_told_apart_by_their_tags() {
        let (first, second) = (AllocationId::new(1, 7), AllocationId::new(2, 7));
        assert_eq!(first.standing(second), Standing::Older);
        assert_eq!(second.standing(first), Standing::Unknown, "what holds is a copy from before it");
        assert_eq!(second.standing(second), Standing::Current);
        assert_eq!(AllocationId::new(2, 8).standing(second), Standing::Unknown, "of the same number");
        for number in [0, u64::MAX] {
            let id = AllocationId::new(number, 7);
            assert_eq!(id.to_string().parse(), Ok(id), "every id is readable");
        }
    }
}
