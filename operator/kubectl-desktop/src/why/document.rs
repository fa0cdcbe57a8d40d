//! The answer as a document: what `-o yaml` and `-o json` print. Fields are only added within one version.

use serde::{Deserialize, Serialize};

use crate::plan::document::{PlannedDesktop, PlannedMove};

/// Why a desktop is where it is, or why it waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesktopExplanation {
    /// `gpudesk.dev/v1alpha1`.
    pub api_version: String,
    /// `DesktopExplanation`.
    pub kind: String,
    /// The desktop: what it holds, with the record of the decision; or why it waits, as this program
    /// finds now.
    pub desktop: PlannedDesktop,
    /// Whether no cluster has it: its place is the one that a plan gives to its manifest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub planned: bool,
    /// Since when it is being deleted, and what it waits for; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleting: Option<Deleting>,
    /// What the operator says of it in the condition `Allocated`; absent when it has not said anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated: Option<Said>,
    /// What the condition `Ready` says of one that has its place; absent when that is as expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Said>,
    /// Why each node was left out; of a pending desktop.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<LeftOut>,
    /// What is nearest to a place; of a pending desktop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
    /// What a reader should know: what was left out or taken as read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A desktop that is being deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deleting {
    /// Since when.
    pub since: String,
    /// What it waits for, a sentence's end.
    pub waits_for: String,
}

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Said {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// For programs.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// A node that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    /// Name of the node.
    pub node: String,
    /// Why.
    pub reason: String,
}

/// A place that is nearly there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nearest {
    /// The node that it would get.
    pub node: String,
    /// What would have to move first, in this order. Empty: it fits now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<PlannedMove>,
}
