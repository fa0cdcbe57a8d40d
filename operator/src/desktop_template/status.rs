//! What the operator says of a template. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpudesk_crds::{
    DesktopTemplate, DesktopTemplateStatus, GpuProfile,
    conditions::{self, ConditionType, Reason},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::validate;
use crate::{gpu_profile::validate as profile_validate, invalid::Invalid};

/// How many users are named.
pub const NAMED_USERS: usize = 10;

/// The status of a template with `desktops` users, of which `users` are the first.
pub fn status(
    template: &DesktopTemplate,
    profiles: &BTreeMap<String, Arc<GpuProfile>>,
    desktops: usize,
    users: Vec<String>,
    now: &Time,
) -> DesktopTemplateStatus {
    let old = template.status.clone().unwrap_or_default();
    let mut conditions = old.conditions;
    conditions.retain(|condition| condition.type_ == ConditionType::Valid.as_str());
    let generation = template.metadata.generation;
    let deleted = (template.metadata.deletion_timestamp.is_some() && desktops > 0).then(|| {
        let more = desktops - users.len().min(desktops);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("it is deleted, and goes once no desktop names it; these do: {}{more}", users.join(", "))
    });
    let (valid, reason, message) = match (problem(template, profiles), deleted) {
        (None, Some(deleted)) => (true, Reason::Deleting, deleted),
        (None, None) => (true, Reason::AsExpected, String::new()),
        (Some(Invalid { reason, message }), Some(deleted)) => {
            (false, reason, format!("{message}; {deleted}"))
        }
        (Some(Invalid { reason, message }), None) => (false, reason, message),
    };
    conditions::set(&mut conditions, ConditionType::Valid, valid, reason, message, generation, now);
    let desktops = i32::try_from(desktops).unwrap_or(i32::MAX);
    DesktopTemplateStatus { desktops, users, conditions, operator_term: None }
}

fn problem(template: &DesktopTemplate, profiles: &BTreeMap<String, Arc<GpuProfile>>) -> Option<Invalid> {
    if let Some(invalid) = Invalid::unsupported("DesktopTemplate", &validate::unsupported(&template.spec)) {
        return Some(invalid);
    }
    template.spec.gpus.iter().find_map(|gpu| {
        let name = &gpu.profile_ref.name;
        match profiles.get(name) {
            None => Some(Invalid::new(Reason::ProfileNotFound, format!("GpuProfile {name} does not exist"))),
            Some(profile) => profile_validate::validate(profile).err().map(|invalid| match invalid.reason {
                Reason::NotYetSupported => invalid,
                _ => Invalid { reason: Reason::ProfileInvalid, ..invalid },
            }),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_deleted_says_whom_it_waits_for() {
        let template = |deleted: Option<&str>| -> DesktopTemplate {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "t", "deletionTimestamp": deleted},
                "spec": {"memory": {"sizeMiB": 1}, "disks": []},
            }))
            .unwrap()
        };
        let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let said = |deleted, desktops: usize, users: &[&str]| {
            let users = users.iter().map(ToString::to_string).collect();
            let status = status(&template(deleted), &BTreeMap::new(), desktops, users, &now);
            (status.conditions[0].reason.clone(), status.conditions[0].message.clone())
        };
        assert_eq!(said(None, 1, &["anna"]).0, "AsExpected");
        let (reason, message) = said(Some("2026-01-01T00:00:00Z"), 12, &["anna", "ben"]);
        assert_eq!(reason, "Deleting");
        assert!(message.ends_with("these do: anna, ben and 10 more"), "{message}");
    }
}
